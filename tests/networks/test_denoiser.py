"""The noise schedule and the network of a diffusion, by closed forms."""

import math

import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.denoiser import Denoiser, NoiseSchedule, sines

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 3, 8, 8, generator=GENERATOR) * 2 - 1
NOISE = torch.randn(3, 3, 8, 8, generator=GENERATOR)


def test_what_is_left_falls_from_one_to_what_is_published():
    left = NoiseSchedule().left
    assert len(left) == 1001
    assert left[0] == 1
    assert (left[1:] < left[:-1]).all()
    assert float(left[1]) == pytest.approx(1 - 1e-4)
    assert float(left[-1]) == pytest.approx(4.04e-5, rel=2e-3)
    by_hand = math.prod(1 - (1e-4 + (0.02 - 1e-4) * s / 999) for s in range(1000))
    assert float(left[-1]) == pytest.approx(by_hand)


def test_the_true_noise_gives_the_image_back():
    schedule = NoiseSchedule()
    for time in (1, 250, 700):
        at = torch.full((3,), time)
        noisy = schedule.noisy(IMAGES, NOISE, at)
        torch.testing.assert_close(schedule.clean(noisy, NOISE, at), IMAGES, atol=1e-5, rtol=0)
        for steps in (1, 7, 25):
            found = schedule.denoised(lambda x, t: NOISE, noisy, time, steps=steps)
            torch.testing.assert_close(found, IMAGES, atol=2e-5, rtol=0)
    variance = schedule.noisy(torch.zeros(1, 3, 64, 64), torch.randn(1, 3, 64, 64), at[:1]).var()
    assert float(variance) == pytest.approx(float(1 - schedule.left[700]), rel=0.05)


def test_nothing_is_done_from_time_step_zero():
    schedule, asked = NoiseSchedule(), []
    found = schedule.denoised(lambda x, t: asked.append(t), IMAGES, 0, steps=25)
    assert torch.equal(found, IMAGES)
    assert not asked
    assert torch.equal(schedule.noisy(IMAGES, NOISE, torch.zeros(3, dtype=torch.long)), IMAGES)


def test_time_steps_are_spread_evenly_and_end_at_zero():
    assert NoiseSchedule.times(250, 5) == [250, 200, 150, 100, 50, 0]
    assert NoiseSchedule.times(3, 25) == [3, 2, 1, 0]
    assert NoiseSchedule.times(0, 25) == [0]


def test_the_network_begins_at_zero_and_knows_the_time():
    network = Denoiser(16, (8, 16), blocks=1, attention_px=(16,))
    x, times = torch.rand(2, 3, 16, 16), torch.tensor([1, 900])
    assert network(x, times).shape == x.shape
    assert not network(x, times).any()
    torch.nn.init.normal_(network.leave[2].weight)
    assert not torch.allclose(network(x[:1], times[:1]), network(x[:1], times[1:]), atol=1e-4)
    network.eval()
    both = network(x, times)
    torch.testing.assert_close(network(x[1:], times[1:]), both[1:], atol=1e-4, rtol=1e-4)


def test_parameters_by_hand():
    """One resolution, one block each way, two in the middle, one attention."""
    network, c, t = Denoiser(8, (8,), blocks=1, attention_px=()), 8, 32
    norm, conv = 2 * c, 9 * c * c + c

    def block(before):
        skip = before * c + c if before != c else 0
        return 2 * before + 9 * before * c + c + (t * c + c) + norm + conv + skip

    attention = norm + (c * 3 * c + 3 * c) + (c * c + c)
    time = (c * t + t) + (t * t + t)
    ends = (9 * 3 * c + c) + norm + (9 * c * 3 + 3)
    expected = time + ends + 3 * block(c) + attention + 2 * block(2 * c)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_images_must_be_halved():
    with pytest.raises(DetectorError, match="cannot be halved 2 times"):
        Denoiser(18, (8, 8, 8))


@pytest.mark.parametrize("width", [2, 5])
def test_a_first_width_without_room_for_the_time_is_refused(width):
    with pytest.raises(DetectorError, match=f"first width of {width} channels"):
        Denoiser(16, (width, 8))


def test_times_as_sines():
    found = sines(torch.tensor([0, 5]), 6)
    assert found[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert found[1].tolist() == pytest.approx(
        [math.sin(5), math.sin(0.05), math.sin(5e-4), math.cos(5), math.cos(0.05), math.cos(5e-4)],
        abs=1e-6,
    )
