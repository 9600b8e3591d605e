"""What a gymnasium batch is asked through: the oracle of its states or of given ones, and their known valid actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..rejection import NOTHING
from .validity import Judge, State

if TYPE_CHECKING:
    from .gym import GymBatched


class Live:
    """The oracle of the states that the copies are in: observation (b, …), actions (b, S, D) from 0 → (b, S) bool.

    An observation says less than a state: it is the copies' last one, or the ValueError says so; `of(rows)`: of some.
    """

    def __init__(self, env: GymBatched, rows: list[int]):
        self._env, self._rows = env, rows

    def __call__(self, observation: Tensor, actions: Tensor) -> Tensor:
        D = len(self._env.action_sizes)
        if actions.dtype != torch.int64 or actions.ndim != 3 or actions.shape[::2] != (len(observation), D):
            raise ValueError(
                f"actions are {actions.dtype} of the shape {tuple(actions.shape)}; "
                f"allowed: torch.int64 of the shape ({len(observation)}, S, {D})"
            )
        if not torch.equal(observation, self._env._observation[self._rows]):
            raise ValueError("the observations are not those that the environments gave last, whose states are asked")
        return self._env._ask(self._rows, actions)

    def of(self, rows: Tensor) -> Live:
        return type(self)(self._env, [self._rows[i] for i in rows.tolist()])


class Fallback:
    """`known_valid` of states, (b, D) int64 from 0, NOTHING in those where it is None; None where it is in all of them.

    accepts_nothing: the action NOTHING may be executed, as the user has said what becomes of such a state.
    """

    def __init__(self, env: GymBatched, states: Callable[[], list[State]], accepts_nothing: bool):
        self._env, self._states, self.accepts_nothing = env, states, accepts_nothing

    def __call__(self, observation: Tensor) -> Tensor | None:
        known = [self._env._known(state) for state in self._states()]
        if all(action is None for action in known):
            return None
        nothing = np.full(len(self._env.action_sizes), NOTHING)
        rows = [nothing if action is None else action for action in known]
        return torch.as_tensor(np.stack(rows), device=observation.device)

    def of(self, rows: Tensor) -> Fallback:
        chosen = [self._states()[i] for i in rows.tolist()]
        return Fallback(self._env, lambda: chosen, self.accepts_nothing)


class Given:
    """The oracle of given states."""

    def __init__(self, env: GymBatched, states: list[State], judges: list[Judge] | None):
        self._env, self._states, self._judges = env, states, judges

    def __call__(self, observation: Tensor, actions: Tensor) -> Tensor:
        if self._judges is not None:
            answers = np.stack([judge(a) for judge, a in zip(self._judges, actions.cpu().numpy(), strict=True)])
            return torch.as_tensor(answers, device=actions.device)
        return self._env.validity.ask(self._states, None, actions)

    def of(self, rows: Tensor) -> Given:
        chosen = rows.tolist()
        judges = None if self._judges is None else [self._judges[i] for i in chosen]
        return Given(self._env, [self._states[i] for i in chosen], judges)


def was_valid(i: int, action: Tensor, answers: list[tuple[list[int], Tensor, Tensor]]) -> bool:
    """Whether the oracle has called an action of copy i valid in this state."""
    return any(
        bool((valid[rows.index(i)] & (asked[rows.index(i)] == action).all(-1)).any())
        for rows, asked, valid in answers
        if i in rows
    )
