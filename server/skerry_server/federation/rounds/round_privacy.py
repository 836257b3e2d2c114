"""Where a round meets the privacy of its campaign: fields to devices, the sum, what is journalled. No I/O.

Without privacy a strategy's own aggregation takes the updates; with central privacy a
:class:`~.privacy.PrivateSum` does, and nothing else sees them added up; with local privacy the devices have added the
noise, and every update weighs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skerry_contract.tensors import Array
from skerry_server.federation.privacy import PrivacyPlan, PrivacyState, PrivateSum
from skerry_server.federation.privacy.settings import DEVICE_MODES
from skerry_server.federation.settings import CampaignSettings
from skerry_server.federation.strategies.protocol import Aggregation, Contribution

State = dict[str, Array]

#: Name of the noise key among a campaign's secrets.
NOISE_KEY = "noise.key"


class RoundSum:
    """Takes the contributions of one round, into the strategy's aggregation or into a private sum."""

    def __init__(self, aggregation: Aggregation, private: PrivateSum | None) -> None:
        """``aggregation`` is the strategy's; with ``private`` nothing is added to it."""
        self.aggregation = aggregation
        self.private = private

    def add(self, contribution: Contribution, *, norm: float) -> None:
        """Add an update; ``norm`` is what the device says that it was before it clipped."""
        if self.private is not None:
            self.private.add(contribution.state, norm=norm)
        else:
            self.aggregation.add(contribution)

    def add_total(
        self, total: Mapping[str, Array], *, contributions: int, below: int, quantisation_step: float
    ) -> bool:
        """Take a sum of differences that secure aggregation unmasked; False, and not taken, without central privacy.

        See :meth:`~.privacy.PrivateSum.add_total`.
        """
        if self.private is None:
            return False
        self.private.add_total(total, contributions=contributions, below=below, quantisation_step=quantisation_step)
        return True

    def result(self) -> State:
        """What the strategy steps with; raises ValueError when too little was added."""
        return self.private.result() if self.private is not None else self.aggregation.result()


@dataclass(frozen=True)
class RoundPrivacy:
    """The privacy of one campaign, with its noise key.

    Attributes:
        plan: The rules.
        campaign_id: In the purpose of the noise.
        key: Makes the noise key when it is first needed.
    """

    plan: PrivacyPlan
    campaign_id: str
    key: Callable[[], bytes]

    @classmethod
    def of(
        cls, settings: CampaignSettings, campaign_id: str, secret: Callable[[str, Callable[[], bytes]], bytes]
    ) -> RoundPrivacy:
        """Of a campaign's settings; ``secret`` keeps the noise key as long as the campaign runs."""
        plan = PrivacyPlan.from_settings(settings.privacy, rounds=settings.rounds)
        return cls(plan, campaign_id, lambda: secret(NOISE_KEY, plan.new_key))

    def start(self, participants: int, *, minimum: int = 0) -> dict[str, float]:
        """Numbers that are carried into round 1; empty without privacy."""
        return self.plan.start(participants, minimum=minimum).numbers() if self.plan.enabled else {}

    def admit(self, carried: Mapping[str, float]) -> None:
        """Raise PrivacyBudgetError when no further round may begin."""
        if self.plan.enabled:
            self.plan.admit(PrivacyState.from_numbers(carried))

    def draw(self, devices: Sequence[str]) -> tuple[str, ...]:
        """Who may be asked in a round."""
        return self.plan.draw(devices) if self.plan.enabled else tuple(devices)

    def device_fields(self, carried: Mapping[str, float]) -> dict[str, Any]:
        """Fields of the instruction."""
        return self.plan.device_fields(PrivacyState.from_numbers(carried)) if self.plan.enabled else {}

    def sum(
        self,
        aggregation: Aggregation,
        model: Mapping[str, Array],
        carried: Mapping[str, float],
        *,
        personal: Sequence[str] = (),
    ) -> RoundSum:
        """What takes the round's contributions; ``personal`` parameters are neither summed nor noised."""
        if not self.plan.central:
            return RoundSum(aggregation, None)
        state = PrivacyState.from_numbers(carried)
        private = self.plan.aggregation(model, state, key=self.key(), campaign_id=self.campaign_id, personal=personal)
        return RoundSum(aggregation, private)

    def weigh(self, contribution: Contribution) -> Contribution:
        """With privacy every update weighs the same."""
        weight = self.plan.contribution_weight
        return contribution if weight is None else replace(contribution, weight=weight)

    def committed(self, carried: Mapping[str, float], taken: RoundSum) -> tuple[dict[str, float], dict[str, float]]:
        """Numbers that are carried on after a round, and its metrics."""
        if not self.plan.enabled:
            return {}, {}
        state = self.plan.committed(PrivacyState.from_numbers(carried), taken.private)
        return state.numbers(), self.plan.metrics(state)

    def skipped(self, carried: Mapping[str, float]) -> dict[str, float]:
        """Numbers that are carried on after a round without a model.

        Noise that devices added has been spent, whatever became of their sum; noise of the control plane is added to
        what is published, and nothing was.
        """
        if not self.plan.enabled:
            return {}
        state = PrivacyState.from_numbers(carried)
        device_noise = self.plan.settings.mode in DEVICE_MODES
        return (replace(state, rounds=state.rounds + 1) if device_noise else state).numbers()

    def lineage(self, carried: Mapping[str, float]) -> dict[str, Any]:
        """What the release says about its privacy; empty without."""
        return dict(self.plan.lineage(PrivacyState.from_numbers(carried))) if self.plan.enabled else {}
