"""int8-zp: activations of the canonical form as uint8 around 128 instead of int8 around 0.

    q8 = clamp(round(x / s), -128, 127)            canonical
    u8 = clamp(round(x / s) + 128, 0, 255) = q8 + 128

Both stand for (q8 - 0) s = (u8 - 128) s, so the form is bit-identical with the canonical one as long as nobody
rewrites the graph. What it gains: kernels for uint8 activations and int8 weights, which are the fast ones on x86.
"""

from __future__ import annotations

import numpy as np
import onnx

from skerry_models.lowerings.quantised_graph import GraphIndex, add_constant, set_zero_point
from skerry_models.onnx_graph import remove_unused

#: uint8 value that stands for 0.
MIDDLE = 128
_NAME = "zero_point_128"


def centre_activations(model: onnx.ModelProto) -> int:
    """Rewrite in place; returns how many activations were rewritten."""
    graph = model.graph
    pairs = GraphIndex.of(graph).activation_pairs(graph)
    for pair in pairs:
        set_zero_point(pair, add_constant(graph, _NAME, np.array(MIDDLE, dtype=np.uint8)))
    remove_unused(graph)
    return len(pairs)
