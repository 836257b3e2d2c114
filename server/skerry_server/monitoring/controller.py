"""Judges drift windows in the order of their arrival and opens incidents.

One transaction per window: its verdict, the incident that follows and the audit entry are written together, so a
controller that is killed anywhere judges each window exactly once. What a verdict depends on are rows alone.
Statuses of a verdict: ``unusable`` (the report does not fit the edges of its release), ``data_quality``,
``baseline`` (part of what the device is compared with), ``insufficient_data`` (never "ok"), ``ok``, ``suspect``
(this look is flagged), ``drift``.
"""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_server.context import ServerContext
from skerry_server.errors import SkerryError
from skerry_server.incidents import service as incidents
from skerry_server.monitoring import history, judge
from skerry_server.monitoring.edges import EdgeCache, ReleaseEdges
from skerry_server.monitoring.history import DeviceHistory
from skerry_server.monitoring.judge import DriftSettings, Evidence
from skerry_server.monitoring.windows import WindowCounts, add_windows, read_window
from skerry_server.store.tables import Device, DriftWindow, Release

_LOG = logging.getLogger(__name__)
_ACTOR = "drift-controller"
#: Windows that one step judges at most.
WINDOWS_PER_STEP = 200
#: Features that the evidence of an incident names.
_NAMED_FEATURES = 8


class DriftController:
    """Reconciler of the drift windows; the rule is in ``judge``."""

    name = "drift"
    period_s = 1.0

    def __init__(self, context: ServerContext, *, settings: DriftSettings = DriftSettings()) -> None:  # noqa: B008 - frozen
        """Judge what ``context``'s store holds by ``settings``."""
        self._database = context.database
        self._edges = EdgeCache(context.artifacts)
        self._settings = settings

    def step(self) -> None:
        """Judge up to :data:`WINDOWS_PER_STEP` windows."""
        edges, reasons = self._load_edges()
        known = [*edges, *reasons]
        with self._database.reading() as session:
            batch = list(
                session.scalars(
                    sa.select(DriftWindow.id)
                    .where(~DriftWindow.judged, DriftWindow.release_id.in_(known))
                    .order_by(DriftWindow.id)
                    .limit(WINDOWS_PER_STEP)
                )
            )
        for window_id in batch:
            with self._database.transaction() as session:
                window = session.get_one(DriftWindow, window_id)
                if not window.judged:
                    self._judge(session, window, edges.get(window.release_id), reasons.get(window.release_id, ""))

    def _load_edges(self) -> tuple[dict[str, ReleaseEdges], dict[str, str]]:
        """Edges of the releases with windows to judge, and why others have none.

        A release whose bundle cannot be read now is in neither: its windows wait, the others go on.
        """
        edges: dict[str, ReleaseEdges] = {}
        reasons: dict[str, str] = {}
        with self._database.reading() as session:
            waiting = sa.select(DriftWindow.release_id).where(~DriftWindow.judged).distinct()
            bundles = {name: session.get(Release, name) for name in session.scalars(waiting)}
        for release_id, release in bundles.items():
            if release is None:
                reasons[release_id] = f"there is no release {release_id!r}"
                continue
            try:
                edges[release_id] = self._edges.get(release.bundle_sha256)
            except WireError as error:
                reasons[release_id] = f"the release has no usable edges: {error}"
            except SkerryError as error:
                _LOG.warning("drift windows of release %s wait: %s", release_id, error)
        return edges, reasons

    def _judge(self, session: Session, window: DriftWindow, edges: ReleaseEdges | None, reason: str) -> None:
        if edges is not None and window.edges_sha256 != edges.sha256:
            reason = f"edges: expected those of the release ({edges.sha256}), got {window.edges_sha256}"
        current: WindowCounts | None = None
        if edges is not None and not reason:
            try:
                current = read_window(window.body, edges.message)
            except WireError as error:
                reason = str(error)
        if edges is None or current is None:
            window.verdict, window.judged = {"status": "unusable", "n": 0, "features": {}, "detail": reason}, True
            _LOG.warning("drift window %d of device %s is unusable: %s", window.id, window.device_id, reason)
            return
        window.verdict = self._verdict(session, window, current, edges)
        window.judged = True
        self._raise_incident(session, window)

    def _verdict(
        self, session: Session, window: DriftWindow, current: WindowCounts, edges: ReleaseEdges
    ) -> dict[str, Any]:
        past = history.device_history(session, window, current, edges, self._settings)
        usual = add_windows([counts for _, counts in past.baseline.windows]) if self._compares(past, window) else None
        faults = judge.quality_faults(current, self._settings, usual=usual)
        if faults:
            worst = ", ".join(f"{kind} {fault['rate']:.1%}" for kind, fault in faults.items())
            return _plain("data_quality", current.counted, f"data-quality fault: {worst}", quality=faults)
        if usual is None:
            have, need = past.baseline.rows, self._settings.baseline_rows
            windows = len(past.baseline.windows)
            return _plain("baseline", current.counted, f"baseline has {have} of {need} rows in {windows} windows")
        together = [*past.waiting, current]
        look = add_windows(together)
        if look.counted < self._settings.minimum_rows:
            detail = f"{look.counted} of {self._settings.minimum_rows} rows; the next windows are added"
            return _plain("insufficient_data", look.counted, detail)
        return judge.judge(
            Evidence(
                names=edges.names,
                scores=edges.scores,
                baseline=[counts for _, counts in past.baseline.windows],
                look=look,
                windows=len(together),
                started_ms=past.started_ms,
                earlier=past.looks,
                prediction_baseline=past.prediction_baseline,
                peers=history.peer_looks(session, window),
            ),
            self._settings,
        )

    def _compares(self, past: DeviceHistory, window: DriftWindow) -> bool:
        return past.baseline.complete and past.baseline.last_id < window.id

    def _raise_incident(self, session: Session, window: DriftWindow) -> None:
        verdict = window.verdict
        status = verdict["status"]
        if status not in ("drift", "data_quality"):
            return
        device = session.get(Device, window.device_id)
        if device is not None and device.active_release not in ("", window.release_id):
            return  # a late report of a release that the device has left
        release = session.get_one(Release, window.release_id)
        if status == "drift":
            changed = sorted(
                ((entry["psi_corrected"], name) for name, entry in verdict["features"].items()), reverse=True
            )[:_NAMED_FEATURES]
            incidents.report_evidence(
                session,
                kind="drift",
                task=release.task,
                release_id=release.id,
                device_id=window.device_id,
                severity=verdict["severity"],
                detail=f"{window.device_id}: {verdict['detail']}",
                evidence={
                    "window": window.id,
                    "since_ms": min(verdict["since_ms"], window.received_ms),
                    "n": verdict["n"],
                    "m": verdict["m"],
                    "psi_corrected": {name: value for value, name in changed},
                    "e_detector": verdict["e_detector"],
                },
                actor=_ACTOR,
            )
            return
        before = history.recent_statuses(session, window, count=self._settings.voters - 1)
        if 1 + before.count("data_quality") >= self._settings.votes:
            incidents.report_evidence(
                session,
                kind="data-quality",
                task=release.task,
                release_id=release.id,
                device_id=window.device_id,
                severity="act",
                detail=f"{window.device_id}: {verdict['detail']}",
                evidence={"window": window.id, "n": verdict["n"], "quality": verdict["quality"]},
                actor=_ACTOR,
            )


def _plain(status: str, n: int, detail: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "n": n, "severity": "none", "flagged": False, "features": {}, "detail": detail, **more}
