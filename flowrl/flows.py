"""Bijections of the flow policy (paper, sections 2 and 3.1): coupling layers, their composition, the soft threshold.

Every bijection maps x ↦ (y, ladj) with ladj = log|det ∂y/∂x|, and back by `inverse`, whose ladj is that of the inverse.
x: (B, S, dim), S samples in each of B states. What a layer takes from the state is computed once a state, however many
samples there are: `condition` turns features (B, C) into a shift of each layer's hidden units, (B, 1, hidden).
"""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

LOG_SCALE_BOUND = 2.0  # |log s| of an affine coupling stays below it


class Coupling(nn.Module):
    """One half of x sets what happens to the other; the state shifts the hidden units (Dinh et al. 2017)."""

    outputs_per_input = 1

    def __init__(self, dim: int, hidden: int, swap: bool):
        super().__init__()
        half = dim // 2
        self.sizes = [half, dim - half]
        self.swap = swap  # the second half sets the first
        kept, changed = self.sizes[::-1] if swap else self.sizes
        self.read = nn.Linear(kept, hidden, bias=False)
        self.write = nn.Linear(hidden, changed * self.outputs_per_input)
        nn.init.zeros_(self.write.weight)  # the identity, to begin with
        nn.init.zeros_(self.write.bias)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, dim=-1)
        return (second, first) if self.swap else (first, second)

    def _join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, kept) if self.swap else (kept, changed), dim=-1)

    def _parameters_of(self, kept: Tensor, shift: Tensor) -> Tensor:
        return self.write((self.read(kept) + shift).relu_())


class AdditiveCoupling(Coupling):
    """y₂ = x₂ + t(x₁, s), y₁ = x₁: volume-preserving, ladj = 0 (NICE, Dinh et al. 2015)."""

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, float]:
        kept, changed = self._split(x)
        return self._join(kept, changed + self._parameters_of(kept, shift)), 0.0

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, float]:
        kept, changed = self._split(y)
        return self._join(kept, changed - self._parameters_of(kept, shift)), 0.0


class AffineCoupling(Coupling):
    """y₂ = x₂ exp(l(x₁, s)) + t(x₁, s), y₁ = x₁, with |l| < LOG_SCALE_BOUND: ladj = Σ l (the paper's latent flow)."""

    outputs_per_input = 2

    def _scale_and_shift(self, kept: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        raw, translation = self._parameters_of(kept, shift).chunk(2, dim=-1)
        return LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND), translation

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(x)
        log_scale, translation = self._scale_and_shift(kept, shift)
        return self._join(kept, torch.addcmul(translation, changed, log_scale.exp())), log_scale.sum(-1)

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(y)
        log_scale, translation = self._scale_and_shift(kept, shift)
        return self._join(kept, (changed - translation) * (-log_scale).exp()), -log_scale.sum(-1)


COUPLINGS = {"additive": AdditiveCoupling, "affine": AffineCoupling}


class Flow(nn.Module):
    """F_w = f_K ∘ … ∘ f_1 of coupling layers that take turns over the halves; no layers: the identity.

    features: width of what conditions it; `condition` must come first, so that sampling and densities share it.
    """

    def __init__(self, kind: str, n_layers: int, dim: int, features: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(COUPLINGS[kind](dim, hidden, swap=i % 2 == 1) for i in range(n_layers))
        self.context = nn.Linear(features, n_layers * hidden) if n_layers else None

    def condition(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (…, C) → one shift (…, 1, hidden) a layer."""
        if not self.layers:
            return ()
        return self.context(features).unsqueeze(-2).chunk(len(self.layers), dim=-1)

    def forward(self, x: Tensor, shifts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | float]:
        """Base sample z₀ (…, S, dim) → (v (…, S, dim), log|det ∂v/∂z₀| (…, S), or 0.0 where volume is kept)."""
        ladj = 0.0
        for layer, shift in zip(self.layers, shifts, strict=True):
            x, change = layer(x, shift)
            ladj = ladj + change
        return x, ladj

    def inverse(self, y: Tensor, shifts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | float]:
        """v → (z₀, log|det ∂z₀/∂v|)."""
        ladj = 0.0
        for layer, shift in zip(reversed(self.layers), reversed(shifts), strict=True):
            y, change = layer.inverse(y, shift)
            ladj = ladj + change
        return y, ladj


def soft_threshold(u: Tensor, action: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Push u into the region argmax v = a (paper, section 2 and A.3).

    With i = a_d: v_i = u_i; v_j = u_i − log(1 + exp(u_i − u_j)) for j ≠ i; log|det ∂v/∂u| = Σ_{j≠i} log σ(u_i − u_j).
    Where rounding makes v_j = v_i, v_j becomes the next smaller number, so that argmax v = a always.

    u: (…, D, K); action: (…, D) int64; allowed: (D, K) bool, categories that exist (others are left as they are).
    Returns v (…, D, K), ladj (…), ties (…) int64: how many entries rounding had made equal.
    """
    chosen = action.unsqueeze(-1)
    u_i = u.gather(-1, chosen)
    others = torch.ones_like(u, dtype=torch.bool).scatter(-1, chosen, False)
    if allowed is not None:
        others = others & allowed
    gap = u_i - u
    v = u_i - softplus(gap)
    tie = others & (v >= u_i)
    below = u_i + (torch.nextafter(u_i, torch.full_like(u_i, -torch.inf)) - u_i).detach()
    v = torch.where(others, torch.where(tie, below, v), u)
    ladj = (logsigmoid(gap) * others).sum((-2, -1))
    return v, ladj, tie.sum((-2, -1))


def soft_threshold_inverse(v: Tensor, action: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The u that `soft_threshold` sends to v, u_j = v_i − log(exp(v_i − v_j) − 1), and log|det ∂u/∂v| (…).

    An exact tie v_j = v_i, which rounding makes in float32, counts as v_j the next smaller number: finite everywhere.
    Raises nothing: where v_j > v_i there is no such u and the entries are NaN.
    """
    chosen = action.unsqueeze(-1)
    v_i = v.gather(-1, chosen)
    others = torch.ones_like(v, dtype=torch.bool).scatter(-1, chosen, False)
    if allowed is not None:
        others = others & allowed
    drop = torch.where(others, v_i - v, torch.ones_like(v))  # > 0
    drop = torch.where(drop == 0, v_i - torch.nextafter(v_i, torch.full_like(v_i, -torch.inf)), drop)
    log_expm1 = drop + torch.log(-torch.expm1(-drop))
    u = torch.where(others, v_i - log_expm1, v)
    return u, -(logsigmoid(log_expm1) * others).sum((-2, -1))


def flat_parameters(*modules: nn.Module) -> nn.Parameter:
    """One parameter that all the modules' parameters, and their gradients, are views of: one step for all of them.

    Its `grad` stays allocated: set it to zero in place, never to None.
    """
    parameters = list(dict.fromkeys(chain.from_iterable(module.parameters() for module in modules)))
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    at = 0
    for p in parameters:
        p.data = flat.data[at : at + p.numel()].view_as(p)
        p.grad = flat.grad[at : at + p.numel()].view_as(p)
        at += p.numel()
    return flat
