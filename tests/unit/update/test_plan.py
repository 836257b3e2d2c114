"""A device downloads the one form that devices like it found fastest, and everything once that has failed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.update.desired import open_instruction
from skerry_agent.update.plan import files_to_hold
from skerry_agent.update.slots import read_pointer, slot_folder
from skerry_agent.update.update_machine import State
from skerry_contract.v1.release_pb2 import Variant
from unit.update.device import TestDevice
from unit.update.releases import DEVICE, VERIFIER, make_desired, make_release

FORMS = {
    "infer.onnx": b"f" * 3000,
    "infer.int8-qdq.onnx": b"q" * 2000,
    "infer.int8-x86.onnx": b"x" * 2000,
    "small.onnx": b"s" * 1000,
    "small.int8-x86.onnx": b"t" * 1000,
}
RELEASE = make_release(
    "digits-9",
    files={**FORMS, "golden.pb": b"g" * 500, "golden.1.pb": b"h" * 500, "evaluate.onnx": b"e" * 1500},
    variants=[
        Variant(name="fp32", path="infer.onnx"),
        Variant(name="int8-qdq", path="infer.int8-qdq.onnx"),
        Variant(name="int8-x86", path="infer.int8-x86.onnx"),
        Variant(name="small/fp32", path="small.onnx", rung=1, golden="golden.1.pb"),
        Variant(name="small/int8-x86", path="small.int8-x86.onnx", rung=1, golden="golden.1.pb"),
    ],
)
X86 = "infer.int8-x86.onnx"
REST = {"golden.pb", "golden.1.pb", "evaluate.onnx"}
EVERYTHING = {*FORMS, *REST}


@pytest.mark.parametrize(
    ("what", "preferred", "failures", "keep_own", "forms"),
    [
        ("no hint: everything", [], 0, False, {*FORMS}),
        ("one form, the ladder whole", ["int8-x86"], 0, False, {X86, "small.onnx", "small.int8-x86.onnx"}),
        ("one form of each network", ["int8-x86", "small/fp32"], 0, False, {X86, "small.onnx"}),
        ("and float32 for own models", ["int8-x86", "small/fp32"], 0, True, {"infer.onnx", X86, "small.onnx"}),
        ("a form that the release lacks", ["int4-weights"], 0, False, {*FORMS}),
        ("it failed here once", ["int8-x86", "small/fp32"], 1, False, {*FORMS}),
    ],
)
def test_files(what: str, preferred: list[str], failures: int, keep_own: bool, forms: set[str]) -> None:
    target = open_instruction(make_desired(1, RELEASE, preferred=preferred), VERIFIER, DEVICE)
    entries = files_to_hold(target, {RELEASE.digest: failures}, keep_own=keep_own)
    assert {entry.path for entry in entries} == forms | REST
    order = [entry.path for entry in RELEASE.manifest.files]
    assert [entry.path for entry in entries] == [path for path in order if path in forms | REST]


def test_without_a_release_there_is_no_plan() -> None:
    with pytest.raises(ValueError, match="names a release"):
        files_to_hold(open_instruction(make_desired(1, None), VERIFIER, DEVICE), {}, keep_own=True)


def in_slot(device: TestDevice) -> set[str]:
    pointer = read_pointer(device.layout)
    assert pointer is not None
    folder = slot_folder(device.layout, pointer.slot)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"manifest.pb"}


def test_the_slot_holds_what_was_downloaded_and_survives_a_restart(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, RELEASE)
    device.updater.offer(make_desired(1, RELEASE, preferred=["int8-x86", "small/int8-x86"]))
    device.reach(State.VERIFYING)
    device = TestDevice(tmp_path, RELEASE)  # the plan comes from the journal again
    device.settle()
    assert device.answering() == "digits-9"
    assert in_slot(device) == {"infer.onnx", "infer.int8-x86.onnx", "small.int8-x86.onnx", *REST}


def test_a_form_that_does_not_prove_here_makes_the_device_download_everything(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, RELEASE)
    device.updater.offer(make_desired(1, RELEASE, preferred=["int8-x86", "small/int8-x86"]))
    device.prover.refuse.add("digits-9")
    device.reach(State.PROVING)
    while device.updater.snapshot.state is State.PROVING:
        device.step()
    device.prover.refuse.clear()
    device.settle()
    assert device.answering() == "digits-9"
    assert in_slot(device) == EVERYTHING


def test_forms_that_the_slot_lacks_are_fetched_when_they_are_wanted_later(tmp_path: Path) -> None:
    device = TestDevice(tmp_path, RELEASE)
    device.updater.offer(make_desired(1, RELEASE, preferred=["int8-x86", "small/int8-x86"]))
    device.settle()
    twin = make_release(
        "digits-10", files={**RELEASE.files, "evaluate.onnx": b"n" * 1500}, variants=list(RELEASE.manifest.variants)
    )
    device = TestDevice(tmp_path, RELEASE, twin)
    device.updater.offer(make_desired(2, twin))
    device.settle()
    assert device.answering() == "digits-10"
    assert in_slot(device) == EVERYTHING
