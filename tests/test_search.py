"""References of large cities: against exact values, enumeration and the simulator."""

import itertools
import json

import numpy as np
import pytest
import torch

from flowrl.envs.city import City, generate
from flowrl.envs.era import BatchedERA
from flowrl.study.records import ROOT
from flowrl.truth import exact, search

LARGE = ("ERA-L-4x16", "ERA-L-6x10", "ERA-L-8x32", "ERA-Columbus")
KEYS = {"optimal", "go_and_stay", "go_and_stay_sem", "uniform_valid", "uniform_valid_sem", "valid_fraction"}


@pytest.fixture(scope="module")
def crowd():
    """5^4 actions: a tree 0 - 1, 1 - 2, and resource 3 free."""
    return generate(5, 4, seed=3, max_hops=2, proximity=[(1, 0, 1), (1, 2, 2)])


def everything(city):
    return np.array(list(itertools.product(range(city.districts), repeat=city.resources)))


def rng(seed=0):
    return np.random.default_rng(seed)


def replayed(city, path, episodes=1):
    """The returns of a path (T + 1, n, D) in the simulator, (n · episodes,); every move must be valid."""
    path = np.repeat(path, episodes, axis=1)
    env = BatchedERA(city, path.shape[1], generator=torch.Generator().manual_seed(0))
    env.allocation = torch.as_tensor(path[0])
    total = sum(env.step(torch.as_tensor(y)).reward.double() for y in path[1:])
    assert env.violations == 0
    return total.numpy()


def test_single_moves_against_every_one_of_them(crowd):
    """Every start, every district for every resource: allowed by hops and pairs themselves, worth its exact return."""
    y, worth = crowd.starts, {}
    stay, best = search.single_moves(crowd, y)
    path = np.stack([y] * (crowd.horizon + 1))
    np.testing.assert_allclose(stay, search.expected_return(crowd, path))
    for n, d, k in itertools.product(range(len(y)), range(crowd.resources), range(crowd.districts)):
        to = y[n].copy()
        to[d] = k
        near = all(crowd.hops[to[i], to[j]] <= limit for i, j, limit in crowd.proximity)
        if k != y[n, d] and crowd.hops[y[n, d], k] <= crowd.max_hops and near:
            worth.setdefault(n, []).append(
                search.expected_return(crowd, np.stack([y[n : n + 1]] + [to[None]] * 100))[0]
            )
    np.testing.assert_allclose(best, [max(worth.get(n, [-np.inf])) for n in range(len(y))])
    assert (best > stay).any() and (best < stay).any()


def test_climbing_ends_where_no_single_move_pays(crowd):
    """Each end is worth what one of the allocations is that no move of one resource improves; those stay."""
    stay, best = search.single_moves(crowd, crowd.starts)
    top, stuck = search.climb(crowd, crowd.starts), best <= stay + 1e-9
    assert (top[~stuck] > stay[~stuck]).all() and 0 < stuck.sum() < len(stuck)
    np.testing.assert_allclose(top[stuck], stay[stuck])
    assert np.isclose(top[:, None], stay[stuck]).any(1).all()


@pytest.mark.parametrize("version", range(1, 6))
def test_the_search_finds_the_exact_go_and_stay_and_the_random_return(version):
    city = City.load(f"ERA-v{version}")
    found, truth = search.references(city, starts=len(city.starts)), exact.optimum(city)
    assert found["go_and_stay"] == pytest.approx(truth["go_and_stay"], abs=1e-6) and found["go_and_stay_sem"] == 0
    assert abs(found["uniform_valid"] - truth["uniform_valid"]) < 4 * found["uniform_valid_sem"]  # z < 4
    assert found["valid_fraction"] == pytest.approx(truth["valid_fraction"], abs=1e-12)
    assert truth["go_and_stay"] - 1e-6 <= found["walk_and_stay"]
    for name in ("walk_and_stay", "replan"):
        assert found[name] <= truth["optimal"] + 4 * found[f"{name}_sem"]
    assert found["optimal"] is None and found.keys() >= KEYS


@pytest.mark.parametrize("version", range(1, 6))
def test_no_blind_policy_beats_go_and_stay_where_a_move_reaches_far_and_one_does_in_the_tight_cities(version):
    """The best open loop of each start, by dynamic programming: the emergencies do not depend on allocations."""

    def blind(name):
        city = City.load(name)
        assert len(city.starts) == city.proximate(everything(city)).sum()  # every allocation where one may be
        x, y, e, chances = city.starts[:, None], city.starts, np.eye(city.districts + 1)[-1], []
        toll = np.where(city.may_move[x, y].all(2), city.cost[x, y].sum(2), np.inf)
        covered, value = (y[:, :, None] == np.arange(city.districts)).any(1), np.zeros(len(y))
        for _ in range(city.horizon):
            chances.append(e @ city.transition)
            e = np.append(chances[-1], 0)
        for chance in reversed(chances):
            value = (np.where(covered, city.covered, city.uncovered) @ chance + value - toll).max(1)
        return value.mean()

    far, tight = (exact.optimum(f"ERA-v{version}{kind}") for kind in ("", "-tight"))
    assert -1e-9 < blind(f"ERA-v{version}") - far["go_and_stay"] < 0.005 * (far["optimal"] - far["go_and_stay"])
    assert blind(f"ERA-v{version}-tight") - tight["go_and_stay"] > 0.1 * (tight["optimal"] - tight["go_and_stay"])


def test_sampled_starts_agree_with_all_of_them():
    city = City.load("ERA-v4")
    found = search.references(city, starts=100, seed=2)
    assert 0 < abs(found["go_and_stay"] - exact.optimum(city)["go_and_stay"]) < 4 * found["go_and_stay_sem"]  # z < 4


def test_replanning_reads_the_emergencies():
    city = City.load("ERA-v4")
    found = search.references(city)
    assert found["replan"] > found["walk_and_stay"] + 4 * found["replan_sem"]


def test_the_uniform_path_is_uniform_and_its_return_exact():
    city = City.load("ERA-v1")
    paths = search.uniform_valid(city, city.starts.repeat(20, axis=0), rng(1))
    returns = search.expected_return(city, paths)
    z = (returns.mean() - exact.optimum(city)["uniform_valid"]) / (returns.std() / len(returns) ** 0.5)
    assert abs(z) < 4
    simulated = replayed(city, paths)
    assert abs((simulated - returns).mean()) < 4 * (simulated - returns).std() / len(returns) ** 0.5  # z < 4


def test_expected_return_of_one_path_by_simulation(crowd):
    path = search.uniform_valid(crowd, crowd.starts[:1], rng())
    returns = replayed(crowd, path, episodes=4000)
    assert abs(returns.mean() - search.expected_return(crowd, path)[0]) < 4 * returns.std() / 4000**0.5  # z < 4


def test_the_nearest_goes_as_near_as_it_may_and_the_others_stay(crowd):
    """Every start, every last emergency: against all valid moves of the resource that is nearest."""
    K, none_yet = crowd.districts, np.full(len(crowd.starts), crowd.districts)
    assert (search.nearest_goes(crowd, crowd.starts, none_yet) == crowd.starts).all()
    for e in range(K):
        found = search.nearest_goes(crowd, crowd.starts, np.full(len(crowd.starts), e))
        for x, y in zip(crowd.starts, found, strict=True):
            who = int(np.argmin([crowd.hops[place, e] for place in x]))
            moves = [np.where(np.arange(4) == who, k, x) for k in range(K)]
            valid = [m for m in moves if crowd.proximate(m) and crowd.hops[x[who], m[who]] <= crowd.max_hops]
            best = min(valid, key=lambda m, who=who, x=x, e=e: (crowd.hops[m[who], e], crowd.cost[x[who], m[who]]))
            assert (y == best).all()


def test_what_dispatching_the_nearest_earns_by_simulation(crowd):
    """The expected rewards of its own simulation against those of the simulator: z < 4."""
    starts = crowd.starts[:1].repeat(4000, axis=0)
    expected = search.dispatch_nearest(crowd, starts, rng())
    env = BatchedERA(crowd, 4000, generator=torch.Generator().manual_seed(0))
    env.allocation, total = torch.as_tensor(starts), 0.0
    for _ in range(crowd.horizon):
        y = search.nearest_goes(crowd, env.allocation.numpy(), env.emergency.numpy())
        total = total + env.step(torch.as_tensor(y)).reward.double().numpy()
    assert env.violations == 0
    error = np.hypot(expected.std(), total.std()) / 4000**0.5
    assert abs(expected.mean() - total.mean()) < 4 * error


@pytest.mark.parametrize("anywhere", [False, True])
def test_go_and_stay_by_enumeration(crowd, anywhere):
    starts, actions = crowd.starts[::7], everything(crowd)
    found = search.go_and_stay(crowd, starts, rng(), anywhere)
    within = crowd.may_move[starts[:, None], actions].all(2) | anywhere
    chance = [crowd.transition[-1]]
    for _ in range(crowd.horizon - 1):
        chance.append(chance[-1] @ crowd.transition[:-1])
    served = (actions[:, :, None] == np.arange(crowd.districts)).any(1)
    worth = np.where(served, crowd.covered, crowd.uncovered) @ np.sum(chance, axis=0)
    value = np.where(within & crowd.proximate(actions), worth - crowd.cost[starts[:, None], actions].sum(2), -np.inf)
    flat = np.ravel_multi_index(found.T, (crowd.districts,) * crowd.resources)
    np.testing.assert_allclose(value[np.arange(len(starts)), flat], value.max(1), atol=1e-9)


def test_a_walk_goes_by_valid_moves_ever_nearer_and_arrives():
    city = generate(10, 4, seed=1, max_hops=1, proximity=[(0, 1, 2), (1, 2, 2), (2, 3, 2)])
    starts = city.starts[rng(0).choice(len(city.starts), 50)]
    target = search.go_and_stay(city, starts, rng(), anywhere=True)
    path = search.walk(city, starts, target)
    replayed(city, path)
    left = city.hops[path, target].sum(2)
    assert (np.diff(left, axis=0) <= 0).all() and left[0].max() > 4 and (left[-1] == 0).mean() > 0.9
    assert path.shape == (101, 50, 4)


def test_the_large_cities_have_a_reference_on_file():
    kept = json.loads(search.REFERENCES.read_text())
    for name in LARGE:
        city = City.load(name)
        found = search.reference(city)
        assert kept[city.digest] == found | {"name": name} and found.keys() >= KEYS
        assert found["valid_fraction"] == search.valid_fraction(city) < 0.01
        assert found["uniform_valid"] < found["go_and_stay"] < found["walk_and_stay"]
    rare = {f"ERA-R{k}" for k in (3, 5, 7, 9)}
    assert {entry["name"] for entry in kept.values()} == {*LARGE} | rare
    for name in rare:
        found = search.reference(ROOT / f"data/cities/{name}.json")
        assert found["uniform_valid"] < found["go_and_stay"] < found["walk_and_stay"]


@pytest.mark.parametrize(("name", "starts"), [("ERA-L-4x16", 64), ("ERA-L-6x10", 32), ("ERA-L-8x32", 16)])
def test_a_part_of_the_file_computed_again(name, starts):
    """Other starts and draws: z < 4, a little room for the search itself."""
    city, kept = City.load(name), search.reference(name)
    some = city.starts[rng(5).choice(len(city.starts), starts, replace=False)]
    stay = search.go_and_stay(city, some, rng(6))
    paths = {
        "go_and_stay": np.stack([some] + [stay] * city.horizon),
        "uniform_valid": search.uniform_valid(city, some, rng(7)),
    }
    for key, path in paths.items():
        returns = search.expected_return(city, path)
        error = np.hypot(returns.std(ddof=1) / starts**0.5, kept[f"{key}_sem"])
        assert abs(returns.mean() - kept[key]) < 4 * error + 0.05
    assert np.isfinite(replayed(city, paths["go_and_stay"])).all()


def test_the_reference_is_exact_where_it_can_be():
    small = generate(6, 2, seed=1)
    found = search.reference(small)
    assert found == exact.optimum(small) | {"go_and_stay_sem": 0.0, "uniform_valid_sem": 0.0}
    assert search.reference("ERA-L-4x16")["optimal"] > search.reference("ERA-L-4x16")["walk_and_stay"]


def test_cities_that_allow_no_reference():
    ring = generate(10, 6, seed=0, proximity=[(0, 2, 9), (1, 2, 9)])
    assert search.reference(ring) is None
    with pytest.raises(ValueError, match="ties a resource to several of a lower number"):
        search.references(ring)
    uniform = City.from_dict(generate(20, 6, max_hops=None, proximity=()).to_dict() | {"start": "uniform"}, "all over")
    assert search.reference(uniform) is None
    with pytest.raises(ValueError, match="all over starts uniform; a search is for cities that start proximate"):
        search.references(uniform)
    with pytest.raises(ValueError, match="has 1 resource"):
        search.references(generate(5, 1, proximity=()))
