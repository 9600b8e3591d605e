"""Copies of one gymnasium environment, alike and each its own: made for a batch, kept in its checkpoints."""

import contextlib
import copy
import pickle
from collections.abc import Callable, Sequence

import gymnasium
import torch
from gymnasium.utils import EzPickle
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from torch import Tensor

from .spaces import Categories, frozen
from .validity import State

OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")  # what make_vec adds to a spec's arguments


def copies(env: str | Callable[[], gymnasium.Env] | VectorEnv, n_envs: int) -> tuple[list[gymnasium.Env], str]:
    """B environments, alike and each its own, and what to call them. Raises ValueError."""
    makers = _makers(env) if isinstance(env, VectorEnv) else [lambda: _made(env)]
    made = [makers[0]()]
    Categories(made[0].action_space)  # a space that doesn't fit is told before 64 copies are made
    made += [makers[i % len(makers)]() for i in range(1, n_envs)]
    theirs = [id(one.unwrapped) for one in env.envs] if isinstance(env, SyncVectorEnv) else []
    if any(id(one.unwrapped) in theirs for one in made):
        raise ValueError("its env_fns return environments made before; each must make a new one at every call")
    if len({id(one.unwrapped) for one in made}) < n_envs:
        raise ValueError("the callable returned the same environment twice; it must make a new one each time")
    first = made[0]
    if any(one.observation_space != first.observation_space or one.action_space != first.action_space for one in made):
        raise ValueError("the environments made differ in their observation or action spaces; they must be alike")
    return made, first.spec.id if first.spec is not None else type(first.unwrapped).__name__


def _makers(env: VectorEnv) -> Sequence[Callable[[], gymnasium.Env]]:
    """What makes the environments of a vector environment, whose own stay as they are: an evaluation needs others."""
    if isinstance(env, SyncVectorEnv | AsyncVectorEnv):
        return env.env_fns
    if env.spec is None or env.unwrapped is not env:  # a wrapper of vectors fits no single environment
        raise ValueError(
            f"{type(env).__name__} doesn't say what makes one of its environments; give that: a gymnasium id, or a "
            "callable"
        )
    spec = env.spec
    kwargs = {name: value for name, value in spec.kwargs.items() if name not in OF_VECTORS}
    return [lambda: gymnasium.make(spec.id, **kwargs)]


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
