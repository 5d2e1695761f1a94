"""Run folder: a fitted detector with everything that is needed to use and to trust it.

========================  ==========================================================
``config.yaml``           the resolved configuration of the verb that made it
``weights.safetensors``   the detector's tensors
``detector.json``         the detector's name, options, input and values
``calibration.json``      quantiles of the score on held-out healthy tiles
``healthy_maps.safetensors``  score maps of the healthy slides of the calibration
``examples.safetensors``  healthy tiles to look at, with the detector's features of them
``metrics.csv``           the losses by step (trained methods)
``loss.png``              plot of the losses (trained methods)
``checkpoint.safetensors``  state of the training, to resume it (trained methods)
``run.json``              end of the fit, versions, seed, data; written last
========================  ==========================================================

A run is complete when it has its ``run.json``; before that, it can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import pydantic

from wsiad.core.config import CONFIG, RECORD, Config, build, idle_options_allowed
from wsiad.core.errors import PluginError, RunError, WeightsError, WsiadError
from wsiad.core.files import MOST_FACTS, atomic_file, read_json, read_text, write_json
from wsiad.core.geometry import Mpp, TilePx
from wsiad.core.packages import Distribution, versions
from wsiad.core.typed_files import checked
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, InputSpec, State
from wsiad.learning.devices import choose_device
from wsiad.learning.metrics import METRICS, plot_loss, read_metrics
from wsiad.runs.calibration import Calibration
from wsiad.runs.claim import EXAMPLES, HEALTHY_MAPS, SECOND_LOOK, WEIGHTS, begin
from wsiad.runs.healthy_maps import HealthyMaps
from wsiad.slides.folder_kinds import RUN as KIND
from wsiad.slides.folder_kinds import refuse_other

if TYPE_CHECKING:
    import torch

    from wsiad.runs.examples import HealthyExamples

RUN: Final = RECORD
DETECTOR, CALIBRATION, LOSS = "detector.json", "calibration.json", "loss.png"

M = TypeVar("M", bound=Config)
P = TypeVar("P", HealthyMaps, "HealthyExamples")

_FORMAT = 1
_REMEDY = "Use the version of wsiad that made the run, or train again."
_COPY_AGAIN = "Train again, or copy the run again."


class RunRecord(Config):
    """Content of ``run.json`` in a run folder."""

    format: Literal[1] = 1
    """Version of the layout of the run folder."""
    status: Literal["complete"] = "complete"
    """Status of the run; a run without this file is not complete."""
    detector: str
    """Name of the method."""
    seed: int
    """Seed of the fit."""
    device: str
    """Device of the fit."""
    ended_by: str
    """Reason why the fit ended: fitted, early-stopping, max-steps or max-minutes."""
    steps: int = 0
    """Number of optimiser steps."""
    seconds: float
    """Duration of fit and calibration, seconds."""
    tile_seconds: float | None = None
    """Duration of tiling the store, summed over its slides, seconds."""
    stores: dict[str, str]
    """Fingerprint of each tile store, by name."""
    split: str = ""
    """Description of the split of the healthy tiles."""
    slides: dict[str, dict[str, str]] = pydantic.Field(default_factory=dict)
    """Slides that the run was made from, by use (`fit`, `stop`, `calibration`, `anomalies`):
    fingerprints by name. Older runs, which did not record them, have none."""
    notes: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Notes of the method, such as the source of its pretrained weights."""
    versions: dict[str, str] = pydantic.Field(default_factory=versions)
    """Versions of wsiad, Python and the packages that results depend on."""
    finished: str = pydantic.Field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )
    """Time when the run was finished, UTC."""

    @property
    def slides_by_fingerprint(self) -> dict[str, str]:
        """Use of each slide by its fingerprint, such as ``"fit"``."""
        return {mark: use for use, slides in self.slides.items() for mark in slides.values()}

    @property
    def labelled(self) -> bool:
        """True if the method learnt from labelled anomalies, or from what a first look found."""
        return any(self.notes.get(note) for note in ("anomalies", SECOND_LOOK))

    @property
    def healthy_examples(self) -> int:
        """Number of healthy examples in the run."""
        return self._count("healthy_examples")

    @property
    def healthy_maps(self) -> int:
        """Number of healthy slides whose score maps are in the run."""
        return self._count("healthy_maps")

    def _count(self, note: str) -> int:
        kept = self.notes.get(note)
        return kept if isinstance(kept, int) else 0

    @property
    def method(self) -> str:
        """Name of the detector, and that of the published system if a preset chose its options."""
        about = self.notes.get("about")
        if not isinstance(about, dict) or not isinstance(about.get("system"), str):
            return self.detector
        from wsiad.runs.presets import HELD_OUT

        held_out = "; adapted: slides held out" if HELD_OUT in (about.get("adapted") or ()) else ""
        return f"{self.detector} ({about['system']}{held_out})"

    @property
    def random_weights(self) -> bool:
        """True where the network's weights were random, so that scores have no meaning."""
        weights = self.notes.get("weights")
        return isinstance(weights, dict) and weights.get("source") == "random"


class _DetectorFile(Config):
    format: Literal[1] = 1
    detector: str
    input_px: pydantic.PositiveInt
    input_mpp: pydantic.PositiveFloat
    options: dict[str, Any]
    values: dict[str, Any]
    plugin: Distribution | None = None
    """Package of the plug-in that provides the detector; not written for wsiad's own."""

    @property
    def spec(self) -> InputSpec:
        """Size and scale of the detector's windows."""
        return InputSpec(TilePx(self.input_px), Mpp(self.input_mpp))


@dataclass(frozen=True, slots=True, init=False, repr=False)
class RunFolder:
    """Folder of one run, complete or not; :meth:`open` checks that it is complete.

    Parameters
    ----------
    path : str or Path
        Path of the folder.

    Raises
    ------
    RunError
        There is no such folder, or it contains something else.

    Examples
    --------
    >>> run = RunFolder.open("runs/dpa")  # doctest: +SKIP
    >>> run.load_detector("cpu").embed(tiles)  # doctest: +SKIP
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", _given(path))
        self._check_kind(())

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """Return the run folder at a path where there need not be one yet, or any more."""
        folder = cls.__new__(cls)
        object.__setattr__(folder, "path", _given(path))
        return folder

    def _check_kind(self, beside: Iterable[Path]) -> None:
        path = self.path
        if not (path / DETECTOR).is_file():
            remedy = "Pass the folder that wsiad train made."
            refuse_other(path, KIND, RunError, remedy=remedy, beside=beside)
        if not path.is_dir():
            raise RunError(
                "there is no such run folder",
                subject=str(path),
                remedy="Check the path, or make a run with wsiad train.",
            )

    def __repr__(self) -> str:
        try:
            told = f"{self.record().detector}, complete"
        except RunError:
            told = "its run.json cannot be read" if self.complete else "not complete"
        return f"RunFolder({str(self.path)!r}, {told})"

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Begin a run, or resume one that was interrupted.

        Raises
        ------
        RunError
            The folder contains a complete run or something else, or is a file.
        """
        folder = cls.at(path)
        begin(folder.path, record=RUN, what="run")
        return folder

    @classmethod
    def open(cls, path: str | Path, *, beside: Iterable[Path] = ()) -> RunFolder:
        """Open a complete run.

        Parameters
        ----------
        path : str or Path
            Path of the folder.
        beside : iterable of Path
            Other paths that the user passed, for the error if the run is among them.

        Raises
        ------
        RunError
            The folder does not exist or contains something else, or the run is not complete,
            damaged, or of an unknown format.
        """
        folder = cls.at(path)
        folder._check_kind(beside)
        if not folder.complete:
            raise RunError(
                f"the run is not complete: it has no {RUN}",
                subject=str(folder.path),
                remedy="Run wsiad train again with the same configuration to resume it.",
            )
        folder.record()
        folder.config_text()  # what is broken is said before hours are spent
        return folder

    def config_text(self) -> str:
        """Return the text of the run's configuration; empty if there is none.

        Raises
        ------
        RunError
            The file is damaged.
        """
        path = self.path / CONFIG
        if not path.exists():
            return ""
        try:
            return read_text(path, most=MOST_FACTS)
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot be read: {error}",
                subject=str(path),
                remedy="Restore it, or delete it: results are then shown without it.",
            ) from error

    @property
    def complete(self) -> bool:
        """True where the run is complete."""
        return (self.path / RUN).is_file()

    def write_calibration(self, calibration: Calibration) -> None:
        """Write the calibration."""
        write_json(self.path / CALIBRATION, calibration.to_json())

    def calibration(self) -> Calibration:
        """Read the calibration.

        Raises
        ------
        RunError
            The calibration is missing or damaged.
        """
        path = self.path / CALIBRATION
        stored = read_json(path, RunError, remedy=_COPY_AGAIN, most=MOST_FACTS)
        try:
            return Calibration.from_json(stored)
        except RunError as error:
            raise RunError(error.problem, subject=str(path), remedy=_REMEDY) from error

    def write_healthy_maps(self, maps: HealthyMaps | None) -> None:
        """Write the maps of healthy slides; ``None`` deletes those of an interrupted run."""
        _write_part(self.path / HEALTHY_MAPS, maps)

    def healthy_maps(self) -> HealthyMaps | None:
        """Read the maps of healthy slides; ``None`` if the run has none, as older runs.

        Raises
        ------
        RunError
            The maps are damaged, or missing although the run states that it has some.
        """
        stated = self.record().healthy_maps
        path = self.path / HEALTHY_MAPS
        return _part(path, HealthyMaps, stated=stated, noun="maps of healthy slides")

    def write_examples(self, examples: HealthyExamples | None) -> None:
        """Write the healthy examples; ``None`` deletes those of an interrupted run."""
        _write_part(self.path / EXAMPLES, examples)

    def examples(self) -> HealthyExamples | None:
        """Read the healthy examples; ``None`` if the run has none, as older runs.

        Raises
        ------
        RunError
            The examples are damaged, or missing although the run states that it has some.
        """
        from wsiad.runs.examples import HealthyExamples

        stated = self.record().healthy_examples
        path = self.path / EXAMPLES
        return _part(path, HealthyExamples, stated=stated, noun="healthy examples")

    def finish(self, record: RunRecord) -> None:
        """Plot the loss, if there is one, and write ``run.json``, which completes the run."""
        if rows := read_metrics(self.path / METRICS):
            best = record.notes.get("best_step")
            stages = record.notes.get("stages") or []
            plot_loss(
                rows,
                self.path / LOSS,
                best_step=best if isinstance(best, int) else None,
                stage_starts=[stage["first_step"] for stage in stages[1:]],
            )
        write_json(self.path / RUN, record.model_dump(mode="json"))

    def record(self) -> RunRecord:
        """Read ``run.json``.

        Raises
        ------
        RunError
            The file is missing, damaged or of an unknown format version.
        """
        return _read(RunRecord, self.path / RUN)

    def save_detector(self, detector: Detector, *, name: str) -> None:
        """Write a fitted detector."""
        from safetensors.torch import save_file

        state = detector.state()
        with atomic_file(self.path / WEIGHTS) as partial:
            save_file(state.tensors, str(partial), metadata={"detector": name})
        file = _DetectorFile(
            detector=name,
            input_px=detector.spec.size,
            input_mpp=detector.spec.mpp,
            options=detector.options.model_dump(mode="json"),
            values=state.values,
            plugin=registry.maker(name),
        )
        own = None if file.plugin else {"plugin"}
        write_json(self.path / DETECTOR, file.model_dump(mode="json", exclude=own))

    def input_spec(self) -> InputSpec:
        """Read the size and the scale of the windows that the detector scores.

        Raises
        ------
        RunError
            The detector's file is missing, damaged or of an unknown format version.
        """
        return self._detector_file().spec

    def _detector_file(self) -> _DetectorFile:
        return _read(_DetectorFile, self.path / DETECTOR)

    def load_detector(
        self, device: torch.device | str = "auto", *, cls: type[Detector] | None = None
    ) -> Detector:
        """Load the fitted detector onto a device.

        Parameters
        ----------
        device : torch.device or str
            ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        cls : type of Detector, optional
            Class of the detector, if it is not registered under a name.

        Raises
        ------
        RunError
            Files of the detector are missing, damaged, of an unknown format or do not fit; or
            the plug-in that made the run is broken or not installed.
        """
        from safetensors.torch import load_file

        if isinstance(device, str):
            device = choose_device(device)
        file = self._detector_file()
        path = self.path / WEIGHTS
        try:
            tensors = load_file(path)
        except Exception as error:  # what readers of damaged files raise has no end
            raise RunError(
                f"cannot be read ({' '.join(str(error).split())[:200]})",
                subject=str(path),
                remedy=_COPY_AGAIN,
            ) from error
        try:
            cls = cls or registry.load_made_by(file.detector, file.plugin)
            with idle_options_allowed():
                options = build(cls.Options, file.options, source=str(self.path / DETECTOR))
                detector = cls(options, file.spec)
                detector.load_state(State(tensors, file.values), device)
        except PluginError as error:
            what = f"{error.subject}: {error.problem}" if error.subject else error.problem
            raise RunError(
                f"its detector cannot be loaded: {what}",
                subject=str(self.path),
                remedy=error.remedy,
            ) from error
        except WeightsError as error:
            what = f"{error.subject}: {error.problem}" if error.subject else error.problem
            raise RunError(
                f"its detector cannot be loaded: {what}",
                subject=str(self.path),
                remedy=error.remedy,
            ) from error
        except WsiadError as error:
            raise RunError(
                f"its detector cannot be loaded ({error})",
                subject=str(self.path),
                remedy="Train again, or use the version of wsiad that made the run (see run.json).",
            ) from error
        return detector


def _given(path: str | Path) -> Path:
    if not str(path):
        raise RunError("the path of the run is empty", remedy="Pass the folder of the run.")
    return Path(path)


def load_detector(folder: Path, device: torch.device) -> Detector:
    """Load the detector of a complete run.

    Raises
    ------
    RunError
        The run is not complete or damaged.
    """
    return RunFolder.open(folder).load_detector(device)


def _write_part(path: Path, part: HealthyMaps | HealthyExamples | None) -> None:
    if part is None:
        path.unlink(missing_ok=True)
    else:
        part.write(path)


def _part(path: Path, kind: type[P], *, stated: int | None, noun: str) -> P | None:
    if not stated and not path.exists():
        return None
    found = kind.read(path)
    if len(found) != stated:
        raise RunError(
            f"holds {len(found)} {noun}, but the run states {stated}",
            subject=str(path),
            remedy="Train again.",
        )
    return found


def _read(model: type[M], path: Path) -> M:
    stored = read_json(path, RunError, remedy=_COPY_AGAIN)
    version = stored.get("format")
    if version is not None and version != _FORMAT:
        raise RunError(
            f"has the format version {version!r}, but this version of wsiad reads {_FORMAT}",
            subject=str(path),
            remedy=_REMEDY,
        )
    return checked(model, stored, path, RunError, remedy=_REMEDY)
