"""Whole figures, as wide as a page: records in, a figure out, with title, names and a caption that says what to see.

Title, names of runs, what to see first and what colour stands for are the experiment's, in experiments.yaml. Figures
are made of the parts in `plots`.
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator
from matplotlib.transforms import Affine2D, Affine2DBase, ScaledTranslation, blended_transform_factory

from . import records
from .plan import experiments, titles
from .plots import (
    FINAL,
    GREY,
    HALO,
    METHODS,
    PAGE,
    REFERENCES,
    WARNING,
    Method,
    coloured_by,
    final_scores,
    final_strip,
    learning_curve,
    line_ends,
    method,
    name_ends,
    page,
    place,
    profile,
    reference_lines,
    returns_drawn,
    save,
    scored,
    stretch,
    variants,
)  # fmt: skip
from .records import EXPERIMENTS, Record, by_environment, by_label, caption, curves_drawn, gain, score

COSTS = "environment steps", "oracle calls", "seconds,\noracle in batches", "seconds,\noracle one by one"
SCORE = "score: 0 random valid actions, 1 optimum"


def named(experiment: str) -> dict[str, str]:
    """What figures call the runs of an experiment, by label: their titles, else the method's name."""
    known = titles(EXPERIMENTS, experiment)
    return {label: METHODS[label].name if title == label in METHODS else title for label, title in known.items()}


def looks(experiment: str, runs: list[Record]) -> dict[str, Method]:
    """How the runs of an experiment are shown, by label: as its `colour` in experiments.yaml says."""
    setting, called = experiments(EXPERIMENTS)[experiment].get("colour"), named(experiment)
    groups = by_label(runs)
    if setting is None:
        return variants({label: called.get(label) or method(label).name for label in groups})
    return coloured_by(setting, {label: group[0].facts["config"][setting] for label, group in groups.items()}, called)


def names(experiment: str, runs: list[Record]) -> dict[str, str]:
    """What a figure calls its runs, by label."""
    return {label: look.name for label, look in looks(experiment, runs).items()}


def write(fig: Figure, stem: Path, runs: list[Record]) -> None:
    """<stem>.pdf, <stem>.png, and <stem>.csv, the table of final scores; all name the records they come from."""
    save(fig, stem, runs)
    records.final_scores(runs).to_csv(f"{stem}.csv", index=False, float_format="%.6g")
    plt.close(fig)  # a notebook shows it where it is asked to, once


def _columns(n: int) -> int:
    """How many axes stand beside each other, of n."""
    return {1: 1, 2: 2, 3: 3, 4: 2}.get(n, 3)


def _panels(n: int, height: float, **shared) -> tuple[Figure, list[Axes], Axes | None]:
    """n axes on a page, two by two where there are four, and the place left, if any, for a legend."""
    n_columns = _columns(n)
    n_rows = -(-n // n_columns)
    size = (PAGE if n > 1 else 0.7 * PAGE, 0.75 + height * n_rows + 0.5 * (n == 1))
    fig, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained", **shared)
    for ax in axes.flat[n:]:
        ax.axis("off")
    return fig, list(axes.flat[:n]), axes.flat[n] if n < axes.size else None


def _legend(fig: Figure, axes: Sequence[Axes], spare: Axes | None = None, ncols: int = 4) -> None:
    """One legend for all axes: in the place that is left, else above them, below the title."""
    handles = {str(handle.get_label()): handle for ax in axes for handle in ax.get_legend_handles_labels()[0]}
    if spare is None:
        title = fig.get_suptitle()
        fig.suptitle("")
        fig.legend(list(handles.values()), list(handles), title=title, title_fontsize=10, loc="outside upper center",
                   handlelength=3.2, ncols=min(ncols, len(handles)))  # fmt: skip
    else:
        spare.legend(list(handles.values()), list(handles), loc="center", handlelength=3.2)


def _words(
    fig: Figure, experiment: str, runs: list[Record], drawn: str = "", note: str = "", see: str | None = None
) -> None:
    """The experiment's title above the figure, its caption below, which begins with `see`, by default its own."""
    described = experiments(EXPERIMENTS)[experiment]
    fig.suptitle(textwrap.fill(described["title"], int(fig.get_figwidth() * 12)), fontsize=10)
    _caption(fig, described.get("see", "") if see is None else see, runs, names(experiment, runs), drawn, note)


def _caption(fig: Figure, see: str, runs: list[Record], called: dict[str, str], drawn: str, note: str) -> None:
    """What to see first, then what the records call for, in a warning's colour if some are stale."""
    text = textwrap.fill(f"{see} {caption(runs, drawn, called)}{note}".strip(), int(fig.get_figwidth() * 17))
    fig.supxlabel(text, fontsize=7.5, color=WARNING if any(run.stale for run in runs) else GREY)


def _exact(experiment: str, runs: list[Record]) -> str:
    """For a caption: whose curves of returns are exact."""
    return returns_drawn(runs, names(experiment, runs))


def _steps(axes: Sequence[Axes], xlabel: str = "environment steps") -> None:
    """Name x below the last row of axes; where that is not full, ticks have numbers below every axis."""
    n_columns = _columns(len(axes))
    for i, ax in enumerate(axes):
        last = i >= (len(axes) - 1) // n_columns * n_columns
        ax.set_xlabel(xlabel if last else "")
        ax.tick_params(labelbottom=last or len(axes) % n_columns > 0 or ax.xaxis.get_tick_params()["labelbottom"])


def environment(ax: Axes, runs: list[Record], shown: dict[str, Method]) -> dict[str, float]:
    """One environment's scores, stretched towards the optimum, with each seed's final one; their means by name."""
    runs_scored, known = [scored(run) for run in runs], runs[0].facts["reference"]
    learning_curve(ax, runs_scored, looks=shown)
    ends = final_scores(ax, runs_scored, shown)
    lowest = min(np.min(line.get_ydata()) for line in ax.lines)
    stretch(ax, "y")
    ax.set_ylim(min(-0.1, max(lowest, -1)) - 0.1, 1.02)
    worth = {key: f"{name} ({known[key]:.0f})".replace("-", "−") for key, name in REFERENCES.items()}
    reference_lines(ax, runs_scored[0].facts["reference"], worth)
    ax.set_title(place(runs), fontweight="bold")
    return ends


def environments(experiment: str, runs: list[Record]) -> Figure:
    """A panel an environment: its optimum is known, so scores; every method named where its final policies ended."""
    with page():
        groups, shown = by_environment(runs), looks(experiment, runs)
        fig, axes, _ = _panels(len(groups), 2.6, sharex=True)
        ends = [environment(ax, group, shown) for ax, group in zip(axes, groups.values(), strict=True)]
        _steps(axes)
        fig.supylabel(SCORE, fontsize=8.5)
        note = " In brackets: returns. Names stand at the mean of the markers." + _exact(experiment, runs)
        _words(fig, experiment, runs, curves_drawn(runs) + FINAL, note)
        fig.draw_without_rendering()  # places the axes
        for ax, its in zip(axes, ends, strict=True):
            name_ends(ax, its)
    return fig


FRONT = ("iar-a2c", "iar-a2c-paper", "iar-a2c-released", "mask", "ar-iar", "factored-iar")


def front(runs: list[Record]) -> Figure:
    """Four environments for the front page, which has a caption of its own."""
    fig = environments("fig5", [run for run in runs if run.facts["label"] in FRONT])
    fig.suptitle("")
    fig.supxlabel("")
    return fig


def curves(
    experiment: str, runs: list[Record], lines: dict[str, dict[str, float]] | None = None, column: str | None = None,
    ylabel: str = "return of an episode", see: str | None = None,
) -> Figure:  # fmt: skip
    """A panel an environment: a column against environment steps; `lines`: values by name to draw in its panel.
    see: what to see first, by default the experiment's.

    Beside returns a marker for each seed's final policy. Names, of two runs or more, stand at the ends of the lines: in
    each panel where there are two at most, else in the last one; in a legend where that has not all of them.
    """
    with page():
        groups, shown = by_environment(runs), looks(experiment, runs)
        fig, axes, spare = _panels(len(groups), 2.6 if len(groups) < 3 else 2.1, sharey=len(groups) > 2)
        for ax, (name, group) in zip(axes, groups.items(), strict=True):
            learning_curve(ax, group, column, shown).set_title(place(group), fontweight="bold")
            if column is None:
                final_scores(ax, group, shown)
            _levels(ax, (lines or {}).get(name, {}))
        _steps(axes)
        fig.supylabel(ylabel, fontsize=8.5)
        drawn, note = ("", "") if column else (curves_drawn(runs) + FINAL, _exact(experiment, runs))
        _words(fig, experiment, runs, drawn, note, see)
        whole = set(by_label(list(groups.values())[-1])) == set(shown)  # the last panel has all of them
        if len(groups) > 2 and not whole:
            _legend(fig, axes, spare, 6)
        fig.draw_without_rendering()
        for ax in () if len(shown) == 1 else axes if len(groups) <= 2 else axes[-1:] * whole:
            ends = line_ends(ax)
            name_ends(ax, {look.name: ends[look.name] for look in shown.values() if look.name in ends})
    return fig


def _levels(ax: Axes, levels: dict[str, float]) -> None:
    """Lines at known values, black, each named above it, or below it where the next one is near."""
    low, high = ax.get_ylim()
    if levels:
        ax.set_ylim(top=max(high, max(levels.values()) + 0.08 * (high - low)))  # room for a name
    for i, (what, value) in enumerate(levels.items()):
        ax.axhline(value, color="black", linestyle=("--", ":", "-.")[i % 3], linewidth=1.1)
        crowded = any(0 < other - value < 0.1 * (high - low) for other in levels.values())
        side, gap = ("top", -4) if crowded else ("bottom", 2)
        where: dict[str, Any] = dict(xycoords=ax.get_yaxis_transform(), textcoords="offset points", va=side, zorder=6)
        ax.annotate(what, (0.02, value), (0, gap), **where, fontsize=8, color=GREY, path_effects=HALO)


def costs(experiment: str, runs: list[Record], seconds: pd.DataFrame) -> Figure:
    """Score against environment steps, oracle calls, and seconds of training: a row an environment, or two by two.

    seconds: environment, method, oracle ("batched", "one at a time"), seconds_per_step, each oracle's timed in one run.
    """
    pace = pd.Series(seconds.set_index(["environment", "method", "oracle"])["seconds_per_step"])
    groups, shown = by_environment(runs), looks(experiment, runs)
    with page():
        shape, height = ((2, 2), 2.3) if len(groups) == 1 else ((len(groups), 4), 1.6)
        size = (PAGE, 1.1 + height * shape[0])
        fig, axes = plt.subplots(*shape, figsize=size, sharey=True, sharex=False, layout="constrained")
        two = {key: REFERENCES[key] for key in ("optimal", "go_and_stay")}
        for name, row in zip(groups, axes.reshape(-1, 4), strict=True):
            _spent(row, [scored(run) for run in groups[name]], pace.loc[name], shown)
            known = scored(groups[name][0]).facts["reference"]
            for ax in row:  # named once, where lines leave room
                reference_lines(ax, known, two if ax is axes.flat[-2] else {})
            row[0].set_ylabel("" if len(groups) == 1 else name, fontweight="bold")
        for row in axes if len(groups) > 1 else ():
            row[0].locator_params(axis="x", nbins=3)
        _steps_of_costs(axes)
        fig.supylabel(SCORE, fontsize=8.5)
        note = f" Seconds were timed apart, with either oracle in one run.{_left_out(runs, pace, shown)}"
        _words(fig, experiment, runs, note=note + returns_drawn(runs, names(experiment, runs)))
        if len(groups) > 1:
            _legend(fig, list(axes.flat), ncols=4)
        fig.draw_without_rendering()
        for ax in axes.flat if len(groups) == 1 else ():
            ends = line_ends(ax)
            name_ends(ax, {look.name: ends[look.name] for look in shown.values() if look.name in ends})
    return fig


def _judging(runs: list[Record]) -> list[Record]:
    """The runs that call an oracle."""
    return [run for run in runs if run.curve["oracle_calls"].iloc[-1] > 0]


def _left_out(runs: list[Record], pace: pd.Series, shown: dict[str, Method]) -> str:
    """For a caption: who is in some panels of costs only. pace: as in `costs`, by environment, too."""
    groups, judging = by_label(runs), by_label(_judging(runs))
    timed = set(pace.xs("one at a time", level="oracle").index.get_level_values("method"))
    silent = [shown[label].name for label in groups if label not in judging]
    untimed = [shown[label].name for label in judging if label not in timed]
    text = f" {', '.join(silent)} calls no oracle." * bool(silent)
    return text + f" Not timed with an oracle that judges one by one: {', '.join(untimed)}." * bool(untimed)


def _spent(row: Sequence[Axes], runs: list[Record], pace: pd.Series, shown: dict[str, Method]) -> None:
    """Four axes of one environment's scores against what they cost. pace: seconds a step by method and oracle."""

    def spent(oracle: str) -> Callable[[Record], pd.Series]:
        return lambda run: run.curve["env_steps"] * pace[run.facts["label"], oracle]

    judging = _judging(runs)
    timed = [run for run in judging if (run.facts["label"], "one at a time") in pace.index]
    learning_curve(row[0], runs, looks=shown)
    learning_curve(row[1], judging, looks=shown, x=lambda run: run.curve.oracle_calls, log=True)
    learning_curve(row[2], runs, looks=shown, x=spent("batched"), log=True)
    learning_curve(row[3], timed, looks=shown, x=spent("one at a time"), log=True)
    for i, ax in enumerate(row):
        stretch(ax, "y")
        ax.set_ylim(-0.4, 1.02)
        ax.set_xlim(right=ax.get_xlim()[1] * (1.25 if i else 1.04))  # the ends of lines stand free
        low, high = ax.get_xlim()
        if i and high / low < 100:
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))  # else one tick might be all
        if i:
            ax.xaxis.set_major_formatter(EngFormatter(sep="") if i == 1 else "{x:g}")  # exponents would be too small


def _steps_of_costs(axes: np.ndarray) -> None:
    """What x is, below each of the four kinds of axes."""
    for i, ax in enumerate(axes.flat):
        if i >= axes.size - 4:
            ax.set_xlabel(COSTS[i % 4])


def against(
    experiment: str, runs: list[Record], x: Sequence[float], xlabel: str, panels: dict[str, Sequence[float]],
    note: str = "",
) -> Figure:  # fmt: skip
    """A panel an entry of `panels` (its title: a value a run), a marker a run, against x on a logarithmic axis.

    Markers of different runs at one x stand side by side, so that none hides another.
    """
    shown, labels = looks(experiment, runs), np.array([run.facts["label"] for run in runs])
    at = np.asarray(x, dtype=float)
    apart = np.exp(0.035 * np.log(at.max() / at.min()) * (np.arange(len(shown)) - (len(shown) - 1) / 2))
    with page():
        fig, axes, spare = _panels(len(panels), 2.1, sharex=True)
        for ax, (title, values) in zip(axes, panels.items(), strict=True):
            for factor, (label, look) in zip(apart, shown.items(), strict=True):
                its = labels == label
                ax.plot(factor * at[its], np.asarray(values)[its], look.marker, color=look.colour, alpha=0.8,
                        fillstyle=look.fill, label=look.name)  # fmt: skip
            ax.set(xscale="log", title=textwrap.fill(title, 34))
        _steps(axes, xlabel)
        _words(fig, experiment, runs, "Markers: one a seed, side by side at one x", note)
        _legend(fig, axes, spare)
    return fig


def ablation(experiment: str, runs: list[Record], column: str, ylabel: str, log: bool = False) -> Figure:
    """Runs of one environment: score and another column of the records; below a row a run with each seed's final score.

    The rows are the legend, too: each shows its line and marker.
    """
    shown, groups = looks(experiment, runs), by_label(runs)
    with page():
        heights = 2.2, 0.7 + 0.22 * len(shown)
        fig = plt.figure(figsize=(PAGE, 1 + sum(heights)), layout="constrained")
        halves: Any = fig.subfigures(2, 1, height_ratios=heights)
        above, below = halves
        (left, right), strip = above.subplots(1, 2), below.subplots()
        trained = [run._replace(curve=run.curve.iloc[1:]) for run in runs]  # nothing was drawn before the first row
        learning_curve(left, [scored(run) for run in runs], looks=shown)
        learning_curve(right, trained, column, shown)
        stretch(left, "y")
        left.set(ylim=(-1.2, 1.05), ylabel="score", xlabel="environment steps")
        reference_lines(left, scored(runs[0]).facts["reference"])
        right.set(yscale="log" if log else "linear", ylabel=ylabel, xlabel="environment steps")
        if log:
            right.yaxis.set_major_formatter("{x:g}")  # exponents would be too small
        final_strip(strip, [(look.name, look, groups[label]) for label, look in shown.items()], _usual(groups))
        _line_samples(strip, list(shown.values()))
        _words(fig, experiment, runs, curves_drawn(runs) + FINAL, _exact(experiment, runs) + BAND)
    return fig


BAND = " Grey band: how far the seeds of the unchanged run spread; in a figure without it, those of its first row."


def _usual(groups: dict[str, list[Record]]) -> list[Record]:
    """What the others are compared to: the unchanged recipe or printed method where it is there, else the first run."""
    return groups.get("iar-a2c") or groups.get("iar-a2c-paper") or next(iter(groups.values()))


def _line_samples(ax: Axes, shown: list[Method]) -> None:
    """Left of every row of a strip the line of its run, long enough to show its dashes."""
    ax.tick_params(axis="y", length=0, pad=42)
    figure = cast(Figure, ax.figure)
    points = (
        Affine2D().scale(1 / 72) + figure.dpi_scale_trans + ScaledTranslation(0, 0, cast(Affine2DBase, ax.transAxes))
    )
    place = blended_transform_factory(points, ax.transData)
    for row, (_, colour, dashes, *_) in enumerate(shown):
        ax.plot((-38, -4), (row, row), color=colour, linestyle=dashes, transform=place, clip_on=False)


def factors(runs: dict[str, list[Record]], title: str, see: str) -> Figure:
    """What changing one thing alone does to the final score: by experiment, a row a run, as in `ablation`'s strip."""
    rows: list[tuple[str, Method | None, list[Record]]] = []
    for experiment, group in runs.items():
        shown = looks(experiment, group)
        rows.append((experiments(EXPERIMENTS)[experiment]["title"], None, []))
        rows += [(shown[label].name, shown[label], its) for label, its in by_label(group).items()]
    once = {(run.facts["label"], run.facts["config"]["seed"]): run for group in runs.values() for run in group}
    everything, called = list(once.values()), {label: name for its in map(named, runs) for label, name in its.items()}
    with page():
        fig, ax = plt.subplots(figsize=(PAGE, 1.3 + 0.19 * len(rows)), layout="constrained")
        final_strip(ax, rows, _usual(by_label(everything)))
        fig.suptitle(title, fontsize=10)
        drawn = "Markers: each seed's final policy, the bar their mean"
        _caption(fig, see, everything, called, drawn, BAND)
    return fig


def bridge(experiment: str, runs: list[Record], authors: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Runs on the authors' city: return, ELBO, valid draws; left beside their code's curve and the published one, right
    (released) without one of its settings.

    authors: env_steps, return_mean, elbo, valid_rate; published: env_steps, return, tolerance.
    """
    shown, known = looks(experiment, runs), runs[0].facts["reference"]
    trained = [run._replace(curve=run.curve.iloc[1:]) for run in runs]  # nothing was drawn before the first row
    groups = by_label(trained)
    lacking = [label for label in groups if label.startswith("released-")]
    columns = {"IAR-A2C and the authors' code": [label for label in groups if label not in lacking]}
    if lacking:
        columns["(released), one thing left out"] = ["iar-a2c-released", *lacking]
    with page():
        ratios = {"height_ratios": (3, 2, 2, 1.1)}
        fig, grid = plt.subplots(4, len(columns), figsize=(PAGE, 7.6), sharex=True, squeeze=False, sharey="row",
                                 layout="constrained", gridspec_kw=ratios)  # fmt: skip
        for (title, labels), axes in zip(columns.items(), grid.T, strict=True):
            group = [run for label in labels for run in groups[label]]
            for ax, ours in zip(axes, (None, "elbo", "valid_rate"), strict=False):
                learning_curve(ax, group, ours, shown)
            reference_lines(axes[0], known)
            axes[0].set_title(title, fontweight="bold")
        for ax, column in zip(grid[:, 0], ("return_mean", "elbo", "valid_rate"), strict=False):
            ax.plot(
                authors["env_steps"], authors[column], color="black", linewidth=0.9, label="the authors' code, one run"
            )
        where = published["env_steps"], published["return"], published["tolerance"]
        grid[0, 0].errorbar(
            *where, fmt="D", color=GREY, capsize=3, clip_on=False, zorder=6, label="published (read off)"
        )
        span = known["optimal"] - known["uniform_valid"]
        limits = (known["uniform_valid"] - 0.35 * span, known["optimal"] + 0.2 * span)
        grid[0, 0].set(ylabel="return of an episode", ylim=limits)
        grid[1, 0].set(ylabel="ELBO of log π(a|s), nats,\nabove −20", ylim=(-20, 1))
        grid[2, 0].set(ylabel="share of draws\nthat are valid", ylim=(0, 1.03))
        for axes in grid.T:
            axes[2].set(
                xlabel="environment steps", xlim=(0, max(authors["env_steps"].max(), published["env_steps"].max()))
            )
            axes[2].tick_params(labelbottom=True)
            axes[3].axis("off")
            axes[3].legend(*axes[0].get_legend_handles_labels(), loc="center", handlelength=3.2)
        _words(fig, experiment, runs, note=_exact(experiment, runs))
    return fig


def profiles(experiment: str, runs: list[Record]) -> Figure:
    """Performance profiles of score and plateau gain over all environments of the runs."""
    with page():
        fig, axes = plt.subplots(1, 2, figsize=(PAGE, 3.6), sharey=True, layout="constrained")
        profile(axes[0], runs, lambda run: score(run.facts), np.linspace(0, 1, 1001)).set_xlabel("score τ")
        stretch(axes[0], "x")
        axes[0].set_xlim(0, 1)
        profile(axes[1], runs, lambda run: gain(run.facts), np.linspace(-1, 1, 201)).set_xlabel("plateau gain τ")
        axes[1].axvline(0, color=GREY, linestyle=":", linewidth=1.2)
        above_it = axes[1].get_xaxis_transform()
        axes[1].text(0, 1, "go and stay", transform=above_it, ha="center", va="bottom", fontsize=8, color=GREY)
        axes[0].set_ylabel("share of runs above τ")
        drawn = "Line: share of final policies, environments and seeds together; band: 95 % stratified bootstrap"
        sampled = sorted({method(r.facts["label"]).name for r in runs if r.facts["final_exact_return"] is None})
        note = f" Exact scores{'; by episodes: ' * bool(sampled)}{', '.join(sampled)}."
        _words(fig, experiment, runs, drawn, note)
        _legend(fig, list(axes))
    return fig
