import math

import pytest
import torch

from wsiad.networks.synthetic_anomalies import (
    cut_paste,
    distorted,
    pasted,
    perlin,
    scars,
    textured,
)

PLAIN = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def draws(seed=1):
    return torch.Generator().manual_seed(seed)


def test_rectangle_is_copied_to_its_place():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    found = pasted(
        image,
        half=torch.tensor([[1.0, 1.5]]),
        turn=torch.zeros(1),
        source=torch.tensor([[2.0, 2.5]]),
        target=torch.tensor([[6.0, 5.5]]),
        gain=torch.ones(1, 3),
    )
    expected = image.clone()
    expected[:, :, 5:7, 4:7] = image[:, :, 1:3, 1:4]
    torch.testing.assert_close(found, expected)


def test_a_quarter_turn_swaps_height_and_width():
    image = torch.rand(1, 3, 16, 16)
    turned = pasted(
        image,
        half=torch.tensor([[4.0, 1.0]]),
        turn=torch.tensor([math.pi / 2]),
        source=torch.tensor([[8.0, 8.0]]),
        target=torch.tensor([[8.0, 8.0]]),
        gain=torch.tensor([[2.0, 2.0, 2.0]]),
    )
    changed = (turned != image)[0, 0]
    assert changed[7:9, 4:12].all()
    assert int(changed.sum()) == 16


@pytest.mark.parametrize(("paste", "low", "high"), [(cut_paste, 0.01, 0.19), (scars, 0.01, 0.25)])
def test_a_share_of_the_image_is_changed_and_draws_decide(paste, low, high):
    found = paste(PLAIN, draws())
    share = (found != PLAIN).any(dim=1).float().mean(dim=(1, 2))
    assert float(share.min()) > low
    assert float(share.max()) < high
    assert torch.equal(found, paste(PLAIN, draws()))
    assert not torch.equal(found, paste(PLAIN, draws(2)))


def test_perlin_noise_is_0_at_the_corners_of_its_cells_and_smooth():
    noise = perlin(64, (2, 4), draws())
    assert noise.shape == (64, 64)
    assert float(noise.abs().max()) <= 1.01
    corners = noise[31:33, [15, 16, 31, 32, 47, 48]]
    assert float(corners.abs().max()) < 0.1
    assert float((noise[1:] - noise[:-1]).abs().max()) < 0.15


def test_only_what_the_mask_shows_is_changed():
    changed, mask = textured(PLAIN, draws(), share=0.5, opacity=(0.5, 1.0))
    differs = (changed != PLAIN).any(dim=1)
    assert not (differs & (mask == 0)).any()
    assert float(differs[mask == 1].float().mean()) > 0.95
    with_change = mask.flatten(1).any(dim=1)
    assert 0.2 < float(with_change.float().mean()) < 0.6
    nothing, none = textured(PLAIN, draws(), share=0.0, opacity=(0.5, 1.0))
    assert torch.equal(nothing, PLAIN)
    assert int(none.sum()) == 0
    same, _ = textured(PLAIN, draws(), share=1.0, opacity=(0.0, 0.0))
    torch.testing.assert_close(same, PLAIN)


def test_distorted_images_stay_in_their_range_and_differ():
    found = distorted(PLAIN, draws())
    assert found.shape == PLAIN.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert ((found - PLAIN).abs().mean(dim=(1, 2, 3)) > 0.02).all()
