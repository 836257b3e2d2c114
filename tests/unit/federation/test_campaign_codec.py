"""The fields that cross the wire between a campaign and a device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.campaign import EvaluateInstruction, EvaluateReply, TrainInstruction, TrainReply
from skerry_contract.errors import WireError

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
UNIT = st.floats(0, 1)
LOSSES = st.floats(-1e30, 1e30, allow_nan=False)
COUNTS = st.integers(1, 1 << 40)

INSTRUCTIONS = st.builds(
    TrainInstruction,
    campaign_id=NAMES,
    round=st.integers(1, 1000),
    task=NAMES,
    train_step_sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    local_epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 65_536),
    learning_rate=st.floats(1e-9, 1e3),
    proximal_mu=st.floats(0, 1e6),
    minimum_samples=st.integers(0, 1 << 40),
    deadline_ms=st.integers(1, 86_400_000),
    seed=st.integers(0, (1 << 63) - 1),
    parameters=st.binary(max_size=50),
)
REPLIES = st.builds(
    TrainReply,
    device_id=NAMES,
    examples=COUNTS,
    steps=COUNTS,
    seconds=st.floats(0, 1e9),
    loss=LOSSES,
    validation_examples=st.integers(0, 1 << 40),
    validation_accuracy=UNIT,
    validation_loss=LOSSES,
    parameters=st.binary(max_size=50),
)
EVALUATIONS = st.builds(
    EvaluateInstruction,
    campaign_id=NAMES,
    round=st.integers(0, 1000),
    task=NAMES,
    train_step_sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    model=st.sampled_from(["base", "result"]),
    deadline_ms=st.integers(1, 86_400_000),
    parameters=st.binary(max_size=50),
)


@given(message=st.one_of(INSTRUCTIONS, REPLIES, EVALUATIONS))
def test_round_trip(message: TrainInstruction | TrainReply | EvaluateInstruction) -> None:
    assert type(message).from_fields(message.to_fields()) == message
    assert type(message).from_fields({**message.to_fields(), "future_field": 1}) == message


@given(
    junk=st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(TrainReply)]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=5),
            st.binary(max_size=5),
            st.lists(st.integers()),
        ),
    )
)
def test_junk_is_an_error_of_the_wire_or_a_message(junk: dict[str, object]) -> None:
    try:
        reply = TrainReply.from_fields(junk)
    except WireError:
        return
    assert 0 <= reply.validation_accuracy <= 1
    assert reply.examples >= 1


GOOD = EvaluateReply(device_id="a", examples=4, accuracy=0.5, loss=0.1).to_fields()
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"examples": None}, "examples"),
    "zero examples": ({"examples": 0}, "examples"),
    "a bool is no number": ({"examples": True}, "examples"),
    "a float is no count": ({"examples": 4.0}, "examples"),
    "accuracy above one": ({"accuracy": 1.01}, "accuracy"),
    "nan": ({"loss": float("nan")}, "loss"),
    "infinity": ({"loss": float("inf")}, "loss"),
    "text": ({"loss": "0.1"}, "loss"),
    "name": ({"device_id": "../../etc"}, "device_id"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_field(name: str) -> None:
    changes, field = BAD[name]
    fields: dict[str, Any] = {**GOOD, **changes}
    if fields["examples"] is None:
        del fields["examples"]
    with pytest.raises(WireError) as caught:
        EvaluateReply.from_fields(fields)
    assert caught.value.field == field


def test_digest_and_model_are_checked() -> None:
    good = EvaluateInstruction(
        campaign_id="c", round=0, task="t", train_step_sha256="0" * 64, model="base", deadline_ms=1, parameters=b""
    ).to_fields()
    for field, value in (("train_step_sha256", "0" * 63), ("model", "best"), ("parameters", "text")):
        with pytest.raises(WireError) as caught:
            EvaluateInstruction.from_fields({**good, field: value})
        assert caught.value.field.startswith(field)
