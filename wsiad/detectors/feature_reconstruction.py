"""Feature reconstruction: what a network cannot restore of frozen features is strange.

DFR restores each position by 1 × 1 convolutions; Dinomaly, INP-Former and UniAD restore the tokens
of a tile by transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.detectors._features import DefaultLayers
from wsiad.detectors._trained import DistilledDetector, DistilledOptions, images
from wsiad.learning.checkpoint import Recipe, adam, descend, stable_adam
from wsiad.learning.detector import DetectorOptions, FitContext, HealthyTiles, State
from wsiad.learning.devices import drawing
from wsiad.learning.training_options import ValInterval
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.distillation import Distillation, place_distances, whole_distances
from wsiad.networks.encoder import Encoder
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.restorers import (
    BottleneckDecoder,
    MaskedTransformer,
    OneByOneAutoencoder,
    PrototypeDecoder,
    Restoration,
    Restorer,
    together,
)

_COUNTING, _DROPPED = 1 << 32, 1 << 35  # keep these draws apart from those of the windows
_COHERENCE = 0.2  # weight of the distance to the nearest prototype
_EASY = 0.1  # share of the gradient of tokens that are restored well
_POWER = 3  # of a token's distance, by which its gradient counts
_DEPTH = 8  # layers of a vision transformer that are restored

_Count = Annotated[int, pydantic.Field(ge=1)]
_Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]

_RESTORED = DefaultLayers(
    squeezenet1_0=("features.3", "features.4", "features.5"),
    squeezenet1_1=("features.3", "features.4", "features.6", "features.7"),
    vgg19=("features.11", "features.13", "features.15", "features.17"),
    wsiad=("features.11", "features.13", "features.15", "features.17"),
    densenet=("features.transition1", "features.transition2"),
    others=("layer1", "layer2", "layer3"),
)
"""relu3_1 to relu3_4 of a VGG19, or layers of two or three resolutions."""


_OF_TRANSFORMERS = {
    "dropout": ("dinomaly", "uniad"),
    "prototypes": ("inp-former",),
    "neighbours": ("uniad",),
    "jitter": ("uniad",),
}
"""Options that do nothing with other transformers."""


class FeatureReconstructionOptions(DistilledOptions):
    """Options of ``feature-reconstruction``."""

    network: Literal["mlp-1x1", "transformer"] = "mlp-1x1"
    """Network that restores the features: 1 × 1 convolutions at every position alone, or a
    transformer whose tokens are the places of a tile."""
    transformer: Literal["dinomaly", "inp-former", "uniad"] = "dinomaly"
    """Transformer: a noisy bottleneck and linear attention (dinomaly), prototypes of the tile
    itself (inp-former), or attention that does not see neighbours (uniad)."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is restored, from the finest. Default: relu3_1 to relu3_4 of a VGG19,
    layers of two or three resolutions of other networks, eight blocks from the middle of a vision
    transformer."""
    latent: Annotated[int, pydantic.Field(ge=1)] | Annotated[float, pydantic.Field(gt=0, lt=1)] = (
        0.9
    )
    """Channels in the middle of ``mlp-1x1``, or the share of the variance of healthy features that
    as many principal components explain."""
    latent_tiles: _Count = 1_000
    """Maximum number of healthy tiles from which the principal components are counted."""
    batch_norm: bool = True
    """Normalise the inner layers of ``mlp-1x1``, as in the authors' code."""
    linear: bool = False
    """Leave out the activations of ``mlp-1x1``; without batch_norm its best form is ``pca``."""
    width: _Count = 256
    """Channels of a token, for uniad and for layers of different widths. Layers of one width, as
    of a vision transformer, keep theirs in dinomaly and inp-former."""
    depth: _Count = 8
    """Blocks of the decoder; for uniad, half are of the encoder and half of the decoder."""
    dropout: _Share = 0.2
    """Share of the values that a step leaves out: of the bottleneck (dinomaly), of all blocks
    (uniad)."""
    mining_share: _Share = 0.9
    """Share of the best restored tokens whose gradient is a tenth, for dinomaly."""
    mining_steps: _Count = 1_000
    """Steps in which ``mining_share`` is reached from 0."""
    prototypes: _Count = 6
    """Prototypes of a tile, for inp-former."""
    neighbours: Literal[0, 1, 3, 5, 7, 9] = 3
    """Edge of the square of places around each token that it does not see, for uniad."""
    jitter: _NotNegative = 20.0
    """Noise of the tokens in training, for uniad: this times their length over their channels."""
    optimiser: Literal["adam", "stable-adamw"] = "adam"
    """Optimiser; dinomaly and inp-former are published with ``stable-adamw``."""
    weight_decay: _NotNegative = 0.0
    """Weight of the squared weights: in Adam's loss, or decoupled with stable-adamw."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-4
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, pydantic.Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0."""
    final_rate: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    """Share of the learning rate to which a cosine falls."""
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = DistilledOptions.scoring_only - {"places"}
    default_layers: ClassVar[DefaultLayers] = _RESTORED

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        dense, network = self.network == "mlp-1x1", f"network: {self.network}"
        kind = network if dense else f"transformer: {self.transformer}"
        latent = f"latent: {self.latent}" if dense else network
        mining = "mining_share: 0" if self.mines() else kind
        uses = {
            "combine": (False, "feature-reconstruction"),
            "latent_tiles": (dense and isinstance(self.latent, float), latent),
            "mining_share": (self.mines(), kind),
            "mining_steps": (self.mines() and self.mining_share > 0, mining),
            "final_rate": (self.lr_schedule != "constant", f"lr_schedule: {self.lr_schedule}"),
        }
        uses |= dict.fromkeys(("latent", "batch_norm", "linear"), (dense, network))
        uses |= dict.fromkeys(("transformer", "width", "depth"), (not dense, network))
        for name, transformers in _OF_TRANSFORMERS.items():
            uses[name] = (not dense and self.transformer in transformers, kind)
        return super().uses() | uses

    def mines(self) -> bool:
        """Tell whether the gradient of tokens that are restored well counts less by their share."""
        return self.network == "transformer" and self.transformer == "dinomaly"

    def rate(self, step: int, *, limit: int) -> float:
        """Return the learning rate of a step, with the warm-up and the last share."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        fallen = super().rate(step, limit=limit)
        return self.final_rate * self.learning_rate + (1 - self.final_rate) * fallen

    def for_encoder(self, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
        """Return the options that depend on the encoder: its eight middle blocks are restored."""
        update = super().for_encoder(encoder, names)
        blocks = {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
        if encoder.transformer is None or self.layers or len(blocks) < _DEPTH:
            return update
        step = max(1, len(blocks) // 12)
        first = min(len(blocks) // 6, len(blocks) - 1 - step * (_DEPTH - 1))
        chosen = tuple(f"blocks.{first + step * number}" for number in range(_DEPTH))
        return update | {"layers": chosen}


class FeatureReconstruction(DistilledDetector):
    """Distance between frozen features and what a network trained on healthy tiles restores.

    ``mlp-1x1``: the features of all layers, brought to the finest grid and concatenated, go
    through 1 × 1 convolutions down to d channels and back. Loss and score are the mean squared
    error over the channels; the score's map is averaged to the places.

    ``transformer``: the features, averaged to the places, are tokens. Dinomaly and INP-Former
    restore two groups of layers; the loss is 1 − cos of a group's features as one vector, where
    the gradient of tokens that are restored well counts less, and the score of a place is 1 − cos
    there, averaged over the groups. INP-Former adds 0.2 × (1 − cos) of tokens and their nearest
    prototypes to the loss. UniAD restores all layers at once from noisy tokens; the loss is the
    mean squared error, and the score of a place is the length |f − f̂|.

    Notes
    -----
    DFR: Shi, Yang & Qi, *Unsupervised Anomaly Segmentation via Deep Feature Reconstruction*,
    Neurocomputing 2021 (arXiv 2012.07122). d comes from many healthy tiles; the authors' code
    counts the principal components of ten images. Dinomaly: Guo et al., CVPR 2025 (arXiv
    2405.14325). INP-Former: Luo et al., *Exploring Intrinsic Normal Prototypes within a Single
    Image for Universal Anomaly Detection*, CVPR 2025 (arXiv 2503.02424). Their constants follow
    anomalib 2.7. UniAD: You et al., *A Unified Model for Multi-class Anomaly Detection*, NeurIPS
    2022 (arXiv 2206.03687), from general knowledge of the paper.
    """

    Options: ClassVar[type[DetectorOptions]] = FeatureReconstructionOptions
    options: FeatureReconstructionOptions
    _latent = 1
    _seed = 0

    def prepared(
        self, teacher: BackboneFeatures, tiles: HealthyTiles, context: FitContext
    ) -> dict[str, Any]:
        """Count the principal components of healthy features, for ``mlp-1x1``."""
        self._seed = context.seed
        if self.options.network != "mlp-1x1":
            return {}
        if isinstance(self.options.latent, int):
            self._latent = self.options.latent
        else:
            moments = self._moments(self._placed(teacher), tiles, context)
            self._latent = components_of(moments, self.options.latent)
        return {"latent": self._latent}

    def distillation(self, teacher: BackboneFeatures, *, seed: int) -> Distillation:
        """Return a teacher with an untrained restorer of its features."""
        shapes = teacher.check_places(self.spec.size)
        with drawing_weights(seed):
            return Restoration(teacher, self._restorer(shapes))

    def distances(self, taught: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return the terms of the loss of each image, (N,) each."""
        if self._by_square():
            return [
                (t - f).square().mean(dim=(1, 2, 3)) for t, f in zip(taught, found, strict=True)
            ]
        count = len(taught) - self._extra()
        terms = [one / count for one in whole_distances(taught[:count], found[:count])]
        coherence = place_distances(taught[count:], found[count:])
        return terms + [_COHERENCE * one.mean(dim=(1, 2)) for one in coherence]

    def places(self, images: Tensor) -> Tensor:
        """Return how badly the features of each place are restored, (N, m, m)."""
        taught, found = self.network()(images)
        if self._by_square():
            squares = (taught[0] - found[0]).square()
            uniad = self.options.network == "transformer"
            score = squares.sum(dim=1).sqrt() if uniad else squares.mean(dim=1)
        else:
            count = len(taught) - self._extra()
            score = torch.stack(place_distances(taught[:count], found[:count])).mean(dim=0)
        return functional.adaptive_avg_pool2d(score[:, None], self.options.places)[:, 0]

    def recipe(self) -> Recipe:
        """Return the recipe: dropout and noise of a step follow from the seed and its number."""
        options, network, seed = self.options, self.network(), self._seed
        decay = options.weight_decay
        make = stable_adam if options.optimiser == "stable-adamw" else adam

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            with drawing(windows.device, seed, _DROPPED, step):
                taught, found = network(images(windows))
            if not self._by_square():
                mined = len(taught) - self._extra()
                for one, other in zip(taught[:mined], found[:mined], strict=True):
                    weigh_gradient(other, self._mining(one, other.detach(), step))
            terms = self.distances(taught, found)
            loss: Tensor = sum(terms[1:], start=terms[0]).mean()
            descend(optimiser, loss, clip=options.grad_clip)
            return loss

        return Recipe(make(weight_decay=decay), update)

    def empty(self, state: State) -> Distillation:
        """Return a teacher and a restorer of the state's shapes."""
        self._latent = int(state.values.get("latent", 1))
        return super().empty(state)

    def _by_square(self) -> bool:
        return self.options.network == "mlp-1x1" or self.options.transformer == "uniad"

    def _extra(self) -> int:
        """Return the number of pairs that are in the loss but not in the score."""
        return int(self.options.transformer == "inp-former")

    def _mining(self, taught: Tensor, found: Tensor, step: int) -> Tensor:
        """Return by how much the gradient of each token counts, (N, m, m)."""
        (distances,) = place_distances([taught], [found])
        if self.options.transformer == "inp-former":
            return soft_mining(distances)
        reached = min(1.0, step / self.options.mining_steps)
        return hard_mining(distances, self.options.mining_share * reached)

    def _restorer(self, shapes: list[tuple[int, int, int]]) -> Restorer:
        options, places = self.options, self.options.places
        if options.network == "mlp-1x1":
            channels = sum(shape[0] for shape in shapes)
            if self._latent >= channels:
                raise DetectorError(
                    f"a latent of {self._latent} channels restores all {channels} of the features",
                    remedy="Set a smaller latent.",
                )
            return OneByOneAutoencoder(
                channels, self._latent, batch_norm=options.batch_norm, linear=options.linear
            )
        shared: dict[str, Any] = {"width": options.width, "depth": options.depth}
        match options.transformer:
            case "dinomaly":
                return BottleneckDecoder(shapes, places, **shared, dropout=options.dropout)
            case "inp-former":
                return PrototypeDecoder(shapes, places, **shared, prototypes=options.prototypes)
            case "uniad":
                return MaskedTransformer(
                    shapes,
                    places,
                    width=options.width,
                    depth=max(1, options.depth // 2),
                    neighbours=options.neighbours,
                    jitter=options.jitter,
                    dropout=options.dropout,
                )

    @torch.no_grad()
    def _moments(
        self, teacher: BackboneFeatures, tiles: HealthyTiles, context: FitContext
    ) -> Tensor:
        """Return the covariance, float64 (C, C), of the features of healthy tiles."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for windows in self._healthy_windows(
            tiles.fit, self.options.latent_tiles, seed=context.seed, stream=_COUNTING
        ):
            maps = teacher.maps(teacher.normalised(images(windows)))
            vectors = together(maps).permute(0, 2, 3, 1).flatten(0, 2).double().cpu()
            count, total = count + len(vectors), total + vectors.sum(dim=0)
            squares = squares + vectors.T @ vectors
        mean = total / count
        return squares / count - mean[:, None] * mean


def components_of(covariance: Tensor, share: float) -> int:
    """Return the least number of principal components that explain a share of the variance.

    Raises
    ------
    DetectorError
        The features do not vary.
    """
    variances = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
    total = float(variances.sum())
    if not total > 0:
        raise DetectorError("the features of all healthy tiles are alike")
    explained = variances.cumsum(0) / total
    return min(int((explained < share).sum()) + 1, len(variances))


def hard_mining(distances: Tensor, share: float) -> Tensor:
    """Return 0.1 for the share of smallest distances and 1 for the others, in their shape."""
    kept = max(1, int(distances.numel() * (1 - share)))
    threshold = distances.flatten().topk(kept).values[-1]
    return torch.where(distances < threshold, _EASY, 1.0)


def soft_mining(distances: Tensor) -> Tensor:
    """Return (distance / mean distance)³, in the shape of the distances."""
    return (distances / distances.mean().clamp(min=torch.finfo(distances.dtype).tiny)) ** _POWER


def weigh_gradient(found: Tensor, weights: Tensor) -> None:
    """Multiply the gradient that reaches a map (N, C, m, m) by weights (N, m, m)."""
    if found.requires_grad:
        found.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient * weights[:, None]
        )
