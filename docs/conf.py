"""Sphinx, for `make site`: executed notebooks and documents by MyST-NB, the reference from docstrings by autodoc.

docs/make.py lays out the sources and calls it. Nothing is executed, nothing is fetched when a page is opened.
"""

import dataclasses
import inspect
import itertools
import re

from docutils import nodes

project = "flowrl"
author = copyright = "the flowrl authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx-mathjax-offline"]
include_patterns = ["index.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "notebooks/*.ipynb", "api/*.rst"]
html_theme = "furo"
html_title = "flowrl"
html_static_path = html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # it would fetch every page found, which no browser allows from a file
default_role = "py:obj"  # `name` in a docstring: a link where it is one of ours, else plain code

nb_execution_mode = "off"  # they come executed
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`, doctests and indented formulas: no |A| or * in them is markup."""
    text = []
    if isinstance(obj, type) and (hasattr(obj, "_fields") or dataclasses.is_dataclass(obj)):
        fields = re.findall(r"^    \w+: .*# .*", inspect.getsource(obj), re.MULTILINE)
        lines += ["", *fields]
    for indented, group in itertools.groupby(lines, lambda line: line.startswith(" ")):
        block = list(group)
        text += ["", "::", "", *block, ""] if indented else map(plain, block)
    lines[:] = text


def plain(line):
    """A line with reStructuredText's special characters escaped outside of `code`; doctests as they are."""
    pieces = re.split(r"(`[^`]+`|^>>>.*)", line)
    return "".join(piece if piece[:1] in "`>" else re.sub(r"([*|_\\])", r"\\\1", piece) for piece in pieces)


def fields_are_told(app, what, name, obj, skip, options):
    """No "Alias for field number 0": `as_rst` shows fields with their comments."""
    return skip or (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") or None


def cells_are_targets(app, doctree):
    """`notebook.ipynb#cell-id=name` leads to what docs/make.py put before the cell."""
    slugs = app.env.metadata[app.env.current_document.docname].setdefault("myst_slugs", {})
    for raw in doctree.findall(nodes.raw):
        for name in re.findall(r'^<div id="(cell-id=[\w-]+)">', raw.astext()):
            slugs[name] = (0, name, "")


def setup(app):
    app.config.mathjax_path = "mathjax/tex-svg.js"  # outlines: no browser refuses them a font from a file
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", fields_are_told)
    app.connect("doctree-read", cells_are_targets)
