"""What holds of every detector on frozen features."""

import numpy as np
import pytest
import torch
from feature_detectors import CPU, TILES, detector, fitted_on_tiles
from safetensors.torch import load, save

from wsiad.detector import State
from wsiad.detectors import _vectors, registry
from wsiad.detectors._features import FeatureDetector
from wsiad.errors import DetectorError

NAMES = tuple(n for n in registry.names() if issubclass(registry.load(n), FeatureDetector))
# Few places and vectors: the networks need most of the time.
OPTIONS = {"pca": {"components": 8}, "ocsvm": {"nu": 0.5}, "kde": {"pca_components": 8}}


def fitted(name, folder, **more):
    options = {"places": 2, "layers": ["features.4"], **OPTIONS.get(name, {}), **more}
    return fitted_on_tiles(name, folder, **options)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_through_safetensors(name, tmp_path):
    found = fitted(name, tmp_path)
    state = found.state()
    kept = load(save(state.tensors))
    again = type(found)(found.options, found.spec)
    again.load_state(State(kept, state.values), CPU)
    places = found.score_places(TILES[:5])
    assert places.shape == (5, 2, 2)
    assert places.dtype == np.float32
    assert np.isfinite(places).all()
    np.testing.assert_array_equal(again.score_places(TILES[:5]), places)
    flat = np.full((1, 64, 64, 3), 255, np.uint8)
    assert found.score(flat)[0] > np.median(found.score(TILES))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_detector(name, tmp_path):
    first, second = fitted(name, tmp_path).state(), fitted(name, tmp_path).state()
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_state_of_something_else_is_refused(name, tmp_path):
    state = fitted(name, tmp_path).state()
    lost = next(key for key in state.tensors if key.startswith("fitted."))
    for tensors in ({}, {k: t for k, t in state.tensors.items() if k != lost}):
        with pytest.raises(DetectorError, match="not that of this detector"):
            detector(name, places=2, layers=["features.4"]).load_state(State(tensors, {}), CPU)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_change_nothing(name, tmp_path, monkeypatch):
    found = fitted(name, tmp_path)
    whole = found.score_places(TILES[:3])
    monkeypatch.setattr(_vectors, "_BLOCK_VALUES", 50)
    np.testing.assert_allclose(found.score_places(TILES[:3]), whole, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_vector_is_too_few_or_singular(name):
    with pytest.raises(DetectorError, match=r"too few|singular") as error:
        if name == "knn":
            detector(name, neighbours=2).fit_vectors(np.ones((1, 8), np.float32))
        detector(name).fit_vectors(np.ones((1, 8), np.float32))
    assert error.value.remedy
