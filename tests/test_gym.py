"""flowrl.envs.gym: against gymnasium environments stepped one by one; refusal, oracles, spaces, checkpoints."""

import io

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from problems import Counter

from flowrl import per_action
from flowrl.a2c import Trainer, seeded
from flowrl.envs.gym import GymBatched
from flowrl.rejection import NOTHING, NoValidActionError, all_actions
from flowrl.study.config import A2C_METHODS as METHODS
from flowrl.study.config import make_config

SMALL = {"hidden": 16, "policy_hidden": 8, "n_envs": 4, "n_draws": 8, "elbo_batch": 16, "posterior_fit_steps": 2}


class Observing(Counter):
    """A counter that shows something else."""

    def __init__(self, space, shown=None):
        super().__init__(length=2)
        self.observation_space, self.shown = space, shown

    def reset(self, **options):
        super().reset(**options)
        return self.observation_space.sample() if self.shown is None else self.shown, {}

    def step(self, action):
        return (self.reset()[0], *super().step(action)[1:])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def even(observation, actions):
    """The sum of the action must be even."""
    return actions.sum(-1) % 2 == 0


# ------------------------------------------------------------------------------------- against stepping by hand


def by_hand(env, seed, actions):
    """What one environment does with actions: rows of observation, reward, terminated, truncated, final observation."""
    observation, _ = env.reset(seed=seed)
    rows = [(observation, None, None, None, None)]
    for action in actions:
        final, reward, terminated, truncated, _ = env.step(action)
        observation = env.reset()[0] if terminated or truncated else final
        rows.append((observation, reward, terminated, truncated, final))
    return rows


@pytest.mark.parametrize(("limit", "ending"), [(500, "terminated"), (7, "truncated")])
def test_agrees_with_gymnasium(limit, ending):
    """Observations, rewards, terminations, truncations, final observations and seeds: equal, number by number."""

    def make():
        return gymnasium.make("CartPole-v1", max_episode_steps=limit)

    actions = torch.randint(2, (60, 3, 1), generator=generator(1))
    batch = GymBatched(make, 3, generator=generator())
    batch.generator.manual_seed(5)
    got = [(batch.reset(), None, None, None, None), *(batch.step(action) for action in actions)]
    seeds = torch.randint(2**31, (3,), generator=generator(5)).tolist()
    ended = 0
    for i, seed in enumerate(seeds):
        for t, row in enumerate(by_hand(make(), seed, actions[:, i, 0].numpy())):
            for ours, theirs in zip(got[t], row, strict=True):
                assert theirs is None or np.array_equal(ours[i].numpy(), np.float32(theirs))
        ended += sum(getattr(step, ending)[i].item() for step in got[1:])
        assert not any(step.terminated[i] and step.truncated[i] for step in got[1:])
    assert ended >= 3  # the comparison covered the ends of episodes
    assert batch.violations == 0
    assert (batch.action_sizes, batch.observation_shape) == ((2,), (4,))


def test_ends_at_different_times_and_reused_arrays():
    """Environments are out of step; the final observation survives an environment that overwrites its array."""
    lengths = iter((5, 2, 3, 3))
    batch = GymBatched(lambda: Counter(length=next(lengths)), 4, generator=generator())
    ones = torch.ones(4, 3, dtype=torch.int64)
    steps = [batch.step(ones) for _ in range(3)]
    assert steps[1].terminated.tolist() == [False, True, False, False]
    assert steps[1].observation.tolist() == [[2, 6], [0, 0], [2, 6], [2, 6]]
    assert steps[1].final_observation.tolist() == [[2, 6]] * 4
    assert steps[2].terminated.tolist() == [False, False, True, True]
    assert steps[2].observation.tolist() == [[3, 9], [1, 3], [0, 0], [0, 0]]
    assert steps[2].final_observation.tolist() == [[3, 9], [1, 3], [3, 9], [3, 9]]
    assert steps[0].observation.tolist() == [[1, 3]] * 4  # earlier steps stand
    for step in steps:
        assert step.observation.dtype == step.final_observation.dtype == step.reward.dtype == torch.float32


def test_seeds_reach_every_environment():
    def rewards(seed):
        batch = GymBatched(Counter, 8, generator=generator(seed))
        return torch.stack([batch.step(torch.zeros(8, 3, dtype=torch.int64)).reward for _ in range(5)])

    first = rewards(0)
    assert torch.equal(first, rewards(0))
    assert len(first[0].unique()) == 8
    assert not torch.equal(first, rewards(1))


# ------------------------------------------------------------------------------------------------- refusal


def test_an_invalid_action_is_refused_and_counted():
    """Nothing in the batch is executed, and the next valid step goes on from where it was."""
    made = []
    batch = GymBatched(lambda: made.append(Counter()) or made[-1], 3, generator=generator(), oracle=even)
    good, bad = torch.tensor([[1, 1, 0]] * 3), torch.tensor([[1, 1, 0], [2, 4, 1], [0, 1, 0]])
    batch.step(good)
    with pytest.raises(ValueError, match=r"^action \[2, 4, 1\] is invalid in environment 1 \(2 of 3 are\); .*$"):
        batch.step(bad)
    assert batch.violations == 2
    assert [len(env.given) for env in made] == [1, 1, 1]
    assert batch.step(good).observation.tolist() == [[2, 4]] * 3
    assert batch.violations == 2


@pytest.mark.parametrize("action", [[3, 0, 1], [0, 5, 1], [0, 0, 2], [-1, 0, 1]])
def test_a_category_that_does_not_exist_is_refused(action):
    asked = []
    batch = GymBatched(Counter, 1, oracle=lambda o, a: asked.append(a) or even(o, a))
    with pytest.raises(ValueError, match="nothing was executed"):
        batch.step(torch.tensor([action]))
    assert batch.violations == 1
    assert all((a < torch.tensor([3, 5, 2])).all() and (a >= 0).all() for a in asked)


def test_the_refusal_uses_the_environments_own_observation():
    """Not what the sampler says it was: the oracle is asked about the state that the environment is in."""
    batch = GymBatched(Counter, 2, oracle=lambda o, a: a.sum(-1) > o[:, 1:])
    one, two = torch.tensor([[1, 0, 0]] * 2), torch.tensor([[2, 0, 0]] * 2)
    assert batch.valid(torch.zeros(2, 2), torch.stack((one, 0 * one), 1)).tolist() == [[True, False]] * 2
    batch.step(one)
    with pytest.raises(ValueError, match="invalid"):
        batch.step(one)
    batch.step(two)
    assert batch.violations == 2


# -------------------------------------------------------------------------------------- oracles and fallbacks


@pytest.mark.parametrize(
    ("oracle", "said"),
    [
        (lambda o, a: a.sum(-1), "torch.int64"),
        (lambda o, a: torch.ones(2, dtype=torch.bool), r"\(2,\)"),
        (lambda o, a: np.ones((2, 7), dtype=bool), "ndarray"),
        (lambda o, a: True, "bool"),
        (lambda o, a: None, "NoneType"),
    ],
)
def test_oracles_that_answer_something_else(oracle, said):
    batch = GymBatched(Counter, 2, oracle=oracle)
    with pytest.raises(ValueError, match=rf"^the oracle returned .*{said}.*; it must return .*\(2, 7\) for actions "):
        batch.valid(torch.zeros(2, 2), torch.zeros(2, 7, 3, dtype=torch.int64))


def test_valid_checks_its_arguments():
    batch = GymBatched(Counter, 2)
    assert batch.valid(torch.zeros(2, 2), torch.zeros(2, 7, 3, dtype=torch.int64)).shape == (2, 7)
    for other in (torch.ones(2, 2), torch.zeros(5, 2)):  # states are asked, and an observation says less than a state
        with pytest.raises(ValueError, match="^the observations are not those that the environments gave last"):
            batch.valid(other, torch.zeros(len(other), 7, 3, dtype=torch.int64))
    for actions in (torch.zeros(2, 7, 3), torch.zeros(2, 7, 2).long(), torch.zeros(3, 7, 3).long(), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="^actions are torch"):
            batch.valid(torch.zeros(2, 2), actions)
    for actions in (torch.zeros(2, 3), torch.zeros(3, 3).long(), torch.zeros(2, 2).long()):
        with pytest.raises(ValueError, match="^actions are torch"):
            batch.step(actions)


@pytest.mark.parametrize("name", ["ERA-v4", "Joint-Cstr"])
def test_our_own_constraints_are_not_lost_on_the_way_through_gymnasium(name):
    """Made by gymnasium they judge by their own method, each copy for the state that it is in."""
    batch = GymBatched(lambda: gymnasium.make(f"flowrl/{name}"), 2, generator=generator())
    assert batch.validity.where == "env.is_valid(action)"
    for _ in range(3):
        actions = all_actions(batch.action_sizes, "cpu").expand(2, -1, -1)
        valid = batch.valid(batch._observation, actions)
        for env, answers in zip(batch._envs, valid, strict=True):
            assert answers.tolist() == [env.unwrapped.is_valid(action) for action in actions[0].numpy()]
        batch.step(actions[0][valid.int().argmax(1)])
    assert batch.violations == 0


def test_constraints_that_nothing_tells_are_refused():
    with pytest.raises(ValueError, match="has constraints .* no oracle was given"):
        GymBatched(lambda: gymnasium.make("flowrl/Pistonball-v1-cstr"), 2)
    GymBatched(lambda: gymnasium.make("flowrl/Pistonball-v1-cstr"), 2, oracle=per_action(lambda o, a: True))


def test_per_action():
    """One at a time gives what the batched oracle gives; it sees plain arrays; a repeated action is judged once."""
    seen = []

    def fits(observation, action):
        seen.append((observation.shape, tuple(action.tolist())))
        return (action.sum() + observation[0]) % 2 == 0

    observation = torch.arange(4.0)[:, None]
    actions = torch.randint(3, (4, 50, 2), generator=generator())
    assert torch.equal(per_action(fits)(observation, actions), (actions.sum(-1) + observation) % 2 == 0)
    assert {shape for shape, _ in seen} == {(1,)}
    assert len(seen) == sum(len(state.unique(dim=0)) for state in actions)
    for fn, said in ((lambda o, a: None, "None"), (lambda o, a: 1, "1"), (lambda o, a: a == a, "array")):
        with pytest.raises(ValueError, match=rf"^the oracle returned {said}.*must return a bool$"):
            per_action(fn)(observation, actions)
    with pytest.raises(ValueError, match="^per_action was given int"):
        per_action(3)
    with pytest.raises(ValueError, match=r"^per_action was given a function \(action\); it takes one of \(observation"):
        per_action(lambda action: True)
    one = actions[..., :1]  # a Discrete's: what is asked of an array of one is answered by one
    assert torch.equal(per_action(lambda o, a: a < 2)(observation, one), one[..., 0] < 2)


@pytest.mark.parametrize(
    ("space", "sizes", "least"),
    [
        (spaces.Discrete(4, start=7), (4,), 7),
        (spaces.MultiDiscrete([3, 2], start=[-1, 5]), (3, 2), [-1, 5]),
        (spaces.MultiDiscrete(np.array([3, 2], dtype=np.int32), dtype=np.int32), (3, 2), [0, 0]),
    ],
)
def test_the_environments_own_numbers(space, sizes, least):
    """`start` is added for the environment and the oracle, and taken from what is known to be valid."""
    made, asked = [], []

    def oracle(observation, actions):
        asked.append(actions)
        return torch.ones(actions.shape[:2], dtype=torch.bool)

    batch = GymBatched(
        lambda: made.append(Counter(space)) or made[-1], 2, oracle=oracle, known_valid=lambda o: np.add(least, 1)
    )
    assert batch.action_sizes == sizes
    batch.step(torch.zeros(2, len(sizes), dtype=torch.int64))
    assert np.array_equal(made[0].given[0], least)
    assert made[0].given[0].dtype == space.dtype
    assert asked[0].tolist() == [[np.atleast_1d(least).tolist()]] * 2
    assert (batch.fallback(torch.zeros(2, 2)) == 1).all()


def test_the_fallback_is_executed_where_no_draw_is_valid():
    """Only the action that the fallback knows is valid, and it is too rare to be drawn."""
    known, made = torch.tensor([9, 9, 9, 9]), []

    def make():
        made.append(Counter(spaces.MultiDiscrete([10] * 4), length=2))
        return made[-1]

    def oracle(observation, actions):
        return (actions == known).all(-1)

    config = make_config("counter", "iar-a2c", SMALL | {"max_draws": 16, "enumerate_limit": 0})
    batch = GymBatched(make, 4, generator=generator(), oracle=oracle, known_valid=known.numpy())
    trainer = Trainer(config, batch)
    for _ in range(3):
        trainer.step()
    assert trainer.counts["fallbacks"] == 12
    assert batch.violations == 0
    assert all((np.array(env.given) == 9).all() for env in made)
    for wrong in ([9] * 3, [10] * 4, "x"):
        for when in ("raise", "end", "noop"):
            with pytest.raises(ValueError, match="^known_valid: .* is no action of MultiDiscrete"):
                GymBatched(make, 4, oracle=oracle, known_valid=wrong, when_none_valid=when)
        batch = GymBatched(make, 4, oracle=oracle, known_valid=lambda observation, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="^known_valid: .* is no action of MultiDiscrete"):
            batch.fallback(torch.zeros(4, 2))


@pytest.mark.parametrize("action", [[9, 9, 9], 3, None])
def test_a_noop_outside_the_space_is_never_executed(action):
    """Also where a function of the observation names it; in the space's own form otherwise."""
    made = []

    def make():
        made.append(Counter())
        return made[-1]

    nothing = per_action(lambda observation, action: False)
    rows = torch.full((2, 3), NOTHING)
    known = {"known_valid": lambda observation: action, "when_none_valid": "noop"}
    with pytest.raises(ValueError, match="^Counter, environment 0, step 1: .*known_valid"):
        GymBatched(make, 2, oracle=nothing, **known).step(rows)
    assert not any(env.given for env in made)
    GymBatched(make, 2, oracle=nothing, **known | {"known_valid": (1, 2, 0)}).step(rows)
    given = made[-1].given[0]
    assert isinstance(given, np.ndarray) and given.tolist() == [1, 2, 0]


class Coin(gymnasium.Env):
    """Heads or tails; only heads leaves one action of 10⁴, which pays."""

    observation_space, action_space = spaces.Discrete(2), spaces.MultiDiscrete([10] * 4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(2))
        return self.side, {}

    def is_valid(self, action):
        return self.side == 0 and bool((np.asarray(action) == 9).all())

    def step(self, action):
        assert self.is_valid(action)
        return self.reset()[0], 1.0, False, False, {}


def test_what_is_known_in_one_state_is_executed_there_though_not_in_another():
    def known(side):
        return np.full(4, 9) if side == 0 else None

    config = make_config("coin", "iar-a2c", SMALL | {"max_draws": 16, "enumerate_limit": 0})
    batch = GymBatched(Coin, 4, generator=generator(), known_valid=known, when_none_valid="end")
    trainer, heads = Trainer(config, batch), 0
    for _ in range(8):
        expected = trainer.observation[:, 0] == 1  # one-hot
        rollout = trainer.rollout()
        assert torch.equal(rollout.reward[0] == 1, expected) and torch.equal(rollout.terminated[0], ~expected)
        heads += int(expected.sum())
    assert 8 < heads < 24 and batch.none_valid == 32 - heads and batch.violations == 0
    batch = GymBatched(Coin, 4, generator=generator(), known_valid=known, when_none_valid="noop")
    with pytest.raises(ValueError, match="Coin, environment .*known_valid, the noop, is None there$"):
        trained(Trainer(config, batch), 8)


class Sinking(Counter):
    """Nothing is valid any more once the count is 2; the action 0 0 0 is."""

    def action_masks(self):
        return np.full(10, self.count[0] < 2)

    def step(self, action):
        return *super().step(action)[:2], False, False, {}


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-paper", "iar-a2c-gumbel", "ar-iar", "factored-iar", "mask"])
@pytest.mark.parametrize("limit", [0, 100])
def test_a_state_where_nothing_is_valid(method, limit):
    """An error, or the end of the episode, worth 0, or a no-op, as the user says; counted; never an invalid action."""
    made = []
    alone = {"n_steps": 1, "posterior_fit_steps": 0}  # no step but those below
    config = make_config("counter", method, SMALL | {"max_draws": 16, "enumerate_limit": limit} | alone)

    def make():
        made.append(Sinking())
        return made[-1]

    with pytest.raises(NoValidActionError, match=r"^no valid action was found: .*when_none_valid.* \[2, \d+\]$"):
        trained(Trainer(config, GymBatched(make, 4, generator=generator())), 3)
    made.clear()
    trainer = Trainer(config, GymBatched(make, 4, generator=generator(), when_none_valid="end"))
    trainer.step(), trainer.step()
    before = trainer.observation
    rollout = trainer.rollout()
    assert rollout.terminated.all() and (rollout.reward == 0).all() and (trainer.observation == 0).all()
    assert torch.equal(rollout.final_observation[0], before)
    assert not rollout.decisions[0].sampled.any()  # no policy gradient from an action that nobody drew
    trainer.update(rollout)
    assert (trainer.env.none_valid, int(trainer.env.violations)) == (4, 0)
    assert [len(env.given) for env in made] == [2] * 4
    made.clear()
    batch = GymBatched(make, 4, generator=generator(), when_none_valid="noop", known_valid=[0, 0, 0])
    trained(Trainer(config, batch), 5)
    assert batch.none_valid == 12
    assert all((np.array(env.given[2:]) == 0).all() and len(env.given) == 5 for env in made)


# ------------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), (4, 4, 3)),
        (spaces.Box(0, 1, (), np.float64), (1,)),
        (spaces.Discrete(5, start=2), (5,)),
        (spaces.MultiBinary(3), (3,)),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2, 2))), (6,)),
        (spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(0, 1, (2,)))), (7,)),
    ],
)
def test_observations_of_every_kind(space, shape):
    """All become float32 of one shape, as gymnasium flattens them, in a batch and singly."""
    space.seed(0)
    shown = space.sample()
    batch = GymBatched(lambda: Observing(space, shown), 2)
    expected = np.asarray(shown if shape == space.shape else spaces.flatten(space, shown), dtype=np.float32)
    assert batch.observation_shape == shape
    step = batch.step(torch.zeros(2, 3, dtype=torch.int64))
    for observation in (batch.reset(), step.observation, step.final_observation):
        assert observation.dtype == torch.float32
        assert np.array_equal(observation.numpy(), [expected, expected])
    assert np.array_equal(batch.to_tensor(shown).numpy(), [expected])


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (lambda: Observing(spaces.Sequence(spaces.Discrete(2))), "no fixed size"),
        (lambda: Counter(spaces.Box(0, 1, (2,))), "the action space is Box"),
        (lambda: Counter(spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1))), "the action space is Dict"),
        ("Pendulum-v1", "the action space is Box"),
    ],
)
def test_spaces_that_do_not_fit(env, said):
    with pytest.raises(ValueError, match=said) as error:
        GymBatched(env, 2)
    assert "\n" not in str(error.value)


def test_large_bytes_that_are_read_unscaled_are_told():
    space = spaces.Box(0, 255, (28, 28), np.uint8)
    with pytest.warns(UserWarning, match="^Observing: the observation is uint8, no picture, and read unscaled; "):
        GymBatched(lambda: Observing(space, np.full((28, 28), 200, np.uint8)), 2)


@pytest.mark.parametrize("argument", [{"oracle": 3}, {"when_none_valid": "x"}, {"n_envs": 0}])
def test_arguments_that_do_not_fit(argument):
    with pytest.raises(ValueError, match=f"{next(iter(argument))} is"):
        GymBatched(Counter, **{"n_envs": 2} | argument)
    with pytest.raises(ValueError, match="known_valid, the action to execute then, was not given"):
        GymBatched(Counter, 2, when_none_valid="noop")


# ------------------------------------------------------------------------------ what an environment gets wrong


class Faulty(Counter):
    """A counter whose third step returns something else."""

    def __init__(self, fault):
        super().__init__(length=9)
        self.fault = fault

    def step(self, action):
        result = super().step(action)
        return self.fault(*result) if self.count[0] == 3 else result


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (lambda o, r, *rest: (o, np.nan, *rest), FloatingPointError, "the reward is nan, not finite"),
        (lambda o, r, *rest: (o, 1e39, *rest), FloatingPointError, r"the reward is 1e\+39, not finite as float32"),
        (lambda o, r, *rest: (o * np.inf, r, *rest), FloatingPointError, "the observation is not finite as float32"),
        (lambda o, r, *rest: (o, np.ones(2), *rest), ValueError, r"the reward is array\(\[1., 1.\]\); it must be one"),
        (lambda o, r, *rest: (o, None, *rest), ValueError, "the reward is None; it must be one number"),
        (lambda o, r, *rest: (o, {"a": 1}, *rest), ValueError, "the reward is {'a': 1}; it must be one number"),
        (lambda o, r, *rest: (o, 1j, *rest), ValueError, "the reward is 1j; it must be one number"),
        (lambda o, r, *rest: (o, "a", *rest), ValueError, "the reward is 'a'; it must be one number"),
        (lambda o, r, *rest: (o, 10**400, *rest), ValueError, "the reward is 1000.*…; it must be one number"),
        (lambda o, r, t, *rest: (o, r, np.ones(2), *rest), ValueError, r"terminated is array.*; it must be one number"),
        (
            lambda o, r, t, u, info: (o, r, t, None, info),
            ValueError,
            "truncated is None; it must be one number, or",
        ),
        (lambda o, r, t, u, info: (o, r, t, u, None), ValueError, "info is None; it must be a dict"),
        (lambda o, r, *rest: (None, r, *rest), ValueError, r"the observation has the shape \(\); allowed: \(2"),
        (lambda o, r, *rest: ({}, r, *rest), ValueError, "the observation"),
        (lambda o, r, *rest: (np.ones(3), r, *rest), ValueError, r"the observation has the shape \(3,\); allowed: \(2"),
        (lambda o, r, *rest: 1 / 0, RuntimeError, r"raised ZeroDivisionError on action array\(\[0, 0, 0\]\): div"),
    ],
)
def test_faults_name_environment_copy_and_step(fault, error, said):
    made = iter((Faulty(lambda *result: result), Faulty(fault)))
    batch = GymBatched(lambda: next(made), 2, generator=generator())
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    batch.step(zeros), batch.step(zeros)
    with pytest.raises(error, match=rf"^Faulty, environment 1, step 3:? {said}") as raised:
        batch.step(zeros)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "reward",
    [np.array([7.5]), [7.5], np.float16(7.5), torch.tensor(7.5), torch.tensor([7.5], requires_grad=True)],
    ids=str,
)
def test_a_reward_of_one_element_is_a_number(reward):
    batch = GymBatched(lambda: Faulty(lambda o, r, *rest: (o, reward, *rest)), 2)
    assert [batch.step(torch.zeros(2, 3, dtype=torch.int64)).reward for _ in range(3)][2].tolist() == [7.5, 7.5]


class Old(Counter):
    def reset(self):
        return np.zeros(2)


class Uninformed(Counter):
    def reset(self, **options):
        return super().reset(**options)[0], None


class Lost(Counter):
    def reset(self, **options):
        raise KeyError("lost\nagain")


class Older(Counter):
    def reset(self, **options):
        return np.zeros(2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Old, "^Old: reset takes no seed; gymnasium's is reset"),
        (Older, "^Older: reset returned ndarray; gymnasium's is"),
        (Uninformed, "^Uninformed, environment 0, step 0: info is None; it must be a dict"),
        (Lost, r"^Lost, environment 0, step 0: reset raised KeyError: 'lost\\nagain'$"),
        (lambda: Faulty(lambda o, r, *rest: (o, r, True, {})), "^Faulty: step returned 4 values; gymnasium's is"),
    ],
)
def test_older_interfaces(make, said):
    with pytest.raises((ValueError, RuntimeError), match=said):
        batch = GymBatched(make, 2)
        for _ in range(3):
            batch.step(torch.zeros(2, 3, dtype=torch.int64))


# ----------------------------------------------------------------------------------- training and checkpoints


@pytest.mark.parametrize(
    "settings",
    [*({"method": name} for name in METHODS), {"estimator": "cis"}, {"estimator": "latent", "coupling": "affine"}],
    ids=str,
)
def test_unequal_sizes_train(settings):
    """Categories that pad the smaller dimensions are never drawn (the environment asserts it) and all others are."""
    made = []
    settings = {"method": "iar-a2c"} | settings
    config = make_config("counter", settings.pop("method"), SMALL | settings)
    trainer = Trainer(
        config, GymBatched(lambda: made.append(Counter()) or made[-1], 4, generator=generator(), oracle=even)
    )
    for _ in range(30):
        trainer.step()
    given = np.concatenate([env.given for env in made])
    assert trainer.env.violations == 0
    assert (given.sum(1) % 2 == 0).all()
    assert [sorted(set(column)) for column in given.T] == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1]]
    assert all(p.isfinite().all() for p in trainer.policy.parameters())


def test_no_tensor_lands_on_the_default_device():
    """The environment, its oracle and its checkpoint, while tensors without a device would be made on "meta"."""
    batch = GymBatched(Counter, 4, generator=generator(), oracle=per_action(lambda o, a: a.sum() % 2 == 0))
    trainer = Trainer(make_config("counter", "iar-a2c", SMALL), batch)
    with torch.device("meta"):
        trainer.step()
        batch.load_state_dict(batch.state_dict())
        GymBatched("CartPole-v1", 2, generator=batch.generator).step(torch.zeros(2, 1, dtype=torch.int64, device="cpu"))
    assert trainer.observation.device.type == "cpu"


def trained(trainer, updates):
    for _ in range(updates):
        trainer.step()
    return [p.detach().clone() for p in trainer.policy.parameters()], trainer.observation


def new_trainer(make, oracle=None, seed=0):
    config = make_config("own", "iar-a2c", SMALL | {"seed": seed})
    return Trainer(config, GymBatched(make, 4, generator=seeded(seed, "env"), oracle=oracle))


@pytest.mark.parametrize("make", [Counter, lambda: gymnasium.make("CartPole-v1", max_episode_steps=6)])
def test_resume_is_exact(make):
    """Through a file, read without trust in it, into a trainer of another seed: bit for bit, in mid-episode."""
    oracle = even if make is Counter else None
    whole, file = new_trainer(make, oracle), io.BytesIO()
    trained(whole, 10)
    torch.save(whole.state_dict(), file)
    file.seek(0)
    expected, last = trained(whole, 10)
    resumed = new_trainer(make, oracle, seed=1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    got, observation = trained(resumed, 10)
    assert all(map(torch.equal, got, expected))
    assert torch.equal(observation, last)
