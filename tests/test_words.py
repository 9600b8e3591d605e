"""Sentences from records: their numbers, which runs they call apart, and how sure they say that is."""

import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import record

from flowrl.study import words

ORACLES = "batched", "one at a time"
NAMES = {"a": "one", "b": "two", "c": "three"}


def runs_of(label, *scores, environment="ERA-v4"):
    """A record a seed; scores 0 and 1 stand at returns of −70 and −20."""
    return [record(label, [0] * 3, [0] * 3, environment, exact=50 * score - 70) for score in scores]


def test_what_lies_apart_is_said_to_and_what_overlaps_is_not():
    runs = runs_of("a", 0.7, 0.8, 0.9) + runs_of("b", 0.1, 0.2, 0.3) + runs_of("c", 0.6, 0.75, 0.8)
    text = words.seen(runs, NAMES)
    assert "Score, mean (least to greatest seed): one 0.80 (0.70 to 0.90); two 0.20 (0.10 to 0.30); three" in text
    assert "All seeds of one lie above those of two." in text
    assert "No difference from three is to be seen" in text
    assert "so, 3 seeds each, in one of 10 cases; if the 2 pairs compared here were all alike, 0.2 of them" in text
    assert "All seeds of two lie below those of one; three." in words.seen(runs, NAMES, ours="b")


def test_environments_are_counted():
    runs = [*runs_of("a", 0.9, 0.8), *runs_of("b", 0.2, 0.1)]
    runs += [*runs_of("a", 0.3, 0.4, environment="ERA-v3"), *runs_of("b", 0.35, 0.45, environment="ERA-v3")]
    text = words.seen(runs, NAMES)
    assert "In 1 of 2 environments all seeds of one lie above those of two." in text and "No difference" not in text
    assert "if the 2 pairs compared here were all alike, 0.7 of them" in text
    twice = [*runs_of("a", 0.9, 0.8), *runs_of("b", 0.2, 0.1)]
    twice += [*runs_of("a", 0.9, 0.8, environment="ERA-v3"), *runs_of("b", 0.2, 0.1, environment="ERA-v3")]
    assert "In both environments all seeds of one lie above those of two." in words.seen(twice, NAMES)
    assert words.seen(runs_of("a", 0.9, 0.8) + runs_of("b", 0.2, 0.1), NAMES).endswith("in one of 3 cases.")


def test_pairs_with_a_single_seed_are_impressions_and_do_not_spoil_the_others():
    """Three seeds against three, and against one, in one city; in the other against two, and against one above."""
    runs = runs_of("a", 0.7, 0.8, 0.9) + runs_of("b", 0.1, 0.2, 0.3) + runs_of("c", 0.5)
    runs += runs_of("a", 0.7, 0.8, environment="ERA-v3") + runs_of("c", 0.9, environment="ERA-v3")
    text = words.seen(runs, NAMES)
    assert "three 0.70 (0.50 to 0.90). All seeds of one lie above those of two. Where either has one seed, in" in text
    assert "one seed, in 1 of 2 environments all seeds of one lie above those of three. Likewise in 1 of 2 envi" in text
    assert "environments all seeds of one lie below those of three. **How sure.** Any two that were alike" in text
    assert text.endswith("3 seeds each, in one of 10 cases. Where a run has one seed this is an impression, no more.")
    alone = words.seen(runs_of("a", 0.9) + runs_of("b", 0.2), NAMES)
    assert "Where either has one seed, all seeds of one lie above those of two." in alone
    assert alone.endswith("**How sure.** Where a run has one seed this is an impression, no more.")
    within = words.seen(runs_of("a", 0.9, 0.1) + runs_of("b", 0.2), NAMES)
    assert "Where either has one seed, no difference from two is to be seen: the seeds overlap." in within


def test_a_run_alone_is_compared_with_going_once_and_staying():
    """Which stands at a return of −30, a score of 0.8; the optimum at 1."""
    runs = runs_of("a", 0.9, 0.7) + runs_of("a", 0.82, 0.84, environment="ERA-v3")
    text = words.seen(runs, NAMES)
    assert "ERA-v4 1 of 2 (least plateau gain −0.50); ERA-v3 2 of 2 (least plateau gain 0.10)." in text
    assert text.endswith(
        "**How sure.** Of these policies quite, their returns are exact; of further seeds 2 say little."
    )
    sampled = words.seen([record("a", [0] * 3, [0] * 3, final=-40.0)], NAMES)
    assert "ERA-v4 0 of 1" in sampled and sampled.endswith(
        "as far as their episodes tell; of further seeds one says little."
    )
    unknown = runs_of("a", 0.9)
    del unknown[0].facts["reference"]["go_and_stay"]
    assert words.seen(unknown, NAMES).endswith("(least to greatest seed): one 0.90.")


def test_every_pair_counts_with_its_own_seeds():
    """Three seeds against two and against four: one of C(5, 3) / 2 = 5 and one of C(7, 3) / 2 = 17.5 cases."""
    runs = runs_of("a", 0.7, 0.8, 0.9) + runs_of("b", 0.1, 0.2) + runs_of("c", 0.3, 0.4, 0.5, 0.6)
    text = words.seen(runs, NAMES)
    assert "so, 2 to 4 seeds each, in one of 5 to 18 cases; if the 2 pairs compared" in text
    assert text.endswith("were all alike, 0.3 of them would lie apart.")


def test_a_small_chance_is_not_said_to_be_none():
    """Two pairs of five seeds each: 2 · 2 / C(10, 5) = 0.016."""
    low, high = (0.1, 0.2, 0.3, 0.4, 0.5), (0.6, 0.7, 0.8, 0.9, 1.0)
    cities = ("ERA-v4", "ERA-v5")
    runs = [run for city in cities for its in (("a", *low), ("b", *high)) for run in runs_of(*its, environment=city)]
    text = words.seen(runs, NAMES)
    assert text.endswith("were all alike, 0.02 of them would lie apart.")


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 3)])
def test_chance_of_lying_apart_is_the_share_of_orders(n, m):
    orders = list(itertools.permutations(range(n + m)))
    apart = np.mean([max(x[:n]) < min(x[n:]) or min(x[:n]) > max(x[n:]) for x in orders])
    assert abs(words.chance_apart(n, m) - apart) < 1e-12


def test_what_was_spent_until_a_score():
    """Scores of 0.8, 1, 1: the mean of three is 0.93 at the third evaluation, 20 steps and 200 or 600 calls on."""
    learnt = [-30.0, -20.0, -20.0]
    runs = [record("a", [0, 100, 200], learnt), record("b", [0, 300, 600], learnt), record("c", [0] * 3, [-70.0] * 3)]
    table = [("ERA-v4", label, oracle, 0.1 if label == "a" else 0.05) for label in "ab" for oracle in ORACLES]
    seconds = pd.DataFrame(table, columns=["environment", "method", "oracle", "seconds_per_step"])
    spent = words.spent_until(runs, seconds, 0.9)
    assert spent[list(words.COSTS)].iloc[:2].to_numpy().tolist() == [[20, 200, 2, 2], [20, 600, 1, 1]]
    assert spent[list(words.COSTS)].iloc[2].isna().all()
    text = words.dearest(spent, NAMES, "b", "a", 0.9)
    assert (
        "To a score of 0.9 two takes 1.0 times the one's environment steps (the most of all); 3.0 times its ora" in text
    )
    assert "0.50 times its seconds with an oracle in batches (others take more)" in text
    assert "Left out, as not every seed came to it: three, 0 of 1 in ERA-v4. **How sure.** Means over 1 seeds" in text
    spent = words.spent_until(runs, seconds, 0.94)
    assert spent["oracle calls"].isna().all()
    assert words.dearest(spent, NAMES, "b", "a", 0.94) == (
        "**Seen.** Nothing to compare at a score of 0.94. Left out, as not every seed came to it: "
        "one, 0 of 1 in ERA-v4; two, 0 of 1 in ERA-v4; three, 0 of 1 in ERA-v4."
    )


def test_what_was_spent_is_compared_where_all_seeds_got_there_and_the_cost_is_known():
    """One of two seeds of b fails in ERA-v3; nobody timed b with an oracle that judges one by one."""
    rows = [
        ("ERA-v4", "a", 2.0, 2.0),
        ("ERA-v4", "b", 6.0, np.nan),
        ("ERA-v3", "a", 2.0, 2.0),
        ("ERA-v3", "a", 2.0, 2.0),
    ]
    rows += [("ERA-v3", "b", 1.0, np.nan), ("ERA-v3", "b", np.nan, np.nan)]
    spent = pd.DataFrame(rows, columns=["environment", "run", words.COSTS[0], words.COSTS[3]])
    spent[list(words.COSTS[1:3])] = spent[[words.COSTS[0]]].to_numpy().repeat(2, axis=1)
    text = words.dearest(spent, NAMES, "b", "a")
    assert "3.0 times the one's environment steps (the most of all); 3.0 times its oracle calls" in text
    assert "nan" not in text and words.COSTS[3] not in text
    assert "Left out, as not every seed came to it: two, 1 of 2 in ERA-v3." in text


def test_a_row_of_a_table_of_factors():
    runs = runs_of("a", 0.5, 0.6) + runs_of("b", 0.55, 0.7) + runs_of("c", 0.8, 0.9)
    row = words.factor(runs, NAMES)
    assert row["tried"] == "one · two · three" and row["seeds"] == 2
    assert row["mean score"] == "0.550 to 0.850" and row["first run, by seed"] == "0.500 to 0.600"
    assert row["all seeds apart from the first run's"] == "three"
