"""Deep GEO: a classifier of geometric transforms answers unusually for strange tiles.

A classifier learns to tell which of 72 geometric transforms was applied to an image, by one
answer or by separate ones for turn and shifts. A Dirichlet distribution is fitted to its answers by
maximum likelihood (Minka, 2000, revised 2012), or the probability of the right answer is the score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from scipy.special import digamma, gammaln, polygamma
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import Progress
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, images
from wsiad.learning.batches import check_size, on_device, random_crops, sample
from wsiad.learning.checkpoint import Recipe, Update, adam, descend
from wsiad.learning.detector import (
    BY_QUARTERS,
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
    TileSource,
    turned,
)
from wsiad.learning.training_options import ValInterval
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.wide_resnet import WideResNet

Values = npt.NDArray[np.float64]

_ROUNDS = 200
_TOLERANCE = 1e-10
_LEAST_VARIANCE = 1e-14
_LEAST_ALPHA = 1e-4
_HALVINGS = 40


def fit_dirichlet(mean_log: Values, mean: Values, mean_square: Values) -> Values:
    """Return the parameters α (K,) under which vectors of probabilities are most likely.

    The likelihood depends only on the mean of log p and is concave in α. Newton's steps are
    halved until they raise it; the moments of p give the start.

    Parameters
    ----------
    mean_log, mean, mean_square : ndarray of float64, (K,)
        Means over the vectors of log p, p and p².

    Raises
    ------
    DetectorError
        All vectors are equal, so the likelihood has no maximum.
    """
    variance = mean_square - mean**2
    varied = variance > _LEAST_VARIANCE
    if not varied.any():
        raise DetectorError(
            "the classifier's answers are the same for all healthy tiles",
            remedy="Fit on more tiles, or train longer.",
        )
    total = np.median((mean - mean_square)[varied] / variance[varied])
    alpha = np.maximum(total * mean, _LEAST_ALPHA)
    likelihood = _likelihood(alpha, mean_log)
    for _ in range(_ROUNDS):
        step = _newton_step(alpha, mean_log)
        for _ in range(_HALVINGS):
            moved = alpha + step
            if (moved > 0).all() and (found := _likelihood(moved, mean_log)) >= likelihood:
                break
            step = step / 2
        else:
            return alpha
        gained, alpha, likelihood = found - likelihood, moved, found
        if gained <= _TOLERANCE * max(abs(likelihood), 1.0):
            return alpha
    return alpha


def _likelihood(alpha: Values, mean_log: Values) -> float:
    return float(gammaln(alpha.sum()) - gammaln(alpha).sum() + (alpha - 1) @ mean_log)


def _newton_step(alpha: Values, mean_log: Values) -> Values:
    """Return −H⁻¹ g; H is a diagonal plus a constant, so no matrix is needed."""
    gradient = digamma(alpha.sum()) - digamma(alpha) + mean_log
    diagonal = -polygamma(1, alpha)
    constant = polygamma(1, alpha.sum())
    shared = (gradient / diagonal).sum() / (1 / constant + (1 / diagonal).sum())
    step: Values = -(gradient - shared) / diagonal
    return step


TRANSFORMS = 72
"""Two flips × three shifts in each direction × four turns."""

Heads = Literal["joint", "separate", "turn"]

_CLASSES: dict[str, tuple[int, ...]] = {
    "joint": (TRANSFORMS,),
    "separate": (4, 3, 3),
    "turn": (4,),
}
"""Number of answers of each head; the separate ones are for turn, shift across and shift down."""

_TURNS = range(16, 20)
"""Numbers of the transforms that turn and do nothing else."""


def shown(heads: Heads) -> range:
    """Return the numbers of the transforms that are shown: all, or the four turns."""
    return _TURNS if heads == "turn" else range(TRANSFORMS)


def log_right(logits: Tensor, which: Tensor, heads: Heads) -> Tensor:
    """Return the sum over heads of the log probability of the right answer, (N,).

    Parameters
    ----------
    logits : Tensor, (N, K)
        Logits of all heads, one head after the other: K = 72, 4 + 3 + 3, or 4.
    which : Tensor of int64, (N,)
        Number of each image's transform, from 0 to 71.
    heads : {"joint", "separate", "turn"}
    """
    each = (which % 4, which // 4 % 3, which // 12 % 3)
    right = (which,) if heads == "joint" else each[: len(_CLASSES[heads])]
    parts = torch.split(logits, list(_CLASSES[heads]), dim=1)
    logs = [
        functional.log_softmax(part, dim=1).gather(1, answer[:, None])[:, 0]
        for part, answer in zip(parts, right, strict=True)
    ]
    return torch.stack(logs).sum(dim=0)


class GeometricTransforms(nn.Module):
    """All 72 compositions of a flip, shifts by a quarter and turns by 90°.

    An image is flipped left to right or not. It is shifted by −¼, 0 or ¼ of its edge across and
    down, and uncovered areas show the mirror image of their surroundings. It is turned by 0, 90,
    180 or 270 degrees. All transforms only move pixels.

    Parameters
    ----------
    edge : int
        Edge of the images, pixels.
    """

    sources: Tensor

    def __init__(self, edge: int) -> None:
        super().__init__()
        sources = torch.from_numpy(source_pixels(edge))
        self.register_buffer("sources", sources, persistent=False)

    def forward(self, images: Tensor, which: Tensor) -> Tensor:
        """Transform every image in its own way.

        Parameters
        ----------
        images : Tensor, (N, C, edge, edge)
        which : Tensor of int64, (N,)
            Number of each image's transform, from 0 to 71.

        Returns
        -------
        Tensor, (N, C, edge, edge)
        """
        sources = self.sources[which][:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, sources).view(images.shape)


_MIRRORED = 3  # of the ways in which a square can lie: left is right


def source_pixels(edge: int) -> npt.NDArray[np.int64]:
    """Return the index from which every pixel of a transformed image comes, int64 (72, edge²)."""
    own = np.arange(edge**2).reshape(1, edge, edge)
    shift = edge // 4
    shifts = (-shift, 0, shift)
    found = []
    for flip, down, across, way in product((0, _MIRRORED), shifts, shifts, BY_QUARTERS[:4]):
        rows, columns = _mirrored(np.arange(edge) - down), _mirrored(np.arange(edge) - across)
        moved = turned(own, flip)[:, rows[:, None], columns[None, :]]
        found.append(turned(moved, way).ravel())
    return np.stack(found)


def _mirrored(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Mirror positions outside of an image at its edges, which are doubled."""
    edge = len(positions)
    positions = np.where(positions < 0, -1 - positions, positions)
    return np.where(positions >= edge, 2 * edge - 1 - positions, positions)


class GeometricClassifier(nn.Module):
    """A classifier of transforms, which also measures how usual its answers are.

    Parameters
    ----------
    classifier : WideResNet
        Maps images (N, 3, e, e) to logits (N, 72), (N, 10) with separate heads, or (N, 4).
    edge : int
        Edge e of its images, pixels.
    shrink : int
        Images are averaged over squares of this edge first.
    heads : {"joint", "separate", "turn"}

    Attributes
    ----------
    alpha : Tensor, (72, 72)
        Parameters of the Dirichlet distribution of its answers to each transform.
    """

    alpha: Tensor

    def __init__(
        self, classifier: WideResNet, edge: int, *, shrink: int, heads: Heads = "joint"
    ) -> None:
        super().__init__()
        self.classifier, self._shrink, self.heads = classifier, shrink, heads
        self.transforms = GeometricTransforms(edge)
        self.register_buffer("alpha", torch.ones(TRANSFORMS, TRANSFORMS))

    def forward(self, images: Tensor, which: Tensor) -> Tensor:
        """Return the logits (N, K) for images (N, 3, S, S) in [0, 1], each transformed."""
        logits: Tensor = self.classifier(self.transforms(self._small(images), which))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the features in which the logits are linear, (N, C), for untransformed images."""
        found: Tensor = self.classifier.features(self._small(images))
        return found

    def _small(self, images: Tensor) -> Tensor:
        small = functional.avg_pool2d(images, self._shrink) if self._shrink > 1 else images
        return small * 2 - 1

    def log_answers(self, images: Tensor, number: int) -> Tensor:
        """Return the log probabilities (N, 72) for images under one transform."""
        which = torch.full((len(images),), number, device=images.device)
        return functional.log_softmax(self(images, which).double(), dim=1)

    def unusualness(self, images: Tensor, *, offset: float = 0.0) -> Tensor:
        """Return −mean over t of Σ (α_t − 1) log(p(T_t x) + offset) for images: (N,).

        One transform is computed at a time.
        """
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for number, alpha in enumerate(self.alpha.double()):
            logs = self.log_answers(images, number)
            total -= ((logs.exp() + offset).log() if offset else logs) @ (alpha - 1)
        return total / TRANSFORMS

    def wrongness(self, images: Tensor) -> Tensor:
        """Return −mean over t of the log probability of the right answer to T_t x: (N,).

        With separate heads, the log probabilities of the heads are added.
        """
        total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        numbers = shown(self.heads)
        for number in numbers:
            which = torch.full((len(images),), number, device=images.device)
            total -= log_right(self(images, which).double(), which, self.heads)
        return total / len(numbers)


_STREAM = 1 << 34  # keeps the draws of transforms apart from those of windows
_LEAST_EDGE = 8  # a quarter of it is a shift, and the network halves it twice
_Count = Annotated[int, pydantic.Field(ge=1)]


class DeepGeoOptions(TrainedOptions):
    """Options of ``deep-geo``."""

    heads: Heads = "joint"
    """Answers of the classifier: one of 72 transforms (joint), or the turn, the shift across and
    the shift down, each by a head of its own (separate), or the turn alone, where tiles are neither
    shifted nor flipped (turn)."""
    score: Literal["dirichlet", "softmax"] = "dirichlet"
    """Score: unlikeliness of the answers under a Dirichlet distribution for each transform, or the
    negative log probability of the right answers, which heads other than the joint one require."""
    depth: _Count = 10
    """Depth of the wide residual network: 10, 16, 22, …; published: 16."""
    width: _Count = 2
    """Width of the network as a multiple of a ResNet's; published: 8."""
    shrink: _Count = 2
    """Edge of the squares, pixels, over which tiles are averaged first; published: 1."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 2.5e-4
    """Weight of half the squared weights and biases in the loss; published: 5e-4."""
    initialisation: Literal["fan-out", "fan-in"] = "fan-out"
    """Scale of the initial weights of convolutions: by outgoing or by incoming connections
    (published)."""
    epochs: Annotated[float, pydantic.Field(gt=0)] | None = None
    """End the training after so many showings of every healthy tile in every transform, on average;
    published: 3, with ``keep: last``."""
    log_offset: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Number that is added to every probability before the logarithm of the score; published:
    1e-6."""
    dirichlet_tiles: Annotated[int, pydantic.Field(ge=2)] | None = 500
    """Maximum number of healthy tiles that are shown in all transforms after the training; null for
    all (published)."""
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"log_offset"}
    later: ClassVar[Mapping[str, Any]] = {
        "score": "dirichlet",
        "heads": "joint",
        "initialisation": "fan-out",
        "epochs": None,
        "log_offset": 0.0,
    }

    @pydantic.model_validator(mode="after")
    def _score_of_heads(self) -> Self:
        if self.heads != "joint" and self.score == "dirichlet":
            name = "separate heads are" if self.heads == "separate" else "a head for the turn is"
            raise ValueError(f"{name} scored by softmax: set score: softmax")
        return self

    def bounded(self, tiles: int) -> Self:
        """Return the options with the number of steps that ``epochs`` over the tiles have."""
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * len(shown(self.heads)) * tiles / self.batch)
        return self.model_copy(update={"max_steps": min(self.max_steps, steps)})


class DeepGeo(TrainedDetector):
    """−mean over 72 transforms T_t of Σ_k (α_tk − 1) log p_k(T_t x).

    A wide residual network learns which of 72 geometric transforms (two flips, nine shifts,
    four turns) was applied to a healthy tile. α_t are the parameters of the Dirichlet
    distribution of its answers p(T_t x) for healthy tiles. The score is high if the answers
    would be unlikely for a healthy tile. A tile has one place, and is scored by 72 passes
    through the network. With ``score: softmax`` the score is −mean over t of the log probability
    of the right answer; with ``heads: separate`` it is the sum over three heads, which classify
    the turn and both shifts, and do not see the flip. With ``heads: turn`` a tile is only turned:
    four passes.

    Transforms are drawn again for every tile and step. A held-out tile is shown in one
    transform, which follows from its pixels. Windows are not flipped at random, because this
    would make half of the transforms the same, and two flips are a half turn.

    Notes
    -----
    Golan & El-Yaniv, *Deep Anomaly Detection Using Geometric Transformations*, NeurIPS
    2018 (arXiv 1805.10917), section 4; for CAMELYON16 as a baseline (WRN-16-8) in
    Shvetsova et al., IEEE Access 2021. The authors train for a fixed number of epochs over
    all transformed tiles. Separate heads: Hendrycks, Mazeika, Kadavath & Song, *Using
    Self-Supervised Learning Can Improve Model Robustness and Uncertainty*, NeurIPS 2019 (arXiv
    1906.12340), whose code adds the probabilities of the right answers instead of their
    logarithms, and scores no mirrored tiles. Turns alone: Gidaris, Singh & Komodakis,
    *Unsupervised Representation Learning by Predicting Image Rotations*, ICLR 2018 (arXiv
    1803.07728), scored as by Hendrycks et al.
    """

    Options: ClassVar[type[DetectorOptions]] = DeepGeoOptions
    default_input_px: ClassVar[int | None] = 64
    options: DeepGeoOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the classifier; then fit the distributions of its answers.

        Raises
        ------
        DetectorError
            The tiles are too small or all alike, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device, self._about = context.device, {}
        network = self._placed(self._classifier(context.seed))
        self._network = network

        numbers = shown(network.heads)

        def loss(windows: Tensor) -> Tensor:
            sums = windows.flatten(1).sum(dim=1, dtype=torch.int64)
            which = numbers.start + sums % len(numbers)
            return -log_right(network(images(windows), which), which, network.heads)

        result = self._train(
            network.classifier,
            loss,
            tiles=tiles,
            context=context,
            options=self.options.bounded(len(tiles.fit)),
            identity={},
            recipe=Recipe(
                adam(weight_decay=self.options.weight_decay),
                update=self._update(network, context.seed),
                flips=False,
            ),
            started=started,
        )
        network.eval()
        if self.options.score == "dirichlet":
            self._about["dirichlet_tiles"] = self._fit_answers(network, tiles.fit, context)
        return self._report(result, network)

    def places(self, images: Tensor) -> Tensor:
        """Return how unusual or wrong the answers are, (N, 1, 1)."""
        network = self.network_as(GeometricClassifier)
        if self.options.score == "softmax":
            return network.wrongness(images).float().view(-1, 1, 1)
        found = network.unusualness(images, offset=self.options.log_offset)
        return found.float().view(-1, 1, 1)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the input of the classifier's last layer, for untransformed tiles."""
        return self.embed_images(self.network_as(GeometricClassifier).features, tiles)

    def empty(self, state: State) -> nn.Module:
        """Return an untrained classifier."""
        return self._classifier(0)

    def _classifier(self, seed: int) -> GeometricClassifier:
        options, size = self.options, self.spec.size
        if size % options.shrink or size // options.shrink < _LEAST_EDGE:
            raise DetectorError(
                f"an input of {size} px cannot be shrunk by {options.shrink} to at least "
                f"{_LEAST_EDGE} px",
                remedy="Choose another shrink.",
            )
        with drawing_weights(seed):
            classes = sum(_CLASSES[options.heads])
            classifier = WideResNet(
                options.depth, options.width, classes, initialisation=options.initialisation
            )
        return GeometricClassifier(
            classifier, size // options.shrink, shrink=options.shrink, heads=options.heads
        )

    def _update(self, network: GeometricClassifier, seed: int) -> Update:
        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            rng = np.random.default_rng([seed, step, _STREAM])
            numbers = shown(network.heads)
            drawn = rng.integers(numbers.start, numbers.stop, len(windows))
            which = torch.from_numpy(drawn).to(windows.device)
            loss = -log_right(network(images(windows), which), which, network.heads).mean()
            descend(optimiser, loss, clip=self.options.grad_clip)
            return loss

        return update

    @torch.no_grad()
    def _fit_answers(
        self, network: GeometricClassifier, tiles: TileSource, context: FitContext
    ) -> int:
        """Fit the Dirichlet distributions to sums over healthy tiles; return the tiles' number."""
        options, seed = self.options, context.seed
        count, batches = sample(tiles, options.dirichlet_tiles, batch=options.batch, seed=seed)
        shape = (3, TRANSFORMS, TRANSFORMS)
        sums = torch.zeros(shape, dtype=torch.float64, device=self._device)
        with Progress("answers", total=count, unit="tile", quiet=context.quiet) as progress:
            for index, part in enumerate(batches):
                windows = random_crops(
                    on_device(part, self._device),
                    self.spec.size,
                    seed=seed,
                    step=_STREAM + index,
                    flips=False,
                )
                x = images(windows)
                for number in range(TRANSFORMS):
                    logs = network.log_answers(x, number)
                    p = logs.exp()
                    sums[:, number] += torch.stack([logs.sum(0), p.sum(0), p.square().sum(0)])
                progress.update(len(part))
        means = (sums / count).cpu().numpy()
        alpha = np.stack([fit_dirichlet(*means[:, number]) for number in range(TRANSFORMS)])
        network.alpha.copy_(torch.from_numpy(alpha))
        return count
