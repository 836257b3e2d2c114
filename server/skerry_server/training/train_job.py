"""Job kind "train": central training of a task, logged to MLflow, ending in a candidate.

Payload ``{"task", "settings", "initial_sha256", "parent_release"}``, result ``{"candidate_id", "mlflow_run_id", ...}``.
Killed anywhere and run again it resumes from its checkpoint, writes to the same MLflow run, makes the same candidate.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from skerry_models.task import CENTRAL, HOLDOUT, TrainingDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.jobs.kinds import FINAL_ERRORS, JobContext
from skerry_server.releases.service import create_candidate
from skerry_server.training.service import known_task
from skerry_server.training.settings import TrainingSettings, parse_settings


def run(job: JobContext) -> dict[str, Any]:
    """Train; see the module."""
    from skerry_server.registry.mlflow_registry import open_registry

    task_name, settings = _parse(job.payload)
    registry = open_registry(job.context.layout, job.context.config)
    run_id = registry.ensure_run(
        task_name,
        key=job.job_id,
        name=f"train {job.job_id}",
        tags={"skerry.job": job.job_id, "skerry.origin": "central"},
    )
    job.progress(mlflow_run_id=run_id, epochs=settings.epochs)
    try:
        result = _train(job, task_name, settings, registry, run_id)
    except FINAL_ERRORS:
        registry.finish_run(run_id, failed=True)
        raise
    registry.finish_run(run_id)
    return result


def _train(job: JobContext, task_name: str, settings: TrainingSettings, registry: Any, run_id: str) -> dict[str, Any]:
    import torch

    from skerry_models.evaluation import evaluate_parameters
    from skerry_models.parameters import decode_state, encode_state
    from skerry_server.training import plots
    from skerry_server.training.trainer import EpochRecord, train

    # This process trains and does nothing else, so framework-wide switches are its own.
    torch.use_deterministic_algorithms(True, warn_only=True)
    task = known_task(task_name)
    dataset, holdout = task.source(CENTRAL), task.source(HOLDOUT)
    initial_sha256 = str(job.payload.get("initial_sha256", ""))
    initial = decode_state(task, job.context.artifacts.get_bytes(initial_sha256)) if initial_sha256 else None
    registry.log_params(
        run_id,
        {
            "task": task_name,
            **settings.as_dict(),
            "initial_sha256": initial_sha256,
            "parent_release": job.payload.get("parent_release", ""),
            "rows_training": len(dataset),
            "rows_holdout": len(holdout),
        },
    )

    def log_epoch(record: EpochRecord) -> None:
        metrics = {name: value for name, value in asdict(record).items() if name not in ("epoch", "at_ms")}
        registry.log_metrics(run_id, metrics, step=record.epoch + 1, at_ms=record.at_ms)
        job.progress(epoch=record.epoch + 1, loss=record.loss, holdout_accuracy=record.holdout_accuracy)

    result = train(
        task,
        settings,
        dataset=dataset,
        holdout=holdout,
        checkpoint=job.folder / "checkpoint.pt",
        initial=initial,
        on_epoch=log_epoch,
    )
    # A kill between a checkpoint and its metrics left a hole; what is there already is not stored twice.
    for record in result.history[: result.resumed_from]:
        log_epoch(record)
    judged = evaluate_parameters(task, result.state, holdout)
    registry.log_figure(run_id, plots.learning_curve(result.history), "plots/learning_curve.png")
    registry.log_figure(run_id, plots.confusion_matrix(judged.confusion, task.classes), "plots/confusion_matrix.png")
    registry.log_text(run_id, _describe_network(task.create_network(settings.seed)), "model_summary.txt")
    registry.set_tags(run_id, {"skerry.device": result.device})
    candidate_id = f"candidate-{job.job_id.removeprefix('job-')}"
    with job.context.database.transaction() as session:
        create_candidate(
            session,
            job.context,
            task=task_name,
            origin="central",
            parameters=encode_state(result.state),
            candidate_id=candidate_id,
            parent_release=str(job.payload.get("parent_release", "")),
            mlflow_run_id=run_id,
        )
    return {
        "candidate_id": candidate_id,
        "mlflow_run_id": run_id,
        "holdout_accuracy": judged.accuracy,
        "device": result.device,
        "resumed_from": result.resumed_from,
    }


def _parse(payload: dict[str, Any]) -> tuple[str, TrainingSettings]:
    task, settings = payload.get("task"), payload.get("settings")
    if not isinstance(task, str):
        raise InvalidRequestError("payload.task", expected="a task name", got=task)
    if not isinstance(settings, dict):
        raise InvalidRequestError("payload.settings", expected="an object", got=settings)
    defaults: TrainingDefaults = known_task(task).default_training
    return task, parse_settings(defaults, settings)


def _describe_network(network: Any) -> str:
    """Layers, shapes and counts of the parameters, as text."""
    lines = [repr(network), ""]
    total = 0
    for name, parameter in network.named_parameters():
        lines.append(f"{name:<40} {list(parameter.shape)!s:<20} {parameter.numel():>10}")
        total += parameter.numel()
    return "\n".join([*lines, f"{'total':<61} {total:>10}", ""])
