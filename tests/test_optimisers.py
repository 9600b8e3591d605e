"""flowrl.optimisers: TensorFlow's RMSprop against its recursion written out, and where it parts from torch's; the flat
parameter against torch's own optimiser on the separate ones.
"""

import math

import numpy as np
import pytest
import torch

from flowrl.optimisers import OPTIMISERS, RMSpropTF, flat_parameters

LR, ALPHA, EPS = 3e-4, 0.99, 1e-5


def descend(kind: str, gradients: np.ndarray) -> np.ndarray:
    """Where zeros end after these gradients (steps, n), in float64."""
    p = torch.nn.Parameter(torch.zeros(gradients.shape[1], dtype=torch.float64))
    optimiser = OPTIMISERS[kind]([p], lr=LR, alpha=ALPHA, eps=EPS)
    for gradient in gradients:
        p.grad = torch.from_numpy(gradient)
        optimiser.step()
    return p.detach().numpy()


def test_against_the_recursion_written_out():
    gradients = np.random.default_rng(0).normal(size=(500, 4)) * 10.0 ** np.array([0, -1, -3, -5])
    expected = []
    for column in gradients.T:
        theta, v = 0.0, 1.0
        for g in column:
            v = ALPHA * v + (1 - ALPHA) * g * g
            theta -= LR * g / math.sqrt(v + EPS)
        expected.append(theta)
    np.testing.assert_allclose(descend("rmsprop_tf", gradients), expected, rtol=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_first_and_late_steps_beside_torchs(size):
    """First step: torch's ten times lr whatever the gradient, this one lr g. Late: lr for both unless |g| < √ε."""
    first, many = np.full((1, 1), size), np.full((5000, 1), size)
    last = {kind: (descend(kind, many) - descend(kind, many[:-1]))[0] for kind in OPTIMISERS}
    assert descend("rmsprop", first)[0] == pytest.approx(-10 * LR, rel=EPS / (0.1 * size) * 1.1)
    assert descend("rmsprop_tf", first)[0] == pytest.approx(-LR * size, rel=0.01)
    assert last["rmsprop"] == pytest.approx(-LR, rel=1.1 * EPS / size)
    assert last["rmsprop_tf"] == pytest.approx(-LR * size / math.hypot(size, math.sqrt(EPS)), rel=1e-6)


def test_a_parameter_without_gradient_stays():
    p = torch.nn.Parameter(torch.ones(2))
    RMSpropTF([p], lr=1.0).step()
    assert torch.equal(p.detach(), torch.ones(2))


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
