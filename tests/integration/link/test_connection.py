"""Two properties of the connections at a real broker: the last will, and what the broker holds back."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from integration.link.broker import Broker
from integration.link.identity import give_identity
from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.identity.tls import client_context
from skerry_agent.link.backoff import Backoff, ReconnectSpread
from skerry_agent.link.connections import data_connection
from skerry_agent.link.mqtt import Connected, Connection, Disconnected, Incoming, LinkEvent, LinkSettings
from skerry_agent.trusted_clock import TrustedClock
from skerry_contract.v1.device_pb2 import Presence

Wait = Callable[..., None]
DEVICE = "press-07"
DIGEST = "ab" * 32


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    running = Broker(tmp_path / "broker")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def server(broker: Broker) -> Iterator[Any]:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="server", protocol=paho.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def config(broker: Broker) -> AgentConfig:
    return AgentConfig(
        device_id=DEVICE,
        broker_host="127.0.0.1",
        broker_port=broker.tls_port,
        broker_data_port=broker.data_port,
        device_api="https://127.0.0.1:9",
        superlink_address="127.0.0.1:9",
        release_keys=["00" * 32],
        reconnect_seconds=0.2,
        presence_delay_seconds=0,
    )


def device_layout(folder: Path) -> AgentLayout:
    layout = AgentLayout(folder)
    give_identity(layout, DEVICE)
    return layout


def data_link(broker: Broker, layout: AgentLayout, events: Events) -> Connection:
    clock = TrustedClock(layout.trust / "clock.json")
    spread = ReconnectSpread(layout.root / "link" / "spread.json")
    return data_connection(
        config(broker), layout, [DIGEST], events.post, tls=lambda: client_context(layout, clock), spread=spread
    )


class Events:
    """A queue that can be full."""

    def __init__(self, size: int = 100) -> None:
        self.queue: queue.Queue[LinkEvent] = queue.Queue(size)
        self.refused = 0

    def post(self, event: LinkEvent) -> bool:
        try:
            self.queue.put(event, timeout=0.05)
        except queue.Full:
            self.refused += 1
            return False
        return True

    def take(self) -> LinkEvent:
        return self.queue.get(timeout=20)


VANISH = """
import os, sys, time
from pathlib import Path
from skerry_agent.config import AgentLayout, load_config
from skerry_agent.identity.tls import client_context
from skerry_agent.link.backoff import ReconnectSpread
from skerry_agent.link.connections import control_connection, presence
from skerry_agent.trusted_clock import TrustedClock
layout = AgentLayout(Path(sys.argv[1]))
config = load_config(layout)
clock = TrustedClock(layout.trust / "clock.json")
link = control_connection(
    config, layout, "boot-1", lambda event: True,
    tls=lambda: client_context(layout, clock), spread=ReconnectSpread(layout.root / "spread.json"),
)
link.start()
while not link.ready:
    time.sleep(0.02)
link.publish("skerry/v1/d/press-07/presence", presence("press-07", "boot-1", online=True), retain=True)
time.sleep(600)
"""


def test_a_device_that_vanishes_is_said_to_be_offline(
    broker: Broker, server: Any, tmp_path: Path, wait_until: Wait
) -> None:
    said: list[Presence] = []
    server.on_message = lambda _client, _data, message: said.append(Presence.FromString(message.payload))
    server.subscribe("skerry/v1/d/+/presence", qos=1)
    layout = device_layout(tmp_path / "device")
    layout.config.write_text(config(broker).to_json())
    process = subprocess.Popen([sys.executable, "-c", VANISH, str(layout.root)])
    try:
        wait_until(lambda: said and said[-1].online, what="online")
    finally:
        process.kill()
        process.wait(timeout=10)
    wait_until(lambda: not said[-1].online, what="the last will")
    assert (said[-1].device_id, said[-1].boot_id) == ("press-07", "boot-1")


def test_the_broker_holds_back_what_is_not_acknowledged(
    broker: Broker, server: Any, tmp_path: Path, wait_until: Wait
) -> None:
    events = Events()
    link = data_link(broker, device_layout(tmp_path / "device"), events)
    link.start()
    try:
        assert events.take() == Connected("data")
        for number in range(20):
            server.publish(f"skerry/v1/bulk/{DIGEST}", bytes([number]), qos=1).wait_for_publish(timeout=10)
        wait_until(lambda: events.queue.qsize() >= 8, what="a window of messages")
        taken = [events.take() for _ in range(8)]
        with pytest.raises(queue.Empty):
            events.queue.get(timeout=0.5)
        for event in taken[:3]:
            assert isinstance(event, Incoming)
            event.acknowledge()
        more = [events.take() for _ in range(3)]
        assert [event.payload for event in more if isinstance(event, Incoming)] == [b"\x08", b"\x09", b"\x0a"]
    finally:
        link.stop()


def test_unacknowledged_messages_of_the_control_session_come_again_after_a_restart(
    broker: Broker, server: Any, tmp_path: Path
) -> None:
    layout = device_layout(tmp_path / "device")
    clock = TrustedClock(layout.trust / "clock.json")

    def connection(events: Events) -> Connection:
        settings = LinkSettings(
            "control", "127.0.0.1", broker.tls_port, lambda: client_context(layout, clock), "any", 3600, 8, ("t/a",)
        )
        return Connection(settings, post=events.post, backoff=Backoff(tmp_path / "b.json", ceiling_s=0.2))

    first = Events()
    link = connection(first)
    link.start()
    assert first.take() == Connected("control")
    for number in range(3):
        server.publish("t/a", bytes([number]), qos=1).wait_for_publish(timeout=10)
    taken = [first.take() for _ in range(3)]
    assert isinstance(taken[0], Incoming)
    taken[0].acknowledge()
    link.stop()
    server.publish("t/a", b"\x03", qos=1).wait_for_publish(timeout=10)
    second = Events()
    again = connection(second)
    again.start()
    try:
        events = [second.take() for _ in range(4)]
        payloads = [event.payload for event in events if isinstance(event, Incoming)]
        assert sorted(payloads) == [b"\x01", b"\x02", b"\x03"]
    finally:
        again.stop()


def test_a_full_queue_slows_the_link_and_stop_still_returns(broker: Broker, server: Any, tmp_path: Path) -> None:
    events = Events(size=2)
    link = data_link(broker, device_layout(tmp_path / "device"), events)
    link.start()
    assert events.take() == Connected("data")
    for number in range(6):
        server.publish(f"skerry/v1/bulk/{DIGEST}", bytes([number]), qos=1).wait_for_publish(timeout=10)
    while not events.refused:
        threading.Event().wait(0.02)
    link.stop()
    assert not any(thread.name == "mqtt-data" for thread in threading.enumerate())


def test_a_broker_that_is_away_is_tried_again(tmp_path: Path, wait_until: Wait) -> None:
    events, broker = Events(), Broker(tmp_path / "broker")
    layout = device_layout(tmp_path / "device")
    link = data_link(broker, layout, events)
    link.start()
    try:
        counted = layout.root / "link" / "data.json"
        wait_until(counted.exists, what="a failed attempt that was counted")
        assert not link.ready
        assert not link.publish("t", b"x")
        broker.start()
        try:
            assert events.take() == Connected("data")
            wait_until(
                lambda: json.loads(counted.read_text()) == {"failures": 0, "connected": 1}, what="the count is reset"
            )
            broker.kill()
            event = events.take()
            assert isinstance(event, Disconnected)
            assert not link.ready
        finally:
            broker.stop()
    finally:
        link.stop()
    assert json.loads(counted.read_text())["connected"] == 0
