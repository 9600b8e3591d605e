"""Sentences for notebooks with numbers from records: what is seen at the end of training, and how sure that is."""

from collections.abc import Iterable
from math import comb

import numpy as np

from .quantities import QUANTITIES
from .records import Record, by_environment, by_label


def seen(runs: list[Record], names: dict[str, str], of: str = "score", ours: str | None = None) -> str:
    """Markdown: a quantity of `QUANTITIES` for every run, then against which runs all seeds of `ours` lie apart.

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
    others = [label for label in labels if label != ours]
    return text + (f" {_compared(cells, ours, others, names)} {_how_sure(cells, ours)}" if others else "")


def _span(groups: list[np.ndarray], quantity) -> str:
    """The mean over environments of the mean over seeds, and the least and the greatest of all."""
    everything = np.concatenate(groups)
    mean = quantity.show(float(np.mean([group.mean() for group in groups])))
    if len(everything) == 1:
        return f"{mean}"
    return f"{mean} ({quantity.show(float(everything.min()))} to {quantity.show(float(everything.max()))})"


def _compared(cells: dict, ours: str, others: list[str], names: dict[str, str]) -> str:
    """In which environments all seeds of ours lie above, or below, all seeds of each other run."""
    apart: dict[str, list[str]] = {"above": [], "below": []}
    alike = []
    for label in others:
        pairs = [(x, cells[env, label]) for (env, which), x in cells.items() if which == ours and (env, label) in cells]
        counts = {"above": sum(x.min() > y.max() for x, y in pairs), "below": sum(x.max() < y.min() for x, y in pairs)}
        for side, count in counts.items():
            if count:
                apart[side].append(names[label] + f" ({count} of {len(pairs)} environments)" * (len(pairs) > 1))
        if not any(counts.values()):
            alike.append(names[label])
    parts = [f"{side} those of {'; '.join(found)}" for side, found in apart.items() if found]
    first = f"All seeds of {names[ours]} lie {' and '.join(parts)}." if parts else ""
    overlap = f"No difference from {'; '.join(alike)} is to be seen: the seeds overlap." if alike else ""
    return " ".join(filter(None, (first, overlap)))


def chance_apart(n: int, m: int) -> float:
    """How often all of n and all of m draws of one law lie apart by chance, either above the other: 2 / C(n + m, n)."""
    return 2 / comb(n + m, n)


def _how_sure(cells: dict, ours: str) -> str:
    """What lying apart says, by the number of seeds and of pairs compared."""
    if min(map(len, cells.values())) == 1:
        return "**How sure.** Where a run has one seed this is an impression, no more."
    pairs = [(cells[env, ours], y) for (env, label), y in cells.items() if label != ours and (env, ours) in cells]
    chances = [chance_apart(len(x), len(y)) for x, y in pairs]
    seeds = _from_to(len(x) for pair in pairs for x in pair)
    cases, apart = _from_to(round(1 / chance) for chance in chances), sum(chances)
    text = f"**How sure.** Any two that were alike would lie apart so, {seeds} seeds each, in one of {cases} cases"
    if len(pairs) == 1:
        return f"{text}."
    return f"{text}; if the {len(pairs)} pairs compared here were all alike, {apart:.1f} of them would lie apart."


def _from_to(numbers: Iterable[int]) -> str:
    """The least and the greatest, named once where they are the same."""
    found = set(numbers)
    return " to ".join(str(x) for x in sorted({min(found), max(found)}))


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
