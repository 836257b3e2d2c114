"""Human activity from a phone at the waist; one client is one person.

Windows of 2.56 s of the UCI smartphone data (dataset 341), six basic activities. The 21 people of the published
training part are dealt by number: the first fourteen are clients, then two holdout, the last five central. ``unseen``
is the published test part.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from skerry_models.datasets.har_source import HarWindows, load_har
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

_CLIENT_PEOPLE = (1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22)
_HOLDOUT_PEOPLE = (23, 25)
_CENTRAL_PEOPLE = (26, 27, 28, 29, 30)
_CLIENTS = tuple(f"person-{index:02d}" for index in range(1, len(_CLIENT_PEOPLE) + 1))
#: Basic activities come first in the published numbering; postural transitions (6 to 11) are left out.
_ACTIVITIES = 6


class HarTask:
    """See the module."""

    name = "har"
    classes: tuple[str, ...] = ("walking", "walking-upstairs", "walking-downstairs", "sitting", "standing", "laying")
    input = InputSpec(shape=(9, 128), minimum=-35.0, maximum=35.0, unit="g (acceleration) and rad/s (rotation)")
    feature_names = (
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
    default_training = TrainingDefaults(epochs=10, batch_size=32, learning_rate=0.01, momentum=0.9)
    default_campaign = CampaignDefaults(rounds=10, local_epochs=2, batch_size=32, learning_rate=0.005, proximal_mu=0.0)
    drift_name = "worn rotated"

    def create_network(self, seed: int) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.har import HarNetwork
        from skerry_models.networks.initialise import separate_randomness

        with separate_randomness():
            return HarNetwork(len(self.classes), seed)

    def create_features(self) -> torch.nn.Module:
        """See :class:`~skerry_models.task.Task`."""
        from skerry_models.networks.har import HarFeatures

        return HarFeatures()

    def client_names(self) -> tuple[str, ...]:
        """person-01 to person-14."""
        return _CLIENTS

    def source(self, name: str) -> Dataset:
        """See :class:`~skerry_models.task.Task`."""
        people = {CENTRAL: _CENTRAL_PEOPLE, HOLDOUT: _HOLDOUT_PEOPLE}
        people |= {CLIENT_PREFIX + client: (who,) for client, who in zip(_CLIENTS, _CLIENT_PEOPLE, strict=True)}
        check_source(self.name, name, [*people, UNSEEN])
        windows = self._windows
        basic = windows.y < _ACTIVITIES
        mask = basic & (windows.test if name == UNSEEN else np.isin(windows.subject, people[name]) & ~windows.test)
        if not mask.any():
            raise DataError(
                f"source {name!r} of task har has no rows",
                looked_for=[f"windows of people {people.get(name, 'of the published test part')} in {windows.origin}"],
                remedy="get the complete data set",
            )
        return Dataset(np.ascontiguousarray(windows.x[mask].transpose(0, 2, 1)), windows.y[mask].astype(np.int64))

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """The phone is worn turned by a quarter: one fixed 3-D rotation of all three sensors.

        What pointed up now points into the wearer: no activity of the original data has gravity there.

        Args:
            x: float32 [N, 9, 128].
            seed: One device: 80 to 100 degrees about the short edge (y), up to 10 degrees about the other axes.
        """
        generator = np.random.default_rng([seed, 0x5EED])
        quarter = np.deg2rad(generator.uniform(80.0, 100.0))
        tilt_x, tilt_z = np.deg2rad(generator.uniform(-10.0, 10.0, size=2))
        rotation = _about(1, quarter) @ _about(2, tilt_z) @ _about(0, tilt_x)
        sensors = x.reshape(len(x), 3, 3, x.shape[2])
        turned = np.einsum("ij,nsjt->nsit", rotation, sensors.astype(np.float64))
        return np.ascontiguousarray(turned.reshape(x.shape).astype(np.float32))

    @cached_property
    def _windows(self) -> HarWindows:
        return load_har()


def _about(axis: int, angle: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Right-handed rotation matrix about coordinate ``axis`` by ``angle`` (rad)."""
    first, second = [other for other in range(3) if other != axis]
    sign = -1.0 if axis == 1 else 1.0
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second] = -sign * np.sin(angle)
    matrix[second, first] = sign * np.sin(angle)
    return matrix


def create() -> HarTask:
    """Factory named by the entry point."""
    return HarTask()
