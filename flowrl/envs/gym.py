"""Bring your own: any gymnasium environment with categorical actions behind `BatchedERA`'s interface, and an oracle.

    env = GymBatched("CartPole-v1", n_envs=64)
    env = GymBatched(lambda: MyEnvironment(), n_envs=64, oracle=per_action(fits))

B copies are stepped one after the other by gymnasium's `SyncVectorEnv`, which resets an environment in the step that
ended its episode. Nothing is known of the valid actions but the oracle's answers (paper, section 1); an action that it
refuses is never executed.
"""

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, flatten, flatten_space
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from ..rejection import ask
from .batched import Step

Oracle = Callable[[Tensor, Tensor], Tensor]  # observation (B, …), actions (B, S, D) → (B, S) bool


def per_action(fn: Callable[[np.ndarray, np.ndarray], bool]) -> Oracle:
    """The batched oracle of a function that judges one action: fn(observation (…), action (D,)) → bool.

    A Discrete space has D = 1, and an array of one bool will do, so that `action < 4` works there, too. In each state a
    repeated action is judged once: `fn` must depend on its arguments alone. ValueError where it returns anything else.
    """
    if not callable(fn):
        raise ValueError(f"per_action was given {type(fn).__name__}; it takes a function (observation, action) → bool")

    def judged(state: np.ndarray, action: np.ndarray) -> bool:
        answer = fn(state, action)
        if isinstance(answer, np.ndarray) and answer.size == 1:
            answer = answer.item()
        if not isinstance(answer, bool | np.bool_):
            raise ValueError(f"the oracle returned {answer!r} for action {action.tolist()}; it must return a bool")
        return bool(answer)

    def oracle(observation: Tensor, actions: Tensor) -> Tensor:
        answers = np.empty(tuple(actions.shape[:2]), dtype=bool)
        for b, (state, batch) in enumerate(zip(observation.cpu().numpy(), actions.cpu().numpy(), strict=True)):
            distinct, which = np.unique(batch, axis=0, return_inverse=True)
            answers[b] = np.array([judged(state, action) for action in distinct])[which.reshape(-1)]
        return torch.as_tensor(answers, device=actions.device)

    return oracle


class GymBatched:
    """B copies of a gymnasium environment, with episodes of their own; Discrete or MultiDiscrete action space.

    env: an id, or a callable without arguments that makes a new environment each time. Observations that are no arrays
    (Dict, Tuple, Discrete, …) are flattened; all reach the policy as float32, unscaled.
    oracle(observation (B, …), actions (B, S, D) int64) → bool (B, S); None: every action is valid. fallback(observation
    (B, …)) → actions (B, D), called where no draw is valid. Both get and give what the environment's own `step` takes
    (a Discrete's or MultiDiscrete's `start` included); everything else here counts categories from 0.

    A general environment has no "no move" to fall back on: `step` calls the oracle itself, on the observations that it
    gave out last, counts what it refuses in `violations` and raises a ValueError instead of executing anything.

    Raises ValueError for an environment that can't be made, whose actions or observations don't fit, or that says by an
    attribute `constrained` that it refuses actions, where no oracle tells which.
    """

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env],
        n_envs: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        oracle: Oracle | None = None,
        fallback: Callable[[Tensor], Tensor] | None = None,
    ):
        for name, value in (("oracle", oracle), ("fallback", fallback)):
            if value is not None and not callable(value):
                raise ValueError(f"the {name} is {type(value).__name__}; it must be a function, or None")
        if n_envs < 1:
            raise ValueError(f"n_envs is {n_envs}; it must be at least 1")
        self.n_envs, self.device, self.oracle = n_envs, torch.device(device), oracle
        self._given_fallback = fallback
        self.fallback = None if fallback is None else self._fallback
        self._vector, self._given_space = _vector(env, n_envs)
        if oracle is None and getattr(self._vector.envs[0].unwrapped, "constrained", False):
            raise ValueError(
                "the environment has constraints (it says so: env.constrained) and no oracle was given; one of "
                "flowrl's own is called itself where it is given by its name"
            )
        self.action_sizes, start = _sizes_and_start(self._vector.single_action_space)
        self.observation_shape = self._vector.single_observation_space.shape
        self._sizes = torch.tensor(self.action_sizes, device=self.device)
        self._start = torch.tensor(start, device=self.device)
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self.violations = 0
        self.reset()

    # ---------------------------------------------------------------------------------------------- the batch

    def reset(self) -> Tensor:
        """New episodes everywhere, each environment seeded from the generator → observations (B, …) float32."""
        seeds = torch.randint(2**31, (self.n_envs,), generator=self.generator, device=self.device)
        observation, _ = self._vector.reset(seed=seeds.tolist())
        self._observation = self._tensor(observation)
        return self._observation

    def step(self, actions: Tensor) -> Step:
        """actions: (B, D) int64, categories from 0. ValueError, and nothing is executed, if any of them is invalid."""
        self._refuse_invalid(actions)
        observation, reward, terminated, truncated, info = self._vector.step(self.to_environment(actions))
        final = observation
        if "final_obs" in info:
            final = observation.copy()
            for i in np.flatnonzero(terminated | truncated):
                final[i] = info["final_obs"][i]
        self._observation = self._tensor(observation)
        return Step(
            self._observation,
            self._tensor(reward.astype(np.float32)),
            self._tensor(terminated),
            self._tensor(truncated),
            self._observation if final is observation else self._tensor(final),
        )

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The oracle: observation (B, …), actions (B, S, D) int64, categories from 0 → (B, S) bool."""
        D = len(self.action_sizes)
        if actions.dtype != torch.int64 or actions.ndim != 3 or actions.shape[::2] != (len(observation), D):
            raise ValueError(
                f"actions are {actions.dtype} of the shape {tuple(actions.shape)}; "
                f"allowed: torch.int64 of the shape ({len(observation)}, S, {D})"
            )
        if self.oracle is None:
            return torch.ones(actions.shape[:2], dtype=torch.bool, device=self.device)
        return ask(self.oracle, observation, actions + self._start).to(self.device)

    def _refuse_invalid(self, actions: Tensor) -> None:
        expected = (self.n_envs, len(self.action_sizes))
        if actions.dtype != torch.int64 or actions.shape != expected:
            raise ValueError(
                f"actions are {actions.dtype} of the shape {tuple(actions.shape)}; "
                f"allowed: torch.int64 of the shape {expected}"
            )
        inside = actions.clamp_min(0).minimum(self._sizes - 1)
        valid = self.valid(self._observation, inside[:, None])[:, 0] & (inside == actions).all(1)
        refused = (~valid).nonzero().flatten().tolist()
        if refused:
            self.violations += len(refused)
            raise ValueError(
                f"action {actions[refused[0]].tolist()} is invalid in environment {refused[0]} "
                f"({len(refused)} of {self.n_envs} are); nothing was executed"
            )

    def _fallback(self, observation: Tensor) -> Tensor | None:
        """What the user's fallback gives, (B, D) int64 from 0."""
        action = self._given_fallback(observation)
        if action is None:
            return None
        expected = (len(observation), len(self.action_sizes))
        if not isinstance(action, Tensor) or action.dtype != torch.int64 or action.shape != expected:
            got = f"{action.dtype} {tuple(action.shape)}" if isinstance(action, Tensor) else type(action).__name__
            raise ValueError(f"the fallback returned {got}; it must return a torch.int64 tensor {expected}, or None")
        return action.to(self.device) - self._start

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, device=self.device)

    # ------------------------------------------------------------------------------- one environment's own terms

    def to_tensor(self, observation: Any) -> Tensor:
        """One observation as the environment gives it → (1, …) float32. ValueError for one of another shape."""
        single = _array(self._given_space, observation)
        if single.shape != self.observation_shape:
            raise ValueError(f"the observation has the shape {single.shape}; allowed: {self.observation_shape}")
        return self._tensor(single)[None]

    def to_environment(self, actions: Tensor) -> np.ndarray:
        """Actions (…, D) from 0 → what `step` of the environments takes: (…) for Discrete, (…, D) for MultiDiscrete."""
        space = self._vector.single_action_space
        given = (actions + self._start).cpu().numpy().astype(space.dtype)
        return given[..., 0] if isinstance(space, Discrete) else given

    # ------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint.

        The environments themselves are in it, pickled into a byte tensor or, where they can't be, deep-copied (then
        torch.save can't write them, and resume works within the process). A resumed run is exact if a copy of the
        environment goes on as the original would. Those that rebuild themselves instead (gymnasium's EzPickle: Box2D,
        MuJoCo, Atari) and those that can't be copied are left out: `load_state_dict` refuses. Bytes are unpickled by
        `load_state_dict`, which runs code: load only checkpoints that you trust.
        """
        return {
            "environments": _snapshot(self._vector.envs),
            "observation": self._observation.clone(),
            "violations": self.violations,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`. ValueError where it is another batch's, or the environments are not in it."""
        if state["observation"].shape != (self.n_envs, *self.observation_shape):
            raise ValueError("the checkpoint is of another environment or batch")
        if state["environments"] is None:
            raise ValueError("this environment can't be copied, so its checkpoint doesn't hold it: no resume")
        self._vector.envs = _restored(state["environments"])
        self._observation = state["observation"].to(self.device)
        self.violations = state["violations"]
        self.generator.set_state(state["generator"].cpu())


class _Plain(gymnasium.Wrapper):
    """Observations flat where they are no arrays, float32, each in an array of its own, for an environment may write
    its next one into the same; no info. gymnasium's FlattenObservation can't be pickled: checkpoints need that.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.given = env.observation_space
        shape = self.given.shape if _is_array(self.given) else flatten_space(self.given).shape
        self.observation_space = Box(-np.inf, np.inf, shape, np.float32)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict]:
        return _array(self.given, self.env.reset(**options)[0]), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return _array(self.given, observation), float(reward), bool(terminated), bool(truncated), {}


def _array(space: gymnasium.Space, observation: Any) -> np.ndarray:
    """An observation of a space as a new float32 array, flat unless the space is a Box with at least one axis."""
    return np.array(observation if _is_array(space) else flatten(space, observation), dtype=np.float32)


def _is_array(space: gymnasium.Space) -> bool:
    return isinstance(space, Box) and space.shape != ()


def _vector(env: str | Callable[[], gymnasium.Env], n_envs: int) -> tuple[SyncVectorEnv, gymnasium.Space]:
    """B environments in one, and the space of an environment's own observations. Raises ValueError."""
    first = _made(env)
    given = first.observation_space
    _sizes_and_start(first.action_space)
    if not _is_array(given) and not isinstance(flatten_space(given), Box):
        raise ValueError(f"observations are {given}, which has no fixed size; allowed: what gymnasium can flatten")

    made = [first, *(_made(env) for _ in range(n_envs - 1))]
    if len({id(one.unwrapped) for one in made}) < n_envs:
        raise ValueError("the callable returned the same environment twice; it must make a new one each time")
    if any(one.observation_space != given or one.action_space != first.action_space for one in made):
        raise ValueError("the environments made differ in their observation or action spaces; they must be alike")
    makers = [lambda one=one: _Plain(one) for one in made]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), given


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


def _sizes_and_start(space: gymnasium.Space) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Categories of each dimension, and the environment's number for the first of each. Raises ValueError."""
    if isinstance(space, Discrete):
        return (int(space.n),), (int(space.start),)
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(space.nvec.tolist()), tuple(space.start.tolist())
    shown = " ".join(str(space).split())
    raise ValueError(f"the action space is {shown}; allowed: Discrete, or MultiDiscrete with one axis")


def _snapshot(envs: list[gymnasium.Env]) -> Tensor | list[gymnasium.Env] | None:
    """The environments as bytes, else as copies, else None. They are copied together: they may share what they hold."""
    if any(isinstance(env.unwrapped, EzPickle) for env in envs):
        return None
    try:
        return torch.frombuffer(bytearray(pickle.dumps(envs)), dtype=torch.uint8)
    except Exception:  # whatever an environment's own parts raise when they can't be pickled
        with contextlib.suppress(Exception):
            return copy.deepcopy(envs)
    return None


def _restored(snapshot: Tensor | list[gymnasium.Env]) -> list[gymnasium.Env]:
    return pickle.loads(snapshot.cpu().numpy().tobytes()) if isinstance(snapshot, Tensor) else copy.deepcopy(snapshot)
