"""The command ``skerry-agent probe``: one document for programs, a few tables for people.

It works on a device that is not enrolled and without a release: then it tells of the hardware and the runtimes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skerry_agent.config import AgentLayout, load_config
from skerry_agent.engine.backends import BACKENDS
from skerry_agent.engine.chooser import BUDGET_SECONDS
from skerry_agent.engine.device_profile import read_profile
from skerry_agent.engine.probing import active_slot, describe_machine, describe_release, measure_onnx
from skerry_agent.serving import http2, slots

_GIB = 1 << 30


def probe(layout: AgentLayout, *, measure: bool = False, onnx: Path | None = None) -> dict[str, Any]:
    """Look at this machine.

    Args:
        layout: Data directory; it may be empty.
        measure: Measure the active release now instead of telling what was measured.
        onnx: Time this file instead of telling of a release.

    Raises:
        ArtifactError: The active release cannot be trusted or used.
        InputError: The ONNX file cannot be used.
    """
    profile = read_profile()
    doors = {
        "shared_memory": "compiled" if slots.COMPILED else "python",
        "grpc": "nghttp2" if http2.COMPILED else "grpcio",
    }
    machine = {**describe_machine(profile, BACKENDS), "doors": doors}
    document: dict[str, Any] = {"machine": machine, "release": None, "onnx": None}
    if onnx is not None:
        return {**document, "onnx": {"path": str(onnx), "forms": measure_onnx(onnx, BACKENDS, budget_s=BUDGET_SECONDS)}}
    if not layout.config.exists():
        return document
    content = active_slot(layout)
    if content is None:
        return document
    release = describe_release(
        content,
        BACKENDS,
        device_class=profile.device_class,
        measure=measure,
        budget_s=load_config(layout).choosing_seconds,
    )
    return {**document, "release": release}


def show(document: dict[str, Any]) -> str:
    """The document of :func:`probe` for people."""
    machine = document["machine"]
    profile, sensors = machine["profile"], machine["sensors"]
    heat = sensors["temperature_c"]
    lines = [
        f"class        {profile['device_class']}, kind {profile['sha256'][:12]}",
        f"processor    {profile['cores']} x {profile['cpu'] or 'unknown'}",
        f"isa          {' '.join(profile['isa']) or 'unknown'}",
        f"memory       {profile['memory_bytes'] / _GIB:.1f} GiB",
        f"accelerators {', '.join(profile['accelerators']) or 'none'}",
        f"power mode   {profile['power_mode'] or 'unknown'}",
        f"requests     checked by {'compiled code' if machine['compiled'] else 'NumPy, there was no compiler'}",
        f"doors        shared memory: {machine['doors']['shared_memory']}, gRPC: {machine['doors']['grpc']}",
        f"thermal      {sensors['thermal_zones']} zones{'' if heat is None else f', hottest {heat:.1f} C'}",
        "",
        *_table(
            ("runtime", "version", "detail"),
            [
                (name, found["version"] if found["available"] else "-", found["detail"])
                for name, found in machine["backends"].items()
            ],
        ),
    ]
    if document["release"] is not None:
        release = document["release"]
        lines += ["", f"release {release['release_id']} of {release['task']}, slot {release['slot']}"]
        lines += _forms(release["forms"]) if "forms" in release else [release["detail"]]
    elif document["onnx"] is not None:
        lines += ["", document["onnx"]["path"], *_forms(document["onnx"]["forms"])]
    else:
        lines += ["", "no release is active"]
    return "\n".join(lines)


def _forms(forms: Sequence[dict[str, Any]]) -> list[str]:
    return _table(
        ("", "rung", "form", "runtime", "p50 us", "p99 us", "load ms", "KiB", "worst", "why"),
        [
            (
                "*" if form["chosen"] else "",
                str(form["rung"]),
                form["variant"],
                form["backend"],
                _number(form["median_us"], 1),
                _number(form["p99_us"], 1),
                _number(form["load_us"], 1000),
                f"{form['size'] / 1024:.0f}",
                "-" if form["worst"] is None else f"{form['worst']:.1e}",
                form["why"],
            )
            for form in forms
        ],
    )


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]
