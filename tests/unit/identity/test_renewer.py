"""The renewer with a control plane that can misbehave, clocks that the test sets, and no waiting."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from integration.link.identity import authority_of_tests, give_identity
from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.identity.device_api import RefusedError
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.renewal import LOOK_S, REFUSED_TIMES, Renewer
from skerry_agent.identity.renewal_machine import State, pause_s, renewal_moment
from skerry_agent.link.backoff import Backoff
from skerry_agent.trusted_clock import TrustedClock
from skerry_server.fleet.authority import CertificateAuthority
from unit.update.disks import TestDisk

DEVICE = "press-07"
ISSUED = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = AgentConfig(
    device_id=DEVICE,
    broker_host="127.0.0.1",
    broker_port=1,
    broker_data_port=1,
    device_api="https://127.0.0.1:1",
    superlink_address="127.0.0.1:1",
    release_keys=["00" * 32],
)


class Plane:
    """The renewal of a control plane; ``fault`` replaces or changes its answer."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.authority = authority_of_tests()
        self.asked: list[Mapping[str, Any]] = []
        self.fault: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda answer: answer
        self._now = now

    def renew(self, document: Mapping[str, Any], authority_pem: bytes) -> Mapping[str, Any]:
        self.asked.append(document)
        assert authority_pem == self.authority.certificate_pem
        old = self.authority.check_issued(document["certificate"].encode())
        certificate = self.authority.issue_device(
            document["csr"].encode(), device_id=old.device_id, now=self._now(), days=90
        )
        return self.fault({"certificate": certificate.decode(), "authority": authority_pem.decode()})


class Device:
    """A renewer whose times the test moves; ``true`` is the time that the control plane has."""

    def __init__(self, root: Path, *, issued: datetime = ISSUED) -> None:
        self.layout = AgentLayout(root)
        if not self.layout.identity.exists():
            give_identity(self.layout, DEVICE, issued=issued)
        self.true = issued
        self.wall: datetime | None = None
        self.passed_s = 0.0
        self.disk = TestDisk()
        self.plane = Plane(lambda: self.true)
        self.renewals = 0
        self.clock = TrustedClock(
            self.layout.trust / "clock.json",
            wall=lambda: (self.wall or self.true).timestamp(),
            monotonic=lambda: self.passed_s,
            disk=self.disk,
        )
        self.renewer = self.restart()

    def restart(self) -> Renewer:
        backoff = Backoff(
            self.layout.root / "renewal.json", ceiling_s=300, uniform=lambda low, high: high, disk=self.disk
        )
        self.renewer = Renewer(
            self.layout, CONFIG, self.clock, on_renewed=self._count, ask=self.plane.renew, disk=self.disk,
            backoff=backoff, monotonic=lambda: self.passed_s,
        )  # fmt: skip
        return self.renewer

    def _count(self) -> None:
        self.renewals += 1

    def step(self, *, days: float = 0, seconds: float = 0) -> float:
        self.true += timedelta(days=days, seconds=seconds)
        self.passed_s += days * 86_400 + seconds
        return self.renewer.step()

    @property
    def serial(self) -> str:
        return IdentityFiles(self.layout).read().facts.serial


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "d")


def test_it_is_renewed_in_its_third_quarter_with_a_proof_of_the_old_key(device: Device) -> None:
    before = device.renewer.facts
    assert device.step() == LOOK_S
    assert device.step(days=44) == LOOK_S
    assert device.plane.asked == []
    device.step(days=15.5)
    assert device.true >= renewal_moment(before)
    assert (device.renewals, device.renewer.state) == (1, State.VALID)
    assert device.serial != before.serial
    [document] = device.plane.asked
    csr = x509.load_pem_x509_csr(document["csr"].encode())
    old = x509.load_pem_x509_certificate(document["certificate"].encode())
    key = old.public_key()
    assert isinstance(key, EllipticCurvePublicKey)
    message = b"skerry-renew-v1\0" + csr.public_bytes(Encoding.DER)
    key.verify(base64.b64decode(document["signature"]), message, ECDSA(SHA256()))
    assert csr.public_key() != key, "a new key for each certificate"
    assert device.step(days=1) == LOOK_S
    assert device.renewals == 1


def another_authority(answer: dict[str, Any]) -> dict[str, Any]:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    from skerry_agent.identity.certificate import new_key

    csr = request.sign(new_key(), SHA256()).public_bytes(Encoding.PEM)
    other = CertificateAuthority.create(now=ISSUED)
    return answer | {"certificate": other.issue_device(csr, device_id=DEVICE, now=ISSUED).decode()}


def away(answer: dict[str, Any]) -> dict[str, Any]:
    raise DeviceError("https://127.0.0.1:1 cannot be reached", remedy="check the network")


def refused(answer: dict[str, Any]) -> dict[str, Any]:
    raise RefusedError("renewal", 403, "the device is revoked")


@pytest.mark.parametrize(
    ("fault", "says", "waits"),
    [
        (away, "cannot be reached", [2, 4, 8, 16]),
        (refused, "403 the device is revoked", [2 * REFUSED_TIMES, 4 * REFUSED_TIMES]),
        (lambda answer: {}, "without a certificate", [2, 4]),
        (lambda answer: {"certificate": 5}, "without a certificate", [2, 4]),
        (lambda answer: {"certificate": "x"}, "no certificate in PEM", [2]),
        (lambda answer: {"certificate": answer["certificate"] * 2}, "2 certificates instead of one", [2]),
        (another_authority, "not issued by the authority", [2]),
    ],
)
def test_whatever_goes_wrong_the_old_pair_stays_and_it_is_tried_again(
    device: Device, fault: Any, says: str, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    before = device.serial
    device.plane.fault = fault
    device.step(days=60)
    for wait in waits:
        assert device.renewer.state is State.DUE
        assert device.serial == before
        asked = len(device.plane.asked)
        device.step(seconds=wait - 0.1)
        assert len(device.plane.asked) == asked, "it waits"
        device.step(seconds=0.2)
        assert len(device.plane.asked) == asked + 1
    assert says in caplog.text
    device.plane.fault = lambda answer: answer
    device.step(seconds=3600)
    assert (device.renewals, device.renewer.state) == (1, State.VALID)
    assert len({document["csr"] for document in device.plane.asked}) >= 1
    assert json.loads((device.layout.root / "renewal.json").read_text())["failures"] == 0


def test_a_lost_answer_is_asked_for_again_with_the_same_key(device: Device) -> None:
    device.plane.fault = away
    device.step(days=60)
    device.restart()
    device.plane.fault = lambda answer: answer
    device.step(seconds=10)
    keys = [x509.load_pem_x509_csr(document["csr"].encode()).public_key() for document in device.plane.asked]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_the_wait_survives_a_restart(device: Device) -> None:
    device.plane.fault = away
    device.step(days=60)
    for _ in range(3):
        device.restart()
        assert device.step() > 1.9
    assert len(device.plane.asked) == 1


def test_25_days_offline_with_an_ended_certificate(device: Device) -> None:
    device.plane.fault = away
    device.step(days=44)
    for _ in range(25):
        device.step(days=1)
    device.step(days=40)
    assert device.renewer.state is State.EXPIRED
    device.plane.fault = lambda answer: answer
    device.step(seconds=300)
    assert (device.renewals, device.renewer.state) == (1, State.VALID)


def test_a_clock_in_1970_learns_from_the_broker_that_the_certificate_has_ended(tmp_path: Path) -> None:
    device = Device(tmp_path / "d", issued=ISSUED)
    device.true = ISSUED + timedelta(days=115)
    device.wall = datetime(1970, 1, 1, tzinfo=UTC)
    device.restart()
    assert device.clock.now() < ISSUED, "the moment at which the certificate was issued is all that is known"
    assert device.step(seconds=3600) == LOOK_S
    assert device.plane.asked == []
    device.renewer.doubt()
    device.step()
    assert device.renewals == 1
    assert device.clock.now() >= device.true - timedelta(hours=2), "the new certificate tells the time"
    device.renewer.doubt()
    device.step()
    assert device.renewals == 1, "a broker that refuses everybody does not make a storm of renewals"
    device.step(seconds=pause_s(device.renewer.facts))
    assert device.renewals == 2


def test_a_jump_to_2040_renews_once_in_a_while_and_is_over_when_the_clock_comes_back(device: Device) -> None:
    device.wall = datetime(2040, 1, 1, tzinfo=UTC)
    device.step()
    assert (device.renewals, device.renewer.state) == (1, State.VALID)
    for _ in range(60):
        device.step(seconds=60)
    assert (device.renewals, device.renewer.state) == (1, State.EXPIRED)
    device.wall = None
    device.step(seconds=60)
    assert device.renewer.state is State.VALID
    assert device.clock.floor_ms < ISSUED.timestamp() * 1000 + 1
    device.step(days=40)
    assert device.renewals == 1


def test_a_full_disk_keeps_the_old_pair_until_there_is_room(device: Device) -> None:
    before = device.serial
    device.disk.fail = lambda call, path: OSError(28, "No space left on device") if call == "create" else None
    device.step(days=60)
    assert (device.serial, device.renewer.state, device.plane.asked) == (before, State.DUE, [])
    device.disk.fail = lambda call, path: (
        OSError(28, "No space left on device") if call == "write" and path and "certificate" in path.name else None
    )
    device.step(seconds=60)
    assert (device.serial, len(device.plane.asked)) == (before, 1)
    device.disk.fail = lambda call, path: None
    device.step(seconds=60)
    assert device.renewals == 1


def test_its_thread_starts_looks_and_is_joined(device: Device, wait_until: Callable[..., None]) -> None:
    device.true += timedelta(days=60)
    device.renewer.start()
    wait_until(lambda: device.renewals == 1, what="a renewal")
    device.renewer.doubt()
    device.renewer.stop()
    assert not device.renewer._thread.is_alive()
