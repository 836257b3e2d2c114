"""Execution providers: what each is asked for, and that nothing but the asked one ever answers in its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from integration.engine.fake_onnxruntime import FakeRuntime
from integration.engine.test_backend_contract import RELEASE, source
from integration.engine.tiny_bundle import some_input
from skerry_agent.engine.backends import BACKENDS
from skerry_agent.engine.chooser import present_backends
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.execution_providers import CACHE, CPU, PROVIDERS, ExecutionProvider
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend

OTHERS = [entry for entry in PROVIDERS if entry.provider != CPU]
BY_NAME = {entry.backend: entry for entry in PROVIDERS}


def backend(entry: ExecutionProvider, runtime: FakeRuntime) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(entry, import_runtime=lambda: runtime)


@pytest.mark.parametrize("entry", OTHERS, ids=lambda entry: entry.backend)
class TestEveryProvider:
    def test_is_asked_by_its_name_and_answers(self, entry: ExecutionProvider, tmp_path: Path) -> None:
        runtime = FakeRuntime((entry.provider,))
        made = backend(entry, runtime)
        assert made.probe().available
        runner = made.load(made.build(source(), tmp_path / "cache"))
        np.testing.assert_allclose(runner.run(some_input(4))[0], RELEASE.compute(some_input(4))[0], atol=1e-5)
        ((asked, _),) = runtime.asked
        first, options = (asked[0], {}) if isinstance(asked[0], str) else asked[0]
        assert (first, asked[1:]) == (entry.provider, [CPU])
        assert set(options) == set(entry.options)
        assert not any(value.startswith("{") for value in options.values())
        if CACHE in entry.options.values():
            assert str(tmp_path / "cache") in options.values()
            assert (tmp_path / "cache").is_dir()
        runner.close()

    def test_one_that_is_not_built_in_is_not_available(self, entry: ExecutionProvider, tmp_path: Path) -> None:
        probe = backend(entry, FakeRuntime(())).probe()
        assert not probe.available
        assert entry.provider in probe.detail

    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            ("falls_back", f"got provider {CPU} instead of"),
            ("takes_nothing", "runs nothing of the graph"),
            ("lacks_library", "libcudnn"),
        ],
    )
    def test_a_session_that_something_else_runs_is_refused(
        self, entry: ExecutionProvider, tmp_path: Path, fault: str, says: str
    ) -> None:
        runtime = FakeRuntime((entry.provider,))
        setattr(runtime, fault, True)
        made = backend(entry, runtime)
        with pytest.raises(BackendError, match=says) as caught:
            made.load(made.build(source(), tmp_path))
        assert (caught.value.backend, caught.value.operation) == (entry.backend, "load")

    def test_a_version_that_does_not_say_what_ran_is_believed_its_list(
        self, entry: ExecutionProvider, tmp_path: Path
    ) -> None:
        made = backend(entry, FakeRuntime((entry.provider,), old=True))
        made.load(made.build(source(), tmp_path)).close()

    def test_nothing_is_kept_for_what_compiles_by_itself(self, entry: ExecutionProvider, tmp_path: Path) -> None:
        assert not backend(entry, FakeRuntime((entry.provider,))).keep(source(), tmp_path)
        assert not backend(entry, FakeRuntime((entry.provider,))).accepts("fp32", "ort")


def test_tensorrt_gets_the_shapes_of_the_profile(tmp_path: Path) -> None:
    entry = BY_NAME["onnxruntime-tensorrt"]
    runtime = FakeRuntime((entry.provider,))
    made = backend(entry, runtime)
    made.load(made.build(source(), tmp_path)).close()
    options = runtime.asked[0][0][0][1]
    shapes = [options[f"trt_profile_{name}_shapes"] for name in ("min", "opt", "max")]
    assert shapes == ["input:1x2x3", "input:1x2x3", "input:8x2x3"]


@pytest.mark.parametrize(
    ("name", "variant", "accepted"),
    [
        ("onnxruntime", "int4-weights", True),
        ("onnxruntime-cuda", "small/fp16", True),
        ("onnxruntime-cuda", "int8-x86", False),
        ("onnxruntime-tensorrt", "int8-qdq", True),
        ("onnxruntime-tensorrt", "int8-x86", False),
        ("onnxruntime-qnn", "fp32", False),
    ],
)
def test_forms_worth_a_try(name: str, variant: str, accepted: bool) -> None:
    assert BACKENDS[name].accepts(variant) is accepted


def test_here_only_what_is_here_is_asked() -> None:
    present = present_backends(BACKENDS)
    assert list(present)[-1] == "onnxruntime"
    assert list(BACKENDS) == ["tensorrt", *(entry.backend for entry in PROVIDERS)]


def test_only_what_compiles_for_long_is_kept_from_those_who_wait() -> None:
    assert {name for name, made in BACKENDS.items() if made.compiles} == {
        "tensorrt",
        "onnxruntime-tensorrt",
        "onnxruntime-qnn",
        "onnxruntime-coreml",
    }
