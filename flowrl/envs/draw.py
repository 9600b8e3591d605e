"""A city as a picture: districts shaded by severity, roads, the resources where they are, the last emergency."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .city import City

RESOURCES = ("#651364", "#D802AC", "#6E87FF", "#96470C", "#19AA5E", "#6E0B25", "#0105BF", "#4755FE")
SERVED, MISSED, ROAD, INK = "#2AA84F", "#8B0000", "#B8BCC4", "#30343B"


def layout(hops: np.ndarray, tries: int = 20) -> np.ndarray:
    """hops: (K, K) → positions (K, 2) whose distances resemble hops: stress majorisation, the best of seeded starts."""
    K, rng = len(hops), np.random.default_rng(0)
    x = rng.normal(size=(tries, K, 2))
    for _ in range(300):  # Guttman transform: x ← B(x) x / K, B_ij = −hops_ij / |x_i − x_j|, rows summing to 0
        distance = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
        ratio = hops / np.maximum(distance, 1e-9)
        x = (ratio.sum(-1, keepdims=True) * x - ratio @ x) / K
    stress = ((np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) - hops) ** 2).sum((1, 2))
    best = x[stress.argmin()]
    return (best - best.mean(0)) @ np.linalg.svd(best - best.mean(0))[2].T  # the widest direction lies flat


def places(city: City) -> np.ndarray:
    """(K, 2): where a city's districts are drawn, on its map where it has one, else by `layout`."""
    drawn = city.map or {}
    return np.array(drawn["places"]) if "places" in drawn else layout(city.hops)


def draw_city(city: City, allocation: Sequence[int], emergency: int | None, caption: str = "") -> np.ndarray:
    """allocation: (D,) districts; emergency: a district, None for none yet → (480, 640, 3) uint8."""
    figure = Figure(figsize=(6.4, 4.8), dpi=100)
    canvas, axis = FigureCanvasAgg(figure), figure.add_axes((0.02, 0.1, 0.8, 0.82))
    place, small = places(city), min(1.0, (12 / city.districts) ** 0.5)
    price = np.array([edge[2] for edge in city.edges])
    for (i, j, _), width in zip(city.edges, 2 + 6 * (1 - price / max(price.max(), 1e-9)), strict=True):
        axis.plot(*place[[i, j]].T, color=ROAD, linewidth=width * small, solid_capstyle="round", zorder=1)
    severity = np.subtract(city.covered, city.uncovered) / 2
    norm = Normalize(severity.min() - 0.1, severity.max() + 0.1)
    shade, dark = ScalarMappable(norm, "Greys"), np.asarray(norm(severity)) > 0.55
    look = {"c": severity, "cmap": shade.cmap, "norm": norm, "edgecolors": INK}
    axis.scatter(*place.T, s=1100 * small**2, linewidths=1, zorder=2, **look)
    if emergency is not None:
        ring = SERVED if emergency in allocation else MISSED
        axis.scatter(
            *place[emergency],
            s=1900 * small**2,
            facecolors="none",
            edgecolors=ring,
            linewidths=5 * small,
            zorder=3,
            clip_on=False,
        )
    for k, (x, y) in enumerate(place):
        colour = "white" if dark[k] else INK
        axis.annotate(str(k), (x, y), ha="center", va="center", fontsize=12 * small, color=colour, zorder=4)
        _badges(axis, (x, y), [r for r, district in enumerate(allocation) if district == k])
    figure.legend(handles=_legend(), loc="lower center", frameon=False, ncols=4, fontsize=10, columnspacing=1.5)
    figure.colorbar(shade, cax=figure.add_axes((0.86, 0.2, 0.02, 0.62)), label="severity (reward if served)")
    figure.suptitle(f"{city.name}   {caption}", fontsize=14, color=INK)
    axis.margins(0.12)
    axis.set_aspect("equal", adjustable="datalim")
    axis.axis("off")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _badges(axis, xy: tuple[float, float], resources: Sequence[int]) -> None:
    """The resources in one district, lettered squares in a row above it."""
    for slot, r in enumerate(resources):
        box = {"boxstyle": "round,pad=0.3", "facecolor": RESOURCES[r % len(RESOURCES)], "edgecolor": "white"}
        shift = (18 * (slot - (len(resources) - 1) / 2), 23)
        axis.annotate(
            chr(ord("A") + r),
            xy,
            xytext=shift,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10.5,
            color="white",
            weight="bold",
            zorder=5,
            bbox=box,
        )


def _legend() -> list[Line2D]:
    rings = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            markersize=11,
            markerfacecolor="none",
            markeredgewidth=3,
            markeredgecolor=colour,
            label=label,
        )
        for colour, label in ((SERVED, "served"), (MISSED, "missed"))
    ]
    return [
        Line2D([], [], marker="s", linestyle="", markersize=9, color=RESOURCES[0], label="resource"),
        *rings,
        Line2D([], [], color=ROAD, linewidth=5, label="road (thick: cheap)"),
    ]
