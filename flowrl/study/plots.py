"""Looks and the parts of figures: data and an axis in, an axis out; one colour, one meaning.

A method has its colour, dashes and marker for good, and so has each correction for rejection. All else that has no
order shares `VARIANTS`, colours of no method and no correction, and what each stands for is its figure's own:
of estimators always the same; what two figures show has one look in both (`SHARED`). Ordered quantities have shades.
Colours are told apart under the common colour-vision deficiencies (Okabe & Ito, and Tol); dashes and markers say the
same once more. What is drawn comes from records alone: nothing here trains, samples or knows an environment.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from .records import Record, by_environment, by_label, matrix, sources
from .stats import above, bootstrap_interval, iqm, normalised_score, on_common_grid

plt.switch_backend(plt.get_backend())  # now: inside rc_context a notebook's first figure would be its last to be shown
logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the dates of matplotlib's own fonts


class Method(NamedTuple):
    """How a run's label is shown."""

    name: str
    colour: str
    dashes: str | tuple
    marker: str
    fill: str = "full"


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
    "iar-a2c-q": Method("Gumbel flow, action values", "#000048", (0, (4, 1)), "d"),
}
CORRECTIONS = {  # of the gradient, for rejection
    "leave_one_out": Method("leave-one-out", "#3C3CC3", "-", "o"),
    "mean": Method("mean, 1/l", "#D2B43C", (0, (6, 1.5, 1.5, 1.5)), "D"),
    "none": Method("none", "#7A7A7A", (0, (1, 1.2)), "v"),
    "paper": Method("S/l² (printed)", "#D20F3C", (0, (5, 1.5)), "s"),
}
VARIANTS = [  # of a method, in their order: colours that are no method's and no correction's
    Method("", "#E10FA5", (0, (6, 1.5, 1.5, 1.5)), "^"),
    Method("", "#78C396", (0, (2.5, 1.2)), "D"),
    Method("", "#4B1E3C", (0, (1, 1)), "v"),
    Method("", "#BD77FF", (0, (4, 1, 1, 1, 1, 1)), "P"),
    Method("", "#2D3C00", (0, (8, 2)), "X"),
    Method("", "#6ADBEB", (0, (3, 1, 1, 1)), "<"),
    Method("", "#8C6E5A", (0, (1, 2)), "p"),
    Method("", "#3F40FC", (0, (10, 1.5, 1, 1.5)), ">"),
]
ESTIMATORS = {  # of log π, or of its gradient alone
    kind: look._replace(name=name)
    for look, (kind, name) in zip(
        VARIANTS,
        {
            "elbo": "ELBO",
            "cubo": "CUBO",
            "sandwich": "sandwich",
            "iwae": "IWAE",
            "latent": "latent score",
            "cis": "conditional importance sampling (cis)",
            "rb": "averaged over equal actions (rb)",
            "pathwise": "pathwise score",
        }.items(),
        strict=True,
    )
}
SHARED = {  # runs that several figures show, by label
    "recipe-latent": ESTIMATORS["latent"],
    "sandwich": ESTIMATORS["sandwich"],
    "recipe-affine": VARIANTS[1],
    "affine": VARIANTS[1],
    "recipe-fast-couplings": VARIANTS[5],
}
CATEGORIES = ("#3A658D", "#63BF5D", "#833018")  # the first three values of a choice
ORDERED = "viridis_r"  # the greater the darker
AGAIN = ("full", ""), ("none", (0, (9, 3))), ("left", (0, (1, 1.2)))  # runs that share a colour: fill and dashes
REFERENCES = {"optimal": "optimum", "go_and_stay": "go and stay", "uniform_valid": "random"}
PLACES = {  # what figures call environments, where that is not their name
    "unseen-1": "First new city",
    "unseen-2": "Second new city",
    "authors-v3": "The authors' city v3",
    "authors-v4": "The authors' city v4",
    "ERA-L-6x10": "6 resources in 10 districts, a million actions",
    "Line-12x10": "A row of 12 resources at 10 levels each",
    "Joint-Cstr": "Two resources on a ring, at most one hop apart",
    "Pistonball-v1": "5 pistons, 243 actions",
    "Pistonball-v2": "8 pistons, 6,561 actions",
    "Pistonball-v3": "10 pistons, 59,049 actions",
    "Pistonball-v1-cstr": "5 pistons, constrained",
    "Pistonball-v2-cstr": "8 pistons, constrained",
    "ERA-v5-free": "ERA-v5 without constraints",
}
FINAL_STEP = 0.06  # of the steps, from one run's final scores to the next's
FINAL = "; markers: each seed's final policy"
LOWEST_SCORE = -0.5  # that a strip of final scores has room for
SCORE_TICKS = (-0.5, 0, 0.5, 0.8, 0.9, 0.95, 1)
HALO = [withStroke(linewidth=2, foreground="white")]  # round type that lies on lines
GREY, WARNING = "#555555", "#a00000"
PAGE = 6.9  # inches, 828 pixels: the width of README and site

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
ON_A_PAGE: dict[Any, Any] = STYLE | {  # no type below 7 points: 12 pixels
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.dpi": 120,
}


@contextmanager
def style():
    """The one style, for as long as a figure is made or saved."""
    with plt.rc_context(STYLE):
        yield


@contextmanager
def page():
    """The same for a figure as wide as a page, `PAGE`, that is shown at its own size."""
    with plt.rc_context(ON_A_PAGE):
        yield


def method(label: str) -> Method:
    """How a run's label is shown. Raises ValueError for one that has no colour yet."""
    if label not in METHODS:
        raise ValueError(f"no colour for run {label!r} in flowrl/study/plots.py; there are: {', '.join(METHODS)}")
    return METHODS[label]


def variants(titles: dict[str, str]) -> dict[str, Method]:
    """The looks of an ablation's runs, by label: methods and `SHARED` keep theirs, the others get `VARIANTS` in turn.

    Those whose dashes are a method's in the same figure come last.
    """
    fixed = METHODS | SHARED
    own, worn = [label for label in titles if label not in fixed], [fixed[label] for label in titles if label in fixed]
    left = [look for look in VARIANTS if look.colour not in {each.colour for each in worn}]
    if len(own) > len(left):
        raise ValueError(f"{len(own)} runs are too many to tell apart; at most {len(left)} beside the others")
    taken = {look.dashes for look in worn}
    looks = fixed | dict(zip(own, sorted(left, key=lambda look: look.dashes in taken), strict=False))
    return {label: looks[label]._replace(name=title) for label, title in titles.items()}


def coloured_by(setting: str, values: dict[str, Any], titles: dict[str, str]) -> dict[str, Method]:
    """Looks by label where the colour of a run stands for a setting, whose value in each run is given.

    setting "method", "correction" or "estimator": theirs; any other is a number, the greater the darker. Runs of equal
    value differ in fill and dashes.
    """
    numbers = sorted(set(values.values()))
    if setting in (named := {"method": METHODS, "correction": CORRECTIONS, "estimator": ESTIMATORS}):
        known = named[setting]
    else:
        shades = map(to_hex, plt.get_cmap(ORDERED)(np.linspace(0.15, 1, len(numbers))))
        known = {n: Method("", *look) for n, *look in zip(numbers, shades, "-" * len(numbers), "osD^v<>", strict=False)}
    found, seen = {}, Counter()
    for label, value in values.items():
        fill, dashes = AGAIN[seen[value]]
        seen[value] += 1
        found[label] = known[value]._replace(name=titles[label], fill=fill, dashes=dashes or known[value].dashes)
    return found


def place(runs: list[Record]) -> str:
    """What figures call the environment of these runs."""
    name: str = runs[0].facts["environment"]
    return PLACES.get(name, name)


def return_column(group: list[Record]) -> str:
    """`exact_return` where all runs of a group have it, with more than one value each; else `eval_return_mean`."""
    exact = [run.curve.get("exact_return") for run in group]
    return "exact_return" if all(x is not None and x.count() > 1 for x in exact) else "eval_return_mean"


def returns_drawn(runs: list[Record], names: dict[str, str]) -> str:
    """For a caption: what the points of lines of returns are, as `learning_curve` draws them, and what their ends."""
    kinds: dict[str, set[bool]] = {label: set() for label in by_label(runs)}
    for group in by_environment(runs).values():
        for label, its in by_label(group).items():
            kinds[label].add(return_column(its) == "exact_return")
    exact = [names[label] for label, kind in kinds.items() if kind == {True}]
    sampled = [run for run in runs if False in kinds[run.facts["label"]]]
    text, straight = " Returns: " + "exact" * (not sampled), ""
    if sampled:
        reaches = [reach(len(run.curve)) for run in sampled]
        around = _span(1 + 2 * each for each in reaches)
        episodes = f"{_span(run.facts['config']['eval_episodes'] for run in sampled)} episodes"
        means = f"the mean of {around} evaluations of {episodes} around it, fewer at the start"
        text += f"a point is {means if around != '1' else f'an evaluation of {episodes}'}"
        text += f"; exact: {' · '.join(exact)}" * bool(exact)
        if any(reaches):
            straight = f"; means are joined to them by a straight line over the last {_span(reaches)} evaluations"
        if any(map(_above_optimum, sampled)):
            straight += ". A mean above the optimum is chance: no policy is"
    return f"{text}. Lines end at the final policies{_ends_drawn(runs, names)}{straight}."


def _above_optimum(run: Record) -> bool:
    """Whether a point of a run's line of means lies above what any policy has."""
    best = (run.facts["reference"] or {}).get("optimal")
    return best is not None and bool(_curve(run, run.curve.env_steps, "eval_return_mean")[1].max() > best + 1e-6)


def _ends_drawn(runs: list[Record], names: dict[str, str]) -> str:
    """What the returns of final policies are: exact, or over how many episodes."""
    sampled = [run for run in runs if run.facts["final_exact_return"] is None]
    whose = ", ".join(names[label] for label in by_label(sampled))
    if not sampled:
        return ", exact"
    episodes = f"{_span(run.facts['config']['final_episodes'] for run in sampled)} episodes"
    return f", {episodes}" if len(sampled) == len(runs) else f", exact but for {whose}: {episodes}"


def _span(values: Iterable[int]) -> str:
    """One number, or the least and the greatest of several."""
    return " to ".join(map(str, sorted({min(found := list(values)), max(found)})))


def scored(run: Record) -> Record:
    """A run whose returns, of episodes and exact, are normalised scores: 0 random valid actions, 1 the optimum."""
    known = run.facts["reference"]
    columns = [name for name in ("eval_return_mean", "exact_return") if name in run.curve]
    final = {name: normalised_score(run.facts[name], known) for name in ("final_return_mean", "final_exact_return")}
    reference = {key: normalised_score(known[key], known) for key in REFERENCES}
    curve = run.curve.assign(**{name: normalised_score(run.curve[name], known) for name in columns})
    return run._replace(curve=curve, facts=run.facts | final | {"reference": reference})


def learning_curve(
    ax: Axes, runs: list[Record], column: str | None = None, looks: dict[str, Method] | None = None,
    x: Callable[[Record], pd.Series] = lambda run: run.curve.env_steps, log: bool = False,
) -> Axes:  # fmt: skip
    """A line a label: interquartile mean over seeds, its 95 % bootstrap interval, against environment steps or x.

    column: default the return, as `return_column` says; what its points are, `_curve` says. log: x is logarithmic;
    lines begin at the first x above zero.
    """
    for label, group in by_label(runs).items():
        look = looks[label] if looks else method(label)
        steps, values = on_common_grid([_curve(run, x(run), column or return_column(group)) for run in group])
        if log:
            steps, values = steps[steps > 0], values[:, steps > 0]
        low, high = bootstrap_interval(values[:, None], np.random.default_rng(0))
        zorder = 4 if label == "iar-a2c" else 3
        marked: dict[str, Any] = dict(marker=look.marker, markevery=[], fillstyle=look.fill)  # in a legend alone
        ax.plot(steps, iqm(values), color=look.colour, linestyle=look.dashes, label=look.name, zorder=zorder, **marked)
        ax.fill_between(steps, low, high, color=look.colour, alpha=0.15, linewidth=0)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 5, 10]))
    ax.margins(x=0)
    if not log:
        ax.set_xlim(left=0)
    return ax


def _curve(run: Record, x: pd.Series, column: str) -> tuple[np.ndarray, np.ndarray]:
    """x and a column of a run. Returns, exact or by episodes, end with the final policy's, as `final_returns` has it.

    Exact ones are those of the few evaluations that have one; those by episodes are `centred` means.
    """
    xs, values = np.asarray(x, dtype=float), np.asarray(run.curve[column], dtype=float)
    if column not in ("exact_return", "eval_return_mean"):
        return xs, values
    if column == "exact_return":
        before = np.isfinite(values) & (xs < xs[-1])
        earlier = xs[before], values[before]
    else:
        means = centred(values, reach(len(values)))[: len(values) - 1]
        earlier = xs[: len(means)], means
    return np.append(earlier[0], xs[-1]), np.append(earlier[1], final_returns([run]))


def reach(evaluations: int) -> int:
    """How many evaluations on either side enter a point: ten, and no more than a quarter of the run in all."""
    return min(10, evaluations // 8)


def centred(values: np.ndarray, reach: int) -> np.ndarray:
    """Means of each value (n,) and of `reach` on either side → (n − reach,): none where there are not as many after it.

    At the start as many on either side as there are before: no point lags, or lies where nothing was recorded.
    """
    total, i = np.append(0, np.cumsum(values)), np.arange(len(values) - reach)
    side = np.minimum(i, reach)
    return (total[i + side + 1] - total[i - side]) / (2 * side + 1)


def final_returns(group: list[Record]) -> np.ndarray:
    """The returns of each seed's final policy: exact where that is known, else the mean over episodes."""
    facts = [run.facts for run in group]
    exact = [f["final_exact_return"] for f in facts]
    return np.array([f["final_return_mean"] if e is None else e for f, e in zip(facts, exact, strict=True)])


def final_scores(ax: Axes, runs: list[Record], looks: dict[str, Method] | None = None) -> dict[str, float]:
    """A marker a seed, right of the curves: the return of its final policy; what they are on average, by name."""
    last, groups = max(run.curve["env_steps"].iloc[-1] for run in runs), by_label(runs)
    ends = {}
    for i, (label, group) in enumerate(groups.items()):
        look, returns = looks[label] if looks else method(label), final_returns(group)
        x = np.full(len(returns), last * (1.05 + FINAL_STEP * i))
        size, edge = 10 if look.marker == "*" else 7, "white" if look.fill == "full" else look.colour
        its: dict[str, Any] = dict(markersize=size, markeredgewidth=0.7, markeredgecolor=edge, zorder=5)
        ax.plot(x, returns, look.marker, color=look.colour, fillstyle=look.fill, **its)
        ends[look.name] = float(returns.mean())
    ax.set_xlim(right=last * (1.05 + FINAL_STEP * len(groups)))
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= last])  # nothing is recorded right of it
    return ends


def reference_lines(ax: Axes, reference: dict, names: dict[str, str] = REFERENCES) -> Axes:
    """Lines at the exact returns: optimum dashed, go-and-stay and random dotted; those in `names` bear these."""
    for key in REFERENCES:
        dashed = key == "optimal"
        ax.axhline(reference[key], color="black" if dashed else GREY, linestyle="--" if dashed else ":", linewidth=1.2)
        if key in names:
            above_it = key != "go_and_stay" or ax.get_yscale() == "function"  # `stretch` leaves room there
            offset: dict[str, Any] = dict(xycoords=ax.get_yaxis_transform(), textcoords="offset points", zorder=6)
            ax.annotate(names[key], (0, reference[key]), (4, 1 if above_it else -2), **offset, fontsize=8, color=GREY,
                        va="bottom" if above_it else "top", path_effects=HALO)  # fmt: skip
    return ax


def stretch(ax: Axes, which: str) -> None:
    """Scores on the "x" or "y" axis: linear about the optimum, 1, logarithmic in the distance to it further away."""
    axis, width = getattr(ax, f"{which}axis"), 0.08

    def forward(score):
        return -np.arcsinh((1 - np.asarray(score)) / width)

    getattr(ax, f"set_{which}scale")("function", functions=(forward, lambda y: 1 + width * np.sinh(y)))
    axis.set_major_locator(FixedLocator(SCORE_TICKS))
    axis.set_major_formatter(FixedFormatter([f"{tick:g}".replace("-", "−") for tick in SCORE_TICKS]))
    axis.set_minor_locator(FixedLocator([]))


def line_ends(ax: Axes) -> dict[str, float]:
    """The last y of every line, by its name."""
    return {str(line.get_label()): float(np.asarray(line.get_ydata())[-1]) for line in ax.lines}


def name_ends(ax: Axes, ends: dict[str, float]) -> None:
    """A name right of the axes for every line, in its colour, joined to where the line ends by a thin one.

    ends: by the line's name, its last y. From one name to the next there are ten points, at least.
    """
    lines = {line.get_label(): line for line in ax.lines}
    height = 72 * ax.bbox.height / ax.figure.dpi
    order = sorted((name for name in ends if np.isfinite(ends[name])), key=lambda name: -ends[name])
    low, high = ax.transAxes.inverted().transform(ax.transData.transform([(1, ends[name]) for name in order]))[:, 1], 1
    places = spread(np.clip(low, 0, high), 10 / height)
    for name, end, place in zip(order, np.clip(low, 0, high), places, strict=True):
        colour = lines[name].get_color()
        arrow: dict[str, Any] = dict(arrowstyle="-", color=colour, linewidth=0.6, shrinkA=0, shrinkB=0, relpos=(0, 0.5))
        ax.annotate(name, (1, end), (1.06, place), xycoords="axes fraction", textcoords="axes fraction", fontsize=8,
                    color=colour, va="center", arrowprops=arrow, annotation_clip=False)  # fmt: skip


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Descending places moved apart until each is at least `gap` below the one before, as little as that takes."""
    shift = gap * np.arange(len(places))
    wanted = places + shift  # then it is enough that they do not ascend: the nearest such in least squares
    return isotonic_regression(wanted, increasing=False).x - shift


def profile(ax: Axes, runs: list[Record], value: Callable[[Record], float | None], thresholds: np.ndarray) -> Axes:
    """Performance profiles: a line a label, the share of its runs whose value is above a threshold, against that."""
    for label, group in by_label(runs).items():
        name, colour, dashes, _, _ = method(label)
        over = above(matrix(group, value), thresholds)
        ax.plot(thresholds, over.mean((0, 1)), color=colour, linestyle=dashes, label=name)
        low, high = bootstrap_interval(over, np.random.default_rng(0), np.mean)
        ax.fill_between(thresholds, low, high, color=colour, alpha=0.12, linewidth=0)
    ax.set_ylim(-0.02, 1.02)
    ax.margins(x=0)
    return ax


def final_strip(ax: Axes, rows: list[tuple[str, Method | None, list[Record]]], usual: list[Record]) -> Axes:
    """A row a run: each seed's final score, exact where that is known, 0 for random and 1 for the optimum; the mean.

    rows: a name, its look and its records; a heading has none. Scores below `LOWEST_SCORE` stand at the left edge, by
    their values. Band: from the least to the greatest seed of the `usual` run.
    """
    for row, (_, look, group) in enumerate(rows):
        if look:
            _final_row(ax, row, look, final_returns([scored(run) for run in group]))
    stay = scored(usual[0]).facts["reference"]["go_and_stay"]
    for x, name, dashes in ((stay, "go and stay", ":"), (1, "optimum", "--")):
        ax.axvline(x, color=GREY if dashes == ":" else "black", linestyle=dashes, linewidth=1.2)
        ax.text(x, 1, name, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=8, color=GREY)
    its = final_returns([scored(run) for run in usual])
    ax.axvspan(its.min(), its.max(), color="#dddddd", zorder=0, linewidth=0)
    stretch(ax, "x")
    ax.set_xlim(LOWEST_SCORE - 0.1, 1.04)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    for tick, (_, look, _) in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("normal" if look else "bold")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("final score: 0 random valid actions, 1 optimum")
    return ax


def _final_row(ax: Axes, row: int, look: Method, scores: np.ndarray) -> None:
    """A marker a seed, a bar at their mean; those below what the axis has room for by their values."""
    shown, off = scores[scores >= LOWEST_SCORE], scores[scores < LOWEST_SCORE]
    its: dict[str, Any] = dict(color=look.colour, fillstyle=look.fill, alpha=0.85, markersize=5, zorder=4)
    ax.plot(shown, np.full(len(shown), row), look.marker, **its)
    if scores.mean() >= LOWEST_SCORE:
        ax.plot(scores.mean(), row, "|", color="black", markersize=11, zorder=5)
    if len(off):
        text = "← " + ", ".join(f"{score:.1f}".replace("-", "−") for score in np.sort(off))
        ax.annotate(text, (LOWEST_SCORE, row), va="center", fontsize=8, color=look.colour)


def save(fig: Figure, stem: Path, runs: Sequence[Record] = (), tables: Sequence[str] = (), computed: str = "") -> None:
    """Write <stem>.pdf and <stem>.png, which name what they are drawn from; equal figures are equal bytes.

    runs: records; tables: files in the project's folder, named by their paths there; computed: by what, and from which
    seed where there is chance. ValueError where none of these is given.
    """
    parts = [sources(list(runs))] if runs else []
    parts += [f"Drawn from {', '.join(tables)}."] if tables else []
    parts += [f"Computed by {computed}."] if computed else []
    if not parts:
        raise ValueError(f"say what {Path(stem).name} is made of: runs, tables or what computed it")
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    said = " ".join(parts)
    with style():
        nameless = {"CreationDate": None, "Producer": None, "Creator": None}
        fig.savefig(f"{stem}.pdf", metadata=nameless | {"Subject": said})
        fig.savefig(f"{stem}.png", metadata={"Software": None, "Description": said})
