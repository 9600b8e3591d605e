"""IAR-A2C (paper, Algorithms 1 and 2): rollouts with rejection, n-step advantages, corrected gradient, ELBO step.

One loop serves every policy: what differs is the policy's score and the weights that `rejection` puts on the S draws.
"""

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from . import rejection
from .beyond import chains
from .beyond.action_values import ActionValues
from .beyond.gumbel import GumbelFlowPolicy
from .beyond.restarts import Restarts
from .encoders import make_encoder
from .envs.batched import Batched, Oracle
from .optimisers import OPTIMISERS, flat_parameters
from .policies import (
    AutoregressivePolicy,
    CategoricalPolicy,
    FactoredPolicy,
    FlowPolicy,
    MaskedPolicy,
    Sample,
    check_size,
    packed,
)
from .replay import Replay
from .returns import ActionCritic, Critic, RewardScale, n_step_returns

POLICIES = {
    "flow": FlowPolicy, "gumbel": GumbelFlowPolicy, "masked": MaskedPolicy, "categorical": CategoricalPolicy,
    "factored": FactoredPolicy, "autoregressive": AutoregressivePolicy,
}  # fmt: skip

KL_DRAWS = 8  # pathwise draws a state for the latent KL
MEMORY = 16  # rollouts whose states Algorithm 1 draws from
COUNTS = ("states", "draws", "valid", *rejection.COUNTS)
MEANS = ("entropy_estimate", "grad_norm_actor", "grad_norm_critic", "value_loss", "elbo", "ties")


class Rollout(NamedTuple):
    """n_steps decisions in n_envs environments; tensors (T, B)."""

    decisions: list[rejection.Decision]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Tensor  # (T, B, …), what followed each action, before any reset


def seeded(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: different purposes and seeds give unrelated streams.

    >>> torch.rand(2, generator=seeded(0, "policy")).equal(torch.rand(2, generator=seeded(0, "policy")))
    True
    >>> torch.rand(2, generator=seeded(0, "policy")).equal(torch.rand(2, generator=seeded(0, "env")))
    False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()  # torch's CPU generator reads 32 bits: mix them all
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


class Trainer:
    """IAR-A2C and its rivals on a batch of environments; `step()` is one rollout and one update.

    env: a batched environment (`flowrl.envs`); its `valid` is the oracle unless another one is given. ValueError
    where A is too large for the policy.

    >>> from .envs import make_batched
    >>> from .study.config import make_config
    >>> trainer = Trainer(make_config("ERA-v1", "iar-a2c", {"n_envs": 8}), make_batched("ERA-v1", 8))
    >>> trainer.step()
    >>> trainer.env_steps, int(trainer.env.violations)
    (8, 0)
    """

    def __init__(self, config, env: Batched, oracle: Oracle | None = None):
        check_size(env.action_sizes, config.policy)
        self.config, self.env, self.device = config, env, env.device
        given = oracle is not None and not hasattr(oracle, "of")  # an environment's own has it
        self.oracle = functools.partial(rejection.ask_apart, oracle) if given else oracle or env.valid
        self.fallback = getattr(env, "fallback", None)
        self.generator = seeded(config.seed, "policy", env.device)
        self.reward_scale = RewardScale(env.n_envs, config.gamma, env.device) if config.normalise_reward else None
        self.observation = env.reset()
        self.before: chains.Start | None = None  # what the step before left behind
        self.begin("weights")
        self.restarts = Restarts(config, len(self.observation), env.device) if config.restarts > 1 else None
        self.env_steps = 0
        self.updates = 0
        self.counts: dict[str, int | Tensor] = dict.fromkeys(COUNTS, 0)
        self.sums = torch.zeros(len(MEANS), device=env.device)

    def begin(self, purpose: str, replay: Replay | None = None) -> None:
        """New networks, of weights seeded by (seed, purpose), their optimisers, and memories with nothing in them but
        the replay buffer's, if one is given."""
        config, env = self.config, self.env
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config.seed, purpose).initial_seed())
            encoder = make_encoder(env, config.hidden)
            self.policy = POLICIES[config.policy](encoder, config.hidden, env.action_sizes, config).to(env.device)
            make_critic = ActionValues.make_critic if config.critic == "action" else Critic
            self.critic = make_critic(env, config).to(env.device)
        self.posterior = getattr(self.policy, "posterior", None)
        apart = {"flow": getattr(self.policy, "flow", None), "posterior": self.posterior, "critic": self.critic}
        if not config.elbo_encoder:  # Algorithm 1 then leaves it alone
            apart["encoder"] = self.policy.encoder
        actor = [module for module in self.policy.children() if module not in apart.values()]
        modules = {"actor": actor} | {name: [module] for name, module in apart.items() if _has_weights(module)}
        self.parameters = {name: flat_parameters(*group) for name, group in modules.items()}
        rates = {"critic": config.critic_lr, "flow": config.flow_lr_ratio * config.actor_lr}
        self.optimisers = {
            name: OPTIMISERS[config.optimiser]([flat], lr=rates.get(name, config.actor_lr), alpha=0.99, eps=1e-5)
            for name, flat in self.parameters.items()
        }
        self.policy_groups = [name for name in ("actor", "flow", "encoder") if name in self.parameters]
        self.memory: list[Tensor] = []
        self.forget_latents()
        self.action_values = None
        if isinstance(self.critic, ActionCritic):
            flat = self.parameters["critic"]
            self.optimisers["critic"] = torch.optim.Adam([flat], lr=config.critic_lr)
            self.action_values = ActionValues(self.critic, flat, self.observation, env.action_sizes, config, replay)

    def forget_latents(self) -> None:
        """Other weights have come: what chains may start from are the actions of the step before alone."""
        self.before = self.before and chains.planted(self.before.action)

    # ------------------------------------------------------------------------------------------------ acting

    def decide(self, observation: Tensor, generator: torch.Generator, before: chains.Start | None = None):
        """before: as of `rejection.decide` → the decision, and counts."""
        return rejection.decide(self.policy, self.oracle, observation, self.config, generator, self.fallback, before)

    def rollout(self) -> Rollout:
        """n_steps in every environment, with the policy as it stands."""
        decisions, steps = [], []
        for _ in range(self.config.n_steps):
            decision, counts = self.decide(self.observation, self.generator, self.before)
            step = self.env.step(decision.action)
            self.observation, self.before = step.observation, rejection.left_behind(decision, self.config)
            decisions.append(decision)
            steps.append(step)
            for name, count in counts.items():
                self.counts[name] += count
            self.counts["states"] += len(decision.action)
            self.counts["draws"] += decision.draws.sum()
            self.counts["valid"] += decision.n_valid.sum()
        self.env_steps += self.config.n_steps * len(self.observation)
        stacked = [torch.stack([getattr(step, name) for step in steps]) for name in Rollout._fields[1:]]
        rollout = Rollout(decisions, *stacked)
        if self.restarts is not None:
            self.restarts.watch(rollout, self.env_steps)
        return rollout

    # ---------------------------------------------------------------------------------------------- learning

    def step(self) -> None:
        """One rollout, one update; Algorithm 1 after it where the estimator has a posterior."""
        if self.restarts is not None:
            self.restarts.before(self)
        if self.posterior is not None and not self.memory:
            self._fit_posterior_first()
        rollout = self.rollout()
        self.update(rollout)
        if self.posterior is not None:
            self._remember(rollout)
            for _ in range(self.config.elbo_steps):
                self.elbo_step(self._elbo_groups())
        if self.restarts is not None:
            self.restarts.after(self)

    def annealed(self) -> float:
        """1 at the start, linearly to 0 at `anneal` of the run, or of each of its trainings (`restarts`)."""
        if self.restarts is not None:
            return max(0.0, 1 - self.restarts.share(self.env_steps) / self.config.anneal)
        return max(0.0, 1 - self.env_steps / max(1, self.config.anneal * self.config.steps))

    def update(self, rollout: Rollout) -> None:
        """Gradient step of actor and critic on n_steps × n_envs states."""
        config = self.config
        observation = torch.cat([decision.observation for decision in rollout.decisions])
        decision = _concatenated(rollout.decisions)
        n_valid = decision.n_valid
        decision = rejection.at_most(decision, config.n_correction)
        if self.action_values is None:
            advantage, value_loss, critic = *self._advantage(rollout, observation), ["critic"]
        else:
            advantage, value_loss, critic = None, self._learn_action_values(self.action_values, rollout), []
        features = self.policy.features(observation, decision.mask)
        if self.posterior is not None and config.estimator != "cis":  # cis needs the latents that gave the actions
            surrogate = self._shared_surrogate(features, decision)
        else:
            surrogate = self.policy.score_surrogate(features, decision.sample, self.generator)
        weights, entropy, regulariser = self._weights(decision, n_valid, advantage, features, surrogate)
        actor_loss = -(weights * surrogate).sum(-1).mean() + regulariser

        self._zero_gradients()
        (actor_loss + config.value_coef * value_loss).backward()
        moved = self.posterior is not None and config.estimator != "cis"  # by the policy's gradient; cis holds it fixed
        actor = [*self.policy_groups, *["posterior"] * moved]
        if config.joint_clip:
            norm = self._clip([*actor, *critic])
            norms = norm, norm
        else:
            norms = self._clip(actor), self._clip(critic)
        self._require_finite(torch.stack(norms), rollout)
        self._descend([*actor, *critic])
        self.updates += 1
        self.sums[:4] += torch.stack((entropy, *norms, value_loss.detach()))

    def _advantage(self, rollout: Rollout, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Of the executed actions, (B,); the mean squared value error."""
        config = self.config
        with torch.no_grad():
            next_value = self.critic(rollout.final_observation.flatten(0, 1)).view_as(rollout.reward)
            reward = rollout.reward + config.reward_shift
            if self.reward_scale is not None:
                reward = self.reward_scale(reward, rollout.terminated | rollout.truncated)
            returns = n_step_returns(reward, rollout.terminated, rollout.truncated, next_value, config.gamma).flatten()
        value = self.critic(observation)
        return (returns - value).detach(), (returns - value).square().mean()

    def _learn_action_values(self, values: ActionValues, rollout: Rollout) -> Tensor:
        """`gradient_steps` of Q from replay, the rollout in it; their mean squared error.

        Q's steps come before the policy's: where the policy's gradient is not finite, these stand.
        """
        seen = (rollout.reward, rollout.final_observation, *(made.observation for made in rollout.decisions))
        if not torch.stack([part.sum(dtype=torch.float64) for part in seen]).isfinite().all():
            self._require_finite(self.sums.new_tensor(math.nan), rollout)  # before it is among what is learnt from
        reward = rollout.reward + self.config.reward_shift
        if self.reward_scale is not None:
            reward = self.reward_scale(reward, rollout.terminated | rollout.truncated)
        values.add(rollout._replace(reward=reward))
        if not values.replay.live.any():  # nothing could be executed so far
            return reward.new_zeros(())
        losses = []
        for _ in range(self.config.gradient_steps):
            loss = values.loss(self.policy, self.generator)
            self.sums[2] += self._descend_on(loss / self.config.value_scale**2, "critic") / self.config.gradient_steps
            values.follow()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _credit(self, decision, n_valid, advantage: Tensor | None, same: Tensor | None) -> Tensor:
        """Weight of every draw's score in the policy gradient, (B, S): of the executed one by its advantage, (B,), or
        of all valid ones by their values."""
        if self.action_values is not None:
            values = self.action_values.of_draws(decision.observation, decision)
            return rejection.covariance_weights(values, decision.valid)
        if same is not None and self.config.estimator == "rb":
            executed = rejection.shared_weights(decision, same)
        else:
            executed = rejection.executed_weights(decision)
        kind = self.config.correction
        corrected = rejection.correction_weights(executed, decision.valid, n_valid, decision.draws, kind)
        assert advantage is not None  # without action values it is there
        return corrected * advantage[:, None]

    def _shared_surrogate(self, features, decision: rejection.Decision) -> Tensor:
        """The estimate of log π, (B, S), one and the same for all valid draws of a state that share an action.

        They share its N posterior samples, too: N of each draw's own have the same expectation and cost up to S times
        as much, since a policy soon narrows to few actions a state.
        """
        action = rejection.valid_or_executed(decision)
        state, draw, which = rejection.distinct(packed(action, self.policy.sizes))
        sample = Sample(action[state, draw].unsqueeze(1))
        surrogate = self.policy.score_surrogate(features.of(state), sample, self.generator)
        return surrogate.flatten().index_select(0, which.flatten()).view(which.shape)

    def _weights(self, decision, n_valid, advantage, features, surrogate) -> tuple[Tensor, Tensor, Tensor | float]:
        """Weight of every draw's score (B, S), the entropy estimate, and what is added to the loss."""
        config, now, valid = self.config, self.annealed(), decision.valid
        same = None
        if config.policy == "flow":
            same = rejection.same_action(packed(decision.sample.action, self.policy.sizes), valid)
        weights = self._credit(decision, n_valid, advantage, same) + config.valid_bonus * rejection.bonus_weights(valid)
        regulariser = 0.0
        exact = getattr(self.policy, "entropy", None) if valid.shape[1] == 1 else None
        if exact is not None:  # one draw tells nothing of the entropy
            of_states = exact(features, self.generator)
            entropy = of_states.mean()
            regulariser = -config.entropy * now * (of_states * decision.sampled).mean()
        else:
            log_prob = surrogate.detach() if same is None else rejection.count_log_prob(same, valid)
            weights = weights + config.entropy * now * rejection.entropy_weights(log_prob, valid)
            entropy = -(rejection.bonus_weights(valid) * log_prob).sum(-1).mean()
        if config.latent_kl and now:
            kl = self.policy.latent_kl(features, KL_DRAWS, self.generator)
            regulariser = regulariser + config.latent_kl * now * (kl * decision.sampled).mean()
        return weights * decision.sampled[:, None], entropy.detach(), regulariser

    def _gradients(self, groups: Iterable[str]) -> list[Tensor]:
        gradients = []
        for name in groups:
            gradient = self.parameters[name].grad
            assert gradient is not None  # `flat_parameters` keeps it allocated: none may drop out of the norm
            gradients.append(gradient)
        return gradients

    def _zero_gradients(self) -> None:
        for gradient in self._gradients(self.parameters):
            gradient.zero_()

    def _clip(self, groups: list[str]) -> Tensor:
        """Scale the groups' gradients to a joint norm of `clip` at most; the norm before."""
        gradients = self._gradients(groups)
        norm = torch.stack([gradient.norm() for gradient in gradients] or [self.sums.new_zeros(())]).norm()
        for gradient in gradients:
            gradient.mul_((self.config.clip / (norm + 1e-6)).clamp(max=1))
        return norm

    def _require_finite(self, norm: Tensor, rollout: Rollout | None = None) -> None:
        """FloatingPointError where the gradient's norm isn't finite, before the step that would spoil the weights.

        That one number tells of all: what isn't finite in rewards, observations or weights reaches the gradient.
        """
        if not norm.isfinite().all():
            fault = rollout and _not_finite(rollout)
            fault = fault or "the gradient is not finite; lower actor_lr, critic_lr or clip"
            name = getattr(self.env, "name", self.config.env)
            raise FloatingPointError(
                f"{name}, the rollout that ended at step {self.env_steps}: {fault}; the weights are those of before"
            )

    def _descend(self, groups: list[str]) -> None:
        for name in groups:
            self.optimisers[name].step()

    def _descend_on(self, loss: Tensor, name: str) -> Tensor:
        """A step of one network down its loss, clipped; the gradient's norm before."""
        self._zero_gradients()
        loss.backward()
        norm = self._clip([name])
        self._require_finite(norm)
        self._descend([name])
        return norm

    # --------------------------------------------------------------------------- Algorithm 1: the posterior

    def _remember(self, rollout: Rollout) -> None:
        self.memory.append(torch.cat([decision.observation for decision in rollout.decisions]))
        del self.memory[:-MEMORY]

    def elbo_step(self, groups: list[str]) -> None:
        """Algorithm 1: ascend mean[log p(v|s) − log q(v|a, s)] in the groups, on recent states and fresh actions."""
        config, states = self.config, torch.cat(self.memory)
        rows = torch.randint(len(states), (config.elbo_batch,), generator=self.generator, device=self.device)
        features = self.policy.features(states[rows])
        action = self.policy.sample(features, 1, self.generator).action
        w, ties = self.policy.log_weights(features, action, config.n_posterior, self.generator)
        self._zero_gradients()
        (-w.mean()).backward()
        self._require_finite(self._clip(groups))
        self._descend(groups)
        self.sums[4:] += torch.stack((w.detach().mean(), ties.float())) / max(1, config.elbo_steps)

    def _elbo_groups(self) -> list[str]:
        """(φ, w, ψ) as printed, without the encoder if need be; ψ alone where the posterior only proposes and must not
        move the policy."""
        if self.config.estimator == "cis":
            return ["posterior"]
        return [name for name in (*self.policy_groups, "posterior") if name != "encoder"]

    def _fit_posterior_first(self) -> None:
        """Algorithm 1 on the posterior alone, before the policy moves: an unfitted posterior's gradient is noise."""
        if not self.config.posterior_fit_steps:
            return
        for _ in range(MEMORY):
            self._remember(self.rollout())
        for _ in range(self.config.posterior_fit_steps):
            self.elbo_step(["posterior"])
        self.sums[4:] = 0

    # -------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, env, n_episodes: int, generator: torch.Generator, most_steps: float = math.inf):
        """Undiscounted returns (n_episodes,) of the policy with rejection, one episode in each environment of `env`.

        env: a batch of n_episodes environments apart from training; an episode counts up to `most_steps` of it. Also
        the counts that `decide` gives, and `calls`, the oracle calls of each decision.
        """
        observation, before, calls = env.reset(), None, []
        returns = torch.zeros(n_episodes, dtype=torch.float64, device=self.device)
        running = torch.ones(n_episodes, dtype=torch.bool, device=self.device)
        totals = dict.fromkeys(("states", *rejection.COUNTS), 0)
        while running.any() and totals["states"] < most_steps * n_episodes:
            decision, counts = self.decide(observation, generator, before)
            assert decision.calls is not None  # `decide` counts them
            calls.append(decision.calls[running])
            for name, count in counts.items():
                totals[name] += count
            totals["states"] += n_episodes
            step = env.step(decision.action)
            returns += torch.where(running, step.reward, 0.0)
            running &= ~(step.terminated | step.truncated)
            observation, before = step.observation, rejection.left_behind(decision, self.config)
        return returns, totals | {"calls": torch.cat(calls) if calls else torch.zeros(0)}

    # ------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict:
        """All that the rest of the run depends on."""
        return {
            "policy": self.policy.state_dict(), "critic": self.critic.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "generator": self.generator.get_state(), "env": self.env.state_dict(), "observation": self.observation,
            "before": self.before and tuple(self.before),
            "memory": self.memory, "env_steps": self.env_steps, "updates": self.updates, "counts": self.counts,
            "sums": self.sums,
        } | ({} if self.reward_scale is None else {"reward_scale": vars(self.reward_scale)}) \
          | ({} if self.action_values is None else {"action_values": self.action_values.state_dict()}) \
          | ({} if self.restarts is None else {"restarts": self.restarts.state_dict()})  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`; where its `env` is None, with the environments as they are here."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"].cpu())
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])
        for name in ("observation", "memory", "env_steps", "updates", "counts", "sums"):
            setattr(self, name, state[name])
        executed = state.get("executed")  # of older files
        self.before = executed if executed is None else chains.planted(executed[:, None])
        if state.get("before") is not None:
            self.before = chains.Start(*state["before"])
        if self.reward_scale is not None:
            vars(self.reward_scale).update(state["reward_scale"])
        if self.restarts is not None:
            self.restarts.load_state_dict(state["restarts"])
        if self.action_values is not None:
            self.action_values.load_state_dict(state["action_values"])
        if state["env"] is None:
            self.cut_off()

    def cut_off(self) -> None:
        """Tell what remembers episodes that those under way are cut off, and new ones begin."""
        if self.action_values is not None:
            self.action_values.replay.cut_off()
        if self.restarts is not None:
            self.restarts.cut_off()

    def summary(self) -> dict:
        """Counts since the start, means since the last summary, as plain numbers."""
        counts = {name: int(count) for name, count in self.counts.items()}
        means = dict(zip(MEANS, (self.sums / max(1, self.updates)).tolist(), strict=True))
        if self.posterior is None:
            means["elbo"] = math.nan
        self.updates = 0
        self.sums = torch.zeros_like(self.sums)
        return counts | means


def _not_finite(rollout: Rollout) -> str | None:
    """The first reward or observation that isn't finite, in words."""
    parts = {"observation": torch.stack([decision.observation for decision in rollout.decisions]),
             "reward": rollout.reward, "final observation": rollout.final_observation}  # fmt: skip
    for name, values in parts.items():
        wrong = ~values.isfinite().flatten(2).all(-1) if values.dim() > 2 else ~values.isfinite()
        if wrong.any():
            t, b = wrong.nonzero()[0].tolist()
            return f"the {name} of environment {b} is not finite, {t + 1} of {len(wrong)} steps into it"
    return None


def _has_weights(module: torch.nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None


def _concatenated(decisions: list[rejection.Decision]) -> rejection.Decision:
    """Decisions of several steps as one batch."""
    if len(decisions) == 1:
        return decisions[0]
    columns = zip(*decisions, strict=True)
    joined = []
    for column in columns:
        if isinstance(column[0], Sample):
            latents = [sample.latent for sample in column if sample.latent is not None]
            joined.append(
                Sample(torch.cat([sample.action for sample in column]), torch.cat(latents) if latents else None)
            )
        else:
            joined.append(None if column[0] is None else torch.cat(column))
    return rejection.Decision(*joined)
