"""An ERA instance: the city, its emergencies and its constraints (paper section 5; the missing appendix defined anew).

A `City` is what one JSON file says, checked when loaded, plus the tables that simulators and exact solvers derive from
it: hop distances, travel costs, emergency probabilities, start allocations. `generate` makes random ones. NumPy only.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

CITIES = Path(__file__).parent / "cities"
ENUMERABLE = 100_000  # allocations up to which start states are listed and checked one by one
OPTIONAL = ("travel_cost", "map")
SAMPLED_STARTS = 4_096  # start allocations drawn for a larger city


class CityError(ValueError):
    """A city that does not exist or breaks the schema: one line naming file, key, fault and allowed values."""


THEIRS = (  # a city of the paper authors', and where it comes from
    "`python -m flowrl import-city FILE.json --out CITY.json` makes the city of an instance file in the public "
    "repository of the paper's authors, github.com/cameron-chen/flow-iar"
)


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises CityError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = f"; {THEIRS}" if any(re.match("authors(-|$)", part) for part in Path(path).parts) else ""
        raise CityError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise CityError(f"{path}: not JSON: {error}") from None


@dataclass(frozen=True, eq=False)
class City:
    """One ERA instance; the fields are the JSON keys. Rewards and costs share one unit; a hop is one edge."""

    name: str
    districts: int  # K
    resources: int  # D
    edges: list  # [[i, j, cost], …], each undirected edge once
    covered: list  # (K,) reward where an emergency finds a resource
    uncovered: list  # (K,) reward where it finds none (negative)
    profiles: list  # [{"weight": w, "scores": (K,)}, …]: mixture over softmax profiles of the next emergency
    epsilon: float  # probability that the next emergency is uniform instead
    max_hops: int | None  # hops a resource may move in a step; None: no limit
    proximity: list  # [[r, r', hops], …]: pairs that must end a step within so many hops
    travel_costs: bool  # whether moving costs
    horizon: int  # steps of an episode
    start: str  # "proximate": uniform over allocations that satisfy proximity; "uniform": over all
    travel_cost: list | None = None  # (K, K); default: path cost along a hop-shortest path, cheapest of those
    map: dict | None = None  # how it is drawn and where it is from; no part of what it is, nor of `digest`

    @staticmethod
    def names() -> list[str]:
        """The shipped instances: ERA-v1, ERA-v1-tight, ERA-v1-free, …; the large ones: ERA-L-4x16, …; ERA-Columbus."""
        small, large, real = (sorted(path.stem for path in CITIES.glob(f"ERA-{kind}*.json")) for kind in "vLC")
        return [f"{name}{variant}" for name in small for variant in ("", "-tight", "-free")] + large + real

    @classmethod
    def load(cls, name_or_path: "str | Path | City") -> "City":
        """A shipped city by name, or any city by the path of its JSON file; raises CityError."""
        if isinstance(name_or_path, City):
            return name_or_path
        if (name := str(name_or_path)) in cls.names():
            base, variant = (name[:6], name[7:]) if name.startswith("ERA-v") else (name, "")
            city = cls._read(CITIES / f"{base}.json")
            return getattr(city, variant)() if variant else city
        path = Path(name_or_path)
        if path.suffix != ".json":
            raise CityError(f"unknown environment {name!r}: choose one of {', '.join(cls.names())}, or a .json file")
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> "City":
        return cls.from_dict(read_json(path), path.stem, str(path))

    @classmethod
    def from_dict(cls, data: Any, name: str, source: str | None = None) -> "City":
        """The checked city that `data` (the JSON object) describes; raises CityError, prefixed by `source`."""
        source = source or name
        _check_keys(data, source)
        city = cls(name=name, **data)
        _check_structure(city, source)
        return city

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: every field but the name; `travel_cost` and `map` only where they are given."""
        data = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}
        return {key: value for key, value in data.items() if value is not None or key not in OPTIONAL}

    def to_json(self, path: str | Path) -> None:
        """Write the instance, one key a line."""
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.to_dict().items())
        Path(path).write_text("{\n  " + ",\n  ".join(lines) + "\n}\n", encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON: the same for the same city, whatever its name or file."""
        told = {key: value for key, value in self.to_dict().items() if key != "map"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def tight(self) -> "City":
        """The same city under the paper's own words: move to a neighbour or stay, every pair within 2 hops."""
        pairs = [[i, j, 2] for i in range(self.resources) for j in range(i + 1, self.resources)]
        return City.from_dict(self.to_dict() | {"max_hops": 1, "proximity": pairs}, f"{self.name}-tight")

    def free(self) -> "City":
        """The same city without constraints or travel costs."""
        unbound = {"max_hops": None, "proximity": [], "travel_costs": False}
        return City.from_dict(self.to_dict() | unbound, f"{self.name}-free")

    @property
    def constrained(self) -> bool:
        """Whether any action is refused anywhere."""
        return bool(self.proximity) or not self.may_move.all()

    @property
    def allocations(self) -> int:
        """K^D, which is also the number of actions."""
        return self.districts**self.resources

    @cached_property
    def adjacency(self) -> np.ndarray:
        """(K, K) bool: whether an edge joins two districts."""
        return np.isfinite(self._edge_cost)

    @cached_property
    def _edge_cost(self) -> np.ndarray:
        cost = np.full((self.districts, self.districts), np.inf)
        for i, j, price in self.edges:
            cost[i, j] = cost[j, i] = price
        return cost

    @cached_property
    def _shortest(self) -> tuple[np.ndarray, np.ndarray]:
        """Hops (K, K) int64, −1 where there is no path, and the cheapest cost (K, K) among the hop-shortest paths."""
        hops = np.where(np.eye(self.districts, dtype=bool), 0, -1)
        cost = np.where(hops == 0, 0.0, np.inf)
        to, at = np.nonzero(np.isfinite(self._edge_cost))  # each road both ways, by where it leads
        ends, first = np.unique(to, return_index=True)
        for distance in range(1, self.districts):
            frontier = np.where(hops == distance - 1, cost, np.inf)
            reached = np.full_like(cost, np.inf)
            reached[:, ends] = np.minimum.reduceat(frontier[:, at] + self._edge_cost[to, at], first, axis=1)
            new = (hops < 0) & np.isfinite(reached)
            if not new.any():
                break
            hops[new], cost[new] = distance, reached[new]
        return hops, cost

    @property
    def hops(self) -> np.ndarray:
        """(K, K) int64: edges on a shortest path."""
        return self._shortest[0]

    @cached_property
    def cost(self) -> np.ndarray:
        """(K, K) float64: what moving a resource from i to j costs."""
        if not self.travel_costs:
            return np.zeros((self.districts, self.districts))
        return self._shortest[1] if self.travel_cost is None else np.array(self.travel_cost, dtype=np.float64)

    @cached_property
    def may_move(self) -> np.ndarray:
        """(K, K) bool: whether a resource may go from i to j in one step."""
        return np.full_like(self.hops, True, dtype=bool) if self.max_hops is None else self.hops <= self.max_hops

    @cached_property
    def transition(self) -> np.ndarray:
        """(K + 1, K) float64: P(next emergency | last one); row K: there has been none yet."""
        # P(e'|e) = ε U(e') + (1 − ε) Σ_p w_p softmax(scores_p)(e'), each over the districts other than e
        elsewhere = np.vstack([~np.eye(self.districts, dtype=bool), np.ones((1, self.districts), dtype=bool)])
        rows = self.epsilon * elsewhere / elsewhere.sum(1, keepdims=True)
        for profile in self.profiles:
            scores = np.where(elsewhere, profile["scores"], -np.inf)
            odds = np.exp(scores - scores.max(1, keepdims=True))
            rows += (1 - self.epsilon) * profile["weight"] * odds / odds.sum(1, keepdims=True)
        return rows / rows.sum(1, keepdims=True)

    def proximate(self, allocations: np.ndarray) -> np.ndarray:
        """(…, D) districts → (…) bool: whether every pair in `proximity` is within its distance."""
        within = np.ones(allocations.shape[:-1], dtype=bool)
        for i, j, limit in self.proximity:
            within &= self.hops[allocations[..., i], allocations[..., j]] <= limit
        return within

    @cached_property
    def starts(self) -> np.ndarray:
        """(n, D) int64: the start allocations, equally likely; a fixed sample of them where K^D > ENUMERABLE."""
        if self.allocations <= ENUMERABLE:
            everywhere = np.indices((self.districts,) * self.resources).reshape(self.resources, -1).T
            return everywhere if self.start == "uniform" else everywhere[self.proximate(everywhere)]
        rng = np.random.default_rng(0)
        if self.start == "uniform":
            return rng.integers(self.districts, size=(SAMPLED_STARTS, self.resources))
        if not self.countable:
            return self._gibbs(rng)
        return self.draw(np.ones((SAMPLED_STARTS, self.resources, self.districts), dtype=bool), rng)

    @property
    def countable(self) -> bool:
        """Whether proximity ties each resource to at most one of a lower number (a chain, a tree, free resources).

        The valid actions can then be counted, and drawn from, one resource at a time, however many there are.
        """
        later = [max(pair[:2]) for pair in self.proximity]
        return len(later) == len(set(later))

    def valid_counts(self, allocations: np.ndarray) -> np.ndarray:
        """(n, D) → (n,) float64: how many actions are valid in each allocation; exact below 2^53.

        ValueError unless `countable`.
        """
        ways = self._ways(self.may_move[allocations])
        tied = {max(pair[:2]) for pair in self.proximity}
        return np.prod([ways[d].sum(1) for d in range(self.resources) if d not in tied], axis=0)

    def draw(self, may: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """may: (n, D, K) bool, where a resource may go → (n, D) int64: exactly uniform over the proximate allocations.

        With `may_move[allocations]`: uniform over the valid actions. ValueError unless `countable`.
        """
        ways, drawn = self._ways(may), np.empty(may.shape[:2], dtype=np.int64)
        for d in range(self.resources):
            for i, j, limit in self.proximity:
                if d == max(i, j):
                    ways[d] *= (self.hops <= limit)[drawn[:, min(i, j)]]
            cumulative = ways[d].cumsum(1)  # P(y_d | y_0 … y_{d−1}) by inverse CDF
            drawn[:, d] = (rng.random((len(drawn), 1)) * cumulative[:, -1:] >= cumulative).sum(1)
        return drawn

    def _ways(self, may: np.ndarray) -> np.ndarray:
        """may: (n, D, K) → (D, n, K): in how many ways d, if it goes to k, and those tied to it later can go."""
        if not self.countable:
            raise ValueError(
                f"{self.name}: proximity ties a resource to several of a lower number; "
                "valid actions are counted where it ties each to at most one"
            )
        ways = may.transpose(1, 0, 2).astype(np.float64, order="C")
        for i, j, limit in sorted(self.proximity, key=lambda pair: -max(pair[:2])):  # a tree, from its leaves
            ways[min(i, j)] *= ways[max(i, j)] @ (self.hops <= limit)
        return ways

    def _gibbs(self, rng: np.random.Generator, sweeps: int = 50) -> np.ndarray:
        """Proximate allocations by Gibbs sampling: each resource redrawn uniformly where the others let it be."""
        chains = np.repeat(rng.integers(self.districts, size=(SAMPLED_STARTS, 1)), self.resources, axis=1)
        for _ in range(sweeps):
            for d in range(self.resources):
                allowed = np.ones((SAMPLED_STARTS, self.districts), dtype=bool)
                for i, j, limit in self.proximity:
                    if d in (i, j):
                        allowed &= self.hops[chains[:, i + j - d]] <= limit
                chains[:, d] = (allowed * rng.random(allowed.shape)).argmax(axis=1)
        return chains


def generate(
    districts: int,
    resources: int = 3,
    seed: int = 0,
    max_hops: int | None = 3,
    proximity: Sequence[Sequence[int]] = ((0, 1, 2),),
    name: str | None = None,
) -> City:
    """A random city: a spanning tree and more edges, 1.5 K in all at most, everything else as in the shipped ones.

    Severities are within 0.85..1.25, edge costs within 0.02..0.2; three profiles of weights 0.6, 0.3, 0.1 are
    permutations of the same scores N(0, ½²); ε = 0.05, 100 steps. The same arguments give the same city. Raises
    CityError.

    >>> city = generate(8, resources=2, seed=3)
    >>> city.allocations, city.digest == generate(8, resources=2, seed=3).digest
    (64, True)
    """
    rng = np.random.default_rng(seed)
    pairs = [(int(rng.integers(j)), j) for j in range(1, districts)]
    spare = [(i, j) for j in range(districts) for i in range(j) if (i, j) not in pairs]
    extra = min(int(rng.integers(districts // 2 + 2)), len(spare))
    pairs += [spare[k] for k in rng.choice(len(spare), size=extra, replace=False)]
    severity = rng.uniform(0.85, 1.25, districts).round(4)
    scores = rng.normal(0, 0.5, districts).round(4)
    return City.from_dict(
        {
            "districts": districts,
            "resources": resources,
            "edges": [[i, j, round(float(rng.uniform(0.02, 0.2)), 4)] for i, j in sorted(pairs)],
            "covered": severity.tolist(),
            "uncovered": (-severity).tolist(),
            "profiles": [{"weight": weight, "scores": rng.permutation(scores).tolist()} for weight in (0.6, 0.3, 0.1)],
            "epsilon": 0.05,
            "max_hops": max_hops,
            "proximity": [list(pair) for pair in proximity],
            "travel_costs": True,
            "horizon": 100,
            "start": "proximate",
        },
        name or f"generated-{districts}x{resources}-{seed}",
    )


def _integer(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _row(value: Any, length: int, low: float = -math.inf) -> bool:
    return isinstance(value, list) and len(value) == length and all(_number(v, low) for v in value)


def _edge(value: Any, K: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_integer(v, 0, K) for v in value[:2])
        and value[0] != value[1]
        and _number(value[2], 0)
    )


def _pair(value: Any, D: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_integer(v, 0, D) for v in value[:2])
        and value[0] != value[1]
        and _integer(value[2], 0)
    )


def _profile(value: Any, K: int) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"weight", "scores"}
        and _number(value["weight"], 0)
        and _row(value["scores"], K)
    )


def _drawn(key: str, value: Any, K: int) -> bool:
    """Whether what a map says under a key is what pictures can read."""
    if key == "source":
        return isinstance(value, str)
    if key == "labels":
        return isinstance(value, list) and len(value) == K and all(isinstance(label, str) for label in value)
    if key == "places":
        return isinstance(value, list) and len(value) == K and all(_row(place, 2) for place in value)
    if key == "outlines":
        outlines = isinstance(value, list) and len(value) == K and all(isinstance(line, list) for line in value)
        return outlines and all(len(line) > 2 and all(_row(point, 2) for point in line) for line in value)
    return False


# key → (what is allowed, check of the value, check of each item where the value is a list of items); K, D as in City
_Check = Callable[[Any, int, int], bool]
SCHEMA: dict[str, tuple[str, _Check, _Check | None]] = {
    "districts": ("an integer ≥ 2", lambda v, K, D: _integer(v, 2), None),
    "resources": ("an integer ≥ 1", lambda v, K, D: _integer(v, 1), None),
    "edges": (
        "a list of [i, j, cost], 0 ≤ i ≠ j < {K}, finite cost ≥ 0, each undirected edge once",
        lambda v, K, D: isinstance(v, list),
        lambda v, K, D: _edge(v, K),
    ),
    "covered": ("a list of {K} finite numbers", lambda v, K, D: _row(v, K), None),
    "uncovered": ("a list of {K} finite numbers", lambda v, K, D: _row(v, K), None),
    "profiles": (
        'a list of {{"weight": number ≥ 0, "scores": {K} finite numbers}}, weights summing to 1',
        lambda v, K, D: isinstance(v, list) and bool(v),
        lambda v, K, D: _profile(v, K),
    ),
    "epsilon": ("a number within 0..1", lambda v, K, D: _number(v, 0, 1), None),
    "max_hops": ("an integer ≥ 0, or null: no limit", lambda v, K, D: v is None or _integer(v, 0), None),
    "proximity": (
        "a list of [r, r', hops], 0 ≤ r ≠ r' < {D}, integer hops ≥ 0",
        lambda v, K, D: isinstance(v, list),
        lambda v, K, D: _pair(v, D),
    ),
    "travel_costs": ("true or false", lambda v, K, D: isinstance(v, bool), None),
    "horizon": ("an integer ≥ 1", lambda v, K, D: _integer(v, 1), None),
    "start": ('"proximate" or "uniform"', lambda v, K, D: v in ("proximate", "uniform"), None),
    "map": (
        'null or an object, of which pictures read "places" ({K} pairs [x, y]), "outlines" ({K} lists of pairs), '
        '"labels" ({K} texts) and "source" (a text)',
        lambda v, K, D: v is None or isinstance(v, dict) and all(_drawn(key, v[key], K) for key in v),
        None,
    ),
    "travel_cost": (
        "null or {K} rows of {K} finite costs ≥ 0, 0 on the diagonal",
        lambda v, K, D: v is None or isinstance(v, list) and len(v) == K,
        lambda v, K, D: _row(v, K, 0),
    ),
}


def _fault(city: City | dict, source: str, key: str, fault: str) -> CityError:
    K, D = (city["districts"], city["resources"]) if isinstance(city, dict) else (city.districts, city.resources)
    return CityError(f"{source}: {key}: {fault}; allowed: {SCHEMA[key][0].format(K=K, D=D)}")


def _check_keys(data: Any, source: str) -> None:
    """Every key there, none unknown, each value of the right type, length and range."""
    if not isinstance(data, dict):
        raise CityError(f"{source}: a JSON {type(data).__name__}; allowed: an object with the keys {', '.join(SCHEMA)}")
    if unknown := sorted(data.keys() - SCHEMA):
        raise CityError(f"{source}: {unknown[0]}: unknown key; allowed: {', '.join(SCHEMA)}")
    if missing := [key for key in SCHEMA if key not in data and key not in OPTIONAL]:
        raise CityError(f"{source}: {missing[0]}: missing key; allowed: {SCHEMA[missing[0]][0].format(K='K', D='D')}")
    for key, (_, accepts, accepts_item) in SCHEMA.items():
        value, K, D = data.get(key), data["districts"], data["resources"]
        if not accepts(value, K, D):
            raise _fault(data, source, key, f"got {_brief(value)}")
        if accepts_item is None or value is None:
            continue
        for item in value:
            if not accepts_item(item, K, D):
                raise _fault(data, source, key, f"got the item {_brief(item)}")


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…" + (f" ({len(value)} items)" if isinstance(value, list) else "")


def _check_structure(city: City, source: str) -> None:
    """What no single value shows: repeated edges, connection, weights, and a valid action in every reachable state."""
    listed: set[frozenset[int]] = set()
    for edge in city.edges:
        if (pair := frozenset(edge[:2])) in listed:
            raise _fault(city, source, "edges", f"repeated edge {_brief(edge)}")
        listed.add(pair)
    if (city.hops < 0).any():
        cut_off = int(np.argmax(city.hops[0] < 0))
        raise _fault(city, source, "edges", f"not connected: no path from district 0 to {cut_off}")
    if abs((total := sum(profile["weight"] for profile in city.profiles)) - 1) > 1e-6:
        raise _fault(city, source, "profiles", f"weights sum to {total:g}")
    if city.travel_cost is not None and np.diagonal(city.travel_cost).any():
        raise _fault(city, source, "travel_cost", "staying put costs something")
    if city.start == "uniform":
        _check_first_move(city, source)


def _check_first_move(city: City, source: str) -> None:
    """Whether the first move can restore proximity from everywhere; resources that no pair ties are checked apart.

    Once it holds, and from a proximate start, staying put is always valid; a proximate allocation always exists (all
    in one district). So this is the only way to a reachable state without a valid action.
    """
    if city.may_move.all():
        return
    groups = [{d} for d in range(city.resources)]
    for pair in city.proximity:
        tied = [group for group in groups if group & set(pair[:2])]
        groups = [group for group in groups if group not in tied] + [set().union(*tied)]
    for group in map(sorted, groups):
        if (size := city.districts ** len(group)) > ENUMERABLE:
            raise _fault(
                city,
                source,
                "start",
                f'with "uniform", a valid first move cannot be checked for {size} '
                f"allocations of the resources that proximity ties together (limit {ENUMERABLE})",
            )
        everywhere = np.zeros((*[city.districts] * len(group), city.resources), dtype=np.int64)
        everywhere[..., group] = np.moveaxis(np.indices(everywhere.shape[:-1]), 0, -1)  # the others: in district 0
        moves = city.proximate(everywhere).astype(np.float64)
        for _ in group:  # sum over each resource's next district: how many valid moves each allocation has
            moves = np.tensordot(moves, city.may_move.astype(np.float64), axes=(0, 1))
        if not moves.all():
            stranded = np.unravel_index(int(moves.argmin()), moves.shape)
            raise _fault(
                city,
                source,
                "start",
                'with "uniform", no valid first move where '
                + ", ".join(f"resource {r} is in district {x}" for r, x in zip(group, stranded, strict=True)),
            )
