"""The decision table of the chooser, and how it measures."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.engine.backend import BuiltModel, Floats, ModelSource, Port, Probe, Runner
from skerry_agent.engine.choice import Measurement
from skerry_agent.engine.chooser import Candidate, choose, decide
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.golden import Golden
from skerry_agent.errors import ArtifactError


def measured(variant: str, median: float, p99: float = 100.0, *, correct: bool = True) -> Measurement:
    return Measurement(variant, "onnxruntime", correct, median if correct else math.inf, p99, 0.0, "")


@pytest.mark.parametrize(
    ("name", "measurements", "chosen"),
    [
        ("int8 is faster", [measured("fp32", 70), measured("int8-x86", 30), measured("int8-qdq", 40)], "int8-x86"),
        ("int8 is slower", [measured("fp32", 1982), measured("int8-x86", 2226), measured("int8-qdq", 6431)], "fp32"),
        ("equal: fp32", [measured("int8-qdq", 50), measured("fp32", 50)], "fp32"),
        ("faster by 1 %: fp32", [measured("int8-qdq", 99), measured("fp32", 100)], "fp32"),
        ("faster by 3 %: int8", [measured("int8-qdq", 97), measured("fp32", 100)], "int8-qdq"),
        ("the faster one is wrong", [measured("fp32", 70), measured("int8-qdq", 30, correct=False)], "fp32"),
        ("fp32 is wrong", [measured("fp32", 70, correct=False), measured("int8-qdq", 90)], "int8-qdq"),
        ("equal int8: lower p99", [measured("int8-qdq", 30, 90), measured("int8-x86", 30, 80)], "int8-x86"),
        ("all are wrong", [measured("fp32", 1, correct=False)], None),
        ("none", [], None),
    ],
)
def test_decision(name: str, measurements: list[Measurement], chosen: str | None) -> None:
    decision = decide(measurements)
    assert (None if decision is None else decision.variant) == chosen
    assert decide(measurements[::-1]) == decision


class ClockedBackend:
    """A backend whose runs take a chosen time of a made-up clock; counts what is open."""

    name = "clocked"
    compiles = False

    def __init__(self, micros: dict[bytes, float], *, wrong: bytes = b"", refuses: bytes = b"") -> None:
        self.micros = micros
        self.wrong = wrong
        self.refuses = refuses
        self.now = 0.0
        self.open = 0

    def accepts(self, variant: str, form: str = "") -> bool:
        return True

    def keep(self, source: ModelSource, cache: Path) -> bool:
        return False

    def probe(self) -> Probe:
        return Probe(True, "1", "made up")

    def build(self, source: ModelSource, cache: Path) -> BuiltModel:
        return BuiltModel(source, source.onnx, source.sha256.hex())

    def load(self, built: BuiltModel) -> Runner:
        if built.data == self.refuses:
            raise BackendError(self.name, "load", "refused")
        self.open += 1
        return ClockedRunner(self, built.data)


class ClockedRunner:
    def __init__(self, backend: ClockedBackend, data: bytes) -> None:
        self.backend = backend
        self.data = data

    def run(self, x: Floats) -> tuple[Floats, ...]:
        self.backend.now += self.backend.micros[self.data] * 1e-6
        offset = 1.0 if self.data == self.backend.wrong else 0.0
        return (x * 2 + np.float32(offset), x)

    def close(self) -> None:
        self.backend.open -= 1


X = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
OUTPUTS = {"scores": X * 2, "features": X}
GOLDEN = Golden(X, {"fp32": OUTPUTS, "int8-qdq": OUTPUTS, "int8-x86": OUTPUTS})


def candidate(variant: str) -> Candidate:
    onnx = variant.encode()
    port = Port("input", (2,))
    source = ModelSource(
        onnx, hashlib.sha256(onnx).digest(), port, (Port("scores", (2,)), Port("features", (2,))), maximum_batch=2
    )
    return Candidate(variant, "clocked", 1e-6, source)


def test_measures_and_keeps_only_the_chosen_runner_open(tmp_path: Path) -> None:
    backend = ClockedBackend({b"fp32": 80, b"int8-qdq": 25, b"int8-x86": 60})
    chosen, all_of_them, runner = choose(
        "r",
        [candidate(v) for v in ("fp32", "int8-qdq", "int8-x86")],
        backends={"clocked": backend},
        golden=GOLDEN,
        cache=tmp_path,
        clock=lambda: backend.now,
    )
    assert chosen.variant == "int8-qdq"
    assert chosen.median_us == pytest.approx(25)
    assert [m.median_us for m in all_of_them] == pytest.approx([80, 25, 60])
    assert backend.open == 1
    runner.close()


def test_a_slow_model_ends_timing_early(tmp_path: Path) -> None:
    backend = ClockedBackend({b"fp32": 3_000_000})
    chosen, _, runner = choose(
        "r",
        [candidate("fp32")],
        backends={"clocked": backend},
        golden=GOLDEN,
        cache=tmp_path,
        clock=lambda: backend.now,
    )
    assert chosen.median_us == pytest.approx(3_000_000)
    assert backend.now < 40
    runner.close()


def test_a_wrong_and_a_refused_candidate_are_left_out_with_their_reasons(tmp_path: Path) -> None:
    backend = ClockedBackend({b"fp32": 80, b"int8-qdq": 25}, wrong=b"int8-qdq", refuses=b"int8-x86")
    chosen, all_of_them, runner = choose(
        "r",
        [candidate(v) for v in ("fp32", "int8-qdq", "int8-x86")],
        backends={"clocked": backend},
        golden=GOLDEN,
        cache=tmp_path,
        clock=lambda: backend.now,
    )
    assert chosen.variant == "fp32"
    details = {m.variant: m.detail for m in all_of_them}
    assert details["fp32"] == ""
    assert "differs by 1" in details["int8-qdq"]
    assert "refused" in details["int8-x86"]
    assert backend.open == 1
    runner.close()


def test_when_none_is_correct_nothing_stays_open(tmp_path: Path) -> None:
    backend = ClockedBackend({b"fp32": 80}, wrong=b"fp32")
    with pytest.raises(ArtifactError, match=r"fp32: .*differs") as caught:
        choose(
            "release-9",
            [candidate("fp32")],
            backends={"clocked": backend},
            golden=GOLDEN,
            cache=tmp_path,
            clock=lambda: backend.now,
        )
    assert caught.value.release_id == "release-9"
    assert backend.open == 0


def test_fp32_is_measured_first_and_what_the_budget_does_not_reach_is_said(tmp_path: Path) -> None:
    backend = ClockedBackend({b"fp32": 1_000_000, b"int8-qdq": 1, b"int8-x86": 1})
    chosen, all_of_them, runner = choose(
        "r",
        [candidate(v) for v in ("int8-qdq", "int8-x86", "fp32")],
        backends={"clocked": backend},
        golden=GOLDEN,
        cache=tmp_path,
        budget_s=2,
        clock=lambda: backend.now,
    )
    assert chosen.variant == "fp32"  # its golden check alone took two seconds
    assert [(m.variant, m.tried) for m in all_of_them] == [("int8-qdq", False), ("int8-x86", False), ("fp32", True)]
    assert "time budget of 2 s" in all_of_them[0].detail
    runner.close()


def test_a_hopeless_candidate_is_not_run_to_the_end(tmp_path: Path) -> None:
    class Counting(ClockedRunner):
        runs = 0

        def run(self, x: Floats) -> tuple[Floats, ...]:
            Counting.runs += self.data == b"int8-qdq"
            return super().run(x)

    class CountingBackend(ClockedBackend):
        def load(self, built: BuiltModel) -> Runner:
            self.open += 1
            return Counting(self, built.data)

    backend = CountingBackend({b"fp32": 30, b"int8-qdq": 90, b"int8-x86": 20})
    _, measurements, runner = choose(
        "r",
        [candidate(v) for v in ("fp32", "int8-qdq", "int8-x86")],
        backends={"clocked": backend},
        golden=GOLDEN,
        cache=tmp_path,
        clock=lambda: backend.now,
    )
    assert Counting.runs < 50
    assert [m.median_us for m in measurements] == pytest.approx([30, 90, 20])
    runner.close()


@given(
    st.lists(
        st.builds(
            measured,
            st.sampled_from(["fp32", "small/fp32", "int8-qdq", "int8-x86", "fp16"]),
            st.floats(1, 1e6),
            st.floats(1, 1e6),
            correct=st.booleans(),
        )
    )
)
def test_the_choice_is_never_wrong_and_never_slower_than_a_correct_fp32(measurements: list[Measurement]) -> None:
    chosen = decide(measurements)
    correct = [m for m in measurements if m.correct]
    assert (chosen is None) == (not correct)
    if chosen is not None:
        assert chosen.correct
        assert all(chosen.median_us <= m.median_us for m in correct if m.variant.endswith("fp32"))
