"""What a federated calibration is made with, and what comes of it: the control plane's graph and rows, plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from skerry_contract.calibration import TensorRanges, merge_ranges, ranges_from_outputs
from skerry_contract.tensors import Array, encode_bundle
from skerry_models.runtime import open_session

if TYPE_CHECKING:
    from skerry_models.task import Dataset

#: Most rows that a device looks at, and that the reference is measured on.
MAXIMUM_ROWS: Final = 512
#: Name of the graph in a bundle.
CALIBRATE_GRAPH: Final = "calibrate.onnx"
#: Rows per run on the control plane.
_BATCH_ROWS: Final = 32


class Reference(Protocol):
    """What the control plane measures itself."""

    graph_sha256: bytes

    def __call__(self, state: Mapping[str, Array]) -> TensorRanges:
        """Ranges of a state on the control plane's own rows."""
        ...


@dataclass(frozen=True)
class CalibrationSource:
    """What a federated calibration is made with.

    Attributes:
        reference: See :class:`Reference`; None: the base release has no calibrate.onnx, so nobody can be asked.
        kept: File that remembers the merged ranges when the campaign's process is killed; its folder exists.
        put: Stores bytes and returns their digest (hexadecimal).
    """

    reference: Reference | None
    kept: Path
    put: Callable[[bytes], str]


@dataclass(frozen=True)
class CalibrationOutcome:
    """Whose rows the result's INT8 ranges come from.

    Attributes:
        source: "devices" or "central".
        devices: Devices behind the ranges; 0 with "central".
        rows: Their rows.
        ranges_sha256: Digest of the merged ranges in the artifact store; empty with "central".
        reason: Why "central"; empty otherwise.
    """

    source: str
    devices: int = 0
    rows: int = 0
    ranges_sha256: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


class OnnxReference:
    """Measures on the control plane's own rows, on one thread."""

    def __init__(self, model: bytes, dataset: Dataset) -> None:
        """Open the graph: calibrate.onnx.

        Raises:
            BundleError: It does not load.
            ValueError: The data set is empty.
        """
        if not len(dataset):
            raise ValueError("the data set is empty")
        self.graph_sha256 = hashlib.sha256(model).digest()
        session: Any = open_session(model)
        self._session = session
        self._inputs = [value.name for value in session.get_inputs() if value.name != "input"]
        self._outputs = [value.name for value in session.get_outputs()]
        self._rows = dataset.x[:: -(-len(dataset) // MAXIMUM_ROWS)]

    def __call__(self, state: Mapping[str, Array]) -> TensorRanges:
        """See :class:`Reference`; raises WireError when a range is not finite."""
        digest = hashlib.sha256(encode_bundle(state)).digest()
        feed = {name: np.ascontiguousarray(state[name]) for name in self._inputs}
        parts = []
        for start in range(0, len(self._rows), _BATCH_ROWS):
            x = np.ascontiguousarray(self._rows[start : start + _BATCH_ROWS])
            values = self._session.run(self._outputs, {**feed, "input": x})
            told = dict(zip(self._outputs, values, strict=True))
            parts.append(
                ranges_from_outputs(told, rows=len(x), graph_sha256=self.graph_sha256, parameters_sha256=digest)
            )
        return TensorRanges(self.graph_sha256, digest, merge_ranges(parts).ranges, rows=len(self._rows))
