"""Candidates for labels among the tiles of a store, which are scored for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from wsiad.core.errors import DetectorError, InputError
from wsiad.core.labels import is_healthy
from wsiad.core.terminal import Progress
from wsiad.evaluation.groups import centre_windows
from wsiad.learning.detector import Detector, Tiles
from wsiad.learning.devices import windows_at_once
from wsiad.results.label_candidates import (
    SCORE,
    UNSURE,
    Candidate,
    Known,
    LabelCandidates,
    Why,
    is_unsure,
    nothing_left,
    of_all,
    of_slide,
    share_of_slide,
)
from wsiad.runs.calibration import Calibration
from wsiad.runs.compatibility import check_prepared_alike, run_preparation
from wsiad.runs.healthy_tiles import usable_tiles
from wsiad.slides.slide_table import FAILED, SLIDES_TABLE, UNUSABLE, read_table
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow, unseen_slides

_MOST_AT_ONCE = 256


def candidate_tiles(
    store: TileStore,
    *,
    run: Path,
    detector: Detector,
    calibration: Calibration,
    device: torch.device,
    most: int,
    per_slide: int | None,
    also_unsure: bool,
    known: Known,
    quiet: bool,
) -> LabelCandidates:
    """Score the tiles of a store, and choose the candidates among them.

    Groups whose label means healthy have none. Of tiles larger than the detector's input, the
    centre is scored; tiles that fail the store's quality thresholds are passed over.

    Parameters
    ----------
    store : TileStore
        Store of unlabelled tiles.
    run : Path
        Run of the detector.
    detector, calibration : Detector, Calibration
        Detector, and its healthy scores.
    device : torch.device
        Device of the detector.
    most : int
        Maximum number of candidates.
    per_slide : int, optional
        Maximum number of candidates of a slide, see
        :func:`wsiad.results.label_candidates.share_of_slide`. Groups of imported tiles, which
        belong to no slide, have no maximum by default.
    also_unsure : bool
        True for as many candidates whose score is between usual and strange.
    known : collection of tuple
        Tiles that were suggested earlier.
    quiet : bool
        True for no progress output.

    Raises
    ------
    StoreError
        The store is damaged, or its tiles are smaller than the detector's input.
    StoreMismatchError
        The tiles were prepared differently from those of the run.
    InputError
        No tile is left to choose from.
    DetectorError
        A score is not finite.
    """
    check_prepared_alike(store, *run_preparation(run), keys=("mpp", "stain"))
    rows = read_table(store.path / SLIDES_TABLE, TileRow)
    labels = {row.slide: row.label for row in rows}
    left_out = Counter(
        f"status {row.status}"
        for row in rows
        if row.status == FAILED or (row.status == UNUSABLE and row.slide not in store)
    )
    slides = []
    for slide in store:
        label = labels.get(slide.name, "")
        if label and is_healthy(label):
            left_out["labelled healthy"] += 1
        elif not len(slide):
            left_out[f"status {slide.status}"] += 1
        else:
            slides.append(slide)
    usable, _ = usable_tiles(slides, store.preparation.quality, kind="unlabelled")
    by_slide = []
    batch = windows_at_once(_MOST_AT_ONCE, device, edge=detector.spec.size)
    with Progress("score", total=sum(map(len, slides)), unit="tile", quiet=quiet) as progress:
        for slide in slides:
            parts = []
            for windows in centre_windows(slide, detector.spec.size, batch=batch):
                parts.append(detector.score(windows))
                progress.update(len(windows), note=slide.name)
            scores = np.concatenate(parts).astype(np.float64)
            if not np.isfinite(scores).all():
                raise DetectorError(
                    f"the run gives scores of {slide.name} that are not finite",
                    subject=str(run),
                    remedy="Copy the run again, or train again: its weights are damaged.",
                )
            percentiles = calibration.percentile(scores)
            mine = usable[slide.name]
            between = mine[is_unsure(percentiles[mine])]
            strange = _tiles(
                slide, scores, usable=mine, percentiles=percentiles, known=known, why=SCORE
            )
            rest = _tiles(
                slide, scores, usable=between, percentiles=percentiles, known=known, why=UNSURE
            )
            share = share_of_slide(most, len(slides)) if slide.has_geometry else most
            by_slide.append(of_slide(strange, rest if also_unsure else (), per_slide or share))
    chosen = of_all(by_slide, most)
    if not any(not one.known for one in chosen):
        raise InputError(
            nothing_left("holds no tile to suggest", left_out, unseen_slides(store)),
            subject=str(store.path),
            remedy="Tile or import slides that are not labelled yet.",
        )

    def read(mine: Sequence[Candidate]) -> Iterator[Tiles]:
        for one in mine:
            yield store.slide(one.slide).tiles(one.number, one.number + 1)[0]

    return LabelCandidates(
        candidates=chosen,
        signal=SCORE,
        mpp=detector.spec.mpp,
        bounds={slide.name: slide.bounds for slide in slides if slide.has_geometry},
        read=read,
        left_out=dict(left_out),
    )


def _tiles(
    slide: StoredSlide,
    scores: npt.NDArray[np.float64],
    *,
    usable: npt.NDArray[np.int64],
    percentiles: npt.NDArray[np.float32],
    known: Known,
    why: Why,
) -> Iterator[Candidate]:
    """Yield the usable tiles of a slide: the known ones, then the strangest first."""
    boxes = None
    if slide.has_geometry:
        lattice = slide.column("lattice").reshape(-1, 2)
        boxes = slide.grid.boxes(lattice[:, 0], lattice[:, 1])

    def candidate(at: int) -> Candidate:
        box = None
        if boxes is not None:
            x, y, width, height = boxes[at].tolist()
            box = (x, y, width, height)
        score = float(scores[at])
        return Candidate(
            slide=slide.name,
            number=at,
            box=box,
            score=score,
            percentile=float(percentiles[at]),
            strength=score,
            why=why,
        )

    was = {at for at in usable.tolist() if known and candidate(at).place in known}
    for at in sorted(was):
        yield replace(candidate(at), known=True)
    for at in usable[np.argsort(-scores[usable], kind="stable")].tolist():
        if at not in was:
            yield candidate(at)
