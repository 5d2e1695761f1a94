"""Serve ``wsiad view``: on loopback, and only to those who know the address.

No text of a request's path reaches the file system. A path must match one of a few patterns
completely, and its numbers choose among the existing slides and tiles. A page from elsewhere cannot
guess the token in the path. If it points a host name of its own at this machine, it does not pass
the check of the host. Judgements on regions are the only thing that is taken: small JSON from the
page itself, checked by a schema, for a region that the results hold.
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
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pydantic

from wsiad.core.errors import InputError, SlideError, WsiadError
from wsiad.core.files import parse_json
from wsiad.results import file_names as names
from wsiad.results.reviews import Judgement, SlideReview
from wsiad.viewing.deep_zoom import OVERLAP, TILE_SIZE, DeepZoom
from wsiad.viewing.ground_truth import GroundTruth
from wsiad.viewing.served_report import FOLDER, ServedReport
from wsiad.viewing.viewed_slides import ViewedSlide, describe, reviewed

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_MOST_SCORES = 4_000_000
_MOST_BODY = 1 << 16  # bytes of a judgement

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
    # Judgements change it, those of other reviewers too.
    fresh = {"Cache-Control": "no-store"}
    return Response(json.dumps(value, allow_nan=False).encode(), "application/json", headers=fresh)


def _refused(status: HTTPStatus, why: str) -> Response:
    return Response(why.encode(), status=status)


class _Sent(Judgement):
    """Judgement as the page sends it."""

    region: Annotated[str, pydantic.Field(strict=True, min_length=1, max_length=80)]


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
    report : ServedReport
        Report of the results.
    truth : GroundTruth
        Outlines of tumour.
    read_only : str
        Reason why no judgements are taken; empty if they are.
    reviewer : str
        Name of the reviewer; empty if the page is to ask for it.
    """

    def __init__(
        self,
        slides: Sequence[ViewedSlide],
        *,
        title: str,
        problem: Callable[[ViewedSlide], str],
        report: ServedReport,
        truth: GroundTruth,
        read_only: str = "",
        reviewer: str = "",
    ) -> None:
        self._slides, self._problem, self._report = slides, problem, report
        self._about = {"title": title, "readOnly": read_only, "reviewer": reviewer}
        self._truth, self._read_only = truth, read_only
        self._deep_zoom = DeepZoom()

    _STATIC_FILES: ClassVar[dict[str, tuple[str, str]]] = {
        "": ("index.html", "text/html; charset=utf-8"),
        "view.css": ("view.css", "text/css; charset=utf-8"),
        "view.js": ("view.js", "text/javascript; charset=utf-8"),
        "review.js": ("review.js", "text/javascript; charset=utf-8"),
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
            listed = [slide.as_json() for slide in self._slides]
            return _json({**self._about, **self._report.pages(), "slides": listed})
        if path == names.REPORT:  # the contact sheet links it there if it was written elsewhere
            headers = {"Location": f"{FOLDER}{names.REPORT}"}
            return Response(b"", status=HTTPStatus.FOUND, headers=headers)
        if path.startswith(FOLDER):
            return self._reported(path.removeprefix(FOLDER))
        # Of few digits: no number here needs more, and a long one costs time to read.
        found = re.fullmatch(r"slide/([0-9]{1,7})/([a-z]+)(?:/([0-9/]{1,30}))?", path)
        slide = self._slide(found[1]) if found else None
        if found is None or slide is None:
            return _nothing()
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

    def _reported(self, path: str) -> Response:
        found = self._report.answer(path)
        if found is None:
            return _nothing()
        # Other verbs write the pages anew.
        headers = {"Content-Security-Policy": self._report.policy, "Cache-Control": "no-store"}
        return Response(*found, headers=headers)

    def _slide(self, number: str) -> ViewedSlide | None:
        place = int(number)
        return self._slides[place - 1] if 1 <= place <= len(self._slides) else None

    def take(self, path: str, body: bytes) -> Response:
        """Store a judgement on a region.

        Parameters
        ----------
        path : str
            Path below the token, as for :meth:`answer`.
        body : bytes
            JSON object of ``region``, ``reviewer``, ``verdict`` and ``comment``.
        """
        found = re.fullmatch(r"slide/([0-9]{1,7})/review", path)
        slide = self._slide(found[1]) if found else None
        if slide is None:
            return _nothing()
        if self._read_only:
            return _refused(HTTPStatus.FORBIDDEN, f"Nothing is stored: {self._read_only}.")
        try:
            sent = _Sent.model_validate(parse_json(body.decode("utf-8")))
        except (ValueError, RecursionError):
            return _refused(HTTPStatus.BAD_REQUEST, "This is no judgement on a region.")
        judgement = Judgement.model_validate(sent.model_dump(exclude={"region", "time"}))
        try:
            _, before = SlideReview(slide.results).judge(sent.region, judgement)
        except InputError as error:
            return _refused(HTTPStatus.CONFLICT, str(error))
        said = {} if before is None else before.model_dump(include={"verdict", "comment"})
        return _json({"before": {"verdict": "", "comment": "", **said}, **reviewed(slide)})

    def _info(self, slide: ViewedSlide) -> Response:
        if slide.size is None:
            return _nothing(f"There is nothing to show of this slide: {slide.reason}")
        problem = self._problem(slide)
        found = describe(slide, problem=problem, tile_size=TILE_SIZE, overlap=OVERLAP)
        return _json({**found, "truth": self._truth.of(slide.results)})

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
        self._send(self._checked(self.server.pages.answer))

    def do_POST(self) -> None:
        refused = self._not_from_the_page()
        if refused:
            self.close_connection = True  # what it sent is not read
            self._send(refused)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(self._checked(lambda path: self.server.pages.take(path, body)))

    def _not_from_the_page(self) -> Response | None:
        """Refuse what does not come from the page itself, or is too large; ``None`` if it is fit.

        Every browser states the origin of a POST, and asks before it sends JSON across origins.
        """
        host, origin = self.headers.get("Host") or "", self.headers.get("Origin") or ""
        if (
            origin.lower() != f"http://{host.lower()}"
            or self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        ):
            return _refused(HTTPStatus.FORBIDDEN, "Only the page itself can send judgements.")
        if (self.headers.get("Content-Type") or "").strip().lower() != "application/json":
            return _refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Judgements are JSON.")
        length = self.headers.get("Content-Length") or ""
        if self.headers.get("Transfer-Encoding") or not re.fullmatch(r"[0-9]{1,9}", length):
            return _refused(HTTPStatus.LENGTH_REQUIRED, "The length of the content is not stated.")
        if int(length) > _MOST_BODY:
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The judgement is too large.")
        # A guess at the token is not worth reading what comes with it.
        return self._not_addressed()

    def _not_addressed(self) -> Response | None:
        """Refuse another host's name and a path without the token; ``None`` for others."""
        # The port may be another one: at the near end of an SSH tunnel.
        host = (self.headers.get("Host") or "").rpartition(":")
        if (host[0] or host[2]).lower() not in _OURS:
            return Response(
                b"Open this page as localhost or 127.0.0.1.", status=HTTPStatus.MISDIRECTED_REQUEST
            )
        path = self.path.partition("?")[0]
        start, _, _ = path[1:].partition("/")
        if not path.startswith(f"/{start}/") or not secrets.compare_digest(
            start.encode(), self.server.token.encode()
        ):
            return _nothing()
        return None

    def _checked(self, answer: Callable[[str], Response]) -> Response:
        if refused := self._not_addressed():
            return refused
        rest = self.path.partition("?")[0][1:].partition("/")[2]
        try:
            return answer(rest)
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
