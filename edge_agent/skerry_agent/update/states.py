"""What a device does in each state of the update machine: one class per state, one object per visit.

:meth:`Work.step` does what can be done now, without waiting, and returns the event that leads on, or None while
:attr:`Work.waits_for` says what is missing. Every effect can be repeated: a power cut at any moment only means that the
visit begins again. The journal is none of their business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from skerry_agent.config import AgentLayout
from skerry_agent.files import Disk
from skerry_agent.update.boots import forget_boots
from skerry_agent.update.consent import Consent
from skerry_agent.update.decisions import Probation
from skerry_agent.update.desired import Instruction
from skerry_agent.update.pointer_keeper import PointerKeeper
from skerry_agent.update.ports import Approvals, DownloadProgress, Downloads, InstallPolicy, Prover, Serving
from skerry_agent.update.stage import inactive_slot, stage
from skerry_agent.update.update_machine import Event, State
from skerry_agent.update.wanted import wanted
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.release_pb2 import FileEntry, ReleaseManifest

#: How often free space and the network are looked at (seconds).
LOOK_S = 5.0
#: How long a proven release waits for the signed metadata before the update goes back to *need* (seconds).
CONSENT_S = 120.0
METADATA = "waits for the signed metadata"


@dataclass(frozen=True)
class Parts:
    """What the states work with; see :class:`skerry_agent.update.updater.Updater`.

    Attributes:
        layout: Data directory.
        verifier: Trusted release keys.
        downloads: Brings files.
        prover: Proves slots.
        serving: The serving process.
        approvals: The signed metadata.
        policy: What the owner allows.
        pointer: Moves the slot pointer.
        reserve_bytes: Free space that an update leaves alone.
        disk: File system.
        monotonic: Seconds.
        plan: Which files of a target this device holds: :func:`skerry_agent.update.plan.files_to_hold`.
    """

    layout: AgentLayout
    verifier: EnvelopeVerifier
    downloads: Downloads
    prover: Prover
    serving: Serving
    approvals: Approvals
    policy: InstallPolicy
    pointer: PointerKeeper
    reserve_bytes: int
    disk: Disk
    monotonic: Callable[[], float]
    plan: Callable[[Instruction], Sequence[FileEntry]]

    def stop(self) -> None:
        """Let go of everything that runs."""
        self.downloads.stop()
        self.prover.stop()
        self.approvals.stop()


@dataclass(frozen=True)
class Outcome:
    """How a visit ends.

    Attributes:
        event: What happened.
        detail: Why, for people.
        counts: Whether it is a failure that the artifact is to blame for.
        approved: Version under which the release was approved; None if that was not asked.
    """

    event: Event
    detail: str = ""
    counts: bool = False
    approved: int | None = None


class Work:
    """One visit to a state.

    Attributes:
        waits_for: What is missing, for people.
        progress: Of the download; None in states that have none.
        must_finish: Whether there is no way back any more: no deadline ends this visit.
    """

    def __init__(self, parts: Parts, *, after_restart: bool = False) -> None:
        """``after_restart``: an earlier process was in this state, and a power cut may have ended it."""
        self.parts = parts
        self.after_restart = after_restart
        self.waits_for = ""
        self.progress: DownloadProgress | None = None
        self.must_finish = False

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """Do what can be done now.

        Args:
            target: What is worked on; may come under the name of another rollout from one step to the next.
            approved: Version under which it was approved; 0 before that is known.

        Raises:
            OSError: The disk failed; the step can be repeated.
            DeviceError: This machine cannot do it now; the step can be repeated.
        """
        raise NotImplementedError


class Need(Work):
    """Waits for approval, a maintenance window, a network that may be used, and free space: all at once."""

    def __init__(self, parts: Parts, *, after_restart: bool = False) -> None:
        super().__init__(parts, after_restart=after_restart)
        self._consent = Consent(parts.approvals)
        self._looked_at = float("-inf")
        self._obstacles: list[str] = []

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        now = self.parts.monotonic()
        approval = self._consent.look(target, now)
        if approval is not None and not approval.approved and approval.final:
            return Outcome(Event.ROLL_BACK, f"not approved: {approval.detail}"[:300])
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._obstacles = self._look(self.parts.plan(target))
        if approval is None:
            waits = [METADATA]
        else:
            waits = [] if approval.approved else [f"{METADATA}: {approval.detail}"[:300]]
        waits += [text for text in (self.parts.policy.window(), *self._obstacles) if text]
        self.waits_for = "; ".join(waits)
        return None if waits else Outcome(Event.ALLOWED)

    def _look(self, entries: Sequence[FileEntry]) -> list[str]:
        needed = wanted(self.parts.layout, entries, self.parts.verifier, downloads=downloads_folder(self.parts.layout))
        free = self.parts.disk.free_bytes(self.parts.layout.update)
        space = ""
        if needed.space and needed.space + self.parts.reserve_bytes > free:
            reserve = self.parts.reserve_bytes
            space = f"waits for free space: {needed.space} bytes to write and {reserve} in reserve, {free} free"
        return [self.parts.policy.network(needed.transfer), space]


class Download(Work):
    """Brings the files."""

    def __init__(self, parts: Parts, *, after_restart: bool = False) -> None:
        super().__init__(parts, after_restart=after_restart)
        self._begun = False
        self._looked_at = parts.monotonic()

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        downloads, entries = self.parts.downloads, self.parts.plan(target)
        if not self._begun:
            downloads.begin(entries)
            self._begun = True
        self.progress = downloads.poll()
        self.waits_for = self.progress.waits_for
        if self.progress.finished:
            downloads.stop()
            return Outcome(Event.DOWNLOADED, self.progress.note)
        if self.parts.monotonic() - self._looked_at < LOOK_S:
            return None
        self._looked_at = self.parts.monotonic()
        left = wanted(self.parts.layout, entries, self.parts.verifier, downloads=downloads_folder(self.parts.layout))
        obstacle = self.parts.policy.network(left.transfer)
        return Outcome(Event.HOLD, obstacle) if obstacle else None


class Verify(Work):
    """Hashes every file as a whole."""

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        downloads = self.parts.downloads
        downloads.begin(self.parts.plan(target))
        wrong = downloads.verify()
        downloads.stop()
        if wrong:
            detail = f"not the file of the manifest: {', '.join(wrong)}"[:300]
            # What a power cut took is not the fault of the artifact.
            return Outcome(Event.RETRY, detail, counts=not self.after_restart)
        return Outcome(Event.VERIFIED)


class Stage(Work):
    """Fills the slot that does not answer."""

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        entries, path = self.parts.plan(target), self.parts.downloads.path
        gone = [entry.path for entry in entries if not path(entry.sha256).exists()]
        if gone:
            return Outcome(Event.RETRY, f"downloaded files are gone: {', '.join(gone)}"[:300])
        slot = stage(self.parts.layout, target.state.release, entries, path, self.parts.disk)
        return Outcome(Event.STAGED, f"slot {slot}")


class Prove(Work):
    """Runs the golden outputs; then asks once more whether the release may be switched to."""

    def __init__(self, parts: Parts, *, after_restart: bool = False) -> None:
        super().__init__(parts, after_restart=after_restart)
        self._consent = Consent(parts.approvals)
        self._begun = False
        self._proved_at: float | None = None
        self._detail = ""

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        now = self.parts.monotonic()
        if self._proved_at is None:
            if not self._begun:
                self.parts.prover.start(inactive_slot(self.parts.pointer.read()))
                self._begun = True
            result = self.parts.prover.poll()
            if result is None:
                return None
            if not result.proved:
                return Outcome(Event.RETRY, f"not proved: {result.detail}"[:300], counts=True)
            self._proved_at, self._detail = now, result.detail
        return self._ask(target, now, now - self._proved_at)

    def _ask(self, target: Instruction, now: float, waited_s: float) -> Outcome | None:
        approval = self._consent.look(target, now)
        if approval is None:
            self.waits_for = METADATA
            return Outcome(Event.HOLD, f"{METADATA} did not answer") if waited_s > CONSENT_S else None
        if not approval.approved:
            event = Event.ROLL_BACK if approval.final else Event.HOLD
            return Outcome(event, f"not approved any more: {approval.detail}"[:300])
        if window := self.parts.policy.window():
            return Outcome(Event.HOLD, window)
        forget_boots(self.parts.layout, self.parts.disk)
        return Outcome(Event.PROVED, self._detail, approved=approval.version)


class Activate(Work):
    """Moves the slot pointer, not committed, and brings serving to answer with it."""

    def __init__(self, parts: Parts, *, after_restart: bool = False) -> None:
        super().__init__(parts, after_restart=after_restart)
        self._begun = False

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        pointer = self.parts.pointer.switch(target.release_id)
        if not self._begun:
            self.parts.serving.activate(pointer.slot, pointer.release_id)
            self._begun = True
        result = self.parts.serving.activation()
        if result is None:
            return None
        self._begun = False
        if result.activated:
            return Outcome(Event.ACTIVATED)
        if result.refused:
            return Outcome(Event.ROLL_BACK, f"serving refused it: {result.detail}"[:300], counts=True)
        self.waits_for = f"waits for serving: {result.detail}"
        return None


class Watch(Work):
    """Judges the release on probation, and commits it.

    Once the pointer is committed there is no way back: what is left is to raise the floor of the signed metadata, which
    may have to wait for the disk.
    """

    def __init__(self, parts: Parts, *, after_restart: bool = False) -> None:
        super().__init__(parts, after_restart=after_restart)
        self._probation: Probation | None = None
        self._verdict = "found committed after a restart"

    def step(self, target: Instruction, approved: int) -> Outcome | None:
        """See :class:`Work`."""
        parts, now = self.parts, self.parts.monotonic()
        pointer = parts.pointer.read()
        if pointer is None or pointer.release_id != target.release_id:
            return Outcome(Event.ROLL_BACK, "the slot pointer names another release")
        if not pointer.committed:
            if self._probation is None:
                self._probation = Probation(target.release_id, started=now, last_seen=now)
            event, why = self._probation.judge(parts.serving.sight(), now, target.state.probation_ms / 1000)
            if event is None:
                self.waits_for = why
                return None
            if event is not Event.HEALTHY:
                return Outcome(event, why, counts=True)
            self._verdict = why
            parts.pointer.commit(target.release_id)
        self.must_finish = True
        if approved:
            parts.approvals.committed(_manifest(target).task, approved)
        return Outcome(Event.HEALTHY, self._verdict)


WORK: dict[State, type[Work]] = {
    State.NEED: Need,
    State.DOWNLOADING: Download,
    State.VERIFYING: Verify,
    State.STAGING: Stage,
    State.PROVING: Prove,
    State.ACTIVATING: Activate,
    State.PROBATION: Watch,
}


def downloads_folder(layout: AgentLayout) -> Path:
    """Where files on their way lie."""
    return layout.update / "downloads"


def _manifest(target: Instruction) -> ReleaseManifest:
    if target.manifest is None:
        raise ValueError("a target names a release")
    return target.manifest
