"""Hostile oracles: each ends in a defined outcome, and whatever they say, nothing invalid is executed.

What an oracle may return is in test_rejection, where validity is kept and who notices a wrong one in test_validity.
"""

import time

import numpy as np
import pytest
import torch
from gymnasium import spaces
from problems import FAST, Assignment, all_different, different

import flowrl
from flowrl.envs.city import generate
from flowrl.envs.era import BatchedERA
from flowrl.rejection import NoValidActionError

METHODS = ["iar-a2c", "iar-a2c-gumbel", "factored-iar", "ar-iar", "mask"]
QUICK = {name: value for name, value in FAST.items() if name != "n_envs"}
CITY = generate(5, 2, seed=1, max_hops=1, proximity=[(0, 1, 1)])


class Watched(BatchedERA):
    """A city that remembers where its resources went, and by its own hand whether they might."""

    def __init__(self):
        super().__init__(CITY, 4, "cpu", torch.Generator().manual_seed(0))
        self.executed, self.illegal = [], 0

    def step(self, actions):
        before, began = self.allocation.tolist(), self.time
        step = super().step(actions)
        self.executed.append(actions.clone())
        if began + 1 < self.horizon:  # else they stand where the next episode starts
            for here, there in zip(before, self.allocation.tolist(), strict=True):
                far = any(CITY.hops[i, j] > 1 for i, j in zip(here, there, strict=True))
                self.illegal += here != there and bool(far or CITY.hops[there[0], there[1]] > 1)
        return step


def trained(oracle=None, method="iar-a2c", steps=80, **changes):
    return flowrl.fit(Watched(), oracle, method, steps, **QUICK | changes)


def same(one, other) -> bool:
    """Bit for bit: weights, and every executed action."""
    executed = [torch.stack(trainer.env.executed) for trainer in (one, other)]
    return torch.equal(one.parameters["actor"], other.parameters["actor"]) and torch.equal(*executed)


def own(observation, actions):
    """The city's own rule, as a tensor function of the observation."""
    return OWN.valid(observation, actions)


OWN = BatchedERA(CITY, 1)


@pytest.mark.parametrize("method", METHODS)
def test_all_false_is_an_error_that_says_what_to_do_and_nothing_is_executed(method):
    env = Watched()
    with pytest.raises(NoValidActionError, match="^no valid action was found: the oracle refused all") as error:
        flowrl.fit(env, lambda observation, actions: torch.zeros(actions.shape[:2], dtype=torch.bool), method,
                   steps=8, **QUICK)  # fmt: skip
    assert "\n" not in str(error.value) and not env.executed and error.value.trainer.env_steps == 0


@pytest.mark.parametrize("method", METHODS)
def test_all_true_is_as_without_constraints(method):
    """The same run as with every action valid by the environment itself."""

    def everything(observation, actions):
        return torch.ones(actions.shape[:2], dtype=torch.bool)

    with_it, without = (flowrl.fit(Free, oracle, method, 40, **FAST | {"n_envs": 2}) for oracle in (everything, None))
    assert torch.equal(with_it.parameters["actor"], without.parameters["actor"])
    assert with_it.env.violations == without.env.violations == 0


class Free(Assignment):
    action_space = spaces.MultiDiscrete((3, 5, 2))

    def step(self, action):
        self.days += 1
        return self.next_day(), float(action.sum()), self.days == 4, False, {}


@pytest.mark.parametrize(
    "lie",
    [
        lambda: lambda observation, actions: torch.ones(actions.shape[:2], dtype=torch.bool),  # all true
        lambda: stale(),
        lambda: at_random(),
    ],
    ids=["all true", "stale", "random"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_city_executes_nothing_invalid_whatever_it_is_told(method, lie):
    """Its own check refuses, counts a violation, and nothing moves."""
    one = trained(lie(), method)
    assert one.env.illegal == 0 and one.env_steps == 80
    assert int(one.env.violations) > 0
    assert torch.isfinite(one.parameters["actor"]).all()


def stale():
    """Answers for the state before."""
    last = []

    def oracle(observation, actions):
        if not last or len(last[-1]) != len(observation):
            last.append(observation.clone())
        answer = own(last[-1], actions) | (actions == OWN.fallback(last[-1])[:, None]).all(-1)
        last[:] = [observation.clone()]
        return answer

    return oracle


def at_random():
    generator = torch.Generator().manual_seed(0)
    return lambda observation, actions: torch.rand(actions.shape[:2], generator=generator) < 0.5


def test_a_random_oracle_in_a_gymnasium_environment_is_told_that_it_contradicts_itself():
    """Asked again before an action is executed."""
    with pytest.raises(ValueError, match="^the oracle contradicts itself: .*nothing was executed"):
        flowrl.fit(Free, at_random(), steps=400, **FAST)


def test_a_stale_oracle_that_lets_something_through_meets_the_environments_own_error():
    """Days differ in what is valid; answers for the first day ever seen; the environment asserts its own rule."""

    class Days(Assignment):
        def step(self, action):
            assert self.fits(self.day, action)
            return super().step(action)

        @staticmethod
        def fits(day, action):
            return bool(all_different(None, action) and action[1] != day)

    first = []

    def oracle(observation, action):
        first.append(observation)
        return Days.fits(first[0], action)

    with pytest.raises(RuntimeError, match="raised AssertionError on action .* is valid according to the oracle given"):
        flowrl.fit(Days, flowrl.per_action(oracle), steps=400, **FAST)


@pytest.mark.parametrize("method", METHODS)
def test_whoever_writes_into_arguments_or_answers_harms_nobody(method):
    """The run is that of an honest oracle, bit for bit: it was given copies, and its one buffer was copied."""
    buffer = torch.zeros(4, 10_000, dtype=torch.bool)

    def writes(observation, actions):
        answer = buffer[: len(actions), : actions.shape[1]]
        answer.copy_(own(observation, actions))
        observation.fill_(float("nan"))
        actions.zero_()
        return answer

    assert same(trained(own, method, n_steps=2), trained(writes, method, n_steps=2))
    assert same(trained(own, method), trained(None, method))  # and an honest one is the city's own


def test_one_that_raises_at_the_thousandth_call_costs_no_step_before():
    """Its own error, unchanged; weights finite; what was learnt goes on, in new episodes, once the oracle is mended."""
    calls = []

    def breaks(observation, action):
        calls.append(1)
        if len(calls) == 1000:
            raise OSError("the solver's licence has expired")
        return all_different(observation, action)

    with pytest.raises(OSError, match="licence has expired") as error:
        flowrl.fit(Assignment, flowrl.per_action(breaks), steps=4000, **FAST)
    trainer = error.value.trainer
    before = trainer.env_steps
    assert 0 < before < 4000 and torch.isfinite(trainer.parameters["actor"]).all()
    trainer.train(40, progress=False)
    assert trainer.env_steps == before + 40 and trainer.env.violations == 0


def test_a_slow_one_changes_nothing_and_is_asked_no_more_often():
    """Each distinct action of a state once, as of a quick one."""

    def counted(seconds):
        asked = []

        def oracle(observation, action):
            asked.append((int(observation), tuple(action.tolist())))
            time.sleep(seconds)
            return all_different(observation, action)

        return flowrl.fit(Assignment, flowrl.per_action(oracle), steps=24, **FAST), asked

    (quick, asked), (slow, again) = counted(0), counted(0.001)
    assert asked == again and torch.equal(quick.parameters["actor"], slow.parameters["actor"])


@pytest.mark.parametrize("answer", [float("nan"), None, 1, 0.0, "yes", np.array([True, False]), torch.tensor(True)])
def test_one_action_at_a_time_anything_but_a_bool_is_an_error_that_shows_it(answer):
    with pytest.raises(ValueError, match=r"^the oracle returned .* for action \[.*\]; it must return a bool") as error:
        flowrl.fit(Assignment, flowrl.per_action(lambda observation, action: answer), steps=8, **FAST)
    assert "\n" not in str(error.value)


def test_numbers_instead_of_an_answer_are_an_error():
    """NaN among them."""
    with pytest.raises(ValueError, match=r"^the oracle returned torch.float32 \(4, 8\); it must return a torch.bool"):
        flowrl.fit(Assignment, lambda observation, actions: actions[..., 0] * float("nan"), steps=8, **FAST)


@pytest.mark.parametrize("env", [Assignment, Watched])
def test_an_answer_on_another_device_is_an_error_that_names_both(env):
    def elsewhere(observation, actions):
        return torch.ones(actions.shape[:2], dtype=torch.bool, device="meta")

    settings = FAST if env is Assignment else QUICK
    with pytest.raises(ValueError, match="^the oracle returned a tensor on meta; its arguments are on cpu"):
        flowrl.fit(env if env is Assignment else env(), elsewhere, steps=8, **settings)


def test_an_oracle_that_answers_for_the_whole_batch_only_is_told_the_shape_it_was_asked_in():
    """Redraws ask about some states: a fixed batch size is an error, not a wrong answer."""

    def four(observation, actions):
        valid = torch.zeros(4, actions.shape[1], dtype=torch.bool)
        valid[:2] = True
        return valid

    with pytest.raises(ValueError, match=r"^the oracle returned torch.bool \(4, .*must return a torch.bool tensor \(2"):
        flowrl.fit(Watched(), four, steps=8, **QUICK)


def test_greedy_actions_and_evaluation_refuse_it_too():
    """Not only training."""
    trainer = flowrl.fit(Assignment, different, steps=40, **FAST)
    trainer.env.validity.source = lambda observation, actions: torch.zeros(actions.shape[:2], dtype=torch.bool)
    for greedy in (False, True):
        with pytest.raises(NoValidActionError):
            trainer.act(0, greedy)
