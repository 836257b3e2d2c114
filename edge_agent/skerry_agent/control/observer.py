"""What the control process knows of its device: puts together the reported state, health reports and conditions."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.control.health import HealthMeter
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.link.outbox import Outbox
from skerry_agent.policy.eligibility import Conditions, Limits, device_obstacle
from skerry_agent.policy.pause import TrainingPause
from skerry_agent.policy.reporting import WindowPolicyFile
from skerry_agent.policy.sensors import Power, power, temperature_c
from skerry_agent.update.slots import read_pointer, read_slot
from skerry_agent.update.snapshot import UpdateSnapshot
from skerry_agent.update.update_machine import SETTLED
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.agent_local_pb2 import ServingStatus
from skerry_contract.v1.device_pb2 import ReportedState
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

log = logging.getLogger(__name__)
#: How often sensors and small files are read (seconds).
LOOK_S = 1.0
#: Time without a request after which latencies say nothing about now (seconds).
FRESH_S = 10.0
#: Longest detail in the reported state (characters).
DETAIL = 500


@dataclass(frozen=True)
class Training:
    """What the training process says in its file.

    Attributes:
        flower_node_id: Its node; 0 while there is none.
        training: Whether it works on a campaign.
    """

    flower_node_id: int = 0
    training: bool = False


@dataclass(frozen=True)
class Active:
    """The release that the slot pointer names.

    Attributes:
        release_id: The release; empty if there is none.
        task: Its task.
        train_step_sha256: Digest of its training step.
    """

    release_id: str = ""
    task: str = ""
    train_step_sha256: bytes = b""


class Observer:
    """Owned by the control loop; writes only health reports, the pause of training and the drift windows wanted."""

    def __init__(
        self,
        layout: AgentLayout,
        config: AgentConfig,
        *,
        boot_id: str,
        device_class: str,
        agent_version: str,
        verifier: EnvelopeVerifier,
        outbox: Outbox,
        serving_status: Callable[[], ServingStatus | None],
        count_labelled: Callable[[], int],
        record: Callable[[UplinkMessage], bool],
        metered: Callable[[], bool] = lambda: False,
        count_fresh: Callable[[], int | None] = lambda: None,
        local_time: Callable[[], datetime] = lambda: datetime.now().astimezone(),
        profile_sha256: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sensors, stores and ``serving_status`` are asked at most once a second; ``local_time`` knows its zone."""
        self._layout = layout
        self._config = config
        self._boot_id = boot_id
        self._device_class = device_class
        self._agent_version = agent_version
        self._verifier = verifier
        self._outbox = outbox
        self._serving_status = serving_status
        self._count_labelled = count_labelled
        self._record = record
        self._metered = metered
        self._count_fresh = count_fresh
        self._local_time = local_time
        self._profile_sha256 = profile_sha256
        self._monotonic = monotonic
        self._limits = limits_of(config)
        self._pause = TrainingPause(layout)
        self._windows = WindowPolicyFile(layout)
        self._started_s = monotonic()
        self._meter = HealthMeter(boot_id, self._started_s, {})
        self._looked_at = float("-inf")
        self._training = Training()
        self._active = Active()
        self._labelled = 0
        self._fresh: int | None = None
        self._on_metered = False
        self._heat: float | None = None
        self._power = Power(None, charging=False)
        self._requests = (0, float("-inf"))

    def conditions(self, update: UpdateSnapshot) -> Conditions:
        """What the policy decides on."""
        self._look()
        status = self._serving_status()
        answers = status.release_id if status is not None else ""
        matches = answers == self._active.release_id
        return Conditions(
            temperature_c=self._heat,
            battery_percent=self._power.percent,
            charging=self._power.charging,
            p99_us=self._fresh_p99_us(status),
            release_id=answers,
            task=self._active.task if matches else "",
            train_step_sha256=self._active.train_step_sha256 if matches else b"",
            labelled_samples=self._labelled,
            flower_node_id=self._training.flower_node_id,
            updating=update.state not in SETTLED,
            metered=self._on_metered,
            idle=self._idle(status),
            fresh_samples=self._fresh,
            utc_offset_minutes=utc_offset_minutes(self._local_time()),
        )

    def _idle(self, status: ServingStatus | None) -> bool | None:
        """Whether no request was answered for a while, counted from the first look; None if serving does not say."""
        if status is None:
            return None
        return self._monotonic() - max(self._requests[1], self._started_s) >= self._config.training_idle_seconds

    def _fresh_p99_us(self, status: ServingStatus | None) -> int:
        """The 99th percentile while requests come; 0 when nobody asks: old answers must not keep training paused."""
        if status is None:
            return 0
        if status.requests != self._requests[0]:
            self._requests = (status.requests, self._monotonic())
        return status.latency_p99_us if self._monotonic() - self._requests[1] < FRESH_S else 0

    def step(self, update: UpdateSnapshot) -> None:
        """Report health when it is due; pause or resume training; pass on what windows are wanted."""
        self._windows.follow(update.windows)
        self._pause.follow(self.conditions(update), self._limits)
        period_s = update.health_period_ms / 1000 or self._config.health_seconds
        now = self._monotonic()
        if now - self._meter.last_s < period_s:
            return
        try:
            depth = self._outbox.depth()
        except DeviceError as error:
            log.error("%s", error)
            depth = 0
        report = self._meter.report(
            self._serving_status(),
            now,
            outbox_depth=depth,
            temperature_c=self._heat or 0.0,
            training=self._training.training,
            conditions=self.conditions(update).message(),
        )
        self._record(UplinkMessage(health=report))

    def reported(self, update: UpdateSnapshot) -> ReportedState:
        """The reported state without revision and time."""
        self._look()
        status = self._serving_status()
        obstacle = device_obstacle(self.conditions(update), self._limits)
        return ReportedState(
            device_id=self._config.device_id,
            boot_id=self._boot_id,
            desired_sequence=update.desired_sequence,
            active_release=status.release_id if status is not None else self._active.release_id,
            active_variant="" if status is None else status.variant,
            target_release=update.target_release,
            update_status=f"UPDATE_STATUS_{update.state.value.upper()}",
            update_detail=update.detail[:DETAIL],
            rollout_id=update.rollout_id,
            device_class=self._device_class,
            agent_version=self._agent_version,
            flower_node_id=self._training.flower_node_id,
            labelled_samples=self._labelled,
            chunks_done=update.progress.done,
            chunks_total=update.progress.total,
            ineligible_reason="" if obstacle is None else obstacle.reason,
            ineligible_code="" if obstacle is None else obstacle.code,
            labels=self._config.labels,
            profile_sha256=self._profile_sha256,
        )

    def _look(self) -> None:
        now = self._monotonic()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        self._training = _read_training(self._layout)
        self._active = self._read_active()
        try:
            self._labelled = self._count_labelled()
            self._fresh = self._count_fresh()
        except DeviceError as error:
            log.warning("%s", error)
        self._heat = temperature_c()
        self._power = power()
        self._on_metered = self._metered()

    def _read_active(self) -> Active:
        try:
            pointer = read_pointer(self._layout)
            if pointer is None:
                return Active()
            if pointer.release_id == self._active.release_id:
                return self._active
            manifest = read_slot(self._layout, pointer.slot, self._verifier).manifest
        except (ArtifactError, OSError) as error:
            log.warning("%s", error)
            return Active()
        return Active(manifest.release_id, manifest.task, manifest.train_step_sha256)


def limits_of(config: AgentConfig) -> Limits:
    """The policy's bounds of a configuration."""
    return Limits(
        config.training_temperature_c,
        config.training_battery_percent,
        config.training_p99_ms,
        on_metered=config.training_on_metered,
        only_idle=config.training_only_idle,
    )


def utc_offset_minutes(local: datetime) -> int:
    """Minutes east of UTC of a time that knows its zone; 0 if it does not."""
    offset = local.utcoffset()
    return 0 if offset is None else round(offset.total_seconds() / 60)


def _read_training(layout: AgentLayout) -> Training:
    try:
        document = json.loads(layout.training_file.read_bytes())
        node_id = int(document["flower_node_id"])
        if not 0 <= node_id < 2**64:
            raise ValueError(f"flower_node_id {node_id}")
        return Training(node_id, bool(document["training"]))
    except FileNotFoundError:
        return Training()
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: %s", layout.training_file, error)
        return Training()
