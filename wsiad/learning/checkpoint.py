"""Checkpoints: tensors and values in one safetensors file, written completely or not at all.

The module also holds what a checkpoint keeps of a module and its optimiser, and the recipe of a
step that a method can choose: its optimiser, its update, whether windows are flipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wsiad.core.config import differences
from wsiad.core.errors import RunError
from wsiad.core.files import atomic_file, parse_json
from wsiad.learning.devices import Ranks

CHECKPOINT = "checkpoint.safetensors"
FOLDS = "checkpoint_folds.safetensors"
"""File of a fit by fold that is in progress: the fits that are finished."""
SLIDES = "choice of slides"  # of an identity; checkpoints of before do not state it

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a fit in progress.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Parameters and moments.
    values : dict
        JSON values: the step, the position in the data, …
    identity : dict
        JSON values that must be equal for a fit to continue from here: options, seed, data.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    identity: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``prefix.``, without this prefix."""
        start = f"{prefix}."
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def write(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        header = json.dumps(
            {"format": _FORMAT, "values": self.values, "identity": self.identity}, allow_nan=False
        )
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()
        }
        with atomic_file(path) as partial:
            save_file(tensors, str(partial), metadata={"wsiad": header})


def read_checkpoint(path: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of a fit, if there is one.

    Raises
    ------
    RunError
        The checkpoint is damaged, or belongs to another fit; the error names the keys that differ.
    """
    if not path.is_file():
        return None
    version, found, values, tensors = _read(path)
    if version != _FORMAT:
        raise RunError(
            f"has the checkpoint format {version!r}, not {_FORMAT}",
            subject=str(path),
            remedy="Continue with the version of wsiad that wrote it, or delete it.",
        )
    was, expected = {SLIDES: identity.get(SLIDES), **found}, json.loads(json.dumps(identity))
    if different := differences(was, expected):
        raise RunError(
            f"belongs to a training with another {', '.join(different)}",
            subject=str(path),
            remedy="Train into another folder, use the same configuration, or delete it.",
        )
    return Checkpoint(tensors, values, found)


def check_followed(folder: Path, *, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to lengthen a training on whose steps a later one depends that has begun.

    Parameters
    ----------
    folder : Path
        Folder of the later training.
    was, now : mapping
        Limits when the earlier training was saved, and of this call.

    Raises
    ------
    RunError
        The later training has a checkpoint, and limits differ; or the checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file() or not (told := differences(was, now)):
        return
    for key in _read(path, header_only=True)[1]:
        if key.startswith(STEPS_OF):
            raise RunError(
                f"belongs to a training with {', '.join(told)}, which would change the {key}",
                subject=str(path),
                remedy="Set the value of before, train into another folder, or delete it.",
            )


STEPS_OF = "number of steps of the "
"""Beginning of the key of an identity that states the length of an earlier training."""


def _read(
    path: Path, *, header_only: bool = False
) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Return the format, the identity, the values and the tensors of a checkpoint."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = parse_json((file.metadata() or {})["wsiad"])
            names = () if header_only else file.keys()
            tensors = {key: file.get_tensor(key) for key in names}
        return header["format"], dict(header["identity"]), dict(header["values"]), tensors
    except (AttributeError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"is not a readable checkpoint ({error})",
            subject=str(path),
            remedy="Delete it to train from the start.",
        ) from error


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a fit, also those of its parts in folders of their own."""
    for path in sorted(folder.rglob(CHECKPOINT)):
        path.unlink(missing_ok=True)


Update = Callable[[Tensor, torch.optim.Optimizer, int], Tensor]
"""Function of a step: maps windows, uint8 (N, S, S, 3), optimiser and step to the loss, ()."""

_BETAS, _STABLE, _TRUST = (0.9, 0.999), 1e-8, 0.001
_RMS_LEAST = 1e-5  # TensorFlow adds 1e-10 below the root

OptimiserFactory = Callable[[nn.Module], torch.optim.Optimizer]
"""Function that makes a module's optimiser; its learning rate is set again at every step."""


def adam(*, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0) -> OptimiserFactory:
    """Return a function that makes an Adam of all parameters.

    Parameters
    ----------
    betas : tuple of float
        Decay of the moments in a step.
    weight_decay : float
        Weight of the squared weights in the loss (L2), as in the papers; not decoupled.
    """

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), betas=betas, weight_decay=weight_decay)

    return make


def sgd(*, momentum: float, weight_decay: float = 0) -> OptimiserFactory:
    """Return a function that makes a gradient descent with momentum of all parameters."""

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            module.parameters(), lr=1e-3, momentum=momentum, weight_decay=weight_decay
        )

    return make


class Lars(torch.optim.SGD):
    """Gradient descent with momentum whose rate follows from the size of each tensor.

    The gradient g of a tensor w, with the weight decay λ w, is multiplied by 0.001 |w| / (|g| +
    λ |w|); by 1 where w or g is 0.

    Parameters
    ----------
    params : iterable
        Parameters, or groups of them.
    momentum, weight_decay : float

    Notes
    -----
    You, Gitman & Ginsburg, *Large Batch Training of Convolutional Networks*, 2017 (arXiv
    1708.03888), for all tensors, biases and normalisations included, as CSI uses it.
    """

    def __init__(self, params: Any, *, momentum: float, weight_decay: float) -> None:
        super().__init__(params, lr=1e-3, momentum=momentum)
        self._decay = weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step along the present gradients, which are changed."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                size, slope = parameter.norm(), gradient.norm()
                ratio = _TRUST * size / (slope + self._decay * size + _STABLE)
                ratio = torch.where((size > 0) & (slope > 0), ratio, torch.ones_like(ratio))
                gradient.add_(parameter, alpha=self._decay).mul_(ratio)
        super().step()


def lars(*, momentum: float, weight_decay: float = 0) -> OptimiserFactory:
    """Return a function that makes a :class:`Lars` of all parameters."""

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return Lars(module.parameters(), momentum=momentum, weight_decay=weight_decay)

    return make


def rms_prop(*, decay: float = 0.9) -> OptimiserFactory:
    """Return a function that makes an RMSProp of all parameters, as TensorFlow's.

    Parameters
    ----------
    decay : float
        Decay of the mean of squared gradients in a step.
    """

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(module.parameters(), lr=1e-3, alpha=decay, eps=_RMS_LEAST)

    return make


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose step is shortened where the gradient is larger than its moments expect.

    The second moment is the largest so far (AMSGrad). Where the root mean square of gradient over
    its root exceeds 1 in a tensor, the step of that tensor is divided by it.

    Parameters
    ----------
    params : iterable
        Parameters, or groups of them.
    weight_decay : float
        Decoupled weight decay.

    Notes
    -----
    Wortsman et al., *Stable and low-precision training for large-scale vision-language models*,
    NeurIPS 2023 (arXiv 2304.13013), algorithm 2, with AMSGrad as Dinomaly uses it.
    """

    def __init__(self, params: Any, *, weight_decay: float) -> None:
        super().__init__(params, {"lr": 1e-3, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step along the present gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, parameter: Tensor, rate: float, decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter)
        state["step"] += 1
        step, first, second = float(state["step"]), *_BETAS
        parameter.mul_(1 - rate * decay)
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        largest = torch.maximum(state["max_exp_avg_sq"], state["exp_avg_sq"])
        state["max_exp_avg_sq"].copy_(largest)
        scale = largest.sqrt().div_((1 - second**step) ** 0.5).add_(_STABLE)
        surprise = float((gradient / scale).square().mean().sqrt())
        size = rate / (1 - first**step) / max(1.0, surprise)
        parameter.addcdiv_(state["exp_avg"], scale, value=-size)


def stable_adam(*, weight_decay: float) -> OptimiserFactory:
    """Return a function that makes a :class:`StableAdamW` of all parameters."""

    def make(module: nn.Module) -> torch.optim.Optimizer:
        return StableAdamW(module.parameters(), weight_decay=weight_decay)

    return make


@dataclass(frozen=True, slots=True)
class Recipe:
    """Differences of a training from Adam on the mean loss of flipped windows.

    Parameters
    ----------
    optimiser : callable
        Function that makes the optimiser. A group of its parameters can have a ``factor`` by
        which the learning rate is multiplied there.
    update : callable or None
        Function that takes a step in place of one descent of the mean loss. All that it draws
        must be a function of the seed and the step, and all that it keeps must be a buffer of the
        module: then a killed training resumes exactly.
    flips : bool
        True to flip windows at random in both directions.
    keeps : {"best", "last"}
        Keep the weights of the lowest held-out loss and stop when it falls no more; or keep
        the last ones, if that loss does not show how good they are.
    parts : int
        Number of parts of a batch of which one after the other is used in a step.
    """

    optimiser: OptimiserFactory = field(default_factory=adam)
    update: Update | None = None
    flips: bool = True
    keeps: Literal["best", "last"] = "best"
    parts: int = 1


def descend(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    *,
    clip: float | None = None,
    before: Callable[[], None] | None = None,
) -> None:
    """Take one step down a loss (); a ``clip`` limits the norm of the gradient.

    ``before`` is called when the gradients are known.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if before:
        before()
    clip_and_step(optimiser, clip=clip)


def clip_and_step(optimiser: torch.optim.Optimizer, *, clip: float | None = None) -> None:
    """Take one step along the present gradients; a ``clip`` limits their norm."""
    if clip:
        every = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(every, clip)
    optimiser.step()


_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")


class Trained:
    """The parameters of a module, trained by an optimiser of their own.

    Parameters
    ----------
    module : nn.Module
        Module, on the device where it stays.
    name : str
        Prefix of the parameters' names in a checkpoint.
    moments : str
        Beginning of the names of the optimiser's moments in a checkpoint.
    average_decay : float, optional
        Decay in a step of a running average of the parameters; without it, none is kept.
    ranks : Ranks
        Processes over which gradients are averaged.
    optimiser : callable
        Function that makes the optimiser; Adam by default.

    Attributes
    ----------
    parameters : dict of str to Parameter
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        moments: str,
        average_decay: float | None = None,
        ranks: Ranks,
        optimiser: OptimiserFactory | None = None,
    ) -> None:
        self._module, self._make = module, optimiser or adam()
        self.parameters = dict(module.named_parameters())
        kept = module.state_dict().keys()
        self._buffers = {name: b for name, b in module.named_buffers() if name in kept}
        self._name, self._prefix, self._ranks = name, moments, ranks
        self._decay = average_decay or 0.0
        self._average = self.copy() if average_decay else {}
        self.restart()

    def restart(self) -> None:
        """Forget all moments, so that the next step is the optimiser's first."""
        self._optimiser = self._make(self._module)

    def minimise(self, loss: Tensor, *, rate: float, grad_clip: float | None = None) -> None:
        """Take one step down the gradient of a scalar.

        Parameters
        ----------
        loss : Tensor
        rate : float
            Learning rate.
        grad_clip : float, optional
            Maximum norm of the gradient.
        """
        self._set_rate(rate)
        descend(self._optimiser, loss, clip=grad_clip, before=self._share)
        self._take_average()

    def update(self, update: Update, windows: Tensor, step: int, *, rate: float) -> Tensor:
        """Take a step by a method's own update; return its loss, ()."""
        self._set_rate(rate)
        loss = update(windows, self._optimiser, step)
        self._take_average()
        return loss

    def _set_rate(self, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1)

    def _share(self) -> None:
        self._ranks.average([p.grad for p in self.parameters.values() if p.grad is not None])

    def _take_average(self) -> None:
        for name, average in self._average.items():
            if name in self.parameters:
                average.lerp_(self.parameters[name].detach(), 1 - self._decay)
            else:
                average.copy_(self._buffers[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the module hold the averaged parameters, if there are any."""
        own = self.copy()
        self.set(self._average or own)
        try:
            yield
        finally:
            self.set(own)

    def copy(self) -> dict[str, Tensor]:
        """Return a copy of the parameters, and of the buffers that the module would store."""
        return {name: tensor.clone() for name, tensor in self._own()}

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in (*self.parameters.items(), *self._buffers.items()):
            yield name, tensor.detach()

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the values of parameters and buffers."""
        for name, tensor in self._own():
            tensor.copy_(tensors[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters, average and moments by their names in a checkpoint."""
        found = {f"{self._name}.{name}": tensor for name, tensor in self.copy().items()}
        found |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        for name, parameter in self.parameters.items():
            for moment, value in self._optimiser.state.get(parameter, {}).items():
                found[f"{self._prefix}_{moment}.{name}"] = value
        return found

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore parameters, average and moments from a checkpoint."""
        self.set(checkpoint.group(self._name))
        for name, average in self._average.items():
            average.copy_(checkpoint.group("average")[name])
        for moment in _MOMENTS:
            for name, tensor in checkpoint.group(f"{self._prefix}_{moment}").items():
                parameter = self.parameters[name]
                # Adam counts its steps in a scalar on the CPU; moments lie as parameters do.
                like = tensor.clone() if moment == "step" else torch.empty_like(parameter)
                self._optimiser.state[parameter][moment] = like.copy_(tensor).detach()
