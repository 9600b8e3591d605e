"""Cities from what people have: edge lists (CSV), GraphML, node-link JSON, TNTP road networks, OR-library p-median.

Nodes are districts and roads are edges, whatever they are called and however they are numbered, and listed in one
direction or both. A node's demand is how often it is struck: P(next emergency k | last e) ∝ demand_k, k ≠ e, but for
the share ε. An emergency pays 1 where it is served, −1 where it is not; travel costs are scaled to that.
"""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .city import City, CityError

FROM = ("from", "source", "init_node", "start", "origin", "node1", "u", "i")
TO = ("to", "target", "term_node", "end", "destination", "node2", "v", "j")
COST = ("cost", "weight", "travel_time", "length", "distance", "time")
NODE = ("node", "id", "name", "district")
DEMAND = ("demand", "population")
PLACE = (("x", "y"), ("lon", "lat"), ("longitude", "latitude"))
LEAST_DEMAND = 1e-9  # of the whole: what counts for none, as its logarithm is a score


@dataclass
class Map:
    """What a file says: roads as it lists them, and what it knows of the nodes, by label."""

    roads: list[tuple[str, str, float]] = field(default_factory=list)
    directed: bool = False  # whether a road leads one way, as listed
    last_counts: bool = False  # of a road listed again; else the cheapest
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)  # their attributes
    resources: int | None = None
    notes: list[str] = field(default_factory=list)  # what was read otherwise than written


def read(
    path: str | Path,
    format: str | None = None,
    demand: str | Path | None = None,
    cost: str | None = None,
    **settings: Any,
) -> tuple[City, list[str]]:
    """The city that a file describes, and what was read into it, a line each.

    format: one of FORMATS, else told from the file. demand: a CSV file of nodes and demands or a TNTP trip table, or
    the name of a node attribute; default the first of DEMAND, else the same everywhere. cost: the name of an edge
    attribute or column; default the first of COST, else 1. settings: of `to_city`. Raises CityError: one line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = FORMATS[format or _format(path, text)](text, cost)
        notes = found.notes + _set_demand(found, demand)
        return to_city(found, path.stem, notes=notes, **settings), notes
    except OSError as error:
        raise CityError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    except CityError as error:
        raise CityError(f"{path}: {error}") from None
    except (ValueError, csv.Error, ET.ParseError, RecursionError) as error:
        raise CityError(f"{path}: not a file of that format: {' '.join(str(error).split())[:200]}") from None


def to_city(
    found: Map,
    name: str,
    resources: int | None = None,
    max_hops: int | None = 3,
    proximity: Sequence[Sequence[int]] = (),
    road_cost: float = 0.1,
    epsilon: float = 0.05,
    horizon: int = 100,
    notes: list[str] | None = None,
) -> City:
    """The city of a map; `road_cost`: what a road costs on average, 0: moves are free. Raises CityError."""
    notes = [] if notes is None else notes
    labels, K = _labels(found), len(found.nodes)
    if K < 2:
        raise CityError(f"{K} nodes; a city has at least 2")
    number = {label: k for k, label in enumerate(labels)}
    edges = _edges(found, number, notes)
    _check_connected(labels, edges)
    mean = sum(edges.values()) / len(edges)
    scale = road_cost / mean if mean else 0.0
    if road_cost and not mean:
        notes.append("all roads cost 0: moves are free")
    demand = [found.nodes[label].get("demand", 1.0) for label in labels]
    if not sum(demand):
        raise CityError("demand: 0 everywhere")
    shares = [max(one / sum(demand), LEAST_DEMAND) for one in demand]
    places = [found.nodes[label].get("place") for label in labels]
    drawn = {"labels": labels} | ({"places": places} if all(places) else {})
    data = {
        "districts": K,
        "resources": next(n for n in (resources, found.resources, 3) if n is not None),
        "edges": [[i, j, float(f"{scale * price:.6g}")] for (i, j), price in sorted(edges.items())],
        "covered": [1.0] * K,
        "uncovered": [-1.0] * K,
        "profiles": [{"weight": 1.0, "scores": [round(math.log(share), 6) for share in shares]}],
        "epsilon": epsilon,
        "max_hops": max_hops,
        "proximity": [list(pair) for pair in proximity],
        "travel_costs": scale > 0,
        "horizon": horizon,
        "start": "proximate",
        "map": drawn,
    }
    return City.from_dict(data, name, "as a city")


def _labels(found: Map) -> list[str]:
    """The nodes in the order of districts: by number where all are numbered, else as the file has them."""
    for i, j, _ in found.roads:
        found.nodes.setdefault(i, {})
        found.nodes.setdefault(j, {})
    labels = list(found.nodes)
    return sorted(labels, key=int) if all(re.fullmatch(r"-?\d+", label) for label in labels) else labels


def _edges(found: Map, number: Mapping[str, int], notes: list[str]) -> dict[tuple[int, int], float]:
    """{(i, j): cost}, i < j: each road once, and notes of what that left out."""
    ways: dict[tuple[int, int], float] = {}
    loops = again = 0
    for a, b, price in found.roads:
        i, j = number[a], number[b]
        key = (min(i, j), max(i, j)) if found.last_counts else (i, j)
        loops += i == j
        again += key in ways
        if i != j:
            ways[key] = price if found.last_counts else min(price, ways.get(key, math.inf))
    edges = {}
    uneven = single = 0
    for (i, j), price in ways.items():
        back = ways.get((j, i), price)
        uneven += i < j and back != price
        single += (j, i) not in ways
        edges[min(i, j), max(i, j)] = (price + back) / 2
    which = "last" if found.last_counts else "cheapest"
    for count, note in (
        (loops, "roads from a node to itself, left out"),
        (again, f"roads listed again, the {which} counts"),
        (uneven, "roads that cost differently by direction, the mean counts"),
        (single * found.directed, "one-way roads, read as both ways"),
    ):
        if count:
            notes.append(f"{note}: {count}")
    if not edges:
        raise CityError("no roads between different nodes")
    return edges


def _check_connected(labels: Sequence[str], edges: Iterable[tuple[int, int]]) -> None:
    parent = list(range(len(labels)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    for i, j in edges:
        parent[root(i)] = root(j)
    parts: dict[int, list[str]] = {}
    for k, label in enumerate(labels):
        parts.setdefault(root(k), []).append(label)
    if len(parts) > 1:
        small = min(parts.values(), key=len)
        raise CityError(
            f"{len(parts)} parts without a road between them, the smallest of {len(small)} nodes, with {small[0]!r}; "
            "keep one part, or add roads"
        )


# --------------------------------------------------------------------------------------------------------- demand


def _set_demand(found: Map, given: str | Path | None) -> list[str]:
    """Give every node its demand; notes. CityError where it is missing, negative or of an unknown node."""
    _labels(found)
    if given is not None and (Path(given).exists() or Path(given).suffix):
        text = Path(given).read_text(encoding="utf-8-sig")
        trips = "<end of metadata>" in text.lower()
        rows = _trips(text) if trips else _demands(text)
        if unknown := [label for label in rows if label not in found.nodes]:
            raise CityError(f"{given}: node {unknown[0]!r} is not in the network")
        for label, attributes in (dict.fromkeys(found.nodes, {"demand": 0.0}) if trips else {}).items():
            rows.setdefault(label, dict(attributes))  # where no trip begins
        source, key = str(given), "demand"
    else:
        keys = [str(given)] if given is not None else DEMAND
        key = next((key for key in keys if any(key in node for node in found.nodes.values())), None)
        if key is None and given is None:
            for node in found.nodes.values():
                node["demand"] = 1.0
            return ["no demand is given: the same everywhere"]
        key = key or str(given)
        rows, source = {k: node for k, node in found.nodes.items() if key in node}, f"node attribute {key!r}"
    if missing := [label for label in found.nodes if label not in rows]:
        raise CityError(f"{source}: {len(missing)} of {len(found.nodes)} nodes have no demand, such as {missing[0]!r}")
    for label, row in rows.items():
        found.nodes[label] |= row | {"demand": _number(row[key], f"{source}: the demand of {label!r}")}
    return []


def _demands(text: str) -> dict[str, dict[str, Any]]:
    """A CSV file of nodes, demands and, if its header says so, places."""
    header, rows = _table(text)
    node = _column(header, NODE, 0)
    demand = _column(header, DEMAND, 1 if node == 0 else 0)
    x_y = next(([header.index(x), header.index(y)] for x, y in PLACE if x in header and y in header), None)
    found: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        _wide_enough(row, max(node, demand, *(x_y or ())), line)
        label = _label(row[node])
        if label in found:
            raise CityError(f"line {line}: node {label!r} has a demand already")
        place = {"place": [_number(row[k], f"line {line}: place", -math.inf) for k in x_y]} if x_y else {}
        found[label] = {"demand": row[demand]} | place
    return found


def _trips(text: str) -> dict[str, dict[str, Any]]:
    """A TNTP trip table: how many trips begin in each zone."""
    body = re.split("(?i)<end of metadata>", text, maxsplit=1)[1]
    found: dict[str, dict[str, Any]] = {}
    for part in re.split(r"(?i)\borigin\b", body)[1:]:
        label, _, trips = part.strip().partition("\n")
        amounts = [pair.partition(":")[2] for pair in trips.split(";") if pair.strip()]
        found[_label(label)] = {"demand": sum(_number(amount, f"origin {label}: trips") for amount in amounts)}
    return found


# -------------------------------------------------------------------------------------------------------- formats


def _csv(text: str, cost: str | None) -> Map:
    """from, to and perhaps a cost; other columns are left out."""
    header, rows = _table(text)
    a, b = _column(header, FROM, 0), _column(header, TO, 1)
    if cost is not None and cost.lower() not in header:
        raise CityError(f"no column {cost!r}; there are: {', '.join(header) or 'none, the file has no header'}")
    price = _column(header, COST if cost is None else (cost.lower(),), -1 if header else 2)
    for line, row in rows:
        _wide_enough(row, max(a, b), line)
    given = [0 <= price < len(row) for _, row in rows]
    if any(given) and not all(given):
        raise CityError(f"line {rows[given.index(False)][0]}: no cost, though others have one")
    found = Map() if any(given) else Map(notes=[_no_cost(name for k, name in enumerate(header) if k not in (a, b))])
    for line, row in rows:
        cost_of_it = _number(row[price], f"line {line}: cost") if given[0] else 1.0
        found.roads.append((_label(row[a]), _label(row[b]), cost_of_it))
    return found


def _no_cost(others: Iterable[str]) -> str:
    """The note where roads have no cost by a usual name; others: what they have."""
    there = ", ".join(map(str, dict.fromkeys(others)))
    return "no cost is given: every road costs the same" + (f"; --cost may name one of: {there}" if there else "")


def _table(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header in small letters, [] where there is none, and the rows with their lines' numbers."""
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"]
    if not numbered:
        raise CityError("empty")
    lines = [line for _, line in numbered]
    sign = next((sign for sign in "\t;," if sign in lines[0]), None)
    if sign is None:
        rows = [line.split() for line in lines]
    else:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=sign)]
    first = [cell.lower() for cell in rows[0]]
    known = {*FROM, *TO, *COST, *NODE, *DEMAND}
    header = first if known & set(first) and not any(map(_is_number, first)) else []
    numbers = [n for n, _ in numbered][-len(rows) :]
    return header, [(n, row) for k, (n, row) in enumerate(zip(numbers, rows, strict=True)) if k or not header]


def _column(header: Sequence[str], names: Sequence[str], default: int) -> int:
    return next((header.index(name) for name in names if name in header), default)


def _wide_enough(row: Sequence[str], column: int, line: int) -> None:
    if len(row) <= column:
        raise CityError(f"line {line}: {len(row)} columns; there must be at least {column + 1}")


def _graphml(text: str, cost: str | None) -> Map:
    root = ET.fromstring(text)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    graph = root.find(".//graph") if root.tag == "graphml" else None
    if graph is None:
        raise CityError(f"a <{root.tag}>; GraphML is a <graphml> with a <graph>")
    names = {key.get("id", ""): key.get("attr.name") or key.get("id", "") for key in root.iter("key")}

    def attributes(element: ET.Element) -> dict[str, Any]:
        return {names.get(key := data.get("key", ""), key): data.text or "" for data in element.findall("data")}

    nodes = [(node.get("id"), attributes(node)) for node in graph.iter("node")]
    roads = [(edge.get("source"), edge.get("target"), attributes(edge)) for edge in graph.iter("edge")]
    return _graph(nodes, roads, graph.get("edgedefault") == "directed", cost)


def _node_link(text: str, cost: str | None) -> Map:
    data = json.loads(text)
    if isinstance(data, dict) and {"districts", "resources"} <= data.keys():
        raise CityError("this is a city already: train on it as it is")
    edges = data.get("links", data.get("edges", ())) if isinstance(data, dict) else ()
    parts = (data.get("nodes"), edges) if isinstance(data, dict) else ()
    if not parts or not all(isinstance(part, list) and all(isinstance(x, dict) for x in part) for part in parts):
        raise CityError('node-link JSON is an object with "nodes" and "links" (or "edges"), lists of objects')
    nodes = [(node.get("id", node.get("name")), node) for node in data["nodes"]]
    return _graph(
        nodes, [(edge.get("source"), edge.get("target"), edge) for edge in edges], bool(data.get("directed")), cost
    )


def _graph(nodes: list, roads: list, directed: bool, cost: str | None) -> Map:
    """A map of nodes (id, attributes) and roads (id, id, attributes). CityError."""
    found = Map(directed=directed)
    for node, attributes in nodes:
        place = next(([attributes[x], attributes[y]] for x, y in PLACE if x in attributes and y in attributes), None)
        own = {key: value for key, value in attributes.items() if key != "place"}
        if place is not None:
            own["place"] = [_number(value, f"the place of {node!r}", -math.inf) for value in place]
        if _label(node) in found.nodes:
            raise CityError(f"node {_label(node)!r} is there twice")
        found.nodes[_label(node)] = own
    names = COST if cost is None else (cost,)
    key = next((name for name in names if any(name in attributes for *_, attributes in roads)), None)
    if key is None and cost is not None:
        raise CityError(f"no edge has the attribute {cost!r}")
    if key is None and roads:
        others = (name for *_, attributes in roads for name in attributes if name not in ("source", "target"))
        found.notes.append(_no_cost(others))
    for a, b, attributes in roads:
        if unknown := [end for end in (a, b) if _label(end) not in found.nodes]:
            raise CityError(f"an edge leads to node {unknown[0]!r}, which is not listed")
        if key is not None and key not in attributes:
            raise CityError(f"the edge from {a!r} to {b!r} has no {key!r}")
        price = 1.0 if key is None else _number(attributes[key], f"the {key} from {a!r} to {b!r}")
        found.roads.append((_label(a), _label(b), price))
    return found


def _tntp(text: str, cost: str | None) -> Map:
    """A network file: init node, term node, capacity, length, free flow time, …; the cost is the free flow time."""
    column = {None: 4, "free_flow_time": 4, "time": 4, "length": 3, "distance": 3}.get(cost)
    if column is None:
        raise CityError(f"no cost {cost!r} in a TNTP network; there are free_flow_time and length")
    parts = re.split("(?i)<end of metadata>", text, maxsplit=1)
    if len(parts) != 2:
        raise CityError("a TNTP network has a line <END OF METADATA>")
    found = Map(directed=True)
    for line in parts[1].splitlines():
        words = line.partition("~")[0].replace(";", " ").split()
        if words:
            if len(words) < 10:
                raise CityError(f"{line.strip()[:60]!r} has {len(words)} columns; a TNTP link has 10")
            found.roads.append((_label(words[0]), _label(words[1]), _number(words[column], f"link {words[:2]}: cost")))
    return found


def _p_median(text: str, cost: str | None) -> Map:
    """n, m, p, then m edges (i, j, cost), the last of which counts where one is listed again, as the library says."""
    if cost is not None:
        raise CityError("an edge of a p-median file has but one cost, without a name")
    words = text.split()
    if len(words) < 3 or not all(word.isascii() and word.isdigit() for word in words[:3]):
        raise CityError("a p-median file begins with its numbers of vertices, edges and medians")
    n, m, p = map(int, words[:3])
    if len(words) != 3 + 3 * m:
        raise CityError(f"{m} edges are announced, of 3 numbers each; there are {len(words) - 3} numbers")
    found = Map(last_counts=True, resources=p)
    for k in range(m):
        a, b, price = words[3 + 3 * k : 6 + 3 * k]
        for end in (a, b):
            if not (_is_number(end) and 1 <= float(end) <= n):
                raise CityError(f"edge {k + 1}: vertex {end[:20]}; allowed: 1 to {n}")
        found.roads.append((_label(a), _label(b), _number(price, f"edge {k + 1}: cost")))
    return found


FORMATS: dict[str, Callable[[str, str | None], Map]] = {
    "csv": _csv, "graphml": _graphml, "node-link": _node_link, "tntp": _tntp, "p-median": _p_median
}  # fmt: skip


def _format(path: Path, text: str) -> str:
    """What a file is: by its first words, whatever it is called."""
    start = text.lstrip()[:1]
    if start == "<":
        return "tntp" if "<end of metadata>" in text.lower() else "graphml"
    if start in ("{", "["):
        return "node-link"
    words = text.split()
    numbers = len(words) > 3 and all(word.isascii() and word.isdigit() for word in words[:3])
    if path.suffix != ".csv" and numbers and len(text.split("\n", 1)[0].split()) == 3 and len(words) % 3 == 0:
        return "p-median" if int(words[1][:9]) == len(words) // 3 - 1 else "csv"
    return "csv"


# -------------------------------------------------------------------------------------------------------- numbers


def _label(value: Any) -> str:
    """A node's name: numbers are the same however they are written, 1, 1.0, " 01 "."""
    if value is None or str(value).strip() == "":
        raise CityError("a node without a name")
    text = str(value).strip()
    return str(int(text.partition(".")[0])) if re.fullmatch(r"[+-]?\d+(\.0*)?", text, re.ASCII) else text


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def _number(value: Any, what: str, least: float = 0.0) -> float:
    if isinstance(value, bool) or not _is_number(str(value)) or float(value) < least:
        shown = json.dumps(value, default=str)[:40]
        raise CityError(f"{what} is {shown}; allowed: a finite number" + (" ≥ 0" if least == 0 else ""))
    return float(value)
