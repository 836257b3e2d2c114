"""Devices, cohorts and enrolment in the store.

Functions take an open transaction and change the store only. The broker's users follow the store: enrolling and
revoking have the password file written right after the commit, and :class:`skerry_server.broker.BrokerUsersController`
does it for a process that was killed in between.

A device brings labels when it enrols; from then on they belong to the operator, since they decide which cohorts it is
in. What a device reports later does not change them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import InstrumentedAttribute, Session

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name, new_id
from skerry_server import broker, ports
from skerry_server.audit import ledger
from skerry_server.broker_passwords import hash_password
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import Cohort, Device, EnrollmentToken

#: The cohort that every device belongs to: its identifier and its name.
EVERYTHING = "all"
#: MQTT users of the control plane; no device may have their names.
RESERVED_NAMES = frozenset({"server", "operator"})
#: Most devices on one page.
LARGEST_PAGE = 500
#: Longest life of an enrolment token (seconds).
LONGEST_TOKEN_TTL_S = 30 * 24 * 3600
#: Most labels of a device or pairs of a selector.
LABELS = 32
#: Columns that :func:`list_devices` can filter by equality.
FILTER_COLUMNS: Mapping[str, InstrumentedAttribute[str]] = {
    "device_class": Device.device_class,
    "agent_version": Device.agent_version,
    "active_release": Device.active_release,
    "target_release": Device.target_release,
    "update_status": Device.update_status,
}

_LABEL_KEY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Enrollment:
    """What a device needs to connect.

    Attributes:
        device_id: Its name; also its MQTT user.
        broker_host: MQTT broker.
        broker_port: Its port.
        broker_password: In the clear, once; the store keeps a hash.
        superlink_address: host:port of the Flower SuperLink.
        release_keys: Raw Ed25519 public keys that sign releases and desired states, hexadecimal.
    """

    device_id: str
    broker_host: str
    broker_port: int
    broker_password: str = field(repr=False)
    superlink_address: str
    release_keys: list[str]


def check_labels(labels: Mapping[str, str], *, name: str = "labels") -> dict[str, str]:
    """Return ``labels`` as a dict if they are sound.

    Raises:
        InvalidRequestError: More than 32, a key that is not ``[a-z0-9][a-z0-9_.-]*``, a value of over 128 characters.
    """
    if len(labels) > LABELS:
        raise InvalidRequestError(name, expected=f"at most {LABELS} labels", got=len(labels))
    for key, value in labels.items():
        if not isinstance(key, str) or not _LABEL_KEY.match(key):
            raise InvalidRequestError(name, expected="keys of 1 to 63 characters of a-z 0-9 _ . -", got=key)
        if not isinstance(value, str) or not 1 <= len(value) <= 128 or not value.isprintable():
            raise InvalidRequestError(f"{name}.{key}", expected="1 to 128 printable characters", got=value)
    return dict(labels)


def list_devices(
    session: Session, filters: Mapping[str, str] | None = None, after: str = "", limit: int = 100
) -> list[Device]:
    """Devices in the order of their names.

    Args:
        session: An open transaction.
        filters: Equality by ``online`` or ``revoked`` ("true"/"false"), ``cohort`` (identifier), ``label.<key>``, or a
            column of :data:`FILTER_COLUMNS`.
        after: Name of the last device of the page before; empty for the first page.
        limit: 1 to 500.

    Raises:
        InvalidRequestError: An unknown filter or a bad value.
        NotFoundError: An unknown cohort.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidRequestError("limit", expected=f"1 to {LARGEST_PAGE}", got=limit)
    query = sa.select(Device).where(Device.id > after).order_by(Device.id).limit(limit)
    for name, value in (filters or {}).items():
        query = query.where(_condition(session, name, value))
    return list(session.scalars(query))


def get_device(session: Session, device_id: str) -> Device:
    """A device; raises NotFoundError."""
    device = session.get(Device, device_id)
    if device is None:
        raise NotFoundError("device", device_id)
    return device


def create_enrollment_token(
    session: Session, *, actor: str, ttl_s: int = 24 * 3600, labels: Mapping[str, str] | None = None
) -> str:
    """Make a single-use token; only its hash is stored.

    Args:
        session: An open transaction.
        actor: Who asks.
        ttl_s: How long it can be used, 1 s to 30 days.
        labels: Labels that the device gets, over those that it brings.
    """
    if not 1 <= ttl_s <= LONGEST_TOKEN_TTL_S:
        raise InvalidRequestError("ttl_s", expected=f"1 to {LONGEST_TOKEN_TTL_S}", got=ttl_s)
    token = f"enroll-{secrets.token_urlsafe(32)}"
    row = EnrollmentToken(
        token_sha256=_digest(token),
        created_ms=now_ms(),
        expires_ms=now_ms() + ttl_s * 1000,
        created_by=actor,
        labels=check_labels(labels or {}),
    )
    session.add(row)
    ledger.append(
        session,
        actor=actor,
        action="enrollment-token.create",
        subject=row.token_sha256[:16],
        detail={"ttl_s": ttl_s, "labels": row.labels},
    )
    return token


def enroll(
    session: Session,
    context: ServerContext,
    *,
    token: str,
    device_id: str,
    device_class: str = "",
    labels: Mapping[str, str] | None = None,
) -> Enrollment:
    """Make a device of whoever holds the token; the broker knows it right after the commit.

    A device whose answer got lost asks again with the same token and name and gets a new password, until it has been
    seen at the broker; after that the token is spent. A revoked device can be enrolled again with a fresh token.

    Raises:
        InvalidRequestError: A bad name, class or label; an unknown, expired or spent token.
        ConflictError: The device exists and is not revoked.
    """
    try:
        check_name(device_id, field="device_id")
        if device_class:
            check_name(device_class.replace("_", "-"), field="device_class")
    except WireError as error:
        raise InvalidRequestError(error.field, expected=error.expected, got=error.got) from error
    if device_id in RESERVED_NAMES:
        raise InvalidRequestError("device_id", expected="a name other than those of the control plane", got=device_id)
    brought = check_labels(labels or {})
    moment = now_ms()
    row = session.get(EnrollmentToken, _digest(token), with_for_update=True)
    if row is None:
        raise InvalidRequestError("token", expected="a token made by `skerry device token`", got="an unknown one")
    if row.expires_ms <= moment:
        raise InvalidRequestError("token", expected="a token that has not expired", got="an expired one")
    device = session.get(Device, device_id, with_for_update=True)
    repeated = device is not None and row.used_by == device_id and device.last_seen_ms == 0 and not device.revoked
    if row.used_by and not repeated:
        raise InvalidRequestError("token", expected="a token that is not spent", got=f"one used by {row.used_by}")
    if device is not None and not device.revoked and not repeated:
        raise ConflictError(f"device {device_id} is enrolled already; revoke it to enrol it again")
    password = secrets.token_urlsafe(32)
    if device is None:
        device = Device(id=device_id, enrolled_ms=moment)
        session.add(device)
    device.enrolled_ms = moment
    device.revoked = False
    device.last_seen_ms = 0
    device.device_class = device_class
    device.labels = brought | row.labels
    device.broker_password_hash = hash_password(password)
    row.used_by, row.used_ms = device_id, moment
    ledger.append(
        session,
        actor=f"device:{device_id}",
        action="device.enroll",
        subject=device_id,
        detail={"token": row.token_sha256[:16], "device_class": device_class, "labels": device.labels},
    )
    _publish_users_after_commit(session, context)
    host = ports.reachable_address(context.config.host)
    return Enrollment(
        device_id=device_id,
        broker_host=host,
        broker_port=context.config.broker_port,
        broker_password=password,
        superlink_address=ports.join(host, context.config.superlink_port),
        release_keys=[load_or_create_key(context.layout).public_key.hex()],
    )


def revoke(session: Session, context: ServerContext, device_id: str, *, actor: str, reason: str) -> Device:
    """Take a device's access away; the broker ends its connection right after the commit. Raises NotFoundError."""
    device = get_device(session, device_id)
    if not device.revoked:
        device.revoked, device.online, device.broker_password_hash = True, False, ""
        ledger.append(session, actor=actor, action="device.revoke", subject=device_id, detail={"reason": reason})
        _publish_users_after_commit(session, context)
    return device


def set_labels(session: Session, device_id: str, *, labels: Mapping[str, str], actor: str) -> Device:
    """Replace a device's labels; raises NotFoundError or InvalidRequestError."""
    device = get_device(session, device_id)
    before, device.labels = device.labels, check_labels(labels)
    ledger.append(
        session,
        actor=actor,
        action="device.label",
        subject=device_id,
        detail={"before": before, "after": device.labels},
    )
    return device


def set_desired(
    session: Session, device_id: str, *, release_id: str, rollout_id: str = "", probation_ms: int = 0
) -> int:
    """Want a release of a device; the publisher sends it.

    Args:
        session: An open transaction.
        device_id: Which one.
        release_id: What it shall run; empty means: keep what it has.
        rollout_id: Who asks; repeated in what the device reports.
        probation_ms: How long the device watches it before it commits.

    Returns:
        The new desired sequence.
    """
    device = get_device(session, device_id)
    device.desired_release = release_id
    device.desired_rollout = rollout_id
    device.desired_probation_ms = probation_ms
    device.desired_sequence += 1
    return device.desired_sequence


def ensure_everything(session: Session) -> None:
    """Make the cohort "all" if it is missing."""
    if session.get(Cohort, EVERYTHING) is None:
        session.add(Cohort(id=EVERYTHING, name=EVERYTHING, selector={}, created_ms=now_ms()))


def create_cohort(session: Session, *, name: str, selector: Mapping[str, str], actor: str) -> Cohort:
    """Name the devices whose labels contain every pair of ``selector``.

    Raises:
        InvalidRequestError: A bad name or selector.
        ConflictError: There is a cohort of that name.
    """
    try:
        check_name(name, field="name")
    except WireError as error:
        raise InvalidRequestError(error.field, expected=error.expected, got=error.got) from error
    pairs = check_labels(selector, name="selector")
    if session.scalar(sa.select(Cohort.id).where(Cohort.name == name)) is not None:
        raise ConflictError(f"there is a cohort {name!r} already")
    cohort = Cohort(id=new_id("cohort"), name=name, selector=pairs, created_ms=now_ms())
    session.add(cohort)
    ledger.append(
        session, actor=actor, action="cohort.create", subject=cohort.id, detail={"name": name, "selector": pairs}
    )
    return cohort


def list_cohorts(session: Session) -> list[Cohort]:
    """Every cohort in the order of the names."""
    return list(session.scalars(sa.select(Cohort).order_by(Cohort.name)))


def get_cohort(session: Session, cohort_id: str) -> Cohort:
    """A cohort by its identifier or its name; raises NotFoundError."""
    cohort = session.scalar(
        sa.select(Cohort).where(sa.or_(Cohort.id == cohort_id, Cohort.name == cohort_id)).order_by(Cohort.id)
    )
    if cohort is None:
        raise NotFoundError("cohort", cohort_id)
    return cohort


def cohort_device_ids(session: Session, cohort_id: str) -> list[str]:
    """Names of the devices of a cohort that are not revoked, sorted; raises NotFoundError."""
    cohort = get_cohort(session, cohort_id)
    return list(
        session.scalars(
            sa.select(Device.id).where(Device.revoked.is_(False), _selected(cohort.selector)).order_by(Device.id)
        )
    )


def _publish_users_after_commit(session: Session, context: ServerContext) -> None:
    def publish(_session: Session) -> None:
        broker.publish_users(context.database, context.layout)

    event.listen(session, "after_commit", publish, once=True)


def _condition(session: Session, name: str, value: str) -> sa.ColumnElement[bool]:
    if name in ("online", "revoked"):
        if value not in _BOOLEANS:
            raise InvalidRequestError(f"filter.{name}", expected="true or false", got=value)
        column = Device.online if name == "online" else Device.revoked
        return column.is_(_BOOLEANS[value])
    if name == "cohort":
        return sa.and_(Device.revoked.is_(False), _selected(get_cohort(session, value).selector))
    if name.startswith("label."):
        return _selected(check_labels({name.removeprefix("label."): value}, name="filter.label"))
    if name in FILTER_COLUMNS:
        return FILTER_COLUMNS[name] == value
    known = ", ".join(sorted([*FILTER_COLUMNS, "online", "revoked", "cohort", "label.<key>"]))
    raise InvalidRequestError("filter", expected=f"one of {known}", got=name)


def _selected(selector: Mapping[str, str]) -> sa.ColumnElement[bool]:
    return sa.and_(sa.true(), *(Device.labels[key].as_string() == value for key, value in selector.items()))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
