"""References for cities too large for dynamic programming: what resources achieve that never look at the emergencies.

The emergencies do not depend on the allocation, so the expected return of a path of allocations is exact, without
simulation: with n_k = Σ_t P(e_t = k), staying at y for an episode is worth Σ_k n_k r(y, k), that is a constant plus
Σ over the districts k that y covers of n_k (covered_k − uncovered_k). The best y is found by local search: two resources
at a time go where the sum, less the travel costs, is largest. It can miss the best, so that what it finds is a lower
bound. `python -m flowrl.search` writes the references of the shipped cities again (minutes).
"""

import functools
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from flowrl import exact
from flowrl.envs.city import CITIES, City

REFERENCES = CITIES / "references.json"  # {a city's digest: its reference}
STARTS = 256  # sampled start allocations
RESTARTS = 8  # local searches from each, the best of which counts
EPSILON = 1e-9  # the least improvement worth a move: equal values would go round in circles


def reference(city: City | str | Path) -> dict[str, float | None]:
    """`exact.optimum` where that can be had, else `references` (kept in a file for the shipped cities), same keys.

    Where it is exact the standard errors are 0; where not, `optimal` is None. Raises ValueError for a city that is
    neither `exact.solvable` nor `countable`.
    """
    city = City.load(city)
    if city.digest in _kept():
        return dict(_kept()[city.digest])
    if exact.solvable(city):
        return exact.optimum(city) | {"go_and_stay_sem": 0.0, "uniform_valid_sem": 0.0}
    return references(city)


@functools.cache
def _kept() -> dict[str, dict[str, float | None]]:
    return json.loads(REFERENCES.read_text(encoding="utf-8")) if REFERENCES.exists() else {}


def references(city: City | str | Path, starts: int = STARTS, seed: int = 0) -> dict[str, float | None]:
    """Mean returns over sampled starts (all where there are no more), exact over the emergencies.

    `go_and_stay`: the first valid move goes to the best allocation found, as in `exact.optimum`; `walk_and_stay`: valid
    moves go, as far as they get, to the best one found anywhere; `uniform_valid`: uniform over the valid actions. Each
    has a standard error, `…_sem`, over the starts (and the actions). `valid_fraction` is exact; `optimal` is None.
    Raises ValueError unless the city is `countable`.
    """
    city, rng = City.load(city), np.random.default_rng(seed)
    some = city.starts
    if complete := len(some) <= starts:
        starts = len(some)
    else:
        some = some[rng.choice(len(some), starts, replace=False)]
    stay = go_and_stay(city, some, rng)
    paths = {
        "go_and_stay": np.stack([some] + [stay] * city.horizon),
        "walk_and_stay": walk(city, some, go_and_stay(city, some, rng, anywhere=True)),
        "uniform_valid": uniform_valid(city, some, rng),
    }
    found: dict[str, float | None] = {"optimal": None}
    for name, path in paths.items():
        returns = expected_return(city, path)
        found[name] = float(returns.mean())
        by_chance = name == "uniform_valid" or not complete
        found[f"{name}_sem"] = float(returns.std() / starts**0.5) if by_chance else 0.0
    return found | {"valid_fraction": valid_fraction(city)}


def valid_fraction(city: City) -> float:
    """The share of valid actions, averaged over the start's allocations; exact. ValueError unless `countable`."""
    return float(city.valid_counts(city.starts).mean() / city.allocations)


def expected_return(city: City, path: np.ndarray) -> np.ndarray:
    """path: (horizon + 1, n, D) allocations from the start on → (n,) return, expected over the emergencies."""
    travel = city.cost[path[:-1], path[1:]].sum(2)  # (horizon, n)
    chance, gain = _emergencies(city), _gain(city)
    covered = (path[1:, ..., None] == np.arange(city.districts)).any(2)  # (horizon, n, K)
    reward = (chance @ city.uncovered)[:, None] + (covered * (chance * gain)[:, None]).sum(2)
    return (reward - travel).sum(0)


def go_and_stay(city: City, starts: np.ndarray, rng: np.random.Generator, anywhere: bool = False) -> np.ndarray:
    """(n, D) starts → (n, D): the best allocation found to move to and stay in for an episode.

    Among those that one valid move reaches, or all proximate ones at the price of the direct way. It is the best of
    RESTARTS searches, from uniform draws. ValueError unless the city is `countable`.
    """
    starts = np.tile(starts, (RESTARTS, 1))
    may = np.full((*starts.shape, city.districts), True) if anywhere else city.may_move[starts]
    price, gain = city.cost[starts], _emergencies(city).sum(0) * _gain(city)
    first = city._draw(may.transpose(1, 0, 2), rng)
    found = improve(city, first, may, price, gain)
    n = len(starts) // RESTARTS
    covered = (found[..., None] == np.arange(city.districts)).any(1)
    value = covered @ gain - np.take_along_axis(price, found[..., None], 2).sum((1, 2))
    best = value.reshape(RESTARTS, n).argmax(0)
    return found[best * n + np.arange(n)]


def improve(city: City, y: np.ndarray, may: np.ndarray, price: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Local search for the y with the largest Σ_k gain_k 1[k ∈ y] − Σ_d price(d, y_d) that is proximate and allowed.

    y: (n, D) such allocations; may: (n, D, K) bool; price: (n, D, K); gain: (K,), ≥ 0 or not → (n, D), from which no
    other districts for any two resources are better. ValueError for fewer than two resources.
    """
    n, D = y.shape
    if D < 2:
        raise ValueError(f"{city.name} has {D} resource; the search moves two at a time")
    y, active = y.copy(), np.arange(n)
    while len(active):
        now, before = y[active], y[active]
        for pair in combinations(range(D), 2):
            now = _best_pair(city, now, may[active], price[active], gain, pair)
        y[active] = now
        active = active[(now != before).any(1)]
    return y


def _best_pair(city: City, y: np.ndarray, may: np.ndarray, price: np.ndarray, gain: np.ndarray, pair) -> np.ndarray:
    """y with the two resources of `pair` where they are best, given the others; the same y where nothing is better."""
    n, K, diagonal = len(y), city.districts, np.arange(city.districts)
    others = np.delete(y, pair, axis=1)
    fresh = gain * (others[..., None] != diagonal).all(1)  # (n, K) what covering k adds to the others
    alone = [np.where(may[:, d], fresh - price[:, d], -np.inf) for d in pair]
    table = alone[0][:, :, None] + alone[1][:, None, :]  # (n, K, K)
    table[:, diagonal, diagonal] -= fresh  # two at the same place cover it once
    for i, j, limit in city.proximity:
        near = city.hops <= limit
        if {i, j} == set(pair):
            table[:, ~near] = -np.inf
        for axis, d in enumerate(pair):
            if d in (i, j) and i + j - d not in pair:
                far = ~near[y[:, i + j - d]]  # (n, K)
                np.copyto(table, -np.inf, where=np.expand_dims(far, 2 - axis))
    table = table.reshape(n, K * K)
    here, best = y[:, pair[0]] * K + y[:, pair[1]], table.argmax(1)
    better = table[np.arange(n), best] > table[np.arange(n), here] + EPSILON
    y = y.copy()
    y[better, pair[0]], y[better, pair[1]] = np.divmod(best[better], K)
    return y


def walk(city: City, starts: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n, D), (n, D) → (horizon + 1, n, D): the path of valid moves that each come as near to the target as they can.

    The distance is the resources' hops, summed, then what the move costs; where none comes nearer the path stays.
    """
    path = [starts]
    hops = city.hops[target]  # (n, D, K) hops to the target
    for _ in range(city.horizon):
        x = path[-1]
        # a move's cost breaks ties: whatever it is, it stays below one hop
        price = hops + city.cost[x] / (1 + city.resources * city.cost.max())
        path.append(improve(city, x, city.may_move[x], price, np.zeros(city.districts)))
        if (path[-1] == x).all():
            break
    return np.stack(path + [path[-1]] * (city.horizon + 1 - len(path)))


def uniform_valid(city: City, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, D) → (horizon + 1, n, D): the path of uniformly drawn valid actions. ValueError unless `countable`."""
    path = [starts]
    for _ in range(city.horizon):
        path.append(city.draw_valid(path[-1], rng))
    return np.stack(path)


def _emergencies(city: City) -> np.ndarray:
    """(horizon, K): P(e_t = k) at each step."""
    chance = [city.transition[-1]]
    for _ in range(city.horizon - 1):
        chance.append(chance[-1] @ city.transition[:-1])
    return np.stack(chance)


def _gain(city: City) -> np.ndarray:
    """(K,): how much more an emergency in k pays where it is covered."""
    return np.subtract(city.covered, city.uncovered)


if __name__ == "__main__":
    table = {}
    for name in City.names():
        if name.startswith("ERA-L"):
            city = City.load(name)
            table[city.digest] = {"name": name} | references(city)
            if exact.solvable(city):
                table[city.digest] |= exact.optimum(city) | {"go_and_stay_sem": 0.0, "uniform_valid_sem": 0.0}
            print(table[city.digest], flush=True)
    REFERENCES.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
