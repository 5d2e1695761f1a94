"""Annotation files as bytes: of a size that can be worked on."""

from __future__ import annotations

from pathlib import Path

from wsiad.core.errors import AnnotationError

MAX_BYTES = 1 << 27
"""Largest annotation file that is read: half a million objects."""

MAX_DEPTH = 32
"""How deep groups, collections and objects may lie within each other."""


def read_bytes(path: Path) -> bytes:
    """Return what an annotation file holds.

    Raises
    ------
    AnnotationError
        It is missing, cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise AnnotationError(f"cannot be read ({error})", subject=str(path)) from error
    if len(data) > MAX_BYTES:
        raise AnnotationError(
            f"is larger than {MAX_BYTES >> 20} MiB",
            subject=str(path),
            remedy="Export the annotations alone, without detections, cells and tiles.",
        )
    return data
