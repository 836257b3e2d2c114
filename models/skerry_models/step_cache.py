"""Exported training steps on this machine's disk: an export takes half a minute and depends only on code.

A cache entry is named by everything that the export depends on, and whoever reads one proves it like a parent's step
(:mod:`skerry_models.kept_step`), so a stale or damaged entry costs an export and never a wrong step. A cache that
cannot be read or written is as good as an empty one.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import tempfile
from importlib import metadata
from pathlib import Path

from skerry_models.cache import cache_folder
from skerry_models.task import Task

logger = logging.getLogger(__name__)

#: Entries that are kept; the ones written first go.
ENTRIES = 16
_LIBRARIES = ("torch", "onnx", "onnxscript")
_DIGEST_BYTES = 32
_LENGTH_BYTES = 8


def step_folder() -> Path:
    """Where the entries lie."""
    return cache_folder() / "train-steps"


def entry_name(task: Task) -> str | None:
    """Digest of what the export of a task's training step depends on; None if that cannot be found out."""
    source = inspect.getsourcefile(type(task))
    if source is None:
        return None
    digest = hashlib.sha256()
    network = task.create_network(0)
    facts = [
        *(f"{library} {metadata.version(library)}" for library in _LIBRARIES),
        task.name,
        repr(task.input.shape),
        repr(task.classes),
        repr(task.default_training.momentum),
        repr(network),
        repr([(name, tuple(value.shape), str(value.dtype)) for name, value in network.state_dict().items()]),
    ]
    for fact in facts:
        digest.update(fact.encode() + b"\0")
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(source)]:
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def read(task: Task) -> tuple[bytes, bytes] | None:
    """The kept graph and its serialized TrainStepSpec, not proven yet; None if there is none."""
    try:
        name = entry_name(task)
        data = b"" if name is None else (step_folder() / name).read_bytes()
    except OSError:
        return None
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < _LENGTH_BYTES or hashlib.sha256(body).digest() != digest:
        return None
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    return body[end:], body[_LENGTH_BYTES:end]


def write(task: Task, model: bytes, spec: bytes) -> None:
    """Keep a step; a disk that is full or read-only is no error."""
    body = len(spec).to_bytes(_LENGTH_BYTES, "little") + spec + model
    temporary: Path | None = None
    try:
        name, folder = entry_name(task), step_folder()
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
        logger.info("the training step is not kept for the next time: %s", error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
