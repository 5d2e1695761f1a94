"""Slides on which processes died: noted while they are worked on, and worked on apart then.

Where one process works on all slides in turn, one that ends it (a library that crashes, memory
that runs out) would end every run after it at the same slide. A process that was killed from
outside leaves the same note, so that one death says nothing of the slide yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wsiad.core.ownership import is_dead, owner

OFTEN = 2
"""After so many deaths a slide is worked on by a process of its own."""

_PREFIX = ".working."


class Deaths:
    """The notes in an output folder.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes: dict[str, list[Path]] = {}
        for note in folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if is_dead(note.name.removeprefix(_PREFIX)):
                    self._notes.setdefault(note.read_text(encoding="utf-8"), []).append(note)

    def often(self, slide: str) -> bool:
        """Whether processes have died on a slide more than once."""
        return len(self._notes.get(slide, [])) >= OFTEN

    @contextlib.contextmanager
    def noted(self, slide: str) -> Iterator[None]:
        """Note that this process works on a slide; when it has done so, forget its deaths."""
        note = self._folder / f"{_PREFIX}{owner()}"
        # Where there is no room for a note, none is needed for the slide to go on.
        with contextlib.suppress(OSError):
            note.write_text(slide, encoding="utf-8")
        try:
            yield
            for one in self._notes.pop(slide, []):
                one.unlink(missing_ok=True)
        finally:
            note.unlink(missing_ok=True)
