"""What `fit` gives back: a trainer with a learning curve that acts on observations, evaluates, saves, and goes on."""

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

from . import rejection
from .a2c import Rollout, Trainer, seeded
from .beyond.chains import Start
from .device import one_thread
from .envs.batched import Batched, Oracle
from .envs.gym import GymBatched
from .envs.spaces import frozen
from .envs.validity import NOT_TOLD, State
from .policies import CategoricalPolicy, FlowPolicy, to_digits
from .study.config import TrainConfig

CURVE_ROWS = 200  # most rows of a learning curve
LEAST_ROWS = 10  # rows of it while no episode ends
GREEDY_DRAWS = 64  # draws, at least, of which a greedy action is the most frequent, or most probable
MOST_STEPS = 100_000  # of an episode in an evaluation
FORMAT = 3  # of saved files


class Fitted(Trainer):
    """A trainer that keeps its learning curve, goes on with `train`, acts on observations, evaluates, saves.

    make: n, generator → a batch of n of its environments, for `evaluate`. best: the weights that evaluated best, where
    `fit` was given an eval_env: their `return` and `env_steps`, and `use_best` to take them.

    >>> import flowrl
    >>> trained = flowrl.fit("CartPole-v1", steps=64, n_envs=4, progress=False)
    >>> trained.act([0.0, 0.0, 0.0, 0.0]) in (0, 1), len(trained.act_many([[0.0] * 4] * 3, greedy=True))
    (True, 3)
    >>> trained.train(64, progress=False).env_steps
    128
    """

    def __init__(self, config: TrainConfig, env: Batched, oracle: Oracle | None = None, make: Callable | None = None):
        super().__init__(config, env, oracle)
        self.make = make
        self.callbacks: list[Callable[[Fitted], Any]] = []
        self.rows: list[dict] = []
        self.running = torch.zeros(env.n_envs, dtype=torch.float64, device=env.device)
        self.finished: list[float] = []  # returns of the episodes that ended since the last row
        self.rewarded = torch.zeros((), dtype=torch.float64, device=env.device)  # sum of rewards since then
        self.best: dict | None = None
        self.evaluated = 0  # after how many steps last
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
                self.cut_off()
            try:
                while self.env_steps < end and not self.interrupted:
                    before = self.env_steps
                    self.step()
                    bar.update(self.env_steps - before)
                    self._add_row_if_due(bar)
                    if False in [callback(self) for callback in self.callbacks]:  # all are called
                        break
            except BaseException as error:
                self.broken, vars(error)["trainer"] = True, self
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

    def __repr__(self) -> str:
        where = self.env.validity.where if isinstance(self.env, GymBatched) else "its own oracle"
        return f"<Fitted {self.config.method} on {self.config.env}: {self.env_steps:,} steps; valid actions: {where}>"

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
        any; reward, of a step; valid_rate, the share of valid draws. ImportError without pandas; `rows` needs none.
        """
        try:
            import pandas as pd  # here: takes half a second, and nothing else needs it
        except ImportError:
            raise ImportError("curve is a pandas.DataFrame: pip install pandas; `rows` has the same in dicts") from None

        columns = ["env_steps", "episodes", "return", "reward", "valid_rate"]
        return pd.DataFrame(self.rows, columns=pd.Index([*columns, "draws", "valid"]))[columns]

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
        draws where the policy knows probabilities, else the most frequent one; the same whenever that state is asked
        about alone. Where nothing is valid, the noop that `fit` was told of. Chains begin anew in every call; with
        `carry` they go on in training and `evaluate` only. Raises NoValidActionError where no valid action is found;
        ValueError; FloatingPointError where the observation is not finite.
        """
        return self.act_many([observation], greedy, _alone(action_mask), _alone(info), _alone(env))[0]

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
        for name, given in (("action_masks", action_masks), ("infos", infos), ("envs", envs)):
            if given is not None and len(given) != n:
                raise ValueError(f"there are {n} observations and {len(given)} {name}; give one each")
        if not n:
            return []
        own, first = self.env.observations.space if isinstance(self.env, GymBatched) else None, observations[0]
        is_pair = isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], dict)
        if is_pair and not isinstance(own, gymnasium.spaces.Tuple):
            raise ValueError("the observation is a pair, as reset returns it: give act its first, and info=")
        generator = seeded(self.config.seed, "greedy", self.device) if greedy else self.acting
        if not isinstance(self.env, GymBatched):
            if action_masks is not None:
                raise ValueError("this environment has an oracle of its own; it takes no action_mask")
            with self._as(self.oracle, self.fallback, greedy):
                return list(self.decide(self._batch(observations), generator)[0].action.cpu().numpy())
        batch = torch.cat([self.env.to_tensor(observation) for observation in observations])
        told = zip(observations, infos or [NOT_TOLD] * n, envs or [None] * n, strict=True)
        states = [State(frozen(observation), info, env) for observation, info, env in told]
        with self._as(self.env.oracle_of(states, action_masks), self.env.fallback_of(states), greedy):
            actions = self.decide(batch, generator)[0].action.cpu().numpy()
        return [self.env.to_environment(*own) for own in zip(actions, states, strict=True)]

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

    def decide(self, observation: Tensor, generator: torch.Generator, before: Start | None = None):
        if not self.greedy:
            return super().decide(observation, generator, before)
        more = self.config
        if more.policy != "masked":
            more = dataclasses.replace(more, n_draws=max(more.n_draws, GREEDY_DRAWS))
        decided, counts = rejection.decide(
            self.policy, self.oracle, observation, more, generator, self.fallback, before
        )
        action = greediest(self.policy, decided, generator).where(decided.sampled[:, None], decided.action)
        chosen = (decided.sample.action == action[:, None]).all(-1).byte().argmax(-1)
        return decided._replace(action=action, chosen=chosen), counts

    def evaluate(
        self,
        env: Batched | None = None,
        n_episodes: int = 10,
        generator: torch.Generator | None = None,
        greedy: bool = False,
        most_steps: float = MOST_STEPS,
    ) -> tuple[Tensor, dict]:
        """Undiscounted returns (n_episodes,) float64 in new environments, and the counts of `Trainer.evaluate`.

        env: instead of new ones a batch of n_episodes environments, apart from training; needed where `fit` was given
        a batch, else ValueError. An episode counts up to `most_steps` of it. generator: of what the policy draws.
        """
        if generator is None:
            generator = seeded(self.config.seed, f"policy/evaluation {self.env_steps}", self.device)
        if env is None:
            if self.make is None:
                raise ValueError("a batched environment can't be made anew; give one of n_episodes environments")
            env = self.make(n_episodes, seeded(self.config.seed, f"env/evaluation {self.env_steps}", self.device))
        elif isinstance(env, int):
            raise ValueError(f"env is {env}; it is a batch of environments: for so many episodes, n_episodes={env}")
        if isinstance(env, GymBatched) and isinstance(self.env, GymBatched) and env.shares(self.env):
            self.broken = True  # their episodes are over
            raise ValueError(
                "the environments to evaluate in are those that are trained in: what makes them must make a new one at "
                "every call; `train` goes on in new episodes"
            )
        own = self.oracle if not isinstance(env, GymBatched) else env.valid
        with self._as(own, getattr(env, "fallback", None), greedy), _one_thread_on_cpu(self.device):
            return super().evaluate(env, n_episodes, generator, most_steps)

    def use_best(self) -> "Fitted":
        """Take the weights that evaluated best. Returns itself. ValueError where nothing was evaluated."""
        if self.best is None:
            raise ValueError("nothing was evaluated; give fit an eval_env")
        self.policy.load_state_dict(self.best["policy"])
        self.critic.load_state_dict(self.best["critic"])
        self.forget_latents()
        return self

    # ------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict:
        """All that the rest of the training depends on, and the curve so far."""
        own = {"rows": list(self.rows), "running": self.running.clone(), "finished": list(self.finished)}
        own |= {"rewarded": self.rewarded.clone(), "best": self.best, "evaluated": self.evaluated}
        return super().state_dict() | own | {"acting": self.acting.get_state()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.rows, self.running, self.finished = list(state["rows"]), state["running"].clone(), list(state["finished"])
        self.rewarded, self.best = state["rewarded"].clone(), state["best"]
        self.evaluated = state["evaluated"]
        self.acting.set_state(state["acting"].cpu())

    def save(self, path: str | Path) -> None:
        """Write weights, settings, spaces, versions, curve, and what resuming takes; whole or not at all.

        The environments are in it where they can be pickled and no error has stopped training half a step into one,
        else it warns; `load` reads them only where it is told to.
        """
        state = self.state_dict()
        pickled = state["env"].get("environments") if isinstance(self.env, GymBatched) else 0
        if self.broken or pickled is None or isinstance(pickled, list):
            state["env"] = None
            why = "training was stopped by an error" if self.broken else "they can't be pickled"
            warnings.warn(f"{path} is without the environments, as {why}: only load(…, resume=False)", stacklevel=2)
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            torch.save({
                "flowrl": FORMAT, "config": dataclasses.asdict(self.config), "spaces": spaces_of(self.env),
                "versions": versions(), "state": state,
            }, temporary)  # fmt: skip
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def greediest(policy, decided: rejection.Decision, generator: torch.Generator) -> Tensor:
    """Of each state's valid draws the most probable one, or, where no probability is known, the most frequent one.

    Among equally frequent ones that whose categories are the most frequent, each by itself. generator: of what an
    estimate of the probability draws. → (B, D)
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
            score = policy.log_prob(policy.features(observation), decided.sample, generator)
    best = score.masked_fill(~valid, -torch.inf).argmax(-1)
    return action[torch.arange(len(action), device=action.device), best]


def versions() -> dict[str, str]:
    """Of what a file's contents depend on."""
    return {"python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")}


def _alone(value):
    """A list of it, where it is given."""
    return None if value is None else [value]


def spaces_of(env) -> dict[str, str]:
    """The spaces of an environment, and where its valid actions are kept, to compare, in words."""
    if isinstance(env, GymBatched):
        spaces = {"action space": str(env.categories.space), "observation space": str(env.observations.space)}
        return spaces | {"source of valid actions": env.validity.where}  # load(…) without the oracle must not pass
    return {"action space": str(tuple(env.action_sizes)), "observation space": str(tuple(env.observation_shape))}


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
