"""From revealed shares to masks: whose secret is known, who lied about it, and the sum without masks. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry_contract.errors import WireError
from skerry_contract.secagg_graph import Graph
from skerry_contract.secagg_masks import KEY_BYTES, agree, apply_mask, commitment, derive, private_key
from skerry_contract.secagg_ring import Ring, RingVector
from skerry_contract.secagg_roster import Roster
from skerry_contract.secagg_shamir import combine


@dataclass(frozen=True)
class Dealing:
    """What a device dealt.

    Attributes:
        seed_commitment: Of its seed.
        parts: Holder to commitments and sealed shares, see
            :class:`~skerry_contract.secure_aggregation.SharesReply`.
    """

    seed_commitment: bytes
    parts: Mapping[int, bytes]


@dataclass(frozen=True)
class Solved:
    """Secrets.

    Attributes:
        seeds: Survivor to seed.
        keys: Device that dropped out to mask key.
        failure: Why a secret is not known; empty when all are.
        liars: Device to what is wrong with its shares.
    """

    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]
    failure: str = ""
    liars: Mapping[str, str] = field(default_factory=dict)


class Recovery:
    """Collects the shares that survivors reveal."""

    def __init__(
        self,
        roster: Roster,
        graph: Graph,
        members: frozenset[int],
        survivors: frozenset[int],
        dealt: Mapping[int, Dealing],
        complaints: Mapping[int, list[int]],
    ) -> None:
        """Prepare.

        Args:
            roster: Of the session.
            graph: Who holds whose shares.
            members: Devices for which was masked.
            survivors: Devices in the sum.
            dealt: Member to what it dealt.
            complaints: Member to the holders whose shares of it are no good, as they say.
        """
        self.roster = roster
        self.graph = graph
        self.members = members
        self.survivors = survivors
        self._dealt = dealt
        self._complaints = complaints
        self._shares: dict[int, dict[int, bytes]] = {member: {} for member in members}

    def take(self, holder: int, shares: Mapping[int, bytes]) -> list[int]:
        """Keep the shares of a holder that are those which were dealt to it.

        Args:
            holder: Who reveals.
            shares: Owner to share: of the seed of a survivor, of the mask key of another.

        Returns:
            Owners whose share is another than the one dealt.
        """
        wrong: list[int] = []
        for owner, share in shares.items():
            part = self._dealt[owner].parts.get(holder) if owner in self.members else None
            if part is None:
                wrong.append(owner)
                continue
            alive = owner in self.survivors
            expected = part[:KEY_BYTES] if alive else part[KEY_BYTES : 2 * KEY_BYTES]
            purpose = "seed" if alive else "key"
            if commitment(share, self.roster.digest, purpose, owner, holder) != expected:
                wrong.append(owner)
            else:
                self._shares[owner][holder] = share
        return wrong

    @property
    def complete(self) -> bool:
        """Whether every secret has enough shares."""
        return all(len(shares) >= self.graph.threshold for shares in self._shares.values())

    def solve(self) -> Solved:
        """Every secret, or why not."""
        seeds: dict[int, bytes] = {}
        keys: dict[int, bytes] = {}
        for owner in sorted(self.members):
            name, shares = self.roster.names[owner], self._shares[owner]
            if len(shares) < self.graph.threshold:
                return Solved({}, {}, self._too_few(owner, len(shares)))
            holders = self.graph.holders(owner)
            points = {holders.index(holder) + 1: shares[holder] for holder in sorted(shares)[: self.graph.threshold]}
            try:
                secret = combine(points)
            except WireError:
                secret = b""
            if not self._is_secret(owner, secret):
                reason = "dealt shares that are not of its secret"
                return Solved({}, {}, f"{name} {reason}", {name: reason})
            (seeds if owner in self.survivors else keys)[owner] = secret
        return Solved(seeds, keys)

    def _is_secret(self, owner: int, secret: bytes) -> bool:
        if not secret:
            return False
        if owner in self.survivors:
            return commitment(secret, self.roster.digest, "whole", owner) == self._dealt[owner].seed_commitment
        return private_key(secret).public_key().public_bytes_raw() == self.roster.entries[owner].mask_key

    def _too_few(self, owner: int, count: int) -> str:
        name, complaints = self.roster.names[owner], self._complaints.get(owner, [])
        text = f"{count} shares of {name}'s secret were revealed, {self.graph.threshold} are needed"
        if complaints:
            holders = ", ".join(self.roster.names[holder] for holder in complaints[:5])
            text += f"; {len(complaints)} devices ({holders}) say that what {name} dealt to them is no good"
        return text


def remove_masks(vector: RingVector, solved: Solved, recovery: Recovery, ring: Ring, context: bytes) -> None:
    """Take off the survivors' own masks, and the pairwise ones whose other half dropped out.

    Args:
        vector: Sum of the masked vectors, changed in place.
        solved: Every secret.
        recovery: Whose.
        ring: Of the elements.
        context: What masks are bound to.
    """
    for survivor, seed in solved.seeds.items():
        apply_mask(vector, derive(seed, context, "self", survivor), ring, subtract=True)
    for dropped, key in solved.keys.items():
        mask_key = private_key(key)
        for survivor in recovery.graph.holders(dropped):
            if survivor in recovery.survivors:
                secret = agree(mask_key, recovery.roster.entries[survivor].mask_key)
                pair = derive(secret, context, "pair", *sorted((dropped, survivor)))
                # The survivor added it when its index is the lower one.
                apply_mask(vector, pair, ring, subtract=survivor < dropped)
