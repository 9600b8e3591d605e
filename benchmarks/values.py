"""How wrong learnt action values are, and the policy gradient through them: python -m benchmarks.values (a minute or
two). Writes data/benchmarks/values.csv.

`iar-a2c-q` trains on cities; on the way its policy is tabulated and its true values solved for, by iteration. In the
states that the trainer is in, valid draws of the policy are judged by both.
"""

import argparse

import torch
from torch import Tensor
from tqdm import tqdm

from flowrl import envs, rejection
from flowrl.a2c import Trainer, seeded
from flowrl.policies import to_flat
from flowrl.study.config import make_config
from flowrl.study.evaluation import CURVE_DRAWS, tabulate
from flowrl.truth import exact

from .cost import keep

CITIES = ("ERA-v2", "ERA-v4-tight")
DRAWS, PIECES = 256, 8


def errors(learnt: Tensor, true: Tensor, valid: Tensor) -> dict[str, float]:
    """Of Q of the draws (B, S), valid (B, S): what the policy gradient, Cov(Q, ∇log π), is made of.

    off: the mean of learnt − true, of which the gradient knows nothing; spread: the standard deviation of the true one
    over a state's valid draws, which is all there is to learn from; error: that of learnt − true, in spreads; slope:
    of the learnt one on the true one, 1 where the gradient has its full size.
    """
    mean = lambda x: (x * valid).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp_min(1)  # noqa: E731
    a, b = ((x - mean(x)) * valid for x in (learnt, true))
    spread = b.square().sum().clamp_min(1e-12)
    return {
        "off": float(mean(learnt - true).mean()), "spread": float((b.square().sum() / valid.sum()).sqrt()),
        "error": float(((a - b).square().sum() / spread).sqrt()), "slope": float((a * b).sum() / spread),
    }  # fmt: skip


def judged(trainer: Trainer) -> dict[str, float]:
    """`errors` of valid draws in the states that the trainer's environments are in, and the share of valid ones.

    one_return: the standard deviation of r + γ V(s') about Q(s, a), V exact, in spreads, for comparison.
    """
    env, values, generator = trainer.env, trainer.action_values, torch.Generator().manual_seed(0)
    observation = trainer.observation
    table = tabulate(trainer, env.city, generator, CURVE_DRAWS)
    after, varied = map(torch.from_numpy, exact.action_values(env.city, *table, trainer.config.gamma))
    with torch.no_grad():
        drawn = trainer.policy.sample(trainer.policy.features(observation), DRAWS, generator).action
        learnt = values.of(trainer.critic, observation, drawn)
    valid = rejection.ask(env.valid, observation, drawn)
    price = torch.from_numpy(env.city.cost)[env.allocation.unsqueeze(1).expand_as(drawn), drawn].sum(-1)
    where = to_flat(drawn, env.action_sizes), env.emergency.unsqueeze(1)
    found = errors(learnt.double(), after[where] - price, valid)
    noise = float(varied[where][valid].mean().sqrt()) / found["spread"]
    return {"valid": float(valid.float().mean()), "one_return": noise} | found


def along(city: str, seed: int, steps: int) -> list[dict]:
    """Rows of the CSV: one after each of the pieces of a training."""
    config = make_config(city, "iar-a2c-q", {"seed": seed, "steps": steps})
    trainer = Trainer(config, envs.make_batched(city, config.n_envs, "cpu", seeded(seed, "env")))
    rows = []
    for piece in tqdm(range(1, PIECES + 1), desc=f"{city}, seed {seed}"):
        while trainer.env_steps < piece * steps / PIECES:
            trainer.step()
        rows.append({"environment": city, "seed": seed, "env_steps": trainer.env_steps} | judged(trainer))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.values", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps of a training")
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for city in CITIES for seed in range(asked.seeds) for row in along(city, seed, asked.steps)]
    keep("values", rows)


if __name__ == "__main__":
    main()
