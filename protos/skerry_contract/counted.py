"""Which answers of a campaign counted, in a form that is the same for every device that hears it.

A device that carries something from round to round (the residual of a lossy wire, a SCAFFOLD control variate) must know
whether its last answer counted: an answer can be lost on the way, come too late or be rejected. The server puts into an
instruction, for each device that it asks, the last round in which that device's answer counted. Twelve bytes a device:
the first eight of BLAKE2b of campaign and device, then the round, a big-endian uint32; 0: none counted yet.

>>> data = encode_counted("campaign-1", {"a": 3, "b": 0})
>>> [counted_round(data, "campaign-1", name) for name in ("a", "b", "c")]
[3, 0, None]
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from skerry_contract.errors import WireError

_ENTRY = struct.Struct(">8sI")
#: Most devices in one instruction.
COUNTED_DEVICES = 100_000


def _tag(campaign_id: str, device_id: str) -> bytes:
    return hashlib.blake2b(f"{campaign_id}\0{device_id}".encode(), digest_size=8).digest()


def encode_counted(campaign_id: str, rounds: Mapping[str, int]) -> bytes:
    """Device to the last round that counted, 0 for none; raises ValueError for more devices or rounds than fit."""
    if len(rounds) > COUNTED_DEVICES or not all(0 <= number < 1 << 32 for number in rounds.values()):
        raise ValueError(f"at most {COUNTED_DEVICES} devices with rounds below 2**32, got {len(rounds)}")
    return b"".join(_ENTRY.pack(_tag(campaign_id, device), number) for device, number in sorted(rounds.items()))


def counted_round(data: bytes, campaign_id: str, device_id: str) -> int | None:
    """The round of one device; None if nothing is said of it.

    Raises:
        WireError: The bytes are no such table.
    """
    if len(data) % _ENTRY.size or len(data) > COUNTED_DEVICES * _ENTRY.size:
        raise WireError("counted", expected=f"entries of {_ENTRY.size} bytes", got=f"{len(data)} bytes")
    tag = _tag(campaign_id, device_id)
    for start in range(0, len(data), _ENTRY.size):
        if data.startswith(tag, start):
            return int(_ENTRY.unpack_from(data, start)[1])
    return None
