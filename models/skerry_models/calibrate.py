"""Calibration of one set of parameters: calibrate.onnx, and the ranges that INT8 is made from.

The ranges come from the cloud's rows, or from devices that ran calibrate.onnx with the same parameters on their own
rows (federated calibration). Either way the graph is proven: on rows that both have it gives what infer.onnx gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry_contract.calibration import TensorRanges
from skerry_contract.tensors import Array
from skerry_models.activation_ranges import (
    CALIBRATE,
    check_same_ranges,
    measure_ranges,
    with_range_outputs,
)
from skerry_models.errors import BundleError
from skerry_models.export import InferenceGraphs
from skerry_models.parameters import encode_state
from skerry_models.quantise import calibrated_tensors
from skerry_models.task import Float32

#: Rows that both graphs are compared on.
_COMPARED_ROWS = 16


@dataclass(frozen=True)
class Calibration:
    """A graph and what it measured.

    Attributes:
        graph: calibrate.onnx.
        ranges: Of every activation that INT8 needs.
        federated: Whether devices measured them.
    """

    graph: bytes = field(repr=False)
    ranges: TensorRanges
    federated: bool

    def lineage(self) -> dict[str, object]:
        """What a bundle says about it."""
        source = "devices" if self.federated else "central"
        return {"source": source, "rows": self.ranges.rows, "devices": self.ranges.devices}


def calibration_graph(graphs: InferenceGraphs) -> bytes:
    """calibrate.onnx of exported graphs; it does not depend on the parameters.

    Raises:
        ExportError: An activation of infer.onnx is not in evaluate.onnx.
    """
    return with_range_outputs(graphs.evaluate, calibrated_tensors(graphs.infer))


def calibrate(
    graphs: InferenceGraphs, state: Mapping[str, Array], rows: Float32, given: TensorRanges | None = None
) -> Calibration:
    """Calibrate on rows, or take what devices measured.

    Args:
        graphs: Both exported graphs.
        state: The parameters in them.
        rows: float32 [N, *input], raw rows that span what devices see; at least 1, a few hundred are enough.
        given: Merged ranges of devices.

    Raises:
        ExportError: calibrate.onnx measures something else than infer.onnx.
        BundleError: ``given`` are of another network or other parameters.
        ValueError: No rows.
    """
    graph, tensors = calibration_graph(graphs), calibrated_tensors(graphs.infer)
    probe = with_range_outputs(graphs.infer, tensors)
    compared = rows[:_COMPARED_ROWS]
    check_same_ranges(measure_ranges(graph, compared, state).ranges, measure_ranges(probe, compared).ranges)
    digest, parameters = hashlib.sha256(graph).digest(), hashlib.sha256(encode_state(state)).digest()
    if given is not None:
        if (given.graph_sha256, given.parameters_sha256) != (digest, parameters):
            raise BundleError(CALIBRATE, "the ranges are of another network or other parameters")
        if sorted(given.ranges) != sorted(tensors):
            raise BundleError(CALIBRATE, f"expected ranges of {len(tensors)} tensors, got {len(given.ranges)}")
        return Calibration(graph, given, federated=True)
    measured = measure_ranges(probe, rows)
    return Calibration(graph, TensorRanges(digest, parameters, measured.ranges, rows=len(rows)), federated=False)
