"""flowrl.beyond.action_values: Q's step against its equation written out, Q against the solved process, the gradient
through all valid draws against enumeration, oracle calls, bad settings.
"""

import math

import pytest
import torch
from ground_truth import z_scores
from test_a2c import Bandit
from test_wolpertinger import FOLLOWING, REWARD, SIZES, Table

from flowrl import rejection
from flowrl.a2c import Trainer
from flowrl.beyond.action_values import ActionValues
from flowrl.rejection import all_actions
from flowrl.study.config import ConfigError, make_config

SMALL = {"hidden": 32, "policy_hidden": 8, "n_envs": 16, "steps": 1000, "gamma": 0.5, "value_scale": 1.0,
         "replay_size": 4000, "replay_batch": 64}  # fmt: skip


def table(**changes) -> Trainer:
    config = make_config("table", "iar-a2c-q", SMALL | changes)
    return Trainer(config, Table(REWARD, FOLLOWING, SIZES, config.n_envs, 3))


def values(one: Trainer) -> torch.Tensor:
    """Q of every state and action, (X, |A|)."""
    assert one.action_values is not None
    states = one.env.observe(torch.arange(len(REWARD)))
    actions = all_actions(SIZES, "cpu").expand(len(states), -1, -1)
    with torch.no_grad():
        return one.action_values.of(one.critic, states, actions)


def test_the_loss_is_its_equation():
    """mean (r + γ mean_j Q'(s', a'_j) [not terminated] − Q(s, a))², transition by transition, with the draws made; the
    shift of rewards is in r."""
    one = table(reward_shift=0.25)
    for _ in range(3):
        one.step()
    q = one.action_values
    with torch.no_grad():
        for k, flat in enumerate((q.weights, q.slow_weights)):
            flat.copy_(0.3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(k)))
    batch = q.replay.sample(64, torch.Generator().manual_seed(7))
    again = torch.Generator().manual_seed(7)
    q.replay.sample(64, again)
    draws = one.policy.sample(one.policy.features(batch.next_observation), 4, again).action
    errors = []
    for n in range(64):

        def by(critic, state, action):
            code = torch.nn.functional.one_hot(action, 3).flatten().float()
            return critic(state[None], code[None, None]).item()

        following = sum(by(q.slow, batch.next_observation[n], a) for a in draws[n]) / 4
        target = float(batch.reward[n]) + 0.5 * (0.0 if batch.terminated[n] else following)
        errors.append((target - by(q.critic, batch.observation[n], batch.action[n])) ** 2)
    assert 0 < int(batch.terminated.sum()) < 64
    assert {round(reward, 4) for reward in batch.reward.tolist()} <= {0.25, 0.85, 1.25}
    assert q.loss(one.policy, torch.Generator().manual_seed(7)).item() == pytest.approx(sum(errors) / 64, rel=1e-4)


def test_q_learns_what_every_action_is_worth():
    """Q^π of the policy at rest, which the draws show, from its linear equations; within 0.06 of values 0.1 to 1.15."""
    one = table(actor_lr=0.0, valid_bonus=0.0, entropy=0.0, critic_lr=3e-3)
    for _ in range(1500):
        one.step()
    draws = one.policy.sample(one.policy.features(one.env.observe(torch.arange(2))), 20_000).action
    flat = (draws * torch.tensor([2, 1])).sum(-1)
    policy = torch.stack([row.bincount(minlength=6) / 20_000 for row in flat])
    v = torch.zeros(3)
    for _ in range(60):
        q = REWARD + 0.5 * v[FOLLOWING]
        v = torch.cat(((policy * q).sum(1), torch.zeros(1)))
    assert float(q.max() - q.min()) > 0.8
    assert float((values(one) - q).abs().max()) < 0.06


def test_it_finds_the_best_policy():
    """Value iteration's: to go from state 0 to 1 for nothing now, and to stay there."""
    one = table(actor_lr=2e-3, entropy=0.5, critic_lr=3e-3, steps=16 * 1000)
    for _ in range(1000):
        one.step()
    draws = one.policy.sample(one.policy.features(one.env.observe(torch.arange(2))), 1000).action
    best = (draws * torch.tensor([2, 1])).sum(-1) == torch.tensor([[4], [3]])
    assert (best.float().mean(1) > 0.95).all()


def test_all_valid_draws_carry_the_gradient_of_the_expected_value():
    """Σ_j credit_j ∇log π(a_j) over sets of 5 draws has the mean ∇E_π'[Q], enumerated; z-bound 4 in 6 logits."""
    noise, n = torch.Generator().manual_seed(0), 200_000
    logits = torch.randn(6, generator=noise, dtype=torch.float64, requires_grad=True)
    worth = torch.randn(6, generator=noise, dtype=torch.float64)
    allowed = torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.bool)
    within = torch.softmax(logits.masked_fill(~allowed, -torch.inf), 0)
    (exact,) = torch.autograd.grad((within * worth).sum(), logits)
    p = torch.softmax(logits.detach(), 0)
    draws = torch.multinomial(p.expand(n, -1), 5, replacement=True, generator=noise)
    valid = allowed[draws]
    enough = valid.sum(-1) >= 2  # where there are fewer, more are drawn
    draws, valid = draws[enough], valid[enough]
    credit = rejection.covariance_weights(worth[draws], valid).double()
    score = torch.nn.functional.one_hot(draws, 6) - p
    found = (credit.unsqueeze(-1) * score).sum(1)
    assert (z_scores(found, exact).abs() < 4).all()
    executed = valid.double().argmax(-1, keepdim=True)  # one valid draw's value, over the mean of the others
    one = torch.nn.functional.one_hot(executed[:, 0], 5).double()
    single = rejection.correction_weights(one, valid, valid.sum(-1), valid.sum(-1), "leave_one_out")
    single = ((single * worth[draws].gather(1, executed)).unsqueeze(-1) * score).sum(1)
    assert (found.var(0)[allowed] < single.var(0)[allowed]).all()


def test_only_the_rollouts_draws_are_asked_about():
    config = make_config("bandit", "iar-a2c-q", SMALL | {"n_steps": 2})
    one = Trainer(config, Bandit(config.n_envs))
    seen, valid = [0], one.env.valid

    def asked(observation, actions):
        seen[0] += actions[..., 0].numel()
        return valid(observation, actions)

    one.oracle = asked
    for _ in range(5):
        one.step()
    assert seen[0] == one.counts["asked"] == one.counts["draws"] >= one.counts["states"] * config.n_draws
    assert one.env.violations == 0


def test_states_where_nothing_may_be_executed_are_never_drawn():
    """NOTHING has no digits, so no Q either."""
    one = table()
    action = torch.tensor([[2, 1], [-1, -1]]).repeat(8, 1)
    one.action_values.replay.add(one.observation, action, one.env.step(action.clamp_min(0)))
    assert (one.action_values.replay.sample(500).action >= 0).all()


def test_pictures_make_the_buffer_shorter(monkeypatch):
    """No more observations than there is room for, and never less than a buffer needs."""
    for room, slots in ((10**9, 250), (16 * 100 * 12, 100), (1, 3)):  # an observation is 3 numbers of 4 bytes
        monkeypatch.setattr("flowrl.beyond.action_values.ROOM", room)
        assert table().action_values.replay.live.shape == (slots, 16)


def test_rewards_are_scaled_before_they_are_kept():
    """As they would be for V: what a thousand times as much pays is kept as the same."""
    one, other = (table(normalise_reward=True, reward_shift=shift) for shift in (0.5, 500))
    other.env.reward = 1000 * other.env.reward
    for _ in range(5):
        one.step()
        other.step()
    kept = [each.action_values.replay.reward[:5] for each in (one, other)]
    assert kept[0].abs().max() > 0
    torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"policy": "masked", "correction": "none", "n_draws": 1}, "critic is action; policy 'masked'"),
        ({"n_draws": 1, "n_correction": 1, "correction": "none", "entropy": 0}, "at least 2"),
        ({"joint_clip": True}, "joint_clip is true"),
        ({"correction": "mean"}, "correction is mean"),
        ({"value_scale": 0}, "value_scale is 0"),
        ({"replay_size": 47}, "at least 3 n_envs, 48"),
    ],
)
def test_a_bad_setting_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        make_config("table", "iar-a2c-q", SMALL | changes)


def test_what_is_not_finite_never_reaches_the_replay_buffer():
    one = table()
    one.step()
    rollout = one.rollout()
    rollout.reward[0, 3] = math.nan
    before = {name: flat.clone() for name, flat in one.parameters.items()}
    with pytest.raises(FloatingPointError, match="the reward of environment 3"):
        one.update(rollout)
    assert one.action_values.replay.reward.isfinite().all()
    assert all(torch.equal(flat, before[name]) for name, flat in one.parameters.items())


def test_credit_is_of_the_valid_draws_alone():
    """Against a loop, Q of weights at random: 0 on invalid draws and where one draw is valid; M of S draws used."""
    config = make_config("bandit", "iar-a2c-q", SMALL | {"n_draws": 6, "n_correction": 3, "max_draws": 6})
    one = Trainer(config, Bandit(config.n_envs))
    with torch.no_grad():
        one.action_values.weights.normal_(generator=torch.Generator().manual_seed(1))
    decision = rejection.at_most(one.rollout().decisions[0], 3)
    credit = one._credit(decision, decision.n_valid, None, None)
    q = one.action_values.of_draws(decision.observation, decision)
    several = set()
    for b in range(config.n_envs):
        valid = [j for j in range(credit.shape[1]) if decision.valid[b, j]]
        several.add(len(valid))
        mean = sum(float(q[b, j]) for j in valid) / max(1, len(valid))
        for j in range(credit.shape[1]):
            expected = (float(q[b, j]) - mean) / (len(valid) - 1) if j in valid and len(valid) > 1 else 0.0
            assert float(credit[b, j]) == pytest.approx(expected, abs=1e-5)
    assert 3 in several and min(several) < 3 and q.std() > 0


def test_nothing_is_learnt_while_nothing_can_be_executed():
    one = table(n_envs=1, replay_size=100)
    rollout = one.rollout()
    rollout.decisions[0] = rollout.decisions[0]._replace(action=torch.full((1, 2), -1))
    assert float(one._learn_action_values(one.action_values, rollout)) == 0


def test_an_action_that_is_coded_too_long_is_refused():
    with pytest.raises(ValueError, match="here 20,001; at most 20,000"):
        ActionValues(
            torch.nn.Linear(1, 1), torch.zeros(1), torch.zeros(2, 3), (20_001,), make_config("table", "iar-a2c-q")
        )
