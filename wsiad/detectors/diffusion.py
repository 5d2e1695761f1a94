"""Diffusion: noise is added to a tile, and a network that knows healthy tissue removes it again."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.detectors._perceptual import PerceptualOptions, fitted_distances, restored_distance
from wsiad.detectors._reconstructing import RestoringDetector
from wsiad.detectors._trained import SCORE_BATCH, TrainedOptions, images
from wsiad.learning.batches import centre_crops, check_size, on_device, sample
from wsiad.learning.checkpoint import Recipe, Update, descend
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
from wsiad.learning.training_options import BatchSize, LearningRate
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.denoiser import Denoiser, NoiseSchedule
from wsiad.networks.image_distances import dissimilarity, squared
from wsiad.networks.perceptual import RelativePerceptualL1
from wsiad.networks.simplex_noise import simplex_images

_STREAM = 0xD1FF
_HELD_OUT, _SCORING = 1 << 40, 1 << 41  # in place of the number of a step
_PLACES = 8
_COMPARED_TILES = 256
_LEAST_SPREAD = 1e-12
_Count = Annotated[int, pydantic.Field(ge=1)]
_Start = Annotated[int, pydantic.Field(ge=0)]


class DiffusionOptions(PerceptualOptions, TrainedOptions):
    """Options of ``diffusion``."""

    noise: Literal["gauss", "simplex"] = "gauss"
    """Noise that is added: of single pixels, or simplex noise, which has structures."""
    frequency: Annotated[float, pydantic.Field(gt=0, le=0.5)] = 2**-6
    """Frequency of the first octave of simplex noise, 1/px."""
    octaves: Annotated[int, pydantic.Field(ge=1, le=12)] = 6
    """Number of octaves of simplex noise, each of twice the frequency of the one before."""
    decay: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.8
    """Amplitude of an octave of simplex noise, relative to the one before."""
    time_steps: Annotated[int, pydantic.Field(ge=2, le=10_000)] = 1_000
    """Number of time steps of the complete diffusion, over which β rises from 1e-4 to 0.02."""
    start: Annotated[tuple[_Start, ...], pydantic.Field(min_length=1)] = (250,)
    """Time steps from which a tile is denoised when it is scored; the scores are combined. 0 adds
    no noise."""
    steps: _Count = 25
    """Number of steps in which the noise of a score is removed, for each start."""
    combine: Literal["mean", "standardised"] = "mean"
    """Combine several starts by the mean of their scores, or of the scores in deviations from the
    mean over held-out healthy tiles."""
    score: Literal["l2", "perceptual", "ssim"] = "l2"
    """Difference of a tile from what the network makes of it: of squared pixels, of the features
    of the perceptual network, or structural."""
    widths: Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)] = (64, 128, 256)
    """Number of channels of the network at each resolution; the tile is halved from one to the
    next. The first is even, 4 or more."""
    blocks: _Count = 2
    """Number of residual blocks of the network at each resolution."""
    attention_px: tuple[_Count, ...] = (16,)
    """Edges of the features, pixels, at which the network has attention; it always has some at the
    smallest."""
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of activations that are left out in training."""
    batch: BatchSize = 32
    learning_rate: LearningRate = 1e-4
    ema_decay: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = 0.999
    """Decay in a step of a running average of the weights, which is then validated and kept."""
    grad_clip: Annotated[float, pydantic.Field(gt=0)] | None = 1.0
    """Maximum norm of the gradient; larger ones are scaled down."""

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"steps"}

    @pydantic.model_validator(mode="after")
    def _starts_exist(self) -> Self:
        if max(self.start) > self.time_steps:
            raise ValueError(f"`start` {max(self.start)} is after the last of `time_steps`")
        if len(set(self.start)) != len(self.start):
            raise ValueError("`start` names a time step twice")
        if self.combine == "standardised" and 0 in self.start:
            raise ValueError("the score of `start` 0 is 0 and has no deviation: leave it out")
        return self

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        simplex = (self.noise == "simplex", f"noise: {self.noise}")
        perceptual = (self.score == "perceptual", f"score: {self.score}")
        return {
            **super().uses(),
            **dict.fromkeys(("frequency", "octaves", "decay"), simplex),
            **dict.fromkeys(PerceptualOptions.model_fields, perceptual),
        }


class Denoising(nn.Module):
    """A network that removes noise, the noise of scores, and the distance that judges the result.

    Parameters
    ----------
    network : Denoiser
    noise : Tensor, float32 (3, S, S)
        Noise that is added to every tile that is scored.
    starts : int
        Number of starts.
    distance : RelativePerceptualL1 or None
    """

    def __init__(
        self,
        network: Denoiser,
        noise: Tensor,
        starts: int,
        distance: RelativePerceptualL1 | None,
    ) -> None:
        super().__init__()
        self.network, self.distance = network, distance
        self.noise: Tensor
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("noise", noise)
        self.register_buffer("mean", torch.zeros(starts))
        self.register_buffer("spread", torch.ones(starts))


class Diffusion(RestoringDetector):
    """Difference of a tile from what is left of it after noise was added and removed again.

    A U-Net learns to predict the noise in healthy tiles at random time steps of a diffusion. To
    score a tile, noise is added as at time step ``start`` and removed in ``steps`` predictions
    without further draws. What the network does not know from healthy tissue, it replaces. The
    noise of scores is one image for all tiles, drawn by the seed of the fit, so a tile's score
    depends on nothing else.

    Notes
    -----
    AnoDDPM: Wyatt, Leach, Schmon & Willcocks, CVPR Workshops 2022 (simplex noise). On pathology:
    Linmans, Raya, van der Laak & Litjens, *Diffusion models for out-of-distribution detection in
    digital pathology*, Medical Image Analysis 2024 (several signal-to-noise ratios). Diffusion:
    Ho, Jain & Abbeel 2020; steps without draws: Song, Meng & Ermon 2021. Settings of AnoDDPM
    are those of its authors' code, those of Linmans et al. from general knowledge of the paper.
    """

    Options: ClassVar[type[DetectorOptions]] = DiffusionOptions
    default_input_px: ClassVar[int | None] = 64
    network_for: ClassVar[str] = "perceptual"
    """Score without which no pretrained network is needed."""
    options: DiffusionOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of the tiles; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The tiles are too small, sizes do not fit, or the training diverged.
        WeightsError
            The perceptual network's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        options, self._device = self.options, context.device
        distance, self._about, identity = None, {}, {}
        if options.score == "perceptual":
            size = self.spec.size
            found = fitted_distances(options, tiles.fit, context, size=size)
            distance, self._about, identity = found.by_px[size], found.about, found.identity
        whole = self._placed(
            Denoising(
                self._denoiser(context.seed),
                self._score_noise(context.seed),
                len(options.start),
                distance,
            )
        )
        self._network = whole

        def loss(windows: Tensor) -> Tensor:
            return self._losses(whole.network, windows, (context.seed, _HELD_OUT))

        result = self._train(
            whole.network,
            loss,
            tiles=tiles,
            context=context,
            identity=identity,
            recipe=Recipe(update=self._update(whole.network, context.seed)),
            started=started,
        )
        if options.combine == "standardised":
            self._standardise(whole, tiles.stop, context.seed)
        return self._report(result, whole.network)

    def places(self, images: Tensor) -> Tensor:
        """Return the difference at each place, combined over the starts."""
        whole, x = self._whole(), images * 2 - 1
        total = torch.zeros((), device=x.device)
        for number, start in enumerate(self.options.start):
            found = self._difference(whole, x, start)
            total = total + (found - whole.mean[number]) / whole.spread[number]
        return total / len(self.options.start)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the innermost features of the first prediction from the earliest start, averaged.

        They are of the tile with the noise of scores, which is one for all tiles.
        """
        whole, start = self._whole(), min(self.options.start)

        def embedded(x: Tensor) -> Tensor:
            noisy, at = self._noisy(whole, x * 2 - 1, start)
            return whole.network.innermost(noisy, at).mean(dim=(2, 3))

        return self.embed_images(embedded, tiles)

    def restored(self, x: Tensor) -> Tensor:
        """Return images after noise of the latest start was added and removed."""
        return self._denoised(self._whole(), x, max(self.options.start))

    def empty(self, state: State) -> nn.Module:
        """Return an untrained network, with the perceptual one if the score is of that."""
        options, size = self.options, self.spec.size
        distance = (
            restored_distance(options, state, "distance", size=size)
            if options.score == "perceptual"
            else None
        )
        noise = torch.zeros(3, size, size)
        return Denoising(self._denoiser(0), noise, len(options.start), distance)

    def _whole(self) -> Denoising:
        return self.network_as(Denoising).eval()

    def _schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.options.time_steps)

    def _denoiser(self, seed: int) -> Denoiser:
        options = self.options
        with drawing_weights(seed):
            return Denoiser(
                self.spec.size,
                options.widths,
                blocks=options.blocks,
                attention_px=options.attention_px,
                dropout=options.dropout,
            )

    def _noise(self, count: int, rng: np.random.Generator) -> Tensor:
        """Return noise for images, float32 (N, 3, S, S), on the device."""
        options, size = self.options, self.spec.size
        if options.noise == "gauss":
            drawn = rng.standard_normal((count, 3, size, size), np.float32)
            return torch.from_numpy(drawn).to(self._device)
        return simplex_images(
            (count, 3, size, size),
            rng,
            frequency=options.frequency,
            octaves=options.octaves,
            decay=options.decay,
            device=self._device,
        )

    def _score_noise(self, seed: int) -> Tensor:
        return self._noise(1, np.random.default_rng([seed, _STREAM, _SCORING]))[0]

    def _losses(self, network: nn.Module, windows: Tensor, draw: tuple[int, int]) -> Tensor:
        """Return the squared error of the predicted noise of each window; seed and step draw."""
        seed, step = draw
        rng = np.random.default_rng([seed, _STREAM, step])
        x = images(windows) * 2 - 1
        times = torch.from_numpy(rng.integers(1, self.options.time_steps + 1, len(x)))
        noise, times = self._noise(len(x), rng), times.to(x.device)
        found = network(self._schedule().noisy(x, noise, times), times)
        return (found - noise).square().mean(dim=(1, 2, 3))

    def _update(self, network: nn.Module, seed: int) -> Update:
        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            with torch.random.fork_rng(devices=[]):  # of dropout
                torch.manual_seed(seed + step)
                loss = self._losses(network, windows, (seed, step)).mean()
            descend(optimiser, loss, clip=self.options.grad_clip)
            return loss

        return update

    def _noisy(self, whole: Denoising, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return images with the noise of scores at a start, and the time step of each, (N,)."""
        at = torch.full((len(x),), start, device=x.device)
        return self._schedule().noisy(x, whole.noise.expand_as(x), at), at

    def _denoised(self, whole: Denoising, x: Tensor, start: int) -> Tensor:
        noisy, _ = self._noisy(whole, x, start)
        return self._schedule().denoised(whole.network, noisy, start, steps=self.options.steps)

    def _difference(self, whole: Denoising, x: Tensor, start: int) -> Tensor:
        """Return the difference of images in [−1, 1] at each place, (N, m, m)."""
        made = self._denoised(whole, x, start)
        if whole.distance is not None:
            found: Tensor = whole.distance.places(x, made)
            return found
        pixels = squared(x, made) if self.options.score == "l2" else dissimilarity(x, made)
        edge = np.gcd(_PLACES, x.shape[-1]).item()
        return nn.functional.adaptive_avg_pool2d(pixels[:, None], edge)[:, 0]

    @torch.no_grad()
    def _standardise(self, whole: Denoising, tiles: TileSource, seed: int) -> None:
        """Set mean and deviation of each start's score over held-out healthy tiles.

        Raises
        ------
        DetectorError
            The scores of a start are all alike.
        """
        whole.eval()
        count, batches = sample(tiles, _COMPARED_TILES, batch=SCORE_BATCH, seed=seed)
        found: list[Tensor] = []
        for part in batches:
            windows = centre_crops(on_device(part, self._device), self.spec.size)
            x = images(windows) * 2 - 1
            starts = [self._difference(whole, x, t).mean(dim=(1, 2)) for t in self.options.start]
            found.append(torch.stack(starts, dim=1))
        scores = torch.cat(found)
        whole.mean.copy_(scores.mean(dim=0))
        spread = scores.std(dim=0, correction=0)
        if not bool((spread > _LEAST_SPREAD).all()):
            raise DetectorError(
                f"{count} held-out healthy tiles have the same score, which cannot be standardised",
                remedy="Set combine to mean.",
            )
        whole.spread.copy_(spread)
