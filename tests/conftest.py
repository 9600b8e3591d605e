"""One thread a test process; made-up records in a temporary folder for tests of what is drawn from records."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from flowrl.config import runs
from flowrl.records import EXPERIMENTS

torch.set_num_threads(1)

REFERENCE = {"optimal": -22.8, "go_and_stay": -28.15, "uniform_valid": -80.9, "valid_fraction": 0.5}
FINAL = {"iar-a2c": -23.9, "iar-a2c-paper": -41.0, "mask": -27.4, "ar-iar": -29.6}  # returns that the curves end at


def fake_record(run, root, scale, **changes):
    """Write one record of the format in architecture "Records": a curve from random to FINAL, with noise by seed."""
    config, path = run.config, run.path(root, scale)
    rng = np.random.default_rng([*str(run.path("", scale)).encode()])
    steps = np.arange(0, config.steps + 1, config.eval_every)
    end = min(FINAL.get(run.label, -30.0) + rng.normal(0, 0.5), REFERENCE["optimal"])
    mean = end - (end - REFERENCE["uniform_valid"]) * np.exp(-6 * steps / config.steps) + rng.normal(0, 1.2, len(steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    curve = pd.DataFrame({"env_steps": steps, "train_s": steps / 5e3, "eval_return_mean": mean, "valid_rate": 0.9})
    curve.to_csv(f"{path}.csv", index=False)
    facts = {
        "schema": 1, "environment": path.parent.parent.name, "label": run.label, "config": vars(config) | {},
        "config_hash": config.hash(), "env_digest": config.env_digest(), "commit": "0123456789abcdef", "dirty": False,
        "env_steps": config.steps,
        "final_return_mean": end, "final_return_sem": 0.2, "final_exact_return": end, "final_enumerated_share": 0.0,
        "train_enumerated_share": 0.0, "violations": 0, "reference": REFERENCE,
        "final_normalised": (end + 80.9) / 58.1, "final_plateau_gain": (end + 28.15) / 5.35,
    }  # fmt: skip
    (path.parent / f"{path.name}.json").write_text(json.dumps(facts | changes))


@pytest.fixture
def fake_records(tmp_path):
    """fake_records(experiment, scale, **changes to the facts) → the data folder that then holds all its records."""

    def write(experiment, scale="quick", **changes):
        for run in runs(EXPERIMENTS, experiment, scale):
            fake_record(run, tmp_path / "runs", scale, **changes)
        return tmp_path / "runs"

    return write
