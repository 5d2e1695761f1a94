"""Fitting slides: stable, deterministic, and guarded where there is no stain to fit."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.stain_images import GLASS, HE, angles_deg, noisy, painted, tissue
from wsiad.core.errors import StainError
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram, to_lab
from wsiad.stain.fit import fit_stains, glass_colour, stained_tissue
from wsiad.stain.profile import reference_profile

FITTED = ["vahadane", "macenko", "reinhard"]
PCAM = Path(__file__).parents[3] / "shared" / "data" / "pcam" / "train_normal.tar"


def histogram(rgb, mask=None):
    made = ColourHistogram()
    made.add(np.asarray(rgb), mask)
    return made


def fit(rgb, method="vahadane", mask=None):
    return fit_stains(histogram(rgb, mask), method=method)


@pytest.mark.parametrize("method", ["vahadane", "macenko"])
def test_stains_of_a_slide_and_its_glass_are_found(method):
    profile = fit(tissue(white=GLASS, glass=0.3), method)
    assert profile.fallback is None
    assert angles_deg(profile.stains.matrix, HE).max() < 2.5
    assert np.abs(np.subtract(profile.white, GLASS)).max() < 1.5
    assert profile.quality.angle_deg == pytest.approx(profile.stains.angle_deg)


def test_haematoxylin_stays_first_under_subsampling_and_channel_noise():
    image = tissue(edge=384)
    first = fit(image).stains.matrix
    rng = np.random.default_rng(0)
    for round_ in range(12):
        pixels = image.reshape(-1, 3)[rng.choice(384 * 384, 9000, replace=False)]
        shifted = pixels + rng.normal(0, 3, (1, 3)) + rng.normal(0, 2, pixels.shape)
        found = fit(np.clip(shifted, 0, 255).round().astype(np.uint8), FITTED[round_ % 2])
        assert found.fallback is None
        assert found.stains.haematoxylin[0] > found.stains.eosin[0]
        assert angles_deg(found.stains.matrix, first).max() < 6


def test_same_pixels_same_profile_whatever_the_blocks():
    image = tissue(seed=5)
    for method in FITTED:
        whole = fit(image, method)
        parts = ColourHistogram()
        for block in np.array_split(image[::-1], 7):
            parts.add(block)
        assert fit_stains(parts, method=method) == whole == fit(image, method)


def test_pixels_outside_of_the_mask_tell_of_glass_only():
    image = tissue(white=GLASS, glass=0.0)
    glass = noisy(GLASS, sigma=1.0)
    dirty = painted(glass, (75, 45, 110), 0.5)
    mask = np.zeros((256, 512), bool)
    mask[:, :256] = True
    profile = fit(np.hstack([image, dirty]), mask=mask)
    assert np.abs(np.subtract(profile.white, GLASS)).max() <= 1
    clean = fit(np.hstack([image, glass]), mask=mask)
    assert angles_deg(profile.stains.matrix, clean.stains.matrix).max() < 0.01


def test_glass_that_fills_in_for_what_was_not_scanned_is_no_glass():
    image = tissue(white=GLASS, glass=0.3)
    padding = np.full_like(image, 255)
    assert glass_colour(histogram(np.hstack([image, padding]))) == glass_colour(histogram(image))


def test_too_little_glass_counts_as_white():
    assert glass_colour(histogram(tissue(white=(230, 230, 230), glass=0.001))) == (255, 255, 255)


def test_clipped_channels_do_not_draw_the_stains():
    image = tissue()
    clean = fit(image)
    spoilt = image.copy()
    spoilt[::8, :, 1] = 0
    assert angles_deg(fit(spoilt).stains.matrix, clean.stains.matrix).max() < 0.5


def few_dark_pixels():
    image = noisy(GLASS)
    image[5, 5:25] = 30
    return image


def one_stain():
    amounts = np.random.default_rng(0).uniform(0.2, 1.5, (256, 256, 1))
    rgb = 255 * np.exp(-amounts * [0.25, 0.80, 0.55])
    return rgb.round().astype(np.uint8)


UNFIT = {
    "nothing at all": (np.empty((0, 3), np.uint8), "0 pixels"),
    "white": (np.full((256, 256, 3), 255, np.uint8), "0 pixels"),
    "glass": (noisy(GLASS), "0 pixels"),
    "glass and 20 dark pixels": (few_dark_pixels(), "0 pixels"),
    "one colour": (np.full((256, 256, 3), (220, 130, 169), np.uint8), "one colour"),
    "all black": (np.zeros((256, 256, 3), np.uint8), "0 pixels"),
    "one colour and little noise": (noisy((220, 130, 169), sigma=2), "one colour"),
    "one colour and noise": (noisy((220, 130, 169), sigma=4), "apart"),
    "one colour and much noise": (noisy((220, 130, 169), sigma=7), "told apart"),
    "one stain": (one_stain(), "one colour"),
    "grey": (noisy((120, 120, 120)), "pixels of stained tissue"),
    "green pen on glass": (painted(noisy(GLASS), (30, 140, 70), 0.3), "pixels of stained tissue"),
    "blue pen on glass": (painted(noisy(GLASS), (40, 60, 180), 0.3), "pixels of stained tissue"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_slides_without_a_stain_fall_back_and_say_why(name):
    image, reason = UNFIT[name]
    profile = fit(image)
    assert reason in profile.fallback
    assert profile.stains == reference_profile().stains
    assert profile.quality.stained_pixels == stained_tissue(histogram(image), profile.white).pixels


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
@pytest.mark.parametrize("name", [n for n in UNFIT if n != "one colour and much noise"])
def test_other_methods_fall_back_too(name, method):
    profile = fit(UNFIT[name][0], method)
    reference = reference_profile(method)
    assert profile.fallback
    assert (profile.stains, profile.lab) == (reference.stains, reference.lab)


@pytest.mark.parametrize(
    ("colour", "share", "sigma"),
    [
        ((8, 8, 8), 0.5, 3),  # black scan border
        ((40, 40, 42), 0.5, 3),  # dark grey scan border
        ((40, 60, 180), 0.25, 8),  # blue pen
        ((30, 140, 70), 0.25, 8),  # green pen
        ((30, 30, 30), 0.25, 4),  # black pen
    ],
)
@pytest.mark.parametrize("method", ["vahadane", "macenko"])
def test_borders_and_pens_do_not_move_the_stains(colour, share, sigma, method):
    image = tissue(edge=384)
    clean = fit(image[round(384 * share) :], method).stains
    spoilt = fit(painted(image, colour, share, sigma=sigma), method).stains
    assert angles_deg(spoilt.matrix, clean.matrix).max() < 1.5
    assert np.allclose(spoilt.strength, clean.strength, rtol=0.05)


def test_two_slides_in_one_are_refused_rather_than_mixed():
    """Slides whose stains differ more in blue than H from E have no common pair of stains."""
    one = tissue([[0.50, 0.72, 0.49], [0.45, 0.74, 0.50]], seed=1)
    other = tissue([[0.50, 0.84, 0.20], [0.45, 0.87, 0.21]], seed=2)
    assert "told apart" in fit(np.hstack([one, other])).fallback


@given(st.integers(0, 2**32 - 1), st.sampled_from(FITTED))
@settings(max_examples=40, deadline=None)
def test_no_slide_whatever_makes_a_fit_fail(seed, method):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (int(rng.integers(1, 6)), 3))
    pixels = palette[rng.integers(0, len(palette), 9000)]
    pixels = pixels + rng.normal(0, rng.choice([0, 1, 5, 30]), pixels.shape)
    profile = fit(np.clip(pixels, 0, 255).astype(np.uint8), method)
    numbers = [*profile.white]
    if profile.stains:
        numbers += [*profile.stains.matrix.ravel(), *profile.stains.strength]
        assert min(profile.stains.strength) >= 0.4
    else:
        numbers += [*profile.lab.mean, *profile.lab.std]
    assert np.isfinite(numbers).all()


def test_method_none_fits_nothing():
    assert fit(tissue(), "none") == reference_profile("none")


def test_unknown_method_is_refused():
    with pytest.raises(StainError, match=r"unknown stain method 'vahadan'.*Known: vahadane"):
        fit(tissue(), "vahadan")


@pytest.mark.parametrize(
    ("rgb", "mask"),
    [
        (np.zeros((4, 4, 3)), None),
        (np.zeros((4, 4), np.uint8), None),
        (np.zeros((4, 4, 4), np.uint8), None),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), bool)),
    ],
)
def test_what_is_no_rgb_or_no_mask_of_it_is_refused(rgb, mask):
    with pytest.raises(StainError, match="expected"):
        ColourHistogram().add(rgb, mask)


def test_input_is_left_as_it_was():
    image = tissue()
    image[0, 0] = 0
    kept = image.copy()
    fit(image)
    assert np.array_equal(image, kept)


@pytest.mark.skipif(not PCAM.exists(), reason=f"{PCAM} is absent")
@pytest.mark.parametrize("method", FITTED)
def test_lymph_node_of_two_centres_looks_alike_once_normalised(method):
    """Colours of real tiles from both centres of CAMELYON16, compared by their quantiles."""
    with tarfile.open(PCAM) as tar:
        members = tar.getmembers()[::12]
        files = (tar.extractfile(member) for member in members)
        tiles = np.stack([np.asarray(Image.open(io.BytesIO(f.read()))) for f in files])
    centres = [tiles[part] for part in centre_of(tiles)]
    before = [stained_tissue(histogram(part), (255, 255, 255)) for part in centres]
    after = []
    for part in centres:
        profile = fit(part, method)
        assert profile.fallback is None
        table = ColourTable.between(profile, reference_profile(method))
        after.append(stained_tissue(histogram(table.apply(part)), (255, 255, 255)))
    shrunk = lab_distance(*after) / lab_distance(*before)
    assert shrunk[1:].max() < 0.25  # a* and b*: what is the stain's
    assert fit(tiles).fallback or method == "reinhard"  # both at once have no common stains


def centre_of(tiles):
    """Mean blue over green density of each tile's tissue parts the centres."""
    ratios = []
    for tile in tiles:
        pixels = tile.reshape(-1, 3)
        density = -np.log(np.maximum(pixels[pixels.mean(axis=1) < 180], 1) / 255)
        ratios.append(density[:, 2].sum() / density[:, 1].sum() if len(density) > 1000 else np.nan)
    return np.array(ratios) < 0.5, np.array(ratios) > 0.6


def lab_distance(one, other):
    """Mean difference of the quantiles of L*, a* and b*."""
    shares = np.linspace(0.01, 0.99, 99)
    curves = [
        np.stack([np.interp(shares, *distribution(sample, k)) for k in range(3)])
        for sample in (one, other)
    ]
    return np.abs(curves[0] - curves[1]).mean(axis=1)


def distribution(sample, channel):
    values = to_lab(sample.rgb)[:, channel]
    order = np.argsort(values)
    return np.cumsum(sample.weights[order]) / sample.weights.sum(), values[order]
