"""``python -m skerry_gateway ROOT``: the gateway's own process, started by ``skerry-gateway run``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from skerry_agent.errors import AgentError
from skerry_gateway.process import run

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        sys.exit(run(Path(sys.argv[1])))
    except AgentError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(3)
