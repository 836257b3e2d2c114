"""Score blocks of rows: pure but for the model that answers.

A block goes to the model whole. If the model refuses it, its rows are asked one by one, so that one bad row costs its
neighbours nothing; what was wrong with it stands in its error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from skerry_agent.batch.table import Block, Scored, Sink, Source
from skerry_agent.engine.backend import Floats
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import InputError


class Answers(Protocol):
    """What answers: :class:`~skerry_agent.engine.engine.Engine`."""

    def infer(self, x: Floats) -> Prediction:
        """Scores of float32 [rows, ...]; raises InputError for rows that are not what the model takes."""
        ...


@dataclass
class Summary:
    """What a run did.

    Attributes:
        rows: Rows read.
        refused: Rows without an answer.
        labels: Class name to its number of rows.
        first_error: Number of the first refused row and why; empty if none was.
        release_ids: Releases that answered, in their order.
    """

    rows: int = 0
    refused: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    first_error: str = ""
    release_ids: list[str] = field(default_factory=list)


class BadRowError(InputError):
    """A row was refused, and the caller wants none to be."""


def score(
    source: Source,
    answers: Answers,
    sink: Sink,
    *,
    widths: tuple[int, int],
    block_rows: int,
    keep_bad: bool,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Score a file; commits the sink at the end, and discards it if it does not come to that.

    Args:
        source: Rows.
        answers: The model.
        sink: Answers.
        widths: Classes and features of the model.
        block_rows: Rows that go to the model at once, 1 or more.
        keep_bad: Rows that the model refuses get their error in the output; otherwise the first one ends the run.
        on_rows: Hears how many rows are done.

    Raises:
        BadRowError: A row was refused, and ``keep_bad`` is false.
        InputError: The file is not what the model takes.
        AgentError: The model does not answer.
        OSError: The output cannot be written.
    """
    summary = Summary()
    try:
        for block in source.blocks(block_rows):
            scored = _score_block(block, answers, summary, widths, keep_bad=keep_bad)
            sink.write(scored)
            summary.rows += len(block.x)
            for label in scored.labels:
                if label:
                    summary.labels[label] = summary.labels.get(label, 0) + 1
            on_rows(summary.rows)
        sink.commit()
    except BaseException:
        sink.discard()
        raise
    return summary


def _score_block(
    block: Block, answers: Answers, summary: Summary, widths: tuple[int, int], *, keep_bad: bool
) -> Scored:
    try:
        found = [(slice(None), answers.infer(block.x))]
        errors = [""] * len(block.x)
    except InputError:
        found, errors = _one_by_one(block, answers, summary, keep_bad=keep_bad)
    return _joined(block, found, errors, summary, widths)


def _one_by_one(
    block: Block, answers: Answers, summary: Summary, *, keep_bad: bool
) -> tuple[list[tuple[slice, Prediction]], list[str]]:
    found: list[tuple[slice, Prediction]] = []
    errors: list[str] = []
    for row in range(len(block.x)):
        try:
            found.append((slice(row, row + 1), answers.infer(block.x[row : row + 1])))
            errors.append("")
        except InputError as error:
            if not keep_bad:
                raise BadRowError(
                    f"row {block.first + row}, {error.field}", expected=error.expected, got=error.got
                ) from error
            errors.append(str(error))
            summary.refused += 1
            summary.first_error = summary.first_error or f"row {block.first + row}: {error}"
    return found, errors


def _joined(
    block: Block,
    found: list[tuple[slice, Prediction]],
    errors: list[str],
    summary: Summary,
    widths: tuple[int, int],
) -> Scored:
    rows = len(block.x)
    labels, variants = [""] * rows, [""] * rows
    confidences = np.full(rows, np.nan, dtype=np.float32)
    scores = np.full((rows, widths[0]), np.nan, dtype=np.float32)
    features = np.full((rows, widths[1]), np.nan, dtype=np.float32)
    for place, prediction in found:
        scores[place], features[place] = prediction.scores, prediction.features
        confidences[place] = prediction.confidences
        for row, label in zip(range(rows)[place], prediction.labels, strict=True):
            labels[row], variants[row] = prediction.classes[label], prediction.variant
        if prediction.release_id not in summary.release_ids:
            summary.release_ids.append(prediction.release_id)
    return Scored(block, labels, confidences, scores, features, variants, errors)
