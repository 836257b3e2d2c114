"""Which desired states are accepted, and what a refused one leaves: nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from skerry_agent.policy.reporting import WindowPolicy
from skerry_agent.update.update_machine import State
from skerry_contract.v1.device_pb2 import ReportingPolicy
from unit.update.device import TestDevice, snapshot
from unit.update.releases import MadeRelease, make_desired, make_release, new_signer

OLD, NEW = make_release("digits-1"), make_release("digits-2")


def served(root: Path, *releases: MadeRelease) -> TestDevice:
    """A device that answers with the old release and has forgotten how it got it."""
    device = TestDevice(root, OLD, NEW, *releases)
    device.updater.offer(make_desired(1, OLD))
    device.settle()
    device.events.clear()
    return device


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("not protobuf", b"\xff\xff\xff", "SignedEnvelope: expected a protobuf message"),
        ("empty", b"", "the envelope is of kind ''"),
        ("too large", b"\x12" + b"x" * 200_000, "at most 131072 bytes"),
        ("unknown key", make_desired(2, NEW, signer=new_signer()), "no signature of a trusted key"),
        ("a release instead", NEW.envelope.SerializeToString(), "kind 'release'"),
        ("another device", make_desired(2, NEW, device_id="press-08"), "is for device 'press-08'"),
        ("older", make_desired(0, NEW), "older than 1"),
        ("release of an unknown key", make_desired(2, make_release("digits-2", signer=new_signer())), "signed release"),
        (
            "expired",
            make_desired(2, make_release("digits-2", expires_unix_ms=1_699_999_999_000)),
            "may not be installed any more: it expired 1 s ago",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_a_refused_desired_state_changes_nothing(tmp_path: Path, name: str, payload: bytes, reason: str) -> None:
    device = served(tmp_path)
    before = snapshot(tmp_path)
    device.updater.offer(payload)
    for _ in range(5):
        device.step()
    assert snapshot(tmp_path) == before
    assert device.events == []
    said = device.updater.snapshot
    assert reason in said.detail
    assert said.detail.startswith("refused: ")
    assert (said.state, said.desired_sequence) == (State.COMMITTED, 1)
    device.updater.offer(make_desired(3, NEW))
    device.settle()
    assert device.answering() == "digits-2"
    assert "refused" not in device.updater.snapshot.detail


def test_a_tampered_payload_is_refused(tmp_path: Path) -> None:
    device = served(tmp_path)
    payload = bytearray(make_desired(2, NEW))
    position = payload.index(b"digits-2")
    payload[position : position + 8] = b"digits-9"
    before = snapshot(tmp_path)
    device.updater.offer(bytes(payload))
    device.step()
    assert snapshot(tmp_path) == before
    assert "does not hold" in device.updater.snapshot.detail


def test_the_same_desired_state_again_is_silent(tmp_path: Path) -> None:
    device = served(tmp_path)
    before = snapshot(tmp_path)
    device.updater.offer(make_desired(1, OLD))
    device.step()
    assert snapshot(tmp_path) == before
    assert "refused" not in device.updater.snapshot.detail


def test_replay_is_refused_after_a_restart(tmp_path: Path) -> None:
    first = served(tmp_path)
    first.updater.offer(make_desired(5, NEW))
    first.settle()
    device = TestDevice(tmp_path, OLD, NEW)
    device.updater.offer(make_desired(4, OLD))
    device.settle()
    assert device.answering() == "digits-2"
    assert "older than 5" in device.updater.snapshot.detail


def test_what_is_to_be_reported_outlives_a_restart(tmp_path: Path) -> None:
    device = served(tmp_path)
    assert (device.updater.snapshot.windows, device.updater.snapshot.health_period_ms) == (WindowPolicy(0, 0), 0)
    reporting = ReportingPolicy(window_requests=50, window_ms=2_000, health_period_ms=700)
    device.updater.offer(make_desired(2, OLD, reporting=reporting))
    for updater in (device.updater, TestDevice(tmp_path, OLD, NEW).updater):
        assert (updater.snapshot.windows, updater.snapshot.health_period_ms) == (WindowPolicy(50, 2_000), 700)


def test_a_wrong_clock_does_not_install_an_expired_release(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.wall_ms = 1_000
    expired = make_release("digits-2", expires_unix_ms=1_699_999_999_000)
    device.updater.offer(make_desired(2, expired, issued_unix_ms=1_700_000_000_000))
    device.settle()
    assert "expired" in device.updater.snapshot.detail
    assert device.answering() == "digits-1"


def test_a_wrong_clock_does_not_stop_a_good_release(tmp_path: Path) -> None:
    device = served(tmp_path)
    device.wall_ms = 1_000
    device.updater.offer(make_desired(2, make_release("digits-2", expires_unix_ms=1_800_000_000_000)))
    device.settle()
    assert device.answering() == "digits-2"


def test_nothing_is_accepted_that_cannot_be_written_down(tmp_path: Path) -> None:
    device = served(tmp_path)
    before = snapshot(tmp_path)
    device.disk.fail = lambda call, path: OSError(errno.ENOSPC, "No space left on device", str(path))
    device.updater.offer(make_desired(2, NEW))
    for _ in range(5):
        device.step()
    assert snapshot(tmp_path) == before
    assert device.updater.snapshot.desired_sequence == 1
    device.disk.fail = lambda call, path: None
    device.step()
    assert device.updater.snapshot.desired_sequence == 2, "it was kept and taken up when there was room"
    device.settle()
    assert device.answering() == "digits-2"
