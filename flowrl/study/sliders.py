"""Pictures to slide through: every one is drawn beforehand, so they move without a kernel, on the site and offline."""

import base64
import io
import itertools
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

# On any change below it: the place in the product of the choices, the last of them fastest; show that picture alone.
MOVE = """let place = 0;
for (const one of this.querySelectorAll('input')) {
  place = place * (+one.max + 1) + +one.value;
  one.nextElementSibling.value = one.dataset.choices.split('|')[one.value];
}
this.querySelectorAll('img').forEach((picture, i) => picture.style.display = i == place ? '' : 'none');"""


def sliders(draw: Callable[..., Figure], **choices: Sequence) -> HTML:
    """A slider for each of the choices above the picture of those chosen, at first the middle ones.

    draw(name=choice, …) → Figure, which is closed; called once for every combination, a hundred at most: a picture
    takes some 10 kB. A name is shown as it stands, with spaces for underscores. Raises ValueError if there are more.

    >>> shown = sliders(lambda x: plt.figure(figsize=(1, 1)), x=(1, 2, 3)).data
    >>> shown.count("<input"), shown.count("<img"), shown.count("display: none")
    (1, 3, 2)
    """
    combinations = list(itertools.product(*choices.values()))
    if len(combinations) > 100:
        raise ValueError(f"{len(combinations)} pictures; leave out choices until there are a hundred at most")
    first = tuple(values[len(values) // 2] for values in choices.values())
    ranges = [_slider(name.replace("_", " "), values) for name, values in choices.items()]
    pictures = [_picture(draw(**dict(zip(choices, chosen, strict=True))), chosen == first) for chosen in combinations]
    return HTML(f'<div class="sliders" oninput="{MOVE}">{"".join(ranges)}{"".join(pictures)}</div>')


def _slider(name: str, values: Sequence) -> str:
    middle, shown = len(values) // 2, [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return (
        f'<label style="display: block">{name} <input type="range" min="0" max="{len(values) - 1}" value="{middle}" '
        f'autocomplete="off" style="vertical-align: middle" data-choices="{"|".join(shown)}"> '
        f"<output>{shown[middle]}</output></label>"
    )


def _picture(figure: Figure, is_first: bool) -> str:
    """An image tag that holds the picture itself; hidden where another one is shown at first."""
    file = io.BytesIO()
    figure.savefig(file, format="webp", dpi=90, pil_kwargs={"lossless": True, "quality": 50})  # of the packing
    plt.close(figure)
    hidden = "" if is_first else ' style="display: none"'
    return f'<img alt=""{hidden} src="data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}">'
