"""One thread a test process; made-up records in a temporary folder for tests of what is drawn from records."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flowrl import envs
from flowrl.study.plan import runs
from flowrl.study.records import EXPERIMENTS, Record
from flowrl.study.stats import normalised_score, plateau_gain
from flowrl.truth import exact, line, search

torch.set_num_threads(1)

REFERENCE = {
    "optimal": -22.8,
    "go_and_stay": -28.15,
    "uniform_valid": -80.9,
    "valid_fraction": 0.5,
}  # of any small city
LEARNT = {"iar-a2c": 0.98, "iar-a2c-paper": 0.69, "mask": 0.92, "ar-iar": 0.88}  # of the way up, by label; else 0.876
RANGES = {"CartPole": (20.0, 500.0), "Acrobot": (-500.0, -80.0), "Pistonball": (-10.0, 60.0)}  # random, trained


def fake_reference(env: str) -> dict | None:
    """What `evaluation.reference` gives, but every city small enough to be solved has the same made-up one."""
    if env in envs.partial.GAMES:
        return exact.partial_reference(env)
    if env.startswith("Line-"):
        return line.reference(env)
    if env.partition("-")[0] in RANGES:
        return None
    return search.reference(env) if env.startswith(("ERA-L", "ERA-C")) else REFERENCE


def fake_return(run, reference: dict | None, rng: np.random.Generator) -> tuple[float, float]:
    """Mean returns before training and after it; never above the optimum."""
    if "factored" in (reference or {}):  # games: each to the best of its class
        best = reference["factored" if run.label.startswith("factored") else "optimal"]
        return reference["uniform_valid"], best - 0.01 * (reference["optimal"] - reference["factored"]) * rng.random()
    if reference is None:
        low, high = RANGES[run.config.env.partition("-")[0]]
    else:
        low, high = reference["uniform_valid"], reference["optimal"] or reference["replan"]
    return low, min(low + (LEARNT.get(run.label, 0.876) + rng.normal(0, 0.004)) * (high - low), high)


def fake_record(run, root, scale, **changes):
    """Write one record of the format in architecture "Records": a curve from random upwards, with noise by seed."""
    config, path, reference = run.config, run.path(root, scale), fake_reference(run.config.env)
    rng = np.random.default_rng([*str(run.path("", scale)).encode()])
    start, end = fake_return(run, reference, rng)
    steps = np.arange(0, config.steps + 1, config.eval_every)
    n, noise = len(steps), rng.normal(0, 0.02 * abs(end - start), len(steps))
    oracle, wol = run.label != "wol-ddpg" and envs.constrained(config.env), run.label == "wol-ddpg"
    violations = steps // 10 if wol else 0 * steps
    curve = {
        "env_steps": steps, "wall_s": steps / 4e3, "train_s": steps / 5e3,
        "eval_return_mean": end - (end - start) * np.exp(-6 * steps / config.steps) + noise, "eval_return_sem": 0.2,
        "valid_rate": 0.9, "oracle_calls": steps * config.n_draws * oracle, "violations": violations,
        "resamples": 0, "chains": 0, "chain_calls": 0, "enumerations": 0, "fallbacks": 0, "eval_enumerations": 0,
        "valid_total": 9 * steps * config.n_draws // 10, "draws_total": steps * config.n_draws,
        "elbo": -2 - np.exp(-steps / config.steps) + rng.normal(0, 0.01, n) if config.estimator != "rb" else np.nan,
        "entropy_estimate": np.nan if wol else 5 - 4 * steps / config.steps,
        "grad_norm_actor": 10 ** rng.normal(0, 0.1, n), "grad_norm_critic": 10 ** rng.normal(1, 0.1, n),
        "value_loss": 1.0, "ties": 0.0,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(curve).to_csv(f"{path}.csv", index=False)
    facts = {
        "schema": 1, "environment": path.parent.parent.name, "label": run.label, "config": vars(config) | {},
        "config_hash": "", "env_digest": "" if config.city_is_missing() else config.env_digest(),
        "commit": "0123456789abcdef", "dirty": False,
        "env_steps": config.steps, "wall_s": config.steps / 4e3, "train_s": config.steps / 5e3,
        "final_return_mean": end, "final_return_sem": 0.2,
        "final_exact_return": None if wol or (reference or {}).get("optimal") is None else end,
        "final_calls_median": float(config.n_draws), "final_calls_99": float(config.n_draws),
        "final_enumerated_share": 0.0, "train_enumerated_share": 0.0, "violations": int(violations[-1]),
        "reference": reference, "final_normalised": normalised_score(end, reference),
        "final_plateau_gain": plateau_gain(end, reference),
    }  # fmt: skip
    Path(f"{path}.json").write_text(json.dumps(facts | changes))


def record(label, xs, ys, environment="ERA-v4", final=-20.0, exact=None, **columns):
    """A record by hand, its reference such that returns of −20 and −70 score 1 and 0."""
    curve = pd.DataFrame({"env_steps": [0, 10, 20], "eval_return_mean": ys, "oracle_calls": xs} | columns)
    settings = {"steps": 20, "eval_every": 10, "eval_episodes": 4, "final_episodes": 8, "seed": 0}
    facts = {
        "environment": environment, "label": label, "config": settings, "commit": None, "dirty": False,
        "final_return_mean": final, "final_exact_return": exact,
        "reference": {"optimal": -20.0, "go_and_stay": -30.0, "uniform_valid": -70.0},
    }  # fmt: skip
    return Record(curve, facts, "quick", False)


@pytest.fixture
def fake_records(tmp_path):
    """fake_records(experiment, scale, **changes to the facts) → the data folder that then holds all its records."""

    def write(experiment, scale="quick", **changes):
        for run in runs(EXPERIMENTS, experiment, scale):
            fake_record(run, tmp_path / "runs", scale, **changes)
        return tmp_path / "runs"

    return write
