"""Options of the detector ``gan``; the defaults are f-AnoGAN."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from wsiad.detectors._trained import TrainedOptions
from wsiad.learning.game_losses import GameOptions, PlayerOptions
from wsiad.learning.training_options import BatchSize, LearningRate, MaxSteps
from wsiad.networks.stack_options import StackOptions
from wsiad.networks.stack_shape import Norm

_Count = Annotated[int, pydantic.Field(ge=1)]
_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]

Part = Literal["pixels", "features", "critic", "code-critic", "code"]
Parts = Part | Annotated[dict[Part, _Positive], pydantic.Field(min_length=1)]


def residual_levels(norm: Norm) -> StackOptions:
    """Return the levels of f-AnoGAN's networks, of 64 channels at the image's resolution."""
    return StackOptions(
        widths=(128, 256, 512, 512),
        kernel=3,
        residual=True,
        stem=64,
        norm=norm,
        output="tanh",
        out_kernel=3,
        initial="kaiming",
    )


class GanOptions(TrainedOptions):
    """Options of ``gan``."""

    inversion: Literal["descent", "encoder", "joint", "simultaneous"] = "encoder"
    """Way from a tile to its code: a descent for each tile (AnoGAN), an encoder that is trained
    after the generator (f-AnoGAN), one that plays the game with it (``joint``), or one that learns
    at the same time and leaves the game alone."""
    joint: Literal["bigan", "alad", "alpha"] = "bigan"
    """Game for ``inversion: joint``: one critic of pairs of image and code; that one, with critics
    of reconstructed images and codes next to the originals; or critics of images and of codes
    with an absolute difference of pixels (α-GAN)."""
    encoder_loss: Literal["izif", "izi", "ziz"] = "izif"
    """Loss of the encoder, for ``inversion: encoder``: squared difference of images and of the
    critic's features, of images alone, or of drawn codes."""
    feature_weight: _NotNegative = 1.0
    """Weight of the critic's features in ``encoder_loss: izif``."""
    encoder_bound: _Positive | None = 1.0
    """Bound of the code, which is this times a tanh, for ``inversion: encoder``; ``null`` for no
    bound."""
    encoder_learning_rate: _Positive = 5e-5
    """Learning rate of the RMSProp of the encoder, for ``inversion: encoder``."""
    reconstruction_weight: _NotNegative = 40.0
    """Weight of the mean of |x − G(E(x))|, for ``joint: alpha``."""
    prior: Literal["gaussian", "uniform"] = "gaussian"
    """Law of the codes that are drawn: N(0, 1), or uniform in (−1, 1)."""
    latent_channels: _Count = 128
    """Length of the code."""
    game: GameOptions = GameOptions()
    """Loss of the game: ``wasserstein-gp`` as in WGAN-GP, ``bce`` as in DCGAN, …"""
    critic: PlayerOptions = PlayerOptions(learning_rate=1e-4, betas=(0.0, 0.9), updates=5)
    """Training of the critics. Each of their updates in a step sees other tiles."""
    network: StackOptions = residual_levels("batch")
    """Levels of the generator, from the image to the code."""
    critic_network: StackOptions = residual_levels("layer")
    """Levels of the critic of images, or of the part that sees the image in a critic of pairs."""
    encoder_network: StackOptions = residual_levels("batch")
    """Levels of the encoder."""
    pair_network: StackOptions = StackOptions(
        widths=(64, 128), kernel=5, norm="none", activation="leaky", dropout=0.2
    )
    """Levels of the critic of an image next to its reconstruction, for ``joint: alad``."""
    code_widths: tuple[_Count, ...] = (512,)
    """Widths of the layers that see the code in a critic of pairs of image and code."""
    pair_widths: Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)] = (1024,)
    """Widths of the layers that see both in a critic of pairs of image and code."""
    latent_critic_widths: tuple[_Count, ...] = (64, 32)
    """Widths of the hidden layers of a critic of codes, for ``joint: alad`` and ``alpha``."""
    critic_dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of values that are dropped after each dense layer of the critics in training."""
    spectral: bool = False
    """Use spectral normalisation in all layers of encoder and critics but their last ones."""
    score: Parts = pydantic.Field(default={"pixels": 1.0, "features": 1.0})
    """Score, one part or several with their weights: difference of the tile and its
    reconstruction in pixels or in the critic's features; the critic's judgement of the tile or of
    its reconstruction, or of its code (``joint: alpha``); or the length of the code."""
    distance: Literal["l1", "l2"] = "l2"
    """Difference of pixels and features in the score: absolute or squared."""
    reduction: Literal["mean", "sum"] = "mean"
    """Take the mean of a difference over its values in the score, or their sum. There are 12,288
    pixels and colours at 64 px, and as many features as the critic has."""
    descent_steps: _Count = 500
    """Number of steps for a tile, for ``inversion: descent``."""
    descent_rate: _Positive = 1e-2
    """Learning rate of the Adam of a descent."""
    descent_starts: _Count = 3
    """Number of codes at which a descent begins, the same for all tiles; the best end counts."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    betas: tuple[_Decay, _Decay] = (0.0, 0.9)
    """Decay of the moments of Adam in a step, of the generator and an encoder in the game."""
    learning_rate: LearningRate = 1e-4
    batch: BatchSize = 64
    gan_steps: MaxSteps = 100_000
    """Maximum number of steps of the generator's training, for ``inversion: encoder``, whose
    encoder takes at most ``max_steps``."""

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {
        "score",
        "distance",
        "reduction",
        "descent_steps",
        "descent_rate",
        "descent_starts",
        "places",
    }

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("network", "critic_network", "encoder_network", "pair_network"):
            if getattr(self, name).skips:
                raise ValueError(f"{name}.skips passes by the code; leave it out")
        parts = self.parts()
        if "code-critic" in parts and not self.plays("alpha"):
            raise ValueError("score: code-critic needs inversion: joint and joint: alpha")
        if self.inversion == "descent":
            if "code" in parts:
                raise ValueError("score: code needs an inversion by an encoder")
            if not {"pixels", "features"} & parts.keys():
                raise ValueError("inversion: descent needs pixels or features in the score")
        return self

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        inversion = f"inversion: {self.inversion}"
        game = f"{inversion} and joint: {self.joint}" if self.inversion == "joint" else inversion
        parts = self.parts()
        compared = bool({"pixels", "features"} & parts.keys())
        encoder, descent = self.inversion == "encoder", self.inversion == "descent"
        izif = encoder and self.encoder_loss == "izif"
        score = f"score: {', '.join(parts)}"
        uses = {
            "joint": (self.inversion == "joint", inversion),
            "feature_weight": (
                izif,
                f"encoder_loss: {self.encoder_loss}" if encoder else inversion,
            ),
            "reconstruction_weight": (self.plays("alpha"), game),
            "encoder_network": (not descent, inversion),
            "pair_network": (self.plays("alad"), game),
            "latent_critic_widths": (self.plays("alad", "alpha"), game),
            "critic_dropout": (self.inversion == "joint", inversion),
            "distance": (compared, score),
            "reduction": (compared, score),
        }
        for names, used, why in (
            (
                ("encoder_loss", "encoder_bound", "encoder_learning_rate", "gan_steps"),
                encoder,
                inversion,
            ),
            (("descent_steps", "descent_rate", "descent_starts"), descent, inversion),
            (("code_widths", "pair_widths"), self.plays("bigan", "alad"), game),
        ):
            uses |= dict.fromkeys(names, (used, why))
        pairs = self.plays("bigan", "alad")
        uses |= self.network.uses_in("network", sees=False, makes=True, vector=True)
        uses |= self.critic_network.uses_in(
            "critic_network", sees=True, makes=False, vector=not pairs, slope=pairs
        )
        for name in ("encoder_network", "pair_network"):
            if uses[name][0]:
                described: StackOptions = getattr(self, name)
                uses |= described.uses_in(name, sees=True, makes=False, vector=True)
        if not encoder and self.inversion != "joint":  # the last weights are kept
            uses |= dict.fromkeys(("patience", "min_delta"), (False, inversion))
        return super().uses() | uses

    def plays(self, *games: str) -> bool:
        """Tell whether the encoder plays one of some joint games."""
        return self.inversion == "joint" and self.joint in games

    def parts(self) -> dict[str, float]:
        """Return the parts of the score and their weights."""
        if isinstance(self.score, str):
            return {self.score: 1.0}
        return {str(name): weight for name, weight in self.score.items()}
