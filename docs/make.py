"""The site from documents, executed notebooks and docstrings: `make site`, or python docs/make.py NOTEBOOKS SITE.

Sources lie in build/site-source as they do in the project, so that its links hold there: the front page is README.md,
a link to a file that is no page becomes a copy of it. Every link of every page is followed before the site is done.
"""

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build/site-source"
DOCUMENTS = [
    f"docs/{name}"
    for name in (
        "claims",
        "deviations",
        "glossary",
        "own_problem",
        "strangers",
        "reproduce",
        "reliability",
        "how_it_is_built",
    )
]
FOLDED = ("parameters", "imports")  # cells, where every notebook has them
TREE = "\n```{{toctree}}\n:hidden:\n:caption: {}\n{}\n```\n"


def lay_out(notebooks: Path) -> None:
    """SOURCE anew, from the project and a folder of executed notebooks."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for folder in (SOURCE, SOURCE / "notebooks", SOURCE / "api"):
        folder.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.suffix == ".md":
            shutil.copy(path, SOURCE)
        elif not path.name.startswith(".") and path.name not in ("docs", "notebooks", "build"):
            (SOURCE / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    readme = (ROOT / "README.md").read_text()
    order = re.findall(r"^\|.*\| \[[^]]+\]\((notebooks/\w+)\.ipynb\)", readme, re.MULTILINE)
    for name in order:
        nbformat.write(with_targets(nbformat.read(notebooks / f"{Path(name).name}.ipynb", 4)), SOURCE / f"{name}.ipynb")
    trees = {
        "The notebooks": order, "Documents": [*DOCUMENTS, "docs/dependencies"],
        "The package": reference(), "The project": ["CONTRIBUTING", "CHANGELOG"],
    }  # fmt: skip
    (SOURCE / "index.md").write_text(readme + "".join(TREE.format(title, "\n".join(trees[title])) for title in trees))


def with_targets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook with something to link to before every cell, and folds; without papermill's own cell."""
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    notebook.cells, heading = cells[:1], cells[0].source.partition("\n")[0].lstrip("# ")
    for cell in cells[1:]:
        if cell.cell_type == "code":
            cell.outputs = last_words(cell.outputs)
            cell.metadata.mystnb = {"image": {"alt": heading}}
        else:
            heading = [heading, *re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)][-1]
        if cell.id in FOLDED or cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.tags = sorted({*cell.metadata.get("tags", []), "hide-input"})
        if cell.id == "solutions":
            cell.metadata.mystnb |= {"code_prompt_show": "Show the solutions", "code_prompt_hide": "Hide the solutions"}
        notebook.cells += [nbformat.v4.new_markdown_cell(f'<div id="cell-id={cell.id}"></div>'), cell]
    return notebook


def last_words(outputs: list) -> list:
    """Outputs with what is written to a stream in pieces as one, and of a progress bar its last state alone."""
    merged: list = []
    for output in outputs:
        if output.output_type == "stream" and merged and output.name == merged[-1].get("name"):
            merged[-1].text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return merged


def reference() -> list[str]:
    """Write a page a module and one a package; the packages' names, as the front page's tree wants them."""
    packages = {}
    for path in sorted((ROOT / "flowrl").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module != "flowrl.__main__":
            packages.setdefault(module if path.stem == "__init__" else module.rpartition(".")[0], []).append(module)
    for modules in packages.values():
        tree = ".. toctree::\n   :maxdepth: 1\n\n" + "".join(f"   {m}\n" for m in modules if m not in packages)
        for module in modules:
            title, options = f"{module}\n{'=' * len(module)}", "   :no-members:\n" * (module == "flowrl")
            text = f"{title}\n\n.. automodule:: {module}\n{options}\n{tree * (module in packages)}"
            (SOURCE / f"api/{module}.rst").write_text(text)
    return [f"api/{package}" for package in packages]


class Page(HTMLParser):
    """The ids of a page, and what it points at: (tag, address) each."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append((tag, value))


def dead(site: Path) -> list[str]:
    """Every link within a site that leads nowhere, and whatever a page would fetch from elsewhere when opened."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    faults = []
    for path, page in pages.items():
        for tag, link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                fetched = tag != "a" and address.scheme != "data"
                faults += [f"{path.relative_to(site)} fetches {link}"] * fetched
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            there = target.is_file() and (not address.fragment or target not in pages
                                          or unquote(address.fragment) in pages[target].ids)  # fmt: skip
            faults += [f"{path.relative_to(site)} → {link}"] * (not there)
    return faults


def main(notebooks: str, site: str) -> int:
    from sphinx.cmd.build import main as sphinx

    lay_out(Path(notebooks))
    shutil.rmtree(site, ignore_errors=True)
    doctrees = str(SOURCE.with_name("site-doctrees"))
    options = ["-W", "--keep-going", "-q", "-E", "-c", str(ROOT / "docs"), "-d", doctrees]
    failed = sphinx([*options, str(SOURCE), site])
    faults = dead(Path(site))
    print(*faults, f"{len(faults)} dead links", sep="\n")
    return failed or bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
