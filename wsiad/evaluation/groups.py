"""Evaluate the scores of a store's tiles by group and by anomaly type."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiad.core.ahead import read_ahead, room_for
from wsiad.core.csv_file import table_text
from wsiad.core.errors import StoreMismatchError
from wsiad.core.labels import is_healthy, label_of
from wsiad.core.terminal import by_number, counted

if TYPE_CHECKING:
    from wsiad.learning.detector import Detector
    from wsiad.runs.calibration import Calibration
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_store import TileStore

NORMAL, TUMOUR = "normal", "tumour"


@dataclass(frozen=True, slots=True, eq=False)
class GroupScores:
    """Scores of one group of a store.

    Parameters
    ----------
    name, label : str
        Name and label of the group; the label is empty where the group has none.
    truth : str
        ``"normal"``, ``"tumour"``, or empty where the tiles are not evaluated.
    scores : ndarray of float32, (N,)
        Score of each tile, in the order of the tiles.
    """

    name: str
    label: str
    truth: str
    scores: npt.NDArray[np.float32]


def truth_of(
    slide: StoredSlide, label: str, *, normal: Collection[str], tumour: Collection[str]
) -> str:
    """Return what the tiles of a group show, by the label of the group.

    A slide with tumour holds healthy tiles too. Its label therefore says nothing about a single
    tile, unless `tumour` lists it.

    Parameters
    ----------
    slide : StoredSlide
        Group of tiles.
    label : str
        Label of the group; empty where it has none.
    normal, tumour : collection of str
        Labels that mean normal (if empty, the labels that mean healthy), and labels of slides
        of which every tile shows tumour.

    Returns
    -------
    str
        ``"normal"``, ``"tumour"``, or empty where nothing is known.
    """
    if not label:
        return ""
    # A store keeps labels in the vocabulary's words, which need not be the user's.
    healthy, anomalous = (
        {word for name in names for word in (name.strip().lower(), label_of(name)) if word}
        for names in (normal, tumour)
    )
    if label in healthy if healthy else is_healthy(label):
        return NORMAL
    return "" if slide.has_geometry and label not in anomalous else TUMOUR


def centre_windows(slide: StoredSlide, size: int, *, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the window in the centre of each tile, uint8 (N, size, size, 3), in full batches.

    The last batch can be smaller.

    Raises
    ------
    StoreMismatchError
        The tiles are smaller than the window.
    """
    if size > slide.tile:
        raise StoreMismatchError(
            f"its tiles of {slide.tile} px are smaller than the detector's {size} px",
            subject=slide.name,
            remedy="Train with --option input_px, or pass a store with larger tiles.",
        )
    first = (slide.tile - size) // 2
    centre = slice(first, first + size)
    # Whole chunks: a part of one costs as much to read as all of it.
    block = -(-batch // slide.chunk) * slide.chunk
    rest = np.empty((0, size, size, 3), np.uint8)
    for start in range(0, len(slide), block):
        tiles = slide.tiles(start, min(start + block, len(slide)))[:, centre, centre]
        tiles = np.concatenate([rest, tiles])
        full = len(tiles) // batch * batch
        for at in range(0, full, batch):
            yield tiles[at : at + batch]
        rest = tiles[full:].copy()  # a view would keep the block
    if len(rest):
        yield rest


def without_its_lessons(detector: Detector, slide: StoredSlide) -> Detector:
    """Return the detector that a slide did not teach, as for heatmaps, by its fingerprint.

    It is the detector itself, unless that is a second look and the slide one that taught it.
    """
    from wsiad.learning.detector import LearnsByFold

    return detector.held_out(slide.fingerprint) if isinstance(detector, LearnsByFold) else detector


def not_recognised(slides: Collection[StoredSlide], taught: Mapping[str, str]) -> dict[str, str]:
    """Return why it is not known of groups whether they taught a second look, by group.

    Parameters
    ----------
    slides : collection of StoredSlide
        Groups of a store.
    taught : mapping of str to str
        Fingerprints of the slides that taught, by name; empty if the run is no second look.
    """
    if not taught:
        return {}
    marks, found = set(taught.values()), {}
    for slide in slides:
        if slide.fingerprint in marks:
            continue
        if not slide.has_geometry:
            found[slide.name] = "loose tiles have no fingerprint of their slide"
        elif not slide.has_pixels:
            found[slide.name] = "imported features have no fingerprint of their slide"
        elif slide.name in taught:
            found[slide.name] = "has the name of a slide that taught, and another fingerprint"
    return found


def taught_lines(
    slides: Collection[StoredSlide], taught: Mapping[str, str], unknown: Mapping[str, str]
) -> list[str]:
    """Return the lines that state by which fit of a second look tiles were scored."""
    marks = set(taught.values())
    known = sum(slide.fingerprint in marks for slide in slides)
    lines = []
    if known:
        lines.append(
            f"{known} of {counted(len(slides), 'group')} taught this second look: each is scored "
            "by the fit "
            "without its fold"
        )
    for why in sorted(set(unknown.values())):
        names = [name for name, reason in unknown.items() if reason == why]
        lines.append(
            f"{len(names)} of {counted(len(slides), 'group')}, such as {names[0]}, "
            f"{by_number(len(names), 'is', 'are')} "
            f"scored by the fit of "
            f"all slides, because it is not known whether they taught this second look ({why}): if "
            "they did, their scores are not those of new tiles. Tile the slides with wsiad tile."
        )
    return lines


def tile_scores(
    detector: Detector, slide: StoredSlide, *, batch: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the scores of a group's tiles in their order, from stored features if there are any.

    Raises
    ------
    StoreMismatchError
        The tiles are smaller than the detector's input.
    """
    from wsiad.learning.feature_source import ReadsFeatures
    from wsiad.store.tile_source import StoreTiles

    source = StoreTiles([(slide, np.arange(len(slide), dtype=np.int64))])
    if isinstance(detector, ReadsFeatures) and detector.reads(source):
        for places in detector.maps(source, batch=batch):
            yield detector.pool(places)
        return
    windows = centre_windows(slide, detector.spec.size, batch=batch)
    limit = room_for(batch * 3 * detector.spec.size**2)
    with closing(read_ahead(windows, size=lambda part: part.nbytes, limit=limit)) as ahead:
        for part in ahead:
            yield detector.score(part)


def group_facts(group: GroupScores, calibration: Calibration) -> dict[str, Any]:
    """Return the entry of a group in ``evaluation.json``."""
    above = group.scores > calibration.quantile(0.99)
    return {
        "group": group.name,
        "label": group.label,
        "taken_as": group.truth or None,
        "tiles": len(group.scores),
        "median_score": float(np.median(group.scores)),
        "share_above_healthy_99": float(above.mean()),
    }


def by_type(groups: list[GroupScores], learnt: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the AUROC of each anomaly type, and whether the run was trained on that type.

    Slides that the run was fitted on are left out: their scores say nothing about other slides.
    """
    from wsiad.evaluation.auc import slide_auc

    known = learnt or {}
    fitted_on = set(known.get("slides", ()))
    normal = [g.scores for g in groups if g.truth == NORMAL and g.name not in fitted_on]
    found = []
    for label in sorted({group.label for group in groups if group.truth == TUMOUR}):
        mine = [g for g in groups if g.truth == TUMOUR and g.label == label]
        scores = [g.scores for g in mine if g.name not in fitted_on]
        area = None
        if normal and scores:
            positive, negative = (np.concatenate(p).astype(np.float64) for p in (scores, normal))
            area = slide_auc(positive, negative).value
        found.append(
            {
                "label": label,
                "learnt_from": label.strip().lower() in known.get("types", {}),
                "tiles": sum(map(len, scores)),
                "tile_auroc": area,
                "left_out": [g.name for g in mine if g.name in fitted_on],
            }
        )
    return found


def type_line(kind: dict[str, Any]) -> str:
    """Return the line of a summary for one type of :func:`by_type`."""
    seen = "learnt from" if kind["learnt_from"] else "not seen in training"
    area = "undefined" if kind["tile_auroc"] is None else f"{kind['tile_auroc']:.3f}"
    left = kind["left_out"]
    out = (
        f"; without {counted(len(left), 'slide')} that {by_number(len(left), 'was', 'were')} "
        "fitted on"
        if left
        else ""
    )
    return f"  {kind['label']} ({seen}): tile AUROC {area} of {counted(kind['tiles'], 'tile')}{out}"


def scores_table(store: TileStore, groups: list[GroupScores], calibration: Calibration) -> str:
    """Return ``scores.csv``: every tile with its score and percentile."""
    table: list[list[object]] = []
    for group in groups:
        names = store.slide(group.name).source_names() or [""] * len(group.scores)
        percentiles = calibration.percentile(group.scores)
        rows = zip(names, group.scores, percentiles, strict=True)
        table.extend(
            [group.name, index, name, f"{score:.9g}", f"{percentile:.6g}"]
            for index, (name, score, percentile) in enumerate(rows)
        )
    return table_text(["group", "index", "tile", "score", "percentile"], table)
