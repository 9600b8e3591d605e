"""Hidden incidents: two simulators in step with each other, what may not leak, the oracle, checkpoints, gymnasium."""

import io

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from flowrl.envs.partial import GAMES, BatchedPartial, PartialEnv, register
from flowrl.rejection import all_actions

register()
NAMES = list(GAMES)
VALID = {  # by hand: all of them, and neighbours on the ring 0 - 1 - 2 - 3 - 0
    "ERA-Partial": [[1, 1, 1]] * 3,
    "Toy-Partial": [[1, 1]] * 2,
    "Joint-Cstr": [[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]],
}


class Injected(PartialEnv):
    """Takes its uniforms from a list."""

    draws: list

    def uniform(self):
        return self.draws.pop()


@pytest.mark.parametrize("name", NAMES)
def test_the_two_simulators_agree_step_by_step(name):
    B, steps, rng = 4, 230, np.random.default_rng(0)
    batched, singles = BatchedPartial(name, B), [Injected(name) for _ in range(B)]
    K, horizon = len(VALID[name]), 100
    first = rng.random(B)
    observation = batched.reset(torch.as_tensor(first))
    for env, u in zip(singles, first, strict=True):
        env.draws = [u]
        env.reset()
    refused, endings, rewards = 0, 0, set()
    for _ in range(steps):
        together = rng.integers(K, size=(B, 1)).repeat(2, axis=1)
        actions = together if rng.random() < 0.5 else rng.integers(-1, K + 1, (B, 2))
        valid = batched.valid(observation, torch.as_tensor(actions)[:, None])[:, 0]
        assert valid.tolist() == [env.is_valid(action) for env, action in zip(singles, actions, strict=True)]
        uniforms = rng.random((B, 2))
        step = batched.step(torch.as_tensor(actions), torch.as_tensor(uniforms))
        refused += int((~valid).sum())
        assert torch.equal(batched.refused, ~valid)
        for b, env in enumerate(singles):
            env.draws = [uniforms[b, 0]]
            seen, reward, *ended, info = env.step(actions[b])
            assert reward == step.reward[b] and ended == [step.terminated[b], step.truncated[b]]
            assert info["valid"] == valid[b] and (valid[b] or reward == 0)
            np.testing.assert_array_equal(step.final_observation[b].numpy(), seen)
            rewards.add(reward)
            if ended[1]:
                env.draws = [uniforms[b, 1]]
                seen, _ = env.reset()
            np.testing.assert_array_equal(step.observation[b].numpy(), seen)
        endings += int(step.truncated.all())
        assert step.truncated.any() == step.truncated.all()
        observation = step.observation
    assert endings == steps // horizon and refused == batched.violations > 0
    assert rewards == ({-5, 0, 10} if name == "Toy-Partial" else {0, 10})


def test_an_incident_stays_until_both_are_sent_there():
    env = BatchedPartial("Toy-Partial", 1)
    env.reset(torch.tensor([0.6]))  # district 1
    to_zero, to_one = torch.tensor([[0.1, 0.0]]), torch.tensor([[0.9, 0.0]])  # the next, if this one is served
    script = [([0, 0], to_zero, 0), ([0, 1], to_zero, -5), ([1, 0], to_zero, -5), ([1, 1], to_zero, 10),
              ([1, 1], to_one, 0), ([0, 0], to_one, 10), ([1, 1], to_one, 10), ([1, 2], to_zero, 0),
              ([1, 1], to_one, 10)]  # fmt: skip
    for action, uniforms, reward in script:
        assert env.step(torch.tensor([action]), uniforms).reward.tolist() == [reward]
    assert env.violations == 1


@pytest.mark.parametrize("name", NAMES)
def test_only_the_reward_tells_where_the_incident_is(name):
    """The same actions with the incident elsewhere: every other output is the same, at an episode's end too."""
    B, K = 16, len(VALID[name])
    here, there = (BatchedPartial(name, B, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    single = [PartialEnv(name), PartialEnv(name)]
    for seed, env in enumerate(single):
        env.reset(seed=seed)
    rng, told = np.random.default_rng(0), [False, False]
    for _ in range(110):
        actions = torch.as_tensor(rng.integers(K, size=(B, 2)))
        first, second = here.step(actions), there.step(actions)
        told[0] |= not torch.equal(first.reward, second.reward)
        for one, other in zip(first._replace(reward=here.refused), second._replace(reward=there.refused), strict=True):
            assert torch.equal(one, other)
        assert (first.observation == 1).all() and (first.final_observation == 1).all()
        (*rest, info), (*others, other_info) = (env.step(actions[0].numpy()) for env in single)
        told[1] |= rest.pop(1) != others.pop(1)
        assert np.array_equal(rest.pop(0), others.pop(0)) and rest == others and info == other_info
    assert all(told)


def test_incidents_are_uniform_over_all_districts():
    env = BatchedPartial("ERA-Partial", 30_000, generator=torch.Generator().manual_seed(3))
    here = torch.zeros(30_000, 2, dtype=torch.int64)
    first = env.step(here).reward == 10
    again = env.step(here).reward == 10
    assert not again[~first].any()  # it is still elsewhere
    for hit in (first, again[first]):
        assert abs(hit.sum() - len(hit) / 3) <= 4 * (len(hit) * 2 / 9) ** 0.5  # z < 4


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_knows_every_action(name):
    env, K = BatchedPartial(name, 2, window=3), len(VALID[name])
    valid = env.valid(torch.ones(2, 3), all_actions(env.action_sizes, "cpu").expand(2, -1, -1))
    assert valid.view(2, K, K).int().tolist() == [VALID[name]] * 2
    assert not env.valid(torch.ones(2, 3), torch.tensor([[[-1, 0], [0, K]]] * 2)).any()


def test_a_window_holds_past_observations():
    env, single = BatchedPartial("ERA-Partial", 2, window=4), PartialEnv("ERA-Partial", window=4)
    assert env.observation_shape == (4,) == single.observation_space.shape
    assert torch.equal(env.reset(), torch.ones(2, 4)) and single.reset()[0].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("observation", "actions", "message"),
    [
        (torch.ones(2, 2), torch.zeros(2, 5, 2, dtype=torch.int64), r"observation has the shape \(2, 2\); .* \(B, 1\)"),
        (torch.ones(2, 1), torch.zeros(2, 2, dtype=torch.int64), r"actions are torch.int64 of the shape \(2, 2\)"),
        (torch.ones(2, 1), torch.zeros(3, 5, 2, dtype=torch.int64), r"allowed: torch.int64 of the shape \(2, S, 2\)"),
        (torch.ones(2, 1), torch.zeros(2, 5, 2), "actions are torch.float32"),
    ],
)
def test_the_oracle_refuses_wrong_input_in_one_line(observation, actions, message):
    with pytest.raises(ValueError, match=message) as caught:
        BatchedPartial("ERA-Partial", 2).valid(observation, actions)
    assert "\n" not in str(caught.value)


def test_wrong_input_is_named():
    for make, message in [
        (lambda: BatchedPartial("ERA-Part", 2), "'ERA-Part': choose one of ERA-Partial, Toy-Partial, Joint-Cstr"),
        (lambda: PartialEnv("ERA-Part"), "choose one of ERA-Partial, Toy-Partial, Joint-Cstr"),
        (lambda: BatchedPartial("ERA-Partial", 0), "n_envs is 0; it must be at least 1"),
        (lambda: BatchedPartial("ERA-Partial", 1, window=0), "window is 0; it must be at least 1"),
        (lambda: PartialEnv("ERA-Partial", window=0), "window is 0; it must be at least 1"),
        (
            lambda: BatchedPartial("ERA-Partial", 2).step(torch.zeros(2, 1, dtype=torch.int64)),
            r"actions are torch.int64 of the shape \(2, 1\); allowed: .* \(2, 2\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def rewards(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    K = env.action_sizes[0]
    actions = torch.randint(K, (steps, env.n_envs, 1), generator=generator).expand(-1, -1, 2)
    return torch.stack([env.step(action).reward for action in actions])


def test_seeds():
    def run(seed):
        return rewards(BatchedPartial("ERA-Partial", 4, generator=torch.Generator().manual_seed(seed)), 120)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_a_checkpoint_continues_the_same_episode():
    env = BatchedPartial("Joint-Cstr", 4, generator=torch.Generator().manual_seed(1))
    env.step(torch.tensor([[0, 2]] * 4))
    rewards(env, 130)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    other = BatchedPartial("Joint-Cstr", 4, generator=torch.Generator().manual_seed(2))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(rewards(env, 90, 5), rewards(other, 90, 5))
    assert env.violations == other.violations == 4 and env.time == other.time
    for wrong in (BatchedPartial("ERA-Partial", 4), BatchedPartial("Joint-Cstr", 5)):
        with pytest.raises(ValueError, match="another game or batch"):
            wrong.load_state_dict(env.state_dict())


def test_digests_tell_the_games_apart():
    digests = {BatchedPartial(name, 1).digest for name in NAMES}
    assert len(digests) == 3 and all(len(bytes.fromhex(digest)) == 32 for digest in digests)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_made_on_the_environments_device(name):
    torch.set_default_device("meta")
    try:
        env = BatchedPartial(name, 2, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
        actions = torch.zeros(2, 2, dtype=torch.int64, device="cpu")
        for _ in range(101):
            step = env.step(actions)
        assert env.valid(step.observation, actions[:, None]).device.type == "cpu"
        assert {tensor.device.type for tensor in step} == {"cpu"}
        assert [tensor.dtype for tensor in step] == [torch.float32] * 2 + [torch.bool] * 2 + [torch.float32]
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("time", [0, 99])
def test_no_step_waits_for_the_device(time):
    """Fake tensors have no values: whatever would read one on the host raises."""
    env = BatchedPartial("Joint-Cstr", 2)
    env.time = time
    actions, uniforms = torch.zeros(2, 2, dtype=torch.int64), torch.rand(2, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = env.step(actions, uniforms)
        assert env.valid(step.observation, actions[:, None]).shape == (2, 1)
        with pytest.raises(DataDependentOutputException):
            step.reward.sum().item()


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_checks_pass(name, recwarn):
    env = gymnasium.make(f"flowrl/{name}")
    assert env.unwrapped.game.name == name
    check_env(env.unwrapped)
    assert [str(warning.message) for warning in recwarn] == []


def test_gymnasium_seeds_and_episode_length():
    env = gymnasium.make("flowrl/ERA-Partial")

    def run(seed):
        env.reset(seed=seed)
        return [env.step([t % 3] * 2)[1:4] for t in range(100)]

    assert run(7) == run(7) != run(8)
    assert [flags for _, *flags in run(7)] == [[False, False]] * 99 + [[False, True]]
