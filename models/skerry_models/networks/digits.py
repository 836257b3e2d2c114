"""Small 2-D convolutional network and drift features for 8 x 8 grey images."""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import torch
from torch.nn import functional

from skerry_models.networks.initialise import initialise
from skerry_models.networks.standardise import Standardise

#: Mean and standard deviation of the central rows in grey levels; tests compute them again.
MEAN = (4.866,)
DEVIATION = (5.998,)
#: Grey level above which a pixel counts as ink.
INK = 4.0

FEATURE_NAMES = (
    "mean",
    "deviation",
    "ink_level",
    "ink_fraction",
    "centre_x",
    "centre_y",
    "edge_energy_x",
    "edge_energy_y",
)


class DigitsNetwork(torch.nn.Module):
    """Two convolutions with max pooling and a linear layer; 6,090 parameters."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.standardise = Standardise(MEAN, DEVIATION, rank=4)
        self.first = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.head = torch.nn.Linear(32 * 2 * 2, classes)
        initialise(self, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 1, 8, 8] grey levels 0 to 16 -> float32 [batch, classes] logits."""
        hidden = functional.max_pool2d(functional.relu(self.first(self.standardise(x))), 2)
        hidden = functional.max_pool2d(functional.relu(self.second(hidden)), 2)
        return self.head(hidden.flatten(1))


class DigitsFeatures(torch.nn.Module):
    """Statistics of the raw image that move when contrast or stroke do."""

    def __init__(self) -> None:
        super().__init__()
        position = torch.arange(8, dtype=torch.float32)
        self.register_buffer("column", position.reshape(1, 1, 8), persistent=False)
        self.register_buffer("row", position.reshape(1, 8, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 1, 8, 8] -> float32 [batch, 8] in the order of :data:`FEATURE_NAMES`."""
        image = x.squeeze(1)
        mean = image.mean((1, 2))
        centred = image - image.mean((1, 2), keepdim=True)
        deviation = torch.sqrt((centred * centred).mean((1, 2)))
        inked = (image > INK).to(torch.float32)
        ink = inked.mean((1, 2))
        level = (image * inked).sum((1, 2)) / (inked.sum((1, 2)) + 1e-6)
        weight = image.sum((1, 2)) + 1e-6
        centre_x = (image * self.column).sum((1, 2)) / weight
        centre_y = (image * self.row).sum((1, 2)) / weight
        across = image[:, :, 1:] - image[:, :, :-1]
        down = image[:, 1:, :] - image[:, :-1, :]
        edge_x = (across * across).mean((1, 2))
        edge_y = (down * down).mean((1, 2))
        return torch.stack([mean, deviation, level, ink, centre_x, centre_y, edge_x, edge_y], dim=1)
