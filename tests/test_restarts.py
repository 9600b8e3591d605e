"""Random restarts (`flowrl.beyond.restarts`) against a count of every episode by hand."""

import math

import pytest
import torch

from flowrl.a2c import Trainer, seeded
from flowrl.envs import make_batched
from flowrl.study.config import ConfigError, make_config

SETTINGS = {"n_envs": 8, "steps": 2400, "restarts": 3, "hidden": 32, "replay_size": 1000, "replay_batch": 64}


def trainer(method: str = "iar-a2c-q", **changes) -> Trainer:
    settings = SETTINGS | changes
    env = make_batched("ERA-v1", settings["n_envs"], "cpu", seeded(0, "env"))
    return Trainer(make_config("ERA-v1", method, settings), env)


def weights(one: Trainer) -> torch.Tensor:
    return torch.cat([part.flatten() for part in one.policy.state_dict().values()])


def train(one: Trainer) -> tuple[list[torch.Tensor], list[list[float]]]:
    """To the end; of each share the weights at its end, and what the episodes of its last tenth returned."""
    steps, many = one.config.steps, one.config.restarts
    found, returns, running = [], [[] for _ in range(many)], [0.0] * len(one.observation)
    rollout, after = one.rollout, one.restarts.after

    def watched():
        made = rollout()
        share, within = divmod(one.env_steps * many, steps)
        if share == many or (within == 0 and share):  # its last step
            share, within = share - 1, steps
        for b, reward in enumerate(made.reward[0].tolist()):
            running[b] += reward
            if made.terminated[0, b] or made.truncated[0, b]:
                if within > 0.9 * steps:
                    returns[share].append(running[b])
                running[b] = 0.0
        return made

    def noted(made, of):
        if one.env_steps * many % steps < len(one.observation) * many:  # a share ends here
            found.append(weights(one))
        after(made, of)

    one.rollout, one.restarts.after = watched, noted
    while one.env_steps < steps:
        one.step()
    return found, returns


@pytest.mark.parametrize("method", ["iar-a2c-q", "factored-iar"])
def test_the_policy_that_returned_most_is_kept(method):
    one = trainer(method)
    found, returns = train(one)
    means = [sum(some) / len(some) for some in returns]
    best = means.index(max(means))
    assert len(found) == 3 and len({round(mean, 6) for mean in means}) == 3
    assert one.restarts.best == pytest.approx(max(means), abs=1e-3)
    assert [weights(one).equal(each) for each in found] == [k == best for k in range(3)]


def test_a_restart_begins_anew():
    """New weights and an empty replay; its entropy falls from the start again."""
    one = trainer()
    first, share = weights(one), 2400 // 3
    while one.env_steps < share - 8:
        one.step()
    assert one.annealed() == 0 and one.action_values.replay.live.sum() == one.env_steps
    one.step()
    assert one.annealed() == pytest.approx(1) and one.action_values.replay.live.sum() == 0
    assert not weights(one).equal(first)
    assert one.env_steps == share and one.counts["states"] == share


def test_a_run_with_restarts_goes_on_where_it_was_stopped():
    whole, halves = trainer(), trainer()
    while whole.env_steps < 2400:
        whole.step()
    while halves.env_steps < 1304:
        halves.step()
    other = trainer()
    other.load_state_dict(halves.state_dict())
    while other.env_steps < 2400:
        other.step()
    assert weights(other).equal(weights(whole)) and other.restarts.best == whole.restarts.best


def test_where_no_episode_ends_the_first_policy_stays():
    one = trainer(steps=480)
    found, returns = train(one)
    assert not any(returns) and one.restarts.best == -math.inf
    assert weights(one).equal(found[0])


@pytest.mark.parametrize(("method", "value", "said"), [
    ("iar-a2c", 0, "restarts is 0; it must be at least 1"),
    ("wol-ddpg", 2, "restarts is 2; Wol-DDPG allows 1 only"),
])  # fmt: skip
def test_restarts_that_cannot_be(method, value, said):
    with pytest.raises(ConfigError, match=said):
        make_config("ERA-v1", method, {"restarts": value})
