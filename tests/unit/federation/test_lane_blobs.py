"""Files that are written over: who reads one keeps what it reads, and what comes in is what its name says."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import pytest

from skerry_server.federation.flower.lane_blobs import SPARE_BYTES, SPARES, BlobError, BlobFolder


def content(seed: int, size: int = SPARE_BYTES) -> tuple[str, bytes]:
    data = random.Random(seed).randbytes(size)
    return hashlib.sha256(data).hexdigest(), data


def receive(folder: BlobFolder, name: str, data: bytes) -> None:
    with folder.receive() as incoming:
        for start in range(0, len(data), 300_000):
            incoming.write(memoryview(data)[start : start + 300_000])
        folder.keep(incoming, name)


def hidden(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.name.startswith(".")]


def test_what_was_removed_is_written_over(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    first, long = content(1, SPARE_BYTES + 5000)
    second, short = content(2)
    folder.put(first, long)
    inode = (tmp_path / first).stat().st_ino
    assert (tmp_path / first).stat().st_mode & 0o777 == 0o600
    folder.remove(first)
    with pytest.raises(BlobError, match="not there"):
        folder.open(first)
    receive(folder, second, short)
    assert (tmp_path / second).stat().st_ino == inode
    assert folder.read(second, len(short)) == short
    assert hidden(tmp_path) == []


def test_whoever_reads_keeps_what_it_reads(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    first, data = content(1)
    second, other = content(2)
    folder.put(first, data)
    with folder.open(first) as stream:
        begun = stream.read(1000)
        folder.remove(first)
        receive(folder, second, other)
        assert begun + stream.read() == data
    assert folder.read(second, len(other)) == other


def test_a_spare_that_is_written_over_cannot_be_read_under_its_old_name(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    name, data = content(1)
    folder.put(name, data)
    folder.remove(name)
    with folder.receive() as incoming:
        incoming.write(b"half of another")
        (taken,) = hidden(tmp_path)
        (tmp_path / name).hardlink_to(taken)  # a reader that found the file just before it was removed
        with pytest.raises(BlobError, match="not there"):
            folder.open(name)


def test_what_did_not_come_in_whole_leaves_nothing(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    name, data = content(1)
    folder.put(name, data)
    folder.remove(name)
    with folder.receive() as incoming:
        incoming.write(data[:-1])
        with pytest.raises(BlobError, match="digest"):
            folder.keep(incoming, name)
    assert list(tmp_path.iterdir()) == []


def test_spares_are_few_and_small_files_are_none(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    named = [content(seed) for seed in range(SPARES + 3)] + [content(99, 1000)]
    for name, data in named:
        folder.put(name, data)
    for name, _ in named:
        folder.remove(name)
    assert len(list(tmp_path.iterdir())) == SPARES
    assert folder.sweep(lambda name: False) == 0  # they are young


def test_many_at_once_never_see_anothers_content(tmp_path: Path) -> None:
    """Writers and readers of one folder, each with its own view of it as in processes of their own."""
    named = [content(seed) for seed in range(6)]
    wrong: list[str] = []
    read = [0]

    def work(seed: int) -> None:
        folder, choice = BlobFolder(tmp_path), random.Random(seed)
        for _ in range(40):
            name, data = choice.choice(named)
            action = choice.randrange(3)
            if action == 0:
                receive(folder, name, data)
            elif action == 1:
                folder.remove(name)
            else:
                try:
                    with folder.open(name) as stream:
                        found = stream.read()
                except BlobError:
                    continue
                read[0] += 1
                if found != data:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert read[0] > 0
    assert all(file.name.startswith(".spare-") for file in hidden(tmp_path))
