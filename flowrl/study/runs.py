"""The run that makes a record: training, checkpoints, resume, the weights evaluated again (architecture: "Records").

Beside a record seed<k>.{csv,json} lies seed<k>.pt: the checkpoint while it trains, the weights afterwards.
"""

import dataclasses
import math
import os
import resource
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from .. import envs
from ..a2c import Trainer, seeded
from ..device import make_device, one_thread
from ..wolpertinger import WolpertingerTrainer
from .config import ConfigError, TrainConfig, restored
from .evaluation import CURVE_DRAWS, Evaluator, reference
from .plan import Run as Planned
from .records import (
    SCHEMA,
    RecordError,
    alone,
    check_whole,
    portable,
    provenance,
    read_facts,
    record_path,
    replacing,
    with_suffix,
    write_record,
)
from .stats import normalised_score, plateau_gain

CHECKPOINT_SECONDS = 30
_TEXT, _NUMBER = (str, type(None)), (int, float, type(None))
FORM = {  # of a checkpoint, as far as `_alike` doesn't know it
    "finished": bool, "config_hash": str, "config": {...: object}, "label": str, "rows": [{...: _NUMBER}],
    "wall_s": float, "train_s": float, "started": str, "violations": int,
    "made_with": {"commit": _TEXT, "dirty": (bool, type(None)), "device": str, "versions": {...: str},
                  "machine": {"cpu": str, "cores": _NUMBER, "gpu": _TEXT}},
    "trainer": {"env_steps": int, "policy": {...: torch.Tensor}, "critic": {...: torch.Tensor}},
}  # fmt: skip
ROW = {"eval_return_mean": float, "valid_rate": float, "valid_total": int, "draws_total": int, "env_steps": int}


class Interrupted(Exception):
    """The run was stopped and its checkpoint saved."""


def make_trainer(config: TrainConfig, env, oracle=None) -> Trainer:
    """The trainer of a configuration's method: Wol-DDPG has its own, A2C the other."""
    kind = WolpertingerTrainer if config.policy == "wolpertinger" else Trainer
    return kind(config, env, oracle)


class Run:
    """One training run from start, or checkpoint, to record."""

    def __init__(self, config: TrainConfig, out: Path, label: str | None = None, device: str = "auto", oracle=None):
        self.config, self.label = config, label or config.method
        self.device = make_device(device)
        self.path = record_path(out, config.env, self.label, config.seed)
        if self.device.type == "cpu":
            one_thread()
        env = envs.make_batched(config.env, config.n_envs, self.device, seeded(config.seed, "env", self.device))
        self.trainer = make_trainer(config, env, oracle)
        self.evaluator = Evaluator(config, self.device)
        _writable(self.path.parent)
        self.rows: list[dict] = []
        self.wall_s = self.train_s = 0.0
        self.started, self.made_with = _now(), provenance(self.device)
        self.stop = False

    # the checkpoint: everything, so that a resumed run's record is the same

    def save(self, finished: bool = False) -> None:
        state = {
            "schema": SCHEMA, "finished": finished, "config_hash": self.config.hash(),
            "config": dataclasses.asdict(self.config),
            "label": self.label, "trainer": self.trainer.state_dict(), "rows": self.rows, "wall_s": self.wall_s,
            "train_s": self.train_s, "started": self.started, "made_with": self.made_with,
            "violations": self.evaluator.violations,
        }  # fmt: skip
        with replacing(with_suffix(self.path, ".pt")) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def resume(self) -> bool:
        """Take up a checkpoint of the same configuration where there is one."""
        path = with_suffix(self.path, ".pt")
        if not path.exists():
            return False
        state = load_checkpoint(path, self.device)
        if state["finished"] or state["config_hash"] != self.config.hash():  # a removed record is trained anew
            return False
        before = state["made_with"]["device"].partition(":")[0]
        if before != self.device.type:
            raise RecordError(f"{path} was made on {before}, which alone can go on with it, not {self.device.type}")
        for row in state["rows"][-1:]:
            check_whole(path, row, ROW)
        with _whole(path):
            if not _alike(self.trainer.state_dict(), state["trainer"]):
                raise ValueError("its parts are not those of this configuration")
            self.trainer.load_state_dict(state["trainer"])
        self.rows, self.wall_s, self.train_s = state["rows"], state["wall_s"], state["train_s"]
        self.started, self.evaluator.violations = state["started"], state["violations"]
        if state["made_with"]["commit"] != self.made_with["commit"]:  # partly made by other code than it says
            state["made_with"]["dirty"] = True
        self.made_with = state["made_with"]
        return True

    def train(self, progress: bool = True) -> dict:
        """Run to the end and write the record; its facts. Raises Interrupted, with a checkpoint saved, on a signal.

        After any other error the last checkpoint, of at most half a minute before, stands: one of the middle of a step
        would go on differently.
        """
        config, trainer = self.config, self.trainer
        start, saved = time.perf_counter() - self.wall_s, time.perf_counter()
        if not self.rows:
            self._evaluate(start)
            self.save()
        bar = tqdm(total=config.steps, initial=trainer.env_steps, unit=" steps", disable=not progress, smoothing=0.05,
                   desc=f"{Path(config.env).stem} {self.label} seed {config.seed}", mininterval=0.5)  # fmt: skip
        with bar, self._signals():
            self._show(bar)
            while trainer.env_steps < config.steps:
                began, before = time.perf_counter(), trainer.env_steps
                trainer.step()
                self.train_s += time.perf_counter() - began
                bar.update(trainer.env_steps - before)
                due = before // config.eval_every != trainer.env_steps // config.eval_every
                if due or trainer.env_steps >= config.steps:
                    self._evaluate(start)
                    self._show(bar)
                self.wall_s = time.perf_counter() - start
                if self.stop:
                    self.save()
                    raise Interrupted(f"stopped at {trainer.env_steps} steps; the same command goes on from there")
                if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.perf_counter()
        self.save()  # what follows takes seconds and must not cost the run
        facts = self._facts(start)
        write_record(self.path, self.rows, facts)
        self.save(finished=True)
        return facts

    def _show(self, bar: tqdm) -> None:
        row = self.rows[-1]
        bar.set_postfix_str(f"return {row['eval_return_mean']:.1f}, valid {row['valid_rate']:.2f}")

    @contextmanager
    def _signals(self):
        """Ctrl-C and SIGTERM stop the run after the update that is under way."""

        def ask_to_stop(*_):
            self.stop = True

        old = {}
        try:
            for which in (signal.SIGINT, signal.SIGTERM):
                old[which] = signal.signal(which, ask_to_stop)
        except ValueError:  # not the main thread
            pass
        try:
            yield
        finally:
            for which, handler in old.items():
                signal.signal(which, handler)

    def _evaluate(self, start: float) -> None:
        trainer, n = self.trainer, self.config.eval_episodes
        mean, sem, counts = self.evaluator.episodes(trainer, n, f"evaluation {trainer.env_steps}")
        summary = trainer.summary()
        since = {key: summary[key] - (self.rows[-1][f"{key}_total"] if self.rows else 0) for key in ("valid", "draws")}
        row = {
            "env_steps": trainer.env_steps, "wall_s": time.perf_counter() - start, "train_s": self.train_s,
            "eval_return_mean": mean, "eval_return_sem": sem,
            "valid_rate": since["valid"] / since["draws"] if since["draws"] else float("nan"),
            "oracle_calls": summary["asked"],
            "violations": int(trainer.env.violations) + self.evaluator.violations,
            "resamples": summary["resamples"], "chains": summary["chains"], "chain_calls": summary["chain_calls"],
            "enumerations": summary["enumerations"],
            "fallbacks": summary["fallbacks"], "eval_enumerations": counts["enumerations"] + counts["fallbacks"],
            "valid_total": summary["valid"], "draws_total": summary["draws"],
        }  # fmt: skip
        row["exact_return"] = self._exact_return_of_a_tenth()
        names = ("elbo", "entropy_estimate", "grad_norm_actor", "grad_norm_critic", "value_loss", "ties")
        self.rows.append(row | {name: summary[name] for name in names})

    def _exact_return_of_a_tenth(self) -> float:
        """The learnt policy's exact return at the first evaluation after each tenth of the run, where it can be had."""
        last = self.rows[-1]["env_steps"] if self.rows else 0
        tenth = max(1, self.config.steps / 10)
        if self.trainer.env_steps // tenth == last // tenth:
            return math.nan
        exact = self.evaluator.exact_return(self.trainer, CURVE_DRAWS)
        return math.nan if exact is None else exact

    def _facts(self, start: float) -> dict:
        config, trainer = self.config, self.trainer
        mean, sem, counts = self.evaluator.episodes(trainer, config.final_episodes, "final")
        known, train = reference(trainer.env), trainer.counts
        finals = {
            "final_return_mean": mean,
            "final_return_sem": sem,
            "final_normalised": normalised_score(mean, known),
            "final_plateau_gain": plateau_gain(mean, known),
            "final_exact_return": self.evaluator.exact_return(trainer),
            "final_enumerated_share": (counts["enumerations"] + counts["fallbacks"]) / counts["states"],
            "final_calls_median": _quantile(counts["calls"], 0.5),
            "final_calls_99": _quantile(counts["calls"], 0.99),
            "train_enumerated_share": (train["enumerations"] + train["fallbacks"]) / max(1, train["states"]),
            "violations": int(trainer.env.violations) + self.evaluator.violations,
        }
        self.wall_s = time.perf_counter() - start
        return {
            "schema": SCHEMA, "environment": Path(config.env).stem, "env_digest": config.env_digest(),
            "label": self.label, "config_hash": config.hash(),
            "config": dataclasses.asdict(config) | {"env": portable(config.env)}, **finals, "reference": known,
            "env_steps": trainer.env_steps, "wall_s": round(self.wall_s, 3), "train_s": round(self.train_s, 3),
            "env_steps_per_s": round(trainer.env_steps / self.train_s, 1) if self.train_s else None,
            "peak_mb": _peak_mb(), "started": self.started, "ended": _now(), **self.made_with,
        }  # fmt: skip


def train(config: TrainConfig, out: Path, label: str | None = None, device: str = "auto", force: bool = False,
          progress: bool = True, wait: bool = False) -> dict:  # fmt: skip
    """Train a configuration into <out>/<environment>/<label>/seed<k>.{csv,json}; the facts of its record.

    Goes on from an unfinished checkpoint of the same configuration; returns a finished record of it as it is, unless
    `force`. Where another process is at it: waits for that, with `wait`, or raises BusyError. Raises RecordError where
    a record of another configuration stands, unless `force`; FloatingPointError where training diverges; ConfigError;
    Interrupted.
    """
    if label is not None and (label in ("", "..") or Path(label).name != label):
        raise ConfigError(f"--name is {label!r}; it names a folder: not empty, no path")
    path = record_path(out, config.env, label or config.method, config.seed)
    if not force and (facts := _finished(config, path)):
        return facts
    run = Run(config, out, label, device)
    with alone(path, wait):
        if not force and (facts := _finished(config, path)):  # by a process that was waited for
            return facts
        if run.resume() and progress:
            print(f"going on from {path}.pt at {run.trainer.env_steps} steps", file=sys.stderr)
        return run.train(progress)


def _finished(config: TrainConfig, path: Path) -> dict | None:
    """The facts of a finished record. Raises RecordError where it is one of another configuration."""
    if not with_suffix(path, ".json").exists():
        return None
    facts = read_facts(path)
    if config.made(facts):
        return facts
    raise RecordError(
        f"{path}.json is a finished record of another configuration ({config.unlike(facts)}); --force overwrites it"
    )


def load_checkpoint(path: Path, device: torch.device) -> dict:
    """A checkpoint's contents. Raises RecordError."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such checkpoint") from None
    except Exception:
        raise RecordError(f"{path}: not a checkpoint of this project") from None
    if not isinstance(state, dict) or not isinstance(found := state.get("schema"), int) or found != SCHEMA:
        raise RecordError(f"{path}: not a checkpoint of schema {SCHEMA}")
    check_whole(path, state, FORM)
    return state


def _alike(own, saved) -> bool:
    """Whether a checkpoint's part has the keys, kinds and shapes of this run's own, as far as this has some yet."""
    if isinstance(own, dict):
        return isinstance(saved, dict) and all(name in saved and _alike(own[name], saved[name]) for name in own)
    if isinstance(own, int | float | torch.Tensor):  # counts are numbers, or tensors, as it comes
        both = [torch.as_tensor(part).shape for part in (own, saved) if isinstance(part, int | float | torch.Tensor)]
        return len(both) == 2 and both[0] == both[1]
    return own is None or type(own) is type(saved)


@contextmanager
def _whole(path: Path):
    """RecordError where something in a checkpoint doesn't fit what it is loaded into."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise RecordError(f"{path}: not a whole checkpoint ({said if len(said) < 300 else said[:300] + '…'})") from None


def evaluate_checkpoint(path: Path, episodes: int | None = None, device: str = "auto") -> dict:
    """Final evaluation of the weights in <path>.pt: return, its standard error, exact return, scores."""
    chosen, weights = make_device(device), with_suffix(path, ".pt")
    if not weights.exists() and with_suffix(path, ".json").exists():
        facts = read_facts(path)
        again = shlex.join(Planned(facts["label"], restored(facts["config"], with_suffix(path, ".json"))).options())
        raise RecordError(f"{weights} is not there; make it: python -m flowrl train {again} --out DIR")
    state = load_checkpoint(weights, chosen)
    config = restored(state["config"], weights)
    if with_suffix(path, ".json").exists() and not config.made(read_facts(path)):
        raise RecordError(
            f"{weights} holds the weights of another configuration than {with_suffix(path, '.json')}, or the city's "
            "file has changed since"
        )
    if with_suffix(path, ".json").exists() and not state["finished"]:
        raise RecordError(f"{weights} is of a run that is not finished, {with_suffix(path, '.json')} of another one")
    env = envs.make_batched(config.env, config.n_envs, chosen, seeded(config.seed, "env", chosen))
    with _whole(weights):
        trainer = make_trainer(config, env)
        for name in ("policy", "critic"):  # no more: generators' states are their device's own
            getattr(trainer, name).load_state_dict(state["trainer"][name])
    trainer.env_steps = state["trainer"]["env_steps"]
    evaluator = Evaluator(config, chosen)
    n = config.final_episodes if episodes is None else episodes
    mean, sem, _ = evaluator.episodes(trainer, n, "final")
    known, exact = reference(env), evaluator.exact_return(trainer)
    found = {"normalised": normalised_score(mean, known), "plateau_gain": plateau_gain(mean, known),
             "exact_return": exact, "exact_score": normalised_score(exact, known)}  # fmt: skip
    found = {name: value for name, value in found.items() if value is not None}
    measured = {"env_steps": trainer.env_steps, "episodes": n, "return_mean": mean, "return_sem": sem}
    return measured | found | {"violations": evaluator.violations}


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"can't write to {folder}: {error.strerror}") from None


def _quantile(calls: torch.Tensor, share: float) -> float:
    """The least number that so large a share of the decisions did not exceed."""
    return float(calls.cpu().sort().values[math.ceil(share * len(calls)) - 1])


def _peak_mb() -> float:
    """The most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # bytes there, KiB elsewhere


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
