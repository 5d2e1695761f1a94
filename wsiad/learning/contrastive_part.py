"""The network that ``wsiad pretrain`` trains, and the plain VGG19 that is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from wsiad.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, LAYERS


class ContrastiveNetwork(nn.Module):
    """Blocks of VGG19 with batch normalisation, and a projection head behind each level.

    Levels are the last layers of all blocks but the first. What one level tells apart
    the next ones need not: each is trained to be of use by itself.

    Parameters
    ----------
    widths : sequence of int
        Channels of each block, two to five of them (2, 2, 4, 4 and 4 convolutions a
        block, as in VGG19).
    projection : int
        Size of the vectors that are compared while training.
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
        """Return vectors of length 1 of each level, float32 (N, projection).

        Images are RGB, float (N, 3, H, W) in [0, 1].
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

        Scale and shift of the kept statistics are worked into each convolution, exactly.
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
    """Return how ill each vector finds its counterpart among all others.

    The normalised temperature-scaled cross entropy of SimCLR (Chen et al.: A Simple
    Framework for Contrastive Learning of Visual Representations, ICML 2020, eq. 1),
    averaged over both directions.

    Parameters
    ----------
    vectors, others : Tensor, (N, C)
        Of length 1; the counterpart of row i is row i of the other.
    temperature : float
        Divides the cosines.

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
