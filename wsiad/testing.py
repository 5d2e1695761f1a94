"""Conformance suites: what a detector or a slide backend of another package must do.

A test of a detector is one call, ``check_detector(MyDetector)``; of a slide backend one too,
``check_slide(slide)``. wsiad's own run the same suites. Each raises ``AssertionError`` at the
first thing that does not hold, and says in one sentence what that is.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsiad.core.config import build
from wsiad.core.errors import WsiadError
from wsiad.core.geometry import Mpp, Size, TilePx
from wsiad.learning.detector import (
    AnomalousTiles,
    AnomalyType,
    Budget,
    Detector,
    DetectorOptions,
    Embeds,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Reconstructs,
    State,
    Tiles,
)
from wsiad.runs.run import RunFolder
from wsiad.slides.slide import Region, Slide
from wsiad.store.dataset import ArrayTiles

_ENDS = frozenset({"fitted", "early-stopping", "max-steps", "max-minutes"})
_ROOM = 8  # px by which the tiles to learn from are larger than the input
_FIT, _STOP, _ANOMALOUS, _ASKED = 28, 12, 8, 5
_SEED = 1


def check_detector(
    cls: type[Detector],
    options: Mapping[str, Any] | None = None,
    *,
    input_px: int = 64,
    max_steps: int = 3,
    weights: str | None = "random",
    tolerance: float = 1e-3,
) -> None:
    """Check that a detector does what every detector of wsiad does.

    It is fitted twice on small tiles that look like stained tissue, on the CPU, and scores some
    of them. What is checked: options that have defaults and are described; refusal before the
    fit; shapes, data types and finite values of scores; the same result from the same seed,
    whatever the state of the global random generators; scores that do not depend on the
    batch; a state that survives the files of a run; refusal of a damaged state; and, where it has
    them, what it embeds and reconstructs.

    Parameters
    ----------
    cls : type of Detector
    options : mapping, optional
        Options of the detector by name; choose such as make it small and quick.
    input_px : int
        Edge of the tiles that are scored; those that are learnt from are 8 px larger.
    max_steps : int
        The most optimiser steps of a fit.
    weights : str or None
        As :attr:`FitContext.weights`; random by default, so that nothing is downloaded.
    tolerance : float
        The greatest relative difference between scores of a tile in two batches.

    Raises
    ------
    AssertionError
        Something does not hold.
    """
    _check_class(cls)
    with tempfile.TemporaryDirectory() as folder:
        made = _Made(cls, dict(options or {}), input_px, max_steps, weights, Path(folder))
        _check_unfitted(made)
        detector = _check_fit(made)
        scores = _check_scores(detector, made.asked, tolerance)
        _check_seed(made, detector, scores)
        stored = made.folder("stored")
        again = _check_round_trip(made, detector, scores, stored)
        for one, tiles in ((detector, made.asked), (again, made.asked)):
            _check_embedding(one, tiles, tolerance)
            _check_reconstruction(one, tiles)
        _check_same_views(detector, again, made.asked)
        _check_damage(made, detector)


@dataclass(frozen=True, slots=True)
class _Made:
    """The detectors, tiles and folders of a check."""

    cls: type[Detector]
    options: dict[str, Any]
    input_px: int
    max_steps: int
    weights: str | None
    root: Path

    def detector(self) -> Detector:
        options = build(self.cls.Options, self.options, source=f"options of {self.cls.__name__}")
        return self.cls(options, InputSpec(TilePx(self.input_px), Mpp(1)))

    def folder(self, name: str) -> Path:
        found = self.root / name
        found.mkdir()
        return found

    def fitted(self, name: str) -> tuple[Detector, FitReport]:
        """Return a detector that was fitted, and how the fit ended."""
        edge, detector = self.input_px + _ROOM, self.detector()
        tiles = HealthyTiles(
            ArrayTiles(tissue_tiles(_FIT, edge, seed=1)),
            ArrayTiles(tissue_tiles(_STOP, edge, seed=2)),
        )
        anomalous = ArrayTiles(tissue_tiles(_ANOMALOUS, edge, seed=3, strange=True))
        slides = tuple(f"slide-{number % 2}" for number in range(_ANOMALOUS))
        learns = detector.learns_from_anomalies(detector.options)
        context = FitContext(
            seed=_SEED,
            device=torch.device("cpu"),
            folder=self.folder(name),
            budget=Budget(max_steps=self.max_steps),
            weights=self.weights,
            quiet=True,
            anomalies=AnomalousTiles((AnomalyType("strange", anomalous, slides),))
            if learns
            else None,
        )
        return detector, detector.fit(tiles, context)

    @property
    def asked(self) -> Tiles:
        """Tiles to score, healthy ones and one that is not."""
        healthy = tissue_tiles(_ASKED - 1, self.input_px, seed=4)
        strange = tissue_tiles(1, self.input_px, seed=5, strange=True)
        return np.concatenate([healthy, strange])


def tissue_tiles(count: int, edge: int, *, seed: int, strange: bool = False) -> Tiles:
    """Return tiles of the colours of stained tissue, uint8 (count, edge, edge, 3).

    Parameters
    ----------
    count : int
    edge : int
        Pixels.
    seed : int
        Same seed, same tiles.
    strange : bool
        Stripes of another colour run through them.
    """
    rng = np.random.default_rng([seed, strange])
    eosin, nuclei = np.array([225.0, 150, 190]), np.array([110.0, 70, 150])
    cells = rng.random((count, -(-edge // 8), -(-edge // 8), 1))
    share = np.kron(cells, np.ones((1, 8, 8, 1)))[:, :edge, :edge]
    made = eosin * (1 - share) + nuclei * share + rng.normal(0, 6, (count, edge, edge, 3))
    if strange:
        made[:, :, ::4] = (60, 160, 60)
    return np.clip(made, 0, 255).astype(np.uint8)


def _check_class(cls: type[Detector]) -> None:
    name = getattr(cls, "__name__", repr(cls))
    assert inspect.isclass(cls), f"{name} is not a class"
    assert issubclass(cls, Detector), f"{name} does not derive from wsiad's Detector"
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    assert not missing, f"{name} lacks {missing}"
    right = inspect.isclass(cls.Options) and issubclass(cls.Options, DetectorOptions)
    assert right, f"{name}.Options does not derive from DetectorOptions"
    bare = [key for key, field in cls.Options.model_fields.items() if not field.description]
    assert not bare, f"the options {', '.join(bare)} have no description: a string below each"
    cls.Options()


def _check_unfitted(made: _Made) -> None:
    detector, tiles = made.detector(), made.asked
    uses: list[tuple[str, Callable[[], object]]] = [
        ("score_map", lambda: detector.score_map(tiles)),
        ("state", detector.state),
    ]
    if isinstance(detector, Embeds):
        uses.append(("embed", lambda: detector.embed(tiles)))
    if isinstance(detector, Reconstructs):
        uses.append(("reconstruct", lambda: detector.reconstruct(tiles)))
    for name, use in uses:
        _refused(use, f"{name} before the fit")


def _refused(use: Callable[[], object], what: str) -> None:
    """Check that something ends with an error of wsiad, which names a remedy, and no other."""
    try:
        use()
    except WsiadError:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} ends with {type(error).__name__} ({error}), not with a DetectorError"
        ) from error
    raise AssertionError(f"{what} is not refused: raise a DetectorError")


def _check_fit(made: _Made) -> Detector:
    detector, report = made.fitted("first")
    assert isinstance(report, FitReport), f"fit returns {type(report).__name__}, not a FitReport"
    assert report.ended_by in _ENDS, f"ended_by is {report.ended_by!r}, none of {sorted(_ENDS)}"
    assert report.steps >= 0, f"steps are {report.steps}"
    _as_json(report.notes, "the notes of the fit")
    return detector


def _as_json(values: object, what: str) -> Any:
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} are no JSON values: {error}") from error


def _check_scores(detector: Detector, tiles: Tiles, tolerance: float) -> npt.NDArray[np.float32]:
    before = tiles.copy()
    places = detector.score_map(tiles)
    assert np.array_equal(tiles, before), "scoring changes the tiles"
    _check_array(places, "score_map", (len(tiles), None, None))
    assert places.shape[1] == places.shape[2], f"score_map gives {places.shape}: not m × m places"
    scores = detector.score(tiles)
    _check_array(scores, "score", (len(tiles),))
    assert len(np.unique(scores)) > 1, "all tiles have the same score"
    assert np.array_equal(detector.score_map(tiles), places), "a second look gives other scores"
    alone = np.concatenate([detector.score_map(tiles[i : i + 1]) for i in range(len(tiles))])
    _check_near(alone, places, "scores depend on the other tiles of the batch", tolerance)
    empty = detector.score(tiles[:0])
    assert empty.shape == (0,), f"no tiles give scores of the shape {empty.shape}, not (0,)"
    return places


def _check_array(found: Any, what: str, shape: tuple[int | None, ...]) -> None:
    assert isinstance(found, np.ndarray), f"{what} gives {type(found).__name__}, not an ndarray"
    assert found.dtype == np.float32, f"{what} gives {found.dtype}, not float32"
    fits = len(found.shape) == len(shape) and all(
        wanted in (None, edge) for edge, wanted in zip(found.shape, shape, strict=True)
    )
    said = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
    assert fits, f"{what} gives the shape {found.shape}, not ({said})"
    assert np.isfinite(found).all(), f"{what} gives values that are not finite"


def _check_near(
    found: npt.NDArray[Any], expected: npt.NDArray[Any], problem: str, tolerance: float
) -> None:
    scale = max(float(np.abs(expected).max(initial=0)), 1e-12)
    worst = float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale
    assert worst <= tolerance, f"{problem}: by {worst:.2g} of the greatest value"


def _check_seed(made: _Made, detector: Detector, places: npt.NDArray[np.float32]) -> None:
    torch.rand(7)
    np.random.random(7)  # noqa: NPY002 -- a detector must not draw from it
    again, _ = made.fitted("second")
    _check_states(detector.state(), again.state(), "two fits with one seed")
    same = np.array_equal(again.score_map(made.asked), places)
    assert same, "two fits with one seed give other scores"


def _check_states(first: State, second: State, what: str) -> None:
    names = sorted(first.tensors.keys() ^ second.tensors.keys())
    assert not names, f"{what} differ in their tensors: {', '.join(names)}"
    for name, tensor in first.tensors.items():
        other = second.tensors[name]
        same = tensor.dtype == other.dtype and torch.equal(tensor.cpu(), other.cpu())
        assert same, f"{what} differ in the tensor {name}"
    values = [_as_json(state.values, "values of the state") for state in (first, second)]
    different = sorted(
        key
        for key in values[0].keys() | values[1].keys()
        if values[0].get(key) != values[1].get(key)
    )
    assert not different, f"{what} differ in the values {', '.join(different)}"


def _check_round_trip(
    made: _Made, detector: Detector, places: npt.NDArray[np.float32], folder: Path
) -> Detector:
    """Write the state into the files of a run, read it back and score by it."""
    run = RunFolder(folder)
    run.save_detector(detector, name="checked")
    again = run.load_detector(torch.device("cpu"), cls=made.cls)
    _check_states(detector.state(), again.state(), "a detector and what was read back of it")
    same = np.array_equal(again.score_map(made.asked), places)
    assert same, "a detector that was read back gives other scores"
    return again


def _check_embedding(detector: Detector, tiles: Tiles, tolerance: float) -> None:
    if not isinstance(detector, Embeds):
        return
    vectors = detector.embed(tiles)
    _check_array(vectors, "embed", (len(tiles), None))
    alone = np.concatenate([detector.embed(tiles[i : i + 1]) for i in range(len(tiles))])
    _check_near(alone, vectors, "embeddings depend on the other tiles of the batch", tolerance)
    empty = detector.embed(tiles[:0]).shape
    wanted = (0, vectors.shape[1])
    assert empty == wanted, f"no tiles give embeddings of the shape {empty}, not {wanted}"


def _check_reconstruction(detector: Detector, tiles: Tiles) -> None:
    if not isinstance(detector, Reconstructs):
        return
    made = detector.reconstruct(tiles)
    right = isinstance(made, np.ndarray) and made.dtype == np.uint8 and made.shape == tiles.shape
    assert right, f"reconstruct does not give uint8 tiles of the shape {tiles.shape}"
    difference = detector.difference(tiles)
    _check_array(difference, "difference", (len(tiles), None, None))
    same = np.array_equal(detector.pool(difference), detector.score(tiles))
    assert same, "what difference gives is not pooled to the score"


def _check_same_views(first: Detector, second: Detector, tiles: Tiles) -> None:
    if isinstance(first, Embeds) and isinstance(second, Embeds):
        same = np.array_equal(first.embed(tiles), second.embed(tiles))
        assert same, "a detector that was read back embeds otherwise"
    if isinstance(first, Reconstructs) and isinstance(second, Reconstructs):
        same = np.array_equal(first.reconstruct(tiles), second.reconstruct(tiles))
        assert same, "a detector that was read back reconstructs otherwise"


def _check_damage(made: _Made, detector: Detector) -> None:
    """Check that states are refused that lack a tensor, hold one of another shape, or none."""
    state = detector.state()
    assert state.tensors, "the state has no tensors: keep what was fitted there, not in the values"
    largest = max(sorted(state.tensors), key=lambda name: state.tensors[name].numel())
    damaged = {
        "without its tensors": {},
        f"without the tensor {largest}": {
            name: tensor for name, tensor in state.tensors.items() if name != largest
        },
        f"whose tensor {largest} has another shape": {
            **state.tensors,
            largest: torch.zeros((2, 3, 2, 3, 2), dtype=state.tensors[largest].dtype),
        },
    }
    for what, tensors in damaged.items():
        values = _as_json(state.values, "values of the state")
        fresh = made.detector()
        _refused(
            lambda fresh=fresh, tensors=tensors, values=values: fresh.load_state(  # type: ignore[misc]
                State(dict(tensors), values), torch.device("cpu")
            ),
            f"a state {what}",
        )


_WINDOW = 192  # px of a level that are read at once
_MOST_FINER = 2_048  # px of the finer level that are read for it
_MOST_ROUNDING = 1.5  # grey levels: OpenSlide places the pixels of some levels between others
_CELLS = 6  # a side, whose mean colours are compared


def check_slide(slide: Slide, *, tolerance: float = 6.0) -> None:
    """Check that an open slide does what every slide of wsiad does.

    What is checked: what it says of itself; levels from the finest to the coarsest, and that
    each shows what the finer one shows; rectangles that have the same pixels whatever they are
    read with, exactly where the slide says so (:attr:`Slide.reads_tiles`); and what lies beyond
    the edge, which is not valid. At most some megapixels are read.

    Parameters
    ----------
    slide : Slide
        It is left open.
    tolerance : float
        The greatest difference of the mean colour of an area between a level and the finer
        one, grey levels of 0 to 255, of 19 in 20 areas.

    Raises
    ------
    AssertionError
        Something does not hold.
    """
    _check_description(slide)
    for level in range(len(slide.levels)):
        _check_reads(slide, level)
        _check_edges(slide, level)
    for level in range(1, len(slide.levels)):
        _check_level(slide, level, tolerance)
    slide.check_unchanged()


def _check_description(slide: Slide) -> None:
    assert isinstance(slide, Slide), f"{type(slide).__name__} does not derive from wsiad's Slide"
    for name in ("name", "format", "backend", "spacing_source"):
        found = getattr(slide, name, None)
        assert isinstance(found, str) and found, f"{name} is {found!r}, not a text"  # noqa: PT018
    assert isinstance(slide.path, Path), f"path is {slide.path!r}, not a Path"
    assert slide.levels, "there are no levels"
    for axis, value in zip("xy", (slide.spacing.x, slide.spacing.y), strict=True):
        right = math.isfinite(value) and value > 0
        assert right, f"the spacing along {axis} is {value}, not µm per pixel"
    first = slide.levels[0]
    assert (first.downsample_x, first.downsample_y) == (1, 1), "the downsample of level 0 is not 1"
    for number, level in enumerate(slide.levels):
        width, height = level.size.width, level.size.height
        assert min(width, height) > 0, f"level {number} is {width} × {height} px"
        for edge, whole, ratio in (
            (width, slide.size.width, level.downsample_x),
            (height, slide.size.height, level.downsample_y),
        ):
            near = abs(whole / ratio - edge) <= 1 + 1e-6
            assert near, f"level {number} is of {edge} px, and {whole} px are {ratio} times as many"
    ratios = [level.downsample_x for level in slide.levels]
    rising = all(fine < coarse for fine, coarse in itertools.pairwise(ratios))
    assert rising, f"the levels are not from the finest to the coarsest: {ratios}"
    box, size = slide.bounds, slide.size
    within = box.x >= 0 and box.y >= 0 and box.width > 0 and box.height > 0
    within &= box.right <= size.width + 1 and box.bottom <= size.height + 1
    assert within, f"the bounds {box} are not within {size}"


def _corners(size: Size, edge: int) -> list[tuple[int, int]]:
    """Return top-left corners of windows: at both ends and in the middle of a level."""
    across, down = max(size.width - edge, 0), max(size.height - edge, 0)
    return sorted({(0, 0), (across // 2, down // 2), (across, down)})


def _valid(region: Region) -> npt.NDArray[np.bool_]:
    return np.ones(region.rgb.shape[:2], bool) if region.valid is None else region.valid


def _read(slide: Slide, level: int, x: int, y: int, size: Size) -> Region:
    """Read a rectangle and check its shapes and data types."""
    region = slide.read_level(level, x, y, size)
    shape = (size.height, size.width)
    where = f"level {level}, {size.width} × {size.height} px at {x}, {y}"
    right = region.rgb.dtype == np.uint8 and region.rgb.shape == (*shape, 3)
    assert right, f"{where}: pixels are {region.rgb.dtype} {region.rgb.shape}"
    if region.valid is not None:
        right = region.valid.dtype == np.bool_ and region.valid.shape == shape
        assert right, f"{where}: valid is {region.valid.dtype} {region.valid.shape}"
    return region


def _check_same(found: Region, expected: Region, what: str, *, exact: bool) -> None:
    valid = _valid(expected)
    assert np.array_equal(_valid(found), valid), f"{what}: other pixels are valid"
    difference = np.abs(found.rgb[valid].astype(np.int16) - expected.rgb[valid])
    if not exact and difference.size and difference.mean() <= _MOST_ROUNDING:
        return
    assert not difference.any(), f"{what}: pixels differ, by {difference.max()} grey levels"


def _part(region: Region, rows: slice, columns: slice) -> Region:
    valid = None if region.valid is None else region.valid[rows, columns]
    return Region(region.rgb[rows, columns], valid)


def _check_reads(slide: Slide, level: int) -> None:
    """Check that pixels do not depend on the rectangle that they are read with."""
    size = slide.levels[level].size
    edge = min(_WINDOW, size.width, size.height)
    odd = max(1, edge // 3 | 1)
    for x, y in _corners(size, edge):
        whole = _read(slide, level, x, y, Size(edge, edge))
        again = _read(slide, level, x, y, Size(edge, edge))
        _check_same(again, whole, f"level {level} at {x}, {y}, read twice", exact=True)
        rest = edge - odd
        parts = [(0, 0, odd, odd)]
        if rest:
            parts += [(odd, 0, rest, edge), (0, odd, odd, rest)]
        for left, top, width, height in parts:
            part = _read(slide, level, x + left, y + top, Size(width, height))
            expected = _part(whole, slice(top, top + height), slice(left, left + width))
            what = f"level {level} at {x + left}, {y + top}, read in parts"
            _check_same(part, expected, what, exact=slide.reads_tiles)
        if rest:
            corners = np.array([(x, y), (x + rest, y + rest)] if rest >= odd else [(x, y)])
            out = np.zeros((len(corners), odd, odd, 3), np.uint8)
            valid = slide.read_tiles(level, corners.astype(np.int64), out)
            for (left, top), tile, is_whole in zip(corners.tolist(), out, valid, strict=True):
                one = _read(slide, level, left, top, Size(odd, odd))
                assert bool(is_whole) == bool(_valid(one).all()), (
                    f"level {level} at {left}, {top}: read_tiles and read_level disagree on "
                    "whether all pixels are valid"
                )
                if is_whole:
                    what = f"level {level} at {left}, {top}, read_tiles"
                    _check_same(Region(tile), one, what, exact=True)


def _check_edges(slide: Slide, level: int) -> None:
    """Check that what lies beyond a level is not valid, and what lies within is the same."""
    size = slide.levels[level].size
    out = 9
    edge = min(64, size.width, size.height)
    last = (size.width - edge, size.height - edge)
    for x, y, dx, dy in ((0, 0, out, out), (*last, 0, 0)):
        inside = _read(slide, level, x, y, Size(edge, edge))
        beyond = _read(slide, level, x - dx, y - dy, Size(edge + out, edge + out))
        within = (slice(dy, dy + edge), slice(dx, dx + edge))
        what = f"level {level} at {x - dx}, {y - dy}, over the edge"
        _check_same(_part(beyond, *within), inside, what, exact=slide.reads_tiles)
        outside = _valid(beyond).copy()
        outside[within] = False
        assert not outside.any(), f"{what}: pixels beyond the level are valid"
    far = _read(slide, level, size.width + 5, size.height + 5, Size(8, 8))
    assert not _valid(far).any(), f"level {level}: pixels beyond the level are valid"


def _check_level(slide: Slide, level: int, tolerance: float) -> None:
    """Compare mean colours of areas with those of the finer level."""
    fine, coarse = slide.levels[level - 1], slide.levels[level]
    ratio = (coarse.downsample_x / fine.downsample_x, coarse.downsample_y / fine.downsample_y)
    edge = min(_WINDOW, int(_MOST_FINER / max(ratio)))
    edge = min(edge, coarse.size.width, coarse.size.height)
    if edge < _CELLS:
        return  # so few pixels have no areas
    differences = []
    for x, y in _corners(coarse.size, edge):
        found = _means(slide, level, (x, y, edge, edge))
        at = (x * ratio[0], y * ratio[1], edge * ratio[0], edge * ratio[1])
        expected = _means(slide, level - 1, at)
        differences.append(np.abs(found - expected).max(axis=2).ravel())
    every = np.concatenate(differences)
    every = every[np.isfinite(every)]
    if not len(every):
        return  # nothing is valid in both
    worst = float(np.quantile(every, 0.95))
    assert worst <= tolerance, (
        f"level {level} differs from level {level - 1} by {worst:.1f} grey levels on the mean of "
        "an area"
    )


def _means(
    slide: Slide, level: int, box: tuple[float, float, float, float]
) -> npt.NDArray[np.float64]:
    """Return the mean colour of equal areas of a rectangle; NaN where one is not wholly valid."""
    x, y, width, height = box
    left, top = round(x), round(y)
    region = _read(slide, level, left, top, Size(round(width), round(height)))
    valid = _valid(region)
    rows = np.linspace(0, valid.shape[0], _CELLS + 1).round().astype(int)
    columns = np.linspace(0, valid.shape[1], _CELLS + 1).round().astype(int)
    found = np.full((_CELLS, _CELLS, 3), np.nan)
    for row in range(_CELLS):
        for column in range(_CELLS):
            area = (slice(*rows[row : row + 2]), slice(*columns[column : column + 2]))
            if valid[area].all():
                found[row, column] = region.rgb[area].reshape(-1, 3).mean(axis=0)
    return found
