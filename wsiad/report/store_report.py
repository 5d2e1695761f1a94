"""Write ``report.html`` of a tile store: every slide with its counts and its overview.

The page follows the rules of the report of results: all text is escaped, nothing comes from
elsewhere, and a content security policy lets nothing else run. The overviews are linked, not
embedded: they are in the store, and browsers load them as they come into view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsiad._version import __version__
from wsiad.core.files import write_text
from wsiad.report import wording as report_text
from wsiad.report.page import environment, picture, policy, template
from wsiad.slides.slide_table import DAMAGED_THERE, FAILED, REPORT, SLIDES_TABLE, read_table
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import TileRow
from wsiad.tissue.quality import QUALITY_REASONS

_CAPTION = "Tissue, stored and left-out tiles, and tiles before and after stain normalisation"


@dataclass(frozen=True, slots=True)
class TiledSlide:
    """Slide of a store in the store's report.

    Parameters
    ----------
    name, status, reason : str
        Name, status and reason in the store's table.
    label : str
        Label from the manifest.
    tiles : int
        Number of stored tiles.
    unusable : mapping of str to int
        Number of tiles that fail a quality threshold, by reason.
    missing : int
        Number of tiles left out because the slide has no pixels there.
    tissue_share : float or None
        Share of the slide that is tissue, 0 to 1.
    overview : Path or None
        Overview picture, in the store's folder.
    """

    name: str
    status: str
    reason: str = ""
    label: str = ""
    tiles: int = 0
    unusable: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0
    tissue_share: float | None = None
    overview: Path | None = None


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Content of the report of a store.

    Parameters
    ----------
    title, created_by : str
        Title of the page, and program with its version.
    slides : sequence of TiledSlide
        Slides in the order of the page, which lists failed slides first.
    reasons : sequence of str
        Columns of the table: reasons why tiles are not used.
    facts : mapping
        Facts about the preparation of the slides, label to value.
    kept : bool
        True where tiles that fail a threshold are stored nevertheless.
    """

    title: str
    created_by: str
    slides: Sequence[TiledSlide]
    reasons: Sequence[str]
    facts: Mapping[str, object]
    kept: bool = False


def write_store_page(path: Path, report: StoreReport) -> None:
    """Write the report as one HTML file, atomically; pictures are linked relative to it.

    Raises
    ------
    ExportError
        A picture is damaged, or is outside the folder of the report.
    """
    failed = [slide for slide in report.slides if slide.status == "failed"]
    done = [slide for slide in report.slides if slide.status != "failed"]
    totals = [(why, sum(s.unusable.get(why, 0) for s in done)) for why in report.reasons]
    not_stored = 0 if report.kept else sum(count for _, count in totals)
    page = (
        environment()
        .get_template("store.html.j2")
        .render(
            report=report,
            failed=failed,
            damaged=sum(DAMAGED_THERE in slide.reason for slide in done),
            unseen=[slide for slide in done if slide.status == "unusable"],
            slides=done,
            totals=[(reason, count) for reason, count in totals if count],
            planned=sum(slide.tiles for slide in done) + not_stored,
            pictures={
                slide.name: picture(_CAPTION, slide.overview, path.parent)
                for slide in done
                if slide.overview is not None
            },
            style=template("report.css"),
            script=template("report.js"),
            policy=policy(),
            text=report_text,
        )
    )
    write_text(path, page)


def write_store_report(folder: Path) -> Path:
    """Write ``report.html`` into a store.

    The report contains neither dates nor durations, so equal stores have equal reports.

    Raises
    ------
    StoreError
        The folder is not a store.
    InputError
        The store's table is damaged.
    """
    store = TileStore(folder)
    rows = sorted(read_table(folder / SLIDES_TABLE, TileRow), key=lambda row: row.slide)
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
            "Minimum tissue coverage": preparation.min_coverage,
            "Stain": preparation.stain.method,
            "Quality thresholds": quality.given or "none: quality is only recorded",
            "Tiles that fail": {"drop": "not stored", "keep": "stored, marked unusable"}[
                quality.action
            ],
        },
        kept=quality.action == "keep",
    )
    write_store_page(folder / REPORT, report)
    return folder / REPORT


def _slide(row: TileRow, store: TileStore, words: list[str]) -> TiledSlide:
    overview = store.overview(row.slide)
    return TiledSlide(
        name=row.slide,
        status=row.status,
        reason=row.reason,
        label=row.label,
        tiles=row.tiles,
        unusable={word: getattr(row, f"unusable_{word}") for word in words},
        missing=row.missing,
        tissue_share=row.tissue_share,
        # That of a slide that failed may be of another file, which had its name before.
        overview=overview
        if row.status != FAILED and row.slide in store and overview.exists()
        else None,
    )
