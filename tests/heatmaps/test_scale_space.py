"""Evidence in space: local means against brute force, and healthy slides that stay calm."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from wsiad.core.errors import ConfigError, EvaluationError
from wsiad.core.geometry import Box, Microns, PixelMap, Size, Spacing, SquareMicrons
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.heatmaps.score_map import Heatmap
from wsiad.heatmaps.smoothing import smoothed
from wsiad.heatmaps.space_options import check_scales
from wsiad.runs.calibration import Calibration

PIXEL_UM = 100.0
WINDOW = SquareMicrons(PIXEL_UM**2)


def heatmap(scores: npt.NDArray[np.floating], *, pixel_um: float = PIXEL_UM) -> Heatmap:
    """A heatmap at 0.5 µm/px with square pixels."""
    height, width = scores.shape
    step = pixel_um / 0.5
    size = Size(round(width * step), round(height * step))
    return Heatmap(
        slide="s",
        scores=scores.astype(np.float32),
        placement=PixelMap(x=0.0, y=0.0, scale_x=step, scale_y=step),
        slide_size=size,
        bounds=Box(0.0, 0.0, size.width, size.height),
        spacing=Spacing(0.5, 0.5),
    )


UNIFORM = Calibration.of(np.linspace(0, 1, 1001, dtype=np.float32), n_slides=1)
"""Of scores that are uniform from 0 to 1 on healthy tissue."""


def tissue(rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """About half of the pixels, in patches."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    return field > np.median(field)


def healthy(rng: np.random.Generator, shape: tuple[int, int] = (40, 50)) -> Heatmap:
    """Independent uniform scores over patches of tissue."""
    return heatmap(np.where(tissue(rng, shape), rng.random(shape), np.nan))


def by_brute_force(
    values: npt.NDArray[np.float64], pixel_um: tuple[float, float], radius: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rows, columns = np.indices(values.shape)
    seen = np.isfinite(values)
    means, counts = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for row, column in np.argwhere(seen):
        dy, dx = (rows - row) * pixel_um[1], (columns - column) * pixel_um[0]
        weight = np.exp(-(dx**2 + dy**2) / (2 * (radius / 2) ** 2))
        weight[(abs(dy) > 2 * radius + pixel_um[1]) | (abs(dx) > 2 * radius + pixel_um[0])] = 0
        weight = weight[seen]
        means[row, column] = (weight * values[seen]).sum() / weight.sum()
        counts[row, column] = weight.sum() ** 2 / (weight**2).sum()
    return means, counts


@pytest.mark.parametrize("radius", [60.0, 200.0, 700.0])
@pytest.mark.parametrize("pixel_um", [(100.0, 100.0), (80.0, 120.0)])
def test_local_means_are_gaussian_ones_over_assessed_pixels(
    radius: float, pixel_um: tuple[float, float]
) -> None:
    rng = np.random.default_rng(1)
    values = np.where(tissue(rng, (31, 23)), rng.random((31, 23)), np.nan)
    means, counts = smoothed(values, pixel_um=pixel_um, radius=Microns(radius))
    right, number = by_brute_force(values, pixel_um, radius)
    np.testing.assert_array_equal(np.isnan(means), np.isnan(values))
    # The tails that are cut weigh e^-8.
    np.testing.assert_allclose(means, right, atol=1e-4)
    np.testing.assert_allclose(counts, number, rtol=2e-3)


def test_blocks_of_pixels_change_a_wide_mean_by_little() -> None:
    rng = np.random.default_rng(2)
    values = np.where(tissue(rng, (150, 130)), rng.random((150, 130)), np.nan)
    means, counts = smoothed(values, pixel_um=(10.0, 10.0), radius=Microns(300.0))
    right, number = by_brute_force(values, (10.0, 10.0), 300.0)
    assert np.nanmax(abs(means - right)) < 0.01
    assert np.nanmax(abs(counts / number - 1)) < 0.05


def test_a_full_neighbourhood_weighs_as_much_as_its_disc() -> None:
    values = np.zeros((81, 81))
    _, counts = smoothed(values, pixel_um=(10.0, 10.0), radius=Microns(70.0))
    assert counts[40, 40] == pytest.approx(np.pi * 7**2, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (30, 40)])
def test_a_radius_far_longer_than_the_map_gives_its_mean_and_takes_no_memory(
    shape: tuple[int, int],
) -> None:
    values = np.random.default_rng(2).random(shape)
    tracemalloc.start()
    means, counts = smoothed(values, pixel_um=(1.0, 2.0), radius=Microns(100_000.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(means, values.mean(), rtol=1e-4)
    np.testing.assert_allclose(counts, values.size, rtol=1e-4)
    assert peak < 1 << 25  # blocks of 6,250 pixels would need 160 MB


def test_radius_0_is_the_pixel_itself() -> None:
    values = np.array([[0.25, np.nan], [0.5, 1.0]])
    means, counts = smoothed(values, pixel_um=(10.0, 10.0), radius=Microns(0.0))
    np.testing.assert_array_equal(means, values)
    np.testing.assert_array_equal(counts, [[1, np.nan], [1, 1]])


def test_variances_of_independent_windows_are_found() -> None:
    rng = np.random.default_rng(3)
    slides = [healthy(rng) for _ in range(12)]
    learnt = SpatialCalibration.of(
        slides, calibration=UNIFORM, scales_um=[0, 200, 400], window=WINDOW
    )
    alone, near, far = learnt.scales
    assert alone.between + alone.within == pytest.approx(1 / 12, rel=0.03)
    for scale in (near, far):
        assert scale.mean == pytest.approx(0.5, abs=0.02)
        full = np.pi * (scale.radius / PIXEL_UM) ** 2
        assert scale.between + scale.within / full == pytest.approx(1 / 12 / full, rel=0.3)


def test_a_weak_lesion_stands_out_at_its_scale() -> None:
    rng = np.random.default_rng(4)
    slides = [healthy(rng) for _ in range(10)]
    learnt = SpatialCalibration.of(
        slides, calibration=UNIFORM, scales_um=[0, 200, 400], window=WINDOW
    )
    scores = rng.random((40, 50))
    rows, columns = np.indices(scores.shape)
    lesion = (rows - 20) ** 2 + (columns - 25) ** 2 <= 4**2
    scores[lesion] = rng.random((3, lesion.sum())).max(axis=0)  # no score of it is unusual
    found = learnt.map(heatmap(scores), UNIFORM)
    highest = np.unravel_index(np.nanargmax(found.heatmap.scores), scores.shape)
    assert lesion[highest]
    assert found.radii_um[found.scale[highest]] > 0
    assert np.nanmax(found.heatmap.scores) > learnt.highest[-1]
    assert learnt.calibration.percentile(np.nanmax(found.heatmap.scores)) == 100


def test_means_of_scores_are_of_deviations_within_limits() -> None:
    rng = np.random.default_rng(8)
    healthy_scores = rng.normal(5, 2, 4001).astype(np.float32)
    usual = Calibration.of(healthy_scores, n_slides=1)
    slides = [heatmap(rng.normal(5, 2, (20, 20))) for _ in range(3)]
    options = {"calibration": usual, "scales_um": [0, 200], "window": WINDOW}
    learnt = SpatialCalibration.of(slides, mean_of="scores", **options)
    assert learnt.scales[0].mean == pytest.approx(0, abs=0.1)
    assert learnt.scales[0].between + learnt.scales[0].within == pytest.approx(1, rel=0.2)
    scores = rng.normal(5, 2, (20, 20))
    scores[4, 5], scores[9, 9] = 1000, -1000
    found = learnt.map(heatmap(scores), usual).heatmap.scores
    median = np.median(healthy_scores.astype(float))
    spread = 1.4826022185056018 * np.median(np.abs(healthy_scores - median))
    limited = np.clip((scores.astype(np.float32) - median) / spread, -3, 3)
    assert (limited[4, 5], limited[9, 9]) == (3, -3)
    expected = [limited, by_brute_force(limited, (PIXEL_UM, PIXEL_UM), 200.0)[0]]
    windows = [np.ones((20, 20)), by_brute_force(limited, (PIXEL_UM, PIXEL_UM), 200.0)[1]]
    standardised = [
        (mean - scale.mean) / np.sqrt(scale.between + scale.within / np.maximum(n, 1))
        for mean, n, scale in zip(expected, windows, learnt.scales, strict=True)
    ]
    np.testing.assert_allclose(found, np.max(standardised, axis=0), rtol=1e-4, atol=1e-4)


def test_scores_that_differ_from_constant_healthy_ones_are_at_the_limits() -> None:
    usual = Calibration.of(np.ones(9, np.float32), n_slides=1)
    slides = [heatmap(one) for one in np.random.default_rng(9).normal(1, 1, (3, 9, 9))]
    learnt = SpatialCalibration.of(
        slides, calibration=usual, scales_um=[0], window=WINDOW, mean_of="scores"
    )
    found = learnt.map(heatmap(np.array([[0.0, 1.0, 2.0, np.nan]])), usual).heatmap.scores
    scale = learnt.scales[0]
    spread = np.sqrt(scale.between + scale.within)
    expected = (np.array([-3, 0, 3, np.nan]) - scale.mean) / spread
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_far_scores_count_more_than_those_just_above_healthy_ones() -> None:
    rng = np.random.default_rng(11)
    usual = Calibration.of(rng.normal(0, 1, 4001).astype(np.float32).clip(-1.5, 1.5), n_slides=1)
    slides = [heatmap(rng.normal(0, 1, (20, 20)).clip(-1.5, 1.5)) for _ in range(4)]
    scores = rng.normal(0, 1, (20, 20)).clip(-1.5, 1.5)
    scores[3:6, 3:6], scores[13:16, 13:16] = 1.6, 2.9
    for mean_of, equal in (("percentiles", True), ("scores", False)):
        learnt = SpatialCalibration.of(
            slides, calibration=usual, scales_um=[0], window=WINDOW, mean_of=mean_of
        )
        found = learnt.map(heatmap(scores), usual).heatmap.scores
        assert (found[4, 4] == found[14, 14]) == equal


def test_new_healthy_slides_are_as_those_of_the_calibration() -> None:
    rng = np.random.default_rng(5)
    ranks = []
    for _ in range(60):
        *slides, new = (healthy(rng, (24, 24)) for _ in range(5))
        learnt = SpatialCalibration.of(
            slides, calibration=UNIFORM, scales_um=[0, 150, 300], window=WINDOW
        )
        highest = np.nanmax(learnt.map(new, UNIFORM).heatmap.scores)
        ranks.append(np.searchsorted(learnt.highest, highest))
    # Exchangeable: each of 5 ranks 12 times of 60, the highest within a wide binomial interval.
    assert 5 <= np.sum(np.array(ranks) == 4) <= 22


def test_the_map_of_each_of_two_slides_is_standardised_by_the_other() -> None:
    rng = np.random.default_rng(3)
    slides = [healthy(rng), healthy(rng)]
    options = {"calibration": UNIFORM, "scales_um": (100.0,), "window": WINDOW}
    both = SpatialCalibration.of(slides, **options)
    alone = [SpatialCalibration.of([slide], **options) for slide in slides]
    highest = [
        float(np.nanmax(by.map(slide, UNIFORM).heatmap.scores))
        for slide, by in zip(slides, reversed(alone), strict=True)
    ]
    assert both.highest == pytest.approx(sorted(highest), rel=1e-6)


def test_what_was_not_assessed_stays_so_and_says_nothing() -> None:
    rng = np.random.default_rng(6)
    slides = [healthy(rng) for _ in range(3)]
    learnt = SpatialCalibration.of(slides, calibration=UNIFORM, scales_um=[0, 300], window=WINDOW)
    scores = np.full((20, 20), np.nan)
    scores[3:8, 4:9] = rng.random((5, 5))
    found = learnt.map(heatmap(scores), UNIFORM)
    np.testing.assert_array_equal(np.isnan(found.heatmap.scores), np.isnan(scores))
    wider = np.full((40, 40), np.nan)
    wider[13:18, 14:19] = scores[3:8, 4:9]
    np.testing.assert_allclose(
        learnt.map(heatmap(wider), UNIFORM).heatmap.scores[13:18, 14:19],
        found.heatmap.scores[3:8, 4:9],
        rtol=1e-5,
    )


def test_constant_scores_stand_out_nowhere() -> None:
    slides = [heatmap(np.zeros((9, 9))) for _ in range(3)]
    learnt = SpatialCalibration.of(slides, calibration=UNIFORM, scales_um=[0, 200], window=WINDOW)
    assert (learnt.map(slides[0], UNIFORM).heatmap.scores == 0).all()


def test_a_calibration_is_read_back_as_it_was() -> None:
    rng = np.random.default_rng(7)
    slides = [healthy(rng) for _ in range(3)]
    learnt = SpatialCalibration.of(slides, calibration=UNIFORM, scales_um=[0, 200], window=WINDOW)
    stored = json.loads(json.dumps(learnt.to_json()))
    assert SpatialCalibration.from_json(stored) == learnt
    assert "mean_of" not in stored  # as in files of before there was a choice
    by_scores = replace(learnt, mean_of="scores")
    again = json.loads(json.dumps(by_scores.to_json()))
    assert SpatialCalibration.from_json(again) == by_scores
    with pytest.raises(EvaluationError, match="not a calibration of scales"):
        SpatialCalibration.from_json({**again, "mean_of": "ranks"})
    for wrong in ({}, {**stored, "scales": []}, {**stored, "highest": [2.0, 1.0]}, "text"):
        with pytest.raises(EvaluationError, match="not a calibration of scales"):
            SpatialCalibration.from_json(wrong)


def test_without_a_healthy_slide_there_is_no_scale() -> None:
    with pytest.raises(EvaluationError, match="no healthy slide to standardise"):
        SpatialCalibration.of([], calibration=UNIFORM, scales_um=[0], window=WINDOW)
    blank = heatmap(np.full((3, 3), np.nan))
    with pytest.raises(EvaluationError, match="has no assessed pixel"):
        SpatialCalibration.of([blank], calibration=UNIFORM, scales_um=[0], window=WINDOW)


@pytest.mark.parametrize(
    "scales",
    [[], [-1.0], [float("nan")], [100, 100], [1e-310], [100, 1e9], list(range(17))],
)
def test_scales_that_make_no_sense_are_refused(scales: list[float]) -> None:
    with pytest.raises(ConfigError, match="scales"):
        check_scales(scales)


def test_scales_are_taken_in_rising_order() -> None:
    assert check_scales([400, 0, 100]) == (0.0, 100.0, 400.0)
