"""Collects one round by secure aggregation over an exchange: five questions, each with its deadline and quorum.

A session that was interrupted before its survivors were fixed begins anew, with new keys. After that point
:class:`Keeper` holds the masked sum and what is needed to unmask it, so that a process that was killed asks the same
devices for the same shares and nothing is trained twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from skerry_contract.campaign import TrainInstruction
from skerry_contract.errors import WireError
from skerry_contract.secagg_graph import MINIMUM_DEVICES
from skerry_contract.secagg_ring import SumRangeError, VectorLayout, decode_sum, rounding_norm
from skerry_contract.secagg_roster import load_authority
from skerry_contract.secure_aggregation import (
    CONFIRM,
    KEYS,
    MASKED,
    ROUND_USED_UP,
    SHARES,
    UNMASK,
    KeysInstruction,
)
from skerry_contract.tensors import Array
from skerry_server.federation.exchange import Broadcast, Exchange
from skerry_server.federation.rounds.round_loop import (
    Accept,
    Question,
    Resolve,
    RoundCollector,
    RoundFailedError,
    RoundRules,
)
from skerry_server.federation.secure_aggregation.checkpoint import decode_session, encode_session
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from skerry_server.federation.secure_aggregation.session import SecureSession
from skerry_server.federation.secure_aggregation.sums import SecureSum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecureRules:
    """When a round ends, and how finely it counts.

    Attributes:
        minimum: Fewest devices in the sum, at least 3. More than two thirds of those that advertise keys are needed
            in any case.
        deadline_s: Longest wait for trained updates.
        phase_s: Longest wait in each of the other four phases.
        grace_factor: See :class:`~skerry_server.federation.rounds.round_loop.RoundRules`; of the training phase.
        grace_s: See there; of every phase.
        keys_grace_s: How long others are waited for once ``minimum`` devices advertised keys.
        bits: Size of ring elements: 16, 24 or 32.
        bound: Values of a difference are clipped to it. With a clipping norm, the norm is enough.
        weight_bound: Largest weight of a device; 1 makes all equal, as client-level differential privacy needs.
        attempts: How often a device is asked in a phase.
        repeat_s: Wait before a device is asked again.
    """

    minimum: int
    deadline_s: float
    phase_s: float = 30.0
    grace_factor: float = 1.0
    grace_s: float = 1.0
    keys_grace_s: float = 3.0
    bits: int = 32
    bound: float = 8.0
    weight_bound: int = 65_536
    attempts: int = 3
    repeat_s: float = 1.0


class Keeper(Protocol):
    """Keeps the session of one round over kills; part of the campaign's journal."""

    def load(self) -> bytes | None:
        """What was saved last; None or empty when there is nothing."""
        ...

    def save(self, data: bytes) -> None:
        """Replace it; durable when this returns."""
        ...


class _NothingKept:
    def load(self) -> bytes | None:
        return None

    def save(self, data: bytes) -> None:
        pass


class SecureRound:
    """Runs rounds over one exchange; one thread."""

    def __init__(
        self,
        exchange: Exchange,
        resolve: Resolve,
        *,
        authority_pem: bytes,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            exchange: Carries the messages.
            resolve: Devices that take part, with their nodes.
            authority_pem: Certificate of the fleet's authority.
            clock: Seconds.
            sleep: Waits.
            check: Called between polls; raises to end the round.

        Raises:
            ValueError: The certificate cannot be read.
        """
        self._exchange = exchange
        self._resolve = resolve
        self._authority = load_authority(authority_pem)
        self._clock = clock
        self._sleep = sleep
        self._check = check

    def collect(
        self,
        instruction: TrainInstruction,
        model: Mapping[str, Array],
        rules: SecureRules,
        *,
        keeper: Keeper | None = None,
    ) -> SecureSum:
        """One round.

        Args:
            instruction: What to train; its ``wire`` must be "float32": the masked vector has a wire of its own.
            model: As devices decode it from the instruction.
            rules: See there.
            keeper: Holds the session from the moment when its survivors are fixed.

        Raises:
            SecureRoundFailedError: The sum cannot be had, and why. With ``revealed`` set the round number is used up.
            ExchangeLostError: The run behind the exchange is gone; with a keeper, calling again goes on.
            ValueError: The rules or the instruction make no sense.
        """
        if instruction.wire != "float32" or rules.minimum < MINIMUM_DEVICES:
            raise ValueError(f"secure aggregation takes wire float32 and at least {MINIMUM_DEVICES} devices")
        keeper = keeper or _NothingKept()
        layout = VectorLayout.of(model, instruction.personal)
        dropped: dict[str, str] = {}
        session = self._restored(keeper, instruction, layout)
        if session is None:
            session = SecureSession(self._terms(instruction, rules), layout, self._authority)
            self._train(session, instruction, model, rules, dropped)
            keeper.save(encode_session(session))
        try:
            self._unmask(session, rules, dropped)
            return self._sum(session, dropped)
        except SecureRoundFailedError as error:
            if not error.revealed:
                keeper.save(b"")  # else whoever takes over finds it, and fails in the same way
            raise

    def _restored(self, keeper: Keeper, instruction: TrainInstruction, layout: VectorLayout) -> SecureSession | None:
        kept = keeper.load()
        if not kept:
            return None
        try:
            session = decode_session(kept, layout, self._authority)
        except WireError as error:
            logger.warning("the session that was kept cannot be used, the round begins anew: %s", error)
            return None
        terms = session.terms
        if (terms.campaign_id, terms.round) != (instruction.campaign_id, instruction.round):
            return None
        logger.info("round %d goes on with the masked sum of %d devices", terms.round, len(session.survivors))
        return session

    def _terms(self, instruction: TrainInstruction, rules: SecureRules) -> KeysInstruction:
        lifetime_s = rules.deadline_s + 8 * rules.phase_s  # twice the phases: a resumption asks again
        terms = KeysInstruction(
            campaign_id=instruction.campaign_id,
            round=instruction.round,
            session=secrets.token_hex(16),
            bits=rules.bits,
            bound=float(rules.bound),
            weight_bound=rules.weight_bound,
            minimum=rules.minimum,
            lifetime_ms=int(lifetime_s * 1000),
        )
        try:
            terms.ring(rules.minimum)
            return KeysInstruction.from_fields(terms.to_fields())
        except WireError as error:
            raise ValueError(str(error)) from error

    def _train(
        self,
        session: SecureSession,
        instruction: TrainInstruction,
        model: Mapping[str, Array],
        rules: SecureRules,
        dropped: dict[str, str],
    ) -> None:
        group = f"{instruction.round}"
        phase = self._phase_rules(rules, rules.minimum, grace_s=rules.keys_grace_s)
        self._ask(
            session, Broadcast(KEYS, group, session.terms.to_fields(), 0.0), phase, session.take_keys, None, dropped
        )
        session.close_keys()
        phase = self._phase_rules(rules, session.quorum)
        names = frozenset(session.roster.names)
        self._ask(
            session, Broadcast(SHARES, group, session.shares_fields(), 0.0), phase, session.take_shares, names, dropped
        )
        session.close_shares()
        fields = session.masked_fields(instruction, model)
        training = replace(phase, deadline_s=rules.deadline_s, grace_factor=rules.grace_factor)
        members = _names(session, session.members)
        self._ask(session, Broadcast(MASKED, group, fields, 0.0), training, session.take_masked, members, dropped)
        session.close_masked()

    def _unmask(self, session: SecureSession, rules: SecureRules, dropped: dict[str, str]) -> None:
        group, phase = f"{session.terms.round}", self._phase_rules(rules, session.quorum)
        survivors = _names(session, session.survivors)
        late: dict[str, str] = {}  # who is silent from here on is in the sum all the same
        own = _Personal({name: Broadcast(CONFIRM, group, session.confirm_fields(name), 0.0) for name in survivors})
        self._ask(session, own, phase, session.take_confirm, survivors, late)
        session.close_confirm()
        self._ask(
            session,
            Broadcast(UNMASK, group, session.unmask_fields(), 0.0),
            phase,
            session.take_unmask,
            session.confirmed,
            late,
        )
        session.close_unmask()
        for name in session.roster.names:
            if name not in survivors:
                dropped.setdefault(name, "dropped out")

    def _sum(self, session: SecureSession, dropped: Mapping[str, str]) -> SecureSum:
        terms, survivors = session.terms, sorted(_names(session, session.survivors))
        try:
            values, counts = decode_sum(session.total, session.ring, bound=terms.bound, devices=len(survivors))
            if not len(survivors) <= counts["weight"] <= len(survivors) * terms.weight_bound:
                raise SumRangeError(f"the sum of the weights is {counts['weight']} for {len(survivors)} devices")
        except SumRangeError as error:
            raise session.refuse(f"{error}: at least one of {len(survivors)} devices lied") from error
        values *= terms.weight_bound
        norm = rounding_norm(session.ring, bound=terms.bound, size=session.layout.size)
        return SecureSum(
            difference=values,
            weight=float(counts["weight"]),
            counts=counts,
            survivors=tuple(survivors),
            dropped=dict(dropped),
            liars=dict(session.liars),
            seconds=session.seconds,
            bound=terms.bound,
            rounding_norm=norm * terms.weight_bound,
            layout=session.layout,
        )

    @staticmethod
    def _phase_rules(rules: SecureRules, quorum: int, *, grace_s: float | None = None) -> RoundRules:
        return RoundRules(
            quorum=quorum,
            deadline_s=rules.phase_s,
            grace_s=rules.grace_s if grace_s is None else grace_s,
            attempts=rules.attempts,
            repeat_s=rules.repeat_s,
        )

    def _ask(
        self,
        session: SecureSession,
        question: Broadcast | Question,
        rules: RoundRules,
        accept: Accept,
        allowed: Collection[str] | None,
        dropped: dict[str, str],
    ) -> None:
        phase = session.phase
        resolve = self._resolve if allowed is None else _only(self._resolve, allowed)
        collector = RoundCollector(self._exchange, resolve, clock=self._clock, sleep=self._sleep, check=self._check)
        try:
            collected = collector.collect(question, rules, accept)
        except RoundFailedError as error:
            failures = {**dropped, **error.failures}
            listed = "; ".join(f"{device}: {reason}" for device, reason in sorted(error.failures.items())[:5])
            reason = f"{error.accepted} devices answered, {error.quorum} are needed ({listed or 'none could be asked'})"
            used_up = any(ROUND_USED_UP in each for each in error.failures.values())
            raise session.fail(reason, failures=failures, used_up=used_up) from error
        # A device's own code stays in front, so that it can be counted.
        dropped.update({device: f"{reason} (asked for: {phase})" for device, reason in collected.failures.items()})


@dataclass(frozen=True)
class _Personal:
    """A question that is another one for each device."""

    messages: Mapping[str, Broadcast]

    def broadcast(self, device_id: str) -> Broadcast:
        """See :class:`~skerry_server.federation.rounds.round_loop.Question`."""
        return self.messages[device_id]

    def sent(self, device_id: str) -> None:
        """See there."""

    def troubled(self, device_id: str, reason: str) -> bool:
        """See there."""
        return False


def _only(resolve: Resolve, allowed: Collection[str]) -> Resolve:
    return lambda: {device: node for device, node in resolve().items() if device in allowed}


def _names(session: SecureSession, indices: Collection[int]) -> frozenset[str]:
    return frozenset(session.roster.names[index] for index in indices)
