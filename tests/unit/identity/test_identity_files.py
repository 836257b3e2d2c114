"""A pair of key and certificate that matches, whatever a power cut leaves, enumerated over every system call."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from integration.link.identity import authority_of_tests, give_identity
from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.identity.certificate import make_request, public_half, request_to_pem
from skerry_agent.identity.identity_files import CERTIFICATE, KEY, NEXT_KEY, IdentityFiles
from skerry_agent.identity.tls import client_context
from skerry_agent.trusted_clock import TrustedClock
from unit.identity.power_disk import PowerCut, PowerDisk
from unit.update.disks import TestDisk

DEVICE = "press-07"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def renew(files: IdentityFiles) -> bytes:
    """What the renewer does, without a network."""
    request = request_to_pem(make_request(files.next_key(), DEVICE)).encode()
    certificate = authority_of_tests().issue_device(request, device_id=DEVICE, now=datetime.now(UTC))
    files.replace(certificate)
    return certificate


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    layout = AgentLayout(tmp_path / "d")
    give_identity(layout, DEVICE)
    return layout


def test_a_renewal_replaces_both(layout: AgentLayout) -> None:
    files = IdentityFiles(layout)
    before = files.read()
    certificate = renew(files)
    after = files.read()
    assert after.certificate_pem == certificate
    assert after.facts.serial != before.facts.serial
    assert public_half(after.key) != public_half(before.key)
    assert after.key_path.name == KEY
    assert set(snapshot(layout.identity)) == {KEY, CERTIFICATE, "authority.pem"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in layout.identity.iterdir())
    assert stat.S_IMODE(layout.identity.stat().st_mode) == 0o700
    assert "PRIVATE" not in repr(after)


@pytest.mark.parametrize("forgets", [False, True])
def test_the_power_may_fail_at_every_system_call_of_a_renewal(tmp_path: Path, forgets: bool) -> None:
    cuts = 0
    for cut_at in range(100):
        layout = AgentLayout(tmp_path / str(cut_at))
        give_identity(layout, DEVICE)
        old = IdentityFiles(layout).read()
        disk = PowerDisk(cut_at=cut_at, forgets=forgets)
        try:
            renew(IdentityFiles(layout, disk=disk))
        except PowerCut:
            cuts += 1
        else:
            break
        # Any process may read before the writer has recovered, and TLS takes the pair.
        between = IdentityFiles(layout).read()
        client_context(layout, TrustedClock(tmp_path / "clock.json"))
        files = IdentityFiles(layout)
        recovered = files.recover()
        assert recovered.facts == between.facts
        assert recovered.key_path.name == KEY
        assert not list(layout.identity.glob(".*"))
        if (layout.identity / NEXT_KEY).exists():
            assert recovered.facts == old.facts
        renew(files)
        assert set(snapshot(layout.identity)) == {KEY, CERTIFICATE, "authority.pem"}
    assert cuts == 12, "create, write, sync, rename, sync_folder twice; rename and sync_folder"


def test_the_power_may_fail_at_every_system_call_of_the_recovery(tmp_path: Path) -> None:
    for cut_at in range(20):
        layout = AgentLayout(tmp_path / str(cut_at))
        give_identity(layout, DEVICE)
        try:
            renew(IdentityFiles(layout, disk=PowerDisk(cut_at=10)))
        except PowerCut:
            pass
        new = IdentityFiles(layout).read()
        assert new.key_path.name == NEXT_KEY
        (layout.identity / f".{CERTIFICATE}.1.tmp").write_bytes(b"left")
        disk = PowerDisk(cut_at=cut_at)
        try:
            IdentityFiles(layout, disk=disk).recover()
        except PowerCut:
            assert IdentityFiles(layout).recover().facts == new.facts
        else:
            assert cut_at == len(disk.calls) == 3
            break
    else:
        pytest.fail("the recovery has no end")


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename", "sync_folder"])
@pytest.mark.parametrize("name", [NEXT_KEY, CERTIFICATE, KEY])
def test_a_disk_that_fails_leaves_a_pair(layout: AgentLayout, call: str, name: str) -> None:
    disk = TestDisk()
    disk.fail = lambda what, path: (
        OSError(28, "No space left on device") if what == call and path is not None and name in path.name else None
    )
    old = IdentityFiles(layout).read().facts
    files = IdentityFiles(layout, disk=disk)
    try:
        renew(files)
    except OSError:
        assert IdentityFiles(layout).read().facts == old
    renewed = IdentityFiles(layout).recover()
    assert renewed.key_path.name == KEY
    disk.fail = lambda what, path: None
    renew(files)
    assert IdentityFiles(layout).read().key_path.name == KEY


def test_the_next_key_of_an_attempt_is_used_again(layout: AgentLayout) -> None:
    files = IdentityFiles(layout)
    assert public_half(files.next_key()) == public_half(files.next_key())
    (layout.identity / NEXT_KEY).write_bytes(b"broken")
    assert files.read().key_path.name == KEY
    assert public_half(files.next_key()) != public_half(files.read().key)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (KEY, b"x", "neither key.pem nor next-key.pem is the key"),
        (KEY, None, "neither key.pem nor next-key.pem is the key"),
        (CERTIFICATE, b"x", "no certificate in PEM"),
        (CERTIFICATE, None, "certificate.pem is missing"),
        ("authority.pem", None, "authority.pem is missing"),
        (CERTIFICATE, b"\0" * 20_000, "a certificate of 20000 bytes"),
    ],
)
def test_a_broken_identity_is_a_clear_error_and_is_left_alone(
    layout: AgentLayout, name: str, data: bytes | None, says: str
) -> None:
    path = layout.identity / name
    path.unlink() if data is None else path.write_bytes(data)
    before = snapshot(layout.identity)
    for read in (IdentityFiles(layout).read, IdentityFiles(layout).recover):
        with pytest.raises(DeviceError, match=rf"{says}.*: enrol the device again"):
            read()
    assert snapshot(layout.identity) == before


def test_a_reader_never_meets_half_a_renewal(layout: AgentLayout, tmp_path: Path) -> None:
    clock = TrustedClock(tmp_path / "clock.json")
    failures: list[DeviceError] = []
    stop, looked = threading.Event(), threading.Semaphore(0)

    def read() -> None:
        while not stop.is_set():
            try:
                client_context(layout, clock)
            except DeviceError as error:
                failures.append(error)
            looked.release()

    reader = threading.Thread(target=read)
    reader.start()
    files = IdentityFiles(layout, disk=TestDisk())
    for _ in range(30):
        renew(files)
        assert looked.acquire(timeout=10)
    stop.set()
    reader.join(timeout=30)
    assert failures == []
