"""What a policy is worth: references, exact returns, a policy without memory against its own probabilities."""

import numpy as np
import pytest
import torch

from flowrl import envs
from flowrl.policies import Sample
from flowrl.rejection import all_actions
from flowrl.study import evaluation
from flowrl.study.config import make_config
from flowrl.study.runs import make_trainer
from flowrl.truth import exact, search


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
    """All weight on (0, 2), two hops apart: A is listed, and any valid action is executed as often as any other."""
    trainer = rough("Joint-Cstr", "factored-iar")
    with torch.no_grad():
        trainer.policy.logits.weight.zero_()
        trainer.policy.logits.bias.copy_(torch.tensor([99.0, 0, 0, 0, 0, 0, 99, 0]))
    found = evaluation.without_memory(trainer, torch.Generator().manual_seed(1), 64).numpy()
    valid = trainer.env.game.valid
    np.testing.assert_allclose(found, valid / valid.sum())


def apart(weight, **overrides):
    """A factored policy on ERA-v1 that draws, with all but exp(−weight) of its mass, resources too far apart."""
    trainer = rough("ERA-v1", "factored-iar", **overrides)
    city, (i, j, limit) = trainer.env.city, trainer.env.city.proximity[0]
    far = np.argwhere(city.hops > limit)[0]
    with torch.no_grad():
        trainer.policy.logits.weight.zero_()
        trainer.policy.logits.bias.zero_()
        bias = trainer.policy.logits.bias.view(city.resources, city.districts)
        bias[i, far[0]] = bias[j, far[1]] = weight
    return trainer


def test_the_exact_return_where_no_draw_is_valid_is_that_of_uniform_valid_actions():
    trainer = apart(99.0)
    found = evaluation.Evaluator(trainer.config, torch.device("cpu")).exact_return(trainer)
    assert found == pytest.approx(exact.optimum("ERA-v1")["uniform_valid"], abs=1e-4)


@pytest.mark.parametrize("max_draws", [16, 64])
def test_the_exact_return_where_few_draws_are_valid_agrees_with_episodes(max_draws):
    """One draw in 100 is valid, where 16 are drawn most steps have none. z < 4 on 500 episodes and, for the
    tabulation's own noise, four seeds of it."""
    trainer = apart(7.0, n_draws=16, max_draws=max_draws)
    evaluator = evaluation.Evaluator(trainer.config, torch.device("cpu"))
    mean, sem, counts = evaluator.episodes(trainer, 500, "test")
    assert counts["resamples"] > 0.5 * counts["states"] if max_draws > 16 else counts["enumerations"] > 0
    city = trainer.env.city
    tables = [evaluation.tabulate(trainer, city, torch.Generator().manual_seed(seed)) for seed in range(4)]
    found = np.array([exact.policy_return(city, *table) for table in tables])
    sigma = np.hypot(sem, found.std(ddof=1) / 4**0.5)
    assert abs(found.mean() - mean) < 4 * sigma, (found, mean, sem)
    assert sigma < 0.05 * abs(exact.optimum("ERA-v1")["uniform_valid"])
