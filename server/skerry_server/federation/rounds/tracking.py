"""A campaign in MLflow: one run, a step per round, each round's model as an artifact.

MLflow is slow and not needed for the next round, so a thread of its own writes; the end of the campaign waits for it.
Everything is written under the same key, step and moment again after a kill, which stores nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.releases.artifacts import ArtifactStore

if TYPE_CHECKING:
    from skerry_server.registry.mlflow_registry import MlflowRegistry

logger = logging.getLogger(__name__)


class CampaignTracker:
    """Writes one campaign to MLflow; owns its thread, in which also MLflow's slow start happens."""

    def __init__(
        self,
        open_run: Callable[[], tuple[MlflowRegistry, str]],
        artifacts: ArtifactStore,
        scratch: Path,
    ) -> None:
        """Start opening the run.

        Args:
            open_run: Opens the registry and makes or finds the campaign's run; called once, in the thread.
            artifacts: Where the models of the rounds are.
            scratch: A private folder for files on their way to MLflow.
        """
        self._artifacts = artifacts
        self._scratch = scratch
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._opened = self._pool.submit(open_run)
        self._futures: list[Future[None]] = []

    def parameters(self, values: dict[str, Any]) -> None:
        """Log the campaign's settings."""
        self._submit(lambda registry, run_id: registry.log_params(run_id, values))

    def committed(self, record: RoundRecord) -> None:
        """Log a committed round and its model."""
        self._submit(lambda registry, run_id: self._round(registry, run_id, record))

    def finish(self, *, metrics: dict[str, float], step: int, at_ms: int, tags: dict[str, str]) -> None:
        """Log the final figures, wait for everything, and end the run.

        Raises:
            Exception: What MLflow raised first; the caller may come back with the same campaign.
        """
        self._submit(lambda registry, run_id: registry.log_metrics(run_id, metrics, step=step, at_ms=at_ms))
        self._submit(lambda registry, run_id: registry.set_tags(run_id, tags))
        self._submit(lambda registry, run_id: registry.finish_run(run_id))
        self._pool.shutdown(wait=True)
        for future in self._futures:
            future.result()

    def abandon(self) -> None:
        """Let go without a result: the run ends as failed. MLflow's own errors are logged; there is a worse one."""
        self._submit(lambda registry, run_id: registry.finish_run(run_id, failed=True))
        self._pool.shutdown(wait=True)
        for future in self._futures:
            if error := future.exception():
                logger.warning("MLflow: %s", error)

    def close(self) -> None:
        """Join the thread; does nothing after :meth:`finish` or :meth:`abandon`."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, action: Callable[[MlflowRegistry, str], None]) -> None:
        self._futures.append(self._pool.submit(lambda: action(*self._opened.result())))

    def _round(self, registry: MlflowRegistry, run_id: str, record: RoundRecord) -> None:
        metrics = {
            "accuracy": record.accuracy,
            "train_loss": record.loss,
            "seconds": record.seconds,
            "devices": float(record.accepted),
            **record.metrics,
        }
        registry.log_metrics(run_id, metrics, step=record.number, at_ms=record.committed_ms)
        self._scratch.mkdir(parents=True, exist_ok=True)
        file = self._scratch / f"round-{record.number:04d}.pb"
        file.write_bytes(self._artifacts.get_bytes(record.parameters_sha256))
        try:
            registry.log_file(run_id, file, "parameters")
        finally:
            file.unlink(missing_ok=True)
