"""A worker process that knows some more kinds of job; started by the tests in place of the real one."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from skerry_server.errors import InvalidRequestError
from skerry_server.jobs import worker
from skerry_server.jobs.kinds import KINDS, JobContext, JobKind


def mark(job: JobContext) -> dict[str, Any]:
    """Append a line to a file and say which attempt this was."""
    with (job.folder / "marks").open("a") as stream:
        stream.write(f"{job.attempt}\n")
    job.progress(attempt=job.attempt)
    return {"attempt": job.attempt}


def hang_once(job: JobContext) -> dict[str, Any]:
    """Hang in the first attempts, as many as the payload says; then behave."""
    if job.attempt <= job.payload["hangs"]:
        (job.folder / f"pid-{job.attempt}").write_text(str(os.getpid()))
        time.sleep(600)
    return mark(job)


def kill_self(_job: JobContext) -> dict[str, Any]:
    """Die as by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def fail(_job: JobContext) -> dict[str, Any]:
    """Meet trouble that may pass."""
    raise OSError("the wind is too strong")


def refuse(job: JobContext) -> dict[str, Any]:
    """Find the payload wrong."""
    raise InvalidRequestError("payload.size", expected="a number", got=job.payload.get("size"))


TEST_KINDS = {
    name: JobKind(f"worker_with_test_kinds:{name}") for name in ("mark", "hang_once", "kill_self", "fail", "refuse")
}

if __name__ == "__main__":
    KINDS.update(TEST_KINDS)
    sys.modules["worker_with_test_kinds"] = sys.modules["__main__"]
    sys.exit(worker.main(sys.argv[1:]))
