"""The runner with real processes: killed, hung, refused, stopped, orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from skerry_server.context import ServerContext
from skerry_server.jobs import kinds, queue
from skerry_server.jobs.kinds import JobKind
from skerry_server.jobs.runner import JobRunner
from skerry_server.store.tables import Job
from unit.jobs.support import make_context

WORKER = Path(__file__).with_name("worker_with_test_kinds.py")
COMMAND = (sys.executable, str(WORKER))
Wait = Callable[..., None]


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    names = ("mark", "hang_once", "kill_self", "fail", "refuse")
    kinds.KINDS.update({name: JobKind(f"worker_with_test_kinds:{name}") for name in names})
    made = make_context(tmp_path / "data")
    yield made
    made.close()
    for name in names:
        del kinds.KINDS[name]


@pytest.fixture
def runner(context: ServerContext) -> Iterator[JobRunner]:
    made = JobRunner(context, command=COMMAND)
    yield made
    made.stop()


def enqueue(context: ServerContext, kind: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
    with context.database.transaction() as session:
        return queue.enqueue(session, kind, payload or {}, **options).id


def read(context: ServerContext, job_id: str) -> Job:
    with context.database.reading() as session:
        return queue.get_job(session, job_id)


def step_until(runner: JobRunner, condition: Callable[[], object], wait_until: Wait, what: str) -> None:
    def attempt() -> object:
        runner.step()
        return condition()

    wait_until(attempt, what=what, seconds=60)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_job_runs_in_its_own_process_and_says_what_it_did(
    context: ServerContext, runner: JobRunner, wait_until: Wait
) -> None:
    job_id = enqueue(context, "mark")
    step_until(runner, lambda: read(context, job_id).state == "done", wait_until, "the job")
    job = read(context, job_id)
    assert (job.attempts, job.result, job.progress, job.error, job.pid) == (1, {"attempt": 1}, {"attempt": 1}, "", 0)
    assert job.finished_ms >= job.started_ms >= job.created_ms > 0
    assert "attempt 1" in (context.layout.logs / f"{job_id}.log").read_text()


def test_a_killed_worker_is_run_again_and_the_job_is_done_once(
    context: ServerContext, runner: JobRunner, wait_until: Wait
) -> None:
    job_id = enqueue(context, "hang_once", {"hangs": 1})
    step_until(runner, lambda: read(context, job_id).pid, wait_until, "a process")
    hung = context.layout.jobs / job_id / "pid-1"
    wait_until(lambda: hung.exists() and hung.read_text(), what="the worker hangs")
    assert int(hung.read_text()) == read(context, job_id).pid
    os.kill(read(context, job_id).pid, signal.SIGKILL)
    step_until(runner, lambda: read(context, job_id).state == "done", wait_until, "the second attempt")
    assert read(context, job_id).result == {"attempt": 2}
    assert (context.layout.jobs / job_id / "marks").read_text() == "2\n"


@pytest.mark.parametrize(
    ("kind", "attempts", "error"),
    [
        ("kill_self", 2, "attempt 2 of 2: the process was killed by SIGKILL"),
        ("fail", 2, "attempt 2 of 2: OSError: the wind is too strong"),
        ("refuse", 1, "payload.size: expected a number, got 'None'"),
    ],
)
def test_what_cannot_be_done_ends_as_failed_with_the_reason(
    context: ServerContext, runner: JobRunner, wait_until: Wait, kind: str, attempts: int, error: str
) -> None:
    job_id = enqueue(context, kind, maximum_attempts=2)
    step_until(runner, lambda: read(context, job_id).state == "failed", wait_until, "the failure")
    job = read(context, job_id)
    assert (job.attempts, job.error, job.result) == (attempts, error, {})


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/no/such/program",), "its process could not be started"),
        ((sys.executable, "-c", "raise SystemExit(9)"), "the process ended with status 9 and wrote no result"),
    ],
)
def test_a_worker_that_does_not_start_ends_the_job_with_the_reason(
    context: ServerContext, wait_until: Wait, command: tuple[str, ...], reason: str
) -> None:
    job_id = enqueue(context, "mark", maximum_attempts=2)
    runner = JobRunner(context, command=command)
    step_until(runner, lambda: read(context, job_id).state == "failed", wait_until, "the failure")
    assert read(context, job_id).attempts == 2
    assert reason in read(context, job_id).error
    runner.stop()


def test_no_more_than_two_at_once_and_stopping_gives_the_attempts_back(
    context: ServerContext, runner: JobRunner, wait_until: Wait
) -> None:
    jobs = [enqueue(context, "hang_once", {"hangs": 1}) for _ in range(3)]
    for _ in range(3):
        runner.step()
    states = sorted(read(context, job_id).state for job_id in jobs)
    assert states == ["queued", "running", "running"]
    step_until(runner, lambda: sum(read(context, job_id).pid > 0 for job_id in jobs) == 2, wait_until, "both processes")
    pids = [read(context, job_id).pid for job_id in jobs if read(context, job_id).pid]
    runner.stop()
    assert all(is_gone(pid) for pid in pids)
    assert [(read(context, job_id).state, read(context, job_id).attempts) for job_id in jobs] == [("queued", 0)] * 3


def test_one_runner_at_a_time(context: ServerContext, runner: JobRunner, wait_until: Wait) -> None:
    runner.step()
    job_id = enqueue(context, "mark")
    second = JobRunner(context, command=COMMAND)
    second.step()
    assert read(context, job_id).state == "queued"
    runner.stop()
    step_until(second, lambda: read(context, job_id).state == "done", wait_until, "the second runner")
    second.stop()


def test_the_jobs_of_a_killed_runner_die_with_it_and_the_next_runner_takes_them_up(
    context: ServerContext, wait_until: Wait
) -> None:
    job_id = enqueue(context, "hang_once", {"hangs": 1})
    script = f"""
        import time
        from pathlib import Path
        from skerry_server.context import open_context
        from skerry_server.jobs.runner import JobRunner
        runner = JobRunner(open_context(Path({str(context.layout.root)!r})), command={COMMAND!r})
        while True:
            runner.step()
            time.sleep(0.05)
    """
    controllers = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    hung = context.layout.jobs / job_id / "pid-1"
    try:
        wait_until(lambda: hung.exists() and hung.read_text(), what="the worker hangs")
    finally:
        controllers.kill()
        controllers.wait(10)
    worker = int(hung.read_text())
    wait_until(lambda: is_gone(worker), what="the worker dies with its parent")
    assert read(context, job_id).state == "running"
    runner = JobRunner(context, command=COMMAND)
    step_until(runner, lambda: read(context, job_id).state == "done", wait_until, "the next runner")
    assert read(context, job_id).result == {"attempt": 2}
    runner.stop()


def test_a_stranger_with_the_number_of_a_dead_worker_does_not_keep_the_job(
    context: ServerContext, runner: JobRunner, wait_until: Wait
) -> None:
    """The store names this test's process, which is alive and no worker: as after a reboot that reused the number."""
    job_id = enqueue(context, "mark")
    with context.database.transaction() as session:
        queue.claim_next(session, at_ms=1)
        queue.attach(session, job_id, attempt=1, pid=os.getpid())
    step_until(runner, lambda: read(context, job_id).state == "done", wait_until, "the job")
    assert read(context, job_id).result == {"attempt": 2}


def test_a_worker_whose_attempt_is_over_touches_nothing(context: ServerContext) -> None:
    job_id = enqueue(context, "mark")
    with context.database.transaction() as session:
        queue.claim_next(session, at_ms=1)
    done = subprocess.run([*COMMAND, str(context.layout.root), job_id, "7"], capture_output=True, timeout=60)
    assert done.returncode == 2
    assert not (context.layout.jobs / job_id).exists()
    job = read(context, job_id)
    assert (job.state, job.attempts, job.pid) == ("running", 1, 0)
