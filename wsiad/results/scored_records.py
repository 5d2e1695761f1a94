"""Records of a results folder: what its ``run.json`` and its slides' ``slide.json`` have to say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic

from wsiad.core.errors import InputError
from wsiad.core.files import read_json
from wsiad.heatmaps.heatmap_task import FACTS, SLIDE

SCORE_AGAIN = "Delete its folder and run wsiad heatmap again."
"""What to do about a slide whose record is damaged."""

_Text = Annotated[str, pydantic.Field(strict=True)]
_Score = Annotated[float, pydantic.Field(strict=True, allow_inf_nan=False)] | None


class _Record(pydantic.BaseModel):
    """A record; keys that are not looked at may be anything."""


class _Facts(_Record):
    digest: _Text
    run: Annotated[_Text, pydantic.Field(min_length=1)]
    detector: _Text
    versions: dict[str, _Text] = {}
    backends: dict[str, _Text] = {}


class _Row(_Record):
    score_max: _Score = None
    score_top_k_mean: _Score = None


class _SlideFacts(_Record):
    digest: _Text
    fingerprint: _Text
    row: _Row = _Row()


M = TypeVar("M", bound=pydantic.BaseModel)


def results_facts(results: Path) -> dict[str, Any]:
    """Read what the results of a folder were made with.

    Returns
    -------
    dict
        ``digest``, ``run``, ``detector`` and more, as ``run.json`` has them.

    Raises
    ------
    InputError
        The folder does not hold results, or the record is damaged.
    """
    path = results / FACTS
    if not path.exists():
        raise InputError(
            "does not hold results", subject=str(results), remedy="Make them: wsiad heatmap."
        )
    remedy = "Run the same wsiad heatmap again: it writes the file anew, and keeps its slides."
    facts = read_json(path, InputError, remedy=remedy)
    if "digest" not in facts and "detector" in facts and "stores" in facts:
        raise InputError(
            "is a run, not a results folder",
            subject=str(results),
            remedy="Make them: wsiad heatmap.",
        )
    checked(_Facts, facts, path, remedy=remedy)
    return facts


def slide_facts(folder: Path) -> dict[str, Any] | None:
    """Read what a slide's results were made of; ``None`` where nothing says so.

    Returns
    -------
    dict or None
        ``digest``, ``fingerprint``, ``row`` and more.

    Raises
    ------
    InputError
        The record is damaged.
    """
    path = folder / SLIDE
    if not path.exists():
        return None
    facts = read_json(path, InputError, remedy=SCORE_AGAIN)
    checked(_SlideFacts, facts, path, remedy=SCORE_AGAIN)
    return facts


def checked(kind: type[M], values: dict[str, Any], path: Path, *, remedy: str) -> M:
    """Check a record, and return what was looked at of it.

    Raises
    ------
    InputError
        It lacks something, or something in it is of another type; the first is named.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"is damaged: {where}: {first['msg']}", subject=str(path), remedy=remedy
        ) from None
