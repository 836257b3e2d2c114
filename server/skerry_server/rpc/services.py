# ruff: noqa: N802  # the methods are named by fleet_api.proto
"""The services: each method asks the same read or domain service as its REST counterpart."""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from sqlalchemy.orm import Session

from skerry_contract.v1 import fleet_api_pb2 as pb
from skerry_contract.v1 import fleet_api_pb2_grpc as api
from skerry_server.api import campaign_views, queries
from skerry_server.api.access import Principal
from skerry_server.api.paging import Listing, Page, fetch_page
from skerry_server.errors import InvalidRequestError
from skerry_server.federation import service as federation
from skerry_server.fleet import service as fleet
from skerry_server.incidents import service as incidents
from skerry_server.rollouts import service as rollouts
from skerry_server.rpc import messages
from skerry_server.rpc.status import Servicer, call
from skerry_server.store.tables import Campaign, Device, Incident, Release, Rollout

Row = TypeVar("Row")

#: Longest settings of a campaign as JSON (characters).
SETTINGS_CHARACTERS: Final = 65_536


def _page(session: Session, listing: Listing[Row], request: pb.ListRequest) -> Page[Row]:
    return fetch_page(
        session,
        listing,
        page_size=request.page_size,
        page_token=request.page_token,
        filters=dict(request.filter),
    )


class FleetService(Servicer, api.FleetServiceServicer):
    """Devices and cohorts."""

    @call("viewer")
    def ListDevices(self, request: pb.ListRequest, caller: Principal) -> pb.DeviceList:
        """By identifier."""
        with self.context.database.reading() as session:
            page = _page(session, queries.DEVICES, request)
        devices = [messages.device(row) for row in page.items]
        return pb.DeviceList(devices=devices, next_page_token=page.next_page_token)

    @call("viewer")
    def GetDevice(self, request: pb.GetRequest, caller: Principal) -> pb.Device:
        """One device."""
        with self.context.database.reading() as session:
            return messages.device(queries.find(session, Device, request.id, kind="device"))

    @call("viewer")
    def ListCohorts(self, request: pb.ListRequest, caller: Principal) -> pb.CohortList:
        """By name."""
        with self.context.database.reading() as session:
            page = _page(session, queries.COHORTS, request)
            cohorts = [messages.cohort(row, len(fleet.cohort_device_ids(session, row.id))) for row in page.items]
        return pb.CohortList(cohorts=cohorts, next_page_token=page.next_page_token)

    @call("operator")
    def CreateCohort(self, request: pb.CreateCohortRequest, caller: Principal) -> pb.Cohort:
        """Make a cohort."""
        with self.context.database.transaction() as session:
            row = fleet.create_cohort(session, name=request.name, selector=dict(request.selector), actor=caller.name)
            return messages.cohort(row, len(fleet.cohort_device_ids(session, row.id)))


class ReleaseService(Servicer, api.ReleaseServiceServicer):
    """Releases."""

    @call("viewer")
    def ListReleases(self, request: pb.ListRequest, caller: Principal) -> pb.ReleaseList:
        """Newest first."""
        with self.context.database.reading() as session:
            page = _page(session, queries.RELEASES, request)
        releases = [messages.release(row) for row in page.items]
        return pb.ReleaseList(releases=releases, next_page_token=page.next_page_token)

    @call("viewer")
    def GetRelease(self, request: pb.GetRequest, caller: Principal) -> pb.Release:
        """One release."""
        with self.context.database.reading() as session:
            return messages.release(queries.find(session, Release, request.id, kind="release"))


class RolloutService(Servicer, api.RolloutServiceServicer):
    """Rollouts."""

    @call("viewer")
    def ListRollouts(self, request: pb.ListRequest, caller: Principal) -> pb.RolloutList:
        """Newest first."""
        with self.context.database.reading() as session:
            page = _page(session, queries.ROLLOUTS, request)
            devices = queries.rollout_devices(session, [row.id for row in page.items])
        items = [messages.rollout(row, devices.get(row.id, [])) for row in page.items]
        return pb.RolloutList(rollouts=items, next_page_token=page.next_page_token)

    @call("viewer")
    def GetRollout(self, request: pb.GetRequest, caller: Principal) -> pb.Rollout:
        """One rollout."""
        with self.context.database.reading() as session:
            return _rollout(session, request.id)

    @call("operator")
    def StartRollout(self, request: pb.StartRolloutRequest, caller: Principal) -> pb.Rollout:
        """Bring a release to a cohort, named by identifier or name."""
        with self.context.database.transaction() as session:
            row = rollouts.start_rollout(
                session,
                release_id=request.release_id,
                cohort_id=fleet.get_cohort(session, request.cohort_id).id,
                canary_percent=request.canary_percent,
                probation_ms=request.probation_ms,
                actor=caller.name,
            )
            return _rollout(session, row.id)

    @call("operator")
    def AbortRollout(self, request: pb.ActRequest, caller: Principal) -> pb.Rollout:
        """Stop and, where something was instructed, roll back."""
        with self.context.database.transaction() as session:
            rollouts.abort_rollout(session, request.id, reason=request.reason, actor=caller.name)
            return _rollout(session, request.id)


class CampaignService(Servicer, api.CampaignServiceServicer):
    """Federated campaigns."""

    @call("viewer")
    def ListCampaigns(self, request: pb.ListRequest, caller: Principal) -> pb.CampaignList:
        """Newest first."""
        with self.context.database.reading() as session:
            page = _page(session, queries.CAMPAIGNS, request)
            identifiers = [row.id for row in page.items]
            rounds = queries.campaign_rounds(session, identifiers)
            progress = queries.campaign_progress(session, identifiers)
        items = [
            messages.campaign(campaign_views.campaign(row, rounds.get(row.id, []), progress=progress.get(row.id, {})))
            for row in page.items
        ]
        return pb.CampaignList(campaigns=items, next_page_token=page.next_page_token)

    @call("viewer")
    def GetCampaign(self, request: pb.GetRequest, caller: Principal) -> pb.Campaign:
        """One campaign, with the reasons of the devices that stay out."""
        with self.context.database.reading() as session:
            return _campaign(session, request.id)

    @call("operator")
    def StartCampaign(self, request: pb.StartCampaignRequest, caller: Principal) -> pb.Campaign:
        """Train on the devices of a cohort; a setting that is 0 is the task's default."""
        named: dict[str, Any] = {
            "rounds": request.rounds,
            "local_epochs": request.local_epochs,
            "learning_rate": request.learning_rate,
            "proximal_mu": request.proximal_mu,
            "minimum_devices": request.minimum_devices,
            "round_deadline_ms": request.round_deadline_ms,
        }
        settings = _json_object(request.settings_json, field="settings_json")
        make = federation.create_campaign if request.draft else federation.start_campaign
        with self.context.database.transaction() as session:
            row = make(
                session,
                task=request.task,
                cohort_id=fleet.get_cohort(session, request.cohort_id).id,
                strategy=request.strategy,
                settings={**settings, **{name: value for name, value in named.items() if value}},
                actor=caller.name,
                epsilon_limit=self.context.config.epsilon_limit,
            )
            return _campaign(session, row.id)

    @call("approver")
    def ApproveCampaign(self, request: pb.ActRequest, caller: Principal) -> pb.Campaign:
        """Let a draft begin."""
        with self.context.database.transaction() as session:
            federation.approve_campaign(session, request.id, reason=request.reason, actor=caller.name)
            return _campaign(session, request.id)

    @call("operator")
    def PauseCampaign(self, request: pb.ActRequest, caller: Principal) -> pb.Campaign:
        """Ask nothing of devices until it is resumed."""
        with self.context.database.transaction() as session:
            federation.pause_campaign(session, request.id, reason=request.reason, actor=caller.name)
            return _campaign(session, request.id)

    @call("operator")
    def ResumeCampaign(self, request: pb.ActRequest, caller: Principal) -> pb.Campaign:
        """Go on where it was paused."""
        with self.context.database.transaction() as session:
            federation.resume_campaign(session, request.id, reason=request.reason, actor=caller.name)
            return _campaign(session, request.id)

    @call("operator")
    def AbortCampaign(self, request: pb.ActRequest, caller: Principal) -> pb.Campaign:
        """Stop; committed rounds are kept."""
        with self.context.database.transaction() as session:
            federation.abort_campaign(session, request.id, reason=request.reason, actor=caller.name)
            return _campaign(session, request.id)


class IncidentService(Servicer, api.IncidentServiceServicer):
    """Incidents."""

    @call("viewer")
    def ListIncidents(self, request: pb.ListRequest, caller: Principal) -> pb.IncidentList:
        """Newest first."""
        with self.context.database.reading() as session:
            page = _page(session, queries.INCIDENTS, request)
        items = [messages.incident(row) for row in page.items]
        return pb.IncidentList(incidents=items, next_page_token=page.next_page_token)

    @call("viewer")
    def GetIncident(self, request: pb.GetRequest, caller: Principal) -> pb.Incident:
        """One incident."""
        with self.context.database.reading() as session:
            return messages.incident(queries.find(session, Incident, request.id, kind="incident"))

    @call("approver")
    def ApproveIncident(self, request: pb.ActRequest, caller: Principal) -> pb.Incident:
        """Let the proposed step happen."""
        with self.context.database.transaction() as session:
            incidents.approve(session, request.id, actor=caller.name, reason=request.reason)
            return messages.incident(queries.find(session, Incident, request.id, kind="incident"))

    @call("approver")
    def DismissIncident(self, request: pb.ActRequest, caller: Principal) -> pb.Incident:
        """Close it; nothing is done."""
        with self.context.database.transaction() as session:
            incidents.dismiss(session, request.id, actor=caller.name, reason=request.reason)
            return messages.incident(queries.find(session, Incident, request.id, kind="incident"))


class AuditService(Servicer, api.AuditServiceServicer):
    """The audit ledger."""

    @call("viewer")
    def ListAudit(self, request: pb.ListRequest, caller: Principal) -> pb.AuditList:
        """Newest first."""
        with self.context.database.reading() as session:
            page = _page(session, queries.AUDIT, request)
        entries = [messages.audit_entry(row) for row in page.items]
        return pb.AuditList(entries=entries, next_page_token=page.next_page_token)


def _rollout(session: Session, rollout_id: str) -> pb.Rollout:
    row = queries.find(session, Rollout, rollout_id, kind="rollout")
    return messages.rollout(row, queries.rollout_devices(session, [rollout_id]).get(rollout_id, []))


def _campaign(session: Session, campaign_id: str) -> pb.Campaign:
    row = queries.find(session, Campaign, campaign_id, kind="campaign")
    return messages.campaign(
        campaign_views.campaign_detail(
            row,
            queries.campaign_rounds(session, [campaign_id]).get(campaign_id, []),
            queries.campaign_participants(session, campaign_id),
            progress=queries.campaign_progress(session, [campaign_id]).get(campaign_id, {}),
        )
    )


def _json_object(text: str, *, field: str) -> dict[str, Any]:
    """The object that a JSON text holds, {} for an empty text; raises InvalidRequestError."""
    if not text:
        return {}
    try:
        value = json.loads(text[:SETTINGS_CHARACTERS])
    except (ValueError, RecursionError):
        raise InvalidRequestError(
            field, expected=f"a JSON object of at most {SETTINGS_CHARACTERS} characters", got=text[:80]
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequestError(field, expected="a JSON object", got=value)
    return value
