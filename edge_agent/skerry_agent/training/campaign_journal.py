"""What a device carries from round to round of a campaign, written down before its answer leaves.

With a lossy wire it carries the residual of error feedback, with SCAFFOLD its control variate. Both belong to an answer
that counted. An answer may be lost, late or rejected, so the device keeps what it carries *after* the last two answers,
each together with the answer itself, and decides when the next instruction comes:

=============================================  ===================================================================
the instruction                                what the device does
=============================================  ===================================================================
asks for the newest kept round again, the      gives the same answer: training or drawing noise twice would be
same question, and no answer of it counted     counted, or paid for, once
names a kept round as the last that counted    goes on from that round; a younger one did not count and is dropped
names a round that is not kept, or none (0)    begins anew with nothing carried
says nothing of it, the round is a later one   takes the newest kept answer for counted
says nothing, the round is an earlier or the   the server went back: younger rounds are dropped
same one with another question
=============================================  ===================================================================

One file per round holds everything, so that residual, variate and answer can never be of different rounds. After a kill
between two writes the same decision is made again from the same files. A campaign that was not touched for
:data:`AGE_S`, and the oldest of more than :data:`CAMPAIGNS`, are forgotten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from skerry_agent.errors import AgentError
from skerry_agent.files import DISK, Disk
from skerry_agent.training.kept_files import KeptFiles
from skerry_agent.training.trainer import State
from skerry_contract.campaign import Scalar, TrainInstruction, TrainReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import decode_bundle, encode_bundle

logger = logging.getLogger(__name__)

#: Campaigns with something on disk, their age (seconds), and the bytes of one round.
CAMPAIGNS = 4
AGE_S = 14 * 86_400.0
ROUND_BYTES = 1 << 30
_HEAD = struct.Struct("<I")
_HEAD_BYTES = 1 << 20
_NAME = re.compile(r"[0-9]{7}")


class JournalError(AgentError):
    """What the device carries cannot be written down."""


@dataclass(frozen=True)
class Carried:
    """What belongs to an answer that counted.

    Attributes:
        residual: What lossy wires have not delivered yet, by parameter; empty for none.
        control: The device's control variate; empty before its first round.
    """

    residual: State = field(default_factory=dict)
    control: State = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """One answer.

    Attributes:
        round: That it answers.
        question: Digest of the instruction.
        reply: The answer.
        after: What the device carries once it counted.
    """

    round: int
    question: str
    reply: TrainReply
    after: Carried


@dataclass(frozen=True)
class Decision:
    """What to do about an instruction.

    Attributes:
        repeat: Round whose answer is given again; 0: train.
        base: Kept round to go on from; 0: nothing is carried.
        drop: Kept rounds that did not count, or that nobody will need.
        answered: Whether this round, or a later one, was answered before, to another question.
    """

    repeat: int = 0
    base: int = 0
    drop: tuple[int, ...] = ()
    answered: bool = False


def decide(
    kept: Iterable[int], question_of: Callable[[int], str], *, round_number: int, question: str, counted: int | None
) -> Decision:
    """The table above. Pure.

    Args:
        kept: Rounds with a record.
        question_of: Digest of the instruction that a kept round answered; asked of the newest only.
        round_number: Of the instruction.
        question: Its digest.
        counted: Last round whose answer counted, 0 for none; None: not said.
    """
    rounds = sorted(kept)
    newest = rounds[-1] if rounds else 0
    known = counted is not None and counted >= round_number
    if newest and newest == round_number and not known and question_of(newest) == question:
        return Decision(repeat=newest)
    if counted is None:
        base = max((number for number in rounds if number < round_number), default=0)
    else:
        base = counted if counted in rounds else 0
    drop = tuple(number for number in rounds if number != base)
    return Decision(base=base, drop=drop, answered=newest >= round_number)


def question_digest(instruction: TrainInstruction, model_sha256: str) -> str:
    """Digest of what an answer is computed from: the model however it was encoded, and how to train.

    Neither the deadline nor the wire of the answer counts: a server that asks again for the same thing in another
    encoding gets the same answer in that encoding.

    Args:
        instruction: The question.
        model_sha256: Digest of the wire form of the model that it carries.
    """
    plain = replace(
        instruction,
        deadline_ms=1,
        counted=b"",
        parameters=b"",
        parameters_wire="",
        base_sha256="",
        wire="",
        density=1.0,
    )
    digest = hashlib.sha256(model_sha256.encode())
    for item in fields(plain):
        value = getattr(plain, item.name)
        data = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{item.name}:{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


class CampaignJournal:
    """Records of every campaign that this device carries something for; used by one thread.

    Args:
        folder: One folder below it for each campaign; None: memory only.
        reserve: Free space that writing leaves alone (bytes).
        disk: What changes the file system.
        wall: The clock that file times are compared with (seconds).
    """

    def __init__(
        self, folder: Path | None, *, reserve: int = 0, disk: Disk = DISK, wall: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._reserve = reserve
        self._disk = disk
        self._wall = wall
        self._campaigns: dict[str, KeptFiles] = {}
        self._newest: tuple[str, RoundRecord] | None = None
        self._forget_old()

    def decide(self, instruction: TrainInstruction, question: str, counted: int | None) -> Decision:
        """See :func:`decide`; changes nothing."""

        def question_of(number: int) -> str:
            record = self.record(instruction.campaign_id, number)
            return "" if record is None else record.question

        rounds = self._rounds(instruction.campaign_id)
        return decide(rounds, question_of, round_number=instruction.round, question=question, counted=counted)

    def drop(self, campaign_id: str, rounds: Iterable[int]) -> None:
        """Remove rounds, before training: after a kill the same ones would be removed again."""
        for number in rounds:
            logger.info("campaign %s: what belongs to round %d is dropped", campaign_id, number)
            self._files(campaign_id).remove(_name(number))

    def has(self, campaign_id: str) -> bool:
        """Whether something is kept for a campaign."""
        return bool(self._rounds(campaign_id))

    def carried(self, campaign_id: str, base: int) -> Carried:
        """What belongs to a kept round; nothing for 0, and nothing if its file cannot be used."""
        record = self.record(campaign_id, base) if base else None
        return Carried() if record is None else record.after

    def record(self, campaign_id: str, number: int) -> RoundRecord | None:
        """A kept round; None if its file cannot be used, and then it is gone."""
        if self._newest is not None and self._newest[0] == campaign_id and self._newest[1].round == number:
            return self._newest[1]
        files = self._files(campaign_id)
        content = files.read(_name(number))
        if content is None:
            return None
        try:
            record = _decode(content)
            if record.round != number:
                raise WireError("round", expected=str(number), got=record.round)
        except (WireError, ValueError, TypeError, KeyError, struct.error) as error:
            logger.warning("campaign %s: the record of round %d is dropped: %s", campaign_id, number, error)
            files.remove(_name(number))
            return None
        return record

    def keep(self, campaign_id: str, record: RoundRecord, *, base: int) -> None:
        """Write an answer down; only then may it leave. Rounds but this one and ``base`` are removed.

        Raises:
            JournalError: The disk is full or broken; what was kept before is still kept.
        """
        files = self._files(campaign_id)
        try:
            files.write(_name(record.round), _encode(record))
        except OSError as error:
            raise JournalError(f"what belongs to round {record.round} cannot be written: {error}") from error
        self._newest = (campaign_id, record)
        for number in self._rounds(campaign_id):
            if number not in (record.round, base):
                files.remove(_name(number))
        self._forget_old()

    def forget(self, campaign_id: str) -> None:
        """The campaign is over, or what it carried has been delivered."""
        self._files(campaign_id).clear()
        self._campaigns.pop(campaign_id, None)
        if self._newest is not None and self._newest[0] == campaign_id:
            self._newest = None

    def campaigns(self) -> list[str]:
        """Campaigns with something kept, the longest untouched first."""
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.is_dir():
                    self._files(path.name)
        ages: list[tuple[float, str]] = []
        for campaign_id, files in list(self._campaigns.items()):
            names = files.names()
            if names:
                ages.append((-min(files.age_s(name, self._wall()) for name in names), campaign_id))
        return [campaign_id for _, campaign_id in sorted(ages)]

    def _forget_old(self) -> None:
        known = self.campaigns()
        for position, campaign_id in enumerate(known):
            files = self._files(campaign_id)
            age_s = min((files.age_s(name, self._wall()) for name in files.names()), default=0.0)
            if age_s > AGE_S or position < len(known) - CAMPAIGNS:
                logger.info("campaign %s is forgotten, untouched for %.0f s", campaign_id, age_s)
                self.forget(campaign_id)

    def _rounds(self, campaign_id: str) -> list[int]:
        return sorted(int(name) for name in self._files(campaign_id).names() if _NAME.fullmatch(name))

    def _files(self, campaign_id: str) -> KeptFiles:
        if campaign_id not in self._campaigns:
            folder = None if self._folder is None else self._folder / campaign_id
            self._campaigns[campaign_id] = KeptFiles(folder, limit=ROUND_BYTES, reserve=self._reserve, disk=self._disk)
        return self._campaigns[campaign_id]


def _name(number: int) -> str:
    return f"{number:07d}"


def _encode(record: RoundRecord) -> bytes:
    reply = record.reply.to_fields()
    blobs = {
        **{f"reply.{name}": value for name, value in reply.items() if isinstance(value, bytes)},
        "residual": encode_bundle(record.after.residual),
        "control": encode_bundle(record.after.control),
    }
    head = json.dumps(
        {
            "round": record.round,
            "question": record.question,
            "reply": {name: value for name, value in reply.items() if not isinstance(value, bytes)},
            "blobs": {name: len(data) for name, data in blobs.items()},
        }
    ).encode()
    return b"".join([_HEAD.pack(len(head)), head, *blobs.values()])


def _decode(content: bytes) -> RoundRecord:
    (size,) = _HEAD.unpack_from(content)
    if size > _HEAD_BYTES:
        raise ValueError(f"a head of {size} bytes")
    head = json.loads(content[_HEAD.size : _HEAD.size + size])
    offset = _HEAD.size + size
    blobs: dict[str, bytes] = {}
    for name, length in dict(head["blobs"]).items():
        blobs[str(name)] = content[offset : offset + int(length)]
        offset += int(length)
    if offset != len(content):
        raise ValueError(f"{len(content)} bytes, {offset} are named")
    reply: Mapping[str, Scalar] = {
        **head["reply"],
        **{name.removeprefix("reply."): data for name, data in blobs.items() if name.startswith("reply.")},
    }
    return RoundRecord(
        int(head["round"]),
        str(head["question"]),
        TrainReply.from_fields(reply),
        Carried(decode_bundle(blobs["residual"]), decode_bundle(blobs["control"])),
    )
