"""The second phase of OGNet: the image critic learns good from bad instead of real from made.

The autoencoder of a first training stays as it is. Tiles and their reconstructions are good. What
an old generator makes, the same autoencoder at an early step of its training, is bad, and so are
pseudo-anomalies: reconstructions of the mean of two images by the old generator.

Zaheer et al., "Old is Gold: Redefining the Adversarially Learned One-Class Classifier Training
Paradigm", CVPR 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.detectors._trained import images
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.learning.detector import Budget


class OldWeights(nn.Module):
    """The weights of an autoencoder at an early step, kept in the buffers of a checkpoint.

    Parameters
    ----------
    model : ReconstructionModel
        Model whose weights will be taken.
    """

    taken: Tensor

    def __init__(self, model: ReconstructionModel) -> None:
        super().__init__()
        own = model.learnt().state_dict()
        self._names = list(own)
        for number, tensor in enumerate(own.values()):
            self.register_buffer(f"tensor_{number}", tensor.detach().clone())
        self.register_buffer("taken", torch.zeros((), dtype=torch.bool))

    def take(self, model: ReconstructionModel) -> None:
        """Keep a copy of the present weights."""
        for kept, tensor in zip(self._kept(), model.learnt().state_dict().values(), strict=True):
            kept.copy_(tensor)
        self.taken.fill_(True)

    def made(self, model: ReconstructionModel, x: Tensor) -> Tensor:
        """Return what the model makes of images with the kept weights.

        Raises
        ------
        DetectorError
            No weights were kept.
        """
        if not self.taken:
            raise DetectorError(
                "the first training ended before the step of its old generator",
                remedy="Let it train longer, or set a smaller old_steps.",
            )
        kept = dict(zip(self._names, self._kept(), strict=True))
        image: Tensor = functional_call(model, kept, (x,)).image
        return image

    def _kept(self) -> list[Tensor]:
        return [self.get_buffer(f"tensor_{number}") for number in range(len(self._names))]


class SecondPhaseLoss:
    """The loss of the image critic: good images must look real to it, and bad ones made.

    With the critic's logits D it is s · (−log σ(D(x̂))) + (1 − s) · (−log σ(D(x))) for the good,
    and t · (−log (1 − σ(D(x̃)))) + (1 − t) · (−log (1 − σ(D(p)))) for the bad: reconstruction x̂,
    the old generator's x̃, and the reconstruction p of the mean of two x̃ of other images.

    Parameters
    ----------
    model : ReconstructionModel
        Model of the first training, in evaluation mode.
    old : OldWeights

    Notes
    -----
    Shares s and t, and the number of steps, are those of the published code. It takes the two
    images of a mean from two other batches; here they are the next two images of the same batch.
    """

    def __init__(self, model: ReconstructionModel, old: OldWeights) -> None:
        self._model, self._old, self._options = model, old, model.options

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the loss (N,) of windows, uint8 (N, S, S, 3)."""
        return self.losses(images(windows) * 2 - 1)

    def losses(self, x: Tensor) -> Tensor:
        """Return the loss (N,) of images (N, 3, S, S) in [−1, 1]."""
        options, critic = self._options, self._model.image_critic
        assert critic is not None
        with torch.no_grad():
            made, old = self._model(x).image, self._old.made(self._model, x)
            pseudo = self._model((old.roll(-1, 0) + old.roll(-2, 0)) / 2).image
        s, t = options.made_share, options.old_share
        good = s * functional.softplus(-critic(made)) + (1 - s) * functional.softplus(-critic(x))
        bad = t * functional.softplus(critic(old)) + (1 - t) * functional.softplus(critic(pseudo))
        total: Tensor = good + bad
        return total


def second_phase(options: ReconstructionOptions) -> ReconstructionOptions:
    """Return the options of the second training."""
    return options.model_copy(
        update={
            "max_steps": options.second_phase_steps,
            "learning_rate": options.second_phase_rate,
            "lr_schedule": "constant",
            "ema_decay": None,
        }
    )


def check_steps(options: ReconstructionOptions, budget: Budget) -> None:
    """Check that the first training is long enough for its old generator.

    Raises
    ------
    DetectorError
        It is not.
    """
    most = min(options.max_steps, budget.max_steps or options.max_steps)
    if most < options.old_steps:
        raise DetectorError(
            f"{most} steps end before the old generator is there, after {options.old_steps}",
            remedy="Set a smaller old_steps, or more steps.",
        )
