"""Sentences for notebooks with numbers from records: what is seen at the end of training, and how sure that is."""

from collections import Counter
from collections.abc import Iterable
from math import comb

import numpy as np
import pandas as pd

from .plots import PLACES, place
from .quantities import QUANTITIES, significant
from .records import Record, by_environment, by_label
from .stats import normalised_score


def seen(runs: list[Record], names: dict[str, str], of: str = "score", ours: str | None = None) -> str:
    """Markdown: a quantity of `QUANTITIES` for every run, then against which runs all seeds of `ours` lie apart, or,
    where it is alone, which of its seeds pass go-and-stay; last, how sure that is.

    names: what the text calls each run, by label; ours: a label, default the first. "Above" means above in number.
    """
    quantity, labels = QUANTITIES[of], list(by_label(runs))
    ours = ours or labels[0]
    cells = {
        (env, label): np.array([quantity.of(run.facts, run.curve) for run in its], dtype=float)
        for env, group in by_environment(runs).items()
        for label, its in by_label(group).items()
    }
    groups = {label: [x for (_, which), x in cells.items() if which == label] for label in labels}
    spans = "; ".join(f"{names[label]} {_span(group, quantity)}" for label, group in groups.items())
    text = f"**Seen.** {quantity.words[0].upper()}{quantity.words[1:]}, mean (least to greatest seed): {spans}."
    if len(labels) == 1:
        return f"{text} {past_go_and_stay(runs)}".strip()
    pairs = {
        label: [(cells[env, ours], y) for (env, which), y in cells.items() if which == label and (env, ours) in cells]
        for label in labels
        if label != ours
    }
    several = {label: [pair for pair in its if _seeds(pair) > 1] for label, its in pairs.items()}
    single = {label: [pair for pair in its if _seeds(pair) == 1] for label, its in pairs.items()}
    found = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in _compared(several, ours, names)]
    by_one = ". Likewise ".join(_compared(single, ours, names))
    found += [f"Where either has one seed, {by_one}."] * bool(by_one)
    return " ".join([text, *found, _how_sure(several, single)])


def past_go_and_stay(runs: list[Record]) -> str:
    """How many seeds end above go-and-stay, by environment, and how sure that is; "" where that is not known."""
    quantity = QUANTITIES["gain"]
    gains = {
        place(its): np.array([quantity.of(run.facts, run.curve) for run in its], dtype=float)
        for its in by_environment(runs).values()
    }
    if any(np.isnan(its).any() for its in gains.values()):
        return ""
    counts = "; ".join(
        f"{where} {(its > 0).sum()} of {len(its)} (least plateau gain {quantity.show(float(its.min()))})"
        for where, its in gains.items()
    )
    exact = all(run.facts["final_exact_return"] is not None for run in runs)
    sure = "quite, their returns are exact" if exact else "as far as their episodes tell"
    seeds = _from_to(map(len, gains.values()))
    return (
        f"Seeds that end above go-and-stay: {counts}. **How sure.** Of these policies {sure}; of further seeds "
        f"{'one says' if seeds == '1' else f'{seeds} say'} little."
    )


def _span(groups: list[np.ndarray], quantity) -> str:
    """The mean over environments of the mean over seeds, and the least and the greatest of all."""
    everything = np.concatenate(groups)
    mean = quantity.show(float(np.mean([group.mean() for group in groups])))
    if len(everything) == 1:
        return f"{mean}"
    return f"{mean} ({quantity.show(float(everything.min()))} to {quantity.show(float(everything.max()))})"


Pairs = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # by label: our seeds and its, an environment each


def _seeds(pair: tuple[np.ndarray, np.ndarray]) -> int:
    """How many the one with fewer has."""
    return min(map(len, pair))


def _compared(pairs: Pairs, ours: str, names: dict[str, str]) -> list[str]:
    """A sentence, its head and end to be made, for every way in which all seeds of ours and of others lie apart."""
    ways: dict[tuple[str, int, int], list[str]] = {}
    alike = []
    for label, its in pairs.items():
        counts = {"above": sum(x.min() > y.max() for x, y in its), "below": sum(x.max() < y.min() for x, y in its)}
        for side, count in counts.items():
            if count:
                ways.setdefault((side, count, len(its)), []).append(names[label])
        if its and not any(counts.values()):
            alike.append(names[label])
    found = [
        f"{_cities(count, n)} seeds of {names[ours]} lie {side} those of {'; '.join(others)}"
        for (side, count, n), others in ways.items()
    ]
    if alike:
        found.append(f"no difference from {'; '.join(alike)} is to be seen: the seeds overlap")
    return found


def _cities(count: int, n: int) -> str:
    """The head of a sentence about all seeds in so many of n environments."""
    if n == 1:
        return "all"
    return (
        f"in {'both' if n == 2 else f'all {n}'} environments all"
        if count == n
        else f"in {count} of {n} environments all"
    )


def chance_apart(n: int, m: int) -> float:
    """How often all of n and all of m draws of one law lie apart by chance, either above the other: 2 / C(n + m, n)."""
    return 2 / comb(n + m, n)


def _how_sure(several: Pairs, single: Pairs) -> str:
    """What lying apart says, by the number of seeds and of pairs compared; of a single seed next to nothing."""
    pairs, said = [pair for its in several.values() for pair in its], []
    if pairs:
        chances = [chance_apart(len(x), len(y)) for x, y in pairs]
        seeds = _from_to(len(x) for pair in pairs for x in pair)
        cases, apart = _from_to(round(1 / chance) for chance in chances), sum(chances)
        text = f"Any two that were alike would lie apart so, {seeds} seeds each, in one of {cases} cases"
        found = f"{apart:.{1 if apart > 0.05 else 2}f} of them would lie apart"
        alike = f"if the {len(pairs)} pairs compared here were all alike, {found}"
        said.append(f"{text}; {alike}." if len(pairs) > 1 else f"{text}.")
    if any(single.values()):
        said.append("Where a run has one seed this is an impression, no more.")
    return f"**How sure.** {' '.join(said)}"


def _from_to(numbers: Iterable[int]) -> str:
    """The least and the greatest, named once where they are the same."""
    found = set(numbers)
    return " to ".join(str(x) for x in sorted({min(found), max(found)}))


COSTS = (
    "environment steps",
    "oracle calls",
    "seconds with an oracle in batches",
    "seconds with one that judges one by one",
)


def spent_until(runs: list[Record], seconds: pd.DataFrame, least: float = 0.85) -> pd.DataFrame:
    """What each run spent until three evaluations in a row had this mean score: environment, run, seed, all of `COSTS`.

    NaN where they never had, or where a method was not timed or calls no oracle. seconds: environment, method, oracle
    ("batched", "one at a time"), seconds_per_step.
    """
    pace, rows = seconds.set_index(["environment", "method", "oracle"])["seconds_per_step"], []
    for run in runs:
        of = run.facts["environment"], run.facts["label"]
        scores = normalised_score(run.curve["eval_return_mean"].rolling(3).mean(), run.facts["reference"])
        first = run.curve.where(pd.Series(scores, run.curve.index, dtype=float) >= least)[
            ["env_steps", "oracle_calls"]
        ].min()
        steps, calls = first["env_steps"], first["oracle_calls"] or np.nan
        paces = [pace.get((*of, oracle), np.nan) for oracle in ("batched", "one at a time")]
        rows.append((*of, run.facts["config"]["seed"], steps, calls, *(steps * each for each in paces)))
    return pd.DataFrame([dict(zip(("environment", "run", "seed", *COSTS), row, strict=True)) for row in rows])


def dearest(spent: pd.DataFrame, names: dict[str, str], which: str, ours: str, least: float = 0.85) -> str:
    """Markdown: what `which` spent, as a multiple of ours and beside all others, by each of `COSTS`; how sure that is.

    spent: as `spent_until` gives it. In an environment where not every seed of a run got there, the run is left out,
    and named.
    """
    parts, two = [], spent[spent["run"].isin([which, ours])]
    for cost in COSTS:
        mean = spent.pivot_table(cost, "environment", "run", lambda x: x.mean(skipna=False), dropna=False, sort=False)
        mean = mean.dropna(subset=[which, ours])
        ratio, most = mean[which] / mean[ours], int((mean[which] >= mean.max(axis="columns")).sum())
        times = " to ".join(dict.fromkeys(significant(x) for x in (ratio.min(), ratio.max())))
        whose = f"the {names[ours]}'s" if cost == COSTS[0] else "its"
        parts += [f"{times} times {whose} {cost} ({_of_all(most, len(mean))})"] * bool(len(mean))
    if not parts:
        return f"**Seen.** Nothing to compare at a score of {least}.{_left_out(spent, names)}"
    seeds = _from_to(Counter(zip(two["environment"], two["run"], strict=True)).values())
    return (
        f"**Seen.** To a score of {least} {names[which]} takes {'; '.join(parts)}.{_left_out(spent, names)} "
        f"**How sure.** Means over {seeds} seeds of either; calls are counted, seconds a step were timed apart, on one "
        "machine."
    )


def _left_out(spent: pd.DataFrame, names: dict[str, str]) -> str:
    """The runs of which not every seed got there, with how many did, by environment; "" where all did."""
    found: dict[str, list[str]] = {}
    there = spent.groupby(["environment", "run"], sort=False)[COSTS[0]].agg(["count", "size"]).query("count < size")
    for env, label, some, all_ in there.reset_index().itertuples(index=False):
        found.setdefault(label, []).append(f"{some} of {all_} in {PLACES.get(env, env)}")
    whose = "; ".join(", ".join([names[label], *its]) for label, its in found.items())
    return f" Left out, as not every seed came to it: {whose}." * bool(found)


def _of_all(most: int, n: int) -> str:
    if n == 1:
        return "the most of all" if most else "others take more"
    return f"the most of all in {most} of {n} cities"


def factor(runs: list[Record], names: dict[str, str]) -> dict:
    """A row of a table of factors: runs, seeds, the range of their mean scores, and which lie apart from the first."""
    scores = {
        label: np.array([QUANTITIES["score"].of(run.facts, run.curve) for run in its], dtype=float)
        for label, its in by_label(runs).items()
    }
    (_, first), *others = scores.items()
    means = [x.mean() for x in scores.values()]
    apart = [names[label] for label, x in others if x.min() > first.max() or x.max() < first.min()]
    return {
        "tried": " · ".join(names[label] for label in scores),
        "seeds": max(map(len, scores.values())),
        "mean score": f"{min(means):.3f} to {max(means):.3f}",
        "first run, by seed": f"{first.min():.3f} to {first.max():.3f}",
        "all seeds apart from the first run's": "; ".join(apart) or "none",
    }
