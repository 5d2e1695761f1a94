"""Choose the slides to evaluate, from the reference, the results and the exclusions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiad.core.errors import EvaluationError
from wsiad.core.terminal import did_you_mean
from wsiad.evaluation.submission import ScoredSlide

_LISTED = 5


@dataclass(frozen=True, slots=True)
class Case:
    """Slide to evaluate.

    Parameters
    ----------
    slide : str
        Name of the slide.
    tumour : bool
        True where the slide holds tumour by the reference.
    scored : ScoredSlide
        Findings on the slide.
    located : bool
        True where the slide takes part in figures that need the position of tumour.
    """

    slide: str
    tumour: bool
    scored: ScoredSlide
    located: bool

    @property
    def has_score(self) -> bool:
        """True where the slide was scored; slides without tissue, unusable or failed were not."""
        return self.scored.status == "ok"

    @property
    def was_seen(self) -> bool:
        """True where the slide was looked at, so that its findings are complete, even if none."""
        return self.scored.status in ("ok", "no-tissue")


def gather(
    reference: Mapping[str, bool],
    scored: Mapping[str, ScoredSlide],
    *,
    exclude: Sequence[str],
    exclude_from_froc: Sequence[str],
    source: Path,
) -> list[Case]:
    """Pair every slide of the reference with its results; no slide is left out silently.

    Parameters
    ----------
    reference : mapping of str to bool
        True for each slide that holds tumour.
    scored : mapping of str to ScoredSlide
        Results by slide.
    exclude, exclude_from_froc : sequence of str
        Slides to leave out of all figures, or only of FROC and tile AUROC.
    source : Path
        Source of the results, for errors.

    Raises
    ------
    EvaluationError
        A slide is in only one of reference and results and is not excluded; or an exclusion
        names a slide that does not exist, which would otherwise pass unnoticed.
    """
    _check_exclusions("exclude", exclude, {*reference, *scored})
    _check_exclusions("exclude_from_froc", exclude_from_froc, set(reference) - set(exclude))
    wanted = [slide for slide in reference if slide not in exclude]
    _refuse(
        (slide for slide in wanted if slide not in scored),
        f"no results in {source}",
        "Complete the results (an empty file states that the slide was looked at and nothing was "
        "found), or exclude the slide if nobody looked at it.",
        known=[slide for slide in scored if slide not in reference],
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
        f"named in `{name}`, but not a slide of this evaluation",
        "Name slides as in the reference, without the suffix.",
        known=known,
    )


def _refuse(slides: Iterable[str], problem: str, remedy: str, *, known: Iterable[str] = ()) -> None:
    """Refuse slides, and ask for the first if a known one is meant, such as in other capitals."""
    names = sorted(slides)
    if not names:
        return
    near = did_you_mean(names[0], known)
    problem += near.replace("(did", f"({names[0]}: did") if len(names) > 1 else near
    subject = ", ".join(names[:_LISTED])
    more = len(names) - _LISTED
    raise EvaluationError(
        problem, subject=f"{subject} and {more} more" if more > 0 else subject, remedy=remedy
    )
