"""The SuperLink: ``python -m skerry_server.federation.flower.superlink_process SECRET_FILE LANE_FOLDER OPTIONS...``.

It is Flower's own application with Flower's own command line (flwr 1.41.0, pinned), served as ``flower-superlink``
serves it, with :class:`~skerry_server.federation.flower.lane.Lane` and in front of that
:class:`~skerry_server.federation.flower.operator_gate.OperatorGate`, without a log line per request, and with
connections that outlive the pauses of a node that is training: a new one costs a TLS handshake.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import uvicorn

from skerry_server.federation.flower.operator_gate import OperatorGate
from skerry_server.superlink import ensure_secret

#: An idle connection is closed after so long (seconds). The clients close theirs after 5 s (httpx).
KEEP_ALIVE_S = 75
#: How long requests that are under way may take after SIGTERM (seconds).
STOP_S = 1


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; returns the exit status."""
    if len(arguments) < 2:
        sys.stderr.write(f"usage: python -m {__spec__.name} SECRET_FILE LANE_FOLDER OPTIONS...\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    from flwr.superlink.main import create_app

    from skerry_server.federation.flower.lane import Lane
    from skerry_server.federation.flower.lane_protocol import LaneProtocol

    logging.getLogger("flwr").handlers.clear()  # its own handler would write every line a second time
    # The package has a function of the same name as this module.
    flower: Any = importlib.import_module("flwr.superlink.cli.flower_superlink")
    sys.argv = ["flower-superlink", *arguments[2:]]
    config: Any = flower._parse_superlink_lifespan_config()  # noqa: SLF001 - Flower has no public way; it is pinned
    try:
        secret = ensure_secret(Path(arguments[0]))
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: {error.strerror}; check the permissions of the data directory\n")
        return 1
    application = create_app(config, flower.SuperLinkLifespan)
    uvicorn.run(
        OperatorGate(Lane(application, Path(arguments[1])), secret),
        host=config.host,
        port=config.port,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
        server_header=False,
        http=LaneProtocol,
        ws="none",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
