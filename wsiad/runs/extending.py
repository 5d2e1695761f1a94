"""Take further healthy windows into a fitted detector, without fitting it anew.

The run that comes of it has a calibration of its own, on the healthy slides that the first run held
out, without those whose windows were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from wsiad.core.config import CONFIG, read_yaml
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.learning.trimming import TRIMMING
from wsiad.runs.chosen_tiles import Chosen, choose
from wsiad.runs.claim import SECOND_LOOK
from wsiad.runs.healthy_tiles import HEALTHY_REGIONS, TrainingOptions
from wsiad.runs.refining import check_as_it_was, stated_stores
from wsiad.runs.run import RunFolder

if TYPE_CHECKING:
    from wsiad.learning.detector import Detector, FitContext, FitReport, HealthyTiles, Tiles


@runtime_checkable
class Extends(Protocol):
    """Capability to take further healthy windows into what was fitted."""

    def extend(self, batches: Iterable[Tiles], *, count: int, seed: int) -> int:
        """Take ``count`` healthy windows, which come in batches; return the number of vectors."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """A fitted detector and the windows that it takes, in place of a fit.

    Parameters
    ----------
    first : Detector
        Detector of the first run.
    batches : callable
        Function that yields the windows in order, in batches (N, S, S, 3).
    count : int
        Number of the windows.
    slides : mapping of str to str
        Fingerprint of each slide whose windows were taken, now or earlier, by name.
    note : mapping of str to Any
        Facts about the first run and the windows, as JSON values.
    key : str
        Use of the slides, and of the note.
    """

    first: Detector
    batches: Callable[[], Iterator[Tiles]]
    count: int
    slides: Mapping[str, str]
    note: Mapping[str, Any]
    key: str = HEALTHY_REGIONS

    def fit(self, detector: Detector, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Load the first detector's state, and take the windows.

        Raises
        ------
        DetectorError
            The method cannot take windows without a fit.
        """
        from wsiad.learning.detector import FitReport

        del tiles
        state = self.first.state()
        detector.load_state(state, context.device)
        assert isinstance(detector, Extends)
        vectors = detector.extend(self.batches(), count=self.count, seed=context.seed)
        return FitReport(ended_by="extended", notes={**state.values, "vectors_added": vectors})

    def write(self, folder: Path) -> None:
        """Write nothing: the windows are in the detector, and their slides in the record."""


def check_extends(run: RunFolder, detector: Detector) -> None:
    """Check that a run can take further healthy windows.

    Raises
    ------
    RunError
        It is a second look, was extended already, or was fitted without its strangest tiles.
    DetectorError
        Its method must be fitted anew.
    """
    record = run.record()
    anew = "Train again, with --healthy-regions."
    for key, what in (
        (SECOND_LOOK, "is a second look"),
        (TRIMMING, "was fitted without its strangest tiles"),
    ):
        if key in record.notes:
            raise RunError(what, subject=str(run.path), remedy=anew)
    if "run" in record.notes.get(HEALTHY_REGIONS, {}):
        raise RunError(
            "was extended already",
            subject=str(run.path),
            remedy="Extend the first run, by all results at once.",
        )
    if not isinstance(detector, Extends):
        raise DetectorError(
            "takes further healthy windows only where it is fitted anew",
            subject=record.detector,
            remedy=anew,
        )


def same_training(
    run: RunFolder, *, out: Path, store: Path | None, device: str, quiet: bool
) -> tuple[TrainingOptions, Chosen]:
    """Return the training of a run again, for another folder, and the tiles that it chose.

    Parameters
    ----------
    run : RunFolder
        Run that was trained.
    out : Path
        Folder of the new run.
    store : Path, optional
        Store of the run's healthy tiles; by default the one that it states.
    device : str
        Name of the device.
    quiet : bool
        True for no progress.

    Raises
    ------
    RunError
        The run does not state its training, or the store is not as it was.
    StoreError
        The store does not exist or is damaged.
    """
    try:
        given = read_yaml(run.path / CONFIG)
        known = {key: given[key] for key in TrainingOptions.model_fields if key in given}
        known |= {"out": out, "device": device, "quiet": quiet}
        known |= stated_stores(run, given, store=store)
        # What it learnt from them is in the detector.
        known |= {"healthy_regions": None, "anomalies": None, "devices": 1}
        known |= {"anomaly_types": (), "anomaly_tiles": None}
        training = TrainingOptions.model_validate(known)
    except (ConfigError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise RunError(
            f"does not state its training ({words})", subject=str(run.path), remedy="Train again."
        ) from error
    chosen = choose(training)
    check_as_it_was(run, chosen)
    return training, chosen
