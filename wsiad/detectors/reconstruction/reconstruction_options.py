"""Options of the detector ``reconstruction``; the defaults are MedIAnomaly's autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from wsiad.detectors._perceptual import PerceptualOptions
from wsiad.detectors._trained import TrainedOptions
from wsiad.detectors.reconstruction.restoration_tasks import (
    Erase,
    GreyTurn,
    Noise,
    NoTask,
    Puzzle,
    Task,
    checkerboard,
    stripes,
)
from wsiad.learning.game_losses import GameOptions, PlayerOptions
from wsiad.learning.training_options import BatchSize, ValInterval
from wsiad.networks.stack_options import StackOptions

_Count = Annotated[int, pydantic.Field(ge=1)]
_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]
_Whole = Annotated[int, pydantic.Field(ge=0)]
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]

Term = Literal["l1", "l2", "ssim", "msgms", "nuclei", "perceptual", "uncertainty"]
Terms = Term | Annotated[dict[Term, _Positive], pydantic.Field(min_length=1)]

PENALTY = {"vae": 5e-3, "memory": 2e-4, "autoregressive": 1.0, "quantised": 0.25}
"""Weights of the latents' penalties by default, as published."""

_OF = {
    "attack_steps": "attack",
    "mining_rate": "mining_steps",
    "mining_from": "mining_steps",
    "old_steps": "second_phase_steps",
    "second_phase_rate": "second_phase_steps",
    "made_share": "second_phase_steps",
    "old_share": "second_phase_steps",
}
"""Options that do nothing while another one is 0."""

_OF_TASK = {
    "noise": ("noise",),
    "erase": ("erase_px", "erase_count"),
    "checkerboard": ("squares", "sets"),
    "stripes": ("stripes",),
    "grey-turn": ("turn",),
    "puzzle": ("puzzle_ways",),
}
_OF_LATENT = {
    "memory": ("memory_size", "memory_similarity", "memory_shrink"),
    "quantised": ("codes",),
    "autoregressive": ("bins", "estimator_channels"),
}
_OF_SCORE = {
    "probability": ("score_draws",),
    "gradient": ("gradient_of", "gradient_by_distance"),
    "projection": ("projection_steps", "projection_rate", "projection_weight"),
}
"""Options that do nothing with another task, latent or score."""


class ReconstructionOptions(PerceptualOptions, TrainedOptions):
    """Options of ``reconstruction``."""

    network: StackOptions = StackOptions(hidden=(2048,), bias=False)
    """Levels of the encoder, which the decoder mirrors."""
    latent: Literal["plain", "vae", "memory", "autoregressive", "quantised"] = "plain"
    """Kind of the latent: the encoder's output, a Gaussian, a sum of a few learnt vectors, a
    vector whose elements are predicted one after the other, or the nearest code of a book."""
    latent_channels: _Count | None = 16
    """Length of the latent vector, or channels of a spatial one; ``null`` for a spatial latent
    that is the output of the last level."""
    spatial: bool = False
    """Use a map as latent, without dense layers."""
    scales: _Count = 1
    """Number of scales of a Laplacian pyramid. Each band has an autoencoder of its own, those of
    coarser bands with one level less each; losses and scores of all scales are added."""
    structure: Literal["none", "nuclei"] = "none"
    """Map of the image that the decoder sees as well, at all resolutions, through an encoder of
    its own: none, or the concentration of haematoxylin."""
    penalty_weight: _NotNegative | None = None
    """Weight of the latent's penalty in the loss: divergence (``vae``; default 0.005), entropy
    of the weights (``memory``; 0.0002), −log p (``autoregressive``; 1), or the distance to the
    code (``quantised``; 0.25)."""
    reduction: Literal["mean", "sum"] = "mean"
    """Take the mean over pixels, colours and latent dimensions, or their sums. A sum makes the
    loss as many times larger as there are values (12,288 at 64 px): all other weights change
    their meaning."""
    memory_size: _Count = 100
    """Number of vectors of the memory."""
    memory_similarity: Literal["cosine", "dot"] = "cosine"
    """Similarity to the memory's vectors: the paper's, or that of its released code."""
    memory_shrink: _NotNegative | None = None
    """Weights of the memory below it become 0; default: 1 / ``memory_size``."""
    codes: _Count = 512
    """Number of codes of a ``quantised`` latent."""
    bins: _Count = 100
    """Number of bins of an element of an ``autoregressive`` latent."""
    estimator_channels: _Count = 32
    """Channels of an element in the network that predicts an ``autoregressive`` latent."""
    task: Literal["none", "noise", "erase", "checkerboard", "stripes", "grey-turn", "puzzle"] = (
        "none"
    )
    """Change that must be restored: added noise, erased squares, squares or stripes that are
    erased in turn, lost colours and turns, or shuffled quarters."""
    noise: _NotNegative = 0.155
    """Standard deviation of the noise (of −1 to 1), for ``task: noise``."""
    erase_px: _Count = 16
    """Edge of the erased squares, pixels, for ``task: erase``."""
    erase_count: _Count = 3
    """Number of erased squares, for ``task: erase``."""
    squares: Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)] = (2, 4, 8)
    """Edges of the squares, pixels, for ``task: checkerboard``."""
    sets: Annotated[int, pydantic.Field(ge=2)] = 3
    """Number of disjoint sets of squares, for ``task: checkerboard``."""
    stripes: Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)] = (4, 8, 16)
    """Widths of the stripes, pixels, for ``task: stripes``."""
    turn: bool = False
    """Turn the images as well, for ``task: grey-turn``. Tissue has no upright."""
    attack: _NotNegative = 0.0
    """Largest change of a value (of −1 to 1) that training adds to what the network is shown, by
    the slope of the loss, so that it restores worse: adversarial inputs. 0 for none."""
    attack_steps: _Count = 1
    """Number of steps in which the change of ``attack`` is found; one crosses its range."""
    puzzle_ways: Annotated[int, pydantic.Field(ge=1, le=23)] = 4
    """Number of orders in which a tile is shown for its score, for ``task: puzzle``."""
    whole_weight: _NotNegative = 0.0
    """Weight of the loss of the unchanged image, which is added to that of the task. The
    latent's penalty is then that of the unchanged image."""
    code_weight: _NotNegative = 0.0
    """Weight of the mean of (z − E(x̂))², the change of the code by a second encoding."""
    attention_weight: _NotNegative = 0.0
    """Weight of the mean of 1 − A, for the latent's attention A, 0 to 1, to places of a tile."""
    loss: Terms = "l2"
    """Distance that is minimised, or several with their weights: absolute or squared
    difference (of −1 to 1), 1 − SSIM, the difference of edges over four scales, the absolute
    difference of the concentration of haematoxylin, ``dpa``'s perceptual distance, or the squared
    difference with a learnt variance."""
    judged_by: Terms | None = None
    """Distance that is scored; by default the loss. The logarithm of a learnt variance is never
    a part of it."""
    image_game: Literal["none", "reconstruction", "prior"] = "none"
    """Train a critic that distinguishes tiles from their reconstructions, or from images of
    draws from the prior."""
    latent_game: Literal["none", "gaussian", "uniform"] = "none"
    """Train a critic that distinguishes codes from draws of the prior: N(0, 1), or uniform in
    (−1, 1)."""
    game: GameOptions = GameOptions()
    """Loss of the games."""
    critic: PlayerOptions = PlayerOptions()
    """Training of the critics."""
    critic_network: StackOptions = StackOptions(
        widths=(64, 128, 256, 512),
        vector="conv",
        norm="layer",
        norm_first=False,
        activation="leaky",
        initial="normal",
    )
    """Levels of the image critic."""
    critic_by_place: bool = False
    """Let the image critic judge each place of its last level by itself, instead of the complete
    image."""
    latent_critic_widths: tuple[_Count, ...] = (128, 64, 32, 16)
    """Widths of the hidden layers of the latent critic."""
    image_game_weight: _NotNegative = 1.0
    """Weight of the image critic's judgement in the loss of the autoencoder."""
    image_game_moves: Literal["all", "decoder"] = "all"
    """Parts that the image critic's judgement of reconstructions trains."""
    latent_game_weight: _NotNegative = 1.0
    """Weight of the latent critic's judgement in the loss of the encoder."""
    model_updates: _Count = 1
    """Number of updates of the autoencoder in a step, if there are games."""
    mining_steps: _Whole = 0
    """Number of steps by which drawn codes move to where a classifier of reconstructions and of
    images of drawn codes is surest that an image is none of the first (informative negatives);
    the image critic then trains the decoder on their images. 0 for none."""
    mining_rate: _Positive = 2.0
    """Length of such a step, a multiple of the slope."""
    mining_from: _Whole = 0
    """Step of the training, from 0, from which codes are moved."""
    second_phase_steps: _Whole = 0
    """Number of steps of a second training, of the image critic alone: tiles and reconstructions
    are good; reconstructions by the old generator, and of mixtures of those, are bad. 0 for
    none."""
    old_steps: _Count = 1_000
    """Steps of the first training after which the autoencoder is kept as the old generator."""
    second_phase_rate: _Positive = 5e-5
    """Learning rate of the second training."""
    made_share: _Share = 0.9
    """Share of reconstructions in the loss of good images; the rest are tiles."""
    old_share: _Share = 0.95
    """Share of the old generator's images in the loss of bad ones; the rest are mixtures."""
    score: Literal[
        "loss",
        "probability",
        "density",
        "gradient",
        "projection",
        "attention",
        "inattention",
        "response",
        "critic",
    ] = "loss"
    """Score: the distance; −log p of the tile by draws of a ``vae`` with ``loss: uncertainty``;
    unlikeliness of the latent; slope of the loss; distance to a projection;
    attention, or 1 − attention; norm of the slope of the loss by the weights; or the image
    critic's judgement."""
    score_draws: _Count = 10
    """Number of draws, for ``score: probability``."""
    critic_scores: Literal["reconstruction", "tile"] = "reconstruction"
    """Image that the critic judges, for ``score: critic``."""
    gradient_of: Literal["elbo", "divergence"] = "elbo"
    """Function whose slope is scored, for ``score: gradient``: the complete loss, or the
    latent's penalty."""
    gradient_by_distance: bool = False
    """Multiply the slope by the distance at each pixel, for ``score: gradient``."""
    projection_steps: _Count = 100
    """Number of steps, for ``score: projection``."""
    projection_rate: _Positive = 0.5
    """Length of a step, for ``score: projection``."""
    projection_weight: _NotNegative = 0.05
    """Weight of the distance to the tile, for ``score: projection``."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    smooth: _Count = 1
    """Edge of the squares, pixels, over which a map is averaged before it is pooled; odd."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    """Decay of the moments of Adam in a step."""
    weight_decay: _NotNegative = 0.0
    """Weight of the squared weights in the loss."""
    batch: BatchSize = 64
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {
        "score",
        "score_draws",
        "critic_scores",
        "gradient_of",
        "gradient_by_distance",
        "projection_steps",
        "projection_rate",
        "projection_weight",
        "places",
        "smooth",
        "puzzle_ways",
    }
    later: ClassVar[Mapping[str, Any]] = {
        "critic_by_place": False,
        "critic_scores": "reconstruction",
        "attention_weight": 0.0,
        "scales": 1,
        "structure": "none",
        "attack": 0.0,
        "attack_steps": 1,
        "mining_steps": 0,
        "mining_rate": 2.0,
        "mining_from": 0,
        "second_phase_steps": 0,
        "old_steps": 1_000,
        "second_phase_rate": 5e-5,
        "made_share": 0.9,
        "old_share": 0.95,
    }

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.network.skips and self.task == "none":
            raise ValueError("network.skips needs a task: else the network copies its input")
        if self.network.skips and self.latent != "plain":
            raise ValueError("network.skips needs latent: plain, for it passes by the latent")
        if self.latent == "autoregressive" and self.spatial:
            raise ValueError("latent: autoregressive is a vector; set spatial: false")
        if self.latent_channels is None and (not self.spatial or self.latent == "vae"):
            raise ValueError("latent_channels can be null only with spatial, and not for a vae")
        if self.smooth % 2 == 0:
            raise ValueError("smooth must be odd")
        judged = self.judged_terms()
        if "perceptual" in judged and "perceptual" not in self.terms():
            raise ValueError("judged_by: perceptual needs it in the loss")
        if "uncertainty" in judged and "uncertainty" not in self.terms():
            raise ValueError("judged_by: uncertainty needs it in the loss")
        if self.score == "probability" and (
            self.latent != "vae" or "uncertainty" not in self.terms()
        ):
            raise ValueError("score: probability needs latent: vae and loss: uncertainty")
        if self.score == "density" and self.latent not in ("vae", "autoregressive"):
            raise ValueError("score: density needs latent: vae or autoregressive")
        if self.score == "gradient" and self.gradient_of == "divergence" and self.latent != "vae":
            raise ValueError("gradient_of: divergence needs latent: vae")
        if self.score == "critic" and self.image_game == "none":
            raise ValueError("score: critic needs an image_game")
        if self.image_game == "prior" and self.network.skips:
            raise ValueError("image_game: prior needs a network without skips")
        if self.latent_game == "uniform" and self.network.latent_activation != "tanh":
            raise ValueError(
                "latent_game: uniform needs network.latent_activation: tanh, for codes in (−1, 1)"
            )
        if self.image_game_moves == "decoder" and (self.network.skips or self.task != "none"):
            raise ValueError("image_game_moves: decoder needs task: none")
        if self.structure != "none":
            self._fits_a_structure()
        if self.scales > 1:
            self._fits_scales()
        if self.mining_steps and (self.image_game != "prior" or self.latent_game != "uniform"):
            raise ValueError("mining_steps needs image_game: prior and latent_game: uniform")
        if self.second_phase_steps and (
            self.image_game != "reconstruction" or self.game.loss != "bce"
        ):
            raise ValueError("second_phase_steps needs image_game: reconstruction and game: bce")
        if self.second_phase_steps and (self.keep != "last" or self.critic_by_place):
            raise ValueError("second_phase_steps needs keep: last, and no critic_by_place")
        return self

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        task, latent, score, game = self.task, self.latent, self.score, self.image_game
        by_pixels = score in ("loss", "probability", "gradient", "projection")
        by_distance = score == "loss" or (score == "gradient" and self.gradient_by_distance)
        if score == "density" and latent == "autoregressive":
            by_pixels = by_distance = True
        uses = super().uses() | {
            "penalty_weight": (latent != "plain", "latent: plain"),
            "judged_by": (by_distance, f"score: {score}"),
            "smooth": (by_pixels, f"score: {score}"),
            "image_game_moves": (
                self.image_game == "reconstruction",
                f"image_game: {self.image_game}",
            ),
        }
        for own, of, key in (
            (task, _OF_TASK, "task"),
            (latent, _OF_LATENT, "latent"),
            (score, _OF_SCORE, "score"),
        ):
            for value, names in of.items():
                uses |= dict.fromkeys(names, (own == value, f"{key}: {own}"))
        for name, switch in _OF.items():
            uses[name] = (getattr(self, switch) > 0, f"{switch}: 0")
        uses["critic_scores"] = (score == "critic", f"score: {score}")
        for name in ("image_game_weight", "critic_network", "critic_by_place"):
            uses[name] = (game != "none", "image_game: none")
        uses |= self.network.uses_in("network", sees=True, makes=True, vector=not self.spatial)
        if game != "none":
            whole = not self.critic_by_place or self.mining_steps > 0
            uses |= self.critic_network.uses_in(
                "critic_network", sees=True, makes=False, vector=whole
            )
        for name in ("latent_game_weight", "latent_critic_widths"):
            uses[name] = (self.latent_game != "none", "latent_game: none")
        for name in ("game", "critic", "model_updates"):
            uses[name] = (self.has_games(), "image_game and latent_game: none")
        for name in PerceptualOptions.model_fields:
            uses[name] = ("perceptual" in self.terms(), "a loss that is not perceptual")
        return uses

    def _fits_a_structure(self) -> None:
        if self.latent != "plain" or self.network.skips or self.scales > 1:
            raise ValueError("structure needs latent: plain and scales: 1, without network.skips")
        if self.image_game == "prior" or self.image_game_moves == "decoder":
            raise ValueError("structure needs a tile: set image_game to reconstruction, for all")

    def _fits_scales(self) -> None:
        if self.latent != "plain" or self.latent_game != "none":
            raise ValueError("scales needs latent: plain, without latent_game")
        if self.code_weight or self.attention_weight:
            raise ValueError("scales needs a loss without code_weight and attention_weight")
        if self.task not in ("none", "noise", "erase"):
            raise ValueError("scales needs task: none, noise or erase")
        if self.score not in ("loss", "response", "critic"):
            raise ValueError("scales needs score: loss, response or critic")
        if self.image_game == "prior" or self.image_game_moves == "decoder":
            raise ValueError("scales needs image_game: reconstruction, for all, or none")
        if {"perceptual", "uncertainty"} & self.terms().keys():
            raise ValueError("scales needs a loss of pixels without a learnt variance")
        if self.network.output != "none":
            raise ValueError("scales needs network.output: none, for bands are not in [−1, 1]")
        if self.scales > len(self.network.widths):
            raise ValueError("scales must not exceed the number of network.widths")

    def has_games(self) -> bool:
        """Tell whether critics are trained."""
        return self.image_game != "none" or self.latent_game != "none"

    def terms(self) -> dict[str, float]:
        """Return the distances of the loss and their weights."""
        return _weighted(self.loss)

    def judged_terms(self) -> dict[str, float]:
        """Return the distances of the score and their weights."""
        return self.terms() if self.judged_by is None else _weighted(self.judged_by)

    def weight_of_penalty(self) -> float:
        """Return the weight of the latent's penalty."""
        if self.penalty_weight is not None:
            return self.penalty_weight
        return PENALTY.get(self.latent, 0.0)

    def restoration(self) -> Task:
        """Return the task."""
        match self.task:
            case "none":
                return NoTask()
            case "noise":
                return Noise(self.noise)
            case "erase":
                return Erase(self.erase_px, self.erase_count)
            case "checkerboard":
                return checkerboard(self.squares, self.sets)
            case "stripes":
                return stripes(self.stripes)
            case "grey-turn":
                return GreyTurn(turn=self.turn)
            case "puzzle":
                return Puzzle(self.puzzle_ways)


def _weighted(terms: Terms) -> dict[str, float]:
    if isinstance(terms, str):
        return {terms: 1.0}
    return {str(name): weight for name, weight in terms.items()}
