"""Which folder a training may take: a new or empty one, or one that was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wsiad.config import Config, resolve, write_config
from wsiad.errors import ConfigError, RunError
from wsiad.locks import CLAIM, claimed

CONFIG = "config.yaml"


@contextlib.contextmanager
def taken(out: Path, config: Config, *, record: str, what: str) -> Iterator[bool]:
    """Keep a folder for what a config makes; tell whether that is complete in it already.

    While it is made no other process may work in the folder.

    Parameters
    ----------
    out : Path
    config : Config
        Is stored in it, where it is not complete.
    record : str
        Name of the file that is written last.
    what : str
        What is made, such as ``"run"``.

    Yields
    ------
    bool
        Whether nothing is left to do.

    Raises
    ------
    RunError
        It holds a complete one of another config, or something else, or cannot be made.
    InputError
        Another process works in it.
    """
    path = out / CONFIG
    if _is_complete(out, config, record):
        yield True
        return
    begin(out, record=record, what=what)
    with claimed(out):
        if _is_complete(out, config, record):  # by another process, just before
            yield True
            return
        if not path.exists() and any(entry.name != CLAIM for entry in out.iterdir()):
            raise RunError(
                f"holds something that is not a {what}",
                subject=str(out),
                remedy="Give an empty or a new folder as --out.",
            )
        write_config(path, config)
        yield False


def begin(out: Path, *, record: str, what: str) -> None:
    """Make a folder, unless it is there; see :func:`taken`.

    Raises
    ------
    RunError
        It holds a complete one already, or cannot be made.
    """
    if (out / record).is_file():
        raise RunError(
            f"holds a complete {what} already",
            subject=str(out),
            remedy="Choose another folder, or delete this one.",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot be made ({error.strerror})", subject=str(out)) from error


def _is_complete(out: Path, config: Config, record: str) -> bool:
    """Whether what this very config makes, be it of before an option with a default, is there."""
    path = out / CONFIG
    try:
        given = (out / record).is_file() and path.exists()
        return given and resolve(type(config), file=path, flags={}) == config
    except ConfigError:
        return False
