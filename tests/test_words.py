"""Sentences from records: their numbers, which runs they call apart, and how sure they say that is."""

import itertools

import numpy as np
import pytest
from conftest import record

from flowrl.study import words

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


def test_environments_are_counted_and_single_seeds_are_impressions():
    runs = [*runs_of("a", 0.9, 0.8), *runs_of("b", 0.2, 0.1)]
    runs += [*runs_of("a", 0.3, 0.4, environment="ERA-v3"), *runs_of("b", 0.35, 0.45, environment="ERA-v3")]
    assert "above those of two (1 of 2 environments)" in words.seen(runs, NAMES)
    assert "if the 2 pairs compared here were all alike, 0.7 of them" in words.seen(runs, NAMES)
    assert words.seen(runs_of("a", 0.9, 0.8) + runs_of("b", 0.2, 0.1), NAMES).endswith("in one of 3 cases.")
    assert "an impression, no more" in words.seen(runs_of("a", 0.9) + runs_of("b", 0.2), NAMES)
    assert words.seen(runs_of("a", 0.9, 0.8), NAMES).endswith("one 0.85 (0.80 to 0.90).")


def test_every_pair_counts_with_its_own_seeds():
    """Three seeds against two and against four: one of C(5, 3) / 2 = 5 and one of C(7, 3) / 2 = 17.5 cases."""
    runs = runs_of("a", 0.7, 0.8, 0.9) + runs_of("b", 0.1, 0.2) + runs_of("c", 0.3, 0.4, 0.5, 0.6)
    text = words.seen(runs, NAMES)
    assert "so, 2 to 4 seeds each, in one of 5 to 18 cases; if the 2 pairs compared" in text
    assert text.endswith("were all alike, 0.3 of them would lie apart.")


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 3)])
def test_chance_of_lying_apart_is_the_share_of_orders(n, m):
    orders = list(itertools.permutations(range(n + m)))
    apart = np.mean([max(x[:n]) < min(x[n:]) or min(x[:n]) > max(x[n:]) for x in orders])
    assert abs(words.chance_apart(n, m) - apart) < 1e-12


def test_a_row_of_a_table_of_factors():
    runs = runs_of("a", 0.5, 0.6) + runs_of("b", 0.55, 0.7) + runs_of("c", 0.8, 0.9)
    row = words.factor(runs, NAMES)
    assert row["tried"] == "one · two · three" and row["seeds"] == 2
    assert row["mean score"] == "0.550 to 0.850" and row["first run, by seed"] == "0.500 to 0.600"
    assert row["all seeds apart from the first run's"] == "three"
