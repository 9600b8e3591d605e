"""CartPole and Acrobot: step by step against gymnasium's own, episodes' ends, starts, checkpoints, refused input."""

import io
import math

import gymnasium
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flowrl import envs, fit
from flowrl.envs.classic import BatchedAcrobot, BatchedCartPole
from flowrl.study.config import make_config

BOTH = pytest.mark.parametrize("simulator", [BatchedCartPole, BatchedAcrobot])
# |state| that the one-step test covers: CartPole past its bounds; Acrobot at top speed, where angles wrap, speeds clip
WIDE = {BatchedCartPole: (3, 5, 0.4, 5), BatchedAcrobot: (math.pi, math.pi, 4 * math.pi, 9 * math.pi)}
FLOAT64, FLOAT32 = dict(rtol=1e-10, atol=1e-10), dict(rtol=1e-6, atol=1e-6)  # states, observations


@BOTH
def test_one_step_from_anywhere_is_gymnasiums(simulator):
    B, rng = 600, np.random.default_rng(0)
    states = rng.uniform(-1, 1, (B, 4)) * WIDE[simulator]
    env, single = simulator(B), gymnasium.make(simulator.NAME).unwrapped
    actions = rng.integers(env.action_sizes[0], size=(B, 1))
    expected = []
    for state, action in zip(states, actions, strict=True):
        single.reset()
        single.state = state
        expected.append((*single.step(action[0])[:3], single.state))
    observation, reward, terminated, moved = (np.stack(column) for column in zip(*expected, strict=True))
    env.state = torch.as_tensor(states)
    found = env._move(env.state, env._forces[actions[:, 0]])
    np.testing.assert_allclose(found, moved, **FLOAT64)
    step = env.step(torch.as_tensor(actions))
    np.testing.assert_allclose(step.final_observation, observation, **FLOAT32)
    np.testing.assert_array_equal(step.reward, reward)
    np.testing.assert_array_equal(step.terminated, terminated)
    assert 0.1 < terminated.mean() < 0.9
    if simulator is BatchedAcrobot:  # some were bounded, some angles wrapped
        assert (abs(moved[:, 2:]) == env.MAX_SPEEDS).any(0).all()
        assert (abs(states[:, :2] + 0.2 * states[:, 2:]) > 5).any(0).all()


def steer(simulator, state, b, rng):
    """A good policy in environments 0 and 1 (from gymnasium's state), a random one elsewhere."""
    if b > 1:
        return rng.integers(2 if simulator is BatchedCartPole else 3)
    if simulator is BatchedCartPole:
        return int(state @ [0.1, 0.5, 5, 1] > 0)  # balances
    return 2 * int(state[2] < 0)  # against the upper link's swing: pumps energy


@BOTH
def test_whole_episodes_are_gymnasiums(simulator):
    B, rng = 4, np.random.default_rng(1)
    env, singles = simulator(B), [gymnasium.make(simulator.NAME) for _ in range(B)]
    first = np.zeros((B, *env.observation_shape))

    def start(b, seed=None):
        """gymnasium's start state, as the uniforms that make it."""
        first[b], _ = singles[b].reset(seed=seed)
        return (singles[b].unwrapped.state.astype(np.float64) / simulator.START + 1) / 2

    observation = env.reset(torch.as_tensor(np.stack([start(b, seed=b) for b in range(B)])))
    np.testing.assert_allclose(observation, first, **FLOAT32)
    ends = np.zeros(2, int)
    for _ in range(1100):
        states = np.stack([single.unwrapped.state for single in singles]).astype(np.float64)
        np.testing.assert_allclose(env.state, states, **FLOAT64)
        env.state = torch.as_tensor(states)  # rounding would grow along an episode: the system is chaotic
        actions = [steer(simulator, state, b, rng) for b, state in enumerate(states)]
        taken = [single.step(action)[:4] for single, action in zip(singles, actions, strict=True)]
        observation, reward, terminated, truncated = (np.stack(column) for column in zip(*taken, strict=True))
        ended = terminated | truncated
        uniforms = np.stack([start(b) if ended[b] else np.full(4, np.nan) for b in range(B)])
        step = env.step(torch.tensor(actions)[:, None], torch.as_tensor(uniforms))
        np.testing.assert_allclose(step.final_observation, observation, **FLOAT32)
        np.testing.assert_array_equal(step.reward, reward)
        np.testing.assert_array_equal((step.terminated, step.truncated), (terminated, truncated))
        np.testing.assert_allclose(step.observation, np.where(ended[:, None], first, observation), **FLOAT32)
        ends += terminated.sum(), truncated.sum()
    assert (ends >= (4, 2)).all()
    assert env.violations == 0 and step.observation.dtype == step.reward.dtype == torch.float32


@BOTH
def test_an_episode_can_be_terminated_and_truncated_at_once(simulator):
    at_the_end = {BatchedCartPole: [2.39, 5, 0, 0], BatchedAcrobot: [math.pi - 0.1, 0, 0, 0]}[simulator]
    env, single = simulator(2), gymnasium.make(simulator.NAME)
    single.reset()
    single._elapsed_steps, single.unwrapped.state = 499, np.array(at_the_end)
    env.state[1] = torch.tensor(at_the_end)
    env.time = torch.tensor([498, 499])
    step = env.step(torch.zeros(2, 1, dtype=torch.int64))
    assert step.terminated.tolist() == [False, True] and step.truncated.tolist() == [False, True]
    assert list(single.step(0)[2:4]) == [True, True]
    assert env.time.tolist() == [499, 0]


@BOTH
def test_starts_are_uniform_after_a_reset_and_after_an_episode(simulator):
    n = 20_000
    env = simulator(n, generator=torch.Generator().manual_seed(0))
    first = env.state
    env.time.fill_(env.horizon - 1)
    step = env.step(torch.zeros(n, 1, dtype=torch.int64))
    assert step.truncated.all() and not (env.state == first).any()
    for state in (first, env.state):
        unit = (state / simulator.START + 1) / 2
        assert unit.min() >= 0 and unit.max() <= 1
        counts = torch.stack([torch.histc(column, 10, 0, 1) for column in unit.T])
        z = (counts - n / 10) / math.sqrt(n * 0.1 * 0.9)
        assert z.abs().max() < 4.5  # 80 counts in all
        correlation = torch.corrcoef(torch.cat((unit, first), 1).T if state is not first else unit.T)
        assert (correlation - torch.eye(len(correlation))).abs().max() * math.sqrt(n) < 4


def test_acrobats_energy_changes_by_the_torques_work_alone():
    """Book dynamics: dE/dt = τ θ̇₂, E = ½ θ̇ᵀ M(θ₂) θ̇ − g (1.5 cos θ₁ + 0.5 cos(θ₁ + θ₂))."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(50, 4, dtype=torch.float64, generator=generator).mul(3).requires_grad_()
    torque = torch.randn(50, dtype=torch.float64, generator=generator)
    one, two, speed1, speed2 = state.unbind(1)
    kinetic = ((3.5 + two.cos()) * speed1**2 + (2.5 + two.cos()) * speed1 * speed2 + 1.25 * speed2**2) / 2
    energy = kinetic - 9.8 * (1.5 * one.cos() + 0.5 * (one + two).cos())
    (gradient,) = torch.autograd.grad(energy.sum(), state)
    power = (gradient * BatchedAcrobot(50)._derivative(state.detach(), torque)).sum(1)
    np.testing.assert_allclose(power, torque * speed2.detach(), atol=1e-10)


@BOTH
def test_actions_outside_the_range_exert_no_force_and_are_counted(simulator):
    env, n = simulator(3), simulator(1).action_sizes[0]
    env.state = torch.zeros(3, 4, dtype=torch.float64)  # an equilibrium
    actions = torch.tensor([[-1], [0], [n]])
    assert env.valid(env._observe(env.state), actions[:, None]).tolist() == [[False], [True], [False]]
    env.step(actions)
    assert env.refused.tolist() == [True, False, True] and env.violations == 2
    assert (env.state != 0).any(1).tolist() == [False, True, False]
    env.step(torch.zeros(3, 1, dtype=torch.int64))
    assert not env.refused.any() and env.violations == 2


def test_wrong_input_is_refused_in_one_line():
    env = BatchedAcrobot(2)
    observation, good = env.reset(), torch.zeros(2, 5, 1, dtype=torch.int64)
    assert env.valid(observation, good).shape == (2, 5) and env.valid(observation, good).all()
    for call, message in [
        (lambda: BatchedCartPole(0), "n_envs is 0; it must be at least 1"),
        (lambda: env.step(good[:, 0, 0]), r"of the shape \(2,\); allowed: torch.int64 of the shape \(2, 1\)"),
        (lambda: env.step(good[:, 0].float()), "actions are torch.float32"),
        (lambda: env.valid(observation[:, :4], good), r"observation has the shape \(2, 4\); allowed: \(B, 6\)"),
        (lambda: env.valid(observation, good[:1]), r"\(1, 5, 1\); allowed: torch.int64 of the shape \(2, S, 1\)"),
        (lambda: env.valid(observation, good.float()), "actions are torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def rollout(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    taken = [
        env.step(torch.randint(env.action_sizes[0], (env.n_envs, 1), generator=generator, device="cpu"))
        for _ in range(steps)
    ]
    return [torch.stack(column) for column in zip(*taken, strict=True)]


@BOTH
def test_seeds(simulator):
    one, same, other = (rollout(simulator(3, generator=torch.Generator().manual_seed(s)), 60) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


@BOTH
def test_a_checkpoint_continues_the_same_episodes(simulator):
    env = simulator(4, generator=torch.Generator().manual_seed(1))
    rollout(env, 130)
    env.step(torch.full((4, 1), -1))
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    other = simulator(4, generator=torch.Generator().manual_seed(2))
    other.load_state_dict(torch.load(file, weights_only=True))
    again, continued = rollout(env, 500, 5), rollout(other, 500, 5)
    assert all(torch.equal(a, b) for a, b in zip(again, continued, strict=True))
    assert env.violations == other.violations == 4 and torch.equal(env.time, other.time)
    assert (continued[2] | continued[3]).any()  # episodes ended, so the generator was used too
    for wrong in (simulator(5), (BatchedAcrobot if simulator is BatchedCartPole else BatchedCartPole)(4)):
        with pytest.raises(ValueError, match="another environment or batch"):
            wrong.load_state_dict(env.state_dict())


def test_a_digest_is_the_dynamics():
    class Moon(BatchedCartPole):
        GRAVITY = 1.6

    digests = [simulator(2).digest for simulator in (BatchedCartPole, BatchedAcrobot, Moon)]
    assert len(set(digests)) == 3 and all(len(digest) == 64 for digest in digests)
    assert BatchedCartPole(5).digest == digests[0]


@BOTH
def test_every_tensor_is_made_on_the_environments_device(simulator):
    torch.set_default_device("meta")
    try:
        env = simulator(2, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
        returned = rollout(env, 3)
        assert {tensor.device.type for tensor in (*returned, env.state, env.time, env.refused)} == {"cpu"}
        assert env.valid(returned[0][0], torch.zeros(2, 1, 1, dtype=torch.int64, device="cpu")).device.type == "cpu"
    finally:
        torch.set_default_device(None)


@BOTH
def test_no_step_waits_for_the_device(simulator):
    """Fake tensors have no values: whatever would read one on the host raises."""
    env, actions, uniforms = simulator(2), torch.zeros(2, 1, dtype=torch.int64), torch.rand(2, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = env.step(actions, uniforms)
        assert env.valid(step.observation, actions[:, None]).shape == (2, 1)


class Odd(BatchedCartPole):
    """A cart that may be pushed to the right only."""

    NAME = "Odd"

    def valid(self, observation, actions):
        return super().valid(observation, actions) & (actions == 1).squeeze(-1)


def test_a_simulator_is_one_entry(monkeypatch):
    """What is in the registry can be named everywhere: made, trained, evaluated; its constraint is known."""
    monkeypatch.setitem(envs.SIMULATORS, "Odd", (Odd, True))
    assert "Odd" in envs.names() and envs.constrained("Odd") and not envs.constrained("CartPole-v1")
    assert envs.digest("Odd") == Odd(1).digest != envs.digest("CartPole-v1")
    trained = fit("Odd", steps=64, n_envs=2, progress=False)
    assert type(trained.env) is Odd and trained.env.violations == 0
    with pytest.raises(ValueError, match="Odd"):
        make_config("Odd", "a2c")  # knows of no constraint
