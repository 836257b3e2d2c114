"""The job that makes a drift report: baseline and newest windows of the affected devices as an HTML document.

Idempotent: it reads rows, and stores one blob by its digest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_server.errors import ConflictError, NotFoundError
from skerry_server.incidents.service import get_incident
from skerry_server.jobs.kinds import JobContext
from skerry_server.monitoring import evidently_report, history
from skerry_server.monitoring.baselines import Baseline
from skerry_server.monitoring.detector import Array
from skerry_server.monitoring.edges import EdgeCache, ReleaseEdges
from skerry_server.monitoring.judge import DriftSettings
from skerry_server.monitoring.report_rows import rebuild_column
from skerry_server.monitoring.windows import WindowCounts, limit_weight, read_window
from skerry_server.store.tables import Device, DriftWindow, Release

#: Devices that one report sums up.
DEVICES = 200
#: Newest windows of a device that are "now".
NEWEST_WINDOWS = 3


def run(job: JobContext) -> dict[str, object]:
    """Make the report.

    Payload: {"incident_id"} or {"device_id"}. Result: {"html_sha256", "devices", "rows": {"baseline", "current"}}.

    Raises:
        NotFoundError: The incident, device or release is gone.
        ConflictError: There are no windows to compare.
    """
    context = job.context
    with context.database.transaction() as session:
        release, device_ids = _subject(session, job.payload)
    edges = EdgeCache(context.artifacts).get(release.bundle_sha256)
    job.progress(step="reading windows")
    baseline: list[WindowCounts] = []
    current: list[WindowCounts] = []
    devices = 0
    with context.database.transaction() as session:
        for device_id in device_ids[:DEVICES]:
            usual, newest = _windows(session, device_id, release, edges)
            if usual and newest:
                baseline += usual
                current += newest
                devices += 1
    if not devices:
        raise ConflictError(f"no device has both a baseline and newer windows under release {release.id}")
    rows = {"baseline": sum(each.counted for each in baseline), "current": sum(each.counted for each in current)}
    notice = (
        f"Rebuilt from histograms of {devices} devices under release {release.id}: {rows['baseline']} rows as "
        f"baseline, {rows['current']} rows of the newest windows. Rows never leave a device; these were made from "
        "counts between fixed edges, feature by feature. Skerry's verdicts are not read from this report."
    )
    job.progress(step="rendering")
    before, now = _table(edges, baseline), _table(edges, current)
    both = [name for name in before if name in now]
    document = evidently_report.render(
        {name: before[name] for name in both},
        {name: now[name] for name in both},
        notice=notice,
        path=job.folder / "report.html",
    )
    return {"html_sha256": context.artifacts.put_bytes(document), "devices": devices, "rows": rows}


def _subject(session: Session, payload: dict[str, object]) -> tuple[Release, list[str]]:
    if "incident_id" in payload:
        incident = get_incident(session, str(payload["incident_id"]))
        release_id, device_ids = incident.release_id, list(incident.device_ids)
    else:
        device = session.get(Device, str(payload.get("device_id", "")))
        if device is None:
            raise NotFoundError("device", str(payload.get("device_id", "")))
        release_id, device_ids = device.active_release, [device.id]
    release = session.get(Release, release_id)
    if release is None:
        raise NotFoundError("release", release_id)
    return release, device_ids


def _windows(
    session: Session, device_id: str, release: Release, edges: ReleaseEdges
) -> tuple[list[WindowCounts], list[WindowCounts]]:
    """Baseline windows and newest windows after it."""
    newest_row = session.scalar(
        sa.select(DriftWindow)
        .where(
            DriftWindow.device_id == device_id,
            DriftWindow.release_id == release.id,
            DriftWindow.edges_sha256 == edges.sha256,
        )
        .order_by(DriftWindow.id.desc())
        .limit(1)
    )
    if newest_row is None:
        return [], []
    try:
        current = read_window(newest_row.body, edges.message)
    except WireError:
        return [], []
    past = history.device_history(session, newest_row, current, edges, DriftSettings())
    baseline: Baseline = past.baseline
    if not baseline.complete or baseline.last_id >= newest_row.id:
        return [], []
    before = [look.counts for look in past.looks][-(NEWEST_WINDOWS - 1) :]
    return [counts for _, counts in baseline.windows], [*before, current]


def _table(edges: ReleaseEdges, windows: Sequence[WindowCounts]) -> dict[str, Array]:
    """Rebuilt columns; no window weighs more than ``windows.LARGEST_LOOK`` rows. Features without counts are left
    out."""
    table: dict[str, Array] = {}
    for index, feature in enumerate(edges.message.features):
        counts = np.sum([limit_weight(window.features[index]) for window in windows], axis=0)
        if counts.sum() > 0:
            table[feature.name] = rebuild_column(list(feature.edges), counts)
    return table
