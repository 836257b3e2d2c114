"""Open Inference Protocol v2 in protobuf: messages to calls, answers to messages. Nothing here does I/O."""

from __future__ import annotations

import math

import numpy as np

from skerry_agent.engine.errors import SchemaError
from skerry_agent.serving.call import Array, InferAnswer, InferCall, check_deadline
from skerry_agent.serving.oip_json import DEADLINE, NAMES, RUNG, VARIANT, check_tensor_header
from skerry_contract.oip import open_inference_pb2 as oip

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
