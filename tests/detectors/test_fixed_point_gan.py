"""Fixed-point GAN: losses by hand, fixed points, sizes, and a fit that is killed."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from support.tiny_detectors import HEALTHY, SMOOTH, context
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors._end_to_end import LabelledWindows
from wsiad.detectors.fixed_point_gan import (
    DomainBatch,
    FixedPointGan,
    FixedPointGanOptions,
    TranslationGame,
)
from wsiad.learning.checkpoint import CHECKPOINT
from wsiad.learning.detector import AnomalousTiles, AnomalyType, FitContext, InputSpec
from wsiad.learning.loop import Training
from wsiad.networks.conv_stack import seeded
from wsiad.networks.translator import (
    DomainCritic,
    Translator,
    domain_critic_shape,
    translator_shape,
)
from wsiad.store.dataset import ArrayTiles

TINY = {"width": 2, "blocks": 1, "critic_width": 3, "critic_levels": 2, "batch": 4,
        "val_interval": 4}  # fmt: skip
STRANGE = 255 - SMOOTH[:8]


def anomalies(tiles=STRANGE):
    return AnomalousTiles((AnomalyType("strange", ArrayTiles(tiles), ("a",) * len(tiles)),))


def detector(**given):
    options = build(FixedPointGanOptions, {**TINY, **given}, source="test")
    return FixedPointGan(options, InputSpec(TilePx(32), Mpp(1)))


def fitted(folder, steps=5, strange=STRANGE, **given):
    found = detector(**given)
    folder.mkdir(exist_ok=True)
    found.fit(HEALTHY, replace(context(folder, steps), anomalies=anomalies(strange)))
    return found


def game(**given):
    options = build(FixedPointGanOptions, {**TINY, **given}, source="test")
    critic = seeded(lambda: DomainCritic(domain_critic_shape(32, width=3, levels=2)), 1)
    translator = seeded(lambda: Translator(translator_shape(32, width=2, blocks=1)), 1)
    there = FitContext(1, torch.device("cpu"), Path(), anomalies=anomalies())
    strange = LabelledWindows(there, 32)
    return TranslationGame(translator, critic, options=options, anomalous=strange, seed=1)


def batch():
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return DomainBatch(x, torch.tensor([1.0, 1, 0, 0]), np.random.default_rng(0))


class Painted(nn.Module):
    """A decoder that changes each image in the same way, whatever the translator has seen."""

    def __init__(self, value, where=np.s_[:, :]):
        super().__init__()
        self.change = torch.zeros(3, 32, 32)
        self.change[(slice(None), *where)] = value

    def forward(self, features):
        return self.change.expand(len(features), 3, 32, 32)


def test_losses_of_the_translator_are_those_of_the_paper():
    found = game()
    with torch.no_grad():
        total, change = found.translator_loss(batch())
        x, own, _ = batch()
        entropy, expected = functional.binary_cross_entropy_with_logits, 0
        for domain in (1 - own, own):
            made = found.translator(x, domain)
            judged = found.critic.critic(made)
            features = found.critic.critic.encoder.features(made)[-1]
            named = (features * found.critic.domain.weight).sum(dim=(1, 2, 3))
            back = functional.l1_loss(found.translator(made, own), x)
            expected = expected - judged.mean() + entropy(named, domain) + 10 * back
        same = functional.l1_loss(found.translator(x, own), x)
    assert judged.shape == (4 * 8 * 8,)
    torch.testing.assert_close(change, same)
    torch.testing.assert_close(total, expected + 10 * same)


def test_loss_of_the_critic_is_of_the_other_domain_and_of_the_names_of_tiles():
    found = game(game={"loss": "lsgan"}, domain_weight=3.0)
    x, own, _ = batch()
    with torch.no_grad():
        made = found.translator(x, 1 - own)
        real, fake = found.critic.critic(x), found.critic.critic(made)
        plain = ((real - 1).square().mean() + fake.square().mean()) / 2
        names = functional.binary_cross_entropy_with_logits(found.critic(x)[1], own)
    loss = found.critic_loss(batch())
    torch.testing.assert_close(loss.detach(), plain + 3 * names)
    loss.backward()
    assert all(p.grad is None for p in found.translator.parameters())
    assert all(p.grad is not None for p in found.critic.parameters())


def test_what_is_not_changed_scores_zero():
    found = detector()
    tiles = SMOOTH[:3, :32, :32]
    found._network = network = found._untrained(1).eval()
    assert (found.score(tiles) > 0).all()
    with torch.no_grad():
        network.decoder.out[0].weight.zero_()
    assert found.score(tiles).tolist() == [0.0] * 3
    assert np.array_equal(found.reconstruct(tiles), tiles)
    network.decoder = Painted(-0.25)
    np.testing.assert_allclose(found.score_map(tiles), 0.25, rtol=1e-5)
    assert found.score_map(tiles).shape == (3, 8, 8)


def test_a_change_is_scored_where_it_is():
    found = detector(places=4)
    found._network = found._untrained(1).eval()
    found._network.decoder = Painted(0.5, np.s_[8:16, 24:])
    places = found.score_map(SMOOTH[:1, :32, :32])[0]
    assert places[1, 3] == pytest.approx(0.5)
    assert places.sum() == pytest.approx(0.5)


def test_the_domain_that_is_asked_for_counts():
    network = seeded(lambda: Translator(translator_shape(32, width=2, blocks=1)), 1).eval()
    x = batch().x
    both = [network(x, torch.full((4,), value)) for value in (0.0, 1.0)]
    assert not torch.allclose(*both)
    mixed = network(x, torch.tensor([0.0, 1, 0, 1]))
    torch.testing.assert_close(mixed[1], both[1][1])
    torch.testing.assert_close(mixed[2], both[0][2])


def test_networks_have_the_sizes_of_their_formulas():
    w, deep = 64, 256
    pyramid = 16 * (w * 2 * w + 2 * w * deep)
    blocks = 3 * (2 * 9 * deep**2 + 2 * 2 * deep)
    encoder = 9 * 4 * w + 2 * w + pyramid + 2 * (2 * w + deep) + blocks
    decoder = blocks + pyramid + 2 * (2 * w + w) + 49 * w * 3
    found = Translator(translator_shape(64, width=64, blocks=3))
    assert sum(p.numel() for p in found.parameters()) == encoder + decoder
    widths = (3, 64, 128, 256, 512, 1024)
    critic = sum(16 * a * b + b for a, b in pairwise(widths))
    found = DomainCritic(domain_critic_shape(64, width=64, levels=5))
    assert sum(p.numel() for p in found.parameters()) == critic + 1024 + 1 + 1024 * 4


def test_a_step_sees_as_many_anomalous_tiles_as_healthy_ones():
    found, windows = game(), torch.from_numpy(SMOOTH[:6, :32, :32])
    seen = found.batch(windows, 3)
    assert seen.healthy.tolist() == [1.0] * 6 + [0.0] * 6
    assert torch.equal(seen.x, found.batch(windows, 3).x)
    assert not torch.equal(seen.x[6:], found.batch(windows, 4).x[6:])
    darkest = STRANGE.min() / 127.5 - 1
    assert (seen.x[6:] >= darkest - 1e-6).all()
    assert not torch.equal(seen.x[:6], seen.x[6:])


def test_a_killed_fit_ends_like_one_that_was_not(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole", 7)
    taken, step = [], Training._step

    def dying(self, tiles):
        taken.append(1)
        if len(taken) == 6:
            raise KeyboardInterrupt
        step(self, tiles)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "killed", 7)
    resumed = fitted(tmp_path / "killed", 7)
    ends = [load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    tiles = SMOOTH[:3, :32, :32]
    np.testing.assert_array_equal(whole.score_map(tiles), resumed.score_map(tiles))
    with pytest.raises(RunError, match="another anomalies"):
        fitted(tmp_path / "killed", 8, strange=STRANGE[:4])


def test_it_needs_anomalous_tiles_that_are_large_enough(tmp_path):
    with pytest.raises(DetectorError, match="learns from labelled anomalous tiles"):
        detector().fit(HEALTHY, context(tmp_path))
    with pytest.raises(DetectorError, match="24 px are smaller"):
        fitted(tmp_path, strange=STRANGE[:, :24, :24])
    with pytest.raises(DetectorError, match="5 × 5 places"):
        detector(places=5)._untrained(0)
    with pytest.raises(DetectorError, match="halved"):
        fitted(tmp_path / "small", critic_levels=6)


@pytest.mark.parametrize("name", ["blocks", "critic_levels"])
def test_a_network_of_absurd_depth_is_refused_before_its_shape_is_made(name):
    with pytest.raises(ConfigError, match=name):
        detector(**{name: 10**12})
