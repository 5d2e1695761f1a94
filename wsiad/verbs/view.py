"""``wsiad view``: show zoomable slides with their heatmaps in a browser on this machine."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from pydantic import Field

from wsiad.core.config import Config, Paths, verb
from wsiad.core.errors import InputError
from wsiad.core.signals import Terminated
from wsiad.core.terminal import did_you_mean, tell
from wsiad.slides.slide_files import slide_fingerprint

if TYPE_CHECKING:
    from wsiad.heatmaps.heatmap_task import HeatmapRow, Ranking
    from wsiad.viewing.server import ViewServer
    from wsiad.viewing.viewed_slides import ViewedSlide


logger = logging.getLogger(__name__)


class ViewConfig(Config):
    """Show slides with their heatmaps in a browser, on this machine only."""

    results: Path
    """Results folder of `wsiad heatmap`."""
    slides: Paths = ()
    """Current files of the slides: files, folders or manifest CSVs; by default the files that
    were scored."""
    annotations: Path | None = None
    """Folder of outlines of tumour, a file for each slide as for `wsiad evaluate --annotations`, to
    draw them; by default those of the last `wsiad evaluate`."""
    slide: str = ""
    """Name of the slide to show first; by default the one with the highest score."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port on 127.0.0.1; 0 for a free one."""
    read_only: bool = False
    """Take no judgements on regions."""
    reviewer: Annotated[str, Field(max_length=80)] = ""
    """Name of the reviewer; by default the page asks for it."""
    browser: bool = True
    """Open the page in the browser."""


@dataclass(frozen=True, slots=True)
class ViewResult:
    """Result of viewing, which has no summary."""

    summary: str = ""


@verb(ViewConfig)
def view(config: ViewConfig) -> ViewResult:
    """Serve the page until the command is interrupted.

    Raises
    ------
    InputError
        The folder does not contain results, no slides are found in `slides`, `slide` is none of
        them or cannot be shown, `annotations` is no folder, or the port is in use.
    """
    server = open_server(config)
    address = server.url + (f"#name={quote(config.slide, safe='')}" if config.slide else "")
    tell(f"Open {address} (stop with Ctrl-C)")
    if config.browser and not (_graphical() and webbrowser.open(address)):
        tell("No browser could be started: open the address yourself.")
    try:
        server.serve_forever()
    except Terminated:
        raise
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        server.server_close()
    return ViewResult()


def _graphical() -> bool:
    """Tell whether a browser has a screen; one in the terminal would block the server."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_server(config: ViewConfig) -> ViewServer:
    """Open the server of a results folder; it answers after ``serve_forever`` is called.

    Raises
    ------
    InputError
        The folder does not contain results, no slides are found in `slides`, `slide` is none of
        them or cannot be shown, `annotations` is no folder, or the port is in use.
    """
    from wsiad.report.page import policy
    from wsiad.results.reviews import why_read_only
    from wsiad.viewing.ground_truth import GroundTruth
    from wsiad.viewing.served_report import ServedReport
    from wsiad.viewing.server import LOOPBACK, Pages, ViewServer

    slides = viewed_slides(config.results, config.slides)
    if config.slide:
        _check_shown(config.slide, slides)
    if config.annotations is not None and not config.annotations.is_dir():
        raise InputError(
            "is no folder of outlines", subject=str(config.annotations), remedy="Check the path."
        )
    truth = GroundTruth(config.results, config.annotations)
    if truth.source:
        tell(f"Ground truth: {truth.source}")
    read_only = "it was started with --read-only" if config.read_only else ""
    pages = Pages(
        slides,
        title=config.results.resolve().name,
        problem=functools.cache(_problem),
        report=ServedReport(
            config.results, [slide.results for slide in slides], policy=policy(any_style=True)
        ),
        truth=truth,
        read_only=read_only or why_read_only(config.results),
        reviewer=config.reviewer,
    )
    try:
        return ViewServer(pages, port=config.port)
    except OSError as error:
        raise InputError(
            f"cannot be used: {error.strerror}",
            subject=f"{LOOPBACK}:{config.port}",
            remedy="Set another --port, or 0 for a free one.",
        ) from error


def _check_shown(name: str, slides: Sequence[ViewedSlide]) -> None:
    """Check that there is a slide of this name, and something to show of it."""
    found = {slide.name: slide for slide in slides}
    if name not in found:
        raise InputError(
            f"no slide of the results has this name{did_you_mean(name, found)}",
            subject=name,
            remedy="slides.csv of the results lists their names.",
        )
    if found[name].size is None:
        raise InputError(
            f"there is nothing to show of this slide: {found[name].reason}",
            subject=name,
            remedy="Choose another --slide.",
        )


def viewed_slides(results: Path, sources: Sequence[Path] = ()) -> list[ViewedSlide]:
    """List the slides of a results folder by rank, with their files.

    Raises
    ------
    InputError
        The folder does not contain results, or the sources contain no slides.
    """
    from wsiad.heatmaps.heatmap_task import usual_score
    from wsiad.results.evaluated_truth import evaluated_labels
    from wsiad.results.folder import Results
    from wsiad.slides.inputs import find_slides
    from wsiad.viewing.viewed_slides import ViewedSlide

    folder = Results(results)
    score = usual_score(folder.slides)
    given = {slide.name: slide.path for slide in find_slides(sources)} if sources else {}
    try:
        labels = evaluated_labels(results)
    except InputError as error:  # there is more to see than labels
        logger.warning("%s", error)
        labels = {}
    return [
        ViewedSlide(
            folder.of(row),
            rank if _order(row, score)[0] < math.inf else None,
            given.get(row.slide) or (Path(row.file) if row.file else None),
            ranked_by=score,
            evaluated_label=labels.get(row.slide, ""),
        )
        for rank, row in enumerate(
            sorted(folder.slides, key=lambda row: _order(row, score)), start=1
        )
    ]


def _order(row: HeatmapRow, ranked_by: Ranking) -> tuple[float, str]:
    """Return what sorts slides by falling score; infinity for a slide without one."""
    score = row.score_scan if ranked_by == "scan" else row.score_max
    return -score if score is not None and math.isfinite(score) else math.inf, row.slide


def _problem(slide: ViewedSlide) -> str:
    """Return why a slide's own pixels cannot be shown; empty if they can.

    A heatmap over another slide of the same name would mislead. The file must therefore be the
    one that was scored, by the fingerprint in its results.
    """
    remedy = "Its small picture is shown instead. Pass the current files with --slides."
    if slide.file is None or not slide.file.is_file():
        return f"The slide is not at {slide.file}. {remedy}"
    try:
        scored = slide.results.fingerprint()
        there = slide_fingerprint(slide.file)
    except (OSError, InputError) as error:
        return f"It is not known whether {slide.file} is the scored slide ({error}). {remedy}"
    if there != scored:
        return f"{slide.file} is another slide than the scored one of this name. {remedy}"
    return _openable(slide)


def _openable(slide: ViewedSlide) -> str:
    from wsiad.core.errors import WsiadError
    from wsiad.slides.openslide_backend import OpenSlideBackend

    assert slide.file is not None
    try:
        mpp = slide.um_per_px[0] if slide.um_per_px else 1.0  # it is shown whatever its scale
        OpenSlideBackend(slide.file, name=slide.name, manifest_mpp=None, fallback_mpp=mpp).close()
    except WsiadError as error:
        return f"{error} Its small picture is shown instead."
    return ""
