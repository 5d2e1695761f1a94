"""An orderly end when the system asks for it: SIGTERM and SIGINT."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ASKED = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system's time is over, or someone ended the process.

    It passes what catches exceptions to go on with the next slide, as Ctrl-C does.
    """


@contextmanager
def terminated() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM within the block, in the main thread.

    Everything half written is then cleared away on the way out, as on any error. Further
    SIGTERMs are ignored: who sends them kills in the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def postponed() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block is over.

    For short blocks in which another thread works for this one: it would go on writing
    while what it writes is cleared away.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    previous = {number: signal.signal(number, note) for number in _ASKED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # one that Python did not install, and cannot
                signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked[0])
