"""Damage in the data of single tiles: how often what is read differs from OpenSlide's pixels.

    python benchmarks/damage.py [slide.svs ...] [--count 2000] [--seed 7]

Tiles of each slide are damaged by ``count`` mutations in turn: flipped bits, random bytes,
zeros, bytes of other tiles, ends cut off, and other lengths or places in the directory.
OpenSlide, the direct path and the package's path through OpenSlide read the damaged tile.
Counted are those that are read where OpenSlide fails (*invented*), read to other pixels than
OpenSlide's (*different*), or not treated alike by both paths. Without a slide, JPEG of all
subsamplings, with and without restart intervals and shared tables, RGB, and JPEG 2000 are
drawn. The exit code is 1 if anything was invented, different or not alike.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import tifffile

from wsiad.core.errors import SlideError
from wsiad.core.geometry import Size
from wsiad.slides.opening import open_slide

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

KINDS = (
    "flip", "flip", "flip", "flips", "random16", "random512", "zeros512", "zeros-tail",
    "zeros-tail-end", "stale", "cut-end", "marker", "restart", "head",
)  # fmt: skip


def mutated(data: bytes, others: list[bytes], kind: str, rng: random.Random) -> bytes:
    """Damage a tile's stream; its length stays."""
    out, size = bytearray(data), len(data)
    at = rng.randrange(min(20, size - 1), size)
    if kind == "flip":
        out[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randrange(2, 9)):
            out[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind.startswith("random"):
        out[at : at + int(kind[6:])] = rng.randbytes(len(out[at : at + int(kind[6:])]))
    elif kind == "zeros512":
        out[at : at + 512] = bytes(len(out[at : at + 512]))
    elif kind == "zeros-tail":
        out[at:] = bytes(size - at)
    elif kind == "zeros-tail-end":
        out[at:] = bytes(max(0, size - at - 2)) + bytes(out[-2:])[: size - at]
    elif kind == "stale":
        other = rng.choice(others)
        part = other[at : at + rng.choice((64, 512, 4096))]
        out[at : at + len(part)] = part
    elif kind == "cut-end":
        out[at : at + 2] = b"\xff\xd9"[: size - at]
    elif kind == "marker":
        out[at : at + 2] = bytes((0xFF, rng.randrange(256)))[: size - at]
    elif kind == "restart":
        out[at : at + 2] = bytes((0xFF, 0xD0 + rng.randrange(8)))[: size - at]
    elif kind == "head":
        out[rng.randrange(min(size, 620))] = rng.randrange(256)
    return bytes(out[:size])


def truth(path: Path, x: int, y: int, size: Size) -> np.ndarray | None:
    """Read a rectangle by OpenSlide alone: RGB, or nothing where it fails."""
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError:
        return None
    try:
        rgba = np.asarray(slide.read_region((x, y), 0, (size.width, size.height)))
    except openslide.OpenSlideError:
        return None
    finally:
        slide.close()
    return None if (rgba[..., 3] < 128).any() else np.ascontiguousarray(rgba[..., :3])


def read(path: Path, x: int, y: int, size: Size, backend: str) -> np.ndarray | None:
    """Read it by a path of the package."""
    try:
        with open_slide(path, name="x", fallback_mpp=0.5, backend=backend) as slide:
            region = slide.read_level(0, x, y, size)
    except SlideError:
        return None
    return region.rgb if region.valid is None else None


def attack(
    slide: Path, *, count: int, seed: int, folder: Path, backends: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Damage tiles of a slide in turn; yield the kind and what became of it."""
    content = slide.read_bytes()
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        tile, whole = (
            Size(page.tilewidth, page.tilelength), Size(page.imagewidth, page.imagelength)
        )  # fmt: skip
    columns = -(-whole.width // tile.width)
    rng = random.Random(seed)
    copy = folder / f"damaged{slide.suffix}"
    copy.write_bytes(content)
    streams = [content[offset : offset + length] for offset, length in places]
    chosen = [index for index, stream in enumerate(streams) if len(stream) > 64]
    for _ in range(count):
        index, kind = rng.choice(chosen), rng.choice(KINDS)
        offset, length = places[index]
        with copy.open("r+b") as file:
            file.seek(offset)
            file.write(mutated(streams[index], streams, kind, rng))
        row, column = divmod(index, columns)
        x, y = column * tile.width, row * tile.height
        size = Size(min(tile.width, whole.width - x), min(tile.height, whole.height - y))
        expected = truth(copy, x, y, size)
        seen = [read(copy, x, y, size, backend) for backend in backends]
        outcome = "fails" if all(one is None for one in seen) else "reads"
        if any((one is None) != (seen[0] is None) for one in seen):
            outcome = "NOT ALIKE"
        elif seen[0] is not None and expected is None:
            outcome = "INVENTED"
        elif any(not np.array_equal(one, expected) for one in seen if one is not None):
            outcome = "DIFFERENT"
        with copy.open("r+b") as file:
            file.seek(offset)
            file.write(content[offset : offset + length])
        yield kind, f"OpenSlide {'fails' if expected is None else 'reads'}, wsiad {outcome}"


def drawn_slides(folder: Path) -> list[Path]:
    """Draw a slide of each kind of tiles."""
    from support.jpeg2000_slides import write_jpeg2000
    from support.tiff_slides import smooth, write_jpeg

    image, slides = smooth(256, 320), []
    for space, subsampling in (
        ("RGB", "444"), ("YCBCR", "444"), ("YCBCR", "422"), ("YCBCR", "420")
    ):  # fmt: skip
        for shared in (False, True):
            for restart in (0, 2):
                name = f"{space}-{subsampling}{'-shared' * shared}{'-restart' * bool(restart)}.tif"
                slides.append(
                    write_jpeg(
                        folder / name, image, space=space, subsampling=subsampling,
                        shared=shared, levels=1, restart=restart,
                    )
                )  # fmt: skip
    slides.append(write_jpeg(folder / "optimised.tif", image, levels=1, optimised=True))
    slides.append(write_jpeg2000(folder / "jpeg2000.svs", image, levels=1))
    return slides


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="mutations of each slide")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kinds", action="store_true", help="show each kind of mutation")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    bad = total = 0
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    try:
        for slide in options.slides or drawn_slides(folder):
            counts: Counter[str] = Counter()
            kinds: Counter[tuple[str, str]] = Counter()
            for kind, outcome in attack(
                slide, count=options.count, seed=options.seed, folder=folder,
                backends=("auto", "openslide"),
            ):  # fmt: skip
                counts[outcome] += 1
                kinds[kind, outcome] += 1
            bad += sum(n for outcome, n in counts.items() if outcome[-1].isupper())
            total += sum(counts.values())
            print(f"{slide.name:32} {dict(sorted(counts.items()))}", flush=True)
            if options.kinds:
                for (kind, outcome), n in sorted(kinds.items()):
                    print(f"    {kind:16} {outcome}: {n}")
    finally:
        shutil.rmtree(folder)
    print(f"{total:,} mutations, seed {options.seed}: {bad} invented, different or not alike")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
