"""``python -m skerry_agent.training DATA_DIR``: the training process of one agent."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.errors import AgentError
from skerry_agent.isolation import keep_off_serving
from skerry_agent.training.process import run

# flwr reads both when it is imported: a device tells nobody that it exists.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m skerry_agent.training DATA_DIR\n")
        return 2
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    root = Path(sys.argv[1])
    try:
        logging.getLogger("skerry_agent.training").info("%s", keep_off_serving(load_config(AgentLayout(root))))
        return run(root)
    except AgentError as error:
        sys.stderr.write(f"skerry-agent training: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
