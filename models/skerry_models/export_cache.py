"""Exported graphs on this machine's disk: torch's export takes from five seconds to half a minute and depends on code.

A cache entry is named by everything that the export depends on, and whoever reads one proves it against torch
(:mod:`skerry_models.kept_step`, :mod:`skerry_models.export`), so a stale or damaged entry costs an export and never
gives a wrong graph. A cache that cannot be read or written is as good as an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import logging
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from skerry_models.cache import cache_folder
from skerry_models.task import Task, create_device_network

logger = logging.getLogger(__name__)

#: What an entry may be: a training step with its serialized TrainStepSpec, or the graph that inference is made of.
TRAIN_STEP = "train-step"
INFERENCE = "inference"
#: Entries that are kept; the ones written first go.
ENTRIES = 32
#: How long an export that another process is making is waited for (seconds); then it is made twice.
PATIENCE_S = 180.0
_LIBRARIES = ("torch", "onnx", "onnxscript")
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8


def export_folder() -> Path:
    """Where the entries lie."""
    return cache_folder() / "exports"


def entry_name(task: Task, kind: str) -> str | None:
    """Kind and digest of what the export of a task's network depends on; None if that cannot be found out."""
    source = inspect.getsourcefile(type(task))
    if source is None:
        return None
    digest = hashlib.sha256()
    network = task.create_network(0)
    trained = [name for name, value in create_device_network(task, 0).named_parameters() if value.requires_grad]
    facts = [
        *(f"{library} {metadata.version(library)}" for library in _LIBRARIES),
        task.name,
        repr(task.input.shape),
        repr(task.classes),
        repr(task.default_training.momentum),
        repr(network),
        repr([(name, tuple(value.shape), str(value.dtype)) for name, value in network.state_dict().items()]),
        repr(trained),
    ]
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(source)]:
        digest.update(path.read_bytes() + b"\0")
    return f"{kind}-{digest.hexdigest()}"


@contextlib.contextmanager
def one_at_a_time(task: Task, kind: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold off other processes of this machine that want the same export: who waited finds it in the cache.

    A cache that cannot be locked, or an owner that takes longer than ``patience_s``, costs a second export.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_folder() / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context((folder / str(entry_name(task, kind))).open("a"))
        except OSError as error:
            logger.info("the export cache cannot be locked: %s", error)
        else:
            until = time.monotonic() + patience_s
            while not _locked(stream.fileno()) and time.monotonic() < until:
                time.sleep(0.1)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def read(task: Task, kind: str) -> tuple[bytes, bytes] | None:
    """The kept graph and its description, not proven yet; None if there is none."""
    try:
        name = entry_name(task, kind)
        data = b"" if name is None else (export_folder() / name).read_bytes()
    except OSError:
        return None
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < _LENGTH_BYTES or hashlib.sha256(body).digest() != digest:
        return None
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    return body[end:], body[_LENGTH_BYTES:end]


def write(task: Task, kind: str, model: bytes, spec: bytes = b"") -> None:
    """Keep a graph and what describes it; a disk that is full or read-only is no error."""
    body = len(spec).to_bytes(_LENGTH_BYTES, "little") + spec + model
    temporary: Path | None = None
    try:
        name, folder = entry_name(task, kind), export_folder()
        if name is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as out:
            temporary = Path(out.name)
            out.write(body + hashlib.sha256(body).digest())
        temporary.replace(folder / name)
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for path in sorted(entries, key=lambda path: path.stat().st_mtime)[:-ENTRIES]:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.info("the export is not kept for the next time: %s", error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
