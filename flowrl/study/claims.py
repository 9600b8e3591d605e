"""Claims that generate themselves: what claims.yaml asks of the records, and the values, intervals, verdicts it gets.

A claim is one or more tests: a statistic of a quantity over runs, environments and seeds, and a criterion. Nothing is
typed in twice: value, interval and verdict come from the records that are there. Every error is one line that names the
fault and what is allowed.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import stats
from .config import ConfigError, choose
from .forms import check, read_yaml
from .plan import Run, experiments, recorded_as, runs, titles
from .plots import METHODS, PLACES
from .quantities import QUANTITIES, plain, significant
from .records import EXPERIMENTS, ROOT, Record, RecordError, by_label, matrix, read_record

CLAIMS, RECORDS = ROOT / "claims.yaml", ROOT / "data/runs"
TOP = {"preface", "margin", "claims", "numbers", "notebooks"}
_TEXTS = {"where": str, "says": str, "found": str, "note": str, "notebook": str, "cell": str, "verdict": str}
_QUERY = {
    "of": str, "statistic": str, "experiment": (str, [str]), "environments": (str, [str]), "runs": (str, [str]),
    "table": str, "rows": ({...: object}, [{...: object}]), "by": str, "level": float,
}  # fmt: skip
FORM = {"preface": str, "margin": float, "claims": {...: _TEXTS | {"tests": {...: _QUERY}}},
        "numbers": {...: _QUERY}, "notebooks": {...: _TEXTS}}  # fmt: skip
VERDICTS = ("holds", "holds in part", "not seen", "does not hold", "not tested")
ENUMERATED = 0.01  # share of steps without a valid draw from which a run doesn't count as having learnt
OF_ONE = ("mean", "iqm", "least", "most", "below", "above")  # statistics of one method's runs
OF_TWO = ("difference", "equivalent", "improvement", "ratio")  # and of two
EXACTLY = ("least", "most", "below", "above")  # of the seeds that there are: no interval
COMPARISONS = {">": "above", ">=": "at least", "<": "below", "<=": "at most"}

# --------------------------------------------------------------------------------------------- claims.yaml


class Query(NamedTuple):
    """A query on records or on a table, and what it must give; keys as in claims.yaml."""

    name: str  # claim.test
    of: str
    statistic: str
    experiment: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()  # none: all of the experiment
    runs: tuple[str, ...] = ()  # one label, or two to compare
    table: str = ""  # a CSV instead of records
    rows: tuple[dict, ...] = ()  # a filter a method: column: value
    by: str = ""  # "environment": apart, else all together
    level: float = 0.0  # what statistics `below` and `above` count runs against
    criterion: tuple[str, float] | None = None


def _test(name: str, entry: dict, margin: float) -> Query:
    """One test as written, checked. Raises ConfigError."""
    where = f"in claims.yaml: {name}:"
    _has_keys(name, entry, ("of", "statistic"), Query._fields[3:])
    choose(f"statistic {where}", entry["statistic"], OF_ONE + OF_TWO)
    listed = {key: _tuple(entry[key]) for key in ("experiment", "environments", "runs", "rows") if key in entry}
    fields: dict[str, Any] = entry | listed | {"name": name, "criterion": _criterion(name, entry, margin)}
    test = Query(**fields)
    if bool(test.experiment) == bool(test.table):
        raise ConfigError(f"claims.yaml: {name}: needs either 'experiment' or 'table'")
    _check_table(test, where) if test.table else _check_experiments(test, where)
    choose(f"by {where}", test.by, ("", "environment"))
    wanted, given = 1 + (test.statistic in OF_TWO), len(test.rows if test.table else test.runs)
    if given != wanted:
        kind = "rows" if test.table else "runs"
        raise ConfigError(f"claims.yaml: {name}: {test.statistic} needs {wanted} {kind}; there are {given}")
    return test


def _tuple(value) -> tuple:
    return tuple(value) if isinstance(value, list) else (value,)


def _criterion(name: str, entry: dict, margin: float) -> tuple[str, float] | None:
    """(comparison, bound); of an equivalence test its margin, by default the one for scores; None: a number only."""
    equivalent = entry["statistic"] == "equivalent"
    found = entry.get("criterion", {"within": margin} if equivalent else None)
    if found is None:
        return None
    if not (isinstance(found, dict) and len(found) == 1 and _finite(next(iter(found.values())))):
        raise ConfigError(f"claims.yaml: {name}: criterion is {found!r}; it must be one comparison: a finite number")
    ((comparison, bound),) = found.items()
    choose(f"criterion in claims.yaml: {name}:", comparison, ("within",) if equivalent else COMPARISONS)
    return comparison, float(bound)


def _finite(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_experiments(test: Query, where: str) -> None:
    choose(f"quantity {where}", test.of, QUANTITIES)
    for name in test.experiment:
        choose(f"experiment {where}", name, experiments(EXPERIMENTS))
    described = [experiments(EXPERIMENTS)[name] for name in test.experiment]
    for label in test.runs:
        choose(f"run {where}", label, dict.fromkeys(label for entry in described for label in entry["runs"]))
    for city in test.environments:
        choose(
            f"environment {where}", city, [recorded_as(city) for entry in described for city in entry["environments"]]
        )


def _check_table(test: Query, where: str) -> None:
    choose(f"table {where}", test.table, sorted(str(p.relative_to(ROOT)) for p in (ROOT / "data").glob("*/*.csv")))
    for column in (test.of, *(column for row in test.rows for column in row), *["environment"] * bool(test.by)):
        choose(f"column {where}", column, pd.read_csv(ROOT / test.table))


def load(path: Path = CLAIMS) -> dict:
    """claims.yaml: `claims`, `numbers`, `notebooks` as written, their tests checked. Raises ConfigError."""
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != TOP:
        raise ConfigError(f"{path}: the top-level keys must be {', '.join(sorted(TOP))}")
    check("claims.yaml", data, FORM)
    for name, claim in data["claims"].items():
        _has_keys(name, claim, ("where", "says", "tests", "notebook"), ("found", "note"))
        _notebook(name, claim["notebook"])
        if not claim["tests"]:
            raise ConfigError(f"claims.yaml: {name}: tests is empty; it must have at least one")
        tests = claim["tests"].items()
        claim["tests"] = {key: _test(f"{name}.{key}", entry, data["margin"]) for key, entry in tests}
    data["numbers"] = {key: _test(f"numbers.{key}", entry, data["margin"]) for key, entry in data["numbers"].items()}
    for name, entry in data["notebooks"].items():
        _has_keys(name, entry, ("where", "says", "found", "verdict", "notebook", "cell"))
        choose(f"verdict in claims.yaml: {name}:", entry["verdict"], VERDICTS)
        cells = {cell["id"] for cell in json.loads(_notebook(name, entry["notebook"]).read_text())["cells"]}
        choose(f"cell in claims.yaml: {name}:", entry["cell"], sorted(cells))
    return data


def _has_keys(name: str, entry: dict, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"claims.yaml: {name} is {entry!r}; its keys must be {', '.join(needed)}")
    for key in entry:
        choose(f"key in claims.yaml: {name}:", key, needed + optional)
    for key in needed:
        if key not in entry:
            raise ConfigError(f"claims.yaml: {name}: no {key!r}")


def _notebook(name: str, stem: str) -> Path:
    notebooks = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    choose(f"notebook in claims.yaml: {name}:", stem, notebooks)
    return notebooks[stem]


# --------------------------------------------------------------------------------------------- evaluation


class Sample(NamedTuple):
    """The values that a test is computed from, and what they come from."""

    names: list[str]  # of the methods, one or two
    values: list[np.ndarray]  # (R, M) each: seeds, environments
    scale: str  # "quick", "paper", or "" of a table
    records: str  # in words: how many, what the larger scale lacks, what else must be known of them
    steps: str = ""  # of training


class Result(NamedTuple):
    """A test's outcome, in words and numbers."""

    what: str
    value: str
    interval: str  # "" where there is none
    better: str  # probability of improvement with its interval, of two methods
    criterion: str
    verdict: str  # "" where there is no criterion
    scale: str
    records: str
    seeds: str
    steps: str
    number: float


class Missing(NamedTuple):
    """No scale has all the records that a query needs."""

    records: str


def planned_at(test: Query, environment: str, scale: str, root: Path) -> dict[Path, Run]:
    """The runs that a test asks for at a scale, by their records' paths."""
    wanted = (environment,) if environment else test.environments
    found = {}
    for experiment in test.experiment:
        for run in _runs(experiment, scale):
            if run.label in test.runs and (not wanted or Path(run.config.env).stem in wanted):
                found[run.path(root, scale)] = run
    return found


@functools.cache
def _runs(experiment: str, scale: str) -> list[Run]:
    """The runs of an experiment: once, as many tests ask for them."""
    return runs(EXPERIMENTS, experiment, scale)


def _absent(test: Query, planned: dict[Path, Run]) -> set[str]:
    """The labels of a test that are not among these runs."""
    return set(test.runs) - {run.label for run in planned.values()}


def _seeds(planned: dict[Path, Run]) -> int:
    """How many seeds each method has, at least."""
    return min(Counter((run.label, run.config.env) for run in planned.values()).values(), default=0)


def there(paths) -> int:
    """How many of these records are there, both files of them."""
    return sum(p.with_name(f"{p.name}.csv").exists() and p.with_name(f"{p.name}.json").exists() for p in paths)


def _from_records(test: Query, environment: str, root: Path, read: Callable) -> Sample | Missing:
    """What a test asks for, from the largest scale whose records are all there; not from one seed where more are."""
    lacking = []
    for scale in ("paper", "quick"):
        planned = planned_at(test, environment, scale, root)
        if absent := _absent(test, planned):
            lacking.append(f"{scale} scale has no {', '.join(sorted(absent))}")
        elif there(planned) == len(planned):
            quick = planned_at(test, environment, "quick", root)
            if _seeds(planned) > 1 or _seeds(quick) < 2 or there(quick) < len(quick) or _absent(test, quick):
                break
            lacking.append(f"{scale} scale has one seed of some")
        else:
            lacking.append(f"{scale} scale has {there(planned)} of {len(planned)} records")
    else:
        return Missing("; ".join(lacking))
    found = [read(path, run, scale) for path, run in planned.items()]
    labelled, value = by_label(found), functools.partial(_value, test)
    try:
        values = [matrix(labelled[label], value) for label in test.runs]
    except RecordError as error:
        raise RecordError(f"claims.yaml: {test.name}: {error}") from None
    steps = sorted({run.config.steps for run in planned.values()})
    steps = " to ".join(f"{n:,}" for n in (steps[0], steps[-1])[: len(steps)])
    words = [f"{scale}: {len(found)} record{'s' * (len(found) > 1)}, {steps} steps", *lacking]
    return Sample(_names(test), values, scale, "; ".join(words + _remarks(test, found, values)), steps)


def read_run(path: Path, run: Run, scale: str) -> Record:
    """The record of a run. Raises RecordError."""
    curve, facts = read_record(path)
    return Record(curve, facts, scale, stale=not run.config.made(facts))


def _value(test: Query, record: Record) -> float:
    """The quantity of one record. Raises RecordError where it has none."""
    quantity = QUANTITIES[test.of]
    try:
        value = quantity.of(record.facts, record.curve)
    except KeyError:  # a fact or column that older records don't have
        value = None
    if value is None:
        raise RecordError(f"{record.facts['label']} on {record.facts['environment']} has no {quantity.words}")
    return value


def _remarks(test: Query, found: list[Record], values: list[np.ndarray]) -> list[str]:
    """What else must be known of the records that a test is computed from."""
    facts = [record.facts for record in found]
    words = [f"one seed of {name}" for name, of_one in zip(_names(test), values, strict=True) if len(of_one) == 1]
    by_episodes = [known["final_exact_return"] is None for known in facts]
    if test.of in ("score", "gain") and any(by_episodes):
        words.append("by episodes" if all(by_episodes) else "some by episodes")
    diverged = sum(np.isnan(of_one).sum() for of_one in values)
    if diverged:
        words.append(f"{diverged} ended in NaN")
    many = sum(known["final_enumerated_share"] >= ENUMERATED for known in facts)
    if many and test.of in ("score", "gain", "return", "exact_return"):
        words.append(f"{many} by enumeration or fallback in 1 % of their steps or more")
    if any(record.stale for record in found):
        words.append("**made with other settings than experiments.yaml names now**")
    return words


def _names(test: Query) -> list[str]:
    """What figures call the runs."""
    named = {label: title for experiment in test.experiment for label, title in titles(EXPERIMENTS, experiment).items()}
    return [METHODS[label].name if named[label] == label in METHODS else named[label] for label in test.runs]


def _from_table(test: Query, environment: str) -> Sample:
    """What a test asks for, from a table: its rows are seeds of one task."""
    table, values, names = pd.read_csv(ROOT / test.table), [], []
    for row in test.rows:
        wanted = row | ({"environment": environment} if environment else {})
        chosen = table[np.logical_and.reduce([table[column] == value for column, value in wanted.items()])]
        if chosen.empty:
            raise ConfigError(f"claims.yaml: {test.name}: {test.table} has no row {wanted}")
        values.append(np.asarray(chosen[[test.of]], dtype=float))
        names.append(", ".join(METHODS[v].name if v in METHODS else str(v) for v in row.values()))
    rows = sum(map(len, values))
    return Sample(names, values, "", f"[{test.table}](../{test.table}): {rows} row{'s' * (rows > 1)}")


def _estimate(test: Query, sample: Sample) -> tuple[float, float, float]:
    """Value, low and high: 95 % stratified bootstrap, of an equivalence test its 90 % Welch interval."""
    rng, x = np.random.default_rng(0), sample.values[0]
    one = {
        "mean": np.mean, "least": np.min, "most": np.max, "iqm": lambda values: stats.iqm(values.ravel()),
        "below": lambda values: (values < test.level).sum(), "above": lambda values: (values > test.level).sum(),
    }  # fmt: skip
    if test.statistic in one:
        value = float(one[test.statistic](x))
        if test.statistic in EXACTLY or len(x) < 2:
            return value, value, value
        low, high = stats.bootstrap_interval(x, rng, np.mean if test.statistic == "mean" else stats.iqm)
        return value, low, high
    y = sample.values[1]
    if test.statistic == "equivalent":
        value = float(stats.difference(x, y))
        if min(len(x), len(y)) < 2:
            return value, value, value
        assert test.criterion is not None  # within the margin, if nothing else
        low, high, _ = stats.equivalence(x, y, test.criterion[1])
        return value, low, high
    statistic = getattr(stats, test.statistic)
    value = float(statistic(x, y))
    if max(len(x), len(y)) < 2:
        return value, value, value
    low, high = stats.comparison_interval(x, y, rng, statistic)
    return value, low, high


def decide(criterion: tuple[str, float] | None, low: float, high: float) -> str:
    """The verdict of a test whose interval is [low, high]: decided where the whole of it is on one side."""
    if criterion is None:
        return ""
    comparison, bound = criterion
    if comparison == "within":
        inside, outside = -bound < low and high < bound, low >= bound or high <= -bound
    else:
        inside, outside = {
            ">": (low > bound, high <= bound), ">=": (low >= bound, high < bound),
            "<": (high < bound, low >= bound), "<=": (high <= bound, low > bound),
        }[comparison]  # fmt: skip
    return "holds" if inside else "does not hold" if outside else "not seen"


def _shown(test: Query, number: float, count: int) -> str:
    """A test's value in words."""
    quantity = QUANTITIES.get(test.of)
    if test.statistic in ("below", "above"):
        return f"{number:.0f} of {count}"
    if test.statistic == "improvement":
        return f"{number:.2f}"
    if test.statistic == "ratio":
        return significant(number)
    if test.statistic in ("difference", "equivalent"):
        digits = None if quantity is None else quantity.digits
        text = significant(abs(number)) if digits is None else f"{abs(number):,.{digits}f}"
        return f"{'−' if number < 0 else '+' if number > 0 else ''}{text}"  # also of a difference that rounds to 0
    if test.statistic in ("least", "most") and test.of == "score":
        return f"{number:.3f}"  # one run's: two digits hide on which side of a criterion it is
    return quantity.show(number) if quantity else significant(number, 3)


def _what(test: Query, names: list[str], environment: str) -> str:
    """A test in words."""
    words = QUANTITIES[test.of].words if test.experiment else test.of.replace("_", " ")
    cities = [environment] if environment else list(test.environments or _environments(test))
    cities = [PLACES.get(city, city) for city in cities]
    where = f" ({', '.join(cities) if len(cities) < 3 else f'{cities[0]} to {cities[-1]}'})" if cities else ""
    if test.statistic in OF_TWO:
        sign = {"difference": "−", "equivalent": "−", "ratio": "/", "improvement": ">"}[test.statistic]
        first, second = (f"({name})" if "," in name else name for name in names)
        return f"{words}: {first} {sign} {second}{where}"
    how = {"mean": "mean", "iqm": "interquartile mean", "least": "least of all seeds", "most": "greatest of all seeds"}
    count = f"runs {test.statistic} {plain(0)(test.level)}"
    return f"{words}: {names[0]}, {how.get(test.statistic, count)}{where}"


def _environments(test: Query) -> list[str]:
    """All environments of a test's experiments, or of its table."""
    if test.table:
        table = pd.read_csv(ROOT / test.table)
        return list(dict.fromkeys(table["environment"])) if test.by else []
    return list(
        dict.fromkeys(
            recorded_as(city) for e in test.experiment for city in experiments(EXPERIMENTS)[e]["environments"]
        )
    )


def result(test: Query, environment: str, root: Path, read: Callable = read_run) -> Result:
    """A test's outcome, in one environment or, with "", in all that it names."""
    sample = _from_table(test, environment) if test.table else _from_records(test, environment, root, read)
    criterion = "" if test.criterion is None else _bound(test.criterion)
    if isinstance(sample, Missing):
        verdict = "not tested" if test.criterion else ""
        return Result(
            _what(test, _names(test), environment), "—", "", "", criterion, verdict, "", sample.records, "", "", np.nan
        )
    value, low, high = _estimate(test, sample)
    count, seeds = sample.values[0].size, " and ".join(dict.fromkeys(str(len(values)) for values in sample.values))
    interval = "" if low == high else f"[{_shown(test, low, count)}, {_shown(test, high, count)}]"
    verdict = decide(test.criterion, low, high)
    if _one_seed(test, sample) and (verdict == "holds" or (verdict and test.statistic not in EXACTLY)):
        verdict = "not tested"  # what is said of every seed one can refute
    return Result(
        _what(test, sample.names, environment), _shown(test, value, count), interval, _better(test, sample), criterion,
        verdict, sample.scale, sample.records, seeds, sample.steps, value,
    )  # fmt: skip


def _one_seed(test: Query, sample: Sample) -> bool:
    """Whether there is but one of a method's: a single seed tells no spread. Tables have what they have."""
    return not test.table and min(map(len, sample.values)) < 2


def _bound(criterion: tuple[str, float]) -> str:
    comparison, bound = criterion
    shown = f"{bound:g}".replace("-", "−")
    return f"within ± {shown}" if comparison == "within" else f"{COMPARISONS[comparison]} {shown}"


def _better(test: Query, sample: Sample) -> str:
    """P(first above second), with its 95 % bootstrap interval: beside every difference of two methods."""
    if test.statistic not in ("difference", "equivalent"):
        return ""
    first, second = sample.values
    value = float(stats.improvement(first, second))
    if min(map(len, sample.values)) < 2:
        return f"{value:.2f}"
    low, high = stats.comparison_interval(first, second, np.random.default_rng(0), stats.improvement)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def verdict_of(verdicts: list[str]) -> str:
    """A claim's verdict from its tests': "holds" if all do, "holds in part" if some do."""
    verdicts = [verdict for verdict in verdicts if verdict]
    if "holds" in verdicts:
        return "holds" if set(verdicts) == {"holds"} else "holds in part"
    return next((verdict for verdict in ("does not hold", "not seen") if verdict in verdicts), "not tested")


def evaluate(claims: dict, root: Path = RECORDS) -> dict[str, dict[str, Result]]:
    """Every test's results by claim (`numbers` for those that are none), then by test, or test.environment."""
    read = functools.cache(read_run)
    tests = {name: claim["tests"] for name, claim in claims["claims"].items()} | {"numbers": claims["numbers"]}
    return {
        name: {
            f"{key}.{environment}" if environment else key: result(test, environment, root, read)
            for key, test in group.items()
            for environment in ((test.environments or _environments(test)) if test.by else ("",))
        }
        for name, group in tests.items()
    }
