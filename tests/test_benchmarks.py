"""What the benchmarks time is what it says: the oracle in plain Python, what was recorded."""

import pandas as pd
import torch

from benchmarks import cost
from flowrl.a2c import seeded
from flowrl.envs.city import City, generate
from flowrl.envs.era import BatchedERA
from flowrl.rejection import all_actions
from flowrl.study.records import ROOT


def test_one_at_a_time_judges_as_the_batched_oracle():
    """Random actions of ERA-v4-tight, and one hop from where the resources are, which is valid more often."""
    city, generator = City.load("ERA-v4-tight"), torch.Generator().manual_seed(0)
    env = BatchedERA(city, 32, "cpu", seeded(0, "env"))
    observation, oracle = env.reset(), cost.one_at_a_time(city)
    anywhere = torch.randint(city.districts, (32, 40, city.resources), generator=generator)
    here = observation[:, None, :, 2:].argmax(2)
    near = torch.where(torch.rand(anywhere.shape, generator=generator) < 0.7, here, anywhere)
    actions = torch.cat((anywhere, near), 1)
    expected = env.valid(observation, actions)
    assert torch.equal(oracle(observation, actions), expected)
    assert 0.05 < expected.float().mean() < 0.9
    assert not torch.equal(expected, env.valid(observation.roll(1, 0), actions))  # the state counts


def test_share_is_that_of_every_action():
    """Over all start allocations of a city of two resources: each action put to the oracle."""
    city = generate(10, 2, seed=0, max_hops=2, proximity=[(0, 1, 2)])
    starts = torch.from_numpy(city.starts)
    env = BatchedERA(city, len(starts))
    observation = env.observe(starts, torch.zeros(len(starts), dtype=torch.int64))
    valid = env.valid(observation, all_actions((10, 10), "cpu").expand(len(starts), -1, -1))
    assert abs(float(valid.double().mean()) - cost.share(city)) < 1e-12


def test_recorded_cost_and_spread_against_the_number_of_actions():
    """Equal D K: 10¹² actions cost at most twice what 3,600 do. And the spread of the score, 10² to 10³⁰."""
    rows = pd.read_csv(ROOT / "data/benchmarks/scaling.csv").query("method == 'iar-a2c-gumbel'")
    seconds = rows.set_index(["resources", "levels"])["seconds_per_step"]
    (few,) = cost.EQUAL
    assert few[0] * few[1] == 12 * 10 and (12, 10) in cost.SIZES and few[1] ** few[0] < 4000
    assert seconds[12, 10] <= 2 * seconds[few]
    spread = pd.read_csv(ROOT / "data/benchmarks/spread.csv")
    assert spread["actions"].iloc[[0, -1]].tolist() == [1e2, 1e30]
    assert (spread["pathwise_1"] < 2 * spread["pathwise_64"]).all()


def test_the_recorded_comparison_with_stable_baselines3_says_what_is_claimed_of_it():
    """In each environment: equal settings of seeds and steps, returns whose ranges meet, and at least their speed."""
    rows = pd.read_csv(ROOT / "data/comparisons/sb3.csv")
    for env, group in rows.groupby("env"):
        ours, theirs = (group[group["method"].str.startswith("flowrl") == is_ours] for is_ours in (True, False))
        assert sorted(ours["seed"]) == sorted(theirs["seed"]) == [0, 1, 2], env
        assert set(group["env_steps"]) == {200_000}, env
        assert ours["return_mean"].max() >= theirs["return_mean"].min(), env
        assert theirs["return_mean"].max() >= ours["return_mean"].min(), env
        assert ours["steps_per_cpu_s"].mean() > theirs["steps_per_cpu_s"].mean(), env
    assert set(rows["env"]) == {"CartPole-v1", "Acrobot-v1", "ERA-v1"}
