"""The loop that asks, with a serving process that misbehaves in every way, and the clock in the test's hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from skerry_agent.client import (
    BusyError,
    ChangedModelError,
    DisconnectedError,
    FailedError,
    ForbiddenError,
    LateError,
    ModelDescription,
    NoActiveReleaseError,
    RefusedRequestError,
    ServingError,
)
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.stream.door import Asker, Door, wait_for_model
from skerry_agent.stream.rows import Refusal, Row, RowQueue
from skerry_agent.stream.shutdown import Shutdown
from skerry_agent.stream.sinks import encode
from skerry_agent.stream.verdicts import ATTEMPTS, Verdict, judge, wait_s

CLASSES = ("low", "high")


class Clock:
    """Moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.at: dict[float, Callable[[], None]] = {}

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.at if moment <= self.now]:
            self.at.pop(moment)()


def described(release: str, shape: tuple[int, ...] = (1, 2)) -> ModelDescription:
    return ModelDescription("tiny", release, shape, -9, 9, CLASSES, 1, 1)


class FakeClient:
    """Answers with the sum of the row; the script holds what happens instead, call by call."""

    def __init__(self, *script: BaseException | ModelDescription | None) -> None:
        self.script = list(script)
        self.asked: list[tuple[str, float | None]] = []
        self.description = described("one")
        self.gone: list[BaseException] = []
        self.closed = False

    @property
    def model(self) -> ModelDescription:
        if self.gone:
            raise self.gone.pop(0)
        return self.description

    def infer(
        self, x: npt.NDArray[np.float32], *, deadline_us: float | None = None, request_id: str = ""
    ) -> Prediction:
        self.asked.append((request_id, deadline_us))
        step = self.script.pop(0) if self.script else None
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            self.description = step
        scores = np.array([[0, x.sum()]], dtype=np.float32)
        return Prediction(scores, scores[:, :1], CLASSES, self.description.release_id, request_id, 7.06, "fp32")

    def close(self) -> None:
        self.closed = True


class Told:
    """A sink in memory; every document survives JSON."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[Any] = []
        self.undelivered = 0
        self.broken = False

    def emit(self, document: dict[str, Any], *, error: bool) -> None:
        if self.broken:
            raise DeviceError("standard output: Broken pipe", remedy="let something read it")
        (self.errors if error else self.answers).append(json.loads(encode(document)))

    def pump(self) -> None: ...

    def close(self) -> None: ...


class Bench:
    """A door with its surroundings."""

    def __init__(self, client: FakeClient, *, limit: int = 8) -> None:
        self.clock = Clock()
        self.shutdown = Shutdown(drain_s=5, monotonic=self.clock, sleep=self.clock.sleep)
        self.queue = RowQueue(limit, keep="newest")
        self.client, self.told = client, Told()
        self.shapes: list[tuple[int, ...]] = []
        self.stops = 0
        self.door = Door(
            Asker(lambda: client),
            self.queue,
            self.told,
            self.shutdown,
            model=client.description,
            on_shape=self.reshape,
            on_stop=self.stop,
            monotonic=self.clock,
        )

    def reshape(self, shape: tuple[int, ...]) -> None:
        self.shapes.append(shape)
        if len(self.shapes) > 1:
            raise InputError("--take samples", expected="[channels, length]", got=shape)

    def stop(self) -> None:
        self.stops += 1

    def put(self, *names: str, due_s: float | None = None) -> None:
        for name in names:
            self.queue.put(Row(np.full((1, 2), 0.5, np.float32), name, 12.25, due_s))

    def run(self) -> Bench:
        self.queue.close()
        self.door.run()
        return self

    def ids(self) -> list[str]:
        return [answer["id"] for answer in self.told.answers]

    def kinds(self) -> list[tuple[str, str]]:
        return [(error["id"], error["kind"]) for error in self.told.errors]


def test_an_answer_is_told_whole() -> None:
    bench = Bench(FakeClient())
    bench.put("a")
    (answer,) = bench.run().told.answers
    assert answer == {
        "id": "a",
        "label": "high",
        "confidence": pytest.approx(1 / (1 + np.exp(-1.0))),
        "scores": [0.0, 1.0],
        "release": "one",
        "variant": "fp32",
        "latency_us": 7.1,
        "at_ms": 12.25,
    }


REFUSED = RefusedRequestError("input: NaN")
AWAY = DisconnectedError("the serving process went away")


@pytest.mark.parametrize(
    ("script", "answered", "told"),
    [
        pytest.param([REFUSED], ["b", "c"], [("a", "refused")], id="a bad row costs itself"),
        pytest.param([None, FailedError("broke")], ["a", "c"], [("b", "failed")], id="no fault of the row"),
        pytest.param([LateError("queue")], ["b", "c"], [("a", "late")], id="late"),
        pytest.param([ChangedModelError("x")], ["b", "c"], [("a", "refused")], id="the row is of the model before"),
        pytest.param([AgentError("odd")], ["b", "c"], [("a", "failed")], id="an error nobody knows"),
        pytest.param([BusyError("full")] * 2, ["a", "b", "c"], [], id="busy for a moment"),
        pytest.param([BusyError("full")] * 3, ["b", "c"], [("a", "failed")], id="busy for too long"),
        pytest.param([None, AWAY], ["a", "b", "c"], [], id="restarted in the middle"),
        pytest.param([AWAY] * ATTEMPTS, ["b", "c"], [("a", "failed")], id="a row that serving dies of"),
        pytest.param([NoActiveReleaseError("none")] * 9, ["a", "b", "c"], [], id="no release for a while"),
    ],
)
def test_what_becomes_of_three_rows(script: list[BaseException], answered: list[str], told: list[Any]) -> None:
    bench = Bench(FakeClient(*script))
    bench.put("a", "b", "c")
    bench.run()
    assert (bench.ids(), bench.kinds()) == (answered, told)
    counts = bench.door.counts
    assert counts.answered == len(answered)
    assert counts.refused + counts.late + counts.failed == len(told)
    assert (counts.unanswered, bench.queue.dropped) == (0, 0)


def test_rows_wait_for_a_serving_process_that_is_away_and_each_is_asked_once_more() -> None:
    bench = Bench(FakeClient(AWAY))
    bench.client.gone = [AWAY] * 50  # it cannot be reached: that costs the row none of its attempts
    bench.put("a", "b")
    bench.run()
    assert bench.ids() == ["a", "b"]
    assert [name for name, _ in bench.client.asked] == ["a", "a", "b"]
    assert bench.door.counts.waits == 1


def test_deadlines_run_from_the_arrival() -> None:
    bench = Bench(FakeClient(AWAY))
    bench.put("a", due_s=100.25)
    bench.put("b")
    bench.client.gone = [AWAY] * 200
    bench.run()
    assert (bench.ids(), bench.kinds()) == (["b"], [("a", "late")])
    assert bench.client.asked == [("a", pytest.approx(250_000)), ("b", None)]


def test_garbage_is_told_and_nothing_else_is_harmed() -> None:
    bench = Bench(FakeClient())
    bench.put("a")
    bench.queue.tell(Refusal("x", "values: " + "y" * 900, 3.0))
    bench.run()
    assert bench.ids() == ["a"]
    (error,) = bench.told.errors
    assert (error["id"], error["kind"], error["at_ms"], len(error["error"])) == ("x", "payload", 3.0, 400)


def test_another_shape_is_followed_and_one_that_does_not_fit_ends_nothing() -> None:
    bench = Bench(FakeClient(described("two", (3, 2)), described("three", (4, 4)), described("four", (4, 4))))
    bench.put("a", "b", "c", "d")
    bench.run()
    assert bench.shapes == [(3, 2), (4, 4)]  # the second one is refused by the bench
    assert bench.ids() == ["a", "b", "c", "d"]
    assert [answer["release"] for answer in bench.told.answers] == ["two", "three", "four", "four"]


def test_dropped_rows_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(FakeClient(), limit=2)
    bench.put("a", "b", "c", "d", "e")
    bench.run()
    assert (bench.ids(), bench.queue.dropped) == (["d", "e"], 3)
    assert [record.getMessage() for record in caplog.records] == ["3 rows dropped since the last word, 3 in all"]


def test_numbers_that_json_does_not_have_are_null() -> None:
    class Odd(FakeClient):
        def infer(self, x: Any, *, deadline_us: float | None = None, request_id: str = "") -> Prediction:
            scores = np.array([[np.nan, np.inf]], dtype=np.float32)
            return Prediction(scores, scores, CLASSES, "one", request_id, 1.0)

    bench = Bench(Odd())
    bench.put("a")
    with np.errstate(invalid="ignore"):
        (answer,) = bench.run().told.answers
    assert (answer["scores"], answer["confidence"]) == ([None, None], None)


def test_asked_to_end_the_source_stops_and_what_waits_is_answered() -> None:
    bench = Bench(FakeClient())
    bench.put("a", "b")
    bench.shutdown.ask()
    bench.door.run()
    assert (bench.ids(), bench.stops, bench.queue.ended) == (["a", "b"], 1, True)


def test_asked_to_end_while_nobody_answers_ends_in_bounded_time() -> None:
    bench = Bench(FakeClient())
    bench.client.gone = [AWAY] * 100_000
    bench.client.script = [AWAY]
    bench.put("a", "b")
    bench.clock.at[103.0] = bench.shutdown.ask
    bench.door.run()
    assert bench.clock.now == pytest.approx(103.0 + 5.0, abs=0.2)
    assert (bench.ids(), bench.door.counts.unanswered, bench.stops) == ([], 2, 1)


@pytest.mark.parametrize(
    ("client", "broken", "error"),
    [(FakeClient(ForbiddenError("not of the group")), False, ForbiddenError), (FakeClient(), True, DeviceError)],
)
def test_what_ends_the_stream(client: FakeClient, broken: bool, error: type[AgentError]) -> None:
    bench = Bench(client)
    bench.told.broken = broken
    bench.put("a", "b")
    with pytest.raises(error):
        bench.run()


def connecting(results: Iterator[ServingError | FakeClient]) -> Asker:
    def connect() -> FakeClient:
        result = next(results)
        if isinstance(result, ServingError):
            raise result
        return result

    return Asker(connect)


def test_the_beginning_waits_for_a_model_says_why_and_gives_up_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    shutdown = Shutdown(monotonic=clock, sleep=clock.sleep)
    client = FakeClient()
    asker = connecting(iter([AWAY, AWAY, NoActiveReleaseError("none"), BusyError("full"), client]))
    found = wait_for_model(asker, shutdown)
    assert found == client.description
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for a model: the serving process went away",
        "waiting for a model: none",
        "waiting for a model: full",
    ]
    asker.close()
    assert client.closed
    clock.at[clock.now + 30] = shutdown.ask
    assert wait_for_model(connecting(iter([AWAY] * 10_000)), shutdown) is None
    with pytest.raises(ForbiddenError):
        wait_for_model(connecting(iter([ForbiddenError("no")])), Shutdown())


def test_waits_grow_are_spread_and_bounded() -> None:
    assert [wait_s(tries, 1.0) for tries in (1, 2, 3, 6, 99)] == [0.1, 0.2, 0.4, 2.0, 2.0]
    assert wait_s(99, 0.0) == 0.0
    assert judge(DisconnectedError("x"), attempts=0) is Verdict.AWAY
