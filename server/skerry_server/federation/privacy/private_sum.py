"""The one place where updates become a private mean: clip, sum on the grid, noise once, divide by a fixed number.

Sensitivity: two campaigns that differ in one device, there or not there, differ by that device's clipped vector, whose
norm is at most the clipping norm ``C``, exactly, since it is an integer vector (:mod:`skerry_contract.clipping`). Every
device weighs the same: a weight by samples would multiply ``C`` and tell how many samples it has. The noise
``N(0, (z C)^2)`` goes on the sum, and the sum is divided by the number of devices that the campaign PLANNED with, not
by how many answered: the latter differs between the two campaigns, so a mean over it would have another, larger
sensitivity. A round that brings fewer devices takes a shorter step; dividing is no release.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from skerry_contract.clipping import Grid, Integers, clip_to_grid, counts, from_grid
from skerry_contract.gaussian import GaussianStream
from skerry_contract.tensors import Array

#: An honest device's clipped update may look this much longer than the norm: float32 on the wire.
_NORM_SLACK = 1e-4
#: Relative error of a float32 value, with room to spare.
_SINGLE = 2.0**-23
#: Sums are refused above it, far from the 2**63 of an int64 and far above any sum of clipped vectors.
_LARGEST_SUM = 2.0**61


class PrivateSum:
    """Takes the updates of one round; memory: one model as 64-bit integers, whatever the number of devices."""

    def __init__(
        self,
        model: Mapping[str, Array],
        *,
        clip_norm: float,
        noise_multiplier: float,
        divisor: int,
        key: bytes,
        purpose: bytes,
        personal: Sequence[str] = (),
    ) -> None:
        """Start a round.

        Args:
            model: What the devices started from.
            clip_norm: L2 bound of a contribution, above 0.
            noise_multiplier: Standard deviation of the noise on the sum, in units of ``clip_norm``.
            divisor: Planned contributions, at least 1.
            key: Secret of 32 bytes that the noise is derived from.
            purpose: Names campaign and round.
            personal: Shell patterns of parameters that stay on the devices; they are neither summed nor noised.

        Raises:
            ValueError: A norm or a divisor that is not positive.
        """
        if divisor < 1:
            raise ValueError(f"the divisor must be at least 1, got {divisor}")
        self._model = model
        self._shared = {
            name: array
            for name, array in model.items()
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in personal)
        }
        self._grid = Grid.of(self._shared, clip_norm)
        self._noise_multiplier = noise_multiplier
        self._sensitivity = clip_norm
        self._divisor = divisor
        self._key = key
        self._purpose = purpose
        self._sums: dict[str, Integers] = {
            name: np.zeros(array.size, dtype=np.int64) for name, array in self._shared.items() if counts(array)
        }
        self._contributions = 0
        self._below = 0
        self._result: dict[str, Array] | None = None

    @property
    def contributions(self) -> int:
        """Updates so far."""
        return self._contributions

    @property
    def below(self) -> int:
        """Updates so far whose norm before clipping was at most the clipping norm. Not private."""
        return self._below

    def add(self, state: Mapping[str, Array], *, norm: float = 0.0) -> bool:
        """Clip one checked update and add it; the device may have clipped it, but it is not trusted.

        Args:
            state: Absolute parameters, without the personal ones or with them; not changed.
            norm: What the device says that the norm was before it clipped; a lie moves the count by one.

        Returns:
            Whether the update was clipped, here or on the device.

        Raises:
            ValueError: The norm is not finite; nothing was added.
            RuntimeError: The sum was released already.
        """
        self._check_open()
        _, measured = clip_to_grid(state, self._shared, self._grid, into=self._sums)
        below = max(norm, measured) <= self._grid.clip_norm * (1 + _NORM_SLACK)
        self._contributions += 1
        self._below += below
        return not below

    def add_total(
        self, total: Mapping[str, Array], *, contributions: int, below: int = 0, quantisation_step: float = 0.0
    ) -> None:
        """Add a sum that was made elsewhere: what secure aggregation unmasks.

        The devices clipped; nobody can clip again. A device that does not gives up its own protection and nobody
        else's: the guarantee of a device rests on its own clipping, whatever the others send.

        Args:
            total: Sum of the clipped differences, by name; what is personal or does not count is ignored.
            contributions: Of how many devices, at least 1.
            below: How many of them had a norm of at most the clipping norm.
            quantisation_step: Distance of two values of the ring in which the devices summed. Rounding there can
                lengthen a difference by this times the root of its size, and the noise grows with it.

        Raises:
            ValueError: A value is missing, of another shape, not finite, or larger than any sum; nothing was added.
            RuntimeError: The sum was released already.
        """
        self._check_open()
        if contributions < 1 or not 0 <= below <= contributions:
            raise ValueError(f"{below} of {contributions} contributions below the norm are impossible")
        scaled = {name: self._on_grid(name, total) for name in self._sums}
        for name, values in scaled.items():
            self._sums[name] += values
        grid = self._grid
        # A device's clipped update was a float32 state for a moment: its values were off in their last places.
        single = _SINGLE * math.hypot(*(float(np.linalg.norm(self._shared[name])) for name in self._sums))
        longest = grid.clip_norm + single + math.sqrt(grid.size) * (quantisation_step + grid.step)
        self._sensitivity = max(self._sensitivity, longest)
        self._contributions += contributions
        self._below += below

    def _on_grid(self, name: str, total: Mapping[str, Array]) -> Integers:
        shape = self._shared[name].shape
        values: npt.NDArray[np.float64] = np.asarray(total.get(name, np.empty(0)), dtype=np.float64)
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"total[{name}]: expected finite values of shape {shape}, got {values.shape}")
        scaled = np.rint(values.reshape(-1) / self._grid.step)
        if np.abs(scaled).max(initial=0.0) > _LARGEST_SUM:
            raise ValueError(f"total[{name}]: larger than any sum of clipped differences")
        return scaled.astype(np.int64)

    def result(self) -> dict[str, Array]:
        """The private mean as a state, in the model's types. The noise is drawn once; later calls get the same.

        A variance of BatchNorm that the noise made negative becomes 0, which releases nothing.

        Raises:
            ValueError: Nothing was added.
        """
        if self._result is None:
            if not self._contributions:
                raise ValueError("nothing was added")
            digest = hashlib.sha256()
            for name, values in self._sums.items():
                digest.update(name.encode() + b"\0" + values.astype("<i8", copy=False).data)
            stream = GaussianStream(self._key, self._purpose + b"/sum/" + digest.digest())
            for values in self._sums.values():
                stream.add_integers(values, self._noise_multiplier * self._sensitivity / self._grid.step)
            released = from_grid(self._sums, self._shared, self._grid, divisor=self._divisor)
            for name in released:
                if name.endswith("running_var"):
                    released[name] = np.maximum(released[name], np.zeros((), dtype=released[name].dtype))
            self._result = {name: released.get(name, array) for name, array in self._model.items()}
            self._sums = {}
        return self._result

    def count_deviate(self) -> float:
        """A standard normal deviate for the count of adaptive clipping; the same in every process for equal counts."""
        purpose = self._purpose + f"/count/{self._contributions}/{self._below}".encode()
        return float(GaussianStream(self._key, purpose).normal(1)[0])

    def _check_open(self) -> None:
        if self._result is not None:
            raise RuntimeError("the sum was released; nothing can be added")
