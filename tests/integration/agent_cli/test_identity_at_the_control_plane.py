"""The agent's enrolment and renewal at the control plane's own device API: real TLS, real store, real trust root."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skerry_agent import cli
from skerry_agent.config import AgentLayout, load_config
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.renewal import Renewer
from skerry_agent.identity.renewal_machine import State, pause_s
from skerry_agent.link.backoff import Backoff
from skerry_agent.trusted_clock import TrustedClock
from skerry_server.config import ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.device_api.server import DeviceServer
from skerry_server.first_start import make_folders, prepare
from skerry_server.fleet import enrollment
from skerry_server.store.tables import Device

DEVICE = "press-07"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    layout = ServerLayout(tmp_path / "server")
    make_folders(layout)
    prepare(layout, {})
    context = open_context(layout.root)
    server = DeviceServer(context)
    server.start()
    yield context
    server.stop(grace_s=1)
    context.close()


def enroll(context: ServerContext, root: Path, token: str, device_id: str = DEVICE) -> int:
    url = f"https://{context.config.host}:{context.config.device_port}"
    return cli.run(
        ["enroll", "--server", url, "--token", token, "--device-id", device_id, "--data-dir", str(root), "--force"]
    )


class Times:
    """1970 on the wall, and a monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s


def test_enrolled_renewed_twice_and_revoked(
    context: ServerContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with context.database.transaction() as session:
        token = enrollment.create_token(session, context, actor="test")
    wrong = token.replace("enroll-", "enroll-x")
    assert enroll(context, tmp_path / "d", wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "d" / "identity").exists()
    assert enroll(context, tmp_path / "d", token) == 0
    assert enroll(context, tmp_path / "other", token, "press-08") == 2, "a token is for one device"
    layout = AgentLayout(tmp_path / "d")
    config, times = load_config(layout), Times()
    clock = TrustedClock(layout.trust / "clock.json", wall=lambda: 0.0, monotonic=times.monotonic)
    renewals: list[str] = []
    renewer = Renewer(
        layout, config, clock, on_renewed=lambda: renewals.append("renewed"), monotonic=times.monotonic,
        backoff=Backoff(layout.root / "b.json", ceiling_s=10),
    )  # fmt: skip
    serials = [renewer.facts.serial]
    for _ in range(2):
        renewer.doubt()
        renewer.step()
        serials.append(IdentityFiles(layout).read().facts.serial)
        times.passed_s += pause_s(renewer.facts)
    assert (len(set(serials)), len(renewals), renewer.state) == (3, 2, State.VALID)
    assert clock.now() > datetime(2026, 1, 1, tzinfo=UTC), "the clock of 1970 has learnt the time"
    with context.database.reading() as session:
        assert session.get_one(Device, DEVICE).certificate_serial == serials[-1]
    with context.database.transaction() as session:
        enrollment.revoke(session, context, DEVICE, actor="test", reason="stolen")
    renewer.doubt()
    renewer.step()
    assert renewer.state is State.DUE
    assert IdentityFiles(layout).read().facts.serial == serials[-1]
    assert len(renewals) == 2
