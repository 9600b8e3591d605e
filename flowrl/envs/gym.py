"""Bring your own: any gymnasium environment with categorical actions behind `BatchedERA`'s interface, and an oracle.

    env = GymBatched("Taxi-v4", n_envs=64)                                      # info["action_mask"] is its oracle
    env = GymBatched(lambda: MyEnvironment(), n_envs=64, oracle=per_action(fits))

B copies are stepped one after the other; each is reset in the step that ended its episode. Nothing is known of the
valid actions but the oracle's answers (paper, section 1; `validity`: where it may lie); an action that it refuses is
never executed.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ..rejection import NOTHING, NoValidActionError
from .asked import Fallback, Given, Live, was_valid
from .batched import Step, check_actions
from .copies import copies, restored, snapshot
from .spaces import Categories, Observations, frozen, shown
from .validity import (
    LISTS,
    MASKS,
    AmbiguousMask,
    Judge,
    Oracles,
    PerAction,
    Several,
    State,
    Validity,
    list_judge,
    mask_judge,
    passed_over,
    recognised,
    source_named,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)
IDLE_STEPS = 1000  # in which nothing changed, over all copies, before that is warned of
WHEN_NONE_VALID = ("raise", "end", "noop")
ORACLES = "it must be a function, a name, a list of names and per_action(…)s, or None"
SAYS_INVALID = {"invalid": True, "invalid_action": True, "invalid_move": True, "illegal": True, "illegal_action": True,
                "illegal_move": True, "valid": False, "is_valid": False, "valid_action": False,
                "action_is_valid": False}  # fmt: skip  # keys by which an environment's info refuses what was executed


class GymBatched:
    """B copies of a gymnasium environment, with episodes of their own; actions of any categorical space.

    env: an id ("module:Env-v0" too), a callable without arguments that makes a new environment each time, or a vector
    environment of gymnasium's, for more of what it is made of. `spaces.Categories` says what actions may be,
    `spaces.Observations` what encoders read.
    oracle: `per_action` of a function; a batched function, given the states' `spaces.Observations.for_oracle`, stacked
    (columns: `observation_layout`), and actions (B, S, D) in the space's own numbers → bool (B, S); the name of what
    tells in the environment, its observation or its info; a list of names and `per_action`s, all of which have to say
    yes; None: the first of the usual names (`validity`) that is there, else every action is valid. Each copy asks its
    own environment.
    known_valid: an action in the space's own form, or a function of an observation that gives one, or None: asked
    where no draw is valid and A is too large to enumerate. when_none_valid: what becomes of a state where no valid
    action is found: "raise" NoValidActionError, "end" the episode, worth 0 from there on, or execute `known_valid` as a
    "noop", unasked; counted in `none_valid`. All else here counts categories from 0.

    `step` asks the oracle itself, counts what it refuses in `violations` and raises a ValueError instead of executing
    anything. Where the environment itself says otherwise than a given oracle (a mask of its own, info), that is counted
    in `violations`, too, and warned of once; so is, uncounted, an environment in which nothing ever changes.

    >>> env = GymBatched("CartPole-v1", n_envs=4)
    >>> step = env.step(torch.ones(4, 1, dtype=torch.int64))
    >>> step.observation.shape, step.reward.tolist()
    (torch.Size([4, 4]), [1.0, 1.0, 1.0, 1.0])

    Raises ValueError for an environment that can't be made, whose spaces don't fit, whose `reset` and `step` return
    something else than gymnasium's, that says by an attribute `constrained` that it refuses actions, where nothing
    tells which, or whose info does so after `step` only; RuntimeError from an error inside the environment;
    FloatingPointError for rewards and observations that are not finite.
    """

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env] | VectorEnv,
        n_envs: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        oracle: Oracles | None = None,
        known_valid: Any = None,
        when_none_valid: str = "raise",
    ):
        if oracle is not None and not (callable(oracle) or isinstance(oracle, str | list | tuple)):
            raise ValueError(f"the oracle is {type(oracle).__name__}; {ORACLES}")
        if n_envs < 1:
            raise ValueError(f"n_envs is {n_envs}; it must be at least 1")
        if when_none_valid not in WHEN_NONE_VALID:
            raise ValueError(f"when_none_valid is {when_none_valid!r}; allowed: {', '.join(WHEN_NONE_VALID)}")
        if when_none_valid == "noop" and known_valid is None:
            raise ValueError("when_none_valid is 'noop', and known_valid, the action to execute then, was not given")
        self.n_envs, self.device = n_envs, torch.device(device)
        self._envs, self.name = copies(env, n_envs)
        first = self._envs[0]
        self.categories = Categories(first.action_space)
        self.observations = Observations(first.observation_space, frozenset(MASKS))
        self.action_sizes, self.observation_shape = self.categories.sizes, self.observations.shape
        self.observation_dtype, self.observation_parts = self.observations.dtype, self.observations.parts
        self._known_valid, self._when_none_valid = known_valid, when_none_valid
        self._sizes = np.array(self.action_sizes)
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed()
        self.generator = generator
        self.violations = self.none_valid = self.steps = 0
        self.valid = Live(self, list(range(n_envs)))
        self.fallback = self._fallback(lambda: self._states)
        self._paid: set[float] | None = set()  # all rewards since the start; None: something has happened
        self.reset()
        if not callable(known_valid):
            self._known(self._states[0])  # a fault in it is told at once
        self._name_sources(oracle)
        if unscaled := self.observations.unscaled(self._states[0].observation):
            warnings.warn(
                f"{self.name}: {', '.join(name and repr(name) for name in unscaled) or 'the observation'} is uint8, no "
                "picture, and read unscaled; if it isn't a few codes, scale it and call it a float32 Box "
                "(gymnasium.wrappers.TransformObservation)",
                stacklevel=2,
            )

    def _name_sources(self, oracle) -> None:
        """What is asked, and what the environment says itself, to compare with where an oracle is given."""
        first, state = self._envs[0], self._states[0]
        constrained = getattr(first.unwrapped, "constrained", None)  # what flowrl's own say
        own = None if constrained is False else recognised(first, state, self.categories)
        named = self._several(oracle) if isinstance(oracle, list | tuple) else self._named_source(oracle)
        self._own = Validity(self.categories, self.observations, own) if own is not None and named is not None else None
        self.validity = Validity(self.categories, self.observations, own if named is None else named)
        if self.validity.source is None and constrained:
            raise ValueError(
                "the environment has constraints (it says so: env.constrained) and no oracle was given; one of "
                "flowrl's own is asked itself where it is given by its name"
            )
        if self.validity.source is None and constrained is None and (names := passed_over(first, state)):
            warnings.warn(
                f"every action is taken as valid in {self.name}; it has {', '.join(names)}: where one of these tells "
                f"which are, name it: oracle={names[0]!r}",
                stacklevel=3,
            )

    def _named_source(self, oracle):
        """What a name stands for; anything else as it is."""
        first, state = self._envs[0], self._states[0]
        return source_named(oracle, first, state, self.categories) if isinstance(oracle, str) else oracle

    def _several(self, oracles: Sequence) -> Several:
        if not oracles or not all(isinstance(one, str | PerAction) for one in oracles):
            raise ValueError("a list of oracles holds names and flowrl.per_action(…) of functions, one at least")
        sources = [self._named_source(one) for one in oracles]
        return Several([Validity(self.categories, self.observations, source) for source in sources])

    @property
    def backgrounds(self) -> list[Tensor]:
        """Of each picture in the observations, what most of it is now, over the copies: (planes,) float32 to 255."""
        shapes = self.observations.pictures
        sizes = [math.prod(shape) for shape in shapes]
        pictures = self._observation.flatten(1)[:, : sum(sizes)].split(sizes, 1)
        return [x.unflatten(1, (shape[0], -1)).mT.flatten(0, 1).float().median(0).values
                for x, shape in zip(pictures, shapes, strict=True)]  # fmt: skip

    @property
    def observation_layout(self) -> dict[str, slice]:
        """Columns of each part of an observation in what a batched oracle is given: name → slice."""
        return self.observations.layout

    # ---------------------------------------------------------------------------------------------- the batch

    def reset(self) -> Tensor:
        """New episodes everywhere, each environment seeded from the generator → observations (B, …)."""
        seeds = torch.randint(2**31, (self.n_envs,), generator=self.generator, device=self.device).tolist()
        self._states = [self._begun(i, seed=seed) for i, seed in enumerate(seeds)]
        return self._observed()

    def _observed(self) -> Tensor:
        """The states' observations as encoders read them; what was known of the states before is forgotten."""
        self._judges: list[Judge | None] = [None] * self.n_envs
        self._answers: list[tuple[list[int], Tensor, Tensor]] = []
        encoded = [self._encoded(i, state.observation) for i, state in enumerate(self._states)]
        self._observation = torch.as_tensor(np.stack(encoded), device=self.device)
        return self._observation

    def step(self, actions: Tensor) -> Step:
        """actions: (B, D) int64 from 0. ValueError, and nothing is executed, if any of them is invalid."""
        self._refuse_invalid(actions)
        self.steps += 1
        before = self._observation.cpu().numpy()
        outcomes = [self._moved(i, action, before[i]) for i, action in enumerate(actions.cpu().numpy())]
        rewards, terminated, truncated, finals, self._states = map(list, zip(*outcomes, strict=True))
        observation = self._observed()
        if self._paid is not None:
            self._notice_idleness(rewards, any(terminated + truncated), np.array_equal(before, observation.cpu()))
        rows = [now if final is None else self._tensor(final) for now, final in zip(observation, finals, strict=True)]
        return Step(
            observation,
            self._tensor(np.array(rewards, dtype=np.float32)),
            self._tensor(np.array(terminated)),
            self._tensor(np.array(truncated)),
            torch.stack(rows) if any(final is not None for final in finals) else observation,
        )

    def _moved(self, i: int, action: np.ndarray, before: np.ndarray) -> tuple[float, bool, bool, Any, State]:
        """Copy i after an action (D,): reward, terminated, truncated, the episode's last observation, the state."""
        if action[0] == NOTHING:
            self.none_valid += 1
            if self._when_none_valid == "end":
                return 0.0, True, False, before, self._begun(i)
            with self._named(i):
                own = self.to_environment(action, self._states[i])
            observation, reward, terminated, truncated, info = self._stepped(i, own)
        else:
            own = self.categories.to_space(action)
            refused = self._own is not None and not self._read(self._own, i)(action[None])[0]
            observation, reward, terminated, truncated, info = self._stepped(i, own)
            if self.validity.source is None and (told := [name for name in (*MASKS, *LISTS) if name in info]):
                raise ValueError(
                    f"{self._where(i)}: step's info has {told[0]!r}, but reset's had not, so every action was taken as "
                    "valid; put it into both"
                )
            flags = {key: value for key, value in info.items() if isinstance(value, bool | np.bool_)}
            if refused or any(flags.get(key) == answer for key, answer in SAYS_INVALID.items()):
                self._notice(i, own)
        if not (terminated or truncated):
            return reward, terminated, truncated, None, State(frozen(observation), info, self._envs[i])
        return reward, terminated, truncated, self._encoded(i, observation), self._begun(i)

    def _stepped(self, i: int, action: Any) -> tuple[Any, float, bool, bool, Mapping]:
        """What copy i's `step` returns for an action in the space's own form. RuntimeError from an error inside it."""
        try:
            result = self._envs[i].step(action)
        except Exception as error:
            said = f"{self._where(i)} raised {type(error).__name__} on action {action!r}: {error}"
            if self.validity.source is not None:
                said += f"; the action is valid according to {self.validity.where}: {self._columns}"
            raise RuntimeError(" ".join(said.split())) from error
        return self._checked(i, result)

    def _begun(self, i: int, seed: int | None = None) -> State:
        """Copy i at the start of an episode. ValueError; RuntimeError from an error inside `reset`."""
        try:
            result = self._envs[i].reset(seed=seed)
        except Exception as error:
            if isinstance(error, TypeError) and "seed" in str(error):
                raise ValueError(
                    f"{self.name}: reset takes no seed; gymnasium's is reset(self, *, seed=None, options=None)"
                ) from error
            said = f"{self._where(i)}: reset raised {type(error).__name__}: {error}"
            raise RuntimeError(" ".join(said.split())) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"{self.name}: reset returned {type(result).__name__}; gymnasium's is (observation, info)")
        return State(frozen(result[0]), self._checked_info(i, result[1]), self._envs[i])

    def _checked(self, i: int, result: Any) -> tuple[Any, float, bool, bool, Mapping]:
        """What `step` returned, if it is what gymnasium asks for. ValueError, FloatingPointError."""
        if not isinstance(result, tuple) or len(result) != 5:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise ValueError(
                f"{self.name}: step returned {got}; gymnasium's is (observation, reward, terminated, truncated, info)"
            )
        observation, *numbers, info = result
        names = ("the reward", "terminated", "truncated")
        reward, terminated, truncated = (self._number(i, *named) for named in zip(names, numbers, strict=True))
        if not abs(reward) <= FLOAT32_MAX:
            raise FloatingPointError(f"{self._where(i)}: the reward is {reward}, not finite as float32")
        return observation, reward, bool(terminated), bool(truncated), self._checked_info(i, info)

    def _number(self, i: int, name: str, value: Any) -> float:
        try:
            [number] = np.ravel(value.detach().cpu() if isinstance(value, Tensor) else value).tolist()
            return float(number)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self._where(i)}: {name} is {shown(value)}; it must be one number, or bool") from None

    def _checked_info(self, i: int, info: Any) -> Mapping:
        if not isinstance(info, Mapping):
            raise ValueError(f"{self._where(i)}: info is {shown(info)}; it must be a dict")
        return info

    def _encoded(self, i: int, observation: Any) -> np.ndarray:
        with self._named(i):
            return self.observations.for_encoder(observation)

    @contextmanager
    def _named(self, i: int) -> Iterator[None]:
        """What is wrong with copy i says whose fault it is."""
        try:
            yield
        except (ValueError, TypeError, FloatingPointError) as error:
            kind = FloatingPointError if isinstance(error, FloatingPointError) else ValueError
            raise kind(f"{self._where(i)}: {error}") from None

    def _where(self, i: int) -> str:
        return f"{self.name}, environment {i}, step {self.steps}"

    def shares(self, other: "GymBatched") -> bool:
        """Whether an environment of this batch is also one of the other's."""
        theirs = {id(env.unwrapped) for env in other._envs}
        return any(id(env.unwrapped) in theirs for env in self._envs)

    # ------------------------------------------------------------------------------------------- valid actions

    def _ask(self, rows: list[int], actions: Tensor) -> Tensor:
        """The oracle's answers on actions (b, S, D) in the states of some copies: (b, S) bool."""
        judges = [self._judge(i) for i in rows] if self.validity.one_by_one else None
        try:
            answers = self.validity.ask([self._states[i] for i in rows], judges, actions)
        except Exception as error:
            error.add_note(f"asked for what is valid in {self.name} after {self.steps} steps: {self.validity.where}")
            if isinstance(self.validity.source, PerAction):
                error.add_note("if it judges tensors, a batch at once: the oracle without flowrl.per_action")
            elif not self.validity.one_by_one:
                shape = (len(rows), *self.observations.for_oracle(self._states[rows[0]].observation).shape)
                error.add_note(
                    f"it is given an observation {shape} and actions "
                    f"{tuple(actions.shape)} and returns a bool tensor {tuple(actions.shape[:2])}; if it judges one "
                    "action, not a batch of tensors: oracle=flowrl.per_action(it)"
                )
            raise
        self._answers.append((rows, actions, answers))
        return answers

    def _judge(self, i: int) -> Judge:
        """What judges the actions of copy i, made once a state."""
        judge = self._judges[i] = self._judges[i] or self._read(self.validity, i)
        return judge

    def _read(self, validity: Validity, i: int) -> Judge:
        """What judges the actions of copy i. ValueError; RuntimeError from an error inside the environment."""
        try:
            with self._named(i):
                return validity.judge(self._states[i])
        except RuntimeError as error:
            raise RuntimeError(" ".join(f"{self._where(i)}: {error}".split())) from error.__cause__ or error

    def _refuse_invalid(self, actions: Tensor) -> None:
        check_actions(self, actions)
        rows = actions.cpu().numpy()
        nothing = (rows == NOTHING).all(1) & (self._when_none_valid != "raise")
        exist = np.all((rows >= 0) & (rows < self._sizes), axis=1)
        inside = torch.as_tensor(rows.clip(0, self._sizes - 1), device=self.device)
        said_before = list(self._answers)
        valid = self._ask(list(range(self.n_envs)), inside[:, None])[:, 0].cpu().numpy()
        refused = np.flatnonzero(~(valid & exist | nothing)).tolist()
        if not refused:
            return
        self.violations += len(refused)
        i = refused[0]
        if exist[i] and was_valid(i, actions[i], said_before):
            raise ValueError(
                f"the oracle contradicts itself: action {rows[i].tolist()} was valid in environment {i}, then invalid "
                "in the same state; its answer must depend on its arguments alone; nothing was executed"
            )
        raise ValueError(
            f"action {rows[i].tolist()} is invalid in environment {i} ({len(refused)} of {self.n_envs} are); nothing "
            "was executed"
        )

    @property
    def _columns(self) -> str:
        told = f"an oracle that reads other columns than it means? env.observation_layout is {self.observation_layout}"
        if self._own is not None:
            told += f"; where {self._own.where} holds beside it, give both: oracle=[name, per_action(…)]"
        return told

    def _notice(self, i: int, action: Any) -> None:
        """The environment refuses what its oracle called valid."""
        self.violations += 1
        if self.violations == 1:
            by = "info" if self._own is None else self._own.where
            warnings.warn(
                f"{self._where(i)}: action {action!r} is valid according to {self.validity.where}, but not to {by}; "
                f"{self._columns}",
                stacklevel=3,
            )

    def _notice_idleness(self, rewards: list[float], ended: bool, alike: bool) -> None:
        """An environment that executes nothing, perhaps as an oracle lets through what it ignores; warned of once."""
        assert self._paid is not None
        self._paid.update(rewards)
        if ended or not alike or len(self._paid) > 1:
            self._paid = None
        elif self.steps * self.n_envs >= IDLE_STEPS:
            self._paid = None
            ignored = f"the actions that {self.validity.where} calls valid? {self._columns}"
            if self.validity.source is None:
                ignored = "actions that are invalid? No oracle was given"
            warnings.warn(
                f"{self.name}: in {self.steps * self.n_envs:,} steps no observation changed, no reward differed and no "
                f"episode ended: does it ignore {ignored}",
                stacklevel=3,
            )

    def _known(self, state: State) -> np.ndarray | None:
        """What the user knows to be valid in a state, (D,) from 0; None where that is nothing. ValueError."""
        known = self._known_valid(state.observation) if callable(self._known_valid) else self._known_valid
        try:
            return None if known is None else self.categories.from_space(known)
        except ValueError as error:
            raise ValueError(f"known_valid: {error}") from None

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, device=self.device)

    # ------------------------------------------------------------------------------- one environment's own terms

    def to_tensor(self, observation: Any) -> Tensor:
        """One observation as the environment gives it → (1, …). ValueError; FloatingPointError where not finite."""
        return self._tensor(self.observations.for_encoder(observation))[None]

    def to_environment(self, action: np.ndarray, state: State) -> Any:
        """An action (D,) from 0 → what the environment's `step` takes; where nothing is valid, the noop.

        NoValidActionError where the episode ends instead, or ValueError where no noop is known.
        """
        if action[0] != NOTHING:
            return self.categories.to_space(action)
        if self._when_none_valid == "end":
            raise NoValidActionError("nothing is valid: the episode ends here (when_none_valid='end')")
        known = self._known(state)
        if known is None:
            raise ValueError("nothing is valid, and known_valid, the noop, is None there")
        return self.categories.to_space(known)

    def oracle_of(self, states: list[State], action_masks: Sequence[Any] | None = None) -> Given:
        """The oracle of states that no copy need be in; action_masks: masks, or lists of valid actions, instead."""
        return Given(self, states, None if action_masks is None else [self._judge_given(mask) for mask in action_masks])

    def fallback_of(self, states: list[State]) -> Fallback | None:
        """`known_valid` of states that no copy need be in."""
        return self._fallback(lambda: states)

    def _fallback(self, states: Callable[[], list[State]]) -> Fallback | None:
        accepts_nothing = self._when_none_valid != "raise"
        needed = self._known_valid is not None or accepts_nothing
        return Fallback(self, states, accepts_nothing) if needed else None

    def _judge_given(self, mask: Any) -> Judge:
        """The judge of a mask or a list of valid actions, which may look alike. ValueError."""
        judges, said, unclear = [], [], False
        for kind in (mask_judge, list_judge):
            try:
                judges.append(kind(mask, self.categories, "action_mask"))
            except (ValueError, TypeError) as error:
                said.append(str(error))
                unclear |= isinstance(error, AmbiguousMask)
        if not judges:
            raise ValueError(said[0])
        listed = isinstance(mask, list) or (hasattr(mask, "shape") and np.asarray(mask).dtype != bool)
        if (len(judges) == 2 or unclear) and listed and len(self.action_sizes) > 1:
            raise ValueError(
                f"action_mask is {' '.join(repr(mask).split())}, which may be a mask or a list of actions: give an "
                f"array of the shape {self.action_sizes}, True for valid actions, or a tuple of "
                f"{len(self.action_sizes)} rows"
            )
        return judges[0]

    # ------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for a checkpoint.

        The environments themselves are in it, pickled into a byte tensor or, where they can't be, deep-copied (then
        torch.save can't write them, and resume works within the process). A resumed run is exact if a copy of the
        environment goes on as the original would. Those that rebuild themselves instead (gymnasium's EzPickle: Box2D,
        MuJoCo, Atari) and those that can't be copied are left out: `load_state_dict` refuses. Bytes are unpickled by
        `load_state_dict`, which runs code: load only checkpoints that you trust.
        """
        return {
            "environments": snapshot(self._states),
            "observation": self._observation.clone(),
            "violations": self.violations,
            "none_valid": self.none_valid,
            "steps": self.steps,
            "paid": None if self._paid is None else sorted(self._paid),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`. ValueError where it is another batch's, or the environments are not in it."""
        if state["observation"].shape != (self.n_envs, *self.observation_shape):
            raise ValueError("the checkpoint is of another environment or batch")
        if state["environments"] is None:
            raise ValueError("this environment can't be copied, so its checkpoint doesn't hold it: no resume")
        self._states = restored(state["environments"])
        self._envs = [state.env for state in self._states if state.env is not None]
        self.violations, self.none_valid, self.steps = state["violations"], state["none_valid"], state["steps"]
        self._paid = None if state["paid"] is None else set(state["paid"])
        self._observed()
        self.generator.set_state(state["generator"].cpu())
