"""The search that chose the shipped cities; `python -m flowrl.truth.ship` writes the same files again (under a minute).

Each is the first seed of `generate` whose city is neither too free nor solved by standing still: the authors'
released settings (three resources, moves of up to three hops, one pair kept together) leave 43 to 80 % of the actions
valid. The large cities tie the resources in a chain that leaves under 1 % valid. The cities by valid fraction, in
data/cities, are one city under ever tighter constraints; so are ERA-R3 to ERA-R9, of 10^12 actions, one in 10^3 to one
in 10^9 of them valid. The cities on which settings are judged that were tuned on v2 to v5, unseen-1 to unseen-10, are
not chosen by any result: unseen-k is what `generate` makes of seed 1000 + k, of sizes and limits as UNSEEN has them.
"""

from itertools import combinations_with_replacement, count
from math import inf, log, log10
from pathlib import Path

from ..envs.city import CITIES, City, generate
from .exact import optimum

VERSIONS = {1: (6, 1), 2: (7, 1), 3: (8, 2), 4: (9, 2), 5: (10, 3)}  # version: districts K, distance of the pair (0, 1)
VALID_FRACTION = (0.43, 0.80)
TIGHT_VALID_FRACTION = 0.10  # at most, v3..v5
PLATEAU = 0.93  # at most, v2..v5: normalised score of go-and-stay, so that reading the emergencies pays
LARGE = {(4, 16): (2, 1), (6, 10): (2, 2), (8, 32): (3, 3)}  # resources D, districts K: max_hops, distance in the chain
LARGE_VALID_FRACTION = 0.01  # at most, averaged over the starts
LARGE_LEAST = 5e-4  # in each of them: 4,096 uniform draws find two valid ones

FRACTIONS = Path(__file__).parents[2] / "data" / "cities"
THOUSANDTHS = (1000, 500, 200, 100, 30, 10, 3, 1)  # valid fractions of fraction-1000.json … fraction-1.json
TOLERANCE = 0.15  # of log(fraction / wanted)
RARE = {3: (4, 3), 5: (3, 2), 7: (3, 1), 9: (1, 1)}  # ERA-Rk, 10^−k valid: max_hops, distance in the chain
RARE_TOLERANCE = 0.2  # of log10(fraction / wanted)
UNSEEN = {  # k of unseen-k: districts, max_hops, pairs
    1: (8, 3, [(0, 1, 2)]), 2: (10, 3, [(0, 1, 2)]), 3: (7, 2, [(0, 1, 1)]), 4: (8, 2, [(0, 1, 2)]),
    5: (9, 2, [(0, 1, 2)]), 6: (9, 3, [(0, 1, 2)]), 7: (10, 2, [(0, 1, 2)]), 8: (10, 3, [(0, 1, 1)]),
    9: (8, 3, [(0, 1, 2), (1, 2, 2)]), 10: (9, 2, [(0, 1, 1)]),
}  # fmt: skip


def plateau(city: City) -> float:
    """Normalised score of the best go-and-stay: 0 is uniform over valid actions, 1 the optimum."""
    exact = optimum(city)
    return (exact["go_and_stay"] - exact["uniform_valid"]) / (exact["optimal"] - exact["uniform_valid"])


def suits(city: City, version: int) -> bool:
    """Whether the city may be shipped as ERA-v`version`."""
    low, high = VALID_FRACTION
    return (
        low <= optimum(city)["valid_fraction"] <= high
        and (version < 3 or optimum(city.tight())["valid_fraction"] <= TIGHT_VALID_FRACTION)
        and (version < 2 or plateau(city) <= PLATEAU)
    )


def search(version: int) -> City:
    """The first generated city that suits ERA-v`version`."""
    districts, distance = VERSIONS[version]
    cities = (generate(districts, seed=seed, proximity=((0, 1, distance),)) for seed in count())
    return next(city for city in cities if suits(city, version))


def search_large(resources: int, districts: int) -> City:
    """The first generated city that may be shipped as ERA-L-D×K."""
    max_hops, distance = LARGE[resources, districts]
    chain = [(r, r + 1, distance) for r in range(resources - 1)]
    cities = (generate(districts, resources, seed, max_hops, chain) for seed in count())
    return next(city for city in cities if _few_valid(city))


def _few_valid(city: City) -> bool:
    fractions = city.valid_counts(city.starts) / city.allocations
    return fractions.mean() <= LARGE_VALID_FRACTION and fractions.min() >= LARGE_LEAST


def by_fraction() -> dict[int, City]:
    """One city of 10 districts, 4 resources, 10^4 actions, by thousandths of them that are valid; each constraint
    is as tight as in the city before or tighter.
    """
    return next(cities for seed in count() if (cities := _by_fraction(seed)))


def _by_fraction(seed: int) -> dict[int, City] | None:
    """The cities of one seed, greedily; None where a fraction is not within the tolerance."""
    base = generate(10, 4, seed, max_hops=None, proximity=()).to_dict()
    found, cities = {}, {}
    for hops in (inf, 3, 2, 1):  # limits of a move and of the chain's three pairs, ∞: none
        for limits in combinations_with_replacement((inf, 3, 2, 1, 0), 3):
            chain = [[r, r + 1, limit] for r, limit in enumerate(limits) if limit < inf]
            changes = {"max_hops": hops if hops < inf else None, "proximity": chain}
            city = City.from_dict(base | changes, f"generated-10x4-{seed}")
            found[hops, *limits] = city, log(city.valid_counts(city.starts).mean() / city.allocations)
    last = (inf,) * 4
    for wanted in THOUSANDTHS:
        # resources that must stay together are one resource: only where nothing else gets there
        tighter = [key for key in found if all(new <= old for new, old in zip(key, last, strict=True))]
        apart = [key for key in tighter if wanted < 10 or key[-1] > 0]
        last = min(apart, key=lambda key: abs(found[key][1] - log(wanted / 1000)))
        cities[wanted], fraction = found[last]
        if abs(fraction - log(wanted / 1000)) > TOLERANCE:
            return None
    return cities


def by_rarity() -> dict[int, City]:
    """One city of 32 districts, 8 resources in a chain, 10^12 actions, of which 10^−k are valid, by k."""
    seed = -1
    while True:
        seed, cities = seed + 1, {}
        for k, (max_hops, distance) in RARE.items():
            chain = [(r, r + 1, distance) for r in range(7)]
            cities[k] = city = generate(32, 8, seed, max_hops, chain, f"ERA-R{k}")
            if abs(log10(city.valid_counts(city.starts).mean() / city.allocations) + k) > RARE_TOLERANCE:
                break
        else:
            return cities


def unseen() -> dict[int, City]:
    """unseen-k by k."""
    return {
        k: generate(districts, seed=1000 + k, max_hops=max_hops, proximity=pairs, name=f"unseen-{k}")
        for k, (districts, max_hops, pairs) in UNSEEN.items()
    }


if __name__ == "__main__":
    for city in unseen().values():
        city.to_json(FRACTIONS / f"{city.name}.json")
    for resources, districts in LARGE:
        city = search_large(resources, districts)
        city.to_json(CITIES / f"ERA-L-{resources}x{districts}.json")
        print(f"ERA-L-{resources}x{districts} is {city.name}", flush=True)
    for thousandths, city in by_fraction().items():
        city.to_json(FRACTIONS / f"fraction-{thousandths}.json")
        print(f"fraction-{thousandths} is {city.name}: {city.max_hops} hops, {city.proximity}", flush=True)
    for city in by_rarity().values():
        city.to_json(FRACTIONS / f"{city.name}.json")
        print(f"{city.name}: {city.max_hops} hops, {city.proximity}")
    for version in VERSIONS:
        city = search(version)
        city.to_json(CITIES / f"ERA-v{version}.json")
        print(f"ERA-v{version} is {city.name}: plateau {plateau(city):.3f}, {optimum(city)}", flush=True)
