"""From the base model to the result: rounds, resumption, measurement on the devices. No flwr, no MLflow, no torch.

What is committed is never done again: a run that starts after a kill continues behind the last committed round, with
what the strategy carried, and counts the updates that the round in progress had already journalled.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from skerry_contract.tensors import decode_bundle
from skerry_server.federation.exchange import Exchange, ExchangeLostError
from skerry_server.federation.privacy import PrivacyBudgetError
from skerry_server.federation.rounds import budget, deployed
from skerry_server.federation.rounds.best_round import best_round
from skerry_server.federation.rounds.buffered_collecting import MAXIMUM_STALENESS, BufferedCollecting
from skerry_server.federation.rounds.calibrating import DeviceCalibrator
from skerry_server.federation.rounds.carried import Carried
from skerry_server.federation.rounds.collecting import Collecting, MakeCollecting, PlainCollecting
from skerry_server.federation.rounds.downlink import DownLink, ModelDifference
from skerry_server.federation.rounds.journal import BASE_ROUND, RoundRecord, State
from skerry_server.federation.rounds.measuring import DeviceMeasurer, cohort_figures, device_metrics
from skerry_server.federation.rounds.open_round import OpenRound
from skerry_server.federation.rounds.round_loop import Resolve, RoundFailedError, RoundRules
from skerry_server.federation.rounds.workshop import CampaignPlan, Holdout, Version, Workshop
from skerry_server.federation.strategies import check_strategy_settings

__all__ = ["CampaignPlan", "CampaignResult", "CampaignRun", "Holdout", "Opening", "Workshop"]

logger = logging.getLogger(__name__)

#: How often a run is opened anew without a round in between before the campaign's process gives up.
OPENINGS = 5
#: A silent device is replaced by another one, where others are held back, after this share of the round's deadline.
PATIENCE = 0.25
#: How often more devices are chosen for a round that has too few (seconds).
CHOOSE_S = 5.0
#: After so many rounds in a row that were skipped, the campaign fails with the reason of the last.
SKIPS = 3
#: Models that are kept in memory for updates that come late.
VERSIONS = 4


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
        ended: Why there were no more rounds.
        privacy: What the release says about its privacy; empty without.
        calibration: Whose rows the INT8 ranges come from
            (:class:`~.calibration_source.CalibrationOutcome`); empty where the devices were not to be asked.
    """

    best: RoundRecord
    rounds: int
    metrics: dict[str, float]
    ended: str
    privacy: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)


class CampaignRun:
    """Carries out one plan; one thread."""

    def __init__(
        self,
        workshop: Workshop,
        *,
        open_exchange: Opening,
        resolve: Callable[[Exchange], Resolve],
        on_round: Callable[[RoundRecord], None],
        choose: Callable[[int], Sequence[str]] | None = None,
        collecting: MakeCollecting | None = None,
        check: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare.

        Args:
            workshop: What to do, and with what.
            open_exchange: Opens a run; called again when one is lost.
            resolve: Gives, for an exchange, the devices with their nodes.
            on_round: Hears of each committed round, also of those committed before a resumption.
            choose: Devices of a round in the order in which they are asked; called again for a round that is resumed.
                None: all participants, in an order of their own for each round when it does not want all of them.
            collecting: Makes what collects the rounds over an exchange; None: each device sends its own update, in
                rounds or buffered, as the settings say.
            check: Raises when the campaign must end.
            sleep: Waits.
        """
        self._workshop = workshop
        self._plan = workshop.plan
        self._journal = workshop.journal
        self._open_exchange = open_exchange
        self._resolve = resolve
        self._on_round = on_round
        self._choose = choose or self._uniform
        self._check = check
        self._clock = workshop.clock
        self._sleep = sleep
        self._collecting = collecting or self._by_mode
        self._models: dict[int, State] = {0: decode_bundle(self._plan.base)}

    def _uniform(self, number: int) -> tuple[str, ...]:
        devices = list(self._plan.participants)
        if self._plan.settings.per_round:
            random.Random(f"{self._plan.settings.seed}/{number}").shuffle(devices)
        return self._workshop.privacy.draw(devices)

    def _by_mode(self, exchange: Exchange) -> Collecting:
        settings = self._plan.settings
        if settings.mode != "buffered":
            return PlainCollecting(exchange, clock=self._clock, sleep=self._sleep, check=self._check)
        chosen = check_strategy_settings(self._workshop.strategy.name, settings.strategy_settings)
        return BufferedCollecting(
            exchange,
            maximum_staleness=int(chosen.get("maximum_staleness", MAXIMUM_STALENESS)),
            clock=self._clock,
            sleep=self._sleep,
            check=self._check,
        )

    def run(self) -> CampaignResult:
        """Do every round that is missing, measure on the devices, choose.

        Raises:
            RoundFailedError: A round did not reach its quorum.
            PrivacyBudgetError: The budget does not last for one round.
            ExchangeLostError: No run could be kept open.
        """
        for record in self._journal.rounds():
            self._on_round(record)
        base = self._workshop.evaluate(self._models[0])
        base_figure = deployed.base_figure(self._workshop.judge, self._models[0], base.accuracy)
        openings = 0
        while True:
            done = len(self._journal.rounds())
            try:
                with self._open_exchange() as exchange:
                    ended = self._train(exchange)
                    return self._conclude(exchange, base, base_figure, ended)
            except ExchangeLostError as error:
                openings = 1 if len(self._journal.rounds()) > done else openings + 1
                if openings >= OPENINGS:
                    raise
                logger.warning("the run was lost (%s); a new one continues behind round %d", error, done)
                self._sleep(min(10.0, 0.5 * 2.0**openings))

    def _train(self, exchange: Exchange) -> str:
        """Rounds until there is a reason to stop; returns it."""
        collecting = self._collecting(exchange)
        resolve = self._resolve(exchange)
        rounds = self._journal.rounds()
        version = self._version(rounds)
        while not (ended := self._ending(rounds, version)):
            record, version = self._round(collecting, resolve, version)
            rounds.append(record)
            self._on_round(record)
        logger.info("no further round: %s", ended)
        return ended

    def _ending(self, rounds: Sequence[RoundRecord], version: Version) -> str:
        figures = deployed.figures(rounds, judged=self._workshop.judge is not None)
        ended = budget.ending(self._plan.settings, rounds, figures)
        if ended:
            return ended
        try:
            self._workshop.privacy.admit(version.carried.privacy)
        except PrivacyBudgetError as error:
            if not rounds:
                raise
            return str(error)
        return ""

    def _version(self, rounds: Sequence[RoundRecord]) -> Version:
        """What the next round starts from."""
        if rounds:
            last = rounds[-1]
            return Version(last.number, self._model(last.number), last.parameters_sha256, self._journal.carried(last))
        base, participants = self._models[0], len(self._plan.participants)
        carried = Carried(
            strategy=self._workshop.strategy.start(base, participants=participants),
            privacy=self._workshop.privacy.start(
                self._plan.settings.wanted(participants), minimum=self._plan.settings.quorum_count(participants)
            ),
        )
        return Version(0, base, hashlib.sha256(self._plan.base).hexdigest(), carried)

    def _model(self, number: int) -> State:
        """The model of a committed round, or of the base release; some are kept."""
        if number not in self._models:
            record = self._journal.rounds()[number - 1]
            self._keep(number, self._journal.load(record.parameters_sha256))
        return self._models[number]

    def _keep(self, number: int, model: State) -> None:
        self._models[number] = model
        for old in sorted(self._models.keys() - {0})[:-VERSIONS]:
            del self._models[old]

    def _round(self, collecting: Collecting, resolve: Resolve, start: Version) -> tuple[RoundRecord, Version]:
        opened = OpenRound(self._workshop, start, model_of=self._model)
        try:
            with opened.phases.phase("configure"):
                opened.replay()
                order = _Order(self._choose, opened.number, self._plan, self._clock)
                question = DownLink(opened.instruction(), group=str(opened.number), changes=self._changes(start))
                rules = self._rules(len(order.devices), growing=order.growing)
            try:
                with opened.phases.phase("collect"):
                    collected = collecting.collect(opened, question, rules, order.resolve(resolve))
            except RoundFailedError as error:
                if not error.used_up:
                    raise
                record, version = opened.skip(error, question.sent_bytes)
                self._check_skips(error)
            else:
                record, version = opened.finish(collected, question.sent_bytes)
        finally:
            opened.close()
        self._keep(version.number, version.model)
        return record, version

    def _check_skips(self, error: RoundFailedError) -> None:
        """Give up when too many rounds were skipped in a row, or no round is left to make up for them."""
        rounds = self._journal.rounds()
        in_a_row = len(list(itertools.takewhile(lambda record: record.skipped, reversed(rounds))))
        if in_a_row >= SKIPS or in_a_row == len(rounds) >= self._plan.settings.rounds:
            raise error

    def _changes(self, start: Version) -> ModelDifference | None:
        """The model as its difference from the one before, when there is one and somebody has that one."""
        if not start.carried.difference:
            return None
        holders = {
            update.device_id
            for update in self._journal.recorded(start.number)
            if update.metrics.get(BASE_ROUND) == start.number - 1
        }
        base_sha256 = (
            self._journal.rounds()[start.number - 2].parameters_sha256
            if start.number > 1
            else hashlib.sha256(self._plan.base).hexdigest()
        )
        return ModelDifference(self._plan.settings.down_wire, start.carried.difference, base_sha256, holders)

    def _rules(self, chosen: int, *, growing: bool) -> RoundRules:
        """When a round ends for which so many devices are chosen so far."""
        settings, strategy = self._plan.settings, self._workshop.strategy
        deadline_s = settings.round_deadline_ms / 1000
        wanted = settings.wanted(len(self._plan.participants))
        if settings.privacy.get("sampling", "none") != "none":
            wanted = min(wanted, max(1, chosen))  # the sample is what it is
        if settings.mode == "buffered":
            wanted = min(wanted, strategy.buffer or wanted)
        quorum = max(1, math.ceil(settings.quorum * wanted - 1e-9), strategy.minimum_updates)
        some = bool(settings.per_round) or settings.mode == "buffered"
        return RoundRules(
            quorum=quorum,
            deadline_s=deadline_s,
            grace_factor=settings.grace_factor,
            enough=max(quorum, wanted) if some else 0,
            at_once=settings.asked(len(self._plan.participants)) if some else 0,
            patience_s=PATIENCE * deadline_s,
            growing=growing,
        )

    def _conclude(self, exchange: Exchange, base: Holdout, base_figure: float, ended: str) -> CampaignResult:
        rounds = self._journal.rounds()
        last = rounds[-1]
        measurer = DeviceMeasurer(
            self._plan,
            self._journal,
            exchange,
            self._resolve(exchange),
            clock=self._clock,
            sleep=self._sleep,
            check=self._check,
        )
        cohort: dict[int, float] = {}
        measured: dict[int, dict[str, float]] = {}
        incident = self._plan.incident_devices
        if incident:
            measured[last.number] = measurer.measure(last)
            cohort = cohort_figures(self._journal, rounds, measured[last.number], incident)
        competing = deployed.competing(rounds, judged=self._workshop.judge is not None)
        number = best_round(competing, base_accuracy=base_figure, cohort_accuracy=cohort).number
        best = rounds[number - 1]
        if number not in measured:
            measured[number] = measurer.measure(best)
        calibration = self._calibrate(exchange, best)
        on_base = measurer.measure_base()  # the campaign's last question: devices drop what they kept for it
        metrics = {
            "holdout_accuracy": best.accuracy,
            "holdout_accuracy_champion": base.accuracy,
            "rounds": float(len(rounds)),
            "rounds_skipped": float(sum(record.skipped for record in rounds)),
            "best_round": float(number),
            **{name: best.metrics[name] for name in deployed.RESULT_METRICS if name in best.metrics},
            **{name: value for name, value in last.metrics.items() if name.startswith("privacy_")},
            **device_metrics(on_base, measured[number], incident, self._plan.gateways),
            **measurer.personal(best),
        }
        # Every round that was made has spent of the privacy, also one after the best.
        return CampaignResult(best, len(rounds), metrics, ended, dict(last.privacy), calibration)

    def _calibrate(self, exchange: Exchange, best: RoundRecord) -> dict[str, Any]:
        if self._workshop.calibration is None:
            return {}
        calibrator = DeviceCalibrator(
            self._plan,
            self._journal,
            exchange,
            self._resolve(exchange),
            self._workshop.calibration,
            clock=self._clock,
            sleep=self._sleep,
            check=self._check,
        )
        return calibrator.calibrate(best).as_dict()


class _Order:
    """The devices of a round, in the order in which they are asked; more are chosen while there are too few."""

    def __init__(
        self,
        choose: Callable[[int], Sequence[str]],
        number: int,
        plan: CampaignPlan,
        clock: Callable[[], float],
    ) -> None:
        self._choose = choose
        self._number = number
        self._clock = clock
        sampled = plan.settings.privacy.get("sampling", "none") != "none"
        self._wanted = 0 if sampled else plan.settings.asked(len(plan.participants))
        self._again_at = clock() + CHOOSE_S
        self.devices = tuple(choose(number))

    @property
    def growing(self) -> bool:
        """Whether there are too few, so that more will be chosen."""
        return len(self.devices) < self._wanted

    def resolve(self, resolve: Resolve) -> Resolve:
        """The devices of this round that there are, in order, with their nodes."""

        def resolve_in_order() -> dict[str, int | None]:
            if self.growing and self._clock() >= self._again_at:
                self._again_at = self._clock() + CHOOSE_S
                self.devices = tuple(dict.fromkeys([*self.devices, *self._choose(self._number)]))
            nodes = resolve()
            return {device: nodes[device] for device in self.devices if device in nodes}

        return resolve_in_order
