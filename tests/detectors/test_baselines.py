"""What holds of every detector on frozen features."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from support.feature_detectors import CPU, TILES, detector, fitted_on_tiles
from wsiad.core.errors import DetectorError
from wsiad.detectors import _vectors
from wsiad.learning.detector import State

# Of 96 vectors of noise, fewer components than by default and a larger nu.
OPTIONS = {
    "deep-if": {},
    "gaussian": {},
    "gmm": {},
    "kde": {"pca_components": 8},
    "knn": {},
    "ocsvm": {"nu": 0.5},
    "padim": {},
    "patchcore": {},
    "pca": {"components": 8},
    "svdd": {},
}
SAME = {"places": 2, "layers": ["features.4"]}


@pytest.fixture(scope="module", params=OPTIONS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def found(name, tmp_path_factory):
    return fitted_on_tiles(name, tmp_path_factory.mktemp(name), **SAME, **OPTIONS[name])


def again(found, tensors):
    """Return the detector that a state makes."""
    other = type(found)(found.options, found.spec)
    other.load_state(State(tensors, found.state().values), CPU)
    return other


def test_state_round_trip_through_safetensors(found):
    places = found.score_places(TILES[:5])
    assert (places.shape, places.dtype) == ((5, 2, 2), np.float32)
    assert np.isfinite(places).all()
    loaded = again(found, load(save(found.state().tensors)))
    np.testing.assert_array_equal(loaded.score_places(TILES[:5]), places)


def test_white_is_stranger_than_what_was_fitted_on(found):
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    assert found.score(white)[0] > found.score(TILES).max()


def test_same_seed_same_detector(name, found, tmp_path):
    first = found.state().tensors
    second = fitted_on_tiles(name, tmp_path, **SAME, **OPTIONS[name]).state().tensors
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_state_of_something_else_is_refused(found):
    state = found.state().tensors
    of_fit = [key for key in state if key.startswith("fitted.")]
    for lost in of_fit:
        with pytest.raises(DetectorError, match="not that of this detector"):
            again(found, {key: tensor for key, tensor in state.items() if key != lost})
    with pytest.raises(DetectorError, match="not that of this detector"):
        again(found, {})


def test_blocks_change_nothing(found, monkeypatch):
    whole = found.score_places(TILES[:3])
    monkeypatch.setattr(_vectors, "_BLOCK_VALUES", 50)
    np.testing.assert_allclose(found.score_places(TILES[:3]), whole, rtol=2e-4, atol=2e-5)


def test_one_vector_is_refused(name):
    options = {"neighbours": 2} if name == "knn" else {}
    with pytest.raises(DetectorError, match=r"too few|singular") as error:
        detector(name, **options).fit_vectors(np.ones((1, 8), np.float32))
    assert error.value.remedy
