import numpy as np
import pytest
import torch

from support.feature_detectors import detector, distances, fitted_on_tiles
from wsiad.core.errors import ConfigError, DetectorError, WeightsError
from wsiad.detectors import registry
from wsiad.networks.features import BackboneFeatures, settle
from wsiad.testing import check_detector

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pixels(*layers, places=4, **arguments):
    return BackboneFeatures("pixels", layers or ("level0",), places, {}, arguments=arguments)


def test_patches_that_fill_a_tile_are_its_pixels():
    found = pixels(patch=8)(IMAGES).numpy()
    assert found.shape == (3, 4, 4, 3 * 64)
    own = (IMAGES.numpy() - 0.5) / 0.5
    for row, column in ((0, 0), (2, 3)):
        patch = own[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(found[:, row, column], patch.reshape(3, -1))


def test_a_patch_over_the_border_is_mirrored_and_lies_in_the_middle_of_its_place():
    found = pixels(patch=11)(IMAGES).numpy().reshape(3, 4, 4, 3, 11, 11)
    padded = np.pad((IMAGES.numpy() - 0.5) / 0.5, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")
    # The middle of the first place is 4; 11 px around it begin at −1.5, rounded to −1.
    np.testing.assert_array_equal(found[:, 0, 0], padded[:, :, 4:15, 4:15])
    np.testing.assert_array_equal(found[:, 3, 1], padded[:, :, 28:39, 12:23])


def test_levels_are_halved_images_and_pixels_are_averaged():
    half = IMAGES.reshape(3, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    both = pixels("level0", "level1", patch=4)(IMAGES)
    torch.testing.assert_close(both[..., 48:], pixels(patch=4)(half))
    means = pixels(patch=1)(IMAGES).permute(0, 3, 1, 2)
    expected = torch.nn.functional.avg_pool2d((IMAGES - 0.5) / 0.5, 8)
    torch.testing.assert_close(means, expected)
    grey = pixels(patch=1, grey=True)(IMAGES)[..., 0]
    torch.testing.assert_close(grey, expected.mean(dim=1))


def test_projections_keep_lengths_and_follow_their_seed():
    plain = pixels(patch=8)(IMAGES).flatten(0, 2)
    found = pixels(patch=8, projections=4000)(IMAGES).flatten(0, 2)
    torch.testing.assert_close(found.norm(dim=1), plain.norm(dim=1), rtol=0.06, atol=0)
    again = pixels(patch=8, projections=4000, seed=0)(IMAGES).flatten(0, 2)
    assert torch.equal(again, found)
    assert not torch.equal(pixels(patch=8, projections=4000, seed=1)(IMAGES).flatten(0, 2), found)


def test_identity_states_the_defaults():
    assert pixels().identity() == pixels(patch=8, seed=0, grey=False).identity()
    assert pixels(patch=7).identity() != pixels().identity()


@pytest.mark.parametrize(
    ("layers", "arguments", "error", "match"),
    [
        (("layer1",), {}, DetectorError, "pixels has no layer 'layer1'"),
        (("level6",), {}, DetectorError, "level0, level1"),
        (("level0",), {"patch": 0}, ConfigError, "backbone_args of pixels"),
        (("level0",), {"pach": 3}, ConfigError, "pach"),
        (("level3",), {}, DetectorError, "level3 of pixels has 4 px, fewer than its patches of 8"),
    ],
)
def test_bad_layers_and_arguments(layers, arguments, error, match):
    with pytest.raises(error, match=match):
        pixels(*layers, **arguments)(IMAGES)


def test_a_file_of_weights_is_refused():
    assert settle("pixels", None, seed=0).weights.tensors == {}
    with pytest.raises(WeightsError, match="has no weights, and imagenet was requested"):
        settle("pixels", "imagenet", seed=0)


def test_a_student_of_pixels_is_refused(tmp_path):
    with pytest.raises(DetectorError, match="no network that could be trained"):
        fitted_on_tiles("student-teacher", tmp_path, backbone="pixels")


@pytest.mark.parametrize("name", ["gaussian", "knn", "kde", "padim", "pca", "gmm", "deep-if"])
def test_methods_on_frozen_features_conform_on_pixels(name):
    options = {
        "backbone": "pixels",
        "layers": ["level0", "level1"],
        "backbone_args": {"patch": 7, "projections": 10},
        "places": 4,
    }
    check_detector(registry.load(name), options, input_px=32)


def test_one_gaussian_of_pixels_is_gaussian(tmp_path):
    """TEXEM and compressed sensing with one Gaussian: −log p = d² / 2 + a constant."""
    options = {"backbone": "pixels", "backbone_args": {"patch": 9, "projections": 8}}
    one = fitted_on_tiles("gmm", tmp_path, gaussians=1, shrinkage=0.2, **options)
    other = fitted_on_tiles("gaussian", tmp_path, shrinkage=0.2, **options)
    tiles = np.random.default_rng(5).integers(0, 200, (4, 64, 64, 3), dtype=np.uint8)
    offset = one.score_places(tiles) - other.score_places(tiles) ** 2 / 2
    np.testing.assert_allclose(offset, offset[0, 0, 0], rtol=1e-3)


@pytest.mark.parametrize("how", ["sum", "max"])
def test_a_mixture_for_each_level(how, tmp_path):
    shared = {"gaussians": 2, "shrinkage": 0.2, "places": 4, "backbone": "pixels"}
    shared["backbone_args"] = {"patch": 5, "projections": 6}
    both = fitted_on_tiles("gmm", tmp_path, layers=("level0", "level1"), mixtures=how, **shared)
    single = [fitted_on_tiles("gmm", tmp_path, layers=(n,), **shared) for n in ("level0", "level1")]
    tiles = np.random.default_rng(5).integers(0, 200, (4, 64, 64, 3), dtype=np.uint8)
    levels = np.stack([one.score_places(tiles) for one in single])
    expected = levels.sum(axis=0) if how == "sum" else levels.max(axis=0)
    np.testing.assert_allclose(both.score_places(tiles), expected, rtol=1e-4)


def test_a_mixture_for_each_layer_needs_layers():
    with pytest.raises(DetectorError, match="needs the layers of a network"):
        distances(detector("gmm", mixtures="sum"), np.zeros((20, 3), np.float32), np.zeros((1, 3)))
