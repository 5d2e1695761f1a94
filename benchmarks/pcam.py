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
    names = tile_names(path)
    border = len(names) * stop // (stop + fit)
    if border < stop or len(names) - border < fit:
        raise InputError(
            f"has {len(names)} tiles, fewer than {fit} to fit on and {stop} to hold out",
            subject=str(path),
        )
    drawn = np.random.default_rng([seed, fit]).choice(len(names) - border, fit, replace=False)
    chosen = [names[border + i] for i in np.sort(drawn)]
    return read_named(path, evenly(names[:border], stop)), read_named(path, chosen)


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


def centre(tiles: np.ndarray, size: int) -> np.ndarray:
    """Cut the central windows."""
    return np.ascontiguousarray(centre_crops(torch.from_numpy(tiles), size).numpy())
