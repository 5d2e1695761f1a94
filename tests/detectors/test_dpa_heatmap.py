"""Heatmaps of dpa that are finer than its windows."""

import json

import numpy as np
import pytest
import tifffile
from safetensors.torch import save_file

import wsiad
from support.builders import write_tiff
from support.runs import make_run
from support.tiny_dpa import context, detector, tiny_vgg
from wsiad.learning.detector import HealthyTiles
from wsiad.runs.run import RunFolder
from wsiad.store.dataset import ArrayTiles

PX = 32


def smooth(rng, height, width):
    """Healthy tissue: flat fields of 8 px in purple and pink."""
    colours = np.array([180, 100, 170]) + rng.integers(-25, 26, (height // 8, width // 8, 3))
    return np.kron(colours, np.ones((8, 8, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """dpa that has learnt to reconstruct smooth fields; its places are 16 × 16."""
    folder = tmp_path_factory.mktemp("fit")
    save_file(tiny_vgg(), folder / "tiny.safetensors")
    tiles = np.stack([smooth(np.random.default_rng(i), PX, PX) for i in range(60)])
    found = detector(learning_rate=3e-3, val_interval=80, batch=8, blocks="residual9")
    healthy = HealthyTiles(ArrayTiles(tiles[:50]), ArrayTiles(tiles[50:]))
    found.fit(healthy, context(folder / "run", str(folder / "tiny.safetensors"), steps=80))
    return found


@pytest.fixture
def run(tmp_path, fitted):
    path = make_run(tmp_path / "run", size=PX)
    RunFolder(path).save_detector(fitted, name="dpa")
    return path


def read(folder):
    with tifffile.TiffFile(folder / "heatmap.ome.tif") as tiff:
        return tiff.series[0].asarray()


def test_half_a_window_that_is_odd_is_seen_within_the_window(tmp_path, run, fitted):
    rng = np.random.default_rng(99)
    slide = smooth(rng, 4 * PX, 6 * PX)
    odd = (slice(PX, 2 * PX), slice(2 * PX, 2 * PX + PX // 2))  # left half of window (1, 2)
    slide[odd] = rng.integers(60, 240, (PX, PX // 2, 3))
    path = write_tiff(tmp_path / "s.tif", slide, mpp=0.5, levels=1)
    scores = {}
    for detail in ("window", "place"):
        out = tmp_path / detail
        assert not wsiad.heatmap(run=run, slides=path, out=out, detail=detail, quiet=True).failed
        scores[detail] = read(out / "s")
    assert scores["window"].shape == (4, 6)
    assert scores["place"].shape == (4 * 16, 6 * 16)
    # The same scores, before the mean over places.
    coarse = scores["place"].reshape(4, 16, 6, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(coarse, scores["window"], rtol=1e-4)
    assert np.unravel_index(scores["window"].argmax(), (4, 6)) == (1, 2)
    left, right = (scores["place"][16:32, 32 + 8 * half : 40 + 8 * half] for half in (0, 1))
    assert left.mean() > 1.5 * right[:, 2:].mean()  # what lies beyond the filters' reach
    # Each place is that of the distance itself, where it lies.
    windows = slide[PX : 2 * PX, 2 * PX : 3 * PX][None]
    np.testing.assert_allclose(
        scores["place"][16:32, 32:48], fitted.score_places(windows)[0], rtol=1e-4
    )
    facts = json.loads((tmp_path / "place" / "s" / "heatmap.json").read_text())
    assert facts["level0_rectangle"]["width"] == 6 * PX
