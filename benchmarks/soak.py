"""Does a long run grow or slow down? python -m benchmarks.soak [--minutes 60] of CPU time, all in one process.

Trains in turn on a city with draws alone, on a tight one with chains, and on Pistonball, whose workers are processes;
after each fiftieth of the time it evaluates in new environments and saves a checkpoint, as runs do, and notes a row of
data/benchmarks/soak.csv: memory, file descriptors, worker processes, and environment steps a CPU second, over the rate
of a fixed update of the same kind timed just before and after, so that neighbours on the machine cancel. After the
first tenth memory must stay within 5 % in the mean of every tenth, the speed of the last within 5 % of that of the
second; descriptors and workers must not change. Exit status 1 otherwise.
"""

import argparse
import copy
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.envs.pistonball import BatchedPistonball
from flowrl.study.config import make_config
from flowrl.study.records import provenance
from flowrl.study.runs import one_thread

from .cost import OUT

FOREVER = {"steps": 10**9}  # the regularisers' schedule, and so the cost of an update, as good as stands still
WITHIN = 0.05
KINDS = (
    ("ERA-v4", "iar-a2c", {}),
    ("ERA-v3-tight", "iar-a2c-gumbel", {"chains": 8}),
    ("Pistonball-v1-cstr", "factored-iar", {"n_envs": 16}),
)


def made(name: str, method: str, changes: dict, seed: int) -> Trainer:
    config = make_config(name, method, FOREVER | changes)
    if "Pistonball" in name:
        return Trainer(config, BatchedPistonball(name, config.n_envs, "cpu", seeded(seed, "env"), workers=2))
    return Trainer(config, envs.make_batched(name, config.n_envs, "cpu", seeded(seed, "env")))


def evaluate(trainer: Trainer) -> None:
    """A few steps in an environment of its own, with workers where it has any."""
    name, one = trainer.config.env, seeded(0, "env/evaluation")
    workers = {"workers": 1} if "Pistonball" in name else {}
    env = BatchedPistonball(name, 2, "cpu", one, **workers) if workers else envs.make_batched(name, 2, "cpu", one)
    trainer.evaluate(env, 2, seeded(0, "policy/evaluation"), most_steps=20)


def memory_mb() -> float:
    """Resident now, of this process and of its workers."""
    processes = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    kb = 0
    for pid in processes:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kb += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return kb / 1024


class Yardstick:
    """A fixed amount of work of one kind: updates on one rollout, whose cost does not change."""

    def __init__(self, *kind):
        self.trainer = made(*kind, seed=1)
        self.rollout = self.trainer.rollout()
        self.start = copy.deepcopy(self.trainer.state_dict() | {"env": None})
        if isinstance(self.trainer.env, BatchedPistonball):
            self.trainer.env.close()

    def updates_per_s(self, seconds: float) -> float:
        """Updates a CPU second, from the same weights every time: an hour on one rollout diverges."""
        self.trainer.load_state_dict(self.start)
        began, n = time.process_time(), 0
        while time.process_time() - began < seconds:
            self.trainer.update(self.rollout)
            n += 1
        return n / (time.process_time() - began)


def sample(found: list[tuple[Trainer, Yardstick]], seconds: float, folder: Path) -> dict:
    """Train each for a part of the time; a row."""
    row = {}
    for trainer, yardstick in found:
        before = yardstick.updates_per_s(seconds / 20)
        began, steps = time.process_time(), trainer.env_steps
        while time.process_time() - began < seconds / len(found):
            trainer.step()
        rate = (trainer.env_steps - steps) / (time.process_time() - began)
        pace = (before + yardstick.updates_per_s(seconds / 20)) / 2
        row |= {f"{trainer.config.env}_steps_per_cpu_s": rate, f"{trainer.config.env}_steps_an_update": rate / pace}
        evaluate(trainer)
        torch.save(trainer.state_dict(), folder / "checkpoint.pt")
    row |= {
        "memory_mb": memory_mb(), "descriptors": len(os.listdir("/proc/self/fd")),
        "workers": len(multiprocessing.active_children()),
    }  # fmt: skip
    return {"cpu_min": time.process_time() / 60} | row


def faults(table: pd.DataFrame) -> list[str]:
    """What grew, or slowed down, after the first tenth."""
    tenth = max(1, len(table) // 10)
    warm, said = table[tenth:], []
    tenths = warm["memory_mb"].groupby(np.arange(len(warm)) // tenth).mean()
    memory = tenths / tenths[0] - 1
    if memory.abs().max() > WITHIN:
        said.append(f"memory changed by {memory[memory.abs().idxmax()]:+.1%}")
    for column in [name for name in table if name.endswith("_steps_an_update")]:
        change = warm[column].iloc[-tenth:].mean() / warm[column].iloc[:tenth].mean() - 1
        if change < -WITHIN:
            said.append(f"{column} changed by {change:+.1%}")
    said += [f"{name} changed" for name in ("descriptors", "workers") if warm[name].nunique() > 1]
    return said


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="of CPU time (default 60)")
    parser.add_argument("--samples", type=int, default=50, help="rows (default 50)")
    parser.add_argument("--check", action="store_true", help="judge the recorded table, run nothing")
    args = parser.parse_args()
    path = OUT / "soak.csv"
    if not args.check:
        one_thread()
        rows, found = [], [(made(*kind, seed=0), Yardstick(*kind)) for kind in KINDS]
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(args.samples):
                rows.append(sample(found, 60 * args.minutes / args.samples / 1.3, Path(folder)))
                print(*(f"{value:.4g}" for value in rows[-1].values()), flush=True)
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.5g")
        machines = json.loads((OUT / "machine.json").read_text())
        machines["soak"] = {"minutes": args.minutes} | provenance(torch.device("cpu"))
        (OUT / "machine.json").write_text(json.dumps(machines, indent=1) + "\n")
    elif not path.exists():
        parser.error(f"no {path.name} is recorded yet: run it without --check")
    table = pd.read_csv(path)
    said = faults(table)
    print("; ".join(said) or f"{table['cpu_min'].iloc[-1]:.0f} CPU minutes: nothing grew, nothing slowed down")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
