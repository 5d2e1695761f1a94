"""PatchCamelyon tiles, and fits on them: what the benchmarks of detectors share."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsiad.core.errors import InputError
from wsiad.core.geometry import Mpp
from wsiad.learning.batches import centre_crops
from wsiad.learning.detector import AnomalousTiles, AnomalyType, HealthyTiles
from wsiad.store.dataset import ArrayTiles

PCAM_MPP = Mpp(0.972)

SLIDE_TILES, TUMOUR_TILES_OF_A_SLIDE = 25, 2
"""Tiles of a slide that is drawn of tiles, as PatchCamelyon names no slides, and of its tumour."""


def tile_names(path: Path) -> list[str]:
    """Names of the tiles of a tar, in order."""
    with tarfile.open(path) as tar:
        return sorted(name for name in tar.getnames() if name.endswith(".jpg"))


def evenly(names: Sequence[str], count: int) -> list[str]:
    """``count`` of the names, evenly chosen."""
    return [names[i] for i in np.linspace(0, len(names) - 1, count).astype(int)]


def read_named(path: Path, names: Sequence[str]) -> np.ndarray:
    """Tiles of a tar by their names: uint8 (N, 96, 96, 3)."""
    with tarfile.open(path) as tar:
        files = (tar.extractfile(name) for name in names)
        return np.stack(
            [np.asarray(Image.open(io.BytesIO(f.read())).convert("RGB")) for f in files]
        )


def read_tar(path: Path, most: int | None, *, without: int = 0) -> np.ndarray:
    """Tiles of a tar, evenly chosen: uint8 (N, 96, 96, 3).

    ``without`` leaves out those that ``most = without`` chooses.
    """
    names = tile_names(path)
    if without:
        names = sorted(set(names) - set(evenly(names, without)))
    if most and len(names) > most:
        names = evenly(names, most)
    return read_named(path, names)


def held_out_and_drawn(
    path: Path, *, stop: int, fit: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of a tar to hold out, and tiles to fit on that a seed draws from the others.

    The held-out tiles are of the first stretch of the tar, the same for all seeds: neighbours
    in it are neighbours in the slide. No slide names are in PatchCamelyon.
    """
    names, border, drawn = _drawn(path, stop=stop, fit=fit, seed=seed)
    chosen = [names[border + i] for i in drawn]
    return read_named(path, evenly(names[:border], stop)), read_named(path, chosen)


def left_over(path: Path, most: int, *, stop: int, fit: int, seed: int) -> np.ndarray:
    """Tiles of a tar that :func:`held_out_and_drawn` neither holds out nor draws: uint8 (N, …).

    They are drawn by the seed.

    Raises
    ------
    InputError
        There are fewer than ``most``.
    """
    names, border, drawn = _drawn(path, stop=stop, fit=fit, seed=seed)
    others = np.setdiff1d(np.arange(len(names) - border), drawn)
    if len(others) < most:
        raise InputError(
            f"has {len(others)} tiles that nothing is fitted on, fewer than {most}",
            subject=str(path),
        )
    again = np.random.default_rng([seed, fit, most]).choice(others, most, replace=False)
    return read_named(path, [names[border + i] for i in np.sort(again)])


def _drawn(path: Path, *, stop: int, fit: int, seed: int) -> tuple[list[str], int, np.ndarray]:
    """Names of a tar, the end of its first stretch, and sorted positions after it to fit on."""
    names = tile_names(path)
    border = len(names) * stop // (stop + fit)
    if border < stop or len(names) - border < fit:
        raise InputError(
            f"has {len(names)} tiles, fewer than {fit} to fit on and {stop} to hold out",
            subject=str(path),
        )
    drawn = np.random.default_rng([seed, fit]).choice(len(names) - border, fit, replace=False)
    return names, border, np.sort(drawn)


def stretches(tiles: np.ndarray, stop: int) -> HealthyTiles:
    """Fit on all but the first ``stop`` tiles, which are held out: whole stretches of a tar."""
    return HealthyTiles(ArrayTiles(tiles[stop:]), ArrayTiles(tiles[:stop]))


def drawn_anomalies(tiles: np.ndarray, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``count`` tiles that a seed draws, and all others; smaller counts are parts of larger.

    Raises
    ------
    InputError
        There are not so many.
    """
    if count > len(tiles):
        raise InputError(f"{count} anomalous tiles were asked for, and there are {len(tiles)}")
    drawn, others = np.split(np.random.default_rng(seed).permutation(len(tiles)), [count])
    return tiles[drawn], tiles[others]


def as_anomalies(tiles: np.ndarray) -> AnomalousTiles:
    """Tumour tiles as a detector takes them, each as of a slide of its own: it is not known."""
    slides = tuple(str(number) for number in range(len(tiles)))
    return AnomalousTiles((AnomalyType("tumor", ArrayTiles(tiles), slides),))


def healthy_among(tumour_tiles: int) -> int:
    """Return the number of healthy tiles that :func:`as_slides` needs beside so many of tumour."""
    return -(-tumour_tiles // TUMOUR_TILES_OF_A_SLIDE) * SLIDE_TILES - tumour_tiles


def as_slides(tumour: np.ndarray, healthy: np.ndarray) -> AnomalousTiles:
    """Drawn slides of ``SLIDE_TILES`` tiles, a few of tumour: labels of slides alone.

    ``healthy`` holds :func:`healthy_among` tiles; the last slide has the fewest of tumour.
    """
    slides = -(-len(tumour) // TUMOUR_TILES_OF_A_SLIDE)
    of_tumour = np.arange(len(tumour)) // TUMOUR_TILES_OF_A_SLIDE
    free = SLIDE_TILES - np.bincount(of_tumour, minlength=slides)
    numbers = np.concatenate([of_tumour, np.repeat(np.arange(slides), free)])
    names = tuple(map(str, numbers))
    tiles = ArrayTiles(np.concatenate([tumour, healthy]))
    return AnomalousTiles((AnomalyType("tumor", tiles, names),))


def digits(size: int) -> AnomalousTiles:
    """Return the handwritten digits of scikit-learn, enlarged: ten labels that are no tissue.

    UCI ML hand-written digits, 1,797 grey pictures of 8 × 8 px; each is of a slide of its own.
    """
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    small = np.round(pictures * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    types = []
    for label in range(10):
        own = small[labels == label]
        large = np.stack([np.asarray(Image.fromarray(one).resize((size, size))) for one in own])
        tiles = np.repeat(large[..., None], 3, axis=3)
        slides = tuple(f"{label}-{number}" for number in range(len(own)))
        types.append(AnomalyType(f"digit {label}", ArrayTiles(tiles), slides))
    return AnomalousTiles(tuple(types))


def centre(tiles: np.ndarray, size: int) -> np.ndarray:
    """Cut the central windows."""
    return np.ascontiguousarray(centre_crops(torch.from_numpy(tiles), size).numpy())
