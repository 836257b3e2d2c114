"""Drives the update machine: reads, decides with the pure modules, writes the journal, acts.

Order that makes a power cut harmless at every moment:

* the journal is written before the effects of a state begin; every effect can be repeated;
* the slot pointer becomes ``committed`` before the journal says so, and goes back before the journal says so: a restart
  in *probation* reads the pointer to see whether the end was reached already;
* in a settled state the pointer is always committed; one that is not is put back.

One thread calls everything; nothing here waits, and a full disk is a state to be reported, not an exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk, remove_leftovers
from skerry_agent.policy.reporting import WindowPolicy
from skerry_agent.update.decisions import Probation, after_failure, take_up
from skerry_agent.update.desired import Instruction, RefusedError, StaleError, accept, open_instruction
from skerry_agent.update.download import FULL
from skerry_agent.update.journal import Journal, count_failure, read_journal, write_journal
from skerry_agent.update.pointer_keeper import PointerKeeper
from skerry_agent.update.ports import DownloadProgress, Downloads, Prover, Serving
from skerry_agent.update.snapshot import UpdateSnapshot
from skerry_agent.update.stage import inactive_slot, stage
from skerry_agent.update.update_machine import DEADLINES_S, RESUMES, SETTLED, SWITCHED, Event, State, advance
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.device_pb2 import ReportingPolicy
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_contract.v1.telemetry_pb2 import UpdateEvent

log = logging.getLogger(__name__)
#: Pause between two looks while something is going on, while nothing is, and after the disk failed (seconds).
BUSY_S = 0.1
CALM_S = 1.0
TROUBLE_S = 5.0


def unix_ms() -> int:
    """Milliseconds since 1970, by a clock that may be wrong."""
    return time.time_ns() // 1_000_000


class Updater:
    """The update machine of one device."""

    def __init__(
        self,
        layout: AgentLayout,
        *,
        device_id: str,
        verifier: EnvelopeVerifier,
        downloads: Downloads,
        prover: Prover,
        serving: Serving,
        record: Callable[[UpdateEvent], None],
        disk: Disk = DISK,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = unix_ms,
    ) -> None:
        """Read the journal; what a power cut left is repaired by the first :meth:`step`.

        Args:
            layout: Data directory; this is the only writer of its ``slots`` and ``update``.
            device_id: This device.
            verifier: Trusted release keys.
            downloads: Brings files.
            prover: Proves slots.
            serving: The serving process.
            record: Takes every transition, to be told to the control plane; must not raise.
            disk: File system.
            monotonic: Seconds, for deadlines.
            wall_ms: Wall clock (Unix ms).
        """
        self._layout = layout
        self._device_id = device_id
        self._verifier = verifier
        self._downloads = downloads
        self._prover = prover
        self._serving = serving
        self._record = record
        self._disk = disk
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._pointer = PointerKeeper(layout, verifier=verifier, serving=serving, disk=disk, monotonic=monotonic)
        self._journal = read_journal(layout, disk)
        self._target = self._reopen(self._journal.target)
        self._desired = self._reopen(self._journal.desired)
        self._resumed = False
        self._unwritten: bytes | None = None
        self._refusal = ""
        self._waits_for = ""
        self._progress = DownloadProgress(0, 0, False)
        self._entered = monotonic()
        self._begun = False
        self._probation: Probation | None = None

    @property
    def snapshot(self) -> UpdateSnapshot:
        """The present state."""
        target = self._target
        settled = self._journal.state in SETTLED
        progress = (self._journal.detail, self._waits_for) if settled else (self._waits_for or self._journal.detail,)
        details = [self._refusal, *progress]
        reporting = ReportingPolicy() if self._desired is None else self._desired.state.reporting
        return UpdateSnapshot(
            state=self._journal.state,
            detail="; ".join(text for text in details if text),
            desired_sequence=self._journal.sequence,
            target_release="" if target is None else target.release_id,
            rollout_id="" if target is None else target.state.rollout_id,
            progress=self._progress,
            health_period_ms=reporting.health_period_ms,
            windows=WindowPolicy(reporting.window_requests, reporting.window_ms),
        )

    def offer(self, payload: bytes) -> None:
        """Take in a desired state from the wire; a refused one changes nothing and is told in the snapshot."""
        journal = self._journal
        self._unwritten = None
        try:
            instruction = accept(
                payload,
                self._verifier,
                device_id=self._device_id,
                sequence=journal.sequence,
                now_ms=self._wall_ms(),
                signed_ms=journal.signed_ms,
            )
        except StaleError:
            return
        except RefusedError as error:
            log.warning("desired state refused: %s", error.reason)
            self._refusal = f"refused: {error.reason}"[:500]
            return
        state = instruction.state
        try:
            self._write(
                replace(
                    journal,
                    sequence=state.sequence,
                    desired=instruction.envelope,
                    signed_ms=max(journal.signed_ms, state.issued_unix_ms),
                )
            )
        except OSError as error:
            log.error("desired state %d cannot be written down: %s", state.sequence, error)
            self._unwritten = payload
            return
        self._desired = instruction
        self._refusal = ""
        log.info("desired state %d accepted: release %s", state.sequence, instruction.release_id or "unchanged")

    def step(self) -> float:
        """Do what can be done now.

        Returns:
            Seconds after which to call again.
        """
        if self._unwritten is not None:
            self.offer(self._unwritten)
        before = self._journal.state
        try:
            if not self._resumed:
                self._resume()
                self._resumed = True
            self._take_up_newer()
            if self._journal.state in SETTLED:
                self._waits_for = self._pointer.align()
                return CALM_S
            self._work(self._journal.state)
        except OSError as error:
            what = "waits for free space" if error.errno in FULL else "the disk fails"
            waits_for = f"{what}: {error.strerror} ({error.filename or 'data directory'})"
            if waits_for != self._waits_for:
                log.error("update in %s %s", self._journal.state.value, waits_for)
            self._waits_for = waits_for
            return TROUBLE_S
        return 0.0 if self._journal.state is not before else BUSY_S

    def stop(self) -> None:
        """Let go of what is running; the next process goes on."""
        self._downloads.stop()
        self._prover.stop()

    # After a restart.

    def _reopen(self, envelope: bytes) -> Instruction | None:
        if not envelope:
            return None
        try:
            return open_instruction(envelope, self._verifier, self._device_id)
        except RefusedError as error:
            log.error("a desired state of the journal is not trusted any more: %s", error.reason)
            return None

    def _resume(self) -> None:
        for folder in (self._layout.update, self._layout.slots):
            self._disk.make_folder(folder)
            remove_leftovers(folder, self._disk)
        journal = self._journal
        pointer = self._pointer.read()
        if journal.state in SETTLED:
            self._pointer.restore()
            self._clean()
            return
        if self._target is None:
            self._fail(Event.ROLL_BACK, "the release of the journal cannot be read", counts=False)
            return
        if journal.state is State.PROBATION:
            if pointer is None or pointer.release_id != self._target.release_id:
                self._fail(Event.ROLL_BACK, "found rolled back after a restart", counts=True)
                return
            if pointer.committed:
                self._transition(Event.HEALTHY, "found committed after a restart")
                return
        limit = RESUMES.get(journal.state)
        if limit is not None and journal.resumes >= limit:
            self._fail(Event.ROLL_BACK, f"the process died {limit} times in {journal.state.value}", counts=True)
            return
        self._write(replace(journal, resumes=journal.resumes + 1))
        log.info("update of %s goes on in %s", self._target.release_id, journal.state.value)

    # Newer instructions.

    def _take_up_newer(self) -> None:
        journal, desired = self._journal, self._desired
        if desired is None or journal.handled >= journal.sequence:
            return
        if journal.state in SETTLED:
            event = take_up(desired, journal, self._pointer.read())
            handled = replace(journal, handled=journal.sequence)
            if event is None:
                self._write(handled)
                return
            detail = {Event.CONFIRM: "answers already", Event.FORBID: "quarantined: its digest failed too often"}
            self._transition(
                event, detail.get(event, ""), base=replace(handled, target=desired.envelope), target=desired
            )
        elif self._target is not None and desired.digest == self._target.digest:
            # The same release for another rollout: the work goes on under its name.
            self._write(replace(journal, handled=journal.sequence, target=desired.envelope))
            self._target = desired
        elif journal.state not in SWITCHED:
            self._prover.stop()
            self._downloads.stop()
            self._transition(Event.SUPERSEDE, f"desired state {journal.sequence} asks for something else")

    # States.

    def _work(self, state: State) -> None:
        if state in SETTLED:
            return
        deadline_s = DEADLINES_S[state] + (self._probation_s() if state is State.PROBATION else 0.0)
        if self._monotonic() - self._entered > deadline_s:
            waited = self._waits_for or "no end in sight"
            self._fail(Event.ROLL_BACK, f"{state.value} took more than {deadline_s:.0f} s: {waited}", counts=False)
            return
        handlers = {
            State.DOWNLOADING: self._download,
            State.VERIFYING: self._verify,
            State.STAGING: self._stage,
            State.PROVING: self._prove,
            State.ACTIVATING: self._activate,
            State.PROBATION: self._watch,
        }
        handlers[state]()

    def _download(self) -> None:
        if not self._begun:
            self._downloads.begin(self._manifest().files)
            self._begun = True
        self._progress = self._downloads.poll()
        self._waits_for = self._progress.waits_for
        if self._progress.finished:
            self._downloads.stop()
            self._transition(Event.DOWNLOADED)

    def _verify(self) -> None:
        self._downloads.begin(self._manifest().files)
        wrong = self._downloads.verify()
        self._downloads.stop()
        if wrong:
            self._fail(Event.RETRY, f"not the file of the manifest: {', '.join(wrong)}"[:300], counts=True)
        else:
            self._transition(Event.VERIFIED)

    def _stage(self) -> None:
        manifest = self._manifest()
        gone = [entry.path for entry in manifest.files if not self._downloads.path(entry.sha256).exists()]
        if gone:
            self._fail(Event.RETRY, f"downloaded files are gone: {', '.join(gone)}"[:300], counts=False)
            return
        release = self._require_target().state.release
        slot = stage(self._layout, release, manifest, self._downloads.path, self._disk)
        self._transition(Event.STAGED, f"slot {slot}")

    def _prove(self) -> None:
        if not self._begun:
            self._prover.start(inactive_slot(self._pointer.read()))
            self._begun = True
        result = self._prover.poll()
        if result is None:
            return
        if result.proved:
            self._transition(Event.PROVED, result.detail)
        else:
            self._fail(Event.RETRY, f"not proved: {result.detail}"[:300], counts=True)

    def _activate(self) -> None:
        pointer = self._pointer.switch(self._require_target().release_id)
        if not self._begun:
            self._serving.activate(pointer.slot, pointer.release_id)
            self._begun = True
        result = self._serving.activation()
        if result is None:
            return
        self._begun = False
        if result.activated:
            self._transition(Event.ACTIVATED)
        elif result.refused:
            self._fail(Event.ROLL_BACK, f"serving refused it: {result.detail}"[:300], counts=True)
        else:
            self._waits_for = f"waits for serving: {result.detail}"

    def _watch(self) -> None:
        release_id = self._require_target().release_id
        now = self._monotonic()
        if self._probation is None:
            self._probation = Probation(release_id, started=now, last_seen=now)
        event, why = self._probation.judge(self._serving.sight(), now, self._probation_s())
        if event is None:
            self._waits_for = why
        elif event is Event.HEALTHY and self._pointer.commit(release_id):
            self._transition(Event.HEALTHY, why)
        elif event is Event.HEALTHY:
            self._fail(Event.ROLL_BACK, "the slot pointer names another release", counts=False)
        else:
            self._fail(event, why, counts=True)

    # Shared.

    def _fail(self, event: Event, detail: str, *, counts: bool) -> None:
        """End an attempt: put the pointer back if it moved, count the failure, go where ``event`` leads."""
        journal, digest = self._journal, "" if self._target is None else self._target.digest
        self._prover.stop()
        self._downloads.stop()
        base = journal
        if counts and digest:
            event = after_failure(journal, digest, otherwise=event)
            base = count_failure(journal, digest)
        if journal.state in SWITCHED:
            self._pointer.restore()
        self._transition(event, detail, base=base)

    def _transition(
        self, event: Event, detail: str = "", *, base: Journal | None = None, target: Instruction | None = None
    ) -> None:
        """Write the next state down, then be in it; an OSError leaves everything as it was."""
        before = self._journal
        after = replace(base or before, state=advance(before.state, event), detail=detail, resumes=0)
        self._write(after)
        self._target = target or self._target
        self._entered = self._monotonic()
        self._begun = False
        self._probation = None
        self._waits_for = ""
        log.info("update %s: %s -> %s %s", event.value, before.state.value, after.state.value, detail)
        self._record(
            UpdateEvent(
                release_id="" if self._target is None else self._target.release_id,
                rollout_id="" if self._target is None else self._target.state.rollout_id,
                from_state=before.state.value,
                event=event.value,
                to_state=after.state.value,
                detail=detail,
                at_unix_ms=self._wall_ms(),
            )
        )
        if after.state in SETTLED and event is not Event.SUPERSEDE:
            self._clean()

    def _write(self, journal: Journal) -> None:
        write_journal(self._layout, journal, self._disk)
        self._journal = journal

    def _clean(self) -> None:
        try:
            self._downloads.clean()
        except OSError as error:
            log.warning("downloads cannot be removed: %s", error)

    def _require_target(self) -> Instruction:
        if self._target is None:
            raise RuntimeError(f"the state {self._journal.state.value} has a target")
        return self._target

    def _manifest(self) -> ReleaseManifest:
        manifest = self._require_target().manifest
        if manifest is None:
            raise RuntimeError("a target names a release")
        return manifest

    def _probation_s(self) -> float:
        return 0.0 if self._target is None else self._target.state.probation_ms / 1000
