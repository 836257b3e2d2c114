"""Which network of a release answers: the largest one that keeps the latency contract. Pure.

Two decisions, at two speeds:

- :class:`Ladder`, about once a second, from the 99th percentile of the network that answers, the heat and the power
  mode: the network that everybody gets. Its moves are :mod:`skerry_agent.engine.ladder_machine`.
- :func:`pick`, for each request with a deadline, from what an answer is expected to take now: a smaller one than that
  for a request in a hurry, or none: then the request is refused before anything is computed.

A larger network is tried again when it is expected to need at most :data:`EASED` of the deadline. What it would need
now is what the present one needs, times how their latencies compared when the release was loaded: heat, load and
training slow both alike. Nothing is measured beside live requests for this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skerry_agent.engine.ladder_machine import Event, Move, Position, step

#: Share of the deadline that the next larger network must be expected to keep.
EASED = 0.7
#: The device must have cooled by this before a larger network is tried (degrees Celsius).
COOLER_C = 5.0
#: Shortest and longest hold after a move to a smaller network, and length of a trial (seconds).
HOLD_S, LONGEST_HOLD_S = 5.0, 300.0
TRIAL_S = 30.0


@dataclass(frozen=True)
class LadderLimits:
    """What the ladder keeps.

    Attributes:
        deadline_us: The 99th percentile that must be kept (us); infinity if there is none.
        temperature_c: Above it a smaller network answers (degrees Celsius).
    """

    deadline_us: float = math.inf
    temperature_c: float = math.inf


@dataclass(frozen=True)
class Look:
    """What was found now.

    Attributes:
        p99_us: 99th percentile of the answers of the present network; None if too few were given to say.
        temperature_c: Hottest zone; None if the device does not say.
        saving: Whether the power mode asks for less work.
    """

    p99_us: float | None = None
    temperature_c: float | None = None
    saving: bool = False


class Ladder:
    """Where one release stands; times are monotonic seconds.

    Args:
        costs_us: 99th percentile of each network when the release was loaded, from large to small; all above 0.
        limits: What must be kept.

    >>> ladder = Ladder([4_000.0, 900.0], LadderLimits(deadline_us=10_000.0))
    >>> ladder.look(Look(p99_us=12_000.0), now_s=0.0), ladder.reason
    (1, 'p99 12.0 ms, deadline 10.0 ms')
    """

    def __init__(self, costs_us: Sequence[float], limits: LadderLimits) -> None:
        if not costs_us or not all(math.isfinite(cost) and cost > 0 for cost in costs_us):
            raise ValueError(f"need a finite cost above 0 for each network, got {list(costs_us)}")
        self._costs = tuple(costs_us)
        self._limits = limits
        self._hold_s = HOLD_S
        self._until_s = -math.inf
        self.position = Position.SETTLED
        self.rung = 0
        self.reason = ""

    def look(self, look: Look, now_s: float) -> int:
        """Take in a look; returns the network that answers from now on (0 is the largest)."""
        event, reason = self._event(look, now_s)
        self.position, move = step(self.position, event)
        match move:
            case Move.SMALLER | Move.SMALLER_LONGER:
                if move is Move.SMALLER_LONGER:
                    self._hold_s = min(LONGEST_HOLD_S, self._hold_s * 2)
                self.rung += 1
                self._until_s = now_s + self._hold_s
                self.reason = reason
            case Move.LARGER:
                self.rung -= 1
                self._until_s = now_s + TRIAL_S
                if self.rung == 0:
                    self.reason = ""
            case Move.CALM:
                self._hold_s = HOLD_S
            case Move.STAY:
                pass
        return self.rung

    def _event(self, look: Look, now_s: float) -> tuple[Event, str]:
        """The first event that holds, and what is said about it."""
        smaller, larger = self.rung + 1 < len(self._costs), self.rung > 0
        heat, limits = look.temperature_c, self._limits
        if look.saving and smaller and self.rung == 0:
            return Event.SAVING, "the power mode saves energy"
        if self.position is not Position.SETTLED and now_s >= self._until_s:
            return Event.OVER, ""
        if smaller and heat is not None and heat > limits.temperature_c:
            return Event.HOT, f"{heat:.0f} °C, limit {limits.temperature_c:.0f} °C"
        if smaller and look.p99_us is not None and look.p99_us > limits.deadline_us:
            return Event.LATE, f"p99 {look.p99_us / 1000:.1f} ms, deadline {limits.deadline_us / 1000:.1f} ms"
        if larger and not (look.saving and self.rung == 1) and self._has_room(look):
            return Event.ROOM, ""
        return Event.STEADY, ""

    def _has_room(self, look: Look) -> bool:
        if look.temperature_c is not None and look.temperature_c > self._limits.temperature_c - COOLER_C:
            return False
        expected = larger = self._costs[self.rung - 1]
        if look.p99_us is not None:
            expected = look.p99_us * larger / self._costs[self.rung]
        return expected <= EASED * self._limits.deadline_us


def pick(rung: int, expected_us: Sequence[float], deadline_us: float) -> int | None:
    """The largest network from ``rung`` on that is expected to keep a deadline; None if none is.

    Args:
        rung: Where the ladder stands.
        expected_us: What an answer of each network is expected to take, waiting included.
        deadline_us: How long the answer may take.

    >>> [pick(0, [5_000.0, 1_000.0], deadline) for deadline in (6_000.0, 2_000.0, 900.0)]
    [0, 1, None]
    """
    for index in range(rung, len(expected_us)):
        if expected_us[index] <= deadline_us:
            return index
    return None
