"""The report of a tile store, from its table and its overviews."""

from __future__ import annotations

from pathlib import Path

from wsiad._version import __version__
from wsiad.report import store_report
from wsiad.report.store_report import StoreReport, TiledSlide
from wsiad.slides.slide_table import read_table
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow
from wsiad.tissue.guards import QUALITY_REASONS

REPORT = "report.html"


def write_store_report(folder: Path) -> Path:
    """Write ``report.html`` into a store.

    It says nothing of when or how fast: equal stores have equal reports.

    Raises
    ------
    StoreError
        The folder is not a store.
    InputError
        Its table is damaged.
    """
    store = TileStore(folder)
    rows = sorted(read_table(folder / "slides.csv", TileRow), key=lambda row: row.slide)
    preparation, quality = store.preparation, store.preparation.quality
    words = [reason.word for reason in QUALITY_REASONS] if quality.given else []
    report = StoreReport(
        title=f"Tiles of {len(rows)} slide{'' if len(rows) == 1 else 's'}",
        created_by=f"wsiad {__version__}",
        slides=[_slide(row, store, words) for row in rows],
        reasons=words,
        facts={
            "Tile": f"{preparation.tile} px at {preparation.mpp:g} µm/px",
            "Step": f"{preparation.step} px",
            "Least tissue coverage": preparation.min_coverage,
            "Stain": preparation.stain.method,
            "Quality thresholds": quality.given or "none: quality is only recorded",
            "Tiles that fail": {"drop": "not stored", "keep": "stored, marked unusable"}[
                quality.action
            ],
        },
        kept=quality.action == "keep",
    )
    store_report.write_store_report(folder / REPORT, report)
    return folder / REPORT


def _slide(row: TileRow, store: TileStore, words: list[str]) -> TiledSlide:
    overview = store.overview(row.slide)
    return TiledSlide(
        row.slide,
        row.status,
        row.reason,
        row.label,
        row.tiles,
        {word: getattr(row, f"unusable_{word}") for word in words},
        row.missing,
        row.tissue_share,
        overview if row.slide in store and overview.exists() else None,
    )
