"""Pistonball against PettingZoo's own parallel API; the batch against single environments; constraint by hand."""

import io
import os
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from flowrl.a2c import Trainer
from flowrl.encoders import CNNEncoder, MLPEncoder, make_encoder
from flowrl.envs import pistonball
from flowrl.envs.pistonball import DOWN, HORIZON, PISTONS, STAY, UP, BatchedPistonball, PistonballEnv, picture
from flowrl.study.config import make_config


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batched():
    """Makes batches and ends their workers."""
    made = []

    def make(name, n_envs, seed=0, workers=0):
        made.append(BatchedPistonball(name, n_envs, generator=generator(seed), workers=workers))
        return made[-1]

    yield make
    for env in made:
        env.close()


def grey(rgb):
    """(H, W, 3) uint8 → (96, 96): luma (ITU-R 601), averaged over areas."""
    luma = torch.from_numpy(rgb @ np.array([0.299, 0.587, 0.114]))
    return torch.nn.functional.adaptive_avg_pool2d(luma[None], 96)[0].numpy()


@pytest.mark.parametrize(
    ("name", "seed", "policy"),
    [("Pistonball-v1", 4, "heuristic"), ("Pistonball-v1", 5, "stay"), ("Pistonball-v3", 6, "")],
)
def test_rewards_endings_and_pictures_are_pettingzoos(name, seed, policy):
    env, rng = PistonballEnv(name, render_mode="rgb_array"), np.random.default_rng(0)
    theirs = pistonball.pistonball.parallel_env(n_pistons=env.n_pistons, render_mode="rgb_array")
    theirs.reset(seed=seed)
    previous, _ = env.reset(seed=seed)
    assert (previous == previous[0]).all()
    rewards = []
    for _ in range(20 if policy == "" else HORIZON):
        action = rng.integers(3, size=env.n_pistons)
        action = {"heuristic": env.heuristic(), "stay": np.full_like(action, STAY)}.get(policy, action)
        observation, reward, terminated, truncated, info = env.step(action)
        moves = {agent: np.float32([move - 1]) for agent, move in zip(theirs.possible_agents, action, strict=True)}
        _, all_rewards, all_terminated, all_truncated, _ = theirs.step(moves)
        assert set(all_rewards.values()) == {reward}
        assert (set(all_terminated.values()), set(all_truncated.values())) == ({terminated}, {truncated})
        np.testing.assert_array_equal(env.render(), theirs.state())
        assert abs(observation[-1] - grey(env.render())).mean() < 3  # of 255
        np.testing.assert_array_equal(observation[:-1], previous[1:])
        assert info == {"valid": True, "violations": 0}
        previous = observation
        rewards.append(reward)
        if terminated or truncated:
            break
    assert (terminated, truncated) == {"heuristic": (True, False), "stay": (False, True), "": (False, False)}[policy]
    if policy == "heuristic":  # all of the way to the wall, but for the last step's few pixels; .1 less a step
        assert 0 <= 100 - 0.1 * (len(rewards) - 1) - sum(rewards) < 5
    assert (observation[-1] != observation[-2]).any() or policy == "stay"  # at rest


def test_seeds():
    def run(seed):
        env = PistonballEnv("Pistonball-v2-cstr")
        first = env.reset(seed=seed)[0]
        rng = np.random.default_rng(1)
        return np.stack([first] + [env.step(rng.integers(3, size=8))[0] for _ in range(20)])

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1)[0] != run(2)[0]).any() and len(np.unique(run(1)[:, 3], axis=0)) > 15  # the picture moves


@pytest.mark.parametrize(("name", "workers"), [("Pistonball-v1", 0), ("Pistonball-v1-cstr", 3)])
def test_the_batch_is_so_many_single_environments(batched, name, workers):
    B, seeds, rng = 4, generator(7), np.random.default_rng(0)
    env, singles = batched(name, B, seed=7, workers=workers), [PistonballEnv(name) for _ in range(B)]
    torch.randint(2**31, (B,), generator=seeds)  # the reset when it is made

    def fresh():
        return torch.randint(2**31, (B,), generator=seeds).tolist()

    observation = env.reset()
    expected = [single.reset(seed=seed)[0] for single, seed in zip(singles, fresh(), strict=True)]
    terminations, truncations, refused = 0, 0, 0
    for _ in range(HORIZON + 5):
        np.testing.assert_array_equal(observation, expected)
        actions = np.stack([single.heuristic() for single in singles])
        actions[2:] = rng.integers(-1 if rng.random() < 0.1 else 0, 3, size=actions[2:].shape)
        actions[3] = np.minimum(actions[3], STAY)  # never gets anywhere
        valid = env.valid(observation, torch.as_tensor(actions)[:, None])[:, 0]
        step = env.step(torch.as_tensor(actions))
        assert torch.equal(env.refused, ~valid)
        refused += int((~valid).sum())
        for b, (single, seed) in enumerate(zip(singles, fresh(), strict=True)):
            expected[b], reward, terminated, truncated, info = single.step(actions[b])
            np.testing.assert_array_equal(step.final_observation[b], expected[b])
            assert (step.terminated[b], step.truncated[b], valid[b]) == (terminated, truncated, info["valid"])
            assert step.reward[b] == np.float32(reward)
            terminations, truncations = terminations + terminated, truncations + truncated
            if terminated or truncated:
                expected[b] = single.reset(seed=seed)[0]
        observation = step.observation
    assert terminations > 2 and truncations > 0 and env.violations == refused > 0
    assert observation.dtype == torch.uint8 and observation.shape[1:] == env.observation_shape
    assert step.reward.dtype == torch.float32


@pytest.mark.parametrize(("x", "free_from"), [(80, 0), (119, 0), (120, 1), (159.5, 1), (160, 2), (200, 3)])
def test_pistons_wholly_left_of_the_ball_must_not_rise(x, free_from):
    """Piston i reaches from 40 + 40 i to 80 + 40 i pixels, the ball from x − 40 to x + 40."""
    env, batch = PistonballEnv("Pistonball-v1-cstr"), BatchedPistonball("Pistonball-v1-cstr", 1, workers=0)
    env.reset(seed=0)
    env._raw.ball.position = x, 300
    observation = torch.from_numpy(env._observation())[None]
    one_up = torch.full((5, 5), STAY) + torch.eye(5, dtype=torch.int64)
    assert batch.valid(observation, one_up[None])[0].tolist() == [i >= free_from for i in range(5)]
    assert batch.valid(observation, torch.tensor([[[DOWN, STAY] * 2 + [UP], [STAY] * 4 + [3], [-1] * 5]])).tolist() == [
        [True, False, False]
    ]
    assert batch.valid(observation, batch.fallback(observation)[:, None]).all()
    heights = [piston.position.y for piston in env._raw.pistonList]
    assert env.step(np.full(5, UP))[4] == {"valid": free_from == 0, "violations": int(free_from > 0)}
    risen = [before - piston.position.y for before, piston in zip(heights, env._raw.pistonList, strict=True)]
    assert risen == [0] * free_from + [4] * (5 - free_from)


def test_without_a_constraint_every_action_is_valid(batched):
    env = batched("Pistonball-v2", 2)
    actions = torch.randint(3, (2, 50, 8), generator=generator())
    assert env.valid(env.reset(), actions).all()
    assert not env.valid(env.reset(), torch.full((2, 1, 8), 3)).any()


def test_a_checkpoint_continues_the_same_episodes(batched):
    def run(env, steps, seed):
        draws = generator(seed)
        taken = [env.step(torch.randint(3, (3, 5), generator=draws)) for _ in range(steps)]
        return [torch.stack(column) for column in zip(*taken, strict=True)]

    env = batched("Pistonball-v1-cstr", 3, seed=1)
    run(env, 20, 0)
    assert run(env, 60, 1)[2].any()  # some episodes have ended by then
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    other = batched("Pistonball-v1-cstr", 3, seed=2, workers=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(run(env, 60, 5), run(other, 60, 5), strict=True))
    assert env.violations == other.violations > 0
    for wrong in (batched("Pistonball-v1", 3), batched("Pistonball-v1-cstr", 2)):
        with pytest.raises(ValueError, match="another environment or batch"):
            wrong.load_state_dict(env.state_dict())


def test_workers_that_die_or_are_closed_are_named(batched):
    env = batched("Pistonball-v1", 4, workers=2)
    processes = [process for process, *_ in env._workers]
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="Pistonball-v1: worker 1, environments 2 to 3: died with exit code -9"):
        for _ in range(2):
            env.step(torch.ones(4, 5, dtype=torch.int64))
    env.close()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(RuntimeError, match="Pistonball-v1 was closed"):
        env.reset()


def test_workers_end_with_their_batch():
    """Also where nobody closed it, as after an evaluation; a fork of the process that is gone ends none."""
    env = BatchedPistonball("Pistonball-v1", 2, workers=2)
    processes = [process for process, *_ in env._workers]
    if not (pid := os.fork()):
        del env
        os._exit(0)
    os.waitpid(pid, 0)
    assert all(process.is_alive() for process in processes)
    del env
    assert not any(process.is_alive() for process in processes)


def test_workers_may_be_spawned(batched, monkeypatch):
    monkeypatch.setattr(pistonball, "START_METHOD", "spawn")
    assert torch.equal(batched("Pistonball-v1", 1, workers=1).reset(), batched("Pistonball-v1", 1).reset())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda env: BatchedPistonball("Pistonball-v4", 2),
            "unknown environment 'Pistonball-v4': choose one of Piston",
        ),
        (lambda env: BatchedPistonball("Pistonball-v1", 2, workers=3), "workers is 3; allowed: 0 to 2"),
        (lambda env: env.step(torch.ones(2, 4, dtype=torch.int64)), r"shape \(2, 4\); allowed: .* \(2, 5\)"),
        (
            lambda env: env.valid(env.reset()[:, :4], torch.ones(2, 1, 5).long()),
            r"\(2, 4, 96, 96\); allowed: \(B, 5, 96",
        ),
        (lambda env: env.valid(env.reset(), torch.ones(2, 1, 5)), "actions are torch.float32"),
        (lambda env: CNNEncoder((4, 30, 96), 8), "images are 30 × 96; allowed: at least 36 × 36"),
    ],
)
def test_wrong_input_is_refused_in_one_line(batched, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(batched("Pistonball-v1-cstr", 2))
    assert "\n" not in str(caught.value)


def test_the_encoder_sees_pictures_only(batched):
    env = batched("Pistonball-v1-cstr", 2)
    encoder, observation = make_encoder(env, 16), env.reset()
    assert isinstance(encoder, CNNEncoder) and encoder(observation).shape == (2, 16)
    hidden, seen = observation.clone(), observation.clone()
    hidden[:, 4] = 255 - hidden[:, 4]
    seen[:, 3, 40:60] = 0
    assert torch.equal(encoder(hidden), encoder(observation)) and not torch.equal(encoder(seen), encoder(observation))
    shades = torch.tensor([255, 0], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 4, 96, 96)  # white is 0, black 1
    ends = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 4, 96, 96)
    torch.testing.assert_close(encoder(shades), encoder.net(ends))
    env.observation_dtype = torch.float32
    assert isinstance(make_encoder(env, 16), MLPEncoder)


def test_iar_a2c_trains_on_it_and_never_breaks_the_rule(batched):
    config = make_config("Pistonball-v1-cstr", "iar-a2c", {"n_draws": 8, "hidden": 16, "steps": 100})
    trainer = Trainer(config, batched("Pistonball-v1-cstr", 4))
    before = trainer.parameters["actor"].detach().clone()
    for _ in range(5):
        trainer.step()
    assert trainer.env.violations == 0 and not torch.equal(before, trainer.parameters["actor"])


def test_every_tensor_is_made_on_the_environments_device():
    torch.set_default_device("meta")
    try:
        env = BatchedPistonball("Pistonball-v1-cstr", 2, "cpu", torch.Generator("cpu").manual_seed(0), workers=0)
        step = env.step(env.fallback(env.reset()))
        assert env.valid(step.observation, env.fallback(step.observation)[:, None]).all()
        assert {tensor.device.type for tensor in (*step, env.violations, env.refused)} == {"cpu"}
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("name", ["Pistonball-v1", "Pistonball-v1-cstr"])
def test_gymnasium_checks_pass(name, recwarn):
    env = gymnasium.make(f"flowrl/{name}", render_mode="rgb_array").unwrapped
    assert isinstance(env, PistonballEnv) and (env.n_pistons, env.constrained) == (PISTONS[name], "-cstr" in name)
    check_env(env)
    told = [str(warning.message) for warning in recwarn]
    assert [message for message in told if "is out of date" not in message] == []  # pytest undoes the package's filter


def test_a_picture():
    frame = picture()
    assert frame.shape == (560, 280, 3) and frame.dtype == np.uint8
    assert (frame == [65, 159, 221]).all(-1).sum() > np.pi * 40**2 * 0.9  # the ball, of 40 pixels radius
    np.testing.assert_array_equal(frame, picture())
    assert (frame != picture(steps=0)).any()
