"""What devices say of themselves: ReportedState and Presence into the columns of ``devices``.

Both topics are retained and subscribed to plainly, not shared: a control plane that was away gets the newest state of
every device with its subscription. Order within a topic is the broker's; what is stale all the same (delivered again,
or kept by a broker that lost its newest state) is recognised:

* A reported state counts if it comes from another boot than the stored one, or has a higher revision.
* "Offline" is a device's last will and carries the boot that it was left with: it counts only for the stored boot.
* A device that is stored as online, but whose presence did not come with a new connection to the broker, is set
  offline after :data:`GRACE_MS`.

The device in the topic is the truth (the broker lets nobody else publish there); a payload that names another one is
refused. Whatever is refused changes nothing, is logged with the reason, and counted.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.limits import CELL_COUNT
from skerry_contract.topics import DeviceTopic, every_device_filter, parse_topic
from skerry_contract.v1.device_pb2 import Presence, ReportedState, UpdateStatus
from skerry_contract.wire import parse_message
from skerry_server.clock import now_ms
from skerry_server.link import ServerLink
from skerry_server.store.database import Database
from skerry_server.store.tables import Device
from skerry_server.tally import Tally

log = logging.getLogger(__name__)

#: How long after a connection to the broker the presence of every device must have come (milliseconds).
GRACE_MS = 30_000
#: Longest text that is kept (characters); longer ones are cut.
TEXT = 2_000
#: Largest number accepted: what every JSON reader can hold exactly.
LARGEST_NUMBER = CELL_COUNT

_STATUS_PREFIX = "UPDATE_STATUS_"


class Outcome(enum.StrEnum):
    """What became of a message."""

    APPLIED = "applied"
    STALE = "stale"
    REFUSED = "refused"


def apply_reported(session: Session, device_id: str, payload: bytes) -> Outcome:
    """Write a reported state down, if it is newer than what is stored.

    Args:
        session: An open transaction.
        device_id: Device of the topic.
        payload: Serialized ReportedState, not trusted.

    Raises:
        WireError: Malformed, of another device, out of bounds, or of a device that is not enrolled.
    """
    message = parse_message(ReportedState, payload)
    _check_owner(message.device_id, device_id)
    check_number(message.revision, field="reported.revision")
    status = _status_name(message.update_status)
    releases = {
        "active_release": message.active_release,
        "target_release": message.target_release,
        "reported_rollout": message.rollout_id,
    }
    for field, value in releases.items():
        if value:
            check_name(value, field=f"reported.{field}")
    numbers = {
        "reported_revision": message.revision,
        "reported_sequence": message.desired_sequence,
        "labelled_samples": message.labelled_samples,
        "chunks_done": message.chunks_done,
        "chunks_total": message.chunks_total,
    }
    for field, number in numbers.items():
        check_number(number, field=f"reported.{field}")
    texts = {
        "active_variant": check_text(message.active_variant, field="reported.active_variant", longest=64),
        "device_class": check_text(message.device_class, field="reported.device_class", longest=64),
        "agent_version": check_text(message.agent_version, field="reported.agent_version", longest=64),
        "boot_id": check_text(message.boot_id, field="reported.boot_id", longest=64),
        "update_detail": _clean(message.update_detail),
        "ineligible_reason": _clean(message.ineligible_reason),
        "ineligible_code": check_text(message.ineligible_code, field="reported.ineligible_code", longest=64),
        "profile_sha256": check_text(message.profile_sha256, field="reported.profile_sha256", longest=64),
    }
    device = _device(session, device_id)
    if message.boot_id == device.boot_id and message.revision <= device.reported_revision:
        return Outcome.STALE
    for columns in (releases, numbers, texts):
        for column, new in columns.items():
            setattr(device, column, new)
    device.update_status = status
    device.flower_node_id = str(message.flower_node_id) if message.flower_node_id else ""
    device.last_seen_ms = now_ms()
    if message.desired_sequence > device.desired_sequence:
        # The store is older than what the device accepted (restored from a backup): get ahead of it again.
        log.warning("device %s has accepted sequence %d, above ours", device_id, message.desired_sequence)
        device.desired_sequence = message.desired_sequence + 1
    return Outcome.APPLIED


def apply_presence(session: Session, device_id: str, payload: bytes) -> Outcome:
    """Write down that a device came or went.

    Raises:
        WireError: Malformed, of another device, or of a device that is not enrolled.
    """
    message = parse_message(Presence, payload)
    _check_owner(message.device_id, device_id)
    check_text(message.boot_id, field="presence.boot_id", longest=64)
    device = _device(session, device_id)
    if message.online:
        if message.boot_id != device.boot_id:
            device.boot_id, device.reported_revision = message.boot_id, 0
        device.online, device.last_seen_ms = True, now_ms()
        return Outcome.APPLIED
    if message.boot_id != device.boot_id:
        return Outcome.STALE
    device.online = False
    return Outcome.APPLIED


def sweep_absent(session: Session, *, since_ms: int) -> int:
    """Set devices offline that are stored as online but were not heard of since ``since_ms``; returns how many."""
    absent = session.scalars(
        sa.update(Device)
        .where(Device.online.is_(True), Device.last_seen_ms < since_ms)
        .values(online=False)
        .returning(Device.id)
    )
    return len(absent.all())


class DeviceStateListener:
    """Feeds both topics into the store. Also a controller, for what must be done later."""

    name = "device-state"
    period_s = 2.0

    def __init__(self, database: Database, link: ServerLink, tally: Tally) -> None:
        self._database = database
        self._link = link
        self._tally = tally
        self._lock = threading.Lock()
        self._sweep_at_ms = 0
        self._connected_ms = 0
        self._missed: set[DeviceTopic] = set()

    def start(self) -> None:
        """Subscribe."""
        self._link.on_connected(self._on_connected)
        for kind, apply in ((DeviceTopic.PRESENCE, apply_presence), (DeviceTopic.REPORTED, apply_reported)):
            self._link.subscribe(every_device_filter(kind), self._handler(kind, apply))

    def step(self) -> None:
        """Set offline whose presence did not come; ask again for states that could not be written."""
        with self._lock:
            due = 0 < self._sweep_at_ms <= now_ms()
            since, missed = self._connected_ms, self._missed
            self._missed = set()
        for kind in sorted(missed):
            self._link.refresh(every_device_filter(kind))
        if due and self._link.connected:
            with self._database.transaction() as session:
                absent = sweep_absent(session, since_ms=since)
            if absent:
                log.info("%d devices did not come back with the broker and are offline", absent)
            with self._lock:
                if self._connected_ms == since:
                    self._sweep_at_ms = 0

    def _on_connected(self) -> None:
        with self._lock:
            self._connected_ms = now_ms()
            self._sweep_at_ms = self._connected_ms + GRACE_MS

    def _handler(
        self, kind: DeviceTopic, apply: Callable[[Session, str, bytes], Outcome]
    ) -> Callable[[str, bytes], None]:
        def handle(topic: str, payload: bytes) -> None:
            if not payload:
                return  # a retained message that was cleared
            try:
                device_id = parse_topic(topic).device_id or ""
                with self._database.transaction() as session:
                    outcome = apply(session, device_id, payload)
            except WireError as error:
                outcome = Outcome.REFUSED
                log.warning("%s: refused: %s", topic, error)
            except Exception:
                with self._lock:
                    self._missed.add(kind)
                raise
            self._tally.add(f"{kind.value}-{outcome.value}")

        return handle


def check_number(value: int, *, field: str) -> int:
    """Return ``value`` if the store and JSON can hold it; raises WireError."""
    if value > LARGEST_NUMBER:
        raise WireError(field, expected=f"at most {LARGEST_NUMBER}", got=value)
    return value


def check_text(value: str, *, field: str, longest: int) -> str:
    """Return ``value`` if it is printable and not too long; raises WireError."""
    if len(value) > longest or not (value.isprintable() or not value):
        raise WireError(field, expected=f"at most {longest} printable characters", got=value)
    return value


def _check_owner(named: str, device_id: str) -> None:
    if named != device_id:
        raise WireError("device_id", expected=f"{device_id}, whose topic it is", got=named)


def _status_name(number: int) -> str:
    if number not in UpdateStatus.values() or number == UpdateStatus.UPDATE_STATUS_UNSPECIFIED:
        raise WireError("reported.update_status", expected="a known status", got=number)
    return UpdateStatus.Name(UpdateStatus.ValueType(number)).removeprefix(_STATUS_PREFIX).lower()


def _device(session: Session, device_id: str) -> Device:
    device = session.get(Device, device_id, with_for_update=True)
    if device is None or device.revoked:
        raise WireError("device_id", expected="a device that is enrolled", got=device_id)
    return device


def _clean(text: str) -> str:
    """Short enough to keep, and without NUL, which PostgreSQL cannot store."""
    return text.replace("\0", "")[:TEXT]
