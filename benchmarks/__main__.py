"""Speed and memory of training on one core: python -m benchmarks [METHOD …] (or `make bench`).

Each method trains on ERA-v4 in a process of its own, one torch thread. Columns: environment steps a second, training
included (median of several windows); the same scaled to a core of 94 GFLOP/s; the target there; peak memory; and the
share of this core's float32 matmul rate that the matrix products of an update reach.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.study.config import A2C_METHODS, NO_CONSTRAINTS, make_config
from flowrl.study.runs import one_thread

REFERENCE_GFLOPS = 94  # the core that the targets are stated for
TARGETS = {"iar-a2c": 5400, "iar-a2c-paper": 1090, "mask": 12000, "ar-iar": 5000}  # env steps/s there
ENV = "ERA-v4"
METHODS = [name for name in A2C_METHODS if name not in NO_CONSTRAINTS]  # those that may act there


def matmul_gflops(size: int = 2048, repeats: int = 5) -> float:
    """float32 matmul rate of one thread, GFLOP/s, the best of several."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def measure(method: str, seconds: float) -> dict:
    """Train for a while; steps/s, peak memory in MB, matrix-product share of an update."""
    one_thread()
    config = make_config(ENV, method)
    env = envs.make_batched(ENV, config.n_envs, "cpu", seeded(0, "env"))
    trainer = Trainer(config, env)
    for _ in range(20):
        trainer.step()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        start, before = time.perf_counter(), trainer.env_steps
        while time.perf_counter() - start < seconds / 10:
            trainer.step()
        rates.append((trainer.env_steps - before) / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"steps_per_s": statistics.median(rates), "peak_mb": peak} | update_efficiency(trainer)


def update_efficiency(trainer: Trainer, repeats: int = 20) -> dict:
    """GFLOP/s of the update's matrix products, forward and backward, over the whole time of the update."""
    rollout = trainer.rollout()
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.update(rollout)
    start = time.perf_counter()
    for _ in range(repeats):
        trainer.update(rollout)
    seconds = (time.perf_counter() - start) / repeats
    rate = counter.get_total_flops() / seconds / 1e9
    return {"update_ms": 1000 * seconds, "update_gflops": rate, "update_share": rate / matmul_gflops()}


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of training a method (default 10)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.methods) - set(METHODS)
    if unknown:
        parser.error(f"unknown method {min(unknown)!r}; choose from: {', '.join(METHODS)}")
    if args.one:
        print(json.dumps(measure(args.methods[0], args.seconds)))
        return
    torch.set_num_threads(1)
    gflops = matmul_gflops()
    print(f"{ENV}, one core, one thread, torch {torch.__version__}; float32 matmul {gflops:.0f} GFLOP/s\n")
    print("| method | env steps/s | at 94 GFLOP/s | target | peak memory, MB | update, ms | share of matmul rate |")
    print("|---|---|---|---|---|---|---|")
    for method in args.methods or METHODS:
        command = [sys.executable, "-m", "benchmarks", method, "--one", "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        scaled = found["steps_per_s"] * REFERENCE_GFLOPS / gflops
        print(
            f"| `{method}` | {found['steps_per_s']:,.0f} | {scaled:,.0f} | {TARGETS.get(method, 0):,} "
            f"| {found['peak_mb']:.0f} | {found['update_ms']:.1f} | {found['update_share']:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
