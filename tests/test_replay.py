"""flowrl.replay: what is drawn against what was put in, uniformly, across episodes; bad sizes."""

import math

import pytest
import torch
from test_action_values import table
from test_wolpertinger import generator, trainer

from flowrl.envs.batched import Step
from flowrl.replay import Replay


@pytest.mark.parametrize("steps", [5, 13, 100])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_replay_returns_what_was_put_in(ends, steps):
    """Observations name environment, episode and time; episodes of environment b last b + 1 steps (one, too).

    What can be drawn is, in each environment, the latest transitions without a gap, as many as there is room for.
    """
    n_envs, slots = 4, 12
    env = torch.arange(n_envs)
    episode, time = torch.zeros(2, n_envs, dtype=torch.int64)

    def observe():
        return torch.stack((env, episode, time), 1).to(torch.uint8)

    replay, history = Replay(slots * n_envs + 3, observe(), 2), []
    for t in range(steps):
        before, action = observe(), torch.stack((env, torch.full_like(env, t)), 1)
        time = time + 1
        final, ended = observe(), time == env + 1
        episode, time = episode + ended, torch.where(ended, 0, time)
        how = (ended, ~ended & ended) if ends == "terminated" else (~ended & ended, ended)
        replay.add(before, action, Step(observe(), 10.0 * env + t, *how, final))
        history += zip(*(x.tolist() for x in (before, action, 10.0 * env + t, how[0], final)), strict=True)
    found = replay.sample(5000, generator())
    assert found.observation.dtype == found.next_observation.dtype == torch.uint8
    drawn = {repr(row) for row in zip(*(x.tolist() for x in found), strict=True)}
    assert len(drawn) == int(replay.live.sum())
    for b in range(n_envs):
        own = [repr(row) for row in history if row[0][0] == b]
        mine = sum(row in drawn for row in own)
        assert set(own[len(own) - mine :]) <= drawn
        # a transition in slots / (1 + a final observation every b + 1 steps), but for the slot that is next
        room = (slots - 2) * (b + 1) // (b + 2) - 1
        assert mine == len(own) if len(own) <= room else mine >= room
    assert len(drawn) == sum(row in drawn for row in map(repr, history))


def test_replay_draws_uniformly():
    """Every one of the transitions as often as any other, z-bound 4.5, where episodes end at different times."""
    one, draws = trainer(), 40_000
    for _ in range(20):
        one.interact()
    one.replay.action[..., 0] = torch.arange(one.replay.live.numel()).view_as(one.replay.live)
    counts = one.replay.sample(draws, generator()).action[:, 0].bincount(minlength=one.replay.live.numel())
    live = one.replay.live.flatten() > 0
    assert int(live.sum()) == 320 and counts[~live].sum() == 0
    p = 1 / 320
    assert (counts[live] - draws * p).abs().max() < 4.5 * math.sqrt(draws * p * (1 - p))


@pytest.mark.parametrize("size", [47, 2**24 + 1])
def test_a_replay_buffer_has_bounds(size):
    with pytest.raises(ValueError, match=rf"replay_size is {size}; allowed: 3 n_envs, 48, to"):
        trainer(replay_size=size)


def test_new_episodes_overwrite_nothing():
    """Where episodes are cut off from outside, the last transition keeps the observation that it led to."""
    one = table()
    for _ in range(4):
        one.action_values.add(one.rollout())
    replay = one.action_values.replay
    before = {repr([x.tolist() for x in row]) for row in zip(*replay.sample(5000, torch.Generator()), strict=True)}
    replay.cut_off()
    one.observation = one.env.reset()
    one.action_values.add(one.rollout())
    after = {repr([x.tolist() for x in row]) for row in zip(*replay.sample(9000, torch.Generator()), strict=True)}
    assert before <= after


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_where_few_slots_are_live_they_are_drawn_uniformly_too(share):
    """By rejection or, where most of what is drawn is not live, by weight: z-bound 4.5; never an empty slot."""
    replay, B = Replay(400, torch.zeros(4, 2), 1), 4
    for t in range(60):
        live = torch.rand(B, generator=torch.Generator().manual_seed(t)) < share
        action = torch.where(live, torch.arange(B) + B * t, -1)[:, None]
        nothing = torch.zeros(B, dtype=torch.bool)
        replay.add(
            torch.zeros(B, 2), action, Step(torch.zeros(B, 2), torch.zeros(B), nothing, nothing, torch.zeros(B, 2))
        )
    draws = 40_000
    drawn = replay.sample(draws, generator()).action[:, 0]
    expected = replay.action[replay.live > 0].flatten()
    counts = drawn.bincount(minlength=B * 60)[expected]
    p = 1 / len(expected)
    assert counts.sum() == draws and abs(len(expected) - share * B * 60) < 4.5 * math.sqrt(B * 60 * share * (1 - share))
    assert (counts - draws * p).abs().max() < 4.5 * math.sqrt(draws * p * (1 - p))


def test_a_buffer_of_before_it_counted_its_slots_is_read():
    one, other = Replay(40, torch.zeros(4, 2), 1), Replay(40, torch.zeros(4, 2), 1)
    nothing = torch.zeros(4, dtype=torch.bool)
    one.add(
        torch.zeros(4, 2),
        torch.ones(4, 1, dtype=torch.int64),
        Step(torch.zeros(4, 2), torch.ones(4), nothing, nothing, torch.zeros(4, 2)),
    )
    other.load_state_dict({name: value for name, value in one.state_dict().items() if name != "filled"})
    assert other.sample(100, generator()).reward.eq(1).all()
