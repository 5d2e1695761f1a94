"""AUROC on PatchCamelyon after labelling 20 of 3,000 tiles, chosen in several ways.

`knn`, fitted on other healthy tiles, scores the pool, of which a tenth is tumour. 20 tiles are
chosen at random, by the highest score, and as `wsiad suggest` does, without and with a quarter of
unsure ones (between the healthy 90 and 99 % quantiles), and their labels are looked up. The
tumour tiles found teach `linear-probe` and `devnet`, which are scored on the other split::

    python benchmarks/suggest_pcam.py --healthy train_normal.tar --anomalies train_tumour.tar \
        --score valid_normal.tar valid_tumour.tar --weights squeezenet1_1.safetensors

A seed draws the pool. Where no tumour tile is found, `knn` stands in.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from labels_pcam import remembering
from pcam import PCAM_MPP, as_anomalies, centre, evenly, read_named, read_tar, stretches, tile_names
from sklearn.metrics import roc_auc_score

from wsiad.core.config import build
from wsiad.core.geometry import TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, FitContext, InputSpec
from wsiad.learning.representatives import rank_weights, representatives

HEADS = {"linear-probe": {}, "devnet": {"loss": "bce"}}


def made(name: str, **options) -> Detector:
    cls = registry.load(name)
    options = {"backbone": "squeezenet1_1", **options}
    return cls(build(cls.Options, options), InputSpec(TilePx(64), PCAM_MPP))


def fit(detector: Detector, tiles, weights: str, anomalies=None) -> Detector:
    with tempfile.TemporaryDirectory() as folder:
        context = FitContext(0, torch.device("cpu"), Path(folder), weights=weights, quiet=True,
                             anomalies=anomalies)  # fmt: skip
        detector.fit(tiles, context)
    return detector


def like_others(scores, vectors, count, *, candidates=200):
    """Choose as `wsiad suggest` does among tiles of no slide."""
    strongest = np.argsort(-scores, kind="stable")[:candidates]
    found = representatives(vectors[strongest], count, weights=rank_weights(scores[strongest]),
                            groups=[0] * len(strongest), most=count)  # fmt: skip
    return strongest[found]


def with_unsure(scores, vectors, count, *, healthy):
    """Choose three quarters so, and the rest among tiles whose score is unsure."""
    sure = like_others(scores, vectors, count - count // 4)
    low, high = np.quantile(healthy, [0.9, 0.99])
    unsure = np.setdiff1d(np.flatnonzero((scores >= low) & (scores < high)), sure)
    return np.concatenate([sure, unsure[like_others(scores[unsure], vectors[unsure], count // 4)]])


def chosen(scores, vectors, count, *, healthy, seed) -> dict[str, np.ndarray]:
    return {
        "random": np.random.default_rng(seed).choice(len(scores), count, replace=False),
        "highest score": np.argsort(-scores, kind="stable")[:count],
        "suggest --unsure 0": like_others(scores, vectors, count),
        "suggest": with_unsure(scores, vectors, count, healthy=healthy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--healthy", type=Path, required=True)
    parser.add_argument("--anomalies", type=Path, required=True)
    parser.add_argument("--score", type=Path, nargs=2, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    names = tile_names(args.healthy)
    fitted = evenly(names, 1500)
    others = evenly(sorted(set(names) - set(fitted)), 3500)
    healthy, normal = read_named(args.healthy, fitted), read_named(args.healthy, others)
    tumour = read_tar(args.anomalies, 1000)
    asked = [centre(read_tar(path, 600), 64) for path in args.score]
    truth = np.repeat([0, 1], [len(part) for part in asked])
    knn = fit(made("knn", contrast=2.0), stretches(healthy, 300), args.weights)
    pool = np.concatenate([normal, tumour])
    windows = centre(pool, 64)
    scores, vectors = knn.score(windows), knn.embed(windows)
    usual = knn.score(centre(healthy[:300], 64))
    alone = roc_auc_score(truth, np.concatenate([knn.score(part) for part in asked]))
    print(f"knn without labels: AUROC {alone:.3f}", flush=True)
    known: dict[str, dict] = {name: {} for name in HEADS}
    rows: dict[str, list] = {}
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        mine = np.concatenate([
            rng.choice(len(normal), 2700, replace=False),
            len(normal) + rng.choice(len(tumour), 300, replace=False),
        ])  # fmt: skip
        ways = chosen(scores[mine], vectors[mine], args.count, healthy=usual, seed=seed)
        for way, indices in ways.items():
            found = mine[indices][mine[indices] >= len(normal)]
            areas = []
            for name, options in HEADS.items():
                head = made(name, **options)
                head.whole = remembering(head.whole, known[name])
                if len(found):
                    fit(head, stretches(healthy, 300), args.weights, as_anomalies(pool[found]))
                    given = np.concatenate([head.score(part) for part in asked])
                areas.append(roc_auc_score(truth, given) if len(found) else alone)
            rows.setdefault(way, []).append([len(found), *areas])
            print(seed, way, rows[way][-1], flush=True)
    for way, values in rows.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        told = [f"{m:.3g} ± {s:.2g}" for m, s in zip(mean, spread, strict=True)]
        print(f"{way}: tumour tiles found {told[0]}; linear-probe {told[1]}, devnet {told[2]}")


if __name__ == "__main__":
    main()
