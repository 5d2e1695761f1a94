"""The slides that benchmarks draw have the colours that were drawn."""

from pathlib import Path

import numpy as np
import openslide
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
EDGE = 1024


def by_tile(folder):
    import tile

    return tile.drawn_slide(folder, edge=EDGE)


def by_faults(folder):
    import faults

    faults.draw_slide(folder / "slide.tif", seed=0, edge=EDGE, compression="jpeg")
    return folder / "slide.tif"


@pytest.mark.parametrize("drawn", [by_tile, by_faults])
def test_a_drawn_slide_has_the_colours_of_its_two_stains(tmp_path, monkeypatch, drawn):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with openslide.OpenSlide(drawn(tmp_path)) as slide:
        seen = np.asarray(slide.read_region((0, 0), 0, (EDGE, EDGE)).convert("RGB"), np.float64)
    inner = seen[EDGE // 8 : -EDGE // 8, EDGE // 8 : -EDGE // 8].reshape(-1, 3)
    bright = inner[(inner > 20).all(axis=1)]  # where a grey level is little of a density
    assert len(bright) > 0.5 * len(inner)
    density = -np.log(bright / 255)
    # Any mixture of the two stains has no share across their plane.
    across = np.cross(*STAINS)
    assert np.median(np.abs(density @ across / np.linalg.norm(across))) < 0.02
    amounts = np.linalg.lstsq(STAINS.T, density.T, rcond=None)[0]
    assert (amounts > -0.1).mean() > 0.99
