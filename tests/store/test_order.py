"""Orders of tiles: each once, fair, in bounded memory, well mixed, without a pixel read."""

import numpy as np
import pytest

from wsiad.store.dataset import Chunks, every_tile, fair_to_slides, shuffled

SIZE = 16


def chunks_of(*lengths):
    return Chunks.of([np.arange(n) for n in lengths], sizes=[SIZE] * len(lengths))


def given(chunks, order):
    """(slide, tile) of each tile in the order of giving."""
    chunk = order.chunk[order.visit]
    tile = chunks.number[chunk] * SIZE + order.offset
    return list(zip(chunks.slide[chunk].tolist(), tile.tolist(), strict=True))


def most_held(order):
    """Chunks in memory at once, if each is read in order and kept until its last tile."""
    last = {visit: at for at, visit in enumerate(order.visit.tolist())}
    frees = np.bincount(list(last.values()), minlength=len(order))
    read = np.maximum.accumulate(order.visit) + 1
    return int((read - np.concatenate([[0], np.cumsum(frees)[:-1]])).max())


def test_chunks_hold_the_wanted_tiles():
    chunks = Chunks.of([np.array([40, 3, 5, 17]), np.array([], int), np.array([0])], sizes=[16] * 3)
    assert chunks.slide.tolist() == [0, 0, 0, 2]
    assert chunks.number.tolist() == [0, 1, 2, 0]
    assert [chunks.tiles_of(n).tolist() for n in range(4)] == [[3, 5], [1], [8], [0]]
    assert chunks.tiles == 5


def test_every_tile_once_and_chunks_in_bounds():
    chunks = chunks_of(100, 7, 1000)
    expected = {(s, t) for s, n in enumerate((100, 7, 1000)) for t in range(n)}
    for window in (1, 5, 20, 10_000):
        order = shuffled(every_tile(chunks), window=window, seed=0, epoch=0)
        tiles = given(chunks, order)
        assert len(tiles) == 1107
        assert set(tiles) == expected
        assert most_held(order) <= window + 1


def test_pure_function_of_seed_and_epoch():
    chunks = chunks_of(300, 500)

    def tiles(**key):
        return given(chunks, shuffled(every_tile(chunks), window=8, **key))

    first = tiles(seed=1, epoch=0)
    assert first == tiles(seed=1, epoch=0)
    assert first != tiles(seed=1, epoch=1)
    assert first != tiles(seed=2, epoch=0)


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
def test_shares_do_not_overlap_and_miss_nothing(shares):
    chunks = chunks_of(400, 90, 3)
    orders = [
        shuffled(every_tile(chunks), window=4, seed=3, epoch=2, share=share, shares=shares)
        for share in range(shares)
    ]
    tiles = [tile for order in orders for tile in given(chunks, order)]
    assert len(tiles) == len(set(tiles)) == 493
    assert {order.least for order in orders} == {min(map(len, orders))}


def test_more_shares_than_chunks():
    chunks = chunks_of(20)
    orders = [
        shuffled(every_tile(chunks), window=4, seed=0, epoch=0, share=s, shares=5) for s in range(5)
    ]
    assert sum(map(len, orders)) == 20
    assert {order.least for order in orders} == {0}


def test_slides_of_any_size_give_equally_many_tiles():
    chunks = chunks_of(1000, 5, 130)
    for epoch in range(4):
        visits = fair_to_slides(chunks, per_slide=77, seed=0, epoch=epoch)
        tiles = given(chunks, shuffled(visits, window=6, seed=0, epoch=epoch))
        assert np.bincount([slide for slide, _ in tiles]).tolist() == [77, 77, 77]


def test_over_the_epochs_a_slides_tiles_are_taken_equally_often():
    chunks = chunks_of(100, 7, 23)
    counts = [np.zeros(n, int) for n in (100, 7, 23)]
    for epoch in range(9):
        visits = fair_to_slides(chunks, per_slide=30, seed=5, epoch=epoch)
        chunk = visits.chunk[visits.visit]
        for slide, tile in zip(
            chunks.slide[chunk], chunks.number[chunk] * SIZE + visits.offset, strict=True
        ):
            counts[slide][tile] += 1
        assert all(int(count.max() - count.min()) <= 1 for count in counts)
    assert [int(count.sum()) for count in counts] == [270, 270, 270]


def test_a_window_of_fewer_tiles_decodes_few_chunks():
    """Whole chunks are taken, not a tile of each: 30 tiles need 2 or 3 of 63 chunks."""
    chunks = chunks_of(1000)
    visits = fair_to_slides(chunks, per_slide=30, seed=0, epoch=1)
    assert len(visits.chunk) <= 4


def same_chunk_pairs(tiles, batch):
    """Mean number of pairs in a batch that lie in the same chunk of the same slide."""
    found = []
    for start in range(0, len(tiles) - batch + 1, batch):
        keys = [(slide, tile // SIZE) for slide, tile in tiles[start : start + batch]]
        _, counts = np.unique(keys, axis=0, return_counts=True)
        found.append((counts * (counts - 1) / 2).sum())
    return float(np.mean(found))


def test_neighbours_come_apart():
    """A batch is about as mixed as the buffer allows: as if drawn from a window of chunks.

    Drawn at random from w whole chunks of 16, a batch of 64 has C(64, 2) · 15 / (16 w - 1)
    pairs of one chunk; without any shuffling it has 4 · C(16, 2) = 480.
    """
    chunks = chunks_of(*[2000] * 10)
    for window in (40, 200):
        order = shuffled(every_tile(chunks), window=window, seed=0, epoch=0)
        expected = 64 * 63 / 2 * 15 / (16 * window - 1)
        assert same_chunk_pairs(given(chunks, order), 64) < 1.5 * expected
    first = given(chunks, order)[:64]
    # The start of an epoch, with few chunks read yet, is mixed less, but mixed.
    assert same_chunk_pairs(first, 64) < 480 / 5
    assert len({slide for slide, _ in first}) > 5


def test_neighbours_in_time_are_not_neighbours_in_the_slide():
    chunks = chunks_of(4000)
    order = shuffled(every_tile(chunks), window=100, seed=0, epoch=0)
    tiles = np.array([tile for _, tile in given(chunks, order)])
    adjacent = np.mean(np.abs(np.diff(tiles)) == 1)
    # Expected of a draw without replacement from 100 chunks: 2 · 15 / 16 / 1599.
    assert adjacent < 3 * 2 * 15 / 16 / 1599


def test_every_place_of_an_epoch_sees_every_slide():
    """No slide is given at the beginning or the end only."""
    chunks = chunks_of(3000, 3000, 300)
    order = shuffled(every_tile(chunks), window=50, seed=4, epoch=0)
    slides = np.array([slide for slide, _ in given(chunks, order)])
    shares = [np.mean(part == 0) for part in np.array_split(slides, 10)]
    assert max(np.abs(np.array(shares) - 3000 / 6300)) < 0.25
