"""Random restarts within a run's steps, against seeds that end in a poor policy (not in the paper)."""

import math

import torch
from torch import Tensor


class Restarts:
    """Trainings one after the other, each from new weights on its share of the steps; the best one's policy is kept.

    The best is the one whose episodes returned most in the mean, of those that ended in the last tenth of its share,
    or, where none did, of the latest in each environment; an episode that began in another training does not count.
    These are episodes of training: the choice costs no step. Entropy and latent KL fall to 0 in every training. What
    follows the last one goes on from the kept weights, with new optimisers and memories. With `keep_replay` the replay
    buffer outlives every restart, so that new weights learn Q from what earlier trainings saw, too, as much of it as
    there is room for (resets against the primacy bias, Nikishin et al. 2022).
    """

    def __init__(self, config, n_envs: int, device):
        self.trainings, self.steps, self.keep_replay = config.restarts, config.steps, config.keep_replay
        self.done, self.begun = 0, 1  # trainings
        self.best, self.weights = -math.inf, None
        self.running = torch.zeros(n_envs, dtype=torch.float64, device=device)  # returns of the episodes under way
        self.ended = torch.zeros(2, dtype=torch.float64, device=device)  # of those in the last tenth: sum, how many
        self.latest = torch.full_like(self.running, math.nan)  # of each environment, the latest episode's return
        self.under_way = torch.zeros(n_envs, dtype=torch.bool, device=device)  # episodes

    def share(self, env_steps: int) -> float:
        """How much of the training that is under way is done; 1, or a rollout's steps more, at its end."""
        return env_steps * self.trainings / max(1, self.steps) - min(self.done, self.trainings - 1)

    def before(self, trainer) -> None:
        """Before a rollout: begin the next training where one is over."""
        if self.done < self.begun or self.begun == self.trainings:
            return
        self._begin(trainer, f"weights/{self.begun}")
        self.begun += 1
        self.ended.zero_()
        self.latest.fill_(math.nan)
        self.running.masked_fill_(self.under_way, math.nan)

    def watch(self, rollout, env_steps: int) -> None:
        """Take down what episodes returned: rewards and ends of a rollout (T, B); env_steps with it."""
        late = self.share(env_steps) > 0.9
        for reward, end in zip(rollout.reward, rollout.terminated | rollout.truncated, strict=True):
            self.running += reward
            whole = end & self.running.isfinite()
            if late:
                self.ended += torch.stack((torch.where(whole, self.running, 0.0).sum(), whole.sum()))
            self.latest = torch.where(whole, self.running, self.latest)
            self.running.masked_fill_(end, 0.0)
            self.under_way = ~end

    def after(self, trainer) -> None:
        """After an update: where a training is over, keep its weights if it is the best, and at last put them back."""
        if self.done == self.trainings or self.share(trainer.env_steps) < 1:
            return
        total, episodes = self.ended.tolist()
        found = total / episodes if episodes else self.latest.nanmean().item()
        if self.weights is None or found > self.best:  # nan, where no episode has ended, is no more than anything
            self.best, self.weights = -math.inf if math.isnan(found) else found, _copy(trainer)
        self.done += 1
        if self.done == self.trainings:
            self._begin(trainer, "weights/after")
            for part, weights in self.weights.items():
                getattr(trainer, part).load_state_dict(weights)
            if trainer.action_values is not None:
                trainer.action_values.slow.load_state_dict(self.weights["critic"])
            self.weights = None

    def _begin(self, trainer, purpose: str) -> None:
        trainer.begin(purpose, trainer.action_values.replay if self.keep_replay else None)

    def cut_off(self) -> None:
        """New episodes begin, cut off from outside."""
        self.running.zero_()
        self.under_way.zero_()

    def state_dict(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("trainings", "steps", "keep_replay")}

    def load_state_dict(self, state: dict) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name].clone() if isinstance(state[name], Tensor) else state[name])


def _copy(trainer) -> dict[str, dict[str, Tensor]]:
    """The weights of policy and critic."""
    parts = {name: getattr(trainer, name).state_dict() for name in ("policy", "critic")}
    return {name: {key: value.clone() for key, value in part.items()} for name, part in parts.items()}
