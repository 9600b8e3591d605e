"""Pistonball (paper, section 5, Figure 3): PettingZoo's pistonball_v6 under one controller that moves all pistons.

Pistonball-v1, v2, v3 have 5, 8, 10 pistons, each of which goes down, stays or goes up (0, 1, 2) in every step; they are
to carry the ball to the left wall. The physics, the drawing and the reward (percent of the way, less 0.1 a step, the
same for every piston) are PettingZoo's. An observation is the whole picture, grey, 96 × 96, after each of the last four
steps, oldest first. An episode ends at the left wall (terminated) or after 125 steps (truncated).

In Pistonball-v1-cstr, … a piston that lies wholly to the left of the ball must not go up (paper, Table A.2). The fifth
plane of their observations says which may, drawn over the columns of each piston: the oracle reads it, so it needs
nothing but the observation; the policy's encoder does not (`encoder_planes`). `step` asks the physics instead.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium
import numpy as np
import pygame
import torch
from gymnasium.spaces import Box, MultiDiscrete
from pettingzoo.butterfly.pistonball import pistonball
from torch import Tensor

from .batched import Step, check_actions, check_question

PISTONS = {
    f"Pistonball-{version}{kind}": n for kind in ("", "-cstr") for version, n in (("v1", 5), ("v2", 8), ("v3", 10))
}
DOWN, STAY, UP = range(3)
FRAMES, SIDE, HORIZON = 4, 96, 125
VERSION = 1  # of these dynamics: raised whenever a record made before would come out otherwise
pistonball.get_image = functools.cache(pistonball.get_image)  # else each environment decodes 0.1 s and 5 MB of sprites
START_METHOD = "fork" if sys.platform == "linux" else "spawn"  # of worker processes; both work, spawn takes seconds


def _check_name(name: str) -> None:
    if name not in PISTONS:
        raise ValueError(f"unknown environment {name!r}: choose one of {', '.join(PISTONS)}")


def digest(name: str) -> str:
    """SHA-256 over what defines the environment of that name."""
    physics = pistonball.raw_env.metadata["name"]
    constants = {"name": name, "physics": physics, "horizon": HORIZON, "version": VERSION}
    return hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()


class PistonballEnv(gymnasium.Env):
    """One Pistonball by name. `info`: `valid`, whether the last action was; `violations`, how many weren't so far.

    What an invalid action may not do, a piston going up or a move that doesn't exist, is executed as staying.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, name: str = "Pistonball-v1", render_mode: str | None = None):
        _check_name(name)
        self.n_pistons, self.constrained, self.render_mode = PISTONS[name], name.endswith("-cstr"), render_mode
        # without a render mode PettingZoo never draws, and the picture would stand still
        self._raw = pistonball.raw_env(self.n_pistons, continuous=False, max_cycles=HORIZON, render_mode="rgb_array")
        del self._raw.state_space, self._raw.observation_spaces  # nobody asks; their bounds fill 2.5 MB an environment
        self._small = pygame.Surface((SIDE, SIDE), 0, self._screen)
        self.observation_space = Box(0, 255, (FRAMES + self.constrained, SIDE, SIDE), np.uint8)
        self.action_space = MultiDiscrete([3] * self.n_pistons)
        # walls are as wide as pistons: K + 2 strips, the first and the last of them walls
        self._strip = (np.arange(SIDE) + 0.5) * (self.n_pistons + 2) // SIDE

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new episode → observation (4 or 5, 96, 96) uint8 and info; a seed begins PettingZoo's episode of it."""
        super().reset(seed=seed)
        self._raw.reset(seed)
        self.violations = 0
        self._planes = np.repeat(self._frame()[None], FRAMES, 0)
        return self._observation(), {"valid": True, "violations": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """action: (n_pistons,) of 0, 1, 2: down, stay, up by 4 pixels each."""
        action = np.asarray(action)
        refused = (action < DOWN) | (action > UP)
        if self.constrained:
            refused |= (action == UP) & self._left_of_ball()
        for move in np.where(refused, STAY, action):
            self._raw.step(move)  # PettingZoo moves one piston after another, and the ball in between
        self._planes = np.concatenate((self._planes[1:], self._frame()[None]))
        valid = not refused.any()
        self.violations += not valid
        first = self._raw.possible_agents[0]  # all pistons have the same reward and end together
        return (
            self._observation(),
            float(self._raw.rewards[first]),
            self._raw.terminations[first],
            self._raw.truncations[first],
            {"valid": valid, "violations": self.violations},
        )

    def _left_of_ball(self) -> np.ndarray:
        """(n_pistons,) bool: does a piston lie wholly to the left of the ball? Asked of their bodies."""
        raw = self._raw
        heads = [next(iter(piston.shapes)).bb.right for piston in raw.pistonList]
        return np.array(heads) <= raw.ball.position.x - raw.ball_radius

    @property
    def _screen(self) -> pygame.Surface:
        assert self._raw.screen is not None  # it has a render mode
        return self._raw.screen

    def _frame(self) -> np.ndarray:
        """The picture as drawn, scaled down, grey: (96, 96) uint8."""
        pygame.transform.smoothscale(self._screen, (SIDE, SIDE), self._small)
        grey = pygame.transform.grayscale(self._small)
        return pygame.surfarray.pixels_red(grey).T

    def _observation(self) -> np.ndarray:
        if not self.constrained:
            return self._planes
        # strip k ends 40 (k + 1) pixels from the left; piston i is in strip i + 1
        raw = self._raw
        may_rise = (self._strip + 1) * raw.piston_width > raw.ball.position.x - raw.ball_radius
        is_piston = (self._strip >= 1) & (self._strip <= self.n_pistons)
        plane = np.broadcast_to(255 * (may_rise & is_piston), (1, SIDE, SIDE)).astype(np.uint8)
        return np.concatenate((self._planes, plane))

    def heuristic(self) -> np.ndarray:
        """(n_pistons,) a good valid action: down to the left of the ball's middle, up to the right of it."""
        middles = np.array([piston.position.x for piston in self._raw.pistonList]) + 15
        return np.where(middles < self._raw.ball.position.x, DOWN, UP)

    def render(self) -> np.ndarray | None:
        """(560, 40 · n_pistons + 80, 3) uint8 picture with `render_mode="rgb_array"`, else None."""
        return self._raw.state() if self.render_mode == "rgb_array" else None


def picture(name: str = "Pistonball-v1", seed: int = 0, steps: int = 12) -> np.ndarray:
    """The picture (H, W, 3) uint8 after so many steps of the heuristic (paper, Figure 3)."""
    env = PistonballEnv(name, render_mode="rgb_array")
    env.reset(seed=seed)
    for _ in range(steps):
        env.step(env.heuristic())
    return env._raw.state()


# ------------------------------------------------------------ many at once: one row of a shared table an environment


def _row(name: str) -> np.dtype:
    n = PISTONS[name]
    planes = (FRAMES + name.endswith("-cstr"), SIDE, SIDE)
    return np.dtype(
        [
            ("seed", np.int64),  # of the present episode
            ("next_seed", np.int64),
            ("time", np.int64),  # steps in the present episode
            ("history", np.int64, (HORIZON, n)),  # its actions
            ("action", np.int64, n),
            ("reward", np.float32),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("refused", np.bool_),
            ("observation", np.uint8, planes),
            ("final_observation", np.uint8, planes),  # of the last episode that ended
        ],
        align=True,
    )


def _begin(env: PistonballEnv, row: np.void) -> None:
    row["seed"], row["time"] = row["next_seed"], 0
    row["observation"] = env.reset(seed=int(row["seed"]))[0]


def _step(env: PistonballEnv, row: np.void) -> None:
    row["history"][row["time"]] = row["action"]
    row["time"] += 1
    row["observation"], row["reward"], row["terminated"], row["truncated"], info = env.step(row["action"])
    row["refused"] = not info["valid"]
    if row["terminated"] or row["truncated"]:
        row["final_observation"] = row["observation"]
        _begin(env, row)


def _replay(env: PistonballEnv, row: np.void) -> None:
    """Physics can't be saved but can be lived through again: the same seed and actions lead to the same place."""
    row["observation"] = env.reset(seed=int(row["seed"]))[0]
    for action in row["history"][: row["time"]]:
        row["observation"] = env.step(action)[0]


_COMMANDS = {"begin": _begin, "step": _step, "replay": _replay}


class _Group:
    """Some of the environments, and their rows."""

    def __init__(self, name: str, memory, first: int, last: int):
        self.rows = np.frombuffer(memory, _row(name))[first:last]
        self.envs = [PistonballEnv(name) for _ in self.rows]

    def obey(self, command: str) -> None:
        for env, row in zip(self.envs, self.rows, strict=True):
            _COMMANDS[command](env, row)


def _work(connection: Connection, *group) -> None:
    """A worker process: does what it is told until told to stop or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    group, parent = _Group(*group), multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    while connection in wait([connection, parent.sentinel]) and (command := connection.recv()):
        group.obey(command)
        connection.send(command)


def _end(workers: list, owner: int) -> None:
    """Have worker processes end, and wait for it; nothing in a process that is a fork of their owner."""
    if os.getpid() != owner:
        return
    for _, connection, _ in workers:
        with suppress(OSError):  # it died before
            connection.send(None)
        connection.close()
    for process, *_ in workers:
        process.join()


class BatchedPistonball:
    """B Pistonballs by name, in this process or in `workers` others, which end with it or its process, or by `close()`.

    `violations` counts the invalid actions given to `step`, found from the physics, and `refused` (B,) tells those of
    the last step; `valid` is the oracle. workers: default as many as torch has threads, none for one thread or few
    environments; what happens doesn't depend on it. ValueError for a name or a number of workers that can't be.
    """

    observation_dtype = torch.uint8
    encoder_planes = FRAMES  # the policy's encoder sees the pictures only
    horizon = HORIZON

    def __init__(
        self,
        name: str,
        n_envs: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        workers: int | None = None,
    ):
        _check_name(name)
        if workers is None:
            workers = min(torch.get_num_threads(), n_envs // 8)
            workers = workers if workers > 1 else 0
        if not 0 <= workers <= n_envs:
            raise ValueError(f"workers is {workers}; allowed: 0 to {n_envs}, the number of environments")
        self.name, self.n_envs, self.device, self.constrained = name, n_envs, torch.device(device), "-cstr" in name
        self.action_sizes = (3,) * PISTONS[name]
        self.observation_shape = _row(name)["observation"].shape
        self.digest = digest(name)
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self.violations = torch.zeros((), dtype=torch.int64, device=self.device)
        self.refused = torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        n = len(self.action_sizes)
        middles = [int((i + 1.5) * SIDE / (n + 2)) for i in range(n)]  # column of each piston in the fifth plane
        self._middles = torch.tensor(middles, device=self.device)
        context = multiprocessing.get_context(START_METHOD)
        memory = context.RawArray("B", n_envs * _row(name).itemsize)
        self._table = np.frombuffer(memory, _row(name))
        self._here = None if workers else _Group(name, memory, 0, n_envs)
        self._workers = []
        for k in range(workers):
            first, last = n_envs * k // workers, n_envs * (k + 1) // workers
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, name, memory, first, last), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours, f"worker {k}, environments {first} to {last - 1}"))
        self._end = weakref.finalize(self, _end, self._workers, os.getpid())
        self.reset()

    def reset(self) -> Tensor:
        """New episodes everywhere → observations (B, 4 or 5, 96, 96) uint8."""
        self._draw_seeds()
        self._tell("begin")
        return self._tensor("observation")

    def step(self, actions: Tensor) -> Step:
        """actions: (B, n_pistons) int64; what is invalid in one stays instead, and the action is counted."""
        check_actions(self, actions)
        self._table["action"] = actions.cpu().numpy()
        self._draw_seeds()
        self._tell("step")
        self.refused = self._tensor("refused")
        self.violations += self.refused.sum()
        observation, reward, terminated, truncated = map(self._tensor, Step._fields[:4])
        ended, final = terminated | truncated, observation
        if ended.any():
            final = torch.where(ended[:, None, None, None], self._tensor("final_observation"), observation)
        return Step(observation, reward, terminated, truncated, final)

    def valid(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The oracle: observation (B, 4 or 5, 96, 96), actions (B, S, n_pistons) int64 → (B, S) bool.

        ValueError for other shapes.
        """
        check_question(self, observation, actions)
        highest = UP
        if self.constrained:
            may_rise = observation[:, FRAMES, 0, self._middles] > 0
            highest = torch.where(may_rise, UP, STAY)[:, None]  # (B, 1, n)
        return ((actions >= DOWN) & (actions <= highest)).all(-1)

    def fallback(self, observation: Tensor) -> Tensor:
        """An action that is always valid, all pistons stay: observation (B, …) → (B, n_pistons) int64."""
        return torch.full((len(observation), len(self.action_sizes)), STAY, device=observation.device)

    def _draw_seeds(self) -> None:
        """Seeds of the episodes that may begin next, of every environment, so that workers need no randomness."""
        seeds = torch.randint(2**31, (self.n_envs,), generator=self.generator, device=self.device)
        self._table["next_seed"] = seeds.cpu().numpy()

    def _tensor(self, column: str) -> Tensor:
        return torch.from_numpy(self._table[column].copy()).to(self.device)

    def _tell(self, command: str) -> None:
        """Have all environments do it, and wait; RuntimeError that names a worker that died or was closed."""
        if self._here:
            self._here.obey(command)
        elif not self._workers:
            raise RuntimeError(f"{self.name} was closed")
        for say in (lambda connection: connection.send(command), Connection.recv):
            for process, connection, who in self._workers:
                try:
                    say(connection)
                except (EOFError, OSError):
                    process.join(1)
                    raise RuntimeError(f"{self.name}: {who}: died with exit code {process.exitcode}") from None

    def close(self) -> None:
        """End the worker processes; nothing can be done with the environments afterwards."""
        self._end()
        self._here, self._workers = None, []

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint: of the physics, seed and actions so far."""
        past = {name: torch.from_numpy(self._table[name].copy()) for name in ("seed", "time", "history")}
        return past | {
            "env": self.digest,
            "violations": self.violations.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`: the episodes under way are played again, in seconds, to the same picture.

        ValueError where it is another environment's or another number of them.
        """
        if state["env"] != self.digest or len(state["seed"]) != self.n_envs:
            raise ValueError(f"the checkpoint is of another environment or batch than {self.n_envs} × {self.name}")
        for name in ("seed", "time", "history"):
            self._table[name] = state[name].cpu().numpy()
        self._tell("replay")
        self.violations = state["violations"].to(self.device).clone()
        self.generator.set_state(state["generator"].cpu())
