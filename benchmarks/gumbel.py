"""How far the Gumbel flow's estimates spread, and what its entropies are worth: python -m benchmarks.gumbel (minutes).

Untrained flows with random parameters, one state, float64. First table: trace of the covariance of ∇_μ log π(a|s) over
the draws, against the floor, that of the exact score. Second: gradients of the entropy of π' in μ. Third: the
policy gradient with the leave-one-out correction against the number of draws S, all of which it uses.
"""

import math

import torch
from torch import Tensor, nn

from flowrl import rejection
from flowrl.beyond.gumbel import GumbelFlowPolicy
from flowrl.policies import Sample, to_digits, to_flat
from flowrl.truth.gumbel import copies, latent_spreads, one_state, pathwise_spread, slopes, spread

MANY = 256  # truncated draws that stand for all of them
ROWS = 1000  # independent copies of the state


def score_table(n_draws: int = 64) -> None:
    print("\nspread of the score, D = 9, K = 3, one coupling (t spreads over 1.5 nats), trace over 27 coordinates\n")
    print(
        "| scale of μ | floor | latent | rb, S = 64 | pathwise, N = 1 | N = 4 | N = 16 |\n|---|---|---|---|---|---|---|"
    )
    for scale in (0, 1, 2, 4):
        policy, mean = one_state((3,) * 9, scale, 1.5)
        generator = torch.Generator().manual_seed(1)
        floor = pathwise_spread(policy, mean, MANY, ROWS // 2, generator)
        latent = latent_spreads(policy, mean, n_draws, ROWS, generator)
        row = floor, *latent, *(pathwise_spread(policy, mean, n, ROWS, generator) for n in (1, 4, 16))
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
        policy, mean = one_state(sizes, scale, 1.0)
        generator = torch.Generator().manual_seed(2)
        allowed = torch.rand(math.prod(sizes), generator=generator) < fraction
        log_prob, one = log_probs(policy, mean, generator)
        restricted = log_prob[allowed].log_softmax(0)
        truth = slopes(-(restricted.exp() * restricted), one)[0]
        features = copies(policy, mean, ROWS)
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
    policy, mean = one_state((9,) * 3, 1.0, 1.0)
    generator = torch.Generator().manual_seed(3)
    returns = torch.randn(9**3, generator=generator, dtype=torch.float64)
    allowed = torch.rand(9**3, generator=generator) < 0.5
    for S in (2, 4, 8, 16, 32, 64):
        features = copies(policy, mean, ROWS)
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
