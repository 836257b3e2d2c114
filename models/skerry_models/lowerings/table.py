"""Name of a form to the function that makes it from its source (:data:`skerry_models.forms.FORMS` says which).

Every function is pure: bytes in, bytes out, None where the form would not differ or does not fit the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from skerry_models.lowerings.absorb_relu import absorb_activations
from skerry_models.lowerings.half import halve
from skerry_models.lowerings.int4 import fits, pack_matrices
from skerry_models.lowerings.ort_format import flatten
from skerry_models.lowerings.zero_point import centre_activations
from skerry_models.onnx_graph import serialise


def _rewritten(rewrite: Callable[[onnx.ModelProto], int]) -> Callable[[bytes], bytes | None]:
    """A form made in place by ``rewrite``, which says how much it changed: nothing changed, no form."""

    def lower(source: bytes) -> bytes | None:
        model = onnx.load_from_string(source)
        return serialise(model) if rewrite(model) else None

    return lower


def _pack_if_it_fits(model: onnx.ModelProto) -> int:
    return pack_matrices(model) if fits(model) else 0


LOWERINGS: Mapping[str, Callable[[bytes], bytes | None]] = {
    "int8-zp": _rewritten(centre_activations),
    "int8-zp-relu": _rewritten(absorb_activations),
    "fp16": _rewritten(halve),
    "int4-weights": _rewritten(_pack_if_it_fits),
    "fp32-ort": flatten,
    "int8-x86-ort": flatten,
    "int8-qdq-ort": flatten,
}
