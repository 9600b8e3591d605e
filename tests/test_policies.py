"""flowrl.policies: densities against autograd's Jacobian, probabilities and their gradients against quadrature and
enumeration, samples against both. Gradients are compared over all of a policy's parameters at once.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from ground_truth import CHI_SQUARE_P, chi_square_p, randomise, z_scores
from torch import nn
from torch.autograd.functional import jacobian
from torch.distributions import Normal

from flowrl import rejection
from flowrl.beyond.gumbel import GumbelFlowPolicy
from flowrl.policies import (
    AutoregressivePolicy,
    CategoricalPolicy,
    FactoredPolicy,
    FlowPolicy,
    MaskedPolicy,
    Sample,
    packed,
    to_digits,
    to_flat,
)
from flowrl.study.config import make_config
from flowrl.truth.gradients import gaussian_argmax_log_probs, gradient, region_grid, region_log_probs

STATE = torch.tensor([[0.4, -1.1]], dtype=torch.float64)
STATES = torch.tensor([[0.4, -1.1], [-0.3, 0.7]], dtype=torch.float64)
WIDTH = 4
Z_BOUND = 5.0  # over up to two hundred parameters, from 40 batch means
NODES = {2: 600, 3: 64}  # by the number of categories
TOLERANCE = 1e-3  # of the gradient of a quadrature over two categories: relu makes kinks
FLOWS = {
    "gaussian": {"n_couplings": 0, "base_scale": "learned"},
    "additive": {"n_couplings": 2, "base_scale": "fixed"},
    "shared scale": {"n_couplings": 2, "base_scale": "shared"},
    "affine": {"n_couplings": 2, "base_scale": "learned", "coupling": "affine"},
    "autoregressive": {"n_couplings": 2, "base_scale": "fixed", "coupling": "autoregressive"},
    "mixture": {"n_couplings": 2, "base_scale": "fixed", "coupling": "mixture"},
}


def make(kind, sizes, seed=0, std=0.25, **settings):
    """A policy in float64, every parameter random."""
    torch.manual_seed(seed)
    config = make_config("none", "iar-a2c", {"hidden": WIDTH, "policy_hidden": 6, **settings})
    policy = kind(nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh()), WIDTH, sizes, config).double()
    return randomise(policy, seed, std)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def latent_log_prob(policy):
    """v (X, K) → log p(v|STATE) (X,) of a flow over one dimension."""
    features = policy.features(STATE)
    return lambda v: policy.latent_log_prob(features, v[None, :, None])[0]


def flow_log_probs(policy):
    """log π(·|STATE) of a flow over one dimension, by quadrature of its latent density; differentiable."""
    return region_log_probs(latent_log_prob(policy), policy.sizes[0], NODES[policy.sizes[0]])


# ------------------------------------------------------------------------------------------------ flow policy


@pytest.mark.parametrize("name", FLOWS)
def test_latent_density_is_the_change_of_variables(name):
    """log p(v|s) = log N(z₀; μ, σ²) − log|det ∂F/∂z₀|, F sampled forwards, the determinant by autograd."""
    policy = make(FlowPolicy, (3, 3), **FLOWS[name])
    features = policy.features(STATES)
    latent = policy.sample(features, 5, generator()).latent
    found = policy.latent_log_prob(features, latent)
    z, _ = policy.flow.inverse(latent.flatten(-2), features.shifts)
    scale = torch.ones(()) if features.log_scale is None else features.log_scale.exp()
    base = Normal(features.mean, scale).log_prob(z).sum(-1)
    for b, j in itertools.product(range(2), range(5)):
        shifts = tuple(shift[b : b + 1] for shift in features.shifts)
        matrix = jacobian(lambda x, shifts=shifts: policy.flow(x[None, None], shifts)[0][0, 0], z[b, j].detach())
        torch.testing.assert_close(found[b, j], base[b, j] - torch.linalg.slogdet(matrix).logabsdet)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_samples_follow_its_density(name):
    """Frequencies of the argmax against the density's mass in each region, which also sums to one."""
    policy = make(FlowPolicy, (3,), **FLOWS[name])
    with torch.no_grad():
        probabilities = flow_log_probs(policy).exp()
    sample = policy.sample(policy.features(STATE), 40_000, generator())
    assert abs(probabilities.sum() - 1) < 5e-4
    assert probabilities.min() > 0.02
    assert torch.equal(sample.latent.argmax(-1), sample.action)
    assert chi_square_p(sample.action.flatten().bincount(minlength=3), probabilities) > CHI_SQUARE_P


@pytest.mark.parametrize("name", FLOWS)
def test_an_initial_gain_makes_every_layer_behind_the_encoder_orthogonal(name):
    """W Wᵀ or Wᵀ W = gain² I, whichever is smaller; no random bias is left; components of a mixture stay apart."""
    torch.manual_seed(0)
    changes = FLOWS[name] | {"hidden": WIDTH, "policy_hidden": 6, "estimator": "sandwich", "initial_gain": 0.01}
    config = make_config("none", "iar-a2c", changes)
    policy = FlowPolicy(nn.Linear(2, WIDTH), WIDTH, (3, 3), config)
    started = [m for part in (policy.mean, policy.flow, policy.posterior) for m in part.modules()]
    linear = [m for m in [*started, policy.log_scale] if isinstance(m, nn.Linear)]
    assert len(linear) >= 9
    for layer in linear:
        weight = layer.weight.detach()
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(gram, 1e-4 * torch.eye(len(gram)), rtol=1e-4, atol=1e-9)
    biases = [m.bias for m in linear if m.bias is not None]
    if name == "mixture":
        assert sum(bool(bias.any()) for bias in biases) == config.n_couplings
    else:
        assert not any(bias.any() for bias in biases)


def test_padded_categories_never_win():
    """Sizes (2, 4, 3): frequencies follow each dimension's own quadrature, though the padding is far above it."""
    policy = make(FlowPolicy, (2, 4, 3), **FLOWS["gaussian"])
    padding = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    policy.mean.bias.data[padding.flatten()] += 50
    features = policy.features(STATE)
    action = policy.sample(features, 50_000, generator()).action[0]
    mean, scale = features.mean.detach().view(3, 4), features.log_scale.detach().exp().view(3, 4)
    for d, size in enumerate(policy.sizes):
        truth = gaussian_argmax_log_probs(mean[d, :size], scale[d, :size]).exp()
        counts = action[:, d].bincount(minlength=4)
        assert counts[size:].sum() == 0
        assert chi_square_p(counts[:size], truth) > CHI_SQUARE_P


@pytest.mark.parametrize("sizes", [(3,), (2, 4, 3)])
@pytest.mark.parametrize("posterior", ["gaussian", "flow"])
def test_posterior_samples_have_the_action_and_the_density_said(sizes, posterior):
    """argmax v = a among the categories that exist, and log q is the same from the noise and from v."""
    policy = make(FlowPolicy, sizes, estimator="elbo", posterior=posterior)
    features = policy.features(STATES)
    action = policy.sample(features, 50, generator()).action
    v, log_q, ties = policy.posterior.sample(features.hidden, action, 4, generator(1))
    exists = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    assert torch.equal(v.masked_fill(~exists, -torch.inf).argmax(-1), action.unsqueeze(2).expand(-1, -1, 4, -1))
    assert v.shape == (2, 50, 4, len(sizes), max(sizes)) and ties.sum() == 0
    torch.testing.assert_close(policy.posterior.log_prob(features.hidden, action, v), log_q, rtol=0, atol=1e-6)


def posterior_log_prob(policy, action):
    """v (X, 2) → log q(v|action, STATE) (X,)."""
    hidden = policy.features(STATE).hidden
    return lambda v: policy.posterior.log_prob(hidden, torch.tensor([[[action]]]), v[None, None, :, None])[0, 0]


@pytest.mark.parametrize("posterior", ["gaussian", "flow"])
def test_posterior_is_a_density_on_its_region(posterior):
    """∫ q over {argmax v = a} is one; and draws follow it: E_q[p/(p + q)] = ∫ pq/(p + q), a bounded mean."""
    policy = make(FlowPolicy, (2,), estimator="elbo", posterior=posterior, **FLOWS["affine"])
    features = policy.features(STATE)
    w, _ = policy.log_weights(features, torch.tensor([[[0], [1]]]), 20_000, generator())
    for a in range(2):
        v, log_weight = region_grid(a, 2, NODES[2])
        with torch.no_grad():
            log_q, log_p = posterior_log_prob(policy, a)(v), latent_log_prob(policy)(v)
        q = (log_weight + log_q).exp()
        assert abs(q.sum() - 1) < 1e-4
        assert abs(z_scores(w[0, a].sigmoid(), (q * (log_p - log_q).sigmoid()).sum())) < Z_BOUND


@pytest.mark.parametrize("name", ["gaussian", "additive", "affine"])
def test_estimates_of_log_prob_approach_the_truth_from_below(name):
    """E[ELBO] < E[IWAE_8] < E[IWAE_1000] ≈ log π, from a posterior that was never fitted."""
    policy = make(FlowPolicy, (3,), estimator="iwae", n_posterior=8, **FLOWS[name])
    with torch.no_grad():
        truth = flow_log_probs(policy)
        features = policy.features(STATE)
        action = torch.arange(3)[None, :, None]
        w, _ = policy.log_weights(features, action, 100_000, generator())
        eight = policy.log_prob(features, Sample(action.repeat_interleave(10_000, 1)), generator(1)).view(3, 10_000)
        thousand = torch.logsumexp(w.view(3, 100, 1000), -1) - math.log(1000)
    for a in range(3):
        ladder = [w[0, a], eight[a], thousand[a]]
        means = torch.stack([x.mean() for x in ladder] + [truth[a]])
        errors = torch.stack([x.std() / len(x) ** 0.5 for x in ladder])
        assert (means.diff()[:2] > Z_BOUND * errors[:2]).all()
        assert -Z_BOUND * errors[2] < truth[a] - means[2] < 0.5


# ----------------------------------------------------------------------------------- gradients of log π(a|s)

RETURNS = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)  # f(a): E[f(a) ∇log π(a|s)] = Σ f(a) ∇π(a|s)
BATCHES, ROWS, DRAWS = 40, 1500, 4


def surrogate_gradients(policy, weights_of):
    """Gradients (BATCHES, parameters) of mean Σ_j weight_j surrogate_j over ROWS copies of the state."""
    state, parameters, found = STATE.expand(ROWS, -1), list(policy.parameters()), []
    noise = generator(7)
    for _ in range(BATCHES):
        features = policy.features(state)
        sample = policy.sample(features, DRAWS, noise)
        weights = weights_of(sample.action[..., 0])
        found.append(gradient((weights * policy.score_surrogate(features, sample, noise)).sum() / ROWS, parameters))
    return torch.stack(found)


def plain(action):
    """Every draw on its own."""
    return RETURNS[action] / DRAWS


def shared(action):
    """The first draw is executed, its score averaged over the draws that share its action."""
    valid = torch.ones_like(action, dtype=torch.bool)
    one = torch.zeros(len(action), dtype=torch.int64)
    decision = rejection.Decision(None, None, Sample(action), valid, one, one, one, action, valid[:, 0])
    return RETURNS[action[:, :1]] * rejection.shared_weights(decision, rejection.same_action(action[..., None], valid))


@pytest.mark.parametrize("name, categories", [("gaussian", 3), ("additive", 2), ("affine", 2)])
@pytest.mark.parametrize("estimator", ["rb", "latent", "cis"])
def test_surrogate_gradient_is_unbiased(estimator, name, categories):
    """Against ∇ Σ f(a) π(a|s) by quadrature, in every parameter; cis with a posterior that was never fitted."""
    policy = make(FlowPolicy, (categories,), estimator=estimator, **FLOWS[name])
    truth = gradient((RETURNS[:categories] * flow_log_probs(policy).exp()).sum(), policy.parameters())
    found = surrogate_gradients(policy, shared if estimator == "rb" else plain)
    assert truth.norm() > 0.5
    assert z_scores(found, truth, TOLERANCE).abs().max() < Z_BOUND
    assert (found.mean(0) - truth).norm() < 0.03 * truth.norm()


@pytest.mark.parametrize("posterior", ["gaussian", "flow"])
def test_elbo_gradient_is_that_of_the_elbo(posterior):
    """The reparameterised gradient against ∇ ∫ q (log p − log q) by quadrature, in (φ, w, ψ), through one action."""
    policy = make(FlowPolicy, (2,), estimator="elbo", n_posterior=2, posterior=posterior, **FLOWS["affine"])
    parameters, noise, found = list(policy.parameters()), generator(), []
    v, log_weight = region_grid(1, 2, NODES[2])
    log_q, log_p = posterior_log_prob(policy, 1)(v), latent_log_prob(policy)(v)
    truth = gradient(((log_weight + log_q).exp() * (log_p - log_q)).sum(), parameters)
    for _ in range(BATCHES):
        sample = Sample(torch.ones(1, 5000, 1, dtype=torch.int64))
        found.append(gradient(policy.score_surrogate(policy.features(STATE), sample, noise).mean(), parameters))
    found = torch.stack(found)
    assert z_scores(found, truth, 5 * TOLERANCE).abs().max() < Z_BOUND
    assert (found.mean(0) - truth).norm() < 0.03 * truth.norm()


def test_gaussian_gradient_against_one_dimensional_quadrature():
    """The reference of the tests above, against a second one that uses nothing of the policy's density."""
    policy = make(FlowPolicy, (3,), **FLOWS["gaussian"])
    features = policy.features(STATE)
    one = gaussian_argmax_log_probs(features.mean.flatten(), features.log_scale.exp().flatten())
    two = flow_log_probs(policy)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    for a in range(3):
        expected = gradient(one[a], policy.parameters())
        torch.testing.assert_close(gradient(two[a], policy.parameters()), expected, rtol=0, atol=1e-4)


def test_coupling_gradient_against_finite_differences():
    """∂π/∂w of a coupling's output weights by finite differences of 4·10⁶ draws with common random numbers."""
    policy = make(FlowPolicy, (3,), **FLOWS["affine"])
    weight = policy.flow.layers[1].write.bias
    (slope,) = torch.autograd.grad(flow_log_probs(policy).exp()[1], weight)
    k = int(slope.abs().argmax())
    step, counts = 0.05, []
    with torch.no_grad():
        for sign in (1, -1):
            weight[k] += sign * step
            draws = [policy.sample(policy.features(STATE), 1_000_000, generator(i)).action for i in range(4)]
            counts.append(torch.cat([draw.flatten() == 1 for draw in draws]).double())
            weight[k] -= sign * step
    difference = (counts[0] - counts[1]) / (2 * step)
    assert abs(slope[k]) > 0.05
    assert abs(z_scores(difference, slope[k])) < 4  # the bias of the central difference is O(step²)


def test_sharing_draws_and_posterior_draws_reduce_the_variance():
    """Rao-Blackwell: rb over S draws, and cis over N latents, spread less than the latent score alone."""
    spread = {}
    for estimator in ("rb", "latent", "cis"):
        policy = make(FlowPolicy, (3,), estimator=estimator, **FLOWS["affine"])
        features = policy.features(STATE.expand(20_000, -1))
        leaf = features.mean.detach().requires_grad_()
        features = features._replace(mean=leaf)
        sample = policy.sample(features, DRAWS, generator())
        action = sample.action[..., 0]
        first = RETURNS[action[:, :1]] * torch.eye(DRAWS, dtype=torch.float64)[0]
        weights = shared(action) if estimator == "rb" else first
        (slope,) = torch.autograd.grad((weights * policy.score_surrogate(features, sample, generator(1))).sum(), leaf)
        spread[estimator] = float(slope.var(0).sum())
    assert spread["rb"] < 0.8 * spread["latent"]
    assert spread["cis"] < 0.95 * spread["latent"]


@pytest.mark.parametrize("made", ["as named", "sandwich"])  # the second has an α, which must not matter
@pytest.mark.parametrize("estimator", ["elbo", "cubo", "iwae", "sandwich"])
def test_log_prob_is_the_estimator_named(estimator, made):
    """From the same draws, by the definitions."""
    policy = make(FlowPolicy, (3,), estimator=estimator if made == "as named" else made, n_posterior=4)
    policy.estimator = estimator
    features = policy.features(STATES)
    sample = policy.sample(features, 6, generator())
    w, _ = policy.log_weights(features, sample.action, 4, generator(1))
    low, high, middle = w.mean(-1), 0.5 * (2 * w).exp().mean(-1).log(), w.exp().mean(-1).log()
    expected = {"elbo": low, "cubo": high, "iwae": middle, "sandwich": (low + high) / 2}[estimator]
    torch.testing.assert_close(policy.log_prob(features, sample, generator(1)), expected)


@pytest.mark.parametrize("estimator", ["rb", "latent", "cis"])
def test_estimators_of_the_gradient_alone_have_no_log_prob(estimator):
    policy = make(FlowPolicy, (3,), estimator=estimator)
    features = policy.features(STATE)
    with pytest.raises(ValueError, match=f"'{estimator}' has no log_prob; choose one of: elbo, cubo, iwae, sandwich$"):
        policy.log_prob(features, policy.sample(features, 2, generator()))


# ------------------------------------------------------------------------------------------- latent KL


def test_latent_kl_of_a_gaussian():
    """KL(N(μ, σ²) ‖ N(0, 1)) = Σ ½(σ² + μ² − 1) − log σ, and its pathwise gradient in μ and log σ."""
    policy = make(FlowPolicy, (3, 2), **FLOWS["gaussian"])
    features = policy.features(STATE)
    mean, log_scale = (x.detach().requires_grad_() for x in (features.mean, features.log_scale))
    truth = (0.5 * ((2 * log_scale).exp() + mean**2 - 1) - log_scale).sum()
    rows = features._replace(
        mean=mean.detach().expand(20_000, -1, -1).clone().requires_grad_(),
        log_scale=log_scale.detach().expand(20_000, -1, -1).clone().requires_grad_(),
    )
    found = policy.latent_kl(rows, 1, generator())
    assert abs(z_scores(found, truth.detach())) < Z_BOUND
    for leaf, exact in ((rows.mean, mean), (rows.log_scale, log_scale)):
        slopes = torch.autograd.grad(found.sum(), leaf, retain_graph=True)[0]
        expected = torch.autograd.grad(truth, exact, retain_graph=True)[0]
        assert z_scores(slopes, expected[0]).abs().max() < Z_BOUND


@pytest.mark.parametrize("name", ["additive", "affine", "autoregressive", "mixture"])
def test_latent_kl_of_a_flow(name):
    """∫ p(v) (log p(v) − log N(v)) dv by quadrature."""
    policy = make(FlowPolicy, (3,), **FLOWS[name])
    with torch.no_grad():
        truth = 0.0
        for a in range(3):
            v, log_weight = region_grid(a, 3, NODES[3])
            log_p = latent_log_prob(policy)(v)
            truth += ((log_weight + log_p).exp() * (log_p - Normal(0, 1).log_prob(v).sum(-1))).sum()
        found = policy.latent_kl(policy.features(STATE.expand(20_000, -1)), 2, generator())
    assert abs(z_scores(found, truth, TOLERANCE)) < Z_BOUND


# -------------------------------------------------------------------------------------------- the rivals

KINDS = [FlowPolicy, GumbelFlowPolicy, AutoregressivePolicy, CategoricalPolicy, FactoredPolicy]
SIZES = (2, 3, 2)
ALL = torch.tensor(list(itertools.product(*map(range, SIZES))))


def test_flat_actions_are_mixed_radix():
    for sizes in ((4,), SIZES, (9, 9, 9)):
        digits = np.array(list(itertools.product(*map(range, sizes))))
        flat = np.ravel_multi_index(tuple(digits.T), sizes)
        assert to_flat(torch.tensor(digits), sizes).tolist() == flat.tolist()
        assert to_digits(torch.tensor(flat), sizes).tolist() == digits.tolist()


HUGE = {(9, 9, 9): 1, (2,) * 63: 1, (2,) * 64: 2, (100,) * 20: 3, (2**40,) * 3: 3}


@pytest.mark.parametrize("sizes", HUGE)
def test_packed_actions_are_equal_where_all_digits_are(sizes):
    """Rows that each differ from the largest action in one digit, and two that don't, against digits compared."""
    largest, D = torch.tensor(sizes) - 1, len(sizes)
    action = (largest - torch.cat((torch.eye(D), torch.zeros(2, D))).long())[None]
    numbers = packed(action, sizes)
    assert numbers.shape == (1, D + 2, HUGE[sizes]) and (numbers >= 0).all()
    same = rejection.same_action(numbers, torch.ones(1, D + 2, dtype=torch.bool))
    assert torch.equal(same, (action[:, :, None] == action[:, None]).all(-1)) and same.sum() == D + 4


@pytest.mark.parametrize("std", [0.4, 1.0])
def test_autoregressive_policy(std):
    """Over all actions of unequal sizes: a distribution, sampled as it says, and no product of its marginals."""
    policy = make(AutoregressivePolicy, SIZES, std=std)
    with torch.no_grad():
        features = policy.features(STATES)
        log_prob = policy.log_prob(features, Sample(ALL.expand(2, -1, -1)))
        sample = policy.sample(features, 50_000, generator())
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    for b in range(2):
        counts = to_flat(sample.action[b], SIZES).bincount(minlength=len(ALL))
        assert chi_square_p(counts, log_prob[b].exp()) > CHI_SQUARE_P
    joint = log_prob[0].exp().view(SIZES)
    product = joint.sum((1, 2))[:, None, None] * joint.sum((0, 2))[None, :, None] * joint.sum((0, 1))[None, None]
    assert (joint - product).abs().max() > 0.005
    assert (log_prob[0] - log_prob[1]).abs().max() > 0.1  # it reads the state


@pytest.mark.parametrize("kind", [CategoricalPolicy, FactoredPolicy])
def test_categorical_and_factored_policies(kind):
    """The softmax of their logits, and for the factored the product of its marginals; entropy by enumeration."""
    policy = make(kind, SIZES, std=1.0)
    with torch.no_grad():
        features, logits = policy.features(STATES), policy.logits(policy.encoder(STATES))
        if kind is CategoricalPolicy:
            truth = torch.softmax(logits, -1)
        else:
            marginals = [torch.softmax(logits[:, 3 * d : 3 * d + size], -1) for d, size in enumerate(SIZES)]
            truth = torch.einsum("bi,bj,bk->bijk", *marginals).flatten(1)
        found = policy.log_prob(features, Sample(ALL.expand(2, -1, -1))).exp()
        sample = policy.sample(features, 50_000, generator())
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(policy.entropy(features), -(truth * truth.log()).sum(-1))
    assert sample.action.shape == (2, 50_000, 3) and (truth[0] - truth[1]).abs().max() > 0.01
    for b in range(2):
        assert chi_square_p(to_flat(sample.action[b], SIZES).bincount(minlength=len(ALL)), truth[b]) > CHI_SQUARE_P


def test_too_many_actions_for_a_logit_each_are_refused():
    with pytest.raises(ValueError, match="1,000,000: categorical policies enumerate all, at most 200,000"):
        make(CategoricalPolicy, (10,) * 6)


MASK = torch.rand(2, len(ALL), generator=generator(5)) < 0.4


def test_masked_policy():
    """A softmax over the valid actions alone; entropy exact; what is masked is never drawn."""
    policy = make(MaskedPolicy, SIZES)
    logits = policy.logits(policy.encoder(STATES)).detach()
    truth = torch.where(MASK, logits.exp(), 0.0)
    truth = truth / truth.sum(-1, keepdim=True)
    with torch.no_grad():
        features = policy.features(STATES, MASK)
        found = policy.log_prob(features, Sample(ALL.expand(2, -1, -1))).exp()
        sample = policy.sample(features, 50_000, generator())
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(policy.entropy(features), -torch.special.xlogy(truth, truth).sum(-1))
    for b in range(2):
        assert chi_square_p(to_flat(sample.action[b], SIZES).bincount(minlength=len(ALL)), truth[b]) > CHI_SQUARE_P


def test_masked_policy_has_finite_gradients():
    """Of log-probabilities and of the entropy, also where one action alone is valid; by finite differences."""
    policy = make(MaskedPolicy, SIZES)
    mask = MASK.clone()
    mask[1] = torch.arange(len(ALL)) == 7
    action = Sample(ALL[[int(MASK[0].nonzero()[0]), 7]][:, None])

    def objective():
        features = policy.features(STATES, mask)
        return policy.log_prob(features, action).sum() + 0.3 * policy.entropy(features).sum()

    slope = gradient(objective(), policy.parameters())
    bias, step = policy.logits.bias, 1e-6
    expected = []
    with torch.no_grad():
        assert policy.entropy(policy.features(STATES, mask))[1] == 0
        for k in range(len(ALL)):
            values = []
            for sign in (1, -1):
                bias[k] += sign * step
                values.append(objective())
                bias[k] -= sign * step
            expected.append((values[0] - values[1]) / (2 * step))
    assert torch.isfinite(slope).all()
    torch.testing.assert_close(slope[-len(ALL) :], torch.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_encoded_once_however_many_samples(kind):
    policy = make(kind, SIZES)
    seen = []
    policy.encoder.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    features = policy.features(STATES)
    policy.score_surrogate(features, policy.sample(features, 64, generator()))
    assert seen == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_repeat_with_the_generator_and_carry_no_gradient(kind):
    policy = make(kind, SIZES)
    features = policy.features(STATES)
    first, second, other = (policy.sample(features, 100, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.action, second.action) and not torch.equal(first.action, other.action)
    assert first.action.dtype == torch.int64 and first.action.shape == (2, 100, 3)
    assert first.latent is None or not first.latent.requires_grad
