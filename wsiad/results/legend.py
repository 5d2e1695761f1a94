"""The colour scale of a run as a picture: which colour is how rare among healthy windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsiad.core.files import atomic_file
from wsiad.pictures.colours import ColourScale

LEGEND = "colours.png"
"""In a folder of results."""

_WIDTH_PX = 512
_DPI = 120


def write_legend(path: Path, scale: ColourScale) -> None:
    """Draw a colour scale with the percentiles and scores of its knots, as PNG.

    The upper half shows the colours as they are, the lower half as they look over white,
    where those of healthy tissue are faint.
    """
    # Figure and canvas by hand: pyplot would hold global state, and is slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = np.linspace(0, 1, len(scale.knots))
    scores = np.interp(np.linspace(0, 1, _WIDTH_PX), places, scale.knots)
    colours = scale.rgba(scores)
    opaque, shown = colours.copy(), colours
    opaque[:, 3] = 255
    figure = Figure(figsize=(6, 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(
        np.stack([opaque, shown]), extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest"
    )
    axes.set(
        xlim=(0, 1),
        yticks=[],
        title="healthy windows with a lower score, and the score; the same for all slides",
    )
    axes.set_xticks(places, [_label(step) for step in scale.legend()["steps"]])
    axes.title.set_fontsize(9)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": None})


def _label(step: dict[str, object]) -> str:
    share = "" if step["percentile"] is None else f"{step['percentile']:g} %"
    return f"{share}\n{step['score']:.4g}"
