"""Ground truth for the tests: quadrature of argmax probabilities, and the statistics that compare samples with it.

Nothing here calls what it checks, but for a policy's latent density, which tests/test_policies.py checks first, against
autograd's Jacobian.
"""

import math

import numpy as np
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import logsigmoid, softplus

CHI_SQUARE_P = 1e-4  # least p-value accepted, seeds fixed


def gaussian_argmax_log_probs(mean: Tensor, scale: Tensor) -> Tensor:
    """log P(argmax_k x_k = i), x_k ~ N(mean_k, scale_k²): (K,) float64 → (K,), differentiable.

    ∫ N(x; μ_i, σ_i) Π_{j≠i} Φ((x − μ_j)/σ_j) dx by the trapezoidal rule, which converges exponentially here.
    """
    reach = 12 * float(scale.detach().max())
    low, high = float(mean.detach().min()) - reach, float(mean.detach().max()) + reach
    x = torch.linspace(low, high, 4001, dtype=torch.float64)[:, None]
    below = torch.special.log_ndtr((x - mean) / scale)  # (X, K)
    density = Normal(mean, scale).log_prob(x)
    return torch.logsumexp(density + below.sum(-1, keepdim=True) - below, 0) + torch.log(x[1, 0] - x[0, 0])


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
    """log ∫ p(v) 1[argmax v = i] dv for i = 1..K: log_density (X, K) → (X,) float64; (K,), differentiable."""
    grids = (region_grid(i, n_categories, nodes) for i in range(n_categories))
    return torch.stack([torch.logsumexp(log_density(v) + log_weight, 0) for v, log_weight in grids])


def gradient(scalar: Tensor, parameters) -> Tensor:
    """d scalar / d parameters as one vector, zero where it does not depend on them."""
    parameters = list(parameters)
    grads = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def z_scores(samples: Tensor, truth: Tensor | float, tolerance: float = 1e-12) -> Tensor:
    """(mean − truth) / standard error over the first axis, after `tolerance`, the error of the truth itself."""
    error = ((samples.mean(0) - truth).abs() - tolerance).clamp_min(0)
    spread = samples.std(0) / math.sqrt(len(samples))
    return torch.where(error == 0, 0.0, error / spread)


def chi_square_p(observed: Tensor, probabilities: Tensor) -> float:
    """p-value of counts (n,) under probabilities (n,); categories expected fewer than five times are pooled.

    0 where something of probability 0 was seen.
    """
    observed, probabilities = observed.double(), probabilities.double()
    if (observed[probabilities == 0] > 0).any():
        return 0.0
    expected = observed.sum() * probabilities / probabilities.sum()
    rare = expected < 5
    observed = torch.cat((observed[~rare], observed[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    kept = expected > 0
    return float(scipy.stats.chisquare(observed[kept], expected[kept], sum_check=False).pvalue)


def randomise(module: torch.nn.Module, seed: int, std: float = 0.5) -> torch.nn.Module:
    """Every parameter drawn from N(0, std²): what starts at zero must not hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module
