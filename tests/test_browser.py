"""The site and the notebooks as a reader sees them, in Chromium: `build/site-venv/bin/python -m pytest -m browser`.

Needs chromium (Debian: apt-get install chromium), playwright, which make site installs in build/site-venv, and, for the
site, build/site.
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from flowrl.study.records import ROOT

pytestmark = pytest.mark.browser

SITE = ROOT / "build/site"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
OPENED = [name for name in NOTEBOOKS if name[:2] in ("00", "01", "02", "03", "04", "12", "13", "14")]
PLAIN = "docs/deviations", "docs/own_problem", "api/flowrl.fit"  # words and code alone
SLIDING = {"00": 1, "01": 1, "02": 1, "03": 2, "14": 1}  # notebooks with sliders, and how many groups of them
DONE = """() => {
  const panel = jupyterapp.shell.currentWidget, cells = panel.content.model.sharedModel.cells;
  return panel.sessionContext.kernelDisplayStatus === 'idle'
    && cells.every(cell => cell.cell_type !== 'code' || cell.execution_count !== null);
}"""  # every code cell has run


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: make site, build/site-venv/bin/python")
    path = shutil.which("chromium")
    if not path:
        pytest.skip("no chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def slide(group):
    """Move the first of a group's sliders to both of its ends: another picture each, one at a time, its value told."""
    slider, seen = group.locator("input").first, set()
    choices = slider.get_attribute("data-choices").split("|")
    for place in (0, len(choices) - 1):
        slider.fill(str(place))
        shown = group.locator("img:visible")
        assert shown.count() == 1
        assert group.locator("output").first.inner_text() == choices[place]
        seen.add(shown.get_attribute("src"))
    assert len(seen) == 2


@pytest.fixture
def offline(browser):
    """A page without a network; what it could not load, and errors of its scripts, are faults."""
    if not (SITE / "index.html").exists():
        pytest.skip("no build/site here: make site")
    page, faults = browser.new_context(offline=True).new_page(), []
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert faults == []


@pytest.mark.parametrize(
    "name", [*(f"notebooks/{name}" for name in NOTEBOOKS), "docs/glossary", "docs/claims", "index", *PLAIN]
)
def test_pages_of_the_site_render(name, offline):
    """Mathematics is set, without an error; every picture is there; sliders move."""
    offline.goto((SITE / f"{name}.html").as_uri())
    offline.wait_for_function("() => window.MathJax?.startup?.promise || !document.querySelector('.math')")
    offline.evaluate("() => window.MathJax?.startup?.promise")
    formulas = offline.locator(".math").count()
    assert offline.locator("mjx-container > svg").count() == formulas
    assert formulas > 10 or name in ("docs/claims", "index", *PLAIN) or "notebooks" in name
    assert offline.locator("[data-mml-node=merror], mjx-merror").count() == 0
    assert offline.evaluate("() => [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert offline.locator("img").count() >= (1 if "docs" not in name and name not in PLAIN else 0)
    groups = offline.locator("div.sliders").all()
    assert len(groups) == SLIDING.get(Path(name).name[:2], 0)
    for group in groups:
        slide(group)


def test_search_of_the_site_finds(offline):
    offline.goto((SITE / "index.html").as_uri())
    box = offline.get_by_role("textbox", name="Search").first
    box.fill("leave-one-out")
    box.press("Enter")
    found = offline.locator("#search-results a")
    found.first.wait_for()
    offline.wait_for_function("() => /found \\d+ page/.test(document.querySelector('#search-results').innerText)")
    assert any("notebooks/03_rejection_gradient.html" in link.get_attribute("href") for link in found.all())
    found.first.click()
    offline.wait_for_url("**/03_rejection_gradient.html**")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a fresh clone, as it comes but for the news it would ask about; its address."""
    folder = tmp_path_factory.mktemp("lab")
    clone, home = folder / "clone", folder / "home"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = Path(importlib.util.find_spec("jupyterlab").origin).parents[4] / "bin/python"
    options = [f"--port={port}", "--no-browser", "--allow-root", "--IdentityProvider.token=", f"--notebook-dir={clone}"]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    env = os.environ | {"HOME": str(home), "PYTHONPATH": str(clone)}
    env |= {f"JUPYTER_{what}_DIR": str(home / what) for what in ("CONFIG", "DATA", "RUNTIME")}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([python, "-m", "jupyterlab", *options], env=env, cwd=clone, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 200
            while not answers(f"http://127.0.0.1:{port}/api"):
                assert server.poll() is None and time.monotonic() < until, (folder / "log").read_text()
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks"
        finally:
            server.terminate()
            server.wait()


def answers(address):
    try:
        return urlopen(address).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("name", OPENED)
def test_notebooks_run_in_jupyterlab(name, browser, lab):
    """Open, Run All Cells: no error, pictures, sliders that move, and of a progress bar its last state alone."""
    page = browser.new_page()
    page.goto(f"{lab}/{name}.ipynb?reset")
    page.locator("#jp-main-statusbar").get_by_text("Idle").wait_for(timeout=300_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE, timeout=1_500_000, polling=1000)
    cells = page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells")
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    bars = ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    assert all(len(re.split(r"[\r\n]+", bar.strip())) < 10 for bar in bars), bars  # a warning below it, at most
    assert bool(bars) or name[:2] != "00"
    sliding = [i for i, cell in enumerate(cells) if "sliders(" in cell["source"] and cell.get("outputs")]
    assert len(sliding) == SLIDING.get(name[:2], 0)
    for i in sliding:
        page.evaluate(f"() => jupyterapp.shell.currentWidget.content.scrollToItem({i}, 'center')")
        group = page.locator(f".jp-Cell[data-windowed-list-index='{i}'] div.sliders")
        group.wait_for()
        slide(group)
    page.close()
