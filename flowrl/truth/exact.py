"""Ground truth by dynamic programming, for ERA and, at the end, for the games with a hidden incident.

ERA: optimum, go-and-stay plateau, random policy, and any tabulated policy.

Values are float64, over the finite horizon, undiscounted, for the start distribution. A state is (allocation x, last
emergency e), e = K meaning none yet. Moves cost and are allowed resource by resource, and proximity constrains the next
allocation y alone, so that the maximum (or the sum) over all K^D actions is taken one resource at a time:
    max_y [W(y) − Σ_d c(x_d, y_d)] = max_{y_1} [−c(x_1, y_1) + max_{y_2} [−c(x_2, y_2) + …]],
with W = −∞ off the proximate y and c = ∞ where a move is too long: K^D · K · D operations instead of K^{2D}, and fewer
where resources are alike (`orbits`).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from ..envs.city import City
from ..envs.era import observe
from ..envs.partial import RESOURCES, Game
from .orbits import Orbits

MAX_STATES = 65_536  # allocations, up to exchange of like resources, that `optimum` takes by default
MAX_WORK = 100_000_000  # additions a step: at most half a minute for 100 steps
PATIENT = {"most_states": 2_000_000, "most_work": 20_000_000_000}  # what a command takes: hours at most, 3 GB
MAX_TABULATED = 5_000  # K^D up to which policies and values are tabulated


class _Tables:
    """A city's tables over all X = K^D allocations (flat, a row each) and E = K + 1 last emergencies."""

    def __init__(self, city: City | str | Path):
        self.city = city = City.load(city)
        K, D = city.districts, city.resources
        if city.allocations > MAX_TABULATED:
            raise ValueError(f"{city.name} has {K}^{D} actions; exact values are for at most {MAX_TABULATED}")
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


def solvable(city: City | str | Path, most_states: int = MAX_STATES, most_work: int = MAX_WORK) -> bool:
    """Whether `optimum` takes the city: at most so many states and additions a step, by default a matter of seconds."""
    orbits = Orbits(City.load(city))
    return orbits.count <= most_states and orbits.work <= most_work


def states(city: City | str | Path) -> Tensor:
    """(K^D · (K + 1), K, 2 + D) float32: the observation of every state (x, e), in the order x · (K + 1) + e."""
    tables = _Tables(city)
    X, E = len(tables.allocations), tables.city.districts + 1
    allocation = torch.as_tensor(tables.allocations, device="cpu").repeat_interleave(E, dim=0)
    return observe(allocation, torch.arange(E, device="cpu").repeat(X), E - 1)


def reachable(city: City | str | Path) -> np.ndarray:
    """(K^D,) bool: the allocations that an episode can be in, its starts and the proximate ones."""
    return _Tables(city).reachable


def optimum(
    city: City | str | Path, most_states: int = MAX_STATES, most_work: int = MAX_WORK, progress: bool = False
) -> dict[str, float]:
    """Exact expected returns over the start distribution: `optimal`, `go_and_stay`, `uniform_valid`; `valid_fraction`.

    `go_and_stay`: the first valid move goes to the best allocation to stay in for ever; `uniform_valid`: uniform over
    the valid actions; `valid_fraction`: their share, averaged over the start's allocations. progress: show it. Raises
    ValueError unless `solvable`.
    """
    city = City.load(city)
    if city.digest not in _OPTIMA:
        orbits = Orbits(city)
        if orbits.count > most_states or orbits.work > most_work:
            raise ValueError(
                f"{city.name} has {orbits.count} states and takes {orbits.work} additions a step; exact values are for "
                f"at most {most_states} and {most_work}"
            )
        _OPTIMA[city.digest] = _best(orbits, progress) | {
            "uniform_valid": orbits.expected(orbits.uniform_backup(), "random" if progress else None),
            "valid_fraction": float(orbits.valid()[0][orbits.starts].mean() / city.allocations),
        }
    return dict(_OPTIMA[city.digest])


def best(city: City | str | Path, progress: bool = False) -> dict[str, float]:
    """`optimum`'s `optimal` and `go_and_stay` alone, whatever it takes."""
    return _best(Orbits(City.load(city)), progress)


def _best(orbits: Orbits, progress: bool) -> dict[str, float]:
    optimal = orbits.expected(orbits.backup, "optimum" if progress else None)
    return {"optimal": optimal, "go_and_stay": _go_and_stay(orbits)}


def optimal_values(city: City | str | Path) -> np.ndarray:
    """(horizon + 1, K^D, K + 1) float64: V_t(x, e) of the best policy with t steps to go, 0 where nothing is valid."""
    tables = _Tables(city)
    orbits = Orbits(tables.city)
    state, value = orbits.number(tables.allocations), np.zeros((orbits.count, tables.city.districts + 1))
    values = np.zeros((tables.city.horizon + 1, len(state), value.shape[1]))
    for t in range(tables.city.horizon):
        value = orbits.backup(value)
        values[t + 1] = value[state]
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
    policy, travel = _moves(tables, actions, weights)
    value = np.zeros(travel.shape)
    for _ in range(tables.city.horizon):  # V(x, e) = Σ_y π(y|x, e) [W(y, e) − Σ_d c(x_d, y_d)]
        value = (policy @ tables.after_move(value).ravel()).reshape(value.shape) - travel
    return float(value[tables.starts, -1].mean())


def action_values(
    city: City | str | Path, actions: Tensor | np.ndarray, weights: Tensor | np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of the policy that `policy_return` takes, discounted by γ < 1, without end: W and U, both (K^D, K + 1), to 1e-6.

    Q((x, e), y) = W(y, e) − Σ_d c(x_d, y_d), with W(y, e) the mean over e' of r(y, e') + γ V(y, e'), U its variance.
    """
    tables = _Tables(city)
    policy, travel = _moves(tables, actions, weights)
    value, change = np.zeros(travel.shape), np.inf
    while gamma * change > 1e-6 * (1 - gamma):
        after = tables.after_move(gamma * value)
        new = (policy @ after.ravel()).reshape(value.shape) - travel
        value, change = new, abs(new - value).max()
    after = tables.after_move(gamma * value)
    return after, (tables.reward + gamma * value[:, :-1]) ** 2 @ tables.city.transition.T - after**2


def _moves(tables: _Tables, actions: Tensor | np.ndarray, weights: Tensor | np.ndarray):
    """The policy as `_sparse_policy` has it, and what its moves cost in each state, (X, E)."""
    policy = _sparse_policy(tables, *(torch.as_tensor(table, device="cpu").numpy() for table in (actions, weights)))
    E = tables.city.districts + 1
    x, y = (index // E for index in policy.coords)
    price = tables.toll[tables.allocations[x], tables.allocations[y]].sum(1)
    if not (np.isfinite(price) & tables.proximate[y]).all():
        raise ValueError(f"the policy gives weight to an action that is invalid in {tables.city.name}")
    travel = np.bincount(policy.row, policy.data * price, minlength=len(tables.allocations) * E)
    return policy.tocsr(), travel.reshape(-1, E)


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


def _go_and_stay(orbits: Orbits) -> float:
    """max_y [−c(x, y) + Σ_t Σ_e P(e_t = e) r(y, e)], averaged over the starts x."""
    city, transition = orbits.city, orbits.city.transition
    expected, now = np.zeros(city.districts), transition[-1]
    for _ in range(city.horizon):
        expected, now = expected + now, now @ transition[:-1]
    worth = np.where(orbits.served, city.covered, city.uncovered) @ expected
    return float(orbits.maximum(worth[:, None])[orbits.starts].mean())


# ------------------------------------------------------------------ hidden incidents (flowrl.envs.partial), no memory

STARTS = 32  # random policies that each search for a best one ascends from, all at once


def memoryless_return(name: str | Game, joint: Tensor | np.ndarray) -> float:
    """Exact expected return of a policy without memory: joint (K, K) ≥ 0, summing to 1, is π(n, n').

    ValueError for another shape, what is no distribution, or weight on an invalid action.
    """
    game, joint = Game.load(name), torch.as_tensor(joint, dtype=torch.float64, device="cpu")
    K = game.districts
    if joint.shape != (K, K):
        raise ValueError(f"the policy has the shape {tuple(joint.shape)}; allowed: ({K}, {K})")
    if not (joint >= 0).all() or abs(joint.sum() - 1) > 1e-4:
        raise ValueError("the policy's probabilities must be ≥ 0 and sum to 1")
    if joint[~_valid(game)].any():
        raise ValueError(f"the policy gives weight to an action that is invalid in {game.name}")
    return float(_memoryless(game, joint / joint.sum()))


def after_rejection(name: str | Game, marginals: Tensor | np.ndarray) -> np.ndarray:
    """What rejection makes of a product of marginals (2, K): π'(n, n') ∝ p(n) p'(n') on the valid actions, (K, K).

    Where n and n' are valid in either order, π'(n, n') π'(n', n) = π'(n, n) π'(n', n'): no such π' is uniform over
    (n, n) alone. ValueError for another shape, negative weights, or no weight on valid actions.
    """
    game, marginals = Game.load(name), torch.as_tensor(marginals, dtype=torch.float64, device="cpu")
    if marginals.shape != (RESOURCES, game.districts) or not (marginals >= 0).all():
        raise ValueError(f"marginals must be ≥ 0 and of the shape ({RESOURCES}, {game.districts})")
    joint = _on_valid(game, _product(marginals))
    if not joint.isfinite().all():
        raise ValueError(f"the marginals give no weight to an action that is valid in {game.name}")
    return joint.numpy()


def best_joint(name: str | Game) -> tuple[float, np.ndarray]:
    """The best policy without memory: its exact return and π(n, n'), (K, K).

    Its return is reward · horizon / K, whatever the horizon T. Proof: let q_n = π(n, n), d_t(n) = P(incident in n at
    t). If q_n ≥ q_m and d_t(n) ≤ d_t(m), then d_{t+1}(n) ≤ d_{t+1}(m); d_0 is uniform, so d_t always falls where q
    rises, and by Chebyshev's sum inequality Σ_n d_t(n) q_n ≤ (Σ d_t) (Σ q) / K ≤ 1/K, met by q_n = 1/K.
    """
    game = Game.load(name)
    value, weights = _ascend(game, lambda weights: weights, (game.districts,) * RESOURCES)
    return value, _on_valid(game, weights).numpy()


def best_factored(name: str | Game) -> tuple[float, np.ndarray]:
    """The best product of marginals, after rejection where there is a constraint: its exact return and p, p' (2, K)."""
    game = Game.load(name)
    value, weights = _ascend(game, _product, (RESOURCES, game.districts))
    return value, (weights / weights.sum(-1, keepdim=True)).numpy()


def partial_reference(name: str | Game) -> dict[str, float]:
    """Exact returns without memory: `optimal` (joint), `factored`, `uniform_valid`; and `valid_fraction`."""
    game = Game.load(name)
    if game.digest not in _REFERENCES:
        _REFERENCES[game.digest] = {
            "optimal": best_joint(game)[0],
            "factored": best_factored(game)[0],
            "uniform_valid": memoryless_return(game, game.valid / game.valid.sum()),
            "valid_fraction": float(game.valid.mean()),
        }
    return dict(_REFERENCES[game.digest])


_REFERENCES: dict[str, dict[str, float]] = {}  # by the game's digest


def services(q: Tensor, horizon: int) -> Tensor:
    """How many incidents a policy without memory serves in so many steps, expected: q (…, K) → (…), differentiable.

    q_n: P(served | incident in n); every incident opens in one of the K, uniformly. A Markov chain, followed.
    """
    K, q = q.shape[-1], q.unsqueeze(-1)
    # d_{t+1} = d_t [diag(1 − q) + q 1ᵀ/K]; one more column counts what was served, and is carried along
    moves = torch.cat((torch.diag_embed(1 - q.squeeze(-1)) + q / K, q), -1)
    carried = torch.eye(K + 1, dtype=q.dtype, device=q.device)[-1:].expand(*q.shape[:-2], 1, K + 1)
    return torch.linalg.matrix_power(torch.cat((moves, carried), -2), horizon)[..., :K, K].mean(-1)


def _memoryless(game: Game, joint: Tensor) -> Tensor:
    """Expected returns (…) of policies (…, K, K), differentiable."""
    q = joint.diagonal(dim1=-2, dim2=-1)
    return game.reward * services(q, game.horizon) + game.split * game.horizon * (1 - q.sum(-1))


def _valid(game: Game) -> Tensor:
    return torch.as_tensor(game.valid, device="cpu")


def _on_valid(game: Game, weights: Tensor) -> Tensor:
    """Weights (…, K, K) ≥ 0 → the distributions proportional to them on the valid actions."""
    weights = weights * _valid(game)
    return weights / weights.sum((-2, -1), keepdim=True)


def _product(marginals: Tensor) -> Tensor:
    """(…, 2, K) → (…, K, K): p(n) p'(n')."""
    return marginals[..., 0, :, None] * marginals[..., 1, None, :]


def _ascend(game: Game, joint_of: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[float, Tensor]:
    """max over weights w ≥ 0 (shape) of the exact return of joint_of(w) on the valid actions, and the best w found.

    L-BFGS from many random starts; w = x², so that faces of the simplex are a finite step away.
    """

    def returns(x: Tensor) -> Tensor:
        return _memoryless(game, _on_valid(game, joint_of(x.square())))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(flat, device="cpu").view(STARTS, *shape).requires_grad_()
        total = -returns(x).sum()
        return total.item(), torch.autograd.grad(total, x)[0].numpy().ravel()

    start = np.random.default_rng(0).normal(size=STARTS * shape[0] * shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    x = torch.tensor(found.x, device="cpu").view(STARTS, *shape)
    value, best = returns(x).max(0)
    return float(value), x[best].square()
