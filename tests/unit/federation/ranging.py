"""Devices that answer what values their activations take, and a control plane that knows its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from skerry_contract.calibration import TensorRanges, encode_ranges
from skerry_contract.campaign import CALIBRATE, CalibrateInstruction, CalibrateReply
from skerry_contract.tensors import Array, encode_bundle
from skerry_server.federation.exchange import Broadcast, Reply, ReplyError
from unit.federation.fakes import FakeDevice

GRAPH = b"g" * 32


def ranges(
    parameters: bytes, low: float, high: float, *, rows: int = 40, devices: int = 1, graph: bytes = GRAPH
) -> TensorRanges:
    """Of a network with two activations, the second from 0 to 1."""
    return TensorRanges(
        graph, hashlib.sha256(parameters).digest(), {"hidden": (low, high), "scores": (0.0, 1.0)}, rows, devices
    )


@dataclass
class RangingDevice(FakeDevice):
    """Its first activation goes from ``low`` to ``high``.

    Attributes:
        trouble: What is wrong with its ranges: "far", "graph", "parameters", "tensors", "crowd", "rows", "nan",
            "name", "garbage", "refuse", "old"; empty: nothing.
    """

    low: float = -1.0
    high: float = 1.0
    trouble: str = ""

    def answer(self, broadcast: Broadcast, fault: str) -> Reply | None:
        """See :class:`FakeDevice`."""
        if broadcast.kind != CALIBRATE:
            return super().answer(broadcast, fault)
        if self.trouble == "refuse":
            return Reply("", error=ReplyError("few-samples: 3 labelled samples are fewer than 20", refused=True))
        if self.trouble == "old":
            return Reply("", error=ReplyError("messages of type 'query.calibrate' are not known here", refused=True))
        told = CalibrateInstruction.from_fields(broadcast.fields)
        data = encode_ranges(self.ranges(told))
        if self.trouble == "nan":
            data = data.replace(b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f")  # 1.0 becomes NaN
        if self.trouble == "garbage":
            data = b"\xff" * 40
        name = "somebody-else" if self.trouble == "name" else self.name
        return Reply("", fields=CalibrateReply(device_id=name, ranges=data).to_fields())

    def ranges(self, told: CalibrateInstruction) -> TensorRanges:
        """What it says."""
        made = ranges(
            b"others" if self.trouble == "parameters" else told.parameters,
            self.low,
            1000.0 if self.trouble == "far" else self.high,
            rows=told.maximum_rows + 1 if self.trouble == "rows" else 40,
            devices=2 if self.trouble == "crowd" else 1,
            graph=b"h" * 32 if self.trouble == "graph" else GRAPH,
        )
        if self.trouble == "tensors":
            return TensorRanges(made.graph_sha256, made.parameters_sha256, {"hidden": (0.0, 1.0)}, made.rows)
        return made


class KnownReference:
    """The control plane's own rows give -2 to 2."""

    graph_sha256 = GRAPH

    def __call__(self, state: Mapping[str, Array]) -> TensorRanges:
        return ranges(encode_bundle(state), -2.0, 2.0)
