"""The Gumbel flow, whose argmax has exact conditionals, and its policy (not in the paper): π(a|s) and its gradient are
estimated without a posterior, from latents that the draws themselves bring.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..estimators import iwae
from ..policies import Sample, existing_categories

WRITE_STD = 0.3  # of the flow's last layers to begin with: from zero, strong entropy would never let it leave


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise −log(−log u), u uniform; a u of exactly 0 counts as the least number above it: finite."""
    uniform = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return uniform.clamp_min_(torch.finfo(like.dtype).tiny).log_().neg_().log_().neg_()


def truncated_gumbel(logits: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """v = η + Gumbel given argmax v = a: logits η (B, 1 or n, d, K), actions (B, n, d) int64 → (B, n, d, K).

    The winner's M = logsumexp(η) + Gumbel, whoever wins; the others v_j = −log(exp(−M) + E_j exp(−η_j)), E_j ~ Exp(1).

    >>> action = torch.tensor([[[0, 2], [1, 1]]])  # 2 actions of 2 dimensions in one state
    >>> truncated_gumbel(torch.zeros(1, 1, 2, 3), action).argmax(-1).equal(action)
    True
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
    """Σ_d log softmax(η_d)_{a_d}, and softmax(v) of latents v held fixed but for their law given a = argmax v.

    Its uniforms are what is held: with M = max v and r_j = exp(v_j − M), ∂M/∂η = softmax(η), ∂v_j/∂M = r_j and
    ∂v_j/∂η_j = 1 − r_j (differentiate `truncated_gumbel`). logits (B, 1 or n, d, K), v (B, n, d, K), actions (B, n, d)
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
    def backward(ctx, slope: Tensor, slope_read: Tensor | None) -> tuple[Tensor, None, None]:
        won, ratio, read, action = ctx.saved_tensors
        slope = slope[..., None, None]
        if slope_read is None:
            found = -slope * won
        else:
            at_read = slope_read * read
            at_latent = torch.addcmul(at_read, read, at_read.sum(-1, keepdim=True), value=-1)
            below = ratio.mul(at_latent)
            found = torch.addcmul(at_latent - below, won, below.sum(-1, keepdim=True) - slope)
        found = found.scatter_add_(-1, action, slope.expand_as(action))
        return found.sum(1, keepdim=True) if won.shape[1] == 1 else found, None, None


class GumbelFlow(nn.Module):
    """v_d = η_d + Gumbel^K, η_d = μ_d(s) + t_d(v_<d, s): triangular over the dimensions of the action, ladj = 0.

    So P(argmax v_d = k | v_<d) = softmax(η_d)_k, exactly. `block` dimensions share a step, independent
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
        write = [nn.Linear(hidden, width) for width in widths[1:]]
        for layer in write:
            nn.init.normal_(layer.weight, std=WRITE_STD)
            nn.init.zeros_(layer.bias)
        self.write = nn.ModuleList(write)

    def condition(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (B, C) → one shift (B, 1, hidden) a block but the first."""
        if self.context is None:
            return ()
        return self.context(features).unsqueeze(-2).chunk(len(self.write), dim=-1)

    def sample(self, mean: Tensor, shifts: tuple[Tensor, ...], n: int, generator=None) -> Tensor:
        """n latents a state, (B, n, D, K)."""
        return self.push(mean, shifts, gumbel((len(mean), n, *mean.shape[2:]), mean, generator))

    def push(self, mean: Tensor, shifts: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """v_d = η_d(v_<d) + noise_d, in place: (B, n, D, K)."""
        hidden = 0.0
        for i, cut in enumerate(self.cuts):
            noise[:, :, cut] += self._logits(i, mean, shifts, hidden)
            hidden = self._read(i, hidden, noise[:, :, cut])
        return noise

    def pull(self, mean: Tensor, shifts: tuple[Tensor, ...], latent: Tensor) -> Tensor:
        """The noise of latents (B, n, D, K), v_d − η_d(v_<d); 0 where a category does not exist."""
        blocks, hidden = [], 0.0
        for i, cut in enumerate(self.cuts):
            blocks.append(latent[:, :, cut] - self._logits(i, mean, shifts, hidden))
            hidden = self._read(i, hidden, latent[:, :, cut])
        return torch.cat(blocks, 2).masked_fill(mean == -torch.inf, 0.0)

    def sample_given(self, mean: Tensor, shifts: tuple[Tensor, ...], action: Tensor, generator=None) -> Tensor:
        """Latents whose argmax is the action, each v_d given a_d and v_<d alone: (B, n, D) → (B, n, D, K)."""
        blocks, hidden = [], 0.0
        for i, cut in enumerate(self.cuts):
            blocks.append(truncated_gumbel(self._logits(i, mean, shifts, hidden), action[:, :, cut], generator))
            hidden = self._read(i, hidden, blocks[-1])
        return torch.cat(blocks, 2)

    def log_weight(self, mean: Tensor, shifts: tuple[Tensor, ...], latent: Tensor, action: Tensor) -> Tensor:
        """log W = Σ_d log softmax(η_d(v_<d))_{a_d}, a = argmax v, pathwise as in `_Held`: (B, n, D, K) → (B, n)."""
        log_w, hidden = [], 0.0
        for i, cut in enumerate(self.cuts):
            logits = self._logits(i, mean, shifts, hidden)
            log_p, read = _Held.apply(logits, latent[:, :, cut], action[:, :, cut])
            log_w.append(log_p)
            hidden = self._hidden(i, hidden, read)
        return functools.reduce(torch.add, log_w)

    def entropy(self, mean: Tensor, shifts: tuple[Tensor, ...], n: int, generator=None) -> Tensor:
        """Σ_d H(softmax η_d(v_<d)) of n draws, in nats, pathwise: (B, n)."""
        noise = gumbel((len(mean), n, *mean.shape[2:]), mean, generator)
        entropies, hidden = [], 0.0
        for i, cut in enumerate(self.cuts):
            logits = self._logits(i, mean, shifts, hidden)
            log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
            entropies.append(-(log_p.exp() * log_p.clamp_min(-1e4)).sum((-2, -1)))
            hidden = self._read(i, hidden, logits + noise[:, :, cut])
        return functools.reduce(torch.add, entropies)

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


class GumbelFeatures(NamedTuple):
    mean: Tensor  # (B, 1, D, K), μ(s); −∞ where a category does not exist
    shifts: tuple[Tensor, ...]  # what the state adds in each block


class GumbelFlowPolicy(nn.Module):
    """a = argmax of a `GumbelFlow`, of which π(a_d|v_<d) = softmax(η_d) is known, so that nothing has to coincide.

    Let u be the uniforms behind the latents given a (`truncated_gumbel`), W(u) = Π_d softmax(η_d(v_<d))_{a_d}. Then
        π(a|s) = E_u[W]    and    ∇log π(a|s) = E_u[∇W] / π(a|s) = E[∇log W | a],
    since draws with argmax a have u with density W / π: such a draw's own latent, its u held, is all that the score
    takes (N = 1). N − 1 truncated draws beside it, self-normalised, leave it unbiased and quieten it. E_u[W] is the GHK
    simulator (Geweke, Hajivassiliou, Keane) with softmax for Φ; to condition the score on the action is the marginal
    policy gradient (Eisenach et al. 2019). ∇H(π') is −Cov(log W, ∇log W) over the valid draws, exact but for the noise
    of W given a (`rejection.entropy_weights`); counts miss most of it where few draws coincide, and Σ_d H(softmax η_d)
    is of π, whose gradient may point the other way (`python -m benchmarks.gumbel`).
    """

    existing: Tensor | None  # (D, K) bool

    def __init__(self, encoder: nn.Module, features: int, sizes: tuple[int, ...], config):
        super().__init__()
        self.sizes, self.shape, self.n_latents = sizes, (len(sizes), max(sizes)), config.n_posterior
        self.register_buffer("existing", existing_categories(sizes), persistent=False)
        self.encoder = encoder
        self.mean = nn.Linear(features, math.prod(self.shape))
        nn.init.normal_(self.mean.weight, std=0.01)
        nn.init.zeros_(self.mean.bias)
        block = config.block or (len(sizes) + 1) // 2
        self.flow = GumbelFlow(self.shape, block, features, config.policy_hidden)

    def features(self, observation: Tensor, mask: Tensor | None = None) -> GumbelFeatures:
        """Observation (B, …) → what the flow takes from each state."""
        hidden = self.encoder(observation)
        mean = self.mean(hidden).unflatten(-1, self.shape)
        if self.existing is not None:
            mean = mean.masked_fill(~self.existing, -torch.inf)
        return GumbelFeatures(mean.unsqueeze(1), self.flow.condition(hidden))

    def sample(self, features: GumbelFeatures, n: int, generator: torch.Generator | None = None) -> Sample:
        """n draws a state: actions (B, n, D) and the latents (B, n, D, K) that gave them."""
        with torch.no_grad():
            latent = self.flow.sample(*features, n, generator)
            return Sample(latent.argmax(-1), latent)

    def log_weights(self, features: GumbelFeatures, action: Tensor, n: int, generator=None) -> Tensor:
        """log W of n truncated draws for each action (B, M, D): (B, M, n), E[W] = π(a|s)."""
        repeated = action.repeat_interleave(n, 1)
        with torch.no_grad():
            latent = self.flow.sample_given(*features, repeated, generator)
        return self.flow.log_weight(*features, latent, repeated).unflatten(1, (-1, n))

    def log_prob(self, features: GumbelFeatures, sample: Sample, generator=None) -> Tensor:
        """log π̂(a|s), π̂ the unbiased mean of w over N truncated draws: (B, n). Biased low, by about Var(w)/(2 N π²)."""
        return iwae(self.log_weights(features, sample.action, self.n_latents, generator))

    def score_surrogate(self, features: GumbelFeatures, sample: Sample, generator=None) -> Tensor:
        """(B, n), its gradient unbiased for ∇log π(a|s): log W at its latent, averaged with N − 1 truncated draws."""
        assert sample.latent is not None  # a draw of this policy
        w = self.flow.log_weight(*features, sample.latent, sample.action)
        if self.n_latents == 1:
            return w
        more = self.log_weights(features, sample.action, self.n_latents - 1, generator)
        return iwae(torch.cat((w.unsqueeze(-1), more), -1))

    def entropy(self, features: GumbelFeatures, generator=None) -> Tensor:
        """(B,), in nats: Σ_d H(softmax η_d(v_<d)) of one pathwise draw, in expectation a lower bound of H(π)."""
        return self.flow.entropy(*features, 1, generator).squeeze(1)
