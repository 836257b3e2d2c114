"""One suite over every backend: what the engine relies on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from integration.engine.fake_tensorrt import FakeGpu
from integration.engine.tiny_bundle import Floats, TinyRelease, some_input, tiny_graph
from skerry_agent.engine.backend import Backend, ModelSource, Port
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend
from skerry_agent.engine.tensorrt_backend import TensorRtBackend

RELEASE = TinyRelease()
INPUT = Port("input", (2, 3))
OUTPUTS = (Port("scores", (3,)), Port("features", (2,)))


@dataclass
class Made:
    backend: Backend
    gpu: FakeGpu | None


def _tensorrt(version: str) -> Made:
    gpu = FakeGpu(version=version)
    return Made(TensorRtBackend(gpu.tensorrt, gpu.cuda), gpu)


MAKERS: dict[str, Callable[[], Made]] = {
    "onnxruntime": lambda: Made(OnnxRuntimeBackend(), None),
    "tensorrt-10": lambda: _tensorrt("10.3.0"),
    "tensorrt-11": lambda: _tensorrt("11.4.1"),
}


@pytest.fixture(params=sorted(MAKERS))
def made(request: pytest.FixtureRequest) -> Made:
    return MAKERS[request.param]()


def source(onnx: bytes | None = None, *, data: Port = INPUT, outputs: tuple[Port, ...] = OUTPUTS) -> ModelSource:
    graph = RELEASE.graph("fp32") if onnx is None else onnx
    return ModelSource(graph, hashlib.sha256(graph).digest(), data, outputs, maximum_batch=8)


def test_probe_names_a_version(made: Made) -> None:
    probe = made.backend.probe()
    assert probe.available
    assert probe.version
    assert probe.detail


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_outputs_are_the_graph_s(made: Made, tmp_path: Path, rows: int) -> None:
    runner = made.backend.load(made.backend.build(source(), tmp_path / "cache"))
    x = some_input(rows)
    scores, features = runner.run(x)
    wanted_scores, wanted_features = RELEASE.compute(x)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-5)
    np.testing.assert_allclose(features, wanted_features, atol=1e-6)
    assert scores.dtype == features.dtype == np.float32
    runner.close()


def test_outputs_come_in_the_asked_order(made: Made, tmp_path: Path) -> None:
    runner = made.backend.load(made.backend.build(source(outputs=OUTPUTS[::-1]), tmp_path))
    features, scores = runner.run(some_input(1))
    assert features.shape == (1, 2)
    assert scores.shape == (1, 3)
    runner.close()


def test_input_need_not_be_contiguous(made: Made, tmp_path: Path) -> None:
    runner = made.backend.load(made.backend.build(source(), tmp_path))
    x = np.asfortranarray(some_input(4))[::2]
    np.testing.assert_allclose(runner.run(x)[0], RELEASE.compute(np.ascontiguousarray(x))[0], atol=1e-5)
    runner.close()


def test_results_belong_to_the_caller(made: Made, tmp_path: Path) -> None:
    runner = made.backend.load(made.backend.build(source(), tmp_path))
    first = runner.run(some_input(1, seed=1))[0]
    before = first.copy()
    runner.run(some_input(1, seed=2))
    np.testing.assert_array_equal(first, before)
    runner.close()


def test_threads_do_not_mix_their_results(made: Made, tmp_path: Path) -> None:
    runner = made.backend.load(made.backend.build(source(), tmp_path))
    wrong: list[Floats] = []

    def work(seed: int) -> None:
        x = some_input(1, seed=seed)
        wanted = RELEASE.compute(x)[0]
        for _ in range(200):
            got = runner.run(x)[0]
            if not np.allclose(got, wanted, atol=1e-5):
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    runner.close()


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("no graph", lambda: source(b"not an onnx file")),
        ("cut short", lambda: source(RELEASE.graph("fp32")[:200])),
        ("another input name", lambda: source(data=Port("x", (2, 3)))),
        ("another input shape", lambda: source(data=Port("input", (3, 2)))),
        ("another rank", lambda: source(data=Port("input", (6,)))),
        ("no such output", lambda: source(outputs=(Port("logits", (3,)), OUTPUTS[1]))),
        ("another output shape", lambda: source(outputs=(Port("scores", (4,)), OUTPUTS[1]))),
        ("graph with renamed output", lambda: source(tiny_graph(*RELEASE.weights("fp32"), scores_name="logits"))),
    ],
)
def test_a_graph_that_is_not_the_manifest_s_is_refused(
    made: Made, tmp_path: Path, what: str, broken: Callable[[], ModelSource]
) -> None:
    with pytest.raises(BackendError) as caught:
        made.backend.load(made.backend.build(broken(), tmp_path))
    assert caught.value.backend == made.backend.name
    assert caught.value.reason
    if made.gpu is not None:
        assert made.gpu.memory == {}
        assert made.gpu.streams == set()


def test_equal_graphs_have_equal_keys_and_others_not(made: Made, tmp_path: Path) -> None:
    one = made.backend.build(source(), tmp_path)
    same = made.backend.build(source(), tmp_path)
    other = made.backend.build(source(TinyRelease(seed=2).graph("fp32")), tmp_path)
    assert one.key == same.key
    assert one.data == same.data
    assert one.key != other.key


class TestTensorRt:
    """What only an ahead-of-time compiler on a GPU has."""

    @pytest.fixture
    def gpu(self) -> FakeGpu:
        return FakeGpu()

    @pytest.fixture
    def backend(self, gpu: FakeGpu) -> TensorRtBackend:
        return TensorRtBackend(gpu.tensorrt, gpu.cuda)

    def test_an_engine_is_built_once(self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path) -> None:
        backend.build(source(), tmp_path)
        backend.build(source(), tmp_path)
        assert gpu.builds == 1
        assert [path.read_bytes() for path in tmp_path.glob("*.timing")] == [b"timing of Fake Orin by 10.3.0"]

    def test_timings_are_reused_by_another_graph_and_forgotten_when_they_are_refused(
        self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path
    ) -> None:
        backend.build(source(), tmp_path)
        backend.build(source(TinyRelease(seed=2).graph("fp32")), tmp_path)
        assert gpu.timings_reused == 1
        (timings,) = tmp_path.glob("*.timing")
        timings.write_bytes(b"rotten")
        backend.build(source(TinyRelease(seed=3).graph("fp32")), tmp_path)
        assert (gpu.builds, gpu.timings_reused) == (3, 1)
        assert timings.read_bytes() == b"timing of Fake Orin by 10.3.0"

    @pytest.mark.parametrize(("name", "version"), [("Fake Thor", "10.3.0"), ("Fake Orin", "10.9.0")])
    def test_another_gpu_or_version_builds_again(
        self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path, name: str, version: str
    ) -> None:
        backend.build(source(), tmp_path)
        gpu.name, gpu.version = name, version
        backend.load(backend.build(source(), tmp_path)).close()
        assert gpu.builds == 2

    def test_a_cached_engine_that_is_refused_is_built_again(
        self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path
    ) -> None:
        built = backend.build(source(), tmp_path)
        (tmp_path / f"{built.key}.engine").write_bytes(b"rotten")
        assert backend.build(source(), tmp_path).data == built.data
        assert gpu.builds == 2

    @pytest.mark.parametrize(
        ("fault", "operation"),
        [("parser_rejects", "build"), ("build_fails", "build"), ("refuse_engines", "load")],
    )
    def test_what_tensorrt_refuses_is_an_error(
        self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path, fault: str, operation: str
    ) -> None:
        setattr(gpu.faults, fault, True)
        with pytest.raises(BackendError) as caught:
            backend.load(backend.build(source(), tmp_path))
        assert caught.value.operation == operation
        if operation == "build":
            assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("fault", ["execution_fails", "copy_fails"])
    def test_a_failed_run_is_an_error_and_the_next_one_works(
        self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path, fault: str
    ) -> None:
        runner = backend.load(backend.build(source(), tmp_path))
        setattr(gpu.faults, fault, True)
        with pytest.raises(BackendError) as caught:
            runner.run(some_input())
        assert caught.value.operation == "run"
        setattr(gpu.faults, fault, False)
        np.testing.assert_allclose(runner.run(some_input())[0], RELEASE.compute(some_input())[0], atol=1e-5)
        runner.close()

    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_no_memory_leaves_nothing_allocated(
        self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path, after: int
    ) -> None:
        gpu.faults.no_memory_after = after
        with pytest.raises(BackendError, match="CUDA error 2"):
            backend.load(backend.build(source(), tmp_path))
        assert gpu.memory == {}
        assert gpu.streams == set()

    def test_close_frees_the_device(self, gpu: FakeGpu, backend: TensorRtBackend, tmp_path: Path) -> None:
        runner = backend.load(backend.build(source(), tmp_path))
        assert len(gpu.memory) == 3
        runner.close()
        assert gpu.memory == {}
        assert gpu.streams == set()

    def test_a_batch_beyond_the_profile_is_an_error(self, backend: TensorRtBackend, tmp_path: Path) -> None:
        runner = backend.load(backend.build(source(), tmp_path))
        with pytest.raises(BackendError, match="batch 9"):
            runner.run(some_input(9))
        runner.close()

    def test_without_tensorrt_the_probe_says_so(self) -> None:
        def absent() -> object:
            raise ModuleNotFoundError("No module named 'tensorrt'")

        probe = TensorRtBackend(absent).probe()
        assert not probe.available
        assert "tensorrt" in probe.detail

    @pytest.mark.parametrize(("variant", "accepted"), [("fp32", True), ("int8-qdq", True), ("int8-x86", False)])
    def test_only_symmetric_variants(self, backend: TensorRtBackend, variant: str, accepted: bool) -> None:
        assert backend.accepts(variant) is accepted
        assert backend.accepts(f"small/{variant}") is accepted
        assert not backend.accepts(variant, "ort")
