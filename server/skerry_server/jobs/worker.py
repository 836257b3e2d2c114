"""The process of one attempt of one job: ``python -m skerry_server.jobs.worker DATA_DIR JOB_ID ATTEMPT``.

It dies with its parent (Linux ``PR_SET_PDEATHSIG``), owns its attempt in the store before it does anything, and
writes result or error itself. What it writes after its attempt was given up is refused by the store.
Exit status: 0 done, 1 the attempt failed (the store says why), 2 the attempt is not its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from skerry_server.context import ServerContext, open_context
from skerry_server.jobs import queue
from skerry_server.jobs.kinds import FINAL_ERRORS, JobContext, JobLostError, load_run

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
#: The environment variable with the process that started this one.
PARENT_VARIABLE = "SKERRY_JOB_PARENT"


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; exit at once if that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    parent = os.environ.get(PARENT_VARIABLE)
    if parent and os.getppid() != int(parent):
        os._exit(2)


def main(arguments: list[str]) -> int:
    """Run one attempt; returns the exit status."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt is the supervisor's to handle
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    data_dir, job_id, attempt = Path(arguments[0]), arguments[1], int(arguments[2])
    context = open_context(data_dir)
    try:
        return _run(context, job_id, attempt)
    except JobLostError as error:
        log.warning("%s", error)
        return 2
    finally:
        context.close()


def _run(context: ServerContext, job_id: str, attempt: int) -> int:
    with context.database.transaction() as session:
        job = queue.attach(session, job_id, attempt=attempt, pid=os.getpid())
    folder = context.layout.jobs / job_id
    folder.mkdir(parents=True, exist_ok=True)
    log.info("job %s (%s): attempt %d", job_id, job.kind, attempt)
    try:
        result: dict[str, Any] = load_run(job.kind)(
            JobContext(context=context, job_id=job_id, payload=job.payload, folder=folder, attempt=attempt)
        )
    except JobLostError:
        raise
    except FINAL_ERRORS as error:
        log.error("job %s: refused: %s", job_id, error)
        with context.database.transaction() as session:
            queue.refuse(session, job_id, attempt=attempt, error=str(error))
        return 1
    except Exception as error:
        log.exception("job %s: attempt %d failed", job_id, attempt)
        with context.database.transaction() as session:
            queue.lose(session, job_id, attempt=attempt, error=f"{type(error).__name__}: {error}")
        return 1
    with context.database.transaction() as session:
        queue.succeed(session, job_id, attempt=attempt, result=result)
    log.info("job %s: done", job_id)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
