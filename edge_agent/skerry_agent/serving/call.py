"""A request and its answer, free of any protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.backend import Floats
from skerry_agent.engine.errors import SchemaError

Array = npt.NDArray[np.generic]

#: Open Inference Protocol type names to NumPy, little endian. BYTES has none and is refused.
DATATYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


def check_deadline(value: object, field: str) -> float:
    """A deadline as a client states it (us); raises SchemaError unless it is a number above 0."""
    try:
        deadline_us = float(value) if isinstance(value, str | bytes | int | float) and value is not True else math.nan
    except (ValueError, OverflowError):
        deadline_us = math.nan
    if not 0 < deadline_us < math.inf:
        raise SchemaError(field, expected="a number of microseconds above 0", got=value)
    return deadline_us


@dataclass(frozen=True)
class InferCall:
    """A request, decoded and not yet checked against the model.

    Attributes:
        model: Model name; empty never matches.
        version: Model version; empty means the active one.
        request_id: From the client; empty asks for a generated one.
        inputs: Tensor name to array.
        outputs: Wanted outputs; empty asks for all.
        deadline_us: How long the answer may take from now on; 0 and less: it is late already; None: the device decides.
    """

    model: str
    version: str
    request_id: str
    inputs: dict[str, Array]
    outputs: tuple[str, ...] = ()
    deadline_us: float | None = None


@dataclass(frozen=True)
class InferAnswer:
    """The answer to a call.

    Attributes:
        model: Model name.
        version: Release that answered.
        request_id: From the client or generated; labels name it.
        outputs: Tensor name to float32 [batch, ...], in the wanted order.
        variant: Served form: of the release's networks and their variants, the one that answered.
        rung: Place of that network on the release's ladder; 0 is the release's own.
        latency_us: Time that the engine took.
    """

    model: str
    version: str
    request_id: str
    outputs: dict[str, Floats]
    variant: str = ""
    rung: int = 0
    latency_us: float = 0.0
