"""Windows of a cohort that teach a second look, and what a run records of them.

A second look is a run whose detector learnt from windows that a first run found to stand out. It
keeps the list of these windows, so that everybody can see what taught it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field, field_validator

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError, RunError
from wsiad.core.files import write_text
from wsiad.core.typed_files import TableKind
from wsiad.runs.claim import SECOND_LOOK

if TYPE_CHECKING:
    from wsiad.learning.detector import (
        Detector,
        DetectorOptions,
        FitContext,
        FitReport,
        HealthyTiles,
        InputSpec,
        Lessons,
    )

TAUGHT: Final = "teaching.csv"
"""File of a run that is a second look: the windows that taught it."""


class ChoiceOptions(Config):
    """Options that choose the windows that teach a second look."""

    scales_um: tuple[Annotated[float, Field(gt=0)], ...] = (100.0, 200.0, 400.0)
    """Radii of the neighbourhoods that must stand out, µm."""
    fdr: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Maximum false-discovery rate of the windows that stand out, and of their slides, estimated
    from healthy slides."""
    top: Annotated[float, Field(gt=0, le=0.5)] = 0.03
    """Maximum share of the cohort's windows that are taken for anomalous."""
    slides_needed: Annotated[int, Field(ge=2)] = 4
    """Minimum number of slides with windows that stand out."""
    slide_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Maximum share of the anomalous windows that come from one slide; the highest are kept."""
    usual: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Quantile of the cohort's windows below which a window is taken for healthy."""
    most_anomalous: Annotated[int, Field(ge=2)] = 2_000
    """Maximum number of anomalous windows to learn from; drawn by the seed."""
    most_usual: Annotated[int, Field(ge=1)] = 6_000
    """Maximum number of windows of the cohort to learn from as healthy; drawn by the seed."""
    reviewed: Path | None = None
    """Folder of outlines by which regions were confirmed (tumour classes) or rejected (`normal`),
    a file a slide as for `wsiad evaluate --annotations`. Then only windows of confirmed regions
    are taken for anomalous, and there is no estimate."""
    folds: Annotated[int, Field(ge=2, le=64)] = 8
    """Number of folds of the slides; each is scored without what its fold taught."""
    patient: str | None = None
    """Regular expression whose match in a slide's name is its patient. Slides of a patient are of
    one fold. By default each slide is a patient, and those of a folder `patient1/` are one."""

    @field_validator("patient")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value


@dataclass(frozen=True, slots=True)
class TaughtWindow:
    """Window that teaches a second look.

    Parameters
    ----------
    slide : str
        Name of its slide.
    x, y, width, height : float
        Position and size, level-0 pixels.
    value : float
        Value of the first look's map at the window, standard deviations.
    anomalous : int
        1 if it is taken for anomalous, 0 if it is taken for healthy.
    fold : int
        Fold of its slide, which is scored without what this fold taught.
    """

    slide: str
    x: float
    y: float
    width: float
    height: float
    value: float
    anomalous: int
    fold: int


_TABLE = TableKind(TaughtWindow, "windows that taught a run", "Refine again.", RunError)


def read_taught(run: Path) -> list[TaughtWindow]:
    """Read the windows that taught a run.

    Raises
    ------
    RunError
        The table is missing or damaged.
    """
    return _TABLE.read(run / TAUGHT)


@dataclass(frozen=True, slots=True, eq=False)
class SecondLook:
    """Lessons for a second look, and what is recorded of them.

    Parameters
    ----------
    rows : sequence of TaughtWindow
        Windows that teach.
    lessons : callable
        Function of the detector's input that returns the lessons.
    slides : mapping of str to str
        Fingerprint of each slide of the cohort, by name.
    note : mapping of str to Any
        Facts about the first run, its results and the choice, as JSON values.
    key : str
        Use of the slides, and key of the note.
    """

    rows: Sequence[TaughtWindow]
    lessons: Callable[[InputSpec], Lessons]
    slides: Mapping[str, str]
    note: Mapping[str, Any]
    key: str = SECOND_LOOK

    def fit(self, detector: Detector, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Fit a detector on healthy tiles and on the lessons.

        Raises
        ------
        DetectorError
            The method cannot learn from lessons, or cannot be fitted on these.
        """
        from wsiad.learning.detector import LearnsByFold

        assert isinstance(detector, LearnsByFold)
        return detector.fit_by_fold(tiles, self.lessons(detector.spec), context)

    def write(self, folder: Path) -> None:
        """Write the windows that teach into a run folder, atomically.

        What the fit kept to be continued by is deleted: from here on it is in the run.
        """
        from wsiad.learning.checkpoint import CHECKPOINT, FOLDS

        write_text(folder / TAUGHT, _TABLE.text(self.rows))
        for name in (CHECKPOINT, FOLDS):
            (folder / name).unlink(missing_ok=True)


def check_learns(cls: type[Detector], *, name: str, options: DetectorOptions | None = None) -> None:
    """Check that a method can learn a second look, with its options if they are known.

    Raises
    ------
    DetectorError
        It cannot.
    """
    from wsiad.learning.detector import LearnsByFold

    by_fold = issubclass(cls, LearnsByFold)
    whole = getattr(options, "end_to_end", None) is not None
    if not by_fold or whole:
        raise DetectorError(
            "trains its own network on labelled tiles, which a second look would have to do once "
            "for each fold and once more: it takes methods on frozen features"
            if whole or (cls.uses_anomalies == "needed" and cls.labels_of == "tiles")
            else "cannot learn from the windows of a first look",
            subject=name,
            remedy="Leave out the option end_to_end."
            if whole
            else "Set --detector linear-probe, devnet or deep-sad.",
        )
