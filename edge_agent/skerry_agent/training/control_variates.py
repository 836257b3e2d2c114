"""SCAFFOLD on the device (Karimireddy et al., arXiv 1910.06378, option II). Pure.

The server sends its control variate c, the device has its own c_i, zero before its first round. Every step moves along
the gradient plus c - c_i. After K steps from x to y with learning rate lr,

    c_i' = c_i - c + (x - y) / (K lr),

which is the mean of the plain gradients along the way. The device answers with c_i' - c_i.

With momentum m (v = m v + g, w = w - lr v, velocities from zero) the gradient of step j moves the model by
lr (1 - m^(K-j+1)) / (1 - m), so x - y is lr times a sum of gradients whose weights add up to

    K_m = sum over k = 1..K of (1 - m^k) / (1 - m),

and K_m takes the place of K: c_i' is then the mean of the gradients with those weights, and still exact when all
gradients are equal. The paper has no momentum; with m = 0, K_m = K.

>>> effective_steps(3, 0.0), effective_steps(3, 0.5)
(3.0, 4.25)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from skerry_agent.training.trainer import Array, State
from skerry_contract.errors import WireError


def effective_steps(steps: int, momentum: float) -> float:
    """K_m: what K steps with momentum are worth; equals ``steps`` without."""
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be 0 to below 1, got {momentum}")
    if momentum == 0.0:
        return float(steps)
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)


def check_control(control: Mapping[str, Array], state: Mapping[str, Array], names: Collection[str]) -> State:
    """The server's variate for the parameters that are corrected.

    Args:
        control: From the server; may hold more tensors than ``names``, which are left alone.
        state: The model.
        names: Parameters that a gradient moves and that are not the device's own.

    Raises:
        WireError: A tensor is missing, has another shape or type, or is not finite.
    """
    checked: State = {}
    for name in names:
        array = control.get(name)
        like = state[name]
        if array is None or array.shape != like.shape or array.dtype.name != "float32":
            got = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise WireError(f"control[{name[:80]}]", expected=f"float32 {like.shape}", got=got)
        if not np.isfinite(array).all():
            raise WireError(f"control[{name[:80]}]", expected="finite values", got="NaN or infinity")
        checked[name] = array
    return checked


def own_variate(kept: Mapping[str, Array], like: Mapping[str, Array]) -> State:
    """c_i for the tensors of ``like``: the kept one where name, shape and type fit, else zero."""
    fitting: State = {}
    for name, array in like.items():
        have = kept.get(name)
        fits = have is not None and have.shape == array.shape and have.dtype == array.dtype
        fitting[name] = have if have is not None and fits else np.zeros_like(array)
    return fitting


def correction(control: Mapping[str, Array], own: Mapping[str, Array]) -> State:
    """c - c_i."""
    return {name: np.subtract(array, own[name], dtype=np.float32) for name, array in control.items()}


def next_variate(
    control: Mapping[str, Array],
    own: Mapping[str, Array],
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
) -> State:
    """c_i', float32, computed in float64."""
    scale = 1.0 / (effective_steps(steps, momentum) * learning_rate)
    following: State = {}
    for name, array in control.items():
        moved = np.subtract(before[name], after[name], dtype=np.float64) * scale
        following[name] = (np.subtract(own[name], array, dtype=np.float64) + moved).astype(np.float32)
    return following


def change(following: Mapping[str, Array], own: Mapping[str, Array], control: Mapping[str, Array]) -> State:
    """c_i' - c_i with the names and shapes of the server's ``control``; zero for what is not corrected."""
    return {
        name: np.subtract(following[name], own[name], dtype=np.float32) if name in following else np.zeros_like(array)
        for name, array in control.items()
    }
