"""Every notebook runs, top to bottom, on the records that are there; its form is the one the project agreed on."""

import ast
import contextlib
import itertools
import re

import nbformat
import papermill
import pytest

from flowrl.study.notebook import watched
from flowrl.study.plan import experiments, runs
from flowrl.study.records import EXPERIMENTS, ROOT, figures

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BRIEF = {  # parameters for a quick run of what trains long; whether it learns enough is asked at the notebooks' own
    "00_quickstart": {"city_steps": 6_400, "own_steps": 6_400},
    "10_appendix": {"seeds": 1},
    "11_released": {"updates": 40},
    "13_iar_a2c_from_scratch": {"steps": 6_400, "printed_steps": 640},
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def drawn_by(path):
    """The experiments that a notebook draws."""
    return [name for name, experiment in experiments(EXPERIMENTS).items() if experiment["notebook"] == path.stem]


def link_records(path, folder):
    """Into a folder, the records of a notebook's own experiments: the Snakefile makes it wait for no others."""
    for scale, name in itertools.product(("quick", "paper"), drawn_by(path)):
        for run in runs(EXPERIMENTS, name, scale):
            record, target = (run.path(root, scale).parent for root in (ROOT / "data/runs", folder))
            if record.exists() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(record)


def execute(path, tmp_path, **parameters):
    """Run a notebook as the Snakefile does, on its own records; its figures go to a temporary folder.

    But for the solutions, which `test_exercises_and_their_solutions` runs.
    """
    link_records(path, tmp_path / "runs")
    parameters |= {"data_dir": str(tmp_path / "runs"), "figure_dir": str(tmp_path / "figures")}
    how = dict(kernel_name="python3", progress_bar=False, cwd=ROOT, start_timeout=600, skip_cells_with_tag="solution")
    with watched():
        return papermill.execute_notebook(path, tmp_path / path.name, parameters, **how)


@pytest.mark.parametrize(
    ("source", "limit", "fault"),
    [("import time; time.sleep(99)", {"silence": 5}, "no CPU"), ("while 1: pass", {"most": 4}, "more than")],
    ids=["silent", "endless"],
)
def test_a_kernel_that_is_silent_or_never_ends_is_killed(tmp_path, capsys, source, limit, fault):
    """By its own CPU time: a busy machine kills none."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    how = dict(kernel_name="python3", progress_bar=False, start_timeout=600)
    with pytest.raises(RuntimeError, match="Kernel died"), watched(**limit):
        papermill.execute_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", **how)
    assert f"the kernel used {fault}" in capsys.readouterr().err


def test_form(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    first, parameters = notebook.cells[:2]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {path.stem[:2]} · ")
    assert parameters.metadata.tags == ["parameters"]
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 10, f"{node.name} belongs in flowrl"


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS]


def prose(path):
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


def anchors(path):
    """What a link can lead to: the cells of a notebook, the headings of a page."""
    if path.suffix == ".ipynb":
        return {f"cell-id={cell.id}" for cell in nbformat.read(path, 4).cells}
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)  # "# …" in code is no heading
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), (target, anchor)


SOLVED = [path for path in NOTEBOOKS if path.stem[:2] in ("00", "01", "02", "03", "04", "12", "13", "14")]


@pytest.mark.parametrize("path", SOLVED, ids=lambda path: path.stem)
def test_exercises_and_their_solutions(path):
    """Three to five exercises, as many solutions in a folded cell, which hold and need only what is imported."""
    cells = nbformat.read(path, 4).cells
    [text] = [cell.source for cell in cells if "\n## Exercises\n" in cell.source]
    [solution] = [cell for cell in cells if cell.id == "solutions"]
    numbers = re.findall(r"^(\d)\. ", text.split("## Exercises")[1], re.MULTILINE)
    assert 3 <= len(numbers) <= 5
    assert numbers == re.findall(r"^# (\d)\. ", solution.source, re.MULTILINE)
    assert "## Summary" in text
    assert cells[-1].source.startswith("## References")
    assert solution.metadata.jupyter.source_hidden
    names = {}
    for cell in cells:
        if cell.id in ("parameters", "imports") or "algorithm" in cell.metadata.get("tags", []):
            exec(cell.source, names)
    exec(solution.source, names)


def test_runs_on_the_committed_records(path, tmp_path):
    notebook = execute(path, tmp_path, **BRIEF.get(path.stem, {}))
    drawn = figures(path.stem)
    for name in drawn:
        for suffix in (".pdf", ".png", ".csv"):
            assert (tmp_path / "figures" / f"{name}{suffix}").stat().st_size > 0
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= len(drawn)  # shown, not only saved


@pytest.mark.long
@pytest.mark.parametrize("name", BRIEF)
def test_learns_enough(name, tmp_path):
    """At the parameters of the figures: the notebook asserts it."""
    execute(ROOT / f"notebooks/{name}.ipynb", tmp_path)


FAULTS = {
    "violations": 1,
    "final_return_mean": -1.0,
    "final_exact_return": -1.0,
    "final_normalised": 0.7,
    "final_enumerated_share": 0.02,
    "train_enumerated_share": 0.02,
}


def names_of(path, root):
    """A notebook's cells by id, and its names after it has read the quick records under a folder."""
    cells = {cell.id: cell.source for cell in nbformat.read(path, 4).cells}
    names = {}
    exec(cells["parameters"], names)
    names |= {"data_dir": root, "scale": "quick"}
    exec(cells["imports"], names)
    return cells, names


def test_order_on_pistonball_bites(fake_records):
    """Made-up records, in which all learn alike, are refused, until A2C and Wol-DDPG are made to fall behind."""
    path = ROOT / "notebooks/05_unconstrained.ipynb"
    for name in drawn_by(path):
        root = fake_records(name)
    cells, names = names_of(path, root)
    with pytest.raises(AssertionError):
        exec(cells["check-pistons"], names)
    for name in ("fig4b_v2", "fig4b_v3", "fig4b_wol"):
        for run in names["runs"][name]:
            run.facts["final_return_mean"] *= 0.3 if run.facts["label"] in ("a2c", "wol-ddpg") else 1
    exec(cells["check-pistons"], names)


def test_what_a_shift_of_the_rewards_does_bites(fake_records):
    """Made-up records, in which every run keeps its draws valid, are refused, until those lose them that must."""
    path = ROOT / "notebooks/09_ablations.ipynb"
    for name in drawn_by(path):
        root = fake_records(name)
    cells, names = names_of(path, root)
    for lost in ("shifted-printed", "printed-standard"):
        with pytest.raises(AssertionError):
            exec(cells["check-shifted"], names)
        for run in [*names["runs"]["fig8a"], *names["runs"]["fig8a_shifted"]]:
            run.curve["valid_rate"] *= 0.05 if run.facts["label"] == lost else 1
    with pytest.raises(AssertionError):  # the others stay where they were: a valid rate that does not rise is refused
        exec(cells["check-shifted"], names)
    for run in [*names["runs"]["fig8a"], *names["runs"]["fig8a_shifted"]]:
        run.curve.loc[run.curve.index[-1], "valid_rate"] += 0.1
    exec(cells["check-shifted"], names)


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_claims_of_06_bite(fault, fake_records):
    """The cells that check, run on made-up records: they pass, and a fault in some stops them."""
    path = ROOT / "notebooks/06_constrained.ipynb"
    for name in drawn_by(path):
        root = fake_records(
            name, **({fault: FAULTS[fault]} if fault and name in ("figA2b", "profile", "figB_gumbel", "figB_q") else {})
        )
    cells, names = names_of(path, root)
    with pytest.raises(AssertionError) if fault else contextlib.nullcontext():
        exec(cells["check-always"] + "\n" + cells["check-learnt"], names)
