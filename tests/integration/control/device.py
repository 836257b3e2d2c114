"""One device for tests: the real control loop in a thread, with a serving process and a prover that can misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from integration.control.metadata import trust_anchor
from integration.link.broker import Broker, free_port
from integration.link.identity import give_identity
from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.control.process import run
from skerry_agent.trust.anchor import keep_root
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.update.ports import ProofResult
from skerry_agent.update.slots import SlotName, read_pointer, read_slot
from skerry_contract.v1.agent_local_pb2 import ActivateRequest, ServingStatus, ServingStatusRequest
from skerry_contract.v1.agent_local_pb2_grpc import ServingAdminServicer, add_ServingAdminServicer_to_server
from unit.update.releases import DEVICE, SIGNER, VERIFIER


def enrolled(
    root: Path,
    broker: Broker | None,
    device_id: str = DEVICE,
    *,
    identity: dict[str, Any] | None = None,
    **settings: Any,
) -> AgentLayout:
    """A data directory as ``skerry-agent enroll`` leaves it; without a broker, its ports are closed ones."""
    layout = AgentLayout(root)
    layout.run.mkdir(parents=True)
    give_identity(layout, device_id, **(identity or {}))
    keep_root(TrustPlaces(layout.trust), trust_anchor()[1].data)
    values: dict[str, Any] = {
        "device_id": device_id,
        "broker_host": "127.0.0.1",
        "broker_port": free_port() if broker is None else broker.tls_port,
        "broker_data_port": free_port() if broker is None else broker.data_port,
        "device_api": f"https://127.0.0.1:{free_port()}",
        "superlink_address": "127.0.0.1:9",
        "release_keys": [SIGNER.public_key.hex()],
        "reconnect_seconds": 0.5,
        "presence_delay_seconds": 0,
        "disk_reserve_bytes": 0,
        **settings,
    }
    layout.config.write_text(AgentConfig(**values).to_json())
    return layout


class FakeServing(ServingAdminServicer):
    """ServingAdmin that reads the slot like the real one and refuses the releases it is told to."""

    def __init__(self, layout: AgentLayout) -> None:
        self.layout = layout
        self.status = ServingStatus(variant="fp32", http_port=1, grpc_port=2, backend="fake")
        self.refuse: set[str] = set()
        self.failing: set[str] = set()
        self.activated: list[str] = []
        self._server: Any = None

    def Activate(self, request: ActivateRequest, context: Any) -> ServingStatus:
        content = read_slot(self.layout, _slot(request.slot), VERIFIER)
        if content.manifest.release_id != request.release_id or request.release_id in self.refuse:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "golden outputs differ")
        self.activated.append(request.release_id)
        self.status.release_id = request.release_id
        self.status.slot = request.slot
        self.status.release_requests = self.status.release_errors = 0
        return self.status

    def Status(self, request: ServingStatusRequest, context: Any) -> ServingStatus:
        if self.status.release_id in self.failing:
            self.status.release_requests += 100
            self.status.release_errors += 50
        else:
            self.status.release_requests += 10
        self.status.requests += 10
        return self.status

    def start(self) -> None:
        pointer = read_pointer(self.layout)
        self.status.release_id = "" if pointer is None else pointer.release_id
        self.layout.serving_socket.unlink(missing_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(2))
        register: Callable[[Any, Any], None] = add_ServingAdminServicer_to_server
        register(self, self._server)
        self._server.add_insecure_port(f"unix:{self.layout.serving_socket}")
        self._server.start()
        self.layout.serving_file.write_text(json.dumps({"http_port": 1, "grpc_port": 2, "pid": 4711}))

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None


def _slot(name: str) -> SlotName:
    return "a" if name == "a" else "b"


class ReadingProver:
    """Proves a slot whose files are exactly those of its manifest."""

    def __init__(self, layout: AgentLayout) -> None:
        self._layout = layout
        self._slot: SlotName | None = None

    def start(self, slot: SlotName) -> None:
        self._slot = slot

    def poll(self) -> ProofResult | None:
        assert self._slot is not None
        content = read_slot(self._layout, self._slot, VERIFIER)
        right = all((content.folder / entry.path).stat().st_size == entry.size for entry in content.manifest.files)
        return ProofResult(right, "variant fp32")

    def stop(self) -> None:
        self._slot = None


class Device:
    """Control in a thread, beside a fake serving process."""

    def __init__(self, layout: AgentLayout, *, wall: Callable[[], float] = time.time) -> None:
        self.layout = layout
        self.serving = FakeServing(layout)
        self._wall = wall
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._stop.clear()
        self.serving.start()
        self._thread = threading.Thread(target=self._run, name=f"device-{self.layout.root.name}")
        self._thread.start()

    def _run(self) -> None:
        try:
            run(self.layout.root, prover=ReadingProver(self.layout), stop=self._stop, wall=self._wall)
        except BaseException as error:
            self.failure = error
            raise

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
            assert not self._thread.is_alive()
        self.serving.stop()
