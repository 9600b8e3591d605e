"""Ground truth for ERA by dynamic programming: optimum, go-and-stay plateau, random policy, and any tabulated policy.

Values are float64, over the finite horizon, undiscounted, for the start distribution. A state is (allocation x, last
emergency e), e = K meaning none yet. Moves cost and are allowed resource by resource, and proximity constrains the next
allocation y alone, so that the maximum (or the sum) over all K^D actions is taken one resource at a time:
    max_y [W(y) − Σ_d c(x_d, y_d)] = max_{y_1} [−c(x_1, y_1) + max_{y_2} [−c(x_2, y_2) + …]],
with W = −∞ off the proximate y and c = ∞ where a move is too long: K^D · K · D operations instead of K^{2D}.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from flowrl.envs.city import City
from flowrl.envs.era import observe

MAX_ACTIONS = 65_536  # K^D up to which `optimum` goes, if a step costs no more than MAX_WORK
MAX_WORK = 100_000_000  # additions a step, (K + 1) · K^D · K · D: about ten seconds for 100 steps
MAX_TABULATED = 5_000  # K^D up to which policies and values are tabulated


class _Tables:
    """A city's tables over all X = K^D allocations (flat, a row each) and E = K + 1 last emergencies."""

    def __init__(self, city: City | str | Path, max_actions: int = MAX_TABULATED):
        self.city = city = City.load(city)
        K, D = city.districts, city.resources
        if city.allocations > max_actions:
            raise ValueError(f"{city.name} has {K}^{D} actions; exact values are for at most {max_actions}")
        self.allocations = np.indices((K,) * D).reshape(D, -1).T  # (X, D)
        self.starts = np.ravel_multi_index(tuple(city.starts.T), (K,) * D)
        self.proximate = city.proximate(self.allocations)  # (X,)
        self.reachable = self.proximate.copy()
        self.reachable[self.starts] = True
        self.toll = np.where(city.may_move, city.cost, np.inf)  # (K, K)
        served = (self.allocations[:, :, None] == np.arange(K)).any(1)
        self.reward = np.where(served, city.covered, city.uncovered)  # (X, K): r(y, e')

    def after_move(self, value: np.ndarray) -> np.ndarray:
        """V(x, e) → W(y, e) = Σ_e' P(e'|e) [r(y, e') + V(y, e')], both (X, E)."""
        return (self.reward + value[:, :-1]) @ self.city.transition.T

    def maximum(self, table: np.ndarray) -> np.ndarray:
        """table(y, ·) → max over valid y of table(y, ·) − Σ_d c(x_d, y_d), both (X, n); −∞ where nothing is valid."""

        def best(values: np.ndarray) -> np.ndarray:
            near = np.isfinite(self.toll)  # (K, K): (x_d, y_d)
            return np.stack([(values[y] - row[y, None]).max(0) for row, y in zip(self.toll, near, strict=True)], -1)

        return self._fold(np.where(self.proximate[:, None], table, -np.inf), [best] * self.city.resources)

    def total(self, table: np.ndarray, priced: int | None = None) -> np.ndarray:
        """table(y, ·) → Σ over valid y of table(y, ·), times c(x_d, y_d) for the resource d = priced; both (X, n)."""
        weights = [self.city.may_move * (self.city.cost if d == priced else 1.0) for d in range(self.city.resources)]
        steps = [lambda values, w=w: values.T @ w.T for w in weights]
        return self._fold(np.where(self.proximate[:, None], table, 0.0), steps)

    def _fold(self, table: np.ndarray, steps: Sequence[Callable[[np.ndarray], np.ndarray]]) -> np.ndarray:
        """(X, n) over y → over x: each step takes a resource's y_d, first axis (K, m), to its x_d, last (m, K)."""
        n = table.shape[1]
        for step in steps:
            table = step(table.reshape(self.city.districts, -1))
        return table.reshape(n, -1).T


def solvable(city: City | str | Path) -> bool:
    """Whether `optimum` takes the city: at most MAX_ACTIONS allocations and MAX_WORK additions a step."""
    city = City.load(city)
    return city.allocations <= MAX_ACTIONS and _work(city) <= MAX_WORK


def _work(city: City) -> int:
    return (city.districts + 1) * city.allocations * city.districts * city.resources


def states(city: City | str | Path) -> Tensor:
    """(K^D · (K + 1), K, 2 + D) float32: the observation of every state (x, e), in the order x · (K + 1) + e."""
    tables = _Tables(city)
    X, E = len(tables.allocations), tables.city.districts + 1
    allocation = torch.as_tensor(tables.allocations, device="cpu").repeat_interleave(E, dim=0)
    return observe(allocation, torch.arange(E, device="cpu").repeat(X), E - 1)


def reachable(city: City | str | Path) -> np.ndarray:
    """(K^D,) bool: the allocations that an episode can be in, its starts and the proximate ones."""
    return _Tables(city).reachable


def optimum(city: City | str | Path) -> dict[str, float]:
    """Exact expected returns over the start distribution: `optimal`, `go_and_stay`, `uniform_valid`; `valid_fraction`.

    `go_and_stay`: the first valid move goes to the best allocation to stay in for ever; `uniform_valid`: uniform over
    the valid actions; `valid_fraction`: their share, averaged over the start's allocations. Raises ValueError unless
    `solvable`.
    """
    city = City.load(city)
    if city.digest not in _OPTIMA:
        if (work := _work(city)) > MAX_WORK:
            raise ValueError(f"{city.name} takes {work} additions a step; exact values are for at most {MAX_WORK}")
        tables = _Tables(city, MAX_ACTIONS)
        _OPTIMA[city.digest] = {
            "optimal": _optimal(tables),
            "go_and_stay": _go_and_stay(tables),
            "uniform_valid": _uniform_valid(tables),
            "valid_fraction": float(_valid_counts(tables)[tables.starts].mean() / city.allocations),
        }
    return dict(_OPTIMA[city.digest])


def optimal_values(city: City | str | Path) -> np.ndarray:
    """(horizon + 1, K^D, K + 1) float64: V_t(x, e) of the best policy with t steps to go, 0 where nothing is valid."""
    tables = _Tables(city)
    values = np.zeros((tables.city.horizon + 1, len(tables.allocations), tables.city.districts + 1))
    for t in range(tables.city.horizon):
        values[t + 1] = _backup(tables, values[t])
    return values


def optimal_policy(city: City | str | Path) -> np.ndarray:
    """(K^D, K + 1) int64 flat actions: a stationary policy, the optimal one for the first step of an episode."""
    tables = _Tables(city)
    after = tables.after_move(optimal_values(city)[-2])
    after[~tables.proximate] = -np.inf
    tolls = (tables.toll[x, tables.allocations].sum(1, keepdims=True) for x in tables.allocations)
    return np.stack([(after - toll).argmax(0) for toll in tolls])


def policy_return(city: City | str | Path, actions: Tensor | np.ndarray, weights: Tensor | np.ndarray) -> float:
    """Exact expected return of a stationary policy tabulated in every state (x, e).

    actions: (K^D, K + 1, n) int64 flat actions; weights: the same shape, ≥ 0, rows summing to 1; repeated actions add
    up. Rows of allocations that are not `reachable` are ignored. Raises ValueError for a wrong shape, rows that do not
    sum to 1, or an invalid action of positive weight.
    """
    tables = _Tables(city)
    policy = _sparse_policy(tables, *(torch.as_tensor(table, device="cpu").numpy() for table in (actions, weights)))
    E = tables.city.districts + 1
    x, y = (index // E for index in policy.coords)
    price = tables.toll[tables.allocations[x], tables.allocations[y]].sum(1)
    if not (np.isfinite(price) & tables.proximate[y]).all():
        raise ValueError(f"the policy gives weight to an action that is invalid in {tables.city.name}")
    travel = np.bincount(policy.row, policy.data * price, minlength=policy.shape[0])
    policy, value = policy.tocsr(), np.zeros((len(tables.allocations), E))
    for _ in range(tables.city.horizon):  # V(x, e) = Σ_y π(y|x, e) [W(y, e) − Σ_d c(x_d, y_d)]
        value = (policy @ tables.after_move(value).ravel() - travel).reshape(value.shape)
    return float(value[tables.starts, -1].mean())


def _sparse_policy(tables: _Tables, actions: np.ndarray, weights: np.ndarray) -> coo_array:
    """(X · E, X · E): entry (x · E + e, y · E + e) is π(y | x, e); rows that cannot be reached are empty."""
    X, E = len(tables.allocations), tables.city.districts + 1
    if actions.shape != weights.shape or actions.ndim != 3 or actions.shape[:2] != (X, E):
        raise ValueError(f"actions {actions.shape} and weights {weights.shape} must both have the shape ({X}, {E}, n)")
    if actions.min() < 0 or actions.max() >= X:
        raise ValueError(f"flat actions must be within 0..{X - 1}")
    total = weights.sum(-1, dtype=np.float64)
    if (weights < 0).any() or not np.allclose(total[tables.reachable], 1, rtol=0, atol=1e-4):
        raise ValueError("weights must be ≥ 0 and sum to 1 in every reachable state")
    weights = weights * (tables.reachable[:, None] / np.where(total > 0, total, 1))[..., None]
    columns = actions * E + np.arange(E)[:, None]
    rows = np.arange(0, weights.size + 1, actions.shape[2])
    policy = csr_array((weights.ravel(), columns.ravel(), rows), shape=(X * E, X * E))
    policy.sum_duplicates()
    policy.eliminate_zeros()
    return policy.tocoo()


_OPTIMA: dict[str, dict[str, float]] = {}  # by the city's digest


def _backup(tables: _Tables, value: np.ndarray) -> np.ndarray:
    """V_t → V_{t+1}, both (X, E), 0 where nothing is valid: V_{t+1}(x, e) = max_y [W_t(y, e) − Σ_d c(x_d, y_d)]."""
    best = tables.maximum(tables.after_move(value))
    return np.where(np.isfinite(best), best, 0.0)


def _optimal(tables: _Tables) -> float:
    value = np.zeros((len(tables.allocations), tables.city.districts + 1))
    for _ in range(tables.city.horizon):
        value = _backup(tables, value)
    return float(value[tables.starts, -1].mean())


def _go_and_stay(tables: _Tables) -> float:
    """max_y [−c(x, y) + Σ_t Σ_e P(e_t = e) r(y, e)], averaged over the starts x."""
    transition = tables.city.transition
    expected, now = np.zeros(tables.city.districts), transition[-1]
    for _ in range(tables.city.horizon):
        expected, now = expected + now, now @ transition[:-1]
    return float(tables.maximum((tables.reward @ expected)[:, None])[tables.starts].mean())


def _valid_counts(tables: _Tables) -> np.ndarray:
    """(X,) how many actions are valid in each allocation."""
    return tables.total(np.ones((len(tables.allocations), 1)))[:, 0]


def _uniform_valid(tables: _Tables) -> float:
    """V(x, e) = mean over valid y of W(y, e) − Σ_d c(x_d, y_d); where nothing is valid, never reached, 0."""
    ones = np.ones((len(tables.allocations), 1))
    travel = sum(tables.total(ones, priced=d) for d in range(tables.city.resources))
    counts, value = np.maximum(tables.total(ones), 1), np.zeros((len(ones), tables.city.districts + 1))
    for _ in range(tables.city.horizon):
        value = (tables.total(tables.after_move(value)) - travel) / counts
    return float(value[tables.starts, -1].mean())
