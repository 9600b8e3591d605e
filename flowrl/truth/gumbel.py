"""Ground truth for the Gumbel flow: π by quadrature of the latent density, and how far its scores spread.

Small flows with random parameters, one state, float64. A score is looked at through its coordinates ∇_μ log π(a|s);
its spread is the trace of their covariance over the draws, of which E[∇log π] = 0 makes the exact score's the least.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ..beyond.gumbel import GumbelFeatures, GumbelFlowPolicy
from ..policies import packed
from ..rejection import same_action

HIDDEN = 64  # units of t


def gaps(K: int, nodes: int = 100, reach: float = 30.0) -> tuple[Tensor, Tensor]:
    """Latents v of every argmax a with max v = v_a = 0, (K X, K), and log weights (K X,): Gauss-Legendre, X of each."""
    node, weight = map(torch.tensor, np.polynomial.legendre.leggauss(nodes))
    below = torch.cartesian_prod(*[-reach / 2 * (node + 1)] * (K - 1)).view(-1, K - 1)
    log_weight = torch.cartesian_prod(*[(reach / 2 * weight).log()] * (K - 1)).view(-1, K - 1).sum(-1)
    top = torch.zeros_like(below[:, :1])
    return torch.cat([torch.cat((below[:, :a], top, below[:, a:]), 1) for a in range(K)]), log_weight.repeat(K)


def gumbel_log_probs(policy: GumbelFlowPolicy, features: GumbelFeatures) -> Tensor:
    """log π of every action of one state in mixed-radix order, (|A|,) float64, block 1, differentiable.

    Over the latents of all dimensions but the last. t reads softmax(v), so the height of max v is integrated:
    v_j − max v have density (K − 1)! Π_k softmax(l − v)_k. The nodes multiply: for two or three dimensions of two or
    three categories, equally many in all but the last; good to about three digits, as relu has kinks.
    """
    (mean, shifts), flow, (*sizes, last) = features, policy.flow, policy.sizes
    log_p, hidden, shape = torch.zeros(1), torch.zeros(1, 1), []
    for d, K in enumerate(sizes):
        v, log_weight = gaps(K)
        logits = flow._logits(d, mean, shifts, hidden[None]).expand(-1, len(log_p), -1, -1)[0]
        density = math.lgamma(K) + torch.log_softmax(logits - v, -1).sum(-1) + log_weight
        log_p = (log_p[:, None] + density).flatten()
        hidden = (hidden[:, None] + flow._read(d, 0.0, v[None, :, None])).flatten(0, 1)
        shape += [K, len(v) // K]
    logits = flow._logits(len(sizes), mean, shifts, hidden[None])[0, :, 0]
    log_p = (log_p[:, None] + torch.log_softmax(logits, -1)[:, :last]).view(*shape, last)
    return torch.logsumexp(log_p, tuple(range(1, len(shape), 2))).flatten()


def entropy_gradients(policy: GumbelFlowPolicy, features: GumbelFeatures, allowed: Tensor) -> dict[str, Tensor]:
    """∇_μ H(π'), and what two of its estimates expect, by quadrature: D = 2, block 1; allowed: (|A|,) bool.

    `truth`; `conditionals`, −Cov(log W, ∇log W) over valid draws, what the sample covariance of any two or more of them
    expects; `pathwise`, ∇E[Σ_d H(softmax η_d)], all of them (D K,).
    """
    (mean, shifts), flow, (K, last) = features, policy.flow, policy.sizes
    log_pi = gumbel_log_probs(policy, features)[allowed].log_softmax(0)
    v, log_weight = gaps(K)
    first = mean[0, 0, 0] - v
    density = (math.lgamma(K) + torch.log_softmax(first, -1).sum(-1) + log_weight).exp()
    log_p = torch.log_softmax(flow._logits(1, mean, shifts, flow._read(0, 0.0, v[None, :, None]))[0, :, 0], -1)
    marginal = torch.log_softmax(mean[0, 0, 0], -1)
    entropy = -(marginal.exp() * marginal).sum() - (density * (log_p.exp() * log_p).sum(-1)).sum()

    second = torch.arange(last).repeat(len(v))
    latent = torch.stack((v.repeat_interleave(last, 0), nn.functional.one_hot(second, K).to(v.dtype)), 1)
    action = latent.argmax(-1)
    log_w = flow.log_weight(mean, shifts, latent[None], action[None])[0]
    weight = (density[:, None] * log_p.exp()).flatten().detach() * allowed[action[:, 0] * last + action[:, 1]]
    weight = weight / weight.sum()
    covariance = (weight * (log_w - weight @ log_w).detach() * log_w).sum()
    return {
        "truth": slopes(-(log_pi.exp() * log_pi), features)[0],
        "conditionals": slopes(-covariance, features)[0],
        "pathwise": slopes(entropy, features)[0],
    }


def one_state(
    sizes: tuple[int, ...], scale: float, dependence: float, seed: int = 0, block: int = 0
) -> tuple[GumbelFlowPolicy, Tensor]:
    """A flow whose t spreads by so many nats over the draws, in its second block, and μ ~ N(0, scale²), (1, 1, D, K).

    block: as in the policy's settings, 0 for one coupling.
    """
    generator = torch.Generator().manual_seed(seed)
    config = SimpleNamespace(block=block, policy_hidden=HIDDEN, n_posterior=1)
    encoder = nn.Linear(2, 2, bias=False)  # the state, all zeros, stays zeros
    policy = GumbelFlowPolicy(encoder, 2, sizes, config).double()
    with torch.no_grad():
        for parameter in policy.flow.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        mean = scale * torch.randn(1, 1, *policy.shape, generator=generator, dtype=torch.float64)
        features = copies(policy, mean, 1)
        latent = drawn(policy, features, 4000, generator)[1]
        moved = (latent - policy.flow.pull(*features, latent))[:, :, policy.flow.cuts[1]]
        for name, parameter in policy.flow.write.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(dependence / moved.std(1).mean())
    return policy, mean


def copies(policy: GumbelFlowPolicy, mean: Tensor, rows: int) -> GumbelFeatures:
    """The state again and again, each copy with a μ of its own to differentiate by."""
    shifts = policy.features(torch.zeros(1, 2, dtype=mean.dtype)).shifts
    shifts = tuple(shift.detach().expand(rows, -1, -1) for shift in shifts)
    return GumbelFeatures(mean.detach().expand(rows, -1, -1, -1).clone().requires_grad_(), shifts)


def drawn(policy: GumbelFlowPolicy, features: GumbelFeatures, n: int, generator) -> tuple[Tensor, Tensor]:
    """n draws a state: actions (B, n, D) and the latents (B, n, D, K) that gave them."""
    action, latent = policy.sample(features, n, generator)
    assert latent is not None  # this policy has latents
    return action, latent


def slopes(objective: Tensor, features: GumbelFeatures) -> Tensor:
    """∇_μ of what each copy says: objective (B, …) → (B, D K)."""
    return torch.autograd.grad(objective.sum(), features.mean, retain_graph=True)[0].flatten(1)


def spread(found: Tensor) -> float:
    """Trace of the covariance of (B, coordinates) over B."""
    return float(found.var(0).sum())


def pathwise_spread(policy: GumbelFlowPolicy, mean: Tensor, n_latents: int, rows: int, generator) -> float:
    """Spread of the pathwise score from a draw's own latent and N − 1 truncated ones; N → ∞: the exact score's."""
    features = copies(policy, mean, rows)
    policy.n_latents = n_latents
    sample = policy.sample(features, 1, generator)
    return spread(slopes(policy.score_surrogate(features, sample, generator), features))


@torch.no_grad()
def latent_spreads(policy: GumbelFlowPolicy, mean: Tensor, n_draws: int, rows: int, generator) -> tuple[float, float]:
    """Spread of the latent score ∇log p(v|s), and of `rb`, its mean over those of S draws that share the action."""
    features = copies(policy, mean, rows)
    action, v = drawn(policy, features, n_draws, generator)
    latent = 1 - (-policy.flow.pull(*features, v)).exp().flatten(2)  # ∂/∂l of −noise − exp(−noise)
    every = torch.ones(action.shape[:2], dtype=torch.bool)
    same = same_action(packed(action, policy.sizes), every)[:, 0].to(latent.dtype).unsqueeze(-1)
    return spread(latent[:, 0]), spread((latent * same).sum(1) / same.sum(1))
