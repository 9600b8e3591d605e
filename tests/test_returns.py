"""flowrl.returns: n-step returns against a loop, the scale of rewards against NumPy."""

import numpy as np
import pytest
import torch

from flowrl.returns import RewardScale, n_step_returns


def loop_returns(reward, terminated, truncated, next_value, gamma):
    """Follow every state forward by hand, to the end of its episode or of the rollout."""
    steps, n_envs = len(reward), len(reward[0])
    returns = [[0.0] * n_envs for _ in range(steps)]
    for b in range(n_envs):
        for t in range(steps):
            discount = 1.0
            for k in range(t, steps):
                returns[t][b] += discount * reward[k][b]
                discount *= gamma
                if terminated[k][b]:
                    break
                if truncated[k][b] or k == steps - 1:
                    returns[t][b] += discount * next_value[k][b]
                    break
    return returns


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_n_step_returns_against_a_loop(gamma):
    """Terminations worth nothing, truncations their own final value, both at once a termination."""
    noise = torch.Generator().manual_seed(0)
    reward, next_value = torch.randn(2, 7, 200, generator=noise, dtype=torch.float64)
    terminated, truncated = torch.rand(2, 7, 200, generator=noise) < 0.12
    assert (terminated & truncated).any() and not (terminated | truncated).any(0).all()
    found = n_step_returns(reward, terminated, truncated, next_value, gamma)
    columns = (x.tolist() for x in (reward, terminated, truncated, next_value))
    torch.testing.assert_close(found, torch.tensor(loop_returns(*columns, gamma), dtype=torch.float64))


def test_rewards_are_scaled_by_the_spread_of_their_discounted_past():
    """Against NumPy over the whole history, pasts beginning anew where episodes end."""
    rewards = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    ends = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)) < 0.2
    scale, past, seen = RewardScale(4, 0.9, "cpu"), np.zeros(4), []
    for t in range(0, 30, 3):
        found = scale(rewards[t : t + 3], ends[t : t + 3])
        for k in range(t, t + 3):
            past = 0.9 * past + rewards[k].numpy()
            seen.append(past)
            past = np.where(ends[k], 0, past)
        np.testing.assert_allclose(found, rewards[t : t + 3] / np.std(seen), rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1e-6, 0.3, 1e6])
def test_rewards_without_a_spread_count_as_one(reward):
    scale, always = RewardScale(2, 0.9, "cpu"), torch.tensor([[True, True]])
    for _ in range(9):
        scaled = scale(torch.full((1, 2), reward), always)
    torch.testing.assert_close(scaled, torch.full((1, 2), float(reward > 0)))
