"""What control tells of its device: idle by its own count, metered, fresh samples, local time; with every report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.control.observer import FRESH_S, LOOK_S, Observer, limits_of
from skerry_agent.link.outbox import Outbox
from skerry_agent.policy.reporting import WindowPolicy
from skerry_agent.update.ports import DownloadProgress
from skerry_agent.update.snapshot import UpdateSnapshot
from skerry_agent.update.update_machine import State
from skerry_contract.signing import Ed25519Signer, Ed25519Verifier
from skerry_contract.v1.agent_local_pb2 import ServingStatus
from skerry_contract.v1.telemetry_pb2 import HealthReport, UplinkMessage

SIGNER = Ed25519Signer(Ed25519PrivateKey.generate())
IDLE = UpdateSnapshot(
    state=State.IDLE,
    detail="",
    desired_sequence=0,
    target_release="",
    rollout_id="",
    progress=DownloadProgress(0, 0, finished=False),
    health_period_ms=0,
    windows=WindowPolicy(),
)


@dataclass
class World:
    """Everything that an observer asks."""

    now: float = 1_000.0
    status: ServingStatus | None = field(default_factory=lambda: ServingStatus(requests=5, latency_p99_us=700))
    metered: bool = False
    fresh: int | None = 3
    sent: list[UplinkMessage] = field(default_factory=list)

    def record(self, message: UplinkMessage) -> bool:
        self.sent.append(message)
        return True


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def observer(world: World, tmp_path: Path) -> Iterator[Observer]:
    config = AgentConfig(
        device_id="phone",
        broker_host="127.0.0.1",
        broker_port=1,
        broker_data_port=1,
        device_api="https://127.0.0.1:1",
        superlink_address="127.0.0.1:1",
        release_keys=[SIGNER.public_key.hex()],
        training_idle_seconds=60.0,
        health_seconds=30.0,
    )
    with closing(Outbox(tmp_path / "outbox", device_id="phone", message_limit=9, byte_limit=1 << 20)) as outbox:
        yield Observer(
            AgentLayout(tmp_path),
            config,
            boot_id="boot-1",
            device_class="x86_64",
            agent_version="1",
            verifier=Ed25519Verifier([SIGNER.public_key]),
            outbox=outbox,
            serving_status=lambda: world.status,
            count_labelled=lambda: 8,
            record=world.record,
            metered=lambda: world.metered,
            count_fresh=lambda: world.fresh,
            local_time=lambda: datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=-3))),
            monotonic=lambda: world.now,
        )


def test_idle_is_a_minute_without_a_request(observer: Observer, world: World) -> None:
    assert observer.conditions(IDLE).idle is False, "nobody knows yet what was before"
    world.now += 61
    assert observer.conditions(IDLE).idle is True
    world.status = ServingStatus(requests=6, latency_p99_us=900)
    asked = observer.conditions(IDLE)
    assert (asked.idle, asked.p99_us) == (False, 900)
    world.now += FRESH_S + 1
    later = observer.conditions(IDLE)
    assert (later.idle, later.p99_us) == (False, 0), "an old latency says nothing, an old request still does"
    world.now += 60
    assert observer.conditions(IDLE).idle is True
    world.status = None
    assert observer.conditions(IDLE).idle is None


def test_conditions_go_with_every_health_report(observer: Observer, world: World, tmp_path: Path) -> None:
    world.metered, world.fresh = True, 4
    world.now += 31
    observer.step(IDLE)
    report: HealthReport = world.sent[0].health
    assert report.conditions == observer.conditions(IDLE).message()
    assert (report.conditions.metered, report.conditions.fresh_samples) == (True, 4)
    assert report.conditions.utc_offset_minutes == -180
    assert observer.reported(IDLE).ineligible_reason == "the network is metered (training_on_metered is false)"
    assert (tmp_path / "run" / "pause-training").exists()
    world.metered, world.fresh = False, None
    world.now += LOOK_S
    observer.step(IDLE)
    assert not (tmp_path / "run" / "pause-training").exists()
    assert not observer.conditions(IDLE).message().HasField("fresh_samples")


def test_the_owners_settings_are_the_limits(tmp_path: Path) -> None:
    config = AgentConfig(
        device_id="phone",
        broker_host="127.0.0.1",
        broker_port=1,
        broker_data_port=1,
        device_api="https://127.0.0.1:1",
        superlink_address="127.0.0.1:1",
        release_keys=[SIGNER.public_key.hex()],
        training_on_metered=True,
        training_only_idle=True,
    )
    limits = limits_of(config)
    assert (limits.on_metered, limits.only_idle) == (True, True)
    assert (limits.temperature_c, limits.battery_percent, limits.p99_ms) == (85.0, 30.0, 200.0)
