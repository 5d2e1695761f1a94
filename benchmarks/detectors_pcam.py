"""Tile-level AUROC of the detectors on PatchCamelyon tiles.

Fits a detector on healthy tiles and scores healthy and tumour tiles of other slides::

    python benchmarks/detectors_pcam.py knn --fit train_normal.tar \
        --healthy valid_normal.tar --tumour valid_tumour.tar \
        --weights squeezenet1_1.safetensors --set places=8 --set pooling=quantile

The tars hold 96 px tiles. With ``--input 64`` the central window is scored. Where
``--healthy`` is the tar of ``--fit``, its tiles that were not fitted on are scored:
options are chosen so, on the training split, and the other split is left for the figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from machine import print_machine
from pcam import PCAM_MPP, centre, read_tar, stretches
from sklearn.metrics import roc_auc_score

from wsiad.core.config import build
from wsiad.core.geometry import TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Budget, FitContext, InputSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("detector", choices=registry.names())
    parser.add_argument("--fit", type=Path, required=True)
    parser.add_argument("--healthy", type=Path, required=True)
    parser.add_argument("--tumour", type=Path, required=True)
    parser.add_argument("--weights", help="file, or 'random'; default: torchvision's")
    parser.add_argument("--input", type=int, default=64, help="input size, px")
    parser.add_argument("--fit-tiles", type=int, default=3000)
    parser.add_argument("--stop-tiles", type=int, default=500)
    parser.add_argument("--score-tiles", type=int, help="of each class; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--folder", type=Path, help="keep metrics and checkpoint here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    print_machine()

    cls = registry.load(args.detector)
    given = {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in args.set)}
    detector = cls(build(cls.Options, given), InputSpec(TilePx(args.input), PCAM_MPP))
    tiles = read_tar(args.fit, args.fit_tiles + args.stop_tiles)
    healthy = stretches(tiles, args.stop_tiles)
    with tempfile.TemporaryDirectory() as scratch:
        context = FitContext(
            seed=args.seed,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            folder=args.folder or Path(scratch),
            budget=Budget(args.max_steps, args.max_minutes),
            weights=args.weights,
        )
        context.folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        report = detector.fit(healthy, context)
        fit_seconds = time.monotonic() - start
    places, counts = [], []
    start = time.monotonic()
    for path in (args.healthy, args.tumour):
        used = len(tiles) if path == args.fit else 0
        cut = centre(read_tar(path, args.score_tiles, without=used), args.input)
        places.append(detector.score_map(cut))
        counts.append(len(cut))
    score_seconds = time.monotonic() - start
    labels = np.repeat([0, 1], counts)
    scores = np.concatenate(places).reshape(sum(counts), -1)
    result = {
        "detector": args.detector,
        "options": given,
        "input": args.input,
        "ended_by": report.ended_by,
        "steps": report.steps,
        "fit_seconds": round(fit_seconds, 1),
        "tiles_per_second": round(sum(counts) / score_seconds),
        "auroc": round(roc_auc_score(labels, detector.pool(np.concatenate(places))), 4),
        # What every pooling of the places would have given: shown, never chosen by.
        "auroc_by_pooling": {
            name: round(roc_auc_score(labels, pooled), 4)
            for name, pooled in {
                "mean": scores.mean(axis=1),
                "max": scores.max(axis=1),
                **{
                    f"q{int(q * 100):02d}": np.quantile(scores, q, axis=1)
                    for q in (0.05, 0.25, 0.5, 0.95)
                },
            }.items()
        },
        "notes": report.notes,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
