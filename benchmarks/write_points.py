"""Every call of a run that changes the file system, as a point at which it may end.

    python benchmarks/write_points.py [--every N] kill|full FOLDER tile SLIDES --out {out} ...

Runs the command line once to its end, and then, for every N-th change that it makes to
its output (``{out}`` in its arguments): cuts it short right before that change, runs the
same command again, and compares. Python reports such calls to an audit hook before they
are made, also those of zarr and from its threads; the program knows nothing of it.

``kill`` ends the process as ``kill -9`` does; ``full`` lets this and every later call
that needs room fail as on a full disk. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import csv
import errno
import importlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_GROW = {"os.mkdir", "os.link"}
_CHANGE = _GROW | {"os.rename", "os.remove", "os.rmdir", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

TIMES = {"seconds", "tiles_per_second"}
"""Keys of JSON files and columns of tables that tell time."""


UNLIKE = {"report.html", "timings.json"}
"""Files that tell time and little else."""


class Watch:
    """Call something right before the n-th change below a folder, and before all later ones.

    Parameters
    ----------
    folder : Path
    at : int
        Counted from 1; 0 for never.
    then : callable
        Gets whether the change needs room on the disk.
    """

    def __init__(self, folder: Path, at: int, then: Callable[[bool], None]) -> None:
        self.count = 0
        self._folder, self._at, self._then = os.fspath(folder), at, then
        self._lock = threading.Lock()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        """Be told of an event before it happens, by whichever thread makes it."""
        if event == "open":
            path, _, flags = arguments
            grows = bool((flags or 0) & _WRITES)
            if not grows:
                return
        elif event in _CHANGE:
            path, grows = arguments[0], event in _GROW
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        # A folder is removed by names relative to it.
        if name.startswith("/") and not f"{name}/".startswith(f"{self._folder}/"):
            return
        with self._lock:
            self.count += 1
            hit = self._at and self.count >= self._at
        if hit:
            self._then(grows)


def die(grows: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(grows: bool) -> None:
    if grows:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forked(arguments: list[str], out: Path, *, at: int = 0, then=die) -> tuple[int, int, str]:
    """Run a command line in a child; return its exit code, changes made, and what it said."""
    log, counted = out.with_suffix(".log"), out.with_suffix(".count")
    child = _fork(arguments, out, log, counted, at, then)
    _, status = os.waitpid(child, 0)
    count = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), count, log.read_text()


def together(commands: list[list[str]], out: Path) -> list[tuple[int, str]]:
    """Run command lines at once, a process each; return their exit codes and what they said."""
    logs = [out.with_suffix(f".{number}.log") for number in range(len(commands))]
    children = [
        _fork(arguments, out, log, log.with_suffix(".count"), 0, die)
        for arguments, log in zip(commands, logs, strict=True)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def _fork(arguments: list[str], out: Path, log: Path, counted: Path, at: int, then) -> int:
    child = os.fork()
    if not child:
        code = 70
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            from wsiad.cli import main

            watch = Watch(out, at, then)
            code = main(arguments)
            counted.write_text(str(watch.count))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder by name, without what tells time; hidden files too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name in UNLIKE:
            continue
        found[name] = timeless(path) if path.is_file() else b"folder"
    return found


def timeless(path: Path) -> bytes:
    """Content of a file without what tells time."""
    data = path.read_bytes()
    if path.name in ("run.json", "slide.json"):
        return json.dumps(_without(json.loads(data)), sort_keys=True).encode()
    if path.name == "slides.csv":
        rows = list(csv.DictReader(io.StringIO(data.decode())))
        return json.dumps(_without(rows)).encode()
    return data


def _without(value):
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in TIMES}
    return [_without(item) for item in value] if isinstance(value, list) else value


def differences(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Names that are there and should not be, that are missing, or whose bytes differ."""
    found = tree(folder)
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


def enumerate_points(
    arguments: list[str], out: Path, *, mode: str, every: int = 1, first: int = 1
) -> dict[str, Any]:
    """Cut a command short at each of its changes, and compare what the next run makes.

    ``{out}`` in the arguments stands for the folder of the output: the same for all
    runs, as its name may be part of what is written.
    """
    work = out / "work"
    command = [argument.replace("{out}", str(work)) for argument in arguments]
    shutil.rmtree(work, ignore_errors=True)
    code, points, said = forked(command, work)
    if code:
        raise RuntimeError(f"the undisturbed run failed: {said}")
    expected = tree(work)
    wrong, cut = {}, 0
    for at in range(first, points + 1, every):
        shutil.rmtree(work)
        code, _, said = forked(command, work, at=at, then=die if mode == "kill" else full)
        notes = []
        if mode == "full":
            left = [name for name in (tree(work) if work.exists() else ()) if ".partial" in name]
            notes += [f"left behind: {name}" for name in left]
            if code not in (0, 1) or "Traceback" in said:
                notes.append(f"exit code {code}: {said}")
            cut += code == 1
        else:
            cut += code == -signal.SIGKILL
        code, _, said = forked(command, work)
        if code:
            notes.append(f"the next run failed ({code}): {said}")
        notes += differences(work, expected)
        if notes:
            wrong[at] = notes
    return {"points": points, "tried": len(range(first, points + 1, every)), "cut": cut,
            "wrong": wrong}  # fmt: skip


def warm_up() -> None:
    """Import what a run needs once, not in each child; nothing of it starts a thread.

    The table is written after each slide, so that the number of changes is not the clock's.
    """
    for module in ("store.writer", "store.parts", "tiling.plan", "slides.opening", "verbs.tile"):
        importlib.import_module(f"wsiad.{module}")
    importlib.import_module("wsiad.compute.batch")._TABLE_SECONDS = 0.0


def main() -> None:
    """Cut the command short at its changes; print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("kill", "full"))
    parser.add_argument("folder", type=Path, help="for the output of all runs; made if need be")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    warm_up()
    found = enumerate_points(
        given.command, given.folder, mode=given.mode, every=given.every, first=given.first
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
