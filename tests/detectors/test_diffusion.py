"""Diffusion: scores of its option families, closed forms, and resuming to the bit."""

import numpy as np
import pytest
import torch

from support.tiny_detectors import HEALTHY, context
from wsiad.core.config import build
from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import InputSpec
from wsiad.learning.loop import Training
from wsiad.testing import check_detector

TINY = {"widths": [8, 16], "blocks": 1, "attention_px": [], "batch": 4, "steps": 2,
        "val_interval": 4, "log_interval": 2}  # fmt: skip
FAMILIES = {
    "simplex ssim": {"noise": "simplex", "octaves": 2, "frequency": 0.1, "score": "ssim"},
    "perceptual": {"score": "perceptual", "layers": {"relu1_2": 1.0}},
    "several starts": {"start": [40, 200], "combine": "standardised", "dropout": 0.1},
}


def unfitted(**options):
    cls = registry.load("diffusion")
    return cls(build(cls.Options, {**TINY, **options}), InputSpec(TilePx(16), Mpp(1)))


def fitted(folder, steps=6, **options):
    folder.mkdir(exist_ok=True)
    detector = unfitted(**options)
    detector.fit(HEALTHY, context(folder, steps))
    return detector


@pytest.fixture(scope="module")
def tiles():
    return next(HEALTHY.stop.ordered(6))[:, :16, :16].copy()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_behaves_as_every_detector(family):
    check_detector(
        registry.load("diffusion"), {**TINY, **FAMILIES[family]}, input_px=16, max_steps=2
    )


def test_from_time_step_zero_nothing_is_strange(tmp_path, tiles):
    for score in ("l2", "ssim"):
        detector = fitted(tmp_path / score, steps=1, start=[0], score=score)
        assert np.abs(detector.score(tiles)).max() < 1e-6
        assert np.array_equal(detector.reconstruct(tiles), tiles)


def test_a_network_that_knows_the_noise_finds_nothing(tmp_path, tiles, monkeypatch):
    detector = fitted(tmp_path / "run", start=[300], steps=1)
    assert detector.score(tiles).min() > 1e-4
    whole = detector.network()
    monkeypatch.setattr(whole.network, "forward", lambda x, t: whole.noise.expand_as(x))
    assert np.abs(detector.score(tiles)).max() < 1e-8
    assert np.abs(detector.reconstruct(tiles).astype(int) - tiles).max() <= 1


def test_scores_of_several_starts_are_their_mean(tmp_path, tiles):
    both = fitted(tmp_path / "run", start=[40, 200])
    maps = []
    for start in (40, 200):
        both.options = both.options.model_copy(update={"start": (start,)})
        maps.append(both.score_map(tiles))
    both.options = both.options.model_copy(update={"start": (40, 200)})
    np.testing.assert_allclose(both.score_map(tiles), np.mean(maps, axis=0), rtol=1e-5)
    assert not np.allclose(maps[0], maps[1])


def test_vectors_are_what_the_network_first_sees_of_a_noisy_tile(tmp_path, tiles):
    found = fitted(tmp_path / "run", start=[200, 40])
    whole, seen = found.network().eval(), []
    whole.network.middle[-1].register_forward_hook(lambda module, given, out: seen.append(out))
    left = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:40])  # at the earlier start
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2).double() / 127.5 - 1
    noisy = left**0.5 * x + (1 - left) ** 0.5 * whole.noise
    with torch.no_grad():
        whole.network(noisy.float(), torch.full((len(tiles),), 40))
    expected = seen[0].mean(dim=(2, 3)).numpy()
    vectors = found.embed(tiles)
    assert vectors.shape == (len(tiles), TINY["widths"][-1])
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
    assert vectors.std(axis=0).min() > 1e-4  # they depend on the tile


def test_standardised_starts_are_zero_on_average_over_held_out_tiles(tmp_path):
    found = fitted(tmp_path / "run", start=[40, 200], combine="standardised")
    held_out = np.concatenate(list(HEALTHY.stop.ordered(64)))
    at = (held_out.shape[1] - 16) // 2
    scores = found.score(held_out[:, at : at + 16, at : at + 16])
    assert abs(float(scores.mean())) < 1e-3
    assert 0.5 < float(scores.std()) <= 1.0 + 1e-3


def test_a_killed_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole", steps=10, noise="simplex", octaves=1, dropout=0.2)
    step, count = Training._step, [0]

    def killed(self, tiles):
        count[0] += 1
        if count[0] > 6:
            raise KeyboardInterrupt
        step(self, tiles)

    monkeypatch.setattr(Training, "_step", killed)
    options = {"steps": 10, "noise": "simplex", "octaves": 1, "dropout": 0.2}
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "cut", **options)
    monkeypatch.setattr(Training, "_step", step)
    again = fitted(tmp_path / "cut", **options)
    for name, tensor in whole.state().tensors.items():
        assert torch.equal(tensor, again.state().tensors[name]), name


def test_learning_lowers_the_error_of_the_noise(tmp_path):
    first = fitted(tmp_path / "one", steps=1, learning_rate=3e-3)
    later = fitted(tmp_path / "many", steps=40, learning_rate=3e-3, ema_decay=0.5)
    windows = torch.from_numpy(next(HEALTHY.stop.ordered(6))[:, :16, :16].copy())
    losses = [
        float(d._losses(d.network().network.eval(), windows, (9, 9)).mean()) for d in (first, later)
    ]
    assert losses[0] == pytest.approx(1, abs=0.2)  # it begins by predicting nothing
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": [2000]}, "after the last"),
        ({"start": [5, 5]}, "twice"),
        ({"start": [0, 5], "combine": "standardised"}, "no deviation"),
        ({"noise": "perlin"}, "noise"),
        ({"octaves": 2}, "octaves does nothing with noise: gauss"),
        ({"layers": {"relu1_2": 1.0}}, "layers does nothing with score: l2"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        unfitted(**options)
