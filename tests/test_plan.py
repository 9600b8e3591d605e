"""experiments.yaml resolved to runs: every bad value is refused by one line that names it and what is allowed."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from flowrl.envs.city import generate
from flowrl.study import config, plan
from flowrl.study.records import EXPERIMENTS

YAML = Path(__file__).parent.parent / "experiments.yaml"


@pytest.mark.parametrize("scale", plan.SCALES)
def test_every_experiment_resolves_at_every_scale(scale):
    for name in plan.experiments(YAML):
        runs = plan.runs(YAML, name, scale)
        paths = [run.path(Path("data"), scale) for run in runs]
        assert runs and len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scales: {quick: {seeds: 1}}", ["top-level keys"]),
        ("scales: {huge: {seeds: 1}}\nexperiments: {}", ["huge", "smoke, quick, paper"]),
        ("scales: {quick: {seeds: 1}}\nexperiments: {x: {notebook: a}}", ["experiment x", "environments"]),
        ("scales: {quick: [", ["experiments.yaml"]),
    ],
)
def test_a_bad_experiments_file_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "experiments.yaml"
    path.write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        plan.runs(path, "x", "quick")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_bad_setting_in_experiments_names_experiment_and_run(tmp_path):
    path = tmp_path / "experiments.yaml"
    path.write_text(
        "scales: {quick: {seeds: 1}}\n"
        "experiments: {x: {title: t, notebook: n, environments: [ERA-v1], runs: {bad: {method: mask, n_drwas: 3}}}}"
    )
    with pytest.raises(config.ConfigError, match=r"experiment x, run bad: unknown setting 'n_drwas'"):
        plan.runs(path, "x", "quick")


SCALES = "scales: {smoke: {seeds: 1, steps: 64}, quick: {seeds: 3, steps: 640}, paper: {seeds: 5, steps: 6400}}\n"


def experiments_file(tmp_path, **keys):
    """experiments.yaml with one experiment, x: `keys` beside what every experiment needs."""
    experiment = {"title": "t", "notebook": "n", "environments": ["ERA-v1"], "runs": {"mask": None}} | keys
    path = tmp_path / "experiments.yaml"
    path.write_text(SCALES + yaml.safe_dump({"experiments": {"x": experiment}}))
    return path


def test_scales_beat_settings_and_a_run_beats_both(tmp_path):
    path = experiments_file(
        tmp_path,
        settings={"entropy": 0.2, "gamma": 0.5, "hidden": 8, "steps": 7},
        scales={"paper": {"steps": 9, "seeds": 2, "gamma": 0.6}},
        runs={"mask": {"hidden": 16}, "ar-iar": None},
    )
    found = {scale: plan.runs(path, "x", scale) for scale in plan.SCALES}
    assert {scale: len(runs) for scale, runs in found.items()} == {"smoke": 2, "quick": 6, "paper": 4}
    for scale, steps, gamma in [("smoke", 64, 0.5), ("quick", 640, 0.5), ("paper", 9, 0.6)]:
        made = {(run.config.steps, run.config.gamma, run.config.entropy) for run in found[scale]}
        assert made == {(steps, gamma, 0.2)}
        assert {run.label: run.config.hidden for run in found[scale]} == {"mask": 16, "ar-iar": 8}


def test_seeds_of_a_run_are_at_most_the_scales(tmp_path):
    path = experiments_file(tmp_path, runs={"mask": {"seeds": 2}, "ar-iar": {"seeds": 4}, "factored-iar": None})
    for scale, expected in [("smoke", (1, 1, 1)), ("quick", (2, 3, 3)), ("paper", (2, 4, 5))]:
        runs = plan.runs(path, "x", scale)
        seeds = {label: [run.config.seed for run in runs if run.label == label] for label in dict.fromkeys(
            run.label for run in runs)}  # fmt: skip
        labels = ("mask", "ar-iar", "factored-iar")
        assert seeds == {label: list(range(n)) for label, n in zip(labels, expected, strict=True)}


def test_a_run_may_differ_at_a_scale_or_not_be_part_of_it(tmp_path):
    entry = {"gamma": 0.7, "seeds": 2, "scales": {"quick": {"seeds": 0}, "paper": {"gamma": 0.8, "seeds": 9}}}
    path = experiments_file(tmp_path, runs={"mask": entry, "ar-iar": None})
    runs = {scale: [run for run in plan.runs(path, "x", scale) if run.label == "mask"] for scale in plan.SCALES}
    assert [len(runs[scale]) for scale in plan.SCALES] == [1, 0, 5]
    assert [runs[scale][0].config.gamma for scale in ("smoke", "paper")] == [0.7, 0.8]


def test_titles_name_runs_and_change_nothing_else(tmp_path):
    plain = experiments_file(tmp_path, runs={"mask": None, "mine": {"method": "mask"}})
    untitled = plan.runs(plain, "x", "smoke")
    (tmp_path / "titled").mkdir()
    path = experiments_file(tmp_path / "titled", runs={"mask": {"title": "the mask"}, "mine": {"method": "mask"}})
    assert plan.titles(path, "x") == {"mask": "the mask", "mine": "mine"}
    assert plan.runs(path, "x", "smoke") == untitled


THEIRS = {"environments": ["ERA-v1", "authors/v9"], "scales": {"paper": {"seeds": 1}}}


def recorded(path, root, scale, authors=None, name="x"):
    """Empty records of an experiment, but with the digest that its environments have now."""
    for run in plan.runs(path, name, scale, authors):
        record = run.path(root, scale)
        record.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{record}.csv").touch()
        facts = {"config": dataclasses.asdict(run.config), "env_digest": run.config.env_digest()}
        Path(f"{record}.json").write_text(json.dumps(facts))


def test_a_city_of_the_authors_is_found_in_a_folder_of_its_own(tmp_path):
    path = experiments_file(tmp_path, **THEIRS)
    for authors, folder in [(None, tmp_path / "authors"), (tmp_path / "far", tmp_path / "far")]:
        runs = plan.runs(path, "x", "smoke", authors)
        assert [run.config.env for run in runs] == ["ERA-v1", str(folder / "authors-v9.json")]
        assert runs[1].path(Path("data"), "smoke") == Path("data/smoke/authors-v9/mask/seed0")
        assert runs[1].options()[:2] == ["--env", str(folder / "authors-v9.json")]
        assert list(plan.planned(path, Path("data"), authors))[1] == Path("data/smoke/authors-v9/mask/seed0")


def test_what_is_on_the_authors_cities_is_drawn_from_the_records_that_are_there(tmp_path):
    """At any scale where the city is missing; as asked where it is there; refused, once, where there is neither."""
    path, data, authors = experiments_file(tmp_path, **THEIRS), tmp_path / "runs", tmp_path / "cities"
    asked = ("auto", "smoke", "quick", "paper")
    for scale in asked:
        with pytest.raises(config.ConfigError) as caught:
            plan.scale_drawn(path, "x", data, scale)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in ("mask", "authors-v9.json", "authors=DIR", "import-city"))
    authors.mkdir()
    generate(5, 2).to_json(authors / "authors-v9.json")
    assert [plan.scale_drawn(path, "x", data, scale, authors) for scale in asked] == ["quick", *asked[1:]]
    recorded(path, data, "quick", authors)
    (authors / "authors-v9.json").unlink()
    assert {plan.scale_drawn(path, "x", data, scale) for scale in asked} == {"quick"}
    generate(5, 2).to_json(authors / "authors-v9.json")
    recorded(path, data, "paper", authors)
    assert [plan.scale_drawn(path, "x", data, scale) for scale in asked] == ["paper", "paper", "quick", "paper"]


def test_experiments_in_one_figure_are_drawn_at_one_scale(tmp_path):
    names = ["printed_8b", "printed_A1", "printed_B2", "printed_B4", "printed_B4_reward"]
    for name in names:
        recorded(EXPERIMENTS, tmp_path, "quick", name=name)
    for done in range(len(names)):
        assert {plan.scale_drawn(EXPERIMENTS, name, tmp_path) for name in names} == {"quick"}, done
        recorded(EXPERIMENTS, tmp_path, "paper", name=names[done])
    assert {plan.scale_drawn(EXPERIMENTS, name, tmp_path) for name in names} == {"paper"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hue": "red"}, ["experiment x", "'hue'", "environments, notebook, runs, title", "colour, figure, scales"]),
        ({"scales": {"huge": {"steps": 1}}}, ["experiment x", "'huge'", "smoke, quick, paper"]),
        ({"settings": {"speed": 1}}, ["experiment x, run mask", "'speed'", "choose one of", "list --settings"]),
        (
            {"scales": {"quick": {"speed": 1}}},
            ["experiment x, run mask", "'speed'", "choose one of", "list --settings"],
        ),
        ({"runs": {"mine": None}}, ["experiment x, run mine", "unknown method 'mine'", "wol-ddpg"]),
    ],
)
def test_a_wrong_key_in_an_experiment_is_refused_by_name(tmp_path, keys, words):
    path = experiments_file(tmp_path, **keys)
    with pytest.raises(config.ConfigError) as caught:
        plan.runs(path, "x", "quick")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [str(path), *words]), message
