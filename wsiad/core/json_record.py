"""JSON files that are checked by a model as they are read: damage is one line with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pydantic

from wsiad.core.errors import WsiadError
from wsiad.core.files import read_json

M = TypeVar("M", bound=pydantic.BaseModel)


def read_record(path: Path, kind: type[M], error: type[WsiadError], *, remedy: str) -> M:
    """Read a JSON file as a model.

    Raises
    ------
    WsiadError
        An `error`: the file is missing, is no JSON, or does not fit the model.
    """
    return checked(kind, read_json(path, error, remedy=remedy), path, error, remedy=remedy)


def checked(
    kind: type[M], values: dict[str, Any], path: Path, error: type[WsiadError], *, remedy: str
) -> M:
    """Check the values of a file by a model, and return the model.

    Parameters
    ----------
    kind : type
        Model; its validators may find the file's folder in their context as ``folder``.
    values : dict
        Values that were read from the file.
    path : Path
        Where they come from, for the error.
    error : type
        Class of the error.
    remedy : str
        What to do about damage.

    Raises
    ------
    WsiadError
        An `error`: something is missing or of another type; the first such place is named.
    """
    try:
        return kind.model_validate(values, context={"folder": path.parent})
    except pydantic.ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        said = first["msg"].removeprefix("Value error, ")
        raise error(f"is damaged: {where}: {said}", subject=str(path), remedy=remedy) from None
