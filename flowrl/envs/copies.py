"""Copies of one gymnasium environment, alike and each its own: made for a batch, kept in its checkpoints."""

import contextlib
import copy
import pickle
from collections.abc import Callable

import gymnasium
import torch
from gymnasium.utils import EzPickle
from gymnasium.vector import SyncVectorEnv, VectorEnv
from torch import Tensor

from .spaces import Categories, frozen
from .validity import State


def copies(env: str | Callable[[], gymnasium.Env] | SyncVectorEnv, n_envs: int) -> tuple[list[gymnasium.Env], str]:
    """B environments, alike and each its own, and what to call them. Raises ValueError."""
    if isinstance(env, VectorEnv):
        made = _taken_from(env, n_envs)
    else:
        made = [_made(env)]
        Categories(made[0].action_space)  # a space that doesn't fit is told before 64 copies are made
        made += [_made(env) for _ in range(n_envs - 1)]
    if len({id(one.unwrapped) for one in made}) < n_envs:
        raise ValueError("the callable returned the same environment twice; it must make a new one each time")
    first = made[0]
    if any(one.observation_space != first.observation_space or one.action_space != first.action_space for one in made):
        raise ValueError("the environments made differ in their observation or action spaces; they must be alike")
    return made, first.spec.id if first.spec is not None else type(first.unwrapped).__name__


def _taken_from(env: VectorEnv, n_envs: int) -> list[gymnasium.Env]:
    if not isinstance(env, SyncVectorEnv):
        raise ValueError(
            f"{type(env).__name__} keeps its environments to itself; give what makes one of them, or a SyncVectorEnv"
        )
    if env.num_envs != n_envs:
        raise ValueError(f"the vector environment has {env.num_envs} environments; n_envs is {n_envs}")
    return list(env.envs)


def _made(env: str | Callable[[], gymnasium.Env]) -> gymnasium.Env:
    if isinstance(env, gymnasium.Env) or not (isinstance(env, str) or callable(env)):
        raise ValueError(
            f"the environment is {type(env).__name__}; give a gymnasium id, or a callable that makes a new environment"
        )
    try:
        made = gymnasium.make(env) if isinstance(env, str) else env()
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"gymnasium can't make {env!r}: {' '.join(str(error).split())}") from None
    if not isinstance(made, gymnasium.Env):
        raise ValueError(f"the callable returned {type(made).__name__}; it must make a gymnasium.Env")
    return made


def snapshot(states: list[State]) -> Tensor | list[tuple] | None:
    """The environments and what they gave last as bytes, else as copies, else None.

    They are copied together: they may share what they hold.
    """
    if any(state.env is not None and isinstance(state.env.unwrapped, EzPickle) for state in states):
        return None
    plain = [tuple(state) for state in states]
    try:
        return torch.frombuffer(bytearray(pickle.dumps(plain)), dtype=torch.uint8)
    except Exception:  # whatever an environment's own parts raise when they can't be pickled
        with contextlib.suppress(Exception):
            return copy.deepcopy(plain)
    return None


def restored(snapshot: Tensor | list[tuple]) -> list[State]:
    """What `snapshot` kept; unpickles bytes, which runs code."""
    plain = pickle.loads(snapshot.cpu().numpy().tobytes()) if isinstance(snapshot, Tensor) else copy.deepcopy(snapshot)
    return [State(frozen(observation), info, env) for observation, info, env in plain]
