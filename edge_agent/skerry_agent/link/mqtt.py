"""The only file of the agent that knows paho: two MQTT 5 connections that turn callbacks into events.

*Control* has a fixed client id, a session that outlives a week without network and a last will; *data* exists only
while something is downloaded and leaves nothing behind at the broker. Threads of paho do one thing: hand an event to
``post``; while the owner's queue is full they wait, which slows the broker down. A message is acknowledged by whoever
owns the event, after it was dealt with; one that was not is delivered again after a reconnect. Every attempt is made
with a new client and the certificate of that moment: what was handed to the client before, and not acknowledged by the
broker, is sent again by its owner.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from skerry_agent.errors import AgentError
from skerry_agent.link.backoff import Backoff

log = logging.getLogger(__name__)
KEEPALIVE_S = 30
#: Most messages that wait in paho, unsent or unacknowledged by the broker.
QUEUED = 256
#: How long the broker may take to answer CONNECT (seconds).
CONNECT_S = 10.0
#: After so many connections in a row that were accepted and then closed without an answer, as a broker does that does
#: not like a certificate, the certificate is doubted.
REFUSALS = 3


@dataclass(frozen=True)
class Connected:
    """The broker answered and acknowledged the subscriptions.

    Attributes:
        link: Name of the connection.
    """

    link: str


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone; another attempt will be made.

    Attributes:
        link: Name of the connection.
        reason: Why, for people.
    """

    link: str
    reason: str


@dataclass(frozen=True)
class Incoming:
    """A message from the broker.

    Attributes:
        link: Name of the connection.
        topic: Its topic.
        payload: Its bytes, not trusted.
        acknowledge: Tells the broker that it need not deliver the message again.
    """

    link: str
    topic: str
    payload: bytes
    acknowledge: Callable[[], None]


LinkEvent = Connected | Disconnected | Incoming


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained, when this connection vanishes.

    Attributes:
        topic: Where.
        payload: What.
        delay_s: After how long; a reconnect before that cancels it.
    """

    topic: str
    payload: bytes
    delay_s: int


@dataclass(frozen=True)
class LinkSettings:
    """How one connection is made.

    Attributes:
        name: In events and logs.
        host: Of the broker.
        port: Of the broker.
        tls: Makes the TLS context of one attempt: it says who we are; None: in the clear, nobody.
        client_id: MQTT client identifier.
        session_s: How long the broker keeps the session after a disconnect; 0 with a clean start.
        receive_maximum: Messages that the broker may send before one is acknowledged.
        filters: Subscriptions; none for a connection that only publishes.
        will: Last will, if any.
        credentials: User name and password, for a broker that knows devices by them.
        qos: Of the subscriptions, 0 or 1.
        retained: Whether the broker sends the messages that it retains when a subscription is made.
        packet_bytes: Largest packet that the broker may send; it drops larger ones. 0: any.
        at_once: Whether small packets leave at once, instead of waiting to be sent together (TCP_NODELAY).
    """

    name: str
    host: str
    port: int
    tls: Callable[[], ssl.SSLContext] | None
    client_id: str
    session_s: int
    receive_maximum: int
    filters: tuple[str, ...]
    will: Will | None = None
    credentials: tuple[str, str] | None = None
    qos: int = 1
    retained: bool = True
    packet_bytes: int = 0
    at_once: bool = False


class Connection:
    """One connection that is made again whenever it breaks.

    ``start`` and ``stop`` belong to the owner; between them one thread of ours waits and reconnects, and one of paho
    reads and writes. ``publish`` may be called from any thread.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        post: Callable[[LinkEvent], bool],
        backoff: Backoff,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing happens before :meth:`start`.

        Args:
            settings: How it is made.
            post: Takes an event; returns False, after at most a moment, if it cannot take it yet.
            backoff: Waits between attempts.
            on_refused: Called on a thread of ours when the broker has refused :data:`REFUSALS` times in a row.
        """
        self._settings = settings
        self._post = post
        self._backoff = backoff
        self._on_refused = on_refused
        self._refusals = 0
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._gone = threading.Event()
        self._answered = threading.Event()
        self._accepted = False
        self._ready = False
        self._epoch = 0
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{settings.name}", daemon=True)
        self._client: Any = None

    @property
    def ready(self) -> bool:
        """Whether the broker is there and the subscriptions stand."""
        return self._ready

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def hurry(self) -> None:
        """There is a reason to expect that an attempt succeeds now: do not wait for the next. From any thread."""
        if not self._accepted:
            self._hurry.set()

    def stop(self, *, last: tuple[str, bytes] | None = None, deadline_s: float = 3.0) -> None:
        """Disconnect and join the thread.

        Args:
            last: Topic and payload of a retained message to be sent before that, if there is a connection.
            deadline_s: Longest wait for each of the broker and the thread.
        """
        if last is not None and self._ready:
            info = self._client.publish(last[0], last[1], qos=1, retain=True)
            until = time.monotonic() + deadline_s
            while not info.is_published() and self._ready and time.monotonic() < until:
                time.sleep(0.01)
        self._stopping.set()
        self._gone.set()
        self._hurry.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=deadline_s + CONNECT_S)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        """Send with QoS 1; False if there is no connection or too much waits: the caller tries again later."""
        return self.send(topic, payload, retain=retain, expiry_s=expiry_s) is not None

    def send(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> Callable[[], bool] | None:
        """As :meth:`publish`, with QoS 0 or 1; returns what tells whether the broker has it (QoS 0: whether it left).

        A message that the broker has not acknowledged when the connection breaks is lost with it.
        """
        if not self._ready:
            return None
        properties = Properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        info = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        delivered: Callable[[], bool] = info.is_published
        return delivered if info.rc == paho.MQTT_ERR_SUCCESS else None

    def _make_client(self) -> Any:
        settings = self._settings
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if settings.tls is not None:
            client.tls_set_context(settings.tls())
        if settings.credentials is not None:
            client.username_pw_set(*settings.credentials)
        client.max_queued_messages_set(QUEUED)
        client.connect_timeout = CONNECT_S
        if settings.will is not None:
            properties = Properties(PacketTypes.WILLMESSAGE)
            properties.WillDelayInterval = settings.will.delay_s
            client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=True, properties=properties)
        if settings.at_once:
            client.on_socket_open = lambda _client, _data, sock: sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _run(self) -> None:
        settings = self._settings
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = settings.session_s
        properties.ReceiveMaximum = settings.receive_maximum
        if settings.packet_bytes:
            properties.MaximumPacketSize = settings.packet_bytes
        while not self._stopping.is_set():
            self._hurry.wait(self._backoff.delay())
            self._hurry.clear()
            self._gone.clear()
            self._answered.clear()
            self._accepted = False
            self._reason = ""
            if self._stopping.is_set():
                break
            try:
                self._client = self._make_client()
                self._client.connect(
                    settings.host,
                    settings.port,
                    keepalive=KEEPALIVE_S,
                    clean_start=settings.session_s == 0,
                    properties=properties,
                )
            except (OSError, ValueError, AgentError) as error:
                log.info("%s: broker %s:%d: %s", settings.name, settings.host, settings.port, error)
                self._backoff.failed()
                if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
                    self._refused()
                continue
            self._client.loop_start()
            if not self._answered.wait(CONNECT_S) and not self._gone.is_set():
                log.warning("%s: the broker did not answer within %.0f s", settings.name, CONNECT_S)
                self._gone.set()
            if self._accepted:
                self._refusals = 0
                self._backoff.succeeded(connected=True)
            self._gone.wait()
            was_ready, self._ready = self._ready, False
            self._epoch += 1
            self._client.disconnect()
            self._client.loop_stop()
            was_accepted, self._accepted = self._accepted, False
            if self._stopping.is_set():
                break
            if was_ready:
                log.warning("%s: disconnected: %s", settings.name, self._reason or "no reason given")
                self._deliver(Disconnected(settings.name, self._reason))
            self._backoff.failed()
            if not was_accepted:
                log.info("%s: refused: %s", settings.name, self._reason or "no reason given")
                self._refused()
        self._backoff.ended()

    def _refused(self) -> None:
        self._refusals += 1
        if self._refusals % REFUSALS == 0:
            self._on_refused()

    def _deliver(self, event: LinkEvent) -> None:
        while not self._post(event):
            if self._stopping.is_set():
                return

    # Callbacks of paho, on its thread.

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._accepted = not reason.is_failure
        self._answered.set()
        if reason.is_failure:
            log.warning("%s: the broker refused: %s", self._settings.name, reason)
            self._reason = str(reason)
            self._gone.set()
            return
        self._hurry.clear()
        settings = self._settings
        if not settings.filters:
            self._stands()
            return
        handling = paho.SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
        if not settings.retained:
            handling = paho.SubscribeOptions.RETAIN_DO_NOT_SEND
        options = paho.SubscribeOptions(qos=settings.qos, retainHandling=handling)
        client.subscribe([(topic, options) for topic in settings.filters])

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Sequence[Any], _properties: Any) -> None:
        refused = [topic for topic, reason in zip(self._settings.filters, reasons, strict=False) if reason.is_failure]
        if refused:
            log.error("%s: the broker refused subscriptions: %s", self._settings.name, ", ".join(refused))
        self._stands()

    def _stands(self) -> None:
        log.info("%s: connected", self._settings.name)
        self._ready = True
        self._deliver(Connected(self._settings.name))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._reason = self._reason or str(reason)
        self._answered.set()
        self._gone.set()

    def _on_message(self, client: Any, _data: Any, message: Any) -> None:
        epoch, mid, qos = self._epoch, message.mid, message.qos

        def acknowledge() -> None:
            # A packet identifier means something only on the connection that it came with.
            if epoch == self._epoch:
                client.ack(mid, qos)

        self._deliver(Incoming(self._settings.name, message.topic, bytes(message.payload), acknowledge))
