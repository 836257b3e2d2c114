"""The latency contract of a device: its settings, and the look that lets the ladder move, about once a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from skerry_agent.config import AgentConfig
from skerry_agent.engine.active import ActiveRelease
from skerry_agent.engine.counters import Counters
from skerry_agent.engine.ladder import LadderLimits, Look
from skerry_agent.policy.live_latency import FEWEST, LatencyWindow
from skerry_agent.policy.sensors import SensorReading


@dataclass(frozen=True)
class ContractSettings:
    """What the owner of a device wants.

    Attributes:
        deadline_us: How long an answer may take (us): who would wait longer in a queue is turned away; 0: what the
            release says, for which nobody is turned away: the ladder tries to keep it.
        temperature_c: Above it a smaller network answers, if the release has one (degrees Celsius).
        parallel: Computations at a time; 0: as many as serving has cores.
        queue: Requests that may wait.
    """

    deadline_us: float = 0.0
    temperature_c: float = 80.0
    parallel: int = 0
    queue: int = 64

    @classmethod
    def of(cls, config: AgentConfig) -> ContractSettings:
        """Those of a configuration."""
        return cls(config.deadline_us, config.ladder_temperature_c, config.inference_parallel, config.inference_queue)

    def limits(self, release_deadline_us: float) -> LadderLimits:
        """What the ladder of a release keeps; the device's own deadline goes before that of the release."""
        return LadderLimits(self.deadline_us or release_deadline_us or float("inf"), self.temperature_c)


class LadderWatch:
    """Feeds the ladder of the release that answers; owned by one thread.

    Args:
        counters: Of the engine.
        sensors: Heat and power mode of this moment; asked at every look.
        monotonic: Seconds.
    """

    def __init__(
        self,
        counters: Counters,
        sensors: Callable[[], SensorReading],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._sensors = sensors
        self._monotonic = monotonic
        self._window = LatencyWindow()
        self._form = -1
        self._seen = 0
        self.reading = SensorReading()

    def look(self, active: ActiveRelease) -> bool:
        """Look at the device; returns whether another network answers from now on."""
        now_s = self._monotonic()
        self.reading = self._sensors()
        form = active.rung.form
        if form != self._form:
            self._start(form)
        self._seen, latencies = self._counters.latest_of(form, self._seen)
        self._window.add(latencies, now_s)
        live = self._window.value()
        look = Look(
            p99_us=float(live.p99_us) if live.requests >= FEWEST else None,
            temperature_c=self.reading.temperature_c,
            saving=bool(self.reading.saving),
        )
        return active.look(look, now_s)

    def _start(self, form: int) -> None:
        """A window is about one network; requests that it answered in its first moments count from the next look."""
        self._form = form
        self._window = LatencyWindow()
        self._seen = self._counters.latest_of(form, 1 << 62)[0]
