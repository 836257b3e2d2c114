"""The serving process: puts the parts together, opens the doors, runs until it is told to stop, drains.

Order at start: lock, cores, engine, isolation, doors, then ``serving.json``: whoever reads that file finds open doors.
A release is loaded before the real-time class is entered, which is for answers; the doors and their threads inherit it.
A release that is refused, a broken store or a full disk never keep the doors shut.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.engine.engine import Engine, open_outbox
from skerry_agent.errors import DeviceError
from skerry_agent.files import write_atomically
from skerry_agent.heartbeat import Heartbeat
from skerry_agent.isolation import isolate_serving, leave_realtime, pin
from skerry_agent.memory import bound_arenas, forget_code, give_memory_back
from skerry_agent.policy.cores import plan_cores
from skerry_agent.policy.live_latency import LatencyPublisher
from skerry_agent.serving.admin import AdminDoor, ServingAdmin
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.grpc_door import open_grpc_door
from skerry_agent.serving.http_app import create_app
from skerry_agent.serving.http_door import HttpDoor
from skerry_agent.serving.labels import LabelDesk
from skerry_agent.serving.metrics import create_renderer
from skerry_agent.serving.recent import RecentRequests
from skerry_agent.serving.shared_memory_door import SharedMemoryDoor
from skerry_agent.training.labelled_store import LabelledStore
from skerry_contract.v1.agent_local_pb2 import ServingStatus

_log = logging.getLogger(__name__)

#: Time between two looks at what labels wait to be reported (s).
LABEL_REPORT_SECONDS = 2.0
#: A thread that computes gives up the interpreter after so long (s): the other door waits less.
SWITCH_SECONDS = 0.001


def run(layout: AgentLayout, stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        DeviceError: Not enrolled, a busy port, or another serving process on the same data directory.
    """
    config = load_config(layout)
    sys.setswitchinterval(SWITCH_SECONDS)
    bound_arenas()
    layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(layout.run / "serving.lock"))
        layout.serving_file.unlink(missing_ok=True)
        isolation = ["off"] if config.isolation == "off" else [pin(plan_cores(_allowed_cores(), config.serving_cores))]
        engine = stack.enter_context(Engine.open(layout.root, config=config, follow=False))
        labels = stack.enter_context(contextlib.closing(_label_desk(layout, config)))
        _clear_up()
        if config.isolation != "off":
            # Before the doors: the threads that they and gRPC start inherit it.
            isolation += isolate_serving()
        doors = _Doors(engine, labels, layout, config, isolation)
        stack.callback(doors.stop)
        doors.start()
        _publish_latencies(stack, engine, layout)
        heartbeat = Heartbeat()
        heartbeat.beat()
        ports = {"http_port": doors.http.port, "grpc_port": doors.grpc.port}
        document = {**ports, "pid": os.getpid(), "isolation": isolation}
        write_atomically(layout.serving_file, json.dumps(document).encode())
        stack.callback(layout.serving_file.unlink, missing_ok=True)
        if config.isolation != "off":
            leave_realtime()
        _log.info("doors open: HTTP port %d, gRPC port %d", doors.http.port, doors.grpc.port)
        _log.info("isolation: %s", "; ".join(isolation))
        gc.freeze()
        while not stop.wait(LABEL_REPORT_SECONDS):
            # Only a door whose loop turns passes it on.
            doors.http.call_soon(heartbeat.beat)
            labels.labels.report()
            if not doors.http.alive:
                raise DeviceError("the HTTP door has ended", remedy="see the log; the supervisor starts serving again")
            if not doors.grpc.alive:
                raise DeviceError("the gRPC door has ended", remedy="see the log; the supervisor starts serving again")
            if not doors.shared_memory.alive:
                raise DeviceError("the door of shared memory has ended", remedy="see the log; serving starts again")
        _log.info("stopping: requests under way are finished")


def _clear_up() -> None:
    """Keep what answers need of what loading a release has made resident."""
    give_memory_back()
    forget_code()


def _publish_latencies(stack: contextlib.ExitStack, engine: Engine, layout: AgentLayout) -> None:
    """Tell the training process how fast answers are; without it, training still looks at what control sees."""
    try:
        publisher = LatencyPublisher(layout.latency_file, engine.latest_latencies)
    except OSError as error:
        _log.warning("%s cannot be written: %s", layout.latency_file, error)
        return
    stack.callback(publisher.close)
    publisher.start()


class _LabelDeskWithRecent:
    """The label desk and the ring that it looks requests up in, closed together."""

    def __init__(self, labels: LabelDesk, recent: RecentRequests) -> None:
        self.labels = labels
        self.recent = recent

    def close(self) -> None:
        """Report what is pending and close the store."""
        self.labels.close()


def _label_desk(layout: AgentLayout, config: AgentConfig) -> _LabelDeskWithRecent:
    recent = RecentRequests(config.recent_requests, config.recent_bytes)
    desk = LabelDesk(
        recent,
        open_store=lambda: LabelledStore(layout.labelled, config.labelled_capacity),
        open_sink=lambda: open_outbox(layout, config),
    )
    return _LabelDeskWithRecent(desk, recent)


class _Doors:
    """The doors of one engine, opened and closed together."""

    def __init__(
        self,
        engine: Engine,
        labels: _LabelDeskWithRecent,
        layout: AgentLayout,
        config: AgentConfig,
        isolation: list[str],
    ) -> None:
        self._engine = engine
        self._isolation = isolation
        self._labels = labels.labels
        version = metadata.version("skerry")
        core = ServingCore(engine, recent=labels.recent, labels=labels.labels)
        render = create_renderer(engine.status, labels.labels, resident_bytes)
        app = create_app(core, version=version, metrics=render, status=self._document)
        with contextlib.ExitStack() as undo:
            self.http = HttpDoor(app, host=config.host, port=config.http_port)
            undo.callback(self.http.stop)
            self.grpc = open_grpc_door(core, version=version, host=config.host, port=config.grpc_port)
            undo.callback(self.grpc.stop)
            self.shared_memory = SharedMemoryDoor(core, layout.shared_memory_socket)
            undo.callback(self.shared_memory.stop)
            admin = ServingAdmin(engine, self._status, clear_up=_clear_up)
            self._admin = AdminDoor(admin.answer, layout.serving_socket)
            undo.pop_all()

    def start(self) -> None:
        """Open all."""
        self.http.start()
        self.grpc.start()
        self.shared_memory.start()
        self._admin.start()

    def stop(self) -> None:
        """Drain all."""
        self.http.stop()
        self.grpc.stop()
        self.shared_memory.stop()
        self._admin.stop()

    def _status(self) -> ServingStatus:
        status = self._engine.status()
        counters = status.counters
        return ServingStatus(
            release_id=status.release_id,
            slot=status.slot,
            variant=status.variant,
            backend=status.backend,
            detail=status.detail,
            requests=counters.requests,
            errors=counters.errors,
            release_requests=counters.release_requests,
            release_errors=counters.release_errors,
            latency_p50_us=round(counters.latency_p50_us),
            latency_p99_us=round(counters.latency_p99_us),
            labelled=self._labels.labelled,
            labelled_correct=self._labels.correct,
            rss_bytes=resident_bytes(),
            http_port=self.http.port,
            grpc_port=self.grpc.port,
            rung=status.rung,
            ladder_reason=status.ladder_reason,
            shed=sum(counters.shed.values()),
            late=counters.late,
            isolation=self._isolation,
            power_w=status.sensors.power_w or 0.0,
            power_mode=status.sensors.power_mode,
        )

    def _document(self) -> dict[str, Any]:
        """``/v1/status``: the status message as JSON, with the reasons of refused requests."""
        status = self._status()
        document = {field.name: getattr(status, field.name) for field in status.DESCRIPTOR.fields}
        document["isolation"] = list(status.isolation)
        spec = self._engine.spec
        return {
            **document,
            "task": "" if spec is None else spec.task,
            "refused": self._engine.status().counters.refused,
            "shed": self._engine.status().counters.shed,
            "boot_id": self._engine.boot_id,
            "personal": asdict(self._engine.status().personal),
        }


def _allowed_cores() -> set[int]:
    return os.sched_getaffinity(0)


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock of a data directory; the kernel lets it go when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeviceError(f"another serving process holds {path}", remedy="stop it first") from error
        yield
    finally:
        os.close(descriptor)
