from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from support.feature_detectors import TILES, detector, mixed
from wsiad.core.errors import DetectorError
from wsiad.detectors.feature_reconstruction import (
    FeatureReconstructionOptions,
    components_of,
    hard_mining,
    soft_mining,
    weigh_gradient,
)
from wsiad.learning.checkpoint import StableAdamW
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.networks import features
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.restorers import OneByOneAutoencoder
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def restoration(name="squeezenet1_1", layers=("features.4", "features.7"), **options):
    found = detector("feature-reconstruction", layers=layers, **options)
    teacher = BackboneFeatures(name, layers, 4, features.random_tensors(name, 0))
    return found, found.distillation(teacher, seed=0)


def test_converged_linear_form_without_normalisation_is_a_principal_component_analysis():
    vectors = torch.from_numpy(mixed(400, 6)).double()
    network = OneByOneAutoencoder(6, 2, batch_norm=False, linear=True).double()
    maps = vectors.T[None, :, :, None]
    optimiser = torch.optim.LBFGS(
        network.parameters(), lr=0.5, max_iter=2_000, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        (target,), (restored,) = network.pairs([maps])
        error = (target - restored).square().mean()
        error.backward()
        return error

    optimiser.step(loss)
    centred = (vectors - vectors.mean(dim=0)).numpy()
    variances = np.sort(np.linalg.eigvalsh(centred.T @ centred / len(centred)))
    assert float(loss().detach()) == pytest.approx(variances[:-2].sum() / 6, rel=1e-3)


def test_one_by_one_widths_and_number_of_parameters():
    """C = 1024 (relu3_1 to relu3_4 of VGG19), d = 40: 1024, 552, 80, 40, 80, 552, 1024."""
    network = OneByOneAutoencoder(1024, 40, batch_norm=True, linear=False)
    widths = [1024, 552, 80, 40, 80, 552, 1024]
    convolutions = sum(a * b + b for a, b in pairwise(widths))
    assert parameters(network) == convolutions + 2 * 2 * (552 + 80)
    kinds = [type(module).__name__ for module in network.layers]
    assert kinds.count("BatchNorm2d") == kinds.count("ReLU") == 4
    assert kinds[6:8] == ["Conv2d", "Conv2d"]  # the middle is neither normalised nor bent


def test_number_of_components_explains_the_share():
    covariance = torch.diag(torch.tensor([6.0, 3.0, 1.0]).double())
    assert [components_of(covariance, s) for s in (0.5, 0.6, 0.61, 0.9, 0.95)] == [1, 1, 2, 2, 3]
    with pytest.raises(DetectorError, match="alike"):
        components_of(torch.zeros(3, 3).double(), 0.9)


def test_latent_comes_from_many_tiles_and_not_from_a_batch(tmp_path):
    """The batches are ordered: none of them alone shows all directions of the features."""
    constant = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 64 * 64 * 3)
    tiles = ArrayTiles(constant.reshape(24, 64, 64, 3) // 2 + TILES // 8)
    context = FitContext(
        seed=1, device=CPU, folder=tmp_path, budget=Budget(1), weights="random", quiet=True
    )
    found = detector("feature-reconstruction", layers=["features.3"], batch=4, latent=0.97)
    report = found.fit(HealthyTiles(tiles, tiles), context)
    teacher = found.network().teacher
    with torch.no_grad():
        images = torch.from_numpy(np.concatenate(list(tiles.ordered(24)))).permute(0, 3, 1, 2) / 255
        # Windows are as large as the tiles, so flips alone differ.
        maps = teacher.maps(teacher.normalised(images))[0]
    vectors = maps.permute(0, 2, 3, 1).flatten(0, 2).double()
    expected = components_of(torch.cov(vectors.T, correction=0), 0.97)
    assert abs(report.notes["latent"] - expected) <= 1
    assert expected > 1


def test_latent_as_wide_as_the_features_is_refused():
    with pytest.raises(DetectorError, match="restores all 128"):
        found = detector("feature-reconstruction", layers=["features.4"], latent=128)
        found._latent = 128
        teacher = BackboneFeatures(
            "squeezenet1_1", ["features.4"], 4, features.random_tensors("squeezenet1_1", 0)
        )
        found.distillation(teacher, seed=0)


def test_scores_of_mlp_are_mean_squares_at_the_finest_grid():
    found, pair = restoration()
    found._network = pair.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        (target,), (restored,) = pair(images)
        assert target.shape == (2, 384, 15, 15)
        squares = (target - restored).square().mean(dim=1)
        expected = nn.functional.adaptive_avg_pool2d(squares[:, None], 8)[:, 0]
        torch.testing.assert_close(found.places(images), expected)
        (loss,) = found.distances([target], [restored])
    torch.testing.assert_close(loss, squares.mean(dim=(1, 2)))


def test_cosine_loss_and_scores_by_hand():
    found, _ = restoration(network="transformer", places=1)
    a = [torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)]
    b = [torch.tensor([4.0, 3.0]).view(1, 2, 1, 1), torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)]
    # cosines 24 / 25 and 0: distances 0.04 and 1, averaged over the groups.
    assert float(sum(found.distances(a, b))) == pytest.approx((0.04 + 1) / 2)
    found, _ = restoration(network="transformer", transformer="inp-former", places=1)
    third = [torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)], [torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)]
    with_coherence = float(sum(found.distances([*a, *third[0]], [*b, *third[1]])))
    assert with_coherence == pytest.approx(0.52 + 0.2 * (1 - 0.5**0.5))


def test_hard_mining_keeps_the_worst_and_soft_mining_cubes():
    distances = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]])
    torch.testing.assert_close(hard_mining(distances, 0.7), torch.tensor([[0.1] * 7 + [1.0] * 3]))
    torch.testing.assert_close(hard_mining(distances, 0.0), torch.ones(1, 10))
    torch.testing.assert_close(soft_mining(torch.tensor([0.1, 0.3])), torch.tensor([0.125, 3.375]))


def test_gradient_of_a_token_is_weighed():
    leaf = torch.ones(1, 2, 1, 2, requires_grad=True)
    found = leaf * 1
    weigh_gradient(found, torch.tensor([[[0.1, 1.0]]]))
    (3 * found).sum().backward()
    torch.testing.assert_close(leaf.grad[0, :, 0], torch.tensor([[0.3, 3.0]] * 2))


def test_dinomaly_of_a_vision_transformer_has_the_published_number_of_parameters():
    """Width 768: bottleneck 2·768·3072; a block 4·768² + 4·768, 2·768·3072 and two norms."""
    from wsiad.networks.restorers import BottleneckDecoder, PrototypeDecoder

    with torch.device("meta"):
        network = BottleneckDecoder([(768, 16, 16)] * 8, 16, width=1, depth=8, dropout=0.2)
        prototypes = PrototypeDecoder([(768, 16, 16)] * 8, 16, width=1, depth=8, prototypes=6)
    mlp, attention, norms = 2 * 768 * 3072, 4 * 768**2 + 4 * 768, 4 * 768
    assert parameters(network) == mlp + 8 * (attention + mlp + norms)
    # 12 scales of heads in each block; an aggregation; biases in the bottleneck; 6 tokens.
    expected = 8 * (attention + mlp + norms + 12) + (attention + mlp + norms)
    assert parameters(prototypes) == expected + mlp + 768 + 3072 + 6 * 768
    assert network.groups == [range(4), range(4, 8)]


def test_last_decoder_blocks_restore_the_first_group():
    from wsiad.networks.restorers import BottleneckDecoder

    network = BottleneckDecoder([(4, 2, 2)] * 4, 2, width=1, depth=4, dropout=0.0)
    outputs = [torch.full((1, 4, 4), float(number)) for number in range(4)]
    first, second = network.restored(outputs)
    assert (float(first.mean()), float(second.mean())) == (2.5, 0.5)
    grids = [torch.full((1, 4, 2, 2), float(number)) for number in range(4)]
    assert [float(one.mean()) for one in network.targets(grids)] == [0.5, 2.5]


def test_prototypes_come_from_the_tile_alone():
    found, pair = restoration(network="transformer", transformer="inp-former", width=16, depth=2)
    found._network = pair.eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = found.places(images), found.places(images[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-6)
    taught, restored = pair(images)
    assert [tuple(t.shape) for t in taught] == [tuple(r.shape) for r in restored]
    assert len(taught) == 3


def test_nearest_prototype_is_that_of_largest_cosine():
    from wsiad.networks.restorers import nearest_prototypes

    tokens = torch.tensor([[[1.0, 0.1], [0.1, 5.0]]])
    prototypes = torch.tensor([[[9.0, 0.0], [0.0, 0.1]]])
    assert nearest_prototypes(tokens, prototypes).tolist() == prototypes.tolist()


def test_uniad_scores_lengths_and_jitters_in_training_alone():
    found, pair = restoration(network="transformer", transformer="uniad", width=16, depth=2)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        pair.student.train()
        noisy = [pair(images)[1][0] for _ in range(2)]
        found._network = pair.eval()
        (target,), (restored,) = pair(images)
        torch.testing.assert_close(restored, pair(images)[1][0])
        assert float((noisy[0] - noisy[1]).abs().max()) > 1e-3
        assert target.shape == (1, 384, 8, 8)
        torch.testing.assert_close(found.places(images), (target - restored).norm(dim=1))


def test_neighbours_are_hidden():
    from wsiad.networks.token_blocks import neighbours_hidden

    seen = neighbours_hidden(4, 3).view(4, 4, 4, 4)
    for y, x, v, u in np.ndindex(4, 4, 4, 4):
        assert bool(seen[y, x, v, u]) == (max(abs(y - v), abs(x - u)) > 1)
    assert neighbours_hidden(2, 3).all()  # else nothing would be seen
    assert neighbours_hidden(3, 0).all()


def test_linear_attention_is_a_weighted_mean_of_values():
    from wsiad.networks.token_blocks import LinearAttention

    torch.manual_seed(0)
    attention = LinearAttention(6)
    tokens = torch.randn(2, 5, 6)
    with torch.no_grad():
        query, key, value = attention.parts(tokens, tokens)
        q, k = nn.functional.elu(query) + 1, nn.functional.elu(key) + 1
        weights = q @ k.transpose(2, 3)
        weights = weights / weights.sum(dim=3, keepdim=True)
        expected = attention.joined(weights @ value)
        torch.testing.assert_close(attention(tokens), expected, rtol=1e-4, atol=1e-6)


def test_rate_rises_then_falls_to_its_share():
    options = FeatureReconstructionOptions(
        learning_rate=1.0, warmup_steps=10, final_rate=0.1, lr_schedule="cosine"
    )
    assert options.rate(0, limit=100) == pytest.approx(0.1)
    assert options.rate(9, limit=100) == pytest.approx(1.0)
    assert options.rate(50, limit=100) == pytest.approx(0.55)
    assert options.rate(100, limit=100) == pytest.approx(0.1)


def test_stable_steps_are_shortened_where_the_gradient_leaps():
    """AdamW of torch with amsgrad, but for the length of a surprising step."""
    values = [torch.tensor([1.0, -2.0], requires_grad=True) for _ in range(2)]
    stable = StableAdamW([values[0]], weight_decay=0.0)
    plain = torch.optim.AdamW([values[1]], lr=0.01, weight_decay=0.0, amsgrad=True)
    stable.param_groups[0]["lr"] = 0.01
    for gradient in ((1.0, 1.0), (0.5, 0.9)):
        for value, optimiser in zip(values, (stable, plain), strict=True):
            value.grad = torch.tensor(gradient)
            optimiser.step()
    torch.testing.assert_close(values[0], values[1])
    before = [value.detach().clone() for value in values]
    for value, optimiser in zip(values, (stable, plain), strict=True):
        value.grad = torch.tensor([100.0, 100.0])
        optimiser.step()
    moved = [(a - b).abs().max() for a, b in zip(values, before, strict=True)]
    # Its second moment expects 100 / √3 after three steps, of which the others were small.
    assert float((moved[0] / moved[1]).detach()) == pytest.approx(3**-0.5, rel=0.01)


@pytest.mark.parametrize("depth_and_first", [(12, 2, 1), (24, 4, 2), (32, 5, 2), (40, 6, 3)])
def test_eight_middle_blocks_of_a_vision_transformer(depth_and_first):
    from wsiad.networks.encoder import table

    depth, first, step = depth_and_first
    encoder = table().get("uni")
    names = [f"blocks.{number}.norm1.weight" for number in range(depth)]
    update = FeatureReconstructionOptions().for_encoder(encoder, names)
    assert update["layers"] == tuple(f"blocks.{first + step * n}" for n in range(8))


@pytest.mark.parametrize(
    "options",
    [{"latent": 5}, {"network": "transformer", "width": 16, "depth": 2}],
    ids=["mlp-1x1", "dinomaly"],
)
def test_it_learns_the_healthy_and_finds_the_strange_place(tmp_path, options):
    shape = (60, 8, 8, 3)
    smooth = np.kron(RNG.integers(150, 220, shape), np.ones((1, 8, 8, 1))).astype(np.uint8)
    found = detector(
        "feature-reconstruction",
        layers=["features.3"],
        places=2,
        batch=10,
        val_interval=40,
        learning_rate=2e-3,
        **options,
    )
    context = FitContext(
        seed=1, device=CPU, folder=tmp_path, budget=Budget(80), weights="random", quiet=True
    )
    tiles = HealthyTiles(ArrayTiles(smooth[:40]), ArrayTiles(smooth[40:50]))
    found.fit(tiles, context)
    spoilt = smooth[50:].copy()
    spoilt[:, :32, 32:] = RNG.integers(0, 256, (10, 32, 32, 3))
    strange = found.score_places(spoilt)
    assert (strange.reshape(10, 4).argmax(axis=1) == 1).mean() > 0.8
