"""Q(s, a) learnt from replay, for a policy gradient of all valid draws instead of one return (not in the paper).

The S draws that rejection asks about anyway are S actions whose values tell where the policy should go:
    ∇E_π'[Q] = Cov_π'(Q, ∇log π), estimated by their sample covariance over the valid draws,
without the noise of what followed the executed one (all-action policy gradient, Sutton et al. 2001; expected SARSA,
van Seijen et al. 2009). Biased as far as Q is wrong, and as Q's targets are of π, not of π'.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import rejection
from .encoders import make_encoder
from .optimisers import flat_parameters

MAX_SLOTS = 2**24  # of the replay buffer: the most categories that torch.multinomial draws from
ROOM = 2**29  # bytes of observations in it, for `ActionValues`, where three slots an environment take less
MAX_INPUTS = 20_000  # D max K, by which an action is coded


class ActionCritic(nn.Module):
    """Q(s, a): states (B, …), n actions each as numbers (B, n, n_inputs) → (B, n), in units of return."""

    def __init__(self, env, config, n_inputs: int, width: int):
        super().__init__()
        self.encoder = make_encoder(env, config.hidden)
        self.state = nn.Linear(config.hidden, width)
        self.action = nn.Linear(n_inputs, width, bias=False)
        self.joint = nn.Linear(width, width)
        self.value = nn.Linear(width, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.scale = config.value_scale

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        hidden = (self.state(self.encoder(observation)).unsqueeze(1) + self.action(action)).relu()
        return self.scale * self.value(self.joint(hidden).relu()).squeeze(-1)


class Transitions(NamedTuple):
    """n transitions (s, a, r, s'); s' is an episode's last observation where it ended, never the next one's first."""

    observation: Tensor  # (n, …)
    action: Tensor  # (n, D) int64
    reward: Tensor  # (n,)
    terminated: Tensor  # (n,) bool
    next_observation: Tensor  # (n, …)


class Replay:
    """The latest transitions of B environments, each observation stored once and in its own type.

    An environment fills its column slot by slot, then goes round. What followed slot t lies in slot t + 1, so s' takes
    no room; only where an episode ends its last observation does, in a slot that no transition starts from: live is 0.
    """

    def __init__(self, size: int, observation: Tensor, n_dimensions: int):
        n_envs = len(observation)
        slots = size // n_envs
        if slots < 3 or size > MAX_SLOTS:
            raise ValueError(f"replay_size is {size}; allowed: 3 n_envs, {3 * n_envs}, to {MAX_SLOTS}")
        shape, device = (slots, n_envs), observation.device
        self.observation = torch.zeros(*shape, *observation.shape[1:], dtype=observation.dtype, device=device)
        self.action = torch.zeros(*shape, n_dimensions, dtype=torch.int64, device=device)
        self.reward = torch.zeros(shape, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.live = torch.zeros(shape, device=device)  # 1 where a transition starts, the weight of its being drawn
        self.here = torch.zeros(n_envs, dtype=torch.int64, device=device)  # the slot that is filled next
        self.column = torch.arange(n_envs, device=device)

    def add(self, observation: Tensor, action: Tensor, step) -> None:
        """observation (B, …), the actions (B, D) chosen there, and the `Step` they led to; NOTHING is never drawn."""
        slots = len(self.live)
        here, after = (self.here, self.column), ((self.here + 1) % slots, self.column)
        self.observation[here], self.observation[after] = observation, step.final_observation
        self.live[here], self.live[after] = (action >= 0).all(-1).float(), 0.0
        self.action[here], self.reward[here], self.terminated[here] = action, step.reward, step.terminated
        self.here = (after[0] + (step.terminated | step.truncated)) % slots  # past the final observation

    def restart(self) -> None:
        """New episodes begin: what is added next follows nothing, and must not overwrite what a transition led to."""
        self.live[self.here, self.column] = 0.0
        self.here = (self.here + 1) % len(self.live)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Transitions:
        """n transitions, drawn uniformly with replacement."""
        flat = torch.multinomial(self.live.flatten(), n, replacement=True, generator=generator)
        slot, column = flat // len(self.column), flat % len(self.column)
        here, after = (slot, column), ((slot + 1) % len(self.live), column)
        return Transitions(
            self.observation[here], self.action[here], self.reward[here], self.terminated[here], self.observation[after]
        )

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        for name, values in vars(self).items():
            values.copy_(state[name])


class ActionValues:
    """Q(s, a), its slow copy Q', and the transitions that it learns from. ValueError where an action is coded too long.

    Q goes towards y = r + γ mean_j Q'(s', a'_j), with a'_j `target_draws` draws of the policy as it stands. The oracle
    is not asked about these: what rejection would leave out counts, too, the less the more draws are valid.
    """

    def __init__(self, critic: ActionCritic, weights: Tensor, observation: Tensor, sizes: tuple[int, ...], config):
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
        self.replay = Replay(size, observation, len(sizes))

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

    @torch.no_grad()
    def batches(self, policy, generator: torch.Generator) -> list[tuple[Transitions, Tensor]]:
        """`gradient_steps` times `replay_batch` transitions and their y (n,), of the policy and Q' as they stand."""
        config = self.config
        batch = self.replay.sample(config.gradient_steps * config.replay_batch, generator)
        action = policy.sample(policy.features(batch.next_observation), config.target_draws, generator).action
        following = self.of(self.slow, batch.next_observation, action).mean(-1)
        target = batch.reward + config.gamma * torch.where(batch.terminated, 0.0, following)
        parts = zip(*(column.split(config.replay_batch) for column in (*batch, target)), strict=True)
        return [(Transitions(*part), y) for *part, y in parts]

    def loss(self, batch: Transitions, target: Tensor) -> Tensor:
        """The mean squared error of Q on n transitions."""
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
