"""Settings: every bad value is refused by one line that names it and what is allowed."""

import dataclasses

import pytest

from flowrl.envs.city import generate
from flowrl.study import config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"nonsense": 1}, ["nonsense", "choose one of", "list --settings"]),
        ({"correction": "half"}, ["correction", "half", "leave_one_out"]),
        ({"joint_clip": "maybe"}, ["joint_clip", "true, false"]),
        ({"n_draws": "many"}, ["n_draws", "many", "whole number"]),
        ({"n_draws": 1.5}, ["n_draws", "whole number"]),
        ({"n_envs": 0}, ["n_envs", "at least 1"]),
        ({"steps": -1}, ["steps", "negative"]),
        ({"gamma": 1.5}, ["gamma", "[0, 1]"]),
        ({"gamma": -0.1}, ["gamma", "[0, 1]"]),
        ({"anneal": 0}, ["anneal", "(0, 1]"]),
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


@pytest.mark.parametrize("method", config.NO_CONSTRAINTS)
def test_methods_that_know_no_constraints_are_refused_where_there_are_some(method):
    words = rf"{method} knows no constraints, ERA-v1 has some; choose one of: iar-a2c, .*mask"
    with pytest.raises(config.ConfigError, match=words):
        config.make_config("ERA-v1", method)
    assert config.make_config("ERA-v1-free", method).correction == "none"
