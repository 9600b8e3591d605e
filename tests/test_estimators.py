"""flowrl.estimators: a Gaussian's argmax with few categories, whose log π(a|s) quadrature knows, and closed forms.

The log weights come from v_a ~ N(1, 1), v_j = v_a − Exp(1), so that all their moments are finite. Those of a Gaussian
through the soft threshold are not: q vanishes at the region's edge faster than any power, and E[exp 2w] is infinite.
"""

import math

import pytest
import torch
from ground_truth import z_scores
from torch.distributions import Normal

from flowrl.estimators import Alpha, cis_weights, cubo, elbo, iwae, sandwich
from flowrl.truth.gradients import gaussian_argmax_log_probs, region_log_probs

MEAN = torch.tensor([0.3, -0.4, 0.8], dtype=torch.float64)
SCALE = torch.tensor([0.9, 0.7, 0.8], dtype=torch.float64)
LOG_PI = gaussian_argmax_log_probs(MEAN, SCALE)
Z_BOUND = 4.5


def log_p(v: torch.Tensor) -> torch.Tensor:
    return Normal(MEAN, SCALE).log_prob(v).sum(-1)


def log_q(v: torch.Tensor, action: int) -> torch.Tensor:
    top = v[..., action]
    return Normal(1, 1).log_prob(top) - (top[..., None] - v).sum(-1)


def log_weights(action: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """w = log p(v) − log q(v|a), v ~ q."""
    generator = torch.Generator().manual_seed(seed)
    top = 1 + torch.randn(*shape, 1, generator=generator, dtype=torch.float64)
    v = top - torch.empty(*shape, 3, dtype=torch.float64).exponential_(generator=generator)
    v[..., action] = top[..., 0]
    return log_p(v) - log_q(v, action)


def test_the_truths_agree():
    """Quadrature in one dimension and over the whole region, and the total."""
    assert abs(LOG_PI.exp().sum() - 1) < 1e-10
    torch.testing.assert_close(region_log_probs(log_p, 3), LOG_PI, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_elbo_iwae_cubo_are_ordered_draw_by_draw(n):
    """Jensen on every draw; all three coincide at N = 1."""
    w = log_weights(0, 5000, n)
    low, middle, high = elbo(w), iwae(w), cubo(w)
    if n == 1:
        torch.testing.assert_close(low, w[:, 0])
        torch.testing.assert_close(middle, w[:, 0])
        torch.testing.assert_close(high, w[:, 0])
    else:
        assert (low < middle).all() and (middle < high).all()


@pytest.mark.parametrize("action", [0, 1, 2])
def test_bounds_and_their_limits(action):
    """E[ELBO] < E[IWAE_2] < E[IWAE_16] < log π; IWAE → log π; CUBO → ½ log ∫ p²/q > log π; E[exp w] = π."""
    truth = LOG_PI[action]
    w = log_weights(action, 400_000, seed=action)
    assert abs(z_scores(w.exp(), truth.exp())) < Z_BOUND
    means = [elbo(w).mean(), iwae(w.view(-1, 2)).mean(), iwae(w.view(-1, 16)).mean()]
    error = float(w.std()) / math.sqrt(len(w))
    below = torch.stack((*means, truth)).diff()
    assert (below > Z_BOUND * error).all()
    limit = 0.5 * region_log_probs(lambda v: 2 * log_p(v) - log_q(v, action), 3)[action]  # ½ log ∫ p²/q
    assert abs(iwae(w) - truth) < 0.01 and abs(cubo(w) - limit) < 0.01  # N = 4e5
    assert limit > truth + 0.1


def test_sandwich_lies_between_its_bounds():
    w = log_weights(2, 1000, 4)
    for alpha in (0.0, 0.5, 1.0, torch.tensor(0.3, dtype=torch.float64), torch.rand(1000, dtype=torch.float64)):
        expected = alpha * w.mean(-1) + (1 - alpha) * 0.5 * (2 * w).exp().mean(-1).log()
        torch.testing.assert_close(sandwich(w, alpha), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_weights_do_not_overflow(dtype):
    w = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]], dtype=dtype, requires_grad=True)
    log2 = math.log(2)
    expected = {
        elbo: [0.0, -1e4, 1e4],
        cubo: [1e4 - log2 / 2, -1e4, 1e4],
        iwae: [1e4 - log2, -1e4, 1e4],
        lambda w: sandwich(w, 0.25): [0.75 * (1e4 - log2 / 2), -1e4, 1e4],
    }
    for estimator, values in expected.items():
        found = estimator(w)
        torch.testing.assert_close(found, torch.tensor(values, dtype=dtype), rtol=1e-6, atol=1e-6)
        (slope,) = torch.autograd.grad(found.sum(), w)
        torch.testing.assert_close(slope.sum(-1), torch.ones(3, dtype=dtype), rtol=0, atol=1e-3)
    weights = cis_weights(w.detach())
    torch.testing.assert_close(weights, torch.tensor([[1, 0], [0.5, 0.5], [0.5, 0.5]], dtype=dtype))


def test_gradients_with_respect_to_the_log_weights():
    """∂ELBO = 1/N, ∂IWAE = softmax(w), ∂CUBO = softmax(2w), by finite differences of the definitions."""
    w = log_weights(1, 1, 5)[0].requires_grad_()
    definitions = {
        elbo: lambda w: w.mean(),
        iwae: lambda w: w.exp().mean().log(),
        cubo: lambda w: 0.5 * (2 * w).exp().mean().log(),
        lambda w: sandwich(w, 0.3): lambda w: 0.3 * w.mean() + 0.7 * 0.5 * (2 * w).exp().mean().log(),
    }
    step = 1e-6 * torch.eye(5, dtype=torch.float64)
    for estimator, definition in definitions.items():
        (slope,) = torch.autograd.grad(estimator(w), w)
        with torch.no_grad():
            expected = torch.stack([(definition(w + h) - definition(w - h)) / 2e-6 for h in step])
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)


def test_cis_weights_are_shares_of_the_importance_weights():
    w = log_weights(0, 100, 4)
    torch.testing.assert_close(cis_weights(w), w.exp() / w.exp().sum(-1, keepdim=True))


def test_static_alpha_has_nothing_to_train():
    assert Alpha("static")(torch.zeros(3), torch.ones(3)) == 0.5
    assert list(Alpha("static").parameters()) == []


@pytest.mark.parametrize("kind", ["trainable", "adaptive"])
def test_alpha_starts_at_one_half_and_descends_its_own_slope(kind):
    """∂ sandwich / ∂α = ELBO − CUBO < 0: raising the estimate lowers α, and every parameter of α moves."""
    torch.manual_seed(0)
    alpha = Alpha(kind).double()
    w = log_weights(2, 500, 4)
    before = [p.clone() for p in alpha.parameters()]
    torch.testing.assert_close(torch.as_tensor(alpha(elbo(w), cubo(w))).expand(500), torch.full((500,), 0.5).double())
    optimiser = torch.optim.SGD(alpha.parameters(), lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        (-sandwich(w, alpha(elbo(w), cubo(w))).mean()).backward()
        optimiser.step()
    after = torch.as_tensor(alpha(elbo(w), cubo(w)))
    assert (after > 0).all() and (after < 0.49).all()
    for old, new in zip(before, alpha.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_adaptive_alpha_sees_the_bounds_as_constants():
    """∂ sandwich / ∂w = α/N + (1 − α) softmax(2w), with no term through α."""
    torch.manual_seed(0)
    alpha = Alpha("adaptive").double()
    torch.nn.init.normal_(alpha.net[-1].weight)
    w = log_weights(2, 50, 4).requires_grad_()
    a = alpha(elbo(w), cubo(w))
    assert a.std() > 1e-3
    (slope,) = torch.autograd.grad(sandwich(w, a).sum(), w)
    share = (2 * w).exp() / (2 * w).exp().sum(-1, keepdim=True)
    torch.testing.assert_close(slope, a[:, None] / 4 + (1 - a)[:, None] * share)
