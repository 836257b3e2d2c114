"""Who takes part in a round, and what is remembered of it: the rows behind selection, caps and reasons."""

from __future__ import annotations

from typing import Any

import pytest

from skerry_models.task import CampaignDefaults
from skerry_server.federation.participants import participation
from skerry_server.federation.settings import CampaignSettings, parse_settings
from skerry_server.store import Database
from skerry_server.store.tables import Base, Campaign, CampaignParticipant, CampaignRound, CampaignUpdate, Device

DEFAULTS = CampaignDefaults(rounds=8, local_epochs=2, batch_size=16, learning_rate=0.02, proximal_mu=0.0)
NOW = 1_000_000_000
DEVICES = ("a", "b", "c", "d", "e", "f")
C = "campaign-1"


@pytest.fixture
def database() -> Database:
    made = Database("sqlite://")
    Base.metadata.create_all(made.engine)
    with made.transaction() as session:
        session.add(
            Campaign(
                id=C, task="digits", base_release="r1", cohort_id="all", strategy="fedavg", settings={},
                state="running", created_by="ada", created_ms=1, updated_ms=1,
            )
        )  # fmt: skip
        session.flush()
        for name in DEVICES:
            session.add(Device(id=name, enrolled_ms=1, conditions={"temperature_c": 40.0}, conditions_ms=NOW - 1_000))
            session.add(CampaignParticipant(campaign_id=C, device_id=name, state="accepted"))
        session.add(CampaignParticipant(campaign_id=C, device_id="z", state="excluded", reason_code="offline"))
        session.add(CampaignParticipant(campaign_id=C, device_id="y", state="declined", reason_code="hot"))
    return made


def settings(**given: Any) -> CampaignSettings:
    return parse_settings(DEFAULTS, given)


def choose(database: Database, number: int, chosen: CampaignSettings, **changes: Any) -> tuple[str, ...]:
    with database.transaction() as session:
        return participation.choose(session, C, chosen, round_number=number, **({"at_ms": NOW} | changes))


def row(database: Database, name: str) -> CampaignParticipant:
    with database.reading() as session:
        return session.get_one(CampaignParticipant, (C, name))


def commit(database: Database, number: int, updates: dict[str, dict[str, float]], **failures: str) -> None:
    with database.transaction() as session:
        committed = CampaignRound(
            campaign_id=C, number=number, invited=6, accepted=len(updates), accuracy=0.9, loss=0.1, seconds=1.0,
            parameters_sha256="0" * 64, failures=failures, committed_ms=NOW,
        )  # fmt: skip
        rows = [
            CampaignUpdate(
                campaign_id=C, round=number, device_id=name, examples=50, parameters_sha256="1" * 64,
                metrics=metrics, received_ms=NOW + number,
            )
            for name, metrics in updates.items()
        ]  # fmt: skip
        session.add_all([committed, *rows])
        participation.note_commit(session, committed, rows)


def test_everybody_who_accepted_is_asked_by_default(database: Database) -> None:
    assert choose(database, 1, settings()) == DEVICES
    assert row(database, "a").last_selected == 1
    assert row(database, "z").last_selected == 0


def test_a_round_that_is_chosen_again_keeps_its_devices(database: Database) -> None:
    few = settings(per_round=2, over_selection=1.5)
    first = choose(database, 1, few)
    assert len(first) == 3
    # Also when they are away now; and nobody takes a place that is not free.
    assert choose(database, 1, few, available=set(DEVICES) - set(first)) == first
    assert choose(database, 1, few, available=set()) == first


def test_free_places_are_filled_when_devices_come(database: Database) -> None:
    few = settings(per_round=3)
    assert choose(database, 1, few, available={"b"}) == ("b",)
    later = choose(database, 1, few)
    assert len(later) == 3
    assert "b" in later


def test_the_sample_of_privacy_is_taken_as_it_is_drawn(database: Database) -> None:
    private = settings(
        privacy={"mode": "central", "noise_multiplier": 1.0, "sampling": "poisson", "sampling_probability": 0.5}
        | {"accountant": "pld"}
    )
    assert choose(database, 1, private, available={"b", "d"}) == ("b", "d")
    assert choose(database, 1, private, available={"a", "e"}) == ("b", "d")


def test_the_rules_hold_in_every_round_and_the_row_says_why_not(database: Database) -> None:
    cool = settings(eligibility={"maximum_temperature_c": 60})
    with database.transaction() as session:
        session.get_one(Device, "c").conditions = {"temperature_c": 71.0}
        session.get_one(Device, "d").conditions_ms = 0
    assert choose(database, 1, cool) == ("a", "b", "e", "f")
    assert (row(database, "c").reason_code, row(database, "c").reason) == ("hot", "71 °C, at most 60 °C wanted")
    assert row(database, "d").reason_code == "unmeasured"
    with database.transaction() as session:
        session.get_one(Device, "c").conditions = {"temperature_c": 50.0}
    assert "c" in choose(database, 2, cool)
    assert row(database, "c").reason_code == ""


def test_fresh_samples_are_a_matter_of_recruiting(database: Database) -> None:
    assert choose(database, 2, settings(eligibility={"minimum_fresh": 10})) == DEVICES


def test_a_commit_counts_each_update_once_and_keeps_what_selection_needs(database: Database) -> None:
    commit(
        database, 1, {"a": {"seconds": 3.0, "squared_loss": 0.64}, "b": {"seconds": 2.0}}, c="hot: 91 °C", d="no answer"
    )
    a = row(database, "a")
    assert (a.rounds, a.last_round, a.seconds) == (1, 1, 3.0)
    assert a.utility == pytest.approx(40.0)
    assert row(database, "b").utility == -1.0
    assert (row(database, "c").reason_code, row(database, "c").reason) == ("hot", "91 °C")
    assert (row(database, "d").reason_code, row(database, "d").reason) == ("failed", "no answer")
    assert row(database, "c").state == "accepted"
    with database.reading() as session:
        device = session.get_one(Device, "a")
        assert (device.participations, device.last_participation_ms) == (1, NOW + 1)
        assert session.get_one(Device, "c").participations == 0
    commit(database, 2, {"c": {"seconds": 1.0, "squared_loss": 0.0}})
    assert (row(database, "c").reason_code, row(database, "c").utility) == ("", 0.0)


def test_a_secure_sum_counts_for_those_that_were_chosen_and_did_not_fail(database: Database) -> None:
    asked = choose(database, 1, settings(), available={"a", "b", "c"})
    assert asked == ("a", "b", "c")
    commit(database, 1, {"secure-sum": {"devices": 2.0}}, c="no answer")
    assert [row(database, name).rounds for name in DEVICES] == [1, 1, 0, 0, 0, 0]
    assert row(database, "a").utility == -1.0
    with database.reading() as session:
        assert session.get_one(Device, "b").participations == 1


def test_who_reached_the_cap_is_left_alone(database: Database) -> None:
    capped = settings(participation_cap=1)
    commit(database, 1, {"a": {}, "b": {}})
    assert choose(database, 2, capped) == ("c", "d", "e", "f")
    assert row(database, "a").reason_code == "capped"


def test_by_utility_the_useful_ones_are_asked(database: Database) -> None:
    oort = settings(selection="oort", per_round=2, exploration=0.0)
    losses = {"a": 0.01, "b": 4.0, "c": 4.0, "d": 0.01, "e": 0.01, "f": 0.01}
    commit(database, 1, {name: {"seconds": 1.0, "squared_loss": loss} for name, loss in losses.items()})
    assert choose(database, 2, oort) == ("b", "c")


def test_reasons_are_counted_with_an_example(database: Database) -> None:
    with database.transaction() as session:
        session.get_one(CampaignParticipant, (C, "c")).reason_code = "hot"
        session.get_one(CampaignParticipant, (C, "c")).reason = "71 °C"
        session.flush()
        rows = [session.get_one(CampaignParticipant, (C, name)) for name in ("a", "c", "y", "z")]
        counted = participation.count_reasons(rows)
    assert [(each.code, each.devices, each.example) for each in counted] == [
        ("hot", 2, "c: 71 °C"),
        ("offline", 1, "z"),
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("hot: 91 °C", ("hot", "91 °C")),
        ("rejected: parameters[w]: not finite", ("failed", "rejected: parameters[w]: not finite")),
        ("no answer", ("failed", "no answer")),
    ],
)
def test_what_a_device_said_in_a_round(said: str, expected: tuple[str, str]) -> None:
    assert participation.split_reason(said) == expected
