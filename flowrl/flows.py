"""Bijections of the flow policy (paper, sections 2 and 3.1; B.2): the latent flow's layers, their composition, the soft
threshold.

Every bijection maps x ↦ (y, ladj) with ladj = log|det ∂y/∂x|, and back by `inverse`, whose ladj is that of the inverse.
x: (B, S, dim), S samples in each of B states. What a layer takes from the state is computed once a state, however many
samples there are: `condition` turns features (B, C) into a shift of each layer's hidden units, (B, 1, hidden).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, softplus

LOG_SCALE_BOUND = 2.0  # |log s| of every scale stays below it
COMPONENTS = 4  # M, logistics in a mixture
SPREAD = 0.5  # their locations to begin with lie evenly in ±SPREAD: equal ones would stay equal
# |t|, |logit π|, |μ|, |log s| of a mixture's coupling stay below these: no slope so flat, no shift so large that
# float32 loses what went in, whatever the weights
MIXTURE_BOUNDS = (10.0, 3.0, 2.0, 1.0)
BISECTIONS = 20  # of a mixture's quantile: to 2⁻²¹ of the first bracket, which a Newton step then squares


def _bounded(raw: Tensor, bound: float = LOG_SCALE_BOUND) -> Tensor:
    """In ±bound, by default a log scale's, and about `raw` where that is small."""
    return bound * torch.tanh(raw / bound)


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
    """y₂ = x₂ exp(l(x₁, s)) + t(x₁, s), y₁ = x₁, with |l| < LOG_SCALE_BOUND: ladj = Σ l (the paper's latent flow).

    >>> layer, shift = AffineCoupling(dim=6, hidden=8, swap=False), torch.randn(3, 1, 8)
    >>> x = torch.randn(3, 5, 6)  # 5 samples in each of 3 states
    >>> y, ladj = layer(x, shift)
    >>> torch.equal(y, x), ladj.shape  # the identity, to begin with
    (True, torch.Size([3, 5]))
    """

    outputs_per_input = 2

    def _scale_and_shift(self, kept: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        raw, translation = self._parameters_of(kept, shift).chunk(2, dim=-1)
        return _bounded(raw), translation

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(x)
        log_scale, translation = self._scale_and_shift(kept, shift)
        return self._join(kept, torch.addcmul(translation, changed, log_scale.exp())), log_scale.sum(-1)

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(y)
        log_scale, translation = self._scale_and_shift(kept, shift)
        return self._join(kept, (changed - translation) * (-log_scale).exp()), -log_scale.sum(-1)


class AutoregressiveLayer(nn.Module):
    """y_i = x_i exp(l_i(y_<i, s)) + t_i(y_<i, s), |l| < LOG_SCALE_BOUND: ladj = Σ l (MAF, Papamakarios et al. 2017).

    The state shifts the hidden units, of which the j-th reads the first ⌊j dim / hidden⌋ entries (MADE, Germain et al.
    2015), so `inverse` is one pass. `forward` goes entry by entry; no hidden unit is computed twice. This way round,
    because an update draws S latents a state without gradients, but differentiates the density of all of them: dim
    steps take about three times as long as one pass without gradients, four times with them (S = 64, dim = 24).
    """

    reads: Tensor  # (hidden, dim) bool
    writes: Tensor  # (2 dim, hidden) bool

    def __init__(self, dim: int, hidden: int, swap: bool):
        super().__init__()
        self.swap = swap  # the last entry comes first
        entry, n_read = torch.arange(dim), torch.arange(hidden) * dim // hidden
        self.units = [int((n_read <= i).sum()) for i in range(dim)]  # y_i reads the hidden units before this one
        self.register_buffer("reads", entry < n_read[:, None], persistent=False)
        self.register_buffer("writes", (n_read <= entry[:, None]).repeat(2, 1), persistent=False)
        self.read = nn.Linear(dim, hidden, bias=False)
        self.write = nn.Linear(hidden, 2 * dim)
        nn.init.zeros_(self.write.weight)  # the identity, to begin with
        nn.init.zeros_(self.write.bias)

    def _ordered(self, x: Tensor) -> Tensor:
        return x.flip(-1) if self.swap else x

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        shape, dim = x.shape, x.shape[-1]
        write, bias = self.write.weight.unflatten(0, (2, dim)), self.write.bias.view(2, dim, 1)
        shift = shift.expand(*shape[:-1], -1).flatten(0, -2).T.contiguous()
        x = self._ordered(x).flatten(0, -2).T.contiguous()  # (dim, samples): entry by entry without strides
        y, hidden, log_scales = x[:0], x[:0], []
        for i, n in enumerate(self.units):
            new = slice(len(hidden), n)  # units that y_<i complete
            hidden = torch.cat((hidden, torch.addmm(shift[new], self.read.weight[new, :i], y).relu_()))
            raw, translation = torch.addmm(bias[:, i], write[:, i, :n], hidden).split(1)
            log_scales.append(_bounded(raw))
            y = torch.cat((y, torch.addcmul(translation, x[i], log_scales[i].exp())))
        return self._ordered(y.T.reshape(shape)), torch.cat(log_scales).sum(0).view(shape[:-1])

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        y = self._ordered(y)
        hidden = (linear(y, self.read.weight * self.reads) + shift).relu_()
        raw, translation = linear(hidden, self.write.weight * self.writes, self.write.bias).chunk(2, dim=-1)
        log_scale = _bounded(raw)
        return self._ordered((y - translation) * (-log_scale).exp()), -log_scale.sum(-1)


class Mixture(NamedTuple):
    """F(y) = Σ_m π_m σ((y − μ_m) / s_m), M logistics for each entry; three tensors (M, …)."""

    log_weight: Tensor  # log π_m
    location: Tensor  # μ_m
    log_width: Tensor  # log s_m


def mixture_logit(y: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """G(y) = logit F(y) and log G′(y) = log F′ − log F − log(1 − F), all in log space: y (…) → two (…).

    >>> one = Mixture(*torch.zeros(3, 1))  # a single logistic, whose logit is the identity
    >>> mixture_logit(torch.tensor(1.5), one)[0]
    tensor(1.5000)
    """
    log_weight, location, log_width = mixture
    a = (y - location) * (-log_width).exp()
    below = log_weight + logsigmoid(a)
    above = below - a  # σ(−a) = σ(a) exp(−a)
    log_cdf, log_tail = torch.logsumexp(below, 0), torch.logsumexp(above, 0)
    log_density = torch.logsumexp(below + above - log_weight - log_width, 0)
    return log_cdf - log_tail, log_density - log_cdf - log_tail


def mixture_quantile(logit: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """The y with G(y) = logit, and log G′(y): (…) → two (…); differentiable in the logit and in the mixture.

    Bisection and one Newton step find it. A second step, −(G(y) − logit) / G′(y) with y and G′ held fixed, has the
    gradients of the implicit function; they are all that is kept of it.

    >>> two = Mixture(torch.tensor([0.5, 0.5]).log(), torch.tensor([-2.0, 2.0]), torch.zeros(2))
    >>> y, _ = mixture_quantile(torch.tensor(1.0), two)
    >>> round(float(mixture_logit(y, two)[0]), 4)
    1.0
    """
    with torch.no_grad():
        log_weight, location, log_width = mixture
        ends = location + logit * log_width.exp()  # where each component alone would be: the root is between
        y, half = (ends.amax(0) + ends.amin(0)) / 2, (ends.amax(0) - ends.amin(0)) / 2
        side = 1 - 2 * (logit > 0).to(logit.dtype)  # of F and 1 − F the smaller, which keeps its digits
        weight, slope, tail = log_weight.exp(), side * (-log_width).exp(), torch.sigmoid(-logit.abs())
        for _ in range(BISECTIONS):
            half = half / 2
            y = y + half * side * (tail - (weight * torch.sigmoid((y - location) * slope)).sum(0)).sign()
        value, log_slope = mixture_logit(y, mixture)
        step = (value - logit) * (-log_slope).exp()
        half = torch.where(tail > torch.finfo(tail.dtype).tiny, half, torch.inf)  # a tail that underflowed led nowhere
        y = y - step.clamp(-half, half)  # between far components G is flat and rounding would throw y out
    value, log_slope = mixture_logit(y, mixture)
    miss = value - logit
    y = y - (miss - miss.detach()) * (-log_slope.detach()).exp()
    return y, mixture_logit(y, mixture)[1]


class MixtureCDFCoupling(Coupling):
    """x₂ = (G(y₂) − t) exp(−l), x₁ = y₁, G the logit of a mixture's CDF: l, t, π, μ, s of (y₁, state).

    Flow++ (Ho et al. 2019): y₂ may have M modes. Densities need `inverse`, in closed form; `forward`, which samples,
    solves for y₂. To begin with the components differ (SPREAD), which leaves it within 0.07 of the identity. Everything
    is bounded (MIXTURE_BOUNDS): with weights of N(0, 1) two layers are finite and invert each other within 0.1 in
    float32 (tested).
    """

    outputs_per_input = 2 + 3 * COMPONENTS

    def __init__(self, dim: int, hidden: int, swap: bool):
        super().__init__(dim, hidden, swap)
        location = self.write.bias.data.view(self.outputs_per_input, -1)[2 + COMPONENTS : 2 + 2 * COMPONENTS]
        bound = MIXTURE_BOUNDS[2]
        location.copy_(bound * torch.atanh(torch.linspace(-SPREAD, SPREAD, COMPONENTS) / bound)[:, None])

    def _scale_shift_mixture(self, kept: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Mixture]:
        raw = self._parameters_of(kept, shift).unflatten(-1, (self.outputs_per_input, -1)).movedim(-2, 0).contiguous()
        parts = zip((raw[1], *raw[2:].chunk(3)), MIXTURE_BOUNDS, strict=True)
        translation, logits, location, log_width = (_bounded(part, bound) for part, bound in parts)
        return _bounded(raw[0]), translation, Mixture(torch.log_softmax(logits, 0), location, log_width)

    def forward(self, x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(x)
        log_scale, translation, mixture = self._scale_shift_mixture(kept, shift)
        y, log_slope = mixture_quantile(torch.addcmul(translation, changed, log_scale.exp()), mixture)
        return self._join(kept, y), (log_scale - log_slope).sum(-1)

    def inverse(self, y: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._split(y)
        log_scale, translation, mixture = self._scale_shift_mixture(kept, shift)
        logit, log_slope = mixture_logit(changed, mixture)
        return self._join(kept, (logit - translation) * (-log_scale).exp()), (log_slope - log_scale).sum(-1)


COUPLINGS = {
    "additive": AdditiveCoupling,
    "affine": AffineCoupling,
    "autoregressive": AutoregressiveLayer,
    "mixture": MixtureCDFCoupling,
}
Layer = AdditiveCoupling | AffineCoupling | AutoregressiveLayer | MixtureCDFCoupling


class Flow(nn.Module):
    """F_w = f_K ∘ … ∘ f_1; layers take turns over the halves, or over the entries' order; no layers: the identity.

    kind: one of COUPLINGS, else ValueError; features: width of what conditions it. `condition` must come first, so that
    sampling and densities share it.

    >>> flow = Flow("affine", n_layers=2, dim=6, features=4, hidden=8)
    >>> shifts = flow.condition(torch.randn(3, 4))  # of 3 states
    >>> v, ladj = flow(torch.randn(3, 5, 6), shifts)  # 5 samples in each
    >>> v.shape, ladj.shape
    (torch.Size([3, 5, 6]), torch.Size([3, 5]))
    >>> z, ladj_back = flow.inverse(v, shifts)
    """

    layers: Sequence[Layer]

    def __init__(self, kind: str, n_layers: int, dim: int, features: int, hidden: int):
        super().__init__()
        if kind not in COUPLINGS:
            raise ValueError(f"unknown coupling {kind!r}; choose one of: {', '.join(COUPLINGS)}")
        layers = [COUPLINGS[kind](dim, hidden, swap=i % 2 == 1) for i in range(n_layers)]
        self.register_module("layers", nn.ModuleList(layers))
        self.context = nn.Linear(features, n_layers * hidden) if n_layers else None

    def condition(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (…, C) → one shift (…, 1, hidden) a layer."""
        if self.context is None:
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

    >>> u = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])  # D = 2, K = 3
    >>> v, ladj, ties = soft_threshold(u, torch.tensor([0, 2]))
    >>> v.argmax(-1)
    tensor([0, 2])
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

    >>> u, action = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0])
    >>> torch.allclose(soft_threshold_inverse(soft_threshold(u, action)[0], action)[0], u, atol=1e-5)
    True
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
