"""The digits task with softmax regression as its network: a task package as a user would install one, for tests."""

from __future__ import annotations

import torch

from skerry_models.task import CampaignDefaults
from skerry_models.tasks.digits import DigitsTask


class Regression(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """float32 [N, 1, 8, 8] grey levels -> float32 [N, 10] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        scores: torch.Tensor = self.linear(x.flatten(1) / 16.0)
        return scores


class LinearDigits(DigitsTask):
    """See the module."""

    name = "linear-digits"
    default_campaign = CampaignDefaults(rounds=3, local_epochs=2, batch_size=16, learning_rate=0.1, proximal_mu=0.0)

    def create_network(self, seed: int) -> torch.nn.Module:
        """The same for every seed: zeros."""
        return Regression()


def create() -> LinearDigits:
    """Entry point."""
    return LinearDigits()
