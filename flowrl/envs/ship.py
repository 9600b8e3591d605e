"""The search that chose the shipped cities; `python -m flowrl.envs.ship` writes the same files again (under a minute).

Each is the first seed of `generate` whose city is neither too free nor solved by standing still: the authors'
released settings (three resources, moves of up to three hops, one pair kept together) leave 43 to 80 % of the actions
valid.
"""

from itertools import count

from flowrl.envs.city import CITIES, City, generate
from flowrl.exact import optimum

VERSIONS = {1: (6, 1), 2: (7, 1), 3: (8, 2), 4: (9, 2), 5: (10, 3)}  # version: districts K, distance of the pair (0, 1)
VALID_FRACTION = (0.43, 0.80)
TIGHT_VALID_FRACTION = 0.10  # at most, v3..v5
PLATEAU = 0.93  # at most, v2..v5: normalised score of go-and-stay, so that reading the emergencies pays


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


if __name__ == "__main__":
    for version in VERSIONS:
        city = search(version)
        city.to_json(CITIES / f"ERA-v{version}.json")
        print(f"ERA-v{version} is {city.name}: plateau {plateau(city):.3f}, {optimum(city)}", flush=True)
