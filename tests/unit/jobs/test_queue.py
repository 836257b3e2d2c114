"""Jobs as rows: states, attempts, fencing. No process is started here."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.jobs import job_machine, kinds, queue
from skerry_server.jobs.kinds import JobKind, JobLostError
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Job


@pytest.fixture
def database() -> Database:
    made = Database("sqlite://")
    Base.metadata.create_all(made.engine)
    return made


def test_the_machine_refuses_what_it_does_not_list() -> None:
    """Every pair of state and event: listed ones lead on, all others raise."""
    events = {event for row in job_machine.JOB.values() for event in row}
    for state, row in job_machine.JOB.items():
        for event in events:
            if event in row:
                assert job_machine.advance(state, event, job_id="j") == row[event]
            else:
                with pytest.raises(ConflictError, match=f"job j is {state}"):
                    job_machine.advance(state, event, job_id="j")


def test_backoff_doubles_up_to_half_a_minute() -> None:
    assert [job_machine.backoff_ms(attempts) for attempts in (0, 1, 2, 3, 8, 9, 500)] == [
        0, 250, 500, 1_000, 30_000, 30_000, 30_000,
    ]  # fmt: skip


def test_the_same_identifier_is_the_same_job(database: Database) -> None:
    with database.transaction() as session:
        first = queue.enqueue(session, "train", {"task": "digits"}, job_id="job-1")
        assert queue.enqueue(session, "train", {"task": "digits"}, job_id="job-1") is first
        with pytest.raises(ConflictError):
            queue.enqueue(session, "train", {"task": "har"}, job_id="job-1")
        with pytest.raises(ValueError, match="unknown kind"):
            queue.enqueue(session, "dance", {})
        with pytest.raises(ValueError, match="maximum_attempts"):
            queue.enqueue(session, "train", {}, maximum_attempts=0)
        assert queue.enqueue(session, "train", {"task": "digits"}).id != "job-1"
    with database.reading() as session:
        assert session.query(Job).count() == 2


def test_jobs_start_in_the_order_they_came_and_wait_after_a_failure(database: Database) -> None:
    with database.transaction() as session:
        assert queue.claim_next(session, at_ms=0) is None
        for name, created in (("job-b", 2), ("job-a", 1)):
            queue.enqueue(session, "train", {}, job_id=name).created_ms = created
    with database.transaction() as session:
        first = queue.claim_next(session, at_ms=10)
        assert first is not None
        assert (first.id, first.state, first.attempts, first.pid, first.started_ms) == ("job-a", "running", 1, 0, 10)
        queue.lose(session, "job-a", attempt=1, error="killed")
        first.finished_ms = 1_000
        second = queue.claim_next(session, at_ms=1_249)
        assert second is not None
        assert second.id == "job-b"
        assert queue.claim_next(session, at_ms=1_249) is None
        again = queue.claim_next(session, at_ms=1_250)
        assert again is first
        assert again.attempts == 2


def test_the_last_attempt_fails_with_its_reason(database: Database) -> None:
    with database.transaction() as session:
        queue.enqueue(session, "train", {}, job_id="job-1", maximum_attempts=2)
        queue.claim_next(session, at_ms=1)
        queue.lose(session, "job-1", attempt=1, error="killed by SIGKILL")
        job = queue.get_job(session, "job-1")
        assert (job.state, job.error) == ("queued", "attempt 1 of 2: killed by SIGKILL")
        queue.claim_next(session, at_ms=10**15)
        queue.lose(session, "job-1", attempt=2, error="killed by SIGKILL")
        assert (job.state, job.error) == ("failed", "attempt 2 of 2: killed by SIGKILL")
        assert queue.claim_next(session, at_ms=10**15) is None


def test_an_interrupted_attempt_does_not_count(database: Database) -> None:
    with database.transaction() as session:
        queue.enqueue(session, "train", {}, job_id="job-1", maximum_attempts=1)
        for _ in range(3):
            job = queue.claim_next(session, at_ms=1)
            assert job is not None
            assert job.attempts == 1
            queue.interrupt(session, "job-1", attempt=1)
            assert (job.state, job.attempts) == ("queued", 0)


def test_an_attempt_that_was_given_up_can_write_nothing(database: Database) -> None:
    """A worker that comes back from a long pause finds that its job runs elsewhere, or is over."""
    with database.transaction() as session:
        queue.enqueue(session, "train", {}, job_id="job-1")
        queue.claim_next(session, at_ms=1)
        queue.lose(session, "job-1", attempt=1, error="gone")
        queue.claim_next(session, at_ms=10**15)
        job = queue.get_job(session, "job-1")
        before = (job.state, job.attempts, job.result, job.error)
        for write in (
            lambda: queue.attach(session, "job-1", attempt=1, pid=7),
            lambda: queue.succeed(session, "job-1", attempt=1, result={"x": 1}),
            lambda: queue.refuse(session, "job-1", attempt=1, error="x"),
            lambda: queue.lose(session, "job-1", attempt=1, error="x"),
            lambda: queue.interrupt(session, "job-1", attempt=1),
        ):
            with pytest.raises(JobLostError):
                write()
        assert (job.state, job.attempts, job.result, job.error) == before
        queue.succeed(session, "job-1", attempt=2, result={"x": 2})
        assert (job.state, job.result, job.error) == ("done", {"x": 2}, "")
        with pytest.raises(JobLostError):
            queue.succeed(session, "job-1", attempt=2, result={"x": 3})
        with pytest.raises(NotFoundError):
            queue.get_job(session, "job-2")


def note_failure(session: Session, job: Job) -> None:
    """Failure hook of the next test: leaves a trace in the same transaction."""
    session.add(Job(id=f"after-{job.id}", kind="train", payload={"error": job.error}, state="done", created_ms=0))


def test_what_waits_for_a_job_learns_of_its_failure_in_the_same_transaction(database: Database) -> None:
    kinds.KINDS["test-hook"] = JobKind("nowhere:run", on_failure=f"{__name__}:note_failure")
    try:
        with database.transaction() as session:
            queue.enqueue(session, "test-hook", {}, job_id="job-1")
            queue.claim_next(session, at_ms=1)
            queue.refuse(session, "job-1", attempt=1, error="bad payload")
            session.rollback()
        with database.transaction() as session:
            assert session.query(Job).count() == 0
            queue.enqueue(session, "test-hook", {}, job_id="job-1")
            queue.claim_next(session, at_ms=1)
            queue.refuse(session, "job-1", attempt=1, error="bad payload")
        with database.reading() as session:
            assert queue.get_job(session, "job-1").state == "failed"
            assert queue.get_job(session, "after-job-1").payload == {"error": "bad payload"}
    finally:
        del kinds.KINDS["test-hook"]


def test_an_owner_may_restart_what_has_ended(database: Database) -> None:
    with database.transaction() as session:
        queue.enqueue(session, "train", {"task": "digits"}, job_id="job-1", maximum_attempts=2)
        assert queue.restart(session, "job-1").state == "queued"  # it waits already
        assert queue.claim_next(session, at_ms=1) is not None
        assert queue.restart(session, "job-1").state == "running"  # it works already
        queue.succeed(session, "job-1", attempt=1, result={"paused": True})
        again = queue.restart(session, "job-1")
        assert (again.state, again.result, again.attempts, again.maximum_attempts) == ("queued", {}, 1, 6)
        assert queue.claim_next(session, at_ms=2) is again  # at once: it did not fail
        with pytest.raises(JobLostError):  # the process of an earlier attempt has no say
            queue.succeed(session, "job-1", attempt=1, result={})
        queue.refuse(session, "job-1", attempt=2, error="bad")
        again = queue.restart(session, "job-1")
        assert (again.state, again.error, again.maximum_attempts) == ("queued", "", 7)
        with pytest.raises(NotFoundError):
            queue.restart(session, "job-2")
