"""The processes of a gateway, kept running by the agent's supervisor."""

from __future__ import annotations

import json
from pathlib import Path

from skerry_agent.supervisor import ChildSpec, is_alive, state_file
from skerry_gateway.config import GatewayLayout
from skerry_gateway.superlink import PROCESS_NAME


def gateway_children(root: Path) -> list[ChildSpec]:
    """In the order in which they start; they stop in the reverse order."""
    return [
        ChildSpec(PROCESS_NAME, ("-m", "skerry_gateway.superlink", str(root)), 10.0),
        ChildSpec("gateway", ("-m", "skerry_gateway", str(root)), 20.0, {"OMP_NUM_THREADS": "1"}),
    ]


def running_processes(layout: GatewayLayout) -> dict[str, int]:
    """Name to process id of those that live; empty while the supervisor does not."""
    try:
        document = json.loads(state_file(layout.agent).read_bytes())
        every = {"supervisor": int(document["pid"])}
        every |= {str(each["name"]): int(each["pid"]) for each in document["processes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    alive = {name: pid for name, pid in every.items() if is_alive(pid)}
    return alive if "supervisor" in alive else {}
