"""What the store knows about a device's windows, as the values that ``baselines`` and ``judge`` work on. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_server.monitoring import judge
from skerry_server.monitoring.baselines import Baseline, ReleaseFacts, collect_baseline, lineage
from skerry_server.monitoring.detector import Array
from skerry_server.monitoring.edges import ReleaseEdges
from skerry_server.monitoring.judge import CLOSING, DriftSettings, EarlierLook, PeerLook
from skerry_server.monitoring.windows import WindowCounts, add_windows, read_window
from skerry_server.store.tables import Candidate, DriftWindow, Release

#: Windows at the start of a lineage among which the baseline is looked for.
BASELINE_WINDOWS = 256
#: Newest windows of a device that are read for its earlier looks.
RECENT_WINDOWS = 128
#: Devices whose newest looks are compared at once.
PEERS = 5_000
#: Statuses whose counts are not used again.
_VOID = frozenset({"unusable", "data_quality"})


@dataclass(frozen=True)
class DeviceHistory:
    """A device's windows up to the one that is judged.

    Attributes:
        baseline: Of the features, over the lineage of the release.
        prediction_baseline: float64 [classes] under the release alone; None until there is enough.
        looks: Closed looks since the baseline, oldest first.
        waiting: Windows since the last closed look that were too small to judge, oldest first.
        started_ms: When the look began that the judged window closes.
    """

    baseline: Baseline
    prediction_baseline: Array | None
    looks: Sequence[EarlierLook]
    waiting: Sequence[WindowCounts]
    started_ms: int


def release_facts(session: Session, release_id: str) -> ReleaseFacts | None:
    """What the lineage needs of a release; None if there is no such release."""
    release = session.get(Release, release_id)
    if release is None:
        return None
    candidate = session.get(Candidate, release.candidate_id)
    return ReleaseFacts(
        release_id=release.id,
        parent=release.parent_release,
        edges_sha256=release.edges_sha256,
        from_incident=candidate is not None and bool(candidate.incident_id),
    )


def device_history(
    session: Session, window: DriftWindow, current: WindowCounts, edges: ReleaseEdges, settings: DriftSettings
) -> DeviceHistory:
    """Collect what ``window`` is judged by; ``window`` itself counts as sound and not yet judged.

    Args:
        session: In a transaction.
        window: The row that is judged.
        current: Its counts.
        edges: Edges of its release.
        settings: Sizes of a baseline.
    """
    releases = lineage(window.release_id, lambda release_id: release_facts(session, release_id))
    mine = sa.select(DriftWindow).where(
        DriftWindow.device_id == window.device_id,
        DriftWindow.release_id.in_(releases),
        DriftWindow.edges_sha256 == window.edges_sha256,
        DriftWindow.id <= window.id,
    )
    first = _sound(session.scalars(mine.order_by(DriftWindow.id).limit(BASELINE_WINDOWS)), window, current, edges)
    baseline = _baseline(first, settings)
    own = mine.where(DriftWindow.release_id == window.release_id).order_by(DriftWindow.id).limit(BASELINE_WINDOWS)
    own_baseline = _baseline(_sound(session.scalars(own), window, current, edges), settings)
    predictions: Array | None = None
    if own_baseline.complete and own_baseline.last_id < window.id:
        counted = np.sum([counts.predictions for _, counts in own_baseline.windows], axis=0)
        # A device that answers with its own parameters counts no predictions: they are not the release's.
        predictions = counted if counted.sum() >= settings.minimum_rows else None
    later = mine.where(DriftWindow.id > baseline.last_id, DriftWindow.id < window.id)
    recent = list(session.scalars(later.order_by(DriftWindow.id.desc()).limit(RECENT_WINDOWS)))[::-1]
    looks: list[EarlierLook] = []
    waiting: list[WindowCounts] = []
    started_ms = 0
    for row in recent if baseline.complete else ():
        status = row.verdict.get("status", "")
        if status not in _VOID:
            started_ms = started_ms if waiting else row.started_ms
            waiting.append(read_window(row.body, edges.message))
        if status in CLOSING:
            if waiting and status not in _VOID:
                same_release = row.release_id == window.release_id
                looks.append(EarlierLook(add_windows(waiting), flagged_names(row.verdict), same_release, started_ms))
            waiting = []
    return DeviceHistory(baseline, predictions, looks, waiting, started_ms if waiting else window.started_ms)


def peer_looks(session: Session, window: DriftWindow) -> dict[str, PeerLook]:
    """Newest judged look of every other device under the same release and edges."""
    newest = (
        sa.select(sa.func.max(DriftWindow.id))
        .where(
            DriftWindow.release_id == window.release_id,
            DriftWindow.edges_sha256 == window.edges_sha256,
            DriftWindow.device_id != window.device_id,
            DriftWindow.judged,
        )
        .group_by(DriftWindow.device_id)
        .order_by(sa.func.max(DriftWindow.id).desc())
        .limit(PEERS)
    )
    peers: dict[str, PeerLook] = {}
    for device_id, verdict in session.execute(
        sa.select(DriftWindow.device_id, DriftWindow.verdict).where(DriftWindow.id.in_(newest))
    ):
        features = verdict.get("features", {})
        if not features:
            continue
        p = {name: float(entry["p"]) for name, entry in features.items()}
        if judge.PREDICTIONS in verdict:
            p[judge.PREDICTIONS] = float(verdict[judge.PREDICTIONS]["p"])
        peers[device_id] = PeerLook(p, {name: float(entry["change"]) for name, entry in features.items()})
    return peers


def flagged_names(verdict: Mapping[str, Any]) -> frozenset[str]:
    """Names of the tests that a verdict flagged."""
    names = {name for name, entry in verdict.get("features", {}).items() if entry["flagged"]}
    if verdict.get(judge.PREDICTIONS, {}).get("flagged"):
        names.add(judge.PREDICTIONS)
    return frozenset(names)


def recent_statuses(session: Session, window: DriftWindow, *, count: int) -> list[str]:
    """Statuses of the ``count`` windows of the same device and release before this one, newest first."""
    rows = session.scalars(
        sa.select(DriftWindow.verdict)
        .where(
            DriftWindow.device_id == window.device_id,
            DriftWindow.release_id == window.release_id,
            DriftWindow.id < window.id,
            DriftWindow.judged,
        )
        .order_by(DriftWindow.id.desc())
        .limit(count)
    )
    return [str(verdict.get("status", "")) for verdict in rows]


def _baseline(windows: Sequence[tuple[int, WindowCounts]], settings: DriftSettings) -> Baseline:
    return collect_baseline(windows, minimum_rows=settings.baseline_rows, minimum_windows=settings.baseline_windows)


def _sound(
    rows: sa.ScalarResult[DriftWindow], window: DriftWindow, current: WindowCounts, edges: ReleaseEdges
) -> list[tuple[int, WindowCounts]]:
    found: list[tuple[int, WindowCounts]] = []
    for row in rows:
        if row.id == window.id:
            found.append((row.id, current))
        elif row.verdict.get("status", "") not in _VOID:
            try:
                found.append((row.id, read_window(row.body, edges.message)))
            except WireError:
                continue  # not judged yet: it will be called unusable when its turn comes
    return found
