from __future__ import annotations

import pytest

from skerry_server.api.loop import Observed, describe_loop

_ORDER = ["train", "gates", "release", "rollout", "fleet", "drift", "incident", "campaign"]


def test_the_boxes_stand_in_the_order_in_which_work_goes_round() -> None:
    assert [stage.key for stage in describe_loop(Observed())] == _ORDER


def test_an_empty_control_plane_is_idle_everywhere() -> None:
    assert {stage.mood for stage in describe_loop(Observed())} == {"idle"}


@pytest.mark.parametrize(
    ("key", "seen", "mood", "value"),
    [
        ("train", Observed(jobs={"train": 1}), "busy", "1 job"),
        ("train", Observed(jobs={"campaign": 1}), "idle", "\N{EN DASH}"),
        ("gates", Observed(candidates={"built": 2, "passed": 1}), "busy", "2 judged"),
        ("gates", Observed(candidates={"passed": 1}), "attention", "1 passed"),
        ("gates", Observed(candidates={"released": 3, "rejected": 1}), "idle", "\N{EN DASH}"),
        ("release", Observed(releases=2), "good", "2 releases"),
        ("release", Observed(releases=2, champions={"digits": "digits-2"}), "good", "digits-2"),
        ("release", Observed(releases=2, champions={"a": "a-1", "b": "b-1"}), "good", "2 champions"),
        ("rollout", Observed(rollouts=1), "busy", "1 active"),
        ("fleet", Observed(devices=8, online=8), "good", "8/8"),
        ("fleet", Observed(devices=8, online=7), "attention", "7/8"),
        ("fleet", Observed(devices=8, online=7, updating=1), "busy", "7/8"),
        ("drift", Observed(judged=8), "good", "0/8"),
        ("drift", Observed(judged=8, drifting=3), "attention", "3/8"),
        ("incident", Observed(judged=1), "good", "0 open"),
        ("incident", Observed(open_incidents=1), "busy", "1 open"),
        ("incident", Observed(open_incidents=2, waiting_incidents=1), "attention", "2 open"),
        ("campaign", Observed(campaigns=1, campaign_says="fedprox, 2 of 5 rounds"), "busy", "1 active"),
    ],
)
def test_what_is_seen_decides_mood_and_value(key: str, seen: Observed, mood: str, value: str) -> None:
    stage = describe_loop(seen)[_ORDER.index(key)]
    assert (stage.mood, stage.value) == (mood, value)
    assert stage.detail
