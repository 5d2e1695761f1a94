"""DRAEM: a network finds textures that were blended into healthy tiles, and so what is strange."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.detectors._trained import TrainedDetector, TrainedOptions, images
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import Recipe
from wsiad.learning.contrastive import checksum
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.training_options import BatchSize, LearningRate, ValInterval
from wsiad.networks.anomaly_segmenter import AnomalySegmenter, focal
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.image_distances import dissimilarity
from wsiad.networks.synthetic_anomalies import textured

_Count = Annotated[int, pydantic.Field(ge=1)]
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class SyntheticOptions(TrainedOptions):
    """Options of ``synthetic``."""

    restoring_width: _Count = 16
    """Channels of the first block of the network that restores the tile; published: 128."""
    finding_width: _Count = 16
    """Channels of the first block of the network that finds the changes; published: 64."""
    share: _Share = 0.5
    """Share of the tiles that are changed in a step."""
    opacity: tuple[_Share, _Share] = (0.1, 1.0)
    """Least and largest opacity of what is blended in."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    batch: BatchSize = 8
    learning_rate: LearningRate = 1e-4
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"places"}


class Synthetic(TrainedDetector):
    """Probability that a place of a tile was changed, by a network that was shown changed ones.

    Another healthy tile, with other colours and turned, is blended into areas of a tile that
    Perlin noise draws. A first network restores the tile (squared error and 1 − SSIM), and a
    second one sees both and classifies each pixel (focal loss). The score of a place is the mean
    probability of its pixels. What is changed follows from the pixels of the windows, so that
    held-out tiles are always changed alike.

    Notes
    -----
    DRAEM: Zavrtanik, Kristan & Skočaj, *DRÆM – A Discriminatively Trained Reconstruction Embedding
    for Surface Anomaly Detection*, ICCV 2021 (arXiv 2108.07610); widths, losses and noise as in
    anomalib 2.7. The published textures are photographs (DTD), which do not come with wsiad.
    """

    Options: ClassVar[type[DetectorOptions]] = SyntheticOptions
    default_input_px: ClassVar[int | None] = 64
    options: SyntheticOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train both networks.

        Raises
        ------
        DetectorError
            The tiles are too small, the input is no multiple of 32 px, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device, self._about = context.device, {}
        network = self._placed(self._segmenter(context.seed))
        self._network = network
        options = self.options

        def loss(windows: Tensor) -> Tensor:
            healthy = images(windows)
            generator = torch.Generator().manual_seed(checksum(windows))
            changed, mask = textured(
                healthy, generator, share=options.share, opacity=options.opacity
            )
            restored, logits = network(changed)
            terms = (
                (restored - healthy).square().mean(dim=(1, 2, 3)),
                dissimilarity(restored * 2 - 1, healthy * 2 - 1).mean(dim=(1, 2)),
                focal(logits, mask).mean(dim=(1, 2)),
            )
            return terms[0] + terms[1] + terms[2]

        result = self._train(
            network,
            loss,
            tiles=tiles,
            context=context,
            identity={},
            recipe=Recipe(),
            started=started,
        )
        return self._report(result, network)

    def places(self, images: Tensor) -> Tensor:
        """Return the mean probability of a change at each place, (N, m, m)."""
        _, logits = self._both()(images)
        changed = functional.softmax(logits, dim=1)[:, 1:]
        return functional.adaptive_avg_pool2d(changed, self.options.places)[:, 0]

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the deepest features of the second network, averaged over the tile."""
        return self.embed_images(self._both().deepest, tiles)

    def empty(self, state: State) -> nn.Module:
        """Return untrained networks."""
        return self._segmenter(0)

    def _both(self) -> AnomalySegmenter:
        return self.network_as(AnomalySegmenter)

    def _segmenter(self, seed: int) -> AnomalySegmenter:
        options = self.options
        with drawing_weights(seed):
            return AnomalySegmenter(self.spec.size, options.restoring_width, options.finding_width)
