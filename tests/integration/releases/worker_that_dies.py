"""A worker that kills itself at another place of the candidate job in each of its first attempts."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

from skerry_server.jobs import worker
from skerry_server.jobs.kinds import KINDS, JobContext, JobKind
from skerry_server.releases import candidate_job


def die(*_: object, **__: object) -> NoReturn:
    """SIGKILL, as the kernel does it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def run(job: JobContext) -> dict[str, Any]:
    """Attempt 1 dies after the bundle, 2 after the gates, 3 between logged model and version, 4 before the verdict."""
    steps = candidate_job.STEPS
    if job.attempt == 3:
        from mlflow.tracking import MlflowClient

        MlflowClient.create_model_version = die
    last = {1: 1, 2: 2, 4: len(steps) - 1}.get(job.attempt, len(steps))
    result = candidate_job.run_steps(job, steps[:last])
    if last < len(steps):
        die()
    return result


if __name__ == "__main__":
    sys.modules["worker_that_dies"] = sys.modules["__main__"]
    KINDS["candidate"] = JobKind("worker_that_dies:run", on_failure=KINDS["candidate"].on_failure)
    sys.exit(worker.main(sys.argv[1:]))
