"""What figures show, asked of the artists that were drawn, and that equal figures are equal bytes."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from flowrl import plots
from flowrl.config import METHODS
from flowrl.records import by_environment, by_label, load
from flowrl.stats import iqm


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
    colours = [look.colour for look in plots.METHODS.values()]
    for one, other in itertools.combinations(colours, 2):
        assert np.linalg.norm(_lab(one, vision) - _lab(other, vision)) > 10, (one, other)


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
    np.testing.assert_allclose(drawn, [run.facts["final_exact_return"] for run in v1])
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
    groups = by_environment(load("fig5", fake_records("fig5"), "quick"))
    fig = plots.environments(groups, "Return")
    assert [ax.get_title() for ax in fig.axes[:4]] == list(groups)
    assert len(fig.legends[0].texts) == len({run.facts["label"] for runs in groups.values() for run in runs})
    assert fig.get_supxlabel().startswith("Scale quick: 3 seeds")


def test_equal_figures_are_equal_bytes(v1, tmp_path):
    for copy in ("a", "b"):
        plots.save(plots.environments(by_environment(v1), "Return"), tmp_path / "new" / copy)
    for suffix in ("pdf", "png"):
        one, other = ((tmp_path / "new" / f"{copy}.{suffix}").read_bytes() for copy in "ab")
        assert one == other
