"""Where an environment, or its user, keeps what is valid: every place becomes one oracle (paper, section 1).

A source gives, for the state that one copy of the environment is in, a judge: actions (S, D) from 0 → (S,) bool. It is
made once a state, so a mask or a list is asked for in one call, however many actions are drawn.

    a function                    oracle(observations (B, …), actions (B, S, D)) → (B, S), or `per_action` of one
    env.action_masks()            sb3-contrib's convention; any method or attribute without arguments
    env.is_valid(action)          a method that judges one action on the live state
    observation["action_mask"]    a key of a Dict observation
    info["action_mask"]           a key of what reset and step return; info["valid_actions"]: a list of actions
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..rejection import ask_apart
from .batched import Oracle
from .spaces import Categories, Observations, taken_apart

Judge = Callable[[np.ndarray], np.ndarray]  # actions (S, D) int64 from 0 → (S,) bool

MASKS = ("action_masks", "action_mask", "valid_action_mask", "legal_action_mask")
LISTS = ("valid_actions", "legal_actions", "playable_actions", "available_actions")
JUDGES = ("is_valid", "is_valid_action", "is_legal", "is_legal_action")
SOUNDS = {"mask", "masks", "valid", "legal", "feasible", "allowed"}  # words of a name that may tell what is valid
NOT_TOLD: Mapping = {}  # the info of a state of which only the observation is known
GIVEN = "the oracle given"  # a function's place
LISTED = 2**20  # |A| up to which a list of valid actions becomes a mask


class State(NamedTuple):
    """The state that a copy of the environment is in, as far as anyone may look."""

    observation: Any  # as the environment gave it, arrays read-only
    info: Mapping
    env: gymnasium.Env | None  # None: known from its observation only


class PerAction:
    """What `per_action` makes: an oracle, and the function of one action that it asks."""

    def __init__(self, fn: Callable[[Any, Any], bool]):
        self.fn = fn

    def judged(self, observation: Any, action: Any) -> bool:
        answer = self.fn(observation, action)
        if isinstance(answer, np.ndarray) and answer.size == 1:
            answer = answer.item()
        if not isinstance(answer, bool | np.bool_):
            shown = action.tolist() if isinstance(action, np.ndarray) else action
            raise ValueError(f"the oracle returned {answer!r} for action {shown}; it must return a bool")
        return bool(answer)

    def __call__(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Tensors (B, …) and (B, S, D) → (B, S) bool; `fn` is given arrays."""
        answers = np.empty(tuple(actions.shape[:2]), dtype=bool)
        for b, (state, batch) in enumerate(zip(observation.cpu().numpy(), actions.cpu().numpy(), strict=True)):
            answers[b] = distinct_judge(lambda action, state=state: self.judged(state, action))(batch)
        return torch.as_tensor(answers, device=actions.device)


Oracles = Oracle | PerAction | str | Sequence[PerAction | str]  # what `fit` may be told


def per_action(fn: Callable[[Any, Any], bool]) -> PerAction:
    """The oracle of a function that judges one action: fn(observation, action) → bool.

    In a gymnasium environment it is given the observation as the environment gave it, arrays read-only, and the action
    as `step` would be given it. In each state a repeated action is judged once: `fn` must depend on its arguments
    alone. ValueError where it returns anything but a bool, or an array of one.

    >>> oracle = per_action(lambda observation, action: action.sum() <= observation[0])
    >>> oracle(torch.tensor([[3.0]]), torch.tensor([[[1, 2], [2, 2]]]))  # one state, two actions
    tensor([[ True, False]])
    """
    if not callable(fn):
        raise ValueError(f"per_action was given {type(fn).__name__}; it takes a function (observation, action) → bool")
    if not takes(fn, 2):
        raise ValueError(
            f"per_action was given a function {inspect.signature(fn)}; it takes one of (observation, action) → bool"
        )
    return PerAction(fn)


def takes(fn: Callable, n: int) -> bool:
    """Whether a function may be called with n arguments, as far as it says."""
    try:
        inspect.signature(fn).bind(*range(n))
    except TypeError:
        return False
    except ValueError:  # of functions that have no signature to read
        return True
    return True


def distinct_judge(judged: Callable[[np.ndarray], bool]) -> Judge:
    """The judge that asks `judged` about every distinct action (D,) once."""

    def judge(actions: np.ndarray) -> np.ndarray:
        distinct, which = np.unique(actions, axis=0, return_inverse=True)
        return np.array([judged(action) for action in distinct], dtype=bool)[which.reshape(-1)]

    return judge


class AmbiguousMask(ValueError):
    """A mask that may be of actions or of categories."""


def mask_judge(mask: Any, categories: Categories, where: str) -> Judge:
    """The judge of a mask: of all |A| actions (flat, or with an axis a dimension), or of each dimension's categories.

    The latter flat (sb3-contrib), as an array with a row a dimension, or as a tuple, list or dict of masks. Where both
    have the same length, as for two dimensions of two categories, an array of A's shape is the former and a tuple or
    list of rows the latter (of 2 × 2 a tuple). ValueError for a flat one there, for another length or shape, or
    other values.
    """
    sizes, space = categories.sizes, categories.space
    apart = isinstance(mask, Mapping) or (isinstance(mask, tuple) and isinstance(space, spaces.Tuple))
    rows = [row for part in (taken_apart(space, mask) if apart else [mask]) for row in _in_a_row(part)]
    values = np.concatenate(rows)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{where} holds {values[~np.isin(values, (0, 1))][0]}; a mask holds 0 and 1 only")
    values, n, D, shape = values.astype(bool), len(values), len(sizes), _shape(mask)
    by_row = D > 1 and not hasattr(mask, "shape") and tuple(map(len, rows)) == sizes
    flat = D == 1 or apart or (len(rows) == 1 and sum(side > 1 for side in shape) < 2)
    joint = n == math.prod(sizes) and not by_row and (flat or shape == sizes)
    single = n == sum(sizes) and (by_row or flat or {shape[-1:]} == {(size,) for size in sizes})
    either = by_row and isinstance(mask, list) and (D, sizes[0]) == sizes  # a nested list of 2 × 2: rows, or A's shape?
    if either or (joint and single and D > 1 and shape != sizes):
        raise AmbiguousMask(
            f"{where} has {n} entries, which may be one an action or one a category: give the former as an array of "
            f"the shape {sizes}, the latter as a tuple of {D} rows"
        )
    if joint:
        return lambda actions: values[_number(actions, sizes)]
    if single:
        starts = np.cumsum((0, *sizes[:-1]))
        return lambda actions: np.all(values[actions + starts], axis=-1)
    has, allowed = f"{n} entries", f"{sum(sizes)}" + ", one a category" * (D > 1)
    if n in (math.prod(sizes), sum(sizes)):
        has = f"the shape {shape}" if shape else f"rows of {', '.join(str(len(row)) for row in rows)} entries"
    raise ValueError(f"{where} has {has}; allowed: {math.prod(sizes)}, one an action, or {allowed}")


def _shape(mask: Any) -> tuple[int, ...]:
    """An array's, or that of the lists in a list; () where these are of different lengths."""
    try:
        return tuple(np.shape(mask))
    except ValueError:
        return ()


def _in_a_row(mask: Any) -> list[np.ndarray]:
    if isinstance(mask, tuple | list) and any(np.ndim(part) for part in mask):
        return [row for part in mask for row in _in_a_row(part)]
    return [np.ravel(mask.cpu().numpy() if isinstance(mask, Tensor) else mask)]


def _number(actions: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Mixed-radix numbers of actions (S, D), first dimension most significant: (S,)."""
    number = actions[:, 0]
    for d in range(1, len(sizes)):
        number = number * sizes[d] + actions[:, d]
    return number


def list_judge(actions: Any, categories: Categories, where: str) -> Judge:
    """The judge of a list of all valid actions, each in the space's own form. ValueError."""
    try:
        rows = [categories.from_space(action) for action in actions]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    if math.prod(categories.sizes) <= LISTED:
        mask = np.zeros(math.prod(categories.sizes), dtype=bool)
        if rows:
            mask[_number(np.stack(rows), categories.sizes)] = True
        return lambda asked: mask[_number(asked, categories.sizes)]
    known = {tuple(row.tolist()) for row in rows}
    return lambda asked: np.array([tuple(action) in known for action in asked.tolist()], dtype=bool)


# ------------------------------------------------------------------------------------------------ sources


class NotTold(ValueError):
    """A state of which not everything is known that its source needs."""


class Source:
    """One place where valid actions are kept: `judge(state)`; `where` says it in words."""

    def __init__(self, where: str, read: Callable[[State], Any], judge: Callable[[Any], Judge]):
        self.where, self._read, self._judge = where, read, judge

    def judge(self, state: State) -> Judge:
        """ValueError for what no judge can be made of; RuntimeError from an error inside the environment."""
        try:
            found = self._read(state)
        except NotTold:
            raise
        except Exception as error:
            raise RuntimeError(f"{self.where} raised {type(error).__name__}: {error}") from error
        return self._judge(found)


def source_named(name: str, env: gymnasium.Env, state: State, categories: Categories) -> Source:
    """The source of that name: a method or attribute of the environment, a key of its observation or of info.

    A name with "mask" in it holds a mask, so does anything boolean; a method with one argument judges an action; the
    rest are lists of actions. ValueError where there is none.
    """
    found = _found(name, env, state)
    if found is None:
        raise ValueError(
            f"there is no {name!r}: {type(env.unwrapped).__name__} has no such method or attribute, its observation no "
            f"such key, and its info has {', '.join(map(repr, state.info)) or 'no keys'}{_nearest(name, env, state)}"
        )
    where, read, judges = found
    if judges:
        return Source(where, read, lambda method: _method_judge(method, categories))
    kind = mask_judge if "mask" in name or _is_boolean(read(state)) else list_judge
    return Source(where, read, lambda value: kind(value, categories, where))


def recognised(env: gymnasium.Env, state: State, categories: Categories) -> Source | None:
    """The first of the usual names that this environment has; None: nothing says that any action is invalid."""
    for name in (*MASKS, *LISTS, *JUDGES):
        found = _found(name, env, state)
        if found is not None and found.judges == (name in JUDGES):
            return source_named(name, env, state, categories)
    return None


def passed_over(env: gymnasium.Env, state: State) -> list[str]:
    """Names that sound as if they told what is valid, where `recognised` found none: for a warning."""
    return [name for name in _names(env, state) if SOUNDS.intersection(name.lower().split("_"))]


def _names(env: gymnasium.Env, state: State) -> list[str]:
    """All that could be named: what the environment, or a wrapper, has of its own; keys of its observation and info."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    own = [name for one in layers for name in dir(one) if name[0] != "_" and not hasattr(gymnasium.Wrapper, name)]
    keys = list(state.observation) if isinstance(state.observation, Mapping) else []
    return [name for name in dict.fromkeys((*own, *keys, *state.info)) if isinstance(name, str)]


def _nearest(name: str, env: gymnasium.Env, state: State) -> str:
    """What a misspelt name may have meant, for an error."""
    near = get_close_matches(name, _names(env, state), n=2, cutoff=0)
    return f"; nearest: {', '.join(map(repr, near))}" if near else ""


def _method_judge(method: Callable[[Any], bool], categories: Categories) -> Judge:
    judged = PerAction(lambda _, action: method(action)).judged
    return distinct_judge(lambda action: judged(None, categories.to_space(action)))


def _is_boolean(value: Any) -> bool:
    return getattr(value, "dtype", None) in (bool, torch.bool) or (
        isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(part, bool | np.bool_) for part in value)
    )


class Found(NamedTuple):
    where: str  # in words
    read: Callable[[State], Any]
    judges: bool  # what is read is a method that judges one action


def _found(name: str, env: gymnasium.Env, state: State) -> Found | None:
    """Where a name is: at the environment, in its observation, in info; None if nowhere."""
    if env.has_wrapper_attr(name):
        value = env.get_wrapper_attr(name)
        if not callable(value):
            return Found(f"env.{name}", lambda state: _of_env(state, name), False)
        needed = [p for p in inspect.signature(value).parameters.values() if p.default is p.empty and p.kind < 2]
        if not needed:
            return Found(f"env.{name}()", lambda state: _of_env(state, name)(), False)
        if len(needed) == 1 and "mask" not in name and name not in LISTS:  # else its argument is no action (Taxi's)
            return Found(f"env.{name}(action)", lambda state: _of_env(state, name), True)
    if isinstance(state.observation, Mapping) and name in state.observation:
        return Found(f"observation[{name!r}]", lambda state: state.observation[name], False)
    if name in state.info:
        return Found(f"info[{name!r}]", lambda state: _of_info(state, name), False)
    return None


def _of_env(state: State, name: str) -> Any:
    if state.env is None:
        raise NotTold(f"valid actions come from env.{name}, so say whose: act(observation, env=…, or action_mask=…)")
    return state.env.get_wrapper_attr(name)


def _of_info(state: State, name: str) -> Any:
    if state.info is NOT_TOLD:
        raise NotTold(
            f"valid actions come from info[{name!r}], which is not there: act(observation, info=…, or action_mask=…)"
        )
    if name not in state.info:
        raise NotTold(f"info has no {name!r}, which told at first what is valid; it must be in every state's info")
    return state.info[name]


class Several(Source):
    """What all of several sources, or `per_action` functions, call valid."""

    def __init__(self, parts: "list[Validity]"):
        self.where, self._parts = " and ".join(part.where for part in parts), parts

    def judge(self, state: State) -> Judge:
        judges = [part.judge(state) for part in self._parts]
        return lambda actions: np.logical_and.reduce([judge(actions) for judge in judges])


class Validity:
    """What is valid in a list of states, from one source or one function for all."""

    def __init__(self, categories: Categories, observations: Observations, source: Source | Callable | None):
        self.categories, self.observations, self.source = categories, observations, source
        self._start = torch.as_tensor(categories.start)

    @property
    def where(self) -> str:
        """In words, where valid actions are kept."""
        if self.source is None:
            return "nowhere: every action is valid"
        return self.source.where if isinstance(self.source, Source) else GIVEN

    def judge(self, state: State) -> Judge:
        """ValueError where the source can't be read."""
        if self.source is None:
            return lambda actions: np.ones(len(actions), dtype=bool)
        if isinstance(self.source, Source):
            return self.source.judge(state)
        to_space, judged = self.categories.to_space, self.source.judged
        return distinct_judge(lambda action: judged(state.observation, to_space(action)))

    @property
    def one_by_one(self) -> bool:
        """Whether states are judged one after the other; else a batched oracle is asked about all of them at once."""
        return self.source is None or isinstance(self.source, Source | PerAction)

    def ask(self, states: list[State], judges: list[Judge] | None, actions: Tensor) -> Tensor:
        """actions (B, S, D) int64 from 0, of B states → (B, S) bool; judges: those of the states, if made already."""
        if self.one_by_one:
            judges = judges or [self.judge(state) for state in states]
            asked = actions.cpu().numpy()
            answers = [judge(batch) for judge, batch in zip(judges, asked, strict=True)]
            return torch.as_tensor(np.stack(answers), device=actions.device)
        rows = np.stack([self.observations.for_oracle(state.observation) for state in states])
        observation = torch.as_tensor(_torch_has(rows), device=actions.device)
        return ask_apart(self.source, observation, actions + self._start.to(actions.device))


def _torch_has(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that torch computes with."""
    return array.astype(np.int64) if array.dtype in (np.uint16, np.uint32, np.uint64) else array
