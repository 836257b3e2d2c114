"""Keeps the fitness certificates of devices, and answers what they taught.

A certificate counts only for the device whose key signed it, and only with a certificate of ours that is that device's
now. One row per device and release: a newer measurement replaces the older one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_contract.fitness import profile_digest, read_statement, verify_fitness
from skerry_contract.secagg_roster import CERTIFICATE_BYTES
from skerry_contract.v1.fitness_pb2 import DeviceProfile, FitnessCertificate, FitnessStatement, FormFitness
from skerry_server.errors import InvalidRequestError
from skerry_server.fitness.learning import Form, Learned, learn
from skerry_server.fleet.authority import DeviceCertificate
from skerry_server.store.tables import Device, Fitness, Release

#: Most certificates of one release and profile that are looked at, newest first.
LOOKED_AT = 500


class Authority(Protocol):
    """Says what a device's certificate says: ``fleet.authority.CertificateAuthority``."""

    def check_issued(self, certificate_pem: bytes) -> DeviceCertificate:
        """Raises InvalidRequestError for a certificate that is not ours."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What is known of one network of a release on one kind of device.

    Attributes:
        release_id: The release.
        task: Its task.
        profile_sha256: The kind of device.
        profile: Its fields.
        learned: What the devices' certificates say together.
    """

    release_id: str
    task: str
    profile_sha256: str
    profile: Mapping[str, Any]
    learned: Learned


def check_signature(message: FitnessCertificate, device: Device, authority: Authority) -> None:
    """Pass if the device's certified key signed the statement, and the statement is about that device.

    Raises:
        WireError: It did not, or it is not.
    """
    statement = read_statement(message)
    if statement.device_id != device.id:
        raise WireError("fitness.device_id", expected=device.id, got=statement.device_id)
    verify_fitness(message, _certified_key(message.certificate, device, authority))


def store_fitness(session: Session, device: Device, message: FitnessCertificate, *, received_ms: int) -> None:
    """Keep a certificate that passed :func:`check_signature`.

    One about a release that is not known, or about other files than that release has, is kept by nobody: the control
    plane was restored from a backup, or the device serves something else.
    """
    statement = read_statement(message)
    release = session.get(Release, statement.release_id)
    if release is None or release.bundle_sha256 != statement.bundle_sha256.hex() or release.task != statement.task:
        return
    row = session.scalar(sa.select(Fitness).filter_by(device_id=device.id, release_id=release.id))
    if row is None:
        row = Fitness(device_id=device.id, release_id=release.id, measured_ms=-1)
        session.add(row)
    if statement.measured_unix_ms < row.measured_ms:
        return
    row.task = release.task
    row.profile_sha256 = profile_digest(statement.profile)
    row.profile = _profile(statement.profile)
    row.forms = [_form(form) for form in statement.forms]
    row.measured_ms = statement.measured_unix_ms
    row.received_ms = received_ms
    row.certificate = message.SerializeToString()
    session.flush()


def lessons(session: Session, *, task: str = "", release_id: str = "") -> list[Lesson]:
    """What certificates taught, newest release first, then by profile and rung."""
    query = sa.select(Fitness).order_by(Fitness.received_ms.desc())
    if task:
        query = query.where(Fitness.task == task)
    if release_id:
        query = query.where(Fitness.release_id == release_id)
    groups: dict[tuple[str, str], list[Fitness]] = defaultdict(list)
    for row in session.scalars(query):
        group = groups[row.release_id, row.profile_sha256]
        if len(group) < LOOKED_AT:
            group.append(row)
    return [
        Lesson(release, rows[0].task, profile, rows[0].profile, learned)
        for (release, profile), rows in groups.items()
        for learned in learn([_forms(row) for row in rows])
    ]


def preferred_variants(session: Session, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The forms that devices of a profile need of a release.

    Args:
        session: For reading.
        wanted: Pairs of release and profile (``Device.profile_sha256``).

    Returns:
        Pair to names of variants, one per network that enough devices agree on; pairs without any are left out.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for release_id, profile in sorted(set(wanted)):
        if not release_id or not profile:
            continue
        rows = session.scalars(
            sa.select(Fitness)
            .filter_by(release_id=release_id, profile_sha256=profile)
            .order_by(Fitness.received_ms.desc())
            .limit(LOOKED_AT)
        ).all()
        names = [entry.variant for entry in learn([_forms(row) for row in rows]) if entry.recommended]
        if names:
            found[release_id, profile] = names
    return found


def _certified_key(certificate_der: bytes, device: Device, authority: Authority) -> EllipticCurvePublicKey:
    field = "fitness.certificate"
    try:
        if len(certificate_der) > CERTIFICATE_BYTES:
            raise ValueError(f"{len(certificate_der)} bytes")
        pem = x509.load_der_x509_certificate(certificate_der).public_bytes(Encoding.PEM)
        facts = authority.check_issued(pem)
    except (ValueError, TypeError, InvalidRequestError) as error:
        raise WireError(field, expected="a device's certificate of this control plane", got=str(error)) from error
    if facts.device_id != device.id:
        raise WireError(field, expected=f"one of {device.id}", got=facts.device_id)
    current = {device.certificate_serial, device.certificate_previous_serial} - {""}
    if facts.serial not in current:
        raise WireError(field, expected="the device's certificate of now", got=f"serial {facts.serial}")
    return facts.public_key


def _profile(profile: DeviceProfile) -> dict[str, Any]:
    return {
        "device_class": profile.device_class,
        "cpu": profile.cpu,
        "isa": list(profile.isa),
        "cores": profile.cores,
        "memory_bytes": profile.memory_bytes,
        "accelerators": list(profile.accelerators),
        "runtimes": dict(profile.runtimes),
        "power_mode": profile.power_mode,
    }


def _form(form: FormFitness) -> dict[str, Any]:
    """Every field by name, those that were not set included."""
    return {field.name: getattr(form, field.name) for field in form.DESCRIPTOR.fields}


def _forms(row: Fitness) -> list[Form]:
    return [
        Form(
            variant=str(form["variant"]),
            rung=int(form["rung"]),
            tried=bool(form["tried"]),
            correct=bool(form["correct"]),
            p50_us=float(form["p50_us"]),
            chosen=bool(form["chosen"]),
        )
        for form in row.forms
    ]


def statement_of(row: Fitness) -> FitnessStatement:
    """The statement of a stored certificate, as it was signed."""
    return read_statement(FitnessCertificate.FromString(row.certificate))
