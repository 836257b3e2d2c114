"""Settings, adaptive clipping and the plan over rounds, kills included."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skerry_server.errors import InvalidRequestError
from skerry_server.federation.privacy import (
    AdaptiveClip,
    PrivacyBudgetError,
    PrivacyPlan,
    PrivacyState,
    check_compatible,
    parse_privacy,
)

CENTRAL = {"mode": "central", "clip_norm": 2.0, "noise_multiplier": 1.0}
MODEL = {"w": np.zeros(50, np.float32)}


def adaptive(**changes: Any) -> AdaptiveClip:
    rules: dict[str, Any] = {
        "quantile": 0.5,
        "rate": 0.2,
        "count_std": 0.0,
        "noise_multiplier": 1.0,
        "participants": 100,
    }
    return AdaptiveClip.of(**{**rules, **changes})


class TestSettings:
    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"mode": "none"},
            CENTRAL,
            {"mode": "local", "target_epsilon": 3},
            {**CENTRAL, "clip": "adaptive", "target_quantile": 0.3},
            {**CENTRAL, "sampling": "poisson", "sampling_probability": 0.2},
        ],
    )
    def test_what_is_written_is_read_back(self, given: dict[str, object]) -> None:
        settings = parse_privacy(given)
        assert parse_privacy(settings.as_dict()) == settings

    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({"mode": "global"}, "mode"),
            ({"mode": "none", "clip_norm": 1.0}, "mode"),
            ({"clip_norm": 1.0}, "mode"),
            ({**CENTRAL, "epsilon": 3}, "epsilon"),
            ({**CENTRAL, "clip_norm": 0}, "clip_norm"),
            ({**CENTRAL, "clip_norm": math.nan}, "clip_norm"),
            ({**CENTRAL, "clip_norm": "1"}, "clip_norm"),
            ({**CENTRAL, "delta": 0}, "delta"),
            ({**CENTRAL, "delta": True}, "delta"),
            ({**CENTRAL, "noise_multiplier": -1}, "noise_multiplier"),
            ({"mode": "central"}, "noise_multiplier"),
            ({**CENTRAL, "mode": "local", "clip": "adaptive"}, "clip"),
            ({**CENTRAL, "mode": "distributed", "clip": "adaptive"}, "clip"),
            ({**CENTRAL, "mode": "local", "sampling": "poisson"}, "sampling"),
            ({**CENTRAL, "clip": "adaptive", "target_quantile": 1}, "target_quantile"),
            ({**CENTRAL, "sampling": "poisson", "accountant": "exact"}, "accountant"),
            ({**CENTRAL, "sampling_probability": 0.5}, "sampling_probability"),
        ],
    )
    def test_what_is_wrong_is_named(self, given: dict[str, object], field: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            parse_privacy(given)
        assert caught.value.field == f"settings.privacy.{field}"

    def test_sampling_takes_the_accountant_that_knows_it(self) -> None:
        assert parse_privacy({**CENTRAL, "sampling": "poisson"}).accountant == "pld"

    @pytest.mark.parametrize(
        ("mode", "rest", "field"),
        [
            ("central", {"strategy": "krum"}, "strategy"),
            ("central", {"strategy": "scaffold"}, "strategy"),
            ("local", {"strategy": "qfedavg"}, "strategy"),
            ("central", {"strategy": "fedavg", "mode": "buffered"}, "settings.mode"),
            ("local", {"strategy": "fedbuff", "mode": "buffered"}, "settings.mode"),
            ("central", {"strategy": "fedavg", "norm_bound": 2.0}, "settings.norm_bound"),
            ("local", {"strategy": "fedavg", "selection": "oort"}, "settings.selection"),
            ("distributed", {"strategy": "fedavg"}, "settings.secure_aggregation"),
            ("distributed", {"strategy": "scaffold", "secure_aggregation": True}, "strategy"),
        ],
    )
    def test_what_would_break_the_guarantee_is_refused(self, mode: str, rest: dict[str, Any], field: str) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            check_compatible(parse_privacy({**CENTRAL, "mode": mode}), **rest)
        assert caught.value.field == field

    def test_what_keeps_the_guarantee_is_allowed(self) -> None:
        check_compatible(parse_privacy({}), strategy="krum", mode="buffered", selection="oort", norm_bound=3)
        check_compatible(parse_privacy({**CENTRAL, "mode": "local"}), strategy="krum", norm_bound=3)
        check_compatible(parse_privacy(CENTRAL), strategy="fedadam", secure_aggregation=True)


class TestAdaptiveClipping:
    def test_the_pair_costs_what_one_release_costs(self) -> None:
        rules = adaptive(count_std=5.0)
        assert rules.sum_multiplier == pytest.approx((1 - 0.01) ** -0.5)
        # mu of the sum squared plus mu of the bits (sensitivity 1/2) squared is that of the multiplier asked for.
        assert rules.sum_multiplier**-2 + (0.5 / 5.0) ** 2 == pytest.approx(1.0)

    def test_few_devices_get_a_count_noise_that_leaves_something_for_the_sum(self) -> None:
        rules = adaptive(participants=5, noise_multiplier=3.0)
        assert rules.count_std == 3.0
        assert rules.sum_multiplier == pytest.approx(3.0 / math.sqrt(0.75))

    def test_bits_that_cost_more_than_a_round_may_are_refused(self) -> None:
        with pytest.raises(ValueError, match="count_std must be above half"):
            adaptive(count_std=0.5)

    def test_steps_by_hand(self) -> None:
        rules = adaptive(count_std=4.0)
        share = rules.share(80, 100, 0.5)
        assert share == pytest.approx((80 - 50 + 2) / 100 + 0.5)
        assert rules.next(2.0, share) == pytest.approx(2.0 * math.exp(-0.2 * 0.32))
        assert rules.share(30, 60, 0.0) == pytest.approx(0.5)  # of those who came half is below, so nothing moves

    def test_it_finds_the_quantile(self) -> None:
        rng = np.random.default_rng(3)
        rules, clip_norm = adaptive(participants=1000, quantile=0.7), 0.1
        for _ in range(80):
            below = int((rng.lognormal(1.0, 0.5, 1000) <= clip_norm).sum())
            clip_norm = rules.next(clip_norm, rules.share(below, 1000, rng.normal()))
        assert clip_norm == pytest.approx(math.exp(1.0 + 0.5 * 0.5244), rel=0.1)

    def test_the_norm_stays_a_number(self) -> None:
        assert adaptive(rate=5.0).next(1e6, -1e9) == 1e6
        assert adaptive(rate=5.0).next(1e-6, 1e9) == 1e-6


class TestPlan:
    def test_without_privacy_nothing_changes(self) -> None:
        plan = PrivacyPlan.from_settings({}, rounds=5)
        assert (plan.enabled, plan.central, plan.contribution_weight) == (False, False, None)

    def test_the_device_is_told_to_clip_and_in_local_mode_to_add_noise_of_twice_the_norm(self) -> None:
        central = PrivacyPlan.from_settings(CENTRAL, rounds=5)
        assert central.device_fields(central.start(10)) == {"clip_norm": 2.0, "noise_std": 0.0}
        local = PrivacyPlan.from_settings({**CENTRAL, "mode": "local", "noise_multiplier": 1.5}, rounds=5)
        assert local.device_fields(local.start(10)) == {"clip_norm": 2.0, "noise_std": 2 * 2.0 * 1.5}
        assert local.contribution_weight == 1.0
        assert not local.central

    def test_the_planned_rounds_fit_the_target_and_the_next_one_is_refused(self) -> None:
        plan = PrivacyPlan.from_settings({"mode": "central", "target_epsilon": 2.0}, rounds=4)
        state = plan.start(20)
        spent = []
        for _ in range(4):
            plan.admit(state)
            state = plan.committed(state)
            spent.append(plan.epsilon(state))
        assert spent == sorted(spent)
        assert 1.99 < spent[-1] <= 2.0
        with pytest.raises(
            PrivacyBudgetError, match=r"round 5 would spend epsilon 2\.\d+ of 2 at delta 1e-05"
        ) as caught:
            plan.admit(state)
        assert caught.value.spent == spent[-1]
        assert caught.value.next_epsilon > caught.value.budget == 2.0

    def test_a_multiplier_and_a_budget_end_the_campaign_early(self) -> None:
        plan = PrivacyPlan.from_settings({**CENTRAL, "target_epsilon": 7.0}, rounds=100)
        state = plan.start(20)
        for _ in range(2):  # 4.38 and 6.57; the third would make it 8.38
            plan.admit(state)
            state = plan.committed(state)
        with pytest.raises(PrivacyBudgetError, match="round 3"):
            plan.admit(state)

    def test_a_resumed_process_reads_what_was_spent_and_the_norm(self) -> None:
        given = {**CENTRAL, "clip": "adaptive"}
        state = PrivacyPlan.from_settings(given, rounds=9).start(3)
        key = PrivacyPlan.new_key()
        for _ in range(3):  # each round in a plan of its own, with nothing but the journalled numbers
            plan = PrivacyPlan.from_settings(given, rounds=9)
            state = PrivacyState.from_numbers({**state.numbers(), "other": 1.0})
            aggregation = plan.aggregation(MODEL, state, key=key, campaign_id="c")
            aggregation.add({"w": np.full(50, 9.0, np.float32)})
            aggregation.result()
            state = plan.committed(state, aggregation)
        assert state.rounds == 3
        assert state.clip_norm != 2.0
        assert plan.epsilon(state) == plan.epsilon(replace(state, clip_norm=2.0))

    def test_a_round_that_is_made_again_after_a_kill_is_the_same_round(self) -> None:
        plan = PrivacyPlan.from_settings({**CENTRAL, "clip": "adaptive"}, rounds=9)
        state, key = plan.start(2), PrivacyPlan.new_key()
        updates = [{"w": np.full(50, value, np.float32)} for value in (0.1, 3.0)]
        made = []
        for order in (updates, updates[::-1]):
            aggregation = plan.aggregation(MODEL, state, key=key, campaign_id="c")
            for update in order:
                aggregation.add(update)
            made.append((aggregation.result()["w"].tobytes(), plan.committed(state, aggregation)))
        assert made[0] == made[1]

    @pytest.mark.parametrize(
        "damage",
        [
            {"privacy_rounds": None},
            {"privacy_rounds": 1.5},
            {"privacy_rounds": -1.0},
            {"privacy_participants": 0.0},
            {"privacy_noise_multiplier": 0.0},
            {"privacy_clip_norm": math.inf},
            {"privacy_clip_norm": math.nan},
            {"privacy_rounds": math.nan},
        ],
    )
    def test_a_damaged_journal_is_not_taken_for_nothing_spent(self, damage: dict[str, float | None]) -> None:
        numbers = {**PrivacyState(3, 1.0, 2.0, 4).numbers(), **damage}
        with pytest.raises(ValueError, match="the journal"):
            PrivacyState.from_numbers({name: value for name, value in numbers.items() if value is not None})

    def test_settings_that_leave_no_noise_for_the_sum_are_a_bad_request(self) -> None:
        plan = PrivacyPlan.from_settings({**CENTRAL, "clip": "adaptive", "count_std": 0.1}, rounds=2)
        with pytest.raises(InvalidRequestError, match="count_std"):
            plan.start(10)

    def test_adaptive_clipping_raises_the_noise_of_the_sum_and_not_what_is_spent(self) -> None:
        fixed = PrivacyPlan.from_settings(CENTRAL, rounds=2)
        moving = PrivacyPlan.from_settings({**CENTRAL, "clip": "adaptive"}, rounds=2)
        big = {"w": np.zeros(40_000, np.float32)}
        std = []
        for plan in (fixed, moving):
            aggregation = plan.aggregation(big, plan.start(4), key=bytes(32), campaign_id="c")
            aggregation.add(big)
            std.append(aggregation.result()["w"].std())
        assert std[1] / std[0] == pytest.approx(1 / math.sqrt(0.75), rel=0.03)
        assert fixed.epsilon(fixed.committed(fixed.start(4))) == moving.epsilon(replace(moving.start(4), rounds=1))

    def test_poisson_draws_each_device_by_itself(self) -> None:
        plan = PrivacyPlan.from_settings({**CENTRAL, "sampling": "poisson", "sampling_probability": 0.3}, rounds=2)
        devices = [f"d{number}" for number in range(4_000)]
        drawn = [plan.draw(devices) for _ in range(2)]
        for one in drawn:
            assert abs(len(one) - 1200) < 5 * math.sqrt(4_000 * 0.3 * 0.7)
        assert drawn[0] != drawn[1]
        assert abs(len(set(drawn[0]) & set(drawn[1])) - 360) < 5 * math.sqrt(4_000 * 0.09 * 0.91)
        assert PrivacyPlan.from_settings(CENTRAL, rounds=2).draw(devices) == tuple(devices)
        assert plan.start(4_000).participants == 1200  # the sum is divided by the expected number

    def test_lineage_and_metrics_say_what_was_spent(self) -> None:
        plan = PrivacyPlan.from_settings(CENTRAL, rounds=2)
        state = plan.committed(plan.start(10))
        lineage = plan.lineage(state)
        assert lineage.pop("epsilon") == pytest.approx(4.3770, abs=1e-3)
        assert lineage == {
            "mode": "central",
            "clip": "fixed",
            "clip_norm": 2.0,
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "accountant": "exact",
            "sampling": "none",
            "sampling_probability": 1.0,
            "rounds": 1,
            "adjacency": "client",
            "relation": "add-or-remove",
        }
        assert plan.metrics(state)["privacy_epsilon"] == plan.epsilon(state)
        assert PrivacyState.from_numbers(plan.metrics(state)) == state
