"""From a device's measurement to what the next device downloads: signed, carried, checked, kept, learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from integration.engine.tiny_bundle import SIGNER, TinyRelease, enrol, install
from skerry_agent.config import AgentLayout
from skerry_agent.engine.choice import Choice, Choices, Measurement, write_choices
from skerry_agent.engine.device_profile import DeviceProfile
from skerry_agent.engine.fitness import LOOK_S, FitnessReporter, fitness_statement
from skerry_agent.identity.certificate import make_request, new_key, request_to_pem
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.update.slots import SlotContent
from skerry_contract.errors import WireError
from skerry_contract.fitness import FORMS, profile_digest, read_statement, sign_fitness
from skerry_contract.secagg_roster import certificate_der
from skerry_contract.signing import Ed25519Verifier
from skerry_contract.v1.fitness_pb2 import FitnessCertificate, FitnessStatement, FormFitness
from skerry_contract.v1.telemetry_pb2 import UplinkMessage
from skerry_server.fitness.ledger import check_signature, lessons, preferred_variants, store_fitness
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Device, Fitness, Release

AUTHORITY = CertificateAuthority.create(now=utc_now())
PROFILE = DeviceProfile(
    "x86_64", "Some CPU", ("avx2", "avx512_vnni"), 4, 8 << 30, (), {"onnxruntime": "1.31.1"}, "performance"
)
MEASURED = (
    Measurement("fp32", "onnxruntime", True, 70.0, 90.0, 1e-7, "", 0, 150_000, 2400.0),
    Measurement("int8-qdq", "onnxruntime", True, 30.0, 44.0, 1e-6, "", 0, 50_000, 900.0),
    Measurement("int8-qdq", "tensorrt", False, float("inf"), float("inf"), float("inf"), "no\nmemory", 0, 50_000),
)


def certified(device_id: str) -> tuple[EllipticCurvePrivateKey, bytes]:
    key = new_key()
    request = request_to_pem(make_request(key, device_id)).encode()
    return key, AUTHORITY.issue_device(request, device_id=device_id, now=utc_now())


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    layout = enrol(tmp_path)
    key, certificate = certified("device-1")
    IdentityFiles(layout).write_first(key, certificate, AUTHORITY.certificate_pem)
    return layout


class Control:
    """The control process as far as it reports fitness; its outbox may be full."""

    def __init__(self, layout: AgentLayout) -> None:
        self.sent: list[UplinkMessage] = []
        self.full = False
        self.now = 0.0
        self.reporter = FitnessReporter(
            layout,
            device_id="device-1",
            verifier=Ed25519Verifier([SIGNER.public_key]),
            identity=IdentityFiles(layout).read,
            profile=lambda: PROFILE,
            record=self.record,
            monotonic=lambda: self.now,
        )

    def record(self, message: UplinkMessage) -> bool:
        if not self.full:
            self.sent.append(message)
        return not self.full

    def step(self) -> None:
        self.now += LOOK_S
        self.reporter.step()


def measured(content: SlotContent, **changes: Any) -> Choices:
    choices = Choices(
        content.manifest.bundle_sha256.hex(),
        PROFILE.hardware,
        1_800_000_000_000,
        (Choice("int8-qdq", "onnxruntime", "1.31.1", 30.0, 44.0),),
        MEASURED,
    )
    changed = replace(choices, **changes)
    write_choices(content.folder, changed)
    return changed


def test_each_measurement_is_reported_once_also_over_restarts(layout: AgentLayout) -> None:
    control = Control(layout)
    control.step()
    assert control.sent == []
    content = install(layout, TinyRelease())
    measured(content)
    control.full = True
    control.step()
    control.full = False
    control.step()
    control.step()
    Control(layout).step()
    (message,) = control.sent
    statement = read_statement(message.fitness)
    assert (statement.device_id, statement.release_id, statement.task) == ("device-1", "release-one", "tiny")
    assert profile_digest(statement.profile) == PROFILE.digest
    assert [(f.variant, f.correct, f.chosen, f.p50_us) for f in statement.forms] == [
        ("fp32", True, False, 70.0),
        ("int8-qdq", True, True, 30.0),
        ("int8-qdq", False, False, 0.0),
    ]
    assert statement.forms[2].detail == "no memory"
    measured(content, measured_unix_ms=1_800_000_000_001)
    control.step()
    assert len(control.sent) == 2


@pytest.mark.parametrize("what", ["no identity", "another bundle", "broken choice"])
def test_what_cannot_be_certified_is_left_for_later(layout: AgentLayout, what: str) -> None:
    content = install(layout, TinyRelease())
    measured(content, bundle_sha256="00" * 32) if what == "another bundle" else measured(content)
    if what == "no identity":
        IdentityFiles(layout).certificate_path.unlink()
    if what == "broken choice":
        (content.folder / "choice.json").write_text("{")
    control = Control(layout)
    control.step()
    assert control.sent == []
    assert not (layout.root / "link" / "fitness.json").exists()


def test_alike_are_devices_that_differ_in_memory_only() -> None:
    assert replace(PROFILE, memory_bytes=1).digest == PROFILE.digest
    for change in ({"cores": 2}, {"power_mode": "15W"}, {"isa": ("avx2",)}, {"runtimes": {"onnxruntime": "1.30"}}):
        assert replace(PROFILE, **change).digest != PROFILE.digest
    assert replace(PROFILE, power_mode="15W").hardware == PROFILE.hardware


class Plane:
    """The control plane's store with devices that are certified, and a release."""

    def __init__(self, content: SlotContent) -> None:
        self.content = content
        self.keys: dict[str, tuple[EllipticCurvePrivateKey, bytes]] = {}
        self.database = Database("sqlite://")
        Base.metadata.create_all(self.database.engine)
        manifest = content.manifest
        with self.database.transaction() as session:
            session.add(
                Release(
                    id=manifest.release_id,
                    task=manifest.task,
                    sequence=1,
                    candidate_id="c",
                    origin="central",
                    bundle_sha256=manifest.bundle_sha256.hex(),
                    envelope=b"",
                    created_ms=1,
                )
            )
            for number in range(1, 5):
                self.keys[f"device-{number}"] = key, pem = certified(f"device-{number}")
                serial = AUTHORITY.check_issued(pem).serial
                session.add(Device(id=f"device-{number}", enrolled_ms=1, certificate_serial=serial))
                assert key

    def certificate(
        self, device_id: str, edit: Callable[[FitnessStatement], object] = lambda _: None, **choices: Any
    ) -> FitnessCertificate:
        key, pem = self.keys[device_id]
        made = measured(self.content, **choices)
        statement = fitness_statement(made, self.content.manifest, PROFILE, device_id=device_id)
        edit(statement)
        return sign_fitness(statement, key=key, certificate_der=certificate_der(pem))

    def take(self, device_id: str, certificate: FitnessCertificate) -> None:
        with self.database.transaction() as session:
            device = session.get_one(Device, device_id)
            check_signature(certificate, device, AUTHORITY)
            store_fitness(session, device, certificate, received_ms=2)

    def rows(self) -> list[Fitness]:
        with self.database.reading() as session:
            return list(session.scalars(sa.select(Fitness)))


@pytest.fixture
def plane(layout: AgentLayout) -> Plane:
    return Plane(install(layout, TinyRelease()))


def test_three_devices_teach_the_fourth(plane: Plane) -> None:
    wanted = [("release-one", PROFILE.digest), ("release-one", "another kind"), ("", PROFILE.digest)]
    for number in (1, 2, 3):
        with plane.database.reading() as session:
            assert preferred_variants(session, wanted) == {}
        plane.take(f"device-{number}", plane.certificate(f"device-{number}"))
    with plane.database.reading() as session:
        assert preferred_variants(session, wanted) == {("release-one", PROFILE.digest): ["int8-qdq"]}
        (lesson,) = lessons(session, task="tiny")
        assert lessons(session, task="another") == []
    assert (lesson.learned.variant, lesson.learned.p50_us, lesson.learned.reference_p50_us) == ("int8-qdq", 30, 70)
    assert lesson.profile["cpu"] == "Some CPU"


def test_a_newer_measurement_replaces_the_older_and_not_the_other_way_round(plane: Plane) -> None:
    newer = plane.certificate("device-1", measured_unix_ms=2_000)
    plane.take("device-1", newer)
    plane.take("device-1", plane.certificate("device-1", measured_unix_ms=1_000))
    (row,) = plane.rows()
    assert (row.measured_ms, row.certificate) == (2_000, newer.SerializeToString())
    assert json.dumps(row.forms)


@pytest.mark.parametrize(
    ("spoiled", "value", "field"),
    [
        ("statement", b"\x30\x01", "fitness.signature"),
        ("signature", b"\x30", "fitness.signature"),
        ("certificate", b"x", "fitness.certificate"),
        ("certificate", b"x" * 3000, "fitness.certificate"),
    ],
)
def test_what_was_not_signed_by_the_device_s_key_is_refused(
    plane: Plane, spoiled: str, value: bytes, field: str
) -> None:
    certificate = plane.certificate("device-1")
    # A statement that has one more field still parses: only its signature tells.
    setattr(certificate, spoiled, certificate.statement + value if spoiled == "statement" else value)
    with pytest.raises(WireError) as caught:
        plane.take("device-1", certificate)
    assert caught.value.field == field
    assert plane.rows() == []


def test_a_device_speaks_for_itself_and_with_its_certificate_of_now(plane: Plane) -> None:
    with pytest.raises(WireError, match="device_id"):
        plane.take("device-2", plane.certificate("device-1"))
    plane.keys["device-2"] = plane.keys["device-1"]
    with pytest.raises(WireError, match="one of device-2"):
        plane.take("device-2", plane.certificate("device-2"))
    plane.keys["device-1"] = certified("device-1")  # ours, but not the one that is the device's now
    with pytest.raises(WireError, match="of now"):
        plane.take("device-1", plane.certificate("device-1"))
    assert plane.rows() == []


def test_a_release_that_is_another_one_here_is_not_kept(plane: Plane) -> None:
    def another(statement: FitnessStatement) -> None:
        statement.bundle_sha256 = b"\0" * 32

    plane.take("device-1", plane.certificate("device-1", another))
    assert plane.rows() == []


def edit_form(**values: Any) -> Callable[[FitnessStatement], None]:
    def edit(statement: FitnessStatement) -> None:
        for name, value in values.items():
            setattr(statement.forms[1], name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (edit_form(p50_us=float("nan")), "fitness.forms[1].p50_us"),
        (edit_form(p99_us=-1.0), "fitness.forms[1].p99_us"),
        (edit_form(worst_difference=float("inf")), "fitness.forms[1].worst_difference"),
        (edit_form(variant="x" * 65), "fitness.forms[1].variant"),
        (edit_form(variant=""), "fitness.forms[1].variant"),
        (edit_form(rung=16), "fitness.forms[1].rung"),
        (edit_form(correct=False), "fitness.forms[1].chosen"),
        (lambda s: setattr(s.forms[0], "chosen", True), "fitness.forms"),
        (lambda s: s.forms.extend([FormFitness(variant="v")] * FORMS), "fitness.forms"),
        (lambda s: s.ClearField("forms"), "fitness.forms"),
        (lambda s: setattr(s, "release_id", "../x"), "fitness.release_id"),
        (lambda s: setattr(s.profile, "cpu", "x" * 201), "fitness.profile.cpu"),
        (lambda s: s.profile.isa.extend(["x"] * 65), "fitness.profile.isa"),
    ],
)
def test_every_bound_is_checked(plane: Plane, edit: Callable[[FitnessStatement], object], field: str) -> None:
    with pytest.raises(WireError) as caught:
        plane.take("device-1", plane.certificate("device-1", edit))
    assert caught.value.field == field
