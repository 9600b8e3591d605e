"""What a policy is worth: references, exact returns, a policy without memory against its own probabilities."""

import numpy as np
import pytest
import torch

from flowrl import envs, evaluation, exact, search
from flowrl.config import make_config
from flowrl.policies import Sample
from flowrl.rejection import all_actions
from flowrl.runs import make_trainer


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ERA-v2", lambda: exact.optimum("ERA-v2")),
        ("ERA-L-6x10", lambda: search.reference("ERA-L-6x10")),  # too large to be solved: its optimum is None
        ("Toy-Partial", lambda: exact.partial_reference("Toy-Partial")),
        ("CartPole-v1", lambda: None),
    ],
)
def test_reference_is_what_is_known_of_an_environment(name, expected):
    assert evaluation.reference(envs.make_batched(name, 1)) == expected()


@pytest.mark.parametrize(
    ("name", "method"), [("ERA-v1", "wol-ddpg"), ("CartPole-v1", "a2c"), ("ERA-L-6x10", "iar-a2c")]
)
def test_no_exact_return_where_none_can_be_had(name, method):
    settings = make_config(name, method, {"hidden": 8, "n_envs": 2})
    trainer = make_trainer(settings, envs.make_batched(name, 2))
    assert evaluation.Evaluator(settings, torch.device("cpu")).exact_return(trainer) is None


def rough(name, method, **overrides):
    """A trainer whose policy is far from uniform: noise N(0, ½²) on every weight."""
    overrides = {"hidden": 8, "n_envs": 2, "n_draws": 8, "n_correction": 8} | overrides
    trainer = make_trainer(make_config(name, method, overrides), envs.make_batched(name, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.policy.parameters():
            weight += 0.5 * torch.randn(weight.shape, generator=generator)
    return trainer


@pytest.mark.parametrize(
    ("name", "method"),
    [("Joint-Cstr", "factored-iar"), ("Joint-Cstr", "ar-iar"), ("Joint-Cstr", "mask"), ("Toy-Partial", "a2c")],
)
def test_without_memory_is_the_policy_given_validity(name, method):
    """z < 5 in each of at most 16 actions of 65,536 draws, of which the valid ones count."""
    trainer, n = rough(name, method), 2**16
    found = evaluation.without_memory(trainer, torch.Generator().manual_seed(1), n).numpy()
    valid, sizes = trainer.env.game.valid, trainer.policy.sizes
    mask = torch.from_numpy(valid).flatten()[None] if method == "mask" else None
    with torch.no_grad():
        features = trainer.policy.features(trainer.observation[:1], mask)
        every = Sample(all_actions(sizes, "cpu")[None])
        pi = trainer.policy.log_prob(features, every).exp().double().view(*sizes).numpy()
    mass = pi[valid].sum()
    expected = np.where(valid, pi / mass, 0)
    assert (found[~valid] == 0).all() and found.sum() == pytest.approx(1)
    sigma = np.sqrt(expected * (1 - expected) / (n * mass))
    assert (abs(found - expected) <= 5 * sigma).all()
    assert abs(expected - valid / valid.sum()).max() > 20 * sigma.max()  # told apart from uniform
    if method == "factored-iar":
        np.testing.assert_allclose(expected, exact.after_rejection(name, features[0].exp()), atol=1e-6)


def test_without_memory_where_no_draw_is_valid():
    """All weight on (0, 2), two hops apart: what `decide` executes stands for the policy."""
    trainer = rough("Joint-Cstr", "factored-iar")
    with torch.no_grad():
        trainer.policy.logits.weight.zero_()
        trainer.policy.logits.bias.copy_(torch.tensor([99.0, 0, 0, 0, 0, 0, 99, 0]))
    found = evaluation.without_memory(trainer, torch.Generator().manual_seed(1), 64).numpy()
    assert sorted(found.flatten())[-2:] == [0, 1]
    assert trainer.env.game.valid[found == 1].all()
