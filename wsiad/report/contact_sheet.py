"""Write the contact sheet of results: the strongest regions of all slides, side by side.

The page is for a first look at what a detector finds: a grid of fields of view, strongest first,
each with its slide, scores and a link to the slide in the report. Printed, or saved as PDF by the
browser, a sheet of A4 has sixteen of them. Next to it is one table of all regions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wsiad.core.files import write_text
from wsiad.report import wording
from wsiad.report.page import (
    INLINE_LIMIT,
    Picture,
    environment,
    file_size,
    picture,
    policy,
    template,
)
from wsiad.report.report_model import Report
from wsiad.results import file_names as names
from wsiad.results.folder import Results
from wsiad.results.region_table import RegionRow, write_all_regions
from wsiad.slides.slide_table import OK

MOST = 200
"""Maximum number of regions on the sheet."""


@dataclass(frozen=True, slots=True)
class Card:
    """Region on the sheet.

    Parameters
    ----------
    slide : str
        Name of the slide.
    label : str or None
        Label of the slide.
    region : RegionRow
        Rank on the slide, scores, area, p and q of the region.
    across_um : float
        Width of the field of view, µm.
    picture : Picture
        Field of view with the region outlined.
    link : str
        Address of the slide in the report.
    """

    slide: str
    label: str | None
    region: RegionRow
    across_um: float
    picture: Picture
    link: str


def write_contact_sheet(
    results: Results, report: Report, *, page: Path, inline_limit: int = INLINE_LIMIT
) -> None:
    """Write the contact sheet and the table of all regions into a results folder.

    Parameters
    ----------
    results : Results
        Results folder.
    report : Report
        Report of the results, which knows labels and the order of slides.
    page : Path
        File of the report, to which the sheet links.
    inline_limit : int
        Maximum bytes of pictures that are embedded; above it they are linked.

    Raises
    ------
    ExportError
        A table or picture of a slide is damaged.
    """
    regions, lacking = _regions(results)
    write_all_regions(results.path / names.ALL_REGIONS, regions)
    fields = {
        (slide.name, field.rank): field
        for slide in (results.slide(name) for name in dict.fromkeys(name for name, _ in regions))
        for field in slide.fields()
    }
    shown = [
        (slide, region, fields[slide, region.rank])
        for slide, region in regions
        if (slide, region.rank) in fields
    ][:MOST]
    linked = sum(file_size(field.image) for _, _, field in shown) > inline_limit
    places = {slide.name: place for place, slide in enumerate(report.ranked(), start=1)}
    labels = {slide.name: slide.label for slide in report.slides}
    address = quote(Path(os.path.relpath(page, results.path)).as_posix())
    cards = [
        Card(
            slide=slide,
            label=labels.get(slide),
            region=region,
            across_um=field.across_um,
            picture=picture(
                f"Region {region.rank} of {slide}, outlined in the slide",
                field.image,
                results.path if linked else None,
            ),
            link=f"{address}#slide-{places[slide]}",
        )
        for slide, region, field in shown
    ]
    text = (
        environment()
        .get_template("contact_sheet.html.j2")
        .render(
            report=report,
            cards=cards,
            regions=len(regions),
            slides=len({slide for slide, _ in regions}),
            lacking=lacking,
            linked=linked,
            address=address,
            table=names.ALL_REGIONS,
            style=template("report.css"),
            script=template("report.js"),
            policy=policy(),
            text=wording,
        )
    )
    write_text(results.path / names.CONTACT_SHEET, text)


def _regions(results: Results) -> tuple[list[tuple[str, RegionRow]], Sequence[str]]:
    """Return the regions of all slides, strongest first, and the slides that have no table."""
    found: list[tuple[str, RegionRow]] = []
    lacking = []
    for row in results.slides:
        if row.status != OK:
            continue
        slide = results.of(row)
        if slide.file(names.REGIONS) is None:
            lacking.append(row.slide)
            continue
        found += ((row.slide, region) for region in slide.region_rows())
    return sorted(found, key=lambda one: (-one[1].max_score, one[0], one[1].rank)), lacking
