"""1-D convolutional network and drift features for 2.56 s of phone sensors.

Channels, in order: body acceleration x y z (g), rotation rate x y z (rad/s), total acceleration x y z (g).
"""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import torch
from torch.nn import functional

from skerry_models.networks.initialise import initialise
from skerry_models.networks.standardise import Standardise

#: Per channel over the central people; tests compute them again.
MEAN = (-0.0001711, -0.0001337, -7.849e-05, 0.006392, 0.0004654, -0.008305, 0.7955, 0.04843, 0.1358)
DEVIATION = (0.1911, 0.1098, 0.1015, 0.3875, 0.3633, 0.2406, 0.4411, 0.3674, 0.3504)

FEATURE_NAMES = (
    "total_acc_x_mean",
    "total_acc_y_mean",
    "total_acc_z_mean",
    "total_acc_magnitude_deviation",
    "body_acc_rms",
    "gyro_x_rms",
    "gyro_y_rms",
    "gyro_z_rms",
    "jerk_rms",
)


class HarNetwork(torch.nn.Module):
    """Four convolutions, average pooling over time and a linear layer; 37,942 parameters for 6 classes."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.standardise = Standardise(MEAN, DEVIATION, rank=3)
        self.first = torch.nn.Conv1d(9, 32, 7, stride=2, padding=3)
        self.second = torch.nn.Conv1d(32, 48, 5, stride=2, padding=2)
        self.third = torch.nn.Conv1d(48, 64, 5, stride=2, padding=2)
        self.fourth = torch.nn.Conv1d(64, 64, 3, padding=1)
        self.head = torch.nn.Linear(64, classes)
        initialise(self, seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 9, 128] -> float32 [batch, classes] logits."""
        hidden = functional.relu(self.first(self.standardise(x)))
        hidden = functional.relu(self.second(hidden))
        hidden = functional.relu(self.third(hidden))
        hidden = functional.relu(self.fourth(hidden))
        return self.head(functional.avg_pool1d(hidden, 16).flatten(1))


class HarFeatures(torch.nn.Module):
    """Statistics of the raw window that move when the phone is worn otherwise or the wearer moves otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [batch, 9, 128] -> float32 [batch, 9] in the order of :data:`FEATURE_NAMES`."""
        body, gyro, total = x[:, 0:3], x[:, 3:6], x[:, 6:9]
        magnitude = torch.sqrt((total * total).sum(1))
        centred = magnitude - magnitude.mean(1, keepdim=True)
        deviation = torch.sqrt((centred * centred).mean(1, keepdim=True))
        body_rms = torch.sqrt((body * body).sum(1).mean(1, keepdim=True))
        gyro_rms = torch.sqrt((gyro * gyro).mean(2))
        step = total[:, :, 1:] - total[:, :, :-1]
        jerk_rms = torch.sqrt((step * step).sum(1).mean(1, keepdim=True))
        return torch.cat([total.mean(2), deviation, body_rms, gyro_rms, jerk_rms], dim=1)
