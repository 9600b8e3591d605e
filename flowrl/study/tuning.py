"""Random search with an equal budget for every method: trials drawn from tuning.yaml, trained, kept as a table.

Trial k of a method draws its settings from the generator seeded (k, method), so that a table can grow, and is trained
with seed k in every environment, evaluated at its end only. data/tuning/<method>.csv has a row for each trial and
environment. Trials are ranked by their mean exact score over the environments.
"""

import math
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from .config import ConfigError, choose, make_config
from .forms import check, read_yaml
from .plan import Run
from .queue import work
from .records import ROOT, read_facts, replacing, score

SPACE = ROOT / "tuning.yaml"
KEYS = ["trial", "env"]
FORM = {"environments": [str], "steps": range(1, 10**9), "trials": range(10_001),
        "methods": {...: {...: ([object], {"log": [float]})}}}  # fmt: skip


def read_space(path: Path = SPACE) -> dict:
    """tuning.yaml: `environments`, `steps`, `trials`, and for each method the range of each setting.

    A range is a list of choices, or {log: [low, high]}. Raises ConfigError naming the method and the setting.
    """
    space = read_yaml(path)
    if not isinstance(space, dict) or set(space) != set(FORM):
        raise ConfigError(f"{path}: the top-level keys must be {', '.join(FORM)}")
    check(f"{path}", space, FORM)
    if not space["environments"]:
        raise ConfigError(f"{path}: environments is []; it must name at least one")
    for method, name, choices in ((m, n, c) for m, ranges in space["methods"].items() for n, c in ranges.items()):
        _check_range(f"{path}: {method}, {name}", choices)
    for method, ranges in space["methods"].items():
        for name, choices in ranges.items():
            for value in choices["log"] if isinstance(choices, dict) else choices:
                make_config(space["environments"][0], method, draw_settings(space, method, 0) | {name: value})
    return space


def _check_range(where: str, choices: list | dict) -> None:
    """ConfigError unless it is some choices, or {log: [low, high]} with 0 < low < high."""
    bounds = choices.get("log", []) if isinstance(choices, dict) else [1, 2]
    if not choices or len(bounds) != 2 or not 0 < bounds[0] < bounds[1] < math.inf:
        raise ConfigError(f"{where} is {choices}; it must be a list, or {{log: [low, high]}} with 0 < low < high")


def draw_settings(space: dict, method: str, trial: int) -> dict:
    """The settings of one trial."""
    choose("method with ranges in tuning.yaml:", method, space["methods"])
    rng = np.random.default_rng([trial, zlib.crc32(method.encode())])
    drawn = {}
    for name, choices in space["methods"][method].items():
        if isinstance(choices, dict):
            low, high = map(math.log, choices["log"])
            drawn[name] = float(f"{math.exp(rng.uniform(low, high)):.2g}")
        else:
            drawn[name] = choices[rng.integers(len(choices))]
    if "n_draws" in drawn:
        drawn["n_correction"] = drawn["n_draws"]
    return drawn


def trials(space: dict, method: str, n: int | None = None) -> list[Run]:
    """Trials 0 to n − 1 in every environment, n by default the space's."""
    return [
        Run(f"trial{trial}", make_config(env, method, draw_settings(space, method, trial) | plan))
        for trial in range(space["trials"] if n is None else n)
        for plan in [{"seed": trial, "steps": space["steps"], "eval_every": space["steps"], "final_episodes": 20}]
        for env in space["environments"]
    ]


def read_table(method: str, root: Path) -> pd.DataFrame:
    """What was tried so far, without rows where nothing was."""
    path = Path(root) / f"{method}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=pd.Index(KEYS))


def tune(method: str, root: Path, records: Path, cores: int = 1, hours: float = math.inf, n: int | None = None,
         space: dict | None = None) -> list[str]:  # fmt: skip
    """Train the trials that the table lacks and add their rows; the failures, a line each.

    root: folder of the tables; records: folder of the trials' records, which may go once their rows are written.
    """
    space = space or read_space()
    planned, known = trials(space, method, n), read_table(method, root)
    _check(known, space, method)
    done = set(zip(known["trial"], known["env"], strict=True))
    wanted = [run for run in planned if (run.config.seed, run.config.env) not in done]
    out = Path(records) / method
    try:
        return work(wanted, out, cores, hours, Path(records) / "logs")
    finally:
        rows = [_row(run, space, out) for run in wanted if _record(run, out).exists()]
        table = pd.concat([read_table(method, root), pd.DataFrame(rows)]) if rows else read_table(method, root)
        if len(table):
            Path(root).mkdir(parents=True, exist_ok=True)
            with replacing(Path(root) / f"{method}.csv") as temporary:
                table.sort_values(KEYS).to_csv(temporary, index=False, float_format="%.6g")


def _check(table: pd.DataFrame, space: dict, method: str) -> None:
    """ConfigError where a row is of other ranges than the space's."""
    for row in table.to_dict("records"):
        drawn = draw_settings(space, method, row["trial"])
        other = [name for name in space["methods"][method] if row.get(name) != drawn[name]]
        if other or row["steps"] < space["steps"]:
            raise ConfigError(
                f"{method}.csv: trial {row['trial']} is of other ranges ({', '.join(other) or 'steps'}) than "
                "tuning.yaml has now; remove the table to begin anew"
            )


def _record(run: Run, out: Path) -> Path:
    return Path(out) / Path(run.config.env).stem / run.label / f"seed{run.config.seed}.json"


def _row(run: Run, space: dict, out: Path) -> dict:
    facts = read_facts(_record(run, out))
    tried = {name: facts["config"][name] for name in space["methods"][run.config.method]}
    measured = {"score": score(facts), "wall_s": facts["wall_s"], "steps": facts["env_steps"]}
    made_with = {"commit": facts["commit"], "dirty": facts["dirty"], "torch": facts["versions"]["torch"]}
    return {"trial": run.config.seed, "env": run.config.env} | tried | measured | made_with


def ranking(table: pd.DataFrame, space: dict, method: str) -> pd.DataFrame:
    """The trials that were tried in every environment, best first: settings, mean and least score."""
    choose("method with ranges in tuning.yaml:", method, space["methods"])
    if table.empty:
        return table
    groups = table.groupby("trial")
    names = [name for name in space["methods"][method] if name in table]
    ranked = groups[names].first()
    ranked["mean"], ranked["least"] = groups["score"].mean(), groups["score"].min()
    whole = groups["env"].nunique() == len(space["environments"])
    return ranked.loc[whole].sort_values("mean", ascending=False)
