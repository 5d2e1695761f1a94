"""The conditions of figures, in words: scale, origin of outlines, what was left aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from wsiad.annotations import ClassMap
from wsiad.annotations.classes import class_text
from wsiad.evaluation.matching import ProtocolName
from wsiad.evaluation.slide_evidence import SlideEvidence

_LISTED = 8


def conditions(
    slides: Sequence[SlideEvidence], *, protocols: Sequence[ProtocolName], classes: ClassMap
) -> list[str]:
    """Say in lines what the figures of some slides rest on; no figure goes without it.

    Parameters
    ----------
    slides : sequence of SlideEvidence
    protocols : sequence of str
        FROC protocols.
    classes : ClassMap
        What the user says that classes mean.
    """
    return [*_scales(slides, protocols), *_origins(slides), *_left_aside(slides, classes)]


def _scales(slides: Sequence[SlideEvidence], protocols: Sequence[ProtocolName]) -> Iterator[str]:
    """Yield the µm/px of each protocol, those that are the same at once."""
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
    """Yield where outlines count from, where there are any."""
    found: dict[str, list[str]] = {}
    for slide in slides:
        if slide.reading.counted_from:
            found.setdefault(slide.reading.counted_from, []).append(slide.case.slide)
    if found:
        said = (f"{words} ({_named(names)})" for words, names in found.items())
        yield f"outlines count from {'; '.join(said)}"


def _left_aside(slides: Sequence[SlideEvidence], classes: ClassMap) -> Iterator[str]:
    """Yield what was not read as tumour or cut out of it, and mappings that mean nothing."""
    outlined = [slide for slide in slides if slide.reading.counted_from]
    counts: Counter[str] = Counter()
    for slide in outlined:
        counts.update(slide.reading.ignored)
    if counts:
        kinds = [f"{number} of {reason}" for reason, number in counts.most_common(_LISTED)]
        more = len(counts) - _LISTED
        names = [slide.case.slide for slide in outlined if slide.reading.ignored]
        yield (
            f"left aside, as not said to be tumour: {', '.join(kinds)}"
            f"{f' and {more} more kinds' if more > 0 else ''} ({_named(names)}); "
            "say what a class means by --class-map, such as Carcinoma=tumor"
        )
    elif outlined:
        yield "no outline was left aside"
    seen = frozenset[str]().union(*(slide.reading.classes for slide in outlined))
    if unused := classes.unused(seen):
        yield f"no outline has a class that is mapped: {', '.join(map(class_text, unused))}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _slides(number: int) -> str:
    return f"{number} slide{'s' if number != 1 else ''}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return f"{_slides(len(names))}: {', '.join(names[:_LISTED])}" + (
        f" and {more} more" if more > 0 else ""
    )
