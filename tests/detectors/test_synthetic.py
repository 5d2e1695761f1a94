import numpy as np
import pytest
import torch

from support.tiny_detectors import CPU
from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.contrastive.pretexts import ShiftEncoder, cut_losses
from wsiad.detectors.synthetic import Synthetic, SyntheticOptions
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.networks.anomaly_segmenter import AnomalyFinder, AnomalySegmenter, ImageRestorer, focal
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import tissue_tiles


def convolutions(*pairs):
    """Return the parameters of 3 × 3 convolutions, each with a batch normalisation."""
    return sum(9 * a * b + b + 2 * b for a, b in pairs)


def test_both_networks_have_the_published_number_of_parameters():
    with torch.device("meta"):
        restorer, finder = ImageRestorer(128), AnomalyFinder(64)
    b = 128
    down = [(3, b), (b, b), (b, 2 * b), (2 * b, 2 * b), (2 * b, 4 * b), (4 * b, 4 * b)]
    down += [(4 * b, 8 * b)] + [(8 * b, 8 * b)] * 3
    up = [(8 * b, 8 * b)] * 2 + [(8 * b, 4 * b)] + [(4 * b, 4 * b)] * 2 + [(4 * b, 2 * b)]
    up += [(2 * b, 2 * b)] * 2 + [(2 * b, b)] + [(b, b)] * 3
    expected = convolutions(*down, *up) + 9 * b * 3 + 3
    assert sum(p.numel() for p in restorer.parameters()) == expected
    b = 64
    down = [(6, b), (b, b), (b, 2 * b), (2 * b, 2 * b), (2 * b, 4 * b), (4 * b, 4 * b)]
    down += [(4 * b, 8 * b)] + [(8 * b, 8 * b)] * 5
    up = [(8 * b, 8 * b), (16 * b, 8 * b), (8 * b, 8 * b)]
    up += [(8 * b, 4 * b), (12 * b, 4 * b), (4 * b, 4 * b)]
    up += [(4 * b, 2 * b), (6 * b, 2 * b), (2 * b, 2 * b)]
    up += [(2 * b, b), (3 * b, b), (b, b), (b, b), (2 * b, b), (b, b)]
    expected = convolutions(*down, *up) + 9 * b * 2 + 2
    assert sum(p.numel() for p in finder.parameters()) == expected


def test_focal_loss_by_hand():
    """Even odds: (1 − ½)² log 2; what is sure and right costs nothing."""
    mask = torch.tensor([[[0, 1]]])
    even = focal(torch.zeros(1, 2, 1, 2), mask)
    torch.testing.assert_close(even, torch.full((1, 1, 2), 0.25 * float(np.log(2))))
    logits = torch.tensor([[[[30.0, -30.0]], [[-30.0, 30.0]]]])
    assert float(focal(logits, mask).abs().max()) < 1e-6


def test_forms_of_cutpaste_are_guessed_without_knowledge():
    encoder = ShiftEncoder("blocks", (3, 4), 4, 3)
    with torch.no_grad():
        encoder.shift.weight.zero_()
        encoder.shift.bias.zero_()
        found = cut_losses(encoder, torch.from_numpy(tissue_tiles(5, 32, seed=1)))
    torch.testing.assert_close(found, torch.full((5,), float(np.log(3))))


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(DetectorError, match="48 px cannot be halved 5 times"):
        AnomalySegmenter(48, 2, 2)


def test_it_learns_to_find_what_was_blended_in(tmp_path):
    options = SyntheticOptions(
        restoring_width=4, finding_width=4, places=1, batch=12, learning_rate=5e-3, val_interval=30
    )
    found = Synthetic(options, InputSpec(TilePx(32), Mpp(1)))
    tiles = HealthyTiles(
        ArrayTiles(tissue_tiles(48, 32, seed=1)), ArrayTiles(tissue_tiles(12, 32, seed=2))
    )
    context = FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(60), quiet=True)
    found.fit(tiles, context)
    healthy = found.score(tissue_tiles(10, 32, seed=4))
    strange = found.score(255 - tissue_tiles(10, 32, seed=5))
    assert np.median(strange) > np.median(healthy)
