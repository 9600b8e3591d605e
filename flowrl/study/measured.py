"""Figures of what notebooks 07 to 12 compute themselves or read from timings: numbers in, a figure on a page out.

Nothing here trains, samples or times; looks and parts are those of `plots`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..envs.draw import MISSED, SERVED
from .plots import ESTIMATORS, GREY, HALO, ORDERED, PAGE, VARIANTS, Method, line_ends, method, name_ends, page

SCORES = {  # the columns of a table of spreads
    "latent": ESTIMATORS["latent"],
    "rb_64": ESTIMATORS["rb"]._replace(name="averaged, S = 64"),
    "pathwise_1": ESTIMATORS["pathwise"]._replace(name="pathwise, N = 1", fill="none"),
    "pathwise_64": ESTIMATORS["pathwise"]._replace(name="pathwise, N = 64"),
}
KERNELS = {"sweep": "sweep", "singles": "one redrawn", "pairs": "two redrawn", "slice": "slice",
           "sweep and slice": "sweep and slice"}  # fmt: skip


def toy_policies(grid: np.ndarray, product: np.ndarray, together: np.ndarray) -> Figure:
    """Returns in Toy-Partial: of products of marginals (n, n) by p(1), p'(1), and of policies that never split (n,)."""
    with page():
        fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 3.1), layout="constrained")
        image = left.imshow(product, origin="lower", extent=(0, 1, 0, 1), cmap="cividis")
        left.set(xlabel="p(1)", ylabel="p'(1)", title="a product of marginals")
        left.grid(False)
        fig.colorbar(image, label="return of an episode")
        right.plot(grid, together, color=GREY)
        right.axhline(product.max(), color="black", linestyle=":")
        where = dict(textcoords="offset points", ha="center", fontsize=8, color=GREY)
        right.annotate("best product of marginals", (0.5, product.max()), (0, 4), **where)
        right.set(xlabel="π(1, 1) = 1 − π(2, 2)", ylabel="return of an episode", title="a joint one that never splits")
    return fig


def scaling(steps: pd.DataFrame, spread: pd.DataFrame) -> Figure:
    """A training step's time and memory, and the spread of scores, against the number of actions.

    steps: method, actions, seconds_per_step, peak_mb, valid_fraction; spread: actions, a column for each of `SCORES`.
    """
    with page():
        fig, axes = plt.subplots(2, 2, figsize=(PAGE, 5.6), layout="constrained", sharex=True)
        time, memory, dispersion, share = axes.flat
        for label, its in steps.groupby("method", sort=False):
            for ax, values in ((time, 1000 * its["seconds_per_step"]), (memory, its["peak_mb"])):
                _line(ax, its["actions"], values, method(str(label)))
        for column, look in SCORES.items():
            _line(dispersion, spread["actions"], spread[column], look)
        its = steps[steps["method"] == "iar-a2c"]
        share.plot(its["actions"], 100 * its["valid_fraction"], "o-", color=GREY)
        titles = {time: "milliseconds an environment step", memory: "peak memory, MB",
                  dispersion: "spread of the score", share: "valid share of the actions, %"}  # fmt: skip
        for ax, title in titles.items():
            ax.set(xscale="log", yscale="log" if ax is not share else "linear", title=title)
            if ax is not share:
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ax is memory else (1,)))
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter(NullFormatter())
        share.set_ylim(0, 100)
        for ax in axes[1]:
            ax.set_xlabel("number of actions")
        fig.draw_without_rendering()
        for ax in (time, dispersion):
            name_ends(ax, line_ends(ax))
    return fig


def _line(ax: Axes, x, y, look: Method) -> None:
    its: dict[str, Any] = dict(color=look.colour, fillstyle=look.fill, label=look.name)
    ax.plot(np.asarray(x), np.asarray(y), look.marker, linestyle="-", **its)


def stuck(
    stay: np.ndarray, none_pays: np.ndarray, ends: Mapping[str, Sequence[float]], looks: Mapping[str, Method]
) -> Figure:
    """A histogram of what allocations are worth, grey where no move of one resource pays; ticks where runs ended.

    stay: returns of staying (n,); none_pays: (n,) bool; ends, looks: returns, and how they are shown, by label.
    """
    with page():
        fig, ax = plt.subplots(figsize=(0.8 * PAGE, 3.1), layout="constrained")
        both = ["no move of one resource pays", "one does"]
        counts, *_ = ax.hist([stay[none_pays], stay[~none_pays]], range(-80, 60, 10), stacked=True,
                             color=[GREY, "#C8C8C8"], label=both)  # fmt: skip
        top = np.max(counts)
        for i, (label, values) in enumerate(ends.items()):
            look = looks[label]
            ax.vlines(values, 0, (0.12 + 0.05 * i) * top, color=look.colour, linestyle=look.dashes, linewidth=1.6)
            ax.plot(values, np.full(len(values), (0.12 + 0.05 * i) * top), look.marker, color=look.colour,
                    label=f"{look.name} ended here")  # fmt: skip
        fig.legend(fontsize=8, loc="outside upper center", ncols=2)
        ax.set(xlabel="return of staying there", ylabel=f"allocations, of {len(stay):,} drawn")
    return fig


def door(curves: Mapping[tuple[str, bool], np.ndarray], looks: Mapping[str, Method], steps: np.ndarray) -> Figure:
    """P(first choice is 0) in training, without and with the narrow door: thick executed, thin drawn; mean over seeds.

    curves: by name and whether there is the door, (seeds, points, 2): drawn and executed.
    """
    with page():
        fig, axes = plt.subplots(1, 2, figsize=(PAGE, 3), sharey=True, layout="constrained")
        for (name, constrained), values in curves.items():
            look, (drawn, executed) = looks[name], values.mean(0).T
            how: dict[str, Any] = dict(color=look.colour, linestyle=look.dashes)
            axes[int(constrained)].plot(steps, executed, label=name, **how)
            axes[int(constrained)].plot(steps, drawn, linewidth=0.8, alpha=0.7, **how)
        for width, what in ((1.5, "thick: of what is executed"), (0.8, "thin: of what is drawn")):
            axes[1].plot([], [], color=GREY, linewidth=width, label=what)
        for ax, title in zip(axes, ("no constraint", "narrow door"), strict=True):
            ax.set(title=title, xlabel="environment steps", ylim=(-0.02, 1.02), xlim=(0, None))
        axes[0].set_ylabel("P(first choice is 0)")
        found = {line.get_label(): line for ax in axes for line in ax.get_legend_handles_labels()[0]}
        fig.legend(list(found.values()), list(found), loc="outside upper center", ncols=3, handlelength=3)
    return fig


def first_choices(rows: pd.DataFrame) -> Figure:
    """What is refused of AR+IAR and Factored+IAR in training, a panel a city; thin: what the first choice had lost.

    rows: environment, method, seed, env_steps, refused, dead_end.
    """
    with page():
        cities = rows["environment"].unique()
        fig, axes = plt.subplots(1, len(cities), figsize=(PAGE, 3), sharey=True, layout="constrained")
        panels = dict(zip(cities, axes, strict=True))
        for city, ax in panels.items():
            for label in dict.fromkeys(rows["method"]):
                which = (rows["environment"] == city) & (rows["method"] == label)
                _refused(ax, pd.DataFrame(rows[which]), method(label))
            ax.set(title=city, xlabel="thousand steps", ylabel="", ylim=(-2, 102), xlim=(0, None))
        axes[0].set_ylabel("percent of the policy's draws")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _refused(ax: Axes, its: pd.DataFrame, look: Method) -> None:
    """Means over seeds and their range: thick what is refused, thin what the first choice had lost."""
    for column, width, what in (("refused", 1.6, "refused"), ("dead_end", 0.8, "lost with the first choice")):
        how: dict[str, Any] = dict(color=look.colour, linestyle=look.dashes, linewidth=width)
        if width < 1:
            how |= dict(marker=look.marker, markersize=3.5, markeredgewidth=0)
        sns.lineplot(x=its["env_steps"] / 1000, y=100 * its[column], ax=ax, errorbar=("pi", 100), legend=False,
                     label=f"{look.name}: {what}", **how)  # fmt: skip


def one_slice(side: np.ndarray, region: np.ndarray, tries: np.ndarray) -> Figure:
    """The plane of a slice, shaded where the oracle says yes (n, n); its ellipse; the tries' angles, the last valid."""
    with page():
        fig, ax = plt.subplots(figsize=(0.62 * PAGE, 4), layout="constrained")
        ax.contourf(side, side, region, levels=[0.5, 1.5], colors=["#cfe3d4"])
        circle = np.linspace(0, 2 * np.pi, 400)
        ax.plot(np.cos(circle), np.sin(circle), color=GREY, linewidth=1)
        ax.plot(np.cos(tries[:-1]), np.sin(tries[:-1]), "x", color=MISSED, label="refused")
        ax.plot(np.cos(tries[-1:]), np.sin(tries[-1:]), "o", color=SERVED, label="accepted")
        ax.plot(1, 0, "s", color="black", label="where the chain was")
        for i, angle in enumerate(tries, 1):
            ax.annotate(str(i), (np.cos(angle), np.sin(angle)), (5, 3), textcoords="offset points", fontsize=8,
                        path_effects=HALO)  # fmt: skip
        ax.set(xlabel="share of ε", ylabel="share of ν", aspect="equal", title="one slice; shaded: valid")
        ax.legend(loc="lower left")
    return fig


def mixing(laws: Mapping[str, np.ndarray], chains: pd.DataFrame, missed: pd.DataFrame) -> Figure:
    """How near chains come: total variation to π' against oracle calls, and what the gradient through them misses.

    laws: by city, total variation after 0, 1, … sweeps; chains: kernel, calls, total_variation; missed: index sweeps, a
    column a start.
    """
    with page():
        fig, axes = plt.subplots(1, 2, figsize=(PAGE, 3.5), layout="constrained")
        shades = plt.get_cmap(ORDERED)(np.linspace(0.25, 1, len(laws)))
        for shade, (name, values) in zip(shades, laws.items(), strict=True):
            calls = 4 * np.arange(1, len(values))  # three dimensions, then some together
            axes[0].plot(calls, values[1:], color=shade, label=f"{name}, exact")
        for look, (kernel, rows) in zip(VARIANTS, chains.groupby("kernel", sort=False), strict=False):
            seen = dict(color=look.colour, label=KERNELS[str(kernel)])
            if kernel == "sweep":  # rings, as other kernels lie at nearly the same places
                seen |= dict(fillstyle="none", markersize=11, zorder=4)
            axes[0].plot(rows["calls"], rows["total_variation"], "o" if kernel == "sweep" else look.marker, **seen)
        axes[0].set(xscale="log", yscale="log", ylim=(5e-3, 1.2), xlabel="oracle calls of a chain")
        axes[0].set_title("total variation to π'")
        for look, name in zip(VARIANTS[5:], missed, strict=False):
            its = dict(marker=look.marker, linestyle=look.dashes, color=look.colour)
            axes[1].plot(missed.index[1:], missed[name].iloc[1:], label=f"chains from {name}", **its)
        axes[1].set(xscale="log", xlabel="sweeps", title="gradient missed, as a share of it")
        axes[1].legend()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def step_sizes(sizes: Mapping[str, np.ndarray], updates_of: int) -> Figure:
    """Sizes of optimisers' updates, in learning rates, by the optimiser's name; updates_of: environment steps each."""
    with page():
        fig, ax = plt.subplots(figsize=(0.8 * PAGE, 3), layout="constrained")
        for look, (name, size) in zip(VARIANTS, sizes.items(), strict=False):
            steps = updates_of * np.arange(1, len(size) + 1)
            ax.plot(steps, size, color=look.colour, linestyle=look.dashes, label=name)
        ax.set(xscale="log", yscale="log", xlabel=f"environment steps ({updates_of} an update)")
        ax.set_ylabel("size of a step, in learning rates")
        fig.draw_without_rendering()
        name_ends(ax, line_ends(ax))
    return fig
