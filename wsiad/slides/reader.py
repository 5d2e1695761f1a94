"""Slides that OpenSlide reads in a process of their own, so that a crash does not end a batch.

OpenSlide and the libraries below it end their process on some damaged files, such as one that
claims a tile of terabytes. A reader is started with the first slide, serves one slide at a time,
and is used again for the next. A reader that has ended is replaced.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide

HOPELESS_SECONDS = 1800.0
"""Time without an answer after which a reader is ended. A region takes less than a second, and
minutes if a network disk is stuck."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_DEAF_TO = {signal.SIGINT, signal.SIGTERM}
_SAID_BYTES = 4096
_SAID = re.compile(r"(?:.*(?:ERROR|CRITICAL) \*\*: (?:[\d:.]+: )?)?(?:[^ :]+:\d+: )?(?P<text>.+)")


class ReaderCrash(openslide.OpenSlideError):  # type: ignore[misc]
    """OpenSlide crashed its process, or did not answer."""


class ReadSlide:
    """A slide open in a reader, like :class:`openslide.OpenSlide`, for one thread at a time.

    Parameters
    ----------
    path : Path
        Path of the slide's file.

    Attributes
    ----------
    properties : dict of str to str
    level_dimensions : tuple of (int, int)
        Width and height of each level, pixels; level 0 first.
    level_downsamples : tuple of float
        Downsamples as OpenSlide reports them.
    profile : bytes or None
        ICC profile of the slide.

    Raises
    ------
    openslide.OpenSlideError
        The slide cannot be opened. The error is an ``OpenSlideUnsupportedFormatError`` if it is
        not a slide, and a :class:`ReaderCrash` if OpenSlide crashes on it.
    """

    def __init__(self, path: Path) -> None:
        self._reader: _Reader | None = None
        self._reader = _taken()
        try:
            facts = self._reader.ask("open", str(path.absolute()))
        except BaseException:
            self.close()
            raise
        self.properties: dict[str, str] = facts["properties"]
        self.level_dimensions = tuple((int(w), int(h)) for w, h in facts["levels"])
        self.level_downsamples = tuple(map(float, facts["downsamples"]))
        self.profile = base64.b64decode(facts["profile"]) if facts["profile"] else None

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0, pixels."""
        return self.level_dimensions[0]

    def read_rgba(
        self, at: tuple[int, int], level: int, size: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        """Read a region, RGBA and not premultiplied.

        Parameters
        ----------
        at : tuple of int
            Top-left corner of the region, x and y in level-0 pixels.
        level : int
        size : tuple of int
            Width and height, pixels of the level.

        Returns
        -------
        ndarray of uint8, (H, W, 4)
            Pixels, which the next reading overwrites.

        Raises
        ------
        openslide.OpenSlideError
            The region cannot be decoded.
        """
        if self._reader is None:
            raise openslide.OpenSlideError("the slide is closed")
        width, height = size
        if not width or not height:
            return np.zeros((height, width, 4), np.uint8)
        self._reader.ask("read", *map(int, (*at, level, width, height)), pixels=True)
        return self._reader.pixels(height, width)

    def close(self) -> None:
        """Close the slide, and leave the reader to the next one."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            _give_back(reader)

    def __del__(self) -> None:
        self.close()


class _Reader:
    """A process that reads slides, and the connection to it."""

    def __init__(self) -> None:
        self._owner, self._said_before = os.getpid(), 0
        self._pixels, self._said = _memory_file("wsiad-pixels"), _memory_file("wsiad-said")
        self._memory: mmap.mmap | None = None
        here, there = socket.socketpair()
        numbers = (there.fileno(), self._pixels)
        paths = os.pathsep.join(map(os.path.abspath, sys.path))  # it finds what is found here
        # Ctrl-C and a batch system's SIGTERM go to all processes: who reads ends it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "wsiad.slides.reader_process", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=numbers,
                cwd="/",
                env=os.environ | dict.fromkeys(_THREADS, "1") | {"PYTHONPATH": paths},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()
        self._asked = Connection(here.detach())
        self._asking = threading.Lock()

    @property
    def busy(self) -> bool:
        """True while a thread waits for an answer."""
        return self._asking.locked()

    @property
    def alive(self) -> bool:
        """True if the process can be asked: it runs, and its owner is this process."""
        own = self._owner == os.getpid()
        return own and not self._asked.closed and self._process.poll() is None

    def ask(self, *question: Any, pixels: bool = False) -> Any:
        """Call a method of the process with arguments that are JSON; return its result."""
        with self._asking:
            return self._ask(question, pixels=pixels)

    def _ask(self, question: tuple[Any, ...], *, pixels: bool) -> Any:
        if not self.alive:
            raise ReaderCrash(f"OpenSlide crashed ({self._described()})")
        self._said_before = os.fstat(self._said).st_size
        try:
            self._asked.send_bytes(json.dumps(question).encode())
            answered = self._asked.poll(HOPELESS_SECONDS)
            answer = json.loads(self._asked.recv_bytes()) if answered else None
        except (OSError, EOFError) as error:
            raise ReaderCrash(f"OpenSlide crashed ({self._described()})") from error
        except BaseException:
            self.end()  # what it answers later is not of what will be asked then
            raise
        if answer is None:
            self.end()
            raise ReaderCrash(f"OpenSlide has not answered for {HOPELESS_SECONDS:.0f} s")
        if "error" not in answer:
            if pixels:
                self._see(answer["value"])
            return answer["value"]
        unsupported = answer["error"] == "format"
        kind = (
            openslide.OpenSlideUnsupportedFormatError if unsupported else openslide.OpenSlideError
        )
        raise kind(answer["text"])

    def _see(self, length: int) -> None:
        if self._memory is None or len(self._memory) < length:
            self._memory = mmap.mmap(self._pixels, length, access=mmap.ACCESS_READ)

    def pixels(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Return the pixels that were read last, (H, W, 4)."""
        flat = np.frombuffer(self._memory or b"", np.uint8, height * width * 4)
        return flat.reshape(height, width, 4)

    def _described(self) -> str:
        """Describe how the process ended, and what it printed last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        code = self._process.poll()
        self.end()
        if code is None:
            return "it closed its connection"
        names = {number.value: number.name for number in signal.Signals}
        how = names.get(-code, f"signal {-code}") if code < 0 else f"exit code {code}"
        return f"{how}: {text}" if (text := self._text()) else how

    def _text(self) -> str:
        """Return the last line that the process printed, without its place in the source."""
        first = max(self._said_before, os.fstat(self._said).st_size - _SAID_BYTES)
        said = os.pread(self._said, _SAID_BYTES, first)
        lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        found = _SAID.match("".join(c if c.isprintable() else "?" for c in last))
        return found["text"] if found else ""

    def end(self) -> None:
        """End the process; a fork only releases it."""
        self._asked.close()
        if self._owner != os.getpid():
            self._process.returncode = 0  # not this process' to wait for
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a disk that is gone
            self._process.wait(10)

    def __del__(self) -> None:
        for number in (self._pixels, self._said):
            with contextlib.suppress(OSError):
                os.close(number)


_idle: list[_Reader] = []
_lock = threading.Lock()


def _taken() -> _Reader:
    with _lock:
        reader = _idle.pop() if _idle else None
    if reader is not None:
        if reader.alive:
            return reader
        reader.end()
    return _Reader()


def _give_back(reader: _Reader) -> None:
    """Keep one reader for the next slide, and end all others.

    One that another thread still waits for (a disk that is gone) is ended too; the thread then
    fails at once.
    """
    if reader.busy:
        reader.end()
        return
    with contextlib.suppress(openslide.OpenSlideError):
        if reader.alive:
            reader.ask("close")
    with _lock:
        if reader.alive and not _idle:
            _idle.append(reader)
            return
    reader.end()


def _memory_file(name: str) -> int:
    """Open a file in memory if the system supports it; otherwise a temporary one without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _forget_all() -> None:
    """Leave readers to the process of which this one is a fork."""
    global _lock  # another thread of that process may have held it
    _lock = threading.Lock()
    _end_idle()


atexit.register(_end_idle)
os.register_at_fork(after_in_child=_forget_all)
