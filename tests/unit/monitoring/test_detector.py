"""Hand-computed numbers first, then simulations with fixed seeds: level under no drift, power under drift."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy import stats

from skerry_server.monitoring import detector
from skerry_server.monitoring.detector import Array

EDGES = stats.norm.ppf(np.linspace(0, 1, 31)[1:-1])


def histogram(values: Array) -> Array:
    return np.bincount(np.searchsorted(EDGES, values), minlength=30).astype(float)


def test_psi_by_hand() -> None:
    # With half a count: p = (50.5, 50.5) / 101, q = (30.5, 70.5) / 101.
    q = 30.5 / 101
    expected = (0.5 - q) * math.log(0.5 / q) + (0.5 - (1 - q)) * math.log(0.5 / (1 - q))
    assert detector.psi([50, 50], [30, 70]) == pytest.approx(expected)
    assert detector.psi([50, 50], [30, 70]) == pytest.approx(0.16592, abs=1e-5)
    assert detector.psi([7, 3], [7, 3]) == 0
    assert detector.psi([1, 3], [3, 1]) == detector.psi([3, 1], [1, 3])
    assert detector.psi_bias(10, 50, 50) == pytest.approx(9 * 2 / 50)
    assert detector.psi_bias(10, 200, 400, dispersion=2) == pytest.approx(2 * 9 * 3 / 400)


def test_chi_square_by_hand() -> None:
    # Equal sizes: sum (b - c)^2 / (b + c) = 400 / 80 + 400 / 120.
    statistic, freedom = detector.chi_square(np.array([50.0, 50.0]), np.array([30.0, 70.0]))
    assert statistic == pytest.approx(25 / 3)
    assert freedom == 1
    # Sizes 100 and 50: (sqrt(1/2) 60 - sqrt(2) 20)^2 / 80 + (sqrt(1/2) 40 - sqrt(2) 30)^2 / 70 = 200/80 + 200/70.
    statistic, freedom = detector.chi_square(np.array([60.0, 40.0]), np.array([20.0, 30.0]))
    assert statistic == pytest.approx(5.357142857)
    assert freedom == 1
    # A cell that is empty in both is no cell.
    assert detector.chi_square(np.array([60.0, 0, 40.0]), np.array([20.0, 0, 30.0]))[1] == 1
    assert detector.chi_square(np.array([60.0, 0.0]), np.array([20.0, 0.0])) == (0.0, 0)


def test_chi_square_is_scipys() -> None:
    rng = np.random.default_rng(1)
    b, c = rng.integers(1, 50, 8).astype(float), rng.integers(1, 50, 8).astype(float)
    expected = stats.chi2_contingency(np.stack([b, c]), correction=False)
    statistic, freedom = detector.chi_square(b, c)
    assert statistic == pytest.approx(expected.statistic)
    assert freedom == expected.dof


def test_trend_by_hand() -> None:
    # With two cells any scores give the chi-square itself.
    assert detector.trend_square(np.array([50.0, 50.0]), np.array([30.0, 70.0])) == pytest.approx(25 / 3)
    assert detector.trend_square(np.array([60.0, 40.0]), np.array([20.0, 30.0])) == pytest.approx(5.357142857)
    # Symmetric spreading moves no mean: the trend is blind to it, the chi-square is not.
    narrow, wide = np.array([10.0, 80.0, 10.0]), np.array([30.0, 40.0, 30.0])
    assert detector.trend_square(narrow, wide) == pytest.approx(0, abs=1e-12)
    # 2 x (20^2 / 40) + 40^2 / 120 with two degrees of freedom.
    assert detector.chi_square(narrow, wide)[0] == pytest.approx(100 / 3)


def test_both_tests_are_paid_for() -> None:
    result = detector.compare(np.array([50.0, 50.0]), np.array([30.0, 70.0]))
    assert result.p == pytest.approx(2 * stats.chi2.sf(25 / 3, 1))
    unordered = detector.compare(np.array([50.0, 50.0]), np.array([30.0, 70.0]), ordered=False)
    assert unordered.trend == 0
    assert unordered.p == pytest.approx(stats.chi2.sf(25 / 3, 1))


def test_benjamini_hochberg_by_hand() -> None:
    # Sorted .005 .01 .03 .04, times 4/1 4/2 4/3 4/4 = .02 .02 .04 .04, already monotone.
    assert detector.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    # .02 x 3/1 = .06 is more than .03 x 3/2 = .045, which is more than .04 x 3/3: the smallest from the right counts.
    assert detector.benjamini_hochberg([0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.04, 0.04])
    assert detector.benjamini_hochberg([0.9]) == pytest.approx([0.9])
    assert detector.benjamini_hochberg([]).size == 0


@given(st_numpy.arrays(float, st.integers(1, 40), elements=st.floats(0, 1)))
def test_benjamini_hochberg_rejects_what_the_step_up_rule_rejects(p: Array) -> None:
    for q in (0.01, 0.05, 0.2):
        ranked = np.sort(p)
        below = np.flatnonzero(ranked <= q * np.arange(1, p.size + 1) / p.size)
        rejected = p <= ranked[below[-1]] if below.size else np.zeros(p.size, dtype=bool)
        close = np.isclose(detector.benjamini_hochberg(p), q)
        assert ((detector.benjamini_hochberg(p) <= q) == rejected)[~close].all()


@example(np.array([0.0, 90, 5, 5]), 10)
@given(st_numpy.arrays(float, st.integers(1, 60), elements=st.integers(0, 1000).map(float)), st.integers(1, 12))
def test_merged_cells_are_few_ordered_and_never_empty(pooled: Array, cells: int) -> None:
    starts = detector.merge_cells(pooled, cells=cells)
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert starts.size <= cells
    merged = np.add.reduceat(pooled, starts)
    assert merged.sum() == pooled.sum()
    assert (merged > 0).all() or pooled.sum() == 0


def test_merged_cells_by_hand() -> None:
    assert detector.merge_cells(np.array([10.0, 10, 10, 10]), cells=2).tolist() == [0, 2]
    assert detector.merge_cells(np.array([0.0, 90, 5, 5]), cells=10).tolist() == [0, 2]
    assert detector.merge_cells(np.array([100.0, 0, 0]), cells=10).tolist() == [0]


def test_dispersion_by_hand() -> None:
    # chi-square of (50, 50) against (30, 70) is 25/3 with one degree of freedom, less one standard error sqrt(2).
    windows = [[np.array([50.0, 50.0])], [np.array([30.0, 70.0])]]
    assert detector.dispersion(windows) == pytest.approx(25 / 3 - math.sqrt(2))
    assert detector.dispersion([windows[0], windows[0]]) == 1.0
    assert detector.dispersion(windows[:1]) == 1.0
    assert detector.dispersion([[np.array([5000.0, 0.0])], [np.array([0.0, 5000.0])]]) == 10.0


def test_e_value_by_hand() -> None:
    # Null (1/2, 1/2): .5 x 1.5 / (1 x 2) = .375. Alternative, precision 1/2: .25 x 1.25 / (.5 x 1.5) = .41667.
    none = np.zeros(2)
    assert detector.log_e_value(none, np.array([2.0, 0.0])) == pytest.approx(math.log((0.3125 / 0.75) / 0.375))
    # With dispersion 2 the same counts weigh half.
    assert detector.log_e_value(none, np.array([4.0, 0.0]), dispersion=2) == pytest.approx(
        detector.log_e_value(none, np.array([2.0, 0.0]))
    )


@pytest.mark.parametrize("baseline", [(0, 0, 0), (3, 1, 0), (2, 2, 9)])
def test_e_value_has_expectation_one_under_the_null(baseline: tuple[int, ...]) -> None:
    b = np.array(baseline, dtype=float)
    alpha = b + 0.5
    expectation = 0.0
    for sequence in itertools.product(range(3), repeat=5):
        counts = np.zeros(3)
        probability = 1.0
        for cell in sequence:
            probability *= (alpha[cell] + counts[cell]) / (alpha.sum() + counts.sum())
            counts[cell] += 1
        expectation += probability * math.exp(detector.log_e_value(b, counts))
    assert expectation == pytest.approx(1.0)


def test_e_detector_by_hand() -> None:
    # Baseline (1, 1): null (1.5, 1.5), alternative (.75, .75).
    # Since the newest look (2, 0): (.75 x 1.75 / (1.5 x 2.5)) / (1.5 x 2.5 / (3 x 4)) = .35 / .3125 = 1.12.
    # Since the one before (4, 0): .229167 / .1640625 = 1.396825. Shiryaev-Roberts sums them.
    look = [np.array([2.0, 0.0])]
    value = detector.e_detector([np.array([1.0, 1.0])], [look, look])
    assert math.exp(value) == pytest.approx(1.12 + 1.3968254)
    assert math.exp(detector.e_detector([np.array([1.0, 1.0])], [look, look], starts=1)) == pytest.approx(1.12)
    # A second feature without news (evidence 1 per start with no counts) is averaged in.
    quiet = [np.array([2.0, 0.0]), np.array([0.0, 0.0])]
    both = detector.e_detector([np.array([1.0, 1.0])] * 2, [quiet, quiet])
    assert math.exp(both) == pytest.approx((1.12 + 1.3968254 + 2) / 2)
    assert detector.e_detector([np.array([1.0, 1.0])], []) == -math.inf


def test_normal_scores_and_changes_by_hand() -> None:
    scores = detector.normal_scores(np.array([99.5, 99.5]))
    assert scores == pytest.approx(stats.norm.ppf([0.25, 0.75]))
    # From half and half to a quarter and three quarters: the mean moves by a quarter of the distance.
    change = detector.score_change(scores, np.array([50.0, 50.0]), np.array([25.0, 75.0]))
    assert change == pytest.approx(0.25 * (scores[1] - scores[0]))
    assert detector.score_change(np.array([-3.0, 3.0]), np.array([1.0, 0]), np.array([0, 1.0])) == 1.0
    assert detector.score_change(np.array([-3.0, 3.0]), np.array([0, 1.0]), np.array([1.0, 0]), cap=0.5) == -0.5


def test_fleet_p_values_are_the_one_sample_t_test() -> None:
    changes = np.random.default_rng(2).normal(0.1, 1, (25, 4))
    assert detector.fleet_p_values(changes) == pytest.approx(stats.ttest_1samp(changes, 0).pvalue)
    assert detector.fleet_p_values(np.zeros((5, 2))) == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="at least 2"):
        detector.fleet_p_values(np.zeros((1, 2)))


def test_one_device_cannot_move_a_fleet() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        changes = rng.normal(0, 0.05, (30, 1))
        changes[0] = 1.0  # the cap: the most that a lying device gets
        assert detector.fleet_p_values(changes)[0] > 0.001


def test_compare_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="one length"):
        detector.compare(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="both samples need rows"):
        detector.compare(np.ones(3), np.zeros(3))
    same = detector.compare(np.array([0, 200.0, 0]), np.array([0, 300.0, 0]))
    assert (same.p, same.psi_corrected, same.cells) == (1.0, 0.0, 1)


@pytest.mark.parametrize(("m", "n"), [(400, 200), (1_000, 500)])
def test_level_of_the_test_and_bias_of_psi_without_drift(m: int, n: int) -> None:
    rng = np.random.default_rng(4)
    results = [detector.compare(histogram(rng.normal(0, 1, m)), histogram(rng.normal(0, 1, n))) for _ in range(1_000)]
    p = np.array([result.p for result in results])
    assert 0.03 < (p < 0.05).mean() < 0.07
    assert (p < 0.005).mean() < 0.012
    assert abs(np.mean([result.psi_corrected for result in results])) < 0.004
    # The classic rule on the same data.
    classic = np.mean([result.psi > 0.1 for result in results])
    assert classic > 0.05 if n == 200 else classic < 0.01


@pytest.mark.parametrize(
    ("shift", "n", "m", "least"), [(0.5, 200, 400, 0.9), (0.5, 500, 1_000, 0.99), (0.25, 500, 1_000, 0.55)]
)
def test_power_of_the_local_rule(shift: float, n: int, m: int, least: float) -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        result = detector.compare(histogram(rng.normal(0, 1, m)), histogram(rng.normal(shift, 1, n)))
        hits += result.p < 0.005 and result.psi_corrected > 0.05
    assert hits / 200 >= least


def test_corrected_psi_estimates_the_population_value() -> None:
    rng = np.random.default_rng(6)
    values = [
        detector.compare(histogram(rng.normal(0, 1, 1_000)), histogram(rng.normal(0.5, 1, 300))).psi_corrected
        for _ in range(300)
    ]
    assert np.mean(values) == pytest.approx(0.235, abs=0.015)


def test_resembling_rows_do_not_alarm_once_their_dispersion_is_known() -> None:
    """Rows in runs of four: the plain test is far off its level, the quasi-likelihood one is not."""
    rng = np.random.default_rng(7)

    def window(rows: int) -> list[Array]:
        return [histogram(np.repeat(rng.normal(0, 1, rows // 4), 4)) for _ in range(8)]

    plain = corrected = 0
    for _ in range(60):
        first, second, current = window(400), window(400), window(400)
        spread = detector.dispersion([first, second])
        for b1, b2, c in zip(first, second, current, strict=True):
            plain += detector.compare(b1 + b2, c).p < 0.01
            corrected += detector.compare(b1 + b2, c, dispersion=spread).p < 0.01
    assert plain / 480 > 0.3
    assert corrected / 480 < 0.04


def test_e_detector_is_silent_without_drift_and_quick_with_it() -> None:
    rng = np.random.default_rng(8)
    threshold = math.log(1_000)

    def first_crossing(shift: float, looks: int) -> int | None:
        baseline = [histogram(rng.normal(0, 1, 1_000)) for _ in range(3)]
        seen: list[list[Array]] = []
        for number in range(1, looks + 1):
            seen.append([histogram(rng.normal(shift if feature == 0 else 0, 1, 300)) for feature in range(3)])
            if detector.e_detector(baseline, seen) > threshold:
                return number
        return None

    assert [first_crossing(0.0, 30) for _ in range(30)] == [None] * 30
    large = [first_crossing(0.5, 10) for _ in range(20)]
    assert max(delay or 99 for delay in large) <= 2
    small = sorted(first_crossing(0.25, 30) or 99 for _ in range(20))
    assert small[10] <= 8
