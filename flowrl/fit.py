"""`fit`: train on an environment of one's own in one call, with the methods and settings of the command line.

    trainer = flowrl.fit(MyEnvironment, oracle=flowrl.per_action(fits), steps=50_000)
    action = trainer.act(observation)

No record is written: `python -m flowrl train` and `study.runs` do that, for the environments of the paper.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from . import envs
from .a2c import Rollout, Trainer, seeded
from .envs.gym import GymBatched, Oracle
from .policies import POLICIES
from .study.config import A2C_METHODS, NO_CONSTRAINTS, TrainConfig, choose, make_config
from .study.runs import make_device, one_thread

CURVE_ROWS = 200  # most rows of a learning curve
MOST_WITHOUT = 0.01  # share of steps without a valid draw above which `fit` warns


class Fitted(Trainer):
    """A trainer that keeps its learning curve, goes on with `train`, and acts on single observations."""

    def __init__(self, config: TrainConfig, env, oracle: Oracle | None = None):
        super().__init__(config, env, oracle)
        self.rows: list[dict] = []
        self.running = torch.zeros(env.n_envs, dtype=torch.float64, device=env.device)
        self.finished: list[float] = []  # returns of the episodes that ended since the last row
        self.acting = seeded(config.seed, "act", env.device)

    def train(self, steps: int, progress: bool = True) -> "Fitted":
        """Go on for so many environment steps, over all environments. Returns itself."""
        end, batch = self.env_steps + steps, self.config.n_steps * self.config.n_envs
        bar = tqdm(total=-(-steps // batch) * batch, unit=" steps", desc=f"{self.config.env} {self.config.method}",
                   disable=not progress, mininterval=0.5)  # fmt: skip
        with bar, _one_thread_on_cpu(self.device):
            while self.env_steps < end:
                before = self.env_steps
                self.step()
                bar.update(self.env_steps - before)
                if self.finished and self.env_steps - self._last("env_steps") >= self.config.steps / CURVE_ROWS:
                    self._add_row()
                    bar.set_postfix(
                        {"return": f"{self._last('return'):.2f}", "valid rate": f"{self._last('valid_rate'):.2f}"}
                    )
        return self

    def rollout(self) -> Rollout:
        """As the trainer's; also the returns of the episodes that ended in it."""
        rollout = super().rollout()
        for reward, ended in zip(rollout.reward, rollout.terminated | rollout.truncated, strict=True):
            self.running += reward
            if ended.any():
                self.finished += self.running[ended].tolist()
                self.running = self.running.where(~ended, 0.0)
        return rollout

    @property
    def curve(self) -> pd.DataFrame:
        """The learning curve, a row whenever training episodes have ended: means since the row before.

        env_steps; episodes: how many ended; return: their undiscounted mean; valid_rate: share of valid draws.
        """
        return pd.DataFrame(self.rows, columns=["env_steps", "episodes", "return", "valid_rate", "draws", "valid"])[
            ["env_steps", "episodes", "return", "valid_rate"]
        ]

    def act(self, observation: np.ndarray) -> np.ndarray:
        """A valid action for one state, drawn from π' (draw, ask, reject): what the environment's own `step` takes.

        observation: as the environment gives it. Raises NoValidActionError where none is found; ValueError.
        """
        gym = isinstance(self.env, GymBatched)
        if gym:
            single = self.env.to_tensor(observation)
        else:
            single = torch.as_tensor(np.asarray(observation, dtype=np.float32), device=self.device)[None]
            if single.shape[1:] != self.env.observation_shape:
                raise ValueError(
                    f"the observation has the shape {tuple(single.shape[1:])}; allowed: {self.env.observation_shape}"
                )
        action = self.decide(single, self.acting)[0].action[0]
        return self.env.to_environment(action) if gym else action.cpu().numpy()

    def state_dict(self) -> dict:
        """All that the rest of the training depends on, and the curve so far."""
        own = {"rows": list(self.rows), "running": self.running.clone(), "finished": list(self.finished)}
        return super().state_dict() | own | {"acting": self.acting.get_state()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.rows, self.running, self.finished = list(state["rows"]), state["running"].clone(), list(state["finished"])
        self.acting.set_state(state["acting"].cpu())

    def _last(self, column: str) -> float:
        return self.rows[-1][column] if self.rows else 0

    def _add_row(self) -> None:
        draws, valid = int(self.counts["draws"]), int(self.counts["valid"])
        fresh = draws - self._last("draws")
        self.rows.append({
            "env_steps": self.env_steps, "episodes": len(self.finished), "return": float(np.mean(self.finished)),
            "valid_rate": (valid - self._last("valid")) / max(1, fresh), "draws": draws, "valid": valid,
        })  # fmt: skip
        self.finished = []


def fit(
    env: str | Path | Callable[[], gymnasium.Env],
    oracle: Oracle | None = None,
    method: str = "iar-a2c",
    steps: int = 50_000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    **settings,
) -> Fitted:
    """Train on an environment; the trainer, which `act`s, has a learning `curve` and can `train` on.

    env: the name of an ERA environment, the path of a city's .json file, a gymnasium id, a callable that makes a new
    gymnasium environment (Discrete or MultiDiscrete actions), or a batched environment as `Trainer` takes it.
    oracle(observation (B, …), actions (B, S, D)) → bool (B, S), or `per_action` of a function that judges one action;
    None: the city's or batched environment's own, every action of a gymnasium environment. method, settings: as on
    the command line (`python -m flowrl list --settings`), but for Wol-DDPG, which has no oracle; a batched environment
    says n_envs and device itself. Everything drawn is seeded by `seed`. Warns where draws were hardly ever valid.
    Raises ValueError; NoValidActionError.
    """
    choose("method", method, A2C_METHODS)
    if oracle is not None and method in NO_CONSTRAINTS:
        allowed = ", ".join(name for name in A2C_METHODS if name not in NO_CONSTRAINTS)
        raise ValueError(f"{method} knows no constraints; with an oracle choose one of: {allowed}")
    batched = all(hasattr(env, name) for name in ("action_sizes", "observation_shape", "n_envs", "step", "valid"))
    if batched:
        if settings.get("n_envs", env.n_envs) != env.n_envs or device != "auto":
            raise ValueError(f"a batched environment has n_envs ({env.n_envs}) and device ({env.device}) of its own")
        settings["n_envs"] = env.n_envs
    config = make_config(_name(env), method, settings | {"steps": steps, "seed": seed})
    choose("policy", config.policy, POLICIES)
    if oracle is not None and not callable(oracle):
        raise ValueError(f"the oracle is {type(oracle).__name__}; it must be a function, or None")
    if not batched:
        chosen = make_device(device)
        env, oracle = _make(env, config.n_envs, chosen, seeded(config.seed, "env", chosen), oracle)
    fitted = Fitted(config, env, oracle).train(config.steps, progress)
    without = (fitted.counts["enumerations"] + fitted.counts["fallbacks"]) / max(1, fitted.env_steps)
    if without > MOST_WITHOUT:
        warnings.warn(
            f"no draw was valid in {float(without):.0%} of the training steps: all actions were enumerated or the "
            f"fallback was called there, which is slow and teaches nothing; a valid_bonus larger than "
            f"{config.valid_bonus:g} helps",
            stacklevel=2,
        )
    return fitted


def _make(env, n_envs: int, device: torch.device, generator: torch.Generator, oracle) -> tuple[object, Oracle | None]:
    """A batched environment, and the oracle to call instead of its own."""
    city = str(env).removeprefix("flowrl/")
    if isinstance(env, str | Path) and (city.endswith(".json") or city in set(envs.names()) - set(envs.CLASSIC)):
        return envs.make_batched(city, n_envs, device, generator), oracle
    if isinstance(env, str):
        try:
            gymnasium.spec(env)
        except (gymnasium.error.Error, ImportError) as error:
            known = f"nor is it a city's .json file or one of: {', '.join(envs.names())}"
            raise ValueError(f"unknown environment {env!r}: {' '.join(str(error).split())}; {known}") from None
    return GymBatched(env, n_envs, device, generator, oracle), None


def _name(env) -> str:
    """What the configuration calls it; a city by its own name, so that its settings are checked alike."""
    if isinstance(env, str | Path):
        return str(env).removeprefix("flowrl/")
    return getattr(env, "__name__", type(env).__name__).strip("<>")


@contextmanager
def _one_thread_on_cpu(device: torch.device) -> Iterator[None]:
    """One thread for matrices this small, and then as many as before."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
