"""Kill runs at random times, run the same command again, and compare every byte.

    python benchmarks/faults.py [--kills 60] [--seed 0] [--verbs tile heatmap]

Slides are drawn: multi-level JPEG TIFFs, and one that only OpenSlide reads. For each verb
an undisturbed run makes what is expected. Each round then starts the command in an empty
folder, sends SIGKILL at a time that is uniform over the undisturbed run's, and runs the
command again to its end. Rounds take turns in what is killed:

    run         the whole process group
    run twice   and once more in the run after it
    main        the main process only; its workers are orphans
    worker      one of its workers only; the run itself has to end well

Compared is everything below the folder, hidden files too, so that a leftover is a
difference. Left out is what tells time: ``seconds`` and ``tiles_per_second`` in run.json,
slide.json and slides.csv; timings.json; report.html, which shows them.

``benchmarks/write_points.py`` kills at each change of the disk instead of at a time.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from write_points import differences, tree

WAYS = (("run", 1), ("run", 2), ("run twice", 1), ("worker", 2), ("run twice", 2), ("main", 2))
"""What is killed, and how many workers there are."""

_MPP = 0.5
_TILE = ("--mpp", str(_MPP), "--tile", "64", "--stain-sample-px", "200000")
_LIMIT_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Round:
    """What became of one round."""

    verb: str
    way: str
    workers: int
    seconds: float
    phase: str
    wrong: tuple[str, ...]


def draw_slide(path: Path, *, seed: int, edge: int, compression: str) -> None:
    """Write a three-level pyramid of smooth, stained structure in a frame of glass."""
    rng = np.random.default_rng(seed)
    amounts = np.zeros((edge, edge, 2), np.float32)
    for size in (4, 32, 256):
        part = rng.gamma(1.5, 0.3, (edge // size, edge // size, 2)).astype(np.float32)
        amounts += cv2.resize(part, (edge, edge), interpolation=cv2.INTER_CUBIC)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
    image = np.full((edge, edge, 3), 243, np.uint8)
    rim = edge // 16
    inner = (slice(rim, -rim),) * 2
    image[inner] = np.rint(255 * np.exp(-amounts.clip(0) @ stains)).astype(np.uint8)[inner]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(3):
            tiff.write(
                image,
                tile=(256, 256),
                photometric="rgb",
                compression=compression,
                compressionargs={"level": 90} if compression == "jpeg" else {},
                subfiletype=int(level > 0),
                resolution=(1e4 / _MPP / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def command(verb: str, folder: Path, workers: int) -> list[str]:
    """Return the command line of a verb."""
    given = {
        "tile": ["tile", f"{folder}/slides", *_TILE],
        "heatmap": ["heatmap", f"{folder}/run", f"{folder}/slides", "--stride", "32"],
    }[verb]
    out = ["--out", f"{folder}/out", "--workers", str(workers), "--quiet"]
    return [sys.executable, "-P", "-m", "wsiad.cli", *given, *out]


def start(line: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command as a process group of its own."""
    return subprocess.Popen(
        line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def children(process: int) -> list[int]:
    """Process numbers of the workers among a process' children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            line = (stat.parent / "cmdline").read_bytes()
            if parent == process and b"local_worker" in line:
                found.append(int(stat.parent.name))
    return found


def kill(running: subprocess.Popen[bytes], way: str, rng: random.Random) -> bool:
    """Send SIGKILL as the way says; whether there was something to kill."""
    if running.poll() is not None:
        return False
    if way == "main":
        running.kill()
        return True
    if way != "worker":
        os.killpg(running.pid, signal.SIGKILL)
        return True
    workers = children(running.pid)
    with contextlib.suppress(ProcessLookupError):
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
    return bool(workers)


def phase(out: Path, slides: int) -> str:
    """Say how far a run had come by what lies in its folder."""
    if not out.exists():
        return "starting"
    groups = out / "slides.zarr" if (out / "slides.zarr").exists() else out
    whole = [p for p in groups.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if any(p.name.endswith(".partial") for p in groups.iterdir()):
        return "writing a slide"
    if any(".partial." in p.name for p in out.iterdir()):
        return "writing a file"
    if len(whole) < slides:
        return f"reading, {'some' if whole else 'none'} whole"
    return "ending" if not (out / "run.json").exists() or groups == out else "ended"


def finish(line: Sequence[str]) -> tuple[int, str]:
    """Run a command to its end; its exit code and what it said."""
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return 124, f"not done after {_LIMIT_SECONDS} s"
    return done.returncode, done.stderr[-500:]


def strike(
    line: Sequence[str], out: Path, way: str, *, slides: int, seconds: float, rng: random.Random
) -> tuple[float, str, str]:
    """Start a run in an empty folder and kill it; again if it was over before.

    Returns
    -------
    at : float
        When it was killed, seconds after its start.
    phase : str
    problem : str
        Of a run that lost a worker, if it did not end well.
    """
    while True:
        shutil.rmtree(out, ignore_errors=True)
        at, begin = rng.uniform(0, seconds), time.monotonic()
        running = start(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(at)
        before = phase(out, slides)
        hit = kill(running, way, rng)
        _, said = running.communicate()
        if not hit:
            # The machine is less busy than it was; or it is too early or late for a worker.
            seconds = min(seconds, max(at, time.monotonic() - begin))
            continue
        if way != "worker":
            return at, phase(out, slides), ""
        lost = running.returncode
        return at, before, f"code {lost}: {said[-300:].decode()}" if lost else ""


def play(
    verb: str, folder: Path, way: str, workers: int, *, seconds: float, expected: dict[str, bytes],
    slides: int, rng: random.Random,
) -> Round:  # fmt: skip
    """Kill a run, let the next one end, compare."""
    out, line = folder / "out", command(verb, folder, workers)
    at, state, problem = strike(line, out, way, slides=slides, seconds=seconds, rng=rng)
    wrong = [problem] if problem else []
    if way == "run twice":
        again = start(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            again.wait(rng.uniform(0, seconds))
        kill(again, way, rng)
        again.communicate()
    code, said = finish(line)
    if code:
        wrong.append(f"the next run failed ({code}): {said}")
    wrong += differences(out, expected)
    return Round(verb, way, workers, at, state, tuple(wrong))


def train(folder: Path) -> None:
    """Make a small run on the slides' own store."""
    code, said = finish(command("tile", folder, 1))
    line = [sys.executable, "-P", "-m", "wsiad.cli", "train", f"{folder}/out", "--quiet"]
    options = ["--detector", "gaussian", "--weights", "random", "--out", f"{folder}/run"]
    if not code:
        code, said = finish([*line, *options])
    if code:
        raise RuntimeError(said)


def undisturbed(verb: str, folder: Path, workers: int) -> tuple[float, dict[str, bytes]]:
    """Run a verb in peace; its seconds, and what it made."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    begin = time.monotonic()
    code, said = finish(command(verb, folder, workers))
    if code:
        raise RuntimeError(said)
    return time.monotonic() - begin, tree(folder / "out")


def main() -> int:
    """Play the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--edge", type=int, default=1536)
    parser.add_argument("--verbs", nargs="*", choices=("tile", "heatmap"), default=["tile"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "slides").mkdir()
        for number in range(given.slides):
            only = number == given.slides - 1
            draw_slide(
                folder / "slides" / f"slide_{number}.tif",
                seed=number,
                edge=given.edge,
                compression="deflate" if only else "jpeg",
            )
        for verb in given.verbs:
            if verb == "heatmap":
                train(folder)
            peace = {n: undisturbed(verb, folder, n) for n in {n for _, n in WAYS}}
            for number in range(given.kills):
                way, workers = WAYS[number % len(WAYS)]
                seconds, expected = peace[workers]
                rounds.append(
                    play(verb, folder, way, workers, seconds=seconds, expected=expected,
                         slides=given.slides, rng=rng)
                )  # fmt: skip
                done = rounds[-1]
                print(
                    f"{verb} {number + 1}/{given.kills} {way} ({workers}) at {done.seconds:.2f} s: "
                    f"{done.phase}; {len(done.wrong)} differences {done.wrong[:3] or ''}",
                    flush=True,
                )
    report(rounds)
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(done) for done in rounds], indent=1))
    return int(any(done.wrong for done in rounds))


def report(rounds: Sequence[Round]) -> None:
    """Print kill points by phase, and how many left a difference."""
    counts = collections.Counter((r.verb, r.way, r.workers, r.phase) for r in rounds)
    bad = collections.Counter((r.verb, r.way, r.workers, r.phase) for r in rounds if r.wrong)
    print("\n| verb | killed | workers | phase | kills | with differences |")
    print("|---|---|---|---|---|---|")
    for key, count in sorted(counts.items()):
        print(f"| {' | '.join(map(str, key))} | {count} | {bad[key]} |")
    print(f"\n{len(rounds)} kills, {sum(bad.values())} with differences")


if __name__ == "__main__":
    sys.exit(main())
