"""The stages of a growing training: the resolution, the share of fading in, and the batch.

They are plain arithmetic on the number of the step. A stage is *stabilising* at one resolution,
or a *transition* to it from half of it, in which α rises linearly to 1:
stabilise r₀ → (transition 2r → stabilise 2r) → … → stabilise the last, which has no end of
its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from wsiad.core.errors import DetectorError


@dataclass(frozen=True, slots=True)
class Stage:
    """The stage of a single step.

    Parameters
    ----------
    px : int
        Resolution: edge of the images, pixels.
    alpha : float
        Share of this resolution; half the resolution has the rest. It is 1 while stabilising
        and in the last step of a transition.
    """

    px: int
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of one stage.

    Parameters
    ----------
    px : int
        Resolution of the stage, or to which it leads, pixels.
    transition : bool
        True if the stage leads to the resolution from half of it.
    steps : int or None
        Number of steps; ``None`` for the last stage.
    batch : int
        Number of tiles in a step.
    """

    px: int
    transition: bool
    steps: int | None
    batch: int

    @property
    def name(self) -> str:
        """Name for the terminal, such as ``transition to 32 px``."""
        return f"{'transition to' if self.transition else 'stabilise'} {self.px} px"


class Stages:
    """All stages of a training, by the number of the step (from 0).

    Parameters
    ----------
    edges : sequence of int
        Resolutions from the first to the last, each twice the one before, pixels.
    stabilise, transition : mapping of int to int
        Number of steps of the stages for each resolution. The last resolution stabilises
        without end, and there is no transition to the first.
    batch : mapping of int to int
        Number of tiles in a step for each resolution.

    Raises
    ------
    DetectorError
        A resolution is not twice the one before.

    Notes
    -----
    Shvetsova et al., IEEE Access 2021 (arXiv 2006.13265), and the authors' code: step
    *t* = 1 … *T* of a transition has α = *t* / *T*.
    """

    def __init__(
        self,
        edges: Sequence[int],
        *,
        stabilise: Mapping[int, int],
        transition: Mapping[int, int],
        batch: Mapping[int, int],
    ) -> None:
        if not edges or any(b != 2 * a for a, b in pairwise(edges)):
            raise DetectorError(f"resolutions must double from one to the next, not {edges}")
        spans = []
        for px in edges:
            if px != edges[0]:
                spans.append(Span(px, True, transition[px], batch[px]))
            last = px == edges[-1]
            spans.append(Span(px, False, None if last else stabilise[px], batch[px]))
        self.spans = tuple(spans)
        self._starts = list(accumulate((span.steps or 0 for span in spans[:-1]), initial=0))

    @property
    def last_start(self) -> int:
        """First step of the last stage, which is also the number of steps before it."""
        return self._starts[-1]

    def span(self, step: int) -> Span:
        """Return the stage that a step belongs to."""
        return self.spans[self._index(step)]

    def at(self, step: int) -> Stage:
        """Return the stage of a step, with its share of fading in."""
        index = self._index(step)
        span = self.spans[index]
        if not span.transition or span.steps is None:
            return Stage(span.px)
        return Stage(span.px, (step - self._starts[index] + 1) / span.steps)

    def batches(self) -> dict[int, int]:
        """Return the number of tiles in a step by the first step of each stage."""
        return {start: span.batch for start, span in zip(self._starts, self.spans, strict=True)}

    def begins(self, step: int) -> bool:
        """Tell whether a step is the first of a stage after the first one."""
        return step > 0 and step in self._starts

    def notes(self) -> list[dict[str, Any]]:
        """Return the stages as JSON values."""
        return [
            {"stage": span.name, "first_step": start, "steps": span.steps, "batch": span.batch}
            for span, start in zip(self.spans, self._starts, strict=True)
        ]

    def _index(self, step: int) -> int:
        return bisect_right(self._starts, step) - 1
