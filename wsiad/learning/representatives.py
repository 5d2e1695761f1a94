"""Choose a few of many feature vectors that stand for the others: what to show a reviewer first.

The strangest tiles of a detector are mostly odd healthy ones (ink, folds, blood), each unlike the
others. What is worth a label is strange *and* has many like it. Each choice is therefore the
vector with the most weight around it, and takes away the weight that it stands for, so that the
next one stands for something else.

With few labels, typical examples teach more than extreme ones (Hacohen, Dekel & Weinshall, Active
Learning on a Budget, ICML 2022). Covering the data is the core-set view (Sener & Savarese, ICLR
2018). The greedy choice by a kernel whose weight is used up is kernel herding (Chen, Welling &
Smola, UAI 2010).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError

FloatArray = npt.NDArray[np.float64]

MOST_VECTORS = 4_000
"""Maximum number of vectors to choose from: their similarities are all in memory at a time."""

_NEIGHBOURS = 5
_TINY = 1e-12


def similarities(vectors: npt.NDArray[np.floating]) -> FloatArray:
    """Compute how much each vector stands for each other one, 0 to 1.

    Parameters
    ----------
    vectors : ndarray of float, (N, D)
        Feature vectors.

    Returns
    -------
    ndarray of float64, (N, N)
        ``exp(-d² / 2 h²)`` of the Euclidean distances ``d``; ``h`` is the median distance of a
        vector to its fifth neighbour, so that the unit of the features does not matter.

    Raises
    ------
    InputError
        A feature is not finite, or there are more than :data:`MOST_VECTORS` vectors.
    """
    if len(vectors) > MOST_VECTORS:
        raise InputError(
            f"{len(vectors)} vectors are too many to compare",
            remedy=f"Compare {MOST_VECTORS} at most.",
        )
    exact = vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        raise InputError("a feature is not finite", remedy="Train the detector again.")
    exact -= exact.mean(axis=0) if len(exact) else 0.0
    lengths = np.square(exact).sum(axis=1)
    squares = np.maximum(lengths[:, None] + lengths[None, :] - 2 * exact @ exact.T, 0.0)
    np.fill_diagonal(squares, 0.0)
    if len(exact) < 2:
        return np.ones_like(squares)
    place = min(_NEIGHBOURS, len(exact) - 1)
    usual = float(np.median(np.partition(squares, place, axis=1)[:, place]))
    if usual <= _TINY * max(float(lengths.max()), _TINY):
        return (squares <= _TINY).astype(np.float64)  # most are copies of each other
    return np.exp(-squares / (2 * usual))


def rank_weights(strength: npt.NDArray[np.floating]) -> FloatArray:
    """Weigh candidates by the square of their rank: 1 for the strongest, towards 0 for the weakest.

    Among very many candidates most are ordinary, and there are many of each kind. Weights keep
    these from being chosen; without them the result depends on the number of candidates.
    """
    ranks = np.empty(len(strength))
    ranks[np.argsort(-strength.astype(np.float64), kind="stable")] = np.arange(len(strength))
    weights: FloatArray = np.square(1 - ranks / max(1, len(strength)))
    return weights


def representatives(
    vectors: npt.NDArray[np.floating],
    count: int,
    *,
    weights: npt.NDArray[np.float64],
    groups: Sequence[Hashable],
    most: int,
    taken: npt.NDArray[np.bool_] | None = None,
    used: Mapping[Hashable, int] | None = None,
) -> npt.NDArray[np.int64]:
    """Choose vectors that stand for many others, and not for the same ones.

    Parameters
    ----------
    vectors : ndarray of float, (N, D)
        Feature vectors of the candidates.
    count : int
        Number of vectors to choose.
    weights : ndarray of float64, (N,)
        How much it counts to stand for each vector, 0 or more; see :func:`rank_weights`.
    groups : sequence of hashable, (N,)
        Group of each vector, such as its slide.
    most : int
        Maximum number of vectors that are chosen of a group.
    taken : ndarray of bool, (N,), optional
        True for vectors that were chosen earlier: they are not chosen again, and what they stand
        for has no weight.
    used : mapping of hashable to int, optional
        Number of vectors that other choices took of a group, which count towards `most`.

    Returns
    -------
    ndarray of int64, (M,)
        Indices in the order of the choice, M ≤ `count`; of equal vectors the first is chosen.
        Fewer than `count` are returned if the groups allow no more.

    Raises
    ------
    InputError
        A feature is not finite, or there are too many vectors.
    """
    like = similarities(vectors)
    weight = weights.astype(np.float64, copy=True)
    free = np.ones(len(like), bool) if taken is None else ~taken
    for index in np.flatnonzero(~free):
        weight *= 1 - like[index]
    counts: Counter[Hashable] = Counter(used or {})
    free &= np.array([counts[group] < most for group in groups], bool)
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        gain = np.where(free, like @ weight, -np.inf)
        best = int(gain.argmax())
        chosen.append(best)
        weight *= 1 - like[best]
        free[best] = False
        counts[groups[best]] += 1
        if counts[groups[best]] >= most:
            free &= np.array([group != groups[best] for group in groups])
    return np.array(chosen, np.int64)
