"""ERA-Columbus: the facts it is made of, how its file is made of them, where its vehicles are."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.columbus import played
from flowrl.envs.city import CITIES, City
from flowrl.study.records import ROOT
from flowrl.truth import columbus, search
from flowrl.truth.orbits import Orbits


@pytest.fixture
def example(tmp_path):
    """Three unit squares side by side, 1 - 2 - 3, listed as libpysal lists its neighbourhoods."""

    def feature(k):
        square = [[k, 0.0], [k, 1.0], [k + 1, 1.0], [k + 1, 0.0], [k, 0.0]]
        return {"properties": {"POLYID": float(k), "CRIME": 10.0 * k}, "geometry": {"coordinates": [square]}}

    (tmp_path / "columbus.json").write_text(json.dumps({"features": [feature(k) for k in (1, 2, 3)]}))
    (tmp_path / "columbus.gal").write_text("3\n1 1\n2\n2 2\n1 3\n3 1\n2\n")
    return tmp_path


def test_neighbours_distances_and_rates_make_the_city(example):
    city = columbus.columbus(example)
    assert city.edges == [[0, 1, 0.01], [1, 2, 0.01]] and city.map["places"] == [[1.5, 0.5], [2.5, 0.5], [3.5, 0.5]]
    np.testing.assert_allclose(city.transition[-1], 0.05 / 3 + 0.95 * np.array([1, 2, 3]) / 6, atol=1e-6)
    assert (city.resources, city.max_hops, city.proximity) == (4, 2, [[0, 1, 2], [2, 3, 2]])
    assert "Anselin" in city.map["source"] and len(city.map["outlines"][0]) == 5


def test_the_centroid_of_a_triangle_whichever_way_it_is_drawn():
    triangle = np.array([[0, 0], [3, 0], [0, 6], [0, 0]], dtype=float)
    for outline in (triangle, triangle[::-1]):
        np.testing.assert_allclose(columbus._centroid(outline), [1, 2])


def test_what_is_shipped_is_columbus(tmp_path):
    city = City.load("ERA-Columbus")
    assert (city.districts, len(city.edges), city.allocations) == (49, 118, 5_764_801)
    assert city.map["labels"] == [str(k) for k in range(1, 50)] and city.adjacency.sum(1).max() == 10
    assert "neighbourhood" not in city.to_dict() and "Anselin" in city.map["source"]
    assert search.valid_fraction(city) < 0.01
    orbits = Orbits(city)
    assert orbits.groups == [[0, 1], [2, 3]] and orbits.count == 1225**2
    try:
        folder = columbus.example()
    except ValueError:
        return  # the rest needs libpysal, which nothing else does
    columbus.columbus(folder).to_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (CITIES / "ERA-Columbus.json").read_text()


def test_what_is_known_of_columbus():
    known = search.reference("ERA-Columbus")
    assert known["uniform_valid"] < known["go_and_stay"] < known["walk_and_stay"] < known["optimal"]
    assert known["dispatch_nearest"] < known["optimal"] and known["go_and_stay_sem"] == 0


def test_the_table_of_where_vehicles_are_is_of_that_city():
    city, table = City.load("ERA-Columbus"), pd.read_csv(ROOT / "data/comparisons/columbus.csv")
    assert table["neighbourhood"].astype(str).tolist() == city.map["labels"]
    np.testing.assert_allclose(table["struck"], city.transition[-1], atol=1e-5)
    shares = table.drop(columns=["neighbourhood", "struck"])
    assert (shares.sum() <= 4 + 1e-3).all() and ((shares >= 0) & (shares <= 1)).all().all()


def test_coverage_and_returns_of_staying_put():
    city = City.load("ERA-v1")
    covered, total = played(city, lambda env: env.allocation, city.starts[:1].repeat(3000, axis=0))
    assert set(covered) <= {0.0, 1.0} and set(np.flatnonzero(covered)) == set(city.starts[0].tolist())
    path = torch.as_tensor(city.starts[:1]).repeat(101, 1, 1).numpy()
    expected = search.expected_return(city, path)[0]
    assert abs(total.mean() - expected) < 4 * total.std() / 3000**0.5  # z < 4
