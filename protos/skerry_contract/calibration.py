"""Ranges of activations that devices measure on their own rows and that merge into what quantisation needs.

Merging takes the smaller minimum, the larger maximum and adds the rows up: it is associative and commutative, so the
order in which devices answer, and who merges, cannot matter. Rows are counted up to :data:`LARGEST_COUNT` and then
stay there. Only numpy and protobuf are needed; a device runs ``calibrate.onnx`` with any runtime and hands over its
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skerry_contract.errors import WireError
from skerry_contract.limits import TENSORS
from skerry_contract.v1.calibration_pb2 import ActivationRange, ActivationRanges
from skerry_contract.wire import parse_message

#: Outputs of calibrate.onnx are called ``minimum/<tensor>`` and ``maximum/<tensor>``, float32 [].
MINIMUM_PREFIX = "minimum/"
MAXIMUM_PREFIX = "maximum/"
#: Largest message (bytes).
RANGES_BYTES = 1 << 20
#: Largest magnitude of an activation; float32 arithmetic beyond it is a broken network or a lie.
LARGEST_MAGNITUDE = 1e12
#: Largest number of rows and devices.
LARGEST_COUNT = 1 << 53
_NAME_CHARACTERS = 200
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class TensorRanges:
    """Smallest and largest value of each activation.

    Attributes:
        graph_sha256: Digest of calibrate.onnx.
        parameters_sha256: Digest of the wire form of the parameters.
        ranges: Tensor name to (minimum, maximum), sorted by name, at least one; finite.
        rows: Rows behind them, at least 1.
        devices: Devices behind them, at least 1.
    """

    graph_sha256: bytes
    parameters_sha256: bytes
    ranges: Mapping[str, tuple[float, float]] = field(repr=False)
    rows: int
    devices: int = 1

    def __post_init__(self) -> None:
        for name, digest in (("graph_sha256", self.graph_sha256), ("parameters_sha256", self.parameters_sha256)):
            if len(digest) != _DIGEST_BYTES:
                raise WireError(f"ranges.{name}", expected=f"{_DIGEST_BYTES} bytes", got=len(digest))
        for name, count in (("rows", self.rows), ("devices", self.devices)):
            if not 1 <= count <= LARGEST_COUNT:
                raise WireError(f"ranges.{name}", expected=f"1 to {LARGEST_COUNT}", got=count)
        if not 1 <= len(self.ranges) <= TENSORS:
            raise WireError("ranges.tensors", expected=f"1 to {TENSORS}", got=len(self.ranges))
        if list(self.ranges) != sorted(self.ranges):
            raise WireError("ranges.tensors", expected="names in order", got="another order")
        for name, (least, most) in self.ranges.items():
            if not 1 <= len(name) <= _NAME_CHARACTERS:
                raise WireError("ranges.tensors.name", expected=f"1 to {_NAME_CHARACTERS} characters", got=len(name))
            if not (math.isfinite(least) and math.isfinite(most) and least <= most):
                raise WireError(f"ranges[{name}]", expected="finite, minimum <= maximum", got=(least, most))
            if max(abs(least), abs(most)) > LARGEST_MAGNITUDE:
                raise WireError(f"ranges[{name}]", expected=f"at most {LARGEST_MAGNITUDE:g}", got=(least, most))

    def merge(self, other: TensorRanges) -> TensorRanges:
        """Ranges over the rows of both.

        Raises:
            WireError: They are of another graph, other parameters or other tensors.
        """
        for name in ("graph_sha256", "parameters_sha256"):
            if getattr(self, name) != getattr(other, name):
                expected, got = getattr(self, name).hex(), getattr(other, name).hex()
                raise WireError(f"ranges.{name}", expected=expected, got=got)
        if self.ranges.keys() != other.ranges.keys():
            raise WireError("ranges.tensors", expected="the same tensors", got=f"{len(other.ranges)} others")
        return TensorRanges(
            self.graph_sha256,
            self.parameters_sha256,
            {
                name: (min(least, other.ranges[name][0]), max(most, other.ranges[name][1]))
                for name, (least, most) in self.ranges.items()
            },
            rows=min(self.rows + other.rows, LARGEST_COUNT),
            devices=min(self.devices + other.devices, LARGEST_COUNT),
        )


def merge_ranges(parts: Iterable[TensorRanges]) -> TensorRanges:
    """Ranges over the rows of all parts, at least one; raises what :meth:`TensorRanges.merge` does, and ValueError."""
    merged: TensorRanges | None = None
    for part in parts:
        merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise ValueError("nothing to merge")
    return merged


def ranges_from_outputs(
    outputs: Mapping[str, npt.ArrayLike], *, rows: int, graph_sha256: bytes, parameters_sha256: bytes
) -> TensorRanges:
    """What one run of calibrate.onnx says.

    Args:
        outputs: Output name of the graph to its value.
        rows: Rows of the batch that was run.
        graph_sha256: Digest of calibrate.onnx.
        parameters_sha256: Digest of the wire form of the parameters.

    Raises:
        WireError: An output is missing, foreign or not finite.
    """
    names = sorted(name.removeprefix(MINIMUM_PREFIX) for name in outputs if name.startswith(MINIMUM_PREFIX))
    wanted = {prefix + name for name in names for prefix in (MINIMUM_PREFIX, MAXIMUM_PREFIX)}
    if wanted != set(outputs):
        raise WireError("ranges.outputs", expected="a minimum and a maximum of each", got=sorted(wanted ^ set(outputs)))
    ranges = {
        name: (float(np.asarray(outputs[MINIMUM_PREFIX + name])), float(np.asarray(outputs[MAXIMUM_PREFIX + name])))
        for name in names
    }
    return TensorRanges(graph_sha256, parameters_sha256, ranges, rows)


def within(ranges: TensorRanges, reference: TensorRanges, *, factor: float) -> str:
    """Name of the first tensor whose magnitude is beyond ``factor`` times that of the reference; empty if none is.

    A range has no median: one device that lies, or whose sensor is broken, would take the precision of all others. So
    whoever merges first holds each contribution against ranges that it trusts.

    Raises:
        WireError: They are of other tensors.
        ValueError: ``factor`` is below 1.
    """
    if not factor >= 1:
        raise ValueError(f"the factor must be at least 1, got {factor}")
    if ranges.ranges.keys() != reference.ranges.keys():
        raise WireError("ranges.tensors", expected="the same tensors", got=f"{len(ranges.ranges)} others")
    for name, ends in ranges.ranges.items():
        if max(map(abs, ends)) > factor * max(*map(abs, reference.ranges[name]), 1e-6):
            return name
    return ""


def encode_ranges(ranges: TensorRanges) -> bytes:
    """Wire form, the same bytes for the same ranges."""
    message = ActivationRanges(
        graph_sha256=ranges.graph_sha256,
        parameters_sha256=ranges.parameters_sha256,
        rows=ranges.rows,
        devices=ranges.devices,
        tensors=[
            ActivationRange(name=name, minimum=least, maximum=most) for name, (least, most) in ranges.ranges.items()
        ],
    )
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def decode_ranges(data: bytes) -> TensorRanges:
    """Read and check the wire form; raises WireError."""
    message = parse_message(ActivationRanges, data, limit=RANGES_BYTES)
    names = [tensor.name for tensor in message.tensors]
    if len(set(names)) != len(names):
        raise WireError("ranges.tensors", expected="distinct names", got=f"{len(names)} names")
    return TensorRanges(
        message.graph_sha256,
        message.parameters_sha256,
        {tensor.name: (tensor.minimum, tensor.maximum) for tensor in message.tensors},
        rows=message.rows,
        devices=message.devices,
    )
