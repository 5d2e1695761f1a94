"""``wsiad refine``: a second look, taught by what the first look of a run found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from wsiad.core.config import QuietOptions, verb
from wsiad.core.terminal import counted
from wsiad.learning.devices import DeviceOptions
from wsiad.runs.second_look import ChoiceOptions

if TYPE_CHECKING:
    from wsiad.runs.fitting import MadeRun


class RefineConfig(QuietOptions, DeviceOptions, ChoiceOptions):
    """Teach a second look by what stands out in results of a run, if it can be relied on."""

    tries_out: ClassVar[bool] = False
    ORDER = (
        *("run", "results", "healthy", "reviewed", "out", "store"),
        *("detector", "options", "weights"),
        ...,
        *("device", "quiet"),
    )

    run: Path
    """Run that made the results: the first look."""
    results: Path
    """Results folder of the cohort."""
    out: Path
    """Folder of the new run."""
    healthy: Path | None = None
    """Results folder of held-out healthy slides, scored by the same run with the same options, to
    estimate false discoveries with; by default the calibration slides of the run, which are few."""
    store: Path | None = None
    """Store of the run's healthy tiles; by default the one that the run states."""
    detector: str = "linear-probe"
    """Method that learns: `linear-probe`, `devnet` or `deep-sad`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Option of the method, see docs/detector-options.md; can be passed several times."""
    weights: str | None = None
    """Pretrained weights, as for `wsiad train`; by default those of the run."""


@dataclass(frozen=True, slots=True)
class RefineResult:
    """Result of refining.

    Parameters
    ----------
    run : Path or None
        Folder of the new run; ``None`` if there is none.
    summary : str
        Summary for the terminal.
    declined : str
        Reason why there is no second look; empty if there is one.
    """

    run: Path | None
    summary: str
    declined: str = ""

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 where there is no second look."""
        return 0 if self.run else 1


@verb(RefineConfig)
def refine(config: RefineConfig) -> RefineResult:
    """Teach a second look by windows that stand out in the results of a run.

    There is none if the stated false-discovery rate cannot be kept on enough slides. A call that
    was interrupted continues when it is made again.

    Raises
    ------
    RunError
        The run is missing, damaged or a second look itself, or the folder contains another run.
    InputError
        The results are not of this run, or a healthy slide is not held out.
    StoreError
        The store of the run does not exist or is damaged.
    DetectorError
        The method is unknown, or cannot learn a second look.
    """
    try:
        return _refined(config)
    except KeyboardInterrupt as error:
        if not _has_kept_anything(config.out):
            error.add_note(
                "nothing is kept yet, for the features of the windows were not complete. Run the "
                "same command again."
            )
        raise


def _has_kept_anything(out: Path) -> bool:
    """Tell whether a later call would continue with anything of this one."""
    from wsiad.learning.checkpoint import CHECKPOINT, FOLDS
    from wsiad.runs.run import RUN

    return any((out / name).exists() for name in (CHECKPOINT, FOLDS, RUN))


def _refined(config: RefineConfig) -> RefineResult:
    # torch takes seconds to import, which `--help` must not.
    from wsiad.learning.devices import choose_device
    from wsiad.results.teaching import choose_windows, first_look, lessons_of
    from wsiad.runs.claim import taken
    from wsiad.runs.compatibility import PREPARATION
    from wsiad.runs.fitting import make_run
    from wsiad.runs.healthy_tiles import HEALTHY_REGIONS
    from wsiad.runs.refining import check_first, training_of
    from wsiad.runs.run import RUN, RunFolder
    from wsiad.runs.second_look import TAUGHT, SecondLook

    start = time.monotonic()
    run = RunFolder.open(config.run)
    check_first(run)
    training, chosen = training_of(
        run,
        out=config.out,
        store=config.store,
        detector=config.detector,
        options=config.options,
        weights=config.weights,
        device=config.device,
        quiet=config.quiet,
    )
    options = config.part(ChoiceOptions)
    look = first_look(run, config.results, config.healthy, options, device=config.device)
    choice = choose_windows(look, options, seed=training.seed)
    if choice.why_not:
        declined = f"{config.results}: no second look is taken: {choice.why_not}"
        return RefineResult(None, declined, choice.why_not)
    beginnings = [PREPARATION, TAUGHT]
    with taken(config.out, config, record=RUN, what="run", beginnings=beginnings) as complete:
        if complete:
            return RefineResult(config.out, f"{config.out}: this run is complete already")
        record = run.record()
        note = {
            "run": str(config.run.absolute()),
            "detector": record.detector,
            "finished": record.finished,
            "results": str(config.results.absolute()),
            "reviewed": str(config.reviewed.absolute()) if config.reviewed else None,
            **choice.note(look),
        }
        made = make_run(
            training,
            chosen,
            anomalies=None,
            device=choose_device(config.device),
            start=start,
            instead=SecondLook(
                rows=choice.rows,
                lessons=lambda spec: lessons_of(look, choice, spec),
                slides={one.name: one.fingerprint for one in look.slides},
                note=note,
            ),
            only_fit=[
                *record.slides.get("anomalies", ()),
                *chosen.names_of(record.slides.get(HEALTHY_REGIONS, {}).values()),
            ],
        )
    return RefineResult(config.out, _summary(config, made, note))


def _summary(config: RefineConfig, made: MadeRun, note: dict[str, Any]) -> str:
    usual = made.calibration
    taught = (
        f"{config.out}: {config.detector}, taught by "
        f"{counted(note['anomalous_windows'], 'window')} of "
        f"{counted(note['anomalous_slides'], 'slide')} that "
        f"{'stand out' if config.reviewed is None else 'a review confirmed'}, and "
        f"{note['usual_windows']} that {'do' if config.reviewed is None else 'it did'} not"
    )
    chance = f"{note.get('rejected_windows')} of them in rejected regions"
    if config.reviewed is None:
        chance = (
            f"expected by chance: {note['window_fdr']:.0%} of these windows, "
            f"{note['slide_fdr']:.0%} of these slides "
            f"({counted(note['healthy_slides'], 'healthy slide')}: "
            f"{note['healthy_from']})"
        )
    healthy = (
        f"healthy score: median {usual.median:.4g}, 99 % below {usual.quantile(0.99):.4g} "
        f"({counted(usual.n_windows, 'window')} of {counted(usual.n_slides, 'slide')})"
    )
    return "\n".join([taught, chance, healthy])
