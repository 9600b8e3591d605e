"""References for cities too large for dynamic programming: policies found by local search, and the random one.

The emergencies do not depend on the allocation, so the expected return of a path of allocations is exact, without
simulation: with n_k = Σ_t P(e_t = k), staying at y for an episode is worth Σ_k n_k r(y, k), that is a constant plus
Σ over the districts k that y covers of n_k (covered_k − uncovered_k). The best y is found by local search: two
resources at a time go where the sum, less the travel costs, is largest. It can miss the best: what it finds is a lower
bound. `python -m flowrl.truth.search` writes the references of the shipped cities again (minutes, of which the exact
optimum of ERA-Columbus takes three, and 3 GB).
"""

import functools
import json
from collections.abc import Callable, Iterable
from itertools import combinations, product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..envs.city import CITIES, City
from . import exact

REFERENCES = CITIES / "references.json"  # {a city's digest: its reference}
STARTS = 256  # sampled start allocations
RESTARTS = 16  # local searches from each, the best of which counts
EXACT = {"go_and_stay_sem": 0.0, "uniform_valid_sem": 0.0}
EPSILON = 1e-9  # the least improvement worth a move: equal values would go round in circles


def reference(city: City | str | Path, patient: bool = False) -> dict[str, float | None] | None:
    """What returns are measured against: `optimal`, `go_and_stay`, `uniform_valid` and `valid_fraction`.

    `exact.optimum` where that can be had, else `references`, with `optimal` None; None for a city that allows neither.
    `go_and_stay_sem`, `uniform_valid_sem`: standard errors, 0 where exact. The shipped large cities' are on file.
    patient: take minutes, or hours, for an exact optimum, and show progress.
    """
    city = City.load(city)
    if city.digest in _kept():
        return {key: value for key, value in _kept()[city.digest].items() if key != "name"}
    limits = exact.PATIENT if patient else {}
    if exact.solvable(city, **limits):
        return {**exact.optimum(city, **limits, progress=patient), **EXACT}
    searched = city.countable and city.start == "proximate" and city.resources > 1
    return references(city, progress=patient) if searched else None


@functools.cache
def _kept() -> dict[str, dict[str, float | None]]:
    return json.loads(REFERENCES.read_text(encoding="utf-8")) if REFERENCES.exists() else {}


def references(
    city: City | str | Path, starts: int = STARTS, seed: int = 0, progress: bool = False
) -> dict[str, float | None]:
    """Mean returns over sampled starts (all where there are no more), and their standard errors, `…_sem`.

    `go_and_stay`: the first valid move goes to the best allocation found, as in `exact.optimum`; `walk_and_stay`: valid
    moves go, as far as they get, to the best one found anywhere; `replan`: once there, go-and-stay, decided anew at
    every step from the last emergency; `dispatch_nearest`: the nearest resource goes to the last emergency;
    `uniform_valid`: uniform over the valid actions. `valid_fraction` is exact; `optimal` is None. Raises ValueError
    unless the city is `countable` and starts proximate.
    """
    city, rng = City.load(city), np.random.default_rng(seed)
    if city.start != "proximate":
        raise ValueError(f"{city.name} starts {city.start}; a search is for cities that start proximate")
    some = city.starts
    if len(some) > starts:
        some = some[rng.choice(len(some), starts, replace=False)]
    stay = go_and_stay(city, some, rng, progress=progress)
    path = walk(city, some, go_and_stay(city, some, rng, anywhere=True, progress=progress))
    returns = {
        "go_and_stay": expected_return(city, np.stack([some] + [stay] * city.horizon)),
        "walk_and_stay": expected_return(city, path),
        "replan": replan(city, path, rng, progress),
        "uniform_valid": expected_return(city, uniform_valid(city, some, rng)),
        "dispatch_nearest": dispatch_nearest(city, some, rng),
    }
    found: dict[str, float | None] = {"optimal": None, "valid_fraction": valid_fraction(city)}
    for name, values in returns.items():
        by_chance = name in ("replan", "uniform_valid", "dispatch_nearest") or len(some) < len(city.starts)
        found[name] = float(values.mean())
        found[f"{name}_sem"] = float(values.std() / len(some) ** 0.5) if by_chance else 0.0
    return found


def valid_fraction(city: City) -> float:
    """The share of valid actions, averaged over the start's allocations; exact. ValueError unless `countable`."""
    return float(city.valid_counts(city.starts).mean() / city.allocations)


def expected_return(city: City, path: np.ndarray) -> np.ndarray:
    """path: (horizon + 1, n, D) allocations from the start on → (n,) return, expected over the emergencies."""
    travel = city.cost[path[:-1], path[1:]].sum(2)  # (horizon, n)
    chance, gain = _emergencies(city), _gain(city)
    reward = (chance @ city.uncovered)[:, None] + (_covered(city, path[1:]) * (chance * gain)[:, None]).sum(2)
    return (reward - travel).sum(0)


def go_and_stay(
    city: City, starts: np.ndarray, rng: np.random.Generator, anywhere: bool = False, progress: bool = False
) -> np.ndarray:
    """(n, D) starts → (n, D): the best allocation found to move to and stay in for an episode.

    Among those that one valid move reaches, or all proximate ones at the price of the direct way: the best that
    RESTARTS searches from uniform draws find for any of the starts. ValueError unless the city is `countable`.
    """
    may = np.full((*starts.shape, city.districts), True) if anywhere else city.may_move[starts]
    price, gain = city.cost[starts], _emergencies(city).sum(0) * _gain(city)
    best, worth = starts, np.full(len(starts), -np.inf)
    for _ in _bar(range(RESTARTS), "walk and stay" if anywhere else "go and stay", progress):
        y = improve(city, city.draw(may, rng), may, price, gain)
        value = _covered(city, y) @ gain - np.take_along_axis(price, y[..., None], 2).sum((1, 2))
        better = value > worth
        best, worth = np.where(better[:, None], y, best), np.where(better, value, worth)
    pool, each = np.unique(best, axis=0), np.arange(city.resources)  # what one start has found may suit another
    value = _covered(city, pool) @ gain - price[:, each, pool].sum(2)  # (n, pool)
    return pool[np.where(may[:, each, pool].all(2), value, -np.inf).argmax(1)]


def improve(city: City, y: np.ndarray, may: np.ndarray, price: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Local search for the y with the largest Σ_k gain_k 1[k ∈ y] − Σ_d price(d, y_d) that is proximate and allowed.

    y: (n, D), where it begins, proximate and allowed; may: (n, D, K) bool; price: (n, D, K); gain: (K,) or (n, K)
    → (n, D), where no other districts for any two resources are better. ValueError for fewer than two resources.
    """
    n, D = y.shape
    if D < 2:
        raise ValueError(f"{city.name} has {D} resource; the search moves two at a time")
    gain = np.broadcast_to(gain, (n, city.districts))
    y, active = y.copy(), np.arange(n)
    while len(active):
        now, before = y[active], y[active]
        for pair in combinations(range(D), 2):
            now = _best_pair(city, now, may[active], price[active], gain[active], pair)
        y[active] = now
        active = active[(now != before).any(1)]
    return y


def _best_pair(city: City, y: np.ndarray, may: np.ndarray, price: np.ndarray, gain: np.ndarray, pair) -> np.ndarray:
    """y with the two resources of `pair` where they are best, given the others; the same y where nothing is better."""
    n, K, diagonal = len(y), city.districts, np.arange(city.districts)
    others = np.delete(y, pair, axis=1)
    fresh = gain * (others[..., None] != diagonal).all(1)  # (n, K) what covering k adds to the others
    first, second = (np.where(may[:, d], fresh - price[:, d], -np.inf) for d in pair)
    together = np.zeros((K, K))
    for i, j, limit in city.proximity:
        apart = np.where(city.hops <= limit, 0.0, -np.inf)
        if {i, j} == set(pair):
            together += apart
        elif i in pair or j in pair:
            moved, fixed = (i, j) if i in pair else (j, i)
            (first if moved == pair[0] else second)[:] += apart[y[:, fixed]]
    table = first[:, :, None] + second[:, None, :] + together  # (n, K, K)
    table[:, diagonal, diagonal] -= fresh  # two at the same place cover it once
    table = table.reshape(n, K * K)
    here, best = y[:, pair[0]] * K + y[:, pair[1]], table.argmax(1)
    better = table[np.arange(n), best] > table[np.arange(n), here] + EPSILON
    y = y.copy()
    y[better, pair[0]], y[better, pair[1]] = np.divmod(best[better], K)
    return y


def single_moves(city: City | str | Path, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) allocations → (n,), (n,): the return of staying there for an episode, and of moving one resource first, as
    well as that can be done; −inf where none may move alone."""
    stay, best, _ = _best_single_move(City.load(city), y)
    return stay, best


def climb(city: City | str | Path, y: np.ndarray) -> np.ndarray:
    """(n, D) → (n,): the return of staying where moves of one resource, the best each time, lead until none pays.

    Of the end alone: neither what the ways cost nor the steps that they take are counted.
    """
    city = City.load(city)
    while True:
        stay, best, moved = _best_single_move(city, y)
        pays = best > stay + 1e-9
        if not pays.any():
            return stay
        y = np.where(pays[:, None], moved, y)


def _best_single_move(city: City, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, D) → the return of staying, that of the best move of one resource, −inf without any, and where it leads."""
    chance, gain = _emergencies(city).sum(0), _gain(city)
    stay = chance @ city.uncovered + _covered(city, y) @ (chance * gain)
    best, where = np.full(len(y), -np.inf), y
    for d, k in product(range(city.resources), range(city.districts)):
        moved = y.copy()
        moved[:, d] = k
        allowed = city.may_move[y[:, d], k] & city.proximate(moved) & (y[:, d] != k)
        worth = chance @ city.uncovered + _covered(city, moved) @ (chance * gain) - city.cost[y[:, d], k]
        better = allowed & (worth > best)
        best, where = np.where(better, worth, best), np.where(better[:, None], moved, where)
    return stay, best, where


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


def replan(city: City, path: np.ndarray, rng: np.random.Generator, progress: bool = False) -> np.ndarray:
    """(horizon + 1, n, D) → (n,) return of a walk, then of going where staying would be best given the last emergency.

    That is one step of policy iteration from staying.
    """
    P, gain = city.transition, _gain(city)
    counts = [np.zeros_like(P)]  # [t][e, k]: how often an emergency will be in k in the next t steps, the last in e
    for _ in range(city.horizon):
        counts.append(P + P @ counts[-1][:-1])

    def best(t: int, x: np.ndarray, last: np.ndarray) -> np.ndarray:
        y = improve(city, x, city.may_move[x], city.cost[x], counts[city.horizon - t][last] * gain)
        arrived = (path[t] == path[-1]).all(1, keepdims=True)
        return np.where(arrived, y, path[t + 1])

    return _played(city, path[0], best, rng, "replan" if progress else None)


def dispatch_nearest(city: City, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, D) → (n,) return of sending the resource that is nearest to the last emergency there, as near as it may go.

    In hops, of equally near districts the cheapest to reach; the others stay.
    """
    return _played(city, starts, lambda t, x, last: nearest_goes(city, x, last), rng)


def nearest_goes(city: City, x: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(n, D) allocations, (n,) last emergencies, K for none yet → (n, D), where `dispatch_nearest` goes."""
    each, site = np.arange(len(x)), np.minimum(last, city.districts - 1)
    who = city.hops[x, site[:, None]].argmin(1)
    here = x[each, who]
    may = city.may_move[here].copy()
    for i, j, limit in city.proximity:
        for one, other in ((i, j), (j, i)):
            rows = who == one
            may[rows] &= (city.hops <= limit)[x[rows, other]]
    far = np.where(may, city.hops[site] + city.cost[here] / (1 + city.cost.max()), np.inf)
    y = x.copy()
    y[each, who] = np.where(last < city.districts, far.argmin(1), here)
    return y


def _played(
    city: City,
    starts: np.ndarray,
    choose: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    rng: np.random.Generator,
    progress: str | None = None,
) -> np.ndarray:
    """(n, D) → (n,) return of choose(t, x, last emergency) → y; emergencies are simulated, each reward expected."""
    P, x, total = city.transition, starts, np.zeros(len(starts))
    last = np.full(len(x), city.districts)
    for t in _bar(range(city.horizon), progress or "", progress is not None):
        y = choose(t, x, last)
        reward = P[last] * np.where(_covered(city, y), city.covered, city.uncovered)
        total += reward.sum(1) - city.cost[x, y].sum(1)
        x, last = y, (rng.random((len(x), 1)) >= P[last, :-1].cumsum(1)).sum(1)
    return total


def _bar(steps: Iterable[int], label: str, progress: bool) -> Iterable[int]:
    return tqdm(steps, label, disable=not progress, leave=False, delay=2)


def uniform_valid(city: City, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, D) → (horizon + 1, n, D): the path of uniformly drawn valid actions. ValueError unless `countable`."""
    path = [starts]
    for _ in range(city.horizon):
        path.append(city.draw(city.may_move[path[-1]], rng))
    return np.stack(path)


def _covered(city: City, y: np.ndarray) -> np.ndarray:
    """(…, n, D) → (…, n, K) bool: which districts have a resource."""
    return (y[..., None] == np.arange(city.districts)).any(-2)


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
    rare = sorted((Path(__file__).parents[2] / "data" / "cities").glob("ERA-R*.json"))
    for city in map(City.load, [*(name for name in City.names() if not name.startswith("ERA-v")), *rare]):
        table[city.digest] = {"name": city.name} | references(city)
        if exact.solvable(city):
            table[city.digest] |= exact.optimum(city) | EXACT
        elif city.name == "ERA-Columbus":
            table[city.digest] |= exact.best(city, progress=True) | {"go_and_stay_sem": 0.0}
        print(table[city.digest], flush=True)
    REFERENCES.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
