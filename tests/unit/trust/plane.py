"""A control plane's trust without processes: a real store, real keys and files, a broker that is a dictionary."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from skerry_contract.signing import RELEASE
from skerry_contract.topics import TRUST_INDEX
from skerry_contract.v1.release_pb2 import TrustIndex
from skerry_server.config import ServerLayout, TrustSettings
from skerry_server.link import BrokerUnavailableError, Handler
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Device, Release
from skerry_server.trust import service
from skerry_server.trust.publisher import TrustPublisher
from unit.trust.tuf_device import TufDevice, files_of

START = datetime(2030, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class _Disk:
    """Counts what changes files below a folder; from the fatal one on everything fails, as for a dead process."""

    root = ""
    fatal = 0
    count = 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.root or event not in ("open", "os.rename", "os.remove", "os.link", "os.mkdir"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.root):
            return
        self.count += 1
        if self.fatal and self.count >= self.fatal:
            raise Killed


_DISK = _Disk()
sys.addaudithook(_DISK.hear)


@contextmanager
def killed_at(root: Path, number: int) -> Iterator[_Disk]:
    """Die before the ``number``-th change of a file below ``root``; 0 only counts."""
    _DISK.root, _DISK.fatal, _DISK.count = f"{root}{os.sep}", number, 0
    try:
        yield _DISK
    finally:
        _DISK.root = ""


@dataclass
class Broker:
    """Keeps what is retained; refuses the ``refuse_at``-th message from now on."""

    retained: dict[str, bytes] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    connected: bool = True
    refuse_at: int = 0
    _callbacks: list[Callable[[], None]] = field(default_factory=list)
    _handlers: list[Handler] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        assert retain
        assert expiry_s is None
        future: Future[None] = Future()
        self.refuse_at -= 1
        if self.refuse_at == 0:
            future.set_exception(BrokerUnavailableError("lost"))
            return future
        if payload:
            self.retained[topic] = payload
        else:
            self.retained.pop(topic, None)
        self.order.append(topic.rpartition("/")[2] if payload else f"-{topic.rpartition('/')[2]}")
        future.set_result(None)
        for handler in self._handlers:
            handler(topic, payload)
        return future

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        assert topic_filter == "skerry/v1/trust/+"
        self._handlers.append(handler)
        for topic, payload in self.retained.items():
            handler(topic, payload)

    def on_connected(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        callback()

    def reconnect(self, *, lose: bool) -> None:
        """A new connection, to a broker that may have lost everything."""
        if lose:
            self.retained.clear()
        for callback in self._callbacks:
            callback()
        for handler in self._handlers:
            for topic, payload in self.retained.items():
                handler(topic, payload)

    def files(self) -> dict[str, bytes]:
        """What a device gets."""
        return {topic.rpartition("/")[2]: data for topic, data in self.retained.items() if not topic.endswith("/index")}

    def indexed(self) -> dict[str, int]:
        """What the index says."""
        index = TrustIndex.FromString(self.retained[f"skerry/v1/trust/{TRUST_INDEX}"])
        return {file.name: file.size for file in index.files}


@dataclass
class Plane:
    """Everything below one folder; ``now`` is the only time there is."""

    layout: ServerLayout
    database: Database
    settings: TrustSettings = field(default_factory=TrustSettings)
    broker: Broker = field(default_factory=Broker)
    now: datetime = START

    @classmethod
    def create(cls, folder: Path, *, settings: TrustSettings | None = None) -> Plane:
        folder.mkdir()
        database = Database("sqlite://")
        Base.metadata.create_all(database.engine)
        plane = cls(ServerLayout(folder), database, settings or TrustSettings())
        service.ensure(plane.layout, plane.settings, clock=plane.clock)
        return plane

    def copy(self, folder: Path) -> Plane:
        """The same files in another folder, beside the same store."""
        shutil.copytree(self.layout.root, folder)
        return Plane(ServerLayout(folder), self.database, self.settings, now=self.now)

    def clock(self) -> datetime:
        return self.now

    def publisher(self) -> TrustPublisher:
        """A new one, as a process that has just started has it."""
        publisher = TrustPublisher(
            self.database,
            self.broker,
            self.layout,
            self.settings,
            load_or_create_key(self.layout),
            clock=self.clock,
        )
        publisher.start()
        return publisher

    def device(self, folder: Path) -> TufDevice:
        """A device that has the first root and nothing else."""
        return TufDevice(folder, (self.layout.trust / "repository" / "1.root.json").read_bytes())

    def files(self) -> dict[str, bytes]:
        return files_of(self.layout.trust / "repository")

    def add_release(self, task: str, number: int, *, envelope: bytes | None = None) -> str:
        """A release as publication makes it: signed, under the task's next number."""
        release_id = f"{task}-r{number}"
        signed = load_or_create_key(self.layout).sign(RELEASE, f"manifest of {release_id}".encode())
        with self.database.transaction() as session:
            newest = session.scalar(sa.select(sa.func.max(Release.approved_version)).where(Release.task == task))
            session.add(
                Release(
                    id=release_id,
                    task=task,
                    sequence=number,
                    candidate_id="c",
                    origin="central",
                    bundle_sha256="00" * 32,
                    envelope=signed.SerializeToString() if envelope is None else envelope,
                    approved_version=int(newest or 0) + 1,
                    created_ms=1,
                )
            )
        return release_id

    def add_device(self, device_id: str, **columns: Any) -> None:
        with self.database.transaction() as session:
            session.add(Device(id=device_id, enrolled_ms=1, **columns))

    def change(self, kind: type[Any], key: str, **columns: Any) -> None:
        with self.database.transaction() as session:
            row = session.get_one(kind, key)
            for name, value in columns.items():
                setattr(row, name, value)

    def available(self) -> dict[str, tuple[int, bytes]]:
        """Path of each release that may be installed: number of its approval, its envelope."""
        with self.database.reading() as session:
            rows = session.scalars(sa.select(Release).where(Release.state == "available"))
            return {f"{row.task}/{row.id}": (row.approved_version, row.envelope) for row in rows}

    def paths(self) -> list[str]:
        with self.database.reading() as session:
            rows = session.execute(sa.select(Release.task, Release.id).order_by(Release.task, Release.id))
            return [f"{task}/{name}" for task, name in rows]

    def check(self, device: TufDevice, files: dict[str, bytes]) -> None:
        """``device`` verifies ``files`` and sees exactly what the store approves."""
        wanted = self.available()
        found = device.targets(files, self.paths(), now=self.now)
        assert {path: target.custom["version"] for path, target in found.items()} == {
            path: version for path, (version, _) in wanted.items()
        }
        for path, target in found.items():
            target.verify_length_and_hashes(wanted[path][1])

    def wait(self, **much: float) -> None:
        self.now += timedelta(**much)
