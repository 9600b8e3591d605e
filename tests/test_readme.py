"""The front page: short enough to be read, its example runs, its notebooks are all there, in reading order."""

import re

import gymnasium
import torch

from flowrl.study.records import ROOT

TEXT = (ROOT / "README.md").read_text()
SHOWN = re.sub(r"<!--.*?-->|\]\([^)]*\)", "", TEXT)  # without the marks of generated numbers, and where links lead
READING_ORDER = ["00", "01", "02", "03", "13", "04", "05", "06", "07", "08", "09", "10", "11", "14", "12"]


def test_one_screen_and_a_half():
    assert len(TEXT.splitlines()) < 150
    assert len(re.findall(r"\d+(?:[.,]\d+)*", SHOWN)) < 60
    cells = [cell.strip() for line in SHOWN.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    assert len(cells) > 20
    assert max(map(len, cells)) <= 90


def test_notebooks_in_reading_order():
    listed = re.findall(r"^\|.*\| \[[^]]+\]\(notebooks/((\d\d)_\w+)\.ipynb\)", TEXT, re.MULTILINE)
    assert [number for _, number in listed] == READING_ORDER
    assert {name for name, _ in listed} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_every_notebook_has_a_thumbnail():
    """A small picture of its own, and none that no row shows."""
    shown = re.findall(r"^\| !\[\]\((figures/thumbnails/\w+\.png)\) \| \[[^]]+\]\(notebooks/", TEXT, re.MULTILINE)
    assert len(shown) == len(READING_ORDER)
    assert {ROOT / path for path in shown} == set((ROOT / "figures/thumbnails").iterdir())
    assert all((ROOT / path).stat().st_size <= 15_000 for path in shown)


def test_example_runs():
    """As it stands, but for the length of training; what it trains obeys what masks of each dimension cannot say."""
    [example] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(re.sub(r"steps=[\d_]+", "steps=640, progress=False", example), names)
    assert len(set(names["post"])) == 3
    assert names["trained"].env.violations == 0
    env = names["Posts"]()
    assert isinstance(env.action_space, gymnasium.spaces.MultiDiscrete)
    observation = torch.tensor(env.reset(seed=0)[0])[None]
    assert names["different"](observation, torch.tensor([[(0, 1, 2), (0, 0, 2)]])).tolist() == [[True, False]]
