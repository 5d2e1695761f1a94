"""``report.html``: one page with every slide, its pictures, the figures and the facts of a run.

The page is a single file that opens from a disk, an e-mail or a server, and fetches
nothing: styles, script and pictures are within it. All text is escaped, and a content
security policy lets no other script run, so that a slide's name can do no harm. The
script only sorts and filters the table; without it the page is complete.

Beyond ``inline_limit`` bytes of pictures the page links them instead, by paths relative
to its own folder, and says so: browsers grow slow on pages of hundreds of megabytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from wsiad.errors import ExportError
from wsiad.export import report_text
from wsiad.files import write_text

Pictures = Sequence[tuple[str, Path]]
"""Pictures as (caption, PNG or JPEG file)."""

INLINE_LIMIT = 64 * 2**20
"""Bytes of pictures up to which the page holds them itself."""

_TEMPLATES = Path(__file__).parent / "templates"
_OVERVIEW = "What of the slide was scored, and tiles before and after stain normalisation"
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class ColourScale:
    """What the colours of the overlays mean.

    Parameters
    ----------
    caption : str
        What is shown, such as ``"Share of healthy windows with a lower score"``.
    colours : sequence of str
        ``#rrggbb`` at equal distances from the low end to the high end.
    ticks : sequence of str
        Labels at equal distances from the low end to the high end.
    """

    caption: str
    colours: Sequence[str]
    ticks: Sequence[str]


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """A slide in the report.

    Parameters
    ----------
    name, status : str
        Its name, and ``"ok"``, ``"no-tissue"`` or ``"failed"``.
    reason : str
        Why it failed, or what its reader should know.
    label : str or None
        What the reference says of it, such as ``"tumor"``.
    score_max, score_top_k_mean : float or None
        Highest score of its windows, and mean of its k highest.
    percentile : float or None
        Where its score lies among healthy ones, 0 to 100.
    windows : int
        Windows scored.
    seconds : float
        Time spent on it.
    images : sequence of (str, Path)
        Caption and PNG or JPEG file.
    overview : Path or None
        PNG or JPEG file that shows what of the slide was scored.
    not_assessed : bool
        Whether something was left out: its overview is then shown at once.
    lesions : int or None
        Annotated lesions, where annotations are at hand.
    detections : int or None
        Detections exported.
    """

    name: str
    status: str
    reason: str = ""
    label: str | None = None
    score_max: float | None = None
    score_top_k_mean: float | None = None
    percentile: float | None = None
    windows: int = 0
    seconds: float = 0.0
    images: Pictures = ()
    overview: Path | None = None
    not_assessed: bool = False
    lesions: int | None = None
    detections: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says.

    Parameters
    ----------
    title : str
        Of the page.
    created_by : str
        Program and version.
    run, calibration : mapping
        Facts of the run and of its calibration on healthy slides, label to value.
    slides : sequence of SlideEntry
        In any order; the page ranks them.
    failures : sequence of (str, str)
        Slides that failed, and why.
    evaluation : mapping or None
        Content of ``evaluation.json``; ``None`` without a reference.
    plots : sequence of (str, Path)
        Title and PNG or JPEG file: ROC, FROC, loss.
    timings : mapping of str to float
        Stage to seconds.
    config_yaml : str
        The resolved configuration.
    notes : sequence of str
        What a reader should know.
    warnings : sequence of str
        What no reader may miss; shown first.
    random_weights : bool
        The networks have random weights: warn, loudly.
    rank_by : str
        Which score ranks the slides.
    colour_scale : ColourScale or None
        Legend of the overlays.
    """

    title: str
    created_by: str
    run: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)
    slides: Sequence[SlideEntry] = ()
    failures: Sequence[tuple[str, str]] = ()
    evaluation: Mapping[str, Any] | None = None
    plots: Pictures = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    config_yaml: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    random_weights: bool = False
    rank_by: Literal["max", "top_k_mean"] = "max"
    colour_scale: ColourScale | None = None

    def ranked(self) -> list[SlideEntry]:
        """Slides from the highest score to the lowest, then those without, by name."""
        return sorted(self.slides, key=self._rank)

    def _rank(self, slide: SlideEntry) -> tuple[bool, float, str]:
        score = self.score(slide)
        return score is None, -(score or 0.0), slide.name

    def score(self, slide: SlideEntry) -> float | None:
        """Score that ranks a slide; ``None`` where there is no finite one."""
        return report_text.finite(
            slide.score_max if self.rank_by == "max" else slide.score_top_k_mean
        )


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a page shows it: within the page, or linked."""

    caption: str
    source: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Section:
    slide: SlideEntry
    pictures: list[Picture]
    overview: Picture | None


def write_report(path: Path, report: Report, *, inline_limit: int = INLINE_LIMIT) -> None:
    """Write a report as one HTML file, atomically.

    Parameters
    ----------
    path : Path
        ``report.html``.
    report : Report
        What it says.
    inline_limit : int
        If all pictures together have more bytes than this, they are linked, relative to
        the folder of ``path``, in which they must then lie.

    Raises
    ------
    ExportError
        A picture is missing, is neither PNG nor JPEG, or would have to be linked but
        lies outside the folder of the report; a colour of the scale is not ``#rrggbb``.
    """
    files = [file for _, file in report.plots]
    files += [file for slide in report.slides for _, file in slide.images]
    files += [slide.overview for slide in report.slides if slide.overview]
    linked = sum(map(_size, files)) > inline_limit
    folder = path.parent if linked else None
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            slides=[_section(slide, folder) for slide in report.ranked()],
            plots=[picture(*plot, folder) for plot in report.plots],
            shares=_shares(report),
            scale=_legend(report.colour_scale),
            linked=linked,
            style=template("report.css"),
            script=template("report.js"),
            policy=policy(),
            text=report_text,
        )
    )
    write_text(path, page)


def environment() -> jinja2.Environment:
    """Templates of the reports: all text is escaped, and a name that is not there is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template(name: str) -> Markup:
    """Style or script of the reports, to stand in a page as it is."""
    # Our own file, which holds no text from outside: the one thing not to be escaped.
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704


def policy() -> str:
    """Content security policy under which nothing runs or loads but what we wrote."""
    style, script = (
        base64.b64encode(hashlib.sha256(template(name).encode()).digest()).decode()
        for name in ("report.css", "report.js")
    )
    return (
        "default-src 'none'; img-src data: file: 'self'; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{style}'; script-src 'sha256-{script}'"
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise ExportError(
            f"the picture cannot be read ({error.strerror})",
            subject=str(file),
            remedy="Export the slide again.",
        ) from error


def picture(caption: str, file: Path, folder: Path | None) -> Picture:
    """Inline a picture, or link it relative to ``folder`` where one is given."""
    try:
        with Image.open(file, formats=tuple(_TYPES)) as image:
            (width, height), kind = image.size, _TYPES[str(image.format)]
        if folder is None:
            data = base64.b64encode(file.read_bytes()).decode()
            return Picture(caption, f"data:{kind};base64,{data}", width, height)
        inside = file.resolve().relative_to(folder.resolve())
    except OSError as error:
        raise ExportError(
            "the picture is not a PNG or JPEG file",
            subject=str(file),
            remedy="Export the slide again.",
        ) from error
    except ValueError as error:
        raise ExportError(
            f"the picture is to be linked but lies outside {folder}",
            subject=str(file),
            remedy="Write the report beside its pictures, or raise inline_limit.",
        ) from error
    return Picture(caption, quote(inside.as_posix()), width, height)


def _section(slide: SlideEntry, folder: Path | None) -> _Section:
    shown = slide.overview and picture(_OVERVIEW, slide.overview, folder)
    return _Section(slide, [picture(*image, folder) for image in slide.images], shown or None)


def _shares(report: Report) -> dict[str, float]:
    """Length of each slide's bar, 0 to 100, from the lowest to the highest score."""
    scores = {s.name: score for s in report.slides if (score := report.score(s)) is not None}
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    span = (high - low) or 1.0
    return {name: round(4 + 96 * (score - low) / span, 1) for name, score in scores.items()}


def _legend(scale: ColourScale | None) -> dict[str, Any] | None:
    if scale is None:
        return None
    for colour in scale.colours:
        if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise ExportError(
                f"{colour!r} is no colour", subject="colour scale", remedy="Write it as #rrggbb."
            )
    return {
        "caption": scale.caption,
        "stops": _spread(scale.colours),
        "ticks": _spread(scale.ticks),
    }


def _spread(items: Sequence[str]) -> list[tuple[str, float]]:
    """Pair items with equally spaced positions, 0 to 100."""
    last = max(len(items) - 1, 1)
    return [(item, round(100 * index / last, 2)) for index, item in enumerate(items)]
