"""Where the vehicles of ERA-Columbus are: python -m benchmarks.columbus RECORD [--episodes 100].

RECORD is a run on ERA-Columbus with its weights (.pt) beside it. Writes the share of steps in which each neighbourhood
is covered by the learnt policy, by go-and-stay, by walk-and-stay, by dispatching the nearest vehicle and by random
valid actions, and what each earns, to data/comparisons/columbus.csv and columbus.json; notebook 04 draws them.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch

from flowrl import envs
from flowrl.a2c import seeded
from flowrl.device import one_thread
from flowrl.envs.city import City
from flowrl.study.config import TrainConfig
from flowrl.study.records import ROOT, provenance
from flowrl.study.runs import load_checkpoint, make_trainer
from flowrl.truth import search

NAME = "ERA-Columbus"


def learnt(record: Path):
    """What decides in a batch of states, from a run's weights, and how long it was trained."""
    state = load_checkpoint(record.with_suffix(".pt"), torch.device("cpu"))
    config = TrainConfig(**state["config"])
    trainer = make_trainer(config, envs.make_batched(config.env, config.n_envs, "cpu", seeded(0, "env")))
    trainer.policy.load_state_dict(state["trainer"]["policy"])
    generator = seeded(config.seed, "policy/columbus")
    return lambda env: trainer.decide(env.observe(env.allocation, env.emergency), generator)[0].action


def played(city: City, act, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """act(batch) → actions: how often each district is covered, (K,), and the returns (n,)."""
    env = envs.make_batched(city, len(starts), "cpu", seeded(0, "env/columbus"))
    env.allocation, total, covered = torch.as_tensor(starts), 0.0, np.zeros(city.districts)
    for _ in range(city.horizon):
        y = act(env)
        total = total + env.step(y).reward.double().numpy()
        covered += (y.numpy()[..., None] == np.arange(city.districts)).any(1).sum(0)
    if env.violations:
        raise RuntimeError(f"{int(env.violations)} invalid actions")
    return covered / (len(starts) * city.horizon), total


def along(path: np.ndarray):
    """What follows a path (horizon + 1, n, D)."""
    return lambda env: torch.as_tensor(path[env.time + 1])


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.columbus", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "comparisons")
    args = parser.parse_args()
    one_thread()
    city, rng = City.load(NAME), np.random.default_rng(0)
    starts = city.starts[rng.choice(len(city.starts), args.episodes)]
    stay = search.go_and_stay(city, starts, rng)
    policies = {
        "learnt": learnt(args.record),
        "walk_and_stay": along(search.walk(city, starts, search.go_and_stay(city, starts, rng, anywhere=True))),
        "go_and_stay": along(np.stack([starts] + [stay] * city.horizon)),
        "dispatch_nearest": lambda env: torch.as_tensor(
            search.nearest_goes(city, env.allocation.numpy(), env.emergency.numpy())
        ),
        "random": lambda env: torch.as_tensor(city.draw(city.may_move[env.allocation.numpy()], rng)),
    }
    found = {name: played(city, act, starts) for name, act in policies.items()}
    with (args.out / "columbus.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["neighbourhood", "struck", *found])
        for k, label in enumerate(city.map["labels"]):
            shares = [f"{covered[k]:.4f}" for covered, _ in found.values()]
            table.writerow([label, f"{city.transition[-1, k]:.5f}", *shares])
    returns = {
        name: {"mean": round(float(total.mean()), 3), "sem": round(float(total.std() / len(total) ** 0.5), 3)}
        for name, (_, total) in found.items()
    }
    facts = {"what": __doc__.splitlines()[0].partition(":")[0], "record": args.record.with_suffix("").as_posix()}
    facts |= {"episodes": args.episodes, "returns": returns, "source": city.map["source"]}
    facts |= provenance(torch.device("cpu"))
    (args.out / "columbus.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(returns))


if __name__ == "__main__":
    main()
