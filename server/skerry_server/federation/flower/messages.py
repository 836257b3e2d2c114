"""Contents of Flower messages, written and read: our fields for our nodes, Flower's own records for everybody else's.

A *guest* is a node that knows nothing of us: a stock ``flower-supernode`` with a plain ``ClientApp``. It is asked as
Flower's strategies ask (flwr 1.41.0): an array record ``arrays`` and a config record ``config``; and it answers with
``arrays`` and a metric record ``metrics`` that has ``num-examples``. Names of the arrays are those of the parameters.

>>> guest_id("lab-1")
'supernode-lab-1'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from skerry_contract.campaign import (
    BULK_RECORD,
    BULK_TYPE,
    EVALUATE,
    INLINE_BYTES,
    RECORD,
    TRAIN,
    EvaluateReply,
    Scalar,
    TrainReply,
)
from skerry_contract.errors import WireError
from skerry_contract.limits import TENSORS
from skerry_contract.tensors import decode_bundle, encode_bundle

#: Begins the name that a guest has in a campaign.
GUEST_PREFIX = "supernode-"
#: Record names and keys of Flower's strategies.
ARRAYS, CONFIG, METRICS, WEIGHT = "arrays", "config", "metrics", "num-examples"
#: Keys that ClientApps commonly report, the first that is there counts.
LOSS_KEYS = ("train_loss", "train-loss", "loss", "eval_loss", "eval-loss")
ACCURACY_KEYS = ("accuracy", "eval_acc", "eval-acc", "eval_accuracy", "acc")
#: Fields of an instruction that a guest's configuration has too, under Flower's way of writing names.
CONFIG_KEYS = {
    "round": "server-round",
    "learning_rate": "lr",
    "local_epochs": "local-epochs",
    "batch_size": "batch-size",
    "proximal_mu": "proximal-mu",
    "task": "task",
}


def guest_id(name: str) -> str:
    """Name of a guest in a campaign, from the name that its key was registered under."""
    return GUEST_PREFIX + name


def pack(fields: Mapping[str, Scalar]) -> Any:
    """Fields as the content of a message to or from our own node; see :mod:`skerry_contract.campaign`."""
    bulk = {name: value for name, value in fields.items() if isinstance(value, bytes) and len(value) > INLINE_BYTES}
    content = RecordDict({RECORD: ConfigRecord({name: fields[name] for name in fields if name not in bulk})})
    if bulk:
        arrays = {name: Array("uint8", (len(data),), BULK_TYPE, data) for name, data in bulk.items()}
        content[BULK_RECORD] = ArrayRecord(arrays)
    return content


def unpack(content: Any) -> dict[str, Any]:
    """What :func:`pack` made of fields; without the record there are none."""
    bulk = content.array_records.get(BULK_RECORD, {})
    return {**content.config_records.get(RECORD, {}), **{name: array.data for name, array in bulk.items()}}


def may_ask_guest(kind: str, fields: Mapping[str, Scalar]) -> bool:
    """Whether a guest understands this: parameters as they are, and nothing that only our nodes can do."""
    plain = (
        fields.get("parameters_wire", "float32") == "float32"
        and not fields.get("noise_std")
        and not fields.get("control")
    )
    return kind in (TRAIN, EVALUATE) and bool(fields.get("parameters")) and plain and fields.get("wire") != "secagg"


def pack_for_guest(fields: Mapping[str, Scalar]) -> Any:
    """An instruction in Flower's own records."""
    state = decode_bundle(bytes(fields["parameters"]))  # type: ignore[arg-type]  # checked by may_ask_guest
    arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in state.items()})
    config = ConfigRecord({key: fields[name] for name, key in CONFIG_KEYS.items() if name in fields})
    return RecordDict({ARRAYS: arrays, CONFIG: config})


def unpack_from_guest(content: Any, *, kind: str, device_id: str) -> dict[str, Scalar]:
    """A guest's answer as the fields of our own; they are checked like everybody's.

    Raises:
        WireError: A record is missing, or holds something else.
    """
    metrics = content.metric_records.get(METRICS)
    if metrics is None:
        raise WireError(METRICS, expected="a metric record", got=", ".join(content) or "nothing")
    examples = metrics.get(WEIGHT)
    if isinstance(examples, bool) or not isinstance(examples, int | float) or not float(examples).is_integer():
        raise WireError(f"{METRICS}.{WEIGHT}", expected="a whole number", got=examples)
    loss, accuracy = _first(metrics, LOSS_KEYS), _first(metrics, ACCURACY_KEYS)
    if kind == EVALUATE:
        if accuracy is None:
            raise WireError(METRICS, expected=f"one of {', '.join(ACCURACY_KEYS)}", got=", ".join(metrics))
        reply: EvaluateReply | TrainReply = EvaluateReply(
            device_id=device_id, examples=int(examples), accuracy=accuracy, loss=loss or 0.0
        )
        return reply.to_fields()
    arrays = content.array_records.get(ARRAYS)
    if arrays is None or len(arrays) > TENSORS:
        raise WireError(ARRAYS, expected=f"an array record of at most {TENSORS} arrays", got=", ".join(content))
    try:
        state = {name: array.numpy() for name, array in arrays.items()}
    except (ValueError, TypeError, EOFError) as error:
        raise WireError(ARRAYS, expected="arrays of numbers", got=error) from error
    return TrainReply(
        device_id=device_id,
        examples=int(examples),
        steps=1,  # a guest does not say
        seconds=0.0,
        loss=loss or 0.0,
        validation_examples=0,
        validation_accuracy=0.0,
        validation_loss=0.0,
        parameters=encode_bundle(state),
    ).to_fields()


def _first(metrics: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    """The first of these that is a single number."""
    for key in keys:
        if isinstance(metrics.get(key), int | float):
            return float(metrics[key])
    return None
