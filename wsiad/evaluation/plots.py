"""ROC and FROC plots as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsiad.core.images import save_figure
from wsiad.core.terminal import counted
from wsiad.evaluation.auc import Estimate, Floats, roc_band, roc_curve
from wsiad.evaluation.froc import OPERATING_POINTS
from wsiad.evaluation.froc_score import FrocScore
from wsiad.evaluation.matching import ProtocolName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe & Ito: told apart with every kind of colour vision; lines
# and markers differ too.
_STYLES = (("#0072B2", "-", "o"), ("#D55E00", "--", "s"))
_GREY = "#767676"
_CAPTION_COLUMNS = 90

_MOST_FP = 10.0
_DRAWN = {"linear": "default", "step-up": "steps-pre", "step-down": "steps-post"}
"""Draw style by reading rule, so that the sensitivities that a protocol reads lie on its line."""


def plot_roc(
    path: Path,
    positive: Floats,
    negative: Floats,
    auc: Estimate,
    *,
    resamples: int,
    seed: int,
    caption: str = "",
) -> None:
    """Plot the ROC curve of slides with its pointwise 95 % band over slides.

    Where the area is not defined, the plot states the reason. The caption is below the plot.
    """
    figure, axes = _figure()
    colour, _, _ = _STYLES[0]
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":", label="chance")
    if auc.value is None:
        _say(axes, str(auc))
    else:
        grid = np.linspace(0, 1, 201)
        band = roc_band(positive, negative, grid, resamples=resamples, seed=seed)
        if band is not None:
            axes.fill_between(grid, *band, color=colour, alpha=0.18, linewidth=0)
        axes.plot(*roc_curve(positive, negative), color=colour, label=f"slides: AUC {auc}")
    axes.set(
        xlabel=f"false positive rate ({counted(len(negative), 'normal slide')})",
        ylabel=f"true positive rate ({counted(len(positive), 'tumour slide')})",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    _save(figure, axes, path, caption)


def plot_froc(path: Path, scores: Mapping[ProtocolName, FrocScore], *, caption: str = "") -> None:
    """Plot the FROC curve of each protocol, with 95 % intervals where it is read.

    Parameters
    ----------
    path : Path
        PNG to write.
    scores : mapping of str to FrocScore
        Score by protocol. Where none is defined, the plot states the reason.
    caption : str
        Text below the plot.
    """
    figure, axes = _figure()
    reasons = []
    for index, ((name, froc), style) in enumerate(zip(scores.items(), _STYLES, strict=False)):
        if froc.curve is None or froc.sensitivities is None:
            reasons.append(str(froc.score))
            continue
        colour, line, marker = style
        most = froc.curve.false_positives[0]
        # On to the edge of the plot: more false positives than there are find no more.
        axes.plot(
            np.append(froc.curve.false_positives[::-1], max(_MOST_FP, most)),
            np.append(froc.curve.sensitivity[::-1], froc.curve.sensitivity[0]),
            drawstyle=_DRAWN[froc.rules.reading],
            color=colour,
            linestyle=line,
            linewidth=1.4,
        )
        # A little apart, so that the bars of two protocols can both be seen.
        points = np.array(OPERATING_POINTS) * (1.0, 1.04)[index]
        bars = None
        if froc.interval is not None:
            low, high = froc.interval
            bars = np.maximum([froc.sensitivities - low, high - froc.sensitivities], 0)
        axes.errorbar(
            points,
            froc.sensitivities,
            yerr=bars,
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="none",
            capsize=3,
            label=f"{name}: {froc.score}",
        )
    if reasons:
        _say(axes, reasons[0])
    axes.set_xscale("symlog", base=2, linthresh=0.125, linscale=0.5)
    axes.set_xticks([0, 0.125, *OPERATING_POINTS], ["0", "⅛", "¼", "½", "1", "2", "4", "8"])
    axes.set(
        xlabel="mean false positives per slide",
        ylabel="sensitivity (share of lesions hit)",
        xlim=(0, _MOST_FP),
        ylim=(-0.01, 1.01),
    )
    _save(figure, axes, path, caption)


def _figure() -> tuple[Figure, Axes]:
    # Figure without pyplot: no state outside this function, no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", wrap=True)


def _save(figure: Figure, axes: Axes, path: Path, caption: str) -> None:
    if caption:
        lines = textwrap.fill(caption, _CAPTION_COLUMNS)
        figure.supxlabel(lines, fontsize="x-small", color=_GREY, parse_math=False)
    if axes.get_legend_handles_labels()[0]:
        # Above the plot it hides no interval.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.005), fontsize="small", frameon=False)
    save_figure(figure, path)
