"""Requests that are recognised by their bytes: nobody can tell the difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.engine.backend import Port
from skerry_agent.engine.model import ModelSpec
from skerry_agent.engine.prediction import Prediction
from skerry_agent.serving.call import InferAnswer
from skerry_agent.serving.oip_messages import (
    PLAIN_HEAD_BYTES,
    PLAIN_REQUESTS,
    PlainRequests,
    decode_request,
    encode_answer,
    encode_plain,
)
from skerry_contract.oip import open_inference_pb2 as oip

SPEC = ModelSpec(
    release_id="r1",
    task="tiny",
    input=Port("input", (2, 3)),
    minimum=-1.0,
    maximum=1.0,
    scores=Port("scores", (4,)),
    features=Port("features", (2,)),
    classes=("a", "b", "c", "d"),
    maximum_batch=64,
)


def request(rows: int = 1, seed: int = 0, **fields: Any) -> oip.ModelInferRequest:
    x = np.random.default_rng(seed).uniform(-1, 1, (rows, 2, 3)).astype(np.float32)
    made = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[x.tobytes()], **fields)
    made.inputs.add(name="input", datatype="FP32", shape=x.shape)
    return made


def learnt(*requests: oip.ModelInferRequest) -> PlainRequests:
    plain = PlainRequests()
    for one in requests:
        plain.learn(one.SerializeToString(), one, decode_request(one), SPEC)
    return plain


@given(rows=st.integers(1, 64), seed=st.integers(0, 9), deadline=st.none() | st.floats(1, 1e6))
def test_the_same_request_with_other_values_is_known(rows: int, seed: int, deadline: float | None) -> None:
    first, second = request(rows), request(rows, seed + 1)
    for one in (first, second):
        if deadline is not None:
            one.parameters["deadline_us"].double_param = deadline
    data = second.SerializeToString()
    found = learnt(first).find(data, SPEC)
    assert found is not None
    call = decode_request(second)
    assert (found.shape, found.deadline_us) == ((rows, 2, 3), call.deadline_us)
    assert data[len(found.head) :] == call.inputs["input"].tobytes()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: setattr(r, "model_name", "tinx"), id="another model"),
        pytest.param(lambda r: setattr(r, "model_version", "r1"), id="a version"),
        pytest.param(lambda r: setattr(r, "id", "x"), id="an id"),
        pytest.param(lambda r: setattr(r.inputs[0], "name", "inpux"), id="another input"),
        pytest.param(lambda r: setattr(r.inputs[0], "datatype", "FP64"), id="another type"),
        pytest.param(lambda r: r.inputs[0].shape.__setitem__(slice(None), [2, 1, 3]), id="another shape"),
        pytest.param(lambda r: r.outputs.add(name="scores"), id="one output"),
        pytest.param(lambda r: r.raw_input_contents.append(b""), id="a second tensor"),
        pytest.param(
            lambda r: r.parameters["deadline_us"].CopyFrom(oip.InferParameter(int64_param=5)), id="a deadline"
        ),
    ],
)
def test_a_request_that_differs_in_anything_else_is_not(change: Callable[[oip.ModelInferRequest], object]) -> None:
    plain, other = learnt(request()), request()
    change(other)
    data = other.SerializeToString()
    assert plain.find(data, SPEC) is None
    # Nor if it is as long as the known one.
    known = request().SerializeToString()
    same_size = (data + bytes(len(known)))[: len(known)]
    assert same_size == known or plain.find(same_size, SPEC) is None


def test_another_release_knows_nothing() -> None:
    plain = learnt(request())
    assert plain.find(request().SerializeToString(), replace(SPEC)) is None
    assert plain.find(request().SerializeToString(), None) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: setattr(r, "id", "mine"), id="an id"),
        pytest.param(lambda r: r.outputs.add(name="features"), id="one output"),
        pytest.param(lambda r: setattr(r, "model_version", "r" * PLAIN_HEAD_BYTES), id="a long head"),
        pytest.param(lambda r: r.inputs[0].shape.__setitem__(slice(None), [2, 3]), id="no batch dimension"),
    ],
)
def test_what_is_not_plain_is_not_learnt(change: Callable[[oip.ModelInferRequest], object]) -> None:
    other = request()
    change(other)
    assert learnt(other).find(other.SerializeToString(), SPEC) is None


def test_typed_contents_and_values_that_are_not_the_end_are_not_learnt() -> None:
    typed = request()
    typed.ClearField("raw_input_contents")
    typed.inputs[0].contents.fp32_contents.extend([0.0] * 6)
    assert learnt(typed).find(typed.SerializeToString(), SPEC) is None
    one = request()
    raw = one.raw_input_contents[0]
    head = oip.ModelInferRequest()
    head.CopyFrom(one)
    head.ClearField("raw_input_contents")
    values = oip.ModelInferRequest(raw_input_contents=[raw]).SerializeToString()
    reordered = values + head.SerializeToString()  # fields may stand in any order
    again = oip.ModelInferRequest.FromString(reordered)
    plain = PlainRequests()
    plain.learn(reordered, again, decode_request(again), SPEC)
    assert plain.find(reordered, SPEC) is None


def test_what_is_remembered_is_bounded() -> None:
    plain = learnt(*(request(rows) for rows in range(1, 65)), request(model_version="r1"))
    known = sum(plain.find(request(rows).SerializeToString(), SPEC) is not None for rows in range(1, 65))
    assert known <= PLAIN_REQUESTS
    assert plain.find(request(model_version="r1").SerializeToString(), SPEC) is not None


@given(
    rows=st.integers(1, 64),
    request_id=st.text(max_size=200),
    variant=st.sampled_from(["fp32", "int8-x86", "größe"]),
    rung=st.integers(0, 3),
)
def test_the_answer_is_the_one_that_the_library_writes(rows: int, request_id: str, variant: str, rung: int) -> None:
    scores = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    features = np.random.default_rng(rows).normal(size=(rows, 2)).astype(np.float32)
    prediction = Prediction(scores, features, SPEC.classes, "r2", request_id, 1.0, variant, rung)
    answer = InferAnswer("tiny", "r2", request_id, {"scores": scores, "features": features}, variant, rung, 1.0)
    wanted = encode_answer(answer, typed=False)
    assert oip.ModelInferResponse.FromString(encode_plain(SPEC, prediction)) == wanted
