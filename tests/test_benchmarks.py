"""What the benchmarks time is what it says: the oracle in plain Python, what was recorded."""

import json

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import against, audit, cost, gpu, history, phases, rare, soak, strangers
from benchmarks import values as judged_values
from flowrl import envs
from flowrl.a2c import Trainer, seeded
from flowrl.envs.city import City, generate
from flowrl.envs.era import BatchedERA
from flowrl.rejection import all_actions
from flowrl.study.config import make_config
from flowrl.study.plan import runs
from flowrl.study.records import EXPERIMENTS, ROOT
from flowrl.study.strangers import _cells, _until, page, seeds
from flowrl.truth import search


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


def test_what_draws_offer_is_the_return_of_going_there_and_staying():
    """Two draws in every start, staying put and the best single move, and an invalid one that would be better."""
    city = City.load("ERA-v3")
    starts = city.starts[:5]
    going = search.go_and_stay(city, starts, np.random.default_rng(0))
    better = search.go_and_stay(city, starts, np.random.default_rng(0), anywhere=True)  # not within reach
    drawn = np.stack((starts, going, better), 1)
    ok = np.array([[True, True, False]] * 4 + [[False] * 3])
    stay, moved = (
        search.expected_return(city, np.stack([starts[:4]] + [y[:4]] * city.horizon)) for y in (starts, going)
    )
    found = rare.offered(city, starts, drawn, ok)
    assert found["stay"] == pytest.approx(stay.mean()) and found["best"] == pytest.approx(moved.mean())
    assert found["mean"] == pytest.approx((stay + moved).mean() / 2)
    assert found["distinct"] == np.mean([2 - np.array_equal(a, b) for a, b in zip(starts[:4], going[:4], strict=True)])
    assert np.isnan(rare.offered(city, starts, drawn, ok & False)["best"])


def test_errors_of_values_know_what_the_gradient_is_blind_to():
    """True values of two states; learnt ones that are shifted by the state, stretched, or wrong where it is invalid."""
    true = torch.tensor([[1.0, 3.0, 50.0], [-4.0, 0.0, 2.0]]).double()
    valid = torch.tensor([[True, True, False], [True, True, True]])
    deviations = np.array([-1, 1, -10 / 3, 2 / 3, 8 / 3])
    shifted = judged_values.errors(true + torch.tensor([[7.0], [1.0]]), true, valid)
    assert shifted == pytest.approx({"off": 4, "error": 0, "slope": 1, "spread": deviations.std()}, abs=1e-12)
    stretched = judged_values.errors(1.5 * true, true, valid)
    assert (stretched["error"], stretched["slope"]) == pytest.approx((0.5, 1.5))
    elsewhere = judged_values.errors(torch.where(valid, true, -9), true, valid)
    assert (elsewhere["off"], elsewhere["error"]) == pytest.approx((0, 0))


def test_the_recorded_comparison_with_stable_baselines3_says_what_is_claimed_of_it():
    """Of each table row: equal seeds and steps, median returns within 15 %, and at least their speed."""
    rows = pd.read_csv(ROOT / "data/comparisons/sb3.csv")
    a2c = rows["method"].str.endswith(("a2c", "A2C"))
    compared = dict(list(rows.groupby(["env", rows["n_envs"].where(a2c, 0)])))
    for what, group in compared.items():
        ours, theirs = (group[group["method"].str.startswith("flowrl") == is_ours] for is_ours in (True, False))
        seeds = list(range(3 if what[0] == "ERA-v1" else 10))
        assert sorted(ours["seed"]) == sorted(theirs["seed"]) == seeds, what
        assert set(group["env_steps"]) == {200_000}, what
        middle, other = (table["return_mean"].median() for table in (ours, theirs))
        assert abs(middle - other) < 0.15 * abs(other), what
        assert ours["steps_per_cpu_s"].mean() > theirs["steps_per_cpu_s"].mean(), what
    assert set(compared) == {(env, n) for env in ("CartPole-v1", "Acrobot-v1") for n in (8, 64)} | {("ERA-v1", 0)}
    made = rows.loc[a2c & (rows["n_envs"] == 64), ["machine", "commit"]]
    assert made.notna().all(axis=None)  # a row says what it was made with, but for those older than these columns


def test_operators_are_counted_backwards_too():
    x = torch.ones(3, requires_grad=True)
    with phases.Operators() as forward:
        y = x.sin()
    with phases.Operators() as backward:
        y.backward(torch.ones(3))
    assert forward.calls == 1 and backward.calls >= 2  # cos(x) times what comes back


def test_phases_are_all_of_a_training_step(monkeypatch):
    """Shares of the whole; operators as many in 8 environments as in 64; what is slow shows."""
    monkeypatch.setattr(phases, "SECONDS", 0.1)
    few, many = (
        phases.profile("CartPole-v1", "a2c", phases.SHARED | {"n_envs": n}).set_index("phase") for n in (8, 64)
    )
    assert few["percent"].sum() == pytest.approx(100) and (few["percent"] > 0).all()
    assert (few["operators"] == many["operators"]).all() and few["operators"]["update"] > 100
    update = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda self, rollout: [update(self, rollout) for _ in range(10)])
    slow = phases.profile("CartPole-v1", "a2c", phases.SHARED | {"n_envs": 8}).set_index("phase")
    assert slow["operators"]["update"] == 10 * few["operators"]["update"]
    assert slow["percent"]["update"] > few["percent"]["update"] + 20


def test_the_recorded_phases_are_of_clean_code():
    rows = pd.read_csv(ROOT / "data/benchmarks/phases.csv")
    cases = {(env, method, settings.get("n_envs", 64)) for env, method, settings in phases.CASES}
    assert set(rows[["environment", "method", "n_envs"]].itertuples(index=False, name=None)) == cases
    assert (rows.groupby(["environment", "n_envs"])["percent"].sum() - 100).abs().max() < 0.1
    assert json.loads((ROOT / "data/benchmarks/machine.json").read_text())["phases"]["dirty"] is False


def test_invalid_actions_are_watched_apart_from_all_libraries():
    log = strangers.Log()
    env = strangers.Watched(gymnasium.make("Taxi-v4"), log)
    for mask in (1, 0, 0):
        _, info = env.reset(seed=0)
        env.step(np.flatnonzero(info["action_mask"] == mask)[0])
    assert log.invalid == 2 and len(log.episodes) == 2  # begun anew twice
    outcome = strangers.ours("iar-a2c", strangers.GAMES["Connect Four"]._replace(steps=64), seed=0)
    assert outcome.log.invalid == outcome.invalid == 0
    assert all(set(returns) <= {-1.0, 0.0, 1.0} for returns in outcome.returns)


def test_equal_seconds_are_read_off_the_curve():
    run = {"cpu_s": "10", "curve": "1 2 nan 4 5 6 7 8 9 10"}
    assert [_until(run, seconds) for seconds in (0.5, 2.5, 3.5, 10, 99)] == [1, 2, 4, 10, 10]


def test_the_table_of_strangers_shows_a_seed_that_learnt_nothing():
    """A mean and its error hide it: three seeds at 0.64 each could say the same."""
    chance = {"drawn": seeds([0.2, 0.21, 0.2]), "greedy": seeds([0.2, 0.21, 0.2])}
    two_of_three = {"drawn": seeds([0.96, 0.96, 0.0]), "equal": seeds([0.96, 0.96, 0.0])}
    assert _cells(two_of_three, chance) == ["0.64 ± 0.32 [0.00, 0.96]†", "", "0.64 ± 0.32"]
    assert _cells({"drawn": seeds([0.96, 0.6, 0.3])}, chance)[0] == "0.62 ± 0.19 [0.30, 0.96]"
    assert "†" not in _cells(chance, chance)[0]
    row = next(line for line in page().splitlines() if line.startswith("| MiniGrid-Empty-5x5 | flowrl recipe |"))
    table = pd.read_csv(ROOT / "data/comparisons/strangers.csv")
    of = table[table["env"] == "MiniGrid-Empty-5x5"].groupby("method")["drawn"]
    assert ("†" in row.split(" | ")[2]) == (of.min()["flowrl iar-a2c"] <= of.mean()["random"])


def test_the_page_of_strangers_says_by_what_a_peer_wins():
    """For each of its environments, and with that method's own numbers."""
    wins = page().partition("## A peer wins")[2].partition("## flowrl wins")[0]
    compared, reasons = (
        [line for line in part.splitlines() if line.startswith("- ")] for part in wins.split("By what:")
    )
    assert {line[2:].rpartition(", ")[0] for line in compared} == {line[2:].partition(":")[0] for line in reasons}
    table = pd.read_csv(ROOT / "data/comparisons/strangers.csv")
    share = table.groupby(["env", "method"])["valid_draws"].mean()["Flexible job shop", "flowrl iar-a2c"]
    assert f"falls to {share:.0%}, " in wins and 0 < share < 0.1


def test_the_recorded_table_of_strangers_is_whole():
    rows = pd.read_csv(ROOT / "data/comparisons/strangers.csv")
    ours = rows[rows["method"].str.startswith("flowrl")]
    assert rows["env"].nunique() >= 12 and set(ours["env"]) == set(rows["env"])
    assert (ours[["invalid_trained", "invalid_evaluated"]] == 0).all(axis=None)
    assert rows["commit"].notna().all()  # a row says what it was made with
    for (env, method), of_one in rows.groupby(["env", "method"]):
        assert sorted(of_one["seed"]) == [0, 1, 2], (env, method)
        assert method == "random" or set(of_one["env_steps"]) == {strangers.GAMES[env].steps}, (env, method)


# ------------------------------------------------------------------------------------------------ the audit


@pytest.mark.parametrize(
    "name", ["ERA-v1", "ERA-v5-tight", "ERA-L-4x16", "Line-12x10", "Joint-Cstr", "Pistonball-v1-cstr"]
)
def test_the_audits_rules_are_the_environments_without_its_tables(name):
    """After some steps of training, on uniform actions and on small changes of executed ones."""
    env = envs.make_batched(name, 16, "cpu", seeded(0, "env"))
    trainer = Trainer(make_config(name, "factored-iar", {"n_envs": 16, "hidden": 8, "n_draws": 8}), env)
    one, noise = audit.Audit(env), seeded(0, "noise")
    one.train(trainer, 64)
    sizes = torch.tensor(env.action_sizes)
    last = trainer.before.action.expand(-1, 40, -1)
    drawn = (torch.rand(last.shape, generator=noise) * sizes).long()
    asked = torch.where(torch.rand(last.shape, generator=noise) < 0.3, drawn, last)
    said = env.valid(trainer.observation, asked)
    for rule, actions, valid in zip(one.rules(), asked.tolist(), said.tolist(), strict=True):
        assert [rule(action) for action in actions] == valid
    assert 0.02 < said.float().mean() < 0.98
    assert (one.steps, one.violations, one.disagreements) == (64, 0, 0) and one.refused > 0


def test_the_audit_sees_what_is_invalid():
    """An oracle that lies: everything is called valid; both the audit and the environment count."""
    env = envs.make_batched("ERA-v3-tight", 16, "cpu", seeded(0, "env"))
    one = audit.Audit(env)
    config = make_config("ERA-v3-tight", "factored-iar", {"n_envs": 16, "hidden": 8})
    one.train(Trainer(config, env, lambda observation, actions: torch.ones(actions.shape[:2], dtype=torch.bool)), 64)
    assert one.violations == int(env.violations) > 32
    row = {"violations": one.violations, "counted_by_environment": 0, "disagreements": 0, "uniform_refused": 0.9}
    assert audit.wrong(row)


def test_the_recorded_audit_finds_nothing():
    """A million steps of clean code: every constrained environment under every method that claims validity."""
    rows = pd.read_csv(ROOT / "data/benchmarks/audit.csv")
    assert list(zip(rows["environment"], rows["method"], strict=True)) == audit.pairs()
    assert rows["steps"].sum() >= 1_000_000 and rows.loc[rows["method"] == audit.CHAINS, "chains"].gt(0).all()
    assert not any(audit.wrong(row) for row in rows.to_dict("records")) and not rows["dirty"].any()


# ------------------------------------------------------------------------------------------------ the others


def test_what_a_soak_finds_wrong():
    """A leak, a slowdown, descriptors that pile up, after the first tenth only."""
    n = 50
    quiet = {"a_steps_an_update": [60.0] * n, "memory_mb": [300.0] * 5 + [400.0] * 45, "descriptors": [9] * n,
             "workers": [2] * n}  # fmt: skip
    assert soak.faults(pd.DataFrame(quiet)) == []
    once = [450.0 if i == len(quiet["memory_mb"]) - 1 else mb for i, mb in enumerate(quiet["memory_mb"])]
    assert soak.faults(pd.DataFrame(quiet | {"memory_mb": once})) == []  # one row is not its tenth
    for column, values, said in (
        ("memory_mb", [400.0 + k for k in range(n)], "memory"),
        ("a_steps_an_update", [60.0 - 0.1 * k for k in range(n)], "a_steps"),
        ("descriptors", [9 + k // 10 for k in range(n)], "descriptors"),
        ("workers", [2] * 40 + [3] * 10, "workers"),
    ):
        [fault] = soak.faults(pd.DataFrame(quiet | {column: values}))
        assert fault.startswith(said)


def test_a_comparison_with_another_tree_is_kept_once(tmp_path):
    row = {"method": "mask", "old_method": "mask", "env": "ERA-v4", "skip": 20, "old": "0123456", "ratio": "1.5"}
    for ratio, skip in (("1.5", 20), ("3", 1500), ("1.6", 20)):
        against.record(row | {"skip": skip, "ratio": ratio}, tmp_path / "against.csv")
    kept = pd.read_csv(tmp_path / "against.csv", dtype=str)
    assert dict(zip(kept["skip"], kept["ratio"], strict=True)) == {"20": "1.6", "1500": "3"}
    assert set(kept["old"]) == {"0123456"}


def test_the_recorded_history_says_what_is_compared():
    rows = pd.read_csv(ROOT / "data/benchmarks/history.csv")
    last = rows[rows["commit"] == rows["commit"].iloc[-1]]
    assert set(zip(last["method"], last["environment"], strict=True)) == set(history.PAIRS)
    assert (rows["steps_per_cpu_s"] / rows["matmul_gflops"] / rows["steps_per_gflop"] - 1).abs().max() < 0.01


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out == "no GPU here\n"
    seeds = sum((run.label, run.config.env) == ("mask", "ERA-v2") for run in runs(EXPERIMENTS, "fig5", "paper"))
    assert gpu.figure_hours({"mask": 1000}) == pytest.approx(4 * seeds * 700_000 / 1000 / 3600)  # four cities
