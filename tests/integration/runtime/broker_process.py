"""A prepared data directory with a real mosquitto, and a device that speaks plain MQTT 5 to it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.subscribeoptions import SubscribeOptions

from skerry_server import broker
from skerry_server.config import ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.first_start import make_folders, prepare
from skerry_server.fleet import service
from skerry_server.link import ServerLink, open_link
from skerry_server.supervision import tree
from skerry_server.supervision.child import Child
from skerry_server.supervision.state_file import ProcessState, TreeState, process_created_s, write_state

Wait = Callable[..., None]


class ControlPlane:
    """A data directory as ``skerry up`` leaves it, whose broker the test starts and kills."""

    def __init__(self, folder: Path, wait_until: Wait) -> None:
        layout = ServerLayout(folder)
        make_folders(layout)
        prepared = prepare(layout, {})
        self.context: ServerContext = open_context(folder)
        self.wait_until = wait_until
        self.child: Child | None = None
        self._links: list[ServerLink] = []
        self._spec = tree.children(prepared.config, layout)[0]
        broker.write_configuration(prepared.config, layout)
        broker.publish_users(self.context.database, layout)

    @property
    def port(self) -> int:
        return self.context.config.broker_port

    def start_broker(self) -> None:
        child = Child(self._spec, self.context.layout.logs / "mosquitto.log")
        self.child = child
        created = process_created_s(child.pid) or 0.0
        process = ProcessState(broker.PROCESS_NAME, child.pid, created)
        write_state(self.context.layout, self._state(process))
        self.wait_until(child.is_ready, what="mosquitto accepts connections")

    def kill_broker(self) -> None:
        assert self.child is not None
        self.child.kill_group()

    def link(self) -> ServerLink:
        """A started link that is connected."""
        link = open_link(self.context.config, self.context.layout, role="test")
        self._links.append(link)
        link.start()
        self.wait_until(lambda: link.connected, what="the link is connected")
        return link

    def enroll(self, device_id: str) -> str:
        """Enrol a device; returns its password, known to the broker."""
        with self.context.database.transaction() as session:
            token = service.create_enrollment_token(session, actor="test")
        with self.context.database.transaction() as session:
            return service.enroll(session, self.context, token=token, device_id=device_id).broker_password

    def device(self, device_id: str) -> DeviceClient:
        """A device that is enrolled and connected."""
        device = DeviceClient(self.port, device_id, self.enroll(device_id))
        self.wait_until(device.try_connected, what=f"{device_id} is connected")
        return device

    def close(self) -> None:
        for link in self._links:
            link.stop()
        if self.child is not None:
            self.child.kill_group()
        self.context.close()

    def _state(self, process: ProcessState) -> TreeState:
        return replace(tree.describe(self.context.config), processes=[process])


class DeviceClient:
    """MQTT 5 client that keeps what it receives."""

    def __init__(self, port: int, username: str, password: str) -> None:
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refused: queue.Queue[str] = queue.Queue()
        self.acknowledged: dict[int, str] = {}
        self.disconnects: queue.Queue[str] = queue.Queue()
        self._connected = False
        self._client: Any = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=username, protocol=mqtt.MQTTv5, reconnect_on_failure=True
        )
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.username_pw_set(username, password)
        self._client.on_connect = self._on_connect
        self._client.on_message = lambda _c, _d, message: self.received.put((message.topic, message.payload))
        self._client.on_publish = lambda _c, _d, mid, reason, _p: self.acknowledged.__setitem__(mid, str(reason))
        self._client.on_disconnect = self._on_disconnect
        self._client.connect("127.0.0.1", port, clean_start=True)
        self._client.loop_start()

    def try_connected(self) -> bool:
        return self._connected

    def subscribe(self, topic_filter: str) -> None:
        self._client.subscribe(topic_filter, options=SubscribeOptions(qos=1))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        return int(self._client.publish(topic, payload, qos=1, retain=retain).mid)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.refused.put(str(reason))
        else:
            self._connected = True

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._connected = False
        self.disconnects.put(str(reason))
