"""flowrl.envs.copies: what makes copies of an environment and what doesn't, vector environments, checkpoints."""

import gymnasium
import pytest
import torch
from gymnasium import spaces
from problems import Counter

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
    with pytest.raises(ValueError, match="the vector environment has 2 environments; n_envs is 3"):
        GymBatched(vector, 3)


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
