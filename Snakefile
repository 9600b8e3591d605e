"""experiments.yaml → training runs → records → notebooks → figures.

    snakemake --cores 4                          every figure from the largest scale whose records are complete
    snakemake --cores 4 --config scale=smoke     train what a scale (smoke, quick, paper) lacks and draw from it alone

Other --config keys: data_dir (records, default data/runs), fig_dir (default figures, at the smoke scale
build/smoke/figures), device (auto, cpu, cuda), authors (folder of the paper authors' cities, authors-v4.json for
authors/v4 in experiments.yaml; without it their figures are drawn from the records that are there, at any scale).
Logs: build/logs; executed notebooks: build/notebooks.
"""

import fcntl
import hashlib
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from flowrl.study.config import ConfigError, choose
from flowrl.study.plan import experiments, planned, runs, scale_drawn
from flowrl.study.queue import peak_mb, seconds
from flowrl.study.records import figures as drawn_from_records

EXPERIMENTS = Path("experiments.yaml")

try:
    for key in config:
        choose("--config key", key, ("scale", "data_dir", "fig_dir", "device", "authors"))
    SCALE = config.get("scale", "auto")
    BUILD = "build/smoke" if SCALE == "smoke" else "build"
    DATA = Path(config.get("data_dir", "data/runs"))
    FIGURES = Path(config.get("fig_dir", "build/smoke/figures" if SCALE == "smoke" else "figures"))
    AUTHORS = Path(config["authors"]) if "authors" in config else None
    PLANNED = {str(record): run for record, run in planned(EXPERIMENTS, DATA, AUTHORS).items()}
    DRAWN = {name: scale_drawn(EXPERIMENTS, name, DATA, SCALE, AUTHORS) for name in experiments(EXPERIMENTS)}
except ConfigError as error:
    raise WorkflowError(str(error)) from None

# Notebooks that compute what they draw: the modules that it depends on, and what they write.
COMPUTED = {
    "00_quickstart": (
        "a2c returns envs/draw envs/gym fit fitted study/evaluation study/sliders truth/exact",
        "quickstart_city.pdf quickstart_city.png quickstart_own.pdf quickstart_own.png",
    ),
    "01_flow_policy": ("flows policies study/sliders truth/gradients", "fig2.pdf fig2.png"),
    "02_log_prob_estimators": (
        "estimators policies study/diagrams study/sliders truth/gradients",
        "figB_estimators.pdf figB_estimators.png",
    ),
    "03_rejection_gradient": (
        "policies rejection study/diagrams study/sliders truth/exact truth/gradients",
        "fig1.pdf fig1.png figB_corrections.pdf figB_corrections.png figB_critic_offset.pdf figB_critic_offset.png",
    ),
    "04_environments": (
        "study/diagrams truth/exact truth/orbits truth/search envs/city envs/classic envs/draw envs/era envs/partial"
        " envs/pistonball",
        "fig3.pdf fig3.png figB_cities.pdf figB_cities.png tabB_environments.csv"
        " figB_columbus_map.pdf figB_columbus_map.png",
    ),
    "06_constrained": ("", "front.pdf front.png"),
    "07_partial": (
        "envs/line envs/partial study/measured truth/exact truth/line",
        "figB_toy_policies.pdf figB_toy_policies.png",
    ),
    "08_cost": (
        "envs/city study/measured truth/search",
        "figB_scaling.pdf figB_scaling.png figB_large_valid.pdf figB_large_valid.png"
        " figB_large_stuck.pdf figB_large_stuck.png",
    ),
    "09_ablations": ("", "tabA1.csv"),
    "10_appendix": (
        "a2c returns envs/gym fit fitted policies study/measured",
        "figD.pdf figD.png figD_era.pdf figD_era.png tabA2.csv",
    ),
    "11_released": ("optimisers study/measured", "figB_rmsprop.pdf figB_rmsprop.png"),
    "12_rare": (
        "beyond/chains policies rejection study/measured truth/chains truth/search",
        "figB_ellipse.pdf figB_ellipse.png figB_mixing.pdf figB_mixing.png",
    ),
    "13_iar_a2c_from_scratch": (
        "a2c returns envs/era fit fitted policies rejection study/diagrams truth/exact",
        "idea.pdf idea.png scratch.pdf scratch.png",
    ),
    "14_gumbel_flow": (
        "beyond/gumbel policies rejection study/diagrams study/sliders truth/gradients truth/gumbel",
        "figB_pathwise.pdf figB_pathwise.png",
    ),
}
NOTEBOOKS = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))
PYTHON = shlex.quote(sys.executable)
RECORD = f"{DATA}/{{scale}}/{{env}}/{{label}}/seed{{seed}}"
os.environ["SOURCE_DATE_EPOCH"] = "1701388800"  # figures of equal records are equal bytes

# No more trainings at a time than the machine has cores, whatever --cores says; `--resources train=N` overrides it.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
if "train" not in workflow.global_resources:
    workflow.register_resource("train", CORES)


# Snakemake's own lock outlives a killed process (profiles/default turns it off), this one ends with it.
Path("build").mkdir(exist_ok=True)
LOCK = open("build/.snakemake.lock", "w")


onstart:
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError("another snakemake is at work in this folder; wait for it, or use another clone") from None


def drawn_by(notebook):
    """The experiments that a notebook draws."""
    return [name for name, experiment in experiments(EXPERIMENTS).items() if experiment["notebook"] == notebook]


def records(notebook):
    """The record files of a notebook's experiments, each at the scale it is drawn from."""
    paths = [run.path(DATA, DRAWN[name]) for name in drawn_by(notebook) for run in runs(EXPERIMENTS, name, DRAWN[name])]
    return [f"{path}{suffix}" for path in dict.fromkeys(paths) for suffix in (".csv", ".json")]


def figures(notebook):
    """What a notebook writes: what it computes, and of its records each figure and the final scores in it."""
    drawn = [f"{name}{suffix}" for name in drawn_from_records(notebook) for suffix in (".pdf", ".png", ".csv")]
    return [f"{FIGURES}/{name}" for name in [*drawn, *COMPUTED.get(notebook, ("", ""))[1].split()]]


def modules(notebook):
    """The modules that what a notebook computes depends on."""
    return [f"flowrl/{name}.py" for name in COMPUTED.get(notebook, ("", ""))[0].split()]


def measured(notebook):
    """What a notebook draws beside records: timings, runs of other code."""
    folder = {
        "04_environments": "comparisons", "08_cost": "benchmarks", "10_appendix": "benchmarks",
        "11_released": "comparisons", "12_rare": "benchmarks",
    }.get(notebook)
    return sorted(map(str, Path("data", folder).glob("*.csv"))) if folder else []


def drawn_from(notebook):
    """A file whose name tells scales and data folder: its absence redraws, also where every record is older."""
    source = repr([str(DATA), [(name, DRAWN[name]) for name in drawn_by(notebook)]])
    return f"{BUILD}/drawn/{notebook}/{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def train_options(wildcards):
    """The command line of one run of experiments.yaml."""
    run = PLANNED[RECORD.format(**wildcards)]
    return shlex.join([*run.options(), "--out", f"{DATA}/{wildcards.scale}"])


def minutes(wildcards, attempt):
    """A training's time limit on a cluster: three times what records of its kind say, an hour where there is none."""
    expected = seconds(PLANNED[RECORD.format(**wildcards)], DATA) or 1200
    return attempt * (10 + 3 * int(expected) // 60)


def memory(wildcards, attempt):
    """A training's memory on a cluster in MiB: 3000, or more where records of its kind took more, and each attempt more."""
    peak = peak_mb(PLANNED[RECORD.format(**wildcards)], DATA) or 0
    return max(3000, attempt * (500 + 3 * int(peak) // 2))


rule all:
    """Every record, figure and executed notebook."""
    input:  # what lies between, too: a missing file is not rebuilt where all that comes of it is there
        [(records(notebook), drawn_from(notebook), figures(notebook)) for notebook in NOTEBOOKS],
        [f"{BUILD}/notebooks/{notebook}.ipynb" for notebook in NOTEBOOKS],
    message:
        "All records and figures are there ({FIGURES})"


rule train:
    """One training run. No inputs: a record stands until its file is gone; its config hash tells whether it is stale."""
    output:
        # update: a record that is there is neither deleted first nor lost if the job fails
        update(f"{RECORD}.csv"),
        update(f"{RECORD}.json"),
    message:
        "Training {wildcards.label}, seed {wildcards.seed}, on {wildcards.env} ({wildcards.scale})"
    log:
        f"build/logs/{{scale}}/{{env}}/{{label}}/seed{{seed}}.log",
    wildcard_constraints:
        scale="smoke|quick|paper",
        seed=r"\d+",
    params:
        options=train_options,
        device=config.get("device", "auto"),
    resources:
        train=1,
        runtime=minutes,
        mem_mb=memory,
    shell:
        "{PYTHON} -m flowrl train {params.options} --wait --device {params.device:q} > {log:q} 2>&1"


rule drawn_from:
    """Mark what a notebook's figures are drawn from, and unmark what they were drawn from before."""
    output:
        f"{BUILD}/drawn/{{notebook}}/{{hash}}",
    message:
        "Noting the scale of {wildcards.notebook}"
    shell:
        "rm -f {BUILD}/drawn/{wildcards.notebook}/* && touch {output}"


for notebook in NOTEBOOKS:

    rule:
        """Run a notebook on its records: figures, tables, and the executed notebook."""
        name:
            f"notebook_{notebook}"
        input:
            "experiments.yaml",
            "flowrl/study/config.py",
            "flowrl/study/plan.py",
            "flowrl/study/figures.py",
            "flowrl/study/plots.py",
            "flowrl/study/quantities.py",
            "flowrl/study/records.py",
            "flowrl/study/stats.py",
            "flowrl/study/words.py",
            modules(notebook),
            measured(notebook),
            drawn_from(notebook),
            records(notebook),
            notebook=f"notebooks/{notebook}.ipynb",
        output:
            [update(path) for path in figures(notebook)],
            executed=f"{BUILD}/notebooks/{notebook}.ipynb",
        message:
            f"Running notebooks/{notebook}.ipynb"
        log:
            f"{BUILD}/logs/{notebook}.log",
        resources:
            runtime=30,
        shell:  # papermill, but for a kernel that falls silent
            "{PYTHON} -m flowrl.study.notebook {input.notebook:q} {output.executed:q} -k python3 --no-progress-bar"
            " --start-timeout 600"
            " -p scale {SCALE:q} -p data_dir {DATA:q} -p figure_dir {FIGURES:q} > {log:q} 2>&1"
