"""wsiad: whole-slide pathology anomaly detection.

Each verb of the command line is one function here, with the same typed config::

    import wsiad
    wsiad.tile(slides=["slides/"], out="store/", mpp=0.972, tile=96)
    wsiad.train(store="store/", out="runs/dpa", detector="dpa")
    wsiad.heatmap(run="runs/dpa", slides=["test_slides/"], out="results/")
    wsiad.evaluate(results="results/", reference="reference.csv", annotations="xml/")

Names are imported on first use, so that ``import wsiad`` and ``wsiad --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wsiad._version import __version__

if TYPE_CHECKING:
    from wsiad.stages.demo import demo
    from wsiad.stages.doctor import doctor
    from wsiad.stages.evaluate import evaluate
    from wsiad.stages.export_tiles import export_tiles
    from wsiad.stages.heatmap import heatmap
    from wsiad.stages.import_tiles import import_tiles
    from wsiad.stages.score_tiles import score_tiles
    from wsiad.stages.tile import tile
    from wsiad.stages.train import train

__all__ = [
    "__version__",
    "demo",
    "doctor",
    "evaluate",
    "export_tiles",
    "heatmap",
    "import_tiles",
    "score_tiles",
    "tile",
    "train",
]

_VERBS = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module(f"wsiad.stages.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | _VERBS)
