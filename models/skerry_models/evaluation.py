"""How good a model is on labelled rows; the same arithmetic for torch, ONNX and the device's replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerry_contract.tensors import Array
from skerry_models.task import Dataset, Float32, Int64, Task

#: Rows per forward pass; the inference graphs accept 1 to 64.
BATCH_ROWS = 64


@dataclass(frozen=True)
class Evaluation:
    """Figures on ``n`` rows.

    Attributes:
        accuracy: Share of rows whose highest score is the label, 0 to 1.
        macro_f1: Mean of the classes' F1 over classes that have rows, 0 to 1.
        loss: Mean cross-entropy, nats.
        per_class: Recall of each class, in class order; None for a class without rows.
        confusion: int counts [truth][prediction].
        n: Number of rows.
    """

    accuracy: float
    macro_f1: float
    loss: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    n: int


def evaluate_scores(scores: Float32, labels: Int64) -> Evaluation:
    """Judge logits.

    Args:
        scores: float32 [N, C], finite.
        labels: int64 [N], 0 to C - 1.

    Raises:
        ValueError: No rows, shapes that do not fit, a label outside the classes, or a score that is not finite.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or len(labels) == 0:
        raise ValueError(f"expected scores [N, C] and labels [N], N >= 1, got {scores.shape} and {labels.shape}")
    classes = scores.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    wide = scores.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    loss = float((log_total - shifted[np.arange(len(labels)), labels]).mean())
    confusion = np.bincount(labels * classes + scores.argmax(axis=1), minlength=classes**2).reshape(classes, classes)
    hits = np.diag(confusion)
    truth, guessed = confusion.sum(axis=1), confusion.sum(axis=0)
    present = truth > 0
    f1 = 2.0 * hits[present] / (truth[present] + guessed[present])
    return Evaluation(
        accuracy=float(hits.sum() / len(labels)),
        macro_f1=float(f1.mean()),
        loss=loss,
        per_class=tuple(float(h / t) if t else None for h, t in zip(hits, truth, strict=True)),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        n=len(labels),
    )


def in_batches(forward: Callable[[Float32], npt.NDArray[np.float32]], x: Float32) -> Float32:
    """Apply ``forward`` to at most :data:`BATCH_ROWS` rows at a time and join the results."""
    return np.concatenate([forward(x[start : start + BATCH_ROWS]) for start in range(0, len(x), BATCH_ROWS)])


def network_scores(task: Task, state: Mapping[str, Array], x: Float32) -> Float32:
    """Logits of the torch network: float32 [N, *input] -> float32 [N, C]; raises ParameterError."""
    import torch

    from skerry_models.parameters import create_loaded

    network = create_loaded(task, state)

    def forward(rows: Float32) -> Float32:
        with torch.no_grad():
            scores: Float32 = network(torch.from_numpy(np.array(rows))).numpy()
        return scores

    return in_batches(forward, x)


def onnx_scores(model: Path | bytes, x: Float32, *, optimise: bool = True) -> Float32:
    """Output "scores" of an inference graph on one CPU thread: float32 [N, *input] -> float32 [N, C].

    With ``optimise`` off it is computed as it is written, so that INT8 figures do not depend on this machine's kernels.
    """
    from skerry_models.runtime import open_session

    session = open_session(model, optimise=optimise)

    def forward(rows: Float32) -> Float32:
        return session.run(["scores"], {"input": np.ascontiguousarray(rows)})[0].astype(np.float32, copy=False)

    return in_batches(forward, x)


def evaluate_parameters(task: Task, state: Mapping[str, Array], dataset: Dataset) -> Evaluation:
    """Judge a state with the torch network.

    Raises:
        ParameterError: The state does not fit the task.
        ValueError: The data set is empty.
    """
    if not len(dataset):
        raise ValueError("the data set is empty")
    return evaluate_scores(network_scores(task, state, dataset.x), dataset.y)


def evaluate_onnx(model: Path | bytes, dataset: Dataset, *, optimise: bool = True) -> Evaluation:
    """Judge an exported inference graph.

    Args:
        model: File, or its bytes.
        dataset: At least one row.
        optimise: Whether onnxruntime may rewrite the graph; see :func:`onnx_scores`.

    Raises:
        BundleError: The graph does not load.
        ValueError: The data set is empty.
    """
    if not len(dataset):
        raise ValueError("the data set is empty")
    return evaluate_scores(onnx_scores(model, dataset.x, optimise=optimise), dataset.y)
