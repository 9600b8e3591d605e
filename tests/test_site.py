"""What `make site` lays out for Sphinx, and that a dead link, or a page that fetches from elsewhere, is found."""

import importlib.util
import re
import subprocess

import nbformat
import pytest

from flowrl.study.records import ROOT

spec = importlib.util.spec_from_file_location("make", ROOT / "docs/make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "SOURCE", tmp_path / "source")
    return tmp_path / "source"


def test_every_notebook_document_and_module_is_a_page(source):
    make.lay_out(ROOT / "notebooks")
    listed = (source / "index.md").read_text().split()
    pages = [line for line in listed if re.fullmatch(r"(notebooks|docs|api)/[\w.]+", line)]
    assert len(pages) == len(set(pages)), "a page twice in the tree"
    for folder in ("notebooks", "docs"):
        suffix = ".ipynb" if folder == "notebooks" else ".md"
        assert {f"{folder}/{path.stem}" for path in (ROOT / folder).glob(f"*{suffix}")} <= set(listed)
        assert {path.name for path in (ROOT / folder).glob(f"*{suffix}")} <= {
            p.name for p in (source / folder).iterdir()
        }
    modules = {path for path in (ROOT / "flowrl").rglob("*.py") if path.stem not in ("__init__", "__main__")}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules}
    assert names == {path.stem for path in (source / "api").iterdir()} - {
        "flowrl",
        *(f"flowrl.{package}" for package in ("beyond", "envs", "study", "truth")),
    }
    assert all(f"api/flowrl{package}" in listed for package in ("", ".beyond", ".envs", ".study", ".truth"))


def test_cells_become_targets_and_folds_are_kept():
    made = nbformat.v4
    cells = [made.new_markdown_cell("# 00"), made.new_code_cell("1", metadata={"tags": ["injected-parameters"]})]
    cells += [
        made.new_code_cell("2", id="plain"),
        made.new_code_cell("3", metadata={"jupyter": {"source_hidden": True}}),
    ]
    found = make.with_targets(made.new_notebook(cells=cells)).cells
    assert [cell.source for cell in found][:3] == ["# 00", '<div id="cell-id=plain"></div>', "2"]
    assert len(found) == 5
    assert [cell.metadata.get("tags") for cell in found[2::2]] == [None, ["hide-input"]]


def test_a_progress_bar_leaves_one_line():
    bar = [
        nbformat.v4.new_output("stream", name="stderr", text=text) for text in ("\r 0%", "\r50%", "\r99%\n", "end\n")
    ]
    said = nbformat.v4.new_output("stream", name="stdout", text="a\nb\n")
    assert [output.text for output in make.last_words([*bar, said])] == ["99%\nend\n", "a\nb\n"]


def test_dead_links_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/other.html").write_text('<h1 id="there">x</h1><a href="../a.html#top">x</a>')
    page = '<p id="top"><a href="sub/other.html#there">x</a><a href="https://arxiv.org">x</a><img src="data:,">'
    (tmp_path / "a.html").write_text(page)
    assert make.dead(tmp_path) == []
    (tmp_path / "a.html").write_text(
        page + '<a href="gone.html">x</a><a href="sub/other.html#gone">x</a><a href="#gone">x</a><img src="gone.png">'
        '<script src="https://elsewhere.org/x.js"></script><link href="//elsewhere.org/x.css">'
    )
    gone = ["gone.html", "sub/other.html#gone", "#gone", "gone.png"]
    fetched = ["https://elsewhere.org/x.js", "//elsewhere.org/x.css"]
    assert make.dead(tmp_path) == [
        *(f"a.html → {link}" for link in gone),
        *(f"a.html fetches {link}" for link in fetched),
    ]


def test_make_site_takes_the_executed_notebooks_of_its_scale():
    for scale, folder in (("", "build/notebooks"), ("smoke", "build/smoke/notebooks")):
        said = subprocess.run(["make", "-n", "site", f"SCALE={scale}"], cwd=ROOT, capture_output=True, text=True)
        assert f"docs/make.py {folder} build/site" in said.stdout
        assert said.stdout.index("-m snakemake") < said.stdout.index("docs/make.py")
