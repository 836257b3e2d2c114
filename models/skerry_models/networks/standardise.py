"""Preprocessing inside the graph, so that training and serving cannot disagree."""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

from collections.abc import Sequence

import torch


class Standardise(torch.nn.Module):
    """``(x - mean) / deviation`` per channel, by constants that are neither parameters nor state.

    The constants are not in ``state_dict``: they are the same in every model of the task, are not averaged over
    devices and become constants of the exported graphs.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], *, rank: int) -> None:
        """Set the constants.

        Args:
            mean: One value per channel, in raw units.
            deviation: One positive value per channel, in raw units.
            rank: Number of dimensions of the input, batch and channel included.
        """
        super().__init__()
        shape = [1, len(mean)] + [1] * (rank - 2)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(shape), persistent=False)
        scale = 1.0 / torch.tensor(deviation, dtype=torch.float64)
        self.register_buffer("scale", scale.to(torch.float32).reshape(shape), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, channels, ...] -> the same shape."""
        return (x - self.mean) * self.scale
