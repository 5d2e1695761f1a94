import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from support.feature_detectors import detector, distances, mixed


@pytest.mark.parametrize("regularisation", [0.01, 0.0])
def test_distance_is_the_mahalanobis_distance_in_the_chosen_channels(regularisation):
    healthy, asked = mixed(300, 12), mixed(20, 12, seed=1)
    found = detector("padim", seed=4, channels=5, regularisation=regularisation)
    channels = found.fit_vectors(healthy)["channels"].numpy()
    assert len(set(channels)) == 5
    chosen = healthy[:, channels].astype(np.float64)
    inverse = np.linalg.inv(np.cov(chosen.T) + regularisation * np.eye(5))
    expected = [mahalanobis(v, chosen.mean(axis=0), inverse) for v in asked[:, channels]]
    np.testing.assert_allclose(distances(found, healthy, asked), expected, rtol=1e-4)


def test_channels_follow_the_seed_and_are_at_most_all():
    healthy = mixed(50, 12)

    def chosen(seed, channels=6):
        found = detector("padim", seed=seed, channels=channels)
        return found.fit_vectors(healthy)["channels"].tolist()

    assert chosen(0) == chosen(0) != chosen(1)
    assert chosen(0, channels=100) == list(range(12))


def test_channels_not_chosen_do_not_matter():
    healthy, asked = mixed(50, 12), mixed(5, 12, seed=1)
    found = detector("padim", channels=3)
    fitted = found.fit_vectors(healthy)
    others = np.setdiff1d(np.arange(12), fitted["channels"])
    changed = asked.copy()
    changed[:, others] = 1e6
    np.testing.assert_array_equal(
        distances(found, healthy, asked), distances(found, healthy, changed)
    )


def test_default_layers_are_three_depths():
    assert len(detector("padim").options.chosen_layers()) == 3
    layers = detector("padim", backbone="wide_resnet50_2").options.chosen_layers()
    assert layers == ("layer1", "layer2", "layer3")
    assert detector("padim", layers=["features.3"]).options.chosen_layers() == ("features.3",)
