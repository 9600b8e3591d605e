"""flowrl.beyond.gumbel: probabilities and gradients against quadrature of the latent density and against enumeration;
what must hold for any sizes and blocks by hypothesis (derandomised: the same examples every time).
"""

import itertools
import math

import pytest
import torch
from ground_truth import CHI_SQUARE_P, chi_square_p, randomise, z_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import one_hot

from flowrl import rejection
from flowrl.beyond.gumbel import GumbelFlow, GumbelFlowPolicy, gumbel, truncated_gumbel
from flowrl.policies import FactoredPolicy, Sample, to_flat
from flowrl.study.config import make_config
from flowrl.truth.gradients import gradient
from flowrl.truth.gumbel import gumbel_log_probs

STATE = torch.tensor([[0.4, -1.1]], dtype=torch.float64)
WIDTH = 4
Z_BOUND = 4.0
examples = settings(max_examples=20, deadline=None, derandomize=True, database=None)
any_sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def make(sizes, kind=GumbelFlowPolicy, seed=0, std=0.6, **changes):
    """A policy in float64, every parameter random."""
    config = make_config("none", "iar-a2c-gumbel", {"hidden": WIDTH, "policy_hidden": 6, **changes})
    policy = kind(nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh()), WIDTH, sizes, config).double()
    return randomise(policy, seed, std)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every(sizes):
    """All actions, (1, |A|, D)."""
    return torch.tensor(list(itertools.product(*map(range, sizes)))).view(1, -1, len(sizes))


# ----------------------------------------------------------------------------------------------- what must hold


@examples
@given(any_sizes, st.integers(1, 4), st.integers(0, 9))
def test_draws_have_the_action_said(sizes, block, seed):
    """Plain and truncated draws: argmax v = a, among the categories that exist; log w is a log-probability."""
    policy = make(sizes, seed=seed, block=block).float()
    features = policy.features(STATE.float())
    sample = policy.sample(features, 50, generator(seed))
    truncated = policy.flow.sample_given(*features, every(sizes), generator(seed)).detach()
    assert torch.equal(sample.latent.argmax(-1), sample.action)
    assert torch.equal(truncated.argmax(-1), every(sizes))
    assert (sample.action >= 0).all() and (sample.action < torch.tensor(sizes)).all()
    assert sample.latent.shape == (1, 50, len(sizes), max(sizes)) and not sample.latent.requires_grad
    log_w = policy.score_surrogate(features, sample)
    slope = gradient(log_w.sum(), policy.parameters())
    assert log_w.shape == (1, 50) and (log_w < 1e-5).all() and torch.isfinite(slope).all()


@examples
@given(any_sizes, st.integers(1, 4), st.integers(0, 9))
def test_probabilities_sum_to_one(sizes, block, seed):
    """Σ_a E[w] = 1, from 300 truncated draws an action, within four standard errors."""
    policy = make(sizes, seed=seed, block=block)
    w = policy.log_weights(policy.features(STATE), every(sizes), 300, generator(seed))[0].detach().exp()
    error = (w.var(-1).sum() / 300).sqrt()
    assert abs(w.mean(-1).sum() - 1) < Z_BOUND * error + 1e-12


@examples
@given(any_sizes, st.integers(1, 4), st.integers(0, 9))
def test_without_t_it_is_the_factored_policy(sizes, block, seed):
    """t = 0, or all dimensions in one block: log π and its gradient are the factored policy's, for every action."""
    flow, factored = make(sizes, seed=seed, block=block), make(sizes, FactoredPolicy, seed=seed)
    with torch.no_grad():
        for layer in flow.flow.write:
            layer.weight.zero_()
            layer.bias.zero_()
    factored.encoder.load_state_dict(flow.encoder.state_dict())
    factored.logits.load_state_dict(flow.mean.state_dict())
    found, slopes = [], []
    for policy, own in ((flow, flow.mean), (factored, factored.logits)):
        features = policy.features(STATE)
        log_prob = policy.log_prob(features, Sample(every(sizes)), generator(seed))
        shared = [*policy.encoder.parameters(), *own.parameters()]
        found.append(log_prob)
        slopes.append(torch.stack([gradient(x, shared) for x in log_prob[0]]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-6)


@examples
@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 3), st.integers(0, 9))
def test_held_latents_have_the_derivatives_of_the_truncated_draw(D, K, block, seed):
    """∇log w by `log_weight` at a latent, against autograd straight through the draw from its uniforms."""
    policy = make((K,) * D, seed=seed, block=block)
    features, flow = policy.features(STATE), policy.flow
    action = torch.randint(K, (1, 7, D), generator=generator(seed))
    latent = flow.sample_given(*features, action, generator(seed))  # differentiable in all that it came from
    direct, hidden = 0.0, 0.0
    for i, cut in enumerate(flow.cuts):
        log_p = torch.log_softmax(flow._logits(i, *features, hidden).expand(-1, 7, -1, -1), -1)
        direct = direct + log_p.gather(-1, action[:, :, cut, None]).sum((-2, -1))
        hidden = flow._read(i, hidden, latent[:, :, cut])
    held = flow.log_weight(*features, latent.detach(), action)
    torch.testing.assert_close(held, direct)
    weights = torch.randn(held.shape, generator=generator(seed), dtype=held.dtype)
    expected = gradient((weights * direct).sum(), policy.parameters())
    torch.testing.assert_close(gradient((weights * held).sum(), policy.parameters()), expected)


def test_truncated_gumbels_are_gumbels_given_their_argmax():
    """Winner's and losers' moments against those of plain draws that happen to have that argmax."""
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64).expand(1, 60_000, 1, 3)
    plain = logits + gumbel(logits.shape, logits, generator())
    for a in range(3):
        own = plain[plain.argmax(-1) == a]
        drawn = truncated_gumbel(logits, torch.full((1, 60_000, 1), a), generator(1))[0, :, 0]
        for moment in (lambda v: v, torch.square, lambda v: v * v.roll(1, -1)):
            one, other = moment(own), moment(drawn)
            error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
            assert ((one.mean(0) - other.mean(0)).abs() < Z_BOUND * error).all()


# --------------------------------------------------------------------- π and its gradient, by quadrature of the density


def log_probs(policy):
    return gumbel_log_probs(policy, policy.features(STATE))


QUADRATURE = [(3, 2), (2, 2, 2)]  # sizes
TOLERANCE = 1e-3  # of the quadrature: relu makes kinks


@pytest.mark.parametrize("sizes", QUADRATURE)
def test_draws_and_estimates_follow_the_density(sizes):
    """Frequencies, π̂ of every action and log π̂ with many draws, against quadrature; few draws are biased low."""
    policy = make(sizes, block=1, std=0.8, n_posterior=2)
    features, n = policy.features(STATE), 40_000
    with torch.no_grad():
        truth = log_probs(policy).exp()
        w = policy.log_weights(features, every(sizes), n, generator()).exp()[0]
        few = policy.log_prob(features, Sample(every(sizes).repeat_interleave(n, 1)), generator(1)).view(-1, n)
    assert abs(truth.sum() - 1) < TOLERANCE and truth.min() > 0.002
    counts = to_flat(policy.sample(features, n, generator(2)).action[0], sizes).bincount(minlength=len(truth))
    assert chi_square_p(counts, truth) > CHI_SQUARE_P
    assert z_scores(w.T, truth, 1e-4).abs().max() < Z_BOUND
    error, low = few.std(-1) / n**0.5, truth.log() - few.mean(-1)
    assert (low > -Z_BOUND * error).all() and low.sum() > Z_BOUND * error.norm()


@pytest.mark.parametrize("n_latents", [1, 3])
@pytest.mark.parametrize("sizes", QUADRATURE)
def test_score_is_unbiased(sizes, n_latents):
    """E[f(a) ∇surrogate] against ∇Σ f(a) π(a) by quadrature, in every parameter, at four standard errors."""
    policy = make(sizes, block=1, std=0.8, n_posterior=n_latents)
    parameters, noise = list(policy.parameters()), generator(3)
    returns = torch.randn(math.prod(sizes), generator=generator(5), dtype=torch.float64)
    truth = gradient((returns * log_probs(policy).exp()).sum(), parameters)
    found = []
    for _ in range(40):
        features = policy.features(STATE)
        sample = policy.sample(features, 2000, noise)
        weights = returns[to_flat(sample.action, sizes)]
        found.append(gradient((weights * policy.score_surrogate(features, sample, noise)).mean(), parameters))
    found = torch.stack(found)
    assert truth.norm() > 0.3
    assert z_scores(found, truth, TOLERANCE).abs().max() < Z_BOUND
    assert (found.mean(0) - truth).norm() < 0.03 * truth.norm()


# --------------------------------------------------------------------------------------- reading the argmax only


class ReadsTheArgmax(GumbelFlow):
    """t reads which entry of v_e is the largest, nothing else."""

    def _hidden(self, i, hidden, shares):
        return super()._hidden(i, hidden, one_hot(shares.argmax(-1), shares.shape[-1]).to(shares.dtype))


def test_reading_the_argmax_alone_it_is_autoregressive():
    """log π and its gradient are exact then, from one draw: Π_d softmax(l_d(a_<d))_{a_d}, written out."""
    sizes = (2, 3, 3)
    policy = make(sizes, block=1, n_posterior=1)
    policy.flow.__class__ = ReadsTheArgmax
    features, flow, actions = policy.features(STATE), policy.flow, every(sizes)
    truth, hidden = torch.log_softmax(features.mean[0, 0, 0], -1)[actions[0, :, 0]], 0.0
    for d in (1, 2):
        chosen = one_hot(actions[0, :, d - 1], 3).double()
        hidden = hidden + chosen @ flow.read[d - 1].weight.T
        change = flow.write[d - 1]((hidden + features.shifts[d - 1][0]).relu())
        logits = torch.log_softmax(features.mean[0, 0, d] + change, -1)
        truth = truth + logits.gather(-1, actions[0, :, d, None]).squeeze(-1)
    found = policy.log_prob(features, Sample(actions), generator())
    torch.testing.assert_close(found[0], truth)
    torch.testing.assert_close(truth.exp().sum(), torch.ones((), dtype=torch.float64))
    sample = policy.sample(features, 30, generator(1))
    expected = gradient(truth[to_flat(sample.action[0], sizes)].sum(), policy.parameters())
    found = gradient(policy.score_surrogate(features, sample).sum(), policy.parameters())
    torch.testing.assert_close(found, expected)


# ----------------------------------------------------------------------------------------------------- entropy


def test_entropy_of_the_valid_actions():
    """∇H(π') by quadrature: −Cov(log w, ∇log w) over 8 draws has nearly all of it, counts miss over half, and the
    pathwise entropy, which is of π, as much."""
    policy = make((3, 2), block=1, std=0.8)
    allowed = torch.tensor([True, False, True, False, True, True])
    log_prob = log_probs(policy)[allowed].log_softmax(0)
    truth = gradient(-(log_prob.exp() * log_prob).sum(), policy.parameters())
    features = policy.features(STATE.expand(20_000, -1))
    sample = policy.sample(features, 8, generator())
    valid = allowed[to_flat(sample.action, (3, 2))]
    enough = (valid.sum(-1) >= 2).nonzero().squeeze(-1)
    log_w = policy.score_surrogate(features, sample)
    counts = rejection.count_log_prob(rejection.same_action(to_flat(sample.action, (3, 2))[..., None], valid), valid)
    objectives = {
        "conditionals": (rejection.entropy_weights(log_w.detach(), valid) * log_w).sum(-1)[enough].mean(),
        "counts": (rejection.entropy_weights(counts, valid) * log_w).sum(-1)[enough].mean(),
        "pathwise": policy.entropy(features, generator(1)).mean(),
    }
    miss = {name: (gradient(x, policy.parameters()) - truth).norm() / truth.norm() for name, x in objectives.items()}
    assert miss["conditionals"] < 0.06
    assert miss["counts"] > 0.5 and miss["pathwise"] > 0.5


def test_pathwise_entropy_is_below_the_entropy():
    """E[Σ_d H(softmax l_d(v_<d))] ≤ H(π), equal without t; by quadrature."""
    policy = make((3, 2), block=1, std=0.8)
    with torch.no_grad():
        log_prob = log_probs(policy)
        found = policy.entropy(policy.features(STATE.expand(5000, -1)), generator())
        truth = -(log_prob.exp() * log_prob).sum()
        error = found.std() / 5000**0.5
        assert found.mean() < truth - Z_BOUND * error
        for layer in policy.flow.write:
            layer.weight.zero_()
        log_prob = log_probs(policy)
        found = policy.entropy(policy.features(STATE), generator())
        torch.testing.assert_close(found[0], -(log_prob.exp() * log_prob).sum(), rtol=0, atol=TOLERANCE)
