"""Slides of a search at one scale, and whether stores of several scales hold the same ones.

A search over scales has a store of healthy and one of anomalous tiles for each µm/px. Its trials
can only be compared if a fold has the same slides at all scales, with the same labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from wsiad.core.errors import StoreMismatchError

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide

_SHOWN = 3  # slides that an error names


@dataclass(frozen=True, slots=True)
class ScaleSlides:
    """Slides with tiles to use at one scale.

    Parameters
    ----------
    healthy_store, anomalous_store : Path
        Stores of the tiles.
    healthy, anomalous : mapping of str to str
        Fingerprint of each slide by its name; empty for imported tiles, which have none of a slide.
    types : mapping of str to str
        Type of each anomalous slide.
    stain : str
        Stain normalisation of the tiles.
    """

    healthy_store: Path
    anomalous_store: Path
    healthy: Mapping[str, str]
    anomalous: Mapping[str, str]
    types: Mapping[str, str]
    stain: str

    @classmethod
    def of(
        cls,
        paths: tuple[Path, Path],
        healthy: Sequence[StoredSlide],
        anomalous: Mapping[str, Sequence[StoredSlide]],
        *,
        stain: str,
    ) -> Self:
        """Return the facts about slides of two stores, the anomalous ones by type."""
        return cls(
            *paths,
            healthy=_fingerprints(healthy),
            anomalous=_fingerprints([slide for some in anomalous.values() for slide in some]),
            types={slide.name: name for name, some in anomalous.items() for slide in some},
            stain=stain,
        )


def _fingerprints(slides: Sequence[StoredSlide]) -> dict[str, str]:
    return {slide.name: slide.fingerprint if slide.has_geometry else "" for slide in slides}


def check_same_slides(first: ScaleSlides, other: ScaleSlides) -> None:
    """Check that the stores of another scale hold the slides of the first.

    Raises
    ------
    StoreMismatchError
        A slide is missing, was added, is another one of that name or has another label, or the
        tiles were stained otherwise; the error names the store and the slides.
    """
    pairs = (
        (first.healthy_store, other.healthy_store, first.healthy, other.healthy),
        (first.anomalous_store, other.anomalous_store, first.anomalous, other.anomalous),
    )
    for store, found, here, there in pairs:
        _check_names(store, found, here, there)
        changed = [n for n in here if here[n] and there[n] and here[n] != there[n]]
        if changed:
            raise StoreMismatchError(
                f"holds other slides than {store} under the same names: {_named(changed)}",
                subject=str(found),
                remedy="Tile the same slide files at each --mpp.",
            )
    relabelled = [name for name in first.types if first.types[name] != other.types[name]]
    if relabelled:
        raise StoreMismatchError(
            f"has other labels than {first.anomalous_store}: {_named(relabelled)}",
            subject=str(other.anomalous_store),
            remedy="Tile with the same manifest at each --mpp.",
        )
    if first.stain != other.stain:
        raise StoreMismatchError(
            f"has the stain normalisation {other.stain}, and {first.healthy_store} {first.stain}",
            subject=str(other.healthy_store),
            remedy="Tile with the same --stain-method at each --mpp.",
        )


def _check_names(
    store: Path, found: Path, here: Mapping[str, str], there: Mapping[str, str]
) -> None:
    missing, added = sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys())
    if missing or added:
        parts = [f"lacks {_named(missing)}"] if missing else []
        parts += [f"has {_named(added)} besides"] if added else []
        raise StoreMismatchError(
            f"holds other slides with tiles to use than {store}: {' and '.join(parts)}",
            subject=str(found),
            remedy="Tile the same slides at each --mpp, with the same manifest and --split; draw "
            "no fewer tiles than there are slides, or choose slides that have tiles at each scale.",
        )


def _named(slides: Sequence[str]) -> str:
    return ", ".join(slides[:_SHOWN]) + (" …" if len(slides) > _SHOWN else "")
