"""Statistics that compare samples with the ground truth of `flowrl.truth.gradients` (checked in test_gradients.py)."""

import math

import scipy.stats
import torch
from torch import Tensor

CHI_SQUARE_P = 1e-4  # least p-value accepted, seeds fixed


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
