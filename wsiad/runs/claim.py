"""Which folder a training may take: a new or empty one, or one that was interrupted."""

from __future__ import annotations

from pathlib import Path

from wsiad.config import Config, resolve, write_config
from wsiad.errors import ConfigError, RunError

CONFIG = "config.yaml"


def claim(out: Path, config: Config, *, record: str, what: str) -> bool:
    """Take a folder for what a config makes; tell whether that is complete in it already.

    Parameters
    ----------
    out : Path
    config : Config
        Is stored in it, where it is not complete.
    record : str
        Name of the file that is written last.
    what : str
        What is made, such as ``"run"``.

    Raises
    ------
    RunError
        It holds a complete one of another config, or something else, or cannot be made.
    """
    path = out / CONFIG
    if (out / record).is_file() and path.exists() and _same(path, config):
        return True
    begin(out, record=record, what=what)
    if not path.exists() and any(out.iterdir()):
        raise RunError(
            f"holds something that is not a {what}",
            subject=str(out),
            remedy="Give an empty or a new folder as --out.",
        )
    write_config(path, config)
    return False


def begin(out: Path, *, record: str, what: str) -> None:
    """Make a folder, unless it is there; see :func:`claim`.

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


def _same(path: Path, config: Config) -> bool:
    """Whether a stored config is this one, be it of before an option with a default."""
    try:
        return resolve(type(config), file=path, flags={}) == config
    except ConfigError:
        return False
