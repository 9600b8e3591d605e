"""What batched environments share: what a step returns, and the checks of the actions that they are given."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Step(NamedTuple):
    """What a step of B environments returns; where an episode ended, `observation` is the first of the next one."""

    observation: Tensor  # (B, …)
    reward: Tensor  # (B,) float32
    terminated: Tensor  # (B,) bool
    truncated: Tensor  # (B,) bool
    final_observation: Tensor  # (B, …): the last of the episode that ended, elsewhere `observation`


Oracle = Callable[[Tensor, Tensor], Tensor]  # observation (B, …), actions (B, S, D) int64 → bool (B, S)


class Batched(Protocol):
    """A batch of B environments, each reset in the step that ends its episode: what `a2c.Trainer` trains on."""

    @property
    def n_envs(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def action_sizes(self) -> tuple[int, ...]: ...  # K_d, d = 1..D
    @property
    def observation_shape(self) -> tuple[int, ...]: ...
    @property
    def violations(self) -> int | Tensor: ...  # invalid actions it was given

    def reset(self) -> Tensor:
        """New episodes everywhere → observations (B, …)."""
        ...

    def step(self, actions: Tensor) -> Step:
        """actions (B, D) int64. An invalid one is never executed: ValueError, or it does nothing and is counted."""
        ...

    @property
    def valid(self) -> Oracle: ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def check_actions(env, actions: Tensor) -> None:
    """ValueError unless actions are (B, D) int64, what `step` takes."""
    shape = (env.n_envs, len(env.action_sizes))
    if actions.shape != shape or actions.dtype != torch.int64:
        raise ValueError(
            f"actions are {actions.dtype} of the shape {tuple(actions.shape)}; "
            f"allowed: torch.int64 of the shape {shape}"
        )


def check_question(env, observation: Tensor, actions: Tensor) -> None:
    """ValueError unless observation is (B, …) and actions are (B, S, D) int64, what an oracle takes."""
    if observation.shape[1:] != env.observation_shape:
        allowed = ", ".join(map(str, ("B", *env.observation_shape)))
        raise ValueError(f"observation has the shape {tuple(observation.shape)}; allowed: ({allowed})")
    D = len(env.action_sizes)
    if actions.dtype != torch.int64 or actions.ndim != 3 or actions.shape[::2] != (len(observation), D):
        raise ValueError(
            f"actions are {actions.dtype} of the shape {tuple(actions.shape)}; "
            f"allowed: torch.int64 of the shape ({len(observation)}, S, {D})"
        )
