"""Settings and experiments.yaml: every bad value is refused by one line that names it and what is allowed."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from flowrl.envs.city import generate
from flowrl.study import config

YAML = Path(__file__).parent.parent / "experiments.yaml"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"nonsense": 1}, ["nonsense", "n_draws"]),
        ({"correction": "half"}, ["correction", "half", "leave_one_out"]),
        ({"joint_clip": "maybe"}, ["joint_clip", "true, false"]),
        ({"n_draws": "many"}, ["n_draws", "many", "whole number"]),
        ({"n_draws": 1.5}, ["n_draws", "whole number"]),
        ({"n_envs": 0}, ["n_envs", "at least 1"]),
        ({"steps": -1}, ["steps", "negative"]),
        ({"gamma": 1.5}, ["gamma", "(0, 1]"]),
        ({"clip": 0}, ["clip", "positive"]),
        ({"entropy": "nan"}, ["entropy", "finite"]),
        ({"max_draws": 8}, ["max_draws", "n_draws"]),
        ({"n_draws": 1}, ["n_draws", "leave_one_out", "at least 2"]),
        ({"n_correction": 1}, ["n_correction", "at least 2"]),
        ({"policy": "autoregressive", "latent_kl": 0.1}, ["latent_kl", "0 only"]),
        ({"correction": "mean", "n_correction": 1}, ["correction mean", "n_draws and n_correction", "at least 2"]),
        ({"policy": "masked", "latent_kl": 0}, ["leave_one_out", "masked", "only none"]),
        ({"correction": "none", "n_draws": 1}, ["entropy", "n_draws (1)", "n_correction (64)", "at least 2"]),
        ({"correction": "none", "n_correction": 1}, ["entropy", "n_draws (64)", "n_correction (1)", "at least 2"]),
    ],
)
def test_a_bad_setting_is_refused_by_name(overrides, words):
    with pytest.raises(config.ConfigError) as caught:
        config.make_config("ERA-v1", "iar-a2c", overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_unknown_method_names_the_methods():
    with pytest.raises(config.ConfigError, match=r"unknown method 'sarsa'; choose one of: iar-a2c, .*mask"):
        config.make_config("ERA-v1", "sarsa")


def test_text_from_the_command_line_becomes_the_fields_type():
    made = config.make_config("ERA-v1", "iar-a2c", {"n_draws": "8", "clip": "1e-1", "joint_clip": "True"})
    assert (made.n_draws, made.clip, made.joint_clip) == (8, 0.1, True)


def test_hash_ignores_the_seed_and_sees_everything_else():
    base = config.make_config("ERA-v1", "iar-a2c")
    assert base.hash() == config.make_config("ERA-v1", "iar-a2c", {"seed": 5}).hash()
    changed = {"n_draws": 32, "steps": 10, "entropy": 0.1, "estimator": "latent"}
    hashes = {config.make_config("ERA-v1", "iar-a2c", {key: value}).hash() for key, value in changed.items()}
    others = {config.make_config("ERA-v2", "iar-a2c").hash(), config.make_config("ERA-v1", "mask").hash()}
    assert len(hashes | others | {base.hash()}) == 7


def test_hash_sees_the_city_not_its_path(tmp_path):
    from flowrl.envs.city import City

    for name in ("a.json", "b.json"):
        City.load("ERA-v1").to_json(tmp_path / name)
    a, b = (config.make_config(str(tmp_path / name), "mask").hash() for name in ("a.json", "b.json"))
    text = (tmp_path / "b.json").read_text()
    (tmp_path / "b.json").write_text(text.replace('"horizon": 100', '"horizon": 99'))
    assert a == b
    assert a != config.make_config(str(tmp_path / "b.json"), "mask").hash()


def test_every_setting_is_described():
    described = config.describe_settings()
    assert [name for name, *_ in described] == [field.name for field in dataclasses.fields(config.TrainConfig)]
    assert all(doc for *_, doc in described)


def test_as_printed_is_algorithm_2_as_printed():
    printed = config.make_config("ERA-v4", "iar-a2c-paper")
    assert (printed.estimator, printed.alpha, printed.n_posterior, printed.n_draws) == ("sandwich", "adaptive", 4, 32)
    assert (printed.correction, printed.n_correction, printed.posterior) == ("paper", printed.n_draws, "flow")
    assert (printed.joint_clip, printed.clip, printed.actor_lr, printed.critic_lr) == (True, 0.5, 3e-4, 3e-4)
    assert printed.optimiser == "rmsprop_tf"
    assert printed.posterior_fit_steps == printed.valid_bonus == printed.entropy == printed.latent_kl == 0


def test_as_released_is_as_printed_but_for_three_settings():
    printed, released = (dataclasses.asdict(config.make_config("ERA-v4", f"iar-a2c-{name}")) for name in
                         ("paper", "released"))  # fmt: skip
    assert {name: released[name] for name in released if released[name] != printed[name]} == {
        "method": "iar-a2c-released", "base_scale": "shared", "initial_gain": 0.01, "elbo_encoder": False,
    }  # fmt: skip


@pytest.mark.parametrize("setting", ["initial_gain=0.1", "elbo_encoder=false"])
def test_settings_of_latents_and_posteriors_are_refused_without(setting):
    name, value = setting.split("=")
    with pytest.raises(config.ConfigError, match=name):
        config.make_config("ERA-v4", "mask", {name: value})


@pytest.mark.parametrize("scale", config.SCALES)
def test_every_experiment_resolves_at_every_scale(scale):
    for name in config.experiments(YAML):
        runs = config.runs(YAML, name, scale)
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
        config.runs(path, "x", "quick")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_bad_setting_in_experiments_names_experiment_and_run(tmp_path):
    path = tmp_path / "experiments.yaml"
    path.write_text(
        "scales: {quick: {seeds: 1}}\n"
        "experiments: {x: {title: t, notebook: n, environments: [ERA-v1], runs: {bad: {method: mask, n_drwas: 3}}}}"
    )
    with pytest.raises(config.ConfigError, match=r"experiment x, run bad: unknown setting 'n_drwas'"):
        config.runs(path, "x", "quick")


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
    found = {scale: config.runs(path, "x", scale) for scale in config.SCALES}
    assert {scale: len(runs) for scale, runs in found.items()} == {"smoke": 2, "quick": 6, "paper": 4}
    for scale, steps, gamma in [("smoke", 64, 0.5), ("quick", 640, 0.5), ("paper", 9, 0.6)]:
        made = {(run.config.steps, run.config.gamma, run.config.entropy) for run in found[scale]}
        assert made == {(steps, gamma, 0.2)}
        assert {run.label: run.config.hidden for run in found[scale]} == {"mask": 16, "ar-iar": 8}


def test_seeds_of_a_run_are_at_most_the_scales(tmp_path):
    path = experiments_file(tmp_path, runs={"mask": {"seeds": 2}, "ar-iar": {"seeds": 4}, "factored-iar": None})
    for scale, expected in [("smoke", (1, 1, 1)), ("quick", (2, 3, 3)), ("paper", (2, 4, 5))]:
        runs = config.runs(path, "x", scale)
        seeds = {label: [run.config.seed for run in runs if run.label == label] for label in dict.fromkeys(
            run.label for run in runs)}  # fmt: skip
        labels = ("mask", "ar-iar", "factored-iar")
        assert seeds == {label: list(range(n)) for label, n in zip(labels, expected, strict=True)}


def test_a_run_may_differ_at_a_scale_or_not_be_part_of_it(tmp_path):
    entry = {"gamma": 0.7, "seeds": 2, "scales": {"quick": {"seeds": 0}, "paper": {"gamma": 0.8, "seeds": 9}}}
    path = experiments_file(tmp_path, runs={"mask": entry, "ar-iar": None})
    runs = {scale: [run for run in config.runs(path, "x", scale) if run.label == "mask"] for scale in config.SCALES}
    assert [len(runs[scale]) for scale in config.SCALES] == [1, 0, 5]
    assert [runs[scale][0].config.gamma for scale in ("smoke", "paper")] == [0.7, 0.8]


def test_titles_name_runs_and_change_nothing_else(tmp_path):
    plain = experiments_file(tmp_path, runs={"mask": None, "mine": {"method": "mask"}})
    untitled = config.runs(plain, "x", "smoke")
    (tmp_path / "titled").mkdir()
    path = experiments_file(tmp_path / "titled", runs={"mask": {"title": "the mask"}, "mine": {"method": "mask"}})
    assert config.titles(path, "x") == {"mask": "the mask", "mine": "mine"}
    assert config.runs(path, "x", "smoke") == untitled


THEIRS = {"environments": ["ERA-v1", "authors/v9"], "scales": {"paper": {"seeds": 1}}}


def recorded(path, root, scale, authors=None):
    """Empty records of x, but with the digest that its environments have now."""
    for run in config.runs(path, "x", scale, authors):
        record = run.path(root, scale)
        record.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{record}.csv").touch()
        facts = {"config": dataclasses.asdict(run.config), "env_digest": run.config.env_digest()}
        Path(f"{record}.json").write_text(json.dumps(facts))


def test_a_city_of_the_authors_is_found_in_a_folder_of_its_own(tmp_path):
    path = experiments_file(tmp_path, **THEIRS)
    for authors, folder in [(None, tmp_path / "authors"), (tmp_path / "far", tmp_path / "far")]:
        runs = config.runs(path, "x", "smoke", authors)
        assert [run.config.env for run in runs] == ["ERA-v1", str(folder / "authors-v9.json")]
        assert runs[1].path(Path("data"), "smoke") == Path("data/smoke/authors-v9/mask/seed0")
        assert runs[1].options()[:2] == ["--env", str(folder / "authors-v9.json")]
        assert list(config.planned(path, Path("data"), authors))[1] == Path("data/smoke/authors-v9/mask/seed0")


def test_records_on_a_city_that_is_gone_are_compared_by_settings(tmp_path):
    city = generate(5, 2)
    city.to_json(tmp_path / "authors-v9.json")
    made = config.make_config(str(tmp_path / "authors-v9.json"), "mask")
    facts = {"config": dataclasses.asdict(made), "env_digest": city.digest}
    generate(5, 2, seed=1).to_json(tmp_path / "authors-v9.json")
    assert not made.made(facts)
    (tmp_path / "authors-v9.json").unlink()
    assert made.made(facts)
    assert not dataclasses.replace(made, gamma=0.5).made(facts)


def test_what_is_on_the_authors_cities_is_drawn_from_the_records_that_are_there(tmp_path):
    """At any scale where the city is missing; as asked where it is there; refused, once, where there is neither."""
    path, data, authors = experiments_file(tmp_path, **THEIRS), tmp_path / "runs", tmp_path / "cities"
    asked = ("auto", "smoke", "quick", "paper")
    for scale in asked:
        with pytest.raises(config.ConfigError) as caught:
            config.scale_drawn(path, "x", data, scale)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in ("mask", "authors-v9.json", "authors=DIR", "import-city"))
    authors.mkdir()
    generate(5, 2).to_json(authors / "authors-v9.json")
    assert [config.scale_drawn(path, "x", data, scale, authors) for scale in asked] == ["quick", *asked[1:]]
    recorded(path, data, "quick", authors)
    (authors / "authors-v9.json").unlink()
    assert {config.scale_drawn(path, "x", data, scale) for scale in asked} == {"quick"}
    generate(5, 2).to_json(authors / "authors-v9.json")
    recorded(path, data, "paper", authors)
    assert [config.scale_drawn(path, "x", data, scale) for scale in asked] == ["paper", "paper", "quick", "paper"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hue": "red"}, ["experiment x", "'hue'", "environments, notebook, runs, title", "colour, figure, scales"]),
        ({"scales": {"huge": {"steps": 1}}}, ["experiment x", "'huge'", "smoke, quick, paper"]),
        ({"settings": {"speed": 1}}, ["experiment x, run mask", "'speed'", "n_draws"]),
        ({"scales": {"quick": {"speed": 1}}}, ["experiment x, run mask", "'speed'", "n_draws"]),
        ({"runs": {"mine": None}}, ["experiment x, run mine", "unknown method 'mine'", "wol-ddpg"]),
    ],
)
def test_a_wrong_key_in_an_experiment_is_refused_by_name(tmp_path, keys, words):
    path = experiments_file(tmp_path, **keys)
    with pytest.raises(config.ConfigError) as caught:
        config.runs(path, "x", "quick")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [str(path), *words]), message


@pytest.mark.parametrize("method", config.NO_CONSTRAINTS)
def test_methods_that_know_no_constraints_are_refused_where_there_are_some(method):
    words = rf"{method} knows no constraints, ERA-v1 has some; choose one of: iar-a2c, .*mask"
    with pytest.raises(config.ConfigError, match=words):
        config.make_config("ERA-v1", method)
    assert config.make_config("ERA-v1-free", method).correction == "none"
