"""Scales that stay over releases: exact if nothing changed, small steps if little did, fresh if they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from skerry_contract.tensors import Array
from skerry_models.canonical_lint import check_canonical
from skerry_models.export import export_inference
from skerry_models.frozen_scales import ScalesError, choose_scales, freeze_scales
from skerry_models.onnx_graph import serialise
from skerry_models.parameters import initial_parameters
from skerry_models.quantise import QuantisedGraphs, quantise
from skerry_models.runtime import open_session
from skerry_models.task import Dataset, load_task

Floats = npt.NDArray[np.float32]
TASK = load_task("digits")
ROWS = TASK.source("central")
LARGEST = {"canonical": 127, "x86": 64}


@pytest.fixture(scope="module")
def first() -> tuple[bytes, QuantisedGraphs]:
    """Random parameters, biases too, so that no graph optimisation drops them."""
    rng = np.random.default_rng(0)
    values = initial_parameters(TASK, 0)
    state: dict[str, Array] = {
        name: (value.astype(np.float32) + rng.normal(0, 0.05, value.shape)).astype(np.float32)
        for name, value in values.items()
    }
    infer = export_inference(TASK, state, ROWS.x[:16]).infer
    return infer, quantise(infer, ROWS.x[:64])


@pytest.fixture(scope="module")
def second(first: tuple[bytes, QuantisedGraphs]) -> tuple[bytes, QuantisedGraphs]:
    """A small round later."""
    rng = np.random.default_rng(9)
    infer = edited(first[0], (".weight", ".bias"), lambda value: value + rng.normal(0, 0.002, value.shape))
    return infer, quantise(infer, ROWS.x[:64])


def edited(model: bytes, suffixes: tuple[str, ...], change: Callable[[Floats], npt.NDArray[Any]]) -> bytes:
    """A model some of whose float32 constants are changed."""
    graph = onnx.load_from_string(model)
    for tensor in graph.graph.initializer:
        if tensor.name.endswith(suffixes):
            value = change(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return serialise(graph)


def scaled(graphs: QuantisedGraphs, factor: float) -> QuantisedGraphs:
    """Both forms with all of their scales multiplied."""
    return QuantisedGraphs(
        *(edited(form, ("_scale",), lambda value: value * factor) for form in (graphs.canonical, graphs.x86))
    )


def constants(model: bytes) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}


@pytest.mark.parametrize("form", ["canonical", "x86"])
def test_its_own_scales_give_the_same_bytes(first: tuple[bytes, QuantisedGraphs], form: str) -> None:
    infer, own = first
    frozen = freeze_scales(getattr(own, form), infer, getattr(own, form), largest=LARGEST[form])
    assert frozen.model == getattr(own, form)
    assert (frozen.weights, frozen.clipped) == (144 + 4608 + 1280, 0)


@pytest.mark.parametrize("form", ["canonical", "x86"])
def test_scales_are_kept_and_weights_move_by_single_steps(
    first: tuple[bytes, QuantisedGraphs], second: tuple[bytes, QuantisedGraphs], form: str
) -> None:
    infer, fresh = second
    kept = getattr(first[1], form)
    frozen = freeze_scales(getattr(fresh, form), infer, kept, largest=LARGEST[form])
    before, after, source = constants(kept), constants(frozen.model), constants(infer)
    assert {name for name in after if name.endswith(("_scale", "_zero_point"))}
    for name, value in after.items():
        if name.endswith(("_scale", "_zero_point")):
            np.testing.assert_array_equal(value, before[name])
        elif name.endswith("weight_quantized"):
            assert int(np.abs(value.astype(int) - before[name].astype(int)).max()) <= 3
            weight, scale = source[name.removesuffix("_quantized")], before[name.replace("_quantized", "_scale")]
            steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
            assert np.abs(value - np.clip(steps, -LARGEST[form], LARGEST[form])).max() <= 0.5 + 1e-4
    fresh_scales = constants(getattr(fresh, form))
    assert any((fresh_scales[name] != before[name]).any() for name in before if name.endswith("weight_scale"))
    if form == "canonical":
        check_canonical(onnx.load_from_string(frozen.model), "infer.int8-qdq.onnx")


def test_frozen_scales_are_deterministic(
    first: tuple[bytes, QuantisedGraphs], second: tuple[bytes, QuantisedGraphs]
) -> None:
    infer, fresh = second
    made = [choose_scales(fresh, infer, first[1], rows_like(infer)) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].kept


def rows_like(infer: bytes) -> Dataset:
    """Rows labelled by the fp32 graph itself, so that its accuracy is 1."""
    scores = open_session(infer).run(["scores"], {"input": ROWS.x[:64]})[0]
    labels = np.asarray(scores.argmax(axis=1), dtype=np.int64)
    return Dataset(ROWS.x[:64], labels)


def test_without_an_earlier_release_scales_are_fresh(first: tuple[bytes, QuantisedGraphs]) -> None:
    chosen = choose_scales(first[1], first[0], None, ROWS)
    assert (chosen.kept, chosen.graphs, chosen.detail) == (False, first[1], "no earlier release")


def test_weights_that_outgrow_their_scales_get_fresh_ones(first: tuple[bytes, QuantisedGraphs]) -> None:
    infer, fresh = first
    chosen = choose_scales(fresh, infer, scaled(fresh, 1 / 1.5), ROWS)
    assert not chosen.kept
    assert chosen.graphs == fresh
    assert "of the weights lie beyond the earlier scales" in chosen.detail


def test_scales_that_cost_accuracy_are_not_kept(first: tuple[bytes, QuantisedGraphs]) -> None:
    # Steps fifty times as large: too coarse to tell the weights apart.
    infer, fresh = first
    chosen = choose_scales(fresh, infer, scaled(fresh, 50.0), rows_like(infer))
    assert not chosen.kept
    assert chosen.graphs == fresh
    assert chosen.detail.startswith("accuracy 0.")


def test_another_graph_is_refused(first: tuple[bytes, QuantisedGraphs]) -> None:
    infer, own = first
    with pytest.raises(ScalesError, match="another structure"):
        freeze_scales(own.canonical, infer, own.x86, largest=127)
    with pytest.raises(ScalesError, match="does not parse"):
        freeze_scales(own.canonical, infer, b"\xff\xff", largest=127)
    assert choose_scales(own, infer, QuantisedGraphs(own.x86, own.canonical), ROWS).detail.endswith("another structure")
