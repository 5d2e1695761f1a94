"""Support vector data description: the score is the distance to the centre of a ball."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import (
    Matrix,
    PcaComponents,
    check_count,
    fit_projection,
    float32,
    project,
)
from wsiad.learning.detector import DetectorOptions, Pooling

_ROUNDS = 2000
_TOLERANCE = 1e-4  # of the squared radius


class SvddOptions(FeatureOptions):
    """Options of ``svdd``."""

    centre: Literal["ball", "median"] = "ball"
    """Centre of the smallest ball around all healthy vectors except a share ``nu``, or their
    geometric median, which strange vectors among them hardly move."""
    nu: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.1
    """Share of healthy vectors that can be outside of the ball."""
    pca_components: PcaComponents = 0.95
    """Principal components of the standardised features: a number, a share of variance, or all."""
    whiten: bool = False
    """Scale every component to the variance 1."""
    pooling: Pooling = "quantile"

    inverted_auroc: ClassVar[str] = "0.357"


class SupportVectorDataDescription(FeatureDetector):
    """Distance of frozen features to the centre of a ball around healthy ones.

    SVDD (Tax & Duin, Machine Learning 54, 2004) with a linear kernel: the centre a and radius R
    minimise R² plus the mean excess of |v − a|² over R², divided by ν. The score is
    |v − a|² − R². With a Gaussian kernel, SVDD is the one-class SVM, for which ``ocsvm`` is
    the detector.

    With ``centre: median`` the centre is the geometric median, and R² the quantile 1 − ν of
    the squared distances to it.
    """

    Options: ClassVar[type[DetectorOptions]] = SvddOptions
    options: SvddOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the projection, the ``ball`` (D,), its centre, and ``square_radius`` (1,)."""
        options = self.options
        least = int(np.ceil(2 / options.nu))
        purpose = f"a ball of nu {options.nu}: it needs {least}"
        check_count(vectors, least, purpose, otherwise="set a larger nu")
        projection = fit_projection(
            vectors, options.pca_components, standardise=True, whiten=options.whiten
        )
        values = project(torch.from_numpy(vectors), projection).double().numpy()
        if options.centre == "ball":
            centre = ball_centre(values, options.nu)
        else:
            centre = geometric_median(values)
        squares = np.square(values - centre).sum(axis=1)
        radius = np.quantile(squares, 1 - options.nu, keepdims=True)
        return {**projection, "ball": float32(centre), "square_radius": float32(radius)}

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the excess of the squared distance of each vector over the squared radius."""
        away = project(vectors, fitted) - fitted["ball"]
        return away.square().sum(dim=1) - fitted["square_radius"]


def ball_centre(values: Matrix, nu: float) -> Matrix:
    """Return the centre (D,) of the SVDD ball with a linear kernel, of vectors (N, D).

    For a given centre, the best R² is a quantile of the squared distances, and the rest to
    minimise is the mean of the νN largest. Its gradient is twice the vector from their mean
    to the centre. Steps of 2 / (round + 2) (Frank & Wolfe on the dual) end when the dual, which
    is a lower bound, is reached to 1e-4.
    """
    squares = np.square(values).sum(axis=1)
    centre = values.mean(axis=0)
    weighted_squares = float(squares.mean())
    best, lowest, bound = centre, np.inf, -np.inf
    for step in range(1, _ROUNDS + 1):
        distances = squares - 2 * values @ centre + centre @ centre
        weights = _outermost(distances, nu)
        excess = float(weights @ distances)
        if excess < lowest:
            best, lowest = centre, excess
        bound = max(bound, weighted_squares - float(centre @ centre))
        if lowest - bound <= _TOLERANCE * max(lowest, 1e-12):
            break
        share = 2 / (step + 2)
        centre = (1 - share) * centre + share * (weights @ values)
        weighted_squares = (1 - share) * weighted_squares + share * float(weights @ squares)
    return best


def _outermost(distances: Matrix, nu: float) -> Matrix:
    """Return weights (N,) of the largest distances, at most 1 / (νN) each and 1 in total."""
    weights = np.zeros(len(distances))
    size = max(nu * len(distances), 1.0)
    order = np.argsort(-distances, kind="stable")
    whole = int(size)
    weights[order[:whole]] = 1 / size
    if whole < len(order):
        weights[order[whole]] = (size - whole) / size
    return weights


def geometric_median(values: Matrix) -> Matrix:
    """Return the point (D,) with the smallest sum of distances to vectors (N, D); Weiszfeld."""
    centre = np.median(values, axis=0)
    for _ in range(_ROUNDS):
        distances = np.linalg.norm(values - centre, axis=1)
        weights = 1 / np.maximum(distances, 1e-9 * max(distances.max(), 1e-30))
        moved = weights @ values / weights.sum()
        step = float(np.linalg.norm(moved - centre))
        centre = moved
        if step <= 1e-7 * float(distances.mean()):
            break
    return centre
