import json

import numpy as np
import pytest
from scipy.stats import percentileofscore

from wsiad.core.errors import DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.learning.detector import Detector, DetectorOptions, InputSpec, State
from wsiad.runs.calibration import Calibration, held_out_scores
from wsiad.store.dataset import ArrayTiles

RNG = np.random.default_rng(0)
SCORES = RNG.gamma(2, size=20_001).astype(np.float32)


class Redness(Detector):
    """Mean of the red channel: a score that is known."""

    def fit(self, tiles, context):
        raise NotImplementedError

    def score_places(self, tiles):
        assert tiles.shape[1:] == (self.spec.size, self.spec.size, 3)
        return tiles[..., 0].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)[:, None, None]

    def state(self):
        return State({}, {})

    def load_state(self, state, device):
        pass


def redness(size):
    return Redness(DetectorOptions(), InputSpec(TilePx(size), Mpp(1)))


def test_percentile_is_the_share_of_lower_healthy_scores():
    calibration = Calibration.of(SCORES, n_slides=7)
    asked = np.concatenate([RNG.choice(SCORES, 200), RNG.uniform(0, 12, 200)]).astype(np.float32)
    expected = percentileofscore(SCORES, asked, kind="strict")
    found = calibration.percentile(asked)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05)  # levels lie 0.1 % apart
    tail = np.quantile(SCORES, [0.995, 0.999, 0.9995])
    np.testing.assert_allclose(calibration.percentile(tail), [99.5, 99.9, 99.95], atol=0.006)


def test_beyond_the_healthy_scores_and_nan():
    calibration = Calibration.of(SCORES, n_slides=1)
    found = calibration.percentile([[-1.0, 1e9], [np.inf, np.nan]])
    np.testing.assert_array_equal(found, np.float32([[0, 100], [100, np.nan]]))


def test_percentile_rises_with_the_score():
    calibration = Calibration.of(np.round(SCORES, 1), n_slides=1)
    found = calibration.percentile(np.linspace(-1, 20, 5000))
    assert (np.diff(found) >= 0).all()


def test_constant_scores():
    calibration = Calibration.of(np.full(10, 2.5, np.float32), n_slides=1)
    np.testing.assert_array_equal(calibration.percentile([2.4, 2.5, 2.6]), [0, 0, 100])
    assert (calibration.median, calibration.spread) == (2.5, 0)
    assert calibration.quantile(0.99) == 2.5
    assert calibration.constant
    assert not Calibration.of(np.float32([2.5]), n_slides=1).constant
    assert not Calibration.of(np.float32([2.5, 2.5, 3]), n_slides=1).constant


def test_ties_count_those_strictly_below():
    calibration = Calibration.of(np.float32([1] * 50 + [2] * 50), n_slides=1)
    assert calibration.percentile(1) == 0
    assert calibration.percentile(2) == pytest.approx(50, abs=1)
    assert calibration.percentile(2.001) == 100


def test_quantile_median_and_spread():
    normal = RNG.normal(5, 2, 50_000).astype(np.float32)
    calibration = Calibration.of(normal, n_slides=3)
    assert calibration.quantile(0.95) == pytest.approx(np.quantile(normal, 0.95))
    assert calibration.median == pytest.approx(5, abs=0.05)
    assert calibration.spread == pytest.approx(2, rel=0.02)
    with pytest.raises(DetectorError):
        calibration.quantile(95)


def test_json_round_trip():
    calibration = Calibration.of(SCORES, n_slides=7)
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has the calibration format 2, not 1"),
        ({"levels": [0, 1]}, "quantiles do not ascend"),
        ({"values": "x"}, "is not a calibration: values: "),
        ({"n_windows": 0}, "is not a calibration: n_windows: "),
        ({"extra": 1}, "is not a calibration: extra: "),
        ({"levels": [0, 1], "values": [2, 1]}, "quantiles do not ascend"),
    ],
)
def test_damaged_json_is_refused(change, said):
    stored = {**Calibration.of(SCORES, n_slides=7).to_json(), **change}
    with pytest.raises(RunError, match=said):
        Calibration.from_json(stored)


def test_scores_that_cannot_calibrate():
    with pytest.raises(DetectorError, match="no healthy windows"):
        Calibration.of(np.zeros(0, np.float32), n_slides=0)
    with pytest.raises(DetectorError, match="not finite"):
        Calibration.of(np.float32([1, np.nan]), n_slides=1)


def test_every_window_of_larger_held_out_tiles_is_scored():
    tiles = RNG.integers(0, 256, (5, 7, 7, 3), dtype=np.uint8)
    scores = held_out_scores(redness(3), ArrayTiles(tiles), quiet=True)
    means = [tile[y : y + 3, x : x + 3, 0].mean() for tile in tiles for y in (0, 3) for x in (0, 3)]
    np.testing.assert_allclose(scores, means, rtol=1e-6)


def test_held_out_tiles_that_are_too_small():
    with pytest.raises(DetectorError, match="smaller"):
        held_out_scores(redness(8), ArrayTiles(np.zeros((2, 4, 4, 3), np.uint8)), quiet=True)
