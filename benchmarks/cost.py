"""What a training step costs, for the figures of notebook 08: python -m benchmarks.cost (some ten minutes).

Every measurement trains on one torch thread, those of memory in processes of their own. Seconds are the process's own
on its core, so that what else runs on the machine disturbs them little; best nothing does.
data/benchmarks/seconds.csv: seconds an environment step of every method on ERA under constraints, with the batched
oracle and with a Python oracle that judges one action at a time, as in the authors' code. data/benchmarks/scaling.csv:
seconds and peak memory against |A|, on ever longer lines of resources, and on one of few actions and equal D K.
data/benchmarks/fraction.csv: the same of one city under ever tighter constraints. These at the start of training.
data/benchmarks/spread.csv: how far the scores of a flow with random parameters spread against |A|. machine.json says
where each was made.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from flowrl import envs
from flowrl.a2c import seeded
from flowrl.envs.city import City
from flowrl.envs.line import BatchedLine, Line
from flowrl.envs.validity import per_action
from flowrl.policies import MAX_LOGITS
from flowrl.study.config import make_config
from flowrl.study.records import ROOT, provenance
from flowrl.study.runs import make_trainer, one_thread
from flowrl.truth import gumbel
from flowrl.truth.line import valid_fraction

from .__main__ import matmul_gflops

OUT = ROOT / "data" / "benchmarks"
CITIES = [f"ERA-v{k}" for k in (1, 2, 3, 4, 5)]
METHODS = ("iar-a2c", "iar-a2c-paper", "iar-a2c-released", "mask", "ar-iar", "factored-iar", "wol-ddpg")
DRAWING = ("iar-a2c", "ar-iar", "factored-iar")
ONE_AT_A_TIME = (*DRAWING, "iar-a2c-paper", "iar-a2c-released", "mask")
SCALING = ("iar-a2c-gumbel", *DRAWING, "mask")
SIZES = [(2, 10), (3, 10), (5, 10), (8, 10), (12, 10), (20, 10), (30, 10)]  # (D, K): |A| = 10² … 10³⁰
EQUAL = [(2, 60)]  # D K = 120 as of (12, 10): |A| = 3,600 where that has 10¹²
SPREAD_LATENTS = (1, 4, 16, 64)
SPREAD_ROWS = 300  # copies of the state


def keep(name: str, rows: list[dict]) -> None:
    """Rows as data/benchmarks/<name>.csv, and what they were made with in machine.json."""
    pd.DataFrame(rows).to_csv(OUT / f"{name}.csv", index=False, float_format="%.4g")
    machines = json.loads((OUT / "machine.json").read_text()) | {name: provenance(torch.device("cpu"))}
    (OUT / "machine.json").write_text(json.dumps(machines, indent=1) + "\n")


def one_at_a_time(city: City):
    """The city's oracle in plain Python, action by action."""
    hops, pairs, limit = city.hops.tolist(), city.proximity, city.max_hops

    def valid(observation, action) -> bool:
        here, there = observation[:, 2:].argmax(0), action.tolist()
        near = limit is None or all(hops[i][j] <= limit for i, j in zip(here, there, strict=True))
        return near and all(hops[there[i]][there[j]] <= most for i, j, most in pairs)

    return per_action(valid)


def share(city: City) -> float:
    """The valid share of A, averaged over (at most 4,096) start allocations."""
    return float(city.valid_counts(city.starts[:4096]).mean() / float(city.districts) ** city.resources)


def peak_mb() -> float:
    """Peak memory of this process alone; getrusage would count what its parent had, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(place: City | Line, method: str, python: bool, seconds: float) -> dict:
    """Train for a while: seconds an environment step, the median of several windows; peak memory, MB."""
    one_thread()
    config = make_config("ERA-v1", method, {"valid_bonus": 0.1} if method in DRAWING else {})
    batched = BatchedLine if isinstance(place, Line) else envs.era.BatchedERA
    env = batched(place, config.n_envs, "cpu", seeded(0, "env"))
    trainer = make_trainer(config, env, one_at_a_time(place) if python else None)
    rates, end = [], time.process_time() + seconds
    trainer.step()
    while time.process_time() < end or len(rates) < 3:
        start, before = time.process_time(), trainer.env_steps
        while trainer.env_steps == before or time.process_time() - start < seconds / 10:
            trainer.step()
        rates.append((time.process_time() - start) / (trainer.env_steps - before))
    peak = peak_mb()
    return {"seconds_per_step": statistics.median(rates), "peak_mb": peak}


def apart(places: list[City | Line], method: str, python: bool, seconds: float) -> list[dict]:
    """`measure` of each in a process of their own: the smallest first, since a peak of memory is the highest so far."""
    named = [place.name if isinstance(place, Line) else place.to_dict() for place in places]
    job = json.dumps({"places": named, "method": method, "python": python, "seconds": seconds})
    command = [sys.executable, "-m", "benchmarks.cost", "--job", job]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def seconds(each: float) -> list[dict]:
    """Rows of seconds.csv, measured in this process."""
    jobs = [(name, method, False) for name in CITIES for method in METHODS]
    jobs += [(name, method, True) for name in CITIES for method in ONE_AT_A_TIME]
    rows = []
    for name, method, python in tqdm(jobs, desc="seconds a step"):
        oracle = "one at a time" if python else "batched"
        found = measure(City.load(name), method, python, each)["seconds_per_step"]
        rows.append({"environment": name, "method": method, "oracle": oracle, "seconds_per_step": found})
    return rows


def scaling(each: float) -> list[dict]:
    """Rows of scaling.csv."""
    jobs = [(method, SIZES) for method in SCALING] + [("iar-a2c-gumbel", EQUAL)]
    rows = []
    for method, sizes in tqdm(jobs, desc="scaling"):
        lines = [Line(*size) for size in sizes if method != "mask" or size[1] ** size[0] <= MAX_LOGITS]
        for line, found in zip(lines, apart(lines, method, False, each), strict=True):
            about = {"method": method, "resources": line.resources, "levels": line.levels}
            about |= {"actions": float(line.levels) ** line.resources, "valid_fraction": valid_fraction(line)}
            rows.append(about | found)
    return rows


def spread(each: float) -> list[dict]:
    """Rows of spread.csv: a coupling over D dimensions of ten levels, t spreads over 1.5 nats; no time is measured."""
    rows, generator = [], torch.Generator().manual_seed(1)
    for resources, levels in tqdm(SIZES, desc="spread"):
        policy, mean = gumbel.one_state((levels,) * resources, 1.0, 1.5)
        latent, rb = gumbel.latent_spreads(policy, mean, 64, SPREAD_ROWS, generator)
        own = {n: gumbel.pathwise_spread(policy, mean, n, SPREAD_ROWS, generator) for n in SPREAD_LATENTS}
        about = {"resources": resources, "levels": levels, "actions": float(levels) ** resources}
        rows.append(about | {"latent": latent, "rb_64": rb} | {f"pathwise_{n}": x for n, x in own.items()})
    return rows


def fraction(each: float) -> list[dict]:
    """Rows of fraction.csv."""
    rows = []
    for path in tqdm(sorted((ROOT / "data" / "cities").glob("fraction-*.json")), desc="valid fraction"):
        city = City.load(path)
        (found,) = apart([city], "iar-a2c", False, each)
        rows.append({"environment": path.stem, "valid_fraction": share(city)} | found)
    return rows


FILES = {"seconds": seconds, "scaling": scaling, "fraction": fraction, "spread": spread}


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="seconds a measurement (default 4)")
    parser.add_argument("--only", choices=tuple(FILES), help="one of the files (default: all)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        places = [Line.load(x) if isinstance(x, str) else City.from_dict(x, "city") for x in job["places"]]
        print(json.dumps([measure(place, job["method"], job["python"], job["seconds"]) for place in places]))
        return
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    facts = {"matmul_gflops": round(matmul_gflops(), 1)} | provenance(torch.device("cpu"))
    machines = json.loads((OUT / "machine.json").read_text()) if (OUT / "machine.json").exists() else {}
    for name, rows in FILES.items():
        if args.only in (None, name):
            pd.DataFrame(rows(args.seconds)).to_csv(OUT / f"{name}.csv", index=False, float_format="%.4g")
            machines = {key: value for key, value in machines.items() if not key.startswith(name)} | {name: facts}
    (OUT / "machine.json").write_text(json.dumps(machines, indent=1) + "\n")


if __name__ == "__main__":
    main()
