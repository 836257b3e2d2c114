"""Figures of a round, from its journalled updates and from how it was collected. Pure: no I/O."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from skerry_server.federation.rounds import personal_comparison
from skerry_server.federation.rounds.budget import BYTES_DOWN, BYTES_UP, ENERGY, energy_wh
from skerry_server.federation.rounds.journal import JournalledUpdate
from skerry_server.federation.rounds.round_loop import Collected
from skerry_server.federation.rounds.updates import SITE_DEVICES


def size(fields: Mapping[str, object]) -> int:
    """Bytes of the byte strings of a message."""
    return sum(len(value) for value in fields.values() if isinstance(value, bytes))


def devices(updates: Sequence[JournalledUpdate]) -> int:
    """Devices behind the updates: a secure sum is of many."""
    return sum(int(update.metrics.get("devices", 1)) for update in updates)


def mean_loss(updates: Sequence[JournalledUpdate]) -> float:
    """Mean training loss by examples."""
    examples = sum(update.examples for update in updates)
    return sum(update.metrics["loss"] * update.examples for update in updates) / examples


def mean_accuracy(updates: Sequence[JournalledUpdate]) -> float | None:
    """Mean over devices of the accuracy of the model before the round; None when no device measured.

    A gateway's figure is that of its devices.
    """
    measured = [update.metrics for update in updates if update.metrics.get("validation_examples", 0) > 0]
    total = sum(metrics["validation_accuracy"] * metrics.get(SITE_DEVICES, 1.0) for metrics in measured)
    return total / sum(metrics.get(SITE_DEVICES, 1.0) for metrics in measured) if measured else None


def of_round(
    updates: Sequence[JournalledUpdate],
    collected: Collected,
    *,
    phases: Mapping[str, float],
    sent_bytes: Mapping[str, int],
    wasted_bytes: int,
) -> dict[str, float]:
    """All figures but those of the model itself.

    Args:
        updates: That counted.
        collected: How the collecting went.
        phases: Phase to seconds.
        sent_bytes: Device to bytes that it was sent.
        wasted_bytes: Of answers that were rejected.
    """
    count = devices(updates)
    up = sum(update.metrics.get("bytes_up", 0.0) for update in updates)
    before_resumption = {update.device_id: update.metrics.get("bytes_down", 0.0) for update in updates}
    down = float(sum({**before_resumption, **sent_bytes}.values()))
    seconds = [update.metrics["seconds"] for update in updates]
    spent = sum(update.metrics["seconds"] * update.metrics.get(SITE_DEVICES, 1.0) for update in updates)
    metrics = {
        "examples": float(sum(update.examples for update in updates)),
        "failed_devices": float(len(collected.failures)),
        "dropped_replies": float(collected.dropped),
        "rejected_replies": float(sum("rejected" in reason for reason in collected.failures.values())),
        "collecting_seconds": collected.seconds,
        "device_seconds": max(seconds, default=0.0),
        BYTES_UP: up + wasted_bytes,
        BYTES_DOWN: down,
        "bytes_up_per_device": up / count,
        "bytes_down_per_device": down / max(1, count, len(sent_bytes)),
        ENERGY: energy_wh(spent, up + down + wasted_bytes),
    }
    metrics.update({f"{phase}_seconds": took for phase, took in phases.items() if phase in ("configure", "aggregate")})
    before = mean_accuracy(updates)
    if before is not None:
        metrics["device_accuracy_before"] = before
    norms = [update.metrics["norm"] for update in updates if "norm" in update.metrics]
    if norms:
        metrics["update_norm"] = statistics.median(norms)
    metrics.update(personal_comparison.of_updates(updates))
    ages = [update.metrics["staleness"] for update in updates if "staleness" in update.metrics]
    if any(ages):
        metrics["staleness"] = statistics.fmean(ages)
    return metrics
