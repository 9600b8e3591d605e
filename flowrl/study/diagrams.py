"""Pictures that explain: the loop of IAR-A2C (Figure 1), how data flows here, estimators, corrections, ERA's cities.

Numbers and axes in, artists out, as in `plots`; nothing here trains or samples. What the pictures show is computed in
notebooks 02 to 04, from `rejection` and `truth`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from ..envs.city import City
from ..envs.draw import INK, MISSED, RESOURCES, ROAD, SERVED, places
from .plots import CORRECTIONS, GREY, METHODS, PAGE, REFERENCES, STYLE, Method, page

BLUE = METHODS["iar-a2c"].colour  # of the flow policy and its recipe
RED = CORRECTIONS["paper"].colour  # of the printed correction
YES, NO, PALE = SERVED, MISSED, "#F4F6F8"  # what the oracle says
MOST_NUMBERED = 16  # districts on a map; the numbers of more could not be read


UNBIASED = CORRECTIONS["leave_one_out"].colour

# --------------------------------------------------------------------------------- the idea, for the front page

PROPOSED = ((0, 3), (1, 1), (2, 4), (3, 0), (4, 4), (5, 2), (3, 3), (1, 5))  # draws from two choices of six
CARRIED_OUT = (2, 4)


def idea() -> Figure:
    """What IAR-A2C does in a state, in three pictures: draw, ask, execute and learn. Valid: two choices that differ."""
    titles = (
        "1  draw $S$ actions\nfrom the flow", "2  ask the oracle\nabout each",
        "3  execute one valid draw,\nlearn from all valid ones",
    )  # fmt: skip
    with plt.rc_context({**STYLE, "font.size": 9}):
        fig, axes = plt.subplots(1, 3, figsize=(6.9, 2.8), layout="constrained")
        for step, (ax, title) in enumerate(zip(axes, titles, strict=True), 1):
            ax.set(title=title, xticks=range(6), yticks=range(6), xlim=(-0.6, 5.8), ylim=(-0.6, 5.8), aspect="equal")
            ax.set(xticklabels="123456", yticklabels="123456", xlabel="first choice")
            ax.title.set_size(9.5)
            ax.tick_params(length=0)
            ax.grid(False)
            for a in PROPOSED:
                _proposal(ax, a, step)
        axes[0].set_ylabel("second choice")
    return fig


def _proposal(ax: Axes, action: tuple[int, int], step: int) -> None:
    """A draw as it stands after a step: refused ones are crossed out, then gone; a ring round the executed one."""
    refused = action[0] == action[1]
    if not (refused and step == 3):
        ax.plot(*action, "o", color=BLUE, markersize=10, alpha=0.35 if refused and step == 2 else 1)
    if step == 2:
        mark, colour = ("✗", NO) if refused else ("✓", YES)
        ax.text(action[0] + 0.34, action[1] + 0.34, mark, color=colour, fontsize=11, fontfamily="DejaVu Sans",
                ha="center", va="center")  # fmt: skip
    if step == 3 and action == CARRIED_OUT:
        ax.plot(*action, "o", markersize=16, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=3)


# --------------------------------------------------------------------------------- Figure 1: the loop of IAR-A2C


def _sheet(low: float, high: float) -> tuple[Figure, Axes]:
    """A page's width of 13 units without an axis, whose heights go from low to high."""
    fig = plt.figure(figsize=(PAGE, PAGE * (high - low) / 13))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 13), ylim=(low, high))
    ax.axis("off")
    return fig, ax


def iar_a2c_loop() -> Figure:
    """Figure 1 of the paper, redrawn with the weights that Theorem 1 calls for: acting above, learning below."""
    with page():
        fig, ax = _sheet(0.05, 6.7)
        _acting(ax)
        _learning(ax)
    return fig


DRAWS = 8  # in the picture
REFUSED, EXECUTED = (1, 4, 5), 3
VALID = [j for j in range(DRAWS) if j not in REFUSED]
TOP, GAP = 6.0, 0.31  # the first draw, and the next below it


def _frame(ax: Axes, left: float, bottom: float, width: float, height: float, colour: str, title: str) -> None:
    """A rounded box with a bold title at its top."""
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((left, bottom), width, height, style, facecolor=PALE, edgecolor=colour, linewidth=1.2))
    place = left + width / 2, bottom + height - 0.16
    ax.text(*place, title, ha="center", va="top", fontsize=8.5, fontweight="bold", color=colour)


def _box(ax: Axes, left: float, bottom: float, width: float, height: float, colour: str, *lines: str) -> None:
    """A frame with its title, the first of the lines, and the others below."""
    _frame(ax, left, bottom, width, height, colour, lines[0])
    place = left + width / 2, bottom + (height - 0.4) / 2
    ax.text(*place, "\n".join(lines[1:]), ha="center", va="center", fontsize=7.5, color=INK, linespacing=1.5)


def _arrow(ax: Axes, *points: tuple[float, float]) -> None:
    """An arrow along straight pieces."""
    ax.plot(*zip(*points, strict=True), color=GREY, linewidth=1.2, solid_joinstyle="round", zorder=1)
    head: dict[str, Any] = dict(arrowstyle="-|>", mutation_scale=10, linewidth=1.2, color=GREY, shrinkA=0, shrinkB=0)
    ax.add_patch(FancyArrowPatch(points[-2], points[-1], **head))


def _note(ax: Axes, x: float, y: float, *lines: str, **look: Any) -> None:
    """Lines of text round a place."""
    default: dict[str, Any] = dict(ha="center", va="center", fontsize=7.5, color=INK, linespacing=1.4)
    ax.text(x, y, "\n".join(lines), **default | look)


def _draws(ax: Axes, x: float, keep: Sequence[int], ring: int | None = None) -> None:
    """The draws 1 … S, one below the other: those to `keep` full, the others faint; a ring round the executed."""
    for j in range(DRAWS):
        y, colour = TOP - GAP * j, BLUE if j in keep else "#C9CED6"
        ax.add_patch(Circle((x, y), 0.135, facecolor=colour, edgecolor="white", linewidth=0.8, zorder=3))
        _note(ax, x, y - 0.02, f"{j + 1}" if j < DRAWS - 1 else "$S$", fontsize=7, color="white", zorder=4)
        if j == ring:
            ax.add_patch(Circle((x, y), 0.185, facecolor="none", edgecolor=INK, linewidth=1.8, zorder=5))


def _acting(ax: Axes) -> None:
    """Upper half: draw, call the oracle, reject, execute."""
    middle, executed = TOP - GAP * (DRAWS - 1) / 2, TOP - GAP * EXECUTED
    policy = (r"$z_0 = \mu(s) + \sigma(s)\,\varepsilon$", r"$v = F_w(z_0;\, s)$", r"$a = \mathrm{argmax}\; v$")
    _box(ax, 0.3, 3.95, 2.9, 1.95, BLUE, r"flow policy  $\pi_\theta(a|s)$", *policy)
    _arrow(ax, (3.2, middle), (3.97, middle))
    _note(ax, 3.63, middle + 0.24, "$S$ draws", fontsize=7)
    _draws(ax, 4.2, range(DRAWS))
    _arrow(ax, (4.47, middle), (5.2, middle))
    _box(ax, 5.2, 4.2, 1.6, 1.45, YES, "oracle", "is $a_j$ valid", "in state $s$?")
    _arrow(ax, (6.8, middle), (7.6, middle))
    _note(ax, 7.23, middle + 0.24, "yes / no", fontsize=7)
    _draws(ax, 7.9, VALID, EXECUTED)
    for j in range(DRAWS):
        mark, colour = ("✓", YES) if j in VALID else ("✗", NO)
        _note(ax, 8.26, TOP - GAP * j, mark, fontsize=8, color=colour, fontfamily="DejaVu Sans")
    _arrow(ax, (8.45, executed), (10.0, executed))
    _note(ax, 9.18, executed + 0.34, "one of the $l$", "valid, uniformly", fontsize=7)
    contract = (r"executes $a \sim \pi'(\cdot|s)$,", "never an invalid action;", "reward $r$, next state $s'$")
    _box(ax, 10.0, 3.95, 2.7, 1.95, GREY, "environment", *contract)
    _arrow(ax, (11.35, 5.9), (11.35, 6.35), (1.75, 6.35), (1.75, 5.9))
    _note(ax, 6.05, 6.5, "next state $s'$ becomes $s$")


def _learning(ax: Axes) -> None:
    """Lower half: advantage, weights of the draws' scores, gradient."""
    _arrow(ax, (11.35, 3.95), (11.35, 2.75))
    _note(ax, 11.8, 3.35, r"$s,\ r,\ s'$")
    critic = ("$n$-step return $R$;", "advantage", "$A = R - V(s)$")
    _box(ax, 10.0, 0.8, 2.7, 1.95, GREY, "critic  $V(s)$", *critic)
    _arrow(ax, (10.0, 1.7), (9.25, 1.7))
    _note(ax, 9.62, 1.92, "$A$")
    _arrow(ax, (7.9, TOP - GAP * DRAWS + 0.06), (7.9, 3.12))
    _note(ax, 6.3, 3.33, "all $S$ draws and their validity")
    _weights(ax)
    _arrow(ax, (4.1, 1.7), (3.2, 1.7))
    gradient = (r"$A\;\Sigma_j\, u_j\,\nabla\log\pi_\theta(a_j|s)$,", r"unbiased for $\nabla J$", "(Theorem 1)")
    _box(ax, 0.3, 0.8, 2.9, 1.95, BLUE, "policy gradient", *gradient)
    _arrow(ax, (1.75, 2.75), (1.75, 3.95))
    _note(ax, 2.35, 3.35, r"update $\theta$")


def _weights(ax: Axes) -> None:
    """The box with u_j as bars over the draws: leave-one-out, and S/l² as printed."""
    _frame(ax, 4.1, 0.2, 5.15, 2.9, BLUE, r"weight $u_j$ of each draw's $\nabla\log\pi_\theta(a_j|s)$")
    l, executed, valid = len(VALID), np.arange(DRAWS) == EXECUTED, np.isin(range(DRAWS), VALID)
    leave_one_out = (r"executed: $1$", r"other valid: $-1/(l-1)$", r"refused: $0$")
    printed = (r"executed: $1 - S/l^2$", r"other valid: $-S/l^2$", r"refused: $0$")
    weights, name = np.where(executed, 1, -1 / (l - 1)) * valid, "leave-one-out: unbiased"
    _weight_bars(ax, 1.92, weights, UNBIASED, name, leave_one_out)
    name = r"$S/l^2$ (printed): $\mathrm{E}[1 - S/l^2]\,\nabla J$, wrong sign at $l < \sqrt{S}$"
    _weight_bars(ax, 0.82, (executed - DRAWS / l**2) * valid, RED, name, printed)


def _weight_bars(ax: Axes, base: float, weights: np.ndarray, colour: str, name: str, text: Sequence[str]) -> None:
    ax.bar(4.5 + 0.29 * np.arange(DRAWS), 0.42 * weights, 0.22, bottom=base, color=colour, zorder=3)
    ax.plot((4.3, 6.7), (base, base), color=INK, linewidth=0.9, zorder=4)
    _note(ax, 4.3, base - 0.36, name, ha="left", color=colour)
    _note(ax, 6.9, base + 0.2, *text, ha="left")


# ------------------------------------------------------------------------------------------------ how data flows


def how_it_is_built() -> Figure:
    """From settings to records, and from these to pictures and words; titles are paths in the project, or commands."""
    with page():
        fig, ax = _sheet(0, 6.6)
        _box(ax, 0.15, 4.7, 2.75, 1.6, GREY, "experiments.yaml", "every experiment:", "settings, seeds, scales")
        _box(ax, 3.6, 4.7, 2.4, 1.6, GREY, "Snakefile", "what is missing,", "in which order")
        _box(ax, 6.7, 4.7, 2.6, 1.6, BLUE, "flowrl train", "one run of one seed;", "draws nothing")
        _box(ax, 10.0, 4.7, 2.8, 1.6, GREY, "data/runs", "a record a seed: curve", "(CSV), facts (JSON)")
        for left, right in ((2.9, 3.6), (6.0, 6.7), (9.3, 10.0)):
            _arrow(ax, (left, 5.5), (right, 5.5))
        _box(ax, 0.15, 2.3, 2.75, 1.6, YES, "figures", "PNG, PDF, and tables", "of final scores")
        _box(ax, 3.6, 2.3, 2.6, 1.6, BLUE, "notebooks", "run by papermill;", "train none of these")
        _box(ax, 6.9, 2.3, 2.4, 1.6, YES, "docs/claims.md", "by make claims;", "README's numbers")
        _box(ax, 10.0, 2.3, 2.8, 1.6, GREY, "claims.yaml", "a query and a", "criterion a claim")
        _arrow(ax, (10.5, 4.7), (10.5, 4.3), (4.9, 4.3), (4.9, 3.9))
        _arrow(ax, (11.9, 4.7), (11.9, 3.9))
        _arrow(ax, (3.6, 3.1), (2.9, 3.1))
        _arrow(ax, (10.0, 3.1), (9.3, 3.1))
        _frame(ax, 0.15, 0.3, 12.65, 1.25, YES, "build/site")
        _note(ax, 6.475, 0.62, "make site: documents, executed notebooks, their figures, docstrings")
        for x in (1.525, 4.9, 8.1):
            _arrow(ax, (x, 2.3), (x, 1.55))
    return fig


# ------------------------------------------------------------------ what a correction does to the policy gradient


def _multiple_axis(ax: Axes, lowest: float) -> None:
    """y: a multiple of the true gradient, linear within ±1, logarithmic beyond; below zero shaded: downhill."""
    ax.set_yscale("symlog", linthresh=1, linscale=1.3, subs=range(2, 10))
    ax.set_ylim(lowest, 2.2)
    ticks = [-100, -30, -10, -3, -1, -0.5, 0, 0.5, 1]
    ax.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    ax.axhspan(lowest, 0, color="#FBE9E1", zorder=0, linewidth=0)
    ax.axhline(0, color=INK, linewidth=1)
    place: dict[str, Any] = dict(xytext=(8, -6), textcoords="offset points", va="top", color=RED)
    ax.annotate("wrong direction", (0, 0), xycoords=ax.get_yaxis_transform(), **place)


def multiple_by_valid_draws(ax: Axes, n_draws: int, multiples: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Axes:
    """Multiple of the true gradient given l valid ones among S draws: by correction, l (n,) and multiple (n,)."""
    _multiple_axis(ax, -1.5 * n_draws)
    for kind, (l, multiple) in multiples.items():
        name, colour, dashes, *_ = CORRECTIONS[kind]
        wide = kind == "none"  # leave-one-out lies upon it
        ax.plot(l, multiple, color=colour, linestyle=dashes, label=name, linewidth=6 if wide else 2.4, zorder=3 - wide)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks := 2 ** np.arange(int(np.log2(n_draws)) + 1), [str(tick) for tick in ticks])
    ax.axvline(n_draws**0.5, color=RED, linewidth=1, linestyle=":")
    ax.annotate("$l = \\sqrt{S}$", (n_draws**0.5, -n_draws / 3), (6, 0), textcoords="offset points", color=RED)
    ax.set_xlabel(f"$l$, valid ones of $S$ = {n_draws} draws")
    ax.set_ylabel("expected gradient,\nas a multiple of the true one")
    return ax


def multiple_by_valid_mass(ax: Axes, mass: np.ndarray, printed: Mapping[int, np.ndarray], leave_one_out: np.ndarray,
                           ranges: Mapping[str, tuple[float, float]]) -> Axes:  # fmt: skip
    """In expectation over l, against Z (n,): S/l² for several S, leave-one-out; with named ranges of Z."""
    _multiple_axis(ax, -1.5 * max(printed))
    shades = plt.get_cmap("Reds")(np.linspace(0.45, 0.95, len(printed)))
    for (n_draws, multiple), shade in zip(printed.items(), shades, strict=True):
        ax.plot(mass, multiple, color=shade, linestyle=CORRECTIONS["paper"].dashes, linewidth=2.4)
        box = dict(facecolor="white", edgecolor=shade, boxstyle="round,pad=0.2")
        place = np.interp(0.0, multiple, mass), 0
        label, side = (f"$S$ = {n_draws}", "right") if n_draws == max(printed) else (f"{n_draws}", "center")
        ax.annotate(label, place, ha=side, va="center", color=shade, fontsize=9.5, bbox=box)
    ax.plot(mass, leave_one_out, color=UNBIASED, linewidth=2.8)
    ax.annotate("leave-one-out: 1 for every $S$", (mass[0], 1), (4, 4), color=UNBIASED, textcoords="offset points")
    for i, (name, (low, high)) in enumerate(ranges.items()):
        y = -1.15 * max(printed) / 2**i
        ax.plot((low, high), (y, y), color=GREY, linewidth=5, solid_capstyle="butt")
        above: dict[str, Any] = dict(xytext=(0, 5), textcoords="offset points", ha="right", va="bottom")
        ax.annotate(name, (high, y), color=GREY, fontsize=9, **above)
    ax.set_xscale("log")
    ax.set_xticks(ticks := [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], [f"{tick:g}" for tick in ticks])
    ax.set_xlim(mass[0], 1)
    ax.set_xlabel("$Z$, share of the draws that is valid")
    return ax


def by_correction(ax: Axes, lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Axes:
    """By correction, x (n,) and y (n,), both axes logarithmic; what is 0 but for rounding is left out."""
    for kind, (x, y) in lines.items():
        name, colour, dashes, *_ = CORRECTIONS[kind]
        ax.plot(x, np.where(y < 1e-9, np.nan, y), color=colour, linestyle=dashes, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    return ax


def ascents(ax: Axes, returns: Mapping[str, np.ndarray], best: float) -> Axes:
    """What the updates make of the return: by correction (T, runs), every run faint, their mean bold; best possible."""
    for kind, values in returns.items():
        _, colour, dashes, *_ = CORRECTIONS[kind]
        ax.plot(values, color=colour, linewidth=0.5, alpha=0.25)
        ax.plot(values.mean(1), color=colour, linestyle=dashes, linewidth=2.6, zorder=4)
    ax.axhline(best, color="black", linestyle="--", linewidth=1)
    ax.set_xlabel("policy updates")
    ax.set_ylabel("exact expected return $J$")
    ax.margins(x=0)
    return ax


def corrections() -> tuple[Figure, np.ndarray]:
    """A figure with three axes for the above, the first two above, sharing y, and a place for a legend."""
    with page():
        fig, axes = plt.subplots(2, 2, figsize=(PAGE, 6.2), layout="constrained", width_ratios=(1, 1.15))
        axes[1, 1].axis("off")
    return fig, axes.flat


# ---------------------------------------------------------------------------------------------- estimators of log π


Looks = Mapping[str, Method]


def _estimators(ax: Axes, y: Any, low: Any, high: Any, found: Any, looks: Looks) -> None:
    """Series by (x, estimator): a line each, bars from low to high, open markers where nothing was found."""
    y, low, high, found = (column.unstack() for column in (y, low, high, found))
    for name in (name for name in looks if name in y):
        look = looks[name]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 5}
        bars = (y[name] - low[name]).clip(lower=0), (high[name] - y[name]).clip(lower=0)
        ax.errorbar(range(len(y)), y[name], bars, linestyle=look.dashes, capsize=2, label=look.name, **style)
        ax.plot(range(len(y)), y[name].where(~found[name]), linestyle="", markerfacecolor="white", zorder=4, **style)
    ax.set_xticks(range(len(y)), y.index)


def bias_of_log_prob(ax: Axes, value: pd.DataFrame, looks: Looks) -> Axes:
    """Columns bias and error by (x, estimator), in nats; bars are two standard errors, as in the next two."""
    y, error = value["bias"], 2 * value["error"]
    _estimators(ax, y, y - error, y + error, y.notna(), looks)
    ax.axhline(0, color="black", linewidth=1)
    return ax


def bias_of_score(ax: Axes, score: pd.DataFrame, looks: Looks) -> Axes:
    """Columns bias² and error by (x, estimator): its root, or the upper limit where it is not clear of the noise."""
    found = score["bias²"] > 3 * score["error"]
    low, high = ((score["bias²"] + sign * 2 * score["error"]).clip(lower=1e-6) ** 0.5 for sign in (-1, 1))
    y = (score["bias²"].clip(lower=0) ** 0.5).where(found, high)
    _estimators(ax, y, low.where(found, y), high, found, looks)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    return ax


def spread_of_score(ax: Axes, score: pd.DataFrame, looks: Looks) -> Axes:
    """Columns spread² and spread error by (x, estimator): its root."""
    low, high = ((score["spread²"] + sign * 2 * score["spread error"]) ** 0.5 for sign in (-1, 1))
    y = score["spread²"] ** 0.5
    _estimators(ax, y, low, high, y.notna(), looks)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator((0.5, 0.7, 1, 1.5, 2, 2.5, 3)))
    return ax


def estimators(columns: Sequence[tuple[pd.DataFrame, pd.DataFrame, str, str]], looks: Looks) -> Figure:
    """The three above, a column for each (value, score, title, name of x), of the x that the scores have."""
    with page():
        fig, axes = plt.subplots(3, len(columns), figsize=(PAGE, 8), sharex="col", layout="constrained", squeeze=False)
        for (top, middle, bottom), (value, score, title, x) in zip(axes.T, columns, strict=True):
            scored = value.index.get_level_values(0).isin(score.index.get_level_values(0))
            bias_of_log_prob(top, value.loc[scored], looks).set_title(title)
            bias_of_score(middle, score, looks)
            spread_of_score(bottom, score, looks).set_xlabel(x)
        for ax in axes[1:].flat:
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")
        names = ("bias of log π, nats", "relative bias of ∇log π", "spread of ∇log π")
        for ax, name in zip(axes[:, 0], names, strict=True):
            ax.set_ylabel(name)
        title = "solid: log π estimated, then differentiated      dashed: ∇log π alone, unbiased"
        handles = axes[1, 0].get_legend_handles_labels()
        fig.legend(*handles, title=title, title_fontsize=8.5, loc="outside upper center", ncols=3, handlelength=3.4)
    return fig


def pathwise(side: np.ndarray, p_2: np.ndarray, action: tuple[int, int],
             scores: Mapping[str, tuple[np.ndarray, str]], exact: np.ndarray) -> Figure:  # fmt: skip
    """What a pathwise score integrates, for D = 2, K = 3, and what it leaves.

    p_2 (n, n): P(a_2 | v_1) over v_12 − v_11 and v_13 − v_11, each in `side` (n,); action: a_1, a_2, from 1; scores by
    name: two coordinates a draw, (m, 2), and a colour; exact (2,).
    """
    with page():
        fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 3), layout="constrained", width_ratios=(1.2, 1))
        image = left.pcolormesh(side, side, p_2.T, cmap="cividis", rasterized=True)
        fig.colorbar(image, label=f"$p_2$ of $a_2$ = {action[1]}")
        most = float(side[-1])
        for end in ((-most, 0), (0, -most), (most, most)):
            left.plot((0, end[0]), (0, end[1]), color="white", linewidth=2)
        box = {"facecolor": "black", "alpha": 0.4, "linewidth": 0}
        for a, (x, y) in enumerate(((-0.6, -0.6), (0.5, -0.5), (-0.5, 0.5)), 1):
            left.text(x * most, y * most, f"$a_1$ = {a}", color="white", ha="center", bbox=box)
        left.set(xlabel="$v_{12} - v_{11}$", ylabel="$v_{13} - v_{11}$")
        left.set_title(f"$p_2$ over $v_1$; right, only region $a_1$ = {action[0]}")
        left.grid(False)
        for name, (found, colour) in scores.items():
            right.plot(*found.T, ".", color=colour, markersize=4, alpha=0.5, label=name)
        right.plot(*exact, "k+", markersize=11, markeredgewidth=2, label="exact")
        right.set(xlim=(-3, 1.5), ylim=(-3, 1.5), title="scores of $a$ = ({}, {})".format(*action))
        right.set_xlabel(rf"$\partial/\partial\mu_{{1{action[0]}}}$")
        right.set_ylabel(rf"$\partial/\partial\mu_{{2{action[1]}}}$")
        right.legend(loc="lower left")
    return fig


# ------------------------------------------------------------------------------------------------- the cities of ERA


def city_map(ax: Axes, city: City, frequency: np.ndarray, stay: Sequence[int]) -> ScalarMappable:
    """A city from above: districts as large as they are struck often (K,), as dark as severe; resources at `stay` (D,).

    Roads are thick where they are cheap; few districts are numbered. Returns what a colour bar of the severity needs.
    """
    place, price = places(city), np.array([edge[2] for edge in city.edges])
    for (i, j, _), width in zip(city.edges, 1.5 + 5 * (1 - price / max(price.max(), 1e-9)), strict=True):
        ax.plot(*place[[i, j]].T, color=ROAD, linewidth=width, solid_capstyle="round", zorder=1)
    severity, norm = np.subtract(city.covered, city.uncovered) / 2, Normalize(0.8, 1.3)
    shade, dark = ScalarMappable(norm, "Greys"), np.asarray(norm(severity)) > 0.55
    ax.scatter(*place.T, s=3000 * frequency, c=severity, cmap=shade.cmap, norm=norm, edgecolors=INK, zorder=2,
               clip_on=False)  # fmt: skip
    for k, (x, y) in enumerate(place):
        colour = "white" if dark[k] else INK
        if city.districts <= MOST_NUMBERED:
            ax.annotate(str(k), (x, y), ha="center", va="center", fontsize=8, color=colour, zorder=4)
        here = [r for r, district in enumerate(stay) if district == k]
        for slot, r in enumerate(here):
            box = {"boxstyle": "round,pad=0.25", "facecolor": RESOURCES[r % len(RESOURCES)], "edgecolor": "white"}
            shift = (15 * (slot - (len(here) - 1) / 2), 17)
            ax.annotate("ABCDEFGH"[r], (x, y), shift, textcoords="offset points", ha="center", va="center", fontsize=8,
                        color="white", weight="bold", zorder=5, bbox=box)  # fmt: skip
    ax.margins(0.12)
    ax.set_aspect("equal", adjustable="datalim")
    ax.axis("off")
    return shade


def neighbourhoods(ax: Axes, city: City, values: np.ndarray, most: float, colours: str = "Blues") -> ScalarMappable:
    """A city that has outlines, each district shaded by its value (K,), 0 to `most`; what a colour bar needs."""
    shade = ScalarMappable(Normalize(0, most), colours)
    outlines = [np.array(outline) for outline in (city.map or {})["outlines"]]
    ax.add_collection(PolyCollection(outlines, facecolors=shade.to_rgba(values), edgecolors=INK, linewidths=0.5))
    ax.autoscale_view()
    ax.set_aspect("equal")
    ax.axis("off")
    return shade


def covered(city: City, shares: Mapping[str, np.ndarray], titles: Mapping[str, str]) -> Figure:
    """Maps, three a row: what share of the emergencies strikes each district, then, by policy, how often it is covered.

    shares: by policy (K,) of steps; titles: a line for each. Colour bars take the place that five maps leave.
    """
    with page():
        rows, struck = -(-(2 + len(shares)) // 3), city.transition[-1]
        fig, axes = plt.subplots(rows, 3, figsize=(PAGE, 2.3 * rows), layout="constrained")
        reds = neighbourhoods(axes.flat[0], city, struck, struck.max(), "Reds")
        axes.flat[0].set_title("share of the emergencies")
        for ax, (name, share) in zip(axes.flat[1:], shares.items(), strict=False):
            blues = neighbourhoods(ax, city, share, 1.0)
            ax.set_title(titles[name])
        for ax in axes.flat[1 + len(shares) :]:
            ax.axis("off")
        for left, shade, label in ((0.02, reds, "share of the emergencies"), (0.6, blues, "share of steps covered")):
            fig.colorbar(shade, cax=axes.flat[-1].inset_axes((left, 0.05, 0.07, 0.85)), label=label)
    return fig


def worth(ax: Axes, optima: Mapping[str, dict[str, float]]) -> Axes:
    """By variant of a city (`exact.optimum`): exact returns of random valid actions, go-and-stay and the optimum."""
    for y, (name, exact) in enumerate(optima.items()):
        returns = [exact[key] for key in REFERENCES]
        ax.plot((min(returns), max(returns)), (y, y), color="#C9CED6", linewidth=5, solid_capstyle="round", zorder=2)
        for key, value in zip(REFERENCES, returns, strict=True):
            marker, colour = {"optimal": ("*", "black"), "go_and_stay": ("s", INK), "uniform_valid": ("o", GREY)}[key]
            ax.plot(value, y, marker, color=colour, markersize=10 if marker == "*" else 6, label=REFERENCES[key],
                    markeredgecolor="white", linestyle="", zorder=3)  # fmt: skip
        ax.annotate(f"{name}: {100 * exact['valid_fraction']:.0f} % valid", (0, y), (0, 8), fontsize=8, color=INK,
                    xycoords=ax.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
    ax.set_ylim(len(optima) - 0.6, -0.75)
    ax.set_yticks([])
    ax.spines[["left", "right"]].set_visible(False)
    ax.set_xlabel("return of an episode")
    return ax


def cities(groups: Mapping[str, Mapping[str, dict[str, float]]], frequencies: Mapping[str, np.ndarray],
           stays: Mapping[str, Sequence[int]]) -> Figure:  # fmt: skip
    """Three cities a row: each one's map above, what its variants are worth below (`worth`); all by the city's name."""
    with page():
        rows = len(groups) // 3 + 1  # there is a place left, the colour bar's
        fig, axes = plt.subplots(2 * rows, 3, figsize=(PAGE, 4.6 * rows), squeeze=False, height_ratios=(1.3, 1) * rows,
                                 layout=ConstrainedLayoutEngine(h_pad=0.08))  # fmt: skip
        for ax in axes.flat:
            ax.axis("off")
        pairs = [(axes[2 * row, i], axes[2 * row + 1, i]) for row in range(rows) for i in range(3)]
        for (above, below), (name, optima) in zip(pairs, groups.items(), strict=False):
            city = City.load(name)
            shade = city_map(above, city, frequencies[name], stays[name])
            below.axis("on")
            worth(below, optima)
            size = f"{city.districts}$^{city.resources}$ = {city.allocations:,} actions"
            above.set_title(f"{name}\n", fontweight="bold")
            above.text(0.5, 1.02, size, transform=above.transAxes, ha="center", fontsize=8, color=GREY)
        handles = dict(zip(*reversed(pairs[0][1].get_legend_handles_labels()), strict=True))
        fig.legend(handles.values(), handles, loc="outside lower center", ncols=3)
        fig.colorbar(shade, cax=pairs[len(groups)][0].inset_axes((0.1, 0.05, 0.06, 0.85)), label="severity")
    return fig
