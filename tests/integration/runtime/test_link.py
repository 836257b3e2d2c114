"""ServerLink against a real mosquitto that is killed, restarted and refuses things."""

from __future__ import annotations

import os
import queue
import signal
import threading

import pytest

from integration.runtime.broker_process import ControlPlane
from skerry_contract.limits import MESSAGE_BYTES
from skerry_server.link import RECEIVE_MAXIMUM, BrokerUnavailableError, ServerLink

TOPIC = "skerry/v1/d/a/cmd"


def test_a_message_arrives_in_order_and_the_future_ends_at_the_acknowledgement(control_plane: ControlPlane) -> None:
    received: queue.Queue[tuple[str, bytes]] = queue.Queue()
    reader, writer = control_plane.link(), control_plane.link()
    reader.subscribe("skerry/v1/d/+/cmd", lambda topic, payload: received.put((topic, payload)))
    writer.publish(TOPIC, b"probe", retain=True).result(10)
    assert received.get(timeout=10) == (TOPIC, b"probe")
    for future in [writer.publish(TOPIC, str(number).encode()) for number in range(300)]:
        future.result(10)
    assert [received.get(timeout=10)[1] for _ in range(300)] == [str(number).encode() for number in range(300)]


def test_after_the_broker_was_killed_it_reconnects_subscribes_and_calls_back_first(control_plane: ControlPlane) -> None:
    events: queue.Queue[str] = queue.Queue()
    link = control_plane.link()
    link.on_connected(lambda: events.put("connected"))
    link.subscribe("skerry/v1/d/+/reported", lambda _topic, payload: events.put(payload.decode()))
    assert events.get(timeout=10) == "connected"
    control_plane.kill_broker()
    control_plane.wait_until(lambda: not link.connected, what="the loss is noticed")
    with pytest.raises(BrokerUnavailableError, match="no connection"):
        link.publish(TOPIC, b"x").result(0)
    control_plane.start_broker()
    control_plane.wait_until(lambda: link.connected, what="the link is back")
    assert events.get(timeout=10) == "connected"
    control_plane.link().publish("skerry/v1/d/a/reported", b"state").result(10)
    assert events.get(timeout=10) == "state"


def test_what_is_pending_fails_when_the_connection_is_lost(control_plane: ControlPlane) -> None:
    link = control_plane.link()
    assert control_plane.child is not None
    # A stopped broker acknowledges nothing; its end then fails what waits.
    os.kill(control_plane.child.pid, signal.SIGSTOP)
    future = link.publish(TOPIC, b"x")
    assert not future.done()
    control_plane.kill_broker()
    with pytest.raises(BrokerUnavailableError, match="not acknowledged"):
        future.result(20)


def test_the_queue_of_unacknowledged_messages_is_bounded(control_plane: ControlPlane) -> None:
    link = control_plane.link()
    assert control_plane.child is not None
    os.kill(control_plane.child.pid, signal.SIGSTOP)
    futures = [link.publish(TOPIC, b"x") for _ in range(600)]
    refused = [future for future in futures if future.done()]
    assert len(refused) == 600 - 512
    with pytest.raises(BrokerUnavailableError, match=r"[Qq]ueue"):
        refused[0].result(0)
    os.kill(control_plane.child.pid, signal.SIGCONT)
    for future in futures[:512]:
        future.result(20)


def test_a_retained_message_is_there_for_a_later_subscriber_and_again_after_refresh(
    control_plane: ControlPlane,
) -> None:
    control_plane.link().publish("skerry/v1/d/a/desired", b"wanted", retain=True).result(10)
    received: queue.Queue[bytes] = queue.Queue()
    link = control_plane.link()
    link.subscribe("skerry/v1/d/+/desired", lambda _topic, payload: received.put(payload))
    assert received.get(timeout=10) == b"wanted"
    link.refresh("skerry/v1/d/+/desired")
    assert received.get(timeout=10) == b"wanted"


def test_a_wrong_password_is_told_and_tried_again(control_plane: ControlPlane) -> None:
    link = ServerLink(
        host="127.0.0.1", port=control_plane.port, username="server", password="wrong", client_id="intruder"
    )
    link.start()
    control_plane.wait_until(lambda: "refuses user 'server'" in link.last_error, what="the refusal is noticed")
    assert not link.connected
    link.stop()


def test_a_handler_that_raises_does_not_silence_the_others(control_plane: ControlPlane) -> None:
    received: queue.Queue[bytes] = queue.Queue()
    link = control_plane.link()

    def broken(_topic: str, _payload: bytes) -> None:
        raise RuntimeError("broken on purpose")

    link.subscribe("skerry/v1/d/+/need", broken)
    link.subscribe("$share/server/skerry/v1/d/+/up", lambda _topic, payload: received.put(payload))
    link.publish("skerry/v1/d/a/need", b"x").result(10)
    link.publish("skerry/v1/d/a/up", b"y").result(10)
    assert received.get(timeout=10) == b"y"


def test_a_slow_handler_holds_the_broker_back_and_nothing_is_lost(control_plane: ControlPlane) -> None:
    gate, received = threading.Event(), queue.Queue[bytes]()
    reader, writer = control_plane.link(), control_plane.link()

    def slow(_topic: str, payload: bytes) -> None:
        gate.wait(120)
        received.put(payload)

    reader.subscribe("skerry/v1/d/+/up", slow)
    writer.publish("skerry/v1/d/a/up", b"first", retain=True).result(10)
    count = RECEIVE_MAXIMUM * 3
    for start in range(0, count, 100):
        batch = range(start, min(start + 100, count))
        for future in [writer.publish("skerry/v1/d/a/up", str(number).encode()) for number in batch]:
            future.result(60)
    gate.set()
    assert received.get(timeout=60) == b"first"
    assert [received.get(timeout=60) for _ in range(count)] == [str(number).encode() for number in range(count)]


def test_a_message_that_is_too_large_is_refused_before_it_is_sent(control_plane: ControlPlane) -> None:
    link = control_plane.link()
    with pytest.raises(ValueError, match="larger than"):
        link.publish(TOPIC, bytes(MESSAGE_BYTES))
    assert link.connected


def test_two_handlers_for_one_filter_are_a_defect(control_plane: ControlPlane) -> None:
    link = control_plane.link()
    link.subscribe("skerry/v1/d/+/up", lambda _topic, _payload: None)
    with pytest.raises(ValueError, match="has a handler already"):
        link.subscribe("skerry/v1/d/+/up", lambda _topic, _payload: None)


def test_a_link_that_was_never_answered_stops_at_once(control_plane: ControlPlane) -> None:
    control_plane.kill_broker()
    link = ServerLink(host="127.0.0.1", port=control_plane.port, username="server", password="x", client_id="x")
    link.start()
    control_plane.wait_until(lambda: "refused" in link.last_error, what="the refusal is noticed")
    link.stop()
    assert link.last_error
