"""Claim a folder for a training: a new or empty one, or one whose training was interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from wsiad.core.config import CONFIG, Config, differences, resolve, write_config
from wsiad.core.errors import ConfigError, RunError, WsiadError
from wsiad.core.files import atomic_file
from wsiad.core.ownership import CLAIM, claimed, refuse_foreign
from wsiad.slides.folder_kinds import RESULTS, RUN, SEARCH, STORE, what_is

WEIGHTS: Final = "weights.safetensors"
"""File in the folder of a training: the trained tensors."""

HEALTHY_MAPS: Final = "healthy_maps.safetensors"
"""File of a run, and of results: score maps of the healthy slides of the calibration."""

EXAMPLES: Final = "examples.safetensors"
"""File of a run: healthy tiles to look at."""

SECOND_LOOK: Final = "second_look"
"""Key of the notes of a run that is a second look; also of the use of its slides."""

_OTHERS = (STORE, RESULTS, RUN, SEARCH)


@contextlib.contextmanager
def taken(
    out: Path,
    config: Config,
    *,
    record: str,
    what: str,
    free: Collection[str] = (),
    beginnings: Collection[str] = (),
) -> Iterator[bool]:
    """Claim a folder for the product of a config, and tell whether it is complete already.

    No other process can work in the folder meanwhile. A folder with parts of another config's
    product stays as it is, and so does its config. If the work fails before any part exists,
    nothing is left behind.

    Parameters
    ----------
    out : Path
        Folder to claim.
    config : Config
        Configuration of the work; stored in the folder unless the product is complete.
    record : str
        Name of the file that is written last.
    what : str
        Name of the product, such as ``"run"``.
    free : collection of str
        Options that may differ when the work is resumed.
    beginnings : collection of str
        Names of files that are written before any part exists, and again at each start.

    Yields
    ------
    bool
        True where nothing is left to do.

    Raises
    ------
    RunError
        The folder contains the complete product of another config, parts of one, or something
        else, or it cannot be created.
    InputError
        Another process works in the folder.
    """
    path = out / CONFIG
    if _is_complete(out, config, record):
        yield True
        return
    _check_complete(out, config, record=record, what=what)
    new = not out.exists()
    begin(out, record=record, what=what)
    with _gone_if_empty(out, new=new), claimed(out):
        if _is_complete(out, config, record):  # by another process, just before
            yield True
            return
        there = [entry.name for entry in out.iterdir() if entry.name != CLAIM]
        refuse_foreign(out, RunError, what=f"a {what}", marks=[CONFIG])
        beginnings = {CONFIG, *beginnings}
        parts = [name for name in there if name not in beginnings and not name.startswith(".")]
        if parts:
            _check_alike(path, config, what=what, free=free)
        earlier = path.read_bytes() if parts else None
        write_config(path, config)
        try:
            yield False
        except WsiadError as error:
            if earlier is not None and isinstance(error, RunError):
                # What is there was made by the earlier one, and is as it was.
                with atomic_file(path) as partial:
                    partial.write_bytes(earlier)
            elif not there and {entry.name for entry in out.iterdir()} <= {CLAIM, *beginnings}:
                # Refused before any part of it was made: there is nothing to go on with.
                for name in beginnings:
                    (out / name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _gone_if_empty(folder: Path, *, new: bool) -> Iterator[None]:
    """Remove a new folder if it is empty in the end."""
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def _check_alike(path: Path, config: Config, *, what: str, free: Collection[str]) -> None:
    """Check that the parts in a folder belong to a config."""
    try:
        there = resolve(type(config), file=path, flags={})
    except ConfigError as error:
        raise RunError(
            f"holds parts of something other than this {what}: {error}",
            subject=str(path.parent),
            remedy="Choose an empty or a new folder as --out.",
        ) from error
    told = _told(there, config, free=free)
    if told:
        raise RunError(
            f"holds parts of a {what} with {', '.join(told)}",
            subject=str(path.parent),
            remedy="Use the same configuration to continue, choose another --out, or delete the "
            "folder.",
        )


def _told(there: Config, config: Config, *, free: Collection[str] = ()) -> list[str]:
    """Return the differences of a stored config from another one, as texts."""
    was, now = (
        one.model_dump(mode="json", exclude={"out", "quiet", *free}) for one in (there, config)
    )
    return differences(was, now)


def _check_complete(out: Path, config: Config, *, record: str, what: str) -> None:
    """Refuse a folder with the complete product of another config, and name the differences."""
    if not (out / record).is_file() or not (out / CONFIG).is_file():
        return
    try:
        told = _told(resolve(type(config), file=out / CONFIG, flags={}), config)
    except ConfigError:
        return
    if told:
        raise RunError(
            f"holds a complete {what} already, with {', '.join(told)}",
            subject=str(out),
            remedy="Choose another folder, or delete this one.",
        )


def begin(out: Path, *, record: str, what: str) -> None:
    """Create a folder, unless it exists; see :func:`taken`.

    Raises
    ------
    RunError
        The folder contains a complete product already, or something else, or cannot be created.
    """
    found = what_is(out)
    if found in _OTHERS and what not in found:
        raise RunError(
            f"holds {found}, not a {what}",
            subject=str(out),
            remedy="Choose an empty or a new folder as --out.",
        )
    if (out / record).is_file():
        raise RunError(
            f"holds a complete {what} already",
            subject=str(out),
            remedy="Choose another folder, or delete this one.",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot be created ({error.strerror})", subject=str(out), remedy="Set another --out."
        ) from error


def _is_complete(out: Path, config: Config, record: str) -> bool:
    """Tell whether the complete product of exactly this config is in a folder.

    A config that was stored before an option with a default existed counts too.
    """
    path = out / CONFIG
    try:
        given = (out / record).is_file() and path.exists()
        return given and resolve(type(config), file=path, flags={}) == config
    except ConfigError:
        return False
