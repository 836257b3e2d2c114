"""Updates as Flower's strategies want them, and what they make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message

from skerry_contract.tensors import Array


def flower_arrays(state: Mapping[str, Array]) -> ArrayRecord:
    return ArrayRecord({name: FlowerArray(np.asarray(array)) for name, array in state.items()})


def flower_reply(number: int, state: Mapping[str, Array], examples: int, loss: float = 0.5) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=number + 1,
        dst_node_id=1,
        reply_to_message_id="x",
        group_id="",
        created_at=0.0,
        ttl=1.0,
        message_type="train",
    )
    metrics = MetricRecord({"num-examples": examples, "train_loss": loss})
    return make_message(metadata, RecordDict({"arrays": flower_arrays(state), "metrics": metrics}))


def flower_configure(strategy: Any, round_number: int, model: Mapping[str, Array]) -> ConfigRecord:
    """Give the strategy the round's model, as a round with nobody in it; what it would tell the devices."""
    config = ConfigRecord()
    strategy.fraction_train = 0.0
    list(strategy.configure_train(round_number, flower_arrays(model), config, None))
    return config


def flower_aggregate(
    strategy: Any,
    round_number: int,
    states: Sequence[Mapping[str, Array]],
    examples: Sequence[int] | None = None,
    losses: Sequence[float] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The next model."""
    replies = [
        flower_reply(number, state, examples[number] if examples else 1, losses[number] if losses else 0.5)
        for number, state in enumerate(states)
    ]
    arrays, _ = strategy.aggregate_train(round_number, replies)
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}
