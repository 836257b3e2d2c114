"""What a round of secure aggregation gives: sums over its survivors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skerry_contract.secagg_ring import LOSS_UNIT, VectorLayout
from skerry_contract.tensors import Array
from skerry_server.federation.rounds.updates import State


@dataclass(frozen=True)
class SecureSum:
    """Sums; nothing in here is about one device but who took part.

    Attributes:
        difference: Sum over the survivors of weight times clipped difference, float64, in the order of the layout.
        weight: Sum of the weights.
        counts: Sums of :data:`~skerry_contract.secagg_ring.SUMS`.
        survivors: Devices in the sum, ascending.
        dropped: Device that was asked, but is not in the sum, to what became of it.
        liars: Device to what was wrong with something that it sent.
        seconds: Longest time that a device says it took for training and masking.
        bound: Values were clipped to it.
        rounding_norm: L2 norm by which rounding may lengthen one device's difference: the sensitivity of the sum of
            differences clipped to L2 norm C and equal weights is C + rounding_norm.
        layout: Of ``difference``.
    """

    difference: npt.NDArray[np.float64] = field(repr=False)
    weight: float
    counts: Mapping[str, int]
    survivors: tuple[str, ...]
    dropped: Mapping[str, str]
    liars: Mapping[str, str]
    seconds: float
    bound: float
    rounding_norm: float
    layout: VectorLayout = field(repr=False)

    def mean_difference(self) -> dict[str, npt.NDArray[np.floating]]:
        """Weighted mean of the clipped differences, tensor by tensor, float64."""
        return self.layout.tensors(self.difference / self.weight)

    def apply(self, model: Mapping[str, Array]) -> State:
        """The model moved by the weighted mean; tensors that were not aggregated stay as they are."""
        moved: State = dict(model)
        for name, step in self.mean_difference().items():
            base = model[name]
            moved[name] = (base.astype(np.float64) + step).astype(base.dtype)
        return moved

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the samples of all survivors: loss, and how good the received model was where it was measured."""
        counts = self.counts
        examples = max(1, counts["examples"])
        figures = {
            "examples": float(counts["examples"]),
            "steps": float(counts["steps"]),
            "loss": counts["loss"] / LOSS_UNIT / examples,
            "validation_examples": float(counts["validation_examples"]),
            "clipped_share": counts["clipped_values"] / (self.layout.size * len(self.survivors)),
            "within_norm_share": counts["within_norm"] / len(self.survivors),
        }
        if measured := counts["validation_examples"]:
            figures["validation_accuracy"] = counts["validation_correct"] / measured
            figures["validation_loss"] = counts["validation_loss"] / LOSS_UNIT / measured
        return figures
