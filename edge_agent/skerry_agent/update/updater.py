"""Drives the update machine: reads the journal, lets the present state work, writes the journal, tells.

Order that makes a power cut harmless at every moment:

* the journal is written before the effects of a state begin; every effect can be repeated (:mod:`.states`);
* the slot pointer becomes ``committed`` before the floor of the signed metadata rises, and that before the journal says
  so; it goes back before the journal says so. A restart in *probation* reads the pointer to see whether the end was
  reached already; the floor never rises above a release that could still go back;
* in a settled state the pointer is always committed; one that is not is put back.

One thread calls everything; nothing here waits, and a full disk is a state to be reported, not an exception.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk, remove_leftovers
from skerry_agent.policy.reporting import WindowPolicy
from skerry_agent.update.boots import read_boots
from skerry_agent.update.decisions import after_failure, disk_trouble, take_up
from skerry_agent.update.desired import Instruction, RefusedError, StaleError, accept, open_instruction
from skerry_agent.update.journal import Journal, NewerJournalError, count_failure, read_journal, write_journal
from skerry_agent.update.plan import files_to_hold
from skerry_agent.update.pointer_keeper import PointerKeeper
from skerry_agent.update.ports import Approvals, DownloadProgress, Downloads, InstallPolicy, Prover, Serving
from skerry_agent.update.resume import after_restart
from skerry_agent.update.snapshot import UpdateSnapshot
from skerry_agent.update.states import WORK, Outcome, Parts, Work
from skerry_agent.update.update_machine import DEADLINES_S, DISK_DEADLINE_S, SETTLED, SWITCHED, Event, State, advance
from skerry_contract.signing import EnvelopeVerifier
from skerry_contract.v1.device_pb2 import DesiredState, ReportingPolicy
from skerry_contract.v1.telemetry_pb2 import UpdateEvent

log = logging.getLogger(__name__)
#: Pause between two looks while something is going on, while nothing is, and after the disk failed (seconds).
BUSY_S = 0.1
CALM_S = 1.0
TROUBLE_S = 5.0
#: Events after which an attempt is over and what was begun is let go of.
_ENDS = frozenset({Event.RETRY, Event.REJECT, Event.ROLL_BACK})
_DETAILS = {Event.CONFIRM: "answers already", Event.FORBID: "quarantined: its digest failed too often"}


def unix_ms() -> int:
    """Milliseconds since 1970, by a clock that may be wrong."""
    return round(time.time() * 1000)


class Updater:
    """See the module; owned by the control loop."""

    def __init__(
        self,
        layout: AgentLayout,
        *,
        device_id: str,
        verifier: EnvelopeVerifier,
        downloads: Downloads,
        prover: Prover,
        serving: Serving,
        approvals: Approvals,
        policy: InstallPolicy,
        record: Callable[[UpdateEvent], None],
        reserve_bytes: int = 0,
        disk: Disk = DISK,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = unix_ms,
        on_accepted: Callable[[DesiredState], None] = lambda state: None,
        slot_verifier: EnvelopeVerifier | None = None,
        keep_own: Callable[[], bool] = lambda: True,
    ) -> None:
        """Read the journal; what a power cut left is repaired by the first :meth:`step`.

        Args:
            layout: Data directory; this is the only writer of its ``slots`` and ``update``.
            device_id: This device.
            verifier: Keys that may sign a new desired state and the release in it.
            downloads: Brings files.
            prover: Proves slots.
            serving: The serving process.
            approvals: Says what the signed metadata allow.
            policy: Says what the owner allows.
            record: Takes every transition, to be told to the control plane; must not raise.
            reserve_bytes: Free space that an update leaves alone.
            disk: File system.
            monotonic: Seconds, for deadlines.
            wall_ms: Wall clock (Unix ms).
            on_accepted: Takes every desired state that was accepted and written down; must not raise.
            slot_verifier: Keys of what this device accepted before, past ones included: slots and the journal;
                ``verifier`` by default.
            keep_own: Whether float32 is downloaded besides preferred forms, for models that are made on the device.
        """
        self._layout = layout
        self._device_id = device_id
        self._verifier = verifier
        self._slot_verifier = slot_verifier or verifier
        self._record = record
        self._disk = disk
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._on_accepted = on_accepted
        self._pointer = PointerKeeper(
            layout, verifier=self._slot_verifier, serving=serving, disk=disk, monotonic=monotonic
        )
        self._parts = Parts(
            layout=layout,
            verifier=self._slot_verifier,
            downloads=downloads,
            prover=prover,
            serving=serving,
            approvals=approvals,
            policy=policy,
            pointer=self._pointer,
            reserve_bytes=reserve_bytes,
            disk=disk,
            monotonic=monotonic,
            plan=lambda target: files_to_hold(target, self._journal.failures, keep_own=keep_own()),
        )
        self._opened = False
        self._resumed = False
        self._newer_journal = ""
        self._journal = Journal()
        self._target: Instruction | None = None
        self._desired: Instruction | None = None
        self._unwritten: bytes | None = None
        self._refusal = ""
        self._waits_for = ""
        self._progress = DownloadProgress(0, 0, False)
        self._work: Work | None = None
        self._decided: Outcome | None = None
        self._stepped = monotonic()
        self._spent_s = 0.0
        self._troubled_s = 0.0
        with contextlib.suppress(OSError):
            # A disk that fails is told by the first step.
            self._open()

    @property
    def snapshot(self) -> UpdateSnapshot:
        """The present state."""
        target = self._target
        settled = self._journal.state in SETTLED
        progress = (self._journal.detail, self._waits_for) if settled else (self._waits_for or self._journal.detail,)
        details = [self._newer_journal, self._refusal, *progress]
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

    @property
    def busy(self) -> bool:
        """Whether an update is going on, or a newer instruction waits to be taken up."""
        return self._journal.state not in SETTLED or self._journal.handled < self._journal.sequence

    def offer(self, payload: bytes) -> None:
        """Take in a desired state from the wire; a refused one changes nothing and is told in the snapshot."""
        self._unwritten = None
        try:
            self._open()
        except OSError as error:
            log.error("the update journal cannot be read: %s", error)
            self._unwritten = payload
            return
        if self._newer_journal:
            return
        journal = self._journal
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
        self._on_accepted(state)
        log.info("desired state %d accepted: release %s", state.sequence, instruction.release_id or "unchanged")

    def step(self) -> float:
        """Do what can be done now.

        Returns:
            Seconds after which to call again.
        """
        if self._unwritten is not None:
            self.offer(self._unwritten)
        before = self._journal.state
        now = self._monotonic()
        passed_s, self._stepped = now - self._stepped, now
        try:
            self._open()
            if not self._newer_journal:
                self._resume()
                self._take_up_newer()
            if self._newer_journal or self._journal.state in SETTLED:
                self._waits_for = self._pointer.align()
                return CALM_S
            self._turn(passed_s)
        except (OSError, DeviceError) as error:
            waits_for = disk_trouble(error) if isinstance(error, OSError) else str(error)
            if waits_for != self._waits_for:
                log.error("update in %s %s", self._journal.state.value, waits_for)
            self._waits_for = waits_for
            return TROUBLE_S
        return 0.0 if self._journal.state is not before else BUSY_S

    def stop(self) -> None:
        """Let go of what is running; the next process goes on."""
        self._parts.stop()

    # After a restart.

    def _open(self) -> None:
        if self._opened:
            return
        try:
            self._journal = read_journal(self._layout, self._disk)
        except NewerJournalError as error:
            log.error("%s", error)
            self._newer_journal = str(error)
        self._target = self._reopen(self._journal.target)
        self._desired = self._reopen(self._journal.desired)
        self._opened = True

    def _reopen(self, envelope: bytes) -> Instruction | None:
        if not envelope:
            return None
        try:
            return open_instruction(envelope, self._slot_verifier, self._device_id)
        except RefusedError as error:
            log.error("a desired state of the journal is not trusted any more: %s", error.reason)
            return None

    def _resume(self) -> None:
        if self._resumed:
            return
        for folder in (self._layout.update, self._layout.slots):
            self._disk.make_folder(folder)
            remove_leftovers(folder, self._disk)
        journal = self._journal
        if journal.state in SETTLED:
            self._pointer.restore()
            self._clean()
        else:
            end = after_restart(journal, self._target, self._pointer.read(), read_boots(self._layout))
            if end is not None:
                self._end(end)
            else:
                self._write(replace(journal, resumes=journal.resumes + 1))
                log.info("the update goes on in %s", journal.state.value)
        self._resumed = True

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
            base = replace(handled, target=desired.envelope, approved=0)
            self._transition(event, _DETAILS.get(event, ""), base=base, target=desired)
        elif self._target is not None and desired.names_same(self._target):
            # The same release for another rollout: the work goes on under its name.
            self._write(replace(journal, handled=journal.sequence, target=desired.envelope))
            self._target = desired
        elif journal.state not in SWITCHED:
            self._parts.stop()
            self._transition(Event.SUPERSEDE, f"desired state {journal.sequence} asks for something else")

    # Work.

    def _turn(self, passed_s: float) -> None:
        """Let the present state work; its deadline ends it if that leads nowhere."""
        state = self._journal.state
        if self._target is None:
            raise RuntimeError(f"the state {state.value} has a target")
        if self._work is None:
            self._work = WORK[state](self._parts, after_restart=self._journal.resumes > 0)
        work, outcome = self._work, self._decided
        trouble: OSError | DeviceError | None = None
        if outcome is None:
            try:
                outcome = work.step(self._target, self._journal.approved)
            except (OSError, DeviceError) as error:
                trouble = error
                self._troubled_s += passed_s
            else:
                self._spent_s += passed_s
                self._waits_for = work.waits_for
            self._progress = work.progress or self._progress
            if outcome is None and not work.must_finish:
                outcome = self._overdue(state)
        if outcome is not None:
            # What was decided after the switch stands, however long the disk takes to write it down.
            self._decided = outcome if state in SWITCHED else None
            self._end(outcome)
        elif trouble is not None:
            raise trouble

    def _overdue(self, state: State) -> Outcome | None:
        deadline_s = DEADLINES_S[state]
        if state is State.PROBATION and self._target is not None:
            deadline_s += self._target.state.probation_ms / 1000
        for spent_s, limit_s in ((self._spent_s, deadline_s), (self._troubled_s, DISK_DEADLINE_S)):
            if spent_s > limit_s:
                waited = self._waits_for or "no end in sight"
                return Outcome(Event.ROLL_BACK, f"{state.value} took more than {limit_s:.0f} s: {waited}"[:300])
        return None

    def _end(self, outcome: Outcome) -> None:
        """Go where ``outcome`` leads; before a failure, put the pointer back if it moved, and count it."""
        journal, event = self._journal, outcome.event
        base = journal if outcome.approved is None else replace(journal, approved=outcome.approved)
        if event in _ENDS or event is Event.HOLD:
            self._parts.stop()
        if event in _ENDS:
            digest = "" if self._target is None else self._target.digest
            if outcome.counts and digest:
                event = after_failure(journal, digest, otherwise=event)
                base = count_failure(base, digest)
            if journal.state in SWITCHED:
                self._pointer.restore()
        self._transition(event, outcome.detail, base=base)

    def _transition(
        self, event: Event, detail: str = "", *, base: Journal | None = None, target: Instruction | None = None
    ) -> None:
        """Write the next state down, then be in it; an OSError leaves everything as it was."""
        before = self._journal
        after = replace(base or before, state=advance(before.state, event), detail=detail, resumes=0)
        self._write(after)
        self._target = target or self._target
        self._work = self._decided = None
        self._spent_s = self._troubled_s = 0.0
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
            self._parts.downloads.clean()
        except OSError as error:
            log.warning("downloads cannot be removed: %s", error)
