"""Central training with torch, on the CPU or on CUDA with mixed precision, resumable after SIGKILL.

After every epoch the network, the optimiser, the scaler and the random generators are written to one file. The order
of rows depends on seed and epoch alone, so a run that was killed and resumed ends with the same bits as one that
was not (on the CPU, with the same number of threads; on CUDA as far as its kernels are deterministic).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from skerry_contract.tensors import Array, encode_bundle
from skerry_models.evaluation import evaluate_parameters
from skerry_models.fitting import scheduled_rate, train_epoch
from skerry_models.parameters import State, from_network, load_into
from skerry_models.task import Dataset, Task, TrainingDefaults
from skerry_server.clock import now_ms
from skerry_server.errors import InvalidRequestError
from skerry_server.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from skerry_server.training.settings import TrainingSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Attributes:
        epoch: From 0.
        loss: Mean cross-entropy of the training rows before each update, nats.
        accuracy: Share of training rows right before each update.
        learning_rate: Step size.
        holdout_loss: Mean cross-entropy on the holdout after the epoch, nats.
        holdout_accuracy: Share right on the holdout after the epoch.
        holdout_macro_f1: Mean F1 of the classes on the holdout after the epoch.
        at_ms: When it ended, milliseconds since 1970.
    """

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    holdout_loss: float
    holdout_accuracy: float
    holdout_macro_f1: float
    at_ms: int


@dataclass(frozen=True)
class TrainingResult:
    """What a run ends with.

    Attributes:
        state: Parameters and buffers after the last epoch.
        history: One record per epoch.
        device: "cpu" or "cuda".
        resumed_from: Epochs that an earlier process had finished.
    """

    state: State
    history: list[EpochRecord]
    device: str
    resumed_from: int


def resolve_device(wanted: str) -> str:
    """The torch device for a setting; raises InvalidRequestError for "cuda" on a machine without it."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InvalidRequestError("settings.device", expected="a device of this machine, which has no CUDA", got=wanted)
    return "cuda" if available and wanted != "cpu" else "cpu"


def train(
    task: Task,
    settings: TrainingSettings,
    *,
    dataset: Dataset,
    holdout: Dataset,
    checkpoint: Path,
    initial: Mapping[str, Array] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train to the end, from where the checkpoint stands.

    Args:
        task: What is learned.
        settings: How; ``warm_start`` is the caller's to resolve into ``initial``.
        dataset: Raw rows to train on, at least one.
        holdout: Raw rows to judge every epoch on, at least one.
        checkpoint: File to resume from and to write after every epoch. One that is damaged or belongs to another run
            is replaced: training again from the start gives the same result.
        initial: State to start from; default: fresh weights from the seed.
        on_epoch: Called after every epoch of this process, once its checkpoint is on the disk.

    Raises:
        InvalidRequestError: Training diverged, or the machine has no CUDA.
        ParameterError: ``initial`` does not fit the task.
        ValueError: No rows.
    """
    if not len(dataset) or not len(holdout):
        raise ValueError(f"training needs rows, got {len(dataset)} to train on and {len(holdout)} to judge on")
    device = resolve_device(settings.device)
    torch.manual_seed(settings.seed)
    network = task.create_network(settings.seed)
    if initial is not None:
        load_into(network, initial)
    fingerprint = _fingerprint(task, settings, dataset, from_network(network))
    network.to(device)
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    autocast = _mixed_precision(device, settings)
    scaler = torch.amp.GradScaler("cuda") if autocast is torch.float16 else None
    history = _resume(checkpoint, fingerprint, network, optimiser, scaler)
    resumed_from = len(history)
    for epoch in range(resumed_from, settings.epochs):
        record = _run_epoch(
            task,
            settings,
            network,
            optimiser,
            dataset,
            holdout,
            epoch=epoch,
            device=device,
            autocast=autocast,
            scaler=scaler,
        )
        history.append(record)
        save_checkpoint(
            checkpoint,
            Checkpoint(
                fingerprint=fingerprint,
                epochs_done=epoch + 1,
                network=network.state_dict(),
                optimizer=optimiser.state_dict(),
                scaler=scaler.state_dict() if scaler else {},
                cpu_random=torch.get_rng_state(),
                cuda_random=torch.cuda.get_rng_state_all() if device == "cuda" else [],
                history=[asdict(entry) for entry in history],
            ),
        )
        if on_epoch is not None:
            on_epoch(record)
    return TrainingResult(state=from_network(network), history=history, device=device, resumed_from=resumed_from)


def _mixed_precision(device: str, settings: TrainingSettings) -> torch.dtype | None:
    """bfloat16 where the processor has it: float16 loses a short run's first steps to the search for a loss scale."""
    if device != "cuda" or not settings.amp:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _run_epoch(
    task: Task,
    settings: TrainingSettings,
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    dataset: Dataset,
    holdout: Dataset,
    *,
    epoch: int,
    device: str,
    autocast: torch.dtype | None,
    scaler: torch.amp.GradScaler | None,
) -> EpochRecord:
    plan = TrainingDefaults(settings.epochs, settings.batch_size, settings.learning_rate, settings.momentum)
    rate = settings.learning_rate if settings.schedule == "constant" else scheduled_rate(plan, epoch)
    try:
        result = train_epoch(
            network,
            optimiser,
            dataset,
            plan,
            seed=settings.seed,
            epoch=epoch,
            device=device,
            rate=rate,
            autocast=autocast,
            scaler=scaler,
        )
        judged = evaluate_parameters(task, from_network(network), holdout)
    except (FloatingPointError, ValueError) as error:
        raise InvalidRequestError(
            "settings.learning_rate", expected="a step size at which training converges", got=settings.learning_rate
        ) from error
    return EpochRecord(
        epoch=epoch,
        loss=result.loss,
        accuracy=result.accuracy,
        learning_rate=rate,
        holdout_loss=judged.loss,
        holdout_accuracy=judged.accuracy,
        holdout_macro_f1=judged.macro_f1,
        at_ms=now_ms(),
    )


def _resume(
    path: Path,
    fingerprint: str,
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> list[EpochRecord]:
    """Put a checkpoint into the run; returns the epochs that it has behind it, none without a usable checkpoint."""
    try:
        found = load_checkpoint(path, fingerprint=fingerprint)
    except CheckpointError as error:
        log.warning("%s; training starts again", error)
        return []
    if found is None:
        return []
    network.load_state_dict(found.network)
    optimiser.load_state_dict(found.optimizer)
    if scaler is not None and found.scaler:
        scaler.load_state_dict(found.scaler)
    torch.set_rng_state(found.cpu_random)
    if found.cuda_random:
        torch.cuda.set_rng_state_all(found.cuda_random)
    log.info("resumed after epoch %d", found.epochs_done)
    return [_record(entry) for entry in found.history]


def _record(entry: Mapping[str, float]) -> EpochRecord:
    return EpochRecord(
        epoch=int(entry["epoch"]),
        loss=entry["loss"],
        accuracy=entry["accuracy"],
        learning_rate=entry["learning_rate"],
        holdout_loss=entry["holdout_loss"],
        holdout_accuracy=entry["holdout_accuracy"],
        holdout_macro_f1=entry["holdout_macro_f1"],
        at_ms=int(entry["at_ms"]),
    )


def _fingerprint(task: Task, settings: TrainingSettings, dataset: Dataset, start: Mapping[str, Array]) -> str:
    """SHA-256 over everything that determines the result."""
    digest = hashlib.sha256(json.dumps([task.name, settings.as_dict()], sort_keys=True).encode())
    digest.update(dataset.x.tobytes())
    digest.update(dataset.y.tobytes())
    digest.update(encode_bundle(start))
    return digest.hexdigest()
