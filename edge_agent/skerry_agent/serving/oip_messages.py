"""Open Inference Protocol v2 in protobuf: messages to calls, answers to messages. Nothing here does I/O."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from skerry_agent.engine.errors import SchemaError
from skerry_agent.engine.model import ModelSpec
from skerry_agent.engine.prediction import Prediction
from skerry_agent.serving.call import Array, InferAnswer, InferCall, check_deadline
from skerry_agent.serving.oip_json import DEADLINE, NAMES, RUNG, VARIANT, check_tensor_header
from skerry_contract.oip import open_inference_pb2 as oip
from skerry_contract.wire import encode_varint

#: Typed contents: datatype to the field of InferTensorContents that holds it.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


#: Plain requests that are remembered, and the longest bytes before the values of one.
PLAIN_REQUESTS = 64
PLAIN_HEAD_BYTES = 4096
#: Tags of the fields ``id`` and ``raw_output_contents`` of an answer.
_ID, _RAW = b"\x1a", b"\x32"
#: Tag of ``raw_input_contents`` of a request.
_RAW_INPUT = b"\x3a"


def decode_request(request: oip.ModelInferRequest) -> InferCall:
    """Take a request apart.

    Raises:
        SchemaError: Says which tensor or field is wrong.
    """
    if len(request.inputs) > NAMES or len(request.outputs) > NAMES:
        raise SchemaError("inputs", expected=f"at most {NAMES} inputs and outputs", got=len(request.inputs))
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise SchemaError("raw_input_contents", expected=f"{len(request.inputs)}, one per input", got=len(raw))
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{tensor.name[:80]}]"
        if tensor.name in inputs:
            raise SchemaError(field, expected="distinct names", got="the name twice")
        if raw and tensor.HasField("contents"):
            raise SchemaError(f"{field}.contents", expected="none beside raw_input_contents", got="both")
        inputs[tensor.name] = _raw(tensor, raw[index], field) if raw else _typed(tensor, field)
    names = tuple(output.name for output in request.outputs)
    deadline_us = None
    if DEADLINE in request.parameters:
        parameter = request.parameters[DEADLINE]
        kind = parameter.WhichOneof("parameter_choice")
        value = None if kind is None else getattr(parameter, kind)
        deadline_us = check_deadline(value, f"parameters.{DEADLINE}")
    return InferCall(request.model_name, request.model_version, request.id, inputs, names, deadline_us)


def encode_answer(answer: InferAnswer, *, typed: bool) -> oip.ModelInferResponse:
    """Write an answer: raw contents, or typed ones for a client that asked with typed contents."""
    response = oip.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.request_id)
    response.parameters[VARIANT].string_param = answer.variant
    response.parameters[RUNG].int64_param = answer.rung
    for name, values in answer.outputs.items():
        tensor = response.outputs.add(name=name, datatype="FP32", shape=values.shape)
        if typed:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
        else:
            response.raw_output_contents.append(values.astype("<f4", copy=False).tobytes())
    return response


class PlainRequest(NamedTuple):
    """What the messages of one client have in common as long as it asks for the same: all but the values.

    Attributes:
        head: The bytes before the values.
        spec: Of the release that the request was checked against.
        shape: Of the values, rows first.
        deadline_us: As :class:`InferCall`.
    """

    head: bytes
    spec: ModelSpec
    shape: tuple[int, ...]
    deadline_us: float | None


class PlainRequests:
    """Recognises requests that are like an earlier one but for their values, so that nothing is taken apart again.

    Such a message is the earlier one's bytes up to the values, and then as many values: one input as raw contents, no
    id, both outputs. Safe for threads: an entry is looked up and set in one step.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, PlainRequest] = {}

    def find(self, data: bytes, spec: ModelSpec | None) -> PlainRequest | None:
        """What ``data`` is like, if it is like anything that this release was asked."""
        plain = self._by_size.get(len(data))
        return plain if plain is not None and plain.spec is spec and data.startswith(plain.head) else None

    def learn(self, data: bytes, request: oip.ModelInferRequest, call: InferCall, spec: ModelSpec) -> None:
        """Remember a request that was answered."""
        if request.id or request.outputs or len(request.raw_input_contents) != 1:
            return
        raw, shape = request.raw_input_contents[0], call.inputs[spec.input.name].shape
        if request.inputs[0].datatype != "FP32" or len(shape) != len(spec.input.shape) + 1 or not data.endswith(raw):
            return
        head = data[: len(data) - len(raw)]
        # The last field is these values, and not something else that ends with the same bytes.
        if len(head) > PLAIN_HEAD_BYTES or not head.endswith(_RAW_INPUT + encode_varint(len(raw))):
            return
        if len(self._by_size) >= PLAIN_REQUESTS:
            self._by_size.clear()
        self._by_size[len(data)] = PlainRequest(head, spec, shape, call.deadline_us)


def encode_plain(spec: ModelSpec, prediction: Prediction) -> bytes:
    """The serialized answer to a plain request, as :func:`encode_answer` writes it."""
    scores, features = prediction.scores, prediction.features
    form = (spec.task, prediction.release_id, prediction.variant, prediction.rung)
    head = _plain_head(*form, spec.scores.name, scores.shape, spec.features.name, features.shape)
    name = prediction.request_id.encode()
    first, second = scores.tobytes(), features.tobytes()
    outputs = (_RAW, encode_varint(len(first)), first, _RAW, encode_varint(len(second)), second)
    return b"".join((head, _ID, encode_varint(len(name)), name, *outputs))


@functools.lru_cache(maxsize=64)
def _plain_head(
    model: str,
    release_id: str,
    variant: str,
    rung: int,
    scores: str,
    scores_shape: tuple[int, ...],
    features: str,
    features_shape: tuple[int, ...],
) -> bytes:
    """The serialized fields of an answer but its id and values; fields of a message may stand in any order."""
    response = oip.ModelInferResponse(model_name=model, model_version=release_id)
    response.parameters[VARIANT].string_param = variant
    response.parameters[RUNG].int64_param = rung
    response.outputs.add(name=scores, datatype="FP32", shape=scores_shape)
    response.outputs.add(name=features, datatype="FP32", shape=features_shape)
    return response.SerializeToString()


def _raw(tensor: oip.ModelInferRequest.InferInputTensor, data: bytes, field: str) -> Array:
    dtype, shape, elements = check_tensor_header(tensor.datatype, list(tensor.shape), field)
    if len(data) != elements * dtype.itemsize:
        expected = f"{elements * dtype.itemsize} bytes for {tensor.datatype} {list(shape)}"
        raise SchemaError(f"{field}.raw_input_contents", expected=expected, got=f"{len(data)} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _typed(tensor: oip.ModelInferRequest.InferInputTensor, field: str) -> Array:
    dtype, shape, _ = check_tensor_header(tensor.datatype, list(tensor.shape), field)
    name = _CONTENTS.get(tensor.datatype)
    if name is None:
        raise SchemaError(
            f"{field}.contents", expected=f"raw_input_contents for {tensor.datatype}", got="typed contents"
        )
    values = getattr(tensor.contents, name)
    if len(values) != math.prod(shape):
        expected = f"{math.prod(shape)} values for shape {list(shape)}"
        raise SchemaError(f"{field}.contents.{name}", expected=expected, got=len(values))
    try:
        return np.array(values, dtype=dtype).reshape(shape)
    except OverflowError as error:
        raise SchemaError(
            f"{field}.contents.{name}", expected=f"values of {tensor.datatype}", got=str(error)
        ) from error
