"""Damaged inputs of every kind, by the thousand: each is to be read, or refused in one line.

    python benchmarks/fuzz.py [--inputs 5000] [--seed 1] [--only KIND ...] [--keep FOLDER]

A small pipeline is run on drawn slides, and then one of its files is damaged for each input:
bytes of any file, and the structure of those that have one (`fuzz_mutations.py`). The input
and its damage follow from seed, kind and number alone. Processes of their own work on them,
with bounds on time and memory, so that a crash or a hang is the verdict of one input.

========= ==============================================================================
read       it was taken: the damage did not matter, or cannot be told from a true value
refused    an error of at most a few lines, which names what is wrong
traceback  anything else that was raised or printed
silent     an exit code other than 0, and not a word
hang       no end within the limit of time
crash      the process was ended
batch      a good slide beside a damaged one was lost or changed
invented   pixels that OpenSlide refuses, or other pixels than OpenSlide's
========= ==============================================================================

The exit code is 1 if any of the last six occurred.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_mutations import mutated

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

VERDICTS = (
    "read", "refused", "traceback", "silent", "hang", "crash", "batch", "invented",
)  # fmt: skip
GOOD = VERDICTS[:2]
LIMIT_SECONDS = 60.0
MEMORY_BYTES = 6 * 2**30
MOST_LINES = 12
_UNFORESEEN = re.compile(r"unexpected (error \(|[A-Z]\w*: )")
"""What the program says of a fault of its own; YAML and CSV have an "unexpected end" too."""
SCALE = ["--mpp", "0.5", "--tile", "32", "--stain-method", "none", "--tissue-min-area-um2", "0"]


@dataclass(frozen=True)
class Kind:
    """What is damaged, and what then reads it.

    Parameters
    ----------
    tree : str
        Folder of the base that an input is a copy of.
    files : tuple of str
        Patterns of the files of it that are damaged.
    trial : callable
        Gets the folder of the input, a folder for what is made, and the damaged file;
        returns the exit code, or raises.
    share : int
        How many inputs of this kind there are, relative to others.
    """

    tree: str
    files: tuple[str, ...]
    trial: Callable[[Path, Path, Path], int]
    share: int = 1


class Broken(Exception):  # noqa: N818
    """A verdict that a trial reaches itself."""


def wsiad(*arguments: object) -> int:
    """Run the command line in this process."""
    from wsiad.cli import main

    try:
        return main([*map(str, arguments), "--debug"])
    except SystemExit as end:
        return int(end.code or 0)


def slides(tree: Path, out: Path, damaged: Path) -> int:
    """Tile the damaged slide among good ones, and compare what is read of it."""
    code = wsiad("tile", tree, "--out", out / "store", *SCALE, "--quiet")
    for good in (path for path in tree.iterdir() if path != damaged):
        for made in (tree.parent / "expected" / good.stem).rglob("*"):
            own = out / "store" / "slides.zarr" / made.relative_to(tree.parent / "expected")
            if made.is_file() and not _same(made, own):
                raise Broken("batch", f"{good.name}: {own.name}")
    logging.disable()  # what is read here has been told of
    try:
        _same_pixels(damaged)
    finally:
        logging.disable(logging.NOTSET)
    return code


def _same(made: Path, own: Path) -> bool:
    if not own.is_file():
        return False
    if made.name != "zarr.json":
        return made.read_bytes() == own.read_bytes()
    texts = [json.loads(path.read_bytes()) for path in (made, own)]
    for text in texts:  # another folder, another time
        for key in ("file", "fingerprint", "made", "written", "versions"):
            text.get("attributes", {}).get("wsiad", {}).pop(key, None)
    return texts[0] == texts[1]


def _same_pixels(path: Path) -> None:
    from wsiad.core.errors import WsiadError
    from wsiad.core.geometry import Size
    from wsiad.slides.opening import open_slide

    with contextlib.suppress(WsiadError), open_slide(path, fallback_mpp=0.5) as own:
        if own.backend == "openslide":
            return
        with open_slide(path, fallback_mpp=0.5, backend="openslide") as seen:
            for at in range(0, min(own.size.width, 2048), 64):
                for down in range(0, min(own.size.height, 2048), 64):
                    read = []
                    for slide in (own, seen):
                        try:
                            read.append(slide.read_level(0, at, down, Size(64, 64)).rgb)
                        except WsiadError:
                            read.append(None)
                    if read[0] is None:
                        continue
                    if read[1] is None or not np.array_equal(*read):
                        raise Broken("invented", f"({at}, {down})")


def annotations(tree: Path, out: Path, damaged: Path) -> int:
    """Read outlines, and the area that they enclose."""
    from wsiad.annotations import read_annotations

    del tree, out
    read_annotations(damaged, bounds=(0.0, 0.0)).tumour()
    return 0


def config(tree: Path, out: Path, damaged: Path) -> int:
    """Tile by a configuration."""
    return wsiad("tile", tree / "slides", "--config", damaged, "--out", out / "store", "--quiet")


def tables(tree: Path, out: Path, damaged: Path) -> int:
    """Read a table as what it is."""
    from wsiad.evaluation.submission import read_submission
    from wsiad.evaluation.truth import read_groups, read_reference
    from wsiad.learning.metrics import read_metrics
    from wsiad.slides.inputs import find_slides

    del out
    if damaged.parent.name == "detections":
        read_submission(damaged.parent)
    elif damaged.name == "metrics.csv":
        read_metrics(damaged)
    elif damaged.name == "manifest.csv":
        find_slides([damaged])
    else:
        read_reference(damaged) if damaged.name == "reference.csv" else read_groups(
            damaged, "centre"
        )
    return 0


def hdf5(tree: Path, out: Path, damaged: Path) -> int:
    """Import tiles, or tile where coordinates say."""
    if damaged.name == "tiles.h5":
        return wsiad("import-tiles", damaged, "--out", out / "store", "--mpp", "0.5", "--quiet")
    coords = ["--coords", damaged.parent]
    return wsiad("tile", tree / "slides", "--out", out / "store", *SCALE, *coords, "--quiet")


def scored(tree: Path, out: Path, damaged: Path) -> int:
    """Score the tiles of a store by a run, one of which is damaged."""
    del damaged
    return wsiad(
        "score-tiles", tree / "run", tree / "store", "--out", out / "scores", "--quiet",
        "--device", "cpu",
    )  # fmt: skip


def results(tree: Path, out: Path, damaged: Path) -> int:
    """Answer every request for results, then evaluate them."""
    from wsiad.core.errors import WsiadError
    from wsiad.verbs.view import ViewConfig, open_server

    with contextlib.suppress(WsiadError):
        server = open_server(ViewConfig(results=tree / "results"))
        server.server_close()
        count = json.loads(server.pages.answer("slides.json").body)["slides"]
        for number in range(1, len(count) + 1):
            for what in ("info", "scores", "heatmap", "picture", "thumbnail", "tile/8/0/0"):
                with contextlib.suppress(WsiadError, OSError):
                    server.pages.answer(f"slide/{number}/{what}")
    del damaged
    where = ["--reference", tree / "reference.csv", "--annotations", tree / "xml"]
    return wsiad(
        "evaluate", tree / "results", *where, "--out", out / "eval", "--bootstrap", 1, "--quiet"
    )


def report(tree: Path, out: Path, damaged: Path) -> int:
    """Write the report of results that were evaluated and compared with healthy slides."""
    from wsiad.report.report import write_results_report

    del damaged
    write_results_report(tree / "results", to=out / "report.html", evaluation=tree / "results")
    return 0


KINDS = {
    "slides": Kind("slides", ("a.tif", "b.svs", "c.tif"), slides, 3),
    "xml": Kind("outlines", ("*.xml",), annotations, 3),
    "geojson": Kind("outlines", ("*.geojson",), annotations, 3),
    "yaml": Kind("yaml", ("*.yaml",), config, 3),
    "csv": Kind("tables", ("*.csv", "detections/*.csv"), tables, 3),
    "hdf5": Kind("hdf5", ("tiles.h5", "coords/*.h5"), hdf5, 2),
    "store": Kind("scored", ("store/**/*",), scored, 2),
    "run": Kind("scored", ("run/**/*",), scored, 2),
    "results": Kind("results", ("results/**/*.json", "results/*.csv", "results/**/*.npy",
                                "results/**/*.csv", "results/**/heatmap*"), results, 2),
    "report": Kind("results", ("results/*.json", "results/*.csv", "results/*/slide.json"), report),
}  # fmt: skip


def prepare(base: Path) -> None:
    """Make what is damaged, by the program itself."""
    import h5py

    from support.tiff_slides import smooth, write_jpeg

    (base / "slides").mkdir(parents=True)
    write_jpeg(base / "slides" / "a.tif", smooth(192, 256, seed=1), levels=2)
    write_jpeg(
        base / "slides" / "b.svs", smooth(192, 256, seed=2), space="RGB", aperio=True, levels=1,
        shared=True,
    )  # fmt: skip
    write_jpeg(base / "slides" / "c.tif", smooth(192, 256, seed=3), levels=1, subsampling="420")
    made = base / "made"
    run, store = made / "run", made / "store"
    where = ["--weights", "wsiad", "--detector", "gaussian", "--quiet", "--device", "cpu"]
    for arguments in (
        ["tile", base / "slides", "--out", store, *SCALE],
        ["train", store, "--out", run, *where],
        ["heatmap", run, base / "slides", "--out", made / "results", "--device", "cpu"],
    ):
        _command(*arguments)
    shutil.copytree(store / "slides.zarr", base / "expected")
    for name in ("store", "run"):
        shutil.copytree(made / name, base / "scored" / name)
    corners = [(20, 20), (120, 20), (120, 90), (20, 90)]
    ring = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners))
    xml = (
        '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="A" Type="Polygon" '
        f'PartOfGroup="m" Color="#F4FA58"><Coordinates>{ring}</Coordinates></Annotation>'
        '</Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/>'
        '<Group Name="m" PartOfGroup="Tumor"/></AnnotationGroups></ASAP_Annotations>'
    )
    shape = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    properties = {"objectType": "annotation", "classification": {"names": ["Tumor"], "color": [1]}}
    feature = {"type": "Feature", "id": "a", "geometry": shape, "properties": properties}
    child = {**feature, "properties": {**properties, "childObjects": [feature]}}
    document = {"type": "FeatureCollection", "features": [feature, child]}
    _write(base / "outlines" / "a.xml", xml)
    _write(base / "outlines" / "a.geojson", json.dumps(document))
    _write(base / "results" / "xml" / "b.xml", xml)
    reference = "image,type,centre\na,normal,1\nb,tumor,2\nc,normal,1\n"
    _write(base / "results" / "reference.csv", reference)
    found, labels = made / "results", ["--reference", base / "results" / "reference.csv"]
    _command("evaluate", found, *labels, "--annotations", base / "results" / "xml", "--quiet")
    for number in (4, 5):
        write_jpeg(_folder(made / "held") / f"h{number}.tif", smooth(192, 256, seed=number))
    healthy = ["--healthy", made / "healthy"]
    _command("heatmap", run, made / "held", "--out", healthy[1], "--device", "cpu", "--quiet")
    _command("significance", found, *healthy, "--quiet")
    shutil.copytree(found, base / "results" / "results")
    _write(base / "tables" / "reference.csv", reference)
    _write(base / "tables" / "groups.csv", reference)
    _write(base / "tables" / "manifest.csv", "slide,mpp,label,split\na.tif,0.5,normal,train\n")
    _write(base / "tables" / "a.tif", "II")
    rows = "".join(f"{step},{step / 4},0.001,{9 / step},\n" for step in range(1, 9))
    _write(
        base / "tables" / "metrics.csv", f"step,seconds,learning_rate,train_loss,stop_loss\n{rows}"
    )
    _write(base / "tables" / "detections" / "a.csv", "p,x,y\n0.5,10,20\n0.25,30,40\n")
    shutil.copy(store / "config.yaml", _folder(base / "yaml") / "tile.yaml")
    shutil.copy(base / "slides" / "a.tif", _folder(base / "yaml" / "slides"))
    shutil.copytree(base / "slides", base / "hdf5" / "slides")
    rng = np.random.default_rng(0)
    with h5py.File(base / "hdf5" / "tiles.h5", "w") as file:
        tiles = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        file.create_dataset("x", data=tiles, chunks=(2, 32, 32, 3), compression="gzip")
    for name in "abc":
        with h5py.File(_folder(base / "hdf5" / "coords") / f"{name}.h5", "w") as file:
            coords = file.create_dataset("coords", data=np.array([[0, 0], [32, 64], [96, 32]]))
            coords.attrs.update(patch_size=32, patch_level=0)


def _command(*arguments: object) -> None:
    command = [sys.executable, "-m", "wsiad.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the undamaged run failed: {done.stdout}{done.stderr}")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, text: str) -> None:
    (_folder(path.parent) / path.name).write_text(text)


def one(kind: Kind, tree: Path, out: Path, said: Path, rng: random.Random) -> tuple[str, str, Path]:
    """Damage a file, have it read, judge, and mend it; return verdict, what was said, file."""
    file = rng.choice(_files(kind, tree))
    before, start = file.read_bytes(), said.stat().st_size
    file.write_bytes(mutated(before, file.name, rng))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    verdict, code = "", 1
    from wsiad.core.errors import WsiadError

    try:
        code = kind.trial(tree, out, file)
    except Broken as error:
        verdict, text = error.args
        print(text)
    except WsiadError as error:
        print(error)
    except BaseException:
        verdict = "traceback"
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        damaged = file.read_bytes()
        file.write_bytes(before)
    text = said.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip() and line[:8] != "WARNING "]
    if not verdict:
        if "Traceback" in text or _UNFORESEEN.search(text):
            verdict = "traceback"
        elif code == 0:
            verdict = "read"
        else:
            verdict = "refused" if 0 < len(lines) <= MOST_LINES else "silent"
    if verdict not in GOOD:
        (out.parent / "damaged").write_bytes(damaged)
    return verdict, text[-3000:], file.relative_to(tree)


def _files(kind: Kind, tree: Path) -> list[Path]:
    return sorted({f for pattern in kind.files for f in tree.glob(pattern) if f.is_file()})


def work(
    kind: Kind, base: Path, folder: Path, told: int, numbers: Sequence[tuple[int, str]]
) -> None:
    """Work on inputs in this process, and tell of each before and after."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.RLIM_INFINITY))
    tree = folder / kind.tree
    shutil.copytree(base / kind.tree, tree)
    if (base / "expected").exists():
        shutil.copytree(base / "expected", folder / "expected")
    said = folder / "said"
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for file in _files(kind, tree):
        if kind.trial(tree, _folder(folder / "out"), file):
            raise ValueError(f"{file} is refused as it is")
        shutil.rmtree(folder / "out")
        if kind.tree in ("scored", "results"):
            break  # whichever it is, all are read
    for number, seed in numbers:
        os.write(told, f"{json.dumps([number])}\n".encode())
        verdict, text, file = one(kind, tree, folder / "out", said, random.Random(seed))
        os.write(told, f"{json.dumps([number, verdict, text, str(file)])}\n".encode())


def verdicts(
    kind: Kind, base: Path, folder: Path, numbers: list[tuple[int, str]]
) -> Iterator[tuple[int, str, str, str]]:
    """Yield number, verdict, what was said and the file of each input."""
    attempt = 0
    while numbers:
        attempt += 1
        place = _folder(folder / str(attempt))
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.setsid()
                os.close(ours)
                work(kind, base, place, theirs, numbers)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(theirs)
        begun, rest, ended = None, b"", ""
        until = time.monotonic() + 2 * LIMIT_SECONDS
        while True:
            ready, _, _ = select.select([ours], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                ended = "hang"
                os.killpg(pid, 9)
                break
            if not (read := os.read(ours, 1 << 16)):
                ended = "crash"
                break
            *whole, rest = (rest + read).split(b"\n")
            for line in map(json.loads, whole):
                begun, until = line[0], time.monotonic() + LIMIT_SECONDS
                if len(line) > 1:
                    yield tuple(line)
                    numbers, begun = numbers[1:], None
        os.close(ours)
        os.waitpid(pid, 0)
        if numbers:
            if begun is None:
                raise SystemExit(f"a process ended before its first input: {_tail(place)}")
            yield numbers[0][0], ended, _tail(place), ""
            numbers = numbers[1:]
        shutil.rmtree(place, ignore_errors=True)


def _tail(place: Path) -> str:
    said = place / "said"
    return said.read_text(errors="replace")[-3000:] if said.exists() else ""


def main() -> int:
    """Damage, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="folder for what was said of faults")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    logging.captureWarnings(True)
    total: Counter[str] = Counter()
    shares = sum(KINDS[name].share for name in options.only)
    print(f"{'kind':9s}" + "".join(f"{word:>10s}" for word in ("inputs", *VERDICTS)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        prepare(base)
        for name in options.only:
            kind = KINDS[name]
            count = max(1, round(options.inputs * kind.share / shares))
            numbers = [(n, f"{options.seed} {name} {n}") for n in range(count)]
            found: Counter[str] = Counter()
            for number, verdict, text, file in verdicts(kind, base, Path(folder) / name, numbers):
                found[verdict] += 1
                if verdict not in GOOD and options.keep:
                    _write(options.keep / f"{name}_{number}_{verdict}.txt", f"{file}\n{text}\n")
            counts = "".join(f"{found[word]:10d}" for word in VERDICTS)
            print(f"{name:9s}{count:10d}{counts}", flush=True)
            total += found
    print(f"{'all':9s}{sum(total.values()):10d}" + "".join(f"{total[w]:10d}" for w in VERDICTS))
    return int(any(total[word] for word in VERDICTS if word not in GOOD))


if __name__ == "__main__":
    sys.exit(main())
