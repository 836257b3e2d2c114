"""What the updater needs of the rest of the agent. None of these calls waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skerry_agent.update.decisions import Sight
from skerry_agent.update.slots import SlotName
from skerry_contract.v1.release_pb2 import FileEntry


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is.

    Attributes:
        done: Chunks on disk.
        total: Chunks in all.
        finished: Whether every file is there (not yet verified as a whole).
        waits_for: What it waits for, for people; empty while chunks come.
    """

    done: int
    total: int
    finished: bool
    waits_for: str = ""


class Downloads(Protocol):
    """Brings the files of a manifest to this device."""

    def begin(self, entries: Sequence[FileEntry]) -> None:
        """Start, or go on with, exactly these files; files of anything else are dropped."""
        ...

    def poll(self) -> DownloadProgress:
        """Take the next steps."""
        ...

    def verify(self) -> list[str]:
        """Check every file as a whole; returns the paths of those that were wrong and are removed.

        Raises:
            OSError: The disk failed.
        """
        ...

    def path(self, sha256: bytes) -> Path:
        """Where the verified file of a digest lies."""
        ...

    def stop(self) -> None:
        """Receive nothing more; what is on disk stays."""
        ...

    def clean(self) -> None:
        """Remove every downloaded file."""
        ...


@dataclass(frozen=True)
class ProofResult:
    """Outcome of proving a slot.

    Attributes:
        proved: Whether the slot reproduced its golden outputs here.
        detail: Variant and latency, or why not.
    """

    proved: bool
    detail: str


class Prover(Protocol):
    """Runs a slot against its golden outputs in a process of its own."""

    def start(self, slot: SlotName) -> None:
        """Begin; a proof that is running is given up."""
        ...

    def poll(self) -> ProofResult | None:
        """The result, or None while it runs."""
        ...

    def stop(self) -> None:
        """Give up a running proof."""
        ...


@dataclass(frozen=True)
class ActivationResult:
    """Outcome of asking serving to answer with another slot.

    Attributes:
        activated: Whether it does.
        refused: Whether serving looked at the slot and refused it; False with ``activated`` False: serving is away.
        detail: Why not.
    """

    activated: bool
    refused: bool
    detail: str = ""


class Serving(Protocol):
    """The serving process, seen from control."""

    def sight(self) -> Sight | None:
        """What it says of itself lately; None if it does not answer."""
        ...

    def activate(self, slot: SlotName, release_id: str) -> None:
        """Ask it to answer with a slot; the outcome comes from :meth:`activation`."""
        ...

    def activation(self) -> ActivationResult | None:
        """The outcome of the last request, or None while there is none."""
        ...
