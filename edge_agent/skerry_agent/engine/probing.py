"""``skerry-agent probe``: what this machine is, which runtimes work on it, and which form of a model it serves and why.

What is said of the active release comes from the measurement that is kept in its slot, unless it is measured again. A
bare ONNX file has no golden outputs: the CPU's own are the ones that the other runtimes are held to.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.engine.arrays import COMPILED
from skerry_agent.engine.backend import Backend, ModelSource, Port
from skerry_agent.engine.choice import Choice, Choices, Measurement, finite, read_choices
from skerry_agent.engine.chooser import MARGIN, REFERENCE, Candidate, choose, present_backends
from skerry_agent.engine.device_profile import DeviceProfile
from skerry_agent.engine.golden import Golden
from skerry_agent.engine.loader import measure_release
from skerry_agent.errors import ArtifactError, InputError
from skerry_agent.policy.sensors import SYS_CLASS, temperature_c
from skerry_agent.trust.keyring import slot_keys
from skerry_agent.update.slots import SlotContent, read_pointer, read_slot

#: What a model on one's own may differ from the CPU's outputs, relative to their size.
TOLERANCE = 1e-3
#: Rows that a bare ONNX file is checked with.
ROWS = 4


def describe_machine(profile: DeviceProfile, backends: Mapping[str, Backend]) -> dict[str, Any]:
    """The hardware, its sensors, and every backend with its version or why it is not available.

    ``compiled`` says whether the steps with a request's arrays are compiled (:mod:`skerry_agent.engine.arrays`).
    """
    zones = sorted((SYS_CLASS / "thermal").glob("thermal_zone*"))
    return {
        "profile": {**asdict(profile), "sha256": profile.digest},
        "sensors": {"thermal_zones": len(zones), "temperature_c": temperature_c()},
        "compiled": COMPILED,
        "backends": {name: asdict(backend.probe()) for name, backend in backends.items()},
    }


def active_slot(layout: AgentLayout) -> SlotContent | None:
    """The slot that the pointer names; None on a device without a release.

    Raises:
        ArtifactError: It cannot be trusted.
        DeviceError: The device is not enrolled.
    """
    config = load_config(layout)
    pointer = read_pointer(layout)
    return None if pointer is None else read_slot(layout, pointer.slot, slot_keys(layout, config))


def describe_release(
    content: SlotContent, backends: Mapping[str, Backend], *, device_class: str, measure: bool, budget_s: float
) -> dict[str, Any]:
    """What was chosen of a release and why.

    Args:
        content: Its slot.
        backends: Inference runtimes by name.
        device_class: Which variants may run.
        measure: Whether to measure now; else what is kept in the slot is told. Nothing is written either way.
        budget_s: How long measuring may take (s).

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    kept = read_choices(content.folder)
    if measure:
        found: Choices | None = measure_release(
            content, backends=backends, device_class=device_class, budget_s=budget_s, keep=False
        )
    else:
        found = kept
    document = {"release_id": content.manifest.release_id, "task": content.manifest.task, "slot": content.slot}
    if found is None:
        return {**document, "detail": "not measured yet; serving measures when it starts"}
    return {**document, "measured_unix_ms": found.measured_unix_ms, "forms": explain(found.measurements, found.choices)}


def explain(measurements: Sequence[Measurement], choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """One document per form: what was measured, whether it is served, and why. Pure."""
    served = {(choice.rung, choice.variant, choice.backend) for choice in choices}
    winners = {m.rung: m for m in measurements if (m.rung, m.variant, m.backend) in served}
    return [
        {**finite(asdict(m)), "chosen": winners.get(m.rung) is m, "why": _why(m, winners.get(m.rung), measurements)}
        for m in sorted(measurements, key=lambda m: (m.rung, not m.correct, m.median_us, m.variant))
    ]


def measure_onnx(path: Path, backends: Mapping[str, Backend], *, budget_s: float) -> list[dict[str, Any]]:
    """Time an ONNX file on every backend, held to what the CPU computes of random inputs.

    Raises:
        InputError: Not a graph with one float32 input and float32 outputs that this device can run.
    """
    source, golden = _read_onnx(path)
    spread = max(float(np.max(np.abs(values), initial=0.0)) for values in golden.outputs[REFERENCE].values())
    candidates = [
        Candidate(REFERENCE, name, TOLERANCE * max(1.0, spread), source)
        for name in present_backends(backends)
        if backends[name].accepts(REFERENCE)
    ]
    with tempfile.TemporaryDirectory() as cache:
        try:
            chosen, measurements, runner = choose(
                path.name, candidates, backends=backends, golden=golden, cache=Path(cache), budget_s=budget_s
            )
        except ArtifactError as error:
            raise InputError("--onnx", expected="a graph that a backend can run", got=error.reason[:300]) from error
        runner.close()
    return explain(measurements, [Choice(chosen.variant, chosen.backend, "", chosen.median_us, chosen.p99_us)])


def _why(measurement: Measurement, winner: Measurement | None, all_of_them: Sequence[Measurement]) -> str:
    if not measurement.correct:
        return measurement.detail
    reference = min(
        (
            m.median_us
            for m in all_of_them
            if m.rung == measurement.rung and m.correct and m.variant.rpartition("/")[2] == REFERENCE
        ),
        default=0.0,
    )
    against = f"{reference / measurement.median_us:.2f} x fp32" if reference else "fp32 is not here"
    if winner is measurement:
        return f"fastest correct form, {against}"
    if winner is not None and measurement.median_us < winner.median_us:
        return f"{against}, but by less than {MARGIN:.0%}: not worth what it costs in accuracy"
    return against


def _read_onnx(path: Path) -> tuple[ModelSource, Golden]:
    runtime: Any = importlib.import_module("onnxruntime")
    try:
        data = path.read_bytes()
        session: Any = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise InputError("--onnx", expected="a file that can be read", got=str(error.strerror)) from error
    except Exception as error:
        raise InputError("--onnx", expected="an ONNX graph", got=str(error)[:200]) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or any(port.type != "tensor(float)" for port in (*inputs, *outputs)):
        types = [f"{port.name} {port.type}" for port in (*inputs, *outputs)]
        raise InputError("--onnx", expected="one float32 input and float32 outputs", got=", ".join(types)[:200])
    shape = list(inputs[0].shape)
    if len(shape) < 2 or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        raise InputError("--onnx", expected="an input [batch, sizes] with any batch", got=shape)
    x = np.random.default_rng(0).normal(size=(ROWS, *shape[1:])).astype(np.float32)
    names = [port.name for port in outputs]
    values = dict(zip(names, session.run(names, {inputs[0].name: x}), strict=True))
    ports = tuple(Port(name, tuple(array.shape[1:])) for name, array in values.items())
    source = ModelSource(data, hashlib.sha256(data).digest(), Port(inputs[0].name, tuple(shape[1:])), ports, ROWS)
    return source, Golden(x, {REFERENCE: values})
