"""Settings and experiments.yaml: every bad value is refused by one line that names it and what is allowed."""

import dataclasses
from pathlib import Path

import pytest

from flowrl import config

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
    assert printed.posterior_fit_steps == printed.valid_bonus == printed.entropy == printed.latent_kl == 0


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


@pytest.mark.parametrize("method", config.NO_CONSTRAINTS)
def test_methods_that_know_no_constraints_are_refused_where_there_are_some(method):
    words = rf"{method} knows no constraints, ERA-v1 has some; choose one of: iar-a2c, .*mask"
    with pytest.raises(config.ConfigError, match=words):
        config.make_config("ERA-v1", method)
    assert config.make_config("ERA-v1-free", method).correction == "none"
