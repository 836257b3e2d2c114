"""From the base model to the result: rounds, resumption, measurement on the devices. No flwr, no MLflow, no torch.

What is committed is never done again: a run that starts after a kill continues behind the last committed round and
counts the updates that the round in progress had already journalled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from skerry_contract.campaign import EVALUATE, TRAIN, EvaluateInstruction, EvaluateReply, TrainInstruction
from skerry_contract.errors import WireError
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_server.federation.exchange import Broadcast, Exchange, ExchangeLostError
from skerry_server.federation.journal import CampaignJournal, JournalledUpdate, RoundRecord, State
from skerry_server.federation.round_loop import Collected, Resolve, RoundCollector, RoundFailedError, RoundRules
from skerry_server.federation.selection import best_round
from skerry_server.federation.settings import CampaignSettings
from skerry_server.federation.strategies import Strategy
from skerry_server.federation.updates import UpdateRejectedError, read_update

logger = logging.getLogger(__name__)

#: How often a run is opened anew without a round in between before the campaign's process gives up.
OPENINGS = 5
#: Longest wait for the devices' measurements at the end (seconds).
EVALUATION_DEADLINE_S = 60.0


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign is to do.

    Attributes:
        campaign_id: Its name.
        task: What is learned.
        settings: As started.
        participants: Devices that accepted.
        train_step_sha256: Hexadecimal digest of the train step that they must use.
        base: Wire form of the base release's parameters.
        incident_devices: Devices of the incident that the campaign answers; empty without one.
    """

    campaign_id: str
    task: str
    settings: CampaignSettings
    participants: tuple[str, ...]
    train_step_sha256: str
    base: bytes
    incident_devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Holdout:
    """How good a model is on the server's holdout: accuracy, macro F1, mean cross entropy."""

    accuracy: float
    macro_f1: float
    loss: float


class Opening(Protocol):
    """Opens an exchange: a Flower run."""

    def __call__(self) -> AbstractContextManager[Exchange]:
        """Raises ExchangeLostError."""
        ...


@dataclass(frozen=True)
class CampaignResult:
    """How a campaign ended.

    Attributes:
        best: The round whose model is the result.
        rounds: How many were committed.
        metrics: Flat name to number, for the candidate.
    """

    best: RoundRecord
    rounds: int
    metrics: dict[str, float]


class CampaignRun:
    """Carries out one plan; one thread."""

    def __init__(
        self,
        plan: CampaignPlan,
        strategy: Strategy,
        journal: CampaignJournal,
        *,
        open_exchange: Opening,
        resolve: Callable[[Exchange], Resolve],
        evaluate: Callable[[Mapping[str, object]], Holdout],
        on_round: Callable[[RoundRecord], None],
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare.

        Args:
            plan: What to do.
            strategy: How updates become a model.
            journal: What survives.
            open_exchange: Opens a run; called again when one is lost.
            resolve: Gives, for an exchange, the devices with their nodes.
            evaluate: Measures a state on the holdout.
            on_round: Hears of each committed round, also of those committed before a resumption.
            check: Raises when the campaign must end.
            clock: Seconds.
            sleep: Waits.
        """
        self._plan = plan
        self._strategy = strategy
        self._journal = journal
        self._open_exchange = open_exchange
        self._resolve = resolve
        self._evaluate = evaluate
        self._on_round = on_round
        self._check = check
        self._clock = clock
        self._sleep = sleep
        self._base: State = decode_bundle(plan.base)

    def run(self) -> CampaignResult:
        """Do every round that is missing, measure on the devices, choose.

        Raises:
            RoundFailedError: A round did not reach its quorum.
            ExchangeLostError: No run could be kept open.
        """
        for record in self._journal.rounds():
            self._on_round(record)
        base = self._evaluate(self._base)
        openings = 0
        while True:
            done = len(self._journal.rounds())
            try:
                with self._open_exchange() as exchange:
                    self._train(exchange)
                    return self._conclude(exchange, base)
            except ExchangeLostError as error:
                openings = 1 if len(self._journal.rounds()) > done else openings + 1
                if openings >= OPENINGS:
                    raise
                logger.warning("the run was lost (%s); a new one continues behind round %d", error, done)
                self._sleep(min(10.0, 0.5 * 2.0**openings))

    def _collector(self, exchange: Exchange) -> RoundCollector:
        return RoundCollector(
            exchange, self._resolve(exchange), clock=self._clock, sleep=self._sleep, check=self._check
        )

    def _train(self, exchange: Exchange) -> None:
        rounds = self._journal.rounds()
        model = self._journal.load(rounds[-1].parameters_sha256) if rounds else self._base
        for number in range(len(rounds) + 1, self._plan.settings.rounds + 1):
            model = self._round(exchange, number, model)

    def _round(self, exchange: Exchange, number: int, model: State) -> State:
        settings = self._plan.settings
        started = self._clock()
        aggregation = self._strategy.aggregation(model)
        already: list[str] = []
        for recorded in self._journal.recorded(number):
            state = self._journal.load_update(number, recorded)
            if state is None:
                self._journal.forget(number, recorded.device_id)
                continue
            aggregation.add(state, recorded.examples)
            already.append(recorded.device_id)

        def accept(device_id: str, fields: Mapping[str, object]) -> None:
            update = read_update(fields, device_id=device_id, model=model)
            self._journal.record(number, update)
            aggregation.add(update.state, update.examples)

        rules = RoundRules(
            quorum=settings.quorum_count(len(self._plan.participants)), deadline_s=settings.round_deadline_ms / 1000
        )
        collected = self._collector(exchange).collect(
            self._train_broadcast(number, model), rules, accept, already=tuple(already)
        )
        trained = aggregation.result()
        record = self._commit(number, trained, collected, self._clock() - started)
        self._on_round(record)
        return trained

    def _train_broadcast(self, number: int, model: State) -> Broadcast:
        plan, settings = self._plan, self._plan.settings
        instruction = TrainInstruction(
            campaign_id=plan.campaign_id,
            round=number,
            task=plan.task,
            train_step_sha256=plan.train_step_sha256,
            local_epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            proximal_mu=self._strategy.proximal_mu(number),
            minimum_samples=settings.minimum_samples,
            deadline_ms=settings.round_deadline_ms,
            seed=settings.seed * 1_000_003 + number,
            parameters=encode_bundle(model),
        )
        return Broadcast(TRAIN, str(number), instruction.to_fields(), settings.round_deadline_ms / 1000)

    def _commit(self, number: int, trained: State, collected: Collected, collecting_s: float) -> RoundRecord:
        started = self._clock()
        holdout = self._evaluate(trained)
        updates = self._journal.recorded(number)
        examples = sum(update.examples for update in updates)
        metrics = {
            "macro_f1": holdout.macro_f1,
            "holdout_loss": holdout.loss,
            "examples": float(examples),
            "failed_devices": float(len(collected.failures)),
            "dropped_replies": float(collected.dropped),
            "collecting_seconds": collecting_s,
            "device_seconds": max((update.metrics["seconds"] for update in updates), default=0.0),
        }
        before = _mean_accuracy(updates)
        if before is not None:
            metrics["device_accuracy_before"] = before
        record = self._journal.commit(
            number=number,
            invited=len(collected.asked),
            accepted=len(updates),
            accuracy=holdout.accuracy,
            loss=sum(update.metrics["loss"] * update.examples for update in updates) / examples,
            seconds=collecting_s + self._clock() - started,
            state=trained,
            metrics=metrics,
        )
        logger.info(
            "round %d: %d of %d devices, accuracy %.4f, loss %.4f, %.2f s",
            number,
            record.accepted,
            record.invited,
            record.accuracy,
            record.loss,
            record.seconds,
        )
        return record

    def _conclude(self, exchange: Exchange, base: Holdout) -> CampaignResult:
        rounds = self._journal.rounds()
        last = rounds[-1]
        cohort: dict[int, float] = {}
        measured: dict[int, dict[str, float]] = {0: self._measure(exchange, 0, self._plan.base)}
        if self._plan.incident_devices:
            measured[last.number] = self._measure_round(exchange, last)
            cohort = self._cohort_figures(rounds, measured[last.number])
        best = best_round(rounds, base_accuracy=base.accuracy, cohort_accuracy=cohort)
        if best.number not in measured:
            measured[best.number] = self._measure_round(exchange, best)
        metrics = {
            "holdout_accuracy": best.accuracy,
            "holdout_accuracy_champion": base.accuracy,
            "rounds": float(len(rounds)),
            "best_round": float(best.number),
            **self._device_metrics(measured[0], measured[best.number]),
        }
        return CampaignResult(best, len(rounds), metrics)

    def _measure_round(self, exchange: Exchange, record: RoundRecord) -> dict[str, float]:
        return self._measure(exchange, record.number, encode_bundle(self._journal.load(record.parameters_sha256)))

    def _measure(self, exchange: Exchange, number: int, parameters: bytes) -> dict[str, float]:
        """Accuracy of a model on the validation split of each device that answers; empty when too few do."""
        answers: dict[str, float] = {}

        def accept(device_id: str, fields: Mapping[str, object]) -> None:
            try:
                reply = EvaluateReply.from_fields(fields)
            except WireError as error:
                raise UpdateRejectedError(str(error)) from error
            if reply.device_id != device_id:
                raise UpdateRejectedError(f"device {reply.device_id} answered for {device_id}")
            answers[device_id] = reply.accuracy

        deadline_s = min(EVALUATION_DEADLINE_S, self._plan.settings.round_deadline_ms / 1000)
        instruction = EvaluateInstruction(
            campaign_id=self._plan.campaign_id,
            round=number,
            task=self._plan.task,
            train_step_sha256=self._plan.train_step_sha256,
            model="result" if number else "base",
            deadline_ms=int(deadline_s * 1000),
            parameters=parameters,
        )
        broadcast = Broadcast(EVALUATE, f"evaluate-{number}", instruction.to_fields(), deadline_s)
        rules = RoundRules(quorum=self._plan.settings.quorum_count(len(self._plan.participants)), deadline_s=deadline_s)
        try:
            self._collector(exchange).collect(broadcast, rules, accept)
        except RoundFailedError as error:
            logger.warning("the model of round %d was not measured by enough devices: %s", number, error)
        return answers

    def _cohort_figures(self, rounds: list[RoundRecord], last: Mapping[str, float]) -> dict[int, float]:
        """Round to mean accuracy on the incident's devices.

        A device measures the model that it is about to train, so round r + 1's updates judge round r's model.
        """
        figures: dict[int, float] = {}
        for record in rounds[:-1]:
            judged = [
                update
                for update in self._journal.recorded(record.number + 1)
                if update.device_id in self._plan.incident_devices
            ]
            mean = _mean_accuracy(judged)
            if mean is not None:
                figures[record.number] = mean
        of_incident = [accuracy for device, accuracy in last.items() if device in self._plan.incident_devices]
        if of_incident:
            figures[rounds[-1].number] = sum(of_incident) / len(of_incident)
        return figures

    def _device_metrics(self, base: Mapping[str, float], result: Mapping[str, float]) -> dict[str, float]:
        """Mean accuracy over the devices that measured both models; the incident's devices apart, for the gates."""
        both = sorted(base.keys() & result.keys())
        metrics: dict[str, float] = {}
        for devices, ours, champion in (
            (both, "device_accuracy", "champion_device_accuracy"),
            ([d for d in both if d in self._plan.incident_devices], "accuracy_drifted", "champion_accuracy_drifted"),
        ):
            if devices:
                metrics[ours] = sum(result[device] for device in devices) / len(devices)
                metrics[champion] = sum(base[device] for device in devices) / len(devices)
        metrics["measuring_devices"] = float(len(both))
        return metrics


def _mean_accuracy(updates: list[JournalledUpdate]) -> float | None:
    """Mean over devices of the accuracy of the model before the round; None when no device measured."""
    figures = [
        update.metrics["validation_accuracy"] for update in updates if update.metrics.get("validation_examples", 0) > 0
    ]
    return sum(figures) / len(figures) if figures else None
