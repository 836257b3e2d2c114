"""Guests: what a node that knows nothing of us is asked, and what its answer counts as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from skerry_agent.training.stock_questions import ActiveStep, as_fields, as_metrics
from skerry_contract.campaign import EVALUATE, TRAIN, EvaluateReply, TrainInstruction, TrainReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_models.task import CampaignDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.flower import messages as flower_messages
from skerry_server.federation.rounds.updates import UpdateRejectedError, read_update
from skerry_server.federation.settings import parse_settings

MODEL: dict[str, Array] = {"w": np.array([[1.0, 2.0]], np.float32), "steps": np.array(3, np.int64)}
DEFAULTS = CampaignDefaults(rounds=3, local_epochs=1, batch_size=8, learning_rate=0.1, proximal_mu=0.0)


def instruction(**more: Any) -> dict[str, Any]:
    fields = {
        "campaign_id": "c",
        "round": 4,
        "task": "t",
        "train_step_sha256": "0" * 64,
        "local_epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.25,
        "proximal_mu": 0.0,
        "minimum_samples": 0,
        "deadline_ms": 1000,
        "seed": 1,
        "parameters": encode_bundle(MODEL),
    }
    return TrainInstruction.from_fields({**fields, **more}).to_fields()


def reply(metrics: dict[str, Any] | None, arrays: dict[str, Any] | None = None) -> RecordDict:
    content = RecordDict({} if metrics is None else {"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = ArrayRecord({name: FlowerArray(value) for name, value in arrays.items()})
    return content


def test_a_guest_is_asked_in_flowers_own_records() -> None:
    content = flower_messages.pack_for_guest(instruction())
    assert dict(content["config"]) == {
        "server-round": 4,
        "lr": 0.25,
        "local-epochs": 2,
        "batch-size": 8,
        "proximal-mu": 0.0,
        "task": "t",
    }
    arrays = {name: array.numpy() for name, array in content["arrays"].items()}
    assert {name: (array.dtype, array.tolist()) for name, array in arrays.items()} == {
        "w": (np.float32, [[1.0, 2.0]]),
        "steps": (np.int64, 3),
    }


@pytest.mark.parametrize(
    ("kind", "more", "may"),
    [
        (TRAIN, {}, True),
        (TRAIN, {"wire": "int8"}, True),  # its answer is as it is; that is always allowed
        (TRAIN, {"parameters_wire": "int8", "base_sha256": "0" * 64}, False),
        (TRAIN, {"noise_std": 0.5}, False),
        (TRAIN, {"control": b"x"}, False),
        (TRAIN, {"wire": "secagg"}, False),
        ("query.secagg-keys", {}, False),
    ],
)
def test_a_guest_is_only_asked_what_plain_flower_can(kind: str, more: dict[str, Any], may: bool) -> None:
    assert flower_messages.may_ask_guest(kind, {**instruction(), **more}) is may


def test_a_guests_answer_is_an_update_like_any() -> None:
    trained = {"w": np.asarray([[2.0, 3.0]], np.float32), "steps": MODEL["steps"]}
    content = reply({"num-examples": 30, "train_loss": 0.5}, trained)
    fields = flower_messages.unpack_from_guest(content, kind=TRAIN, device_id="supernode-a")
    update = read_update(fields, device_id="supernode-a", model=MODEL)
    assert (update.examples, update.metrics["loss"]) == (30, 0.5)
    assert update.state["w"].tolist() == [[2.0, 3.0]]


def test_a_guests_arrays_are_checked_like_any() -> None:
    content = reply({"num-examples": 30}, {"w": np.zeros((2, 2), np.float32), "steps": MODEL["steps"]})
    fields = flower_messages.unpack_from_guest(content, kind=TRAIN, device_id="supernode-a")
    with pytest.raises(UpdateRejectedError, match="parameters"):
        read_update(fields, device_id="supernode-a", model=MODEL)


def test_a_guests_measurement_is_one() -> None:
    content = reply({"num-examples": 12.0, "eval_acc": 0.75})
    fields = flower_messages.unpack_from_guest(content, kind=EVALUATE, device_id="supernode-a")
    assert EvaluateReply.from_fields(fields) == EvaluateReply(
        device_id="supernode-a", examples=12, accuracy=0.75, loss=0.0
    )


@pytest.mark.parametrize(
    ("kind", "content", "field"),
    [
        (TRAIN, reply(None, MODEL), "metrics"),
        (TRAIN, reply({"loss": 1.0}, MODEL), "metrics.num-examples"),
        (TRAIN, reply({"num-examples": 1.5}, MODEL), "metrics.num-examples"),
        (TRAIN, reply({"num-examples": float("inf")}, MODEL), "metrics.num-examples"),
        (TRAIN, reply({"num-examples": [1, 2]}, MODEL), "metrics.num-examples"),
        (TRAIN, reply({"num-examples": 1}), "arrays"),
        (EVALUATE, reply({"num-examples": 1, "precision": 0.5}), "metrics"),
    ],
)
def test_an_answer_without_what_flower_wants_is_refused(kind: str, content: RecordDict, field: str) -> None:
    with pytest.raises(WireError) as refused:
        flower_messages.unpack_from_guest(content, kind=kind, device_id="supernode-a")
    assert refused.value.field == field


def test_an_array_that_is_none_is_refused() -> None:
    content = reply({"num-examples": 1})
    content["arrays"] = ArrayRecord({"w": FlowerArray("float32", (2,), "numpy.ndarray", b"no array")})
    with pytest.raises(WireError, match="arrays of numbers"):
        flower_messages.unpack_from_guest(content, kind=TRAIN, device_id="supernode-a")


def test_what_a_stock_server_asks_is_an_instruction_of_the_active_release() -> None:
    active = ActiveStep("har", "b" * 64)
    config = ConfigRecord({"server-round": 3, "lr": 0.5, "own": "x"})
    asked = TrainInstruction.from_fields(as_fields(TRAIN, MODEL, config, active, left_s=2.5))
    assert (asked.task, asked.train_step_sha256, asked.round) == ("har", "b" * 64, 3)
    assert (asked.learning_rate, asked.batch_size, asked.local_epochs, asked.deadline_ms) == (0.5, 32, 1, 2500)
    assert decode_bundle(asked.parameters)["w"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("kind", "config", "field"),
    [
        ("query", {}, "message_type"),
        (TRAIN, {"lr": "fast"}, "learning_rate"),
        (TRAIN, {"lr": float("nan")}, "learning_rate"),
        (TRAIN, {"batch-size": 0}, "batch_size"),
        (EVALUATE, {"server-round": -1}, "round"),
    ],
)
def test_what_a_stock_server_asks_is_bounded(kind: str, config: dict[str, Any], field: str) -> None:
    with pytest.raises(WireError) as refused:
        as_fields(kind, MODEL, config, ActiveStep("har", "b" * 64), left_s=10.0)
    assert refused.value.field == field


def test_the_answer_to_a_stock_server_has_its_weight() -> None:
    trained = TrainReply(
        device_id="d",
        examples=12,
        steps=1,
        seconds=0.0,
        loss=0.5,
        validation_examples=4,
        validation_accuracy=0.25,
        validation_loss=1.0,
        parameters=encode_bundle(MODEL),
    )
    state, metrics = as_metrics(TRAIN, trained.to_fields())
    assert metrics == {"num-examples": 12, "train_loss": 0.5, "accuracy": 0.25}
    assert state["w"].tolist() == [[1.0, 2.0]]
    measured = EvaluateReply(device_id="d", examples=4, accuracy=0.5, loss=2.0)
    assert as_metrics(EVALUATE, measured.to_fields()) == ({}, {"num-examples": 4, "accuracy": 0.5, "loss": 2.0})


@pytest.mark.parametrize("value", ["no colon", "a:", ":b", "a b:c", "a:b;c", "x" * 199 + ":y", 7, "os:system()"])
def test_a_client_app_is_a_module_and_an_attribute(value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_settings(DEFAULTS, {"client_app": value})
    assert refused.value.field == "settings.client_app"


@pytest.mark.parametrize(
    "more",
    [{"secure_aggregation": True}, {"down_wire": "int8"}, {"privacy": {"mode": "central", "noise_multiplier": 1.0}}],
)
def test_guests_do_not_go_with_what_plain_flower_cannot(more: dict[str, Any]) -> None:
    assert parse_settings(DEFAULTS, {"client_app": "lab.client:app"}).client_app == "lab.client:app"
    with pytest.raises(InvalidRequestError):
        parse_settings(DEFAULTS, {"client_app": "lab.client:app", **more})
