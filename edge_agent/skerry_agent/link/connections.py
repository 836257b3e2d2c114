"""The two connections of a device: what each subscribes to and how long its session lives.

Both are made over mutual TLS, to two listeners of the broker. At the one for control the broker itself takes user and
client id from the certificate, so that no device can take over the session of another; at the one for data the user is
the certificate's and the client id is random.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterable

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.link.backoff import Backoff, ReconnectSpread
from skerry_agent.link.mqtt import Connection, LinkEvent, LinkSettings, Will
from skerry_contract.topics import TRUST_FILTER, DeviceTopic, bulk_topic, device_bulk_topic, device_topic
from skerry_contract.v1.device_pb2 import Presence

CONTROL = "control"
DATA = "data"
#: How long the broker keeps the control session of a device that is away (seconds).
CONTROL_SESSION_S = 7 * 86_400
CONTROL_RECEIVE_MAXIMUM = 32
#: Chunks on their way to one device.
DATA_RECEIVE_MAXIMUM = 8


def presence(device_id: str, boot_id: str, *, online: bool) -> bytes:
    """Serialized Presence as of now."""
    return Presence(
        device_id=device_id, online=online, boot_id=boot_id, since_unix_ms=time.time_ns() // 1_000_000
    ).SerializeToString()


def control_connection(
    config: AgentConfig,
    layout: AgentLayout,
    boot_id: str,
    post: Callable[[LinkEvent], bool],
    *,
    tls: Callable[[], ssl.SSLContext],
    spread: ReconnectSpread,
    on_refused: Callable[[], None] = lambda: None,
) -> Connection:
    """The connection that a device always wants to have.

    Args:
        config: Of the device.
        layout: Data directory; the back-off is kept there.
        boot_id: In the last will.
        post: Takes events.
        tls: Makes the context of one attempt, with the certificate of that moment.
        spread: What the control plane asked for.
        on_refused: Called when the broker refuses again and again: the certificate may have ended.
    """
    device = config.device_id
    kinds = (DeviceTopic.DESIRED, DeviceTopic.ACK, DeviceTopic.COMMAND, DeviceTopic.REFUSE)
    settings = LinkSettings(
        name=CONTROL,
        host=config.broker_host,
        port=config.broker_port,
        tls=tls,
        client_id=device,
        session_s=CONTROL_SESSION_S,
        receive_maximum=CONTROL_RECEIVE_MAXIMUM,
        filters=(*(device_topic(device, kind) for kind in kinds), TRUST_FILTER),
        will=Will(
            device_topic(device, DeviceTopic.PRESENCE),
            presence(device, boot_id, online=False),
            config.presence_delay_seconds,
        ),
    )
    return Connection(settings, post=post, backoff=_backoff(config, layout, CONTROL, spread), on_refused=on_refused)


def data_connection(
    config: AgentConfig,
    layout: AgentLayout,
    digests: Iterable[str],
    post: Callable[[LinkEvent], bool],
    *,
    tls: Callable[[], ssl.SSLContext],
    spread: ReconnectSpread,
) -> Connection:
    """The connection that exists only while the files of ``digests`` (hexadecimal) are downloaded."""
    device = config.device_id
    filters = [topic for digest in digests for topic in (bulk_topic(digest), device_bulk_topic(device, digest))]
    settings = LinkSettings(
        name=DATA,
        host=config.broker_host,
        port=config.broker_data_port,
        tls=tls,
        client_id=f"{DATA}-{secrets.token_hex(8)}",
        session_s=0,
        receive_maximum=DATA_RECEIVE_MAXIMUM,
        filters=tuple(filters),
    )
    return Connection(settings, post=post, backoff=_backoff(config, layout, DATA, spread))


def _backoff(config: AgentConfig, layout: AgentLayout, name: str, spread: ReconnectSpread) -> Backoff:
    return Backoff(
        layout.root / "link" / f"{name}.json",
        ceiling_s=config.reconnect_seconds,
        spread_s=lambda: spread.seconds,
    )
