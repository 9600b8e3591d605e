"""Random search: settings drawn within their ranges, a table that grows and is never trained twice, the ranking."""

import dataclasses
import shutil

import pandas as pd
import pytest

from flowrl.study import tuning
from flowrl.study.config import ConfigError
from flowrl.study.plan import runs
from flowrl.study.records import EXPERIMENTS, ROOT

SMALL = {
    "environments": ["ERA-v1", "ERA-v2"],
    "steps": 64,
    "trials": 2,
    "methods": {"factored-iar": {"actor_lr": {"log": [1e-4, 1e-2]}, "n_draws": [4, 8], "n_envs": [32, 64]}},
}


def test_every_range_of_the_project_is_a_setting_of_its_method():
    space = tuning.read_space()
    assert set(space["methods"]) == {"iar-a2c-gumbel", "iar-a2c-q", "mask", "ar-iar", "factored-iar"}
    assert space["trials"] >= 32 and space["environments"] == ["ERA-v2", "ERA-v3", "ERA-v4", "ERA-v5"]


def test_draws_stay_in_their_ranges_and_are_told_apart():
    drawn = [tuning.draw_settings(SMALL, "factored-iar", trial) for trial in range(200)]
    assert drawn == [tuning.draw_settings(SMALL, "factored-iar", trial) for trial in range(200)]
    assert all(1e-4 <= settings["actor_lr"] <= 1e-2 for settings in drawn)
    # uniform in the logarithm: half of 200 below the geometric mean, 28 is four standard errors
    assert abs(sum(settings["actor_lr"] < 1e-3 for settings in drawn) - 100) < 28
    assert {settings["n_draws"] for settings in drawn} == {4, 8}
    assert all(settings["n_correction"] == settings["n_draws"] for settings in drawn)


def test_a_range_that_is_no_setting_is_named(tmp_path):
    path = tmp_path / "tuning.yaml"
    path.write_text("{environments: [ERA-v1], steps: 64, trials: 1, methods: {mask: {temperature: [1]}}}")
    with pytest.raises(ConfigError, match="temperature"):
        tuning.read_space(path)
    with pytest.raises(ConfigError, match="mask"):
        tuning.draw_settings(SMALL, "mask", 0)


def test_a_table_grows_and_nothing_is_trained_twice(tmp_path, monkeypatch):
    root, records = tmp_path / "tables", tmp_path / "records"
    quick = {"eval_episodes": 1, "final_episodes": 1, "eval_every": 64}
    monkeypatch.setattr(tuning, "draw_settings", lambda *a, draw=tuning.draw_settings: draw(*a) | quick)
    assert tuning.tune("factored-iar", root, records, cores=2, n=1, space=SMALL) == []
    first = tuning.read_table("factored-iar", root)
    assert list(first["env"]) == ["ERA-v1", "ERA-v2"] and first["score"].between(-1, 1).all()
    assert (first["actor_lr"] == tuning.draw_settings(SMALL, "factored-iar", 0)["actor_lr"]).all()
    shutil.rmtree(records)  # what the table holds needs no record
    one_place = SMALL | {"environments": ["ERA-v1"]}
    assert tuning.tune("factored-iar", root, records, cores=2, space=one_place) == []
    both = tuning.read_table("factored-iar", root)
    assert sorted(both["trial"]) == [0, 0, 1]
    pd.testing.assert_frame_equal(both[both["trial"] == 0].reset_index(drop=True), first)
    assert not (records / "factored-iar" / "ERA-v1" / "trial0").exists()


def test_ranking_is_by_mean_score_over_all_environments():
    rows = [(0, "ERA-v1", 0.5), (0, "ERA-v2", 0.9), (1, "ERA-v1", 0.8), (1, "ERA-v2", 0.8), (2, "ERA-v1", 1.0)]
    table = pd.DataFrame(rows, columns=["trial", "env", "score"]).assign(n_draws=8)
    ranked = tuning.ranking(table, SMALL, "factored-iar")
    assert list(ranked.index) == [1, 0]  # trial 2 was not tried everywhere
    assert ranked.loc[0, "mean"] == pytest.approx(0.7) and ranked.loc[0, "least"] == 0.5


def test_what_stands_beside_action_values_is_the_best_trial_of_each_search():
    space = tuning.read_space()
    whole = set(space["methods"])
    planned = [run.config for run in runs(EXPERIMENTS, "unseen_tuned", "paper") if "tuned" in run.label]
    assert {config.method for config in planned} == whole
    for method in whole:
        ranked = tuning.ranking(tuning.read_table(method, ROOT / "data/tuning"), space, method)
        assert len(ranked) == space["trials"]
        best = tuning.trials(space, method)[int(ranked.index[0]) * len(space["environments"])].config
        for config in planned:
            where = {name: getattr(config, name) for name in ("env", "seed", "eval_every", "final_episodes")}
            assert config.method != method or config == dataclasses.replace(best, **where)
