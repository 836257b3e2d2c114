"""The control plane's connection to the broker: MQTT 5, QoS 1 both ways. The only file of the server with paho.

Invariants:

* Every connection is a fresh MQTT session (clean start, expiry 0) made by a fresh client, so nothing of an earlier
  connection is ever sent again behind newer messages. Retained topics bring their state at every subscription.
* A future of :meth:`ServerLink.publish` ends well at the broker's acknowledgement and only then. When there is no
  connection, or it is lost first, the future fails with :class:`BrokerUnavailableError`: the message may or may not
  have reached the broker, and whoever published it decides again (every publisher here is a reconciler).
* Handlers and ``on_connected`` callbacks run on one dispatcher thread, one at a time. A message is acknowledged to the
  broker after its handlers returned, and the broker sends at most :data:`RECEIVE_MAXIMUM` messages that are not
  acknowledged: that bounds the queue in front of the dispatcher, and a slow handler slows the broker instead of
  filling this process. A handler that raises is logged; its message counts as handled.
* Callbacks of ``on_connected`` run before any message of the new connection.

PUBACK is not delivery: that a device has something, only the device can say.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from skerry_contract.limits import MESSAGE_BYTES
from skerry_server.broker import LOOPBACK, SERVER_USER, read_password
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError

log = logging.getLogger(__name__)

Handler = Callable[[str, bytes], None]

#: Messages that the broker may send before the first of them is acknowledged.
RECEIVE_MAXIMUM = 256
#: Messages that wait for the broker's acknowledgement, those in flight included.
PUBLISH_QUEUE = 512
#: Seconds between two signs of life.
KEEPALIVE_S = 30
#: How long the broker may take to accept a connection (seconds).
CONNECT_TIMEOUT_S = 10.0
#: Longest wait between two attempts to connect (seconds).
LONGEST_RETRY_S = 10.0


class BrokerUnavailableError(PlatformError):
    """A message could not be handed to the broker."""

    def __init__(self, what: str) -> None:
        super().__init__(what, remedy="it is tried again; see the broker's log if that does not help")


@dataclass(frozen=True)
class _Incoming:
    """A message on its way to the handlers, with the connection that it must be acknowledged on."""

    client: Any
    topic: str
    payload: bytes
    mid: int
    qos: int


def open_link(config: ServerConfig, layout: ServerLayout, *, role: str) -> ServerLink:
    """A link of the control plane's own user, not started.

    Args:
        config: Where the broker is.
        layout: Where the password is.
        role: Which process it is for; the client identifier is made of it, with a character that no device's name has.

    Raises:
        PlatformError: The password cannot be read.
    """
    return ServerLink(
        host=LOOPBACK,
        port=config.broker_port,
        username=SERVER_USER,
        password=read_password(layout.server_password),
        client_id=f"server/{role}-{secrets.token_hex(4)}",
    )


class ServerLink:
    """One user of the broker."""

    def __init__(self, *, host: str, port: int, username: str, password: str, client_id: str) -> None:
        """Prepare a link; :meth:`start` connects.

        Args:
            host: Address of the broker.
            port: Its port.
            username: MQTT user.
            password: Its password.
            client_id: Unique at the broker; a second connection with the same one ends the first.
        """
        self._address = (host, port)
        self._username = username
        self._password = password
        self._client_id = client_id
        self._lock = threading.Lock()
        self._client: Any = None
        self._connected = False
        self._pending: dict[int, Future[None]] = {}
        # Acknowledgements that came before publish() knew the message's identifier: "" or why it was refused.
        self._early: dict[int, str] = {}
        self._handlers: dict[str, Handler] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._lost = threading.Event()
        # Never full: the broker keeps to RECEIVE_MAXIMUM, QoS 0 is not subscribed to, callbacks are a handful.
        self._incoming: queue.Queue[_Incoming | Callable[[], None] | None] = queue.Queue(RECEIVE_MAXIMUM * 2)
        self._last_error = "not started"
        self._threads = [
            threading.Thread(target=self._keep_connected, name="mqtt-connection", daemon=True),
            threading.Thread(target=self._dispatch, name="mqtt-dispatcher", daemon=True),
        ]

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the current connection."""
        return self._connected

    @property
    def last_error(self) -> str:
        """Why there is no connection; empty while there is one."""
        return self._last_error

    def start(self) -> None:
        """Start connecting, and keep connected until :meth:`stop`."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, deadline_s: float = 5.0) -> None:
        """Disconnect, fail what is pending, and join both threads."""
        self._stop.set()
        self._lost.set()
        self._last_error = "stopped"
        until = time.monotonic() + deadline_s
        if self._threads[0].is_alive():
            self._threads[0].join(max(0.0, until - time.monotonic()))
        with contextlib.suppress(queue.Full):
            self._incoming.put(None, timeout=max(0.0, until - time.monotonic()))
        if self._threads[1].is_alive():
            self._threads[1].join(max(0.0, until - time.monotonic()))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        """Publish at QoS 1; from any thread.

        Args:
            topic: Concrete topic.
            payload: At most ``MESSAGE_BYTES``, framing included.
            retain: Whether the broker keeps it for later subscribers.
            expiry_s: After how many seconds the broker drops it undelivered; ``None`` means never.

        Returns:
            Done at the broker's acknowledgement; fails with BrokerUnavailableError when there is no connection, when
            it is lost, when the broker refuses the message, or when :data:`PUBLISH_QUEUE` messages are waiting.

        Raises:
            ValueError: The message is too large.
        """
        if len(topic) + len(payload) + 64 > MESSAGE_BYTES:
            raise ValueError(f"{topic}: a message of {len(payload)} bytes is larger than {MESSAGE_BYTES} with framing")
        properties = Properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        future: Future[None] = Future()
        with self._lock:
            client = self._client
        if client is None:
            future.set_exception(BrokerUnavailableError(f"no connection to the broker ({self._last_error})"))
            return future
        # Without our lock: paho holds one of its own here, and also when it calls _on_publish.
        info = client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            future.set_exception(BrokerUnavailableError(f"{topic}: {mqtt.error_string(info.rc)}"))
            return future
        with self._lock:
            if client is not self._client:
                future.set_exception(BrokerUnavailableError(f"not acknowledged: {self._last_error}"))
            elif info.mid in self._early:
                _settle(future, self._early.pop(info.mid))
            else:
                self._pending[info.mid] = future
        return future

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Call ``handler(topic, payload)`` for every message that matches, now and after every reconnection.

        Args:
            topic_filter: MQTT filter, shared (``$share/<name>/...``) or plain. Filters of one link must not overlap.
            handler: Runs on the dispatcher thread.

        Raises:
            ValueError: The filter has a handler already.
        """
        with self._lock:
            if topic_filter in self._handlers:
                raise ValueError(f"{topic_filter} has a handler already")
            self._handlers[topic_filter] = handler
            client = self._client if self._connected else None
        if client is not None:
            client.subscribe(topic_filter, options=SubscribeOptions(qos=1))

    def refresh(self, topic_filter: str) -> None:
        """Subscribe again, so that the broker sends the retained messages of a plain filter once more."""
        with self._lock:
            client = self._client if self._connected and topic_filter in self._handlers else None
        if client is not None:
            client.subscribe(topic_filter, options=SubscribeOptions(qos=1))

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` on the dispatcher thread after every connection, and soon if there is one now."""
        with self._lock:
            self._callbacks.append(callback)
            connected = self._connected
        if connected:
            self._incoming.put(callback)

    # The connection thread.

    def _keep_connected(self) -> None:
        attempts = 0
        while not self._stop.is_set():
            self._lost.clear()
            client = self._new_client()
            started = time.monotonic()
            try:
                client.connect(
                    *self._address, keepalive=KEEPALIVE_S, clean_start=True, properties=_connect_properties()
                )
            except OSError as error:
                self._disconnected(f"{self._address[0]}:{self._address[1]}: {error}")
            else:
                client.loop_start()
                while not self._lost.wait(0.2) and not self._stop.is_set():
                    if not self._connected and time.monotonic() - started > CONNECT_TIMEOUT_S:
                        self._disconnected(f"no answer in {CONNECT_TIMEOUT_S:.0f} s")
                client.disconnect()
                client.loop_stop()
                self._disconnected("stopped")
            lasted = time.monotonic() - started > KEEPALIVE_S
            attempts = 1 if lasted else attempts + 1
            # Full jitter, so that servers which lost the same broker do not come back at the same moment.
            self._stop.wait(random.uniform(0.05, min(LONGEST_RETRY_S, 0.2 * 2.0 ** min(attempts, 16))))

    def _new_client(self) -> Any:
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.username_pw_set(self._username, self._password)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(PUBLISH_QUEUE)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_socket_open = _no_delay
        return client

    def _disconnected(self, reason: str) -> None:
        """Forget the connection and fail what waits for it. Of several reasons the first is the true one."""
        with self._lock:
            pending, self._pending, self._early = self._pending, {}, {}
            self._connected, self._client = False, None
            if not self._lost.is_set():
                if reason != self._last_error:
                    log.warning("no connection to the broker: %s", reason)
                self._last_error = reason
                self._lost.set()
            reason = self._last_error
        for future in pending.values():
            future.set_exception(BrokerUnavailableError(f"not acknowledged: {reason}"))

    # Callbacks of paho, on its network thread. None of them may block.

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._disconnected(f"the broker refuses user {self._username!r}: {reason}")
            return
        with self._lock:
            self._client = client
            self._connected = True
            self._last_error = ""
            filters = list(self._handlers)
            callbacks = list(self._callbacks)
        log.info("connected to the broker at %s:%d", *self._address)
        for callback in callbacks:
            self._incoming.put(callback)
        if filters:
            client.subscribe([(topic_filter, SubscribeOptions(qos=1)) for topic_filter in filters])

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._disconnected(f"the connection was lost ({reason})")

    def _on_publish(self, client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        refusal = str(reason) if reason.is_failure else ""
        with self._lock:
            if client is not self._client:
                return
            future = self._pending.pop(mid, None)
            if future is None:
                self._early[mid] = refusal
                return
        _settle(future, refusal)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("the broker refuses a subscription: %s", reason)

    def _on_message(self, client: Any, _data: Any, message: Any) -> None:
        incoming = _Incoming(client, message.topic, message.payload, message.mid, message.qos)
        try:
            self._incoming.put_nowait(incoming)
        except queue.Full:
            # Only a broker that ignores the receive maximum gets here; unacknowledged, it keeps the message.
            log.error("%s: dropped, %d messages are waiting", message.topic, self._incoming.qsize())

    # The dispatcher thread.

    def _dispatch(self) -> None:
        while (item := self._incoming.get()) is not None:
            if not isinstance(item, _Incoming):
                self._call("callback after connecting", item)
                continue
            with self._lock:
                handlers = [
                    handler
                    for topic_filter, handler in self._handlers.items()
                    if mqtt.topic_matches_sub(_plain_filter(topic_filter), item.topic)
                ]
            for handler in handlers:
                self._call(item.topic, handler, item.topic, item.payload)
            with self._lock:
                current = item.client is self._client
            if item.qos and current:  # an identifier of an earlier connection may mean another message now
                item.client.ack(item.mid, item.qos)

    @staticmethod
    def _call(what: str, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:  # one broken handler must not silence the others
            log.exception("%s: the handler failed", what)


def _settle(future: Future[None], refusal: str) -> None:
    if refusal:
        future.set_exception(BrokerUnavailableError(f"the broker refuses the message: {refusal}"))
    else:
        future.set_result(None)


def _plain_filter(topic_filter: str) -> str:
    return topic_filter.split("/", 2)[2] if topic_filter.startswith("$share/") else topic_filter


def _connect_properties() -> Properties:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 0
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MESSAGE_BYTES
    return properties


def _no_delay(_client: Any, _data: Any, connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
