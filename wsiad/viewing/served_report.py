"""Answer with the report of the results: its pages, their table and the pictures they link.

A report in a file cannot link a server whose address is new each time. Served by ``wsiad view`` it
stands at a known distance from the viewer, so that the links from slide to slide, which a page in
a file does not show, work there.

A request's path is only compared with the names of files that the results are known to have. The
pages run no script but that of the reports of this version of wsiad: they lie in a folder that may
come from elsewhere, and this origin may store judgements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from wsiad.results import file_names as names
from wsiad.results.slide_results import SlideResults

FOLDER = "results/"
"""Start of the paths of everything here, below the token."""

_HTML, _CSV = "text/html; charset=utf-8", "text/csv; charset=utf-8"
_FILES = {names.REPORT: _HTML, names.CONTACT_SHEET: _HTML, names.ALL_REGIONS: _CSV}
_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
_PICTURES = (names.THUMBNAIL, names.TISSUE, names.OVERLAY, names.PLAIN_OVERLAY, names.OVERVIEW)
_SERVED = (
    (b"</head>", b'<link rel="icon" href="data:,">\n</head>'),  # else a browser asks for one
    (b"<body>", b'<body class="viewed">'),  # shows the links to the viewer
)


class ServedReport:
    """Pages of a results folder about its slides.

    Parameters
    ----------
    results : Path
        Results folder.
    slides : sequence of SlideResults
        All slides of the folder.
    policy : str
        Content security policy of the pages, which names the script that may run.

    Attributes
    ----------
    policy : str
        The same policy, by which no other page may frame these.
    """

    def __init__(self, results: Path, slides: Sequence[SlideResults], *, policy: str) -> None:
        self._results, self._slides = results, slides
        self.policy = f"{policy}; frame-ancestors 'none'"

    def pages(self) -> dict[str, bool]:
        """Return which pages exist, as JSON values."""
        return {
            "report": (self._results / names.REPORT).is_file(),
            "contactSheet": (self._results / names.CONTACT_SHEET).is_file(),
        }

    def answer(self, path: str) -> tuple[bytes, str] | None:
        """Return a file and the type of its content; ``None`` if the path leads to none.

        Parameters
        ----------
        path : str
            Path below :data:`FOLDER`, percent-encoded.

        Raises
        ------
        ExportError
            The list of a slide's pictures is damaged.
        """
        if path in _FILES:
            file = self._results / path
            if not file.is_file():
                return None
            body = file.read_bytes()
            for written, served in _SERVED if _FILES[path] == _HTML else ():
                body = body.replace(written, served, 1)
            return body, _FILES[path]
        wanted = unquote(path)
        for slide in self._slides:
            folder = slide.folder.relative_to(slide.results).as_posix()
            if not wanted.startswith(f"{folder}/"):
                continue
            for picture in _pictures(slide):
                if picture.relative_to(slide.results).as_posix() == wanted:
                    return picture.read_bytes(), _KINDS[picture.suffix]
        return None


def _pictures(slide: SlideResults) -> Iterator[Path]:
    """Yield the pictures of a slide that a report shows, and that exist."""
    found = [slide.file(name) for name in _PICTURES]
    found += [field.image for field in slide.fields()]
    for one in slide.evidence():
        found += [one.tile, *(near.tile for near in one.nearest)]
        found += [one.reconstruction, one.difference]
    for picture in found:
        if picture is not None and picture.suffix in _KINDS and picture.is_file():
            yield picture
