"""A slide whose work is divided: parts are tasks of their own, and a last one joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

from wsiad.slides.slide_table import FAILED, UNUSABLE, SlideRow


class LastTaskLike(Protocol):
    """What a division has to know of the task that joins a slide."""

    def after(self, seconds: float) -> Self:
        """Return the same task, told how long others have worked on its slide."""
        ...


T = TypeVar("T", bound=LastTaskLike)


@dataclass(frozen=True, slots=True)
class Divided(Generic[T]):
    """What a task returns that is too large: other tasks in its place.

    Parameters
    ----------
    parts : tuple
        Done in any order, at once if there are workers.
    last : task
        Done when all parts are; returns the slide's row.
    seconds : float
        Spent so far.
    """

    parts: tuple[T, ...]
    last: T
    seconds: float


@dataclass(frozen=True, slots=True)
class PartDone:
    """What the task of a part returns.

    Parameters
    ----------
    slide : str
    seconds : float
        Spent on it.
    """

    slide: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Open:
    """A slide of which parts are still to be done."""

    last: LastTaskLike
    left: int
    seconds: float
    failed: bool = False


class Divisions:
    """Keeps account of the slides of a batch whose work is divided."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._said: dict[str, bool] = {}

    def more(self, task: Any, result: object) -> Sequence[Any]:
        """Return the tasks that follow from the result of one.

        A slide of which a part failed is not joined; its other parts are done all the
        same, and are there for the next run.
        """
        name = task.slide.name
        if isinstance(result, Divided):
            self._said[name] = False
            if not result.parts:
                return [result.last.after(result.seconds)]
            self._open[name] = _Open(result.last, len(result.parts), result.seconds)
            return result.parts
        if (division := self._open.get(name)) is None:
            return []
        failed = division.failed or not isinstance(result, PartDone)
        seconds = division.seconds + (result.seconds if isinstance(result, PartDone) else 0.0)
        if division.left > 1:
            self._open[name] = replace(
                division, left=division.left - 1, seconds=seconds, failed=failed
            )
            return []
        del self._open[name]
        return [] if failed else [division.last.after(seconds)]

    def is_news(self, row: SlideRow) -> bool:
        """Whether no part of the same slide said before that the slide failed."""
        said = self._said.get(row.slide, False)
        if row.slide in self._said:
            self._said[row.slide] = row.status in (FAILED, UNUSABLE)
        return not said
