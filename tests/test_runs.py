"""Runs and records: reproducible bit for bit, also when stopped and resumed; nothing half-written or overwritten."""

import dataclasses
import json
import os
import signal
import threading
import time

import pandas as pd
import psutil
import pytest
import torch

from flowrl import envs
from flowrl.a2c import Trainer
from flowrl.envs.city import City, generate
from flowrl.study import config, records, runs
from flowrl.study.config import A2C_METHODS as METHODS
from flowrl.study.config import NO_CONSTRAINTS, make_config
from flowrl.truth import exact
from flowrl.wolpertinger import WolpertingerTrainer

SMALL = {"steps": 640, "eval_every": 320, "eval_episodes": 2, "final_episodes": 4, "n_envs": 16, "hidden": 16}
WALL_CLOCK = ["wall_s", "train_s"]


def small(method="iar-a2c", env="ERA-v1", **overrides):
    return make_config(env, method, SMALL | overrides)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """By method, a city of 25 actions with constraints or without: every policy in it is tabulated at once."""
    folder = tmp_path_factory.mktemp("towns")
    generate(5, 2, max_hops=1).to_json(folder / "bound.json")
    generate(5, 2).free().to_json(folder / "free.json")
    return lambda method: str(folder / ("free.json" if method in NO_CONSTRAINTS else "bound.json"))


def curve(path):
    return pd.read_csv(path.with_name(path.name + ".csv")).drop(columns=WALL_CLOCK)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_record(tmp_path, method, town):
    facts = [runs.train(small(method, town(method)), tmp_path / name, progress=False) for name in "ab"]
    a, b = (curve(records.record_path(tmp_path / name, town(method), method, 0)) for name in "ab")
    pd.testing.assert_frame_equal(a, b)
    assert a["env_steps"].tolist() == [0, 320, 640]
    assert (a["violations"] == 0).all()
    keys = [key for key in facts[0] if key.startswith("final")]
    assert keys and all(facts[0][key] == facts[1][key] for key in keys)
    other = runs.train(small(method, town(method), seed=1), tmp_path / "a", progress=False)
    assert other["final_return_mean"] != facts[0]["final_return_mean"]


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-paper", "mask"])
def test_a_stopped_run_resumes_to_the_same_record(tmp_path, method):
    whole = runs.train(small(method), tmp_path / "whole", progress=False)
    run = runs.Run(small(method), tmp_path / "parts")
    step = run.trainer.step

    def step_and_stop():
        step()
        run.stop = run.trainer.env_steps >= 400

    run.trainer.step = step_and_stop
    with pytest.raises(runs.Interrupted, match="400 steps; the same command goes on"):
        run.train(progress=False)
    folder = tmp_path / "parts" / "ERA-v1" / method
    assert sorted(path.name for path in folder.iterdir()) == ["seed0.pt"]
    parts = runs.train(small(method), tmp_path / "parts", progress=False)
    pd.testing.assert_frame_equal(curve(tmp_path / "whole" / "ERA-v1" / method / "seed0"), curve(folder / "seed0"))
    assert parts["final_return_mean"] == whole["final_return_mean"]
    assert parts["final_exact_return"] == whole["final_exact_return"]


def test_ctrl_c_saves_a_checkpoint(tmp_path):
    def interrupt():
        while not started.is_set():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    started = threading.Event()
    run = runs.Run(small(steps=10**8), tmp_path)
    step = run.trainer.step
    run.trainer.step = lambda: (started.set(), step())
    threading.Thread(target=interrupt).start()
    with pytest.raises(runs.Interrupted):
        run.train(progress=False)
    state = runs.load_checkpoint(run.path.with_name("seed0.pt"), torch.device("cpu"))
    assert state["trainer"]["env_steps"] == run.trainer.env_steps > 0


def test_a_finished_record_is_kept_unless_forced(tmp_path):
    first = runs.train(small(), tmp_path, progress=False)
    assert runs.train(small(), tmp_path, progress=False)["ended"] == first["ended"]
    with pytest.raises(records.RecordError, match=r"another configuration \(entropy 0\.\d+, here 0\.2\); --force"):
        runs.train(small(entropy=0.2), tmp_path, progress=False)
    forced = runs.train(small(entropy=0.2), tmp_path, force=True, progress=False)
    assert forced["config"]["entropy"] == 0.2


def test_a_forced_run_that_is_stopped_goes_on(tmp_path):
    """--force overwrites a finished record; the checkpoint of the new run is not thrown away with it."""
    runs.train(small(), tmp_path, progress=False)
    run = runs.Run(small(entropy=0.2), tmp_path)
    run.stop = True
    with pytest.raises(runs.Interrupted, match="stopped at 16 steps"):
        run.train(progress=False)
    again = runs.Run(small(entropy=0.2), tmp_path)
    assert again.resume() and again.trainer.env_steps == 16
    with pytest.raises(records.RecordError, match="holds the weights of another configuration"):
        runs.evaluate_checkpoint(run.path)  # the record that stands is still the first one
    forced = runs.train(small(entropy=0.2), tmp_path, force=True, progress=False)
    assert forced["config"]["entropy"] == 0.2


def test_the_weights_of_an_unfinished_run_are_not_the_records(tmp_path):
    facts = runs.train(small(), tmp_path, progress=False)
    runs.Run(small(), tmp_path).save()
    assert facts["ended"] == runs.train(small(), tmp_path, progress=False)["ended"]
    with pytest.raises(records.RecordError, match="is of a run that is not finished"):
        runs.evaluate_checkpoint(tmp_path / "ERA-v1/iar-a2c/seed0")


def test_a_checkpoint_stands_before_the_first_step(tmp_path):
    """A run that fails keeps its first evaluation, and not the middle of a step."""
    run = runs.Run(small(), tmp_path)
    run.trainer.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.train(progress=False)
    again = runs.Run(small(), tmp_path)
    assert again.resume()
    assert (len(again.rows), again.trainer.env_steps) == (1, 0)


def test_a_checkpoint_goes_on_where_it_was_made(tmp_path):
    run = runs.Run(small(), tmp_path)
    run.made_with["device"] = "cuda"
    run.save()
    with pytest.raises(records.RecordError, match="made on cuda, which alone can go on with it, not cpu"):
        runs.Run(small(), tmp_path).resume()


def test_a_run_that_diverges_says_so(tmp_path):
    """In the update that would have spoilt the weights, not at the next evaluation."""
    run = runs.Run(small(), tmp_path)
    clip = run.trainer._clip
    run.trainer._clip = lambda groups: clip(groups) / (run.trainer.updates < 3)
    with pytest.raises(FloatingPointError, match="gradient is not finite; lower actor_lr"):
        run.train(progress=False)
    assert not run.path.with_name("seed0.json").exists()


def test_a_removed_record_is_trained_anew(tmp_path):
    runs.train(small(), tmp_path, progress=False)
    (tmp_path / "ERA-v1" / "iar-a2c" / "seed0.json").unlink()
    run = runs.Run(small(), tmp_path)
    assert not run.resume()
    assert run.trainer.env_steps == 0


def test_a_record_says_what_it_was_made_with(tmp_path):
    config = small("ar-iar", seed=3)
    runs.train(config, tmp_path, "label", progress=False)
    rows, facts = records.read_record(tmp_path / "ERA-v1" / "label" / "seed3")
    assert facts["config"] == dataclasses.asdict(config)
    assert facts["config_hash"] == config.hash()
    assert {"torch", "numpy"} <= set(facts["versions"])
    assert facts["machine"]["cores"] == os.cpu_count()
    assert facts["peak_mb"] > psutil.Process().memory_info().rss / 2**20 / 2
    assert facts["reference"] == exact.optimum(City.load("ERA-v1"))
    assert facts["env_steps"] == rows["env_steps"].iloc[-1] == 640
    span = facts["reference"]["optimal"] - facts["reference"]["uniform_valid"]
    score = (facts["final_return_mean"] - facts["reference"]["uniform_valid"]) / span
    assert facts["final_normalised"] == pytest.approx(score)
    assert rows["oracle_calls"].iloc[-1] >= 640 * config.n_draws


@pytest.mark.parametrize("method", METHODS)
def test_the_exact_return_agrees_with_episodes(tmp_path, method, town):
    """z-bound 4 on 400 episodes of a briefly trained policy; the tabulation's own noise is far smaller."""
    settings = {"steps": 1600, "eval_every": 1600, "final_episodes": 400}
    facts = runs.train(small(method, town(method), **settings), tmp_path, progress=False)
    difference = facts["final_exact_return"] - facts["final_return_mean"]
    assert abs(difference) < 4 * facts["final_return_sem"]


@pytest.mark.parametrize("method", config.METHODS)
def test_every_method_has_its_trainer(method):
    name = "Toy-Partial" if method in NO_CONSTRAINTS else "Joint-Cstr"
    trainer = runs.make_trainer(make_config(name, method, {"hidden": 8, "n_envs": 2}), envs.make_batched(name, 2))
    assert type(trainer) is (WolpertingerTrainer if method == "wol-ddpg" else Trainer)


def test_evaluating_the_weights_gives_the_records_numbers(tmp_path):
    facts = runs.train(small(), tmp_path, progress=False)
    found = runs.evaluate_checkpoint(tmp_path / "ERA-v1" / "iar-a2c" / "seed0.json")
    assert found["return_mean"] == facts["final_return_mean"]
    assert found["exact_return"] == facts["final_exact_return"]
    worst, best = (facts["reference"][name] for name in ("uniform_valid", "optimal"))
    assert found["exact_score"] == pytest.approx((facts["final_exact_return"] - worst) / (best - worst))


def test_records_of_another_schema_are_refused(tmp_path):
    path = tmp_path / "seed0.json"
    for text, words in [('{"schema": 99}', "schema 99"), ("[]", "schema None"), ("not json", "not JSON")]:
        path.write_text(text)
        with pytest.raises(records.RecordError, match=words):
            records.read_record(path)
    with pytest.raises(records.RecordError, match="no such record"):
        records.read_record(tmp_path / "seed1")
    (tmp_path / "seed0.pt").write_bytes(b"junk")
    with pytest.raises(records.RecordError, match="not a checkpoint"):
        runs.load_checkpoint(tmp_path / "seed0.pt", torch.device("cpu"))


def test_a_killed_write_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        records.write_record(tmp_path / "seed0", [{"a": 1}], {})
    assert not list(tmp_path.glob("*.json")) and not list(tmp_path.glob(".*"))


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device 'tpu' is not there; choose one of: auto, cpu"):
        runs.make_device("tpu")


def test_a_record_is_of_the_code_that_its_run_began_with(tmp_path, monkeypatch):
    """Gone on with under another commit, the record names the first one and says that there were changes."""
    run = runs.Run(small(), tmp_path)
    run.made_with = run.made_with | {"commit": "a" * 40, "dirty": False}
    run.save()
    facts = runs.train(small(), tmp_path, progress=False)
    assert (facts["commit"], facts["dirty"]) == ("a" * 40, True)


def test_weights_of_another_configuration_are_not_evaluated(tmp_path):
    runs.train(small(), tmp_path / "a", progress=False)
    runs.train(small(entropy=0.2), tmp_path / "b", progress=False)
    one, other = (tmp_path / name / "ERA-v1" / "iar-a2c" for name in "ab")
    (other / "seed0.pt").replace(one / "seed0.pt")
    with pytest.raises(records.RecordError, match="weights of another configuration"):
        runs.evaluate_checkpoint(one / "seed0.json")
