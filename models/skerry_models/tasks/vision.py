"""Shelves of clothes in colour, 224 x 224: a network of MobileNetV2's class, for latency on real devices.

A shelf shows 4 x 4 articles of one kind; the kind is its class. An article is an image of Fashion-MNIST, each pixel
twice as wide and high, in a colour that follows from its number; the ground of a shelf follows from its first article.
Nothing is random: the same shelves come out on every machine. The articles of the published training part are dealt
once: central, holdout and twelve stores; ``unseen`` comes from the published test part. It is an easy problem on
purpose: it is there so that the accuracy of a large network's forms can be told apart from chance, not to be hard.

The cloud trains on single articles first and then on whole shelves (``training_rows``): a pass costs the same either
way, and over articles it takes sixteen times the steps; the trunk is fully convolutional, but what surrounds an article
matters to it, so the last passes must see shelves. Devices train the head alone: backward through the trunk takes them
seconds per row.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from skerry_models.datasets.fashion_source import CLASSES, EDGE, FashionImages, Pixels, load_fashion
from skerry_models.datasets.partition import deal
from skerry_models.errors import DataError
from skerry_models.ladder import Rung
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

_CLIENTS = tuple(f"store-{index:02d}" for index in range(1, 13))
#: Articles of the training part by source; the stores share the rest.
_ARTICLES = {CENTRAL: 4_400, HOLDOUT: 3_400}
#: Most shelves of a source, so that its rows (602 KB each) fit into the memory of a small machine.
_SHELVES = {CENTRAL: 256, HOLDOUT: 200, UNSEEN: 200}
_CLIENT_SHELVES = 32
_MAXIMUM = 255.0
#: Share of a training that sees single articles.
_ARTICLES_UNTIL = 0.34
_TRAINING = TrainingDefaults(epochs=5, batch_size=16, learning_rate=0.03, momentum=0.9)
_DISTILLATION = TrainingDefaults(epochs=8, batch_size=8, learning_rate=0.03, momentum=0.9)


class VisionTask:
    """See the module."""

    name = "vision"
    classes = CLASSES
    feature_names = (
        "red_mean",
        "green_mean",
        "blue_mean",
        "red_deviation",
        "green_deviation",
        "blue_deviation",
        "edge_energy_x",
        "edge_energy_y",
    )
    default_training = _TRAINING
    default_campaign = CampaignDefaults(rounds=3, local_epochs=1, batch_size=8, learning_rate=0.01, proximal_mu=0.0)
    drift_name = "lit by coloured lamps"
    latency_class = "real-time"

    def __init__(self, *, places: int = 4, zoom: int = 2, width: float = 1.0, small_width: float = 0.35) -> None:
        """Choose a size; the registered task has the defaults.

        Args:
            places: Articles along an edge of a shelf.
            zoom: Edge of a square that one pixel of an article becomes.
            width: Of the network.
            small_width: Of the network on the next rung of the ladder.
        """
        self._places, self._zoom, self._width, self._small_width = places, zoom, width, small_width
        edge = places * zoom * EDGE
        self.input = InputSpec(shape=(3, edge, edge), minimum=0.0, maximum=_MAXIMUM, unit="8-bit RGB level")

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """One smaller network; see :class:`~skerry_models.ladder.Laddered`."""
        return (Rung("small", lambda seed: self._create(seed, self._small_width), _DISTILLATION, accuracy_loss=0.08),)

    def create_network(self, seed: int) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        return self._create(seed, self._width)

    def create_device_network(self, seed: int) -> torch.nn.Module:
        """See :class:`~skerry_models.task.TrainsPartly`: the head alone is trained."""
        return self._create(seed, self._width).freeze_trunk()

    def _create(self, seed: int, width: float) -> torch.nn.Module:
        from skerry_models.networks.initialise import separate_randomness
        from skerry_models.networks.vision import VisionNetwork

        with separate_randomness():
            return VisionNetwork(len(self.classes), seed, width=width)

    def create_features(self) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.vision import VisionFeatures

        return VisionFeatures()

    def client_names(self) -> tuple[str, ...]:
        """store-01 to store-12."""
        return _CLIENTS

    def source(self, name: str) -> Dataset:
        """See :class:`~skerry_models.task.Task`."""
        check_source(self.name, name, [CENTRAL, HOLDOUT, UNSEEN, *(CLIENT_PREFIX + client for client in _CLIENTS)])
        images = self._images
        if name == UNSEEN:
            return self._shelves(images.x_test, images.y_test, np.arange(len(images.y_test)), _SHELVES[UNSEEN])
        limit = _SHELVES.get(name, _CLIENT_SHELVES)
        return self._shelves(images.x_train, images.y_train, self._parts[name], limit)

    def training_rows(self, rows: Dataset, progress: float) -> Dataset:
        """See :class:`~skerry_models.task.TrainsOnViews`: in the first third each article of each shelf by itself."""
        if progress >= _ARTICLES_UNTIL:
            return rows
        places, edge = self._places, self._zoom * EDGE
        cut = rows.x.reshape(len(rows), 3, places, edge, places, edge).transpose(0, 2, 4, 1, 3, 5)
        articles = np.ascontiguousarray(cut.reshape(-1, 3, edge, edge))
        return Dataset(articles, np.repeat(rows.y, places * places))

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """Lamps of another colour: one channel keeps its light, the others lose some, the ground is lifted.

        Args:
            x: float32 [N, 3, edge, edge], 0 to 255.
            seed: One device: which colour, how much of the others is left (0.35 to 0.55), the ground (15 to 30).
        """
        generator = np.random.default_rng([seed, 0x5EED])
        gains = generator.uniform(0.35, 0.55, size=3)
        gains[generator.integers(3)] = 1.0
        ground = generator.uniform(15.0, 30.0)
        changed: Float32 = np.clip(x * gains.reshape(1, 3, 1, 1) + ground, 0.0, _MAXIMUM).astype(np.float32)
        return changed

    def _shelves(self, pixels: Pixels, labels: Pixels, rows: Int64, limit: int) -> Dataset:
        """Full shelves from the articles ``rows``, at most ``limit``, the classes in turn."""
        count, size = self._places**2, self._zoom * EDGE
        by_class = [rows[labels[rows] == label] for label in range(len(self.classes))]
        taken = [
            (label, articles[depth * count : (depth + 1) * count])
            for depth in range(max(len(articles) for articles in by_class) // count)
            for label, articles in enumerate(by_class)
            if len(articles) >= (depth + 1) * count
        ][:limit]
        x = np.empty((len(taken), 3, self._places, size, self._places, size), dtype=np.float32)
        for index, (_, articles) in enumerate(taken):
            x[index] = self._shelf(pixels[articles], articles)
        return Dataset(x.reshape(len(taken), *self.input.shape), np.array([label for label, _ in taken], np.int64))

    def _shelf(self, grey: Pixels, articles: Int64) -> Float32:
        """float32 [3, places, size, places, size] of one shelf: from the ground to the article's colour by grey."""
        ground = np.float32(10 + articles[0] * 7 % 41)
        colours = np.stack([128 + articles * step % 128 for step in (37, 59, 83)], axis=1).astype(np.float32)
        share = grey.astype(np.float32) / np.float32(_MAXIMUM)
        large = share.repeat(self._zoom, axis=1).repeat(self._zoom, axis=2)[:, None]
        images = ground + (colours[:, :, None, None] - ground) * large
        size = self._zoom * EDGE
        shelf: Float32 = images.reshape(self._places, self._places, 3, size, size).transpose(2, 0, 3, 1, 4)
        return shelf

    @cached_property
    def _images(self) -> FashionImages:
        return load_fashion()

    @cached_property
    def _parts(self) -> dict[str, Int64]:
        count, wanted = len(self._images.x_train), sum(_ARTICLES.values()) + len(_CLIENTS)
        if count < wanted:
            raise DataError(
                "the training part of Fashion-MNIST is too small",
                looked_for=[f"at least {wanted} images, found {count} in {self._images.origin}"],
                remedy="get the complete data set",
            )
        return deal(count, _ARTICLES, [CLIENT_PREFIX + client for client in _CLIENTS], salt="skerry-vision-1")


def create() -> VisionTask:
    """Factory named by the entry point."""
    return VisionTask()
