"""Parameters that stay on the device: normalisation layers (FedBN, arXiv 2102.07623), a head (FedPer, 1912.00818).

A campaign names them by shell patterns. The device trains and measures with its own values in their place and sends
them to nobody. They are kept per task, one file each, and carried over to the next release of the task as long as
name, shape and type fit; those that do not fit any more are dropped with a word in the log.

Invariants: what is put into a model always has the model's shape and type and is finite; a file that cannot be read or
written costs the device its own values, never a round.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from skerry_agent.files import DISK, Disk
from skerry_agent.training.kept_files import KeptFiles
from skerry_agent.training.trainer import Array, State
from skerry_contract.errors import WireError
from skerry_contract.limits import PARAMETER_BYTES
from skerry_contract.tensors import decode_bundle, encode_bundle

logger = logging.getLogger(__name__)

#: Tasks with parameters of their own.
TASKS = 16
#: Longest list of patterns (characters), and their number.
PATTERN_CHARACTERS = 16_384
PATTERNS = 256


def parse_patterns(text: str) -> tuple[str, ...]:
    """The patterns of an instruction, one a line.

    Raises:
        WireError: More or longer than a device takes.
    """
    if len(text) > PATTERN_CHARACTERS:
        raise WireError("personal", expected=f"at most {PATTERN_CHARACTERS} characters", got=len(text))
    patterns = tuple(line.strip() for line in text.split("\n") if line.strip())
    if len(patterns) > PATTERNS:
        raise WireError("personal", expected=f"at most {PATTERNS} patterns", got=len(patterns))
    return patterns


def personal_names(names: Collection[str], patterns: Collection[str]) -> frozenset[str]:
    """The names that match one of the patterns."""
    return frozenset(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def with_own(model: Mapping[str, Array], own: Mapping[str, Array]) -> State:
    """``model`` with the device's own values in their place, in the order of the model."""
    return {name: own.get(name, array) for name, array in model.items()}


class PersonalParameters:
    """The device's own values, per task; used by one thread."""

    def __init__(self, folder: Path | None, *, reserve: int = 0, disk: Disk = DISK) -> None:
        """``folder`` has one file a task; None: memory only. ``reserve``: free bytes that writing leaves alone."""
        self._files = KeptFiles(folder, limit=PARAMETER_BYTES, reserve=reserve, disk=disk)
        #: Tasks whose misfits have been told of.
        self._told: set[str] = set()

    def load(self, task: str, model: Mapping[str, Array], names: Collection[str] | None = None) -> State:
        """The own values that fit a model.

        Args:
            task: Task of the model.
            model: Tells names, shapes and types.
            names: Only these; None: all that are kept.
        """
        content = self._files.read(task)
        if content is None:
            return {}
        try:
            kept = decode_bundle(content)
        except WireError as error:
            logger.warning("own parameters of %s are dropped: %s", task, error)
            self._files.remove(task)
            return {}
        fitting: State = {}
        misfits: list[str] = []
        for name, array in kept.items():
            like = model.get(name)
            if like is None or like.shape != array.shape or like.dtype != array.dtype or not _finite(array):
                misfits.append(name)
            elif names is None or name in names:
                fitting[name] = array
        if misfits and task not in self._told:
            self._told.add(task)
            logger.warning("own parameters of %s do not fit its network any more: %s", task, ", ".join(misfits[:8]))
        return fitting

    def digest(self, task: str) -> bytes:
        """Digest (32 bytes) of what is kept for a task; empty if nothing is."""
        return self._files.digest(task)

    def keep(self, task: str, own: Mapping[str, Array]) -> bool:
        """Replace what is kept for a task; False if it cannot be written: the values before are still there."""
        self._told.discard(task)
        if not own:
            self._files.remove(task)
            return True
        known = self._files.names()
        if task not in known:
            for name in known[: max(0, len(known) - TASKS + 1)]:
                self._files.remove(name)
        try:
            self._files.write(task, encode_bundle(own))
        except OSError as error:
            logger.warning("own parameters of %s are not kept: %s", task, error)
            return False
        return True

    def forget(self, task: str) -> None:
        """The device goes back to everybody's parameters."""
        self._files.remove(task)


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
