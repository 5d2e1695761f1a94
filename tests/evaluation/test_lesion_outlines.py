"""truth.json: outlines of lesions, and which were found at one false positive a slide."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import shapely
from PIL import Image

from wsiad.core.errors import EvaluationError
from wsiad.evaluation.lesion_outlines import read_outlines
from wsiad.evaluation.matching import evaluation_mask, region_outlines
from wsiad.verbs.evaluate import evaluate


def disc(shape, row, column, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def test_an_outline_encloses_the_pixels_of_its_region():
    shape = (200, 260)
    tumour = disc(shape, 60, 70, 30) & ~disc(shape, 60, 70, 12)
    tumour |= disc(shape, 150, 180, 9) | disc(shape, 0, 250, 6)
    truth = evaluation_mask(tumour, pixel_um=7.776)
    outlines = region_outlines(truth)
    assert len(outlines) == len(truth.regions) == 3
    rows, columns = np.indices(shape)
    centres = shapely.points(columns + 0.5, rows + 0.5)
    for number, outline in enumerate(outlines, start=1):
        polygon = shapely.Polygon(outline)
        near = shapely.distance(polygon.exterior, centres) <= 1.0 + 1e-9
        inside = shapely.contains(polygon, centres)
        assert ((truth.labels == number) == inside)[~near].all()
        assert len(outline) < 40


@pytest.fixture
def evaluated(tmp_path):
    """Two tumour slides and a normal one, with detections whose hits are known."""
    found = {
        "a": [(0.9, 100, 100), (0.4, 200, 40), (0.8, 10, 10)],  # lesion 2, lesion 1, nothing
        "b": [(0.6, 60, 60), (0.5, 5, 5)],  # the lesion; nothing
        "n": [(0.7, 50, 50), (0.3, 60, 60)],
    }
    masks = {
        "a": disc((160, 260), 100, 100, 30) | disc((160, 260), 40, 200, 25),
        "b": disc((160, 260), 60, 60, 30) | disc((160, 260), 130, 200, 4),
    }
    for name in ("found", "masks"):
        (tmp_path / name).mkdir()
    for name, rows in found.items():
        text = "".join(f"{p},{x * 32},{y * 32}\n" for p, x, y in rows)
        (tmp_path / "found" / f"{name}.csv").write_text(text)
    for name, mask in masks.items():
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "reference.csv").write_text("image,type\na,tumor\nb,tumor\nn,normal\n")
    evaluate(
        detections=tmp_path / "found",
        reference=tmp_path / "reference.csv",
        masks=tmp_path / "masks",
        spacing_um=0.243,
        out=tmp_path / "out",
        bootstrap=10,
        quiet=True,
    )
    return tmp_path / "out"


def test_lesions_are_found_at_one_false_positive_a_slide(evaluated):
    # False positives 0.8, 0.7, 0.5, 0.3 on three slides: three of them from 0.4 upwards.
    truth = read_outlines(evaluated / "truth.json")
    assert (truth.false_positives, truth.threshold) == (1.0, 0.4)
    told = {
        slide: [(lesion.number, lesion.kind, lesion.found, lesion.score) for lesion in lesions]
        for slide, lesions in truth.slides.items()
    }
    assert told == {
        "a": [(1, "micro", True, 0.4), (2, "micro", True, 0.9)],
        "b": [(1, "micro", True, 0.6), (2, "itc", False, None)],
        "n": [],
    }
    values = json.loads((evaluated / "evaluation.json").read_text())
    by_slide = {one["slide"]: one["froc"]["camelyon16-2016"] for one in values["slides"]}
    at = {name: one["lesions_hit_at"] for name, one in by_slide.items()}
    # At a quarter of a false positive a slide, none of three slides may have one: above 0.8.
    assert at["a"] == {"0.25": 1, "0.5": 1, "1": 2, "2": 2, "4": 2, "8": 2}
    assert at["b"] == {"0.25": 0, "0.5": 0, "1": 1, "2": 1, "4": 1, "8": 1}
    assert by_slide["n"]["false_positives_at"]["0.25"] == 0
    assert by_slide["n"]["false_positives_at"]["1"] == 1
    assert by_slide["a"]["lesions_hit"] == 2
    with (evaluated / "lesions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == "camelyon16-2016"]
    for row, lesion in zip(rows, [*truth.slides["a"], *truth.slides["b"]], strict=True):
        polygon = shapely.Polygon(lesion.outline)
        centre = shapely.Point(float(row["x"]), float(row["y"]))
        assert polygon.centroid.distance(centre) < 32  # a pixel of the mask
        # Widened by 37.5 µm on each side, as the axis in the table is.
        across = 0.243 * (polygon.bounds[2] - polygon.bounds[0])
        assert across == pytest.approx(float(row["axis_um"]), rel=0.12)


def test_a_damaged_file_is_refused_and_a_missing_one_is_none(evaluated):
    path = evaluated / "truth.json"
    values = json.loads(path.read_text())
    for damaged in (
        "{",
        json.dumps(values | {"threshold": float("nan")}),
        json.dumps(values | {"slides": {"a": [{"number": 1}]}}),
        json.dumps(values | {"format": 2}),
    ):
        path.write_text(damaged)
        with pytest.raises(
            EvaluationError, match=r"truth\.json: (cannot be read|is damaged).*Run wsiad evaluate"
        ):
            read_outlines(path)
    path.unlink()
    assert read_outlines(path) is None
