"""The conformance suite of detectors."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsiad.core.config import build, option_texts
from wsiad.core.errors import WsiadError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.learning.checkpoint import CHECKPOINT
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
from wsiad.store.dataset import ArrayTiles
from wsiad.testing.drawn_tissue import check_heatmap, tissue_tiles

_ENDS = frozenset({"fitted", "early-stopping", "max-steps", "max-minutes"})
_ROOM = 8  # px by which the tiles to learn from are larger than the input
_FIT, _STOP, _ANOMALOUS, _ASKED = 28, 12, 8, 5
_SEED = 1
_SAVES, _OFTEN = "checkpoint_seconds", 1e-6  # a checkpoint after every step


def check_detector(
    cls: type[Detector],
    options: Mapping[str, Any] | None = None,
    *,
    input_px: int = 64,
    max_steps: int = 3,
    weights: str | None = "random",
    tolerance: float = 1e-3,
) -> None:
    """Check that a detector behaves as every detector of wsiad.

    It is fitted twice on the CPU, on small tiles that look like stained tissue, and scores some
    of them. The checks are: options have defaults and descriptions; use before the fit is
    refused; scores have the right shapes and data types and are finite; the same seed gives the
    same result, whatever the state of the global random generators; a training that is stopped
    after a batch and continued gives the same result too; scores do not depend on the batch; a
    state survives the files of a run; a damaged state is refused; the heatmap of a small drawn
    slide is finite on tissue and NaN on glass. If the detector embeds or reconstructs tiles,
    these results are checked as well.

    Parameters
    ----------
    cls : type of Detector
    options : mapping, optional
        Options of the detector by name; choose values that make it small and quick.
    input_px : int
        Edge of the tiles that are scored, pixels; those of the fit are 8 px larger.
    max_steps : int
        Maximum number of optimiser steps of a fit.
    weights : str or None
        Weights, as in :attr:`FitContext.weights`; random by default, so that nothing is downloaded.
    tolerance : float
        Maximum relative difference between scores of a tile in two batches.

    Raises
    ------
    AssertionError
        A check fails.
    """
    _check_class(cls)
    with tempfile.TemporaryDirectory() as folder:
        made = _Made(
            cls=cls,
            options=dict(options or {}),
            input_px=input_px,
            max_steps=max_steps,
            weights=weights,
            root=Path(folder),
        )
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
        check_heatmap(again, made.folder("slide"))


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
        values = dict(self.options)
        if self.saves:
            values.setdefault(_SAVES, _OFTEN)
        options = build(self.cls.Options, values, source=f"options of {self.cls.__name__}")
        return self.cls(options, InputSpec(TilePx(self.input_px), Mpp(1)))

    @property
    def saves(self) -> bool:
        """True if the training is wsiad's loop, which writes checkpoints."""
        return _SAVES in self.cls.Options.model_fields

    def folder(self, name: str) -> Path:
        found = self.root / name
        found.mkdir(exist_ok=True)
        return found

    def continued(self, name: str) -> tuple[Detector, bool]:
        """Return a fitted detector, and whether its fit was stopped and continued.

        It is not stopped where no batches are drawn.
        """
        try:
            return self.fitted(name, batches=1)[0], False
        except _Stopped:
            there = any((self.root / name).rglob(CHECKPOINT))  # a fit of two trainings has two
            assert there or not self.saves, "a training that is stopped leaves no checkpoint"
            return self.fitted(name)[0], True

    def fitted(self, name: str, *, batches: int = -1) -> tuple[Detector, FitReport]:
        """Return a fitted detector, and the report of its fit.

        With a number of ``batches``, the fit stops when another one is drawn.
        """
        edge, detector = self.input_px + _ROOM, self.detector()
        tiles = HealthyTiles(
            _Ending(tissue_tiles(_FIT, edge, seed=1), batches),
            ArrayTiles(tissue_tiles(_STOP, edge, seed=2)),
        )
        anomalous = tissue_tiles(_ANOMALOUS, edge, seed=3, strange=True)
        half = _ANOMALOUS // 2
        slides = tuple(f"slide-{number % 2}" for number in range(half))
        types = (
            AnomalyType("strange", ArrayTiles(anomalous[:half]), slides),
            AnomalyType("stranger", ArrayTiles(anomalous[half:]), slides),
        )
        learns = detector.learns_from_anomalies(detector.options)
        context = FitContext(
            seed=_SEED,
            device=torch.device("cpu"),
            folder=self.folder(name),
            budget=Budget(max_steps=self.max_steps),
            weights=self.weights,
            quiet=True,
            anomalies=AnomalousTiles(types) if learns else None,
        )
        return detector, detector.fit(tiles, context)

    @property
    def asked(self) -> Tiles:
        """Tiles to score: healthy ones and a strange one."""
        healthy = tissue_tiles(_ASKED - 1, self.input_px, seed=4)
        strange = tissue_tiles(1, self.input_px, seed=5, strange=True)
        return np.concatenate([healthy, strange])


class _Stopped(KeyboardInterrupt):
    """The process ends, as it were."""


class _Ending(ArrayTiles):
    """Tiles of which so many batches are drawn; then the process ends, as it were."""

    def __init__(self, tiles: Tiles, batches: int) -> None:
        super().__init__(tiles)
        self._left = batches

    def shuffled(self, batch: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[Tiles]:
        """Yield full batches until none is left."""
        for tiles in super().shuffled(batch, seed=seed, epoch=epoch, start=start):
            if not self._left:
                raise _Stopped
            self._left -= 1
            yield tiles


def _check_class(cls: type[Detector]) -> None:
    name = getattr(cls, "__name__", repr(cls))
    assert inspect.isclass(cls), f"{name} is not a class"
    assert issubclass(cls, Detector), f"{name} does not derive from wsiad's Detector"
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    assert not missing, f"{name} lacks {missing}"
    right = inspect.isclass(cls.Options) and issubclass(cls.Options, DetectorOptions)
    assert right, f"{name}.Options does not derive from DetectorOptions"
    bare = [key for key, text in option_texts(cls.Options).items() if not text]
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
    """Check that a call is refused with an error of wsiad, and not with another one."""
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
        raise AssertionError(f"{what} are not JSON values: {error}") from error


def _check_scores(detector: Detector, tiles: Tiles, tolerance: float) -> npt.NDArray[np.float32]:
    before = tiles.copy()
    places = detector.score_map(tiles)
    assert np.array_equal(tiles, before), "scoring changes the tiles"
    _check_array(places, "score_map", (len(tiles), None, None))
    assert places.shape[1] == places.shape[2], f"score_map gives {places.shape}: not m × m places"
    scores = detector.score(tiles)
    _check_array(scores, "score", (len(tiles),))
    assert len(np.unique(scores)) > 1, "all tiles have the same score"
    assert np.array_equal(detector.score_map(tiles), places), "scoring again gives other scores"
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
    again, stopped = made.continued("second")
    what = "two fits with one seed"
    if stopped and not _same(again, detector.state(), made.asked, places):
        # Is it of the stop, or would any second fit differ?
        plain, _ = made.fitted("third")
        if _same(plain, detector.state(), made.asked, places):
            what = "a fit, and one that was stopped and continued,"
    _check_states(detector.state(), again.state(), what)
    same = np.array_equal(again.score_map(made.asked), places)
    assert same, f"{what} give other scores"


def _same(detector: Detector, state: State, tiles: Tiles, places: npt.NDArray[np.float32]) -> bool:
    try:
        _check_states(state, detector.state(), "")
    except AssertionError:
        return False
    return np.array_equal(detector.score_map(tiles), places)


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
    """Write the state into the files of a run, read it back and score with it."""
    run = RunFolder.at(folder)
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
    assert same, "the result of difference is not pooled to the score"


def _check_same_views(first: Detector, second: Detector, tiles: Tiles) -> None:
    if isinstance(first, Embeds) and isinstance(second, Embeds):
        same = np.array_equal(first.embed(tiles), second.embed(tiles))
        assert same, "a detector that was read back embeds otherwise"
    if isinstance(first, Reconstructs) and isinstance(second, Reconstructs):
        same = np.array_equal(first.reconstruct(tiles), second.reconstruct(tiles))
        assert same, "a detector that was read back reconstructs otherwise"


def _check_damage(made: _Made, detector: Detector) -> None:
    """Check that a state is refused without a tensor, with one of another shape, or without any."""
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
