"""Which detectors embed and reconstruct, and that they show what they score by."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support.feature_detectors import CPU, TILES, fitted_on_tiles
from support.labelled import PX, anomalies, healthy
from support.labelled import tiles as labelled_tiles
from support.tiny_detectors import HEALTHY, SMOOTH, TINY, context, fitted
from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.detectors.deep_geo import source_pixels
from wsiad.learning.detector import Embeds, FitContext, InputSpec, Reconstructs, State

ASKED = SMOOTH[:5, 4:36, 4:36]
DPA = {"latent_px": 8, "channels": 3, "batch": 6, "val_interval": 4}


def dpa(folder, **options):
    cls = registry.load("dpa")
    found = cls(
        cls.Options(**{**DPA, "layers": {"relu1_2": 2.0, "relu2_1": 1.0}, **options}),
        InputSpec(TilePx(32), Mpp(1)),
    )
    found.fit(HEALTHY, context(folder, steps=4))
    return found


def test_every_detector_embeds_and_some_reconstruct():
    spec = InputSpec(TilePx(64), Mpp(1))
    found = {name: cls(cls.Options(), spec) for name in registry.names()
             for cls in [registry.load(name)]}  # fmt: skip
    assert {name for name, d in found.items() if not isinstance(d, Embeds)} == set()
    some = {n for n, d in found.items() if isinstance(d, Reconstructs)}
    assert some == {
        "diffusion",
        "dpa",
        "fixed-point-gan",
        "gan",
        "ganomaly",
        "piad",
        "reconstruction",
    }
    page = (Path(__file__).parents[2] / "docs/explain.md").read_text("utf-8")
    table = page.partition("`reconstruct`, `difference` |\n|---|---|---|\n")[2].partition("\n\n")[0]
    shown = [line.split(" | ") for line in table.splitlines()]
    told = {name.strip("|` ") for line in shown if line[2] != "– |" for name in line[0].split(",")}
    assert told == some
    assert {7: "seven"}[len(some)] in page


@pytest.mark.parametrize("name", sorted(TINY))
def test_nothing_is_embedded_before_the_fit(name):
    cls = registry.load(name)
    with pytest.raises(DetectorError, match="not fitted"):
        cls(cls.Options(), InputSpec(TilePx(64), Mpp(1))).embed(TILES)


def test_frozen_features_are_the_mean_of_what_is_compared(tmp_path):
    found = fitted_on_tiles("knn", tmp_path, places=2)
    x = torch.from_numpy(TILES).permute(0, 3, 1, 2).float() / 255
    network = found._backbone
    whole = network.network((x - network.mean) / network.std)["features.4"]
    # 2 × 2 equal places of an even map: their mean is that of the map.
    rows = whole.shape[2] // 2 * 2
    expected = nn.functional.adaptive_avg_pool2d(whole, 2).mean(dim=(2, 3)).detach().numpy()
    assert rows > 2
    embedded = found.embed(TILES)
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-5)
    assert found.embed(TILES[:0]).shape == (0, expected.shape[1])


def test_vectors_of_a_whole_tile_score_as_the_tile_does(tmp_path):
    found = fitted_on_tiles("knn", tmp_path, places=1)
    scores = found.distance(torch.from_numpy(found.embed(TILES)), found._fitted).numpy()
    np.testing.assert_array_equal(scores, found.score(TILES))


def test_labelled_heads_embed_what_they_score(tmp_path):
    cls = registry.load("deep-sad")
    found = cls(cls.Options(steps=5, places=4), InputSpec(TilePx(PX), Mpp(1)))
    found.fit(healthy(), FitContext(seed=1, device=CPU, folder=tmp_path, weights="random",
                                    quiet=True, anomalies=anomalies()))  # fmt: skip
    asked = labelled_tiles(70, seed=5)  # more than a batch
    vectors = found.embed(asked)
    scores = found.distance(torch.from_numpy(vectors), found._fitted).numpy()
    np.testing.assert_allclose(scores, found.score(asked), rtol=1e-5)


def test_the_ball_is_around_what_deep_svdd_embeds(tmp_path):
    found = fitted("deep-svdd", tmp_path, steps=3)
    away = found.embed(ASKED) - found.network().centre.numpy()
    np.testing.assert_allclose(np.square(away).sum(axis=1), found.score(ASKED), rtol=1e-4)


def test_deep_geo_answers_by_what_it_embeds(tmp_path):
    found = fitted("deep-geo", tmp_path, steps=3)
    last = found.network().classifier.layers[-1]
    logits = last(torch.from_numpy(found.embed(ASKED))).log_softmax(dim=1).detach().numpy()
    x = torch.from_numpy(ASKED).permute(0, 3, 1, 2).float() / 255
    still = (source_pixels(8) == np.arange(64)).all(axis=1).argmax()  # moves no pixel
    with torch.no_grad():
        expected = found.network().log_answers(x, int(still)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_distilled_detectors_embed_the_teachers_directions(tmp_path):
    found = fitted("student-teacher", tmp_path, steps=3)
    x = torch.from_numpy(ASKED).permute(0, 3, 1, 2).float() / 255
    teacher = found.network().teacher
    expected = []
    for maps in teacher.maps(teacher.normalised(x)):
        maps = maps.detach().numpy().astype(np.float64)
        lengths = np.sqrt(np.square(maps).sum(axis=1, keepdims=True))
        expected.append((maps / np.maximum(lengths, 1e-12)).mean(axis=(2, 3)))
    np.testing.assert_allclose(found.embed(ASKED), np.concatenate(expected, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", ["dpa", "piad"])
def test_reconstructions_are_the_networks_own(tmp_path, name):
    found = dpa(tmp_path) if name == "dpa" else fitted(name, tmp_path, steps=4)
    state = found.state().tensors
    # An autoencoder of its own, filled from the stored tensors.
    network = type(found.judged()[0])(found.options.shape(32))
    prefix = "autoencoder."
    network.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    x = torch.from_numpy(ASKED.astype(np.float32) / 255 * 2 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        made = network(x).permute(0, 2, 3, 1).numpy()
    expected = np.clip((made + 1) / 2 * 255, 0, 255)
    pixels = found.reconstruct(ASKED)
    assert (pixels.dtype, pixels.shape) == (np.uint8, ASKED.shape)
    assert np.abs(pixels - expected).max() <= 0.501
    difference = found.difference(ASKED)
    np.testing.assert_array_equal(found.pool(difference), found.score(ASKED))


def test_perceptual_features_are_normalised_and_weighted(tmp_path):
    found = dpa(tmp_path)
    _, distance, _ = found.judged()
    x = torch.from_numpy(ASKED).permute(0, 3, 1, 2).float() / 255
    features = distance.network(x)
    expected = []
    for layer, share in (("relu1_2", 2 / 3), ("relu2_1", 1 / 3)):
        maps, about = features[layer].numpy(), distance.statistics[layer]
        deviation = np.where(about.std.numpy() > 0, about.std.numpy(), 1)
        normalised = (maps.mean(axis=(2, 3)) - about.mean.numpy()) / deviation
        expected.append(normalised * share / np.sqrt(maps.shape[1]))
    np.testing.assert_allclose(
        found.embed(ASKED), np.concatenate(expected, axis=1), rtol=1e-3, atol=1e-5
    )


def test_without_a_perceptual_network_the_latent_is_embedded(tmp_path):
    found = dpa(tmp_path, layers={}, image_weight=1.0)
    x = torch.from_numpy(ASKED).permute(0, 3, 1, 2).float() / 127.5 - 1
    latent = found.judged()[0].encoder(x).detach().numpy().reshape(len(ASKED), -1)
    np.testing.assert_allclose(found.embed(ASKED), latent, rtol=1e-4, atol=1e-5)


def test_a_loaded_detector_embeds_the_same(tmp_path):
    found = dpa(tmp_path)
    again = type(found)(found.options, found.spec)
    again.load_state(State(found.state().tensors, found.state().values), CPU)
    np.testing.assert_array_equal(again.embed(ASKED), found.embed(ASKED))
    np.testing.assert_array_equal(again.reconstruct(ASKED), found.reconstruct(ASKED))


def test_the_identity_of_features_follows_all_that_changes_them(tmp_path):
    (plain, enlarged, gaussian, other) = (
        fitted_on_tiles("knn", tmp_path, places=2),
        fitted_on_tiles("knn", tmp_path, places=2, magnify=1.5),
        fitted_on_tiles("gaussian", tmp_path, places=2),
        fitted_on_tiles("knn", tmp_path, places=2, seed=2),
    )
    identity = plain.feature_identity()
    assert identity == gaussian.feature_identity()  # the method plays no part
    assert identity != enlarged.feature_identity()
    assert identity != other.feature_identity()  # other random weights
    assert json.loads(json.dumps(identity)) == identity
    again = registry.load("knn")(plain.options, plain.spec)
    again.load_state(plain.state(), CPU)
    assert again.feature_identity() == identity
    with pytest.raises(DetectorError, match="not fitted"):
        registry.load("knn")(plain.options, plain.spec).feature_identity()
