"""One round from its opening to its commit, whoever brings the updates: synchronous, buffered or secure.

An update is checked, journalled and then added, in this order: whatever was added is journalled. A round that is opened
again adds what its journal has, in the order in which it came, before anybody is asked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from skerry_contract.campaign import TrainInstruction
from skerry_contract.counted import COUNTED_DEVICES, encode_counted
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_server.federation.rounds import budget, downlink, round_metrics
from skerry_server.federation.rounds.carried import Carried
from skerry_server.federation.rounds.journal import BASE_ROUND, SKIPPED, JournalledUpdate, RoundRecord, State
from skerry_server.federation.rounds.phases import Phases
from skerry_server.federation.rounds.round_loop import Collected, RoundFailedError
from skerry_server.federation.rounds.round_privacy import RoundSum
from skerry_server.federation.rounds.updates import (
    PLAIN_WIRE,
    SITE_DEVICES,
    Expectation,
    NormBound,
    Payload,
    Update,
    UpdateRejectedError,
    open_payload,
    read_update,
    rebase,
)
from skerry_server.federation.rounds.workshop import Version, Workshop
from skerry_server.federation.strategies.protocol import Contribution

logger = logging.getLogger(__name__)

#: Wire of a journalled sum of a secure round.
SUM_WIRE = "sum"
#: Who a journalled sum is of.
SUM_NAME = "secure-sum"


class OpenRound:
    """A round that takes updates; for one thread."""

    def __init__(self, workshop: Workshop, start: Version, *, model_of: Callable[[int], State]) -> None:
        """Open round ``start.number + 1``; :meth:`replay` is called before anything is taken.

        Args:
            workshop: What it is made with.
            start: What it starts from.
            model_of: The model of an earlier version, for updates that come late (buffered).
        """
        self.number = start.number + 1
        self.start = start
        self.privacy = workshop.privacy
        self._workshop = workshop
        self._model_of = model_of
        self._began = workshop.clock()
        self.phases = Phases(clock=workshop.clock, on_phase=lambda phase: workshop.on_phase(self.number, phase))
        strategy, carried = workshop.strategy, start.carried
        self._rules = strategy.local_rules(self.number, start.model)
        self._control = strategy.control(start.model, carried.strategy) if self._rules.control else None
        self._scratch = workshop.journal.scratch(self.number)
        self._aggregation = strategy.aggregation(start.model, carried.strategy, scratch=self._scratch)
        self._sum: RoundSum = workshop.privacy.sum(
            self._aggregation, start.model, carried.privacy, personal=self._rules.personal
        )
        earlier = workshop.journal.recorded(start.number) if start.number and workshop.plan.settings.norm_bound else []
        self._norms = NormBound(
            workshop.plan.settings.norm_bound,
            [update.metrics["norm"] for update in earlier if "norm" in update.metrics],
        )
        self._rejected_bytes = 0
        #: Devices whose update counts, in the order of arrival.
        self.accepted: list[str] = []

    def close(self) -> None:
        """Free what the aggregation holds; harmless when called again."""
        self._aggregation.close()

    def replay(self) -> None:
        """Add what the journal has of this round."""
        journal = self._workshop.journal
        for recorded in journal.recorded(self.number):
            self.phases.check()
            payload = journal.load_update(self.number, recorded)
            update = None if payload is None else self._reopen(recorded, payload)
            if update is None:
                journal.forget(self.number, recorded.device_id)
                continue
            if "norm" in update.metrics:
                self._norms.known(update.metrics["norm"])
            self._add(update)

    def _reopen(self, recorded: JournalledUpdate, payload: Payload) -> Update | None:
        """A journalled update as it was when it was accepted; None when it does not fit any more."""
        if payload.wire == SUM_WIRE:
            state = decode_bundle(payload.parameters)
            return Update(recorded.device_id, recorded.examples, state, payload, recorded.metrics)
        model = self._base_model(recorded.metrics)
        try:
            state, control = open_payload(payload, self._expectation(model))
        except UpdateRejectedError as error:
            logger.warning("the journalled update of %s cannot be read: %s", recorded.device_id, error.reason)
            return None
        return Update(recorded.device_id, recorded.examples, state, payload, recorded.metrics, control)

    def _base_model(self, metrics: Mapping[str, float]) -> State:
        base = int(metrics.get(BASE_ROUND, self.start.number))
        return self.start.model if base == self.start.number else self._model_of(base)

    def _expectation(self, model: State) -> Expectation:
        wire = self._workshop.plan.settings.wire
        return Expectation(model, (PLAIN_WIRE, wire), self._rules.personal, self._control)

    def instruction(self) -> TrainInstruction:
        """What the devices are told, with the whole model."""
        plan, settings = self._workshop.plan, self._workshop.plan.settings
        counted: Mapping[str, int] = {}
        if (settings.wire != PLAIN_WIRE or self._control is not None) and len(plan.participants) <= COUNTED_DEVICES:
            counted = {**dict.fromkeys(plan.participants, 0), **self._workshop.journal.counted()}
            counted = {device: counted[device] for device in plan.participants}
        return TrainInstruction(
            campaign_id=plan.campaign_id,
            round=self.number,
            task=plan.task,
            train_step_sha256=plan.train_step_sha256,
            local_epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            proximal_mu=self._rules.proximal_mu,
            minimum_samples=settings.minimum_samples,
            deadline_ms=settings.round_deadline_ms,
            seed=settings.seed * 1_000_003 + self.number,
            parameters=encode_bundle(self.start.model),
            wire=settings.wire,
            density=settings.density,
            control=encode_bundle(self._control) if self._control is not None else b"",
            personal="\n".join(self._rules.personal),
            counted=encode_counted(plan.campaign_id, counted) if counted else b"",
            **self._workshop.privacy.device_fields(self.start.carried.privacy),
        )

    def take(self, device_id: str, fields: Mapping[str, object], *, base: int | None = None, sent: int = 0) -> None:
        """Check, journal and add the answer of a device.

        Args:
            device_id: Who was asked.
            fields: What came.
            base: Version that it was asked to start from; None: that of this round.
            sent: Bytes that it was sent.

        Raises:
            UpdateRejectedError: It does not count, and nothing was changed.
        """
        base = self.start.number if base is None else base
        expected = self._expectation(self._base_model({BASE_ROUND: float(base)}))
        try:
            update = read_update(
                fields,
                device_id=device_id,
                model=expected.model,
                wires=expected.wires,
                personal=expected.personal,
                control=expected.control,
                site=self._workshop.plan.gateways.get(device_id, ()),
            )
            self._norms.check(update.metrics["norm"])
        except UpdateRejectedError:
            self._rejected_bytes += round_metrics.size(fields)
            raise
        staleness = float(self.start.number - base)
        update.metrics.update({BASE_ROUND: float(base), "staleness": staleness, "bytes_down": float(sent)})
        self._workshop.journal.record(self.number, update)
        self._add(update)

    def take_sum(
        self,
        total: Mapping[str, Array],
        *,
        weight: float,
        examples: int,
        members: Sequence[str],
        metrics: dict[str, float],
    ) -> None:
        """Journal and add a sum of differences that nobody sees the parts of.

        Args:
            total: Sum of weight times difference, by name; floating-point tensors. What is left out did not change.
            weight: Sum of the weights, above 0.
            examples: Samples behind it, at least 1.
            members: Devices that it is of.
            metrics: Figures of the round: "loss", "steps", "seconds", and what else there is.
        """
        payload = Payload(SUM_WIRE, encode_bundle({name: np.asarray(array) for name, array in total.items()}))
        figures = {"loss": 0.0, "steps": 1.0, "seconds": 0.0, "validation_examples": 0.0, **metrics}
        figures.update({"weight": weight, "devices": float(len(members)), BASE_ROUND: float(self.start.number)})
        update = Update(SUM_NAME, examples, dict(total), payload, figures, members=tuple(members))
        self._workshop.journal.record(self.number, update)
        self._add(update)

    def _add(self, update: Update) -> None:
        if update.payload.wire == SUM_WIRE:
            self._add_sum(update)
        else:
            base = int(update.metrics.get(BASE_ROUND, self.start.number))
            contribution = self._workshop.privacy.weigh(
                Contribution(
                    device_id=update.device_id,
                    examples=update.examples,
                    steps=int(update.metrics["steps"]) or 1,
                    loss=max(0.0, update.metrics["loss"]),
                    state=rebase(update.state, old=self._base_model(update.metrics), new=self.start.model),
                    control=update.control,
                    staleness=self.start.number - base,
                    starting_loss=_starting_loss(update.metrics),
                )
            )
            if contribution.weight is not None:  # every device weighs the same, also those that a gateway summed for
                devices = update.metrics.get(SITE_DEVICES, 1.0)
                contribution = replace(contribution, weight=contribution.weight * devices)
            self._sum.add(contribution, norm=update.metrics.get("reported_norm", 0.0))
        self.accepted.append(update.device_id)

    def _add_sum(self, update: Update) -> None:
        model, weight = self.start.model, update.metrics["weight"]
        devices = int(update.metrics["devices"])
        if self._sum.add_total(
            update.state,
            contributions=devices,
            below=round(devices * update.metrics.get("within_norm_share", 0.0)),
            quantisation_step=update.metrics.get("quantisation_step", 0.0),
        ):
            return
        mean: State = dict(model)
        for name, total in update.state.items():
            mean[name] = (model[name].astype(np.float64) + total.astype(np.float64) / weight).astype(model[name].dtype)
        self._sum.add(
            Contribution(
                device_id=update.device_id,
                examples=update.examples,
                steps=int(update.metrics["steps"]) or 1,
                loss=max(0.0, update.metrics["loss"]),
                state=mean,
                weight=weight,
            ),
            norm=0.0,
        )

    def finish(self, collected: Collected, sent_bytes: Mapping[str, int]) -> tuple[RoundRecord, Version]:
        """Aggregate, evaluate, commit.

        Args:
            collected: How the collecting went.
            sent_bytes: Device to bytes that it was sent in this round.

        Raises:
            ValueError: Fewer updates than the strategy needs.
            PhaseOverrunError: A phase took too long; nothing was committed.
        """
        workshop, settings, start = self._workshop, self._workshop.plan.settings, self.start
        with self.phases.phase("aggregate"):
            result = self._sum.result()
            trained, strategy_state = workshop.strategy.step(
                self.number, start.model, result, self._aggregation, start.carried.strategy
            )
            numbers, privacy_metrics = workshop.privacy.committed(start.carried.privacy, self._sum)
            model, carried = downlink.settle(
                trained,
                start.model,
                replace(start.carried, strategy=strategy_state, privacy=numbers),
                wire=settings.down_wire,
                density=settings.density,
                seed=settings.seed * 1_000_003 + self.number,
            )
            self.close()
            self.phases.check()
        with self.phases.phase("evaluate"):
            holdout = workshop.evaluate(model)
            figures = {"macro_f1": holdout.macro_f1, "holdout_loss": holdout.loss, **privacy_metrics}
            if workshop.judge is not None and self._is_judged():
                figures.update(workshop.judge(model))
            self.phases.check()
        with self.phases.phase("commit"):
            record = self._commit(model, carried, holdout.accuracy, figures, collected, sent_bytes)
        return record, Version(self.number, model, record.parameters_sha256, carried)

    def skip(self, error: RoundFailedError, sent_bytes: Mapping[str, int]) -> tuple[RoundRecord, Version]:
        """Commit that this round has no model of its own, because its number is used up; the model stays as it was.

        Args:
            error: Why; it stands under :data:`SUM_NAME` among the round's failures.
            sent_bytes: Device to bytes that it was sent in this round.
        """
        workshop, start = self._workshop, self.start
        with self.phases.phase("evaluate"):
            holdout = workshop.evaluate(start.model)
        with self.phases.phase("commit"):
            self.close()
            privacy = workshop.privacy.skipped(start.carried.privacy)
            carried = replace(start.carried, privacy=privacy, difference=b"")
            record = workshop.journal.commit(
                number=self.number,
                invited=len(error.failures) + error.accepted,
                accepted=0,
                accuracy=holdout.accuracy,
                loss=0.0,
                seconds=workshop.clock() - self._began,
                state=start.model,
                metrics={
                    SKIPPED: 1.0,
                    budget.BYTES_DOWN: float(sum(sent_bytes.values())),
                    "failed_devices": float(len(error.failures)),
                },
                carried=carried,
                failures={**error.failures, SUM_NAME: str(error)},
                privacy=workshop.privacy.lineage(privacy),
            )
        logger.warning("round %d is skipped: %s", self.number, error)
        return record, Version(self.number, start.model, record.parameters_sha256, carried)

    def _is_judged(self) -> bool:
        """Every k-th round, and the last one."""
        settings = self._workshop.plan.settings
        return self.number % max(1, settings.judge_every) == 0 or self.number == settings.rounds

    def _commit(
        self,
        model: State,
        carried: Carried,
        accuracy: float,
        figures: dict[str, float],
        collected: Collected,
        sent_bytes: Mapping[str, int],
    ) -> RoundRecord:
        workshop = self._workshop
        updates = workshop.journal.recorded(self.number)
        metrics = {
            **figures,
            **round_metrics.of_round(
                updates, collected, phases=self.phases.seconds, sent_bytes=sent_bytes, wasted_bytes=self._rejected_bytes
            ),
        }
        record = workshop.journal.commit(
            number=self.number,
            invited=sum(len(workshop.plan.gateways.get(name, (name,))) for name in collected.asked),
            accepted=round_metrics.devices(updates),
            accuracy=accuracy,
            loss=round_metrics.mean_loss(updates),
            seconds=workshop.clock() - self._began,
            state=model,
            metrics=metrics,
            carried=carried,
            failures=collected.failures,
            privacy=workshop.privacy.lineage(carried.privacy),
        )
        logger.info(
            "round %d: %d of %d devices, accuracy %.4f, loss %.4f, %.2f s",
            record.number,
            record.accepted,
            record.invited,
            record.accuracy,
            record.loss,
            record.seconds,
        )
        return record


def _starting_loss(metrics: Mapping[str, float]) -> float | None:
    """Loss of the model as received, where the device measured it."""
    loss = metrics.get("validation_loss", math.nan)
    return loss if metrics.get("validation_examples", 0) > 0 and loss >= 0 else None
