"""The engine on real slots: open, fall back, refuse, swap under load, report."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from integration.engine.fake_tensorrt import FakeGpu
from integration.engine.tiny_bundle import TinyRelease, enrol, install, some_input
from skerry_agent import Engine
from skerry_agent.config import AgentLayout
from skerry_agent.engine.choice import CHOICE, read_choices
from skerry_agent.engine.errors import BackendError, MissingValueError, NoReleaseError, OutOfRangeError, SchemaError
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend
from skerry_agent.engine.tensorrt_backend import TensorRtBackend
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.policy.reporting import WindowPolicy, WindowPolicyFile
from skerry_agent.update.slots import Pointer, write_pointer
from skerry_contract.signing import Ed25519Signer
from skerry_contract.v1.telemetry_pb2 import DriftReport, UplinkMessage


class ListSink:
    """An outbox in memory."""

    def __init__(self) -> None:
        self.messages: list[UplinkMessage] = []

    def enqueue(self, message: UplinkMessage) -> int:
        self.messages.append(message)
        return len(self.messages)

    @property
    def windows(self) -> list[DriftReport]:
        return [message.drift for message in self.messages]


@pytest.fixture
def sink() -> ListSink:
    return ListSink()


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    return enrol(tmp_path / "device")


@pytest.fixture
def open_engine(layout: AgentLayout, sink: ListSink) -> Callable[..., Engine]:
    return lambda **options: Engine.open(layout.root, open_sink=lambda: sink, **options)


OpenEngine = Callable[..., Engine]


def test_answers_like_the_release(layout: AgentLayout, open_engine: OpenEngine) -> None:
    release = TinyRelease(variants={"fp32": 0.0})
    install(layout, release)
    x = some_input(3)
    with open_engine() as engine:
        prediction = engine.infer(x, request_id="mine")
        one = engine.infer(x[0])
    scores, features = release.compute(x)
    np.testing.assert_allclose(prediction.scores, scores, atol=1e-5)
    np.testing.assert_allclose(prediction.features, features, atol=1e-6)
    assert prediction.labels.tolist() == scores.argmax(axis=1).tolist()
    assert (prediction.release_id, prediction.request_id) == ("release-one", "mine")
    assert one.class_name == prediction.classes[prediction.label]


def test_the_choice_is_kept_and_used_at_the_next_start(layout: AgentLayout, open_engine: OpenEngine) -> None:
    content = install(layout, TinyRelease(slow_variants={"fp32": 40}))
    with open_engine() as engine:
        assert engine.status().variant == "int8-qdq"
    kept = read_choices(content.folder)
    assert kept is not None
    assert [(choice.variant, choice.backend) for choice in kept.choices] == [("int8-qdq", "onnxruntime")]
    change_choice(content.folder, {}, {"variant": "fp32"})
    with open_engine() as engine:
        assert engine.status().variant == "fp32"


def change_choice(folder: Path, whole: dict[str, Any], first: dict[str, Any]) -> None:
    """Change fields of choice.json and of its first choice."""
    document = json.loads((folder / CHOICE).read_bytes())
    document["choices"][0].update(first)
    (folder / CHOICE).write_text(json.dumps({**document, **whole}))


@pytest.mark.parametrize(
    ("whole", "first"),
    [
        ({"bundle_sha256": "00"}, {}),
        ({"hardware": "another machine"}, {}),
        ({"choices": []}, {}),
        ({"measurements": [{}]}, {}),
        ({}, {"backend_version": "0.1"}),
        ({}, {"backend": "tensorrt"}),
        ({}, {"variant": "int4"}),
        ({}, {"rung": 1}),
        ({}, {"latency_us": "fast"}),
    ],
)
def test_a_choice_that_does_not_hold_is_measured_again(
    layout: AgentLayout, open_engine: OpenEngine, whole: dict[str, Any], first: dict[str, Any]
) -> None:
    content = install(layout, TinyRelease(slow_variants={"int8-qdq": 40}))
    open_engine().close()
    change_choice(content.folder, whole, {"variant": "int8-qdq", **first})
    with open_engine() as engine:
        assert engine.status().variant == "fp32"


def test_without_a_release_it_opens_and_says_so(open_engine: OpenEngine) -> None:
    with open_engine() as engine:
        assert engine.spec is None
        with pytest.raises(NoReleaseError, match="no release active"):
            engine.infer(some_input())
        assert engine.status().release_id == ""


def test_without_enrolment_it_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="enrol"):
        Engine.open(tmp_path)


def flip_byte(path: Path, position: int = 50) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "rotten model": (lambda f: flip_byte(f / "infer.onnx"), "infer.onnx is not the file that was signed"),
    "short model": (lambda f: (f / "infer.onnx").write_bytes(b"x"), "infer.onnx has 1 bytes"),
    "no model": (lambda f: (f / "infer.onnx").unlink(), "infer.onnx are not here"),
    "rotten golden": (lambda f: flip_byte(f / "golden.pb"), "golden.pb is not the file"),
    "no golden": (lambda f: (f / "golden.pb").unlink(), "golden.pb cannot be read"),
    "rotten edges": (lambda f: flip_byte(f / "drift_edges.pb"), "drift_edges.pb is not the file"),
    "rotten manifest": (lambda f: flip_byte(f / "manifest.pb"), ""),
    "no manifest": (lambda f: (f / "manifest.pb").unlink(), "no readable manifest"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_slot_falls_back_to_the_previous_one(layout: AgentLayout, open_engine: OpenEngine, name: str) -> None:
    break_slot, says = BROKEN[name]
    one = TinyRelease(release_id="release-one", variants={"fp32": 0.0})
    install(layout, one, "a")
    broken = install(layout, TinyRelease(release_id="release-two", sequence=2, variants={"fp32": 0.0}), "b")
    break_slot(broken.folder)
    write_pointer(layout, Pointer("b", "release-two", True, previous_slot="a", previous_release="release-one"))
    with open_engine() as engine:
        status = engine.status()
        assert (status.release_id, status.slot) == ("release-one", "a")
        assert "slot b refused" in status.detail
        assert says in status.detail
        np.testing.assert_allclose(engine.infer(some_input()).scores, one.compute(some_input())[0], atol=1e-5)


def test_a_broken_slot_without_a_previous_one(layout: AgentLayout, open_engine: OpenEngine) -> None:
    content = install(layout, TinyRelease())
    flip_byte(content.folder / "infer.onnx")
    with open_engine() as engine:
        assert engine.spec is None
        with pytest.raises(NoReleaseError, match="not the file that was signed"):
            engine.infer(some_input())


def test_a_broken_pointer_leaves_the_newest_release_that_verifies(layout: AgentLayout, open_engine: OpenEngine) -> None:
    install(layout, TinyRelease(release_id="old", sequence=1), "b")
    install(layout, TinyRelease(release_id="new", sequence=2), "a")
    layout.pointer.write_bytes(b"{")
    with open_engine() as engine:
        assert engine.status().release_id == "new"
        assert "pointer" in engine.status().detail


REFUSED: dict[str, tuple[TinyRelease, str]] = {
    "untrusted key": (
        TinyRelease(signer=Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))),
        "no signature of a trusted key",
    ),
    "computes something else": (TinyRelease(wrong_variants=("fp32", "int8-qdq")), "differs by 0.5"),
    "for another device class": (TinyRelease(device_classes=("toaster",)), "no variant for device class"),
    "tolerance is not a number": (TinyRelease(tolerance=float("nan")), "tolerance nan"),
    "manifest has another shape": (TinyRelease(input_shape=(3, 2)), "golden.pb: inputs are"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_activation_leaves_what_answered(layout: AgentLayout, open_engine: OpenEngine, name: str) -> None:
    release, says = REFUSED[name]
    install(layout, TinyRelease(release_id="good"), "a")
    content = install(layout, release, "b", activate=False)
    with open_engine() as engine:
        with pytest.raises(ArtifactError) as caught:
            engine.activate("b")
        assert says in caught.value.reason
        assert engine.status().release_id == "good"
        assert engine.status().detail == ""
        engine.infer(some_input())
    assert not (content.folder / CHOICE).exists()


def test_activation_of_another_release_than_asked_for(layout: AgentLayout, open_engine: OpenEngine) -> None:
    install(layout, TinyRelease(release_id="good"), "a")
    with open_engine() as engine, pytest.raises(ArtifactError, match="slot a holds release good"):
        engine.activate("a", release_id="better")


def test_one_wrong_variant_leaves_the_other(layout: AgentLayout, open_engine: OpenEngine) -> None:
    install(layout, TinyRelease(wrong_variants=("int8-qdq",), slow_variants={"fp32": 40}))
    with open_engine() as engine:
        assert engine.status().variant == "fp32"


def test_bad_requests_are_refused_counted_and_harmless(
    layout: AgentLayout, sink: ListSink, open_engine: OpenEngine
) -> None:
    install(layout, TinyRelease())
    nan, large = some_input(2), some_input(2)
    nan[1, 0, 0] = np.nan
    large[:, 1, 1] = 1e6
    with open_engine() as engine:
        for x, error in (
            (nan, MissingValueError),
            (large, OutOfRangeError),
            (some_input().astype(np.float64), SchemaError),
            (some_input()[:, :1], SchemaError),
        ):
            with pytest.raises(error):
                engine.infer(x)
        engine.infer(some_input())
        counters = engine.status().counters
        assert (counters.requests, counters.errors) == (1, 0)
        assert counters.refused == {"schema": 2, "missing": 1, "out_of_range": 1}
    (report,) = sink.windows
    assert (report.rows, report.missing, report.out_of_range, report.schema_errors) == (1, 1, 2, 2)


def test_a_runtime_that_fails_is_an_error_of_ours(layout: AgentLayout, open_engine: OpenEngine) -> None:
    install(layout, TinyRelease())
    gpu = FakeGpu()
    with open_engine(backends={"tensorrt": TensorRtBackend(gpu.tensorrt, gpu.cuda)}) as engine:
        assert engine.status().backend == "tensorrt"
        gpu.faults.execution_fails = True
        with pytest.raises(BackendError):
            engine.infer(some_input())
        gpu.faults.execution_fails = False
        engine.infer(some_input())
        counters = engine.status().counters
        assert (counters.requests, counters.errors) == (1, 1)
    assert gpu.memory == {}


def test_the_gpu_is_left_out_where_it_is_wrong(layout: AgentLayout, open_engine: OpenEngine) -> None:
    install(layout, TinyRelease())
    gpu = FakeGpu()
    gpu.faults.build_fails = True
    backends = {"tensorrt": TensorRtBackend(gpu.tensorrt, gpu.cuda), "onnxruntime": OnnxRuntimeBackend()}
    with open_engine(backends=backends) as engine:
        assert engine.status().backend == "onnxruntime"


def test_hot_swap_under_load_loses_no_request_and_counts_every_row_once(
    layout: AgentLayout, sink: ListSink, open_engine: OpenEngine
) -> None:
    releases = {
        "release-one": TinyRelease(release_id="release-one", variants={"fp32": 0.0}),
        "release-two": TinyRelease(release_id="release-two", seed=2, variants={"fp32": 0.0}),
    }
    install(layout, releases["release-one"], "a")
    install(layout, releases["release-two"], "b", activate=False)
    x = some_input(2)
    wanted = {name: release.compute(x)[0] for name, release in releases.items()}
    failures: list[object] = []
    answered = dict.fromkeys(releases, 0)
    lock = threading.Lock()
    done = threading.Event()
    with open_engine() as engine:

        def ask() -> None:
            while not done.is_set():
                try:
                    prediction = engine.infer(x)
                except Exception as error:
                    failures.append(error)
                    continue
                if not np.allclose(prediction.scores, wanted[prediction.release_id], atol=1e-5):
                    failures.append(prediction)
                with lock:
                    answered[prediction.release_id] += 1

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(20):
            engine.activate("b" if turn % 2 == 0 else "a")
        done.set()
        for thread in threads:
            thread.join(30)
        counters = engine.status().counters
    assert failures == []
    assert min(answered.values()) > 0
    assert counters.requests == sum(answered.values())
    rows = dict.fromkeys(releases, 0)
    for report in sink.windows:
        rows[report.release_id] += report.rows
    assert rows == {name: 2 * count for name, count in answered.items()}
    numbers = [report.window for report in sink.windows]
    assert len(set(numbers)) == len(numbers)
    assert len({report.boot_id for report in sink.windows}) == 1


def test_a_swap_starts_a_new_window_and_closing_reports_the_open_one(
    layout: AgentLayout, sink: ListSink, open_engine: OpenEngine
) -> None:
    first = install(layout, TinyRelease(release_id="release-one"), "a")
    install(layout, TinyRelease(release_id="release-two"), "b", activate=False)
    with open_engine() as engine:
        engine.infer(some_input(3))
        engine.activate("b")
        engine.infer(some_input(2))
        assert engine.status().counters.release_requests == 1
    assert [(r.release_id, r.window, r.rows) for r in sink.windows] == [("release-one", 1, 3), ("release-two", 2, 2)]
    assert sink.windows[0].edges_sha256 == first.manifest.edges_sha256


def test_windows_close_by_rows_of_the_configuration(
    tmp_path: Path, sink: ListSink, wait_until: Callable[..., None]
) -> None:
    layout = enrol(tmp_path / "d", window_requests=5)
    install(layout, TinyRelease())
    with Engine.open(layout.root, open_sink=lambda: sink) as engine:
        for _ in range(11):
            engine.infer(some_input())
        wait_until(lambda: len(sink.messages) == 2, what="two windows in the outbox")
    assert [report.rows for report in sink.windows] == [5, 5, 1]


def test_the_control_plane_sets_the_windows_of_a_running_engine(
    tmp_path: Path, sink: ListSink, wait_until: Callable[..., None]
) -> None:
    layout = enrol(tmp_path / "d", window_requests=100)
    install(layout, TinyRelease())
    control = WindowPolicyFile(layout)
    control.follow(WindowPolicy(window_requests=3))
    with Engine.open(layout.root, open_sink=lambda: sink, follow=False) as engine:
        engine.infer(some_input(3))
        wait_until(lambda: len(sink.messages) == 1, what="a window of the policy that was there at the start")
        control.follow(WindowPolicy(window_ms=1))
        engine.infer(some_input(2))
        assert len(sink.messages) == 1
        engine.infer(some_input(1))  # ends the open window by its own limit
        wait_until(lambda: len(sink.messages) == 2, what="the window that was open")

        def closed_by_time() -> bool:
            engine.infer(some_input())
            return len(sink.messages) > 2

        wait_until(closed_by_time, what="a window of a millisecond")
    assert [report.rows for report in sink.windows[:2]] == [3, 3]


def test_it_follows_the_pointer_of_the_agent(
    layout: AgentLayout, open_engine: OpenEngine, wait_until: Callable[..., None]
) -> None:
    install(layout, TinyRelease(release_id="release-one"), "a")
    broken = install(layout, TinyRelease(release_id="release-two", sequence=2), "b", activate=False)
    flip_byte(broken.folder / "golden.pb")
    with open_engine() as engine, open_engine(follow=False) as told:
        write_pointer(layout, Pointer("b", "release-two", False, previous_slot="a", previous_release="release-one"))
        wait_until(lambda: "golden.pb" in engine.status().detail, what="the broken release refused")
        assert engine.status().release_id == "release-one"
        install(layout, TinyRelease(release_id="release-three", sequence=3), "b", activate=False)
        write_pointer(layout, Pointer("b", "release-three", False, previous_slot="a", previous_release="release-one"))
        wait_until(lambda: engine.status().release_id == "release-three", what="the new release")
        assert engine.status().detail == ""
        assert told.status().release_id == "release-one"


def test_a_closed_engine_refuses(layout: AgentLayout, open_engine: OpenEngine) -> None:
    install(layout, TinyRelease())
    engine = open_engine()
    engine.close()
    engine.close()
    with pytest.raises(NoReleaseError, match="closed"):
        engine.infer(some_input())
    with pytest.raises(DeviceError, match="closed"):
        engine.activate("a")


def prove(root: Path, slot: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "skerry_agent.engine.prove", str(root), slot],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[0]) if len(lines) == 1 else {}, done.stderr


def test_prove_writes_the_choice_and_one_line_of_json(layout: AgentLayout) -> None:
    content = install(layout, TinyRelease(slow_variants={"fp32": 40}))
    code, document, _ = prove(layout.root, "a")
    assert code == 0
    assert (document["variant"], document["backend"]) == ("int8-qdq", "onnxruntime")
    assert document["latency_us"] > 0
    assert [result["correct"] for result in document["results"]] == [True, True]
    kept = read_choices(content.folder)
    assert kept is not None
    assert kept.choices[0].variant == document["rungs"][0] == "int8-qdq"


def test_prove_refuses_with_the_reason(layout: AgentLayout) -> None:
    content = install(layout, TinyRelease(wrong_variants=("fp32", "int8-qdq")), activate=False)
    code, document, _ = prove(layout.root, "a")
    assert code == 3
    assert document["release_id"] == "release-one"
    assert "differs by 0.5" in document["error"]
    assert not (content.folder / CHOICE).exists()


def test_prove_on_a_device_that_is_not_enrolled(tmp_path: Path) -> None:
    code, document, _ = prove(tmp_path, "a")
    assert code == 1
    assert "enrol" in document["error"]


def test_prove_says_how_it_is_used(layout: AgentLayout) -> None:
    code, _, errors = prove(layout.root, "c")
    assert code == 2
    assert "usage" in errors


def test_importing_the_agent_is_light_and_serving_imports_no_torch() -> None:
    script = """
import sys
import skerry_agent
light = sorted(m for m in ("numpy", "onnxruntime", "grpc") if m in sys.modules)
import skerry_agent.serving.process, skerry_agent.engine.prove, skerry_agent.training.labelled_store
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend
from skerry_agent.engine.tensorrt_backend import TensorRtBackend
assert OnnxRuntimeBackend().probe().available
TensorRtBackend().probe()
heavy = ("torch", "mlflow", "evidently", "fastapi", "sklearn", "pandas", "onnx", "flwr", "scipy",
         "skerry_server", "skerry_models", "skerry_simulation")
print(light, sorted(m for m in heavy if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[] []"
