"""The loop between the queue of rows and the model: one thread, one row at a time.

Invariants: every row that was queued is answered, told as an error, or counted as dropped; only a closed output and a
serving process that forbids this user end the loop early.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from skerry_agent.client import ModelDescription
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import AgentError, InputError
from skerry_agent.stream.rows import Refusal, Row, RowQueue
from skerry_agent.stream.shutdown import Shutdown
from skerry_agent.stream.sinks import Sink
from skerry_agent.stream.verdicts import Verdict, judge, wait_s

log = logging.getLogger(__name__)
#: How long the loop waits for a row before it looks around (s).
LOOK_S = 0.05
#: Time between two words about dropped rows (s).
SAY_S = 10.0
#: Longest error that is told (characters).
ERROR_CHARACTERS = 400


class Client(Protocol):
    """Who answers: :class:`~skerry_agent.client.SharedMemoryClient`."""

    @property
    def model(self) -> ModelDescription:
        """What the release takes, as far as it is known."""
        ...

    def infer(
        self, x: npt.NDArray[np.float32], *, deadline_us: float | None = None, request_id: str = ""
    ) -> Prediction:
        """Answer one row; raises AgentError."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


@dataclass
class DoorCounts:
    """What became of the rows.

    Attributes:
        answered: Rows with a prediction.
        refused: Rows that are wrong.
        late: Rows whose deadline could not be met.
        failed: Rows without an answer through no fault of their own.
        unanswered: Rows that were left when the time to finish was over.
        waits: How often the stream had to wait for the serving process.
    """

    answered: int = 0
    refused: int = 0
    late: int = 0
    failed: int = 0
    unanswered: int = 0
    waits: int = 0


class Asker:
    """The client, connected when it is needed; it connects again by itself after that."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        """``connect`` raises a ServingError where nobody answers."""
        self._connect = connect
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """Raises what connecting raises."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()


def wait_for_model(asker: Asker, shutdown: Shutdown) -> ModelDescription | None:
    """What the active release takes, as soon as there is one; None if the stream is asked to end before.

    Raises:
        ForbiddenError: This process may not ask.
    """
    tries, said = 0, ""
    while not shutdown.asked:
        try:
            return asker.client.model
        except AgentError as error:
            if judge(error, attempts=0) is Verdict.FORBIDDEN:
                raise
            if str(error) != said:
                log.warning("waiting for a model: %s", error)
                said = str(error)
        tries += 1
        shutdown.pause(wait_s(tries, random.random()))
    return None


class Door:
    """Asks, and hands on what it hears."""

    def __init__(
        self,
        asker: Asker,
        queue: RowQueue,
        sink: Sink,
        shutdown: Shutdown,
        *,
        model: ModelDescription,
        on_shape: Callable[[tuple[int, ...]], None],
        on_stop: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], float] = lambda: time.time_ns() / 1e6,
    ) -> None:
        """Nothing happens before :meth:`run`.

        Args:
            asker: The model.
            queue: Rows and refusals.
            sink: Predictions and errors.
            shutdown: How the stream ends.
            model: What the active release takes.
            on_shape: Hears when a release takes rows of another shape; raises InputError if none can be made.
            on_stop: Stops the source; called once, when the stream is asked to end.
            monotonic: Seconds.
            now_ms: Milliseconds since 1970.
        """
        self.counts = DoorCounts()
        self._asker, self._queue, self._sink, self._shutdown = asker, queue, sink, shutdown
        self._shape, self._release = model.shape, model.release_id
        self._on_shape, self._on_stop = on_shape, on_stop
        self._monotonic, self._now_ms = monotonic, now_ms
        self._tries = 0
        self._look = False
        self._said_dropped = 0
        self._say_at = monotonic() + SAY_S

    def run(self) -> None:
        """Until the source has ended, or the stream is asked to end; what waits then is answered in bounded time.

        Raises:
            ForbiddenError: This process may not ask any more.
            DeviceError: The output is closed.
        """
        stopped = False
        while not self._queue.ended:
            if self._shutdown.asked and not stopped:
                stopped = True
                self._queue.close()  # first: a source that waits for room would not stop
                self._on_stop()
            if self._shutdown.overdue:
                break
            item = self._queue.take(LOOK_S)
            if isinstance(item, Refusal):
                self._tell("payload", item.id, item.at_ms, item.error)
            elif item is not None:
                self._ask(item)
            self._sink.pump()
            self._say_dropped()
        self.counts.unanswered = self._queue.waiting
        self._say_dropped(last=True)

    def _ask(self, row: Row) -> None:
        asked = False
        try:
            deadline_us = None
            if row.due_s is not None:
                deadline_us = (row.due_s - self._monotonic()) * 1e6
                if deadline_us <= 0:
                    self._done(row, Verdict.LATE, f"no answer within its deadline, {-deadline_us / 1000:.0f} ms ago")
                    return
            client = self._asker.client
            if self._look:
                self._see(client.model)
            asked = True
            row.attempts += 1
            prediction = client.infer(row.x, deadline_us=deadline_us, request_id=row.id)
        except AgentError as error:
            self._failed(row, error, asked=asked)
            return
        if self._tries:
            log.info("the serving process answers again")
            self._tries = 0
        self.counts.answered += 1
        self._sink.emit(describe(prediction, row), error=False)
        self._look = prediction.release_id != self._release

    def _failed(self, row: Row, error: AgentError, *, asked: bool) -> None:
        verdict = judge(error, attempts=row.attempts if asked else 0)
        self._look = True
        if verdict is Verdict.FORBIDDEN:
            raise error
        if verdict in (Verdict.AWAY, Verdict.BUSY):
            if not self._tries:
                log.warning("rows wait: %s", error)
                self.counts.waits += 1
            self._tries += 1
            self._queue.give_back(row)
            self._shutdown.pause(wait_s(self._tries, random.random()))
            return
        self._done(row, verdict, str(error))

    def _see(self, model: ModelDescription) -> None:
        self._look = False
        self._release = model.release_id
        if model.shape == self._shape:
            return
        log.warning("release %s takes rows of shape %s, no longer %s", model.release_id, model.shape, self._shape)
        self._shape = model.shape
        try:
            self._on_shape(model.shape)
        except InputError as error:
            log.error("no such rows can be made: %s", error)

    def _done(self, row: Row, verdict: Verdict, error: str) -> None:
        self.counts.refused += verdict is Verdict.REFUSED
        self.counts.late += verdict is Verdict.LATE
        self.counts.failed += verdict is Verdict.FAILED
        self._tell(verdict.value, row.id, row.at_ms, error)

    def _tell(self, kind: str, name: str, at_ms: float, error: str) -> None:
        document = {"id": name, "error": error[:ERROR_CHARACTERS], "kind": kind, "at_ms": round(at_ms, 3)}
        self._sink.emit(document, error=True)

    def _say_dropped(self, *, last: bool = False) -> None:
        now = self._monotonic()
        dropped = self._queue.dropped
        if dropped != self._said_dropped and (last or now >= self._say_at):
            log.warning("%d rows dropped since the last word, %d in all", dropped - self._said_dropped, dropped)
            self._said_dropped, self._say_at = dropped, now + SAY_S


def describe(prediction: Prediction, row: Row) -> dict[str, Any]:
    """The document of an answer; numbers that JSON does not have are null."""
    return {
        "id": row.id,
        "label": prediction.class_name,
        "confidence": _finite(prediction.confidence),
        "scores": [_finite(score) for score in prediction.scores[0].tolist()],
        "release": prediction.release_id,
        "variant": prediction.variant,
        "latency_us": round(prediction.latency_us, 1),
        "at_ms": round(row.at_ms, 3),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
