"""Instructions and answers of the lane, in one SQLite file: what was accepted survives the SuperLink's process.

A message is one instruction for one node. It waits here until it is answered, its run ends, or it expires; a node
gets it again as long as it has not answered, so that neither a lost response nor a killed node loses it. A node that
was given it :data:`DELIVERIES` times without an answer is taken to die of it. An answer is kept until the campaign says
that it has it.

Contents above the inline bound are files named by their SHA-256 (*blobs*); the rows here say which message needs which,
which is also who may read and write them. Used by one thread.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: How often a node gets the same instruction.
DELIVERIES = 5
#: Longest a message may wait (seconds): a day.
LONGEST_S = 86_400.0
#: Most unanswered messages of one node.
PER_NODE = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mailbox (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS node (node_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (content_id INTEGER PRIMARY KEY, frame BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS message (
    message_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, owner TEXT NOT NULL, node_id TEXT NOT NULL,
    kind TEXT NOT NULL, content_id INTEGER NOT NULL, created REAL NOT NULL, expires REAL NOT NULL,
    deliveries INTEGER NOT NULL DEFAULT 0, answer BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_node ON message (node_id) WHERE answer IS NULL;
CREATE INDEX IF NOT EXISTS message_run ON message (run_id);
CREATE INDEX IF NOT EXISTS message_answered ON message (run_id) WHERE answer IS NOT NULL;
CREATE INDEX IF NOT EXISTS message_expires ON message (expires);
CREATE INDEX IF NOT EXISTS message_owner ON message (owner) WHERE answer IS NULL;
CREATE INDEX IF NOT EXISTS message_content ON message (content_id);
CREATE TABLE IF NOT EXISTS blob (message_id TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (message_id, sha256))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blob_sha256 ON blob (sha256);
"""


class NoMessageError(Exception):
    """The message does not exist, is not that node's, or nobody waits for its answer any more."""


@dataclass(frozen=True)
class Instruction:
    """What a node is to do.

    Attributes:
        message_id: Its name.
        run_id: Flower run that asks.
        kind: Flower message type.
        left_s: Seconds until it is void.
        frame: Its fields.
    """

    message_id: str
    run_id: str
    kind: str
    left_s: float
    frame: bytes


class Mailbox:
    """The file; closed by its owner."""

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        """Open or make it.

        Args:
            path: Of the file; its folder exists.
            wall: Unix seconds.
        """
        self._wall = wall
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # An answer survives the process at once; after a power cut the last ones may be missing, and are asked for.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
            self._sql.execute(f"PRAGMA {pragma}")
        self._sql.executescript(_SCHEMA)
        self._sql.execute(
            "INSERT INTO mailbox SELECT ? WHERE NOT EXISTS (SELECT 1 FROM mailbox)", (secrets.token_hex(8),)
        )
        self._nodes = {str(node_id) for (node_id,) in self._sql.execute("SELECT node_id FROM node")}
        #: Of this file: another one means that its messages are lost.
        self.identity = str(self._sql.execute("SELECT identity FROM mailbox").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._sql.close()

    def attach(self, node_id: str) -> None:
        """From now on this node is asked over the lane; costs nothing when it is already."""
        if node_id not in self._nodes:
            self._sql.execute("INSERT OR IGNORE INTO node VALUES (?)", (node_id,))
            self._nodes.add(node_id)

    def attached(self, node_ids: Collection[str]) -> set[str]:
        """Those that are asked over the lane."""
        return self._nodes & set(node_ids)

    def post(
        self,
        node_ids: Sequence[str],
        *,
        run_id: str,
        owner: str,
        kind: str,
        ttl_s: float,
        frame: bytes,
        blobs: Iterable[str],
    ) -> dict[str, str]:
        """Leave an instruction for nodes.

        Args:
            node_ids: Which.
            run_id: Flower run that asks.
            owner: Campaign that asks; unanswered messages of its earlier runs to these nodes are void. May be empty.
            kind: Flower message type.
            ttl_s: After how long it is void (seconds).
            frame: Its fields.
            blobs: Digests that it names.

        Returns:
            Node to message; without the nodes that have :data:`PER_NODE` already.
        """
        now = self._wall()
        expires = now + min(ttl_s, LONGEST_S)
        named = list(blobs)
        posted: dict[str, str] = {}
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            content = self._sql.execute("INSERT INTO content (frame) VALUES (?)", (frame,)).lastrowid
            if owner:
                stale = "SELECT message_id FROM message WHERE owner = ? AND run_id <> ? AND answer IS NULL"
                self._drop([row[0] for row in self._sql.execute(stale, (owner, run_id))])
            for node_id in node_ids:
                waiting = "SELECT COUNT(*) FROM message WHERE node_id = ? AND answer IS NULL"
                if self._sql.execute(waiting, (node_id,)).fetchone()[0] >= PER_NODE:
                    continue
                message_id = secrets.token_hex(16)
                row = (message_id, run_id, owner, node_id, kind, content, now, expires)
                self._sql.execute("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, NULL)", row)
                self._sql.executemany("INSERT INTO blob VALUES (?, ?)", [(message_id, sha256) for sha256 in named])
                posted[node_id] = message_id
        return posted

    def next_for(self, node_id: str) -> Instruction | None:
        """The oldest unanswered instruction of a node; counts that it was handed out."""
        row = self._sql.execute(
            "SELECT message_id, run_id, kind, expires, frame FROM message NATURAL JOIN content"
            " WHERE node_id = ? AND answer IS NULL AND deliveries < ? AND expires > ?"
            " ORDER BY created, content_id LIMIT 1",
            (node_id, DELIVERIES, self._wall()),
        ).fetchone()
        if row is None:
            return None
        self._sql.execute("UPDATE message SET deliveries = deliveries + 1 WHERE message_id = ?", (row[0],))
        return Instruction(row[0], row[1], row[2], row[3] - self._wall(), row[4])

    def exhausted(self, node_id: str) -> list[str]:
        """Messages that this node got too often without answering; it asks for another, so it does not work on them."""
        query = "SELECT message_id FROM message WHERE node_id = ? AND answer IS NULL AND deliveries >= ?"
        return [row[0] for row in self._sql.execute(query, (node_id, DELIVERIES))]

    def answer(self, node_id: str, message_id: str, frame: bytes, blobs: Iterable[str] = ()) -> str:
        """Keep a node's answer; the first counts, the same again is no error.

        Returns:
            The run that waits for it.

        Raises:
            NoMessageError: Nobody waits for it.
        """
        query = "SELECT node_id, run_id, answer IS NULL FROM message WHERE message_id = ? AND expires > ?"
        row = self._sql.execute(query, (message_id, self._wall())).fetchone()
        if row is None or row[0] != node_id:
            raise NoMessageError(message_id)
        if row[2]:
            with self._sql:
                self._sql.execute("BEGIN IMMEDIATE")
                self._sql.execute("UPDATE message SET answer = ? WHERE message_id = ?", (frame, message_id))
                named = [(message_id, sha256) for sha256 in blobs]
                self._sql.executemany("INSERT OR IGNORE INTO blob VALUES (?, ?)", named)
        return str(row[1])

    def answers(self, run_id: str, *, most_bytes: int) -> list[tuple[str, bytes]]:
        """Messages of a run with their answers, while they fit into so many bytes; at least one, if there is one."""
        query = "SELECT message_id, answer FROM message WHERE run_id = ? AND answer IS NOT NULL"
        found: list[tuple[str, bytes]] = []
        total = 0
        for message_id, frame in self._sql.execute(query, (run_id,)):
            total += len(frame)
            if found and total > most_bytes:
                break
            found.append((message_id, frame))
        return found

    def drop(self, run_id: str, message_ids: Iterable[str]) -> None:
        """Forget messages of a run: their answers have arrived, or nobody wants them."""
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            query = "SELECT 1 FROM message WHERE message_id = ? AND run_id = ?"
            self._drop([name for name in message_ids if self._sql.execute(query, (name, run_id)).fetchone()])

    def end_run(self, run_id: str) -> None:
        """Forget everything of a run."""
        query = "SELECT message_id FROM message WHERE run_id = ?"
        self.drop(run_id, [row[0] for row in self._sql.execute(query, (run_id,))])

    def expire(self) -> None:
        """Forget what is void."""
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            query = "SELECT message_id FROM message WHERE expires <= ?"
            self._drop([row[0] for row in self._sql.execute(query, (self._wall(),))])

    def may_read(self, node_id: str, sha256: str) -> bool:
        """Whether an instruction for this node names the blob."""
        query = "SELECT 1 FROM blob NATURAL JOIN message WHERE sha256 = ? AND node_id = ? AND expires > ? LIMIT 1"
        return self._sql.execute(query, (sha256, node_id, self._wall())).fetchone() is not None

    def may_write(self, node_id: str, message_id: str) -> bool:
        """Whether this node has still to answer the message."""
        query = "SELECT 1 FROM message WHERE message_id = ? AND node_id = ? AND expires > ? AND answer IS NULL"
        return self._sql.execute(query, (message_id, node_id, self._wall())).fetchone() is not None

    def blobs_named_by(self, message_id: str) -> set[str]:
        """Digests of the blobs of a message and its answer."""
        return {row[0] for row in self._sql.execute("SELECT sha256 FROM blob WHERE message_id = ?", (message_id,))}

    def blobs_of(self, run_id: str) -> set[str]:
        """Digests of the blobs of a run."""
        query = "SELECT DISTINCT sha256 FROM blob NATURAL JOIN message WHERE run_id = ?"
        return {row[0] for row in self._sql.execute(query, (run_id,))}

    def named(self, sha256: str) -> bool:
        """Whether any message names the blob."""
        return self._sql.execute("SELECT 1 FROM blob WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is not None

    def _drop(self, message_ids: Sequence[str]) -> None:
        for message_id in message_ids:
            row = self._sql.execute("SELECT content_id FROM message WHERE message_id = ?", (message_id,)).fetchone()
            if row is None:
                continue
            self._sql.execute("DELETE FROM message WHERE message_id = ?", (message_id,))
            self._sql.execute("DELETE FROM blob WHERE message_id = ?", (message_id,))
            self._sql.execute(
                "DELETE FROM content WHERE content_id = ?1"
                " AND NOT EXISTS (SELECT 1 FROM message WHERE content_id = ?1)",
                row,
            )
