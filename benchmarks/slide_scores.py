"""Slide AUC by scores of a slide that could take the place of the scan score.

    python benchmarks/slide_scores.py RESULTS --reference CSV [--healthy HEALTHY]

RESULTS are results of `wsiad heatmap`. Neighbourhoods of 100, 200 and 400 µm are standardised by
the maps of healthy slides in RESULTS, or by the heatmaps of HEALTHY, which are results of healthy
slides by the same run. p-values of pixels and windows come from the same slides. Higher criticism
is that of Donoho & Jin, Annals of Statistics 32 (2004), without p-values below 1 / n.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

import wsiad
from wsiad.core.errors import InputError
from wsiad.core.files import read_json
from wsiad.core.geometry import SquareMicrons
from wsiad.evaluation.auc import slide_auc
from wsiad.evaluation.truth import read_reference
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.results.file_names import CALIBRATION, HEALTHY_MAPS
from wsiad.runs.calibration import Calibration
from wsiad.runs.healthy_maps import HealthyMaps

Floats = npt.NDArray[np.float64]


def higher_criticism(p: Floats, share: float) -> float:
    """Return the highest standardised excess of small p-values among the smallest `share`."""
    p, n = np.sort(p), len(p)
    rank = np.arange(1, n + 1)
    used = (p > 1 / n) & (rank <= max(1, share * n))
    excess = (rank / n - p) / np.sqrt(p * (1 - p))
    return float(np.sqrt(n) * excess[used].max()) if used.any() else 0.0


def p_values(healthy: Floats, values: Floats) -> Floats:
    below = np.searchsorted(np.sort(healthy), values, side="left")
    return (1 + len(healthy) - below) / (len(healthy) + 2)


def seen(scores: npt.NDArray[np.floating]) -> Floats:
    return scores[np.isfinite(scores)].astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--healthy", type=Path)
    asked = parser.parse_args()
    tumour = read_reference(asked.reference)
    calibration = Calibration.from_json(
        read_json(asked.results / CALIBRATION, InputError, remedy="Run wsiad heatmap again.")
    )
    kept = HealthyMaps.read(asked.results / HEALTHY_MAPS)
    healthy = list(kept.maps)
    if asked.healthy:
        healthy = [slide.heatmap() for slide in wsiad.Results(asked.healthy) if slide.is_scored]
    spatial = SpatialCalibration.of(
        healthy,
        calibration=calibration,
        scales_um=(100, 200, 400),
        window=SquareMicrons(float(kept.window)),
    )
    usual = seen(np.concatenate([one.scores.ravel() for one in healthy]))
    quantiles = np.asarray(spatial.calibration.values)
    near = np.interp(np.linspace(0, 1, 20_001), spatial.calibration.levels, quantiles)
    high, very_high = (spatial.calibration.quantile(level) for level in (0.99, 0.999))
    found: dict[str, dict[bool, list[float]]] = {}
    for slide in wsiad.Results(asked.results):
        if not slide.is_scored:
            continue
        heatmap = slide.heatmap()
        values = seen(spatial.map(heatmap, calibration).heatmap.scores)
        windows = seen(heatmap.scores)
        scores = {
            "scan: highest of the map": values.max(),
            "mean of the ten highest of the map": np.sort(values)[-10:].mean(),
            "mean of the map": values.mean(),
            "share of the map above the healthy 99.9 %": (values > very_high).mean(),
            "share of the map above the healthy 99 %": (values > high).mean(),
            "higher criticism of the map, lowest tenth": higher_criticism(
                p_values(near, values), 0.1
            ),
            "highest window": windows.max(),
            "share of windows above the healthy 99.9 %": (
                windows > np.quantile(usual, 0.999)
            ).mean(),
            "higher criticism of windows, lowest tenth": higher_criticism(
                p_values(usual, windows), 0.1
            ),
            "higher criticism of windows, lower half": higher_criticism(
                p_values(usual, windows), 0.5
            ),
        }
        for name, score in scores.items():
            classes = found.setdefault(name, {True: [], False: []})
            classes[tumour[slide.name]].append(float(score))
    print(f"standardised by {len(healthy)} healthy slides")
    for name, classes in found.items():
        area = slide_auc(np.array(classes[True]), np.array(classes[False]))
        print(f"  {name:<43} {area}")


if __name__ == "__main__":
    main()
