"""How far the Gumbel flow's estimates spread, and what its entropies are worth: python -m benchmarks.gumbel (minutes).

Untrained flows with random parameters, one state, float64. First table: trace of the covariance of ∇_μ log π(a|s) over
the draws, against the floor, that of the exact score. Second: gradients of the entropy of π' in μ. Third: the
policy gradient with the leave-one-out correction against the number of draws S, all of which it uses.
"""

import math

import torch
from torch import Tensor, nn

from flowrl import rejection
from flowrl.gumbel import GumbelFeatures, GumbelFlowPolicy
from flowrl.policies import Sample, to_digits, to_flat
from flowrl.study.config import make_config

MANY = 256  # truncated draws that stand for all of them
ROWS = 1000  # independent copies of the state


def make(sizes: tuple[int, ...], scale: float, dependence: float, seed: int = 0) -> tuple[GumbelFlowPolicy, Tensor]:
    """A coupling with t of this spread over the draws, in nats; and μ ~ N(0, scale²)."""
    generator = torch.Generator().manual_seed(seed)
    config = make_config("none", "iar-a2c-gumbel", {"hidden": 2})
    policy = GumbelFlowPolicy(nn.Linear(2, 2), 2, sizes, config).double()
    with torch.no_grad():
        for parameter in policy.flow.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        mean = scale * torch.randn(1, 1, *policy.shape, generator=generator, dtype=torch.float64)
        features = GumbelFeatures(mean, policy.features(torch.zeros(1, 2, dtype=torch.float64)).shifts)
        latent = policy.sample(features, 4000, generator).latent
        after = logits(policy, features, latent)[:, :, policy.flow.cuts[1]]
        policy.flow.write[0].weight *= dependence / after.std(1).mean()
    return policy, mean


def logits(policy: GumbelFlowPolicy, features: GumbelFeatures, latent: Tensor) -> Tensor:
    """l(v), (B, n, D, K)."""
    first, second = policy.flow.cuts
    hidden = policy.flow._read(0, 0.0, latent[:, :, first])
    own = features.mean[:, :, first].expand(*latent.shape[:2], -1, -1)
    return torch.cat((own, policy.flow._logits(1, *features, hidden)), 2)


def copies(policy: GumbelFlowPolicy, mean: Tensor, rows: int = ROWS) -> GumbelFeatures:
    """The state again and again, each copy with a μ of its own to differentiate by."""
    shifts = policy.features(torch.zeros(1, 2, dtype=torch.float64)).shifts
    shifts = tuple(shift.detach().expand(rows, -1, -1) for shift in shifts)
    return GumbelFeatures(mean.expand(rows, -1, -1, -1).clone().requires_grad_(), shifts)


def slopes(objective: Tensor, features: GumbelFeatures) -> Tensor:
    """(B, D K)."""
    return torch.autograd.grad(objective.sum(), features.mean, retain_graph=True)[0].flatten(1)


def spread(found: Tensor) -> float:
    return float(found.var(0).sum())


def score_table(n_draws: int = 64) -> None:
    print("\nspread of the score, D = 9, K = 3, one coupling (t spreads over 1.5 nats), trace over 27 coordinates\n")
    print(
        "| scale of μ | floor | latent | rb, S = 64 | pathwise, N = 1 | N = 4 | N = 16 |\n|---|---|---|---|---|---|---|"
    )
    for scale in (0, 1, 2, 4):
        policy, mean = make((3,) * 9, scale, 1.5)
        generator, found = torch.Generator().manual_seed(1), {}
        for n in (MANY, 1, 4, 16):
            features = copies(policy, mean, ROWS if n < MANY else ROWS // 2)
            policy.n_latents = n
            sample = policy.sample(features, 1, generator)
            found[n] = spread(slopes(policy.score_surrogate(features, sample, generator), features))
        features = copies(policy, mean)
        with torch.no_grad():
            sample = policy.sample(features, n_draws, generator)
            latent = 1 - (logits(policy, features, sample.latent) - sample.latent).exp().flatten(2)  # ∇_l log p(v|s)
            flat = to_flat(sample.action, policy.sizes)
            same = (flat == flat[:, :1]).double().unsqueeze(-1)
        rb = (latent * same).sum(1) / same.sum(1)
        row = found[MANY], spread(latent[:, 0]), spread(rb), found[1], found[4], found[16]
        print(f"| {scale} | " + " | ".join(f"{x:.3g}" for x in row) + " |")


def log_probs(policy: GumbelFlowPolicy, mean: Tensor, generator) -> tuple[Tensor, Tensor]:
    """log π of every action from 5,000 truncated draws each, (|A|,), differentiable in the μ that comes with it."""
    features = copies(policy, mean, 1)
    actions = to_digits(torch.arange(math.prod(policy.sizes)), policy.sizes)[None]
    w = policy.log_weights(features, actions, 5000, generator)[0]
    return torch.logsumexp(w, -1) - math.log(5000), features


def entropy_table(n_draws: int = 16) -> None:
    print("\n∇H(π') in μ, S = 16: missed (norm of bias over norm of the truth); spread\n")
    print("| sizes | valid mass | conditionals | π̂, N = 4 | counts | pathwise, Σ_d H |\n|---|---|---|---|---|---|")
    for sizes, scale, fraction in (((3,) * 3, 0.5, 0.6), ((3,) * 4, 0.5, 0.5), ((4,) * 4, 0.5, 0.3)):
        policy, mean = make(sizes, scale, 1.0)
        generator = torch.Generator().manual_seed(2)
        allowed = torch.rand(math.prod(sizes), generator=generator) < fraction
        log_prob, one = log_probs(policy, mean, generator)
        restricted = log_prob[allowed].log_softmax(0)
        truth = slopes(-(restricted.exp() * restricted), one)[0]
        features = copies(policy, mean)
        sample = policy.sample(features, n_draws, generator)
        flat = to_flat(sample.action, sizes)
        valid = allowed[flat]
        log_w = policy.score_surrogate(features, sample)
        policy.n_latents = 4
        known = {
            "conditionals": log_w.detach(),
            "estimates": policy.log_prob(features, Sample(sample.action), generator).detach(),
            "counts": rejection.count_log_prob(rejection.same_action(flat.unsqueeze(-1), valid), valid).double(),
        }
        found = [slopes(rejection.entropy_weights(x, valid).double() * log_w, features) for x in known.values()]
        found.append(slopes(policy.flow.entropy(*features, n_draws, generator).mean(1), features))
        enough = valid.sum(-1) >= 2
        cells = [
            f"{float((x[enough].mean(0) - truth).norm() / truth.norm()):.2f}; {spread(x[enough]):.2g}" for x in found
        ]
        mass = float(log_prob.detach()[allowed].exp().sum())
        print(f"| {' '.join(map(str, sizes))} | {mass:.2f} | " + " | ".join(cells) + " |")


def draws_table() -> None:
    print(
        "\nspread of the leave-one-out gradient and of the entropy's, D = 3, K = 9, random returns, half of A valid\n"
    )
    print("| S = M | policy gradient | ∇H(π') |\n|---|---|---|")
    policy, mean = make((9,) * 3, 1.0, 1.0)
    generator = torch.Generator().manual_seed(3)
    returns = torch.randn(9**3, generator=generator, dtype=torch.float64)
    allowed = torch.rand(9**3, generator=generator) < 0.5
    for S in (2, 4, 8, 16, 32, 64):
        features = copies(policy, mean)
        sample = policy.sample(features, S, generator)
        flat, log_w = to_flat(sample.action, policy.sizes), policy.score_surrogate(features, sample)
        valid = allowed[flat]
        chosen = rejection._pick(valid, generator)
        executed = nn.functional.one_hot(chosen, S).double()
        weights = rejection.correction_weights(executed, valid, valid.sum(-1), valid.sum(-1), "leave_one_out")
        advantage = returns[flat.gather(1, chosen[:, None])]
        entropy = rejection.entropy_weights(log_w.detach(), valid).double()
        enough = valid.sum(-1) >= 2
        cells = [spread(slopes(w * log_w, features)[enough]) for w in (advantage * weights, entropy)]
        print(f"| {S} | " + " | ".join(f"{x:.3g}" for x in cells) + " |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    score_table()
    entropy_table()
    draws_table()
