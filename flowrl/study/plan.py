"""experiments.yaml resolved to runs: which configurations are trained at which scale, and where their records lie.

Every error is one line that names the fault and what is allowed.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from ..envs.city import THEIRS
from .config import TrainConfig, choose, make_config
from .forms import ConfigError, check, read_yaml

SCALES = ("smoke", "quick", "paper")
AUTHORS = "authors"  # what environments of the paper's authors begin with: authors/v4


@dataclass(frozen=True)
class Run:
    """One line of an experiment: where its record lies and what it trains."""

    label: str  # the folder under the environment, a name in legends
    config: TrainConfig

    def path(self, root: Path, scale: str) -> Path:
        """The record without its suffix: <root>/<scale>/<environment>/<label>/seed<k>."""
        return Path(root) / scale / Path(self.config.env).stem / self.label / f"seed{self.config.seed}"

    def options(self) -> list[str]:
        """What `python -m flowrl train` must be given, but for --out: settings where they differ from the method's."""
        config = self.config
        plain = make_config(config.env, config.method, {"seed": config.seed, "steps": config.steps})
        ours, theirs = dataclasses.asdict(config), dataclasses.asdict(plain)
        words = ["--env", config.env, "--method", config.method, "--seed", config.seed, "--steps", config.steps]
        words += ["--name", self.label]
        words += [w for name in ours if ours[name] != theirs[name] for w in ("--set", f"{name}={ours[name]}")]
        return list(map(str, words))


MOST_SEEDS = range(1001)
_SETTINGS = {"seeds": MOST_SEEDS, ...: object}
_RUN = {"title": str, "method": str, "seeds": MOST_SEEDS, "scales": {...: _SETTINGS}}
_EXPERIMENT = {
    "notebook": str, "title": str, "environments": [str], "runs": {...: (_RUN, type(None))}, "settings": _SETTINGS,
    "scales": {...: _SETTINGS}, "figure": (str, type(None)), "see": str, "colour": str,
}  # fmt: skip


@functools.cache
def _read(path: Path) -> dict:
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != {"scales", "experiments"}:
        raise ConfigError(f"{path}: the top-level keys must be scales, experiments")
    check(f"{path}: scales", data["scales"], {...: _SETTINGS})
    check(f"{path}: experiments", data["experiments"], {...: {...: object}})
    for scale in data["scales"]:
        choose(f"scale in {path}:", scale, SCALES)
        if "seeds" not in data["scales"][scale]:
            raise ConfigError(f"{path}: scale {scale}: no 'seeds'")
    return data


@functools.cache
def experiments(path: Path) -> dict[str, dict]:
    """Every experiment of experiments.yaml by name, as written. Raises ConfigError naming file and key."""
    keys, optional = {"notebook", "environments", "runs", "title"}, {"settings", "scales", "figure", "see", "colour"}
    data = _read(Path(path))["experiments"]
    for name, experiment in data.items():
        wrong = keys - set(experiment) or set(experiment) - keys - optional
        if wrong:
            allowed = f"keys: {', '.join(sorted(keys))}; maybe {', '.join(sorted(optional))}"
            raise ConfigError(f"{path}: experiment {name}: missing or unknown key {min(wrong)!r}; {allowed}")
        check(f"{path}: experiment {name}", experiment, _EXPERIMENT)
        for scale in experiment.get("scales", {}):
            choose(f"scale in {path}: experiment {name}:", scale, SCALES)
    return data


def titles(path: Path, experiment: str) -> dict[str, str]:
    """What each run of an experiment is called in figures, by label: its `title`, else the label."""
    choose("experiment", experiment, experiments(path))
    return {label: (entry or {}).get("title", label) for label, entry in experiments(path)[experiment]["runs"].items()}


def runs(path: Path, experiment: str, scale: str, authors: Path | None = None) -> list[Run]:
    """All runs of one experiment at one scale: environments × runs × seeds. Raises ConfigError.

    authors: the folder of the paper authors' cities, see `_environment`.
    """
    choose("scale", scale, SCALES)
    choose("experiment", experiment, experiments(path))
    choose(f"scale in {path}:", scale, _read(Path(path))["scales"])
    described = experiments(path)[experiment]
    settings = described.get("settings", {}) | _read(Path(path))["scales"][scale]
    settings |= described.get("scales", {}).get(scale, {})
    seeds = settings.pop("seeds")
    found = []
    for env in described["environments"]:
        env = _environment(env, Path(path).parent, authors)
        for label, entry in described["runs"].items():
            entry = {key: value for key, value in (entry or {}).items() if key != "title"}
            entry |= entry.pop("scales", {}).get(scale, {})
            method = entry.pop("method", label)
            for seed in range(min(seeds, entry.pop("seeds", seeds))):
                try:
                    found.append(Run(label, make_config(env, method, settings | entry | {"seed": seed})))
                except ValueError as error:
                    raise ConfigError(f"{path}: experiment {experiment}, run {label}: {error}") from None
    return found


def recorded_as(name: str) -> str:
    """The folder of records of an environment of experiments.yaml: authors-v4 for authors/v4."""
    return name.replace("/", "-") if name.startswith(f"{AUTHORS}/") else Path(name).stem


def _environment(name: str, folder: Path, authors: Path | None) -> str:
    """An environment of experiments.yaml, which lies in `folder`, as `envs` knows it.

    A city's file is given relative to it; authors/v4 is <authors>/authors-v4.json, a city of the paper's authors as
    import-city writes it, by default in `folder`/authors. These are theirs, and not part of the project.
    """
    if name.startswith(f"{AUTHORS}/"):
        return str((authors or folder / AUTHORS) / f"{recorded_as(name)}.json")
    return str(folder / name) if name.endswith(".json") else name


def planned(path: Path, root: Path, authors: Path | None = None) -> dict[Path, Run]:
    """Every run of every experiment and scale by its record's path. Raises ConfigError if a path stands for two."""
    found: dict[Path, Run] = {}
    for scale in SCALES:
        for experiment in experiments(path):
            for run in runs(path, experiment, scale, authors):
                record = run.path(root, scale)
                if found.setdefault(record, run) != run:
                    raise ConfigError(f"{path}: experiment {experiment}: another trains {record} with other settings")
    return found


def scale_drawn(path: Path, experiment: str, root: Path, scale: str = "auto", authors: Path | None = None) -> str:
    """The scale whose records under `root` an experiment is drawn from.

    `scale` itself; for "auto" the larger of paper and quick with all its records there, and those of experiments in the
    same figure, since a figure has one scale; else quick. An experiment on the authors' cities, where neither these nor
    its records are there, is drawn as for "auto". Raises ConfigError.
    """
    choose("scale", scale, (*SCALES, "auto"))

    def lacking(size: str, name: str = experiment) -> list[Run]:
        return [run for run in runs(path, name, size, authors) if not _recorded(run.path(root, size))]

    figure_of = {name: described.get("figure", name) for name, described in experiments(path).items()}
    figure = figure_of[experiment]
    together = [name for name in figure_of if name == experiment or (figure and figure_of[name] == figure)]

    untrainable = without_city(lacking("quick" if scale == "auto" else scale))
    if scale != "auto" and not untrainable:
        return scale
    for largest_first in ("paper", "quick"):
        if not any(lacking(largest_first, name) for name in together):
            return largest_first
    if untrainable:
        raise missing_city(untrainable[0])
    return "quick"


def _recorded(record: Path) -> bool:
    return all(record.with_name(record.name + suffix).exists() for suffix in (".csv", ".json"))


def without_city(wanted: list[Run]) -> list[Run]:
    """The runs on a city of the paper's authors whose file is not there."""
    return [
        run for run in wanted if Path(run.config.env).name.startswith(f"{AUTHORS}-") and run.config.city_is_missing()
    ]


def missing_city(run: Run) -> ConfigError:
    """What to do about a run whose city, and whose record, is not there."""
    return ConfigError(
        f"{run.label} has no record on {Path(run.config.env).stem}, and its city {run.config.env} is not there: name "
        f"its folder (snakemake --config authors=DIR, queue --authors DIR); {THEIRS}"
    )
