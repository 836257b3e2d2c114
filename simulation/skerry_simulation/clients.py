"""Simulated devices: production's campaign worker and ONNX trainer over the data of one of the task's clients."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from skerry_agent.errors import ArtifactError
from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import Inputs, Labels
from skerry_agent.training.worker import CampaignWorker, PauseGate
from skerry_contract.v1.release_pb2 import TrainStepSpec
from skerry_models.export import export_inference
from skerry_models.kept_step import train_step_for
from skerry_models.parameters import State
from skerry_models.task import Task, load_task

_STEP, _SPEC, _EVALUATE = "train_step.onnx", "train_step.pb", "evaluate.onnx"


@dataclass(frozen=True)
class ClientPlan:
    """What any process needs to become one of the devices; small, so that it can be sent to workers.

    Attributes:
        task: Name of the task.
        clients: Names of the clients, by partition number.
        folder: Where the exported graphs lie.
        train_step_sha256: Digest (hexadecimal) of the train step.
    """

    task: str
    clients: tuple[str, ...]
    folder: Path
    train_step_sha256: str


def prepare_clients(task: Task, state: State, count: int, folder: Path) -> ClientPlan:
    """Export what devices train with, once per simulation.

    Raises:
        ValueError: The task has fewer clients.
    """
    names = task.client_names()
    if count > len(names):
        raise ValueError(f"task {task.name} has {len(names)} clients, not {count}")
    holdout = task.source("holdout")
    step, _ = train_step_for(task, state, holdout, None)
    graphs = export_inference(task, state, holdout.x[:8])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STEP).write_bytes(step.model)
    (folder / _SPEC).write_bytes(step.spec.SerializeToString())
    (folder / _EVALUATE).write_bytes(graphs.evaluate)
    return ClientPlan(task.name, names[:count], folder, hashlib.sha256(step.model).hexdigest())


class _OneBundle:
    def __init__(self, bundle: TrainingBundle) -> None:
        self._bundle = bundle

    def open(self, train_step_sha256: str) -> TrainingBundle:
        if train_step_sha256 != self._bundle.train_step_sha256:
            raise ArtifactError("", f"train step {train_step_sha256[:12]} is not the one of this simulation")
        return self._bundle


@dataclass(frozen=True)
class _ClientSamples:
    x: Inputs
    y: Labels

    def load(self) -> tuple[Inputs, Labels]:
        return self.x, self.y


@lru_cache(maxsize=2)
def _shared_bundle(plan: ClientPlan) -> TrainingBundle:
    """One trainer per process: the graph is the same for every client."""
    spec = TrainStepSpec.FromString((plan.folder / _SPEC).read_bytes())
    trainer = OnnxTrainer((plan.folder / _STEP).read_bytes(), spec, (plan.folder / _EVALUATE).read_bytes())
    return TrainingBundle(trainer, plan.task, plan.train_step_sha256, "simulation")


@lru_cache(maxsize=64)
def create_worker(plan: ClientPlan, partition: int) -> CampaignWorker:
    """The device of a partition, as it would be in production, without its process and its link."""
    name = plan.clients[partition]
    data = load_task(plan.task).source(f"client/{name}")
    never = threading.Event()
    return CampaignWorker(
        name,
        _OneBundle(_shared_bundle(plan)),
        _ClientSamples(data.x, data.y),
        PauseGate(plan.folder / "pause", never.is_set),
    )
