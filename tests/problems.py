"""Small environments that several tests use, and settings for them."""

import itertools
import shutil
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

from flowrl.envs.city import generate
from flowrl.study.plan import AUTHORS, experiments, recorded_as
from flowrl.study.records import EXPERIMENTS, ROOT

JOBS = (3, 5, 2)  # job d may be given to the first JOBS[d] of five workers
PAY = np.random.default_rng(0).random((3, 3, 5))  # by day, job, worker: how well a worker does a job
QUICK = {"progress": False, "gamma": 0.1, "entropy": 0.5, "hidden": 64}
FAST = {"progress": False, "n_envs": 4, "n_steps": 1, "n_draws": 8, "hidden": 16, "policy_hidden": 8}


class Assignment(gymnasium.Env):
    """Three jobs to different workers; an observation is the day; an episode is four days."""

    observation_space, action_space = spaces.Discrete(3), spaces.MultiDiscrete(JOBS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.days = 0
        return self.next_day(), {}

    def next_day(self):
        self.day = int(self.np_random.integers(3))
        return self.day

    def step(self, action):
        assert self.action_space.contains(action)
        assert all_different(None, action)  # the environment's own check: no invalid action is ever executed
        reward = PAY[self.day, range(3), action].sum()
        self.days += 1
        return self.next_day(), reward, self.days == 4, False, {}


class Known(Assignment):
    """Pays 1 a day."""

    def step(self, action):
        return *super().step(action)[:1], 1.0, self.days == 4, False, {}


def all_different(observation, action):
    return len(set(action.tolist())) == len(action)


def different(observation, actions):
    """The same for a batch."""
    return (actions.sort(-1).values.diff(dim=-1) > 0).all(-1)


def pay(choose):
    """Expected return of an episode, choosing by day among the pays of all valid actions."""
    valid = [a for a in itertools.product(*map(range, JOBS)) if len(set(a)) == 3]
    return 4 * np.mean([choose([PAY[day, range(3), a].sum() for a in valid]) for day in range(3)])


def learnt(trainer, draws=100):
    """Expected return of an episode of the trained policy, from its actions on each of the three days."""
    return 4 * np.mean([PAY[day, range(3), trainer.act(day)].sum() for day in range(3) for _ in range(draws)])


class Budget(gymnasium.Env):
    """Items to take, three of six at most and never the first with the second; info says which, or the method does."""

    observation_space, action_space = spaces.Dict(day=spaces.Discrete(3)), spaces.MultiBinary(6)
    ALL = np.array(list(itertools.product((0, 1), repeat=6)), dtype=np.int8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.next()

    def next(self):
        self.day = int(self.np_random.integers(3))
        return {"day": self.day}, {"action_mask": [self.fits(a) for a in self.ALL]}

    def fits(self, action):
        return bool(np.sum(action) <= 3 - (self.day == 2) and action[0] + action[1] < 2)

    def step(self, action):
        assert self.action_space.contains(action) and self.fits(action)
        observation, info = self.next()
        return observation, float(np.sum(action)), False, bool(self.np_random.random() < 0.1), info


class Counter(gymnasium.Env):
    """Counts up in the one array that it returns every time, by itself and by what the action says; ends at `length`.

    Rewards are random: they tell whether random streams are where they should be. `given` holds all executed actions.
    """

    def __init__(self, action_space=None, length=3):
        self.action_space = action_space or spaces.MultiDiscrete([3, 5, 2])
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.count, self.length, self.given = np.zeros(2), length, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count[:] = 0
        return self.count, {"seed": seed}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.given.append(np.array(action))
        self.count += (1, np.sum(action))
        return self.count, self.np_random.random(), self.count[0] == self.length, False, {"word": str(action)}


def project_without_records(folder: Path) -> Path:
    """The project in `folder`, with small cities in the place of the paper authors'."""
    folder.mkdir(exist_ok=True)
    for name in ("Snakefile", "experiments.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("profiles", "flowrl", "notebooks", "data/cities", "data/benchmarks", "data/comparisons"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / AUTHORS).mkdir()
    cities = {name for found in experiments(EXPERIMENTS).values() for name in found["environments"]}
    for name in sorted(name for name in cities if name.startswith(f"{AUTHORS}/")):
        generate(5, 2).to_json(folder / AUTHORS / f"{recorded_as(name)}.json")
    return folder
