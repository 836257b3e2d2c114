"""The training process: a proven train step, the labelled samples and a Flower node, until the agent stops.

It joins the SuperLink only while the active release's train step has reproduced its golden step, and leaves while it
has not. It runs at a lower priority than serving and control.
"""

from __future__ import annotations

import logging
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.node_key import load_node_key
from skerry_agent.identity.tls import server_context
from skerry_agent.training.bundle import TrainingBundles
from skerry_agent.training.labelled_store import LabelledStore
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.status import TrainingStatus
from skerry_agent.training.worker import CampaignWorker, PauseGate
from skerry_agent.trust.keyring import slot_keys
from skerry_agent.trusted_clock import TrustedClock

logger = logging.getLogger(__name__)

#: Weight of about a tenth of a busy core: serving is not hurt, and heartbeats do not starve.
NICE = 10
#: How often the active release is looked at.
CHECK_S = 1.0
#: File names below AgentLayout.run and AgentLayout.root.
PAUSE_FILE = "pause-training"
NODE_FILE = "flower-node.json"
#: Below AgentLayout.trust: the latest signed moment, written by control.
CLOCK_FILE = "clock.json"


class Readiness:
    """Says why the device cannot train now; asks the disk at most once per :data:`CHECK_S`."""

    def __init__(self, check: Callable[[], None], *, period_s: float = CHECK_S) -> None:
        """``check`` raises ArtifactError when the device cannot train."""
        self._check = check
        self._period_s = period_s
        self._next = 0.0
        self._reason = ""

    def reason(self) -> str:
        """Empty when the device can train."""
        if time.monotonic() >= self._next:
            try:
                self._check()
                self._reason = ""
            except ArtifactError as error:
                self._reason = str(error)
            self._next = time.monotonic() + self._period_s
        return self._reason


def run(data_dir: Path) -> int:
    """Run until SIGTERM; returns the exit status.

    Raises:
        DeviceError: The device is not enrolled, or its identity is broken.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor sends SIGTERM
    os.nice(NICE)
    layout = AgentLayout(data_dir)
    config = load_config(layout)
    status = TrainingStatus(layout.training_file)
    bundles = TrainingBundles(layout, slot_keys(layout, config))
    worker = CampaignWorker(
        config.device_id,
        bundles,
        LabelledStore(layout.labelled, config.labelled_capacity),
        PauseGate(layout.run / PAUSE_FILE, stop.is_set),
        on_busy=status.busy,
    )
    readiness = Readiness(bundles.check_active)
    while not stop.is_set():
        if reason := readiness.reason():
            status.link(0, reason)
            stop.wait(CHECK_S)
            continue
        _serve(config.superlink_address, layout, worker, status, stop, readiness)
    status.link(0, "stopped")
    return 0


def _serve(
    address: str,
    layout: AgentLayout,
    worker: CampaignWorker,
    status: TrainingStatus,
    stop: threading.Event,
    readiness: Readiness,
) -> None:
    from skerry_agent.training.flower_node import FlowerNode  # a second of imports, not before needed

    node = FlowerNode(
        address,
        load_node_key(layout),
        NodeHint(layout.root / NODE_FILE),
        worker,
        tls=lambda: _superlink_tls(layout),
        on_link=status.link,
    )
    node.run(stop, leave=lambda: bool(readiness.reason()))


def _superlink_tls(layout: AgentLayout) -> ssl.SSLContext:
    """For one connection, with the authority and the signed time of this moment; control writes both."""
    path = IdentityFiles(layout).authority_path
    try:
        authority = path.read_bytes()
    except OSError as error:
        raise DeviceError(f"{path} cannot be read ({error.strerror})", remedy="enrol the device again") from error
    clock = TrustedClock(layout.trust / CLOCK_FILE)
    return server_context(authority, lambda: clock.floor_ms)
