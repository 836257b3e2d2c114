"""Checkpoints of a training run: one file, whole or absent, loaded without Python pickles.

The file is ``torch.save`` of plain containers and tensors, read with ``weights_only=True``: a foreign file can fail to
load, it cannot run code. A fingerprint of everything that determines the run guards against resuming another one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skerry_server.files import write_atomically

#: Raised when the meaning of the file changes.
VERSION = 1


class CheckpointError(Exception):
    """A checkpoint that cannot be resumed from.

    Attributes:
        path: The file.
        reason: Why not.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"checkpoint {path.name}: {reason}")


@dataclass(frozen=True)
class Checkpoint:
    """A run between two epochs.

    Attributes:
        fingerprint: Hexadecimal digest of task, settings, data and start.
        epochs_done: Number of finished epochs.
        network: ``state_dict`` of the network.
        optimizer: ``state_dict`` of the optimiser.
        scaler: ``state_dict`` of the gradient scaler; empty without mixed precision.
        cpu_random: State of torch's CPU generator, uint8 [n].
        cuda_random: States of the CUDA generators, one per device.
        history: One dictionary per finished epoch.
    """

    fingerprint: str
    epochs_done: int
    network: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    cpu_random: torch.Tensor
    cuda_random: list[torch.Tensor]
    history: list[dict[str, float]]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file atomically; raises OSError with the old file in place."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **vars(checkpoint)}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, *, fingerprint: str) -> Checkpoint | None:
    """Read the file; None if there is none.

    Raises:
        CheckpointError: Unreadable, of another version, or of another run.
    """
    if not path.exists():
        return None
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever zipfile, its unpickler and the disk do
        raise CheckpointError(path, f"it does not load ({type(error).__name__})") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise CheckpointError(path, f"it is not of version {VERSION}")
    try:
        checkpoint = Checkpoint(**{name: value for name, value in document.items() if name != "version"})
    except TypeError as error:
        raise CheckpointError(path, "fields are missing or unknown") from error
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(path, "it belongs to a run with other settings, data or start")
    return checkpoint
