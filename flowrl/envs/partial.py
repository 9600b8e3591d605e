"""Hidden incidents that only a joint policy serves well (paper, Figure 6; the missing appendix defined anew).

An incident is open in one of K districts and nothing says where. Two resources act together: where a step sends both of
them to the incident it is served, reward 10, and the next one opens in a uniformly drawn district. The observation is
constant, so that a policy without memory is one distribution over K² actions. The best one is uniform over (n, n),
which no product of marginals is; in Joint-Cstr none becomes so by rejection either. Their exact returns are in `exact`.
`BatchedPartial` and `PartialEnv` are written apart and tested against each other.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from .batched import Step, check_actions, check_question
from .era import Info

RESOURCES = 2


@dataclass(frozen=True)
class Game:
    """The constants of one environment; rewards and penalties share one unit."""

    name: str
    districts: int  # K, on a ring
    proximity: int | None = None  # hops that the two resources may be apart; None: no constraint
    reward: float = 10.0  # where both are sent to the incident
    split: float = 0.0  # where a valid action sends them to different districts
    horizon: int = 100  # steps of an episode
    version: int = 1

    @classmethod
    def load(cls, name: "str | Game") -> "Game":
        """A game by name; ValueError lists them."""
        if isinstance(name, Game):
            return name
        if name not in GAMES:
            raise ValueError(f"unknown environment {name!r}: choose one of {', '.join(GAMES)}")
        return GAMES[name]

    @cached_property
    def valid(self) -> np.ndarray:
        """(K, K) bool: which actions (n, n') are valid."""
        clockwise = np.subtract.outer(np.arange(self.districts), np.arange(self.districts)) % self.districts
        hops = np.minimum(clockwise, self.districts - clockwise)
        return hops <= (self.districts if self.proximity is None else self.proximity)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name and constants."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


GAMES = {
    game.name: game
    for game in (
        Game("ERA-Partial", districts=3),
        Game("Toy-Partial", districts=2, split=-5.0),
        Game("Joint-Cstr", districts=4, proximity=1),
    )
}


class BatchedPartial:
    """B copies of one game on one device, in step with each other: all episodes end together.

    An observation is `window` times a one, the last `window` observations: an incident is open. An invalid action does
    nothing; `violations` counts those given to `step`, `refused` (B,) tells those of the last. Nothing synchronises
    with the host.
    """

    def __init__(
        self,
        name: str | Game,
        n_envs: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        window: int = 1,
    ):
        self.game = game = Game.load(name)
        for setting, value in (("n_envs", n_envs), ("window", window)):
            if value < 1:
                raise ValueError(f"{setting} is {value}; it must be at least 1")
        self.n_envs, self.device, self.horizon, self.digest = n_envs, torch.device(device), game.horizon, game.digest
        self.action_sizes, self.observation_shape = (game.districts,) * RESOURCES, (window,)
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self._valid = torch.as_tensor(game.valid, device=self.device)
        self._observation = torch.ones(n_envs, window, device=self.device)
        self._running = torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        self.refused, self.violations = self._running, torch.zeros((), dtype=torch.int64, device=self.device)
        self.reset()

    def reset(self, uniforms: Tensor | None = None) -> Tensor:
        """New episodes everywhere → observations (B, window). uniforms: (B,) in [0, 1), which district; or drawn."""
        if uniforms is None:
            uniforms = torch.rand(self.n_envs, device=self.device, generator=self.generator)
        self.time = 0
        self._incident = self._district(uniforms)
        return self._observation

    def step(self, actions: Tensor, uniforms: Tensor | None = None) -> Step:
        """actions: (B, 2) int64, where each resource is sent; an invalid one does nothing and is counted.

        uniforms: (B, 2) in [0, 1), drawn here by default: [:, 0] picks the next incident where this one is served,
        [:, 1] the first of the next episode. ValueError for actions of another shape or type.
        """
        if uniforms is None:
            uniforms = torch.rand(self.n_envs, 2, device=self.device, generator=self.generator)
        check_actions(self, actions)
        valid = self._allowed(actions)
        self.refused = ~valid
        self.violations += self.refused.sum()
        served = (actions == self._incident.unsqueeze(1)).all(1)
        apart = valid & (actions[:, 0] != actions[:, 1])
        reward = self.game.reward * served + self.game.split * apart
        self._incident = torch.where(served, self._district(uniforms[:, 0]), self._incident)
        self.time += 1
        if ended := self.time == self.horizon:
            self.reset(uniforms[:, 1])
        truncated = ~self._running if ended else self._running
        return Step(self._observation, reward, self._running, truncated, self._observation)

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The oracle: observation (B, window), actions (B, S, 2) int64 → (B, S) bool. ValueError for other shapes."""
        check_question(self, observation, actions)
        return self._allowed(actions)

    def _allowed(self, actions: Tensor) -> Tensor:
        inside = actions.clamp(0, self.game.districts - 1)
        return (inside == actions).all(-1) & self._valid[inside[..., 0], inside[..., 1]]

    def _district(self, uniforms: Tensor) -> Tensor:
        return (uniforms * self.game.districts).long()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint."""
        return {
            "digest": self.digest,
            "time": self.time,
            "incident": self._incident,
            "violations": self.violations.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; ValueError where it is another game's or another number of environments'."""
        if state["digest"] != self.digest or len(state["incident"]) != self.n_envs:
            raise ValueError(f"the checkpoint is of another game or batch than {self.n_envs} × {self.game.name}")
        self.time = state["time"]
        self._incident = torch.as_tensor(state["incident"], device=self.device)
        self.violations = torch.as_tensor(state["violations"], device=self.device).clone()
        self.generator.set_state(state["generator"].cpu())


class PartialEnv(gymnasium.Env):
    """One game as a gymnasium environment: the same dynamics as `BatchedPartial`, written apart from it.

    `info` carries `valid` (whether the last action was) and `violations` (how many were not in this episode).
    """

    metadata = {"render_modes": []}

    def __init__(self, name: str | Game, window: int = 1, render_mode: None = None):
        self.game, self.render_mode = Game.load(name), render_mode
        self.constrained = not self.game.valid.all()
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.window, self.observation_space = window, Box(0.0, 1.0, (window,), np.float32)
        self.action_space = MultiDiscrete([self.game.districts] * RESOURCES)

    def uniform(self) -> float:
        """The next draw from [0, 1): one a reset, one where an incident is served. Override to inject."""
        return float(self.np_random.random())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """A new episode → observation (window,) and info."""
        super().reset(seed=seed)
        self._incident = int(self.uniform() * self.game.districts)
        self.time, self.violations = 0, 0
        return self._observation(), {"valid": True, "violations": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """action: (2,) where each resource is sent; an invalid one does nothing and is counted."""
        game, reward = self.game, 0.0
        first, second = (int(district) for district in action)
        if not (valid := self.is_valid((first, second))):
            self.violations += 1
        elif first != second:
            reward = game.split
        elif first == self._incident:
            reward, self._incident = game.reward, int(self.uniform() * game.districts)
        self.time += 1
        info = {"valid": valid, "violations": self.violations}
        return self._observation(), reward, False, self.time >= game.horizon, info

    def is_valid(self, action: "np.ndarray | tuple[int, int]") -> bool:
        """Whether both districts exist and are near enough to each other on the ring."""
        K, limit = self.game.districts, self.game.proximity
        if not all(0 <= district < K for district in action):
            return False
        apart = abs(int(action[0]) - int(action[1]))
        return limit is None or min(apart, K - apart) <= limit

    def _observation(self) -> np.ndarray:
        return np.ones(self.window, np.float32)


def register() -> None:
    """Give every game its gymnasium id: flowrl/ERA-Partial, flowrl/Toy-Partial, flowrl/Joint-Cstr."""
    for name in GAMES:
        if f"flowrl/{name}" not in gymnasium.registry:
            gymnasium.register(
                f"flowrl/{name}",
                entry_point="flowrl.envs.partial:PartialEnv",
                kwargs={"name": name},
                order_enforce=True,
            )
