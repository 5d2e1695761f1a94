"""Further healthy vectors in a fitted detector, against a fit of all and brute force."""

import numpy as np
import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.detectors.gaussian import Gaussian, GaussianOptions
from wsiad.detectors.knn import KnnOptions, NearestNeighbours
from wsiad.detectors.patchcore import PatchCore, PatchCoreOptions
from wsiad.learning.detector import InputSpec

SPEC = InputSpec(32, 0.5)


def drawn(count, seed, *, away=0.0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, 12)) @ np.random.default_rng(9).normal(size=(12, 12))
    return (mixed + away).astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_knn_measures_to_the_nearest_of_both(metric):
    detector = NearestNeighbours(KnnOptions(metric=metric), SPEC)
    first, more, asked = drawn(300, 0), drawn(50, 1, away=9), drawn(40, 2, away=5)
    fitted = detector.extended(more, detector.fit_vectors(first))
    found = detector.distance(torch.from_numpy(asked), fitted).numpy()
    every = np.concatenate([first, more]).astype(np.float64)
    if metric == "cosine":
        unit = every / np.linalg.norm(every, axis=1, keepdims=True)
        own = asked / np.linalg.norm(asked, axis=1, keepdims=True)
        expected = (1 - own @ unit.T).min(axis=1)
    else:
        expected = np.linalg.norm(asked[:, None] - every[None], axis=2).min(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_patchcore_keeps_its_coreset_and_adds_the_share_of_the_others():
    detector = PatchCore(PatchCoreOptions(coreset=0.2, reweight=True, projection=None), SPEC)
    first, more = drawn(300, 0), drawn(50, 1, away=9)
    before = detector.fit_vectors(first)
    after = detector.extended(more, before)
    torch.testing.assert_close(after["bank"][:60], before["bank"])
    assert len(after["bank"]) == len(after["around"]) == 70
    known = {row.tobytes() for row in more}
    assert {row.tobytes() for row in after["bank"][60:].numpy()} <= known
    bank = after["bank"].numpy().astype(np.float64)
    nine = np.linalg.norm(bank[:, None] - bank[None], axis=2).argsort(axis=1)[:, :9]
    assert [{*row} for row in nine.tolist()] == [{*row} for row in after["around"].tolist()]


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_gaussian_is_that_of_all_vectors(shrinkage):
    first, more = drawn(400, 0), drawn(100, 1, away=2)  # a fifth of all
    asked = torch.from_numpy(drawn(30, 2))
    detector = Gaussian(GaussianOptions(shrinkage=shrinkage), SPEC)
    detector._about = {"vectors": 400}
    extended = detector.extended(more, detector.fit_vectors(first))
    whole = detector.fit_vectors(np.concatenate([first, more]))
    np.testing.assert_allclose(
        detector.distance(asked, extended), detector.distance(asked, whole), rtol=1e-3
    )
    # Many more count no more than a fifth.
    many = detector.extended(np.concatenate([more] * 20), detector.fit_vectors(first))
    for name in ("mean", "whitening"):
        torch.testing.assert_close(many[name], extended[name], rtol=1e-3, atol=1e-4)


def test_what_must_be_fitted_anew_says_so():
    for options in (GaussianOptions(shrinkage="ledoit-wolf"), GaussianOptions(shrinkage=1)):
        detector = Gaussian(options, SPEC)
        detector._about = {"vectors": 100}
        with pytest.raises(DetectorError, match="fitted anew"):
            detector.extended(drawn(10, 1), detector.fit_vectors(drawn(100, 0)))
    with pytest.raises(DetectorError, match="fitted anew"):
        NearestNeighbours(KnnOptions(candidates=3), SPEC).extended(drawn(10, 1), {})
