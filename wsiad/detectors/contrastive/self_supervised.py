"""The detector of self-supervised encoders: pretext, training, healthy features, scores."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, group, images
from wsiad.detectors.contrastive.healthy_codes import (
    axis_scores,
    cluster_distances,
    fit_axes,
    fit_clusters,
    nearest_distances,
)
from wsiad.detectors.contrastive.pretexts import (
    CUT_FORMS,
    SHIFTS,
    ShiftEncoder,
    Shifts,
    contrastive_losses,
    cut_losses,
    position_losses,
    shifted,
)
from wsiad.learning.batches import ViewOptions, check_size, random_views
from wsiad.learning.checkpoint import OptimiserFactory, Recipe, adam, lars, sgd
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.step import Loss
from wsiad.learning.training_options import ValInterval
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.patch_encoder import SMALL, PatchEncoders, cut, spread

logger = logging.getLogger(__name__)

Score = Literal["mahalanobis", "csi", "nearest"]

_MOMENTUM = 0.9
_STREAM = 1 << 36  # keeps the draws of healthy windows apart from those of the training
_STRIDES = {SMALL: 4, 2 * SMALL: 16}  # px between the patches of an edge that are scored
_USUAL: dict[str, Score] = {
    "simclr": "mahalanobis",
    "csi": "csi",
    "position": "nearest",
    "cutpaste": "mahalanobis",
}

_OF_PRETEXTS = {
    ("simclr", "csi", "cutpaste"): ("network",),
    ("simclr", "csi"): ("views", "temperature"),
    ("csi",): ("shifts",),
    ("position",): ("patches", "neighbour_weight", "bank", "places"),
}
"""Options that do nothing with other pretexts."""

_Count = Annotated[int, pydantic.Field(ge=1)]
_Positive = Annotated[float, pydantic.Field(gt=0)]


class ContrastiveDetectorOptions(TrainedOptions):
    """Options of ``contrastive``."""

    pretext: Literal["simclr", "csi", "position", "cutpaste"] = "simclr"
    """Task by which the encoder learns: two views of a tile match (simclr: SSD), also apart from
    shifted forms of it (csi: CSI), two patches tell their direction (position: Patch-SVDD), or
    pasted rectangles and scars are recognised (cutpaste)."""
    score: Score | None = None
    """Score: Mahalanobis distance to clusters of healthy features, CSI's product of cosine and
    length, or distance to the nearest healthy features. By default, the one that was published
    with the pretext."""
    network: Literal["blocks", "resnet18"] = "blocks"
    """Encoder of simclr and csi: the blocks that ``wsiad pretrain`` trains, or a ResNet-18."""
    widths: Annotated[tuple[_Count, ...], pydantic.Field(min_length=2, max_length=5)] = (
        16,
        48,
        96,
        128,
    )
    """Number of channels of each block, for ``network: blocks``."""
    projection: _Count = 128
    """Length of the vectors that are compared, and of the codes of ``position``."""
    views: ViewOptions = ViewOptions()
    """Differences between two views of a tile, for simclr and csi."""
    temperature: _Positive = 0.5
    """Number that divides the cosines between views."""
    shifts: Shifts = "cutperm"
    """Shifted forms of csi: halves of a tile are swapped (cutperm), or the tile is turned by
    quarters (turns), which for tissue is no shift but a symmetry."""
    patches: tuple[Literal[32, 64], ...] = (32,)
    """Edges of the patches of ``position``, pixels. The tiles to train on must be at least twice
    as large as the largest."""
    neighbour_weight: Annotated[float, pydantic.Field(ge=0)] = 1.0
    """Weight of the distance of neighbouring patches, for ``position``."""
    clusters: _Count = 1
    """Number of clusters of healthy features, for ``score: mahalanobis``."""
    healthy_tiles: Annotated[int, pydantic.Field(ge=2)] = 2_048
    """Maximum number of healthy tiles whose features are kept or summarised."""
    bank: _Count = 20_000
    """Maximum number of healthy codes of each patch size, for ``position``."""
    places: _Count = 8
    """Edge of the grid of places, for ``position``; the others have one place."""
    scoring_views: _Count = 1
    """Number of views of a tile whose vectors and logits are averaged for the score of csi, each
    cut alike from every tile; 1 is the tile itself. Published: 10."""
    optimiser: Literal["adam", "sgd", "lars"] = "adam"
    """Optimiser; SSD was published with ``sgd`` of momentum 0.9, and CSI with ``lars``."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Weight of the squared weights in the loss."""
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"places"}
    later: ClassVar[Mapping[str, Any]] = {"scoring_views": 1}

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.pretext == "position" and self.chosen_score() != "nearest":
            raise ValueError("the pretext position has the score nearest alone")
        if self.pretext == "cutpaste" and self.chosen_score() == "csi":
            raise ValueError("the pretext cutpaste has no vectors for the score csi")
        if len(set(self.patches)) != len(self.patches) or not self.patches:
            raise ValueError("patches must be 32, 64, or both")
        return self

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        pretext, score = f"pretext: {self.pretext}", f"score: {self.chosen_score()}"
        blocks = self.pretext != "position" and self.network == "blocks"
        uses = {
            "widths": (blocks, f"network: {self.network}" if self.network != "blocks" else pretext),
            "clusters": (self.chosen_score() == "mahalanobis", score),
            "scoring_views": (self.chosen_score() == "csi", score),
        }
        for pretexts, names in _OF_PRETEXTS.items():
            uses |= dict.fromkeys(names, (self.pretext in pretexts, pretext))
        return super().uses() | uses

    def chosen_score(self) -> Score:
        """Return the score, or the one that was published with the pretext."""
        return self.score or _USUAL[self.pretext]

    def forms(self) -> int:
        """Return the number of forms of a tile that a head tells apart."""
        return {"csi": SHIFTS, "cutpaste": CUT_FORMS}.get(self.pretext, 1)


class _Learnt(nn.Module):
    """An encoder, and what is kept of healthy tiles, by name."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.healthy = encoder, nn.Module()

    def keep(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        for name, tensor in tensors.items():
            self.healthy.register_buffer(name, tensor.detach().to(device))

    def kept(self) -> dict[str, Tensor]:
        return dict(self.healthy.named_buffers())


class Contrastive(TrainedDetector):
    """Distance of a tile from healthy ones, by an encoder that taught itself on healthy tiles.

    ``simclr``: two views of a tile, with other stains, sizes and orientations, must match among
    all tiles of the batch. The score is the Mahalanobis distance of the encoder's features, of
    length 1 and standardised, to the nearest cluster of healthy ones.

    ``csi``: shifted forms of a tile are other tiles for that loss, and a second head tells the
    form. The score is minus the mean over the forms of max cos(z, healthy) · |z| / mean |z| + the
    logit of the form / its mean.

    ``position``: small patches tell in which direction another one lies, and neighbouring patches
    have near codes. The score of a pixel is the mean over the patches that cover it of the
    distance to the nearest healthy code, multiplied over the sizes of patches.

    ``cutpaste``: a head tells a tile from the same with a rectangle or a thin turned scar of it
    pasted elsewhere. The score is the Mahalanobis distance as of ``simclr``.

    Notes
    -----
    SSD: Sehwag, Chiang & Mittal, ICLR 2021 (arXiv 2103.12051). CSI: Tack, Mo, Jeong & Shin,
    NeurIPS 2020 (arXiv 2007.08176), whose 10 views of a tile to score are ``scoring_views``; the
    authors' draws depend on the other images of a batch. Patch-SVDD: Yi & Yoon, ACCV 2020
    (arXiv 2006.16067). CutPaste: Li, Sohn, Yoon & Pfister, CVPR 2021 (arXiv 2104.04015), 3-way,
    from general knowledge of the paper; one Gaussian is its density.
    """

    Options: ClassVar[type[DetectorOptions]] = ContrastiveDetectorOptions
    default_input_px: ClassVar[int | None] = 64
    options: ContrastiveDetectorOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the encoder, then take what the score needs of healthy tiles.

        Raises
        ------
        DetectorError
            The tiles are too small, too few or all alike, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started, options = time.monotonic(), self.options
        check_size(tiles.fit.tile, self.spec.size)
        size = self._window(tiles.fit.tile)
        if options.pretext == "csi" and options.shifts == "turns":
            logger.warning(
                "contrastive: quarter turns are symmetries of tissue, and csi learns to tell them "
                "apart as if they were anomalies; shifts=cutperm is made for tissue"
            )
        self._device, self._about = context.device, {}
        learnt = self._placed(_Learnt(self._encoder(context.seed)))
        self._network = learnt
        result = self._train(
            learnt.encoder,
            self._loss(learnt.encoder),
            tiles=tiles,
            context=context,
            identity={},
            recipe=Recipe(self._optimiser()),
            started=started,
            size=size,
        )
        learnt.eval()
        kept = self._healthy(learnt.encoder, tiles.fit, context)
        learnt.keep(kept, self._device)
        self._about["healthy"] = sorted(kept)
        return self._report(result, learnt.encoder)

    def _optimiser(self) -> OptimiserFactory:
        options = self.options
        match options.optimiser:
            case "adam":
                return adam(weight_decay=options.weight_decay)
            case "sgd":
                return sgd(momentum=_MOMENTUM, weight_decay=options.weight_decay)
            case "lars":
                return lars(momentum=_MOMENTUM, weight_decay=options.weight_decay)

    def places(self, images: Tensor) -> Tensor:
        """Return the scores of images: (N, 1, 1), or (N, m, m) for ``position``."""
        learnt = self._learnt()
        encoder, kept = learnt.encoder, learnt.kept()
        if isinstance(encoder, PatchEncoders):
            return self._of_patches(encoder, images, kept)
        assert isinstance(encoder, ShiftEncoder)
        match self.options.chosen_score():
            case "mahalanobis":
                found = cluster_distances(encoder(images), kept)
            case "csi":
                vectors, logits = self._projected(encoder, images)
                found = axis_scores(vectors, logits, kept)
            case "nearest":
                found = nearest_distances(
                    functional.normalize(encoder(images), dim=1), kept["bank"]
                )
        return found.view(-1, 1, 1)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the encoder's features; those of patches are averaged over the tile."""
        encoder = self._learnt().encoder

        def embedded(x: Tensor) -> Tensor:
            if not isinstance(encoder, PatchEncoders):
                found: Tensor = encoder(x)
                return found
            means = [self._codes(encoder, x, edge).mean(dim=1) for edge in encoder.edges]
            return torch.cat(means, dim=1)

        return self.embed_images(embedded, tiles)

    def empty(self, state: State) -> nn.Module:
        """Return an untrained encoder, with tensors of healthy tiles of the state's shapes."""
        learnt = _Learnt(self._encoder(0))
        kept = group(state, "healthy")
        if sorted(kept) != sorted(state.values["healthy"]):
            raise DetectorError("tensors of healthy tiles are missing")
        if any(tensor.ndim > 3 for tensor in kept.values()):
            raise DetectorError("tensors of healthy tiles have another shape")
        learnt.keep({name: torch.zeros_like(tensor) for name, tensor in kept.items()}, self._device)
        return learnt

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector, and check that it scores."""
        super().load_state(state, device)
        try:
            self.score_places(np.zeros((1, self.spec.size, self.spec.size, 3), np.uint8))
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            self._network = None
            raise DetectorError(f"the state is not that of this detector ({error})") from error

    def _learnt(self) -> _Learnt:
        return self.network_as(_Learnt)

    def _window(self, tile_px: int) -> int:
        """Return the edge of the windows to train on, pixels.

        Raises
        ------
        DetectorError
            The input or the tiles are too small for the views or patches.
        """
        options, size = self.options, self.spec.size
        if options.pretext == "cutpaste":
            return size
        if options.pretext != "position":
            if options.views.view_px > size:
                raise DetectorError(
                    f"views of {options.views.view_px} px do not fit in windows of {size} px",
                    remedy=f"Set --option 'views={{view_px: {size}}}', or a larger input_px.",
                )
            return size
        largest = max(options.patches)
        if size < largest or tile_px < 2 * largest:
            raise DetectorError(
                f"patches of {largest} px need tiles of {2 * largest} px at least to learn "
                f"positions, and an input of {largest} px; these are {tile_px} and {size}",
                remedy="Tile again with larger tiles, or set --option 'patches=[32]'.",
            )
        return min(tile_px, max(size, 3 * largest))

    def _encoder(self, seed: int) -> nn.Module:
        options = self.options
        with drawing_weights(seed):
            if options.pretext == "position":
                return PatchEncoders(options.projection, options.patches)
            return ShiftEncoder(
                options.network, options.widths, options.projection, options.forms()
            )

    def _loss(self, encoder: nn.Module) -> Loss:
        options = self.options

        def loss(windows: Tensor) -> Tensor:
            if isinstance(encoder, PatchEncoders):
                return position_losses(encoder, windows, weight=options.neighbour_weight)
            assert isinstance(encoder, ShiftEncoder)
            if options.pretext == "cutpaste":
                return cut_losses(encoder, windows)
            return contrastive_losses(
                encoder,
                windows,
                views=options.views,
                temperature=options.temperature,
                shifts=options.shifts if options.pretext == "csi" else None,
            )

        return loss

    @torch.no_grad()
    def _healthy(
        self, encoder: nn.Module, tiles: TileSource, context: FitContext
    ) -> dict[str, Tensor]:
        """Return what the score needs of healthy tiles."""
        options = self.options
        healthy = self._healthy_windows(
            tiles, options.healthy_tiles, seed=context.seed, stream=_STREAM
        )
        windows = [images(part) for part in healthy]
        if isinstance(encoder, PatchEncoders):
            return {
                f"bank{edge}": self._bank([self._codes(encoder, x, edge) for x in windows], context)
                for edge in encoder.edges
            }
        assert isinstance(encoder, ShiftEncoder)
        match options.chosen_score():
            case "mahalanobis":
                features = torch.cat([encoder(x) for x in windows])
                return fit_clusters(features, options.clusters, seed=context.seed)
            case "csi":
                parts = [self._projected(encoder, x) for x in windows]
                logits = None if encoder.shift is None else torch.cat([p[1] for p in parts], dim=1)  # type: ignore[misc]
                return fit_axes(torch.cat([p[0] for p in parts], dim=1), logits)
            case "nearest":
                found = torch.cat([encoder(x) for x in windows])
                return {"bank": functional.normalize(found, dim=1)}

    def _bank(self, codes: Sequence[Tensor], context: FitContext) -> Tensor:
        """Return at most ``bank`` codes, drawn by the seed."""
        every = torch.cat([part.flatten(0, 1) for part in codes])
        most = self.options.bank
        if len(every) <= most:
            return every
        rng = np.random.default_rng([context.seed, len(every)])
        rows = np.sort(rng.choice(len(every), most, replace=False))
        return every[torch.from_numpy(rows).to(every.device)]

    def _projected(self, encoder: ShiftEncoder, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return projections (S, N, P) under each shift, and the logits of the shifts (S, N).

        Both are averaged over the views.
        """
        vectors, logits = [], []
        views = self._scored_views(images)
        for form in range(self.options.forms()):
            features = [encoder(shifted(view, form, self.options.shifts)) for view in views]
            vectors.append(_mean([encoder.head(one) for one in features]))
            if encoder.shift is not None:
                logits.append(_mean([encoder.shift(one)[:, form] for one in features]))
        return torch.stack(vectors), torch.stack(logits) if logits else None

    def _scored_views(self, images: Tensor) -> list[Tensor]:
        """Return the views of images (N, 3, S, S) that are scored, or the images themselves."""
        options = self.options
        if options.scoring_views == 1:
            return [images]
        tiles = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        views = options.views.model_copy(update={"scale": 1.0})  # all of one size
        return [
            random_views(tiles, views, torch.Generator().manual_seed(number), alike=True)
            for number in range(options.scoring_views)
        ]

    def _codes(self, encoder: PatchEncoders, images: Tensor, edge: int) -> Tensor:
        """Return the codes (N, G, D) of the patches of an edge."""
        patches = cut(images, edge, _STRIDES[edge])
        return encoder(patches.flatten(0, 1)).view(*patches.shape[:2], self.options.projection)

    def _of_patches(
        self, encoder: PatchEncoders, images: Tensor, kept: dict[str, Tensor]
    ) -> Tensor:
        """Return the product of the maps of all sizes of patches, averaged to the places."""
        size = images.shape[2]
        product = torch.ones(len(images), size, size, device=images.device)
        for edge in encoder.edges:
            codes = self._codes(encoder, images, edge)
            side = round(codes.shape[1] ** 0.5)
            distances = nearest_distances(codes.flatten(0, 1), kept[f"bank{edge}"])
            scores = distances.view(len(images), side, side)
            product = product * spread(scores, edge, _STRIDES[edge], size)
        return functional.adaptive_avg_pool2d(product[:, None], self.options.places)[:, 0]


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(dim=0)
