"""What the pages of the package are made with: templates, their policy, and pictures."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from wsiad.core.errors import ExportError

_TEMPLATES = Path(__file__).parent / "templates"
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a page shows it: within the page, or linked."""

    caption: str
    source: str
    width: int
    height: int


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


def file_size(file: Path) -> int:
    """Return the bytes of a picture.

    Raises
    ------
    ExportError
        It is missing.
    """
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
