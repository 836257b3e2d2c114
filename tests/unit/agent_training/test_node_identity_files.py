"""The node's key on the device's disk, the hint beside it, and the SuperLink's clock."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.files import Disk
from skerry_agent.identity.node_key import load_node_key, node_key_path, node_public_key
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.server_clock import ServerClock


class FullDisk(Disk):
    """Takes no byte."""

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    return AgentLayout(tmp_path / "agent")


def test_the_key_is_made_once_for_its_owner_only(layout: AgentLayout) -> None:
    pem = node_public_key(layout)
    public = load_pem_public_key(pem)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp384r1"
    path = node_key_path(layout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    assert node_public_key(layout) == pem
    assert load_node_key(layout).public_key() == public
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "broken"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "broken"),
        (b"p256", "another kind of key"),
    ],
)
def test_a_broken_key_is_said_and_never_replaced(layout: AgentLayout, content: bytes, reason: str) -> None:
    node_public_key(layout)
    if content == b"p256":
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = ec.generate_private_key(ec.SECP256R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    node_key_path(layout).write_bytes(content)
    with pytest.raises(DeviceError, match=reason):
        node_public_key(layout)
    assert node_key_path(layout).read_bytes() == content


def test_a_full_disk_leaves_no_key_behind(layout: AgentLayout) -> None:
    with pytest.raises(DeviceError, match="No space left"):
        node_public_key(layout, disk=FullDisk())
    assert list(node_key_path(layout).parent.iterdir()) == []


def test_enrolment_does_not_pay_for_flower() -> None:
    script = "import sys, skerry_agent.identity.node_key; print('flwr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"node_id": "x"}', b'{"node_id": null}', b"\xff"])
def test_a_hint_that_is_lost_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "flower-node.json"
    if content is not None:
        path.write_bytes(content)
    hint = NodeHint(path)
    assert hint.node_id == 0
    hint.remember(2**64 - 1)
    assert NodeHint(path).node_id == 2**64 - 1


class Clocks:
    def __init__(self, wall: float) -> None:
        self.wall, self.monotonic = wall, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.mark.parametrize(
    ("wall", "expected"),
    [
        (1_000_000_000.0, 1_000_000_000.0),  # it agrees
        (1_000_000_002.4, 1_000_000_002.4),
        (999_999_997.6, 999_999_997.6),
        (1_000_000_003.0, 1_000_000_000.0),
        (0.0, 1_000_000_000.0),
        (4e9, 1_000_000_000.0),
    ],
)
def test_the_local_clock_counts_while_it_agrees_with_the_superlinks(wall: float, expected: float) -> None:
    clocks = Clocks(wall)
    clock = ServerClock(wall=lambda: clocks.wall, monotonic=lambda: clocks.monotonic)
    assert clock.now() == wall
    clock.learn("Sun, 09 Sep 2001 01:46:40 GMT")  # Unix second 1,000,000,000
    assert clock.now() == expected
    clocks.pass_by(100.0)
    assert clock.now() == pytest.approx(expected + 100.0)
    clocks.wall = 5.0  # the local clock jumps
    assert clock.now() == 1_000_000_100.0


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sun, 99 Sep 2001 01:46:40 GMT", "\x00" * 1000, "0" * 5000])
def test_a_date_that_is_none_changes_nothing(date: str | None) -> None:
    clock = ServerClock(wall=lambda: 7.0, monotonic=lambda: 1.0)
    clock.learn(date)
    assert clock.now() == 7.0
