"""Which slides are evaluated: reference, results and exclusions brought together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiad.core.errors import EvaluationError
from wsiad.evaluation.submission import ScoredSlide

_LISTED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A slide to evaluate.

    Parameters
    ----------
    slide : str
        Its name.
    tumour : bool
        Whether it holds tumour, by the reference.
    scored : ScoredSlide
        What was found on it.
    located : bool
        Whether it takes part in the figures that need to know where the tumour is.
    """

    slide: str
    tumour: bool
    scored: ScoredSlide
    located: bool

    @property
    def has_score(self) -> bool:
        """Whether the slide was scored: without tissue, unusable or failed it was not."""
        return self.scored.status == "ok"

    @property
    def was_seen(self) -> bool:
        """Whether what was found on it is all there is to find, be it nothing."""
        return self.scored.status in ("ok", "no-tissue")


def gather(
    reference: Mapping[str, bool],
    scored: Mapping[str, ScoredSlide],
    *,
    exclude: Sequence[str],
    exclude_from_froc: Sequence[str],
    source: Path,
) -> list[Case]:
    """Pair every slide of the reference with its results; nothing is left out unasked.

    Parameters
    ----------
    reference : mapping of str to bool
        Whether each slide holds tumour.
    scored : mapping of str to ScoredSlide
        Results by slide.
    exclude, exclude_from_froc : sequence of str
        Slides to leave out altogether, or out of FROC and tile AUROC.
    source : Path
        Of the results, for errors.

    Raises
    ------
    EvaluationError
        A slide is on one side only and is not excluded; or an exclusion names a slide that
        does not exist, which would otherwise pass unnoticed.
    """
    _check_exclusions("exclude", exclude, {*reference, *scored})
    _check_exclusions("exclude_from_froc", exclude_from_froc, set(reference) - set(exclude))
    wanted = [slide for slide in reference if slide not in exclude]
    _refuse(
        (slide for slide in wanted if slide not in scored),
        f"no results in {source}",
        "Complete the results (an empty file says that the slide was looked at and nothing was "
        "found), or exclude the slide if nobody looked at it.",
    )
    _refuse(
        (slide for slide in scored if slide not in reference and slide not in exclude),
        f"results in {source}, but no row in the reference",
        "Add a row to the reference, or exclude the slide. Names must be equal to the letter.",
    )
    if not wanted:
        raise EvaluationError("all slides are excluded")
    return [
        Case(slide, reference[slide], scored[slide], slide not in exclude_from_froc)
        for slide in wanted
    ]


def _check_exclusions(name: str, slides: Sequence[str], known: set[str]) -> None:
    _refuse(
        (slide for slide in slides if slide not in known),
        f"named in `{name}`, but no slide of this evaluation",
        "Name slides as the reference does, without the suffix.",
    )


def _refuse(slides: Iterable[str], problem: str, remedy: str) -> None:
    names = sorted(slides)
    if not names:
        return
    subject = ", ".join(names[:_LISTED])
    more = len(names) - _LISTED
    raise EvaluationError(
        problem, subject=f"{subject} and {more} more" if more > 0 else subject, remedy=remedy
    )
