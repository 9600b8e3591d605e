"""Cities: the schema's every rule, the tables derived from an instance, the generator, the shipped instances."""

import json
from itertools import pairwise, permutations

import numpy as np
import pytest

from flowrl.envs import authors, make_batched, names
from flowrl.envs.city import CITIES, City, CityError, generate
from flowrl.truth import ship
from flowrl.truth.exact import optimum

PATH = {  # 0 - 1 - 2 - 3, two resources that must end within one hop of each other
    "districts": 4,
    "resources": 2,
    "edges": [[0, 1, 0.1], [1, 2, 0.2], [2, 3, 0.3]],
    "covered": [1, 2, 3, 4],
    "uncovered": [-4, -3, -2, -1],
    "profiles": [{"weight": 0.75, "scores": [0, 1, 2, 3]}, {"weight": 0.25, "scores": [1, 0, 0, 0]}],
    "epsilon": 0.2,
    "max_hops": 1,
    "proximity": [[0, 1, 1]],
    "travel_costs": True,
    "horizon": 5,
    "start": "proximate",
}
NAN = float("nan")


def written(folder, **changes):
    path = folder / "mine.json"
    path.write_text(json.dumps({key: value for key, value in (PATH | changes).items() if value is not ...}))
    return path


MALFORMED = [
    ({"districts": 4.0}, "districts: got 4.0; allowed: an integer ≥ 2"),
    ({"districts": True}, "districts: got true"),
    ({"resources": 0}, "resources: got 0; allowed: an integer ≥ 1"),
    ({"horizon": ...}, "horizon: missing key; allowed: an integer ≥ 1"),
    ({"horizont": 5}, "horizont: unknown key; allowed: districts, resources"),
    ({"edges": {}}, "edges: got {}"),
    ({"edges": [[0, 1, 0.1], [1, 2, 0.2], [1, 3]]}, "edges: got the item [1, 3]; allowed: a list of [i, j, cost]"),
    ({"edges": [[0, 1, 0.1], [1, 2, 0.2], [3, 3, 0.3]]}, "edges: got the item [3, 3, 0.3]"),
    ({"edges": [[0, 1, 0.1], [1, 2, 0.2], [2, 4, 0.3]]}, "edges: got the item [2, 4, 0.3]"),
    ({"edges": [[0, 1, 0.1], [1, 2, 0.2], [2, 3, -0.3]]}, "edges: got the item [2, 3, -0.3]"),
    ({"edges": [[0, 1, 0.1], [1, 2, 0.2], [2, 3, 0.3], [1, 0, 0.1]]}, "edges: repeated edge [1, 0, 0.1]"),
    ({"edges": [[0, 1, 0.1], [2, 3, 0.3]]}, "edges: not connected: no path from district 0 to 2"),
    ({"covered": [1, 2, 3]}, "covered: got [1, 2, 3]; allowed: a list of 4 finite numbers"),
    ({"uncovered": [-1, -1, -1, NAN]}, "uncovered: got [-1, -1, -1, NaN]"),
    ({"uncovered": "none"}, 'uncovered: got "none"'),
    ({"profiles": []}, "profiles: got []"),
    ({"profiles": [{"weight": 1, "scores": [0, 0, 0]}]}, "profiles: got the item"),
    ({"profiles": [{"weight": -1, "scores": [0, 0, 0, 0]}]}, "profiles: got the item"),
    ({"profiles": [{"weight": 0.9, "scores": [0, 0, 0, 0]}]}, "profiles: weights sum to 0.9; allowed: "),
    ({"epsilon": 1.5}, "epsilon: got 1.5; allowed: a number within 0..1"),
    ({"epsilon": NAN}, "epsilon: got NaN"),
    ({"max_hops": -1}, "max_hops: got -1; allowed: an integer ≥ 0, or null: no limit"),
    ({"proximity": [[0, 2, 1]]}, "proximity: got the item [0, 2, 1]; allowed: a list of [r, r', hops], 0 ≤ r ≠ r' < 2"),
    ({"proximity": [[0, 0, 1]]}, "proximity: got the item [0, 0, 1]"),
    ({"proximity": [[0, 1, -1]]}, "proximity: got the item [0, 1, -1]"),
    ({"travel_costs": 1}, "travel_costs: got 1; allowed: true or false"),
    ({"travel_cost": [[0, 1, 1, 1]] * 3}, "travel_cost: got"),
    ({"travel_cost": [[0, 1, 1, -1]] * 4}, "travel_cost: got the item [0, 1, 1, -1]"),
    ({"travel_cost": [[0, 1, 1, 1]] * 4}, "travel_cost: staying put costs something"),
    ({"edges": []}, "edges: not connected: no path from district 0 to 1"),
    ({"map": {"places": [[0, 0]]}}, 'map: got {"places": [[0, 0]]}; allowed: null or an object'),
    ({"map": {"colour": "red"}}, "map: got"),
    ({"horizon": 0}, "horizon: got 0"),
    ({"start": "anywhere"}, 'start: got "anywhere"; allowed: "proximate" or "uniform"'),
    (
        {"start": "uniform", "max_hops": 0},
        'start: with "uniform", no valid first move where resource 0 is in district 0, resource 1 is in district 2',
    ),
]


@pytest.mark.parametrize(("changes", "message"), MALFORMED, ids=[message[:40] for _, message in MALFORMED])
def test_a_malformed_instance_is_refused_in_one_line(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(CityError) as caught:
        City.load(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[1]", "a JSON list; allowed: an object"), (None, "cannot be read")]
)
def test_a_file_that_is_no_instance(tmp_path, text, message):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CityError, match=message) as caught:
        make_batched(path, 2)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown environment 'ERA-v9': choose one of CartPole-v1, .*ERA-v1, ERA-v1-tight, .*\.json"
    ):
        make_batched("ERA-v9", 2)


def test_uniform_start_is_checked_exactly_or_refused():
    far = PATH | {"start": "uniform"}
    City.from_dict(far, "one hop each closes any gap of three")
    with pytest.raises(CityError, match="resource 0 is in district 0, resource 1 is in district 3"):
        City.from_dict(far | {"proximity": [[0, 1, 0]]}, "three hops cannot be closed by two moves")
    City.from_dict(far | {"proximity": [[0, 1, 0]], "max_hops": None}, "anything can be closed without a limit")
    City.from_dict(far | {"resources": 30, "proximity": [[28, 29, 1]]}, "free resources do not matter")
    with pytest.raises(CityError, match="a valid first move cannot be checked for 1073741824 allocations"):
        City.from_dict(far | {"resources": 15, "proximity": [[r, r + 1, 1] for r in range(14)]}, "too many to check")


def test_how_a_city_is_drawn_is_no_part_of_what_it_is(tmp_path):
    drawn = {"labels": ["a", "b", "c", "d"], "places": [[0, 0.5]] * 4, "source": "nowhere"}
    plain, city = City.load(written(tmp_path)), City.load(written(tmp_path, map=drawn))
    assert city.digest == plain.digest and city.tight().map == drawn and "map" not in plain.to_dict()
    city.to_json(tmp_path / "again.json")
    assert City.load(tmp_path / "again.json").map == drawn


def cheapest_shortest(city, i, j):
    """(hops, cost) of the best simple path of all."""
    if i == j:
        return 0, 0.0
    prices = {frozenset(edge[:2]): edge[2] for edge in city.edges}
    others = [k for k in range(city.districts) if k not in (i, j)]
    paths = [(i, *middle, j) for n in range(len(others) + 1) for middle in permutations(others, n)]
    walks = [[prices.get(frozenset(step)) for step in pairwise(path)] for path in paths]
    return min((len(walk), sum(walk)) for walk in walks if None not in walk)


def test_hops_and_costs_match_an_enumeration_of_paths():
    city = generate(6, seed=3)
    for i, j in np.ndindex(6, 6):
        hops, cost = cheapest_shortest(city, i, j)
        assert city.hops[i, j] == hops and city.cost[i, j] == pytest.approx(cost)
    costs = [[0, 1, 2, 3], [4, 0, 5, 6], [7, 8, 0, 9], [1, 2, 3, 0]]
    explicit = City.from_dict(PATH | {"travel_cost": costs}, "explicit")
    assert explicit.cost[1, 3] == 6 and explicit.cost[3, 1] == 2
    assert not City.from_dict(explicit.to_dict() | {"travel_costs": False}, "free of charge").cost.any()


def test_emergency_probabilities():
    city = City.from_dict(PATH, "path")
    # from district 3: .2 uniform over {0, 1, 2}; .8 × (.75 softmax(0, 1, 2) + .25 softmax(1, 0, 0))
    first, second = np.exp([0, 1, 2]), np.exp([1, 0, 0])
    expected = 0.2 / 3 + 0.8 * (0.75 * first / first.sum() + 0.25 * second / second.sum())
    np.testing.assert_allclose(city.transition[3], [*expected, 0])
    np.testing.assert_allclose(city.transition.sum(1), 1)
    assert not np.diagonal(city.transition).any() and (city.transition[-1] > 0).all()
    steep = City.from_dict(PATH | {"profiles": [{"weight": 1, "scores": [0, 0, 0, 5000]}]}, "no overflow")
    np.testing.assert_allclose(steep.transition[3, :3], 1 / 3)


def test_starts():
    city = City.from_dict(PATH, "path")
    assert {tuple(start) for start in city.starts} == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert len(City.from_dict(PATH | {"start": "uniform"}, "path").starts) == 16


CHAIN, TRIANGLE = [(0, 1, 2), (1, 2, 2), (2, 3, 2), (3, 4, 2)], [(0, 1, 2), (0, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize(("districts", "resources", "pairs"), [(16, 5, CHAIN), (32, 5, CHAIN), (10, 6, TRIANGLE)])
def test_large_cities_start_from_a_sample(districts, resources, pairs):
    city = generate(districts, resources, max_hops=1, proximity=pairs)
    assert city.proximate(city.starts).all() and len(np.unique(city.starts, axis=0)) > 3000
    assert {district for start in city.starts for district in start} == set(range(districts))


def test_the_sampled_starts_are_uniform_over_proximate_allocations():
    city = generate(5, 2, seed=1, proximity=[(0, 1, 1)])
    sample = city._gibbs(np.random.default_rng(1))
    share = np.array([(sample == start).all(1).mean() for start in city.starts])
    p = 1 / len(city.starts)
    assert share.sum() == pytest.approx(1) and (abs(share - p) < 4 * np.sqrt(p * (1 - p) / len(sample))).all()  # z < 4


TREES = [[(0, 1, 1), (1, 2, 1), (2, 3, 1)], [(3, 1, 1), (0, 1, 2), (2, 0, 0)], [(1, 3, 2)], []]


@pytest.mark.parametrize("pairs", TREES, ids=str)
def test_valid_actions_are_counted_and_drawn_as_enumerated(pairs):
    city = generate(4, 4, seed=5, max_hops=1, proximity=pairs)
    actions = np.indices((4,) * 4).reshape(4, -1).T
    near = city.proximate(actions)
    valid = city.may_move[actions[:, None], actions].all(2) & near  # (256 allocations, 256 actions)
    np.testing.assert_array_equal(city.valid_counts(actions), valid.sum(1))
    n, start = 20_000, int(near.argmax())
    drawn = city.draw(city.may_move[actions[start]][None].repeat(n, axis=0), np.random.default_rng(0))
    share = np.bincount(np.ravel_multi_index(drawn.T, (4,) * 4), minlength=256) / n
    p = valid[start] / valid[start].sum()
    assert (share[~valid[start]] == 0).all() and (abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / n)).all()  # z < 4.5


def test_valid_actions_are_not_counted_where_resources_are_tied_in_a_ring():
    ring = generate(5, 3, proximity=[(0, 1, 1), (1, 2, 1), (0, 2, 1)])
    assert not ring.countable and City.load("ERA-v4").countable
    with pytest.raises(ValueError, match="ties a resource to several of a lower number") as caught:
        ring.valid_counts(ring.starts)
    assert "\n" not in str(caught.value)


def test_generator_is_seeded_and_keeps_its_promises():
    assert generate(9, 4, seed=5).digest == generate(9, 4, seed=5).digest != generate(9, 4, seed=6).digest
    for seed in range(20):
        city = generate(9, 4, seed=seed, max_hops=2, proximity=[[2, 3, 1]])
        assert 8 <= len(city.edges) <= 13 and all(0.02 <= cost <= 0.2 for _, _, cost in city.edges)
        assert all(0.85 <= r <= 1.25 for r in city.covered) and city.uncovered == [-r for r in city.covered]
        assert len({tuple(sorted(profile["scores"])) for profile in city.profiles}) == 1
    with pytest.raises(CityError, match="proximity"):
        generate(5, resources=1)


def test_json_round_trip(tmp_path):
    city = generate(6, seed=2)
    city.to_json(tmp_path / "mine.json")
    again = City.load(tmp_path / "mine.json")
    assert again.digest == city.digest and again.name == "mine"
    assert City.load(again) is again


def test_variants_share_the_city_and_change_the_constraints():
    city, tight, free = (City.load(f"ERA-v4{kind}") for kind in ("", "-tight", "-free"))
    assert (city.max_hops, city.proximity, city.travel_costs) == (3, [[0, 1, 2]], True)
    assert (tight.max_hops, tight.proximity, tight.travel_costs) == (1, [[0, 1, 2], [0, 2, 2], [1, 2, 2]], True)
    assert (free.max_hops, free.proximity, free.travel_costs) == (None, [], False)
    assert city.covered == tight.covered == free.covered and tight.name == "ERA-v4-tight"
    assert free.may_move.all() and not free.cost.any() and (tight.may_move == (tight.hops <= 1)).all()


@pytest.mark.parametrize("version", range(1, 6))
def test_the_shipped_cities(version):
    city = City.load(f"ERA-v{version}")
    distance = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[version]
    assert (city.districts, city.resources, city.max_hops, city.proximity) == (version + 5, 3, 3, [[0, 1, distance]])
    assert city.horizon == 100 and city.start == "proximate" and city.epsilon == 0.05
    exact = optimum(city)
    assert 0.43 <= exact["valid_fraction"] <= 0.80
    assert version < 3 or optimum(city.tight())["valid_fraction"] <= 0.10
    gain = (exact["go_and_stay"] - exact["uniform_valid"]) / (exact["optimal"] - exact["uniform_valid"])
    assert version < 2 or gain <= 0.93


@pytest.mark.parametrize(("resources", "districts"), ship.LARGE)
def test_the_large_cities(tmp_path, resources, districts):
    name = f"ERA-L-{resources}x{districts}"
    city = City.load(name)
    assert (city.name, city.resources, city.districts) == (name, resources, districts) and name in names()
    assert f"{name}-tight" not in names()
    fractions = city.valid_counts(city.starts) / districts**resources
    assert fractions.mean() < 0.01 and fractions.min() >= 5e-4
    assert city.proximate(city.starts).all() and len(np.unique(city.starts, axis=0)) > 500  # staying put is valid
    ship.search_large(resources, districts).to_json(tmp_path / "found.json")
    assert (tmp_path / "found.json").read_text() == (CITIES / f"{name}.json").read_text()


def test_the_cities_where_valid_actions_are_rare(tmp_path):
    """As generated, but for their constraints one city; the exact share of valid actions within 10^±0.2 of its name."""
    cities = ship.by_rarity()
    for k, city in cities.items():
        city.to_json(tmp_path / "found.json")
        path = ship.FRACTIONS / f"ERA-R{k}.json"
        assert (tmp_path / "found.json").read_text() == path.read_text() and City.load(path).name == f"ERA-R{k}"
        assert city.to_dict() == cities[3].to_dict() | {"max_hops": city.max_hops, "proximity": city.proximity}
        fraction = city.valid_counts(city.starts).mean() / 32**8
        assert 10**-0.2 < fraction * 10**k < 10**0.2 and city.proximate(city.starts).all()


def test_the_unseen_cities_are_what_their_seeds_generate(tmp_path):
    assert sorted(ship.unseen()) == list(range(1, 11)) and len(list(ship.FRACTIONS.glob("unseen-*.json"))) == 10
    for k, city in ship.unseen().items():
        city.to_json(tmp_path / "found.json")
        assert (tmp_path / "found.json").read_text() == (ship.FRACTIONS / f"unseen-{k}.json").read_text()


def test_the_cities_by_fraction_are_one_city_and_their_fractions_as_named(tmp_path):
    cities = ship.by_fraction()
    assert list(cities) == [1000, 500, 200, 100, 30, 10, 3, 1]
    assert len(list(ship.FRACTIONS.glob("fraction-*.json"))) == len(cities)
    before, base = 2.0, cities[1000].to_dict()
    for thousandths, city in cities.items():
        city.to_json(tmp_path / "found.json")
        path = ship.FRACTIONS / f"fraction-{thousandths}.json"
        assert (tmp_path / "found.json").read_text() == path.read_text()
        city = City.load(path)
        assert city.to_dict() == base | {"max_hops": city.max_hops, "proximity": city.proximity}
        actions = np.indices((10,) * 4).reshape(4, -1).T
        near = city.proximate(actions)
        some = city.starts[:: len(city.starts) // 30 or 1]
        by_hand = [(city.may_move[x, actions].all(1) & near).sum() for x in some]
        np.testing.assert_array_equal(city.valid_counts(some), by_hand)
        fraction = city.valid_counts(city.starts).mean() / 10_000
        assert abs(fraction / (thousandths / 1000) - 1) < 0.17
        assert fraction < before
        before = fraction


@pytest.mark.long
def test_the_committed_files_are_what_the_search_finds(tmp_path):
    assert City.names()[:3] == ["ERA-v1", "ERA-v1-tight", "ERA-v1-free"] and set(City.names()) < set(names())
    for version in ship.VERSIONS:
        ship.search(version).to_json(tmp_path / "found.json")
        assert (tmp_path / "found.json").read_text() == (CITIES / f"ERA-v{version}.json").read_text()


# ------------------------------------------------------------------------------- the authors' instance format

THEIRS = {  # a path 0 - 1 - 2 - 3, made up here in their format
    "payoff_matrix": [[1, -2, 3, -1], [2, -3, 1, 1], [3, -4, 0, 1], [4, -5, -1, -3]],
    "adj_matrix": [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]],
    "cost_matrix": [[0, 0.1, -1, -1], [0.1, 0, 0.2, -1], [-1, 0.2, 0, 0.3], [-1, -1, 0.3, 0]],
    "def_constraints": [[0, 2]],
    "att_param": {"dist_payoff": [0.75, 0.25], "idx_tgt": [[0, 1, 2, 3], [3, 0, 1, 2]]},
    "attr_for_testing": {"init_state": {"0": [0, 1, 2]}},
    "num_rsc": 3,
    "num_tgt": 4,
    "req_dist": 2,
}


def theirs(folder, **changes):
    path = folder / "theirs.json"
    path.write_text(json.dumps({key: value for key, value in (THEIRS | changes).items() if value is not ...}))
    return path


def test_an_instance_of_the_authors_is_read_as_a_city(tmp_path):
    city = authors.read(theirs(tmp_path))
    assert city.to_dict() == {
        "districts": 4,
        "resources": 3,
        "edges": [[0, 1, 0.1], [1, 2, 0.2], [2, 3, 0.3]],
        "covered": [1, 2, 3, 4],
        "uncovered": [-2, -3, -4, -5],
        "profiles": [{"weight": 0.75, "scores": [1, 1, 0.5, -2]}, {"weight": 0.25, "scores": [-2, 1, 1, 0.5]}],
        "epsilon": 0.05,
        "max_hops": 3,
        "proximity": [[0, 2, 2]],
        "travel_costs": True,
        "horizon": 100,
        "start": "uniform",
    }
    assert len(city.starts) == 4**3
    plain = authors.read(theirs(tmp_path, req_dist=..., req_hop=1, att_param=..., attr_for_testing=...))
    assert (plain.proximity, plain.max_hops) == ([[0, 2, 1]], 1)
    assert plain.profiles == [{"weight": 1, "scores": [1, 1, 0.5, -2]}]


def entry(key, i, j, value):
    """Their matrix with one entry changed."""
    return {key: [[value if (a, b) == (i, j) else x for b, x in enumerate(row)] for a, row in enumerate(THEIRS[key])]}


UNLIKE_THEIRS = [
    ({"num_rsc": ...}, "num_rsc: missing key"),
    ({"payoff_matrix": ...}, "payoff_matrix: missing key, is this an instance of the authors'? Must be num_tgt rows"),
    ({"fixed_assign": {"0": 1}}, "fixed_assign: unknown key, it may change the game; known: num_tgt"),
    ({"num_tgt": 4.5}, "num_tgt: must be an integer ≥ 2"),
    ({"num_tgt": 5}, "payoff_matrix: must be 5 rows of 4 numbers from −10⁹ to 10⁹"),
    (entry("payoff_matrix", 1, 2, "x"), "payoff_matrix: must be 4 rows of 4 numbers from −10⁹ to 10⁹"),
    ({"num_rsc": 1001}, "num_rsc: must be an integer from 1 to 1,000"),
    (entry("payoff_matrix", 1, 2, 1e308), "payoff_matrix: must be 4 rows of 4 numbers from"),
    (entry("payoff_matrix", 1, 2, NAN), "payoff_matrix: must be 4 rows of 4 numbers from −10⁹ to 10⁹"),
    ({"adj_matrix": [[0, 1], [1, 0]]}, "adj_matrix: must be 4 rows of 4 zeros and ones, symmetric"),
    (entry("adj_matrix", 0, 3, 1), "adj_matrix: must be 4 rows of 4 zeros and ones, symmetric"),
    (entry("adj_matrix", 0, 0, 1), "adj_matrix: must be 4 rows of 4 zeros and ones, symmetric, 0 on the diagonal"),
    (entry("adj_matrix", 0, 1, 2), "adj_matrix: must be 4 rows of 4 zeros and ones"),
    (entry("cost_matrix", 0, 1, 1e10), "cost_matrix: must be 4 rows of 4 numbers, symmetric: above 0, at most 10⁹"),
    (entry("cost_matrix", 0, 1, -1), "cost_matrix: must be 4 rows of 4 numbers, symmetric: above 0, at most 10⁹"),
    (entry("cost_matrix", 0, 1, 0.2), "cost_matrix: must be 4 rows of 4 numbers, symmetric"),
    (entry("cost_matrix", 2, 2, 1), "cost_matrix: must be"),
    (
        {"cost_matrix": [[0, 0.1, 0.5, -1], [0.1, 0, 0.2, -1], [0.5, 0.2, 0, 0.3], [-1, -1, 0.3, 0]]},
        "cost_matrix: must",
    ),
    ({"def_constraints": [[0, 3]]}, "def_constraints: must be a list of pairs [r, r'] of resources, 0 ≤ r ≠ r' < 3"),
    ({"def_constraints": [[0, 0]]}, "def_constraints: must be a list of pairs"),
    ({"def_constraints": [[0, 1, 2]]}, "def_constraints: must be a list of pairs"),
    ({"req_dist": -1}, "req_dist: must be an integer ≥ 0"),
    ({"req_hop": None}, "req_hop: must be an integer ≥ 0"),
    ({"att_param": {"dist_payoff": [1]}}, 'att_param: must be {"dist_payoff": weights ≥ 0 that sum to 1'),
    ({"att_param": {"dist_payoff": [1], "idx_tgt": [[0, 1, 2, 2]]}}, "att_param: must be"),
    ({"att_param": {"dist_payoff": [0.5], "idx_tgt": [[0, 1, 2, 3]]}}, "att_param: must be"),
    ({"att_param": {"dist_payoff": [0.5, 0.5], "idx_tgt": [[0, 1, 2, 3]]}}, "att_param: must be"),
    ({"att_param": {"dist_payoff": [], "idx_tgt": []}}, "att_param: must be"),
    ({"req_hop": 0, "req_dist": 0}, 'as a city: start: with "uniform", no valid first move where resource 0'),
]


@pytest.mark.parametrize(("folder", "told"), [("authors", True), ("authors-v4", True), ("coauthors", False)])
def test_where_the_authors_cities_come_from_is_told_where_one_is_missing(tmp_path, folder, told):
    with pytest.raises(CityError, match="cannot be read: No such file or directory") as caught:
        City.load(tmp_path / folder / "v4.json")
    assert ("github.com/cameron-chen/flow-iar" in str(caught.value)) == told


@pytest.mark.parametrize(("changes", "message"), UNLIKE_THEIRS, ids=[message[:40] for _, message in UNLIKE_THEIRS])
def test_an_instance_unlike_the_authors_is_refused_in_one_line(tmp_path, changes, message):
    path = theirs(tmp_path, **changes)
    with pytest.raises(CityError) as caught:
        authors.read(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)
