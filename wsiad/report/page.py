"""Write ``report.html``, a page with every slide, its pictures, the figures and facts of the run.

The page is a single file that opens from a disk, an e-mail or a server. It fetches nothing:
styles, script and pictures are inside. All text is escaped, and a content security policy lets no
other script run, so that the name of a slide can do no harm. The script only sorts and filters the
table; without it the page is complete.

If the pictures of slides have more than ``inline_limit`` bytes, the page links them instead, by
paths relative to its own folder, and states this. The browser then loads each picture as it comes
into view. The templates, the policy and the pictures also serve the report of a store.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from wsiad.core.errors import ExportError
from wsiad.core.files import write_text
from wsiad.heatmaps.regions import Region
from wsiad.report import wording as report_text
from wsiad.report.report_model import (
    ColourScale,
    LesionMark,
    LesionState,
    Report,
    SlideEntry,
)

_TEMPLATES = Path(__file__).parent / "templates"
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Mark:
    """Annotated lesion on a picture: an SVG path, in pixels, with a label at a point."""

    kind: str
    label: str
    path: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Picture:
    """Picture of a page, with its data or a link as the source, and marks to draw over it."""

    caption: str
    source: str
    width: int
    height: int
    marks: tuple[Mark, ...] = ()


def environment() -> jinja2.Environment:
    """Return the environment of the templates, which escapes all text and refuses unknown names."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template(name: str) -> Markup:
    """Return a style sheet or script of the reports, which a page contains unescaped."""
    # Our own file, which holds no text from outside: the one thing not to be escaped.
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704


def policy(*, any_style: bool = False) -> str:
    """Return the content security policy, which lets only wsiad's own style and script run.

    Parameters
    ----------
    any_style : bool
        Whether the style of another version's page is let through too.
    """
    style, script = (
        base64.b64encode(hashlib.sha256(template(name).encode()).digest()).decode()
        for name in ("report.css", "report.js")
    )
    allowed = "'unsafe-inline'" if any_style else f"'sha256-{style}'"
    return (
        "default-src 'none'; img-src data: file: 'self'; base-uri 'none'; form-action 'none'; "
        f"style-src {allowed}; script-src 'sha256-{script}'"
    )


def file_size(file: Path) -> int:
    """Return the size of a picture's file, bytes.

    Raises
    ------
    ExportError
        The file is missing.
    """
    try:
        return file.stat().st_size
    except OSError as error:
        raise ExportError(
            f"the picture cannot be read ({error.strerror})",
            subject=str(file),
            remedy="Export the slide again.",
        ) from error


def picture_size(file: Path) -> tuple[int, int]:
    """Return width and height of a picture, pixels.

    Raises
    ------
    ExportError
        The file is missing, or neither PNG nor JPEG.
    """
    try:
        with Image.open(file, formats=tuple(_TYPES)) as image:
            return image.size
    except OSError as error:
        raise ExportError(
            "the picture is not a PNG or JPEG file",
            subject=str(file),
            remedy="Export the slide again.",
        ) from error


def picture(caption: str, file: Path, folder: Path | None) -> Picture:
    """Embed a picture, or link it relative to ``folder`` if that is not ``None``."""
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
            f"the picture cannot be linked, because it is outside {folder}",
            subject=str(file),
            remedy="Write the report next to its pictures, or raise inline_limit.",
        ) from error
    return Picture(caption, quote(inside.as_posix()), width, height)


INLINE_LIMIT = 24 * 2**20
"""Maximum bytes of pictures of slides that the page embeds."""

_OVERVIEW = "Scored parts of the slide, and tiles before and after stain normalisation"
_THUMBNAIL = "Heatmap"


@dataclass(frozen=True, slots=True)
class _RegionCard:
    region: Region
    pictures: list[Picture]
    tiles: list[Picture]


@dataclass(frozen=True, slots=True)
class _Section:
    slide: SlideEntry
    thumbnail: Picture | None
    pictures: list[Picture]
    overview: Picture | None
    regions: list[_RegionCard]


def write_report(path: Path, report: Report, *, inline_limit: int = INLINE_LIMIT) -> None:
    """Write a report as one HTML file, atomically.

    Parameters
    ----------
    path : Path
        File to write, ``report.html``.
    report : Report
        Content of the report.
    inline_limit : int
        Maximum bytes of all pictures of slides that are embedded. Above it they are linked,
        relative to the folder of ``path``, which must then contain them.

    Raises
    ------
    ExportError
        A picture is missing, is neither PNG nor JPEG, or must be linked but is outside the
        folder of the report; or a colour of the scale is not ``#rrggbb``.
    """
    linked = (
        sum(file_size(file) for slide in report.slides for file in _files(slide)) > inline_limit
    )
    folder = path.parent if linked else None
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            slides=[_section(slide, folder) for slide in report.ranked()],
            plots=[picture(*plot, None) for plot in report.plots],
            shares=_shares(report),
            scales=[_legend(one) for one in (report.colour_scale, report.space_scale) if one],
            linked=linked,
            style=template("report.css"),
            script=template("report.js"),
            policy=policy(),
            text=report_text,
        )
    )
    write_text(path, page)


def _files(slide: SlideEntry) -> Iterator[Path]:
    """Yield the pictures of a slide."""
    yield from (file for file in (slide.thumbnail, slide.overview) if file)
    yield from (file for _, file in slide.images)
    for region in slide.regions:
        yield from (file for _, file in (*region.images, *region.tiles))


def _section(slide: SlideEntry, folder: Path | None) -> _Section:
    def shown(pictures: Sequence[tuple[str, Path]]) -> list[Picture]:
        return [picture(caption, file, folder) for caption, file in pictures]

    return _Section(
        slide=slide,
        thumbnail=picture(_THUMBNAIL, slide.thumbnail, folder) if slide.thumbnail else None,
        # The first look at a slide lies in other results, and is never linked.
        pictures=[
            *(_marked(one, slide.marks) for one in shown(slide.images[:2])),
            *(picture(*one, None) for one in slide.first_look),
            *shown(slide.images[2:]),
        ],
        overview=picture(_OVERVIEW, slide.overview, folder) if slide.overview else None,
        regions=[
            _RegionCard(part.region, shown(part.images), shown(part.tiles))
            for part in slide.regions
        ],
    )


_SIGNS: dict[LesionState, str] = {"found": "✓", "missed": "✗", "unknown": "?"}


def _marked(shown: Picture, lesions: Sequence[LesionMark]) -> Picture:
    """Return a picture with annotated lesions drawn over it."""
    marks = []
    for lesion in lesions:
        points = [(x * shown.width, y * shown.height) for x, y in lesion.outline]
        if not points:
            continue
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        # At the corner that is farthest to the upper right, and within the picture.
        right, top = max(points, key=lambda point: (point[0] - point[1], point[0]))
        sign = _SIGNS.get(lesion.state)
        label = "" if sign is None else f"{sign}{lesion.number}"
        x = round(min(right, 0.95 * shown.width), 1)
        y = round(max(top, 0.03 * shown.height), 1)
        marks.append(Mark(lesion.state, label, path=f"M{corners}Z", x=x, y=y))
    return replace(shown, marks=tuple(marks))


def _shares(report: Report) -> dict[str, float]:
    """Return the length of each slide's bar, 0 to 100, from the lowest to the highest score."""
    scores = {s.name: score for s in report.slides if (score := report.score(s)) is not None}
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    span = (high - low) or 1.0
    return {name: round(4 + 96 * (score - low) / span, 1) for name, score in scores.items()}


def _legend(scale: ColourScale) -> dict[str, Any]:
    for colour in scale.colours:
        if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise ExportError(
                f"{colour!r} is not a colour", subject="colour scale", remedy="Write it as #rrggbb."
            )
    return {
        "caption": scale.caption,
        "of": scale.of,
        "stops": _spread(scale.colours),
        # Shares stand above the scores: in one line neighbours would touch.
        "ticks": [(*tick.rpartition(": ")[::2], at) for tick, at in _spread(scale.ticks)],
        "height": 58 if any(": " in tick for tick in scale.ticks) else 42,
    }


def _spread(items: Sequence[str]) -> list[tuple[str, float]]:
    """Pair items with equally spaced positions, 0 to 100."""
    last = max(len(items) - 1, 1)
    return [(item, round(100 * index / last, 2)) for index, item in enumerate(items)]
