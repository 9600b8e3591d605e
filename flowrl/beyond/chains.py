"""Markov chains in the latents, for states in which plain draws find next to nothing valid (not in the paper, which
leaves "scenarios where the fraction of valid actions is very small" to future work).

A draw is a function of noise ε, v = F(ε; s), a = argmax v, so π'(·|s) is the law of the noise cut down to
{ε : argmax F(ε; s) ∈ C(s)}. Two kernels leave exactly that law unchanged, and ask the oracle yes or no only:

    redraw   the noise of some dimensions of the action anew, kept if the oracle accepts it: the chance to move depends
             on the other dimensions only, so this is Gibbs sampling that sometimes stays; one call
    slice    elliptical slice sampling (Murray, Adams, MacKay 2010): from ε and a fresh ν of the same Gaussian law, walk
             ε cos θ + ν sin θ, θ uniform on the circle, its bracket shrunk towards 0 until the oracle says yes

Redrawing mixes faster per oracle call where the two can be told apart (`python -m benchmarks.chains`), so a sweep
redraws each dimension once, in random order, then a few of them together, so that every valid action is within reach.
With three dimensions pairs alone mix faster still, after some forty calls; with twelve they should seldom be accepted,
which was not measured, so the sweep has both. A chain that starts from a valid draw is exact from the first sweep on,
by itself: chains that share a start are dependent until they have mixed, which biases leave-one-out over them (notebook
12). One that starts from an action known to be valid, planted in a latent, is biased towards that action, the less the
more sweeps. One that goes on from the step before (`carry`) is biased towards the π' of that state and policy: in
the long run not at all where they stay the same, more where they change faster than it mixes, as where the next state
is the first of another episode. Kin: a Gumbel's noise given its argmax
(Maddison, Tarlow, Minka 2014); GHK for π(a|s) (`GumbelFlowPolicy`); ARAM, which rejects with a penalty instead.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..policies import FactoredPolicy, FlowPolicy
from .gumbel import GumbelFeatures, GumbelFlowPolicy, gumbel, truncated_gumbel

LEAST_BRACKET = 1e-6  # of an ellipse's angle: float32 tells no nearer points apart
Piece = tuple[slice | list[int], Tensor]  # dimensions, and their latents (B, C, d, K)


def at(dims: list[int]) -> slice | list[int]:
    """An index of these dimensions, without a copy where it is one."""
    return slice(dims[0], dims[0] + 1) if len(dims) == 1 else dims


class GaussianNoise:
    """A `FlowPolicy`'s: v = F(μ + σ ε), ε ~ N(0, I). Any dimension may change all latents."""

    def __init__(self, policy: FlowPolicy, features):
        self.flow, self.shape, self.existing = policy.flow, policy.shape, policy.existing
        self.features, self.like = features, features.mean
        self.scale = 1.0 if features.log_scale is None else features.log_scale.exp()

    def draw(self, shape: tuple[int, ...], generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.like.device, dtype=self.like.dtype)

    def latent(self, noise: Tensor) -> Tensor:
        """v = F(μ + σ ε): (B, C, D, K) → (B, C, D, K)."""
        v, _ = self.flow(self.features.mean + self.scale * noise.flatten(-2), self.features.shifts)
        return v.unflatten(-1, self.shape)

    def noise_of(self, latent: Tensor) -> Tensor:
        """ε = (F⁻¹(v) − μ) / σ."""
        z, _ = self.flow.inverse(latent.flatten(-2), self.features.shifts)
        return ((z - self.features.mean) / self.scale).unflatten(-1, self.shape)

    def planted(self, action: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Noise and latents with these actions (B, C, D): a draw's, each dimension's largest entry swapped with a's."""
        v = self.latent(self.draw((*action.shape, self.shape[1]), generator))
        top, own = self.choice(v, slice(None)).unsqueeze(-1), action.unsqueeze(-1)
        v = v.scatter(-1, own, v.gather(-1, top)).scatter(-1, top, v.gather(-1, own))
        return self.noise_of(v), v

    def moved(self, noise: Tensor, latent: Tensor, dims: list[int], change: Tensor) -> list[Piece]:
        """What the latents become where the noise of `dims` has changed to what it is in `noise`: all of them."""
        return [(slice(None), self.latent(noise))]

    def choice(self, latent: Tensor, dims: slice | list[int]) -> Tensor:
        """argmax over the categories that exist: (B, C, d, K) → (B, C, d)."""
        if self.existing is not None:
            latent = latent.masked_fill(~self.existing[dims], -torch.inf)
        return latent.argmax(-1)

    def normal(self, noise: Tensor) -> Tensor:
        """The noise as a Gaussian."""
        return noise

    def of_normal(self, normal: Tensor) -> Tensor:
        return normal


class GumbelNoise:
    """A `GumbelFlowPolicy`'s: v_d = η_d(v_<d) + ε_d, ε ~ Gumbel(0, 1). A dimension changes no block before its own."""

    def __init__(self, policy: GumbelFlowPolicy, features: GumbelFeatures):
        self.flow, self.features, self.like = policy.flow, features, features.mean

    def draw(self, shape: tuple[int, ...], generator) -> Tensor:
        return gumbel(shape, self.like, generator)

    def latent(self, noise: Tensor) -> Tensor:
        return self.flow.push(*self.features, noise.clone())

    def noise_of(self, latent: Tensor) -> Tensor:
        """ε_d = v_d − η_d(v_<d); 0 where a category does not exist."""
        return self.flow.pull(*self.features, latent)

    def planted(self, action: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Noise and latents with these actions (B, C, D): each v_d given a_d and v_<d, exactly (`truncated_gumbel`)."""
        v = self.flow.sample_given(*self.features, action, generator)
        return self.flow.pull(*self.features, v), v

    def moved(self, noise: Tensor, latent: Tensor, dims: list[int], change: Tensor) -> list[Piece]:
        """What the latents become where the noise of `dims` has changed by so much: theirs, and all blocks behind."""
        cuts, last = self.flow.cuts, len(self.flow.cuts) - 1
        first = next(i for i, cut in enumerate(cuts) if min(dims) < cut.stop)
        own = [d for d in dims if d < cuts[first].stop]
        moved = latent[:, :, at(own)] + change[:, :, : len(own)]
        pieces, hidden = [(at(own), moved)], 0.0
        for i in range(first if first < last else 0):  # behind the last block there is none that reads them
            hidden = self.flow._read(i, hidden, latent[:, :, cuts[i]])
        for i in range(first, last):
            if i == first:
                block = latent[:, :, cuts[i]].clone()
                block[:, :, at([d - cuts[i].start for d in own])] = moved
            hidden = self.flow._read(i, hidden, block)
            block = self.flow._logits(i + 1, *self.features, hidden) + noise[:, :, cuts[i + 1]]
            pieces.append((cuts[i + 1], block))
        return pieces

    def choice(self, latent: Tensor, dims: slice | list[int]) -> Tensor:
        return latent.argmax(-1)

    def normal(self, noise: Tensor) -> Tensor:
        """Φ⁻¹ of the uniform behind the noise, from the tail that keeps its digits."""
        tail = (-noise.double()).exp()  # −log u
        low = torch.special.ndtri((-tail).exp().clamp_min(torch.finfo(torch.float64).tiny))
        return torch.where(tail > math.log(2), low, -torch.special.ndtri(-torch.expm1(-tail))).to(noise.dtype)

    def of_normal(self, normal: Tensor) -> Tensor:
        return -torch.log(-torch.special.log_ndtr(normal.double())).to(normal.dtype)


class FactoredNoise(GumbelNoise):
    """A `FactoredPolicy`'s: a_d = argmax log π_d + ε_d, so that given a the noise is exactly a truncated Gumbel."""

    def __init__(self, policy: FactoredPolicy, features: Tensor):
        self.log_prob = self.like = features.unsqueeze(1)  # (B, 1, D, K)

    def latent(self, noise: Tensor) -> Tensor:
        return self.log_prob + noise

    def planted(self, action: Tensor, generator) -> tuple[Tensor, Tensor]:
        v = truncated_gumbel(self.log_prob, action, generator)
        return torch.where(self.log_prob == -torch.inf, 0.0, v - self.log_prob), v

    def moved(self, noise: Tensor, latent: Tensor, dims: list[int], change: Tensor) -> list[Piece]:
        return [(at(dims), latent[:, :, at(dims)] + change)]


NOISES = {FlowPolicy: GaussianNoise, GumbelFlowPolicy: GumbelNoise, FactoredPolicy: FactoredNoise}


class Chains:
    """C chains in each of B states; what they hold is valid, always.

    noise, latent: (B, C, D, K), action: (B, C, D) int64; accepts(actions (b, n, D), rows (b,) int64 or None: which of
    the B states, all) → (b, n) bool; calls: how often it was asked for each state, (B,) int64.
    """

    def __init__(self, law, noise: Tensor, latent: Tensor, action: Tensor, accepts: Callable, generator):
        self.law, self.noise, self.latent, self.action = law, noise, latent, action
        self.accepts, self.generator = accepts, generator
        self.calls = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)

    def sweep(self) -> None:
        """Redraw each dimension by itself, in random order, then two of them or more."""
        D = self.action.shape[-1]
        for d in self._some(D):
            self.redraw([d])
        if D > 1:
            coins = torch.rand(D, generator=self.generator, device=self.noise.device) < 0.5
            self.redraw(sorted(self._some(min(D, 2 + int(coins.long().cumprod(0).sum())))))

    def _some(self, n: int) -> list[int]:
        device = self.noise.device
        return torch.randperm(self.action.shape[-1], generator=self.generator, device=device)[:n].tolist()

    def redraw(self, dims: list[int]) -> None:
        """Draw the noise of these dimensions, in order, anew, and keep it where the oracle accepts the action."""
        own = at(dims)
        old = self.noise[:, :, own].clone()
        fresh = self.law.draw(old.shape, self.generator)
        self.noise[:, :, own] = fresh
        pieces, action = self.law.moved(self.noise, self.latent, dims, fresh - old), self.action.clone()
        for where, latent in pieces:
            action[:, :, where] = self.law.choice(latent, where)
        accepted = self.accepts(action, None)
        self.calls += action.shape[1]
        self.action = torch.where(accepted.unsqueeze(-1), action, self.action)
        accepted = accepted[:, :, None, None]
        self.noise[:, :, own] = torch.where(accepted, fresh, old)
        for where, latent in pieces:
            self.latent[:, :, where] = torch.where(accepted, latent, self.latent[:, :, where])

    def slice(self) -> None:
        """One elliptical slice over all of the noise, in every chain."""
        x = self.law.normal(self.noise)
        direction = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        angle = 2 * math.pi * torch.rand(self.action.shape[:2], generator=self.generator, device=x.device)
        low, high = angle - 2 * math.pi, angle.clone()
        moving = torch.ones_like(angle, dtype=torch.bool)
        while moving.any():
            turn = angle[..., None, None].to(x.dtype)
            noise = self.law.of_normal(x * turn.cos() + direction * turn.sin())
            latent = self.law.latent(noise)
            action = self.law.choice(latent, slice(None))
            row, chain = moving.nonzero(as_tuple=True)
            accepted = torch.zeros_like(moving)
            accepted[row, chain] = self.accepts(action[row, chain].unsqueeze(1), row)[:, 0]
            self.calls += moving.sum(1)
            self._take(accepted, noise, latent, action)
            moving &= ~accepted & (high - low > LEAST_BRACKET)
            low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
            share = torch.rand(angle.shape, generator=self.generator, device=x.device)
            angle = torch.where(moving, low + share * (high - low), angle)

    def _take(self, accepted: Tensor, noise: Tensor, latent: Tensor, action: Tensor) -> None:
        self.action = torch.where(accepted.unsqueeze(-1), action, self.action)
        accepted = accepted[..., None, None]
        self.noise, self.latent = torch.where(accepted, noise, self.noise), torch.where(accepted, latent, self.latent)


class Start(NamedTuple):
    """Actions (B, n, D) that chains start from; latents (B, n, D, K) or None; `own` (B, n) bool: whose latents count.

    The others are planted. A factored policy has no latents: noise is drawn anew given the action, exactly.
    """

    action: Tensor
    latent: Tensor | None
    own: Tensor

    def at(self, index) -> "Start":
        """Those that an index of the first axes picks."""
        return Start(self.action[index], None if self.latent is None else self.latent[index], self.own[index])

    def where(self, these: Tensor, other: "Start") -> "Start":
        """These, (B, n) bool, and the other's for the rest."""
        wide, latent = these.unsqueeze(-1), other.latent if self.latent is None else self.latent
        if self.latent is not None and other.latent is not None:
            latent = torch.where(wide.unsqueeze(-1), self.latent, other.latent)
        return Start(torch.where(wide, self.action, other.action), latent, torch.where(these, self.own, other.own))


def planted(action: Tensor) -> Start:
    """To start from actions (B, n, D) alone."""
    return Start(action, None, torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device))


def begin(policy, observation: Tensor, start: Start, n: int, accepts: Callable, generator) -> Chains:
    """n chains in each of B states. start: a valid action for all of a state's or one for each, (B, 1 or n, …);
    accepts: as in `Chains`."""
    law = NOISES[type(policy)](policy, policy.features(observation))
    action = start.action.expand(-1, n, -1)
    noise, latent = law.planted(action, generator)
    if start.latent is not None and start.own.any():
        own, latents = start.own.expand(-1, n)[..., None, None], start.latent.expand(-1, n, -1, -1)
        noise, latent = torch.where(own, law.noise_of(latents), noise), torch.where(own, latents, latent)
    return Chains(law, noise, latent, action.clone(), accepts, generator)
