"""Secure aggregation: what the control plane and the devices say to each other, so that it learns only sums.

The protocol is that of Bonawitz et al. (CCS 2017, arXiv 1611.04482) with double masking, their consistency check
against a server that shows different survivors to different devices, and the sparse graph of Bell et al. (CCS 2020,
eprint 2020/704) above :data:`~skerry_contract.secagg_graph.COMPLETE` devices. Five questions make a session:

=============================  =============================================  ======================================
kind                           the control plane sends                        a device answers
=============================  =============================================  ======================================
:data:`KEYS`                   the terms                                      two ephemeral keys, signed
:data:`SHARES`                 the roster                                     shares of its secrets, sealed
:data:`MASKED`                 a ``TrainInstruction``, and who shared         its masked update
:data:`CONFIRM`                who answered, and the shares sealed for it     its signature of that
:data:`UNMASK`                 the signatures                                 one share for each neighbour
=============================  =============================================  ======================================

What is masked depends on the model that was received, as well: devices that got different models do not add up
(Pasquini et al., CCS 2022, arXiv 2111.07380). Kinds are Flower message types: a category and a Python identifier.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from skerry_contract.campaign import Scalar, TrainInstruction
from skerry_contract.limits import PARAMETER_BYTES
from skerry_contract.secagg_codec import BoundedFields
from skerry_contract.secagg_graph import MAXIMUM_DEVICES, MINIMUM_DEVICES
from skerry_contract.secagg_masks import KEY_BYTES, SEAL_BYTES
from skerry_contract.secagg_ring import Ring
from skerry_contract.secagg_roster import CERTIFICATE_BYTES, ROSTER_BYTES, SIGNATURE_BYTES
from skerry_contract.secagg_shamir import SECRET_BYTES
from skerry_contract.tensors import Array

KEYS = "query.secagg_keys"
SHARES = "query.secagg_shares"
MASKED = "train.secagg_masked"
CONFIRM = "query.secagg_confirm"
UNMASK = "query.secagg_unmask"
#: The kinds, in the order of a session.
SECAGG_KINDS = (KEYS, SHARES, MASKED, CONFIRM, UNMASK)
#: Begins the reason of a device that has revealed shares in this round of the campaign: it takes part in no other
#: session of it, so the control plane goes on with the next round.
ROUND_USED_UP = "round-used-up"

#: Two shares, one of each secret, sealed.
SEALED_BYTES = 2 * SECRET_BYTES + SEAL_BYTES
#: What a device deals to one holder: commitments to both shares, and the shares sealed.
DEAL_BYTES = 2 * KEY_BYTES + SEALED_BYTES
_BITMAP = (1, MAXIMUM_DEVICES // 8)
_SESSION = (32, 32)
_NAME = (1, 63)
#: Fields that do not change what is trained: how parameters were encoded for the way.
_WAY = ("parameters", "parameters_wire", "base_sha256", "wire", "density", "deadline_ms", "control")


@dataclass(frozen=True, kw_only=True)
class KeysInstruction(BoundedFields):
    """Take part in a session on these terms.

    Attributes:
        campaign_id: Campaign that asks.
        round: From 1. A device that has revealed shares in a round takes part in no other session of it.
        session: 32 hexadecimal digits, random.
        bits: Size of ring elements, of :data:`~skerry_contract.secagg_ring.RING_BITS`.
        bound: Values are clipped to it.
        weight_bound: The largest weight of a device; 1 makes all equal.
        minimum: Fewest devices whose sum may be seen; not below :data:`MINIMUM_DEVICES`.
        lifetime_ms: After how long the devices forget the session, counted from the moment the message is received.
    """

    BOUNDS = {
        "campaign_id": _NAME,
        "round": (1, 1_000_000),
        "session": _SESSION,
        "bits": (16, 32),
        "bound": (1e-9, 1e9),
        "weight_bound": (1, 1 << 32),
        "minimum": (MINIMUM_DEVICES, MAXIMUM_DEVICES),
        "lifetime_ms": (1, 2 * 86_400_000),
    }

    campaign_id: str
    round: int
    session: str
    bits: int
    bound: float
    weight_bound: int
    minimum: int
    lifetime_ms: int

    @property
    def digest(self) -> bytes:
        """Binds signatures and keys to the terms."""
        text = "\0".join(f"{name}={value!r}" for name, value in sorted(self.to_fields().items()))
        return hashlib.sha256(b"skerry-secagg-terms-v1\0" + text.encode()).digest()

    def ring(self, devices: int) -> Ring:
        """The ring for a number of devices; raises ValueError when its elements are too small."""
        return Ring(self.bits, devices)


@dataclass(frozen=True, kw_only=True)
class KeysReply(BoundedFields):
    """A device's entry of the roster; see :class:`~skerry_contract.secagg_roster.Entry`."""

    BOUNDS = {
        "device_id": _NAME,
        "session": _SESSION,
        "sealing_key": (KEY_BYTES, KEY_BYTES),
        "mask_key": (KEY_BYTES, KEY_BYTES),
        "certificate": (1, CERTIFICATE_BYTES),
        "signature": (1, SIGNATURE_BYTES),
    }

    device_id: str
    session: str
    sealing_key: bytes
    mask_key: bytes
    certificate: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class SharesInstruction(BoundedFields):
    """Share your secrets with these devices.

    Attributes:
        session: Which.
        roster: Wire form of :class:`~skerry_contract.secagg_roster.Roster`.
    """

    BOUNDS = {"session": _SESSION, "roster": (1, ROSTER_BYTES)}

    session: str
    roster: bytes


@dataclass(frozen=True, kw_only=True)
class SharesReply(BoundedFields):
    """Shares for each holder.

    Attributes:
        device_id: Whose.
        session: Which.
        seed_commitment: Of the seed of the device's own mask.
        dealt: For each holder, ascending, :data:`DEAL_BYTES`: commitment to the share of the seed, commitment to the
            share of the mask key, both shares sealed (zeros for itself).
    """

    BOUNDS = {
        "device_id": _NAME,
        "session": _SESSION,
        "seed_commitment": (KEY_BYTES, KEY_BYTES),
        "dealt": (DEAL_BYTES, MAXIMUM_DEVICES * DEAL_BYTES),
    }

    device_id: str
    session: str
    seed_commitment: bytes
    dealt: bytes


@dataclass(frozen=True, kw_only=True)
class MaskedInstruction(BoundedFields):
    """Travels in one record with a :class:`~skerry_contract.campaign.TrainInstruction`.

    Attributes:
        session: Which.
        members: Bitmap over the roster of the devices that shared: mask for these.
    """

    BOUNDS = {"session": _SESSION, "members": _BITMAP}

    session: str
    members: bytes


@dataclass(frozen=True, kw_only=True)
class MaskedReply(BoundedFields):
    """A masked update.

    Attributes:
        device_id: Whose.
        session: Which.
        seconds: Time spent on training and masking.
        masked: Packed ring elements.
    """

    BOUNDS = {"device_id": _NAME, "session": _SESSION, "seconds": (0.0, 1e9), "masked": (1, PARAMETER_BYTES)}

    device_id: str
    session: str
    seconds: float
    masked: bytes = dataclasses.field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ConfirmInstruction(BoundedFields):
    """Sign that these are the survivors; differs from device to device.

    Attributes:
        session: Which.
        survivors: Bitmap over the roster of the devices whose vectors are in the sum.
        dealt: For each member that holds the device's shares too, ascending, without itself: what that member dealt
            to it, :data:`DEAL_BYTES` each.
    """

    BOUNDS = {"session": _SESSION, "survivors": _BITMAP, "dealt": (0, MAXIMUM_DEVICES * DEAL_BYTES)}

    session: str
    survivors: bytes
    dealt: bytes


@dataclass(frozen=True, kw_only=True)
class ConfirmReply(BoundedFields):
    """A device's word.

    Attributes:
        device_id: Whose.
        session: Which.
        signature: See :func:`~skerry_contract.secagg_roster.survivors_statement`.
        complaints: Bitmap over the roster of the devices whose sealed shares are no good.
    """

    BOUNDS = {"device_id": _NAME, "session": _SESSION, "signature": (1, SIGNATURE_BYTES), "complaints": _BITMAP}

    device_id: str
    session: str
    signature: bytes
    complaints: bytes


@dataclass(frozen=True, kw_only=True)
class UnmaskInstruction(BoundedFields):
    """Reveal one share for each neighbour, as the survivors say that you confirmed.

    Attributes:
        session: Which.
        survivors: As confirmed.
        signatures: For each confirmation: index in the roster (2 bytes, big endian), signature with its length.
    """

    BOUNDS = {"session": _SESSION, "survivors": _BITMAP, "signatures": (1, MAXIMUM_DEVICES * (SIGNATURE_BYTES + 4))}

    session: str
    survivors: bytes
    signatures: bytes


@dataclass(frozen=True, kw_only=True)
class UnmaskReply(BoundedFields):
    """Shares.

    Attributes:
        device_id: Whose.
        session: Which.
        owners: Bitmap over the roster of the devices whose shares follow.
        shares: 32 bytes each, ascending: of the seed of a survivor, of the mask key of one that dropped out.
    """

    BOUNDS = {
        "device_id": _NAME,
        "session": _SESSION,
        "owners": _BITMAP,
        "shares": (0, MAXIMUM_DEVICES * SECRET_BYTES),
    }

    device_id: str
    session: str
    owners: bytes
    shares: bytes


def training_digest(instruction: TrainInstruction, received: Mapping[str, Array]) -> bytes:
    """Binds masks to what is trained: the model as it was decoded, and every rule that changes the update.

    Raises:
        WireError: The instruction is not one.
    """
    digest = hashlib.sha256(b"skerry-secagg-training-v1\0")
    instruction = TrainInstruction.from_fields(instruction.to_fields())  # numbers as they are on the wire
    fields: dict[str, Scalar] = instruction.to_fields()
    for name in sorted(fields.keys() - set(_WAY)):
        digest.update(f"{name}={fields[name]!r}\0".encode())
    digest.update(hashlib.sha256(instruction.control).digest())
    for name, array in received.items():
        digest.update(f"{name}:{array.dtype.str}:{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.digest()
