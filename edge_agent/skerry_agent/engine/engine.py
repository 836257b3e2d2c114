"""The inference library: validate, run, count; swap releases while it answers.

Invariants: a failed activation leaves what answered before; an old release is closed when its last request is done and
its drift window is reported then; ``infer`` never touches the network or the disk.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.drift.accumulator import WindowLimits, WindowNumbers
from skerry_agent.drift.reporter import Reporter, ReportSink
from skerry_agent.engine.active import ActiveRelease, WindowSettings
from skerry_agent.engine.admission import Admission
from skerry_agent.engine.backend import Backend, Floats
from skerry_agent.engine.backends import BACKENDS
from skerry_agent.engine.background_build import build_in_background
from skerry_agent.engine.counters import Counters
from skerry_agent.engine.device_class import detect_device_class
from skerry_agent.engine.errors import BackendError, DeadlineError, NoReleaseError, OverloadedError
from skerry_agent.engine.latency_contract import ContractSettings, LadderWatch
from skerry_agent.engine.leases import Swappable
from skerry_agent.engine.loader import LoadedRelease, load_release
from skerry_agent.engine.model import ModelSpec
from skerry_agent.engine.personal import PersonalSource
from skerry_agent.engine.prediction import Prediction
from skerry_agent.engine.slots_at_start import slots_to_try
from skerry_agent.engine.status import EngineStatus, status_of
from skerry_agent.engine.turn import wait_for_turn
from skerry_agent.errors import ArtifactError, DeviceError, InputError
from skerry_agent.policy.device_sensors import DeviceSensors
from skerry_agent.policy.reporting import read_window_policy
from skerry_agent.policy.sensors import KernelSensors, SensorSource
from skerry_agent.trust.keyring import slot_keys
from skerry_agent.update.slots import Pointer, SlotContent, SlotName, read_pointer, read_slot
from skerry_contract.signing import EnvelopeVerifier

if TYPE_CHECKING:
    from skerry_agent.link.outbox import Outbox

_log = logging.getLogger(__name__)

#: How long :meth:`Engine.close` waits for requests that run (s).
DRAIN_SECONDS = 5.0


class Engine:
    """The model of one data directory, in this process. Thread-safe.

    Made by :meth:`open`; close it, or use it in a ``with`` statement.

    Args:
        layout: The data directory.
        verifier: Whose signatures are trusted.
        backends: Inference runtimes by name.
        device_class: Which variants may run.
        limits: When a drift window closes, unless the control plane wants it otherwise.
        open_sink: Gives the outbox of the drift reports.
        follow: Whether to activate what the pointer of the data directory names when it changes.
        serve_personal: Whether the device's own parameters may answer.
        contract: Deadline, heat, and how many requests are computed at a time.
        sensors: Heat and power mode; those of the kernel by default. Closed with the engine.
    """

    def __init__(
        self,
        layout: AgentLayout,
        *,
        verifier: EnvelopeVerifier,
        backends: Mapping[str, Backend],
        device_class: str,
        limits: WindowLimits,
        open_sink: Callable[[], ReportSink],
        follow: bool,
        serve_personal: bool = True,
        contract: ContractSettings = ContractSettings(),  # noqa: B008  (it is frozen)
        sensors: SensorSource | None = None,
    ) -> None:
        self._layout = layout
        self._verifier = verifier
        self._backends = backends
        self._device_class = device_class
        self._own_limits = limits
        self._limits = _wanted_limits(layout, limits)
        self._numbers = WindowNumbers(secrets.token_hex(8))
        self._counters = Counters()
        self._models: Swappable[ActiveRelease] = Swappable(ActiveRelease.close)
        self._contract = contract
        self._admission = Admission(contract.parallel, contract.queue)
        self._sensors = sensors or KernelSensors()
        self._ladder = LadderWatch(self._counters, self._sensors.read)
        self._activation = threading.Lock()
        self._detail = ""
        self._closed = False
        self._follow = follow
        self._personal = PersonalSource(layout, backends, enabled=serve_personal, publish=not follow)
        self._seen: Pointer | None = None
        self._background = build_in_background(layout, self.activate)
        self._reporter = Reporter(open_sink, tick=self._tick)

    @classmethod
    def open(
        cls,
        data_dir: Path | str,
        *,
        config: AgentConfig | None = None,
        backends: Mapping[str, Backend] | None = None,
        device_class: str | None = None,
        open_sink: Callable[[], ReportSink] | None = None,
        follow: bool = True,
    ) -> Engine:
        """Open the active release of an enrolled device.

        If the active slot is refused, the previous one answers and ``status().detail`` says why. On a device without a
        release the engine opens, and :meth:`infer` raises NoReleaseError until :meth:`activate`.

        Args:
            data_dir: Data directory of the agent.
            config: Settings; read from the directory by default.
            backends: Inference runtimes; :data:`~skerry_agent.engine.backends.BACKENDS` by default.
            device_class: Found out by default.
            open_sink: Where drift reports go; the device's outbox by default.
            follow: Activate a new release within about a second after the agent has switched to it. The serving
                process says False: it is told when to switch.

        Raises:
            DeviceError: The device is not enrolled, or its configuration is broken.
        """
        layout = AgentLayout(Path(data_dir))
        settings = config if config is not None else load_config(layout)
        engine = cls(
            layout,
            verifier=slot_keys(layout, settings),
            backends=BACKENDS if backends is None else backends,
            device_class=detect_device_class() if device_class is None else device_class,
            limits=WindowLimits(settings.window_requests, settings.window_seconds),
            open_sink=open_sink if open_sink is not None else lambda: open_outbox(layout, settings),
            follow=follow,
            serve_personal=settings.serve_personal,
            contract=ContractSettings.of(settings),
            sensors=DeviceSensors(settings.power_saving),
        )
        engine._load_at_start()
        return engine

    @property
    def boot_id(self) -> str:
        """Identity of this run; part of the key of its drift windows."""
        return self._numbers.boot_id

    @property
    def spec(self) -> ModelSpec | None:
        """What the release that answers takes and gives; None if there is none."""
        active = self._models.current
        return None if active is None else active.model.spec

    def infer(
        self,
        x: npt.NDArray[np.generic],
        request_id: str | None = None,
        *,
        deadline_us: float | None = None,
        checked: ModelSpec | None = None,
    ) -> Prediction:
        """Answer one request.

        Args:
            x: float32 [batch, ...] in raw units, or one row without the batch dimension.
            request_id: Repeated in the answer.
            deadline_us: How long the answer may take; None: as the owner of the device has set, if anything.
            checked: A specification of which the caller knows that ``x`` is valid rows [batch, ...], values included;
                while that release answers, ``x`` is not looked at again.

        Raises:
            DeadlineError: The answer would come too late; nothing was computed.
            OverloadedError: Too many requests are under way; nothing was computed.
            InputError: The request is wrong: SchemaError, MissingValueError or OutOfRangeError.
            NoReleaseError: No release is active.
            BackendError: The runtime failed.
        """
        started = time.perf_counter_ns()
        lease = self._models.acquire()
        if lease is None:
            raise NoReleaseError(self._detail)
        active, admission = lease.value, self._admission
        try:
            rows: Floats = x if checked is active.model.spec else active.model.validate(x)  # type: ignore[assignment]  # whoever checked it vouches
            rung = active.rung
            limit_us = active.deadline_us if deadline_us is None else deadline_us
            in_flight = len(lease.users)
            if in_flight > admission.parallel or deadline_us is not None or active.shed_us != math.inf:
                rung = wait_for_turn(admission, active, len(rows), in_flight, deadline_us, started)
            else:
                admission.take()
            try:
                began = time.perf_counter_ns()
                scores, features = rung.model.run(rows)
                ended = time.perf_counter_ns()
            finally:
                admission.give(None)
            if ended > rung.cost.note_at_ns:
                rung.cost.note(len(scores), (ended - began) / 1000, ended)
            latency_us = (ended - started) / 1000
            rung.drift.record(features, scores, latency_us)
            name = request_id or ""
            self._counters.answered(len(scores), latency_us, rung.form, name, ended)
            if latency_us > limit_us:
                self._counters.late()
            variant, spec = rung.model.variant, rung.model.spec
            return Prediction(scores, features, spec.classes, spec.release_id, name, latency_us, variant, rung.number)
        except InputError as error:
            self._counters.refused(error)
            active.rungs[0].drift.refuse(error)
            raise
        except BackendError:
            self._counters.failed()
            raise
        except (DeadlineError, OverloadedError) as error:
            self._counters.shed(error)
            raise
        finally:
            self._models.give_back(lease)

    def count_refusal(self, error: InputError) -> None:
        """Count a request that a door refused before it became an array."""
        self._counters.refused(error)
        lease = self._models.acquire()
        if lease is not None:
            try:
                lease.value.rungs[0].drift.refuse(error)
            finally:
                self._models.give_back(lease)

    def activate(self, slot: SlotName, *, release_id: str = "") -> EngineStatus:
        """Load the release in a slot, check it, and let it answer.

        Args:
            slot: "a" or "b".
            release_id: Which release has to be there; empty accepts any.

        Raises:
            ArtifactError: It cannot be used; what answered before goes on.
        """
        with self._activation:
            if self._closed:
                raise DeviceError("the engine is closed", remedy="open it again")
            content = read_slot(self._layout, slot, self._verifier)
            found = content.manifest.release_id
            if release_id and release_id != found:
                raise ArtifactError(release_id, f"slot {slot} holds release {found}")
            release = self._load(content)
            self._detail = ""
        forms = ", ".join(
            f"{choice.variant} on {choice.backend} {choice.latency_us:.0f} us" for choice in release.choices
        )
        _log.info("release %s answers: slot %s, %s", found, slot, forms)
        return self.status()

    def latest_latencies(self, since: int) -> tuple[int, list[float]]:
        """Requests answered so far, and the latencies (us) of those after ``since``, the newest first."""
        return self._counters.latest(since)

    def status(self) -> EngineStatus:
        """What answers, and how it has done."""
        lease = self._models.acquire()
        counters, personal, sensors = self._counters.read(), self._personal.status, self._ladder.reading
        if lease is None:
            return EngineStatus("", "", "", "", self._detail, counters, personal, sensors=sensors)
        try:
            return status_of(lease.value, self._detail, counters, personal, sensors, in_flight=len(lease.users) - 1)
        finally:
            self._models.give_back(lease)

    def close(self) -> None:
        """Report the open window and free the model. Requests that run are finished first; new ones are refused."""
        with self._activation:
            if self._closed:
                return
            self._closed = True
            self._detail = "the engine is closed"
        if not self._models.drain(DRAIN_SECONDS):
            _log.error("requests still run after %g s; their drift window is lost", DRAIN_SECONDS)
        self._reporter.close()
        self._background.stop()
        self._sensors.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, content: SlotContent) -> LoadedRelease:
        """Load a release, with the device's own parameters where they may answer, and let it answer."""
        prepared = self._personal.prepare(content)
        release = load_release(
            content, backends=self._backends, device_class=self._device_class, extra=prepared.candidates
        )
        self._swap(release)
        self._personal.loaded(prepared, release)
        return release

    def _follow_personal(self) -> None:
        """Load the release that answers again when the device's own parameters for it have changed."""
        if not self._personal.changed():
            return
        with self._activation:
            active = self._models.current
            if self._closed or active is None:
                return
            try:
                content = read_slot(self._layout, active.release.slot, self._verifier)
                if content.manifest.release_id == active.release.model.spec.release_id:
                    self._load(content)
                    return
            except (ArtifactError, DeviceError) as error:
                _log.error("the release is not loaded again for its personal form: %s", error)
            self._personal.settle()

    def _swap(self, release: LoadedRelease) -> None:
        active = ActiveRelease(
            release,
            windows=WindowSettings(self._limits, self._numbers, self._reporter.submit),
            counters=self._counters,
            limits=self._contract.limits(release.model.spec.deadline_us),
            shed_us=self._contract.deadline_us or math.inf,
        )
        self._models.replace(active)
        self._counters.release_changed()

    def _tick(self) -> None:
        """Once a second, on the reporter's thread."""
        if self._follow:
            self._follow_pointer()
        self._follow_personal()
        active = self._models.current
        self._background.follow(None if active is None else active.release)
        self._limits = _wanted_limits(self._layout, self._own_limits)
        lease = self._models.acquire()
        if lease is not None:
            try:
                lease.value.limit_windows(self._limits)
                if self._ladder.look(lease.value):
                    _log.info("network %d answers %s", lease.value.rung.number, lease.value.ladder_reason)
            finally:
                self._models.give_back(lease)

    def _follow_pointer(self) -> None:
        """Activate what the pointer names, once per change: a release that is refused is not tried again and again."""
        try:
            pointer = read_pointer(self._layout)
            if pointer is None or pointer == self._seen:
                return
            self._seen = pointer
            active = self._models.current
            if active is None or active.release.model.spec.release_id != pointer.release_id:
                self.activate(pointer.slot, release_id=pointer.release_id)
        except (ArtifactError, DeviceError) as error:
            _log.error("the release that the pointer names is refused: %s", error)
            self._detail = str(error)

    def _load_at_start(self) -> None:
        reasons: list[str] = []
        self._seen, slots = slots_to_try(self._layout, self._verifier, reasons)
        for slot in slots:
            try:
                self.activate(slot)
            except ArtifactError as error:
                reasons.append(f"slot {slot} refused: {error.reason}")
                _log.error("slot %s is refused: %s", slot, error)
                continue
            break
        self._detail = "; ".join(reasons)


def _wanted_limits(layout: AgentLayout, own: WindowLimits) -> WindowLimits:
    """What the control plane wants, and the device's own configuration where it does not say."""
    wanted = read_window_policy(layout)
    return WindowLimits(wanted.window_requests or own.rows, wanted.window_ms / 1000 or own.seconds)


def open_outbox(layout: AgentLayout, config: AgentConfig) -> Outbox:
    """The device's outbox; imported late, because a process without reports does not need SQLite."""
    from skerry_agent.link.outbox import Outbox

    return Outbox(
        layout.outbox,
        device_id=config.device_id,
        message_limit=config.outbox_messages,
        byte_limit=config.outbox_bytes,
    )
