"""Messages that wait until the control plane says they are in its database. SQLite (WAL), several processes.

Invariants: a sequence number is given once and never again for one ``outbox_id``; a message leaves only when it is
acknowledged, or when the outbox is full. Full means either bound is reached; then the oldest messages go in the order
of :data:`DROP_ORDER` until the new one fits, and ``dropped`` counts them: health reports are superseded by the next
one, drift windows by the next window, the rest goes last.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from skerry_agent.errors import DeviceError
from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

log = logging.getLogger(__name__)
#: Kinds of message, the first to go first.
DROP_ORDER = ("health", "drift", "fitness", "update", "label", "campaign")
#: Bytes of a message of :data:`~skerry_contract.limits.MESSAGE_BYTES` that are left to MQTT.
FRAMING_BYTES = 1_024
BUSY_TIMEOUT_S = 20.0
_RANK = {kind: rank for rank, kind in enumerate(DROP_ORDER)}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  outbox_id TEXT NOT NULL,
  next_sequence INTEGER NOT NULL,
  messages INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  dropped INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
  sequence INTEGER PRIMARY KEY,
  rank INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sources (
  name TEXT PRIMARY KEY,
  number INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS messages_by_rank ON messages (rank, sequence);
"""


class Outbox:
    """One process's view of the outbox; threads may share it.

    >>> import tempfile
    >>> from skerry_contract.v1.telemetry_pb2 import HealthReport
    >>> outbox = Outbox(Path(tempfile.mkdtemp()) / "outbox.sqlite", device_id="d1", message_limit=10, byte_limit=65536)
    >>> outbox.enqueue(UplinkMessage(health=HealthReport(requests=3)))
    1
    >>> outbox.depth()
    1
    """

    def __init__(self, path: Path, *, device_id: str, message_limit: int, byte_limit: int) -> None:
        """Open the outbox, or make it.

        Args:
            path: SQLite file. One that SQLite cannot read is put aside as ``<name>.broken`` and begun anew.
            device_id: Written into every message.
            message_limit: Most messages kept.
            byte_limit: Most bytes of messages kept.

        Raises:
            DeviceError: The file can be neither opened nor made.
        """
        self._path = path
        self._device_id = device_id
        self._message_limit = message_limit
        self._byte_limit = byte_limit
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                log.error("outbox %s cannot be read (%s): put aside, a new one is begun", path, error)
                self._put_aside()
                self._connection = self._connect()
            with self._transaction() as cursor:
                self.outbox_id: str = cursor.execute("SELECT outbox_id FROM outbox").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            raise DeviceError(f"outbox {path}: {error}", remedy="free space and check the folder's owner") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(
                "INSERT OR IGNORE INTO outbox VALUES (1, ?, 1, 0, 0, 0)", (f"outbox-{secrets.token_hex(8)}",)
            )
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            file = self._path.with_name(self._path.name + suffix)
            if file.exists():
                file.replace(self._path.with_name(self._path.name + ".broken" + suffix))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            cursor = self._connection.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        cursor.execute("ROLLBACK")
                raise
            finally:
                cursor.close()

    def enqueue(self, message: UplinkMessage) -> int:
        """Number and keep a message.

        Args:
            message: With a body; ``device_id``, ``outbox_id``, ``sequence`` and, if it is 0, ``created_unix_ms`` are
                filled in.

        Returns:
            Its sequence number.

        Raises:
            ValueError: No body, or larger than a message may be on the wire.
            DeviceError: The disk is full or broken; the message is not kept.
        """
        rank = self._complete(message)
        try:
            with self._transaction() as cursor:
                return self._insert(cursor, message, rank)
        except sqlite3.Error as error:
            raise DeviceError(f"outbox {self._path}: {error}", remedy="free space on the device") from error

    def enqueue_once(self, message: UplinkMessage, *, source: str, number: int) -> bool:
        """Keep a message like :meth:`enqueue`, unless its source has handed it over before.

        Args:
            message: See :meth:`enqueue`.
            source: Names a durable store that numbers its messages.
            number: Counts up per source; what is not above the highest one that was kept is known.

        Returns:
            False if it is known; nothing changes then.

        Raises:
            ValueError: See :meth:`enqueue`.
            DeviceError: The disk is full or broken; the message is not kept.
        """
        rank = self._complete(message)
        try:
            with self._transaction() as cursor:
                known = cursor.execute("SELECT number FROM sources WHERE name = ?", (source,)).fetchone()
                if known is not None and known[0] >= number:
                    return False
                self._insert(cursor, message, rank)
                cursor.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", (source, number))
                return True
        except sqlite3.Error as error:
            raise DeviceError(f"outbox {self._path}: {error}", remedy="free space on the device") from error

    def _complete(self, message: UplinkMessage) -> int:
        """Fill in all but the sequence; returns the rank, raises ValueError."""
        kind = message.WhichOneof("body")
        if kind is None:
            raise ValueError("an uplink message needs a body")
        message.device_id = self._device_id
        message.outbox_id = self.outbox_id
        message.created_unix_ms = message.created_unix_ms or time.time_ns() // 1_000_000
        message.sequence = 2**63
        limit = min(MESSAGE_BYTES - FRAMING_BYTES, self._byte_limit)
        if message.ByteSize() > limit:
            raise ValueError(f"an uplink message may have {limit} bytes, this one of kind {kind} has more")
        return _RANK[kind]

    def _insert(self, cursor: sqlite3.Cursor, message: UplinkMessage, rank: int) -> int:
        sequence, messages, size, dropped = cursor.execute(
            "SELECT next_sequence, messages, bytes, dropped FROM outbox"
        ).fetchone()
        message.sequence = sequence
        body = message.SerializeToString()
        while messages and (messages + 1 > self._message_limit or size + len(body) > self._byte_limit):
            victim, length = cursor.execute(
                "SELECT sequence, length(body) FROM messages ORDER BY rank, sequence LIMIT 1"
            ).fetchone()
            cursor.execute("DELETE FROM messages WHERE sequence = ?", (victim,))
            messages, size, dropped = messages - 1, size - length, dropped + 1
        cursor.execute("INSERT INTO messages VALUES (?, ?, ?)", (sequence, rank, body))
        cursor.execute(
            "UPDATE outbox SET next_sequence = ?, messages = ?, bytes = ?, dropped = ?",
            (sequence + 1, messages + 1, size + len(body), dropped),
        )
        return int(sequence)

    def pending(self, limit: int) -> list[UplinkMessage]:
        """The oldest ``limit`` messages, in order.

        Raises:
            DeviceError: The disk is broken.
        """
        rows = self._read("SELECT body FROM messages ORDER BY sequence LIMIT ?", (limit,))
        return [UplinkMessage.FromString(body) for (body,) in rows]

    def acknowledge(self, outbox_id: str, sequences: Iterable[int]) -> int:
        """Remove messages that are in the control plane's database.

        Args:
            outbox_id: From the acknowledgement; one of another outbox removes nothing.
            sequences: Numbers; those that are not here are ignored.

        Returns:
            How many were removed.

        Raises:
            DeviceError: The disk is full or broken; nothing is removed.
        """
        if outbox_id != self.outbox_id:
            return 0
        try:
            with self._transaction() as cursor:
                removed, freed = 0, 0
                for sequence in sequences:
                    if not 0 < sequence < 2**63:
                        continue
                    row = cursor.execute(
                        "DELETE FROM messages WHERE sequence = ? RETURNING length(body)", (sequence,)
                    ).fetchone()
                    if row is not None:
                        removed, freed = removed + 1, freed + row[0]
                cursor.execute("UPDATE outbox SET messages = messages - ?, bytes = bytes - ?", (removed, freed))
                return removed
        except sqlite3.Error as error:
            raise DeviceError(f"outbox {self._path}: {error}", remedy="free space on the device") from error

    def depth(self) -> int:
        """How many messages wait."""
        return int(self._read("SELECT messages FROM outbox", ())[0][0])

    @property
    def dropped(self) -> int:
        """How many messages went because the outbox was full, since it was made."""
        return int(self._read("SELECT dropped FROM outbox", ())[0][0])

    def _read(self, statement: str, values: tuple[int, ...]) -> list[tuple[bytes]]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DeviceError(f"outbox {self._path}: {error}", remedy="check the device's disk") from error

    def close(self) -> None:
        """Close the file; every message stays."""
        with self._lock:
            self._connection.close()
