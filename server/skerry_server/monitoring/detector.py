"""The statistics of drift detection on histograms. Pure functions of counts; decisions are in ``judge``.

Why not the classic rules. Under no drift the population stability index of two samples has the expectation
(B - 1)(1/n + 1/m): with 50 rows "PSI > 0.1" fires on 86 % of quiet windows, with 1,000 rows it misses a shift of 0.25
standard deviations. "p < 0.05" repeated over 50 looks fires in 90 % of quiet streams. Rows of different devices are
not one sample. So here: each device is compared with its own baseline, PSI is corrected for its bias, p-values are
corrected for their number (Benjamini-Hochberg), and looks over time are combined by an e-detector.

Counts are int64 or float64 [B], B cells of one feature between the release's fixed edges. n is the sum of the current
window, m that of the baseline.

>>> round(psi(np.array([50, 50]), np.array([30, 70])), 4)
0.1659
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Array = npt.NDArray[np.float64]

#: Cells that the tests use; finer ones spend power on noise.
TEST_CELLS = 10

#: Rows that the alternatives of the e-value trust the baseline for: large, middling and small shifts.
ALTERNATIVE_ROWS = (15.0, 50.0, 150.0)


@dataclass(frozen=True)
class Comparison:
    """One feature of one window beside its baseline.

    Attributes:
        n: Rows of the window.
        m: Rows of the baseline.
        cells: Cells after merging.
        psi: Population stability index, biased upwards.
        bias: What psi is expected to be without drift, (cells - 1)(1/n + 1/m) x dispersion.
        psi_corrected: psi - bias; without drift around 0, so it may be negative.
        statistic: Pearson's chi-square of homogeneity, divided by the dispersion; ``cells - 1`` degrees of freedom.
        trend: The chi-square of trend, which sees a shift sooner, divided by the dispersion; 0 for unordered cells.
        p: p-value of both together, twice the smaller one; 1 where both samples lie in one cell.
    """

    n: float
    m: float
    cells: int
    psi: float
    bias: float
    psi_corrected: float
    statistic: float
    trend: float
    p: float


def merge_cells(pooled: Array, *, cells: int = TEST_CELLS) -> npt.NDArray[np.intp]:
    """Where to cut adjacent cells into groups of about equal pooled mass.

    The cuts depend on the pooled counts (window + baseline) alone. Under homogeneity the split of each pooled count
    between the two samples does not depend on the pooled counts, so a test on the merged cells keeps its level.

    Args:
        pooled: float64 [B], sum of both samples.
        cells: Wanted groups, at least 1.

    Returns:
        Start index of each group, strictly increasing from 0, for ``numpy.add.reduceat``; at most ``cells`` groups,
        none of them empty (unless everything is).
    """
    total = float(pooled.sum())
    if total == 0:
        return np.zeros(1, dtype=np.intp)
    # The group of a cell follows from the middle of its mass, so that a heavy atom is a group of its own.
    middle = np.cumsum(pooled) - pooled / 2
    group = np.minimum((middle * cells / total).astype(np.intp), cells - 1)
    group = np.maximum.accumulate(np.where(pooled > 0, group, 0))
    first = int(np.flatnonzero(pooled > 0)[0])
    group[:first] = group[first]
    return np.flatnonzero(np.concatenate(([True], np.diff(group) > 0)))


def psi(baseline: npt.ArrayLike, current: npt.ArrayLike) -> float:
    """Population stability index sum((p - q) ln(p / q)) of two count vectors.

    Half a count is added to every cell, so that an empty one is finite at any sample size (a fixed floor such as
    1e-4 lets one empty cell of a small sample decide).
    """
    b = np.asarray(baseline, dtype=np.float64) + 0.5
    c = np.asarray(current, dtype=np.float64) + 0.5
    p = b / b.sum()
    q = c / c.sum()
    return float(((p - q) * np.log(p / q)).sum())


def psi_bias(cells: int, n: float, m: float, *, dispersion: float = 1.0) -> float:
    """Expectation of PSI without drift: (cells - 1)(1/n + 1/m), times the over-dispersion of the rows."""
    return (cells - 1) * (1 / n + 1 / m) * dispersion


def chi_square(baseline: Array, current: Array) -> tuple[float, int]:
    """Pearson's chi-square of homogeneity of two count vectors, and its degrees of freedom.

    Cells that are empty in both are left out. (Pearson 1911, "On the probability that two independent distributions
    of frequency are really samples from the same population".)
    """
    pooled = baseline + current
    used = pooled > 0
    b, c, total = baseline[used], current[used], pooled[used]
    m, n = float(b.sum()), float(c.sum())
    if m == 0 or n == 0 or total.size < 2:
        return 0.0, 0
    statistic = float(((math.sqrt(n / m) * b - math.sqrt(m / n) * c) ** 2 / total).sum())
    return statistic, int(total.size - 1)


def trend_square(baseline: Array, current: Array) -> float:
    """Chi-square of trend with one degree of freedom: did the mean normal score of the pooled ranks move?

    The two-sample van der Waerden test on grouped data. Like :func:`chi_square` it is conditional on the pooled
    counts. Against a shift of 0.25 standard deviations at n = 500, m = 1,000 it has a p-value of some 1e-5 where the
    test of all cells has 0.01; against other changes it may see nothing, hence both.
    """
    pooled = baseline + current
    total, m, n = float(pooled.sum()), float(baseline.sum()), float(current.sum())
    scores = stats.norm.ppf((np.cumsum(pooled) - pooled / 2 + 1e-9) / (total + 2e-9))
    center = float(scores @ pooled) / total
    variance = float((scores - center) ** 2 @ pooled) / total
    if variance <= 0:
        return 0.0
    difference = float(scores @ current) / n - float(scores @ baseline) / m
    return difference**2 / (variance * (1 / n + 1 / m))


def compare(baseline: Array, current: Array, *, dispersion: float = 1.0, ordered: bool = True) -> Comparison:
    """Compare a window with its baseline, one feature.

    Args:
        baseline: float64 [B].
        current: float64 [B].
        dispersion: At least 1; how many times the counts vary more than independent rows would (see
            :func:`dispersion`). Divides the statistics (quasi-likelihood: McCullagh & Nelder 1989, section 4.5).
        ordered: Whether the cells have an order, as intervals have and classes have not.

    Raises:
        ValueError: Shapes differ, or a sample is empty.
    """
    if baseline.shape != current.shape or baseline.ndim != 1:
        raise ValueError(f"baseline and current must be vectors of one length, got {baseline.shape}, {current.shape}")
    m, n = float(baseline.sum()), float(current.sum())
    if m <= 0 or n <= 0:
        raise ValueError(f"both samples need rows, got {m:.0f} and {n:.0f}")
    starts = merge_cells(baseline + current)
    b, c = np.add.reduceat(baseline, starts), np.add.reduceat(current, starts)
    value = psi(b, c)
    bias = psi_bias(b.size, n, m, dispersion=dispersion)
    statistic, freedom = chi_square(b, c)
    statistic /= dispersion
    p = float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0
    trend = 0.0
    if ordered and freedom:
        trend = trend_square(b, c) / dispersion
        p = min(1.0, 2 * min(p, float(stats.chi2.sf(trend, 1))))
    return Comparison(n, m, int(b.size), value, bias, value - bias, statistic, trend, p)


def dispersion(windows: Sequence[Sequence[Array]]) -> float:
    """Over-dispersion of a device's rows, from windows in which nothing is supposed to have changed.

    Successive requests of a device resemble each other (a person walks for minutes), so counts vary more from window
    to window than those of independent rows. The estimate is the chi-square of homogeneity per degree of freedom
    between neighbouring windows, averaged over features and pairs; at least 1, at most 10.

    Args:
        windows: At least one window: per feature a float64 [B].
    """
    statistic = 0.0
    freedom = 0
    for first, second in itertools.pairwise(windows):
        for b, c in zip(first, second, strict=True):
            starts = merge_cells(b + c)
            value, degrees = chi_square(np.add.reduceat(b, starts), np.add.reduceat(c, starts))
            statistic += value
            freedom += degrees
    if freedom == 0:
        return 1.0
    # The mean of chi-square / degrees has variance 2 / degrees: one standard error is not yet over-dispersion.
    return min(10.0, max(1.0, statistic / freedom - math.sqrt(2 / freedom)))


def benjamini_hochberg(p: npt.ArrayLike) -> Array:
    """Adjusted p-values ("q-values") of Benjamini & Hochberg 1995.

    Rejecting where the result is at most q keeps the expected share of false rejections at most q, for independent or
    positively dependent tests.

    Args:
        p: float64 [K], each 0 to 1.

    Returns:
        float64 [K] in the same order.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.size == 0:
        return values
    order = np.argsort(values)
    ranked = values[order] * values.size / np.arange(1, values.size + 1)
    adjusted = np.minimum.accumulate(ranked[::-1])[::-1]
    result = np.empty_like(values)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def normal_scores(reference: Array) -> Array:
    """Normal score of each cell: the standard normal quantile of the middle of its reference mass.

    Args:
        reference: float64 [B], the release's reference counts.

    Returns:
        float64 [B], between -3 and 3.
    """
    smoothed = reference + 0.5
    middle = (np.cumsum(smoothed) - smoothed / 2) / smoothed.sum()
    scores: Array = np.clip(stats.norm.ppf(middle), -3.0, 3.0)
    return scores


def score_change(scores: Array, baseline: Array, current: Array, *, cap: float = 1.0) -> float:
    """How far a device's mean normal score moved, in standard deviations of the reference.

    Clipped to ``cap`` on both sides: no device, however wild or hostile its report, moves a fleet by more.
    """
    change = float(scores @ current / current.sum() - scores @ baseline / baseline.sum())
    return max(-cap, min(cap, change))


def fleet_p_values(changes: Array) -> Array:
    """Two-sided p-value per feature that the devices moved together.

    One-sample t test over devices, each one number: devices differ, but each is compared with itself.

    Args:
        changes: float64 [D, F], see :func:`score_change`; D at least 2.

    Returns:
        float64 [F], not yet corrected for the number of features.

    Raises:
        ValueError: Fewer than two devices.
    """
    devices = changes.shape[0]
    if devices < 2:
        raise ValueError(f"a fleet needs at least 2 devices, got {devices}")
    mean = changes.mean(axis=0)
    error = changes.std(axis=0, ddof=1) / math.sqrt(devices)
    # All devices moved by exactly the same: no evidence of variation, so none against chance either.
    t = np.divide(mean, error, out=np.zeros_like(mean), where=error > 0)
    p: Array = 2 * stats.t.sf(np.abs(t), devices - 1)
    return p


def log_e_value(baseline: Array, current: Array, *, dispersion: float = 1.0) -> Array:
    """Natural logarithm of the evidence that ``current`` does not come from where ``baseline`` came from.

    A ratio of Dirichlet-multinomial likelihoods with the same mean, the smoothed baseline. All know that the baseline
    is a sample; the null trusts it for its m rows, the alternatives only for :data:`ALTERNATIVE_ROWS`, so that other
    distributions around it are likely: e = mean over r of DM(current; r mean) / DM(current; m mean). Under the null
    (cell probabilities drawn from the posterior of the baseline under Jeffreys' prior) its expectation is 1, so it is
    an e-value.

    Args:
        baseline: float64 [B].
        current: float64 [..., B], may be sums of several windows.
        dispersion: Both counts are divided by it.

    Returns:
        float64 [...].
    """
    b = baseline / dispersion + 0.5
    c = current / dispersion
    total = float(b.sum())
    alternatives = [_log_dirichlet_multinomial(c, min(rows / total, 0.5) * b) for rows in ALTERNATIVE_ROWS]
    evidence: Array = special.logsumexp(alternatives, axis=0) - math.log(len(ALTERNATIVE_ROWS))
    return evidence - _log_dirichlet_multinomial(c, b)


def e_detector(
    baseline: Sequence[Array], looks: Sequence[Sequence[Array]], *, starts: int = 21, dispersion: float = 1.0
) -> float:
    """Shiryaev-Roberts e-detector of one device at its newest look: natural logarithm.

    The sum, over the last ``starts`` looks at which a change may have begun, of the evidence since then; averaged over
    features, so that the number of features is paid for. Without change the expected number of looks until it
    exceeds A is at least A (Shin, Ramdas & Rinaldo 2023, "E-detectors: a nonparametric framework for sequential
    change detection"). Cells are merged by the baseline alone: nothing about the bet may depend on its outcome.

    Args:
        baseline: Per feature a float64 [B].
        looks: Newest last; per look and feature a float64 [B]. Older looks than ``starts`` are not used.
        starts: How far back a change may have begun.
        dispersion: See :func:`dispersion`.

    Returns:
        Minus infinity without looks.
    """
    recent = list(looks)[-starts:]
    if not recent:
        return -math.inf
    terms: list[Array] = []
    for feature, counts in enumerate(baseline):
        cuts = merge_cells(counts)
        b = np.add.reduceat(counts, cuts)
        newest_first = np.array([np.add.reduceat(look[feature], cuts) for look in reversed(recent)])
        terms.append(log_e_value(b, np.cumsum(newest_first, axis=0), dispersion=dispersion))
    return float(special.logsumexp(np.concatenate(terms))) - math.log(len(baseline))


def _log_dirichlet_multinomial(counts: Array, alpha: Array) -> Array:
    """Log-likelihood of sequences of draws with these counts (no multinomial coefficient: it cancels in ratios)."""
    total = float(alpha.sum())
    cells: Array = (special.gammaln(alpha + counts) - special.gammaln(alpha)).sum(axis=-1)
    whole: Array = special.gammaln(total + counts.sum(axis=-1)) - special.gammaln(total)
    return np.asarray(cells - whole)
