"""The controller of campaigns: recruits over MQTT, hands the rounds to a job, makes its result a candidate.

Each step reads the store, takes what is due and writes it down; messages go out after the commit and are repeated
until they are answered, so the process may be killed at any point. Devices answer through their outbox:
:mod:`skerry_server.monitoring.ingest` writes "accepted" or "declined" into ``campaign_participants``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.telemetry_pb2 import CampaignInvitation, Command
from skerry_server import ports
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import InvalidRequestError
from skerry_server.federation import campaign_machine, privacy_ledger, service
from skerry_server.federation.participants import recruiting, site_participants
from skerry_server.federation.participants.eligibility import Conditions, parse_rules
from skerry_server.federation.participants.participation import EXCLUDED, INVITED
from skerry_server.federation.service import job_id
from skerry_server.federation.settings import CampaignSettings, load_settings
from skerry_server.fleet import gateways
from skerry_server.fleet.service import cohort_device_ids
from skerry_server.incidents.service import quarantined_device_ids
from skerry_server.jobs import job_machine, queue
from skerry_server.releases import candidate_machine
from skerry_server.releases.service import create_candidate, failed_gates
from skerry_server.server_identity import public_host
from skerry_server.store.tables import Campaign, CampaignParticipant, Candidate, Device, Job, Release

logger = logging.getLogger(__name__)

#: How the ledger names this controller.
ACTOR = "system"
#: How often an invitation that is not answered is sent again (milliseconds).
REPEAT_MS = 5_000

#: A command and the device that it is for.
Addressed = tuple[str, Command]


class Link(Protocol):
    """The part of :class:`skerry_server.link.ServerLink` that is used here."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        """Publish at QoS 1."""
        ...


class CampaignController:
    """Moves campaigns along; a :class:`skerry_server.controllers.Controller`."""

    def __init__(self, context: ServerContext, link: Link, *, period_s: float = 0.5) -> None:
        self.name = "campaigns"
        self.period_s = period_s
        self._context = context
        self._link = link
        #: When each device was invited last, by campaign and device; a restarted process invites again.
        self._sent_ms: dict[tuple[str, str], int] = {}
        self._steps: dict[str, Callable[[Session, Campaign], list[Addressed]]] = {
            campaign_machine.APPROVED: self._begin,
            campaign_machine.RECRUITING: self._recruit,
            campaign_machine.RUNNING: self._follow_job,
            campaign_machine.GATING: self._follow_candidate,
            campaign_machine.DRAFT: self._wait_for_a_person,
            campaign_machine.PAUSED: self._wait_for_a_person,
        }

    def step(self) -> None:
        """Look at every active campaign once."""
        with self._context.database.reading() as session:
            active = session.scalars(
                sa.select(Campaign.id)
                .where(Campaign.state.in_(campaign_machine.ACTIVE))
                .order_by(Campaign.created_ms, Campaign.id)
            ).all()
        if active:
            with self._context.database.transaction() as session:
                gateways.mark_silent(session, at_ms=now_ms())
        for campaign_id in active:
            with self._context.database.transaction() as session:
                campaign = service.get_campaign(session, campaign_id)
                if campaign.state not in campaign_machine.ACTIVE:
                    continue
                invitations = self._steps[campaign.state](session, campaign)
                self._check_deadline(session, campaign)
                final = campaign.state not in campaign_machine.ACTIVE
            for device_id, command in invitations:
                self._invite(device_id, command)
            if final:
                self._tidy(campaign_id)
        self._sent_ms = {key: sent for key, sent in self._sent_ms.items() if key[0] in active}

    def _begin(self, session: Session, campaign: Campaign) -> list[Addressed]:
        release = session.get(Release, campaign.base_release)
        if release is None or not release.train_step_sha256:
            detail = f"release {campaign.base_release} has no training step"
            service.move(session, campaign, "fail", detail=detail, actor=ACTOR)
            return []
        try:  # others may have spent since it was made
            privacy_ledger.check_limit(
                session,
                task=campaign.task,
                cohort_id=campaign.cohort_id,
                settings=load_settings(campaign.settings),
                limit=self._context.config.epsilon_limit,
                campaign_id=campaign.id,
            )
        except InvalidRequestError as error:
            service.move(session, campaign, "fail", detail=str(error), actor=ACTOR)
            return []
        service.move(session, campaign, "recruit", detail="inviting devices", actor=ACTOR)
        return self._recruit(session, campaign)

    @staticmethod
    def _wait_for_a_person(session: Session, campaign: Campaign) -> list[Addressed]:
        return []

    def _recruit(self, session: Session, campaign: Campaign) -> list[Addressed]:
        settings = load_settings(campaign.settings)
        base = session.get_one(Release, campaign.base_release)
        participants = {row.device_id: row for row in self._participants(session, campaign)}
        left_out = self._sift(session, campaign, settings, base, participants)
        states = {device: row.state for device, row in participants.items()}
        waited_ms = now_ms() - campaign.updated_ms
        verdict = recruiting.judge(settings, states, waited_ms=waited_ms)
        if verdict == "start":
            accepted = sum(state == "accepted" for state in states.values())
            through = site_participants.join(session, campaign, participants.values(), at_ms=now_ms())
            queue.enqueue(session, "campaign", {"campaign_id": campaign.id}, job_id=job_id(campaign.id))
            service.move(session, campaign, "start", detail=f"{accepted} devices take part{through}", actor=ACTOR)
            return []
        if verdict == "fail":
            detail = recruiting.shortage(settings, states, left_out)
            service.move(session, campaign, "fail", detail=detail, actor=ACTOR)
            return []
        campaign.detail = recruiting.shortage(settings, states, left_out)[:500]
        expires_ms = campaign.updated_ms + settings.recruiting_deadline_ms
        return [
            self._invitation(
                campaign, base, device, settings, expires_ms, through=self._gateway(session, participants[device])
            )
            for device, state in states.items()
            if state == INVITED and self._due(campaign.id, device)
        ]

    def _sift(
        self,
        session: Session,
        campaign: Campaign,
        settings: CampaignSettings,
        base: Release,
        participants: dict[str, CampaignParticipant],
    ) -> dict[str, str]:
        """Invite who can be invited now, write down why the others stay out; returns device to reason.

        A device that was invited is not taken back: it decides itself, and it knows better.
        """
        wanted = recruiting.Wanted(
            task=campaign.task,
            train_step_sha256=base.train_step_sha256,
            minimum_samples=settings.minimum_samples,
            release_id=base.id,
            rest_minutes=settings.rest_minutes,
            rules=parse_rules(settings.eligibility),
        )
        moment = now_ms()
        sites = site_participants.Sites.of(session, campaign, settings, at_ms=moment)
        left_out: dict[str, str] = {}
        for facts in self._cohort(session, campaign):
            row = participants.get(facts.device_id)
            if row is not None and row.state != EXCLUDED:
                continue
            if row is None:
                row = CampaignParticipant(campaign_id=campaign.id, device_id=facts.device_id, state=EXCLUDED)
                session.add(row)
                participants[facts.device_id] = row
            found = recruiting.exclusion(facts, wanted, at_ms=moment)
            if found is None:
                row.state, row.reason_code, row.reason = INVITED, "", ""
                row.gateway_id = sites.gateway_of(facts.device_id)
            else:
                row.reason_code, row.reason = found.code, found.reason
                left_out[facts.device_id] = found.reason
        session.flush()
        return left_out

    @staticmethod
    def _participants(session: Session, campaign: Campaign) -> list[CampaignParticipant]:
        query = sa.select(CampaignParticipant).where(CampaignParticipant.campaign_id == campaign.id)
        return list(session.scalars(query.order_by(CampaignParticipant.device_id)))

    @staticmethod
    def _cohort(session: Session, campaign: Campaign) -> list[recruiting.DeviceFacts]:
        devices = cohort_device_ids(session, campaign.cohort_id)
        quarantined = quarantined_device_ids(session, campaign.task)
        query = (
            sa.select(Device, Release.task, Release.train_step_sha256)
            .outerjoin(Release, Release.id == Device.active_release)
            .where(Device.id.in_(devices))
            .order_by(Device.id)
        )
        return [
            recruiting.DeviceFacts(
                device_id=device.id,
                online=device.online,
                flower_node_id=device.flower_node_id,
                labelled_samples=device.labelled_samples,
                task=task or "",
                train_step_sha256=train_step or "",
                ineligible_reason=device.ineligible_reason,
                quarantined=device.id in quarantined,
                ineligible_code=device.ineligible_code,
                release_id=device.active_release,
                last_participation_ms=device.last_participation_ms,
                conditions=Conditions.from_document(device.conditions, told_ms=device.conditions_ms),
            )
            for device, task, train_step in session.execute(query)
        ]

    def _due(self, campaign_id: str, device_id: str) -> bool:
        return now_ms() - self._sent_ms.get((campaign_id, device_id), 0) >= REPEAT_MS

    def _invitation(
        self,
        campaign: Campaign,
        base: Release,
        device_id: str,
        settings: CampaignSettings,
        expires_ms: int,
        *,
        through: Device | None,
    ) -> Addressed:
        config = self._context.config
        own = ports.join(public_host(config), config.superlink_port)
        invitation = CampaignInvitation(
            campaign_id=campaign.id,
            task=campaign.task,
            release_id=base.id,
            train_step_sha256=bytes.fromhex(base.train_step_sha256),
            superlink_address=own if through is None else gateways.address_of(through),
            gateway_id="" if through is None else through.id,
            minimum_samples=settings.minimum_samples,
            expires_unix_ms=expires_ms,
        )
        # The same invitation has the same identifier, so that a device that got it twice knows.
        return device_id, Command(command_id=campaign.id, expires_unix_ms=expires_ms, invitation=invitation)

    @staticmethod
    def _gateway(session: Session, participant: CampaignParticipant) -> Device | None:
        return session.get(Device, participant.gateway_id) if participant.gateway_id else None

    def _invite(self, device_id: str, command: Command) -> None:
        self._sent_ms[(command.command_id, device_id)] = now_ms()
        expiry_s = max(1, (command.expires_unix_ms - now_ms()) // 1000)
        topic = device_topic(device_id, DeviceTopic.COMMAND)
        self._link.publish(topic, command.SerializeToString(), expiry_s=expiry_s).add_done_callback(
            lambda future: _log_failure(device_id, future)
        )

    def _follow_job(self, session: Session, campaign: Campaign) -> list[Addressed]:
        job = session.get(Job, job_id(campaign.id))
        if job is None:
            service.move(session, campaign, "fail", detail="its job is gone", actor=ACTOR)
        elif job.state == job_machine.FAILED:
            service.move(session, campaign, "fail", detail=job.error, actor=ACTOR)
        elif job.state == job_machine.DONE and job.result.get("paused"):
            queue.restart(session, job.id)  # it ended for a pause that is over
        elif job.state == job_machine.DONE:
            self._deliver(session, campaign, job)
        return []

    def _deliver(self, session: Session, campaign: Campaign, job: Job) -> None:
        parameters = self._context.artifacts.get_bytes(str(job.result["parameters_sha256"]))
        candidate = create_candidate(
            session,
            self._context,
            task=campaign.task,
            origin="federated",
            parameters=parameters,
            candidate_id=f"candidate-{campaign.id}",
            parent_release=campaign.base_release,
            campaign_id=campaign.id,
            incident_id=campaign.incident_id,
            mlflow_run_id=campaign.mlflow_run_id,
            metrics=job.result["metrics"],
            calibration=job.result.get("calibration"),
            actor=ACTOR,
        )
        campaign.candidate_id = candidate.id
        detail = f"round {job.result['best_round']} of {job.result['rounds']} became {candidate.id}"
        if job.result.get("ended"):
            detail += f"; {job.result['ended']}"
        service.move(session, campaign, "deliver", detail=detail, actor=ACTOR)

    def _follow_candidate(self, session: Session, campaign: Campaign) -> list[Addressed]:
        candidate = session.get_one(Candidate, campaign.candidate_id)
        if candidate.state in (candidate_machine.PASSED, candidate_machine.RELEASED):
            service.move(session, campaign, "pass", detail=f"{candidate.id} passed its gates", actor=ACTOR)
        elif candidate.state == candidate_machine.REJECTED:
            detail = f"{candidate.id} failed the gates {', '.join(failed_gates(candidate)) or '(unknown)'}"
            service.move(session, campaign, "fail", detail=detail, actor=ACTOR)
        return []

    @staticmethod
    def _check_deadline(session: Session, campaign: Campaign) -> None:
        """Fail a campaign that has been in its state for too long; recruiting judges its own deadline."""
        if campaign.state not in campaign_machine.ACTIVE or campaign.state == campaign_machine.RECRUITING:
            return
        settings = load_settings(campaign.settings)
        limit_ms = campaign_machine.deadline_ms(
            campaign.state,
            rounds=settings.rounds,
            round_deadline_ms=settings.round_deadline_ms,
            recruiting_deadline_ms=settings.recruiting_deadline_ms,
        )
        if now_ms() - campaign.updated_ms > limit_ms:
            detail = f"waited {limit_ms / 1000:.0f} s for {campaign_machine.WAITS_FOR[campaign.state]}"
            service.move(session, campaign, "fail", detail=detail, actor=ACTOR)

    def _tidy(self, campaign_id: str) -> None:
        """Throw away the updates of a round that nobody will finish."""
        shutil.rmtree(self._context.layout.jobs / job_id(campaign_id) / "updates", ignore_errors=True)


def _log_failure(device_id: str, future: Future[None]) -> None:
    if error := future.exception():
        logger.info("the invitation of %s did not reach the broker and is repeated: %s", device_id, error)
