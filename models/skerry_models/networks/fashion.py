"""Small 2-D convolutional network and drift features for 28 x 28 grey images of clothes."""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import torch
from torch.nn import functional

from skerry_models.networks.initialise import initialise
from skerry_models.networks.standardise import Standardise

#: Mean and standard deviation of the central rows in grey levels; tests compute them again.
MEAN = (72.33,)
DEVIATION = (89.61,)
#: Grey level above which a pixel counts as cloth.
CLOTH = 20.0

FEATURE_NAMES = ("mean", "deviation", "cloth_fraction", "cloth_level", "edge_energy_x", "edge_energy_y")


class FashionNetwork(torch.nn.Module):
    """Three convolutions with max pooling and two linear layers; 60,874 parameters for 10 classes."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.standardise = Standardise(MEAN, DEVIATION, rank=4)
        self.first = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.third = torch.nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = torch.nn.Linear(64 * 3 * 3, 64)
        self.head = torch.nn.Linear(64, classes)
        initialise(self, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 1, 28, 28] grey levels 0 to 255 -> float32 [batch, classes] logits."""
        hidden = functional.max_pool2d(functional.relu(self.first(self.standardise(x))), 2)
        hidden = functional.max_pool2d(functional.relu(self.second(hidden)), 2)
        hidden = functional.max_pool2d(functional.relu(self.third(hidden)), 2)
        return self.head(functional.relu(self.hidden(hidden.flatten(1))))


class FashionFeatures(torch.nn.Module):
    """Statistics of the raw image that move when lighting or camera do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 1, 28, 28] -> float32 [batch, 6] in the order of :data:`FEATURE_NAMES`."""
        image = x.squeeze(1)
        mean = image.mean((1, 2))
        centred = image - image.mean((1, 2), keepdim=True)
        deviation = torch.sqrt((centred * centred).mean((1, 2)))
        covered = (image > CLOTH).to(torch.float32)
        fraction = covered.mean((1, 2))
        level = (image * covered).sum((1, 2)) / (covered.sum((1, 2)) + 1e-6)
        across = image[:, :, 1:] - image[:, :, :-1]
        down = image[:, 1:, :] - image[:, :-1, :]
        edge_x = (across * across).mean((1, 2))
        edge_y = (down * down).mean((1, 2))
        return torch.stack([mean, deviation, fraction, level, edge_x, edge_y], dim=1)
