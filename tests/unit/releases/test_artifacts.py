"""The artifact store: content under its digest, whole or absent, checked before it is handed out."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_server.errors import InvalidRequestError, NotFoundError, PlatformError
from skerry_server.releases.artifacts import ArtifactCorruptError, ArtifactStore

SKERRY = b"skerry"
SKERRY_SHA = hashlib.sha256(SKERRY).hexdigest()


def local_store(root: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{root / 'store'}", local=root / "store")


def split_store(root: Path) -> ArtifactStore:
    """Blobs elsewhere than the working folder."""
    return ArtifactStore(f"file://{root / 'blobs-elsewhere'}", local=root / "local")


def memory_store(root: Path) -> ArtifactStore:
    """A store that is not on this machine's disk, as S3 is."""
    return ArtifactStore(f"memory://{uuid.uuid4().hex}", local=root / "local")


@pytest.fixture(params=[local_store, split_store, memory_store], ids=lambda make: make.__name__)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    made: ArtifactStore = request.param(tmp_path)
    return made


def blob(root: Path, sha256: str) -> Path:
    return root / "store" / "blobs" / sha256[:2] / sha256


def make_bundle(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"m" * 300_000)
    (folder / "sub" / "card.md").write_text("# card\n")
    (folder / "empty").write_bytes(b"")
    return folder


def test_bytes_come_back_under_their_digest(store: ArtifactStore) -> None:
    assert store.put_bytes(SKERRY) == SKERRY_SHA
    assert store.put_bytes(SKERRY) == SKERRY_SHA
    assert store.get_bytes(SKERRY_SHA) == SKERRY
    assert store.has(SKERRY_SHA)
    assert store.size(SKERRY_SHA) == 6


def test_absent_and_malformed_digests_are_refused(store: ArtifactStore) -> None:
    with pytest.raises(NotFoundError) as absent:
        store.get_bytes("0" * 64)
    assert (absent.value.kind, absent.value.identifier) == ("artifact", "0" * 64)
    assert not store.has("0" * 64)
    for wrong in ("", "../../etc/passwd", "A" * 64, "0" * 63):
        with pytest.raises(InvalidRequestError) as malformed:
            store.get_bytes(wrong)
        assert malformed.value.field == "sha256"


def test_a_bundle_is_named_as_the_manifest_names_it(store: ArtifactStore, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    sha256 = store.put_bundle(folder)
    assert sha256 == bundle_digest(describe_folder(folder)).hex()
    made = store.bundle_folder(sha256)
    assert {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()} == {
        "model.onnx": b"m" * 300_000,
        "sub/card.md": b"# card\n",
        "empty": b"",
    }
    assert store.bundle_folder(sha256) == made
    assert [file.path for file in store.bundle_files(sha256)] == ["empty", "model.onnx", "sub/card.md"]


def test_chunks_cover_a_file(store: ArtifactStore) -> None:
    sha256 = store.put_bytes(bytes(range(10)))
    assert [store.open_chunk(sha256, index, 4) for index in range(3)] == [b"\0\1\2\3", b"\4\5\6\7", b"\x08\x09"]
    for index in (-1, 3):
        with pytest.raises(InvalidRequestError) as wrong:
            store.open_chunk(sha256, index, 4)
        assert wrong.value.field == "index"
    with pytest.raises(InvalidRequestError, match="chunk_bytes"):
        store.open_chunk(sha256, 0, 0)
    with pytest.raises(NotFoundError):
        store.open_chunk("0" * 64, 0, 4)


def test_a_damaged_blob_is_never_handed_out_and_is_healed_by_storing_it_again(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    store.put_bytes(SKERRY)
    assert store.open_chunk(SKERRY_SHA, 0) == SKERRY
    blob(tmp_path, SKERRY_SHA).write_bytes(b"skarry")
    reads: list[Callable[[], bytes]] = [
        lambda: store.get_bytes(SKERRY_SHA),
        lambda: store.open_chunk(SKERRY_SHA, 0),
        lambda: local_store(tmp_path).open_chunk(SKERRY_SHA, 0),
    ]
    for read in reads:
        with pytest.raises(ArtifactCorruptError) as damaged:
            read()
        assert damaged.value.sha256 == SKERRY_SHA
        assert damaged.value.path == blob(tmp_path, SKERRY_SHA)
    assert store.put_bytes(SKERRY) == SKERRY_SHA
    assert store.get_bytes(SKERRY_SHA) == SKERRY
    assert store.open_chunk(SKERRY_SHA, 0) == SKERRY


def test_a_damaged_copy_of_a_remote_blob_is_fetched_again(tmp_path: Path) -> None:
    store = memory_store(tmp_path)
    store.put_bytes(SKERRY)
    assert store.get_bytes(SKERRY_SHA) == SKERRY
    (tmp_path / "local" / "cache" / SKERRY_SHA).write_bytes(b"")
    assert store.get_bytes(SKERRY_SHA) == SKERRY


@pytest.mark.parametrize("harm", ["changed", "removed", "added"])
def test_a_damaged_bundle_folder_is_made_again(store: ArtifactStore, tmp_path: Path, harm: str) -> None:
    sha256 = store.put_bundle(make_bundle(tmp_path / "bundle"))
    made = store.bundle_folder(sha256)
    if harm == "changed":
        (made / "model.onnx").write_bytes(b"x" * 300_000)
    elif harm == "removed":
        (made / "sub" / "card.md").unlink()
    else:
        (made / "foreign").write_text("?")
    assert store.bundle_folder(sha256) == made
    assert (made / "model.onnx").read_bytes() == b"m" * 300_000
    assert (made / "sub" / "card.md").read_text() == "# card\n"
    assert not (made / "foreign").exists()


def test_a_bundle_with_a_damaged_blob_is_not_unpacked(tmp_path: Path) -> None:
    store = local_store(tmp_path)
    sha256 = store.put_bundle(make_bundle(tmp_path / "bundle"))
    blob(tmp_path, hashlib.sha256(b"# card\n").hexdigest()).write_bytes(b"# cord\n")
    with pytest.raises(ArtifactCorruptError):
        store.bundle_folder(sha256)
    assert not (tmp_path / "store" / "bundles" / sha256).exists()
    assert [path.name for path in (tmp_path / "store" / "scratch").iterdir()] == ["lock"]


def test_what_is_no_bundle_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InvalidRequestError, match="1 to 64 files"):
        store.put_bundle(tmp_path / "nothing")
    linked = make_bundle(tmp_path / "linked")
    (linked / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequestError, match="symbolic link"):
        store.put_bundle(linked)
    for content in (b"no list", f"{SKERRY_SHA}  6  ../up\n".encode(), f"{SKERRY_SHA}  6  /abs\n".encode()):
        with pytest.raises(NotFoundError) as wrong:
            store.bundle_folder(store.put_bytes(content))
        assert wrong.value.kind == "bundle"


def test_many_writers_of_the_same_content_agree(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    folder = make_bundle(tmp_path / "bundle")
    digests: list[tuple[str, Path]] = []

    def write() -> None:
        own = local_store(tmp_path)
        bundle = own.put_bundle(folder)
        digests.append((own.put_bytes(content), own.bundle_folder(bundle)))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(digests) == 6
    assert len(set(digests)) == 1
    assert local_store(tmp_path).get_bytes(digests[0][0]) == content
    assert [path.name for path in (tmp_path / "store" / "scratch").iterdir()] == ["lock"]


def test_a_kill_in_the_middle_of_a_write_leaves_no_half_blob(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    """The writer reads from a pipe that stalls half way: it is killed with the first megabyte on the disk."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = f"""
        from pathlib import Path
        from skerry_server.releases.artifacts import ArtifactStore
        ArtifactStore("file://{tmp_path / "store"}", local=Path("{tmp_path / "store"}")).put_file(Path("{pipe}"))
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    scratch = tmp_path / "store" / "scratch"

    def partial() -> list[Path]:
        return [path for path in scratch.glob("*") if path.name != "lock" and path.stat().st_size]

    with pipe.open("wb", buffering=0) as feed:
        feed.write(b"a" * (2 << 20))
        wait_until(partial, what="half a file in the scratch folder")
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(10) == -signal.SIGKILL
    assert partial()
    assert not list((tmp_path / "store").glob("blobs/*/*"))
    store = local_store(tmp_path)
    assert not partial()
    assert store.get_bytes(store.put_bytes(SKERRY)) == SKERRY


def test_opening_the_store_leaves_the_files_of_a_live_writer_alone(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    store = local_store(tmp_path)
    digests: list[str] = []
    writer = threading.Thread(target=lambda: digests.append(store.put_file(pipe)))
    writer.start()
    with pipe.open("wb", buffering=0) as feed:
        feed.write(b"b" * (2 << 20))
        scratch = tmp_path / "store" / "scratch"
        wait_until(lambda: len(list(scratch.iterdir())) == 2, what="the writer's file")
        local_store(tmp_path)
        assert len(list(scratch.iterdir())) == 2
        feed.write(b"c")
    writer.join(10)
    assert digests == [hashlib.sha256(b"b" * (2 << 20) + b"c").hexdigest()]


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write, as a full disk does."""
    script = f"""
        import resource, signal
        from pathlib import Path
        from skerry_server.errors import PlatformError
        from skerry_server.releases.artifacts import ArtifactStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = ArtifactStore("file://{tmp_path / "store"}", local=Path("{tmp_path / "store"}"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            store.put_bytes(b"x" * 5000)
        except PlatformError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert "File too large" in done.stdout, done.stderr
    assert "free space" in done.stdout
    assert not list((tmp_path / "store").glob("blobs/*/*"))
    assert [path.name for path in (tmp_path / "store" / "scratch").iterdir()] == ["lock"]


def test_an_unknown_protocol_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="artifacts_url"):
        ArtifactStore("nowhere://bucket", local=tmp_path)
