"""What the first choice of an autoregressive policy does under constraints (paper, Appendix D): python -m
benchmarks.first_choice (some minutes). Writes data/benchmarks/first_choice.csv.

AR+IAR, and Factored+IAR beside it, train on cities; on the way, in the states that they are in, all actions are
enumerated: how much of the policy is refused, and how much of that was lost with the first choice already.
"""

import argparse

import torch
from torch import Tensor
from tqdm import tqdm

from flowrl import envs, rejection
from flowrl.a2c import Trainer, seeded
from flowrl.policies import Sample
from flowrl.study.config import make_config

from .cost import keep

CITIES = ("ERA-v3", "ERA-v4", "ERA-v4-tight")
METHODS = ("ar-iar", "factored-iar")


def first_choice(log_prob: Tensor, valid: Tensor, categories: int) -> dict[str, float]:
    """Means over states of what happens to the first choice, from log π (B, K^D) and validity (B, K^D) of all actions.

    refused: 1 − Z; dead_end: the mass of first choices that no valid action begins with, refused whatever follows;
    bent: total variation between the first choice's marginal under π and under π'.
    """
    prob = log_prob.double().exp().unflatten(1, (categories, -1))
    ok = valid.unflatten(1, (categories, -1))
    kept = (prob * ok).sum(-1)
    drawn, mass = prob.sum(-1), kept.sum(-1, keepdim=True)
    alive = ok.any(-1)
    return {
        "refused": float((1 - mass).mean()),
        "dead_end": float((drawn * ~alive).sum(-1).mean()),
        "bent": float(0.5 * (drawn - kept / mass).abs().sum(-1).mean()),
    }


def measured(trainer: Trainer) -> dict[str, float]:
    """`first_choice` in the states that the trainer's environments are in."""
    observation, sizes = trainer.observation, trainer.policy.sizes
    everything = rejection.all_actions(sizes, "cpu").expand(len(observation), -1, -1)
    valid = rejection.ask_all(trainer.oracle, observation, sizes)
    with torch.no_grad():
        log_prob = trainer.policy.log_prob(trainer.policy.features(observation), Sample(everything))
    return first_choice(log_prob, valid, sizes[0])


def along(city: str, method: str, seed: int, steps: int, pieces: int) -> list[dict]:
    """Rows of the CSV: one before training and one after each of `pieces` parts of it."""
    config = make_config(city, method, {"seed": seed, "steps": steps})
    trainer = Trainer(config, envs.make_batched(city, config.n_envs, "cpu", seeded(seed, "env")))
    rows = []
    for piece in range(pieces + 1):
        while trainer.env_steps < piece * steps / pieces:
            trainer.step()
        where = {"environment": city, "method": method, "seed": seed, "env_steps": trainer.env_steps}
        rows.append(where | measured(trainer))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.first_choice", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps of a training")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(city, method, seed) for city in CITIES for method in METHODS for seed in range(asked.seeds)]
    rows = [row for case in tqdm(cases) for row in along(*case, asked.steps, 8)]
    keep("first_choice", rows)


if __name__ == "__main__":
    main()
