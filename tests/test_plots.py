"""Looks, and what the parts of figures show, asked of the artists that were drawn."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import record
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from flowrl.envs import draw
from flowrl.study import plots
from flowrl.study.config import METHODS
from flowrl.study.records import ROOT, by_label, load
from flowrl.study.stats import iqm


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def v1(fake_records):
    """The records of one environment, several runs of three seeds."""
    return load("figA2b", fake_records("figA2b"), "quick")


def test_every_method_has_its_own_look():
    assert set(METHODS) <= set(plots.METHODS)
    looks = plots.METHODS.values()
    for field in ("name", "colour", "dashes", "marker"):
        assert len({getattr(look, field) for look in looks}) == len(plots.METHODS), field


ALL = np.eye(3)
# Viénot, Brettel & Mollon 1999: linear RGB as seen without long- or middle-wave cones
PROTAN = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
DEUTAN = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])


def _lab(colour, vision):
    """CIE L*a*b* (D65) of an sRGB colour as seen through a 3×3 matrix on linear RGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(vision @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", [ALL, PROTAN, DEUTAN], ids=["all cones", "protan", "deutan"])
def test_colours_are_told_apart(vision):
    """Methods from one another, corrections and variants from one another and from every method; each of the other
    palettes in itself and from methods and corrections."""
    others = [*plots.CORRECTIONS.values(), *plots.VARIANTS]
    methods, variants = ([_lab(look.colour, vision) for look in looks] for looks in (plots.METHODS.values(), others))
    for looks in (methods, variants):
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(looks, 2)) > 10
    assert min(np.linalg.norm(one - other) for one, other in itertools.product(methods, variants)) > 9
    fixed = methods + variants[: len(plots.CORRECTIONS)]
    estimators = [look.colour for look in plots.ESTIMATORS.values()]
    for palette in (estimators, plots.CATEGORIES, draw.RESOURCES, (draw.SERVED, draw.MISSED)):
        own = [_lab(colour, vision) for colour in palette]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(own, 2)) > 10
        assert min(np.linalg.norm(one - other) for one, other in itertools.product(own, fixed)) > 9


def test_unknown_label():
    with pytest.raises(ValueError, match="no colour for run 'mine'"):
        plots.method("mine")


def test_learning_curve_draws_the_iqm_of_each_label(v1):
    ax = plots.learning_curve(plt.subplots()[1], v1)
    labels = list(by_label(v1))
    assert [line.get_label() for line in ax.lines] == [plots.METHODS[label].name for label in labels]
    ours = [run for run in v1 if run.facts["label"] == "iar-a2c"]
    sampled = iqm(np.array([run.curve["eval_return_mean"] for run in ours]))
    reach = plots.reach(len(sampled))
    drawn, steps, middle = ax.lines[0].get_ydata(), ax.lines[0].get_xdata(), len(sampled) // 2
    np.testing.assert_allclose(drawn[middle], sampled[middle - reach : middle + reach + 1].mean())
    assert (reach, steps[middle], steps[-1]) == (
        5,
        ours[0].curve["env_steps"][middle],
        ours[0].curve["env_steps"].max(),
    )
    np.testing.assert_allclose(drawn[-1], np.mean([run.facts["final_exact_return"] for run in ours]))
    assert to_hex(ax.lines[0].get_color()) == plots.METHODS["iar-a2c"].colour.lower()
    assert len(ax.collections) == len(labels) > 3  # a band each


def test_centred_means_have_no_lag_and_stay_within_the_record():
    """Of a straight line they are that line, to where too few evaluations follow; the first is itself."""
    np.testing.assert_allclose(plots.centred(3.0 * np.arange(50), 10), 3.0 * np.arange(40))
    noise = np.random.default_rng(0).normal(size=20)
    expected = [noise[0], noise[:3].mean(), *(noise[i - 2 : i + 3].mean() for i in range(2, 18))]
    np.testing.assert_allclose(plots.centred(noise, 2), expected)
    np.testing.assert_allclose(plots.centred(noise, 0), noise)
    assert [plots.reach(n) for n in (3, 21, 41, 81, 141)] == [0, 2, 5, 10, 10]


def test_final_scores_draws_the_exact_return_of_every_seed(v1):
    ax = plt.subplots()[1]
    ends = plots.final_scores(ax, v1)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    facts = [run.facts for run in v1]
    known = [f["final_return_mean" if f["label"] == "wol-ddpg" else "final_exact_return"] for f in facts]
    np.testing.assert_allclose(drawn, known)
    ours = [value for value, f in zip(known, facts, strict=True) if f["label"] == "iar-a2c"]
    np.testing.assert_allclose(ends["flowrl recipe"], np.mean(ours))
    without = [run._replace(facts=run.facts | {"final_exact_return": None, "final_return_mean": -1.0}) for run in v1]
    ax = plt.subplots()[1]
    assert set(plots.final_scores(ax, without).values()) == {-1.0}
    assert {y for line in ax.lines for y in line.get_ydata()} == {-1.0}


def test_reference_lines(v1):
    reference = v1[0].facts["reference"]
    ax = plots.reference_lines(plt.subplots()[1], reference, {"optimal": "best"})
    assert [line.get_ydata()[0] for line in ax.lines] == [reference[key] for key in plots.REFERENCES]
    assert [text.get_text() for text in ax.texts] == ["best"]


def test_scored_runs_are_0_at_random_and_1_at_the_optimum():
    run = plots.scored(record("mask", [0] * 3, [-70, -45, -20], final=-30.0, exact_return=[-20, float("nan"), -70]))
    assert run.curve["eval_return_mean"].tolist() == [0, 0.5, 1]
    assert run.curve["exact_return"].dropna().tolist() == [1, 0]
    assert (run.facts["final_return_mean"], run.facts["final_exact_return"]) == (0.8, None)
    assert run.facts["reference"] == {"optimal": 1, "go_and_stay": 0.8, "uniform_valid": 0}


def test_stretched_axis_gives_the_plateau_room():
    ax = plt.subplots()[1]
    plots.stretch(ax, "y")
    ax.set_ylim(0, 1)
    half, plateau = ax.transAxes.inverted().transform(ax.transData.transform([(0, 0.5), (0, 0.9)]))[:, 1]
    assert 0 < half < 0.3 < plateau < 0.75
    transform = ax.transData + ax.transData.inverted()  # there and back
    np.testing.assert_allclose(transform.transform([(0, y) for y in (-3, 0.2, 1, 1.2)])[:, 1], [-3, 0.2, 1, 1.2])


def test_names_are_spread_no_further_than_must_be():
    places = plots.spread(np.array([0.9, 0.5, 0.49, 0.1]), 0.1)
    np.testing.assert_allclose(places, [0.9, 0.545, 0.445, 0.1])
    crowded = plots.spread(np.full(5, 0.3), 0.1)
    np.testing.assert_allclose(crowded, [0.5, 0.4, 0.3, 0.2, 0.1])


def test_names_stand_apart_at_the_ends_of_their_lines():
    fig, ax = plt.subplots()
    for name, end in (("low", 1.0), ("high", 1.01), ("lost", float("nan"))):
        ax.plot([0, 1], [0, end], label=name)
    fig.draw_without_rendering()
    plots.name_ends(ax, {"low": 1.0, "high": 1.01, "lost": float("nan")})
    fig.draw_without_rendering()
    high, low = sorted(ax.texts, key=lambda text: -text.xy[1])
    assert (high.get_text(), low.get_text()) == ("high", "low")
    assert high.get_color() == ax.lines[1].get_color()
    assert not high.get_window_extent().overlaps(low.get_window_extent())


def test_colours_stand_for_a_setting():
    titles = {"a": "A", "b": "B", "c": "C"}
    looks = plots.coloured_by("correction", {"a": "paper", "b": "none", "c": "paper"}, titles)
    assert [look.colour for look in looks.values()] == [plots.CORRECTIONS[k].colour for k in ("paper", "none", "paper")]
    assert (looks["a"].fill, looks["c"].fill, looks["c"].name) == ("full", "none", "C")
    assert looks["a"].dashes != looks["c"].dashes
    shades = plots.coloured_by("n_draws", {"a": 8, "b": 128, "c": 32}, titles)
    lightness = [_lab(shades[label].colour, ALL)[0] for label in ("a", "c", "b")]
    assert lightness == sorted(lightness, reverse=True)  # the greater the darker
    assert plots.coloured_by("method", {"a": "mask"}, titles)["a"].colour == plots.METHODS["mask"].colour


def test_variants_look_different_and_methods_keep_theirs():
    looks = plots.variants({"first": "1st", "mask": "the mask", "second": "2nd"})
    assert looks["mask"] == plots.METHODS["mask"]._replace(name="the mask")
    # the first variant's dashes are MASK's
    assert [looks[label].colour for label in ("first", "second")] == [look.colour for look in plots.VARIANTS[1:3]]
    with pytest.raises(ValueError, match="9 runs are too many to tell apart; at most 8 beside the others"):
        plots.variants({"mask": ""} | {str(k): "" for k in range(9)})


def test_learning_curve_against_x_in_given_looks():
    """Two seeds that ask at different paces: on the grid of the first, as far as both go, the second in between.

    Each ends with its final policy's return, not with its last evaluation's.
    """
    runs = [record("mask", [0, 40, 80], [0, 1, 9], final=2.0), record("mask", [0, 60, 120], [0, 3, 9], final=6.0)]
    looks = plots.variants({"mask": "a mask"})
    ax = plots.learning_curve(plt.subplots()[1], runs, looks=looks, x=lambda run: run.curve["oracle_calls"])
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xdata(), [0, 40, 80])
    np.testing.assert_allclose(line.get_ydata(), [0, (1 + 2) / 2, (2 + 4) / 2])
    assert line.get_label() == "a mask"


def test_final_strip_shows_exact_scores_their_mean_and_the_plateau():
    runs = [record("a", [0] * 3, [0] * 3, exact=-30.0), record("a", [0] * 3, [0] * 3, exact=-82.5),
            record("b", [0] * 3, [0] * 3, final=-45.0), record("b", [0] * 3, [0] * 3, final=-700.0)]  # fmt: skip
    looks = plots.variants({"a": "A", "b": "B"})
    rows = [("these", None, []), ("A", looks["a"], runs[:2]), ("B", looks["b"], runs[2:])]
    ax = plots.final_strip(plt.subplots()[1], rows, runs[:2])
    seeds_a, mean_a, seeds_b, stay, optimum = (line.get_xdata() for line in ax.lines)
    np.testing.assert_allclose(seeds_a, [0.8, -0.25])  # below random, where it is
    np.testing.assert_allclose(mean_a, 0.275)
    np.testing.assert_allclose(seeds_b, [0.5])
    assert (stay[0], optimum[0]) == (0.8, 1)
    named = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert named == {"go and stay": 0.8, "optimum": 1, "← −12.6": plots.LOWEST_SCORE}  # far below: by its value
    assert [label.get_text() for label in ax.get_yticklabels()] == ["these", "A", "B"]
    assert [label.get_fontweight() for label in ax.get_yticklabels()] == ["bold", "normal", "normal"]
    (band,) = ax.patches
    np.testing.assert_allclose(band.get_extents().transformed(ax.transData.inverted()).intervalx, [-0.25, 0.8])
    low, high = ax.get_ylim()
    assert low > high  # the first run on top, as in the legend


def test_curves_of_returns_are_exact_where_all_records_of_a_run_are():
    """Exact returns at two of three evaluations; a run of which one seed has none falls back to the episodes' means."""
    nan = float("nan")
    runs = [record("mask", [0] * 3, [-70, -60, -50], exact=-52.0, exact_return=[-71, nan, -51]),
            record("ar-iar", [0] * 3, [-70, -60, -40], final=-41.0, exact_return=[-71, nan, -41]),
            record("ar-iar", [0] * 3, [-70, -60, -40], final=-43.0)]  # fmt: skip
    mask, ar = plots.learning_curve(plt.subplots()[1], runs).lines
    assert (mask.get_xdata().tolist(), mask.get_ydata().tolist()) == ([0, 20], [-71, -52])
    assert (ar.get_xdata().tolist(), ar.get_ydata().tolist()) == ([0, 10, 20], [-70, -60, -42])
    names = {"mask": "MASK", "ar-iar": "AR+IAR"}
    assert plots.returns_drawn(runs[:1], names) == " Returns: exact. Lines end at the final policies, exact."
    said = plots.returns_drawn(runs, names)
    assert said.startswith(" Returns: a point is an evaluation of 4 episodes; exact: MASK. Lines")
    assert said.endswith("Lines end at the final policies, exact but for AR+IAR: 8 episodes.")
    assert plots.returns_drawn(runs[1:], names).endswith("the final policies, 8 episodes.")
    long = runs[2]._replace(curve=pd.concat([runs[2].curve] * 47))
    said = plots.returns_drawn([*runs, long], names)
    assert "the mean of 1 to 21 evaluations of 4 episodes around it" in said
    assert said.endswith("8 episodes; means are joined to them by a straight line over the last 0 to 10 evaluations.")
    lucky = record("ar-iar", [0] * 3, [-70, -15, -40], final=-41.0)  # the optimum is −20
    assert "A mean above the optimum is chance: no policy is." in plots.returns_drawn([*runs, lucky], names)
    assert "above the optimum" not in said
    all_nan = record("mask", [0] * 3, [-70, -60, -50], exact_return=[nan] * 3)
    assert plots.return_column([all_nan]) == "eval_return_mean"


def test_a_figure_drawn_from_tables_names_them(tmp_path):
    plots.save(plt.figure(), tmp_path / "one", tables=["data/benchmarks/a.csv", "data/benchmarks/b.csv"])
    with Image.open(tmp_path / "one.png") as image:
        assert image.text["Description"] == "Drawn from data/benchmarks/a.csv, data/benchmarks/b.csv."


def test_a_figure_names_what_computed_it(tmp_path):
    plots.save(plt.figure(), tmp_path / "one", computed="notebooks/01_flow_policy.ipynb, seed 0")
    with Image.open(tmp_path / "one.png") as image:
        assert image.text["Description"] == "Computed by notebooks/01_flow_policy.ipynb, seed 0."
    with pytest.raises(ValueError, match="say what one is made of"):
        plots.save(plt.figure(), tmp_path / "one")


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.png")), ids=lambda path: path.stem)
def test_committed_figures_are_no_wider_than_a_page_and_name_their_sources(path):
    with Image.open(path) as image:
        assert image.width <= 830
        said = re.match(r"((\d+) seeds? a run|Drawn from |Computed by )", image.text["Description"])
        most = 10 if path.stem == "figB_q" else 5  # no run has more, and none is counted twice
        assert said and int(said[2] or 0) <= most
