"""Accuracy of a state on the server's holdout: by the base release's evaluate.onnx, or by torch where there is none.

The graph takes the parameters as inputs, so one session serves every round; onnxruntime starts in a tenth of the time
of torch, and its logits agree with torch's to the tolerance that a bundle is built with (``parity``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from skerry_contract.tensors import Array
from skerry_models.evaluation import evaluate_scores, in_batches
from skerry_models.runtime import open_session
from skerry_server.errors import NotFoundError, PlatformError
from skerry_server.federation.rounds.workshop import Holdout

if TYPE_CHECKING:
    from skerry_models.evaluation import Evaluation
    from skerry_models.task import Dataset, Float32, Task
    from skerry_server.releases.artifacts import ArtifactStore

logger = logging.getLogger(__name__)

EVALUATE = "evaluate.onnx"
Evaluate = Callable[[Mapping[str, Array]], Holdout]


class OnnxHoldout:
    """Evaluates states of one network on one data set, on one thread."""

    def __init__(self, model: bytes, dataset: Dataset, parameters: Mapping[str, Array]) -> None:
        """Open the graph.

        Args:
            model: Bytes of evaluate.onnx.
            dataset: At least one row.
            parameters: A state, for the names that the graph may leave out.

        Raises:
            BundleError: The graph does not load.
            ValueError: The data set is empty.
        """
        if not len(dataset):
            raise ValueError("the data set is empty")
        self._session = open_session(model)
        self._dataset = dataset
        self._names = tuple(parameters)

    def __call__(self, state: Mapping[str, Array]) -> Holdout:
        """Figures of a state."""
        feed = {name: np.ascontiguousarray(state[name]) for name in self._names}

        def forward(rows: Float32) -> Float32:
            scores = self._session.run(["scores"], {**feed, "input": np.ascontiguousarray(rows)})[0]
            return scores.astype(np.float32, copy=False)

        return _holdout(evaluate_scores(in_batches(forward, self._dataset.x), self._dataset.y))


def torch_holdout(task: Task, dataset: Dataset) -> Evaluate:
    """The same figures by torch, for a base release whose bundle is not in the store."""
    import torch

    from skerry_models.evaluation import evaluate_parameters

    torch.set_num_threads(1)  # this process waits for devices on a machine that serves others
    return lambda state: _holdout(evaluate_parameters(task, state, dataset))


def bundle_graph(artifacts: ArtifactStore, bundle_sha256: str, name: str) -> bytes | None:
    """A file of a bundle in the store, such as evaluate.onnx; None when it is not there."""
    try:
        for file in artifacts.bundle_files(bundle_sha256):
            if file.path == name:
                return artifacts.get_bytes(file.sha256)
    except (NotFoundError, PlatformError) as error:
        logger.warning("the base release's bundle cannot be read: %s", error)
    return None


def _holdout(figures: Evaluation) -> Holdout:
    return Holdout(figures.accuracy, figures.macro_f1, figures.loss)
