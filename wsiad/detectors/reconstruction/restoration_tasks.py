"""Tasks of an autoencoder: what is taken away from a tile, and must be restored.

A task shows a network changed images and puts its answers together. In training, the changes are
drawn from a generator. In scoring they are fixed, so that a score is a function of the tile
alone, and a tile can be shown in several ways, whose maps are averaged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_SCORING = 7  # the seed of the fixed changes in scoring
_GREY = (0.299, 0.587, 0.114)
ERASED = 0.0
"""Value of erased pixels: the middle of [−1, 1]."""


class Made(NamedTuple):
    """An image that a network made.

    Parameters
    ----------
    image : Tensor, (N, 3, S, S)
        The image, in [−1, 1] or beyond.
    log_variance : Tensor, (N, 3, S, S), or None
        Log of the variance that the network states of each value.
    penalty : Tensor, (N,)
        Penalty of the latent.
    coarser : tuple of Tensor
        The image at coarser scales, each half the one before, of a network that makes them.
    """

    image: Tensor
    log_variance: Tensor | None
    penalty: Tensor
    coarser: tuple[Tensor, ...] = ()


class View(NamedTuple):
    """An answer of a network, and the image that it should be."""

    made: Made
    target: Tensor


Network = Callable[[Tensor], Made]
"""Function that maps images (N, 3, S, S) in [−1, 1] to what a network makes of them."""


class Task(ABC):
    """A change of images that a network must undo, and the way its answers are put together."""

    def changed(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a batch with drawn changes, as a network is shown it, for its codes alone.

        A task that shows an image more than once, or in another layout, has no one such image:
        it is then the image itself.
        """
        return x

    @abstractmethod
    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Show a batch with drawn changes; return the answer and its target."""

    @abstractmethod
    def shown(self, network: Network, x: Tensor) -> list[View]:
        """Show images in all fixed ways; return the answers with their targets."""


class NoTask(Task):
    """The image is shown as it is."""

    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Return the reconstruction."""
        return View(network(x), x)

    def shown(self, network: Network, x: Tensor) -> list[View]:
        """Return the reconstruction."""
        return [View(network(x), x)]


class Noise(NoTask):
    """Gaussian noise is added in training; in scoring, the image is shown as it is.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, in the range of −1 to 1.
    """

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma

    def changed(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Return noisy images."""
        noise = rng.standard_normal(tuple(x.shape), dtype=np.float32) * self._sigma
        return x + torch.from_numpy(noise).to(x)

    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Return the reconstruction of the noisy image; its target is without noise."""
        return View(network(self.changed(x, rng)), x)


class Erase(NoTask):
    """Random squares are erased in training; in scoring, the image is shown as it is.

    Parameters
    ----------
    px : int
        Edge of the squares, pixels.
    count : int
        Number of squares.
    """

    def __init__(self, px: int, count: int) -> None:
        self._px, self._count = px, count

    def changed(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Return erased images."""
        edge = x.shape[-1]
        most = max(edge - self._px, 0)
        corners = rng.integers(0, most + 1, (2, self._count, len(x), 1))
        along = np.arange(edge)
        inside = (along >= corners) & (along < corners + self._px)
        erased = (inside[0][..., :, None] & inside[1][..., None, :]).any(axis=0)
        mask = torch.from_numpy(erased).to(x.device)[:, None]
        return x.masked_fill(mask, ERASED)

    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Return the reconstruction of the erased image; its target is all of it."""
        return View(network(self.changed(x, rng)), x)


class Filled(Task):
    """The image is erased in disjoint sets of pixels, one after the other, and filled in.

    Every pixel of the result was erased where it was made: a network that copies its input
    returns the erased value everywhere.

    Parameters
    ----------
    deals : callable
        Function that returns the sets of a way of showing, bool (n, S, S): each pixel is in
        exactly one of them. Its arguments are the edge, the number of the way, and a generator.
    ways : int
        Number of ways.
    """

    def __init__(
        self, deals: Callable[[int, int, np.random.Generator], np.ndarray], ways: int
    ) -> None:
        self._deals, self._ways = deals, ways

    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Return the filled image, by one way for the batch."""
        way = int(rng.integers(self._ways))
        return View(self._filled(network, x, self._deals(x.shape[-1], way, rng)), x)

    def shown(self, network: Network, x: Tensor) -> list[View]:
        """Return the filled image by every way."""
        found = []
        for way in range(self._ways):
            sets = self._deals(x.shape[-1], way, np.random.default_rng([_SCORING, way]))
            found.append(View(self._filled(network, x, sets), x))
        return found

    @staticmethod
    def _filled(network: Network, x: Tensor, sets: np.ndarray) -> Made:
        parts = []
        for one in torch.from_numpy(sets).to(x.device):
            made = network(x.masked_fill(one, ERASED))
            parts.append((one.to(x), made))
        image = sum((one * made.image for one, made in parts), start=torch.zeros_like(x))
        penalty = torch.stack([made.penalty for _, made in parts]).mean(dim=0)
        logs = [one * made.log_variance for one, made in parts if made.log_variance is not None]
        return Made(image, sum(logs[1:], start=logs[0]) if logs else None, penalty)


def checkerboard(squares: Sequence[int], sets: int) -> Filled:
    """Return the task of RIAD: squares of a grid are dealt at random into disjoint sets.

    Parameters
    ----------
    squares : sequence of int
        Edges of the squares, pixels; one is drawn for a batch, and a score averages over all.
    sets : int
        Number of sets.

    Notes
    -----
    Zavrtanik, Kristan & Skočaj, "Reconstruction by Inpainting for Visual Anomaly Detection",
    Pattern Recognition 2021.
    """

    def deals(edge: int, way: int, rng: np.random.Generator) -> np.ndarray:
        px = squares[way]
        across = -(-edge // px)
        dealt = rng.permutation(np.arange(across**2) % sets).reshape(across, across)
        whole = np.kron(dealt, np.ones((px, px), np.int64))[:edge, :edge]
        return np.stack([whole == number for number in range(sets)])

    return Filled(deals, len(squares))


def stripes(widths: Sequence[int]) -> Filled:
    """Return the task of SCADN: stripes of several widths, across and down, are erased.

    A pattern and its complement are filled one after the other.

    Parameters
    ----------
    widths : sequence of int
        Widths of the stripes, pixels.

    Notes
    -----
    Yan et al., "Learning Semantic Context from Normal Samples for Unsupervised Anomaly
    Detection", AAAI 2021; from general knowledge of the paper.
    """

    def deals(edge: int, way: int, rng: np.random.Generator) -> np.ndarray:
        width, down = widths[way // 2], way % 2
        odd = np.broadcast_to((np.arange(edge) // width % 2).astype(bool), (edge, edge))
        odd = odd.T if down else odd
        return np.ascontiguousarray(np.stack([odd, ~odd]))

    return Filled(deals, 2 * len(widths))


class GreyTurn(Task):
    """The colours are taken away, and the image can be turned by a quarter, half or three.

    The target is the original: in colour and not turned.

    Parameters
    ----------
    turn : bool
        True to turn the images as well; tissue has no upright, so that this cannot be learnt
        from it.

    Notes
    -----
    Fei et al., "Attribute Restoration Framework for Anomaly Detection" (ARNet), IEEE
    Transactions on Multimedia 2020.
    """

    def __init__(self, *, turn: bool) -> None:
        self._turn = turn

    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Return the restored image; a batch has one turn."""
        turns = int(rng.integers(4)) if self._turn else 0
        return View(network(self._changed(x, turns)), x)

    def shown(self, network: Network, x: Tensor) -> list[View]:
        """Return the images restored from every turn."""
        turns = range(4) if self._turn else range(1)
        return [View(network(self._changed(x, number)), x) for number in turns]

    @staticmethod
    def _changed(x: Tensor, turns: int) -> Tensor:
        weights = torch.tensor(_GREY, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
        grey = (x * weights).sum(dim=1, keepdim=True).expand_as(x)
        return torch.rot90(grey, turns, dims=(2, 3))


class Puzzle(Task):
    """Four quarters of the image are shuffled.

    Parameters
    ----------
    ways : int
        Number of fixed orders in which a tile is shown for its score, from 1 to 23.

    Notes
    -----
    Salehi et al., "Puzzle-AE: Novelty Detection in Images through Solving Puzzles", arXiv
    2008.12959; from general knowledge of the paper. Its adversarial inputs are the option
    ``attack``. Tissue has no layout: the edges of the pieces alone show how they fit.
    """

    def __init__(self, ways: int) -> None:
        orders = list(permutations(range(4)))
        chosen = np.random.default_rng(_SCORING).permutation(len(orders) - 1)[:ways] + 1
        self._orders, self._fixed = orders, chosen.tolist()

    def trained(self, network: Network, x: Tensor, rng: np.random.Generator) -> View:
        """Return the solved image; a batch has one order."""
        order = self._orders[int(rng.integers(len(self._orders)))]
        return View(network(shuffled(x, order)), x)

    def shown(self, network: Network, x: Tensor) -> list[View]:
        """Return the images solved from every fixed order."""
        orders = [self._orders[number] for number in self._fixed]
        return [View(network(shuffled(x, order)), x) for order in orders]


def shuffled(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return images (N, C, S, S) whose four quarters are in another order; S is even."""
    half = x.shape[-1] // 2
    parts = [
        x[:, :, row : row + half, column : column + half]
        for row in (0, half)
        for column in (0, half)
    ]
    first, second, third, fourth = (parts[number] for number in order)
    return torch.cat([torch.cat([first, second], 3), torch.cat([third, fourth], 3)], 2)
