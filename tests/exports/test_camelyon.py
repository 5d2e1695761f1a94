from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from wsiad.core.errors import ExportError
from wsiad.exports.camelyon import confidences, write_detections
from wsiad.heatmaps.peaks import Detection


def test_known_values():
    """By hand: with z of 0, 1, 10 and -1 the logs are 0, ln 2, ln 11 and -ln 2."""
    found = confidences(np.array([2.0, 6.0, 42.0, -2.0]), median=2.0, upper=6.0)
    expected = [0.5, 0.704692, 0.852850, 0.295308]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbouring_scores_stay_apart_over_the_whole_range():
    for start in (1.0, 7.25, 1e3, 1e9, 1e30, -1.0, -1e12):
        score = np.float32(start)
        following = [score]
        for _ in range(50):
            following.append(np.nextafter(following[-1], np.float32(np.inf)))
        found = confidences(np.array(following), median=0.5, upper=0.75)
        assert (np.diff(found) > 0).all()
        assert (found > 0).all()
        assert (found < 1).all()


def test_order_is_kept_and_equal_scores_are_equal():
    rng = np.random.default_rng(0)
    scores = rng.standard_cauchy(20_000).astype(np.float32)
    scores[::7] = scores[0]
    found = confidences(scores, median=0.0, upper=10.0)
    np.testing.assert_array_equal(
        np.unique(scores, return_inverse=True)[1], np.unique(found, return_inverse=True)[1]
    )


def test_scores_that_no_float_can_tell_apart_are_refused():
    with pytest.raises(ExportError, match="same confidence"):
        confidences(np.array([1e-30, 2e-30]), median=1.0, upper=2.0)


def test_the_file_reads_back_exactly(tmp_path):
    scores = np.random.default_rng(1).gamma(3, size=40).astype(np.float32)
    detections = [
        Detection(x=10.5 + i, y=1000.999, score=float(score)) for i, score in enumerate(scores)
    ]
    path = tmp_path / "detections.csv"
    write_detections(detections, path, median=3.0, upper=8.0)
    text = path.read_bytes()
    assert text.startswith(b"confidence,x,y\n")
    assert b"\r" not in text
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    read = np.array([float(row["confidence"]) for row in rows])
    np.testing.assert_array_equal(read, confidences(scores, median=3.0, upper=8.0))
    assert [(int(row["x"]), int(row["y"])) for row in rows] == [(10 + i, 1000) for i in range(40)]


def test_no_detections_are_a_header(tmp_path):
    write_detections([], tmp_path / "d.csv", median=0, upper=1)
    assert (tmp_path / "d.csv").read_text() == "confidence,x,y\n"


@pytest.mark.parametrize(("median", "upper"), [(1, 1), (2, 1), (np.nan, 1), (0, np.inf)])
def test_healthy_scores_without_extent_are_refused(tmp_path, median, upper):
    with pytest.raises(ExportError, match="scale"):
        write_detections([], tmp_path / "d.csv", median=median, upper=upper)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [(np.nan, 1, 1), (-1, 1, 1), (1, np.inf, 1), (1, 1, np.nan), (1, 1, np.inf)]
)
def test_bad_detections_are_refused(tmp_path, bad):
    with pytest.raises(ExportError):
        write_detections([Detection(*bad)], tmp_path / "d.csv", median=0, upper=1)
    assert not list(tmp_path.iterdir())
