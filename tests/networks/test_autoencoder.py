import pytest
import torch

from wsiad.core.errors import DetectorError
from wsiad.networks.autoencoder import (
    Autoencoder,
    AutoencoderShape,
    ResidualBlock,
    seeded_autoencoder,
)


def shape(image, latent, width, latent_channels=None, colours=3, blocks="residual18"):
    count = len(AutoencoderShape.edges(image, latent))
    return AutoencoderShape(
        image, latent, (width,) * count, latent_channels or width, colours, blocks
    )


def parameters(shape):
    return sum(p.numel() for p in Autoencoder(shape).parameters())


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        # Counts of the authors' released configurations.
        ((64, 8, 4), 4_959),
        ((64, 16, 64), 889_795),
        ((64, 16, 32), 223_715),
        ((64, 1, 16, 16, 1), 92_049),
        ((64, 1, 64, 64, 1), 1_461_825),
    ],
)
def test_parameter_counts_are_the_published_ones(sizes, count):
    assert parameters(shape(*sizes)) == count


def test_encoder_and_decoder_of_the_camelyon_setting():
    network = Autoencoder(shape(64, 8, 4))
    assert sum(p.numel() for p in network.encoder.parameters()) == 2_776
    assert sum(p.numel() for p in network.decoder.parameters()) == 2_183


@pytest.mark.parametrize("blocks", ["residual18", "residual9"])
@pytest.mark.parametrize(("image", "latent"), [(64, 8), (32, 1), (48, 6), (16, 16), (16, 2)])
def test_shapes(image, latent, blocks):
    network = Autoencoder(shape(image, latent, 4, 5, blocks=blocks))
    images = torch.zeros(2, 3, image, image)
    assert network.encoder(images).shape == (2, 5, latent, latent)
    assert network(images).shape == images.shape


def test_widths_by_resolution():
    network = Autoencoder(AutoencoderShape(32, 8, (4, 8, 16), 2))
    widths = [m.conv1.out_channels for m in network.encoder if isinstance(m, ResidualBlock)]
    assert widths == [4, 4, 8, 8, 16, 16, 2]
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_residual_block_by_hand():
    block = ResidualBlock(1, 1, torch.nn.AvgPool2d(2))
    with torch.no_grad():
        for conv in (block.conv1, block.conv2):
            conv.weight.zero_()
            conv.weight[0, 0, 1, 1] = 2.0
            conv.bias.fill_(1.0)
    x = torch.tensor([[[[-10.0, 2.0], [4.0, 0.0]]]])
    # main: LReLU(0.2) -> -2, 2, 4, 0 -> mean 1 -> 2·1+1 = 3 -> LReLU 3 -> 2·3+1 = 7; skip: mean -1
    assert block(x).item() == pytest.approx(7 - 1)


def test_output_is_not_bounded():
    network = Autoencoder(shape(16, 4, 4))
    assert network(torch.full((1, 3, 16, 16), 1e4)).abs().max() > 10


def test_weights_follow_kaiming_fan_out():
    network = seeded_autoencoder(shape(64, 8, 128), 3)
    weight = network.encoder[1].conv1.weight
    expected = (2 / (1 + 0.2**2) / (128 * 9)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.01)


def test_seed_decides_weights_and_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    first, same, other = (seeded_autoencoder(shape(16, 4, 4), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.encoder[0].weight, same.encoder[0].weight)
    assert not torch.equal(first.encoder[0].weight, other.encoder[0].weight)


@pytest.mark.parametrize(("image", "latent"), [(60, 8), (64, 128), (63, 1), (2, 1)])
def test_sizes_that_do_not_halve_are_refused(image, latent):
    with pytest.raises(DetectorError, match="cannot be halved"):
        AutoencoderShape.edges(image, latent)


def test_wrong_number_of_widths_is_refused():
    with pytest.raises(DetectorError, match=r"2 channel widths .* 4 resolutions"):
        AutoencoderShape(64, 8, (4, 4), 4)
