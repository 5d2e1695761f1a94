"""A dictionary of healthy features: strange is what its entries do not match or do not express."""

from __future__ import annotations

import warnings
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._stored import Vectors
from wsiad.detectors._vectors import (
    Matrix,
    PcaComponents,
    check_count,
    fit_projection,
    float32,
    in_blocks,
    nearest,
    project,
    random_state,
    whitening,
)
from wsiad.detectors.kde import log_density, scott
from wsiad.learning.detector import DetectorOptions, Pooling

_DENSITY = "density."
_KERNELS = 2_000  # healthy vectors around which the kernel density has kernels

_Count = Annotated[int, pydantic.Field(ge=1)]
_Weight = Annotated[float, pydantic.Field(ge=0)]


class DictionaryOptions(FeatureOptions):
    """Options of ``dictionary``."""

    by: Literal["kmeans", "sparse"] = "kmeans"
    """Entries are the healthy vectors nearest to the centres of k-means, whose distance is scored;
    or they are learnt so that few of them add up to each healthy vector."""
    entries: _Count = 500
    """Number of entries of the dictionary; with ``levels: groups``, of each level."""
    normalise: Literal["l1", "l2", "none"] = "l1"
    """Scaling of every vector, for ``kmeans``: to a sum of magnitudes of 1, to length 1, or
    none."""
    pca_components: PcaComponents = 0.95
    """Principal components to reduce to, for ``kmeans``: a number, a share of variance, or all."""
    neighbours: _Count = 5
    """Number of nearest entries over which the distance is averaged, for ``kmeans``."""
    penalty: Annotated[float, pydantic.Field(gt=0)] = 0.1
    """Weight λ of the magnitudes of the coefficients, for ``sparse``, where 1 is the mean length of
    a healthy vector."""
    levels: Literal["joint", "groups"] = "joint"
    """Use the features of all layers as one vector; or, for ``sparse``, learn a dictionary of each
    layer (a level of pixels) and express the finest by the entries of all."""
    group_penalty: _Weight = 0.1
    """Weight of the lengths of the coefficients of each level, for ``levels: groups``."""
    density: Literal["kde", "gaussian"] = "kde"
    """Density of residual and magnitudes of healthy vectors, for ``sparse``: by kernels, or a
    Gaussian."""
    passes: _Count = 5
    """Number of passes over the healthy vectors in which a ``sparse`` dictionary is learnt."""
    iterations: _Count = 100
    """Number of steps in which coefficients are found."""
    pooling: Pooling = "quantile"

    @pydantic.model_validator(mode="after")
    def _levels_of_sparse(self) -> Self:
        if self.levels == "groups" and self.by != "sparse":
            raise ValueError("levels: groups is for by: sparse")
        return self


class Dictionary(FeatureDetector):
    """Distance to, or expression by, the entries of a dictionary of healthy features.

    With ``by: kmeans`` it is the method of Napoletano et al. 2018: vectors of a sum of magnitudes
    of 1, their principal components, the real vectors nearest to the centres of k-means, and the
    mean distance to the nearest entries. Five nearest are from general knowledge of the paper.

    With ``by: sparse`` it is the method of Carrera et al. 2015: a vector s without its mean has
    the coefficients x that minimise ½|s − Dx|² + λ|x|₁, and the score is −log of the density of
    (|s − Dx|², |x|₁) among healthy vectors. ``levels: groups`` adds the penalty and the feature
    Σ‖x of a level‖₂ (Carrera et al. 2016). The dictionary is learnt from one half of the healthy
    vectors, and the density from the other. The features, the density and the groups are from
    general knowledge of the papers.

    Notes
    -----
    Napoletano, Piccoli & Schettini, *Anomaly Detection in Nanofibrous Materials by CNN-Based
    Self-Similarity*, Sensors 18 (2018). Carrera, Boracchi, Foi & Wohlberg, *Detecting anomalous
    structures by convolutional sparse models* (IJCNN 2015) and *Scale-invariant anomaly detection
    with multiscale group-sparse models* (ICIP 2016).
    """

    Options: ClassVar[type[DetectorOptions]] = DictionaryOptions
    options: DictionaryOptions

    def fit_vectors(self, vectors: Vectors) -> dict[str, Tensor]:
        """Return the projection and the ``bank`` of entries (B, D), or the sparse dictionary.

        A sparse dictionary has ``entries`` (K, C), the level of each (``group``, (K,)), the
        ``scale`` of healthy vectors (1,), and a ``density`` of their features.
        """
        return (
            self._fit_nearest(vectors) if self.options.by == "kmeans" else self._fit_sparse(vectors)
        )

    def distance(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return the mean distance to the nearest entries, or the −log density of the code."""
        if self.options.by == "kmeans":
            values = project(_scaled(vectors, self.options.normalise), fitted)
            count = min(self.options.neighbours, len(fitted["bank"]))
            return nearest(values, fitted["bank"], count)[0].mean(dim=1)
        found = self._code_features(vectors, fitted)
        density = {
            name.removeprefix(_DENSITY): tensor
            for name, tensor in fitted.items()
            if name.startswith(_DENSITY)
        }
        if self.options.density == "gaussian":
            return ((found - density["mean"]) @ density["whitening"].t()).norm(dim=1)
        values = project(found, density)
        return -log_density(values, density["bank"], density["bandwidth"])

    def _fit_nearest(self, vectors: Vectors) -> dict[str, Tensor]:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        options = self.options
        purpose = f"a dictionary of {options.entries} entries"
        check_count(vectors, max(2, options.entries), purpose, otherwise="set fewer entries")
        scaled = _scaled(torch.from_numpy(vectors), options.normalise)
        projection = fit_projection(scaled.numpy(), options.pca_components)
        values = project(scaled, projection)
        means = KMeans(options.entries, n_init=1, random_state=random_state(self._seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            centres = float32(means.fit(values.numpy()).cluster_centers_)
        chosen = torch.unique(nearest(centres, values, 1)[1][:, 0])
        return {**projection, "bank": values[chosen]}

    def _fit_sparse(self, vectors: Vectors) -> dict[str, Tensor]:
        check_count(vectors, 4, "a sparse dictionary")
        blocks = self._blocks(vectors.shape[1])
        values = _without_mean(torch.from_numpy(vectors), blocks)
        scale = values[:, : blocks[0]].norm(dim=1).mean()
        if not scale > 0:
            raise DetectorError("healthy vectors are all flat", remedy="Fit on other tiles.")
        values = values / scale
        parts = torch.split(values[::2], blocks, dim=1)
        learnt = [self._learnt(part.double().numpy()) for part in parts]
        group = [torch.full((len(one),), number) for number, one in enumerate(learnt)]
        entries = torch.cat([float32(one) for one in learnt])
        fitted = {
            "entries": entries,
            "group": torch.cat(group),
            "scale": scale[None],
            "blocks": torch.tensor(blocks),
        }
        healthy = self._code_features(torch.from_numpy(vectors[1::2]), fitted).double().numpy()
        return {**fitted, **self._fit_density(healthy)}

    def _learnt(self, values: Matrix) -> Matrix:
        """Return entries (K, C) of length 1 of which few add up to each vector."""
        from sklearn.decomposition import MiniBatchDictionaryLearning
        from sklearn.exceptions import ConvergenceWarning

        learning = MiniBatchDictionaryLearning(
            self.options.entries,
            alpha=self.options.penalty,
            max_iter=self.options.passes,
            batch_size=256,
            fit_algorithm="cd",
            random_state=random_state(self._seed),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found: Matrix = learning.fit(values).components_
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.maximum(lengths, 1e-12)

    def _fit_density(self, healthy: Matrix) -> dict[str, Tensor]:
        if self.options.density == "gaussian":
            covariance = np.atleast_2d(np.cov(healthy.T))
            covariance += 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
            found = {
                "mean": float32(healthy.mean(axis=0)),
                "whitening": float32(whitening(covariance, len(healthy))),
            }
        else:
            projection = fit_projection(healthy.astype(np.float32), None, whiten=True)
            rng = np.random.default_rng([self._seed, len(healthy)])
            most = min(_KERNELS, len(healthy))
            rows = np.sort(rng.choice(len(healthy), most, replace=False))
            bank = project(float32(healthy[rows]), projection)
            found = {**projection, "bank": bank, "bandwidth": torch.tensor([scott(*bank.shape)])}
        return {_DENSITY + name: tensor for name, tensor in found.items()}

    def _code_features(self, vectors: Tensor, fitted: dict[str, Tensor]) -> Tensor:
        """Return squared residual, magnitudes and lengths by level of the codes of vectors."""
        options = self.options
        blocks = fitted["blocks"].tolist()
        signals = _without_mean(vectors, blocks)[:, : blocks[0]] / fitted["scale"]
        entries, group = fitted["entries"], fitted["group"]
        grouped = options.levels == "groups"

        def features(part: Tensor) -> Tensor:
            code = sparse_code(
                part,
                entries,
                penalty=options.penalty,
                group_penalty=options.group_penalty if grouped else 0.0,
                group=group,
                iterations=options.iterations,
            )
            residual = (part - code @ entries).square().sum(dim=1)
            found = [residual, code.abs().sum(dim=1)]
            if grouped:
                found.append(_lengths(code, group).sum(dim=1))
            return torch.stack(found, dim=1)

        return in_blocks(features, signals, 4 * len(entries))

    def _blocks(self, channels: int) -> list[int]:
        """Return the widths of the vectors that are learnt apart."""
        if self.options.levels == "joint":
            return [channels]
        if self._backbone is None or self.options.imported():
            raise DetectorError(
                "levels: groups needs the layers of a backbone", remedy="Set levels: joint."
            )
        widths = [shape[0] for shape in self._backbone.check_places(self._edge())]
        if len(set(widths)) > 1 or len(widths) < 2:
            raise DetectorError(
                f"levels: groups needs several layers of the same width, not of {widths} channels",
                remedy="Set backbone: pixels and layers: [level0, level1].",
            )
        return widths


def sparse_code(
    signals: Tensor,
    entries: Tensor,
    *,
    penalty: float,
    group_penalty: float = 0.0,
    group: Tensor | None = None,
    iterations: int = 100,
) -> Tensor:
    """Return coefficients x that minimise ½|s − xD|² + λ|x|₁ + ξ Σ‖x of a group‖₂.

    They are found by accelerated proximal gradient steps (Beck & Teboulle 2009) of a fixed
    number, so that those of a vector do not depend on other vectors. With orthonormal entries and
    no groups, the first step is exact: soft(Ds, λ).

    Parameters
    ----------
    signals : Tensor, (N, C)
    entries : Tensor, (K, C)
        The dictionary D.
    penalty, group_penalty : float
        Weights λ and ξ.
    group : Tensor of int64, (K,), optional
        Number of the group of each entry, for a ``group_penalty``.
    iterations : int

    Returns
    -------
    Tensor, (N, K)
    """
    gram, inner = entries @ entries.t(), signals @ entries.t()
    step = 1 / float(torch.linalg.matrix_norm(gram.double(), 2))
    code = torch.zeros_like(inner)
    ahead, momentum = code, 1.0
    for _ in range(iterations):
        found = functional.softshrink(ahead - step * (ahead @ gram - inner), step * penalty)
        if group_penalty and group is not None:
            lengths = _lengths(found, group).clamp_min(1e-12)
            found = found * (1 - step * group_penalty / lengths).clamp_min(0)[:, group]
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = found + (momentum - 1) / after * (found - code)
        code, momentum = found, after
    return code


def _lengths(code: Tensor, group: Tensor) -> Tensor:
    """Return the lengths of the coefficients of each group, (N, K) to (N, G)."""
    sums = code.new_zeros(len(code), int(group.max()) + 1)
    return sums.index_add_(1, group, code.square()).sqrt()


def _scaled(vectors: Tensor, how: str) -> Tensor:
    if how == "none":
        return vectors
    return functional.normalize(vectors, p=1 if how == "l1" else 2, dim=1)


def _without_mean(vectors: Tensor, blocks: list[int]) -> Tensor:
    """Return vectors whose blocks each have the mean 0."""
    parts = torch.split(vectors, blocks, dim=1)
    return torch.cat([part - part.mean(dim=1, keepdim=True) for part in parts], dim=1)
