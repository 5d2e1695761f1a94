"""Choose labelled anomalous tiles of a store, for detectors that learn from them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError, InputError
from wsiad.core.labels import LabelsOf, is_healthy, label_of, split_of
from wsiad.core.terminal import first_of
from wsiad.slides.slide_table import SLIDES_TABLE, first_reasons, read_table
from wsiad.store.tile_task import TileRow, unseen_slides

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from wsiad.learning.detector import AnomalousTiles
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_store import TileStore

    Usable = Callable[[list[StoredSlide]], Mapping[str, npt.NDArray[np.int64]]]

logger = logging.getLogger(__name__)


def _by_comma(value: object) -> object:
    parts = (value,) if isinstance(value, str) else value
    if isinstance(parts, tuple | list) and all(isinstance(part, str) for part in parts):
        return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_by_comma)]
"""Any number of names, or one text in which commas separate them."""


class AnomalyOptions(Config):
    """Options that choose the tiles of a store of labelled anomalous tiles."""

    anomaly_types: Names = ()
    """Labels of `anomalies` to use; by default all that do not mean healthy."""
    anomaly_tiles: Annotated[int, Field(ge=1)] | None = None
    """Number of tiles of `anomalies` to use, drawn by the seed evenly over the slides; by
    default all."""


@dataclass(frozen=True, slots=True)
class AnomalySlides:
    """Anomalous slides of a store that a detector learns from.

    Parameters
    ----------
    store : TileStore
        Store of the slides.
    types : dict of str to list of (StoredSlide, ndarray of int64)
        By label, the slides and the sorted indices of their tiles.
    skipped : dict of str to str
        Reason why each of the other slides is not used.
    labels_of : {"tiles", "slides", "reference"}
        What the labels are of; see :data:`~wsiad.core.labels.LabelsOf`.
    """

    store: TileStore
    types: dict[str, list[tuple[StoredSlide, npt.NDArray[np.int64]]]]
    skipped: dict[str, str]
    labels_of: LabelsOf = "tiles"

    @property
    def slides(self) -> list[StoredSlide]:
        """Slides whose tiles are used, in order of their names."""
        used = (slide for parts in self.types.values() for slide, _ in parts)
        return sorted(used, key=lambda slide: slide.name)

    def tiles(self) -> AnomalousTiles:
        """Return the tiles in the form that detectors accept."""
        from wsiad.learning.detector import AnomalousTiles, AnomalyType
        from wsiad.store.tile_source import StoreTiles

        return AnomalousTiles(
            tuple(
                AnomalyType(
                    name,
                    StoreTiles(parts),
                    tuple(slide.name for slide, indices in parts for _ in indices),
                )
                for name, parts in sorted(self.types.items())
            )
        )

    def note(self) -> dict[str, Any]:
        """Return the run's entry on these slides, as JSON values.

        The fingerprint identifies the tiles and their store.
        """
        types = {
            name: sum(len(indices) for _, indices in parts)
            for name, parts in sorted(self.types.items())
        }
        drawn = [
            [name, slide.name, slide.fingerprint, indices.tolist()]
            for name, parts in sorted(self.types.items())
            for slide, indices in parts
        ]
        content = json.dumps([self.store.digest, drawn])
        return {
            "tiles": sum(types.values()),
            "types": types,
            "slides": [slide.name for slide in self.slides],
            "store": self.store.path.name,
            "fingerprint": f"sha256:{hashlib.sha256(content.encode()).hexdigest()}",
            **({} if self.labels_of == "tiles" else {"labels_of": self.labels_of}),
            **({"slides_not_used": self.skipped} if self.skipped else {}),
        }


def check_use(
    name: str,
    uses: bool | Literal["needed"],
    anomalies: Path | None,
    *,
    labels_of: LabelsOf = "tiles",
) -> None:
    """Check that a detector gets anomalous tiles if it needs them, and only if it uses them.

    Raises
    ------
    DetectorError
        Anomalous tiles are passed to a detector that does not use them, or a detector that
        needs them gets none.
    """
    from wsiad.detectors import registry

    if anomalies is not None and not uses:
        known = registry.ways_to_use_anomalies()
        raise DetectorError(
            "learns from healthy tiles only, but --anomalies is set",
            subject=name,
            remedy=f"Leave out --anomalies, or choose one of {', '.join(known)}.",
        )
    if anomalies is None and uses == "needed":
        if labels_of == "slides":
            raise DetectorError(
                "learns from the labels of anomalous slides, but there are none",
                subject=name,
                remedy="Pass a tile store of whole slides that hold an anomaly as --anomalies; see "
                "docs/families/slide-labels.md.",
            )
        if labels_of == "reference":
            raise DetectorError(
                "learns from a reference set of other tissue or pictures too, but there is none",
                subject=name,
                remedy="Pass a tile store of it as --anomalies, whose labels are its classes; see "
                f"wsiad detectors {name}.",
            )
        raise DetectorError(
            "learns from labelled anomalous tiles, but there are none",
            subject=name,
            remedy="Pass a tile store of anomalous tiles as --anomalies; see docs/few-labels.md.",
        )


def anomaly_slides(
    store: TileStore,
    *,
    types: Sequence[str],
    split: str | None,
    most: int | None,
    seed: int,
    usable: Usable,
    labels_of: LabelsOf = "tiles",
) -> AnomalySlides:
    """Choose anomalous slides and tiles of a store; a slide's label is its anomaly type.

    Parameters
    ----------
    store : TileStore
        Store of labelled anomalous tiles.
    types : sequence of str
        Labels to use; if empty, all that do not mean healthy.
    split : str or None
        Value of the manifest's ``split`` column that slides must have; ``None`` for any.
    most : int or None
        Number of tiles to use; see :func:`spread`.
    seed : int
        Seed of that draw.
    usable : callable
        Function of slides that returns the indices of tiles that pass the quality thresholds,
        by slide.
    labels_of : {"tiles", "slides", "reference"}
        What the labels are of; see :class:`AnomalySlides`.

    Raises
    ------
    InputError
        No slide is left, or a requested type has no slide.
    """
    labels, skipped = _labelled(store, [_type(name) for name in types], split)
    slides = [store.slide(name) for name in sorted(labels)]
    if not slides:
        reasons = first_reasons(skipped) or "it is empty"
        raise InputError(
            f"has no anomalous slide with tiles to learn from ({reasons})",
            subject=str(store.path),
            remedy="Label the slides with their anomaly types: `wsiad import-tiles --label tumor`, "
            "or the manifest's column `label` for `wsiad tile`.",
        )
    whole = [
        slide.name
        for slide in slides
        if slide.has_geometry and slide.facts.get("coordinates") is None
    ]
    if whole and labels_of == "tiles":
        logger.warning(
            "every stored tile of %s counts as anomalous; tile only anomalous parts (--coords)",
            first_of(whole),
        )
    found: dict[str, list[tuple[StoredSlide, npt.NDArray[np.int64]]]] = {}
    chosen = spread(usable(slides), most, seed=seed)
    for slide in slides:
        if len(chosen[slide.name]):
            found.setdefault(labels[slide.name], []).append((slide, chosen[slide.name]))
    return AnomalySlides(store, found, skipped, labels_of)


def _type(label: str) -> str:
    """Return the anomaly type of a label; words with the same meaning have the same type."""
    return label_of(label) or label.strip().lower()


def _labelled(
    store: TileStore, types: Collection[str], split: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the anomaly type of each slide that is used, and why each other slide is not."""
    rows = {row.slide: row for row in read_table(store.path / SLIDES_TABLE, TileRow)}
    there = set(store.names())
    skipped = {name: why for name, why in unseen_slides(store).items() if name not in there}
    labels, others = {}, set[str]()
    for slide in store:
        row = rows.get(slide.name)
        label, found = (_type(row.label), split_of(row.split)) if row else ("", "")
        if not len(slide):
            skipped[slide.name] = f"unusable: {slide.reason}" if slide.reason else "no tiles"
        elif not label or is_healthy(label):
            skipped[slide.name] = f"label is {label!r}" if label else "it has no label"
        elif types and label not in types:
            skipped[slide.name] = f"label is {label!r}"
        elif split is not None and found != split:
            skipped[slide.name] = f"split is not {split!r}"
            others.add(found)
        else:
            labels[slide.name] = label
    if others and not labels and split is not None:
        raise lacks_split(store, split, others, kind="anomalous")
    if labels and (absent := sorted(set(types) - set(labels.values()))):
        raise InputError(
            f"has no slide to learn from with the label {absent[0]!r}",
            subject=str(store.path),
            remedy=f"Choose among its labels: {', '.join(sorted(set(labels.values())))}.",
        )
    return labels, skipped


def lacks_split(store: TileStore, split: str, others: Collection[str], *, kind: str) -> InputError:
    """Return the error for a store whose slides to use are all of other splits, which it names.

    Slides of the split that failed or are unusable are named with their reasons.
    """
    named = sorted(map(repr, filter(None, others)))
    problem = f"has no {kind} slide with tiles in the split {split!r}"
    rows = {row.slide: row for row in read_table(store.path / SLIDES_TABLE, TileRow)}
    mine = {name for name, row in rows.items() if split_of(row.split) == split}
    if lost := {name: why for name, why in unseen_slides(store).items() if name in mine}:
        problem = f"{problem} ({first_reasons(lost)})"
    if not named:
        return InputError(
            f"{problem}: no {kind} slide of it has a split",
            subject=str(store.path),
            remedy="Leave out --split, or state splits in the manifest's column `split` (or by the "
            "--split of an import) and run the command that made the store again.",
        )
    return InputError(
        f"{problem}; those of its {kind} slides: {', '.join(named)}",
        subject=str(store.path),
        remedy="Set --split to one of these, or leave it out.",
    )


def spread(
    usable: Mapping[str, npt.NDArray[np.int64]], most: int | None, *, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Draw tiles evenly over slides: one of each slide, then a second of each, and so on.

    Parameters
    ----------
    usable : mapping of str to ndarray of int64
        Indices of tiles by slide.
    most : int or None
        Number of tiles to draw in total; ``None`` for all.
    seed : int
        Seed; the same seed, slides and tiles give the same draw, and a larger draw contains a
        smaller one.

    Returns
    -------
    dict of str to ndarray of int64
        Sorted indices of tiles for every slide; empty where none was drawn.
    """
    import numpy as np

    names = sorted(usable)
    if most is None:
        return {name: np.sort(usable[name]) for name in names}
    rng = np.random.default_rng([seed, 0xA70])
    drawn = {name: rng.permutation(usable[name]) for name in names}
    order = [names[i] for i in rng.permutation(len(names))]
    turns = [
        (turn, place)
        for place, name in enumerate(order)
        for turn in range(min(most, len(drawn[name])))
    ]
    counts = dict.fromkeys(names, 0)
    for _, place in sorted(turns)[:most]:
        counts[order[place]] += 1
    return {name: np.sort(drawn[name][: counts[name]]).astype(np.int64) for name in names}
