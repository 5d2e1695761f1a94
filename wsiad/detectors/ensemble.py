"""An ensemble of detectors: the score is the mean of their standardised scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch

from wsiad.core.config import Config, build
from wsiad.core.errors import ConfigError, DetectorError, PluginError
from wsiad.core.packages import Distribution
from wsiad.detectors import registry
from wsiad.detectors._stored import StoredFeatureDetector
from wsiad.learning.batches import sample, windows
from wsiad.learning.detector import (
    Budget,
    Detector,
    DetectorOptions,
    Embedding,
    Embeds,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Scores,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.feature_source import (
    ComputesFeatures,
    ReadsFeatures,
    embeddings,
    sampled_positions,
    score_maps,
)

_BATCH = 128
_COMPARED_TILES = 2_000
_LEAST_SPREAD = 1e-12


class MemberOptions(Config):
    """A detector of the ensemble."""

    detector: str
    """Name of the detector."""
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Options of the detector; the size of the input is the ensemble's."""
    weights: str | None = None
    """Pretrained weights of the detector, as the run's ``--weights``; the run's by default."""
    share: Annotated[float, pydantic.Field(gt=0)] = 1
    """Weight of the detector in the mean."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Number that is added to the run's seed, to make members of equal options differ."""


_SQUEEZENET = {"backbone": "squeezenet1_1"}
_THREE = (
    MemberOptions(detector="knn", options=_SQUEEZENET),
    MemberOptions(detector="knn", options=_SQUEEZENET | {"layers": ["features.7"], "magnify": 1.5}),
    MemberOptions(detector="knn", options={"backbone": "wsiad"}, weights="wsiad"),
)


class EnsembleOptions(DetectorOptions):
    """Options of ``ensemble``."""

    members: Annotated[tuple[MemberOptions, ...], pydantic.Field(min_length=1)] = _THREE
    """Detectors of the ensemble. Default: ``knn`` on SqueezeNet's fine features, on its deeper
    features of tiles enlarged by half, and on the network that comes with wsiad."""


@dataclass(slots=True)
class _Member:
    """A detector, its share, and the mean and deviation of its scores of healthy tiles."""

    detector: Detector
    name: str
    share: float
    mean: float = 0.0
    spread: float = 1.0
    length: float = 1.0
    """Root mean square distance of its features of healthy tiles from their mean."""

    def standardised(self, scores: Scores) -> npt.NDArray[np.float64]:
        """Return its scores in units of the deviation over healthy ones, (N,)."""
        return (scores.astype(np.float64) - self.mean) / self.spread

    def reads(self, source: TileSource) -> bool:
        """Tell whether a source has the features that it needs."""
        return isinstance(self.detector, ReadsFeatures) and self.detector.reads(source)


class Ensemble(Detector):
    """The weighted mean of the scores of several detectors.

    The scores of each detector are standardised first: their mean over held-out healthy tiles
    is subtracted, and the rest is divided by their deviation there. Detectors that err in
    different ways do better together than the best of them (Kittler, Hatef, Duin & Matas: On
    Combining Classifiers, IEEE TPAMI 1998, the sum rule). Anomaly scores have no common unit,
    so the standardised ones are added (Aggarwal & Sathe: Theoretical Foundations and Algorithms
    for Outlier Ensembles, SIGKDD Explorations 2015).

    A tile is one place; the tile scores that are added follow each member's own pooling.
    """

    Options: ClassVar[type[DetectorOptions]] = EnsembleOptions
    remembers_tiles: ClassVar[bool] = True
    options: EnsembleOptions
    uses_anomalies: ClassVar[bool] = True

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._members: list[_Member] = []

    @classmethod
    def learns_from_anomalies(cls, options: DetectorOptions) -> bool | Literal["needed"]:
        """Tell whether any of the members uses, or even needs, anomalous tiles."""
        assert isinstance(options, EnsembleOptions)
        found = [_learns(member) for member in options.members]
        return "needed" if "needed" in found else any(found)

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Fit the members one after the other, and measure their scores of healthy tiles.

        Each member has a folder of its own in the run's. The minutes of a fit are divided
        evenly among the members; the limit on steps holds for each member.

        Raises
        ------
        DetectorError
            A member cannot be fitted, or scores all healthy tiles alike; or there are anomalous
            tiles, but no member learns from them.
        WeightsError
            A member's weights are not on this machine.
        ConfigError
            The options of a member are wrong.
        """
        members = [self._made(number) for number in range(1, len(self.options.members) + 1)]
        learns = [m.detector.learns_from_anomalies(m.detector.options) for m in members]
        if context.anomalies is not None and not any(learns):
            raise DetectorError(
                "none of its members learns from anomalous tiles",
                remedy="Leave --anomalies out, or add a member that does, for example devnet.",
            )
        budget = _part(context.budget, len(members))
        reports = []
        for number, (member, asked) in enumerate(
            zip(members, self.options.members, strict=True), start=1
        ):
            folder = context.folder / f"member-{number}"
            folder.mkdir(exist_ok=True)
            own = replace(
                _own(context, asked),
                folder=folder,
                anomalies=context.anomalies if learns[number - 1] else None,
                budget=budget,
            )
            try:
                reports.append(member.detector.fit(tiles, own))
                self._compare(member, tiles.stop, context.seed)
            except DetectorError as error:
                raise DetectorError(
                    error.problem, subject=f"member {number}, {member.name}", remedy=error.remedy
                ) from error
            if not any(folder.iterdir()):  # one that keeps nothing while it is fitted
                folder.rmdir()
        self._members = members
        notes = [
            {"detector": m.name, "share": m.share, "ended_by": r.ended_by, **r.notes}
            for m, r in zip(members, reports, strict=True)
        ]
        return FitReport(
            ended_by=_how(reports),
            steps=sum(report.steps for report in reports),
            notes={"members": notes} | _weights(notes),
        )

    def score_places(self, tiles: Tiles) -> Scores:
        """Score tiles; a tile is one place, float32 (N, 1, 1)."""
        if not self._members:
            raise DetectorError("the detector is not fitted yet")
        return self._averaged([member.detector.score(tiles) for member in self._members])

    def _averaged(self, scores: Sequence[Scores]) -> Scores:
        """Return the mean of the members' standardised scores, float32 (N, 1, 1)."""
        found = [m.standardised(part) for m, part in zip(self._members, scores, strict=True)]
        shares = [member.share for member in self._members]
        mean = np.average(np.stack(found, axis=1), axis=1, weights=shares)
        return np.asarray(mean.reshape(-1, 1, 1), np.float32)

    def opened(self, context: FitContext) -> Sequence[ComputesFeatures]:
        """Load the members' networks; see :mod:`wsiad.learning.feature_source`."""
        found: list[ComputesFeatures] = []
        for number, asked in enumerate(self.options.members, start=1):
            detector = self._made(number).detector
            if isinstance(detector, ReadsFeatures):
                found += detector.opened(_own(context, asked))
        return found

    def reads(self, source: TileSource) -> bool:
        """Tell whether a source has the features of any of the members."""
        return self.options.orientations == 1 and any(m.reads(source) for m in self._members)

    def maps(self, source: TileSource, *, batch: int) -> Iterator[Scores]:
        """Yield the scores of complete tiles; members without stored features compute theirs."""
        parts = [score_maps(m.detector, source, batch=batch) for m in self._members]
        for maps in zip(*parts, strict=True):
            pooled = [m.detector.pool(one) for m, one in zip(self._members, maps, strict=True)]
            yield self._averaged(pooled)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the members' features side by side, float32 (N, D).

        The features of a member are divided by their spread over healthy tiles, and weighted by
        the root of its share. A member without features gives its standardised score. See
        :class:`wsiad.learning.detector.Embeds`.
        """
        if not self._members:
            raise DetectorError("the detector is not fitted yet")
        return self._joined(
            m.detector.embed(tiles) if isinstance(m.detector, Embeds) else m.detector.score(tiles)
            for m in self._members
        )

    def embeddings(self, source: TileSource, *, batch: int) -> Iterator[Embedding]:
        """Yield the features of complete tiles; members without stored ones compute theirs."""
        parts = [_features_or_scores(m.detector, source, batch) for m in self._members]
        for found in zip(*parts, strict=True):
            yield self._joined(found)

    def _joined(self, found: Iterable[npt.NDArray[np.float32]]) -> Embedding:
        """Return the members' features (N, D), or scores (N,), side by side and weighted."""
        parts: list[npt.NDArray[Any]] = []
        for member, values in zip(self._members, found, strict=True):
            scaled: npt.NDArray[Any] = values / member.length
            if values.ndim == 1:
                scaled = member.standardised(values)[:, None]
            parts.append(scaled * np.sqrt(member.share))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def state(self) -> State:
        """Return the states of the members, with the numbers that make their scores comparable."""
        if not self._members:
            raise DetectorError("the detector is not fitted yet")
        tensors: dict[str, torch.Tensor] = {}
        values = []
        for number, member in enumerate(self._members, start=1):
            state = member.detector.state()
            tensors |= {f"{number}.{name}": tensor for name, tensor in state.tensors.items()}
            values.append(
                {
                    "detector": member.name,
                    "options": member.detector.options.model_dump(mode="json"),
                    "values": state.values,
                    "share": member.share,
                    "mean": member.mean,
                    "spread": member.spread,
                    "length": member.length,
                }
                | _plugin_of(member.name)
            )
        return State(tensors, {"members": values})

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this ensemble."""
        try:
            self._members = [
                self._restored(number, dict(stored), state.tensors, device)
                for number, stored in enumerate(state.values["members"], start=1)
            ]
        except PluginError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise DetectorError(f"the state is not that of this detector ({error})") from error

    def _made(self, number: int) -> _Member:
        """Make a member from its options, which are checked before anything is fitted."""
        asked = self.options.members[number - 1]
        cls = registry.load(asked.detector)
        options = build(cls.Options, asked.options, source=f"options of member {number}")
        if options.input_px is not None:
            raise ConfigError(
                "input_px is the ensemble's, not a member's",
                subject=f"options of member {number}",
                remedy=f"Pass --option input_px={options.input_px}.",
            )
        return _Member(cls(options, self.spec), asked.detector, asked.share)

    def _restored(
        self,
        number: int,
        stored: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        device: torch.device,
    ) -> _Member:
        plugin = stored.get("plugin")
        maker = Distribution(**plugin) if plugin else None
        cls = registry.load_made_by(stored["detector"], maker)
        options = build(cls.Options, stored["options"], source=f"options of member {number}")
        detector = cls(options, self.spec)
        prefix = f"{number}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        detector.load_state(State(own, stored["values"]), device)
        numbers = {key: float(stored[key]) for key in ("share", "mean", "spread", "length")}
        if not all(np.isfinite(one) for one in numbers.values()) or numbers["spread"] <= 0:
            raise ValueError(f"member {number} has no valid mean or deviation of its scores")
        return _Member(detector, stored["detector"], **numbers)

    def _compare(self, member: _Member, held_out: TileSource, seed: int) -> None:
        """Measure the mean and the deviation of a member's scores of held-out healthy tiles."""
        scores: list[Scores] = []
        features: list[Embedding] = []
        detector = member.detector
        if isinstance(detector, StoredFeatureDetector) and detector.reads(held_out):
            chosen = sampled_positions(held_out, _COMPARED_TILES, batch=_BATCH, seed=seed)
            maps = detector.maps(held_out, batch=_BATCH, positions=chosen)
            scores += [detector.pool(part) for part in maps]
            features += detector.embeddings(held_out, batch=_BATCH, positions=chosen)
        else:
            for part in sample(held_out, _COMPARED_TILES, batch=_BATCH, seed=seed)[1]:
                seen = windows(part, self.spec.size)
                scores.append(detector.score(seen))
                if isinstance(detector, Embeds):
                    features.append(detector.embed(seen))
        found = np.concatenate([np.zeros(0), *scores]).astype(np.float64)
        spread = found.std() if len(found) else 0.0
        if not np.isfinite(found).all() or spread <= _LEAST_SPREAD:
            raise DetectorError(
                f"scores all of the {len(found)} held-out healthy tiles alike: its scores cannot "
                "be compared with those of others",
                remedy="Train on more slides, or leave this member out.",
            )
        member.mean, member.spread = float(found.mean()), float(spread)
        if features:
            vectors = np.concatenate(features).astype(np.float64)
            square = np.square(vectors - vectors.mean(axis=0)).sum(axis=1).mean()
            member.length = float(np.sqrt(square)) or 1.0


def _own(context: FitContext, asked: MemberOptions) -> FitContext:
    """Return the context of a member: its seed and its weights."""
    weights = context.weights if asked.weights is None else asked.weights
    return replace(context, seed=context.seed + asked.seed, weights=weights)


def _features_or_scores(
    detector: Detector, source: TileSource, batch: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield a member's features of complete tiles (N, D), or its scores (N,) if it has none."""
    if isinstance(detector, Embeds):
        return embeddings(detector, source, batch=batch)
    return (detector.pool(maps) for maps in score_maps(detector, source, batch=batch))


def _plugin_of(name: str) -> dict[str, Any]:
    """Return the record of the plug-in that a member comes from; empty for wsiad's own."""
    maker = registry.maker(name)
    return {"plugin": asdict(maker)} if maker else {}


def _learns(member: MemberOptions) -> bool | Literal["needed"]:
    cls = registry.load(member.detector)
    if cls.labels_of == "slides":
        raise DetectorError(
            f"{member.detector} learns from labels of slides, which other members would take for "
            "labels of tiles",
            subject="ensemble",
            remedy="Train it alone.",
        )
    return cls.learns_from_anomalies(build(cls.Options, member.options))


def _part(budget: Budget, members: int) -> Budget:
    minutes = budget.max_minutes
    return replace(budget, max_minutes=None if minutes is None else minutes / members)


def _how(reports: Sequence[FitReport]) -> str:
    """Return the reason why the last member that was trained in steps ended."""
    return next((r.ended_by for r in reversed(reports) if r.ended_by != "fitted"), "fitted")


def _weights(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the weights to report: random ones first, then any with a warning."""
    found = [note["weights"] for note in notes if isinstance(note.get("weights"), dict)]
    found.sort(key=lambda one: (one.get("source") != "random", not one.get("warning")))
    return {"weights": found[0]} if found else {}
