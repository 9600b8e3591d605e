"""Settings of a training run, and the methods as named sets of them.

A run is one frozen `TrainConfig`. A method (`iar-a2c`, `mask`, …) is a set of values for its fields, so every ablation
is a method plus overrides. Paper: section 3, Algorithms 1 and 2, Table A.2. Every error is one line that names the
fault and what is allowed.
"""

import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, get_args

from .. import envs
from ..policies import NEEDS_POSTERIOR
from .forms import ConfigError

Policies = Literal["flow", "gumbel", "masked", "categorical", "factored", "autoregressive", "wolpertinger"]
HAS_NOISE = ("flow", "gumbel", "factored")  # policies in whose noise chains can move
MOST = 2**48  # of every count


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's record; times are counted in environment steps over all environments."""

    env: str  # a name from `python -m flowrl list`, or the path of an instance file
    method: str  # the named set of values that this configuration started from
    seed: int = 0  # every generator is seeded from (seed, purpose)
    steps: int = 200_000  # environment steps of training
    restarts: int = 1  # trainings, each from new weights, that share the steps; the one that returned most is kept
    keep_replay: bool = False  # the replay buffer outlives restarts

    # policy
    policy: Policies = "flow"  # its kind
    coupling: Literal["additive", "affine", "autoregressive", "mixture"] = "additive"  # the latent flow's layers
    n_couplings: int = 2  # layers of the policy's flow; 0: a Gaussian's argmax
    base_scale: Literal["fixed", "learned", "shared"] = "fixed"  # σ of the base: 1, a function of the state, free
    initial_gain: float = 0.0  # of orthogonal weights behind the encoder, flow policy only; 0: each layer's own start
    block: int = 0  # dimensions of the action in a step of the Gumbel flow; 0: half of them, a coupling
    hidden: int = 256  # width of the encoders
    policy_hidden: int = 32  # width of the networks behind them: couplings, posterior, LSTM

    # rejection
    n_draws: int = 64  # S, actions drawn a state
    n_correction: int = 64  # M, most valid draws a state that the gradient uses
    max_draws: int = 4096  # most draws a state, redraws included
    enumerate_limit: int = 10_000  # |A| up to which A is enumerated when no draw was valid; 0: never
    chains: int = 0  # Markov chains a state where fewer than two draws are valid and a valid action is known; 0: never
    sweeps: int = 6  # of each chain: every dimension of the action redrawn once, then some together
    carry: bool = False  # chains go on from where those of the step before ended, where the oracle accepts that
    correction: Literal["none", "paper", "mean", "leave_one_out"] = "leave_one_out"  # of the gradient
    valid_bonus: float = 0.01  # λ of the valid-mass bonus λ ∇log Z(s)

    # score and log-probability
    estimator: Literal["rb", "latent", "cis", "elbo", "cubo", "iwae", "sandwich"] = "rb"  # of ∇log π, for `flow`
    alpha: Literal["static", "trainable", "adaptive"] = "static"  # the sandwich's weight
    n_posterior: int = 4  # N, posterior samples, or truncated draws of a Gumbel flow, an action
    posterior: Literal["gaussian", "flow"] = "flow"  # q(v|a, s), before the soft threshold
    posterior_couplings: int = 2  # coupling layers of a flow posterior
    elbo_batch: int = 256  # states in one step of Algorithm 1, in estimators that need a posterior
    elbo_steps: int = 1  # steps of Algorithm 1 after every policy update
    elbo_encoder: bool = True  # Algorithm 1 moves the state encoder too
    posterior_fit_steps: int = 200  # steps of Algorithm 1, posterior alone, before the first policy update

    # regularisers; both fall linearly to 0 at `anneal` of each training
    entropy: float = 0.15  # coefficient β of the policy's entropy
    latent_kl: float = 0.005  # coefficient of KL(p(v|s) ‖ N(0, I)); flow policy only
    anneal: float = 0.9  # share of a training after which both are 0

    # A2C
    n_envs: int = 64  # environments in parallel
    n_steps: int = 1  # steps of each environment in a rollout
    gamma: float = 0.95  # discount γ; 0: a bandit, whose reward is all that counts
    optimiser: Literal["rmsprop", "rmsprop_tf"] = "rmsprop"  # torch's RMSprop, or TensorFlow's (`optimisers`)
    actor_lr: float = 1e-3  # learning rate of policy and posterior
    flow_lr_ratio: float = 1.0  # learning rate of the latent flow's couplings, as a multiple of actor_lr
    critic_lr: float = 5e-3  # learning rate of the critic
    clip: float = 0.5  # largest gradient norm
    joint_clip: bool = False  # one norm over actor and critic (the paper), or one each
    reward_shift: float = 0.0  # added to every reward in training; evaluation is unshifted
    normalise_reward: bool = False  # divide rewards by the running standard deviation of discounted returns
    value_scale: float = 20.0  # the critic's output is multiplied by it
    value_coef: float = 0.5  # weight of the squared value error, critic state only

    critic: Literal["state", "action"] = "state"  # V(s) and one return; or Q(s, a), Adam's, of all draws

    # replay, for Q(s, a)
    replay_size: int = 100_000  # slots of the replay buffer; the whole of it goes into checkpoints
    replay_batch: int = 256  # transitions a gradient step
    target_rate: float = 0.005  # τ, how far the target networks follow in a gradient step
    gradient_steps: int = 1  # after every rollout
    target_draws: int = 4  # of the policy in s', over which Q(s', ·) is averaged; critic action only

    # Wol-DDPG
    neighbours_share: float = 0.1  # of |A|, among which the critic chooses
    max_neighbours: int = 100  # most actions among which the critic chooses
    exploration: float = 0.2  # σ of the noise on the proto-action, whose range is [−1, 1]
    learning_starts: int = 1_000  # environment steps with uniform actions before it learns

    # evaluation
    eval_every: int = 5_000  # environment steps between evaluations
    eval_episodes: int = 10  # episodes an evaluation
    final_episodes: int = 500  # episodes of the evaluation at the end

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma is {self.gamma}; it must be in [0, 1]")
        for name in ("anneal", "neighbours_share", "target_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in (0, 1]")
        if self.clip <= 0:
            raise ConfigError(f"clip is {self.clip}; it must be positive")
        if self.max_draws < self.n_draws:
            raise ConfigError(f"max_draws is {self.max_draws}; it must be at least n_draws, {self.n_draws}")
        for name in ("n_draws", "n_correction"):
            if self.correction == "leave_one_out" and getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)}; leave_one_out needs at least 2")
        if self.correction == "mean" and min(self.n_draws, self.n_correction) < 2:
            raise ConfigError("correction mean leaves nothing of one draw: n_draws and n_correction must be at least 2")
        if self.policy == "masked" and self.correction != "none":
            raise ConfigError(f"correction is {self.correction}; a masked policy rejects nothing and allows only none")
        self._check_restarts()
        self._check_chains()
        self._check_critic()
        few = min(self.n_draws, self.n_correction) < 2
        if self.policy in ("flow", "gumbel", "autoregressive") and self.entropy and few:
            raise ConfigError(
                f"one draw tells nothing of the entropy of {self.method}'s policy: n_draws ({self.n_draws}) and "
                f"n_correction ({self.n_correction}) must be at least 2, or entropy 0"
            )
        for name in ("latent_kl", "initial_gain"):
            if getattr(self, name) and self.policy != "flow":
                raise ConfigError(f"{name} is {getattr(self, name)}; a policy without latents allows 0 only")
        if not self.elbo_encoder and not (self.policy == "flow" and self.estimator in NEEDS_POSTERIOR):
            raise ConfigError("elbo_encoder is false; without a posterior there is no Algorithm 1: true only")

    def _check_restarts(self) -> None:
        if self.keep_replay and (self.restarts == 1 or self.critic == "state"):
            raise ConfigError("keep_replay is true; without restarts, or with critic state, there is nothing to keep")
        if self.restarts == 1:
            return
        if self.policy == "wolpertinger":
            raise ConfigError(f"restarts is {self.restarts}; Wol-DDPG allows 1 only")
        posterior = self.policy == "flow" and self.estimator in NEEDS_POSTERIOR and self.posterior_fit_steps
        rollouts = 17 if posterior else 1  # its first fit takes 16
        if 0 < self.steps < (least := self.restarts * rollouts * self.n_envs * self.n_steps):
            raise ConfigError(f"restarts is {self.restarts}, steps {self.steps:,}; it takes at least {least:,} steps")

    def _check_critic(self) -> None:
        if self.critic == "state":
            return
        if self.policy in ("wolpertinger", "masked"):
            raise ConfigError(
                f"critic is action; policy {self.policy!r} has no draws to weigh by it and allows state only"
            )
        if min(self.n_draws, self.n_correction) < 2:
            raise ConfigError(
                "critic action weighs draws against each other: n_draws and n_correction must be at least 2"
            )
        if self.correction != "leave_one_out":
            raise ConfigError(
                f"correction is {self.correction}; critic action needs two valid draws: leave_one_out only"
            )
        if self.value_scale <= 0:
            raise ConfigError(f"value_scale is {self.value_scale}; critic action divides by it: it must be positive")
        if self.joint_clip:
            raise ConfigError("joint_clip is true; critic action learns apart, from replay: false only")
        if self.replay_size < 3 * self.n_envs:
            raise ConfigError(f"replay_size is {self.replay_size}; it must be at least 3 n_envs, {3 * self.n_envs}")

    def _check_chains(self) -> None:
        if not self.chains:
            return
        if self.policy not in HAS_NOISE:
            allowed = ", ".join(HAS_NOISE)
            raise ConfigError(f"chains is {self.chains}; they move in a draw's noise: {allowed} policies only")
        if not 2 <= self.chains <= self.n_draws:
            raise ConfigError(f"chains is {self.chains}; allowed: 0, or 2 to n_draws, {self.n_draws}")
        if self.correction == "paper":
            raise ConfigError(f"chains is {self.chains}; correction paper counts plain draws (S/l) and allows 0 only")

    def hash(self) -> str:
        """Twelve hex digits over all fields but the seed, the environment by its content: equal hashes, equal runs."""
        return _hash(dataclasses.asdict(self), self.env_digest())

    def env_digest(self) -> str:
        """The environment by its content, so that a city counts, not its file's name."""
        return envs.digest(self.env)

    def city_is_missing(self) -> bool:
        """Whether the environment is a city whose file is not there."""
        return Path(self.env).suffix == ".json" and not Path(self.env).exists()

    def made(self, facts: dict) -> bool:
        """Whether a record is of this configuration; settings that are newer than it count as their defaults.

        Where the city's file is not there to be compared, the settings decide alone.
        """
        digest = facts["env_digest"] if self.city_is_missing() else self.env_digest()
        return _hash(_DEFAULTS | facts["config"], facts["env_digest"]) == _hash(dataclasses.asdict(self), digest)

    def unlike(self, facts: dict) -> str:
        """Where a record is of another configuration: each setting, its own value and this one's."""
        theirs, ours = _DEFAULTS | facts["config"], dataclasses.asdict(self)
        named = [f"{name} {theirs.get(name)!r}, here {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]]
        return "; ".join(named) or "the environment's definition has changed"


def _hash(fields: dict, env_digest: str) -> str:
    fields = {name: value for name, value in fields.items() if name not in ("seed", "env")} | {"env": env_digest}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


_AT_LEAST_ONE = ("restarts", "hidden", "policy_hidden", "n_draws", "n_correction", "n_posterior", "elbo_batch",
                 "n_envs", "n_steps", "max_neighbours", "replay_size", "replay_batch", "gradient_steps",
                 "target_draws", "eval_every", "eval_episodes", "final_episodes")  # fmt: skip
_NOT_NEGATIVE = ("seed", "steps", "n_couplings", "block", "posterior_couplings", "elbo_steps", "posterior_fit_steps",
                 "enumerate_limit", "chains", "sweeps", "initial_gain", "valid_bonus", "entropy", "latent_kl",
                 "actor_lr", "flow_lr_ratio", "critic_lr", "value_coef", "value_scale", "exploration",
                 "learning_starts")  # fmt: skip


def _checked(field: dataclasses.Field, value):
    """The value in the field's type, read from text where it comes from the command line."""
    kind: Any = field.type
    choices = get_args(kind)
    if choices:
        if value not in choices:
            raise ConfigError(f"{field.name} is {value!r}; allowed: {', '.join(choices)}")
        return value
    if kind is bool:
        words = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if not isinstance(value, bool):
            raise ConfigError(f"{field.name} is {value!r}; allowed: true, false")
        return value
    try:
        if isinstance(value, bool):
            raise ValueError
        number = kind(value)
        if kind is int and isinstance(value, float) and number != value:
            raise ValueError
        if kind is int and field.name != "seed" and abs(number) >= MOST:
            raise ValueError
        if kind is float and not abs(number) < float("inf"):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        wanted = {
            int: "a whole number" + " below 2^48" * (field.name != "seed"),
            float: "a finite number",
            str: "a text",
        }[kind]
        raise ConfigError(f"{field.name} is {value!r}; it must be {wanted}") from None
    return number


# what IAR-A2C is as printed
_PRINTED = dict(
    coupling="affine", n_couplings=4, base_scale="learned", gamma=0.99, hidden=128, policy_hidden=128,
    n_draws=32, n_correction=32, correction="paper", valid_bonus=0.0, estimator="sandwich", alpha="adaptive",
    n_posterior=4, posterior="flow", posterior_fit_steps=0, entropy=0.0, latent_kl=0.0,
    optimiser="rmsprop_tf", actor_lr=3e-4, critic_lr=3e-4, clip=0.5, joint_clip=True, value_scale=1.0,
)  # fmt: skip

# what each method is, and where it leaves the defaults of TrainConfig
DESCRIBED_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "iar-a2c": ("flowrl recipe: flow, rejection, Rao-Blackwellised latent score, leave-one-out, valid-mass bonus", dict(
        entropy=0.3, flow_lr_ratio=0.1,
    )),
    "iar-a2c-gumbel": ("Gumbel flow, pathwise score, rejection, leave-one-out, valid-mass bonus", dict(
        policy="gumbel", n_draws=8, n_correction=8, n_posterior=1, entropy=0.3, latent_kl=0.0,
        hidden=128, n_envs=128, actor_lr=2e-3, critic_lr=7e-3,
    )),
    "iar-a2c-q": ("Gumbel flow, and all valid draws weighed by Q(s, a) learnt from replay", dict(
        policy="gumbel", n_draws=8, n_correction=8, n_posterior=1, entropy=0.3, latent_kl=0.0,
        hidden=128, n_envs=128, actor_lr=2e-3, critic="action", critic_lr=1e-3,
        replay_size=200_000, target_rate=0.03,
    )),
    "iar-a2c-paper": ("IAR-A2C (printed): flow posterior, sandwich with adaptive α, S/l², joint clipping", _PRINTED),
    "iar-a2c-released": ("IAR-A2C (released): that, one σ for all states, weights near 0, encoder held in Alg. 1", dict(
        _PRINTED, base_scale="shared", initial_gain=0.01, elbo_encoder=False,
    )),
    "mask": ("a categorical over all of A, masked by an oracle call for every action", dict(
        policy="masked", hidden=128, n_draws=1, correction="none", valid_bonus=0.0, latent_kl=0.0,
    )),
    "a2c": ("one categorical over all of A; no constraints", dict(
        policy="categorical", hidden=128, n_draws=1, correction="none", valid_bonus=0.0, latent_kl=0.0,
    )),
    "factored": ("an independent categorical a dimension; no constraints", dict(
        policy="factored", hidden=128, n_draws=1, correction="none", valid_bonus=0.0, latent_kl=0.0,
    )),
    "ar": ("an LSTM over the dimensions; no constraints; the draws give its entropy", dict(
        policy="autoregressive", policy_hidden=64, n_draws=16, correction="none", valid_bonus=0.0, latent_kl=0.0,
    )),
    "factored-iar": ("independent categoricals, with rejection and the leave-one-out gradient", dict(
        policy="factored", n_draws=32, n_correction=32, latent_kl=0.0,
    )),
    "ar-iar": ("an LSTM over the dimensions, with rejection and the leave-one-out gradient", dict(
        policy="autoregressive", policy_hidden=64, n_draws=16, latent_kl=0.0,
    )),
    "wol-ddpg": ("Wolpertinger: DDPG in R^D, the critic chooses among the nearest actions; no oracle calls", dict(
        policy="wolpertinger", hidden=128, policy_hidden=64, n_draws=1, correction="none", valid_bonus=0.0,
        entropy=0.0, latent_kl=0.0, gamma=0.99, actor_lr=1e-4, critic_lr=1e-3, clip=10.0,
    )),
}  # fmt: skip
NO_CONSTRAINTS = ("a2c", "factored", "ar")  # methods that execute whatever they draw
METHODS = {name: settings for name, (_, settings) in DESCRIBED_METHODS.items()}
A2C_METHODS = [name for name in METHODS if name != "wol-ddpg"]  # what `a2c.Trainer` trains


ELSEWHERE = {"learning_rate": "actor_lr", "ent_coef": "entropy", "total_timesteps": "steps", "vf_coef": "value_coef",
             "max_grad_norm": "clip", "timesteps": "steps"}  # what other libraries call settings of ours  # fmt: skip


def choose(what: str, name: str, allowed) -> None:
    """Raise one line that names the allowed values, of many the nearest, unless `name` is one of them."""
    if name in allowed:
        return
    names, more = list(allowed), ""
    if len(names) > 20 and what in ("setting", "environment", "method", "experiment"):
        words = set(str(name).split("_"))
        names.sort(key=lambda one: (one != ELSEWHERE.get(name), not words & set(one.split("_")), -_alike(name, one)))
        names, more = names[:8], f"; all: python -m flowrl list{' --settings' * (what == 'setting')}"
    raise ConfigError(f"unknown {what} {name!r}; choose one of: {', '.join(names)}{more}")


def _alike(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other).ratio()


def make_config(env: str, method: str, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """The method's settings for an environment, with overrides by field name.

    Raises ConfigError, also for a method that would execute invalid actions there.
    """
    choose("method", method, METHODS)
    overrides = dict(overrides or {})
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in overrides:
        choose("setting", key, [name for name in names if name not in ("env", "method")])
    config = TrainConfig(**METHODS[method] | overrides, env=env, method=method)
    if method in NO_CONSTRAINTS and envs.constrained(env):
        allowed = [name for name in METHODS if name not in NO_CONSTRAINTS]
        raise ConfigError(f"{method} knows no constraints, {env} has some; choose one of: {', '.join(allowed)}")
    return config


def restored(fields: dict, source: Path) -> TrainConfig:
    """The configuration that a record or checkpoint holds. Raises ConfigError."""
    try:
        return TrainConfig(**fields)
    except (TypeError, ValueError) as error:  # TypeError: a setting that is not known, or no environment or method
        raise ConfigError(f"{source}: {str(error).removeprefix('TrainConfig.__init__() ')}") from None


def describe_settings() -> list[tuple[str, str, object, str]]:
    """Name, type or choices, default and meaning (the comment beside the field) of every setting."""
    lines = inspect.getsource(TrainConfig).splitlines()
    described = []
    for field in dataclasses.fields(TrainConfig):
        line = next(line for line in lines if line.strip().startswith(f"{field.name}:"))
        kind = " | ".join(get_args(field.type)) or inspect.formatannotation(field.type)
        default = "" if field.default is dataclasses.MISSING else field.default
        described.append((field.name, kind, default, line.partition("  # ")[2]))
    return described
