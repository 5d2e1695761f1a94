"""Where slides are worked on: the options that verbs share, and shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from wsiad.core.config import RECORD, Config, Order
from wsiad.slides.inputs import SlideInput

T = TypeVar("T")


def _checked_shard(text: str) -> str:
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise ValueError("should be i/n with i from 1 to n, as 2/8 for the second of eight")
    return f"{int(parts[1])}/{int(parts[2])}"


Shard = Annotated[str, AfterValidator(_checked_shard)]
"""``"i/n"``, counted from 1: the i-th of n equal parts of the slides."""


class WorkerOptions(Config):
    """Number of slides or fits that are worked on at once, and where."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Slides, or fits, worked on at once, each by a process of its own on this machine."""
    cluster: Path | None = None
    """YAML file of a batch cluster (SLURM, PBS, LSF, SGE) whose jobs do the work; see
    configs/slurm.yaml."""
    scheduler: str | None = None
    """Address of a running dask scheduler whose workers do the work."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Number of new tries of a slide, or a fit, whose worker was lost; an error of its own
    is not. With `scheduler`, that one decides."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.cluster is not None and self.scheduler is not None:
            raise ValueError("give either `cluster`, to start jobs, or `scheduler`, to use theirs")
        if self.distant and self.workers != 1:
            raise ValueError(
                f"`workers` are processes of this machine: leave it out with `{self.distant}`"
            )
        return self

    @property
    def distant(self) -> str:
        """Name of the option by which others than this machine work; empty without one."""
        if self.cluster is not None:
            return "cluster"
        return "scheduler" if self.scheduler is not None else ""

    @property
    def in_turn(self) -> bool:
        """Whether this process does all the work, one after the other."""
        return self.workers == 1 and not self.distant


class ComputeOptions(WorkerOptions):
    """Number of slides that are worked on at once, which of them, and where."""

    ORDER: ClassVar[Order] = ("workers", "cluster", "scheduler", "shard", ...)

    shard: Shard | None = None
    """Part of the slides to work on, `i/n`, counted from 1: `2/8` takes the second and then
    every eighth slide of the sorted list. For job arrays; shards may run at once, overlap or
    run twice."""
    stage_dir: Path | None = None
    """Folder on a local disk to which each slide is copied before it is read, and from which
    it is deleted afterwards."""

    @model_validator(mode="after")
    def _shards_stay_here(self) -> Self:
        if self.distant and self.shard is not None:
            raise ValueError(
                f"`{self.distant}` shares out all slides itself: leave out `shard`, which is for "
                "job arrays"
            )
        return self


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

    They are sorted by name first: shards that find them in another order are no less apart.
    """
    if shard is None:
        return list(slides)
    return take_shard(sorted(slides, key=lambda slide: (slide.name, str(slide.path))), shard)


def record_path(out: Path, shard: str | None) -> Path:
    """Where a call says what it did: ``run.json``, or a shard its own ``runs/shard-2-of-8.json``.

    Shards share a folder; one that wrote its counts as those of all would be wrong.
    """
    return out / (f"runs/shard-{shard.replace('/', '-of-')}.json" if shard else RECORD)
