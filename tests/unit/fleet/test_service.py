"""Devices, cohorts, tokens and enrolment in a prepared data directory without processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skerry_server import broker_passwords
from skerry_server.audit import ledger
from skerry_server.config import ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, SkerryError
from skerry_server.first_start import make_folders, prepare
from skerry_server.fleet import service
from skerry_server.store.tables import AuditRow, Device, EnrollmentToken


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    layout = ServerLayout(tmp_path)
    make_folders(layout)
    prepare(layout, {})
    made = open_context(tmp_path)
    yield made
    made.close()


def _token(context: ServerContext, **settings: Any) -> str:
    with context.database.transaction() as session:
        return service.create_enrollment_token(session, actor="ada", **settings)


def _enroll(context: ServerContext, token: str, device_id: str = "d1", **settings: Any) -> service.Enrollment:
    with context.database.transaction() as session:
        return service.enroll(session, context, token=token, device_id=device_id, **settings)


def _users(context: ServerContext) -> dict[str, str]:
    return broker_passwords.parse((context.layout.broker / "passwords").read_bytes())


def test_enrolment_gives_everything_a_device_needs_and_the_broker_knows_it(context: ServerContext) -> None:
    token = _token(context, labels={"site": "north"})
    enrollment = _enroll(context, token, device_class="x86_64", labels={"site": "forged", "line": "3"})
    assert enrollment.broker_port == context.config.broker_port
    assert enrollment.superlink_address == f"127.0.0.1:{context.config.superlink_port}"
    assert len(bytes.fromhex(enrollment.release_keys[0])) == 32
    assert broker_passwords.matches(enrollment.broker_password, _users(context)["d1"])
    with context.database.reading() as session:
        device = service.get_device(session, "d1")
        assert device.labels == {"site": "north", "line": "3"}  # the operator's label wins
        assert enrollment.broker_password not in device.broker_password_hash
        rows = [(row.actor, row.action, row.subject) for row in session.query(AuditRow).order_by(AuditRow.sequence)]
        assert rows[-1] == ("device:d1", "device.enroll", "d1")
        assert ledger.verify(session) is None
        (stored,) = session.query(EnrollmentToken).all()
        assert token not in stored.token_sha256
    assert enrollment.broker_password not in repr(enrollment)


def test_an_answer_that_got_lost_is_asked_for_again_until_the_device_was_seen(context: ServerContext) -> None:
    token = _token(context)
    lost = _enroll(context, token)
    again = _enroll(context, token)
    assert again.broker_password != lost.broker_password
    assert broker_passwords.matches(again.broker_password, _users(context)["d1"])
    with context.database.transaction() as session:
        service.get_device(session, "d1").last_seen_ms = 1
    _refused(context, InvalidRequestError, "used by d1", token=token)


def _refused(context: ServerContext, error: type[SkerryError], message: str, **arguments: Any) -> None:
    """The call raises, and neither the store nor the password file changes."""
    with context.database.reading() as session:
        devices = [(one.id, one.broker_password_hash) for one in session.query(Device)]
        audit = ledger.head(session)
    path = context.layout.broker / "passwords"
    users = path.read_bytes() if path.exists() else None
    with pytest.raises(error, match=message):
        _enroll(context, **arguments)
    with context.database.reading() as session:
        assert [(one.id, one.broker_password_hash) for one in session.query(Device)] == devices
        assert ledger.head(session) == audit
    assert (path.read_bytes() if path.exists() else None) == users


def test_tokens_are_single_use_expire_and_must_be_known(context: ServerContext) -> None:
    used = _token(context)
    _enroll(context, used)
    _refused(context, InvalidRequestError, "used by d1", token=used, device_id="d2")
    _refused(context, InvalidRequestError, "an unknown one", token="guessed", device_id="d2")
    expired = _token(context)
    with context.database.transaction() as session:
        for row in session.query(EnrollmentToken).filter_by(used_by=""):
            row.expires_ms = 1
    _refused(context, InvalidRequestError, "an expired one", token=expired, device_id="d2")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"device_id": "server"}, "device_id"),
        ({"device_id": "operator"}, "device_id"),
        ({"device_id": "a/b"}, "device_id"),
        ({"device_id": "+"}, "device_id"),
        ({"device_id": ""}, "device_id"),
        ({"device_id": "x" * 64}, "device_id"),
        ({"device_id": "d\n"}, "device_id"),
        ({"device_id": "d2", "device_class": "a b"}, "device_class"),
        ({"device_id": "d2", "labels": {"Key": "x"}}, "labels"),
        ({"device_id": "d2", "labels": {"key": ""}}, "labels.key"),
        ({"device_id": "d2", "labels": {"key": "a\0b"}}, "labels.key"),
        ({"device_id": "d2", "labels": {f"k{n}": "x" for n in range(33)}}, "labels"),
    ],
)
def test_a_bad_field_is_named_and_the_token_stays_good(
    context: ServerContext, arguments: dict[str, Any], field: str
) -> None:
    token = _token(context)
    _refused(context, InvalidRequestError, f"^{field}: ", token=token, **arguments)
    _enroll(context, token, "d2")


def test_an_enrolled_name_is_taken_until_it_is_revoked(context: ServerContext) -> None:
    first = _enroll(context, _token(context))
    _refused(context, ConflictError, "enrolled already", token=_token(context))
    with context.database.transaction() as session:
        service.get_device(session, "d1").desired_sequence = 7
        service.revoke(session, context, "d1", actor="ada", reason="lost")
    assert "d1" not in _users(context)
    second = _enroll(context, _token(context))
    assert second.broker_password != first.broker_password
    with context.database.reading() as session:
        device = service.get_device(session, "d1")
        assert (device.revoked, device.desired_sequence) == (False, 7)  # sequences never go back


def test_cohorts_follow_labels_and_leave_out_the_revoked(context: ServerContext) -> None:
    with context.database.transaction() as session:
        session.add(Device(id="a", enrolled_ms=1, labels={"site": "north", "line": "1"}))
        session.add(Device(id="b", enrolled_ms=1, labels={"site": "north"}))
        session.add(Device(id="c", enrolled_ms=1, labels={"site": "north", "line": "1"}, revoked=True))
        session.add(Device(id="d", enrolled_ms=1, labels={"site": "south", "line.a_b": "1"}))
        north = service.create_cohort(session, name="north", selector={"site": "north"}, actor="ada")
        line = service.create_cohort(session, name="line", selector={"site": "north", "line": "1"}, actor="ada")
        odd = service.create_cohort(session, name="odd", selector={"line.a_b": "1"}, actor="ada")
        assert service.cohort_device_ids(session, north.id) == ["a", "b"]
        assert service.cohort_device_ids(session, line.id) == ["a"]
        assert service.cohort_device_ids(session, odd.id) == ["d"]
        assert service.cohort_device_ids(session, "all") == ["a", "b", "d"]
        service.set_labels(session, "b", labels={"site": "south"}, actor="ada")
        assert service.cohort_device_ids(session, north.id) == ["a"]
        assert [cohort.name for cohort in service.list_cohorts(session)] == ["all", "line", "north", "odd"]
        with pytest.raises(ConflictError, match="already"):
            service.create_cohort(session, name="north", selector={}, actor="ada")
        with pytest.raises(NotFoundError, match="no cohort 'west'"):
            service.cohort_device_ids(session, "west")


def test_devices_are_listed_by_name_in_pages_and_filtered(context: ServerContext) -> None:
    with context.database.transaction() as session:
        for number in range(5):
            online = number % 2 == 0
            session.add(Device(id=f"d{number}", enrolled_ms=1, online=online, labels={"n": str(number)}))

    def names(filters: dict[str, str] | None = None, after: str = "", limit: int = 100) -> list[str]:
        with context.database.reading() as session:
            return [device.id for device in service.list_devices(session, filters, after, limit)]

    assert names(limit=2) == ["d0", "d1"]
    assert names(after="d1", limit=2) == ["d2", "d3"]
    assert names({"online": "true"}) == ["d0", "d2", "d4"]
    assert names({"online": "false", "label.n": "3"}) == ["d3"]
    assert names({"update_status": "idle", "cohort": "all"}) == [f"d{number}" for number in range(5)]
    for filters, message in [({"colour": "red"}, "one of active_release"), ({"online": "yes"}, "true or false")]:
        with pytest.raises(InvalidRequestError, match=message):
            names(filters)
    with pytest.raises(InvalidRequestError, match="limit"):
        names(limit=0)


def test_what_is_wanted_counts_up(context: ServerContext) -> None:
    with context.database.transaction() as session:
        session.add(Device(id="d1", enrolled_ms=1))
        session.flush()
        assert service.set_desired(session, "d1", release_id="release-1", rollout_id="r", probation_ms=5) == 1
        assert service.set_desired(session, "d1", release_id="release-2") == 2
        with pytest.raises(NotFoundError):
            service.set_desired(session, "d2", release_id="release-1")
    with context.database.reading() as session:
        device = service.get_device(session, "d1")
        assert (device.desired_release, device.desired_rollout, device.desired_probation_ms) == ("release-2", "", 0)
