"""Batches of a training: endless, shuffled and resumable, cut to a detector's input.

Windows are cut at random for training, and on a fixed grid for scoring. Contrastive training
sees two random views of a tile: turned, scaled, with different stains. A bounded sample of a
source of tiles is reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError
from wsiad.learning.detector import FitContext, Tiles, TileSource
from wsiad.learning.devices import Ranks
from wsiad.learning.stages import Stages


def check_size(tile_px: int, input_px: int) -> None:
    """Check that tiles are at least as large as a detector's input.

    Raises
    ------
    DetectorError
        The tiles are smaller than the input.
    """
    if tile_px < input_px:
        raise DetectorError(
            f"tiles of {tile_px} px are smaller than the detector's input of {input_px} px",
            remedy="Tile again with larger tiles, or set a smaller input_px.",
        )


def on_device(tiles: npt.NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Copy tiles to a device as uint8, which is a quarter of the size of float32.

    The copy does not wait for a GPU to finish earlier work.
    """
    return on_host(tiles).to(device, non_blocking=True)


def on_host(tiles: npt.NDArray[np.uint8] | Tensor, *, pinned: bool = False) -> Tensor:
    """Return tiles as a tensor; if ``pinned``, in memory that a GPU reads directly."""
    if not isinstance(tiles, Tensor):
        # torch wants memory that it may write to.
        tiles = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
    return tiles.pin_memory() if pinned else tiles


def host_memory(shape: tuple[int, ...], *, pinned: bool) -> npt.NDArray[np.uint8]:
    """Return memory for tiles, uint8; if ``pinned``, memory that a GPU reads directly.

    A copy of pinned memory to a GPU waits for nothing, and the memory is not used again before the
    copy is done.
    """
    if not pinned:
        return np.empty(shape, np.uint8)
    found: npt.NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return found


def random_crops(
    tiles: Tensor,
    size: int,
    *,
    seed: int,
    step: int,
    rows: npt.NDArray[np.int64] | None = None,
    total: int | None = None,
    flips: bool = True,
) -> Tensor:
    """Cut one random window out of every tile and flip it at random in both directions.

    Windows and flips are a pure function of ``seed`` and ``step``, so that an interrupted
    training continues exactly as it would have.

    Parameters
    ----------
    tiles : Tensor of uint8, (N, S, S, 3)
        Tiles on any device.
    size : int
        Edge of the windows, pixels.
    seed, step : int
        Numbers that decide the draw.
    rows : ndarray of int64, (N,), optional
        Rows of these tiles in a larger batch, for which the draws are made.
    total : int, optional
        Number of tiles of that batch.
    flips : bool
        True to flip windows at random.

    Returns
    -------
    Tensor of uint8, (N, size, size, 3)
    """
    count, edge = tiles.shape[0], tiles.shape[1]
    check_size(edge, size)
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, edge - size + 1, size=(2, total or count))
    flipped = rng.integers(0, 2, size=(2, total or count)).astype(bool) & flips
    if rows is not None:
        starts, flipped = starts[:, rows], flipped[:, rows]
    along = np.arange(size)
    positions = np.where(flipped[:, :, None], along[::-1], along) + starts[:, :, None]
    y, x = _sent(positions, tiles.device)
    image = torch.arange(count, device=tiles.device)
    return tiles[image[:, None, None], y[:, :, None], x[:, None, :]]


def _sent(numbers: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    host = torch.from_numpy(numbers)
    if device.type == "cuda":  # from other memory, the copy would wait for the GPU
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def centre_crops(tiles: Tensor, size: int) -> Tensor:
    """Cut the central window out of every tile, uint8 (N, S, S, 3) to (N, size, size, 3)."""
    edge = tiles.shape[1]
    check_size(edge, size)
    start = (edge - size) // 2
    return tiles[:, start : start + size, start : start + size]


def windows(tiles: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Cut tiles into all windows of a centred grid without overlap.

    Parameters
    ----------
    tiles : ndarray of uint8, (N, S, S, 3)
    size : int
        Edge of the windows, pixels.

    Returns
    -------
    ndarray of uint8, (N · k², size, size, 3)
        All windows, with k = ⌊S / size⌋ in a row of a tile; those of a tile follow each other.
    """
    edge = tiles.shape[1]
    check_size(edge, size)
    side = edge // size
    start = (edge - side * size) // 2
    grid = tiles[:, start : start + side * size, start : start + side * size]
    cut = grid.reshape(len(tiles), side, size, side, size, 3).swapaxes(2, 3)
    return np.ascontiguousarray(cut.reshape(-1, size, size, 3))


ALONE = Ranks()


class Batch(NamedTuple):
    """A batch, in pinned memory if requested, and the position of the next batch."""

    tiles: Tiles | Tensor
    epoch: int
    position: int


def planned(
    source: TileSource,
    stages: Stages | int,
    context: FitContext,
    *,
    times: int = 1,
    step: int = 0,
    epoch: int = 0,
    position: int = 0,
) -> Generator[Batch, None, None]:
    """Yield the batches of the steps of a training from ``step`` on: this process's tiles.

    Parameters
    ----------
    source : TileSource
    stages : Stages or int
        Stages, or the number of tiles in a batch over all processes.
    context : FitContext
    times : int
        Number of batches that a step takes together.
    step, epoch, position : int
        Position at which to begin.
    """
    pinned, ranks = context.device.type == "cuda", context.ranks
    at: dict[str, Any] = {"epoch": epoch, "position": position, "pinned": pinned}
    if isinstance(stages, Stages):
        given = {"step": step, "times": times, "ranks": ranks, **at}
        return staged(source, stages, seed=context.seed, **given)
    total = times * stages
    rows = ranks.own(total, groups=times) if ranks.count > 1 else None
    return endless(source, total, seed=context.seed, rows=rows, **at)


def endless(
    source: TileSource,
    batch: int,
    *,
    seed: int,
    epoch: int = 0,
    position: int = 0,
    pinned: bool = False,
    rows: npt.NDArray[np.int64] | None = None,
) -> Generator[Batch, None, None]:
    """Yield batches epoch by epoch, from batch ``position`` of ``epoch`` on.

    One batch is read ahead in a thread, so that reading and computing overlap. If ``rows`` is
    set, only these rows of each batch are yielded.

    Raises
    ------
    DetectorError
        The source yields no tiles.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        batches = _forever(source, batch, seed=seed, epoch=epoch, position=position)

        def following() -> Batch:
            found = next(batches)
            if rows is not None:
                found = found._replace(tiles=found.tiles[rows])
            return found._replace(tiles=on_host(found.tiles, pinned=True)) if pinned else found

        ahead = pool.submit(following)
        while True:
            current = ahead.result()
            ahead = pool.submit(following)
            yield current


def staged(
    source: TileSource,
    stages: Stages,
    *,
    seed: int,
    step: int = 0,
    epoch: int = 0,
    position: int = 0,
    times: int = 1,
    pinned: bool = False,
    ranks: Ranks = ALONE,
) -> Generator[Batch, None, None]:
    """Yield batches as :func:`endless` does, from ``step`` on, in the size of the step's stage.

    Each has ``times`` as many tiles as the stage's batch. A change of size begins another epoch,
    because positions count batches of one size.
    """
    while True:
        size = stages.span(step).batch
        if step and size != stages.span(step - 1).batch:
            epoch, position = epoch + 1, 0
        rows = ranks.own(times * size, groups=times) if ranks.count > 1 else None
        where = {"epoch": epoch, "position": position}
        ahead = endless(source, times * size, seed=seed, **where, pinned=pinned, rows=rows)
        with closing(ahead) as batches:
            for batch in batches:
                yield batch
                step, epoch, position = step + 1, batch.epoch, batch.position
                if stages.span(step).batch != size:
                    break


def _forever(
    source: TileSource, batch: int, seed: int, epoch: int, position: int
) -> Iterator[Batch]:
    while True:
        for tiles in source.shuffled(batch, seed=seed, epoch=epoch, start=position):
            position += 1
            yield Batch(tiles, epoch, position)
        if position == 0:
            raise DetectorError("there are no tiles to fit on")
        epoch, position = epoch + 1, 0


def sample(
    source: TileSource, most: int | None, *, batch: int, seed: int
) -> tuple[int, Iterator[Tiles]]:
    """Return the number of tiles in a sample, and their batches.

    These are all tiles in their order if there are at most ``most``. Otherwise they are as many
    full batches as fit into ``most`` (at least one), drawn by the seed from the complete source.
    """
    count = len(source)
    if most is None or count <= most:
        return count, source.ordered(batch)
    batch = min(batch, most)
    batches = most // batch
    return batches * batch, _first(source.shuffled(batch, seed=seed, epoch=0), batches)


def _first(batches: Iterator[Tiles], count: int) -> Iterator[Tiles]:
    for _, tiles in zip(range(count), batches, strict=False):
        yield tiles


_Share = Annotated[float, pydantic.Field(ge=0, lt=1)]

# Haematoxylin, eosin, DAB: Ruifrok & Johnston, Quantification of histochemical staining by
# colour deconvolution, 2001; unit vectors of optical density.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_DARKEST = 1 / 255


class ViewOptions(Config):
    """Differences between two views of a healthy tile that still count as the same tissue."""

    view_px: Annotated[int, pydantic.Field(ge=16)] = 48
    """Edge of a view, pixels of the tile. A turned view needs a larger tile."""
    scale: Annotated[float, pydantic.Field(ge=1)] = 1.3
    """Maximum factor by which a view is enlarged or shrunk."""
    stain_gain: _Share = 0.2
    """Maximum share by which each stain is made stronger or weaker."""
    stain_shift: _Share = 0.03
    """Maximum optical density that each stain gains or loses."""
    brightness: _Share = 0.1
    """Maximum share by which the light is made stronger or weaker."""
    blur: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.3
    """Share of the views that are blurred a little."""
    exact: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    """Share of the views that keep the pixels of the tile: they are turned by right angles only,
    and not scaled."""


def random_views(
    tiles: Tensor, options: ViewOptions, generator: torch.Generator, *, alike: bool = False
) -> Tensor:
    """Cut a view out of every tile: turned by any angle, mirrored, scaled, with changed stains.

    Parameters
    ----------
    tiles : Tensor of uint8, (N, S, S, 3)
        Tiles on any device.
    options : ViewOptions
        Maximum differences of the views.
    generator : torch.Generator
        Generator on the CPU, so that the draws do not depend on the device.
    alike : bool
        True to cut the same view out of every tile, so that none depends on the others.

    Returns
    -------
    Tensor of float32, (N, 3, view_px, view_px)
        RGB in [0, 1].
    """
    count, device = 1 if alike else len(tiles), tiles.device
    grid = nn.functional.affine_grid(
        _placements(count, tiles.shape[1], options, generator).to(device),
        [count, 3, options.view_px, options.view_px],
        align_corners=False,
    ).expand(len(tiles), -1, -1, -1)
    images = nn.functional.grid_sample(
        tiles.permute(0, 3, 1, 2).float() / 255,
        grid,
        padding_mode="reflection",
        align_corners=False,
    )
    stained = _restained(images, options, generator, count)
    light = 1 + _signed(generator, count, 1, 1, 1) * options.brightness
    lit = (stained * light.to(device)).clamp(0, 1)
    blurred = (torch.rand(count, generator=generator) < options.blur).to(device)
    return torch.where(blurred[:, None, None, None], _blurred(lit), lit)


def _signed(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw uniformly from [−1, 1)."""
    return torch.rand(*shape, generator=generator) * 2 - 1


def _placements(count: int, edge: int, options: ViewOptions, generator: torch.Generator) -> Tensor:
    """Return affine maps (N, 2, 3) from a view to its tile, both of extent [−1, 1]."""
    half = options.view_px / edge * torch.exp(_signed(generator, count) * math.log(options.scale))
    angle = _signed(generator, count) * math.pi
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * half, torch.sin(angle) * half
    # Corners of a turned view may reach over the edge, where the tile is reflected.
    room = (1 - 1.2 * half).clamp(min=0)
    x, y = _signed(generator, count) * room, _signed(generator, count) * room
    if options.exact:
        exact = torch.rand(count, generator=generator) < options.exact
        half = torch.where(exact, options.view_px / edge, half)
        quarters = (angle * 2 / math.pi).round()
        cosine = torch.where(exact, torch.cos(quarters * math.pi / 2).round() * half, cosine)
        sine = torch.where(exact, torch.sin(quarters * math.pi / 2).round() * half, sine)
        x, y = (torch.where(exact, _whole(v, edge, options.view_px), v) for v in (x, y))
    rows = [torch.stack([cosine * mirror, -sine, x], 1), torch.stack([sine * mirror, cosine, y], 1)]
    return torch.stack(rows, 1)


def _whole(shift: Tensor, edge: int, view: int) -> Tensor:
    """Round shifts of a view so that its pixels fall on those of the tile, and inside of it."""
    odd, most = (edge - view) % 2 / 2, (edge - view) / 2
    pixels = (shift * edge / 2 - odd).round() + odd
    return pixels.clamp(min=-most, max=most) * 2 / edge


def _restained(
    images: Tensor, options: ViewOptions, generator: torch.Generator, count: int
) -> Tensor:
    device = images.device
    stains = torch.tensor(_STAINS, device=device)
    gain = 1 + _signed(generator, count, 1, 1, 3) * options.stain_gain
    shift = _signed(generator, count, 1, 1, 3) * options.stain_shift
    density = -torch.log(images.clamp(min=_DARKEST)).permute(0, 2, 3, 1)
    amounts = density @ torch.linalg.inv(stains)
    changed = (amounts * gain.to(device) + shift.to(device)) @ stains
    return torch.exp(-changed).permute(0, 3, 1, 2).clamp(max=1)


def _blurred(images: Tensor) -> Tensor:
    weights = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (weights[:, None] * weights).expand(3, 1, 3, 3)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    return nn.functional.conv2d(padded, kernel, groups=3)
