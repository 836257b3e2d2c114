"""An update in the wire that the campaign asks for, with error feedback. Pure.

What a lossy wire loses, the residual, is added to the next update (error feedback, arXiv 1809.07599, 1901.09847): in
the long run everything is delivered. The whole model ("float32") takes its place where the wire is not known here,
cannot carry the values, or is not smaller: it carries the residual too and leaves none.

Order: local training -> clipping -> noise -> residual -> wire. With clipping but without noise of its own (the server
adds that) what leaves the device must stay within the norm, so the residual is added before clipping, and what clipping
takes away is gone on purpose. With local noise the residual is of noised values, which are public already.

Parameters that stay on the device are in neither of the two states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from skerry_agent.training.trainer import Array, State
from skerry_contract.clipping import clip_state, difference_norm
from skerry_contract.tensors import encode_bundle
from skerry_contract.update_codec import WIRES, difference, encode_difference

logger = logging.getLogger(__name__)

#: Clips a state around a model and adds noise to it.
Noise = Callable[[Mapping[str, Array], Mapping[str, Array]], State]


@dataclass(frozen=True)
class Wire:
    """How an update is to be encoded.

    Attributes:
        name: One of :data:`skerry_contract.update_codec.WIRES`; another one falls back to "float32".
        density: Share of the values that a sparse wire keeps.
        seed: Of stochastic rounding; another one for each device and round.
    """

    name: str = "float32"
    density: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class EncodedUpdate:
    """An update as it leaves.

    Attributes:
        parameters: The bytes.
        wire: How they are encoded.
        residual: What they do not deliver, float32 by parameter; empty for nothing.
        norm: L2 norm of what training changed, before clipping and without a residual.
    """

    parameters: bytes
    wire: str
    residual: State
    norm: float


def fitting_residual(residual: Mapping[str, Array], model: Mapping[str, Array]) -> State:
    """The parts of a kept residual that fit the model in name and shape."""
    return {
        name: array
        for name, array in residual.items()
        if name in model and model[name].dtype.kind == "f" and model[name].shape == array.shape
    }


def encode_update(
    trained: Mapping[str, Array],
    model: Mapping[str, Array],
    wire: Wire,
    *,
    residual: Mapping[str, Array],
    clip_norm: float = 0.0,
    noise: Noise | None = None,
) -> EncodedUpdate:
    """Encode what training changed.

    Args:
        trained: After training.
        model: Before it, the same tensors.
        wire: How.
        residual: What was not delivered before; see :func:`fitting_residual`.
        clip_norm: L2 bound of the difference; 0: none.
        noise: Clips and noises instead; None: no noise of its own.

    Raises:
        ValueError: The update is not finite, or overflows with its residual.
    """
    norm = difference_norm(trained, model)
    state = dict(trained)
    if noise is not None:
        state = noise(state, model)
    elif clip_norm:
        state, _ = clip_state(_with(state, residual), model, clip_norm)
        residual = {}
    if wire.name in WIRES and wire.name != "float32":
        try:
            data, lost = encode_difference(
                difference(state, model),
                wire=wire.name,
                density=wire.density,
                seed=wire.seed,
                residual=residual,
            )
        except ValueError as error:
            logger.warning("the wire %s cannot carry this update (%s): the whole model is sent", wire.name, error)
        else:
            if len(data) < sum(array.nbytes for array in state.values()):
                return EncodedUpdate(data, wire.name, lost, norm)
    return EncodedUpdate(encode_bundle(_with(state, residual)), "float32", {}, norm)


def _with(state: State, residual: Mapping[str, Array]) -> State:
    if not residual:
        return state
    whole = dict(state)
    for name, lost in residual.items():
        array = state[name]
        whole[name] = np.add(array, lost, dtype=array.dtype)
        if not np.isfinite(whole[name]).all():
            raise ValueError(f"parameter {name} overflows with its residual")
    return whole
