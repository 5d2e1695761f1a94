"""Contrastive training of a perceptual network on healthy tiles."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from wsiad.learning.contrastive_part import ContrastiveNetwork, contrast
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.learning.loop import Training
from wsiad.learning.training_options import LoopOptions
from wsiad.learning.views import ViewOptions, random_views

_Positive = Annotated[float, pydantic.Field(gt=0)]
_Width = Annotated[int, pydantic.Field(ge=1)]


class ContrastiveOptions(LoopOptions):
    """How the network is made and trained."""

    widths: Annotated[tuple[_Width, ...], pydantic.Field(min_length=2, max_length=5)] = (
        16,
        48,
        96,
        128,
    )
    """Channels of VGG19's blocks, as many blocks as there are numbers; VGG19's own are 64,
    128, 256, 512 and 512."""
    views: ViewOptions = ViewOptions()
    """What two views of a tile may differ in."""
    temperature: _Positive = 0.2
    """Divides the cosines between views: a lower one looks at the most similar tiles."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` is faster on GPUs, and on CPUs with AMX."""
    batch: Annotated[int, pydantic.Field(ge=2)] = 256
    """Tiles a step; each is told apart from all others of its batch."""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """``cosine`` falls to 0 at ``max_steps`` (or the run's smaller bound)."""
    max_steps: Annotated[int, pydantic.Field(ge=1)] = 20_000
    """The most steps; the run's ``--max-steps`` may set a smaller bound."""
    patience: Annotated[int, pydantic.Field(ge=0)] = 10
    """Stop when more than so many looks in a row brought no improvement."""


class ContrastiveLoss:
    """The loss of windows: how ill two views of each find each other, at every level.

    What is drawn for the views is a pure function of the windows: the same step of the
    same training draws the same, and the same held-out tiles are looked at in one way.

    Parameters
    ----------
    network : ContrastiveNetwork
    options : ContrastiveOptions
    """

    def __init__(self, network: ContrastiveNetwork, options: ContrastiveOptions) -> None:
        self._network, self._options = network, options

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the loss of windows, uint8 (N, S, S, 3), as float32 (N,)."""
        options, count = self._options, len(windows)
        generator = torch.Generator().manual_seed(_checksum(windows))
        views = [random_views(windows, options.views, generator) for _ in range(2)]
        with torch.autocast(
            windows.device.type,
            dtype=torch.bfloat16,
            enabled=options.precision == "bfloat16",
        ):
            levels = self._network(torch.cat(views).contiguous(memory_format=torch.channels_last))
        losses = [contrast(v[:count], v[count:], options.temperature) for v in levels]
        return torch.stack(losses).mean(dim=0)


def _checksum(windows: Tensor) -> int:
    """Reduce windows to a number, the same on every device: integers, in any order."""
    flat = windows.reshape(-1).long()
    places = torch.arange(1, len(flat) + 1, device=flat.device) % 65_521
    return int((flat * places).sum().item())


def new_training(
    tiles: HealthyTiles, options: ContrastiveOptions, context: FitContext, *, size: int
) -> tuple[ContrastiveNetwork, Training]:
    """Make a network by the seed, and its training on whole tiles of an edge of ``size``.

    Raises
    ------
    RunError
        The folder holds the checkpoint of another training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        network = ContrastiveNetwork(options.widths)
    network = network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = options.model_dump(
        mode="json", include={"widths", "views", "temperature", "precision"}
    )
    training = Training(
        network,
        ContrastiveLoss(network, options),
        tiles=tiles,
        size=size,
        options=options,
        context=context,
        identity=identity,
    )
    return network, training
