import numpy as np
import pytest
import torch
from torch import nn

from support.feature_detectors import detector
from wsiad.core.errors import DetectorError
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.networks import features
from wsiad.networks.distillation import (
    SlimStudent,
    combined,
    place_distances,
    share_distances,
    whole_distances,
)
from wsiad.networks.features import BackboneFeatures
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distance_of_a_place_is_one_minus_the_cosine():
    taught, found = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1)
    distances = place_distances([taught], [found])[0].numpy()
    for image, row, column in np.ndindex(2, 3, 4):
        u, v = taught[image, :, row, column].numpy(), found[image, :, row, column].numpy()
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        assert distances[image, row, column] == pytest.approx(1 - cosine, abs=1e-6)
    assert place_distances([taught], [3 * taught])[0].abs().max() < 1e-12
    # A student that gives nothing is at a distance, not perfect.
    assert place_distances([taught], [0 * taught])[0].min() > 0.49


def test_whole_distance_is_one_minus_the_cosine_of_all_values():
    taught, found = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1)
    for image in range(2):
        u, v = taught[image].flatten().numpy(), found[image].flatten().numpy()
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        assert float(whole_distances([taught], [found])[0][image]) == pytest.approx(1 - cosine)


def test_shares_of_the_places_add_up_to_the_distance_of_the_whole():
    taught, found = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1)
    shares = share_distances([taught], [found])[0]
    assert shares.shape == (2, 3, 4)
    whole = whole_distances([taught], [found])[0]
    np.testing.assert_allclose(shares.mean(dim=(1, 2)), whole, rtol=1e-5)
    one = found.clone()
    one[:, :, 1:] = taught[:, :, 1:]
    strange = share_distances([taught], [one])[0]
    assert strange[:, 0].mean() > 5 * strange[:, 1:].mean()


def vgg(*layers, places=2):
    tensors = features.random_tensors("wsiad", 3)
    return BackboneFeatures("wsiad", [f"features.{n}" for n in layers], places, tensors)


def test_a_slim_student_is_wide_only_where_it_is_compared():
    teacher = vgg(9, 18, 27, 36)  # the poolings of four blocks, of a VGG19 with 16 to 128 channels
    student = SlimStudent(teacher, 4, seed=0)
    # Kernels of 3 × 3: two of the first block, then one wide one in each block, none with a bias.
    blocks = [(32, 1), (64, 3), (128, 3), (128, 3)]
    weights, before = 9 * (3 * 4 + 4 * 4), 4
    for wide, slim in blocks:
        weights += 9 * (before * 4 + (slim - 1) * 4 * 4 + 4 * wide) + slim * 2 * 4
        before = wide
    # The first convolution of the first block is normalised, the second comes before a pooling.
    assert sum(p.numel() for p in student.parameters()) == weights + 2 * 4
    images = torch.rand(2, 3, 64, 64)
    found = student(images, ())
    assert [f.shape for f in found] == [m.shape for m in teacher.maps(images)]
    assert all(f.min() == 0 for f in found)
    weights = [dict(SlimStudent(teacher, 4, seed=n).named_parameters()) for n in (0, 0, 1)]
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.equal(weights[0]["features.2.weight"], weights[2]["features.2.weight"])


def test_a_slim_student_is_of_a_vgg():
    teacher = BackboneFeatures("resnet18", ["layer1"], 2, features.random_tensors("resnet18", 3))
    with pytest.raises(DetectorError, match="student_width is for a VGG, and resnet18 is not one"):
        SlimStudent(teacher, 4, seed=0)


def test_mkd_scores_value_and_direction_of_the_last_layers():
    options = {"backbone": "wsiad", "layers": ["features.9", "features.18", "features.27"]}
    whole = {"distance": "whole", "value_weight": 0.25, "combine": "sum", "scored_layers": 2}
    found = detector("student-teacher", **options, **whole, places=4, student_width=3)
    teacher = vgg(9, 18, 27, places=4)
    pair = found.distillation(teacher, seed=0).eval()
    found._network = pair
    images = torch.rand(3, 3, 64, 64)
    taught, student = pair(images)
    expected = [
        direction + 0.25 * (t - f).square().mean(dim=(1, 2, 3))
        for direction, t, f in zip(whole_distances(taught, student), taught, student, strict=True)
    ]
    for loss, one in zip(found.distances(taught, student), expected, strict=True):
        torch.testing.assert_close(loss, one)
    # The mean of the map is the published score of the tile.
    scores = found.places(images)
    assert scores.shape == (3, 4, 4)
    torch.testing.assert_close(scores.mean(dim=(1, 2)), expected[1] + expected[2])


@pytest.mark.parametrize(("layers", "count"), [(["features.4"], 1), (None, 3)])
def test_more_scored_layers_than_layers_are_refused(layers, count):
    given = {"backbone": "squeezenet1_1", "layers": layers, "scored_layers": count + 1}
    found = detector("student-teacher", **given)
    with pytest.raises(DetectorError, match=f"there are only {count} layers"):
        found.distillation(vgg(9), seed=0)


def test_options_of_later_versions_leave_older_runs_equal():
    plain = detector("student-teacher").options
    assert not {"student_width", "distance", "value_weight"} & plain.model_dump().keys()
    assert "student_width" in detector("student-teacher", student_width=4).options.model_dump()


@pytest.mark.parametrize(("how", "of_two"), [("product", np.multiply), ("sum", np.add)])
def test_layers_are_combined_on_the_finest_grid(how, of_two):
    fine, coarse = draw(2, 8, 8).abs(), draw(2, 2, 2, seed=1).abs()
    enlarged = nn.functional.interpolate(coarse[:, None], size=(8, 8), mode="bilinear")[:, 0]
    expected = of_two(fine.numpy(), enlarged.numpy()).reshape(2, 4, 2, 4, 2).mean(axis=(2, 4))
    found = combined([coarse, fine], 4, how)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    constant = combined([torch.full((1, 3, 3), 2.0), torch.full((1, 7, 7), 5.0)], 7, how)
    np.testing.assert_allclose(constant, of_two(2, 5), rtol=1e-6)


def test_student_with_the_teachers_weights_finds_nothing_strange():
    found = detector("student-teacher", backbone="resnet18", places=4)
    tensors = features.random_tensors("resnet18", 3)
    teacher = BackboneFeatures("resnet18", found.options.chosen_layers(), 4, tensors)
    pair = found.distillation(teacher, seed=0)
    images = torch.rand(2, 3, 64, 64)
    pair.eval()
    different = place_distances(*pair(images))
    assert [tuple(d.shape[1:]) for d in different] == [(16, 16), (8, 8), (4, 4)]
    assert min(d.mean() for d in different) > 0.01
    pair.student.network.load_state_dict(teacher.network.state_dict())
    assert max(d.max() for d in place_distances(*pair(images))) < 1e-10


def test_it_learns_the_healthy_and_finds_the_strange_place(tmp_path):
    """Healthy tiles are of smooth blocks; noise in a quarter of one is what is strange."""
    shape = (60, 8, 8, 3)
    smooth = np.kron(RNG.integers(150, 220, shape), np.ones((1, 8, 8, 1))).astype(np.uint8)
    found = detector(
        "student-teacher",
        layers=["features.4"],
        places=2,
        batch=10,
        learning_rate=1e-3,
        val_interval=40,
    )
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    tiles = HealthyTiles(ArrayTiles(smooth[:40]), ArrayTiles(smooth[40:50]))
    found.options = found.options.model_copy(update={"max_steps": 80})
    report = found.fit(tiles, context)
    assert report.notes["best_stop_loss"] < 0.1
    spoilt = smooth[50:].copy()
    spoilt[:, :32, 32:] = RNG.integers(0, 256, (10, 32, 32, 3))
    healthy, strange = found.score_places(smooth[50:]), found.score_places(spoilt)
    assert strange[:, 0, 1].min() > 2 * healthy.max()
    assert (strange.reshape(10, 4).argmax(axis=1) == 1).all()


def test_more_places_than_features_are_refused_before_the_training(tmp_path):
    tiles = HealthyTiles(*[ArrayTiles(np.zeros((4, 64, 64, 3), np.uint8))] * 2)
    context = FitContext(seed=1, device=CPU, folder=tmp_path, weights="random", quiet=True)
    with pytest.raises(DetectorError, match=r"16 × 16 places .* 15 × 15"):
        detector("student-teacher", places=16).fit(tiles, context)
