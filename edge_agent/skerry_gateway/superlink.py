"""The site's SuperLink: ``python -m skerry_gateway.superlink ROOT``.

It waits until the gateway has a server certificate, and then becomes the process that a control plane's SuperLink is.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from skerry_agent.supervisor import state_file
from skerry_gateway.config import GatewayConfig, GatewayLayout, load_gateway_config
from skerry_server import superlink

logger = logging.getLogger(__name__)

#: Name among the supervised processes.
PROCESS_NAME = "superlink"
#: How often the certificate is looked for (seconds).
LOOK_S = 0.2


def command(layout: GatewayLayout, config: GatewayConfig) -> list[str]:
    """The command line of the SuperLink itself."""
    return superlink.command_line(
        config.listen_host,
        config.listen_port,
        folder=layout.superlink,
        secret=layout.secret,
        authority=layout.authority,
        certificate=layout.server_certificate,
        key=layout.server_key,
    )


def restart(layout: GatewayLayout) -> None:
    """End the SuperLink so that the supervisor starts it with the certificate of now; messages wait in its files."""
    try:
        processes = json.loads(state_file(layout.agent).read_bytes())["processes"]
        found = [int(each["pid"]) for each in processes if each["name"] == PROCESS_NAME]
    except (OSError, ValueError, KeyError, TypeError):
        found = []
    for pid in found:
        logger.info("the site's SuperLink, pid %d, starts again with its new certificate", pid)
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


def main(root: Path) -> None:
    """Become the SuperLink."""
    layout = GatewayLayout(root)
    config = load_gateway_config(layout)
    layout.superlink.mkdir(mode=0o700, parents=True, exist_ok=True)
    while not (layout.server_certificate.exists() and layout.server_key.exists()):
        time.sleep(LOOK_S)
    line = command(layout, config)
    os.execve(line[0], line, superlink.environment_of(layout.superlink, os.environ))  # noqa: S606 (no shell is the point)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    main(Path(sys.argv[1]))
