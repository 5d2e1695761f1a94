"""Contrastive training of a perceptual network on healthy tiles.

It defines the network that ``wsiad pretrain`` trains, and the plain VGG19 that it becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from wsiad.learning.batches import ViewOptions, random_views
from wsiad.learning.detector import FitContext, HealthyTiles
from wsiad.learning.loop import Training
from wsiad.learning.training_options import LoopOptions, MaxSteps, Patience, Schedule
from wsiad.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, LAYERS


class ContrastiveNetwork(nn.Module):
    """Blocks of VGG19 with batch normalisation, and a projection head behind each level.

    The levels are the last layers of all blocks but the first. Each level is trained to be
    useful alone; what one level distinguishes, the next ones need not.

    Parameters
    ----------
    widths : sequence of int
        Number of channels of each block, for two to five blocks (with 2, 2, 4, 4 and 4
        convolutions, as in VGG19).
    projection : int
        Length of the vectors that are compared in the training.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, widths: Sequence[int], projection: int = 128) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _block(number, before, width)
            for number, (before, width) in enumerate(pairwise((3, *widths)), start=1)
        )
        self.heads = nn.ModuleList(_head(width, projection) for width in widths[1:])
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return vectors of length 1 for each level, float32 (N, projection).

        The images are RGB, float (N, 3, H, W) in [0, 1].
        """
        x = (images - self.image_mean) / self.image_std
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number:
                pooled = x.mean(dim=(2, 3)).float()
                with torch.autocast(images.device.type, enabled=False):
                    vectors = self.heads[number - 1](pooled)
                    found.append(nn.functional.normalize(vectors, dim=1))
        return found

    def plain(self) -> dict[str, Tensor]:
        """Return the blocks as a VGG19 without normalisation: torchvision's keys, float32.

        Scale and shift of the kept statistics are folded into each convolution, exactly.
        """
        tensors: dict[str, Tensor] = {}
        for block in self.blocks:
            modules = dict(block.named_children())
            for name, module in modules.items():
                norm = modules.get(f"norm{name[4:]}")
                if not isinstance(module, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                    continue
                weight, bias = _folded(module, norm)
                key = f"features.{LAYERS[name]}"
                tensors[f"{key}.weight"], tensors[f"{key}.bias"] = weight, bias
        return tensors


def _block(number: int, channels: int, width: int) -> nn.Sequential:
    block = nn.Sequential()
    if number > 1:
        block.add_module(f"pool{number - 1}", nn.MaxPool2d(2))
    for name in LAYERS:
        if name.startswith(f"conv{number}_"):
            block.add_module(name, nn.Conv2d(channels, width, 3, padding=1, bias=False))
            block.add_module(f"norm{name[4:]}", nn.BatchNorm2d(width))
            block.add_module(f"relu{name[4:]}", nn.ReLU(inplace=True))
            channels = width
    return block


def _head(channels: int, projection: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, 2 * projection, bias=False),
        nn.BatchNorm1d(2 * projection),
        nn.ReLU(inplace=True),
        nn.Linear(2 * projection, projection, bias=False),
    )


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = conv.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
    return weight.float().cpu().contiguous(), bias.float().cpu().contiguous()


def contrast(vectors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Return how badly each vector matches its counterpart among all others.

    This is the normalised temperature-scaled cross entropy of SimCLR (Chen et al.: A Simple
    Framework for Contrastive Learning of Visual Representations, ICML 2020, eq. 1), averaged
    over both directions.

    Parameters
    ----------
    vectors, others : Tensor, (N, C)
        Vectors of length 1; the counterpart of row i is row i of the other tensor.
    temperature : float
        Number by which the cosines are divided.

    Returns
    -------
    Tensor, (N,)
    """
    count = len(vectors)
    both = torch.cat([vectors, others])
    cosines = both @ both.T / temperature
    itself = torch.eye(2 * count, dtype=torch.bool, device=both.device)
    cosines = cosines.masked_fill(itself, float("-inf"))
    target = torch.arange(2 * count, device=both.device).roll(count)
    losses = nn.functional.cross_entropy(cosines, target, reduction="none")
    return (losses[:count] + losses[count:]) / 2


_Positive = Annotated[float, pydantic.Field(gt=0)]
_Width = Annotated[int, pydantic.Field(ge=1)]


class ContrastiveOptions(LoopOptions):
    """Options of the network and of its training."""

    widths: Annotated[tuple[_Width, ...], pydantic.Field(min_length=2, max_length=5)] = (
        16,
        48,
        96,
        128,
    )
    """Number of channels of each of VGG19's blocks, one number per block; VGG19's own are 64, 128,
    256, 512 and 512."""
    views: ViewOptions = ViewOptions()
    """Differences between two views of a tile."""
    temperature: _Positive = 0.2
    """Number that divides the cosines between views; a lower one stresses the closest tiles."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the training; `bfloat16` is faster on GPUs, and on CPUs with AMX."""
    batch: Annotated[int, pydantic.Field(ge=2)] = 256
    """Number of tiles in a step; each is distinguished from all others of its batch."""
    lr_schedule: Schedule = "cosine"
    max_steps: MaxSteps = 20_000
    patience: Patience = 10


class ContrastiveLoss:
    """The loss of windows: how badly two views of each match, at every level.

    The draws for the views are a pure function of the windows. The same step of the same
    training draws the same views, and the same held-out tiles are always seen in the same way.

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
        generator = torch.Generator().manual_seed(checksum(windows))
        views = [random_views(windows, options.views, generator) for _ in range(2)]
        with torch.autocast(
            windows.device.type,
            dtype=torch.bfloat16,
            enabled=options.precision == "bfloat16",
        ):
            levels = self._network(torch.cat(views).contiguous(memory_format=torch.channels_last))
        losses = [contrast(v[:count], v[count:], options.temperature) for v in levels]
        return torch.stack(losses).mean(dim=0)


def checksum(windows: Tensor) -> int:
    """Reduce windows to a number that is the same on every device: integers, in any order."""
    flat = windows.reshape(-1).long()
    places = torch.arange(1, len(flat) + 1, device=flat.device) % 65_521
    return int((flat * places).sum().item())


def new_training(
    tiles: HealthyTiles, options: ContrastiveOptions, context: FitContext, *, size: int
) -> tuple[ContrastiveNetwork, Training]:
    """Make a network from the seed, and its training on complete tiles of an edge of ``size``.

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
