"""flowrl.truth.gradients against checks that share nothing with it: scipy's adaptive quadrature, sequences of draws one
by one in plain Python, finite differences, draws.
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from ground_truth import randomise, z_scores
from scipy.stats import norm
from torch import nn

from flowrl import rejection
from flowrl.policies import FlowPolicy, Sample
from flowrl.rejection import all_actions
from flowrl.study.config import make_config
from flowrl.truth.gradients import (
    count_entropy_gradient,
    every_count,
    every_sequence,
    expected_gradient,
    gaussian_argmax_log_probs,
    gradient,
    gradient_batches,
    gradient_outcomes,
    histogram_log_probs,
    histogram_scores,
    log_probs,
    marginal_log_probs,
    region_log_probs,
    sampled_gradient,
    scores,
    theorem_1_gradient,
    valid_mass_gradient,
)

STATES = torch.tensor([[0.4, -1.1], [-0.3, 0.7]], dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(sizes, seed=0, std=0.25, **settings):
    torch.manual_seed(seed)
    config = make_config("none", "iar-a2c", {"policy_hidden": 6, **settings})
    policy = FlowPolicy(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), 4, sizes, config).double()
    return randomise(policy, seed, std)


# ------------------------------------------------------------------------------------------------ quadrature

GAUSSIANS = {
    "like scales": (tensor(0.3, -0.4, 0.8, 0.0), tensor(0.9, 0.7, 0.8, 1.0)),
    "two": (tensor(1.0, -0.5), tensor(0.5, 1.5)),
    "scales at their limits": (tensor(0.0, 1.0, -0.5), torch.exp(tensor(-5.0, 2.0, 0.0))),
    "narrow below wide": (tensor(-3.0, 0.0, 0.01), torch.exp(tensor(2.0, -5.0, -5.0))),
    "hardly ever": (tensor(0.0, 9.0, 3.0), tensor(1.0, 1.0, 0.5)),
}


@pytest.mark.parametrize("name", GAUSSIANS)
def test_argmax_probabilities_against_adaptive_quadrature(name):
    """scipy.integrate.quad, piece by piece; for two, Φ((μ_1 − μ_2)/√(σ_1² + σ_2²))."""
    mean, scale = (x.numpy() for x in GAUSSIANS[name])
    found = gaussian_argmax_log_probs(*GAUSSIANS[name])
    cuts = np.unique(np.sort((mean[:, None] + scale[:, None] * np.array([-14, -5, -2, 0, 2, 5, 14])).ravel()))
    for i in range(len(mean)):
        others = np.arange(len(mean)) != i

        def density(x, i=i, others=others):
            return norm.pdf(x, mean[i], scale[i]) * norm.cdf(x, mean[others], scale[others]).prod()

        pieces = [scipy.integrate.quad(density, *pair, epsabs=0, epsrel=1e-11)[0] for pair in itertools.pairwise(cuts)]
        assert float(found[i].exp()) == pytest.approx(sum(pieces), rel=1e-9)
        if name == "two":
            closed = norm.logcdf((mean[i] - mean[1 - i]) / np.hypot(*scale))
            assert float(found[i]) == pytest.approx(closed, rel=1e-10)
    assert found.dtype == torch.float64 and float(found.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_tiny_argmax_probabilities():
    """log π = −364: scipy's adaptive quadrature of the integrand over its maximum."""
    mean, scale = tensor(0.0, 30.0, 12.0), tensor(1.0, 0.5, 2.0)
    found = gaussian_argmax_log_probs(mean, scale)

    def log_integrand(x):
        return norm.logpdf(x) + norm.logcdf(x, 30, 0.5) + norm.logcdf(x, 12, 2)

    peak = scipy.optimize.minimize_scalar(lambda x: -log_integrand(x), (0, 30))
    ratio = scipy.integrate.quad(lambda x: np.exp(log_integrand(x) + peak.fun), peak.x - 5, peak.x + 5, epsrel=1e-12)[0]
    assert -365 < float(found[0]) < -364
    assert float(found[0]) == pytest.approx(math.log(ratio) - peak.fun, abs=1e-9)


def test_argmax_gradient_against_finite_differences():
    """∂ log π_i in every μ_j and σ_j; a batch gives what its rows give."""
    rows = [GAUSSIANS["like scales"], (tensor(0.1, 2.0, -1.0, 0.4), tensor(0.05, 1.0, 3.0, 0.6))]
    mean, scale = (torch.stack(x) for x in zip(*rows, strict=True))
    for b, row in enumerate(rows):
        torch.testing.assert_close(gaussian_argmax_log_probs(mean, scale)[b], gaussian_argmax_log_probs(*row))
    assert torch.autograd.gradcheck(gaussian_argmax_log_probs, (mean.requires_grad_(), scale.requires_grad_()))


@pytest.mark.parametrize("base_scale", ["fixed", "learned"])
def test_log_probs_of_a_policy_without_couplings(base_scale):
    """Products over dimensions of unequal sizes, that sum to one, whatever the padding; frequencies agree (z < 4.5)."""
    sizes = (2, 4, 3)
    policy = make(sizes, n_couplings=0, base_scale=base_scale)
    policy.mean.bias.data.view(3, 4)[0, 2:] += 50  # padded
    features = policy.features(STATES)
    joint, marginal = log_probs(policy, features), marginal_log_probs(policy, features)
    torch.testing.assert_close(joint.exp().sum(-1), torch.ones(2).double(), rtol=0, atol=1e-10)
    assert (marginal.exp()[:, 0, 2:] == 0).all() and marginal.shape == (2, 3, 4)
    for i, action in enumerate(all_actions(sizes, "cpu")):
        product = sum(marginal[:, d, k] for d, k in enumerate(action))
        torch.testing.assert_close(joint[:, i], product, rtol=0, atol=1e-12)
    n = 200_000
    frequency, error = histogram_log_probs(policy, features, n, generator())
    probability = joint.exp()
    seen = (frequency.exp() - probability) / (probability * (1 - probability) / n).sqrt()
    assert seen.abs().max() < 4.5
    torch.testing.assert_close(error, ((1 - probability) / (n * probability)).sqrt(), rtol=0.1, atol=0)


def test_float32_policies_have_float64_truths():
    policy = make((3, 3), n_couplings=0).float()
    found = log_probs(policy, policy.features(STATES.float()))
    assert found.dtype == torch.float64 and torch.allclose(found.exp().sum(-1), torch.ones(2).double(), atol=1e-10)
    found[0, 0].backward()
    assert policy.mean.weight.grad.norm() > 0


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_log_probs_of_a_coupled_policy(coupling):
    """By the region's quadrature, against half a million draws of the sampler (z < 4.5)."""
    policy = make((3,), coupling=coupling, base_scale="learned")
    with torch.no_grad():
        features = policy.features(STATES)
        found = log_probs(policy, features, nodes=48)
    frequency, error = histogram_log_probs(policy, features, 500_000, generator())
    assert ((frequency - found).abs() < 4.5 * error + 1e-3).all()
    assert (found[0] - found[1]).abs().max() > 0.05


def test_what_has_no_quadrature_says_so():
    for sizes in ((4,), (2, 2)):
        policy = make(sizes, coupling="affine")
        with pytest.raises(ValueError, match="use histogram_log_probs"):
            log_probs(policy, policy.features(STATES))
    with pytest.raises(ValueError, match="no independent dimensions"):
        marginal_log_probs(policy, policy.features(STATES))


def test_region_quadrature_of_a_correlated_gaussian():
    """Its argmax of two is that of one difference: Φ(μ/σ); no code in common with the one-dimensional quadrature."""
    cov = tensor(1.0, 0.4, 0.4, 0.5).view(2, 2)
    density = torch.distributions.MultivariateNormal(tensor(0.2, -0.3), cov)
    found = region_log_probs(density.log_prob, 2, 100).exp()
    expected = norm.cdf(0.5 / math.sqrt(1.0 + 0.5 - 0.8))
    torch.testing.assert_close(found, tensor(expected, 1 - expected), rtol=0, atol=1e-6)


def test_histogram_of_what_is_never_drawn():
    """−∞, and an error that is infinite; several chunks add up."""
    policy = make((3,), n_couplings=0, std=0.0)
    policy.mean.bias.data.copy_(tensor(0.0, 0.0, -40.0))
    found, error = histogram_log_probs(policy, policy.features(STATES), 1000, generator(), chunk=300)
    assert (found[:, 2] == -math.inf).all() and (error[:, 2] == math.inf).all()
    assert (1000 * found.exp()).sum().round() == 2000


def test_scores_against_finite_differences():
    """∇log π of every action in every parameter; Σ_a π(a) ∇log π(a) = 0."""
    policy = make((3,), n_couplings=0, base_scale="learned")
    parameters = list(policy.parameters())
    log_pi = log_probs(policy, policy.features(STATES))[0]
    found = scores(log_pi, parameters)
    torch.testing.assert_close(log_pi.exp() @ found, torch.zeros_like(found[0]), rtol=0, atol=1e-10)
    bias, step = policy.mean.bias, 1e-5
    with torch.no_grad():
        at = sum(p.numel() for p in itertools.takewhile(lambda p: p is not bias, parameters))
        for k in range(3):
            values = []
            for sign in (1, -1):
                bias[k] += sign * step
                values.append(log_probs(policy, policy.features(STATES))[0])
                bias[k] -= sign * step
            torch.testing.assert_close(found[:, at + k], (values[0] - values[1]) / (2 * step), rtol=0, atol=1e-8)


@pytest.mark.parametrize("coupling", [pytest.param("additive", marks=pytest.mark.long), "affine"])
def test_scores_of_a_coupled_policy(coupling):
    """From 400,000 draws, against the gradient of a quadrature fine enough for the couplings' kinks (z < 5)."""
    policy = make((2,), coupling=coupling, base_scale="learned")
    features, parameters = policy.features(STATES[:1]), list(policy.parameters())
    exact = gradient(log_probs(policy, features, nodes=1000)[0, 1], parameters)
    found, error = histogram_scores(policy, features, torch.tensor([1]), 400_000, generator())
    moved = error > 0
    assert ((found - exact).abs()[moved] < 5 * error[moved]).all()
    assert (found[~moved] == 0).all() and (exact[~moved].abs() < 1e-6).all()  # units that hardly any draw switches on
    assert (exact.abs() > 10 * error)[moved].sum() > 5  # told apart from zero


def test_scores_of_what_is_never_drawn():
    policy = make((3,), n_couplings=0, std=0.0)
    policy.mean.bias.data.copy_(tensor(0.0, 0.0, -40.0))
    with pytest.raises(ValueError, match=r"no draw of 50 is \[2\]; raise n"):
        histogram_scores(policy, policy.features(STATES[:1]), torch.tensor([2]), 1000, generator())


# ----------------------------------------------------------------------------------- outcomes of a tabular policy

LOGITS = tensor(0.2, 1.2, 0.9, 0.1, -0.5)
VALID = torch.tensor([True, False, True, True, False])
Q = tensor(1.0, 5.0, -0.5, 0.3, 2.0)
CORRECTIONS = ("none", "paper", "mean", "leave_one_out")


def by_hand(correction, n_draws, critic, needed):
    """E of the estimate as section 3.2 writes it: nested loops over draws and choices, no tensors, no flowrl."""
    pi = np.exp(LOGITS.numpy()) / np.exp(LOGITS.numpy()).sum()
    score, valid, q = np.eye(5) - pi, VALID.numpy(), Q.numpy()
    total, mass = np.zeros(5), 0.0
    for draws in itertools.product(range(5), repeat=n_draws):
        good = [j for j in range(n_draws) if valid[draws[j]]]
        l, probability = len(good), pi[list(draws)].prod()
        if l < needed:
            continue
        mass += probability
        for chosen in good:
            mean_of = {
                "none": np.zeros(5),
                "paper": n_draws / l**2 * sum(score[draws[j]] for j in good),
                "mean": sum(score[draws[j]] for j in good) / l,
                "leave_one_out": sum((score[draws[j]] for j in good if j != chosen), np.zeros(5)) / max(l - 1, 1),
            }
            a = draws[chosen]
            total += probability / l * (q[a] - critic) * (score[a] - mean_of[correction])
    return torch.tensor(total / mass)


@pytest.mark.parametrize("needed", [None, 2, 3])
@pytest.mark.parametrize("critic", [0.0, 0.7])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_expected_gradient_against_nested_loops(correction, critic, needed):
    found, truth = expected_gradient(LOGITS, VALID, Q, 4, correction, critic, needed)
    expected = by_hand(correction, 4, critic, needed or (2 if correction == "leave_one_out" else 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(truth, theorem_1_gradient(LOGITS, VALID, Q))


def test_theorem_1_and_valid_mass_against_finite_differences():
    def objective(logits):
        pi = np.exp(logits)[VALID.numpy()]
        return (pi * Q.numpy()[VALID.numpy()]).sum() / pi.sum(), np.log(pi.sum() / np.exp(logits).sum())

    step = 1e-6 * np.eye(5)
    slopes = [(np.array(objective(LOGITS.numpy() + h)) - objective(LOGITS.numpy() - h)) / 2e-6 for h in step]
    expected = torch.tensor(np.array(slopes))
    torch.testing.assert_close(theorem_1_gradient(LOGITS, VALID, Q), expected[:, 0], rtol=0, atol=1e-8)
    torch.testing.assert_close(valid_mass_gradient(LOGITS, VALID), expected[:, 1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("valid", [VALID, torch.ones(5, dtype=torch.bool), torch.arange(5) == 2])
@pytest.mark.parametrize("needed", [1, 2])
def test_counts_are_sequences_taken_together(valid, needed):
    """The joint distribution of (executed action, l, how often it was drawn) is the same; some valid, all, one."""
    tables = []
    for enumerate_all in (every_sequence, every_count):
        decision, probability = enumerate_all(LOGITS, valid, 4, needed)
        a = decision.action[:, 0]
        often = (decision.sample.action[..., 0] == a[:, None]).sum(-1)
        assert valid[a].all() and torch.equal(decision.valid, valid[decision.sample.action[..., 0]])
        assert (decision.n_valid >= needed).all() and torch.equal(decision.n_valid, decision.valid.sum(-1))
        table = torch.zeros(5, 5, 5, dtype=torch.float64)
        tables.append(table.index_put_((a, decision.n_valid, often), probability, accumulate=True))
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-12)
    assert tables[1].sum() == pytest.approx(1)


def test_multiples_at_many_draws():
    """S = 64, Z = .12 (findings: −.85): the multiples of the truth by the binomial of l, the critic exact."""
    logits, valid, q = torch.log(tensor(0.05, 0.4, 0.07, 0.48)), torch.tensor([True, False, True, False]), Q[:4]
    critic = float((torch.softmax(logits[valid], 0) * q[valid]).sum())
    l = torch.arange(1, 65, dtype=torch.float64)
    weight = torch.distributions.Binomial(64, tensor(0.12)).log_prob(l).exp()
    weight = weight / weight.sum()
    for correction, multiple in (("paper", 1 - 64 / l**2), ("mean", 1 - 1 / l), ("none", l**0)):
        found, truth = expected_gradient(logits, valid, q, 64, correction, critic)
        torch.testing.assert_close(found, (weight * multiple).sum() * truth, rtol=1e-9, atol=1e-12)
    assert (weight * (1 - 64 / l**2)).sum() == pytest.approx(-0.85, abs=0.01)
    found, truth = expected_gradient(logits, valid, q, 64, "leave_one_out", critic)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_draws_agree_with_enumeration(correction):
    """Mean within its standard error (z < 4), and the error is the enumerated spread's."""
    estimates, probability, l = gradient_outcomes(LOGITS, VALID, Q, 6, correction, 0.3)
    mean = probability @ estimates
    spread = (probability @ (estimates - mean) ** 2).sqrt()
    found, error = sampled_gradient(LOGITS, VALID, Q, 6, correction, 0.3, n=60_000, generator=generator(1))
    varies = spread > 1e-9
    assert ((found - mean).abs()[varies] < 4 * error[varies]).all()
    kept = 1 if correction != "leave_one_out" else 2
    torch.testing.assert_close(error[varies] * 60_000**0.5, spread[varies], rtol=0.05, atol=0)
    assert l.min() == kept and probability.sum() == pytest.approx(1)


def test_too_many_outcomes():
    for enumerate_all, n_draws in ((every_sequence, 8), (every_count, 200)):
        with pytest.raises(ValueError, match="outcomes; at most 100000 are enumerated: use sampled_gradient"):
            enumerate_all(LOGITS, VALID, n_draws)


class Tabular(nn.Module):
    """softmax(logits), one state."""

    sizes = (5,)

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(LOGITS.clone())

    def features(self, observation, mask=None):
        return torch.log_softmax(self.logits, -1).expand(len(observation), -1)

    def sample(self, features, n, generator=None):
        return Sample(torch.multinomial(features.detach().exp(), n, True, generator=generator).unsqueeze(-1))

    def score_surrogate(self, features, sample, generator=None):
        return features.gather(-1, sample.action[..., 0])


@pytest.mark.parametrize("correction", ["none", "mean", "paper"])
def test_gradient_batches_of_a_tabular_policy(correction):
    """Through `decide`, against the enumeration (z < 4.5); S = 16, so that redraws hardly ever come in."""
    config = SimpleNamespace(n_draws=16, max_draws=64, enumerate_limit=0, chains=0, correction=correction)
    batches = gradient_batches(
        Tabular(),
        lambda observation, action: VALID[action[..., 0]],
        torch.zeros(500, 1),
        Q,
        0.3,
        config,
        40,
        generator(),
    )
    expected, _ = expected_gradient(LOGITS, VALID, Q, 16, correction, 0.3)
    assert z_scores(batches, expected).abs().max() < 4.5
    assert (batches.mean(0) - expected).norm() < 0.1 * expected.norm()


def test_gradient_is_zero_where_nothing_depends():
    x, y = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert gradient((x**2).sum(), [x, y]).tolist() == [2, 2, 0, 0, 0]


@pytest.mark.parametrize("l", [2, 3, 8])
def test_what_the_entropy_from_counts_expects(l):
    """Every count of l valid draws of three actions, through what trains; and the true gradient by autograd."""
    logits = torch.tensor([0.2, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(0)
    decision, probability = every_count(log_p.detach(), torch.ones(3, dtype=torch.bool), l, 2)
    drawn = decision.sample.action[..., 0]
    log_prob = rejection.count_log_prob(rejection.same_action(decision.sample.action, decision.valid), decision.valid)
    u = rejection.entropy_weights(log_prob, decision.valid).double()
    scores = torch.eye(3, dtype=torch.float64) - log_p.detach().exp()
    expected, true = count_entropy_gradient(log_p.detach().exp().numpy(), l)
    found = torch.einsum("o,oj,ojk->k", probability, u, scores[drawn])
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-6, rtol=0)
    [entropy] = torch.autograd.grad(-(log_p.exp() * log_p).sum(), logits)
    torch.testing.assert_close(torch.from_numpy(true), entropy)
