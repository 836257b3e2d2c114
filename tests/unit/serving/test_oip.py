"""The Open Inference Protocol codecs: the same field numbers as the public protocol, and round trips."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from skerry_agent.engine.errors import SchemaError
from skerry_agent.serving import oip_json, oip_messages
from skerry_agent.serving.call import DATATYPES, InferAnswer
from skerry_contract.oip import open_inference_pb2 as oip


def flatten(descriptor: Any, prefix: str = "") -> dict[str, tuple[int, int, bool]]:
    """Field path to (number, type, repeated), through nested messages."""
    fields = {}
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        fields[path] = (field.number, field.type, field.is_repeated)
        if field.message_type is not None and path.count(".") < 4:
            fields |= flatten(field.message_type, f"{path}.")
    return fields


@pytest.mark.parametrize("name", sorted(oip.DESCRIPTOR.message_types_by_name))
def test_fields_are_those_of_the_public_protocol(name: str) -> None:
    ours = flatten(oip.DESCRIPTOR.message_types_by_name[name])
    public = flatten(service_pb2.DESCRIPTOR.message_types_by_name[name])
    assert {path: public.get(path) for path in ours} == ours


arrays = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1)).map(
    lambda a: np.random.default_rng(a[2]).normal(size=a[:2]).astype(np.float32)
)


@settings(max_examples=40, deadline=None)
@given(x=arrays, request_id=st.text(max_size=20), binary=st.booleans())
def test_json_round_trip(x: Any, request_id: str, binary: bool) -> None:
    entry: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": list(x.shape)}
    tail = b""
    if binary:
        entry["parameters"] = {"binary_data_size": x.nbytes}
        tail = x.tobytes()
    else:
        entry["data"] = x.tolist()
    document = {"id": request_id, "inputs": [entry], "parameters": {"binary_data_output": binary}}
    header = json.dumps(document).encode()
    decoded = oip_json.decode_request(
        header + tail, header_length=len(header) if binary else None, model="m", version=""
    )
    np.testing.assert_array_equal(decoded.call.inputs["input"], x)
    assert decoded.call.request_id == request_id

    body, length = oip_json.encode_answer(InferAnswer("m", "r1", "id", {"scores": x}), decoded)
    reply = json.loads(body if length is None else body[:length])
    assert (length is not None) == binary
    data = np.frombuffer(body[length:], dtype="<f4") if binary else np.array(reply["outputs"][0]["data"], dtype="f4")
    np.testing.assert_array_equal(data.reshape(reply["outputs"][0]["shape"]), x)


@settings(max_examples=40, deadline=None)
@given(x=arrays, typed=st.booleans())
def test_message_round_trip(x: Any, typed: bool) -> None:
    message = oip.ModelInferRequest(model_name="m", id="7")
    tensor = message.inputs.add(name="input", datatype="FP32", shape=x.shape)
    if typed:
        tensor.contents.fp32_contents.extend(x.ravel().tolist())
    else:
        message.raw_input_contents.append(x.tobytes())
    call = oip_messages.decode_request(oip.ModelInferRequest.FromString(message.SerializeToString()))
    np.testing.assert_array_equal(call.inputs["input"], x)
    answer = oip_messages.encode_answer(InferAnswer("m", "r1", "7", {"scores": x}), typed=typed)
    values = answer.outputs[0].contents.fp32_contents if typed else np.frombuffer(answer.raw_output_contents[0], "<f4")
    np.testing.assert_array_equal(np.array(values, dtype=np.float32).reshape(answer.outputs[0].shape), x)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=300), header_length=st.none() | st.integers(-5, 400))
def test_any_bytes_are_a_request_or_a_schema_error(body: bytes, header_length: int | None) -> None:
    with contextlib.suppress(SchemaError):  # anything else fails the test
        oip_json.decode_request(body, header_length=header_length, model="m", version="")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["FP32", "input", "data"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "name", "shape", "datatype", "data", "parameters", "outputs", "binary_data_size"]
            ),
            children,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(document=json_values)
def test_any_json_is_a_request_or_a_schema_error(document: Any) -> None:
    with contextlib.suppress(SchemaError):  # anything else fails the test
        oip_json.decode_request(json.dumps(document).encode(), header_length=None, model="m", version="")


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_is_decoded_so_that_the_error_can_say_what_came(datatype: str) -> None:
    values = np.ones(2, dtype=DATATYPES[datatype])
    message = oip.ModelInferRequest(model_name="m", raw_input_contents=[values.tobytes()])
    message.inputs.add(name="input", datatype=datatype, shape=[2])
    decoded = oip_messages.decode_request(message).inputs["input"]
    assert decoded.dtype == DATATYPES[datatype]
    assert decoded.tolist() == values.tolist()


def test_a_typed_value_outside_its_type() -> None:
    message = oip.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="input", datatype="INT8", shape=[1])
    tensor.contents.int_contents.append(300)
    with pytest.raises(SchemaError) as caught:
        oip_messages.decode_request(message)
    assert caught.value.field == "inputs[input].contents.int_contents"


def test_too_many_inputs() -> None:
    message = oip.ModelInferRequest(model_name="m")
    for index in range(17):
        message.inputs.add(name=str(index), datatype="FP32", shape=[1])
    with pytest.raises(SchemaError, match="at most 16"):
        oip_messages.decode_request(message)
