"""Networks that restore frozen features of healthy tiles: the students of feature reconstruction.

A restorer receives the features of all layers and returns pairs of targets and restored features.
:class:`OneByOneAutoencoder` restores each position alone; the others see a tile as tokens, one for
each place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.networks.distillation import Distillation
from wsiad.networks.token_blocks import (
    AggregationBlock,
    LinearBlock,
    MaskedBlock,
    Perceptron,
    PrototypeBlock,
    neighbours_hidden,
)

Shapes = Sequence[tuple[int, int, int]]
"""Shapes (C, h, w) of the features of layers."""

_DEVIATION = 0.01  # of the first weights of linear layers, cut at three of them


class Restorer(nn.Module):
    """A network that restores features of several layers."""

    @abstractmethod
    def pairs(self, taught: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return targets and restored features, (N, C, h, w) each, of the features of layers."""


class Restoration(Distillation):
    """A frozen network and a restorer of its features."""

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return targets and restored features of RGB images (N, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            taught = self.teacher.maps(self.teacher.normalised(images))
        assert isinstance(self.student, Restorer)
        return self.student.pairs(taught)


def together(taught: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """Return the features of all layers at one grid, (N, C, h, w): the finest, or ``size``.

    Features are resampled bilinearly to the finest grid, or averaged over places.
    """
    if size is not None:
        return torch.cat([functional.adaptive_avg_pool2d(f, size) for f in taught], dim=1)
    height, width = max((f.shape[2:] for f in taught), key=min)
    return torch.cat(
        [
            functional.interpolate(f, size=(height, width), mode="bilinear", align_corners=False)
            for f in taught
        ],
        dim=1,
    )


class OneByOneAutoencoder(Restorer):
    """1 × 1 convolutions from C channels to d and back: C, (C + 2d)/2, 2d, d, 2d, (C + 2d)/2, C.

    Parameters
    ----------
    channels : int
        Number C of channels of all layers.
    latent : int
        Number d of channels in the middle.
    batch_norm : bool
        True to normalise the inner layers but the middle one.
    linear : bool
        True for no activation; without normalisation this is a principal component analysis.
    """

    def __init__(self, channels: int, latent: int, *, batch_norm: bool, linear: bool) -> None:
        super().__init__()
        half = [channels, (channels + 2 * latent) // 2, 2 * latent, latent]
        widths = [*half, *reversed(half[:-1])]
        modules: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            modules.append(nn.Conv2d(before, after, 1))
            if number in (2, len(widths) - 2):
                continue
            if batch_norm:
                modules.append(nn.BatchNorm2d(after))
            if not linear:
                modules.append(nn.ReLU())
        self.layers = nn.Sequential(*modules)

    def pairs(self, taught: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features of all layers at the finest grid, and restored."""
        target = together(taught)
        return [target], [self.layers(target)]


class TokenRestorer(Restorer):
    """A transformer that restores groups of layers; each place of a tile is a token.

    Layers of equal widths, as of a vision transformer, are averaged: all of them for the input,
    and those of a group for its target. Layers of different widths are concatenated, each scaled
    to length 1 at every place, and linear layers lead to the width of the tokens and back.

    Parameters
    ----------
    shapes : sequence of (C, h, w)
        Shapes of the features.
    places : int
        Edge of the grid of tokens.
    groups : int
        Number of groups of layers that follow each other.
    width : int
        Number of channels of a token, for layers of different widths.
    """

    def __init__(self, shapes: Shapes, places: int, *, groups: int, width: int) -> None:
        super().__init__()
        channels = [shape[0] for shape in shapes]
        self.places, self.alike = places, len(set(channels)) == 1
        count = min(groups, len(shapes))
        bounds = [len(shapes) * number // count for number in range(count + 1)]
        self.groups = [range(*pair) for pair in pairwise(bounds)]
        self.width = channels[0] if self.alike else width
        self.enter = None if self.alike else nn.Linear(sum(channels), width)
        self.leave = nn.ModuleList(
            nn.Identity()
            if self.alike
            else nn.Linear(width, sum(channels[index] for index in group))
            for group in self.groups
        )

    def grids(self, taught: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of each layer at the places, (N, C, m, m)."""
        size = (self.places, self.places)
        found = [functional.adaptive_avg_pool2d(features, size) for features in taught]
        return found if self.alike else [functional.normalize(one, dim=1) for one in found]

    def fused(self, grids: Sequence[Tensor]) -> Tensor:
        """Return one map of the maps of several layers."""
        return torch.stack(list(grids)).mean(dim=0) if self.alike else torch.cat(list(grids), dim=1)

    def tokens(self, grids: Sequence[Tensor]) -> Tensor:
        """Return the tokens (N, T, C) that a network begins with."""
        found = self.fused(grids).flatten(2).transpose(1, 2)
        return found if self.enter is None else self.enter(found)

    def as_map(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, m², C) as a map (N, C, m, m)."""
        n, _, channels = tokens.shape
        return tokens.transpose(1, 2).reshape(n, channels, self.places, self.places)

    def targets(self, grids: Sequence[Tensor]) -> list[Tensor]:
        """Return what is restored of each group."""
        return [self.fused([grids[index] for index in group]) for group in self.groups]

    def restored(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return what the outputs of decoder layers, (N, T, C), restore of each group.

        The last layers of the decoder restore the first group. Their outputs are averaged.
        """
        count, last_first = len(self.groups), list(reversed(outputs))
        bounds = [len(outputs) * number // count for number in range(count + 1)]
        means = [torch.stack(last_first[a:b]).mean(dim=0) for a, b in pairwise(bounds)]
        return [self.as_map(leave(mean)) for leave, mean in zip(self.leave, means, strict=True)]


class BottleneckDecoder(TokenRestorer):
    """Dinomaly: a perceptron with dropout, then blocks of linear attention.

    Parameters
    ----------
    shapes, places, width
        See :class:`TokenRestorer`.
    depth : int
        Number of blocks, at least one for each group.
    dropout : float
        Share of the values of the bottleneck that a training step leaves out.
    """

    def __init__(
        self, shapes: Shapes, places: int, *, width: int, depth: int, dropout: float
    ) -> None:
        super().__init__(shapes, places, groups=min(2, depth), width=width)
        self.bottleneck = Perceptron(self.width, bias=False, dropout=dropout)
        self.decoder = nn.ModuleList(LinearBlock(self.width) for _ in range(depth))
        self.apply(_small)

    def pairs(self, taught: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the target of each group of layers, and what is restored of it."""
        grids = self.grids(taught)
        tokens, outputs = self.bottleneck(self.tokens(grids)), []
        for block in self.decoder:
            tokens = block(tokens)
            outputs.append(tokens)
        return self.targets(grids), self.restored(outputs)


class PrototypeDecoder(TokenRestorer):
    """INP-Former: tokens are made of prototypes that come from the tile itself.

    Parameters
    ----------
    shapes, places, width
        See :class:`TokenRestorer`.
    depth : int
        Number of blocks of the decoder.
    prototypes : int
        Number of prototypes of a tile.
    """

    def __init__(
        self, shapes: Shapes, places: int, *, width: int, depth: int, prototypes: int
    ) -> None:
        super().__init__(shapes, places, groups=min(2, depth), width=width)
        self.learnt = nn.Parameter(torch.randn(prototypes, self.width))
        self.aggregation = AggregationBlock(self.width)
        self.bottleneck = Perceptron(self.width, bias=True)
        self.decoder = nn.ModuleList(PrototypeBlock(self.width) for _ in range(depth))
        self.apply(_small)

    def pairs(self, taught: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return targets and restored features; at last the tokens, and the nearest prototypes."""
        grids = self.grids(taught)
        start = self.tokens(grids)
        prototypes = self.aggregation(self.learnt.expand(len(start), -1, -1), start)
        tokens, outputs = self.bottleneck(start), []
        for block in self.decoder:
            tokens = block(tokens, prototypes)
            outputs.append(tokens)
        near = nearest_prototypes(start, prototypes)
        return (
            [*self.targets(grids), self.as_map(start)],
            [*self.restored(outputs), self.as_map(near)],
        )


class MaskedTransformer(TokenRestorer):
    """UniAD: attention that does not see a token's neighbours, and queries of every layer.

    Parameters
    ----------
    shapes, places
        See :class:`TokenRestorer`; all layers are concatenated, unscaled, and restored together.
    width, depth : int
        Number of channels of a token; number of layers of the encoder, and of the decoder.
    neighbours : int
        Odd edge of the square around a token that attention does not see.
    jitter : float
        Deviation of the noise in training: this times |f| / C for each token.
    dropout : float
    """

    hidden: Tensor

    def __init__(
        self,
        shapes: Shapes,
        places: int,
        *,
        width: int,
        depth: int,
        neighbours: int,
        jitter: float,
        dropout: float,
    ) -> None:
        super().__init__(shapes, places, groups=1, width=width)
        channels = sum(shape[0] for shape in shapes)
        self.jitter = jitter
        self.alike, self.width = False, width
        self.enter, self.leave = nn.Linear(channels, width), nn.ModuleList()
        self.exit = nn.Linear(width, channels)
        self.positions = nn.Parameter(0.02 * torch.randn(places**2, width))
        self.encoder = nn.ModuleList(MaskedBlock(width, dropout=dropout) for _ in range(depth))
        self.decoder = nn.ModuleList(
            MaskedBlock(width, queries=places**2, dropout=dropout) for _ in range(depth)
        )
        self.register_buffer("hidden", neighbours_hidden(places, neighbours), persistent=False)

    def pairs(self, taught: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the concatenated features of all layers, and restored."""
        target = together(taught, (self.places, self.places))
        given = target.flatten(2).transpose(1, 2)
        if self.training and self.jitter:
            length = given.norm(dim=2, keepdim=True) / given.shape[2]
            given = given + self.jitter * length * torch.randn_like(given)
        assert self.enter is not None
        memory = self.enter(given) + self.positions
        for block in self.encoder:
            memory = block(memory, memory, self.hidden)
        tokens = memory
        for block in self.decoder:
            tokens = block(tokens, memory, self.hidden)
        return [target], [self.as_map(self.exit(tokens))]


def nearest_prototypes(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Return the prototype of largest cosine for every token: (N, T, C) of (N, P, C)."""
    cosines = functional.normalize(tokens, dim=2) @ functional.normalize(
        prototypes, dim=2
    ).transpose(1, 2)
    nearest = cosines.argmax(dim=2, keepdim=True).expand(-1, -1, prototypes.shape[2])
    return prototypes.gather(1, nearest)


def _small(module: nn.Module) -> None:
    """Draw small first weights of a linear layer; its biases begin at 0."""
    if isinstance(module, nn.Linear):
        bound = 3 * _DEVIATION
        nn.init.trunc_normal_(module.weight, std=_DEVIATION, a=-bound, b=bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
