"""Figures of a training run, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from skerry_server.training.trainer import EpochRecord


def learning_curve(history: Sequence[EpochRecord]) -> Figure:
    """Loss and accuracy over the epochs, on the training rows and on the holdout."""
    from matplotlib.figure import Figure

    epochs = [record.epoch + 1 for record in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [record.loss for record in history], label="training")
    loss.plot(epochs, [record.holdout_loss for record in history], label="holdout")
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    accuracy.plot(epochs, [record.accuracy for record in history], label="training")
    accuracy.plot(epochs, [record.holdout_accuracy for record in history], label="holdout")
    accuracy.set(xlabel="epoch", ylabel="accuracy", title="Accuracy", ylim=(0.0, 1.02))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Counts [truth][prediction] as a coloured table; colour is the share of the truth's rows."""
    from matplotlib.figure import Figure

    counts = np.array(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    side = 2.5 + 0.5 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="prediction", ylabel="truth", title="Holdout")
    for row, column in np.ndindex(*counts.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=8)
    return figure
