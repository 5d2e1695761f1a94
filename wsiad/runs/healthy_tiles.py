"""Choose the healthy slides and tiles of a store that a detector is fitted on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from wsiad.core.config import Config, QuietOptions
from wsiad.core.errors import InputError
from wsiad.core.labels import Split, is_healthy, split_of
from wsiad.core.terminal import first_of
from wsiad.learning.devices import DeviceOptions
from wsiad.learning.training_options import InversionOptions, LimitOptions, TrimmingOptions
from wsiad.runs.anomalies import AnomalyOptions, lacks_split
from wsiad.runs.presets import About, with_preset
from wsiad.slides.slide_table import ROWS_AGAIN, SLIDES_TABLE, first_reasons, read_table
from wsiad.store.tile_task import StoreOptions, TileRow, unseen_slides
from wsiad.tissue.tissue_options import QualityThresholds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wsiad.learning.detector import Detector
    from wsiad.runs.split import SlideTiles
    from wsiad.store.stored_slide import StoredSlide
    from wsiad.store.tile_source import StoreTiles
    from wsiad.store.tile_store import TileStore


logger = logging.getLogger(__name__)

HEALTHY_REGIONS: Final = "healthy_regions"
"""Use of slides of which a run learnt regions that a review rejected."""


class MethodOptions(Config):
    """Options of the method to fit."""

    preset: str | None = None
    """Published system by its usual name, such as `padim`: it sets the method and its options,
    which `options` can replace one by one. `wsiad detectors` lists all."""
    detector: str = "knn"
    """Method, of wsiad or of a plug-in; an unknown name is answered with the list of all."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Option of the method, see docs/detector-options.md; can be passed several times."""
    weights: str | None = None
    """Pretrained weights: a file (safetensors or a plain state dict), `imagenet`, `wsiad` (the
    network that comes with wsiad) or `random`. The default is `imagenet` if these weights are
    available or can be downloaded, else `wsiad`."""
    about: About | None = None
    """Description of a published system, which a preset sets."""

    unflagged: ClassVar[frozenset[str]] = frozenset({"about"})

    @model_validator(mode="before")
    @classmethod
    def _filled_by_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return with_preset(values, fields=cls.model_fields)


class HealthyOptions(StoreOptions):
    """Options that choose the healthy tiles of a store to learn from."""

    split: Split | None = None
    """Use only slides with this value in the manifest's `split` column; capitals do not matter."""
    quality: QualityThresholds = QualityThresholds()
    """Quality thresholds that replace those of the store; tiles that fail them are not used."""


class TrainingOptions(
    QuietOptions,
    LimitOptions,
    InversionOptions,
    DeviceOptions,
    AnomalyOptions,
    HealthyOptions,
    MethodOptions,
):
    """Training of a method on the healthy tiles of a store, in a folder of its own."""

    ORDER = (
        *("store", "out", "preset", "detector", "options", "weights", "anomalies"),
        "healthy_regions",
        *("anomaly_types", "anomaly_tiles", "split", "calibration", "quality", "trimming", "seed"),
        *("device", "devices", "healthy_examples", ..., "max_steps", "max_minutes"),
        *("accept_inverted", "quiet", "about"),
    )

    out: Path
    """Folder of the run; an interrupted run in it continues."""
    seed: int = 0
    """Seed of the training; the same seed gives the same result."""
    devices: Annotated[int, Field(ge=1)] = 1
    """Number of GPUs to train on, each with its share of every batch, for methods that are
    trained step by step; number of processes with `--device cpu`."""
    anomalies: Path | None = None
    """Tile store of labelled anomalous tiles, for a method that learns from them; the label of
    a slide is its anomaly type. Or a results folder with a review: windows of accepted regions."""
    healthy_regions: Path | None = None
    """Results folder with a review, whose rejected regions are fitted on as healthy too; or a
    tile store of further healthy tiles. Their slides are not held out."""
    calibration: Path | None = None
    """Tile store of other healthy slides to calibrate with. All tiles of `store` are then fitted
    on, as in publications. A method that is trained step by step needs `--option keep=last`."""
    quality: QualityThresholds = QualityThresholds()
    """Quality thresholds that replace those of the store, also for the heatmaps of the run; tiles
    that fail them are not used. Tiles that the store dropped do not come back."""
    trimming: TrimmingOptions = TrimmingOptions()
    """Leave out the strangest tiles of each slide and fit again, where lesions may hide among the
    healthy tiles."""
    healthy_examples: Annotated[int, Field(ge=0)] = 512
    """Number of healthy tiles to keep in the run, so that heatmaps can show the nearest ones as
    evidence; 0 for none."""

    @model_validator(mode="after")
    def _choices_need_anomalies(self) -> Self:
        if self.anomalies is None and (self.anomaly_types or self.anomaly_tiles):
            raise ValueError("`anomaly_types` and `anomaly_tiles` choose from `anomalies`: set it")
        return self

    @model_validator(mode="after")
    def _one_process_trims(self) -> Self:
        if self.trimming.share and self.devices > 1:
            raise ValueError("`trimming` fits by one process: leave out `devices`")
        if self.trimming.share and self.healthy_regions is not None:
            raise ValueError("`trimming` would leave out `healthy_regions` again: set one of them")
        return self


def method_values(values: dict[str, Any], cls: type[Detector], store: TileStore) -> dict[str, Any]:
    """Return the options of a method; on a store of features, its backbone is those features."""
    if store.encoder and hasattr(cls, "opened") and "backbone" in cls.Options.model_fields:
        return {"backbone": f"features/{store.encoder}", **values}
    return values


NO_LABEL = "it has no label, and others have one"
NO_ROW = f"{SLIDES_TABLE} has no row of it; the command that made the store writes one if run again"


def healthy_slides(store: TileStore, split: str | None) -> tuple[list[StoredSlide], dict[str, str]]:
    """Return the slides to train on, and why each of the other slides is not used.

    If no slide has a label, all slides count as healthy. If some slides have a label, those
    without one are left out, because nobody stated what they show. So are those without a row in
    the store's table, which may have labels.

    Raises
    ------
    InputError
        There are no slides to train on. If those of other splits would be, the error names them.
    """
    rows = {row.slide: row for row in read_table(store.path / SLIDES_TABLE, TileRow)}
    used: list[StoredSlide] = []
    unseen = unseen_slides(store)
    there = set(store.names())
    skipped = {name: why for name, why in unseen.items() if name not in there}
    labelled = any(rows[name].label for name in there if name in rows)
    unknown, unlabelled, others = [], [], set[str]()
    for slide in store:
        row = rows.get(slide.name)
        label, found = (row.label, split_of(row.split)) if row else ("", "")
        if not len(slide):
            skipped[slide.name] = unseen.get(slide.name, "no tissue")
        elif row is None:
            skipped[slide.name] = NO_ROW
            unknown.append(slide.name)
        elif label and not is_healthy(label):
            skipped[slide.name] = f"label is {label!r}"
        elif split is not None and found != split:
            skipped[slide.name] = f"split is not {split!r}"
            others |= {found} if label or not labelled else set()
        elif labelled and not label:
            skipped[slide.name] = NO_LABEL
            unlabelled.append(slide.name)
        else:
            used.append(slide)
    if unlabelled:
        logger.warning(
            "%s: slides without a label are not trained on, because others have one: %d (%s); "
            "if they are healthy, label them `normal` in a manifest and run wsiad tile again",
            store.path,
            len(unlabelled),
            first_of(unlabelled),
        )
    if unknown:
        if not used and not others:
            raise InputError(
                f"does not say which slides are healthy: its {SLIDES_TABLE} has no row of "
                f"{first_of(unknown)}",
                subject=str(store.path),
                remedy=ROWS_AGAIN,
            )
        logger.warning(
            "%s: slides without a row are not trained on: %d (%s)",
            store.path,
            len(unknown),
            first_of(unknown),
        )
    if others and not used and split is not None:
        raise lacks_split(store, split, others, kind="healthy")
    if not used:
        reasons = first_reasons(skipped) or "it is empty"
        raise InputError(
            f"has no healthy slide with tiles to train on ({reasons})",
            subject=str(store.path),
            remedy="Tile healthy slides, with `normal` or `healthy` as `label` in a manifest.",
        )
    return used, skipped


def usable_tiles(
    slides: list[StoredSlide], thresholds: QualityThresholds, *, kind: str = "healthy"
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, int]]:
    """Return the tiles of each slide that pass the thresholds, and counts of the others.

    Returns
    -------
    dict of str to ndarray of int64
        Indices of the tiles that pass, by slide.
    dict of str to int
        Number of the other tiles, by reason.

    Raises
    ------
    InputError
        No tile passes.
    """
    import numpy as np

    from wsiad.tissue.quality import Reason, count_reasons, in_words

    usable, failed = {}, [np.empty(0, np.uint8)]
    for slide in slides:
        if not thresholds.given:
            usable[slide.name] = np.arange(len(slide), dtype=np.int64)
            continue
        reasons = slide.judged(thresholds)
        usable[slide.name] = np.flatnonzero(reasons == Reason.USABLE).astype(np.int64)
        failed.append(reasons)
    counts = count_reasons(np.concatenate(failed))
    if slides and not any(map(len, usable.values())):
        raise InputError(
            f"no tile of its {kind} slides passes the thresholds ({in_words(counts)})",
            remedy="Choose other thresholds, see docs/quality.md.",
        )
    return usable, counts


def tile_source(
    part: Sequence[SlideTiles],
    by_name: dict[str, tuple[StoredSlide, npt.NDArray[np.int64]]],
) -> StoreTiles:
    """Return the tiles of a part of the split as a source.

    `by_name` has the slides with their usable tiles.
    """
    from wsiad.store.tile_source import StoreTiles

    chosen = [(*by_name[item.slide], item.indices) for item in part]
    return StoreTiles([(slide, usable[indices]) for slide, usable, indices in chosen])


def store_fingerprint(store: TileStore, slides: Sequence[StoredSlide]) -> str:
    """Return a fingerprint of the training data: preparation, slides and their tile counts."""
    content = [store.digest, *((s.name, s.fingerprint, len(s)) for s in slides)]
    return f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"
