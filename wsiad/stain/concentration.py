"""How much of each of two stains a colour holds: the non-negative lasso, solved exactly."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from wsiad.stain.density import Densities

Stains = npt.NDArray[np.float64]
"""Optical density vectors of haematoxylin and eosin, unit rows, (2, 3)."""

Concentrations = npt.NDArray[np.float64]
"""Concentrations of haematoxylin and eosin, (n, 2)."""

PENALTY: Final = 0.01
"""λ of the concentrations, as in StainTools; the dictionary is learned with a larger one."""


def concentrations(
    density: Densities, stains: Stains, *, penalty: float = PENALTY
) -> Concentrations:
    """Minimise ½‖x − aD‖² + λ(a₁ + a₂) over a ≥ 0 for each density x.

    With two unit stains at an acute angle the active set is known from the signs of
    two numbers, so that no solver is needed: with b = Dx − λ and c = d₁·d₂ both stains
    are active where b₁ > c b₂ and b₂ > c b₁, and else at most the one with the larger b.

    Parameters
    ----------
    density : ndarray of float64, (n, 3)
        Optical densities x.
    stains : ndarray of float64, (2, 3)
        Unit rows D with 0 ≤ d₁·d₂ < 1.
    penalty : float
        λ ≥ 0.

    Returns
    -------
    ndarray of float64, (n, 2)
    """
    return active_set(*(stains @ density.T - penalty), cosine=float(stains[0] @ stains[1])).T


def active_set(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], *, cosine: float
) -> npt.NDArray[np.float64]:
    """Return both concentrations, (2, ...), from b₁ and b₂ of :func:`concentrations`."""
    alone_first, alone_second = first, second
    first, second = alone_first - cosine * alone_second, alone_second - cosine * alone_first
    scale = 1.0 / (1.0 - cosine * cosine)
    both = np.stack(
        [
            np.where(second > 0, first * scale, alone_first),
            np.where(first > 0, second * scale, alone_second),
        ]
    )
    return np.maximum(both, 0.0, out=both)
