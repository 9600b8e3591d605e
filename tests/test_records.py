"""Records read back: completeness, staleness, the table of final scores, the caption."""

import subprocess

import pytest
import torch
import yaml
from conftest import fake_record

from flowrl.envs.city import generate
from flowrl.study import records
from flowrl.study.config import ConfigError
from flowrl.study.plan import runs, scale_drawn
from flowrl.study.records import (
    EXPERIMENTS,
    RecordError,
    by_environment,
    by_label,
    caption,
    figures,
    final_scores,
    gain,
    load,
    matrix,
    score,
    sources,
)


def test_load_in_order(fake_records):
    records = load("fig5", fake_records("fig5"), "quick")
    assert list(by_environment(records)) == ["ERA-v2", "ERA-v3", "ERA-v4", "ERA-v5"]
    assert list(by_label(records))[0] == "iar-a2c"
    assert not any(record.stale for record in records)
    table = final_scores(records)
    assert len(table) == len(records) == len(runs(EXPERIMENTS, "fig5", "quick"))
    known = table.drop(columns=["exact_return", "exact_score", "exact_gain"])
    assert known.notna().all().all()
    for column in ("exact_score", "exact_gain"):
        assert (table[column].isna() == (table["run"] == "wol-ddpg")).all()
    assert set(table["scale"]) == {"quick"}


def test_matrix_is_seeds_by_environments(fake_records):
    records = by_label(load("fig5", fake_records("fig5"), "quick"))["mask"]
    found = matrix(records, lambda record: record.facts["config"]["seed"] + 10 * int(record.facts["environment"][-1]))
    assert found.tolist() == [[20, 30, 40, 50], [21, 31, 41, 51], [22, 32, 42, 52]]
    with pytest.raises(RecordError, match="mask: not as many seeds in every environment"):
        matrix(records[1:], lambda record: 0)


def test_score_and_gain_are_exact_where_they_can_be(fake_records):
    reference = {"optimal": -20.0, "go_and_stay": -25.0, "uniform_valid": -70.0}
    facts = {"final_exact_return": -30.0, "final_return_mean": -20.0, "reference": reference}
    assert (score(facts), gain(facts)) == (0.8, -1)
    assert (score(facts | {"final_exact_return": None}), gain(facts | {"final_exact_return": None})) == (1, 1)
    assert (score(facts | {"reference": None}), gain(facts | {"reference": None})) == (None, None)


def test_exact_score_is_the_exact_return_between_random_and_optimum(fake_records):
    reference = {"optimal": -20.0, "go_and_stay": -25.0, "uniform_valid": -70.0}
    facts = {"final_exact_return": -30.0, "final_return_mean": -20.0, "final_normalised": 1.0, "reference": reference}
    table = final_scores(load("unseen", fake_records("unseen", "smoke", **facts), "smoke"))
    assert table["exact_score"].tolist() == [0.8, 0.8]
    assert table["exact_gain"].tolist() == [-1, -1]
    assert table["normalised"].tolist() == [1, 1]


def test_scores_of_what_has_no_reference_are_missing(fake_records):
    table = final_scores(load("figA2a", fake_records("figA2a", "smoke"), "smoke"))
    unknown = ["optimum", "normalised", "exact_return", "exact_score", "exact_gain", "plateau_gain"]
    assert table[unknown].isna().all().all()
    assert table.drop(columns=unknown).notna().all().all()
    table = final_scores(load("figB_large", fake_records("figB_large", "smoke"), "smoke"))  # no optimum, but others
    assert table[unknown].isna().all().all()


def test_auto_is_the_largest_complete_scale(fake_records, tmp_path):
    root = fake_records("figA2b", "quick")
    fake_records("figA2b", "smoke")
    assert scale_drawn(EXPERIMENTS, "figA2b", root) == "quick"
    *most, last = runs(EXPERIMENTS, "figA2b", "paper")
    for run in most:
        fake_record(run, root, "paper")
    assert scale_drawn(EXPERIMENTS, "figA2b", root) == "quick"
    fake_record(last, root, "paper")
    assert scale_drawn(EXPERIMENTS, "figA2b", root) == "paper"
    assert {record.scale for record in load("figA2b", root)} == {"paper"}
    assert scale_drawn(EXPERIMENTS, "figA2b", root, "smoke") == "smoke"
    assert scale_drawn(EXPERIMENTS, "figA2b", tmp_path / "nothing") == "quick"
    with pytest.raises(ConfigError, match="unknown scale 'huge'; choose one of: smoke, quick, paper, auto"):
        scale_drawn(EXPERIMENTS, "figA2b", root, "huge")


def test_records_on_the_authors_cities_are_read_without_these(tmp_path):
    path, authors = tmp_path / "experiments.yaml", tmp_path / "cities"
    experiment = {"title": "t", "notebook": "n", "environments": ["authors/v9"], "runs": {"mask": None}}
    scales = {scale: {"seeds": 1, "steps": 5_000} for scale in ("quick", "paper")}
    path.write_text(yaml.safe_dump({"scales": scales, "experiments": {"x": experiment}}))
    with pytest.raises(ConfigError, match=r"authors-v9.json.*import-city"):
        load("x", tmp_path / "runs", path=path)
    authors.mkdir()
    generate(5, 2).to_json(authors / "authors-v9.json")
    for run in runs(path, "x", "quick", authors):
        fake_record(run, tmp_path / "runs", "quick")
    (authors / "authors-v9.json").unlink()
    [record] = load("x", tmp_path / "runs", path=path)
    assert (record.facts["environment"], record.scale, record.stale) == ("authors-v9", "quick", False)
    assert final_scores([record])["optimum"].notna().all()
    experiment["settings"] = {"gamma": 0.5}
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump({"scales": scales, "experiments": {"x": experiment}}))
    [record] = load("x", tmp_path / "runs", path=changed)
    assert record.stale


def test_missing_and_foreign_records(fake_records):
    root = fake_records("figA2b")
    gone = runs(EXPERIMENTS, "figA2b", "quick")[0].path(root, "quick")
    gone.with_name("seed0.csv").unlink()
    with pytest.raises(RecordError, match="seed0.csv.*make figures SCALE=quick"):
        load("figA2b", root, "quick")
    root = fake_records("figA2b", schema=99)
    with pytest.raises(RecordError, match="schema 99"):
        load("figA2b", root, "quick")


def test_caption_names_scale_seeds_steps_and_stale_records_and_sources_the_commit(fake_records):
    found = load("figA2b", fake_records("figA2b", "smoke"), "smoke")
    text = caption(found)
    assert text == "Line: the one run. 1 seed a run, 3,200 environment steps (scale: smoke)."
    said = sources(found)
    made = text.removeprefix("Line: the one run. ")
    assert said.startswith(made) and "Records of commit 0123456." in said and "over 4 episodes" in said
    assert "WARNING" not in text
    found = load("figA2b", fake_records("figA2b", env_digest="old", dirty=True), "quick")
    assert "3 seeds a run (iar-a2c 2), 200,000" in caption(found[1:])
    assert "3 seeds a run (the recipe 2), 200,000" in caption(found[1:], names={"iar-a2c": "the recipe"})
    elsewhere = [r._replace(facts=r.facts | {"environment": "ERA-v2"}) for r in found]
    assert "3 seeds a run (the recipe on ERA-v1 2), 200,000" in caption(
        [*found[1:], *elsewhere], "", {"iar-a2c": "the recipe"}
    )
    text = caption(found)
    assert "3 seeds a run, 200,000" in text
    assert "from the least to the greatest" in text
    assert "0123456+" in sources(found)
    assert "WARNING" in text
    assert "mask on ERA-v1" in text
    assert "MASK on ERA-v1" in caption(found, names={"mask": "MASK"})


@pytest.mark.parametrize("inside", [False, True])
def test_a_commit_is_of_this_project_or_there_is_none(tmp_path, monkeypatch, inside):
    """Neither without a repository nor in somebody else's is anything called clean."""
    if inside:
        for words in (
            ["init", "-q"],
            ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "x"],
        ):
            subprocess.run(["git", *words], cwd=tmp_path, check=True)
    root = tmp_path / "flowrl"
    root.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(records, "ROOT", root)
    made_with = records.provenance(torch.device("cpu"))
    assert (made_with["commit"], made_with["dirty"]) == (None, None)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert bool(records.provenance(torch.device("cpu"))["commit"]) == inside


def test_a_record_names_no_machine():
    assert records.portable(str(records.ROOT / "data/cities/unseen-1.json")) == "data/cities/unseen-1.json"
    assert records.portable("ERA-v1") == "ERA-v1" and records.portable("/elsewhere/city.json") == "/elsewhere/city.json"


def test_an_experiment_without_a_figure_is_in_none():
    """`plateau` is drawn by Figure 5 and says so: figure: null."""
    drawn = figures("06_constrained")
    assert "fig5" in drawn and None not in drawn and not any("plateau" in names for names in drawn.values())
