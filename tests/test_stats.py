"""Interquartile mean, bootstrap and scores against hand-made cases and scipy."""

import numpy as np
import pytest
import scipy.stats

from flowrl.study.stats import (
    above,
    bootstrap_interval,
    comparison_interval,
    difference,
    equivalence,
    improvement,
    iqm,
    normalised_score,
    on_common_grid,
    plateau_gain,
    ratio,
)


def test_iqm_drops_a_quarter_at_either_end():
    assert iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(3.5)  # 2, 3, 4, 5
    assert iqm(np.array([100.0, 1, 2, 3, -100])) == pytest.approx(2)  # five seeds: one at either end
    assert iqm(np.array([1.0, 2, 6])) == pytest.approx(3)  # three seeds: the mean


def test_iqm_along_axis():
    values = np.arange(40.0).reshape(8, 5)
    assert iqm(values).shape == (5,)
    np.testing.assert_allclose(iqm(values), values.mean(0))
    np.testing.assert_allclose(iqm(values, axis=1), values[:, 1:4].mean(1))


@pytest.mark.parametrize("axis", [0, 1])
def test_iqm_is_scipys_also_where_values_are_missing(axis):
    values = np.random.default_rng(0).normal(size=(8, 9))
    values[3, 4] = values[5, 6] = np.nan
    found = iqm(values, axis)
    assert np.isnan(found).sum() == 2
    np.testing.assert_array_equal(found, scipy.stats.trim_mean(values, 0.25, axis=axis))


def test_bootstrap_equals_scipys_on_one_task():
    values = np.random.default_rng(0).normal(size=12)
    ours = bootstrap_interval(values[:, None], np.random.default_rng(1), resamples=4000)
    theirs = scipy.stats.bootstrap(
        (values,), iqm, n_resamples=4000, method="percentile", vectorized=True, axis=0, rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose(ours, [theirs.low, theirs.high], atol=1e-12)


def test_bootstrap_is_stratified():
    """Tasks far apart, seeds alike: drawing tasks too would give an interval as wide as the tasks are apart."""
    values = np.array([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]])
    np.testing.assert_allclose(bootstrap_interval(values, np.random.default_rng(0), np.mean), [50, 50])


def test_bootstrap_of_the_mean_of_two_seeds():
    """Two seeds 0 and 1: resampled means are 0, ½, 1 with chances ¼, ½, ¼: 95 % reach from 0 to 1, 40 % stay at ½."""
    values = np.array([[0.0], [1.0]])
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(bootstrap_interval(values, rng, np.mean), [0, 1])
    np.testing.assert_allclose(bootstrap_interval(values, rng, np.mean, level=0.4), [0.5, 0.5])


def test_bootstrap_covers_the_mean():
    """95 % intervals of 20 normal draws cover the true mean in 90 to 98 % of 300 trials (percentile: a little low)."""
    rng = np.random.default_rng(0)
    intervals = np.array(
        [bootstrap_interval(rng.normal(size=(20, 1)), rng, np.mean, resamples=500) for _ in range(300)]
    )
    covered = ((intervals[:, 0] < 0) & (intervals[:, 1] > 0)).mean()
    assert 0.9 <= covered <= 0.98


def test_bootstrap_of_curves_keeps_seeds_whole():
    """Two seeds whose curves cross: at every point the interval is the seeds' own range; the generator decides all."""
    values = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])[:, None]
    low, high = bootstrap_interval(values, np.random.default_rng(0))
    np.testing.assert_allclose(low, [0, 1, 0])
    np.testing.assert_allclose(high, [2, 1, 2])
    noise = np.random.default_rng(5).normal(size=(5, 1, 40))
    again = [bootstrap_interval(noise, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_bootstrap_wants_seeds_and_tasks():
    with pytest.raises(ValueError, match=r"\(4,\)"):
        bootstrap_interval(np.zeros(4), np.random.default_rng(0))


X = np.round(np.random.default_rng(2).normal(0.93, 0.03, size=(5, 4)), 2)  # rounded: there are ties
Y = np.round(np.random.default_rng(3).normal(0.92, 0.02, size=(7, 4)), 2)


def test_difference_and_ratio():
    assert difference(X, Y) == pytest.approx(np.mean([a.mean() - b.mean() for a, b in zip(X.T, Y.T, strict=True)]))
    assert ratio(X, Y) == pytest.approx(np.mean([a.mean() / b.mean() for a, b in zip(X.T, Y.T, strict=True)]))
    np.testing.assert_allclose(difference(np.stack([X, X + 1]), Y), [difference(X, Y), difference(X, Y) + 1])


def test_improvement_is_mann_and_whitneys_u_averaged_over_tasks():
    tasks = [scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(X.T, Y.T, strict=True)]
    assert any((a[:, None] == b).any() for a, b in zip(X.T, Y.T, strict=True))
    assert improvement(X, Y) == pytest.approx(np.mean(tasks))
    assert improvement(X, Y) + improvement(Y, X) == pytest.approx(1)
    np.testing.assert_allclose(improvement(np.stack([X, Y[:5]]), Y)[0], np.mean(tasks))
    assert improvement(X + 1, Y) == 1
    assert improvement(X, X[:1] * 0 + X) == improvement(X, X) == 0.5


@pytest.mark.parametrize("statistic", [difference, improvement, ratio])
def test_bootstrap_of_a_comparison_equals_scipys_on_one_task(statistic):
    x, y = X[:, 0], Y[:, 0]
    ours = comparison_interval(x[:, None], y[:, None], np.random.default_rng(1), statistic, resamples=4000)
    theirs = scipy.stats.bootstrap(
        (x, y), lambda a, b, axis: statistic(a[..., None], b[..., None]), n_resamples=4000, method="percentile",
        vectorized=True, axis=-1, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(ours, [theirs.low, theirs.high], atol=1e-12)


def test_bootstrap_of_a_comparison_is_stratified():
    """Tasks far apart, seeds alike: the difference is certain."""
    x, y = np.array([[1.0, 101.0]] * 3), np.array([[0.0, 100.0]] * 2)
    np.testing.assert_allclose(comparison_interval(x, y, np.random.default_rng(0), difference), [1, 1])


def test_performance_profile_is_one_less_the_distribution_function():
    thresholds = np.linspace(0.85, 1, 31)
    distribution = scipy.stats.ecdf(X.ravel())
    np.testing.assert_allclose(above(X, thresholds).mean((0, 1)), distribution.sf.evaluate(thresholds))
    low, high = bootstrap_interval(above(X, thresholds), np.random.default_rng(0), np.mean)
    assert ((low <= above(X, thresholds).mean((0, 1))) & (above(X, thresholds).mean((0, 1)) <= high)).all()
    assert (high - low).max() > 0.1


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.1])
def test_equivalence_is_two_welch_tests(margin):
    x, y = X[:, 0], Y[:, 0]
    found = equivalence(x[:, None], y[:, None], margin)
    sides = [
        scipy.stats.ttest_ind(x + margin, y, equal_var=False, alternative="greater").pvalue,
        scipy.stats.ttest_ind(x - margin, y, equal_var=False, alternative="less").pvalue,
    ]
    interval = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    assert found.p == pytest.approx(max(sides))
    np.testing.assert_allclose(found[:2], interval)
    assert (found.p < 0.05) == (max(map(abs, found[:2])) < margin)


def test_equivalence_over_tasks_is_that_of_their_mean():
    """Equal seeds and equal spread in every task: the variance of a mean over M tasks is an Mth, freedom M times."""
    x, y = np.repeat(X[:, :1], 4, 1) + np.arange(4), np.repeat(Y[:5, :1], 4, 1) + np.arange(4)
    alone, together = equivalence(x[:, :1], y[:, :1], 0.06), equivalence(x, y, 0.06)
    test = scipy.stats.ttest_ind(x[:, 0], y[:, 0], equal_var=False)
    error = (alone.high - alone.low) / 2 / scipy.stats.t.ppf(0.95, test.df)
    assert together.high - together.low == pytest.approx(2 * scipy.stats.t.ppf(0.95, 4 * test.df) * error / 2)
    assert together.p < alone.p


def test_equivalence_at_the_margin_is_found_in_one_of_twenty():
    """Means exactly the margin apart, three seeds of four tasks: called equal in 5 % of 2,000 trials (z < 3)."""
    rng = np.random.default_rng(0)
    found = [equivalence(rng.normal(9, 1, (3, 4)), rng.normal(0, 2, (3, 4)), 9).p < 0.05 for _ in range(2000)]
    assert abs(np.mean(found) - 0.05) < 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_equivalence_needs_two_seeds_and_knows_certainty():
    with pytest.raises(ValueError, match="two seeds of each; there are 1 and 7"):
        equivalence(X[:1], Y, 0.02)
    assert equivalence(np.full((2, 1), 0.91), np.full((3, 1), 0.9), 0.02).p == 0
    assert equivalence(np.full((2, 1), 0.95), np.full((3, 1), 0.9), 0.02).p == 1


def test_common_grid():
    curves = [([0, 10, 20, 30], [0, 1, 2, 3]), ([0, 10, 20], [5, 6, 7])]
    grid, values = on_common_grid(curves)
    np.testing.assert_array_equal(grid, [0, 10, 20])
    np.testing.assert_array_equal(values, [[0, 1, 2], [5, 6, 7]])
    grid, values = on_common_grid([([0, 5, 10, 20], [0, 5, 10, 20]), ([2, 12, 18], [1, 1, 1])])
    np.testing.assert_array_equal(grid, [2, 12, 18])
    np.testing.assert_allclose(values, [[2, 12, 18], [1, 1, 1]])


def test_common_grid_needs_a_common_range():
    with pytest.raises(ValueError, match="share no steps"):
        on_common_grid([([0, 1], [0, 0]), ([5, 6], [0, 0])])


def test_scores():
    reference = {"optimal": -20.0, "go_and_stay": -25.0, "uniform_valid": -70.0}
    returns = np.array([-70.0, -25.0, -20.0, -22.5])
    np.testing.assert_allclose(normalised_score(returns, reference), [0, 0.9, 1, 0.95])
    np.testing.assert_allclose(plateau_gain(returns, reference), [-9, 0, 1, 0.5])


@pytest.mark.parametrize(
    ("reference", "score", "gain"),
    [
        (None, None, None),  # CartPole
        ({"optimal": None, "go_and_stay": -25.0, "uniform_valid": -70.0}, None, None),  # a city too large to be solved
        ({"optimal": -20.0, "factored": -45.0, "uniform_valid": -70.0}, 0.5, None),  # a game without memory
        ({"optimal": 0.0, "go_and_stay": -90.0, "uniform_valid": -90.0}, 0.5, 0.5),  # 0 is an optimum like any other
    ],
)
def test_scores_are_none_where_the_reference_lacks_them(reference, score, gain):
    assert (normalised_score(-45.0, reference), plateau_gain(-45.0, reference)) == (score, gain)


def test_scores_where_there_is_nothing_to_gain():
    """Go-and-stay optimal, as in ERA-v1: no plateau to leave, so no number, and no exception either."""
    assert np.isnan(plateau_gain(-20.0, {"optimal": -20.0, "go_and_stay": -20.0}))
