"""What a policy's own draws offer where valid actions are rare: python -m benchmarks.rare (a few minutes). Writes
data/benchmarks/rare.csv.

The runs of experiment figB_rare_long are trained anew; on the way plain draws are made in starts of the city, and each
valid one is judged exactly: the return of going there and staying for an episode.
"""

import numpy as np
import torch
from tqdm import tqdm

from flowrl import envs, rejection
from flowrl.a2c import Trainer, seeded
from flowrl.envs.city import City
from flowrl.study.plan import Run, runs
from flowrl.study.records import EXPERIMENTS
from flowrl.truth import search

from .cost import keep

STARTS, DRAWS, PIECES = 64, 64, 10


def offered(city: City, starts: np.ndarray, drawn: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Means over the starts (n, D) that have a valid one of the draws (n, S, D), valid (n, S): NaN without any.

    stay: the return of staying put; mean, best: of going once to a valid draw; distinct: different valid ones.
    """
    has = valid.any(1)
    if not has.any():
        return dict.fromkeys(("stay", "mean", "best", "distinct"), float("nan"))
    starts, drawn, valid = starts[has], drawn[has], valid[has]
    staying = search.expected_return(city, np.stack([starts] * (city.horizon + 1)))
    worth = np.stack([
        search.expected_return(city, np.stack([starts] + [drawn[:, j]] * city.horizon)) for j in range(drawn.shape[1])
    ], 1)  # fmt: skip
    worth = np.where(valid, worth, np.nan)
    distinct = [len(np.unique(actions[ok], axis=0)) for actions, ok in zip(drawn, valid, strict=True)]
    return {
        "stay": staying.mean(), "mean": np.nanmean(worth, 1).mean(), "best": np.nanmax(worth, 1).mean(),
        "distinct": float(np.mean(distinct)),
    }  # fmt: skip


def along(run: Run) -> list[dict]:
    """Rows of the CSV: one before training and one after each of the pieces of it."""
    config, city = run.config, City.load(run.config.env)
    trainer = Trainer(config, envs.make_batched(config.env, config.n_envs, "cpu", seeded(config.seed, "env")))
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    starts = city.starts[rng.choice(len(city.starts), STARTS, replace=False)]
    going = search.expected_return(city, np.stack([starts] + [search.go_and_stay(city, starts, rng)] * city.horizon))
    env = envs.make_batched(config.env, STARTS)
    observation = env.observe(torch.from_numpy(starts), torch.full((STARTS,), city.districts))
    rows = []
    for piece in tqdm(range(PIECES + 1), desc=f"{run.label}, seed {config.seed}"):
        while trainer.env_steps < piece * config.steps / PIECES:
            trainer.step()
        drawn = trainer.policy.sample(trainer.policy.features(observation), DRAWS, generator).action
        valid = rejection.ask(env.valid, observation, drawn)
        row = {"environment": city.name, "run": run.label, "seed": config.seed, "env_steps": trainer.env_steps}
        row |= {"valid": float(valid.float().mean()), "go_and_stay": going.mean()}
        rows.append(row | offered(city, starts, drawn.numpy(), valid.numpy()))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for run in runs(EXPERIMENTS, "figB_rare_long", "paper") for row in along(run)]
    keep("rare", rows)


if __name__ == "__main__":
    main()
