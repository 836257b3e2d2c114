"""Devices and cohorts in the store: looking them up, labels, and what is wanted of a device.

Functions take an open transaction and change the store only. Identities are :mod:`skerry_server.fleet.enrollment`'s.

A device brings labels when it enrols; from then on they belong to the operator, since they decide which cohorts it is
in. What a device reports later does not change them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name, new_id
from skerry_contract.site import GATEWAY_ROLE
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.releases.service import approve_for
from skerry_server.store.tables import Cohort, Device

#: The cohort that every device belongs to: its identifier and its name.
EVERYTHING = "all"
#: Most devices on one page.
LARGEST_PAGE = 500
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

    A release that was approved earlier than what the device has is approved anew: see
    :func:`skerry_server.releases.service.approve_for`.

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
    if release_id:
        had = (device.active_release, device.desired_release, device.target_release)
        approve_for(session, release_id, device_id=device_id, had=had)
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
    """Names of the devices of a cohort that are not revoked, sorted; raises NotFoundError.

    A gateway serves no model, so it is in no cohort.
    """
    cohort = get_cohort(session, cohort_id)
    return list(
        session.scalars(
            sa.select(Device.id)
            .where(Device.revoked.is_(False), Device.kind != GATEWAY_ROLE, _selected(cohort.selector))
            .order_by(Device.id)
        )
    )


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
