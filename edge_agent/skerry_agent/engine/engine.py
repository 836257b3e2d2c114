"""The inference library: validate, run, count; swap releases while it answers.

Invariants: a failed activation leaves what answered before; an old release is closed when its last request is done and
its drift window is reported then; ``infer`` never touches the network or the disk.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.drift.accumulator import DriftAccumulator, WindowLimits, WindowNumbers
from skerry_agent.drift.reporter import Reporter, ReportSink
from skerry_agent.engine.backend import Backend
from skerry_agent.engine.backends import BACKENDS
from skerry_agent.engine.counters import Counters, CounterValues
from skerry_agent.engine.device_class import detect_device_class
from skerry_agent.engine.errors import BackendError, NoReleaseError
from skerry_agent.engine.leases import Swappable
from skerry_agent.engine.loader import LoadedRelease, load_release
from skerry_agent.engine.model import ModelSpec, Prediction
from skerry_agent.errors import ArtifactError, DeviceError, InputError
from skerry_agent.policy.reporting import read_window_policy
from skerry_agent.trust.keyring import slot_keys
from skerry_agent.update.slots import Pointer, SlotName, other_slot, read_pointer, read_slot
from skerry_contract.signing import EnvelopeVerifier

if TYPE_CHECKING:
    from skerry_agent.link.outbox import Outbox

_log = logging.getLogger(__name__)

#: How long :meth:`Engine.close` waits for requests that run (s).
DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class _Active:
    """A release that answers, and the drift windows of its requests."""

    release: LoadedRelease
    drift: DriftAccumulator


@dataclass(frozen=True)
class EngineStatus:
    """What the engine does now.

    Attributes:
        release_id: Release that answers; empty if none does.
        slot: Its slot; empty if none.
        variant: Variant that answers; empty if none.
        backend: Backend that runs it; empty if none.
        detail: Why another slot than the pointer's answers, or none; empty if all is as it should be.
        counters: Requests and latencies.
    """

    release_id: str
    slot: str
    variant: str
    backend: str
    detail: str
    counters: CounterValues


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
    ) -> None:
        self._layout = layout
        self._verifier = verifier
        self._backends = backends
        self._device_class = device_class
        self._own_limits = limits
        self._limits = self._wanted_limits()
        self._numbers = WindowNumbers(secrets.token_hex(8))
        self._counters = Counters()
        self._models: Swappable[_Active] = Swappable(_close_active)
        self._activation = threading.Lock()
        self._detail = ""
        self._closed = False
        self._follow = follow
        self._seen: Pointer | None = None
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
        return None if active is None else active.release.model.spec

    def infer(self, x: npt.NDArray[np.generic], request_id: str | None = None) -> Prediction:
        """Answer one request.

        Args:
            x: float32 [batch, ...] in raw units, or one row without the batch dimension.
            request_id: Repeated in the answer.

        Raises:
            InputError: The request is wrong: SchemaError, MissingValueError or OutOfRangeError.
            NoReleaseError: No release is active.
            BackendError: The runtime failed.
        """
        started = time.perf_counter_ns()
        lease = self._models.acquire()
        if lease is None:
            raise NoReleaseError(self._detail)
        try:
            active = lease.value
            model = active.release.model
            try:
                scores, features = model.run(model.validate(x))
            except InputError as error:
                self._counters.refused(error)
                active.drift.refuse(error)
                raise
            except BackendError:
                self._counters.failed()
                raise
            latency_us = (time.perf_counter_ns() - started) / 1000
            active.drift.record(features, scores, latency_us)
            self._counters.answered(len(scores), latency_us)
            spec = model.spec
            return Prediction(scores, features, spec.classes, spec.release_id, request_id or "", latency_us)
        finally:
            lease.release()

    def count_refusal(self, error: InputError) -> None:
        """Count a request that a door refused before it became an array."""
        self._counters.refused(error)
        lease = self._models.acquire()
        if lease is not None:
            try:
                lease.value.drift.refuse(error)
            finally:
                lease.release()

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
            release = load_release(content, backends=self._backends, device_class=self._device_class)
            self._swap(release)
            self._detail = ""
        _log.info(
            "release %s answers: slot %s, variant %s on %s, %.0f us",
            found,
            slot,
            release.choice.variant,
            release.choice.backend,
            release.choice.latency_us,
        )
        return self.status()

    def latest_latencies(self, since: int) -> tuple[int, list[float]]:
        """Requests answered so far, and the latencies (us) of those after ``since``, the newest first."""
        return self._counters.latest(since)

    def status(self) -> EngineStatus:
        """What answers, and how it has done."""
        active = self._models.current
        counters = self._counters.read()
        if active is None:
            return EngineStatus("", "", "", "", self._detail, counters)
        model = active.release.model
        return EngineStatus(
            model.spec.release_id, active.release.slot, model.variant, model.backend, self._detail, counters
        )

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

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _swap(self, release: LoadedRelease) -> None:
        drift = DriftAccumulator(
            release_id=release.model.spec.release_id,
            edges=release.edges,
            edges_sha256=release.edges_sha256,
            limits=self._limits,
            numbers=self._numbers,
            emit=self._reporter.submit,
        )
        self._models.replace(_Active(release, drift))
        self._counters.release_changed()

    def _tick(self) -> None:
        """Once a second, on the reporter's thread."""
        if self._follow:
            self._follow_pointer()
        self._limits = self._wanted_limits()
        lease = self._models.acquire()
        if lease is not None:
            try:
                lease.value.drift.limit(self._limits)
                lease.value.drift.tick()
            finally:
                lease.release()

    def _wanted_limits(self) -> WindowLimits:
        """What the control plane wants, and the device's own configuration where it does not say."""
        wanted, own = read_window_policy(self._layout), self._own_limits
        return WindowLimits(wanted.window_requests or own.rows, wanted.window_ms / 1000 or own.seconds)

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
        for slot in self._slots_to_try(reasons):
            try:
                self.activate(slot)
            except ArtifactError as error:
                reasons.append(f"slot {slot} refused: {error.reason}")
                _log.error("slot %s is refused: %s", slot, error)
                continue
            break
        self._detail = "; ".join(reasons)

    def _slots_to_try(self, reasons: list[str]) -> list[SlotName]:
        """The pointer's slot, then the previous one. A broken pointer leaves the newest release that verifies."""
        try:
            pointer = read_pointer(self._layout)
        except ArtifactError as error:
            reasons.append(error.reason)
            return self._slots_by_sequence()
        self._seen = pointer
        if pointer is None:
            return []
        previous = pointer.previous_slot
        return [pointer.slot] if previous in (None, pointer.slot) else [pointer.slot, other_slot(pointer.slot)]

    def _slots_by_sequence(self) -> list[SlotName]:
        sequences: dict[SlotName, int] = {}
        for slot in ("a", "b"):
            try:
                sequences[slot] = read_slot(self._layout, slot, self._verifier).manifest.sequence
            except ArtifactError:
                continue
        return sorted(sequences, key=lambda slot: -sequences[slot])


def open_outbox(layout: AgentLayout, config: AgentConfig) -> Outbox:
    """The device's outbox; imported late, because a process without reports does not need SQLite."""
    from skerry_agent.link.outbox import Outbox

    return Outbox(
        layout.outbox,
        device_id=config.device_id,
        message_limit=config.outbox_messages,
        byte_limit=config.outbox_bytes,
    )


def _close_active(active: _Active) -> None:
    """Runs when the last request of a replaced release is done."""
    active.drift.flush()
    active.release.model.close()
