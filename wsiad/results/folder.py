"""Read a results folder of ``wsiad heatmap``."""

from __future__ import annotations

import functools
import html
import importlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.files import checked_slide_name
from wsiad.core.terminal import counted
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.results import file_names as names
from wsiad.results.records import MAKE, read_evaluation, read_significance, results_facts
from wsiad.results.slide_results import SlideResults
from wsiad.slides.folder_kinds import RESULTS, refuse_other
from wsiad.slides.slide_table import FAILED, read_table, slide_table_kind

if TYPE_CHECKING:
    from wsiad.runs.run import RunRecord

logger = logging.getLogger(__name__)

_SHOWN = 20
_SHOWN_COLUMNS = ("slide", "status", "label", "score_max", "regions", "tiles", "reason")
_NO_FOLDER = ".no-folder"
"""Name of a folder that no slide can have."""


class ResultRows(Sequence[HeatmapRow]):
    """Rows of ``slides.csv``, in order of the slides' names.

    Parameters
    ----------
    rows : sequence of HeatmapRow
        Rows of the table.
    """

    def __init__(self, rows: Sequence[HeatmapRow]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> HeatmapRow: ...
    @overload
    def __getitem__(self, index: slice) -> ResultRows: ...
    def __getitem__(self, index: int | slice) -> HeatmapRow | ResultRows:
        if isinstance(index, slice):
            return ResultRows(self._rows[index])
        return self._rows[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultRows) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def __repr__(self) -> str:
        return f"ResultRows({self.counts})"

    @property
    def counts(self) -> str:
        """Number of slides by status, such as ``"3 slides: 2 ok, 1 failed"``."""
        number = counted(len(self), "slide")
        by_status = Counter(row.status for row in self._rows)
        told = ", ".join(f"{count} {status}" for status, count in by_status.items())
        return f"{number}: {told}" if told else number

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _SHOWN_COLUMNS)
        cells = ([_cell(getattr(row, name)) for name in _SHOWN_COLUMNS] for row in self[:_SHOWN])
        body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells)
        more = len(self) - _SHOWN
        rest = f"<p>and {more} more</p>" if more > 0 else ""
        return f"<p>{html.escape(self.counts)}</p><table><tr>{head}</tr>{body}</table>{rest}"

    def to_frame(self) -> Any:
        """Return the rows as a pandas data frame, with a column for each field of a row.

        Whole numbers that may be missing have pandas' type ``Int64``.

        Raises
        ------
        InputError
            pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise InputError(
                "data frames need pandas, which is not installed",
                remedy="Install it: pip install pandas.",
            ) from error
        columns = [field.name for field in fields(HeatmapRow)]
        frame = pandas.DataFrame([asdict(row) for row in self._rows], columns=columns)
        kinds = {"int | None": "Int64", "float | None": "float64"}
        return frame.astype(
            {
                field.name: kinds[str(field.type)]
                for field in fields(HeatmapRow)
                if str(field.type) in kinds
            }
        )


def _cell(value: object) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


class Results:
    """Results folder of ``wsiad heatmap``.

    The table of slides is read once, when it is first needed. Open the folder again to see slides
    that were scored later.

    Parameters
    ----------
    path : str or Path
        Path of the folder.

    Raises
    ------
    InputError
        The folder does not contain results.

    Examples
    --------
    >>> results = Results("results/")  # doctest: +SKIP
    >>> results.slides[0].score_max  # doctest: +SKIP
    17.25
    >>> results.slide("test_001").heatmap()  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path):
            raise InputError("the path of the results is empty", remedy="Pass their folder.")
        self.path = Path(path)
        refuse_other(self.path, RESULTS, InputError, remedy=MAKE)
        there = (self.path / name for name in (names.FACTS, names.SLIDES_TABLE))
        if not any(path.is_file() for path in there):
            raise InputError(
                f"does not hold results: it has no {names.SLIDES_TABLE}"
                if self.path.exists()
                else "there is no such folder",
                subject=str(self.path),
                remedy=MAKE,
            )

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Facts about the origin of the results, ``digest``, ``run``, ``detector``, ``versions``.

        Raises
        ------
        InputError
            ``run.json`` is missing or damaged.
        """
        return results_facts(self.path)

    @functools.cached_property
    def slides(self) -> ResultRows:
        """Rows of ``slides.csv`` by name; empty while the first slide is being scored.

        Raises
        ------
        InputError
            The table is damaged.
        """
        return ResultRows(read_table(self.path / names.SLIDES_TABLE, HeatmapRow))

    def numbered_rows(self, *, needed: Sequence[str] = ()) -> list[tuple[int, HeatmapRow]]:
        """Read the rows of ``slides.csv``, each with its line number in the file.

        Parameters
        ----------
        needed : sequence of str
            Columns that the table must have.

        Raises
        ------
        InputError
            The table is missing or damaged, or lacks a column.
        """
        kind = slide_table_kind(HeatmapRow)
        return kind.read_numbered(self.path / names.SLIDES_TABLE, needed=needed)

    def slide(self, name: str) -> SlideResults:
        """Open the results of a slide.

        Raises
        ------
        InputError
            The results have no slide of this name, or the name leads out of the folder.
        """
        row = self._by_name.get(name)
        if row is None:
            raise InputError(
                f"holds no slide {name!r}",
                subject=str(self.path),
                remedy=f"Choose one of {counted(len(self.slides), 'slide')} in its "
                f"{names.SLIDES_TABLE}.",
            )
        return self.of(row)

    def of(self, row: HeatmapRow) -> SlideResults:
        """Return the results of the slide in a row.

        Raises
        ------
        InputError
            The name of a slide that did not fail leads out of the folder.
        """
        try:
            folder = self.path / checked_slide_name(row.slide)
        except InputError:
            if row.status != FAILED:
                raise
            folder = self.path / _NO_FOLDER  # it failed for its name
        return SlideResults(self.path, folder, row)

    @functools.cached_property
    def _by_name(self) -> dict[str, HeatmapRow]:
        return {row.slide: row for row in self.slides}

    def __len__(self) -> int:
        return len(self.slides)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[SlideResults]:
        return (self.of(row) for row in self.slides)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def evaluation(self) -> dict[str, Any] | None:
        """Read the figures of ``wsiad evaluate``; ``None`` if it was not run.

        Raises
        ------
        InputError
            The file is damaged.
        """
        return read_evaluation(self.path)

    def significance(self) -> dict[str, Any] | None:
        """Read the p-values of ``wsiad significance``; ``None`` if it was not run.

        Raises
        ------
        InputError
            The file is damaged.
        """
        return read_significance(self.path)

    def __repr__(self) -> str:
        return f"Results({str(self.path)!r}, {self._told})"

    @property
    def _told(self) -> str:
        try:
            return self.slides.counts
        except WsiadError:
            return f"its {names.SLIDES_TABLE} cannot be read"

    def _repr_html_(self) -> str:
        try:
            return f"<p>{html.escape(str(self.path))}</p>{self.slides._repr_html_()}"
        except WsiadError as error:
            return f"<p>{html.escape(str(error))}</p>"


def first_look(record: RunRecord | None) -> tuple[Results | None, list[str]]:
    """Open the results of the first look, if a run is a second one.

    Parameters
    ----------
    record : RunRecord or None
        Record of the run; ``None`` if it is not at hand.

    Returns
    -------
    Results or None
        ``None`` where the run is no second look, or the first results cannot be read.
    list of str
        Reason why they cannot be read; otherwise empty.
    """
    from wsiad.runs.claim import SECOND_LOOK

    note = record.notes.get(SECOND_LOOK) if record else None
    if not isinstance(note, dict):
        return None, []
    try:
        first = Results(str(note.get("results")))
        _ = first.slides
    except (WsiadError, OSError) as error:
        return None, [f"the first look is not shown: {error}"]
    return first, []


def first_pictures(slide: SlideResults, first: Results | None) -> list[tuple[str, Path]]:
    """Return the overlay of a slide's first look, to be shown beside that of the second.

    Returns
    -------
    list of (str, Path)
        Caption and picture. Empty where the first look has not scored this slide.
    """
    if first is None or slide.name not in first:
        return []
    try:
        earlier = first.slide(slide.name)
        same = earlier.is_scored and earlier.fingerprint() == slide.fingerprint()
    except InputError as error:
        logger.warning("%s: its first look is not shown: %s", slide.name, error)
        return []
    picture = earlier.file(names.OVERLAY) if same else None
    return [("The first look at this slide", picture)] if picture else []
