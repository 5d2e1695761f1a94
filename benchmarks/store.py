"""What a tile store costs: its codecs, its layout, and training reads.

    python benchmarks/store.py codec  [store/] [--tiles 1024]
    python benchmarks/store.py layout [store/] [--tiles 1024]
    python benchmarks/store.py read   [store/] [--runs 5] [--workers 0 2]

``codec``: CPU time a tile of each codec, and its ratio of bytes.
``layout``: CPU time a tile with chunks of 1 to 64 tiles, written and read by this package and
by zarr itself.
``read``: shuffled batches of a :class:`wsiad.TileDataset`, as a share of the speed at which
h5py reads the same tiles from contiguous, uncompressed HDF5 in sequence, run by run. All
files are on the disk before, and in the page cache; the disk is not measured.
What ``layout`` writes is not flushed by either writer. With ``--flush`` it gives elapsed time, and
both writers' time ends when each file that they wrote is on the disk (``fsync``).
Without a store, a slide is drawn and tiled: smooth, and thus easier than a real one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import zarr
from machine import print_machine
from numcodecs import LZ4, Blosc, Delta, Zstd, blosc
from tile import drawn_slide
from zarr.codecs import ZstdCodec

import wsiad
from wsiad.store.group import PixelError
from wsiad.store.shards import ShardReader, ShardWriter, decode, encode
from wsiad.tiling.preparation import CompressionOptions

CHUNK = 16
SHARD = 256

Codec = tuple[Callable[[np.ndarray], Any], Callable[[Any, np.ndarray], np.ndarray]]


def read_tiles(store: Path, most: int) -> np.ndarray:
    """Tiles of a store, spread over its slides."""
    slides = [slide for slide in wsiad.TileStore(store) if len(slide)]
    share = max(CHUNK, most // len(slides) // CHUNK * CHUNK)
    return np.concatenate([slide.tiles(0, share) for slide in slides])[:most]


def of_numcodecs(*steps: Any) -> Codec:
    """Numcodecs' codecs one after the other."""

    def code(tiles: np.ndarray) -> Any:
        data: Any = tiles.reshape(-1)
        for step in steps:
            data = step.encode(data)
        return data

    def back(data: Any, tiles: np.ndarray) -> np.ndarray:
        for step in reversed(steps):
            data = step.decode(data)
        return np.frombuffer(data, np.uint8).reshape(tiles.shape)

    return code, back


def as_planes(codec: Codec) -> Codec:
    """Channel by channel, as zarr's ``transpose`` hands them on."""
    code, back = codec

    def planes(tiles: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))

    def pixels(data: Any, tiles: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(back(data, planes(tiles)).transpose(0, 2, 3, 1))

    return lambda tiles: code(planes(tiles)), pixels


def of_store(**options: Any) -> Codec:
    """Codec of the store itself."""
    chosen = CompressionOptions(**options)
    names = {"zstd": ("bytes", "zstd"), "none": ("bytes",), "jpeg": ("imagecodecs_jpeg", "zstd")}
    steps = names.get(chosen.codec, ("imagecodecs_jpegxl", "zstd"))

    def back(data: bytes, tiles: np.ndarray) -> np.ndarray:
        out = np.empty_like(tiles)
        decode(data, steps, out)
        return out

    return lambda tiles: encode(tiles, chosen), back


def candidates() -> dict[str, Codec]:
    """Codecs by name; those of the store have their checksum on."""
    found = {"store: none": of_store(codec="none")}
    for level in (-50, -20, -10, -5, -1, 1, 3):
        found[f"store: zstd {level}"] = of_store(level=level)
    found["zstd -10, no checksum"] = of_numcodecs(Zstd(level=-10))
    found["lz4"] = of_numcodecs(LZ4())
    shuffles = {"": Blosc.NOSHUFFLE, ", shuffle 3": Blosc.SHUFFLE, ", bitshuffle": Blosc.BITSHUFFLE}
    for name in ("lz4", "zstd", "blosclz"):
        for label, shuffle in shuffles.items():
            size = 3 if shuffle == Blosc.SHUFFLE else 1
            step = Blosc(name, 1, shuffle, typesize=size)
            found[f"blosc {name} 1{label}"] = of_numcodecs(step)
    for level in (-10, 1):
        zstd = of_numcodecs(Zstd(level=level))
        delta = of_numcodecs(Delta(dtype="u1"), Zstd(level=level))
        found[f"planes, zstd {level}"] = as_planes(zstd)
        found[f"planes, delta, zstd {level}"] = as_planes(delta)
    for quality in (90, 95):
        found[f"store: jpeg {quality}"] = of_store(codec="jpeg", quality=quality)
        found[f"store: jpeg-xl {quality}"] = of_store(codec="jpeg-xl", quality=quality)
    found["jpeg-xl, lossless, effort 1"] = (
        lambda t: imagecodecs.jpegxl_encode(_column(t), lossless=True, effort=1, numthreads=1),
        lambda data, t: imagecodecs.jpegxl_decode(data, numthreads=1).reshape(t.shape),
    )
    return found


def _column(tiles: np.ndarray) -> np.ndarray:
    return tiles.reshape(-1, *tiles.shape[2:])


def measure_codecs(tiles: np.ndarray) -> None:
    """Print what each codec takes, on chunks of 16 tiles and one core."""
    blosc.use_threads = False
    chunks = [tiles[i : i + CHUNK] for i in range(0, len(tiles) - CHUNK + 1, CHUNK)]
    print(f"{'':30}{'encode':>9}{'decode':>9}{'bytes':>9}   error (grey levels)")
    for name, (code, back) in candidates().items():
        coding, decoding, size, error = [], [], 0, PixelError()
        for chunk in chunks:
            start = time.process_time()
            data = code(chunk)
            middle = time.process_time()
            pixels = back(data, chunk)
            decoding.append(time.process_time() - middle)
            coding.append(middle - start)
            size += len(memoryview(data).cast("B"))
            error.add(chunk, pixels)
        found = error.values()
        note = f"max {found['max_abs']}, mean {found['mean_abs']}, {found['psnr_db']} dB"
        print(
            f"{name:30}{_us(coding, CHUNK):9.0f}{_us(decoding, CHUNK):9.0f}"
            f"{size / len(chunks) / chunks[0].nbytes:9.1%}   {note if found['max_abs'] else ''}"
        )


def _us(seconds: list[float], tiles: int) -> float:
    return statistics.median(seconds) / tiles * 1e6


def measure_layouts(tiles: np.ndarray, folder: Path, *, runs: int, flush: bool) -> None:
    """Print what chunks of several sizes take, with the default codec."""
    options = CompressionOptions()
    zstd = ZstdCodec(level=options.level, checksum=True)
    print(f"{'us a tile':14}{'write':>14}{'read':>14}{'zarr, by':>12}{'zarr, by':>12}{'bytes':>8}")
    kind = "elapsed, each file flushed" if flush else "processor time, nothing flushed"
    print(f"writing: {kind}, here and by zarr; reading: from the page cache")
    print(f"{'tiles a chunk':14}{'here  zarr':>14}{'here  zarr':>14}{'64 tiles':>12}{'shard':>12}")
    for chunk in (1, 4, 16, 64):
        times: dict[str, list[float]] = {}
        for _ in range(runs):
            shutil.rmtree(folder, ignore_errors=True)
            array = zarr.create_group(folder).create_array(
                "tiles",
                shape=tiles.shape,
                chunks=(chunk, *tiles.shape[1:]),
                shards=(SHARD, *tiles.shape[1:]),
                dtype="uint8",
                compressors=zstd,
                config={"write_empty_chunks": True},
            )
            with clock(times, "write, zarr", flushed=folder if flush else None):
                for start in range(0, len(tiles), SHARD):
                    array[start : start + SHARD] = tiles[start : start + SHARD]
            shutil.rmtree(folder / "tiles" / "c")
            with (
                clock(times, "write", flushed=folder if flush else None),
                ShardWriter(folder / "tiles", chunks=SHARD // chunk, axes=4) as writer,
            ):
                for start in range(0, len(tiles), chunk):
                    writer.append(encode(tiles[start : start + chunk], options))
            reader = ShardReader.of(folder / "tiles")
            assert reader is not None
            out = np.empty((chunk, *tiles.shape[1:]), np.uint8)
            with clock(times, "read"):
                for number in range(len(tiles) // chunk):
                    reader.read(number, out)
            for step, size in (("chunk", chunk), ("64", 64), ("shard", SHARD)):
                with clock(times, f"read, zarr, {step}"):
                    for start in range(0, len(tiles), size):
                        array[start : start + size]
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        us = {step: _us(seconds, len(tiles)) for step, seconds in times.items()}
        print(
            f"{chunk:<14}{us['write']:8.0f}{us['write, zarr']:6.0f}"
            f"{us['read']:8.0f}{us['read, zarr, chunk']:6.0f}"
            f"{us['read, zarr, 64']:12.0f}{us['read, zarr, shard']:12.0f}{size / tiles.nbytes:8.1%}"
        )


@contextlib.contextmanager
def clock(
    times: dict[str, list[float]], step: str, *, flushed: Path | None = None
) -> Iterator[None]:
    """Note the CPU seconds of what is done within; or those that pass until it is on the disk."""
    if flushed:
        os.sync()  # what others wrote
    now = time.perf_counter if flushed else time.process_time
    start = now()
    yield
    if flushed:
        for path in [*flushed.rglob("*"), flushed]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    times.setdefault(step, []).append(now() - start)


def read_hdf5(path: Path, batch: int) -> tuple[int, float]:
    """Tiles a second of h5py in sequence, and the CPU time of a tile in us."""
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    with h5py.File(path) as file:
        tiles = file["tiles"]
        for first in range(0, len(tiles), batch):
            count += len(tiles[first : first + batch])
    used = time.process_time() - cpu
    return count / (time.perf_counter() - start), used / count * 1e6


def read_shuffled(dataset: wsiad.TileDataset, loader: Any) -> tuple[int, float]:
    """Tiles a second of an epoch; the workers are there already."""
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    for tiles in loader:
        count += len(tiles)
    used = time.process_time() - cpu
    return count / (time.perf_counter() - start), used / count * 1e6


def measure_reads(
    store: Path,
    folder: Path,
    *,
    runs: int,
    workers: list[int],
    threads: int,
    batch: int,
    buffer_mb: int,
) -> None:
    """Print the speed of shuffled training reads, as a share of sequential HDF5."""
    path = folder / "tiles.h5"
    slides = [slide for slide in wsiad.TileStore(store) if len(slide)]
    count, tile = sum(map(len, slides)), slides[0].tile
    with h5py.File(path, "w") as file:
        tiles = file.create_dataset("tiles", shape=(count, tile, tile, 3), dtype="uint8")
        filled = 0
        for slide in slides:
            for first in range(0, len(slide), SHARD):
                part = slide.tiles(first, first + SHARD)
                tiles[filled : filled + len(part)] = part
                filled += len(part)
    os.sync()  # that neither side waits for what was written for the other
    dataset = wsiad.TileDataset(
        store,
        batch=batch,
        balance="tiles",
        buffer_bytes=buffer_mb * 2**20,
        drop_last=False,
        threads=threads,
    )
    loaders = {number: dataset.loader(workers=number) for number in workers}
    found: dict[str, list[tuple[float, float]]] = {}
    for run in range(runs + 1):  # the first fills caches and starts workers
        dataset.set_epoch(run)
        results = {"HDF5, in sequence": read_hdf5(path, batch)}
        for number, loader in loaders.items():
            results[f"shuffled, {number} workers"] = read_shuffled(dataset, loader)
        if run:
            for name, value in results.items():
                found.setdefault(name, []).append(value)
    mb = count * tile**2 * 3 / 2**20
    print(f"{count} tiles of {tile} px, {mb:.0f} MB raw, batches of {batch}, buffer {buffer_mb} MB")
    print(f"{'':24}{'tiles/s':>9}{'of HDF5':>9}{'range':>15}{'CPU us/tile (this process)':>30}")
    for name, values in found.items():
        pairs = zip(values, found["HDF5, in sequence"], strict=True)
        shares = [rate / hdf5 for (rate, _), (hdf5, _) in pairs]
        print(
            f"{name:24}{statistics.median(rate for rate, _ in values):9.0f}"
            f"{statistics.median(shares):9.0%}{min(shares):8.0%} –{max(shares):5.0%}"
            f"{statistics.median(cpu for _, cpu in values):30.0f}"
        )


def drawn_store(folder: Path) -> Path:
    """Draw a slide and tile it."""
    wsiad.tile(slides=[drawn_slide(folder)], out=folder / "store", mpp=0.25, tile=256, quiet=True)
    return folder / "store"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("codec", "layout", "read"))
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--tiles", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--flush", action="store_true", help="layout: time until what is written is on the disk"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--buffer-mb", type=int, default=256)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = asked.store or drawn_store(folder)
        if asked.part != "read" and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        if asked.part == "codec":
            measure_codecs(read_tiles(store, asked.tiles))
        elif asked.part == "layout":
            tiles = read_tiles(store, asked.tiles)
            measure_layouts(
                tiles[: len(tiles) // SHARD * SHARD],
                folder / "s",
                runs=asked.runs,
                flush=asked.flush,
            )
        else:
            measure_reads(
                store,
                folder,
                runs=asked.runs,
                workers=asked.workers,
                threads=asked.threads,
                batch=asked.batch,
                buffer_mb=asked.buffer_mb,
            )


if __name__ == "__main__":
    main()
