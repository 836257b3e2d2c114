"""Takes part in secure aggregation: the control plane gets a masked update, and learns nothing but sums.

The messages are those of :mod:`skerry_contract.secure_aggregation`; :meth:`SecureAggregationWorker.handle` takes all of
their kinds. A message that comes twice gets the same answer twice; one that contradicts an earlier one is refused.
Sessions live in memory only: a device that starts again in the middle of one has dropped out of it.

>>> secure = SecureAggregationWorker("device-a", files.read, worker.train)     # doctest: +SKIP
>>> if kind in SECAGG_KINDS: answer = secure.handle(kind, fields)              # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skerry_agent.errors import DeviceError
from skerry_agent.identity.identity_files import Identity
from skerry_agent.state_table import IllegalEventError
from skerry_agent.training.secure_machine import Stage
from skerry_agent.training.secure_session import DeviceSession, Signer
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import Scalar, TrainInstruction, TrainReply
from skerry_contract.errors import WireError
from skerry_contract.secagg_ring import LOSS_UNIT, VectorLayout
from skerry_contract.secagg_roster import certificate_der, load_authority
from skerry_contract.secure_aggregation import (
    CONFIRM,
    KEYS,
    MASKED,
    ROUND_USED_UP,
    SECAGG_KINDS,
    SHARES,
    ConfirmInstruction,
    KeysInstruction,
    MaskedInstruction,
    MaskedReply,
    SharesInstruction,
    UnmaskInstruction,
    training_digest,
)
from skerry_contract.tensors import Array, decode_bundle

logger = logging.getLogger(__name__)

#: Sessions at a time: one per campaign.
SESSIONS = 4
#: Campaigns of which the last revealed round is remembered.
CAMPAIGNS = 1024

#: Trains and answers with the whole trained state: ``CampaignWorker.train``.
Train = Callable[[TrainInstruction], TrainReply]
#: The model that an instruction starts from, as it is decoded.
Received = Callable[[TrainInstruction], Mapping[str, Array]]


def _received(instruction: TrainInstruction) -> Mapping[str, Array]:
    if instruction.parameters_wire != "float32":
        raise WireError("parameters_wire", expected="float32", got=instruction.parameters_wire)
    return decode_bundle(instruction.parameters)


@dataclass
class _Held:
    """A session with the answers that it has given: kind to digest of the question and answer."""

    session: DeviceSession
    expires: float
    answers: dict[str, tuple[bytes, dict[str, Scalar]]] = field(default_factory=dict)


class SecureAggregationWorker:
    """A device's side of every session; called by one thread."""

    def __init__(
        self,
        device_id: str,
        identity: Callable[[], Identity],
        train: Train,
        *,
        received: Received = _received,
        ready: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            device_id: This device.
            identity: Its certified key, read for each session: ``IdentityFiles.read``.
            train: Trains one round in the clear, on this device.
            received: Decodes the model that a round starts from, exactly as training does.
            ready: Raises RefusedError when the device could not train now: who is not on the roster costs nothing, who
                drops out later is one of the third that may.
            clock: Seconds.
        """
        self._device_id = device_id
        self._identity = identity
        self._train = train
        self._received = received
        self._ready = ready
        self._clock = clock
        self._sessions: OrderedDict[str, _Held] = OrderedDict()
        self._revealed: OrderedDict[str, int] = OrderedDict()

    def handle(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Scalar]:
        """Answer one question.

        Args:
            kind: One of ``SECAGG_KINDS``.
            fields: From the wire.

        Raises:
            RefusedError: This device will not, or cannot now; the reason says why.
            ValueError: The kind is another.
        """
        if kind not in SECAGG_KINDS:
            raise ValueError(f"kind {kind!r} is none of secure aggregation")
        self.expire()
        try:
            if kind == KEYS:
                return self._keys(KeysInstruction.from_fields(fields))
            return self._step(kind, fields)
        except (WireError, IllegalEventError) as error:
            raise RefusedError(f"secure aggregation: {error}") from error

    @property
    def open_sessions(self) -> int:
        """Sessions whose secrets are held."""
        return sum(held.session.stage is not Stage.REVEALED for held in self._sessions.values())

    def _keys(self, terms: KeysInstruction) -> dict[str, Scalar]:
        held = self._sessions.get(terms.session)
        if held is not None:
            if held.session.terms != terms:
                raise WireError("session", expected="the terms of the first message", got="others")
            return held.session.keys().to_fields()
        unmasked = self._revealed.get(terms.campaign_id, 0)
        if terms.round <= unmasked:
            raise RefusedError(f"{ROUND_USED_UP}: round {unmasked} is unmasked, {terms.round} is not asked again")
        self._ready()
        for session_id in [
            i for i, other in self._sessions.items() if other.session.terms.campaign_id == terms.campaign_id
        ]:
            self._drop(session_id)  # the control plane has begun anew
        if len(self._sessions) >= SESSIONS:
            raise RefusedError(f"{SESSIONS} sessions of secure aggregation are open", final=False)
        held = _Held(DeviceSession(terms, self._signer()), self._clock() + terms.lifetime_ms / 1000)
        self._sessions[terms.session] = held
        return held.session.keys().to_fields()

    def _signer(self) -> Signer:
        try:
            identity = self._identity()
            certificate, authority = certificate_der(identity.certificate_pem), load_authority(identity.authority_pem)
        except (DeviceError, ValueError) as error:
            raise RefusedError(f"this device has no certified key: {error}") from error
        return Signer(self._device_id, identity.key, certificate, authority)

    def _step(self, kind: str, fields: Mapping[str, Any]) -> dict[str, Scalar]:
        session_id = str(fields.get("session", ""))
        held = self._sessions.get(session_id)
        if held is None:
            raise WireError("session", expected="one that this device is in", got=session_id[:32])
        question = _digest(fields)
        if kind in held.answers:
            before, answer = held.answers[kind]
            if before != question:
                raise WireError(kind, expected="the question that was answered", got="another one")
            return answer
        session = held.session
        if kind == SHARES:
            answer = session.share(SharesInstruction.from_fields(fields)).to_fields()
        elif kind == MASKED:
            answer = self._masked(session, fields)
        elif kind == CONFIRM:
            answer = session.confirm(ConfirmInstruction.from_fields(fields)).to_fields()
            held.answers.pop(MASKED, None)  # it has arrived
        else:
            answer = session.reveal(UnmaskInstruction.from_fields(fields)).to_fields()
            self._remember(session.terms)
        held.answers[kind] = (question, answer)
        return answer

    def _masked(self, session: DeviceSession, fields: Mapping[str, Any]) -> dict[str, Scalar]:
        started = self._clock()
        terms, masked, instruction = (
            session.terms,
            MaskedInstruction.from_fields(fields),
            TrainInstruction.from_fields(fields),
        )
        session.members(masked)
        if (instruction.campaign_id, instruction.round) != (terms.campaign_id, terms.round):
            raise WireError("round", expected=f"{terms.campaign_id} {terms.round}", got=instruction.round)
        if instruction.wire != "float32":
            raise WireError("wire", expected="float32, which is then masked", got=instruction.wire)
        received = self._received(instruction)
        try:
            layout = VectorLayout.of(received, instruction.personal)
        except ValueError as error:
            raise WireError("parameters", expected="a model to aggregate", got=str(error)) from error
        reply = self._train(instruction)
        if reply.wire != "float32":
            raise WireError("wire", expected="float32 of the trainer", got=reply.wire)
        trained = decode_bundle(reply.parameters)
        vector = layout.flatten(trained)
        vector -= layout.flatten(received)
        weight = min(reply.examples, terms.weight_bound)
        packed = session.mask(
            masked,
            vector,
            _counts(reply, instruction.clip_norm),
            weight=weight,
            training=training_digest(instruction, received),
        )
        seconds = self._clock() - started
        logger.info("campaign %s round %d: %d bytes masked", terms.campaign_id, terms.round, len(packed))
        return MaskedReply(
            device_id=self._device_id, session=terms.session, seconds=max(0.0, seconds), masked=packed
        ).to_fields()

    def _remember(self, terms: KeysInstruction) -> None:
        self._revealed[terms.campaign_id] = terms.round
        self._revealed.move_to_end(terms.campaign_id)
        while len(self._revealed) > CAMPAIGNS:
            self._revealed.popitem(last=False)

    def expire(self) -> None:
        """Forget the sessions whose lifetime is over; every question does so as well."""
        now = self._clock()
        for session_id in [session_id for session_id, held in self._sessions.items() if held.expires <= now]:
            self._drop(session_id)

    def _drop(self, session_id: str) -> None:
        self._sessions.pop(session_id).session.forget()


def _counts(reply: TrainReply, clip_norm: float) -> dict[str, int]:
    def losses(loss: float, examples: int) -> int:
        return int(np.clip(loss * examples * LOSS_UNIT, 0.0, float(1 << 40)))

    return {
        "examples": reply.examples,
        "steps": reply.steps,
        "loss": losses(reply.loss, reply.examples),
        "validation_examples": reply.validation_examples,
        "validation_correct": round(reply.validation_accuracy * reply.validation_examples),
        "validation_loss": losses(reply.validation_loss, reply.validation_examples),
        "within_norm": int(clip_norm == 0.0 or reply.norm <= clip_norm),
    }


def _digest(fields: Mapping[str, Any]) -> bytes:
    """Of a question, whatever the order of its fields."""
    digest = hashlib.sha256()
    for name in sorted(fields):
        value = fields[name]
        data = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{name}:{type(value).__name__}:{len(data)}\0".encode())
        digest.update(data)
    return digest.digest()
