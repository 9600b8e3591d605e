"""flowrl.rejection: the never-invalid contract under adversarial oracles, and the gradient corrections by enumeration.

Corrections: every outcome of S draws from a tabular policy is enumerated, so that expectations are exact in float64 and
compared with Theorem 1's gradient, which autograd takes of J = Σ_C π'(a) Q(a). The last tests put all the parts of a
flow policy's gradient together, against quadrature.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch
from ground_truth import CHI_SQUARE_P, chi_square_p, randomise, z_scores
from torch import nn

from flowrl.policies import AutoregressivePolicy, FlowPolicy, MaskedPolicy, Sample, to_digits, to_flat
from flowrl.rejection import (
    COUNTS,
    NoValidActionError,
    all_actions,
    ask,
    at_most,
    bonus_weights,
    correction_weights,
    count_log_prob,
    decide,
    distinct,
    entropy_weights,
    executed_weights,
    same_action,
    shared_weights,
    valid_or_executed,
)
from flowrl.study.config import make_config
from flowrl.truth.gradients import (
    every_choice,
    every_sequence,
    gaussian_argmax_log_probs,
    gradient,
    gradient_batches,
    theorem_1_gradient,
    valid_mass_gradient,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def settings(**changes):
    defaults = {"n_draws": 8, "max_draws": 64, "enumerate_limit": 10_000, "correction": "leave_one_out",
                "chains": 0}  # fmt: skip
    return SimpleNamespace(**(defaults | changes))


class Uniform:
    """Uniform over A, whatever the state."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def features(self, observation, mask=None):
        return observation

    def sample(self, features, n, generator=None):
        flat = torch.randint(len(all_actions(self.sizes, "cpu")), (len(features), n), generator=generator)
        return Sample(to_digits(flat, self.sizes), to_digits(flat, self.sizes).double())


class Scripted:
    """Draws written down beforehand: row b of the script belongs to the state whose observation is b."""

    def __init__(self, script, size):
        self.script, self.sizes, self.used = script, (size,), torch.zeros(len(script), dtype=torch.int64)

    def features(self, observation, mask=None):
        return observation

    def sample(self, features, n, generator=None):
        rows = features[:, 0].long()
        columns = self.used[rows, None] + torch.arange(n)
        self.used[rows] += n
        action = self.script[rows[:, None], columns].unsqueeze(-1)
        return Sample(action, 100 * rows[:, None].double() + columns)  # the latent names state and draw


class Oracle:
    """Valid are the flat actions listed in `table` (B, |A|) bool, row by observation; remembers what it was asked."""

    def __init__(self, table, sizes):
        self.table, self.sizes, self.asked = table, sizes, 0

    def __call__(self, observation, action):
        self.asked += action.shape[0] * action.shape[1]
        return self.table[observation[:, 0].long()].gather(1, to_flat(action, self.sizes))


def states(n):
    return torch.arange(n, dtype=torch.float32)[:, None]


# ---------------------------------------------------------------------------------- never an invalid action


@pytest.mark.parametrize("limit, max_draws", [(10_000, 64), (10_000, 8), (0, 8192)])
@pytest.mark.parametrize("kind", [Uniform, FlowPolicy, AutoregressivePolicy])
def test_one_valid_action_in_729_is_found_and_executed(kind, limit, max_draws):
    """By draws, redraws or enumeration; in each state another one; the counts add up."""
    sizes, n = (9, 9, 9), 40
    torch.manual_seed(0)
    if kind is Uniform:
        policy = Uniform(*sizes)
    else:
        config = make_config("none", "iar-a2c", {"hidden": 4, "policy_hidden": 4})
        policy = kind(nn.Linear(1, 4), 4, sizes, config)
    only = torch.randperm(729)[:n]
    oracle = Oracle(torch.zeros(n, 729, dtype=torch.bool).scatter_(1, only[:, None], True), sizes)
    decision, counts = decide(
        policy, oracle, states(n), settings(enumerate_limit=limit, max_draws=max_draws), generator()
    )
    assert to_flat(decision.action, sizes).tolist() == only.tolist()
    assert counts["asked"] == oracle.asked
    assert counts["enumerations"] == int((~decision.sampled).sum())
    assert torch.equal(decision.sampled, decision.n_valid > 0) and torch.equal(decision.sampled, decision.valid.any(1))
    assert counts["fallbacks"] == 0 and counts["resamples"] >= counts["enumerations"]
    assert (counts["enumerations"] > 0) == (limit > 0)
    assert (decision.draws <= max_draws).all()


@pytest.mark.parametrize("seed", range(3))
def test_executed_actions_are_valid_where_few_are(seed):
    """A hundredth of A valid, another one in each of 500 states, at every way of finding one."""
    sizes, n = (10, 10, 5), 500
    table = torch.rand(n, 500, generator=generator(seed)) < 0.01
    table[:, 0] |= ~table.any(1)
    oracle = Oracle(table, sizes)
    decision, counts = decide(Uniform(*sizes), oracle, states(n), settings(), generator(seed))
    assert table[torch.arange(n), to_flat(decision.action, sizes)].all()
    assert table.gather(1, to_flat(decision.sample.action, sizes)).eq(decision.valid).all()
    assert counts["enumerations"] > 50 and decision.sampled.sum() > 50
    executed = decision.sample.action[torch.arange(n), decision.chosen]
    assert torch.equal(executed[decision.sampled], decision.action[decision.sampled])


@pytest.mark.parametrize("kind", [Uniform, MaskedPolicy])
def test_a_state_without_valid_actions_is_an_error_that_names_it(kind):
    """State, number of actions tried, rate and what to do, on one line; no fallback can help where A was enumerated."""
    torch.manual_seed(0)
    policy = Uniform(3, 3)
    if kind is MaskedPolicy:
        policy = MaskedPolicy(nn.Linear(1, 4), 4, (3, 3), make_config("none", "mask"))
    table = torch.ones(5, 9, dtype=torch.bool)
    table[3] = False
    with pytest.raises(NoValidActionError) as error:
        decide(policy, Oracle(table, (3, 3)), states(5), settings(), generator(), lambda observation: 1 / 0)
    message = str(error.value)
    assert message.startswith("no valid action was found: the oracle refused all there are: is it right?")
    assert message.endswith("; 9 actions tried, valid rate 0, in state [3]") and "\n" not in message


def test_a_masked_policy_without_numbers_draws_nothing():
    """NaN in the weights would make argmax choose the first action, valid or not."""
    policy = MaskedPolicy(nn.Linear(1, 4), 4, (3, 3), make_config("none", "mask"))

    def oracle(observation, actions):
        return torch.ones(actions.shape[:2], dtype=torch.bool)

    with pytest.raises(FloatingPointError, match="^an observation is not finite: no action can be drawn$"):
        decide(policy, oracle, states(5) / 0, settings(), generator())
    nn.init.constant_(policy.logits.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="^the policy's weights are not finite: no action can be drawn$"):
        decide(policy, oracle, states(5), settings(), generator())


def test_fallback_is_asked_where_enumeration_may_not_be():
    """For the states without a valid draw alone; counted; checked by the oracle."""
    sizes, n = (9, 9, 9), 6
    table = torch.zeros(n, 729, dtype=torch.bool)
    table[:4] = True
    table[4:, 728] = True
    seen = []

    def fallback(observation):
        seen.append(observation[:, 0].tolist())
        return torch.full((len(observation), 3), 8)

    config = settings(enumerate_limit=728, max_draws=8)
    decision, counts = decide(Uniform(*sizes), Oracle(table, sizes), states(n), config, generator(), fallback)
    assert seen == [[4, 5]]
    assert decision.sampled.tolist() == [True] * 4 + [False] * 2
    assert decision.action[4:].tolist() == [[8, 8, 8]] * 2
    assert (counts["fallbacks"], counts["enumerations"], counts["resamples"]) == (2, 0, 2)


@pytest.mark.parametrize("fallback", [None, lambda observation: None, lambda observation: torch.zeros(2, 2).long()])
def test_without_a_valid_fallback_it_is_an_error(fallback):
    """Also where the fallback's action is refused: 8 + 16 draws were made."""
    table = torch.ones(4, 9, dtype=torch.bool)
    table[1:3] = False
    config = settings(enumerate_limit=0, max_draws=24)
    with pytest.raises(NoValidActionError, match=r"; 24 actions tried, valid rate 0, in state \[1\]$"):
        decide(Uniform(3, 3), Oracle(table, (3, 3)), states(4), config, generator(), fallback)


def test_an_error_without_fallback_needs_no_default_device():
    class Zeros(Uniform):
        def sample(self, features, n, generator=None):
            return Sample(torch.zeros(len(features), n, 2, dtype=torch.int64, device="cpu"))

    observation, noise = states(2), generator()
    torch.set_default_device("meta")
    try:
        with pytest.raises(NoValidActionError):
            decide(Zeros(3, 3), lambda observation, action: action[..., 0] > 0, observation,
                   settings(enumerate_limit=0, max_draws=8), noise)  # fmt: skip
    finally:
        torch.set_default_device(None)


WRONG = {
    "torch.bool (2, 7)": lambda action: torch.ones(2, 7, dtype=torch.bool),
    "torch.bool (2, 8, 1)": lambda action: torch.ones(2, 8, 1, dtype=torch.bool),
    "torch.bool ()": lambda action: torch.tensor(True),
    "torch.int64 (2, 8)": lambda action: torch.ones(2, 8, dtype=torch.int64),
    "torch.float32 (2, 8)": lambda action: torch.ones(2, 8),
    "ndarray": lambda action: torch.ones(2, 8, dtype=torch.bool).numpy(),
    "list": lambda action: [[True] * 8] * 2,
    "bool": lambda action: True,
    "NoneType": lambda action: None,
}


@pytest.mark.parametrize("got", WRONG)
def test_what_an_oracle_may_not_return(got):
    with pytest.raises(ValueError) as error:
        decide(Uniform(3, 3), lambda observation, action: WRONG[got](action), states(2), settings(), generator())
    said = f"the oracle returned {got}; it must return a torch.bool tensor (2, 8) for actions (2, 8, 2) "
    assert str(error.value).startswith(said) and "flowrl.per_action" in str(error.value)


def test_ask_returns_the_answer():
    table = torch.rand(4, 9, generator=generator()) < 0.5
    everything = all_actions((3, 3), "cpu").expand(4, -1, -1)
    assert torch.equal(ask(Oracle(table, (3, 3)), states(4), everything), table)


# ------------------------------------------------------------------------------------ redraws and the choice


def test_redraws_stop_at_two_valid_and_keep_the_valid_first():
    """S = 2, then 4 more, then 2 to the cap of 8; l and S count everything; latents travel with their actions."""
    script = torch.tensor(
        [
            [1, 1, 9, 9, 9, 9, 9, 9],  # enough at once
            [0, 1, 0, 1, 1, 1, 9, 9],  # four of six valid
            [0, 0, 0, 0, 1, 0, 1, 0],  # two of eight
            [0, 0, 0, 0, 0, 0, 0, 1],  # one of eight: executed, though there is no second
            [0, 0, 0, 0, 0, 0, 0, 0],  # none: enumerated
        ]
    )
    oracle = Oracle((torch.arange(10) == 1).expand(5, -1), (10,))
    decision, counts = decide(Scripted(script, 10), oracle, states(5), settings(n_draws=2, max_draws=8), generator())
    assert decision.draws[:4].tolist() == [2, 6, 8, 8]
    assert decision.n_valid.tolist() == [2, 4, 2, 1, 0]
    assert decision.valid.tolist() == [[True, True], [True, True], [True, True], [True, False], [False, False]]
    assert decision.sample.latent[:4].tolist() == [[0, 1], [101, 103], [204, 206], [307, 300]]
    assert decision.action.flatten().tolist() == [1] * 5
    assert decision.sampled.tolist() == [True] * 4 + [False]
    asked = 5 * 2 + 4 * 4 + 3 * 2 + 10
    assert counts == dict.fromkeys(COUNTS, 0) | {"resamples": 4, "enumerations": 1, "asked": asked}
    assert oracle.asked == asked and decision.calls.tolist() == [2, 6, 8, 8, 18]


@pytest.mark.parametrize("correction, resamples", [("none", 1), ("paper", 1), ("mean", 1), ("leave_one_out", 2)])
def test_only_leave_one_out_needs_a_second_valid_draw(correction, resamples):
    script = torch.tensor([[1, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    oracle = Oracle(torch.tensor([[False, True]]).expand(3, -1), (2,))
    config = settings(n_draws=2, max_draws=6, correction=correction)
    _, counts = decide(Scripted(script, 2), oracle, states(3), config, generator())
    assert counts["resamples"] == resamples


def test_executed_is_uniform_among_the_valid_draws():
    n, valid = 20_000, torch.tensor([0, 1, 0, 0, 1, 0, 1, 1], dtype=torch.bool)
    script = torch.arange(8).expand(n, -1)
    decision, _ = decide(Scripted(script, 8), Oracle(valid.expand(n, -1), (8,)), states(n), settings(), generator())
    assert chi_square_p(decision.chosen.bincount(minlength=8), valid) > CHI_SQUARE_P


def test_enumeration_is_uniform_over_the_valid_actions():
    n, valid = 5_000, torch.zeros(500, dtype=torch.bool)
    valid[[0, 77, 499]] = True
    policy = Scripted(torch.ones(n, 8, dtype=torch.int64), 500)
    oracle = Oracle(valid.expand(n, -1), (500,))
    decision, counts = decide(policy, oracle, states(n), settings(max_draws=8), generator())
    assert counts["enumerations"] == n and not decision.sampled.any()
    assert chi_square_p(decision.action.flatten().bincount(minlength=500), valid) > CHI_SQUARE_P


def test_executed_actions_follow_the_policy_given_validity():
    """π'(a) = π(a)/Z, redraws included: a categorical with one valid draw in five."""
    n, pi = 20_000, torch.tensor([0.5, 0.3, 0.02, 0.06, 0.12])
    valid = torch.tensor([False, False, True, True, True])
    script = torch.multinomial(pi, n * 64, True, generator=generator()).view(n, 64)
    config = settings(n_draws=2, max_draws=64)
    decision, _ = decide(Scripted(script, 5), Oracle(valid.expand(n, -1), (5,)), states(n), config, generator())
    assert decision.sampled.all()
    assert chi_square_p(decision.action.flatten().bincount(minlength=5), pi * valid) > CHI_SQUARE_P
    assert decision.draws.max() > 14


def test_same_generator_same_decision():
    oracle = Oracle((torch.arange(9) % 4 == 0).expand(50, -1), (3, 3))
    decisions = [decide(Uniform(3, 3), oracle, states(50), settings(), generator(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(decisions[0].action, decisions[1].action)
    assert not torch.equal(decisions[0].action, decisions[2].action)


# --------------------------------------------------------------------- corrections, by exact enumeration

LOGITS = torch.tensor([0.2, 1.2, 0.9, 0.1], dtype=torch.float64)  # Z = .59
VALID = torch.tensor([True, False, True, True])
Q = torch.tensor([1.0, 5.0, -0.5, 0.3], dtype=torch.float64)
SCORES = torch.eye(4, dtype=torch.float64) - torch.softmax(LOGITS, -1)  # ∇log π(a) in the logits, row by action


def restricted(logits):
    return torch.softmax(logits.masked_fill(~VALID, -torch.inf), -1)


def true_gradient(of):
    """∇ of a function of the logits."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(of(logits), logits)[0]


TRUTH = theorem_1_gradient(LOGITS, VALID, Q)
MEAN_SCORE = valid_mass_gradient(LOGITS, VALID)
CRITIC = float((restricted(LOGITS) * Q).sum())


def every_outcome(n_draws, at_least):
    """Every sequence of draws with every choice among the valid: (decision, probability (B,)), given l ≥ at_least."""
    return every_sequence(LOGITS, VALID, n_draws, at_least)


def expected(decision, probability, weights, factor=None):
    """E[factor · Σ_j weight_j ∇log π(a_j)]."""
    factor = torch.ones_like(probability) if factor is None else factor
    return torch.einsum("b,bj,bjk->k", probability * factor, weights.double(), SCORES[decision.sample.action[..., 0]])


def corrected(decision, kind, executed=executed_weights):
    return correction_weights(executed(decision).double(), decision.valid, decision.n_valid, decision.draws, kind)


def advantage(decision, error=0.0):
    return Q[decision.action[:, 0]] - CRITIC + error


def shared(decision):
    return shared_weights(decision, same_action(decision.sample.action, decision.valid))


# of TRUTH, and of MEAN_SCORE where the critic is off by one, as functions of S and L = l
MULTIPLES = {
    "none": (lambda S, L: 1 + 0 * L, lambda S, L: 1 + 0 * L),
    "paper": (lambda S, L: 1 - S / L**2, lambda S, L: 1 - S / L),
    "mean": (lambda S, L: 1 - 1 / L, lambda S, L: 0 * L),
    "leave_one_out": (lambda S, L: 1 + 0 * L, lambda S, L: 0 * L),
}


@pytest.mark.parametrize("n_draws", [3, 4, 5])
@pytest.mark.parametrize("error", [0.0, 1.0, -0.6])
@pytest.mark.parametrize("kind", MULTIPLES)
@pytest.mark.parametrize("executed", [executed_weights, shared])
def test_expected_gradient_of_every_correction(executed, kind, error, n_draws):
    """E[1 − S/l²], E[1 − 1/l], 1, 1 times Theorem 1's gradient; plus some ∇log Z where the critic is off by `error`."""
    decision, probability = every_outcome(n_draws, 2 if kind == "leave_one_out" else 1)
    found = expected(decision, probability, corrected(decision, kind, executed), advantage(decision, error))
    true, drift = (float((probability * f(n_draws, decision.n_valid.double())).sum()) for f in MULTIPLES[kind])
    tolerance = 1e-12 if executed is executed_weights and kind != "paper" else 1e-6  # shares and S/l are float32
    torch.testing.assert_close(found, true * TRUTH + error * drift * MEAN_SCORE, rtol=0, atol=tolerance)


def test_theorem_1():
    """∇J = E_π'[Q (∇log π(a) − ∇log Z)], by autograd of J."""
    terms = restricted(LOGITS)[:, None] * Q[:, None] * (SCORES - MEAN_SCORE)
    torch.testing.assert_close(terms.sum(0), TRUTH, rtol=0, atol=1e-12)


def test_the_printed_correction_changes_the_sign_where_few_draws_are_valid():
    """Z = .12, S = 64 (findings): E[1 − S/l²] is −.85 by the binomial; at any l < √S the outcome points downhill."""
    n_draws, valid_mass = 64, 0.12
    binomial = torch.distributions.Binomial(n_draws, torch.tensor(valid_mass, dtype=torch.float64))
    L = torch.arange(1, n_draws + 1, dtype=torch.float64)
    probability = binomial.log_prob(L).exp()
    multiple = (probability * (1 - n_draws / L**2)).sum() / probability.sum()
    assert abs(multiple + 0.85) < 0.01
    decision, probability = every_outcome(5, 1)
    two = probability * (decision.n_valid == 2)
    found = expected(decision, two / two.sum(), corrected(decision, "paper"), advantage(decision))
    torch.testing.assert_close(found, -TRUTH / 4, rtol=0, atol=1e-6)


def test_sharing_changes_nothing_where_scores_depend_on_the_action_alone():
    decision, _ = every_outcome(4, 1)
    scores = SCORES[decision.sample.action[..., 0]]
    for kind in MULTIPLES:
        one, other = (
            torch.einsum("bj,bjk->bk", corrected(decision, kind, e), scores) for e in (executed_weights, shared)
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_shared_weights_by_hand():
    """Equal shares of the valid draws with the executed action, whichever of them was chosen."""
    flat = torch.tensor([[2, 3, 2, 2, 0], [1, 1, 0, 3, 0]])
    valid = torch.tensor([[True, True, False, True, True], [False, False, True, True, True]])
    decision, _ = every_choice(flat, valid, torch.ones(2).double(), 1)
    first = [[0.5, 0, 0, 0.5, 0], [0, 1, 0, 0, 0], [0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 1]]
    second = [[0, 0, 0.5, 0, 0.5], [0, 0, 0, 1, 0], [0, 0, 0.5, 0, 0.5]]
    assert shared(decision).tolist() == first + second


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("executed", [executed_weights, shared])
@pytest.mark.parametrize("kind", MULTIPLES)
def test_a_subset_keeps_the_expectation(kind, executed, m):
    """Of S = 5 draws at most M are used: 1, E[1 − S/(l M)], E[1 − 1/M], 1 times the truth with M = min(l, m)."""
    decision, probability = every_outcome(5, 2)
    part = at_most(decision, m)
    assert part.valid.shape[1] == m and (part.valid.sum(1) == decision.n_valid.clamp(max=m)).all()
    assert torch.equal(part.sample.action[torch.arange(len(part.chosen)), part.chosen], decision.action)
    assert torch.equal(part.sample.latent, part.sample.action.double())
    L, used = decision.n_valid.double(), decision.n_valid.clamp(max=m).double()
    multiple = {"none": 1 + 0 * L, "paper": 1 - 5 / (L * used), "mean": 1 - 1 / used, "leave_one_out": 1 + 0 * L}[kind]
    found = expected(part, probability, corrected(part, kind, executed), advantage(decision))
    torch.testing.assert_close(found, (probability * multiple).sum() * TRUTH, rtol=0, atol=1e-6)


def test_a_subset_of_everything_is_the_decision_itself():
    decision, _ = every_outcome(3, 1)
    assert at_most(decision, 3) is decision


def test_invalid_draws_stand_for_the_executed_action():
    """Row by row; the valid ones stay as they are."""
    script = torch.tensor([[0, 1, 2, 1], [3, 3, 3, 3], [2, 0, 1, 2]])
    oracle = Oracle(torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 0]]).bool(), (4,))
    decision, _ = decide(Scripted(script, 4), oracle, states(3), settings(n_draws=4), generator())
    found = valid_or_executed(decision)[..., 0].tolist()
    assert not decision.valid.all()
    for b, row in enumerate(script.tolist()):
        assert found[b] == [a if oracle.table[b][a] else int(decision.action[b]) for a in row]


def test_distinct_actions_against_a_loop():
    flat = torch.randint(5, (40, 7), generator=generator())
    state, draw, which = distinct(flat.unsqueeze(-1))
    expected = [(b, row.index(a)) for b, row in enumerate(flat.tolist()) for a in dict.fromkeys(row)]
    assert list(zip(state.tolist(), draw.tolist(), strict=True)) == expected
    assert torch.equal(flat[state, draw][which], flat)
    assert torch.equal(state[which], torch.arange(40)[:, None].expand(-1, 7))


@pytest.mark.parametrize("kind", MULTIPLES)
def test_redraws_keep_the_expectation(kind):
    """Through `decide`: S = 2, then 4 more where l < 2; all 4⁶ scripts of draws, every choice, given l ≥ 2."""
    script = torch.tensor(list(itertools.product(range(4), repeat=6)))
    probability = torch.softmax(LOGITS, -1)[script].prod(-1)
    n = len(script)
    made, _ = decide(Scripted(script, 4), Oracle(VALID.expand(n, -1), (4,)), states(n),
                     settings(n_draws=2, max_draws=6), generator())  # fmt: skip
    decision, probability = every_choice(
        made.sample.action[..., 0], made.valid, probability, 2, made.n_valid, made.draws
    )
    L, S = decision.n_valid.double(), decision.draws.double()
    assert set(decision.draws.tolist()) == {2, 6} and L.max() == 5
    multiple = {"none": 1 + 0 * L, "paper": 1 - S / (2 * L), "mean": 0 * L + 0.5, "leave_one_out": 1 + 0 * L}[kind]
    found = expected(decision, probability, corrected(decision, kind), advantage(decision))
    torch.testing.assert_close(found, (probability * multiple).sum() * TRUTH, rtol=0, atol=1e-6)


def test_dropping_states_with_one_valid_draw_weakens_the_gradient():
    """Why there are redraws: at l = 1 leave-one-out weighs nothing, so the multiple is P(l ≥ 2 | l ≥ 1)."""
    decision, probability = every_outcome(4, 1)
    found = expected(decision, probability, corrected(decision, "leave_one_out"), advantage(decision))
    share = probability[decision.n_valid >= 2].sum()
    assert share < 0.9
    torch.testing.assert_close(found, share * TRUTH, rtol=0, atol=1e-12)


def test_unknown_correction():
    decision, _ = every_outcome(3, 1)
    with pytest.raises(
        ValueError, match="^unknown correction 'half'; choose one of: none, paper, mean, leave_one_out$"
    ):
        corrected(decision, "half")


# --------------------------------------------------------------------------------- bonus and entropy


@pytest.mark.parametrize("n_draws", [1, 3, 5])
def test_bonus_weights_estimate_the_gradient_of_the_valid_mass(n_draws):
    decision, probability = every_outcome(n_draws, 1)
    found = expected(decision, probability, bonus_weights(decision.valid))
    torch.testing.assert_close(found, MEAN_SCORE, rtol=0, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("n_draws, at_least", [(2, 2), (4, 2), (5, 3)])
def test_entropy_weights_are_unbiased_for_the_entropy_of_the_restricted_policy(n_draws, at_least, offset):
    """From exact log π, log π' or any other constant added: ∇H(π'), given l ≥ 2."""
    truth = true_gradient(lambda logits: torch.distributions.Categorical(logits=logits[VALID]).entropy())
    decision, probability = every_outcome(n_draws, at_least)
    log_prob = torch.log_softmax(LOGITS, -1)[decision.sample.action[..., 0]] + offset
    found = expected(decision, probability, entropy_weights(log_prob, decision.valid))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-6)


def test_weights_vanish_on_invalid_draws_and_where_none_is_valid():
    valid = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    log_prob = torch.tensor([[-1.0, -9.0, -2.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    for weights in (bonus_weights(valid), entropy_weights(log_prob, valid)):
        assert torch.isfinite(weights).all() and (weights[~valid] == 0).all()
    assert entropy_weights(log_prob, valid)[1].abs().sum() == 0  # one draw says nothing of entropy


def test_count_log_prob_by_hand():
    """log (n_j − ½)/(l − ½): three of five valid draws alike, two others; an invalid one alike does not count."""
    flat = torch.tensor([[7, 7, 7, 2, 5, 7]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    found = count_log_prob(same_action(flat[..., None], valid), valid)
    expected = torch.tensor([[2.5 / 4.5] * 3 + [0.5 / 4.5] * 2 + [1.0]]).log()
    torch.testing.assert_close(found, expected)
    sharp = torch.zeros(1, 6, dtype=torch.int64)
    assert count_log_prob(same_action(sharp[..., None], valid), valid).abs().sum() == 0  # all alike: probability one


def test_count_log_prob_converges():
    """To log π' with many draws."""
    flat = torch.multinomial(torch.softmax(LOGITS, -1), 4000, True, generator=generator())[None]
    valid = VALID[flat]
    found = count_log_prob(same_action(flat[..., None], valid), valid)
    truth = restricted(LOGITS).log().float()[flat]
    torch.testing.assert_close(found[valid], truth[valid], rtol=0, atol=0.15)


# ------------------------------------------------------------------- a flow policy's gradient, all together


def policy_and_truth(kind, **changes):
    """A Gaussian's argmax, K = 4, one state; Theorem 1's gradient in all parameters by quadrature."""
    config = make_config("none", "iar-a2c", {"hidden": 3, "n_couplings": 0, "base_scale": "learned"} | changes)
    torch.manual_seed(0)
    policy = randomise(kind(nn.Sequential(nn.Linear(1, 3), nn.Tanh()), 3, (4,), config).double(), 3)
    features = policy.features(torch.ones(1, 1, dtype=torch.float64))
    log_pi = gaussian_argmax_log_probs(features.mean.flatten(), features.log_scale.exp().flatten())
    restricted = torch.softmax(log_pi.masked_fill(~VALID, -torch.inf), -1)
    return policy, restricted, gradient((restricted * Q).sum(), policy.parameters())


@pytest.mark.parametrize("n_draws", [3, 16])
@pytest.mark.parametrize("error", [0.0, 1.0])
@pytest.mark.parametrize("estimator", ["rb", "latent", "cis"])
def test_flow_policy_gradient_with_rejection_is_unbiased(estimator, error, n_draws):
    """decide → shared or executed weights → leave-one-out → score surrogate, against Theorem 1 (z < 5, 40 batches)."""
    policy, restricted, truth = policy_and_truth(FlowPolicy, estimator=estimator)
    critic = float((restricted.detach() * Q).sum()) - error
    found = gradient_batches(
        policy, lambda observation, action: VALID[action[..., 0]], torch.ones(1000, 1, dtype=torch.float64), Q, critic,
        settings(n_draws=n_draws, max_draws=300), n_batches=40, generator=generator(),
    )  # fmt: skip
    assert truth.norm() > 0.3
    assert z_scores(found, truth).abs().max() < 5
