"""Estimators of log π(a|s) from log weights (paper, sections 2, 3.1, 3.2; Table A.1; B.4). Pure functions.

A log weight is w_n = log p(v_n|s) − log q(v_n|a, s) with v_n ~ q(·|a, s), the last axis of `w` (…, N) runs over n. All
is done in log space. Draw by draw ELBO ≤ IWAE ≤ CUBO; the bounds on log π hold for expectations (ELBO, IWAE below) and,
for CUBO, for N → ∞ only: its finite-N estimate is biased low.
"""

import math

import torch
from torch import Tensor, nn


def elbo(w: Tensor) -> Tensor:
    """l̂ = (1/N) Σ w_n (Eq 5), in nats: (…, N) → (…). A lower bound in expectation.

    >>> elbo(torch.tensor([0.0, 2.0]))
    tensor(1.)
    """
    return w.mean(-1)


def cubo(w: Tensor) -> Tensor:
    """l̂ᵘ = ½ log (1/N) Σ exp(2 w_n) (Eq 6), in nats: (…, N) → (…). An upper bound as N → ∞.

    >>> cubo(torch.tensor([0.0, 2.0]))
    tensor(1.6625)
    """
    return 0.5 * (torch.logsumexp(2 * w, -1) - math.log(w.shape[-1]))


def iwae(w: Tensor) -> Tensor:
    """log (1/N) Σ exp(w_n) (Burda et al. 2016; not in the paper), in nats: (…, N) → (…). A tighter lower bound.

    >>> iwae(torch.tensor([0.0, 2.0]))
    tensor(1.4338)
    """
    return torch.logsumexp(w, -1) - math.log(w.shape[-1])


def sandwich(w: Tensor, alpha: Tensor | float) -> Tensor:
    """α l̂ + (1 − α) l̂ᵘ (section 3.2), in nats: w (…, N), α in [0, 1] broadcast against (…) → (…).

    >>> sandwich(torch.tensor([0.0, 2.0]), alpha=0.5)
    tensor(1.3313)
    """
    return torch.lerp(cubo(w), elbo(w), torch.as_tensor(alpha, dtype=w.dtype, device=w.device))


def cis_weights(w: Tensor) -> Tensor:
    """Self-normalised weights exp(w_n) / Σ exp(w_m) of conditional importance sampling: (…, N) → (…, N).

    With one of the N latents the one that produced the action (an exact draw from p(v|a, s)) and the rest from a q
    fixed before it, Σ_n weight_n ∇log p(v_n|s) is unbiased for ∇log π(a|s).

    >>> cis_weights(torch.tensor([0.0, 2.0]))
    tensor([0.1192, 0.8808])
    """
    return torch.softmax(w, -1)


class Alpha(nn.Module):
    """The sandwich's α ∈ [0, 1] (Table A.1): `static` ½, `trainable` one scalar, `adaptive` a network of both bounds.

    Trained by the policy gradient with all the other parameters of the policy.

    >>> w = torch.randn(5, 4)
    >>> Alpha("adaptive")(elbo(w), cubo(w)).tolist()  # before training
    [0.5, 0.5, 0.5, 0.5, 0.5]
    """

    def __init__(self, kind: str, hidden: int = 16):
        super().__init__()
        self.kind = kind
        if kind == "trainable":
            self.logit = nn.Parameter(torch.zeros(()))
        elif kind == "adaptive":
            first, last = nn.Linear(2, hidden), nn.Linear(hidden, 1)
            nn.init.zeros_(last.weight)  # α = ½, to begin with
            nn.init.zeros_(last.bias)
            self.net = nn.Sequential(first, nn.Tanh(), last)

    def forward(self, lower: Tensor, upper: Tensor) -> Tensor | float:
        """ELBO (…), CUBO (…) → α, (…) or a scalar. The network sees the bounds as constants, in units of ten nats."""
        if self.kind == "static":
            return 0.5
        if self.kind == "trainable":
            return self.logit.sigmoid()
        bounds = torch.stack((lower, upper), -1).detach() / 10
        return self.net(bounds).squeeze(-1).sigmoid()
