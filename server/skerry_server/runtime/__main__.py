"""The runtime process: one link to the broker, every controller, until SIGTERM."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from skerry_server.app import build_runtime
from skerry_server.context import open_context
from skerry_server.errors import PlatformError
from skerry_server.runtime.status_file import write_runtime_status

log = logging.getLogger("skerry_server.runtime")

#: How often the status file is replaced (seconds).
STATUS_PERIOD_S = 2.0
#: How long controllers may take to end their steps (seconds).
STOP_DEADLINE_S = 12.0


def main(data_dir: Path) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    context = open_context(data_dir)
    runtime = build_runtime(context)
    runtime.start()
    connected = False
    try:
        while not stop.is_set():
            try:
                write_runtime_status(
                    context.layout,
                    broker_connected=runtime.link.connected,
                    broker_error=runtime.link.last_error,
                    controllers=runtime.runner.statuses(),
                    counts=runtime.tally.counts(),
                    waits=runtime.waits(),
                )
            except OSError as error:  # a full disk: the controllers go on, `skerry status` sees an old file
                log.error("run/controllers.json cannot be written: %s", error)
            # Until the first connection the supervisor waits for this file.
            connected = connected or runtime.link.connected
            stop.wait(STATUS_PERIOD_S if connected else 0.1)
    finally:
        hanging = runtime.stop(deadline_s=STOP_DEADLINE_S)
        if hanging:
            log.warning("still in a step at the end: %s", ", ".join(hanging))
        context.close()
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if len(sys.argv) != 2:
        sys.exit("usage: python -m skerry_server.runtime DATA_DIR")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except PlatformError as error:
        sys.exit(f"error: {error}")
