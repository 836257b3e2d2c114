"""The drift rule: what a look at a device means. Pure; the statistics are in ``detector``.

A *look* is a window of a device with enough rows, or several small ones in a row taken together. It is *flagged* if

* local: a feature (or the predictions) has q <= 0.05 after Benjamini-Hochberg over every feature of the newest look
  of every device under that release, and a bias-corrected PSI above 0.05; or
* fleet: over at least 20 devices a feature's mean normal score moved, p < 0.001 after the same correction, by at
  least 0.05 standard deviations, and this device moved along.

A device has *drifted* if

* the same feature is flagged in 2 of its last 3 looks, this one included, and these looks taken together differ from
  the baseline with p < 0.001 over the number of features. Looks share a baseline, so one with bad luck flags them all:
  the common test knows how small the baseline is, the votes do not. (Where the fleet moved, the fleet is the proof.)
* or its e-detector crosses 1000 x the number of devices that are watched, so that a large fleet is not alarmed more
  often than a small one.

A look with missing values, values out of range or refused requests beyond the limits is a *data-quality* fault: its
counts are not evidence of drift, and no model is ever trained because of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skerry_server.monitoring import detector
from skerry_server.monitoring.detector import Array, Comparison
from skerry_server.monitoring.windows import WindowCounts, limit_weight

#: Severities in order; the number is the smallest bias-corrected PSI.
SEVERITIES: tuple[tuple[str, float], ...] = (("info", 0.02), ("warn", 0.05), ("act", 0.10), ("critical", 0.25))
#: Every severity from none upwards.
SEVERITY_ORDER = ("none", *(name for name, _ in SEVERITIES))
#: Statuses of a verdict that close a look: counts up to there do not go into the next one.
CLOSING = frozenset({"ok", "suspect", "drift", "data_quality"})
#: Name of the prediction histogram in a family of tests.
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class DriftSettings:
    """Limits of the rule.

    Attributes:
        minimum_rows: Rows of a look below which nothing is said.
        baseline_rows: Rows of a baseline.
        baseline_windows: Windows of a baseline.
        false_discovery_rate: q of the local rule.
        minimum_psi: Bias-corrected PSI of the local rule.
        votes: Flagged looks among the last ``voters`` that make a drift.
        voters: Looks that vote.
        confirm_p: p-value, over the number of tests, that the voting looks taken together must have.
        fleet_devices: Devices below which the fleet rule says nothing.
        fleet_p: Adjusted p-value of the fleet rule.
        fleet_change: Smallest mean change of the fleet rule (standard deviations).
        e_threshold: Threshold of the e-detector, per device.
        e_starts: Looks at which a change may have begun.
        missing_rate: Fraction of rows with missing values, over the device's usual one, that is a fault.
        out_of_range_rate: The same for values out of range.
        schema_error_rate: The same for refused requests.
        fault_events: Events below which a rate is not judged.
        classic_psi: Threshold of the classic PSI rule; shown, never acted on.
    """

    minimum_rows: int = 200
    baseline_rows: int = 400
    baseline_windows: int = 2
    false_discovery_rate: float = 0.05
    minimum_psi: float = 0.05
    votes: int = 2
    voters: int = 3
    confirm_p: float = 0.001
    fleet_devices: int = 20
    fleet_p: float = 0.001
    fleet_change: float = 0.05
    e_threshold: float = 1000.0
    e_starts: int = 21
    missing_rate: float = 0.01
    out_of_range_rate: float = 0.05
    schema_error_rate: float = 0.01
    fault_events: int = 5
    classic_psi: float = 0.1


@dataclass(frozen=True)
class PeerLook:
    """The newest look of another device under the same release.

    Attributes:
        p: p-value by feature name.
        change: Change of the mean normal score by feature name.
    """

    p: Mapping[str, float]
    change: Mapping[str, float]


@dataclass(frozen=True)
class EarlierLook:
    """A look of the same device that was judged before.

    Attributes:
        counts: Its counts.
        flagged: Names of the tests that were flagged.
        same_release: Whether the same release answered, so that its predictions can be compared.
        started_ms: When its first window began, by the device's clock.
    """

    counts: WindowCounts
    flagged: frozenset[str] = frozenset()
    same_release: bool = True
    started_ms: int = 0


@dataclass(frozen=True)
class Evidence:
    """Everything that a look is judged by.

    Attributes:
        names: Feature names, in the order of the counts.
        scores: Per feature the normal score of each cell, float64 [cells].
        baseline: Windows of the device's baseline, complete.
        look: Counts of the look.
        windows: How many windows it sums.
        started_ms: When the first of them began, by the device's clock.
        earlier: Earlier looks since the baseline, oldest first.
        prediction_baseline: float64 [classes] under this release, or None while there is none.
        peers: Newest look of the other devices by device id.
    """

    names: Sequence[str]
    scores: Sequence[Array]
    baseline: Sequence[WindowCounts]
    look: WindowCounts
    windows: int = 1
    started_ms: int = 0
    earlier: Sequence[EarlierLook] = ()
    prediction_baseline: Array | None = None
    peers: Mapping[str, PeerLook] = field(default_factory=dict)


def severity_of(psi_corrected: float) -> str:
    """The severity of a bias-corrected PSI: none, info, warn, act or critical."""
    reached = [name for name, least in SEVERITIES if psi_corrected >= least]
    return reached[-1] if reached else "none"


def worst(severities: Sequence[str]) -> str:
    """The worst of them; "none" for nothing."""
    return max(severities, key=SEVERITY_ORDER.index, default="none")


def quality_faults(
    look: WindowCounts, settings: DriftSettings, *, usual: WindowCounts | None = None
) -> dict[str, dict[str, float]]:
    """Data-quality faults of a look.

    Args:
        look: Its counts; the rows may be 0.
        settings: Limits.
        usual: The device's baseline, whose rates are allowed for.

    Returns:
        Kind ("missing", "out_of_range", "schema_errors") to {"events", "rate", "usual", "limit"}; empty if sound.
    """
    faults: dict[str, dict[str, float]] = {}
    for kind, limit in (
        ("missing", settings.missing_rate),
        ("out_of_range", settings.out_of_range_rate),
        ("schema_errors", settings.schema_error_rate),
    ):
        events, rate = _rate(look, kind)
        expected = _rate(usual, kind)[1] if usual is not None else 0.0
        if events >= settings.fault_events and rate - expected > limit:
            faults[kind] = {"events": events, "rate": rate, "usual": expected, "limit": limit}
    return faults


def judge(evidence: Evidence, settings: DriftSettings) -> dict[str, Any]:
    """The verdict on a look with enough rows and no data-quality fault.

    Returns:
        A JSON document: ``status`` (ok, suspect, drift), ``n``, ``m``, ``windows``, ``since_ms`` (start of the first
        flagged look of those that vote), ``severity``, ``flagged``, ``confirmed``, ``features`` and ``predictions``
        ({"psi", "bias", "psi_corrected", "p", "q", "severity", "flagged", "rule", ...}), ``e_detector``, ``fleet``,
        ``dispersion``, ``detail``.
    """
    spread = detector.dispersion([window.features for window in evidence.baseline])
    baseline = [limit_weight(np.sum(counts, axis=0)) for counts in zip(*_features(evidence.baseline), strict=True)]
    current = [limit_weight(counts) for counts in evidence.look.features]
    results = {
        name: detector.compare(b, c, dispersion=spread)
        for name, b, c in zip(evidence.names, baseline, current, strict=True)
    }
    changes = {
        name: detector.score_change(scores, b, c)
        for name, scores, b, c in zip(evidence.names, evidence.scores, baseline, current, strict=True)
    }
    if evidence.prediction_baseline is not None and evidence.look.predictions.sum() > 0:
        results[PREDICTIONS] = detector.compare(
            limit_weight(evidence.prediction_baseline),
            limit_weight(evidence.look.predictions),
            dispersion=spread,
            ordered=False,
        )
    adjusted = _adjusted(results, evidence.peers)
    fleet = _fleet(changes, evidence.peers, settings)
    described = {
        name: _describe(result, adjusted[name], name in fleet["moved"], settings) for name, result in results.items()
    }
    for name, change in changes.items():
        described[name]["change"] = change
    level = detector.e_detector(
        baseline,
        [*_features([look.counts for look in evidence.earlier]), current],
        starts=settings.e_starts,
        dispersion=spread,
    )
    threshold = math.log(settings.e_threshold) + math.log(1 + len(evidence.peers))
    crossed = level >= threshold
    flagged_names = [name for name, entry in described.items() if entry["flagged"]]
    flagged = bool(flagged_names)
    voted = [name for name in flagged_names if _votes(name, evidence, settings) >= settings.votes]
    confirmed = [
        name
        for name in voted
        if name in fleet["moved"] or _together(name, evidence, settings, spread) * len(results) < settings.confirm_p
    ]
    drifted = crossed or bool(confirmed)
    voters = _voters(evidence, settings)
    severity = worst([described[name]["severity"] for name in flagged_names])
    if crossed or fleet["moved"]:
        severity = worst([severity, "warn"])
    predictions = described.pop(PREDICTIONS, None)
    return {
        "status": "drift" if drifted else "suspect" if flagged else "ok",
        "n": evidence.look.counted,
        "m": int(sum(window.counted for window in evidence.baseline)),
        "windows": evidence.windows,
        "since_ms": min([evidence.started_ms, *(look.started_ms for look in voters if look.flagged)]),
        "severity": severity,
        "flagged": flagged,
        "confirmed": confirmed,
        "features": described,
        **({PREDICTIONS: predictions} if predictions is not None else {}),
        "e_detector": {"log": level, "threshold": threshold, "crossed": crossed},
        "fleet": fleet,
        "dispersion": spread,
        "detail": _detail(flagged_names, confirmed, crossed=crossed),
    }


def _features(windows: Sequence[WindowCounts]) -> list[tuple[Array, ...]]:
    return [window.features for window in windows]


def _rate(counts: WindowCounts, kind: str) -> tuple[int, float]:
    events = int(getattr(counts, kind))
    total = counts.rows + (events if kind == "schema_errors" else 0)
    return events, events / total if total else 0.0


def _adjusted(results: Mapping[str, Comparison], peers: Mapping[str, PeerLook]) -> dict[str, float]:
    """q-value of each test of this look within the family of the newest looks of all devices."""
    family = [result.p for result in results.values()]
    for peer in peers.values():
        family.extend(peer.p.values())
    return dict(zip(results, detector.benjamini_hochberg(family)[: len(results)].tolist(), strict=True))


def _fleet(changes: Mapping[str, float], peers: Mapping[str, PeerLook], settings: DriftSettings) -> dict[str, Any]:
    names = list(changes)
    table = [list(changes.values())]
    table += [[peer.change[name] for name in names] for peer in peers.values() if peer.change.keys() >= set(names)]
    if len(table) < max(2, settings.fleet_devices):
        return {"devices": len(table), "p": {}, "moved": []}
    matrix = np.array(table)
    adjusted = detector.benjamini_hochberg(detector.fleet_p_values(matrix))
    mean = matrix.mean(axis=0)
    moved = [
        name
        for index, name in enumerate(names)
        if adjusted[index] < settings.fleet_p
        and abs(mean[index]) >= settings.fleet_change
        and changes[name] * mean[index] > 0
        and abs(changes[name]) >= abs(mean[index]) / 2
    ]
    return {"devices": len(table), "p": dict(zip(names, adjusted.tolist(), strict=True)), "moved": moved}


def _describe(result: Comparison, q: float, moved_with_fleet: bool, settings: DriftSettings) -> dict[str, Any]:
    local = q <= settings.false_discovery_rate and result.psi_corrected > settings.minimum_psi
    return {
        "psi": result.psi,
        "bias": result.bias,
        "psi_corrected": result.psi_corrected,
        "p": result.p,
        "q": q,
        "severity": severity_of(result.psi_corrected),
        "flagged": local or moved_with_fleet,
        "rule": "local" if local else "fleet" if moved_with_fleet else "",
        "classic_psi": result.psi > settings.classic_psi,
    }


def _votes(name: str, evidence: Evidence, settings: DriftSettings) -> int:
    """Looks among the last ``voters`` in which a test was flagged; the one that is judged is flagged."""
    return 1 + sum(name in look.flagged for look in _voters(evidence, settings))


def _voters(evidence: Evidence, settings: DriftSettings) -> Sequence[EarlierLook]:
    return evidence.earlier[-(settings.voters - 1) :] if settings.voters > 1 else ()


def _together(name: str, evidence: Evidence, settings: DriftSettings, spread: float) -> float:
    """p-value of the voting looks, taken together, against the baseline."""
    voters = _voters(evidence, settings)
    if name == PREDICTIONS and evidence.prediction_baseline is not None:
        windows = [evidence.look, *(look.counts for look in voters if look.same_release)]
        baseline = evidence.prediction_baseline
        current = np.sum([window.predictions for window in windows], axis=0)
    else:
        index = list(evidence.names).index(name)
        windows = [evidence.look, *(look.counts for look in voters)]
        baseline = np.sum([window.features[index] for window in evidence.baseline], axis=0)
        current = np.sum([window.features[index] for window in windows], axis=0)
    ordered = name != PREDICTIONS
    return detector.compare(limit_weight(baseline), limit_weight(current), dispersion=spread, ordered=ordered).p


def _detail(flagged: Sequence[str], confirmed: Sequence[str], *, crossed: bool) -> str:
    parts = []
    if flagged:
        state = "drifted" if confirmed else "changed in this look"
        names = confirmed or flagged
        parts.append(", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") + f" {state}")
    if crossed:
        parts.append("the e-detector crossed its threshold")
    return "; ".join(parts)
