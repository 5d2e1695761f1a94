"""Progressive growing of the Deep Perceptual Autoencoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from support.tiny_dpa import CPU, HEALTHY, SMOOTH, TINY, context, detector, equal, tiny_vgg
from wsiad.core.config import build, read_yaml
from wsiad.core.errors import ConfigError, DetectorError, InputError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors._perceptual import statistics_by_px
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.learning.detector import Budget, HealthyTiles, InputSpec, State
from wsiad.networks import vgg
from wsiad.networks.autoencoder import AutoencoderShape, seeded_autoencoder
from wsiad.networks.growing import (
    GrowingAutoencoder,
    GrowingDistance,
    faded,
    growing_edges,
    seeded_growing,
    shrunk,
)
from wsiad.networks.perceptual import RelativePerceptualL1, channel_statistics
from wsiad.networks.vgg import Vgg19
from wsiad.store.dataset import ArrayTiles
from wsiad.verbs.train import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "camelyon16"
PUBLISHED = AutoencoderShape(64, 8, (4, 4, 4, 4), 4)
SHAPE = AutoencoderShape(32, 8, (4, 5, 6), 3)
GROWING = {
    "start_px": 8,
    "stabilise_steps": 3,
    "transition_steps": {16: 4, 32: 3},
    "layers": {8: {"relu1_2": 1.0}, 16: {"relu1_2": 0.5, "relu2_1": 1.0}},
    "batch": {8: 8},
}  # 3 × 8 px, 4 to 16, 3 × 16, 3 to 32, then 32 px from step 13 on


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_vgg(), path)
    return str(path)


def images(seed, edge, count=2):
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def doubles():
    """Outputs of an untrained network are large: float64 tells rounding from mistakes."""
    return seeded_growing(SHAPE, 8, 1).double()


def doubled(array):
    return np.kron(array, np.ones((1, 1, 2, 2)))


def halved(array):
    return array.reshape(*array.shape[:2], array.shape[2] // 2, 2, -1, 2).mean(axis=(3, 5))


# --- the network ----------------------------------------------------------------------


@pytest.mark.parametrize("blocks", ["residual18", "residual9"])
@pytest.mark.parametrize(("latent", "start"), [(8, 8), (8, 16), (1, 4), (1, 16), (16, 32)])
def test_all_resolutions_have_their_shapes(blocks, latent, start):
    widths = tuple(range(3, 3 + len(AutoencoderShape.edges(64, latent))))
    network = GrowingAutoencoder(AutoencoderShape(64, latent, widths, 5, blocks=blocks), start)
    assert (network.edges[0], network.edges[-1]) == (start, 64)
    for px in network.edges:
        for alpha in (1.0,) if px == start else (1.0, 0.5):
            assert network(images(1, px), px=px, alpha=alpha).shape == (2, 3, px, px)


def test_final_network_is_the_one_that_does_not_grow():
    network, ungrown = seeded_growing(PUBLISHED, 16, 7), seeded_autoencoder(PUBLISHED, 7)
    assert sum(p.numel() for p in network.final.parameters()) == 4_959
    assert equal(network.final.state_dict(), ungrown.state_dict())
    x = images(2, 64)
    assert torch.equal(network(x, px=64), ungrown(x))
    # For 16 and 32 px each: 3 × 3 from and to 3 colours, two blocks of two 3 × 3 at 4 channels.
    heads = 2 * ((27 * 4 + 4) + 4 * (36 * 4 + 4) + (36 * 3 + 3))
    assert sum(p.numel() for p in network.parameters()) == 4_959 + heads


def test_transition_by_hand():
    network, x, alpha = doubles(), images(3, 32).double(), 0.3
    # 32 px in: 0–2, to 16 px: 3–4, to 8 px: 5–6, latent: 7. Out: latent 0, 1–2, 3–4, image 5–6.
    encoder, decoder = network.final.encoder, network.final.decoder
    above = encoder[:5](x)
    below = network.from_image["16"](torch.from_numpy(halved(x.numpy())))
    latent = encoder[5:]((1 - alpha) * below + alpha * above)
    h = decoder[:3](latent)
    lower = torch.from_numpy(doubled(network.to_image["16"](h).detach().numpy()))
    expected = (1 - alpha) * lower + alpha * decoder[3:](h)
    torch.testing.assert_close(network(x, px=32, alpha=alpha), expected)


@pytest.mark.parametrize("px", [16, 32])
def test_transition_ends_as_the_stabilised_network(px):
    network, x = doubles(), images(4, px).double()
    stabilised = network(x, px=px)
    almost = network(x, px=px, alpha=1 - 1e-12)  # computes both resolutions
    torch.testing.assert_close(almost, stabilised, atol=1e-7, rtol=1e-7)
    assert not torch.allclose(network(x, px=px, alpha=0.9), stabilised, rtol=1e-3)


@pytest.mark.parametrize("px", [16, 32])
def test_transition_begins_as_the_stage_before_enlarged(px):
    network, small = doubles(), images(5, px // 2).double()
    large = torch.from_numpy(doubled(small.numpy()))
    before = doubled(network(small, px=px // 2).detach().numpy())
    found = network(large, px=px, alpha=0.0).detach().numpy()
    np.testing.assert_allclose(found, before, rtol=1e-9)


def test_only_what_a_stage_uses_is_trained():
    network = seeded_growing(SHAPE, 8, 1)

    def trained(px, alpha):
        network.zero_grad(set_to_none=True)
        network(images(6, px), px=px, alpha=alpha).sum().backward()
        return {name for name, p in network.named_parameters() if p.grad is not None}

    final = {f"final.{name}" for name, _ in network.final.named_parameters()}
    assert trained(32, 1.0) == final
    heads = {"from_image.16", "to_image.16"}
    assert {name[: name.index("16") + 2] for name in trained(32, 0.5) - final} == heads
    assert not any("32" in name or ".16." in name for name in trained(8, 1.0))
    used = trained(8, 1.0) | trained(16, 0.5) | trained(16, 1.0) | final
    assert used == {name for name, _ in network.named_parameters()}


def test_start_that_is_no_resolution_is_refused():
    for start in (4, 12, 128):
        with pytest.raises(DetectorError, match="cannot start"):
            growing_edges(PUBLISHED, start)
    assert growing_edges(PUBLISHED, 64) == (64,)


# --- images and loss ------------------------------------------------------------------


def test_shrinking_samples_the_middle_pixels():
    x = images(7, 16)
    array = x.numpy()
    np.testing.assert_allclose(shrunk(x, 8).numpy(), halved(array), atol=1e-6)
    middle = array.reshape(2, 3, 4, 4, 4, 4)[:, :, :, 1:3, :, 1:3].mean(axis=(3, 5))
    np.testing.assert_allclose(shrunk(x, 4).numpy(), middle, atol=1e-6)
    assert shrunk(x, 16) is x


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_faded_images_by_hand(alpha):
    x = images(8, 16)
    array = x.numpy()
    middle = array.reshape(2, 3, 4, 4, 4, 4)[:, :, :, 1:3, :, 1:3].mean(axis=(3, 5))
    expected = (1 - alpha) * doubled(middle) + alpha * halved(array)
    np.testing.assert_allclose(faded(x, px=8, alpha=alpha).numpy(), expected, atol=1e-6)


def test_loss_is_blended_by_hand():
    distances = {}
    for px, layers in ((8, {"relu1_2": 1.0}), (16, {"relu2_1": 1.0, "relu1_1": 2.0})):
        network = Vgg19(tiny_vgg(), list(layers))
        statistics = channel_statistics(network, [images(px, px, 9) * 0.5 + 0.5])
        distances[px] = RelativePerceptualL1(network, statistics, layers)
    x, y = images(9, 16), images(10, 16)
    both = GrowingDistance(distances)
    small = [torch.from_numpy(halved(image.numpy())) for image in (x, y)]
    for alpha in (0.0, 0.3, 0.9, 1.0):
        expected = alpha * distances[16](x, y) + (1 - alpha) * distances[8](*small)
        torch.testing.assert_close(both(x, y, px=16, alpha=alpha), expected)
    assert torch.equal(both(*small, px=8), distances[8](*small))


def test_pixels_in_the_loss_by_hand():
    network = Vgg19(tiny_vgg(), ["relu2_1"])
    statistics = channel_statistics(network, [images(1, 16) * 0.5 + 0.5])
    plain, pixels = (
        RelativePerceptualL1(network, statistics, {"relu2_1": 1.0}, image_weight=weight)
        for weight in (0.0, 0.7)
    )
    x, y = images(11, 16), images(12, 16)
    difference = np.abs(x.numpy() - y.numpy()).mean(axis=(1, 2, 3))
    found = pixels(x, y).numpy()
    np.testing.assert_allclose(found, plain(x, y).numpy() + 0.7 * difference, rtol=1e-5)
    np.testing.assert_allclose(pixels.places(x, y).mean(dim=(1, 2)).numpy(), found, rtol=1e-5)
    one = y.clone()
    one[0, :, 3, 5] = x[0, :, 3, 5] + 4  # a single pixel counts in its own place of 2 × 2 alone
    change = (pixels.places(x, one) - plain.places(x, one)) - (
        pixels.places(x, y) - plain.places(x, y)
    )
    assert set(map(tuple, torch.nonzero(change.abs() > 1e-4).tolist())) == {(0, 1, 2)}


# --- the detector ---------------------------------------------------------------------


def grown(**options):
    return detector(**{"growing": GROWING, **options})


def test_fit_keeps_the_autoencoder_of_the_last_stage(tmp_path, weights):
    found = grown()
    report = found.fit(HEALTHY, context(tmp_path / "run", weights, steps=17))
    assert (report.ended_by, report.steps) == ("max-steps", 17)
    assert report.notes["best_step"] > 13
    assert [n["first_step"] for n in report.notes["stages"]] == [0, 3, 7, 10, 13]
    assert [n["batch"] for n in report.notes["stages"]] == [8, 6, 6, 6, 6]
    ungrown = detector()
    ungrown.fit(HEALTHY, context(tmp_path / "ungrown", weights, steps=2))
    state = found.state()
    shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
    assert shapes == {name: tensor.shape for name, tensor in ungrown.state().tensors.items()}
    assert report.notes["parameters"] == sum(
        t.numel() for name, t in state.tensors.items() if name.startswith("autoencoder.")
    )
    # A detector that does not grow takes this state, and scores the same.
    tiles = SMOOTH[:, 4:36, 4:36]
    values = json.loads(json.dumps(state.values))
    ungrown.load_state(State(dict(state.tensors), values), CPU)
    np.testing.assert_array_equal(ungrown.score_places(tiles), found.score_places(tiles))


def test_growing_from_the_input_size_is_not_growing(tmp_path, weights):
    ungrown, alone = detector(), detector(growing={"start_px": 32})
    for name, each in (("ungrown", ungrown), ("alone", alone)):
        each.fit(HEALTHY, context(tmp_path / name, weights, steps=9))
    assert equal(ungrown.state().tensors, alone.state().tensors)


def test_growing_learns(tmp_path, weights):
    growing = {**GROWING, "stabilise_steps": 10, "transition_steps": 10}
    found = grown(learning_rate=3e-3, val_interval=50, log_interval=50, growing=growing)
    report = found.fit(HEALTHY, context(tmp_path, weights, steps=150))
    assert report.notes["best_stop_loss"] < 0.9  # about 1 is a decoder that gives a constant
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert found.score(noise).min() > found.score(SMOOTH[22:26, :32, :32]).max()


# After 5 steps: in the transition to 16 px; 8: stabilising it; 11: in that to 32 px; 14: last.
@pytest.mark.parametrize("killed_after", [5, 8, 11, 14])
def test_killed_fit_ends_like_one_that_was_not(tmp_path, weights, killed_after):
    options = {"checkpoint_seconds": 1e-9}
    whole = grown(**options)
    first = whole.fit(HEALTHY, context(tmp_path / "whole", weights, steps=16))

    class Dying(ArrayTiles):
        left = killed_after + 1  # one is read ahead

        def shuffled(self, batch, **order):
            for tiles in super().shuffled(batch, **order):
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
                yield tiles

    dying = HealthyTiles(Dying(SMOOTH[:22]), HEALTHY.stop)
    with pytest.raises(KeyboardInterrupt):
        grown(**options).fit(dying, context(tmp_path / "killed", weights, steps=16))
    resumed = grown(**options)
    second = resumed.fit(HEALTHY, context(tmp_path / "killed", weights, steps=16))
    assert equal(whole.state().tensors, resumed.state().tensors)
    assert first.notes["best_stop_loss"] == second.notes["best_stop_loss"]


UP = (
    r"the time was up after 0 steps \(stabilise 8 px\), before the last stage, which begins after "
    r"13\. Train again with larger max_minutes: the training continues from here"
)


def test_bounds_before_the_last_stage(tmp_path, weights):
    with pytest.raises(DetectorError, match="growing takes 13 steps before its last stage"):
        grown().fit(HEALTHY, context(tmp_path / "a", weights, steps=13))
    assert not (tmp_path / "a").exists()
    out = context(tmp_path / "b", weights)
    short = type(out)(
        seed=1,
        device=CPU,
        folder=out.folder,
        budget=Budget(None, 1e-9),
        weights=weights,
        quiet=True,
    )
    with pytest.raises(DetectorError, match=UP):
        grown().fit(HEALTHY, short)
    whole, resumed = grown(), grown()
    whole.fit(HEALTHY, context(tmp_path / "whole", weights, steps=15))
    resumed.fit(HEALTHY, context(tmp_path / "b", weights, steps=15))  # goes on from there
    assert equal(whole.state().tensors, resumed.state().tensors)


def test_identity_of_a_training_that_does_not_grow_is_as_it_was():
    identity = DpaOptions().identity(limit=5)
    assert not {"growing", "image_weight", "statistics_images"} & identity.keys()
    other = build(DpaOptions, {"growing": {}, "image_weight": 0.1}).identity(limit=5)
    assert other.keys() - identity.keys() == {"growing", "image_weight"}


def test_resuming_with_another_growing_is_refused(tmp_path, weights):
    grown().fit(HEALTHY, context(tmp_path, weights, steps=14))
    with pytest.raises(RunError, match="growing"):
        grown(growing={**GROWING, "stabilise_steps": 2}).fit(
            HEALTHY, context(tmp_path, weights, steps=14)
        )


@pytest.mark.parametrize(
    ("growing", "message"),
    [
        ({"start_px": 12}, "cannot start at 12 px"),
        ({"layers": {32: {"relu1_1": 1}}}, "growing.layers cannot be set for 32 px"),
        ({"batch": {32: 4}}, "growing.batch cannot be set for 32 px"),
        ({"stabilise_steps": {32: 4}}, "growing.stabilise_steps cannot be set for 32 px"),
        ({"transition_steps": {8: 4}}, "growing.transition_steps cannot be set for 8 px"),
    ],
)
def test_growing_that_does_not_fit(growing, message):
    with pytest.raises(DetectorError, match=message):
        detector(growing={"start_px": 8, **growing})


@pytest.mark.parametrize(
    "growing", [{"layers": {16: {"relu9_1": 1}}}, {"start": 8}, {"batch": {8: 0}}, True]
)
def test_bad_growing_options(growing):
    with pytest.raises(ConfigError):
        detector(growing=growing)


def test_images_too_small_for_a_layer(tmp_path, weights):
    growing = {"start_px": 8, "layers": {8: {"relu5_1": 1.0}}}
    with pytest.raises(DetectorError, match="8 px have no features at relu5_1") as error:
        detector(growing=growing).fit(HEALTHY, context(tmp_path, weights, steps=10**6))
    assert "16 px" in error.value.remedy


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("layer", ["conv1_1", "relu2_2", "pool2", "relu3_1", "pool3", "conv5_1"])
def test_least_size_is_the_one_at_which_the_network_works(layer, padding):
    network = Vgg19(tiny_vgg(), [layer], padding=padding)
    least = vgg.least_px([layer], padding=padding)
    assert min(network(images(0, least))[layer].shape[2:]) >= 1
    if least > 1:
        with pytest.raises(RuntimeError):
            network(images(0, least // 2))


# --- statistics -----------------------------------------------------------------------


def test_statistics_are_those_of_the_resolution(weights):
    options = build(DpaOptions, {**TINY, "growing": GROWING})
    tiles = ArrayTiles(SMOOTH[:5, :32, :32])  # as large as the windows: only flips are random
    networks = {px: Vgg19(tiny_vgg(), ["conv1_1"]) for px in (16, 32)}
    found, source = statistics_by_px(options, networks, tiles, size=32, seed=1, device=CPU)
    assert source == "5 healthy tiles"
    for px in (16, 32):
        x = torch.from_numpy(SMOOTH[:5, :32, :32]).permute(0, 3, 1, 2).float() / 255
        x = functional.avg_pool2d(x, 32 // px)
        flips = [x, x.flip(2), x.flip(3), x.flip(2, 3)]
        each = torch.stack([networks[px](f)["conv1_1"].mean(dim=(2, 3)) for f in flips])
        # The mean is one of the means over the choices of flips.
        mean = found[px]["conv1_1"].mean
        assert (mean >= each.amin(dim=0).mean(dim=0) - 1e-6).all()
        assert (mean <= each.amax(dim=0).mean(dim=0) + 1e-6).all()
    assert not torch.allclose(found[16]["conv1_1"].std, found[32]["conv1_1"].std, rtol=1e-3)


def picture(path, array):
    Image.fromarray(array).save(path)


def test_statistics_of_a_folder_of_images(tmp_path, weights):
    folder = tmp_path / "natural"
    (folder / "class").mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    picture(folder / "b.png", pixels[0])
    picture(folder / "a.png", pixels[1])
    picture(folder / "class" / "c.png", pixels[2])
    picture(folder / "grey.png", np.full((40, 60), 90, np.uint8))
    (folder / "notes.txt").write_text("no picture")
    found = detector(statistics_images=str(folder))
    report = found.fit(HEALTHY, context(tmp_path / "run", weights))
    assert report.notes["statistics"].startswith("4 images of natural (windows sha256:")
    grey = np.full((1, 32, 32, 3), 90, np.uint8)
    x = torch.from_numpy(np.concatenate([pixels, grey])).permute(0, 3, 1, 2).float() / 255
    features = Vgg19(tiny_vgg(), ["relu2_2"])(x)["relu2_2"].double()
    state = found.state().tensors
    torch.testing.assert_close(
        state["statistics.relu2_2.mean"].double(),
        features.mean(dim=(0, 2, 3)),
        atol=1e-6,
        rtol=1e-5,
    )
    std = features.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(state["statistics.relu2_2.std"].double(), std, atol=1e-6, rtol=1e-5)
    picture(folder / "a.png", pixels[0])  # the same names and count, other pixels
    with pytest.raises(RunError, match="statistics"):
        detector(statistics_images=str(folder)).fit(HEALTHY, context(tmp_path / "run", weights))
    fewer = detector(statistics_images=str(folder), statistics_tiles=2)
    report = fewer.fit(HEALTHY, context(tmp_path / "fewer", weights))
    assert report.notes["statistics"].startswith("2 images of natural")


def test_folders_that_statistics_cannot_be_taken_from(tmp_path, weights):
    def fit(folder):
        detector(statistics_images=str(folder)).fit(HEALTHY, context(tmp_path / "run", weights))

    with pytest.raises(DetectorError, match="no such folder"):
        fit(tmp_path / "gone")
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(DetectorError, match="holds no picture"):
        fit(folder)
    picture(folder / "small.png", np.zeros((20, 50, 3), np.uint8))
    with pytest.raises(InputError, match="50 × 20 px; a window needs 32 × 32"):
        fit(folder)
    (folder / "small.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="cannot be read as a JPEG"):
        fit(folder)
    with pytest.raises(ConfigError, match="not two of them"):
        detector(statistics_images=str(folder), statistics_file="s.json")


# --- shipped configurations -----------------------------------------------------------


def shipped(name):
    values = {"store": "s", "out": "o", **read_yaml(CONFIGS / name)}
    config = build(TrainConfig, values)
    return config, build(DpaOptions, config.options)


def test_published_configurations():
    config, options = shipped("train-dpa-growing.yaml")
    found = DeepPerceptualAutoencoder(options, InputSpec(TilePx(64), Mpp(0.972)))
    stages = found.options.stages(64)
    assert [(s.px, s.transition, s.steps, s.batch) for s in stages.spans] == [
        (16, False, 20_000, 128),
        (32, True, 20_000, 128),
        (32, False, 20_000, 128),
        (64, True, 20_000, 128),
        (64, False, None, 128),
    ]
    assert config.max_steps - stages.last_start == 8_666
    layers = {16: {"relu3_2": 1}, 32: {"relu3_2": 1}, 64: {"relu4_2": 1}}
    assert options.layers_by_px(64) == layers
    assert options.shape(64) == PUBLISHED
    defaults = build(DpaOptions, {"growing": {}})
    assert defaults.layers_by_px(64) == layers
    assert defaults.stages(64).spans == stages.spans
    config, ungrown = shipped("train-dpa.yaml")
    assert (config.max_steps, ungrown.growing, ungrown.shape(64)) == (34_666, None, PUBLISHED)
    assert ungrown.layers_by_px(64) == {64: {"relu4_2": 1}}
