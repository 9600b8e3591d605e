"""Ground truth for the lines (`envs.line`) at any |A|: sums over all actions, neighbour by neighbour.

A policy without memory serves the incident of two neighbours in mode m with probability
q_m = π(a_d, a_{d+1} at the levels of m), whatever else it does: its return is Σ_d E[services of a chain with q], and
needs the joint law of neighbours only. Of π' ∝ Π_d w_d(a_d) on the valid actions (every factored policy after
rejection, and the uniform one) sum-product gives it, in D K² operations. Optimum: as in `exact.best_joint`, no q serves
more than horizon / M a pair, since Σ_m q_m ≤ 1; a policy that draws m evenly and sends all resources to the levels of
m, always valid, meets it in every pair at once: (D − 1) horizon / M.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..envs.line import Line
from .exact import services

STARTS = 8  # random products of marginals from which the search for a best one ascends, all at once


def neighbours(line: str | Line, weights: Tensor) -> Tensor:
    """P(a_d = i, a_{d+1} = j) under π' ∝ Π_d w_d(a_d) on the valid actions: (…, C, D, K) ≥ 0 → (…, C, D − 1, K, K).

    float64, differentiable. Sum-product: what comes from the left times the pair's own weight times what comes from
    the right.
    """
    valid, weights = _valid(line), weights.double()
    left, right = [weights[..., 0, :]], [torch.ones_like(weights[..., 0, :])]
    n_pairs = valid.shape[1]
    for d in range(n_pairs - 1):
        left.append(_scaled((left[-1].unsqueeze(-2) @ valid[:, d]).squeeze(-2) * weights[..., d + 1, :]))
    for d in range(n_pairs - 1, 0, -1):
        right.append(_scaled((valid[:, d] @ (weights[..., d + 1, :] * right[-1]).unsqueeze(-1)).squeeze(-1)))
    left, right = torch.stack(left, -2), torch.stack(right[::-1], -2)
    pairs = left.unsqueeze(-1) * valid * (weights[..., 1:, :] * right).unsqueeze(-2)
    return pairs / pairs.sum((-2, -1), keepdim=True)


def valid_fraction(line: str | Line) -> float:
    """The share of all K^D actions that are valid, averaged over the contexts."""
    valid = _valid(line)
    share = torch.full((len(valid), valid.shape[-1]), 1 / valid.shape[-1], dtype=torch.float64)  # by last level
    for d in range(valid.shape[1]):
        share = (share.unsqueeze(-2) @ valid[:, d]).squeeze(-2) / valid.shape[-1]
    return float(share.sum(-1).mean())


def line_return(line: str | Line, pairs: Tensor) -> Tensor:
    """Exact expected return of a policy without memory from its `neighbours` (…, C, D − 1, K, K) → (…), float64."""
    line = Line.load(line)
    targets = torch.as_tensor(line.targets, device="cpu")  # (C, D, M)
    which = targets[:, :-1] * line.levels + targets[:, 1:]
    q = pairs.double().flatten(-2).gather(-1, which.expand(*pairs.shape[:-2], -1))
    return services(q, line.horizon).sum(-1).mean(-1)


def best_joint(line: str | Line) -> tuple[float, Tensor]:
    """The best policy without memory: its exact return, (D − 1) horizon / M, and its `neighbours` (C, D − 1, K, K)."""
    line = Line.load(line)
    at = torch.nn.functional.one_hot(torch.as_tensor(line.targets, device="cpu"), line.levels).double()  # (C, D, M, K)
    pairs = torch.einsum("cdmi,cdmj->cdij", at[:, :-1], at[:, 1:]) / line.modes
    return (line.resources - 1) * line.horizon / line.modes, pairs


def best_factored(line: str | Line) -> tuple[float, Tensor]:
    """The best product of marginals found, after rejection: its exact return and marginals (C, D, K).

    L-BFGS from STARTS random ones; w = x², so that faces of the simplex are a finite step away.
    """
    line = Line.load(line)
    shape = (STARTS, line.contexts, line.resources, line.levels)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(flat, device="cpu").view(shape).requires_grad_()
        total = -line_return(line, neighbours(line, _scaled(x.square()))).sum()
        return total.item(), torch.autograd.grad(total, x)[0].numpy().ravel()

    start = np.random.default_rng(0).normal(size=np.prod(shape))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    weights = _scaled(torch.tensor(found.x, device="cpu").view(shape).square())
    value, best = line_return(line, neighbours(line, weights)).max(0)
    return float(value), weights[best]


def reference(line: str | Line) -> dict[str, float]:
    """Exact returns without memory: `optimal` (joint), `factored` (best found), `uniform_valid`; `valid_fraction`."""
    line = Line.load(line)
    if line.digest not in _REFERENCES:
        ones = torch.ones(line.contexts, line.resources, line.levels)
        _REFERENCES[line.digest] = {
            "optimal": best_joint(line)[0],
            "factored": best_factored(line)[0],
            "uniform_valid": float(line_return(line, neighbours(line, ones))),
            "valid_fraction": valid_fraction(line),
        }
    return dict(_REFERENCES[line.digest])


_REFERENCES: dict[str, dict[str, float]] = {}  # by the line's digest


def _valid(line: str | Line) -> Tensor:
    return torch.as_tensor(Line.load(line).valid, device="cpu").double()


def _scaled(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
