"""How long stain normalisation takes, how alike it makes slides, whence its reference comes.

    python benchmarks/stain.py speed [--tiles TAR]
    python benchmarks/stain.py centres --tiles TAR
    python benchmarks/stain.py reference --tiles TAR --slide SVS

``speed`` has rows of torchstain and StainTools, which fit every tile, where they are installed.
``TAR`` holds H&E tiles as images of one size (without it, synthetic ones are made);
for ``centres`` and ``reference``, PatchCamelyon's normal training tiles. Times are the
least of several runs in one thread; ratios compare what ran in turn on the same pixels.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from machine import print_machine
from peers import normalisers
from PIL import Image

from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram, is_stained, optical_density, to_lab
from wsiad.stain.fit import fit_stains
from wsiad.stain.methods import concentrations
from wsiad.stain.profile import StainProfile, reference_profile

PIXELS = 9_216_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "centres", "reference"])
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--slide", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print_machine()
    if options.what == "speed":
        speed(read_tiles(options.tiles, PIXELS) if options.tiles else synthetic_tiles())
    elif options.what == "centres" and options.tiles:
        centres(read_tiles(options.tiles))
    elif options.what == "reference" and options.tiles and options.slide:
        reference(read_tiles(options.tiles), read_slide(options.slide))
    else:
        parser.error(f"{options.what} needs --tiles (and the reference --slide)")


def read_tiles(path: Path, pixels: int | None = None) -> np.ndarray:
    tiles: list[np.ndarray] = []
    with tarfile.open(path) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                tiles.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
            if pixels and len(tiles) * tiles[0].size >= 3 * pixels:
                break
    return np.stack(tiles)


def read_slide(path: Path) -> np.ndarray:
    import openslide

    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def synthetic_tiles() -> np.ndarray:
    rng = np.random.default_rng(0)
    stains = reference_profile().stains.matrix
    tiles = []
    for _ in range(PIXELS // 256**2):
        amounts = np.abs(cv2.GaussianBlur(rng.normal(0, 8, (256, 256, 2)), (0, 0), 3))
        rgb = 245 * np.exp(-amounts @ stains) + rng.normal(0, 2, (256, 256, 3))
        tiles.append(np.clip(rgb, 0, 255).astype(np.uint8))
    return np.stack(tiles)


def speed(tiles: np.ndarray) -> None:
    pixels = tiles.size // 3
    colours = len(np.unique(tiles.reshape(-1, 3).astype(np.uint32) @ [1 << 16, 1 << 8, 1]))
    print(f"{len(tiles)} tiles, {pixels / 1e6:.1f} Mpx, {colours} colours")
    histogram = ColourHistogram()
    report("histogram: add", least(lambda: histogram.add(tiles), 3), pixels)
    target = reference_profile()
    for method in ("vahadane", "macenko", "reinhard"):
        fit = least(lambda method=method: fit_stains(histogram, method=method), 3)
        profile = fit_stains(histogram, method=method)
        build = least(
            lambda profile=profile: ColourTable.between(profile, reference_profile(profile.method)),
            3,
        )
        print(f"{method:9s} fit {fit * 1e3:6.0f} ms   table {build * 1e3:6.0f} ms")
    profile = fit_stains(histogram)
    table = ColourTable.between(profile, target)
    out = np.empty_like(tiles)
    jpegs = [imagecodecs.jpeg8_encode(tile, level=80) for tile in tiles[:200]]
    copy = least(lambda: np.copyto(out, tiles), 7) / pixels
    apply = least(lambda: table.apply(tiles, out=out), 7) / pixels
    some = tiles[:20]
    direct = least(lambda: directly(some, profile, target), 3) / (some.size // 3)
    decode = least(lambda: [imagecodecs.jpeg8_decode(jpeg) for jpeg in jpegs], 3)
    decode /= tiles[:200].size // 3
    peers = []
    for name, (fit, transform, _) in normalisers().items():
        fit(tiles[0])
        seconds = least(lambda transform=transform: [transform(tile) for tile in some[:4]], 3)
        peers.append((f"{name}, every tile fitted", seconds / (some[:4].size // 3)))
    for name, value in (
        ("numpy copy of the same array", copy),
        ("table: apply", apply),
        ("the formula in numpy float64", direct),
        ("JPEG decode of the same tiles", decode),
        *peers,
    ):
        print(f"{name:30s} {value * 1e9:7.2f} ns/px   {value / apply:7.2f} x table")


def directly(tiles: np.ndarray, profile: StainProfile, target: StainProfile) -> np.ndarray:
    density = optical_density(tiles.reshape(-1, 3), profile.white)
    amounts = concentrations(density, profile.stains.matrix)
    amounts *= np.divide(target.stains.strength, profile.stains.strength)
    return np.rint(255 * np.exp(-amounts @ target.stains.matrix)).astype(np.uint8)


def least(run: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def report(name: str, seconds: float, pixels: int) -> None:
    print(f"{name:30s} {seconds / pixels * 1e9:7.2f} ns/px")


def reference(tiles: np.ndarray, slide: np.ndarray) -> None:
    """Print the mean of the profiles of both centres' lymph node and of the slide."""
    ratios = np.array([blue_over_green(tile) for tile in tiles])
    parts = {"centre 1": tiles[ratios >= 0.5], "centre 2": tiles[ratios < 0.5], "slide": slide}
    for method in ("vahadane", "macenko", "reinhard"):
        profiles = []
        for name, pixels in parts.items():
            histogram = ColourHistogram()
            histogram.add(pixels)
            profiles.append(fit_stains(histogram, method=method))
            print(f"{method} {name}, {pixels.size // 3} px: {profiles[-1]}")
        if method == "reinhard":
            print("mean", np.mean([p.lab.mean for p in profiles], axis=0).round(1))
            print("std", np.mean([p.lab.std for p in profiles], axis=0).round(1))
            continue
        matrix = np.mean([p.stains.matrix for p in profiles], axis=0)
        print("matrix", (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).round(3).tolist())
        print("strength", np.mean([p.stains.strength for p in profiles], axis=0).round(2))


def centres(tiles: np.ndarray) -> None:
    """Print how far apart the colours of both centres' lymph node are, before and after."""
    ratios = np.array([blue_over_green(tile) for tile in tiles])
    parts = [tiles[ratios >= 0.5], tiles[ratios < 0.5]]
    print("mean difference of the quantiles of L*, a*, b* of the tissue")
    print(f"{'none':9s} {quantile_distance(*parts).round(2)}")
    for method in ("vahadane", "macenko", "reinhard"):
        mapped = []
        for part in parts:
            histogram = ColourHistogram()
            histogram.add(part)
            profile = fit_stains(histogram, method=method)
            mapped.append(ColourTable.between(profile, reference_profile(method)).apply(part))
        print(f"{method:9s} {quantile_distance(*mapped).round(2)}")


def quantile_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    shares, quantiles = np.linspace(0.005, 0.995, 199), []
    for tiles in (one, other):
        lab = to_lab(tiles.reshape(-1, 3)[::7].astype(np.float32))
        quantiles.append(np.quantile(lab[lab[:, 0] < 85], shares, axis=0))
    return np.abs(quantiles[0] - quantiles[1]).mean(axis=0)


def blue_over_green(tile: np.ndarray) -> float:
    """Blue over green density of a tile's tissue: parts both centres; NaN for little tissue."""
    rgb = tile.reshape(-1, 3).astype(np.float64)
    density = optical_density(rgb[is_stained(rgb)])
    if len(density) < 1000:
        return float("nan")
    return float(density[:, 2].sum() / density[:, 1].sum())


if __name__ == "__main__":
    main()
