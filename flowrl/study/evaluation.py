"""What a policy is worth: episodes apart from training, and exact returns of learnt policies where they can be had.

A learnt policy is tabulated from its draws in every state and handed to `exact`; `reference` names the returns that
others are measured against.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from .. import envs, rejection
from ..a2c import COUNTS, Trainer, seeded
from ..envs.era import BatchedERA
from ..envs.line import BatchedLine
from ..envs.partial import BatchedPartial
from ..policies import to_flat
from ..rejection import ask, ask_all
from ..truth import exact, line, search
from .config import TrainConfig

EXACT_DRAWS = 512  # draws a state from which a learnt policy is tabulated
CURVE_DRAWS = 128  # the same along a run, where a point of a curve needs less
ENOUGH_VALID = 64  # valid ones among them below which more are drawn
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

    def exact_return(self, trainer: Trainer, n: int = EXACT_DRAWS) -> float | None:
        """Expected return of the learnt policy, tabulated from n draws in every state; None where that can't be.

        None for Wol-DDPG, which may choose invalid actions, and where chains stand in for draws: what these give
        depends on where they begin.
        """
        env, generator = trainer.env, seeded(self.config.seed, "exact", self.device)
        if self.config.policy == "wolpertinger" or self.config.chains:
            return None
        if isinstance(env, BatchedPartial):
            return exact.memoryless_return(env.game, without_memory(trainer, generator))
        if isinstance(env, BatchedLine):
            return float(line.line_return(env.line, neighbours(trainer, generator, 4 * n)))
        if isinstance(env, BatchedERA) and env.city.allocations <= exact.MAX_TABULATED:
            return exact.policy_return(env.city, *tabulate(trainer, env.city, generator, n))
        return None


def reference(env, patient: bool = False) -> dict | None:
    """The returns to measure others against, exact or, in large cities, the best found; None where none is known.

    patient: take hours, and show progress, for the exact ones of a city, where they can be had at all.
    """
    if isinstance(env, BatchedPartial):
        return exact.partial_reference(env.game)
    if isinstance(env, BatchedLine):
        return line.reference(env.line)
    if isinstance(env, BatchedERA):
        return exact.optimum(env.city) if exact.solvable(env.city) else search.reference(env.city, patient)
    return None


def without_memory(trainer: Trainer, generator: torch.Generator, n: int = 2**16) -> torch.Tensor:
    """What is executed on a constant observation, (K, K): π' from the valid ones of n draws, and, with the chance that
    none of max_draws is valid, uniformly any valid action."""
    policy, observation, mask = trainer.policy, trainer.observation[:1], None
    listed = ask_all(trainer.oracle, observation, policy.sizes)
    if getattr(policy, "needs_mask", False):
        mask = listed
    sample = policy.sample(policy.features(observation, mask), n, generator)
    valid = ask(trainer.oracle, observation, sample.action)[0]
    counts = to_flat(sample.action[0][valid], policy.sizes).bincount(minlength=listed.shape[1]).double().cpu()
    none = (1 - valid.double().mean().cpu()) ** trainer.config.max_draws
    uniform = listed[0].double().cpu() / listed.sum().cpu()
    return ((1 - none) * counts / counts.sum().clamp_min(1) + none * uniform).view(*policy.sizes)


def neighbours(trainer: Trainer, generator: torch.Generator, n: int, chunk: int = 256) -> torch.Tensor:
    """Frequencies of the levels of neighbours in n actions executed in each context of a line, (C, D − 1, K, K)."""
    env = trainer.env
    assert isinstance(env, BatchedLine)
    K = env.line.levels
    pair = torch.arange(env.line.resources - 1, device=env.device) * K**2
    counts = []
    for context in env.contexts:
        observations = context.expand(n, -1).split(chunk)
        action = torch.cat([trainer.decide(some, generator)[0].action for some in observations])
        flat = pair + action[:, :-1] * K + action[:, 1:]
        counts.append(flat.flatten().bincount(minlength=len(pair) * K**2).view(-1, K, K))
    return torch.stack(counts).double().cpu() / n


def tabulate(
    trainer: Trainer, city, generator: torch.Generator, n: int = EXACT_DRAWS, chunk: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is executed in every reachable state of a city: flat actions and weights (X, K + 1, n).

    From n draws a state; MASK's from all |A| probabilities where those are few.
    """
    act = _masked if getattr(trainer.policy, "needs_mask", False) else _drawn
    reachable = torch.from_numpy(exact.reachable(city)).repeat_interleave(city.districts + 1)
    observations = exact.states(city)[reachable].to(trainer.device)
    tables = zip(*(act(trainer, observation, generator, n) for observation in observations.split(chunk)), strict=True)
    actions, weights = (torch.cat(rows).detach().cpu() for rows in tables)
    weights = weights.double() / weights.double().sum(-1, keepdim=True)

    def everywhere(rows: Tensor) -> Tensor:
        whole = torch.zeros(len(reachable), rows.shape[-1], dtype=rows.dtype)
        whole[reachable] = rows
        return whole.unflatten(0, (-1, city.districts + 1))

    return everywhere(actions), everywhere(weights)


def _masked(trainer: Trainer, observation: torch.Tensor, generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """MASK's flat actions (B, n) and their weights: its probabilities of all of A where that is small, else draws."""
    policy = trainer.policy
    mask = ask_all(trainer.oracle, observation, policy.sizes)
    features = policy.features(observation, mask)
    if mask.shape[1] <= MASK_TABULATED:
        return torch.arange(mask.shape[1], device=trainer.device).expand_as(mask), features.exp()
    flat = to_flat(policy.sample(features, n, generator).action, policy.sizes)
    return flat, torch.ones_like(flat)


def _drawn(trainer: Trainer, observation: torch.Tensor, generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat actions (B, n) and which of them are executed, one as often as the other: each row an unbiased estimate.

    They are the valid ones of n draws, and of more, up to max_draws, where few of those are; where none
    is, all actions are enumerated, or the fallback called, as in `rejection.decide`.
    """
    policy, oracle, n = trainer.policy, trainer.oracle, min(n, trainer.config.max_draws)
    sample = policy.sample(policy.features(observation), n, generator)
    valid = ask(oracle, observation, sample.action)
    draws, counts = torch.full((len(valid),), n, device=valid.device), dict.fromkeys(COUNTS, 0)
    config = replace(trainer.config, n_draws=n)
    sample, valid, n_valid, draws = rejection.redraw(
        policy, oracle, observation, sample, valid, valid.sum(-1), draws, ENOUGH_VALID, config, generator, counts
    )
    flat, none = to_flat(sample.action, policy.sizes), n_valid == 0
    if none.any():
        flat[none], valid[none] = _listed(trainer, observation[none], draws[none], n, generator)
    return flat, valid


def _listed(trainer: Trainer, observation: torch.Tensor, draws: torch.Tensor, n: int, generator) -> tuple:
    """The same where no draw was valid, from all of A: up to n valid actions, any as likely as any other."""
    sizes, config = trainer.policy.sizes, trainer.config
    flat = torch.zeros(len(observation), n, dtype=torch.int64, device=observation.device)
    valid = torch.zeros_like(flat, dtype=torch.bool)
    if math.prod(sizes) > config.enumerate_limit:
        counts = dict.fromkeys(COUNTS, 0)
        action = rejection.without_draws(
            sizes, trainer.oracle, observation, draws, config, generator, trainer.fallback, counts
        )
        flat[:, 0], valid[:, 0] = to_flat(action, sizes), True
        return flat, valid
    mask = ask_all(trainer.oracle, observation, sizes)
    noise = torch.rand(mask.shape, generator=generator, device=mask.device)
    order = (mask + noise).topk(min(n, mask.shape[1])).indices  # the valid ones first, shuffled
    flat[:, : order.shape[1]], valid[:, : order.shape[1]] = order, mask.gather(1, order)
    return flat, valid
