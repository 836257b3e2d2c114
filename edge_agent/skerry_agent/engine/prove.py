"""``python -m skerry_agent.engine.prove DATA_DIR SLOT``: prove a staged slot in a process of its own.

Prints one line of JSON. Exit status: 0 proven, 3 refused (the line has ``error``), 1 this machine cannot do it,
2 wrong arguments. A process of its own, so that building and measuring neither slow the requests of the release that
answers nor take it down if a runtime crashes on a graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.engine.choice import finite
from skerry_agent.engine.device_class import detect_device_class
from skerry_agent.engine.proof import Proof, prove
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.trust.keyring import slot_keys
from skerry_agent.update.slots import SlotName, read_slot

PROVEN, MACHINE, USAGE, REFUSED = 0, 1, 2, 3


def main(arguments: list[str]) -> int:
    """Prove a slot; returns the exit status."""
    if len(arguments) != 2 or arguments[1] not in ("a", "b"):
        print("usage: python -m skerry_agent.engine.prove DATA_DIR a|b", file=sys.stderr)
        return USAGE
    layout = AgentLayout(Path(arguments[0]))
    try:
        config = load_config(layout)
        content = read_slot(layout, cast("SlotName", arguments[1]), slot_keys(layout, config))
        proof = prove(content, device_class=detect_device_class(), budget_s=config.choosing_seconds)
    except ArtifactError as error:
        print(json.dumps({"error": error.reason, "release_id": error.release_id}))
        return REFUSED
    except (DeviceError, OSError, MemoryError) as error:
        print(json.dumps({"error": str(error)}))
        return MACHINE
    print(json.dumps(_document(proof)))
    return PROVEN


def _document(proof: Proof) -> dict[str, Any]:
    """JSON has no infinity: what was not measured is null."""
    return {**proof.__dict__, "results": [finite(entry) for entry in proof.results]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
