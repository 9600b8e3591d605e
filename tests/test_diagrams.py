"""What the diagrams show, asked of the artists that were drawn; and that the Snakefile asks for what notebooks save."""

import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, Rectangle

from flowrl.envs.city import City
from flowrl.rejection import correction_weights
from flowrl.study import diagrams, plots
from flowrl.study.records import ROOT
from flowrl.truth import exact


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_loop_shows_every_draw_and_the_weights_that_train():
    """Two columns of S draws; bars proportional to `correction_weights` of the draws in the picture."""
    [ax] = diagrams.iar_a2c_loop().axes
    draws = [patch for patch in ax.patches if isinstance(patch, Circle) and patch.radius == 0.135]
    assert len(draws) == 2 * diagrams.DRAWS
    bars = np.array([patch.get_height() for patch in ax.patches if isinstance(patch, Rectangle)])
    valid = torch.tensor([[j in diagrams.VALID for j in range(diagrams.DRAWS)]])
    executed = torch.nn.functional.one_hot(torch.tensor([diagrams.EXECUTED]), diagrams.DRAWS).double()
    l, S = valid.sum(1), torch.tensor([diagrams.DRAWS])
    weights = [correction_weights(executed, valid, l, S, kind)[0] for kind in ("leave_one_out", "paper")]
    np.testing.assert_allclose(bars / bars[diagrams.EXECUTED], torch.cat(weights).numpy(), atol=1e-6)


def test_loop_keeps_its_words_inside_and_apart():
    """No text leaves the picture, no two overlap."""
    figure = diagrams.iar_a2c_loop()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    for i, box in enumerate(boxes):
        assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1), i
        assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1), i
        assert not any(box.overlaps(other) for other in boxes[:i]), figure.axes[0].texts[i].get_text()


def test_how_it_is_built_names_what_is_there():
    """Every title is a path of the project but the command and the site; words stay apart."""
    figure = diagrams.how_it_is_built()
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    titles = [text.get_text() for text in texts if text.get_fontweight() == "bold"]
    assert all((ROOT / title).exists() for title in titles if title not in ("flowrl train", "build/site"))
    boxes = [text.get_window_extent() for text in texts]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_every_correction_has_its_own_look():
    for field in ("name", "colour", "dashes"):
        assert len({getattr(look, field) for look in diagrams.CORRECTIONS.values()}) == 4


def test_multiples_are_drawn_as_given():
    figure, axes = diagrams.corrections()
    l = np.arange(1, 17)
    given = {"paper": (l, 1 - 16 / l**2), "none": (l, np.ones(16))}
    ax = diagrams.multiple_by_valid_draws(axes[0], 16, given)
    drawn = {line.get_label(): line for line in ax.lines}
    for kind, (x, y) in given.items():
        line = drawn[diagrams.CORRECTIONS[kind].name]
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
    low, high = ax.get_ylim()
    assert low < -15 and high > 1

    mass = np.geomspace(0.01, 1, 20)
    ax = diagrams.multiple_by_valid_mass(
        axes[1], mass, {8: 2 * mass - 1, 16: 4 * mass - 1}, np.ones(20), {"A": (0.1, 0.2)}
    )
    labels = {text.get_text(): text for text in ax.texts}
    assert {"$S$ = 16", "8", "A"} <= set(labels)
    assert labels["8"].xy[0] == pytest.approx(0.5, rel=0.05)  # where the sign changes

    ax = diagrams.by_correction(plt.subplots()[1], {"mean": (l, np.where(l == 3, 1e-17, 1 / l))})
    [line] = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), np.where(l == 3, np.nan, 1 / l))

    returns = np.random.default_rng(0).normal(size=(5, 3))
    ax = diagrams.ascents(axes[2], {"mean": returns}, 1.0)
    bold = [line for line in ax.lines if line.get_linewidth() > 2]
    np.testing.assert_allclose(bold[0].get_ydata(), returns.mean(1))
    assert to_hex(bold[0].get_color()) == diagrams.CORRECTIONS["mean"].colour.lower()
    figure.canvas.draw()


def test_estimators_are_drawn_as_measured():
    """Where the bias is lost in the noise: an open marker at the upper limit; all else as given."""
    index = pd.MultiIndex.from_product([(1, 4), ("elbo", "rb")], names=["N", "estimator"])
    value = pd.DataFrame({"bias": [-1.0, 0.5, -2.0, 0.1], "error": 0.1}, index)
    score = pd.DataFrame({"bias²": [4.0, 0.01, 1.0, -0.01], "error": 0.04, "spread²": 9.0, "spread error": 0.1}, index)
    looks = {
        "elbo": plots.ESTIMATORS["elbo"]._replace(dashes="-"),
        "rb": plots.ESTIMATORS["rb"]._replace(dashes="--"),
    }
    figure = diagrams.estimators([(value, score, "against N", "N")], looks)
    marked = [
        [line for line in ax.lines if line.get_marker() in (looks["elbo"].marker, looks["rb"].marker)]
        for ax in figure.axes
    ]
    top, middle, bottom = (np.array([line.get_ydata() for line in lines], float) for lines in marked)
    np.testing.assert_allclose(top[::2], [[-1, -2], [0.5, 0.1]])
    np.testing.assert_allclose(middle[::2], [[2, 1], [0.09**0.5, 0.07**0.5]])
    np.testing.assert_allclose(bottom[::2], 3)
    assert np.isnan(middle[1::2]).tolist() == [[True, True], [False, False]]  # the open ones
    assert [text.get_text() for text in figure.legends[0].texts] == ["ELBO", "averaged over equal actions (rb)"]
    figure.canvas.draw()


def test_pathwise_shows_the_draws_and_the_plane():
    side, draws = np.linspace(-6, 6, 5), np.random.default_rng(0).normal(size=(7, 2))
    figure = diagrams.pathwise(side, np.outer(side, np.ones(5)), (3, 1), {"latent": (draws, "red")}, np.zeros(2))
    left, right, _ = figure.axes
    np.testing.assert_array_equal(left.collections[0].get_array()[0], side)  # v_12 − v_11 along x
    np.testing.assert_array_equal(right.lines[0].get_xydata(), draws)
    assert "region $a_1$ = 3" in left.get_title() and "(3, 1)" in right.get_title()


def test_city_map_and_worth():
    """As many roads, districts and resources as the city has; markers at the exact returns."""
    city = City.load("ERA-v1")
    ax = plt.subplots()[1]
    diagrams.city_map(ax, city, np.full(6, 1 / 6), (2, 2, 5))
    assert len(ax.lines) == len(city.edges)
    assert len(ax.collections[0].get_offsets()) == city.districts
    assert sorted(text.get_text() for text in ax.texts) == [*"012345", *"ABC"]

    optima = {name: exact.optimum(name) for name in ("ERA-v1", "ERA-v1-tight")}
    ax = diagrams.worth(plt.subplots()[1], optima)
    markers = [line for line in ax.lines if line.get_label() in plots.REFERENCES.values()]
    expected = [solved[key] for solved in optima.values() for key in plots.REFERENCES]
    assert [line.get_xdata()[0] for line in markers] == expected
    assert f"ERA-v1: {100 * optima['ERA-v1']['valid_fraction']:.0f} % valid" in {text.get_text() for text in ax.texts}


def test_cities_has_a_column_each():
    names = ("ERA-v1", "ERA-v2")
    groups = {name: {name: exact.optimum(name)} for name in names}
    uniform = {name: np.full(City.load(name).districts, 1 / City.load(name).districts) for name in names}
    figure = diagrams.cities(groups, uniform, dict.fromkeys(names, (0, 0, 1)))
    assert [ax.get_title().strip() for ax in figure.axes[:2]] == list(names)
    assert [text.get_text() for text in figure.legends[0].texts] == list(plots.REFERENCES.values())


def test_the_snakefile_asks_for_what_notebooks_compute():
    """Every file in COMPUTED is named by its notebook, every module in it exists."""
    names = {}
    source = (ROOT / "Snakefile").read_text()
    exec(re.search(r"^COMPUTED = \{.*?^\}", source, re.DOTALL | re.MULTILINE)[0], names)
    for notebook, (modules, files) in names["COMPUTED"].items():
        path = ROOT / "notebooks" / f"{notebook}.ipynb"
        cells = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        for name in files.split():
            stem, _, suffix = name.partition(".")
            assert f'figure_dir / "{name if suffix == "csv" else stem}"' in cells, name
        for module in modules.split():
            assert (ROOT / "flowrl" / f"{module}.py").exists(), module


def test_pictures_that_notebooks_compute_name_these():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        assert set(re.findall(r'computed=f?"(notebooks/\w+\.ipynb)', cells)) <= {f"notebooks/{path.name}"}
