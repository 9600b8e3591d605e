"""What actions return: the critics V(s) and Q(s, a), n-step returns, the scale of rewards (paper, section 2, B.4)."""

import torch
from torch import Tensor

from .encoders import make_encoder


class Critic(torch.nn.Module):
    """V_ϕ(s): (B, …) → (B,), in units of return."""

    def __init__(self, env, config):
        super().__init__()
        self.encoder = make_encoder(env, config.hidden)
        self.value = torch.nn.Linear(config.hidden, 1)
        torch.nn.init.zeros_(self.value.weight)
        torch.nn.init.zeros_(self.value.bias)
        self.scale = config.value_scale

    def forward(self, observation: Tensor) -> Tensor:
        return self.scale * self.value(self.encoder(observation)).squeeze(-1)


class ActionCritic(torch.nn.Module):
    """Q(s, a): states (B, …), n actions each as numbers (B, n, n_inputs) → (B, n), in units of return."""

    def __init__(self, env, config, n_inputs: int, width: int):
        super().__init__()
        self.encoder = make_encoder(env, config.hidden)
        self.state = torch.nn.Linear(config.hidden, width)
        self.action = torch.nn.Linear(n_inputs, width, bias=False)
        self.joint = torch.nn.Linear(width, width)
        self.value = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.value.weight)
        torch.nn.init.zeros_(self.value.bias)
        self.scale = config.value_scale

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        hidden = (self.state(self.encoder(observation)).unsqueeze(1) + self.action(action)).relu()
        return self.scale * self.value(self.joint(hidden).relu()).squeeze(-1)


def n_step_returns(reward: Tensor, terminated: Tensor, truncated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """R_t = r_t + γ R_{t+1}, cut where an episode ends: all (T, B), next_value V(s_{t+1}) before any reset → (T, B).

    A terminated episode is worth 0 from there on; a truncated one, and the rollout's end, V(s_{t+1}).

    >>> never, last = torch.zeros(3, 1, dtype=torch.bool), torch.tensor([[False], [False], [True]])
    >>> n_step_returns(torch.ones(3, 1), last, never, torch.full((3, 1), 8.0), gamma=0.5).flatten()
    tensor([1.7500, 1.5000, 1.0000])
    >>> n_step_returns(torch.ones(3, 1), never, last, torch.full((3, 1), 8.0), gamma=0.5).flatten()
    tensor([2.7500, 3.5000, 5.0000])
    """
    returns = torch.empty_like(reward)
    following = next_value[-1]
    for t in reversed(range(len(reward))):
        following = torch.where(truncated[t], next_value[t], following)
        following = reward[t] + gamma * torch.where(terminated[t], 0.0, following)
        returns[t] = following
    return returns


class RewardScale:
    """Rewards over the running standard deviation of their discounted past Σ_k γ^k r_{t−k} (paper, B.4).

    While that is below a thousandth of its root mean square they are divided by the latter. To multiply all rewards by
    a constant changes nothing.

    >>> scale = RewardScale(n_envs=1, gamma=0.0, device="cpu")
    >>> scale(torch.tensor([[100.0], [300.0]]), torch.zeros(2, 1, dtype=torch.bool)).flatten()  # deviation 100
    tensor([1., 3.])
    """

    def __init__(self, n_envs: int, gamma: float, device):
        self.gamma = gamma
        self.past = torch.zeros(n_envs, device=device)
        self.moments = torch.zeros(3, dtype=torch.float64, device=device)  # how many, their sum, the sum of squares

    def __call__(self, reward: Tensor, ended: Tensor) -> Tensor:
        """reward, ended: (T, B) → rewards (T, B); scaled by all that came until now."""
        for r, end in zip(reward, ended, strict=True):
            past = self.gamma * self.past + r
            self.moments += torch.stack((torch.ones_like(past).sum(), past.sum(), past.square().sum()))
            self.past = torch.where(end, 0.0, past)
        n, total, squares = self.moments
        square = squares / n
        variance = square - (total / n).square()
        scale = torch.where(variance > 1e-6 * square, variance, square)  # less may be float32's rounding
        return reward / torch.where(scale > 0, scale, 1.0).sqrt().to(reward.dtype)
