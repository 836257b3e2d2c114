"""What the lowerings of quantised graphs share: which nodes hold activations, and who reads what."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from skerry_contract.tensors import Array


@dataclass(frozen=True)
class ActivationPair:
    """An activation in integers: the node that makes them and the nodes that read them.

    Attributes:
        quantise: QuantizeLinear.
        dequantise: Its DequantizeLinear readers, at least one.
    """

    quantise: onnx.NodeProto
    dequantise: tuple[onnx.NodeProto, ...]


@dataclass
class GraphIndex:
    """Lookup tables of a graph without subgraphs; they describe it as it was when they were made.

    Attributes:
        constants: Initialisers by name.
        producers: Value to the node that makes it.
        readers: Value to the nodes that read it, once per use.
        outputs: Names of the graph's outputs.
    """

    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    producers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> GraphIndex:
        """Index a graph."""
        index = cls(
            constants={tensor.name: tensor for tensor in graph.initializer},
            producers={name: node for node in graph.node for name in node.output},
            outputs={output.name for output in graph.output},
        )
        for node in graph.node:
            for name in node.input:
                index.readers.setdefault(name, []).append(node)
        return index

    def constant(self, name: str) -> Array | None:
        """Value of an initialiser; None if the name is something else."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def zero_point(self, node: onnx.NodeProto) -> Array | None:
        """Zero point of a Q or DQ node; None if it has none that is constant."""
        return self.constant(node.input[2]) if len(node.input) > 2 else None

    def activation_pairs(self, graph: onnx.GraphProto) -> list[ActivationPair]:
        """Pairs with a constant scalar int8 zero point, in graph order; weights are not among them."""
        pairs = []
        for node in graph.node:
            if node.op_type != "QuantizeLinear" or node.input[0] in self.constants:
                continue
            zero = self.zero_point(node)
            readers = self.readers.get(node.output[0], [])
            if zero is None or zero.dtype != np.int8 or zero.ndim or node.output[0] in self.outputs:
                continue
            if readers and all(reader.op_type == "DequantizeLinear" for reader in readers):
                pairs.append(ActivationPair(node, tuple(readers)))
        return pairs


def add_constant(graph: onnx.GraphProto, name: str, value: Array) -> str:
    """Add an initialiser if it is not there yet; returns its name."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def set_zero_point(pair: ActivationPair, name: str) -> None:
    """Point both sides of a pair at another zero point."""
    for node in (pair.quantise, *pair.dequantise):
        node.input[2] = name


def set_scale(pair: ActivationPair, name: str) -> None:
    """Point both sides of a pair at another scale."""
    for node in (pair.quantise, *pair.dequantise):
        node.input[1] = name
