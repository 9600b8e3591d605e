"""The records of an experiment, read back: what plots and tables are made of."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .config import runs, scale_drawn
from .runs import ROOT, RecordError, read_record
from .stats import normalised_score, plateau_gain

EXPERIMENTS = ROOT / "experiments.yaml"


class Record(NamedTuple):
    """One training run."""

    curve: pd.DataFrame  # a row an evaluation: env_steps, eval_return_mean, …
    facts: dict  # configuration, provenance and final scores
    scale: str  # the scale it was made for
    stale: bool  # made with other settings than experiments.yaml names now


def load(experiment: str, data_dir: Path = "data/runs", scale: str = "auto", path: Path = EXPERIMENTS) -> list[Record]:
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
    return (facts["commit"] or "none")[:7] + "+" * facts["dirty"]


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


def caption(records: list[Record], drawn: str = "") -> str:
    """What a figure must say of its records: scale, seeds, steps, episodes, commits; a warning where some are stale.

    drawn: what lines, bands and markers are; default as `curves_drawn` says.
    """
    counted = _seeds(records)
    most = max(counted.values())
    fewer = ", ".join(dict.fromkeys(f"{label} {n}" for (_, label), n in counted.items() if n < most))
    seeds = f"{most} seed{'s' * (most > 1)} a run" + f" ({fewer})" * bool(fewer)
    configs = [record.facts["config"] for record in records]
    commits = sorted({_commit(record.facts) for record in records})
    text = (
        f"Scale {_span((record.scale for record in records), str)}: {seeds}, "
        f"{_span(config['steps'] for config in configs)} environment steps, evaluated every "
        f"{_span(config['eval_every'] for config in configs)} steps over {_span(c['eval_episodes'] for c in configs)} "
        f"episodes and at the end over {_span(c['final_episodes'] for c in configs)}. "
        f"{drawn or curves_drawn(records)}. "
        f"Records of commit {', '.join(commits)}{' (+: and changes to it)' * any('+' in c for c in commits)}."
    )
    stale = sorted({f"{r.facts['label']} on {r.facts['environment']}" for r in records if r.stale})
    if stale:
        text += f" WARNING: made with other settings than experiments.yaml now names: {', '.join(stale)}."
    return text


def _span(values, show="{:,}".format) -> str:
    """One value, or the least and the greatest of several."""
    values = sorted(set(values))
    return show(values[0]) if len(values) == 1 else f"{show(values[0])} to {show(values[-1])}"
