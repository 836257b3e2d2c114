"""Which devices a campaign takes, as rules over what each one told. Pure: no clock, no store.

Every device that stays out does so for exactly one reason, the first of the rules below that it fails, with a code of
:data:`EXCLUSIONS`; the campaign counts them. A rule that is not set asks for nothing. A rule that is set and whose
figure the device does not measure, or has not told for :attr:`EligibilityRules.maximum_age_minutes`, keeps the device
out with code "unmeasured": a campaign that wants cool devices does not take one that cannot say how warm it is.

The device decides again, with its own limits, when it is invited: this is the fleet's wish, not the device's consent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from skerry_contract.campaign import NEEDS_EACH, SITE_QUORUM
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.participants.time_windows import MINUTE_MS, OFFSETS, Window, format_minute, minute_of_day

#: Code of an exclusion to what it means, in the order in which the rules are tried. Codes that devices use themselves
#: are those of skerry_contract.campaign.STAY_OUT.
EXCLUSIONS: Final[dict[str, str]] = {
    "revoked": "its identity is revoked",
    "offline": "not connected",
    "device": "its own policy keeps it out",
    "quarantined": "an incident about the quality of its data is open",
    "no-release": "no release answers",
    "other-task": "runs a release of another task",
    "other-step": "runs a release with another network",
    "other-release": "runs another release than the campaign starts from",
    "updating": "an update is under way",
    "few-samples": "too few labelled samples",
    "no-node": "its training process has not joined the SuperLink",
    "resting": "its last update is too recent",
    "capped": "took part in as many rounds as the campaign allows",
    "unmeasured": "has not told a figure that the campaign asks for",
    "busy": "answers requests now",
    "battery": "not charging, or its battery is low",
    "metered": "bytes cost money on its network",
    "hot": "too warm",
    "slow-answers": "its answers are slow",
    "stale-data": "too few fresh samples since its last update",
    "outside-window": "outside the time window, in its local time",
    "expired": "the invitation had expired when it came",
    "declined": "declined without a reason that is known here",
    "failed": "its answer in a round did not come or did not count",
    NEEDS_EACH: "the campaign needs the update of each device, so its site is asked device by device",
    SITE_QUORUM: "too few devices of its site answered",
}


@dataclass(frozen=True)
class EligibilityRules:
    """What a campaign asks of a device. Zero and False ask for nothing.

    Attributes:
        require_idle: No request was answered for a while.
        require_charging: Charging, or running from the mains.
        require_unmetered: On a network where bytes cost nothing.
        minimum_battery_percent: Lowest charge of a device that is not charging, 0 to 100.
        maximum_temperature_c: Hottest zone, 0 to 150.
        maximum_p99_ms: 99th percentile of the answers, 0 to 60,000. A device without a request in its last report is
            healthy.
        minimum_fresh: Labelled samples since its last update that counted, 0 to 1,000,000.
        maximum_age_minutes: How old the figures may be, 1 to 10,080.
        window: Part of the day in the device's local time; None: any time.
    """

    require_idle: bool = False
    require_charging: bool = False
    require_unmetered: bool = False
    minimum_battery_percent: float = 0.0
    maximum_temperature_c: float = 0.0
    maximum_p99_ms: float = 0.0
    minimum_fresh: int = 0
    maximum_age_minutes: float = 30.0
    window: Window | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form of what differs from the defaults; :func:`parse_rules` reads it back."""
        changed = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != each.default and each.name != "window"
        }
        return changed if self.window is None else {**changed, "window": self.window.as_dict()}

    @property
    def asks_for_conditions(self) -> bool:
        """Whether any rule needs a figure of :class:`Conditions`."""
        return self != EligibilityRules(maximum_age_minutes=self.maximum_age_minutes)


#: Number to (lowest, highest).
RULE_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "minimum_battery_percent": (0.0, 100.0),
    "maximum_temperature_c": (0.0, 150.0),
    "maximum_p99_ms": (0.0, 60_000.0),
    "minimum_fresh": (0, 1_000_000),
    "maximum_age_minutes": (1.0, 10_080.0),
}
_NAMES = tuple(each.name for each in fields(EligibilityRules))


@dataclass(frozen=True)
class Conditions:
    """What a device told last, as in DeviceConditions; None: it does not measure that.

    Attributes:
        told_ms: When (milliseconds since 1970); 0: never.
        idle: No request was answered for the idle time of the device's policy.
        charging: Charging, or running from the mains.
        battery_percent: Lowest battery.
        metered: Whether bytes cost money.
        temperature_c: Hottest zone.
        latency_p99_us: Of its answers; None also when there were none.
        fresh_samples: Labelled samples since its last update that counted.
        utc_offset_minutes: Of its local time, east.
    """

    told_ms: int = 0
    idle: bool | None = None
    charging: bool | None = None
    battery_percent: float | None = None
    metered: bool | None = None
    temperature_c: float | None = None
    latency_p99_us: int | None = None
    fresh_samples: int | None = None
    utc_offset_minutes: int | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, told_ms: int) -> Conditions:
        """From the JSON of the store, whose values were checked when they came."""
        known = {each.name for each in fields(cls)} - {"told_ms"}
        return cls(told_ms=told_ms, **{name: value for name, value in document.items() if name in known})


@dataclass(frozen=True)
class Exclusion:
    """Why a device stays out.

    Attributes:
        code: A key of :data:`EXCLUSIONS`.
        reason: For people, with the figures.
    """

    code: str
    reason: str


def parse_rules(document: Mapping[str, Any], *, field: str = "settings.eligibility") -> EligibilityRules:
    """Check the rules of a request.

    Raises:
        InvalidRequestError: An unknown rule, a wrong type or a value out of range; ``field`` is in front of its name.
    """
    checked: dict[str, Any] = {}
    for name, value in document.items():
        where = f"{field}.{name}"
        if name == "window":
            checked[name] = Window.parse(value, field=where)
        elif name in RULE_BOUNDS:
            lowest, highest = RULE_BOUNDS[name]
            kind = "an integer" if name == "minimum_fresh" else "a number"
            wrong = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            if wrong or not lowest <= value <= highest or (name == "minimum_fresh" and value != int(value)):
                raise InvalidRequestError(where, expected=f"{kind} from {lowest:g} to {highest:g}", got=value)
            checked[name] = int(value) if name == "minimum_fresh" else float(value)
        elif name in _NAMES:
            if not isinstance(value, bool):
                raise InvalidRequestError(where, expected="true or false", got=value)
            checked[name] = value
        else:
            raise InvalidRequestError(where, expected=f"one of {', '.join(_NAMES)}", got=name)
    return EligibilityRules(**checked)


def judge_conditions(rules: EligibilityRules, conditions: Conditions, *, at_ms: int) -> Exclusion | None:
    """Why a device stays out of a campaign with these rules at a moment; None when it does not."""
    if not rules.asks_for_conditions:
        return None
    age_ms = at_ms - conditions.told_ms
    if not conditions.told_ms or age_ms > rules.maximum_age_minutes * MINUTE_MS:
        told = f"told nothing for {age_ms / MINUTE_MS:.0f} min" if conditions.told_ms else "has never told its state"
        return Exclusion("unmeasured", told)
    for rule in (_idle, _power, _network, _heat, _answers, _data):
        found = rule(rules, conditions)
        if found is not None:
            return found
    return _time(rules, conditions, at_ms)


def _unmeasured(what: str) -> Exclusion:
    return Exclusion("unmeasured", f"does not measure {what}")


def _idle(rules: EligibilityRules, now: Conditions) -> Exclusion | None:
    if not rules.require_idle or now.idle:
        return None
    return _unmeasured("whether it is idle") if now.idle is None else Exclusion("busy", "answers requests")


def _power(rules: EligibilityRules, now: Conditions) -> Exclusion | None:
    if rules.require_charging and not now.charging:
        return _unmeasured("whether it is charging") if now.charging is None else Exclusion("battery", "not charging")
    lowest = rules.minimum_battery_percent
    if not lowest or now.charging:
        return None
    if now.battery_percent is None:
        return _unmeasured("its battery")
    if now.battery_percent < lowest:
        return Exclusion("battery", f"battery {now.battery_percent:.0f} %, at least {lowest:g} % wanted")
    return None


def _network(rules: EligibilityRules, now: Conditions) -> Exclusion | None:
    if not rules.require_unmetered or now.metered is False:
        return None
    return _unmeasured("whether its network is metered") if now.metered is None else Exclusion("metered", "metered")


def _heat(rules: EligibilityRules, now: Conditions) -> Exclusion | None:
    highest = rules.maximum_temperature_c
    if not highest:
        return None
    if now.temperature_c is None:
        return _unmeasured("its temperature")
    if now.temperature_c > highest:
        return Exclusion("hot", f"{now.temperature_c:.0f} °C, at most {highest:g} °C wanted")
    return None


def _answers(rules: EligibilityRules, now: Conditions) -> Exclusion | None:
    if not rules.maximum_p99_ms or now.latency_p99_us is None:
        return None
    p99_ms = now.latency_p99_us / 1000
    if p99_ms > rules.maximum_p99_ms:
        return Exclusion("slow-answers", f"p99 {p99_ms:.1f} ms, at most {rules.maximum_p99_ms:g} ms wanted")
    return None


def _data(rules: EligibilityRules, now: Conditions) -> Exclusion | None:
    if not rules.minimum_fresh:
        return None
    if now.fresh_samples is None:
        return _unmeasured("how many of its samples are fresh")
    if now.fresh_samples < rules.minimum_fresh:
        return Exclusion("stale-data", f"{now.fresh_samples} fresh samples, {rules.minimum_fresh} wanted")
    return None


def _time(rules: EligibilityRules, now: Conditions, at_ms: int) -> Exclusion | None:
    if rules.window is None:
        return None
    offset = now.utc_offset_minutes
    if offset is None or not OFFSETS[0] <= offset <= OFFSETS[1]:
        return _unmeasured("its local time")
    minute = minute_of_day(at_ms, utc_offset_minutes=offset)
    if rules.window.contains(minute):
        return None
    window = rules.window.as_dict()
    return Exclusion("outside-window", f"{format_minute(minute)} there, {window['start']} to {window['end']} wanted")
