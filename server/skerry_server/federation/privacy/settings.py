"""What may be chosen about a campaign's differential privacy, and what goes together. Pure: no I/O.

The unit of privacy is who answers, the client: neighbouring campaigns differ in everything that one client sends. That
is a device; of a site gateway, which answers for its devices, it is the whole site. One device of a site moves the
site's clipped sum by up to two clipping norms, so what a campaign over gateways states for a client it does not state
for a device behind one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skerry_server.errors import InvalidRequestError

MODES = ("none", "central", "local", "distributed")
CLIPS = ("fixed", "adaptive")
ACCOUNTANTS = ("exact", "rdp", "pld")
SAMPLINGS = ("none", "poisson")
#: Strategies whose model is made of nothing but the mean of the devices' differences, so that noise on the sum covers
#: all of it. The robust ones have another sensitivity, q-FedAvg weighs by a device's loss, SCAFFOLD sends a second
#: vector, and one device can be several times in a buffer of FedBuff.
CENTRAL_STRATEGIES = frozenset({"fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedbn", "fedper"})
#: Modes in which the devices add the noise and say nothing else about their data.
DEVICE_MODES = frozenset({"local", "distributed"})
#: Strategies that need more of a device than its noised update, in the clear.
NOT_LOCAL = frozenset({"scaffold", "qfedavg"})

#: Field to (lowest, highest); 0 of noise_multiplier and of target_epsilon means: not given; 0 of count_std: chosen.
BOUNDS: dict[str, tuple[float, float]] = {
    "clip_norm": (1e-6, 1e6),
    "noise_multiplier": (0.0, 1e4),
    "target_epsilon": (0.0, 1e4),
    "delta": (1e-15, 0.1),
    "target_quantile": (0.0, 1.0),
    "clip_learning_rate": (1e-3, 5.0),
    "count_std": (0.0, 1e6),
    "sampling_probability": (1e-4, 1.0),
}
_CHOICES = {"mode": MODES, "clip": CLIPS, "accountant": ACCOUNTANTS, "sampling": SAMPLINGS}
_OFF = {"mode": "none"}


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of one campaign.

    Attributes:
        mode: "none"; "central": the control plane sums clipped updates and adds the noise; "local": each device adds
            its own, and the control plane sees nothing else; "distributed": each device adds a share of what the sum
            needs, and secure aggregation shows the sum only (arXiv 2102.06387), so that nobody has to be believed with
            an update and the noise is that of "central".
        clip: "fixed", or "adaptive": the clipping norm follows a quantile of the updates' norms (arXiv 1905.03871).
        clip_norm: L2 bound of a device's difference; with "adaptive" where it starts.
        noise_multiplier: Standard deviation of the noise in units of the sensitivity, per round; 0: from the target.
        target_epsilon: Budget: no round starts that would spend more; 0: none.
        delta: Of (epsilon, delta); below one over the number of devices.
        accountant: "exact": tight for Gaussian noise without sampling; "rdp": Renyi; "pld": privacy loss distributions,
            for sampling.
        target_quantile: Share of the updates that adaptive clipping leaves as they are.
        clip_learning_rate: Step of adaptive clipping, per round.
        count_std: Standard deviation of the noise on the number of updates below the norm; 0: the larger of a
            twentieth of the devices and the noise multiplier.
        sampling: "none": every round counts in full, whoever was chosen and however; "poisson": each device is drawn
            for a round by itself, with ``sampling_probability``, and the accountant uses that.
        sampling_probability: See there.
    """

    mode: str = "none"
    clip: str = "fixed"
    clip_norm: float = 1.0
    noise_multiplier: float = 0.0
    target_epsilon: float = 0.0
    delta: float = 1e-5
    accountant: str = "exact"
    target_quantile: float = 0.5
    clip_learning_rate: float = 0.2
    count_std: float = 0.0
    sampling: str = "none"
    sampling_probability: float = 1.0

    @property
    def enabled(self) -> bool:
        """Whether there is any."""
        return self.mode != "none"

    def as_dict(self) -> dict[str, Any]:
        """JSON form; :func:`parse_privacy` reads it back."""
        return asdict(self) if self.enabled else dict(_OFF)


def parse_privacy(given: Mapping[str, object]) -> PrivacySettings:
    """Check a request's ``settings.privacy``; empty is "none".

    Raises:
        InvalidRequestError: An unknown field, a wrong type, a value out of range, or fields that do not go together.
    """
    fields = PrivacySettings.__dataclass_fields__
    checked: dict[str, Any] = {}
    for name, value in given.items():
        field = f"settings.privacy.{name}"
        if name not in fields:
            raise InvalidRequestError(field, expected=f"one of {', '.join(fields)}", got=name)
        checked[name] = _choice(field, name, value) if name in _CHOICES else _number(field, name, value)
    if checked.get("sampling") == "poisson":
        checked.setdefault("accountant", "pld")
    settings = PrivacySettings(**checked)
    if not settings.enabled and checked.keys() - {"mode"}:
        raise InvalidRequestError(
            "settings.privacy.mode", expected="central or local with the other fields", got=settings.mode
        )
    if settings.enabled:
        _check_together(settings)
    return settings


def check_compatible(
    settings: PrivacySettings,
    *,
    strategy: str,
    mode: str = "rounds",
    selection: str = "uniform",
    secure_aggregation: bool = False,
    norm_bound: float = 0.0,
) -> None:
    """Check privacy against the rest of a campaign.

    Args:
        settings: Of privacy.
        strategy: Its name.
        mode: "rounds" or "buffered".
        selection: "uniform" or "oort".
        secure_aggregation: Whether the control plane sees sums only.
        norm_bound: Of the rule that rejects updates by the other devices' norms; 0 is none.

    Raises:
        InvalidRequestError: The guarantee would not hold; ``field`` names what must change.
    """
    if not settings.enabled:
        return
    if settings.mode == "central" and strategy not in CENTRAL_STRATEGIES:
        raise InvalidRequestError(
            "strategy",
            expected=f"one of {', '.join(sorted(CENTRAL_STRATEGIES))} with central privacy",
            got=strategy,
        )
    if settings.mode == "distributed" and not secure_aggregation:
        raise InvalidRequestError(
            "settings.secure_aggregation",
            expected="true with distributed privacy, whose noise is in the sum",
            got=False,
        )
    if settings.mode in DEVICE_MODES and strategy in NOT_LOCAL:
        raise InvalidRequestError(
            "strategy", expected=f"one that needs nothing but updates with {settings.mode} privacy", got=strategy
        )
    if mode != "rounds":
        raise InvalidRequestError(
            "settings.mode", expected="rounds with privacy: a fast device would answer, and spend, more often", got=mode
        )
    if settings.mode == "central" and norm_bound:
        raise InvalidRequestError(
            "settings.norm_bound",
            expected="0 with central privacy, which clips instead: one device must not decide whether others count",
            got=norm_bound,
        )
    if selection != "uniform":
        raise InvalidRequestError(
            "settings.selection", expected="uniform with privacy: others look at the devices' losses", got=selection
        )


def _check_together(settings: PrivacySettings) -> None:
    if not settings.noise_multiplier and not settings.target_epsilon:
        raise InvalidRequestError(
            "settings.privacy.noise_multiplier", expected="above 0, or a target_epsilon above 0", got=0
        )
    if settings.mode in DEVICE_MODES and settings.clip != "fixed":
        raise InvalidRequestError(
            "settings.privacy.clip",
            expected=f"fixed with {settings.mode} privacy: norms do not leave the device",
            got=settings.clip,
        )
    if settings.mode in DEVICE_MODES and settings.sampling != "none":
        raise InvalidRequestError(
            "settings.privacy.sampling",
            expected=f"none with {settings.mode} privacy: who takes part is known",
            got=settings.sampling,
        )
    if settings.clip == "adaptive" and not 0.0 < settings.target_quantile < 1.0:
        raise InvalidRequestError(
            "settings.privacy.target_quantile", expected="above 0 and below 1", got=settings.target_quantile
        )
    if settings.sampling == "poisson" and settings.accountant == "exact":
        raise InvalidRequestError(
            "settings.privacy.accountant", expected="pld or rdp with poisson sampling", got="exact"
        )
    if settings.sampling == "none" and settings.sampling_probability != 1.0:
        raise InvalidRequestError(
            "settings.privacy.sampling_probability",
            expected="1 without sampling poisson",
            got=settings.sampling_probability,
        )


def _choice(field: str, name: str, value: object) -> str:
    if not isinstance(value, str) or value not in _CHOICES[name]:
        raise InvalidRequestError(field, expected=f"one of {', '.join(_CHOICES[name])}", got=value)
    return value


def _number(field: str, name: str, value: object) -> float:
    lowest, highest = BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise InvalidRequestError(field, expected=f"a number from {lowest:g} to {highest:g}", got=value)
    if not math.isfinite(value):
        raise InvalidRequestError(field, expected="a finite number", got=value)
    return float(value)
