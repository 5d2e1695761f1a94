"""How long FROC takes from masks at CAMELYON16's size, beside the official steps and MONAI.

    python benchmarks/froc.py [--slides 129 --tumour 49] [--annotations XML] [--no-monai]

Makes level-5 masks of up to 3,056 × 6,912 px with lesions of all sizes (or with the outlines of
``--annotations``, one slide a file, over and over) and detections, and scores them three
ways, slide by slide in turn, on one core:

* *wsiad*: this package, both protocols;
* *official steps*: what the script of 2016 computes, on the whole mask: distance transform,
  hole filling, labelling, region properties, and the curve threshold by threshold;
* *MONAI*: its functions for the same steps.

Labels, isolated tumour cells, hits, curves and scores must be equal, or the run ends with
an error. All read the PNG by this package's function. Times of reading, of the regions and of the
scores are apart; ratios are those of one run.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from machine import print_machine
from PIL import Image

from wsiad.annotations import read_annotations
from wsiad.core.geometry import Size
from wsiad.evaluation.froc import OPERATING_POINTS, Pool
from wsiad.evaluation.froc_score import froc_score
from wsiad.evaluation.matching import PROTOCOLS, Detections, evaluation_mask, match
from wsiad.evaluation.truth import rasterise, read_mask

MPP = 0.243
STEP = 32
PIXEL_UM = MPP * STEP
SHAPE = (6912, 3056)
V1, V2 = "camelyon16-2016", "camelyon16-dataset"


class Clock:
    """Seconds of processor time by who and what."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)

    def __call__(self, who: str, what: str, function, *arguments, **options):
        """Call a function and add its time."""
        start = time.process_time()
        result = function(*arguments, **options)
        self.seconds[who, what] += time.process_time() - start
        return result

    def of(self, who: str) -> float:
        """Return all that somebody took."""
        return sum(seconds for (name, _), seconds in self.seconds.items() if name == who)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=129)
    parser.add_argument("--tumour", type=int, default=49)
    parser.add_argument("--detections", type=int, default=100, help="a slide, on average")
    parser.add_argument("--annotations", type=Path, help="folder of ASAP XML to take outlines of")
    parser.add_argument("--monai", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--official", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print_machine()
    Image.MAX_IMAGE_PIXELS = None
    peers = ["official steps"] if options.official else []
    if options.monai and importlib.util.find_spec("monai"):
        peers.append("MONAI")
        load_monai()
    for module in ("scipy.ndimage", "skimage.measure"):
        importlib.import_module(module)  # before anything is timed
    with tempfile.TemporaryDirectory() as folder:
        clock = run(options, Path(folder), peers)
    show(clock, ["wsiad", *peers])


def run(options: argparse.Namespace, folder: Path, peers: list[str]) -> Clock:
    rng = np.random.default_rng(options.seed)
    clock = Clock()
    hits = {name: [] for name in PROTOCOLS}
    theirs = {peer: ([], [], 0) for peer in peers}
    files = sorted(options.annotations.glob("*.xml")) if options.annotations else []
    share = []
    for number in range(options.slides):
        tumour = None
        if number < options.tumour:
            tumour = outlined(files[number % len(files)]) if files else drawn(rng)
            share.append(tumour.mean())
        found = detections(rng, tumour, options.detections)
        path = folder / "mask.png"
        if tumour is not None:
            Image.fromarray(tumour.astype(np.uint8) * 255).save(path, compress_level=6)
        truth = ours(clock, path if tumour is not None else None, found, hits)
        for peer in peers:
            labels, cells = STEPS[peer](clock, path) if tumour is not None else (None, [])
            if tumour is not None:
                np.testing.assert_array_equal(labels, truth.labels, err_msg=peer)
                assert set(cells) == set(truth.itc), peer
            false, true, lesions = theirs[peer]
            some = clock(peer, "hits", HITS[peer], found, labels, cells)
            false.extend(some[0])
            true.extend(some[1])
            theirs[peer] = (false, true, lesions + some[2])
    masks = f"{options.slides} slides, {options.tumour} with tumour"
    print(f"{masks}, tumour on {np.mean(share):.2%} of their pixels on average")
    compare(clock, hits, theirs, options)
    return clock


def compare(clock: Clock, hits: dict, theirs: dict, options: argparse.Namespace) -> None:
    curves = clock("wsiad", "scores", lambda: {n: both(hits[n], PROTOCOLS[n]) for n in hits})
    print(
        f"{sum(len(h.regions) for h in hits[V1])} regions, "
        f"{sum(h.lesions for h in hits[V1])} lesions; "
        + ", ".join(f"{name} {value.mean():.6f}" for name, (_, value) in curves.items())
    )
    for peer, (false, true, lesions) in theirs.items():
        x, y, score = clock(peer, "scores", CURVES[peer], false, true, lesions, options.slides)
        curve, sensitivities = curves[V1]
        assert lesions == sum(h.lesions for h in hits[V1]), peer
        np.testing.assert_allclose(curve.false_positives, x, atol=1e-12, err_msg=peer)
        np.testing.assert_allclose(curve.sensitivity, y, atol=1e-12, err_msg=peer)
        np.testing.assert_allclose(sensitivities.mean(), score, atol=1e-12, err_msg=peer)
        print(f"equal: labels, isolated tumour cells, curve and score of {peer} ({score:.6f})")
    start = time.process_time()
    for name, rules in PROTOCOLS.items():
        froc_score(hits[name], hits[name], rules, resamples=1000, seed=0)
    print(f"1,000 resamples, both protocols: {time.process_time() - start:.2f} s more")


def both(hits, rules):
    pool = Pool(hits, rules)
    return pool.curve(), pool.sensitivities()


# Slides


def outlined(path: Path) -> np.ndarray:
    return rasterise(read_annotations(path), Size(*SHAPE[::-1]), scale=STEP)


def drawn(rng: np.random.Generator) -> np.ndarray:
    """Draw a few lesions of any size, from cell groups to half a centimetre, some with holes."""
    mask = np.zeros(SHAPE, np.uint8)
    for _ in range(rng.integers(1, 12)):
        radius = float(np.exp(rng.uniform(np.log(4), np.log(400))))
        centre = rng.uniform((radius, radius), np.subtract(SHAPE[::-1], radius))
        angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
        waves = sum(
            rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(1, 20)
        )
        outline = centre + radius * (1 + waves)[:, None] * np.c_[np.cos(angle), np.sin(angle)]
        cv2.fillPoly(mask, [outline.round().astype(np.int32)], 1)
        for _ in range(rng.integers(0, 3)):
            hole = centre + rng.normal(0, radius / 3, 2)
            cv2.circle(mask, hole.round().astype(int).tolist(), int(radius / 8), 0, -1)
    return mask.astype(bool)


def detections(rng: np.random.Generator, tumour: np.ndarray | None, count: int) -> Detections:
    """Draw places, some on tumour, with confidences that no two share."""
    number = int(rng.poisson(count))
    places = rng.uniform(0, np.array(SHAPE[::-1]) * STEP, (number, 2))
    if tumour is not None:
        inside = np.argwhere(tumour)[:, ::-1]
        chosen = rng.random(number) < 0.1
        places[chosen] = inside[rng.integers(0, len(inside), chosen.sum())] * STEP + 16
    # Whole pixels, and confidences that 32 bits hold: no peer rounds them.
    confidence = rng.integers(1, 1 << 24, number) / float(1 << 24)
    return Detections(confidence, *np.floor(places).T)


def read(clock: Clock, who: str, path: Path) -> np.ndarray:
    """Read a mask, in the same way for all: bool (H, W)."""
    return clock(who, "read", read_mask, path, downsample=STEP).pixels


# This package


def ours(clock: Clock, path: Path | None, found: Detections, hits: dict):
    truth = None
    if path is not None:
        mask = read(clock, "wsiad", path)
        truth = clock("wsiad", "regions", evaluation_mask, mask, pixel_um=PIXEL_UM)
    for name, rules in PROTOCOLS.items():
        hits[name].append(clock("wsiad", "hits", match, found, truth, rules, downsample=STEP))
    return truth


# The steps of the script of 2016


def official(clock: Clock, path: Path):
    who = "official steps"
    return clock(who, "regions", official_regions, read(clock, who, path))


def official_regions(mask: np.ndarray):
    from scipy import ndimage
    from skimage import measure

    distance = ndimage.distance_transform_edt(~mask)
    filled = ndimage.binary_fill_holes(distance < 75 / (PIXEL_UM * 2))
    labels = measure.label(filled, connectivity=2)
    axes = [region.axis_major_length for region in measure.regionprops(labels)]
    return labels, [n for n, axis in enumerate(axes, 1) if axis < 275 / PIXEL_UM]


def official_hits(found: Detections, labels: np.ndarray | None, cells: list[int]):
    number = 0 if labels is None else int(labels.max())
    false, best = [], np.zeros(number, np.float32)
    for confidence, x, y in zip(found.confidence, found.x, found.y, strict=True):
        hit = 0 if labels is None else labels[int(y / STEP), int(x / STEP)]
        if hit == 0:
            false.append(float(confidence))
        elif hit not in cells:
            best[hit - 1] = max(best[hit - 1], confidence)
    return false, best, number - len(cells)


def official_curve(false: list, true: list, lesions: int, slides: int):
    points = [
        ((np.asarray(false) >= threshold).sum(), (np.asarray(true) >= threshold).sum())
        for threshold in sorted({*false, *true})[1:]
    ]
    x, y = np.array([*points, (0, 0)], float).T
    x, y = x / slides, y / lesions
    return x, y, float(np.mean(np.interp(OPERATING_POINTS, x[::-1], y[::-1])))


# MONAI's functions


@functools.cache
def load_monai():
    """Load them before anything is timed."""
    from monai import metrics
    from monai.apps.pathology import utils

    warnings.filterwarnings("ignore", category=FutureWarning)
    return metrics, utils


def monai(clock: Clock, path: Path):
    _, utils = load_monai()
    mask = read(clock, "MONAI", path)

    def regions():
        labels = utils.compute_multi_instance_mask(mask.astype(np.uint8), 75 / (PIXEL_UM * 2))
        return labels, utils.compute_isolated_tumor_cells(labels, 275 / PIXEL_UM)

    return clock("MONAI", "regions", regions)


def monai_hits(found: Detections, labels: np.ndarray | None, cells: list[int]):
    metrics, _ = load_monai()
    mask = np.zeros((1, 1), int) if labels is None else labels
    x, y = (found.x, found.y) if labels is not None else (found.x * 0, found.y * 0)
    rows = np.floor(y / STEP).astype(int)
    columns = np.floor(x / STEP).astype(int)
    return metrics.compute_fp_tp_probs(found.confidence, rows, columns, mask, cells)


def monai_curve(false: list, true: list, lesions: int, slides: int):
    metrics, _ = load_monai()
    x, y = metrics.compute_froc_curve_data(np.array(false), np.array(true), lesions, slides)
    return x, y, metrics.compute_froc_score(x, y, OPERATING_POINTS)


STEPS = {"official steps": official, "MONAI": monai}
HITS = {"official steps": official_hits, "MONAI": monai_hits}
CURVES = {"official steps": official_curve, "MONAI": monai_curve}


def show(clock: Clock, names: list[str]) -> None:
    parts = ["read", "regions", "hits", "scores"]
    print(f"{'seconds (processor)':<20}" + "".join(f"{p:>9}" for p in [*parts, "all", "no read"]))
    for name in names:
        each = [clock.seconds[name, part] for part in parts]
        numbers = [*each, sum(each), sum(each[1:])]
        print(f"{name:<20}" + "".join(f"{number:9.2f}" for number in numbers))
    for name in names[1:]:
        apart = clock.of("wsiad") - clock.seconds["wsiad", "read"]
        without = clock.of(name) - clock.seconds[name, "read"]
        print(
            f"{name} / wsiad (which does both protocols): {clock.of(name) / clock.of('wsiad'):.1f} "
            f"with reading, {without / apart:.1f} without"
        )


if __name__ == "__main__":
    main()
