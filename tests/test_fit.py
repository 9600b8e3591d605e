"""flowrl.fit: a small assignment problem to near its optimum; every kind of environment; `act`, the curve, resume."""

import io
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import flowrl
from flowrl import envs
from flowrl.envs.gym import GymBatched

JOBS = (3, 5, 2)  # job d may be given to the first JOBS[d] of five workers
PAY = np.random.default_rng(0).random((3, 3, 5))  # by day, job, worker: how well a worker does a job
QUICK = {"progress": False, "gamma": 0.1, "entropy": 0.5, "hidden": 64, "normalise_reward": False}
FAST = {"progress": False, "n_envs": 4, "n_draws": 8, "hidden": 16, "policy_hidden": 8}


class Assignment(gymnasium.Env):
    """Three jobs to different workers; an observation is the day; an episode is four days."""

    observation_space, action_space = spaces.Discrete(3), spaces.MultiDiscrete(JOBS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.days = 0
        return self.next_day(), {}

    def next_day(self):
        self.day = int(self.np_random.integers(3))
        return self.day

    def step(self, action):
        assert self.action_space.contains(action)
        assert all_different(None, action)  # the environment's own check: no invalid action is ever executed
        reward = PAY[self.day, range(3), action].sum()
        self.days += 1
        return self.next_day(), reward, self.days == 4, False, {}


def all_different(observation, action):
    return len(set(action.tolist())) == len(action)


def different(observation, actions):
    """The same for a batch."""
    return (actions.sort(-1).values.diff(dim=-1) > 0).all(-1)


def pay(choose):
    """Expected return of an episode, choosing by day among the pays of all valid actions."""
    valid = [a for a in itertools.product(*map(range, JOBS)) if len(set(a)) == 3]
    return 4 * np.mean([choose([PAY[day, range(3), a].sum() for a in valid]) for day in range(3)])


def learnt(trainer, draws=100):
    """Expected return of an episode of the trained policy, from its actions on each of the three days."""
    return 4 * np.mean([PAY[day, range(3), trainer.act(day)].sum() for day in range(3) for _ in range(draws)])


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


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-gumbel", "factored-iar", "ar-iar"])
def test_more_actions_than_int64_counts(method):
    """Methods that draw never number them: they train, from a reward of a half upwards."""
    one = flowrl.fit(Lottery, below_90, method, 2560, **FAST | {"n_envs": 32, "gamma": 0.01, "actor_lr": 1e-2})
    assert one.curve["return"].iloc[-10:].mean() > 0.7 and one.env.violations == 0


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


# ---------------------------------------------------------------------------------------------------- act


@pytest.mark.parametrize(
    ("env", "n"),
    [("CartPole-v1", 1), ("ERA-v1", 20), (lambda: gymnasium.make("flowrl/ERA-v1", city="ERA-v1-free"), 20)],
)
def test_act_drives_the_plain_environment(env, n):
    trainer = flowrl.fit(env, steps=64, **FAST)
    plain = gymnasium.make(env if env == "CartPole-v1" else "flowrl/ERA-v1")
    observation, _ = plain.reset(seed=0)
    if env == "ERA-v1":
        for _ in range(n):
            action = trainer.act(observation)
            assert plain.unwrapped.is_valid(action)
            observation, *_ = plain.step(action)
    else:
        assert plain.action_space.contains(trainer.act(observation))
    before = dict(trainer.counts)
    trainer.act(observation)
    assert before == trainer.counts  # acting is not training
    with pytest.raises(ValueError, match=r"^the observation has the shape \(3, 3\); allowed: \("):
        trainer.act(np.zeros((3, 3)))


def test_act_is_never_invalid():
    """Even untrained, and with the environment's own numbers; without any valid action it says so."""
    answer = [True]

    def oracle(observation, actions):
        return (actions.sum(-1) == 13) & answer[0]

    class Shifted(Assignment):
        action_space = spaces.MultiDiscrete(JOBS, start=[2, 3, 4])

        def step(self, action):
            return self.next_day(), 0.0, False, False, {}

    trainer = flowrl.fit(Shifted, oracle, steps=16, **FAST)
    actions = np.array([trainer.act(day) for day in (0, 1, 2) * 20])
    assert (actions.sum(1) == 13).all()
    assert (actions >= (2, 3, 4)).all()
    assert len(np.unique(actions, axis=0)) > 3  # a stochastic policy's
    answer[0] = False
    with pytest.raises(flowrl.rejection.NoValidActionError):
        trainer.act(0)


# ---------------------------------------------------------------------------- what env may be; errors; settings


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
        (Assignment, {"lr": 0.1}, "unknown setting 'lr'; choose one of"),
        (Assignment, {"steps": -1}, "steps is -1"),
        (Assignment, {"seed": "x"}, "seed is 'x'"),
        (Assignment, {"device": "abacus"}, "device 'abacus' is not there"),
        (GymBatched(Assignment, 2), {}, r"n_envs \(2\) and device \(cpu\) of its own"),
        (GymBatched(Assignment, 4), {"device": "cpu"}, "of its own"),
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
    with pytest.warns(UserWarning, match=r"no draw was valid in \d\d% of the training steps.*valid_bonus larger than"):
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


# ------------------------------------------------------------------------------- the curve, going on, resuming


class Known(Assignment):
    """Pays 1 a day."""

    def step(self, action):
        return *super().step(action)[:1], 1.0, self.days == 4, False, {}


def test_the_curve_is_what_happened():
    answers = []

    def oracle(observation, actions):
        answers.append(different(observation, actions))
        return answers[-1]

    trainer = flowrl.fit(Known, oracle, steps=160, **FAST | {"n_draws": 64, "correction": "mean"})
    curve = trainer.curve
    assert (curve["return"] == 4).all()  # four days an episode
    assert curve["env_steps"].tolist() == list(range(16, 161, 16))  # all four environments end together
    assert (curve["episodes"] == 4).all()
    drawn = torch.cat([answer for answer in answers if answer.shape[1] == 64])  # the rest is the environment's check
    assert np.allclose(curve["valid_rate"], drawn.float().view(10, -1).mean(1))


def test_the_same_seed_is_the_same_run_and_another_is_not():
    first, again, other = (flowrl.fit(Assignment, different, steps=200, seed=s, **FAST) for s in (0, 0, 1))
    assert first.curve.equals(again.curve)
    assert torch.equal(first.parameters["actor"], again.parameters["actor"])
    assert not first.curve.equals(other.curve)
    days = [[trainer.act(0).tolist() for _ in range(9)] for trainer in (first, again, other)]
    assert days[0] == days[1] != days[2]


def test_training_goes_on_and_resumes_exactly():
    whole = flowrl.fit(Assignment, different, steps=100, **FAST)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    whole.train(100, progress=False)
    assert whole.env_steps == 200
    resumed = flowrl.fit(Assignment, different, steps=100, seed=0, **FAST)
    resumed.train(20, progress=False)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.train(100, progress=False)
    assert resumed.curve.equals(whole.curve)
    assert torch.equal(resumed.parameters["actor"], whole.parameters["actor"])
    assert np.array_equal(resumed.act(1), whole.act(1))


def test_progress_shows_return_and_valid_rate(capsys):
    flowrl.fit(Known, different, steps=64, **FAST | {"progress": True})
    shown = capsys.readouterr().err
    assert "Known iar-a2c" in shown
    assert "return=4.00" in shown
    assert "valid rate=0." in shown


def test_torch_keeps_its_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        flowrl.fit("CartPole-v1", steps=8, **FAST)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# -------------------------------------------------------------------------------------- a life after training


def test_saved_and_loaded_it_acts_and_resumes(tmp_path):
    """In new episodes by default; with resume bit for bit as if it had never stopped; the schedule knows the whole."""
    file, options = tmp_path / "mine.pt", FAST | {"n_steps": 2}
    whole = flowrl.fit(Assignment, different, steps=200, **options)
    half = flowrl.fit(Assignment, different, steps=120, total_steps=200, **options)
    half.save(file)
    expected = [half.act(day).tolist() for day in (0, 1, 2)]
    loaded = flowrl.load(file, Assignment, different)
    assert [loaded.act(day).tolist() for day in (0, 1, 2)] == expected
    assert loaded.env_steps == 120 and loaded.config == half.config
    assert loaded.train(80, progress=False).env_steps == 200
    resumed = flowrl.load(file, Assignment, different, resume=True).train(80, progress=False)
    for one in (half.train(80, progress=False), resumed):
        assert torch.equal(one.parameters["actor"], whole.parameters["actor"])
        assert torch.equal(one.parameters["critic"], whole.parameters["critic"])
        assert one.curve.equals(whole.curve)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pt"]


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
    flowrl.fit(lambda: gymnasium.make("CartPole-v1"), steps=8, **FAST).save(tmp_path / "d.pt")
    for name, env, resume, said in (
        (
            "a.pt",
            Longer,
            False,
            r"action space MultiDiscrete\(\[3 5 2\]\); this environment has .*\[3 5 3\]\)",
        ),
        ("b.pt", Assignment, False, "not a file that flowrl saved"),
        ("c.pt", Assignment, False, "not a file that this version of flowrl saved"),
        ("x.pt", Assignment, False, "no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            flowrl.load(tmp_path / name, env, different, resume=resume)


class Rebuilt(Assignment, gymnasium.utils.EzPickle):
    """A pickle of it is its constructor's arguments, not where it stands."""


def test_what_cannot_be_pickled_is_saved_without_its_episodes(tmp_path):
    flowrl.fit(Rebuilt, different, steps=8, **FAST).save(tmp_path / "a.pt")
    assert flowrl.load(tmp_path / "a.pt", Rebuilt, different).act(1) is not None
    with pytest.raises(ValueError, match="can't be pickled, so it is not in the file"):
        flowrl.load(tmp_path / "a.pt", Rebuilt, different, resume=True)


class Breaking(Assignment):
    """Breaks in its fifth episode."""

    episodes = 0

    def reset(self, **options):
        self.episodes += 1
        return super().reset(**options)

    def step(self, action):
        if self.episodes == 5:
            self.episodes = 0
            raise KeyError("lost")
        return super().step(action)


def test_an_error_leaves_what_was_learnt():
    """It can act, be saved and go on, in new episodes."""
    with pytest.raises(RuntimeError, match="^Breaking, environment 0, step 13 raised KeyError on action") as error:
        flowrl.fit(Breaking, different, steps=400, **FAST)
    trainer = error.value.trainer
    assert trainer.env_steps == 48 and len(trainer.curve) == 3
    assert trainer.train(32, progress=False).env_steps == 80
    assert (trainer.curve["return"] > 0).all()


def test_an_interrupt_stops_after_the_update_and_leaves_what_was_learnt():
    def press(trainer):
        if trainer.env_steps == 40:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="^interrupted at 40 of 200 steps; `train` goes on from here"):
        trainer = flowrl.fit(Assignment, different, steps=200, callback=press, **FAST | {"n_envs": 4})
    trainer.callbacks.clear()
    whole = flowrl.fit(Assignment, different, steps=200, **FAST)
    assert torch.equal(trainer.train(160, progress=False).parameters["actor"], whole.parameters["actor"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_callback_sees_every_update_and_can_stop():
    seen = []
    trainer = flowrl.fit(
        Assignment, different, steps=200, callback=lambda t: seen.append(t.env_steps) or t.env_steps < 20, **FAST
    )
    assert seen == [4, 8, 12, 16, 20] and trainer.env_steps == 20


def test_evaluation_and_the_best_weights():
    """Returns agree with stepping by hand; the best of the evaluations is kept and can be taken."""
    trainer = flowrl.fit(
        Assignment,
        different,
        steps=4000,
        eval_env=Assignment,
        eval_every=400,
        eval_episodes=8,
        **QUICK | {"n_envs": 16},
    )
    returns, counts = trainer.evaluate(n_episodes=400)
    assert counts["states"] == 4 * 400
    error = float(returns.std()) / 20 + 4 * np.std([PAY.sum(2)]) / 20
    assert abs(float(returns.mean()) - learnt(trainer)) < 4 * error
    assert torch.equal(returns, trainer.evaluate(n_episodes=400)[0])  # the same episodes
    assert trainer.best["env_steps"] % 400 == 0 and trainer.best["return"] >= float(returns.mean()) - 4 * error
    policy = {name: value.clone() for name, value in trainer.best["policy"].items()}
    trainer.callbacks.clear()
    trainer.train(400, progress=False).use_best()
    assert all(torch.equal(value, policy[name]) for name, value in trainer.policy.state_dict().items())
    with pytest.raises(ValueError, match="nothing was evaluated"):
        flowrl.fit(Assignment, different, steps=8, **FAST).use_best()


@pytest.mark.parametrize("method", ["iar-a2c", "mask", "ar-iar", "factored-iar"])
def test_greedy_actions_are_valid_and_no_worse(method):
    """They repeat themselves more than draws do, and earn at least as much once something was learnt."""
    trainer = flowrl.fit(Assignment, different, method, 6_000, **QUICK)
    draws = {greedy: [[tuple(trainer.act(day, greedy=greedy)) for _ in range(40)] for day in range(3)]
             for greedy in (False, True)}  # fmt: skip
    assert all(len(set(action)) == 3 for days in draws.values() for day in days for action in day)
    pays = {greedy: np.mean([PAY[day, range(3), a].sum() for day in range(3) for a in days[day]])
            for greedy, days in draws.items()}  # fmt: skip
    distinct = {greedy: sum(len(set(day)) for day in days) for greedy, days in draws.items()}
    assert distinct[True] <= distinct[False] and pays[True] > pays[False] - 0.02


class Endless(Known):
    def step(self, action):
        return *super().step(action)[:2], False, False, {}


def test_episodes_without_an_end_have_a_curve_and_an_evaluation():
    trainer = flowrl.fit(Endless, different, steps=400, **FAST)
    assert len(trainer.curve) == 10 and (trainer.curve["reward"] == 1).all() and trainer.curve["return"].isna().all()
    assert trainer.evaluate(n_episodes=2, most_steps=30)[0].tolist() == [30, 30]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_learns_at_any_reward_scale(scale):
    """Three quarters of the way to the optimum; without the scaling, which is the default, 0.04 of it at 1e-3."""

    class Scaled(Assignment):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, scale * reward, *rest

    settings = {name: value for name, value in QUICK.items() if name != "normalise_reward"}
    trainer = flowrl.fit(Scaled, different, steps=10_000, **settings)
    random, best = pay(np.mean), pay(max)
    assert (learnt(trainer) - random) / (best - random) > 0.75


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
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(flowrl.__file__).parents[1])})  # fmt: skip
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------ acting elsewhere


class Budget(gymnasium.Env):
    """Items to take, three of six at most and never the first with the second; info says which, or the method does."""

    observation_space, action_space = spaces.Dict(day=spaces.Discrete(3)), spaces.MultiBinary(6)
    ALL = np.array(list(itertools.product((0, 1), repeat=6)), dtype=np.int8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.next()

    def next(self):
        self.day = int(self.np_random.integers(3))
        return {"day": self.day}, {"action_mask": [self.fits(a) for a in self.ALL]}

    def fits(self, action):
        return bool(np.sum(action) <= 3 - (self.day == 2) and action[0] + action[1] < 2)

    def step(self, action):
        assert self.action_space.contains(action) and self.fits(action)
        observation, info = self.next()
        return observation, float(np.sum(action)), False, bool(self.np_random.random() < 0.1), info


def test_act_by_info_by_mask_and_by_the_environment():
    trainer = flowrl.fit(Budget, steps=64, **FAST)
    assert trainer.env.validity.where == "info['action_mask']"
    env = Budget()
    observation, info = env.reset(seed=0)
    for _ in range(20):
        action = trainer.act(observation, info=info)
        observation, *_, info = env.step(action)
    only = np.zeros(64, dtype=bool)
    only[5] = True
    assert trainer.act(observation, action_mask=only).tolist() == Budget.ALL[5].tolist()
    assert trainer.act(observation, action_mask=[Budget.ALL[7]]).tolist() == Budget.ALL[7].tolist()
    with pytest.raises(ValueError, match=r"come from info\['action_mask'\], which is not there: act"):
        trainer.act(observation)
    many = trainer.act_many([{"day": 0}, {"day": 1}], action_masks=[only, only[::-1]])
    assert [action.tolist() for action in many] == [Budget.ALL[5].tolist(), Budget.ALL[58].tolist()]

    live = flowrl.fit(Budget, oracle="fits", steps=64, **FAST)
    for _ in range(20):
        observation, *_ = env.step(live.act(observation, env=env))
    with pytest.raises(ValueError, match="come from env.fits, so say whose: act"):
        live.act(observation)


def test_act_takes_what_step_takes():
    """A Discrete's action is a number: Taxi takes no array."""
    name = next(name for name in gymnasium.registry if name.startswith("Taxi"))
    trainer, env = flowrl.fit(name, steps=64, **FAST), gymnasium.make(name)
    observation, info = env.reset(seed=0)
    for _ in range(20):
        action = trainer.act(observation, info=info)
        assert isinstance(action, np.int64) and info["action_mask"][action]
        observation, *_, info = env.step(action)


@pytest.mark.parametrize("env", ["ERA-v1", Assignment, "CartPole-v1"])
def test_act_refuses_what_is_not_finite(env):
    class Floats(Assignment):
        observation_space = spaces.Box(-1, 1, (2,))

        def next_day(self):
            super().next_day()
            return np.zeros(2, dtype=np.float32)

    ours = env is Assignment
    trainer = flowrl.fit(Floats if ours else env, different if ours else None, steps=8, **FAST)
    with pytest.raises(FloatingPointError, match="observation is not finite"):
        trainer.act(np.full(trainer.env.observation_shape, np.nan))


def test_few_valid_actions_and_one_that_is_known():
    """Nothing can be listed, hardly anything is drawn: what is known to be valid is executed, in training and act."""

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
    with pytest.warns(UserWarning, match="no draw was valid in 100%"):
        trainer = flowrl.fit(Wide, oracle="fits", steps=80, known_valid=lambda observation: nothing, **few)
    assert trainer.counts["fallbacks"] == 80 and trainer.env.violations == 0
    wide = Wide()
    observation, _ = wide.reset()
    assert (trainer.act(observation, env=wide) == 0).all()
