"""flowrl.fitted: `act` in every form, the curve, evaluation, going on, errors and Ctrl-C, saving and resuming."""

import io
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from problems import FAST, JOBS, PAY, QUICK, Assignment, Budget, Known, different, learnt

import flowrl

# -------------------------------------------------------------------------------------------------- acting


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
    assert trainer.act_many([]) == []
    for name, given in (("action_masks", [only]), ("infos", [info] * 3), ("envs", [])):
        with pytest.raises(ValueError, match=f"^there are 2 observations and {len(given)} {name}; give one each$"):
            trainer.act_many([{"day": 0}, {"day": 1}], **{name: given})
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


def test_act_tells_a_pair_that_reset_returned():
    trainer = flowrl.fit(Assignment, different, steps=8, **FAST)
    with pytest.raises(ValueError, match="^the observation is a pair, as reset returns it: give"):
        trainer.act(Assignment().reset(seed=0))


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


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-gumbel", "ar-iar"])
def test_greedy_actions_draw_from_no_generator_but_the_trainers(method):
    """The same whatever torch's global generator is at, and it stays there."""
    chosen = []
    for seed in (0, 1):
        trainer = flowrl.fit(Assignment, different, method, 64, **FAST)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        chosen.append([tuple(action) for action in trainer.act_many([0, 1, 2] * 8, greedy=True)])
        assert torch.equal(torch.get_rng_state(), before)
        assert len({tuple(trainer.act(0, greedy=True)) for _ in range(8)}) == 1  # the same for a state every time
    assert chosen[0] == chosen[1]


# ------------------------------------------------------------------------- the curve, going on, evaluating


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


class Endless(Known):
    def step(self, action):
        return *super().step(action)[:2], False, False, {}


def test_episodes_without_an_end_have_a_curve_and_an_evaluation():
    trainer = flowrl.fit(Endless, different, steps=400, **FAST)
    assert len(trainer.curve) == 10 and (trainer.curve["reward"] == 1).all() and trainer.curve["return"].isna().all()
    assert trainer.evaluate(n_episodes=2, most_steps=30)[0].tolist() == [30, 30]


def test_evaluation_and_the_best_weights():
    """Returns agree with stepping by hand; the best of the evaluations is kept and can be taken."""
    trainer = flowrl.fit(
        Assignment,
        different,
        steps=4000,
        eval_env=Assignment,
        eval_every=400,
        eval_episodes=8,
        **QUICK | {"n_envs": 16, "n_steps": 1},
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


# -------------------------------------------------------------------------------------------------- saving


def test_saved_and_loaded_it_acts_and_resumes(tmp_path):
    """In new episodes by default; with resume bit for bit as if it had never stopped; the schedule knows the whole."""
    file, options = tmp_path / "mine.pt", FAST | {"n_steps": 2}
    whole = flowrl.fit(Assignment, different, steps=200, **options)
    half = flowrl.fit(Assignment, different, steps=120, total_steps=200, **options)
    half.save(file)
    expected = [half.act(day).tolist() for day in (0, 1, 2)]
    loaded = flowrl.load(file, Assignment, different)
    assert repr(loaded).endswith(": 120 steps; valid actions: the oracle given>")
    assert [loaded.act(day).tolist() for day in (0, 1, 2)] == expected
    assert loaded.env_steps == 120 and loaded.config == half.config
    assert loaded.train(80, progress=False).env_steps == 200
    resumed = flowrl.load(file, Assignment, different, resume=True).train(80, progress=False)
    for one in (half.train(80, progress=False), resumed):
        assert torch.equal(one.parameters["actor"], whole.parameters["actor"])
        assert torch.equal(one.parameters["critic"], whole.parameters["critic"])
        assert one.curve.equals(whole.curve)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pt"]


def test_a_file_is_not_read_without_the_oracle_it_was_trained_with(tmp_path):
    """Every action would count as valid."""
    flowrl.fit(Assignment, different, steps=8, **FAST).save(tmp_path / "a.pt")
    said = "saved with source of valid actions: the oracle given; here it is: nowhere.*; give load the oracle= that"
    with pytest.raises(ValueError, match=said):
        flowrl.load(tmp_path / "a.pt", Assignment)


class Rebuilt(Assignment, gymnasium.utils.EzPickle):
    """A pickle of it is its constructor's arguments, not where it stands."""


def test_what_cannot_be_pickled_is_saved_without_its_episodes(tmp_path):
    """And says so when it is saved, not only when it is too late."""
    trainer = flowrl.fit(Rebuilt, different, steps=8, **FAST)
    with pytest.warns(UserWarning, match=r"a.pt is without the environments, as they can't be pickled: only load\("):
        trainer.save(tmp_path / "a.pt")
    assert flowrl.load(tmp_path / "a.pt", Rebuilt, different).act(1) is not None
    with pytest.raises(ValueError, match="the environments are not in the file .*; only resume=False$"):
        flowrl.load(tmp_path / "a.pt", Rebuilt, different, resume=True)


def test_what_an_error_stopped_is_saved_without_its_episodes(tmp_path):
    """Its environments are half a step ahead of it."""
    with pytest.raises(RuntimeError) as error:
        flowrl.fit(Breaking, different, steps=400, **FAST)
    with pytest.warns(UserWarning, match="without the environments, as training was stopped by an error"):
        error.value.trainer.save(tmp_path / "a.pt")
    loaded = flowrl.load(tmp_path / "a.pt", Breaking, different)
    assert loaded.env_steps == 48 and loaded.train(32, progress=False).env_steps == 80
    with pytest.raises(ValueError, match="an error had stopped training"):
        flowrl.load(tmp_path / "a.pt", Breaking, different, resume=True)


@pytest.mark.parametrize("evaluated", [True, False])
def test_resumed_training_evaluates_logs_and_calls_back_as_uninterrupted(tmp_path, evaluated):
    """Given the same eval_env and callback, whose evaluations are as far apart as they would have been."""
    seen = {"whole": [], "half": [], "resumed": []}

    def listening(name):
        listen = {"callback": lambda trainer: seen[name].append((trainer.env_steps, trainer.evaluated))}
        return listen | ({"eval_env": Assignment} if evaluated else {})

    options = FAST | {"eval_every": 48, "eval_episodes": 3}
    whole = flowrl.fit(Assignment, different, steps=200, **listening("whole"), **options)
    half = flowrl.fit(Assignment, different, steps=100, total_steps=200, **listening("half"), **options)
    half.save(tmp_path / "a.pt")
    resumed = flowrl.load(tmp_path / "a.pt", Assignment, different, resume=True, **listening("resumed"))
    resumed.train(100, progress=False)
    assert seen["half"] + seen["resumed"] == seen["whole"]
    if evaluated:
        assert len({at for _, at in seen["whole"]}) == 6  # 0, 48, 96, 144, 192, 200
        whole.train(100, progress=False)  # past the end no more often than before it
        assert {at for _, at in seen["whole"] if at > 200} == {240, 288}
        assert resumed.best["return"] == whole.best["return"] and resumed.best["env_steps"] == whole.best["env_steps"]
    else:
        assert resumed.best is None
