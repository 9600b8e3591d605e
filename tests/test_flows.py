"""flowrl.flows: every bijection against autograd's Jacobian in float64, the soft threshold also in float32, where gaps
of more than 17 round to ties; the layers' gradients against finite differences, the mixture's CDF against scipy's
logistics.
"""

import pytest
import scipy.stats
import torch
from ground_truth import randomise
from torch.autograd.functional import jacobian

from flowrl.flows import (
    COMPONENTS,
    COUPLINGS,
    AffineCoupling,
    AutoregressiveLayer,
    Flow,
    Mixture,
    MixtureCDFCoupling,
    mixture_logit,
    mixture_quantile,
    soft_threshold,
    soft_threshold_inverse,
)

B, S, DIM, HIDDEN, FEATURES = 2, 3, 5, 7, 4


def _layer(kind, swap):
    layer = randomise(COUPLINGS[kind](DIM, HIDDEN, swap).double(), 1)
    shift = torch.randn(B, 1, HIDDEN, dtype=torch.float64)
    return (B, S, DIM), lambda x: layer(x, shift), lambda y: layer.inverse(y, shift)


def _flow(kind, n_layers):
    flow = randomise(Flow(kind, n_layers, DIM, FEATURES, HIDDEN).double(), 2)
    shifts = flow.condition(torch.randn(B, FEATURES, dtype=torch.float64))
    return (B, S, DIM), lambda x: flow(x, shifts), lambda y: flow.inverse(y, shifts)


def _threshold(shape, action, allowed=None):
    action = torch.tensor(action).expand(B, S, -1)
    return (
        (B, S, *shape),
        lambda u: soft_threshold(u, action, allowed)[:2],
        lambda v: soft_threshold_inverse(v, action, allowed),
    )


BIJECTIONS = {
    **{kind: lambda kind=kind: _layer(kind, False) for kind in COUPLINGS},
    **{f"{kind}, swapped": lambda kind=kind: _layer(kind, True) for kind in COUPLINGS},
    **{f"{kind} flow": lambda kind=kind: _flow(kind, 3) for kind in COUPLINGS},
    "no flow": lambda: _flow("affine", 0),
    "threshold": lambda: _threshold((1, 4), [2]),
    "threshold, first category": lambda: _threshold((2, 2), [0, 1]),
    "threshold, three dimensions": lambda: _threshold((3, 2), [1, 0, 1]),
    "threshold, unequal sizes": lambda: _threshold(
        (2, 3), [1, 2], torch.tensor([[True, True, False], [True, True, True]])
    ),
}


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection(name):
    """Shape; inverse both ways; samples do not mix; ladj is the log-determinant of autograd's Jacobian, both ways."""
    torch.manual_seed(0)
    shape, forward, inverse = BIJECTIONS[name]()
    x = 2 * torch.randn(shape, dtype=torch.float64)
    y, ladj = forward(x)
    back, ladj_back = inverse(y)
    dim = x[0, 0].numel()
    blocks = jacobian(lambda x: forward(x)[0], x).reshape(B * S, dim, B * S, dim)
    own = blocks[torch.arange(B * S), :, torch.arange(B * S)]
    truth = torch.linalg.slogdet(own).logabsdet.reshape(B, S)

    assert y.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.as_tensor(ladj, dtype=torch.float64).expand(B, S), truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.as_tensor(ladj_back, dtype=torch.float64).expand(B, S), -truth, rtol=0, atol=1e-8)
    assert torch.count_nonzero(blocks) == torch.count_nonzero(own)  # nothing off the diagonal blocks
    assert torch.equal(y, x) == (name == "no flow")


class OneWay(torch.nn.Module):
    """A layer's `forward` or `inverse` as a module, so that `functional_call` finds it."""

    def __init__(self, layer, direction):
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, x, shift):
        y, ladj = getattr(self.layer, self.direction)(x, shift)
        return y, ladj + torch.zeros_like(y[..., 0])


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("kind", COUPLINGS)
def test_gradients_against_finite_differences(kind, direction):
    """Of the value and of ladj, both ways, in what goes in, in the state's shift and in every weight."""
    torch.manual_seed(0)
    module = OneWay(randomise(COUPLINGS[kind](3, 4, False).double(), 1), direction)
    names, weights = zip(*module.named_parameters(), strict=True)
    x, shift = torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(1, 1, 4, dtype=torch.float64)

    def function(x, shift, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x, shift))

    inputs = x.requires_grad_(), shift.requires_grad_(), *weights
    assert torch.autograd.gradcheck(function, inputs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", COUPLINGS)
def test_flow_starts_as_the_identity_and_depends_on_the_state(kind):
    torch.manual_seed(0)
    flow = Flow(kind, 4, DIM, FEATURES, HIDDEN)
    x, features = torch.randn(B, S, DIM), torch.randn(B, FEATURES)
    near = 0.14 if kind == "mixture" else 0.0  # each entry goes through two mixtures
    assert (flow(x, flow.condition(features))[0] - x).abs().max() <= near
    randomise(flow, 3)
    x = x[:1].expand(B, -1, -1)
    y, _ = flow(x, flow.condition(features))
    assert not torch.isclose(y[0], y[1]).any(-1).all()


def test_flow_refuses_an_unknown_kind():
    with pytest.raises(
        ValueError, match="unknown coupling 'spline'; choose one of: additive, affine, autoregressive, m"
    ):
        Flow("spline", 2, DIM, FEATURES, HIDDEN)


@pytest.mark.parametrize("hidden", [3, 20])
@pytest.mark.parametrize("swap", [False, True])
def test_autoregressive_entries_read_all_that_came_before(swap, hidden):
    """∂y_i/∂x_j: never 0 on the diagonal, 0 above it; below it not 0 where there are hidden units enough."""
    torch.manual_seed(0)
    layer = randomise(AutoregressiveLayer(DIM, hidden, swap).double(), 1)
    x, shift = torch.randn(1, 50, DIM, dtype=torch.float64), torch.randn(1, 1, hidden, dtype=torch.float64)
    blocks = jacobian(lambda x: layer(x, shift)[0].sum((0, 1)), x)[:, 0]  # (DIM, samples, DIM)
    depends = (blocks != 0).any(1)
    depends = depends.flip(0, 1) if swap else depends
    assert torch.equal(depends, depends.tril()) and (blocks.diagonal(dim1=0, dim2=2) != 0).all()
    assert torch.equal(depends, torch.ones(DIM, DIM).tril().bool()) == (hidden == 20)


def _mixture(n, spread, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    log_weight, location, log_width = torch.randn(3, COMPONENTS, n, generator=generator, dtype=torch.float64)
    log_weight = torch.log_softmax(2 * log_weight, 0)
    return Mixture(*(x.to(dtype) for x in (log_weight, spread * location, log_width.clamp(-2, 2))))


def test_mixture_logit_against_scipy():
    y, mixture = 3 * torch.randn(500, dtype=torch.float64), _mixture(500, 3)
    weight, logistic = mixture.log_weight.exp(), scipy.stats.logistic(mixture.location, mixture.log_width.exp())
    below, above, density = ((weight * torch.as_tensor(f(y))).sum(0) for f in (logistic.cdf, logistic.sf, logistic.pdf))
    value, log_slope = mixture_logit(y, mixture)
    torch.testing.assert_close(value, (below / above).log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_slope, (density / (below * above)).log(), rtol=1e-9, atol=1e-9)


def test_mixture_quantile_of_equal_components_is_theirs():
    """Where all μ and s are the same, y = μ + s logit."""
    equal = Mixture(_mixture(9, 1).log_weight, torch.full((COMPONENTS, 9), 3.0), torch.full((COMPONENTS, 9), -0.7))
    logit = torch.linspace(-60, 60, 9, dtype=torch.float64)
    y, log_slope = mixture_quantile(logit, Mixture(*(x.double() for x in equal)))
    scale = torch.tensor(-0.7).double().exp()
    torch.testing.assert_close(y, 3 + scale * logit)
    torch.testing.assert_close(log_slope, torch.full_like(y, 0.7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [0.5, 5.0, 50.0])
def test_mixture_quantile_to_rounding(spread):
    """G(y) = logit but for roundings of y, seen through G, and of G: 16 of float32's; in float64 one Newton step's."""
    logit = torch.linspace(-40, 40, 2001)
    mixture = _mixture(len(logit), spread, torch.float32)
    exact = Mixture(*(x.double() for x in mixture))
    low, high = (mixture_quantile(c, m)[0] for c, m in ((logit, mixture), (logit.double(), exact)))
    for y, tolerance in ((low, 16 * 2**-23), (high, 1e-8)):
        value, log_slope = mixture_logit(y.double(), exact)
        rounding = y.abs() * log_slope.exp() + logit.abs() + 1
        assert ((value - logit).abs() < tolerance * rounding).all()


def test_mixture_quantile_where_the_cdf_is_flat():
    """Between components at ±40 all y have logit F = 0 to rounding: any of them will do, but none beyond."""
    mixture = Mixture(*torch.tensor([[0.5, 0.5], [-40, 40], [1, 1]]).unsqueeze(-1).expand(3, 2, 7))
    mixture = mixture._replace(log_weight=mixture.log_weight.log(), log_width=mixture.log_width.log())
    logit = torch.tensor([-1e-6, -1e-8, -1e-12, 0, 1e-12, 1e-8, 1e-6])
    y, _ = mixture_quantile(logit, mixture)
    assert (y.diff() >= 0).all() and y.abs().max() < 40
    assert mixture_logit(y, mixture)[0].abs().max() < 5e-6


def test_far_tails_of_a_mixture_are_finite():
    """Where F or 1 − F is far below the smallest float32, values and gradients still are numbers."""
    y = torch.tensor([-1e4, -300.0, 300.0, 1e4], requires_grad=True)
    mixture = _mixture(4, 1, torch.float32)
    value, log_slope = mixture_logit(y, mixture)
    (value + log_slope).sum().backward()
    assert torch.isfinite(torch.stack((value, log_slope, y.grad))).all()
    back, _ = mixture_quantile(value.detach(), mixture)
    torch.testing.assert_close(back, y.detach(), rtol=1e-4, atol=0)


def test_a_new_mixture_layer_is_near_the_identity():
    """Off by at most log Σ exp(μ_m)/M = 0.0684, which it nears in the tails: ±½, ±⅙ by hand."""
    layer = MixtureCDFCoupling(2, HIDDEN, False).double()
    x = torch.linspace(-15, 15, 301, dtype=torch.float64)[None, :, None].expand(1, -1, 2)
    for direction in (layer.forward, layer.inverse):
        assert 0.068 < (direction(x, torch.zeros(1, 1, HIDDEN).double())[0] - x).abs().max() < 0.0685


@pytest.mark.parametrize("dim", [2, 6, 24])
def test_mixture_layers_keep_what_goes_in_whatever_their_weights(dim):
    """Two layers with weights of N(0, 1), widths of a training run, float32: finite, and back within 0.1, both ways."""
    torch.manual_seed(0)
    for seed in range(10):
        flow = randomise(Flow("mixture", 2, dim, 64, 32), seed, std=1.0)
        shifts = flow.condition(torch.randn(8, 64).tanh())
        x = torch.randn(8, 32, dim)
        for there, back in ((flow, flow.inverse), (flow.inverse, flow)):
            y, ladj = there(x, shifts)
            again, ladj_back = back(y, shifts)
            assert torch.stack((ladj, ladj_back, y.sum(-1))).isfinite().all()
            assert (again - x).abs().max() < 0.1


@pytest.mark.parametrize(("kind", "dim"), [(AffineCoupling, 2), (AutoregressiveLayer, 1)])
def test_affine_scales_are_bounded(kind, dim):
    """However large the weights, a layer of one changed entry scales it by e² at most and e⁻² at least."""
    torch.manual_seed(0)
    layer = randomise(kind(dim, HIDDEN, False), 4, std=1e3)
    scales = []
    for sign in (1, -1):
        layer.write.weight.data *= sign
        y, ladj = layer(100 * torch.randn(1, 1000, dim), torch.randn(1, 1, HIDDEN))
        assert torch.isfinite(y).all()
        scales.append(ladj)
    ladj = torch.cat(scales)
    assert 1.9 < ladj.max() <= 2 and -2 <= ladj.min() < -1.9


def test_threshold_supports_the_region_and_nothing_else():
    """Every u goes into argmax v = a, the chosen entry stays, and every v of the region comes from some u."""
    torch.manual_seed(0)
    u = 5 * torch.randn(2000, 2, 4, dtype=torch.float64)
    action = torch.randint(4, (2000, 2))
    v, _, _ = soft_threshold(u, action)
    assert torch.equal(v.argmax(-1), action)
    assert torch.equal(v.gather(-1, action[..., None]), u.gather(-1, action[..., None]))

    latent = torch.randn(2000, 2, 4, dtype=torch.float64)
    u, _ = soft_threshold_inverse(latent, latent.argmax(-1))
    assert torch.isfinite(u).all()
    torch.testing.assert_close(soft_threshold(u, latent.argmax(-1))[0], latent, rtol=0, atol=1e-9)


GAPS = torch.linspace(-100, 100, 801)
TOPS = torch.tensor([-60.0, -2.0, -1e-3, 0.0, 0.5, 3.0, 70.0])


def _pairs():
    """u = (top, top + gap) in float32 for every top and gap, the first one chosen."""
    top, gap = torch.meshgrid(TOPS, GAPS, indexing="ij")
    u = torch.stack((top, top + gap), -1).reshape(-1, 1, 2)
    return u, torch.zeros(len(u), 1, dtype=torch.int64)


def test_float32_threshold_gives_back_the_action_and_counts_ties():
    u, action = _pairs()
    v, ladj, ties = soft_threshold(u, action)
    assert torch.equal(v.argmax(-1), action) and (v[:, 0, 1] < v[:, 0, 0]).all()
    assert torch.isfinite(v).all() and torch.isfinite(ladj).all()

    top, other = u[:, 0].double().unbind(-1)
    drop = torch.log1p(torch.exp(top - other))
    half = (u[:, 0, 0] - torch.nextafter(u[:, 0, 0], torch.tensor(-torch.inf))).double() / 2
    clear = (drop / half - 1).abs() > 0.01  # else rounding goes either way
    assert torch.equal(ties[clear], (drop < half)[clear].long())
    assert 100 < ties.sum() < len(u) / 2 and clear.float().mean() > 0.99
    torch.testing.assert_close(ladj.double(), -torch.log1p(torch.exp(other - top)), rtol=1e-6, atol=1e-30)


def test_float32_inverse_is_finite_and_accurate_where_information_is_left():
    """du_j/dv_j = 1 + exp(u_j − u_i), so rounding v to a few units in the last place bounds the error of u."""
    u, action = _pairs()
    v, _, ties = soft_threshold(u, action)
    back, ladj = soft_threshold_inverse(v, action)
    assert torch.isfinite(back).all() and torch.isfinite(ladj).all()
    gap = (u[:, 0, 1] - u[:, 0, 0]).double()
    rounding = 4 * torch.finfo(torch.float32).eps * (u.abs().sum(-1)[:, 0].double() + 1e-3)
    bound = rounding * (1 + gap.exp())
    left = bound < 0.1
    error = (back - u)[:, 0, 1].double().abs()
    assert (error <= bound)[left].all() and left.float().mean() > 0.5
    assert not ties[left].any()


def test_an_exact_tie_has_a_finite_inverse():
    """Float32 latents tie about once in thirty million draws, and one infinity ends a run that asks q of them."""
    v = torch.tensor([[[1.0, 1.0, 0.0]], [[-3.5, 2.25, 2.25]], [[0.0, 0.0, -1.0]]])
    action = torch.tensor([[0], [1], [0]])
    u, ladj = soft_threshold_inverse(v, action)
    assert torch.isfinite(u).all() and torch.isfinite(ladj).all()
    assert torch.equal(soft_threshold(u, action)[0].argmax(-1), action)


def test_what_is_outside_the_region_has_no_inverse():
    u, _ = soft_threshold_inverse(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]))
    assert u.isnan().tolist() == [[False, True, False]]


def test_padded_categories_stay_as_they_are():
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    u = torch.tensor([[[0.0, 1.0, 99.0], [3.0, 0.0, 1.0]]])
    v, ladj, _ = soft_threshold(u, torch.tensor([[0, 1]]), allowed)
    assert v[0, 0, 2] == 99 and v[0, 0, 1] < 0
    expected = torch.nn.functional.logsigmoid(torch.tensor([-1.0, -3.0, -1.0])).sum()
    torch.testing.assert_close(ladj[0], expected)
