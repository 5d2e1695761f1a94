"""The state of a store, a run or results, as seen from their folder, while jobs work or not.

Nothing is written, and nothing is waited for. A folder that is damaged gives what can be read of
it, and says what is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsiad.compute.batch import worked_on
from wsiad.compute.compute_options import first_slides
from wsiad.core.config import CONFIG, read_yaml, stated_path
from wsiad.core.errors import ConfigError, InputError, WsiadError
from wsiad.core.ownership import being_written, claimant
from wsiad.core.terminal import counted, json_text, one_line
from wsiad.learning.training_options import END_WORDS
from wsiad.results.file_names import FACTS, SLIDE, SLIDES_TABLE
from wsiad.slides.folder_kinds import (
    ABSENT,
    INTERRUPTED,
    RESULTS,
    RUN,
    STORE,
    folders_in,
    pass_one_of,
    what_is,
)
from wsiad.slides.inputs import find_slides
from wsiad.slides.slide_table import (
    FAILED,
    NO_TISSUE,
    OK,
    UNUSABLE,
    SlideRow,
    lost_rows,
    read_table,
)

if TYPE_CHECKING:
    from wsiad.store.tile_store import TileStore

_LISTED = 20
_KINDS = {frozenset({"run", "slides"}): RESULTS, frozenset({"mpp", "slides"}): STORE,
          frozenset({"store", "detector"}): RUN}  # fmt: skip
"""Kinds of folders that hold no more than their configuration yet, by its keys."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """State of the work on a folder.

    Parameters
    ----------
    folder : Path
        The folder.
    kind : str
        Kind of the folder, as a phrase.
    slides : int or None
        Number of slides that are to be worked on; ``None`` if their folder cannot be read now.
    done, no_tissue : int
        Number of slides that are complete and have their row, and of those among them without
        tissue.
    failed, unusable : dict of str to str
        Reasons by slide.
    running : tuple of str
        Slides that a process works on, with that of another machine if it left signs of life.
    left : tuple of str
        Slides that nobody works on yet, or whose row is not in the table.
    training : dict
        Of a run: state, step, limit, losses and the time left.
    broken : tuple of str
        Damage that was found, in words.
    notes : tuple of str
        What could not be found out, and why.
    """

    folder: Path
    kind: str
    slides: int | None = None
    done: int = 0
    no_tissue: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    running: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if something failed, is unusable or is broken."""
        return 1 if self.failed or self.unusable or self.broken else 0

    def to_json(self) -> str:
        """Return everything as JSON."""
        values = asdict(self) | {"folder": str(self.folder)}
        return json_text(values)

    def text(self) -> str:
        """Return some lines for a terminal."""
        lines = [f"{self.folder}: {self.kind}{f', {said}' if (said := self._counts()) else ''}"]
        if self.training:
            lines.append(self.training["said"])
        for word, reasons in (("failed", self.failed), ("unusable", self.unusable)):
            lines += _listed(f"{word}:", [f"{name}: {why}" for name, why in reasons.items()])
        lines += _listed("running:", self.running)
        lines += _listed("broken:", self.broken)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(map(one_line, lines))

    def _counts(self) -> str:
        if self.training:
            return ""
        of = "" if self.slides is None else f"{self.done} of "
        said = [f"{of}{counted(self.done if self.slides is None else self.slides, 'slide')} done"]
        said += [f"{self.no_tissue} of them without tissue"] if self.no_tissue else []
        counts = {"failed": self.failed, "unusable": self.unusable, "running": self.running}
        said += [f"{len(some)} {word}" for word, some in counts.items() if some]
        said += [f"{len(self.left)} left"] if self.left or self.slides is not None else []
        return ", ".join(said)


def _listed(head: str, items: Iterable[str]) -> list[str]:
    """Return the first items below a head; nothing if there are none."""
    items = list(items)
    more = [f"  and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return [head, *(f"  {item}" for item in items[:_LISTED]), *more] if items else []


def job_status(folder: Path) -> JobStatus:
    """Look at a store, a run or results.

    Raises
    ------
    InputError
        The folder is none of these.
    """
    broken: list[str] = []
    config = _tried(lambda: read_yaml(folder / CONFIG), broken, errors=(ConfigError,)) or {}
    if not (folder / CONFIG).exists():
        broken.clear()  # a store of imported tiles, or an old one
    kind = what_is(folder)
    if kind not in (STORE, RUN, INTERRUPTED, RESULTS):
        kind = next((kind for keys, kind in _KINDS.items() if keys <= set(config)), kind)
    if kind in (RUN, INTERRUPTED):
        return _of_run(folder, config, broken)
    if kind in (STORE, RESULTS):
        return _of_slides(folder, kind, config, broken)
    if kind == ABSENT:
        raise InputError("there is no such folder", subject=str(folder), remedy="Check the path.")
    inside = folders_in(folder, (STORE, RUN, INTERRUPTED, RESULTS))
    raise InputError(
        f"is {kind}, and neither a tile store, a run nor results",
        subject=str(folder),
        remedy=pass_one_of(inside)
        if inside
        else "Pass the folder that wsiad tile, train or heatmap writes to (their --out).",
    )


def _tried(
    look: Callable[[], T],
    broken: list[str],
    *,
    errors: tuple[type[Exception], ...] = (WsiadError, OSError),
) -> T | None:
    """Return what a look finds; if it raises, note why and return ``None``."""
    try:
        return look()
    except errors as error:
        broken.append(" ".join(str(error).split()))
        return None


def _of_slides(folder: Path, kind: str, config: Mapping[str, Any], broken: list[str]) -> JobStatus:
    notes: list[str] = []
    rows = _tried(lambda: read_table(folder / SLIDES_TABLE, SlideRow), broken)
    table = {row.slide: row for row in rows or []}
    asked = _asked(folder, config, notes)
    names = {*table, *(asked or ())}
    if kind == STORE:
        from wsiad.store.tile_store import GROUPS, TileStore

        store = _tried(lambda: TileStore(folder), broken)
        complete = _readable(store, broken) if store else set()
        writing = [folder / GROUPS]
    else:
        if (folder / FACTS).exists():
            from wsiad.results.records import results_facts

            _tried(lambda: results_facts(folder), broken)
        complete = {name for name in names if (folder / name / SLIDE).is_file()}
        writing = [folder, *{(folder / name).parent for name in names}]
    for name, row in table.items():
        if row.status in (OK, NO_TISSUE) and kind == STORE and store and name not in store:
            broken.append(f"{name}: {SLIDES_TABLE} says {row.status}, and the store lacks it")
        elif row.status == OK and name not in complete and kind == RESULTS:
            broken.append(f"{name}: {SLIDES_TABLE} says {row.status}, and {SLIDE} is missing")
    running = worked_on(folder)
    for place in writing:
        parent = place.relative_to(writing[0]).as_posix()
        prefix = "" if parent == "." else f"{parent}/"
        running |= {f"{prefix}{name}" for name in being_written(place)}
    busy = bool(running)  # a row may follow its slide at any moment
    running = {name for name in running if name in names or asked is None} - complete
    lost = complete - table.keys()
    if lost and rows is not None and not busy:
        there = (folder / SLIDES_TABLE).exists()
        said = f"{SLIDES_TABLE} {lost_rows(folder / SLIDES_TABLE, sorted(lost))}"
        (notes if there else broken).append(said)
    # One may have what another file of its name left, or failed after it was complete.
    failed = _reasons(table, FAILED, without=running)
    unusable = _reasons(table, UNUSABLE, without=running)
    done = complete - lost - set(unusable) - set(failed)
    left = lost | {*(asked or ())} - complete - running - set(failed) - set(unusable)
    counts = Counter(row.status for row in table.values())
    return JobStatus(
        folder=folder,
        kind=kind,
        slides=None if asked is None else len(names | complete),
        done=len(done),
        no_tissue=counts[NO_TISSUE],
        failed=failed,
        unusable=unusable,
        running=tuple(sorted(running)),
        left=tuple(sorted(left)),
        broken=tuple(broken),
        notes=tuple(notes),
    )


def _readable(store: TileStore, broken: list[str]) -> set[str]:
    """Return the slides whose groups are whole; what is wrong with others goes to a list."""

    def whole(name: str) -> bool:
        store.check(name)
        return True

    return {name for name in store.names(failed=True) if _tried(partial(whole, name), broken)}


def _reasons(table: Mapping[str, SlideRow], status: str, *, without: set[str]) -> dict[str, str]:
    return {
        name: row.reason
        for name, row in sorted(table.items())
        if row.status == status and name not in without
    }


def _asked(folder: Path, config: Mapping[str, Any], notes: list[str]) -> set[str] | None:
    """Return the names of the slides that the last call was asked for; ``None`` if unknown."""
    paths = config.get("slides")
    if not isinstance(paths, list | tuple) or not paths:
        notes.append(f"how many slides are left is not known: {CONFIG} does not name them")
        return None
    problems: list[str] = []
    limit = config.get("limit")

    def found() -> set[str]:
        from wsiad.store.tile_store import TileStore, is_store

        places = [
            stated_path(Path(str(path)), folder=folder, out=config.get("out")) for path in paths
        ]
        if len(places) == 1 and is_store(places[0]):
            return set(TileStore(places[0]).names(failed=True))
        slides = first_slides(find_slides(places), limit if isinstance(limit, int) else None)
        return {slide.name for slide in slides}

    if (names := _tried(found, problems)) is None:
        notes.append(f"how many slides are left is not known: {problems[0]}")
    return names


def _of_run(folder: Path, config: Mapping[str, Any], broken: list[str]) -> JobStatus:
    from wsiad.runs.run import RunFolder

    notes: list[str] = []
    run = RunFolder.at(folder)
    method = str(config.get("detector", "?"))
    training: dict[str, Any] = {"detector": method, "state": "complete"}
    if run.complete:
        if record := _tried(run.record, broken):
            training |= {"ended_by": record.ended_by, "step": record.steps}
            steps = f" after {counted(record.steps, 'step')}" if record.steps else ""
            ended = END_WORDS.get(record.ended_by, record.ended_by)
            said = f"{record.detector}: complete, {ended}{steps}"
        else:
            said = f"{method}: its record is damaged"
        return JobStatus(
            folder=folder, kind=RUN, training={**training, "said": said}, broken=tuple(broken)
        )
    state = claimant(folder)
    training["state"] = {"alive": "running", "dead": "interrupted", "": "interrupted"}.get(
        state, "running on another machine, or interrupted"
    )
    said = f"{method}: {training['state']}"
    if progress := _progress(folder, config, broken, notes):
        training |= progress
        said = f"{said}; {progress['line']}"
    return JobStatus(
        folder=folder,
        kind=RUN if training["state"] == "running" else INTERRUPTED,
        training={**training, "said": said},
        broken=tuple(broken),
        notes=tuple(notes),
    )


def _progress(
    folder: Path, config: Mapping[str, Any], broken: list[str], notes: list[str]
) -> dict[str, Any] | None:
    """Return step, limit and losses of a training; ``None`` if it has no line of metrics yet."""
    from wsiad.learning.metrics import METRICS, read_metrics
    from wsiad.learning.training_progress import Shown

    path = next(iter(sorted(folder.rglob(METRICS))), folder / METRICS)
    if not (rows := _tried(lambda: read_metrics(path), broken)):
        return None
    limit, minutes = _limit(config, notes), config.get("max_minutes")
    last, before = rows[-1], rows[max(0, len(rows) - 11)]
    spent = last.seconds - before.seconds
    validated = [row for row in rows if row.stop_loss is not None]
    shown = Shown(
        limit or last.step,
        step=last.step,
        steps_per_second=(last.step - before.step) / spent if spent > 0 else None,
        seconds=last.seconds,
        max_minutes=minutes if isinstance(minutes, int | float) else None,
        stops_early=True,
        loss=next((row.train_loss for row in reversed(rows) if row.train_loss is not None), None),
        held_out=validated[-1].stop_loss if validated else None,
        best_step=min(validated, key=lambda row: row.stop_loss or 0.0).step if validated else 0,
    )
    seconds, bound = shown.left()
    return {
        "step": last.step,
        "limit": limit,
        "loss": shown.loss,
        "held_out_loss": shown.held_out,
        "seconds": last.seconds,
        "seconds_left": None if limit is None or seconds is None else round(seconds, 1),
        "ends_by": bound,
        "line": shown.line() if limit else f"step {last.step}, loss {shown.loss}",
    }


def _limit(config: Mapping[str, Any], notes: list[str]) -> int | None:
    """Return the number of steps at which a training ends at the latest; ``None`` if unknown."""
    from wsiad.core.config import build
    from wsiad.detectors import registry

    problems: list[str] = []

    def found() -> int | None:
        cls = registry.load(str(config.get("detector")))
        options = build(cls.Options, config.get("options") or {}, source=CONFIG)
        own = getattr(options, "max_steps", None) or getattr(options, "steps", None)
        given = config.get("max_steps")
        limits = [limit for limit in (own, given) if isinstance(limit, int)]
        return min(limits, default=None)

    limit = _tried(found, problems)
    notes += [f"the number of steps is not known: {problem}" for problem in problems]
    return limit
