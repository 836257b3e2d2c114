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
from functools import partial
from pathlib import Path

from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.node_key import load_node_key
from skerry_agent.identity.tls import server_context
from skerry_agent.policy.inference_first import InferenceFirst
from skerry_agent.policy.live_latency import LatencyReader
from skerry_agent.training.bundle import TrainingBundles
from skerry_agent.training.calibrating import CalibrationWorker
from skerry_agent.training.device_state import DeviceState, open_personal
from skerry_agent.training.fresh import FreshSamples
from skerry_agent.training.labelled_store import LabelledStore
from skerry_agent.training.node import TrainingNode
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.personal_forms import PersonalForms
from skerry_agent.training.personaliser import Personaliser
from skerry_agent.training.priority import IdleThread
from skerry_agent.training.secure_aggregation import SecureAggregationWorker
from skerry_agent.training.status import TrainingStatus
from skerry_agent.training.stock_questions import ActiveStep
from skerry_agent.training.superlink_choice import SuperLinkChoice
from skerry_agent.training.worker import CampaignWorker, PauseGate, RefusedError
from skerry_agent.trust.keyring import slot_keys
from skerry_agent.trusted_clock import TrustedClock
from skerry_contract.campaign import CALIBRATE
from skerry_contract.secure_aggregation import SECAGG_KINDS

logger = logging.getLogger(__name__)

#: Weight of about a tenth of a busy core: serving is not hurt, and heartbeats do not starve.
NICE = 10
#: Fewest labelled samples that can be split into training and validation.
MINIMUM_SAMPLES = 2
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
    samples = LabelledStore(layout.labelled, config.labelled_capacity)
    latency = LatencyReader(layout.latency_file)
    guard = InferenceFirst(limit_ms=config.training_p99_ms, factor=config.training_p99_factor)
    training_thread = IdleThread()
    gate = PauseGate(
        layout.run / PAUSE_FILE,
        stop.is_set,
        inference_first=lambda: guard.must_wait(latency.read(), time.monotonic()),
    )
    personaliser = _personaliser(layout, config, samples, gate, training_thread)

    def busy(detail: str) -> None:
        personaliser.campaign(detail)
        status.busy(detail)

    worker = CampaignWorker(
        config.device_id,
        bundles,
        samples,
        gate,
        on_busy=busy,
        state=DeviceState.open(layout.training_state, reserve=config.disk_reserve_bytes),
        fresh=FreshSamples(layout.fresh_file, samples),
        run=training_thread.run,
    )
    looking = threading.Thread(target=personaliser.loop, args=(stop,), name="personaliser", daemon=True)
    if config.serve_personal:
        looking.start()
    readiness = Readiness(bundles.check_active)
    secure = SecureAggregationWorker(
        config.device_id,
        IdentityFiles(layout).read,
        worker.train,
        received=worker.received,
        ready=lambda: check_ready(readiness.reason(), gate.held(), samples.count()),
    )
    worker.add_handlers({kind: partial(secure.handle, kind) for kind in SECAGG_KINDS})
    calibration = CalibrationWorker(config.device_id, worker, samples, run=training_thread.run)
    worker.add_handlers({CALIBRATE: calibration.handle})
    choice = SuperLinkChoice(config.superlink_address, layout.superlink_file)
    while not stop.is_set():
        if reason := readiness.reason():
            status.link(0, reason)
            stop.wait(CHECK_S)
            continue
        _serve(choice, layout, worker, bundles, status, stop, readiness, at_rest=secure.expire)
    if looking.ident is not None:
        looking.join()
    training_thread.close()
    latency.close()
    status.link(0, "stopped")
    return 0


def _personaliser(
    layout: AgentLayout, config: AgentConfig, samples: LabelledStore, gate: PauseGate, training_thread: IdleThread
) -> Personaliser:
    keys = slot_keys(layout, config)
    return Personaliser(
        layout,
        keys,
        samples=samples,
        kept=open_personal(layout.training_state),
        forms=PersonalForms(layout.personal_forms, reserve=config.disk_reserve_bytes),
        open_bundles=lambda: TrainingBundles(layout, keys),
        pause=gate.until,
        patterns=config.personal_parameters,
        run=training_thread.run,
    )


def _serve(
    choice: SuperLinkChoice,
    layout: AgentLayout,
    worker: CampaignWorker,
    bundles: TrainingBundles,
    status: TrainingStatus,
    stop: threading.Event,
    readiness: Readiness,
    *,
    at_rest: Callable[[], None],
) -> None:
    """Be a node of one SuperLink until the device has to go, or has to go to another one.

    ``at_rest`` is called now and then while the worker does nothing.
    """
    address = choice.address()

    def on_link(node_id: int, detail: str) -> None:
        choice.link(address, up=bool(node_id) and not detail)
        status.link(node_id, detail)

    node = TrainingNode(
        address,
        load_node_key(layout),
        NodeHint(layout.root / NODE_FILE),
        worker,
        tls=lambda: _superlink_tls(layout),
        on_link=on_link,
        active=lambda: _active_step(bundles),
    )

    def leave() -> bool:
        at_rest()
        return bool(readiness.reason()) or choice.address() != address

    node.run(stop, leave=leave)


def check_ready(broken: str, held: str, samples: int) -> None:
    """Refuse a round that this device could not train now, before anybody counts on it.

    Args:
        broken: Why the active release cannot be trained; empty if it can.
        held: Why the policy holds training, with its code; empty if it does not. It may pass.
        samples: Labelled samples.

    Raises:
        RefusedError: It could not.
    """
    if broken:
        raise RefusedError(broken, code="no-release")
    if held:
        raise RefusedError(held, final=False)
    if samples < MINIMUM_SAMPLES:
        raise RefusedError(f"{samples} labelled samples are fewer than {MINIMUM_SAMPLES}", code="few-samples")


def _active_step(bundles: TrainingBundles) -> ActiveStep:
    bundle = bundles.open(bundles.active_digest())
    return ActiveStep(bundle.task, bundle.train_step_sha256)


def _superlink_tls(layout: AgentLayout) -> ssl.SSLContext:
    """For one connection, with the authority and the signed time of this moment; control writes both."""
    path = IdentityFiles(layout).authority_path
    try:
        authority = path.read_bytes()
    except OSError as error:
        raise DeviceError(f"{path} cannot be read ({error.strerror})", remedy="enrol the device again") from error
    clock = TrustedClock(layout.trust / CLOCK_FILE)
    return server_context(authority, lambda: clock.floor_ms)
