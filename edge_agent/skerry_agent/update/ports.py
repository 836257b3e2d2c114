"""What the updater needs of the rest of the agent. None of these calls waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skerry_agent.update.decisions import Sight
from skerry_agent.update.delta_work import DeltaWork
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
        note: What did not go as it should and was dealt with (a file fetched whole after its delta failed), for people.
    """

    done: int
    total: int
    finished: bool
    waits_for: str = ""
    note: str = ""


@dataclass(frozen=True)
class ApprovalRequest:
    """A release that a desired state names.

    Attributes:
        task: Its task; the signed metadata delegates each task to a role of its own.
        release_id: Which release.
        envelope: The signed envelope of its manifest, exactly as it came: the content of the TUF target.
    """

    task: str
    release_id: str
    envelope: bytes


@dataclass(frozen=True)
class Approval:
    """What the signed metadata say of a release.

    Attributes:
        approved: Whether it may be installed here now.
        final: Whether a refusal stands for this desired state; False: it may change with newer metadata or a right
            clock, ask again.
        detail: Why not, or what is waited for, for people.
        version: Number under which the release is approved; counts up per task. 0 unless approved.
    """

    approved: bool
    final: bool
    detail: str
    version: int = 0


class Approvals(Protocol):
    """Asks the signed metadata (The Update Framework) whether a release may be installed."""

    def ask(self, request: ApprovalRequest) -> None:
        """Begin; an earlier question that is open is given up."""
        ...

    def poll(self) -> Approval | None:
        """The answer, once; None while there is none."""
        ...

    def committed(self, task: str, version: int) -> None:
        """A release approved under ``version`` was committed: nothing below it is approved for ``task`` any more.

        Raises:
            OSError: That could not be written down.
        """
        ...

    def stop(self) -> None:
        """Give up an open question."""
        ...


class InstallPolicy(Protocol):
    """What the owner of the device allows of updates, and when; every answer is for now."""

    def window(self) -> str:
        """Why an update may not be begun or switched to now, for people; empty if it may."""
        ...

    def network(self, transfer_bytes: int) -> str:
        """Why so many bytes may not be downloaded over the present network, for people; empty if they may."""
        ...


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


class DeltaApplier(Protocol):
    """Makes a file by its delta, one at a time."""

    def start(self, work: DeltaWork) -> None:
        """Begin; what is running is given up.

        Raises:
            DeltaError: It cannot be begun here.
        """
        ...

    def poll(self) -> bool:
        """True, once, when the temporary file is written, checked and flushed; False while that goes on.

        An error ends the work, and what was written of the temporary file is still there.

        Raises:
            DeltaError: The delta does not lead to its file, or cannot be applied here.
            OSError: The disk failed; the work can be started again.
            RuntimeError: Nothing was started, or its end was told already.
        """
        ...

    def stop(self) -> None:
        """Give up what is running: nothing more is written. What was written is still there."""
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
