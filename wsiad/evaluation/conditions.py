"""State the conditions of figures in words: scale, origin of outlines, ignored annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from wsiad.annotations import ClassMap
from wsiad.annotations.classes import class_text
from wsiad.core.terminal import counted
from wsiad.evaluation.matching import ProtocolName
from wsiad.evaluation.slide_evidence import SlideEvidence

_LISTED = 8


def conditions(
    slides: Sequence[SlideEvidence], *, protocols: Sequence[ProtocolName], classes: ClassMap
) -> list[str]:
    """Return lines that state the conditions of the figures; they accompany every figure.

    Parameters
    ----------
    slides : sequence of SlideEvidence
        Evaluated slides.
    protocols : sequence of str
        FROC protocols.
    classes : ClassMap
        Meaning of classes that the user sets.
    """
    return [*_scales(slides, protocols), *_origins(slides), *_left_aside(slides, classes)]


def _scales(slides: Sequence[SlideEvidence], protocols: Sequence[ProtocolName]) -> Iterator[str]:
    """Yield the µm/px of the protocols; protocols with the same µm/px share a line."""
    texts: dict[str, list[str]] = {}
    for protocol in protocols:
        said = _scale(slides, protocol)
        if said:
            texts.setdefault(said, []).append(protocol)
    for said, names in texts.items():
        yield f"scale of {', '.join(names)}: {said}"


def _scale(slides: Sequence[SlideEvidence], protocol: ProtocolName) -> str:
    found: dict[str, list[tuple[float, int]]] = {}
    for slide in slides:
        evidence = slide.by_protocol.get(protocol)
        if evidence is not None and evidence.mpp is not None:
            found.setdefault(evidence.spacing, []).append((evidence.mpp, slide.downsample))
    return "; ".join(
        f"{_range([mpp for mpp, _ in values])} µm/px ({source}), mask pixels of "
        f"{_range([step for _, step in values])} level-0 pixels, on {_slides(len(values))} "
        "with tumour"
        for source, values in found.items()
    )


def _origins(slides: Sequence[SlideEvidence]) -> Iterator[str]:
    """Yield a line with the origins of the outlines' positions, if there are outlines."""
    found: dict[str, list[str]] = {}
    for slide in slides:
        if slide.reading.counted_from:
            found.setdefault(slide.reading.counted_from, []).append(slide.case.slide)
    if found:
        said = (f"{words} ({_named(names)})" for words, names in found.items())
        yield f"positions of outlines count from {'; '.join(said)}"


def _left_aside(slides: Sequence[SlideEvidence], classes: ClassMap) -> Iterator[str]:
    """Yield the annotations that were ignored, and the class mappings that match no outline."""
    outlined = [slide for slide in slides if slide.reading.counted_from]
    counts: Counter[str] = Counter()
    for slide in outlined:
        counts.update(slide.reading.ignored)
    if counts:
        kinds = [f"{number} of {reason}" for reason, number in counts.most_common(_LISTED)]
        more = len(counts) - _LISTED
        names = [slide.case.slide for slide in outlined if slide.reading.ignored]
        yield (
            f"outlines ignored because they are not known to be tumour: {', '.join(kinds)}"
            f"{f' and {more} more kinds' if more > 0 else ''} ({_named(names)}); "
            "set the meaning of a class with --class-map, such as Carcinoma=tumor"
        )
    elif outlined:
        yield "no outline was ignored"
    seen = frozenset[str]().union(*(slide.reading.classes for slide in outlined))
    if unused := classes.unused(seen):
        yield f"mapped classes that no outline has: {', '.join(map(class_text, unused))}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _slides(number: int) -> str:
    return counted(number, "slide")


def _named(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return f"{_slides(len(names))}: {', '.join(names[:_LISTED])}" + (
        f" and {more} more" if more > 0 else ""
    )
