"""Kill and resume: whatever moment a run dies at, the same call again ends in the record of a run that never died.

Runs are forked, so that a seed's moment of death is the only thing that differs from a user's `kill -9`. Marked `long`.
"""

import contextlib
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from problems import project_without_records

from flowrl.a2c import Trainer
from flowrl.study import records, runs
from flowrl.study.config import make_config
from flowrl.study.records import ROOT

pytestmark = pytest.mark.long

SMALL = {"eval_every": 320, "eval_episodes": 2, "final_episodes": 8, "hidden": 16, "policy_hidden": 16, "n_envs": 8}
WOL = {"learning_starts": 100, "replay_size": 500, "replay_batch": 16}
PAIRS = [
    ("iar-a2c", "ERA-v1", {}),
    ("iar-a2c-gumbel", "ERA-v1", {}),
    ("iar-a2c-paper", "ERA-v1", {"n_draws": 8, "n_correction": 8, "elbo_batch": 16}),
    ("iar-a2c-released", "ERA-v1", {"n_draws": 8, "n_correction": 8, "elbo_batch": 16}),
    ("mask", "ERA-v1", {}),
    ("ar-iar", "ERA-v1", {}),
    ("factored-iar", "ERA-v1", {}),
    ("iar-a2c-gumbel", "ERA-v3-tight", {"chains": 4}),
    ("iar-a2c-gumbel", "ERA-v3-tight", {"chains": 4, "carry": True}),
    ("factored-iar", "Line-4x8", {}),
    ("wol-ddpg", "ERA-v1", WOL),
    ("a2c", "CartPole-v1", {}),
    ("factored", "ERA-Partial", {}),
    ("ar", "Toy-Partial", {}),
    ("iar-a2c", "Joint-Cstr", {}),
    ("iar-a2c", "Acrobot-v1", {"steps": 640}),
    ("mask", "Pistonball-v1-cstr",
     {"n_envs": 16, "steps": 320, "eval_every": 160, "eval_episodes": 1, "final_episodes": 1}),
]  # fmt: skip
KILLS = 4  # of each pair: 68 in all


@pytest.fixture(autouse=True)
def same_commit(monkeypatch):
    """Whoever commits meanwhile changes no record."""
    made_with = records.provenance(torch.device("cpu"))
    monkeypatch.setattr(runs, "provenance", lambda device: made_with)


def small(method, env, settings):
    return make_config(env, method, SMALL | {"steps": 960, "seed": 0} | settings)


def forked(config, out, before=lambda: None) -> int:
    """A process that trains a configuration: exit status 0, or 3 and what went wrong in <out>/error."""
    pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        os.setsid()  # workers that outlive it are found by its session
        runs.CHECKPOINT_SECONDS = 0.02
        before()
        runs.train(config, out, progress=False)
        status = 0
    except BaseException as error:
        (Path(out) / "error").write_text(repr(error))
    finally:
        os._exit(status)


def status_of(pid) -> int:
    """Exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train(config, out, before=lambda: None) -> float:
    """Train to the end; seconds."""
    began = time.monotonic()
    assert status_of(forked(config, out, before)) == 0, (Path(out) / "error").read_text()
    return time.monotonic() - began


def record(config, out):
    """Curve and facts, but for what tells the time or the process's memory."""
    path = records.record_path(out, config.env, config.method, config.seed)
    facts = json.loads(records.with_suffix(path, ".json").read_text())
    for name in ("wall_s", "train_s", "env_steps_per_s", "peak_mb", "started", "ended"):
        del facts[name]
    return pd.read_csv(records.with_suffix(path, ".csv")).drop(columns=["wall_s", "train_s"]), facts


def assert_same_record(config, out, whole):
    curve, facts = record(config, out)
    expected, expected_facts = record(config, whole)
    pd.testing.assert_frame_equal(curve, expected, check_exact=True)
    assert facts == expected_facts
    assert not [path for path in Path(out).rglob(".*") if path.suffix != ".lock"]  # nothing half-written is left


def session_members(session) -> list[int]:
    """The living processes of a session."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def two_workers():
    """As on a GPU's machine, where torch has threads: Pistonball's 16 environments are in two other processes."""
    torch.get_num_threads = lambda: 2


def workers_of(pid) -> list[int]:
    """Waits until a run has its two workers."""
    until = time.monotonic() + 60
    while len(members := session_members(pid)) < 3:
        assert time.monotonic() < until, "no workers after a minute"
        time.sleep(0.001)
    return [member for member in members if member != pid]


@pytest.mark.parametrize(("method", "env", "settings"), PAIRS)
def test_killed_at_random_moments(tmp_path, method, env, settings):
    """The run, or one of its workers, which ends the run."""
    config, rng = small(method, env, settings), np.random.default_rng([*f"{method} {env}".encode()])
    victims, before = ["run"] * KILLS, lambda: None
    if env.startswith("Pistonball"):
        victims, before = ["run", "worker"] * (KILLS // 2), two_workers
    seconds = train(config, tmp_path / "whole", before)
    while victims:
        pid = forked(config, tmp_path / "killed", before)
        victim = pid if victims[0] == "run" else rng.choice(workers_of(pid))
        time.sleep(rng.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):  # a worker that ended with its run
            os.kill(victim, signal.SIGKILL)
        status, error = status_of(pid), tmp_path / "killed/error"
        assert status in (0, 3, -signal.SIGKILL)
        if status == 3:
            assert victim != pid and "died with exit code -9" in error.read_text()
            error.unlink()
        if status:
            victims.pop(0)
        path = records.record_path(tmp_path / "killed", env, method, 0)
        if records.with_suffix(path, ".json").exists():  # it was quicker: begin again, kill until there are enough
            train(config, tmp_path / "killed", before)  # the same again, as it may have died in its last checkpoint
            assert_same_record(config, tmp_path / "killed", tmp_path / "whole")
            for suffix in (".json", ".csv", ".pt"):
                records.with_suffix(path, suffix).unlink()
        until = time.monotonic() + 10
        while session_members(pid) and time.monotonic() < until:  # workers notice that nobody speaks to them
            time.sleep(0.05)
        assert not session_members(pid)
    train(config, tmp_path / "killed", before)
    assert_same_record(config, tmp_path / "killed", tmp_path / "whole")


def die_at(module, name: str, call: int, first=lambda *_: None):
    """Patch a function so that its call-th call kills the process, after `first`."""
    original, calls = getattr(module, name), iter(range(10**9))

    def patched(*arguments, **options):
        if next(calls) == call:
            first(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(module, name, patched)


def half(state, file):
    """What a write that is cut off leaves."""
    torch_save(state, file)
    file.flush()
    file.truncate(file.tell() // 2)


torch_save = torch.save


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize(
    ("module", "name", "first"), [(os, "replace", lambda *_: None), (torch, "save", half)], ids=["rename", "save"]
)
def test_killed_within_a_write(tmp_path, module, name, first, call):
    config = small("iar-a2c", "ERA-v1", {})
    train(config, tmp_path / "whole")
    pid = forked(config, tmp_path / "killed", lambda: die_at(module, name, call, first))
    assert status_of(pid) == -signal.SIGKILL
    train(config, tmp_path / "killed")
    assert_same_record(config, tmp_path / "killed", tmp_path / "whole")


def test_killed_between_the_two_files_of_a_record_that_replaces_another(tmp_path):
    """A curve never stands beside the facts of another run: there is no record then, and the same call makes it."""
    old, new = (small("mask", "ERA-v1", {"gamma": gamma}) for gamma in (0.9, 0.95))
    train(new, tmp_path / "whole")
    train(old, tmp_path / "killed")
    path = records.record_path(tmp_path / "killed", "ERA-v1", "mask", 0)

    def die_after_the_curve():
        whole_train, replace = runs.train, os.replace

        def dying(source, target):
            replace(source, target)
            if str(target).endswith(".csv"):
                os.kill(os.getpid(), signal.SIGKILL)

        runs.train = lambda config, out, progress: whole_train(config, out, force=True, progress=progress)
        os.replace = dying

    assert status_of(forked(new, tmp_path / "killed", die_after_the_curve)) == -signal.SIGKILL
    assert records.with_suffix(path, ".csv").exists() and not records.with_suffix(path, ".json").exists()
    train(new, tmp_path / "killed")
    assert_same_record(new, tmp_path / "killed", tmp_path / "whole")


def test_a_full_disk_costs_no_record_and_no_steps(tmp_path, capfd):
    """One line; the old record stands; with space again the same command goes on."""
    from flowrl.__main__ import main

    config = small("mask", "ERA-v1", {})
    options = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    command = ["train", "--env", "ERA-v1", "--method", "mask", "--steps", "960", "--quiet", *options, "--out"]
    train(config, tmp_path / "whole")
    train(dataclasses.replace(config, gamma=0.9), tmp_path / "full")
    old = record(config, tmp_path / "full")
    checkpoint = records.with_suffix(records.record_path(tmp_path / "whole", "ERA-v1", "mask", 0), ".pt")
    for limit in (2000, checkpoint.stat().st_size // 2):
        pid = os.fork()
        if not pid:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            os._exit(main([*command, str(tmp_path / "full"), "--force"]))
        assert status_of(pid) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and said.startswith("flowrl: ") and "File too large" in said
        curve, facts = record(config, tmp_path / "full")
        assert curve.equals(old[0]) and facts == old[1]
    assert main([*command, str(tmp_path / "full"), "--force"]) == 0
    assert_same_record(config, tmp_path / "full", tmp_path / "whole")


def test_sigterm_saves_and_ends_at_once(tmp_path):
    """A scheduler's end of walltime: the checkpoint is of the last update, the next job goes on."""
    config = small("iar-a2c", "ERA-v1", {"steps": 6400})
    train(config, tmp_path / "whole")

    def terminated_half_way():
        runs.CHECKPOINT_SECONDS = 1e9
        step = Trainer.step

        def patched(self):
            step(self)
            if self.env_steps == 3200:
                os.kill(os.getpid(), signal.SIGTERM)

        Trainer.step = patched

    assert status_of(forked(config, tmp_path / "stopped", terminated_half_way)) == 3
    assert "Interrupted" in (tmp_path / "stopped" / "error").read_text()
    path = records.record_path(tmp_path / "stopped", "ERA-v1", "iar-a2c", 0)
    state = runs.load_checkpoint(records.with_suffix(path, ".pt"), torch.device("cpu"))
    assert state["trainer"]["env_steps"] == 3200 and not state["finished"]
    train(config, tmp_path / "stopped")
    (tmp_path / "stopped" / "error").unlink()
    assert_same_record(config, tmp_path / "stopped", tmp_path / "whole")


def catches(pid, number) -> bool:
    """Whether a process has a handler of its own for a signal."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_sigterm_at_the_command_line(tmp_path):
    """One line, exit status 130; the same command goes on."""
    options = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "flowrl", "train", "--env", "ERA-v1", "--method", "mask", "--steps", "6400",
               "--quiet", *options, "--out", tmp_path / "stopped"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "stopped/ERA-v1/mask/seed0.pt"
    until = time.monotonic() + 300
    while not (checkpoint.exists() and catches(process.pid, signal.SIGTERM)):  # until it trains
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.terminate()
    said = process.communicate()[1]
    assert process.returncode == 130
    [steps] = re.fullmatch(r"flowrl: stopped at (\d+) steps; the same command goes on from there\n", said).groups()
    state = runs.load_checkpoint(checkpoint, torch.device("cpu"))
    assert 0 < state["trainer"]["env_steps"] == int(steps) < 6400
    config = small("mask", "ERA-v1", {"steps": 6400})
    for name in ("stopped", "whole"):
        train(config, tmp_path / name)
    (curve, facts), (expected, expected_facts) = (record(config, tmp_path / name) for name in ("stopped", "whole"))
    pd.testing.assert_frame_equal(curve, expected, check_exact=True)
    own = {"commit", "dirty"}  # the command looks for itself, and somebody may have committed meanwhile
    assert {k: v for k, v in facts.items() if k not in own} == {k: v for k, v in expected_facts.items() if k not in own}


# ------------------------------------------------------------------------------------------------ the pipeline

TARGETS = [f"data/runs/smoke/ERA-v1/{label}/seed0.json" for label in ("mask", "factored-iar")]


def snakemake(folder, *targets):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *(targets or TARGETS)]
    return subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def project(tmp_path):
    return project_without_records(tmp_path)


def curves(folder):
    return [pd.read_csv((folder / name).with_suffix(".csv")).drop(columns=["wall_s", "train_s"]) for name in TARGETS]


def training(first: subprocess.Popen, folder: Path) -> psutil.Process:
    """One that goes on under a living snakemake."""
    until = time.monotonic() + 300
    while True:
        assert first.poll() is None and time.monotonic() < until, first.stdout.read()
        for process in psutil.Process(first.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if words[1:4] == ["-m", "flowrl", "train"] and process.status() != psutil.STATUS_ZOMBIE:
                    label = words[words.index("--name") + 1]
                    if (folder / f"data/runs/smoke/ERA-v1/{label}/seed0.pt").exists():
                        return process
        time.sleep(0.1)


def test_killed_pipeline(project):
    """`kill -9` of a training: the others are made, and the same command makes it, too. Of snakemake: its trainings
    live on, the same command waits for them; no lock is left to be undone."""
    (project / "experiments.yaml").write_text(
        (ROOT / "experiments.yaml").read_text().replace("steps: 3200", "steps: 32000")
    )
    both = [snakemake(project), snakemake(project)]
    while all(one.poll() is None for one in both):
        time.sleep(0.05)
    [refused] = [one for one in both if one.poll() is not None]  # two in one folder: one says so, and spoils nothing
    assert refused.returncode != 0 and "another snakemake is at work in this folder" in refused.stdout.read()
    [first] = [one for one in both if one is not refused]
    training(first, project).kill()
    said = first.communicate()[0]
    assert first.returncode != 0 and sum((project / name).exists() for name in TARGETS) == 1, said
    second = snakemake(project)
    training(second, project)
    second.kill()
    second.wait()
    again = snakemake(project)
    said = again.communicate()[0]
    assert again.returncode == 0, said
    killed = curves(project)
    shutil.rmtree(project / "data/runs")
    assert snakemake(project).wait() == 0
    for curve, expected in zip(killed, curves(project), strict=True):
        pd.testing.assert_frame_equal(curve, expected, check_exact=True)


NOTEBOOK = "build/notebooks/01_flow_policy.ipynb"
DRAWING = """
import time
from pathlib import Path

import matplotlib.pyplot as plt

if Path("pause").exists():
    Path("pause").unlink()
    for suffix in (".pdf", ".png"):
        Path(figure_dir, f"fig2{suffix}").write_bytes(b"half")
    Path("paused").touch()
    while not Path("go on").exists():
        time.sleep(0.1)
fig, ax = plt.subplots()
ax.plot([2, 1, 3])
for suffix in (".pdf", ".png"):
    fig.savefig(f"{figure_dir}/fig2{suffix}")
"""


def outputs(folder) -> dict[str, bytes]:
    """Figures as they are; the executed notebook must be whole."""
    cells = nbformat.read(folder / NOTEBOOK, 4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    assert [path.name for path in (folder / NOTEBOOK).parent.iterdir()] == [Path(NOTEBOOK).name]
    return {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}


def in_mid_notebook(folder) -> tuple[subprocess.Popen, list[psutil.Process], list[psutil.Process]]:
    """Snakemake whose notebook has half its figures and stands still; the processes of the job, those of its kernel."""
    (folder / "pause").touch()
    first, until = snakemake(folder, NOTEBOOK), time.monotonic() + 600
    while not (folder / "paused").exists():
        assert first.poll() is None and time.monotonic() < until, first.stdout.read()
        time.sleep(0.1)
    (folder / "paused").unlink()
    below = psutil.Process(first.pid).children(recursive=True)
    kernel = [process for process in below if "ipykernel_launcher" in process.cmdline()]
    return first, [process for process in below if process not in kernel], kernel


def test_killed_notebook(project):
    """`kill -9` of a notebook's job, with its kernel or without, of the kernel, of snakemake, while figures are half
    written: the same command again ends in the same figures, and nothing outlives them."""
    path = project / "notebooks" / Path(NOTEBOOK).name
    notebook = nbformat.read(path, 4)
    notebook.cells = [*notebook.cells[:2], nbformat.v4.new_code_cell(DRAWING)]  # title and parameters stay
    nbformat.write(notebook, path)
    assert snakemake(project, NOTEBOOK).wait() == 0
    whole = outputs(project)
    assert set(whole) == {"fig2.pdf", "fig2.png"}
    for victim in ("job", "job and kernel", "kernel", "snakemake"):
        for folder in ("build", "figures"):
            shutil.rmtree(project / folder)
        first, job, kernel = in_mid_notebook(project)
        assert job and len(kernel) == 1, victim
        victims = {"job": job, "job and kernel": [*job, *kernel], "kernel": kernel, "snakemake": [first]}[victim]
        for process in victims:
            process.kill()
        assert first.wait() != 0, victim
        again = snakemake(project, NOTEBOOK)
        said = again.communicate()[0]
        assert again.returncode == 0, said
        assert outputs(project) == whole, victim
        (project / "go on").touch()  # what has outlived snakemake ends its work, and spoils nothing
        _, living = psutil.wait_procs([*job, *kernel], 60)
        assert not living and outputs(project) == whole, victim
        (project / "go on").unlink()
