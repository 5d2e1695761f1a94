"""Options that verbs share: the place where slides are processed, and shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from wsiad.core.config import RECORD, Config, Order
from wsiad.core.errors import InputError
from wsiad.core.files import check_folder, read_json, real_path, write_json
from wsiad.core.terminal import did_you_mean
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_table import SlideRow

T = TypeVar("T")

_ROWS, _ROW = "rows", ("slide", "status", "reason")
"""Key of the slides in a record that was requested, and the keys of each."""


def _checked_shard(text: str) -> str:
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise ValueError("should be i/n with i from 1 to n, such as 2/8 for the second of eight")
    return f"{int(parts[1])}/{int(parts[2])}"


Shard = Annotated[str, AfterValidator(_checked_shard)]
"""Shard as ``"i/n"``, counted from 1: the i-th of n equal parts of the slides."""


class WorkerOptions(Config):
    """Options of the workers: how many there are, and where they run."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Number of processes on this machine; each works on one slide, or fit, at a time."""
    cluster: Path | None = None
    """YAML file of a batch cluster (SLURM, PBS, LSF, SGE) whose jobs do the work; see
    configs/slurm.yaml."""
    scheduler: str | None = None
    """Address of a running dask scheduler whose workers do the work."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Number of new tries of a slide, or fit, whose worker was lost. One that fails by itself is
    not tried again. With `scheduler`, the scheduler decides."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.cluster is not None and self.scheduler is not None:
            raise ValueError("set `cluster`, to start jobs, or `scheduler`, to use its workers")
        if self.distant and self.workers != 1:
            raise ValueError(
                f"`workers` are processes on this machine: leave it out with `{self.distant}`"
            )
        return self

    @property
    def distant(self) -> str:
        """Name of the option that makes other machines work; empty if this machine works."""
        if self.cluster is not None:
            return "cluster"
        return "scheduler" if self.scheduler is not None else ""

    @property
    def in_turn(self) -> bool:
        """True where this process does all the work, one slide after the other."""
        return self.workers == 1 and not self.distant


class ComputeOptions(WorkerOptions):
    """Options of processing slides: the workers, a part of the slides and local copies."""

    ORDER: ClassVar[Order] = ("workers", "cluster", "scheduler", "shard", "only", "record", ...)

    shard: Shard | None = None
    """Part of the slides to process, `i/n`, counted from 1: `2/8` is the second and then every
    eighth slide of the sorted list. For job arrays; shards can run at the same time, overlap or
    run twice without harm."""
    only: tuple[str, ...] = ()
    """Names of the slides to process, of those that are passed; by default all. For workflow
    managers, with a job for each slide: such jobs can run at the same time, as shards can."""
    record: Path | None = None
    """JSON file, outside of `out`, that tells what became of the slides of this call. It is written
    when each has its row, failed or not; a call that ends before leaves none. That of an earlier
    call is replaced; any other file is an error."""
    stage_dir: Path | None = None
    """Folder on a local disk. Each slide is copied there before it is read, and its copy is
    deleted afterwards."""

    @field_validator("record")
    @classmethod
    def _is_a_record(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() != ".json":
            raise ValueError("the name of a record ends in .json")
        return value

    @model_validator(mode="after")
    def _shards_stay_here(self) -> Self:
        if self.distant and self.shard is not None:
            raise ValueError(
                f"`{self.distant}` distributes all slides itself: leave out `shard`, which is for "
                "job arrays"
            )
        return self

    @property
    def partial(self) -> bool:
        """True where this call is for a part of the slides, and others are for the rest."""
        return self.shard is not None or bool(self.only)

    def begin(self) -> None:
        """Remove the record that an earlier call left where this one will write its own.

        Whatever this call meets, its caller finds no record of another. A dry run removes nothing.

        Raises
        ------
        InputError
            The file is in the output folder, or is not the record of a call; it is unchanged. Or no
            file can be written there.
        """
        super().begin()
        if self.record is not None:
            _check_record(self.record, getattr(self, "out", None))
            if not getattr(self, "dry_run", False):
                check_folder(self.record.parent, option="--record", tried=True)
                self.record.unlink(missing_ok=True)


class PreviewOptions(Config):
    """Options of a look at the slides before the work."""

    flags: ClassVar[Mapping[str, str]] = {"as_json": "json"}

    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of slides to process, the first by name; by default all. Not with `only`."""
    dry_run: bool = False
    """Look only: format, µm/px, tissue, number of tiles, bytes and time of each slide, and what
    will fail. Nothing is written; the exit code is 1 if something will fail."""
    as_json: bool = False
    """Print the result of `dry_run` as JSON, for programs."""

    @model_validator(mode="after")
    def _json_of_a_look(self) -> Self:
        if self.as_json and not self.dry_run:
            raise ValueError("`json` is the form of `dry_run`: set that too")
        return self

    @model_validator(mode="after")
    def _one_choice_of_slides(self) -> Self:
        # A job for each slide must neither pass over its slide nor make `limit` mean nothing.
        if self.limit is not None and getattr(self, "only", False):
            raise ValueError(
                "`only` names the slides to process, and `limit` takes the first by name: leave "
                "one of them out"
            )
        return self


def first_slides(slides: Sequence[SlideInput], limit: int | None) -> list[SlideInput]:
    """Return the first slides by name; all if there is no limit."""
    if limit is None:
        return list(slides)
    return sorted(slides, key=lambda slide: (slide.name, str(slide.path)))[:limit]


def take_shard(items: Iterable[T], shard: str | None) -> list[T]:
    """Return the items of a shard ``"i/n"``: the i-th and then every n-th; all for ``None``.

    Examples
    --------
    >>> take_shard("abcde", "2/3")
    ['b', 'e']
    """
    if shard is None:
        return list(items)
    part, parts = (int(number) for number in shard.split("/"))
    return list(items)[part - 1 :: parts]


def slides_of_shard(slides: Sequence[SlideInput], shard: str | None) -> list[SlideInput]:
    """Return the slides of a shard ``"i/n"``, or all.

    The slides are sorted by name first, so that shards that find them in different orders still
    do not overlap.
    """
    if shard is None:
        return list(slides)
    return take_shard(sorted(slides, key=lambda slide: (slide.name, str(slide.path))), shard)


def slides_of_call(slides: Sequence[SlideInput], options: ComputeOptions) -> list[SlideInput]:
    """Return the slides that a call is for: those of its names, and of its shard.

    Raises
    ------
    InputError
        A name is not that of a slide.
    """
    names = {slide.name for slide in slides}
    for name in options.only:
        if name not in names:
            raise InputError(
                f"no slide is named {name!r}{did_you_mean(name, names)}",
                subject="--only",
                remedy="List the names: wsiad list-slides.",
            )
    wanted = {*options.only}
    return slides_of_shard(
        [slide for slide in slides if not wanted or slide.name in wanted], options.shard
    )


def _check_record(path: Path, out: Path | None) -> None:
    """Check that a record can be written without loss of any other file."""
    remedy = "Pass the name of a new file, outside of --out, as --record."
    if out is not None and real_path(path).is_relative_to(real_path(out)):
        raise InputError(f"is in {out}, whose files are wsiad's", subject=str(path), remedy=remedy)
    check_folder(path.parent, option="--record")
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long, a folder that may not be entered
        why = f"cannot be written ({(error.strerror or type(error).__name__).lower()})"
        raise InputError(why, subject=str(path), remedy=remedy) from error
    if not _is_record(path):
        why = "exists, and is not the record of a call"
        raise InputError(why, subject=str(path), remedy=remedy)


def _is_record(path: Path) -> bool:
    try:
        keys = ["versions", "seconds", _ROWS]
        rows = read_json(path, InputError, keys=keys, remedy="Pass another file.")[_ROWS]
    except InputError:
        return False
    return isinstance(rows, list) and all(
        isinstance(row, dict) and row.keys() == {*_ROW} for row in rows
    )


def record_path(out: Path, options: ComputeOptions) -> Path | None:
    """Return the path of a call's record, by default ``run.json``; ``None`` if it has none.

    Calls for parts of the slides share a folder, and the counts of one are not those of all: the
    record of a shard is ``runs/shard-2-of-8.json``, and that of chosen slides is where it is
    requested.
    """
    if options.record is not None:
        return options.record
    if options.shard is not None:
        return out / f"runs/shard-{options.shard.replace('/', '-of-')}.json"
    return None if options.only else out / RECORD


def write_call_record(
    out: Path,
    options: ComputeOptions,
    rows: Sequence[SlideRow],
    record: Mapping[str, Any],
    *,
    worked: bool = True,
) -> None:
    """Write the record of a call: its slides, each with what became of it, and further values.

    Parameters
    ----------
    out : Path
        Folder of the output.
    options : ComputeOptions
        Options of the call.
    rows : sequence of SlideRow
        Slides of the call.
    record : mapping
        Further values.
    worked : bool
        False for a call that found all its slides complete: the record of the one that made them
        stays, unless that of this call is requested.
    """
    if (path := record_path(out, options)) is None:
        return
    if not worked and options.record is None and path.exists():
        return
    part = {"shard": options.shard} if options.shard else {}
    became = [{key: getattr(row, key) for key in _ROW} for row in rows]
    requested = {_ROWS: became} if options.record is not None else {}
    write_json(path, {**record, **part, **requested})
