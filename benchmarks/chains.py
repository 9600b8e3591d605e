"""Which chains come nearest to π' for an oracle call, and what they cost: python -m benchmarks.chains (a minute).

A state of a tight city, a factored policy with random preferences, chains from staying put, planted: total variation to
the enumerated π' against oracle calls a chain, by kernel: data/benchmarks/chains.csv. Along an episode, chains that
begin anew in every state beside those that are carried on: data/benchmarks/chains_carry.csv. Milliseconds a state of
ERA-R7, D·K = 256, untrained: data/benchmarks/chains_state.csv. machine.json says where they were made.
"""

import argparse
import math
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


def along(name: str, sweeps: int, seed: int, steps: int = 24) -> list[dict]:
    """Rows of chains_carry.csv: chains of so many sweeps in each step of an episode, begun anew or carried on.

    The policy is the same in all states; what is valid, and so π', changes with every step, which executes the action
    of the first chain that is carried. Chains that begin anew begin at staying put.
    """
    env, generator = BatchedERA(City.load(name), 1, "cpu", seeded(seed, "env")), seeded(seed, "chains")
    case, _, _, stay = problem(name)
    everything, rows, held = rejection.all_actions(env.action_sizes, "cpu"), [], {}
    for step in range(steps):
        observation = env.observe(env.allocation, env.emergency)
        valid = rejection.ask_all(env.valid, observation, env.action_sizes)[0]
        now = Problem(case.log_prob, everything[valid])
        flat, stay = to_flat(now.actions, env.action_sizes), env.fallback(observation)[0].expand(1, CHAINS, -1)
        law = chains.FactoredNoise(None, case.log_prob.float()[None])
        accepts = lambda action, of, seen=observation: env.valid(seen, action)  # noqa: E731
        for carried in (False, True):
            before = held.get(carried, stay)
            ok = accepts(before, None) & carried
            action = torch.where(ok.unsqueeze(-1), before, stay)
            run = chains.Chains(law, *law.planted(action, generator), action, accepts, generator)
            for _ in range(sweeps):
                run.sweep()
            held[carried] = run.action
            seen = (to_flat(run.action, env.action_sizes)[0, :, None] == flat).double().mean(0)
            floor = 0.5 * (now.restricted * (1 - now.restricted) / CHAINS).sqrt().sum()
            about = {"environment": name, "carried": carried, "sweeps": sweeps, "seed": seed, "step": step}
            calls = (run.calls.item() + CHAINS * carried) / CHAINS
            rows.append(about | {"calls": calls, "still_valid": float(ok.double().mean()) if carried else math.nan,
                                 "total_variation": float(total_variation(seen, now.restricted)),
                                 "floor": float(floor)})  # fmt: skip
        env.step(held[True][:, 0])
    return rows


def milliseconds(steps: int = 8) -> list[dict]:
    """Rows of chains_state.csv: of `decide`, a state; none has two valid draws, 16 chains of 6 sweeps, carried."""
    city = City.load(ROOT / "data" / "cities" / "ERA-R7.json")
    settings = {"n_draws": 16, "n_correction": 16, "chains": 16, "carry": True}
    config = make_config("ERA-v1", "iar-a2c-gumbel", settings)
    trainer, rows = Trainer(config, BatchedERA(city, config.n_envs, "cpu", seeded(0, "env"))), []
    for step in range(-1, steps):  # the first warms up, and has nothing to go on from
        start = time.process_time()
        decision, counts = trainer.decide(trainer.observation, trainer.generator, trainer.before)
        seconds = time.process_time() - start
        assert counts["chains"] == config.n_envs
        trainer.observation = trainer.env.step(decision.action).observation
        trainer.before = rejection.left_behind(decision, config)
        if step < 0:
            continue
        rows.append({"environment": city.name, "step": step, "milliseconds": 1000 * seconds / config.n_envs})
    return rows


def main() -> None:
    argparse.ArgumentParser("benchmarks.chains", description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    keep("chains", [row for name in tqdm(CITIES) for row in mixing(name)])
    keep(
        "chains_carry",
        [row for name in tqdm(CITIES) for sweeps in (2, 6) for seed in range(8) for row in along(name, sweeps, seed)],
    )
    keep("chains_state", milliseconds())


if __name__ == "__main__":
    main()
