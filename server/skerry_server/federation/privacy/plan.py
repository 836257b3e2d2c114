"""The privacy of one campaign, round by round.

A plan keeps nothing between rounds. What must survive is a :class:`PrivacyState`, a handful of numbers that are
journalled in the transaction that commits a round; a process that resumes reads them back and knows what was spent. A
round that was killed before its commit is made again: the journalled updates give the same integer sum, the campaign's
noise key gives the same noise for the same sum, so the same model comes out and nothing is spent twice. Should the
resumed round count another update, the noise is independent, and what the killed process had made was never published.

What epsilon covers: the models of the campaign. Loss, accuracy and counts that devices report go to the control plane
and its operators without noise in mode "central"; in the modes "local" and "distributed" the device sends none of them.

Mode "distributed": each of at least ``m`` devices adds noise of ``z C / sqrt(m)`` to its clipped update before it is
masked, so the unmasked sum of those that are left, never fewer than ``m``, carries ``z C`` or more. The neighbours are
a device's update and none from the same device (its noise stays), which leaves their number alone: the mean over who is
left is no further release. Rounded noise of many devices adds up to what one rounded draw would be as long as a share
is some steps of the grid and of the ring wide (arXiv 2102.06387); with 32 bits it is millions of them. Devices that
collude with the control plane can subtract their shares; what is left protects the others.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from skerry_contract.gaussian import KEY_BYTES
from skerry_contract.tensors import Array
from skerry_server.errors import InvalidRequestError, SkerryError
from skerry_server.federation.privacy.accountant import ACCOUNTANTS, Spending, noise_multiplier_for
from skerry_server.federation.privacy.adaptive import AdaptiveClip
from skerry_server.federation.privacy.private_sum import PrivateSum
from skerry_server.federation.privacy.settings import PrivacySettings, parse_privacy

#: A budget is passed when epsilon is this much above it: the search for the multiplier ends below it, not at it.
_ROUNDING = 1e-9
_RELATIONS = {"central": "add-or-remove", "local": "replace", "distributed": "zero-out"}
#: Prefix of a plan's figures among a round's metrics.
PREFIX = "privacy_"


class PrivacyBudgetError(SkerryError):
    """The next round would spend more than the campaign may; it must not start.

    Attributes:
        spent: Epsilon so far.
        next_epsilon: Epsilon after the round.
        budget: Epsilon that was allowed.
    """

    def __init__(self, round_number: int, spent: float, next_epsilon: float, budget: float, delta: float) -> None:
        self.spent = spent
        self.next_epsilon = next_epsilon
        self.budget = budget
        super().__init__(
            f"round {round_number} would spend epsilon {next_epsilon:.4g} of {budget:.4g} at delta {delta:g}; "
            f"{spent:.4g} is spent"
        )


@dataclass(frozen=True)
class PrivacyState:
    """What is journalled with a round.

    Attributes:
        participants: Devices that the campaign planned with: the fixed divisor; in mode "distributed" the fewest
            devices of a sum.
        noise_multiplier: Per round.
        clip_norm: Of the next round.
        rounds: Released so far.
    """

    participants: int
    noise_multiplier: float
    clip_norm: float
    rounds: int

    def numbers(self) -> dict[str, float]:
        """Flat form, for the journal."""
        return {PREFIX + name: float(value) for name, value in asdict(self).items()}

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, float]) -> PrivacyState:
        """Read what :meth:`numbers` wrote; other entries are ignored.

        Raises:
            ValueError: An entry is missing or impossible. Nothing is assumed: what was spent must not be forgotten.
        """
        try:
            values = {name: float(numbers[PREFIX + name]) for name in cls.__dataclass_fields__}
        except KeyError as error:
            raise ValueError(f"the journal has no {error.args[0]}: what was spent is not known") from error
        whole = all(values[name].is_integer() for name in ("participants", "rounds"))
        if not whole or values["participants"] < 1 or values["rounds"] < 0:
            raise ValueError("the journal's counts of participants and rounds are no counts")
        if not (0 < values["noise_multiplier"] < math.inf and 0 < values["clip_norm"] < math.inf):
            raise ValueError("the journal's noise multiplier and clipping norm must be positive")
        return cls(
            participants=int(values["participants"]),
            noise_multiplier=values["noise_multiplier"],
            clip_norm=values["clip_norm"],
            rounds=int(values["rounds"]),
        )


@dataclass(frozen=True)
class PrivacyPlan:
    """Rules of one campaign; pure but for :meth:`draw` and :meth:`new_key`.

    Attributes:
        settings: As chosen.
        rounds: That the campaign plans.
    """

    settings: PrivacySettings
    rounds: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], *, rounds: int) -> PrivacyPlan:
        """Make the plan of ``CampaignSettings.privacy``; raises InvalidRequestError."""
        return cls(parse_privacy(settings), rounds)

    @property
    def enabled(self) -> bool:
        """False: there is no privacy, and nothing else of the plan may be used."""
        return self.settings.enabled

    @property
    def central(self) -> bool:
        """Whether the control plane must sum with :meth:`aggregation` and nothing else."""
        return self.settings.mode == "central"

    @property
    def contribution_weight(self) -> float | None:
        """Weight of every update: 1 with privacy, None without (then the number of examples)."""
        return 1.0 if self.enabled else None

    @staticmethod
    def new_key() -> bytes:
        """A fresh noise key; one per campaign, kept secret as long as the campaign runs, destroyed after it."""
        return secrets.token_bytes(KEY_BYTES)

    def start(self, participants: int, *, minimum: int = 0) -> PrivacyState:
        """The state before round 1.

        Args:
            participants: Devices whose updates a round plans with; with Poisson sampling the devices that are drawn
                from, of which the expected number is planned with.
            minimum: Fewest devices of which a round may be made; counts in mode "distributed".

        Raises:
            InvalidRequestError: No noise meets the target, or adaptive clipping leaves none for the updates.
        """
        try:
            multiplier = self.settings.noise_multiplier or noise_multiplier_for(self.settings, self.rounds)
            planned = max(1, round(participants * self.settings.sampling_probability))
            if self.settings.mode == "distributed":
                planned = max(1, minimum)
            state = PrivacyState(planned, multiplier, self.settings.clip_norm, 0)
            self._adaptive(state)
        except ValueError as error:
            raise InvalidRequestError("settings.privacy", expected=str(error), got=self.settings.as_dict()) from error
        return state

    def admit(self, state: PrivacyState) -> None:
        """Raise PrivacyBudgetError when another round would pass the budget."""
        budget = self.settings.target_epsilon
        following = self.epsilon(replace(state, rounds=state.rounds + 1)) if budget else 0.0
        if budget and following > budget * (1 + _ROUNDING):
            raise PrivacyBudgetError(state.rounds + 1, self.epsilon(state), following, budget, self.settings.delta)

    def draw(self, devices: Sequence[str]) -> tuple[str, ...]:
        """Who is asked in a round: each device by itself with the sampling probability; everybody without sampling."""
        if self.settings.sampling != "poisson":
            return tuple(devices)
        source = secrets.SystemRandom()
        return tuple(device for device in devices if source.random() < self.settings.sampling_probability)

    def device_fields(self, state: PrivacyState) -> dict[str, float]:
        """Fields of :class:`~skerry_contract.campaign.TrainInstruction` for the round that starts.

        Local noise: what a device may hide behind is any other update, at a distance of at most two clipping norms, so
        the standard deviation is the multiplier times ``2 C``. Distributed noise: a share, see the module.
        """
        full = state.clip_norm * state.noise_multiplier
        shares = {"local": 2 * full, "distributed": full / math.sqrt(state.participants)}
        return {"clip_norm": state.clip_norm, "noise_std": shares.get(self.settings.mode, 0.0)}

    def aggregation(
        self,
        model: Mapping[str, Array],
        state: PrivacyState,
        *,
        key: bytes,
        campaign_id: str,
        personal: Sequence[str] = (),
    ) -> PrivateSum:
        """What sums a round of mode "central"; its result is the mean that the strategy steps with.

        Args:
            model: What the devices start from.
            state: Before the round.
            key: The campaign's, of :meth:`new_key`.
            campaign_id: Keeps the noise of campaigns apart.
            personal: Shell patterns of parameters that stay on the devices.
        """
        return PrivateSum(
            model,
            clip_norm=state.clip_norm,
            noise_multiplier=self._sum_multiplier(state),
            divisor=state.participants,
            key=key,
            purpose=f"{campaign_id}/{state.rounds + 1}".encode(),
            personal=personal,
        )

    def committed(self, state: PrivacyState, aggregation: PrivateSum | None = None) -> PrivacyState:
        """The state after a round, to be journalled with it.

        Args:
            state: Before it.
            aggregation: Of the round; needed with adaptive clipping.
        """
        clip_norm = state.clip_norm
        adaptive = self._adaptive(state)
        if adaptive is not None:
            if aggregation is None:
                raise ValueError("adaptive clipping needs the round's aggregation")
            share = adaptive.share(aggregation.below, aggregation.contributions, aggregation.count_deviate())
            clip_norm = adaptive.next(clip_norm, share)
        return replace(state, clip_norm=clip_norm, rounds=state.rounds + 1)

    def epsilon(self, state: PrivacyState) -> float:
        """Spent so far, at ``settings.delta``."""
        spending = Spending(state.noise_multiplier, state.rounds, self.settings.sampling_probability)
        return ACCOUNTANTS[self.settings.accountant](spending, self.settings.delta)

    def metrics(self, state: PrivacyState) -> dict[str, float]:
        """Figures of a committed round: the state, so that it can be read back, and what is spent."""
        return {**state.numbers(), PREFIX + "epsilon": self.epsilon(state), PREFIX + "delta": self.settings.delta}

    def lineage(self, state: PrivacyState) -> dict[str, float | int | str]:
        """What a release made by the campaign says about its privacy, in lineage and model card."""
        settings = self.settings
        return {
            "mode": settings.mode,
            "clip": settings.clip,
            "clip_norm": state.clip_norm,
            "noise_multiplier": state.noise_multiplier,
            "delta": settings.delta,
            "epsilon": self.epsilon(state),
            "accountant": settings.accountant,
            "sampling": settings.sampling,
            "sampling_probability": settings.sampling_probability,
            "rounds": state.rounds,
            "adjacency": "client",
            "relation": _RELATIONS[settings.mode],
        }

    def _adaptive(self, state: PrivacyState) -> AdaptiveClip | None:
        if self.settings.clip != "adaptive":
            return None
        return AdaptiveClip.of(
            quantile=self.settings.target_quantile,
            rate=self.settings.clip_learning_rate,
            count_std=self.settings.count_std,
            noise_multiplier=state.noise_multiplier,
            participants=state.participants,
        )

    def _sum_multiplier(self, state: PrivacyState) -> float:
        adaptive = self._adaptive(state)
        return adaptive.sum_multiplier if adaptive is not None else state.noise_multiplier
