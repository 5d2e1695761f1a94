import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.patch_students import PatchNetwork, PatchStudents, decorrelation, triplet


def images(count, edge, *, seed=0):
    drawn = torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed))
    return 2 * drawn - 1


def students(*patches, **options):
    torch.manual_seed(0)
    shape = {"students": 3, "dimensions": 4, "width": 0.05, **options}
    return PatchStudents(patches or (17,), **shape)


@pytest.mark.parametrize(("patch", "stride"), [(17, 1), (33, 4), (65, 8)])
def test_an_output_sees_one_patch(patch, stride):
    torch.manual_seed(0)
    network = PatchNetwork(patch, dimensions=4, width=0.1)
    x = images(2, patch + 2 * stride)
    maps = network(x)
    assert maps.shape == (2, 4, 3, 3) if stride < 8 else maps.shape[2] >= 3
    for row, column in ((0, 0), (1, 2)):
        top, left = row * stride, column * stride
        alone = network(x[:, :, top : top + patch, left : left + patch])
        assert alone.shape == (2, 4, 1, 1)
        torch.testing.assert_close(maps[:, :, row, column], alone[:, :, 0, 0])


def test_published_channels():
    """17 px: 3·128·6², 128·256·5², 256·256·5², 256·128·4² and the biases."""
    expected = 3 * 128 * 36 + 128 * 256 * 25 + 256 * 256 * 25 + 256 * 128 * 16
    expected += 128 + 256 + 256 + 128
    network = PatchNetwork(17, dimensions=128)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_smaller_images_are_mirrored():
    network = PatchNetwork(65, dimensions=4, width=0.05)
    x = images(1, 64)
    extended = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="reflect")
    torch.testing.assert_close(network(x), network(extended))


def test_students_that_are_the_teacher_neither_err_nor_disagree():
    network = students()
    for student in network.students[0]:
        student.load_state_dict(network.teachers[0].state_dict())
    ((error, variance),) = network.disagreement(images(2, 20))
    assert float(error.abs().max()) < 1e-10
    assert float(variance.abs().max()) < 1e-10
    assert float(network.losses(images(2, 20)).max()) < 1e-10


def test_error_and_variance_are_those_of_the_mean():
    network, x = students(), images(2, 20)
    ((error, variance),) = network.disagreement(x)
    every = torch.stack([student(x) for student in network.students[0]])
    teacher = network.teachers[0](x)
    torch.testing.assert_close(error, (every.mean(dim=0) - teacher).square().sum(dim=1))
    torch.testing.assert_close(
        variance, every.var(dim=0, correction=0).sum(dim=1), rtol=1e-4, atol=1e-7
    )
    # |mean − t|² + variance is the mean of |s − t|².
    loss = (every - teacher).square().sum(dim=2).mean(dim=0)
    torch.testing.assert_close(error + variance, loss, rtol=1e-4, atol=1e-7)


def test_outputs_are_standardised_and_scores_are_deviations():
    network = students(17, 33)
    parts = [images(3, 40), images(2, 40, seed=1)]
    network.standardise(parts)
    network.normalise(parts)
    for number in range(2):
        taught = torch.cat(
            [network.taught(part)[number].transpose(0, 1).flatten(1) for part in parts], dim=1
        )
        torch.testing.assert_close(taught.mean(dim=1), torch.zeros(4), rtol=0, atol=1e-4)
        torch.testing.assert_close(
            taught.std(dim=1, correction=0), torch.ones(4), rtol=1e-3, atol=0
        )
        pairs = [network.disagreement(part)[number] for part in parts]
        healthy = network.get_buffer(f"healthy{number}")
        for at in range(2):
            values = torch.cat([pair[at].flatten() for pair in pairs])
            torch.testing.assert_close(healthy[2 * at], values.mean(), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(
                healthy[2 * at + 1], values.std(correction=0), rtol=1e-2, atol=1e-6
            )
        scores = torch.cat([network.scores(part)[number].flatten() for part in parts])
        assert abs(float(scores.mean())) < 1e-2


def test_teachers_without_an_opinion_are_refused():
    network = students()
    for parameter in network.teachers.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(DetectorError, match="no difference between healthy places"):
        network.standardise([images(2, 20)])


def test_decorrelation_of_independent_and_equal_outputs():
    # Rows of a Hadamard matrix vary on their own.
    independent = torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    assert float(decorrelation(independent)) == pytest.approx(0, abs=1e-6)
    equal = independent[:, :1].expand(4, 3)
    assert float(decorrelation(equal)) == pytest.approx(1, abs=1e-6)


def test_triplets():
    own, near = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    far, close = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert float(triplet(own, near, far)) == 0
    # 1 + 0.25 − min(1, 0.25)
    assert float(triplet(own, near, close)) == pytest.approx(1.0)
