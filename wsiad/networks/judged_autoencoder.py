"""An autoencoder whose results are encoded again, and judged by a critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from wsiad.networks.conv_stack import Critic, Decoder, Encoder, seeded
from wsiad.networks.image_distances import absolute, pooled, squared
from wsiad.networks.stack_shape import StackShape

ImageTerm = Literal["l1", "l2"]
Judged = Literal["code", "l1", "l2", "features"]
"""Distances of an image to what was made of it: of codes, of pixels, of the critic's features."""
Term = Literal["code", "l1", "l2", "features", "critic"]
"""The same distances, and the judgement of the critic."""

OF_THE_CRITIC = frozenset({"features", "critic"})
"""Terms that change with the critic."""


class Restored(NamedTuple):
    """The result of an autoencoder.

    Parameters
    ----------
    image : Tensor, (N, 3, S, S)
        Reconstruction.
    code : Tensor, (N, L) or (N, L, m, m)
        Code of the image.
    again : Tensor or None
        Code of the reconstruction, by the second encoder if there is one.
    """

    image: Tensor
    code: Tensor
    again: Tensor | None


class TwiceEncoding(nn.Module):
    """An encoder, its decoder, and another encoder of the same shape for what the decoder makes.

    Parameters
    ----------
    shape : StackShape
    twice : bool
        False to leave out the second encoder.

    Notes
    -----
    Akcay, Atapour-Abarghouei & Breckon, "GANomaly: Semi-Supervised Anomaly Detection via
    Adversarial Training", ACCV 2018; with skip connections and without the second encoder,
    "Skip-GANomaly", IJCNN 2019, by the same authors.
    """

    def __init__(self, shape: StackShape, *, twice: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.second = Encoder(shape) if twice else None

    def forward(self, x: Tensor) -> Restored:
        """Map images (N, 3, S, S) in [−1, 1] to their reconstructions and codes."""
        found = self.encoder.features(x)
        code = self.encoder.head(found[-1])
        image = self.decoder(code, found)
        return Restored(image, code, None if self.second is None else self.second(image))


class JudgedAutoencoder(nn.Module):
    """An autoencoder, the critic that is its opponent, and the distances by both.

    Parameters
    ----------
    shape : StackShape
        Shape of the encoders and the decoder.
    critic_shape : StackShape
    twice : bool
        True for a second encoder.
    critic_vector : int or None
        Length of the critic's vector of features; see :class:`~wsiad.networks.conv_stack.Critic`.
    seed : int
        Seed of the first weights; autoencoder and critic have their own.
    """

    def __init__(
        self,
        shape: StackShape,
        critic_shape: StackShape,
        *,
        twice: bool,
        critic_vector: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.generator = seeded(lambda: TwiceEncoding(shape, twice=twice), seed)
        self.critic = seeded(lambda: Critic(critic_shape, vector=critic_vector), seed, 1)

    def losses(
        self,
        x: Tensor,
        made: Restored,
        terms: Mapping[Term, float],
        opponent: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the weighted sum of terms for each image, (N,).

        Parameters
        ----------
        x : Tensor, (N, 3, S, S)
            Images in [−1, 1].
        made : Restored
        terms : mapping
            Terms with their weights.
        opponent : callable
            Function that maps the critic's numbers for reconstructions, (N,), to the loss of
            each, for the term ``critic``.
        """
        total = x.new_zeros(len(x))
        for name, weight in terms.items():
            if name == "critic":
                found = opponent(self.critic(made.image))
            else:
                found = self._map(name, x, made).flatten(1).mean(dim=1)
            total = total + weight * found
        return total

    def places(
        self, x: Tensor, made: Restored, terms: Mapping[Judged, float], places: int
    ) -> Tensor:
        """Return the weighted sum of terms at every place, (N, places, places).

        A term of vectors has one value for all places. The mean over the places of a map is its
        own mean if the edge of one is a multiple of the other's.
        """
        total = x.new_zeros(len(x), places, places)
        for name, weight in terms.items():
            total = total + weight * pooled(self._map(name, x, made), places)
        return total

    def _map(self, name: Judged, x: Tensor, made: Restored) -> Tensor:
        """Return a distance, averaged over channels, as a map (N, m, m)."""
        match name:
            case "l1":
                return absolute(x, made.image)
            case "l2":
                return squared(x, made.image)
            case "code":
                assert made.again is not None
                return _mean_square(made.code, made.again)
            case "features":
                return _mean_square(self.critic.features(x), self.critic.features(made.image))


def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Return (a − b)² averaged over the channels of maps, (N, m, m), or of vectors, (N, 1, 1)."""
    found = (first - second).square().mean(dim=1)
    return found if found.ndim > 1 else found.view(-1, 1, 1)
