"""flowrl.envs.spaces: actions of every categorical space, there and back; observations for encoders and for oracles."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from flowrl.envs.spaces import Categories, Observations, frozen

NESTED = spaces.Dict(
    b=spaces.Discrete(3, start=-1),
    a=spaces.Tuple((spaces.MultiBinary((2, 2)), spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [0, 7]]))),
)


@pytest.mark.parametrize(
    ("space", "sizes"),
    [
        (spaces.Discrete(4, start=7), (4,)),
        (spaces.MultiDiscrete([3, 2], dtype=np.int32), (3, 2)),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), (2, 3, 4, 5)),
        (spaces.MultiBinary(5), (2,) * 5),
        (spaces.MultiBinary((2, 3)), (2,) * 6),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))), (2, 3)),
        (NESTED, (3, 2, 2, 2, 2, 2, 3, 4, 5)),
        (spaces.MultiBinary(100), (2,) * 100),
    ],
    ids=str,
)
def test_actions_there_and_back(space, sizes):
    """Every category becomes what the space holds, in its own type, and is found again; the first is its start."""
    categories = Categories(space)
    assert categories.sizes == sizes
    space.seed(0)
    rows = np.random.default_rng(0).integers(sizes, size=(50, len(sizes)))
    for row in [np.zeros_like(rows[0]), np.array(sizes) - 1, *rows]:
        action = categories.to_space(row)
        assert space.contains(action)
        assert np.array_equal(categories.from_space(action), row)
        sample = space.sample()
        assert spaces.utils.flatten(space, categories.to_space(categories.from_space(sample))).tolist() == (
            spaces.utils.flatten(space, sample).tolist()
        )


def test_actions_have_the_types_that_step_takes():
    assert isinstance(Categories(spaces.Discrete(3)).to_space(np.array([1])), np.int64)
    nested = Categories(NESTED).to_space(np.zeros(9, dtype=np.int64))
    assert (nested["b"], nested["a"][0].dtype, nested["a"][1].tolist()) == (-1, np.int8, [[1, 1], [0, 7]])


@pytest.mark.parametrize("space", [spaces.Tuple(()), spaces.Dict()])
def test_a_space_without_parts_is_said(space):
    with pytest.raises(ValueError, match=r"^the action space is .*: there is nothing to choose$"):
        Categories(space)
    with pytest.raises(ValueError, match=r"^the observation has nothing but no parts, "):
        Observations(space)


@pytest.mark.parametrize("action", [3, -2, 0.5, [1, 1], "x", None, {"b": 0}])
def test_what_is_no_action(action):
    with pytest.raises(ValueError, match=r"is no action of Discrete\(3, start=-1\)$"):
        Categories(spaces.Discrete(3, start=-1)).from_space(action)


# ------------------------------------------------------------------------------------------- observations


def test_oracles_are_given_what_float32_would_lose():
    """Integers beyond 2^24, doubles, and each part's columns, which the layout names."""
    space = spaces.Dict(z=spaces.Box(-1, 1, (2,), np.float64), a=spaces.Discrete(3), n=spaces.Box(0, 2**40, (1,), int))
    observations = Observations(space)
    shown = {"z": np.array([0.1, -0.2]), "a": 2, "n": np.array([2**30 + 1])}
    row, layout = observations.for_oracle(shown), observations.layout
    assert {name: row[columns].tolist() for name, columns in layout.items()} == {
        "a": [0, 0, 1], "n": [2**30 + 1], "z": [0.1, -0.2]
    }  # fmt: skip
    whole = Observations(spaces.Box(0, 2**40, (2, 2), np.int64))
    counts = np.array([[2**30 + 1, 0], [1, 2]])
    assert np.array_equal(whole.for_oracle(counts), counts) and whole.for_oracle(counts).dtype == np.int64
    assert whole.layout == {"": slice(0, 4)}


def test_masks_are_left_out_of_what_encoders_read():
    space = spaces.Dict(action_mask=spaces.MultiBinary(4), board=spaces.Box(0, 9, (3,)))
    observations = Observations(space, frozenset({"action_mask"}))
    shown = {"action_mask": np.array([1, 0, 1, 1], dtype=np.int8), "board": np.arange(3, dtype=np.float32)}
    assert observations.shape == (3,) and observations.for_encoder(shown).tolist() == [0, 1, 2]
    assert observations.for_oracle(shown).tolist() == [1, 0, 1, 1, 0, 1, 2]
    with pytest.raises(ValueError, match="^the observation has nothing but action_mask, which policies are not shown"):
        Observations(spaces.Dict(action_mask=spaces.MultiBinary(4)), frozenset({"action_mask"}))


@pytest.mark.parametrize("shape", [(40, 48, 3), (3, 40, 48)])
def test_pictures_stay_uint8_channels_first(shape):
    picture = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    alone = Observations(spaces.Box(0, 255, shape, np.uint8))
    assert (alone.shape, alone.dtype, alone.parts) == ((3, 40, 48), torch.uint8, None)
    first = picture if shape[0] == 3 else picture.transpose(2, 0, 1)
    assert np.array_equal(alone.for_encoder(picture), first)

    space = spaces.Dict(camera=spaces.Box(0, 255, shape, np.uint8), at=spaces.Box(-1, 1, (2,)), go=spaces.Discrete(3))
    mixed = Observations(space)
    row = mixed.for_encoder({"camera": picture, "at": np.array([0.5, -0.25], dtype=np.float32), "go": 1})
    assert mixed.parts == ([(3, 40, 48)], 5) and mixed.shape == row.shape and row.dtype == np.uint8
    assert np.array_equal(row[: first.size], first.ravel())
    assert row[first.size :].view(np.float32).tolist() == [0.5, -0.25, 0, 1, 0]


@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((40, 48), None),
        ((4, 40, 48, 3), 3),
        ((4, 3, 40, 48), 1),
        ((2, 40, 40, 1), 3),
        ((40, 48, 40), 2),
        ((60, 40, 50), 2),
    ],
)
def test_grey_pictures_and_stacks_of_them_are_pictures_too(shape, planes):
    """As gymnasium's GrayscaleObservation and FrameStackObservation give them; planes: the axis of colours, or None."""
    picture = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    observations = Observations(spaces.Box(0, 255, shape, np.uint8))
    stack = picture[None] if len(shape) < 4 else picture
    expected = [np.take(one, k, planes - len(shape) + 3) if planes is not None else one
                for one in stack for k in range(1 if planes is None else shape[planes])]  # fmt: skip
    assert np.array_equal(observations.for_encoder(picture), expected)
    assert observations.shape == np.shape(expected) and observations.dtype == torch.uint8 and observations.parts is None


@pytest.mark.parametrize(
    ("shape", "high", "shown", "names"),
    [
        ((7, 7, 3), 255, 10, []),  # MiniGrid's codes
        ((28, 28), 255, 200, [""]),
        ((128,), 255, 64, [""]),
        ((48, 48), 1, 1, []),  # a board, no picture
    ],
)
def test_bytes_that_are_no_picture_are_numbers_and_large_ones_are_told(shape, high, shown, names):
    observations = Observations(spaces.Box(0, high, shape, np.uint8))
    observation = np.full(shape, shown, dtype=np.uint8)
    assert observations.shape == shape and observations.dtype == torch.float32
    assert (observations.for_encoder(observation) == shown).all() and observations.unscaled(observation) == names
    whole = Observations(spaces.Dict(ram=spaces.Box(0, high, shape, np.uint8), x=spaces.Box(0, 999, (1,))))
    assert whole.unscaled({"ram": observation, "x": np.array([999.0])}) == ["ram" for _ in names]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            spaces.Discrete(2**40),
            r"^the observation is Discrete\(1099511627776\), whose one-hot vector has 1,099,511,627",
        ),
        (
            spaces.Dict(to=spaces.Text(9)),
            "^the observation's 'to' is a Text, which has no fixed size; make an array of it$",
        ),
        (spaces.Text(9), "Text has no fixed size; make an array of it with gymnasium.wrappers.TransformObservation"),
        (
            spaces.Dict(mission=spaces.Text(9), image=spaces.Box(0, 255, (7, 7, 3), np.uint8), to=spaces.Discrete(4)),
            r"the observation's 'mission' is a Text, .*FilterObservation\(env, \['image', 'to'\]\)",
        ),
        (spaces.Tuple((spaces.Discrete(2), spaces.Graph(spaces.Box(0, 1), None))), "the observation's '1' is a Graph"),
    ],
)
def test_parts_without_a_size_are_named(space, said):
    with pytest.raises(ValueError, match=said) as error:
        Observations(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "shown", "error", "said"),
    [
        (spaces.Box(0, 1, (2,)), [1, 2, 3], ValueError, r"the observation has the shape \(3,\); allowed: \(2,\)"),
        (spaces.Box(0, 1, (2,)), [1, np.nan], FloatingPointError, "the observation is not finite"),
        (spaces.Discrete(3), 3, ValueError, r"the observation is array\(3\)|the observation is 3"),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Discrete(3)), {"a": 0}, ValueError, "has not the keys a, b"),
        (
            spaces.Dict(a=spaces.Box(0, 1, (1,))),
            {"a": np.array([1e99])},
            FloatingPointError,
            "observation 'a' is not fi",
        ),
    ],
)
def test_observations_that_do_not_fit(space, shown, error, said):
    with pytest.raises(error, match=said):
        Observations(space).for_encoder(shown)


def test_frozen_observations_can_be_read_only():
    shown = {"a": np.zeros(2), "b": (1, np.zeros(1)), "c": [np.zeros(1)], "d": "word"}
    still = frozen(shown)
    for array in (still["a"], still["b"][1]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    shown["a"][0] = 5
    assert still["a"].tolist() == [0, 0] and still["d"] == "word" and still["b"][0] == 1
