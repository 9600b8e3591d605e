"""flowrl.optimisers: TensorFlow's RMSprop against its recursion written out, and where it parts from torch's."""

import math

import numpy as np
import pytest
import torch

from flowrl.optimisers import OPTIMISERS, RMSpropTF

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
