"""Handwritten digits that come with scikit-learn: works with no download.

1,797 images of 8 x 8 grey levels 0 to 16 (Alpaydin and Kaynak, UCI dataset 80, test part). Rows are dealt once:
250 central, 250 holdout, 250 unseen, 1,047 over twelve clients.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
    TrainingDefaults,
    check_source,
)

if TYPE_CHECKING:
    import torch

_CLIENTS = tuple(f"c{index:02d}" for index in range(12))
_SIZES = {CENTRAL: 250, HOLDOUT: 250, UNSEEN: 250}
_MAXIMUM = 16.0


class DigitsTask:
    """See the module."""

    name = "digits"
    classes = tuple(str(digit) for digit in range(10))
    input = InputSpec(shape=(1, 8, 8), minimum=0.0, maximum=_MAXIMUM, unit="grey level")
    feature_names = (
        "mean",
        "deviation",
        "ink_level",
        "ink_fraction",
        "centre_x",
        "centre_y",
        "edge_energy_x",
        "edge_energy_y",
    )
    default_training = TrainingDefaults(epochs=30, batch_size=32, learning_rate=0.02, momentum=0.9)
    default_campaign = CampaignDefaults(rounds=6, local_epochs=2, batch_size=16, learning_rate=0.02, proximal_mu=0.0)
    drift_name = "contrast and stroke changed"

    def create_network(self, seed: int) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.digits import DigitsNetwork
        from skerry_models.networks.initialise import separate_randomness

        with separate_randomness():
            return DigitsNetwork(len(self.classes), seed)

    def create_features(self) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.digits import DigitsFeatures

        return DigitsFeatures()

    def client_names(self) -> tuple[str, ...]:
        """c00 to c11."""
        return _CLIENTS

    def source(self, name: str) -> Dataset:
        """See :class:`~skerry_models.task.Task`."""
        check_source(self.name, name, self._parts)
        return self._parts[name]

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """A thicker pen on a greyer scan: strokes spread to the right and down, contrast shrinks, ground is lifted.

        Args:
            x: float32 [N, 1, 8, 8], 0 to 16.
            seed: Chooses the contrast (0.45 to 0.6) and the ground (3.5 to 5 grey levels) of one device.
        """
        generator = np.random.default_rng([seed, 0x5EED])
        contrast = generator.uniform(0.45, 0.6)
        ground = generator.uniform(3.5, 5.0)
        padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)))
        corners = [padded[..., 1:, 1:], padded[..., :-1, 1:], padded[..., 1:, :-1], padded[..., :-1, :-1]]
        thick = np.maximum.reduce(corners)
        changed: Float32 = np.clip(thick * contrast + ground, 0.0, _MAXIMUM).astype(np.float32)
        return changed

    @cached_property
    def _parts(self) -> dict[str, Dataset]:
        table = np.loadtxt(_find_table(), delimiter=",", dtype=np.float32)
        everything = Dataset(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64))
        clients = [CLIENT_PREFIX + name for name in _CLIENTS]
        indices = deal(len(everything), _SIZES, clients, salt="skerry-digits-1")
        return {name: everything.take(rows) for name, rows in indices.items()}


def _find_table() -> Path:
    """The file behind ``sklearn.datasets.load_digits``; importing that function takes two seconds of every process."""
    package = find_spec("sklearn")
    places = package.submodule_search_locations if package is not None else None
    tried = [Path(place) / "datasets" / "data" / "digits.csv.gz" for place in places or ()]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(
        "digits data",
        looked_for=[str(path) for path in tried] or ["the package scikit-learn"],
        remedy="install scikit-learn, which brings them",
    )


def create() -> DigitsTask:
    """Factory named by the entry point."""
    return DigitsTask()
