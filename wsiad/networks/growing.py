"""Progressive growing of the autoencoder: its network, its images and its loss.

All three fade one resolution *r* in, over half of it, by a share α. With α = 1, nothing is
computed at *r*/2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.networks.autoencoder import (
    Autoencoder,
    AutoencoderShape,
    from_image,
    initialise,
    to_image,
)
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.perceptual import RelativePerceptualL1


class GrowingAutoencoder(nn.Module):
    """An autoencoder that can be run at the resolutions below its own, and in between.

    It is an :class:`~wsiad.networks.autoencoder.Autoencoder` of the final resolution, whose
    inner part serves the lower resolutions. For each of these it has modules that turn an image
    into features and back. With these, images *x* of *r* px are

    - encoded as (1 − α) · from_image_{r/2}(mean of 2 × 2 of *x*) + α ·
      down_r(from_image_r(*x*)), from where the rest of the encoder continues;
    - decoded from *h*, the features at *r*/2, as (1 − α) · (to_image_{r/2}(*h*), each
      pixel twice in both directions) + α · to_image_r(up_r(*h*)).

    Parameters
    ----------
    shape : AutoencoderShape
        Sizes of the final autoencoder.
    start_px : int
        First resolution, pixels: one of the shape's resolutions.

    Attributes
    ----------
    final : Autoencoder
        Autoencoder that remains when growing is over.
    edges : tuple of int
        Resolutions from the first to the final one, pixels.

    Raises
    ------
    DetectorError
        The autoencoder has no such resolution.

    Notes
    -----
    Karras et al., "Progressive Growing of GANs", ICLR 2018; for this autoencoder
    Shvetsova et al., IEEE Access 2021 (arXiv 2006.13265), and the authors' code.
    """

    def __init__(self, shape: AutoencoderShape, start_px: int) -> None:
        super().__init__()
        self.edges = growing_edges(shape, start_px)
        self.final = Autoencoder(shape)
        # Widths from the image down; edges are from the first resolution up.
        widths = dict(zip(self.edges[::-1], shape.channels, strict=False))
        lower = self.edges[:-1]
        self.from_image = nn.ModuleDict(
            {str(px): nn.Sequential(*from_image(shape, widths[px])) for px in lower}
        )
        self.to_image = nn.ModuleDict(
            {str(px): nn.Sequential(*to_image(shape, widths[px])) for px in lower}
        )
        initialise(self.from_image)
        initialise(self.to_image)

    def forward(self, x: Tensor, *, px: int, alpha: float = 1.0) -> Tensor:
        """Reconstruct images of ``px``, float (N, C, px, px) in [−1, 1].

        Parameters
        ----------
        x : Tensor
        px : int
            Resolution of the images, one of ``edges``.
        alpha : float
            Share of this resolution; if it is below 1, the next lower one has the rest.
        """
        return self._decode(self._encode(x, px, alpha), px, alpha)

    def _encode(self, x: Tensor, px: int, alpha: float) -> Tensor:
        layers, blocks = list(self.final.encoder), self.final.shape.blocks_per_edge
        return encoded(x, layers, self.from_image, self.edges, blocks=blocks, px=px, alpha=alpha)

    def _decode(self, latent: Tensor, px: int, alpha: float) -> Tensor:
        decoder, blocks = list(self.final.decoder), self.final.shape.blocks_per_edge
        outer = len(decoder) - 2 - self._halvings(px) * blocks
        if alpha == 1:
            return _run([*decoder[:outer], *self._to_image(px)], latent)
        h = _run(decoder[: outer - blocks], latent)
        above = _run([*decoder[outer - blocks : outer], *self._to_image(px)], h)
        below = _run(self._to_image(px // 2), h)
        return (1 - alpha) * _doubled(below) + alpha * above

    def _halvings(self, px: int) -> int:
        """Return the number of halvings between the final resolution and this one."""
        return len(self.edges) - 1 - self.edges.index(px)

    def _to_image(self, px: int) -> list[nn.Module]:
        return list(self.final.decoder)[-2:] if px == self.edges[-1] else [self.to_image[str(px)]]


class GrowingDistance(nn.Module):
    """The perceptual distance at every resolution, each with its own layers.

    Parameters
    ----------
    distances : mapping of int to RelativePerceptualL1
        Distance for each resolution, pixels.

    Notes
    -----
    Shvetsova et al., IEEE Access 2021 (arXiv 2006.13265), equation 3.
    """

    def __init__(self, distances: Mapping[int, RelativePerceptualL1]) -> None:
        super().__init__()
        self.distances = nn.ModuleDict({str(px): each for px, each in distances.items()})

    def forward(
        self, original: Tensor, reconstruction: Tensor, *, px: int, alpha: float = 1.0
    ) -> Tensor:
        """Return α · L_r(x, y) + (1 − α) · L_{r/2}(x', y') of each image, float32 (N,).

        Parameters
        ----------
        original, reconstruction : Tensor, float (N, 3, px, px)
            RGB in [−1, 1]; x' and y' are their means of 2 × 2 pixels.
        px : int
            The resolution *r*.
        alpha : float
        """
        distance: Tensor = self.distances[str(px)](original, reconstruction)
        if alpha == 1:
            return distance
        below: Tensor = self.distances[str(px // 2)](
            functional.avg_pool2d(original, 2), functional.avg_pool2d(reconstruction, 2)
        )
        return alpha * distance + (1 - alpha) * below


def growing_edges(shape: AutoencoderShape, start_px: int) -> tuple[int, ...]:
    """Return the resolutions from ``start_px`` up to that of the image, pixels.

    Raises
    ------
    DetectorError
        The autoencoder has no such resolution.
    """
    edges = shape.edges(shape.image_px, shape.latent_px)
    if start_px not in edges:
        raise DetectorError(
            f"growing cannot start at {start_px} px",
            remedy=f"Start at one of the autoencoder's resolutions: {', '.join(map(str, edges))}.",
        )
    return edges[edges.index(start_px) :: -1]


def seeded_growing(shape: AutoencoderShape, start_px: int, seed: int) -> GrowingAutoencoder:
    """Return a growing autoencoder whose weights follow from the seed alone.

    Its final autoencoder starts with the weights of the one that does not grow.
    """
    with drawing_weights(seed):
        return GrowingAutoencoder(shape, start_px)


def encoded(
    x: Tensor,
    layers: Sequence[nn.Module],
    lower: nn.ModuleDict,
    edges: tuple[int, ...],
    *,
    blocks: int,
    px: int,
    alpha: float,
) -> Tensor:
    """Run images through the encoder of the final resolution, from where they enter it.

    Parameters
    ----------
    x : Tensor, float (N, C, px, px)
    layers : sequence of nn.Module
        Layers of the encoder of the final resolution.
    lower : nn.ModuleDict
        Modules for each lower resolution that turn its images into features.
    edges : tuple of int
        Resolutions from the first to the final one, pixels.
    blocks : int
        Number of residual blocks at each resolution.
    px : int
    alpha : float
        Share of ``px``; if it is below 1, the next lower resolution has the rest.
    """
    halvings = len(edges) - 1 - edges.index(px)  # between the final resolution and this one
    inner = 1 + blocks + halvings * blocks
    h = _run([lower[str(px)]] if halvings else layers[:inner], x)
    if alpha < 1:
        h = _run(layers[inner : inner + blocks], h)
        below = _run([lower[str(px // 2)]], functional.avg_pool2d(x, 2))
        h = (1 - alpha) * below + alpha * h
        inner += blocks
    return _run(layers[inner:], h)


def shrunk(images: Tensor, px: int) -> Tensor:
    """Sample images (N, C, S, S) down to ``px``, bilinearly and without antialiasing.

    As in the authors' code, the middle 2 × 2 of each 4 × 4 pixels make one at a quarter.
    """
    if images.shape[-1] == px:
        return images
    return functional.interpolate(
        images, size=(px, px), mode="bilinear", align_corners=False, antialias=False
    )


def faded(images: Tensor, *, px: int, alpha: float = 1.0) -> Tensor:
    """Return images (N, C, S, S) as they are seen while growing, (N, C, px, px).

    The result is α · (the images at ``px``) + (1 − α) · (those at half of it, each pixel twice
    in both directions).
    """
    own = shrunk(images, px)
    if alpha == 1:
        return own
    return (1 - alpha) * _doubled(shrunk(images, px // 2)) + alpha * own


def _doubled(images: Tensor) -> Tensor:
    return functional.interpolate(images, scale_factor=2, mode="nearest")


def _run(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x
