from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from support.feature_detectors import TILES, detector
from wsiad.core.errors import DetectorError
from wsiad.detectors.contrastive import ContrastiveDetectorOptions
from wsiad.detectors.contrastive.healthy_codes import (
    axis_scores,
    cluster_distances,
    fit_axes,
    fit_clusters,
)
from wsiad.detectors.contrastive.pretexts import (
    ShiftEncoder,
    _apart,
    _neighbours,
    contrastive_losses,
    position_losses,
    shifted,
)
from wsiad.learning.batches import ViewOptions, random_views
from wsiad.learning.checkpoint import Lars
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.networks.patch_encoder import DIRECTIONS, PatchEncoders, SmallPatchEncoder, cut, spread
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import check_detector, tissue_tiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def test_score_of_white_features_is_their_dimension_on_average():
    """In many dimensions, features of length 1 are white except along the constant length."""
    drawn = torch.from_numpy(RNG.normal(size=(4_000, 16)) * np.arange(1, 17)).float()
    fitted = fit_clusters(drawn, 1, seed=0)
    assert float(cluster_distances(drawn, fitted).mean()) == pytest.approx(16, rel=1e-3)


def test_nearest_of_several_clusters_decides():
    axes = torch.eye(6)[torch.arange(200) % 2] * 5
    drawn = axes + 0.1 * torch.from_numpy(RNG.normal(size=(200, 6))).float()
    one, two = (fit_clusters(drawn, count, seed=0) for count in (1, 2))
    between = torch.ones(1, 6) * torch.eye(6)[:2].sum(dim=0) * 2.5
    assert cluster_distances(between, two) > 50 * cluster_distances(between, one)
    assert float(cluster_distances(drawn, two).mean()) < 7
    few = r"^3 healthy tiles are too few for 3 clusters\. .* more tiles, or set fewer clusters\.$"
    with pytest.raises(DetectorError, match=few):
        fit_clusters(drawn[:3], 3, seed=0)
    with pytest.raises(DetectorError, match="alike"):
        fit_clusters(torch.ones(9, 3), 1, seed=0)


def test_one_shift_and_no_head_score_the_largest_cosine_times_the_length():
    healthy, asked = torch.randn(1, 30, 5), torch.randn(1, 7, 5)
    fitted = fit_axes(healthy, None)
    found = axis_scores(asked, None, fitted) / fitted["weights"]
    for z, score in zip(asked[0], found, strict=True):
        cosines = [float(nn.functional.cosine_similarity(z, h, dim=0)) for h in healthy[0]]
        assert float(score) == pytest.approx(-max(cosines) * float(z.norm()), rel=1e-4)
    assert float(fitted["weights"]) == pytest.approx(1 / float(healthy.norm(dim=2).mean()))


def test_shift_logits_keep_their_sign():
    """A mean logit below 0 must not turn the score around."""
    vectors, logits = torch.randn(2, 9, 4), torch.full((2, 9), -3.0)
    fitted = fit_axes(vectors, logits)
    torch.testing.assert_close(fitted["shift_weights"], torch.full((2,), 1 / 3))
    low, high = (axis_scores(vectors, torch.full((2, 9), v), fitted) for v in (-6.0, 0.0))
    assert (low > high).all()


def test_halves_are_swapped():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    forms = [shifted(image, number, "cutperm")[0, 0] for number in range(4)]
    assert torch.equal(forms[0], image[0, 0])
    assert forms[1][0].tolist() == [2, 3, 0, 1]
    assert forms[2][:, 0].tolist() == [8, 12, 0, 4]
    assert forms[3][0].tolist() == [10, 11, 8, 9]
    symmetries = [torch.rot90(x, k) for x in (image[0, 0], image[0, 0].flip(0)) for k in range(4)]
    assert not any(torch.equal(form, s) for form in forms[1:] for s in symmetries)
    assert torch.equal(shifted(image, 1, "turns")[0, 0], torch.rot90(image[0, 0]))


def test_untrained_losses_are_those_of_a_guess():
    """With equal vectors, each view has 2 N S − 1 others; the head guesses one of S forms."""
    windows = torch.from_numpy(TILES[:5])
    encoder = ShiftEncoder("blocks", (3, 4), 4, 4)
    with torch.no_grad():
        encoder.head[-1].weight.zero_()
        encoder.head[-1].bias.fill_(1.0)
        encoder.shift.weight.zero_()
        encoder.shift.bias.zero_()
        views = ViewOptions(view_px=24)
        found = contrastive_losses(encoder, windows, views=views, temperature=0.5, shifts="cutperm")
    torch.testing.assert_close(found, torch.full((5,), float(np.log(2 * 5 * 4 - 1) + np.log(4))))
    plain = ShiftEncoder("blocks", (3, 4), 4, 1)
    assert plain.shift is None
    assert contrastive_losses(plain, windows, views=views, temperature=0.5, shifts=None).shape == (
        5,
    )


def test_constant_encoder_has_no_neighbour_term_and_guesses_one_of_eight():
    encoders = PatchEncoders(4, (32, 64))
    with torch.no_grad():
        for module in encoders.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.zero_()
                module.bias.zero_()
    windows = torch.from_numpy(tissue_tiles(3, 128, seed=1))
    found = position_losses(encoders, windows, weight=1e6)
    torch.testing.assert_close(found, torch.full((3,), 2 * float(np.log(8))))


def test_patches_lie_in_their_direction():
    """Pixels tell where a patch was cut."""
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    images = torch.stack([rows, columns, rows * 0]).expand(400, -1, -1, -1)
    generator = torch.Generator().manual_seed(1)
    first, second, which = _apart(images, 32, generator)
    steps = (second - first)[:, :2, 0, 0].long()
    assert torch.equal(steps.sign(), torch.tensor(DIRECTIONS)[which])
    moved = steps.abs()[steps != 0]
    assert (int(moved.min()), int(moved.max())) == (24, 31)
    assert set(which.tolist()) == set(range(8))
    first, second = _neighbours(images, 32, generator)
    assert int((second - first).abs().max()) == 1


def test_every_layer_of_the_patch_encoder_learns():
    """The authors' last layer does not."""
    encoder = SmallPatchEncoder(64)
    widths = [3, 32, 64, 128, 128, 64, 32, 32, 64]
    expected = sum(9 * a * b + b for a, b in pairwise(widths))
    assert sum(p.numel() for p in encoder.parameters()) == expected
    codes = encoder(torch.rand(2, 3, 32, 32))
    assert codes.shape == (2, 64)
    codes.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in encoder.parameters())


def test_a_larger_patch_is_encoded_by_its_quarters():
    encoders = PatchEncoders(4, (64,))
    patches = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        quarters = [
            encoders.small(patches[:, :, y : y + 32, x : x + 32] * 2 - 1)
            for y in (0, 32)
            for x in (0, 32)
        ]
        grid = torch.stack(quarters, dim=2).view(2, 4, 2, 2)
        torch.testing.assert_close(encoders(patches), encoders.joined(grid))


def test_a_pixel_has_the_mean_of_the_patches_that_cover_it():
    found = spread(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]), 4, 2, 7)[0]
    assert found.shape == (7, 7)
    assert [float(found[0, 0]), float(found[0, 2]), float(found[2, 2])] == [1, 2, 4]
    assert float(found[5, 5]) == float(found[6, 6]) == 7
    assert cut(torch.rand(2, 3, 6, 6), 4, 2).shape == (2, 4, 3, 4, 4)


def test_patch_svdd_conforms():
    options = {"pretext": "position", "projection": 4, "batch": 6, "places": 4, "patches": [32]}
    from wsiad.detectors import registry

    cls = registry.load("contrastive")
    check_detector(cls, options, input_px=56, max_steps=2)


def test_tiles_too_small_for_positions_are_refused(tmp_path):
    found = detector("contrastive", pretext="position", patches=(32, 64))
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    context = FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(1), quiet=True)
    with pytest.raises(DetectorError, match=r"patches of 64 px need tiles of 128 px.*patches=\[32"):
        found.fit(tiles, context)
    with pytest.raises(DetectorError, match=r"views of 80 px do not fit"):
        detector("contrastive", views=ViewOptions(view_px=80)).fit(tiles, context)


def test_turns_warn(tmp_path, caplog):
    options = {"widths": (3, 4), "projection": 4, "batch": 6, "pretext": "csi"}
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    context = FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(1), quiet=True)
    detector("contrastive", **options, shifts="turns").fit(tiles, context)
    assert "symmetries of tissue" in caplog.text


def test_positions_have_one_score():
    with pytest.raises(ValueError, match="nearest alone"):
        ContrastiveDetectorOptions(pretext="position", score="csi")
    assert ContrastiveDetectorOptions(pretext="csi").chosen_score() == "csi"
    assert ContrastiveDetectorOptions(pretext="position").chosen_score() == "nearest"


def csi(tmp_path, **options):
    given = {"widths": (3, 4), "projection": 4, "batch": 6, "pretext": "csi", **options}
    found = detector("contrastive", **given)
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    context = FitContext(seed=1, device=CPU, folder=tmp_path, budget=Budget(1), quiet=True)
    found.fit(tiles, context)
    return found


def test_views_are_alike_for_every_tile():
    def seen(tiles):
        generator = torch.Generator().manual_seed(3)
        return random_views(torch.from_numpy(tiles), ViewOptions(), generator, alike=True)

    views = seen(TILES[:5])
    assert views.shape == (5, 3, 48, 48)
    torch.testing.assert_close(views[3:4], seen(TILES[3:4]))
    same = seen(np.repeat(TILES[:1], 3, axis=0))
    torch.testing.assert_close(same, same[:1].expand_as(same))
    # Drawn apart, views of equal tiles differ.
    apart = random_views(
        torch.from_numpy(np.repeat(TILES[:1], 3, axis=0)), ViewOptions(), torch.Generator()
    )
    assert not torch.allclose(apart[0], apart[1])


def test_csi_averages_vectors_and_logits_over_views(tmp_path):
    found = csi(tmp_path, scoring_views=3)
    encoder = found._learnt().encoder
    images = torch.from_numpy(TILES[:4]).permute(0, 3, 1, 2).float() / 255
    views = found._scored_views(images)
    assert len(views) == 3
    assert not torch.allclose(views[0], views[1])
    vectors, logits = found._projected(encoder, images)
    each = [encoder(shifted(view, 2, "cutperm")) for view in views]
    torch.testing.assert_close(vectors[2], sum(encoder.head(x) for x in each) / 3)
    torch.testing.assert_close(logits[2], sum(encoder.shift(x)[:, 2] for x in each) / 3)
    # A score does not depend on the other tiles of its batch.
    together, alone = found.score_places(TILES[:4]), found.score_places(TILES[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-4)


def test_views_are_for_the_score_of_csi():
    with pytest.raises(ValueError, match="scoring_views does nothing with score: mahalanobis"):
        ContrastiveDetectorOptions(scoring_views=2)
    assert "scoring_views" not in ContrastiveDetectorOptions(pretext="csi").model_dump()


def test_lars_scales_each_gradient_by_its_tensor():
    values = [nn.Parameter(torch.tensor(v)) for v in ([3.0, 4.0], [0.0, 0.0])]
    slopes = [torch.tensor([0.6, 0.8]), torch.tensor([0.1, 0.2])]
    optimiser = Lars(values, momentum=0.9, weight_decay=0.2)
    optimiser.param_groups[0]["lr"] = 10.0
    for value, slope in zip(values, slopes, strict=True):
        value.grad = slope.clone()
    optimiser.step()
    # |w| = 5 and |g| = 1: the rate is 10 · 0.001 · 5 / (1 + 0.2 · 5) = 0.025, of g + 0.2 w.
    torch.testing.assert_close(values[0].detach(), torch.tensor([3 - 0.025 * 1.2, 4 - 0.025 * 1.6]))
    torch.testing.assert_close(values[1].detach(), torch.tensor([-1.0, -2.0]))
    assert "momentum_buffer" in optimiser.state[values[0]]
