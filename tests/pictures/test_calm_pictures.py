"""Pictures of a run: a healthy slide looks calm, and all slides share one scale."""

import json

import numpy as np
import pytest
from PIL import Image

from support.builders import write_tiff
from support.runs import score_channel
from wsiad.pictures.colour_scale import HEALTHY_LEVELS, ColourScale

STEP = 32


def tissue(red):
    """A slide whose windows have these means of red."""
    image = np.zeros((*np.multiply(red.shape, STEP), 3), np.uint8)
    image[..., 0] = np.kron(red, np.ones((STEP, STEP)))
    image[..., 1] = 30
    return image


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A healthy slide, as the run was calibrated (red of 0 to 100), and one with a lesion."""
    folder = tmp_path_factory.mktemp("calm")
    rng = np.random.default_rng(0)
    healthy = rng.integers(30, 100, size=(10, 16))
    sick = healthy.copy()
    sick[4:6, 4:7] = 240
    (folder / "slides").mkdir()
    for name, red in (("healthy", healthy), ("sick", sick)):
        write_tiff(folder / "slides" / f"{name}.tif", tissue(red), mpp=0.5, levels=1)
    return score_channel(folder, folder / "slides")


def picture(folder):
    with Image.open(folder / "heatmap.png") as image:
        return np.asarray(image)


def test_a_healthy_slide_is_calm_and_a_lesion_is_not(results):
    healthy, sick = picture(results / "healthy"), picture(results / "sick")
    assert (healthy[..., 3] > 0).all()
    assert np.median(healthy[..., 3]) < 0.25 * 255  # faint
    assert (healthy[..., 3] > 0.5 * 255).mean() < 0.05
    assert (sick[4:6, 4:7, 3] > 0.8 * 255).all()
    changed = (healthy != sick).any(axis=-1)
    assert changed.sum() == 6  # the same score has the same colour on both


def test_all_slides_share_the_scale_of_the_healthy_quantiles(results):
    scales = [json.loads((results / name / "heatmap.json").read_text())["colour_scale"]
              for name in ("healthy", "sick")]  # fmt: skip
    assert scales[0] == scales[1]
    scores = [step["score"] for step in scales[0]["steps"]]
    quantiles = np.quantile(np.linspace(0, 100, 1001), HEALTHY_LEVELS)
    np.testing.assert_allclose(scores[:-1], quantiles, rtol=1e-6)
    assert [step["percentile"] for step in scales[0]["steps"]] == [50, 90, 99, 99.9, None]
    scale = ColourScale.from_healthy(scores[:-1])
    windows = np.load(results / "sick" / "windows.npy")
    rows, columns = (windows["y"] // STEP).astype(int), (windows["x"] // STEP).astype(int)
    np.testing.assert_array_equal(
        picture(results / "sick")[rows, columns], scale.rgba(windows["score"])
    )


def test_there_is_a_legend(results):
    with Image.open(results / "colours.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    scale = ColourScale.from_healthy([50.0, 90.0, 99.0, 99.9])
    for colour in scale.rgba(np.array([60.0, 95.0, 99.95]))[:, :3]:
        assert np.abs(pixels.astype(int) - colour).max(axis=1).min() <= 4
