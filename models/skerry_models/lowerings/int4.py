"""int4-weights: large matrices as blocks of 4-bit integers, activations in float32 (MatMulNBits of onnxruntime).

Worth it where a model is mostly matrices that are read once per row: then the time of a row is the time of reading
them. A convolution reads its weights once per pixel row and gains nothing, so the rule of :func:`fits` asks for
matrices that hold most of the weights; none of the small networks here passes it.

    block of 32 weights w along the inner axis:  scale = w of the largest magnitude / -8,  zero point 8
    q = clamp(round(w / scale) + 8, 0, 15),  w' = (q - 8) scale,  two q per byte, the first in the low half

The sign of the scale puts the largest weight exactly on an end of the range (-8), as in llama.cpp's Q4_0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from skerry_contract.tensors import Array
from skerry_models.lowerings.quantised_graph import GraphIndex
from skerry_models.onnx_graph import remove_unused

#: Weights that share a scale.
BLOCK = 32
#: Domain of MatMulNBits; only onnxruntime has it.
DOMAIN = "com.microsoft"
#: A matrix smaller than this is not worth its scales (weights).
SMALLEST_MATRIX = 1 << 16
#: Share of all weights that large matrices must hold.
MATRIX_SHARE = 0.5
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def fits(model: onnx.ModelProto) -> bool:
    """Whether matrices of at least :data:`SMALLEST_MATRIX` weights hold :data:`MATRIX_SHARE` of all float32 weights."""
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    total = sum(int(np.prod(tensor.dims)) for tensor in weights)
    large = {name for _, name, _ in _matrices(model.graph)}
    held = sum(int(np.prod(tensor.dims)) for tensor in weights if tensor.name in large)
    return total > 0 and held >= MATRIX_SHARE * total


def pack_matrices(model: onnx.ModelProto) -> int:
    """Rewrite in place; returns how many matrices were packed."""
    graph = model.graph
    found = _matrices(graph)
    for node, name, transposed in found:
        matrix = numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))
        _replace(graph, node, name, matrix if transposed else np.ascontiguousarray(matrix.T))
    if found:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    remove_unused(graph)
    return len(found)


def quantise_blocks(rows: Floats) -> tuple[Bytes, Floats]:
    """Pack a matrix row by row.

    Args:
        rows: float32 [N, K]: N outputs, K inputs; K is filled up with zeros to whole blocks.

    Returns:
        uint8 [N, blocks, BLOCK / 2] and scales float32 [N, blocks].
    """
    outputs, inner = rows.shape
    blocks = -(-inner // BLOCK)
    padded = np.zeros((outputs, blocks * BLOCK), dtype=np.float32)
    padded[:, :inner] = rows
    cut = padded.reshape(outputs, blocks, BLOCK)
    largest = np.take_along_axis(cut, np.abs(cut).argmax(axis=2)[..., None], axis=2)
    scale = (largest / np.float32(-8)).astype(np.float32)
    steps = np.divide(cut, scale, out=np.zeros_like(cut), where=scale != 0)
    quantised = np.clip(np.round(steps) + 8, 0, 15).astype(np.uint8)
    packed: Bytes = quantised[..., 0::2] | (quantised[..., 1::2] * np.uint8(16))
    return packed, scale[..., 0]


def _matrices(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, str, bool]]:
    """(node, weight, whether it is stored as [outputs, inputs]) of every product with a large constant matrix."""
    index, found = GraphIndex.of(graph), []
    for node in graph.node:
        if node.op_type not in ("Gemm", "MatMul") or node.domain:
            continue
        tensor = index.constants.get(node.input[1])
        if tensor is None or len(tensor.dims) != 2 or int(np.prod(tensor.dims)) < SMALLEST_MATRIX:
            continue
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        if plain:
            found.append((node, node.input[1], bool(settings.get("transB", 0))))
    return found


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, name: str, rows: Array) -> None:
    packed, scales = quantise_blocks(rows.astype(np.float32, copy=False))
    outputs, inner = rows.shape
    names = [f"{name}.int4", f"{name}.int4_scale"]
    for constant, value in zip(names, (packed, scales.reshape(-1)), strict=True):
        if all(tensor.name != constant for tensor in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(value, constant))
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else ""
    product = node.output[0] if not bias else f"{node.output[0]}.product"
    settings = {"K": inner, "N": outputs, "bits": 4, "block_size": BLOCK}
    made = [
        helper.make_node(
            "MatMulNBits", [node.input[0], *names], [product], name=f"{node.name}_int4", domain=DOMAIN, **settings
        )
    ]
    if bias:
        made.append(helper.make_node("Add", [product, bias], [node.output[0]], name=f"{node.name}_bias"))
    position = list(graph.node).index(node)
    for offset, new in enumerate(made):
        graph.node.insert(position + offset, new)
    graph.node.remove(node)
