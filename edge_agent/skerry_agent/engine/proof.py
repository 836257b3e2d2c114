"""The proof of a staged release: it loads on this device and reproduces its golden outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skerry_agent.engine.backend import Backend
from skerry_agent.engine.backends import BACKENDS
from skerry_agent.engine.loader import keep_choice, measure_release
from skerry_agent.update.slots import SlotContent


@dataclass(frozen=True)
class Proof:
    """What the proof found.

    Attributes:
        variant: Variant to serve.
        backend: Backend to serve it on.
        latency_us: Median latency of one row.
        results: One dictionary per candidate: the fields of ``chooser.Measurement``.
    """

    variant: str
    backend: str
    latency_us: float
    results: list[dict[str, Any]]


def prove(slot: SlotContent, *, device_class: str, backends: Mapping[str, Backend] | None = None) -> Proof:
    """Check every variant that may run here against its golden outputs, measure, and keep the choice in the slot.

    Args:
        slot: A slot with a verified manifest.
        device_class: Class of this device.
        backends: :data:`~skerry_agent.engine.backends.BACKENDS` by default.

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    choice, measurements = measure_release(
        slot, backends=BACKENDS if backends is None else backends, device_class=device_class
    )
    keep_choice(slot, choice)
    return Proof(choice.variant, choice.backend, choice.latency_us, [asdict(m) for m in measurements])
