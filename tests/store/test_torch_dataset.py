"""The torch dataset: what it gives, to whom, in which order, in real worker processes."""

import itertools
import pickle
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.errors import InputError, StoreError

CHUNK_BYTES = 16 * 32 * 32 * 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three slides of very different size, in chunks of 16 tiles."""
    folder = tmp_path_factory.mktemp("dataset")
    for number, height in enumerate((400, 60, 120)):
        write_tiff(folder / f"s{number}.tif", stained(height, 260, seed=number), mpp=0.5, levels=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiad.store.group._CHUNK_BYTES", CHUNK_BYTES)
        result = wsiad.tile(
            slides=sorted(folder.glob("*.tif")),
            out=folder / "store",
            mpp=0.5,
            tile=32,
            stride=12,
            stain={"method": "none"},
            tissue={"min_area_um2": 1000},
            quiet=True,
        )
    assert not result.failed
    return folder / "store"


def places(batches):
    """(slide, row) of every tile, in the order given."""
    return [
        place
        for batch in batches
        for place in zip(batch.slide.tolist(), batch.row.tolist(), strict=True)
    ]


def dataset(store, **options):
    values = {"batch": 8, "balance": "tiles", "places": True, "drop_last": False}
    return wsiad.TileDataset(store, **values | {"buffer_bytes": 12 * CHUNK_BYTES} | options)


def everything(data):
    return {(s, row) for s, slide in enumerate(data.slides) for row in range(len(slide))}


def test_every_tile_once_with_its_place(store):
    data = dataset(store)
    assert [slide.name for slide in data.slides] == ["s0", "s1", "s2"]
    assert len(data.slides[0]) > 5 * len(data.slides[1])
    batches = list(data)
    assert sorted(places(batches)) == sorted(everything(data))
    for batch in batches[::7]:
        assert batch.tiles.dtype == torch.uint8
        for pixels, s, row, position in zip(*batch, strict=True):
            slide = data.slides[s]
            np.testing.assert_array_equal(pixels, slide.tiles(int(row), int(row) + 1)[0])
            np.testing.assert_array_equal(position, slide.column("position")[int(row)])


def test_pixels_alone_in_full_batches(store):
    data = wsiad.TileDataset(store, batch=50)
    batches = list(data)
    assert {tuple(batch.shape) for batch in batches} == {(50, 32, 32, 3)}
    total = sum(map(len, data.slides))
    assert len(batches) == round(total / 3) * 3 // 50


def test_slides_are_given_fairly(store):
    data = dataset(store, balance="slides", tiles_per_slide=60)
    smallest = len(data.slides[1])
    seen = Counter()
    for epoch in range(5):
        data.set_epoch(epoch)
        tiles = places(data)
        assert Counter(slide for slide, _ in tiles) == {0: 60, 1: 60, 2: 60}
        seen.update(tiles)
    # Large slides are not exhausted, small ones come round evenly.
    of_small = [seen[1, row] for row in range(smallest)]
    assert sum(of_small) == 300
    assert max(of_small) - min(of_small) <= 1
    assert max(seen[0, row] for row in range(len(data.slides[0]))) == 1


def test_order_is_a_function_of_seed_and_epoch(store):
    data = dataset(store)
    first = places(data)
    assert first == places(data) == places(dataset(store)) == places(dataset(store, threads=1))
    data.set_epoch(1)
    assert places(data) != first
    data.set_epoch(0)
    assert places(data) == first
    assert places(dataset(store, seed=1)) != first


def test_neighbours_come_apart(store):
    tiles = places(dataset(store))
    pairs = itertools.pairwise(tiles)
    adjacent = sum(a[0] == b[0] and abs(a[1] - b[1]) == 1 for a, b in pairs)
    # As stored all would be; of a draw from a buffer of 7 chunks of 16 about 2 in 112 are.
    assert adjacent / len(tiles) < 0.06


@pytest.mark.parametrize("balance", ["tiles", "slides"])
def test_ranks_and_workers_share_without_overlap(store, balance):
    whole = sorted(places(dataset(store, balance=balance)))
    parts = [dataset(store, balance=balance, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(tile for part in parts for tile in places(part)) == whole
    counts = {
        len(list(dataset(store, balance=balance, rank=rank, world_size=3, drop_last=True)))
        for rank in range(3)
    }
    assert len(counts) == 1
    assert counts.pop() > 2


@pytest.fixture
def reads(monkeypatch):
    """Chunks that are read, and the memory that they are read into."""
    seen, original = [], wsiad.TileDataset._read

    def watched(self, chunk, out):
        seen.append((chunk, out.ctypes.data))
        original(self, chunk, out)

    monkeypatch.setattr(wsiad.TileDataset, "_read", watched)
    return seen


def test_memory_is_bounded(store, reads):
    """At no time more chunks in memory than the buffer holds, and each is read once."""
    places(dataset(store, buffer_bytes=12 * CHUNK_BYTES))
    chunks, memory = zip(*reads, strict=True)
    assert len(chunks) == len(set(chunks)) > 3 * 12
    assert 6 < len(set(memory)) <= 12


def test_an_epoch_reads_into_the_memory_of_the_one_before(store, reads):
    data = dataset(store)
    first = [batch.tiles.clone() for batch in data]
    used = {memory for _, memory in reads}
    reads.clear()
    kept = list(data)  # the batches themselves are never used again
    assert {memory for _, memory in reads} <= used
    for one, other in zip(first, kept, strict=True):
        assert torch.equal(one, other.tiles)
    # It is of no use to another process.
    assert len(pickle.dumps(data)) < CHUNK_BYTES < len(used) * CHUNK_BYTES


def test_going_on_within_an_epoch_reads_only_what_is_left(store, reads):
    data = dataset(store, drop_last=True)
    whole = list(data)
    before = len(reads)
    data.set_epoch(0, start=len(whole) - 3)
    assert places(data) == places(whole[-3:])
    assert len(reads) - before <= 24


def test_pickles(store):
    data = dataset(store)
    data.set_epoch(3)
    assert places(pickle.loads(pickle.dumps(data))) == places(data)


@pytest.fixture(scope="module")
def two_workers(store):
    """Epochs of a loader with two forkserver workers: 0, 1, 0, 1 from batch 3 on."""
    data = dataset(store, drop_last=True)
    loader = data.loader(workers=2, timeout=60)
    epochs = []
    for epoch, start in ((0, 0), (1, 0), (0, 0), (1, 3)):
        data.set_epoch(epoch, start=start)
        epochs.append(list(loader))
    return data, epochs


def test_forkserver_workers(two_workers):
    data, (first, second, again, rest) = two_workers
    tiles = places(first)
    assert len(tiles) == len(set(tiles))
    lost = len(everything(data)) - len(tiles)
    assert set(tiles) <= everything(data)
    assert lost < 0.1 * len(everything(data))
    assert places(again) == tiles
    assert places(second) != tiles  # set_epoch reaches workers that persist
    assert places(rest) == places(second)[3 * 8 :]
    for batch in first[::9]:
        for pixels, s, row in zip(batch.tiles, batch.slide, batch.row, strict=True):
            expected = data.slides[s].tiles(int(row), int(row) + 1)[0]
            np.testing.assert_array_equal(pixels, expected)


@pytest.mark.slow
def test_spawn_and_fork_give_what_forkserver_gives(two_workers):
    data, (first, *_) = two_workers
    data.set_epoch(0)
    for method in ("spawn", "fork"):
        loader = DataLoader(
            data, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=60
        )
        assert places(loader) == places(first), method


def test_leaving_an_iteration_early_ends_its_threads(store):
    data = dataset(store)
    before = set(threading.enumerate())
    for _ in range(3):
        iterator = iter(data)
        next(iterator)
        iterator.close()
    assert set(threading.enumerate()) <= before


def test_damaged_chunk_is_an_error_with_a_remedy(store, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    shard = copy / "slides.zarr/s2/tiles/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"s2: tiles 0 to 15 .* Delete .*s2 and tile the slide"):
        list(dataset(copy))
    with pytest.raises(StoreError, match="s2: tiles 0 to 15"):
        list(dataset(copy).loader(workers=1, timeout=60))


def test_tiles_without_geometry(store, tmp_path):
    import cv2

    (tmp_path / "images").mkdir()
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"images/{number}.png"), stained(32, 32, seed=number))
    wsiad.import_tiles(sources=tmp_path / "images", out=tmp_path / "store", mpp=0.5, quiet=True)
    (batch,) = dataset(tmp_path / "store")
    assert batch.position is None
    assert sorted(batch.row.tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="was prepared differently"):
        wsiad.TileDataset([store, tmp_path / "store"])


def test_several_stores_and_some_slides(store):
    data = dataset([str(store), Path(store)], slides=["s1"])
    assert [slide.name for slide in data.slides] == ["s1", "s1"]
    assert len(places(data)) == 2 * len(data.slides[0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"slides": ["s1", "s9"]}, "no slide 's9'"),
        ({"slides": []}, "no tiles to draw from"),
        ({"batch": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"tiles_per_slide": 0}, "at least 1"),
        ({"balance": "stains"}, "not 'stains'"),
        ({"rank": 2, "world_size": 2}, "0 to 1, not 2"),
        ({"rank": 0}, "or neither"),
    ],
)
def test_bad_input(store, options, problem):
    with pytest.raises(InputError, match=problem):
        dataset(store, **options)


@pytest.mark.parametrize("size", [1, 4])
def test_a_loader_that_would_batch_again_is_an_error(store, size):
    data = dataset(store)
    with pytest.raises(InputError, match="makes the batches itself"):
        iter(DataLoader(data, batch_size=size))
    assert places(DataLoader(data, batch_size=None)) == places(data)


def test_a_worker_refuses_to_batch_again(store):
    loader = DataLoader(dataset(store), batch_size=4, num_workers=1, timeout=60)
    with pytest.raises(InputError, match="makes the batches itself"):
        next(iter(loader))


def test_the_same_order_once_more_is_a_warning(store, caplog):
    data = dataset(store)
    list(data)
    data.set_epoch(1)
    list(data)
    assert not caplog.records
    list(data)
    list(data)
    assert [record.getMessage()[:44] for record in caplog.records] == [
        "TileDataset: epoch 1 is read again, in the sa"[:44]
    ]


def test_labels_of_slides(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    table = tmp_path / "store/slides.csv"
    rows = pandas.read_csv(table, dtype=str, keep_default_na=False)
    rows["label"] = ["tumor", "normal", "tumor"]
    rows.to_csv(table, index=False)
    codes = {"normal": 0, "tumor": 1}
    assert dataset(tmp_path / "store").labels(codes).tolist() == [1, 0, 1]
    assert dataset(tmp_path / "store", slides=["s1", "s2"]).labels(codes).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"slide s1: has the label 'normal', for which"):
        dataset(tmp_path / "store").labels({"tumor": 1})


def test_a_slide_without_a_label_is_an_error(store):
    with pytest.raises(InputError, match=r"slide s0: has no label"):
        dataset(store).labels({"normal": 0, "": 1, "tumor": 1})


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="is not a tile store"):
        wsiad.TileDataset(tmp_path)
