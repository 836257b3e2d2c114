"""All doors of one engine in this process: what the serving process opens, without the process."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from integration.engine.tiny_bundle import TinyRelease, enrol, install
from skerry_agent.config import AgentLayout
from skerry_agent.engine.engine import Engine
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.grpc_door import GrpcDoor, open_grpc_door
from skerry_agent.serving.http_app import create_app
from skerry_agent.serving.http_door import HttpDoor
from skerry_agent.serving.labels import LabelDesk, LabelSink
from skerry_agent.serving.recent import RecentRequests
from skerry_agent.serving.shared_memory_door import SharedMemoryDoor
from skerry_agent.training.labelled_store import LabelledStore
from skerry_agent.update.slots import slot_folder
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

RELEASE = TinyRelease(variants={"fp32": 0.0})


class Nowhere:
    """An outbox that keeps nothing."""

    def enqueue(self, message: UplinkMessage) -> int:
        return 1

    def enqueue_once(self, message: UplinkMessage, *, source: str, number: int) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass
class Doors:
    """What is open."""

    layout: AgentLayout
    engine: Engine
    core: ServingCore
    http: HttpDoor
    grpc: GrpcDoor
    shared_memory: SharedMemoryDoor

    def activate(self, release: TinyRelease, slot: Literal["a", "b"] = "b") -> None:
        """Install a release into a slot and let it answer."""
        shutil.rmtree(slot_folder(self.layout, slot), ignore_errors=True)
        install(self.layout, release, slot)
        self.engine.activate(slot)


def sink() -> LabelSink:
    return Nowhere()


@contextlib.contextmanager
def open_doors(root: Path, release: TinyRelease | None = RELEASE) -> Iterator[Doors]:
    """Open everything for a device with that release, or with none."""
    layout = enrol(root)
    if release is not None:
        install(layout, release)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine.open(root, open_sink=Nowhere, follow=False))
        recent = RecentRequests(1000, 1 << 20)
        labels = LabelDesk(recent, open_store=lambda: LabelledStore(layout.labelled, 100), open_sink=sink)
        stack.callback(labels.close)
        core = ServingCore(engine, recent=recent, labels=labels)
        app = create_app(core, version="1", metrics=lambda _: (b"", "text/plain"), status=dict)
        http = HttpDoor(app, host="127.0.0.1", port=0)
        stack.callback(http.stop)
        grpc_door = open_grpc_door(core, version="1", host="127.0.0.1", port=0)
        stack.callback(grpc_door.stop)
        shared_memory = SharedMemoryDoor(core, layout.shared_memory_socket)
        stack.callback(shared_memory.stop)
        http.start()
        grpc_door.start()
        shared_memory.start()
        yield Doors(layout, engine, core, http, grpc_door, shared_memory)
