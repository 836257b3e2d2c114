"""Latency as a contract on a real release with two networks: who answers, who is turned away, what is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, enrol, install, some_input
from skerry_agent import Engine, Prediction
from skerry_agent.config import AgentLayout, load_config
from skerry_agent.engine.backend import Backend, BuiltModel, Floats, Runner
from skerry_agent.engine.errors import BackendError, DeadlineError, OverloadedError
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend
from skerry_agent.errors import AgentError
from skerry_contract.v1.telemetry_pb2 import DriftReport, UplinkMessage

LADDER = TinyRelease(variants={"fp32": 0.0, "small/fp32": 1 / 2}, rungs={"small/fp32": 1})
Wait = Callable[..., None]


class ListSink:
    """An outbox in memory."""

    def __init__(self) -> None:
        self.windows: list[DriftReport] = []

    def enqueue(self, message: UplinkMessage) -> int:
        self.windows.append(message.drift)
        return len(self.windows)


class HeldRunner:
    """A runner whose requests wait until they are let go, and that can fail."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.go = threading.Event()
        self.go.set()
        self.inside = 0
        self.fails = False
        self.closed = 0

    def run(self, x: Floats) -> tuple[Floats, ...]:
        self.inside += 1
        assert self.go.wait(30.0)
        if self.fails:
            raise BackendError("held", "run", "out of memory")
        return self._runner.run(x)

    def close(self) -> None:
        self.closed += 1
        self._runner.close()


class HeldBackend(OnnxRuntimeBackend):
    """onnxruntime whose runners can be held."""

    def __init__(self) -> None:
        super().__init__()
        self.runners: list[HeldRunner] = []

    def load(self, built: BuiltModel) -> Runner:
        self.runners.append(HeldRunner(super().load(built)))
        return self.runners[-1]


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    return enrol(tmp_path / "device")


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend()


Open = Callable[..., Engine]


@pytest.fixture
def open_engine(layout: AgentLayout, sink: ListSink, backend: HeldBackend) -> Iterator[Open]:
    install(layout, LADDER)
    engines: list[Engine] = []

    def create(**settings: object) -> Engine:
        config = load_config(layout)
        values = {name: getattr(config, name) for name in config.names()} | settings
        backends: dict[str, Backend] = {"onnxruntime": backend}
        engine = Engine.open(
            layout.root, config=type(config)(**values), backends=backends, open_sink=lambda: sink, follow=False
        )
        engines.append(engine)
        return engine

    yield create
    for engine in engines:
        engine.close()


def answering(engine: Engine, backend: HeldBackend) -> HeldRunner:
    """The runner of the network that answers now."""
    for runner in backend.runners:
        runner.inside = 0
    engine.infer(some_input())
    return next(runner for runner in backend.runners if runner.inside)


class Askers:
    """Threads that ask once each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.answers: list[Prediction | AgentError] = []
        self._threads: list[threading.Thread] = []

    def ask(self) -> None:
        def run() -> None:
            try:
                self.answers.append(self._engine.infer(some_input()))
            except AgentError as error:
                self.answers.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self) -> list[Prediction | AgentError]:
        for thread in self._threads:
            thread.join(30.0)
            assert not thread.is_alive()
        return self.answers


def test_the_power_mode_brings_the_smaller_network_and_each_is_told_apart(
    open_engine: Open, sink: ListSink, wait_until: Wait
) -> None:
    engine = open_engine(power_saving="yes", window_requests=1_000_000)
    first = engine.infer(some_input(2))
    wait_until(lambda: engine.infer(some_input(2)).rung == 1, what="the smaller network", seconds=10.0)
    second = engine.infer(some_input(2))
    large, small = LADDER.compute(some_input(2)), LADDER.compute(some_input(2), "small/fp32")
    np.testing.assert_allclose(first.scores, large[0], atol=1e-5)
    np.testing.assert_allclose(second.scores, small[0], atol=1e-5)
    np.testing.assert_allclose(first.features, second.features, atol=1e-6)  # drift is about the input
    assert [(p.variant, p.rung) for p in (first, second)] == [("fp32", 0), ("small/fp32", 1)]
    status = engine.status()
    assert (status.variant, status.rung, status.ladder_reason) == ("small/fp32", 1, "the power mode saves energy")
    assert [(form.form.variant, form.form.rung) for form in status.counters.forms] == [("fp32", 0), ("small/fp32", 1)]
    answered = {form.form.rung: sum(form.buckets) for form in status.counters.forms}
    engine.close()
    windows = {window.rung: window for window in sink.windows}
    assert {rung: (window.variant, window.rows) for rung, window in windows.items()} == {
        0: ("fp32", 2 * answered[0]),
        1: ("small/fp32", 2 * answered[1]),
    }
    assert len({window.window for window in sink.windows}) == 2


def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_computed(
    open_engine: Open, backend: HeldBackend
) -> None:
    engine = open_engine()
    runner = answering(engine, backend)
    before = engine.status().counters
    runner.inside = 0
    with pytest.raises(DeadlineError) as caught:
        engine.infer(some_input(), deadline_us=0.001)
    assert caught.value.deadline_us == 0.001
    assert 0.001 < caught.value.expected_us < 1e6
    assert sum(one.inside for one in backend.runners) == 0
    assert engine.infer(some_input(), deadline_us=60e6).rung == 0
    after = engine.status().counters
    assert (after.shed["deadline"], after.requests - before.requests, after.errors) == (1, 1, 0)


def test_who_comes_when_the_queue_is_full_is_turned_away_and_nobody_else(
    open_engine: Open, backend: HeldBackend, wait_until: Wait
) -> None:
    engine = open_engine(inference_parallel=1, inference_queue=2)
    runner = answering(engine, backend)
    runner.inside = 0
    runner.go.clear()
    askers = Askers(engine)
    for count in range(1, 4):
        askers.ask()
        wait_until(lambda count=count: engine.status().in_flight == count, what=f"{count} under way")
    assert runner.inside == 1
    with pytest.raises(OverloadedError) as caught:
        engine.infer(some_input())
    assert (caught.value.in_flight, caught.value.limit) == (3, 3)
    runner.go.set()
    assert all(isinstance(answer, Prediction) for answer in askers.join())
    assert engine.status().counters.shed == {"deadline": 0, "overload": 1}
    assert engine.status().in_flight == 0
    assert engine.infer(some_input()).rung == 0


def test_who_would_wait_past_the_deadline_is_turned_away_and_leaves_its_place(
    open_engine: Open, backend: HeldBackend, wait_until: Wait
) -> None:
    engine = open_engine(inference_parallel=1)
    runner = answering(engine, backend)
    runner.go.clear()
    askers = Askers(engine)
    askers.ask()
    wait_until(lambda: engine.status().in_flight == 1, what="one under way")
    with pytest.raises(DeadlineError, match="would miss its deadline of 50000 us"):
        engine.infer(some_input(), deadline_us=50_000.0)
    runner.go.set()
    assert isinstance(askers.join()[0], Prediction)
    assert engine.infer(some_input(), deadline_us=60e6).release_id == "release-one"


def test_the_owners_deadline_turns_away_only_who_would_wait(
    open_engine: Open, backend: HeldBackend, wait_until: Wait
) -> None:
    """A device that is too slow for its deadline still answers one at a time, and counts that it was late."""
    engine = open_engine(inference_parallel=1, deadline_us=0.001)
    runner = answering(engine, backend)
    assert engine.status().counters.late == 1
    runner.go.clear()
    askers = Askers(engine)
    askers.ask()
    wait_until(lambda: engine.status().in_flight == 1, what="one under way")
    with pytest.raises(DeadlineError):
        engine.infer(some_input())
    for one in backend.runners:
        one.go.set()
    assert isinstance(askers.join()[0], Prediction)
    assert engine.status().counters.shed["deadline"] == 1


def test_a_request_that_fails_gives_its_place_back(open_engine: Open, backend: HeldBackend) -> None:
    engine = open_engine(inference_parallel=1, inference_queue=0)
    runner = answering(engine, backend)
    runner.fails = True
    for _ in range(3):
        with pytest.raises(BackendError, match="out of memory"):
            engine.infer(some_input())
    runner.fails = False
    assert engine.infer(some_input()).rung == 0
    assert engine.status().in_flight == 0


def test_a_swap_closes_every_network_of_the_release_before(open_engine: Open, backend: HeldBackend) -> None:
    engine = open_engine()
    for _ in range(20):
        engine.activate("a")
        engine.infer(some_input())
    engine.close()
    assert {runner.closed for runner in backend.runners} == {1}
    assert len(engine.status().counters.forms) == 2
