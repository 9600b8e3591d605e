"""flowrl beside stable-baselines3, one core: python -m benchmarks.compare_sb3 [--seeds 3] [--steps 200000].

CartPole-v1 and Acrobot-v1: A2C of both with the same settings (`phases.SHARED`), in 8 environments at a time and in 64;
what differs is the initialisation, which is orthogonal in stable-baselines3, and flowrl's simulators, which are
batched. ERA-v1, 216 actions: flowrl's `mask` as it is against MaskablePPO of sb3-contrib, another algorithm, at its
defaults but for our discount, its masks in a table. Each run's row goes to data/comparisons/sb3.csv as it ends; a row
that is there is not made again. Returns are of 100 episodes with actions drawn from the policy; rates are environment
steps a second of the process's own time, training included, evaluation not.

Needs an environment of its own: pip install torch==2.13.0 stable-baselines3==2.9.2 sb3-contrib==2.9.2 "pandas<3" scipy
pyyaml tqdm, and flowrl on the PYTHONPATH.
"""

import argparse
import csv
import itertools
import math
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete

from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.study.config import make_config
from flowrl.study.records import ROOT, provenance
from flowrl.study.runs import one_thread

from .phases import SHARED

try:
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
except ImportError as error:
    sys.exit(f"{error}; see the head of {Path(__file__).name} for what to install")

EPISODES = 100
EVALUATION_SEED = 10_000  # apart from training's


class Flattened(gymnasium.ActionWrapper):
    """An ERA environment whose actions are numbered 0 … |A| − 1, with the masks that MaskablePPO needs."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.sizes = tuple(env.action_space.nvec)
        self.action_space = Discrete(math.prod(self.sizes))
        self.masks: dict[tuple[int, ...], np.ndarray] = {}

    def action(self, action: int) -> np.ndarray:
        return np.array(np.unravel_index(action, self.sizes))

    def action_masks(self) -> np.ndarray:
        """Which actions are valid now, (|A|,) bool: what may move where depends on the allocation alone."""
        era = self.unwrapped
        allocation = tuple(era.allocation)
        if allocation not in self.masks:
            self.masks[allocation] = np.array([era.is_valid(a) for a in itertools.product(*map(range, self.sizes))])
        return self.masks[allocation]


def flattened(env: str):
    return lambda: Flattened(gymnasium.make(f"flowrl/{env}"))


def timed(train) -> float:
    """Environment steps a CPU second of `train()`, which returns how many."""
    start = time.process_time()
    return train() / (time.process_time() - start)


def sb3_a2c(env: str, n_envs: int, seed: int, steps: int) -> tuple[np.ndarray, float]:
    """Returns of the policy that stable-baselines3's A2C learns, and its speed."""
    model = A2C(
        "MlpPolicy",
        make_vec_env(env, n_envs, seed),
        learning_rate=SHARED["actor_lr"],
        n_steps=SHARED["n_steps"],
        gamma=SHARED["gamma"],
        gae_lambda=1.0,
        ent_coef=SHARED["entropy"],
        vf_coef=SHARED["value_coef"],
        max_grad_norm=SHARED["clip"],
        normalize_advantage=False,
        policy_kwargs={"net_arch": [SHARED["hidden"]] * 2, "activation_fn": torch.nn.Tanh},
        seed=seed,
        device="cpu",
    )
    speed = timed(lambda: model.learn(steps).num_timesteps)
    test = make_vec_env(env, n_envs, EVALUATION_SEED + seed)
    returns, _ = evaluate_policy(model, test, EPISODES, deterministic=False, return_episode_rewards=True)
    return np.array(returns), speed


def sb3_maskable_ppo(env: str, n_envs: int, seed: int, steps: int) -> tuple[np.ndarray, float]:
    """The same of sb3-contrib's MaskablePPO, its default of 2048 steps a rollout spread over the environments."""
    training, test = (make_vec_env(flattened(env), n_envs, s) for s in (seed, EVALUATION_SEED + seed))
    gamma = make_config(env, "mask").gamma
    model = MaskablePPO("MlpPolicy", training, n_steps=2048 // n_envs, gamma=gamma, seed=seed, device="cpu")
    speed = timed(lambda: model.learn(steps).num_timesteps)
    returns, _ = evaluate_masked_policy(model, test, EPISODES, deterministic=False, return_episode_rewards=True)
    return np.array(returns), speed


def ours(method: str, overrides: dict, env: str, n_envs: int, seed: int, steps: int) -> tuple[np.ndarray, float]:
    """The same of one of flowrl's methods."""
    config = make_config(env, method, overrides | {"n_envs": n_envs, "seed": seed, "steps": steps})
    trainer = Trainer(config, envs.make_batched(env, n_envs, "cpu", seeded(seed, "env")))

    def train() -> int:
        while trainer.env_steps < steps:
            trainer.step()
        return trainer.env_steps

    speed = timed(train)
    test = envs.make_batched(env, EPISODES, "cpu", seeded(seed, "env/evaluation"))
    returns, _ = trainer.evaluate(test, EPISODES, seeded(seed, "policy/evaluation"))
    return returns.numpy(), speed


METHODS = {
    "flowrl a2c": partial(ours, "a2c", SHARED), "sb3 A2C": sb3_a2c, "flowrl mask": partial(ours, "mask", {}),
    "sb3-contrib MaskablePPO": sb3_maskable_ppo,
}  # fmt: skip
A2C_OF_BOTH = [(label, n_envs) for n_envs in (8, 64) for label in ("flowrl a2c", "sb3 A2C")]
CONTENDERS = {  # environment → who trains there, and in how many at a time
    "CartPole-v1": A2C_OF_BOTH,
    "Acrobot-v1": A2C_OF_BOTH,
    "ERA-v1": [("flowrl mask", make_config("ERA-v1", "mask").n_envs), ("sb3-contrib MaskablePPO", 8)],
}


def compare(env: str, label: str, n_envs: int, seed: int, steps: int, made: dict) -> dict:
    """One run as a row of the table."""
    returns, rate = METHODS[label](env, n_envs, seed, steps)
    return {
        "env": env,
        "method": label,
        "n_envs": n_envs,
        "seed": seed,
        "env_steps": steps,
        "return_mean": f"{returns.mean():.6g}",
        "return_sem": f"{returns.std(ddof=1) / math.sqrt(len(returns)):.3g}",
        "steps_per_cpu_s": f"{rate:.0f}",
        "torch": torch.__version__,
        "stable_baselines3": version("stable-baselines3"),
        "machine": made["machine"]["cpu"],
        "commit": made["commit"],
    }


def main() -> None:
    parser = argparse.ArgumentParser("compare_sb3", description=__doc__.splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="ENV")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … n − 1 (default 3)")
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps a run (default 200000)")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "comparisons" / "sb3.csv")
    args = parser.parse_args()
    made = provenance(torch.device("cpu"))
    if made["dirty"]:
        parser.error("the code differs from its commit: commit first, a row is of a commit")
    one_thread()
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    there = {tuple(row[key] for key in ("env", "method", "n_envs", "seed", "env_steps")) for row in rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for env, seed in itertools.product(args.envs, range(args.seeds)):
        for label, n_envs in CONTENDERS[env]:
            if (env, label, *map(str, (n_envs, seed, args.steps))) in there:
                continue
            rows.append(compare(env, label, n_envs, seed, args.steps, made))
            print(" ".join(str(value) for value in rows[-1].values()), flush=True)
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[-1].keys(), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
