"""How long the files for QuPath take for many tiles, and how much memory.

    python benchmarks/export.py [--tiles 100000 500000]

The peer builds the same objects as dictionaries and writes them by ``json.dumps`` and
gzip. Each runs in a process of its own, one thread. Memory is the
peak of the process beyond what it had before; times are the processor's, the least of
two: take the ratio, not the seconds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import resource
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import print_machine

from wsiad.core.geometry import Box
from wsiad.exports.qupath import write_tiles
from wsiad.heatmaps.score_map import WindowScores

EDGE, COLUMNS = 64.0, 1000
REPEATS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, nargs="+", default=[100_000, 500_000])
    print_machine()
    for count in parser.parse_args().tiles:
        seconds, megabytes, size = apart(written, count)
        peer_seconds, peer_megabytes, _ = apart(dumped, count)
        print(
            f"{count} tiles, {size / 1e6:.1f} MB: {seconds:.1f} s; "
            f"peak {megabytes:.0f} MB\n"
            f"  json.dumps: {peer_seconds:.1f} s; peak {peer_megabytes:.0f} MB\n"
            f"  ratio: time {seconds / peer_seconds:.2f}, memory {megabytes / peer_megabytes:.3f}"
        )


def apart(what: Callable[[int, Path], float], count: int) -> tuple[float, float, int]:
    """Least time, s, peak memory, MB, and size of the file, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measured, (what, count))


def measured(what: Callable[[int, Path], float], count: int) -> tuple[float, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiles.geojson.gz")
        write_tiles(windows(10), path, slide="s", bounds=bounds(10))  # all is loaded
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = min(what(count, path) for _ in range(REPEATS))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return seconds, (after - before) / 1024, path.stat().st_size


def written(count: int, path: Path) -> float:
    given = windows(count)
    start = time.process_time()
    write_tiles(given, path, slide="s", bounds=bounds(count))
    return time.process_time() - start


def dumped(count: int, path: Path) -> float:
    given = windows(count)
    start = time.process_time()
    rows = zip(given.boxes.tolist(), given.scores.tolist(), given.percentiles.tolist(), strict=True)
    features = [feature(*row) for row in rows]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    path.write_bytes(gzip.compress(text.encode(), 6))
    return time.process_time() - start


def feature(box: list[float], score: float, percentile: float) -> dict[str, object]:
    x, y, w, h = box
    corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"s/{box}")),
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "properties": {
            "objectType": "tile",
            "measurements": {"wsiad: score": score, "wsiad: percentile": percentile},
        },
    }


def windows(count: int) -> WindowScores:
    index = np.arange(count)
    boxes = np.full((count, 4), EDGE)
    boxes[:, 0], boxes[:, 1] = index % COLUMNS * EDGE, index // COLUMNS * EDGE
    rng = np.random.default_rng(0)
    scores = rng.gamma(3, size=count).astype(np.float32)
    return WindowScores(boxes, scores, (100 * rng.random(count)).astype(np.float32))


def bounds(count: int) -> Box:
    return Box(0, 0, COLUMNS * EDGE, (count // COLUMNS + 1) * EDGE)


if __name__ == "__main__":
    main()
