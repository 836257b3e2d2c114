"""Model parameters as named arrays, in network order: what is averaged, sent and stored.

A *state* holds every parameter and every persistent buffer (BatchNorm statistics) under its fully qualified name,
in the order of ``state_dict``. Preprocessing constants are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from skerry_contract.errors import WireError
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_models.errors import ParameterError
from skerry_models.task import Task

State = dict[str, Array]


def from_network(network: torch.nn.Module) -> State:
    """Copy the state out of a network (any device) as C-ordered arrays; 0-d stays 0-d."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in network.state_dict().items()}


def load_into(network: torch.nn.Module, state: Mapping[str, Array]) -> None:
    """Put a state into a network, in place; nothing changes if it does not fit.

    Raises:
        ParameterError: Names, a shape or a type differ, or a value is not finite.
    """
    check_state(from_network(network), state)
    network.load_state_dict({name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()})


def check_state(reference: Mapping[str, Array], state: Mapping[str, Array]) -> None:
    """Compare a state with a reference of the same task.

    Raises:
        ParameterError: Names, a shape or a type differ, or a value is not finite.
    """
    if list(state) != list(reference):
        missing = [name for name in reference if name not in state]
        foreign = [name for name in state if name not in reference]
        got = f"missing {missing}, unknown {foreign}" if missing or foreign else "another order"
        raise ParameterError("parameters", expected=f"{len(reference)} tensors in network order", got=got)
    for name, expected in reference.items():
        array = state[name]
        if array.shape != expected.shape or array.dtype.name != expected.dtype.name:
            raise ParameterError(
                name,
                expected=f"{expected.dtype.name} {list(expected.shape)}",
                got=f"{array.dtype.name} {list(array.shape)}",
            )
        if not np.isfinite(array).all():
            raise ParameterError(name, expected="finite values", got="NaN or infinity")


def initial_parameters(task: Task, seed: int) -> State:
    """State of a fresh network of the task."""
    return from_network(task.create_network(seed))


def create_loaded(task: Task, state: Mapping[str, Array]) -> torch.nn.Module:
    """Network of the task with the given state, in evaluation mode; raises ParameterError."""
    network = task.create_network(0)
    load_into(network, state)
    return network.eval()


def encode_state(state: Mapping[str, Array]) -> bytes:
    """Wire form: ``parameters.pb``."""
    return encode_bundle(state)


def decode_state(task: Task, data: bytes) -> State:
    """Read and check the wire form.

    Raises:
        ParameterError: Broken bytes, or a state that does not fit the task.
    """
    try:
        state = decode_bundle(data)
    except WireError as error:
        raise ParameterError("parameters", expected="a tensor bundle", got=error) from error
    check_state(initial_parameters(task, 0), state)
    return state
