"""One session of secure aggregation as the control plane sees it. No I/O, no clock; memory for one vector.

Invariants: phases follow :mod:`secure_machine`; an answer that is not accepted changes nothing; masked vectors are only
added up, never kept; the same survivors are told to everybody, and never others later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from skerry_contract.campaign import Scalar, TrainInstruction
from skerry_contract.errors import WireError
from skerry_contract.secagg_codec import bitmap, indices_of, write_bytes
from skerry_contract.secagg_graph import Graph, quorum
from skerry_contract.secagg_masks import KEY_BYTES, agree, private_key
from skerry_contract.secagg_ring import Ring, VectorLayout
from skerry_contract.secagg_roster import (
    Entry,
    Roster,
    check_entry,
    check_signature,
    mask_context,
    survivors_statement,
)
from skerry_contract.secagg_shamir import SECRET_BYTES, new_secret
from skerry_contract.secure_aggregation import (
    DEAL_BYTES,
    ConfirmInstruction,
    ConfirmReply,
    KeysInstruction,
    KeysReply,
    MaskedInstruction,
    MaskedReply,
    SharesInstruction,
    SharesReply,
    UnmaskInstruction,
    UnmaskReply,
    training_digest,
)
from skerry_contract.tensors import Array
from skerry_server.federation.rounds.updates import UpdateRejectedError
from skerry_server.federation.secure_aggregation import secure_machine as machine
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from skerry_server.federation.secure_aggregation.recovery import Dealing, Recovery, remove_masks

R = TypeVar("R", KeysReply, SharesReply, MaskedReply, ConfirmReply, UnmaskReply)


class SecureSession:
    """Takes answers phase by phase; ``close`` ends a phase, ``fail`` the session."""

    def __init__(self, terms: KeysInstruction, layout: VectorLayout, authority: x509.Certificate) -> None:
        """Begin.

        Args:
            terms: Told to every device.
            layout: Of the values.
            authority: Of the fleet.
        """
        self.terms = terms
        self.layout = layout
        self.phase: str = machine.KEYS
        self.seconds = 0.0
        self.liars: dict[str, str] = {}
        self._authority = authority
        self._probe = private_key(new_secret())
        self._entries: dict[str, tuple[Entry, EllipticCurvePublicKey]] = {}
        self._public: dict[int, EllipticCurvePublicKey] = {}
        self.roster = Roster((), b"")
        self.graph = Graph(1, b"")
        self.ring = Ring(32, 1)
        self.dealt: dict[int, Dealing] = {}
        self.members: frozenset[int] = frozenset()
        self.context = b""
        self.total = self.ring.zeros(0)
        self._arrived: set[int] = set()
        self.survivors: frozenset[int] = frozenset()
        self._signatures: dict[int, bytes] = {}
        self._complaints: dict[int, list[int]] = {}
        self.recovery: Recovery | None = None
        self._restored = False  # what happened before it was is not known

    # keys

    def take_keys(self, device_id: str, fields: Mapping[str, object]) -> None:
        """A device's keys; raises UpdateRejectedError."""
        reply = self._read(KeysReply, machine.KEYS, device_id, fields)
        entry = Entry(device_id, reply.sealing_key, reply.mask_key, reply.certificate, reply.signature)
        try:
            key = check_entry(entry, self.terms.digest, self._authority)
            agree(self._probe, entry.sealing_key)
            agree(self._probe, entry.mask_key)
        except WireError as error:
            raise self._lie(device_id, str(error)) from error
        self._entries[device_id] = (entry, key)
        self.liars.pop(device_id, None)  # what was wrong at first has been put right, here and below

    def close_keys(self) -> None:
        """Fix the roster; raises SecureRoundFailedError when it is too short, or too long for the ring."""
        if len(self._entries) < self.terms.minimum:
            raise self.fail(f"{len(self._entries)} devices advertised keys, {self.terms.minimum} are needed")
        try:
            self.ring = self.terms.ring(len(self._entries))
            self.graph = Graph(len(self._entries), b"")
        except ValueError as error:
            raise self.fail(str(error)) from error
        names = sorted(self._entries)
        self.roster = Roster(tuple(self._entries[name][0] for name in names), self.terms.digest)
        self.graph = Graph(len(names), self.roster.digest)
        self._public = {index: self._entries[name][1] for index, name in enumerate(names)}
        self.phase = machine.next_phase(self.phase, "close")

    # shares

    def shares_fields(self) -> dict[str, Scalar]:
        """The question of the phase."""
        return SharesInstruction(session=self.terms.session, roster=self.roster.encode()).to_fields()

    def take_shares(self, device_id: str, fields: Mapping[str, object]) -> None:
        """What a device dealt to its holders; raises UpdateRejectedError."""
        reply = self._read(SharesReply, machine.SHARES, device_id, fields)
        index = self._index(device_id)
        holders = self.graph.holders(index)
        if len(reply.dealt) != len(holders) * DEAL_BYTES:
            raise self._lie(device_id, f"dealt: {len(reply.dealt)} bytes for {len(holders)} holders")
        parts = {
            holder: reply.dealt[place * DEAL_BYTES : (place + 1) * DEAL_BYTES] for place, holder in enumerate(holders)
        }
        self.dealt[index] = Dealing(reply.seed_commitment, parts)
        self.liars.pop(device_id, None)

    def close_shares(self) -> None:
        """Fix the members; raises SecureRoundFailedError when they are too few."""
        self.members = frozenset(self.dealt)
        self._enough(len(self.members), "shared their secrets")
        self.total = self.ring.zeros(self.ring.header + self.layout.size)
        self.phase = machine.next_phase(self.phase, "close")

    # masked vectors

    def masked_fields(self, instruction: TrainInstruction, received: Mapping[str, Array]) -> dict[str, Scalar]:
        """The question of the phase.

        Args:
            instruction: What to train.
            received: The model as the devices decode it from there.
        """
        self.context = mask_context(self.roster, training_digest(instruction, received))
        members = bitmap(self.members, len(self.roster))
        return {
            **instruction.to_fields(),
            **MaskedInstruction(session=self.terms.session, members=members).to_fields(),
        }

    def take_masked(self, device_id: str, fields: Mapping[str, object]) -> None:
        """A masked vector, which is added to the sum; raises UpdateRejectedError."""
        reply = self._read(MaskedReply, machine.MASKED, device_id, fields)
        index = self._index(device_id)
        if index not in self.members or index in self._arrived:
            raise UpdateRejectedError(f"{device_id} is no member, or has sent its vector")
        try:
            vector = self.ring.unpack(reply.masked, len(self.total))
        except WireError as error:
            raise self._lie(device_id, str(error)) from error
        self.total += vector
        self._arrived.add(index)
        self.liars.pop(device_id, None)
        self.seconds = max(self.seconds, reply.seconds)

    def close_masked(self) -> None:
        """Fix the survivors, for good; raises SecureRoundFailedError when they are too few."""
        self._enough(len(self._arrived), "sent masked vectors")
        self.survivors = frozenset(self._arrived)
        self.phase = machine.next_phase(self.phase, "close")

    # confirmation

    def confirm_fields(self, device_id: str) -> dict[str, Scalar]:
        """The question of the phase to one survivor."""
        index = self._index(device_id)
        dealt = b"".join(
            self.dealt[owner].parts[index]
            for owner in self.graph.holders(index)
            if owner in self.members and owner != index
        )
        survivors = bitmap(self.survivors, len(self.roster))
        return ConfirmInstruction(session=self.terms.session, survivors=survivors, dealt=dealt).to_fields()

    def take_confirm(self, device_id: str, fields: Mapping[str, object]) -> None:
        """A survivor's signature; raises UpdateRejectedError."""
        reply = self._read(ConfirmReply, machine.CONFIRM, device_id, fields)
        index, size = self._index(device_id), len(self.roster)
        statement = survivors_statement(
            self.roster, self.context, bitmap(self.members, size), bitmap(self.survivors, size)
        )
        try:
            complaints = indices_of(reply.complaints, size, field="complaints")
            check_signature(self._public[index], reply.signature, statement, field="signature")
        except WireError as error:
            raise self._lie(device_id, str(error)) from error
        self._signatures[index] = reply.signature
        self.liars.pop(device_id, None)
        for owner in complaints:
            self._complaints.setdefault(owner, []).append(index)

    def close_confirm(self) -> None:
        """End the confirmation; raises SecureRoundFailedError when too few signed."""
        self._enough(len(self._signatures), "confirmed the survivors")
        self.recovery = Recovery(self.roster, self.graph, self.members, self.survivors, self.dealt, self._complaints)
        self.phase = machine.next_phase(self.phase, "close")

    # unmasking

    @property
    def confirmed(self) -> frozenset[str]:
        """Devices that signed."""
        return frozenset(self.roster.names[index] for index in self._signatures)

    def unmask_fields(self) -> dict[str, Scalar]:
        """The question of the phase."""
        packed = bytearray()
        for index, signature in sorted(self._signatures.items()):
            packed += index.to_bytes(2, "big")
            write_bytes(packed, signature)
        survivors = bitmap(self.survivors, len(self.roster))
        return UnmaskInstruction(session=self.terms.session, survivors=survivors, signatures=bytes(packed)).to_fields()

    def take_unmask(self, device_id: str, fields: Mapping[str, object]) -> None:
        """Shares that a survivor reveals; those that are false are left out. Raises UpdateRejectedError."""
        reply = self._read(UnmaskReply, machine.UNMASK, device_id, fields)
        holder, size = self._index(device_id), len(self.roster)
        if self.recovery is None:
            raise UpdateRejectedError("nothing is unmasked yet")
        try:
            owners = sorted(indices_of(reply.owners, size, field="owners"))
        except WireError as error:
            raise self._lie(device_id, str(error)) from error
        if len(reply.shares) != len(owners) * SECRET_BYTES:
            raise self._lie(device_id, f"shares: {len(reply.shares)} bytes for {len(owners)} devices")
        shares = {
            owner: reply.shares[place * SECRET_BYTES : (place + 1) * SECRET_BYTES] for place, owner in enumerate(owners)
        }
        self.liars.pop(device_id, None)
        if wrong := self.recovery.take(holder, shares):
            names = ", ".join(self.roster.names[owner] for owner in wrong[:5])
            self.liars[device_id] = f"revealed shares of {names} that were not dealt to it"

    def close_unmask(self) -> None:
        """Take the masks off the sum.

        Raises:
            SecureRoundFailedError: A secret has too few shares, or shares that are not of it.
        """
        if self.recovery is None:
            raise self.fail("nothing was confirmed")
        solved = self.recovery.solve()
        if solved.failure:
            self.liars.update(solved.liars)
            raise self.fail(solved.failure)
        remove_masks(self.total, solved, self.recovery, self.ring, self.context)
        self.phase = machine.next_phase(self.phase, "close")

    # all phases

    def restore(
        self,
        *,
        roster: Roster,
        context: bytes,
        members: bytes,
        survivors: bytes,
        total: bytes,
        dealt: Mapping[int, bytes],
    ) -> None:
        """Go on where the survivors were fixed; see :mod:`checkpoint`.

        Raises:
            WireError: The parts do not fit each other.
            ValueError: Likewise.
        """
        size = len(roster)
        self.roster, self.context = roster, context
        self.ring, self.graph = self.terms.ring(size), Graph(size, roster.digest)
        self._public = {
            index: check_entry(entry, roster.terms, self._authority) for index, entry in enumerate(roster.entries)
        }
        self.members = indices_of(members, size, field="members")
        self.survivors = indices_of(survivors, size, field="survivors")
        self.total = self.ring.unpack(total, self.ring.header + self.layout.size).copy()
        for owner, part in dealt.items():
            holders = self.graph.holders(owner)
            if len(part) != KEY_BYTES + len(holders) * DEAL_BYTES:
                raise WireError("dealt", expected=f"parts for {len(holders)} holders", got=f"{len(part)} bytes")
            places = range(KEY_BYTES, len(part), DEAL_BYTES)
            cut = {holder: part[place : place + DEAL_BYTES] for holder, place in zip(holders, places, strict=True)}
            self.dealt[owner] = Dealing(part[:KEY_BYTES], cut)
        if not self.survivors <= self.members or self.members != self.dealt.keys():
            raise WireError("members", expected="the devices that dealt shares", got=sorted(self.members)[:20])
        self.phase = machine.CONFIRM
        self._restored = True

    def fail(
        self, reason: str, *, failures: Mapping[str, str] | None = None, used_up: bool = False
    ) -> SecureRoundFailedError:
        """End the session; the error to raise. ``used_up``: devices say that they have unmasked this round before."""
        phase, self.phase = self.phase, machine.next_phase(self.phase, "fail")
        return self._failure(phase, reason, failures, used_up=used_up)

    def refuse(self, reason: str) -> SecureRoundFailedError:
        """The error to raise when the sum is there, but cannot be one of honest devices."""
        return self._failure(machine.UNMASK, reason, None)

    def _failure(
        self, phase: str, reason: str, failures: Mapping[str, str] | None, *, used_up: bool = False
    ) -> SecureRoundFailedError:
        return SecureRoundFailedError(
            phase,
            reason,
            accepted=len(self.survivors or self._arrived or self.members),
            quorum=self.quorum,
            failures=failures,
            liars=self.liars,
            revealed=self._restored or phase == machine.UNMASK or used_up,
        )

    @property
    def quorum(self) -> int:
        """Answers that a phase needs."""
        return max(self.terms.minimum, quorum(len(self.roster))) if len(self.roster) else self.terms.minimum

    def _enough(self, count: int, what: str) -> None:
        if count < self.quorum:
            raise self.fail(f"{count} of {len(self.roster)} devices {what}, {self.quorum} are needed")

    def _index(self, device_id: str) -> int:
        try:
            return self.roster.names.index(device_id)
        except ValueError as error:
            raise UpdateRejectedError(f"{device_id} is not on the roster") from error

    def _read(self, kind: type[R], phase: str, device_id: str, fields: Mapping[str, object]) -> R:
        if self.phase != phase:
            raise UpdateRejectedError(f"it is too late, or too early: the session is at {self.phase}")
        try:
            reply = kind.from_fields(fields)
        except WireError as error:
            raise self._lie(device_id, str(error)) from error
        if (reply.device_id, reply.session) != (device_id, self.terms.session):
            raise self._lie(device_id, f"device {reply.device_id} answered for {device_id}, or in another session")
        return reply

    def _lie(self, device_id: str, reason: str) -> UpdateRejectedError:
        self.liars[device_id] = reason
        return UpdateRejectedError(reason)
