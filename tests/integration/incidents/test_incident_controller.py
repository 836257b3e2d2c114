from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from integration.rollouts.control_plane import (
    KillSwitch,
    add_release,
    dump,
    open_control_plane,
    run_with_kills,
    seed,
)
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.incidents import policies, service
from skerry_server.incidents.controller import IncidentController
from skerry_server.incidents.policy_settings import PolicySettings
from skerry_server.store.tables import (
    AuditRow,
    Campaign,
    Candidate,
    Device,
    DriftWindow,
    Incident,
    LabelRow,
    Policy,
    Release,
    Rollout,
)

DEVICES = ["d0", "d1", "d2"]
POLICY = {"minimum_labels": 10, "cooldown_ms": 60_000, "rounds": 3, "probation_ms": 0}


@dataclass
class FakeCures:
    """Campaigns, releases and rollouts as rows; ``outcomes`` says how each attempt ends, ``refuse`` who is busy."""

    outcomes: list[str] = field(default_factory=lambda: ["cured"])
    refuse: dict[str, str] = field(default_factory=dict)

    def _check(self, what: str) -> None:
        if what in self.refuse:
            raise ConflictError(self.refuse[what])

    def start_campaign(
        self, session: Session, *, task: str, settings: PolicySettings, actor: str, incident_id: str
    ) -> Campaign:
        self._check("campaign")
        number = session.query(Campaign).count() + 1
        campaign = Campaign(
            id=f"campaign-{number}",
            task=task,
            base_release="r1",
            cohort_id=settings.cohort_id,
            strategy=settings.strategy,
            settings=settings.campaign_settings(),
            state="running",
            incident_id=incident_id,
            created_by=actor,
            created_ms=CLOCK.now,
            updated_ms=CLOCK.now,
        )
        session.add(campaign)
        session.flush()
        return campaign

    def abort_campaign(self, session: Session, campaign_id: str, *, reason: str, actor: str) -> None:
        session.get_one(Campaign, campaign_id).state = "aborted"

    def publish(self, session: Session, candidate_id: str, *, actor: str) -> Release:
        self._check("publish")
        candidate = session.get_one(Candidate, candidate_id)
        candidate.state = "released"
        release_id = f"release-of-{candidate_id}"
        if session.get(Release, release_id) is None:
            add_release(session, release_id, sequence=session.query(Release).count() + 1)
            session.flush()
        return session.get_one(Release, release_id)

    def start_rollout(
        self, session: Session, *, release_id: str, settings: PolicySettings, actor: str, incident_id: str
    ) -> Rollout:
        self._check("rollout")
        rollout = Rollout(
            id=f"rollout-{session.query(Rollout).count() + 1}",
            release_id=release_id,
            task="digits",
            cohort_id=settings.cohort_id,
            state="canary",
            canary_percent=settings.canary_percent,
            probation_ms=settings.probation_ms,
            incident_id=incident_id,
            created_by=actor,
            created_ms=CLOCK.now,
            updated_ms=CLOCK.now,
        )
        session.add(rollout)
        session.flush()
        return rollout

    def work(self, context: ServerContext) -> None:
        """What campaigns, gates and rollouts do between two steps of the incident controller."""
        with context.database.transaction() as session:
            for number, campaign in enumerate(session.query(Campaign).order_by(Campaign.id).all()):
                outcome = self.outcomes[min(number, len(self.outcomes) - 1)]
                if campaign.state == "running" and outcome == "campaign fails":
                    campaign.state, campaign.detail = "failed", "too few devices"
                elif campaign.state == "running" and outcome != "campaign hangs":
                    campaign.state, campaign.candidate_id = "finished", f"candidate-{number + 1}"
                    session.add(
                        Candidate(
                            id=campaign.candidate_id,
                            task="digits",
                            origin="federated",
                            state="rejected" if outcome == "gates refuse" else "passed",
                            gates={"gates": [{"name": "champion", "passed": outcome != "gates refuse"}]},
                            parameters_sha256="0" * 64,
                            incident_id=campaign.incident_id,
                            created_ms=1,
                        )
                    )
                for rollout in session.query(Rollout).filter_by(release_id=f"release-of-{campaign.candidate_id}"):
                    if rollout.state == "canary":
                        rollout.state = "rolled_back" if outcome == "rolls back" else "finished"


class Clock:
    """The time of the controller; people's decisions are stamped by the real clock, so it starts there."""

    now = 0

    def reset(self) -> None:
        self.now = now_ms()


CLOCK = Clock()


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    CLOCK.reset()
    return prepare(tmp_path / "plane")


def prepare(root: Path) -> ServerContext:
    context = open_control_plane(root)
    seed(context, devices=DEVICES, releases=["r1"], active="r1")
    return context


def report(
    context: ServerContext, device_id: str, *, kind: str = "drift", severity: str = "critical", **evidence: Any
) -> str:
    with context.database.transaction() as session:
        incident = service.report_evidence(
            session,
            kind=kind,
            task="digits",
            release_id="r1",
            device_id=device_id,
            severity=severity,
            detail=f"{device_id} changed",
            evidence={"window": 1, **evidence},
            actor="drift-controller",
            at_ms=CLOCK.now,
        )
        assert incident is not None
        return incident.id


def add_policy(context: ServerContext, *, enabled: bool = True, **changes: Any) -> None:
    with context.database.transaction() as session:
        policies.set_policy(
            session, name="recover", task="digits", settings={**POLICY, **changes}, enabled=enabled, actor="ada"
        )


def add_labels(context: ServerContext, count: int = 50) -> None:
    with context.database.transaction() as session:
        for device_id in DEVICES:
            session.add(LabelRow(device_id=device_id, release_id="r1", at_ms=CLOCK.now + 1, labelled=count, correct=0))


def run(context: ServerContext, cures: FakeCures, *, steps: int = 12, tick_ms: int = 1_000) -> None:
    controller = IncidentController(context, cures=cures, clock=lambda: CLOCK.now)
    for _ in range(steps):
        controller.step()
        cures.work(context)
        CLOCK.now += tick_ms


def state(context: ServerContext) -> str:
    return str(dump(context, Incident, "state")[0][0])


def detail(context: ServerContext) -> str:
    return str(dump(context, Incident, "detail")[0][0])


def chain(context: ServerContext) -> list[str]:
    rows = dump(context, AuditRow, "action", "detail")
    return [each["to"] for action, each in rows if action.startswith("incident.") and "to" in each]


CURE = ["confirmed", "proposed", "approved", "training", "gated", "canary", "resolved"]


def test_policy_takes_drift_to_its_cure_and_every_step_is_in_the_ledger(context: ServerContext) -> None:
    add_policy(context)
    report(context, "d0")
    report(context, "d1")
    add_labels(context)
    run(context, FakeCures())
    assert chain(context) == CURE
    assert dump(context, Incident, "campaign_id", "candidate_id", "release_made", "rollout_id", "policy") == [
        ("campaign-1", "candidate-1", "release-of-candidate-1", "rollout-1", "recover")
    ]
    assert dump(context, Campaign, "settings", "created_by") == [({"rounds": 3}, "policy:recover")]
    with context.database.transaction() as session:
        assert ledger.verify(session) is None
        actors = {row.actor for row in session.query(AuditRow).filter_by(action="incident.approve")}
    assert actors == {"policy:recover"}


def test_one_device_alone_is_not_believed_until_a_second_or_a_person_agrees(context: ServerContext) -> None:
    add_policy(context)
    incident_id = report(context, "d0")
    add_labels(context)
    run(context, FakeCures(), steps=3)
    assert state(context) == "detected"
    assert detail(context) == "waits for evidence or a person: 1 of 2 needed devices are affected"
    with context.database.transaction() as session:
        service.approve(session, incident_id, actor="ada", reason="seen it")
    run(context, FakeCures())
    assert chain(context) == ["approved", "training", "gated", "canary", "resolved"]


@pytest.mark.parametrize("enabled", [None, False])
def test_without_an_enabled_policy_a_person_must_approve(context: ServerContext, enabled: bool | None) -> None:
    if enabled is not None:
        add_policy(context, enabled=enabled)
    incident_id = report(context, "d0")
    report(context, "d1")
    add_labels(context, 60)
    run(context, FakeCures(), steps=5)
    assert state(context) == "proposed"
    assert detail(context) == "waits for a person: no automatic policy of the task is enabled"
    assert dump(context, Campaign, "id") == []
    with context.database.transaction() as session:
        service.approve(session, incident_id, actor="ada")
    run(context, FakeCures())
    assert chain(context) == CURE


def test_weak_drift_is_shown_and_not_acted_on(context: ServerContext) -> None:
    add_policy(context)
    for name in DEVICES:
        report(context, name, severity="warn")
    run(context, FakeCures(), steps=4)
    assert state(context) == "detected"
    assert "severity is warn, act is needed" in detail(context)
    report(context, "d0", severity="act")
    add_labels(context)
    run(context, FakeCures())
    assert chain(context) == CURE


def test_data_quality_is_quarantined_and_never_trained_on(context: ServerContext) -> None:
    add_policy(context, minimum_devices=1)
    incident_id = report(context, "d0", kind="data-quality")
    add_labels(context)
    run(context, FakeCures(), steps=5)
    assert chain(context) == ["quarantined"]
    with context.database.transaction() as session:
        with pytest.raises(ConflictError, match="never cured by training"):
            service.approve(session, incident_id, actor="ada")
        assert service.quarantined_device_ids(session, "digits") == {"d0"}
    assert dump(context, Campaign, "id") == []
    add_windows(context, "d0", "ok", 3)
    run(context, FakeCures(), steps=1)
    assert state(context) == "resolved"


def add_windows(context: ServerContext, device_id: str, status: str, count: int) -> None:
    with context.database.transaction() as session:
        first = session.query(DriftWindow).count()
        for number in range(first, first + count):
            session.add(
                DriftWindow(
                    device_id=device_id,
                    boot_id="b",
                    window=number,
                    release_id="r1",
                    edges_sha256="e",
                    started_ms=1,
                    ended_ms=2,
                    rows=300,
                    body=b"",
                    received_ms=1,
                    judged=True,
                    verdict={"status": status},
                )
            )


def test_waits_for_labels_and_says_so_then_gives_up(context: ServerContext) -> None:
    add_policy(context, labels_deadline_ms=20_000)
    report(context, "d0")
    report(context, "d1")
    run(context, FakeCures(), steps=6)
    assert state(context) == "approved"
    assert detail(context) == "waits: 0 of 2 needed devices have 10 new labels (most: 0)"
    run(context, FakeCures(), steps=30)
    assert state(context) == "rejected"
    assert "could not start in time: 0 of 2 needed devices" in detail(context)
    assert dump(context, Campaign, "id") == []


def test_old_labels_do_not_count(context: ServerContext) -> None:
    CLOCK.now -= 100_000
    add_labels(context)
    CLOCK.now += 100_000
    add_policy(context)
    report(context, "d0")
    report(context, "d1")
    run(context, FakeCures(), steps=6)
    assert state(context) == "approved"


def test_labels_count_from_when_the_device_changed_and_not_from_when_it_was_noticed(context: ServerContext) -> None:
    add_labels(context)
    CLOCK.now += 60_000
    add_policy(context)
    for name in ("d0", "d1"):
        report(context, name, since_ms=CLOCK.now - 60_000)
        report(context, name, since_ms=CLOCK.now)  # later evidence does not make the labels too old
    run(context, FakeCures())
    assert chain(context) == CURE


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["campaign fails", "cured"], ["training", "approved", *CURE[3:]]),
        (["gates refuse", "cured"], ["training", "gated", "approved", *CURE[3:]]),
        (["rolls back", "cured"], ["training", "gated", "canary", "approved", *CURE[3:]]),
        (
            ["campaign fails", "gates refuse", "rolls back"],
            ["training", "approved", "training", "gated", "approved", "training", "gated", "canary", "breaker_open"],
        ),
    ],
)
def test_failed_attempts_are_repeated_after_the_cool_down_and_three_open_the_breaker(
    context: ServerContext, outcomes: list[str], expected: list[str]
) -> None:
    add_policy(context, cooldown_ms=5_000)
    report(context, "d0")
    report(context, "d1")
    add_labels(context)
    run(context, FakeCures(outcomes=outcomes), steps=60)
    assert chain(context) == [*CURE[:3], *expected]
    starts = [row[0] for row in dump(context, Campaign, "created_ms")]
    assert all(later - earlier >= 5_000 for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize(
    ("outcome", "end"), [("campaign fails", "rejected"), ("gates refuse", "rejected"), ("rolls back", "rolled_back")]
)
def test_without_a_policy_a_failed_attempt_ends_the_incident(context: ServerContext, outcome: str, end: str) -> None:
    incident_id = report(context, "d0")
    add_labels(context, 60)
    with context.database.transaction() as session:
        service.approve(session, incident_id, actor="ada")
    run(context, FakeCures(outcomes=[outcome]), steps=20)
    assert state(context) == end
    assert len(dump(context, Campaign, "id")) == 1


def test_open_breaker_holds_the_task_until_a_person_closes_it(context: ServerContext) -> None:
    add_policy(context, cooldown_ms=0, maximum_attempts=1)
    incident_id = report(context, "d0")
    report(context, "d1")
    add_labels(context)
    run(context, FakeCures(outcomes=["campaign fails"]), steps=10)
    assert state(context) == "breaker_open"
    with context.database.transaction() as session:
        add_release(session, "r2", sequence=2)
        for name in ("d1", "d2"):
            session.get_one(Device, name).active_release = "r2"
            service.report_evidence(
                session,
                kind="drift",
                task="digits",
                release_id="r2",
                device_id=name,
                severity="critical",
                detail="",
                evidence={},
                actor="x",
            )
    run(context, FakeCures(), steps=5)
    second = next(row for row in dump(context, Incident, "id", "state", "detail") if row[0] != incident_id)
    assert second[1:] == ("proposed", f"waits for a person: the breaker is open since {incident_id}")
    with context.database.transaction() as session:
        service.approve(session, incident_id, actor="ada", reason="mended")
        assert session.get_one(Incident, incident_id).attempts == 0


def test_one_cure_per_task_at_a_time(context: ServerContext) -> None:
    add_policy(context)
    with context.database.transaction() as session:
        FakeCures().start_campaign(session, task="digits", settings=PolicySettings(), actor="ada", incident_id="")
    report(context, "d0")
    report(context, "d1")
    add_labels(context)
    cures = FakeCures(outcomes=["campaign hangs", "cured"])
    run(context, cures, steps=6)
    assert detail(context) == "waits: campaign-1 of this task is under way"
    with context.database.transaction() as session:
        session.get_one(Campaign, "campaign-1").state = "finished"
    run(context, cures)
    assert state(context) == "resolved"


def test_service_that_refuses_holds_the_incident_and_changes_nothing(context: ServerContext) -> None:
    add_policy(context, gates_deadline_ms=10_000, maximum_attempts=1)
    report(context, "d0")
    report(context, "d1")
    add_labels(context)
    cures = FakeCures(refuse={"rollout": "device d0 is in rollout rollout-x"})
    run(context, cures, steps=8)
    assert (state(context), detail(context)) == ("gated", "waits: device d0 is in rollout rollout-x")
    assert dump(context, Candidate, "id", "state")[-1] == ("candidate-of-r1", "released")
    assert ("candidate-1", "passed") in dump(context, Candidate, "id", "state")  # published in vain: undone
    run(context, cures, steps=12)
    assert state(context) == "breaker_open"
    assert "device d0 is in rollout rollout-x" in detail(context)


def test_campaign_that_hangs_is_aborted_at_its_deadline(context: ServerContext) -> None:
    add_policy(context, campaign_deadline_ms=10_000, maximum_attempts=1)
    report(context, "d0")
    report(context, "d1")
    add_labels(context)
    run(context, FakeCures(outcomes=["campaign hangs"]), steps=30)
    assert state(context) == "breaker_open"
    assert dump(context, Campaign, "state") == [("aborted",)]


def test_proposal_expires(context: ServerContext) -> None:
    add_policy(context, enabled=False, approval_deadline_ms=5_000)
    report(context, "d0")
    report(context, "d1")
    run(context, FakeCures(), steps=15)
    assert (state(context), detail(context)) == ("dismissed", "nobody approved before the deadline")


def test_drift_that_goes_away_or_is_left_behind_resolves_itself(context: ServerContext) -> None:
    report(context, "d0")
    add_windows(context, "d0", "drift", 1)
    add_windows(context, "d0", "ok", 2)
    run(context, FakeCures(), steps=2)
    assert state(context) == "detected"
    add_windows(context, "d0", "ok", 1)
    run(context, FakeCures(), steps=1)
    assert (state(context), detail(context)) == (
        "resolved",
        "the newest 3 windows of every affected device are quiet",
    )


def test_incident_of_a_release_that_nobody_runs_any_more_is_over(context: ServerContext) -> None:
    report(context, "d0")
    with context.database.transaction() as session:
        session.get_one(Device, "d0").active_release = "r2"
    run(context, FakeCures(), steps=1)
    assert (state(context), detail(context)) == ("resolved", "no affected device runs the release any more")


def test_people_are_told_what_cannot_be_done(context: ServerContext) -> None:
    incident_id = report(context, "d0")
    before = dump(context, AuditRow, "sequence")
    with context.database.transaction() as session:
        with pytest.raises(NotFoundError, match="no incident 'incident-x'"):
            service.approve(session, "incident-x", actor="ada")
        service.dismiss(session, incident_id, actor="ada", reason="known")
        with pytest.raises(ConflictError, match="is dismissed: it takes no 'approve'"):
            service.approve(session, incident_id, actor="ada")
        with pytest.raises(ConflictError, match="is dismissed"):
            service.dismiss(session, incident_id, actor="ada")
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"name": "Bad Name"}, "name"),
            ({"task": ""}, "task"),
            ({"settings": {"rounds": -1}}, "settings.rounds"),
        ]
        usual: dict[str, Any] = {"name": "p", "task": "digits", "settings": {}, "enabled": True, "actor": "a"}
        for arguments, name in wrong:
            with pytest.raises(InvalidRequestError) as caught:
                policies.set_policy(session, **{**usual, **arguments})
            assert caught.value.field == name
    assert len(dump(context, AuditRow, "sequence")) == len(before) + 1
    assert dump(context, Policy, "name") == []


def test_policies_are_replaced_by_name_and_the_first_enabled_one_answers(context: ServerContext) -> None:
    with context.database.transaction() as session:
        for name, enabled in [("b", True), ("a", False), ("c", True)]:
            policies.set_policy(session, name=name, task="digits", settings={}, enabled=enabled, actor="ada")
        answering = policies.policy_for(session, "digits")
        assert answering is not None
        assert answering.name == "b"
        policies.set_policy(session, name="b", task="digits", settings={"rounds": 9}, enabled=False, actor="ada")
        answering = policies.policy_for(session, "digits")
        assert answering is not None
        assert answering.name == "c"
        assert [policy.name for policy in policies.list_policies(session, task="digits")] == ["a", "b", "c"]
        assert policies.get_policy(session, "b").settings == {"rounds": 9}
        assert policies.policy_for(session, "har") is None


def test_killed_before_any_write_the_next_controller_reaches_the_same_end(tmp_path: Path) -> None:
    CLOCK.reset()
    begun = CLOCK.now

    def run_killed_at(at: int) -> tuple[bool, list[Any]]:
        CLOCK.now = begun
        context = prepare(tmp_path / f"plane-{at}")
        add_policy(context, cooldown_ms=0)
        report(context, "d0")
        report(context, "d1")
        add_labels(context)
        switch = KillSwitch(context.database)
        cures = FakeCures(outcomes=["campaign fails", "cured"])

        def work(controller: IncidentController) -> None:
            while state(context) != "resolved":
                controller.step()
                armed, switch.at, count = switch.at, 0, switch.count
                cures.work(context)  # what the incident waits for is not killed
                switch.at, switch.count = armed, count
                CLOCK.now += 1_000

        killed = run_with_kills(
            at, switch, lambda: IncidentController(context, cures=cures, clock=lambda: CLOCK.now), work
        )
        end = [
            dump(context, Incident, "state", "attempts", "campaign_id", "candidate_id", "release_made", "rollout_id"),
            dump(context, Campaign, "id", "state"),
            dump(context, Candidate, "id", "state"),
            dump(context, Rollout, "id", "state"),
            [action for (action,) in dump(context, AuditRow, "action")],
        ]
        context.close()
        return killed, end

    undisturbed = run_killed_at(0)[1]
    assert undisturbed[0] == [("resolved", 1, "campaign-2", "candidate-2", "release-of-candidate-2", "rollout-1")]
    kills = 0
    for at in range(1, 200):
        killed, end = run_killed_at(at)
        if not killed:
            break
        kills += 1
        assert end == undisturbed, f"killed before write {at}"
    assert kills > 25
