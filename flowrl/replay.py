"""A buffer of what happened, for methods that learn Q from it: action values and Wol-DDPG."""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_SLOTS = 2**24  # of the buffer: the most categories that torch.multinomial draws from


class Transitions(NamedTuple):
    """n transitions (s, a, r, s'); s' is an episode's last observation where it ended, never the next one's first."""

    observation: Tensor  # (n, …)
    action: Tensor  # (n, D) int64
    reward: Tensor  # (n,)
    terminated: Tensor  # (n,) bool
    next_observation: Tensor  # (n, …)


class Replay:
    """The latest transitions of B environments, each observation stored once and in its own type.

    An environment fills its column slot by slot, then goes round. What followed slot t lies in slot t + 1, so s' takes
    no room; only where an episode ends its last observation does, in a slot that no transition starts from: live is 0.
    """

    def __init__(self, size: int, observation: Tensor, n_dimensions: int):
        n_envs = len(observation)
        slots = size // n_envs
        if slots < 3 or size > MAX_SLOTS:
            raise ValueError(f"replay_size is {size}; allowed: 3 n_envs, {3 * n_envs}, to {MAX_SLOTS}")
        shape, device = (slots, n_envs), observation.device
        self.observation = torch.zeros(*shape, *observation.shape[1:], dtype=observation.dtype, device=device)
        self.action = torch.zeros(*shape, n_dimensions, dtype=torch.int64, device=device)
        self.reward = torch.zeros(shape, device=device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=device)
        self.live = torch.zeros(shape, device=device)  # 1 where a transition starts, the weight of its being drawn
        self.here = torch.zeros(n_envs, dtype=torch.int64, device=device)  # the slot that is filled next
        self.column = torch.arange(n_envs, device=device)
        self.filled = torch.zeros((), dtype=torch.int64, device=device)  # slots: later ones are still empty

    def add(self, observation: Tensor, action: Tensor, step) -> None:
        """observation (B, …), the actions (B, D) chosen there, and the `Step` they led to; NOTHING is never drawn."""
        slots = len(self.live)
        here, after = (self.here, self.column), ((self.here + 1) % slots, self.column)
        self.observation[here], self.observation[after] = observation, step.final_observation
        self.live[here], self.live[after] = (action >= 0).all(-1).float(), 0.0
        self.action[here], self.reward[here], self.terminated[here] = action, step.reward, step.terminated
        self.filled = torch.maximum(self.filled, self.here.max() + 1)
        self.here = (after[0] + (step.terminated | step.truncated)) % slots  # past the final observation

    def cut_off(self) -> None:
        """New episodes begin: what is added next follows nothing, and must not overwrite what a transition led to."""
        self.live[self.here, self.column] = 0.0
        self.here = (self.here + 1) % len(self.live)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Transitions:
        """n transitions, drawn uniformly with replacement."""
        live = self.live.flatten()
        flat = torch.randint(int(self.filled) * len(self.column), (4 * n,), generator=generator, device=live.device)
        flat = flat[live[flat] > 0][:n]
        if len(flat) < n:  # too few of these are live: draw among the live ones alone, which reads every slot
            flat = torch.multinomial(live, n, replacement=True, generator=generator)
        slot, column = flat // len(self.column), flat % len(self.column)
        here, after = (slot, column), ((slot + 1) % len(self.live), column)
        return Transitions(
            self.observation[here], self.action[here], self.reward[here], self.terminated[here], self.observation[after]
        )

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        state = {"filled": torch.tensor(len(self.live))} | state  # which older files don't have
        for name, values in vars(self).items():
            values.copy_(state[name])
