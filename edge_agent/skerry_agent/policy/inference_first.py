"""Inference before training: whether the next training step must wait, by the latencies of this moment. Pure.

Training waits while the 99th percentile of the answers is above the device's limit, or above ``factor`` times what it
is at rest. *At rest* is what was measured while no step had run for a whole window: before a round, between rounds and
in a long pause. So if answers become slower for another reason than training, the resting value follows during the
pause, and training is not kept out for ever; above the absolute limit it is.

It goes on when the percentile is back below :data:`EASED` of the bound, or nobody asks any more, and not before a hold
time, which doubles with every pause that follows the one before within :data:`CALM_S`: training that hurts again and
again gets an ever smaller share of the time. Below ``floor_ms`` a ratio says nothing; there the scheduler, which runs
training only on what inference leaves (:mod:`skerry_agent.training.priority`), is all that is needed.

>>> guard = InferenceFirst(limit_ms=200.0, factor=1.5)
>>> guard.must_wait(LiveLatency(100, 4_000), 0.0), guard.must_wait(LiveLatency(100, 7_000), 0.1)
(False, True)
"""

from __future__ import annotations

from skerry_agent.policy.live_latency import PERIOD_S, WINDOW_S, LiveLatency

#: Share of the bound that must be reached again before training goes on.
EASED = 0.8
#: Shortest and longest time that a pause holds (seconds).
HOLD_S, LONGEST_HOLD_S = 0.5, 8.0
#: A pause that comes later than this after the one before begins with the shortest hold again (seconds).
CALM_S = 10.0
#: Weight of a new measurement in the resting value.
NEW = 0.3
#: After so long without a step a window holds no request that was answered beside training (seconds).
AT_REST_S = WINDOW_S + PERIOD_S


class InferenceFirst:
    """One device's decision; times are monotonic seconds."""

    def __init__(self, *, limit_ms: float, factor: float, floor_ms: float = 1.0) -> None:
        """Take over the bounds.

        Args:
            limit_ms: 99th percentile above which training waits, whatever it is at rest.
            factor: So many times the resting percentile makes training wait, above 1.
            floor_ms: A percentile below it never makes training wait.
        """
        if factor <= 1.0 or limit_ms <= 0.0:
            raise ValueError(f"need factor > 1 and limit_ms > 0, got {factor} and {limit_ms}")
        self._limit_us = limit_ms * 1000
        self._factor = factor
        self._floor_us = floor_ms * 1000
        self._resting_us: float | None = None
        self._learned_at = float("-inf")
        self._stepped_at = float("-inf")
        self._paused_at: float | None = None
        self._resumed_at = float("-inf")
        self._hold_s = HOLD_S

    @property
    def resting_us(self) -> float | None:
        """The 99th percentile at rest; None before it was measured."""
        return self._resting_us

    @property
    def bound_us(self) -> float:
        """Above it training waits."""
        if self._resting_us is None:
            return self._limit_us
        return min(self._limit_us, max(self._floor_us, self._factor * self._resting_us))

    def must_wait(self, live: LiveLatency | None, now_s: float) -> bool:
        """Asked before every step.

        Args:
            live: Of this moment; None if it is not known, or nobody asks.
            now_s: Time.
        """
        self._learn(live, now_s)
        if self._paused_at is None:
            if live is None or live.p99_us <= self.bound_us:
                self._stepped_at = now_s
                return False
            again = now_s - self._resumed_at < CALM_S
            self._hold_s = min(LONGEST_HOLD_S, self._hold_s * 2) if again else HOLD_S
            self._paused_at = now_s
            return True
        if now_s - self._paused_at < self._hold_s:
            return True
        if live is not None and live.p99_us > EASED * self.bound_us:
            return True
        self._paused_at, self._resumed_at, self._stepped_at = None, now_s, now_s
        return False

    def _learn(self, live: LiveLatency | None, now_s: float) -> None:
        """Take in a value at rest, at most one a window: the same requests must not count twice."""
        if live is None or now_s - self._stepped_at < AT_REST_S or now_s - self._learned_at < WINDOW_S:
            return
        self._learned_at = now_s
        if self._resting_us is None:
            self._resting_us = float(live.p99_us)
        else:
            self._resting_us += NEW * (live.p99_us - self._resting_us)
