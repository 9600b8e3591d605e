"""flowrl.fit: a small assignment problem to near its optimum; every kind of environment, setting and error; `load`."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from problems import FAST, JOBS, QUICK, Assignment, Budget, all_different, different, learnt, pay

import flowrl
from flowrl import envs
from flowrl.envs.gym import GymBatched


class Lottery(gymnasium.Env):
    """Twenty dimensions of a hundred: 10⁴⁰ actions; what is drawn in the first decides the reward."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.MultiDiscrete([100] * 20)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert action[1] < 90  # never an invalid action
        return np.zeros(1, np.float32), float(action[0] < 50), True, False, {}


def below_90(observation, actions):
    return actions[..., 1] < 90


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-gumbel", "iar-a2c-q", "factored-iar", "ar-iar"])
def test_more_actions_than_int64_counts(method):
    """Methods that draw never number them: they train, from a reward of a half upwards."""
    one = flowrl.fit(Lottery, below_90, method, 2560, **FAST | {"n_envs": 32, "gamma": 0.01, "actor_lr": 1e-2})
    assert one.curve["return"].iloc[-10:].mean() > 0.7 and one.env.violations == 0


@pytest.mark.parametrize(
    ("env", "oracle", "settings", "method", "entropy"),
    [
        (Lottery, below_90, {}, "iar-a2c-gumbel", 0.3 * math.log(1000) / (20 * math.log(100))),
        (Lottery, below_90, {"method": "iar-a2c"}, "iar-a2c", 0.3 * math.log(1000) / (20 * math.log(100))),
        (Lottery, below_90, {"entropy": 0.2}, "iar-a2c-gumbel", 0.2),
        (Lottery, below_90, {"latent_kl": 0.01, "entropy": 0.2}, "iar-a2c", 0.2),  # only a flow with latents has it
        (Lottery, below_90, {"estimator": "latent", "entropy": 0.2}, "iar-a2c", 0.2),
        (type("Million", (Lottery,), {"action_space": spaces.MultiDiscrete([10] * 6)}), below_90, {}, "iar-a2c", 0.15),
        (Assignment, different, {}, "iar-a2c", 0.3),
    ],
)
def test_many_actions_have_their_method_and_a_bonus_no_heavier(env, oracle, settings, method, entropy):
    one = flowrl.fit(env, oracle, steps=8, **FAST | settings)
    assert one.config.method == method and one.config.entropy == pytest.approx(entropy)


def test_our_own_environments_are_as_said_however_many_their_actions():
    config = flowrl.fit("ERA-L-8x32", steps=8, **FAST).config
    assert config.method == "iar-a2c" and config.entropy == 0.3


@pytest.mark.parametrize("method", ["mask", "a2c"])
def test_methods_that_list_all_actions_say_why_they_cannot(method):
    with pytest.raises(
        ValueError, match=r"^\|A\| is about 10\^40: \w+ policies enumerate all, at most 200,000; .* only draw$"
    ):
        flowrl.fit(Lottery, None, method, 100, **FAST)


@pytest.mark.parametrize(
    ("method", "oracle", "steps", "least"),
    [
        ("iar-a2c", flowrl.per_action(all_different), 10_000, 0.95),
        ("mask", different, 20_000, 0.95),
        ("ar-iar", different, 10_000, 0.9),
    ],
)
def test_learns_an_assignment_problem(method, oracle, steps, least):
    """In seconds most of the way from random valid actions (0) to the optimum (1), both known by enumeration."""
    trainer = flowrl.fit(Assignment, oracle, method, steps, **QUICK)
    random, best = pay(np.mean), pay(max)
    assert (learnt(trainer) - random) / (best - random) > least
    assert trainer.env.violations == 0
    curve = trainer.curve["return"]
    assert abs(curve.iloc[0] - random) < 0.5 * (best - random)
    assert curve.iloc[-4:].mean() > random + 0.85 * (best - random)


def test_a_bandits_discount_is_0():
    """What is learnt is the day's pay alone, by the policy to near its optimum and by the critic: a value of four days,
    or of two, would be far off it."""
    trainer = flowrl.fit(Assignment, different, steps=6000, **QUICK | {"gamma": 0, "normalise_reward": False})
    random, best = pay(np.mean), pay(max)
    assert (learnt(trainer) - random) / (best - random) > 0.9
    value = trainer.critic(torch.cat([trainer.env.to_tensor(day) for day in range(3)])).mean().item()
    assert abs(value - learnt(trainer) / 4) < 0.1 * best / 4


# ----------------------------------------------------------------------- what env may be; errors; settings


def test_kinds_of_environment(tmp_path):
    city = tmp_path / "mine.json"
    envs.city.generate(4, 2, seed=0).to_json(city)
    batch = GymBatched("CartPole-v1", 4, generator=torch.Generator().manual_seed(0))
    for env, sizes in (
        ("ERA-v1", (6,) * 3), ("flowrl/ERA-v1", (6,) * 3), (str(city), (4,) * 2), (city, (4,) * 2),
        ("CartPole-v1", (2,)), (Assignment, JOBS), (batch, (2,)), (envs.make_batched("ERA-v1", 4), (6,) * 3),
    ):  # fmt: skip
        trainer = flowrl.fit(env, different if env is Assignment else None, steps=8, **FAST)
        assert trainer.env_steps == 8
        assert trainer.env.action_sizes == sizes
    assert flowrl.fit("ERA-v1", steps=0, **FAST).config.hash()  # a named city is one to the configuration, too


def test_an_oracle_beside_the_citys_own():
    """A city's actions that the given oracle refuses are not executed; its own check stands."""

    def not_to_2(observation, actions):
        asked.append(actions.shape)
        return batch.valid(observation, actions) & (actions[..., 0] != 2)

    asked, executed, batch = [], [], envs.make_batched("ERA-v1", 4, generator=torch.Generator().manual_seed(0))
    step = batch.step
    batch.step = lambda actions: executed.append(actions) or step(actions)
    trainer = flowrl.fit(batch, not_to_2, steps=40, **FAST)
    assert len(asked) >= 10
    assert len(executed) == 10 and set(torch.cat(executed)[:, 0].tolist()) == {0, 1, 3, 4, 5}
    assert int(trainer.env.violations) == 0


@pytest.mark.parametrize(
    ("env", "arguments", "said"),
    [
        ("ERA-v99", {}, "unknown environment 'ERA-v99'.*ERA-v1"),
        ("nowhere.json", {}, "nowhere.json"),
        ("Pendulum-v1", {}, "action space is Box"),
        (3, {}, "the environment is int; give"),
        (Assignment, {"oracle": 3}, "the oracle is int"),
        ("ERA-v1", {"oracle": 3}, "the oracle is int"),
        (Assignment, {"method": "sac"}, "unknown method 'sac'; choose one of: iar-a2c"),
        (
            Assignment,
            {"method": "a2c", "oracle": different},
            "a2c knows no constraints; with an oracle choose .*iar-a2c",
        ),
        (Assignment, {"lr": 0.1}, "unknown setting 'lr'; choose one of: (actor|critic)_lr, "),
        (Assignment, {"steps": -1}, "steps is -1"),
        (Assignment, {"steps": "100"}, "steps is '100'; it must be a whole number"),
        (Assignment, {"steps": float("inf")}, "steps is inf; it must be a whole number"),
        (Assignment, {"total_steps": 8.5}, "total_steps is 8.5; it must be a whole number"),
        (Assignment, {"callback": 3}, "callback is 3; it must be a function of the trainer"),
        (Assignment, {"callback": lambda: None}, "callback is .*; it must be a function of the trainer"),
        (Assignment, {"learning_rate": 0.1}, "choose one of: actor_lr, .*; all: python -m flowrl list --settings$"),
        (
            Assignment,
            {"eval_env": Lottery},
            r"^action_sizes of eval_env: \(100, .*; of env: \(3, 5, 2\); they must be the same$",
        ),
        (Assignment, {"seed": "x"}, "seed is 'x'"),
        (Assignment, {"device": "abacus"}, "device 'abacus' is not there"),
        (GymBatched(Assignment, 2), {}, r"n_envs \(2\) and device \(cpu\) of its own"),
        (GymBatched(Assignment, 4), {"device": "cpu"}, "of its own"),
        ("ERA-v1", {"oracle": "playable"}, "the oracle is 'playable'; only gymnasium environments are searched"),
    ],
)
def test_errors_are_one_line(env, arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        flowrl.fit(env, **FAST | {"steps": 8} | arguments)
    assert "\n" not in str(error.value)


def test_warns_where_draws_are_hardly_ever_valid(recwarn):
    narrow = flowrl.per_action(lambda observation, action: (np.asarray(action) == (2, 4, 0)).all())  # one of thirty
    flowrl.fit(Assignment, flowrl.per_action(all_different), steps=400, **FAST)
    assert not recwarn.list
    few = FAST | {"n_draws": 2, "max_draws": 2, "correction": "mean"}
    with pytest.warns(UserWarning, match=r"no draw was valid in \d\d% of the training steps.*valid_bonus of 0.3"):
        flowrl.fit(Assignment, narrow, steps=400, **few)


@pytest.mark.parametrize(
    ("sizes", "method", "said"),
    [
        (
            [10] * 6,
            "mask",
            r"^\|A\| is 1,000,000: masked policies enumerate all, at most 200,000; methods with iar only draw$",
        ),
        ([10] * 400, "mask", r"^\|A\| is about 10\^400: masked policies enumerate"),
        ([2**40], "iar-a2c", "^the largest action dimension has 1,099,511,627,776 categories: a policy would have"),
        ([2**62, 2], "ar-iar", r"^the largest action dimension .* at most 10,000,000; several dimensions"),
    ],
)
def test_too_many_actions(sizes, method, said):
    class Large(Assignment):
        action_space = spaces.MultiDiscrete(sizes)

    with pytest.raises(ValueError, match=said):
        flowrl.fit(Large, method=method, steps=8, **FAST)


def test_more_actions_than_can_be_numbered():
    """2^100 of them, with a budget: nothing numbers or lists them, and no more than fit are taken."""

    class Knapsack(Assignment):
        observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.MultiBinary(100)

        def next_day(self):
            return np.zeros(1, dtype=np.float32)

        def step(self, action):
            assert self.is_valid(action)
            return self.next_day(), float(action.sum()), True, False, {}

        def is_valid(self, action):
            return bool(action.sum() <= 55)

    trainer = flowrl.fit(Knapsack, steps=64, **FAST)
    assert trainer.env.validity.where == "env.is_valid(action)" and len(trainer.env.action_sizes) == 100
    one = Knapsack()
    assert one.is_valid(trainer.act(np.zeros(1), env=one)) and one.is_valid(trainer.act(np.zeros(1), True, env=one))


def test_the_same_seed_is_the_same_run_and_another_is_not():
    first, again, other = (flowrl.fit(Assignment, different, steps=200, seed=s, **FAST) for s in (0, 0, 1))
    assert first.curve.equals(again.curve)
    assert torch.equal(first.parameters["actor"], again.parameters["actor"])
    assert not first.curve.equals(other.curve)
    days = [[trainer.act(0).tolist() for _ in range(9)] for trainer in (first, again, other)]
    assert days[0] == days[1] != days[2]


@pytest.mark.parametrize("rates", [[0.5, 0.4, 0.1, 0.02], [0.02, 0.03, 0.02, 0.02], []])
def test_a_fallen_share_of_valid_draws_names_the_learning_rate_too(rates):
    """A valid_bonus alone doesn't mend what too large steps have spoilt."""
    trainer = flowrl.fit(Assignment, different, steps=8, **FAST)
    trainer.rows, trainer.counts["enumerations"] = [{"valid_rate": rate} for rate in rates], 4
    with pytest.warns(UserWarning, match="a valid_bonus of 0.3.* may help$") as warned:
        flowrl.fit.__globals__["_warn_of_few_valid"](trainer)
    said = "the valid rate fell from 50% to 2%: a valid_bonus of 0.3, or an actor_lr smaller than"
    assert (said in str(warned[0].message)) == (rates[:1] == [0.5])


def test_a_learning_rate_that_is_too_large_is_told_so():
    """Weights stay finite and the policy drifts out of what is valid, which a bonus doesn't mend."""
    settings = FAST | {"coupling": "mixture", "actor_lr": 0.1, "max_draws": 16}
    with pytest.warns(
        UserWarning,
        match=r"valid rate fell from [1-9]\d% to \d%: a valid_bonus of 0.3, or an actor_lr smaller than 0.1, may",
    ):
        flowrl.fit(Assignment, different, steps=800, **settings)


def test_errors_name_the_environment_that_a_lambda_makes():
    class Rich(Assignment):
        def step(self, action):
            return *super().step(action)[:1], 1e38, False, False, {}

    settings = FAST | {"normalise_reward": False, "n_steps": 1}
    with pytest.raises(FloatingPointError, match="^Rich, the rollout that ended at step 4: the gradient is not finite"):
        flowrl.fit(lambda: Rich(), different, steps=8, **settings)


def test_a_callback_sees_every_update_and_can_stop():
    seen = []
    trainer = flowrl.fit(
        Assignment, different, steps=200, callback=lambda t: seen.append(t.env_steps) or t.env_steps < 20, **FAST
    )
    assert seen == [4, 8, 12, 16, 20] and trainer.env_steps == 20


@pytest.mark.parametrize("scale", [1e-3, pytest.param(1e3, marks=pytest.mark.long)])
def test_learns_at_any_reward_scale(scale):
    """Three quarters of the way to the optimum; without the scaling, which is the default, 0.04 of it at 1e-3."""

    class Scaled(Assignment):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, scale * reward, *rest

    trainer = flowrl.fit(Scaled, different, steps=10_000, **QUICK)
    random, best = pay(np.mean), pay(max)
    assert (learnt(trainer) - random) / (best - random) > 0.75


class Bandit(gymnasium.Env):
    """One of twenty valid actions pays."""

    observation_space, action_space, prize = spaces.Box(0, 1, (1,)), spaces.MultiDiscrete([5, 5]), 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.prize * (action[0] == 3 and action[1] == 1), True, False, {}


@pytest.mark.parametrize("reward", [1e-3, pytest.param(1e-2, marks=pytest.mark.long), 1.0, 1e3])
def test_a_bandit_is_learnt_by_default_whatever_its_reward(reward):
    bandit = type("Bandit", (Bandit,), {"prize": reward})
    trainer = flowrl.fit(bandit, different, steps=3000, progress=False)
    chosen = trainer.act_many([np.zeros(1, np.float32)] * 200)
    assert np.mean([(action == (3, 1)).all() for action in chosen]) > 0.8


@pytest.mark.long
@pytest.mark.parametrize(("env", "least"), [("CliffWalking-v1", -40), ("FrozenLake-v1", 0.15)])
def test_rare_rewards_are_learnt_by_default(env, least):
    """In the default steps. In the 20,480 of docs/strangers.md it is a matter of the seed and of the processor."""

    def make():
        return gymnasium.make(env, max_episode_steps=200)

    trainer = flowrl.fit(make, progress=False)
    assert trainer.curve["return"].iloc[-10:].mean() > least


def test_tensorboard_is_said_or_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"^log='tensorboard' needs it: pip install 'flowrl-iar\[tensorboard\]'$"):
        flowrl.fit(Assignment, different, steps=8, log="tensorboard", **FAST)

    class Writer:
        written = []

        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            self.written.append((name, value, step))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    trainer = flowrl.fit(Assignment, different, steps=64, log="tensorboard", **FAST)
    rows = [(name, row[name], row["env_steps"]) for row in trainer.rows for name in ("return", "reward", "valid_rate")]
    assert Writer.written == rows and len(rows) >= 12


def test_a_named_city_is_loaded_by_its_name(tmp_path):
    fitted = flowrl.fit("ERA-v1", steps=40, **FAST)
    fitted.save(tmp_path / "city.pt")
    again = flowrl.load(tmp_path / "city.pt", resume=True)
    for one in (fitted, again):
        one.train(40, progress=False)
    assert torch.equal(fitted.parameters["actor"], again.parameters["actor"])


class Longer(Assignment):
    action_space = spaces.MultiDiscrete([3, 5, 3])


def test_files_that_do_not_fit_say_how(tmp_path):
    flowrl.fit(Assignment, different, steps=8, **FAST).save(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("text")
    torch.save({"weights": 1}, tmp_path / "c.pt")
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, changes in {
        "e": {"config": None}, "f": {"state": {key: saved["state"][key] for key in saved["state"] if key != "policy"}},
        "g": {"config": saved["config"] | {"hidden": 17}, "versions": saved["versions"] | {"torch": "1.0"}},
        "h": {"config": saved["config"] | {"speed": 1}}, "i": {"config": saved["config"] | {"hidden": "x"}},
    }.items():  # fmt: skip
        changed = {key: value for key, value in (saved | changes).items() if value is not None}
        torch.save(changed, tmp_path / f"{name}.pt")
    for name, env, resume, said in (
        (
            "a.pt",
            Longer,
            False,
            r"action space: MultiDiscrete\(\[3 5 2\]\); here it is: .*\[3 5 3\]\)",
        ),
        ("a.pt", None, False, "a.pt is of Assignment, which can't be made by that name: import .* give load the env="),
        ("b.pt", Assignment, False, "not a file that flowrl saved"),
        ("c.pt", Assignment, False, "not a file that this version of flowrl saved"),
        ("x.pt", Assignment, False, "no such file"),
        ("e.pt", Assignment, False, r"e.pt can't be read: KeyError: 'config'$"),
        ("f.pt", Assignment, False, r"f.pt can't be read: KeyError: 'policy'$"),
        ("g.pt", Assignment, True, r"g.pt can't be read: .*shape.*; saved with torch 1.0, here \d"),
        ("h.pt", Assignment, False, r"h.pt can't be read: ValueError: settings .* does not know: speed$"),
        ("i.pt", Assignment, False, r"i.pt can't be read: ConfigError: hidden is 'x'; "),
    ):
        with pytest.raises(ValueError, match=said) as error:
            flowrl.load(tmp_path / name, env, different, resume=resume)
        assert "\n" not in str(error.value)


STUDY = (
    "pandas",
    "scipy",
    "matplotlib",
    "seaborn",
    "yaml",
    "snakemake",
    "papermill",
    "IPython",
    "pettingzoo",
    "pygame",
)


def test_it_needs_no_more_than_its_own_packages(tmp_path):
    """With those of the extras out of reach: import, train, act, evaluate, save, load."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys({STUDY!r}))
import flowrl
trainer = flowrl.fit("CartPole-v1", steps=64, n_envs=4, progress=False)
trainer.save("a.pt")
assert flowrl.load("a.pt").act([0.0] * 4) in (0, 1)
assert len(trainer.evaluate(n_episodes=2)[0]) == 2 and trainer.rows
try:
    trainer.curve
except ImportError as error:
    assert "pip install pandas" in str(error)
else:
    raise AssertionError("a DataFrame without pandas")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(flowrl.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("when", ["raise", "end", "noop"])
@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-released", "mask"])
def test_act_does_where_nothing_is_valid_what_training_did(when, method):
    noop = {"known_valid": [0, 1, 0, 1, 0, 0]} if when == "noop" else {}
    trainer = flowrl.fit(Budget, method=method, steps=8, when_none_valid=when, **noop, **FAST)
    infos = [{"action_mask": np.zeros(64, dtype=bool)}, {"action_mask": np.arange(64) == 5}]
    days, errors = [{"day": 0}, {"day": 1}], {"raise": "^no valid action was found", "end": "the episode ends here"}
    for greedy in (False, True):
        if when == "noop":
            actions = trainer.act_many(days, greedy, infos=infos)
            assert [action.tolist() for action in actions] == [noop["known_valid"], Budget.ALL[5].tolist()]
        else:
            with pytest.raises(flowrl.rejection.NoValidActionError, match=errors[when]):
                trainer.act_many(days, greedy, infos=infos)
        assert trainer.act(days[1], greedy, info=infos[1]).tolist() == Budget.ALL[5].tolist()


def test_few_valid_actions_and_one_that_is_known():
    """Nothing can be listed, hardly anything is drawn: what is known to be valid is executed, in training and act, or,
    by default beyond a million actions, chains start from it."""

    class Wide(Budget):
        action_space, info = spaces.MultiBinary(30), {}

        def next(self):
            return {"day": 0}, {}

        def fits(self, action):
            return bool(np.sum(action) <= 2)

    few = FAST | {"max_draws": 8, "enumerate_limit": 0, "valid_bonus": 0.0}
    with pytest.raises(flowrl.rejection.NoValidActionError, match="^no valid action was found: raise .*known_valid"):
        flowrl.fit(Wide, oracle="fits", steps=8, **few)
    nothing = np.zeros(30, dtype=np.int8)
    trainer = flowrl.fit(Wide, oracle="fits", steps=80, known_valid=nothing, **few)
    assert (trainer.config.method, trainer.config.chains) == ("iar-a2c-gumbel", 8)
    assert (trainer.counts["chains"], trainer.counts["fallbacks"], trainer.env.violations) == (80, 0, 0)
    with pytest.warns(UserWarning, match="no draw was valid in 100%"):
        known = {"known_valid": lambda observation: nothing}
        trainer = flowrl.fit(Wide, oracle="fits", steps=80, chains=0, **few, **known)
    assert (trainer.config.method, trainer.config.chains) == ("iar-a2c-gumbel", 0)
    assert trainer.counts["fallbacks"] == 80 and trainer.env.violations == 0
    wide = Wide()
    observation, _ = wide.reset()
    assert (trainer.act(observation, env=wide) == 0).all()
