"""``choice.json`` in a slot: what the chooser found, one choice per rung, so that serving starts without measuring.

It is a hint, not a fact: it counts only for the same bundle, the same hardware, the same version of the runtime and
variants that the signed manifest allows here, and every model that it names still has to pass the golden check. The
measurements behind the choices lie beside them: they are what the device reports and what ``skerry-agent probe`` shows.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerry_agent.files import write_atomically

CHOICE = "choice.json"
#: Most choices and measurements that are read.
ENTRIES = 256


@dataclass(frozen=True)
class Measurement:
    """What was found out about a variant on a backend.

    Attributes:
        variant: Name of the variant.
        backend: Name of the backend.
        correct: Whether it loaded and passed the golden check.
        median_us: Median latency of one row; infinity if it is not correct or was not measured.
        p99_us: 99th percentile.
        worst: Largest difference from the golden outputs.
        detail: Why it is not correct or was not measured; empty otherwise.
        rung: Place of its network on the ladder.
        size: Size of its file (bytes).
        load_us: Time from the file to a runner; infinity if it was not loaded.
        tried: Whether it was loaded at all: the time budget may not have reached it.
    """

    variant: str
    backend: str
    correct: bool
    median_us: float
    p99_us: float
    worst: float
    detail: str
    rung: int = 0
    size: int = 0
    load_us: float = math.inf
    tried: bool = True


@dataclass(frozen=True)
class Choice:
    """The variant to serve on one rung.

    Attributes:
        variant: Name of the variant.
        backend: Name of the backend.
        backend_version: Version that the backend's probe gave.
        latency_us: Median latency of one row.
        p99_us: 99th percentile.
        rung: Place of its network on the ladder; 0 is the release's own network.
    """

    variant: str
    backend: str
    backend_version: str
    latency_us: float
    p99_us: float
    rung: int = 0


@dataclass(frozen=True)
class Choices:
    """What ``choice.json`` holds.

    Attributes:
        bundle_sha256: Hexadecimal digest of the bundle that was measured.
        hardware: Digest of the hardware that it was measured on (``device_profile.DeviceProfile.hardware``).
        measured_unix_ms: When.
        choices: One per rung that can be served here, ascending.
        measurements: All that was found out.
        complete: Whether every runtime was asked; false while engines still have to be built.
    """

    bundle_sha256: str
    hardware: str
    measured_unix_ms: int
    choices: tuple[Choice, ...]
    measurements: tuple[Measurement, ...]
    complete: bool = True


def read_choices(folder: Path) -> Choices | None:
    """The choices of a slot, or None if there are no readable ones."""
    try:
        document = json.loads((folder / CHOICE).read_bytes())
        choices = tuple(
            Choice(
                variant=str(entry["variant"]),
                backend=str(entry["backend"]),
                backend_version=str(entry["backend_version"]),
                latency_us=float(entry["latency_us"]),
                p99_us=float(entry["p99_us"]),
                rung=int(entry["rung"]),
            )
            for entry in document["choices"][:ENTRIES]
        )
        measurements = tuple(_measurement(entry) for entry in document["measurements"][:ENTRIES])
        if not choices or [choice.rung for choice in choices] != sorted({choice.rung for choice in choices}):
            return None
        return Choices(
            bundle_sha256=str(document["bundle_sha256"]),
            hardware=str(document["hardware"]),
            measured_unix_ms=int(document["measured_unix_ms"]),
            choices=choices,
            measurements=measurements,
            complete=bool(document["complete"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_choices(folder: Path, choices: Choices) -> None:
    """Keep choices; raises OSError."""
    document = asdict(choices)
    document["measurements"] = [finite(entry) for entry in document["measurements"]]
    write_atomically(folder / CHOICE, json.dumps(document, sort_keys=True, allow_nan=False).encode())


def finite(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields with null for what JSON cannot say: infinity stands for what was not measured."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def _measurement(entry: dict[str, Any]) -> Measurement:
    def number(name: str) -> float:
        return math.inf if entry[name] is None else float(entry[name])

    return Measurement(
        variant=str(entry["variant"]),
        backend=str(entry["backend"]),
        correct=bool(entry["correct"]),
        median_us=number("median_us"),
        p99_us=number("p99_us"),
        worst=number("worst"),
        detail=str(entry["detail"]),
        rung=int(entry["rung"]),
        size=int(entry["size"]),
        load_us=number("load_us"),
        tried=bool(entry["tried"]),
    )
