"""A control plane's store in a folder, and a switch that kills whoever writes to it. Used by the tests of part H."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.context import ServerContext
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Candidate, Cohort, Device, Release


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class KillSwitch:
    """Raises :class:`Killed` before the ``at``-th statement that writes, or commit of one, of a database."""

    def __init__(self, database: Database) -> None:
        self.at = 0
        self.count = 0
        self._dirty = False
        event.listen(database.engine, "before_cursor_execute", self._statement)
        event.listen(database.engine, "commit", self._commit)

    def arm(self, at: int) -> None:
        """Kill before the ``at``-th write from now on; 0 never."""
        self.at, self.count, self._dirty = at, 0, False

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().split(" ", 1)[0].upper() in ("INSERT", "UPDATE", "DELETE"):
            self._dirty = True
            self._tick()

    def _commit(self, _connection: Any) -> None:
        if self._dirty:
            self._dirty = False
            self._tick()

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed


@cache
def _template() -> Path:
    """An empty store, made once per run of the tests."""
    path = Path(mkdtemp(prefix="skerry-template-")) / "skerry.sqlite"
    database = Database(f"sqlite:///{path}")
    Base.metadata.create_all(database.engine)
    database.close()  # the last connection moves the write-ahead log into the file
    return path


def _without_flushing(connection: Any, _record: Any) -> None:
    """Processes die in these tests, the machine does not: flushing to the disk would only take time."""
    connection.execute("PRAGMA synchronous=OFF")


def open_control_plane(root: Path) -> ServerContext:
    """A fresh control plane in ``root``: real SQLite file, real artifact store, real key."""
    layout = ServerLayout(root)
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(_template(), layout.database)
    return reopen_control_plane(root)


def reopen_control_plane(root: Path) -> ServerContext:
    """The control plane that lies in ``root``, as a new process would open it."""
    layout = ServerLayout(root)
    config = ServerConfig(
        api_port=1,
        grpc_port=2,
        broker_port=3,
        broker_tls_port=5,
        broker_data_port=6,
        device_port=7,
        superlink_port=4,
    )
    database = Database(layout.database_url(config))
    event.listen(database.engine, "connect", _without_flushing)
    return ServerContext(
        config=config,
        layout=layout,
        database=database,
        artifacts=ArtifactStore(layout.artifacts_url(config), local=layout.artifacts),
        signer=load_or_create_key(layout),
    )


def seed(
    context: ServerContext, *, devices: list[str], releases: list[str], active: str = "", bundle_sha256: str = ""
) -> None:
    """Enrol online devices that serve ``active``, the cohort "all", and releases of the task "digits"."""
    with context.database.transaction() as session:
        session.add(Cohort(id="all", name="all", selector={}, created_ms=1))
        for device_id in devices:
            session.add(
                Device(
                    id=device_id,
                    enrolled_ms=1,
                    online=True,
                    active_release=active,
                    update_status="committed" if active else "idle",
                )
            )
        parent = ""
        for number, release_id in enumerate(releases, start=1):
            add_release(session, release_id, sequence=number, parent=parent, bundle_sha256=bundle_sha256)
            parent = release_id


def add_release(
    session: Any,
    release_id: str,
    *,
    sequence: int,
    parent: str = "",
    bundle_sha256: str = "",
    edges_sha256: str = "",
    incident_id: str = "",
) -> None:
    """Insert a release and its candidate as publication would."""
    session.add(
        Candidate(
            id=f"candidate-of-{release_id}",
            task="digits",
            origin="central",
            state="released",
            parameters_sha256="0" * 64,
            incident_id=incident_id,
            created_ms=1,
        )
    )
    session.add(
        Release(
            id=release_id,
            task="digits",
            sequence=sequence,
            candidate_id=f"candidate-of-{release_id}",
            origin="central",
            parent_release=parent,
            bundle_sha256=bundle_sha256 or "0" * 64,
            edges_sha256=edges_sha256,
            envelope=b"",
            approved_version=sequence,
            created_ms=1,
        )
    )


def dump(context: ServerContext, table: Any, *columns: str) -> list[tuple[Any, ...]]:
    """Rows of a table by primary key, only ``columns``."""
    with context.database.transaction() as session:
        rows = session.scalars(sa.select(table).order_by(*sa.inspect(table).primary_key))
        return [tuple(getattr(row, column) for column in columns) for row in rows]


def run_with_kills(at: int, switch: KillSwitch, make: Callable[[], Any], work: Callable[[Any], None]) -> bool:
    """Run ``work(make())``; killed before the ``at``-th write, run it again with a new object.

    Returns:
        Whether it was killed: False once ``at`` is past the last write.
    """
    switch.arm(at)
    try:
        work(make())
    except Killed:
        switch.arm(0)
        work(make())
        return True
    switch.arm(0)
    return False
