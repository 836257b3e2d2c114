"""Answers the control plane for a site: asks the site's devices and gives their weighted mean. Knows nothing of Flower.

A gateway declines (:class:`~skerry_agent.training.worker.RefusedError`) what a mean of its devices would break; the
control plane knows the same rules and asks those devices directly, so that is the second line. What a lossy wire has
not delivered of the site's mean is carried as a device carries it: :mod:`skerry_agent.training.campaign_journal`.

Invariants: an answer is written down before it leaves, and is given again to the same question; the updates behind it
are thrown away only then.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from skerry_agent.training.campaign_journal import Carried, Decision, JournalError, RoundRecord, question_digest
from skerry_agent.training.device_state import DeviceState
from skerry_agent.training.node_link import Worker
from skerry_agent.training.personal import parse_patterns, personal_names
from skerry_agent.training.residuals import EncodedUpdate, Wire, encode_update, fitting_residual
from skerry_agent.training.round_models import MissingBaseError, ReceivedModel
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import (
    CALIBRATE,
    EVALUATE,
    NEEDS_EACH,
    SITE_QUORUM,
    TRAIN,
    CalibrateInstruction,
    CalibrateReply,
    EvaluateInstruction,
    EvaluateReply,
    Scalar,
    TrainInstruction,
    TrainReply,
)
from skerry_contract.counted import counted_round, encode_counted
from skerry_contract.tensors import Array, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference
from skerry_gateway.roster import RosterFile, SiteCampaign
from skerry_gateway.site_journal import SiteJournal
from skerry_gateway.site_link import SiteLink
from skerry_gateway.site_ranges import SiteRanges
from skerry_gateway.site_round import SiteRound, State
from skerry_gateway.summing import EvaluateFigures
from skerry_server.federation.exchange import Broadcast, ExchangeLostError
from skerry_server.federation.rounds.downlink import DownLink
from skerry_server.federation.rounds.round_loop import RoundFailedError, RoundRules
from skerry_server.federation.rounds.updates import read_evaluation

logger = logging.getLogger(__name__)

#: Share of the control plane's deadline that the devices get; the rest is for the way there and back.
DEADLINE_SHARE = 0.8
#: How long the roster with a campaign is waited for (seconds), a part of the deadline.
ROSTER_S = 20.0


@dataclass(frozen=True)
class RoundFigures:
    """The newest round, for people.

    Attributes:
        campaign_id: Of which campaign.
        round: Its number.
        asked: Devices that were asked.
        counted: Devices whose update is in the answer.
    """

    campaign_id: str = ""
    round: int = 0
    asked: int = 0
    counted: int = 0


class GatewayWorker(Worker):
    """Called by one thread: that of the gateway's node."""

    def __init__(
        self,
        gateway_id: str,
        roster: RosterFile,
        link: SiteLink,
        journal: SiteJournal,
        state: DeviceState,
        *,
        on_round: Callable[[RoundFigures], None] = lambda figures: None,
        on_busy: Callable[[str], None] = lambda detail: None,
        roster_s: float = ROSTER_S,
    ) -> None:
        """Prepare.

        Args:
            gateway_id: Who this is.
            roster: Who takes part.
            link: To the site's devices.
            journal: Keeps their updates until the answer is safe.
            state: What the gateway itself keeps between rounds.
            on_round: Hears of each round that was answered.
            on_busy: Hears what is being done, and an empty text when it is over.
            roster_s: See :data:`ROSTER_S`.
        """
        self._gateway_id = gateway_id
        self._roster = roster
        self._link = link
        self._journal = journal
        self._state = state
        self._on_round = on_round
        self._on_busy = on_busy
        self._roster_s = roster_s

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        """See :class:`~skerry_agent.training.node_link.Worker`."""
        try:
            if kind == TRAIN:
                return self.train(TrainInstruction.from_fields(fields)).to_fields()
            if kind == EVALUATE:
                return self.evaluate(EvaluateInstruction.from_fields(fields)).to_fields()
            if kind == CALIBRATE:
                return self.calibrate(CalibrateInstruction.from_fields(fields)).to_fields()
        except (MissingBaseError, ExchangeLostError, JournalError, OSError) as error:
            raise RefusedError(str(error), final=False) from error
        finally:
            self._on_busy("")
        raise RefusedError(f"{NEEDS_EACH}: a gateway does not answer messages of type {kind[:80]!r}")

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """The weighted mean of the site's updates, or the same answer again to the same question.

        Raises:
            RefusedError: The campaign needs each device, is not known here, or too few devices answered.
            WireError: A broken model.
        """
        _check_summable(instruction)
        campaign = self._campaign(instruction.campaign_id, instruction.deadline_ms)
        self._on_busy(f"campaign {instruction.campaign_id} round {instruction.round}")
        model = self._state.models.receive(instruction.parameters, instruction.parameters_wire, instruction.base_sha256)
        question = question_digest(instruction, model.sha256)
        counted = counted_round(instruction.counted, instruction.campaign_id, self._gateway_id)
        decision = self._state.journal.decide(instruction, question, counted)
        patterns = parse_patterns(instruction.personal)
        own = personal_names(model.state, patterns)
        shared = {name: array for name, array in model.state.items() if name not in own}
        if decision.repeat:
            record = self._state.journal.record(instruction.campaign_id, decision.repeat)
            if record is not None:
                logger.info("campaign %s round %d: the same answer again", instruction.campaign_id, instruction.round)
                return _in_wire(record.reply, instruction.wire, shared)
        site = self._collect(instruction, model, question, counted, patterns, campaign)
        return self._answer(instruction, question, decision, shared, site)

    def evaluate(self, instruction: EvaluateInstruction) -> EvaluateReply:
        """How good a model is on the site's devices; raises RefusedError as :meth:`train`."""
        campaign = self._campaign(instruction.campaign_id, instruction.deadline_ms)
        self._on_busy(f"campaign {instruction.campaign_id} evaluation")
        figures = EvaluateFigures()

        def accept(device_id: str, fields: Mapping[str, object]) -> None:
            figures.add(read_evaluation(fields, device_id=device_id))

        deadline_s = DEADLINE_SHARE * instruction.deadline_ms / 1000
        told = replace(instruction, deadline_ms=max(1, int(deadline_s * 1000)))
        self._ask(
            Broadcast(EVALUATE, f"evaluate-{instruction.round}", told.to_fields(), deadline_s),
            _rules(campaign, deadline_s),
            accept,
            campaign,
            lambda: tuple(figures.members),
        )
        if instruction.last:
            self._state.journal.forget(instruction.campaign_id)
            self._state.models.forget()
            self._journal.keep_only(set(self._roster.roster.campaigns) - {instruction.campaign_id})
        return figures.reply(self._gateway_id)

    def calibrate(self, instruction: CalibrateInstruction) -> CalibrateReply:
        """The merged ranges of the site's devices; raises RefusedError as :meth:`train`, and WireError."""
        campaign = self._campaign(instruction.campaign_id, instruction.deadline_ms)
        self._on_busy(f"campaign {instruction.campaign_id} calibration")
        site = SiteRanges(instruction)
        deadline_s = DEADLINE_SHARE * instruction.deadline_ms / 1000
        told = replace(instruction, deadline_ms=max(1, int(deadline_s * 1000)))
        self._ask(
            Broadcast(CALIBRATE, "calibrate", told.to_fields(), deadline_s),
            _rules(campaign, deadline_s),
            site.take,
            campaign,
            lambda: tuple(site.members),
        )
        return site.reply(self._gateway_id)

    def _campaign(self, campaign_id: str, deadline_ms: int) -> SiteCampaign:
        wait_s = min(self._roster_s, 0.5 * deadline_ms / 1000)
        campaign = self._roster.campaign(campaign_id, wait_s=wait_s)
        if campaign is None or not campaign.members:
            raise RefusedError(f"the roster of this site does not name campaign {campaign_id} (yet)", final=False)
        return campaign

    def _collect(
        self,
        instruction: TrainInstruction,
        model: ReceivedModel,
        question: str,
        counted: int | None,
        patterns: tuple[str, ...],
        campaign: SiteCampaign,
    ) -> SiteRound:
        self._journal.keep_only({*self._roster.roster.campaigns, instruction.campaign_id})
        files = self._journal.open(instruction.campaign_id, instruction.round, question)
        site = SiteRound(instruction, model.state, files, personal=patterns, members=campaign.members)
        deadline_s = max(0.0, DEADLINE_SHARE * instruction.deadline_ms / 1000 - files.age_s)
        told = b""
        if counted is not None:
            known = self._journal.counted(instruction.campaign_id, counted)
            every = {device: known.get(device, 0) for device in campaign.members}
            told = encode_counted(instruction.campaign_id, every)
        downstream = replace(
            instruction,
            parameters=model.data,
            parameters_wire="float32",
            base_sha256="",
            deadline_ms=max(1, int(deadline_s * 1000)),
            counted=told,
        )
        self._ask(
            DownLink(downstream, group=str(instruction.round)),
            _rules(campaign, deadline_s),
            site.take,
            campaign,
            lambda: site.accepted,
        )
        return site

    def _ask(
        self,
        question: Broadcast | DownLink,
        rules: RoundRules,
        accept: Callable[[str, Mapping[str, object]], None],
        campaign: SiteCampaign,
        accepted: Callable[[], tuple[str, ...]],
    ) -> None:
        try:
            self._link.collect(question, rules, accept, members=campaign.members, accepted=accepted)
        except RoundFailedError as error:
            raise RefusedError(f"{SITE_QUORUM}: {error}") from error

    def _answer(
        self,
        instruction: TrainInstruction,
        question: str,
        decision: Decision,
        shared: Mapping[str, Array],
        site: SiteRound,
    ) -> TrainReply:
        """Encode the mean, write the answer down, throw away what it was made of."""
        kept, campaign_id = self._state.journal, instruction.campaign_id
        mean = {name: array for name, array in site.mean().items() if name in shared}
        kept.drop(campaign_id, decision.drop)
        carried = kept.carried(campaign_id, decision.base)
        encoded = self._encode(instruction, mean, shared, carried)
        reply = site.figures.reply(self._gateway_id, encoded.parameters, wire=encoded.wire, norm=encoded.norm)
        self._journal.answered(campaign_id, instruction.round, site.accepted)
        record = RoundRecord(instruction.round, question, reply, Carried(encoded.residual))
        kept.keep(campaign_id, record, base=decision.base)
        self._journal.close(campaign_id)
        figures = RoundFigures(campaign_id, instruction.round, self._asked(campaign_id), len(site.accepted))
        logger.info("campaign %s round %d: %d of %d devices", campaign_id, *_numbers(figures))
        self._on_round(figures)
        return reply

    def _asked(self, campaign_id: str) -> int:
        campaign = self._roster.roster.campaigns.get(campaign_id)
        return 0 if campaign is None else len(campaign.members)

    def _encode(
        self, instruction: TrainInstruction, mean: State, shared: Mapping[str, Array], carried: Carried
    ) -> EncodedUpdate:
        own = f"{instruction.seed}:{self._gateway_id}:{instruction.round}"
        seed = int.from_bytes(hashlib.blake2b(own.encode(), digest_size=7).digest(), "little")
        try:
            encoded = encode_update(
                mean,
                shared,
                Wire(instruction.wire, instruction.density, seed),
                residual=fitting_residual(carried.residual, shared),
            )
        except ValueError as error:
            raise RefusedError(f"the site's mean cannot be told: {error}") from error
        if not math.isfinite(encoded.norm):
            raise RefusedError(f"the site's mean is {encoded.norm} away from the model")
        return encoded


def _check_summable(instruction: TrainInstruction) -> None:
    """Raise RefusedError for a question whose answers must not be summed before the control plane sees them."""
    if instruction.control:
        raise RefusedError(f"{NEEDS_EACH}: a control variate (SCAFFOLD) is of one device")
    if instruction.clip_norm and not instruction.noise_std:
        raise RefusedError(f"{NEEDS_EACH}: privacy that the control plane adds bounds the share of each device")


def _rules(campaign: SiteCampaign, deadline_s: float) -> RoundRules:
    quorum = max(1, math.ceil(campaign.quorum * len(campaign.members) - 1e-9))
    return RoundRules(quorum=quorum, deadline_s=deadline_s, grace_factor=campaign.grace_factor)


def _numbers(figures: RoundFigures) -> tuple[int, int, int]:
    return figures.round, figures.counted, figures.asked


def _in_wire(reply: TrainReply, wire: str, shared: Mapping[str, Array]) -> TrainReply:
    """A kept answer for a control plane that may want it in another encoding: the same values as a whole model."""
    if reply.wire in (wire, "float32"):
        return reply
    moved = apply_difference(shared, decode_difference(reply.parameters, shared, wire=reply.wire))
    return replace(reply, parameters=encode_bundle(moved), wire="float32")
