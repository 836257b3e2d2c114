"""Deltas in a manifest: what is described is accepted, what cannot be is refused by field."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from skerry_contract.errors import WireError
from skerry_contract.limits import CHUNK_BYTES, DELTAS
from skerry_contract.manifest import bundle_digest, check_file_entry, describe_delta
from skerry_contract.v1.release_pb2 import FileEntry

BASE = hashlib.sha256(b"base").digest()


def entry(size: int = 1_000) -> FileEntry:
    return FileEntry(
        path="infer.onnx",
        size=size,
        sha256=hashlib.sha256(b"file").digest(),
        chunk_bytes=CHUNK_BYTES,
        chunk_sha256=[bytes(32)] * -(-size // CHUNK_BYTES),
        deltas=[describe_delta(b"x" * 250, base_sha256=BASE, chunk_bytes=100)],
    )


def test_a_delta_is_described_by_its_chunks() -> None:
    delta = entry().deltas[0]
    assert (delta.size, delta.sha256) == (250, hashlib.sha256(b"x" * 250).digest())
    assert list(delta.chunk_sha256) == [hashlib.sha256(b"x" * size).digest() for size in (100, 100, 50)]
    check_file_entry(entry(), field="file")


def test_deltas_are_no_part_of_what_names_a_bundle() -> None:
    plain = entry()
    del plain.deltas[:]
    assert bundle_digest([plain]) == bundle_digest([entry()])


def repeat(file: FileEntry) -> None:
    file.deltas.append(file.deltas[0])


def many(file: FileEntry) -> None:
    file.deltas.extend(describe_delta(b"x", base_sha256=bytes([number]) * 32) for number in range(DELTAS))


@pytest.mark.parametrize(
    ("break_it", "field"),
    [
        (lambda file: setattr(file.deltas[0], "size", 0), "deltas[0].chunk_sha256"),
        (lambda file: file.deltas[0].CopyFrom(describe_delta(b"", base_sha256=BASE)), "deltas[0].size"),
        (lambda file: setattr(file.deltas[0], "size", 1 << 40), "deltas[0].size"),
        (lambda file: file.deltas[0].CopyFrom(describe_delta(bytes(1_000), base_sha256=BASE)), "deltas[0].size"),
        (lambda file: setattr(file.deltas[0], "sha256", b"short"), "deltas[0].sha256"),
        (lambda file: setattr(file.deltas[0], "base_sha256", b"short"), "deltas[0].base_sha256"),
        (lambda file: setattr(file.deltas[0], "base_sha256", file.sha256), "deltas[0].base_sha256"),
        (lambda file: setattr(file.deltas[0], "chunk_bytes", 0), "deltas[0].chunk_bytes"),
        (lambda file: setattr(file.deltas[0], "chunk_bytes", CHUNK_BYTES + 1), "deltas[0].chunk_bytes"),
        (lambda file: file.deltas[0].chunk_sha256.append(bytes(32)), "deltas[0].chunk_sha256"),
        (lambda file: file.deltas[0].chunk_sha256.__setitem__(0, b"short"), "deltas[0].chunk_sha256"),
        (repeat, "deltas"),
        (many, "deltas"),
    ],
)
def test_a_delta_that_cannot_be_is_refused(break_it: Callable[[FileEntry], object], field: str) -> None:
    file = entry()
    break_it(file)
    with pytest.raises(WireError) as caught:
        check_file_entry(file, field="files[0]")
    assert caught.value.field == f"files[0].{field}"
