"""flowrl.envs.validity: every place where people keep what is valid, against the same problem's own rule."""

import itertools
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from flowrl import per_action
from flowrl.a2c import Trainer
from flowrl.envs.gym import GymBatched
from flowrl.envs.spaces import Categories
from flowrl.envs.validity import LISTED, list_judge, mask_judge
from flowrl.study.config import make_config

SIZES = (3, 4)
ALL = np.array(list(itertools.product(*map(range, SIZES))))
SMALL = {"hidden": 16, "policy_hidden": 8, "n_envs": 4, "n_draws": 16}


class Hidden(gymnasium.Env):
    """What is valid depends on a number that nobody is shown: the action's sum must be it modulo 3."""

    action_space, observation_space = spaces.MultiDiscrete(SIZES), spaces.Box(0, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.next(), self.info()

    def next(self):
        self.secret = int(self.np_random.integers(3))
        return np.zeros(2, dtype=np.float32)

    def info(self):
        return {}

    def rule(self, action):
        return sum(np.ravel(action)) % 3 == self.secret

    def mask(self):
        return np.array([self.rule(action) for action in ALL], dtype=np.int8)

    def step(self, action):
        assert self.action_space.contains(action) and self.rule(action)  # nothing invalid is ever executed
        return self.next(), 0.0, bool(self.np_random.random() < 0.2), False, self.info()


class ByMethod(Hidden):
    def action_masks(self):
        return self.mask().astype(bool)


class ByAttribute(Hidden):
    @property
    def action_mask(self):
        return self.mask().reshape(SIZES)


class ByJudge(Hidden):
    def is_valid(self, action):
        assert self.action_space.contains(action)
        return self.rule(action)


class ByInfo(Hidden):
    def info(self):
        return {"action_mask": self.mask(), "note": "x"}


class ByList(Hidden):
    def info(self):
        return {"valid_actions": [action for action in ALL if self.rule(action)]}


class ByObservation(Hidden):
    observation_space = spaces.Dict(action_mask=spaces.MultiBinary(len(ALL)), x=spaces.Box(0, 1, (2,)))

    def next(self):
        return {"x": super().next(), "action_mask": self.mask()}


class ByOwnName(Hidden):
    def may_i(self, action):
        return self.rule(action)


SOURCES = {
    ByMethod: "env.action_masks()", ByAttribute: "env.action_mask", ByJudge: "env.is_valid(action)",
    ByInfo: "info['action_mask']", ByList: "info['valid_actions']", ByObservation: "observation['action_mask']",
    ByOwnName: "env.may_i(action)",
}  # fmt: skip


@pytest.mark.parametrize("method", ["iar-a2c", "mask"])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_place_where_validity_is_kept(kind, method):
    """Each copy asks its own environment, whose state no observation tells; redraws and enumeration among it."""
    batch = GymBatched(lambda: gymnasium.wrappers.TimeLimit(kind(), 9), 4, generator=torch.Generator().manual_seed(0),
                       oracle="may_i" if kind is ByOwnName else None)  # fmt: skip
    assert batch.validity.where == SOURCES[kind] and batch.observation_shape == (2,)
    few = {} if method == "mask" else {"n_draws": 2, "max_draws": 4}
    trainer = Trainer(make_config("hidden", method, SMALL | few), batch)
    for _ in range(30):
        trainer.step()
    assert batch.violations == 0 and trainer.env_steps == 120
    assert (trainer.counts["enumerations"] > 0) == (method != "mask")
    answers = batch.valid(batch._observation, torch.as_tensor(ALL).expand(4, -1, -1))
    for env, row in zip(batch._envs, answers, strict=True):
        assert row.tolist() == [env.unwrapped.rule(action) for action in ALL]


@pytest.mark.parametrize(("kind", "name"), [(ByInfo, "action_mask"), (ByMethod, "action_masks"), (ByJudge, "is_valid")])
def test_of_several_oracles_all_must_say_yes(kind, name):
    """A mask of the environment's, and what it can't say, by a function: nothing is executed that either refuses."""
    few = per_action(lambda observation, action: action.sum() <= 2)
    batch = GymBatched(kind, 3, generator=torch.Generator().manual_seed(0), oracle=[name, few])
    assert batch.validity.where == f"{SOURCES[kind]} and the oracle given"
    answers = batch.valid(batch._observation, torch.as_tensor(ALL).expand(3, -1, -1))
    for env, row in zip(batch._envs, answers, strict=True):
        assert row.tolist() == [env.unwrapped.rule(action) and action.sum() <= 2 for action in ALL]
    alone = GymBatched(kind, 3, generator=torch.Generator().manual_seed(0), oracle=few)
    assert (answers <= alone.valid(alone._observation, torch.as_tensor(ALL).expand(3, -1, -1))).all()
    for wrong in ([], [3], [lambda observation, actions: actions[..., 0] > 0]):
        with pytest.raises(ValueError, match="^a list of oracles holds names and flowrl.per_action"):
            GymBatched(kind, 1, oracle=wrong)


@pytest.mark.parametrize("kind", [ByMethod, ByInfo, ByList, ByObservation])
def test_masks_are_asked_for_once_a_state(kind):
    calls, mask = [], kind.mask

    class Counted(kind):
        def mask(self):
            calls.append(1)
            return mask(self)

    batch = GymBatched(Counted if kind is not ByList else ByList, 2, oracle=None)
    calls.clear()
    for _ in range(9):
        batch.valid(batch._observation, torch.as_tensor(ALL).expand(2, -1, -1))
    assert len(calls) <= 2


def test_an_own_oracle_goes_first_and_a_name_that_is_not_there_is_said():
    batch = GymBatched(ByInfo, 2, oracle=per_action(lambda observation, action: False))
    assert batch.validity.where == "the oracle given"
    with pytest.raises(
        ValueError, match="^there is no 'allowed': ByInfo has no .*, and its info has 'action_mask', 'note'; nearest: '"
    ):
        GymBatched(ByInfo, 2, oracle="allowed")
    assert GymBatched(Hidden, 2).validity.where == "nowhere: every action is valid"


@pytest.mark.parametrize(
    ("kind", "misspelt", "meant"),
    [
        (ByMethod, "acton_masks", "action_masks"),
        (ByJudge, "is_vaild", "is_valid"),
        (ByInfo, "actions_mask", "action_mask"),
        (ByList, "valid_action", "valid_actions"),
        (ByObservation, "mask_of_actions", "action_mask"),
        (ByOwnName, "may_I", "may_i"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(kind, misspelt, meant):
    """Wherever it is kept, behind a wrapper too; never a name that every environment has."""
    with pytest.raises(ValueError, match=rf"^there is no '{misspelt}': .*; nearest: '{meant}'") as error:
        GymBatched(lambda: gymnasium.wrappers.TimeLimit(kind(), 9), 2, oracle=misspelt)
    assert "\n" not in str(error.value)
    for said in str(error.value).rpartition("nearest: ")[2].split(", "):
        assert not hasattr(gymnasium.Wrapper, said.strip("'"))


# ----------------------------------------------------------------------------------------- masks and lists


@pytest.mark.parametrize(
    ("mask", "rule"),
    [
        (np.arange(12) % 5 == 0, lambda a: (4 * a[0] + a[1]) % 5 == 0),
        ((np.arange(12) % 5 == 0).reshape(3, 4), lambda a: (4 * a[0] + a[1]) % 5 == 0),
        ([1, 0, 1, 0, 0, 1, 1], lambda a: a[0] != 1 and a[1] >= 2),
        (([1, 0, 1], np.array([0, 0, 1, 1])), lambda a: a[0] != 1 and a[1] >= 2),
        (torch.tensor([1, 0, 1, 0, 0, 1, 1]), lambda a: a[0] != 1 and a[1] >= 2),
    ],
)
def test_forms_of_masks(mask, rule):
    judge = mask_judge(mask, Categories(spaces.MultiDiscrete(SIZES)), "it")
    assert judge(ALL).tolist() == [rule(action) for action in ALL]


def test_masks_of_dicts_follow_their_keys():
    space = spaces.Dict(b=spaces.Discrete(3), a=spaces.Discrete(4))
    judge = mask_judge({"a": [0, 0, 1, 1], "b": [1, 0, 1]}, Categories(space), "it")
    assert judge(ALL).tolist() == [bool(b != 1 and a >= 2) for b, a in ALL]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.ones(5), "^it has 5 entries; allowed: 12, one an action, or 7, one a category$"),
        (np.ones((4, 3)), r"^it has the shape \(4, 3\); allowed: 12, one an action, or 7, one a category$"),
        (([1, 0], [1, 1, 1, 1, 1]), "^it has rows of 2, 5 entries; allowed: 12"),
        (np.full(12, 2), "^it holds 2; a mask holds 0 and 1 only$"),
    ],
)
def test_masks_that_are_none(mask, said):
    with pytest.raises(ValueError, match=said):
        mask_judge(mask, Categories(spaces.MultiDiscrete(SIZES)), "it")


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2), spaces.MultiDiscrete([1, 2, 3]),
              spaces.Tuple([spaces.MultiBinary(2)])], ids=str
)  # fmt: skip
def test_a_mask_that_may_be_of_actions_or_of_categories_is_not_guessed(space):
    """As many actions as categories: the shape says which they are, and without one it is an error that says so."""
    categories = Categories(space)
    sizes, D = categories.sizes, len(categories.sizes)
    every = np.array(list(itertools.product(*map(range, sizes))))
    joint = np.array([sum(action) % 2 == 0 for action in every])
    rows = tuple([k == size - 1 for k in range(size)] for size in sizes)
    flat = [*itertools.chain(*rows)]
    for mask in (joint, joint.tolist(), flat, torch.as_tensor(joint), joint[None]):
        with pytest.raises(ValueError, match=rf"^it has {len(every)} entries, which may be .* tuple of {D} rows$"):
            mask_judge((mask,) if isinstance(space, spaces.Tuple) else mask, categories, "it")
    for form in (np.reshape, lambda mask, sizes: torch.as_tensor(mask).reshape(sizes)):
        assert mask_judge(form(joint, sizes), categories, "it")(every).tolist() == joint.tolist()
    if not isinstance(space, spaces.Tuple):
        last = (every == np.array(sizes) - 1).all(1).tolist()
        assert mask_judge(rows, categories, "it")(every).tolist() == last
        if sizes == (2, 2):  # a nested list of A's own shape
            with pytest.raises(ValueError, match="which may be one an action or one a category"):
                mask_judge([*rows], categories, "it")
        else:
            assert mask_judge([*rows], categories, "it")(every).tolist() == last


class Same(Hidden):
    """Only equal choices are valid, which a flat mask of as many entries as there are categories can't tell."""

    action_space = spaces.MultiDiscrete([2, 2])

    def action_masks(self):
        return np.array([True, False, False, True])

    def step(self, action):
        assert action[0] == action[1]
        return self.next(), 0.0, False, False, {}


def test_an_environments_ambiguous_mask_executes_nothing():
    batch = GymBatched(Same, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"^Same, environment 0, step 0: env.action_masks\(\) has 4 entries"):
        batch.step(torch.tensor([[0, 1], [0, 1]]))
    assert batch.steps == 0


@pytest.mark.parametrize("listed", [[[1, 1], [1, 0]], [np.array([1, 1]), np.array([1, 0])], np.array([[1, 1], [1, 0]])])
def test_a_list_given_to_act_that_may_be_a_mask_is_not_guessed(listed):
    batch = GymBatched(type("Pair", (Hidden,), {"action_space": spaces.MultiDiscrete([2, 2])}), 1)
    state, every = [batch._states[0]], torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]])
    with pytest.raises(ValueError, match="^action_mask is .*, which may be a mask or a list of actions: .*2 rows$"):
        batch.oracle_of(state, [listed])
    assert batch.oracle_of(state, [tuple(listed)])(None, every).tolist() == [[True, False, True, False]]
    assert batch.oracle_of(state, [[[1, 1]]])(None, every).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("copies", [1, 20])
def test_lists_of_actions(copies):
    """In the space's own form, also where A is too large for a mask."""
    space = spaces.Tuple([spaces.MultiDiscrete(SIZES, start=[5, -1])] * copies)
    categories = Categories(space)
    assert (12**copies > LISTED) == (copies == 20)
    space.seed(0)
    listed = [space.sample() for _ in range(5)]
    judge = list_judge(listed, categories, "it")
    others = [categories.from_space(space.sample()) for _ in range(20)]
    assert judge(np.stack([categories.from_space(action) for action in listed])).all()
    known = {tuple(categories.from_space(action)) for action in listed}
    assert judge(np.stack(others)).tolist() == [tuple(row) in known for row in others]
    assert not list_judge([], categories, "it")(np.stack(others)).any()
    with pytest.raises(ValueError, match=r"^it: 3 is no action of Tuple"):
        list_judge([3], categories, "it")


# ----------------------------------------------------------------------------------- what an oracle is given


class Shown(gymnasium.Env):
    """Shows a large number, a word's length and a vector; an action is as many items as fit."""

    observation_space = spaces.Dict(
        n=spaces.Box(0, 2**40, (1,), np.int64), at=spaces.Discrete(3), a=spaces.Box(0, 1, (2,))
    )
    action_space = spaces.Tuple((spaces.Discrete(2, start=4), spaces.MultiBinary(2)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"n": np.array([2**30 + 1]), "at": 1, "a": np.array([0.5, 0.25], dtype=np.float32)}, {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.reset()[0], 0.0, False, False, {}


def test_one_at_a_time_an_oracle_gets_what_the_environment_and_step_have():
    seen = []

    def fits(observation, action):
        seen.append(action)
        assert Shown.observation_space.contains(observation) and Shown.action_space.contains(action)
        with pytest.raises(ValueError, match="read-only"):
            observation["a"][0] = 9
        return bool(observation["n"][0] == 2**30 + 1)

    batch = GymBatched(Shown, 2, oracle=per_action(fits))
    batch.step(torch.zeros(2, 3, dtype=torch.int64))
    assert seen[0][0] == 4 and len(seen) == 2


def test_in_batches_an_oracle_gets_tensors_of_its_own():
    """Nothing lost, by the layout's columns; what it writes into them harms nobody."""
    seen = []

    def oracle(observation, actions):
        seen.append((observation.clone(), actions.clone()))
        observation.zero_()
        return torch.ones(actions.shape[:2], dtype=torch.bool)

    batch = GymBatched(Shown, 2, oracle=oracle)
    before = batch._observation.clone()
    for _ in range(2):
        batch.valid(batch._observation, torch.zeros(2, 7, 3, dtype=torch.int64))
    layout = batch.observation_layout
    for observation, actions in seen:
        assert observation[:, layout["n"]].tolist() == [[2**30 + 1]] * 2
        assert observation[:, layout["a"]].tolist() == [[0.5, 0.25]] * 2
        assert observation[:, layout["at"]].tolist() == [[0, 1, 0]] * 2
        assert actions[0, 0].tolist() == [4, 0, 0]
    assert torch.equal(batch._observation, before)


def test_an_oracle_that_contradicts_itself_is_told_so():
    answers = iter([True, False])
    batch = GymBatched(Hidden, 1, oracle=per_action(lambda observation, action: next(answers)))
    action = torch.zeros(1, 2, dtype=torch.int64)
    assert batch.valid(batch._observation, action[:, None]).all()
    with pytest.raises(ValueError, match=r"^the oracle contradicts itself: action \[0, 0\] was valid in env"):
        batch.step(action)


class Strict(Hidden):
    """Says, each in its way, that an action was not valid: in a mask, in info, by an error."""

    def step(self, action):
        return self.next(), 0.0, False, False, self.info() | {"invalid_action": bool(action[0] == 2)}


class Masked(ByInfo):
    def step(self, action):
        return self.next(), 0.0, False, False, self.info()


@pytest.mark.parametrize("kind", [Strict, Masked, ByMethod])
def test_an_oracle_that_reads_something_wrong_is_noticed(kind):
    """Where the environment says otherwise: violations, warned of once with the columns; or its own error."""
    batch = GymBatched(kind, 1, generator=torch.Generator().manual_seed(0), oracle=per_action(lambda o, a: True))
    actions = torch.as_tensor(ALL[8:])[:, None]
    if kind is ByMethod:
        with pytest.raises(RuntimeError, match=r"raised AssertionError on action .*observation_layout is \{'': slice"):
            for action in actions:
                batch.step(action)
        return
    with pytest.warns(UserWarning, match="is valid according to the oracle given, but not to info") as warned:
        wrong = sum(kind is Strict or not batch._envs[0].rule(a[0].numpy()) for a in actions if batch.step(a) or True)
    assert len(warned) == 1
    assert ("give both: oracle=[name, per_action" in str(warned[0].message)) == (kind is Masked)
    assert batch.violations == 4 if kind is Strict else batch.violations >= 1
    assert wrong


def test_taxi_tells_by_itself():
    name = next(name for name in gymnasium.registry if name.startswith("Taxi"))
    batch = GymBatched(name, 3, generator=torch.Generator().manual_seed(0))
    assert batch.validity.where == "info['action_mask']"
    trainer = Trainer(make_config(name, "iar-a2c", SMALL | {"n_envs": 3}), batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            trainer.step()
    assert batch.violations == 0


class ByAnotherName(Hidden):
    def get_action_mask(self):
        return np.array([self.rule(action) for action in ALL])


def test_a_name_that_sounds_like_it_and_is_not_used_is_told():
    with pytest.warns(UserWarning, match="every action is taken as valid in .*oracle='get_action_mask'"):
        GymBatched(ByAnotherName, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = GymBatched(ByAnotherName, 2, oracle="get_action_mask")
        for plain in ("CartPole-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1"):
            GymBatched(plain, 2)
    assert batch.validity.where == "env.get_action_mask()"


@pytest.mark.parametrize("told", [{"action_mask": np.eye(12)[5]}, {"valid_actions": [ALL[5]]}])
@pytest.mark.parametrize("where", ["reset", "step"])
def test_what_info_tells_only_sometimes_is_an_error_that_says_when(told, where):
    """After step only, every action would be taken as valid; after reset only, nothing would tell."""

    class Sometimes(Hidden):
        def reset(self, **options):
            return super().reset(**options)[0], told if where == "reset" else {}

        def step(self, action):
            return self.next(), 0.0, False, False, {} if where == "reset" else told

    name, batch = next(iter(told)), GymBatched(Sometimes, 2)
    action = torch.tensor([ALL[5].tolist()] * 2)
    if where == "step":
        said = rf"^Sometimes, environment 0, step 1: step's info has '{name}', but reset's had not, so every action"
        with pytest.raises(ValueError, match=said):
            batch.step(action)
        GymBatched(Sometimes, 2, oracle=per_action(lambda observation, action: True)).step(action)  # the user says so
    else:
        batch.step(action)
        with pytest.raises(ValueError, match=rf"^Sometimes, environment 0, step 1: info has no '{name}', which told"):
            batch.step(action)


class Deaf(Hidden):
    """Executes nothing that it calls invalid, which is everything, and says so by no other sign."""

    def step(self, action):
        return np.zeros(2, dtype=np.float32), 0.0, False, False, {}


def test_an_environment_in_which_nothing_ever_changes_is_noticed():
    """Once; not where rewards differ or episodes end, as a bandit's do."""
    oracle = per_action(lambda observation, action: True)
    zeros = torch.zeros(50, 2, dtype=torch.int64)
    batch = GymBatched(Deaf, 50, oracle=oracle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(19):
            batch.step(zeros)
    with pytest.warns(UserWarning, match="^Deaf: in 1,000 steps no .* that the oracle given calls valid") as warned:
        for _ in range(30):
            batch.step(zeros)
    assert len(warned) == 1
    halves = [GymBatched(Deaf, 50) for _ in range(2)]
    for _ in range(10):
        halves[0].step(zeros)
    halves[1].load_state_dict(halves[0].state_dict())  # what was seen before a checkpoint counts
    with pytest.warns(UserWarning, match=r"^Deaf: in 1,000 .*: does it ignore actions that are invalid\? No oracle"):
        for _ in range(10):
            halves[1].step(zeros)

    class Bandit(Deaf):
        def step(self, action):
            return np.zeros(2, dtype=np.float32), float(self.np_random.integers(2)), False, False, {}

    class Ending(Deaf):
        def step(self, action):
            return np.zeros(2, dtype=np.float32), 0.0, bool(self.np_random.integers(2)), False, {}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (Bandit, Ending):
            batch = GymBatched(kind, 50, oracle=oracle)
            for _ in range(25):
                batch.step(zeros)


@pytest.mark.parametrize("kind", [KeyError, ValueError, RuntimeError])
def test_errors_in_what_tells_validity_name_environment_and_step(kind):
    """Of whatever kind they are, and lead back to where they were raised."""
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    lost = kind("lost")

    class Broken(Hidden):
        def action_masks(self):
            raise lost

    said = rf"^Broken, environment 0, step 0: env.action_masks\(\) raised {kind.__name__}: .?lost"
    with pytest.raises(RuntimeError, match=said) as told:
        GymBatched(Broken, 2).step(zeros)
    assert told.value.__cause__ is lost
    with pytest.raises(KeyError) as error:
        GymBatched(Hidden, 2, oracle=per_action(lambda observation, action: {}[0])).step(zeros)
    where, form = error.value.__notes__
    assert where == "asked for what is valid in Hidden after 0 steps: the oracle given"
    assert form == "if it judges tensors, a batch at once: the oracle without flowrl.per_action"
    with pytest.raises(TypeError) as error:  # what judges one action
        GymBatched(Hidden, 2, oracle=lambda observation, action: np.sum(action) < 2).step(zeros)
    assert error.value.__notes__[1].endswith("oracle=flowrl.per_action(it)")
