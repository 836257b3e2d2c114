"""int8-zp-relu: activations after Relu or ReLU6 as uint8 from 0 on, which makes the activation itself needless.

    Relu:  clamp(round(x / s), 0, 255) is 0 wherever x is negative. The scale stays, so every value that the canonical
           form can tell apart stays the same integer; only above its largest one (127 s) it saturates where this form
           goes on to 255 s: exact up to saturation.
    ReLU6: the upper end must stay where it is, so the scale becomes 6 / 255 (the clip's end by 255): a finer step, and
           the same saturation at 6. Off from the canonical form by at most half of its step.

A clip is absorbed only if it starts at 0. All other activations are centred (:mod:`.zero_point`).
"""

from __future__ import annotations

import numpy as np
import onnx

from skerry_models.lowerings.quantised_graph import (
    ActivationPair,
    GraphIndex,
    add_constant,
    set_scale,
    set_zero_point,
)
from skerry_models.lowerings.zero_point import centre_activations
from skerry_models.onnx_graph import remove_unused

_NAME = "zero_point_0"
_STEPS = 255


def absorb_activations(model: onnx.ModelProto) -> int:
    """Rewrite in place; returns how many Relus and clips were absorbed."""
    graph = model.graph
    index = GraphIndex.of(graph)
    absorbed = sum(_absorb(graph, index, pair) for pair in index.activation_pairs(graph))
    remove_unused(graph)
    centre_activations(model)
    return absorbed


def _absorb(graph: onnx.GraphProto, index: GraphIndex, pair: ActivationPair) -> bool:
    source = index.producers.get(pair.quantise.input[0])
    if source is None or source.op_type not in ("Relu", "Clip"):
        return False
    name = source.output[0]
    if name in index.outputs or any(reader is not pair.quantise for reader in index.readers[name]):
        return False
    if source.op_type == "Clip":
        ends = [index.constant(end) if end else None for end in [*source.input[1:], "", ""][:2]]
        if ends[0] is None or ends[1] is None or float(ends[0]) != 0 or float(ends[1]) <= 0:
            return False
        scale = np.array(float(ends[1]) / _STEPS, dtype=np.float32)
        set_scale(pair, add_constant(graph, f"{pair.quantise.input[1]}.clipped", scale))
    set_zero_point(pair, add_constant(graph, _NAME, np.array(0, dtype=np.uint8)))
    pair.quantise.input[0] = source.input[0]
    return True
