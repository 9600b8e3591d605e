"""ERA: three simulators in step with each other, the oracle, refused actions, checkpoints, gymnasium's own checks."""

import io
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from flowrl.envs.city import City, generate
from flowrl.envs.era import BatchedERA, ERAEnv, ERAVectorEnv
from flowrl.policies import to_digits
from flowrl.truth import exact

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date")  # v1..v5 are sizes, not releases

UNUSUAL = City.from_dict(
    generate(5, 2, seed=4, max_hops=2, proximity=[[0, 1, 1]]).to_dict()
    | {
        "start": "uniform",
        "horizon": 7,
        "covered": [2, 1, 0, 1, 3],
        "uncovered": [-1, -5, 0, -2, -1],
        "travel_cost": (np.arange(25).reshape(5, 5) * (1 - np.eye(5)) / 50).tolist(),
    },
    "unusual",
)


class Injected(ERAEnv):
    """Takes its uniforms from a list."""

    def __init__(self, city):
        super().__init__(city)
        self.draws = []

    def uniform(self):
        return self.draws.pop(0)


@pytest.mark.parametrize("city", ["ERA-v4", "ERA-v5-tight", "ERA-v1-free", "ERA-L-8x32", UNUSUAL], ids=str)
def test_the_three_simulators_agree_step_by_step(city):
    B, steps, rng = 4, 230, np.random.default_rng(0)
    batched, vector, singles = BatchedERA(city, B), ERAVectorEnv(B, city), [Injected(city) for _ in range(B)]
    K, D, horizon = batched.city.districts, batched.city.resources, batched.horizon
    first = rng.random(B)
    observation = batched.reset(torch.as_tensor(first))
    from_vector, _ = vector.reset(options={"uniforms": first})
    for env, u in zip(singles, first, strict=True):
        env.draws.append(u)
    from_singles = np.stack([env.reset()[0] for env in singles])
    refused, endings = 0, 0
    for _ in range(steps):
        np.testing.assert_array_equal(observation.numpy(), from_vector)
        np.testing.assert_array_equal(observation.numpy(), from_singles)
        actions = rng.integers(-1, K + 1, (B, D)) if rng.random() < 0.1 else rng.integers(K, size=(B, D))
        valid = batched.valid(observation, torch.as_tensor(actions)[:, None])[:, 0]
        assert valid.tolist() == [env.is_valid(action) for env, action in zip(singles, actions, strict=True)]
        refused += int((~valid).sum())
        uniforms = rng.random((B, 2))
        step = batched.step(torch.as_tensor(actions), torch.as_tensor(uniforms))
        from_vector, reward, terminated, truncated, info = vector.step(actions, uniforms)
        np.testing.assert_array_equal(step.reward.numpy(), reward.astype(np.float32))
        final = []
        for b, env in enumerate(singles):
            env.draws.append(uniforms[b, 0])
            from_singles[b], r, *ended, last = env.step(actions[b])
            final.append(from_singles[b].copy())
            assert r == pytest.approx(reward[b], abs=1e-5) and ended == [terminated[b], truncated[b]]
            assert ended == [step.terminated[b], step.truncated[b]] and last["valid"] == valid[b]
            if ended[1]:
                assert info["final_info"]["violations"][b] == last["violations"]
                env.draws.append(uniforms[b, 1])
                from_singles[b] = env.reset()[0]
            else:
                assert info["violations"][b] == last["violations"] and info["valid"][b] == last["valid"]
        np.testing.assert_array_equal(step.final_observation.numpy(), final)
        if truncated.any():
            endings += 1
            assert truncated.all() and info["_final_obs"].all() and info["_final_info"].all()
            np.testing.assert_array_equal(np.stack(info["final_obs"]), final)
        else:
            assert "final_obs" not in info
        observation = step.observation
    assert endings == steps // horizon and refused > 0
    assert batched.violations == vector.era.violations == refused


def test_an_invalid_action_moves_nothing_and_is_counted():
    env = BatchedERA("ERA-v4-tight", 3)
    env.allocation = torch.tensor([[0, 1, 7]] * 3)  # neighbours of each other
    far = int(np.argmax(env.city.hops[0]))  # further than one hop
    actions = torch.tensor([[0, 1, 7], [far, 1, 7], [0, -1, env.city.districts]])
    observation = env.observe(env.allocation, env.emergency)
    assert env.valid(observation, actions[:, None]).tolist() == [[True], [False], [False]]
    step = env.step(actions)
    assert env.violations == 2 and env.refused.tolist() == [False, True, True]
    assert env.allocation.tolist() == [[0, 1, 7]] * 3
    assert all(abs(r) in np.float32(env.city.covered) for r in step.reward.tolist())  # nobody paid for a move


def test_the_oracle_knows_every_action_in_every_state():
    city = City.load("ERA-v1-tight")
    env, K = BatchedERA(city, 1), city.districts
    actions = to_digits(torch.arange(K**3), (K,) * 3)
    observations = exact.states(city)[:: K + 1]  # no matter where the last emergency was
    expected = torch.tensor(
        [
            [
                all(city.hops[x, y] <= 1 for x, y in zip(a, b, strict=True))
                and all(city.hops[x, y] <= 2 for x, y in itertools.combinations(b, 2))
                for b in actions.tolist()
            ]
            for a in actions.tolist()
        ]
    )
    assert torch.equal(env.valid(observations, actions.expand(K**3, -1, -1)), expected)


@pytest.mark.parametrize(
    ("observation", "actions", "message"),
    [
        (torch.zeros(2, 9, 4), torch.zeros(2, 5, 3, dtype=torch.int64), r"observation has the shape \(2, 9, 4\)"),
        (torch.zeros(2, 9, 5), torch.zeros(2, 3, dtype=torch.int64), r"actions are torch.int64 of the shape \(2, 3\)"),
        (
            torch.zeros(2, 9, 5),
            torch.zeros(3, 5, 3, dtype=torch.int64),
            r"allowed: torch.int64 of the shape \(2, S, 3\)",
        ),
        (torch.zeros(2, 9, 5), torch.zeros(2, 5, 3), "actions are torch.float32"),
    ],
)
def test_the_oracle_refuses_wrong_input_in_one_line(observation, actions, message):
    with pytest.raises(ValueError, match=message) as caught:
        BatchedERA("ERA-v4", 2).valid(observation, actions)
    assert "\n" not in str(caught.value)


def test_a_step_refuses_actions_of_another_shape():
    with pytest.raises(ValueError, match=r"actions are torch.int64 of the shape \(2, 1\); allowed: .* \(2, 3\)"):
        BatchedERA("ERA-v4", 2).step(torch.zeros(2, 1, dtype=torch.int64))


def test_observations_tell_all_states_apart():
    star = City.from_dict(
        {  # districts 1 and 2 look alike but for what they are worth
            "districts": 3,
            "resources": 2,
            "edges": [[0, 1, 0.1], [0, 2, 0.1]],
            "covered": [1, 1, 5],
            "uncovered": [-1, -1, -5],
            "profiles": [{"weight": 1, "scores": [0, 0, 0]}],
            "epsilon": 0,
            "max_hops": None,
            "proximity": [],
            "travel_costs": True,
            "horizon": 5,
            "start": "uniform",
        },
        "star",
    )
    observations = exact.states(star)
    assert len(torch.unique(observations, dim=0)) == 9 * 4
    env = BatchedERA(star, 1)
    one, two = (env.observe(torch.tensor([[0, k]]), torch.tensor([3]))[0] for k in (1, 2))
    assert one.tolist() == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert two.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    both = env.observe(torch.tensor([[0, 0]]), torch.tensor([2]))[0]
    assert both.tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def rollout(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    taken = []
    for _ in range(steps):
        actions = torch.randint(env.city.districts, (env.n_envs, env.city.resources), generator=generator)
        taken.append(env.step(actions))
    return torch.cat([step.observation for step in taken]), torch.cat([step.reward for step in taken])


def test_seeds():
    def run(seed):
        return rollout(BatchedERA("ERA-v2", 4, generator=torch.Generator().manual_seed(seed)), 120)

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(1), strict=True))
    assert not torch.equal(run(1)[0], run(2)[0])


def test_a_checkpoint_continues_the_same_episode():
    env = BatchedERA("ERA-v2", 4, generator=torch.Generator().manual_seed(1))
    rollout(env, 130)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    other = BatchedERA("ERA-v2", 4, generator=torch.Generator().manual_seed(2))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(rollout(env, 90, 5), rollout(other, 90, 5), strict=True))
    assert env.violations == other.violations > 0 and env.time == other.time
    for wrong in (BatchedERA("ERA-v3", 4), BatchedERA("ERA-v2", 5)):
        with pytest.raises(ValueError, match="another city or batch"):
            wrong.load_state_dict(env.state_dict())


@pytest.mark.parametrize("name", ["ERA-v4", "ERA-v4-free"])
def test_every_tensor_is_made_on_the_environments_device(name):
    torch.set_default_device("meta")
    try:
        env = BatchedERA(name, 2, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
        actions = torch.zeros(2, 3, dtype=torch.int64, device="cpu")
        for _ in range(101):
            step = env.step(actions)
        assert env.valid(step.observation, actions[:, None]).device.type == "cpu"
        assert {tensor.device.type for tensor in step} == {"cpu"}
        assert exact.states(env.city).device.type == "cpu"
        greedy = exact.optimal_policy(env.city)[..., None]
        assert exact.policy_return(env.city, greedy, np.ones(greedy.shape)) <= exact.optimum(env.city)["optimal"] + 1e-9
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("time", [0, 99])
def test_no_step_waits_for_the_device(time):
    """Fake tensors have no values: whatever would read one on the host raises."""
    env = BatchedERA("ERA-v4", 2)
    env.time = time
    actions, uniforms = torch.zeros(2, 3, dtype=torch.int64), torch.rand(2, 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = env.step(actions, uniforms)
        assert env.valid(step.observation, actions[:, None]).shape == (2, 1)
        with pytest.raises(DataDependentOutputException):
            step.reward.sum().item()


def test_emergencies_follow_the_transition_table():
    env = BatchedERA("ERA-v1", 40_000, generator=torch.Generator().manual_seed(3))
    table, previous = env.city.transition, env.emergency
    for _ in range(2):
        env.step(env.allocation)
        pairs = torch.bincount(previous * 6 + env.emergency, minlength=42).view(7, 6).numpy()
        n = pairs.sum(1, keepdims=True)
        assert (abs(pairs - n * table) <= 4 * np.sqrt(n * table * (1 - table))).all()  # z < 4
        previous = env.emergency


@pytest.mark.parametrize("name", ["ERA-v1", "ERA-v4", "ERA-v4-tight", "ERA-v5-free"])
def test_gymnasium_checks_pass(name, recwarn):
    check_env(gymnasium.make(f"flowrl/{name}", render_mode="rgb_array").unwrapped)
    assert [warning for warning in recwarn if "is out of date" not in str(warning.message)] == []


def test_gymnasium_seeds_and_episode_length():
    env = gymnasium.make("flowrl/ERA-v2")
    first = [env.reset(seed=7)[0], *(env.step([0, 0, 0])[0] for _ in range(10))]
    again = [env.reset(seed=7)[0], *(env.step([0, 0, 0])[0] for _ in range(10))]
    np.testing.assert_array_equal(first, again)
    env.reset()
    flags = [env.step([0, 0, 0])[2:4] for _ in range(100)]
    assert flags == [(False, False)] * 99 + [(False, True)]


@pytest.mark.parametrize("mode", [None, "vector_entry_point"])
def test_make_vec_gives_the_batched_simulator(mode):
    env = gymnasium.make_vec("flowrl/ERA-v3-tight", num_envs=5, vectorization_mode=mode)
    assert isinstance(env.unwrapped, ERAVectorEnv) and env.metadata["autoreset_mode"].value == "SameStep"
    observation, _ = env.reset(seed=1)
    assert observation in env.observation_space and env.action_space.shape == (5, 3)
    np.testing.assert_array_equal(observation, env.reset(seed=1)[0])


def test_the_vector_environment_keeps_gymnasiums_conventions():
    ours = gymnasium.make_vec("flowrl/ERA-v1", num_envs=2)
    theirs = gymnasium.make_vec(
        "flowrl/ERA-v1",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    for env in (ours, theirs):
        env.reset(seed=0)
        for _ in range(100):
            *returned, info = env.step(np.zeros((2, 3), np.int64))
        env.described = [(part.dtype, part.shape) for part in returned], set(info), type(info["final_obs"])
        env.described += (info["final_obs"].dtype, info["final_obs"][0].shape, set(info["final_info"]))
    assert ours.described == theirs.described


def test_a_users_city_through_gymnasium(tmp_path):
    generate(5, 2, seed=1).to_json(tmp_path / "mine.json")
    env = gymnasium.make("flowrl/City", city=tmp_path / "mine.json")
    assert env.action_space.nvec.tolist() == [5, 5] and env.unwrapped.city.name == "mine"
    assert gymnasium.make_vec("flowrl/City", num_envs=3, city=str(tmp_path / "mine.json")).era.n_envs == 3


def test_pictures():
    env = gymnasium.make("flowrl/ERA-v4", render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (480, 640, 3) and before.dtype == np.uint8
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 50  # colours
    env.step(env.unwrapped.allocation)
    assert (env.render() != before).any()
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), before)
    vector = gymnasium.make_vec("flowrl/ERA-v4", num_envs=2, render_mode="rgb_array")
    vector.reset(seed=0)
    assert [frame.shape for frame in vector.render()] == [(480, 640, 3)] * 2
    assert gymnasium.make("flowrl/ERA-v4").unwrapped.render() is None


def test_staying_put_is_the_fallback_and_always_valid():
    """Along 60 steps of it and of random valid moves, in a city too large to enumerate its actions."""
    env = BatchedERA("ERA-L-6x10", 8, generator=torch.Generator().manual_seed(0))
    rng, observation = np.random.default_rng(0), env.reset()
    for t in range(60):
        stay = env.fallback(observation)
        assert torch.equal(stay, env.allocation) and env.valid(observation, stay[:, None]).all()
        may = env.city.may_move[env.allocation.numpy()]
        moves = torch.from_numpy(env.city.draw(may, rng))
        observation = env.step(stay if t % 2 else moves).observation
    assert env.violations == 0
