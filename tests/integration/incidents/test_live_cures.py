"""The real services behind an incident, called as the controller calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.rollouts.control_plane import dump, open_control_plane, seed
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError
from skerry_server.incidents import service
from skerry_server.incidents.cures import LiveCures
from skerry_server.incidents.policy_settings import parse_settings
from skerry_server.registry import champions
from skerry_server.store.tables import Campaign, Candidate, Release, Rollout

SETTINGS = parse_settings(
    {"strategy": "fedavg", "rounds": 2, "participants": 2, "samples": 5, "quorum": 0.6, "round_deadline_ms": 5_000}
)


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    context = open_control_plane(tmp_path / "plane")
    seed(context, devices=["d0", "d1"], releases=["r1"], active="r0")
    with context.database.transaction() as session:
        champions.promote(session, task="digits", release_id="r1", reason="first")
    return context


def test_campaign_of_a_policy_is_started_and_aborted(context: ServerContext) -> None:
    cures = LiveCures(context)
    with context.database.transaction() as session:
        incident = service.report_evidence(
            session,
            kind="drift",
            task="digits",
            release_id="r1",
            device_id="d0",
            severity="act",
            detail="",
            evidence={},
            actor="test",
        )
        assert incident is not None
        campaign = cures.start_campaign(
            session, task="digits", settings=SETTINGS, actor="policy:recover", incident_id=incident.id
        )
        with pytest.raises(ConflictError, match="is still approved"):
            cures.start_campaign(session, task="digits", settings=SETTINGS, actor="x", incident_id=incident.id)
    ((settings, incident_id, strategy),) = dump(context, Campaign, "settings", "incident_id", "strategy")
    assert (incident_id, strategy) == (incident.id, "fedavg")
    expected = {"rounds": 2, "minimum_devices": 2, "minimum_samples": 5, "quorum": 0.6, "round_deadline_ms": 5_000}
    assert expected.items() <= settings.items()
    with context.database.transaction() as session:
        cures.abort_campaign(session, campaign.id, reason="deadline", actor="test")
    assert dump(context, Campaign, "state") == [("aborted",)]


def test_rollout_of_a_cure_names_its_incident(context: ServerContext) -> None:
    with context.database.transaction() as session:
        LiveCures(context).start_rollout(
            session, release_id="r1", settings=SETTINGS, actor="policy:recover", incident_id="incident-x"
        )
    assert dump(context, Rollout, "release_id", "state", "incident_id", "probation_ms", "canary_percent") == [
        ("r1", "pending", "incident-x", 10_000, 10)
    ]


def test_candidate_that_has_not_passed_is_not_published(context: ServerContext) -> None:
    with context.database.transaction() as session:
        session.add(
            Candidate(
                id="c", task="digits", origin="federated", state="rejected", parameters_sha256="0" * 64, created_ms=1
            )
        )
    with context.database.transaction() as session, pytest.raises(ConflictError):
        LiveCures(context).publish(session, "c", actor="policy:recover")
    assert dump(context, Release, "id") == [("r1",)]
