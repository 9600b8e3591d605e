"""CartPole-v1 and Acrobot-v1 (paper, Figures 4a and A.2), which know no constraint, as batched torch simulators.

Dynamics, rewards, starts and time limits are those of the gymnasium environments of these ids: the cart-pole of Barto,
Sutton and Anderson (1983), the acrobot of Sutton and Barto's book. The state is float64 as there, observations are
float32. Episodes end apart from each other: by termination, by truncation after `horizon` steps, or by both at once.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .batched import Step, check_actions, check_question


class _Classic(ABC):
    """B copies of a system that one of a few forces drives; a subclass says how it moves.

    `violations` counts the actions outside the range given to `step`, and `refused` (B,) tells those of the last step:
    they exert no force. Nothing synchronises with the host.
    """

    # names in capitals are the dynamics: the digest is over all of them
    NAME: str
    VERSION = 1
    HORIZON = 500  # steps
    FORCES: tuple[float, ...]  # one an action
    START: float  # a new episode's state is uniform in [−START, START]⁴
    observation_shape: tuple[int, ...]

    def __init__(self, n_envs: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None):
        if n_envs < 1:
            raise ValueError(f"n_envs is {n_envs}; it must be at least 1")
        self.n_envs, self.device, self.horizon = n_envs, torch.device(device), self.HORIZON
        self.action_sizes = (len(self.FORCES),)
        dynamics = {name: getattr(self, name) for name in dir(self) if name.isupper()}
        self.digest = hashlib.sha256(json.dumps(dynamics, sort_keys=True).encode()).hexdigest()
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self._forces = torch.tensor(self.FORCES, dtype=torch.float64, device=self.device)
        self.refused = torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        self.violations = torch.zeros((), dtype=torch.int64, device=self.device)
        self.reset()

    def reset(self, uniforms: Tensor | None = None) -> Tensor:
        """New episodes everywhere → observations. uniforms: (B, 4) in [0, 1), the starts; drawn here by default."""
        self.state = self._start(uniforms)
        self.time = torch.zeros(self.n_envs, dtype=torch.int64, device=self.device)
        return self._observe(self.state)

    def step(self, actions: Tensor, uniforms: Tensor | None = None) -> Step:
        """actions: (B, 1) int64; one outside the range exerts no force and is counted.

        uniforms: (B, 4) in [0, 1), where the next episode starts if this one ends; drawn here by default.
        Raises ValueError for actions of another shape or type.
        """
        check_actions(self, actions)
        action = actions[:, 0]
        inside = action.clamp(0, len(self.FORCES) - 1)
        self.refused = inside != action
        self.violations += self.refused.sum()
        state = self._move(self.state, self._forces[inside].masked_fill(self.refused, 0.0))
        time = self.time + 1
        terminated, truncated = self._terminated(state), time == self.HORIZON
        ended = terminated | truncated
        final = self._observe(state)
        self.state = torch.where(ended.unsqueeze(1), self._start(uniforms), state)
        self.time = time.masked_fill(ended, 0)
        return Step(self._observe(self.state), self._reward(terminated), terminated, truncated, final)

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The oracle, no constraint: observation (B, …), actions (B, S, 1) int64 → (B, S) bool, whether in the range.

        Raises ValueError for other shapes.
        """
        check_question(self, observation, actions)
        return ((actions >= 0) & (actions < len(self.FORCES))).squeeze(-1)

    def _start(self, uniforms: Tensor | None) -> Tensor:
        if uniforms is None:
            uniforms = torch.rand(self.n_envs, 4, dtype=torch.float64, device=self.device, generator=self.generator)
        return (2 * uniforms.double() - 1) * self.START

    @abstractmethod
    def _move(self, state: Tensor, force: Tensor) -> Tensor:
        """State (B, 4) and force (B,) → the state one step later."""

    @abstractmethod
    def _terminated(self, state: Tensor) -> Tensor:
        """State (B, 4) → whether it ends the episode, (B,) bool."""

    @abstractmethod
    def _reward(self, terminated: Tensor) -> Tensor:
        """The reward (B,) float32 of a step that terminated the episode, or not."""

    @abstractmethod
    def _observe(self, state: Tensor) -> Tensor:
        """State (B, 4) → observation (B, …) float32."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint."""
        return {
            "digest": self.digest,
            "state": self.state,
            "time": self.time,
            "violations": self.violations.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; ValueError where it is another environment's or batch's."""
        if state["digest"] != self.digest or len(state["state"]) != self.n_envs:
            raise ValueError(f"the checkpoint is of another environment or batch than {self.n_envs} × {self.NAME}")
        self.state, self.time = state["state"].to(self.device), state["time"].to(self.device)
        self.violations = state["violations"].to(self.device).clone()
        self.generator.set_state(state["generator"].cpu())


class BatchedCartPole(_Classic):
    """CartPole-v1: keep a pole upright on a cart that is pushed left (0) or right (1); reward 1 a step.

    State and observation: position x (m), ẋ, angle θ from the vertical (rad), θ̇. An episode ends where |x| or |θ|
    leaves its bound. Equations: Florian (2007) without friction, Euler steps.
    """

    NAME = "CartPole-v1"
    FORCES = (-10.0, 10.0)  # N
    START = 0.05
    GRAVITY = 9.8  # m/s²
    CART, POLE = 1.0, 0.1  # masses, kg
    HALF_LENGTH = 0.5  # of the pole, m
    DT = 0.02  # s
    BOUNDS = (2.4, math.radians(12))  # on |x| and |θ|
    observation_shape = (4,)

    def _move(self, state: Tensor, force: Tensor) -> Tensor:
        mass, moment = self.CART + self.POLE, self.POLE * self.HALF_LENGTH
        _, _, angle, spin = state.unbind(1)
        sin, cos = angle.sin(), angle.cos()
        push = (force + moment * spin.square() * sin) / mass
        # θ̈ = (g sin θ − cos θ · push) / (l (4/3 − m cos²θ / M)),  ẍ = push − m l θ̈ cos θ / M
        angular = (self.GRAVITY * sin - cos * push) / (self.HALF_LENGTH * (4 / 3 - self.POLE / mass * cos.square()))
        linear = push - moment / mass * angular * cos
        velocity = torch.stack((state[:, 1], linear, spin, angular), 1)
        return state + self.DT * velocity

    def _terminated(self, state: Tensor) -> Tensor:
        x_bound, angle_bound = self.BOUNDS
        position = state.abs()
        return (position[:, 0] > x_bound) | (position[:, 2] > angle_bound)

    def _reward(self, terminated: Tensor) -> Tensor:
        return torch.ones(self.n_envs, device=self.device)

    def _observe(self, state: Tensor) -> Tensor:
        return state.float()


class BatchedAcrobot(_Classic):
    """Acrobot-v1: swing a double pendulum's tip above a height by a torque −1, 0 or 1 on its middle joint.

    State: angles θ₁ from hanging and θ₂ between the links (rad), θ̇₁, θ̇₂; observation: cos θ₁, sin θ₁, cos θ₂, sin θ₂,
    θ̇₁, θ̇₂. Reward −1 a step, 0 for the one that gets there. Equations of Sutton and Barto's book (not of Sutton's 1996
    paper), links of length, mass and moment of inertia 1, their centres of mass at ½; one Runge-Kutta step of 0.2 s.
    """

    NAME = "Acrobot-v1"
    FORCES = (-1.0, 0.0, 1.0)  # N m
    START = 0.1
    GRAVITY = 9.8  # m/s²
    DT = 0.2  # s
    MAX_SPEEDS = (4 * math.pi, 9 * math.pi)  # rad/s
    HEIGHT = 1.0  # m above the upper joint
    observation_shape = (6,)

    def _move(self, state: Tensor, force: Tensor) -> Tensor:
        k1 = self._derivative(state, force)
        k2 = self._derivative(state + self.DT / 2 * k1, force)
        k3 = self._derivative(state + self.DT / 2 * k2, force)
        k4 = self._derivative(state + self.DT * k3, force)
        state = state + self.DT / 6 * (k1 + 2 * (k2 + k3) + k4)
        angles = state[:, :2] - 2 * math.pi * (state[:, :2] / (2 * math.pi)).round()  # into [−π, π]
        speeds = [state[:, 2 + i, None].clamp(-limit, limit) for i, limit in enumerate(self.MAX_SPEEDS)]
        return torch.cat((angles, *speeds), 1)

    def _derivative(self, state: Tensor, torque: Tensor) -> Tensor:
        """d/dt of (θ₁, θ₂, θ̇₁, θ̇₂): d₁ θ̈₁ + d₂ θ̈₂ = −φ₁ and d₂ θ̈₁ + 5/4 θ̈₂ = τ − ½ θ̇₁² sin θ₂ − φ₂, solved."""
        angle1, angle2, speed1, speed2 = state.unbind(1)
        sin, cos = angle2.sin(), angle2.cos()
        d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
        phi2 = 0.5 * self.GRAVITY * (angle1 + angle2).sin()
        phi1 = 1.5 * self.GRAVITY * angle1.sin() + phi2 - (0.5 * speed2 + speed1) * speed2 * sin
        ratio = d2 / d1
        acceleration2 = (torque + ratio * phi1 - 0.5 * speed1.square() * sin - phi2) / (1.25 - d2 * ratio)
        acceleration1 = -(d2 * acceleration2 + phi1) / d1
        return torch.stack((speed1, speed2, acceleration1, acceleration2), 1)

    def _terminated(self, state: Tensor) -> Tensor:
        return -state[:, 0].cos() - (state[:, 0] + state[:, 1]).cos() > self.HEIGHT

    def _reward(self, terminated: Tensor) -> Tensor:
        return terminated.float() - 1

    def _observe(self, state: Tensor) -> Tensor:
        angles, speeds = state.chunk(2, 1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((torch.stack((cos, sin), 2).flatten(1), speeds), 1).float()
