"""Which devices speak for the others: a rank that both sides compute, so that no list has to be sent.

The server names a bound; devices whose rank is below it are the sample. The rank is a hash of the device and the file,
so each file has another sample, and none can be chosen by a device's name.
"""

from __future__ import annotations

import hashlib

#: Above every rank: everybody is in the sample.
EVERY_RANK = 1 << 31


def rank(device_id: str, file_sha256: bytes) -> int:
    """Place of a device among those that want a file: uniform in 0 to ``EVERY_RANK`` - 1."""
    digest = hashlib.sha256(file_sha256 + device_id.encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
