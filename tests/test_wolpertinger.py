"""flowrl.wolpertinger: nearest actions against brute force, the update against its equation written out, learning
against value iteration, repeatability, checkpoints, records.
"""

import io
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor

from flowrl import envs
from flowrl.envs.batched import Step
from flowrl.fit import fit
from flowrl.policies import to_digits, to_flat
from flowrl.rejection import all_actions
from flowrl.study import records, runs
from flowrl.study.config import ConfigError, make_config
from flowrl.wolpertinger import WolpertingerTrainer, n_neighbours, nearest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Table:
    """A known process: reward (X, |A|) and following state (X, |A|), X where it ends; truncated after `limit` steps."""

    def __init__(
        self, reward: Tensor, following: Tensor, sizes: tuple[int, ...], n_envs: int, limit: int, seed: int = 0
    ):
        self.reward, self.following, self.limit = reward, following, limit
        self.n_envs, self.device, self.action_sizes = n_envs, torch.device("cpu"), sizes
        self.n_states = len(reward)
        self.observation_shape = (self.n_states + 1,)
        self.generator = generator(seed)
        self.violations = torch.zeros((), dtype=torch.int64, device="cpu")
        self.reset()

    def reset(self) -> Tensor:
        self.state, self.time = self._starts(), torch.zeros(self.n_envs, dtype=torch.int64, device="cpu")
        return self.observe(self.state)

    def _starts(self) -> Tensor:
        return torch.randint(self.n_states, (self.n_envs,), generator=self.generator, device="cpu")

    def observe(self, state: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(state, self.n_states + 1).float()

    def step(self, action: Tensor) -> Step:
        flat = to_flat(action, self.action_sizes)
        reward, state = self.reward[self.state, flat], self.following[self.state, flat]
        self.time = self.time + 1
        terminated = state == self.n_states
        truncated = (self.time == self.limit) & ~terminated
        ended = terminated | truncated
        self.state = torch.where(ended, self._starts(), state)
        self.time = torch.where(ended, 0, self.time)
        return Step(self.observe(self.state), reward, terminated, truncated, self.observe(state))

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        return torch.ones(actions.shape[:2], dtype=torch.bool, device="cpu")

    def state_dict(self) -> dict:
        names = ("state", "time", "violations")
        return {name: getattr(self, name) for name in names} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.state, self.time, self.violations = state["state"], state["time"], state["violations"]
        self.generator.set_state(state["generator"])


# Two states, 3 × 2 actions. In 0: action 4 goes on to 1 for nothing, action 1 ends the episode for 0.6. In 1: action 3
# stays for 1. All others lead to 0 for nothing. With γ = 1/2 it is worth 2 to be in 1, and so 1 to be in 0.
SIZES = (3, 2)
REWARD = torch.tensor([[0, 0.6, 0, 0, 0, 0], [0, 0, 0, 1.0, 0, 0]])
FOLLOWING = torch.tensor([[0, 2, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
Q = torch.tensor([[0.5, 0.6, 0.5, 0.5, 1, 0.5], [0.5, 0.5, 0.5, 2, 0.5, 0.5]])

SMALL = {
    "hidden": 32, "policy_hidden": 32, "n_envs": 16, "steps": 1000, "gamma": 0.5, "value_scale": 1.0,
    "replay_size": 4000, "replay_batch": 64, "learning_starts": 48, "actor_lr": 1e-3, "neighbours_share": 0.5,
}  # fmt: skip


def trainer(env_seed: int = 0, **changes) -> WolpertingerTrainer:
    config = make_config("table", "wol-ddpg", SMALL | changes)
    return WolpertingerTrainer(config, Table(REWARD, FOLLOWING, SIZES, config.n_envs, 3, env_seed))


def parameters(of: WolpertingerTrainer) -> Tensor:
    return torch.cat([*of.parameters.values(), *of.targets.values()]).detach().clone()


def unsettle(one: WolpertingerTrainer) -> None:
    """Weights with which no value, proto-action or target is the same as another."""
    for seed, flat in enumerate((*one.parameters.values(), *one.targets.values())):
        with torch.no_grad():
            flat.copy_(0.5 * torch.randn(flat.shape, generator=generator(seed)))


# ------------------------------------------------------------------------------------------------ nearest actions


@pytest.mark.parametrize("sizes", [(3,), (4, 4, 4), (2, 5, 3), (1, 3), (7, 2, 1, 6)])
def test_nearest_against_brute_force(sizes):
    """Points in the grid, at its edges and beyond; k from 1 to |A|; distances ascend and no action comes twice."""
    actions = all_actions(sizes, "cpu")
    n = len(actions)
    span = torch.tensor(sizes, dtype=torch.float64)
    points = (1.4 * torch.rand(50, len(sizes), generator=generator(), dtype=torch.float64) - 0.2) * (span - 1)
    distances = (points[:, None] - actions).square().sum(-1)
    for k in {1, 2, max(1, n // 10), n}:
        found = nearest(points, sizes, min(k, n))
        assert ((found >= 0) & (found < span)).all()
        expected = distances.sort().values[:, : min(k, n)]
        torch.testing.assert_close((points[:, None] - found).square().sum(-1), expected)
        flat = to_flat(found, sizes)
        assert all(len(set(row)) == len(row) for row in flat.tolist())


def test_nearest_among_a_trillion_actions():
    """A dimension's fourth-nearest digit costs at least 2 more than its nearest, and 37 actions, those with the second
    nearest in at most two dimensions, cost at most 2 more: the 30 nearest have digits among the three nearest."""
    sizes, k = (32,) * 8, 30
    points = 3 + 25 * torch.rand(5, 8, generator=generator(), dtype=torch.float64)
    digits = (points[..., None] - torch.arange(32)).abs().topk(3, largest=False).indices  # (5, 8, 3)
    which = to_digits(torch.arange(3**8), (3,) * 8)  # (6561, 8)
    actions = digits.gather(2, which.T.expand(5, -1, -1)).transpose(1, 2)  # (5, 6561, 8)
    expected = (points[:, None] - actions).square().sum(-1).sort().values[:, :k]
    torch.testing.assert_close((points[:, None] - nearest(points, sizes, k)).square().sum(-1), expected)


@pytest.mark.parametrize("k", [0, 7])
def test_k_must_be_in_range(k):
    with pytest.raises(ValueError, match=f"k is {k}; allowed: 1 to"):
        nearest(torch.zeros(1, 2), SIZES, k)


@pytest.mark.parametrize("sizes, k", [((9, 9, 9), 72), ((10, 10, 10), 100), ((3,) * 10, 100), ((2,), 1), ((1,), 1)])
def test_a_tenth_of_the_actions_are_neighbours(sizes, k):
    assert n_neighbours(sizes, 0.1, 100) == k


# ------------------------------------------------------------------------------------------------ acting, learning


def neighbours_best(critic, observation: Tensor, proto: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Brute force: the best flat action, and its value, among the k nearest of all."""
    points = 2 * all_actions(SIZES, "cpu") / (torch.tensor(SIZES) - 1) - 1
    scale = (torch.tensor(SIZES) - 1) / 2  # distances are in digits
    distance = ((proto[:, None] - points) * scale).square().sum(-1)
    value = critic(observation, points.expand(len(observation), -1, -1))
    near = distance <= distance.sort().values[:, k - 1 : k]
    return value.masked_fill(~near, -torch.inf).max(1)[::-1]


@torch.no_grad()
def test_more_actions_than_can_be_numbered_are_refused():
    large = SimpleNamespace(action_sizes=(2,) * 64)
    with pytest.raises(ValueError, match=r"\|A\| is about 10\^19: Wol-DDPG numbers them, fewer than 2\^63"):
        WolpertingerTrainer(make_config("large", "wol-ddpg"), large)


def test_the_critic_chooses_among_the_neighbours():
    one = trainer()
    unsettle(one)
    observation = torch.randn(200, 3, generator=generator())
    choice, _ = one.decide(observation, generator())
    expected, _ = neighbours_best(one.critic, observation, one.policy(observation), 3)
    assert one.k == 3 and len(expected.unique()) > 3
    assert torch.equal(to_flat(choice.action, SIZES), expected)


def test_exploration_is_noise_on_the_proto_action_kept_in_its_range():
    one = trainer()
    observation = torch.randn(20_000, 3, generator=generator())
    clean, _ = one.decide(observation, generator())
    noisy, _ = one.decide(observation, generator(), exploration=0.2)
    assert float((noisy.proto - clean.proto).std()) == pytest.approx(0.2, rel=4 / math.sqrt(2 * 40_000))  # z-bound 4
    loud, _ = one.decide(observation, generator(), exploration=5.0)
    assert loud.proto.abs().max() == 1


def test_actions_are_uniform_until_learning_starts():
    """All six as often, z-bound 4, and no gradient step; then it learns."""
    one = trainer(n_envs=16, learning_starts=3200)
    while one.env_steps < 3184:
        one.step()
    assert one.updates == 0
    flat = to_flat(one.replay.action[one.replay.live > 0], SIZES)
    counts = flat.bincount(minlength=6).float()
    assert (counts - len(flat) / 6).abs().max() < 4 * math.sqrt(len(flat) * 5 / 36)
    one.step()
    assert one.updates == 1


def test_update_is_its_equation():
    """Mean of (r + γ max over the neighbours of f'(s') of Q' − Q)², nothing after a termination; τ of the way after."""
    one = trainer(exploration=1.0, learning_starts=10**6)
    for _ in range(30):
        one.interact()
    unsettle(one)
    batch = one.replay.sample(400, generator())
    with torch.no_grad():
        following = batch.next_observation
        _, next_value = neighbours_best(one.target_critic, following, one.target_policy(following), 3)
        next_value[batch.terminated] = 0
        point = 2 * batch.action / (torch.tensor(SIZES) - 1) - 1
        value = one.critic(batch.observation, point[:, None])[:, 0]
        expected = (batch.reward + 0.5 * next_value - value).square().mean()
    assert 0 < batch.terminated.float().mean() < 1
    targets = {name: flat.detach().clone() for name, flat in one.targets.items()}
    before = parameters(one)
    one.update(batch)
    torch.testing.assert_close(one.sums[3], expected)
    assert not torch.equal(parameters(one), before)
    for name, old in targets.items():
        torch.testing.assert_close(one.targets[name], old + 0.005 * (one.parameters[name] - old))


def test_the_critic_learns_what_every_action_is_worth():
    """Q* within 0.15, the best action of both states. Were truncation an end, 1 would be worth less than 2."""
    one = trainer(neighbours_share=1.0, critic_lr=3e-3, target_rate=0.05, learning_starts=10**6)
    for _ in range(100):
        one.interact()
    for _ in range(700):
        one.update(one.replay.sample(64, one.generator))
    with torch.no_grad():
        points = one.to_point(all_actions(SIZES, "cpu"))
        found = one.critic(torch.eye(2, 3), points.expand(2, -1, -1))
    assert (found - Q).abs().max() < 0.15
    action, _ = one.decide(torch.eye(2, 3), generator())
    assert to_flat(action.action, SIZES).tolist() == [4, 3]


def test_the_actor_climbs_the_critic():
    """One dimension of 11 digits, k = 1: the critic chooses nothing. Reward 1 − (a − best)²/25, best 2 or 9."""
    best = torch.tensor([2, 9])
    reward = 1 - (torch.arange(11) - best[:, None]).square() / 25
    config = make_config("table", "wol-ddpg", SMALL | {"neighbours_share": 0.01, "critic_lr": 3e-3, "actor_lr": 3e-3})
    one = WolpertingerTrainer(config, Table(reward, torch.full((2, 11), 2), (11,), config.n_envs, 3))
    assert one.k == 1
    for _ in range(400):
        one.step()
    choice, _ = one.decide(torch.eye(2, 3), generator())
    assert (choice.action[:, 0] - best).abs().max() <= 1
    assert one.env_steps == 6400 and one.updates == 398


# -------------------------------------------------------------------------- violations, repeatability, checkpoints


def test_invalid_actions_are_executed_and_counted():
    """By ERA's own check, as many as its oracle refuses beforehand; they move nothing."""
    config = make_config("ERA-v1", "wol-ddpg", SMALL | {"n_envs": 32})
    env, refused = envs.make_batched("ERA-v1", 32, generator=generator()), 0
    one = WolpertingerTrainer(config, env)
    for _ in range(20):
        before, allocation = one.observation, env.allocation
        one.interact()
        action = one.replay.action[(one.replay.here - 1) % len(one.replay.live), one.replay.column]
        invalid = ~env.valid(before, action[:, None])[:, 0]
        assert torch.equal(env.allocation[invalid], allocation[invalid])
        refused += int(invalid.sum())
    summary = one.summary()
    assert 0 < refused < 640
    assert int(env.violations) == summary["draws"] - summary["valid"] == refused
    assert summary["states"] == summary["draws"] == 640 and summary["asked"] == 0


def test_no_tensor_is_made_on_the_default_device():
    one = trainer()
    torch.set_default_device("meta")
    try:
        for _ in range(6):
            one.step()
    finally:
        torch.set_default_device(None)
    assert torch.isfinite(parameters(one)).all() and one.updates == 4


def test_same_seed_same_parameters():
    """Bit for bit, whatever torch's global generator; another seed, others."""
    found = []
    for seed, noise in ((1, 7), (1, 8), (2, 7)):
        torch.manual_seed(noise)
        one = trainer(seed=seed)
        for _ in range(6):
            one.step()
        found.append(parameters(one))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_checkpoint_continues_bit_for_bit():
    """Six steps, saved as on disk, ten more, round the replay buffer; a new trainer with other draws behind it."""
    one, other = trainer(seed=1, replay_size=160), trainer(seed=1, env_seed=99, replay_size=160)
    for _ in range(6):
        one.step()
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    other.step()
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for _ in range(10):
        one.step()
        other.step()
    assert torch.equal(parameters(one), parameters(other))
    assert all(torch.equal(getattr(one.replay, name), values) for name, values in vars(other.replay).items())
    assert str(one.summary()) == str(other.summary())
    assert one.env_steps == other.env_steps == 256


def test_a_record_is_the_same_when_stopped_and_resumed(tmp_path):
    """No exact return: an invalid choice has no place in a table of valid ones. Violations are on record."""
    small = {"steps": 640, "eval_every": 320, "eval_episodes": 2, "final_episodes": 4, "hidden": 16, "n_envs": 16}
    config = make_config("ERA-v1", "wol-ddpg", small | {"replay_size": 480, "learning_starts": 160})
    whole = runs.train(config, tmp_path / "whole", progress=False)
    run = runs.Run(config, tmp_path / "parts")
    step = run.trainer.step

    def step_and_stop():
        step()
        run.stop = run.trainer.env_steps >= 400

    run.trainer.step = step_and_stop
    with pytest.raises(runs.Interrupted, match="400 steps"):
        run.train(progress=False)
    parts = runs.train(config, tmp_path / "parts", progress=False)
    curves = [
        records.read_record(tmp_path / name / "ERA-v1" / "wol-ddpg" / "seed0")[0].drop(columns=["wall_s", "train_s"])
        for name in ("whole", "parts")
    ]
    pd.testing.assert_frame_equal(*curves)
    assert parts["final_return_mean"] == whole["final_return_mean"]
    assert parts["violations"] == whole["violations"] > 0
    assert whole["final_exact_return"] is None
    rate = curves[0]["valid_rate"].iloc[-1]
    assert 0 < rate < 1 and (curves[0]["oracle_calls"] == 0).all()
    found = runs.evaluate_checkpoint(tmp_path / "whole" / "ERA-v1" / "wol-ddpg" / "seed0")
    assert found["return_mean"] == whole["final_return_mean"] and "exact_return" not in found


@pytest.mark.parametrize(
    "how, words",
    [
        ({"method": "wol-ddpg"}, "method 'wol-ddpg'"),
        ({"policy": "wolpertinger", "latent_kl": 0}, "policy 'wolpertinger'"),
    ],
)
def test_fit_is_for_methods_that_ask_an_oracle(how, words):
    with pytest.raises(ConfigError, match=f"unknown {words}; choose one of: "):
        fit("ERA-v1", steps=0, progress=False, **how)


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"neighbours_share": 0}, "neighbours_share is 0.0; it must be in (0, 1]"),
        ({"target_rate": 1.5}, "target_rate is 1.5; it must be in (0, 1]"),
        ({"exploration": -1}, "exploration is -1.0; it must not be negative"),
        ({"max_neighbours": 0}, "max_neighbours is 0; it must be at least 1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(setting, words):
    with pytest.raises(ConfigError) as caught:
        make_config("ERA-v1", "wol-ddpg", setting)
    assert words in str(caught.value)
