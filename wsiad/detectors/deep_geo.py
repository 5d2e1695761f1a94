"""Deep GEO: strange is what a classifier of geometric transforms answers unusually."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.core.progress import Progress
from wsiad.detectors._dirichlet import fit_dirichlet
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, images
from wsiad.detectors.geometric import TRANSFORMS, GeometricClassifier
from wsiad.learning.capabilities import Embedding
from wsiad.learning.crops import check_size, on_device, random_crops
from wsiad.learning.detector import (
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.recipe import Recipe, Update, adam, descend
from wsiad.learning.sampling import sample
from wsiad.networks.wide_resnet import WideResNet

_STREAM = 1 << 34  # keeps the draws of transforms apart from those of windows
_LEAST_EDGE = 8  # a quarter of it is a shift, and the network halves it twice
_Count = Annotated[int, pydantic.Field(ge=1)]


class DeepGeoOptions(TrainedOptions):
    """Options of ``deep-geo``."""

    depth: _Count = 10
    """Depth of the wide residual network: 10, 16, 22, …; published: 16."""
    width: _Count = 2
    """How many times as wide as a ResNet it is; published: 8."""
    shrink: _Count = 2
    """Average tiles over squares of this edge, pixels, first; published: 1."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 2.5e-4
    """Weight of the squared weights in the loss."""
    dirichlet_tiles: Annotated[int, pydantic.Field(ge=2)] = 500
    """The most healthy tiles that are shown in all transforms after the training."""
    val_interval: _Count = 200
    """Steps between two looks at the held-out healthy tiles."""


class DeepGeo(TrainedDetector):
    """−mean over 72 transforms T_t of Σ_k (α_tk − 1) log p_k(T_t x).

    A wide residual network learns which of 72 geometric transforms (two flips, nine
    shifts, four turns) a healthy tile was put through. α_t are the parameters of the
    Dirichlet distribution of its answers p(T_t x) for healthy tiles: the score is high
    where the answers would be unlikely for a healthy tile. A tile has one place, and is
    scored by 72 passes through the network.

    Transforms are drawn anew for every tile and step. Held-out tiles are shown in one
    each, which follows from their pixels. Windows are not flipped at random, which would
    make half of the transforms the same.

    Notes
    -----
    Golan & El-Yaniv, *Deep Anomaly Detection Using Geometric Transformations*, NeurIPS
    2018 (arXiv 1805.10917), section 4; for CAMELYON16 as a baseline (WRN-16-8) in
    Shvetsova et al., IEEE Access 2021. Their training has a fixed number of epochs over
    all transformed tiles.
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

        def loss(windows: Tensor) -> Tensor:
            which = windows.flatten(1).sum(dim=1, dtype=torch.int64) % TRANSFORMS
            return functional.cross_entropy(
                network(images(windows), which), which, reduction="none"
            )

        result = self._train(
            network.classifier,
            loss,
            tiles=tiles,
            context=context,
            identity={},
            recipe=Recipe(
                adam(weight_decay=self.options.weight_decay),
                update=self._update(network, context.seed),
                flips=False,
            ),
            started=started,
        )
        network.eval()
        self._about["dirichlet_tiles"] = self._fit_answers(network, tiles.fit, context)
        return self._report(result, network)

    def places(self, images: Tensor) -> Tensor:
        """Return how unusual the answers are: (N, 1, 1)."""
        network = self.network()
        assert isinstance(network, GeometricClassifier)
        return network.unusualness(images).float().view(-1, 1, 1)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return what the classifier's last layer decides by, of tiles as they lie."""
        network = self.network()
        assert isinstance(network, GeometricClassifier)
        return self.embed_images(network.features, tiles)

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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = WideResNet(options.depth, options.width, TRANSFORMS)
        return GeometricClassifier(classifier, size // options.shrink, shrink=options.shrink)

    def _update(self, network: GeometricClassifier, seed: int) -> Update:
        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            rng = np.random.default_rng([seed, step, _STREAM])
            which = torch.from_numpy(rng.integers(0, TRANSFORMS, len(windows))).to(windows.device)
            loss = functional.cross_entropy(network(images(windows), which), which)
            descend(optimiser, loss, clip=self.options.grad_clip)
            return loss

        return update

    @torch.no_grad()
    def _fit_answers(
        self, network: GeometricClassifier, tiles: TileSource, context: FitContext
    ) -> int:
        """Fit the Dirichlet distributions to sums over healthy tiles; return how many."""
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
