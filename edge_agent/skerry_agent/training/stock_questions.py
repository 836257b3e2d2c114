"""What a Flower server that knows nothing of us asks, as one of our instructions; and our answer as its metrics. Pure.

Flower's strategies (flwr 1.41.0) send the model as an array record and a config record, and want arrays and a metric
record with ``num-examples``. Such a server names no task and no train step: the device takes those of its active
release, and parameters that do not fit them are refused by the trainer like anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skerry_contract.campaign import (
    EVALUATE,
    TRAIN,
    EvaluateInstruction,
    EvaluateReply,
    Scalar,
    TrainInstruction,
    TrainReply,
)
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, encode_bundle

#: Records and the key of the weight, as Flower's strategies name them.
ARRAYS, CONFIG, METRICS, WEIGHT = "arrays", "config", "metrics", "num-examples"
#: Name of the campaign that such instructions seem to come from.
CAMPAIGN = "stock-flower"
#: What is used where the config record says nothing.
DEFAULTS: Mapping[str, Scalar] = {
    "server-round": 1,
    "lr": 0.05,
    "local-epochs": 1,
    "batch-size": 32,
    "proximal-mu": 0.0,
}
#: How long a device may take when the message says nothing better (milliseconds).
LONGEST_MS = 3_600_000


@dataclass(frozen=True)
class ActiveStep:
    """What the device can train now.

    Attributes:
        task: Of the active release.
        train_step_sha256: Digest (hexadecimal) of its train step.
    """

    task: str
    train_step_sha256: str


def as_fields(
    kind: str, state: Mapping[str, Array], config: Mapping[str, Scalar], active: ActiveStep, *, left_s: float
) -> dict[str, Scalar]:
    """An instruction.

    Args:
        kind: Flower message type.
        state: Parameters.
        config: The config record; unknown keys do not count.
        active: What the device can train.
        left_s: Until when the answer is waited for (seconds).

    Raises:
        WireError: The message is of another type, or a value is out of bounds.
    """
    value = {**DEFAULTS, **{key: config[key] for key in DEFAULTS if key in config}}
    common: dict[str, Scalar] = {
        "campaign_id": CAMPAIGN,
        "round": value["server-round"],
        "task": active.task,
        "train_step_sha256": active.train_step_sha256,
        "deadline_ms": max(1, min(LONGEST_MS, int(left_s * 1000))),
        "parameters": encode_bundle(state),
    }
    if kind == EVALUATE:
        return EvaluateInstruction.from_fields({**common, "model": "result"}).to_fields()
    if kind != TRAIN:
        raise WireError("message_type", expected=f"{TRAIN} or {EVALUATE}", got=kind)
    return TrainInstruction.from_fields(
        {
            **common,
            "local_epochs": value["local-epochs"],
            "batch_size": value["batch-size"],
            "learning_rate": value["lr"],
            "proximal_mu": value["proximal-mu"],
            "minimum_samples": 0,
            "seed": value["server-round"],
        }
    ).to_fields()


def as_metrics(kind: str, answer: Mapping[str, object]) -> tuple[dict[str, Array], dict[str, int | float]]:
    """Parameters (none after an evaluation) and metrics of an answer."""
    if kind == EVALUATE:
        measured = EvaluateReply.from_fields(answer)
        return {}, {WEIGHT: measured.examples, "accuracy": measured.accuracy, "loss": measured.loss}
    trained = TrainReply.from_fields(answer)
    metrics = {WEIGHT: trained.examples, "train_loss": trained.loss, "accuracy": trained.validation_accuracy}
    return decode_bundle(trained.parameters), metrics
