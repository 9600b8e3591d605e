"""Statistics over seeds: interquartile mean, stratified bootstrap, scores between the random and the optimal return.

The measures recommended for few seeds by Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (NeurIPS 2021), and a test of equivalence. Arrays: R seeds of M tasks (strata), then any further axes, such
as time.
"""

from typing import NamedTuple

import numpy as np


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean along an axis: the mean without the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest of n values.

    NaN where one of the n is; scipy says so too, but goes through the array slice by slice once it sees one.
    """
    from scipy.stats import trim_mean  # here: training and planning need none, and it takes long to import

    missing = np.isnan(values)
    return trim_mean(np.where(missing, 0, values), 0.25, axis=axis) + np.where(missing.any(axis), np.nan, 0)


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator, statistic=iqm, level: float = 0.95, resamples: int = 2000
) -> np.ndarray:
    """Stratified percentile bootstrap of a statistic over R seeds of M tasks: (R, M, …) → (2, …), low and high.

    Seeds are drawn with replacement within each task; whatever lies on the further axes stays together.
    """
    drawn = _resampled(values, rng, resamples)  # (resamples, R, M, …)
    estimates = statistic(drawn.reshape(resamples, -1, *drawn.shape[3:]), axis=1)
    return np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2], axis=0)


def comparison_interval(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, statistic, level: float = 0.95, resamples: int = 2000
) -> np.ndarray:
    """Stratified percentile bootstrap of a statistic of two methods, x (R, M) and y (Q, M) on the same tasks: (2,).

    statistic: of (…, R, M) and (…, Q, M), such as `improvement`. Seeds are drawn within each task, x's apart from y's.
    """
    estimates = statistic(_resampled(x, rng, resamples), _resampled(y, rng, resamples))
    return np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])


def _resampled(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Seeds with replacement within each task: (R, M, …) → (resamples, R, M, …)."""
    values = np.asarray(values, dtype=float)
    if values.ndim < 2:
        raise ValueError(f"values have shape {values.shape}; they must be (seeds, tasks, …)")
    seeds, tasks = values.shape[:2]
    return values[rng.integers(seeds, size=(resamples, seeds, tasks)), np.arange(tasks)]


def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far the mean of x (…, R, M) lies above that of y (…, Q, M), mean over tasks: (…)."""
    return np.mean(x, (-2, -1)) - np.mean(y, (-2, -1))


def ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean of x (…, R, M) over that of y (…, Q, M), mean over tasks: (…)."""
    return (np.mean(x, -2) / np.mean(y, -2)).mean(-1)


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability of improvement P(X > Y), ties half, mean over tasks: (…, R, M) and (…, Q, M) → (…).

    Within a task it is Mann and Whitney's U / (R Q).
    """
    x, y = np.asarray(x)[..., :, None, :], np.asarray(y)[..., None, :, :]
    return ((x > y) + 0.5 * (x == y)).mean((-3, -2, -1))


def above(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """1 where a run lies above a threshold: (R, M) and (T,) → (R, M, T).

    Its mean over runs is the performance profile, and `bootstrap_interval` with `np.mean` gives the profile's interval.
    """
    return (np.asarray(values)[..., None] > thresholds).astype(float)


class Equivalence(NamedTuple):
    """Two one-sided tests of |difference| < margin."""

    low: float  # the 90 % interval of the difference; equivalent at 5 % exactly where it lies within ± margin
    high: float
    p: float  # the larger p-value of the two tests


def equivalence(x: np.ndarray, y: np.ndarray, margin: float) -> Equivalence:
    """Two one-sided Welch t-tests (TOST) that x (R, M) and y (Q, M), each mean over tasks, are within `margin`.

    Welch's t rather than the bootstrap: of three seeds a bootstrap knows too little spread, and would call too much
    equal. Variances of tasks add up, degrees of freedom as Welch and Satterthwaite have them. Raises ValueError where a
    method has one seed.
    """
    from scipy.stats import t as student  # here, as above

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"equivalence needs two seeds of each; there are {len(x)} and {len(y)}")
    found, tasks = float(difference(x, y)), x.shape[1]
    squares = np.stack([x.var(0, ddof=1) / len(x), y.var(0, ddof=1) / len(y)]) / tasks**2  # of the standard errors
    if not squares.any():
        return Equivalence(found, found, float(abs(found) >= margin))
    error = np.sqrt(squares.sum())
    freedom = squares.sum() ** 2 / (squares**2 / (np.array([[len(x)], [len(y)]]) - 1)).sum()
    p = max(student.sf((found + margin) / error, freedom), student.cdf((found - margin) / error, freedom))
    reach = student.ppf(0.95, freedom) * error
    return Equivalence(found - reach, found + reach, float(p))


def on_common_grid(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Curves (steps, values) of R seeds on one grid: steps (T,) and values (R, T).

    The grid is the coarsest curve's, within the range that all share; where grids differ, values are interpolated.
    """
    curves = [(np.asarray(steps), np.asarray(values)) for steps, values in curves]
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    coarsest = min((steps for steps, _ in curves), key=len)
    grid = coarsest[(coarsest >= first) & (coarsest <= last)]
    if not len(grid):
        raise ValueError(f"curves share no steps: one starts at {first}, another ends at {last}")
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves])


def normalised_score(returns, reference: dict | None):
    """0 at the return of uniformly drawn valid actions, 1 at the optimum; None where one of them is not known.

    reference: as in a record, returns by name.
    """
    return _between(returns, reference, "uniform_valid", "optimal")


def plateau_gain(returns, reference: dict | None):
    """0 at the best "go once and stay", 1 at the optimum; None where one of them is not known.

    Where one move reaches far (ERA-v1 to v5) it is above 0, but for a trifle, only for policies that read the
    emergencies; in tight cities also for blind ones that walk to a better place.
    """
    return _between(returns, reference, "go_and_stay", "optimal")


def _between(returns, reference: dict | None, low: str, high: str):
    zero, one = ((reference or {}).get(name) for name in (low, high))
    if zero is None or one is None or returns is None:
        return None
    return (returns - zero) / ((one - zero) or np.nan)
