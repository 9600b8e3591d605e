"""Resources in a row: two simulators in step, the oracle, and exact values against the enumeration of all actions."""

import io
import itertools

import gymnasium
import numpy as np
import pytest
import torch
from ground_truth import z_scores
from gymnasium.utils.env_checker import check_env

from flowrl import envs
from flowrl.envs.line import NAMES, BatchedLine, Line, LineEnv, first_valid
from flowrl.rejection import all_actions
from flowrl.study import evaluation
from flowrl.study.config import make_config
from flowrl.study.runs import make_trainer
from flowrl.truth import line as truth

SMALL = ["Line-2x4", "Line-3x5", "Line-4x4"]
Z_BOUND = 4.0


def allowed(line):
    """(C, |A|) bool in mixed-radix order, pair by pair."""
    actions = list(itertools.product(range(line.levels), repeat=line.resources))
    ok = [[all(line.valid[c, d, a[d], a[d + 1]] for d in range(line.resources - 1)) for a in actions]
          for c in range(line.contexts)]  # fmt: skip
    return np.array(actions), np.array(ok)


def by_enumeration(line, weights):
    """P(a_d = i, a_{d+1} = j) under Π_d w_d(a_d) on the valid actions: every action's probability, added up."""
    (actions, ok), D, K = allowed(line), line.resources, line.levels
    pi = np.stack([np.prod([weights[c, d][actions[:, d]] for d in range(D)], 0) for c in range(line.contexts)]) * ok
    pi /= pi.sum(1, keepdims=True)
    pairs = np.zeros((line.contexts, D - 1, K, K))
    for c, d in np.ndindex(line.contexts, D - 1):
        np.add.at(pairs[c, d], (actions[:, d], actions[:, d + 1]), pi[c])
    return pairs


class Injected(LineEnv):
    """Takes its uniforms from a list."""

    draws: list

    def uniforms(self):
        return self.draws.pop()


def test_the_two_simulators_agree_step_by_step():
    B, rng = 3, np.random.default_rng(0)
    batched, singles = BatchedLine("Line-3x5", B), [Injected("Line-3x5") for _ in range(B)]
    line, first = batched.line, rng.random((B, 3))
    observation = batched.reset(torch.as_tensor(first))
    for env, u in zip(singles, first, strict=True):
        env.draws = [u]
        env.reset()
    rewards, refused = set(), 0
    for _ in range(230):
        context = observation.argmax(-1).numpy()
        aimed = line.targets[context, :, rng.integers(line.modes, size=B)]
        actions = np.where(rng.random((B, 1)) < 0.6, aimed, rng.integers(-1, 6, (B, 3)))
        valid = batched.valid(observation, torch.as_tensor(actions)[:, None])[:, 0]
        uniforms = rng.random((B, 3))
        step = batched.step(torch.as_tensor(actions), torch.as_tensor(uniforms))
        refused += int((~valid).sum())
        assert torch.equal(batched.refused, ~valid)
        for b, env in enumerate(singles):
            env.draws = [uniforms[b]]
            assert env.is_valid(actions[b]) == valid[b]
            seen, reward, *ended, info = env.step(actions[b])
            assert reward == step.reward[b] and ended == [step.terminated[b], step.truncated[b]]
            assert info["valid"] == valid[b] and (valid[b] or reward == 0)
            np.testing.assert_array_equal(step.final_observation[b].numpy(), seen)
            rewards.add(reward)
            if ended[1]:
                env.draws = [uniforms[b]]
                seen, _ = env.reset()
            np.testing.assert_array_equal(step.observation[b].numpy(), seen)
        observation = step.observation
    assert rewards == {0, 1, 2} and refused == batched.violations > 0


@pytest.mark.parametrize("name", SMALL)
def test_the_oracle_knows_every_action(name):
    env = BatchedLine(name, 2)
    actions, ok = allowed(env.line)
    found = env.valid(env.contexts, all_actions(env.action_sizes, "cpu").expand(len(env.contexts), -1, -1))
    assert torch.equal(found, torch.from_numpy(ok)) and ok.mean() == pytest.approx(truth.valid_fraction(name))
    assert ok.mean() == pytest.approx((1 - 1 / env.line.levels) ** (env.line.resources - 1))
    for action in (env.fallback(env.contexts), *torch.from_numpy(env.line.targets).unbind(-1)):
        assert env.valid(env.contexts, action[:, None]).all()
    assert not env.valid(env.contexts, torch.full((2, 1, env.line.resources), env.line.levels)).any()
    assert (first_valid(env.line)[:, 0] == 0).all() and (ok[0] != ok[1]).any()  # the context counts


@pytest.mark.parametrize("name", SMALL)
def test_sum_product_is_the_sum_over_all_actions(name):
    line = Line.load(name)
    weights = np.random.default_rng(0).gamma(0.5, size=(line.contexts, line.resources, line.levels))
    found = truth.neighbours(line, torch.from_numpy(weights))
    np.testing.assert_allclose(found, by_enumeration(line, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_returns_are_those_of_episodes(name):
    """1,000 episodes of uniformly drawn valid actions and of the best policy, z < 4; the latter from its levels."""
    B = 1000
    env, rng, known = BatchedLine(name, B, generator=torch.Generator().manual_seed(0)), np.random.default_rng(0), {}
    actions, ok = allowed(env.line)
    numbers = torch.from_numpy(ok.sum(1))
    kept = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(actions[row]) for row in ok], batch_first=True)
    for kind in ("uniform_valid", "optimal"):
        observation, total = env.reset(), torch.zeros(B)
        for _ in range(env.horizon):
            context = observation.argmax(-1)
            draws = torch.from_numpy(rng.random(B))
            if kind == "optimal":
                action = torch.from_numpy(env.line.targets)[context, :, (draws * env.line.modes).long()]
            else:
                action = kept[context, (draws * numbers[context]).long()]
            step = env.step(action)
            observation, total = step.observation, total + step.reward
        known[kind] = float(z_scores(total, truth.reference(name)[kind]).abs())
    assert max(known.values()) < Z_BOUND and env.violations == 0


def test_no_policy_beats_the_optimum_and_no_product_comes_near():
    """Joint laws over all 64 actions of Line-3x4, ascended by autograd from 20 starts, each context by itself."""
    line = Line.load("Line-3x4")
    actions, ok = allowed(line)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(actions), line.levels).double()
    logits = torch.randn(20, line.contexts, len(actions), generator=torch.Generator().manual_seed(0)).double()
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        pi = torch.softmax(logits.masked_fill(~torch.from_numpy(ok), -torch.inf), -1)
        value = truth.line_return(line, torch.einsum("sca,adi,adj->scdij", pi, one_hot[:, :-1], one_hot[:, 1:]))
        optimiser.zero_grad(), (-value.sum()).backward(), optimiser.step()
    known = truth.reference(line)
    best, pairs = truth.best_joint(line)
    assert value.max() <= best + 1e-9 and value.max() > 0.98 * best
    assert float(truth.line_return(line, pairs)) == pytest.approx(best) == known["optimal"]
    value, marginals = truth.best_factored(line)
    assert known["uniform_valid"] < value == pytest.approx(best / 2, rel=1e-3)
    found = by_enumeration(line, marginals.numpy())
    assert float(truth.line_return(line, torch.from_numpy(found))) == pytest.approx(value)


@pytest.mark.parametrize("name", NAMES)
def test_exact_values_at_any_size(name):
    line, ones = Line.load(name), torch.ones(1)
    pairs = truth.neighbours(line, ones.expand(line.contexts, line.resources, line.levels))
    assert (pairs[~torch.from_numpy(line.valid)] == 0).all()
    torch.testing.assert_close(pairs[:, 1:].sum(-1), pairs[:, :-1].sum(-2))  # one law of the resource between
    assert truth.valid_fraction(line) == pytest.approx((1 - 1 / line.levels) ** (line.resources - 1))
    assert truth.best_joint(line)[0] == 50 * (line.resources - 1)
    assert len({Line.load(other).digest for other in NAMES}) == len(NAMES)


@pytest.mark.parametrize("method", ["factored-iar", "iar-a2c-gumbel"])
def test_a_learnt_policy_is_tabulated_from_what_it_executes(method):
    """Factored+IAR of random weights against sum-product, 8,192 decisions, z < 5 a pair; the Gumbel flow in bounds."""
    config = make_config("Line-4x5", method, {"hidden": 8, "n_envs": 2, "n_draws": 8, "n_correction": 8})
    trainer = make_trainer(config, envs.make_batched("Line-4x5", 2))
    with torch.no_grad():
        for weight in trainer.policy.parameters():
            weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    found = evaluation.neighbours(trainer, torch.Generator().manual_seed(0), 8192)
    assert (found[~torch.from_numpy(trainer.env.line.valid)] == 0).all()
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(2, 3, dtype=torch.float64))
    value = evaluation.Evaluator(config, torch.device("cpu")).exact_return(trainer)
    assert 0 < value < truth.reference("Line-4x5")["optimal"]
    if method == "factored-iar":
        expected = truth.neighbours("Line-4x5", trainer.policy.features(trainer.env.contexts).detach().exp())
        sigma = (expected * (1 - expected) / 8192).sqrt()
        assert ((found - expected).abs() <= 5 * sigma + 1e-12).all()
        assert value == pytest.approx(float(truth.line_return("Line-4x5", expected)), rel=0.05)


def test_a_checkpoint_goes_on_alike():
    env = BatchedLine("Line-4x8", 3, generator=torch.Generator().manual_seed(0))
    actions = env.fallback(env.reset())
    for _ in range(60):
        env.step(actions)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    again = BatchedLine("Line-4x8", 3)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for _ in range(60):
        for one, other in zip(env.step(actions), again.step(actions), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(ValueError, match="another line or batch"):
        BatchedLine("Line-4x8", 2).load_state_dict(env.state_dict())


def test_gymnasium_and_names():
    check_env(gymnasium.make("flowrl/Line-4x8").unwrapped, skip_render_check=True)
    assert set(NAMES) < set(envs.names()) and envs.constrained("Line-12x10")
    assert envs.digest("Line-12x10") == envs.make_batched("Line-12x10", 1).digest
    for name, message in (
        ("Line-3", "such as Line-20x10"),
        ("Line-1x9", "at least 2 resources"),
        ("Line-2x3", "and 4"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.make_batched(name, 1)
