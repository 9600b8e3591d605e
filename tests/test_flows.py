"""flowrl.flows: every bijection against autograd's Jacobian in float64, the soft threshold also in float32, where gaps
of more than 17 round to ties; and the flat parameter against torch's own optimiser on the separate ones.
"""

import pytest
import torch
from ground_truth import randomise
from torch.autograd.functional import jacobian

from flowrl.flows import (
    AdditiveCoupling,
    AffineCoupling,
    Flow,
    flat_parameters,
    soft_threshold,
    soft_threshold_inverse,
)

B, S, DIM, HIDDEN, FEATURES = 2, 3, 5, 7, 4


def _coupling(kind, swap):
    layer = randomise(kind(DIM, HIDDEN, swap).double(), 1)
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
    "additive": lambda: _coupling(AdditiveCoupling, False),
    "additive, swapped": lambda: _coupling(AdditiveCoupling, True),
    "affine": lambda: _coupling(AffineCoupling, False),
    "affine, swapped": lambda: _coupling(AffineCoupling, True),
    "no flow": lambda: _flow("affine", 0),
    "additive flow": lambda: _flow("additive", 3),
    "affine flow": lambda: _flow("affine", 4),
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


@pytest.mark.parametrize("kind", ["additive", "affine"])
def test_flow_starts_as_the_identity_and_depends_on_the_state(kind):
    torch.manual_seed(0)
    flow = Flow(kind, 4, DIM, FEATURES, HIDDEN)
    x, features = torch.randn(B, S, DIM), torch.randn(B, FEATURES)
    assert torch.equal(flow(x, flow.condition(features))[0], x)
    randomise(flow, 3)
    x = x[:1].expand(B, -1, -1)
    y, _ = flow(x, flow.condition(features))
    assert not torch.isclose(y[0], y[1]).any(-1).all()


def test_affine_scales_are_bounded():
    """However large the weights, a layer of one changed entry scales it by e² at most and e⁻² at least."""
    torch.manual_seed(0)
    layer = randomise(AffineCoupling(2, HIDDEN, False), 4, std=1e3)
    scales = []
    for sign in (1, -1):
        layer.write.weight.data *= sign
        y, ladj = layer(100 * torch.randn(1, 1000, 2), torch.randn(1, 1, HIDDEN))
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


def test_flat_parameters_step_as_the_separate_ones_do():
    """RMSprop on the flat parameter against torch's own on the modules' parameters, three steps, bit for bit."""
    torch.manual_seed(0)
    nets = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)]
    twins = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)]
    for net, twin in zip(nets, twins, strict=True):
        twin.load_state_dict(net.state_dict())
    flat = flat_parameters(*nets)
    ours = torch.optim.RMSprop([flat], lr=0.1)
    theirs = torch.optim.RMSprop([p for twin in twins for p in twin.parameters()], lr=0.1)
    for _ in range(3):
        x = torch.randn(8, 3)
        flat.grad.zero_()
        theirs.zero_grad()
        for first, second in (nets, twins):
            second(first(x).tanh()).square().mean().backward()
        assert flat.grad.norm() > 0
        ours.step()
        theirs.step()
    for net, twin in zip(nets, twins, strict=True):
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.data_ptr() >= flat.data_ptr() and p.grad is not None
