"""Steps a second on a GPU, with 1, 8 and 64 seeds at a time: python -m benchmarks.gpu (minutes).

Each seed is a process of its own; they share the GPU. Prints environment steps a second, all seeds together, training
included, and what they say of Figure 5: how long its runs, as planned, take, as many at a time as is quickest.
Writes data/benchmarks/gpu.csv, unless only some methods or numbers of seeds are asked for. Says so where there is no
GPU; `--devices cuda cpu` times the processor too.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time

import pandas as pd
import torch

from flowrl import envs
from flowrl.a2c import seeded
from flowrl.study.config import make_config
from flowrl.study.plan import runs
from flowrl.study.records import EXPERIMENTS, ROOT, provenance
from flowrl.study.runs import make_trainer

from .cost import OUT

SEEDS = (1, 8, 64)
ENV = "ERA-v4"
FIGURE = "fig5"


def serve(method: str, device: str, seed: int) -> None:
    """Train; for every line of standard input, so many seconds, print how many environment steps that made."""
    torch.set_num_threads(1)
    config = make_config(ENV, method, {"seed": seed})
    chosen = torch.device(device)
    trainer = make_trainer(config, envs.make_batched(ENV, config.n_envs, chosen, seeded(seed, "env", chosen)))
    while trainer.env_steps < 20 * config.n_envs:
        trainer.step()
    print("ready", flush=True)
    for line in sys.stdin:
        end, before = time.perf_counter() + float(line), trainer.env_steps
        while time.perf_counter() < end:
            trainer.step()
        if chosen.type == "cuda":
            torch.cuda.synchronize()
        print((trainer.env_steps - before) / (time.perf_counter() - end + float(line)), flush=True)


def start(method: str, device: str, seeds: int) -> list[subprocess.Popen]:
    """A process a seed, each warmed up."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--serve", method, device]
    processes = [
        subprocess.Popen([*command, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for seed in range(seeds)
    ]
    for process in processes:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"a process of {method} ended before it had warmed up; it says above why")
    return processes


def steps_per_s(processes: list[subprocess.Popen], seconds: float) -> float:
    """Of these processes together, while others wait."""
    for process in processes:
        print(seconds, file=process.stdin, flush=True)
    return sum(float(process.stdout.readline()) for process in processes)


def figure_hours(rates: dict[str, float]) -> float:
    """Hours for the runs of Figure 5 at the paper's scale, by each method's best steps a second, methods mixed."""
    planned = runs(EXPERIMENTS, FIGURE, "paper")
    return sum(run.config.steps / rates[run.config.method] for run in planned if run.config.method in rates) / 3600


def main() -> None:
    methods = list(dict.fromkeys(run.config.method for run in runs(EXPERIMENTS, FIGURE, "paper")))
    parser = argparse.ArgumentParser("benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", default=["cuda"], choices=["cuda", "cpu"], help="default cuda")
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="how many at a time")
    parser.add_argument("--seconds", type=float, default=10, help="of a measurement (default 10)")
    args = parser.parse_args()
    if "cuda" in args.devices and not torch.cuda.is_available():
        print("no GPU here")
        return
    rows = []
    for device, method in itertools.product(args.devices, args.methods):
        processes = start(method, device, max(args.seeds))
        for seeds in args.seeds:
            rate = steps_per_s(processes[:seeds], args.seconds)
            rows.append({"device": device, "method": method, "seeds": seeds, "steps_per_s": round(rate)})
            print(f"{device:4} {method:20} {seeds:3} seeds {rate:10,.0f} env steps/s", flush=True)
        for process in processes:
            process.communicate()
        if "cuda" in args.devices and (args.methods, *args.seeds) == (methods, *SEEDS):
            write(pd.DataFrame(rows))
    for device, table in pd.DataFrame(rows).groupby("device", sort=False):
        best = table.groupby("method")["steps_per_s"].max().to_dict()
        lacking = "" if len(best) == len(methods) else f" (of {', '.join(best)} alone)"
        print(f"Figure 5 at the paper's scale, as planned, {device}: {figure_hours(best):.1f} hours{lacking}")


def write(table: pd.DataFrame) -> None:
    """What was measured so far, and with what."""
    table.to_csv(OUT / "gpu.csv", index=False)
    machines = json.loads((OUT / "machine.json").read_text())
    machines["gpu"] = provenance(torch.device("cuda"))
    (OUT / "machine.json").write_text(json.dumps(machines, indent=1) + "\n")


if __name__ == "__main__":
    serve(sys.argv[2], sys.argv[3], int(sys.argv[4])) if sys.argv[1:2] == ["--serve"] else main()
