"""The lane: how the control plane's campaigns and the devices' nodes exchange messages in few, cheap HTTP requests.

Flower carries a message in seven or more requests: polls, one per object of it, confirmations. The lane is served by
the SuperLink's process on the SuperLink's port, to the same nodes with the same keys, and needs one: a node sends its
last answer and waits for the next instruction in the same request (``POST`` :data:`EXCHANGE_PATH`). A byte string of
more than :data:`INLINE_BYTES` stays out of the messages: it is a *blob*, named by the SHA-256 of its content, fetched
by ranges and put before the message that names it.

Every body is a frame: the length of a head (4 bytes, big endian), the head (JSON), and bytes that the head points into.
Everything that arrives is bounded and checked here, before it is used.

>>> frame, blobs = pack_fields({"round": 3, "parameters": b"abc"})
>>> blobs, unpack_fields(frame, read=lambda sha256, size: b"")
({}, {'round': 3, 'parameters': b'abc'})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from skerry_contract.campaign import INLINE_BYTES, Scalar
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_sha256_hex
from skerry_contract.limits import PARAMETER_BYTES

#: Paths of a node; requests are signed as Flower's Fleet API wants it.
FLEET_PREFIX = "/v1/fleet/skerry/"
ATTACH_PATH = FLEET_PREFIX + "attach"
EXCHANGE_PATH = FLEET_PREFIX + "exchange"
DETACH_PATH = FLEET_PREFIX + "detach"
BLOB_PREFIX = FLEET_PREFIX + "blob/"
#: Paths of a campaign; requests carry the operator's secret and the token of the run's task.
RUN_PREFIX = "/v1/runtime/skerry/"
SEND_PATH = RUN_PREFIX + "send"
RECEIVE_PATH = RUN_PREFIX + "receive"
NODES_PATH = RUN_PREFIX + "nodes"
END_PATH = RUN_PREFIX + "end"

#: Headers of a node: its identifier (decimal), public key (PEM, base64), time (ISO 8601) and its signature (base64).
NODE_HEADER = "x-skerry-node"
KEY_HEADER = "flwr-public-key"
TIME_HEADER = "flwr-timestamp"
SIGNATURE_HEADER = "flwr-signature"
#: Header of a blob that a node puts: the message that it answers.
MESSAGE_HEADER = "x-skerry-message"

#: Longest wait for an instruction in one request (seconds); shorter than what middle boxes forget a connection after.
WAIT_S = 20.0
#: Largest head of a frame, and largest frame (bytes): what has to be larger is a blob.
HEAD_BYTES = 1 << 20
FRAME_BYTES = 8 << 20
#: Largest blob (bytes).
BLOB_BYTES = PARAMETER_BYTES
#: Most fields of a message, and longest name of one.
FIELDS = 256
NAME_CHARACTERS = 100

#: Kind of a field's value in the head.
_AT, _BLOB = "at", "sha256"


def pack(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "big") + text + body


def unpack(frame: bytes, *, most: int = FRAME_BYTES) -> tuple[dict[str, Any], bytes]:
    """Head and body of a frame of at most so many bytes.

    Raises:
        WireError: It is none, or too large.
    """
    if not 4 <= len(frame) <= most:
        raise WireError("frame", expected=f"4 to {most} bytes", got=f"{len(frame)} bytes")
    length = int.from_bytes(frame[:4], "big")
    if length > min(HEAD_BYTES, len(frame) - 4):
        raise WireError("frame.head", expected="a head inside the frame", got=f"{length} bytes")
    try:
        head = json.loads(frame[4 : 4 + length])
    except (ValueError, RecursionError) as error:
        raise WireError("frame.head", expected="JSON", got=frame[4 : 4 + min(length, 50)]) from error
    if not isinstance(head, dict):
        raise WireError("frame.head", expected="an object", got=type(head).__name__)
    return head, frame[4 + length :]


def pack_fields(fields: Mapping[str, Scalar]) -> tuple[bytes, dict[str, bytes]]:
    """Fields as a frame, and the blobs that it names by their digests."""
    values: dict[str, Any] = {}
    blobs: dict[str, bytes] = {}
    inline: list[bytes] = []
    position = 0
    for name, value in fields.items():
        if not isinstance(value, bytes):
            values[name] = value
        elif len(value) > INLINE_BYTES:
            sha256 = hashlib.sha256(value).hexdigest()
            blobs[sha256] = value
            values[name] = {_BLOB: sha256, "size": len(value)}
        else:
            values[name] = {_AT: position, "size": len(value)}
            inline.append(value)
            position += len(value)
    return pack({"fields": values}, b"".join(inline)), blobs


def unpack_fields(frame: bytes, *, read: Callable[[str, int], bytes]) -> dict[str, Scalar]:
    """Fields of a frame; ``read(sha256, size)`` gives a blob.

    Raises:
        WireError: The frame is broken.
    """
    head, body = unpack(frame)
    found: dict[str, Scalar] = {}
    for name, value in _fields(head, len(body)).items():
        if not isinstance(value, dict):
            found[name] = value
        elif _BLOB in value:
            found[name] = read(value[_BLOB], value["size"])
        else:
            found[name] = body[value[_AT] : value[_AT] + value["size"]]
    return found


def named_blobs(frame: bytes) -> dict[str, int]:
    """Digest to size of the blobs that a frame of fields names; raises WireError."""
    head, body = unpack(frame)
    return {
        value[_BLOB]: value["size"]
        for value in _fields(head, len(body)).values()
        if isinstance(value, dict) and _BLOB in value
    }


def _fields(head: Mapping[str, Any], body_bytes: int) -> dict[str, Any]:
    fields = head.get("fields")
    if not isinstance(fields, dict) or len(fields) > FIELDS:
        raise WireError("fields", expected=f"at most {FIELDS} fields", got=type(fields).__name__)
    for name, value in fields.items():
        if len(name) > NAME_CHARACTERS:
            raise WireError("fields", expected=f"names of at most {NAME_CHARACTERS} characters", got=name)
        if isinstance(value, dict):
            _check_bytes(f"fields.{name}", value, body_bytes)
        elif isinstance(value, bool) or not isinstance(value, int | float | str):
            raise WireError(f"fields.{name}", expected="a number, a text or bytes", got=type(value).__name__)
    return fields


def _check_bytes(field: str, value: Mapping[str, Any], body_bytes: int) -> None:
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BLOB_BYTES:
        raise WireError(f"{field}.size", expected=f"0 to {BLOB_BYTES}", got=size)
    if _BLOB in value:
        if not isinstance(value[_BLOB], str):
            raise WireError(f"{field}.{_BLOB}", expected="a digest", got=value[_BLOB])
        check_sha256_hex(value[_BLOB], field=f"{field}.{_BLOB}")
        return
    at = value.get(_AT)
    if not isinstance(at, int) or isinstance(at, bool) or at < 0 or at + size > body_bytes:
        raise WireError(f"{field}.{_AT}", expected="bytes inside the frame", got=at)
