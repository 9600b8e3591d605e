"""Figures: data and an axis in, an axis out; one style, and for every method one colour, dash and marker for good.

Colours are told apart under the common colour-vision deficiencies (Okabe & Ito, and Tol); dashes and markers say the
same once more. What is drawn comes from records alone: nothing here trains, samples or knows an environment.
"""

import itertools
import logging
import textwrap
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from .records import Record, by_environment, by_label, caption, curves_drawn, gain, matrix, score
from .stats import above, bootstrap_interval, iqm, normalised_score, on_common_grid

plt.switch_backend(plt.get_backend())  # now: inside rc_context a notebook's first figure would be its last to be shown
logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the dates of matplotlib's own fonts


class Method(NamedTuple):
    """How a run's label is shown."""

    name: str
    colour: str
    dashes: str | tuple
    marker: str


METHODS = {
    "iar-a2c": Method("flowrl recipe", "#0072B2", "-", "o"),
    "iar-a2c-paper": Method("IAR-A2C (printed)", "#56B4E9", (0, (5, 1.5)), "s"),
    "iar-a2c-released": Method("IAR-A2C (released)", "#332288", (0, (7, 1, 3, 1)), "h"),
    "mask": Method("MASK", "#E69F00", (0, (6, 1.5, 1.5, 1.5)), "^"),
    "ar-iar": Method("AR+IAR", "#009E73", (0, (2.5, 1.2)), "D"),
    "wol-ddpg": Method("Wol-DDPG", "#D55E00", (0, (1, 1)), "v"),
    "a2c": Method("A2C", "#000000", (0, (4, 1, 1, 1, 1, 1)), "P"),
    "factored": Method("Factored", "#999933", (0, (8, 2)), "X"),
    "factored-iar": Method("Factored+IAR", "#882255", (0, (3, 1, 1, 1)), "<"),
    "ar": Method("AR", "#CC79A7", (0, (1, 2)), "p"),
    "iar-a2c-gumbel": Method("IAR-A2C (Gumbel flow)", "#0000FF", (0, (7, 1, 2, 1)), "*"),
}
# an ablation's runs, in their order: colours that are no method's
VARIANTS = [
    Method("", "#D20F3C", (0, (6, 1.5, 1.5, 1.5)), "^"),
    Method("", "#78C396", (0, (2.5, 1.2)), "D"),
    Method("", "#3C3CC3", (0, (1, 1)), "v"),
    Method("", "#D2B43C", (0, (4, 1, 1, 1, 1, 1)), "P"),
    Method("", "#4B1E3C", (0, (8, 2)), "X"),
    Method("", "#7A7A7A", (0, (3, 1, 1, 1)), "<"),
    Method("", "#E10FA5", (0, (1, 2)), "p"),
    Method("", "#2D3C00", (0, (10, 1.5, 1, 1.5)), ">"),
]
REFERENCES = {"optimal": "optimum", "go_and_stay": "go and stay", "uniform_valid": "random"}
FINAL = "; markers: each seed's final policy, by its exact return where that is known"
LOWEST_SCORE = -0.5  # that a strip of final scores has room for
COSTS = "environment steps", "oracle calls", "seconds, batched oracle", "seconds, unbatched oracle"
GREY, WARNING = "#555555", "#a00000"

STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 120,
    "pdf.fonttype": 42,
    "svg.hashsalt": "flowrl",
}


@contextmanager
def style():
    """The one style, for as long as a figure is made or saved."""
    with plt.rc_context(STYLE):
        yield


def method(label: str) -> Method:
    """How a run's label is shown. Raises ValueError for one that has no colour yet."""
    if label not in METHODS:
        raise ValueError(f"no colour for run {label!r} in flowrl/study/plots.py; there are: {', '.join(METHODS)}")
    return METHODS[label]


def variants(titles: dict[str, str]) -> dict[str, Method]:
    """The looks of an ablation's runs, by label: methods keep theirs, the others get those of `VARIANTS` in turn.

    Those whose dashes are a method's in the same figure come last.
    """
    own = [label for label in titles if label not in METHODS]
    if len(own) > len(VARIANTS):
        raise ValueError(f"{len(own)} runs are too many to tell apart; at most {len(VARIANTS)} beside the methods")
    taken = {METHODS[label].dashes for label in titles if label in METHODS}
    looks = METHODS | dict(zip(own, sorted(VARIANTS, key=lambda look: look.dashes in taken), strict=False))
    return {label: looks[label]._replace(name=title) for label, title in titles.items()}


def return_column(group: list[Record]) -> str:
    """`exact_return` where all runs of a group have it, with more than one value each; else `eval_return_mean`."""
    exact = [run.curve.get("exact_return") for run in group]
    return "exact_return" if all(x is not None and x.count() > 1 for x in exact) else "eval_return_mean"


def returns_drawn(runs: list[Record], names: dict[str, str]) -> str:
    """For a caption: of which runs the curves of returns are exact; nothing where all are means over episodes."""
    exact = {label: [] for label in by_label(runs)}
    for group in by_environment(runs).values():
        for label, its in by_label(group).items():
            exact[label].append(return_column(its) == "exact_return")
    sampled = [names[label] for label, panels in exact.items() if not all(panels)]
    if not any(itertools.chain(*exact.values())):
        return ""
    return " Curves: exact returns" + f", but for {', '.join(sampled)}: means over episodes" * bool(sampled) + "."


def learning_curve(
    ax: Axes, runs: list[Record], column: str | None = None, looks: dict[str, Method] | None = None,
    x: Callable[[Record], pd.Series] = lambda run: run.curve.env_steps, marked: bool = False, log: bool = False,
) -> Axes:  # fmt: skip
    """A line a label: interquartile mean over seeds, its 95 % bootstrap interval, against environment steps or x.

    column: default the return, as `return_column` says. marked: the legend shows the method's marker, too. log: x is
    logarithmic; lines begin at the first x above zero.
    """
    for label, group in by_label(runs).items():
        name, colour, dashes, marker = looks[label] if looks else method(label)
        steps, values = on_common_grid([_curve(run, x(run), column or return_column(group)) for run in group])
        if log:
            steps, values = steps[steps > 0], values[:, steps > 0]
        low, high = bootstrap_interval(values[:, None], np.random.default_rng(0))
        zorder = 4 if label == "iar-a2c" else 3
        legend: dict[str, Any] = dict(marker=marker, markevery=[]) if marked else {}
        ax.plot(steps, iqm(values), color=colour, linestyle=dashes, label=name, zorder=zorder, **legend)
        ax.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    if log:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.margins(x=0)
    return ax


def _curve(run: Record, x: pd.Series, column: str) -> tuple[np.ndarray, np.ndarray]:
    """x and a column of a run; of exact returns, which few evaluations have, the rows that have one."""
    rows = run.curve[column].notna() if column == "exact_return" else slice(None)
    return np.asarray(x[rows]), np.asarray(run.curve[column][rows])


def final_scores(ax: Axes, runs: list[Record]) -> Axes:
    """A marker a seed, right of the curves: the exact return of its final policy, or the episodes' mean without it."""
    last = max(run.facts["env_steps"] for run in runs)
    for i, (label, group) in enumerate(by_label(runs).items()):
        _, colour, _, marker = method(label)
        exact = [run.facts["final_exact_return"] for run in group]
        returns = [run.facts["final_return_mean"] if e is None else e for run, e in zip(group, exact, strict=True)]
        x = np.full(len(returns), last * (1.035 + 0.035 * i))
        ax.plot(x, returns, marker, color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6, zorder=5)
    ax.set_xlim(right=last * (1.035 + 0.035 * len(by_label(runs))))
    return ax


def reference_lines(ax: Axes, reference: dict, labels: tuple[str, ...] = tuple(REFERENCES)) -> Axes:
    """Lines at the exact returns: optimum dashed, go-and-stay and random dotted; those in `labels` bear their names."""
    for key, name in REFERENCES.items():
        dashed = key == "optimal"
        ax.axhline(reference[key], color="black" if dashed else GREY, linestyle="--" if dashed else ":", linewidth=1.2)
        if key in labels:
            side, gap = ("top", -2) if key == "uniform_valid" else ("bottom", 2)
            place: dict[str, Any] = dict(
                xycoords=ax.get_yaxis_transform(), textcoords="offset points", va=side, fontsize=9, color=GREY
            )
            ax.annotate(name, (0, reference[key]), (4, gap), **place)
    return ax


def normalised_axis(ax: Axes, reference: dict, label: bool = True) -> Axes:
    """A second y-axis on the right: 0 at the return of random valid actions, 1 at the optimum."""
    span = reference["optimal"] - reference["uniform_valid"]
    second = ax.secondary_yaxis(
        "right",
        functions=(lambda y: (y - reference["uniform_valid"]) / span, lambda x: reference["uniform_valid"] + x * span),
    )
    second.tick_params(labelsize=9, colors=GREY)
    if label:
        second.set_ylabel("normalised score", color=GREY)
    return ax


def whole_range(runs: list[Record], reference: dict) -> tuple[float, float]:
    """From below random actions and the curves, but no lower than a score of about −1, to above the optimum."""
    span = reference["optimal"] - reference["uniform_valid"]
    lowest = min(run.curve["eval_return_mean"].min() for run in runs)
    below = np.clip(reference["uniform_valid"] - lowest, 0.2 * span, span)
    return reference["uniform_valid"] - below - 0.05 * span, reference["optimal"] + 0.14 * span


def last_stretch(reference: dict) -> tuple[float, float]:
    """From a normalised score of 0.8, or twice the plateau's distance, to above the optimum: where policies differ."""
    gap = reference["optimal"] - reference["go_and_stay"]
    span = reference["optimal"] - reference["uniform_valid"]
    return reference["optimal"] - max(0.2 * span, 2 * gap), reference["optimal"] + 0.35 * gap


def environment(axes: tuple[Axes, Axes], runs: list[Record], leftmost: bool = True, rightmost: bool = True) -> None:
    """One environment's runs, twice: above from random to the optimum, below the last stretch; with final scores."""
    top, bottom = axes
    reference = runs[0].facts["reference"]
    for ax, limits in ((top, whole_range(runs, reference)), (bottom, last_stretch(reference))):
        learning_curve(ax, runs, marked=True).set_ylim(*limits)
        final_scores(ax, runs)
        normalised_axis(ax, reference, label=rightmost)
        if leftmost:
            ax.set_ylabel("return of an episode")
    reference_lines(top, reference, labels=("optimal", "uniform_valid"))
    reference_lines(bottom, reference, labels=("optimal", "go_and_stay"))
    top.axhspan(*last_stretch(reference), color="#f2f2f2", zorder=0, linewidth=0)
    bottom.set_facecolor("#f2f2f2")
    bottom.grid(color="white")
    top.set_title(runs[0].facts["environment"], fontweight="bold")
    top.tick_params(labelbottom=False)
    bottom.set_xlabel("environment steps")


def _legend_and_caption(
    fig: Figure, axes: np.ndarray, runs: list[Record], title: str, ncols: int, drawn: str = "", note: str = "",
    looks: dict[str, Method] | None = None,
) -> None:  # fmt: skip
    """One legend for all axes, the title above it, and below what the records call for; a warning's colour if stale."""
    handles = {handle.get_label(): handle for ax in axes.flat for handle in ax.get_legend_handles_labels()[0]}
    width = fig.get_figwidth()
    fig.legend(handles.values(), handles, title=textwrap.fill(title, int(width * 9)), title_fontsize=13,
               loc="outside upper center", ncols=min(len(handles), ncols), handlelength=3.2)  # fmt: skip
    text = textwrap.fill(caption(runs, drawn, _names(runs, looks)) + note, int(width * 15))
    fig.supxlabel(text, fontsize=8, color=WARNING if any(run.stale for run in runs) else GREY)


def _names(runs: list[Record], looks: dict[str, Method] | None = None) -> dict[str, str]:
    """What the legend calls each run, by label."""
    return {label: (looks[label] if looks else method(label)).name for label in by_label(runs)}


def environments(groups: dict[str, list[Record]], title: str) -> Figure:
    """A column an environment, a legend, and the caption that its records call for."""
    with style():
        width = max(3.1 * len(groups) + 0.6, 5.2)
        fig, axes = plt.subplots(2, len(groups), figsize=(width, 6.4), squeeze=False, layout="constrained")
        for i, (pair, runs) in enumerate(zip(axes.T, groups.values(), strict=True)):
            environment(pair, runs, leftmost=i == 0, rightmost=i == len(groups) - 1)
        runs = [run for group in groups.values() for run in group]
        note = returns_drawn(runs, _names(runs))
        _legend_and_caption(fig, axes, runs, title, 6 if width > 8 else 2, curves_drawn(runs) + FINAL, note)
    return fig


FRONT = ("iar-a2c", "iar-a2c-paper", "mask", "ar-iar", "factored-iar")  # what the front page shows


def front(groups: dict[str, list[Record]]) -> Figure:
    """Four environments, two by two, at the width of a page: scores against steps, each curve named at its end."""
    with style(), plt.rc_context({"font.size": 9, "lines.linewidth": 1.6}):
        fig, axes = plt.subplots(2, 2, figsize=(6.9, 5.6), sharex=True, sharey=True, layout="constrained")
        for ax, (name, runs) in zip(axes.flat, groups.items(), strict=True):
            shown = [_scored(run) for run in runs if run.facts["label"] in FRONT]
            learning_curve(ax, shown, "score").set_title(name, fontsize=10, fontweight="bold")
            ax.axhline(1, color="black", linestyle="--", linewidth=1)
            stay = normalised_score(runs[0].facts["reference"]["go_and_stay"], runs[0].facts["reference"])
            ax.axhline(stay, color="black", linestyle=":", linewidth=1)
            _named_at_the_end(ax, {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")})
        axes[0, 0].annotate("optimum", (0, 1), (3, 2), textcoords="offset points", fontsize=8, color=GREY)
        known = next(iter(groups.values()))[0].facts["reference"]
        stay = normalised_score(known["go_and_stay"], known)
        axes[0, 0].annotate("go and stay", (0, stay), (3, -10), textcoords="offset points", fontsize=8, color=GREY)
        axes[0, 0].set_ylim(-0.15, 1.12)
        fig.supylabel("score: 0 random valid actions, 1 optimum", fontsize=9)
        for ax in axes[1]:
            ax.set_xlabel("environment steps")
    return fig


def _scored(run: Record) -> Record:
    """A run whose curve has a column of normalised scores, of the returns over evaluation episodes."""
    return run._replace(
        curve=run.curve.assign(score=normalised_score(run.curve["eval_return_mean"], run.facts["reference"]))
    )


def _named_at_the_end(ax: Axes, lines: dict, gap: float = 0.085) -> None:
    """A name right of every line's end, in its colour; from the top down, none nearer to the one above than `gap`."""
    place = 1.05 + gap
    for end, name in sorted(((float(line.get_ydata()[-1]), name) for name, line in lines.items()), reverse=True):
        place = min(end, place - gap)
        ax.annotate(name, (1, place), (4, -3), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
                    fontsize=8, color=lines[name].get_color(), annotation_clip=False)  # fmt: skip


def curves(
    groups: dict[str, list[Record]], title: str, lines: dict[str, dict[str, float]] | None = None,
    x: Callable[[Record], pd.Series] = lambda run: run.curve.env_steps, xlabel: str = "environment steps",
    log: bool = False, column: str | None = None, ylabel: str = "return of an episode",
) -> Figure:  # fmt: skip
    """A panel a group: a column against environment steps, or x; `lines`: values by name to draw in a group's panel."""
    with style():
        width = max(4.2 * len(groups), 5.6)
        fig, axes = plt.subplots(1, len(groups), figsize=(width, 4.4), squeeze=False, layout="constrained")
        for ax, (name, runs) in zip(axes[0], groups.items(), strict=True):
            learning_curve(ax, runs, column, x=x, log=log).set_title(name, fontweight="bold")
            ax.set_xlabel(xlabel)
            levels = (lines or {}).get(name, {})
            for i, (what, value) in enumerate(levels.items()):
                ax.axhline(value, color="black", linestyle=("--", ":", "-.")[i % 3], linewidth=1.2)
                highest = value == max(levels.values())
                place = dict(xycoords=ax.get_yaxis_transform(), textcoords="offset points", fontsize=9, color=GREY)
                place |= dict(va="bottom" if highest else "top")  # and side by side: values may lie close
                ax.annotate(what, (0.02 + 0.4 * i, value), (0, 3 if highest else -3), **place)
        axes[0, 0].set_ylabel(ylabel)
        runs = [run for group in groups.values() for run in group]
        note = "" if column else returns_drawn(runs, _names(runs))
        _legend_and_caption(fig, axes, runs, title, int(width / 2.2), note=note)
    return fig


def costs(groups: dict[str, list[Record]], seconds: pd.DataFrame, title: str) -> Figure:
    """A row an environment: return against environment steps, oracle calls, and seconds of training.

    seconds: environment, method, oracle ("batched", "one at a time"), seconds_per_step, each oracle's timed in one run.
    """
    pace = seconds.set_index(["environment", "method", "oracle"])["seconds_per_step"]

    def spent(oracle: str) -> Callable[[Record], pd.Series]:
        return lambda run: run.curve["env_steps"] * pace[run.facts["environment"], run.facts["label"], oracle]

    with style():
        size = (14, 0.9 + 3.3 * len(groups))
        fig, axes = plt.subplots(len(groups), 4, figsize=size, squeeze=False, sharey="row", layout="constrained")
        for row, (name, runs) in zip(axes, groups.items(), strict=True):
            known = runs[0].facts["reference"]
            calling = [run for run in runs if run.curve["oracle_calls"].iloc[-1] > 0]
            timed = [run for run in calling if (name, run.facts["label"], "one at a time") in pace.index]
            learning_curve(row[0], runs)
            learning_curve(row[1], calling, x=lambda run: run.curve.oracle_calls, log=True)
            learning_curve(row[2], runs, x=spent("batched"), log=True)
            learning_curve(row[3], timed, x=spent("one at a time"), log=True)
            row[0].set(ylabel=f"{name}: return", ylim=whole_range(runs, known))
            for i, (ax, xlabel) in enumerate(zip(row, COSTS, strict=True)):
                ax.set_xlabel(xlabel)
                reference_lines(ax, known, labels=() if i else ("optimal", "go_and_stay"))
        runs = [run for group in groups.values() for run in group]
        note = " Seconds a step were timed apart, with either oracle in one run." + returns_drawn(runs, _names(runs))
        _legend_and_caption(fig, axes, runs, title, 6, note=note)
    return fig


def against(
    runs: list[Record], titles: dict[str, str], x: Sequence[float], xlabel: str, panels: dict[str, Sequence[float]],
    title: str, note: str = "",
) -> Figure:  # fmt: skip
    """A panel an entry of `panels` (its label: a value a run), a marker a run, against x on a logarithmic axis."""
    looks, labels = variants(titles), np.array([run.facts["label"] for run in runs])
    with style():
        fig, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 4.2), squeeze=False, layout="constrained")
        for ax, (ylabel, values) in zip(axes[0], panels.items(), strict=True):
            for label, look in looks.items():
                its = labels == label
                ax.plot(np.asarray(x)[its], np.asarray(values)[its], look.marker, color=look.colour, alpha=0.75,
                        label=look.name)  # fmt: skip
            ax.set(xscale="log", xlabel=xlabel, title=textwrap.fill(ylabel, 26))
        _legend_and_caption(fig, axes, runs, title, len(titles), "Markers: one a seed", note, looks)
    return fig


def final_strip(ax: Axes, runs: list[Record], looks: dict[str, Method]) -> Axes:
    """A row a run: each seed's final score, exact where that is known, 0 for random and 1 for the optimum; the mean.

    Scores below `LOWEST_SCORE` stand at the left edge, by their values.
    """
    groups = by_label(runs)
    for row, (label, group) in enumerate(groups.items()):
        look, facts = looks[label], [run.facts for run in group]
        exact = [f["final_return_mean"] if f["final_exact_return"] is None else f["final_exact_return"] for f in facts]
        scores = np.array([normalised_score(value, f["reference"]) for value, f in zip(exact, facts, strict=True)])
        shown, off = scores[scores >= LOWEST_SCORE], scores[scores < LOWEST_SCORE]
        ax.plot(shown, np.full(len(shown), row), look.marker, color=look.colour, alpha=0.75, markersize=6)
        if scores.mean() >= LOWEST_SCORE:
            ax.plot(scores.mean(), row, "|", color="black", markersize=14)
        if len(off):
            text = "← " + ", ".join(f"{score:.1f}".replace("-", "−") for score in np.sort(off))
            ax.annotate(text, (LOWEST_SCORE, row), va="center", fontsize=9, color=look.colour)
    stay = normalised_score(runs[0].facts["reference"]["go_and_stay"], runs[0].facts["reference"])
    assert stay is not None  # as the scores are
    for x, name, side, dashes in ((stay, "go and stay ", "right", ":"), (1, " optimum", "left", "--")):
        ax.axvline(x, color=GREY if dashes == ":" else "black", linestyle=dashes, linewidth=1.2)
        ax.text(x, 1, name, transform=ax.get_xaxis_transform(), ha=side, va="bottom", fontsize=9, color=GREY)
    ax.set_yticks(range(len(groups)), [looks[label].name for label in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlabel("final normalised score")
    return ax


def ablation(
    runs: list[Record], titles: dict[str, str], title: str, column: str, label: str, log: bool = False
) -> Figure:
    """Runs of one environment side by side: return, another column of the records, and each seed's final score."""
    looks, reference = variants(titles), runs[0].facts["reference"]
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.6), layout="constrained", width_ratios=(1, 1, 0.8))
        learning_curve(axes[0], runs, looks=looks).set_ylabel("return of an episode")
        axes[0].set_ylim(*whole_range(runs, reference))
        reference_lines(axes[0], reference)
        trained = [run._replace(curve=run.curve.iloc[1:]) for run in runs]  # nothing was drawn before the first row
        learning_curve(axes[1], trained, column, looks).set_ylabel(label)
        axes[1].set_yscale("log" if log else "linear")
        for ax in axes[:2]:
            ax.set_xlabel("environment steps")
        final_strip(axes[2], runs, looks)
        note = returns_drawn(runs, _names(runs, looks))
        _legend_and_caption(fig, axes[:1], runs, title, 4, curves_drawn(runs) + FINAL, note, looks)
    return fig


def bridge(
    runs: list[Record], titles: dict[str, str], authors: pd.DataFrame, published: pd.DataFrame, title: str
) -> Figure:
    """Runs on the authors' city beside their own code's curve and the published one: return, ELBO, valid draws.

    authors: env_steps, return_mean, elbo, valid_rate; published: env_steps, return, tolerance.
    """
    looks = variants(titles)
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.6), layout="constrained")
        trained = [run._replace(curve=run.curve.iloc[1:]) for run in runs]  # nothing was drawn before the first row
        theirs = {"color": "black", "linewidth": 1, "label": "their code, run here (1 seed, 10 episodes)"}
        columns = {"return_mean": None, "elbo": "elbo", "valid_rate": "valid_rate"}
        for ax, (column, ours) in zip(axes, columns.items(), strict=True):
            learning_curve(ax, trained, ours, looks)
            ax.plot(authors["env_steps"], authors[column], **theirs)
            ax.set(xlabel="environment steps", xlim=(0, max(authors["env_steps"].max(), published["env_steps"].max())))
        place = published["env_steps"], published["return"], published["tolerance"]
        axes[0].errorbar(*place, fmt="D", color=GREY, capsize=3, clip_on=False, zorder=6, label="published (read off)")
        reference_lines(axes[0], runs[0].facts["reference"])
        axes[0].set(ylabel="return of an episode", ylim=whole_range(runs, runs[0].facts["reference"]))
        axes[1].set(ylabel="ELBO of log π(a|s), nats", ylim=(-20, 1))
        axes[2].set(ylabel="share of draws that are valid", ylim=(0, 1.03))
        _legend_and_caption(fig, axes[:1], runs, title, 3, note=returns_drawn(runs, _names(runs, looks)), looks=looks)
    return fig


def profile(ax: Axes, runs: list[Record], value: Callable[[Record], float | None], thresholds: np.ndarray) -> Axes:
    """Performance profiles: a line a label, the share of its runs whose value is above a threshold, against that."""
    for label, group in by_label(runs).items():
        name, colour, dashes, _ = method(label)
        over = above(matrix(group, value), thresholds)
        ax.plot(thresholds, over.mean((0, 1)), color=colour, linestyle=dashes, label=name)
        low, high = bootstrap_interval(over, np.random.default_rng(0), np.mean)
        ax.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.set_ylim(-0.02, 1.02)
    ax.margins(x=0)
    return ax


def profiles(runs: list[Record], title: str) -> Figure:
    """Performance profiles of score and plateau gain over all environments of the runs."""
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
        profile(axes[0], runs, lambda run: score(run.facts), np.linspace(0, 1, 201)).set_xlabel("normalised score τ")
        profile(axes[1], runs, lambda run: gain(run.facts), np.linspace(-1, 1, 201)).set_xlabel("plateau gain τ")
        axes[1].axvline(0, color=GREY, linestyle=":", linewidth=1.2)
        axes[0].set_ylabel("share of runs above τ")
        drawn = "Line: share of final policies, environments and seeds together; band: 95 % stratified bootstrap"
        sampled = {method(run.facts["label"]).name for run in runs if run.facts["final_exact_return"] is None}
        note = f" Exact scores{'; by episodes: ' * bool(sampled)}{', '.join(sorted(sampled))}."
        _legend_and_caption(fig, axes, runs, title, 6, drawn, note)
    return fig


def save(fig: Figure, stem: Path) -> None:
    """Write <stem>.pdf and <stem>.png; equal figures are equal bytes."""
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    with style():
        fig.savefig(f"{stem}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
        fig.savefig(f"{stem}.png", metadata={"Software": None})
