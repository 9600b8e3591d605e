"""Numerical stress: extreme rewards, observations and action spaces, by hypothesis (derandomised: the same every time).

Two updates of every method leave finite weights and finite means, and execute nothing invalid; where that can't be, one
line says why: too many actions to list, no valid action, one draw where two are needed.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.a2c import Trainer
from flowrl.envs.batched import Step, check_actions
from flowrl.policies import MAX_LOGITS
from flowrl.rejection import NoValidActionError, all_actions
from flowrl.study.config import A2C_METHODS, METHODS, NO_CONSTRAINTS, ConfigError, make_config

SMALL = {"hidden": 8, "policy_hidden": 8, "max_draws": 64, "elbo_batch": 8, "posterior_fit_steps": 1}


class Extreme:
    """Any sizes K_d, rewards and observations of any size; valid are all actions, one of them, or none."""

    def __init__(self, sizes, reward, observation, allowed, n_envs=3):
        self.n_envs, self.device, self.action_sizes, self.observation_shape = n_envs, torch.device("cpu"), sizes, (4,)
        self.generator = torch.Generator().manual_seed(0)
        self.reward, self.scale, self.allowed, self.violations = reward, observation, allowed, 0
        self.one = torch.tensor([size // 2 for size in sizes])

    def reset(self):
        if self.scale is None:
            return torch.ones(self.n_envs, 4)
        return self.scale * (2 * torch.rand(self.n_envs, 4, generator=self.generator) - 1)

    def step(self, actions):
        check_actions(self, actions)
        inside = ((actions >= 0) & (actions < torch.tensor(self.action_sizes))).all(-1)
        self.violations += int((~inside | ~self.valid(None, actions[:, None])[:, 0]).sum())
        ended = torch.rand(2, self.n_envs, generator=self.generator) < 0.2
        reward = self.reward * torch.rand(self.n_envs, generator=self.generator).sub(0.5).sign()
        observation = self.reset()
        return Step(observation, reward, ended[0], ended[1], observation)

    def valid(self, observation, actions):
        if self.allowed == "one":
            return (actions == self.one).all(-1)
        return torch.full(actions.shape[:2], self.allowed == "all")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@st.composite
def cases(draw):
    """A method, its settings, and an environment."""
    method = draw(st.sampled_from(A2C_METHODS))
    size = st.integers(1, 64)
    sizes = draw(st.integers(1, 32).flatmap(lambda D: st.lists(size, min_size=D, max_size=D)))
    if draw(st.booleans()):
        sizes = [sizes[0]] * len(sizes)
    if METHODS[method].get("policy") in ("masked", "categorical") and draw(st.integers(0, 9)):
        while math.prod(sizes) > 2_000:  # mostly as many as it can list
            sizes.pop()
        sizes = sizes or [7]
    n_draws = draw(st.sampled_from([1, 2, 5])) if METHODS[method].get("correction") != "none" else 1
    changes = {"n_draws": n_draws, "n_correction": n_draws}
    if n_draws == 1:
        changes |= {"correction": "none", "entropy": 0.0} if draw(st.booleans()) else {}
    if METHODS[method].get("policy", "flow") == "flow" and draw(st.booleans()):
        short = len(sizes) * max(sizes) <= 200  # autoregressive layers go entry by entry
        changes |= {"coupling": draw(st.sampled_from(["affine", "mixture", *["autoregressive"] * short]))}
    reward = draw(st.sampled_from([0.0, 1.0, -1e6, 1e6]))
    observation = draw(st.sampled_from([None, 0.0, 1.0, 1e8]))
    allowed = "all" if method in NO_CONSTRAINTS else draw(st.sampled_from(["all", "all", "one", "none"]))
    return method, changes, tuple(sizes), reward, observation, allowed


def survives(case):
    """Train a little: everything finite, nothing invalid, or an error of one line where it can't be done."""
    method, changes, sizes, reward, observation, allowed = case
    env = Extreme(sizes, reward, observation, allowed)
    try:
        config = make_config("extreme", method, SMALL | changes | {"n_envs": env.n_envs, "n_steps": 2})
    except ConfigError as error:
        assert changes["n_draws"] == 1 and "at least 2" in str(error) and "\n" not in str(error)
        return
    listed = config.policy in ("masked", "categorical")
    if listed and math.prod(sizes) > MAX_LOGITS:
        with pytest.raises(ValueError, match=r"^\|A\| is .*enumerate all, at most"):
            Trainer(config, env)
        return
    trainer = Trainer(config, env)
    try:
        for _ in range(2):
            trainer.step()
    except NoValidActionError as error:
        enumerable = math.prod(sizes) <= config.enumerate_limit
        assert "\n" not in str(error) and (allowed == "none" or allowed == "one" and not (enumerable or listed))
        return
    finally:
        assert env.violations == 0
    assert allowed != "none" and trainer.updates == 2
    for name, weights in trainer.parameters.items():
        assert weights.isfinite().all(), name
    summary = trainer.summary()
    assert all(math.isfinite(number) for name, number in summary.items() if name != "elbo"), summary
    assert math.isfinite(summary["elbo"]) == (trainer.posterior is not None)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(cases())
def test_finite_or_a_clear_error(case):
    survives(case)


@pytest.mark.long
@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(cases())
def test_finite_or_a_clear_error_at_length(case):
    survives(case)


@pytest.mark.parametrize("method", [name for name in A2C_METHODS if name not in NO_CONSTRAINTS])
@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (64,), (1, 64, 2), (2,) * 32, (64,) * 32])
def test_the_ends_of_the_range(method, sizes):
    """With everything extreme at once."""
    listed = METHODS[method].get("policy") == "masked"
    if not (listed and math.prod(sizes) > MAX_LOGITS):
        survives((method, {"n_draws": 1 if listed else 5}, sizes, 1e6, 1e8, "all"))


def test_one_valid_action_of_all_is_found_by_listing_them():
    """l = 0 in nearly every draw: enumeration, counted, without a gradient; weights finite."""
    env = Extreme((8, 8, 8), 1e6, 1e8, "one")
    trainer = Trainer(make_config("extreme", "iar-a2c", SMALL | {"n_envs": 3, "n_draws": 4}), env)
    for _ in range(3):
        trainer.step()
    assert trainer.counts["enumerations"] > 0 and env.violations == 0
    assert len(all_actions(env.action_sizes, "cpu")) == 512
    assert all(weights.isfinite().all() for weights in trainer.parameters.values())
