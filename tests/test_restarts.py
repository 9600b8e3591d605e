"""Random restarts (`flowrl.beyond.restarts`) against a count of every episode by hand."""

import copy
import math

import pytest
import torch

from flowrl.a2c import Trainer, seeded
from flowrl.envs import make_batched
from flowrl.study.config import ConfigError, make_config

SETTINGS = {"n_envs": 8, "steps": 2400, "restarts": 3, "hidden": 32, "replay_size": 1000, "replay_batch": 64}


def trainer(method: str = "iar-a2c-q", **changes) -> Trainer:
    settings = SETTINGS | changes
    env = make_batched("ERA-v1", settings["n_envs"], "cpu", seeded(0, "env"))
    return Trainer(make_config("ERA-v1", method, settings), env)


def weights(one: Trainer) -> torch.Tensor:
    return torch.cat([part.flatten() for part in one.policy.state_dict().values()])


def train(one: Trainer, until: float = math.inf) -> None:
    while one.env_steps < min(until, one.config.steps):
        one.step()


def watch(one: Trainer) -> tuple[list[torch.Tensor], list[list[float]], list[list[float]]]:
    """Train to the end; of each training the weights at its end, what the episodes returned that ended in its last
    tenth, and each environment's latest."""
    steps, many, B = one.config.steps, one.config.restarts, len(one.observation)
    found, late, latest = [], [[] for _ in range(many)], [[math.nan] * B for _ in range(many)]
    running, between, ends = [0.0] * B, [True] * B, [steps * (k + 1) / many for k in range(many)]
    rollout, after = one.rollout, one.restarts.after

    def watched():
        k, begun = len(found), one.env_steps
        if any(0 <= begun - end < B * one.config.n_steps for end in ends):  # the first of a training
            running[:] = [0.0 if whole else math.nan for whole in between]
        made = rollout()
        for reward, end in zip(made.reward.tolist(), (made.terminated | made.truncated).tolist(), strict=True):
            for b in range(B):
                running[b] += reward[b]
                between[b] = end[b]
                if end[b] and not math.isnan(running[b]):
                    latest[k][b] = running[b]
                    if one.env_steps > ends[k] - 0.1 * steps / many:
                        late[k].append(running[b])
                if end[b]:
                    running[b] = 0.0
        return made

    def noted(of):
        if one.env_steps >= ends[len(found)]:
            found.append(weights(one))
        after(of)

    one.rollout, one.restarts.after = watched, noted
    train(one)
    return found, late, latest


@pytest.mark.parametrize(("method", "changes"), [
    ("iar-a2c-q", {}), ("factored-iar", {}), ("factored-iar", {"n_steps": 5, "steps": 2500}),
])  # fmt: skip
def test_the_policy_that_returned_most_is_kept(method, changes):
    one = trainer(method, **changes)
    found, late, latest = watch(one)
    means = [sum(some) / len(some) if some else sum(all_) / len(all_) for some, all_ in zip(late, latest, strict=True)]
    best = means.index(max(means))
    assert len(found) == 3 and len({round(mean, 6) for mean in means}) == 3
    assert one.restarts.best == pytest.approx(max(means), abs=1e-3)
    assert [weights(one).equal(each) for each in found] == [k == best for k in range(3)]


def test_where_no_episode_ends_late_the_latest_counts():
    """140 steps a training in each environment: episodes end at 100, 200, 300 and 400 of 420, none in a last tenth;
    those that end at 200 and 300 began in the training before, so that the second has none of its own."""
    one = trainer("factored-iar", steps=3360)
    found, late, latest = watch(one)
    means = [sum(some) / len(some) for some in latest]
    assert not any(late) and math.isnan(means[1]) and means[0] != means[2]
    assert one.restarts.best == pytest.approx(max(means[0], means[2]), abs=1e-3)
    assert weights(one).equal(found[0 if means[0] > means[2] else 2])


def test_where_no_episode_ends_at_all_the_first_policy_stays():
    one = trainer("factored-iar", steps=480)
    found, late, latest = watch(one)
    assert not any(late) and all(math.isnan(r) for some in latest for r in some) and one.restarts.best == -math.inf
    assert weights(one).equal(found[0])


def test_a_restart_begins_anew():
    """The weights of (seed, training), no momentum, an empty replay; its entropy falls from the start again."""
    one, other = trainer(), trainer()
    train(one, 2400 // 3)
    assert one.restarts.done == 1 and one.action_values.replay.live.sum() == one.env_steps
    one.restarts.before(one)
    other.begin("weights/1")
    assert one.annealed() == pytest.approx(1) and one.action_values.replay.live.sum() == 0
    assert weights(one).equal(weights(other)) and not weights(trainer()).equal(weights(other))
    assert not any(optimiser.state for optimiser in one.optimisers.values())
    assert one.env_steps == one.counts["states"] == 2400 // 3


def test_what_follows_the_last_training_goes_on_from_the_kept_weights():
    one = trainer()
    train(one)
    kept = weights(one)
    assert one.annealed() == 0 and one.action_values.slow_weights.equal(one.action_values.weights)
    one.step()
    assert not weights(one).equal(kept) and one.restarts.share(one.env_steps) > 1


def test_the_replay_buffer_goes_on_where_it_is_kept():
    """Through every restart and past the last; all else begins as without. The whole run fits in."""
    one, other = trainer(keep_replay=True, replay_size=4000), trainer(replay_size=4000)
    train(one, 2400 // 3)
    before = one.action_values.replay
    assert before.live.sum() == 2400 // 3
    one.restarts.before(one)
    other.begin("weights/1")
    assert one.action_values.replay is before and weights(one).equal(weights(other))
    assert one.action_values.slow_weights.equal(other.action_values.slow_weights)
    train(one)
    assert one.action_values.replay is before and before.live.sum() == 2400


@pytest.mark.parametrize(("stop", "keep"), [(304, False), (800, False), (1304, False), (1304, True), (2400, False)])
def test_a_run_with_restarts_goes_on_where_it_was_stopped(stop, keep):
    whole, half, other = (trainer(keep_replay=keep) for _ in range(3))
    train(whole)
    train(half, stop)
    other.load_state_dict(copy.deepcopy(half.state_dict()))
    train(half)
    train(other)
    assert weights(half).equal(weights(whole)) and weights(other).equal(weights(whole))
    assert other.restarts.best == half.restarts.best == whole.restarts.best


def test_episodes_cut_off_from_outside_count_from_where_they_begin():
    one, other = trainer("factored-iar"), trainer("factored-iar")
    train(one, 304)
    assert one.restarts.running.abs().max() > 0
    other.load_state_dict(one.state_dict() | {"env": None})
    assert other.restarts.running.abs().max() == 0 < one.restarts.running.abs().max()


def test_a_reward_that_is_not_finite_does_not_count():
    one = trainer("factored-iar")
    train(one, 784)
    made = one.rollout()
    made.reward[0, 3] = math.nan
    one.restarts.watch(made._replace(truncated=torch.ones_like(made.truncated)), 792)
    assert one.restarts.ended.isfinite().all() and one.restarts.ended[1] == 7


@pytest.mark.parametrize(("method", "settings", "said"), [
    ("iar-a2c", {"restarts": 0}, "restarts is 0; it must be at least 1"),
    ("wol-ddpg", {"restarts": 2}, "restarts is 2; Wol-DDPG allows 1 only"),
    ("factored-iar", {"restarts": 3, "n_envs": 64, "steps": 191}, "restarts is 3, steps 191; it takes at least 192"),
    ("iar-a2c", {"restarts": 2, "n_envs": 64, "steps": 2000, "estimator": "cis"}, "it takes at least 2,176 steps"),
    ("iar-a2c-q", {"keep_replay": True}, "keep_replay is true; without restarts, .* there is nothing to keep"),
    ("iar-a2c", {"keep_replay": True, "restarts": 2}, "keep_replay is true; .* with critic state, there is nothing"),
])  # fmt: skip
def test_restarts_that_cannot_be(method, settings, said):
    with pytest.raises(ConfigError, match=said):
        make_config("ERA-v1", method, settings)
