"""The queue trains what is missing or stale, the most wanted first, and goes on after a stop."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import fake_record

from flowrl.__main__ import main
from flowrl.envs.city import generate
from flowrl.study import queue, records
from flowrl.study.config import ConfigError

YAML = """
scales:
  smoke: {seeds: 2, steps: 640, eval_every: 320, eval_episodes: 2, final_episodes: 4, n_envs: 16, hidden: 16}
experiments:
  first: {title: a, notebook: n, environments: [ERA-v1], runs: {mask: , factored-iar: }}
  second: {title: b, notebook: n, environments: [ERA-v1, ERA-v2], runs: {mask: }}
"""


@pytest.fixture
def experiments(tmp_path):
    path = tmp_path / "experiments.yaml"
    path.write_text(YAML)
    return path


def names(wanted):
    return [(run.config.env, run.label, run.config.seed) for run in wanted]


def test_order_is_by_experiment_then_seed_and_each_record_comes_once(experiments, tmp_path):
    assert names(queue.missing(experiments, tmp_path, "smoke")) == [
        ("ERA-v1", "mask", 0), ("ERA-v1", "factored-iar", 0), ("ERA-v1", "mask", 1), ("ERA-v1", "factored-iar", 1),
        ("ERA-v2", "mask", 0), ("ERA-v2", "mask", 1),
    ]  # fmt: skip
    only = queue.missing(experiments, tmp_path, "smoke", only=["first"], labels=["mask"])
    assert names(only) == [("ERA-v1", "mask", 0), ("ERA-v1", "mask", 1)]
    with pytest.raises(ConfigError, match="unknown experiment 'third'; choose one of: first, second"):
        queue.missing(experiments, tmp_path, "smoke", only=["third"])
    with pytest.raises(ConfigError, match="unknown run 'ar'; choose one of: mask, factored-iar"):
        queue.missing(experiments, tmp_path, "smoke", labels=["ar"])


def test_a_city_of_the_authors_is_asked_for_before_anything_trains(experiments, tmp_path, monkeypatch, capsys):
    experiments.write_text(YAML.replace("environments: [ERA-v1, ERA-v2]", "environments: [authors/v9]"))
    monkeypatch.setattr(records, "EXPERIMENTS", experiments)
    asked = ["queue", "--scale", "smoke", "--data", str(tmp_path), "--only", "second"]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and all(
        word in error for word in ("authors-v9.json", "--authors", "import-city")
    )
    assert main([*asked, "--list"]) == 0 and "2 runs" in capsys.readouterr().out
    generate(5, 2).to_json(tmp_path / "authors-v9.json")
    wanted = queue.missing(experiments, tmp_path, "smoke", only=["second"], authors=tmp_path)
    assert queue.work(wanted, tmp_path / "smoke", 1, 1, tmp_path / "logs") == []
    (tmp_path / "authors-v9.json").unlink()
    assert queue.missing(experiments, tmp_path, "smoke", only=["second"]) == []


def test_it_trains_what_is_missing_and_what_is_stale_and_nothing_else(experiments, tmp_path):
    out = tmp_path / "smoke"
    asked = {"only": ["first"], "labels": ["mask"]}
    wanted = queue.missing(experiments, tmp_path, "smoke", **asked)
    assert queue.work(wanted, out, 2, 1, tmp_path / "logs") == []
    assert queue.missing(experiments, tmp_path, "smoke", **asked) == []
    made = {path: path.stat().st_mtime_ns for path in out.rglob("seed*.json")}
    assert queue.work(wanted, out, 1, 1, tmp_path / "logs") == []  # as a second queue that began with the same list
    assert len(made) == 2 and all(path.stat().st_mtime_ns == time for path, time in made.items())
    stale = wanted[0].path(tmp_path, "smoke").with_suffix(".json")
    facts = json.loads(stale.read_text())
    facts["config"]["gamma"] = 0.5
    stale.write_text(json.dumps(facts))
    assert names(queue.missing(experiments, tmp_path, "smoke", **asked)) == names(wanted[:1])
    assert queue.work(wanted[:1], out, 1, 1, tmp_path / "logs") == []
    assert records.read_facts(stale)["config"]["gamma"] == 0.95
    assert "1 runs, 0.0 core-hours" in queue.listing(wanted[:1], tmp_path)


def test_time_and_memory_are_those_of_records_of_the_kind(experiments, tmp_path):
    """The median speed, the most memory; records of before memory was noted say nothing of it."""
    [run, *_] = queue.missing(experiments, tmp_path, "smoke", only=["first"], labels=["mask"])
    assert queue.seconds(run, tmp_path / "none") is queue.peak_mb(run, tmp_path / "none") is None
    told = {
        "quick": {"wall_s": 2.0, "peak_mb": 400.5},
        "paper": {"wall_s": 4.0, "peak_mb": 300},
        "smoke": {"wall_s": 8},
    }
    for scale, facts in told.items():
        fake_record(run, tmp_path, scale, **facts)
    assert queue.seconds(run, tmp_path) == 4
    assert queue.peak_mb(run, tmp_path) == 400.5
    [other] = queue.missing(experiments, tmp_path, "smoke", only=["first"], labels=["factored-iar"])[:1]
    assert queue.peak_mb(other, tmp_path) is None
    old = tmp_path / "old"
    fake_record(run, old, "quick")
    assert queue.seconds(run, old) and queue.peak_mb(run, old) is None


def test_a_run_that_fails_is_named_with_its_log(experiments, tmp_path):
    (tmp_path / "smoke").write_text("a file where a folder should be")
    wanted = queue.missing(experiments, tmp_path / "other", "smoke", only=["first"])[:1]
    (failure,) = queue.work(wanted, tmp_path / "smoke", 1, 1, tmp_path / "logs")
    assert failure.startswith("ERA-v1 mask seed 0: see ") and failure.endswith(".log")


def test_a_stopped_queue_leaves_a_checkpoint_and_no_process(experiments, tmp_path):
    experiments.write_text(YAML.replace("steps: 640", "steps: 1000000"))
    code = (
        "import sys; from pathlib import Path; from flowrl.study import queue; root = Path(sys.argv[1]); "
        "wanted = queue.missing(root / 'experiments.yaml', root, 'smoke', ['first'])[:1]; "
        "queue.work(wanted, root / 'smoke', 1, 1, root / 'logs')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    checkpoint = tmp_path / "smoke/ERA-v1/mask/seed0.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not checkpoint.with_suffix(".json").exists()
    with records.alone(checkpoint.with_suffix("")):  # nobody holds the record any more
        pass


def test_one_process_a_record(tmp_path, capsys):
    with records.alone(tmp_path / "ERA-v1/mask/seed0"):
        assert main(f"train --env ERA-v1 --method mask --steps 0 --out {tmp_path}".split()) == queue.BUSY
    assert "ERA-v1/mask/seed0 is being made by another process" in capsys.readouterr().err
    assert os.listdir(tmp_path / "ERA-v1/mask") == [".seed0.lock"]
