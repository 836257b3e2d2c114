"""Batch normalisation without torch's count of batches, which no graph reads and which cannot be averaged."""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import torch
from torch.nn import functional

#: Share of a new batch in the running statistics.
MOMENTUM = 0.1
_EPSILON = 1e-5


class ChannelNorm(torch.nn.Module):
    """Normalises each channel over batch and space (Ioffe and Szegedy, ICML 2015).

    Training takes the statistics of the batch and updates the running ones; evaluation takes the running ones, and
    the exported graph has them folded into the convolution before.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, channels, ...] -> the same shape."""
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, MOMENTUM, _EPSILON
        )
