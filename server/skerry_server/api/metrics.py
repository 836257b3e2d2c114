"""What Prometheus scrapes, in its text format 0.0.4. Pure but for the reads of :func:`collect`.

Gauges come from the store, so every replica tells the same; request counters are this process's own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.api.queries import state_counts
from skerry_server.store.tables import Campaign, Candidate, Device, DriftWindow, Incident, Job, Release, Rollout, Uplink

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = {
    "jobs": Job.state,
    "candidates": Candidate.state,
    "releases": Release.state,
    "rollouts": Rollout.state,
    "campaigns": Campaign.state,
    "incidents": Incident.state,
}


#: Names and values of a sample's labels, sorted by name.
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Metric:
    """One metric family.

    Attributes:
        name: Its full name.
        kind: gauge or counter.
        help: One sentence.
        samples: Labels to value; the labels as sorted pairs.
    """

    name: str
    kind: str
    help: str
    samples: Mapping[Labels, float] = field(default_factory=dict)


class RequestCounter:
    """Counts answered requests by method, route template and status; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def count(self, method: str, route: str, status: int) -> None:
        """Count one; ``route`` is the template, never a path, so that the number of series is bounded."""
        with self._lock:
            self._counts[method, route, status] += 1

    def metric(self) -> Metric:
        """What was counted since the process started."""
        with self._lock:
            counts = dict(self._counts)
        samples: dict[Labels, float] = {
            (("method", method), ("route", route), ("status", str(status))): float(value)
            for (method, route, status), value in sorted(counts.items())
        }
        return Metric("skerry_http_requests_total", "counter", "Answered HTTP requests of this process.", samples)


def collect(session: Session) -> list[Metric]:
    """The gauges of the store."""
    online = sa.func.coalesce(sa.func.sum(sa.cast(Device.online, sa.Integer)), 0)
    total, connected = session.execute(
        sa.select(sa.func.count(), online).where(Device.revoked.is_(False)).select_from(Device)
    ).one()
    metrics = [
        Metric(
            "skerry_devices",
            "gauge",
            "Devices that are not revoked, by presence.",
            {(("presence", "online"),): float(connected), (("presence", "offline"),): float(total - connected)},
        )
    ]
    by_status = state_counts(session, Device.update_status)
    metrics.append(
        Metric("skerry_device_updates", "gauge", "Devices by update status.", _labelled("status", by_status))
    )
    for noun, column in _STATES.items():
        samples = _labelled("state", state_counts(session, column))
        metrics.append(Metric(f"skerry_{noun}", "gauge", f"Rows of {noun} by state.", samples))
    uplinks = _labelled("kind", state_counts(session, Uplink.kind))
    metrics.append(Metric("skerry_uplinks_total", "counter", "Messages of devices in the store, by kind.", uplinks))
    unjudged = session.scalar(sa.select(sa.func.count()).where(DriftWindow.judged.is_(False)).select_from(DriftWindow))
    metrics.append(
        Metric(
            "skerry_drift_windows_unjudged",
            "gauge",
            "Drift windows that wait for the detector.",
            {(): float(unjudged or 0)},
        )
    )
    return metrics


def render(metrics: Iterable[Metric]) -> str:
    """The text format."""
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.samples.items():
            inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{metric.name}{{{inner}}} {value:g}" if inner else f"{metric.name} {value:g}")
    return "\n".join(lines) + "\n"


def _labelled(name: str, counts: Mapping[str, int]) -> dict[Labels, float]:
    return {((name, text),): float(count) for text, count in sorted(counts.items())}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
