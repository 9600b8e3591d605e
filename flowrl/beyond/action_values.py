"""Q(s, a) learnt from replay, for a policy gradient of all valid draws instead of one return (not in the paper).

The S draws that rejection asks about anyway are S actions whose values tell where the policy should go:
    ∇E_π'[Q] = Cov_π'(Q, ∇log π), estimated by their sample covariance over the valid draws,
without the noise of what followed the executed one (all-action policy gradient, Sutton et al. 2001; expected SARSA,
van Seijen et al. 2009). Biased as far as Q is wrong, and as Q's targets are of π, not of π'.
"""

import copy

import torch
from torch import Tensor, nn

from .. import rejection
from ..optimisers import flat_parameters
from ..replay import Replay
from ..returns import ActionCritic

# bytes of observations in the replay buffer, for `ActionValues`, where three slots an environment take less
ROOM = 2**29
MAX_INPUTS = 20_000  # D max K, by which an action is coded


class ActionValues:
    """Q(s, a), its slow copy Q', and the transitions that it learns from. ValueError where an action is coded too long.

    Q goes towards y = r + γ mean_j Q'(s', a'_j), with a'_j `target_draws` draws of the policy as it stands. The oracle
    is not asked about these: what rejection would leave out counts, too, the less the more draws are valid.
    """

    def __init__(
        self,
        critic: ActionCritic,
        weights: Tensor,
        observation: Tensor,
        sizes: tuple[int, ...],
        config,
        replay: Replay | None = None,
    ):
        if len(sizes) * max(sizes) > MAX_INPUTS:
            raise ValueError(
                f"critic action codes an action as D max K numbers, here {len(sizes) * max(sizes):,}; at most "
                f"{MAX_INPUTS:,}; critic state takes more"
            )
        self.critic, self.weights, self.categories, self.config = critic, weights, max(sizes), config
        self.slow = copy.deepcopy(critic)
        self.slow_weights = flat_parameters(self.slow)
        room = ROOM // (observation[0].numel() * observation.element_size())
        size = max(3 * len(observation), min(config.replay_size, room))
        self.replay = replay or Replay(size, observation, len(sizes))

    @staticmethod
    def make_critic(env, config) -> ActionCritic:
        return ActionCritic(env, config, len(env.action_sizes) * max(env.action_sizes), config.hidden)

    def of(self, critic: ActionCritic, observation: Tensor, action: Tensor) -> Tensor:
        """Actions (B, n, D) in digits → Q(s, a) (B, n)."""
        return critic(observation, nn.functional.one_hot(action, self.categories).flatten(-2).float())

    def add(self, rollout) -> None:
        """The transitions of a `Rollout`."""
        for t, made in enumerate(rollout.decisions):
            self.replay.add(made.observation, made.action, rollout._replace(**{
                name: getattr(rollout, name)[t] for name in ("reward", "terminated", "truncated", "final_observation")
            }))  # fmt: skip

    def loss(self, policy, generator: torch.Generator) -> Tensor:
        """The mean squared error of Q on `replay_batch` transitions."""
        config, batch = self.config, self.replay.sample(self.config.replay_batch, generator)
        with torch.no_grad():
            action = policy.sample(policy.features(batch.next_observation), config.target_draws, generator).action
            following = self.of(self.slow, batch.next_observation, action).mean(-1)
            target = batch.reward + config.gamma * torch.where(batch.terminated, 0.0, following)
        return (target - self.of(self.critic, batch.observation, batch.action.unsqueeze(1)).squeeze(1)).square().mean()

    @torch.no_grad()
    def follow(self) -> None:
        """Q' after Q, by `target_rate`."""
        self.slow_weights.lerp_(self.weights, self.config.target_rate)

    @torch.no_grad()
    def of_draws(self, observation: Tensor, decision: rejection.Decision) -> Tensor:
        """(B, S), of the valid draws; elsewhere of the executed action."""
        return self.of(self.critic, observation, rejection.valid_or_executed(decision).clamp_min(0))

    def state_dict(self) -> dict:
        return {"slow": self.slow.state_dict(), "replay": self.replay.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for name in state:
            getattr(self, name).load_state_dict(state[name])
