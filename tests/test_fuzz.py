"""Spoilt files by hypothesis (derandomised): whatever they hold, the command line answers in one line, no traceback.

Cities, the authors' instance files, experiments.yaml, claims.yaml, tuning.yaml, records, checkpoints: of each a valid
one, some of its parts replaced, removed or added to, or its bytes cut or changed. A few examples of each by default,
many more under the marker `long`.
"""

import contextlib
import copy
import functools
import io
import json
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.__main__ import main
from flowrl.envs.city import generate
from flowrl.study import plan, records, report, tuning

FEW, MANY = (settings(max_examples=n, deadline=None, derandomize=True, database=None) for n in (20, 100))
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.text(max_size=4),
    st.sampled_from([2**63, -(10**30), 0.5, 1e308, float("nan"), float("inf"), [], {}, [1, "a"], {"a": 1}, "ERA-v1"]),
)  # fmt: skip


@st.composite
def spoilt(draw, document):
    """The document with one to three parts, at any depth, replaced, removed or added to."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        node = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.integers(0, 3)):
                node = node[key]
                continue
            how = draw(st.sampled_from(["replace", "remove", "add"]))
            if how == "remove":
                del node[key]
            elif how == "replace" or isinstance(node, list):
                node[key] = draw(JUNK)
            else:
                node[draw(st.text(max_size=3))] = draw(JUNK)
            break
    return document


@st.composite
def broken(draw, content: bytes):
    """The bytes cut, overwritten, or preceded by others."""
    at = draw(st.integers(0, len(content)))
    new = draw(st.one_of(st.binary(max_size=6), st.sampled_from([b"[" * 5000, b"\xff\xfe", b"\x00", b"- : {"])))
    return content[:at] + new + draw(st.sampled_from([b"", content[at:], content[at + len(new) :]]))


def either(document, dump, content: bytes):
    """Bytes of a spoilt document, or spoilt bytes."""
    return st.one_of(spoilt(document).map(lambda one: dump(one).encode()), broken(content))


def one_line(*words) -> int:
    """Exit status of a command that may fail, in one line."""
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        status = main([str(word) for word in words])
    lines = wrong.getvalue().splitlines()
    assert (status, len(lines)) == (0, 0) or (status == 2 and len(lines) == 1), wrong.getvalue()
    return status


def at_two_lengths(test):
    """The test with few examples, and, marked `long`, with many."""
    return pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.long)], ids=["few", "many"])(
        test
    )


# ------------------------------------------------------------------------------------------------ what is spoilt

TOWN = generate(3, 2, seed=1).to_dict() | {"horizon": 3}
THEIRS = {
    "payoff_matrix": [[1, -1, 0, 2], [1, -1, 3, 0]], "adj_matrix": [[0, 1], [1, 0]], "cost_matrix": [[0, 3], [3, 0]],
    "def_constraints": [[0, 1]], "num_rsc": 2, "num_tgt": 2, "req_hop": 1,
    "att_param": {"dist_payoff": [0.5, 0.5], "idx_tgt": [[0, 1], [1, 0]]},
}  # fmt: skip
PLAN = {
    "scales": {scale: {"seeds": 1, "steps": 8} for scale in plan.SCALES},
    "experiments": {"x": {
        "title": "t", "see": "s", "figure": "f", "colour": "correction", "notebook": "n",
        "environments": ["ERA-v1", "Toy-Partial"], "settings": {"hidden": 8},
        "scales": {"quick": {"seeds": 2}},
        "runs": {"mask": None, "mine": {"method": "iar-a2c", "n_envs": 4, "seeds": 1, "title": "y"}},
    }},
}  # fmt: skip
SPACE = {"environments": ["ERA-v1"], "steps": 8, "trials": 2,
         "methods": {"mask": {"actor_lr": {"log": [0.001, 0.01]}, "hidden": [8, 16]}}}  # fmt: skip
CLAIMED = {
    "preface": "p", "margin": 0.02,
    "claims": {"a": {"where": "w", "says": "s", "notebook": "06_constrained", "found": "{m}", "tests": {
        "m": {"experiment": "figA2b", "runs": "mask", "of": "score", "statistic": "mean", "criterion": {">": 0.5}},
        "d": {"experiment": ["figA2b"], "runs": ["mask", "ar-iar"], "of": "gain", "statistic": "equivalent"}}}},
    "numbers": {"t": {"table": "data/benchmarks/seconds.csv", "of": "seconds_per_step", "statistic": "mean",
                      "rows": [{"method": "mask", "oracle": "batched"}], "by": "environment"}},
    "notebooks": {"b": {"where": "w", "says": "s", "found": "f", "verdict": "holds", "notebook": "06_constrained",
                        "cell": "parameters"}},
}  # fmt: skip


@at_two_lengths
def test_cities(tmp_path, examples):
    path = tmp_path / "town.json"

    @examples
    @given(either(TOWN, json.dumps, json.dumps(TOWN).encode()))
    def check(content):
        path.write_bytes(content)
        small = words(n_envs=2, hidden=4, final_episodes=1, eval_episodes=1)
        one_line(
            "train", "--env", path, "--method", "mask", "--steps", 2, "--out", tmp_path, "--quiet", "--force", *small
        )

    check()


def words(**settings_):
    return [word for name, value in settings_.items() for word in ("--set", f"{name}={value}")]


@at_two_lengths
def test_instances_of_the_authors(tmp_path, examples):
    path = tmp_path / "theirs.json"

    @examples
    @given(either(THEIRS, json.dumps, json.dumps(THEIRS).encode()))
    def check(content):
        path.write_bytes(content)
        one_line("import-city", path, "--out", tmp_path / "ours.json", "--force")

    check()


@at_two_lengths
def test_experiments(tmp_path, monkeypatch, examples):
    numbers = iter(range(10**9))

    @examples
    @given(either(PLAN, yaml.safe_dump, yaml.safe_dump(PLAN).encode()))
    def check(content):
        folder = tmp_path / str(next(numbers))  # what was read from a file is remembered
        folder.mkdir()
        (folder / "experiments.yaml").write_bytes(content)
        monkeypatch.setattr(records, "EXPERIMENTS", folder / "experiments.yaml")
        monkeypatch.setattr(records, "ROOT", folder)
        for scale in plan.SCALES:
            one_line("queue", "--list", "--scale", scale, "--data", folder)
        one_line("list")

    check()


@at_two_lengths
def test_claims(tmp_path, monkeypatch, fake_records, examples):
    path, root = tmp_path / "claims.yaml", fake_records("figA2b")
    generated = report.generate
    monkeypatch.setattr(report, "QUOTING", ())
    monkeypatch.setattr(report, "generate", lambda: generated(path, root))
    monkeypatch.setattr(report, "stale", lambda documents: [])

    @examples
    @given(either(CLAIMED, yaml.safe_dump, yaml.safe_dump(CLAIMED).encode()))
    def check(content):
        path.write_bytes(content)
        one_line("claims", "--check")

    path.write_text(yaml.safe_dump(CLAIMED))
    assert one_line("claims", "--check") == 0
    check()


@at_two_lengths
def test_ranges(tmp_path, monkeypatch, examples):
    path = tmp_path / "tuning.yaml"
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(tuning, "read_space", functools.partial(tuning.read_space, path))

    @examples
    @given(either(SPACE, yaml.safe_dump, yaml.safe_dump(SPACE).encode()))
    def check(content):
        path.write_bytes(content)
        one_line("tune", "mask", "--trials", 0)

    path.write_text(yaml.safe_dump(SPACE))
    assert one_line("tune", "mask", "--trials", 0) == 0
    check()


# ------------------------------------------------------------------------------------------- records, checkpoints

TRAIN = ["--method", "iar-a2c", "--steps", "16", "--quiet",
         *words(n_envs=4, n_draws=4, hidden=4, policy_hidden=4, final_episodes=1, eval_episodes=1)]  # fmt: skip


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """TOWN under a name that the queue knows: its policies are tabulated in no time."""
    path = tmp_path_factory.mktemp("cities") / "ERA-v1.json"
    path.write_text(json.dumps(TOWN))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, city):
    """A folder with a record, without suffix, and its weights."""
    out = tmp_path_factory.mktemp("trained")
    assert one_line("train", "--env", city, *TRAIN, "--out", out) == 0
    return out / "ERA-v1" / "iar-a2c" / "seed0"


def copied(trained: Path, tmp_path: Path) -> Path:
    target = tmp_path / "ERA-v1" / "iar-a2c" / "seed0"
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".csv", ".pt"):
        shutil.copy(trained.with_suffix(suffix), target.with_suffix(suffix))
    return target


@at_two_lengths
def test_facts_of_records(trained, city, tmp_path, examples):
    """Read by evaluate, with and without weights; by train, which finds one there; by the queue."""
    record = copied(trained, tmp_path)
    facts = json.loads(record.with_suffix(".json").read_text())

    @examples
    @given(either(facts, json.dumps, json.dumps(facts).encode()), st.booleans())
    def check(content, weights):
        copied(trained, tmp_path)
        record.with_suffix(".json").write_bytes(content)
        if not weights:
            record.with_suffix(".pt").unlink()
        one_line("evaluate", record, "--episodes", 1)
        one_line("train", "--env", city, *TRAIN, "--out", tmp_path)
        one_line("queue", "--list", "--only", "figA2b", "--scale", "smoke", "--data", tmp_path.parent)

    check()


@at_two_lengths
def test_curves_of_records(tmp_path, monkeypatch, fake_records, examples):
    """Read by the claims."""
    path, root = tmp_path / "claims.yaml", fake_records("figA2b")
    path.write_text(yaml.safe_dump(CLAIMED))
    monkeypatch.setattr(report, "QUOTING", ())
    generated = report.generate
    monkeypatch.setattr(report, "generate", lambda: generated(path, root))
    monkeypatch.setattr(report, "stale", lambda documents: [])
    record = root / "quick/ERA-v1/mask/seed0.csv"
    whole = pd.read_csv(record)
    table = {name: list(column)[:3] for name, column in whole.items()}

    def dump(spoilt_table):
        columns = {str(name): pd.Series(column) for name, column in spoilt_table.items()}
        return pd.DataFrame(columns).to_csv(index=False)

    @examples
    @given(either(table, dump, record.read_bytes()))
    def check(content):
        record.write_bytes(content)
        one_line("claims", "--check")

    assert one_line("claims", "--check") == 0
    check()


PARTS = ["schema", "finished", "config_hash", "label", "rows", "wall_s", "violations", "made_with", "trainer"]


@pytest.mark.parametrize("junk", [None, "x", {"a": 1}, torch.zeros(2)], ids=repr)
def test_checkpoints_part_by_part(trained, city, tmp_path, junk):
    """Each part of the trainer's, and every other but the configuration, replaced."""
    state = torch.load(trained.with_suffix(".pt"), weights_only=True) | {"finished": False}
    state["trainer"]["env_steps"] = 12
    for holder, key in [(state, part) for part in PARTS] + [(state["trainer"], part) for part in state["trainer"]]:
        record, before = copied(trained, tmp_path), holder[key]
        record.with_suffix(".json").unlink()
        holder[key] = junk
        record.with_suffix(".pt").write_bytes(saved(state))
        holder[key] = before
        one_line("train", "--env", city, *TRAIN, "--out", tmp_path)


def saved(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@at_two_lengths
def test_checkpoints(trained, city, tmp_path, examples):
    """Read by evaluate; and by train, where no record stands beside it, which goes on from it."""
    content = trained.with_suffix(".pt").read_bytes()
    state = torch.load(io.BytesIO(content), weights_only=True) | {"finished": False}
    state["trainer"]["env_steps"] = 12  # one more update to go

    @examples
    @given(st.one_of(spoilt(state).map(saved), broken(content)))
    def check(content):
        record = copied(trained, tmp_path)
        record.with_suffix(".json").unlink()
        record.with_suffix(".pt").write_bytes(content)
        one_line("evaluate", record.with_suffix(".pt"), "--episodes", 1)
        one_line("train", "--env", city, *TRAIN, "--out", tmp_path)

    check()
