"""Asks the signed metadata whether a release may be installed, again and again, without ever waiting."""

from __future__ import annotations

from skerry_agent.update.desired import Instruction
from skerry_agent.update.ports import Approval, ApprovalRequest, Approvals

#: How long an approval holds before it is asked for anew, and a refusal that may pass (seconds).
APPROVED_S = 600.0
REFUSED_S = 60.0
#: How long an answer may take before it is asked for anew (seconds).
ANSWER_S = 300.0


class Consent:
    """The questions of one visit to a state; times are monotonic seconds."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals
        self._answer: Approval | None = None
        self._heard_at = 0.0
        self._asked_at: float | None = None

    def look(self, target: Instruction, now: float) -> Approval | None:
        """The newest answer about ``target``; None while there is none."""
        answer = None if self._asked_at is None and self._answer is None else self._approvals.poll()
        if answer is not None:
            # Further ones may follow one that is not final.
            self._answer, self._heard_at, self._asked_at = answer, now, None
        if self._due(now):
            self._approvals.ask(_request(target))
            self._asked_at = now
        if self._answer is not None and self._answer.approved and now - self._heard_at > APPROVED_S + ANSWER_S:
            self._answer = None
        return self._answer

    def _due(self, now: float) -> bool:
        if self._asked_at is not None:
            return now - self._asked_at > ANSWER_S
        if self._answer is None:
            return True
        return now - self._heard_at > (APPROVED_S if self._answer.approved else REFUSED_S)


def _request(target: Instruction) -> ApprovalRequest:
    manifest = target.manifest
    if manifest is None:
        raise ValueError("a target names a release")
    # Deterministic: an envelope has no maps.
    return ApprovalRequest(manifest.task, manifest.release_id, target.state.release.SerializeToString())
