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
        format: What the file is, by the manifest: empty for ONNX, "ort" for onnxruntime's flat form.
    """

    onnx: bytes
    sha256: bytes
    input: Port
    outputs: tuple[Port, ...]
    maximum_batch: int
    format: str = ""


@dataclass(frozen=True)
class BuiltModel:
    """What ``load`` takes: the graph in the runtime's own form.

    Attributes:
        source: What it was built from.
        data: The runtime's form: the ONNX file itself, or a serialised engine.
        key: Names everything that ``data`` depends on; equal keys mean interchangeable data.
        format: What ``data`` is, as in ``ModelSource.format``; engines have none.
        kept: File of the cache that holds ``data``, to be deleted if the model turns out wrong; None if none does.
        fresh: Whether it was built just now, so that building it again would lead nowhere else.
        cache: Folder that a runtime may use that compiles while it loads; None if it may not.
    """

    source: ModelSource
    data: bytes
    key: str
    format: str = ""
    kept: Path | None = None
    fresh: bool = True
    cache: Path | None = None


def base_form(variant: str) -> str:
    """Form of a variant without the network that it is a form of: "int8-x86" of "small/int8-x86"."""
    return variant.rpartition("/")[2]


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

    @property
    def compiles(self) -> bool:
        """Whether it compiles a graph for minutes before it runs it, so that this is not done while somebody waits."""
        ...

    def accepts(self, variant: str, form: str = "") -> bool:
        """Whether the runtime can be asked to run a variant of that name and file format (``ModelSource.format``)."""
        ...

    def probe(self) -> Probe:
        """Look whether the runtime is here; never raises."""
        ...

    def keep(self, source: ModelSource, cache: Path) -> bool:
        """Put a form that loads faster into the cache, for later calls of :meth:`build`.

        Returns:
            Whether there is one. False for a runtime whose ``build`` keeps everything, or has nothing to keep.

        Raises:
            BackendError: The runtime failed.
            OSError: The disk is full; nothing is kept.
        """
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
