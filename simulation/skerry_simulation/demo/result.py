"""What the demo found, in the form of ``--json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Moment:
    """A line of the timeline: seconds since the start, and what happened."""

    at_s: float
    phase: str
    text: str


@dataclass
class DemoResult:
    """Filled in phase by phase. Accuracies are fractions; latencies microseconds; sizes bytes."""

    task: str
    devices: int
    accuracy: dict[str, float] = field(default_factory=dict)
    inference: dict[str, float] = field(default_factory=dict)
    campaign: dict[str, float] = field(default_factory=dict)
    artifact: dict[str, int] = field(default_factory=dict)
    drift: dict[str, int] = field(default_factory=dict)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    processes: list[dict[str, Any]] = field(default_factory=list)
    uplinks: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    bundles: str = ""
    report: str = ""
    seconds: float = 0.0
    timeline: list[Moment] = field(default_factory=list)
    # For the report's plots, not part of the JSON.
    rounds: list[dict[str, Any]] = field(default_factory=list)
    latencies_us: list[float] = field(default_factory=list)
    heat: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        whole = asdict(self)
        for name in ("latencies_us", "heat", "rounds"):
            whole.pop(name)
        return whole
