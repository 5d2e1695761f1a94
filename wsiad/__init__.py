"""wsiad: whole-slide pathology anomaly detection.

Each verb of the command line is a function here, with the same typed config::

    import wsiad
    wsiad.tile(slides=["slides/"], out="store/", mpp=0.972, tile=96)
    wsiad.train(store="store/", out="runs/knn", detector="knn")
    wsiad.heatmap(run="runs/knn", slides=["test_slides/"], out="results/")
    wsiad.evaluate(results="results/", reference="reference.csv", annotations="xml/")

Classes read what the verbs have written::

    results = wsiad.Results("results/")
    results.slides  # a row per slide; .to_frame() with pandas
    results.slide("test_001").heatmap().scores  # float32 (H, W), NaN where none was scored
    wsiad.RunFolder("runs/knn").record()

A data set yields the tiles of a store in shuffled batches, for a training of your own::

    dataset = wsiad.TileDataset("store/", batch=256)
    for tiles in dataset.loader():  # uint8 (256, S, S, 3)
        ...

Names are imported on first use, so that ``import wsiad`` and ``wsiad --help`` stay fast.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from wsiad._version import __version__

# The matrix products of MKL, which torch uses, are otherwise not the same to the bit from call to
# call on AMD processors. MKL reads it at its first call.
os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from wsiad.learning.detector import Detector
    from wsiad.results.folder import Results
    from wsiad.runs.run import RunFolder
    from wsiad.store.tile_store import TileStore
    from wsiad.store.torch_dataset import TileBatch, TileDataset
    from wsiad.verbs.compare import compare
    from wsiad.verbs.demo import demo
    from wsiad.verbs.doctor import doctor
    from wsiad.verbs.embed import embed
    from wsiad.verbs.evaluate import evaluate
    from wsiad.verbs.export import export
    from wsiad.verbs.export_tiles import export_tiles
    from wsiad.verbs.extend import extend
    from wsiad.verbs.heatmap import heatmap
    from wsiad.verbs.import_features import import_features
    from wsiad.verbs.import_tiles import import_tiles
    from wsiad.verbs.pretrain import pretrain
    from wsiad.verbs.refine import refine
    from wsiad.verbs.score_tiles import score_tiles
    from wsiad.verbs.significance import significance
    from wsiad.verbs.suggest import suggest
    from wsiad.verbs.tile import tile
    from wsiad.verbs.train import train
    from wsiad.verbs.tune import tune
    from wsiad.verbs.view import view

__all__ = [
    "Detector",
    "Results",
    "RunFolder",
    "TileBatch",
    "TileDataset",
    "TileStore",
    "__version__",
    "compare",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "export_tiles",
    "extend",
    "heatmap",
    "import_features",
    "import_tiles",
    "pretrain",
    "refine",
    "score_tiles",
    "significance",
    "suggest",
    "tile",
    "train",
    "tune",
    "view",
]

_CLASSES = {
    "Detector": "wsiad.learning.detector",
    "Results": "wsiad.results.folder",
    "RunFolder": "wsiad.runs.run",
    "TileBatch": "wsiad.store.torch_dataset",
    "TileDataset": "wsiad.store.torch_dataset",
    "TileStore": "wsiad.store.tile_store",
}
_VERBS = frozenset(__all__) - {"__version__"} - _CLASSES.keys()


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return importlib.import_module("wsiad.verbs").function_of(name)
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
