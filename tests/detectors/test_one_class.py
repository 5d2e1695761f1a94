import numpy as np
import pytest
import torch

from support.feature_detectors import TILES, detector, mixed
from wsiad.core.errors import DetectorError
from wsiad.learning.detector import (
    AnomalousTiles,
    AnomalyType,
    Budget,
    FitContext,
    HealthyTiles,
)
from wsiad.networks.one_class_heads import (
    AscentHead,
    CompactHead,
    HyperplaneHead,
    NoiseHead,
    NoisyFeatureHead,
    References,
    compactness,
    hard_focal,
    limited,
)
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_compactness_is_that_of_the_mean_times_a_factor():
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double()
    n, k = features.shape
    others = [torch.cat([features[:i], features[i + 1 :]]).mean(dim=0) for i in range(n)]
    by_definition = sum((x - m).square().sum() for x, m in zip(features, others, strict=True))
    by_definition = float(by_definition) / (n * k)
    about_all = float((features - features.mean(dim=0)).square().sum()) / (n * k)
    assert float(compactness(features)) == pytest.approx(by_definition, rel=1e-12)
    assert by_definition == pytest.approx((n / (n - 1)) ** 2 * about_all, rel=1e-12)


def test_noise_far_below_the_features_is_told_apart_without_loss():
    """Normalised features have length √C; noise of 0.01 √C is at 0, where a bias decides."""
    head = NoiseHead(8, deviation=0.01)
    vectors = torch.from_numpy(mixed(64, 8))
    torch.manual_seed(0)
    # Before: an untrained layer guesses.
    assert float(head.loss(vectors, None).detach()) > 0.3
    with torch.no_grad():
        head.out.weight.copy_(torch.stack([-torch.ones(8), torch.ones(8)]) * 20)
        head.out.bias.copy_(torch.tensor([20.0, -20.0]))
        assert float(head.loss(vectors, None)) < 1e-6
        assert (head(vectors) < 0).all()
    lengths = head.features(vectors).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((64,), 8**0.5), rtol=1e-3, atol=1e-3)


def test_share_nu_of_the_healthy_is_beyond_the_hyperplane():
    found = detector("one-class", objective="hyperplane", nu=0.2, hidden=6, steps=30)
    healthy = mixed(200, 5)
    scores = found.distance(torch.from_numpy(healthy), found.fit_vectors(healthy)).numpy()
    assert (scores > 0).mean() == pytest.approx(0.2, abs=0.01)
    assert found._ended == (30, "max-steps")


def test_hyperplane_loss_by_hand():
    head = HyperplaneHead(2, 1, nu=0.5)
    with torch.no_grad():
        head.inner.weight.copy_(torch.tensor([[0.0, 1.0]]))
        head.out.weight.fill_(2.0)
        head.offset.fill_(1.5)
    vectors = torch.tensor([[3.0, 0.0], [1.0, 100.0]])  # heights 2 · ½ = 1 and 2
    torch.testing.assert_close(head(vectors), torch.tensor([0.5, -0.5]))
    expected = (4 + 1) / 2 + (0.5 + 0) / 2 / 0.5 - 1.5
    assert float(head.loss(vectors, None).detach()) == pytest.approx(expected)


def test_simplenet_has_the_published_number_of_parameters_and_loss():
    with torch.device("meta"):
        head = NoisyFeatureHead(1536, 1024, deviation=0.015, margin=0.5)
    adapter, discriminator = 1536**2 + 1536, 1536 * 1024 + 1024 + 2 * 1024 + 1024
    assert parameters(head) == adapter + discriminator
    head = NoisyFeatureHead(4, 3, deviation=0.015, margin=0.5)
    with torch.no_grad():
        head.discriminator[-1].weight.zero_()  # nothing is known: D = 0
        assert float(head.loss(torch.randn(6, 4), None)) == pytest.approx(1.0)


def test_compact_loss_and_score_by_hand():
    head = CompactHead(2, 2, weight=0.1, templates=2)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
    vectors = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    references = References(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
    # Each differs from the other by 2 in one of two channels: compactness 4 / 2.
    assert float(head.loss(vectors, references).detach()) == pytest.approx(np.log(2) + 0.1 * 2)
    head.settle(vectors)
    scores = head(torch.tensor([[1.0, 4.0], [3.0, 1.0]]))
    assert scores.tolist() == pytest.approx([3.0, 0.0])


def context(folder, **values):
    return FitContext(
        seed=1,
        device=CPU,
        folder=folder,
        budget=Budget(5),
        weights="random",
        quiet=True,
        **values,
    )


def test_compact_refuses_without_reference_classes(tmp_path):
    found = detector("one-class", objective="compact", layers=["features.3"])
    assert found.learns_from_anomalies(found.options) == "needed"
    assert not found.learns_from_anomalies(detector("one-class").options)
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    with pytest.raises(DetectorError, match=r"two classes at least, and there is none.*--anomal"):
        found.fit(tiles, context(tmp_path))
    one = AnomalousTiles((AnomalyType("fat", ArrayTiles(TILES[:4]), ("a",) * 4),))
    with pytest.raises(DetectorError, match="there is one"):
        found.fit(tiles, context(tmp_path, anomalies=one))


def test_compact_draws_classes_evenly_and_learns_them(tmp_path):
    found = detector("one-class", objective="compact", layers=["features.3"], places=1)
    types = tuple(
        AnomalyType(name, ArrayTiles(TILES[part]), ("a",) * len(TILES[part]))
        for name, part in (("fat", slice(0, 3)), ("muscle", slice(3, 15)))
    )
    report = found.fit(
        HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)),
        context(tmp_path, anomalies=AnomalousTiles(types)),
    )
    assert (report.steps, report.ended_by) == (5, "max-steps")
    found._context = context(tmp_path, anomalies=AnomalousTiles(types))
    references = found._references()
    assert references.vectors.shape[0] == 15
    assert references.classes.tolist() == [0] * 3 + [1] * 12
    from wsiad.detectors.one_class import _drawn

    drawn = _drawn(references, np.random.default_rng(0), 4_000).classes.float().mean()
    assert float(drawn) == pytest.approx(0.5, abs=0.03)
    assert found.score(TILES).shape == (24,)


@pytest.mark.parametrize("objective", ["noise", "hyperplane", "feature-noise"])
def test_far_vectors_are_strange(objective):
    own = {
        "noise": {"noise": 0.01},
        "hyperplane": {"hidden": 32},
        "feature-noise": {"noise": 1.0, "hidden": 32},
    }[objective]
    found = detector("one-class", objective=objective, steps=300, learning_rate=3e-3, **own)
    healthy = (RNG.normal(size=(300, 6)) * 0.2 + [4, 0, 0, 3, 0, 0]).astype(np.float32)
    strange = (RNG.normal(size=(50, 6)) * 0.2 - [4, 0, 0, 3, 0, 0]).astype(np.float32)
    fitted = found.fit_vectors(healthy)
    scores = [found.distance(torch.from_numpy(v), fitted).mean() for v in (healthy, strange)]
    assert scores[1] > scores[0]


def ascent_head(channels=4, **options):
    torch.manual_seed(0)
    given = {"deviation": 0.1, "steps": 4, "radius": 0.5, "quantile": None}
    return AscentHead(channels, 5, **given | options)


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_lengths_are_limited_and_directions_kept():
    away = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.9, 1.2]])
    found = limited(away, torch.tensor(1.0), torch.tensor(2.0))
    torch.testing.assert_close(found, torch.tensor([[1.2, 1.6], [0.6, 0.8], [0.9, 1.2]]))


def test_the_ascent_climbs_to_where_a_plane_takes_noise_for_healthy():
    """Of a discriminator w · x, the slope of −log σ(w · x) is along −w at every place."""
    head = ascent_head()
    plane = torch.nn.Linear(4, 1, bias=False)
    head.discriminator = plane
    healthy, noisy = vectors(6, 4), vectors(6, 4, seed=1).requires_grad_()
    w = plane.weight.detach()[0]
    found = head.ascended(healthy, noisy, torch.tensor(0.5))
    torch.testing.assert_close(found, noisy - 4 * 0.001 * w / w.norm())
    head.steps = 5
    away = head.ascended(healthy, noisy, torch.tensor(0.5)) - healthy
    assert bool((away.norm(dim=1) < 1 + 1e-5).all())
    assert bool((away.norm(dim=1) > 0.5 - 1e-5).all())


def test_the_reach_is_a_radius_or_a_quantile_of_distances_from_the_centre():
    healthy = vectors(50, 4)
    assert float(ascent_head().reach(healthy)) == 0.5
    head = ascent_head(quantile=0.75)
    head.settle(healthy)
    adapted = head.adapter(healthy)
    torch.testing.assert_close(head.centre, adapted.mean(dim=0))
    lengths = (adapted - adapted.mean(dim=0)).norm(dim=1).detach().numpy()
    assert float(head.reach(adapted).detach()) == pytest.approx(
        np.quantile(lengths, 0.75), rel=1e-5
    )


def test_the_focal_loss_is_of_the_worse_half():
    logits, changed = vectors(9).double(), torch.tensor([True, False, True] * 3)
    p = 1 / (1 + np.exp(-logits.numpy()))
    right = np.where(changed.numpy(), p, 1 - p)
    worse = np.sort(right)[:5]
    expected = ((1 - worse) ** 2 * -np.log(worse)).mean()
    assert float(hard_focal(logits, changed)) == pytest.approx(expected)


def test_the_loss_of_an_undecided_discriminator():
    """Every logit is 0: two cross-entropies of log 2, and a focal loss of log 2 / 4."""
    head = ascent_head(steps=0, quantile=0.5)
    with torch.no_grad():
        head.discriminator[-1].weight.zero_()
    local = References(vectors(8, 4, seed=1), torch.tensor([0, 1] * 4))
    loss = head.loss(vectors(8, 4), local).detach()
    assert float(loss) == pytest.approx(2.25 * np.log(2), rel=1e-6)


@pytest.mark.parametrize("around", ["features", "centre"])
def test_glass_finds_what_is_away_from_healthy_features(around, tmp_path):
    smooth = np.kron(RNG.integers(150, 220, (40, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    found = detector(
        "one-class",
        objective="ascent",
        around=around,
        layers=["features.4"],
        places=2,
        hidden=16,
        steps=60,
        ascent_steps=6,
        learning_rate=1e-2,
    )
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    found.fit(HealthyTiles(ArrayTiles(smooth[:30]), ArrayTiles(smooth[:30])), context)
    spoilt = smooth[30:].copy()
    spoilt[:, :32, 32:] = RNG.integers(0, 256, (10, 32, 32, 3))
    healthy, strange = found.score_places(smooth[30:]), found.score_places(spoilt)
    assert strange[:, 0, 1].min() > healthy.max()


def test_changed_places_are_those_of_the_blended_tiles(tmp_path):
    found = detector("one-class", objective="ascent", layers=["features.4"], places=4, steps=1)
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    tiles = HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES))
    found.fit(tiles, context)
    found._context, found._tiles = context, tiles.fit
    local = found._local()
    assert local.vectors.shape[0] == len(TILES) * 16
    assert 0.05 < float(local.classes.float().mean()) < 0.95
    again = found._local()
    assert torch.equal(local.vectors, again.vectors)


def test_imported_features_have_no_pixels_to_change(tmp_path):
    found = detector("one-class", objective="ascent", backbone="features/other")
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    with pytest.raises(DetectorError, match="imported features have no pixels"):
        found.fit(HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES)), context)
