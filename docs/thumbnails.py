"""Pictures that documents show and no notebook draws: python docs/thumbnails.py.

A small one of every notebook for README.md, cut from one of its figures: run it after these were redrawn, and commit
figures/thumbnails. And how data flows here, for how_it_is_built.md.
"""

from pathlib import Path

from PIL import Image

from flowrl.study import diagrams, plots

FIGURES = Path(__file__).resolve().parents[1] / "figures"
SIZE = 168, 105  # pixels
CUT = {  # thumbnail: figure; left, top, right, bottom of the cut, as shares of it
    "quickstart": ("quickstart_city", 0, 0, 0.6, 1),
    "flow_policy": ("fig2", 0, 0, 1, 1),
    "log_prob_estimators": ("figB_estimators", 0, 0.05, 0.5, 0.37),
    "rejection_gradient": ("figB_corrections", 0, 0, 0.5, 0.5),
    "from_scratch": ("idea", 0.34, 0.12, 0.67, 1),
    "environments": ("figB_cities", 0, 0.49, 0.33, 0.75),
    "unconstrained": ("fig3", 0, 0.1, 1, 1),
    "constrained": ("front", 0.06, 0, 0.38, 0.47),
    "partial": ("fig6", 0.05, 0.05, 1, 0.78),
    "cost": ("figB_scaling", 0, 0, 0.58, 0.46),
    "ablations": ("figB_recipe", 0.32, 0.49, 1, 0.86),
    "appendix": ("figD", 0.53, 0, 1, 0.9),
    "released": ("released", 0, 0.04, 0.5, 0.255),
    "gumbel_flow": ("figB_pathwise", 0, 0, 0.5, 1),
    "rare": ("figB_ellipse", 0, 0.04, 1, 1),
}


def thumbnail(name: str) -> Image.Image:
    """SIZE, the cut in the middle, in 128 colours."""
    figure, *cut = CUT[name]
    picture = Image.open(FIGURES / f"{figure}.png").convert("RGB")
    width, height = picture.size
    picture = picture.crop((int(cut[0] * width), int(cut[1] * height), int(cut[2] * width), int(cut[3] * height)))
    picture.thumbnail(SIZE, Image.Resampling.LANCZOS)
    whole = Image.new("RGB", SIZE, "white")
    whole.paste(picture, ((SIZE[0] - picture.width) // 2, (SIZE[1] - picture.height) // 2))
    return whole.quantize(128)


if __name__ == "__main__":
    plots.save(diagrams.how_it_is_built(), FIGURES / "how_it_is_built", computed="docs/thumbnails.py")
    (FIGURES / "thumbnails").mkdir(exist_ok=True)
    for name in CUT:
        thumbnail(name).save(FIGURES / f"thumbnails/{name}.png", optimize=True)
