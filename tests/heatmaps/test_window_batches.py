"""Batches of windows: joined across blocks, with the scores of a plain loop."""

import threading

import numpy as np
import pytest
import torch

from wsiad.core.errors import SlideReadError
from wsiad.heatmaps.window_batches import WindowBatch, joined, score_windows
from wsiad.learning.batches import host_memory
from wsiad.learning.detector import Detector, DetectorOptions, InputSpec
from wsiad.tiling.stream import Example
from wsiad.tissue.quality import LeftOut

EDGE = 4
RNG = np.random.default_rng(3)


class Brightness(Detector):
    """Score of a place: its mean; the sizes of the batches are noted."""

    def __init__(self):
        super().__init__(DetectorOptions(), InputSpec(EDGE, 1.0))
        self.sizes = []

    def score_places(self, tiles):
        self.sizes.append(len(tiles))
        parts = tiles.reshape(len(tiles), 2, EDGE // 2, 2, EDGE // 2, 3)
        return parts.mean(axis=(2, 4, 5)).astype(np.float32)

    def fit(self, tiles, context):
        raise NotImplementedError

    def state(self):
        raise NotImplementedError

    def load_state(self, state, device):
        raise NotImplementedError


def blocks(*counts, left_out=True):
    """Blocks of so many windows, each with one window that is left out and one example."""
    row = 0
    for number, count in enumerate(counts):
        at = np.arange(row, row + count, dtype=np.int32)
        row += count
        out = np.array([number], np.int32)
        picture = np.full((2, 2, 3), number, np.uint8)
        yield WindowBatch(
            RNG.integers(0, 256, (count, EDGE, EDGE, 3), dtype=np.uint8),
            at,
            at % 7,
            LeftOut(out, out, out.astype(np.uint8)) if left_out else LeftOut(),
            (Example(number, picture, picture),),
        )


def of_all(parts, name):
    return np.concatenate([getattr(part, name) for part in parts])


@pytest.mark.parametrize("counts", [(5, 3, 9, 1), (0, 4), (4, 0, 0), (16,), (1,) * 9, (0,), ()])
@pytest.mark.parametrize("batch", [1, 3, 4, 1000])
def test_batches_are_full_and_nothing_is_lost(counts, batch):
    given = list(blocks(*counts))
    found = list(joined(iter(given), batch))
    sizes = [len(one) for one in found if len(one)]
    assert sizes[:-1] == [batch] * (len(sizes) - 1)
    assert sum(sizes) == sum(counts)
    assert all(len(one.pixels) == len(one.rows) == len(one.columns) for one in found)
    if not given:
        assert found == []
        return
    for name in ("pixels", "rows", "columns"):
        np.testing.assert_array_equal(of_all(found, name), of_all(given, name))
    left_out = LeftOut.join(one.left_out for one in found)
    np.testing.assert_array_equal(left_out.rows, np.arange(len(counts)))
    assert [one.index for part in found for one in part.examples] == list(range(len(counts)))


@pytest.mark.parametrize("batch", [1, 3, 8, 1000])
def test_scores_are_those_of_a_plain_loop(batch):
    given = list(blocks(6, 1, 0, 12, 3))
    detector = Brightness()
    found = list(score_windows(detector, iter(given), batch=batch))
    plain = Brightness()
    places = np.concatenate([plain.score_map(one.pixels) for one in given if len(one)])
    np.testing.assert_array_equal(np.concatenate([p.places for p in found if len(p.rows)]), places)
    np.testing.assert_array_equal(of_all(found, "scores"), plain.pool(places))
    np.testing.assert_array_equal(of_all(found, "rows"), of_all(given, "rows"))
    np.testing.assert_array_equal(of_all(found, "columns"), of_all(given, "columns"))
    assert detector.sizes == [batch] * (22 // batch) + [22 % batch] * bool(22 % batch)
    assert len(LeftOut.join(part.left_out for part in found)) == 5


class Patient(Brightness):
    """It takes some batches before it scores the first."""

    def score_maps(self, batches):
        held = []
        for tiles in batches:
            held.append(tiles)
            if len(held) == 3:
                yield from map(self.score_map, held)
                held = []
        yield from map(self.score_map, held)


@pytest.mark.parametrize("counts", [(6, 1, 0, 12, 3), (0, 4), (4, 0, 0), (0, 0), ()])
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_scores_that_come_later_go_with_their_windows(counts, batch):
    given = list(blocks(*counts))
    plain = list(score_windows(Brightness(), iter(given), batch=batch))
    found = list(score_windows(Patient(), iter(given), batch=batch))
    assert len(found) == len(plain)
    for one, other in zip(found, plain, strict=True):
        for name in ("rows", "columns", "scores", "places"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.left_out.rows, other.left_out.rows)
        assert len(one.examples) == len(other.examples)


def test_blocks_without_a_window_still_say_what_is_left_out():
    (found,) = score_windows(Brightness(), blocks(0, 0), batch=4)
    assert len(found.scores) == 0
    np.testing.assert_array_equal(found.left_out.rows, [0, 1])


def test_an_error_of_a_block_comes_after_the_batches_before_it():
    def broken():
        yield from blocks(8, 3)
        raise SlideReadError("cannot be decoded", subject="slide_7")

    scored = score_windows(Brightness(), broken(), batch=4)
    assert [len(next(scored).rows) for _ in range(2)] == [4, 4]
    with pytest.raises(SlideReadError, match="slide_7: cannot be decoded"):
        next(scored)
    assert not [one for one in threading.enumerate() if one.name == "read-ahead"]


def test_an_error_of_the_detector_ends_the_reading():
    class Fails(Brightness):
        def score_places(self, tiles):
            if self.sizes:
                raise RuntimeError("no memory on the device")
            return super().score_places(tiles)

    closed = []

    def endless():
        try:
            while True:
                yield from blocks(4)
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="no memory"):
        list(score_windows(Fails(), endless(), batch=4))
    assert closed
    assert not [one for one in threading.enumerate() if one.name == "read-ahead"]


def test_only_a_few_batches_are_read_ahead(monkeypatch):
    monkeypatch.setattr("wsiad.core.ahead._LEAST_BYTES", 1)
    read, most = [], 0

    def counted():
        for block in blocks(*[4] * 60):
            read.append(len(block))
            yield block

    for number, _ in enumerate(score_windows(Brightness(), counted(), batch=4)):
        most = max(most, len(read) - number)
    assert most <= 4  # three that are held, and one that is being made


def test_a_gpu_reads_batches_from_pinned_memory(monkeypatch):
    asked = []
    empty = torch.empty

    def recorded(*shape, pin_memory=False, **how):
        asked.append(pin_memory)
        return empty(*shape, **how)

    monkeypatch.setattr("wsiad.learning.batches.torch.empty", recorded)
    given = list(blocks(3, 6))
    plain = list(score_windows(Brightness(), iter(given), batch=4))
    assert not asked
    pinned = list(score_windows(Brightness(), iter(given), batch=4, pinned=True))
    assert asked == [True] * 3
    np.testing.assert_array_equal(of_all(pinned, "scores"), of_all(plain, "scores"))
    assert host_memory((2, 3), pinned=True).shape == (2, 3)
