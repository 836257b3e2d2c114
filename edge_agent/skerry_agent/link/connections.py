"""The two connections of a device: what each subscribes to and how long its session lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.link.backoff import Backoff
from skerry_agent.link.mqtt import Connection, LinkEvent, LinkSettings, Will
from skerry_contract.topics import DeviceTopic, bulk_topic, device_bulk_topic, device_topic
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
    config: AgentConfig, layout: AgentLayout, boot_id: str, post: Callable[[LinkEvent], bool]
) -> Connection:
    """The connection that a device always wants to have."""
    device = config.device_id
    kinds = (DeviceTopic.DESIRED, DeviceTopic.ACK, DeviceTopic.COMMAND, DeviceTopic.REFUSE)
    settings = LinkSettings(
        name=CONTROL,
        host=config.broker_host,
        port=config.broker_port,
        username=device,
        password=config.broker_password,
        client_id=device,
        session_s=CONTROL_SESSION_S,
        receive_maximum=CONTROL_RECEIVE_MAXIMUM,
        filters=tuple(device_topic(device, kind) for kind in kinds),
        will=Will(
            device_topic(device, DeviceTopic.PRESENCE),
            presence(device, boot_id, online=False),
            config.presence_delay_seconds,
        ),
    )
    return Connection(settings, post=post, backoff=_backoff(config, layout, CONTROL))


def data_connection(
    config: AgentConfig, layout: AgentLayout, digests: Iterable[str], post: Callable[[LinkEvent], bool]
) -> Connection:
    """The connection that exists only while the files of ``digests`` (hexadecimal) are downloaded."""
    device = config.device_id
    filters = [topic for digest in digests for topic in (bulk_topic(digest), device_bulk_topic(device, digest))]
    settings = LinkSettings(
        name=DATA,
        host=config.broker_host,
        port=config.broker_port,
        username=device,
        password=config.broker_password,
        client_id=f"{device}-data",
        session_s=0,
        receive_maximum=DATA_RECEIVE_MAXIMUM,
        filters=tuple(filters),
    )
    return Connection(settings, post=post, backoff=_backoff(config, layout, DATA))


def _backoff(config: AgentConfig, layout: AgentLayout, name: str) -> Backoff:
    return Backoff(layout.root / "link" / f"{name}.json", ceiling_s=config.reconnect_seconds)
