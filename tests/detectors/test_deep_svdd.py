import numpy as np
import pytest
import torch

from support.feature_detectors import detector
from wsiad.core.errors import DetectorError
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.networks.hypersphere import (
    BiasFreeEncoder,
    Hypersphere,
    MirrorDecoder,
    centre_of,
    square_distances,
)
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(150, 220, (60, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)


def fitted(folder, tiles=SMOOTH, *, steps=60, minutes=None, **options):
    defaults = {"channels": [8, 8], "representation": 6, "batch": 20, "val_interval": 20}
    found = detector("deep-svdd", **{**defaults, **options})
    folder.mkdir(exist_ok=True)
    context = FitContext(
        seed=1, device=CPU, folder=folder, budget=Budget(steps, minutes), quiet=True
    )
    report = found.fit(HealthyTiles(ArrayTiles(tiles[:40]), ArrayTiles(tiles[40:50])), context)
    return found, report


def test_centre_is_the_mean_kept_away_from_zero():
    outputs = torch.tensor([[1.0, 0.02, -0.3, -0.04, 0.0], [3.0, 0.04, -0.5, -0.06, 0.0]])
    expected = torch.tensor([2.0, 0.1, -0.4, -0.1, 0.1])
    torch.testing.assert_close(centre_of(outputs), expected)
    torch.testing.assert_close(square_distances(outputs, outputs[0])[1], torch.tensor(4.0408))


def test_encoder_has_nothing_that_could_make_a_constant():
    encoder = BiasFreeEncoder(64, (32, 64, 128), 128)
    assert all(name.endswith("weight") for name, _ in encoder.named_parameters())
    # CIFAR-10's encoder of the paper: 25 (3·32 + 32·64 + 64·128), and 8 × 8 × 128 × 128.
    assert sum(p.numel() for p in encoder.parameters()) == 25 * 10336 + 8192 * 128
    assert torch.equal(encoder.eval()(torch.zeros(1, 3, 64, 64)), torch.zeros(1, 128))
    assert MirrorDecoder(64, (32, 64, 128), 128)(torch.rand(2, 128)).shape == (2, 3, 64, 64)
    with pytest.raises(DetectorError, match="60 px cannot be halved 3 times"):
        BiasFreeEncoder(60, (32, 64, 128), 128)


@pytest.mark.parametrize("nu", [0.1, 0.25])
def test_best_radius_leaves_nu_outside(nu):
    """The quantile minimises R² + mean excess / ν over R²: as a search finds."""
    ball = Hypersphere(torch.nn.Identity(), 3)
    distances = torch.rand(41, generator=torch.Generator().manual_seed(2)) * 5
    ball.fit_radius(distances, nu)
    least = ball.soft_boundary(distances, nu).mean()
    for radius in torch.linspace(0, 5, 501):
        ball.square_radius.copy_(radius)
        assert ball.soft_boundary(distances, nu).mean() >= least - 1e-5
    assert (distances > torch.quantile(distances, 1 - nu)).float().mean() <= nu


def test_it_draws_healthy_tiles_together_and_leaves_strange_ones_out(tmp_path):
    found, report = fitted(tmp_path, learning_rate=1e-3, pretrain_steps=40)
    strange = RNG.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    healthy = found.score(SMOOTH[50:])
    assert found.score_places(strange).shape == (10, 1, 1)
    assert found.score(strange).min() > healthy.max()
    assert report.notes["autoencoder"]["steps"] == 40
    assert healthy.mean() == pytest.approx(report.notes["best_stop_loss"], rel=0.5)


def test_soft_boundary_scores_by_the_distance_to_the_boundary(tmp_path):
    found, _ = fitted(tmp_path, objective="soft-boundary", nu=0.2, learning_rate=1e-3)
    scores = found.score(SMOOTH[:40])
    assert 0.1 < (scores > 0).mean() < 0.3  # 0.2 of the same tiles, but flipped
    ball = found.network()
    with torch.no_grad():
        x = torch.from_numpy(SMOOTH[:3]).permute(0, 3, 1, 2).float() / 255
        expected = (ball.encoder(x) - ball.centre).square().sum(dim=1) - ball.square_radius
    np.testing.assert_allclose(found.score(SMOOTH[:3]), expected, rtol=1e-4, atol=1e-6)


def test_centre_is_the_mean_output_before_the_training(tmp_path):
    found, _ = fitted(tmp_path, SMOOTH[:, ::-1], steps=5, pretrain_steps=0)
    once, _ = fitted(tmp_path / "again", SMOOTH, steps=5, pretrain_steps=0)
    untrained = found._ball(1).eval().encoder
    x = torch.from_numpy(SMOOTH[:40].copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        orientations = [x, x.flip(2), x.flip(3), x.flip(2, 3)]
        every = torch.stack([untrained(images) for images in orientations]).mean(dim=0)
    # Which of its four orientations a tile is shown in is drawn.
    for centre in (found.network().centre, once.network().centre):
        torch.testing.assert_close(centre, centre_of(every), atol=0.03, rtol=0.03)


def test_pretraining_may_be_left_out_and_leaves_half_of_the_time(tmp_path):
    _, report = fitted(tmp_path / "none", steps=2, pretrain_steps=0)
    assert "autoencoder" not in report.notes
    assert not (tmp_path / "none" / "autoencoder").exists()
    _, report = fitted(tmp_path / "short", steps=None, minutes=0.03)
    assert report.ended_by == report.notes["autoencoder"]["ended_by"] == "max-minutes"
    assert report.steps > 0
