"""Take items from an iterator in a thread, ahead of their use, within a bound of memory."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""Maximum seconds to wait for the item that a thread is making when nobody wants it any more."""


_LEAST_BYTES = 1 << 24
_BATCHES = 3


def room_for(batch_bytes: int) -> int:
    """Return the bytes of batches to hold, for :func:`read_ahead`: 16 MiB or three batches.

    Two batches would be enough if all took equally long. Small ones come from blocks that are read
    as a whole, and the thread continues with the next block only while there is room.

    Parameters
    ----------
    batch_bytes : int
        Bytes of a full batch.
    """
    return max(_LEAST_BYTES, _BATCHES * batch_bytes)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


_M_ARENA_MAX = -8


@functools.cache
def _one_heap() -> None:
    """Let threads that are started later use the memory that others have freed.

    glibc keeps a heap for each thread, and a reading thread then takes 90 MB that are free already.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 1)


def read_ahead(
    items: Iterator[T], *, size: Callable[[T], int], limit: int
) -> Generator[T, None, None]:
    """Yield the items of an iterator, which a thread takes from it ahead of their use.

    Items and their order are those of the iterator. A step of the iterator that releases Python's
    lock (decoding, a look-up table) then overlaps with the work of the caller.

    A caller that may stop early must close the generator (``contextlib.closing``) before it closes
    what the iterator reads from: the thread then finishes its item, closes the iterator and ends.

    Parameters
    ----------
    items : iterator
        Iterator that only the thread uses from now on.
    size : callable
        Function of an item that returns its bytes.
    limit : int
        Bytes of unused items, with the one in use, from which on the thread waits. At least one
        item is always taken.

    Raises
    ------
    BaseException
        The iterator raised it; the items before it come first.
    """
    ready: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    used: SimpleQueue[int | None] = SimpleQueue()
    _one_heap()
    thread = threading.Thread(
        target=_fill, args=(items, size, limit, ready, used), name="read-ahead", daemon=True
    )
    thread.start()
    try:
        while (got := ready.get()) is not None:
            if isinstance(got, BaseException):
                try:
                    raise got
                finally:
                    del got  # its traceback holds this frame
            yield got[0]
            used.put(size(got[0]))
            del got
    finally:
        used.put(None)
        thread.join(PATIENCE_SECONDS)


def _fill(
    items: Iterator[T],
    size: Callable[[T], int],
    limit: int,
    ready: SimpleQueue[tuple[T] | BaseException | None],
    used: SimpleQueue[int | None],
) -> None:
    """Hand over items until the iterator ends or the receiver stops; count the bytes in between."""
    held = 0
    last: BaseException | None = None
    try:
        for item in items:
            held += size(item)
            ready.put((item,))
            del item  # while the next one is made, it is the receiver's alone
            while held >= limit or not used.empty():
                if (done := used.get()) is None:
                    return
                held -= done
    except BaseException as error:
        last = error
    finally:
        try:
            if isinstance(items, Generator):
                items.close()
        finally:
            ready.put(last)
