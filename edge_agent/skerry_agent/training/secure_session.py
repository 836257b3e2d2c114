"""One session of secure aggregation as one device sees it: keys, shares, masks. No I/O, no clock.

Invariants: for each other device, this one reveals the share of its seed or of its mask key, never both; everything is
bound to the terms, the roster, the model that was received and the survivors; a request that does not fit changes
nothing. Secrets live in this object only.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from skerry_agent.training.secure_machine import Stage, Step, advance
from skerry_contract.errors import WireError
from skerry_contract.secagg_codec import Reader, bitmap, indices_of
from skerry_contract.secagg_graph import Graph, quorum
from skerry_contract.secagg_masks import KEY_BYTES, agree, apply_mask, commitment, derive, private_key, seal, unseal
from skerry_contract.secagg_ring import encode_vector
from skerry_contract.secagg_roster import (
    SIGNATURE_BYTES,
    Entry,
    Roster,
    check_entry,
    check_signature,
    mask_context,
    sign_keys,
    sign_survivors,
    survivors_statement,
)
from skerry_contract.secagg_shamir import SECRET_BYTES, new_secret, split
from skerry_contract.secure_aggregation import (
    DEAL_BYTES,
    SEALED_BYTES,
    ConfirmInstruction,
    ConfirmReply,
    KeysInstruction,
    KeysReply,
    MaskedInstruction,
    SharesInstruction,
    SharesReply,
    UnmaskInstruction,
    UnmaskReply,
)


@dataclass(frozen=True)
class Signer:
    """What shows that this device is one of the fleet.

    Attributes:
        device_id: Its name.
        key: Its certified key.
        certificate: For that key (DER).
        authority: The one that this device trusts.
    """

    device_id: str
    key: EllipticCurvePrivateKey = field(repr=False)
    certificate: bytes = field(repr=False)
    authority: x509.Certificate = field(repr=False)


@dataclass(frozen=True, repr=False)
class _Secrets:
    """What only this device knows.

    Attributes:
        sealing_key: X25519, under which others seal shares for it.
        mask_key: X25519, from which pairwise masks are made.
        seed: Of its own mask.
        shared: Holder to the secret under which shares are sealed between the two.
        held: Owner to the shares of seed and mask key that it dealt to this device; its own too.
    """

    sealing_key: bytes
    mask_key: bytes
    seed: bytes
    shared: Mapping[int, bytes] = field(default_factory=dict)
    held: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)


class DeviceSession:
    """A session from the keys to the shares that are revealed."""

    def __init__(self, terms: KeysInstruction, signer: Signer) -> None:
        """Make the keys.

        Raises:
            WireError: The terms cannot be met.
        """
        try:
            terms.ring(terms.minimum)
        except ValueError as error:
            raise WireError("bits", expected="a ring for the minimum of devices", got=str(error)) from error
        self.terms = terms
        self.stage = Stage.ADVERTISED
        self._digest = terms.digest
        self._signer = signer
        own = self._secrets = _Secrets(new_secret(), new_secret(), new_secret())
        sealing, mask = (private_key(key).public_key().public_bytes_raw() for key in (own.sealing_key, own.mask_key))
        signature = sign_keys(signer.key, self._digest, signer.device_id, sealing, mask)
        self._entry = Entry(signer.device_id, sealing, mask, signer.certificate, signature)
        self._roster = Roster((), b"")
        self._index = 0
        self._graph = Graph(1, b"")
        self._public: list[EllipticCurvePublicKey] = []
        self._members: frozenset[int] = frozenset()
        self._statement = b""
        self._survivors = b""

    def keys(self) -> KeysReply:
        """The device's entry of the roster."""
        entry = self._entry
        return KeysReply(
            device_id=entry.device_id,
            session=self.terms.session,
            sealing_key=entry.sealing_key,
            mask_key=entry.mask_key,
            certificate=entry.certificate,
            signature=entry.signature,
        )

    def share(self, instruction: SharesInstruction) -> SharesReply:
        """Check the others and deal out shares of the seed and the mask key.

        Raises:
            WireError: Too few devices, this one is not as it advertised, or one is not of the fleet.
            IllegalEventError: Out of turn.
        """
        stage = advance(self.stage, Step.SHARE)
        roster = Roster.decode(instruction.roster, self._digest)
        if len(roster) < self.terms.minimum:
            raise WireError("roster", expected=f"at least {self.terms.minimum} devices", got=len(roster))
        if self._entry not in roster.entries:
            raise WireError("roster", expected="this device's entry as it sent it", got="none or another")
        try:
            self.terms.ring(len(roster))
        except ValueError as error:
            raise WireError("roster", expected="devices for which the ring is large enough", got=str(error)) from error
        public = [check_entry(entry, self._digest, self._signer.authority) for entry in roster.entries]
        index, graph = roster.entries.index(self._entry), Graph(len(roster), roster.digest)
        holders = graph.holders(index)
        own = self._secrets
        seeds = split(own.seed, len(holders), graph.threshold)
        keys = split(own.mask_key, len(holders), graph.threshold)
        sealing_key = private_key(own.sealing_key)
        shared: dict[int, bytes] = {}
        own_shares = (b"", b"")
        dealt = bytearray()
        for holder, seed_share, key_share in zip(holders, seeds, keys, strict=True):
            dealt += commitment(seed_share, roster.digest, "seed", index, holder)
            dealt += commitment(key_share, roster.digest, "key", index, holder)
            if holder == index:
                own_shares = seed_share, key_share
                dealt += bytes(SEALED_BYTES)
            else:
                shared[holder] = agree(sealing_key, roster.entries[holder].sealing_key)
                seal_key = derive(shared[holder], roster.digest, "seal", index, holder)
                dealt += seal(seal_key, seed_share + key_share, roster.digest)
        self._roster, self._index, self._graph, self._public = roster, index, graph, public
        self._secrets = replace(own, shared=shared, held={index: own_shares})
        self.stage = stage
        return SharesReply(
            device_id=self._signer.device_id,
            session=self.terms.session,
            seed_commitment=commitment(own.seed, roster.digest, "whole", index),
            dealt=bytes(dealt),
        )

    def members(self, instruction: MaskedInstruction) -> frozenset[int]:
        """Whom to mask for; looks ahead before anything is trained.

        Raises:
            WireError: Too few, or without this device.
            IllegalEventError: Out of turn.
        """
        advance(self.stage, Step.MASK)
        return self._checked(instruction.members, "members")

    def mask(
        self,
        instruction: MaskedInstruction,
        values: npt.NDArray[np.float32],
        counts: Mapping[str, int],
        *,
        weight: int,
        training: bytes,
    ) -> bytes:
        """Hide an update.

        Args:
            instruction: Whom to mask for.
            values: Of the difference, finite.
            counts: See :func:`~skerry_contract.secagg_ring.encode_vector`; the weight is filled in.
            weight: Of the update, 1 to the bound of the terms.
            training: :func:`~skerry_contract.secure_aggregation.training_digest` of what was trained.

        Returns:
            Packed ring elements.

        Raises:
            WireError: See :meth:`members`.
            IllegalEventError: Out of turn.
        """
        members = self.members(instruction)
        terms, ring = self.terms, self.terms.ring(len(self._roster))
        vector = encode_vector(
            values,
            {**counts, "weight": weight},
            ring,
            bound=terms.bound,
            factor=weight / terms.weight_bound,
            generator=np.random.Generator(np.random.SFC64(secrets.randbits(128))),
        )
        context = mask_context(self._roster, training)
        apply_mask(vector, derive(self._secrets.seed, context, "self", self._index), ring)
        mask_key = private_key(self._secrets.mask_key)
        for peer in self._graph.holders(self._index):
            if peer in members and peer != self._index:
                secret = agree(mask_key, self._roster.entries[peer].mask_key)
                key = derive(secret, context, "pair", *sorted((self._index, peer)))
                apply_mask(vector, key, ring, subtract=peer < self._index)
        self._members = members
        self._statement = context
        self.stage = advance(self.stage, Step.MASK)
        return ring.pack(vector)

    def confirm(self, instruction: ConfirmInstruction) -> ConfirmReply:
        """Sign who survived, and keep the shares that the members dealt to this device.

        Raises:
            WireError: Too few survivors, one that was no member, or not this device.
            IllegalEventError: Out of turn.
        """
        stage = advance(self.stage, Step.CONFIRM)
        survivors = self._checked(instruction.survivors, "survivors")
        if not survivors <= self._members:
            raise WireError("survivors", expected="members only", got=sorted(survivors - self._members)[:20])
        owners = [owner for owner in self._graph.holders(self._index) if owner in self._members]
        owners.remove(self._index)
        if len(instruction.dealt) != len(owners) * DEAL_BYTES:
            raise WireError(
                "dealt", expected=f"{len(owners)} times {DEAL_BYTES} bytes", got=f"{len(instruction.dealt)} bytes"
            )
        reader = Reader("dealt", instruction.dealt)
        held = dict(self._secrets.held)
        complaints: list[int] = []
        for owner in owners:
            try:
                held[owner] = self._open(owner, reader.take(DEAL_BYTES))
            except WireError:
                complaints.append(owner)
        self._secrets, self._survivors = replace(self._secrets, held=held), instruction.survivors
        size = len(self._roster)
        self._statement = survivors_statement(
            self._roster, self._statement, bitmap(self._members, size), instruction.survivors
        )
        self.stage = stage
        return ConfirmReply(
            device_id=self._signer.device_id,
            session=self.terms.session,
            signature=sign_survivors(self._signer.key, self._statement),
            complaints=bitmap(complaints, size),
        )

    def reveal(self, instruction: UnmaskInstruction) -> UnmaskReply:
        """One share for each member: of the seed of a survivor, of the mask key of one that dropped out.

        Raises:
            WireError: Other survivors than confirmed, or too few of them signed.
            IllegalEventError: Out of turn.
        """
        stage = advance(self.stage, Step.REVEAL)
        if instruction.survivors != self._survivors:
            raise WireError("survivors", expected="those that this device confirmed", got="others")
        size = len(self._roster)
        survivors = indices_of(self._survivors, size, field="survivors")
        signers = self._signers(instruction.signatures, survivors)
        if len(signers) < quorum(size):
            raise WireError("signatures", expected=f"{quorum(size)} of {size} devices", got=len(signers))
        held = self._secrets.held
        owners = sorted(held)
        shares = b"".join(held[owner][0 if owner in survivors else 1] for owner in owners)
        self.stage = stage
        self.forget()
        return UnmaskReply(
            device_id=self._signer.device_id,
            session=self.terms.session,
            owners=bitmap(owners, size),
            shares=shares,
        )

    def forget(self) -> None:
        """Let go of every secret. Python frees the bytes; it cannot overwrite them."""
        self._secrets = _Secrets(b"", b"", b"")

    def _checked(self, bits: bytes, name: str) -> frozenset[int]:
        size = len(self._roster)
        indices = indices_of(bits, size, field=name)
        least = max(self.terms.minimum, quorum(size))
        if len(indices) < least:
            raise WireError(name, expected=f"at least {least} of {size} devices", got=len(indices))
        if self._index not in indices:
            raise WireError(name, expected="this device among them", got="others")
        return indices

    def _open(self, owner: int, deal: bytes) -> tuple[bytes, bytes]:
        digest = self._roster.digest
        opened = unseal(
            derive(self._secrets.shared[owner], digest, "seal", owner, self._index), deal[2 * KEY_BYTES :], digest
        )
        seed_share, key_share = opened[:SECRET_BYTES], opened[SECRET_BYTES:]
        expected = deal[:KEY_BYTES], deal[KEY_BYTES : 2 * KEY_BYTES]
        for share, purpose, committed in ((seed_share, "seed", expected[0]), (key_share, "key", expected[1])):
            if commitment(share, digest, purpose, owner, self._index) != committed:
                raise WireError("dealt", expected="the share that was committed to", got="another")
        return seed_share, key_share

    def _signers(self, signatures: bytes, survivors: frozenset[int]) -> set[int]:
        reader = Reader("signatures", signatures)
        signers: set[int] = set()
        while reader.left:
            index = int.from_bytes(reader.take(2), "big")
            signature = reader.bytes(SIGNATURE_BYTES)
            if index not in survivors or index in signers:
                raise WireError("signatures", expected="one of each survivor", got=f"index {index}")
            field_name = f"signatures[{self._roster.names[index]}]"
            check_signature(self._public[index], signature, self._statement, field=field_name)
            signers.add(index)
        return signers
