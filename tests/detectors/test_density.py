import numpy as np
import pytest
import torch

from support.tiny_detectors import HEALTHY, SMOOTH, context
from wsiad.core.config import build
from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.density import Density, DensityOptions
from wsiad.learning.detector import HealthyTiles, InputSpec
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import check_detector

PATCHES = {
    "backbone": "pixels",
    "backbone_args": {"patch": 5, "projections": 6},
    "places": 4,
    "layers": ["level0"],
}
IMAGE = {
    "backbone": "pixels",
    "backbone_args": {"patch": 1},
    "layers": ["level0"],
    "grid": "layers",
}
NETWORK = {"layers": ["features.3", "features.6"], "places": 4}
FAMILIES = {
    "flow": {**PATCHES, "steps": 2},
    "flow of the image": {**IMAGE, "steps": 2, "squeezes": 1, "kernels": [3]},
    "fastflow": {
        **NETWORK,
        "grid": "layers",
        "standardise": "tile",
        "steps": 2,
        "kernels": [3, 1],
        "hidden_ratio": 0.1,
        "score": "probability",
    },
    "dagmm": {**PATCHES, "model": "dagmm", "widths": [5], "code": 2, "gaussians": 2},
    "glow": {**IMAGE, "model": "glow", "steps": 1, "scales": 2, "widths": [4]},
    "glow of places": {**PATCHES, "model": "glow", "steps": 1, "scales": 1, "widths": [4]},
    "dagmm of the image": {
        **IMAGE,
        "model": "dagmm",
        "autoencoder": "conv",
        "widths": [3, 4],
        "code": 2,
        "gaussians": 2,
        "places": 1,
    },
    "dagmm of a network": {**NETWORK, "model": "dagmm", "widths": [6], "gaussians": 2},
    "dsebm": {**PATCHES, "model": "dsebm", "widths": [7, 5]},
    "dsebm of the image": {
        **IMAGE,
        "model": "dsebm",
        "widths": [3],
        "kernels": [3],
        "stride": 2,
        "dense": 4,
        "score": "reconstruction",
        "standardise": "none",
    },
}
TINY = {"batch": 6, "val_interval": 4, "log_interval": 2}


def detector(options):
    built = build(DensityOptions, {**TINY, **options})
    return Density(built, InputSpec(TilePx(32), Mpp(1)))


def fitted(options, folder, *, steps=5, tiles=HEALTHY):
    folder.mkdir(exist_ok=True)
    found = detector(options)
    found.fit(tiles, context(folder, steps))
    return found


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_option_families_conform(options):
    check_detector(Density, {**options, "batch": 6}, input_px=32)


@pytest.mark.parametrize(
    "name", ["flow of the image", "glow", "dagmm", "dagmm of the image", "dsebm"]
)
def test_a_killed_training_ends_with_the_same_weights(name, tmp_path, monkeypatch):
    whole = fitted(FAMILIES[name], tmp_path / "whole", steps=9).state()
    fitted(FAMILIES[name], tmp_path / "killed", steps=4)
    again = fitted(FAMILIES[name], tmp_path / "killed", steps=9).state()
    assert whole.tensors.keys() == again.tensors.keys()
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, again.tensors[key]), key


def test_channels_are_standardised_by_healthy_tiles(tmp_path):
    tiles = HealthyTiles(ArrayTiles(SMOOTH[:20, :32, :32]), ArrayTiles(SMOOTH[20:, :32, :32]))
    found = fitted(FAMILIES["flow"], tmp_path / "run", tiles=tiles)
    windows = torch.from_numpy(SMOOTH[:20, :32, :32]).permute(0, 3, 1, 2).float() / 255
    maps = found.network()(windows)[1][0]
    mirrored = found.network()(windows.flip(2))[1][0]  # windows of the fit are flipped
    mean = (maps.mean(dim=(0, 2, 3)) + mirrored.mean(dim=(0, 2, 3))) / 2
    assert float(mean.abs().max()) < 0.3
    assert float((maps.std(dim=(0, 2, 3)) - 1).abs().max()) < 0.3


def test_standardised_features_count_up_to_a_limit(tmp_path):
    tiles = HealthyTiles(ArrayTiles(SMOOTH[:20, :32, :32]), ArrayTiles(SMOOTH[20:, :32, :32]))
    whole = fitted(FAMILIES["flow"], tmp_path / "whole", tiles=tiles, steps=1)
    options = FAMILIES["flow"] | {"most_deviations": 0.5}
    found = fitted(options, tmp_path / "run", tiles=tiles, steps=1)
    windows = torch.from_numpy(SMOOTH[:8, :32, :32]).permute(0, 3, 1, 2).float() / 255
    (expected,), (limited,) = (one.network()(windows)[1] for one in (whole, found))
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(limited, expected.clamp(-0.5, 0.5))


@pytest.mark.parametrize("name", ["flow of the image", "glow"])
def test_noise_of_pixels_is_as_wide_as_the_distance_of_two_values(name, tmp_path):
    found = fitted(FAMILIES[name] | {"standardise": "none"}, tmp_path / "run", steps=1)
    black, next_to_it = (found.network()(torch.full((1, 3, 32, 32), v / 255))[1][0] for v in (0, 1))
    (model,) = found._models(found.network())
    torch.testing.assert_close(next_to_it - black, torch.full_like(black, model._noise))


@pytest.mark.parametrize("name", ["dagmm", "dagmm of the image"])
def test_the_mixture_is_that_of_all_healthy_tiles(name, tmp_path):
    found = fitted(FAMILIES[name], tmp_path / "run")
    model = found.network().student.models[0]
    scores = found.score_places(SMOOTH[:4, :32, :32])
    ran = context(tmp_path / "run", 5)
    maps = [found.network()(part)[1][0] for part in found._healthy(HEALTHY, ran)]
    assert sum(len(part) for part in maps) == 20  # all of them, not those of the last batch
    model.settle([torch.cat(maps)])
    np.testing.assert_allclose(found.score_places(SMOOTH[:4, :32, :32]), scores, rtol=1e-4)


def test_a_trained_flow_finds_its_tiles_likelier_than_before(tmp_path):
    options = {**FAMILIES["flow"], "learning_rate": 0.01}
    before = fitted(options, tmp_path / "one", steps=1)
    after = fitted(options, tmp_path / "more", steps=40)
    asked = SMOOTH[:20, :32, :32]
    assert after.score(asked).mean() < before.score(asked).mean() - 0.3


def test_scores_of_other_models_are_refused():
    with pytest.raises(ValueError, match="score: reconstruction is for model: dsebm"):
        DensityOptions(score="reconstruction")
    with pytest.raises(ValueError, match="score: probability is for model: flow"):
        DensityOptions(model="dagmm", score="probability")


def test_tiles_that_are_all_alike_are_refused(tmp_path):
    flat = ArrayTiles(np.full((8, 32, 32, 3), 200, np.uint8))
    with pytest.raises(DetectorError, match="features are all alike"):
        fitted(FAMILIES["flow"], tmp_path / "run", tiles=HealthyTiles(flat, flat))


def test_a_convolutional_autoencoder_scores_the_complete_window(tmp_path):
    found = fitted(FAMILIES["dagmm of the image"], tmp_path / "run")
    model = found.network().student.models[0]
    asked = SMOOTH[:3, :32, :32]
    windows = torch.from_numpy(asked).permute(0, 3, 1, 2).float() / 255
    maps = found.network()(windows)[1][0]
    assert maps.shape == (3, 3, 32, 32)
    z, error = model.latent(maps)
    restored = model.decoder(model.encoder(maps))
    torch.testing.assert_close(error, (maps - restored).square().mean(dim=(1, 2, 3)))
    relative = (maps - restored).flatten(1).norm(dim=1) / maps.flatten(1).norm(dim=1)
    torch.testing.assert_close(z[:, 2], relative)
    scores = found.score_places(asked)
    assert scores.shape == (3, 1, 1)
    np.testing.assert_allclose(scores[:, 0, 0], model.scores(maps)[:, 0, 0].detach(), rtol=1e-4)


def test_glow_begins_with_its_first_batch_and_alike_each_time(tmp_path):
    options = {**FAMILIES["glow"], "standardise": "none"}
    one, other = (fitted(options, tmp_path / name, steps=1) for name in ("one", "other"))
    norms = [
        name for name in one.state().tensors if name.endswith(("norm.log_scale", "norm.shift"))
    ]
    assert len(norms) == 4
    for name in norms:
        tensor = one.state().tensors[name]
        assert torch.equal(tensor, other.state().tensors[name])
        assert float(tensor.abs().max()) > 0.05  # one step of 1e-3 alone does not move it so far
    assert one._first is None


def test_options_of_later_versions_leave_older_runs_equal():
    values = DensityOptions(model="dagmm").model_dump()
    assert not {"autoencoder", "scales"} & values.keys()
    assert DensityOptions(model="dagmm", autoencoder="conv").model_dump()["autoencoder"] == "conv"
    with pytest.raises(ValueError, match="autoencoder does nothing with model: flow"):
        DensityOptions(autoencoder="conv")
