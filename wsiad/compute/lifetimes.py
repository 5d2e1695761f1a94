"""Dask's schedulers and clients, begun and ended whole, also when a signal comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from wsiad.core.signals import postponed

T = TypeVar("T")

CLOSE_SECONDS = 10.0
"""The most that something may take to close."""


@contextmanager
def begun(make: Callable[[], T], close: Callable[[T], object]) -> Iterator[T]:
    """Make something, yield it, and close it whatever happens; signals wait meanwhile.

    One half made cannot be closed, and one half closed leaves processes and threads that
    print what they miss. What dask says while it is closed is about connections that it has
    cut itself, and is not printed.

    Parameters
    ----------
    make : callable
        Makes it, within a few seconds.
    close : callable
        Closes it, in a time that is bounded.
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


def close_client(client: Any) -> None:
    """Close a dask client; what it has handed out and not got back is lost."""
    client.close(timeout=CLOSE_SECONDS)


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
