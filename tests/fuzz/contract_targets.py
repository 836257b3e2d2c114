"""Parsers of the contract."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from fuzz.target import Target
from skerry_contract import bitmap, delta, delta_writer, histogram, lane, manifest, tensors, topics
from skerry_contract.campaign import (
    INLINE_BYTES,
    EvaluateInstruction,
    EvaluateReply,
    Scalar,
    TrainInstruction,
    TrainReply,
)
from skerry_contract.errors import ContractError, WireError
from skerry_contract.secagg_roster import Entry, Roster, certificate_der, check_entry, load_authority, sign_keys
from skerry_contract.secure_aggregation import (
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
)
from skerry_contract.update_codec import WIRES, decode_difference, encode_difference
from skerry_contract.v1.common_pb2 import Tensor, TensorBundle
from skerry_contract.v1.telemetry_pb2 import HistogramCounts
from unit.federation.secure_rig import authority, identity_of
from unit.update.releases import make_release

_RNG = np.random.default_rng(1)
_BASE = _RNG.integers(0, 256, 3000, dtype=np.uint8).tobytes()
_NEXT = bytes(byte ^ (index % 97 == 0) for index, byte in enumerate(_BASE)) + b"more"
_MESSAGES: tuple[Any, ...] = (
    TrainInstruction,
    TrainReply,
    EvaluateInstruction,
    EvaluateReply,
    KeysInstruction,
    KeysReply,
    SharesInstruction,
    SharesReply,
    MaskedInstruction,
    MaskedReply,
    ConfirmInstruction,
    ConfirmReply,
    UnmaskInstruction,
    UnmaskReply,
)
_CONFIRMED = ConfirmReply(device_id="a", session="0" * 32, signature=b"\0" * 70, complaints=b"\0")
_FLEET = authority()
_REPLY = EvaluateReply(device_id="a", examples=4, accuracy=0.75, loss=0.5)
_INSTRUCTION = TrainInstruction(
    campaign_id="campaign-1",
    round=1,
    task="digits",
    train_step_sha256="ab" * 32,
    local_epochs=1,
    batch_size=8,
    learning_rate=0.1,
    proximal_mu=0.0,
    minimum_samples=1,
    deadline_ms=1000,
    seed=1,
    parameters=b"\0" * 8,
)


def _edges() -> bytes:
    values = _RNG.normal(size=200)
    message = histogram.build_edges(
        {"mean": values, "spread": values**2},
        cells=8,
        classes=("a", "b"),
        confidence_edges=(0.5, 0.9),
        latency_edges=(10.0, 100.0),
        predictions=np.array([3, 4]),
    )
    return message.SerializeToString()


def _topic(data: bytes) -> None:
    topics.parse_topic(data.decode("utf-8", "surrogateescape"))


def _bitmap(data: bytes) -> None:
    bitmap.decode_bitmap(data[4:], int.from_bytes(data[:4], "little"))


def _counts(data: bytes) -> None:
    histogram.decode_counts(HistogramCounts(counts=data[1:]), cells=data[0] if data else 0)


def _campaign(data: bytes) -> None:
    """Flower hands over a record of numbers, texts and bytes; JSON stands for it, a list for bytes."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    fields: dict[str, Any] = {
        name: json.dumps(value).encode() if isinstance(value, list) else value for name, value in document.items()
    }
    for message in _MESSAGES:
        try:
            message.from_fields(fields)
        except WireError:
            continue


def _roster(data: bytes) -> None:
    authority = load_authority(_FLEET.certificate_pem)
    for entry in Roster.decode(data, b"").entries:
        check_entry(entry, b"", authority)


def _rosters() -> tuple[bytes, ...]:
    own = identity_of("a", _FLEET)
    entry = Entry("a", b"s" * 32, b"m" * 32, certificate_der(own.certificate_pem), b"")
    signature = sign_keys(own.key, b"", "a", entry.sealing_key, entry.mask_key)
    return Roster((replace(entry, signature=signature),), b"").encode(), b"\0\1\0\1a"


def _delta(data: bytes) -> None:
    # A header that was right for this base gets through to the coding behind it.
    delta.apply(data, _BASE, limit=1 << 20)


_MODEL: dict[str, tensors.Array] = {
    "w": _RNG.standard_t(3, size=(40, 30)).astype(np.float32),
    "b": _RNG.normal(size=5),
    "n": np.array(3),
    "flag": np.array([True, False]),
}


def _update(data: bytes) -> None:
    # The wire that the header names is the one that was agreed on: changed bytes get through to what is behind it.
    decode_difference(data, _MODEL, wire=WIRES[data[4] % len(WIRES)] if len(data) > 4 else WIRES[0])


def _updates() -> tuple[bytes, ...]:
    seeds = [encode_difference(_MODEL, wire=wire, density=0.3, seed=1)[0] for wire in WIRES]
    seeds.append(encode_difference(_MODEL, wire="topk", density=0.02, seed=1)[0])
    return tuple(seeds)


def _lane(data: bytes) -> None:
    """A frame: what names its blobs and what reads it agree, and what was read travels on unchanged."""
    named = lane.named_blobs(data)
    read: set[str] = set()

    def blob(sha256: str, size: int) -> bytes:
        read.add(sha256)
        return b""

    fields = lane.unpack_fields(data, read=blob)
    if read != named.keys():
        raise AssertionError(f"{sorted(named)} are named, {sorted(read)} are read")
    again, blobs = lane.pack_fields(fields)
    if blobs or repr(lane.unpack_fields(again, read=blob)) != repr(fields):
        raise AssertionError("another frame comes out")


def _frames() -> tuple[bytes, ...]:
    fields: dict[str, Scalar] = {"round": 3, "rate": 0.5, "task": "digits", "parameters": b"abc", "more": b""}
    return (lane.pack_fields(fields)[0], lane.pack_fields({**fields, "model": bytes(INLINE_BYTES + 1)})[0])


_LARGE = b'{"device_id": "a", "examples": ' + b"9" * 400 + b', "accuracy": NaN, "loss": 1e999}'


def _json(message: Any) -> bytes:
    fields = {name: list(value) if isinstance(value, bytes) else value for name, value in message.to_fields().items()}
    return json.dumps(fields).encode()


#: Shapes without elements that are too large for NumPy all the same.
EMPTY_SHAPES = ([0, 1 << 63], [0, (1 << 64) - 1], [1 << 32, 1 << 32, 0], [0, *[1 << 31] * 7])


def _empty(shape: list[int]) -> bytes:
    return TensorBundle(tensors=[Tensor(name="a", dtype="float32", shape=shape)]).SerializeToString()


_BUNDLE = tensors.encode_bundle(
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "flag": np.array([True, False]), "n": np.array(3)}
)
TARGETS = (
    Target(
        "topic",
        _topic,
        (b"skerry/v1/d/press-07/bulk/" + b"ab" * 32, b"skerry/v1/trust/3.root.json", b"skerry/v1/d/press-07/cmd"),
        (ContractError,),
        longest=300,
    ),
    Target("bitmap", _bitmap, (b"\x0c\0\0\0\xff\x0f",), (ContractError,), longest=300),
    Target(
        "tensors",
        lambda data: tensors.decode_bundle(data, limit=1 << 20),
        (_BUNDLE, *(_empty(shape) for shape in EMPTY_SHAPES)),
        (ContractError,),
    ),
    Target("manifest", manifest.parse_manifest, (make_release("digits-1").manifest.SerializeToString(),), (WireError,)),
    Target("edges", histogram.parse_edges, (_edges(),), (ContractError,)),
    Target("counts", _counts, (b"\x03\x01\x80\x01\x05",), (ContractError,), longest=300),
    Target("campaign", _campaign, (_json(_REPLY), _json(_INSTRUCTION), _json(_CONFIRMED), _LARGE), ()),
    Target("update", _update, _updates(), (ContractError,), longest=8192),
    Target("lane", _lane, _frames(), (ContractError,), longest=1024),
    Target("roster", _roster, _rosters(), (ContractError,), longest=2048),
    Target("delta", _delta, (delta_writer.write_delta(_BASE, _NEXT),), (ContractError,)),
)
