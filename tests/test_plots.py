"""What figures show, asked of the artists that were drawn, and that equal figures are equal bytes."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from flowrl.study import plots
from flowrl.study.config import METHODS, experiments, titles
from flowrl.study.records import EXPERIMENTS, Record, by_environment, by_label, gain, load, score
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
    """Methods from one another, and an ablation's runs from one another and from every method."""
    methods, variants = (
        [_lab(look.colour, vision) for look in looks] for looks in (plots.METHODS.values(), plots.VARIANTS)
    )
    for looks in (methods, variants):
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(looks, 2)) > 10
    assert min(np.linalg.norm(one - other) for one, other in itertools.product(methods, variants)) > 9


def test_profile_is_the_share_of_runs_above_a_threshold(fake_records):
    runs = load("profile", fake_records("profile"), "quick")
    figure = plots.profiles(runs, "profiles")
    for ax, value in zip(figure.axes, (score, gain), strict=True):
        for label, group in by_label(runs).items():
            [line] = [line for line in ax.lines if line.get_label() == plots.method(label).name]
            values = np.array([value(run.facts) for run in group])
            expected = [(values > threshold).mean() for threshold in line.get_xdata()]
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert line.get_color() == plots.method(label).colour
        assert len(ax.collections) == len(by_label(runs))  # a band each
    assert "by episodes: Wol-DDPG" in " ".join(figure.get_supxlabel().split())


def test_unknown_label():
    with pytest.raises(ValueError, match="no colour for run 'mine'"):
        plots.method("mine")


def test_learning_curve_draws_the_iqm_of_each_label(v1):
    ax = plots.learning_curve(plt.subplots()[1], v1)
    labels = list(by_label(v1))
    assert [line.get_label() for line in ax.lines] == [plots.METHODS[label].name for label in labels]
    ours = [run.curve["eval_return_mean"] for run in v1 if run.facts["label"] == "iar-a2c"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), iqm(np.array(ours)))
    assert to_hex(ax.lines[0].get_color()) == plots.METHODS["iar-a2c"].colour.lower()
    assert len(ax.collections) == len(labels) > 3  # a band each


def test_final_scores_draws_the_exact_return_of_every_seed(v1):
    ax = plots.final_scores(plt.subplots()[1], v1)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines])
    facts = [run.facts for run in v1]
    known = [f["final_return_mean" if f["label"] == "wol-ddpg" else "final_exact_return"] for f in facts]
    np.testing.assert_allclose(drawn, known)
    without = [run._replace(facts=run.facts | {"final_exact_return": None, "final_return_mean": -1.0}) for run in v1]
    ax = plots.final_scores(plt.subplots()[1], without)
    assert {y for line in ax.lines for y in line.get_ydata()} == {-1.0}


def test_references_and_second_axis(v1):
    reference = v1[0].facts["reference"]
    ax = plots.reference_lines(plt.subplots()[1], reference)
    assert [line.get_ydata()[0] for line in ax.lines] == [reference[key] for key in plots.REFERENCES]
    assert [text.get_text() for text in ax.texts] == ["optimum", "go and stay", "random"]
    ax.set_ylim(reference["uniform_valid"], reference["optimal"])
    second = plots.normalised_axis(ax, reference).child_axes[0]
    ax.figure.canvas.draw()
    np.testing.assert_allclose(second.get_ylim(), [0, 1])


def test_ranges_show_plateau_and_optimum_apart(v1):
    reference = v1[0].facts["reference"]
    low, high = plots.last_stretch(reference)
    assert low < reference["go_and_stay"] < reference["optimal"] < high
    assert (reference["optimal"] - reference["go_and_stay"]) / (high - low) > 0.25
    low, high = plots.whole_range(v1, reference)
    assert low < reference["uniform_valid"] < reference["optimal"] < high
    deep = v1[0]._replace(curve=v1[0].curve.assign(eval_return_mean=-1e6))
    low, _ = plots.whole_range([*v1, deep], reference)
    assert low > reference["uniform_valid"] - 1.1 * (reference["optimal"] - reference["uniform_valid"])


def test_environments_fills_columns_legend_and_caption(fake_records):
    runs = load("fig5", fake_records("fig5"), "quick")
    groups = by_environment([r for r in runs if r.facts["label"] != "wol-ddpg" or r.facts["config"]["seed"] == 0])
    fig = plots.environments(groups, "Return")
    assert [ax.get_title() for ax in fig.axes[:4]] == list(groups)
    assert len(fig.legends[0].texts) == len({run.facts["label"] for runs in groups.values() for run in runs})
    assert fig.get_supxlabel().startswith("Scale quick: 3 seeds a run (Wol-DDPG 1)")


def test_variants_look_different_and_methods_keep_theirs():
    for name in experiments(EXPERIMENTS):
        looks = plots.variants(titles(EXPERIMENTS, name))
        assert [look.name for look in looks.values()] == list(titles(EXPERIMENTS, name).values())
        for field in ("colour", "dashes", "marker"):
            assert len({getattr(look, field) for look in looks.values()}) == len(looks), (name, field)
    looks = plots.variants({"first": "1st", "mask": "the mask", "second": "2nd"})
    assert looks["mask"] == plots.METHODS["mask"]._replace(name="the mask")
    # the first variant's dashes are MASK's
    assert [looks[label].colour for label in ("first", "second")] == [look.colour for look in plots.VARIANTS[1:3]]
    with pytest.raises(ValueError, match="9 runs are too many to tell apart; at most 8 beside the methods"):
        plots.variants({"mask": ""} | {str(k): "" for k in range(9)})


def record(label, xs, ys, environment="ERA-v4", final=-20.0, exact=None, **columns):
    """A record by hand, its reference such that returns of −20 and −70 score 1 and 0."""
    curve = pd.DataFrame({"env_steps": [0, 10, 20], "eval_return_mean": ys, "oracle_calls": xs} | columns)
    settings = {"steps": 20, "eval_every": 10, "eval_episodes": 4, "final_episodes": 8, "seed": 0}
    facts = {
        "environment": environment, "label": label, "config": settings, "commit": None, "dirty": False,
        "final_return_mean": final, "final_exact_return": exact,
        "reference": {"optimal": -20.0, "go_and_stay": -30.0, "uniform_valid": -70.0},
    }  # fmt: skip
    return Record(curve, facts, "quick", False)


def test_learning_curve_against_x_in_given_looks():
    """Two seeds that ask at different paces: on the grid of the first, as far as both go, the second in between."""
    runs = [record("mask", [0, 40, 80], [0, 1, 2]), record("mask", [0, 60, 120], [0, 3, 6])]
    looks = plots.variants({"mask": "a mask"})
    ax = plots.learning_curve(plt.subplots()[1], runs, looks=looks, x=lambda run: run.curve["oracle_calls"])
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xdata(), [0, 40, 80])
    np.testing.assert_allclose(line.get_ydata(), [0, (1 + 2) / 2, (2 + 4) / 2])
    assert line.get_label() == "a mask"


def test_curves_draws_a_panel_a_group_with_its_lines():
    groups = {"one": [record("iar-a2c", [0, 1, 2], [0, 1, 2], grad=[5, 6, 7])],
              "two": [record("ar", [0, 1, 2], [3, 4, 5], grad=[8, 9, 10])]}  # fmt: skip
    calls = {"x": lambda run: run.curve["oracle_calls"], "xlabel": "oracle calls", "log": True}
    fig = plots.curves(groups, "Title", {"two": {"best": 4.5, "worst": 1.0}}, column="grad", ylabel="norm", **calls)
    left, right = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["one", "two"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [6, 7])  # from the first x that a logarithmic axis has
    np.testing.assert_allclose(left.lines[0].get_xdata(), [1, 2])
    assert (left.get_ylabel(), right.get_xlabel(), right.get_xscale()) == ("norm", "oracle calls", "log")
    assert len(left.lines) == 1 and [line.get_ydata()[0] for line in right.lines[1:]] == [4.5, 1.0]
    assert [text.get_text() for text in right.texts] == ["best", "worst"]
    assert [text.get_text() for text in fig.legends[0].texts] == ["flowrl recipe", "AR"]
    assert fig.legends[0].get_title().get_text() == "Title"


def test_costs_scales_steps_by_the_seconds_of_a_step():
    """Wol-DDPG calls no oracle; only what was timed one action at a time has a curve in the last panel."""
    runs = [record("iar-a2c", [0, 640, 1280], [-70, -40, -30]), record("ar-iar", [0, 160, 320], [-70, -60, -50]),
            record("wol-ddpg", [0, 0, 0], [-90, -80, -75])]  # fmt: skip
    paces = [("iar-a2c", "batched", 0.1), ("ar-iar", "batched", 0.2), ("wol-ddpg", "batched", 0.4),
             ("iar-a2c", "one at a time", 3.0)]  # fmt: skip
    columns = ["environment", "method", "oracle", "seconds_per_step"]
    seconds = pd.DataFrame([("ERA-v4", *pace) for pace in paces], columns=columns)
    fig = plots.costs({"ERA-v4": runs}, seconds, "Title")
    names = {run.facts["label"]: plots.METHODS[run.facts["label"]].name for run in runs}
    drawn = [{line.get_label(): list(line.get_xdata()) for line in ax.lines} for ax in fig.axes]
    drawn = [{label: panel[name] for label, name in names.items() if name in panel} for panel in drawn]
    assert drawn[0] == dict.fromkeys(names, [0, 10, 20])
    assert drawn[1] == {"iar-a2c": [640, 1280], "ar-iar": [160, 320]}
    assert drawn[2] == {"iar-a2c": [1, 2], "ar-iar": [2, 4], "wol-ddpg": [4, 8]}
    assert drawn[3] == {"iar-a2c": [30, 60]}
    assert [ax.get_xscale() for ax in fig.axes] == ["linear", "log", "log", "log"]


def test_final_strip_shows_exact_scores_their_mean_and_the_plateau():
    runs = [record("a", [0] * 3, [0] * 3, exact=-30.0), record("a", [0] * 3, [0] * 3, exact=-82.5),
            record("b", [0] * 3, [0] * 3, final=-45.0), record("b", [0] * 3, [0] * 3, final=-700.0)]  # fmt: skip
    ax = plots.final_strip(plt.subplots()[1], runs, plots.variants({"a": "A", "b": "B"}))
    seeds_a, mean_a, seeds_b, stay, optimum = (line.get_xdata() for line in ax.lines)
    np.testing.assert_allclose(seeds_a, [0.8, -0.25])  # below random, where it is
    np.testing.assert_allclose(mean_a, 0.275)
    np.testing.assert_allclose(seeds_b, [0.5])
    assert (stay[0], optimum[0]) == (0.8, 1)
    named = {text.get_text().strip(): text.get_position()[0] for text in ax.texts}
    assert named == {"go and stay": 0.8, "optimum": 1, "← −12.6": plots.LOWEST_SCORE}  # far below: by its value
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B"]
    low, high = ax.get_ylim()
    assert low > high  # the first run on top, as in the legend


def test_curves_of_returns_are_exact_where_all_records_of_a_run_are():
    """Exact returns at two of three evaluations; a run of which one seed has none falls back to the episodes' means."""
    nan = float("nan")
    runs = [record("mask", [0] * 3, [-70, -60, -50], exact_return=[-71, nan, -51]),
            record("ar-iar", [0] * 3, [-70, -60, -40], exact_return=[-71, nan, -41]),
            record("ar-iar", [0] * 3, [-70, -60, -40])]  # fmt: skip
    fig = plots.curves({"ERA-v4": runs}, "Title")
    mask, ar = fig.axes[0].lines
    assert (mask.get_xdata().tolist(), mask.get_ydata().tolist()) == ([0, 20], [-71, -51])
    assert (ar.get_xdata().tolist(), ar.get_ydata().tolist()) == ([0, 10, 20], [-70, -60, -40])
    said = "Curves: exact returns, but for AR+IAR: means over episodes."
    assert fig.get_supxlabel().replace("\n", " ").endswith(said)
    for some, says in ((runs[:1], "Curves: exact returns."), (runs[1:], "Records of commit none.")):
        fig = plots.environments({"ERA-v4": [run._replace(facts=run.facts | {"env_steps": 20}) for run in some]}, "T")
        assert fig.get_supxlabel().replace("\n", " ").endswith(says)
    all_nan = record("mask", [0] * 3, [-70, -60, -50], exact_return=[nan] * 3)
    assert plots.return_column([all_nan]) == "eval_return_mean"


def test_ablation_shows_return_the_column_and_the_final_scores():
    runs = [
        record("a", [0] * 3, [-70, -50, -30], grad=[1, 2, 3]),
        record("b", [0] * 3, [-70, -60, -50], grad=[4, 5, 6]),
    ]
    fig = plots.ablation(runs, {"a": "one", "b": "two"}, "Title", "grad", "norm", log=True)
    left, middle, right = fig.axes
    np.testing.assert_allclose([line.get_ydata() for line in left.lines[:2]], [[-70, -50, -30], [-70, -60, -50]])
    np.testing.assert_allclose([line.get_ydata() for line in middle.lines], [[2, 3], [5, 6]])  # once trained
    assert (middle.get_ylabel(), middle.get_yscale()) == ("norm", "log")
    assert [text.get_text() for text in fig.legends[0].texts] == ["one", "two"]
    assert right.get_xlabel() == "final normalised score"
    assert fig.get_supxlabel().startswith("Scale quick: 1 seed")


def test_against_marks_every_run_in_every_panel():
    runs = [record("a", [0] * 3, [0] * 3), record("b", [0] * 3, [0] * 3), record("a", [0] * 3, [0] * 3)]
    panels = {"score": [1, 2, 3], "milliseconds": [4, float("nan"), 6]}
    fig = plots.against(runs, {"a": "λ = 0", "b": "λ = 1"}, [0.1, 0.1, 1], "valid share", panels, "Title", " Note.")
    drawn = {ax.get_title(): [line.get_xydata().tolist() for line in ax.lines] for ax in fig.axes}
    assert drawn["score"] == [[[0.1, 1], [1, 3]], [[0.1, 2]]]
    assert drawn["milliseconds"][0] == [[0.1, 4], [1, 6]]
    assert np.isnan(drawn["milliseconds"][1][0][1])
    assert {(ax.get_xscale(), ax.get_xlabel()) for ax in fig.axes} == {("log", "valid share")}
    assert [text.get_text() for text in fig.legends[0].texts] == ["λ = 0", "λ = 1"]
    assert fig.get_supxlabel().replace("\n", " ").endswith("Note.")


def test_equal_figures_are_equal_bytes(v1, tmp_path):
    for copy in ("a", "b"):
        plots.save(plots.environments(by_environment(v1), "Return"), tmp_path / "new" / copy)
    for suffix in ("pdf", "png"):
        one, other = ((tmp_path / "new" / f"{copy}.{suffix}").read_bytes() for copy in "ab")
        assert one == other
