"""Fixed-point GAN: tiles are translated to healthy ones, and healthy ones stay as they are."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.detectors._end_to_end import LabelledWindows
from wsiad.detectors._reconstructing import RestoringDetector, check_places
from wsiad.detectors._trained import TrainedOptions, images
from wsiad.learning.adversarial_game import AdversarialGame, Match, Side
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import OptimiserFactory, Recipe, Update
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.devices import drawing
from wsiad.learning.game_losses import (
    GameOptions,
    Player,
    PlayerOptions,
    adam_of,
    descend_alone,
)
from wsiad.learning.training_options import BatchSize, LearningRate, MaxSteps
from wsiad.networks.conv_stack import seeded
from wsiad.networks.image_distances import absolute, pooled
from wsiad.networks.translator import (
    DomainCritic,
    Translator,
    domain_critic_shape,
    translator_shape,
)

_STREAM = 1 << 38  # keeps the draws of mixtures apart from those of windows
_MOST_BLOCKS, _MOST_LEVELS = 256, 16

_Count = Annotated[int, pydantic.Field(ge=1)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]
_Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]


class FixedPointGanOptions(TrainedOptions):
    """Options of ``fixed-point-gan``."""

    width: _Count = 64
    """Number of channels of the translator at the tile's resolution; doubled at both halvings."""
    blocks: Annotated[int, pydantic.Field(ge=1, le=_MOST_BLOCKS)] = 3
    """Number of residual blocks before the middle of the translator, and after it."""
    critic_width: _Count = 64
    """Number of channels of the critic's first level; doubled at each of the others."""
    critic_levels: Annotated[int, pydantic.Field(ge=1, le=_MOST_LEVELS)] = 5
    """Number of the critic's levels, each of which halves the resolution."""
    domain_weight: _NotNegative = 1.0
    """Weight of the cross entropy of the domain that the critic names, for both players."""
    cycle_weight: _NotNegative = 10.0
    """Weight of the mean of |x − G(G(x))|, translated back to the tile's own domain."""
    identity_weight: _NotNegative = 10.0
    """Weight of the mean of |x − G(x)| for tiles that are translated to their own domain."""
    critic: PlayerOptions = PlayerOptions(learning_rate=1e-4, updates=5)
    """Training of the critic."""
    game: GameOptions = GameOptions()
    """Loss of the game."""
    places: _Count = 8
    """Edge of the grid of places in a tile."""
    betas: tuple[_Decay, _Decay] = (0.5, 0.999)
    """Decay of the moments of Adam in a step."""
    batch: BatchSize = 8
    """Number of healthy tiles in a step, and of anomalous ones."""
    learning_rate: LearningRate = 1e-4
    max_steps: MaxSteps = 40_000
    keep: Literal["best", "last"] = "last"
    """Weights that are kept: the last ones, or those of the lowest held-out loss. That loss is
    the change of healthy tiles, which an untrained network does not make."""

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"places"}


class DomainBatch(NamedTuple):
    """Images of both domains.

    Parameters
    ----------
    x : Tensor, (N, 3, S, S)
        Images in [−1, 1].
    healthy : Tensor, (N,)
        1 for healthy images, 0 for anomalous ones.
    rng : Generator
        Generator of the draws of the step.
    """

    x: Tensor
    healthy: Tensor
    rng: np.random.Generator


class TranslationGame:
    """Translator and critic that are trained in turn.

    Parameters
    ----------
    translator : Translator
    critic : DomainCritic
    options : FixedPointGanOptions
    anomalous : LabelledWindows
    seed : int
    """

    def __init__(
        self,
        translator: Translator,
        critic: DomainCritic,
        *,
        options: FixedPointGanOptions,
        anomalous: LabelledWindows,
        seed: int,
    ) -> None:
        self.translator, self.critic = translator, critic
        self._options, self._anomalous, self._seed = options, anomalous, seed
        self._losses = options.game.game_loss()
        side: Side[DomainBatch] = Side(
            lambda batch: critic.critic, self._match, self._losses.critic
        )
        self._game = AdversarialGame([side])
        self.module = nn.ModuleDict({"translator": translator, "critic": critic})
        own = options.critic
        self._translating = Player([translator], options.learning_rate, options.betas)
        self._judging = Player([critic], own.learning_rate, own.betas)

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the mean change (N,) of held-out healthy windows, uint8 (N, S, S, 3)."""
        x = images(windows) * 2 - 1
        made: Tensor = self.translator(x, x.new_ones(len(x)))
        return absolute(x, made).mean(dim=(1, 2))

    def optimiser(self) -> OptimiserFactory:
        """Return the function that makes one Adam with a group for each player."""
        return adam_of([self._translating, self._judging], rate=self._options.learning_rate)

    def update(self, device: torch.device) -> Update:
        """Return the function that takes a step: the critic's updates, then the translator's."""
        options = self._options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            batch = self.batch(windows, step)
            with drawing(device, self._seed, _STREAM, step):
                for _ in range(options.critic.updates):
                    judged = self.critic_loss(batch)
                    descend_alone(optimiser, judged, self._judging, clip=options.grad_clip)
                total, change = self.translator_loss(batch)
                descend_alone(optimiser, total, self._translating, clip=options.grad_clip)
            return change

        return update

    def batch(self, windows: Tensor, step: int) -> DomainBatch:
        """Return healthy windows with as many anomalous ones, which the step draws."""
        strange = self._anomalous.drawn(len(windows), step)
        x = images(torch.cat([windows, strange])) * 2 - 1
        healthy = x.new_zeros(len(x))
        healthy[: len(windows)] = 1
        return DomainBatch(x, healthy, np.random.default_rng([self._seed, _STREAM, step]))

    def critic_loss(self, batch: DomainBatch) -> Tensor:
        """Return the critic's loss: of the game, and of the domains of real tiles, ()."""
        named = self.critic.domain(self.critic.critic.features(batch.x)).flatten()
        domains = functional.binary_cross_entropy_with_logits(named, batch.healthy)
        return self._game.critics_loss(batch) + self._options.domain_weight * domains

    def translator_loss(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """Return the translator's loss, and its change of tiles of their own domain, () each.

        A tile is translated to the other domain and to its own. In both cases the critic shall
        take the result for real and of that domain, and the way back shall end at the tile; in
        its own domain it shall not change at all.
        """
        options, x, own = self._options, batch.x, batch.healthy
        total, change = x.new_zeros(()), x.new_zeros(())
        for domain in (1 - own, own):
            made = self.translator(x, domain)
            judged, named = self.critic(made)
            fooled = self._losses.opponent(judged).mean()
            domains = functional.binary_cross_entropy_with_logits(named, domain)
            back = (x - self.translator(made, own)).abs().mean()
            total = total + fooled + options.domain_weight * domains + options.cycle_weight * back
            change = (x - made).abs().mean()  # in the end of tiles in their own domain
        return total + options.identity_weight * change, change.detach()

    def _match(self, batch: DomainBatch) -> Match:
        made = self.translator(batch.x, 1 - batch.healthy)
        return Match(batch.x, made, self._losses.mix(batch.rng, batch.x))


class FixedPointGan(RestoringDetector):
    """Change of a tile by its translation to a healthy one.

    A network learns to translate tiles between two domains, healthy and labelled anomalous
    ones, against a critic that judges patches and names the domain. A tile that is in the
    domain already must stay as it is: it is a fixed point. To score a tile, whatever it shows,
    it is translated to a healthy one; the score is the absolute difference by place. Labels are
    of complete tiles, and the map shows which part of a tile they mean.

    Notes
    -----
    Siddiquee et al., "Learning Fixed Points in Generative Adversarial Networks: From
    Image-to-Image Translation to Disease Detection and Localization", ICCV 2019. The page
    docs/families/adversarial.md states what was adapted.
    """

    Options: ClassVar[type[DetectorOptions]] = FixedPointGanOptions
    default_input_px: ClassVar[int | None] = 64
    uses_anomalies: ClassVar[bool | Literal["needed"]] = "needed"
    options: FixedPointGanOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of healthy and of anomalous tiles.

        Raises
        ------
        DetectorError
            There are no anomalous tiles, the tiles are too small, sizes do not fit, or the
            training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        options, size, seed = self.options, self.spec.size, context.seed
        check_size(tiles.fit.tile, size)
        anomalous = LabelledWindows(context, size)
        self._device, self._about = context.device, {"anomalous_tiles": len(anomalous)}
        translator = self._placed(self._untrained(seed))
        shape = domain_critic_shape(size, width=options.critic_width, levels=options.critic_levels)
        critic = self._placed(seeded(lambda: DomainCritic(shape), seed, 1))
        self._network = translator
        game = TranslationGame(translator, critic, options=options, anomalous=anomalous, seed=seed)
        result = self._train(
            game.module,
            game,
            tiles=tiles,
            context=context,
            identity={"anomalies": anomalous.identity()},
            recipe=Recipe(game.optimiser(), update=game.update(context.device), keeps=options.keep),
            started=started,
        )
        return self._report(result, translator)

    def places(self, images: Tensor) -> Tensor:
        """Return the mean change of colours at every place."""
        x = images * 2 - 1
        return pooled(absolute(x, self.restored(x)), self.options.places)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the translator's innermost features, averaged over the tile."""
        translator = self._translator()
        return self.embed_images(
            lambda x: translator.encoded(x * 2 - 1, x.new_ones(len(x))).mean(dim=(2, 3)), tiles
        )

    def restored(self, x: Tensor) -> Tensor:
        """Return images, translated to healthy ones."""
        made: Tensor = self._translator()(x, x.new_ones(len(x)))
        return made

    def empty(self, state: State) -> nn.Module:
        """Return an untrained translator."""
        return self._untrained(0)

    def _translator(self) -> Translator:
        return self.network_as(Translator)

    def _untrained(self, seed: int) -> Translator:
        options, size = self.options, self.spec.size
        check_places(options.places, size)
        shape = translator_shape(size, width=options.width, blocks=options.blocks)
        return seeded(lambda: Translator(shape), seed)
