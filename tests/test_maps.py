"""Cities from what people have: every format read alike, every fault one line, never a traceback."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowrl.__main__ import main
from flowrl.envs import maps
from flowrl.envs.city import City, CityError
from flowrl.envs.era import BatchedERA

# one square, 10 - 20 - 30 - 40, with a diagonal 10 - 30; demand 1, 2, 3, 4
CSV = "from,to,cost,name\n10,20,1,High St\n20,30,2,\n30,40,3,\n40,10,4,\n10,30,5,\n"
BOTH_WAYS = CSV + "20,10,1,\n30,20,2,\n40,30,3,\n10,40,4,\n30,10,5,\n"
PLAIN = "# no header\n10 20 1\n20 30 2\n30 40 3\n40 10 4\n10 30 5\n"
SEMICOLONS = "weight;target;source\n1;20.0;10\n2;30;20\n3;40;30\n4;10;40\n5;30;10\n"
GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="d0" for="node" attr.name="demand"/><key id="d1" for="edge" attr.name="length"/>
<graph edgedefault="undirected">
<node id="10"><data key="d0">1</data></node><node id="20"><data key="d0">2</data></node>
<node id="30"><data key="d0">3.0</data></node><node id="40"><data key="d0">4</data></node>
<edge source="10" target="20"><data key="d1">1</data></edge><edge source="20" target="30"><data key="d1">2</data></edge>
<edge source="30" target="40"><data key="d1">3</data></edge><edge source="40" target="10"><data key="d1">4</data></edge>
<edge source="10" target="30"><data key="d1">5</data></edge>
</graph></graphml>"""
ROADS = [(10, 20, 1), (20, 30, 2), (30, 40, 3), (40, 10, 4), (10, 30, 5)]
NODE_LINK = json.dumps({
    "directed": False, "multigraph": False, "graph": {},
    "nodes": [{"id": 10 * k, "demand": k, "x": k, "y": -k} for k in (1, 2, 3, 4)],
    "links": [{"source": i, "target": j, "weight": cost} for i, j, cost in ROADS],
})  # fmt: skip
TNTP = (
    "<NUMBER OF NODES> 4\n<NUMBER OF LINKS> 10\n<END OF METADATA>\n\n~ Init node\tTerm node\tCapacity\t…\t;\n"
    + "".join(
        f"\t{i}\t{j}\t25900.2\t99\t{cost}\t0.15\t4\t0\t0\t1\t;\n" for a, b, cost in ROADS for i, j in ((a, b), (b, a))
    )
)
TRIPS = "<NUMBER OF ZONES> 4\n<END OF METADATA>\n\nOrigin \t10\n 20 : 0.5; 30 : 0.5;\nOrigin 20\n 10 : 2.0;\n\n" + (
    "Origin 30\n 10 : 1; 20 : 1;\n 40 : 1;\nOrigin 40\n 30 : 4.0;\n"
)
DEMAND = "node,demand\n10,1\n20,2\n30,3\n40,4\n"
P_MEDIAN = " 4 6 2\n 1 2 9\n 2 3 2\n 3 4 3\n 4 1 4\n 1 3 5\n 2 1 1\n"  # the first road again, the other way round


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "demand"),
    [
        ("a.csv", CSV, DEMAND),
        ("a.csv", CSV, TRIPS),
        ("a.csv", BOTH_WAYS, DEMAND),
        ("a.csv", "\ufeff" + CSV, "population;node\n4;40\n3;30\n2;20\n1;10\n"),
        ("a.txt", PLAIN, DEMAND),
        ("a.csv", SEMICOLONS, DEMAND),
        ("a.graphml", GRAPHML, None),
        ("a.json", NODE_LINK, None),
        ("a.json", NODE_LINK.replace("links", "edges"), None),
        ("a_net.tntp", TNTP, TRIPS),
        ("a.txt", P_MEDIAN, DEMAND.replace("0,", ",")),
    ],
)
def test_every_format_is_the_same_city(tmp_path, name, text, demand):
    path = written(tmp_path, name, text)
    city, _ = maps.read(path, demand=demand and written(tmp_path, "demand.txt", demand))
    assert [edge[:2] for edge in city.edges] == [[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]
    np.testing.assert_allclose([edge[2] for edge in city.edges], np.array([1, 5, 4, 2, 3]) / 30, atol=1e-6)
    assert city.map["labels"] == ["1 2 3 4", "10 20 30 40"][text != P_MEDIAN].split()
    # P(e' | none yet) = ε/4 + (1 − ε) demand share; a district is not struck twice in a row
    np.testing.assert_allclose(city.transition[-1], 0.05 / 4 + 0.95 * np.array([0.1, 0.2, 0.3, 0.4]), atol=1e-6)
    np.testing.assert_allclose(city.transition[3], [*(0.05 / 3 + 0.95 * np.array([1, 2, 3]) / 6), 0], atol=1e-6)
    assert city.resources == (2 if text == P_MEDIAN else 3) and city.horizon == 100
    city.to_json(tmp_path / "city.json")
    assert City.load(tmp_path / "city.json").digest == city.digest


def test_what_was_read_otherwise_than_written_is_said(tmp_path):
    text = "from,to,cost\na,b,1\nb,a,3\na,a,1\nb,c,2\nb,c,7\n"
    city, notes = maps.read(written(tmp_path, "a.csv", text), road_cost=2)
    assert city.edges == [[0, 1, 2.0], [1, 2, 2.0]]  # the mean of 1 and 3, the cheapest of 2 and 7
    assert [note.partition(":")[0].split(",")[0] for note in notes] == [
        "no demand is given", "roads from a node to itself", "roads listed again",
        "roads that cost differently by direction",
    ]  # fmt: skip
    one_way = TNTP.replace("\t20\t10\t25900.2\t99\t1\t0.15\t4\t0\t0\t1\t;\n", "")
    city, notes = maps.read(written(tmp_path, "a.tntp", one_way))
    assert "one-way roads, read as both ways: 1" in notes and len(city.edges) == 5


def test_numbers_may_begin_anywhere_and_names_are_names(tmp_path):
    for first in (0, 1, 1000):
        text = "".join(f"{first + i},{first + j},1\n" for i, j in ((11, 2), (2, 0), (1, 0), (1, 11)))
        city, _ = maps.read(written(tmp_path, "a.csv", text))
        assert city.map["labels"] == [str(first + k) for k in (0, 1, 2, 11)]  # by number, not as text
        assert [edge[:2] for edge in city.edges] == [[0, 1], [0, 2], [1, 3], [2, 3]]
    city, _ = maps.read(written(tmp_path, "a.csv", "Soho,Bow\nBow,Kew\n"))
    assert city.map["labels"] == ["Soho", "Bow", "Kew"] and city.edges == [[0, 1, 0.1], [1, 2, 0.1]]


def test_places_come_with_nodes(tmp_path):
    assert maps.read(written(tmp_path, "a.json", NODE_LINK))[0].map["places"] == [[k, -k] for k in (1.0, 2, 3, 4)]
    demand = written(tmp_path, "d.csv", "id,demand,lon,lat\n10,1,-83.1,40\n20,2,0,1\n30,3,0,2\n40,0,0,3\n")
    city, _ = maps.read(written(tmp_path, "a.csv", CSV), demand=demand)
    assert city.map["places"][0] == [-83.1, 40.0]
    assert city.transition[-1, 3] == pytest.approx(0.05 / 4, abs=1e-8)  # no demand: struck by ε alone


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("a.csv", "a,b\nb,c\n", ""),
        ("a.csv", "from,to\na,b\nb,c\n", ""),
        ("a.csv", "from,to,miles,road\na,b,5,x\nb,c,7,y\n", "; --cost may name one of: miles, road"),
        ("a.json", NODE_LINK.replace("weight", "miles"), "; --cost may name one of: miles"),
        ("a.graphml", GRAPHML.replace("length", "miles"), "; --cost may name one of: miles"),
    ],
)
def test_costs_that_are_not_there_are_said(tmp_path, name, text, note):
    """As a missing demand is."""
    path = written(tmp_path, name, text)
    city, notes = maps.read(path)
    assert {edge[2] for edge in city.edges} == {0.1}
    assert "no cost is given: every road costs the same" + note in notes
    if note:
        path = written(tmp_path, name, text.replace("miles", "length"))
        city, notes = maps.read(path)
        assert len({edge[2] for edge in city.edges}) > 1 and not any("no cost" in one for one in notes)
    city, notes = maps.read(written(tmp_path, "a.csv", "a,b,0\nb,c,0\n"))
    assert "all roads cost 0: moves are free" in notes and not city.travel_costs


def test_a_cost_may_be_named_and_moving_free(tmp_path):
    path = written(tmp_path, "a_net.tntp", TNTP)
    assert {edge[2] for edge in maps.read(path, cost="length")[0].edges} == {0.1}
    assert not maps.read(path, road_cost=0)[0].travel_costs
    path = written(tmp_path, "a.json", NODE_LINK.replace('"weight": 5', '"weight": 5, "toll": 7'))
    with pytest.raises(CityError, match=r"a\.json: the edge from 10 to 20 has no 'toll'"):
        maps.read(path, cost="toll")


def test_an_imported_city_is_played_and_staying_put_is_valid(tmp_path):
    city, _ = maps.read(written(tmp_path, "a_net.tntp", TNTP), max_hops=1, proximity=[(0, 1, 1)], resources=2)
    env = BatchedERA(city, 16)
    for _ in range(20):
        env.step(env.allocation.clone())
    assert env.violations == 0


FAULTS = [
    ("a.csv", "", {}, "empty"),
    ("a.csv", "from,to\n1,2\n3,4\n", {}, "2 parts without a road between them, the smallest of 2 nodes, with"),
    ("a.csv", "from,to,cost\n1,2,-3\n", {}, 'line 2: cost is "-3"; allowed: a finite number ≥ 0'),
    ("a.csv", "from,to,cost\n1,2,1e999\n", {}, "line 2: cost is"),
    ("a.csv", "from,to,cost\n1,2,far\n", {}, "line 2: cost is"),
    ("a.csv", "a,b,5\nb,c\n", {}, "line 2: no cost, though others have one"),
    ("a.csv", "from,to,cost\n1,2\n2,3,4\n", {}, "line 2: no cost, though others have one"),
    ("a.csv", "from,to,cost\n1\n", {}, "line 2: 1 columns; there must be at least 2"),
    ("a.csv", "from,to,cost\n1,,2\n", {}, "a node without a name"),
    ("a.csv", "from,to,cost\n1,1,2\n", {}, "1 nodes; a city has at least 2"),
    ("a.csv", CSV, {"cost": "toll"}, "no column 'toll'; there are: from, to, cost, name"),
    ("a.csv", CSV, {"demand": "calls"}, "node attribute 'calls': 4 of 4 nodes have no demand, such as '10'"),
    ("a.csv", CSV, {"demand": "no.csv"}, "cannot be read: No such file"),
    ("a.csv", CSV, {"resources": 0}, "as a city: resources: got 0; allowed: an integer ≥ 1"),
    ("a.csv", CSV, {"proximity": [(0, 3, 1)]}, "as a city: proximity: got the item [0, 3, 1]"),
    ("a.csv", CSV, {"format": "graphml"}, "not a file of that format"),
    ("a.graphml", GRAPHML.replace("</graph>", ""), {}, "not a file of that format: mismatched tag"),
    ("a.graphml", "<svg/>", {}, "a <svg>; GraphML is a <graphml> with a <graph>"),
    ("a.graphml", GRAPHML.replace('target="40"', 'target="50"'), {}, "an edge leads to node '50', which is not listed"),
    ("a.graphml", GRAPHML.replace('"d0">4', '"d0">many'), {}, "demand of '40' is \"many\""),
    ("a.graphml", GRAPHML.replace('<data key="d0">2</data>', ""), {}, "1 of 4 nodes have no demand, such as '20'"),
    ("a.json", "[1, 2]", {}, 'node-link JSON is an object with "nodes" and "links"'),
    ("a.json", "[" * 100_000, {}, "not a file of that format"),
    ("a.json", '{"districts": 3, "resources": 2}', {}, "this is a city already"),
    ("a.json", NODE_LINK.replace('"id": 20', '"id": 10'), {}, "node '10' is there twice"),
    ("a.tntp", TNTP.replace("<END OF METADATA>", ""), {"format": "tntp"}, "has a line <END OF METADATA>"),
    ("a.tntp", TNTP.replace("\t25900.2\t99\t1", ""), {}, "columns; a TNTP link has 10"),
    ("a.txt", P_MEDIAN.replace(" 1 2 9\n", ""), {"format": "p-median"}, "6 edges are announced, of 3 numbers each"),
    ("a.txt", P_MEDIAN.replace(" 1 2 9", " 0 2 9"), {}, "edge 1: vertex 0; allowed: 1 to 4"),
]


@pytest.mark.parametrize(("name", "text", "options", "message"), FAULTS, ids=[fault[-1][:45] for fault in FAULTS])
def test_a_fault_is_one_line_that_names_the_file(tmp_path, name, text, options, message):
    path = written(tmp_path, name, text)
    with pytest.raises(CityError) as caught:
        maps.read(path, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith((str(path), "no.csv"))


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        ("node,demand\n10,1\n20,1\n30,1\n", "1 of 4 nodes have no demand, such as '40'"),
        (DEMAND + "50,1\n", "node '50' is not in the network"),
        (DEMAND + "40,1\n", "line 6: node '40' has a demand already"),
        (DEMAND.replace("40,4", "40,nan"), "the demand of '40' is \"nan\"; allowed: a finite number ≥ 0"),
        ("10,0\n20,0\n30,0\n40,0\n", "demand: 0 everywhere"),
    ],
)
def test_a_demand_that_does_not_fit_is_named(tmp_path, demand, message):
    with pytest.raises(CityError) as caught:
        maps.read(written(tmp_path, "a.csv", CSV), demand=written(tmp_path, "d.csv", demand))
    assert message in str(caught.value)


def test_the_command_writes_a_city_and_says_what_it_is(tmp_path, capsys):
    out = tmp_path / "city.json"
    words = ["city", written(tmp_path, "a.txt", P_MEDIAN), "--out", out, "--max-hops", 1, "--proximity", 0, 1, 1]
    assert main(list(map(str, words))) == 0
    said = capsys.readouterr().out
    assert "4 districts, 2 resources, 16 actions" in said and "roads listed again, the last counts: 1" in said
    city = City.load(out)
    assert city.proximity == [[0, 1, 1]] and city.max_hops == 1
    assert main(list(map(str, words))) == 2  # it is there already
    assert "--force" in capsys.readouterr().err


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_whatever_is_in_a_file_there_is_never_a_traceback(tmp_path, data):
    """Valid files with pieces cut out, bytes put in, words exchanged: a city, or one line and exit status 2."""
    text = data.draw(st.sampled_from([CSV, PLAIN, GRAPHML, NODE_LINK, TNTP, P_MEDIAN, TRIPS, ""])).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 40))
        put = data.draw(st.one_of(st.binary(max_size=6), st.sampled_from([
            b"nan", b"-1", b"1e400", b"9" * 5000, b"null", b"[]", b"{}", b"<a>", b"&x;", b'"', b"\n", b"true", b"\xff"
        ])))  # fmt: skip
        text = text[:at] + put + text[at + cut :]
    path, demand = tmp_path / "a.any", tmp_path / "demand.any"
    path.write_bytes(text)
    demand.write_bytes(data.draw(st.sampled_from([DEMAND.encode(), text, TRIPS.encode()])))
    words = ["city", str(path), "--out", str(tmp_path / "city.json"), "--force"]
    words += ["--demand", str(demand)] * data.draw(st.booleans())
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(words)
    assert status in (0, 2)
    assert (status == 0) == (error.getvalue() == "") and error.getvalue().count("\n") == (status == 2)
    if status == 0:
        city = City.load(tmp_path / "city.json")
        assert city.districts >= 2 and all(math.isfinite(cost) for *_, cost in city.edges)
