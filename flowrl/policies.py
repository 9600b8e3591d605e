"""Policies over A = {1..K}^D behind one interface (paper, sections 2, 3.1 and 6).

    features(observation (B, …), mask) → Features     each state is encoded once, however many samples are drawn from it
    sample(features, n, generator)     → Sample       n actions a state, no gradient
    log_prob(features, sample)         → (B, n)       exact, or the chosen estimator of log π for a flow
    score_surrogate(features, sample)  → (B, n)       a scalar whose gradient estimates ∇log π(a|s)

Dimensions of unequal size are padded to the largest K; a padded category has probability 0 everywhere.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .estimators import Alpha, cis_weights, cubo, elbo, iwae, sandwich
from .flows import Flow, soft_threshold, soft_threshold_inverse

LOG_SCALE = (-5.0, 2.0)  # range of a learnt log σ
MAX_OUTPUTS = 10_000_000  # of a network, dimensions × categories
MAX_LOGITS = 200_000  # |A| up to which a policy may have a logit for every action
ACTION_LIMIT = 2**63  # actions are numbered in int64
LOG_2PI = math.log(2 * math.pi)
HAS_LOG_PROB = ("elbo", "cubo", "iwae", "sandwich")
NEEDS_POSTERIOR = (*HAS_LOG_PROB, "cis")


class Sample(NamedTuple):
    """Actions (B, n, D) int64 and, from a flow, the latents (B, n, D, K) whose argmax they are."""

    action: Tensor
    latent: Tensor | None = None

    def at(self, index) -> "Sample":
        """Those that an index of the tensors' first axes picks."""
        return Sample(self.action[index], None if self.latent is None else self.latent[index])

    def clone(self) -> "Sample":
        """A copy to write into."""
        return Sample(self.action.clone(), None if self.latent is None else self.latent.clone())


def to_flat(action: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Mixed-radix number of an action, first dimension most significant: (…, D) int64 → (…) int64.

    Wraps around beyond 2⁶³ actions: `packed` doesn't.

    >>> to_flat(torch.tensor([[0, 0, 0], [1, 2, 3]]), sizes=(2, 3, 4))
    tensor([ 0, 23])
    """
    flat = action[..., 0]
    for d in range(1, len(sizes)):
        flat = flat * sizes[d] + action[..., d]
    return flat


def to_digits(flat: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The action with that mixed-radix number: (…) int64 → (…, D) int64.

    >>> to_digits(torch.tensor([0, 23]), sizes=(2, 3, 4))
    tensor([[0, 0, 0],
            [1, 2, 3]])
    """
    digits = []
    for size in reversed(sizes):
        digits.append(flat % size)
        flat = flat // size
    return torch.stack(digits[::-1], -1)


def packed(action: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The action as P numbers, each of as many dimensions as fit 63 bits: (…, D) → (…, P); P = 1 up to |A| = 2⁶³.

    >>> packed(torch.ones(5, 100, dtype=torch.int64), sizes=(2,) * 100).shape  # 2¹⁰⁰ actions
    torch.Size([5, 2])
    """
    cuts, n = [0], 1
    for d, size in enumerate(sizes):
        if n * size > ACTION_LIMIT:
            cuts.append(d)
            n = 1
        n *= size
    cuts = zip(cuts, [*cuts[1:], len(sizes)], strict=True)
    return torch.stack([to_flat(action[..., start:stop], sizes[start:stop]) for start, stop in cuts], -1)


def check_size(sizes: tuple[int, ...], policy: str) -> None:
    """ValueError where a policy would have to enumerate, or number, more actions than it can.

    >>> check_size((10,) * 400, "flow")
    >>> check_size((10,) * 400, "masked")
    Traceback (most recent call last):
    ValueError: |A| is about 10^400: masked policies enumerate all, at most 200,000; methods with iar only draw
    """
    n = math.prod(sizes)
    if (outputs := len(sizes) * max(sizes)) > MAX_OUTPUTS and policy != "wolpertinger":
        raise ValueError(
            f"the largest action dimension has {max(sizes):,} categories: a policy would have {outputs:,} outputs, at "
            f"most {MAX_OUTPUTS:,}; several dimensions, such as digits, would do"
        )
    many = f"|A| is {n:,}" if n < 10**12 else f"|A| is about 10^{math.log10(n):.0f}"
    if policy in ("masked", "categorical") and n > MAX_LOGITS:
        raise ValueError(f"{many}: {policy} policies enumerate all, at most {MAX_LOGITS:,}; methods with iar only draw")
    if policy == "wolpertinger" and n >= ACTION_LIMIT:
        raise ValueError(f"{many}: Wol-DDPG numbers them, fewer than 2^63; methods with iar only draw")


def existing_categories(sizes: tuple[int, ...]) -> Tensor | None:
    """(D, K) bool, which categories exist; None where all do."""
    if len(set(sizes)) == 1:
        return None
    return torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]


def _draw(logits: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n categories from each softmax(logits): (B, 1 or n, K) → (B, n), by argmax of p / Exp(1)."""
    shape = (logits.shape[0], n, logits.shape[-1])
    noise = torch.empty(shape, dtype=logits.dtype, device=logits.device).exponential_(generator=generator)
    return (torch.softmax(logits, -1) / noise).argmax(-1)


def start_orthogonal(modules: list[nn.Module], gain: float) -> None:
    """Let every linear layer start from orthogonal weights times gain, its bias from 0 where it was drawn at random.

    With a gain of .01 (the paper's released code) nothing but the last biases gets a gradient to speak of at first.
    """
    for layer in (m for module in modules for m in module.modules() if isinstance(m, nn.Linear)):
        if layer.bias is not None and layer.weight.any():  # weights of 0: a bias that was chosen
            nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(layer.weight, gain)


# ------------------------------------------------------------------------------------------------ flow policy


class FlowFeatures(NamedTuple):
    hidden: Tensor  # (B, C), what the encoder says of the state
    mean: Tensor  # (B, 1, D K), μ_φ(s)
    log_scale: Tensor | None  # (B, 1, D K), log σ_φ(s); None: σ = 1
    shifts: tuple[Tensor, ...]  # what the state adds in each coupling

    def of(self, state: Tensor) -> "FlowFeatures":
        """The features of states (P,) int64, in that order, repeats allowed."""
        hidden, mean, *shifts = (x.index_select(0, state) for x in (self.hidden, self.mean, *self.shifts))
        log_scale = None if self.log_scale is None else self.log_scale.index_select(0, state)
        return FlowFeatures(hidden, mean, log_scale, tuple(shifts))


class Posterior(nn.Module):
    """q_ψ(v|a, s), supported on {v : argmax v = a}: a Gaussian, maybe through couplings, then the soft threshold."""

    existing: Tensor | None  # (D, K) bool

    def __init__(self, features: int, sizes: tuple[int, ...], n_couplings: int, hidden: int):
        super().__init__()
        self.shape = (len(sizes), max(sizes))
        dim = math.prod(self.shape)
        self.register_buffer("existing", existing_categories(sizes), persistent=False)
        self.state = nn.Linear(features, hidden)
        self.action = nn.Linear(dim, hidden, bias=False)
        self.base = nn.Linear(hidden, 2 * dim)
        nn.init.zeros_(self.base.weight)  # a standard Gaussian, to begin with
        nn.init.zeros_(self.base.bias)
        self.flow = Flow("affine", n_couplings, dim, hidden, hidden)

    def _context(self, hidden: Tensor, action: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        one_hot = nn.functional.one_hot(action, self.shape[1]).flatten(-2).to(hidden.dtype)
        context = (self.state(hidden).unsqueeze(1) + self.action(one_hot)).relu()  # (B, M, H)
        mean, log_scale = self.base(context).unsqueeze(-2).chunk(2, -1)
        return mean, log_scale.clamp(*LOG_SCALE), self.flow.condition(context)

    def sample(self, hidden: Tensor, action: Tensor, n: int, generator=None) -> tuple[Tensor, Tensor, Tensor]:
        """n latents for each action (B, M, D): v (B, M, n, D, K), log q(v|a, s), ties (B, M, n); reparameterised."""
        mean, log_scale, shifts = self._context(hidden, action)
        shape = (*action.shape[:2], n, mean.shape[-1])
        noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
        u, ladj_flow = self.flow(torch.addcmul(mean, log_scale.exp(), noise), shifts)
        repeated = action.unsqueeze(2).expand(-1, -1, n, -1)
        v, ladj, ties = soft_threshold(u.unflatten(-1, self.shape), repeated, self.existing)
        log_base = -0.5 * (noise.square().sum(-1) + shape[-1] * LOG_2PI) - log_scale.sum(-1)
        return v, log_base - ladj_flow - ladj, ties

    def log_prob(self, hidden: Tensor, action: Tensor, latent: Tensor) -> Tensor:
        """log q(v|a, s) of given latents (B, M, n, D, K) → (B, M, n)."""
        mean, log_scale, shifts = self._context(hidden, action)
        repeated = action.unsqueeze(2).expand(-1, -1, latent.shape[2], -1)
        u, ladj = soft_threshold_inverse(latent, repeated, self.existing)
        z, ladj_flow = self.flow.inverse(u.flatten(-2), shifts)
        noise = (z - mean) * (-log_scale).exp()
        return -0.5 * (noise.square().sum(-1) + z.shape[-1] * LOG_2PI) - log_scale.sum(-1) + ladj_flow + ladj


class SharedLogScale(nn.Module):
    """log σ, the same in every state: what is drawn more sharply in one is drawn more sharply in all."""

    def __init__(self, dim: int):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.value.expand(len(hidden), -1)


class FlowPolicy(nn.Module):
    """a = argmax F_w(z₀), z₀ ~ N(μ_φ(s), σ_φ(s)²): a conditional flow, then argmax in each dimension (paper, 3.1).

    `estimator` names what stands for ∇log π: `latent` and `rb` the density of the latent that produced the action
    (Fisher's identity; `rb` leaves the average over draws that share the action to `rejection`), `cis` a weighted mean
    over that latent and N − 1 posterior ones, the rest estimates of log π itself through the posterior.
    """

    existing: Tensor | None  # (D, K) bool

    def __init__(self, encoder: nn.Module, features: int, sizes: tuple[int, ...], config):
        super().__init__()
        self.sizes, self.shape = sizes, (len(sizes), max(sizes))
        dim = math.prod(self.shape)
        self.estimator, self.n_posterior = config.estimator, config.n_posterior
        self.register_buffer("existing", existing_categories(sizes), persistent=False)
        self.encoder = encoder
        self.mean = nn.Linear(features, dim)
        nn.init.normal_(self.mean.weight, std=0.01)
        nn.init.zeros_(self.mean.bias)
        self.log_scale = None
        if config.base_scale == "learned":
            self.log_scale = nn.Linear(features, dim)
            nn.init.zeros_(self.log_scale.weight)
            nn.init.zeros_(self.log_scale.bias)
        elif config.base_scale == "shared":
            self.log_scale = SharedLogScale(dim)
        self.flow = Flow(config.coupling, config.n_couplings, dim, features, config.policy_hidden)
        self.posterior = self.alpha = None
        if self.estimator in NEEDS_POSTERIOR:
            n_couplings = config.posterior_couplings if config.posterior == "flow" else 0
            self.posterior = Posterior(features, sizes, n_couplings, config.policy_hidden)
        if config.initial_gain:
            parts = (self.mean, self.log_scale, self.flow, self.posterior)
            start_orthogonal([part for part in parts if part is not None], config.initial_gain)
        if self.estimator == "sandwich":
            self.alpha = Alpha(config.alpha)

    def features(self, observation: Tensor, mask: Tensor | None = None) -> FlowFeatures:
        """Observation (B, …) → what the flow takes from each state."""
        hidden = self.encoder(observation)
        log_scale = None if self.log_scale is None else self.log_scale(hidden).clamp(*LOG_SCALE).unsqueeze(1)
        return FlowFeatures(hidden, self.mean(hidden).unsqueeze(1), log_scale, self.flow.condition(hidden))

    def _base(self, features: FlowFeatures, n: int, generator) -> tuple[Tensor, Tensor]:
        """z₀ = μ + σ ε and ε, (B, n, D K) each."""
        shape = (len(features.mean), n, features.mean.shape[-1])
        noise = torch.randn(shape, generator=generator, device=features.mean.device, dtype=features.mean.dtype)
        if features.log_scale is None:
            return features.mean + noise, noise
        return torch.addcmul(features.mean, features.log_scale.exp(), noise), noise

    def sample(self, features: FlowFeatures, n: int, generator: torch.Generator | None = None) -> Sample:
        """n draws a state: actions (B, n, D) and the latents (B, n, D, K) that gave them."""
        with torch.no_grad():
            latent, _ = self.flow(self._base(features, n, generator)[0], features.shifts)
            latent = latent.unflatten(-1, self.shape)
            scores = latent if self.existing is None else latent.masked_fill(~self.existing, -torch.inf)
            return Sample(scores.argmax(-1), latent)

    def latent_log_prob(self, features: FlowFeatures, latent: Tensor) -> Tensor:
        """log p(v|s) = log N(F⁻¹(v); μ, σ) + log|det ∂F⁻¹/∂v|: (B, n, D, K) → (B, n)."""
        z, ladj = self.flow.inverse(latent.flatten(-2), features.shifts)
        noise = z - features.mean
        log_base = 0.0
        if features.log_scale is not None:
            noise = noise * (-features.log_scale).exp()
            log_base = -features.log_scale.sum(-1)
        return log_base - 0.5 * (noise.square().sum(-1) + z.shape[-1] * LOG_2PI) + ladj

    def log_weights(self, features: FlowFeatures, action: Tensor, n: int, generator=None) -> tuple[Tensor, Tensor]:
        """w = log p(v|s) − log q(v|a, s), v ~ q: actions (B, M, D) → w (B, M, n), and how many ties rounding made."""
        assert self.posterior is not None  # the estimator NEEDS_POSTERIOR
        v, log_q, ties = self.posterior.sample(features.hidden, action, n, generator)
        log_p = self.latent_log_prob(features, v.flatten(1, 2)).unflatten(1, log_q.shape[1:])
        return log_p - log_q, ties.sum()

    def log_prob(self, features: FlowFeatures, sample: Sample, generator=None) -> Tensor:
        """The estimate of log π(a|s), (B, n). ValueError for `rb`, `latent`, `cis`: they estimate its gradient only."""
        if self.estimator not in HAS_LOG_PROB:
            raise ValueError(f"estimator {self.estimator!r} has no log_prob; choose one of: {', '.join(HAS_LOG_PROB)}")
        w, _ = self.log_weights(features, sample.action, self.n_posterior, generator)
        if self.estimator == "sandwich":
            assert self.alpha is not None  # made with the policy
            return sandwich(w, self.alpha(elbo(w), cubo(w)))
        return {"elbo": elbo, "cubo": cubo, "iwae": iwae}[self.estimator](w)

    def score_surrogate(self, features: FlowFeatures, sample: Sample, generator=None) -> Tensor:
        """(B, n), its gradient the estimate of ∇log π(a|s): `log_prob`, or the latent density held at the latent."""
        if self.estimator in HAS_LOG_PROB:
            return self.log_prob(features, sample, generator)
        assert sample.latent is not None  # a draw of this policy
        if self.estimator != "cis":
            return self.latent_log_prob(features, sample.latent)
        assert self.posterior is not None  # the estimator NEEDS_POSTERIOR
        return self._cis_surrogate(self.posterior, features, sample.action, sample.latent.unsqueeze(2), generator)

    def _cis_surrogate(self, q: Posterior, features: FlowFeatures, action: Tensor, latent: Tensor, generator) -> Tensor:
        """latent: (B, n, 1, D, K), what produced the actions (B, n, D)."""
        with torch.no_grad():
            log_q = q.log_prob(features.hidden, action, latent)
            if self.n_posterior > 1:
                drawn, log_q_drawn, _ = q.sample(features.hidden, action, self.n_posterior - 1, generator)
                latent, log_q = torch.cat((latent, drawn), 2), torch.cat((log_q, log_q_drawn), 2)
        log_p = self.latent_log_prob(features, latent.flatten(1, 2)).unflatten(1, log_q.shape[1:])
        return (cis_weights(log_p.detach() - log_q) * log_p).sum(-1)

    def latent_kl(self, features: FlowFeatures, n: int, generator=None) -> Tensor:
        """KL(p(v|s) ‖ N(0, I)) from n pathwise draws: E[log p(v|s) − log N(v)] → (B,)."""
        z, noise = self._base(features, n, generator)
        v, ladj = self.flow(z, features.shifts)
        log_ratio = 0.5 * (v.square().sum(-1) - noise.square().sum(-1)) - ladj
        if features.log_scale is not None:
            log_ratio = log_ratio - features.log_scale.sum(-1)
        return log_ratio.mean(-1)


# ------------------------------------------------------------------------------------------------ the rivals


class CategoricalPolicy(nn.Module):
    """One categorical over all of A (the paper's A2C). ValueError as of `check_size`."""

    def __init__(self, encoder: nn.Module, features: int, sizes: tuple[int, ...], config):
        super().__init__()
        check_size(sizes, "categorical")
        self.sizes, n_actions = sizes, math.prod(sizes)
        self.encoder = encoder
        self.logits = nn.Linear(features, n_actions)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)

    def features(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Observation (B, …) → log π(·|s) (B, |A|)."""
        return torch.log_softmax(self.logits(self.encoder(observation)), -1)

    def sample(self, features: Tensor, n: int, generator: torch.Generator | None = None) -> Sample:
        with torch.no_grad():
            return Sample(to_digits(_draw(features.unsqueeze(1), n, generator), self.sizes))

    def log_prob(self, features: Tensor, sample: Sample, generator=None) -> Tensor:
        return features.gather(-1, to_flat(sample.action, self.sizes))

    score_surrogate = log_prob

    def entropy(self, features: Tensor, generator=None) -> Tensor:
        """(B,), in nats, exact."""
        return -(features.exp() * features.clamp_min(-1e4)).sum(-1)


class MaskedPolicy(CategoricalPolicy):
    """MASK: the same with all that the oracle refuses masked out, every action asked for (paper, section 6)."""

    needs_mask = True

    def features(self, observation: Tensor, mask: Tensor) -> Tensor:
        """Observation and mask (B, |A|) bool → log π(·|s) (B, |A|)."""
        return torch.log_softmax(self.logits(self.encoder(observation)).masked_fill(~mask, -torch.inf), -1)


class FactoredPolicy(nn.Module):
    """π(a|s) = Π_d π_d(a_d|s): a categorical for each dimension, independent given the state (paper, section 6)."""

    existing: Tensor | None  # (D, K) bool

    def __init__(self, encoder: nn.Module, features: int, sizes: tuple[int, ...], config):
        super().__init__()
        self.sizes, self.shape = sizes, (len(sizes), max(sizes))
        self.register_buffer("existing", existing_categories(sizes), persistent=False)
        self.encoder = encoder
        self.logits = nn.Linear(features, math.prod(self.shape))
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)

    def features(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Observation (B, …) → log π_d(·|s) (B, D, K)."""
        logits = self.logits(self.encoder(observation)).unflatten(-1, self.shape)
        if self.existing is not None:
            logits = logits.masked_fill(~self.existing, -torch.inf)
        return torch.log_softmax(logits, -1)

    def sample(self, features: Tensor, n: int, generator: torch.Generator | None = None) -> Sample:
        with torch.no_grad():
            digits = _draw(features.flatten(0, 1).unsqueeze(1), n, generator)  # (B D, n)
            return Sample(digits.unflatten(0, (-1, self.shape[0])).transpose(1, 2).contiguous())

    def log_prob(self, features: Tensor, sample: Sample, generator=None) -> Tensor:
        return features.gather(-1, sample.action.transpose(1, 2)).sum(1)

    score_surrogate = log_prob

    def entropy(self, features: Tensor, generator=None) -> Tensor:
        """(B,), in nats, exact: Σ_d H(π_d). Of π itself, not of π given validity."""
        return -(features.exp() * features.clamp_min(-1e4)).sum((-2, -1))


class AutoregressivePolicy(nn.Module):
    """π(a|s) = Π_d π(a_d | a_<d, s): an LSTM over the dimensions, started by the state (paper, section 6)."""

    existing: Tensor | None  # (D, K) bool

    def __init__(self, encoder: nn.Module, features: int, sizes: tuple[int, ...], config):
        super().__init__()
        self.sizes = sizes
        self.register_buffer("existing", existing_categories(sizes), persistent=False)
        self.encoder = encoder
        hidden, K = config.policy_hidden, max(sizes)
        self.first = nn.Linear(features, 2 * hidden)
        choice = [nn.Embedding(K, 4 * hidden) for _ in sizes[1:]]
        self.choice = nn.ModuleList(choice)  # what a_{d−1} adds to the gates
        self.recur = nn.Linear(hidden, 4 * hidden)
        logits = [nn.Linear(hidden, K) for _ in sizes]
        self.logits = nn.ModuleList(logits)
        for embedding in choice:
            nn.init.normal_(embedding.weight, std=0.1)
        for layer in logits:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def features(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Observation (B, …) → (B, C), which start the LSTM."""
        return self.encoder(observation)

    def _walk(self, features: Tensor, n: int, action: Tensor | None, generator) -> tuple[list[Tensor], list[Tensor]]:
        """Dimension after dimension: choices (B, n), and log π(·|a_<d, s) they came from, (B, 1 or n, K)."""
        h, c = self.first(features).unsqueeze(1).tanh().chunk(2, -1)
        choices, log_probs = [], []
        for d in range(len(self.sizes)):
            if d:
                i, f, g, o = (self.recur(h) + self.choice[d - 1](choices[-1])).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            logits = self.logits[d](h)
            if self.existing is not None:
                logits = logits.masked_fill(~self.existing[d], -torch.inf)
            log_probs.append(torch.log_softmax(logits, -1))
            choices.append(_draw(log_probs[-1], n, generator) if action is None else action[..., d])
        return choices, log_probs

    def sample(self, features: Tensor, n: int, generator: torch.Generator | None = None) -> Sample:
        with torch.no_grad():
            choices, _ = self._walk(features, n, None, generator)
            return Sample(torch.stack(choices, -1))

    def log_prob(self, features: Tensor, sample: Sample, generator=None) -> Tensor:
        n = sample.action.shape[1]
        choices, log_probs = self._walk(features, n, sample.action, None)
        chosen = (p.expand(-1, n, -1).gather(-1, a.unsqueeze(-1)) for a, p in zip(choices, log_probs, strict=True))
        return functools.reduce(torch.add, chosen).squeeze(-1)

    score_surrogate = log_prob
