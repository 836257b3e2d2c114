"""MLflow: runs with parameters, metrics and plots; bundles as logged models, model versions and aliases.

The only file of the control plane that imports mlflow. It talks to the store directly (no server in between) and
gives every artifact location explicitly. MLflow's store of model versions resolves ``models:/<id>`` by the process's
tracking URI, whatever client calls it: that one piece of process-wide state is set before it is needed.

Invariants: every write is idempotent: a run, a logged model or a version is found again by its key tag, metrics
carry the caller's time so that logging them twice stores them once. Nothing here decides anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.registry.first_store import make_first, sqlite_file

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Tag that makes runs, logged models and versions findable by what they belong to.
KEY_TAG = "skerry.key"
#: Alias of the newest candidate that passed its gates, and of the champion.
CANDIDATE_ALIAS = "candidate"
CHAMPION_ALIAS = "champion"

_EXISTS = "RESOURCE_ALREADY_EXISTS"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: MLflow's limit on the metrics and parameters of one batch.
_BATCH = 100
#: Longest parameter value that is logged (characters).
_VALUE_CHARACTERS = 500


class MlflowRegistry:
    """Experiments and models of the control plane in one MLflow store."""

    def __init__(self, uri: str, *, artifacts: Path | None) -> None:
        """Open the store; an SQLite file is made at the first call, whole or not at all.

        Args:
            uri: Tracking and registry URI (``sqlite:////var/lib/skerry/mlflow.sqlite``, ``http://mlflow:5000``).
            artifacts: Local folder for artifacts; None leaves the choice to the MLflow server.

        Raises:
            PlatformError: The store cannot be opened.
        """
        self._uri = uri
        self._artifacts = artifacts
        try:
            if (path := sqlite_file(uri)) is not None:
                make_first(path, _open)
            self._client: Any = _open(uri)
        except PlatformError:
            raise
        except Exception as error:  # MLflow lets SQLAlchemy's and requests' exceptions through
            raise PlatformError(
                f"the MLflow store {uri} cannot be opened ({error})", remedy="check mlflow_uri and the folder's rights"
            ) from error

    # Runs.

    def ensure_run(self, task: str, *, key: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        """The run with this key, made at the first call and set to running at every one.

        Args:
            task: Names the experiment ``skerry/<task>``.
            key: What the run belongs to (a job, a campaign).
            name: For people.
            tags: More tags.

        Returns:
            MLflow's run identifier.
        """
        experiment = self._ensure_experiment(task)
        found = self._client.search_runs([experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        run = self._client.create_run(experiment, tags={KEY_TAG: key, **(tags or {})}, run_name=name)
        return str(run.info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Log parameters; the same values may be logged again, others may not (MLflow refuses)."""
        entries = [Param(name, str(value)[:_VALUE_CHARACTERS]) for name, value in params.items()]
        for start in range(0, len(entries), _BATCH):
            self._client.log_batch(run_id, params=entries[start : start + _BATCH])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int, at_ms: int) -> None:
        """Log numbers of one step.

        Args:
            run_id: Which run.
            metrics: Name to number.
            step: Epoch or round.
            at_ms: When they were measured: logging the same again stores nothing new.
        """
        entries = [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]
        for start in range(0, len(entries), _BATCH):
            self._client.log_batch(run_id, metrics=entries[start : start + _BATCH])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self._client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Save a matplotlib figure as an artifact (``plots/learning_curve.png``); replaces it."""
        self._client.log_figure(run_id, figure, path)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Save text as an artifact; replaces it."""
        self._client.log_text(run_id, text, path)

    def log_json(self, run_id: str, document: dict[str, Any], path: str) -> None:
        """Save a JSON document as an artifact; replaces it."""
        self._client.log_dict(run_id, document, path)

    def log_file(self, run_id: str, path: Path, folder: str) -> None:
        """Save a file as an artifact below ``folder``; replaces it."""
        self._client.log_artifact(run_id, str(path), folder)

    def finish_run(self, run_id: str, *, failed: bool = False) -> None:
        """End a run as FINISHED or FAILED."""
        self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    # Models.

    def register_bundle(
        self,
        task: str,
        folder: Path,
        *,
        key: str,
        run_id: str,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        metrics: Mapping[str, float],
    ) -> str:
        """Register a bundle as a logged model and a version of the task's registered model.

        Args:
            task: The registered model is ``skerry-<task>``.
            folder: The bundle.
            key: What the version belongs to; the same key is the same version, also after a kill half way.
            run_id: Run that the model comes from.
            tags: Tags of version and logged model (``skerry.bundle_sha256``, ...).
            params: Parameters of the logged model.
            metrics: Final figures, logged to the run and linked to the model.

        Returns:
            The version ("3").
        """
        name = model_name(task)
        with _tolerating(_EXISTS):
            self._client.create_registered_model(name)
        found = self._client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            return str(found[0].version)
        model_id = self._ensure_logged_model(task, folder, key=key, run_id=run_id, tags=tags, params=params)
        run = self._client.get_run(run_id)
        entries = [
            Metric(metric, float(value), run.info.start_time, 0, model_id=model_id, run_id=run_id)
            for metric, value in metrics.items()
        ]
        for start in range(0, len(entries), _BATCH):
            self._client.log_batch(run_id, metrics=entries[start : start + _BATCH])
        mlflow.set_tracking_uri(self._uri)
        version = self._client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run_id, model_id=model_id, tags={KEY_TAG: key, **tags}
        )
        return str(version.version)

    def set_version_tags(self, task: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        for tag, value in tags.items():
            self._client.set_model_version_tag(model_name(task), version, tag, str(value))

    def set_alias(self, task: str, alias: str, version: str) -> None:
        """Point an alias of the task's registered model at a version."""
        self._client.set_registered_model_alias(model_name(task), alias, version)

    def version_by_alias(self, task: str, alias: str) -> str:
        """The version that an alias points at; empty when there is none."""
        with _tolerating(*_ABSENT):
            return str(self._client.get_model_version_by_alias(model_name(task), alias).version)
        return ""

    def version_by_key(self, task: str, key: str) -> str:
        """The version that belongs to ``key``; empty when there is none."""
        filter_string = f"name = '{model_name(task)}' and tags.`{KEY_TAG}` = '{key}'"
        found = self._client.search_model_versions(filter_string, max_results=1)
        return str(found[0].version) if found else ""

    def _ensure_logged_model(
        self, task: str, folder: Path, *, key: str, run_id: str, tags: Mapping[str, str], params: Mapping[str, object]
    ) -> str:
        experiment = self._ensure_experiment(task)
        found = self._client.search_logged_models([experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'")
        ready = [model for model in found if str(model.status) in ("READY", "LoggedModelStatus.READY")]
        if ready:
            return str(ready[0].model_id)
        pending = [model for model in found if model not in ready]
        model = (
            pending[0]
            if pending
            else self._client.create_logged_model(
                experiment,
                name=task,
                source_run_id=run_id,
                tags={KEY_TAG: key, **tags},
                params={name: str(value)[:_VALUE_CHARACTERS] for name, value in params.items()},
                model_type="skerry-bundle",
            )
        )
        self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _ensure_experiment(self, task: str) -> str:
        name = f"skerry/{task}"
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = (self._artifacts / task).as_uri() if self._artifacts else None
            with _tolerating(_EXISTS):
                return str(self._client.create_experiment(name, artifact_location=location))
            experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id)


def _open(uri: str) -> MlflowClient:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # MLflow opens, or makes, its store at the first call
    return client


def model_name(task: str) -> str:
    """Name of the registered model of a task."""
    return f"skerry-{task}"


def open_registry(layout: ServerLayout, config: ServerConfig) -> MlflowRegistry:
    """The registry of a data directory; raises PlatformError."""
    layout.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
    uri = layout.mlflow_uri(config)
    remote = uri.startswith(("http://", "https://", "databricks"))
    return MlflowRegistry(uri, artifacts=None if remote else layout.mlflow_artifacts)


class _tolerating(suppress):  # noqa: N801  (used like a function)
    """Ignore MLflow exceptions with these codes."""

    def __init__(self, *codes: str) -> None:
        super().__init__(MlflowException)
        self._codes = codes

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return isinstance(error, MlflowException) and error.error_code in self._codes
