"""An orderly end when the system requests it: SIGTERM and SIGINT.

Blocks that a signal must not leave half made or half closed use :func:`begun`.

The exception of a signal can be raised anywhere between two steps of Python, even where the code
that catches it does not let it pass. ctypes turns any error of an argument's conversion into an
``ArgumentError`` (OpenSlide's conversions are in Python), and a finaliser drops it. The arrival of
a signal is therefore noted too, and :func:`raise_if_ended` asks for it before a failure is
attributed to a slide.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TypeVar

T = TypeVar("T")

_ASKED = (signal.SIGINT, signal.SIGTERM)
_came: list[type[KeyboardInterrupt]] = []
"""The signal that ended the running block of :func:`terminated`; signals are per process."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system's time is over, or someone ended the process.

    Like Ctrl-C, it passes code that catches exceptions to continue with the next slide.
    """


@contextmanager
def terminated() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM within the block, in the main thread.

    Everything half written is then removed on the way out, as after any error. Further SIGTERMs
    are ignored; their sender will kill the process in the end. SIGINT raises the same exception as
    without the block. Any other exception that leaves the block after a signal is a
    consequence of it, and the signal's exception is raised instead.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _came[:] = [Terminated if number == signal.SIGTERM else KeyboardInterrupt]
        raise _came[0]

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not one that is ignored
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield
    except Exception:
        raise_if_ended()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _came.clear()


def raise_if_ended() -> None:
    """Raise the exception of a signal that came within :func:`terminated`; in the main thread.

    Raises
    ------
    Terminated
        SIGTERM came.
    KeyboardInterrupt
        SIGINT came.
    """
    if _came and threading.current_thread() is threading.main_thread():
        raise _came[0]


@contextmanager
def postponed() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the block is over.

    It is for short blocks in which another thread works for this one: that thread would continue
    to write while its files are removed.
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


@contextmanager
def begun(make: Callable[[], T], close: Callable[[T], object]) -> Iterator[T]:
    """Make an object, yield it, and close it in every case; signals wait while that happens.

    A client or scheduler that is half made cannot be closed, and one that is half closed leaves
    processes and threads that print errors. Messages that it logs while it closes concern
    connections that it has cut itself, and are not printed.

    Parameters
    ----------
    make : callable
        Function that makes the object within a few seconds.
    close : callable
        Function that closes the object in a bounded time.
    """
    made: list[T] = []
    try:
        with postponed():
            made.append(make())
        yield made[0]
    finally:
        with postponed(), _silence():
            for one in made:
                close(one)


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
