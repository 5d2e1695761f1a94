"""A process that reads slides by OpenSlide for the process that started it.

``python -m wsiad.slides.reader_process SOCKET PIXELS`` takes the numbers of two open files: the
connection for questions, and the file for pixels. Questions and answers are JSON. Whatever a slide
does to this process, the other one only receives wrong data.
"""

from __future__ import annotations

import base64
import contextlib
import json
import mmap
import os
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import openslide

MEMORY_BYTES = 4 * 2**30
"""Maximum memory of a reader. Regions are read in parts of at most 64 MB, and tiles of real slides
have a few MB; a file that claims more is not believed."""


def main() -> None:
    """Answer questions until the other end is closed."""
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # not on every system
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    asked, pixels = Connection(int(sys.argv[1])), int(sys.argv[2])
    reader = Reader(pixels)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            question = json.loads(asked.recv_bytes())
            asked.send_bytes(json.dumps(answer(reader, question)).encode())


def answer(reader: Reader, question: list[Any]) -> dict[str, Any]:
    """Call a method of the reader, by its name and arguments, and return its answer."""
    name, *arguments = question
    try:
        return {"value": getattr(reader, name)(*arguments)}
    except openslide.OpenSlideUnsupportedFormatError as error:
        return {"error": "format", "text": str(error)}
    except (openslide.OpenSlideError, OSError) as error:
        return {"error": "slide", "text": str(error)}
    except Exception as error:
        return {"error": "slide", "text": f"{type(error).__name__}: {error}"}


class Reader:
    """Reader of one slide at a time.

    Parameters
    ----------
    pixels : int
        Number of the open file for pixels.
    """

    def __init__(self, pixels: int) -> None:
        self._file = pixels
        self._memory: mmap.mmap | None = None
        self._slide: openslide.OpenSlide | None = None

    def open(self, path: str) -> dict[str, Any]:
        """Open a slide, and return its description."""
        self.close()
        slide = self._slide = openslide.OpenSlide(path)
        profile = slide.read_region((0, 0), 0, (0, 0)).info.get("icc_profile")
        return {
            "properties": dict(slide.properties),
            "levels": slide.level_dimensions,
            "downsamples": slide.level_downsamples,
            "profile": base64.b64encode(profile).decode() if profile else None,
        }

    def read(self, x: int, y: int, level: int, width: int, height: int) -> int:
        """Write a region's pixels, RGBA, to the file; return the size of the file in bytes."""
        assert self._slide is not None
        region = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        if self._memory is None or len(self._memory) < region.nbytes:
            os.ftruncate(self._file, region.nbytes)
            self._memory = mmap.mmap(self._file, region.nbytes)
        np.frombuffer(self._memory, np.uint8, region.nbytes)[:] = region.reshape(-1)
        return len(self._memory)

    def close(self) -> None:
        """Close the slide, if one is open."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None


if __name__ == "__main__":
    main()
