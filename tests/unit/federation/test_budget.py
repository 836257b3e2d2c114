"""When a campaign stops: rounds, budgets, no improvement; and which rounds may win."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_server.federation.rounds import deployed
from skerry_server.federation.rounds.budget import ending, energy_wh, spent
from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.federation.rounds.phases import PhaseOverrunError, Phases
from skerry_server.federation.rounds.round_loop import RoundFailedError
from skerry_server.federation.settings import CampaignSettings
from unit.federation.fakes import Clock
from unit.federation.world import World, three


def settings(**given: object) -> CampaignSettings:
    defaults = {"rounds": 10, "local_epochs": 1, "batch_size": 8, "learning_rate": 0.1, "proximal_mu": 0.0}
    return CampaignSettings(**{**defaults, **given})  # type: ignore[arg-type]  # a table of fields


def record(number: int, *, accuracy: float = 0.5, seconds: float = 60.0, **metrics: float) -> RoundRecord:
    return RoundRecord(number, 3, 3, accuracy, 0.1, seconds, "0" * 64, metrics, 1)


def figures(rounds: list[RoundRecord]) -> list[tuple[int, float]]:
    return deployed.figures(rounds, judged=False)


TWO = [record(1, bytes_up=300.0, bytes_down=100.0, energy_wh=1.0), record(2, bytes_up=500.0, bytes_down=100.0)]
ENDINGS: dict[str, tuple[dict[str, object], list[RoundRecord], str]] = {
    "nothing is done": ({"maximum_bytes": 1}, [], ""),
    "rounds are left": ({}, TWO, ""),
    "all rounds": ({"rounds": 2}, TWO, "all 2 rounds are done"),
    "bytes last for another": ({"maximum_bytes": 1600}, TWO, ""),
    "bytes do not": ({"maximum_bytes": 1599}, TWO, "the budget of 1599 bytes does not last for another round: 1000"),
    "minutes last": ({"maximum_minutes": 3.0}, TWO, ""),
    "minutes do not": ({"maximum_minutes": 2.9}, TWO, "the budget of 2.9 minutes does not last"),
    "energy does not": ({"maximum_energy_wh": 1.5}, TWO, "the budget of 1.5 watt-hours does not last"),
    "still better": ({"early_stopping_rounds": 2}, [record(1, accuracy=0.4), record(2), record(3)], ""),
    "no better for two": (
        {"early_stopping_rounds": 2},
        [record(1), record(2, accuracy=0.4), record(3)],
        "no improvement over round 1 for 2 rounds",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_ending(name: str) -> None:
    given, rounds, expected = ENDINGS[name]
    ended = ending(settings(**given), rounds, figures(rounds))
    assert ended.startswith(expected) if expected else ended == ""


def test_costs_add_up() -> None:
    total = spent(TWO)
    assert (total.bytes, total.minutes, total.energy_wh) == (1000.0, 2.0, 1.0)
    # An hour at 3 W, and 4.5 GB at 0.8 microjoules a byte.
    assert energy_wh(3600.0, 4.5e9) == pytest.approx(3.0 + 1.0)


def test_a_campaign_ends_inside_its_budget_and_delivers(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=10, maximum_bytes=1)
    result = world.run().run()
    assert (result.rounds, result.best.number) == (1, 1)
    assert result.ended.startswith("the budget of 1 bytes does not last for another round")


def test_early_stopping_delivers_the_best(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=10, early_stopping_rounds=2)
    world.accuracy = lambda level: 1 - abs(level - 3.5) / 10
    result = world.run().run()
    assert (result.rounds, result.best.number) == (4, 2)
    assert result.ended == "no improvement over round 2 for 2 rounds"
    again = world.run().run()  # a process that is started again comes to the same end
    assert (again.rounds, again.ended) == (4, result.ended)


# Judged as deployed.


def test_judged_figures_decide_when_there_are_any(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=5, judge_every=2, early_stopping_rounds=1)
    seen: list[float] = []

    def judge(state: object) -> dict[str, float]:
        level = float(state["w"][0])  # type: ignore[index]  # a state
        seen.append(level)
        return {deployed.ACCURACY: {0.0: 0.3, 3.5: 0.9, 7.0: 0.8}[round(level, 2)], "deployed_agreement": 0.95}

    world.judge = judge
    result = world.run().run()
    assert seen == pytest.approx([0.0, 3.5, 7.0])  # the base, and rounds 2 and 4
    assert (result.best.number, result.rounds) == (2, 4)  # float32 would have gone on and taken the last
    assert result.best.accuracy == pytest.approx(0.35)
    assert result.metrics[deployed.ACCURACY] == 0.9
    assert result.metrics["deployed_agreement"] == 0.95


def test_the_last_round_is_always_judged(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=3, judge_every=2)
    world.judge = lambda state: {deployed.ACCURACY: float(state["w"][0]) / 10}
    assert world.run().run().best.number == 3
    judged = [number for number, _ in deployed.figures(world.journal.rounds(), judged=True)]
    assert judged == [2, 3]


def test_only_judged_rounds_compete() -> None:
    rounds = [record(1, accuracy=0.9), record(2, accuracy=0.5, deployed_accuracy=0.4)]
    assert [(each.number, each.accuracy) for each in deployed.competing(rounds, judged=True)] == [(2, 0.4)]
    assert deployed.competing(rounds, judged=False) == rounds
    assert deployed.competing(rounds[:1], judged=True) == rounds[:1]


@pytest.mark.parametrize(("microseconds", "expected"), [(10, 0), (999, 0), (1000, 1), (50_000, 2), (100_000, 3)])
def test_latency_classes(microseconds: float, expected: int) -> None:
    assert deployed.latency_class(microseconds) == expected


# Phases.


def test_phases_of_a_round_are_told_in_order_and_timed(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=2)
    world.run().run()
    names = ["configure", "collect", "aggregate", "evaluate", "commit"]
    assert world.phases == [(number, name) for number in (1, 2) for name in names]


def test_a_phase_that_takes_too_long_ends_the_round_and_commits_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=2)
    evaluate = world.evaluate

    def slow(state: object) -> object:
        world.clock.now += 601.0 if world.phases else 0.0
        return evaluate(state)  # type: ignore[arg-type]

    world.evaluate = slow  # type: ignore[method-assign,assignment]
    with pytest.raises(PhaseOverrunError, match=r"evaluate \(measuring it on the holdout\) took longer than 600 s"):
        world.run().run()
    assert world.journal.rounds() == []
    assert len(world.journal.recorded(1)) == 3  # nobody trains again


def test_there_is_no_other_phase() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    with pytest.raises(ValueError, match="no phase 'sleep'"), phases.phase("sleep"):
        pass
    with phases.phase("commit"):
        clock.now += 2.0
    assert phases.seconds == {"commit": 2.0}
    phases.check()


# Who is asked.


def test_k_of_n_in_the_order_of_selection(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=2, per_round=1, over_selection=2.0, quorum=1.0)
    world.choose = lambda number: ("c", "b", "a") if number == 1 else ("b", "a", "c")
    world.run().run()
    assert [record.accepted for record in world.journal.rounds()] == [1, 1]
    assert [record.invited for record in world.journal.rounds()] == [2, 2]
    assert {update.device_id for update in world.journal.recorded(1)} <= {"b", "c"}
    assert {update.device_id for update in world.journal.recorded(2)} <= {"a", "b"}


def test_a_strategy_needs_its_minimum_whatever_the_quorum(tmp_path: Path) -> None:
    world = World(tmp_path, three(), strategy="krum", strategy_settings={"byzantine": 1}, quorum=0.1)
    with pytest.raises(RoundFailedError, match="3 of at least 5 devices answered"):
        world.run().run()


def test_a_round_that_has_too_few_devices_is_filled_up_later(tmp_path: Path) -> None:
    world = World(tmp_path, three(), rounds=1, quorum=1.0)
    calls: list[int] = []

    def choose(number: int) -> tuple[str, ...]:
        calls.append(number)
        return ("a",) if len(calls) == 1 else ("a", "b", "c")

    world.choose = choose
    world.run().run()
    assert world.journal.rounds()[0].accepted == 3
    assert calls == [1, 1]
