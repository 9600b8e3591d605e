"""What a record is: two small text files, whole or not there; and the records of an experiment, read back.

A record is <label>/seed<k>.csv, one row an evaluation, and seed<k>.json, the configuration and where, when and with
what it was made, with the final evaluation. Both are written under temporary names and renamed, the JSON last.
"""

import csv
import fcntl
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from .forms import ConfigError, check
from .plan import experiments, runs, scale_drawn
from .stats import normalised_score, plateau_gain

SCHEMA = 1
_KNOWN = (float, type(None))
FORM: dict[str, Any] = {  # of a record's JSON, as far as anything reads it
    "environment": str, "env_digest": str, "label": str, "config": {"method": str, "seed": int}, "env_steps": int,
    "wall_s": float, "violations": int, "reference": ({...: _KNOWN}, type(None)), "commit": (str, type(None)),
    "dirty": (bool, type(None)), "final_return_mean": float, "final_return_sem": float, "final_exact_return": _KNOWN,
    "final_normalised": _KNOWN, "final_plateau_gain": _KNOWN, "final_enumerated_share": float,
    "train_enumerated_share": float, "peak_mb": _KNOWN,
}  # fmt: skip
COLUMNS = ("env_steps", "wall_s", "eval_return_mean", "valid_rate", "oracle_calls", "violations", "elbo",
           "entropy_estimate", "grad_norm_actor", "grad_norm_critic")  # fmt: skip  # of its CSV, likewise
PACKAGES = ("torch", "numpy", "scipy", "pandas", "gymnasium")


def _root() -> Path:
    """The project's folder, whatever the working directory: where experiments.yaml lies."""
    package = Path(__file__).resolve().parents[2]
    return package if (package / "experiments.yaml").exists() else Path.cwd()


ROOT = _root()


EXPERIMENTS = ROOT / "experiments.yaml"


class RecordError(ValueError):
    """A record that can't be read, or may not be overwritten."""


class BusyError(RecordError):
    """A record that another process is making."""


def record_path(out: Path, env: str, label: str, seed: int) -> Path:
    """The record without its suffix: <out>/<environment>/<label>/seed<k>."""
    return Path(out) / Path(env).stem / label / f"seed{seed}"


def portable(env: str) -> str:
    """A city's file in the project's folder by its path there, on whichever machine; all else as it is."""
    path = Path(env).resolve()
    return path.relative_to(ROOT).as_posix() if path.suffix == ".json" and path.is_relative_to(ROOT) else env


def read_record(path: Path) -> tuple[pd.DataFrame, dict]:
    """The curve and the facts of a record, its path given with or without suffix. Raises RecordError."""
    facts = read_facts(path)
    csv_path = with_suffix(path, ".csv")
    try:
        curve = pd.read_csv(csv_path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{csv_path}: {' '.join(str(error).split())}") from None
    numbers = curve.select_dtypes("number")
    if wrong := [name for name in (*COLUMNS, *curve) if name not in numbers] or ["first row"] * curve.empty:
        raise RecordError(f"{csv_path}: no numbers in {wrong[0]!r}; it is not whole")
    return curve, facts


def read_facts(path: Path) -> dict:
    """The JSON of a record; `peak_mb` is None in one of before it was noted. Raises RecordError."""
    json_path = with_suffix(path, ".json")
    try:
        facts = json.loads(json_path.read_text())
    except OSError as error:
        raise RecordError(f"{json_path}: no such record ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{json_path}: not a record, it is not JSON") from None
    found = facts.get("schema") if isinstance(facts, dict) else None
    if found != SCHEMA:
        raise RecordError(f"{json_path}: record of schema {found}; this version reads schema {SCHEMA}")
    facts.setdefault("peak_mb", None)
    check_whole(json_path, facts, FORM)
    return facts


def check_whole(path: Path, found: dict, form: dict) -> None:
    """RecordError unless everything that the form names is there, in that form."""
    try:
        check(f"{path}:", found, form)
    except ConfigError as error:
        raise RecordError(str(error)) from None
    for name, part in form.items():
        if name not in found:
            raise RecordError(f"{path}: no {name!r}; it is not whole")
        if isinstance(part, dict) and ... not in part:
            check_whole(path, found[name], part)


def with_suffix(path: Path, suffix: str) -> Path:
    """A record's file: its path may be given with or without suffix."""
    path = Path(path)
    return path.with_suffix(suffix) if path.suffix in (".csv", ".json", ".pt") else path.with_name(path.name + suffix)


def write_record(path: Path, rows: list[dict], facts: dict) -> None:
    """Write <path>.csv and <path>.json, whole or not at all, and never a curve beside another run's facts."""
    with replacing(with_suffix(path, ".json")) as text, replacing(with_suffix(path, ".csv")) as curve:
        text.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        with open(curve, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _rounded(value) for key, value in row.items()} for row in rows)
        with_suffix(path, ".json").unlink(missing_ok=True)


@contextmanager
def replacing(path: Path):
    """A temporary path that takes the place of `path` when all went well: a file is there whole, or as it was.

    Raises OSError naming `path` where the disk is full, say.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save hides it in its own
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, wait: bool = False):
    """Hold a record for this process until it ends, however it ends.

    Where another holds it: wait for that to end, or raise BusyError.
    """
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"{path} is being made by another process") from None
        for left in path.parent.glob(f".{path.name}.*.[0-9]*"):  # by a process that was killed while it wrote
            left.unlink()
        yield


def _rounded(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def provenance(device: torch.device) -> dict:
    """Commit, versions and machine that a record is made with."""
    return {
        **_commit_and_changes(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        },
        "device": device.type,
    }


def _commit_and_changes() -> dict:
    """The commit, and whether the code differs from it; both None where this project is no repository of its own."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT.resolve():
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--", "flowrl", "experiments.yaml")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changes)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# -------------------------------------------------------------------------- the records of an experiment


class Record(NamedTuple):
    """One training run."""

    curve: pd.DataFrame  # a row an evaluation: env_steps, eval_return_mean, …
    facts: dict  # configuration, provenance and final scores
    scale: str  # the scale it was made for
    stale: bool  # made with other settings than experiments.yaml names now


def load(
    experiment: str, data_dir: str | Path = "data/runs", scale: str = "auto", path: Path = EXPERIMENTS
) -> list[Record]:
    """All records of an experiment, by environment, run, seed; a relative `data_dir` lies in the project's folder.

    scale "auto": the largest whose records are all there. Raises RecordError where one is missing or can't be read.
    """
    root = ROOT / data_dir
    scale = scale_drawn(path, experiment, root, scale)
    found = []
    for run in runs(path, experiment, scale):
        try:
            curve, facts = read_record(run.path(root, scale))
        except RecordError as error:
            raise RecordError(f"{error}; `make figures SCALE={scale}` trains what is missing") from None
        found.append(Record(curve, facts, scale, not run.config.made(facts)))
    return found


def figures(notebook: str, path: Path = EXPERIMENTS) -> dict[str, list[str]]:
    """The figures that a notebook draws from records, and the experiments in each: one's `figure`, else its name.

    One whose `figure` is null is in none.
    """
    found: dict[str, list[str]] = {}
    for name, experiment in experiments(path).items():
        figure = experiment.get("figure", name)
        if experiment["notebook"] == notebook and figure:
            found.setdefault(figure, []).append(name)
    return found


def by_environment(records: list[Record]) -> dict[str, list[Record]]:
    """Records grouped by environment, in the order in which they come."""
    return _grouped(records, "environment")


def by_label(records: list[Record]) -> dict[str, list[Record]]:
    """Records grouped by the run's label, in the order in which they come."""
    return _grouped(records, "label")


def _grouped(records: list[Record], key: str) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.facts[key], []).append(record)
    return groups


def matrix(records: list[Record], value: Callable[[Record], float | None]) -> np.ndarray:
    """A number a record as (R, M): R seeds of M environments. Raises RecordError where those have not as many seeds."""
    columns = [[value(record) for record in group] for group in by_environment(records).values()]
    if len(set(map(len, columns))) > 1:
        raise RecordError(f"{records[0].facts['label']}: not as many seeds in every environment")
    return np.array(columns, dtype=float).T


def score(facts: dict) -> float | None:
    """The final policy's normalised score: exact where it was tabulated, else by episodes; None where none is known."""
    exact, episodes = facts["final_exact_return"], facts["final_return_mean"]
    return normalised_score(episodes if exact is None else exact, facts["reference"])


def gain(facts: dict) -> float | None:
    """The final policy's plateau gain, likewise."""
    exact, episodes = facts["final_exact_return"], facts["final_return_mean"]
    return plateau_gain(episodes if exact is None else exact, facts["reference"])


def final_scores(records: list[Record]) -> pd.DataFrame:
    """One row a run: the evaluation at the end of training, beside the optimum. Returns are sums over an episode."""
    rows = [
        {
            "environment": facts["environment"],
            "run": facts["label"],
            "seed": facts["config"]["seed"],
            "scale": scale,
            "steps": facts["env_steps"],
            "return": facts["final_return_mean"],
            "standard_error": facts["final_return_sem"],
            "exact_return": facts["final_exact_return"],
            "optimum": (facts["reference"] or {}).get("optimal"),
            "normalised": facts["final_normalised"],
            "exact_score": normalised_score(facts["final_exact_return"], facts["reference"]),
            "plateau_gain": facts["final_plateau_gain"],
            "exact_gain": plateau_gain(facts["final_exact_return"], facts["reference"]),
            "violations": facts["violations"],
            "enumerated_share": facts["final_enumerated_share"],
            "train_enumerated_share": facts["train_enumerated_share"],
            "commit": _commit(facts),
        }
        for _, facts, scale, _ in records
    ]
    return pd.DataFrame(rows)


def _commit(facts: dict) -> str:
    """Seven digits, with + where the code differed from the commit."""
    return (facts["commit"] or "none")[:7] + "+" * bool(facts["dirty"])


def curves_drawn(records: list[Record]) -> str:
    """What `plots.learning_curve` draws: of three seeds, all that a bootstrap knows is the least and the greatest."""
    most = max(_seeds(records).values())
    if most == 1:
        return "Line: the one run"
    if most <= 3:
        return "Line: mean over seeds; band: from the least to the greatest"
    return "Line: interquartile mean over seeds; band: its 95 % bootstrap interval"


def _seeds(records: list[Record]) -> Counter:
    """How many seeds each run has, by environment and label."""
    return Counter((record.facts["environment"], record.facts["label"]) for record in records)


def caption(records: list[Record], drawn: str = "", names: dict[str, str] | None = None) -> str:
    """What a figure must say of its records to be read: lines and bands, scale, seeds, steps; a warning if stale.

    drawn: what lines, bands and markers are; default as `curves_drawn` says. names: what the figure calls each run, by
    label; default the label.
    """
    return f"{drawn or curves_drawn(records)}. {_made(records, names or {})}"


def _made(records: list[Record], names: dict[str, str]) -> str:
    """At what scale, with how many seeds and steps; a warning if stale."""
    names = {record.facts["label"]: record.facts["label"] for record in records} | names
    seeds, steps = _seeds_a_run(records, names), _span(record.facts["config"]["steps"] for record in records)
    scale = _span((record.scale for record in records), str)
    text = f"{seeds}, {steps} environment steps (scale: {scale})."
    stale = sorted({f"{names[r.facts['label']]} on {r.facts['environment']}" for r in records if r.stale})
    if stale:
        text += f" WARNING: made with other settings than experiments.yaml now names: {', '.join(stale)}."
    return text


def sources(records: list[Record]) -> str:
    """Where a figure comes from, for its file's metadata: scale, seeds and steps, evaluations, the records' commits."""
    configs = [record.facts["config"] for record in records]
    commits = sorted({_commit(record.facts) for record in records})
    return (
        f"{_made(records, {})} Evaluated every {_span(config['eval_every'] for config in configs)} steps over "
        f"{_span(config['eval_episodes'] for config in configs)} episodes and at the end over "
        f"{_span(config['final_episodes'] for config in configs)}. "
        f"Records of commit {', '.join(commits)}{' (+: and changes to it)' * any('+' in c for c in commits)}."
    )


def _seeds_a_run(records: list[Record], names: dict[str, str]) -> str:
    """How many seeds the runs have, and which have fewer: where not in all of their environments, in which."""
    counted = _seeds(records)
    most, fewer = max(counted.values()), []
    for label in by_label(records):
        its = {env: n for (env, other), n in counted.items() if other == label}
        if len(set(its.values())) > 1:
            fewer += [f"{names[label]} on {env} {n}" for env, n in its.items() if n < most]
        elif min(its.values()) < most:
            fewer.append(f"{names[label]} {min(its.values())}")
    return f"{most} seed{'s' * (most > 1)} a run" + f" ({', '.join(fewer)})" * bool(fewer)


def _span(values, show="{:,}".format) -> str:
    """One value, or the least and the greatest of several."""
    values = sorted(set(values))
    return show(values[0]) if len(values) == 1 else f"{show(values[0])} to {show(values[-1])}"
