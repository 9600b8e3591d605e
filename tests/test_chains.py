"""flowrl.beyond.chains: the law of what chains hold against the enumerated π', from valid draws and planted actions;
the policy gradient through them against its exact expectation; never an invalid action; what is counted and refused.
"""

import copy
import functools
import math
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from ground_truth import CHI_SQUARE_P, chi_square_p, randomise, z_scores
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

import flowrl
from flowrl.a2c import Trainer
from flowrl.beyond import chains
from flowrl.beyond.gumbel import GumbelFlowPolicy
from flowrl.envs import make_batched
from flowrl.envs.city import City
from flowrl.envs.era import BatchedERA
from flowrl.policies import FactoredPolicy, FlowPolicy, Sample, to_digits, to_flat
from flowrl.rejection import (
    NoValidActionError,
    ask_all,
    bonus_weights,
    correction_weights,
    decide,
    entropy_weights,
    executed_weights,
    left_behind,
)
from flowrl.study.config import ConfigError, make_config
from flowrl.truth import chains as truth
from flowrl.truth.gradients import gaussian_argmax_log_probs

N = 4000  # chains, each in a copy of the state
KINDS = {"gumbel": GumbelFlowPolicy, "flow": FlowPolicy, "factored": FactoredPolicy}
WIDTH = 4
Z_BOUND = 4.0
CITIES = ["ERA-v1-tight", "ERA-v2-tight", "ERA-v3-tight"]
examples = hypothesis_settings(max_examples=15, deadline=None, derandomize=True, database=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, sizes, seed=0, std=0.5, **changes):
    """A policy of one state's features, every parameter random."""
    method = {"gumbel": "iar-a2c-gumbel", "flow": "iar-a2c", "factored": "factored-iar"}[kind]
    config = make_config("none", method, {"hidden": WIDTH, "policy_hidden": 6, **changes})
    return randomise(KINDS[kind](nn.Linear(1, WIDTH), WIDTH, sizes, config), seed, std)


def state(n=1):
    return torch.ones(n, 1)


class Table:
    """Valid are the flat actions in `table` (|A|,) or (B, |A|) bool, row by observation; it counts what it is asked."""

    def __init__(self, table, sizes):
        self.table, self.sizes, self.asked = table, sizes, 0

    def __call__(self, observation, action):
        self.asked += action.shape[0] * action.shape[1]
        flat = to_flat(action, self.sizes)
        return self.table[flat] if self.table.dim() == 1 else self.table[observation[:, 0].long()].gather(1, flat)


def city_table(name):
    """Which actions are valid where the city's first copy starts, (|A|,), the sizes, and staying put, flat."""
    env = BatchedERA(City.load(name), 1, generator=generator(3))
    observation = env.observe(env.allocation, env.emergency)
    stay = int(to_flat(env.fallback(observation), env.action_sizes))
    return ask_all(env.valid, observation, env.action_sizes)[0], env.action_sizes, stay


def restricted(kind, policy, table, sizes):
    """π' over all of A, (|A|,): exact, or, for a Gumbel flow with couplings, of 4,000 truncated draws an action."""
    valid = table.nonzero().squeeze(-1)
    features, actions = policy.features(state()), to_digits(valid, sizes)[None]
    with torch.no_grad():
        if kind == "gumbel":
            w = policy.log_weights(features, actions, 4000, generator(99))[0]
            log_prob = torch.logsumexp(w, -1)
        elif kind == "flow":  # without couplings: by quadrature
            mean = features.mean.view(policy.shape)
            marginals = gaussian_argmax_log_probs(mean, torch.ones_like(mean))
            log_prob = marginals[torch.arange(len(sizes)), actions[0]].sum(-1)
        else:
            log_prob = policy.log_prob(features, Sample(actions))[0]
    return torch.zeros(len(table)).index_put((valid,), torch.softmax(log_prob.float(), 0))


def floor(law, n):
    """What the total variation of n independent draws exceeds with a chance of 1e-4: mean's bound + McDiarmid's."""
    return 0.5 * (law * (1 - law) / n).sqrt().sum() + math.sqrt(math.log(1e4) / (2 * n))


def begin(policy, table, start, drawn, n=1, seed=0):
    """Chains in copies of the state, from `start` (N, 1, D)."""
    sizes, rows = policy.sizes, len(start.action)
    oracle = Table(table, sizes)
    start = chains.Start(*start, torch.full((rows, 1), drawn))
    run = chains.begin(policy, state(rows), start, n, lambda action, of: oracle(None, action), generator(seed))
    return run, oracle


def valid_draws(policy, table, n, seed=1):
    """n plain draws, independent of each other, that are valid, (n, 1, D), by rejection."""
    features, found = policy.features(state()), []
    with torch.no_grad():
        while sum(len(actions) for actions, _ in found) < n:
            sample = policy.sample(features, 100_000, generator(seed))
            valid, seed = table[to_flat(sample.action[0], policy.sizes)], seed + 1
            found.append((sample.action[0, valid], None if sample.latent is None else sample.latent[0, valid]))
    action = torch.cat([a for a, _ in found])[:n, None]
    latent = None if found[0][1] is None else torch.cat([v for _, v in found])[:n, None]
    return Sample(action, latent)


def shares(run, sizes, size):
    return to_flat(run.action, sizes).flatten().bincount(minlength=size)


# ---------------------------------------------------------------------------------------------- the law of a chain


@pytest.mark.parametrize("kernel", ["sweep", "slice"])
@pytest.mark.parametrize("kind, name", [("gumbel", CITIES[0]), ("flow", CITIES[1]), ("factored", CITIES[2])])
def test_from_a_valid_draw_every_sweep_is_exact(kind, name, kernel):
    """N chains, each from a valid draw of its own: total variation to π' at the sampling floor, and they move."""
    table, sizes, _ = city_table(name)
    policy = make(kind, sizes, n_couplings=0) if kind == "flow" else make(kind, sizes)
    law = restricted(kind, policy, table, sizes)
    run, oracle = begin(policy, table, valid_draws(policy, table, N), True)
    before = run.action.clone()
    for n in range(3):
        getattr(run, kernel)()
        counts = shares(run, sizes, len(table))
        assert truth.total_variation(counts / N, law) < floor(law, N), n
        assert chi_square_p(counts, law) > CHI_SQUARE_P
    assert (run.action != before).any(-1).float().mean() > 0.05
    assert int(run.calls.sum()) == oracle.asked


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_planted_action_the_error_falls_to_the_floor(kind):
    """From staying put, planted: total variation falls with the sweeps; after 60 it is at the sampling floor."""
    table, sizes, stay = city_table("ERA-v3-tight")
    policy = make(kind, sizes, n_couplings=0) if kind == "flow" else make(kind, sizes)
    law = restricted(kind, policy, table, sizes)
    start = Sample(to_digits(torch.full((N, 1), stay), sizes), None)
    run, _ = begin(policy, table, start, False)
    assert torch.equal(run.action, start.action)
    error, done = [], 0
    for until in (1, 4, 16, 60):
        for _ in range(until - done):
            run.sweep()
        done = until
        error.append(float(truth.total_variation(shares(run, sizes, len(table)) / N, law)))
    assert error[0] > error[1] > error[2] and error[0] > 0.1
    assert error[3] < floor(law, N)


def test_a_coupled_flow_is_exact_from_a_valid_draw_too():
    """A Gaussian flow with couplings, whose π' is the share of its valid plain draws: two samples agree, within both's
    sampling floors, after redraws and slices; and the chains move."""
    table, sizes, _ = city_table("ERA-v1-tight")
    policy = make("flow", sizes, n_couplings=2)
    n = N // 2
    draws = valid_draws(policy, table, 2 * N)
    law = to_flat(draws.action[n:], sizes).flatten().bincount(minlength=len(table)) / (3 * n)
    run, _ = begin(policy, table, Sample(draws.action[:n], draws.latent[:n]), True)
    for move in (run.sweep, run.slice, run.sweep):
        move()
    assert truth.total_variation(shares(run, sizes, len(table)) / n, law) < floor(law, n) + floor(law, 3 * n)
    assert (run.action != draws.action[:n]).any(-1).float().mean() > 0.05


@pytest.mark.parametrize("n", [1, 3])
def test_the_law_after_few_sweeps_is_the_enumerated_one(n):
    """A factored policy's chains from staying put, after n sweeps, against products of matrices: biased, as said."""
    table, sizes, stay = city_table("ERA-v2-tight")
    policy = make("factored", sizes)
    actions = to_digits(table.nonzero().squeeze(-1), sizes)
    problem = truth.Problem(policy.features(state())[0].double().detach(), actions)
    start = (to_flat(actions, sizes) == stay).double()
    law = truth.law_after(problem, start, n)[n]
    assert truth.total_variation(law, problem.restricted) > 0.05
    # the order of a sweep is drawn once for all chains of a batch: so, many batches
    counts = torch.zeros(len(table))
    for seed in range(200):
        run, _ = begin(policy, table, Sample(to_digits(torch.full((1, 1), stay), sizes), None), False, 20, seed)
        for _ in range(n):
            run.sweep()
        counts += shares(run, sizes, len(table))
    assert truth.total_variation(counts[table] / counts.sum(), law) < floor(law, 200)


def test_enumerated_sweeps_leave_the_law_unchanged():
    """π' T = π' for every order of a sweep, rows sum to one, and the law from anywhere tends to π'."""
    table, sizes, stay = city_table("ERA-v3-tight")
    policy = make("factored", sizes)
    actions = to_digits(table.nonzero().squeeze(-1), sizes)
    problem = truth.Problem(policy.features(state())[0].double().detach(), actions)
    ways = truth.sweeps_by_order(problem)
    assert abs(sum(chance for chance, _ in ways) - 1) < 1e-12
    for _, whole in ways:
        torch.testing.assert_close(whole.sum(1), torch.ones(len(actions), dtype=torch.float64))
        torch.testing.assert_close(problem.restricted @ whole, problem.restricted)
    start = (to_flat(actions, sizes) == stay).double()
    error = truth.total_variation(truth.law_after(problem, start, 400), problem.restricted)
    assert (error.diff() < 1e-12).all() and error[-1] < 1e-3 < error[4]


# ---------------------------------------------------------------------------------------------- the gradient


def small_case():
    """Nine actions, four of them valid, (0, 0) known; a factored policy's problem, returns of the valid ones."""
    sizes, table = (3, 3), torch.zeros(9, dtype=torch.bool)
    table[[0, 1, 4, 8]] = True
    policy = make("factored", sizes, seed=4, std=0.8)
    actions = to_digits(table.nonzero().squeeze(-1), sizes)
    problem = truth.Problem(policy.features(state())[0].double().detach(), actions)
    return policy, table, problem, torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)


def test_independent_draws_have_theorem_1s_gradient():
    policy, table, problem, returns = small_case()
    law = problem.restricted
    logits = problem.log_prob.clone().requires_grad_()
    joint = (logits.log_softmax(-1)[0, :, None] + logits.log_softmax(-1)[1]).flatten()
    q = torch.zeros(9, dtype=torch.float64).index_put((table.nonzero().squeeze(-1),), returns)
    value = (torch.softmax(joint.masked_fill(~table, -torch.inf), 0) * q).sum()
    (expected,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(truth.gradient(problem, torch.outer(law, law), returns), expected.flatten())


def test_bonus_and_entropy_of_independent_draws_are_autograds():
    _, _, problem, _ = small_case()
    logits = problem.log_prob.clone().requires_grad_()
    log_pi = truth.Problem(logits.log_softmax(-1), problem.actions).log_pi
    log_z = torch.logsumexp(log_pi, 0)
    [mass] = torch.autograd.grad(log_z, logits, retain_graph=True)
    [entropy] = torch.autograd.grad(-((log_pi - log_z).exp() * (log_pi - log_z)).sum(), logits)
    law = problem.restricted
    torch.testing.assert_close(truth.bonus(problem, law), mass.flatten())
    torch.testing.assert_close(truth.entropy_gradient(problem, torch.outer(law, law)), entropy.flatten())


@pytest.mark.parametrize("drawn", [False, True])
def test_the_gradient_through_chains_is_the_enumerated_one(drawn):
    """Leave-one-out, bonus and entropy over 4 chains after one sweep: within 4 standard errors of what they expect.

    The order of a sweep is the same for all states of a batch: 300 batches, each the mean of 50 states.
    """
    policy, table, problem, returns = small_case()
    sizes, law = policy.sizes, problem.restricted
    start = law if drawn else torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    joint = truth.joint_after(problem, start, 1)
    expected = [truth.gradient(problem, joint, returns), truth.bonus(problem, joint.sum(1)),
                truth.entropy_gradient(problem, joint)]  # fmt: skip
    q = torch.zeros(9, dtype=torch.float64).index_put((table.nonzero().squeeze(-1),), returns)
    score = torch.nn.functional.one_hot(to_digits(torch.arange(9), sizes), 3) - problem.log_prob.exp()
    every, found = torch.ones(50, 4, dtype=torch.bool), []
    decision = SimpleNamespace(chosen=torch.zeros(50, dtype=torch.int64), valid=every)
    weights = correction_weights(executed_weights(decision), every, None, None, "leave_one_out").double()
    for seed in range(300):
        first = problem.actions[torch.multinomial(start, 50, replacement=True, generator=generator(seed))][:, None]
        run, _ = begin(policy, table, Sample(first, None), drawn, 4, seed + 5000)
        run.sweep()
        flat = to_flat(run.action, sizes)
        log_prob = problem.log_prob[torch.arange(len(sizes)), run.action].sum(-1)
        parts = (q[flat[:, 0], None] * weights, bonus_weights(every), entropy_weights(log_prob, every))
        found.append(torch.stack([(part.unsqueeze(-1) * score[flat].flatten(2)).sum(1).mean(0) for part in parts]))
    assert z_scores(torch.stack(found).flatten(1), torch.cat(expected)).abs().max() < Z_BOUND


def test_the_gradients_bias_falls_with_the_sweeps():
    """Of the exact expectation: from a planted action and from a valid draw (whose chains resemble each other)."""
    _, _, problem, returns = small_case()
    law = problem.restricted
    true = truth.gradient(problem, torch.outer(law, law), returns)
    for start in (torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), law):
        bias = [
            float((truth.gradient(problem, truth.joint_after(problem, start, n), returns) - true).norm() / true.norm())
            for n in (0, 2, 8, 64)
        ]
        assert bias[0] > bias[2] > bias[3] and bias[0] > 0.5 and bias[3] < 1e-3, bias


# --------------------------------------------------------------------------------- what must hold for any sizes


@examples
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
       st.integers(1, 4), st.integers(0, 9))  # fmt: skip
def test_what_chains_hold_is_valid_and_comes_from_their_noise(kind, sizes, block, seed):
    """After redraws and slices, from draws and planted actions: valid, argmax of the latents, which the noise gives."""
    policy = make(kind, sizes, seed, **({"block": block} if kind == "gumbel" else {}))
    table = torch.rand(math.prod(sizes), generator=generator(seed)) < 0.5
    table[0] = True
    with torch.no_grad():
        sample = policy.sample(policy.features(state(5)), 1, generator(seed))
    drawn = table[to_flat(sample.action, sizes)].squeeze(-1)
    first = torch.where(drawn[:, None, None], sample.action, 0)
    oracle = Table(table, sizes)

    def accepts(action, of):
        return oracle(None, action)

    start = chains.Start(first, sample.latent, drawn[:, None])
    run = chains.begin(policy, state(5), start, 3, accepts, generator(seed))
    assert torch.equal(run.action, first.expand(-1, 3, -1))
    for move in (run.sweep, run.slice, run.sweep):
        move()
        assert table[to_flat(run.action, sizes)].all()
        assert torch.equal(run.law.choice(run.latent, slice(None)), run.action)
        assert (run.action < torch.tensor(sizes)).all()
        again = run.law.latent(run.noise)
        torch.testing.assert_close(again, run.latent, rtol=1e-3, atol=1e-3)
    assert int(run.calls.sum()) == oracle.asked
    assert run.latent.shape == (5, 3, len(sizes), max(sizes)) and run.noise.isfinite().all()


# ---------------------------------------------------------------------------------------------- in `decide`


def settings(**changes):
    defaults = {"n_draws": 8, "max_draws": 64, "enumerate_limit": 1000, "correction": "leave_one_out", "chains": 4,
                "sweeps": 2}  # fmt: skip
    return SimpleNamespace(**(defaults | changes))


def rows(n):
    return torch.arange(n, dtype=torch.float32)[:, None]


def few_valid(kind, n=60, seed=5):
    """729 actions, three of them valid, others in each of n states: a policy, an oracle, one of the three."""
    sizes = (9, 9, 9)
    policy = make(kind, sizes, std=0.1)
    chosen = torch.rand(n, 729, generator=generator(seed)).topk(3).indices
    table = torch.zeros(n, 729, dtype=torch.bool).scatter_(1, chosen, True)
    return policy, Table(table, sizes), to_digits(chosen[:, 0], sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["fallback", "executed"])
def test_a_known_action_starts_chains_that_stand_for_draws(kind, by):
    """By the fallback or by what was executed before: all executed are valid, nothing is listed, all learn."""
    policy, oracle, known = few_valid(kind)
    by_fallback = None if by == "executed" else (lambda observation: known[observation[:, 0].long()])
    before = chains.planted(known[:, None]) if by == "executed" else None
    decision, counts = decide(policy, oracle, rows(60), settings(), generator(), by_fallback, before)
    table = oracle.table
    assert table[torch.arange(60), to_flat(decision.action, policy.sizes)].all()
    assert decision.sampled.all() and (counts["enumerations"], counts["fallbacks"], counts["resamples"]) == (0, 0, 0)
    plain = table.gather(1, to_flat(decision.sample.action, policy.sizes))
    assert (decision.valid & ~plain).sum() == 0
    taken = decision.n_valid < 2
    assert counts["chains"] == int(taken.sum()) > 50
    assert torch.equal(decision.valid[taken].sum(1), torch.full((counts["chains"],), 4))
    assert (decision.draws == 8).all() and oracle.asked == counts["asked"] == int(decision.calls.sum())
    assert counts["chain_calls"] == counts["asked"] - 60 * 8
    if decision.sample.latent is not None:
        latent = decision.sample.latent[decision.valid]
        assert torch.equal(latent.argmax(-1), decision.sample.action[decision.valid])


def test_a_valid_draw_comes_before_what_is_known():
    """One valid draw of eight: chains start from it, nothing else is asked about; two: no chains."""
    policy, sizes = make("factored", (2, 2), std=0.0), (2, 2)
    table = torch.tensor([True, False, False, False]).expand(400, -1)
    asked = []
    decision, counts = decide(policy, Table(table, sizes), rows(400), settings(n_draws=4), generator(),
                              lambda observation: asked.append(len(observation)))  # fmt: skip
    assert asked and counts["chains"] == int((decision.n_valid == 1).sum()) > 0  # a fallback of None: none is known
    assert (decision.n_valid[decision.draws == 4] >= 1).all()  # without any, redrawn
    assert counts["resamples"] == int((decision.draws > 4).sum()) > 0


def test_where_nothing_is_known_all_is_as_without_chains():
    """No draw, no fallback, nothing executed: redrawn, listed, or an error; an invalid suggestion is not taken."""
    policy, oracle, _ = few_valid("factored")
    wrong = to_digits((~oracle.table).byte().argmax(-1), policy.sizes)
    results = []
    for config, fallback in ((settings(), lambda o: wrong), (settings(chains=0), None)):
        decision, counts = decide(policy, Table(oracle.table, policy.sizes), rows(60), config, generator(), fallback)
        assert oracle.table[torch.arange(60), to_flat(decision.action, policy.sizes)].all()
        results.append(counts["enumerations"])
    assert results[0] > 0 and results[1] > 0
    none = Table(torch.zeros(3, 729, dtype=torch.bool), policy.sizes)
    with pytest.raises(NoValidActionError):
        decide(
            policy,
            none,
            rows(3),
            settings(enumerate_limit=0),
            generator(),
            lambda o: wrong[:3],
            chains.planted(wrong[:3, None]),
        )


def held_after(kind, steps, carry):
    """Chains (B, 4) in B copies of one state after so many steps of one sweep each, what is valid, and π'.

    Valid are ten of 64 actions, those with at most one digit that isn't 0; each step staying at 0 is suggested.
    """
    sizes, copies = (4, 4, 4), 1500
    digits = to_digits(torch.arange(64), sizes)
    table = (digits != 0).sum(-1) <= 1
    policy, oracle = make(kind, sizes, seed=3, n_couplings=0), Table(table, sizes)
    config, noise, before = settings(n_draws=4, sweeps=1, carry=carry), generator(1), None
    for _ in range(steps):
        decision, counts = decide(policy, oracle, state(copies), config, noise, lambda o: torch.zeros(len(o), 3).long(),
                                  before)  # fmt: skip
        before = left_behind(decision, config)
        assert before.action.shape == (copies, 4 if carry else 1, 3) and table[to_flat(before.action, sizes)].all()
        assert (before.action == decision.action[:, None]).all(-1).any(1).all() and counts["fallbacks"] == 0
    taken = decision.n_valid < 2
    return to_flat(decision.sample.action[taken, :4], sizes), restricted(kind, policy, table, sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_chains_that_are_carried_come_nearer_to_the_policy(kind):
    """Twelve steps of a sweep: carried, their total variation to the enumerated π' is at the sampling floor; where they
    start anew it is not. Chains of a state may depend on each other, and count as one draw."""
    for carry in (False, True):
        held, law = held_after(kind, 12, carry)
        assert len(held) > 500
        seen = torch.bincount(held.flatten(), minlength=64) / held.numel()
        assert (float(truth.total_variation(seen, law)) < floor(law, len(held))) == carry


def assert_valid(decision, oracle):
    """What is executed and what stands for draws."""
    assert oracle.table.gather(1, to_flat(decision.action, oracle.sizes)[:, None]).all()
    held = oracle.table.gather(1, to_flat(decision.sample.action, oracle.sizes))
    assert (decision.valid & ~held).sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_chains_start_from_what_was_left_behind_with_its_latents(kind):
    """No sweep: what the oracle accepts is still there, the rest the fallback's; a valid draw comes first."""
    sizes, n = (9, 9), 400
    policy = make(kind, sizes, std=0.1)
    table = torch.rand(n, 81, generator=generator(1)) < 0.3
    table[:, 0] = True
    config = settings(n_draws=4, sweeps=0, carry=True)
    earlier = policy.sample(policy.features(rows(n)), 4, generator(2))
    before = chains.Start(*earlier, torch.full((n, 4), earlier.latent is not None))
    decision, counts = decide(policy, Table(table, sizes), rows(n), config, generator(),
                              lambda o: torch.zeros(len(o), 2).long(), before)  # fmt: skip
    assert_valid(decision, Table(table, sizes))
    drawn = policy.sample(policy.features(rows(n)), 4, generator())  # the same
    plain, accepted = (table.gather(1, to_flat(x.action, sizes)) for x in (drawn, earlier))
    alone, none = plain.sum(1) == 1, ~plain.any(1)
    assert counts["chains"] == int((alone | none).sum())
    stays = (decision.sample.action == earlier.action).all(-1)
    assert accepted[none].sum() > 20 and stays[none][accepted[none]].all()
    assert accepted[alone][:, 1:].sum() > 20 and stays[alone][:, 1:][accepted[alone][:, 1:]].all()
    assert (decision.sample.action[~accepted & none[:, None]] == 0).all()
    own = drawn.action[torch.arange(n), plain.byte().argmax(1)]
    assert torch.equal(decision.sample.action[alone, 0], own[alone])
    if earlier.latent is not None:
        assert torch.equal(decision.sample.latent[none][accepted[none]], earlier.latent[none][accepted[none]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("correction", ["mean", "leave_one_out"])
def test_what_is_left_behind(kind, correction):
    """The executed action first, then others of what stood for draws, in turn; all with their latents."""
    policy, sizes = make(kind, (3, 3)), (3, 3)
    table = torch.rand(200, 9, generator=generator(1)) < 0.3
    table[:, 4] = True
    config = settings(chains=4, n_draws=6, correction=correction, carry=True)
    decision, _ = decide(policy, Table(table, sizes), rows(200), config, generator())
    left = left_behind(decision, config)
    assert left.action.shape == (200, 4, 2) and torch.equal(left.action[:, 0], decision.action)
    assert table.gather(1, to_flat(left.action, sizes)).all()
    counts = decision.valid.sum(1)
    assert counts.min() < 4 < counts.max()
    for row, valid in enumerate(decision.valid):
        held, kept = to_flat(decision.sample.action[row][valid], sizes), to_flat(left.action[row], sizes)
        assert set(kept.tolist()) <= set(held.tolist()) or not len(held)
        assert len(held) > 4 or set(kept.tolist()) == set(held.tolist()) or not len(held)
    if left.latent is not None:
        assert torch.equal(left.own, decision.sampled[:, None].expand(-1, 4)) and left.own.any()
        assert torch.equal(left.latent[left.own].argmax(-1), left.action[left.own])
    else:
        assert not left.own.any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_left_behind_is_asked_about_again(kind):
    """Other actions are valid in every step: nothing else is executed, and every oracle call is counted."""
    before = None
    for step in range(4):
        policy, oracle, known = few_valid(kind, seed=5 + step // 2)  # as before in every second step
        config = settings(carry=True)
        fallback = functools.partial(lambda known, o: known[o[:, 0].long()], known)
        decision, counts = decide(policy, oracle, rows(60), config, generator(step), fallback, before)
        assert_valid(decision, oracle)
        assert decision.sampled.all()
        assert oracle.asked == counts["asked"] == int(decision.calls.sum())
        before = left_behind(decision, config)


def test_latents_of_other_weights_are_forgotten_and_older_files_read():
    """What chains start from: with latents, until new weights come; the action alone in files of before `carry`."""
    settings = {"chains": 4, "carry": True, "n_envs": 8, "hidden": 8}
    trainer, other = (
        Trainer(make_config("ERA-v3-tight", "iar-a2c-gumbel", settings), make_batched("ERA-v3-tight", 8)) for _ in "ab"
    )
    trainer.step()
    assert trainer.before.own.any() and trainer.before.action.shape == (8, 4, 3)
    state = copy.deepcopy(trainer.state_dict())
    executed = state.pop("before")[0][:, 0]
    other.load_state_dict(state | {"executed": executed})
    assert torch.equal(other.before.action, executed[:, None]) and not other.before.own.any()
    trainer.begin("weights/1")
    assert torch.equal(trainer.before.action[:, 0], executed) and not trainer.before.own.any()
    trainer.step()
    other.step()


def test_a_chain_left_behind_starts_others_where_nothing_else_is_known():
    """The executed action is refused now, another one is not; nothing else is suggested."""
    policy, oracle, known = few_valid("factored")
    wrong = to_digits((~oracle.table).byte().argmax(-1), policy.sizes)
    before = chains.planted(torch.stack((wrong, known, wrong, wrong), 1))
    decision, counts = decide(policy, oracle, rows(60), settings(enumerate_limit=0, carry=True), generator(),
                              before=before)  # fmt: skip
    assert counts["chains"] == int((decision.n_valid < 2).sum()) > 50 and decision.sampled.all()
    assert_valid(decision, oracle)


class FewFit(gymnasium.Env):
    """Valid are 37 actions of 10⁴: those with at most one digit that isn't 0."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.MultiDiscrete([10] * 4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), float(action.sum()), False, bool(self.np_random.random() < 0.1), {}


def few_fit(observation, actions):
    return (actions != 0).sum(-1) <= 1


@pytest.mark.filterwarnings("ignore:no draw was valid")  # where none is known
@pytest.mark.parametrize("known", [[0, 0, 0, 0], lambda observation: np.zeros(4, int), None])
def test_fit_learns_from_an_action_known_to_be_valid(known):
    """`known_valid`, an action or a function, starts chains; without any a first one is listed, later ones executed."""
    few = {} if known is None else {"known_valid": known}
    limit = 0 if known is not None else 10_000
    trainer = flowrl.fit(FewFit, few_fit, "iar-a2c-gumbel", 128, progress=False, n_envs=16, hidden=8, max_draws=16,
                         chains=4, sweeps=1, enumerate_limit=limit, **few)  # fmt: skip
    counts = trainer.counts
    assert trainer.env.violations == 0 and counts["fallbacks"] == 0 and counts["chains"] > 80
    assert (counts["enumerations"] > 0) == (known is None) and counts["enumerations"] < 20


@pytest.mark.parametrize(
    "method, changes, said",
    [
        ("ar-iar", {"chains": 4}, "chains is 4; they move in a draw's noise: flow, gumbel, factored policies only"),
        ("mask", {"chains": 4}, "chains is 4; they move in a draw's noise: flow, gumbel, factored policies only"),
        ("iar-a2c", {"chains": 1}, "chains is 1; allowed: 0, or 2 to n_draws, 64"),
        ("iar-a2c-gumbel", {"chains": 9}, "chains is 9; allowed: 0, or 2 to n_draws, 8"),
        ("iar-a2c", {"chains": 4, "correction": "paper"},
         "chains is 4; correction paper counts plain draws (S/l) and allows 0 only"),
    ],
)  # fmt: skip
def test_refusals(method, changes, said):
    with pytest.raises(ConfigError, match=f"^{said.replace('(', '[(]').replace(')', '[)]')}$"):
        make_config("ERA-v1", method, changes)
