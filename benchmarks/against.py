"""Steps a second of this tree over those of another: python -m benchmarks.against OLD [--method M] [--env E].

OLD is a folder with another version of the package (`git worktree add ../old COMMIT`). Each tree trains in a process of
its own from the same seed, one thread, both on one core, in turn, a short round at a time while the other is stopped;
rounds are in CPU seconds, which other processes on the machine change little, and the ratio of each round to the
other tree's of the same round is what is reported: median and quartiles. `--skip` updates come first, untimed: the cost
of an update changes while the policy narrows. A method may be changed, as in
`--method "iar-a2c-q n_envs=256"`. `--old-method` names the other tree's method where it is another one.
`--record` keeps the figures as a row of data/benchmarks/against.csv, in place of one that was measured alike.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

TABLE = Path(__file__).resolve().parents[1] / "data/benchmarks/against.csv"


def serve(method: str, env: str, skip: int) -> None:
    """Train; for every line of standard input, so many CPU seconds, print environment steps a CPU second, peak MB."""
    from flowrl import envs
    from flowrl.a2c import seeded

    try:
        from flowrl.study import config, runs
    except ModuleNotFoundError:  # a tree of before the study had a folder of its own
        from flowrl import config, runs

    runs.one_thread()
    name, *changes = method.split()
    settings = config.make_config(env, name, dict(change.split("=") for change in changes))
    trainer = runs.make_trainer(settings, envs.make_batched(env, settings.n_envs, "cpu", seeded(0, "env")))
    for _ in range(skip):
        trainer.step()
    for line in sys.stdin:
        start, before = time.process_time(), trainer.env_steps
        while time.process_time() - start < float(line):
            trainer.step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print((trainer.env_steps - before) / (time.process_time() - start), peak, flush=True)


def race(
    trees: list[tuple[str, str]], env: str, skip: int, rounds: int, seconds: float
) -> list[list[tuple[float, float]]]:
    """Of each (folder, method), in every round: environment steps a CPU second, and the peak of memory, MB."""
    processes = [
        subprocess.Popen([sys.executable, __file__, "--serve", method, env, str(skip)],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env=os.environ | {"PYTHONPATH": tree, "OMP_NUM_THREADS": "1"})
        for tree, method in trees
    ]  # fmt: skip
    found: list[list[tuple[float, float]]] = [[] for _ in processes]
    for _ in range(rounds):
        for process, rates in zip(processes, found, strict=True):
            print(seconds, file=process.stdin, flush=True)
            rate, peak = map(float, process.stdout.readline().split())
            rates.append((rate, peak))
    for process in processes:
        process.communicate()
    return found


def commit_of(tree: str | Path) -> str:
    """The commit that a folder's files are of, in seven digits."""
    return subprocess.check_output(["git", "-C", str(tree), "rev-parse", "--short=7", "HEAD"], text=True).strip()


def record(row: dict, table: Path = TABLE) -> None:
    """Write a row, in place of one whose first five columns are the same."""
    kept = pd.read_csv(table, dtype=str).to_dict("records") if table.exists() else []
    rows = {tuple(map(str, list(each.values())[:5])): each for each in [*kept, row]}
    pd.DataFrame(list(rows.values())).sort_values(list(row)[:5], key=lambda c: c.astype(str)).to_csv(table, index=False)


def one_core() -> None:
    """Keep this process and those it starts on one core."""
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("--method", default="iar-a2c-paper")
    parser.add_argument("--old-method", metavar="METHOD", help="the other tree's (default: the same)")
    parser.add_argument("--env", default="ERA-v4")
    parser.add_argument("--skip", type=int, default=20, help="updates before the first round (default 20)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2, help="CPU seconds of a round (default 2)")
    parser.add_argument("--record", action="store_true", help="keep the figures in data/benchmarks/against.csv")
    args = parser.parse_args()
    one_core()
    trees = [(args.old, args.old_method or args.method), (str(Path(__file__).resolve().parents[1]), args.method)]
    rounds = race(trees, args.env, args.skip, args.rounds, args.seconds)
    old, new = ([rate for rate, _ in rates] for rates in rounds)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(old, new, strict=True)])
    print(f"{args.method} on {args.env} after {args.skip} updates: {statistics.median(old):.0f} → "
          f"{statistics.median(new):.0f} steps a CPU second, {middle:.2f} times ({low:.2f} to {high:.2f})")  # fmt: skip
    if args.record:
        named = {"method": args.method, "old_method": trees[0][1], "env": args.env, "skip": args.skip}
        named |= {"old": commit_of(args.old), "commit": commit_of(trees[1][0])}
        measured = {"old_steps_per_cpu_s": statistics.median(old), "steps_per_cpu_s": statistics.median(new)}
        measured |= {"ratio": middle, "low": low, "high": high}
        record(named | {name: f"{value:.4g}" for name, value in measured.items()})


if __name__ == "__main__":
    serve(*sys.argv[2:4], int(sys.argv[4])) if sys.argv[1:2] == ["--serve"] else main()
