"""Sessions on SQLite (WAL) or PostgreSQL.

Every writing transaction on SQLite starts with ``BEGIN IMMEDIATE``, so that two processes which both read and then
write wait for each other instead of failing at the end.

>>> database = Database("sqlite://")
>>> with database.transaction() as session:
...     pass
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

#: How long a writer waits for another one (milliseconds).
BUSY_TIMEOUT_MS = 30_000
#: Execution option of the connections that only read.
_READ_ONLY = "skerry_read_only"


class Database:
    """One database; safe to share between threads, to be made anew in each process."""

    def __init__(self, url: str) -> None:
        """Open ``url``, an SQLAlchemy URL; ``sqlite://`` is a private database in memory, for tests."""
        self.url = url
        arguments: dict[str, Any] = {}
        if url in ("sqlite://", "sqlite:///:memory:"):
            arguments = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        self.engine = sa.create_engine(url, **arguments)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_immediate)
        self._readers = sessionmaker(self.engine.execution_options(**{_READ_ONLY: True}), expire_on_commit=False)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end of the block and rolls back on any exception."""
        with self._sessions() as session, session.begin():
            yield session

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads: one snapshot, no waiting for writers; whatever it changed is rolled back."""
        with self._readers() as session:
            yield session

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_immediate
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(_READ_ONLY) else "BEGIN IMMEDIATE")
