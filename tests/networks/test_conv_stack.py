"""Stacks have the sizes and parameter counts of the networks that were published with them."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from wsiad.core.errors import DetectorError
from wsiad.networks.conv_stack import Critic, Decoder, Encoder, seeded
from wsiad.networks.stack_options import StackOptions
from wsiad.networks.stack_shape import Level, StackShape


class StackAutoencoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)

    def forward(self, x):
        found = self.encoder.features(x)
        return self.decoder(self.encoder.head(found[-1]), found)


def count(module):
    return sum(p.numel() for p in module.parameters())


def levels(*widths, **given):
    return tuple(Level(width, **given) for width in widths)


def conv(a, b, k, bias=False):
    return a * b * k * k + (b if bias else 0)


def dense(a, b):
    return a * b + b


DCGAN = StackShape(
    64,
    levels(64, 128, 256, 512),
    "conv",
    latent_channels=100,
    norm_first=False,
    up_activation="relu",
    bias=False,
    output="tanh",
    initial="normal",
)
MEDIANOMALY = StackShape(
    64,
    levels(16, 32, 64, 64),
    "dense",
    latent_channels=16,
    hidden=(2048,),
    activation="relu",
    bias=False,
)
F_ANOGAN = StackShape(
    64,
    levels(128, 256, 512, 512, kernel=3, residual=True),
    "dense",
    latent_channels=128,
    stem=64,
    norm="layer",
    activation="relu",
    out_kernel=3,
    output="tanh",
)
RIAD = StackShape(
    64,
    levels(64, 128, 256, 512, 512),
    "spatial",
    activation="relu",
    skips=True,
    output="tanh",
)
BERGMANN = StackShape(
    128,
    (
        Level(32),
        Level(32),
        Level(32, 3, 1),
        Level(64),
        Level(64, 3, 1),
        Level(128),
        Level(64, 3, 1),
        Level(32, 3, 1),
    ),
    "conv",
    latent_channels=100,
    norm="none",
)


def test_dcgan_has_the_known_counts():
    # The counts of PyTorch's own DCGAN example.
    assert count(Decoder(DCGAN)) == 3_576_704
    assert count(Critic(DCGAN)) == 2_765_568


def test_ganomaly_is_two_encoders_and_a_decoder_of_dcgan():
    widths = (3, 64, 128, 256, 512)
    convs = sum(conv(a, b, 4) for a, b in pairwise(widths))
    encoder = convs + 2 * (128 + 256 + 512) + conv(512, 100, 4)
    decoder = convs + 2 * (64 + 128 + 256 + 512) + conv(512, 100, 4)
    found = [Encoder(DCGAN), Decoder(DCGAN), Encoder(DCGAN)]
    assert sum(map(count, found)) == 2 * encoder + decoder


def test_medianomaly_by_its_formula():
    widths = (3, 16, 32, 64, 64)
    convs = sum(conv(a, b, 4) for a, b in pairwise(widths))
    half = convs + 2 * 2048 + dense(1024, 2048) + dense(2048, 16)
    other = convs + 2 * 2048 + dense(16, 2048) + dense(2048, 1024)
    norms = 2 * (16 + 32 + 64 + 64) + 2 * (64 + 32 + 16)
    assert count(StackAutoencoder(MEDIANOMALY)) == half + other + norms
    # A variational latent has twice the outputs.
    more = count(Encoder(MEDIANOMALY, outputs=32)) - count(Encoder(MEDIANOMALY))
    assert more == 2048 * 16 + 16


def test_f_anogan_by_its_formula():
    widths = (64, 128, 256, 512, 512)

    def block(a, b, inner, norms):
        main = conv(a, inner, 3, True) + conv(inner, b, 3, True) + 2 * norms
        return main + (0 if a == b else conv(a, b, 1, True))

    critic = conv(3, 64, 3, True) + dense(512 * 16, 1)
    critic += sum(block(a, b, a, 2 * a) for a, b in pairwise(widths))
    assert count(Critic(F_ANOGAN)) == critic
    made = dense(128, 512 * 16) + 2 * 64 + conv(64, 3, 3, True)
    made += sum(block(a, b, b, a + b) for a, b in pairwise(widths[::-1]))
    assert count(Decoder(F_ANOGAN)) == made


def test_u_net_by_its_formula():
    down = sum(conv(a, b, 4, True) for a, b in pairwise((3, 64, 128, 256, 512, 512)))
    ups = [(512, 512), (1024, 256), (512, 128), (256, 64), (128, 3)]
    up = sum(conv(a, b, 4, True) for a, b in ups)
    norms = 2 * (64 + 128 + 256 + 512 + 512) + 2 * (512 + 256 + 128 + 64)
    assert count(StackAutoencoder(RIAD)) == down + up + norms


def test_ssim_autoencoder_by_its_formula():
    widths = (3, 32, 32, 32, 64, 64, 128, 64, 32)
    kernels = (4, 4, 3, 4, 3, 4, 3, 3)
    weights = sum(conv(a, b, k) for (a, b), k in zip(pairwise(widths), kernels, strict=True))
    biases = sum(widths[1:]) + 100 + 32 + sum(widths[:-1])
    assert count(StackAutoencoder(BERGMANN)) == 2 * (weights + conv(32, 100, 8)) + biases


SHAPES = [DCGAN, MEDIANOMALY, F_ANOGAN, RIAD, BERGMANN]
SMALL = {
    "kernel 5": StackShape(32, levels(4, 6, kernel=5), "spatial"),
    "pooling": StackShape(32, levels(4, 6, kernel=3, pool="max"), "spatial", norm="instance"),
    "U-Net of double convolutions": StackShape(
        32,
        levels(6, 8, kernel=3, pool="max", repeats=1),
        "spatial",
        stem=4,
        up="bilinear",
        skips=True,
        out_kernel=1,
        activation="relu",
    ),
    "spatial vector at each place": StackShape(
        32, levels(4, 6), "spatial", latent_channels=3, latent_activation="sigmoid"
    ),
    "nearest": StackShape(32, levels(4, 6, kernel=3), "conv", latent_channels=2, up="nearest"),
    "dense": StackShape(32, levels(4, 6), "dense", latent_channels=5, dropout=0.1),
}


@pytest.mark.parametrize("shape", [*SHAPES, *SMALL.values()])
def test_mirror_gives_an_image_of_the_same_size(shape):
    network = StackAutoencoder(shape).eval()
    x = torch.rand(2, 3, shape.image_px, shape.image_px)
    with torch.no_grad():
        made, latent = network(x), network.encoder(x)
    assert made.shape == x.shape
    edge = shape.latent_px
    wanted = (2, shape.code_channels) + ((edge, edge) if shape.latent == "spatial" else ())
    assert latent.shape == wanted
    if shape.output == "tanh":
        assert made.abs().max() <= 1
    if shape.latent_activation == "sigmoid":
        assert (latent > 0).all()
        assert (latent < 1).all()


def test_latent_is_the_only_way_without_skips():
    """A decoder of a constant latent knows nothing of the image; with skips it knows."""
    x = torch.rand(3, 3, 32, 32)
    plain = StackShape(32, levels(4, 6), "spatial")
    for shape, knows in ((plain, False), (SMALL["U-Net of double convolutions"], True)):
        network = StackAutoencoder(shape).eval()
        found = network.encoder.features(x)
        latent = torch.zeros_like(network.encoder.head(found[-1]))
        made = network.decoder(latent, found)
        assert torch.equal(made[0], made[1]) is not knows


def test_critic_judges_its_features():
    critic = seeded(lambda: Critic(DCGAN), 1).eval()
    x = torch.rand(3, 3, 64, 64)
    features = critic.features(x)
    assert features.shape == (3, 512, 4, 4)
    torch.testing.assert_close(critic(x), critic.judged(features))
    weight = critic.encoder.head[0].weight
    torch.testing.assert_close(critic(x), (features * weight).sum(dim=(1, 2, 3)))


def test_layer_norm_makes_an_image_independent_of_its_batch():
    critic = seeded(lambda: Critic(F_ANOGAN), 1)  # in training mode
    x = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(critic(x)[:1], critic(x[:1]), rtol=1e-4, atol=1e-5)


def test_spectral_norm_bounds_every_layer_of_a_critic():
    shape = StackShape(
        32,
        levels(4, 6),
        "dense",
        latent_channels=1,
        hidden=(5,),
        spectral=True,
        norm="none",
        initial="normal",
    )
    critic = seeded(lambda: Critic(shape), 1)
    layers = [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    for _ in range(60):  # a power iteration each
        critic(torch.rand(2, 3, 32, 32))
    critic.eval()
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(
            1, rel=1e-3
        )
    plain = Decoder(shape)
    assert not any("parametrizations" in name for name, _ in plain.named_parameters())


def test_weights_follow_from_the_seed_alone():
    shape = SMALL["kernel 5"]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = seeded(lambda: Encoder(shape), 1).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    again = seeded(lambda: Encoder(shape), 1).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    for other in ((2,), (1, 0), (1, 1)):
        found = seeded(lambda: Encoder(shape), *other).state_dict()
        assert not torch.equal(found["levels.0.0.weight"], one["levels.0.0.weight"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Conv2d(10**12, 10**12, 3),
        lambda: torch.randn(10**10),
        lambda: torch.zeros(size=(10**5, 10**5)),
        lambda: torch.eye(10**6),
        lambda: [torch.empty(1) for _ in range(10**9)],
        lambda: Encoder(StackShape(8, levels(10**9, 10**9), "spatial")),
    ],
    ids=["dense", "convolution", "drawn", "zeros", "identity", "many", "stack"],
)
def test_a_network_that_memory_cannot_hold_is_refused_before_it_is_made(build):
    with pytest.raises(DetectorError, match=r"more than 1,073,741,824 numbers is too large"):
        seeded(build, 1)


def test_a_bounded_network_is_the_same_and_draws_go_on_as_before():
    torch.manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = Encoder(DCGAN).state_dict()
    following = torch.rand(3)
    torch.manual_seed(5)
    found = seeded(lambda: Encoder(DCGAN), 1).state_dict()
    assert torch.equal(torch.rand(3), following)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_initial_law_of_dcgan():
    network = seeded(lambda: Decoder(DCGAN), 1)
    weights = torch.cat([p.flatten() for p in network.parameters() if p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.005)


def test_what_dense_layers_make_of_a_code_is_activated_by_an_option():
    stated = {"widths": (4, 6), "hidden": (5,), "norm": "layer"}
    plain, active = (StackOptions(**stated, active_start=start) for start in (False, True))
    assert "active_start" not in plain.model_dump()
    assert StackOptions(**active.model_dump()) == active
    networks = [
        seeded(lambda one=one: Decoder(one.shape(16, latent_channels=3, spatial=False)), 1).tail
        for one in (plain, active)
    ]
    codes = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    made = [tail(codes) for tail in networks]
    expected = torch.relu(torch.nn.functional.layer_norm(made[0].flatten(1), (6 * 16,)))
    torch.testing.assert_close(made[1].flatten(1), expected)
    with pytest.raises(ValueError, match="does nothing with vector: conv"):
        StackOptions(vector="conv", active_start=True)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"levels": ()}, "needs a level"),
        ({"levels": levels(4, 4, 4, 4, 4, 4), "image_px": 48}, "cannot be halved"),
        ({"levels": (Level(4, 4, 1),)}, "changes the resolution"),
        ({"latent": "dense"}, "needs a length"),
        ({"levels": levels(4, kernel=3, residual=True)}, "cannot make the image"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given, problem):
    whole = {"image_px": 32, "levels": levels(4), "latent": "spatial", **given}
    with pytest.raises(DetectorError, match=problem):
        StackShape(**whole)


def test_a_critic_judges_from_a_vector_of_features():
    x = torch.rand(2, 3, 64, 64)
    found = seeded(lambda: Critic(DCGAN, vector=7), 1).eval()
    features = found.features(x)
    assert features.shape == (2, 7)
    weights = found.judge.weight.flatten()
    torch.testing.assert_close(found(x), features @ weights)
    assert count(found) == count(Critic(DCGAN)) + 6 * 512 * 16 + 7
    assert found.places(x).shape == (2, 1, 1)


def test_a_critic_of_places_judges_each_of_them():
    shape = StackShape(16, (Level(4), Level(5)), latent="spatial", latent_channels=1, norm="none")
    found = seeded(lambda: Critic(shape), 1)
    x = torch.rand(3, 3, 16, 16)
    places = found.places(x)
    assert places.shape == (3, 4, 4)
    assert torch.equal(found(x), places.flatten())
    torch.testing.assert_close(found.places(x[1:2]), places[1:2])
    changed = x.clone()
    changed[:, :, 12:, 12:] = 0
    same = torch.isclose(found.places(changed), places)
    assert same[:, :2, :2].all()
    assert not same[:, 3, 3].any()
    assert found.places(x[:0]).shape[0] == 0


def test_instance_normalisation_accepts_no_images():
    shape = StackShape(16, (Level(4),), latent="spatial", norm="instance")
    found = seeded(lambda: Encoder(shape), 1)
    assert found(torch.rand(0, 3, 16, 16)).shape == (0, 4, 8, 8)
    made = found.levels[0][1](found.levels[0][0](torch.rand(2, 3, 16, 16)))
    torch.testing.assert_close(made.mean(dim=(2, 3)), torch.zeros(2, 4), atol=1e-5, rtol=0)
