"""Is what a device sent an update of this model? Pure: no I/O.

The device is not trusted: names, shapes, types and finiteness are those of the model, or the update is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skerry_contract.campaign import TrainReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle

State = dict[str, Array]


class UpdateRejectedError(Exception):
    """A reply that must not be counted.

    Attributes:
        reason: What is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Update:
    """A checked update.

    Attributes:
        device_id: Who trained.
        examples: Its weight.
        state: In the order of the model; views into the message, read-only.
        parameters: Its wire form as it came.
        metrics: loss, steps, seconds and the validation figures of the model that the round started from.
    """

    device_id: str
    examples: int
    state: State
    parameters: bytes
    metrics: dict[str, float]


def read_update(fields: Mapping[str, object], *, device_id: str, model: Mapping[str, Array]) -> Update:
    """Check a training reply.

    Args:
        fields: From the wire.
        device_id: Who was asked.
        model: State that the round started from.

    Raises:
        UpdateRejectedError: Anything does not fit.
    """
    try:
        reply = TrainReply.from_fields(fields)
        state = decode_bundle(reply.parameters)
    except WireError as error:
        raise UpdateRejectedError(str(error)) from error
    if reply.device_id != device_id:
        raise UpdateRejectedError(f"device {reply.device_id} answered for {device_id}")
    return Update(
        device_id=device_id,
        examples=reply.examples,
        state=check_state(state, model),
        parameters=reply.parameters,
        metrics={
            "loss": reply.loss,
            "steps": float(reply.steps),
            "seconds": reply.seconds,
            "validation_examples": float(reply.validation_examples),
            "validation_accuracy": reply.validation_accuracy,
            "validation_loss": reply.validation_loss,
        },
    )


def check_state(state: Mapping[str, Array], model: Mapping[str, Array]) -> State:
    """``state`` in the order of ``model``; raises UpdateRejectedError unless it is a state of the same network."""
    if state.keys() != model.keys():
        difference = sorted(state.keys() ^ model.keys())[:5]
        raise UpdateRejectedError(
            f"parameters: expected the {len(model)} tensors of the model, differing: {difference}"
        )
    for name, expected in model.items():
        array = state[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise UpdateRejectedError(
                f"parameters[{name}]: expected {expected.dtype} {expected.shape}, got {array.dtype} {array.shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UpdateRejectedError(f"parameters[{name}]: not finite")
    return {name: state[name] for name in model}
