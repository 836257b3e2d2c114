"""The answer to a request, as every way in gives it: the library in process and the client of shared memory.

Invariant: importing this module is light (NumPy alone), so that an application's process pays for nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.backend import Floats


class Prediction(NamedTuple):
    """The answer to one request. Its arrays are read-only; everything derived is computed when it is read.

    Attributes:
        scores: float32 [batch, classes], logits.
        features: float32 [batch, F], what drift is measured on.
        classes: Class names in the order of the scores.
        release_id: Release that answered.
        request_id: As given; empty if none was.
        latency_us: Time from the call to the answer.
        variant: Form of the network that answered, such as "int8-x86".
        rung: Place of that network on the release's ladder; 0 is the release's own network, 1 the next smaller one.
    """

    scores: Floats
    features: Floats
    classes: tuple[str, ...]
    release_id: str
    request_id: str
    latency_us: float
    variant: str = ""
    rung: int = 0

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [batch]: index of the best class of each row."""
        labels: npt.NDArray[np.int64] = self.scores.argmax(axis=1)
        return labels

    @property
    def label(self) -> int:
        """Index of the best class of the first row."""
        return int(self.scores[0].argmax())

    @property
    def class_name(self) -> str:
        """Name of the best class of the first row."""
        return self.classes[self.label]

    @property
    def confidences(self) -> Floats:
        """float32 [batch]: softmax probability of the best class of each row."""
        return confidences(self.scores)

    @property
    def confidence(self) -> float:
        """Softmax probability of the best class of the first row."""
        return float(confidences(self.scores[:1])[0])


def confidences(scores: Floats) -> Floats:
    """Softmax probability of the best class: float32 [batch] from finite scores [batch, classes]."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    best: Floats = (1.0 / shifted.sum(axis=1)).astype(np.float32)
    return best
