"""The conformance suite of export formats."""

from __future__ import annotations

import hashlib
import inspect
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Box, Microns, Mpp, PixelMap, Size, Spacing, SquareMicrons
from wsiad.exports.export_format import ALIASES, ALWAYS, ExportFormat, Findings
from wsiad.heatmaps.peaks import find_peaks
from wsiad.heatmaps.regions import find_regions
from wsiad.heatmaps.score_map import Heatmap
from wsiad.pictures.colour_scale import ColourScale

_THRESHOLD = 6.0


def check_export(cls: type[ExportFormat]) -> None:
    """Check that an export format behaves as wsiad requires.

    It must write exactly the files that it names, inside the folder that it is given. This is
    also checked for a slide in a sub-folder, for one with scores at a single place, and for one
    without findings. It must write the same bytes for the same findings, change none of its
    arguments, and write other bytes for other regions only if it declares so.

    Parameters
    ----------
    cls : type
        Class derived from :class:`~wsiad.exports.export_format.ExportFormat`.

    Raises
    ------
    AssertionError
        A check fails; the error states the first violation.
    """
    assert isinstance(cls, type), "a format is a class"
    assert issubclass(cls, ExportFormat), f"{cls.__name__} is not derived from ExportFormat"
    assert not inspect.isabstract(cls), f"{cls.__name__} lacks a method"
    for word in ("name", "summary"):
        value = getattr(cls, word, None)
        assert isinstance(value, str), f"`{word}` of {cls.__name__} is not a text"
        assert value.strip(), f"`{word}` of {cls.__name__} is empty"
    assert cls.name == cls.name.lower(), f"the name {cls.name!r} has capitals"
    assert not set(cls.name) & set(" /\\,"), f"the name {cls.name!r} cannot be given as one word"
    assert cls.name not in {*ALIASES, *ALWAYS}, f"the name {cls.name!r} is wsiad's own"
    for findings in (_findings(), _findings("case 1/slide ä"), _findings(scored=1), _nothing()):
        _check_files(cls, findings)
    _check_regions(cls)


def _findings(slide: str = "slide", *, scored: int = 900) -> Findings:
    """Return findings of a drawn heatmap: two regions, and places that were not scored."""
    y, x = np.mgrid[:30, :40].astype(np.float32)
    spots = 9 * np.exp(-((x - 9) ** 2 + (y - 8) ** 2) / 8)
    spots += 7 * np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 12)
    scores = np.where(np.arange(1200).reshape(30, 40) < scored, spots, np.nan).astype(np.float32)
    size = Size(1600, 1200)
    heatmap = Heatmap(
        slide=slide,
        scores=scores,
        placement=PixelMap(20.0, 10.0, 32.5, 32.5),
        slide_size=size,
        bounds=Box(16.0, 8.0, 1500.0, 1100.0),
        spacing=Spacing(Mpp(0.5), Mpp(0.5)),
    )
    return _found(heatmap, _THRESHOLD)


def _found(heatmap: Heatmap, threshold: float) -> Findings:
    regions = find_regions(
        heatmap, threshold=threshold, min_area=SquareMicrons(0.0), limit=100
    ).kept
    detections = find_peaks(
        heatmap, threshold=threshold, radius=Microns(50.0), suppression="disc", limit=100
    )
    return Findings(
        heatmap=heatmap,
        regions=regions,
        percentiles=[float(_percentile(np.float32(region.max_score))) for region in regions],
        detections=detections,
        scale=ColourScale.from_healthy([0.0, 1.0, 3.0, 5.0]),
        percentile_of=_percentile,
    )


def _nothing() -> Findings:
    return replace(_findings(), regions=[], percentiles=[], detections=[])


def _percentile(scores: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.clip(np.asarray(scores, np.float32) * 10, 0, 100).astype(np.float32)


def _check_files(cls: type[ExportFormat], findings: Findings) -> None:
    slide, scores = findings.heatmap.slide, findings.heatmap.scores.copy()
    names = cls().files(slide)
    assert isinstance(names, tuple), f"files() of {cls.__name__} returns no tuple"
    assert names, f"{cls.__name__} names no file"
    assert len(set(names)) == len(names), f"{cls.__name__} names a file twice"
    for name in names:
        parts = PurePosixPath(name).parts
        assert len(parts) == 1, f"the name {name!r} is not that of a file in the slide's folder"
        assert parts[0] not in ("..", "."), f"the name {name!r} leads out of the slide's folder"
    written = [_written(cls, findings) for _ in range(2)]
    assert {path.split("/")[0] for path in written[0]} == set(names), (
        f"{cls.__name__} writes {sorted(written[0])} and names {sorted(names)}"
    )
    assert written[0] == written[1], f"{cls.__name__} writes other bytes of the same findings"
    assert np.array_equal(scores, findings.heatmap.scores, equal_nan=True), (
        f"{cls.__name__} changes the scores that it is given"
    )


def _check_regions(cls: type[ExportFormat]) -> None:
    findings = _findings()
    other = _found(findings.heatmap, 3.0)
    assert len(other.regions) > 1, "the drawn heatmap has regions"
    assert other.regions[0].area > findings.regions[0].area, "a lower threshold, a larger region"
    same = _written(cls, findings) == _written(cls, other)
    assert same != cls.shows_regions, (
        f"`shows_regions` of {cls.__name__} is {cls.shows_regions}, and its files are "
        f"{'the same' if same else 'others'} of other regions"
    )


def _written(cls: type[ExportFormat], findings: Findings) -> dict[str, str]:
    """Return a digest of every file that a format writes, by its name in the folder."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "results" / "slide"
        folder.mkdir(parents=True)
        cls().write(folder, findings)
        stray = [path.name for path in Path(outer).rglob("*") if not path.is_relative_to(folder)]
        assert stray == ["results"], f"{cls.__name__} writes outside of its folder: {stray}"
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
