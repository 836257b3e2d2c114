"""Fitness certificates: what a device measured of a release's forms, signed by the key that the fleet certified.

What is signed is what is parsed: the statement travels as the bytes under the signature. Whether the certificate is
the fleet's is for the control plane, which holds the authority; the bounds on what a statement says are here.
"""

from __future__ import annotations

import hashlib
import json
import math

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.limits import CELL_COUNT
from skerry_contract.v1.fitness_pb2 import DeviceProfile, FitnessCertificate, FitnessStatement, FormFitness
from skerry_contract.wire import parse_message

#: Largest statement (bytes), most forms in it, longest text of a profile and of a form's name (characters).
STATEMENT_BYTES = 64 << 10
FORMS = 128
TEXT = 200
NAME = 64
#: Most rungs of a ladder.
RUNGS = 16
#: Most entries of a list in a profile.
ENTRIES = 64
#: Longest latency that is believed (microseconds): ten minutes.
LATENCY_US = 6e8
_CONTEXT = b"skerry-fitness-v1\0"


def profile_digest(profile: DeviceProfile) -> str:
    """What makes devices alike: 64 hexadecimal digits over every field but the memory."""
    fields = {
        "device_class": profile.device_class,
        "cpu": profile.cpu,
        "isa": sorted(profile.isa),
        "cores": profile.cores,
        "accelerators": sorted(profile.accelerators),
        "runtimes": dict(profile.runtimes),
        "power_mode": profile.power_mode,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def sign_fitness(
    statement: FitnessStatement, *, key: EllipticCurvePrivateKey, certificate_der: bytes
) -> FitnessCertificate:
    """A certificate about ``statement``, by the device's certified key."""
    data = statement.SerializeToString(deterministic=True)
    return FitnessCertificate(
        statement=data, certificate=certificate_der, signature=key.sign(_CONTEXT + data, ECDSA(SHA256()))
    )


def verify_fitness(certificate: FitnessCertificate, key: EllipticCurvePublicKey) -> None:
    """Pass if ``key`` signed the statement.

    Raises:
        WireError: It did not.
    """
    try:
        key.verify(certificate.signature, _CONTEXT + certificate.statement, ECDSA(SHA256()))
    except InvalidSignature as error:
        raise WireError(
            "fitness.signature", expected="the signature of the device's certified key", got="another"
        ) from error


def read_statement(certificate: FitnessCertificate) -> FitnessStatement:
    """The statement, every field within its bounds; its signature is not looked at.

    Raises:
        WireError: Malformed, or a field out of bounds.
    """
    statement = parse_message(FitnessStatement, certificate.statement, limit=STATEMENT_BYTES)
    check_name(statement.device_id, field="fitness.device_id")
    check_name(statement.release_id, field="fitness.release_id")
    check_name(statement.task, field="fitness.task")
    if len(statement.bundle_sha256) != 32:
        raise WireError("fitness.bundle_sha256", expected="32 bytes", got=f"{len(statement.bundle_sha256)} bytes")
    if not 0 <= statement.measured_unix_ms <= CELL_COUNT:
        raise WireError("fitness.measured_unix_ms", expected=f"0 to {CELL_COUNT}", got=statement.measured_unix_ms)
    _check_profile(statement.profile)
    if not 1 <= len(statement.forms) <= FORMS:
        raise WireError("fitness.forms", expected=f"1 to {FORMS}", got=len(statement.forms))
    for index, form in enumerate(statement.forms):
        _check_form(form, f"fitness.forms[{index}]")
    chosen = [form.rung for form in statement.forms if form.chosen]
    if len(chosen) != len(set(chosen)):
        raise WireError("fitness.forms", expected="one chosen form per rung", got=f"rungs {sorted(chosen)}")
    return statement


def _check_profile(profile: DeviceProfile) -> None:
    for name in ("device_class", "cpu", "power_mode"):
        _text(getattr(profile, name), f"fitness.profile.{name}", TEXT)
    for name in ("isa", "accelerators"):
        values = getattr(profile, name)
        if len(values) > ENTRIES:
            raise WireError(f"fitness.profile.{name}", expected=f"at most {ENTRIES}", got=len(values))
        for value in values:
            _text(value, f"fitness.profile.{name}", TEXT)
    if len(profile.runtimes) > ENTRIES:
        raise WireError("fitness.profile.runtimes", expected=f"at most {ENTRIES}", got=len(profile.runtimes))
    for name, version in profile.runtimes.items():
        _text(name, "fitness.profile.runtimes", TEXT)
        _text(version, f"fitness.profile.runtimes[{name}]", TEXT)
    if profile.memory_bytes > CELL_COUNT:
        raise WireError("fitness.profile.memory_bytes", expected=f"at most {CELL_COUNT}", got=profile.memory_bytes)


def _check_form(form: FormFitness, field: str) -> None:
    if not form.variant:
        raise WireError(f"{field}.variant", expected="a name", got="none")
    _text(form.variant, f"{field}.variant", NAME)
    _text(form.backend, f"{field}.backend", NAME)
    _text(form.detail, f"{field}.detail", 2 * TEXT)
    if form.rung >= RUNGS:
        raise WireError(f"{field}.rung", expected=f"below {RUNGS}", got=form.rung)
    if form.size > CELL_COUNT:
        raise WireError(f"{field}.size", expected=f"at most {CELL_COUNT}", got=form.size)
    for name in ("p50_us", "p99_us", "load_us"):
        value: float = getattr(form, name)
        if not 0 <= value <= LATENCY_US:  # also refuses NaN
            raise WireError(f"{field}.{name}", expected=f"0 to {LATENCY_US:g}", got=value)
    if not (math.isfinite(form.worst_difference) and form.worst_difference >= 0):
        raise WireError(f"{field}.worst_difference", expected="0 or more", got=form.worst_difference)
    if form.chosen and not (form.correct and form.p50_us > 0):
        raise WireError(f"{field}.chosen", expected="a form that is correct and was measured", got="another")


def _text(value: str, field: str, longest: int) -> None:
    if len(value) > longest or (value and not value.isprintable()):
        raise WireError(field, expected=f"at most {longest} printable characters", got=value[:80])
