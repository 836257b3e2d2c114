"""Open Inference Protocol v2 in JSON, with the binary tensor extension: bytes to calls, answers to bytes.

Binary extension: the header ``Inference-Header-Content-Length`` gives the length of the JSON; after it follow the
data of the tensors that have ``parameters.binary_data_size``, in order (https://github.com/triton-inference-server/
server/blob/main/docs/protocol/extension_binary_data.md). Nothing here does I/O.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from skerry_agent.engine.backend import Floats
from skerry_agent.engine.errors import SchemaError
from skerry_agent.serving.call import DATATYPES, Array, InferAnswer, InferCall, check_deadline
from skerry_agent.serving.labels import LABELS, Label
from skerry_contract.limits import INFERENCE_BYTES, TENSOR_RANK

#: Parameter of a request: how long the answer may take (us).
DEADLINE = "deadline_us"
#: Parameters of an answer: the served form, and its network's place on the release's ladder.
VARIANT = "skerry_variant"
RUNG = "skerry_rung"
#: Most inputs or outputs that a request may name.
NAMES = 16


@dataclass(frozen=True)
class DecodedRequest:
    """A call, and how its answer is to be written.

    Attributes:
        call: The call.
        binary: Output name to whether it goes into the binary part.
        binary_default: The same for outputs that were not named.
    """

    call: InferCall
    binary: dict[str, bool]
    binary_default: bool


def decode_request(body: bytes, *, header_length: int | None, model: str, version: str) -> DecodedRequest:
    """Decode the body of an infer request.

    Args:
        body: All of it.
        header_length: Length of its JSON part; None means that all is JSON.
        model: From the URL.
        version: From the URL; empty if it has none.

    Raises:
        SchemaError: Says which field is wrong.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise SchemaError(
            "Inference-Header-Content-Length", expected=f"0 to {len(body)}, the body's size", got=header_length
        )
    document = _object(_parse(body if header_length is None else body[:header_length]), "request")
    cursor = _BinaryCursor(body, len(body) if header_length is None else header_length)
    inputs: dict[str, Array] = {}
    for index, entry in enumerate(_list(document.get("inputs"), "inputs", limit=NAMES)):
        tensor = _object(entry, f"inputs[{index}]")
        name = _text(tensor.get("name"), f"inputs[{index}].name")
        if name in inputs:
            raise SchemaError(f"inputs[{name}]", expected="distinct names", got="the name twice")
        inputs[name] = _decode_tensor(tensor, f"inputs[{name}]", cursor)
    cursor.finish()
    binary: dict[str, bool] = {}
    parameters = _object(document.get("parameters", {}), "parameters")
    default = parameters.get("binary_data_output", False) is True
    for index, entry in enumerate(_list(document.get("outputs", []), "outputs", limit=NAMES)):
        output = _object(entry, f"outputs[{index}]")
        name = _text(output.get("name"), f"outputs[{index}].name")
        wanted = _object(output.get("parameters", {}), f"outputs[{name}].parameters")
        binary[name] = wanted.get("binary_data", default) is True
    request_id = document.get("id", "")
    deadline = parameters.get(DEADLINE)
    deadline_us = None if deadline is None else check_deadline(deadline, f"parameters.{DEADLINE}")
    call = InferCall(model, version, _text(request_id, "id"), inputs, tuple(binary), deadline_us)
    return DecodedRequest(call, binary, default)


def encode_answer(answer: InferAnswer, request: DecodedRequest) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part if a binary part follows."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, values in answer.outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if request.binary.get(name, request.binary_default):
            data = values.astype("<f4", copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            entry["data"] = _numbers(values)
        outputs.append(entry)
    document = {
        "model_name": answer.model,
        "model_version": answer.version,
        "id": answer.request_id,
        "parameters": {VARIANT: answer.variant, RUNG: answer.rung},
        "outputs": outputs,
    }
    header = orjson.dumps(document)
    return (b"".join([header, *parts]), len(header)) if parts else (header, None)


def decode_labels(body: bytes) -> list[Label]:
    """Decode ``{"labels": [{"id": ..., "row": 0, "label": name or index}]}``.

    Raises:
        SchemaError: Says which field is wrong; no label is taken then.
    """
    document = _object(_parse(body), "request")
    labels: list[Label] = []
    for index, entry in enumerate(_list(document.get("labels"), "labels", limit=LABELS)):
        field = f"labels[{index}]"
        item = _object(entry, field)
        row, label = item.get("row", 0), item.get("label")
        if not isinstance(row, int) or isinstance(row, bool):
            raise SchemaError(f"{field}.row", expected="an integer", got=row)
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise SchemaError(f"{field}.label", expected="a class name or index", got=label)
        labels.append(Label(_text(item.get("id"), f"{field}.id"), row, label))
    return labels


class _BinaryCursor:
    """Hands out the binary part in order."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self._position = start

    def take(self, size: int, field: str) -> bytes:
        left = len(self._body) - self._position
        if size > left:
            raise SchemaError(
                f"{field}.parameters.binary_data_size", expected=f"at most the {left} bytes left", got=size
            )
        self._position += size
        # A slice is a copy, so the remembered tensor does not keep the whole body alive, and it is aligned.
        return self._body[self._position - size : self._position]

    def finish(self) -> None:
        left = len(self._body) - self._position
        if left:
            raise SchemaError("body", expected="no bytes after the last tensor", got=f"{left} more bytes")


def _decode_tensor(tensor: Mapping[str, Any], field: str, cursor: _BinaryCursor) -> Array:
    dtype, shape, elements = check_tensor_header(tensor.get("datatype"), tensor.get("shape"), field)
    parameters = _object(tensor.get("parameters", {}), f"{field}.parameters")
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise SchemaError(f"{field}.data", expected="none beside binary_data_size", got="both")
        size = parameters["binary_data_size"]
        if not isinstance(size, int) or isinstance(size, bool) or size != elements * dtype.itemsize:
            expected = f"{elements * dtype.itemsize} for {tensor['datatype']} {list(shape)}"
            raise SchemaError(f"{field}.parameters.binary_data_size", expected=expected, got=size)
        return np.frombuffer(cursor.take(size, field), dtype=dtype).reshape(shape)
    data = tensor.get("data")
    if not isinstance(data, list):
        raise SchemaError(f"{field}.data", expected="an array", got=type(data).__name__)
    try:
        with np.errstate(over="ignore"):  # becomes an infinity, which the engine refuses by its position
            values = np.array(data, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise SchemaError(f"{field}.data", expected=f"numbers of type {tensor['datatype']}", got=str(error)) from error
    if values.size != elements:
        raise SchemaError(f"{field}.data", expected=f"{elements} values for shape {list(shape)}", got=values.size)
    return values.reshape(shape)


def check_tensor_header(
    datatype: object, shape: object, field: str
) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """Type, shape and number of elements of a tensor from the wire; raises SchemaError."""
    dtype = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise SchemaError(f"{field}.datatype", expected=f"one of {', '.join(DATATYPES)}", got=datatype)
    sizes = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else None
    if sizes is None or len(sizes) > TENSOR_RANK:
        raise SchemaError(f"{field}.shape", expected=f"an array of at most {TENSOR_RANK} sizes", got=shape)
    if any(not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= 1 << 31 for size in sizes):
        raise SchemaError(f"{field}.shape", expected="sizes of 0 and more", got=list(sizes))
    # A dimension of 0 hides the others from the product; NumPy refuses what it could not address.
    if math.prod(size or 1 for size in sizes) * dtype.itemsize > INFERENCE_BYTES:
        raise SchemaError(f"{field}.shape", expected=f"at most {INFERENCE_BYTES} bytes", got=list(sizes))
    return dtype, tuple(sizes), math.prod(sizes)


def _numbers(values: Floats) -> list[float]:
    numbers: list[float] = values.ravel().tolist()
    return numbers


def _parse(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    # Python's parser is slow, and takes NaN, which is no JSON but what many clients write: the engine then says where.
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SchemaError("body", expected="a JSON document", got=str(error)) from error


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError(field, expected="a JSON object", got=type(value).__name__)
    return value


def _list(value: object, field: str, *, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        got = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise SchemaError(field, expected=f"an array of at most {limit} entries", got=got)
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(field, expected="a string", got=type(value).__name__)
    return value
