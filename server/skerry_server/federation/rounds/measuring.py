"""How good models are on the devices themselves: asked at the end, or read from what updates say. No flwr, no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from skerry_contract.campaign import EVALUATE, EvaluateInstruction
from skerry_contract.tensors import encode_bundle
from skerry_server.federation.exchange import Broadcast, Exchange
from skerry_server.federation.privacy.settings import DEVICE_MODES
from skerry_server.federation.rounds import personal_comparison
from skerry_server.federation.rounds.journal import CampaignJournal, RoundRecord
from skerry_server.federation.rounds.round_loop import Resolve, RoundCollector, RoundFailedError, RoundRules
from skerry_server.federation.rounds.round_metrics import mean_accuracy
from skerry_server.federation.rounds.updates import read_evaluation
from skerry_server.federation.rounds.workshop import CampaignPlan

logger = logging.getLogger(__name__)

#: Longest wait for the devices' measurements at the end (seconds).
EVALUATION_DEADLINE_S = 60.0


class DeviceMeasurer:
    """Asks devices to measure models; one thread."""

    def __init__(
        self,
        plan: CampaignPlan,
        journal: CampaignJournal,
        exchange: Exchange,
        resolve: Resolve,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See :class:`~.round_loop.RoundCollector` for the last five."""
        self._plan = plan
        self._journal = journal
        self._collector = RoundCollector(exchange, resolve, clock=clock, sleep=sleep, check=check)
        self._personal: dict[int, dict[str, tuple[float, float]]] = {}

    def measure_base(self) -> dict[str, float]:
        """Device to accuracy of the base model on its validation split; empty when too few answer.

        It is the last question of a campaign, and says so.

        Where devices add noise nobody is asked: a figure of their own data would leave them without it.
        """
        return self._measure(0, self._plan.base)

    def measure(self, record: RoundRecord) -> dict[str, float]:
        """Likewise of the model of a round."""
        return self._measure(record.number, encode_bundle(self._journal.load(record.parameters_sha256)))

    def personal(self, record: RoundRecord) -> dict[str, float]:
        """How the devices' own models compare with the model of a round that was measured; empty where none has one."""
        return personal_comparison.figures(self._personal.get(record.number, {}).values())

    def _measure(self, number: int, parameters: bytes) -> dict[str, float]:
        answers: dict[str, float] = {}
        own = self._personal.setdefault(number, {})
        if self._plan.settings.privacy.get("mode") in DEVICE_MODES:
            return answers

        def accept(device_id: str, fields: Mapping[str, object]) -> None:
            reply = read_evaluation(fields, device_id=device_id)
            answers[device_id] = reply.accuracy
            if reply.personal_accuracy >= 0 and device_id not in self._plan.gateways:
                own[device_id] = (reply.accuracy, reply.personal_accuracy)

        settings = self._plan.settings
        deadline_s = min(EVALUATION_DEADLINE_S, settings.round_deadline_ms / 1000)
        instruction = EvaluateInstruction(
            campaign_id=self._plan.campaign_id,
            round=number,
            task=self._plan.task,
            train_step_sha256=self._plan.train_step_sha256,
            model="result" if number else "base",
            last=0 if number else 1,
            deadline_ms=int(deadline_s * 1000),
            parameters=parameters,
        )
        broadcast = Broadcast(EVALUATE, f"evaluate-{number}", instruction.to_fields(), deadline_s)
        rules = RoundRules(
            quorum=settings.quorum_count(len(self._plan.participants)),
            deadline_s=deadline_s,
            grace_factor=settings.grace_factor,
        )
        try:
            self._collector.collect(broadcast, rules, accept)
        except RoundFailedError as error:
            logger.warning("the model of round %d was not measured by enough devices: %s", number, error)
        return answers


def cohort_figures(
    journal: CampaignJournal, rounds: Sequence[RoundRecord], last: Mapping[str, float], devices: Sequence[str]
) -> dict[int, float]:
    """Round to mean accuracy on some devices.

    A device measures the model that it is about to train, so round r + 1's updates judge round r's model.

    Args:
        journal: With the updates.
        rounds: Committed ones.
        last: Device to accuracy of the last round's model, which no update judges.
        devices: The ones that matter.
    """
    figures: dict[int, float] = {}
    for record in rounds[:-1]:
        judged = [update for update in journal.recorded(record.number + 1) if update.device_id in devices]
        mean = mean_accuracy(judged)
        if mean is not None:
            figures[record.number] = mean
    of_devices = [accuracy for device, accuracy in last.items() if device in devices]
    if of_devices:
        figures[rounds[-1].number] = sum(of_devices) / len(of_devices)
    return figures


def device_metrics(
    base: Mapping[str, float],
    result: Mapping[str, float],
    incident_devices: Sequence[str],
    gateways: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Mean accuracy over the devices that measured both models; the incident's devices apart, for the gates.

    What a gateway of ``gateways`` tells is a mean of its devices and weighs as much as they do.
    """
    sizes = {name: len(members) for name, members in (gateways or {}).items()}
    both = sorted(base.keys() & result.keys())
    metrics: dict[str, float] = {}
    for devices, ours, champion in (
        (both, "device_accuracy", "champion_device_accuracy"),
        ([device for device in both if device in incident_devices], "accuracy_drifted", "champion_accuracy_drifted"),
    ):
        if devices:
            weights = [sizes.get(device, 1) for device in devices]
            for name, figures in ((ours, result), (champion, base)):
                total = sum(figures[device] * weight for device, weight in zip(devices, weights, strict=True))
                metrics[name] = total / sum(weights)
    metrics["measuring_devices"] = float(sum(sizes.get(device, 1) for device in both))
    return metrics
