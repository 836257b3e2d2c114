"""Which cores serving has to itself. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

AUTO = "auto"
#: Share of the cores that serving has to itself: one in so many, and at least one.
ONE_IN = 4


@dataclass(frozen=True)
class CorePlan:
    """Cores by their numbers; nobody else of the agent runs on those of serving, if there are enough.

    Attributes:
        serving: Of the serving process.
        others: Of control, training and whatever they start.
        note: What of the setting could not be done; empty if all of it was.
    """

    serving: frozenset[int]
    others: frozenset[int]
    note: str = ""


def plan_cores(allowed: Collection[int], setting: str) -> CorePlan:
    """Split the cores that the agent may use.

    Args:
        allowed: Those that the system leaves it.
        setting: "auto", or the cores of serving, such as "2,3".

    >>> plan_cores(range(2), "auto")
    CorePlan(serving=frozenset({1}), others=frozenset({0}), note='')
    >>> sorted(plan_cores(range(8), "auto").serving), sorted(plan_cores(range(1), "auto").serving)
    ([6, 7], [0])
    """
    every = frozenset(allowed)
    note = ""
    if setting != AUTO:
        wanted = frozenset(int(core) for core in setting.split(","))
        serving = wanted & every
        if serving != wanted:
            note = f"cores {_list(wanted - every)} of serving_cores are not there"
        if serving:
            return CorePlan(serving, every - serving or every, note)
    if len(every) < 2:
        return CorePlan(every, every, note)
    serving = frozenset(sorted(every)[-max(1, len(every) // ONE_IN) :])
    return CorePlan(serving, every - serving, note)


def _list(cores: Collection[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
