"""`fit`: train on an environment of one's own in one call, with the methods and settings of the command line.

    trainer = flowrl.fit(MyEnvironment, oracle=flowrl.per_action(fits), steps=50_000)
    action = trainer.act(observation)
    trainer.save("mine.pt")
    trainer = flowrl.load("mine.pt", MyEnvironment, oracle=flowrl.per_action(fits))

No record is written: `python -m flowrl train` and `study.runs` do that, for the environments of the paper.
"""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import gymnasium
import torch
from gymnasium.vector import SyncVectorEnv

from . import envs
from .a2c import POLICIES, seeded
from .device import make_device
from .envs.batched import Batched, Oracle
from .envs.gym import GymBatched
from .envs.validity import PerAction
from .fitted import FORMAT, Fitted, spaces_of
from .study.config import A2C_METHODS, NO_CONSTRAINTS, TrainConfig, choose, make_config

MOST_WITHOUT = 0.01  # share of steps without a valid draw above which `fit` warns
# Strangers' rewards are of any scale and often rare: scaled, with a critic in their units, and n-step returns, which
# carry a rare reward back n times as fast, in as many updates of as many states as one step of 64 environments
STRANGERS = {"normalise_reward": True, "value_scale": 1.0, "n_envs": 16, "n_steps": 4}
Env = str | Path | Callable[[], gymnasium.Env] | SyncVectorEnv | Batched


def fit(
    env: Env,
    oracle: Oracle | PerAction | str | None = None,
    method: str = "iar-a2c",
    steps: int = 50_000,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    *,
    total_steps: int | None = None,
    known_valid: Any = None,
    when_none_valid: str = "raise",
    eval_env: Env | None = None,
    callback: Callable[[Fitted], Any] | None = None,
    log: str | None = None,
    **settings,
) -> Fitted:
    """Train on an environment; the trainer, which can `act`, `evaluate`, `save` and `train` on, and has a `curve`.

    env: the name of an ERA environment, the path of a city's .json file, a gymnasium id, a callable that makes a new
    gymnasium environment, a SyncVectorEnv, or a batched environment as `Trainer` takes it.
    oracle: `per_action` of a function that judges one action; oracle(observation (B, …), actions (B, S, D)) → bool
    (B, S); the name of a mask, list or method of the environment, its observation or its info; None: the city's or
    batched environment's own, the usual ones of a gymnasium environment (`envs.validity`), else every action.
    known_valid, when_none_valid: what to do where no valid action is drawn or none exists (`envs.gym.GymBatched`); with
    the setting chains, at 8, say, Markov chains start from known_valid there, and such states teach (`chains`).
    total_steps: the length that schedules are told, where `train` will go on; default steps. eval_env: where to
    evaluate every `eval_every` steps, `eval_episodes` each; the best weights are kept (`use_best`). callback(trainer):
    after every update; False stops. log: "tensorboard" writes into runs/.
    method, settings: as on the command line (`python -m flowrl list --settings`), but for Wol-DDPG, which asks no
    oracle; a batched environment says n_envs and device itself; for gymnasium environments STRANGERS take the place of
    the defaults, so that rewards of any scale are learnt from. Everything drawn is seeded by `seed`. Warns where draws
    were hardly ever valid. Raises ValueError; NoValidActionError; FloatingPointError where something is not finite;
    RuntimeError from an error inside the environment; the error's `trainer` has what was learnt until then.

    >>> import flowrl
    >>> class Pair(gymnasium.Env):  # two jobs for two of four workers, not for the same one; pays their numbers
    ...     observation_space, action_space = gymnasium.spaces.Discrete(1), gymnasium.spaces.MultiDiscrete([4, 4])
    ...     def reset(self, *, seed=None, options=None):
    ...         super().reset(seed=seed)
    ...         return 0, {}
    ...     def step(self, action):
    ...         return 0, float(action.sum()), True, False, {}
    >>> two = flowrl.per_action(lambda observation, action: action[0] != action[1])
    >>> trained = fit(Pair, two, steps=2000, n_envs=16, progress=False)
    >>> first, second = trained.act(0)
    >>> bool(first != second), trained.env.violations
    (True, 0)
    >>> returns, counts = trained.evaluate(n_episodes=50)  # 5 at best, 3 by chance
    >>> bool(returns.mean() > 4)
    True
    """
    choose("method", method, A2C_METHODS)
    if oracle is not None and method in NO_CONSTRAINTS:
        allowed = ", ".join(name for name in A2C_METHODS if name not in NO_CONSTRAINTS)
        raise ValueError(f"{method} knows no constraints; with an oracle choose one of: {allowed}")
    if _is_batched(env):
        if settings.get("n_envs", env.n_envs) != env.n_envs or device != "auto":
            raise ValueError(f"a batched environment has n_envs ({env.n_envs}) and device ({env.device}) of its own")
        settings["n_envs"] = env.n_envs
    elif isinstance(env, SyncVectorEnv):
        settings.setdefault("n_envs", env.num_envs)
    if not (_is_batched(env) or _is_named(env)):
        settings = STRANGERS | settings
    config = make_config(_name(env), method, settings | {"steps": total_steps or steps, "seed": seed})
    if steps < 0 or (total_steps or steps) < steps:
        raise ValueError(f"steps is {steps} and total_steps {total_steps}; allowed: 0 ≤ steps ≤ total_steps")
    options = {"known_valid": known_valid, "when_none_valid": when_none_valid}
    fitted = _new(config, env, oracle, device, options)
    if eval_env is not None:
        fitted.callbacks.append(_KeepBest(_maker(eval_env, oracle, fitted.device, options)))
    if log is not None:
        choose("log", log, ("tensorboard",))
        fitted.callbacks.append(_TensorBoard(config))
    if callback is not None:
        fitted.callbacks.append(callback)
    fitted.train(steps, progress)
    _warn_of_few_valid(fitted)
    return fitted


def load(
    path: str | Path,
    env: Env | None = None,
    oracle: Oracle | PerAction | str | None = None,
    device: str = "auto",
    *,
    known_valid: Any = None,
    when_none_valid: str = "raise",
    resume: bool = False,
) -> Fitted:
    """What `Fitted.save` wrote: it acts as before, and trains on from there, in new episodes.

    env, oracle, known_valid, when_none_valid: as `fit` was given them; env by its id, or name, need not be said again.
    resume: in the episodes that it was in, so that training goes on bit for bit; that unpickles the environments, which
    runs code: only for files that you trust. Raises ValueError that says what differs.

    >>> import tempfile
    >>> trained = fit("CartPole-v1", steps=64, n_envs=4, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trained.save(f"{folder}/mine.pt")
    ...     again = load(f"{folder}/mine.pt")
    >>> again.env_steps, again.config == trained.config
    (64, True)
    """
    chosen = make_device(device)
    try:
        data = torch.load(path, map_location=chosen, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:
        raise ValueError(f"{path}: not a file that flowrl saved ({type(error).__name__})") from None
    if not isinstance(data, dict) or data.get("flowrl") != FORMAT:
        raise ValueError(f"{path}: not a file that this version of flowrl saved")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := data["config"].keys() - known:
        raise ValueError(f"{path}: settings that this version does not know: {', '.join(sorted(unknown))}")
    config = TrainConfig(**data["config"])
    env = config.env if env is None else env
    fitted = _new(config, env, oracle, device, {"known_valid": known_valid, "when_none_valid": when_none_valid})
    for what, saved in data["spaces"].items():
        if saved != (own := spaces_of(fitted.env)[what]):
            raise ValueError(f"{path} was saved with the {what} {saved}; this environment has {own}")
    state = data["state"]
    if resume and state["env"] is None:
        raise ValueError(f"{path}: this environment can't be pickled, so it is not in the file; only resume=False")
    if not resume:
        state |= {"env": None, "observation": fitted.observation, "running": torch.zeros_like(fitted.running)}
        state["executed"] = None
    fitted.load_state_dict(state)
    return fitted


def _new(config: TrainConfig, env: Env, oracle: Oracle | PerAction | str | None, device: str, options: dict) -> Fitted:
    """A trainer of the configuration that has learnt nothing. ValueError."""
    choose("policy", config.policy, POLICIES)
    own = None if isinstance(oracle, str) else oracle
    if not (own is None or callable(own)):
        raise ValueError(f"the oracle is {type(own).__name__}; it must be a function, a name, or None")
    if isinstance(oracle, str) and (_is_batched(env) or _is_named(env)):
        raise ValueError(f"the oracle is {oracle!r}; only gymnasium environments are searched for a name")
    if _is_batched(env):
        return Fitted(config, env, own)
    chosen = make_device(device)
    make = _maker(env, oracle, chosen, options)
    batch = make(config.n_envs, seeded(config.seed, "env", chosen))
    return Fitted(config, batch, own if _is_named(env) else None, make)


def _maker(env, oracle, device: torch.device, options: dict) -> Callable:
    """n, generator → a batch of n environments. ValueError."""
    if _is_named(env):
        if any(options[name] != default for name, default in (("known_valid", None), ("when_none_valid", "raise"))):
            raise ValueError("known_valid and when_none_valid are for gymnasium environments; this one knows itself")
        return lambda n, generator: envs.make_batched(str(env).removeprefix("flowrl/"), n, device, generator)

    def make(n: int, generator: torch.Generator) -> GymBatched:
        try:
            return GymBatched(env, n, device, generator, oracle, **options)
        except ValueError as error:
            if isinstance(env, str) and str(error).startswith("gymnasium can't make"):
                known = f"nor is it a city's .json file or one of: {', '.join(envs.names())}"
                raise ValueError(f"unknown environment {env!r}: {error}; {known}") from None
            raise

    return make


def _is_batched(env: Any) -> TypeGuard[Batched]:
    return all(hasattr(env, name) for name in ("action_sizes", "observation_shape", "n_envs", "step", "valid"))


def _is_named(env: Any) -> TypeGuard[str | Path]:
    """Whether it is one of flowrl's own; what gymnasium has by the same name, CartPole-v1, is gymnasium's."""
    city = str(env).removeprefix("flowrl/")
    ours = set(envs.names()) - set(gymnasium.registry)
    return isinstance(env, str | Path) and (city.endswith(".json") or city in ours or envs.is_line(city))


def _name(env) -> str:
    """What the configuration calls it; a city by its own name, so that its settings are checked alike."""
    if isinstance(env, str | Path):
        return str(env).removeprefix("flowrl/")
    return getattr(env, "__name__", type(env).__name__).strip("<>")


def _warn_of_few_valid(fitted: Fitted) -> None:
    without = (fitted.counts["enumerations"] + fitted.counts["fallbacks"]) / max(1, fitted.env_steps)
    if without > MOST_WITHOUT:
        warnings.warn(
            f"no draw was valid in {float(without):.0%} of the training steps: all actions were enumerated or the "
            "fallback was asked there, which is slow and teaches nothing; a valid_bonus larger than "
            f"{fitted.config.valid_bonus:g} helps",
            stacklevel=3,
        )


class _KeepBest:
    """A callback that evaluates every `eval_every` steps and keeps the best weights."""

    def __init__(self, make: Callable):
        self.make, self.evaluated = make, 0

    def __call__(self, trainer: Fitted) -> None:
        every = trainer.config.eval_every
        if trainer.env_steps // every == self.evaluated // every and trainer.env_steps < trainer.config.steps:
            return
        self.evaluated, n = trainer.env_steps, trainer.config.eval_episodes
        batch = self.make(n, seeded(trainer.config.seed, f"env/evaluation {trainer.env_steps}", trainer.device))
        mean = float(trainer.evaluate(batch, n)[0].mean())
        if trainer.best is None or mean > trainer.best["return"]:
            weights = {name: {key: value.clone() for key, value in getattr(trainer, name).state_dict().items()}
                       for name in ("policy", "critic")}  # fmt: skip
            trainer.best = {"return": mean, "env_steps": trainer.env_steps} | weights


class _TensorBoard:
    """A callback that writes the curve's rows for TensorBoard."""

    def __init__(self, config: TrainConfig):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("log='tensorboard' needs it: pip install 'flowrl-iar[tensorboard]'") from None
        self.writer = SummaryWriter(f"runs/{Path(config.env).stem}-{config.method}-seed{config.seed}")
        self.written = 0

    def __call__(self, trainer: Fitted) -> None:
        for row in trainer.rows[self.written :]:
            for name in ("return", "reward", "valid_rate"):
                self.writer.add_scalar(name, row[name], row["env_steps"])
        self.written = len(trainer.rows)
        self.writer.flush()
