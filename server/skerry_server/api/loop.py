"""The loop as a person wants to see it: eight boxes, each with a mood and a few characters. Pure.

Moods: *idle* nothing to tell; *good* as it should be; *busy* something runs; *attention* a person should look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mood = Literal["idle", "good", "busy", "attention"]
#: Value of a box that has nothing to tell.
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Stage:
    """One box of the loop.

    Attributes:
        key: Stable name.
        title: For people.
        mood: See the module.
        value: A few characters.
        detail: One short sentence.
    """

    key: str
    title: str
    mood: Mood
    value: str
    detail: str


@dataclass(frozen=True)
class Observed:
    """What the boxes are made from. Counts are by state unless another key is named.

    Attributes:
        jobs: By kind, of the unfinished ones.
        candidates: By state.
        releases: How many are available.
        champions: Task to the champion's name.
        rollouts, rollout_says: How many are active, and what the newest active one says.
        devices, online, updating: Sizes of the fleet and of two parts of it.
        drifting: Devices whose newest verdict is drift or bad data.
        judged: Devices with a verdict about what they run.
        open_incidents, waiting_incidents: Unfinished incidents, and those of them that wait for a person.
        campaigns, campaign_says: How many are active, and what the newest active one says.
    """

    jobs: Mapping[str, int] = field(default_factory=dict)
    candidates: Mapping[str, int] = field(default_factory=dict)
    releases: int = 0
    champions: Mapping[str, str] = field(default_factory=dict)
    rollouts: int = 0
    rollout_says: str = ""
    devices: int = 0
    online: int = 0
    updating: int = 0
    drifting: int = 0
    judged: int = 0
    open_incidents: int = 0
    waiting_incidents: int = 0
    campaigns: int = 0
    campaign_says: str = ""


def describe_loop(seen: Observed) -> list[Stage]:
    """The boxes, in the order in which work goes round."""
    return [
        _train(seen),
        _gates(seen),
        _release(seen),
        _rollout(seen),
        _fleet(seen),
        _drift(seen),
        _incident(seen),
        _campaign(seen),
    ]


def _train(seen: Observed) -> Stage:
    running = seen.jobs.get("train", 0)
    if running:
        return Stage("train", "Train", "busy", _count(running, "job"), "Training centrally")
    return Stage("train", "Train", "idle", NOTHING, "No central training runs")


def _gates(seen: Observed) -> Stage:
    waiting = seen.candidates.get("built", 0)
    passed = seen.candidates.get("passed", 0)
    if waiting:
        return Stage("gates", "Gates", "busy", f"{waiting} judged", "A candidate is being built and judged")
    if passed:
        return Stage("gates", "Gates", "attention", f"{passed} passed", "A candidate passed and waits to be published")
    rejected = seen.candidates.get("rejected", 0)
    return Stage("gates", "Gates", "idle", NOTHING, f"{rejected} rejected so far" if rejected else "No candidate waits")


def _release(seen: Observed) -> Stage:
    if not seen.releases:
        return Stage("release", "Release", "idle", "none", "Nothing was released yet")
    made = _count(seen.releases, "release")
    if not seen.champions:
        return Stage("release", "Release", "good", made, "No champion yet: no rollout has finished")
    if len(seen.champions) > 1:
        detail = ", ".join(f"{task}: {release}" for task, release in sorted(seen.champions.items()))
        return Stage("release", "Release", "good", f"{len(seen.champions)} champions", detail)
    ((task, champion),) = seen.champions.items()
    return Stage("release", "Release", "good", champion, f"Champion of {task}; {made} in all")


def _rollout(seen: Observed) -> Stage:
    if seen.rollouts:
        return Stage("rollout", "Rollout", "busy", f"{seen.rollouts} active", seen.rollout_says or "Under way")
    return Stage("rollout", "Rollout", "idle", NOTHING, "No rollout is under way")


def _fleet(seen: Observed) -> Stage:
    if not seen.devices:
        return Stage("fleet", "Fleet", "idle", "empty", "No device has enrolled")
    value = f"{seen.online}/{seen.devices}"
    if seen.updating:
        return Stage("fleet", "Fleet", "busy", value, f"{_count(seen.updating, 'device')} updating")
    away = seen.devices - seen.online
    if away:
        return Stage("fleet", "Fleet", "attention", value, f"{_count(away, 'device')} offline, still serving")
    return Stage("fleet", "Fleet", "good", value, "Every device is online")


def _drift(seen: Observed) -> Stage:
    if not seen.judged:
        return Stage("drift", "Drift", "idle", NOTHING, "No window was judged yet")
    value = f"{seen.drifting}/{seen.judged}"
    if seen.drifting:
        return Stage("drift", "Drift", "attention", value, f"{_count(seen.drifting, 'device')} drifting")
    return Stage("drift", "Drift", "good", value, "Inputs look like the reference")


def _incident(seen: Observed) -> Stage:
    if not seen.open_incidents:
        return Stage("incident", "Incident", "good" if seen.judged else "idle", "0 open", "Nothing to act on")
    value = f"{seen.open_incidents} open"
    if seen.waiting_incidents:
        detail = f"{_count(seen.waiting_incidents, 'incident')} waiting for a decision"
        return Stage("incident", "Incident", "attention", value, detail)
    return Stage("incident", "Incident", "busy", value, "Being dealt with")


def _campaign(seen: Observed) -> Stage:
    if seen.campaigns:
        return Stage("campaign", "Campaign", "busy", f"{seen.campaigns} active", seen.campaign_says or "Under way")
    return Stage("campaign", "Campaign", "idle", NOTHING, "No campaign is under way")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
