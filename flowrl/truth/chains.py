"""Ground truth for `flowrl.beyond.chains`: a factored policy's chains as matrices over valid actions, nothing drawn.

The noise of one dimension of a factored policy tells nothing of the others', so redrawing makes the *actions* a Markov
chain: from a, redraw the dimensions in S as b_S ~ Π_{d∈S} π_d and go there if that is valid. One sweep of `Chains` is a
product of such matrices, averaged over its random orders. So the law after any number of sweeps, and what the policy
gradient expects under it, are exact.
"""

from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """A factored policy and its valid actions in one state."""

    log_prob: Tensor  # (D, K) float64, log π_d
    actions: Tensor  # (V, D) int64, the valid ones

    @property
    def log_pi(self) -> Tensor:
        """log π(a) of the valid actions, (V,)."""
        return self.log_prob[torch.arange(len(self.log_prob)), self.actions].sum(-1)

    @property
    def restricted(self) -> Tensor:
        """π'(a) ∝ Π_d π_d(a_d) of the valid actions, (V,)."""
        return torch.softmax(self.log_pi, 0)

    @property
    def score(self) -> Tensor:
        """∇log π(a) in the logits, (V, D K)."""
        one_hot = torch.nn.functional.one_hot(self.actions, self.log_prob.shape[1]).to(self.log_prob.dtype)
        return (one_hot - self.log_prob.exp()).flatten(1)


def redraw(problem: Problem, dims: tuple[int, ...]) -> Tensor:
    """P(a → b) where these dimensions are redrawn once: (V, V)."""
    log_prob, actions = problem
    others = [d for d in range(len(log_prob)) if d not in dims]
    reached = (actions[:, None, others] == actions[None, :, others]).all(-1)
    chance = log_prob[list(dims), actions[:, list(dims)]].sum(-1).exp() * reached
    return chance + torch.diag(1 - chance.sum(1))  # refused: stay


def orders(D: int) -> list[tuple[float, list[tuple[int, ...]]]]:
    """What a sweep may redraw, one block after the other, and with what chance."""
    if D == 1:
        return [(1.0, [(0,)])]
    together: dict[int, float] = {}
    for heads in range(D + 1):  # coins before the first tail, of D
        size = min(D, 2 + heads)
        together[size] = together.get(size, 0.0) + 0.5 ** min(heads + 1, D)
    singles, found = list(permutations(range(D))), []
    for size, chance in together.items():
        blocks = list(combinations(range(D), size))
        share = chance / len(blocks) / len(singles)
        found += [(share, [(d,) for d in order] + [block]) for order in singles for block in blocks]
    return found


def sweeps_by_order(problem: Problem) -> list[tuple[float, Tensor]]:
    """The matrix (V, V) of a sweep in each order that it may take, and that order's chance."""
    matrices, found = {}, []
    for chance, blocks in orders(len(problem.log_prob)):
        whole = torch.eye(len(problem.actions), dtype=problem.log_prob.dtype)
        for block in blocks:
            if block not in matrices:
                matrices[block] = redraw(problem, block)
            whole = whole @ matrices[block]
        found.append((chance, whole))
    return found


def law_after(problem: Problem, start: Tensor, n: int) -> Tensor:
    """Laws (n + 1, V) after 0 … n sweeps from a law (V,)."""
    sweep = sum(chance * whole for chance, whole in sweeps_by_order(problem))
    laws = [start]
    for _ in range(n):
        laws.append(laws[-1] @ sweep)
    return torch.stack(laws)


def total_variation(laws: Tensor, law: Tensor) -> Tensor:
    """½ Σ|p − q|: (…, V), (V,) → (…)."""
    return 0.5 * (laws - law).abs().sum(-1)


def joint_after(problem: Problem, start: Tensor, n: int) -> Tensor:
    """P(a_1, a_2) of two chains of a state after n sweeps from the same valid action, drawn from `start`: (V, V).

    They share the order of what is redrawn, and where they began.
    """
    joint, ways = torch.diag(start), sweeps_by_order(problem)
    for _ in range(n):
        joint = torch.stack([chance * whole.T @ joint @ whole for chance, whole in ways]).sum(0)
    return joint


def gradient(problem: Problem, joint: Tensor, returns: Tensor) -> Tensor:
    """E[Q(a_1) (∇log π(a_1) − ∇log π(a_2))] in the logits, (D K,): what leave-one-out expects of chains.

    With joint = π' π'ᵀ, that of independent draws from π', it is the exact gradient of E_π'[Q] (Theorem 1).
    """
    return (joint.sum(1) * returns) @ problem.score - (returns @ joint) @ problem.score


def bonus(problem: Problem, law: Tensor) -> Tensor:
    """E[∇log π(a)] in the logits, (D K,): what the mean over chains of this law expects; of π' it is ∇log Z."""
    return law @ problem.score


def entropy_gradient(problem: Problem, joint: Tensor) -> Tensor:
    """−E[sample covariance of log π and ∇log π over chains], (D K,); of independent draws from π' it is ∇H(π')."""
    log_pi, own = problem.log_pi, joint.sum(1)
    return -((own * log_pi) @ problem.score - (log_pi @ joint) @ problem.score)
