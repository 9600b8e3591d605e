"""Wol-DDPG (Dulac-Arnold et al. 2015), the paper's rival that knows actions as points in space (section 6).

An actor proposes a point of R^D, the proto-action; its k nearest actions are looked up; the critic executes the best of
them: a = argmax_{a ∈ nearest_k(f(s))} Q(s, a). Both learn as in DDPG (Lillicrap et al. 2016), from a replay buffer and
with slow target networks. It calls no oracle: an invalid action goes to the environment, which refuses and counts it.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .a2c import COUNTS, MEANS, Trainer, seeded
from .beyond.chains import Start
from .encoders import make_encoder
from .optimisers import flat_parameters
from .policies import check_size, to_digits
from .replay import Replay, Transitions
from .returns import ActionCritic

# ------------------------------------------------------------------------------------- actions as points in space


def n_neighbours(sizes: tuple[int, ...], share: float, most: int) -> int:
    """k: `share` of |A|, rounded down, at least one action and at most `most`."""
    return max(1, min(int(share * math.prod(sizes)), most))


def nearest(point: Tensor, sizes: tuple[int, ...], k: int) -> Tensor:
    """The k actions nearest to points (B, D), in digits, by Euclidean distance → (B, k, D) int64, the nearest first.

    Exact, without enumerating A: the squared distance is a sum over the dimensions, so the first d digits of a nearest
    action are among the k nearest of all such beginnings. Raises ValueError unless 1 ≤ k ≤ |A|.
    """
    if not 1 <= k <= math.prod(sizes):
        raise ValueError(f"k is {k}; allowed: 1 to |A|, {math.prod(sizes)}")
    distance = point.new_zeros(len(point), 1)  # of the nearest beginnings, squared
    flat = torch.zeros_like(distance, dtype=torch.int64)  # their mixed-radix numbers
    for d, size in enumerate(sizes):
        digit = torch.arange(size, device=point.device)
        longer = (distance.unsqueeze(2) + (point[:, d, None] - digit).square().unsqueeze(1)).flatten(1)
        distance, index = longer.topk(min(k, longer.shape[1]), largest=False)
        flat = flat.gather(1, index // size) * size + index % size
    return to_digits(flat, sizes)


class Actor(nn.Module):
    """f(s): states (B, …) → proto-actions (B, D) in [−1, 1]."""

    def __init__(self, env, config):
        super().__init__()
        self.encoder = make_encoder(env, config.hidden)
        self.proto = nn.Linear(config.hidden, len(env.action_sizes))
        nn.init.normal_(self.proto.weight, std=0.01)  # the middle of the range, to begin with
        nn.init.zeros_(self.proto.bias)

    def forward(self, observation: Tensor) -> Tensor:
        return self.proto(self.encoder(observation)).tanh()


# ------------------------------------------------------------------------------------------------------ training


class Choice(NamedTuple):
    """What is proposed and executed in B states."""

    proto: Tensor  # (B, D) in [−1, 1]
    action: Tensor  # (B, D) int64
    calls: Tensor  # (B,) int64, of the oracle: none


class WolpertingerTrainer(Trainer):
    """Wol-DDPG on a batch of environments; `step()` is n_steps in each and the gradient steps that follow.

    Evaluation, summary, clipping and the optimisers' step are those of `Trainer`; `oracle` is kept and never called.
    Of the counts, `draws` are executed actions and `valid` those that the environment did not refuse.
    """

    def __init__(self, config, env, oracle=None):
        check_size(env.action_sizes, config.policy)
        self.config, self.env, self.device = config, env, env.device
        self.oracle, self.posterior = oracle or env.valid, None
        self.generator = seeded(config.seed, "policy", env.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config.seed, "weights").initial_seed())
            self.policy = Actor(env, config).to(env.device)
            self.critic = ActionCritic(env, config, len(env.action_sizes), config.policy_hidden).to(env.device)
        self.target_policy, self.target_critic = copy.deepcopy(self.policy), copy.deepcopy(self.critic)
        self.parameters = {"actor": flat_parameters(self.policy), "critic": flat_parameters(self.critic)}
        self.targets = {"actor": flat_parameters(self.target_policy), "critic": flat_parameters(self.target_critic)}
        self.optimisers = {
            "actor": torch.optim.Adam([self.parameters["actor"]], lr=config.actor_lr),
            "critic": torch.optim.Adam([self.parameters["critic"]], lr=config.critic_lr),
        }
        self.sizes = torch.tensor(env.action_sizes, device=env.device)
        self.k = n_neighbours(env.action_sizes, config.neighbours_share, config.max_neighbours)
        self.observation = env.reset()
        self.replay = Replay(config.replay_size, self.observation, len(env.action_sizes))
        self.env_steps = 0
        self.updates = 0
        self.counts = dict.fromkeys(COUNTS, 0)
        self.sums = torch.zeros(len(MEANS), device=env.device)

    # ------------------------------------------------------------------------------------------------ acting

    def to_point(self, action: Tensor) -> Tensor:
        """Digits 0..K_d − 1 → [−1, 1], the critic's units; the only digit of a dimension with K_d = 1 is at −1."""
        return 2 * action / (self.sizes - 1).clamp(min=1) - 1

    def best(self, critic: ActionCritic, observation: Tensor, proto: Tensor) -> tuple[Tensor, Tensor]:
        """Of the k actions nearest to a proto-action (B, D) the critic's choice (B, D), and its Q (B,)."""
        actions = nearest((proto + 1) / 2 * (self.sizes - 1), self.env.action_sizes, self.k)
        value, index = critic(observation, self.to_point(actions)).max(1)
        return actions.gather(1, index[:, None, None].expand(-1, -1, actions.shape[2])).squeeze(1), value

    @torch.no_grad()
    def decide(self, observation: Tensor, generator: torch.Generator, before: Start | None = None,
               exploration: float = 0.0) -> tuple[Choice, dict]:  # fmt: skip
        """The executed action, greedy unless noise N(0, exploration²) is put on the proto-action; no counts."""
        proto = self.policy(observation)
        noise = torch.randn(proto.shape, generator=generator, device=self.device)
        proto = (proto + exploration * noise).clamp(-1, 1)
        calls = torch.zeros(len(proto), dtype=torch.int64, device=self.device)
        return Choice(proto, self.best(self.critic, observation, proto)[0], calls), {}

    def _uniform(self) -> Tensor:
        """An action of A for every environment, drawn uniformly: (B, D) int64."""
        shape = (len(self.observation), len(self.sizes))
        return (torch.rand(shape, generator=self.generator, device=self.device) * self.sizes).long()

    def interact(self) -> None:
        """One step in every environment, with noise, into the replay buffer; uniform actions until learning starts."""
        config, refused = self.config, self.env.violations + 0
        if self.env_steps < config.learning_starts:
            action = self._uniform()
        else:
            action = self.decide(self.observation, self.generator, exploration=config.exploration)[0].action
        step = self.env.step(action)
        self.replay.add(self.observation, action, step)
        self.observation = step.observation
        self.env_steps += len(action)
        for name, count in (("states", len(action)), ("draws", len(action)),
                            ("valid", len(action) - (self.env.violations - refused))):  # fmt: skip
            self.counts[name] += count

    # ---------------------------------------------------------------------------------------------- learning

    def step(self) -> None:
        for _ in range(self.config.n_steps):
            self.interact()
        if self.env_steps >= self.config.learning_starts:
            for _ in range(self.config.gradient_steps):
                self.update(self.replay.sample(self.config.replay_batch, self.generator))

    def update(self, batch: Transitions) -> None:
        """A gradient step of the critic and of the actor on n transitions; the targets follow at `target_rate`."""
        # y = r + γ max Q'(s', a') over the neighbours a' of f'(s'); 0 after termination, truncation bootstraps
        with torch.no_grad():
            proto = self.target_policy(batch.next_observation)
            _, next_value = self.best(self.target_critic, batch.next_observation, proto)
            target = batch.reward + self.config.gamma * torch.where(batch.terminated, 0.0, next_value)
        value = self.critic(batch.observation, self.to_point(batch.action).unsqueeze(1)).squeeze(1)
        value_loss = (target - value).square().mean()
        critic_norm = self._descend_on(value_loss, "critic")
        # ∇_θ Q(s, f_θ(s)): at the proto-action itself, whose neighbours have no gradient
        actor_loss = -self.critic(batch.observation, self.policy(batch.observation).unsqueeze(1)).mean()
        actor_norm = self._descend_on(actor_loss, "actor")
        with torch.no_grad():
            for name, target in self.targets.items():
                target.lerp_(self.parameters[name], self.config.target_rate)
        self.updates += 1
        self.sums[1:4] += torch.stack((actor_norm, critic_norm, value_loss.detach()))

    # ------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict:
        """All that the rest of the run depends on, the replay buffer included."""
        return {
            "policy": self.policy.state_dict(), "critic": self.critic.state_dict(),
            "target_policy": self.target_policy.state_dict(), "target_critic": self.target_critic.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "generator": self.generator.get_state(), "env": self.env.state_dict(), "observation": self.observation,
            "replay": self.replay.state_dict(), "env_steps": self.env_steps, "updates": self.updates,
            "counts": self.counts, "sums": self.sums,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        for name in ("policy", "critic", "target_policy", "target_critic", "replay", "env"):
            getattr(self, name).load_state_dict(state[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"].cpu())
        for name in ("observation", "env_steps", "updates", "counts", "sums"):
            setattr(self, name, state[name])

    def summary(self) -> dict:
        """As `Trainer`'s; a deterministic policy has no entropy to estimate."""
        return super().summary() | {"entropy_estimate": math.nan}
