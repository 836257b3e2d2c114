from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from skerry_contract.tensors import Array, encode_bundle
from skerry_models.errors import ParameterError
from skerry_models.parameters import (
    State,
    create_loaded,
    decode_state,
    encode_state,
    from_network,
    initial_parameters,
    load_into,
)
from skerry_models.tasks.digits import DigitsTask

TASK = DigitsTask()


def test_state_survives_the_wire_in_network_order() -> None:
    state = initial_parameters(TASK, 3)
    assert list(state) == ["first.weight", "first.bias", "second.weight", "second.bias", "head.weight", "head.bias"]
    back = decode_state(TASK, encode_state(state))
    assert list(back) == list(state)
    for name in state:
        np.testing.assert_array_equal(back[name], state[name])
    again = from_network(create_loaded(TASK, back))
    for name in state:
        np.testing.assert_array_equal(again[name], state[name])


def test_state_is_a_copy() -> None:
    network = TASK.create_network(0)
    state = from_network(network)
    state["head.bias"][:] = 9.0
    assert not np.any(from_network(network)["head.bias"] == 9.0)


def without(state: State) -> dict[str, Array]:
    return {name: array for name, array in state.items() if name != "head.bias"}


def reordered(state: State) -> dict[str, Array]:
    return dict(reversed(state.items()))


def with_nan(state: State) -> dict[str, Array]:
    broken = state["head.bias"].copy()
    broken[3] = np.nan
    return {**state, "head.bias": broken}


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (without, "parameters"),
        (lambda state: {**state, "extra": state["head.bias"]}, "parameters"),
        (reordered, "parameters"),
        (with_nan, "head.bias"),
        (lambda state: {**state, "head.bias": state["head.bias"][:9]}, "head.bias"),
        (lambda state: {**state, "head.bias": state["head.bias"].astype(np.float64)}, "head.bias"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(damage: Callable[[State], dict[str, Array]], field: str) -> None:
    network = TASK.create_network(0)
    before = from_network(network)
    damaged = damage(initial_parameters(TASK, 1))
    with pytest.raises(ParameterError) as caught:
        load_into(network, damaged)
    assert caught.value.field == field
    for name, array in from_network(network).items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ParameterError):
        decode_state(TASK, encode_bundle(damaged))


def test_broken_bytes_are_named() -> None:
    data = encode_state(initial_parameters(TASK, 0))
    with pytest.raises(ParameterError, match="tensor bundle"):
        decode_state(TASK, data[:-7])
