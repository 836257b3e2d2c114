"""Which forms are served: one per rung, kept forms that are never trusted, files that were not downloaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, enrol, install, some_input
from skerry_agent.config import AgentLayout
from skerry_agent.engine.backend import Backend, ModelSource, Port
from skerry_agent.engine.choice import read_choices
from skerry_agent.engine.golden import Golden
from skerry_agent.engine.kept_forms import read_form, write_form
from skerry_agent.engine.loader import CACHE, ExtraCandidate, LoadedRelease, load_release
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend
from skerry_agent.engine.probing import describe_release, explain
from skerry_agent.engine.proof import prove
from skerry_agent.errors import ArtifactError
from skerry_agent.update.slots import SlotContent

BACKENDS: dict[str, Backend] = {"onnxruntime": OnnxRuntimeBackend()}
LADDER = TinyRelease(
    variants={"fp32": 0.0, "int8-qdq": 1 / 64, "small/fp32": 1 / 2, "small/int8-qdq": 1 / 4},
    slow_variants={"fp32": 60, "small/int8-qdq": 60},
    rungs={"small/fp32": 1, "small/int8-qdq": 1},
)


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    return enrol(tmp_path)


def load(content: SlotContent, *extra: ExtraCandidate, device_class: str = "x86_64") -> LoadedRelease:
    return load_release(content, backends=BACKENDS, device_class=device_class, extra=extra)


def scores(loaded: LoadedRelease, index: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return loaded.models[index].run(some_input(2))[0]


def kept_forms(content: SlotContent) -> list[Path]:
    return sorted((content.folder / CACHE).glob("*.ort"))


def test_each_rung_has_its_own_choice_and_golden_file(layout: AgentLayout) -> None:
    content = install(layout, LADDER)
    for _ in range(2):  # measured, then by the kept choices
        loaded = load(content)
        assert [model.variant for model in loaded.models] == ["int8-qdq", "small/fp32"]
        assert [choice.rung for choice in loaded.choices] == [0, 1]
        for index, variant in enumerate(("int8-qdq", "small/fp32")):
            wanted = LADDER.compute(some_input(2), variant)[0]
            np.testing.assert_allclose(scores(loaded, index), wanted, atol=1e-5)
        loaded.close()
    kept = read_choices(content.folder)
    assert kept is not None
    assert {(m.rung, m.variant) for m in kept.measurements} == {
        (0, "fp32"),
        (0, "int8-qdq"),
        (1, "small/fp32"),
        (1, "small/int8-qdq"),
    }


def test_a_smaller_network_that_is_wrong_is_left_out_and_the_release_s_own_is_not(layout: AgentLayout) -> None:
    broken = TinyRelease(variants=LADDER.variants, rungs=LADDER.rungs, wrong_variants=("small/fp32", "small/int8-qdq"))
    loaded = load(install(layout, broken))
    assert [choice.rung for choice in loaded.choices] == [0]
    loaded.close()
    broken = TinyRelease(variants=LADDER.variants, rungs=LADDER.rungs, wrong_variants=("fp32", "int8-qdq"))
    with pytest.raises(ArtifactError, match="differs"):
        load(install(layout, broken, "b"))


def test_the_proof_keeps_a_form_that_loads_faster_and_serving_answers_by_it(layout: AgentLayout) -> None:
    release = TinyRelease(variants={"fp32": 0.0}, slow_variants={"fp32": 20})
    content = install(layout, release)
    backend = OnnxRuntimeBackend()
    source = source_of(release)
    assert backend.keep(source, content.folder / CACHE)
    (form,) = kept_forms(content)
    built = backend.build(source, content.folder / CACHE)
    assert (built.kept, built.fresh, built.format) == (form, False, "ort")
    prove(content, device_class="x86_64", backends=BACKENDS)
    assert kept_forms(content) == [form]  # it passed the golden check once more
    loaded = load(content)
    np.testing.assert_allclose(scores(loaded), release.compute(some_input(2))[0], atol=1e-5)
    loaded.close()


def source_of(release: TinyRelease) -> ModelSource:
    onnx = release.graph("fp32")
    return ModelSource(
        onnx,
        hashlib.sha256(onnx).digest(),
        Port("input", (2, 3)),
        (Port("scores", (3,)), Port("features", (2,))),
        maximum_batch=64,
    )


@pytest.mark.parametrize("how", ["rotten", "cut short", "empty", "another model", "no model"])
def test_a_kept_form_is_deleted_at_any_doubt_and_the_signed_file_answers(layout: AgentLayout, how: str) -> None:
    release = TinyRelease(variants={"fp32": 0.0})
    content = install(layout, release)
    cache = content.folder / CACHE
    backend = OnnxRuntimeBackend()
    backend.keep(source_of(release), cache)
    (form,) = kept_forms(content)
    data = form.read_bytes()
    if how == "another model":  # whole, loads, of the right shape, and computes something else
        other = TinyRelease(seed=9, variants={"fp32": 0.0})
        backend.keep(source_of(other), cache / "other")
        (foreign,) = (cache / "other").glob("*.ort")
        form.write_bytes(foreign.read_bytes())
    elif how == "no model":
        write_form(form, b"not a model")
    else:
        form.write_bytes({"rotten": data[:-1] + b"x", "cut short": data[:90], "empty": b""}[how])
    loaded = load(content)
    np.testing.assert_allclose(scores(loaded), release.compute(some_input(2))[0], atol=1e-5)
    loaded.close()
    assert kept_forms(content) == []


def test_a_kept_form_is_for_one_machine_one_runtime_and_one_graph(tmp_path: Path) -> None:
    release = TinyRelease(variants={"fp32": 0.0})
    here, elsewhere = OnnxRuntimeBackend(), OnnxRuntimeBackend(hardware=lambda: "another processor")
    here.keep(source_of(release), tmp_path)
    assert elsewhere.build(source_of(release), tmp_path).kept is None
    assert here.build(source_of(TinyRelease(seed=4)), tmp_path).kept is None


def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="File exists"):
        write_form(tmp_path / "file" / "x.ort", b"content")
    assert read_form(tmp_path / "missing.ort") is None


def test_forms_that_were_not_downloaded_are_done_without(layout: AgentLayout) -> None:
    content = install(layout, TinyRelease(slow_variants={"int8-qdq": 60}))
    (content.folder / "infer.onnx").unlink()
    loaded = load(content)
    assert loaded.model.variant == "int8-qdq"
    loaded.close()
    (content.folder / "infer.int8-qdq.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"no variant.*infer\.int8-qdq\.onnx, infer\.onnx are not here"):
        load(content)


def test_a_model_made_here_goes_first_while_it_is_right(layout: AgentLayout) -> None:
    content = install(layout, LADDER)
    own = TinyRelease(seed=5, variants={"fp32": 0.0})
    x = some_input(3)
    outputs = dict(zip(("scores", "features"), own.compute(x), strict=True))
    good = ExtraCandidate("personal", own.graph("fp32"), Golden(x, {"personal": outputs}), 1e-4)
    loaded = load(content, good)
    assert [model.variant for model in loaded.models] == ["personal", "small/fp32"]
    np.testing.assert_allclose(scores(loaded), own.compute(some_input(2))[0], atol=1e-5)
    loaded.close()
    wrong = ExtraCandidate("personal", LADDER.graph("fp32"), Golden(x, {"personal": outputs}), 1e-4)
    loaded = load(content, wrong)
    assert loaded.model.variant == "int8-qdq"
    loaded.close()


def test_the_probe_says_what_was_chosen_and_why(layout: AgentLayout) -> None:
    content = install(layout, LADDER)
    untold = describe_release(content, BACKENDS, device_class="x86_64", measure=False, budget_s=8)
    assert "not measured yet" in untold["detail"]
    prove(content, device_class="x86_64", backends=BACKENDS)
    told = describe_release(content, BACKENDS, device_class="x86_64", measure=False, budget_s=8)
    chosen = {form["rung"]: form for form in told["forms"] if form["chosen"]}
    assert {rung: form["variant"] for rung, form in chosen.items()} == {0: "int8-qdq", 1: "small/fp32"}
    assert chosen[0]["why"].startswith("fastest correct form, ")
    kept = read_choices(content.folder)
    assert kept is not None
    assert explain(kept.measurements, kept.choices) == told["forms"]
