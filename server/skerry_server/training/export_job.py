"""Job kind "exports": makes the graphs of a task that do not depend on its parameters, beside the first training.

Payload ``{"task"}``, result ``{"task"}``. What it makes lies in this machine's cache
(:mod:`skerry_models.export_cache`), where the candidate job finds it, or waits for it; without this job, or without the
cache, the candidate job makes it itself.
"""

from __future__ import annotations

from typing import Any

from skerry_models.task import CENTRAL
from skerry_server.errors import InvalidRequestError
from skerry_server.jobs.kinds import JobContext
from skerry_server.training.service import known_task


def run(job: JobContext) -> dict[str, Any]:
    """Export what is not in the cache yet; see the module."""
    from skerry_models.export import export_inference
    from skerry_models.kept_step import train_step_for
    from skerry_models.parameters import initial_parameters

    name = job.payload.get("task")
    if not isinstance(name, str):
        raise InvalidRequestError("payload.task", expected="a task name", got=name)
    task = known_task(name)
    state, rows = initial_parameters(task, seed=0), task.source(CENTRAL)
    train_step_for(task, state, rows, None)
    export_inference(task, state, rows.x)
    return {"task": name}
