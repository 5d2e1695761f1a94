"""What the tissue mask loses and what it takes for tissue: stains, ink, tinted glass, fill, debris.

    python benchmarks/tissue.py SLIDE [--tiles train_normal.tar …]

SLIDE is a real H&E slide of one level, of which the mask is taken as it is; everything else
is measured against that mask. Drawn from it are

    stains   its haematoxylin and eosin in the colours of other stains, throughout or, for
             blood and collagen, in parts of the tissue: share of the tissue that is lost, and
             what is measured of it without knowing (``colourless_share``);
    debris   edges of a coverslip, bubbles, dust and a shadow on much glass beside it: the
             same share, and that of all dark pixels, were they taken for tissue;
    ink      strokes and dots of several colours, opaque and transparent, on the glass and
             across the edge of the tissue: share of the ink's area that is not tissue, on
             the glass and on tissue, and share of the other tissue that is lost;
    glass    its light tinted, and pure white or black around or at one side of it:
             the Dice coefficient of the masks within the scanned area, the least of all.

With ``--tiles``, tars of tiles (0.972 µm/px) of real tissue are laid side by side on glass:
how many tiles lose more than half of their tissue to the pen rule.

Everything is stored as JPEG of quality 80 and averaged to the mask's 8 µm/px.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from wsiad.slides.opening import open_slide
from wsiad.tissue.artefacts import is_pen
from wsiad.tissue.mask import Segments, segment
from wsiad.tissue.tissue_options import TissueOptions
from wsiad.tissue.unseen import darker_than_glass

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

MPP = 8.0
HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))

STAINS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], float]] = {
    # what eosin and haematoxylin become at the density of the commonest, and in what share
    "haemorrhage": ((185, 45, 55), (105, 65, 150), 1.0),
    "haemorrhage in parts": ((185, 45, 55), (105, 65, 150), 0.3),
    "phloxine": ((225, 55, 85), (110, 50, 120), 1.0),
    "strong eosin": ((235, 70, 100), (105, 65, 150), 1.0),
    "aniline blue": ((120, 170, 200), (130, 60, 90), 1.0),
    "trichrome": ((90, 140, 200), (130, 60, 90), 0.5),
    "light green trichrome": ((110, 175, 140), (130, 60, 90), 0.5),
    "alcian blue": ((90, 175, 200), (150, 80, 120), 1.0),
    "alcian blue in parts": ((60, 150, 190), (105, 65, 150), 0.3),
    "PAS": ((205, 70, 150), (110, 90, 160), 1.0),
    "Congo red": ((215, 75, 75), (90, 100, 170), 1.0),
    "DAB": ((150, 100, 60), (98, 122, 165), 1.0),
    "IHC, negative": ((196, 208, 224), (98, 122, 165), 1.0),
    "PAS, green": ((190, 210, 190), (150, 60, 120), 1.0),
    "green throughout": ((160, 205, 175), (150, 60, 120), 1.0),
    "silver": ((200, 198, 195), (60, 58, 56), 1.0),
}
DEBRIS = ("none", "edge of a coverslip", "bubbles", "dust", "shadow at the border")
INKS = {
    "blue": (40, 90, 200),
    "light blue": (90, 150, 230),
    "cyan": (30, 160, 200),
    "red": (215, 25, 40),
    "green": (20, 120, 60),
    "black": (30, 30, 32),
}
TINTS = {
    "none": (255, 255, 255),
    "yellow": (255, 246, 229),
    "strong yellow": (255, 240, 190),
    "warm lamp": (255, 229, 196),
    "grey-blue": (214, 224, 240),
    "strong blue": (190, 215, 255),
    "pink": (255, 240, 246),
    "grey": (225, 224, 223),
}
SHARES = (0.001, 0.01, 0.03, 0.1, 0.3, 0.6)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tiles", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    with open_slide(options.slide) as slide:
        image, mpp = slide.read_level(0, 0, 0, slide.size).rgb, slide.spacing.mean
    truth = masked(image, mpp).mask
    print(
        f"{options.slide.name}: {truth.shape[1]} × {truth.shape[0]} px, tissue {truth.mean():.3f}"
    )
    print_stains(image, mpp, truth)
    print_debris(image, mpp)
    print_inks(image, mpp, truth)
    print_glass(image, mpp)
    for tar in options.tiles:
        print_tiles(tar)


def masked(image: RGB, mpp: float) -> Segments:
    """Segment an image that was stored as JPEG."""
    _, stored = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    image = cv2.imdecode(stored, cv2.IMREAD_COLOR)[..., ::-1]
    size = (round(image.shape[1] * mpp / MPP), round(image.shape[0] * mpp / MPP))
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    return segment(small, np.ones(small.shape[:2], bool), mpp=MPP, options=TissueOptions())


def density(colour: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """Optical density of a colour."""
    return -np.log(np.maximum(np.array(colour, float), 1) / 245)


def patches(shape: tuple[int, int], share: float) -> Mask:
    """Round parts of an image that cover a share of it."""
    noise = np.random.default_rng(1).standard_normal((12, 10)).astype(np.float32)
    field = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return field > np.quantile(field, 1 - share)


def restained(image: RGB, name: str) -> RGB:
    """Give a slide the colours of another stain."""
    eosin, nuclei, share = STAINS[name]
    amounts = density_of(image) @ np.linalg.pinv(np.array(HE))
    amounts = np.maximum(amounts, 0)
    typical = np.quantile(amounts[amounts.sum(-1) > 0.3], 0.8, axis=0)
    out = amounts[..., :1] / typical[0] * density(nuclei)
    out = out + amounts[..., 1:] / typical[1] * density(eosin)
    new = np.rint(245 * np.exp(-out)).clip(0, 255).astype(np.uint8)
    where = patches(image.shape[:2], share)
    return np.where(where[..., None], new, image)


def density_of(image: RGB) -> npt.NDArray[np.float64]:
    """Optical density of an image whose glass is its lightest part."""
    glass = np.percentile(image.reshape(-1, 3), 95, axis=0)
    return np.maximum(0, -np.log(np.maximum(image, 1) / glass))


def print_stains(image: RGB, mpp: float, truth: Mask) -> None:
    """Print what each stain loses."""
    print("\nstain                       lost, %   stated, %   pen, %   pen's colour, % of tissue")
    for name in STAINS:
        drawn = restained(image, name)
        found = masked(drawn, mpp)
        small = cv2.resize(drawn, truth.shape[::-1], interpolation=cv2.INTER_AREA)
        lost = (truth & ~found.mask).sum() / truth.sum()
        coloured = is_pen(small)[truth].mean()
        stated, pen = 100 * found.colourless_share, 100 * found.pen_share
        print(f"{name:26} {100 * lost:8.1f} {stated:11.1f} {pen:8.2f} {100 * coloured:8.1f}")


def print_debris(image: RGB, mpp: float) -> None:
    """Print what of debris on the glass counts as colourless parts of tissue."""
    size = (round(image.shape[1] * mpp / MPP), round(image.shape[0] * mpp / MPP))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    glass = tuple(int(value) for value in np.percentile(small.reshape(-1, 3), 95, axis=0))
    wide = cv2.copyMakeBorder(small, 300, 700, 700, 700, cv2.BORDER_CONSTANT, value=glass)
    height, width = wide.shape[:2]
    places = np.random.default_rng(0).integers(0, (width, 280), (500, 2))
    shapes = {name: np.zeros((height, width), np.float32) for name in DEBRIS}
    cv2.line(shapes["edge of a coverslip"], (width - 60, 0), (width - 40, height), 1.0, 16)
    for x in range(100, width, 150):
        cv2.circle(shapes["bubbles"], (x, 150), 60, 1.0, 6)
    for x, y in places:
        cv2.circle(shapes["dust"], (int(x), int(y)), 2, 1.0, -1)
    shapes["shadow at the border"][:, :100] = 1
    print("\ndebris                     stated, %   all dark pixels, % of them and tissue")
    for name, shape in shapes.items():
        drawn = (wide * (1 - 0.4 * shape[..., None])).astype(np.uint8)
        whole = np.ones(shape.shape, bool)
        found = segment(drawn, whole, mpp=MPP, options=TissueOptions())
        dark = int((darker_than_glass(drawn, whole) & (shape > 0) & ~found.mask).sum())
        every = 100 * dark / (dark + int(found.mask.sum()))
        print(f"{name:26} {100 * found.colourless_share:9.1f} {every:11.1f}")


def marks(image: RGB, truth: Mask, mpp: float) -> dict[str, list[tuple[int, int]]]:
    """Lines of marks, level-0 pixels: on the glass, and from there into the tissue."""
    glass = cv2.distanceTransform(np.pad(~truth, 1).view(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    tissue = cv2.distanceTransform(truth.view(np.uint8), cv2.DIST_L2, 5)
    (y0, x0), (y1, x1) = (
        np.unravel_index(int(field.argmax()), field.shape) for field in (glass, tissue)
    )
    scale = MPP / mpp
    at, into = (round(x0 * scale), round(y0 * scale)), (round(x1 * scale), round(y1 * scale))
    reach = round(float(glass.max()) * scale * 0.6)
    stroke = [(at[0], at[1] - reach), at, (at[0] + reach // 3, at[1] + reach)]
    middle = (at[0] + (into[0] - at[0]) * 3 // 4, at[1] + (into[1] - at[1]) * 3 // 4)
    return {"stroke": stroke, "dot": [at, at], "across": [at, middle]}


def print_inks(image: RGB, mpp: float, truth: Mask) -> None:
    """Print how much of each ink is found."""
    places = marks(image, truth, mpp)
    print("\nink          way          place     found on glass, %   on tissue, %   tissue lost, %")
    for (name, colour), opaque, (place, line) in itertools.product(
        INKS.items(), (True, False), places.items()
    ):
        for width_um in (60, 200):
            area = np.zeros(image.shape[:2], np.uint8)
            points = np.array(line, np.int32).reshape(-1, 1, 2)
            cv2.polylines(area, [points], False, 1, round(width_um / mpp))
            seed = zlib.crc32(f"{name} {place}".encode())
            grain = np.random.default_rng(seed).normal(0, 3, image.shape[:2])[..., None]
            over = np.array(colour) + grain
            if not opaque:
                over = image * (over / 245)
            drawn = np.where(area[..., None] > 0, over.clip(0, 255), image).astype(np.uint8)
            found = masked(drawn, mpp)
            inked = cv2.resize(area * 255, truth.shape[::-1], interpolation=cv2.INTER_AREA) > 250
            near = cv2.dilate(inked.view(np.uint8), np.ones((9, 9), np.uint8)).view(np.bool_)
            free = truth & ~near
            shares = [
                f"{100 * (~found.mask[part]).mean():14.1f}" if part.any() else " " * 13 + "–"
                for part in (inked & ~truth, inked & truth, free)
            ]
            way = f"{'opaque' if opaque else 'through'} {width_um} µm"
            print(f"{name:11} {way:13} {place:8}", *shares)


def filled(image: RGB, share: float, side: str, colour: int) -> tuple[RGB, tuple[slice, slice]]:
    """Put pure white or black beside or around an image; also return where it lies."""
    height, width = image.shape[:2]
    more = 1 / (1 - share)
    top = bottom = left = right = 0
    if side == "around":
        top = bottom = round(height * (more**0.5 - 1) / 2)
        left = right = round(width * (more**0.5 - 1) / 2)
    elif side in ("left", "right"):
        extra = round(width * (more - 1))
        left, right = (extra, 0) if side == "left" else (0, extra)
    else:
        extra = round(height * (more - 1))
        top, bottom = (extra, 0) if side == "top" else (0, extra)
    out = cv2.copyMakeBorder(
        image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(colour,) * 3
    )
    return out, np.s_[top : top + height, left : left + width]


def print_glass(image: RGB, mpp: float) -> None:
    """Print the least Dice coefficient of each tint and fill."""
    truth = masked(image, mpp).mask
    print("\ntint           alone", *(f"{100 * share:8g} %" for share in SHARES), " of fill")
    for name, tint in TINTS.items():
        tinted = np.rint(image * (np.array(tint) / 255)).astype(np.uint8)
        print(f"{name:14}", f"{dice(masked(tinted, mpp).mask, truth):.3f}", end="")
        for share in SHARES:
            least = 1.0
            for side, colour in itertools.product(
                ("left", "right", "top", "bottom", "around"), (255, 0)
            ):
                drawn, part = filled(tinted, share, side, colour)
                mask = masked(drawn, mpp).mask
                whole = np.zeros(drawn.shape[:2], np.uint8)
                inside = np.zeros_like(whole)
                inside[part] = 255
                whole[part] = 255 * (
                    cv2.resize(
                        truth.view(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST
                    )
                )
                expected = cv2.resize(whole, mask.shape[::-1], interpolation=cv2.INTER_AREA) > 127
                least = min(least, dice(mask, expected))
            print(f"{least:11.3f}", end="")
        print()


def dice(one: Mask, other: Mask) -> float:
    """Dice coefficient of two masks."""
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def print_tiles(tar: Path) -> None:
    """Print how many real tiles lose their tissue to the pen rule."""
    with tarfile.open(tar) as file:
        streams = [io.BytesIO(file.extractfile(member).read()) for member in file]
    tiles = [np.asarray(Image.open(stream).convert("RGB")) for stream in streams]
    lost = count = 0
    for first in range(0, len(tiles), 100):
        some = tiles[first : first + 100]
        canvas = np.full((12 * 96, 12 * 96, 3), 243, np.uint8)
        for number, tile in enumerate(some):
            top, left = (1 + number // 10) * 96, (1 + number % 10) * 96
            canvas[top : top + 96, left : left + 96] = tile
        size = (round(canvas.shape[1] * 0.972 / MPP), round(canvas.shape[0] * 0.972 / MPP))
        small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
        whole = np.ones(small.shape[:2], bool)
        kept = segment(small, whole, mpp=MPP, options=TissueOptions()).mask
        plain = segment(small, whole, mpp=MPP, options=TissueOptions(remove_pen=False)).mask
        for number in range(len(some)):
            top, left = (
                round((1 + place) * 96 * 0.972 / MPP) for place in (number // 10, number % 10)
            )
            part = np.s_[top : top + 11, left : left + 11]
            count += bool(plain[part].any())
            lost += bool(plain[part].any() and kept[part].sum() < 0.5 * plain[part].sum())
    print(
        f"\n{tar.name}: {lost} of {count} tiles lose more than half of their tissue to the pen rule"
    )


if __name__ == "__main__":
    main()
