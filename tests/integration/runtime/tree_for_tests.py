"""The whole process tree; or, for speed and mischief, mosquitto and a child that the test chooses.

python tree_for_tests.py DATA_DIR [--third JSON-list-of-arguments] [--broker-port N]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from skerry_server.cli.up import run
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.supervision import tree
from skerry_server.supervision.child import ChildSpec


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--third", type=json.loads)
    parser.add_argument("--broker-port", type=int)
    arguments = parser.parse_args()

    def children(config: ServerConfig, layout: ServerLayout) -> list[ChildSpec]:
        chosen = tree.children(config, layout)
        if arguments.third:
            chosen = chosen[:1]
            ready = layout.root / "third-ready"
            chosen.append(
                ChildSpec("third", arguments.third, lambda _pid: ready.exists(), dict(os.environ), stop_s=1.0)
            )
        return chosen

    changes = {"broker_port": arguments.broker_port} if arguments.broker_port else {}
    try:
        run(arguments.data_dir, changes, as_json=True, children=children)
    except PlatformError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
