"""Teachers that describe small patches, and ensembles of students of them (uninformed students)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.networks.channel_moments import ChannelMoments

_LEAST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution of a patch network, with a 2 × 2 pooling after it or none.

    Parameters
    ----------
    kernel : int
    channels : int
        Number of output channels at the published width; 0 for the dimensions of the output.
    halves : bool
        True for a maximum or mean over 2 × 2 places of its outputs.
    """

    kernel: int
    channels: int
    halves: bool = False


LAYERS: Final[dict[int, tuple[Layer, ...]]] = {
    17: (Layer(6, 128), Layer(5, 256), Layer(5, 256), Layer(4, 0)),
    33: (Layer(3, 128, True), Layer(5, 128, True), Layer(2, 256), Layer(4, 0)),
    65: (
        *(Layer(5, 128, True), Layer(5, 128, True), Layer(5, 128, True)),
        *(Layer(4, 256), Layer(1, 0)),
    ),
}
"""Layers by the edge of the patch that has one output, from general knowledge of the paper."""

_SLOPE: Final = 5e-3


class PatchNetwork(nn.Module):
    """A network whose every output sees one patch of the image, and nothing else.

    Parameters
    ----------
    patch : int
        Edge of the patch: 17, 33 or 65 px.
    dimensions : int
        Number of outputs.
    width : float
        Share of the published channels.
    layers : sequence of Layer, optional
        Other layers whose outputs see patches of this edge. They are rectified, and averaged
        where they are halved; those of :data:`LAYERS` are leaky, and have maxima.
    """

    def __init__(
        self,
        patch: int,
        *,
        dimensions: int,
        width: float = 1.0,
        layers: Sequence[Layer] | None = None,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        inputs = 3
        for layer in layers or LAYERS[patch]:
            outputs = max(1, round(width * layer.channels)) if layer.channels else dimensions
            modules.append(nn.Conv2d(inputs, outputs, layer.kernel))
            modules.append(nn.ReLU() if layers else nn.LeakyReLU(_SLOPE))
            if layer.halves:
                modules.append(nn.AvgPool2d(2) if layers else nn.MaxPool2d(2))
            inputs = outputs
        self.layers = nn.Sequential(*modules[:-1])
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs, (N, D, h, w), of images (N, 3, S, S) in [−1, 1].

        Images that are smaller than a patch are extended by mirroring.
        """
        missing = self.patch - images.shape[2]
        if missing > 0:
            before = missing // 2
            margins = (before, missing - before) * 2
            images = functional.pad(images, margins, mode="reflect")
        found: Tensor = self.layers(images)
        return found


class TaughtPatches(nn.Module, ABC):
    """Teachers of patches, and students that know them on healthy patches alone.

    Images are RGB (N, 3, S, S) in [−1, 1].

    Parameters
    ----------
    teachers : sequence of PatchNetwork
    students : nn.Module
        All that is trained on healthy tiles when the teachers are.
    """

    def __init__(self, teachers: Sequence[PatchNetwork], students: nn.Module) -> None:
        super().__init__()
        self.teachers, self.students = nn.ModuleList(teachers), students

    @abstractmethod
    def losses(self, images: Tensor) -> Tensor:
        """Return the loss of the students for each image, (N,)."""

    @abstractmethod
    def scores(self, images: Tensor) -> list[Tensor]:
        """Return maps of scores, (N, h, w) each, whose mean is that of the method."""

    @abstractmethod
    def normalise(self, parts: Sequence[Tensor]) -> None:
        """Set what makes maps of scores comparable, from healthy images."""

    def taught(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the teachers, standardised by healthy ones, (N, D, h, w)."""
        found = []
        for number, teacher in enumerate(self.teachers):
            with torch.no_grad():
                own = teacher(images)
            mean, deviation = self._channels(number)
            found.append((own - mean) / deviation)
        return found

    @torch.no_grad()
    def standardise(self, parts: Sequence[Tensor]) -> None:
        """Set mean and deviation of the teachers' outputs from those of healthy images."""
        for number, teacher in enumerate(self.teachers):
            mean, deviation = channel_statistics((teacher(part) for part in parts), of="teachers")
            self.get_buffer(f"mean{number}").copy_(mean)
            self.get_buffer(f"deviation{number}").copy_(deviation)

    def _register(self, number: int, dimensions: int) -> None:
        """Make place for mean and deviation of the outputs of a teacher."""
        self.register_buffer(f"mean{number}", torch.zeros(dimensions))
        self.register_buffer(f"deviation{number}", torch.ones(dimensions))

    def _channels(self, number: int) -> tuple[Tensor, Tensor]:
        mean, deviation = self.get_buffer(f"mean{number}"), self.get_buffer(f"deviation{number}")
        return mean[:, None, None], deviation[:, None, None]


class PatchStudents(TaughtPatches):
    """Teachers of patches of several sizes, each with an ensemble of students.

    Parameters
    ----------
    patches : sequence of int
        Edges of the patches; see :data:`LAYERS`.
    students : int
        Number of students of each teacher, at least 2.
    dimensions : int
        Number of outputs of each network.
    width : float
        Share of the published channels.
    """

    def __init__(
        self, patches: Sequence[int], *, students: int, dimensions: int, width: float
    ) -> None:
        def network(patch: int) -> PatchNetwork:
            return PatchNetwork(patch, dimensions=dimensions, width=width)

        teachers = [network(patch) for patch in patches]
        ensembles = [nn.ModuleList(network(patch) for _ in range(students)) for patch in patches]
        super().__init__(teachers, nn.ModuleList(ensembles))
        self.patches = tuple(patches)
        for number in range(len(patches)):
            self._register(number, dimensions)
            # Mean and deviation of the error, then of the variance, over healthy places.
            self.register_buffer(f"healthy{number}", torch.tensor([0.0, 1.0, 0.0, 1.0]))

    def losses(self, images: Tensor) -> Tensor:
        """Return the mean squared error of all students, of each image, (N,)."""
        total = images.new_zeros(len(images))
        ensembles = self._ensembles()
        for taught, ensemble in zip(self.taught(images), ensembles, strict=True):
            for student in ensemble:
                total = total + (student(images) - taught).square().mean(dim=(1, 2, 3))
        return total / sum(len(ensemble) for ensemble in ensembles)

    def disagreement(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return error and variance at every place for each size of patches, (N, h, w).

        The error is the squared distance of the students' mean to the teacher; the variance is
        the mean squared distance of the students to their mean.
        """
        found = []
        for taught, ensemble in zip(self.taught(images), self._ensembles(), strict=True):
            every = torch.stack([student(images) for student in ensemble])
            mean = every.mean(dim=0)
            variance = (every - mean).square().sum(dim=2).mean(dim=0)
            found.append(((mean - taught).square().sum(dim=1), variance))
        return found

    def scores(self, images: Tensor) -> list[Tensor]:
        """Return the sum of error and variance in healthy deviations, by size, (N, h, w)."""
        found = []
        for number, (error, variance) in enumerate(self.disagreement(images)):
            healthy = self.get_buffer(f"healthy{number}")
            found.append((error - healthy[0]) / healthy[1] + (variance - healthy[2]) / healthy[3])
        return found

    @torch.no_grad()
    def normalise(self, parts: Sequence[Tensor]) -> None:
        """Set mean and deviation of error and variance from those of healthy images."""
        moments = [ChannelMoments() for _ in self.patches]
        for images in parts:
            for number, pair in enumerate(self.disagreement(images)):
                moments[number].add(torch.stack(pair, dim=1))
        for number, each in enumerate(moments):
            mean, deviation = each.found()
            healthy = torch.stack([mean, deviation.clamp_min(_LEAST)], dim=1).flatten()
            self.get_buffer(f"healthy{number}").copy_(healthy)

    def _ensembles(self) -> list[nn.ModuleList]:
        assert isinstance(self.students, nn.ModuleList)
        return [ensemble for ensemble in self.students if isinstance(ensemble, nn.ModuleList)]


def decorrelation(outputs: Tensor) -> Tensor:
    """Return the mean magnitude of the correlations of different outputs, (N, D) to ().

    It is 0 where outputs of a batch vary on their own.
    """
    centred = outputs - outputs.mean(dim=0)
    scaled = functional.normalize(centred, dim=0)
    correlation = scaled.T @ scaled
    count = outputs.shape[1]
    others = correlation - torch.diag(correlation.diagonal())
    return others.abs().sum() / max(1, count * (count - 1))


def triplet(own: Tensor, near: Tensor, other: Tensor, *, margin: float = 1.0) -> Tensor:
    """Return max(0, margin + |own − near|² − the smaller distance² to another patch), (N,)."""
    positive = (own - near).square().sum(dim=1)
    negative = torch.minimum((own - other).square().sum(dim=1), (near - other).square().sum(dim=1))
    return (margin + positive - negative).clamp_min(0)


def channel_statistics(parts: Iterable[Tensor], *, of: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel, (D,), of outputs (N, D, h, w) in parts.

    The deviation of a channel that does not vary is 1.

    Parameters
    ----------
    parts : iterable of Tensor
        Outputs for healthy images.
    of : str
        Networks that gave them, which the error names.

    Raises
    ------
    DetectorError
        No channel varies.
    """
    moments = ChannelMoments()
    for outputs in parts:
        moments.add(outputs)
    if (scaling := moments.scaling()) is None:
        raise DetectorError(
            f"{of} see no difference between healthy places",
            remedy="Fit on other tiles, or train the teachers longer.",
        )
    mean, deviation = scaling
    return mean.to(outputs.device), deviation.to(outputs.device)
