"""``python -m skerry_agent.control DATA_DIR``: the control process of one agent."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.control.process import run
from skerry_agent.errors import AgentError
from skerry_agent.isolation import keep_off_serving


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m skerry_agent.control DATA_DIR\n")
        return 2
    root = Path(sys.argv[1])
    try:
        logging.getLogger("skerry_agent.control").info("%s", keep_off_serving(load_config(AgentLayout(root))))
        run(root)
    except AgentError as error:
        sys.stderr.write(f"skerry-agent control: {error}\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
