"""ResNet-8 as in MLPerf Tiny's image classification (Banbury et al., NeurIPS Datasets 2021): a network to measure.

No task trains it; benchmarks build it with weights from a seed.
"""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import torch
from torch.nn import functional

from skerry_models.networks.initialise import initialise
from skerry_models.networks.normalise import ChannelNorm
from skerry_models.networks.standardise import Standardise

#: Shape of one row: colours, height, width, 8-bit levels.
INPUT_SHAPE = (3, 32, 32)
CLASSES = 10


class ResidualStack(torch.nn.Module):
    """Two 3 x 3 convolutions, and the input added, by a 1 x 1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = ChannelNorm(outputs)
        self.second = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = ChannelNorm(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = torch.nn.Identity() if same else torch.nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, inputs, h, w] -> float32 [batch, outputs, h / stride, w / stride]."""
        hidden = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(hidden)) + self.shortcut(x))


class ResNet8(torch.nn.Module):
    """78 thousand parameters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.standardise = Standardise((127.5,) * 3, (64.0,) * 3, rank=4)
        self.first = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.first_norm = ChannelNorm(16)
        stacks = [ResidualStack(16, 16, 1), ResidualStack(16, 32, 2), ResidualStack(32, 64, 2)]
        self.stacks = torch.nn.Sequential(*stacks)
        self.head = torch.nn.Linear(64, CLASSES)
        initialise(self, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 3, 32, 32] levels 0 to 255 -> float32 [batch, 10] logits."""
        hidden = functional.relu(self.first_norm(self.first(self.standardise(x))))
        hidden = self.stacks(hidden)
        return self.head(functional.avg_pool2d(hidden, hidden.shape[-2:]).flatten(1))


class ChannelMeans(torch.nn.Module):
    """Stands for drift features: the mean level of each colour."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 3, 32, 32] -> float32 [batch, 3]."""
        return x.mean((2, 3))
