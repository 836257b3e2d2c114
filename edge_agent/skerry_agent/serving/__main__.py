"""``python -m skerry_agent.serving DATA_DIR``: the serving process. SIGTERM and SIGINT drain and stop it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.serving.process import run


def main(arguments: list[str]) -> int:
    """Serve; returns the exit status: 0 stopped, 1 this machine cannot serve, 2 wrong arguments."""
    if len(arguments) != 1:
        print("usage: python -m skerry_agent.serving DATA_DIR", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(AgentLayout(Path(arguments[0])), stop)
    except (DeviceError, OSError) as error:
        print(f"skerry-agent serving: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
