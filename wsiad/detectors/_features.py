"""The base of detectors on frozen features: options, sampling, scoring, state.

Tiles pass through a backbone network in batches. Each method has default layers of the backbone,
for users who do not choose any.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.core.errors import DetectorError, WsiadError
from wsiad.core.terminal import Progress
from wsiad.detectors import _backbone, _stored
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors._stored import BATCH, StoredFeatureDetector, Vectors, finite, in_batches
from wsiad.learning.batches import sample
from wsiad.learning.detector import (
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Scores,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.feature_source import IMPORTED, imported_identity, sampled_positions
from wsiad.networks import features
from wsiad.networks.encoder import Embedding, Encoder, Precision
from wsiad.networks.encoder_network import embedding_layers
from wsiad.networks.features import AUTO, BackboneFeatures
from wsiad.networks.imported_features import ImportedFeatures
from wsiad.networks.pixel_features import FINEST, PIXELS
from wsiad.networks.vgg import Padding
from wsiad.networks.weights import Weights

Layers = tuple[str, ...]
"""Names of modules of a network, from the finest to the coarsest."""


@dataclass(frozen=True, slots=True)
class DefaultLayers:
    """Default layers of a method for each backbone.

    Parameters
    ----------
    squeezenet1_0, squeezenet1_1, vgg19, wsiad : tuple of str
        Layers of the networks of these names; ``wsiad`` is the network that comes with wsiad.
    densenet : tuple of str
        Layers of every DenseNet.
    others : tuple of str
        Layers of all other networks: stages of a residual network.
    """

    squeezenet1_0: Layers
    squeezenet1_1: Layers
    vgg19: Layers
    wsiad: Layers
    densenet: Layers
    others: Layers

    def of(self, backbone: str) -> Layers:
        """Return the layers for a backbone."""
        named = {
            "squeezenet1_0": self.squeezenet1_0,
            "squeezenet1_1": self.squeezenet1_1,
            "vgg19": self.vgg19,
            "wsiad": self.wsiad,
        }
        if backbone.startswith("densenet"):
            return self.densenet
        if backbone == PIXELS:
            return (FINEST,)
        return named.get(backbone, self.others)


FINE = DefaultLayers(
    squeezenet1_0=("features.4",),
    squeezenet1_1=("features.4",),
    vgg19=("features.12",),
    wsiad=("features.12",),
    densenet=("features.transition1",),
    others=("layer1", "layer2"),
)
"""SqueezeNet's second Fire module, conv3_2 of a VGG19, a DenseNet's first transition, or the first
two residual stages."""

TWO_DEPTHS = DefaultLayers(
    squeezenet1_0=("features.5", "features.10"),
    squeezenet1_1=("features.4", "features.7"),
    vgg19=("features.17", "features.26"),
    wsiad=("features.17", "features.26"),
    densenet=("features.transition1", "features.transition2"),
    others=("layer2", "layer3"),
)
"""The ends of SqueezeNet's first two resolutions, of the equally coarse ones of a VGG19, or of
the second and third residual stages."""

THREE_DEPTHS = DefaultLayers(
    squeezenet1_0=("features.5", "features.10", "features.12"),
    squeezenet1_1=("features.4", "features.7", "features.12"),
    vgg19=("features.8", "features.17", "features.26"),
    wsiad=("features.8", "features.17", "features.26"),
    densenet=("features.pool0", "features.transition1", "features.transition2"),
    others=("layer1", "layer2", "layer3"),
)
"""The ends of three resolutions, or the first three residual stages."""

MIDDLE = DefaultLayers(
    squeezenet1_0=("features.7", "features.10"),
    squeezenet1_1=("features.7", "features.10"),
    vgg19=("features.17", "features.26"),
    wsiad=("features.17", "features.26"),
    densenet=("features.transition2", "features.transition3"),
    others=("layer2", "layer3"),
)
"""Two layers from the middle of the network."""

CODED = DefaultLayers(
    squeezenet1_0=THREE_DEPTHS.squeezenet1_0[:2],
    squeezenet1_1=THREE_DEPTHS.squeezenet1_1[:2],
    vgg19=THREE_DEPTHS.vgg19[:2],
    wsiad=THREE_DEPTHS.wsiad[:2],
    densenet=THREE_DEPTHS.densenet[:2],
    others=THREE_DEPTHS.others,
)
"""Layers of :data:`THREE_DEPTHS`, as many as one small code can hold."""

DEEPEST = DefaultLayers(
    squeezenet1_0=("features.12",),
    squeezenet1_1=("features.12",),
    vgg19=("features.35",),
    wsiad=("features.26",),
    densenet=("features.norm5",),
    others=("layer4",),
)
"""The last block before the classifier, or the last residual stage."""


_Count = Annotated[int, pydantic.Field(ge=1)]


class FeatureOptions(BackboneOptions):
    """Options of every detector on frozen features."""

    backbone: str = AUTO
    """A torchvision classification network, such as squeezenet1_1, resnet18, wide_resnet50_2, or
    one of timm, such as timm/convnext_atto; or ``pixels``, which needs no weights. ``auto`` is the
    network of the weights file. Without a file it is squeezenet1_1, or ``wsiad``, the network that
    comes with wsiad, if the ImageNet weights are not on this machine."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is used. Default: ``features.4`` of SqueezeNet, ``features.12``
    (conv3_2) of VGG19 and of wsiad's network, ``features.transition1`` of a DenseNet, or ``layer1``
    and ``layer2`` of a ResNet."""
    places: _Count = 8
    """Edge of the grid of places in a tile; 1 averages the features over the complete tile."""
    neighbourhood: Literal[1, 3, 5, 7] = 1
    """Edge of the square over which features are averaged before they are assigned to places."""
    l2_normalise: bool = False
    """Scale every feature vector to length 1."""
    magnify: Annotated[float, pydantic.Field(ge=1, le=8)] | None = None
    """Factor by which tiles are enlarged before the network; 1 by default. Enlarged tiles suit
    deeper layers, because nuclei are smaller than the objects that networks of ImageNet know."""
    contrast: Annotated[float, pydantic.Field(gt=0, le=8)] = 1.0
    """Factor by which intensities are stretched around white before the network; 1 leaves them
    unchanged. Tissue on glass is paler than the photographs that networks of ImageNet know."""
    embedding: Embedding | None = None
    """Features of a tile by an encoder: its class token (cls; for CONCH and PLIP their own
    embedding of the image), the mean of its patch tokens (patch_mean), both one after the other
    (cls+patch_mean), or the patch tokens as places (places). The default is the encoder's own."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the features. ``auto`` is that of the encoder on a GPU, otherwise fp32. Where a
    feature is not finite, it is computed again in fp32."""
    fit_tiles: _Count = 20_000
    """Maximum number of healthy tiles to fit on."""
    fit_vectors: _Count = 20_000
    """Maximum number of feature vectors to fit on, drawn evenly from all places of those tiles."""

    default_layers: ClassVar[DefaultLayers] = FINE
    """The layers that the method uses by default."""

    def chosen_layers(self) -> tuple[str, ...]:
        """Return the chosen layers, or the backbone's defaults."""
        if self.imported():
            return ()
        return self.layers or self.default_layers.of(self.backbone)

    def enlarged_by(self) -> float:
        """Return the factor by which tiles are enlarged, including the default."""
        return self.magnify or 1

    def for_encoder(self, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
        """Return the options that depend on the encoder; see :class:`BackboneOptions`."""
        if self.magnify not in (None, 1):
            raise DetectorError(
                f"magnify is not for the encoder {encoder.name}, which states the size of images",
                remedy="Leave it out, or set input_px, the edge of the windows.",
            )
        update = super().for_encoder(encoder, names)
        if self.layers is not None:
            if self.embedding is not None:
                raise DetectorError(
                    "layers and embedding are both set", remedy="Leave one of them out."
                )
            return update
        embedding = self.embedding or encoder.embedding
        layers = embedding_layers(encoder, embedding)
        if embedding == "places":
            return update | {"embedding": embedding, "layers": layers}
        if "places" in self.model_fields_set and self.places != 1:
            raise DetectorError(
                f"the embedding {embedding} of {encoder.name} is one vector for a tile, and "
                f"{self.places} × {self.places} places were requested",
                remedy="Set --option embedding=places, or leave places out.",
            )
        return update | {"embedding": embedding, "layers": layers, "places": 1}

    def imported(self) -> bool:
        """Tell whether the features come from another program, without a network."""
        return self.backbone.startswith(IMPORTED)

    def for_imported(self) -> Self:
        """Return the options for imported features, which are one vector for each tile.

        Raises
        ------
        DetectorError
            An option is set that only a network can follow.
        """
        _stored.check_imported(self)
        return self.model_copy(update={"places": 1})

    def precision_on(self, device: torch.device) -> Precision:
        """Return the precision of the features on a device."""
        if self.precision != "auto":
            return self.precision
        return self.encoder.precision if self.encoder and device.type == "cuda" else "fp32"


class FeatureDetector(StoredFeatureDetector):
    """A detector that compares feature vectors of places with healthy ones.

    A subclass defines what is kept of healthy vectors (:meth:`fit_vectors`), the distance of a
    vector from it (:meth:`distance`), and how a state is loaded (:meth:`restore`).
    """

    Options: ClassVar[type[DetectorOptions]] = FeatureOptions
    options: FeatureOptions

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._backbone: BackboneFeatures | None = None
        self._fitted: dict[str, Tensor] = {}
        self._device = torch.device("cpu")
        self._about: dict[str, Any] = {}
        self._seed = 0

    @abstractmethod
    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return what is kept of healthy vectors, tensors on the CPU.

        Random draws follow ``self._seed``, the seed of the fit.
        """

    @abstractmethod
    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the anomaly scores of vectors, (N, C) to (N,), on their device."""

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Fit on the features of healthy tiles; a tile larger than the input gives a random window.

        Features that the source has are not computed again.

        Raises
        ------
        DetectorError
            The backbone or layer is unknown, the tiles are too small, or all are alike.
        WeightsError
            The backbone's weights are not on this machine.
        """
        about = self._open(context)
        vectors, count = self._sample(tiles.fit, context)
        self._fitted = _moved(self.fit_vectors(vectors), self._device)
        self._about = {
            **about,
            "layers": list(self.options.chosen_layers()),
            "tiles": count,
            "vectors": len(vectors),
            "channels": vectors.shape[1],
        }
        return FitReport(ended_by="fitted", notes=dict(self._about))

    def _open(self, context: FitContext) -> dict[str, Any]:
        """Load the network of a fit; return the facts that a run records."""
        self._device, self._seed = context.device, context.seed
        if self.options.imported():
            self.options = self.options.for_imported()
            self._set_backbone({}, "zeros")
            self._about = {"backbone": self.options.backbone, "weights": {"source": "imported"}}
            return dict(self._about)
        self.options, found = _backbone.settled(
            self.options, context, self.spec, trained=self.then_trained
        )
        return self._look_through(found)

    def _look_through(self, found: Weights) -> dict[str, Any]:
        """Load weights into the backbone; return the facts that a run records."""
        padding = features.stated_padding(found.metadata)
        source = None if found.random else found.source
        backbone = self._set_backbone(found.tensors, padding, source=source)
        self._about = _backbone.about(found, backbone, self.options, edge=self._edge())
        return dict(self._about)

    def feature_identity(self) -> dict[str, Any]:
        """Return all on which the features of a tile depend, as JSON values.

        Detectors of equal identity have equal features of a tile. The weights are identified by
        the SHA-256 of their file; for random weights, of the tensors.

        Raises
        ------
        DetectorError
            No weights have been loaded yet.
        """
        if self._backbone is None:
            raise DetectorError("the detector is not fitted yet")
        if self.options.imported():
            name = self.options.backbone.removeprefix(IMPORTED)
            return imported_identity(name, input_px=self.spec.size, input_mpp=self.spec.mpp)
        return {
            "weights_sha256": self._about.get("weights", {}).get("sha256"),
            **self._backbone.identity(),
            "l2_normalise": self.options.l2_normalise,
            "magnify": self.options.enlarged_by(),
            "input_px": int(self.spec.size),
            "input_mpp": float(self.spec.mpp),
        }

    def compute_in(self, precision: Precision) -> None:
        """Compute features in this precision from now on; see :class:`ComputesIn`."""
        if self._backbone is None or self.options.imported():
            raise DetectorError("no network computes its features", remedy="Leave precision out.")
        self._backbone.precision = precision

    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places of tiles; see :meth:`Detector.score_places`."""
        if not self._fitted:
            raise DetectorError("the detector is not fitted yet")
        edge = self._grid() if self._wanted() == "places" else 1
        scores = [np.zeros((0, edge, edge), np.float32)]
        scores += [self._scored(self._seen(part)) for part in self._parts(tiles)]
        return np.concatenate(scores)

    def embed(self, tiles: Tiles) -> Vectors:
        """Return the features of the places, averaged over each tile.

        They are the backbone's, before any projection or whitening; see :class:`Embeds`.
        """
        if self._backbone is None:
            raise DetectorError("the detector is not fitted yet")
        return in_batches(self.whole, tiles, self._device, batch=self.at_once)

    def state(self) -> State:
        """Return the used part of the backbone, if the run holds it, and the fitted tensors."""
        if self._backbone is None:
            raise DetectorError("the detector is not fitted yet")
        network = self._backbone.network.state_dict() if _backbone.carried(self._about) else {}
        tensors = {
            f"backbone.{name}": tensor.cpu().contiguous() for name, tensor in network.items()
        }
        fitted = {f"fitted.{n}": tensor.cpu().contiguous() for n, tensor in self._fitted.items()}
        padding = {"padding": self._backbone.padding}
        return State({**tensors, **fitted}, {**self._about, **padding})

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector.

        Raises
        ------
        DetectorError
            The state is not that of this detector.
        WeightsError
            The state does not hold the backbone's weights, and their file is not on this machine
            or has changed; or the backbone gives other features than at the training.
        """
        self._device = device
        found = _backbone.found_again(self.options, state.values)
        groups: dict[str, dict[str, Tensor]] = {"backbone": {}, "fitted": {}}
        try:
            self.options = _backbone.restored(self.options, state.values)
            for key, tensor in state.tensors.items():
                group, _, name = key.partition(".")
                groups[group][name] = tensor
            # Runs of before there was a choice do not state their padding.
            weights = groups["backbone"] if found is None else found.tensors
            backbone = self._set_backbone(weights, state.values.get("padding", "zeros"))
            if self.options.imported():
                blank = torch.zeros(1, int(state.values["channels"]), device=device)
                self.distance(blank, _moved(groups["fitted"], device))
            else:
                self._check_fitted(groups["fitted"])
        except (LookupError, TypeError, RuntimeError, ValueError, WsiadError) as error:
            raise DetectorError(f"the state is not that of this detector ({error})") from error
        _backbone.check_same(backbone, state.values, edge=self._edge())
        self._fitted = _moved(groups["fitted"], device)
        self._about = dict(state.values)

    def _edge(self) -> int:
        """Return the edge of the images that the backbone receives, pixels."""
        return int(self.spec.size * self.options.enlarged_by())

    def _check_fitted(self, fitted: dict[str, Tensor]) -> None:
        """Check that the fitted tensors belong to this method and these features."""
        shape = (1, self.spec.size, self.spec.size, 3)
        seen = self._seen(torch.zeros(shape, dtype=torch.uint8, device=self._device))
        self.distance(seen.flatten(0, 1) if seen.ndim == 3 else seen, _moved(fitted, self._device))

    def _set_backbone(
        self, tensors: dict[str, Tensor], padding: Padding, *, source: str | None = None
    ) -> BackboneFeatures:
        options = self.options
        if options.imported():
            self._backbone = ImportedFeatures(options.backbone)
            return self._backbone
        backbone = BackboneFeatures(
            options.backbone,
            options.chosen_layers(),
            options.places,
            tensors,
            neighbourhood=options.neighbourhood,
            padding=padding,
            contrast=options.contrast,
            arguments=options.backbone_args,
            normalisation=options.normalisation(),
            source=source,
            encoder=options.encoder,
            precision=options.precision_on(self._device),
        )
        self._backbone = backbone.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return backbone

    def _grid(self) -> int:
        """Return the edge of the grid of places."""
        return self.options.places

    def _features(self, tiles: Tensor) -> Tensor:
        """Return the vectors of all places, float32 (N · m², C), of tiles uint8 (N, S, S, 3)."""
        assert self._backbone is not None
        tiles = _enlarged(tiles, self.options.enlarged_by())
        with torch.inference_mode():
            vectors: Tensor = self._backbone(tiles.permute(0, 3, 1, 2)).flatten(0, 2)
            if self.options.l2_normalise:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors

    def _sample(self, tiles: TileSource, context: FitContext) -> tuple[Vectors, int]:
        """Return vectors drawn evenly from the places of healthy tiles, and the number of tiles."""
        options = self.options
        drawn: dict[str, Any] = {"batch": BATCH, "seed": context.seed}
        if (offer := self._offer(tiles, "places")) is not None:
            positions = sampled_positions(tiles, options.fit_tiles, **drawn)
            kept = self._drawn(len(positions), options.fit_vectors, seed=context.seed)
            return self._gathered(offer, positions, kept, quiet=context.quiet), len(positions)
        count, batches = sample(tiles, options.fit_tiles, **drawn)
        kept = self._drawn(count, options.fit_vectors, seed=context.seed)
        vectors: list[Vectors] = []
        start = 0
        with Progress("features", total=count, unit="tile", quiet=context.quiet) as progress:
            for step, part in enumerate(batches):
                found = self._features(self._windows(part, context.seed, step)).cpu().numpy()
                inside = kept[(kept >= start) & (kept < start + len(found))] - start
                vectors.append(found[inside])
                start += len(found)
                progress.update(len(part))
        return finite(np.concatenate(vectors)), count


def _enlarged(tiles: Tensor, times: float) -> Tensor:
    """Enlarge tiles, uint8 (N, S, S, 3), bilinearly; their edges are rounded down."""
    if times == 1:
        return tiles
    images = tiles.permute(0, 3, 1, 2).float()
    larger = torch.nn.functional.interpolate(images, scale_factor=times, mode="bilinear")
    return larger.round().to(torch.uint8).permute(0, 2, 3, 1)


def _moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
