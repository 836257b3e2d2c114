"""What an inference runtime must do to serve a release: probe, build, load, run.

Invariants that every backend keeps (``tests/integration/engine/test_backend_contract.py`` holds them to it):

- ``run`` may be called from several threads at once, and the arrays that it returns belong to the caller;
- any failure of the runtime is a :class:`~skerry_agent.engine.errors.BackendError`, never its own exception;
- a graph whose tensors are not those of the manifest is refused by ``load``;
- a runtime that would silently fall back to another device is refused by ``load``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """What a backend found on this machine.

    Attributes:
        available: Whether it can build and run here.
        version: Version of the runtime and what compiled models depend on; part of the identity of a choice.
        detail: The device, or why the backend is not available.
    """

    available: bool
    version: str
    detail: str


@dataclass(frozen=True)
class Port:
    """One float32 tensor of a graph.

    Attributes:
        name: Its name in the graph.
        shape: Dimensions after the batch dimension.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSource:
    """A verified ONNX graph and what the manifest says about it.

    Attributes:
        onnx: The file.
        sha256: Its digest (32 bytes).
        input: The data input.
        outputs: Outputs, in the order in which ``run`` returns them.
        maximum_batch: Largest batch that will be asked for, 1 or more.
    """

    onnx: bytes
    sha256: bytes
    input: Port
    outputs: tuple[Port, ...]
    maximum_batch: int


@dataclass(frozen=True)
class BuiltModel:
    """What ``load`` takes: the graph in the runtime's own form.

    Attributes:
        source: What it was built from.
        data: The runtime's form: the ONNX file itself, or a serialised engine.
        key: Names everything that ``data`` depends on; equal keys mean interchangeable data.
    """

    source: ModelSource
    data: bytes
    key: str


class Runner(Protocol):
    """A loaded model."""

    def run(self, x: Floats) -> tuple[Floats, ...]:
        """Compute the outputs.

        Args:
            x: float32 [batch, ...] of the input's shape, 1 <= batch <= maximum_batch.

        Returns:
            float32 [batch, ...] per output, in the order of ``ModelSource.outputs``.

        Raises:
            BackendError: The runtime failed.
        """
        ...

    def close(self) -> None:
        """Free device memory. The caller makes sure that no ``run`` is under way."""
        ...


class Backend(Protocol):
    """An inference runtime."""

    @property
    def name(self) -> str:
        """Name in choices, metrics and errors."""
        ...

    def accepts(self, variant: str) -> bool:
        """Whether the runtime can be asked to run a variant of that name."""
        ...

    def probe(self) -> Probe:
        """Look whether the runtime is here; never raises."""
        ...

    def build(self, source: ModelSource, cache: Path) -> BuiltModel:
        """Bring a graph into the runtime's form.

        Args:
            source: The graph.
            cache: Folder for what is worth keeping; made if needed, may be deleted at any time.

        Raises:
            BackendError: The runtime refuses the graph.
        """
        ...

    def load(self, built: BuiltModel) -> Runner:
        """Make a model ready to run.

        Raises:
            BackendError: The runtime refuses it, or the graph is not the one of the manifest.
        """
        ...
