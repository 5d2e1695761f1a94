"""What a training step of dpa costs beside the perceptual network alone, and what data cost.

    python benchmarks/train.py [--weights vgg19.safetensors] [--batch 32] [--rounds 7]
        [--set KEY=VALUE] [--device cuda] [--threads 1] [--tflops 989] [--reached 0.4]

Without --weights, a VGG19 of full width with random weights, which costs what the real one does.

``step``: a step of the training (tiles in memory to updated weights) against the bare network on
the same batch: forward of the originals, forward and backward of the reconstructions. The two
alternate, and the ratio is that of each round. With an adversarial term or growing the step is
more than that by definition.
``data``: images a second of the training, with tiles in memory and with tiles read from a store
that is written on the spot (buffer smaller than the store, so that it is read all the time), and
the share of the time that steps waited for tiles.
``feed``: images a second that one core of the processor reads from that store without any training,
and the number that an accelerator of ``--tflops`` would need: floating-point operations of a step,
counted, at the share ``--reached`` of what its maker states.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from machine import print_machine
from torch.utils.flop_counter import FlopCounterMode

import wsiad
from wsiad.core.config import build
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.learning.batches import endless, on_device, random_crops
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec, TileSource
from wsiad.learning.loop import Training
from wsiad.networks.autoencoder import images_of
from wsiad.networks.perceptual import RelativePerceptualL1
from wsiad.networks.vgg import LAYERS
from wsiad.store.dataset import ArrayTiles
from wsiad.store.tile_source import StoreTiles

WIDTHS = (64, 128, 256, 512, 512)


def full_vgg(path: Path) -> Path:
    """Write a VGG19 of full width with random weights."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors, channels = {}, 3
    for name, index in LAYERS.items():
        if name.startswith("conv") and not name.startswith("conv5"):
            width = WIDTHS[int(name[4]) - 1]
            draw = torch.randn(width, channels, 3, 3, generator=generator)
            tensors[f"features.{index}.weight"] = draw * (2 / (9 * channels)) ** 0.5
            tensors[f"features.{index}.bias"] = torch.zeros(width)
            channels = width
    save_file(tensors, path)
    return path


def drawn_tiles(count: int, edge: int) -> np.ndarray:
    """Smooth coloured tiles, uint8 (N, S, S, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(90, 250, (count, edge // 8, edge // 8, 3), dtype=np.uint8)
    return np.stack(
        [cv2.resize(tile, (edge, edge), interpolation=cv2.INTER_CUBIC) for tile in small]
    )


def started(
    tiles: TileSource, options: DpaOptions, weights: Path, folder: Path, device: torch.device
) -> tuple[Training, RelativePerceptualL1]:
    """Return a training that has not begun, and the distance at the full resolution."""
    detector = DeepPerceptualAutoencoder(options, InputSpec(TilePx(options.input_px), Mpp(1)))
    folder.mkdir()
    context = FitContext(0, device, folder, Budget(max_steps=10**6), str(weights), quiet=True)
    training = detector.training(HealthyTiles(tiles, tiles), context)
    return training, detector._fitted_distance()


def seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the time of one call, of so many; on a CPU that of the processor.

    Others on the machine change the latter less.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / times


def measure_step(
    training: Training, distance: RelativePerceptualL1, tiles: np.ndarray, args: argparse.Namespace
) -> None:
    """Print the ratio of a step to the bare network."""
    windows = random_crops(on_device(tiles, args.device), args.size, seed=0, step=0)
    x = images_of(windows)
    y = x.flip(0).clone().requires_grad_()
    dtype, half = torch.bfloat16, distance.bf16 and x.is_cuda

    def bare() -> None:
        with torch.autocast(x.device.type, dtype=dtype, enabled=half):
            with torch.no_grad():
                distance.network(x)
            (found,) = distance.network(y).values()
        y.grad = None
        found.backward(torch.ones_like(found))

    def step() -> None:
        training._step(tiles)

    for work in (bare, step):
        seconds(work, args.device, 3)
    pairs = [
        (seconds(bare, args.device, args.times), seconds(step, args.device, args.times))
        for _ in range(args.rounds)
    ]
    ratios = sorted(own / alone for alone, own in pairs)
    alone, own = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    print(
        f"step: {own:.1f} ms, network alone {alone:.1f} ms; ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f}–{ratios[-1]:.2f} in {args.rounds} rounds of {args.times})"
    )


def measure_data(
    name: str, training: Training, source: TileSource, args: argparse.Namespace
) -> float:
    """Print images a second and the share of waiting."""
    waited = 0.0
    with closing(endless(source, args.batch, seed=0)) as batches:
        for _ in range(2):
            training._step(next(batches).tiles)
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        begin = time.perf_counter()
        for _ in range(args.rounds * args.times):
            start = time.perf_counter()
            tiles = next(batches).tiles
            waited += time.perf_counter() - start
            training._step(tiles)
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        took = time.perf_counter() - begin
    rate = args.rounds * args.times * args.batch / took
    print(f"data: {name}: {rate:.0f} images/s, {100 * waited / took:.1f} % of it waiting for tiles")
    return rate


def measure_feed(
    training: Training, tiles: np.ndarray, source: TileSource, args: argparse.Namespace
) -> None:
    """Print the images a second that a core reads, and that an accelerator needs."""
    with FlopCounterMode(display=False) as counter:
        training._step(tiles[: args.batch])
    operations = counter.get_total_flops() / args.batch
    rates = []
    with closing(endless(source, args.batch, seed=0)) as batches:
        next(batches)
        count = -(-args.tiles // args.batch)  # an epoch
        for _ in range(args.rounds):
            start = time.process_time()
            for _ in range(count):
                next(batches)
            rates.append(count * args.batch / (time.process_time() - start))
    rate, needed = statistics.median(rates), args.reached * args.tflops * 1e12 / operations
    print(
        f"feed: {rate:.0f} images/s ({min(rates):.0f}–{max(rates):.0f}) from a core; a step takes "
        f"{operations / 1e9:.2f} GFLOP an image, so {args.reached:.0%} of {args.tflops:g} TFLOP/s "
        f"take {needed:.0f} images/s: {needed / rate:.1f} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tile", type=int, default=192)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=1024, help="in the store")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=1, help="calls in a round")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tflops", type=float, default=989, help="of an H100, bfloat16, stated")
    parser.add_argument("--reached", type=float, default=0.4, help="share of it that steps reach")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print_machine()
    logging.getLogger().setLevel(logging.ERROR)
    given = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in args.set)}
    fixed = {"input_px": args.size, "batch": args.batch, "statistics_tiles": args.batch}
    options = build(DpaOptions, {**fixed, **given})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = args.weights or full_vgg(folder / "full.safetensors")
        tiles = drawn_tiles(args.tiles, args.tile)
        in_memory = ArrayTiles(tiles)
        training, distance = started(in_memory, options, weights, folder / "run", args.device)
        measure_step(training, distance, tiles[: args.batch], args)
        store = written(tiles, folder)
        slides = [(slide, np.arange(len(slide))) for slide in wsiad.TileStore(store)]
        from_store = StoreTiles(slides, buffer_bytes=tiles.nbytes // 2)
        rates = [
            measure_data(name, training, source, args)
            for name, source in (("in memory", in_memory), ("from a store", from_store))
        ]
        print(f"data: from a store at {100 * rates[1] / rates[0]:.0f} % of the rate in memory")
        measure_feed(training, tiles, from_store, args)


def written(tiles: np.ndarray, folder: Path) -> Path:
    """Write tiles into a store."""
    import h5py

    with h5py.File(folder / "tiles.h5", "w") as file:
        file["x"] = tiles
    wsiad.import_tiles(
        sources=folder / "tiles.h5", out=folder / "store", mpp=1, label="normal", quiet=True
    )
    return folder / "store"


if __name__ == "__main__":
    main()
