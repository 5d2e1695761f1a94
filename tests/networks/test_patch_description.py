import math

import numpy as np
import pytest
import torch

from wsiad.networks.patch_description import (
    EfficientNetworks,
    OutputAutoencoder,
    PatchDescription,
    hard_features,
    patch_targets,
)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions(*layers):
    return sum(inputs * kernel**2 * outputs + outputs for inputs, kernel, outputs in layers)


def networks(edge=40, dimensions=6, **options):
    torch.manual_seed(0)
    given = {"width": 0.04, "hard": 0.9, **options}
    return EfficientNetworks("small", edge=edge, dimensions=dimensions, **given).eval()


def pictures(number, edge=40, seed=1):
    return torch.rand(number, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("outputs", [384, 768])
def test_networks_have_as_many_weights_as_the_published_ones(outputs):
    small = convolutions((3, 4, 128), (128, 4, 256), (256, 3, 256), (256, 4, outputs))
    medium = convolutions(
        *((3, 4, 256), (256, 4, 512), (512, 1, 512), (512, 3, 512)),
        *((512, 4, outputs), (outputs, 1, outputs)),
    )
    assert count(PatchDescription("small", dimensions=outputs)) == small
    assert count(PatchDescription("medium", dimensions=outputs)) == medium
    assert (small, medium) == {384: (2_694_144, 8_026_624), 768: (4_267_392, 11_615_488)}[outputs]


def test_the_autoencoder_is_the_published_one_at_256_px():
    found = OutputAutoencoder(256, dimensions=384)
    assert count(found) == 1_096_320
    assert found.sizes == [3, 8, 15, 32, 63, 127]


@pytest.mark.parametrize("edge", [17, 32, 64, 100])
def test_the_autoencoder_gives_outputs_of_the_whole_image(edge):
    torch.manual_seed(0)
    found = OutputAutoencoder(edge, dimensions=5, width=0.2).eval()
    image = pictures(1, edge).requires_grad_()
    outputs = found(image, 8)
    assert outputs.shape == (1, 5, 8, 8)
    outputs[0, :, 0, 0].sum().backward()
    assert image.grad[0, :, -4:, -4:].abs().max() > 0


@pytest.mark.parametrize("size", ["small", "medium"])
def test_an_output_sees_a_patch_of_33_px_and_the_next_is_4_px_away(size):
    found = PatchDescription(size, dimensions=3, width=0.02)
    for parameter in found.parameters():  # nothing is rectified away
        parameter.data.abs_().add_(0.01)
    image = torch.rand(1, 3, 64, 64).requires_grad_()
    outputs = found(image)
    assert outputs.shape == (1, 3, 8, 8)
    outputs[0, :, 2, 5].sum().backward()
    seen = image.grad[0].abs().sum(dim=0) > 0
    rows, columns = (seen.any(dim=axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    assert rows == list(range(8, 8 + 33))
    assert columns == list(range(20, 20 + 33))
    assert found(torch.zeros(1, 3, 33, 33)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("shape", [(3, 7, 4, 5), (2, 2, 1, 1), (1, 1001, 1, 1)])
def test_hard_features_are_those_at_or_above_the_quantile(quantile, shape):
    squares = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    found = hard_features(squares, quantile)
    for one, values in zip(found, squares.double().numpy(), strict=True):
        flat = values.ravel()
        hard = flat[flat >= np.quantile(flat, quantile) - 1e-12]
        assert float(one) == pytest.approx(hard.mean(), rel=1e-6)


def test_only_hard_features_are_learnt():
    squares = torch.arange(1.0, 101.0).view(1, 4, 5, 5).requires_grad_()
    hard_features(squares, 0.95).sum().backward()
    assert squares.grad.flatten().nonzero()[:, 0].tolist() == [95, 96, 97, 98, 99]


@torch.no_grad()
def test_the_loss_is_that_of_the_paper():
    found, plain, changed = networks(), pictures(2), pictures(2, seed=5)
    found.standardise([pictures(6, seed=9)])
    losses, penalties = found.losses(plain, changed), found.penalty(plain)
    mean, deviation = (found.get_buffer(f"{name}0") for name in ("mean", "deviation"))
    for number in range(2):
        one, other = plain[number : number + 1], changed[number : number + 1]
        student = found.students["student"]
        coded = found.students["autoencoder"](other, 2)
        taught = [
            (found.teachers[0](x) - mean[None, :, None, None]) / deviation[None, :, None, None]
            for x in (one, other)
        ]
        squares = (taught[0] - student(one)[:, :6]) ** 2
        hard = squares[squares >= torch.quantile(squares, 0.9)].mean()
        of_teacher = ((taught[1] - coded) ** 2).mean()
        of_code = ((coded - student(other)[:, 6:]) ** 2).mean()
        assert float(losses[number]) == pytest.approx(float(hard + of_teacher + of_code), rel=1e-5)
        said = (student(one)[:, :6] ** 2).mean()
        assert float(penalties[number]) == pytest.approx(float(said), rel=1e-5)
    assert torch.equal(found.losses(plain), found.losses(plain, plain))


def test_only_students_learn_from_the_loss():
    found = networks()
    found.losses(pictures(2)).sum().backward()
    assert all(one.grad is None for one in found.teachers.parameters())
    assert all(one.grad is not None for one in found.students.parameters())


def test_maps_are_scaled_by_healthy_quantiles():
    found = networks(edge=64)
    parts = [pictures(3, 64), pictures(2, 64, seed=2)]
    with torch.no_grad():
        plain = [torch.cat(maps) for maps in zip(*map(found.differences, parts), strict=True)]
        found.normalise(parts)
        asked = pictures(2, 64, seed=7)
        raw, scaled = found.differences(asked), found.scores(asked)
    for number in range(2):
        values = np.sort(plain[number].double().numpy().ravel())
        first, last = (at(values, quantile) for quantile in (0.9, 0.995))
        expected = 0.1 * (raw[number].double().numpy() - first) / (last - first)
        np.testing.assert_allclose(scaled[number].numpy(), expected, rtol=1e-3, atol=1e-5)


def at(values, quantile):
    """Return a quantile of sorted values, linear between them."""
    place = quantile * (len(values) - 1)
    low = math.floor(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def test_maps_of_healthy_images_that_are_all_alike_have_finite_scores():
    found = networks()
    image = pictures(1)
    found.normalise([image])
    assert all(bool(torch.isfinite(maps).all()) for maps in found.scores(pictures(1, seed=4)))


def bins(values, number):
    """Return the means of adaptive bins of a vector."""
    total = len(values)
    edges = [(i * total // number, -(-(i + 1) * total // number)) for i in range(number)]
    return np.array([values[first:last].mean() for first, last in edges])


def test_targets_describe_the_neighbourhoods_of_places_in_the_middle():
    maps = [pictures(1, 8, seed=seed)[:, :2] for seed in (1, 2)]
    found = patch_targets(maps, grid=8, size=4, dimensions=5)
    assert found.shape == (1, 5, 4, 4)
    for row in range(4):
        for column in range(4):
            layers = []
            for one in maps:
                padded = np.pad(one[0].numpy(), ((0, 0), (1, 1), (1, 1)))
                near = padded[:, row + 2 : row + 5, column + 2 : column + 5]
                layers.append(bins(near.ravel(), 1024))
            expected = bins(np.concatenate(layers), 5)
            np.testing.assert_allclose(found[0, :, row, column], expected, rtol=1e-4, atol=1e-6)


def test_targets_of_coarser_layers_are_sampled_between_their_places():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8).contiguous()
    coarse = torch.nn.functional.avg_pool2d(ramp, 2)
    fine = patch_targets([ramp], grid=8, size=2, dimensions=3)
    sampled = patch_targets([coarse], grid=8, size=2, dimensions=3)
    np.testing.assert_allclose(fine.mean(dim=1), sampled.mean(dim=1), atol=0.1)
