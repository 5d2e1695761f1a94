"""``wsiad list-slides``: list the slides of folders and manifests, and write a manifest of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from wsiad.core.config import Config, Paths, verb
from wsiad.core.errors import InputError, ScaleError, SlideError
from wsiad.core.terminal import counted, json_text
from wsiad.slides.folder_kinds import SLIDES, other_kinds_named
from wsiad.slides.inputs import find_slides
from wsiad.slides.manifest import ManifestRow, write_manifest
from wsiad.slides.slide_files import SUFFIXES
from wsiad.slides.slide_table import FAILED, UNUSABLE, SlideRow

if TYPE_CHECKING:
    from wsiad.slides.inputs import SlideInput


class ListSlidesConfig(Config):
    """List the slides of files, folders and manifests, as the other verbs name them.

    No slide is opened, but a file that does not end as slides do, to tell whether it is one. To
    look into slides, use the dry run of tile or heatmap.
    """

    flags: ClassVar[Mapping[str, str]] = {"as_json": "json"}

    slides: Annotated[Paths, Field(min_length=1)]
    """Slide files, folders of slides, or manifest CSVs (docs/manifest.md)."""
    manifest: Path | None = None
    """CSV to write, a manifest with a row for each slide, to add labels, splits or µm/px to. A file
    that is there is not overwritten."""
    as_json: bool = False
    """Print JSON, for programs."""

    @field_validator("manifest")
    @classmethod
    def _is_a_manifest(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() != ".csv":
            raise ValueError("the name of a manifest ends in .csv")
        return value


@dataclass(frozen=True, slots=True)
class ListSlidesResult:
    """List of slides.

    Parameters
    ----------
    slides : tuple of SlideInput
        The slides, in order of their names.
    manifest : Path or None
        Manifest that was written.
    as_json : bool
        True for a summary that programs read.
    """

    slides: tuple[SlideInput, ...]
    manifest: Path | None
    as_json: bool

    @property
    def failed(self) -> tuple[SlideRow, ...]:
        """Rows of the slides that cannot be worked on."""
        return self._with_problem(FAILED)

    @property
    def unusable(self) -> tuple[SlideRow, ...]:
        """Rows of the slides that cannot be looked at."""
        return self._with_problem(UNUSABLE)

    def _with_problem(self, status: str) -> tuple[SlideRow, ...]:
        return tuple(
            SlideRow(slide.name, status, slide.problem)
            for slide in self.slides
            if slide.problem and slide.unusable == (status == UNUSABLE)
        )

    @property
    def summary(self) -> str:
        """Lines for the terminal, or JSON."""
        if self.as_json:
            values = [
                {
                    "name": slide.name,
                    "path": str(slide.path.absolute()),
                    "mpp": slide.mpp,
                    "label": slide.label,
                    "split": slide.split,
                    "extra": slide.extra,
                    "problem": slide.problem,
                }
                for slide in self.slides
            ]
            return json_text({"slides": values})
        width = max(len(slide.name) for slide in self.slides)
        lines = [f"{slide.name:<{width}}  {_said(slide)}" for slide in self.slides]
        labels = Counter(slide.label or "without a label" for slide in self.slides)
        counts = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        seen = f"; see {self.manifest}" if self.manifest else ""
        number = counted(len(self.slides), "slide")
        return "\n".join([*lines, f"{number}: {counts}{seen}"])


def _said(slide: SlideInput) -> str:
    said = [slide.label, slide.split, f"{slide.mpp:g} µm/px" if slide.mpp else "", str(slide.path)]
    return "  ".join(word for word in said if word)


@verb(ListSlidesConfig)
def list_slides(config: ListSlidesConfig) -> ListSlidesResult:
    """List slides, and write a manifest of them if one is requested.

    A slide that cannot be worked on (its name is another's, its file is a link to nothing or no
    slide) is listed with the reason.

    Raises
    ------
    InputError
        No slides were found, a manifest is not valid, or the manifest to write exists.
    """
    remedy = "Pass slide files, folders of them, or a manifest."
    with other_kinds_named(config.slides, SLIDES, InputError, remedy=remedy):
        slides = [_tried(slide) for slide in find_slides(config.slides)]
    found = sorted(slides, key=lambda one: (one.name, str(one.path)))
    if config.manifest is not None:
        _write(config.manifest, found)
    return ListSlidesResult(tuple(found), config.manifest, config.as_json)


def _tried(slide: SlideInput) -> SlideInput:
    """Return a slide with its problem if its file, which does not end as slides do, is none."""
    from wsiad.slides.opening import open_slide

    if slide.problem or slide.path.suffix.lower() in SUFFIXES:
        return slide
    try:
        open_slide(slide.path, name=slide.name, backend="openslide").close()
    except ScaleError:  # it may be said in the manifest
        return slide
    except SlideError as error:
        return replace(slide, problem=str(error).removeprefix(f"{slide.name}: "))
    return slide


def _write(path: Path, found: Sequence[SlideInput]) -> None:
    if path.exists():
        raise InputError(
            "exists, and may hold what you wrote into it",
            subject=str(path),
            remedy="Pass another one; with this file among the slides it takes over what it says.",
        )
    rows = [
        ManifestRow(
            where=str(path),
            path=slide.path,
            name=slide.name,
            mpp=slide.mpp,
            label=slide.label,
            split=slide.split,
            extra=slide.extra,
        )
        for slide in found
    ]
    write_manifest(path, rows)
