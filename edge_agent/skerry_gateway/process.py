"""The gateway's own process: a node of the control plane's SuperLink, and the keeper of the site's."""

from __future__ import annotations

import logging
import signal
import ssl
import threading
from pathlib import Path

from skerry_agent.config import load_config
from skerry_agent.identity.device_api import DeviceApi
from skerry_agent.identity.node_key import load_node_key
from skerry_agent.identity.renewal import Renewer
from skerry_agent.identity.tls import client_context
from skerry_agent.training.device_state import DeviceState
from skerry_agent.training.lane_node import LaneNode
from skerry_agent.training.node_link import UNKNOWN_LAST_S, LaneAbsentError, pause
from skerry_agent.training.worker import RefusedError
from skerry_agent.trusted_clock import TrustedClock
from skerry_gateway import superlink
from skerry_gateway.config import GatewayLayout, load_gateway_config
from skerry_gateway.keeper import Keeper
from skerry_gateway.roster import RosterFile
from skerry_gateway.site_journal import SiteJournal
from skerry_gateway.site_keys import SiteKeys
from skerry_gateway.site_link import DeviceExchange, SiteLink
from skerry_gateway.status import GatewayStatus
from skerry_gateway.worker import GatewayWorker, RoundFigures
from skerry_server.federation.flower.node_registry import NodeRegistry

logger = logging.getLogger(__name__)

#: How long the site's SuperLink is waited for before a run is given up (seconds).
PATIENCE_S = 15.0
#: Below AgentLayout.trust.
CLOCK_FILE = "clock.json"


def run(root: Path) -> int:
    """Run until SIGTERM; returns the exit status.

    Raises:
        DeviceError: The gateway is not enrolled, or its identity is broken.
    """
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line per request
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor sends SIGTERM
    layout = GatewayLayout(root)
    config, agent = load_gateway_config(layout), load_config(layout.agent)
    gateway_id, access = agent.device_id, layout.access(config)
    clock = TrustedClock(layout.agent.trust / CLOCK_FILE)
    roster, status = RosterFile(layout.roster), GatewayStatus(layout.status, gateway_id)

    def tls() -> ssl.SSLContext:
        return client_context(layout.agent, clock)

    def open_run() -> DeviceExchange:
        from skerry_server.federation.flower.run import FlowerRun  # Flower takes a second to load

        run: DeviceExchange = FlowerRun(access, lock=layout.superlink / "submit.lock", patience_s=PATIENCE_S)
        return run

    def open_registry() -> NodeRegistry:
        from skerry_server.federation.flower.nodes import FlowerNodes

        return FlowerNodes(access)

    def check() -> None:
        if stop.is_set():
            raise RefusedError("the gateway stops", final=False)

    def on_round(figures: RoundFigures) -> None:
        status.change(round=figures)
        keeper.hurry()

    def on_link(node_id: int, detail: str) -> None:
        status.change(node_id=str(node_id), detail=detail or "waits for a campaign")
        keeper.hurry()

    link = SiteLink(open_run, check=check)
    worker = GatewayWorker(
        gateway_id,
        roster,
        link,
        SiteJournal(layout.rounds),
        DeviceState.open(layout.agent.training_state, reserve=agent.disk_reserve_bytes),
        on_round=on_round,
        on_busy=lambda detail: status.change(detail=detail or "waits for a campaign"),
    )
    renewer = Renewer(layout.agent, agent, clock, on_renewed=lambda: keeper.hurry())
    keeper = Keeper(
        layout,
        gateway_id,
        lambda: DeviceApi(agent.device_api, tls()),
        roster,
        SiteKeys(open_registry),
        status,
        now=clock.now,
        restart_superlink=lambda: superlink.restart(layout),
    )
    node = LaneNode(agent.superlink_address, load_node_key(layout.agent), worker, tls=tls, on_link=on_link)
    renewer.start()
    keeper.start()
    try:
        while not stop.is_set():
            try:
                node.run(stop, lambda: False)
            except LaneAbsentError as error:
                on_link(0, f"SuperLink {agent.superlink_address} is no control plane's: {error}")
                pause(UNKNOWN_LAST_S, stop, lambda: False)
    finally:
        link.close()
        keeper.stop()
        renewer.stop()
        on_link(0, "stopped")
    return 0
