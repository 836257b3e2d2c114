"""Puts the control process together and runs it until SIGTERM."""

from __future__ import annotations

import logging
import signal
import ssl
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.control.campaigns import Invitations
from skerry_agent.control.loop import (
    ControlLoop,
    EventQueue,
    outbox_recorder,
    record_updates_through,
    respond_through,
)
from skerry_agent.control.observer import Observer, limits_of
from skerry_agent.control.serving_client import ServingClient
from skerry_agent.engine.device_class import detect_device_class
from skerry_agent.engine.device_profile import read_profile
from skerry_agent.engine.fitness import FitnessReporter
from skerry_agent.heartbeat import Heartbeat
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.renewal import Renewer
from skerry_agent.identity.tls import client_context
from skerry_agent.link.backoff import ReconnectSpread
from skerry_agent.link.connections import control_connection, data_connection, presence
from skerry_agent.link.outbox import Outbox
from skerry_agent.link.reported import Reporter, Revisions
from skerry_agent.link.uplink import Uplink
from skerry_agent.memory import forget_code, give_memory_back
from skerry_agent.policy.install import OwnerPolicy
from skerry_agent.policy.labelled import count_fresh, count_labelled, read_mark
from skerry_agent.policy.network import MeteredNetwork
from skerry_agent.training.superlink_choice import follow
from skerry_agent.trust.approvals import TufApprovals
from skerry_agent.trust.judge import Judge
from skerry_agent.trust.keyring import instruction_keys, slot_keys
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.trust.second_look import SecondLook
from skerry_agent.trusted_clock import TrustedClock
from skerry_agent.update.downloader import Downloader
from skerry_agent.update.https_source import https_source
from skerry_agent.update.ports import Prover
from skerry_agent.update.prover import SubprocessProver
from skerry_agent.update.updater import Updater
from skerry_agent.version import agent_version
from skerry_contract.identifiers import new_id
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.device_pb2 import DesiredState

log = logging.getLogger(__name__)


def run(
    root: Path,
    *,
    prover: Prover | None = None,
    stop: threading.Event | None = None,
    wall: Callable[[], float] = time.time,
) -> None:
    """Run the control process of one data directory.

    Args:
        root: Data directory of an enrolled device.
        prover: Proves slots; by default in a subprocess.
        stop: Ends the loop when it is set; by default SIGTERM and SIGINT do.
        wall: The local clock, which may be wrong (seconds since 1970).

    Raises:
        DeviceError: Not enrolled, or the outbox cannot be opened.
    """
    stopping = stop or threading.Event()
    if stop is None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
        signal.signal(signal.SIGINT, lambda _number, _frame: stopping.set())
    layout = AgentLayout(root)
    config = load_config(layout)
    device = config.device_id
    boot_id = new_id("boot")
    instructions, slots = instruction_keys(layout, config), slot_keys(layout, config)
    clock = TrustedClock(layout.trust / "clock.json", wall=wall)
    spread = ReconnectSpread(layout.root / "link" / "spread.json")
    renewer = Renewer(layout, config, clock, on_renewed=lambda: control.hurry())
    outbox = Outbox(
        layout.outbox, device_id=device, message_limit=config.outbox_messages, byte_limit=config.outbox_bytes
    )
    record = outbox_recorder(outbox)
    events = EventQueue()

    def tls() -> ssl.SSLContext:
        return client_context(layout, clock)

    control = control_connection(
        config, layout, boot_id, events.post, tls=tls, spread=spread, on_refused=lambda: renewer.doubt()
    )
    serving = ServingClient(layout)
    source = None if config.download_over == "mqtt" else https_source(config, layout, events.post, tls=tls)
    downloader = Downloader(
        layout,
        device_id=device,
        reserve_bytes=config.disk_reserve_bytes,
        control=source or control,
        open_data=source.open
        if source
        else lambda digests: data_connection(config, layout, digests, events.post, tls=tls, spread=spread),
    )

    def learn(state: DesiredState) -> None:
        """What a desired state says beside the release; its signature holds."""
        clock.learn(state.issued_unix_ms)
        spread.learn(state.reconnect_spread_ms)

    mailbox = TrustMailbox()
    approvals = TufApprovals(Judge(TrustPlaces(layout.trust), mailbox, clock, enrolled=config.release_keys), mailbox)
    network = MeteredNetwork(config.metered)
    updater = Updater(
        layout,
        device_id=device,
        verifier=instructions,
        slot_verifier=slots,
        downloads=downloader,
        prover=prover or SubprocessProver(root),
        serving=serving,
        approvals=approvals,
        policy=OwnerPolicy(
            windows=config.maintenance_windows,
            updates_on_metered=config.updates_on_metered,
            metered_limit_bytes=config.metered_limit_bytes,
            metered=lambda: network.metered,
            clock_believable=lambda: clock.believable,
            local_time=lambda: datetime.fromtimestamp(wall()),  # noqa: DTZ006 (the clock on the wall)
        ),
        record=record_updates_through(record),
        reserve_bytes=config.disk_reserve_bytes,
        wall_ms=lambda: round(clock.now().timestamp() * 1000),
        on_accepted=learn,
        keep_own=lambda: makes_own_forms(config, layout),
    )
    profile = read_profile()
    observer = Observer(
        layout,
        config,
        boot_id=boot_id,
        device_class=detect_device_class(),
        agent_version=agent_version(),
        verifier=slots,
        outbox=outbox,
        serving_status=lambda: serving.status,
        count_labelled=lambda: count_labelled(layout.labelled),
        record=record,
        metered=lambda: network.metered,
        count_fresh=lambda: count_fresh(layout.labelled, read_mark(layout.fresh_file)),
        profile_sha256=profile.digest,
    )
    fitness = FitnessReporter(
        layout,
        device_id=device,
        verifier=slots,
        identity=IdentityFiles(layout).read,
        profile=lambda: profile,
        record=record,
    )
    topic = device_topic(device, DeviceTopic.PRESENCE)
    loop = ControlLoop(
        events=events,
        updater=updater,
        downloader=downloader,
        uplink=Uplink(outbox, control, device_id=device),
        reporter=Reporter(control, Revisions(layout.root / "link" / "reported.json"), device_id=device),
        serving=serving,
        invitations=Invitations(
            limits_of(config), respond=respond_through(record), on_accepted=partial(follow, layout.superlink_file)
        ),
        observer=observer,
        fitness=fitness,
        mailbox=mailbox,
        heartbeat=Heartbeat(),
        second_look=SecondLook(instructions, offer=updater.offer, refresh=approvals.refresh),
        on_online=lambda: _say(control.publish(topic, presence(device, boot_id, online=True), retain=True)),
    )
    renewer.start()
    approvals.start()
    control.start()
    log.info("control of %s is running, boot %s", device, boot_id)
    give_memory_back()
    forget_code()
    try:
        loop.run(stopping)
    finally:
        updater.stop()
        approvals.close()
        network.close()
        renewer.stop()
        control.stop(last=(topic, presence(device, boot_id, online=False)))
        serving.close()
        outbox.close()


def makes_own_forms(config: AgentConfig, layout: AgentLayout) -> bool:
    """Whether this device makes models of its own out of a release's float32 form."""
    return config.serve_personal and (bool(config.personal_parameters) or layout.personal_forms.is_dir())


def _say(published: bool) -> None:
    if not published:
        log.warning("presence could not be published; it goes out with the next connection")
