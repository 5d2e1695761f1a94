"""Serve ``wsiad view``: on loopback, read-only, and only to those who know the address.

No text of a request reaches the file system. A path must match one of a few patterns completely,
and its numbers choose among the existing slides and tiles. A page from elsewhere cannot guess the
token in the path. If it points a host name of its own at this machine, it does not pass the check
of the host.
"""

from __future__ import annotations

import http.server
import json
import logging
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import SlideError, WsiadError
from wsiad.results import file_names as names
from wsiad.viewing.deep_zoom import OVERLAP, TILE_SIZE, DeepZoom
from wsiad.viewing.viewed_slides import ViewedSlide, describe

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_MOST_SCORES = 4_000_000

_STATIC = Path(__file__).parent / "static"
_OURS = frozenset({"127.0.0.1", "localhost"})
# The one style that OpenSeadragon writes itself is let through by its hash.
_POLICY = (
    "default-src 'none'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Response:
    """Answer to a request: content, type of the content, status and headers."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)


def _json(value: Any) -> Response:
    return Response(json.dumps(value, allow_nan=False).encode(), "application/json")


def _nothing(why: str = "There is nothing here.") -> Response:
    return Response(why.encode(), status=HTTPStatus.NOT_FOUND)


def _failed(why: str) -> Response:
    return Response(
        " ".join(why.split()).encode(errors="replace"), status=HTTPStatus.INTERNAL_SERVER_ERROR
    )


class Pages:
    """Answers requests by their path below the token; independent of sockets.

    Parameters
    ----------
    slides : sequence of ViewedSlide
        Slides in order of their ranks.
    title : str
        Title of the page.
    problem : callable
        Function of a slide that returns why its own pixels cannot be shown; empty if they can.
    """

    def __init__(
        self, slides: Sequence[ViewedSlide], *, title: str, problem: Callable[[ViewedSlide], str]
    ) -> None:
        self._slides, self._title, self._problem = slides, title, problem
        self._deep_zoom = DeepZoom()

    _STATIC_FILES: ClassVar[dict[str, tuple[str, str]]] = {
        "": ("index.html", "text/html; charset=utf-8"),
        "view.css": ("view.css", "text/css; charset=utf-8"),
        "view.js": ("view.js", "text/javascript; charset=utf-8"),
        "openseadragon.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
    }

    def answer(self, path: str) -> Response:
        """Answer a request.

        Parameters
        ----------
        path : str
            Path below the token, without leading slash and query.
        """
        if path in self._STATIC_FILES:
            name, kind = self._STATIC_FILES[path]
            return Response((_STATIC / name).read_bytes(), kind)
        if path == "slides.json":
            return _json({"title": self._title, "slides": [s.as_json() for s in self._slides]})
        # Of few digits: no number here needs more, and a long one costs time to read.
        found = re.fullmatch(r"slide/([0-9]{1,7})/([a-z]+)(?:/([0-9/]{1,30}))?", path)
        if found is None or not 1 <= int(found[1]) <= len(self._slides):
            return _nothing()
        slide = self._slides[int(found[1]) - 1]
        if found[2] == "tile" and found[3]:
            return self._tile(slide, found[3])
        answers: dict[str, Callable[[ViewedSlide], Response]] = {
            "info": self._info,
            "scores": self._scores,
            "heatmap": lambda s: _file(s.results.file(names.HEATMAP_PICTURE), "image/png"),
            "neighbourhoods": lambda s: _file(s.results.file(names.SPATIAL_PICTURE), "image/png"),
            "neighbourhoodscores": self._neighbourhood_scores,
            "picture": lambda s: _file(s.results.file(names.TISSUE), "image/png"),
            "thumbnail": lambda s: _file(s.results.file(names.THUMBNAIL), "image/jpeg"),
        }
        if found[3] or found[2] not in answers:
            return _nothing()
        return answers[found[2]](slide)

    def _info(self, slide: ViewedSlide) -> Response:
        if slide.size is None:
            return _nothing(f"There is nothing to show of this slide: {slide.reason}")
        problem = self._problem(slide)
        return _json(describe(slide, problem=problem, tile_size=TILE_SIZE, overlap=OVERLAP))

    def _tile(self, slide: ViewedSlide, place: str) -> Response:
        numbers = re.fullmatch(r"([0-9]{1,2})/([0-9]{1,7})/([0-9]{1,7})", place)
        if numbers is None or slide.file is None or self._problem(slide):
            return _nothing()
        data = self._deep_zoom.tile(slide.file, *(int(number) for number in numbers.groups()))
        return Response(data, "image/jpeg") if data is not None else _nothing()

    def _scores(self, slide: ViewedSlide) -> Response:
        if slide.results.file(names.HEATMAP) is None:
            return _nothing()
        # It covers the heatmap's rectangle, a very large one by means over blocks.
        return _grid(slide.results.scores(few=_MOST_SCORES))

    def _neighbourhood_scores(self, slide: ViewedSlide) -> Response:
        if slide.results.file(names.SPATIAL) is None:
            return _nothing()
        scores = slide.results.neighbourhood_scores(few=_MOST_SCORES)
        return _nothing() if scores is None else _grid(scores)


def _grid(scores: npt.NDArray[np.float32]) -> Response:
    size = {"X-Width": str(scores.shape[1]), "X-Height": str(scores.shape[0])}
    data = scores.astype("<f4", copy=False).tobytes()
    return Response(data, "application/octet-stream", headers=size)


def _file(path: Path | None, kind: str) -> Response:
    return Response(path.read_bytes(), kind) if path else _nothing()


class ViewServer(http.server.ThreadingHTTPServer):
    """Server on loopback that answers with pages, with one thread per connection.

    Attributes
    ----------
    url : str
        Address of the page, including the token.
    """

    daemon_threads = True

    def __init__(self, pages: Pages, *, port: int = 0) -> None:
        self.pages = pages
        self.token = secrets.token_urlsafe(16)
        super().__init__((LOOPBACK, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the failure of a connection; a connection that a browser closed is not an error."""
        gone = isinstance(sys.exception(), ConnectionError | TimeoutError)
        logger.log(logging.DEBUG if gone else logging.ERROR, "request failed", exc_info=True)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Checks a request and sends the answer of the pages."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wsiad", ""
    server: ViewServer
    timeout = 60

    def do_GET(self) -> None:
        self._send(self._checked())

    def _checked(self) -> Response:
        # The port may be another one: at the near end of an SSH tunnel.
        host = (self.headers.get("Host") or "").rpartition(":")
        if (host[0] or host[2]).lower() not in _OURS:
            return Response(
                b"Open this page as localhost or 127.0.0.1.", status=HTTPStatus.MISDIRECTED_REQUEST
            )
        path = self.path.partition("?")[0]
        start, _, rest = path[1:].partition("/")
        if not path.startswith(f"/{start}/") or not secrets.compare_digest(
            start.encode(), self.server.token.encode()
        ):
            return _nothing()
        try:
            return self.server.pages.answer(rest)
        except SlideError as error:
            return Response(str(error).encode(), status=HTTPStatus.UNPROCESSABLE_ENTITY)
        except (WsiadError, OSError) as error:
            logger.warning("%s: %s", rest, error)
            return _failed(str(error))
        except Exception as error:  # a browser that gets no answer shows nothing, and says nothing
            logger.exception("%s", rest)
            return _failed(f"This cannot be shown: {type(error).__name__}: {error}")

    def _send(self, response: Response) -> None:
        headers = {
            "Content-Type": response.kind,
            "Content-Length": str(len(response.body)),
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            # The token is of this server alone: what is kept cannot be another results'.
            "Cache-Control": "private, max-age=600",
            **response.headers,
        }
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log a request at debug level."""
        logger.debug(format, *args)
