"""What a device tells of itself, with which code it stays out, and which samples are fresh."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.config import AgentLayout
from skerry_agent.control.campaigns import PATIENCE_S, Invitations
from skerry_agent.control.observer import utc_offset_minutes
from skerry_agent.errors import DeviceError
from skerry_agent.policy.eligibility import Conditions, Limits, device_obstacle, invitation_obstacle
from skerry_agent.policy.labelled import FreshMark, count_fresh, count_labelled, read_mark
from skerry_agent.policy.pause import TrainingPause
from skerry_agent.training.fresh import FreshSamples
from skerry_agent.training.labelled_store import LabelledStore
from skerry_contract.campaign import STAY_OUT
from skerry_contract.v1.telemetry_pb2 import CampaignResponse, DeviceConditions
from unit.control.test_policy import FIT, INVITATION, LIMITS, command

STRICT = replace(LIMITS, on_metered=False, only_idle=True)

CODES: dict[str, dict[str, object]] = {
    "few-samples": {"labelled_samples": 1},
    "hot": {"temperature_c": 81.0},
    "battery": {"battery_percent": 3.0},
    "slow-answers": {"p99_us": 11_000},
    "busy": {"idle": False},
    "metered": {"metered": True},
    "updating": {"updating": True},
    "no-release": {"release_id": ""},
    "no-node": {"flower_node_id": 0},
    "other-task": {"task": "har"},
    "other-release": {"release_id": "digits-2"},
    "other-step": {"train_step_sha256": b""},
    "expired": {},
}


def test_every_code_has_its_case() -> None:
    assert set(CODES) == set(STAY_OUT)


@pytest.mark.parametrize("code", CODES)
def test_a_device_that_declines_says_why_in_a_word(code: str) -> None:
    sent: list[CampaignResponse] = []
    conditions = replace(FIT, **CODES[code])  # type: ignore[arg-type]  # fields of the table

    def respond(response: CampaignResponse) -> bool:
        sent.append(response)
        return True

    invitations = Invitations(STRICT, respond=respond)
    invitations.command(command(), now_s=0.0, now_ms=500)
    invitations.step(conditions, now_s=PATIENCE_S, now_ms=1_001 if code == "expired" else 500)
    (response,) = sent
    assert (response.accepted, response.reason_code) == (False, code)
    assert response.reason
    assert response.conditions == conditions.message()


def test_an_owner_may_allow_metered_and_busy_times() -> None:
    strained = replace(FIT, metered=True, idle=False)
    assert invitation_obstacle(INVITATION, strained, LIMITS, now_ms=0) is None
    assert device_obstacle(replace(FIT, idle=None), STRICT) is None, "what serving does not say keeps nobody out"


def test_conditions_leave_out_what_was_not_measured() -> None:
    bare = replace(FIT, temperature_c=None, battery_percent=None, p99_us=0)
    assert bare.message() == DeviceConditions(charging=True, metered=False, utc_offset_minutes=0)
    full = replace(FIT, idle=True, metered=True, fresh_samples=0, utc_offset_minutes=-210, charging=False)
    assert full.message() == DeviceConditions(
        idle=True,
        charging=False,
        battery_percent=80.0,
        metered=True,
        temperature_c=50.0,
        latency_p99_us=5_000,
        fresh_samples=0,
        utc_offset_minutes=-210,
    )
    assert replace(FIT, battery_percent=103.0).message().battery_percent == 100.0, "some drivers overshoot"
    assert full.message().HasField("fresh_samples")
    assert not bare.message().HasField("fresh_samples")


@pytest.mark.parametrize(
    ("strained", "relieved", "free"),
    [
        ({"temperature_c": 80.5}, {"temperature_c": 78.0}, {"temperature_c": 77.0}),
        ({"battery_percent": 29.0}, {"battery_percent": 31.0}, {"battery_percent": 32.0}),
        ({"p99_us": 10_100}, {"p99_us": 9_000}, {"p99_us": 8_000}),
        ({"metered": True}, {"metered": True}, {"metered": False}),
    ],
)
def test_a_pause_ends_with_a_margin(
    tmp_path: Path, strained: dict[str, object], relieved: dict[str, object], free: dict[str, object]
) -> None:
    file = tmp_path / "run" / "pause-training"
    pause = TrainingPause(AgentLayout(tmp_path))

    def follow(changes: dict[str, object]) -> bool:
        conditions: Conditions = replace(FIT, **changes)  # type: ignore[arg-type]  # fields of the table
        pause.follow(conditions, STRICT)
        return file.exists()

    assert not follow(free)
    assert [follow(strained), follow(relieved), follow(free), follow(free)] == [True, True, False, False]
    assert Limits(80.0, 99.0, 10.0).eased().battery_percent == 100.0


def test_the_offset_is_that_of_the_wall() -> None:
    assert utc_offset_minutes(datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=45)))) == 345
    assert utc_offset_minutes(datetime(2026, 1, 1, tzinfo=UTC)) == 0
    assert utc_offset_minutes(datetime(2026, 1, 1)) == 0  # noqa: DTZ001 (a clock that knows no zone)


def test_fresh_is_what_came_since_an_answer_that_counted(tmp_path: Path) -> None:
    path, marks = tmp_path / "labelled.sqlite", tmp_path / "training" / "fresh.json"
    assert count_fresh(path, FreshMark()) == 0
    store = LabelledStore(path, 10)
    fresh = FreshSamples(marks, store)
    names = iter(range(100))

    def label(count: int, *, shape: int = 3) -> None:
        for _ in range(count):
            store.add(f"request-{next(names)}", np.zeros(shape, np.float32), 1)

    def counts() -> int:
        return count_fresh(path, read_mark(marks))

    label(6)
    assert counts() == count_labelled(path) == 6
    fresh.loading()
    label(1)
    fresh.answered("campaign-1", 1)
    assert counts() == 1, "it came after the samples had been loaded"
    label(2)
    assert counts() == 3
    fresh.heard("campaign-1", None)
    fresh.heard("another", 0)
    fresh.heard("campaign-1", 1)
    assert counts() == 3
    fresh.loading()
    fresh.answered("campaign-1", 2)
    assert counts() == 0
    fresh.loading()
    fresh.answered("campaign-1", 2)  # trained again
    fresh.heard("campaign-1", 1)
    assert counts() == 3, "the answer of round 2 did not count"
    label(9)
    assert (counts(), count_labelled(path)) == (10, 10), "evicted samples are not counted"
    label(1, shape=5)
    assert counts() == 1, "training takes one shape"
    store.close()
    path.unlink()
    other = LabelledStore(path, 10)
    other.add("request", np.zeros(3, np.float32), 1)
    assert counts() == 1, "positions of another store mean nothing"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"store_id": "x"}', '{"store_id": 3, "position": "x"}'])
def test_a_broken_mark_makes_everything_fresh(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labelled.sqlite"
    LabelledStore(path, 5).add("request", np.zeros(3, np.float32), 1)
    (tmp_path / "fresh.json").write_text(text)
    assert read_mark(tmp_path / "fresh.json") == FreshMark()
    assert count_fresh(path, read_mark(tmp_path / "fresh.json")) == 1
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 200)
    with pytest.raises(DeviceError, match="labelled samples"):
        count_fresh(broken, FreshMark())
