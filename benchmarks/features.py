"""Seconds of a training by the network and from stored features, and the difference of its scores.

    python benchmarks/features.py --normal normal.tar --tumour tumour.tar --weights squeezenet.pth
        [--dtype float16] [--folder FOLDER]

The tars hold tiles, such as PatchCamelyon's. Each is imported into a store. Every method is trained
twice, first by the network and then from the features that `wsiad embed` has kept, and scores the
tumour tiles both ways. All of it runs in one process; compare the ratios.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import print_machine

import wsiad
from wsiad.results.file_names import EVALUATION
from wsiad.store.stored_features import FEATURES

METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("knn", {"backbone": "squeezenet1_1"}),
    ("gaussian", {"backbone": "squeezenet1_1"}),
    ("linear-probe", {"backbone": "squeezenet1_1"}),
)


def timed(function: Any, **values: Any) -> float:
    start = time.perf_counter()
    function(quiet=True, **values)
    return time.perf_counter() - start


def scores(folder: Path) -> np.ndarray:
    assert (folder / EVALUATION).exists()
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--normal", type=Path, required=True)
    parser.add_argument("--tumour", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    print(f"{processor()}, one thread, wsiad {wsiad.__version__}, {asked.dtype}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        base = Path(folder)
        stores = [base / "healthy", base / "tumour"]
        for source, store, label in zip(
            (asked.normal, asked.tumour), stores, ("normal", "tumor"), strict=True
        ):
            wsiad.import_tiles(sources=[source], out=store, mpp=0.972, label=label, quiet=True)
        for name, options in METHODS:
            measure(base, stores, name=name, options=options, asked=asked)


def measure(
    base: Path, stores: list[Path], *, name: str, options: dict[str, Any], asked: argparse.Namespace
) -> None:
    """Print the seconds of a method by the network and from features, and how its scores differ."""
    method = {"detector": name, "options": options, "weights": asked.weights}
    tumour = {"anomalies": stores[1], "anomaly_tiles": 100} if name == "linear-probe" else {}
    for store in stores:
        shutil.rmtree(store / FEATURES, ignore_errors=True)
    seconds = {}
    for kind in ("network", "features"):
        run, out = base / f"{name}-{kind}", base / f"scores-{name}-{kind}"
        if kind == "features":
            ways = 8 if tumour else 1
            seconds["embed"] = timed(
                wsiad.embed, store=stores[0], dtype=asked.dtype, **method
            ) + timed(wsiad.embed, store=stores[1], dtype=asked.dtype, orientations=ways, **method)
        seconds[f"train, {kind}"] = timed(wsiad.train, store=stores[0], out=run, **method, **tumour)
        seconds[f"score, {kind}"] = timed(wsiad.score_tiles, run=run, store=stores[1], out=out)
    size = sum(f.stat().st_size for s in stores for f in (s / FEATURES).rglob("*") if f.is_file())
    one, other = (scores(base / f"scores-{name}-{kind}") for kind in ("network", "features"))
    print(
        f"{name}: "
        + ", ".join(f"{what} {spent:.1f} s" for what, spent in seconds.items())
        + f"; train {seconds['train, network'] / seconds['train, features']:.1f} times, "
        f"score {seconds['score, network'] / seconds['score, features']:.1f} times as fast; "
        f"features {size / 2**20:.1f} MiB; largest difference of a score "
        f"{np.abs(one - other).max() / np.abs(one).max():.1e} of the largest"
    )


if __name__ == "__main__":
    main()
