"""What an agent is doing, read from its data directory without talking to its processes."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.supervisor import is_alive, state_file
from skerry_agent.update.journal import journal_path
from skerry_agent.update.slots import read_pointer


@dataclass(frozen=True)
class AgentStatus:
    """State of one agent.

    Attributes:
        device_id: Its name.
        running: Whether the supervisor lives.
        processes: Process ids by name; only those that live.
        release_id: Release that the slot pointer names; empty if there is none.
        slot: Its slot; empty if there is none.
        committed: Whether it is past its probation.
        update_state: State of the update machine.
        update_detail: Why.
        http_port: Of the Open Inference Protocol; 0 while the doors are shut.
        grpc_port: Likewise.
        flower_node_id: Decimal; "0" while there is none.
        personal: Whether the device's own parameters answer, and why not; empty while serving says nothing.
        isolation: How serving is set apart from other work, one sentence a step; empty while the doors are shut.
        certificate_until: When the device's certificate ends, ISO 8601, UTC; empty if there is none that can be used.
    """

    device_id: str
    running: bool
    processes: dict[str, int]
    release_id: str
    slot: str
    committed: bool
    update_state: str
    update_detail: str
    http_port: int
    grpc_port: int
    flower_node_id: str
    personal: str
    isolation: list[str]
    certificate_until: str

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict):
            return document
    return {}


def _personal(layout: AgentLayout, release_id: str) -> str:
    """What serving wrote about the release that answers."""
    found = _json(layout.personal_file)
    if not release_id or found.get("release_id") != release_id:
        return ""
    if found.get("state") != "answers":
        return ": ".join(filter(None, (str(found.get("state", "")), str(found.get("detail", "")))))
    try:
        own, signed = float(found["personal_accuracy"]), float(found["global_accuracy"])
        return f"answers: {own:.3f} right against {signed:.3f} of the release, on {int(found['examples'])} samples"
    except (KeyError, TypeError, ValueError):
        return "answers"


def _certificate_until(layout: AgentLayout) -> str:
    try:
        return IdentityFiles(layout).read().facts.not_after.isoformat()
    except DeviceError:
        return ""


def read_status(layout: AgentLayout) -> AgentStatus:
    """Read it.

    Raises:
        DeviceError: The device is not enrolled.
    """
    config = load_config(layout)
    state, serving = _json(state_file(layout)), _json(layout.serving_file)
    journal, training = _json(journal_path(layout)), _json(layout.training_file)
    processes = {
        str(entry["name"]): int(entry["pid"]) for entry in state.get("processes", []) if is_alive(entry["pid"])
    }
    pointer, detail = None, str(journal.get("detail", ""))
    try:
        pointer = read_pointer(layout)
    except ArtifactError as error:
        detail = str(error)
    doors = is_alive(serving.get("pid"))
    return AgentStatus(
        device_id=config.device_id,
        running=is_alive(state.get("pid")),
        processes=processes,
        release_id="" if pointer is None else pointer.release_id,
        slot="" if pointer is None else pointer.slot,
        committed=pointer is not None and pointer.committed,
        update_state=str(journal.get("state", "idle")),
        update_detail=detail,
        http_port=int(serving.get("http_port", 0)) if doors else 0,
        grpc_port=int(serving.get("grpc_port", 0)) if doors else 0,
        flower_node_id=str(training.get("flower_node_id", "0")) if is_alive(training.get("pid")) else "0",
        personal=_personal(layout, pointer.release_id) if doors and pointer is not None else "",
        isolation=[str(step) for step in serving.get("isolation", [])] if doors else [],
        certificate_until=_certificate_until(layout),
    )
