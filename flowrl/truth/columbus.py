"""ERA-Columbus, the 49 neighbourhoods of Columbus, Ohio, in 1980; `python -m flowrl.truth.columbus` writes its file.

Facts from the built-in example of libpysal (`pip install libpysal`, BSD 3-Clause; its files columbus.gal and
columbus.json): which neighbourhoods touch (queen contiguity), where they are, and residential burglaries and vehicle
thefts per 1,000 households. Source: Anselin, L. (1988), Spatial Econometrics, Kluwer, Table 12.1, p. 189. The rest is
ours: four vehicles in two crews of two whose members stay within two neighbourhoods of each other, moves of at most two
neighbourhoods, a road as dear as it is long between centroids.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np

from ..envs.city import CITIES, City
from ..envs.maps import Map, to_city

NAME = "ERA-Columbus"
SOURCE = (
    "Anselin, L. (1988), Spatial Econometrics, Kluwer, Table 12.1, p. 189; contiguity and outlines as in libpysal's "
    "built-in example `columbus` (Prepared by Luc Anselin, Spatial Analysis Laboratory, University of Illinois)"
)
CREWS = [(0, 1, 2), (2, 3, 2)]
MAX_HOPS = 2
ROAD_COST = 0.01  # of a road on average; an emergency pays ±1


def columbus(folder: Path) -> City:
    """The city, from the folder of the example."""
    features = json.loads((folder / "columbus.json").read_text())["features"]
    facts = {str(int(feature["properties"]["POLYID"])): feature for feature in features}
    outlines = {name: np.array(feature["geometry"]["coordinates"][0]) for name, feature in facts.items()}
    places = {name: _centroid(outline) for name, outline in outlines.items()}
    crimes = {name: feature["properties"]["CRIME"] for name, feature in facts.items()}
    nodes = {name: {"demand": crimes[name], "place": [round(float(x), 3) for x in places[name]]} for name in facts}
    roads = [(i, j, math.dist(places[i], places[j])) for i, j in _contiguous(folder / "columbus.gal")]
    city = to_city(Map(roads, nodes=nodes), NAME, 4, MAX_HOPS, CREWS, ROAD_COST)
    known = city.map or {}
    drawn = {"source": SOURCE, "outlines": [outlines[name].round(3).tolist() for name in known["labels"]]}
    return City.from_dict(city.to_dict() | {"map": known | drawn}, NAME)


def _contiguous(path: Path) -> list[tuple[str, str]]:
    """The pairs of a GAL file: how many nodes, then for each a line with it and a number, and a line of neighbours."""
    lines = [line.split() for line in path.read_text().splitlines()[1:]]
    return [(head[0], other) for head, others in zip(lines[::2], lines[1::2], strict=True) for other in others]


def _centroid(outline: np.ndarray) -> np.ndarray:
    """(n, 2) the corners of a polygon → (2,) its centre of mass."""
    x, following = outline[:-1], outline[1:]
    cross = x[:, 0] * following[:, 1] - following[:, 0] * x[:, 1]
    return ((x + following) * cross[:, None]).sum(0) / (3 * cross.sum())


def example() -> Path:
    """The folder of libpysal's example. ValueError where it is not installed."""
    found = importlib.util.find_spec("libpysal")
    if found is None or not found.submodule_search_locations:
        raise ValueError("libpysal is not installed: pip install --no-deps libpysal")
    return Path(found.submodule_search_locations[0]) / "examples" / "columbus"


if __name__ == "__main__":
    city = columbus(Path(sys.argv[1]) if len(sys.argv) > 1 else example())
    city.to_json(CITIES / f"{NAME}.json")
    print(f"{NAME}: {len(city.edges)} pairs of neighbours, hops up to {city.hops.max()}")
