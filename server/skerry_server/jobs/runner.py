"""The controller that runs jobs in processes of their own, a few at a time.

Invariants: one runner works on a data directory at a time (``flock``); a job that the store calls running has a live
process or is queued again at the next step; a job is started at most ``maximum_attempts`` times. Processes die with
the thread that started them, so :meth:`JobRunner.step` must always run in one thread, which lives as long as the
runner does; the controller runtime does that.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import psutil

from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.jobs import queue
from skerry_server.jobs.kinds import JobLostError, threads
from skerry_server.jobs.worker import PARENT_VARIABLE
from skerry_server.store.tables import Job

log = logging.getLogger(__name__)

#: How a worker is started; data directory, job and attempt follow.
WORKER_COMMAND = (sys.executable, "-m", "skerry_server.jobs.worker")
#: How long stopped workers have, all together, before they are killed (seconds).
_STOP_SECONDS = 5.0
#: What tells numerical libraries how many threads they may have.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    attempt: int


class JobRunner:
    """Starts queued jobs and looks after running ones; a :class:`skerry_server.controllers.Controller`."""

    def __init__(
        self,
        context: ServerContext,
        *,
        workers: int = 2,
        period_s: float = 0.25,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Make a runner; nothing starts before the first step.

        Args:
            context: The control plane.
            workers: How many jobs run at once, at least 1.
            period_s: Time between two steps.
            command: How a worker is started; data directory, job and attempt follow.
        """
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.name = "jobs"
        self.period_s = period_s
        self._context = context
        self._workers = workers
        self._command = tuple(command)
        self._children: dict[str, _Child] = {}
        self._lock: IO[str] | None = None

    def step(self) -> None:
        """Collect what ended, queue again what was lost, start what waits."""
        if not self._holds_lock():
            return
        self._collect()
        self._recover()
        while len(self._children) < self._workers and self._start_next():
            pass

    def stop(self) -> None:
        """Terminate every worker and queue its job again, without counting the attempt."""
        until = time.monotonic() + _STOP_SECONDS
        for child in self._children.values():
            child.process.terminate()
        for job_id, child in self._children.items():
            try:
                child.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            try:
                with self._context.database.transaction() as session:
                    queue.interrupt(session, job_id, attempt=child.attempt)
            except JobLostError:
                pass  # it finished before the signal came
        self._children.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _holds_lock(self) -> bool:
        if self._lock is not None:
            return True
        self._context.layout.jobs.mkdir(parents=True, exist_ok=True)
        stream = (self._context.layout.jobs / "runner.lock").open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return False
        self._lock = stream
        return True

    def _collect(self) -> None:
        for job_id, child in list(self._children.items()):
            status = child.process.poll()
            if status is None:
                continue
            self._lose(job_id, child.attempt, _describe_exit(status))
            del self._children[job_id]

    def _recover(self) -> None:
        """Queue jobs again whose process another runner had started and which is gone."""
        with self._context.database.reading() as session:
            running = queue.running_jobs(session)
        for job in running:
            if job.id not in self._children and not _is_alive(job):
                self._lose(job.id, job.attempts, "its process is gone")

    def _lose(self, job_id: str, attempt: int, reason: str) -> None:
        try:
            with self._context.database.transaction() as session:
                queue.lose(session, job_id, attempt=attempt, error=reason)
        except JobLostError:
            return  # the worker wrote the end itself
        log.warning("job %s: attempt %d: %s", job_id, attempt, reason)

    def _start_next(self) -> bool:
        with self._context.database.reading() as session:
            if not queue.has_queued(session):
                return False
        with self._context.database.transaction() as session:
            job = queue.claim_next(session, at_ms=now_ms())
        if job is None:
            return False
        layout = self._context.layout
        layout.logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        if count := threads(job.kind):
            environment |= dict.fromkeys(_THREADS, str(count))
        try:
            with (layout.logs / f"{job.id}.log").open("ab") as output:
                process = subprocess.Popen(
                    [*self._command, str(layout.root), job.id, str(job.attempts)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
        except OSError as error:
            self._lose(job.id, job.attempts, f"its process could not be started: {error}")
            return False
        self._children[job.id] = _Child(process, job.attempts)
        log.info("job %s (%s): attempt %d in process %d", job.id, job.kind, job.attempts, process.pid)
        return True


def _describe_exit(status: int) -> str:
    if status < 0:
        return f"the process was killed by {signal.Signals(-status).name}"
    return f"the process ended with status {status} and wrote no result; its log says more"


def _is_alive(job: Job) -> bool:
    """Whether the process that the store names is still this job's worker, and not a stranger with its number."""
    if job.pid == 0:
        return False
    try:
        process = psutil.Process(job.pid)
        return process.status() != psutil.STATUS_ZOMBIE and job.id in process.cmdline()
    except psutil.Error:
        return False
