import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group
from sklearn.decomposition import sparse_encode

from support.feature_detectors import detector, distances, fitted_on_tiles, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors.dictionary import Dictionary, DictionaryOptions, sparse_code
from wsiad.testing import check_detector

PIXELS = {
    "backbone": "pixels",
    "backbone_args": {"patch": 5, "grey": True},
    "places": 4,
    "entries": 12,
}


def test_a_member_of_the_dictionary_is_zero_from_itself():
    healthy = mixed(60, 6)
    found = detector("dictionary", entries=9, neighbours=1, pca_components=None)
    bank = found.fit_vectors(healthy)["bank"]
    assert bank.shape == (9, 6)
    scores = distances(found, healthy, healthy)
    assert (scores < 1e-6).sum() == 9
    scaled = healthy / np.abs(healthy).sum(axis=1, keepdims=True)
    members = scaled[scores < 1e-6]
    np.testing.assert_allclose(scores, cdist(scaled, members).min(axis=1), atol=1e-6)


def test_a_dictionary_of_one_is_the_vector_nearest_to_the_mean():
    healthy, asked = mixed(60, 4), mixed(10, 4, seed=1)
    found = detector("dictionary", entries=1, normalise="none", pca_components=None)
    middle = healthy[np.argmin(((healthy - healthy.mean(axis=0)) ** 2).sum(axis=1))]
    expected = np.linalg.norm(asked - middle, axis=1)
    np.testing.assert_allclose(distances(found, healthy, asked), expected, rtol=1e-4)


def test_the_score_is_the_mean_distance_to_the_nearest_entries():
    healthy, asked = mixed(80, 5), mixed(10, 5, seed=1)
    found = detector("dictionary", entries=20, neighbours=3, normalise="l2", pca_components=None)
    fitted = found.fit_vectors(healthy)
    unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    projected = (unit - fitted["centre"].numpy()) @ fitted["matrix"].numpy()
    expected = np.sort(cdist(projected, fitted["bank"].numpy()), axis=1)[:, :3].mean(axis=1)
    np.testing.assert_allclose(distances(found, healthy, asked), expected, rtol=1e-4, atol=1e-6)


def test_codes_of_an_orthonormal_dictionary_are_soft_thresholds():
    rng = np.random.default_rng(0)
    entries = torch.from_numpy(ortho_group.rvs(6, random_state=1))
    signals = torch.from_numpy(rng.normal(size=(20, 6)))
    code = sparse_code(signals, entries, penalty=0.4).numpy()
    inner = (signals @ entries.T).numpy()
    expected = np.sign(inner) * np.maximum(np.abs(inner) - 0.4, 0)
    np.testing.assert_allclose(code, expected, atol=1e-12)


def test_codes_of_one_group_are_shrunk_twice():
    """The proximal step of the sum of both penalties: soft thresholds, then the length."""
    entries = torch.eye(5, dtype=torch.float64)
    signals = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 5)))
    group = torch.tensor([0, 0, 0, 1, 1])
    code = sparse_code(signals, entries, penalty=0.2, group_penalty=0.5, group=group).numpy()
    soft = np.sign(signals.numpy()) * np.maximum(np.abs(signals.numpy()) - 0.2, 0)
    for part in (slice(0, 3), slice(3, 5)):
        length = np.linalg.norm(soft[:, part], axis=1, keepdims=True)
        expected = soft[:, part] * np.maximum(1 - 0.5 / np.maximum(length, 1e-12), 0)
        np.testing.assert_allclose(code[:, part], expected, atol=1e-9)


def test_codes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(12, 8))
    entries /= np.linalg.norm(entries, axis=1, keepdims=True)
    signals = rng.normal(size=(15, 8))
    code = sparse_code(
        torch.from_numpy(signals), torch.from_numpy(entries), penalty=0.3, iterations=3000
    )
    expected = sparse_encode(signals, entries, algorithm="lasso_cd", alpha=0.3, max_iter=10_000)
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("density", ["kde", "gaussian"])
def test_what_the_dictionary_does_not_express_is_strange(density):
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(3, 20))
    atoms -= atoms.mean(axis=1, keepdims=True)

    def built(count):
        weights = rng.uniform(1, 2, size=(count, 3)) * (
            np.arange(3) == rng.integers(0, 3, (count, 1))
        )
        return (weights @ atoms + 0.05 * rng.normal(size=(count, 20)) + 5).astype(np.float32)

    found = detector("dictionary", by="sparse", entries=3, density=density, passes=20)
    healthy = built(300)
    other = rng.normal(size=(30, 20)).astype(np.float32)
    scores = distances(found, healthy, np.concatenate([built(30), other]))
    assert np.median(scores[30:]) > np.quantile(scores[:30], 0.9)


def test_the_finest_level_is_expressed_by_the_entries_of_all(tmp_path):
    found = fitted_on_tiles(
        "dictionary",
        tmp_path,
        by="sparse",
        levels="groups",
        layers=("level0", "level1"),
        passes=1,
        iterations=5,
        **PIXELS,
    )
    tensors = found.state().tensors
    assert tensors["fitted.entries"].shape == (24, 25)
    assert tensors["fitted.group"].tolist() == [0] * 12 + [1] * 12
    assert tensors["fitted.density.bank"].shape[1] == 3
    lengths = tensors["fitted.entries"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(24))


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="levels: groups is for by: sparse"):
        DictionaryOptions(levels="groups")
    with pytest.raises(DetectorError, match="several layers of the same width"):
        fitted_on_tiles("dictionary", tmp_path, by="sparse", levels="groups", **PIXELS)
    with pytest.raises(
        DetectorError, match="20 healthy vectors are too few for a dictionary of 500"
    ):
        detector("dictionary").fit_vectors(mixed(20, 3))
    with pytest.raises(DetectorError, match="all flat"):
        detector("dictionary", by="sparse").fit_vectors(np.ones((20, 3), np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": "sparse"},
        {"by": "sparse", "density": "gaussian"},
        {"by": "sparse", "levels": "groups", "layers": ["level0", "level1"]},
    ],
)
def test_option_families_conform(options):
    check_detector(Dictionary, {**PIXELS, "passes": 1, "iterations": 20, **options}, input_px=32)
