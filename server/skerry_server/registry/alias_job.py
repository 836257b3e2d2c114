"""Job kind "registry-aliases": let the MLflow alias "champion" follow the champion ledger.

It reads the ledger when it runs, so that jobs of several promotions may run late, twice or in any order.
"""

from __future__ import annotations

from typing import Any

from skerry_server.errors import InvalidRequestError
from skerry_server.jobs.kinds import JobContext
from skerry_server.registry.champions import champion
from skerry_server.store.tables import Candidate


def run(job: JobContext) -> dict[str, Any]:
    """Set the alias of one task; payload {"task"}, result {"version"} (empty while there is nothing to point at)."""
    task = job.payload.get("task")
    if not isinstance(task, str) or not task:
        raise InvalidRequestError("task", expected="a task name", got=task)
    with job.context.database.reading() as session:
        release = champion(session, task)
        candidate = session.get(Candidate, release.candidate_id) if release else None
    if release is None or candidate is None or not candidate.mlflow_model_version:
        return {"version": ""}
    from skerry_server.registry.mlflow_registry import CHAMPION_ALIAS, open_registry

    registry = open_registry(job.context.layout, job.context.config)
    registry.set_alias(task, CHAMPION_ALIAS, candidate.mlflow_model_version)
    registry.set_version_tags(task, candidate.mlflow_model_version, {"skerry.release": release.id})
    return {"version": candidate.mlflow_model_version}
