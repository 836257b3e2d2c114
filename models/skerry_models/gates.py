"""Which candidates may become releases. Pure: figures in, verdicts out.

A gate whose figure is missing fails: nothing is released unmeasured. Gates that compare with a champion, or that
judge a drifted cohort, exist only when there is something to compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GateLimits:
    """What is demanded.

    Attributes:
        int8_loss: Largest accuracy that any INT8 variant may lose against fp32, as a share (0.01 is one point).
        champion_tolerance: Largest accuracy that a candidate may lose against the champion on holdout.
        parity: Largest difference of the exported graph from torch, relative to the output.
        latency_p99_us: Longest p99 of the fastest INT8 variant, one row, one thread, microseconds.
        size_bytes: Largest infer.onnx.
        minimum_accuracy: Smallest accuracy on holdout that is worth releasing at all.
    """

    int8_loss: float = 0.01
    champion_tolerance: float = 0.03
    parity: float = 1e-4
    latency_p99_us: float = 10_000.0
    size_bytes: int = 64 << 20
    minimum_accuracy: float = 0.5


@dataclass(frozen=True)
class GateResult:
    """One verdict.

    Attributes:
        name: Which gate.
        passed: The verdict.
        value: What was measured; NaN when it was not.
        limit: What was demanded.
        detail: For people: the comparison, with names.
    """

    name: str
    passed: bool
    value: float
    limit: float
    detail: str


def evaluate_gates(
    metrics: Mapping[str, float], champion: Mapping[str, float] | None, limits: GateLimits | None = None
) -> list[GateResult]:
    """Judge a candidate.

    Args:
        metrics: Figures of the candidate by the names of :class:`~skerry_models.bundle.BundleReport`:
            accuracy, accuracy_int8_qdq, accuracy_int8_x86, parity, latency_int8_p99_us, size_fp32_bytes, and
            accuracy_drifted when a drifted cohort was evaluated.
        champion: The same figures of the champion on the same rows; None when there is no champion.
        limits: Default limits when None.

    Returns:
        One result per gate, always in the same order; the candidate passes when all do.
    """
    chosen = limits or GateLimits()
    accuracy = metrics.get("accuracy", math.nan)
    int8 = [metrics.get(name, math.nan) for name in ("accuracy_int8_qdq", "accuracy_int8_x86")]
    worst_int8 = math.nan if any(math.isnan(value) for value in int8) else min(int8)
    results = [
        _at_least("minimum-accuracy", accuracy, chosen.minimum_accuracy, "accuracy on holdout"),
        _at_least("int8-accuracy", worst_int8, accuracy - chosen.int8_loss, "worst INT8 accuracy against fp32"),
        _at_most("parity", metrics.get("parity", math.nan), chosen.parity, "difference from torch"),
        _at_most(
            "latency", metrics.get("latency_int8_p99_us", math.nan), chosen.latency_p99_us, "INT8 p99 in microseconds"
        ),
        _at_most("size", metrics.get("size_fp32_bytes", math.nan), chosen.size_bytes, "bytes of infer.onnx"),
    ]
    if champion is not None:
        floor = champion.get("accuracy", math.nan) - chosen.champion_tolerance
        results.append(_at_least("champion", accuracy, floor, "accuracy on holdout against the champion"))
        if "accuracy_drifted" in metrics or "accuracy_drifted" in champion:
            results.append(
                _above(
                    "drifted-cohort",
                    metrics.get("accuracy_drifted", math.nan),
                    champion.get("accuracy_drifted", math.nan),
                    "accuracy on the drifted cohort against the champion",
                )
            )
    return results


# Comparisons with NaN are false: a figure that is missing on either side fails its gate. Sums of shares are compared
# with a slack far below one row, so that "exactly the limit" passes in floating point.
_SLACK = 1e-9


def _at_least(name: str, value: float, limit: float, what: str) -> GateResult:
    return GateResult(name, value >= limit - _SLACK, value, limit, f"{what}: {value:.4g}, at least {limit:.4g}")


def _at_most(name: str, value: float, limit: float, what: str) -> GateResult:
    return GateResult(name, value <= limit + _SLACK, value, limit, f"{what}: {value:.4g}, at most {limit:.4g}")


def _above(name: str, value: float, limit: float, what: str) -> GateResult:
    return GateResult(name, value > limit, value, limit, f"{what}: {value:.4g}, above {limit:.4g}")
