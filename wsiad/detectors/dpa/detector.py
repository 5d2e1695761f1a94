"""Deep Perceptual Autoencoder: what it cannot reconstruct, in VGG19's eyes, is strange."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from wsiad.detector import (
    Detector,
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
from wsiad.detectors.dpa.options import DpaOptions
from wsiad.errors import DetectorError, WsiadError
from wsiad.networks import vgg, weights
from wsiad.networks.autoencoder import Autoencoder, seeded_autoencoder
from wsiad.networks.perceptual import ChannelStatistics, RelativePerceptualL1, channel_statistics
from wsiad.training.crops import check_size, on_device, random_crops
from wsiad.training.loop import Training
from wsiad.training.sampling import sample

_SCORE_BATCH = 256
_STATISTICS_BATCH = 128
_STATISTICS_STREAM = 1 << 32  # keeps its draws apart from those of the training


class DeepPerceptualAutoencoder(Detector):
    """An autoencoder trained and judged by the relative perceptual L1 distance.

    Trained to reconstruct healthy windows; the anomaly score of a tile is the distance
    between it and its reconstruction. Its places are those of the coarsest perceptual
    layer (8 × 8 at 64 px and ``relu4_2``); with ``pooling: mean`` the score of the tile
    is the published one.

    Notes
    -----
    Shvetsova et al., "Anomaly Detection in Medical Imaging with Deep Perceptual
    Autoencoders", IEEE Access 2021 (arXiv 2006.13265), without progressive growing.
    """

    Options: ClassVar[type[DetectorOptions]] = DpaOptions
    default_input_px: ClassVar[int | None] = 64
    options: DpaOptions

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._shape = self.options.shape(spec.size)
        self._autoencoder: Autoencoder | None = None
        self._distance: RelativePerceptualL1 | None = None
        self._device = torch.device("cpu")
        self._about: dict[str, Any] = {}

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of the tiles; see :class:`~wsiad.training.loop.Training`.

        Raises
        ------
        DetectorError
            The tiles are too small, or the training diverged.
        WeightsError
            The perceptual network's weights are not at hand.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        options, self._device = self.options, context.device
        found = weights.resolve(
            context.weights, model="vgg19", random_tensors=lambda: vgg.random_tensors(context.seed)
        )
        padding = _padding(options, found)
        network = vgg.Vgg19(found.tensors, list(options.layers), padding=padding)
        network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        statistics, source = self._statistics(network, tiles.fit, context.seed)
        self._about = {"weights": found.note(), "padding": padding, "statistics": source}
        self._build(seeded_autoencoder(self._shape, context.seed), network, statistics)
        training = Training(
            self._module(),
            self._loss,
            tiles=tiles,
            size=self.spec.size,
            options=options,
            context=context,
            identity={"weights": found.sha256, "padding": padding, "statistics": source},
            started=started,
        )
        distance = self._fitted_distance()
        distance.bf16 = options.precision != "fp32"
        result = training.run()
        distance.bf16 = False  # scores should depend on the device as little as can be
        notes = {
            **self._about,
            "parameters": sum(p.numel() for p in self._module().parameters()),
            "best_step": result.best_step,
            "best_stop_loss": result.best_loss,
            "training_seconds": round(result.seconds, 1),
        }
        return FitReport(ended_by=result.ended_by, steps=result.steps, notes=notes)

    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places of tiles; see :meth:`Detector.score_places`."""
        autoencoder, distance = self._module(), self._fitted_distance()
        scores = []
        with torch.inference_mode():
            for start in range(0, len(tiles), _SCORE_BATCH):
                x = _images(on_device(tiles[start : start + _SCORE_BATCH], self._device))
                scores.append(distance.places(x, autoencoder(x)).cpu().numpy())
        return np.concatenate(scores) if scores else np.zeros((0, 1, 1), np.float32)

    def state(self) -> State:
        """Return the autoencoder, the used part of the perceptual network, its statistics."""
        distance = self._fitted_distance()
        named = {
            "autoencoder": self._module().state_dict(),
            "perceptual": distance.network.state_dict(),
        }
        for layer, values in distance.statistics.items():
            named[f"statistics.{layer}"] = {"mean": values.mean, "std": values.std}
        tensors = {
            f"{group}.{name}": tensor.detach().cpu().contiguous()
            for group, of_group in named.items()
            for name, tensor in of_group.items()
        }
        return State(tensors, dict(self._about))

    def load_state(self, state: State, device: torch.device) -> None:
        """Become the detector whose state this is."""
        self._device = device
        try:
            network = vgg.Vgg19(
                _group(state, "perceptual"),
                list(self.options.layers),
                padding=state.values["padding"],
            )
            statistics = {
                layer: ChannelStatistics(**_group(state, f"statistics.{layer}"))
                for layer in self.options.layers
            }
            autoencoder = Autoencoder(self._shape)
            autoencoder.load_state_dict(_group(state, "autoencoder"))
        except (KeyError, TypeError, RuntimeError, WsiadError) as error:
            raise DetectorError(f"the state is not that of this detector ({error})") from error
        self._about = dict(state.values)
        self._build(autoencoder, network, statistics)

    def _build(
        self,
        autoencoder: Autoencoder,
        network: vgg.Vgg19,
        statistics: dict[str, ChannelStatistics],
    ) -> None:
        distance = RelativePerceptualL1(
            network, statistics, self.options.layers, relative=self.options.relative
        )
        for module in (autoencoder, distance):
            module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._autoencoder, self._distance = autoencoder, distance

    def _loss(self, windows: Tensor) -> Tensor:
        x = _images(windows)
        distance: Tensor = self._fitted_distance()(x, self._module()(x))
        return distance

    def _statistics(
        self, network: vgg.Vgg19, tiles: TileSource, seed: int
    ) -> tuple[dict[str, ChannelStatistics], str]:
        if path := self.options.statistics_file:
            return _read_statistics(path.read_text(encoding="utf-8"), self.options), str(path)
        count, batches = sample(
            tiles, self.options.statistics_tiles, batch=_STATISTICS_BATCH, seed=seed
        )

        def images() -> Iterator[Tensor]:
            for index, part in enumerate(batches):
                windows = random_crops(
                    on_device(part, self._device),
                    self.spec.size,
                    seed=seed,
                    step=_STATISTICS_STREAM + index,
                )
                yield windows.permute(0, 3, 1, 2).float() / 255

        return channel_statistics(network, images()), f"{count} healthy tiles"

    def _module(self) -> Autoencoder:
        if self._autoencoder is None:
            raise DetectorError("is not fitted yet", subject="dpa")
        return self._autoencoder

    def _fitted_distance(self) -> RelativePerceptualL1:
        if self._distance is None:
            raise DetectorError("is not fitted yet", subject="dpa")
        return self._distance


def _images(windows: Tensor) -> Tensor:
    """Turn windows, uint8 (N, S, S, 3), into images (N, 3, S, S) in [−1, 1], channels last."""
    return windows.permute(0, 3, 1, 2).float() / 127.5 - 1


def _padding(options: DpaOptions, found: weights.Weights) -> vgg.Padding:
    stated = options.padding or found.metadata.get("padding", "zeros")
    if stated not in ("zeros", "reflect"):
        raise DetectorError(
            f"the weights state the unknown padding {stated!r}",
            subject=found.source,
            remedy="Set padding to zeros or reflect.",
        )
    return cast(vgg.Padding, stated)


def _group(state: State, prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): t for k, t in state.tensors.items() if k.startswith(start)}


def _read_statistics(text: str, options: DpaOptions) -> dict[str, ChannelStatistics]:
    try:
        values = json.loads(text)
        return {
            layer: ChannelStatistics(
                torch.tensor(values[layer]["mean"], dtype=torch.float32),
                torch.tensor(values[layer]["std"], dtype=torch.float32),
            )
            for layer in options.layers
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DetectorError(
            f"no statistics of the layers {', '.join(options.layers)} ({error!r})",
            subject=str(options.statistics_file),
            remedy='Give JSON: {"relu4_2": {"mean": [...], "std": [...]}}.',
        ) from error
