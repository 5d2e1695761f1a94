"""Manifests: CSVs that name slides and the facts that are known of each, read and written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsiad.core.csv_file import Row, read_rows, table_text
from wsiad.core.errors import InputError
from wsiad.core.files import write_text
from wsiad.core.labels import (
    ANOMALY_TYPE,
    LABEL,
    MPP,
    NAME,
    NORMAL,
    SLIDE,
    SPLIT,
    cell_of,
    column_of,
    known_columns,
    label_of,
    nearest_column,
    split_of,
    understood_label,
)
from wsiad.slides.scale import stated_mpp

logger = logging.getLogger(__name__)

_COLUMNS = (SLIDE, NAME, MPP, LABEL, SPLIT, ANOMALY_TYPE)
_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A row of a manifest.

    Parameters
    ----------
    where : str
        Manifest and line, for messages.
    path : Path
        Path of the slide's file.
    name : str
        Name that the row sets; empty for the name of the file.
    mpp : float or None
        µm/px.
    label, split : str
        Label and split; empty if the row states none.
    extra : dict
        Values of unknown columns, such as the centre.
    """

    where: str
    path: Path
    name: str = ""
    mpp: float | None = None
    label: str = ""
    split: str = ""
    extra: dict[str, str] = field(default_factory=dict)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read a manifest; columns and labels are those of :mod:`wsiad.core.labels`.

    A column that is not known is kept and reported, with the known one that is most similar.

    Raises
    ------
    InputError
        The file is not a CSV, has no column of slides or no rows, or a row is not valid. A row is
        not valid if its fields are not those of the header, its label is not understood, its
        µm/px is not that of a slide, or two columns with the same meaning differ.
    """
    rows = read_rows(path, InputError, delimiters=_DELIMITERS)
    header = rows[0].cells if rows else ()
    columns = known_columns(header)
    # A table of names alone names files.
    slide_at = columns.get(SLIDE) or columns.pop(NAME, [])
    if not slide_at:
        raise InputError(
            f"has no column `slide` (its columns: {', '.join(header) or 'none'})",
            subject=str(path),
            remedy="A manifest has `slide` and optionally `name`, `mpp`, `label`, `split`.",
        )
    if len(rows) == 1:
        raise InputError("lists no slides", subject=str(path))
    unknown = {at: cell for at, cell in enumerate(header) if column_of(cell) is None}
    hold_labels = set[str]()
    if LABEL not in columns:
        for at, cell in unknown.items():
            said = {row.cells[at] for row in rows[1:] if at < len(row.cells)} - {""}
            if said and all(map(label_of, said)):
                hold_labels.add(cell)
    _tell_unknown(path, [cell for cell in unknown.values() if cell], hold_labels)
    columns[SLIDE] = slide_at
    return [
        _row(row, path, columns=columns, unknown=unknown, width=len(header)) for row in rows[1:]
    ]


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a manifest that :func:`read_manifest` reads as the same rows, with absolute paths.

    Parameters
    ----------
    path : Path
    rows : sequence of ManifestRow
        A label that is not one of :mod:`wsiad.core.labels` is written as an anomaly type.
    """
    extra = list(dict.fromkeys(column for row in rows for column in row.extra))
    kinds = [row.label if row.label and label_of(row.label) != row.label else "" for row in rows]
    header = [SLIDE, NAME, MPP, LABEL, SPLIT, *([ANOMALY_TYPE] if any(kinds) else []), *extra]
    table = []
    for row, kind in zip(rows, kinds, strict=True):
        cells = [str(row.path.absolute()), row.name, row.mpp, "" if kind else row.label, row.split]
        cells += [kind] if any(kinds) else []
        table.append([*cells, *(row.extra.get(column, "") for column in extra)])
    write_text(path, table_text(header, table))


def _tell_unknown(path: Path, unknown: list[str], hold_labels: set[str]) -> None:
    """Warn of unknown columns, each with the known one of the most similar name or cells."""
    told = []
    for cell in unknown:
        near = nearest_column(cell, _COLUMNS) or (LABEL if cell in hold_labels else None)
        told.append(f"{cell!r} (did you mean `{near}`?)" if near else repr(cell))
    if told:
        logger.warning("%s: unknown columns are kept, but not used: %s", path, ", ".join(told))


def _about(text: str) -> str | None:
    """Round a µm/px, because that of x and that of y can differ by a little."""
    try:
        return f"{float(text.replace(',', '.')):.2g}"
    except ValueError:
        return None


_MEANING: dict[str, Callable[[str], str | None]] = {LABEL: label_of, MPP: _about, SPLIT: split_of}


def _row(
    row: Row, path: Path, columns: dict[str, list[int]], unknown: dict[int, str], width: int
) -> ManifestRow:
    where = f"{path}, line {row.number}"
    if len(row.cells) < width or any(row.cells[width:]):
        raise InputError("does not have as many fields as the header", subject=where)

    def said(column: str) -> str:
        try:
            places = columns.get(column, ())
            return cell_of(row.cells, places, meaning=_MEANING.get(column, str))
        except InputError as error:
            raise InputError(f"`{column}`: {error}", subject=where) from None

    text = said(SLIDE)
    if not text:
        raise InputError("`slide` is empty", subject=where)
    if "\0" in text:
        raise InputError(
            f"`slide` is {text!r}: no file has a NUL in its name",
            subject=where,
            remedy="Save the table as text in UTF-8.",
        )
    mpp = None
    try:
        if stated := said(MPP):
            mpp = stated_mpp(stated)
        label = understood_label(said(LABEL), slide=text)
    except InputError as error:
        if error.subject:
            raise
        raise InputError(error.problem, subject=where, remedy=error.remedy) from None
    if kind := said(ANOMALY_TYPE).lower():
        if label == NORMAL:
            raise InputError(
                f"{text} is normal, but has the anomaly type {kind!r}",
                subject=where,
                remedy="Correct one of the two.",
            )
        label = kind
    return ManifestRow(
        where=where,
        path=path.parent / text,
        name=said(NAME),
        mpp=mpp,
        label=label,
        split=split_of(said(SPLIT)),
        extra={cell: row.cells[at] for at, cell in unknown.items()},
    )
