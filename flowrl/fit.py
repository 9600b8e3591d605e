"""`fit`: train on an environment of one's own in one call, with the methods and settings of the command line.

    trainer = flowrl.fit(MyEnvironment, oracle=flowrl.per_action(fits), steps=50_000)
    action = trainer.act(observation)
    trainer.save("mine.pt")
    trainer = flowrl.load("mine.pt", MyEnvironment, oracle=flowrl.per_action(fits))

No record is written: `python -m flowrl train` and `study.runs` do that, for the environments of the paper.
"""

import dataclasses
import os
import platform
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import envs, rejection
from .a2c import Rollout, Trainer, seeded
from .device import make_device, one_thread
from .envs.gym import GymBatched, Oracle
from .envs.spaces import frozen
from .envs.validity import PerAction, State
from .policies import POLICIES, CategoricalPolicy, FlowPolicy, to_digits
from .study.config import A2C_METHODS, NO_CONSTRAINTS, TrainConfig, choose, make_config

CURVE_ROWS = 200  # most rows of a learning curve
LEAST_ROWS = 10  # rows of it while no episode ends
MOST_WITHOUT = 0.01  # share of steps without a valid draw above which `fit` warns
GREEDY_DRAWS = 64  # draws, at least, of which a greedy action is the most frequent, or most probable
MOST_STEPS = 100_000  # of an episode in an evaluation
FORMAT = 1  # of saved files
Env = str | Path | Callable[[], gymnasium.Env]


class Fitted(Trainer):
    """A trainer that keeps its learning curve, goes on with `train`, acts on observations, evaluates, saves.

    make: n, generator → a batch of n of its environments, for `evaluate`. best: the weights that evaluated best, where
    `fit` was given an eval_env: their `return` and `env_steps`, and `use_best` to take them.
    """

    def __init__(self, config: TrainConfig, env, oracle: Oracle | None = None, make: Callable | None = None):
        super().__init__(config, env, oracle)
        self.make = make
        self.callbacks: list[Callable[[Fitted], Any]] = []
        self.rows: list[dict] = []
        self.running = torch.zeros(env.n_envs, dtype=torch.float64, device=env.device)
        self.finished: list[float] = []  # returns of the episodes that ended since the last row
        self.rewarded = torch.zeros((), dtype=torch.float64, device=env.device)  # sum of rewards since then
        self.best: dict | None = None
        self.acting = seeded(config.seed, "act", env.device)
        self.greedy = self.interrupted = self.broken = False

    # ---------------------------------------------------------------------------------------------- training

    def train(self, steps: int, progress: bool = True) -> "Fitted":
        """Go on for so many environment steps, over all environments. Returns itself.

        Ctrl-C stops after the update under way, with a warning; a callback by returning False. An error carries what
        was learnt as its `trainer`, which starts new episodes if it goes on.
        """
        end, batch = self.env_steps + steps, self.config.n_steps * self.config.n_envs
        bar = tqdm(total=-(-steps // batch) * batch, unit=" steps", desc=f"{self.config.env} {self.config.method}",
                   disable=not progress, mininterval=0.5)  # fmt: skip
        with bar, _one_thread_on_cpu(self.device), self._interruptible():
            if self.broken:
                self.observation, self.running, self.broken = self.env.reset(), torch.zeros_like(self.running), False
            try:
                while self.env_steps < end and not self.interrupted:
                    before = self.env_steps
                    self.step()
                    bar.update(self.env_steps - before)
                    self._add_row_if_due(bar)
                    if False in [callback(self) for callback in self.callbacks]:  # all are called
                        break
            except BaseException as error:
                self.broken, error.trainer = True, self
                error.add_note(f"what was learnt in {self.env_steps} steps is this error's `trainer`")
                raise
        if self.interrupted:
            warnings.warn(f"interrupted at {self.env_steps} of {end} steps; `train` goes on from here", stacklevel=3)
        return self

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C stops after the update under way, the second at once."""
        self.interrupted = False

        def stop(*_: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        try:
            old = signal.signal(signal.SIGINT, stop)
        except ValueError:  # not the main thread
            old = None
        try:
            yield
        finally:
            if old is not None:
                signal.signal(signal.SIGINT, old)

    def rollout(self) -> Rollout:
        """As the trainer's; also the returns of the episodes that ended in it."""
        rollout = super().rollout()
        self.rewarded += rollout.reward.sum(dtype=torch.float64)
        for reward, ended in zip(rollout.reward, rollout.terminated | rollout.truncated, strict=True):
            self.running += reward
            if ended.any():
                self.finished += self.running[ended].tolist()
                self.running = self.running.where(~ended, 0.0)
        return rollout

    @property
    def curve(self):
        """The learning curve, a pandas.DataFrame, a row whenever training episodes have ended, or a tenth of it has:

        env_steps; means since the row before: episodes, how many ended; return, their undiscounted mean, NaN without
        any; reward, of a step; valid_rate, the share of valid draws.
        """
        import pandas as pd  # here: takes half a second

        columns = ["env_steps", "episodes", "return", "reward", "valid_rate"]
        return pd.DataFrame(self.rows, columns=[*columns, "draws", "valid"])[columns]

    def _last(self, column: str) -> float:
        return self.rows[-1][column] if self.rows else 0

    def _add_row_if_due(self, bar: tqdm) -> None:
        since, whole = self.env_steps - self._last("env_steps"), self.config.steps
        if since < whole / CURVE_ROWS or not (self.finished or since >= whole / LEAST_ROWS):
            return
        draws, valid = int(self.counts["draws"]), int(self.counts["valid"])
        fresh = draws - self._last("draws")
        self.rows.append({
            "env_steps": self.env_steps, "episodes": len(self.finished),
            "return": float(np.mean(self.finished)) if self.finished else float("nan"),
            "reward": float(self.rewarded) / since,
            "valid_rate": (valid - self._last("valid")) / max(1, fresh), "draws": draws, "valid": valid,
        })  # fmt: skip
        self.finished, self.rewarded = [], torch.zeros_like(self.rewarded)
        shown = "return" if self.rows[-1]["episodes"] else "reward"
        bar.set_postfix({shown: f"{self._last(shown):.2f}", "valid rate": f"{self._last('valid_rate'):.2f}"})

    # ------------------------------------------------------------------------------------------------ acting

    def act(
        self,
        observation: Any,
        greedy: bool = False,
        action_mask: Any = None,
        info: dict | None = None,
        env: gymnasium.Env | None = None,
    ) -> Any:
        """A valid action for one state, drawn from π' (draw, ask, reject): what the environment's own `step` takes.

        observation: as the environment gives it. Where info, or the environment itself, tells what is valid, that has
        to be given too, or an action_mask (or list of valid actions) instead. greedy: the most probable of the valid
        draws where the policy knows probabilities, else the most frequent one. Raises NoValidActionError where none is
        found; ValueError; FloatingPointError where the observation is not finite.
        """
        given = [None if x is None else [x] for x in (action_mask, info, env)]
        return self.act_many([observation], greedy, *given)[0]

    def act_many(
        self,
        observations: Sequence[Any],
        greedy: bool = False,
        action_masks: Sequence[Any] | None = None,
        infos: Sequence[dict] | None = None,
        envs: Sequence[gymnasium.Env] | None = None,
    ) -> list[Any]:
        """`act` for several states at once: a list of actions."""
        n = len(observations)
        if not isinstance(self.env, GymBatched):
            if action_masks is not None:
                raise ValueError("this environment has an oracle of its own; it takes no action_mask")
            batch, oracle, fallback = self._batch(observations), self.oracle, self.fallback
        else:
            batch = torch.cat([self.env.to_tensor(observation) for observation in observations])
            told = zip(observations, infos or [{}] * n, envs or [None] * n, strict=True)
            states = [State(frozen(observation), info, env) for observation, info, env in told]
            oracle, fallback = self.env.oracle_of(states, action_masks), self.env.fallback_of(states)
        with self._as(oracle, fallback, greedy):
            action = self.decide(batch, self.acting)[0].action
        if isinstance(self.env, GymBatched):
            return [self.env.to_environment(one) for one in action]
        return list(action.cpu().numpy())

    def _batch(self, observations: Sequence[Any]) -> Tensor:
        batch = torch.as_tensor(np.stack([np.asarray(one, dtype=np.float32) for one in observations]))
        if batch.shape[1:] != self.env.observation_shape:
            raise ValueError(
                f"the observation has the shape {tuple(batch.shape[1:])}; allowed: {self.env.observation_shape}"
            )
        if not batch.isfinite().all():
            raise FloatingPointError("the observation is not finite")
        return batch.to(self.device)

    @contextmanager
    def _as(self, oracle, fallback, greedy: bool) -> Iterator[None]:
        """Decide by another oracle, and greedily or not."""
        before = self.oracle, self.fallback, self.greedy
        self.oracle, self.fallback, self.greedy = oracle, fallback, greedy
        try:
            yield
        finally:
            self.oracle, self.fallback, self.greedy = before

    def decide(self, observation: Tensor, generator: torch.Generator) -> tuple[rejection.Decision, dict]:
        if not self.greedy:
            return super().decide(observation, generator)
        more = self.config
        if more.policy != "masked":
            more = dataclasses.replace(more, n_draws=max(more.n_draws, GREEDY_DRAWS))
        decided, counts = rejection.decide(self.policy, self.oracle, observation, more, generator, self.fallback)
        action = greediest(self.policy, decided).where(decided.sampled[:, None], decided.action)
        return decided._replace(action=action), counts

    def evaluate(self, env=None, n_episodes: int = 10, generator=None, greedy: bool = False, most_steps=MOST_STEPS):
        """Undiscounted returns (n_episodes,) in new environments, or a batch of n_episodes, and counts of `decide`."""
        if generator is None:
            generator = seeded(self.config.seed, f"policy/evaluation {self.env_steps}", self.device)
        if env is None:
            if self.make is None:
                raise ValueError("a batched environment can't be made anew; give one of n_episodes environments")
            env = self.make(n_episodes, seeded(self.config.seed, f"env/evaluation {self.env_steps}", self.device))
        own = self.oracle if not isinstance(env, GymBatched) else env.valid
        with self._as(own, getattr(env, "fallback", None), greedy), _one_thread_on_cpu(self.device):
            return super().evaluate(env, n_episodes, generator, most_steps)

    def use_best(self) -> "Fitted":
        """Take the weights that evaluated best. Returns itself."""
        if self.best is None:
            raise ValueError("nothing was evaluated; give fit an eval_env")
        self.policy.load_state_dict(self.best["policy"])
        self.critic.load_state_dict(self.best["critic"])
        return self

    # ------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict:
        """All that the rest of the training depends on, and the curve so far."""
        own = {"rows": list(self.rows), "running": self.running.clone(), "finished": list(self.finished)}
        own |= {"rewarded": self.rewarded.clone(), "best": self.best}
        return super().state_dict() | own | {"acting": self.acting.get_state()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.rows, self.running, self.finished = list(state["rows"]), state["running"].clone(), list(state["finished"])
        self.rewarded, self.best = state["rewarded"].clone(), state["best"]
        self.acting.set_state(state["acting"].cpu())

    def save(self, path: str | Path) -> None:
        """Write weights, settings, spaces, versions, curve, and what resuming takes; whole or not at all.

        The environments are in it where they can be pickled; `load` reads them only where it is told to.
        """
        state = self.state_dict()
        pickled = state["env"].get("environments") if isinstance(self.env, GymBatched) else 0
        if pickled is None or isinstance(pickled, list):
            state["env"] = None
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            torch.save({
                "flowrl": FORMAT, "config": dataclasses.asdict(self.config), "spaces": _spaces(self.env),
                "versions": {"python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")},
                "state": state,
            }, temporary)  # fmt: skip
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def greediest(policy, decided: rejection.Decision) -> Tensor:
    """Of each state's valid draws the most probable one, or, where no probability is known, the most frequent one.

    Among equally frequent ones that whose categories are the most frequent, each by itself. → (B, D)
    """
    observation, action, valid = decided.observation, decided.sample.action, decided.valid
    with torch.no_grad():
        if isinstance(policy, CategoricalPolicy) and (decided.mask is not None or valid.shape[1] == 1):
            return to_digits(policy.features(observation, decided.mask).argmax(-1), policy.sizes)
        if isinstance(policy, FlowPolicy):
            alike = action.unsqueeze(2) == action.unsqueeze(1)  # (B, S, S, D)
            both = valid.unsqueeze(1).unsqueeze(-1)
            frequency = (alike.all(-1) & valid.unsqueeze(1)).sum(-1)
            score = frequency + (alike & both).float().mean((2, 3))
        else:
            score = policy.log_prob(policy.features(observation), decided.sample)
    best = score.masked_fill(~valid, -torch.inf).argmax(-1)
    return action[torch.arange(len(action), device=action.device), best]


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
    known_valid, when_none_valid: what to do where no valid action is drawn or none exists (`envs.gym.GymBatched`).
    total_steps: the length that schedules are told, where `train` will go on; default steps. eval_env: where to
    evaluate every `eval_every` steps, `eval_episodes` each; the best weights are kept (`use_best`). callback(trainer):
    after every update; False stops. log: "tensorboard" writes into runs/.
    method, settings: as on the command line (`python -m flowrl list --settings`), but for Wol-DDPG, which asks no
    oracle; a batched environment says n_envs and device itself; rewards of gymnasium environments are divided by their
    running deviation unless normalise_reward=False. Everything drawn is seeded by `seed`. Warns where draws were hardly
    ever valid. Raises ValueError; NoValidActionError; FloatingPointError where something is not finite; RuntimeError
    from an error inside the environment; the error's `trainer` has what was learnt until then.
    """
    choose("method", method, A2C_METHODS)
    if oracle is not None and method in NO_CONSTRAINTS:
        allowed = ", ".join(name for name in A2C_METHODS if name not in NO_CONSTRAINTS)
        raise ValueError(f"{method} knows no constraints; with an oracle choose one of: {allowed}")
    if _is_batched(env):
        if settings.get("n_envs", env.n_envs) != env.n_envs or device != "auto":
            raise ValueError(f"a batched environment has n_envs ({env.n_envs}) and device ({env.device}) of its own")
        settings["n_envs"] = env.n_envs
    elif isinstance(env, gymnasium.vector.VectorEnv):
        settings.setdefault("n_envs", env.num_envs)
    if not _is_batched(env) and not _is_named(env):
        settings.setdefault("normalise_reward", True)
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
        if saved != (own := _spaces(fitted.env)[what]):
            raise ValueError(f"{path} was saved with the {what} {saved}; this environment has {own}")
    state = data["state"]
    if resume and state["env"] is None:
        raise ValueError(f"{path}: this environment can't be pickled, so it is not in the file; only resume=False")
    if not resume:
        state |= {"env": None, "observation": fitted.observation, "running": torch.zeros_like(fitted.running)}
    fitted.load_state_dict(state)
    return fitted


def _new(config: TrainConfig, env, oracle, device: str, options: dict) -> Fitted:
    """A trainer of the configuration that has learnt nothing. ValueError."""
    choose("policy", config.policy, POLICIES)
    if oracle is not None and not (callable(oracle) or isinstance(oracle, str)):
        raise ValueError(f"the oracle is {type(oracle).__name__}; it must be a function, a name, or None")
    if _is_batched(env):
        return Fitted(config, env, oracle)
    chosen = make_device(device)
    make = _maker(env, oracle, chosen, options)
    batch = make(config.n_envs, seeded(config.seed, "env", chosen))
    return Fitted(config, batch, oracle if _is_named(env) else None, make)


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


def _is_batched(env) -> bool:
    return all(hasattr(env, name) for name in ("action_sizes", "observation_shape", "n_envs", "step", "valid"))


def _is_named(env) -> bool:
    """Whether it is one of flowrl's own cities and games."""
    city = str(env).removeprefix("flowrl/")
    return isinstance(env, str | Path) and (city.endswith(".json") or city in set(envs.names()) - set(envs.CLASSIC))


def _name(env) -> str:
    """What the configuration calls it; a city by its own name, so that its settings are checked alike."""
    if isinstance(env, str | Path):
        return str(env).removeprefix("flowrl/")
    return getattr(env, "__name__", type(env).__name__).strip("<>")


def _spaces(env) -> dict[str, str]:
    """The spaces of an environment, to compare, in words."""
    if isinstance(env, GymBatched):
        return {"action space": str(env.categories.space), "observation space": str(env.observations.space)}
    return {"action space": str(tuple(env.action_sizes)), "observation space": str(tuple(env.observation_shape))}


def _warn_of_few_valid(fitted: Fitted) -> None:
    without = (fitted.counts["enumerations"] + fitted.counts["fallbacks"]) / max(1, fitted.env_steps)
    if without > MOST_WITHOUT:
        warnings.warn(
            f"no draw was valid in {float(without):.0%} of the training steps: actions were listed or the fallback was "
            "asked there, which is slow and teaches nothing; a valid_bonus larger than "
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
