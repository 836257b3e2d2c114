"""Every doubt about a personal form leaves the release answering as it was signed, and the disk as it was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from integration.personal.conftest import Training
from integration.personal.linear_release import GRAPHS, LinearRelease, install, own_people, scores
from skerry_agent import Engine
from skerry_agent.config import AgentLayout
from skerry_agent.training.personal_forms import form_path
from skerry_agent.update.slots import Pointer, write_pointer
from skerry_contract.tensors import encode_bundle
from skerry_contract.v1.personal_pb2 import PersonalForm, PersonalProof
from unit.agent_training.linear_graphs import BIAS, WEIGHT

X, _ = own_people(20, seed=5)
OWN = {BIAS: np.array([2.5, -1.0, 0.0], np.float32)}


def proof(**fields: float) -> PersonalProof:
    plain = {
        "examples": 40, "global_accuracy": 0.5, "personal_accuracy": 0.9, "global_loss": 1.0, "personal_loss": 0.4,
    }  # fmt: skip
    return PersonalProof(**{**plain, **fields})  # type: ignore[arg-type]  # fields of the table


def form(release: LinearRelease, layout: AgentLayout, **fields: object) -> PersonalForm:
    content = install(layout, release)
    made = PersonalForm(
        task="linear",
        release_id=release.release_id,
        bundle_sha256=content.manifest.bundle_sha256,
        train_step_sha256=content.manifest.train_step_sha256,
        parameters=encode_bundle(OWN),
        proof=proof(),
    )
    for name, value in fields.items():
        if name == "proof":
            assert isinstance(value, PersonalProof)
            made.proof.CopyFrom(value)
        else:
            setattr(made, name, value)
    return made


def write(layout: AgentLayout, content: bytes, bundle_sha256: bytes, *, rotten: bool = False) -> Path:
    path = form_path(layout.personal_forms, bundle_sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(content, digest_size=32).digest()
    path.write_bytes((b"\0" * 32 if rotten else digest) + content)
    return path


def everything(layout: AgentLayout) -> dict[str, bytes]:
    """Content of the slots and the forms."""
    folders = (layout.slots, layout.personal_forms)
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != "choice.json"}


def check_refused(open_engine: Callable[..., Engine], layout: AgentLayout, release: LinearRelease, why: str) -> None:
    before = everything(layout)
    with open_engine(follow=False) as engine:
        status = engine.status()
        assert (status.variant, status.personal.state) == ("fp32", "refused"), status.personal
        assert why in status.personal.detail, status.personal.detail
        np.testing.assert_allclose(engine.infer(X).scores, scores(release.state, X), atol=1e-5)
    assert everything(layout) == before


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"bundle_sha256": b"\1" * 32}, "belongs to release linear-1"),
        ({"train_step_sha256": b"\1" * 32}, "belongs to release linear-1"),
        ({"task": "digits"}, "of task digits"),
        ({"parameters": b""}, "no parameters"),
        ({"parameters": b"\xff\xff\xff"}, "parameters are broken"),
        ({"parameters": encode_bundle({"head.bias": OWN[BIAS]})}, "no such parameter"),
        ({"parameters": encode_bundle({BIAS: np.zeros(4, np.float32)})}, "does not fit"),
        ({"parameters": encode_bundle({BIAS: np.zeros(3, np.float64)})}, "does not fit"),
        ({"parameters": encode_bundle({BIAS: np.array([0, np.nan, 0], np.float32)})}, "not finite"),
        ({"parameters": encode_bundle({BIAS: np.array([0, np.inf, 0], np.float32)})}, "not finite"),
        ({"parameters": encode_bundle({WEIGHT: np.full((3, 6), 3e38, np.float32)})}, "scores are not finite"),
        ({"proof": proof(examples=9)}, "fewer than 10"),
        ({"proof": proof(personal_accuracy=0.4)}, "not better"),
        ({"proof": proof(personal_accuracy=0.5, personal_loss=1.0)}, "not better"),
        ({"proof": proof(personal_accuracy=0.5, personal_loss=1.2)}, "not better"),
        ({"proof": proof(personal_accuracy=1.5)}, "cannot be"),
        ({"proof": proof(personal_accuracy=math.nan)}, "cannot be"),
        ({"proof": proof(global_loss=math.inf)}, "cannot be"),
    ],
)
def test_a_form_that_is_not_of_this_release_not_proven_or_does_not_fit(
    layout: AgentLayout, open_engine: Callable[..., Engine], fields: dict[str, object], why: str
) -> None:
    release = LinearRelease()
    made = form(release, layout, **fields)
    write(layout, made.SerializeToString(), form(release, layout).bundle_sha256)
    check_refused(open_engine, layout, release, why)


@pytest.mark.parametrize("fields", [{}, {"proof": proof(personal_accuracy=0.5)}])
def test_the_same_form_without_a_fault_answers(
    layout: AgentLayout, open_engine: Callable[..., Engine], fields: dict[str, object]
) -> None:
    """What the table breaks is right before it is broken; as often right and more surely is enough."""
    release = LinearRelease()
    made = form(release, layout, **fields)
    write(layout, made.SerializeToString(), made.bundle_sha256)
    with open_engine(follow=False) as engine:
        assert engine.status().personal.state == "answers"
        np.testing.assert_allclose(engine.infer(X).scores, scores({**release.state, **OWN}, X), atol=1e-5)


def reshaped_evaluate() -> bytes:
    """evaluate.onnx of the same network that computes something else."""
    model = onnx.load_from_string(GRAPHS.evaluate)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    scale.CopyFrom(numpy_helper.from_array(np.array(1.5, np.float32), "scale"))
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"evaluate.onnx": reshaped_evaluate()}, "with the release's own parameters"),
        ({"evaluate.onnx": b"\xff" * 40}, "OnnxModel"),
        ({"evaluate.onnx": b""}, "onnx.graph"),
        ({"evaluate.onnx": None}, "no file evaluate.onnx"),
        ({"parameters.pb": None}, "no file parameters.pb"),
        ({"parameters.pb": b"\xff" * 8}, "TensorBundle"),
        (
            {"parameters.pb": encode_bundle({**LinearRelease().state, BIAS: np.ones(3, np.float32)})},
            "the release's own",
        ),
        ({"parameters.pb": encode_bundle({BIAS: np.zeros(3, np.float32)})}, "a parameter with a value"),
    ],
)
def test_a_release_whose_files_do_not_make_it_again(
    layout: AgentLayout, open_engine: Callable[..., Engine], files: dict[str, bytes | None], why: str
) -> None:
    release = LinearRelease(files=files)
    made = form(release, layout)
    write(layout, made.SerializeToString(), made.bundle_sha256)
    check_refused(open_engine, layout, release, why)


@pytest.mark.parametrize("case", ["rotten", "torn", "empty", "folder"])
def test_a_file_that_cannot_be_read(layout: AgentLayout, open_engine: Callable[..., Engine], case: str) -> None:
    release = LinearRelease()
    made = form(release, layout)
    path = write(layout, made.SerializeToString(), made.bundle_sha256, rotten=case == "rotten")
    if case == "torn":
        path.write_bytes(path.read_bytes()[:-3])
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "folder":
        path.unlink()
        path.mkdir()
    check_refused(open_engine, layout, release, "file cannot be used")


def test_a_file_of_the_slot_that_has_rotted(layout: AgentLayout, open_engine: Callable[..., Engine]) -> None:
    release = LinearRelease()
    made = form(release, layout)
    write(layout, made.SerializeToString(), made.bundle_sha256)
    parameters = layout.slots / "a" / "parameters.pb"
    parameters.write_bytes(parameters.read_bytes()[:-1] + b"\x7f")
    check_refused(open_engine, layout, release, "not the file that was signed")


def test_a_release_on_probation_answers_as_it_was_signed(
    layout: AgentLayout, open_engine: Callable[..., Engine], wait_until: Callable[..., None]
) -> None:
    release = LinearRelease()
    made = form(release, layout)
    write(layout, made.SerializeToString(), made.bundle_sha256)
    write_pointer(layout, Pointer("a", "linear-1", committed=False))
    check_refused(open_engine, layout, release, "on probation")
    with open_engine(follow=False) as engine:
        write_pointer(layout, Pointer("a", "linear-1", committed=True))
        wait_until(lambda: engine.status().variant == "personal", what="the committed release has it", seconds=10)


def test_a_broken_new_release_leaves_the_personal_form_of_the_old_one(
    layout: AgentLayout, training: Training, open_engine: Callable[..., Engine]
) -> None:
    release = LinearRelease()
    made = form(release, layout)
    write(layout, made.SerializeToString(), made.bundle_sha256)
    with open_engine(follow=False) as engine:
        before = engine.status().personal
        broken = replace(LinearRelease("linear-2", 2), golden_off=1.0)
        broken.write(layout.slots / "b")
        with pytest.raises(Exception, match="linear-2"):
            engine.activate("b")
        assert (engine.status().variant, engine.status().personal) == ("personal", before)
