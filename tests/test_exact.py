"""Exact values against plain recursion over all futures, and against simulation."""

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
import torch

from flowrl.envs.city import City, generate
from flowrl.envs.era import BatchedERA
from flowrl.envs.partial import BatchedPartial, Game, PartialEnv
from flowrl.policies import to_digits, to_flat
from flowrl.truth import exact
from flowrl.truth.orbits import Orbits

TRIANGLE = {
    "districts": 3,
    "resources": 2,
    "edges": [[0, 1, 0.3], [1, 2, 0.05]],
    "covered": [1, 2, 0.5],
    "uncovered": [-1, 0, -3],
    "profiles": [{"weight": 0.7, "scores": [0, 0.5, 1]}, {"weight": 0.3, "scores": [1, 0, -1]}],
    "epsilon": 0.1,
    "max_hops": 1,
    "proximity": [[0, 1, 1]],
    "travel_costs": True,
    "horizon": 4,
    "start": "proximate",
}
TINY = {
    "proximate": TRIANGLE,
    "uniform": TRIANGLE | {"start": "uniform"},
    "free": TRIANGLE | {"max_hops": None, "proximity": [], "travel_costs": False},
    "dear": TRIANGLE | {"travel_cost": [[0, 1, 0.2], [0.1, 0, 2], [0.4, 0.3, 0]]},
    "crowd": TRIANGLE | {"resources": 3, "proximity": [[0, 1, 1], [2, 0, 0]], "horizon": 3},
    "alike": TRIANGLE | {"resources": 3, "proximity": [[0, 1, 1], [2, 0, 1], [1, 2, 1], [1, 0, 2]], "horizon": 3},
}


@pytest.fixture(params=TINY)
def tiny(request):
    return City.from_dict(TINY[request.param], request.param)


class Brute:
    """One tiny city by definition: plain Python, all actions and all emergencies at every step."""

    def __init__(self, city):
        self.city, K = city, city.districts
        self.places = list(product(range(K), repeat=city.resources))
        hops = [[abs(i - j) for j in range(K)] for i in range(K)]  # all tiny cities are the path 0 - 1 - 2
        near = {y for y in self.places if all(hops[y[i]][y[j]] <= limit for i, j, limit in city.proximity)}
        limit = K if city.max_hops is None else city.max_hops
        self.valid = {
            x: [y for y in self.places if y in near and all(hops[i][j] <= limit for i, j in zip(x, y, strict=True))]
            for x in self.places
        }
        self.starts = self.places if city.start == "uniform" else sorted(near)

    def price(self, x, y):
        if not self.city.travel_costs:
            return 0.0
        steps = self.city.travel_cost or [[0, 0.3, 0.35], [0.3, 0, 0.05], [0.35, 0.05, 0]]
        return sum(steps[i][j] for i, j in zip(x, y, strict=True))

    def emergencies(self, e):
        """(probability, district) after e."""
        K, others = self.city.districts, [k for k in range(self.city.districts) if k != e]
        chance = dict.fromkeys(others, self.city.epsilon / len(others))
        for profile in self.city.profiles:
            odds = np.exp([profile["scores"][k] for k in others])
            for k, share in zip(others, odds / odds.sum(), strict=True):
                chance[k] += (1 - self.city.epsilon) * profile["weight"] * share
        assert sum(chance.values()) == pytest.approx(1) and len(chance) == K - (e < K)
        return [(p, k) for k, p in chance.items()]

    def value(self, combine, horizon=None):
        """Expected return where combine(t, x, e, {y: value of moving to y}) says what a state is worth."""
        city = self.city

        @cache
        def at(t, x, e):
            if t == (horizon or city.horizon):
                return 0.0
            moves = {
                y: -self.price(x, y)
                + sum(
                    p * ((city.covered if k in y else city.uncovered)[k] + at(t + 1, y, k))
                    for p, k in self.emergencies(e)
                )
                for y in self.valid[x]
            }
            return combine(t, x, e, moves)

        return float(np.mean([at(0, x, city.districts) for x in self.starts]))


def test_optimum_and_random_by_recursion(tiny):
    brute, result = Brute(tiny), exact.optimum(tiny)
    assert result["optimal"] == pytest.approx(brute.value(lambda t, x, e, moves: max(moves.values())), abs=1e-12)
    uniform = brute.value(lambda t, x, e, moves: sum(moves.values()) / len(moves))
    assert result["uniform_valid"] == pytest.approx(uniform, abs=1e-12)
    fraction = np.mean([len(brute.valid[x]) / len(brute.places) for x in brute.starts])
    assert result["valid_fraction"] == pytest.approx(fraction, abs=1e-12)


def test_go_and_stay_by_recursion(tiny):
    brute, total = Brute(tiny), 0.0
    for start in brute.starts:
        brute_from = Brute(tiny)
        brute_from.starts = [start]

        def stay(t, x, e, moves, target=None):
            return moves[target if t == 0 else x]

        total += max(brute_from.value(lambda *state, y=y: stay(*state, target=y)) for y in brute.valid[start])
    assert exact.optimum(tiny)["go_and_stay"] == pytest.approx(total / len(brute.starts), abs=1e-12)


def random_policy(city, n, seed=0):
    """Random valid actions, some repeated, random weights; nonsense where the allocation cannot be reached."""
    brute, rng = Brute(city), np.random.default_rng(seed)
    X, E = city.allocations, city.districts + 1
    flat = {y: i for i, y in enumerate(brute.places)}
    actions = [rng.choice([flat[y] for y in brute.valid[x]] or [0], (E, n)) for x in brute.places]
    return np.stack(actions), rng.dirichlet(np.ones(n), (X, E))


def test_policy_return_by_recursion(tiny):
    brute = Brute(tiny)
    actions, weights = random_policy(tiny, 5)

    def mix(t, x, e, moves):
        row = brute.places.index(x)
        return sum(w * moves[brute.places[a]] for a, w in zip(actions[row, e], weights[row, e], strict=True))

    expected = brute.value(mix)
    assert exact.policy_return(tiny, actions, weights) == pytest.approx(expected, abs=1e-12)
    tensors = torch.as_tensor(actions), torch.as_tensor(weights, dtype=torch.float32)
    assert exact.policy_return(tiny, *tensors) == pytest.approx(expected, abs=1e-5)


def test_action_values_by_a_linear_system(tiny):
    """V by plain loops and a solver; then each action's mean and variance over what comes next."""
    brute, gamma, E = Brute(tiny), 0.8, tiny.districts + 1
    actions, weights = random_policy(tiny, 5)
    X, places = len(brute.places), brute.places

    def after(y):
        return [tiny.covered[k] if k in places[y] else tiny.uncovered[k] for k in range(E - 1)]

    matrix, gained = np.eye(X * E), np.zeros(X * E)
    for x, e in product(range(X), range(E)):
        for y, w in zip(actions[x, e], weights[x, e], strict=True):
            gained[x * E + e] -= w * sum(tiny.cost[a, b] for a, b in zip(places[x], places[y], strict=True))
            for k, p in enumerate(tiny.transition[e]):
                gained[x * E + e] += w * p * after(y)[k]
                matrix[x * E + e, y * E + k] -= gamma * w * p
    value = np.linalg.solve(matrix, gained).reshape(X, E)
    mean, variance = exact.action_values(tiny, actions, weights, gamma)
    rows = np.flatnonzero(exact.reachable(tiny))  # the policy is of these states
    for y, e in product(rows, range(E)):
        worth = np.array(after(y)) + gamma * value[y, :-1]
        assert mean[y, e] == pytest.approx(tiny.transition[e] @ worth, abs=1e-5)
        assert variance[y, e] == pytest.approx(tiny.transition[e] @ (worth - tiny.transition[e] @ worth) ** 2, abs=1e-4)


def test_reachable_and_the_order_of_states(tiny):
    brute = Brute(tiny)
    expected = [any(x in moves for moves in brute.valid.values()) or x in brute.starts for x in brute.places]
    assert exact.reachable(tiny).tolist() == expected
    observations = exact.states(tiny)
    E = tiny.districts + 1
    for x, place in enumerate(brute.places):
        for e in range(E):
            observation = observations[x * E + e]
            assert observation[:, 2:].argmax(0).tolist() == list(place)
            assert observation[:, 1].tolist() == [float(k == e) for k in range(tiny.districts)]
            assert observation[:, 0].tolist() == [float(k in place) for k in range(tiny.districts)]


def test_what_a_policy_table_must_not_hold():
    city = City.from_dict(TRIANGLE, "triangle")
    actions, weights = random_policy(city, 2)
    invalid = actions.copy()
    invalid[0, 0, 0] = 8  # both resources from district 0 to district 2
    for message, table, share in [
        ("must both have the shape", actions[:, :2], weights[:, :2]),
        ("must both have the shape", actions, weights[..., :1]),
        ("sum to 1", actions, weights / 2),
        ("weights must be", actions, np.where(weights > weights[0, 0, 0], 2, -1)),
        ("within 0..8", actions + 9, weights),
        ("invalid in triangle", invalid, weights),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            exact.policy_return(city, table, share)
        assert "\n" not in str(caught.value)
    weights[0, 0] = [0, 1]
    exact.policy_return(city, invalid, weights)  # an invalid action of no weight does no harm


def test_the_optimum_bounds_its_own_stationary_policy():
    for name in ("ERA-v1", "ERA-v2-tight", "ERA-v4"):
        greedy, result = exact.optimal_policy(name), exact.optimum(name)
        achieved = exact.policy_return(name, greedy[..., None], np.ones((*greedy.shape, 1)))
        assert result["optimal"] - 0.02 < achieved <= result["optimal"] + 1e-9
        assert result["uniform_valid"] < result["go_and_stay"] < achieved
        values, city = exact.optimal_values(name), City.load(name)
        starts = np.ravel_multi_index(tuple(city.starts.T), (city.districts,) * city.resources)
        assert values.shape == (101, city.allocations, city.districts + 1)
        assert values[-1, starts, -1].mean() == pytest.approx(result["optimal"])


@pytest.mark.parametrize("name", ["ERA-v2", "ERA-v3-tight"])
def test_simulated_returns_agree_with_exact_ones(name):
    """The optimal stationary policy and the uniform one, 2,000 episodes each, z < 4."""
    city = City.load(name)
    K, D = city.districts, city.resources
    greedy = torch.as_tensor(exact.optimal_policy(city))
    everything = to_digits(torch.arange(K**D), (K,) * D)
    env = BatchedERA(city, 2000, generator=torch.Generator().manual_seed(1))
    by_state = env.valid(exact.states(city)[:: K + 1], everything.expand(K**D, -1, -1)).float() + 1e-30
    generator = torch.Generator().manual_seed(2)

    def optimal(x, e):
        return greedy[x, e]

    def uniform(x, e):
        return torch.multinomial(by_state[x], 1, generator=generator)[:, 0]

    expected = {
        optimal: exact.policy_return(city, greedy[..., None], np.ones((K**D, K + 1, 1))),
        uniform: exact.optimum(city)["uniform_valid"],
    }
    for policy, value in expected.items():
        env.reset()
        total = torch.zeros(2000)
        for _ in range(city.horizon):
            flat = policy(to_flat(env.allocation, env.action_sizes), env.emergency)
            total += env.step(to_digits(flat, env.action_sizes)).reward
        assert abs(total.mean() - value) < 4 * total.std() / 2000**0.5
    assert env.violations == 0


def test_flat_actions_and_digits():
    sizes = (3, 5, 2)
    flat = torch.arange(30)
    digits = to_digits(flat, sizes)
    assert [tuple(row) for row in digits.tolist()] == list(product(*map(range, sizes)))
    assert torch.equal(to_flat(digits, sizes), flat)
    assert to_digits(flat.view(2, 15), sizes).shape == (2, 15, 3)
    last = torch.tensor([32**8 - 1, 32**7])  # ERA-L-8x32: past 32 bits
    assert to_digits(last, (32,) * 8).tolist() == [[31] * 8, [1] + [0] * 7]
    assert torch.equal(to_flat(to_digits(last, (32,) * 8), (32,) * 8), last)


def test_the_largest_cities_and_beyond():
    exact.optimum(generate(17, 3))  # 4,913 actions
    result = exact.optimum(City.from_dict(generate(20, 3).to_dict() | {"horizon": 5}, "8,000 actions"))
    assert result["uniform_valid"] < result["go_and_stay"] < result["optimal"]
    with pytest.raises(ValueError, match=r"generated-18x3-0 has 18\^3 actions; exact values are for at most 5000"):
        exact.states(generate(18, 3))
    exact.optimum(generate(2, 17))  # 131,072 actions, 48 states
    with pytest.raises(ValueError, match=r"generated-16x6-0 has 527136 states and takes \d+ additions a step; exact"):
        exact.optimum(generate(16, 6))
    assert exact.solvable("ERA-L-4x16") and not exact.solvable("ERA-L-6x10")


@pytest.mark.parametrize(
    "pairs", [[(0, 2, 1)], [], [(0, 1, 2), (2, 3, 1)], [(r, q, 2) for q in range(4) for r in range(q)]]
)
def test_like_resources_are_counted_once_and_nothing_is_lost(pairs):
    """Any symmetric table: the maximum and the mean over all 4^4 valid actions, one by one."""
    city = generate(4, 4, seed=2, max_hops=1, proximity=pairs)
    orbits, everything = Orbits(city), np.array(list(product(range(4), repeat=4)))
    state = orbits.number(everything)
    assert orbits.count == len(np.unique(state)) == {0: 35, 1: 100, 2: 100, 6: 35}[len(pairs)]
    assert (np.sort(orbits.allocations[state], axis=1) == np.sort(everything, axis=1)).all()
    table = np.random.default_rng(0).normal(size=(orbits.count, 3))
    valid = city.may_move[everything[:, None], everything].all(2) & city.proximate(everything)  # (x, y)
    price = city.cost[everything[:, None], everything].sum(2)
    worth = np.where(valid[..., None], table[state] - price[..., None], -np.inf).max(1)
    np.testing.assert_allclose(orbits.maximum(table.copy())[state], worth, atol=1e-12)
    np.testing.assert_allclose(orbits.total(table.copy())[state], valid @ table[state], atol=1e-12)
    count, cost = orbits.valid()
    np.testing.assert_allclose(count[state], valid.sum(1))
    np.testing.assert_allclose(cost[state], (valid * price).sum(1), atol=1e-12)


def test_the_horizon_is_cut_short_only_where_the_rest_is_known():
    """500 steps by as many backups, against the bound on the rest of them."""
    city = City.from_dict(generate(6, 3, seed=5).to_dict() | {"horizon": 500}, "long")
    orbits, backups = Orbits(city), []

    def counted(value):
        backups.append(1)
        return orbits.backup(value)

    value = np.zeros((orbits.count, city.districts + 1))
    for _ in range(500):
        value = orbits.backup(value)
    assert abs(orbits.expected(counted) - value[orbits.starts, -1].mean()) < 1e-9
    assert len(backups) < 100


def test_results_are_cached_by_content_and_cannot_be_spoilt():
    city = generate(5, 2, seed=9)
    first = exact.optimum(city)
    first["optimal"] = 0.0
    assert exact.optimum(City.from_dict(city.to_dict(), "another name"))["optimal"] != 0.0


# ------------------------------------------------------------------------------------- hidden incidents, no memory

PARTIAL = {  # districts, (joint, factored, uniform over valid) by hand, share of valid actions
    # (n, n) served a third of the time; any product is at best uniform, a ninth
    "ERA-Partial": (3, 1000 / 3, 1000 / 9, 1000 / 9, 1.0),
    # half; sent to one place for ever: Σ_k 10 · 2^-k; a quarter, less 5 half of the time
    "Toy-Partial": (2, 500, 10, 0, 1.0),
    # a quarter; one of twelve valid actions
    "Joint-Cstr": (4, 250, 1000 / 12, 1000 / 12, 12 / 16),
}


def simplex(parts, steps):
    """(n, parts): every distribution in multiples of 1/steps."""
    bars = np.array(list(combinations(range(steps + parts - 1), parts - 1)))
    edges = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), steps + parts - 1)], axis=1)
    return (np.diff(edges, axis=1) - 1) / steps


def followed(name, joint):
    """The return by backward recursion over what the gymnasium environment itself does."""
    env, K = PartialEnv(name), len(joint)
    env.reset(seed=0)
    outcomes = []  # (probability, incident, reward, next incident)
    for i, n, m, k in product(range(K), repeat=4):
        env._incident, env.uniform = i, lambda k=k: (k + 0.5) / K
        reward = env.step((n, m))[1]
        outcomes.append((joint[n, m] / K, i, reward, env._incident))
    value = np.zeros(K)
    for _ in range(100):
        after = np.zeros(K)
        for p, i, reward, j in outcomes:
            after[i] += p * (reward + value[j])
        value = after
    return value.mean()


@pytest.mark.parametrize("name", PARTIAL)
def test_memoryless_return_by_recursion(name):
    game, rng = Game.load(name), np.random.default_rng(0)
    for _ in range(3):
        joint = rng.dirichlet(np.full(game.valid.size, 0.5)).reshape(game.valid.shape) * game.valid
        joint /= joint.sum()
        expected = followed(name, joint)
        assert exact.memoryless_return(name, joint) == pytest.approx(expected, abs=1e-9)
        assert exact.memoryless_return(name, torch.tensor(joint).float()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", PARTIAL)
def test_simulated_returns_agree_with_memoryless_ones(name):
    """5,000 episodes of a random policy, z < 4."""
    B, K = 5000, PARTIAL[name][0]
    joint = exact.after_rejection(name, np.random.default_rng(1).dirichlet(np.ones(K), 2))
    env, generator = BatchedPartial(name, B, generator=torch.Generator().manual_seed(1)), torch.Generator()
    flat = torch.multinomial(torch.as_tensor(joint).flatten(), 100 * B, True, generator=generator.manual_seed(2))
    returns = sum(env.step(actions).reward for actions in to_digits(flat, (K, K)).view(100, B, 2)).double()
    assert env.violations == 0
    assert abs(returns.mean() - exact.memoryless_return(name, joint)) < 4 * returns.std() / B**0.5


@pytest.mark.parametrize("name", PARTIAL)
def test_the_best_policies_without_memory(name):
    K, *expected = PARTIAL[name]
    found = exact.partial_reference(name)
    assert [found[key] for key in ("optimal", "factored", "uniform_valid", "valid_fraction")] == pytest.approx(
        expected, abs=1e-6
    )
    value, joint = exact.best_joint(name)
    np.testing.assert_allclose(joint, np.eye(K) / K, atol=1e-5)
    assert exact.memoryless_return(name, joint) == pytest.approx(value, abs=1e-9)
    value, marginals = exact.best_factored(name)
    np.testing.assert_allclose(marginals.sum(1), 1)
    assert exact.memoryless_return(name, exact.after_rejection(name, marginals)) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", PARTIAL)
def test_no_policy_on_a_grid_is_better(name):
    """All of them in steps of 1/20 (joint: what (n, n) get, and the rest), marginals in steps of 1/60 to 1/8."""
    game, (K, joint, factored, *_) = Game.load(name), PARTIAL[name]
    diagonal = torch.tensor(simplex(K + 1, 20)[:, :K])
    policies = torch.diag_embed(diagonal)
    policies[:, 0, 1] = 1 - diagonal.sum(1)  # it doesn't matter to which other action
    assert exact._memoryless(game, policies).max() <= joint + 1e-9

    row = torch.tensor(simplex(K, {2: 60, 3: 12, 4: 8}[K]))
    products = row[:, None, :, None] * row[None, :, None, :] * torch.tensor(game.valid)
    products = products[products.sum((-2, -1)) > 0]
    values = exact._memoryless(game, products / products.sum((-2, -1), keepdim=True))
    assert len(values) > 3000 and values.max() <= factored + 1e-9
    assert values.max() == pytest.approx(factored, abs=1e-9)  # the optimum is on the grid


def test_rejection_makes_no_product_the_best_joint_policy():
    marginals = np.random.default_rng(0).dirichlet(np.ones(4), 2)
    joint = exact.after_rejection("Joint-Cstr", marginals)
    by_hand = np.outer(*marginals)
    by_hand[[0, 1, 2, 3], [2, 3, 0, 1]] = 0  # across the ring
    np.testing.assert_allclose(joint, by_hand / by_hand.sum())
    for n in range(4):
        m = (n + 1) % 4
        assert joint[n, m] * joint[m, n] == pytest.approx(joint[n, n] * joint[m, m])


def test_what_a_memoryless_policy_must_not_be():
    uniform = np.full((4, 4), 1 / 16)
    for message, wrong in [
        (r"the shape \(3, 3\); allowed: \(4, 4\)", np.full((3, 3), 1 / 9)),
        ("sum to 1", uniform * 2),
        ("sum to 1", np.where(np.eye(4) == 1, -0.25, 1 / 6)),
        ("sum to 1", uniform * np.nan),
        ("invalid in Joint-Cstr", uniform),
    ]:
        with pytest.raises(ValueError, match=message):
            exact.memoryless_return("Joint-Cstr", wrong)
    for message, wrong in [
        (r"the shape \(2, 4\)", np.ones((2, 3))),
        ("must be ≥ 0", -np.ones((2, 4))),
        ("no weight to an action that is valid", np.eye(4)[[0, 2]]),
    ]:
        with pytest.raises(ValueError, match=message):
            exact.after_rejection("Joint-Cstr", wrong)
    with pytest.raises(ValueError, match="choose one of ERA-Partial"):
        exact.best_joint("ERA-v4")
