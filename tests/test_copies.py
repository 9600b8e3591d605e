"""flowrl.envs.copies: what makes copies of an environment and what doesn't, vector environments, checkpoints."""

import contextlib

import gymnasium
import pytest
import torch
from gymnasium import spaces
from problems import FAST, Assignment, Counter, different

import flowrl
from flowrl.envs.gym import GymBatched

ONE, SIZES = Counter(), iter((2, 3))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("NoSuchThing-v0", "gymnasium can't make 'NoSuchThing-v0'"),
        ("no_such_module:Thing-v0", "gymnasium can't make"),
        (ONE, "the environment is Counter; give"),
        (3, "the environment is int; give"),
        (lambda: 3, "the callable returned int"),
        (lambda: ONE, "the same environment twice"),
        (lambda: Counter(spaces.Discrete(next(SIZES))), "differ in their"),
    ],
)
def test_environments_that_cannot_be_copied(env, said):
    with pytest.raises(ValueError, match=said) as error:
        GymBatched(env, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", list(gymnasium.vector.AutoresetMode))
def test_vector_environments(mode):
    """Whatever its own way to reset, the environments of a SyncVectorEnv go on as they do here."""
    vector = gymnasium.vector.SyncVectorEnv([Counter, Counter], autoreset_mode=mode)
    batch = GymBatched(vector, 2, generator=generator())
    plain = GymBatched(Counter, 2, generator=generator())
    for _ in range(7):
        action = torch.ones(2, 3, dtype=torch.int64)
        for ours, theirs in zip(batch.step(action), plain.step(action), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_vector_environments_by_their_maker(mode):
    """However they are stepped; their own environments stay as they are, so that an evaluation disturbs no training."""
    with contextlib.closing(
        gymnasium.make_vec("CartPole-v1", 2, vectorization_mode=mode, max_episode_steps=3)
    ) as vector:
        batches = [GymBatched(vector, n, generator=generator()) for n in (2, 3)]
        plain = GymBatched(lambda: gymnasium.make("CartPole-v1", max_episode_steps=3), 2, generator=generator())
        assert batches[0].name == "CartPole-v1"
        for _ in range(4):
            action = torch.ones(2, 1, dtype=torch.int64)
            for ours, theirs in zip(batches[0].step(action), plain.step(action), strict=True):
                assert torch.equal(ours, theirs)
            batches[1].reset()
        with pytest.raises(
            ValueError, match="^NormalizeReward doesn't say what makes one of its environments; give that"
        ):
            GymBatched(gymnasium.wrappers.vector.NormalizeReward(vector), 2)


def test_evaluating_a_vector_environment_leaves_training_where_it_was():
    vector = gymnasium.vector.SyncVectorEnv([Assignment] * 4)
    whole, evaluated = (flowrl.fit(vector, different, steps=40, **FAST) for _ in range(2))
    evaluated.evaluate(n_episodes=4)
    for trainer in (whole, evaluated):
        trainer.train(80, progress=False)
    assert torch.equal(whole.parameters["actor"], evaluated.parameters["actor"])


def test_environments_that_exist_already_are_not_trained_and_evaluated_in_at_once():
    """By a vector of them it is told at once, by a callable when they are asked for again; training then goes on."""
    own = Assignment()
    with pytest.raises(ValueError, match="env_fns return environments made before; each must make a new one"):
        GymBatched(gymnasium.vector.SyncVectorEnv([lambda: own]), 1)
    trainer = flowrl.fit(lambda: own, different, steps=40, **FAST | {"n_envs": 1})
    with pytest.raises(ValueError, match="to evaluate in are those that are trained in: what makes them must make a"):
        trainer.evaluate(n_episodes=1)
    assert trainer.train(40, progress=False).env_steps == 80
    with pytest.raises(ValueError, match="env is 50; .* n_episodes=50$"):
        trainer.evaluate(50)


def test_what_cannot_be_pickled_is_copied_and_what_cannot_be_copied_is_refused():
    class Local(Counter):  # no module holds it, so pickle can't find it again
        pass

    class Rebuilt(Counter, gymnasium.utils.EzPickle):  # its pickle is its constructor's arguments: not where it stands
        def __init__(self):
            gymnasium.utils.EzPickle.__init__(self)
            super().__init__()

    class Stuck(Counter):
        def __deepcopy__(self, memo):
            raise TypeError("holds a handle")

    zeros = torch.zeros(2, 3, dtype=torch.int64)
    batch = GymBatched(Local, 2, generator=generator())
    batch.step(zeros)
    state = batch.state_dict()
    expected = [batch.step(zeros) for _ in range(4)]
    for _ in range(2):  # a checkpoint serves more than once
        batch.load_state_dict(state)
        for step in expected:
            assert all(map(torch.equal, batch.step(zeros), step))
    for kind in (Rebuilt, Stuck):
        batch = GymBatched(kind, 2)
        with pytest.raises(ValueError, match="^this environment can't be copied"):
            batch.load_state_dict(batch.state_dict())
    with pytest.raises(ValueError, match="another environment or batch"):
        GymBatched(Counter, 3).load_state_dict(state)
