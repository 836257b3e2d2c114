"""What an engine says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from skerry_agent.engine.active import ActiveRelease
from skerry_agent.engine.counters import CounterValues
from skerry_agent.engine.personal import PersonalStatus
from skerry_agent.policy.sensors import SensorReading


@dataclass(frozen=True)
class EngineStatus:
    """What the engine does now.

    Attributes:
        release_id: Release that answers; empty if none does.
        slot: Its slot; empty if none.
        variant: Variant that answers; empty if none.
        backend: Backend that runs it; empty if none.
        detail: Why another slot than the pointer's answers, or none; empty if all is as it should be.
        counters: Requests and latencies.
        personal: Whether the device's own parameters answer.
        rung: Number of the network of the ladder that answers; 0 is the release's own.
        ladder_reason: Why a smaller one answers; empty while the release's own does.
        deadline_us: How long an answer may take; infinity if there is no deadline.
        in_flight: Requests that are computed or wait.
        sensors: Heat and power, as the ladder saw them last.
    """

    release_id: str
    slot: str
    variant: str
    backend: str
    detail: str
    counters: CounterValues
    personal: PersonalStatus = field(default_factory=PersonalStatus)
    rung: int = 0
    ladder_reason: str = ""
    deadline_us: float = float("inf")
    in_flight: int = 0
    sensors: SensorReading = field(default_factory=SensorReading)


def status_of(
    active: ActiveRelease,
    detail: str,
    counters: CounterValues,
    personal: PersonalStatus,
    sensors: SensorReading,
    *,
    in_flight: int,
) -> EngineStatus:
    """The status while a release answers."""
    rung = active.rung
    return EngineStatus(
        release_id=rung.model.spec.release_id,
        slot=active.release.slot,
        variant=rung.model.variant,
        backend=rung.model.backend,
        detail=detail,
        counters=counters,
        personal=personal,
        rung=rung.number,
        ladder_reason=active.ladder_reason,
        deadline_us=active.deadline_us,
        in_flight=in_flight,
        sensors=sensors,
    )
