"""`fit`: train on an environment of one's own in one call, with the methods and settings of the command line.

    trainer = flowrl.fit(MyEnvironment, oracle=flowrl.per_action(fits), steps=50_000)
    action = trainer.act(observation)
    trainer.save("mine.pt")
    trainer = flowrl.load("mine.pt", MyEnvironment, oracle=flowrl.per_action(fits))

No record is written: `python -m flowrl train` and `study.runs` do that, for the environments of the paper.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import gymnasium
import torch
from gymnasium.vector import VectorEnv

from . import envs
from .a2c import POLICIES, seeded
from .device import make_device
from .envs.batched import Batched
from .envs.gym import ORACLES, GymBatched
from .envs.validity import GIVEN, Oracles, takes
from .fitted import FORMAT, Fitted, spaces_of, versions
from .study.config import A2C_METHODS, NO_CONSTRAINTS, TrainConfig, choose, make_config

MOST_WITHOUT = 0.01  # share of steps without a valid draw above which `fit` warns
# Strangers' rewards are of any scale and often rare: scaled, with a critic in their units, and n-step returns, which
# carry a rare reward back n times as fast, in as many updates of as many states as one step of 64 environments
STRANGERS = {"normalise_reward": True, "value_scale": 1.0, "n_envs": 16, "n_steps": 4}
# Their actions may be many. The bonus β H grows with log |A|: it weighs no more than in a city. The recipe's score is
# shared by draws that coincide; where hardly any do, the Gumbel flow needs none, unless a setting is the recipe's.
LOG_SIZE, MANY = math.log(1000), 10**6
RECIPES = {
    "policy", "coupling", "n_couplings", "base_scale", "estimator", "alpha", "posterior", "n_posterior",
    "posterior_couplings", "posterior_fit_steps", "elbo_batch", "elbo_steps", "elbo_encoder", "latent_kl",
    "initial_gain",
}  # fmt: skip
DEFAULT = "iar-a2c"
Env = str | Path | Callable[[], gymnasium.Env] | VectorEnv | Batched


def fit(
    env: Env,
    oracle: Oracles | None = None,
    method: str | None = None,
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
    gymnasium environment, a vector environment of gymnasium's, or a batched environment as `Trainer` takes it.
    oracle: `per_action` of a function that judges one action; oracle(observation (B, …), actions (B, S, D)) → bool
    (B, S); the name of a mask, list or method of the environment, its observation or its info; a list of names and
    `per_action`s that must all say yes; None: the city's or batched environment's own, the usual ones of a gymnasium
    environment (`envs.validity`), else every action.
    method: one of A2C_METHODS; None: iar-a2c, or iar-a2c-gumbel in a gymnasium environment of over a million actions.
    known_valid, when_none_valid: what to do where no valid action is drawn or none exists (`envs.gym.GymBatched`); with
    the setting chains, at 8, say, Markov chains start from known_valid there, and such states teach (`chains`); so by
    default beyond a million actions, unless told a method.
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
    choose("method", method or DEFAULT, A2C_METHODS)
    if oracle is not None and method in NO_CONSTRAINTS:
        allowed = ", ".join(name for name in A2C_METHODS if name not in NO_CONSTRAINTS)
        raise ValueError(f"{method} knows no constraints; with an oracle choose one of: {allowed}")
    if _is_batched(env):
        if settings.get("n_envs", env.n_envs) != env.n_envs or device != "auto":
            raise ValueError(f"a batched environment has n_envs ({env.n_envs}) and device ({env.device}) of its own")
        settings["n_envs"] = env.n_envs
    elif isinstance(env, VectorEnv):
        settings.setdefault("n_envs", env.num_envs)
    strange = not (_is_batched(env) or _is_named(env))
    settings = STRANGERS | settings if strange else settings
    steps, total_steps = _whole("steps", steps), _whole("total_steps", total_steps or steps)
    settings |= {"steps": total_steps, "seed": seed}
    config = make_config(_name(env), method or DEFAULT, settings)
    if not 0 <= steps <= total_steps:
        raise ValueError(f"steps is {steps} and total_steps {total_steps}; allowed: 0 ≤ steps ≤ total_steps")
    options = {"known_valid": known_valid, "when_none_valid": when_none_valid}
    fitted = _new(config, env, oracle, device, options, (method, settings) if strange else None)
    _listen(fitted, eval_env, callback, log, oracle, options)
    fitted.train(steps, progress)
    _warn_of_few_valid(fitted)
    return fitted


def load(
    path: str | Path,
    env: Env | None = None,
    oracle: Oracles | None = None,
    device: str = "auto",
    *,
    known_valid: Any = None,
    when_none_valid: str = "raise",
    eval_env: Env | None = None,
    callback: Callable[[Fitted], Any] | None = None,
    log: str | None = None,
    resume: bool = False,
) -> Fitted:
    """What `Fitted.save` wrote: it acts as before, and trains on from there, in new episodes.

    env, oracle, known_valid, when_none_valid, eval_env, callback, log: as `fit` was given them; they are not in the
    file, but for env by its id, or name, which need not be said again.
    resume: in the episodes that it was in, so that training goes on bit for bit; that unpickles the environments, which
    runs code: only for files that you trust. Raises ValueError that says what differs, in one line.

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
    with _readable(path, data):
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        if unknown := data["config"].keys() - known:
            raise ValueError(f"settings that this version does not know: {', '.join(sorted(unknown))}")
        config, spaces, state = TrainConfig(**data["config"]), dict(data["spaces"]), dict(data["state"])
    options = {"known_valid": known_valid, "when_none_valid": when_none_valid}
    try:
        fitted = _new(config, config.env if env is None else env, oracle, device, options)
    except ValueError as error:
        if env is not None or not str(error).startswith("unknown environment"):
            raise
        raise ValueError(
            f"{path} is of {config.env}, which can't be made by that name: import what registers it, or give load the "
            "env= that fit had"
        ) from None
    for what, own in spaces_of(fitted.env).items():
        if spaces.get(what) != own:
            said = f"{path} was saved with {what}: {spaces.get(what)}; here it is: {own}"
            raise ValueError(said + "; give load the oracle= that fit had" * (GIVEN in spaces.get(what, "")))
    if resume and state.get("env") is None:
        raise ValueError(
            f"{path}: the environments are not in the file (they can't be pickled, or an error had stopped training); "
            "only resume=False"
        )
    if not resume:
        state |= {"env": None, "observation": fitted.observation, "running": torch.zeros_like(fitted.running)}
        state |= {"before": None, "executed": None}
    with _readable(path, data):
        fitted.load_state_dict(state)
    _listen(fitted, eval_env, callback, log, oracle, options)
    return fitted


@contextmanager
def _readable(path: str | Path, data: dict) -> Iterator[None]:
    """ValueError, in one line, for whatever goes wrong with what is in a file, and which versions it is of."""
    try:
        yield
    except Exception as error:
        said = " ".join(f"{path} can't be read: {type(error).__name__}: {error}".split())
        saved, own = data.get("versions"), versions()
        differ = [f"{name} {saved[name]}, here {own[name]}" for name in own if saved and saved.get(name) != own[name]]
        raise ValueError(f"{said[:300]}{'; saved with ' * bool(differ)}{'; '.join(differ)}") from None


def _listen(fitted: Fitted, eval_env: Env | None, callback, log: str | None, oracle, options: dict) -> None:
    """Have evaluations, a log and a callback called after every update. ValueError."""
    if eval_env is not None:
        make = _maker(eval_env, oracle, fitted.device, options)
        with warnings.catch_warnings(action="ignore"):  # they come again when it evaluates
            theirs = make(1, seeded(fitted.config.seed, "env/evaluation", fitted.device))
        for what in ("action_sizes", "observation_shape"):
            one, other = getattr(fitted.env, what), getattr(theirs, what)
            if tuple(one) != tuple(other):
                raise ValueError(f"{what} of eval_env: {tuple(other)}; of env: {tuple(one)}; they must be the same")
        fitted.callbacks.append(_KeepBest(make))
    if log is not None:
        choose("log", log, ("tensorboard",))
        fitted.callbacks.append(_TensorBoard(fitted))
    if callback is not None:
        if not (callable(callback) and takes(callback, 1)):
            raise ValueError(f"callback is {callback!r}; it must be a function of the trainer")
        fitted.callbacks.append(callback)


def _new(
    config: TrainConfig, env: Env, oracle: Oracles | None, device: str, options: dict, wishes: tuple | None = None
) -> Fitted:
    """A trainer of the configuration that has learnt nothing; wishes: as `_for_many_actions` takes them. ValueError."""
    choose("policy", config.policy, POLICIES)
    own = None if isinstance(oracle, str | list | tuple) else oracle
    if not (own is None or callable(own)):
        raise ValueError(f"the oracle is {type(own).__name__}; {ORACLES}")
    if isinstance(oracle, str | list | tuple) and (_is_batched(env) or _is_named(env)):
        raise ValueError(f"the oracle is {oracle!r}; only gymnasium environments are searched for a name")
    if _is_batched(env):
        return Fitted(config, env, own)
    chosen = make_device(device)
    make = _maker(env, oracle, chosen, options)
    batch = make(config.n_envs, seeded(config.seed, "env", chosen))
    if wishes is not None:
        config = _for_many_actions(config, math.prod(batch.action_sizes), options["known_valid"] is not None, *wishes)
    return Fitted(config, batch, own if _is_named(env) else None, make)


def _for_many_actions(config: TrainConfig, size: int, known: bool, method: str | None, settings: dict) -> TrainConfig:
    """The configuration where |A| is known, and whether valid actions are, but for what the user has said."""
    if method is None and size > MANY and not RECIPES & settings.keys():
        config = make_config(config.env, "iar-a2c-gumbel", settings)
        if known and "chains" not in settings and config.correction != "paper" and config.n_draws >= 2:
            config = dataclasses.replace(config, chains=min(8, config.n_draws))
    if "entropy" in settings or math.log(size) <= LOG_SIZE:
        return config
    return dataclasses.replace(config, entropy=config.entropy * LOG_SIZE / math.log(size))


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


def _whole(name: str, value: Any) -> int:
    if isinstance(value, str) or not hasattr(value, "__int__") or not math.isfinite(value) or int(value) != value:
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return int(value)


def _warn_of_few_valid(fitted: Fitted) -> None:
    without = (fitted.counts["enumerations"] + fitted.counts["fallbacks"]) / max(1, fitted.env_steps)
    if without > MOST_WITHOUT:
        rates = [row["valid_rate"] for row in fitted.rows] or [0.0]
        quarter = -(-len(rates) // 4)
        first, last, lr = rates[0], sum(rates[-quarter:]) / quarter, fitted.config.actor_lr
        fell = f"the valid rate fell from {first:.0%} to {last:.0%}: "
        or_slower = f", or an actor_lr smaller than {lr:g}," * (last < first / 2)
        warnings.warn(
            f"no draw was valid in {float(without):.0%} of the training steps: all were enumerated or the fallback "
            f"asked there, which is slow and teaches nothing; {fell * (last < first / 2)}a valid_bonus of "
            f"{max(0.3, 3 * fitted.config.valid_bonus):g}{or_slower} may help",
            stacklevel=3,
        )


class _KeepBest:
    """A callback that evaluates every `eval_every` steps and keeps the best weights."""

    def __init__(self, make: Callable):
        self.make = make

    def __call__(self, trainer: Fitted) -> None:
        every = trainer.config.eval_every
        at_the_end = trainer.evaluated < trainer.config.steps <= trainer.env_steps
        if trainer.env_steps // every == trainer.evaluated // every and not at_the_end:
            return
        trainer.evaluated, n = trainer.env_steps, trainer.config.eval_episodes
        batch = self.make(n, seeded(trainer.config.seed, f"env/evaluation {trainer.env_steps}", trainer.device))
        mean = float(trainer.evaluate(batch, n)[0].mean())
        if trainer.best is None or mean > trainer.best["return"]:
            weights = {name: {key: value.clone() for key, value in getattr(trainer, name).state_dict().items()}
                       for name in ("policy", "critic")}  # fmt: skip
            trainer.best = {"return": mean, "env_steps": trainer.env_steps} | weights


class _TensorBoard:
    """A callback that writes the curve's rows for TensorBoard."""

    def __init__(self, fitted: Fitted):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("log='tensorboard' needs it: pip install 'flowrl-iar[tensorboard]'") from None
        config = fitted.config
        self.writer = SummaryWriter(f"runs/{Path(config.env).stem}-{config.method}-seed{config.seed}")
        self.written = len(fitted.rows)

    def __call__(self, trainer: Fitted) -> None:
        for row in trainer.rows[self.written :]:
            for name in ("return", "reward", "valid_rate"):
                self.writer.add_scalar(name, row[name], row["env_steps"])
        self.written = len(trainer.rows)
        self.writer.flush()
