"""What people do with campaigns (make, approve, pause, resume) and what the campaign says of devices that stay out."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.federation import campaign_job, campaign_machine, service
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.participants.participation import count_reasons
from skerry_server.federation.rounds.patience import Patience
from skerry_server.federation.service import job_id
from skerry_server.jobs import job_machine
from skerry_server.jobs.kinds import JobContext
from skerry_server.store.tables import Campaign, CampaignParticipant, ChampionEntry, Device, Incident, Job, Release
from unit.federation.campaign_store import (
    STEP,
    Broker,
    age,
    answer,
    broker,
    campaign,
    context,
    controller,
    device,
    finish_job,
    start,
)

__all__ = ["broker", "context", "controller"]


def draft(context: ServerContext, **changes: Any) -> str:
    values: dict[str, Any] = {
        "task": "digits",
        "cohort_id": "all",
        "strategy": "fedavg",
        "settings": {},
        "actor": "ada",
    }
    with context.database.transaction() as session:
        return service.create_campaign(session, **(values | changes)).id


def act(context: ServerContext, action: str, campaign_id: str, **arguments: str) -> None:
    with context.database.transaction() as session:
        getattr(service, f"{action}_campaign")(session, campaign_id, **({"actor": "bo"} | arguments))


def run(context: ServerContext, controller: CampaignController, **changes: Any) -> str:
    """A campaign whose job is queued."""
    campaign_id = start(context, **changes)
    controller.step()
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    assert campaign(context, campaign_id).state == "running"
    return campaign_id


def job(context: ServerContext, campaign_id: str) -> Job:
    with context.database.reading() as session:
        return session.get_one(Job, job_id(campaign_id))


# Drafts.


def test_a_draft_waits_for_a_person_and_starts_from_the_champion_of_then(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    campaign_id = draft(context)
    controller.step()
    assert (campaign(context, campaign_id).state, broker.commands) == ("draft", [])
    with context.database.transaction() as session:
        session.add(
            Release(
                id="digits-r2", task="digits", sequence=2, candidate_id="candidate-0", origin="central",
                bundle_sha256="1" * 64, train_step_sha256=STEP, envelope=b"", created_ms=2,
            )
        )  # fmt: skip
        session.add(ChampionEntry(task="digits", release_id="digits-r2", reason="test", at_ms=2))
    act(context, "approve", campaign_id, reason="looks right")
    row = campaign(context, campaign_id)
    assert (row.state, row.base_release, row.created_by, row.approved_by) == ("approved", "digits-r2", "ada", "bo")
    assert row.approved_ms > 0
    with pytest.raises(ConflictError, match="is approved; what can be done: pause, abort"):
        act(context, "approve", campaign_id)


def test_drafts_do_not_occupy_the_task_and_campaigns_do(context: ServerContext) -> None:
    first, second = draft(context), draft(context)
    act(context, "approve", first)
    with pytest.raises(ConflictError, match=f"campaign {first} of task digits is still approved"):
        act(context, "approve", second)
    assert campaign(context, second).state == "draft"
    act(context, "abort", first, reason="the other one")
    act(context, "approve", second)
    assert campaign(context, second).state == "approved"


def test_a_start_is_a_draft_and_its_approval(context: ServerContext) -> None:
    row = campaign(context, start(context))
    assert (row.state, row.created_by, row.approved_by) == ("approved", "ada", "ada")


def test_nobody_approves(context: ServerContext, controller: CampaignController) -> None:
    campaign_id = draft(context)
    age(context, campaign_id, campaign_machine.PERSON_DEADLINE_MS - 60_000)
    controller.step()
    assert campaign(context, campaign_id).state == "draft"
    age(context, campaign_id, campaign_machine.PERSON_DEADLINE_MS + 60_000)
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.detail) == ("failed", "waited 2592000 s for a person to approve it")


# Pauses.


def test_a_paused_recruiting_invites_nobody_and_its_deadline_counts_anew(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    campaign_id = start(context, settings={"recruiting_deadline_ms": 60_000})
    controller.step()
    sent = len(broker.commands)
    act(context, "pause", campaign_id, reason="maintenance")
    age(context, campaign_id, 3_600_000)
    CampaignController(context, broker).step()
    row = campaign(context, campaign_id)
    assert (row.state, row.paused_from, row.detail, len(broker.commands)) == (
        "paused", "recruiting", "maintenance", sent,
    )  # fmt: skip
    act(context, "resume", campaign_id)
    CampaignController(context, broker).step()
    row = campaign(context, campaign_id)
    assert (row.state, row.paused_from, len(broker.commands)) == ("recruiting", "", 2 * sent)
    assert now_ms() - row.updated_ms < 60_000


def test_a_job_that_ended_for_a_pause_goes_on_with_its_folder_and_fresh_attempts(
    context: ServerContext, controller: CampaignController
) -> None:
    campaign_id = run(context, controller)
    act(context, "pause", campaign_id, reason="maintenance")
    with context.database.transaction() as session:
        row = session.get_one(Job, job_id(campaign_id))
        row.state, row.attempts, row.result, row.finished_ms = "done", 3, {"paused": True}, now_ms()
    controller.step()
    assert (campaign(context, campaign_id).state, job(context, campaign_id).state) == ("paused", "done")
    act(context, "resume", campaign_id)
    again = job(context, campaign_id)
    assert (again.state, again.attempts, again.maximum_attempts, again.result) == ("queued", 3, 8, {})
    controller.step()
    assert campaign(context, campaign_id).state == "running"
    finish_job(context, campaign_id)
    controller.step()
    assert campaign(context, campaign_id).state == "gating"


def test_a_resumption_before_the_job_saw_the_pause_changes_nothing_for_it(
    context: ServerContext, controller: CampaignController
) -> None:
    campaign_id = run(context, controller)
    with context.database.transaction() as session:
        session.get_one(Job, job_id(campaign_id)).state = job_machine.RUNNING
    act(context, "pause", campaign_id, reason="oops")
    act(context, "resume", campaign_id)
    assert job(context, campaign_id).state == "running"
    # ... and it may have seen it all the same, and end only now.
    with context.database.transaction() as session:
        row = session.get_one(Job, job_id(campaign_id))
        row.state, row.result = "done", {"paused": True}
    controller.step()
    assert (campaign(context, campaign_id).state, job(context, campaign_id).state) == ("running", "queued")


def test_the_job_of_a_paused_campaign_ends_without_asking_anybody(
    context: ServerContext, controller: CampaignController
) -> None:
    campaign_id = run(context, controller)
    row = job(context, campaign_id)
    work = JobContext(context, row.id, row.payload, context.layout.jobs / row.id, attempt=1)
    plan, _, _ = campaign_job.load_plan(context, campaign_id)
    act(context, "pause", campaign_id, reason="maintenance")
    with pytest.raises(campaign_job.CampaignPausedError):  # one that was in the middle of a round
        campaign_job.CampaignProgress(work, plan, Patience()).check()
    assert campaign_job.run(work) == {"campaign_id": campaign_id, "paused": True}  # one that begins now
    act(context, "resume", campaign_id)
    campaign_job.CampaignProgress(work, plan, Patience()).check()
    assert campaign_job.load_plan(context, campaign_id)[0].participants == plan.participants == ("a", "b", "c")


def test_a_paused_campaign_may_be_aborted_and_does_not_wait_for_ever(
    context: ServerContext, controller: CampaignController
) -> None:
    campaign_id = run(context, controller)
    act(context, "pause", campaign_id, reason="maintenance")
    age(context, campaign_id, campaign_machine.PERSON_DEADLINE_MS + 60_000)
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.detail) == ("failed", "waited 2592000 s for a person to resume it")
    second = run(context, controller)
    act(context, "pause", second, reason="maintenance")
    act(context, "abort", second, reason="not needed")
    assert campaign(context, second).state == "aborted"


@pytest.mark.parametrize(("action", "arguments"), [("pause", {"reason": " "}), ("abort", {"reason": ""})])
def test_who_stops_something_says_why(context: ServerContext, action: str, arguments: dict[str, str]) -> None:
    campaign_id = start(context)
    with pytest.raises(InvalidRequestError, match="reason"):
        act(context, action, campaign_id, **arguments)
    assert campaign(context, campaign_id).state == "approved"


def test_what_cannot_be_done_says_what_can(context: ServerContext) -> None:
    campaign_id = draft(context)
    for action in ("pause", "resume"):
        with pytest.raises(ConflictError, match=f"{campaign_id} is draft; what can be done: approve, abort"):
            act(context, action, campaign_id, reason="x")
    act(context, "abort", campaign_id, reason="x")
    with pytest.raises(ConflictError, match="is aborted, which is final"):
        act(context, "abort", campaign_id, reason="x")
    with pytest.raises(NotFoundError):
        act(context, "approve", "campaign-nope")
    with context.database.reading() as session:
        assert ledger.verify(session) is None


# Why devices stay out.


def test_every_device_of_the_cohort_takes_part_or_says_why_not(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    told: dict[str, Any] = {"conditions_ms": now_ms(), "conditions": {"temperature_c": 40.0}}
    with context.database.transaction() as session:
        session.get_one(Device, "a").conditions = told["conditions"]
        session.get_one(Device, "a").conditions_ms = told["conditions_ms"]
        session.get_one(Device, "b").online = False
        for name, changes in (
            ("hot-1", {"conditions": {"temperature_c": 71.0}}),
            ("hot-2", {"ineligible_reason": "too hot: 91 °C", "ineligible_code": "hot"}),
            ("elsewhere", {"active_release": ""}),
            ("tired", {"last_participation_ms": now_ms() - 60_000}),
        ):
            session.add(device(name, **(told | changes)))
    campaign_id = start(context, settings={"eligibility": {"maximum_temperature_c": 65}, "rest_minutes": 60})
    controller.step()
    assert [name for name, _, _ in broker.commands] == ["a"]
    with context.database.reading() as session:
        rows = session.scalars(
            sa.select(CampaignParticipant)
            .where(CampaignParticipant.campaign_id == campaign_id)
            .order_by(CampaignParticipant.device_id)
        ).all()
        assert {row.device_id: (row.state, row.reason_code) for row in rows} == {
            "a": ("invited", ""),
            "b": ("excluded", "offline"),
            "c": ("excluded", "unmeasured"),
            "elsewhere": ("excluded", "no-release"),
            "hot-1": ("excluded", "hot"),
            "hot-2": ("excluded", "hot"),
            "tired": ("excluded", "resting"),
        }
        assert [(each.code, each.devices) for each in count_reasons(rows)][:2] == [("hot", 2), ("no-release", 1)]
    with context.database.transaction() as session:
        session.get_one(Device, "hot-1").conditions = {"temperature_c": 50.0}
    controller.step()
    assert [name for name, _, _ in broker.commands] == ["a", "hot-1"]


def test_a_device_that_was_invited_is_not_taken_back(context: ServerContext, controller: CampaignController) -> None:
    campaign_id = start(context)
    controller.step()
    with context.database.transaction() as session:
        session.get_one(Device, "a").online = False
    controller.step()
    with context.database.reading() as session:
        assert session.get_one(CampaignParticipant, (campaign_id, "a")).state == "invited"


# Requests.


def count(context: ServerContext) -> int:
    with context.database.reading() as session:
        return int(session.scalar(sa.select(sa.func.count()).select_from(Campaign)) or 0)


BAD_REQUESTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "task": ({"task": "poetry"}, InvalidRequestError, "task: expected one of"),
    "strategy": ({"strategy": "fedmagic"}, InvalidRequestError, "strategy: expected one of fedavg, fedprox"),
    "setting": (
        {"settings": {"rounds": 0}},
        InvalidRequestError,
        "settings.rounds: expected an integer from 1 to 1000",
    ),
    "unknown setting": ({"settings": {"epochs": 3}}, InvalidRequestError, "settings.epochs"),
    "cohort": ({"cohort_id": "nobody"}, NotFoundError, "no cohort 'nobody'"),
    "incident": ({"incident_id": "incident-9"}, NotFoundError, "no incident"),
    "no champion": ({"task": "har"}, ConflictError, "no champion"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_change_nothing(context: ServerContext, name: str) -> None:
    changes, error, text = BAD_REQUESTS[name]
    with pytest.raises(error, match=text):
        start(context, **changes)
    assert count(context) == 0
    with context.database.reading() as session:
        assert ledger.head(session)[0] == 0


def test_one_campaign_of_a_task_at_a_time(context: ServerContext) -> None:
    first = start(context)
    with pytest.raises(ConflictError, match=f"campaign {first} of task digits is still approved"):
        start(context)
    with context.database.transaction() as session:
        service.abort_campaign(session, first, reason="enough", actor="ada")
        with pytest.raises(InvalidRequestError, match="reason"):
            service.abort_campaign(session, first, reason=" ", actor="ada")
    start(context)
    assert count(context) == 2


def test_an_incident_may_ask(context: ServerContext) -> None:
    with context.database.transaction() as session:
        session.add(
            Incident(
                id="incident-1",
                kind="drift",
                task="digits",
                release_id="digits-r1",
                state="approved",
                severity="act",
                device_ids=["a"],
                opened_ms=1,
                updated_ms=1,
            )
        )
    assert campaign(context, start(context, incident_id="incident-1")).incident_id == "incident-1"
