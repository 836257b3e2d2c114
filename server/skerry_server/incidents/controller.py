"""Takes incidents from their detection to their cure, one transition and one transaction at a time.

Nothing is kept in memory. A transition and what it sets in motion (campaign, release, rollout) are rows of the same
transaction, so a controller that is killed anywhere leaves either both or neither, and the next one goes on.
A service that refuses ("another rollout is under way") holds the incident where it is and says so, until the
deadline of the state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import RequestError
from skerry_server.federation import campaign_machine
from skerry_server.incidents import guards, incident_machine, service
from skerry_server.incidents.cures import Cures, LiveCures
from skerry_server.incidents.guards import Refusal
from skerry_server.incidents.policy_settings import PolicySettings
from skerry_server.incidents.situation import effective_policy, has_subsided, situation_of
from skerry_server.store.tables import Campaign, Candidate, Incident, Policy, Rollout

_LOG = logging.getLogger(__name__)
_ACTOR = "incident-controller"


class IncidentController:
    """Reconciler of the incidents; see ``incident_machine`` for the states."""

    name = "incidents"
    period_s = 1.0

    def __init__(
        self, context: ServerContext, *, cures: Cures | None = None, clock: Callable[[], int] = now_ms
    ) -> None:
        """Create the controller.

        Args:
            context: Store to work on.
            cures: What it may set in motion; the services of ``context`` if None.
            clock: Milliseconds since 1970.
        """
        self._database = context.database
        self._cures = cures if cures is not None else LiveCures(context)
        self._clock = clock

    def step(self) -> None:
        """Take at most one transition with every incident that has not ended, oldest first."""
        with self._database.reading() as session:
            waiting = list(
                session.scalars(
                    sa.select(Incident.id)
                    .where(Incident.state.in_(incident_machine.OPEN))
                    .order_by(Incident.opened_ms, Incident.id)
                )
            )
        for incident_id in waiting:
            try:
                with self._database.transaction() as session:
                    self._advance(session, session.get_one(Incident, incident_id))
            except RequestError as error:
                _LOG.info("incident %s waits: %s", incident_id, error)
                with self._database.transaction() as session:
                    _say(session.get_one(Incident, incident_id), f"waits: {error}")

    def _advance(self, session: Session, incident: Incident) -> None:
        policy, settings = effective_policy(session, incident)
        if incident.state in ("detected", "confirmed", "proposed", "quarantined"):
            over = has_subsided(session, incident)
            if over and "subside" in incident_machine.TRANSITIONS[incident.state]:
                self._move(session, incident, "subside", actor=_ACTOR, detail=over)
                return
        handlers: dict[str, Callable[[Session, Incident, Policy | None, PolicySettings], None]] = {
            "detected": self._confirm,
            "confirmed": self._propose,
            "proposed": self._await_approval,
            "approved": self._start,
            "training": self._await_campaign,
            "gated": self._await_gates,
            "canary": self._await_rollout,
        }
        handler = handlers.get(incident.state)
        if handler is not None:
            handler(session, incident, policy, settings)

    def _confirm(self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings) -> None:
        if incident.kind == "data-quality":
            detail = f"never trained on: {incident.detail}"
            self._move(session, incident, "quarantine", actor=_ACTOR, detail=detail)
            return
        refusals = guards.check_evidence(situation_of(session, incident, policy, now_ms=self._clock()), settings)
        if not refusals:
            detail = f"{len(incident.device_ids)} devices, severity {incident.severity}"
            self._move(session, incident, "confirm", actor=_ACTOR, detail=detail)
        elif self._expired(incident, settings.approval_deadline_ms):
            self._move(session, incident, "expire", actor=_ACTOR, detail=f"no more evidence came: {_join(refusals)}")
        else:
            _say(incident, f"waits for evidence or a person: {_join(refusals)}")

    def _propose(self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings) -> None:
        detail = f"proposed: a {settings.strategy} campaign on cohort {settings.cohort_id}"
        self._move(
            session,
            incident,
            "propose",
            actor=_ACTOR,
            detail=detail,
            policy=policy.name if policy is not None else "",
            settings=settings.model_dump(),
        )

    def _await_approval(
        self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings
    ) -> None:
        refusals = guards.check_approval(situation_of(session, incident, policy, now_ms=self._clock()))
        if not refusals and policy is not None:
            incident.policy = policy.name
            detail = f"approved by policy {policy.name}"
            self._move(session, incident, "approve", actor=f"policy:{policy.name}", detail=detail)
        elif self._expired(incident, settings.approval_deadline_ms):
            self._move(session, incident, "expire", actor=_ACTOR, detail="nobody approved before the deadline")
        else:
            _say(incident, _join(refusals))

    def _start(self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings) -> None:
        situation = situation_of(session, incident, policy, now_ms=self._clock())
        refusals = guards.check_start(situation, settings)
        if self._expired(incident, settings.labels_deadline_ms):
            reason = _join(refusals) or incident.detail
            self._move(session, incident, "expire", actor=_ACTOR, detail=f"could not start in time: {reason}")
            return
        if refusals:
            _say(incident, f"waits: {_join(refusals)}")
            return
        campaign = self._cures.start_campaign(
            session, task=incident.task, settings=settings, actor=_actor(incident), incident_id=incident.id
        )
        incident.campaign_id = campaign.id
        incident.candidate_id = incident.release_made = incident.rollout_id = ""
        self._move(
            session,
            incident,
            "start",
            actor=_ACTOR,
            detail=f"campaign {campaign.id}, attempt {incident.attempts + 1} of {settings.maximum_attempts}",
            campaign=campaign.id,
        )

    def _await_campaign(
        self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings
    ) -> None:
        campaign = session.get_one(Campaign, incident.campaign_id)
        if campaign.candidate_id and campaign.state in (campaign_machine.GATING, campaign_machine.FINISHED):
            incident.candidate_id = campaign.candidate_id
            detail = f"candidate {campaign.candidate_id} of campaign {campaign.id}"
            self._move(session, incident, "built", actor=_ACTOR, detail=detail, candidate=campaign.candidate_id)
        elif campaign.state not in campaign_machine.ACTIVE:
            reason = f"campaign {campaign.id} {campaign.state}: {campaign.detail}"
            self._fail(session, incident, policy, settings, reason)
        elif self._expired(incident, settings.campaign_deadline_ms):
            reason = f"campaign {campaign.id} had not ended at its deadline"
            self._cures.abort_campaign(session, campaign.id, reason=reason, actor=_ACTOR)
            self._fail(session, incident, policy, settings, reason)
        else:
            _say(incident, f"campaign {campaign.id} is {campaign.state} {campaign.detail}".strip())

    def _await_gates(
        self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings
    ) -> None:
        candidate = session.get_one(Candidate, incident.candidate_id)
        if candidate.state == "rejected":
            failed = [gate["name"] for gate in candidate.gates.get("gates", []) if not gate.get("passed")]
            reason = f"candidate {candidate.id} did not pass {', '.join(failed) or 'its gates'}"
            self._fail(session, incident, policy, settings, reason)
        elif self._expired(incident, settings.gates_deadline_ms):
            reason = f"candidate {candidate.id} was not on its way at the deadline: {incident.detail}"
            self._fail(session, incident, policy, settings, reason)
        elif candidate.state in ("passed", "released"):
            self._roll_out(session, incident, settings)
        else:
            _say(incident, f"candidate {candidate.id} is {candidate.state}: waits for its gates")

    def _roll_out(self, session: Session, incident: Incident, settings: PolicySettings) -> None:
        release = self._cures.publish(session, incident.candidate_id, actor=_actor(incident))
        rollout = self._cures.start_rollout(
            session, release_id=release.id, settings=settings, actor=_actor(incident), incident_id=incident.id
        )
        incident.release_made, incident.rollout_id = release.id, rollout.id
        self._move(
            session,
            incident,
            "roll_out",
            actor=_ACTOR,
            detail=f"release {release.id} in rollout {rollout.id}",
            release=release.id,
            rollout=rollout.id,
        )

    def _await_rollout(
        self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings
    ) -> None:
        # No deadline of its own: each state of a rollout has one.
        rollout = session.get_one(Rollout, incident.rollout_id)
        if rollout.state == "finished":
            detail = f"release {incident.release_made} is on the fleet: {rollout.detail}"
            self._move(session, incident, "cured", actor=_ACTOR, detail=detail, release=incident.release_made)
        elif rollout.state in ("rolled_back", "aborted"):
            self._fail(session, incident, policy, settings, f"rollout {rollout.id} {rollout.state}: {rollout.detail}")
        else:
            _say(incident, f"rollout {rollout.id} is {rollout.state}: {rollout.detail}")

    def _fail(
        self, session: Session, incident: Incident, policy: Policy | None, settings: PolicySettings, reason: str
    ) -> None:
        incident.attempts += 1
        event = incident_machine.after_failure(
            incident.state,
            attempts=incident.attempts,
            maximum_attempts=settings.maximum_attempts,
            automatic=bool(incident.policy) and policy is not None and policy.enabled,
        )
        self._move(session, incident, event, actor=_ACTOR, detail=reason, attempts=incident.attempts)
        _LOG.warning("incident %s: attempt %d failed: %s", incident.id, incident.attempts, reason)

    def _move(
        self, session: Session, incident: Incident, event: str, *, actor: str, detail: str, **more: object
    ) -> None:
        service.move(session, incident, event, actor=actor, detail=detail, at_ms=self._clock(), **more)

    def _expired(self, incident: Incident, deadline_ms: int) -> bool:
        return self._clock() >= incident.updated_ms + deadline_ms


def _say(incident: Incident, detail: str) -> None:
    if incident.detail != detail:
        incident.detail = detail


def _actor(incident: Incident) -> str:
    return f"policy:{incident.policy}" if incident.policy else _ACTOR


def _join(refusals: list[Refusal]) -> str:
    return "; ".join(refusal.detail for refusal in refusals)
