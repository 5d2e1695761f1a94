"""One-class classifiers on frozen features: against noise, compact, beyond a hyperplane."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.core.labels import LabelsOf
from wsiad.detectors._features import TWO_DEPTHS, DefaultLayers, FeatureDetector, FeatureOptions
from wsiad.detectors._stored import BATCH, Vectors, finite
from wsiad.detectors._trained import images
from wsiad.learning.batches import centre_crops, on_device, sample
from wsiad.learning.contrastive import checksum
from wsiad.learning.detector import (
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    TileSource,
)
from wsiad.learning.devices import drawing
from wsiad.learning.training_options import LearningRate
from wsiad.learning.training_progress import TrainingProgress
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.one_class_heads import (
    AscentHead,
    CompactHead,
    Head,
    HyperplaneHead,
    NoiseHead,
    NoisyFeatureHead,
    References,
)
from wsiad.networks.synthetic_anomalies import textured

_DRAWN = 1 << 32  # keeps the draws of the noise apart from those of the weights
_PREFIX = "network."
_CLASSES = "out.weight"  # of the compact head, whose rows are the reference classes
_NOISE = {"noise": 0.01, "feature-noise": 0.015, "ascent": 0.015}
_OF_OBJECTIVES = {
    ("noise", "feature-noise", "ascent"): ("noise",),
    ("hyperplane", "feature-noise", "ascent"): ("hidden",),
    ("feature-noise",): ("margin",),
    ("ascent",): ("ascent_steps", "around", "radius", "radius_quantile"),
    ("hyperplane",): ("nu",),
    ("compact",): ("compactness", "templates"),
}
"""Options that do nothing with other objectives."""

_OPACITY = (0.2, 0.8)  # of what is blended into tiles, for ascent
_LOCAL = 1 << 33  # keeps the windows of changed tiles apart from the others

_Count = Annotated[int, pydantic.Field(ge=1)]
_Positive = Annotated[float, pydantic.Field(gt=0)]


class OneClassOptions(FeatureOptions):
    """Options of ``one-class``."""

    objective: Literal["noise", "compact", "hyperplane", "feature-noise", "ascent"] = (
        "feature-noise"
    )
    """Objective: tell healthy features from noise around 0 (noise: OC-CNN), from the same with
    noise (feature-noise: SimpleNet), or with noise that gradient ascent makes harder and from
    those of changed tiles (ascent: GLASS); keep them compact while reference classes are
    distinguished (compact: DOC), or keep them beyond a hyperplane (hyperplane: OC-NN)."""
    layers: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] | None = None
    """Modules whose output is used, concatenated. Default: the ends of SqueezeNet's first two
    resolutions, of the equally coarse ones of a VGG19, or ``layer2`` and ``layer3`` of a
    ResNet."""
    noise: _Positive | None = None
    """Standard deviation of the noise. Default: 0.01 for ``noise``, 0.015 for
    ``feature-noise`` and ``ascent``."""
    hidden: _Count = 1_024
    """Units of the hidden layer, for ``hyperplane``, ``feature-noise`` and ``ascent``."""
    margin: _Positive = 0.5
    """Margin of ``feature-noise``: the output that healthy features must exceed."""
    ascent_steps: Annotated[int, pydantic.Field(ge=0)] = 20
    """Number of steps of gradient ascent, for ``ascent``."""
    around: Literal["features", "centre"] = "features"
    """Origin from which ``ascent`` limits the distance of noise: the healthy feature (published
    for a manifold of them), or the centre of all (for a hypersphere)."""
    radius: _Positive = 0.5
    """Distance r of noise from the healthy feature, which is limited to r to 2 r."""
    radius_quantile: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.75
    """Quantile of the distances of healthy features from the centre that is r there."""
    nu: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1
    """Share of healthy vectors on the wrong side of the hyperplane."""
    compactness: _Positive = 0.1
    """Weight of the compactness, for ``compact``."""
    templates: _Count = 40
    """Number of healthy vectors to the nearest of which ``compact`` measures the distance."""
    steps: _Count = 1_000
    """Number of optimiser steps; the run's ``--max-steps`` can set a smaller limit."""
    batch: Annotated[int, pydantic.Field(ge=2)] = 64
    """Number of healthy vectors in a step, and of noisy or reference ones."""
    learning_rate: LearningRate = 1e-4
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Weight of the squared weights in the loss."""

    default_layers: ClassVar[DefaultLayers] = TWO_DEPTHS

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        objective = f"objective: {self.objective}"
        uses = {
            name: (self.objective in objectives, objective)
            for objectives, names in _OF_OBJECTIVES.items()
            for name in names
        }
        if self.objective == "ascent":
            around = f"around: {self.around}"
            uses["radius"] = (self.around == "features", around)
            uses["radius_quantile"] = (self.around == "centre", around)
        return super().uses() | uses


class OneClass(FeatureDetector):
    """Score of a small network that learns healthy features as one class.

    ``noise``: a linear layer that begins as the identity, each output normalised by itself, then
    ReLU and a linear classifier against draws of N(0, σ²); the score is the log odds of noise.
    ``compact``: the cross-entropy of labelled reference tiles plus λ times the compactness of
    healthy features; the score is the distance to the nearest of some healthy templates.
    ``hyperplane``: ½|w|² + ½|V|² + mean max(0, r − ŷ) / ν − r with ŷ = w · g(V x), g the sigmoid,
    of features scaled by one number; r is the quantile ν of ŷ over all healthy vectors, set again
    after each pass through them and at the end. The score is r − ŷ.
    ``feature-noise``: a linear adapter and a discriminator, trained by the hinge loss to tell
    adapted features from the same with noise; the score is its negative output.
    ``ascent``: the same by cross-entropy, with noise that gradient ascent makes harder, and with
    features of tiles into which other healthy tiles were blended, at places that were changed or
    not; the score is the log odds of strange.

    The network that makes the features is frozen. The vectors of all places are held in memory
    and the small network is trained on them, so a fit that was killed begins again and ends
    alike.

    Notes
    -----
    OC-CNN: Oza & Patel, *One-Class Convolutional Neural Network*, IEEE SPL 2019 (arXiv
    1901.08688); the fully connected part of its network is the linear layer here. DOC: Perera &
    Patel, *Learning Deep Features for One-Class Classification*, IEEE TIP 2019 (arXiv
    1801.05365), whose last convolutions are trained as well; the 40 templates are those of its
    authors' code. OC-NN: Chalapathy, Menon & Chawla, *Anomaly Detection using One-Class Neural
    Networks*, 2018 (arXiv 1802.06360), from general knowledge. SimpleNet: Liu, Zhou, Xu & Wang,
    CVPR 2023 (arXiv 2303.15140). GLASS: Chen, Luo, Lv & Zhang, ECCV 2024 (arXiv 2407.09359),
    whose blended textures are photographs (DTD), which do not come with wsiad.
    """

    Options: ClassVar[type[DetectorOptions]] = OneClassOptions
    options: OneClassOptions
    labels_for: ClassVar[str] = "objective: compact"
    labels_of: ClassVar[LabelsOf] = "reference"

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._context: FitContext | None = None
        self._tiles: TileSource | None = None
        self._ended: tuple[int, str] = (0, "fitted")

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the small network on the features of healthy tiles.

        Raises
        ------
        DetectorError
            The backbone or layer is unknown, the tiles are too small or too few, ``compact`` has
            no two reference classes, or the training diverged.
        WeightsError
            The backbone's weights are not on this machine.
        """
        if self.options.objective == "compact":
            self._check_references(context)
        if self.options.objective == "ascent" and self.options.imported():
            raise DetectorError(
                "the objective ascent changes tiles, and imported features have no pixels",
                remedy="Choose --option objective=feature-noise, or a backbone.",
            )
        self._context, self._tiles = context, tiles.fit
        try:
            report = super().fit(tiles, context)
        finally:
            self._context = self._tiles = None
        steps, ended_by = self._ended
        return FitReport(ended_by=ended_by, steps=steps, notes=report.notes)

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the tensors of the trained network."""
        references = self._references()
        healthy = torch.from_numpy(finite(vectors)).to(self._device)
        if len(healthy) < 2:
            raise DetectorError("one-class needs the features of two places at least")
        compact = self.options.objective == "compact" and references is not None
        classes = 1 + int(references.classes.max()) if references and compact else 0
        with drawing_weights(self._seed):
            head = self._head(healthy.shape[1], classes)
        head.to(self._device)
        if isinstance(head, HyperplaneHead):
            head.rescale(healthy)
        self._ended = self._train(head, healthy, references)
        head.settle(healthy)
        return {_PREFIX + name: tensor.cpu() for name, tensor in head.state_dict().items()}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the scores of vectors; see :meth:`Head.forward`."""
        tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in fitted.items()}
        classes = len(tensors[_CLASSES]) if self.options.objective == "compact" else 0
        with torch.device("meta"):
            head = self._head(vectors.shape[1], classes).eval()
        for name, own in head.state_dict().items():
            if tensors[name].shape != own.shape:
                raise DetectorError(f"{name} has another shape")
        with torch.inference_mode():
            found: Tensor = functional_call(head, tensors, (vectors,), strict=True)
        return found

    def _head(self, channels: int, classes: int) -> Head:
        options = self.options
        noise = options.noise or _NOISE.get(options.objective, 0.0)
        match options.objective:
            case "noise":
                return NoiseHead(channels, deviation=noise)
            case "compact":
                return CompactHead(
                    channels, classes, weight=options.compactness, templates=options.templates
                )
            case "hyperplane":
                return HyperplaneHead(channels, options.hidden, nu=options.nu)
            case "ascent":
                return AscentHead(
                    channels,
                    options.hidden,
                    deviation=noise,
                    steps=options.ascent_steps,
                    radius=options.radius,
                    quantile=options.radius_quantile if options.around == "centre" else None,
                )
            case "feature-noise":
                return NoisyFeatureHead(
                    channels, options.hidden, deviation=noise, margin=options.margin
                )

    def _local(self) -> References | None:
        """Return vectors of healthy tiles with changed areas: class 1 where a place is changed."""
        options, context = self.options, self._context
        if context is None or self._tiles is None:
            return None
        most = min(options.fit_tiles, -(-options.fit_vectors // self._grid() ** 2))
        vectors, changed = [], []
        _, batches = sample(self._tiles, most, batch=BATCH, seed=context.seed)
        for step, part in enumerate(batches):
            windows = self._windows(part, context.seed, _LOCAL + step)
            generator = torch.Generator().manual_seed(checksum(windows))
            blended, mask = textured(images(windows), generator, share=1, opacity=_OPACITY)
            found = (blended * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            vectors.append(self._features(found))
            at = functional.adaptive_max_pool2d(mask[:, None].float(), self._grid())
            changed.append(at.flatten().long())
        return References(torch.cat(vectors).clone(), torch.cat(changed))

    def _train(self, head: Head, healthy: Tensor, references: References | None) -> tuple[int, str]:
        """Train in memory; return the number of steps and why they ended."""
        options, context = self.options, self._context
        budget = context.budget if context else None
        limit = min(options.steps, (budget and budget.max_steps) or options.steps)
        end = time.monotonic() + 60 * ((budget and budget.max_minutes) or float("inf"))
        groups = [
            {
                "params": [parameter],
                "lr": options.learning_rate * head.factors.get(name.partition(".")[0], 1.0),
            }
            for name, parameter in head.named_parameters()
        ]
        optimiser = torch.optim.Adam(groups, weight_decay=options.weight_decay)
        batch = min(options.batch, len(healthy))
        each_pass = max(1, len(healthy) // batch)
        quiet = context is None or context.quiet
        head.train()
        with TrainingProgress(limit, budget=budget, quiet=quiet) as progress:
            for step in range(limit):
                if step and time.monotonic() > end:
                    head.eval()
                    return step, "max-minutes"
                if step % each_pass == 0:
                    head.settle(healthy)
                rng = np.random.default_rng([self._seed, _DRAWN, step])
                with drawing(self._device, self._seed, _DRAWN, step):
                    loss = head.loss(
                        healthy[_rows(rng, len(healthy), batch)],
                        _drawn(references, rng, batch),
                    )
                if not bool(torch.isfinite(loss)):
                    raise DetectorError(
                        f"the loss is not finite at step {step}",
                        remedy="Set a smaller learning_rate.",
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                progress.took(loss=float(loss.detach()))
        head.eval()
        return limit, "max-steps"

    def _check_references(self, context: FitContext) -> None:
        """Check that there are labelled tiles of two classes at least."""
        types = context.anomalies.types if context.anomalies else ()
        if len(types) < 2:
            raise DetectorError(
                "the objective compact needs a labelled reference set of two classes at least, and "
                f"there {'is one' if len(types) == 1 else 'is none'}",
                remedy="Pass a store of other labelled tissue with --anomalies; each label is a "
                "class.",
            )

    def _references(self) -> References | None:
        """Return vectors of labelled tiles, for ``compact``, or of changed ones, for ``ascent``."""
        context = self._context
        if self.options.objective == "ascent":
            return self._local()
        if self.options.objective != "compact" or context is None or context.anomalies is None:
            return None
        vectors, classes = [], []
        for number, kind in enumerate(context.anomalies.types):
            offer = self._offer(kind.tiles, "places")
            found = (
                [part.flatten(0, 1).to(self._device) for part in offer.batches(BATCH)]
                if offer
                else [
                    self._features(centre_crops(on_device(part, self._device), self.spec.size))
                    for part in kind.tiles.ordered(self.at_once)
                ]
            )
            vectors += found
            classes += [number] * sum(len(part) for part in found)
        return References(torch.cat(vectors).clone(), torch.tensor(classes, device=self._device))


def _rows(rng: np.random.Generator, total: int, count: int) -> Tensor:
    return torch.from_numpy(rng.choice(total, count, replace=False))


def _drawn(
    references: References | None, rng: np.random.Generator, count: int
) -> References | None:
    """Draw a batch of references, with equal chances for all classes."""
    if references is None:
        return None
    numbers = references.classes.cpu().numpy()
    share = 1 / np.bincount(numbers)[numbers]
    chosen = torch.from_numpy(rng.choice(len(numbers), count, p=share / share.sum()))
    return References(references.vectors[chosen], references.classes[chosen])
