"""What may be chosen about a campaign, and its bounds. Pure: no I/O.

Numbers stand in :data:`BOUNDS`, words in :data:`CHOICES`, switches in :data:`FLAGS`; the three documents are checked by
their owners: ``privacy`` by :mod:`skerry_server.federation.privacy.settings`, ``eligibility`` by
:mod:`skerry_server.federation.participants.eligibility`, ``strategy_settings`` by
:mod:`skerry_server.federation.strategies.settings`. A document that an earlier version stored loads: what it does not
have takes its default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from skerry_contract.update_codec import WIRES
from skerry_models.task import CampaignDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.participants.eligibility import parse_rules
from skerry_server.federation.privacy.settings import check_compatible, parse_privacy
from skerry_server.federation.strategies.settings import check_strategy_settings


@dataclass(frozen=True)
class CampaignSettings:
    """One campaign.

    Attributes:
        rounds: Global rounds, 1 to 1000; with ``mode`` "buffered" versions of the model.
        local_epochs: Passes over a device's samples per round, 1 to 100.
        batch_size: Samples per local step, 1 to 1024.
        learning_rate: Of local SGD, above 0, at most 10.
        proximal_mu: Weight of the FedProx term, 0 to 1000; 0 for every strategy but "fedprox".
        minimum_devices: Devices that must accept before the first round, 1 to 10,000; by default 2, or as many as the
            strategy or secure aggregation needs.
        minimum_samples: Labelled samples that a device must have, 2 to 1,000,000.
        quorum: Share of the devices that a round asks for (before over-selection) whose updates it needs, above 0, at
            most 1.
        round_deadline_ms: Longest round, 1 s to 1 day (milliseconds).
        recruiting_deadline_ms: How long devices may answer, 1 s to 7 days (milliseconds).
        seed: Of the order of the samples on the devices, and of selection, 0 to 2**31 - 1.
        strategy_settings: Of the strategy: name to number, flag, text or list of texts.
        wire: How devices encode their updates, one of :data:`skerry_contract.update_codec.WIRES`.
        density: Share of the values that a sparse wire keeps, 1e-6 to 1.
        down_wire: How the model travels to the devices, one of those; all but "float32" are differences from
            the model of the round before.
        mode: "rounds": synchronous; "buffered": asynchronous, of strategy "fedbuff".
        per_round: Devices whose updates a round wants, 0 to 10,000; 0: every device that accepted.
        over_selection: How many times that number are asked, 1 to 4; the round ends with the fastest.
        grace_factor: Once the quorum is there, stragglers get this share of the time that it took, 0 to 100.
        maximum_bytes: Budget over both directions, 0 to 2**50 (bytes); 0: none.
        maximum_minutes: Budget of time over all rounds, 0 to 525,600; 0: none.
        maximum_energy_wh: Budget of the devices' energy, estimated from the seconds that they trained and the bytes
            that were moved, 0 to 1e9 (watt-hours); 0: none.
        privacy: See :class:`skerry_server.federation.privacy.settings.PrivacySettings`; ``{"mode": "none"}`` is none.
        secure_aggregation: Whether the server may see only sums of updates.
        selection: "uniform" or "oort".
        exploration: Share of a round's devices that Oort takes from those that it knows nothing of, 0 to 1.
        slow_penalty: Exponent of Oort's penalty of devices slower than the preferred duration, 0 to 10.
        fairness: Weight of "was selected least often" against utility, 0 to 1.
        participation_cap: Most rounds of the campaign that one device's update counts in, 0 to 1000; 0: no cap.
        rest_minutes: How long after an update that counted, in any campaign, a device is left in peace, 0 to 43,200.
        eligibility: See :class:`skerry_server.federation.participants.eligibility.EligibilityRules`.
        early_stopping_rounds: Rounds without improvement after which a campaign ends early, 0 to 1000; 0: never.
        judge_every: Every how many rounds the model is judged in the forms that devices run, 0 to 1000; the last round
            is judged too. 0: none is, the candidate's gates are the first to judge those forms.
        norm_bound: Updates whose L2 norm is above this many times the round's median are rejected, 0 or 1 to 1000;
            0: none is.
        calibration: Whose rows the INT8 ranges of the result come from: "central" (the control plane's own) or
            "federated" (the devices': they tell ranges of activations, and no row leaves them).
        client_app: ``module:attribute`` of a Flower ``ClientApp`` that nodes which are no devices (stock
            ``flower-supernode``) run when they take part; empty: they do not.
    """

    rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    proximal_mu: float
    minimum_devices: int = 2
    minimum_samples: int = 20
    quorum: float = 0.5
    round_deadline_ms: int = 120_000
    recruiting_deadline_ms: int = 60_000
    seed: int = 0
    strategy_settings: dict[str, Any] = field(default_factory=dict)
    wire: str = "float32"
    density: float = 0.01
    down_wire: str = "float32"
    mode: str = "rounds"
    per_round: int = 0
    over_selection: float = 1.0
    grace_factor: float = 1.0
    maximum_bytes: int = 0
    maximum_minutes: float = 0.0
    maximum_energy_wh: float = 0.0
    privacy: dict[str, Any] = field(default_factory=lambda: {"mode": "none"})
    secure_aggregation: bool = False
    selection: str = "uniform"
    exploration: float = 0.2
    slow_penalty: float = 2.0
    fairness: float = 0.0
    participation_cap: int = 0
    rest_minutes: float = 0.0
    eligibility: dict[str, Any] = field(default_factory=dict)
    early_stopping_rounds: int = 0
    judge_every: int = 0
    norm_bound: float = 0.0
    calibration: str = "central"
    client_app: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form; :func:`load_settings` reads it back."""
        return asdict(self)

    def wanted(self, devices: int) -> int:
        """Updates that a round wants when ``devices`` take part."""
        return min(devices, self.per_round) if self.per_round else devices

    def asked(self, devices: int) -> int:
        """Devices that a round asks when ``devices`` take part: ``wanted`` times ``over_selection``, rounded up."""
        return min(devices, math.ceil(self.wanted(devices) * self.over_selection - 1e-9))

    def quorum_count(self, devices: int) -> int:
        """Updates that a round needs when ``devices`` take part, at least 1."""
        return max(1, math.ceil(self.quorum * self.wanted(devices) - 1e-9))


#: Field to (lowest, highest); a lowest of 0.0 for learning_rate and quorum is excluded.
BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "rounds": (1, 1_000),
    "local_epochs": (1, 100),
    "batch_size": (1, 1_024),
    "learning_rate": (0.0, 10.0),
    "proximal_mu": (0.0, 1_000.0),
    "minimum_devices": (1, 10_000),
    "minimum_samples": (2, 1_000_000),
    "quorum": (0.0, 1.0),
    "round_deadline_ms": (1_000, 86_400_000),
    "recruiting_deadline_ms": (1_000, 7 * 86_400_000),
    "seed": (0, (1 << 31) - 1),
    "density": (1e-6, 1.0),
    "per_round": (0, 10_000),
    "over_selection": (1.0, 4.0),
    "grace_factor": (0.0, 100.0),
    "maximum_bytes": (0, 1 << 50),
    "maximum_minutes": (0.0, 525_600.0),
    "maximum_energy_wh": (0.0, 1e9),
    "exploration": (0.0, 1.0),
    "slow_penalty": (0.0, 10.0),
    "fairness": (0.0, 1.0),
    "participation_cap": (0, 1_000),
    "rest_minutes": (0.0, 43_200.0),
    "early_stopping_rounds": (0, 1_000),
    "judge_every": (0, 1_000),
    "norm_bound": (0.0, 1_000.0),
}
#: Field to its words.
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "wire": WIRES,
    "down_wire": WIRES,
    "mode": ("rounds", "buffered"),
    "selection": ("uniform", "oort"),
    "calibration": ("central", "federated"),
}
FLAGS: Final = frozenset({"secure_aggregation"})
#: Field to the form of its text; every one may be empty.
TEXTS: Final = {"client_app": re.compile(r"(?=.{3,200}\Z)[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)}
#: Fields that are documents themselves.
DOCUMENTS: Final = frozenset({"strategy_settings", "privacy", "eligibility"})
#: Every field, in the order in which they are told.
FIELDS: Final = tuple(each.name for each in fields(CampaignSettings))
#: Strategies that need nothing but the weighted sum of the updates, which is all that secure aggregation gives.
SUMS: Final = frozenset({"fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedbn", "fedper"})
#: The strategy of buffered campaigns.
BUFFERED_STRATEGY: Final = "fedbuff"
#: Proximal weight of fedprox when neither the request nor the task gives one.
PROXIMAL_MU: Final = 0.01
#: Most entries of a document, and of a list in it; longest text in it.
ENTRIES: Final = 64
CHARACTERS: Final = 200
_POSITIVE = frozenset({"learning_rate", "quorum"})
_INTEGERS = frozenset(each.name for each in fields(CampaignSettings) if each.type == "int")


def parse_settings(
    defaults: CampaignDefaults, given: Mapping[str, object], *, strategy: str = "fedavg"
) -> CampaignSettings:
    """Check a request's settings; what it leaves out comes from the task.

    Args:
        defaults: Of the task.
        given: Name to value.
        strategy: "fedprox" has a proximal term, by default :data:`PROXIMAL_MU` when the task has none; others do not.
            "fedbuff" is buffered; others are not.

    Raises:
        InvalidRequestError: An unknown field, a wrong type, a value out of range, or values that do not go together;
            ``field`` names it.
    """
    checked: dict[str, Any] = {}
    for name, value in given.items():
        checked[name] = _check(f"settings.{name}", name, value)
    checked.setdefault("mode", "buffered" if strategy == BUFFERED_STRATEGY else "rounds")
    settings = CampaignSettings(**{**asdict(defaults), **checked})
    if strategy == "fedprox":
        mu = settings.proximal_mu if "proximal_mu" in checked else settings.proximal_mu or PROXIMAL_MU
        settings = replace(settings, proximal_mu=mu)
    elif checked.get("proximal_mu"):
        raise InvalidRequestError(
            "settings.proximal_mu", expected=f"0 with {strategy}; fedprox has the term", got=checked["proximal_mu"]
        )
    else:
        settings = replace(settings, proximal_mu=0.0)
    _check_together(settings, strategy)
    return replace(settings, strategy_settings=check_strategy_settings(strategy, settings.strategy_settings))


def load_settings(document: Mapping[str, Any]) -> CampaignSettings:
    """Read what :meth:`CampaignSettings.as_dict` wrote, now or in an earlier version."""
    return CampaignSettings(**document)


def _check(field: str, name: str, value: object) -> object:
    if name in BOUNDS:
        return _number(field, name, value)
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise InvalidRequestError(field, expected=f"one of {', '.join(CHOICES[name])}", got=value)
        return value
    if name in FLAGS:
        if not isinstance(value, bool):
            raise InvalidRequestError(field, expected="true or false", got=value)
        return value
    if name in TEXTS:
        if not isinstance(value, str) or (value and not TEXTS[name].fullmatch(value)):
            raise InvalidRequestError(field, expected="module:attribute of at most 200 characters, or empty", got=value)
        return value
    if name in DOCUMENTS:
        document = _document(field, value)
        if name == "eligibility":
            return parse_rules(document, field=field).as_dict()
        return parse_privacy(document).as_dict() if name == "privacy" else document
    raise InvalidRequestError(field, expected=f"one of {', '.join(FIELDS)}", got=name)


def _number(field: str, name: str, value: object) -> int | float:
    lowest, highest = BOUNDS[name]
    integer = name in _INTEGERS
    lower = f"above {lowest:g}" if name in _POSITIVE else f"from {lowest:g}"
    expected = f"{'an integer' if integer else 'a number'} {lower} to {highest:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(field, expected=expected, got=value)
    if not math.isfinite(value) or (integer and value != int(value)):
        raise InvalidRequestError(field, expected=expected, got=value)
    if not lowest <= value <= highest or (name in _POSITIVE and value <= lowest):
        raise InvalidRequestError(field, expected=expected, got=value)
    return int(value) if integer else float(value)


def _document(field: str, value: object) -> dict[str, Any]:
    """A flat document of bounded size; what its entries mean is its owner's to check."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError(field, expected="an object of names and values", got=value)
    if len(value) > ENTRIES:
        raise InvalidRequestError(field, expected=f"at most {ENTRIES} entries", got=len(value))
    for name, entry in value.items():
        where = f"{field}.{str(name)[:CHARACTERS]}"
        if not isinstance(name, str) or len(name) > CHARACTERS:
            raise InvalidRequestError(where, expected=f"a name of at most {CHARACTERS} characters", got=name)
        parts = list(entry.values()) if isinstance(entry, Mapping) else entry if isinstance(entry, list) else [entry]
        if len(parts) > ENTRIES:
            raise InvalidRequestError(where, expected=f"at most {ENTRIES} entries", got=len(parts))
        for part in parts:
            if isinstance(part, str) and len(part) <= CHARACTERS:
                continue
            if isinstance(part, bool | int | float) and math.isfinite(part):
                continue
            raise InvalidRequestError(where, expected="finite numbers, true, false or short texts", got=part)
    return {name: dict(entry) if isinstance(entry, Mapping) else entry for name, entry in value.items()}


def _check_together(settings: CampaignSettings, strategy: str) -> None:
    """Refuse what contradicts itself; the message says with what."""

    def refuse(name: str, expected: str) -> InvalidRequestError:
        return InvalidRequestError(f"settings.{name}", expected=expected, got=getattr(settings, name))

    check_compatible(
        parse_privacy(settings.privacy),
        strategy=strategy,
        mode=settings.mode,
        selection=settings.selection,
        secure_aggregation=settings.secure_aggregation,
        norm_bound=settings.norm_bound,
    )
    if settings.privacy.get("sampling") == "poisson":
        for name in ("per_round", "fairness", "participation_cap"):
            if getattr(settings, name):
                raise refuse(name, "0 with privacy.sampling poisson, which draws each device by itself")
    if (settings.mode == "buffered") != (strategy == BUFFERED_STRATEGY):
        needed = "buffered" if strategy == BUFFERED_STRATEGY else "rounds"
        raise refuse("mode", f"{needed} with strategy {strategy}")
    if 0 < settings.norm_bound < 1:
        raise refuse("norm_bound", "0 (none) or a number from 1: a bound below the median rejects honest devices")
    if settings.secure_aggregation:
        if strategy not in SUMS:
            raise refuse("secure_aggregation", f"false with {strategy}, which needs to see each update")
        if settings.wire != "float32":
            raise refuse("wire", "float32 with secure_aggregation, whose masked vectors have a wire of their own")
        if settings.norm_bound:
            raise refuse("norm_bound", "0 with secure_aggregation, which hides the norm of each update")
    private = settings.privacy.get("mode", "none") != "none"
    if settings.calibration == "federated" and (private or settings.secure_aggregation):
        what = "privacy" if private else "secure_aggregation"
        raise refuse("calibration", f"central with {what}: a device's ranges are exact extremes of its own rows")
    if settings.client_app and (private or settings.secure_aggregation or settings.down_wire != "float32"):
        raise refuse("client_app", "empty with privacy, secure_aggregation or a down_wire: plain Flower has none")
    if settings.selection == "oort":
        if settings.secure_aggregation:
            raise refuse("selection", "uniform with secure_aggregation, which hides what a device's update is worth")
        if settings.mode == "buffered":
            raise refuse("selection", "uniform with mode buffered, which has no rounds to select for")
