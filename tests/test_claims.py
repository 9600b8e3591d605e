"""Claims on made-up and committed records: values by hand, verdicts, faults in one line, and documents up to date."""

import json
import re

import numpy as np
import pytest
import scipy.stats
import yaml
from conftest import REFERENCE, fake_record

from flowrl.__main__ import main
from flowrl.study import claims, report
from flowrl.study.config import ConfigError
from flowrl.study.plan import runs
from flowrl.study.records import EXPERIMENTS, ROOT
from flowrl.study.stats import improvement

MEAN = {"experiment": "fig5", "runs": "mask", "of": "score", "statistic": "mean"}
SEEDS = sum((run.label, run.config.env) == ("mask", "ERA-v2") for run in runs(EXPERIMENTS, "fig5", "paper"))  # planned
MINUS = {"experiment": "fig5", "runs": ["iar-a2c", "mask"], "of": "score", "statistic": "difference"}


def query(**entry):
    return claims._test("claim.test", entry, 0.02)


def record_scores(root, experiment="fig5", scale="quick", **scores):
    """Records whose exact scores are given, by label: a list over seeds, the same in every environment."""
    for run in runs(EXPERIMENTS, experiment, scale):
        given = scores.get(run.label.replace("-", "_"), [0.9] * 5)
        span = REFERENCE["optimal"] - REFERENCE["uniform_valid"]
        exact = REFERENCE["uniform_valid"] + given[run.config.seed] * span
        fake_record(run, root, scale, final_exact_return=exact)
    return root


@pytest.fixture
def root(tmp_path):
    return record_scores(tmp_path, iar_a2c=[0.95, 0.97, 0.99], mask=[0.91, 0.92, 0.96], ar_iar=[0.89, 0.9, 0.94])


# ------------------------------------------------------------------------------------------- documents


@pytest.fixture(scope="module")
def documents():
    return report.generate()


def test_documents_are_up_to_date(documents):
    """Where this fails text and records have parted: `make claims` renews what is generated, the same each time."""
    assert report.stale(documents) == []


def test_every_number_that_is_quoted_is_generated():
    """What stands between markers is filled in, and documents quote some."""
    found = {"fig5.iqm": "0.94", "a.verdict": "holds"}
    text = "mean <!-- n:fig5.iqm -->0.1<!-- /n -->, it <!-- n:a.verdict --><!-- /n -->."
    assert report.fill(text, found) == (
        "mean <!-- n:fig5.iqm -->0.94<!-- /n -->, it <!-- n:a.verdict -->holds<!-- /n -->."
    )
    with pytest.raises(ConfigError, match=r"README.md: unknown number 'fig5.iqr'; the nearest are: fig5.iqm"):
        report.fill("<!-- n:fig5.iqr -->1<!-- /n -->", found)
    for name in report.QUOTING:
        text = (ROOT / name).read_text()
        assert text.count("<!-- n:") == text.count("<!-- /n -->") >= 10


def test_every_figure_of_the_paper_has_a_claim():
    data = claims.load()
    where = " ".join(entry["where"] for kind in ("claims", "notebooks") for entry in data[kind].values())
    for item in ("4a", "4b", "5", "6", "7", "8a", "8b", "A.1", "A.2a", "A.2b", "A.3", "B.2", "B.4", "Appendix C",
                 "Appendix D", "Section 6", "Theorem 1", "Lemma 1", "Table A.1", "Table A.2"):  # fmt: skip
        assert re.search(rf"{re.escape(item)}\b", where), item


def test_document_says_what_was_computed(root):
    data = claims.load()
    data["claims"] = {"mine": {"where": "Figure 5", "says": "it is best", "notebook": "06_constrained",
                               "found": "By {minus}; MASK {mean}.",
                               "tests": {"minus": query(**MINUS, criterion={">": 0}), "mean": query(**MEAN)}}
                      }  # fmt: skip
    data["numbers"] = {}
    text = report.document(data, claims.evaluate(data, root), root)
    assert f"| Figure 5 | [it is best](#mine) | **holds** | quick (paper scale: 0 of {8 * SEEDS} records) |" in text
    assert "**Holds**, see [06_constrained]" in text
    assert "By +0.040 [" in text
    data["claims"]["mine"]["found"] = "{minos}"
    with pytest.raises(ConfigError, match=r"unknown number in claims.yaml: mine.found: 'minos'; choose one of: minus"):
        report.document(data, claims.evaluate(data, root), root)


# -------------------------------------------------------------------------------------- values, verdicts


def test_values_by_hand(root):
    def value(**entry):
        return claims.result(query(**entry), "", root).number

    assert value(**MEAN) == pytest.approx(0.93)
    assert value(**MEAN | {"statistic": "least"}) == pytest.approx(0.91)
    assert value(**MEAN | {"statistic": "most"}) == pytest.approx(0.96)
    iqm = scipy.stats.trim_mean([0.91, 0.92, 0.96] * 4, 0.25)  # of 12 values the middle six
    assert value(**MEAN | {"statistic": "iqm"}) == pytest.approx(iqm)
    assert value(**MEAN | {"statistic": "below", "level": 0.93}) == 8
    assert value(**MINUS) == pytest.approx(0.04)
    assert value(**MINUS | {"statistic": "ratio"}) == pytest.approx(0.97 / 0.93)
    assert value(**MINUS | {"statistic": "improvement"}) == pytest.approx(8 / 9)


def test_result_in_words(root):
    found = claims.result(query(**MINUS, criterion={">": 0}), "ERA-v3", root)
    assert found.what.startswith("score: ")
    assert found.what.endswith("− MASK (ERA-v3)")
    assert (found.value, found.criterion, found.verdict, found.scale) == ("+0.040", "above 0", "holds", "quick")
    assert (found.seeds, found.steps) == ("3", "200,000")
    assert found.better.startswith("0.89 [")
    assert found.records == f"quick: 6 records, 200,000 steps; paper scale has 0 of {2 * SEEDS} records"
    share = claims.result(query(**MEAN | {"statistic": "below", "level": 0.93}), "", root)
    assert (share.value, share.interval, share.verdict) == ("8 of 12", "", "")


def test_equivalence_is_welchs(root):
    entry = MINUS | {"runs": ["mask", "ar-iar"], "statistic": "equivalent"}
    found = claims.result(query(**entry), "ERA-v2", root)
    x, y = [0.91, 0.92, 0.96], [0.89, 0.9, 0.94]
    low, high = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    assert found.interval == f"[−{-low:.3f}, +{high:.3f}]"
    assert (found.criterion, found.verdict) == ("within ± 0.02", "not seen")
    assert claims.result(query(**entry, criterion={"within": 0.2}), "ERA-v2", root).verdict == "holds"


@pytest.mark.parametrize(
    ("criterion", "low", "high", "verdict"),
    [
        ((">", 0), 0.1, 0.2, "holds"), ((">", 0), 0, 0.2, "not seen"), ((">", 0), -0.1, 0, "does not hold"),
        ((">=", 0.8), 0.8, 0.8, "holds"), ((">=", 0.8), 0.7, 0.9, "not seen"), ((">=", 0.8), 0, 0.79, "does not hold"),
        (("<", 1), 0, 0.9, "holds"), (("<", 1), 0, 1, "not seen"), (("<", 1), 1, 2, "does not hold"),
        (("<=", 1), 0, 1, "holds"), (("<=", 1), 1, 2, "not seen"), (("<=", 1), 1.1, 2, "does not hold"),
        (("within", 0.02), -0.01, 0.019, "holds"), (("within", 0.02), -0.03, 0.01, "not seen"),
        (("within", 0.02), 0.02, 0.05, "does not hold"), (("within", 0.02), -0.05, -0.02, "does not hold"),
        ((">", 0), np.nan, np.nan, "not seen"), (None, 0, 1, ""),
    ],
)  # fmt: skip
def test_decide(criterion, low, high, verdict):
    assert claims.decide(criterion, low, high) == verdict


def test_verdict_of_a_claim():
    assert claims.verdict_of(["holds", "", "holds"]) == "holds"
    assert claims.verdict_of(["holds", "not seen"]) == "holds in part"
    assert claims.verdict_of(["not seen", "does not hold"]) == "does not hold"
    assert claims.verdict_of(["not seen", "not tested"]) == "not seen"
    assert claims.verdict_of(["not tested", ""]) == claims.verdict_of([]) == "not tested"


def test_the_largest_complete_scale_is_read(root):
    record_scores(root, scale="paper", mask=[0.99] * 5, iar_a2c=[0.98] * 5)
    found = claims.result(query(**MINUS, criterion={">": 0}), "", root)
    assert (found.value, found.verdict, found.scale, found.steps) == ("−0.010", "does not hold", "paper", "700,000")
    (root / f"paper/ERA-v2/mask/seed{SEEDS - 1}.csv").unlink()
    found = claims.result(query(**MINUS, criterion={">": 0}), "", root)
    assert (found.scale, found.verdict) == ("quick", "holds")
    assert found.records == f"quick: 24 records, 200,000 steps; paper scale has {8 * SEEDS - 1} of {8 * SEEDS} records"
    assert claims.result(query(**MEAN), "ERA-v3", root).scale == "paper"


def test_what_is_missing_is_not_tested(root):
    (root / "quick/ERA-v2/mask/seed2.json").unlink()
    found = claims.result(query(**MEAN, criterion={">": 0}), "", root)
    assert (found.value, found.verdict, found.scale) == ("—", "not tested", "")
    assert found.records == f"paper scale has 0 of {4 * SEEDS} records; quick scale has 11 of 12 records"
    found = claims.result(query(**MINUS | {"runs": ["iar-a2c", "iar-a2c-released"], "criterion": {">": 0}}), "", root)
    assert (found.value, found.verdict) == ("—", "not tested")
    assert "quick scale has no iar-a2c-released" in found.records  # not planned there


def test_one_seed_tells_no_spread(root):
    for run in runs(EXPERIMENTS, "fig4b_v3", "quick"):
        fake_record(run, root, "quick")
    entry = {"experiment": "fig4b_v3", "runs": ["ar", "a2c"], "of": "return", "statistic": "equivalent"}
    found = claims.result(query(**entry), "", root)
    assert (found.verdict, found.interval) == ("not tested", "")
    assert "one seed of A2C" in found.records
    alone = {"experiment": "fig4b_v3", "runs": "a2c", "of": "return", "statistic": "mean", "criterion": {">": -1e9}}
    assert claims.result(query(**alone), "", root).verdict == "not tested"
    every = alone | {"statistic": "least"}  # of every seed: one may refute it
    assert claims.result(query(**every), "", root).verdict == "not tested"
    assert claims.result(query(**every | {"criterion": {">": 1e9}}), "", root).verdict == "does not hold"


def test_one_seed_at_the_paper_scale_gives_way_to_several(root, monkeypatch):
    """A larger scale of one seed is read where the smaller one has no more."""
    planned = claims._runs

    def one_seed(experiment, scale):
        return [run for run in planned(experiment, scale) if scale == "quick" or run.config.seed == 0]

    monkeypatch.setattr(claims, "_runs", one_seed)
    record_scores(root, scale="paper", mask=[0.99] * 5)
    found = claims.result(query(**MEAN, criterion={">": 0.95}), "", root)
    assert (found.value, found.scale, found.verdict) == ("0.93", "quick", "does not hold")
    assert found.records.startswith("quick: 12 records, 200,000 steps; paper scale has one seed of some")
    (root / "quick/ERA-v2/mask/seed1.csv").unlink()
    assert claims.result(query(**MEAN), "", root).scale == "paper"


def test_remarks(root):
    for run in runs(EXPERIMENTS, "fig5", "quick"):
        if run.label == "mask":
            fake_record(run, root, "quick", final_enumerated_share=0.02, env_digest="another", final_exact_return=None)
    records = claims.result(query(**MEAN), "", root).records
    assert "; by episodes; 12 by enumeration or fallback in 1 % of their steps or more; " in records
    assert records.endswith("; **made with other settings than experiments.yaml names now**")
    nan = record_scores(root, mask=[0.9, np.nan, 0.9])
    found = claims.result(query(**MEAN, criterion={">": 0}), "", nan)
    assert "4 ended in NaN" in found.records
    assert (found.value, found.verdict) == ("nan", "not seen")


def test_table_queries():
    rows = [{"method": "mask", "oracle": "batched"}, {"method": "iar-a2c", "oracle": "batched"}]
    entry = {"table": "data/benchmarks/seconds.csv", "rows": rows, "of": "seconds_per_step", "statistic": "ratio"}
    lines = (ROOT / "data/benchmarks/seconds.csv").read_text().splitlines()
    seconds = {line.rpartition(",")[0]: float(line.rpartition(",")[2]) for line in lines[1:]}
    found = claims.result(query(**entry, by="environment", criterion={">=": 10}), "ERA-v4", ROOT)
    assert found.number == pytest.approx(seconds["ERA-v4,mask,batched"] / seconds["ERA-v4,iar-a2c,batched"])
    assert found.verdict == "does not hold"
    with pytest.raises(ConfigError, match="seconds.csv has no row"):
        claims.result(query(**entry), "ERA-v9", ROOT)


def test_committed_numbers_by_another_road():
    """Runs below go-and-stay, counted in the records without this code."""
    entry = {"experiment": "figB_fraction", "runs": "iar-a2c", "of": "above_stay", "statistic": "below", "level": 0}
    found = claims.result(query(**entry), "", claims.RECORDS)
    ends = sorted(claims.RECORDS.glob(f"{found.scale}/fraction-*/iar-a2c/seed*.json"))
    facts = [json.loads(path.read_text()) for path in ends]
    below = sum(known["final_return_mean"] < known["reference"]["go_and_stay"] for known in facts)
    assert found.value == f"{below} of {len(facts)}"


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "fig55"}, "unknown experiment in claims.yaml: claim.test: 'fig55'; choose one of: fig5, "),
        ({"statistic": "median"}, "unknown statistic in claims.yaml: claim.test: 'median'; choose one of: mean, iqm, "),
        ({"of": "scores"}, "unknown quantity in claims.yaml: claim.test: 'scores'; choose one of: score, "),
        ({"runs": "musk"}, "unknown run in claims.yaml: claim.test: 'musk'; choose one of: iar-a2c, "),
        ({"environments": ["ERA-v9"]}, "unknown environment in claims.yaml: claim.test: 'ERA-v9'; choose one of: ERA"),
        ({"criterion": {"~": 1}}, "unknown criterion in claims.yaml: claim.test: '~'; choose one of: >, >=, <, <="),
        ({"criterion": 1}, "claims.yaml: claim.test: criterion is 1; it must be one comparison: a finite number"),
        ({"criterion": {">": float("nan")}}, "claims.yaml: claim.test: criterion is {'>': nan}; it must be one compar"),
        ({"criterion": {">": True}}, "claims.yaml: claim.test: criterion is {'>': True}; it must be one comparison: "),
        ({"by": "seed"}, "unknown by in claims.yaml: claim.test: 'seed'; choose one of: , environment"),
        ({"seed": 1}, "unknown key in claims.yaml: claim.test: 'seed'; choose one of: of, statistic, "),
        ({"statistic": "ratio"}, "claims.yaml: claim.test: ratio needs 2 runs; there are 1"),
        ({"table": "data/comparisons/sb3.csv"}, "claims.yaml: claim.test: needs either 'experiment' or 'table'"),
    ],
)  # fmt: skip
def test_faults_of_a_test_name_the_choices(change, message):
    with pytest.raises(ConfigError) as error:
        query(**MEAN | change)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "data/x.csv"}, "unknown table in claims.yaml: claim.test: 'data/x.csv'; choose one of: "),
        ({"of": "seconds"}, "unknown column in claims.yaml: claim.test: 'seconds'; choose one of: environment, "),
        ({"rows": [{"oracles": "batched"}]}, "unknown column in claims.yaml: claim.test: 'oracles'; choose one of: "),
    ],
)  # fmt: skip
def test_faults_of_a_table_name_the_choices(change, message):
    entry = {"table": "data/benchmarks/seconds.csv", "rows": [{"oracle": "batched"}], "of": "seconds_per_step"}
    with pytest.raises(ConfigError) as error:
        query(**entry | {"statistic": "mean"} | change)
    assert str(error.value).startswith(message)


def spoilt(tmp_path, change):
    """claims.yaml with a change to it, written elsewhere."""
    data = yaml.safe_load(claims.CLAIMS.read_text())
    change(data)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["claims"]["fig5"]["tests"]["least"].update(experiment="fig55"), "unknown experiment in"),
        (lambda d: d["claims"]["fig5"]["tests"]["least"].update(statistic="best"), "unknown statistic in claims.yaml"),
        (lambda d: d["notebooks"]["door"].update(verdict="true"), "unknown verdict in claims.yaml: door: 'true'; "
         "choose one of: holds, holds in part, not seen, does not hold, not tested"),
        (lambda d: d["notebooks"]["door"].update(cell="nowhere"), "unknown cell in claims.yaml: door: 'nowhere'"),
        (lambda d: d["notebooks"]["door"].update(notebook="11_x"), "unknown notebook in claims.yaml: door: '11_x'"),
        (lambda d: d["claims"]["fig5"].update(tests={}), "claims.yaml: fig5: tests is empty; it must have at "),
        (lambda d: d["claims"]["fig5"].pop("says"), "claims.yaml: fig5: no 'says'"),
        (lambda d: d["claims"]["fig5"].update(verdict="holds"), "unknown key in claims.yaml: fig5: 'verdict'"),
        (lambda d: d["claims"].update(fig5=3), "claims.yaml, claims, fig5 is 3; it must be a mapping of names"),
        (lambda d: d.pop("margin"), "the top-level keys must be claims, margin, notebooks, numbers, preface"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(change, message, tmp_path, monkeypatch, capsys):
    """A verdict is computed: a claim that types one is refused, too."""
    path = spoilt(tmp_path, change)
    monkeypatch.setattr(report.generate, "__defaults__", (path, claims.RECORDS))
    assert main(["claims", "--check"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_unreadable_yaml(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="claims.yaml"):
        claims.load(path)
    with pytest.raises(ConfigError, match="No such file"):
        claims.load(tmp_path / "nothing.yaml")


def test_check_is_1_where_a_document_is_out_of_date(tmp_path, monkeypatch, capsys):
    documents = {ROOT / "README.md": "another", ROOT / "pyproject.toml": (ROOT / "pyproject.toml").read_text()}
    monkeypatch.setattr(report, "generate", lambda: documents)
    assert main(["claims", "--check"]) == 1
    assert capsys.readouterr().out == "out of date: README.md\n"
    documents.pop(ROOT / "README.md")
    assert main(["claims", "--check"]) == 0
    assert capsys.readouterr().out == "all up to date\n"


def test_improvement_in_results_is_statss(root):
    found = claims.result(query(**MINUS), "", root)
    x, y = np.repeat([[0.95], [0.97], [0.99]], 4, 1), np.repeat([[0.91], [0.92], [0.96]], 4, 1)
    assert found.better.split(" ")[0] == f"{improvement(x, y):.2f}"
