"""Statistics over seeds: interquartile mean, stratified bootstrap, scores between the random and the optimal return.

The measures recommended for few seeds by Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (NeurIPS 2021). Arrays: R seeds of M tasks (strata), then any further axes, such as time.
"""

import numpy as np
from scipy.stats import trim_mean


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean along an axis: the mean without the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest of n values."""
    return trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator, statistic=iqm, level: float = 0.95, resamples: int = 2000
) -> np.ndarray:
    """Stratified percentile bootstrap of a statistic over R seeds of M tasks: (R, M, …) → (2, …), low and high.

    Seeds are drawn with replacement within each task; whatever lies on the further axes stays together.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim < 2:
        raise ValueError(f"values have shape {values.shape}; they must be (seeds, tasks, …)")
    seeds, tasks = values.shape[:2]
    drawn = values[rng.integers(seeds, size=(resamples, seeds, tasks)), np.arange(tasks)]  # (resamples, R, M, …)
    estimates = statistic(drawn.reshape(resamples, seeds * tasks, *values.shape[2:]), axis=1)
    return np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2], axis=0)


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
    """0 at the best "go once and stay", 1 at the optimum: above 0 only for policies that read the emergencies.

    None where one of them is not known.
    """
    return _between(returns, reference, "go_and_stay", "optimal")


def _between(returns, reference: dict | None, low: str, high: str):
    low, high = ((reference or {}).get(name) for name in (low, high))
    return None if None in (low, high) or returns is None else (returns - low) / ((high - low) or np.nan)
