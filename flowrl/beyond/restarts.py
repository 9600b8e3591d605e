"""Random restarts within a run's steps, against seeds that end in a poor policy (not in the paper)."""

import math

import torch
from torch import Tensor


class Restarts:
    """Trainings one after the other, each from new weights and on its share of the steps; the best one's policy stays.

    The best is the one whose episodes returned most, of those that ended in the last tenth of its share: what it is
    chosen by is training, and every step of it counts. Entropy and latent KL fall to 0 in every share anew.
    """

    def __init__(self, config, n_envs: int, device):
        self.many, self.steps = config.restarts, config.steps
        self.n = 0  # trainings that have ended
        self.best, self.weights = -math.inf, None
        self.running = torch.zeros(n_envs, device=device)  # returns of the episodes under way
        self.ended = torch.zeros(2, dtype=torch.float64, device=device)  # in the last tenth: their sum, how many

    def share(self, env_steps: int) -> float:
        """How much of the training that is under way is done, from 0 to 1."""
        return env_steps * self.many / max(1, self.steps) - min(self.n, self.many - 1)

    def after(self, rollout, trainer) -> None:
        """To be called after each update: takes returns down, and where a share is over begins the next, or chooses."""
        if self.n == self.many:
            return
        share = self.share(trainer.env_steps)
        for reward, end in zip(rollout.reward, rollout.terminated | rollout.truncated, strict=True):
            self.running += reward
            if share > 0.9:
                self.ended += torch.stack((self.running[end].sum(), end.sum())).double()
            self.running.masked_fill_(end, 0.0)
        if share < 1:
            return
        total, many = self.ended.tolist()
        found = total / many if many else -math.inf
        if self.weights is None or found > self.best:
            self.best, self.weights = found, _copy(trainer)
        self.n += 1
        self.ended.zero_()
        if self.n < self.many:
            trainer.begin(f"weights/{self.n}")
        else:
            for part, weights in self.weights.items():
                getattr(trainer, part).load_state_dict(weights)

    def state_dict(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("many", "steps")}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update({name: state[name] for name in self.state_dict()})


def _copy(trainer) -> dict[str, dict[str, Tensor]]:
    """The weights of policy and critic."""
    parts = {name: getattr(trainer, name).state_dict() for name in ("policy", "critic")}
    return {name: {key: value.clone() for key, value in part.items()} for name, part in parts.items()}
