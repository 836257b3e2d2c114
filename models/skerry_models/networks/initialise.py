"""Initial weights that do not depend on, or change, torch's global random state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def separate_randomness() -> Iterator[None]:
    """Whatever is drawn inside, by constructors of layers for example, leaves torch's global state as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


def initialise(network: torch.nn.Module, seed: int) -> None:
    """Kaiming-normal weights for ReLU networks (He et al., ICCV 2015) and zero biases, in place.

    Args:
        network: Convolutions and linear layers are initialised, other layers are left alone.
        seed: Same seed, same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, layers):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
