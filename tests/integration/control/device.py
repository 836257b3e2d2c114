"""One device for tests: the real control loop in a thread, with a serving process and a prover that can misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from integration.control.metadata import trust_anchor
from integration.link.broker import Broker, free_port
from integration.link.identity import give_identity
from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.control.process import run
from skerry_agent.errors import ArtifactError
from skerry_agent.serving.admin import AdminDoor, ServingAdmin
from skerry_agent.trust.anchor import keep_root
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.update.ports import ProofResult
from skerry_agent.update.slots import SlotName, read_pointer, read_slot
from skerry_contract.v1.agent_local_pb2 import ServingStatus
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


class FakeServing:
    """An engine behind the real admin door: reads the slot like the real one, refuses the releases it is told to."""

    def __init__(self, layout: AgentLayout) -> None:
        self.layout = layout
        self.status = ServingStatus(variant="fp32", http_port=1, grpc_port=2, backend="fake")
        self.refuse: set[str] = set()
        self.failing: set[str] = set()
        self.activated: list[str] = []
        self._door: AdminDoor | None = None

    def activate(self, slot: SlotName, *, release_id: str = "") -> None:
        content = read_slot(self.layout, slot, VERIFIER)
        if content.manifest.release_id != release_id or release_id in self.refuse:
            raise ArtifactError(release_id, "golden outputs differ")
        self.activated.append(release_id)
        self.status.release_id = release_id
        self.status.slot = slot
        self.status.release_requests = self.status.release_errors = 0

    def look(self) -> ServingStatus:
        failing = self.status.release_id in self.failing
        self.status.release_requests += 100 if failing else 10
        self.status.release_errors += 50 if failing else 0
        self.status.requests += 10
        return self.status

    def start(self) -> None:
        pointer = read_pointer(self.layout)
        self.status.release_id = "" if pointer is None else pointer.release_id
        self.layout.serving_socket.unlink(missing_ok=True)
        self._door = AdminDoor(ServingAdmin(self, self.look).answer, self.layout.serving_socket)
        self._door.start()
        self.layout.serving_file.write_text(json.dumps({"http_port": 1, "grpc_port": 2, "pid": 4711}))

    def stop(self) -> None:
        if self._door is not None:
            self._door.stop()
            self._door = None


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
