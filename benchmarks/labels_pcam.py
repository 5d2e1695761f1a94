"""Tile-level AUROC on PatchCamelyon of detectors that learn from a few labelled tiles.

Fits on healthy tiles and some tumour tiles of the training split, and scores the tiles of
the validation split, which come from other slides::

    python benchmarks/labels_pcam.py linear-probe --healthy train_normal.tar \
        --anomalies train_tumour.tar --score valid_normal.tar valid_tumour.tar \
        --weights squeezenet1_1.safetensors --counts 20 100 --seeds 0 1 2

A seed draws the tumour tiles. With ``--choose`` the tiles that are scored are those of the
training split that were not fitted on: options are chosen so, never on the other split.
The central window is scored where ``--input`` is smaller than the tiles.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from pcam import PCAM_MPP, as_anomalies, centre, drawn_anomalies, read_tar, stretches
from sklearn.metrics import roc_auc_score

from wsiad.core.config import build
from wsiad.core.geometry import TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import FitContext, InputSpec


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ", ".join(registry.names_using_anomalies())
    parser.add_argument("detectors", nargs="+", help=f"{names}; or devnet:loss=bce,hidden=32")
    parser.add_argument("--healthy", type=Path, required=True)
    parser.add_argument("--anomalies", type=Path, required=True)
    parser.add_argument("--score", type=Path, nargs=2, metavar=("HEALTHY", "ANOMALOUS"))
    parser.add_argument("--choose", action="store_true", help="score the training split instead")
    parser.add_argument("--weights", help="file, or 'random'; default: torchvision's")
    parser.add_argument("--input", type=int, default=64, help="input size, px")
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fit-tiles", type=int, default=3000)
    parser.add_argument("--stop-tiles", type=int, default=750)
    parser.add_argument("--score-tiles", type=int, help="of each class; default: all")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all detectors"
    )
    args = parser.parse_args()
    if args.choose == bool(args.score):
        parser.error("give either --score or --choose")
    return args


def remembering(embed, known: dict[str, torch.Tensor]):
    """Frozen features of the same tiles are computed once, for all draws of tumour tiles."""

    def remembered(tiles: torch.Tensor) -> torch.Tensor:
        name = hashlib.sha256(tiles.cpu().contiguous().numpy().tobytes()).hexdigest()
        if name not in known:
            known[name] = embed(tiles)
        return known[name]

    return remembered


def fitted(args, cls, options, healthy, anomalous, known):
    """Fit on healthy and anomalous tiles; return the detector and what it says."""
    detector = cls(options, InputSpec(TilePx(args.input), PCAM_MPP))
    detector.embed = remembering(detector.embed, known)
    with tempfile.TemporaryDirectory() as scratch:
        context = FitContext(
            seed=0,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            folder=Path(scratch),
            weights=args.weights,
            quiet=True,
            anomalies=as_anomalies(anomalous),
        )
        report = detector.fit(stretches(healthy, args.stop_tiles), context)
    return detector, report.notes


def areas_of(args, name, count, parts, known) -> dict:
    """AUROC by seed of one detector and one number of tumour tiles."""
    healthy, tumour, normal, asked = parts
    method, _, own = name.partition(":")
    cls = registry.load(method)
    pairs = (pair.partition("=") for pair in (*args.set, *filter(None, own.split(","))))
    options = build(cls.Options, {key: yaml.safe_load(value) for key, _, value in pairs})
    areas, chosen = [], []
    for seed in args.seeds:
        drawn, others = drawn_anomalies(tumour, count, seed=seed)
        detector, notes = fitted(args, cls, options, healthy, drawn, known)
        if args.choose:
            asked = centre(others[: args.score_tiles], args.input)
        scores = [detector.score(part) for part in (normal, asked)]
        labels = np.repeat([0, 1], [len(normal), len(asked)])
        areas.append(float(roc_auc_score(labels, np.concatenate(scores))))
        chosen.append(notes.get("strength"))
    return {
        "detector": name,
        "anomalous_tiles": count,
        "auroc_mean": round(float(np.mean(areas)), 4),
        "auroc_std": round(float(np.std(areas, ddof=1)), 4) if len(areas) > 1 else None,
        "auroc": [round(area, 4) for area in areas],
        "strength": chosen,
    }


def main() -> None:
    args = parsed()
    used = args.fit_tiles + args.stop_tiles
    healthy, tumour = read_tar(args.healthy, used), read_tar(args.anomalies, None)
    asked = np.zeros(0)
    if args.score:
        normal = centre(read_tar(args.score[0], args.score_tiles), args.input)
        asked = centre(read_tar(args.score[1], args.score_tiles), args.input)
    else:
        normal = centre(read_tar(args.healthy, args.score_tiles, without=used), args.input)
    known: dict[str, torch.Tensor] = {}
    for count in args.counts:
        for name in args.detectors:
            start = time.monotonic()
            found = areas_of(args, name, count, (healthy, tumour, normal, asked), known)
            print(json.dumps({**found, "seconds": round(time.monotonic() - start)}), flush=True)


if __name__ == "__main__":
    main()
