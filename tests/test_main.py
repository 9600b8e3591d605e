"""The command line: what it prints, and one line with exit status 2 for every bad input, nothing written."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

import flowrl
from flowrl.__main__ import main
from flowrl.envs.city import City
from flowrl.study.config import DESCRIBED_METHODS, TrainConfig, make_config
from flowrl.study.plan import experiments
from flowrl.study.records import ROOT
from flowrl.truth import exact, search

FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}
QUICK = ["--quiet", "--set", "n_envs=8", "--set", "final_episodes=2", "--set", "eval_episodes=2"]


def run(capsys, *words):
    """Exit status, standard output, standard error."""
    try:
        status = main(list(map(str, words)))
    except SystemExit as stopped:
        status = stopped.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--env", "ERA-v9"], ["ERA-v9", "ERA-v4"]),
        (["--env", "nowhere.json"], ["nowhere.json"]),
        (["--method", "sarsa"], ["sarsa", "iar-a2c", "mask"]),
        (["--set", "speed=1"], ["speed", "choose one of", "list --settings"]),
        (["--set", "correction=half"], ["half", "leave_one_out"]),
        (["--set", "n_draws"], ["n_draws", "key=value"]),
        (["--set", "seed=3"], ["seed", "--seed"]),
        (["--steps", "-5"], ["-5"]),
        (["--steps", "some"], ["some"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--colour", "red"], ["--colour"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, tmp_path, words, named):
    out = tmp_path / "out"
    defaults = {"--env": "ERA-v1", "--method": "mask", "--steps": "8"}
    given = dict(zip(words[::2], words[1::2], strict=True))
    arguments = [word for pair in (defaults | given).items() for word in pair]
    status, _, error = run(capsys, "train", *arguments, "--out", out, *QUICK)
    assert status == 2
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert all(word in error for word in named), error
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, _, error = run(capsys, "train", "--env", "ERA-v1", "--method", "mask", "--out", tmp_path / "file", *QUICK)
    assert status == 2 and str(tmp_path / "file") in error and len(error.strip().splitlines()) == 1


def test_a_malformed_city_is_named_and_nothing_written(capsys, tmp_path):
    city = tmp_path / "town.json"
    City.load("ERA-v1").to_json(city)
    city.write_text(city.read_text().replace('"epsilon": 0.05', '"epsilon": 7'))
    status, _, error = run(capsys, "train", "--env", city, "--method", "mask", "--out", tmp_path / "out", *QUICK)
    assert status == 2 and "epsilon" in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_train_on_a_city_of_ones_own_and_evaluate_it(capsys, tmp_path):
    city = tmp_path / "town.json"
    assert run(capsys, "generate", "--districts", 5, "--resources", 2, "--seed", 1, "--out", city)[0] == 0
    status, said, _ = run(
        capsys,
        "train",
        "--env",
        city,
        "--method",
        "iar-a2c",
        "--steps",
        64,
        "--out",
        tmp_path,
        "--name",
        "mine",
        *QUICK,
    )
    assert status == 0 and "0 violations" in said
    record = tmp_path / "town" / "mine" / "seed0.json"
    facts = json.loads(record.read_text())
    status, said, _ = run(capsys, "evaluate", record, "--json")
    assert status == 0 and json.loads(said)["return_mean"] == facts["final_return_mean"]


def test_evaluate_without_weights_names_the_file(capsys, tmp_path):
    status, _, error = run(capsys, "evaluate", tmp_path / "seed0.json")
    assert status == 2 and "seed0.pt" in error


def test_evaluate_a_record_without_weights_says_how_to_make_them(capsys, tmp_path):
    run(capsys, "train", "--env", "ERA-v1", "--method", "mask", "--steps", 8, "--out", tmp_path, *QUICK)
    record = tmp_path / "ERA-v1" / "mask" / "seed0.json"
    record.with_suffix(".pt").unlink()
    status, _, error = run(capsys, "evaluate", record)
    assert status == 2
    assert "train --env ERA-v1 --method mask --seed 0 --steps 8 --name mask --set n_envs=8" in " ".join(error.split())


def test_optimum_prints_the_exact_returns(capsys):
    status, said, _ = run(capsys, "optimum", "ERA-v2", "--json")
    assert status == 0 and json.loads(said) == exact.optimum(City.load("ERA-v2"))
    assert set(json.loads(said)) == {"optimal", "go_and_stay", "uniform_valid", "valid_fraction"}
    status, said, _ = run(capsys, "optimum", "ERA-v2")
    assert status == 0 and len(said.splitlines()) == 4


def test_optimum_of_a_game_is_that_of_policies_without_memory(capsys):
    status, said, _ = run(capsys, "optimum", "ERA-Partial", "--json")
    assert status == 0
    found = json.loads(said)
    assert found == exact.partial_reference("ERA-Partial")
    # each step serves the incident with chance 1/3 or 1/9, or by one of nine uniform actions: 100 steps of 10
    by_hand = {"optimal": 1000 / 3, "factored": 1000 / 9, "uniform_valid": 1000 / 9, "valid_fraction": 1}
    assert found == pytest.approx(by_hand)


def test_optimum_of_a_large_city_is_what_search_found(capsys):
    known = search.reference("ERA-L-6x10")
    status, said, _ = run(capsys, "optimum", "ERA-L-6x10", "--json")
    assert status == 0 and json.loads(said) == known
    status, said, _ = run(capsys, "optimum", "ERA-L-6x10")
    shown = dict(line.split()[:2] for line in said.splitlines())
    assert status == 0 and shown["optimal"] == "unknown"
    assert float(shown["go_and_stay"]) == pytest.approx(known["go_and_stay"], abs=1e-4)


def test_no_optimum_is_known_for_control(capsys):
    status, said, error = run(capsys, "optimum", "CartPole-v1")
    assert status == 2 and not said
    assert error == "flowrl: no optimum is known for CartPole-v1; it is for cities, hidden incidents and lines\n"


def test_list_describes_every_method_and_experiment(capsys):
    lines = [line.split(None, 1) for line in run(capsys, "list")[1].splitlines() if line.startswith("  ")]
    said = dict(line for line in lines if len(line) == 2)
    for name, (described, _) in DESCRIBED_METHODS.items():
        assert said[name] == described
    for name, experiment in experiments(ROOT / "experiments.yaml").items():
        assert said[name] == experiment["title"]


def test_list_names_environments_methods_experiments(capsys):
    status, said, _ = run(capsys, "list")
    assert status == 0
    assert all(word in said for word in ("ERA-v1-tight", "ERA-v5-free", "iar-a2c-paper", "ar-iar", "mask", "fig5"))


@pytest.mark.parametrize("method", ["iar-a2c", "iar-a2c-gumbel", "mask"])
def test_the_defaults_listed_are_those_of_training_and_of_fit(capsys, method):
    """As printed: the default, over it the method's own, over that the one in fit."""
    status, said, _ = run(capsys, "list", "--settings")
    lines = [line.split() for line in said.splitlines()]
    own = dict(pair.split("=") for pair in next(line[1:] for line in lines if line[0] == method and "=" in line[1]))
    printed = {line[:20].strip(): (line[20:34].strip(), line[34:42].strip()) for line in said.splitlines()}
    trained = make_config("CartPole-v1", method)
    fitted = flowrl.fit("CartPole-v1", method=method, progress=False, callback=lambda trainer: False).config
    assert status == 0
    for name in FIELDS - {"env", "method"}:
        default, in_fit = printed[name]
        assert str(getattr(trained, name)) == own.get(name, default), name
        assert str(getattr(fitted, name)) == (in_fit or own.get(name, default)), name


@pytest.mark.parametrize("command", [[], ["train"], ["optimum"], ["evaluate"], ["generate"], ["import-city"], ["list"]])
def test_help_is_there(capsys, command):
    status, said, _ = run(capsys, *command, "--help")
    assert status == 0 and "usage" in said


def test_a_city_of_more_than_int64_actions(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "RESTARTS", 1)  # the reference need not be good
    out = tmp_path / "city.json"
    status, said, _ = run(capsys, "generate", "--districts", 24, "--resources", 14, "--seed", 2**70, "--out", out)
    assert status == 0 and "21,035,720,123,168,587,776 actions" in said
    out.write_text(json.dumps(json.loads(out.read_text()) | {"horizon": 5}))  # short evaluations
    status, said, _ = run(
        capsys, "train", "--env", out, "--method", "iar-a2c", "--steps", 16, "--out", tmp_path, *QUICK,
        "--set", "chains=2", "--set", "sweeps=1", "--set", "n_draws=8", "--set", "max_draws=8", "--set", "hidden=16",
    )  # fmt: skip
    assert status == 0 and "0 violations" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["evaluate", "seed0.json", "--episodes", "0"], ["--episodes is 0", "at least 1"]),
        (["generate", "--districts", "5", "--out", "city.txt"], ["city.txt", ".json"]),
        (["import-city", "theirs.json", "--out", "city.txt"], ["city.txt", ".json"]),
        (["train", "--env", "ERA-v1", "--method", "mask", "--out", "o", "--name", "../x"], ["--name", "../x"]),
        (["train", "--env", "ERA-v1", "--method", "mask", "--out", "o", "--name", ""], ["--name", "empty"]),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    status, _, error = run(capsys, *words)
    assert status == 2 and len(error.strip().splitlines()) == 1 and all(word in error for word in named)
    assert not list(tmp_path.iterdir())


def test_a_city_is_not_overwritten_unasked(capsys, tmp_path):
    city = tmp_path / "town.json"
    command = ["generate", "--districts", 5, "--resources", 2, "--out", city, "--seed"]
    status, said, _ = run(capsys, *command, 1)
    assert status == 0 and f"25 actions, {100 * exact.optimum(city)['valid_fraction']:.3g} % of them valid" in said
    first = city.read_text()
    status, _, error = run(capsys, *command, 2)
    assert status == 2 and "--force" in error and city.read_text() == first
    assert run(capsys, *command, 2, "--force")[0] == 0 and city.read_text() != first


def test_no_command_lists_them(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert all(f"\n    {command}" in said for command in ("train", "queue", "import-city", "claims"))


def test_a_city_of_the_authors_is_imported(capsys, tmp_path):
    """Two targets, one resource, made up here: worth 1 and −1 wherever it waits, as emergencies go to and fro."""
    game, city = tmp_path / "theirs.json", tmp_path / "authors/mine.json"
    instance = {
        "payoff_matrix": [[1, -1, 0, 0], [1, -1, 0, 0]],
        "adj_matrix": [[0, 1], [1, 0]],
        "cost_matrix": [[0, 3], [3, 0]],
        "def_constraints": [],
        "num_rsc": 1,
        "num_tgt": 2,
    }
    game.write_text(json.dumps(instance))
    status, said, _ = run(capsys, "import-city", game, "--out", city)
    assert status == 0 and "2 districts, 1 resources, 2 actions, 100 % of them valid" in said
    found = json.loads(run(capsys, "optimum", city, "--json")[1])
    assert found["optimal"] == pytest.approx(0) == found["go_and_stay"]  # moving costs more than it can win
    first = city.read_text()
    ring = {"num_rsc": 3, "def_constraints": [[0, 1], [1, 2], [0, 2]]}  # valid actions are not counted there
    game.write_text(json.dumps(instance | ring))
    status, _, error = run(capsys, "import-city", game, "--out", city)
    assert status == 2 and "--force" in error and city.read_text() == first
    status, said, _ = run(capsys, "import-city", game, "--out", city, "--force")
    assert status == 0 and said.endswith("8 actions\n") and City.load(city).resources == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", ["not JSON"]),
        ("[]", ["a JSON list", "num_tgt"]),
        ('{"districts": 4}', ["num_tgt", "missing key"]),
        (None, ["cannot be read"]),
    ],
)
def test_what_is_no_city_of_the_authors_is_one_line(capsys, tmp_path, text, named):
    game, city = tmp_path / "theirs.json", tmp_path / "mine.json"
    if text is not None:
        game.write_text(text)
    status, _, error = run(capsys, "import-city", game, "--out", city)
    assert status == 2 and len(error.strip().splitlines()) == 1
    assert all(word in error for word in [str(game), *named]), error
    assert not city.exists()


def test_a_city_of_one_resource(capsys, tmp_path):
    path = tmp_path / "one.json"
    assert run(capsys, "generate", "--districts", 5, "--resources", 1, "--out", path)[0] == 0
    assert City.load(path).proximity == []


def shell(command, tmp_path, **environment):
    """Exit status, standard output, standard error of a shell's command, `flowrl` standing for this program."""
    program = f"{shlex.quote(sys.executable)} -m flowrl"
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command.replace("flowrl", program)],
        capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    status, out, err = shell("flowrl list --settings | head -n 1", tmp_path)
    assert (out.count(b"\n"), err) == (1, b"") and status in (0, 128 + signal.SIGPIPE)


def test_a_terminal_without_unicode_costs_no_record(tmp_path):
    command = f"flowrl train --env ERA-v1 --method mask --steps 64 --out . {' '.join(QUICK)}"
    status, out, err = shell(command, tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (status, err) == (0, b"") and b" ? " in out
    assert (tmp_path / "ERA-v1" / "mask" / "seed0.json").exists()
