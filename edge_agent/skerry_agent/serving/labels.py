"""Ground truth for answered requests: joined, kept for training, counted for the control plane.

A label is acknowledged when its sample and its count are committed. What waits to be reported is read back from the
store, so the report of an acknowledged label survives a crash. Reports carry the store's numbers, by which the outbox
knows one that it was handed before a crash: no label is lost, none is reported twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from skerry_agent.errors import AgentError, InputError
from skerry_agent.serving.recent import RecentRequests
from skerry_agent.training.labelled_store import JoinedPrediction, LabelledSample, LabelledStore
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

_log = logging.getLogger(__name__)

#: Most labels of one request.
LABELS = 10_000


class LabelSink(Protocol):
    """Where reports of labels go; ``skerry_agent.link.outbox.Outbox`` is one."""

    def enqueue_once(self, message: UplinkMessage, *, source: str, number: int) -> bool:
        """Keep a message durably, unless this number of the source, or a higher one, was kept before."""
        ...


@dataclass(frozen=True)
class Label:
    """Ground truth for one row.

    Attributes:
        request_id: Id that the answer carried.
        row: Row of the request, from 0.
        label: Class name or index.
    """

    request_id: str
    row: int
    label: str | int


@dataclass(frozen=True)
class LabelRefusal:
    """A label that was not taken.

    Attributes:
        index: Position in the request.
        label: The label.
        reason: Why.
    """

    index: int
    label: Label
    reason: str


@dataclass(frozen=True)
class LabelOutcome:
    """What became of a request with labels.

    Attributes:
        accepted: Labels that were kept.
        duplicates: Labels that were there already.
        refused: The others.
    """

    accepted: int
    duplicates: int
    refused: tuple[LabelRefusal, ...]


class LabelDesk:
    """Takes labels. Thread-safe.

    Args:
        recent: Where requests are looked up.
        open_store: Gives the store when the first label comes, so that a broken store does not stop inference.
        open_sink: Gives the outbox when the first report is due.
    """

    def __init__(
        self,
        recent: RecentRequests,
        *,
        open_store: Callable[[], LabelledStore],
        open_sink: Callable[[], LabelSink],
    ) -> None:
        self._recent = recent
        self._open_store = open_store
        self._open_sink = open_sink
        self._lock = threading.Lock()
        self._store: LabelledStore | None = None
        self._sink: LabelSink | None = None
        self._unreported = True  # a run before this one may have left some
        self.labelled = 0
        self.correct = 0

    def add(self, labels: Sequence[Label]) -> LabelOutcome:
        """Join labels to their requests and keep them; one that is wrong does not hold up the others.

        Raises:
            DeviceError: The store cannot be written; no label was taken.
        """
        refused: list[LabelRefusal] = []
        samples: list[tuple[int, LabelledSample]] = []
        for index, label in enumerate(labels):
            joined = self._join(label)
            if isinstance(joined, str):
                refused.append(LabelRefusal(index, label, joined))
            else:
                samples.append((index, joined))
        accepted = duplicates = 0
        with self._lock:
            outcomes = self._opened_store().add_many([sample for _, sample in samples]) if samples else []
            for (index, sample), outcome in zip(samples, outcomes, strict=True):
                if isinstance(outcome, InputError):
                    refused.append(LabelRefusal(index, labels[index], str(outcome)))
                elif outcome:
                    accepted += 1
                    self.correct += sample.prediction is not None and sample.prediction.predicted == sample.y
                else:
                    duplicates += 1
            self.labelled += accepted
            self._unreported = self._unreported or accepted > 0
        return LabelOutcome(accepted, duplicates, tuple(sorted(refused, key=lambda refusal: refusal.index)))

    def report(self) -> int:
        """Hand pending counts to the outbox; returns how many labels they hold. Failures are logged, tried later."""
        with self._lock:
            if not self._unreported:
                return 0
            reported = 0
            try:
                store = self._opened_store()
                for sealed in store.seal():
                    if self._sink is None:
                        self._sink = self._open_sink()
                    self._sink.enqueue_once(
                        UplinkMessage(label=sealed.report), source=store.store_id, number=sealed.number
                    )
                    store.settle(sealed.number)
                    reported += sealed.report.labelled
            except (AgentError, OSError):
                _log.exception("labels cannot be reported yet")
                return reported
            self._unreported = False
            return reported

    def close(self) -> None:
        """Report what is pending and close the store."""
        self.report()
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _opened_store(self) -> LabelledStore:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _join(self, label: Label) -> LabelledSample | str:
        """The sample, or why there is none."""
        request = self._recent.find(label.request_id)
        if request is None:
            return "request not found or too old"
        if not 0 <= label.row < len(request.x):
            return f"row: expected 0 to {len(request.x) - 1}, got {label.row}"
        classes = request.classes
        if isinstance(label.label, str):
            if label.label not in classes:
                return f"label: expected one of {', '.join(classes)[:200]}, got {label.label[:80]!r}"
            y = classes.index(label.label)
        elif 0 <= label.label < len(classes):
            y = label.label
        else:
            return f"label: expected 0 to {len(classes) - 1}, got {label.label}"
        prediction = JoinedPrediction(request.release_id, len(classes), request.predicted(label.row))
        return LabelledSample(label.request_id, label.row, request.x[label.row], y, prediction)
