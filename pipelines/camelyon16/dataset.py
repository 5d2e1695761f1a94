#!/usr/bin/env python3
"""Lists of CAMELYON16's slides, from the folder as downloaded: who takes part in what, and who not.

    pipelines/camelyon16/dataset.py CAMELYON16/ out/

The folder may be laid out as on GigaDB (training/normal, training/tumor, testing/images, outlines
in lesion_annotations.zip) or as on AWS (images/, annotations/): slides are known by their names.
Writes lists/{train,tune,test}.csv for `wsiad`, lists/reference.csv, lists/left_out.csv with every
slide that takes no part and why, lists/not_in_froc.txt, and annotations/ of those that do.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.files import write_text

EXPECTED = {"normal": 159, "tumor": 111, "test": 129}
"""Slides of the data set as it is published now: README of CAMELYON16."""

ERRATA = {
    "normal_086": "holds tumour; the data set renamed it tumor_111",
    "normal_144": "left out by several studies as mislabelled; padded with black",
    "test_049": "a duplicate; the data set removed it",
}

PAPER = {
    "normal_027": "little tissue",
    "normal_045": "little tissue",
    "normal_108": "black parts",
    "normal_150": "black parts",
    "normal_158": "out of focus",
}
"""Training slides that Shvetsova et al. (2021) left out besides: their preprocessing code."""

NOT_IN_FROC = {"test_114": "not all of its tumour is outlined"}

TUNE = ("tumor_016", "tumor_052", "tumor_078", "tumor_085")
"""The slides of their 200 tiles by which options were chosen."""

NOT_ALL_OUTLINED = tuple(
    f"tumor_{number:03d}"
    for number in (
        *(10, 15, 18, 20, 25, 29, 33, 34, 44, 46),
        *(51, 54, 55, 56, 67, 79, 85, 92, 95, 110),
    )
)
"""What is not outlined on them may be tumour: no healthy tiles are taken from tumour slides."""

_NAME = re.compile(r"(normal|tumor|test)_\d{3}", re.IGNORECASE)
_MOST_XML_BYTES = 64 * 2**20


def find_slides(root: Path) -> dict[str, Path]:
    """Find the slides of the data set under a folder, by name.

    Raises
    ------
    InputError
        There is none, or one lies there twice.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.tif")):
        name = path.stem.lower()
        if not _NAME.fullmatch(name):
            continue
        if name in found:
            raise InputError(
                f"lies there twice: {found[name]} and {path}",
                subject=name,
                remedy="Keep one of them below the folder.",
            )
        found[name] = path
    if not found:
        raise InputError(
            "holds no slide of CAMELYON16",
            subject=str(root),
            remedy="Looked for normal_001.tif, tumor_001.tif, test_001.tif and the like.",
        )
    return found


def outlines(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the outlines under a folder, of slides by name, also those within zip archives."""
    for path in sorted(root.rglob("*.xml")):
        if _NAME.fullmatch(path.stem):
            yield path.stem.lower(), path.read_bytes()
    for path in sorted(root.rglob("*annotations*.zip")):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                stem = Path(member.filename).stem
                if member.filename.endswith(".xml") and _NAME.fullmatch(stem):
                    if member.file_size > _MOST_XML_BYTES:
                        raise InputError(
                            f"{member.filename} has {member.file_size} bytes", subject=str(path)
                        )
                    yield stem.lower(), archive.read(member)


def read_truth(root: Path, tests: Mapping[str, Path]) -> dict[str, str]:
    """Read which test slides hold tumour, ``"tumor"`` or ``"normal"``.

    Raises
    ------
    InputError
        There is no reference, or it says nothing of a slide.
    """
    from wsiad.evaluation.truth import read_reference

    if not tests:
        return {}
    paths = sorted(root.rglob("reference.csv"))
    if len(paths) != 1:
        raise InputError(
            f"holds {len(paths)} files reference.csv, which says what the test slides are",
            subject=str(root),
            remedy="Keep the one of the data set (testing/reference.csv) below the folder.",
        )
    known = {name.lower(): tumour for name, tumour in read_reference(paths[0]).items()}
    missing = sorted(set(tests) - set(known) - set(ERRATA))
    if missing:
        raise InputError(f"says nothing of {', '.join(missing)}", subject=str(paths[0]))
    return {name: "tumor" if known[name] else "normal" for name in tests if name in known}


def sort_slides(
    slides: Mapping[str, Path], truth: Mapping[str, str]
) -> tuple[dict[str, list[tuple[str, str]]], list[tuple[str, str, str]]]:
    """Say who takes part in what.

    Returns
    -------
    lists : dict of str to list of (str, str)
        Slides with their labels: ``train``, ``tune`` and ``test``.
    left_out : list of (str, str, str)
        Slide, out of what, and why.
    """
    lists: dict[str, list[tuple[str, str]]] = {"train": [], "tune": [], "test": []}
    left_out = []
    for name in sorted(slides):
        kind = name.split("_")[0]
        reason = ERRATA.get(name) or PAPER.get(name)
        if reason:
            left_out.append((name, "all", reason))
        elif kind == "normal":
            lists["train"].append((name, "normal"))
        elif kind == "test":
            lists["test"].append((name, truth[name]))
            if name in NOT_IN_FROC:
                left_out.append((name, "FROC and tumour tiles", NOT_IN_FROC[name]))
        elif name in TUNE:
            lists["tune"].append((name, "tumor"))
        else:
            reason = "a tumour slide of the training set; options are chosen by four others"
            if name in NOT_ALL_OUTLINED:
                reason += ", and not all of its tumour is outlined"
            left_out.append((name, "all", reason))
    return lists, left_out


def prepare(root: Path, out: Path) -> str:
    """Write the lists and outlines; return what was found, for people.

    Raises
    ------
    InputError
        The folder is not that of CAMELYON16, or lacks what the test set needs.
    """
    slides = find_slides(root)
    tests = {name: path for name, path in slides.items() if name.startswith("test")}
    truth = read_truth(root, tests)
    lists, left_out = sort_slides(slides, truth)
    drawn = dict(outlines(root))
    wanted = [name for part in lists.values() for name, label in part if label == "tumor"]
    without = sorted(set(wanted) - set(drawn))
    if without:
        raise InputError(
            f"{', '.join(without)} hold tumour, and there are no outlines of them",
            subject=str(root),
            remedy="Put the data set's lesion_annotations.zip, or what is in it, below the folder.",
        )
    for name in wanted:
        # `wsiad` names a slide as its file, of which the case may differ.
        path = out / "annotations" / f"{slides[name].stem}.xml"
        write_text(path, drawn[name].decode("utf-8-sig"))
    for part, rows in lists.items():
        table = [(str(slides[name].absolute()), label, part) for name, label in rows]
        _write(out / "lists" / f"{part}.csv", ("slide", "label", "split"), table)
    reference = [(slides[name].stem, label) for name, label in lists["test"]]
    _write(out / "lists" / "reference.csv", ("image", "type"), reference)
    outlined_in_part = [slides[name].stem for name, _ in lists["test"] if name in NOT_IN_FROC]
    write_text(out / "lists" / "not_in_froc.txt", " ".join(outlined_in_part))
    _write(out / "lists" / "left_out.csv", ("slide", "out of", "reason"), left_out)
    counts = {kind: sum(name.startswith(kind) for name in slides) for kind in EXPECTED}
    found = ", ".join(f"{counts[kind]} of {EXPECTED[kind]} {kind}" for kind in EXPECTED)
    taking = ", ".join(f"{part} {len(rows)}" for part, rows in lists.items())
    errata = sum(name in ERRATA or name in PAPER or name in NOT_IN_FROC for name, _, _ in left_out)
    return f"slides: {found}; taking part: {taking}; {errata} left out as known errors"


def _write(path: Path, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the folder as downloaded")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    try:
        print(prepare(asked.root, asked.out))
    except WsiadError as error:
        print(f"dataset.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
