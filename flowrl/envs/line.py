"""Resources in a row that interact with their neighbours alone: as many actions as one likes, and yet exact.

D resources each choose one of K levels. Every two neighbours share an incident in one of two modes, which is hidden; a
step in which both are at that mode's levels serves it, reward 1, and the next one's mode is drawn afresh. Which levels
these are depends on the context, one of two, drawn for each episode and all that is observed. Of the K² pairs of levels
of two neighbours K are forbidden, none of them pairs of those levels: (1 − 1/K)^(D−1) of the K^D actions are valid. The
best policy draws one mode, evenly, and sends all resources to its levels; independent ones agree half as often
(`ERA-Partial` in a row). Exact returns at any |A|: `truth.line`. `BatchedLine` and `LineEnv` are written apart and
tested against each other.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from .batched import Step, check_actions, check_question
from .era import Info

NAMES = ("Line-4x8", "Line-12x10", "Line-20x10", "Line-30x10")  # of any size; these have a gymnasium id


@dataclass(frozen=True)
class Line:
    """The constants of one environment."""

    resources: int  # D, in a row
    levels: int  # K
    contexts: int = 2  # C, each as likely as any other
    modes: int = 2  # M, likewise
    horizon: int = 100  # steps of an episode
    version: int = 1

    @classmethod
    def load(cls, name: "str | Path | Line") -> "Line":
        """Line-<D>x<K>, D ≥ 2 and K ≥ 4, for example Line-20x10; ValueError for anything else."""
        if isinstance(name, Line):
            return name
        if not (found := re.fullmatch(r"Line-(\d+)x(\d+)", str(name))):
            raise ValueError(f"unknown environment {str(name)!r}: a line is Line-<D>x<K>, such as Line-20x10")
        line = cls(*map(int, found.groups()))
        if line.resources < 2 or line.levels < 2 * line.modes:
            raise ValueError(f"{name}: a line has at least 2 resources and {2 * line.modes} levels")
        return line

    @property
    def name(self) -> str:
        return f"Line-{self.resources}x{self.levels}"

    @cached_property
    def _order(self) -> np.ndarray:
        """(C, D, K): in each context a permutation of every resource's levels; the first M are those of the modes."""
        rng = np.random.default_rng([self.resources, self.levels, self.version])
        shape = (self.contexts, self.resources, self.levels)
        return rng.permuted(np.broadcast_to(np.arange(self.levels), shape), axis=-1)

    @property
    def targets(self) -> np.ndarray:
        """(C, D, M) int64: the level that serves each mode."""
        return self._order[..., : self.modes]

    @cached_property
    def valid(self) -> np.ndarray:
        """(C, D − 1, K, K) bool: which levels (i, j) of neighbours d, d + 1 go together in each context."""
        first, second = self._order[:, :-1], np.roll(self._order[:, 1:], -self.modes, axis=-1)
        valid = np.ones((*first.shape, self.levels), dtype=bool)
        c, d, _ = np.ogrid[tuple(map(slice, first.shape))]
        valid[c, d, first, second] = False
        return valid

    @cached_property
    def digest(self) -> str:
        """SHA-256 over constants and levels."""
        content = json.dumps(asdict(self) | {"order": self._order.tolist()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def is_line(name: Any) -> "TypeGuard[str | Path | Line]":
    """Whether an environment's name is meant to be a line's."""
    return isinstance(name, Line) or str(name).startswith("Line-") and not str(name).endswith(".json")


class BatchedLine:
    """B copies of one line on one device, in step with each other: all episodes end together.

    An observation (C,) says which context it is. An invalid action does nothing; `violations` counts those given to
    `step`, `refused` (B,) tells those of the last. Nothing synchronises with the host.
    """

    def __init__(
        self,
        name: str | Line,
        n_envs: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ):
        self.line = line = Line.load(name)
        if n_envs < 1:
            raise ValueError(f"n_envs is {n_envs}; it must be at least 1")
        self.n_envs, self.device, self.horizon, self.digest = n_envs, torch.device(device), line.horizon, line.digest
        self.action_sizes, self.observation_shape = (line.levels,) * line.resources, (line.contexts,)
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self._targets = torch.as_tensor(line.targets, device=self.device).mT.contiguous()  # (C, M, D)
        self._valid = torch.as_tensor(line.valid, device=self.device).flatten()
        self._pairs = torch.arange(line.resources - 1, device=self.device)
        self.contexts = torch.eye(line.contexts, device=self.device)  # every observation
        self._running = torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        self.refused, self.violations = self._running, torch.zeros((), dtype=torch.int64, device=self.device)
        self.reset()

    def reset(self, uniforms: Tensor | None = None) -> Tensor:
        """New episodes everywhere → observations (B, C). uniforms: (B, D) in [0, 1), or drawn: as of `step`."""
        self.time = 0
        self._context, self._mode = self._drawn(uniforms)
        return self.contexts[self._context]

    def step(self, actions: Tensor, uniforms: Tensor | None = None) -> Step:
        """actions: (B, D) int64, each resource's level; an invalid one does nothing and is counted.

        uniforms: (B, D) in [0, 1), drawn here by default: [:, 1:] picks the next mode of each pair that was served,
        and at the episode's end all modes, and [:, 0] the context. ValueError for actions of another shape.
        """
        check_actions(self, actions)
        valid = self._allowed(self._context.unsqueeze(1), actions.unsqueeze(1)).squeeze(1)
        self.refused = ~valid
        self.violations += self.refused.sum()
        there = actions.unsqueeze(1) == self._targets[self._context]  # (B, M, D)
        both = there[..., :-1] & there[..., 1:]
        served = both.gather(1, self._mode.unsqueeze(1)).squeeze(1) & valid.unsqueeze(1)
        final = self.contexts[self._context]
        context, mode = self._drawn(uniforms)
        self.time += 1
        if ended := self.time == self.horizon:
            self.time, self._context, self._mode = 0, context, mode
        else:
            self._mode = torch.where(served, mode, self._mode)
        truncated = ~self._running if ended else self._running
        return Step(self.contexts[self._context], served.sum(1).float(), self._running, truncated, final)

    def _drawn(self, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
        """Contexts (B,) and modes (B, D − 1) of uniforms (B, D)."""
        if uniforms is None:
            shape = (self.n_envs, self.line.resources)
            uniforms = torch.rand(shape, device=self.device, generator=self.generator)
        return (uniforms[:, 0] * self.line.contexts).long(), (uniforms[:, 1:] * self.line.modes).long()

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The oracle: observation (B, C), actions (B, S, D) int64 → (B, S) bool. ValueError for other shapes."""
        check_question(self, observation, actions)
        return self._allowed(observation.argmax(-1, keepdim=True), actions)

    def _allowed(self, context: Tensor, actions: Tensor) -> Tensor:
        """Contexts (B, 1), actions (B, S, D) → (B, S) bool."""
        K = self.line.levels
        inside = actions.clamp(0, K - 1)
        pair = (context.unsqueeze(-1) * len(self._pairs) + self._pairs) * K + inside[..., :-1]
        return self._valid.take(pair * K + inside[..., 1:]).all(-1) & (inside == actions).all(-1)

    def fallback(self, observation: Tensor) -> Tensor:
        """Level after level the first that goes with the one before: observation (B, C) → actions (B, D) int64."""
        return torch.as_tensor(first_valid(self.line), device=self.device)[observation.argmax(-1)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint."""
        return {
            "digest": self.digest,
            "time": self.time,
            "context": self._context,
            "mode": self._mode,
            "violations": self.violations.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; ValueError where it is another line's or another number of environments'."""
        if state["digest"] != self.digest or len(state["context"]) != self.n_envs:
            raise ValueError(f"the checkpoint is of another line or batch than {self.n_envs} × {self.line.name}")
        self.time = state["time"]
        self._context, self._mode = (torch.as_tensor(state[key], device=self.device) for key in ("context", "mode"))
        self.violations = torch.as_tensor(state["violations"], device=self.device).clone()
        self.generator.set_state(state["generator"].cpu())


def first_valid(line: Line) -> np.ndarray:
    """(C, D) int64: a valid action in each context, first in lexicographic order."""
    action = np.zeros((line.contexts, line.resources), dtype=np.int64)
    for c, d in np.ndindex(line.contexts, line.resources - 1):
        action[c, d + 1] = line.valid[c, d, action[c, d]].argmax()
    return action


class LineEnv(gymnasium.Env):
    """One line as a gymnasium environment: the same dynamics as `BatchedLine`, written apart from it.

    `info` carries `valid` (whether the last action was) and `violations` (how many were not in this episode).
    """

    metadata = {"render_modes": []}
    constrained = True

    def __init__(self, name: str | Line, render_mode: None = None):
        self.line, self.render_mode = Line.load(name), render_mode
        self.observation_space = Box(0.0, 1.0, (self.line.contexts,), np.float32)
        self.action_space = MultiDiscrete([self.line.levels] * self.line.resources)

    def uniforms(self) -> np.ndarray:
        """The next D draws from [0, 1): the context, then each pair's mode. Override to inject."""
        return self.np_random.random(self.line.resources)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """A new episode → observation (C,) and info."""
        super().reset(seed=seed)
        context, *modes = self.uniforms()
        self._context = int(context * self.line.contexts)
        self._modes = [int(u * self.line.modes) for u in modes]
        self.time, self.violations = 0, 0
        return self._observation(), {"valid": True, "violations": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """action: (D,) each resource's level; an invalid one does nothing and is counted."""
        levels, reward, targets = [int(level) for level in action], 0.0, self.line.targets[self._context]
        _, *fresh = self.uniforms()
        if valid := self.is_valid(levels):
            for d, mode in enumerate(self._modes):
                if levels[d] == targets[d, mode] and levels[d + 1] == targets[d + 1, mode]:
                    reward, self._modes[d] = reward + 1, int(fresh[d] * self.line.modes)
        else:
            self.violations += 1
        self.time += 1
        info = {"valid": valid, "violations": self.violations}
        return self._observation(), reward, False, self.time >= self.line.horizon, info

    def is_valid(self, action: "np.ndarray | list[int]") -> bool:
        """Whether all levels exist and all neighbours' go together in this context."""
        if not all(0 <= level < self.line.levels for level in action):
            return False
        tables = zip(self.line.valid[self._context], action[:-1], action[1:], strict=True)
        return all(bool(table[i, j]) for table, i, j in tables)

    def _observation(self) -> np.ndarray:
        return np.eye(self.line.contexts, dtype=np.float32)[self._context]
