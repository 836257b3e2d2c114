"""The proof of a staged release: it loads on this device and reproduces its golden outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skerry_agent.engine.backend import Backend
from skerry_agent.engine.backends import BACKENDS
from skerry_agent.engine.chooser import BUDGET_SECONDS
from skerry_agent.engine.loader import keep_choices, measure_release
from skerry_agent.update.slots import SlotContent


@dataclass(frozen=True)
class Proof:
    """What the proof found.

    Attributes:
        variant: Variant to serve.
        backend: Backend to serve it on.
        latency_us: Median latency of one row.
        rungs: Variant of every rung that can be served here, the release's own network first.
        results: One dictionary per candidate: the fields of ``choice.Measurement``.
    """

    variant: str
    backend: str
    latency_us: float
    rungs: list[str]
    results: list[dict[str, Any]]


def prove(
    slot: SlotContent,
    *,
    device_class: str,
    backends: Mapping[str, Backend] | None = None,
    budget_s: float = BUDGET_SECONDS,
) -> Proof:
    """Check every variant that may run here against its golden outputs, measure, and keep the choices in the slot.

    Args:
        slot: A slot with a verified manifest.
        device_class: Class of this device.
        backends: :data:`~skerry_agent.engine.backends.BACKENDS` by default.
        budget_s: How long measuring may take (s).

    Raises:
        ArtifactError: The release cannot be used on this device.
    """
    choices = measure_release(
        slot, backends=BACKENDS if backends is None else backends, device_class=device_class, budget_s=budget_s
    )
    keep_choices(slot, choices)
    chosen = choices.choices[0]
    return Proof(
        chosen.variant,
        chosen.backend,
        chosen.latency_us,
        [choice.variant for choice in choices.choices],
        [asdict(m) for m in choices.measurements],
    )
