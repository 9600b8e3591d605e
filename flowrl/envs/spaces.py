"""gymnasium's spaces as this project's tensors: actions as categories (paper, section 2), observations as what encoders
read, and both back in the space's own form.

A Dict's or Tuple's parts come in the space's own order, nested ones by names joined with dots ("robot.arm", "0").
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space, flatdim, flatten

IMAGE_SIDE = 36  # pixels; uint8 arrays with smaller sides are numbers, not pictures: the convolutions need as many
MOST_ONE_HOT = 10**7  # entries of a one-hot vector
LARGE_CODE = 63  # of a uint8 array that is none; what shows more is hardly a code (MiniGrid's go to 10), so unscaled


def leaves(space: Space, name: str = "") -> list[tuple[str, Space]]:
    """The parts of a space that have no parts, with their names ("" where the space is none of Dict and Tuple)."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [(name, space)]
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [leaf for key, part in parts for leaf in leaves(part, f"{name}.{key}" if name else str(key))]


def taken_apart(space: Space, value: Any) -> list[Any]:
    """What a value of the space has for each of its leaves. ValueError where a part is missing."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or not value.keys() >= space.spaces.keys():
            raise ValueError(f"{shown(value)} has not the keys {', '.join(map(str, space.spaces))}")
        return [leaf for key, part in space.spaces.items() for leaf in taken_apart(part, value[key])]
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise ValueError(f"{shown(value)} has not {len(space.spaces)} parts")
        return [leaf for part, own in zip(space.spaces, value, strict=True) for leaf in taken_apart(part, own)]
    return [value]


def put_together(space: Space, values: Iterator[Any]) -> Any:
    """The value of the space that has these leaves."""
    if isinstance(space, spaces.Dict):
        return {key: put_together(part, values) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(put_together(part, values) for part in space.spaces)
    return next(values)


def frozen(value: Any) -> Any:
    """A copy whose arrays can't be written into."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if isinstance(value, Mapping):
        return {key: frozen(part) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = map(frozen, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value if isinstance(value, int | float | str | np.generic) else copy.deepcopy(value)


def shown(value: Any) -> str:
    """A value in a few words, on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}…"


# ------------------------------------------------------------------------------------------------- actions


class Categories:
    """An action space as D categorical dimensions, numbered from 0.

    space: Discrete, MultiDiscrete, MultiBinary of any shape, Tuple and Dict of these; ValueError for others.

    >>> categories = Categories(spaces.Dict(gear=Discrete(5, start=1), lights=MultiBinary(2)))
    >>> categories.sizes
    (5, 2, 2)
    >>> categories.to_space(np.array([0, 1, 0]))
    {'gear': np.int64(1), 'lights': array([1, 0], dtype=int8)}
    """

    def __init__(self, space: Space):
        self.space = space
        self._leaves = [leaf for _, leaf in leaves(space)]
        if not self._leaves:
            raise ValueError(f"the action space is {shown(space)}: there is nothing to choose")
        sizes, starts = [], []
        for leaf in self._leaves:
            if isinstance(leaf, MultiBinary):
                own, start = [2] * math.prod(leaf.shape), 0
            elif isinstance(leaf, Discrete):
                own, start = [int(leaf.n)], leaf.start
            elif isinstance(leaf, MultiDiscrete):
                own, start = leaf.nvec.ravel().tolist(), leaf.start
            else:
                raise ValueError(
                    f"the action space is {shown(space)}; allowed: Discrete, MultiDiscrete, MultiBinary, Tuple and "
                    "Dict of these"
                )
            sizes.append(own)
            starts.append(np.broadcast_to(np.ravel(start), len(own)))
        self.sizes: tuple[int, ...] = tuple(size for own in sizes for size in own)  # K_d
        self.start = np.concatenate(starts).astype(np.int64)  # (D,), the space's own number of each first category
        self._cuts = np.cumsum([len(own) for own in sizes])[:-1]

    def to_space(self, action: np.ndarray) -> Any:
        """(D,) int64 from 0 → the action in the space's own form and dtype: what `step` takes."""
        parts = np.split(np.asarray(action) + self.start, self._cuts)
        own = (
            leaf.dtype.type(part[0]) if isinstance(leaf, Discrete) else part.reshape(leaf.shape).astype(leaf.dtype)
            for leaf, part in zip(self._leaves, parts, strict=True)
        )
        return put_together(self.space, own)

    def from_space(self, action: Any) -> np.ndarray:
        """An action in the space's own form → (D,) int64 from 0. ValueError for what the space doesn't hold."""
        try:
            said = np.concatenate([np.ravel(part) for part in taken_apart(self.space, action)])
            row = said.astype(np.int64) - self.start
            whole = said.shape == self.start.shape and (row + self.start == said).all()
            if whole and ((row >= 0) & (row < self.sizes)).all():
                return row
        except (ValueError, TypeError):
            pass
        raise ValueError(f"{shown(action)} is no action of {shown(self.space)}")


# -------------------------------------------------------------------------------------------- observations


class Observations:
    """An observation space as the one tensor that encoders read, and as what batched oracles are given.

    Pictures (uint8 to 255, sides of at least IMAGE_SIDE, grey or with colours, or stacks of these) stay uint8, channels
    first; everything else becomes float32, unscaled: flat, as gymnasium flattens it (a Discrete one-hot), unless the
    space is a Box. Where there are pictures and more, or several of them, an observation is the bytes of all of them
    (`encoders.PartsEncoder`). leave_out: keys that encoders don't see. ValueError, with what to do, for parts of no
    fixed size, one-hot vectors that no memory holds, and where nothing is left to see.

    >>> observations = Observations(spaces.Dict(day=Discrete(3), load=Box(0, 1, (2,))))
    >>> observations.for_encoder({"day": 1, "load": np.ones(2)})
    array([0., 1., 0., 1., 1.], dtype=float32)
    >>> observations.layout
    {'day': slice(0, 3, None), 'load': slice(3, 5, None)}
    """

    def __init__(self, space: Space, leave_out: frozenset[str] = frozenset()):
        self.space = space
        self._named = leaves(space)
        for name, leaf in self._named:
            if not isinstance(leaf, Box | Discrete | MultiDiscrete | MultiBinary):
                raise ValueError(_no_size(space, name, leaf))
            if isinstance(leaf, Discrete | MultiDiscrete) and flatdim(leaf) > MOST_ONE_HOT:
                raise ValueError(
                    f"the observation{_of(name)} is {leaf}, whose one-hot vector has {flatdim(leaf):,} entries; make a "
                    "Box of it with gymnasium.wrappers.TransformObservation"
                )
        seen = [i for i, (name, _) in enumerate(self._named) if name.split(".")[0] not in leave_out]
        self._pictures = {i: leaf.shape for i in seen if _is_picture(leaf := self._named[i][1])}
        self._numbers = [i for i in seen if i not in self._pictures]
        if not seen:
            left_out = ", ".join(name for name, _ in self._named)
            raise ValueError(
                f"the observation has nothing but {left_out or 'no parts'}, which policies are not shown; give it a "
                "part for them, a constant if need be"
            )
        self.pictures = [_channels_first(shape) for shape in self._pictures.values()]  # (planes, height, width)
        self.n_numbers = sum(flatdim(self._named[i][1]) for i in self._numbers)
        self.dtype = torch.uint8 if self.pictures else torch.float32
        if len(self.pictures) == 1 and not self.n_numbers:
            self.shape = self.pictures[0]
        elif self.pictures:
            self.shape = (sum(map(math.prod, self.pictures)) + 4 * self.n_numbers,)
        else:
            self.shape = space.shape if isinstance(space, Box) and space.shape else (self.n_numbers,)

    @property
    def parts(self) -> tuple[list[tuple[int, ...]], int] | None:
        """Shapes of the pictures and how many float32 numbers lie behind them; None where a plain encoder will do."""
        return (self.pictures, self.n_numbers) if self.pictures and len(self.shape) == 1 else None

    @property
    def layout(self) -> dict[str, slice]:
        """The columns of each part in what a batched oracle is given: name → slice. A lone Box or Discrete is ""."""
        ends = np.cumsum([flatdim(leaf) for _, leaf in self._named]).tolist()
        return {name: slice(start, end) for (name, _), start, end in zip(self._named, [0, *ends], ends, strict=False)}

    def for_encoder(self, observation: Any) -> np.ndarray:
        """One observation → an array of `shape`. ValueError for another than the space's; FloatingPointError."""
        with np.errstate(over="ignore"):  # what overflows float32 is not finite, which is said below
            values = self._flat(observation)
            numbers = [np.asarray(values[i], dtype=np.float32) for i in self._numbers]
        for i, number in zip(self._numbers, numbers, strict=True):
            if not np.isfinite(number).all():
                raise FloatingPointError(f"the observation{_of(self._named[i][0])} is not finite as float32")
        pictures = [_planes_first(values[i].reshape(shape)) for i, shape in self._pictures.items()]
        if not pictures:
            return np.concatenate(numbers).reshape(self.shape)
        if self.parts is None:
            return np.ascontiguousarray(pictures[0])
        return np.concatenate([*(picture.ravel() for picture in pictures), *(n.view(np.uint8) for n in numbers)])

    def unscaled(self, observation: Any) -> list[str]:
        """Parts in which encoders read bytes beyond any code as they are, as these are no pictures."""
        flat = self._flat(observation)
        return [name for i in self._numbers for name, leaf in (self._named[i],)
                if leaf.dtype == np.uint8 and flat[i].max(initial=0) > LARGE_CODE]  # fmt: skip

    def for_oracle(self, observation: Any) -> np.ndarray:
        """One observation → the space's own array for a Box, else all parts in a row, in a dtype that holds them."""
        values = self._flat(observation)
        if isinstance(self.space, Box):
            return values[0].reshape(self.space.shape or (1,))
        return np.concatenate(values)

    def _flat(self, observation: Any) -> list[np.ndarray]:
        """Each leaf as gymnasium flattens it. ValueError."""
        flat = []
        for (name, leaf), value in zip(self._named, taken_apart(self.space, observation), strict=True):
            array = np.asarray(value)
            if array.shape != leaf.shape:
                raise ValueError(f"the observation{_of(name)} has the shape {array.shape}; allowed: {leaf.shape}")
            if isinstance(leaf, Discrete | MultiDiscrete):
                n = leaf.n if isinstance(leaf, Discrete) else leaf.nvec
                if ((array < leaf.start) | (array - leaf.start >= n)).any():
                    raise ValueError(f"the observation{_of(name)} is {shown(value)}; allowed: what {leaf} holds")
            flat.append(np.asarray(flatten(leaf, array)))
        return flat


def _of(name: str) -> str:
    return f" {name!r}" if name else ""


def _is_picture(space: Space) -> TypeGuard[Box]:
    if not isinstance(space, Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3, 4):
        return False
    return bool((space.high == 255).all()) and min(_channels_first(space.shape)[1:]) >= IMAGE_SIDE


def _planes_axis(shape: tuple[int, ...]) -> int:
    """Colours, or stacked frames, are fewer than pixels: the shorter of the first and the last of three axes."""
    return 0 if shape[0] < shape[2] else 2


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(planes, height, width) of a picture; of four axes, the first is a stack's, whose planes follow each other."""
    if len(shape) == 2:
        return (1, *shape)
    stack, one = math.prod(shape[:-3]), shape[-3:]
    axis = _planes_axis(one)
    return (stack * one[axis], *one[:axis], *one[axis + 1 :])


def _planes_first(picture: np.ndarray) -> np.ndarray:
    shape = _channels_first(picture.shape)
    if picture.ndim > 2:
        picture = np.moveaxis(picture, _planes_axis(picture.shape[-3:]) - 3, -3)
    return picture.reshape(shape)


def _no_size(space: Space, name: str, leaf: Space) -> str:
    kind = type(leaf).__name__
    if not name:
        return (f"observations are {shown(space)}: a {kind} has no fixed size; make an array of it with "
                "gymnasium.wrappers.TransformObservation")  # fmt: skip
    rest = [key for key, part in leaves(space) if isinstance(part, Box | Discrete | MultiDiscrete | MultiBinary)]
    kept = list(dict.fromkeys(key.split(".")[0] for key in rest))
    leave = f"leave it out, gymnasium.wrappers.FilterObservation(env, {kept}), or " if kept else ""
    return f"the observation's {name!r} is a {kind}, which has no fixed size; {leave}make an array of it"
