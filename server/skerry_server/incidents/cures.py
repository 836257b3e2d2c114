"""What an incident sets in motion: campaign, publication, rollout. The interface, and the one that is real."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy.orm import Session

from skerry_server.context import ServerContext
from skerry_server.incidents.policy_settings import PolicySettings
from skerry_server.store.tables import Campaign, Release, Rollout


class Cures(Protocol):
    """The services that the incident controller calls, each within its transaction."""

    def start_campaign(
        self, session: Session, *, task: str, settings: PolicySettings, actor: str, incident_id: str
    ) -> Campaign:
        """Start a federated campaign."""

    def abort_campaign(self, session: Session, campaign_id: str, *, reason: str, actor: str) -> None:
        """Stop a campaign that has not ended."""

    def publish(self, session: Session, candidate_id: str, *, actor: str) -> Release:
        """Make a candidate that passed its gates a release; the same candidate twice gives the same release."""

    def start_rollout(
        self, session: Session, *, release_id: str, settings: PolicySettings, actor: str, incident_id: str
    ) -> Rollout:
        """Start to bring a release to the policy's cohort."""


class LiveCures:
    """The services of this control plane. Imported when they are called: they bring heavy libraries along."""

    def __init__(self, context: ServerContext) -> None:
        """Work on ``context``."""
        self._context = context

    def start_campaign(
        self, session: Session, *, task: str, settings: PolicySettings, actor: str, incident_id: str
    ) -> Campaign:
        """See :class:`Cures`."""
        from skerry_server.federation import service

        campaign_settings: dict[str, Any] = settings.campaign_settings()
        return service.start_campaign(
            session,
            task=task,
            cohort_id=settings.cohort_id,
            strategy=settings.strategy,
            settings=campaign_settings,
            actor=actor,
            incident_id=incident_id,
            epsilon_limit=self._context.config.epsilon_limit,
        )

    def abort_campaign(self, session: Session, campaign_id: str, *, reason: str, actor: str) -> None:
        """See :class:`Cures`."""
        from skerry_server.federation import service

        service.abort_campaign(session, campaign_id, reason=reason, actor=actor)

    def publish(self, session: Session, candidate_id: str, *, actor: str) -> Release:
        """See :class:`Cures`."""
        from skerry_server.releases import service

        return service.publish(session, self._context, candidate_id, actor)

    def start_rollout(
        self, session: Session, *, release_id: str, settings: PolicySettings, actor: str, incident_id: str
    ) -> Rollout:
        """See :class:`Cures`."""
        from skerry_server.rollouts import service

        return service.start_rollout(
            session,
            release_id=release_id,
            cohort_id=settings.cohort_id,
            canary_percent=settings.canary_percent,
            probation_ms=settings.probation_ms,
            stage_deadline_ms=settings.stage_deadline_ms,
            actor=actor,
            incident_id=incident_id,
        )
