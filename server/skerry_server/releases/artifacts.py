"""The artifact store: immutable content, named by its SHA-256.

Layout: ``blobs/<first two digits>/<sha256>`` at the store's URL; below the local folder ``bundles/<sha256>/`` (bundles
as folders), ``cache/<sha256>`` (blobs of a remote store) and ``scratch/`` (unfinished files).
A bundle is a blob too: the sorted list of its files that :func:`skerry_contract.manifest.bundle_digest` hashes, so
that the list's own digest *is* the bundle's.

Invariants: a name appears with its complete content or not at all; content is checked against its name before it
is handed out; storing content that is there already costs a check and heals a damaged copy.

>>> store = ArtifactStore(f"file://{folder}", local=folder)  # doctest: +SKIP
>>> store.get_bytes(store.put_bytes(b"skerry"))  # doctest: +SKIP
b'skerry'
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_sha256_hex
from skerry_contract.limits import BUNDLE_FILES, CHUNK_BYTES
from skerry_contract.manifest import chunk_count, describe_folder
from skerry_server.errors import InvalidRequestError, NotFoundError, PlatformError
from skerry_server.files import sync_folder, write_new
from skerry_server.releases.blobs import Scratch, copy_flushed, locked_file, open_backend

#: Files whose check is remembered.
_REMEMBERED_FILES = 1_024
#: Largest list of files of a bundle (bytes).
_LISTING_BYTES = 64 << 10


class ArtifactCorruptError(PlatformError):
    """What the store holds under a digest is something else.

    Attributes:
        sha256: Digest that was asked for.
        path: The damaged file.
    """

    def __init__(self, sha256: str, path: Path) -> None:
        self.sha256 = sha256
        self.path = path
        super().__init__(
            f"artifact {sha256} is damaged ({path})", remedy="restore the file from a backup or store the content again"
        )


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: digest, size in bytes, path inside the bundle."""

    sha256: str
    size: int
    path: str


class ArtifactStore:
    """Blobs and bundles by digest; safe to use from several threads and processes."""

    def __init__(self, url: str, *, local: Path) -> None:
        """Open the store.

        Args:
            url: fsspec URL of the blobs.
            local: Folder of this machine for bundles, cached blobs and unfinished files; the same for every process.
        """
        self.url = url
        self._bundles = local / "bundles"
        self._cache = local / "cache"
        with _platform_errors("opening the artifact store"):
            for folder in (self._bundles, self._cache):
                folder.mkdir(parents=True, exist_ok=True)
            self._scratch = Scratch(local / "scratch")
            self._backend = open_backend(url, local)
            for scratch in (self._scratch, self._backend.scratch):
                scratch.sweep()
        self._verified: OrderedDict[Path, tuple[int, int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put_bytes(self, data: bytes) -> str:
        """Store bytes; returns their SHA-256 in hexadecimal digits."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self._intact(sha256):
            with _platform_errors(f"storing artifact {sha256}"), self._backend.scratch.path() as temporary:
                write_new(temporary, data)
                self._backend.store(_blob_name(sha256), temporary)
        return sha256

    def put_file(self, path: Path) -> str:
        """Store a file of any size; returns its SHA-256. The file must not change meanwhile."""
        with _platform_errors(f"storing {path}"), self._backend.scratch.path() as temporary:
            copy_flushed(path, temporary)
            sha256 = _hash_file(temporary)
            if not self._intact(sha256):
                self._backend.store(_blob_name(sha256), temporary)
        return sha256

    def get_bytes(self, sha256: str) -> bytes:
        """The content of a blob.

        Raises:
            InvalidRequestError: Not a digest.
            NotFoundError: There is no such blob.
            ArtifactCorruptError: The stored content has another digest.
        """
        path = self._blob_path(sha256)
        with _platform_errors(f"reading artifact {sha256}"):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactCorruptError(sha256, path)
        return data

    def has(self, sha256: str) -> bool:
        """Whether the blob is there; says nothing about its state."""
        return self._backend.exists(_blob_name(_checked(sha256)))

    def size(self, sha256: str) -> int:
        """Size of a blob in bytes; raises as :meth:`get_bytes`."""
        return self._blob_path(sha256).stat().st_size

    def open_chunk(self, file_sha256_hex: str, index: int, chunk_bytes: int = CHUNK_BYTES) -> bytes:
        """One chunk of a blob, for delivery. The whole blob is checked once per process and file version.

        Args:
            file_sha256_hex: Digest of the whole file.
            index: From 0.
            chunk_bytes: Size of every chunk but the last, 1 to ``CHUNK_BYTES``.

        Raises:
            InvalidRequestError: The index or size is out of range.
            NotFoundError: There is no such blob.
            ArtifactCorruptError: The stored content has another digest.
        """
        if not 1 <= chunk_bytes <= CHUNK_BYTES:
            raise InvalidRequestError("chunk_bytes", expected=f"1 to {CHUNK_BYTES}", got=chunk_bytes)
        path = self._blob_path(file_sha256_hex)
        self._verify(path, file_sha256_hex)
        with _platform_errors(f"reading artifact {file_sha256_hex}"), path.open("rb") as stream:
            chunks = chunk_count(os.fstat(stream.fileno()).st_size, chunk_bytes)
            if not 0 <= index < chunks:
                raise InvalidRequestError("index", expected=f"0 to {chunks - 1} (the file has {chunks})", got=index)
            stream.seek(index * chunk_bytes)
            return stream.read(chunk_bytes)

    def put_bundle(self, folder: Path) -> str:
        """Store every file below ``folder`` and the list of them; returns the bundle's digest.

        Raises:
            InvalidRequestError: No file, too many, a symbolic link, or a path that cannot travel.
        """
        for path in folder.rglob("*"):
            if path.is_symlink():
                raise InvalidRequestError("bundle", expected="regular files only", got=f"symbolic link {path.name}")
        try:
            entries = list(describe_folder(folder))
        except WireError as error:
            raise InvalidRequestError(f"bundle.{error.field}", expected=error.expected, got=error.got) from error
        if not 1 <= len(entries) <= BUNDLE_FILES:
            raise InvalidRequestError("bundle", expected=f"1 to {BUNDLE_FILES} files", got=len(entries))
        for entry in entries:
            if self.put_file(folder / entry.path) != entry.sha256.hex():
                raise InvalidRequestError("bundle", expected="files that stay as they are", got=f"{entry.path} changed")
        lines = sorted(f"{entry.sha256.hex()}  {entry.size}  {entry.path}\n" for entry in entries)
        return self.put_bytes("".join(lines).encode())

    def bundle_files(self, sha256: str) -> list[BundleFile]:
        """The files of a bundle, sorted by path; raises as :meth:`get_bytes`."""
        if self.size(sha256) > _LISTING_BYTES:
            raise NotFoundError("bundle", sha256)
        files: list[BundleFile] = []
        try:
            for line in self.get_bytes(sha256).decode().splitlines():
                digest, size, path = line.split("  ", 2)
                pure = PurePosixPath(path)
                if pure.is_absolute() or ".." in pure.parts:
                    raise ValueError(path)
                files.append(BundleFile(check_sha256_hex(digest, field="sha256"), int(size), path))
        except (ValueError, WireError) as error:
            raise NotFoundError("bundle", sha256) from error
        return sorted(files, key=lambda file: file.path)

    def bundle_folder(self, sha256: str) -> Path:
        """The bundle as a folder of this machine; made at the first call, checked at every one.

        Callers read it and change nothing. A damaged folder is made again from the blobs.

        Raises:
            NotFoundError: There is no such bundle.
            ArtifactCorruptError: A blob is damaged.
        """
        files = self.bundle_files(sha256)
        folder = self._bundles / sha256
        if not self._folder_intact(folder, files):
            self._materialise(folder, files)
        return folder

    def _materialise(self, folder: Path, files: list[BundleFile]) -> None:
        with (
            _platform_errors(f"unpacking bundle {folder.name}"),
            locked_file(self._bundles / ".lock", fcntl.LOCK_EX),
            self._scratch.path() as made,
            self._scratch.path() as discarded,
        ):
            if self._folder_intact(folder, files):
                return  # another process made it while this one waited
            made.mkdir()
            for file in files:
                target = made / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                blob = self._blob_path(file.sha256)
                copy_flushed(blob, target)
                if _hash_file(target) != file.sha256:
                    raise ArtifactCorruptError(file.sha256, blob)
            for inner in {(made / file.path).parent for file in files}:
                sync_folder(inner)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(discarded)
            made.rename(folder)
            sync_folder(self._bundles)

    def _folder_intact(self, folder: Path, files: list[BundleFile]) -> bool:
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        if present != {file.path for file in files}:
            return False
        try:
            for file in files:
                self._verify(folder / file.path, file.sha256)
        except (ArtifactCorruptError, OSError):
            return False
        return True

    def _intact(self, sha256: str) -> bool:
        name = _blob_name(sha256)
        if self._backend.local_path(name) is None:
            return self._backend.exists(name)
        try:
            self._verify(self._blob_path(sha256), sha256)
        except (NotFoundError, ArtifactCorruptError):
            return False
        return True

    def _blob_path(self, sha256: str) -> Path:
        """A path of this machine that holds the blob; a remote blob is fetched and checked first."""
        name = _blob_name(_checked(sha256))
        path = self._backend.local_path(name)
        if path is not None:
            if not path.is_file():
                raise NotFoundError("artifact", sha256)
            return path
        cached = self._cache / sha256
        if cached.is_file():
            try:
                self._verify(cached, sha256)
            except ArtifactCorruptError:
                cached.unlink(missing_ok=True)
        if not cached.is_file():
            with _platform_errors(f"fetching artifact {sha256}"), self._scratch.path() as temporary:
                try:
                    self._backend.fetch(name, temporary)
                except FileNotFoundError as error:
                    raise NotFoundError("artifact", sha256) from error
                if _hash_file(temporary) != sha256:
                    raise ArtifactCorruptError(sha256, temporary)
                temporary.replace(cached)
        return cached

    def _verify(self, path: Path, sha256: str) -> None:
        """Check a file against its digest, once per version of the file (inode, size, time of change)."""
        state = path.stat()
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
        with self._lock:
            if self._verified.get(path) == stamp:
                self._verified.move_to_end(path)
                return
        if _hash_file(path) != sha256:
            raise ArtifactCorruptError(sha256, path)
        with self._lock:
            self._verified[path] = stamp
            while len(self._verified) > _REMEMBERED_FILES:
                self._verified.popitem(last=False)


def _checked(sha256: str) -> str:
    try:
        return check_sha256_hex(sha256, field="sha256")
    except WireError as error:
        raise InvalidRequestError(error.field, expected=error.expected, got=error.got) from error


def _blob_name(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _platform_errors(what: str) -> Iterator[None]:
    """Turn a full disk or a missing permission into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise PlatformError(
            f"{what} failed ({error.strerror or error})", remedy="free space or make the artifact store writable"
        ) from error
