"""25 days without a network, an ended certificate, a clock in 1970 and one that jumps to 2040: nobody helps the device.

The control process, mosquitto with mutual TLS and a device API over TLS are real; time is not waited for: the
certificate was issued so long ago, and the device's clock says what the test says. Serving must not notice anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.control.control_plane import ControlPlane
from integration.control.device import Device, enrolled
from integration.link.broker import Broker
from integration.link.device_server import DeviceServer
from integration.link.identity import now
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.link.backoff import ReconnectSpread
from skerry_agent.trusted_clock import TrustedClock
from skerry_contract.signing import DESIRED
from skerry_contract.v1.device_pb2 import DesiredState
from unit.update.releases import DEVICE, SIGNER, make_desired, make_release

Wait = Callable[..., None]
#: A certificate of 90 days whose holder went away on day 80 and was away for 25.
ENDED = {"issued": now() - timedelta(days=105), "days": 90}


class Wall:
    """A clock that is set by hand; it stands still."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> float:
        return self.moment.timestamp()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[DeviceServer]:
    running = DeviceServer(tmp_path / "api")
    yield running
    running.stop()


@pytest.fixture
def plane(broker: Broker) -> Iterator[ControlPlane]:
    running = ControlPlane(broker.port, {})
    running.start()
    yield running
    running.stop()


def serial(device: Device) -> str:
    return IdentityFiles(device.layout).read().facts.serial


def committed(plane: ControlPlane, release_id: str) -> Callable[[], bool]:
    return lambda: plane.reported().active_release == release_id


@pytest.mark.parametrize("clock", [datetime(1970, 1, 1, tzinfo=UTC), now(), datetime(2040, 1, 1, tzinfo=UTC)])
def test_an_ended_certificate_is_renewed_whatever_the_clock_says_and_the_device_comes_back(
    api: DeviceServer, plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait, clock: datetime
) -> None:
    wall = Wall(clock)
    device = Device(enrolled(short_dir / "d", broker, identity=ENDED, device_api=api.url), wall=wall)
    before, api.status = serial(device), 503
    device.start()
    try:
        # First the control plane's API is away too: everything is tried again, and serving answers.
        wait_until(lambda: api.bodies, what="an attempt to renew")
        assert serial(device) == before
        assert plane.online() is None
        requests = device.serving.status.requests
        wait_until(lambda: device.serving.status.requests > requests, what="serving is still looked at")
        api.status = 201
        wait_until(plane.online, what="the device is back")
        assert serial(device) != before
        assert api.renewed >= 1
        if clock.year == 2040:
            wall.moment = now()
        release = make_release("digits-1")
        plane.artifacts.blobs |= release.by_digest
        plane.desire(make_desired(1, release, issued_unix_ms=round(now().timestamp() * 1000)))
        wait_until(committed(plane, "digits-1"), what="an update")
    finally:
        device.stop()
    assert device.failure is None


def test_a_clock_that_jumps_ahead_and_back_while_connected_changes_nothing_for_good(
    api: DeviceServer, plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    wall = Wall(now())
    device = Device(enrolled(short_dir / "d", broker, device_api=api.url), wall=wall)
    device.start()
    try:
        wait_until(plane.online, what="presence")
        wall.moment = datetime(2040, 1, 1, tzinfo=UTC)
        first, second = make_release("digits-1"), make_release("digits-2")
        plane.artifacts.blobs |= first.by_digest | second.by_digest
        plane.desire(make_desired(1, first, issued_unix_ms=round(now().timestamp() * 1000)))
        wait_until(lambda: "expired" in plane.reported().update_detail, what="metadata that look old block the install")
        assert plane.reported().active_release == ""
        wall.moment = now()
        plane.metadata.approve(second.envelope)
        wait_until(committed(plane, "digits-1"), what="the install goes on by itself")
        broker.kill()
        broker.start()
        wait_until(lambda: plane.link.connected, what="the control plane is back")
        plane.desire(make_desired(2, second, issued_unix_ms=round(now().timestamp() * 1000)))
        wait_until(committed(plane, "digits-2"), what="the device came back and goes on")
    finally:
        device.stop()


def test_a_device_that_is_renewed_early_uses_the_new_certificate_at_its_next_connection(
    api: DeviceServer, plane: ControlPlane, broker: Broker, short_dir: Path, wait_until: Wait
) -> None:
    due: dict[str, Any] = {"issued": now() - timedelta(days=70), "days": 90}
    device = Device(enrolled(short_dir / "d", broker, identity=due, device_api=api.url))
    before = serial(device)
    device.start()
    try:
        wait_until(plane.online, what="the old certificate still opens the connection")
        wait_until(lambda: serial(device) != before, what="a new certificate")
        [(path, body)] = api.bodies
        assert path == "/device/v1/renew"
        assert "PRIVATE" not in str(body)
        release = make_release("digits-1")
        plane.artifacts.blobs |= release.by_digest
        plane.desire(make_desired(1, release))
        wait_until(committed(plane, "digits-1"), what="the data connection works")
        assert plane.online(DEVICE)
        issued_ms = round(now().timestamp() * 1000)
        state = DesiredState(device_id=DEVICE, sequence=2, issued_unix_ms=issued_ms, reconnect_spread_ms=700)
        plane.desire(SIGNER.sign(DESIRED, state.SerializeToString()).SerializeToString())
        wait_until(lambda: plane.reported().desired_sequence == 2, what="the desired state is accepted")
        assert ReconnectSpread(device.layout.root / "link" / "spread.json").seconds == 0.7
        kept_ms = TrustedClock(device.layout.trust / "clock.json").floor_ms
        assert issued_ms - 60_000 <= kept_ms <= issued_ms, "what was signed last tells the time, to the minute"
    finally:
        device.stop()
