"""A prepared data directory with a real mosquitto, and clients that speak plain MQTT 5 to it.

:class:`ControlPlane` has a store: devices enrol. :func:`tls_broker` has none, for tests that need only a broker:

>>> with tls_broker(folder, wait_until) as broker:  # doctest: +SKIP
...     identity = broker.identity("device-a", folder / "a")
...     device = DeviceClient.of(broker.control_port, identity)
"""

from __future__ import annotations

import contextlib
import queue
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from integration.runtime.identities import client_tls, make_identity, new_request, write_identity
from skerry_server import broker, ports, server_identity
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.files import write_atomically
from skerry_server.first_start import make_folders, prepare
from skerry_server.fleet import enrollment
from skerry_server.fleet.authority import CertificateAuthority
from skerry_server.link import ServerLink, open_link
from skerry_server.store.database import Database
from skerry_server.store.tables import Base
from skerry_server.supervision import tree
from skerry_server.supervision.child import Child, ChildSpec, tcp_ready
from skerry_server.supervision.state_file import ProcessState, process_created_s, write_state

Wait = Callable[..., None]


class RunningBroker:
    """A mosquitto with the configuration of a data directory, noted where the control plane looks for it."""

    def __init__(self, config: ServerConfig, layout: ServerLayout, wait_until: Wait) -> None:
        self._config = config
        self._layout = layout
        self._wait_until = wait_until
        self.child: Child | None = None
        broker.write_configuration(config, layout)

    def start(self) -> None:
        command = broker.command(broker.find_mosquitto(), self._layout)
        ready = tcp_ready(broker.LOOPBACK, self._config.broker_port)
        child = Child(ChildSpec(broker.PROCESS_NAME, command, ready, {}), self._layout.logs / "mosquitto.log")
        self.child = child
        created = process_created_s(child.pid) or 0.0
        process = ProcessState(broker.PROCESS_NAME, child.pid, created)
        write_state(self._layout, replace(tree.describe(self._config), processes=[process]))
        self._wait_until(child.is_ready, what="mosquitto accepts connections")

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill_group()

    def log(self) -> str:
        return (self._layout.logs / "mosquitto.log").read_text()


class ControlPlane:
    """A data directory as ``skerry up`` leaves it, whose broker the test starts and kills."""

    def __init__(self, folder: Path, wait_until: Wait) -> None:
        layout = ServerLayout(folder)
        make_folders(layout)
        prepared = prepare(layout, {})
        self.context: ServerContext = open_context(folder)
        self.wait_until = wait_until
        self.broker = RunningBroker(prepared.config, layout, wait_until)
        self._links: list[ServerLink] = []
        broker.publish_access(self.context.database, layout)

    @property
    def child(self) -> Child | None:
        """The broker's process."""
        return self.broker.child

    @property
    def port(self) -> int:
        """Of the plain listener."""
        return self.context.config.broker_port

    @property
    def control_port(self) -> int:
        return self.context.config.broker_tls_port

    @property
    def data_port(self) -> int:
        return self.context.config.broker_data_port

    def start_broker(self) -> None:
        self.broker.start()

    def kill_broker(self) -> None:
        assert self.child is not None
        self.broker.kill()

    def link(self) -> ServerLink:
        """A started link that is connected."""
        link = open_link(self.context.config, self.context.layout, role="test")
        self._links.append(link)
        link.start()
        self.wait_until(lambda: link.connected, what="the link is connected")
        return link

    def enroll(self, device_id: str) -> Path:
        """Enrol a device; returns the folder of its identity."""
        request = new_request()
        with self.context.database.transaction() as session:
            token = enrollment.create_token(session, self.context, actor="test")
        with self.context.database.transaction() as session:
            made = enrollment.enroll(session, self.context, token=token, device_id=device_id, csr=request.csr)
        return write_identity(
            self.identity_of(device_id),
            key_pem=request.key_pem,
            certificate_pem=made.certificate.encode(),
            authority_pem=made.authority.encode(),
        )

    def identity_of(self, device_id: str) -> Path:
        """The folder of the newest identity of a device."""
        return self.context.layout.root / "devices" / device_id

    def device(self, device_id: str) -> DeviceClient:
        """A device that is enrolled and has its control connection."""
        device = DeviceClient.of(self.control_port, self.enroll(device_id), client_id=device_id)
        self.wait_until(device.try_connected, what=f"{device_id} is connected")
        return device

    def user(self, name: str) -> DeviceClient:
        """The user "server" or "operator", connected to the plain listener."""
        layout = self.context.layout
        file = {"server": layout.server_password, "operator": layout.operator_password}[name]
        client = DeviceClient(self.port, name, broker.read_password(file))
        self.wait_until(client.try_connected, what=f"{name} is connected")
        return client

    def close(self) -> None:
        for link in self._links:
            link.stop()
        self.broker.kill()
        self.context.close()


class TlsBroker:
    """A mosquitto as the control plane configures it, with an authority and no store.

    Attributes:
        layout: Its data directory.
        config: Its configuration.
        authority: Signs the identities of devices.
        process: The broker, to kill and start.
    """

    def __init__(self, folder: Path, wait_until: Wait) -> None:
        self.layout = ServerLayout(folder)
        make_folders(self.layout)
        names = [name for name, field in ServerConfig.model_fields.items() if field.is_required()]
        self.config = ServerConfig(**dict(zip(names, ports.free_ports("127.0.0.1", len(names)), strict=True)))
        server_identity.ensure(self.config, self.layout)
        self.authority = CertificateAuthority.load(self.layout.pki)
        for path in (self.layout.server_password, self.layout.operator_password):
            write_atomically(path, b"secret")
        database = Database("sqlite://")
        Base.metadata.create_all(database.engine)
        broker.publish_access(database, self.layout)
        database.close()
        self.process = RunningBroker(self.config, self.layout, wait_until)
        self.process.start()

    @property
    def port(self) -> int:
        """Plain listener; users "server" and "operator" with the password "secret"."""
        return self.config.broker_port

    @property
    def control_port(self) -> int:
        return self.config.broker_tls_port

    @property
    def data_port(self) -> int:
        return self.config.broker_data_port

    def identity(self, device_id: str, folder: Path) -> Path:
        """Make the identity of a device; returns ``folder``."""
        return make_identity(self.authority, device_id, folder)


@contextlib.contextmanager
def tls_broker(folder: Path, wait_until: Wait) -> Iterator[TlsBroker]:
    """A running :class:`TlsBroker` in an empty folder."""
    running = TlsBroker(folder, wait_until)
    try:
        yield running
    finally:
        running.process.kill()


class DeviceClient:
    """MQTT 5 client that keeps what it receives."""

    def __init__(
        self,
        port: int,
        username: str = "",
        password: str = "",
        *,
        tls: ssl.SSLContext | None = None,
        client_id: str = "",
        will: tuple[str, bytes] | None = None,
        session_s: int = 0,
    ) -> None:
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refused: queue.Queue[str] = queue.Queue()
        self.acknowledged: dict[int, str] = {}
        self.disconnects: queue.Queue[str] = queue.Queue()
        self.failed: queue.Queue[str] = queue.Queue()
        self._connected = False
        self._client: Any = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id or username,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=True,
        )
        self._client.reconnect_delay_set(0.05, 0.2)
        if username or not tls:
            self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls)
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = lambda _c, _d, message: self.received.put((message.topic, message.payload))
        self._client.on_publish = lambda _c, _d, mid, reason, _p: self.acknowledged.__setitem__(mid, str(reason))
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = lambda _c, _d: self.failed.put("the connection cannot be made")
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session_s
        self._client.connect_async("127.0.0.1", port, clean_start=session_s == 0, properties=properties)
        self._client.loop_start()

    @classmethod
    def of(cls, port: int, identity: Path, *, client_id: str = "any", **settings: Any) -> DeviceClient:
        """A client with the identity in a folder, to the control or the data listener."""
        return cls(port, tls=client_tls(identity), client_id=client_id, **settings)

    def try_connected(self) -> bool:
        return self._connected

    def subscribe(self, topic_filter: str) -> None:
        self._client.subscribe(topic_filter, options=SubscribeOptions(qos=1))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        return int(self._client.publish(topic, payload, qos=1, retain=retain).mid)

    def drop(self) -> None:
        """End the connection without a DISCONNECT, so that the last will is due."""
        self._client.loop_stop()
        self._client.socket().close()

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
