"""What a policy is worth: episodes apart from training, and exact returns of learnt policies where they can be had.

A learnt policy is tabulated from its draws in every state and handed to `exact`; `reference` names the returns that
others are measured against.
"""

import math

import torch

from . import envs, exact, search
from .a2c import Trainer, seeded
from .config import TrainConfig
from .envs.era import BatchedERA
from .envs.partial import BatchedPartial
from .policies import to_flat

EXACT_DRAWS = 512  # draws a state from which a learnt policy is tabulated
MASK_TABULATED = 1_000  # |A| up to which MASK's policy is tabulated as it is, not from draws


class Evaluator:
    """Episodes in environments apart from training, and the exact return where the city is small enough."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.violations = 0

    def episodes(self, trainer: Trainer, n: int, purpose: str) -> tuple[float, float, dict]:
        """Mean return of n episodes, its standard error, counts of `decide`; one purpose, one set of draws."""
        env = envs.make_batched(
            self.config.env, n, self.device, seeded(self.config.seed, f"env/{purpose}", self.device)
        )
        returns, counts = trainer.evaluate(env, n, seeded(self.config.seed, f"policy/{purpose}", self.device))
        self.violations += int(env.violations)
        return float(returns.mean()), float(returns.std() / n**0.5) if n > 1 else 0.0, counts

    def exact_return(self, trainer: Trainer) -> float | None:
        """Expected return of the learnt policy, tabulated from draws in every state; None where that can't be.

        None for Wol-DDPG: it may choose invalid actions, which a tabulated policy can't hold.
        """
        env, generator = trainer.env, seeded(self.config.seed, "exact", self.device)
        if self.config.policy == "wolpertinger":
            return None
        if isinstance(env, BatchedPartial):
            return exact.memoryless_return(env.game, without_memory(trainer, generator))
        if isinstance(env, BatchedERA) and env.city.allocations <= exact.MAX_TABULATED:
            return exact.policy_return(env.city, *tabulate(trainer, env.city, generator))
        return None


def reference(env) -> dict | None:
    """The returns to measure others against, exact or, in large cities, the best found; None where none is known."""
    if isinstance(env, BatchedPartial):
        return exact.partial_reference(env.game)
    if isinstance(env, BatchedERA):
        return exact.optimum(env.city) if exact.solvable(env.city) else search.reference(env.city)
    return None


def without_memory(trainer: Trainer, generator: torch.Generator, n: int = 2**16) -> torch.Tensor:
    """π' on a constant observation, (K, K), from the valid ones of n draws; what `decide` executes if there is none."""
    observation = trainer.observation[:1]
    decision, _ = trainer.decide(observation, generator)
    sample = trainer.policy.sample(trainer.policy.features(observation, decision.mask), n, generator)
    valid = trainer.oracle(observation, sample.action)[0]
    drawn = to_flat(sample.action[0][valid] if valid.any() else decision.action, trainer.policy.sizes)
    counts = drawn.bincount(minlength=math.prod(trainer.policy.sizes)).double().cpu()
    return (counts / counts.sum()).view(*trainer.policy.sizes)


def tabulate(trainer: Trainer, city, generator: torch.Generator, chunk: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """π' in every reachable state of a city: flat actions and weights (X, K + 1, n).

    n is EXACT_DRAWS, for MASK |A| where that is small. Rows where no draw is valid hold what `decide` executes there.
    """
    policy, sizes = trainer.policy, trainer.policy.sizes
    reachable = torch.from_numpy(exact.reachable(city)).repeat_interleave(city.districts + 1)
    observations = exact.states(city)[reachable].to(trainer.device)
    actions, weights = [], []
    for observation in observations.split(chunk):
        decision, _ = trainer.decide(observation, generator)
        features = policy.features(observation, decision.mask)
        if decision.mask is not None and decision.mask.shape[1] <= MASK_TABULATED:
            flat = torch.arange(decision.mask.shape[1], device=trainer.device).expand(len(observation), -1)
            weight = features.exp()
        else:
            action = policy.sample(features, EXACT_DRAWS, generator).action
            valid = trainer.oracle(observation, action)
            flat = torch.where(valid, to_flat(action, sizes), to_flat(decision.action, sizes)[:, None])
            weight = torch.where(valid.any(-1, keepdim=True), valid, torch.ones_like(valid)).double()
        actions.append(flat.cpu())
        weights.append((weight.double() / weight.sum(-1, keepdim=True)).detach().cpu())
    table = [torch.zeros(len(reachable), rows[0].shape[-1], dtype=rows[0].dtype) for rows in (actions, weights)]
    for full, rows in zip(table, (actions, weights), strict=True):
        full[reachable] = torch.cat(rows)
    return tuple(full.unflatten(0, (-1, city.districts + 1)) for full in table)
