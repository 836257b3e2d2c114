"""Devices and cohorts in a prepared data directory without processes."""

from __future__ import annotations

import pytest

from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.fleet import service
from skerry_server.store.tables import Device


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
