"""Clothes on 28 x 28 grey images (Fashion-MNIST); one client is one shop with a random part of the images.

Rows of the published training part are dealt once: 2,000 central, 2,000 holdout, the rest over forty clients.
``unseen`` is the published test part, as far as it is on this machine.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from skerry_models.datasets.fashion_source import CLASSES, EDGE, FashionImages, Pixels, load_fashion
from skerry_models.datasets.partition import deal
from skerry_models.errors import DataError
from skerry_models.task import (
    CENTRAL,
    CLIENT_PREFIX,
    HOLDOUT,
    UNSEEN,
    CampaignDefaults,
    Dataset,
    Float32,
    InputSpec,
    Int64,
    TrainingDefaults,
    check_source,
)

if TYPE_CHECKING:
    import torch

_CLIENTS = tuple(f"shop-{index:02d}" for index in range(1, 41))
_SIZES = {CENTRAL: 2_000, HOLDOUT: 2_000}
_MAXIMUM = 255.0


class FashionTask:
    """See the module."""

    name = "fashion"
    classes = CLASSES
    input = InputSpec(shape=(1, EDGE, EDGE), minimum=0.0, maximum=_MAXIMUM, unit="grey level")
    feature_names = ("mean", "deviation", "cloth_fraction", "cloth_level", "edge_energy_x", "edge_energy_y")
    default_training = TrainingDefaults(epochs=12, batch_size=32, learning_rate=0.02, momentum=0.9)
    default_campaign = CampaignDefaults(rounds=8, local_epochs=1, batch_size=32, learning_rate=0.01, proximal_mu=0.0)
    drift_name = "photographed in dim light"

    def create_network(self, seed: int) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.fashion import FashionNetwork
        from skerry_models.networks.initialise import separate_randomness

        with separate_randomness():
            return FashionNetwork(len(self.classes), seed)

    def create_features(self) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.fashion import FashionFeatures

        return FashionFeatures()

    def client_names(self) -> tuple[str, ...]:
        """shop-01 to shop-40."""
        return _CLIENTS

    def source(self, name: str) -> Dataset:
        """See :class:`~skerry_models.task.Task`."""
        check_source(self.name, name, [CENTRAL, HOLDOUT, UNSEEN, *(CLIENT_PREFIX + client for client in _CLIENTS)])
        images = self._images
        if name == UNSEEN:
            return _dataset(images.x_test, images.y_test)
        rows = self._parts[name]
        return _dataset(images.x_train[rows], images.y_train[rows])

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """Little light and a camera that makes up for it: darker cloth, a lifted ground, more noise.

        Args:
            x: float32 [N, 1, 28, 28], 0 to 255.
            seed: One device: its light (0.15 to 0.25), its ground (20 to 40 grey levels) and its noise.
        """
        generator = np.random.default_rng([seed, 0x5EED])
        light, ground = generator.uniform(0.15, 0.25), generator.uniform(20.0, 40.0)
        noise = generator.normal(0.0, 12.0, size=x.shape)
        changed: Float32 = np.clip(x * light + ground + noise, 0.0, _MAXIMUM).astype(np.float32)
        return changed

    @cached_property
    def _images(self) -> FashionImages:
        return load_fashion()

    @cached_property
    def _parts(self) -> dict[str, Int64]:
        count, wanted = len(self._images.x_train), sum(_SIZES.values()) + len(_CLIENTS)
        if count < wanted:
            raise DataError(
                "the training part of Fashion-MNIST is too small",
                looked_for=[f"at least {wanted} images, found {count} in {self._images.origin}"],
                remedy="get the complete data set",
            )
        return deal(count, _SIZES, [CLIENT_PREFIX + client for client in _CLIENTS], salt="skerry-fashion-1")


def _dataset(pixels: Pixels, labels: Pixels) -> Dataset:
    return Dataset(pixels[:, None].astype(np.float32), labels.astype(np.int64))


def create() -> FashionTask:
    """Factory named by the entry point."""
    return FashionTask()
