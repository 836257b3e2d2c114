"""MobileNetV2 (Sandler et al., CVPR 2018) and drift features for colour images.

The trunk is fully convolutional, so the same weights take any edge that is a multiple of 28. ReLU6 bounds every
activation, which is what 8-bit integers want.
"""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

from typing import Self

import torch
from torch.nn import functional

from skerry_models.networks.initialise import initialise
from skerry_models.networks.normalise import ChannelNorm
from skerry_models.networks.standardise import Standardise

#: Mean and standard deviation per colour over the central rows in levels; tests compute them again.
MEAN = (77.0, 76.87, 76.56)
DEVIATION = (60.23, 60.01, 59.55)
#: Expansion, channels, blocks and stride of the first block, as in table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_FIRST, _LAST = 32, 1280

FEATURE_NAMES = (
    "red_mean",
    "green_mean",
    "blue_mean",
    "red_deviation",
    "green_deviation",
    "blue_deviation",
    "edge_energy_x",
    "edge_energy_y",
)


def scaled_channels(channels: int, width: float) -> int:
    """Channels of a narrower network: the nearest multiple of 8, at least 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


class ConvolutionNorm(torch.nn.Module):
    """Convolution without bias, batch normalisation and, on request, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, *, activate: bool) -> None:
        super().__init__()
        padding = kernel // 2
        self.weights = torch.nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = ChannelNorm(outputs)
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, inputs, h, w] -> float32 [batch, outputs, ceil(h / stride), ceil(w / stride)]."""
        hidden = self.norm(self.weights(x))
        return functional.relu6(hidden) if self.activate else hidden


class InvertedResidual(torch.nn.Module):
    """Expand, filter each channel, project; the input is added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = [ConvolutionNorm(inputs, inner, 1, 1, 1, activate=True)] if expansion != 1 else []
        layers.append(ConvolutionNorm(inner, inner, 3, stride, inner, activate=True))
        layers.append(ConvolutionNorm(inner, outputs, 1, 1, 1, activate=False))
        self.layers = torch.nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, inputs, h, w] -> float32 [batch, outputs, ceil(h / stride), ceil(w / stride)]."""
        hidden = self.layers(x)
        return x + hidden if self.residual else hidden


class VisionNetwork(torch.nn.Module):
    """MobileNetV2; 2.2 million parameters for 10 classes at width 1, 0.3 million at 0.35.

    At widths below 1 the last convolution shrinks as well: its 1,280 channels are for a thousand classes.
    """

    def __init__(self, classes: int, seed: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.standardise = Standardise(MEAN, DEVIATION, rank=4)
        channels, last = scaled_channels(_FIRST, width), scaled_channels(_LAST, min(width, 1.0))
        layers: list[torch.nn.Module] = [ConvolutionNorm(3, channels, 3, 2, 1, activate=True)]
        for expansion, wanted, blocks, stride in STAGES:
            outputs = scaled_channels(wanted, width)
            for block in range(blocks):
                layers.append(InvertedResidual(channels, outputs, stride if block == 0 else 1, expansion))
                channels = outputs
        layers.append(ConvolutionNorm(channels, last, 1, 1, 1, activate=True))
        self.trunk = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(last, classes)
        self._frozen = False
        initialise(self, seed)

    def freeze_trunk(self) -> Self:
        """Train the head only: the trunk keeps its weights and its statistics, also in training mode."""
        self._frozen = True
        self.trunk.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.trunk.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 3, edge, edge] levels 0 to 255 -> float32 [batch, classes] logits."""
        hidden = self.trunk(self.standardise(x))
        return self.head(functional.avg_pool2d(hidden, hidden.shape[-2:]).flatten(1))


class VisionFeatures(torch.nn.Module):
    """Statistics of the raw image that move when light or camera do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 3, edge, edge] -> float32 [batch, 8] in the order of :data:`FEATURE_NAMES`."""
        mean = x.mean((2, 3))
        centred = x - x.mean((2, 3), keepdim=True)
        deviation = torch.sqrt((centred * centred).mean((2, 3)))
        grey = x.mean(1)
        across = grey[:, :, 1:] - grey[:, :, :-1]
        down = grey[:, 1:, :] - grey[:, :-1, :]
        edges = torch.stack([(across * across).mean((1, 2)), (down * down).mean((1, 2))], dim=1)
        return torch.cat([mean, deviation, edges], dim=1)
