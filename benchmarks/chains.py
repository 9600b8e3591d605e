"""Which chains come nearest to π' for an oracle call, and what they cost: python -m benchmarks.chains (a minute).

One state of a tight city, a factored policy with random preferences, chains from staying put, planted: total variation
to the enumerated π' against oracle calls a chain, by kernel: data/benchmarks/chains.csv. On ERA-R7, D·K = 256, with an
untrained policy: milliseconds a state, and how many chains' actions are valid in the next state, too:
data/benchmarks/chains_state.csv. machine.json says where they were made.
"""

import argparse
import time

import torch
from tqdm import tqdm

from flowrl import rejection
from flowrl.a2c import Trainer, seeded
from flowrl.beyond import chains
from flowrl.envs.city import City
from flowrl.envs.era import BatchedERA
from flowrl.policies import to_flat
from flowrl.study.config import make_config
from flowrl.study.records import ROOT
from flowrl.truth.chains import Problem, total_variation

from .cost import keep

CITIES = ("ERA-v1-tight", "ERA-v2-tight", "ERA-v3-tight")
CHAINS = 1_000
CALLS = (10, 20, 40, 80, 160)  # of a chain, about


def singles(run: chains.Chains) -> None:
    for d in run._some(run.action.shape[-1]):
        run.redraw([d])


def pairs(run: chains.Chains) -> None:
    run.redraw(sorted(run._some(2)))


def both(run: chains.Chains) -> None:
    run.sweep()
    run.slice()


KERNELS = {"sweep": chains.Chains.sweep, "singles": singles, "pairs": pairs, "slice": chains.Chains.slice,
           "sweep and slice": both}  # fmt: skip


def problem(name: str) -> tuple[Problem, BatchedERA, torch.Tensor, torch.Tensor]:
    """A policy with preferences N(0, 1) where the city's first copy starts: it, the city, observation, staying put."""
    env = BatchedERA(City.load(name), 1, "cpu", seeded(0, "env"))
    observation = env.observe(env.allocation, env.emergency)
    logits = torch.randn(env.city.resources, env.city.districts, generator=seeded(0, "preferences"))
    everything = rejection.all_actions(env.action_sizes, "cpu")
    valid = rejection.ask_all(env.valid, observation, env.action_sizes)[0]
    return Problem(logits.log_softmax(-1).double(), everything[valid]), env, observation, env.fallback(observation)[0]


def mixing(name: str) -> list[dict]:
    """Rows of chains.csv for a city."""
    case, env, observation, stay = problem(name)
    law = chains.FactoredNoise(None, case.log_prob.float()[None])
    flat, mass = to_flat(case.actions, env.action_sizes), float(case.log_prob.exp()[
        torch.arange(len(case.log_prob)), case.actions].prod(-1).sum())  # fmt: skip
    floor = float(0.5 * (case.restricted * (1 - case.restricted) / CHAINS).sqrt().sum())
    rows = []
    for kernel, move in KERNELS.items():
        action = stay.expand(1, CHAINS, -1).clone()
        noise, latent = law.planted(action, seeded(0, "plant"))

        def accepts(action: torch.Tensor, of: torch.Tensor | None) -> torch.Tensor:
            return env.valid(observation, action.view(1, -1, action.shape[-1])).view(action.shape[:2])

        run = chains.Chains(law, noise, latent, action, accepts, seeded(0, kernel))
        for calls in CALLS:
            while run.calls.item() < calls * CHAINS:
                move(run)
            seen = (to_flat(run.action, env.action_sizes)[0, :, None] == flat).double().mean(0)
            rows.append({"environment": name, "valid_mass": mass, "kernel": kernel, "calls": run.calls.item() / CHAINS,
                         "total_variation": float(total_variation(seen, case.restricted)), "floor": floor})  # fmt: skip
    return rows


def rare_trainer(**changes) -> Trainer:
    config = make_config("ERA-v1", "iar-a2c-gumbel", {"n_draws": 16, "n_correction": 16, "chains": 16} | changes)
    city = City.load(ROOT / "data" / "cities" / "ERA-R7.json")
    return Trainer(config, BatchedERA(city, config.n_envs, "cpu", seeded(0, "env")))


def by_step(steps: int = 8) -> list[dict]:
    """Rows of chains_state.csv, steps of an untrained policy on ERA-R7, 16 chains of 6 sweeps.

    milliseconds: of this process, a state; still_valid: the share of chains off the executed action whose action the
    oracle takes in the state after it.
    """
    trainer, rows = rare_trainer(), []
    for step in range(steps):
        start = time.process_time()
        decision, counts = trainer.decide(trainer.observation, trainer.generator)
        seconds = time.process_time() - start
        trainer.observation = trainer.env.step(decision.action).observation
        moved = decision.valid & (decision.sample.action != decision.action[:, None]).any(-1)
        still = trainer.env.valid(trainer.observation, decision.sample.action)[moved]
        rows.append({"environment": "ERA-R7", "step": step, "milliseconds": 1000 * seconds / int(counts["chains"]),
                     "still_valid": float(still.double().mean())})  # fmt: skip
    return rows


def main() -> None:
    argparse.ArgumentParser("benchmarks.chains", description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    keep("chains", [row for name in tqdm(CITIES) for row in mixing(name)])
    keep("chains_state", by_step())


if __name__ == "__main__":
    main()
