"""Labelled samples of this device: what it trains on. They never leave it.

One SQLite file (WAL) for several processes: serving adds, training reads. The newest ``capacity`` samples are kept.
What the control plane is to know, the confusion of labels and predictions, is counted in the same transaction that
keeps the sample, so that an acknowledged label is reported even after a crash between the two. A report is sealed under
a number before the outbox gets it, so that after a crash the outbox recognises it: each label is reported exactly once.

Invariants: a (request, row) is counted once however often it is sent; all samples that :meth:`LabelledStore.load`
returns have one shape; after a kill at any moment the file holds exactly the transactions that were acknowledged.

>>> store = LabelledStore(Path("/tmp/labelled.sqlite"), 5000)   # doctest: +SKIP
>>> store.add("request-1", x, 3)                                # doctest: +SKIP
True
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.policy.labelled import COUNT_SAMPLES
from skerry_contract.limits import CLASSES, INFERENCE_BYTES
from skerry_contract.v1.telemetry_pb2 import LabelReport

_log = logging.getLogger(__name__)

#: How long a process waits for another one's transaction (s).
BUSY_SECONDS = 10.0
#: Most classes whose confusion fits into one message for the control plane.
CONFUSION_CLASSES = 128

_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  request_id TEXT NOT NULL,
  row INTEGER NOT NULL,
  label INTEGER NOT NULL,
  shape TEXT NOT NULL,
  elements INTEGER NOT NULL CHECK (elements > 0),
  x BLOB NOT NULL CHECK (length(x) = 4 * elements),
  UNIQUE (request_id, row)
);
CREATE TABLE IF NOT EXISTS confusion (
  release_id TEXT NOT NULL,
  classes INTEGER NOT NULL,
  label INTEGER NOT NULL CHECK (label >= 0 AND label < classes),
  predicted INTEGER NOT NULL CHECK (predicted >= 0 AND predicted < classes),
  count INTEGER NOT NULL CHECK (count > 0),
  PRIMARY KEY (release_id, classes, label, predicted)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reports (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS identity (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  store_id TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class JoinedPrediction:
    """What the device had answered for a sample.

    Attributes:
        release_id: Release that answered.
        classes: Number of its classes.
        predicted: Index of the class that it gave.
    """

    release_id: str
    classes: int
    predicted: int


@dataclass(frozen=True)
class PendingLabels:
    """Labels of one release that no report holds yet.

    Attributes:
        release_id: Release that answered.
        classes: Number of its classes.
        counts: (label, predicted) to how often, >= 1.
    """

    release_id: str
    classes: int
    counts: dict[tuple[int, int], int]

    def report(self) -> LabelReport:
        """The message. With more than :data:`CONFUSION_CLASSES` classes it carries no confusion, only the sums."""
        table = [0] * (self.classes * self.classes if self.classes <= CONFUSION_CLASSES else 0)
        if table:
            for (label, predicted), count in self.counts.items():
                table[label * self.classes + predicted] = count
        return LabelReport(
            release_id=self.release_id,
            classes=self.classes,
            labelled=sum(self.counts.values()),
            correct=sum(count for (label, predicted), count in self.counts.items() if label == predicted),
            confusion=table,
        )


@dataclass(frozen=True)
class SealedReport:
    """A report that does not change any more, until the outbox has it.

    Attributes:
        number: Counts up per store.
        report: The message.
    """

    number: int
    report: LabelReport


@dataclass(frozen=True)
class LabelledSample:
    """One labelled row.

    Attributes:
        request_id: Request that it came with.
        row: Row of the request.
        x: float32 [...], finite, without the batch dimension.
        y: Index of the true class.
        prediction: What was answered; None keeps the sample without counting it.
    """

    request_id: str
    row: int
    x: npt.NDArray[np.float32]
    y: int
    prediction: JoinedPrediction | None = None


class LabelledStore:
    """Bounded store of labelled samples. Usable from several threads and processes.

    Args:
        path: The SQLite file; made if it is not there. A file that is not a database is set aside and a new one made.
        capacity: Samples that are kept, >= 1.

    Raises:
        DeviceError: The file cannot be made or opened.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._path = path
        self._capacity = capacity
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = _connect(path)
            except sqlite3.OperationalError:  # locked, full, not writable: the content may be good
                raise
            except sqlite3.DatabaseError as error:
                aside = path.with_name(f"{path.name}.broken-{int(time.time() * 1000)}")
                path.rename(aside)
                _log.error("%s is broken (%s); set aside as %s, starting empty", path, error, aside.name)
                self._connection = _connect(path)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error

    @property
    def store_id(self) -> str:
        """Identity of this file, new if it is made anew; numbers of reports count within it. Raises DeviceError."""
        with self._reading() as connection:
            return str(connection.execute("SELECT store_id FROM identity").fetchone()[0])

    def add(self, request_id: str, x: npt.NDArray[np.float32], y: int, *, row: int = 0) -> bool:
        """Keep one sample.

        Args:
            request_id: Request that it came with.
            x: float32 [...], finite, without the batch dimension.
            y: Index of the true class, 0 to 1,023.
            row: Row of the request.

        Returns:
            False if the sample was there already; nothing changes then.

        Raises:
            InputError: Wrong type, shape, value or class, or another label than the sample already has.
            DeviceError: The store cannot be written.
        """
        outcome = self.add_many([LabelledSample(request_id, row, x, y)])[0]
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    def add_many(self, samples: Sequence[LabelledSample]) -> list[bool | InputError]:
        """Keep samples in one transaction: True (kept), False (there already) or what is wrong, for each.

        Raises:
            DeviceError: The store cannot be written; none is kept.
        """
        outcomes: list[bool | InputError] = []
        with self._transaction() as cursor:
            for sample in samples:
                error = _check_sample(sample)
                outcomes.append(error if error is not None else self._insert(cursor, sample))
            cursor.execute(
                "DELETE FROM samples WHERE position <= "
                "(SELECT position FROM samples ORDER BY position DESC LIMIT 1 OFFSET ?)",
                (self._capacity,),
            )
        return outcomes

    def load(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """All samples of the shape of the newest one, oldest first.

        Returns:
            float32 [N, ...] and int64 [N]; [0] and [0] if the store is empty.

        Raises:
            DeviceError: The store cannot be read.
        """
        with self._reading() as connection:
            newest = connection.execute("SELECT shape FROM samples ORDER BY position DESC LIMIT 1").fetchone()
            if newest is None:
                return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64)
            rows = connection.execute("SELECT x, label FROM samples WHERE shape = ? ORDER BY position", newest)
            data: list[bytes] = []
            labels: list[int] = []
            for x, label in rows:
                data.append(x)
                labels.append(label)
        shape = (len(labels), *json.loads(newest[0]))
        return np.frombuffer(b"".join(data), dtype="<f4").reshape(shape).copy(), np.array(labels, dtype=np.int64)

    def count(self) -> int:
        """How many samples :meth:`load` would return; raises DeviceError."""
        with self._reading() as connection:
            found = connection.execute(COUNT_SAMPLES).fetchone()
        return int(found[0])

    def newest(self) -> int:
        """Position of the newest sample, which counts up in this file; 0 if there was none; raises DeviceError."""
        with self._reading() as connection:
            found = connection.execute("SELECT COALESCE(MAX(position), 0) FROM samples").fetchone()
        return int(found[0])

    def pending(self) -> list[PendingLabels]:
        """Counts that are not sealed yet, one entry per release; raises DeviceError."""
        with self._reading() as connection:
            return _pending(connection)

    def seal(self) -> list[SealedReport]:
        """Put what is pending into numbered reports; returns all that are not settled, in their order.

        Raises:
            DeviceError: The store cannot be written; the counts stay pending.
        """
        with self._transaction() as cursor:
            for labels in _pending(cursor):
                cursor.execute("INSERT INTO reports (body) VALUES (?)", (labels.report().SerializeToString(),))
            cursor.execute("DELETE FROM confusion")
            rows = cursor.execute("SELECT number, body FROM reports ORDER BY number").fetchall()
        return [SealedReport(number, LabelReport.FromString(body)) for number, body in rows]

    def settle(self, number: int) -> None:
        """Forget a sealed report: the outbox has it.

        Raises:
            DeviceError: The store cannot be written; the report stays.
        """
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM reports WHERE number = ?", (number,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _insert(self, cursor: sqlite3.Cursor, sample: LabelledSample) -> bool | InputError:
        key = (sample.request_id, sample.row)
        known = cursor.execute("SELECT label FROM samples WHERE request_id = ? AND row = ?", key).fetchone()
        if known is not None:
            if known[0] == sample.y:
                return False
            return InputError("label", expected=f"{known[0]}, as this row was labelled before", got=sample.y)
        x = np.ascontiguousarray(sample.x, dtype="<f4")
        cursor.execute(
            "INSERT INTO samples (request_id, row, label, shape, elements, x) VALUES (?, ?, ?, ?, ?, ?)",
            (*key, sample.y, json.dumps(list(x.shape)), x.size, x.tobytes()),
        )
        joined = sample.prediction
        if joined is not None:
            cursor.execute(
                "INSERT INTO confusion VALUES (?, ?, ?, ?, 1) "
                "ON CONFLICT (release_id, classes, label, predicted) DO UPDATE SET count = count + 1",
                (joined.release_id, joined.classes, sample.y, joined.predicted),
            )
        return True

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            cursor = self._connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                except BaseException:
                    self._connection.rollback()
                    raise
                self._connection.commit()
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise _unusable(self._path, error) from error
            finally:
                cursor.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent snapshot, while other processes write."""
        with self._lock:
            try:
                self._connection.execute("BEGIN")
                try:
                    yield self._connection
                finally:
                    self._connection.rollback()
            except sqlite3.Error as error:
                raise _unusable(self._path, error) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
        connection.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (f"labelled-{secrets.token_hex(8)}",))
        connection.execute("SELECT COUNT(*) FROM samples").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    path.chmod(0o600)
    return connection


def _pending(connection: sqlite3.Connection | sqlite3.Cursor) -> list[PendingLabels]:
    rows = connection.execute(
        "SELECT release_id, classes, label, predicted, count FROM confusion ORDER BY release_id, classes"
    ).fetchall()
    found: dict[tuple[str, int], dict[tuple[int, int], int]] = {}
    for release_id, classes, label, predicted, count in rows:
        found.setdefault((release_id, classes), {})[label, predicted] = count
    return [PendingLabels(release_id, classes, counts) for (release_id, classes), counts in found.items()]


def _check_sample(sample: LabelledSample) -> InputError | None:
    x = sample.x
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.size == 0 or x.nbytes > INFERENCE_BYTES:
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        return InputError("x", expected=f"a float32 array of at most {INFERENCE_BYTES} bytes", got=got)
    if not np.isfinite(x).all():
        return InputError("x", expected="finite values", got="NaN or an infinity")
    joined = sample.prediction
    classes = CLASSES if joined is None else joined.classes
    if not 0 <= sample.y < classes:
        return InputError("label", expected=f"0 to {classes - 1}", got=sample.y)
    if joined is not None and not 0 <= joined.predicted < joined.classes <= CLASSES:
        return InputError("predicted", expected=f"0 to {joined.classes - 1}", got=joined.predicted)
    return None


def _unusable(path: Path, error: Exception) -> DeviceError:
    return DeviceError(f"the labelled store {path} cannot be used ({error})", remedy="free disk space, check its owner")
