"""Bijections of the flow policy (paper, sections 2 and 3.1; B.2): the latent flow's layers, their composition, the soft
threshold; and the Gumbel flow, whose argmax has exact conditionals.

Every bijection maps x ↦ (y, ladj) with ladj = log|det ∂y/∂x|, and back by `inverse`, whose ladj is that of the inverse.
x: (B, S, dim), S samples in each of B states. What a layer takes from the state is computed once a state, however many
samples there are: `condition` turns features (B, C) into a shift of each layer's hidden units, (B, 1, hidden).
"""

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, softplus

LOG_SCALE_BOUND = 2.0  # |log s| of every scale stays below it
COMPONENTS = 4  # M, logistics in a mixture
SPREAD = 0.5  # their locations to begin with lie evenly in ±SPREAD: equal ones would stay equal
WRITE_STD = 0.3  # of the Gumbel flow's last layers to begin with: from zero, strong entropy would never let it leave
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
    """y₂ = x₂ exp(l(x₁, s)) + t(x₁, s), y₁ = x₁, with |l| < LOG_SCALE_BOUND: ladj = Σ l (the paper's latent flow)."""

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
    """G(y) = logit F(y) and log G′(y) = log F′ − log F − log(1 − F), all in log space: y (…) → two (…)."""
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


class Flow(nn.Module):
    """F_w = f_K ∘ … ∘ f_1; layers take turns over the halves, or over the entries' order; no layers: the identity.

    kind: one of COUPLINGS, else ValueError; features: width of what conditions it. `condition` must come first, so that
    sampling and densities share it.
    """

    def __init__(self, kind: str, n_layers: int, dim: int, features: int, hidden: int):
        super().__init__()
        if kind not in COUPLINGS:
            raise ValueError(f"unknown coupling {kind!r}; choose one of: {', '.join(COUPLINGS)}")
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


# ------------------------------------------------------------------------------------------------ the Gumbel flow


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise −log(−log u), u uniform; a u of exactly 0 gives −∞, which never wins."""
    uniform = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return uniform.log_().neg_().log_().neg_()


def truncated_gumbel(logits: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """v = l + Gumbel given argmax v = a: logits (B, 1 or n, d, K), actions (B, n, d) int64 → (B, n, d, K).

    The winner's M = logsumexp(l) + Gumbel, whoever wins; the others v_j = −log(exp(−M) + E_j exp(−l_j)), E_j ~ Exp(1).
    """
    noise = gumbel((*action.shape, logits.shape[-1]), logits, generator)  # −log E_j
    top = torch.logsumexp(logits, -1, keepdim=True) + gumbel((*action.shape, 1), logits, generator)
    return -torch.logaddexp(-top, -(logits + noise)).scatter(-1, action.unsqueeze(-1), -top)


def _share(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """max x, exp(x − max x) and its sum over the last axis: softmax is slow on a CPU where categories are few."""
    top = x.amax(-1, keepdim=True)
    share = (x - top).exp_()
    return top, share, share.sum(-1, keepdim=True)


class _Held(torch.autograd.Function):
    """Σ_d log softmax(l_d)_{a_d}, and softmax(v) of latents v held fixed but for their law given a = argmax v.

    Its uniforms are what is held: with M = max v and r_j = exp(v_j − M), ∂M/∂l = softmax(l), ∂v_j/∂M = r_j and
    ∂v_j/∂l_j = 1 − r_j (differentiate `truncated_gumbel`). logits (B, 1 or n, d, K), v (B, n, d, K), actions (B, n, d)
    → (B, n) and (B, n, d, K). By hand, since autograd would take three times as many steps.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        action = action.unsqueeze(-1)
        top, won, total = _share(logits)
        chosen = logits.expand_as(latent).gather(-1, action)
        _, ratio, ratios = _share(latent)
        read = ratio / ratios
        ctx.save_for_backward(won.div_(total), ratio, read, action)
        ctx.set_materialize_grads(False)
        return (chosen - (top + total.log_())).sum((-2, -1)), read

    @staticmethod
    def backward(ctx, slope: Tensor | None, slope_read: Tensor | None) -> tuple[Tensor, None, None]:
        won, ratio, read, action = ctx.saved_tensors
        slope = slope[..., None, None]
        if slope_read is None:
            found = -slope * won
        else:
            slope_read = slope_read * read
            at_latent = torch.addcmul(slope_read, read, slope_read.sum(-1, keepdim=True), value=-1)
            below = ratio.mul(at_latent)
            found = torch.addcmul(at_latent - below, won, below.sum(-1, keepdim=True) - slope)
        found = found.scatter_add_(-1, action, slope.expand_as(action))
        return found.sum(1, keepdim=True) if won.shape[1] == 1 else found, None, None


class GumbelFlow(nn.Module):
    """v_d = l_d + Gumbel^K, l_d = μ_d(s) + t_d(v_<d, s): triangular over the dimensions of the action, ladj = 0.

    So P(argmax v_d = k | v_<d) = softmax(l_d)_k, exactly. `block` dimensions share a step, independent
    given the blocks before: 1, one by one; D/2, a coupling; D, the factored policy. t_d reads softmax(v_e), e < d:
    bounded, and blind to max v_e, which says nothing of a_e and would only be noise in the score. Its hidden units sum
    over e (NADE, Larochelle and Murray 2011): the work grows with D K, not with its square. shape: (D, K); features:
    width of what conditions it. In what follows μ is (B, 1, D, K), −∞ where a category does not exist; shifts are from
    `condition`.
    """

    def __init__(self, shape: tuple[int, int], block: int, features: int, hidden: int):
        super().__init__()
        D, K = shape
        self.cuts = [slice(start, min(start + block, D)) for start in range(0, D, block)]
        widths = [(cut.stop - cut.start) * K for cut in self.cuts]
        self.context = nn.Linear(features, (len(widths) - 1) * hidden) if len(widths) > 1 else None
        self.read = nn.ModuleList(nn.Linear(width, hidden, bias=False) for width in widths[:-1])
        self.write = nn.ModuleList(nn.Linear(hidden, width) for width in widths[1:])
        for layer in self.write:
            nn.init.normal_(layer.weight, std=WRITE_STD)
            nn.init.zeros_(layer.bias)

    def condition(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (B, C) → one shift (B, 1, hidden) a block but the first."""
        if self.context is None:
            return ()
        return self.context(features).unsqueeze(-2).chunk(len(self.write), dim=-1)

    def sample(self, mean: Tensor, shifts: tuple[Tensor, ...], n: int, generator=None) -> Tensor:
        """n latents a state, (B, n, D, K)."""
        latent = gumbel((len(mean), n, *mean.shape[2:]), mean, generator)
        hidden = 0.0
        for i, cut in enumerate(self.cuts):
            latent[:, :, cut] += self._logits(i, mean, shifts, hidden)
            hidden = self._read(i, hidden, latent[:, :, cut])
        return latent

    def sample_given(self, mean: Tensor, shifts: tuple[Tensor, ...], action: Tensor, generator=None) -> Tensor:
        """Latents whose argmax is the action, each v_d given a_d and v_<d alone: (B, n, D) → (B, n, D, K)."""
        blocks, hidden = [], 0.0
        for i, cut in enumerate(self.cuts):
            blocks.append(truncated_gumbel(self._logits(i, mean, shifts, hidden), action[:, :, cut], generator))
            hidden = self._read(i, hidden, blocks[-1])
        return torch.cat(blocks, 2)

    def log_weight(self, mean: Tensor, shifts: tuple[Tensor, ...], latent: Tensor, action: Tensor) -> Tensor:
        """log w = Σ_d log softmax(l_d(v_<d))_{a_d}, a = argmax v, pathwise as in `_Held`: (B, n, D, K) → (B, n)."""
        log_w, hidden = 0.0, 0.0
        for i, cut in enumerate(self.cuts):
            logits = self._logits(i, mean, shifts, hidden)
            log_p, read = _Held.apply(logits, latent[:, :, cut], action[:, :, cut])
            log_w, hidden = log_w + log_p, self._hidden(i, hidden, read)
        return log_w

    def entropy(self, mean: Tensor, shifts: tuple[Tensor, ...], n: int, generator=None) -> Tensor:
        """Σ_d H(softmax l_d(v_<d)) of n draws, in nats, pathwise: (B, n)."""
        noise = gumbel((len(mean), n, *mean.shape[2:]), mean, generator)
        total, hidden = 0.0, 0.0
        for i, cut in enumerate(self.cuts):
            logits = self._logits(i, mean, shifts, hidden)
            log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
            total = total - (log_p.exp() * log_p.clamp_min(-1e4)).sum((-2, -1))
            hidden = self._read(i, hidden, logits + noise[:, :, cut])
        return total

    def _logits(self, i: int, mean: Tensor, shifts: tuple[Tensor, ...], hidden: Tensor | float) -> Tensor:
        """l of block i, (B, 1 or n, d, K)."""
        own = mean[:, :, self.cuts[i]]
        return own + self.write[i - 1]((hidden + shifts[i - 1]).relu_()).unflatten(-1, own.shape[2:]) if i else own

    def _read(self, i: int, hidden: Tensor | float, latent: Tensor) -> Tensor | float:
        """What blocks up to i add to the hidden units (B, n, hidden): of v (B, n, d, K)."""
        if i == len(self.read):
            return hidden
        _, share, total = _share(latent)
        return self._hidden(i, hidden, share / total)

    def _hidden(self, i: int, hidden: Tensor | float, shares: Tensor) -> Tensor | float:
        return hidden + self.read[i](shares.flatten(-2)) if i < len(self.read) else hidden


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
