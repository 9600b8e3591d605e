"""Ground truth for policies: log π(a|s), its gradient, and the expected policy gradient of every correction.

log π of a flow policy is the mass that its latent density puts on {argmax v = a} (paper, section 3.1): without
couplings a product over the dimensions of one-dimensional integrals, by quadrature; with couplings an integral over a
region of R^K for one dimension of few categories, else the histogram of many draws, with its standard error.
Quadratures are float64 and differentiable: autograd gives ∇log π. For a tabular π = softmax(logits) every outcome of S
draws is enumerated, so that expectations of the gradient estimates of section 3.2 are exact. Nothing here trains, and
nothing calls the estimators of log π that it serves to check. (Ground truth for environments: `exact`.)
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, softplus

from .. import rejection
from ..policies import Sample, packed, to_flat

MAX_OUTCOMES = 100_000  # enumerated at most
EDGES = (-12.0, -6.0, -3.0, -1.5, 0.0, 1.5, 3.0, 6.0, 12.0)  # in units of σ: pieces over which a Gaussian is smooth

# ------------------------------------------------------------------------------------- log π(a|s) by quadrature


def gaussian_argmax_log_probs(mean: Tensor, scale: Tensor) -> Tensor:
    """log P(argmax_k x_k = i), x_k ~ N(mean_k, scale_k²) independent: (…, K) → (…, K) float64, differentiable.

    log ∫ N(x; μ_i, σ_i²) Π_{j≠i} Φ((x − μ_j)/σ_j) dx, by Gauss-Legendre on pieces that end where one of the Gaussians
    bends, so that scales may differ by orders of magnitude: relative error of a probability under 1e-9.
    """
    mean, scale = mean.double(), scale.double()
    x, log_step = _pieces(mean.detach(), scale.detach())
    z = (x[..., None] - mean[..., None, :]) / scale[..., None, :]  # (…, X, K)
    below = torch.special.log_ndtr(z)
    density = -0.5 * z.square() - scale[..., None, :].log() - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(density + below.sum(-1, keepdim=True) - below + log_step[..., None], -2)


def _pieces(mean: Tensor, scale: Tensor, n_nodes: int = 16, n_even: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and log weights (…, X): Gauss-Legendre between all the μ_k + c σ_k, c in EDGES, and even steps."""
    edges = (mean[..., None] + scale[..., None] * mean.new_tensor(EDGES)).flatten(-2)
    low, high = edges.amin(-1, keepdim=True), edges.amax(-1, keepdim=True)
    even = low + (high - low) * torch.linspace(0, 1, n_even + 1, dtype=mean.dtype, device=mean.device)
    edges = torch.cat((edges, even), -1).sort(-1).values
    node, weight = (mean.new_tensor(x) for x in np.polynomial.legendre.leggauss(n_nodes))
    width = edges.diff(dim=-1).unsqueeze(-1)
    x = edges[..., :-1, None] + width * (node + 1) / 2
    return x.flatten(-2), (width * weight / 2).log().flatten(-2)


def marginal_log_probs(policy, features) -> Tensor:
    """log π_d(k|s) (B, D, K) float64 of a `FlowPolicy` without couplings, whose dimensions are independent.

    features: of B states, as `policy.features` gives them; differentiable in them. A padded category has −∞. Raises
    ValueError where there are couplings.
    """
    if policy.flow.layers:
        raise ValueError("a flow with couplings has no independent dimensions; use log_probs or histogram_log_probs")
    mean = features.mean.double().flatten(1).unflatten(-1, policy.shape)
    scale = torch.ones_like(mean)
    if features.log_scale is not None:
        scale = features.log_scale.double().exp().flatten(1).unflatten(-1, policy.shape)
    exact = (gaussian_argmax_log_probs(mean[:, d, :n], scale[:, d, :n]) for d, n in enumerate(policy.sizes))
    return torch.stack([pad(x, (0, policy.shape[1] - x.shape[-1]), value=-math.inf) for x in exact], 1)


def log_probs(policy, features, nodes: int = 64) -> Tensor:
    """log π(·|s) of every action in mixed-radix order, (B, |A|) float64, differentiable in the features.

    Without couplings log π(a|s) = Σ_d log π_d(a_d|s), exact to about nine digits. With couplings for one dimension of
    two or three categories, by `region_log_probs` with that many nodes an axis. Else ValueError.
    """
    if not policy.flow.layers:
        marginal = marginal_log_probs(policy, features)
        joint = marginal[:, 0, : policy.sizes[0]]
        for d, size in enumerate(policy.sizes[1:], 1):
            joint = (joint.unsqueeze(-1) + marginal[:, d, None, :size]).flatten(1)
        return joint
    if len(policy.sizes) > 1 or policy.sizes[0] > 3:
        raise ValueError(f"no quadrature for a coupled flow over sizes {policy.sizes}; use histogram_log_probs")

    def log_density(v: Tensor) -> Tensor:
        latent = v.to(features.mean.dtype)[None, :, None].expand(len(features.mean), -1, -1, -1)
        return policy.latent_log_prob(features, latent).double()

    return region_log_probs(log_density, policy.sizes[0], nodes)


def region_grid(i: int, n_categories: int, nodes: int = 48, reach: float = 8.0) -> tuple[Tensor, Tensor]:
    """Points v (X, K) of {argmax v = i} and log weights (X,): ∫ f(v) dv over it is Σ exp(log weight) f(v).

    In the coordinates v_i and x_j with v_i − v_j = log(1 + exp x_j) > 0, so that the region's edge is where the grid
    ends: Gauss-Legendre in each. Good to six digits for smooth densities, to about three where they have kinks.
    """
    node, weight = map(torch.tensor, np.polynomial.legendre.leggauss(nodes))
    top, log_top = node * reach, (weight * reach).log()
    low, high = -14.0, 2 * reach
    x = low + (high - low) * (node + 1) / 2
    log_drop = (weight * (high - low) / 2).log() + logsigmoid(x)
    grid = torch.cartesian_prod(top, *[softplus(x)] * (n_categories - 1))
    log_weight = torch.cartesian_prod(log_top, *[log_drop] * (n_categories - 1)).sum(-1)
    v = grid[:, :1] - grid[:, 1:]
    return torch.cat((v[:, :i], grid[:, :1], v[:, i:]), 1), log_weight


def region_log_probs(log_density, n_categories: int, nodes: int = 48) -> Tensor:
    """log ∫ p(v) 1[argmax v = i] dv for i = 1..K: log_density (X, K) → (…, X) float64; (…, K), differentiable."""
    grids = (region_grid(i, n_categories, nodes) for i in range(n_categories))
    return torch.stack([torch.logsumexp(log_density(v) + log_weight, -1) for v, log_weight in grids], -1)


@torch.no_grad()
def histogram_log_probs(policy, features, n: int, generator=None, chunk: int = 50_000) -> tuple[Tensor, Tensor]:
    """log of the frequencies of n draws a state, any policy: (B, |A|) float64, and the standard error of that log.

    The error is √((1 − p̂)/(n p̂)); an action never drawn has −∞ and an infinite error.
    """
    n_actions, counts = math.prod(policy.sizes), []
    for done in range(0, n, chunk):
        flat = to_flat(policy.sample(features, min(chunk, n - done), generator).action, policy.sizes)
        state = torch.arange(len(flat), device=flat.device).unsqueeze(-1)
        counts.append((flat + n_actions * state).flatten().bincount(minlength=len(flat) * n_actions))
    frequency = torch.stack(counts).sum(0).double().view(-1, n_actions) / n
    return frequency.log(), ((1 - frequency) / (n * frequency)).sqrt()


# ------------------------------------------------------------------------------------------------- gradients


def gradient(scalar: Tensor, parameters) -> Tensor:
    """d scalar / d parameters as one vector, zero where it does not depend on them."""
    parameters = list(parameters)
    grads = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def scores(log_prob: Tensor, parameters) -> Tensor:
    """∇log π of each of n actions: log_prob (n,) → (n, number of parameters)."""
    parameters = list(parameters)
    return torch.stack([gradient(one, parameters) for one in log_prob])


def histogram_scores(policy, features, action: Tensor, n: int, generator=None, batches: int = 20) -> tuple:
    """∇log π(a|s) of one action (D,) in one state, any flow policy: the mean of ∇log p(v|s) over the draws v with
    argmax v = a, of n (Fisher's identity), and its standard error from that many batches; both (n parameters,).

    features: of that state, differentiable. ValueError where a batch never draws the action.
    """
    parameters, found = list(policy.parameters()), []
    for _ in range(batches):
        sample = policy.sample(features, n // batches, generator)
        latent = sample.latent[:, (sample.action[0] == action).all(-1)]
        if not latent.shape[1]:
            raise ValueError(f"no draw of {n // batches} is {action.tolist()}; raise n, or lower batches")
        found.append(gradient(policy.latent_log_prob(features, latent).mean(), parameters))
    found = torch.stack(found)
    return found.mean(0), found.std(0) / batches**0.5


def theorem_1_gradient(logits: Tensor, valid: Tensor, q_values: Tensor) -> Tensor:
    """∇_logits Σ_{a∈C} π'(a) Q(a), π' = π/Z on C, the truth of Theorem 1 by autograd: three (K,) → (K,) float64."""
    logits = logits.detach().double().requires_grad_()
    restricted = torch.softmax(logits.masked_fill(~valid, -math.inf), -1)
    return torch.autograd.grad((restricted * q_values.double()).sum(), logits)[0]


def valid_mass_gradient(logits: Tensor, valid: Tensor) -> Tensor:
    """∇_logits log Z, Z = Σ_{b∈C} π(b) (= Σ_C ∇π / Σ_C π of Theorem 1), by autograd: (K,) float64."""
    logits = logits.detach().double().requires_grad_()
    log_mass = torch.logsumexp(logits[valid], 0) - torch.logsumexp(logits, 0)
    return torch.autograd.grad(log_mass, logits)[0]


# ---------------------------------------------------------- every outcome of S draws from a tabular policy, one state


def every_choice(flat: Tensor, valid: Tensor, probability: Tensor, needed: int, n_valid=None, draws=None):
    """All decisions that these draws (B, S), probabilities (B,), can lead to: one of the valid ones, uniformly.

    Returns a `Decision` of O rows and their probabilities (O,), given l ≥ needed; n_valid, draws: where they differ
    from the draws' own count of valid ones and S. The latents name the actions.
    """
    n_valid = valid.sum(-1) if n_valid is None else n_valid
    draws = torch.full_like(n_valid, flat.shape[1]) if draws is None else draws
    row, chosen = (valid & (n_valid >= needed)[:, None]).nonzero(as_tuple=True)
    probability = (probability / valid.sum(-1).clamp_min(1))[row]
    return _decision(flat[row], valid[row], n_valid[row], draws[row], chosen), probability / probability.sum()


def _decision(flat: Tensor, valid: Tensor, n_valid: Tensor, draws: Tensor, chosen: Tensor) -> rejection.Decision:
    action = flat.gather(1, chosen[:, None])
    sample, unseen = Sample(flat.unsqueeze(-1), flat.double().unsqueeze(-1)), torch.empty(len(flat), 0)
    return rejection.Decision(
        unseen, None, sample, valid, n_valid, draws, chosen, action, torch.ones_like(chosen).bool()
    )


def every_sequence(logits: Tensor, valid: Tensor, n_draws: int, needed: int = 1) -> tuple[rejection.Decision, Tensor]:
    """Every sequence of S draws from softmax(logits), with every choice: decisions and probabilities, given l ≥ needed.

    logits, valid: (K,). K^S sequences; ValueError above MAX_OUTCOMES of them.
    """
    _refuse(len(logits) ** n_draws)
    flat = torch.tensor(list(itertools.product(range(len(logits)), repeat=n_draws)))
    probability = torch.softmax(logits.double(), -1)[flat].prod(-1)
    return every_choice(flat, valid[flat], probability, needed)


def every_count(logits: Tensor, valid: Tensor, n_draws: int, needed: int = 1) -> tuple[rejection.Decision, Tensor]:
    """As `every_sequence`, sequences that differ in their order or in which invalid actions occur taken together.

    So S = 64 is within reach: C(S + m − 1, m − 1) outcomes for m − 1 valid actions; ValueError above MAX_OUTCOMES.
    Draws are sorted by action: right for what uses all of them, not for a subset by position (`rejection.at_most`).
    """
    kept = valid.nonzero().flatten()
    if not valid.all():
        kept = torch.cat((kept, (~valid).nonzero()[:1, 0]))  # one invalid action in place of all
    m = len(kept)
    _refuse(math.comb(n_draws + m - 1, m - 1))
    probability = torch.softmax(logits.double(), -1)
    probability = torch.where(valid[kept], probability[kept], probability[~valid].sum())
    bars = np.array(list(itertools.combinations(range(n_draws + m - 1), m - 1)), dtype=np.int64).reshape(-1, m - 1)
    counts = torch.from_numpy(np.diff(bars, prepend=-1, append=n_draws + m - 1, axis=1) - 1)  # stars and bars
    log_ways = math.lgamma(n_draws + 1) - torch.lgamma(counts.double() + 1).sum(-1)
    weight = (log_ways + torch.special.xlogy(counts, probability).sum(-1)).exp()
    flat = torch.repeat_interleave(kept.repeat(len(counts)), counts.flatten()).view(-1, n_draws)
    n_valid = counts[:, valid[kept]].sum(-1)

    row, which = ((counts > 0) & valid[kept] & (n_valid >= needed)[:, None]).nonzero(as_tuple=True)
    chosen = (counts.cumsum(-1) - counts)[row, which]  # the first draw of the executed action
    weight = weight[row] * counts[row, which] / n_valid[row]
    draws = torch.full_like(n_valid, n_draws)
    return _decision(flat[row], valid[flat[row]], n_valid[row], draws[row], chosen), weight / weight.sum()


def _refuse(n_outcomes: int) -> None:
    if n_outcomes > MAX_OUTCOMES:
        raise ValueError(f"{n_outcomes} outcomes; at most {MAX_OUTCOMES} are enumerated: use sampled_gradient")


NEEDED = {"none": 1, "paper": 1, "mean": 1, "leave_one_out": 2}  # valid draws that a correction asks for


def gradient_outcomes(logits: Tensor, valid: Tensor, q_values: Tensor, n_draws: int, correction: str,
                      critic: float = 0.0, needed: int | None = None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Every value that the gradient estimate of section 3.2 can take in one state, with its probability.

    The estimate is (Q(a) − critic) Σ_j u_j ∇_logits log π(a_j), a the executed action, u `correction_weights` of a
    tabular π = softmax(logits) with exact scores. logits, valid (bool), q_values: (K,); correction: none, paper, mean,
    leave_one_out; critic: V(s); needed: given that l ≥ needed (default: as many as the correction needs).
    Returns estimates (O, K) float64, probabilities (O,) summing to one, and l (O,).
    """
    decision, probability = every_count(logits, valid, n_draws, needed or NEEDED.get(correction, 1))
    return _estimates(decision, logits, q_values, correction, critic), probability, decision.n_valid


def _estimates(decision: rejection.Decision, logits: Tensor, q_values: Tensor, correction: str, critic: float):
    executed = rejection.executed_weights(decision).double()
    weights = rejection.correction_weights(
        executed, decision.valid, decision.n_valid.double(), decision.draws.double(), correction
    )
    flat = decision.sample.action[..., 0]
    by_action = weights.new_zeros(len(flat), len(logits)).scatter_add_(1, flat, weights)
    score = torch.eye(len(logits), dtype=torch.float64) - torch.softmax(logits.double(), -1)  # ∇log π, row by action
    return (q_values.double()[decision.action[:, 0]] - critic)[:, None] * (by_action @ score)


def expected_gradient(logits: Tensor, valid: Tensor, q_values: Tensor, n_draws: int, correction: str,
                      critic: float = 0.0, needed: int | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The exact expectation of a correction's gradient estimate, and Theorem 1's gradient: (K,) float64 each.

    Arguments as in `gradient_outcomes`. With critic = Σ π' Q the expectation is a multiple of the truth (paper.md,
    erratum): none 1, paper E[1 − S/l²], mean E[1 − 1/l], leave_one_out 1.
    """
    estimates, probability, _ = gradient_outcomes(logits, valid, q_values, n_draws, correction, critic, needed)
    return probability @ estimates, theorem_1_gradient(logits, valid, q_values)


def sampled_gradient(logits: Tensor, valid: Tensor, q_values: Tensor, n_draws: int, correction: str,
                     critic: float = 0.0, needed: int | None = None, n: int = 100_000,
                     generator=None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and standard error (K,) of n such estimates, those with l < needed left out: where |A|, S are large."""
    flat = torch.multinomial(torch.softmax(logits.double(), -1), n * n_draws, True, generator=generator).view(n, -1)
    flat = flat[valid[flat].sum(-1) >= (needed or NEEDED.get(correction, 1))]
    chosen = torch.multinomial(valid[flat].double(), 1, generator=generator)[:, 0]
    n_valid = valid[flat].sum(-1)
    decision = _decision(flat, valid[flat], n_valid, torch.full_like(n_valid, n_draws), chosen)
    estimates = _estimates(decision, logits, q_values, correction, critic)
    return estimates.mean(0), estimates.std(0) / math.sqrt(len(estimates))


def gradient_batches(policy, oracle, observation: Tensor, q_values: Tensor, critic: float, config, n_batches: int,
                     generator=None) -> Tensor:  # fmt: skip
    """Seeded Monte Carlo of any policy's gradient with rejection: (n_batches, number of parameters).

    Each row is the gradient of mean_b (Q(a_b) − critic) Σ_j u_bj surrogate_bj over the rows of `observation` (B, …),
    through `rejection.decide`, redraws included; `rb` shares over equal actions. q_values: (|A|,), flat; config:
    n_draws, max_draws, enumerate_limit, chains, correction. Mean over rows and their spread / √n_batches: value, error.
    """
    found = []
    for _ in range(n_batches):
        decision, _ = rejection.decide(policy, oracle, observation, config, generator)
        executed = rejection.executed_weights(decision)
        if getattr(policy, "estimator", None) == "rb":
            same = rejection.same_action(packed(decision.sample.action, policy.sizes), decision.valid)
            executed = rejection.shared_weights(decision, same)
        weights = rejection.correction_weights(
            executed.double(), decision.valid, decision.n_valid, decision.draws, config.correction
        )
        surrogate = policy.score_surrogate(policy.features(observation), decision.sample, generator)
        advantage = (q_values[to_flat(decision.action, policy.sizes)] - critic) * decision.sampled
        found.append(gradient(((weights * surrogate).sum(-1) * advantage).mean(), policy.parameters()))
    return torch.stack(found)


# ------------------------------------------------------------------------------------------- entropy from counts


def log_p_hat(n: np.ndarray | int, l: int, half: float = 0.5) -> np.ndarray:
    """log (n − ½)/(l − ½): an action's log probability where n of l valid draws are it; half = 0 plugs n / l in."""
    return np.log((n - half) / (l - half))


def count_entropy_gradient(p: np.ndarray, l: int, half: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """What `rejection.entropy_weights` of log p̂ expect given l valid draws, and the true ∇H(π'), in the logits.

    p: π' of the valid actions, (A,) → (A,) each, by binomial sums; `log_p_hat` at `half`.
    """
    from scipy.stats import binom  # here: it takes long to import

    n = np.arange(1, l + 1)
    f, pmf = log_p_hat(n, l, half), binom.pmf(n, l, p[:, None])  # (A, l)
    alone, square, cross = pmf @ (n * f), pmf @ (n**2 * f), pmf @ (n * (l - n) * f) / (1 - p)
    covariance = alone - (square + p * (cross.sum() - cross)) / l  # E[n_a f(n_a)] − E[n_a Σ_b n_b f(n_b)] / l
    expected = -(covariance - p * covariance.sum()) / (l - 1)  # Σ_a (…)_a (e_a − p)
    entropy = -(p * np.log(p)).sum()
    return expected, -p * (np.log(p) + entropy)
