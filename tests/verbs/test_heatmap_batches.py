"""Batches of `wsiad heatmap`: the same results whatever their size, an end at any time, errors."""

import threading

import numpy as np
import pytest
import tifffile

import wsiad
from support.builders import stained, write_tiff
from support.runs import Channel, make_run, use_channel
from support.scored_slides import read_heatmap
from support.scored_slides import score as scored

WINDOW = 48
FILES = ("windows.npy", "left_out.npy", "heatmap.ome.tif", "detections.csv", "regions.csv")


@pytest.fixture(autouse=True)
def _channel(monkeypatch):
    use_channel(monkeypatch)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of four blocks of unequal numbers of windows."""
    folder = tmp_path_factory.mktemp("slides")
    return write_tiff(folder / "s.tif", stained(1200, 1300), mpp=0.5, levels=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", size=WINDOW)


def score(*given, **values):
    return scored(*given, viewers=(), evidence_regions=0, **values)


def files(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def reading():
    return [one for one in threading.enumerate() if one.name == "read-ahead"]


def test_scores_are_those_of_a_plain_loop_whatever_the_batch(slide, run, tmp_path, monkeypatch):
    pixels, sizes, plain = tifffile.imread(slide), [], Channel.score_places

    def noted(self, tiles):
        sizes.append(len(tiles))
        return plain(self, tiles)

    monkeypatch.setattr(Channel, "score_places", noted)
    results = []
    for batch in (1, 7, 10_000):
        sizes.clear()
        row = score(run, slide, tmp_path / str(batch), batch=batch).rows[0]
        most = min(batch, 131_072 // WINDOW**2)
        assert sizes == [most] * (row.tiles // most) + [row.tiles % most] * (row.tiles % most > 0)
        results.append(files(tmp_path / str(batch) / "s"))
    assert results[0] == results[1] == results[2]
    scores, _ = read_heatmap(tmp_path / "7" / "s")
    for y, x in np.argwhere(np.isfinite(scores)):
        window = pixels[y * WINDOW : (y + 1) * WINDOW, x * WINDOW : (x + 1) * WINDOW, 0]
        assert scores[y, x] == pytest.approx(window.mean(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_a_run_that_ends_within_a_slide_is_gone_on_with(slide, run, tmp_path, monkeypatch, kind):
    score(run, slide, tmp_path / "whole", batch=7)
    plain, calls = Channel.score_places, []

    def ends(self, tiles):
        calls.append(len(tiles))
        if len(calls) == 9:
            raise kind
        return plain(self, tiles)

    monkeypatch.setattr(Channel, "score_places", ends)
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            score(run, slide, tmp_path / "out", batch=7)
    else:
        assert "more memory" in score(run, slide, tmp_path / "out", batch=7).failed[0].reason
    assert not reading()
    assert not (tmp_path / "out" / "s").exists()
    score(run, slide, tmp_path / "out", batch=7)
    assert files(tmp_path / "out" / "s") == files(tmp_path / "whole" / "s")


def test_an_error_in_the_middle_of_a_slide_is_that_slides(slide, run, tmp_path):
    whole = write_tiff(tmp_path / "broken.tif", stained(1200, 1300), mpp=0.5, levels=1,
                       compression="jpeg")  # fmt: skip
    with tifffile.TiffFile(whole) as tiff:
        offset, count = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    with whole.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * count)
    result = score(run, [whole, slide], tmp_path / "out", batch=7)
    assert {row.slide: row.status for row in result.rows} == {"broken": "failed", "s": "ok"}
    assert "cannot be decoded" in result.failed[0].reason
    assert not reading()


def test_tiles_are_scored_in_full_batches_across_chunks(slide, run, tmp_path, monkeypatch):
    tissue = {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False}
    wsiad.tile(slides=slide, out=tmp_path / "store", mpp=0.5, tile=WINDOW, tissue=tissue,
               stain={"method": "none"}, min_coverage=0.01, quiet=True)  # fmt: skip
    sizes, plain = [], Channel.score_places

    def noted(self, tiles):
        sizes.append(len(tiles))
        return plain(self, tiles)

    monkeypatch.setattr(Channel, "score_places", noted)
    found = {}
    for batch in (1, 7, 50):
        sizes.clear()
        result = wsiad.score_tiles(run=run, store=tmp_path / "store", out=tmp_path / str(batch),
                                   batch=batch, quiet=True)  # fmt: skip
        found[batch] = result.groups[0].scores
        count = len(found[batch])
        assert sizes == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    np.testing.assert_array_equal(found[1], found[7])
    np.testing.assert_array_equal(found[1], found[50])
    assert not reading()
