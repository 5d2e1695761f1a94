"""FROC by both protocols, against hand-made answers, the scripts' arithmetic and MONAI."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from wsiad.evaluation.auc import slide_weights
from wsiad.evaluation.froc import OPERATING_POINTS, Pool
from wsiad.evaluation.froc_score import froc_score
from wsiad.evaluation.matching import (
    PROTOCOLS,
    Detections,
    SlideHits,
    all_thresholds,
    conservative,
    evaluation_mask,
    match,
)
from wsiad.evaluation.submission import read_detections

SHARED = Path(__file__).parents[3] / "shared"
V1, V2 = PROTOCOLS["camelyon16-2016"], PROTOCOLS["camelyon16-dataset"]
LEVEL5_UM = 0.243 * 32


def hits(regions=(), false_positives=(), *, itc=0):
    """Hits on a slide; isolated tumour cells are regions too, which none can hit."""
    values = np.array([*regions, *[0.0] * itc], dtype=float)
    return SlideHits(values, np.array(false_positives, dtype=float), len(regions))


def score(slides, rules):
    sensitivities = Pool(slides, rules).sensitivities()
    return None if sensitivities is None else float(sensitivities.mean())


# Answers by hand, one for every oddity of the scripts

NOTHING = hits()
HAND_MADE = {
    # Nothing missed: 2016 drops the lowest threshold and with it a hit.
    "perfect, nothing missed": ([hits([0.9, 0.8]), NOTHING], 0.5, 1.0, 1.0, 1.0),
    "one lesion, nothing else": ([hits([0.9])], 0.0, 1.0, 1.0, 1.0),
    # (0.25 + 0.25 + 4 * 0.75) / 6
    "basic": (
        [
            hits([0.9375, 0.5], [0.75]),
            hits([0.0, 0.625], [0.8125]),
            hits((), [0.25, 0.6875]),
            NOTHING,
        ],
        3.5 / 6,
        3.5 / 6,
        3.5 / 6,
        3.5 / 6,
    ),
    "isolated tumour cells keep the lowest threshold": ([hits([0.9, 0.8], itc=1)], *[1.0] * 4),
    "duplicate false positives both count": (
        [hits([0.75], [0.875, 0.875], itc=1)],
        # Two per slide at 0.875 with sensitivity 0, and again at 0.75 with sensitivity 1.
        (0 + 0 + 0 + 1 + 1 + 1) / 6,
        (0 + 0 + 0 + 0 + 1 + 1) / 6,  # the lower of the two at exactly two
        (0 + 0 + 0 + 1 + 1 + 1) / 6,
        (0 + 0 + 0 + 1 + 1 + 1) / 6,
    ),
    "a slide without detections": ([hits([0.0]), hits([0.75])], 0.5, 0.5, 0.5, 0.5),
    "no detections at all": ([hits([0.0, 0.0]), NOTHING], 0.0, 0.0, 0.0, 0.0),
    # A lesion and ten false positives at one threshold: sensitivity 0.5 at none, 1 at 10.
    "the curve jumps": (
        [hits([0.9, 0.5], [0.5] * 10, itc=1)],
        (6 * 0.5 + 0.5 * sum(OPERATING_POINTS) / 10) / 6,
        1.0,
        (6 * 0.5 + 0.5 * sum(OPERATING_POINTS) / 10) / 6,
        0.5,
    ),
    # As float32, 0.3 is more than 0.3 and 0.7 less than 0.7: only the latter ties.
    "0.3 does not tie in single precision": (
        [hits([0.3], [0.3], itc=1), NOTHING],
        1.0,
        1.0,
        5.5 / 6,
        5 / 6,
    ),
    "0.7 ties in single precision": (
        [hits([0.7], [0.7], itc=1), NOTHING],
        5.5 / 6,
        1.0,
        5.5 / 6,
        5 / 6,
    ),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_hand_made_answers(case):
    slides, v1, v2, every_threshold, cautious = HAND_MADE[case]
    assert score(slides, V1) == pytest.approx(v1, abs=1e-12)
    assert score(slides, V2) == pytest.approx(v2, abs=1e-12)
    for rules in (V1, V2):
        assert score(slides, all_thresholds(rules)) == pytest.approx(every_threshold, abs=1e-12)
        assert score(slides, conservative(rules)) == pytest.approx(cautious, abs=1e-12)


@pytest.mark.parametrize("slides", [[hits((), [0.5])], [hits((), [0.5], itc=2), NOTHING]])
@pytest.mark.parametrize("rules", [V1, V2])
def test_without_a_lesion_nothing_is_defined(slides, rules):
    assert score(slides, rules) is None
    result = froc_score(slides, slides, rules, resamples=10, seed=0)
    assert result.score.value is None
    assert "no lesion" in result.score.undefined
    values = result.as_json()
    assert values["score"] is None
    assert set(values["sensitivity_at"].values()) == {None}
    json.dumps(values, allow_nan=False)


# The scripts' own arithmetic, with the number types that they have


def as_2016(slides):
    false = [float(p) for slide in slides for p in slide.false_positives]
    true = [np.float32(p) for slide in slides for p in slide.regions]
    points = []
    for threshold in sorted(set(false + true), key=float)[1:]:
        found = (np.asarray(true, dtype=np.float32) >= threshold).sum()
        points.append(((np.asarray(false) >= threshold).sum(), found))
    points.append((0, 0))
    x, y = np.array(points, dtype=float).T
    x, y = x / len(slides), y / sum(slide.lesions for slide in slides)
    return x, y, np.mean(np.interp(OPERATING_POINTS, x[::-1], y[::-1]))


def as_dataset(slides):
    false = [float(p) for slide in slides for p in slide.false_positives]
    true = [float(p) for slide in slides for p in slide.regions]
    lesions = sum(slide.lesions for slide in slides)
    points = [
        (sum(p >= t for p in false) / len(slides), sum(p >= t for p in true) / lesions)
        for t in set(false + true) - {0.0}
    ]
    points = sorted([*points, (0.0, 0.0)])
    at = [next((y for x, y in points if x >= f), points[-1][1]) for f in OPERATING_POINTS]
    return points, np.mean(at)


def random_slides(seed, *, digits):
    rng = np.random.default_rng(seed)
    slides = []
    for _ in range(rng.integers(2, 9)):
        regions = np.round(rng.random(rng.integers(0, 5)), digits) * (rng.random() < 0.8)
        false = np.round(rng.random(rng.integers(0, 12)) * 0.8, digits)
        itc = int(rng.integers(0, 2))
        slides.append(hits(regions, false, itc=itc))
    return [*slides, hits([0.5])]


@pytest.mark.parametrize("digits", [1, 2, 5])
@pytest.mark.parametrize("seed", range(15))
def test_both_protocols_do_what_the_scripts_do(seed, digits):
    slides = random_slides(seed, digits=digits)
    x, y, expected = as_2016(slides)
    curve = Pool(slides, V1).curve()
    np.testing.assert_allclose(curve.false_positives, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.sensitivity, y, rtol=0, atol=1e-12)
    assert score(slides, V1) == pytest.approx(expected, abs=1e-12)
    points, expected = as_dataset(slides)
    curve = Pool(slides, V2).curve()
    np.testing.assert_allclose(
        sorted(zip(curve.false_positives, curve.sensitivity, strict=True)), points, atol=1e-12
    )
    assert score(slides, V2) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_2016_without_single_precision_is_what_monai_computes(seed):
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    slides = random_slides(seed, digits=1 + seed % 3)
    false = np.concatenate([slide.false_positives for slide in slides])
    true = np.concatenate([slide.regions for slide in slides])
    lesions = sum(slide.lesions for slide in slides)
    x, y = metrics.compute_froc_curve_data(false, true, lesions, len(slides))
    rules = dataclasses.replace(V1, single_precision=False)
    curve = Pool(slides, rules).curve()
    np.testing.assert_array_equal(curve.false_positives, x)
    np.testing.assert_array_equal(curve.sensitivity, y)
    assert score(slides, rules) == metrics.compute_froc_score(x, y, OPERATING_POINTS)


@pytest.mark.parametrize("seed", range(10))
def test_without_ties_and_with_a_miss_the_points_are_the_same(seed):
    rng = np.random.default_rng(seed)
    slides = [hits(rng.random(3), rng.random(20)) for _ in range(5)]
    slides.append(hits([0.0]))
    pool = Pool(slides, V1)
    assert pool.ties == 0
    np.testing.assert_array_equal(pool.curve().sensitivity, Pool(slides, V2).curve().sensitivity)


def test_ties_are_counted():
    slides = [hits([0.5, 0.0], [0.5, 0.25, 0.25, 0.125, 0.0]), hits([0.125], [0.75])]
    assert Pool(slides, V2).ties == 4  # 0.5, 0.25 twice, 0.125; not 0, which is a miss


# Resamples


@pytest.mark.parametrize("rules", [V1, V2, conservative(V1)])
def test_a_weighted_curve_is_the_curve_of_repeated_slides(rules):
    slides = random_slides(4, digits=1)
    pool = Pool(slides, rules)
    for weights in slide_weights(len(slides), resamples=30, seed=1):
        repeated = [s for s, w in zip(slides, weights, strict=True) for _ in range(w)]
        expected = Pool(repeated, rules).curve()
        found = pool.curve(weights)
        if expected is None:
            assert found is None
            continue
        np.testing.assert_allclose(found.false_positives, expected.false_positives, atol=1e-12)
        np.testing.assert_allclose(found.sensitivity, expected.sensitivity, atol=1e-12)


def test_the_interval_is_that_of_resampled_slides_and_repeats_with_its_seed():
    slides = [hits([0.9, 0.0], [0.4]), hits([0.7]), hits((), [0.8, 0.3]), hits([0.0]), NOTHING]
    drawn = []
    for weights in slide_weights(len(slides), resamples=200, seed=3):
        repeated = [s for s, w in zip(slides, weights, strict=True) for _ in range(w)]
        if any(slide.lesions for slide in repeated):
            drawn.append(as_2016(repeated)[2])
    result = froc_score(slides, slides, V1, resamples=200, seed=3)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (result.score.low, result.score.high) == pytest.approx((low, high), abs=1e-12)
    assert result.resamples_without_lesion == 200 - len(drawn) > 0
    assert result.score.low <= result.score.value <= result.score.high
    again = froc_score(slides, slides, V1, resamples=200, seed=3)
    other = froc_score(slides, slides, V1, resamples=200, seed=4)
    np.testing.assert_array_equal(result.interval, again.interval)
    assert not np.array_equal(result.interval, other.interval)


def test_an_interval_over_one_slide_is_not_defined():
    result = froc_score([hits([0.9, 0.0], [0.5])] * 1, [hits([0.9, 0.0])], V1, resamples=9, seed=0)
    assert result.score.value is not None
    assert result.score.low is None
    assert "fewer than two slides" in result.score.interval_undefined


# Detections on masks


def detections(*rows):
    confidence, x, y = np.array(rows, dtype=float).reshape(-1, 3).T
    return Detections(confidence, x, y)


@pytest.fixture(scope="module")
def square_lesion():
    mask = np.zeros((200, 300), dtype=bool)
    mask[60:140, 60:140] = True  # widened by 4: columns 56 to 143
    return evaluation_mask(mask, pixel_um=LEVEL5_UM)


def test_coordinates_are_truncated_or_rounded(square_lesion):
    # 55.625 and 143.625 mask pixels.
    found = detections((0.75, 1780, 3200), (0.5, 4596, 3200), (0.625, 3200, 3200))
    v1 = match(found, square_lesion, V1, downsample=32)
    v2 = match(found, square_lesion, V2, downsample=32)
    assert v1.regions.tolist() == [0.625]
    assert v1.false_positives.tolist() == [0.75]
    assert v2.regions.tolist() == [0.75]
    assert v2.false_positives.tolist() == [0.5]


def test_halves_round_to_even(square_lesion):
    # 55.5 rounds to 56, which is inside; 144.5 to 144 and 143.5 to 144, which are not.
    found = detections((0.9, 55.5 * 32, 3200), (0.8, 143.5 * 32, 3200), (0.7, 144.5 * 32, 3200))
    v2 = match(found, square_lesion, V2, downsample=32)
    assert v2.regions.tolist() == [0.9]
    assert v2.false_positives.tolist() == [0.8, 0.7]


def test_several_hits_on_a_lesion_count_once_with_the_highest(square_lesion):
    found = detections((0.5, 2000, 2000), (0.75, 3200, 3200), (0.6, 4000, 4000), (0.25, 9, 9))
    hit = match(found, square_lesion, V1, downsample=32)
    assert hit.regions.tolist() == [0.75]
    assert hit.false_positives.tolist() == [0.25]
    assert hit.lesions == 1


def test_isolated_tumour_cells_count_neither_way_unless_included():
    mask = np.zeros((200, 300), dtype=bool)
    mask[100:160, 100:160] = mask[20:24, 20:24] = True
    truth = evaluation_mask(mask, pixel_um=LEVEL5_UM)
    found = detections((0.9, 22 * 32, 22 * 32), (0.8, 130 * 32, 130 * 32))
    hit = match(found, truth, V1, downsample=32)
    assert (hit.regions.tolist(), hit.false_positives.tolist(), hit.lesions) == ([0, 0.8], [], 1)
    hit = match(found, truth, V1, downsample=32, include_itc=True)
    assert (hit.regions.tolist(), hit.false_positives.tolist(), hit.lesions) == ([0.9, 0.8], [], 2)


def test_a_hit_in_a_filled_hole_is_true_and_any_on_a_normal_slide_is_false():
    mask = np.zeros((200, 300), dtype=bool)
    mask[60:140, 60:140] = True
    mask[80:120, 80:120] = False
    truth = evaluation_mask(mask, pixel_um=LEVEL5_UM)
    found = detections((0.75, 3200, 3200))
    assert match(found, truth, V1, downsample=32).regions.tolist() == [0.75]
    assert match(found, None, V1, downsample=32).false_positives.tolist() == [0.75]


def test_rounding_beyond_the_last_pixel_belongs_to_it_and_what_is_beyond_is_outside():
    mask = np.ones((40, 50), dtype=bool)
    truth = evaluation_mask(mask, pixel_um=LEVEL5_UM)
    at_edge = detections((0.9, 50 * 32 - 1, 40 * 32 - 1))
    for rules in (V1, V2):
        assert match(at_edge, truth, rules, downsample=32).regions.tolist() == [0.9]
    beyond = detections((0.9, 50 * 32, 10))
    assert match(beyond, truth, V1, downsample=32).false_positives.tolist() == [0.9]


# Known cases

CASES = sorted((SHARED / "cases" / "froc").glob("*")) if SHARED.exists() else []


@pytest.mark.skipif(not CASES, reason="needs the shared reference cases")
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_known_cases(folder, tmp_path):
    from wsiad.verbs.evaluate import evaluate

    expected = json.loads((folder / "expected.json").read_text())
    with_itc = expected["official_v2_dataset_include_itc"]["froc"]
    official = {"camelyon16-2016": "official_v1_2016", "camelyon16-dataset": "official_v2_dataset"}
    result = evaluate(
        detections=folder / "detections",
        masks=folder / "masks",
        spacing_um=0.243,
        reference=folder / "reference.csv",
        out=tmp_path,
        bootstrap=20,
    )
    values = json.loads(result.report.read_text())
    for protocol, key in official.items():
        found, known = values["froc"][protocol], expected[key]
        assert found["score"] == pytest.approx(known["froc"], abs=1e-9)
        assert found["sensitivity_at"] == pytest.approx(known["sens_at"], abs=1e-9)
        curve = result.figures.froc[protocol].curve
        np.testing.assert_allclose(curve.false_positives, known["avg_fps"], atol=1e-9)
        np.testing.assert_allclose(curve.sensitivity, known["sensitivity"], atol=1e-9)
        slides = known["per_slide"].values()
        assert found["lesions"] == sum(slide["n_lesions"] for slide in slides)
        assert found["itc"] == sum(len(slide["itc_labels"]) for slide in slides)
    assert values["froc"]["camelyon16-dataset"]["score_with_itc"] == pytest.approx(with_itc)
    for path in (folder / "detections").glob("*.csv"):
        plain = read_detections(path, path.stem)
        headed = read_detections(folder / "detections_v2" / path.name, path.stem)
        for field in ("confidence", "x", "y"):
            np.testing.assert_array_equal(getattr(plain, field), getattr(headed, field))
