"""What whole figures show, asked of the artists that were drawn, and that equal figures are equal bytes."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import record
from matplotlib.text import Text
from PIL import Image

from flowrl.study import figures, plots
from flowrl.study.plan import experiments, runs
from flowrl.study.records import EXPERIMENTS, Record, by_environment, by_label, gain, load, score


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def planned_records(experiment):
    """Records of an experiment as far as looks depend on them."""
    return [
        Record(pd.DataFrame(), {"label": run.label, "config": dataclasses.asdict(run.config)}, "paper", False)
        for run in runs(EXPERIMENTS, experiment, "paper")
    ]


@pytest.mark.parametrize("experiment", experiments(EXPERIMENTS))
def test_runs_of_a_figure_look_different(experiment):
    """By colour, fill or dashes; colours of methods and of corrections are worn by no other variant."""
    shown = figures.looks(experiment, planned_records(experiment))
    assert len({(look.colour, look.fill, look.dashes) for look in shown.values()}) == len(shown)
    assert len({look.name for look in shown.values()}) == len(shown)
    methods = {look.colour: name for name, look in plots.METHODS.items()}
    trained = {run.facts["label"]: run.facts["config"] for run in planned_records(experiment)}
    for label, look in shown.items():
        assert methods.get(look.colour, trained[label]["method"]) == trained[label]["method"], label
        correction = {c.colour: kind for kind, c in plots.CORRECTIONS.items()}.get(look.colour)
        assert correction in (None, trained[label]["correction"]), label


def test_the_same_run_looks_the_same_in_every_figure_of_notebook_09():
    """Where colours stand for no setting: runs of equal settings have one colour; estimators theirs."""
    seen, latent = {}, set()
    for name, entry in experiments(EXPERIMENTS).items():
        if entry["notebook"] == "09_ablations" and "colour" not in entry:
            shown = figures.looks(name, planned_records(name))
            for run in runs(EXPERIMENTS, name, "paper"):
                config = dataclasses.asdict(run.config) | dict.fromkeys(("env", "seed"))
                seen.setdefault(str(config), set()).add(shown[run.label].colour)
            latent |= {look.colour for label, look in shown.items() if label == "recipe-latent"}
    assert latent == {plots.ESTIMATORS["latent"].colour}
    assert max(map(len, seen.values())) == 1 and len(seen) > 10


def test_every_drawn_experiment_says_what_to_see():
    drawn = {entry.get("figure", name) for name, entry in experiments(EXPERIMENTS).items()} & set(
        experiments(EXPERIMENTS)
    )
    assert all(experiments(EXPERIMENTS)[name]["see"].startswith("See first") for name in drawn)


def test_names_are_titles_or_the_methods():
    assert figures.named("plateau_entropy")["mask-30"] == "MASK, entropy 0.3"
    assert figures.named("fig5")["iar-a2c-paper"] == "IAR-A2C (printed)"
    assert figures.named("figB_estimator_runs")["sandwich"] == "sandwich"


def test_profile_is_the_share_of_runs_above_a_threshold(fake_records):
    runs = load("profile", fake_records("profile"), "quick")
    figure = figures.profiles("profile", runs)
    for ax, value in zip(figure.axes, (score, gain), strict=True):
        for label, group in by_label(runs).items():
            [line] = [line for line in ax.lines if line.get_label() == plots.method(label).name]
            values = np.array([value(run.facts) for run in group])
            expected = [(values > threshold).mean() for threshold in line.get_xdata()]
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert line.get_color() == plots.method(label).colour
        assert len(ax.collections) == len(by_label(runs))  # a band each
    assert "by episodes: Wol-DDPG" in " ".join(figure.get_supxlabel().split())


def test_environments_draws_scores_two_by_two_and_names_methods_at_the_ends(fake_records):
    runs = load("fig5", fake_records("fig5"), "quick")
    runs = [run for run in runs if run.facts["label"] != "wol-ddpg" or run.facts["config"]["seed"] == 0]
    fig = figures.environments("fig5", runs)
    assert [ax.get_title() for ax in fig.axes] == list(by_environment(runs))
    assert (fig.axes[0].get_subplotspec().get_gridspec().nrows, fig.get_figwidth()) == (2, plots.PAGE)
    names = set(figures.names("fig5", runs).values())
    for ax in fig.axes:
        assert names <= {text.get_text() for text in ax.texts}
        [line] = [line for line in ax.lines if line.get_label() == "MASK"]
        assert abs(line.get_ydata()[0]) < 0.1 and 0.8 < line.get_ydata()[-1] < 1  # normalised
    said = " ".join(fig.get_supxlabel().split())
    assert said.startswith("See first: ") and "3 seeds a run (Wol-DDPG 1)" in said and "0123456" not in said
    assert "optimum (−23)" in {text.get_text() for text in fig.axes[0].texts}


def test_no_two_names_overlap(fake_records):
    runs = load("fig5", fake_records("fig5", "paper"), "paper")
    fig = figures.environments("fig5", runs)
    fig.draw_without_rendering()
    names = set(figures.names("fig5", runs).values())
    for ax in fig.axes:
        boxes = [Text.get_window_extent(text) for text in ax.texts if text.get_text() in names]  # without the arrows
        assert len(boxes) == len(names)
        assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
        assert all(box.x1 <= fig.bbox.x1 for box in boxes)


def test_front_shows_some_methods_and_has_no_caption(fake_records):
    fig = figures.front(load("fig5", fake_records("fig5"), "quick"))
    shown = {line.get_label() for line in fig.axes[0].lines} & {look.name for look in plots.METHODS.values()}
    there = set(figures.FRONT) - {"iar-a2c-released"}  # not run at the quick scale
    assert shown == {plots.METHODS[label].name for label in there}
    assert not fig.get_supxlabel() and not fig.get_suptitle()


def test_curves_draws_a_panel_an_environment_with_its_lines():
    runs = [record("iar-a2c", [0, 1, 2], [0, 1, 2], "one", grad=[5, 6, 7]),
            record("ar", [0, 1, 2], [3, 4, 5], "two", grad=[8, 9, 10])]  # fmt: skip
    lines = {"two": {"best": 4.5, "worst": 1.0}}
    fig = figures.curves("fig6", runs, lines, column="grad", ylabel="norm", see="See first: this.")
    assert fig.get_supxlabel().startswith("See first: this. Line: the one run.")
    left, right = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["one", "two"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [5, 6, 7])
    assert len(left.lines) == 1 and [line.get_ydata()[0] for line in right.lines[1:]] == [4.5, 1.0]
    assert [text.get_text() for text in right.texts] == ["best", "worst", "AR"]
    assert [text.get_text() for text in left.texts] == ["flowrl recipe"]
    assert not fig.legends


def test_curves_of_three_environments_are_named_in_the_last_or_in_a_legend():
    runs = [record(label, [0] * 3, [0, 1, 2], env, final=5.0) for env in "abc" for label in ("ar", "a2c")]
    fig = figures.curves("fig4b", runs)
    assert [[text.get_text() for text in ax.texts] for ax in fig.axes] == [[], [], ["AR", "A2C"]] and not fig.legends
    assert fig.axes[0].get_subplotspec().get_gridspec().ncols == 3
    line, _, marker, _ = fig.axes[0].lines  # two lines, then the final policies
    assert line.get_ydata()[-1] == marker.get_ydata()[0] == 5 and marker.get_xdata()[0] > line.get_xdata()[-1]
    fig = figures.curves("fig4b", runs[:-1])
    assert [text.get_text() for text in fig.legends[0].texts] == ["AR", "A2C"]
    assert fig.legends[0].get_title().get_text() == experiments(EXPERIMENTS)["fig4b"]["title"]


def test_where_a_row_is_not_full_every_axis_has_numbers_and_the_last_row_the_name():
    fig = figures.curves("tabC_violations", [record("wol-ddpg", [0] * 3, [0, 1, 2], env) for env in "abcde"])
    assert [ax.get_xlabel() for ax in fig.axes[:5]] == [""] * 3 + ["environment steps"] * 2
    assert all(ax.xaxis.get_tick_params()["labelbottom"] for ax in fig.axes[:5])
    assert not any(ax.texts for ax in fig.axes)  # the title names the one run


def test_names_of_known_values_stand_within_the_axes_and_apart():
    runs = [record("ar", [0] * 3, [0, 1, 2], "one", final=2.0)]
    fig = figures.curves("fig6", runs, {"one": {"best": 2.1, "near": 2.05, "far": 0.5}})
    fig.draw_without_rendering()
    [ax] = fig.axes
    best, near, far = (text.get_window_extent() for text in ax.texts)
    assert best.y1 <= ax.bbox.y1 and not best.overlaps(near)
    assert [text.get_va() for text in ax.texts] == ["bottom", "top", "bottom"]


def test_costs_scales_steps_by_the_seconds_of_a_step():
    """Wol-DDPG calls no oracle; only what was timed one action at a time has a curve in the last panel."""
    runs = [record("iar-a2c", [0, 640, 1280], [-70, -40, -30]), record("ar-iar", [0, 160, 320], [-70, -60, -50]),
            record("wol-ddpg", [0, 0, 0], [-90, -80, -75])]  # fmt: skip
    paces = [("iar-a2c", "batched", 0.1), ("ar-iar", "batched", 0.2), ("wol-ddpg", "batched", 0.4),
             ("iar-a2c", "one at a time", 3.0)]  # fmt: skip
    columns = ["environment", "method", "oracle", "seconds_per_step"]
    seconds = pd.DataFrame([("ERA-v4", *pace) for pace in paces], columns=columns)
    fig = figures.costs("fig7", runs, seconds)
    names = {run.facts["label"]: plots.METHODS[run.facts["label"]].name for run in runs}
    drawn = [{line.get_label(): list(line.get_xdata()) for line in ax.lines} for ax in fig.axes]
    drawn = [{label: panel[name] for label, name in names.items() if name in panel} for panel in drawn]
    assert drawn[0] == dict.fromkeys(names, [0, 10, 20])
    assert drawn[1] == {"iar-a2c": [640, 1280], "ar-iar": [160, 320]}
    assert drawn[2] == {"iar-a2c": [1, 2], "ar-iar": [2, 4], "wol-ddpg": [4, 8]}
    assert drawn[3] == {"iar-a2c": [30, 60]}
    assert [ax.get_xscale() for ax in fig.axes] == ["linear", "log", "log", "log"]
    assert {text.get_text() for text in fig.axes[3].texts} == {"flowrl recipe"}  # at the line's end
    said = " ".join(fig.get_supxlabel().split())
    assert "Wol-DDPG calls no oracle. Not timed with an oracle that judges one by one: AR+IAR." in said


def test_bridge_has_a_column_for_what_was_left_out_where_there_is_any():
    labels = ["iar-a2c-paper", "iar-a2c-released", "released-torch", "released-start"]
    flat = {"elbo": [-3.0] * 3, "valid_rate": [0.5] * 3}
    runs = [record(label, [0] * 3, [-70, -50, -30], "authors-v4", exact=-30.0, **flat) for label in labels]
    authors = pd.DataFrame({"env_steps": [0, 20], "return_mean": [-70, -30], "elbo": [-9, -1], "valid_rate": [0.5, 1]})
    published = pd.DataFrame({"env_steps": [20], "return": [-30], "tolerance": [2]})
    left = [figures.names("released", runs)[label] for label in labels[:2]]
    left += ["the authors' code, one run", "published (read off)"]
    right = [figures.names("released", runs)[label] for label in labels[1:]]
    for shown, columns in ((runs, [left, right]), (runs[:2], [left])):
        fig = figures.bridge("released", shown, authors, published)
        legends = [{text.get_text() for text in ax.get_legend().get_texts()} for ax in fig.axes if ax.get_legend()]
        assert len(fig.axes) == 4 * len(columns)
        assert [legend & {*left, *right} for legend in legends] == [set(names) for names in columns]


def test_ablation_shows_score_the_column_and_the_final_scores():
    runs = [record("printed-elbo", [0] * 3, [-70, -45, -20], grad=[1, 2, 3]),
            record("printed-standard", [0] * 3, [-70, -60, -50], final=-45.0, grad=[4, 5, 6])]  # fmt: skip
    for run, kind in zip(runs, ("paper", "none"), strict=True):
        run.facts["config"]["correction"] = kind
    fig = figures.ablation("fig8a", runs, "grad", "norm", log=True)
    left, right, strip = fig.axes
    np.testing.assert_allclose([line.get_ydata() for line in left.lines[:2]], [[0, 0.5, 1], [0, 0.2, 0.5]])
    np.testing.assert_allclose([line.get_ydata() for line in right.lines], [[2, 3], [5, 6]])  # once trained
    assert (right.get_ylabel(), right.get_yscale()) == ("norm", "log")
    colours = [plots.CORRECTIONS[kind].colour for kind in ("paper", "none")]
    assert [line.get_color() for line in right.lines] == colours
    assert [tick.get_text() for tick in strip.get_yticklabels()] == ["S/l² + ELBO only", "standard gradient + sandwich"]
    assert not fig.legends  # the rows are it


def test_factors_shows_every_run_beneath_its_experiment(fake_records):
    names = "figA1", "figB4"
    for name in names:
        root = fake_records(name)
    fig = figures.factors({name: load(name, root, "quick") for name in names}, "Title", "See first: here.")
    [ax] = fig.axes
    rows = ["Sandwich's α (Figure A.1)", "static, ½", "trainable", "adaptive",
            "Posterior samples N (B.4)", "N = 1", "N = 2", "N = 4", "N = 8"]  # fmt: skip
    assert [tick.get_text() for tick in ax.get_yticklabels()] == rows
    said = " ".join(fig.get_supxlabel().split())
    assert said.startswith("See first: here.") and "3 seeds a run, " in said  # the run that both have counts once


def test_against_marks_every_run_in_every_panel():
    runs = [record(label, [0] * 3, [0] * 3) for label in ("rare-chains", "rare-bonus", "rare-chains")]
    panels = {"score": [1, 2, 3], "milliseconds": [4, float("nan"), 6]}
    fig = figures.against("figB_rare", runs, [0.1, 0.1, 1], "valid share", panels, " Note.")
    drawn = {ax.get_title(): [line.get_xydata() for line in ax.lines] for ax in fig.axes}
    apart = 10**0.0175  # half of 3.5 % of the axis, a decade: the one to the left, the other to the right
    np.testing.assert_allclose(drawn["score"][0], [[0.1 / apart, 1], [1 / apart, 3]])
    np.testing.assert_allclose(drawn["score"][1], [[0.1 * apart, 2]])
    np.testing.assert_allclose(drawn["milliseconds"][0][:, 1], [4, 6])
    assert np.isnan(drawn["milliseconds"][1][0][1])
    assert {(ax.get_xscale(), ax.get_xlabel()) for ax in fig.axes} == {("log", "valid share")}
    assert [text.get_text() for text in fig.legends[0].texts] == ["chains, λ = 1", "λ = 1 alone"]
    assert " ".join(fig.get_supxlabel().split()).endswith("Note.")


def test_equal_figures_are_equal_bytes_and_name_their_records(fake_records, tmp_path):
    v1 = load("figA2b", fake_records("figA2b"), "quick")
    for copy in ("a", "b"):
        figures.write(figures.environments("figA2b", v1), tmp_path / "new" / copy, v1)
    for suffix in ("pdf", "png", "csv"):
        one, other = ((tmp_path / "new" / f"{copy}.{suffix}").read_bytes() for copy in "ab")
        assert one == other
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert "Records of commit 0123456" in image.text["Description"]
        assert image.width <= 830
    assert set(pd.read_csv(tmp_path / "new" / "a.csv", dtype=str)["commit"]) == {"0123456"}
