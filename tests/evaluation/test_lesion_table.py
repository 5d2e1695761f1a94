"""Lesions one by one, and sensitivity by their size, against brute force."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import measure

from wsiad.evaluation.froc import OPERATING_POINTS, Pool
from wsiad.evaluation.froc_score import froc_score
from wsiad.evaluation.lesion_table import COLUMNS, list_lesions
from wsiad.evaluation.matching import PROTOCOLS, Detections, SlideHits, evaluation_mask, match
from wsiad.verbs.evaluate import evaluate

V1, V2 = "camelyon16-2016", "camelyon16-dataset"
PIXEL_UM = 0.243 * 32


def discs(shape, *circles):
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, dtype=bool)
    for row, column, radius in circles:
        mask |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return mask


@pytest.fixture(scope="module")
def slides():
    """Three slides with lesions of all classes, one normal, detections at random."""
    rng = np.random.default_rng(5)
    masks = {
        "a": discs((500, 600), (200, 200, 140), (450, 60, 30), (450, 500, 6)),
        "b": discs((300, 400), (80, 80, 20), (220, 300, 40), (20, 380, 4))
        & ~discs((300, 400), (220, 300, 20)),
        "c": discs((300, 400), (150, 150, 60)),
        "d": None,
    }
    found = {}
    for name, mask in masks.items():
        n = 12
        size = np.array((12800, 9600) if mask is None else mask.shape[::-1]) * (
            1 if mask is None else 32
        )
        places = np.floor(rng.uniform(0, size, (n, 2)))
        if name in "ab":
            inside = np.argwhere(mask)[:, ::-1]
            places[:4] = inside[rng.integers(0, len(inside), 4)] * 32 + 7
        if name == "b":
            places[4] = (300 * 32, 220 * 32)  # within the hole
        found[name] = Detections(np.round(rng.uniform(0.1, 1, n), 2), places[:, 0], places[:, 1])
    return masks, found


def by_brute_force(mask, found):
    """Regions of the whole mask by scikit-image; hits by looking at each detection."""
    near = ndimage.distance_transform_edt(~mask) * PIXEL_UM < 37.5
    labels = measure.label(ndimage.binary_fill_holes(near), connectivity=2)
    rows = []
    for region in measure.regionprops(labels):
        axis = region.axis_major_length * PIXEL_UM
        scores = [
            p
            for p, x, y in zip(found.confidence, found.x, found.y, strict=True)
            if labels[int(y // 32), int(x // 32)] == region.label
        ]
        row, column = region.centroid
        rows.append(
            {
                "class": "itc" if axis < 275 else "macro" if axis > 2075 else "micro",
                "axis_um": axis,
                "tumour_um2": (mask & (labels == region.label)).sum() * PIXEL_UM**2,
                "x": (column + 0.5) * 32,
                "y": (row + 0.5) * 32,
                "score": max(scores, default=None),
            }
        )
    false = [
        p
        for p, x, y in zip(found.confidence, found.x, found.y, strict=True)
        if labels[int(y // 32), int(x // 32)] == 0
    ]
    return rows, false


@pytest.fixture(scope="module")
def written(slides, tmp_path_factory):
    masks, found = slides
    folder = tmp_path_factory.mktemp("lesions")
    (folder / "masks").mkdir()
    (folder / "detections").mkdir()
    reference = ["image,type"]
    for name, mask in masks.items():
        if mask is not None:
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"masks/{name}.png")
        rows = zip(found[name].confidence, found[name].x, found[name].y, strict=True)
        text = "".join(f"{p},{x},{y}\n" for p, x, y in rows)
        (folder / f"detections/{name}.csv").write_text(text)
        reference.append(f"{name},{'normal' if mask is None else 'tumor'}")
    (folder / "reference.csv").write_text("\n".join(reference) + "\n")
    return evaluate(
        detections=folder / "detections",
        masks=folder / "masks",
        spacing_um=0.243,
        reference=folder / "reference.csv",
        out=folder / "out",
        bootstrap=20,
        quiet=True,
    )


def test_every_lesion_is_listed_with_what_was_found_on_it(slides, written):
    masks, found = slides
    with written.lesions.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == COLUMNS
        rows = [row for row in reader if row["protocol"] == V1]
    expected = {n: by_brute_force(m, found[n]) for n, m in masks.items() if m is not None}
    false = [*found["d"].confidence, *(p for _, some in expected.values() for p in some)]
    assert [row["slide"] for row in rows] == [n for n, (e, _) in expected.items() for _ in e]
    for row, known in zip(rows, [e for some, _ in expected.values() for e in some], strict=True):
        assert row["class"] == known["class"]
        assert float(row["axis_um"]) == pytest.approx(known["axis_um"], abs=0.05)
        assert float(row["size_um"]) == pytest.approx(known["axis_um"] - 75, abs=0.06)
        assert float(row["tumour_um2"]) == pytest.approx(known["tumour_um2"], abs=0.5)
        assert float(row["x"]) == pytest.approx(known["x"], abs=0.06)
        assert float(row["y"]) == pytest.approx(known["y"], abs=0.06)
        best = known["score"]
        if best is None:
            assert (row["hit"], row["score"], row["rank"]) == ("0", "", "")
            assert (row["false_positives_on_slide"], row["false_positives_per_slide"]) == ("", "")
            continue
        assert (row["hit"], float(row["score"])) == ("1", best)
        here = expected[row["slide"]][1]
        assert int(row["rank"]) == 1 + sum(found[row["slide"]].confidence > best)
        assert int(row["false_positives_on_slide"]) == sum(p >= best for p in here)
        assert float(row["false_positives_per_slide"]) == sum(p >= best for p in false) / 4
    assert {row["class"] for row in rows} == {"macro", "micro", "itc"}
    assert {row["hit"] for row in rows} == {"0", "1"}


def test_sensitivities_by_class_add_up_to_that_of_all(written):
    values = json.loads(written.report.read_text())
    assert "2 mm" in values["lesion_classes"]
    for froc in values["froc"].values():
        by_class = froc["by_class"]
        assert list(by_class) == ["macro", "micro", "itc"]
        macro, micro = by_class["macro"], by_class["micro"]
        assert macro["regions"] + micro["regions"] == froc["lesions"]
        assert by_class["itc"]["regions"] == froc["itc"]
        assert by_class["itc"]["sensitivity_at"] is None
        for point, share in froc["sensitivity_at"].items():
            total = sum(kind["regions"] * kind["sensitivity_at"][point] for kind in (macro, micro))
            assert total / froc["lesions"] == pytest.approx(share, abs=1e-12)
    assert values["froc"][V1]["by_class"]["micro"]["hit"] < micro["regions"]


def test_class_totals_of_random_hits_by_counting():
    rng = np.random.default_rng(1)
    hits = [SlideHits(rng.random(3) * (rng.random(3) < 0.7), rng.random(7), 3) for _ in range(6)]
    regions = np.concatenate([hit.regions for hit in hits])
    kinds = rng.choice(["macro", "micro"], len(regions)).tolist()
    score = froc_score(hits, hits, PROTOCOLS[V2], resamples=5, seed=0, kinds=kinds)
    for name in ("macro", "micro"):
        best = [b for b, k in zip(regions, kinds, strict=True) if k == name]
        found = score.by_class[name]
        assert (found.regions, found.hit) == (len(best), sum(b > 0 for b in best))
        # At the most false positives that there are, all that is hit at all is.
        assert found.sensitivities[-1] == pytest.approx(found.hit / found.regions)


def test_a_class_without_lesions_has_no_sensitivity():
    hits = [SlideHits(np.array([0.5]), np.array([0.25]), 1)]
    score = froc_score(hits, hits, PROTOCOLS[V1], resamples=5, seed=0, kinds=["micro"])
    assert score.by_class["macro"].sensitivities is None
    assert score.as_json()["by_class"]["macro"] == {"regions": 0, "hit": 0, "sensitivity_at": None}


def test_a_confidence_of_zero_is_a_miss():
    mask = discs((200, 200), (100, 100, 40))
    truth = evaluation_mask(mask, pixel_um=PIXEL_UM)
    found = Detections(np.array([0.0]), np.array([3200.0]), np.array([3200.0]))
    hits = match(found, truth, PROTOCOLS[V1], downsample=32, include_itc=True)
    (lesion,) = list_lesions(truth, hits, found, downsample=32, pixel_um=PIXEL_UM)
    assert (lesion.score, lesion.rank) == (None, None)
    assert list_lesions(None, hits, found, downsample=32, pixel_um=PIXEL_UM) == ()


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_at_an_operating_point_is_the_lowest_that_keeps_to_it(seed):
    rng = np.random.default_rng(seed)
    hits = [
        SlideHits(np.round(rng.random(2), 2), np.round(rng.random(rng.integers(0, 15)), 2), 2)
        for _ in range(5)
    ]
    false = np.concatenate([hit.false_positives for hit in hits])
    scores = np.unique(np.concatenate([false, *(hit.regions for hit in hits)]))
    scores = scores[scores > 0]
    found = froc_score(hits, hits, PROTOCOLS[V1], resamples=1, seed=0).thresholds
    for point, threshold in zip(OPERATING_POINTS, found, strict=True):
        kept = [s for s in scores if (false >= s).sum() / 5 <= point]
        assert threshold == (min(kept) if kept else None)


def test_without_a_score_that_keeps_to_it_there_is_no_threshold():
    hits = [SlideHits(np.array([0.5]), np.full(2, 0.75), 1)]
    assert Pool(hits, PROTOCOLS[V1]).thresholds() == [None, None, None, 0.5, 0.5, 0.5]
    score = froc_score([], [], PROTOCOLS[V1], resamples=1, seed=0, no_truth="none")
    assert set(score.as_json()["threshold_at"].values()) == {None}
