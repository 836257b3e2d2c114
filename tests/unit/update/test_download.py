"""One file: bounds, digests, claims after a restart, adoption."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.update.download import FileDownload
from skerry_contract.errors import WireError
from unit.update.device import snapshot
from unit.update.releases import describe

DATA = bytes(range(250)) * 10  # 2500 bytes: chunks of 1024, 1024 and 452
ENTRY = describe("infer.onnx", DATA)


def piece(index: int) -> bytes:
    return DATA[index * 1024 : (index + 1) * 1024]


def opened(folder: Path) -> FileDownload:
    download = FileDownload(ENTRY, folder)
    download.open()
    return download


def test_chunks_in_any_order_make_the_file(tmp_path: Path) -> None:
    download = opened(tmp_path)
    assert download.missing() == [0, 1, 2]
    assert download.missing_bytes() == 2500
    for index in (2, 0, 1):
        assert download.accept(index, piece(index))
    assert download.complete
    assert download.verify()
    assert snapshot(tmp_path) == {ENTRY.sha256.hex(): DATA}


@pytest.mark.parametrize(
    ("index", "data", "field", "expected"),
    [
        (3, b"x", "chunk.index", "0 to 2"),
        (2**32 - 1, b"x", "chunk.index", "0 to 2"),
        (0, piece(0)[:-1], "chunk 0.data", "1024 bytes"),
        (0, piece(0) + b"x", "chunk 0.data", "1024 bytes"),
        (2, piece(0), "chunk 2.data", "452 bytes"),
        (2, b"", "chunk 2.data", "452 bytes"),
        (0, piece(1), "chunk 0.data", f"SHA-256 {ENTRY.chunk_sha256[0].hex()}"),
    ],
)
def test_a_wrong_chunk_changes_nothing(tmp_path: Path, index: int, data: bytes, field: str, expected: str) -> None:
    download = opened(tmp_path)
    download.accept(1, piece(1))
    before = snapshot(tmp_path)
    missing = download.missing()
    with pytest.raises(WireError) as caught:
        download.accept(index, data)
    assert (caught.value.field, caught.value.expected) == (field, expected)
    assert snapshot(tmp_path) == before
    assert download.missing() == missing == [0, 2]


def test_a_duplicate_is_dropped(tmp_path: Path) -> None:
    download = opened(tmp_path)
    assert download.accept(0, piece(0))
    before = snapshot(tmp_path)
    assert not download.accept(0, piece(0))
    assert snapshot(tmp_path) == before


def test_a_restart_keeps_chunks_and_checks_them_again(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.accept(0, piece(0))
    first.accept(2, piece(2))
    first.close()
    part = tmp_path / f"{ENTRY.sha256.hex()}.part"
    data = bytearray(part.read_bytes())
    data[2047 + 100] ^= 0xFF  # inside chunk 2: the bitmap survived the power cut, the data did not
    part.write_bytes(data)
    again = opened(tmp_path)
    assert again.missing() == [1, 2]
    assert again.done == 1


def test_a_bitmap_without_its_data_is_not_believed(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.accept(0, piece(0))
    first.close()
    (tmp_path / f"{ENTRY.sha256.hex()}.part").unlink()
    assert opened(tmp_path).missing() == [0, 1, 2]


def test_a_file_that_is_wrong_as_a_whole_is_removed(tmp_path: Path) -> None:
    entry = describe("infer.onnx", DATA)
    entry.sha256 = bytes(32)  # the chunks are right, the whole is promised to be something else
    download = FileDownload(entry, tmp_path)
    download.open()
    for index in range(3):
        download.accept(index, piece(index))
    assert not download.verify()
    assert snapshot(tmp_path) == {}
    assert download.missing() == [0, 1, 2]


def test_a_file_that_is_here_already_is_linked_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "slot").mkdir()
    source, folder = tmp_path / "slot" / "infer.onnx", tmp_path / "downloads"
    folder.mkdir()
    source.write_bytes(DATA)
    download = FileDownload(ENTRY, folder)
    assert download.adopt(source)
    download.open()
    assert download.complete
    assert (folder / ENTRY.sha256.hex()).stat().st_ino == source.stat().st_ino


def test_a_file_of_the_same_size_with_other_bytes_is_not_adopted(tmp_path: Path) -> None:
    source = tmp_path / "other"
    source.write_bytes(DATA[:-1] + b"!")
    download = FileDownload(ENTRY, tmp_path)
    assert not download.adopt(source)
    assert snapshot(tmp_path) == {"other": source.read_bytes()}


def test_an_empty_file_needs_no_chunk(tmp_path: Path) -> None:
    entry = describe("empty", b"")
    download = FileDownload(entry, tmp_path)
    download.open()
    assert download.complete
    assert download.verify()
    assert snapshot(tmp_path) == {entry.sha256.hex(): b""}


@given(
    data=st.binary(min_size=1, max_size=300),
    chunk_bytes=st.integers(1, 64),
    order=st.randoms(use_true_random=False),
    stops=st.integers(0, 4),
)
@settings(max_examples=40, deadline=None)
def test_any_file_any_order_any_restarts(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk_bytes: int, order: random.Random, stops: int
) -> None:
    folder = tmp_path_factory.mktemp("downloads")
    entry = describe("file", data, chunk_bytes)
    indices = list(range(len(entry.chunk_sha256)))
    order.shuffle(indices)
    restarts = set(order.sample(indices, min(stops, len(indices))))
    download = FileDownload(entry, folder)
    download.open()
    for taken, index in enumerate(indices):
        if index in restarts:
            download.close()
            download = FileDownload(entry, folder)
            download.open()
            assert download.done == taken
        assert download.accept(index, data[index * chunk_bytes : (index + 1) * chunk_bytes])
    assert download.verify()
    assert snapshot(folder) == {entry.sha256.hex(): data}
