"""The executable forms of a network: a table, and the rule which of them a bundle carries. Pure.

One calibration, many lowerings: what a form is made from, who may run it, how far a device may be off from its golden
outputs. The functions that make the forms are in :mod:`skerry_models.lowerings.table` under the same names.

Which forms a bundle carries does not depend on the machine that builds it: devices measure and choose. ``REQUIRED``
forms are always there. ``OPTIONAL`` ones are taken in the order of the table while all forms of the network together
stay within a multiple of the fp32 file: twice for small networks, two and a half times for those of 1 MiB and more,
where fp16 is worth its half. ``DEVICE`` forms are in no bundle: a device makes them with the runtime that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Kept(Enum):
    """Where a form is made."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    DEVICE = "device"


@dataclass(frozen=True)
class Form:
    """One row of the table.

    Attributes:
        name: As the manifest has it; a smaller network's forms get its name in front ("small/int8-x86").
        file: In the bundle; empty for what is in none.
        source: Form that it is made from; empty for the export itself.
        device_classes: Who may run it; empty means every class.
        format: As in the manifest: empty for ONNX, "ort".
        tolerance: Largest difference from its own golden outputs that counts as equal on a device, as a share of the
            largest score (at least 1). Float kernels differ in the last bits; INT8 kernels round and fuse differently,
            which moves some values by a step per layer.
        proof: Largest difference from ``reference`` on the golden rows, as a share of the largest score, when neither
            graph is rewritten; 0 means bit-identical. More than that refuses the form.
        reference: Form that the proof compares with.
        kept: Where it is made.
        replaces: Form that is not needed beside it.
        smallest: Bytes of the fp32 file below which it is not worth making.
    """

    name: str
    file: str
    source: str
    device_classes: tuple[str, ...]
    tolerance: float
    proof: float
    reference: str
    kept: Kept
    format: str = ""
    replaces: str = ""
    smallest: int = 0


FP32, INT8_QDQ, INT8_X86 = "fp32", "int8-qdq", "int8-x86"
#: From here on a network is no small one: bytes of its fp32 file.
LARGE_BYTES = 1 << 20
#: Sum of all forms of a network as a multiple of its fp32 file, for small and for large networks.
SMALL_BUDGET, LARGE_BUDGET = 2.0, 2.5
_FLOAT, _INT8 = 1e-3, 0.05
_X86 = ("x86_64",)

_ROWS = (
    Form(FP32, "infer.onnx", "", (), _FLOAT, 0.0, FP32, Kept.REQUIRED),
    # Symmetric int8, explicit Q/DQ: what TensorRT reads, and what ARM's S8S8 kernels run as it is.
    Form(INT8_QDQ, "infer.int8-qdq.onnx", FP32, (), _INT8, 0.5, FP32, Kept.REQUIRED),
    # uint8 activations, weights of 7 bits: safe on x86 with and without VNNI.
    Form(INT8_X86, "infer.int8-x86.onnx", FP32, _X86, _INT8, 0.5, FP32, Kept.REQUIRED),
    # Weights of 8 bits: more exact than int8-x86 where VNNI is, wrong where its predecessors saturate: the device sees.
    Form(
        "int8-zp-relu",
        "infer.int8-zp-relu.onnx",
        INT8_QDQ,
        _X86,
        _INT8,
        _INT8,
        INT8_QDQ,
        Kept.OPTIONAL,
        replaces="int8-zp",
    ),
    Form("int8-zp", "infer.int8-zp.onnx", INT8_QDQ, _X86, _INT8, 0.0, INT8_QDQ, Kept.OPTIONAL),
    Form("int4-weights", "infer.int4-weights.onnx", FP32, (), 0.01, 0.5, FP32, Kept.OPTIONAL),
    # For GPUs and ARM; processors without half precision widen it and are right, but slow.
    Form("fp16", "infer.fp16.onnx", FP32, (), 0.02, 0.02, FP32, Kept.OPTIONAL, smallest=LARGE_BYTES),
    Form("fp32-ort", "", FP32, (), _FLOAT, _FLOAT, FP32, Kept.DEVICE, format="ort"),
    Form("int8-x86-ort", "", INT8_X86, _X86, _INT8, _INT8, INT8_X86, Kept.DEVICE, format="ort"),
    Form("int8-qdq-ort", "", INT8_QDQ, ("aarch64", "jetson"), _INT8, _INT8, INT8_QDQ, Kept.DEVICE, format="ort"),
)
#: Form name to form, in order of preference.
FORMS: Mapping[str, Form] = {form.name: form for form in _ROWS}
REQUIRED = tuple(form.name for form in _ROWS if form.kept is Kept.REQUIRED)
OPTIONAL = tuple(form.name for form in _ROWS if form.kept is Kept.OPTIONAL)


def form_of(variant: str) -> Form:
    """Form of a variant: "int8-x86" of "small/int8-x86"; raises KeyError."""
    return FORMS[variant.rpartition("/")[2]]


def variant_name(rung: str, form: str) -> str:
    """Name of a form of a network; ``rung`` is empty for the release's own."""
    return f"{rung}/{form}" if rung else form


def file_name(rung: str, file: str) -> str:
    """Name in the bundle of a file of a network; ``rung`` is empty for the release's own."""
    return f"{rung}.{file}" if rung else file


def budget(fp32_bytes: int) -> int:
    """Bytes that all forms of a network may have together."""
    return int(fp32_bytes * (LARGE_BUDGET if fp32_bytes >= LARGE_BYTES else SMALL_BUDGET))


def affordable(sizes: Mapping[str, int], made: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Which optional forms go into a bundle.

    Args:
        sizes: Form name to bytes, required forms included.
        made: Optional forms that could be made.

    Returns:
        Names that are kept, in order of preference, and the reason for each that is not.
    """
    room = budget(sizes[FP32]) - sum(sizes[name] for name in REQUIRED)
    kept: list[str] = []
    refused: dict[str, str] = {}
    for name in OPTIONAL:
        if name not in made:
            continue
        better = next((other for other in kept if FORMS[other].replaces == name), None)
        if better is not None:
            refused[name] = f"{better} does the same"
        elif sizes[name] > room:
            refused[name] = f"{sizes[name]} bytes, {max(room, 0)} are left"
        else:
            kept.append(name)
            room -= sizes[name]
    return kept, refused
