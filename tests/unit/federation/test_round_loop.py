"""One round, with every fault that devices and networks have."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from skerry_contract.campaign import TRAIN
from skerry_contract.tensors import Array, encode_bundle
from skerry_server.federation.exchange import Broadcast, ExchangeLostError
from skerry_server.federation.rounds.round_loop import Collected, RoundCollector, RoundFailedError, RoundRules
from skerry_server.federation.rounds.updates import read_update
from unit.federation.fakes import Clock, FakeDevice, FakeExchange

MODEL: dict[str, Array] = {"w": np.zeros(2, np.float32)}
BROADCAST = Broadcast(TRAIN, "1", {"parameters": encode_bundle(MODEL)}, 60.0)


@dataclass
class Scenario:
    """Devices, rules, and what must come of them."""

    devices: list[FakeDevice]
    quorum: int
    accepted: set[str] | None
    failures: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    longest_s: float = 60.0
    deadline_s: float = 30.0


def device(name: str, *faults: str, delay_s: float = 0.1, node_id: int | None = -1) -> FakeDevice:
    number = ord(name) - ord("a") + 1
    return FakeDevice(name, number if node_id == -1 else node_id, delay_s=delay_s, faults=deque(faults))


SCENARIOS = {
    "everybody answers": Scenario([device("a"), device("b"), device("c")], 2, {"a", "b", "c"}, longest_s=0.5),
    "a straggler within the grace counts": Scenario(
        [device("a"), device("b"), device("c", delay_s=1.0)], 2, {"a", "b", "c"}, longest_s=1.4
    ),
    "a silent device costs the grace, not the deadline": Scenario(
        [device("a"), device("b"), device("c", "silent")], 2, {"a", "b"}, {"c": "no answer"}, longest_s=1.6
    ),
    "a late device is left behind": Scenario(
        [device("a"), device("b"), device("c", delay_s=20.0)], 2, {"a", "b"}, {"c": "no answer"}, longest_s=1.6
    ),
    "an error is asked again and then counts": Scenario(
        [device("a", "error"), device("b")], 2, {"a", "b"}, asked={"a": 2, "b": 1}
    ),
    "three errors are enough": Scenario(
        [device("a", "error", "error", "error"), device("b"), device("c")],
        2,
        {"b", "c"},
        {"a": "out of memory"},
        longest_s=4.0,
    ),
    "a refusal is final in this round": Scenario(
        [device("a", "refuse"), device("b")], 1, {"b"}, {"a": "fewer than 20"}, asked={"a": 1}
    ),
    "NaN is rejected and asked again": Scenario([device("a", "nan"), device("b")], 2, {"a", "b"}, asked={"a": 2}),
    "another shape is rejected": Scenario(
        [device("a", "shape", "shape", "shape"), device("b")], 1, {"b"}, {"a": r"rejected: parameters[w]: expected"}
    ),
    "other names are rejected": Scenario(
        [device("a", "names", "names", "names"), device("b")], 1, {"b"}, {"a": "differing: ['extra']"}
    ),
    "garbage is rejected": Scenario(
        [device("a", "garbage", "garbage", "garbage"), device("b")], 1, {"b"}, {"a": "examples: expected"}
    ),
    "nobody answers for another": Scenario(
        [device("a", *["other-device"] * 3), device("b")], 1, {"b"}, {"a": "somebody-else answered for a"}
    ),
    "a second answer is dropped": Scenario([device("a", "twice"), device("b", delay_s=0.9)], 2, {"a", "b"}, dropped=1),
    "a node that cannot be reached is tried again": Scenario(
        [device("a", "unreachable"), device("b")], 2, {"a", "b"}, asked={"a": 2}
    ),
    "a device that is away does not hold up a round with its quorum": Scenario(
        [device("a"), device("b"), device("c", node_id=None)], 2, {"a", "b"}, longest_s=0.5
    ),
    "too few until the deadline": Scenario(
        [device("a"), device("b", "silent"), device("c", "silent")], 2, None, longest_s=30.5
    ),
    "too few and nobody left to ask ends at once": Scenario(
        [device("a", "refuse"), device("b", "refuse")], 1, None, longest_s=0.5
    ),
    "nobody there": Scenario([device("a", node_id=None)], 1, None, deadline_s=5.0, longest_s=5.5),
}


def collect(scenario: Scenario, exchange: FakeExchange, clock: Clock, taken: list[str]) -> Collected:
    def accept(device_id: str, fields: Mapping[str, object]) -> None:
        read_update(fields, device_id=device_id, model=MODEL)
        taken.append(device_id)

    rules = RoundRules(quorum=scenario.quorum, deadline_s=scenario.deadline_s)
    collector = RoundCollector(exchange, exchange.resolve, clock=clock, sleep=clock.sleep)
    return collector.collect(BROADCAST, rules, accept)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    scenario = SCENARIOS[name]
    clock = Clock()
    exchange = FakeExchange(scenario.devices, clock)
    taken: list[str] = []
    if scenario.accepted is None:
        with pytest.raises(RoundFailedError) as caught:
            collect(scenario, exchange, clock, taken)
        assert caught.value.quorum == scenario.quorum
        assert caught.value.accepted == len(taken) < scenario.quorum
    else:
        collected = collect(scenario, exchange, clock, taken)
        assert set(collected.accepted) == scenario.accepted
        assert sorted(taken) == sorted(scenario.accepted)  # each counted once
        assert set(collected.failures) == set(scenario.failures)
        for failed, reason in scenario.failures.items():
            assert reason in collected.failures[failed]
        assert collected.dropped == scenario.dropped
    assert clock.now - 1000.0 <= scenario.longest_s
    for asked_name, count in scenario.asked.items():
        assert next(d for d in scenario.devices if d.name == asked_name).asked == count


def test_a_device_that_comes_back_as_another_node_is_asked_there() -> None:
    clock = Clock()
    moving = device("a", "silent")
    exchange = FakeExchange([moving, device("b")], clock)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 1003.0:
            moving.node_id = 77

    rules = RoundRules(quorum=2, deadline_s=30.0)
    taken: list[str] = []
    collector = RoundCollector(exchange, exchange.resolve, clock=clock, sleep=sleep)
    collected = collector.collect(BROADCAST, rules, lambda device_id, fields: taken.append(device_id))
    assert collected.accepted == ("b", "a")
    assert clock.now < 1005.0


def test_what_counted_before_a_resumption_is_not_asked_again() -> None:
    clock = Clock()
    done, missing = device("a"), device("b")
    exchange = FakeExchange([done, missing], clock)
    taken: list[str] = []
    collected = RoundCollector(exchange, exchange.resolve, clock=clock, sleep=clock.sleep).collect(
        BROADCAST,
        RoundRules(quorum=2, deadline_s=30.0),
        lambda device_id, fields: taken.append(device_id),
        already=("a",),
    )
    assert (collected.accepted, collected.asked, taken, done.asked) == (("a", "b"), ("a", "b"), ["b"], 0)


def test_a_lost_run_ends_the_round() -> None:
    clock = Clock()
    exchange = FakeExchange([device("a", "lost"), device("b")], clock)
    with pytest.raises(ExchangeLostError):
        collect(Scenario([], 2, None), exchange, clock, [])


def test_the_message_lives_no_longer_than_the_round() -> None:
    clock = Clock()
    exchange = FakeExchange([device("a", "error", "error"), device("b")], clock)
    collect(Scenario([], 2, None, deadline_s=10.0), exchange, clock, [])
    lifetimes = [broadcast.ttl_s for broadcast in exchange.broadcasts]
    assert lifetimes[0] == pytest.approx(10.0)
    assert lifetimes == sorted(lifetimes, reverse=True)
    assert lifetimes[-1] < 9.0


def test_a_check_that_raises_ends_the_round() -> None:
    clock = Clock()
    exchange = FakeExchange([device("a", "silent")], clock)

    class AbortedError(Exception):
        pass

    def check() -> None:
        if clock.now > 1002.0:
            raise AbortedError

    collector = RoundCollector(exchange, exchange.resolve, clock=clock, sleep=clock.sleep, check=check)
    with pytest.raises(AbortedError):
        collector.collect(BROADCAST, RoundRules(quorum=1, deadline_s=30.0), lambda device_id, fields: None)
    assert clock.now < 1003.0


# Over-selection: how many are kept at work, and when there are enough.


def select(devices: list[FakeDevice], rules: RoundRules, clock: Clock) -> Collected:
    exchange = FakeExchange(devices, clock)
    collector = RoundCollector(exchange, exchange.resolve, clock=clock, sleep=clock.sleep)
    return collector.collect(BROADCAST, rules, lambda device_id, fields: None)


def test_the_first_k_of_n_count_and_the_round_ends_with_them() -> None:
    clock = Clock()
    devices = [device("a", delay_s=9.0), device("b"), device("c", delay_s=1.0), device("d")]
    collected = select(devices, RoundRules(quorum=2, deadline_s=30.0, enough=2, at_once=3), clock)
    assert collected.accepted == ("b", "c")
    assert devices[3].asked == 0
    assert collected.failures == {"a": "no answer"}
    assert clock.now < 1002.0


def test_who_refuses_is_replaced_by_the_next_in_order() -> None:
    clock = Clock()
    devices = [device("a", "refuse"), device("b", node_id=None), device("c"), device("d"), device("e")]
    collected = select(devices, RoundRules(quorum=2, deadline_s=30.0, enough=2, at_once=2), clock)
    assert set(collected.accepted) == {"c", "d"}
    assert [each.asked for each in devices] == [1, 0, 1, 1, 0]
    assert "fewer than 20" in collected.failures["a"]


def test_who_is_silent_for_too_long_is_replaced_and_still_counts() -> None:
    clock = Clock()
    devices = [device("a", delay_s=8.0), device("b", "silent"), device("c", delay_s=6.0)]
    rules = RoundRules(quorum=2, deadline_s=30.0, enough=2, at_once=2, patience_s=4.0)
    collected = select(devices, rules, clock)
    assert collected.accepted == ("a", "c")
    assert clock.now < 1011.0


def test_answers_behind_the_kth_are_not_taken() -> None:
    clock = Clock()
    devices = [device("a"), device("b"), device("c")]
    exchange = FakeExchange(devices, clock)
    taken: list[str] = []
    RoundCollector(exchange, exchange.resolve, clock=clock, sleep=clock.sleep).collect(
        BROADCAST,
        RoundRules(quorum=1, deadline_s=30.0, enough=2),
        lambda device_id, fields: taken.append(device_id),
    )
    assert len(taken) == 2
