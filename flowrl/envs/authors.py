"""The paper's own cities: instance files of the authors' public repository (seqssg_v2.json, …), read as a `City`.

A target is our district, the defender's resource our resource, the attacker's choice the next emergency: the softmax
of a score that is the mean of the last two payoffs, permuted by profile. Their code has ε = .05, episodes of 100 steps
and any start allocation; where several hop-shortest paths tie, ours costs the cheapest. No file of theirs is shipped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .city import City, CityError, _integer, _row, read_json

REQUIRED = ("num_tgt", "num_rsc", "payoff_matrix", "adj_matrix", "cost_matrix", "def_constraints")


def read(path: str | Path) -> City:
    """The city that an instance file of the authors' describes; raises CityError: one line with file, key and rule."""
    path = Path(path)
    data = read_json(path)
    _check(data, str(path))
    K, adjacent, cost = data["num_tgt"], np.array(data["adj_matrix"]), np.array(data["cost_matrix"], dtype=float)
    payoff = np.array(data["payoff_matrix"], dtype=float)
    score = payoff[:, 2:].mean(1)
    plans = data.get("att_param", {"dist_payoff": [1], "idx_tgt": [list(range(K))]})
    profiles = [
        {"weight": float(weight), "scores": score[order].tolist()}
        for weight, order in zip(plans["dist_payoff"], plans["idx_tgt"], strict=True)
    ]
    city = {
        "districts": K,
        "resources": data["num_rsc"],
        "edges": [[int(i), int(j), float(cost[i, j])] for i, j in np.argwhere(np.triu(adjacent))],
        "covered": payoff[:, 0].tolist(),
        "uncovered": payoff[:, 1].tolist(),
        "profiles": profiles,
        "epsilon": 0.05,
        "max_hops": data.get("req_hop", 3),
        "proximity": [[*pair, data.get("req_dist", 1)] for pair in data["def_constraints"]],
        "travel_costs": True,
        "horizon": 100,
        "start": "uniform",
    }
    return City.from_dict(city, path.stem, f"{path}: as a city")


def _check(data: Any, source: str) -> None:
    """Every key there, none that would be another game, each value as its rule says."""
    if not isinstance(data, dict):
        raise CityError(f"{source}: a JSON {type(data).__name__}; an instance is an object with {', '.join(REQUIRED)}")
    for key in REQUIRED:
        if key not in data:
            rule = RULES[key][0].format(K="num_tgt", D="num_rsc")
            raise CityError(f"{source}: {key}: missing key, is this an instance of the authors'? Must be {rule}")
    if unknown := sorted(data.keys() - RULES):
        raise CityError(f"{source}: {unknown[0]}: unknown key, it may change the game; known: {', '.join(RULES)}")
    for key, (rule, holds) in RULES.items():
        if key in data and not holds(data[key], data):
            raise CityError(f"{source}: {key}: must be {rule.format(K=data['num_tgt'], D=data['num_rsc'])}")


def _matrix(value: Any, rows: int, columns: int) -> bool:
    """Whether a JSON value is so many rows of so many finite numbers."""
    return isinstance(value, list) and len(value) == rows and all(_row(row, columns) for row in value)


def _payoffs(value: Any, data: dict) -> bool:
    return _matrix(value, data["num_tgt"], 4) and bool((np.abs(np.array(value, dtype=float)) <= 1e9).all())


def _adjacency(value: Any, data: dict) -> bool:
    if not _matrix(value, data["num_tgt"], data["num_tgt"]):
        return False
    adjacent = np.array(value)
    return bool(np.isin(adjacent, (0, 1)).all() and (adjacent == adjacent.T).all() and not adjacent.diagonal().any())


def _cost(value: Any, data: dict) -> bool:
    if not _matrix(value, data["num_tgt"], data["num_tgt"]):
        return False
    cost, adjacent = np.array(value, dtype=float), np.array(data["adj_matrix"])
    if (cost > 1e9).any():
        return False
    elsewhere = np.where(np.eye(len(cost)), 0, -1)
    return bool((cost == cost.T).all() and np.where(adjacent, cost > 0, cost == elsewhere).all())


def _constraints(value: Any, data: dict) -> bool:
    return isinstance(value, list) and all(_pair(pair, data["num_rsc"]) for pair in value)


def _pair(value: Any, D: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_integer(r, 0, D) for r in value) and len({*value}) == 2


def _permutation(value: Any, K: int) -> bool:
    return isinstance(value, list) and all(_integer(k, 0, K) for k in value) and sorted(value) == list(range(K))


def _plans(value: Any, data: dict) -> bool:
    if not isinstance(value, dict) or value.keys() != {"dist_payoff", "idx_tgt"}:
        return False
    weights, orders = value["dist_payoff"], value["idx_tgt"]
    if not isinstance(orders, list) or not all(_permutation(order, data["num_tgt"]) for order in orders):
        return False
    return _row(weights, len(orders), 0) and abs(sum(weights) - 1) < 1e-6


# key → (the rule in words, its check); a rule may rely on those above it
RULES: dict[str, tuple[str, Callable[[Any, dict], bool]]] = {
    "num_tgt": ("an integer ≥ 2", lambda v, data: _integer(v, 2)),
    "num_rsc": ("an integer from 1 to 1,000", lambda v, data: _integer(v, 1, 1001)),
    "payoff_matrix": ("{K} rows of 4 numbers from −10⁹ to 10⁹", _payoffs),
    "adj_matrix": ("{K} rows of {K} zeros and ones, symmetric, 0 on the diagonal", _adjacency),
    "cost_matrix": (
        "{K} rows of {K} numbers, symmetric: above 0, at most 10⁹, on each edge of adj_matrix, −1 off it, 0 on the "
        "diagonal",
        _cost,
    ),
    "def_constraints": ("a list of pairs [r, r'] of resources, 0 ≤ r ≠ r' < {D}", _constraints),
    "req_dist": ("an integer ≥ 0, hops within which pairs must end (default 1)", lambda v, data: _integer(v, 0)),
    "req_hop": ("an integer ≥ 0, hops that a resource may move (default 3)", lambda v, data: _integer(v, 0)),
    "att_param": (
        '{{"dist_payoff": weights ≥ 0 that sum to 1, "idx_tgt": for each of them 0 .. {K} − 1 in some order}}',
        _plans,
    ),
    "attr_for_testing": ("an object: their test starts, not read", lambda v, data: isinstance(v, dict)),
}
