"""The release that answers: its networks from large to small, what each is expected to take, and who is turned away.

Invariants: the histograms of a drift window are about one network, for a smaller one has other scores and other
confidences on the same data; a request is turned away before anything of it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from skerry_agent.drift.accumulator import DriftAccumulator, WindowLimits, WindowNumbers
from skerry_agent.engine.counters import Counters, Form
from skerry_agent.engine.errors import DeadlineError
from skerry_agent.engine.ladder import Ladder, LadderLimits, Look, pick
from skerry_agent.engine.live_cost import LiveCost
from skerry_agent.engine.loader import LoadedRelease
from skerry_agent.engine.model import Model
from skerry_agent.engine.personal import PERSONAL
from skerry_contract.v1.telemetry_pb2 import DriftReport


@dataclass(frozen=True)
class WindowSettings:
    """How the drift windows of a release are made.

    Attributes:
        limits: When they close.
        numbers: Their numbers.
        emit: Takes a finished report; must not block.
    """

    limits: WindowLimits
    numbers: WindowNumbers
    emit: Callable[[DriftReport], None]


@dataclass(frozen=True, slots=True)
class Rung:
    """One network of the release.

    Attributes:
        index: Its place among those that can be served here.
        number: Its number in the release; 0 is the release's own network.
        model: The model.
        drift: Windows of the requests that it answered.
        cost: What it takes now.
        form: Number of its form among the counters.
    """

    index: int
    number: int
    model: Model
    drift: DriftAccumulator
    cost: LiveCost
    form: int


class ActiveRelease:
    """See above. Requests read ``rung``; :meth:`look` is called by one thread.

    Args:
        release: What was loaded.
        windows: How drift windows are made.
        counters: Where its forms are counted.
        limits: The deadline and heat that the ladder keeps.
        shed_us: Who would wait in a queue for longer is turned away; infinity: nobody is.

    Attributes:
        release: What was loaded.
        model: The release's own network.
        rungs: All networks.
        rung: The one that answers.
        deadline_us: How long an answer may take; infinity if there is no deadline. The ladder holds the 99th
            percentile below it, and answers that took longer are counted.
        shed_us: As given.
    """

    def __init__(
        self,
        release: LoadedRelease,
        *,
        windows: WindowSettings,
        counters: Counters,
        limits: LadderLimits,
        shed_us: float = math.inf,
    ) -> None:
        self.release = release
        self.model = release.model
        self.deadline_us = limits.deadline_us
        self.shed_us = shed_us
        self.rungs = tuple(
            Rung(
                index,
                choice.rung,
                model,
                _drift_of(release, model, choice.rung, windows),
                LiveCost(_positive(choice.latency_us)),
                counters.form(Form(model.variant, choice.rung, model.backend)),
            )
            for index, (model, choice) in enumerate(zip(release.models, release.choices, strict=True))
        )
        self._ladder = Ladder([_positive(choice.p99_us) for choice in release.choices], limits)
        self.rung = self.rungs[0]

    @property
    def ladder_reason(self) -> str:
        """Why a smaller network answers; empty while the release's own does."""
        return self._ladder.reason

    def look(self, look: Look, now_s: float) -> bool:
        """Let the ladder decide; returns whether another network answers from now on."""
        before, self.rung = self.rung, self.rungs[self._ladder.look(look, now_s)]
        return self.rung is not before

    def admit(self, rows: int, queued: int, parallel: int, now_s: float, deadline_us: float | None) -> Rung:
        """The network for a request that has a deadline.

        The deadline that the owner of the device sets turns away only who would wait in a queue: a device that is too
        slow for it still answers one at a time. The deadline of a request is a promise to who asks: it always counts.

        Args:
            rows: Of the request.
            queued: Requests before it that wait, or will still be computed when one of them ends.
            parallel: Requests that are computed at the same time.
            now_s: Monotonic time.
            deadline_us: Of the request; None: ``shed_us``.

        Raises:
            DeadlineError: No network is expected to answer in time.
        """
        wait_us = self.rung.cost.expected_us(rows, now_s) * queued / parallel if queued else 0.0
        expected = [wait_us + rung.cost.expected_us(rows, now_s) for rung in self.rungs]
        limit_us = self.shed_us if deadline_us is None else deadline_us
        index = pick(self.rung.index, expected, limit_us)
        if index is not None:
            return self.rungs[index]
        if deadline_us is None and not queued:
            return self.rungs[-1]
        raise DeadlineError(limit_us, min(expected[self.rung.index :]))

    def limit_windows(self, limits: WindowLimits) -> None:
        """Set when drift windows close, and close those whose time is over."""
        for rung in self.rungs:
            rung.drift.limit(limits)
            rung.drift.tick()

    def close(self) -> None:
        """Report the open drift windows and free the networks; nobody uses them any more."""
        for rung in self.rungs:
            rung.drift.flush()
        self.release.close()


def _drift_of(release: LoadedRelease, model: Model, rung: int, windows: WindowSettings) -> DriftAccumulator:
    return DriftAccumulator(
        release_id=model.spec.release_id,
        edges=release.edges,
        edges_sha256=release.edges_sha256,
        limits=windows.limits,
        numbers=windows.numbers,
        emit=windows.emit,
        rung=rung,
        variant=model.variant,
        predictions=model.variant != PERSONAL,
    )


def _positive(latency_us: float) -> float:
    """A latency of choice.json, which is a hint: one that cannot be is as good as none."""
    return latency_us if math.isfinite(latency_us) and latency_us > 0 else 1.0
