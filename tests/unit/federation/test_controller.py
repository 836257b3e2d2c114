"""Campaigns from the request to the candidate: service and controller over a store, with a broker that misbehaves."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from skerry_server.audit import ledger
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError
from skerry_server.federation import service
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.service import job_id
from skerry_server.store.tables import Candidate, Device, Incident, Job, Release
from unit.federation.campaign_store import (
    STEP,
    Broker,
    age,
    answer,
    broker,
    campaign,
    context,
    controller,
    finish_job,
    start,
)

__all__ = ["broker", "context", "controller"]


def test_from_the_request_to_the_candidate(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    campaign_id = start(context)
    assert campaign(context, campaign_id).state == "approved"
    controller.step()
    assert campaign(context, campaign_id).state == "recruiting"
    assert sorted(name for name, _, _ in broker.commands) == ["a", "b", "c"]
    invitation = broker.commands[0][1].invitation
    assert (invitation.campaign_id, invitation.task, invitation.release_id) == (campaign_id, "digits", "digits-r1")
    assert invitation.train_step_sha256.hex() == STEP
    assert invitation.superlink_address == "127.0.0.1:1006"
    assert 50 <= (broker.commands[0][2] or 0) <= 60

    answer(context, campaign_id, a="accepted", b="accepted")
    controller.step()
    assert campaign(context, campaign_id).state == "recruiting"  # c has not answered
    answer(context, campaign_id, c="declined")
    controller.step()
    assert campaign(context, campaign_id).state == "running"
    with context.database.reading() as session:
        job = session.get_one(Job, job_id(campaign_id))
        assert (job.kind, job.payload) == ("campaign", {"campaign_id": campaign_id})

    controller.step()
    assert campaign(context, campaign_id).state == "running"
    finish_job(context, campaign_id)
    spool = context.layout.jobs / job_id(campaign_id) / "updates" / "round-9"
    spool.mkdir(parents=True)
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.candidate_id) == ("gating", f"candidate-{campaign_id}")
    with context.database.transaction() as session:
        candidate = session.get_one(Candidate, row.candidate_id)
        assert (candidate.origin, candidate.parent_release, candidate.campaign_id, candidate.metrics) == (
            "federated",
            "digits-r1",
            campaign_id,
            {"device_accuracy": 0.9},
        )
        candidate.state = "passed"
    controller.step()
    assert campaign(context, campaign_id).state == "finished"
    assert not spool.parent.exists()
    with context.database.reading() as session:
        actions = session.scalars(
            sa.text("SELECT action FROM audit WHERE subject = :id ORDER BY sequence").bindparams(id=campaign_id)
        ).all()
        assert actions == [
            f"campaign.{event}" for event in ("create", "approve", "recruit", "start", "deliver", "pass")
        ]
        assert ledger.verify(session) is None


def test_a_step_repeated_by_a_restarted_process_changes_nothing_and_invites_again(
    context: ServerContext, broker: Broker
) -> None:
    campaign_id = start(context)
    for _ in range(3):
        CampaignController(context, broker).step()
    names = [name for name, _, _ in broker.commands]
    assert sorted(names) == sorted(["a", "b", "c"] * 3)
    assert len({command.command_id for _, command, _ in broker.commands}) == 1
    assert campaign(context, campaign_id).state == "recruiting"


def test_an_invitation_is_not_repeated_at_every_step(
    controller: CampaignController, context: ServerContext, broker: Broker
) -> None:
    start(context)
    for _ in range(5):
        controller.step()
    assert len(broker.commands) == 3


def test_a_broker_that_is_away_loses_nothing(context: ServerContext, broker: Broker) -> None:
    campaign_id = start(context)
    broker.away = True
    CampaignController(context, broker).step()
    assert campaign(context, campaign_id).state == "recruiting"
    broker.away = False
    CampaignController(context, broker).step()
    assert len(broker.commands) == 3


def test_only_those_who_can_are_invited_and_late_comers_too(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    with context.database.transaction() as session:
        session.get_one(Device, "b").online = False
        session.get_one(Device, "c").labelled_samples = 3
    campaign_id = start(context)
    controller.step()
    assert [name for name, _, _ in broker.commands] == ["a"]
    assert "b: offline" in campaign(context, campaign_id).detail
    assert "c: 3 labelled samples" in campaign(context, campaign_id).detail
    with context.database.transaction() as session:
        session.get_one(Device, "b").online = True
    controller.step()
    assert [name for name, _, _ in broker.commands] == ["a", "b"]


def test_a_device_with_broken_data_is_left_out_until_its_incident_ends(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    about = {"kind": "data-quality", "severity": "act", "detail": "stuck at 0", "opened_ms": 1, "updated_ms": 1}
    with context.database.transaction() as session:
        for name, device_id, changes in (
            ("broken", "b", {}),
            ("ended", "a", {"state": "dismissed"}),
            ("drifted", "a", {"kind": "drift"}),
            ("elsewhere", "c", {"task": "har"}),
        ):
            values = about | {"task": "digits", "state": "detected", "device_ids": [device_id]} | changes
            session.add(Incident(id=f"incident-{name}", release_id="digits-r1", **values))
    campaign_id = start(context)
    controller.step()
    assert sorted(name for name, _, _ in broker.commands) == ["a", "c"]
    assert "b: quarantined: an incident about the quality of its data is open" in campaign(context, campaign_id).detail
    with context.database.transaction() as session:
        session.get_one(Incident, "incident-broken").state = "dismissed"
    controller.step()
    assert sorted(name for name, _, _ in broker.commands) == ["a", "b", "c"]


def test_the_cohort_decides(context: ServerContext, controller: CampaignController, broker: Broker) -> None:
    with context.database.transaction() as session:
        session.get_one(Device, "b").labels = {"site": "north"}
    campaign_id = start(context, cohort_id="north")
    controller.step()
    assert [name for name, _, _ in broker.commands] == ["b"]
    assert campaign(context, campaign_id).cohort_id == "cohort-7"


def test_too_few_devices_fail_at_the_deadline_with_the_reason(
    context: ServerContext, controller: CampaignController
) -> None:
    campaign_id = start(context, settings={"minimum_devices": 3, "recruiting_deadline_ms": 1000})
    controller.step()
    answer(context, campaign_id, a="accepted", b="declined")
    age(context, campaign_id, 2000)
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.detail) == ("failed", "1 of at least 3 devices accepted (b: declined; c: invited)")
    with context.database.reading() as session:
        assert session.get(Job, job_id(campaign_id)) is None


def test_a_job_that_gave_up_fails_the_campaign(context: ServerContext, controller: CampaignController) -> None:
    campaign_id = start(context)
    controller.step()
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    finish_job(context, campaign_id, state="failed", error="round 2 of 2: 1 of at least 2 devices answered")
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.detail, row.candidate_id) == (
        "failed",
        "round 2 of 2: 1 of at least 2 devices answered",
        "",
    )


def test_a_rejected_candidate_fails_the_campaign_and_names_the_gates(
    context: ServerContext, controller: CampaignController
) -> None:
    campaign_id = start(context)
    controller.step()
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    finish_job(context, campaign_id)
    controller.step()
    with context.database.transaction() as session:
        candidate = session.get_one(Candidate, f"candidate-{campaign_id}")
        candidate.state = "rejected"
        candidate.gates = {"gates": [{"name": "champion", "passed": False}, {"name": "size", "passed": True}]}
    controller.step()
    row = campaign(context, campaign_id)
    assert row.state == "failed"
    assert row.detail == f"candidate-{campaign_id} failed the gates champion"


@pytest.mark.parametrize(("steps", "state"), [(2, "running"), (3, "gating")])
def test_no_state_lasts_for_ever(
    context: ServerContext, controller: CampaignController, steps: int, state: str
) -> None:
    campaign_id = start(context)
    controller.step()
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    if steps == 3:
        finish_job(context, campaign_id)
        controller.step()
    assert campaign(context, campaign_id).state == state
    age(context, campaign_id, 24 * 3_600_000)
    controller.step()
    row = campaign(context, campaign_id)
    assert row.state == "failed"
    assert "waited" in row.detail


@pytest.mark.parametrize("accepted", [False, True])
def test_an_aborted_campaign_stays_where_it_is(
    context: ServerContext, controller: CampaignController, accepted: bool
) -> None:
    campaign_id = start(context)
    controller.step()
    if accepted:
        answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
        controller.step()
    with context.database.transaction() as session:
        service.abort_campaign(session, campaign_id, reason="wrong cohort", actor="ada")
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.detail) == ("aborted", "wrong cohort")
    with context.database.transaction() as session, pytest.raises(ConflictError, match="is aborted"):
        service.abort_campaign(session, campaign_id, reason="again", actor="ada")


def test_a_base_release_that_cannot_be_trained_fails_at_once(
    context: ServerContext, controller: CampaignController
) -> None:
    with context.database.transaction() as session:
        session.get_one(Release, "digits-r1").train_step_sha256 = ""
    campaign_id = start(context)
    controller.step()
    assert campaign(context, campaign_id).state == "failed"
    assert "no training step" in campaign(context, campaign_id).detail
