"""Speed from commit to commit: python -m benchmarks.history [--check] (three minutes).

The commit of the last entry and this one train in turn on this machine (`against`), the old one from a worktree of its
own: what differs is the code alone. Prints this one's environment steps a CPU second over the old one's, by method and
environment; exit status 1 where one is less than 0.9. Without `--check` it adds an entry, a row each, to
data/benchmarks/history.csv: rates also over this core's float32 matmul rate, which makes machines comparable, roughly:
two entries whose steps a second differ by a tenth differ twofold in that rate.
"""

import argparse
import contextlib
import csv
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

import torch

from flowrl.study.records import ROOT, provenance, replacing

from .__main__ import matmul_gflops
from .against import one_core, race
from .cost import OUT

PATH = OUT / "history.csv"
PAIRS = [(method, "ERA-v4") for method in ("iar-a2c", "iar-a2c-gumbel", "iar-a2c-paper", "mask", "ar-iar",
                                           "factored-iar", "wol-ddpg")]  # fmt: skip
PAIRS += [("a2c", "CartPole-v1"), ("a2c", "Acrobot-v1"), ("iar-a2c", "Pistonball-v1")]
LEAST = 0.9  # of the last entry's speed
SKIP = 20  # updates before the first round


@contextlib.contextmanager
def worktree(commit: str):
    """A folder with the tree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = f"{folder}/tree"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", tree, commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def _last_known(entries: list[dict]) -> str | None:
    """The commit of the last entry whose commit this clone has."""
    for entry in reversed(entries):
        if not subprocess.run(["git", "cat-file", "-e", entry["commit"]], cwd=ROOT, capture_output=True).returncode:
            return entry["commit"]
    return None


def measure(last: str | None, rounds: int, seconds: float) -> list[dict]:
    """A row for each method and environment; `over_last` where there is a last commit."""
    with contextlib.nullcontext() if last is None else worktree(last) as old:
        folders = [str(ROOT)] if old is None else [old, str(ROOT)]
        return [
            _row(method, env, race([(folder, method) for folder in folders], env, SKIP, rounds, seconds))
            for method, env in PAIRS
        ]


def _row(method: str, env: str, found: list) -> dict:
    *old, new = found
    rates, peaks = zip(*new, strict=True)
    ratio = statistics.median(b / a for (a, _), (b, _) in zip(old[0], new, strict=True)) if old else None
    row = {"method": method, "environment": env, "steps_per_cpu_s": statistics.median(rates),
           "peak_mb": max(peaks), "over_last": ratio}  # fmt: skip
    shown = "" if ratio is None else f", {ratio:.2f} of the last entry's"
    print(f"{method:16} {env:14} {row['steps_per_cpu_s']:8,.0f} steps a CPU second{shown}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.history", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--since", metavar="COMMIT", help="compare with this one (default: the last entry's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1, help="CPU seconds of a round (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    one_core()
    entries = list(csv.DictReader(PATH.open())) if PATH.exists() else []
    made = provenance(torch.device("cpu"))
    if made["dirty"] and not args.check:
        parser.error("the code differs from its commit: commit first, an entry is of a commit")
    last = args.since or _last_known(entries)
    if args.check and last is None:
        parser.error("no entry's commit is here to compare with: name one with --since")
    rows = measure(last, args.rounds, args.seconds)
    if not args.check:
        gflops = matmul_gflops()
        about = {"date": datetime.now(UTC).date().isoformat(), "commit": made["commit"],
                 "machine": made["machine"]["cpu"], "torch": made["versions"]["torch"],
                 "matmul_gflops": f"{gflops:.3g}"}  # fmt: skip
        for row in rows:
            told = {name: "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
                    for name, value in row.items()}  # fmt: skip
            entries.append(about | told | {"steps_per_gflop": f"{row['steps_per_cpu_s'] / gflops:.4g}"})
        with replacing(PATH) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, entries[-1].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(entries)
    slow = [row for row in rows if row["over_last"] is not None and row["over_last"] < LEAST]
    for row in slow:
        print(f"slower: {row['method']} on {row['environment']}: {row['over_last']:.2f} of the last entry's")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
