"""Allocations up to exchange of like resources, and value iteration over them: the work behind `exact.optimum`.

Two resources are alike where proximity cannot tell them apart: values are then the same whichever of them is where. So
a state counts how many of each group of like resources are in each district: C(K + n − 1, n) states for n of them
instead of K^n. Moves are taken one resource at a time, in any order; in between, a state says for some of a group
where they were and for the others where they will be:
    max_y [W(y) − c(x, y)] = max_b [−c(a, b) + max over the others' next districts of W({b} ∪ …)], a the last of x.
Multisets are numbered in colexicographic order, k_0 ≤ k_1 ≤ … having number Σ_j C(k_j + j, j + 1): those whose last
district is a stand together, and without it they are the first ones of the next smaller size, in order.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import combinations_with_replacement
from math import comb, prod

import numpy as np
from tqdm import tqdm

from ..envs.city import City

TOLERANCE = 1e-9  # of a return, where all that is left of the horizon is bounded instead of computed
BLOCK = 2**22  # numbers of a table folded at a time
Step = Callable[[np.ndarray, np.ndarray, int, int], None]  # (new, old, a, b): what moving from a to b does to new


class Orbits:
    """A city's allocations up to exchange of like resources: X of them; E = K + 1 last emergencies."""

    def __init__(self, city: City):
        self.city = city
        self.groups = _alike(city)
        self.sizes = [comb(city.districts + len(group) - 1, len(group)) for group in self.groups]
        self.count = prod(self.sizes)
        self.toll = np.where(city.may_move, city.cost, np.inf)  # (K, K)
        self.near = [np.flatnonzero(row) for row in city.may_move]

    @property
    def work(self) -> int:
        """Additions a step: every last emergency, every state on the way, every district that may be next."""
        K, reach, work = self.city.districts, self.city.may_move.mean() * self.city.districts, 0
        for group, size in zip(self.groups, self.sizes, strict=True):
            n = len(group)
            between = sum(comb(K + i - 1, i) * comb(K + n - i - 1, n - i) for i in range(1, n + 1))
            work += between * (self.count // size)
        return int(work * reach * (K + 1))

    @cached_property
    def allocations(self) -> np.ndarray:
        """(X, D): one allocation of each."""
        numbers = np.unravel_index(np.arange(self.count), self.sizes)
        x = np.empty((self.count, self.city.resources), dtype=np.int16)
        for group, number in zip(self.groups, numbers, strict=True):
            x[:, group] = _members(self.city.districts, len(group))[number]
        return x

    def number(self, allocations: np.ndarray) -> np.ndarray:
        """(n, D) districts → (n,) the number of each allocation's state."""
        numbers = [_rank(allocations[:, group]) for group in self.groups]
        return np.ravel_multi_index(numbers, self.sizes)

    @cached_property
    def starts(self) -> np.ndarray:
        return self.number(self.city.starts)

    @cached_property
    def proximate(self) -> np.ndarray:
        return self.city.proximate(self.allocations)

    @cached_property
    def reachable(self) -> np.ndarray:
        """(X,) bool: what an episode can be in, its starts and the proximate ones."""
        reachable = self.proximate.copy()
        reachable[self.starts] = True
        return reachable

    @cached_property
    def served(self) -> np.ndarray:
        """(X, K) bool: which districts have a resource."""
        served = np.zeros((self.count, self.city.districts), dtype=bool)
        for column in self.allocations.T:
            served[np.arange(self.count), column] = True
        return served

    def after_move(self, value: np.ndarray) -> np.ndarray:
        """V(x, e) → W(y, e) = Σ_e' P(e'|e) [r(y, e') + V(y, e')], both (X, E)."""
        after, rows = np.empty_like(value), max(1, BLOCK // value.shape[1])
        for k in range(0, self.count, rows):
            reward = np.where(self.served[k : k + rows], self.city.covered, self.city.uncovered)
            after[k : k + rows] = (reward + value[k : k + rows, :-1]) @ self.city.transition.T
        return after

    def maximum(self, table: np.ndarray) -> np.ndarray:
        """table(y, ·) → max over valid y of table(y, ·) − Σ_d c(x_d, y_d), both (X, n); −∞ where nothing is valid."""

        def best(new: np.ndarray, old: np.ndarray, a: int, b: int) -> None:
            old -= self.toll[a, b]
            np.maximum(new, old, out=new)

        return self._fold(np.where(self.proximate[:, None], table, -np.inf), best, -np.inf)

    def total(self, table: np.ndarray) -> np.ndarray:
        """table(y, ·) → Σ over valid y of table(y, ·), both (X, n)."""

        def add(new: np.ndarray, old: np.ndarray, a: int, b: int) -> None:
            new += old

        return self._fold(np.where(self.proximate[:, None], table, 0.0), add, 0.0)

    def valid(self) -> tuple[np.ndarray, np.ndarray]:
        """(X,), (X,): how many actions are valid, and what all of them cost together."""

        def add(new: np.ndarray, old: np.ndarray, a: int, b: int) -> None:
            new += old
            new[..., 1::2] += self.toll[a, b] * old[..., ::2]

        started = np.stack((self.proximate, np.zeros(self.count)), axis=1)
        count, cost = self._fold(started, add, 0.0, whole=True).T
        return count, cost

    def _fold(self, table: np.ndarray, step: Step, empty: float, whole: bool = False) -> np.ndarray:
        """(X, n) over y → over x, a block of columns at a time, or the whole."""
        columns = table.shape[1] if whole else max(1, BLOCK // self.count)
        for k in range(0, table.shape[1], columns):
            block = table[:, k : k + columns]
            n = block.shape[1]
            for group, size in zip(self.groups, self.sizes, strict=True):
                block = block.reshape(1, size, -1)
                for moved in range(1, len(group) + 1):
                    block = self._move(block, moved, len(group), step, empty)
                block = block.reshape(size, -1, n).swapaxes(0, 1)  # this group behind the others
            table[:, k : k + columns] = block.reshape(self.count, n)
        return table

    def _move(self, old: np.ndarray, moved: int, n: int, step: Step, empty: float) -> np.ndarray:
        """One more of a group's n: (multisets of moved − 1 x, of n − moved + 1 y, …) → (of moved x, n − moved y, …)."""
        K = self.city.districts
        insert = _insert(K, n - moved)
        new = np.full((comb(K + moved - 1, moved), len(insert), old.shape[2]), empty)
        for a in range(K):
            first, many = comb(a + moved - 1, moved), comb(a + moved - 1, moved - 1)  # those whose last district is a
            for b in map(int, self.near[a]):
                step(new[first : first + many], old[:many, insert[:, b]], a, b)
        return new

    def backup(self, value: np.ndarray) -> np.ndarray:
        """V_t → V_{t+1}, both (X, E), 0 where nothing is valid: V_{t+1}(x, e) = max_y [W_t(y, e) − Σ_d c(x_d, y_d)]."""
        best = self.maximum(self.after_move(value))
        best[np.isneginf(best)] = 0.0
        return best

    def uniform_backup(self) -> Callable[[np.ndarray], np.ndarray]:
        """The same for uniformly drawn valid actions: V_{t+1}(x, e) = mean over valid y of W_t(y, e) − costs."""
        count, cost = (column[:, None] for column in self.valid())
        return lambda value: (self.total(self.after_move(value)) - cost) / np.maximum(count, 1)

    def expected(self, backup: Callable[[np.ndarray], np.ndarray], progress: str | None = None) -> float:
        """The return over the horizon, from V_0 = 0 on, averaged over the starts; exact to TOLERANCE.

        Where V_{t+1} − V_t is within [l, h] everywhere, so is every later difference: a backup is monotone and hands
        constants on. Once (T − t)(h − l) is small enough, V_T is known. progress: the label of a progress bar, which
        tells the bounds so far.
        """
        horizon, value = self.city.horizon, np.zeros((self.count, self.city.districts + 1))
        now, low, high, left = 0.0, 0.0, 0.0, horizon
        bar = tqdm(range(1, horizon + 1), progress, disable=progress is None, unit=" steps", leave=False, delay=2)
        for t in bar:
            after = backup(value)
            change = np.subtract(after, value, out=value)
            low, high = (
                reduce(change, where=self.reachable[:, None], initial=sign * np.inf)
                for reduce, sign in ((np.min, 1), (np.max, -1))
            )
            value = after
            now, left = value[self.starts, -1].mean(), horizon - t
            bar.set_postfix_str(f"{now + left * low:.6g} to {now + left * high:.6g}", refresh=False)
            if left * (high - low) <= TOLERANCE:
                break
        bar.close()
        return float(now + left * (low + high) / 2)


def _alike(city: City) -> list[list[int]]:
    """The resources in groups of which any two may be exchanged: proximity stays what it is."""

    def pairs(swap: dict[int, int]) -> set:
        within: dict[frozenset, int] = {}  # the tightest limit counts
        for i, j, limit in city.proximity:
            key = frozenset((swap.get(i, i), swap.get(j, j)))
            within[key] = min(limit, within[key]) if key in within else limit
        return set(within.items())

    groups: list[list[int]] = []
    for r in range(city.resources):
        for group in groups:
            if pairs({group[0]: r, r: group[0]}) == pairs({}):
                group.append(r)
                break
        else:
            groups.append([r])
    return groups


def _members(K: int, n: int) -> np.ndarray:
    """(C(K + n − 1, n), n): the multisets of n out of K, each ascending, by number."""
    if n == 0:
        return np.zeros((1, 0), dtype=np.int16)
    some = np.array(list(combinations_with_replacement(range(K), n)), dtype=np.int16)
    return some[np.lexsort(some.T)]


def _rank(members: np.ndarray) -> np.ndarray:
    """(m, n) districts in any order → (m,) the number of each multiset."""
    ordered = np.sort(members, axis=1).astype(np.int64)
    number = np.zeros(len(ordered), dtype=np.int64)
    for j, k in enumerate(ordered.T):  # C(k + j, j + 1), a factor at a time: every product divides
        term = np.ones_like(number)
        for i in range(j + 1):
            term = term * (k + j - i) // (i + 1)
        number += term
    return number


def _insert(K: int, n: int) -> np.ndarray:
    """(C(K + n − 1, n), K): the number of each multiset of n with one district more."""
    members = _members(K, n)
    more = [_rank(np.column_stack((members, np.full(len(members), k)))) for k in range(K)]
    return np.stack(more, axis=1)
