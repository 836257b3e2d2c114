"""The loop of the control process: takes events of the link, gives every part its turn, sleeps until one is due.

Threads of the link only put events into the bounded queue; everything else happens here, so no part needs a lock. A
message is acknowledged to the broker after its part has dealt with it. One that is malformed is logged, acknowledged
and forgotten: it would be malformed again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from skerry_agent.control.campaigns import Invitations
from skerry_agent.control.observer import Observer
from skerry_agent.control.serving_client import ServingClient
from skerry_agent.engine.fitness import FitnessReporter
from skerry_agent.errors import DeviceError
from skerry_agent.heartbeat import Heartbeat
from skerry_agent.link.connections import CONTROL
from skerry_agent.link.mqtt import Connected, Disconnected, Incoming, LinkEvent
from skerry_agent.link.outbox import Outbox
from skerry_agent.link.reported import Reporter
from skerry_agent.link.uplink import Uplink
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.trust.second_look import SecondLook
from skerry_agent.update.downloader import Downloader
from skerry_agent.update.updater import Updater, unix_ms
from skerry_contract.errors import WireError
from skerry_contract.topics import DeviceTopic, parse_topic
from skerry_contract.v1.telemetry_pb2 import CampaignResponse, UpdateEvent, UplinkMessage

log = logging.getLogger(__name__)
#: Events that wait for the loop: more than both connections may have unacknowledged.
EVENTS = 128
#: How long a thread of the link waits for room before it looks whether it is to stop (seconds).
POST_S = 0.2
#: Longest sleep (seconds): messages of the other processes of the agent are found in the outbox by looking.
TICK_S = 0.5


class EventQueue:
    """The only thing that threads of the link touch."""

    def __init__(self) -> None:
        self._queue: queue.Queue[LinkEvent] = queue.Queue(EVENTS)

    def post(self, event: LinkEvent) -> bool:
        """Add an event; False if there is no room."""
        try:
            self._queue.put(event, timeout=POST_S)
        except queue.Full:
            return False
        return True

    def take(self, timeout_s: float) -> list[LinkEvent]:
        """Wait for an event; then everything that is there."""
        events: list[LinkEvent] = []
        try:
            events.append(self._queue.get(timeout=max(0.0, timeout_s)))
            while len(events) < EVENTS:
                events.append(self._queue.get_nowait())
        except queue.Empty:
            pass
        return events


def outbox_recorder(outbox: Outbox) -> Callable[[UplinkMessage], bool]:
    """Something that puts messages into the outbox and says whether that worked."""

    def record(message: UplinkMessage) -> bool:
        try:
            outbox.enqueue(message)
        except DeviceError as error:
            log.error("%s", error)
            return False
        return True

    return record


class ControlLoop:
    """Owns the parts while it runs."""

    def __init__(
        self,
        *,
        events: EventQueue,
        updater: Updater,
        downloader: Downloader,
        uplink: Uplink,
        reporter: Reporter,
        serving: ServingClient,
        invitations: Invitations,
        observer: Observer,
        fitness: FitnessReporter,
        mailbox: TrustMailbox,
        second_look: SecondLook,
        heartbeat: Heartbeat,
        on_online: Callable[[], None],
    ) -> None:
        """Parts are made by :mod:`skerry_agent.control.process`; ``on_online`` publishes presence."""
        self._events = events
        self._updater = updater
        self._downloader = downloader
        self._uplink = uplink
        self._reporter = reporter
        self._serving = serving
        self._invitations = invitations
        self._observer = observer
        self._fitness = fitness
        self._mailbox = mailbox
        self._second_look = second_look
        self._heartbeat = heartbeat
        self._on_online = on_online

    def run(self, stop: threading.Event) -> None:
        """Turn until ``stop`` is set."""
        wait_s = 0.0
        while not stop.is_set():
            for event in self._events.take(min(TICK_S, wait_s)):
                self._handle(event)
            wait_s = self._turn()
            self._heartbeat.beat()

    def _turn(self) -> float:
        """One turn of every part; returns how long the next may be away (seconds)."""
        self._serving.step()
        self._second_look.step()
        wait_s = self._updater.step()
        conditions = self._observer.conditions(self._updater.snapshot)
        if self._invitations.waiting:
            self._invitations.step(conditions, now_s=time.monotonic(), now_ms=unix_ms())
        self._observer.step(self._updater.snapshot)
        self._fitness.step()
        self._uplink.step()
        self._reporter.step(self._observer.reported(self._updater.snapshot))
        return wait_s

    def _handle(self, event: LinkEvent) -> None:
        match event:
            case Connected(link):
                self._downloader.connected()
                if link == CONTROL:
                    self._on_online()
                    self._uplink.connected()
                    self._reporter.connected()
            case Disconnected():
                pass
            case Incoming(link, topic, payload, acknowledge):
                try:
                    self._dispatch(topic, payload)
                except WireError as error:
                    log.warning("%s: %s: ignored", topic, error)
                except DeviceError as error:
                    log.error("%s: %s", topic, error)
                acknowledge()

    def _dispatch(self, topic: str, payload: bytes) -> None:
        parsed = parse_topic(topic)
        if parsed.trust_name is not None:
            self._mailbox.put(parsed.trust_name, payload)
            return
        if parsed.sha256_hex is not None:
            self._downloader.chunk(parsed.sha256_hex, payload)
            return
        match parsed.kind:
            case DeviceTopic.DESIRED:
                self._second_look.desired(payload)
            case DeviceTopic.ACK:
                self._uplink.acknowledged(payload)
            case DeviceTopic.COMMAND:
                self._invitations.command(payload, now_s=time.monotonic(), now_ms=unix_ms())
            case DeviceTopic.REFUSE:
                self._downloader.refused(payload)
            case _:
                log.warning("%s: not a topic for a device", topic)


def respond_through(record: Callable[[UplinkMessage], bool]) -> Callable[[CampaignResponse], bool]:
    """Campaign responses as uplink messages."""
    return lambda response: record(UplinkMessage(campaign=response))


def record_updates_through(record: Callable[[UplinkMessage], bool]) -> Callable[[UpdateEvent], None]:
    """Update events as uplink messages; one that the disk has no room for is lost, the reported state still tells."""

    def record_update(event: UpdateEvent) -> None:
        record(UplinkMessage(update=event))

    return record_update
