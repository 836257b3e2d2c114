"""Release manifests: which files a bundle has, in chunks, and how they are checked.

The digest of a bundle is the SHA-256 of its sorted lines ``<sha256 hex>  <size>  <path>\\n``: the same files give the
same bundle on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.limits import (
    BUNDLE_FILES,
    CHUNK_BYTES,
    DEADLINE_US,
    DELTAS,
    FILE_BYTES,
    MESSAGE_BYTES,
    PATH_CHARACTERS,
)
from skerry_contract.v1.release_pb2 import DeltaEntry, FileEntry, ReleaseManifest
from skerry_contract.wire import parse_message


def chunk_count(size: int, chunk_bytes: int) -> int:
    """Number of chunks of a file of ``size`` bytes; an empty file has none."""
    return -(-size // chunk_bytes)


def describe_file(path: Path, name: str, *, chunk_bytes: int = CHUNK_BYTES) -> FileEntry:
    """Hash a file, whole and by chunks.

    Args:
        path: Where it lies.
        name: Its path inside the bundle.
        chunk_bytes: Size of every chunk but the last.
    """
    whole = hashlib.sha256()
    chunks: list[bytes] = []
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(chunk_bytes):
            whole.update(block)
            chunks.append(hashlib.sha256(block).digest())
            size += len(block)
    entry = FileEntry(path=name, size=size, sha256=whole.digest(), chunk_bytes=chunk_bytes, chunk_sha256=chunks)
    check_file_entry(entry, field=name)
    return entry


def check_file_entry(entry: FileEntry, *, field: str) -> FileEntry:
    """Return ``entry`` if it is consistent; raises WireError."""
    path = PurePosixPath(entry.path)
    plain = not path.is_absolute() and str(path) == entry.path and not {"..", "."} & set(path.parts)
    printable = entry.path.isascii() and entry.path.isprintable() and "\\" not in entry.path
    if not entry.path or not plain or not printable or len(entry.path) > PATH_CHARACTERS:
        raise WireError(f"{field}.path", expected="a plain relative path", got=entry.path)
    _check_content(entry, field=field)
    if len(entry.deltas) > DELTAS:
        raise WireError(f"{field}.deltas", expected=f"at most {DELTAS}", got=len(entry.deltas))
    for index, delta in enumerate(entry.deltas):
        name = f"{field}.deltas[{index}]"
        _check_content(delta, field=name)
        if not 1 <= delta.size < entry.size:
            raise WireError(f"{name}.size", expected=f"1 to {entry.size - 1}: less than the file", got=delta.size)
        if len(delta.base_sha256) != 32 or delta.base_sha256 == entry.sha256:
            raise WireError(f"{name}.base_sha256", expected="32 bytes of another file", got=delta.base_sha256.hex())
    bases = [delta.base_sha256 for delta in entry.deltas]
    if len(set(bases)) != len(bases):
        raise WireError(f"{field}.deltas", expected="distinct bases", got=[base.hex() for base in bases])
    return entry


def describe_delta(content: bytes, *, base_sha256: bytes, chunk_bytes: int = CHUNK_BYTES) -> DeltaEntry:
    """Hash a delta, whole and by chunks.

    Args:
        content: The delta (format: :mod:`skerry_contract.delta`).
        base_sha256: Digest of the file that it applies to.
        chunk_bytes: Size of every chunk but the last.
    """
    pieces = (content[start : start + chunk_bytes] for start in range(0, len(content), chunk_bytes))
    return DeltaEntry(
        base_sha256=base_sha256,
        size=len(content),
        sha256=hashlib.sha256(content).digest(),
        chunk_bytes=chunk_bytes,
        chunk_sha256=[hashlib.sha256(piece).digest() for piece in pieces],
    )


def _check_content(entry: FileEntry | DeltaEntry, *, field: str) -> None:
    """Size and digests of what is sent in chunks; raises WireError."""
    if entry.size > FILE_BYTES:
        raise WireError(f"{field}.size", expected=f"at most {FILE_BYTES} bytes", got=entry.size)
    if len(entry.sha256) != 32:
        raise WireError(f"{field}.sha256", expected="32 bytes", got=f"{len(entry.sha256)} bytes")
    if not 1 <= entry.chunk_bytes <= CHUNK_BYTES:
        raise WireError(f"{field}.chunk_bytes", expected=f"1 to {CHUNK_BYTES}", got=entry.chunk_bytes)
    expected = chunk_count(entry.size, entry.chunk_bytes)
    if len(entry.chunk_sha256) != expected:
        raise WireError(f"{field}.chunk_sha256", expected=f"{expected} digests", got=len(entry.chunk_sha256))
    if any(len(digest) != 32 for digest in entry.chunk_sha256):
        raise WireError(f"{field}.chunk_sha256", expected="digests of 32 bytes", got="another length")


def bundle_digest(entries: Iterable[FileEntry]) -> bytes:
    """SHA-256 that names a bundle."""
    lines = sorted(f"{entry.sha256.hex()}  {entry.size}  {entry.path}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).digest()


def describe_folder(folder: Path) -> Iterator[FileEntry]:
    """Entries of every regular file below ``folder``, sorted by path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield describe_file(path, path.relative_to(folder).as_posix())


def check_manifest(manifest: ReleaseManifest) -> ReleaseManifest:
    """Return ``manifest`` if it is complete and consistent.

    Raises:
        WireError: A missing or malformed field, duplicate paths, a variant without its file, a wrong bundle digest.
    """
    check_name(manifest.release_id, field="manifest.release_id")
    check_name(manifest.task, field="manifest.task")
    if not 1 <= len(manifest.files) <= BUNDLE_FILES:
        raise WireError("manifest.files", expected=f"1 to {BUNDLE_FILES}", got=len(manifest.files))
    for index, entry in enumerate(manifest.files):
        check_file_entry(entry, field=f"manifest.files[{index}]")
    paths = [entry.path for entry in manifest.files]
    if len(set(paths)) != len(paths):
        raise WireError("manifest.files", expected="distinct paths", got=paths)
    if manifest.deadline_us > DEADLINE_US:
        raise WireError("manifest.deadline_us", expected=f"at most {DEADLINE_US}", got=manifest.deadline_us)
    if not manifest.variants:
        raise WireError("manifest.variants", expected="at least one", got=0)
    for variant in manifest.variants:
        if variant.path not in paths:
            raise WireError(
                f"manifest.variants[{variant.name}].path", expected="a file of the bundle", got=variant.path
            )
    if bundle_digest(manifest.files) != manifest.bundle_sha256:
        raise WireError(
            "manifest.bundle_sha256", expected=bundle_digest(manifest.files).hex(), got=manifest.bundle_sha256.hex()
        )
    return manifest


def parse_manifest(payload: bytes) -> ReleaseManifest:
    """Parse and check a verified payload; raises WireError."""
    return check_manifest(parse_message(ReleaseManifest, payload, limit=MESSAGE_BYTES))
