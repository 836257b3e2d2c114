"""Puts the control process together and runs it until SIGTERM."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from skerry_agent.config import AgentLayout, load_config
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
from skerry_agent.errors import DeviceError
from skerry_agent.link.connections import control_connection, data_connection, presence
from skerry_agent.link.outbox import Outbox
from skerry_agent.link.reported import Reporter, Revisions
from skerry_agent.link.uplink import Uplink
from skerry_agent.policy.labelled import count_labelled
from skerry_agent.update.downloader import Downloader
from skerry_agent.update.ports import Prover
from skerry_agent.update.prover import SubprocessProver
from skerry_agent.update.updater import Updater
from skerry_agent.version import agent_version
from skerry_contract.identifiers import new_id
from skerry_contract.signing import Ed25519Verifier
from skerry_contract.topics import DeviceTopic, device_topic

log = logging.getLogger(__name__)


def run(root: Path, *, prover: Prover | None = None, stop: threading.Event | None = None) -> None:
    """Run the control process of one data directory.

    Args:
        root: Data directory of an enrolled device.
        prover: Proves slots; by default in a subprocess.
        stop: Ends the loop when it is set; by default SIGTERM and SIGINT do.

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
    try:
        verifier = Ed25519Verifier([bytes.fromhex(key) for key in config.release_keys])
    except ValueError as error:
        raise DeviceError(f"{layout.config}: release_keys: {error}", remedy="enrol the device again") from error
    outbox = Outbox(
        layout.outbox, device_id=device, message_limit=config.outbox_messages, byte_limit=config.outbox_bytes
    )
    record = outbox_recorder(outbox)
    events = EventQueue()
    control = control_connection(config, layout, boot_id, events.post)
    serving = ServingClient(layout)
    downloader = Downloader(
        layout,
        device_id=device,
        reserve_bytes=config.disk_reserve_bytes,
        control=control,
        open_data=lambda digests: data_connection(config, layout, digests, events.post),
    )
    updater = Updater(
        layout,
        device_id=device,
        verifier=verifier,
        downloads=downloader,
        prover=prover or SubprocessProver(root),
        serving=serving,
        record=record_updates_through(record),
    )
    observer = Observer(
        layout,
        config,
        boot_id=boot_id,
        device_class=detect_device_class(),
        agent_version=agent_version(),
        verifier=verifier,
        outbox=outbox,
        serving_status=lambda: serving.status,
        count_labelled=lambda: count_labelled(layout.labelled),
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
        invitations=Invitations(limits_of(config), respond=respond_through(record)),
        observer=observer,
        on_online=lambda: _say(control.publish(topic, presence(device, boot_id, online=True), retain=True)),
    )
    control.start()
    log.info("control of %s is running, boot %s", device, boot_id)
    try:
        loop.run(stopping)
    finally:
        updater.stop()
        control.stop(last=(topic, presence(device, boot_id, online=False)))
        serving.close()
        outbox.close()


def _say(published: bool) -> None:
    if not published:
        log.warning("presence could not be published; it goes out with the next connection")
