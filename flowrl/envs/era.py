"""Emergency resource allocation (ERA, paper section 5): a batched torch simulator and two gymnasium environments.

One step: the resources move where the action says if that is valid (each within `max_hops`, pairs in `proximity`), else
nothing moves; the next emergency e' appears; the reward is covered[e'] if a resource is there, else uncovered[e'],
minus the path costs of the moves. Episodes are truncated after `horizon` steps. An observation (K, 2 + D) says per
district: covered?, last emergency here?, resource 1 here?, …, resource D here? `BatchedERA` and `ERAEnv` are written
apart and tested against each other.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .batched import Step, check_actions, check_question
from .city import City

Info = dict[str, Any]


def observe(allocation: Tensor, emergency: Tensor, districts: int) -> Tensor:
    """allocation: (B, D) int64, emergency: (B,) int64, K for none yet → observations (B, K, 2 + D) float32."""
    where = torch.cat([emergency.unsqueeze(1), allocation], dim=1).unsqueeze(1)
    here = where == torch.arange(districts, device=allocation.device).unsqueeze(1)  # (B, K, 1 + D)
    return torch.cat([here[..., 1:].any(-1, keepdim=True), here], dim=-1).float()


class BatchedERA:
    """B copies of one city on one device, in step with each other: all episodes end together.

    `violations` counts the invalid actions given to `step`, found by its own check of its own state, and `refused` (B,)
    tells those of the last step; `valid` is the oracle that a sampler may ask. Nothing synchronises with the host.
    """

    def __init__(
        self,
        city: City | str | Path,
        n_envs: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ):
        self.city = city = City.load(city)
        self.n_envs, self.device, self.horizon = n_envs, torch.device(device), city.horizon
        K, D = city.districts, city.resources
        self.action_sizes, self.observation_shape = (K,) * D, (K, 2 + D)
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self.adjacency = self._tensor(city.adjacency, torch.float32)
        self._starts = self._tensor(city.starts)
        self._may_move = self._tensor(city.may_move)
        self._districts = torch.arange(K, dtype=torch.float32, device=self.device)
        # the price of a move is infinite where it is too long, and so is that of a pair of districts too far apart
        self._toll = self._tensor(np.where(city.may_move, city.cost, np.inf), torch.float32)
        self._within = [(i, j, self._tensor(city.hops <= limit).flatten()) for i, j, limit in city.proximity]
        self._apart = [(i, j, torch.where(near, 0.0, torch.inf)) for i, j, near in self._within]
        self._cumulative = self._tensor(city.transition.cumsum(1)[:, :-1], torch.float32)  # (K + 1, K − 1)
        self._reward = self._tensor([city.uncovered, city.covered], torch.float32).flatten()  # [e' + K · served]
        self._running = torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        self.refused, self.violations = self._running, torch.zeros((), dtype=torch.int64, device=self.device)
        self.reset()

    def _tensor(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=self.device)

    def reset(self, uniforms: Tensor | None = None) -> Tensor:
        """New episodes everywhere → observations. uniforms: (B,) in [0, 1), which start; drawn here by default."""
        if uniforms is None:
            uniforms = torch.rand(self.n_envs, device=self.device, generator=self.generator)
        self.time = 0
        self.allocation = self._starts[(uniforms * len(self._starts)).long()]
        self.emergency = torch.full((self.n_envs,), self.city.districts, device=self.device)
        return self.observe(self.allocation, self.emergency)

    def step(self, actions: Tensor, uniforms: Tensor | None = None) -> Step:
        """actions: (B, D) int64, the next district of each resource; an invalid one moves nothing and is counted.

        uniforms: (B, 2) in [0, 1), drawn here by default: [:, 0] picks the emergency by inverse CDF, [:, 1] the start
        of the next episode.
        """
        if uniforms is None:
            uniforms = torch.rand(self.n_envs, 2, device=self.device, generator=self.generator)
        check_actions(self, actions)
        price, valid = self._price(actions)
        self.refused = ~valid
        self.violations += self.refused.sum()
        self.allocation = torch.where(valid.unsqueeze(1), actions, self.allocation)
        # e' = number of cumulative probabilities P(≤ k | e) that the uniform has passed
        self.emergency = (uniforms[:, :1] >= self._cumulative[self.emergency]).sum(1)
        served = (self.allocation == self.emergency.unsqueeze(1)).any(1)
        reward = self._reward[torch.add(self.emergency, served, alpha=self.city.districts)] - price
        self.time += 1
        observation = final = self.observe(self.allocation, self.emergency)
        if ended := self.time == self.horizon:
            observation = self.reset(uniforms[:, 1])
        return Step(observation, reward, self._running, ~self._running if ended else self._running, final)

    def _price(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What the moves cost (B,), zero where they are refused, and whether they are valid (B,)."""
        inside = actions.clamp(0, self.city.districts - 1)
        price = self._toll[self.allocation, inside].sum(1)
        for i, j, apart in self._apart:
            price = price + apart.take(torch.add(inside[:, j], inside[:, i], alpha=self.city.districts))
        valid = (price < torch.inf) & (inside == actions).all(1)
        return price.where(valid, 0.0), valid

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The oracle: observation (B, K, 2 + D), actions (B, S, D) int64 → (B, S) bool. ValueError for other shapes."""
        check_question(self, observation, actions)
        K = self.city.districts
        inside = actions.clamp(0, K - 1)
        rows = self._may_move[self._allocation(observation)]  # (B, D, K): where each resource may go
        ok = (rows.gather(2, inside.transpose(1, 2)) & (inside == actions).transpose(1, 2)).all(1)
        for i, j, near in self._within:
            ok &= near.take(torch.add(inside[..., j], inside[..., i], alpha=K))
        return ok

    def fallback(self, observation: Tensor) -> Tensor:
        """Staying put, valid wherever proximity holds: observation (B, K, 2 + D) → actions (B, D) int64."""
        return self._allocation(observation)

    def _allocation(self, observation: Tensor) -> Tensor:
        return (self._districts @ observation.float())[:, 2:].long()  # Σ_k k · 1[resource in district k]

    def observe(self, allocation: Tensor, emergency: Tensor) -> Tensor:
        """allocation: (B, D) int64, emergency: (B,) int64, K for none yet → observations (B, K, 2 + D) float32."""
        return observe(allocation, emergency, self.city.districts)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint."""
        return {
            "city": self.city.digest,
            "time": self.time,
            "allocation": self.allocation,
            "emergency": self.emergency,
            "violations": self.violations.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; ValueError where it is another city's or another number of environments'."""
        if state["city"] != self.city.digest or len(state["allocation"]) != self.n_envs:
            raise ValueError(f"the checkpoint is of another city or batch than {self.n_envs} × {self.city.name}")
        self.time = state["time"]
        self.allocation, self.emergency = (self._tensor(state[key]) for key in ("allocation", "emergency"))
        self.violations = self._tensor(state["violations"]).clone()
        self.generator.set_state(state["generator"].cpu())


class ERAEnv(gymnasium.Env):
    """One city as a gymnasium environment: the same dynamics as `BatchedERA`, written apart from it in plain NumPy.

    `info` carries `valid` (whether the last action was) and `violations` (how many were not in this episode).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, city: City | str | Path, render_mode: str | None = None):
        self.city, self.render_mode = City.load(city), render_mode
        self.constrained = self.city.constrained
        self.observation_space = Box(0.0, 1.0, (self.city.districts, 2 + self.city.resources), np.float32)
        self.action_space = MultiDiscrete([self.city.districts] * self.city.resources)

    def uniform(self) -> float:
        """The next draw from [0, 1): one a reset (which start), one a step (which emergency). Override to inject."""
        return float(self.np_random.random())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """A new episode → observation (K, 2 + D) and info."""
        super().reset(seed=seed)
        starts = self.city.starts
        self.allocation = [int(district) for district in starts[int(self.uniform() * len(starts))]]
        self.emergency: int | None = None
        self.time, self.violations, self.total_reward = 0, 0, 0.0
        return self._observation(), {"valid": True, "violations": self.violations}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """action: (D,) the next district of each resource; an invalid one moves nothing and is counted."""
        city, reward = self.city, 0.0
        target = [int(district) for district in action]
        if valid := self.is_valid(target):
            reward -= sum(city.cost[i, j] for i, j in zip(self.allocation, target, strict=True))
            self.allocation = target
        else:
            self.violations += 1
        probabilities = city.transition[city.districts if self.emergency is None else self.emergency]
        draw = self.uniform()
        cumulative = np.cumsum(probabilities)[:-1]
        self.emergency = next((k for k, passed in enumerate(cumulative) if draw < passed), city.districts - 1)
        reward += (city.covered if self.emergency in self.allocation else city.uncovered)[self.emergency]
        self.time += 1
        self.total_reward += reward
        info = {"valid": valid, "violations": self.violations}
        return self._observation(), float(reward), False, self.time >= city.horizon, info

    def is_valid(self, action: "np.ndarray | list[int]") -> bool:
        """Whether every resource can get there from where it is now, and all pairs end near enough to each other."""
        city = self.city
        return (
            all(0 <= j < city.districts for j in action)
            and (
                city.max_hops is None
                or all(city.hops[i, j] <= city.max_hops for i, j in zip(self.allocation, action, strict=True))
            )
            and all(city.hops[action[i], action[j]] <= limit for i, j, limit in city.proximity)
        )

    def _observation(self) -> np.ndarray:
        observation = np.zeros((self.city.districts, 2 + self.city.resources), np.float32)
        for resource, district in enumerate(self.allocation):
            observation[district, [0, 2 + resource]] = 1
        if self.emergency is not None:
            observation[self.emergency, 1] = 1
        return observation

    def render(self) -> np.ndarray | None:
        """(H, W, 3) uint8 picture of the city with `render_mode="rgb_array"`, else None."""
        if self.render_mode != "rgb_array":
            return None
        from .draw import draw_city  # matplotlib only where a picture is wanted

        return draw_city(self.city, self.allocation, self.emergency, _caption(self.time, self.total_reward))


class ERAVectorEnv(VectorEnv):
    """`BatchedERA` as a gymnasium vector environment (NumPy in and out) with same-step autoreset.

    `info` carries `valid` and `violations` (B,) as in `ERAEnv`; where an episode ended, `final_obs` and `final_info`.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int, city: City | str | Path, render_mode: str | None = None):
        self.era = BatchedERA(city, num_envs)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = Box(0.0, 1.0, self.era.observation_shape, np.float32)
        self.single_action_space = MultiDiscrete(list(self.era.action_sizes))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """New episodes everywhere → observations (B, K, 2 + D), info. options: {"uniforms": (B,)} injects draws."""
        super().reset(seed=seed)
        if seed is not None:
            self.era.generator.manual_seed(seed)
        self._violations = np.zeros(self.num_envs, dtype=np.int64)
        self._total_reward = np.zeros(self.num_envs)
        uniforms = (options or {}).get("uniforms")
        observation = self.era.reset(None if uniforms is None else torch.as_tensor(uniforms, device="cpu"))
        return observation.numpy(), self._info(np.ones(self.num_envs, dtype=bool))

    def step(
        self, actions: np.ndarray, uniforms: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """actions: (B, D); uniforms: (B, 2) injects draws → observations, rewards (B,), terminated, truncated, info."""
        step = self.era.step(
            torch.as_tensor(actions, dtype=torch.int64, device="cpu"),
            None if uniforms is None else torch.as_tensor(uniforms, device="cpu"),
        )
        self._total_reward += step.reward.numpy()
        valid = ~self.era.refused.numpy()
        self._violations += ~valid
        info = self._info(valid)
        if self.era.time == 0:  # all episodes ended together
            ended = np.ones(self.num_envs, dtype=bool)
            self._violations, self._total_reward = np.zeros_like(self._violations), np.zeros_like(self._total_reward)
            final = np.empty(self.num_envs, dtype=object)  # gymnasium's convention: an array of observations
            final[:] = list(step.final_observation.numpy())
            last = {"final_obs": final, "_final_obs": ended, "final_info": info, "_final_info": ended}
            info = self._info(ended) | last
        return (
            step.observation.numpy(),
            step.reward.numpy().astype(np.float64),
            step.terminated.numpy().copy(),
            step.truncated.numpy().copy(),
            info,
        )

    def _info(self, valid: np.ndarray) -> Info:
        everywhere = np.ones(self.num_envs, dtype=bool)
        return {"valid": valid, "_valid": everywhere, "violations": self._violations.copy(), "_violations": everywhere}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture of each environment's city with `render_mode="rgb_array"`, else None."""
        if self.render_mode != "rgb_array":
            return None
        from .draw import draw_city

        era, K = self.era, self.era.city.districts
        scenes = zip(era.allocation.tolist(), era.emergency.tolist(), self._total_reward, strict=True)
        return tuple(
            draw_city(era.city, places, None if site == K else site, _caption(era.time, total))
            for places, site, total in scenes
        )


def _caption(time: int, total_reward: float) -> str:
    return f"step {time}   return {total_reward:.1f}"
