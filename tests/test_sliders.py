"""Every combination of the choices is drawn once, in the order that the script on the page counts in."""

import base64
import io
import re

import matplotlib.pyplot as plt
import pytest

from flowrl.study.sliders import sliders


def shown_by(**choices):
    """The HTML of pictures of nothing, and the combinations in the order they were drawn."""
    drawn = []

    def draw(**chosen):
        drawn.append(chosen)
        return plt.figure(figsize=(1 + len(drawn) / 10, 1))

    return sliders(draw, **choices).data, drawn


def test_a_slider_each_and_a_picture_each_combination():
    html, drawn = shown_by(draws_S=(4, 16, 64), Z=(0.25, 1.0))
    assert drawn == [{"draws_S": S, "Z": Z} for S in (4, 16, 64) for Z in (0.25, 1.0)]
    assert re.findall(r'max="(\d)" value="(\d)".*?data-choices="([^"]+)"> <output>([^<]+)', html) == [
        ("2", "1", "4|16|64", "16"), ("1", "1", "0.25|1", "1"),
    ]  # fmt: skip
    assert "draws S <input" in html
    pictures = re.findall(r'<img alt=""( style="display: none")? src="data:image/webp;base64,([^"]+)">', html)
    assert [hidden == "" for hidden, _ in pictures] == [False, False, False, True, False, False]  # 16 and 1
    widths = [plt.imread(io.BytesIO(base64.b64decode(data)), "webp").shape[1] for _, data in pictures]
    assert widths == sorted(set(widths))  # in the order drawn
    assert not plt.get_fignums()


def test_nothing_on_the_page_is_fetched_or_needs_a_kernel():
    html, _ = shown_by(x=(1, 2))
    assert "http" not in html and "<script" not in html
    assert html.count("oninput") == 1


def test_too_many_pictures_are_refused():
    with pytest.raises(ValueError, match="101 pictures"):
        shown_by(x=range(101))
