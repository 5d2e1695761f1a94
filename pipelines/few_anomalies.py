#!/usr/bin/env python3
"""How good is the setting that a few anomalous tiles choose? Figure 5 of Shvetsova et al. 2021.

    python pipelines/few_anomalies.py scored/ --out study/ --types 1 2 4 --tiles 5 20 100

``scored/`` holds one folder a setting, with ``validation/`` and ``test/`` as ``wsiad
score-tiles`` writes them (pipelines/few_anomalies.sh makes them). For each number of types
(slides: groups of the validation store that are labelled as anomalous) and of tiles of each,
samples are drawn; each picks the setting with the highest AUROC of its tiles against all healthy
validation tiles. Nothing is fitted anew: the AUROC of a sample is the mean, over its tiles, of the
share of healthy tiles with a lower score.

Writes ``samples.csv`` (one line a sample), ``few_anomalies.csv`` (one line for each number of
types and tiles) and ``few_anomalies.png``.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.files import atomic_file
from wsiad.core.images import save_figure
from wsiad.evaluation.auc import delong

SAMPLES = (
    "types",
    "tiles_of_each",
    "sample",
    "picked",
    "auroc_of_sample",
    "test_auroc",
    "relative",
)
SUMMARY = (
    "types", "tiles_of_each", "tiles", "samples", "relative_mean", "relative_5", "relative_50",
    "relative_95", "within_2_percent",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scored:
    """A setting and what it gives.

    Parameters
    ----------
    name : str
    shares : dict of str to ndarray of float64, (N,)
        By anomalous group of the validation: share of its healthy tiles that are scored lower
        than each tile, ties counting half.
    test_auroc : float
    """

    name: str
    shares: dict[str, np.ndarray]
    test_auroc: float


def read_scores(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the scores of normal and of anomalous groups, by name."""
    try:
        facts = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        kinds = {group["group"]: group["taken_as"] for group in facts["groups"]}
        scores: dict[str, list[float]] = {}
        with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                scores.setdefault(row["group"], []).append(float(row["score"]))
        parts = [
            {
                name: np.array(values)
                for name, values in sorted(scores.items())
                if kinds[name] == kind
            }
            for kind in ("normal", "tumour")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"does not hold scores of tiles ({error})",
            subject=str(folder),
            remedy="Make them: wsiad score-tiles.",
        ) from error
    if not all(parts):
        raise InputError("needs labelled normal and anomalous tiles", subject=str(folder))
    return parts[0], parts[1]


def shares_below(scores: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Share of healthy scores below each score, ties counting half: its part of the AUROC."""
    ordered = np.sort(healthy)
    below = np.searchsorted(ordered, scores, side="left")
    return (below + np.searchsorted(ordered, scores, side="right")) / (2 * len(ordered))


def read_setting(folder: Path) -> Scored:
    """Read a setting's folder."""
    healthy, anomalous = read_scores(folder / "validation")
    normal = np.concatenate(list(healthy.values()))
    negative, positive = (np.concatenate(list(p.values())) for p in read_scores(folder / "test"))
    shares = {name: shares_below(scores, normal) for name, scores in anomalous.items()}
    return Scored(folder.name, shares, delong(positive, negative)[0])


def read_settings(folder: Path) -> list[Scored]:
    """Read all settings, and check that they were scored on the same tiles."""
    found = [read_setting(path.parent) for path in sorted(folder.glob("*/validation"))]
    if len(found) < 2:
        raise InputError("needs the scores of two or more settings", subject=str(folder))
    counts = [{name: len(shares) for name, shares in one.shares.items()} for one in found]
    for one, own in zip(found, counts, strict=True):
        if own != counts[0]:
            raise InputError(
                f"was scored on other tiles than {found[0].name}",
                subject=one.name,
                remedy="Score all settings on the same stores.",
            )
    return found


def draw(
    settings: list[Scored], *, types: int, tiles: int, samples: int, seed: int
) -> Iterator[tuple[int, float]]:
    """Yield the setting that each sample picks, and the AUROC that it was picked by."""
    groups = sorted(name for name, s in settings[0].shares.items() if len(s) >= tiles)
    rng = np.random.default_rng([seed, types, tiles])
    for _ in range(samples):
        chosen = rng.choice(len(groups), types, replace=False)
        drawn = [
            (groups[i], rng.choice(len(settings[0].shares[groups[i]]), tiles, replace=False))
            for i in chosen
        ]
        areas = [
            float(np.mean([one.shares[name][which].mean() for name, which in drawn]))
            for one in settings
        ]
        picked = int(np.argmax(areas))
        yield picked, areas[picked]


def picked_by_all(settings: list[Scored]) -> int:
    """Return the setting with the highest mean AUROC over all groups, each with all its tiles."""
    return int(np.argmax([np.mean([s.mean() for s in one.shares.values()]) for one in settings]))


def study(
    settings: list[Scored], *, types: list[int], tiles: list[int], samples: int, seed: int
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return the rows of both tables; numbers for which there are too few tiles are left out."""
    optimum = max(one.test_auroc for one in settings)
    rows, summary = [], []
    for count in types:
        for each in tiles:
            if sum(len(s) >= each for s in settings[0].shares.values()) < count:
                print(f"left out: {count} types of {each} tiles are not there", file=sys.stderr)
                continue
            picks = draw(settings, types=count, tiles=each, samples=samples, seed=seed)
            relative = []
            for number, (picked, area) in enumerate(picks, 1):
                one = settings[picked]
                relative.append(one.test_auroc / optimum)
                values = (count, each, number, one.name, area, one.test_auroc, relative[-1])
                rows.append(dict(zip(SAMPLES, values, strict=True)))
            quantiles = np.quantile(relative, (0.05, 0.5, 0.95)).tolist()
            within = float(np.mean(np.array(relative) >= 0.98))
            mean = float(np.mean(relative))
            values = (count, each, count * each, samples, mean, *quantiles, within)
            summary.append(dict(zip(SUMMARY, values, strict=True)))
    return rows, summary


def write_csv(path: Path, rows: list[dict[str, object]], columns: tuple[str, ...]) -> None:
    """Write rows; numbers to six digits."""
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def plot(path: Path, summary: list[dict[str, object]], settings: list[Scored]) -> None:
    """Plot the mean over samples and the range of nine in ten, by tiles and types."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    areas = [one.test_auroc for one in settings]
    figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"), "osv^Dx", strict=True
    )
    types = dict.fromkeys(row["types"] for row in summary)
    for count, (colour, marker) in zip(types, styles, strict=False):
        mine = [row for row in summary if row["types"] == count]
        x = np.array([float(row["tiles_of_each"]) for row in mine])  # type: ignore[arg-type]
        low, mean, high = (
            np.array([float(row[f"relative_{name}"]) for row in mine])  # type: ignore[arg-type]
            for name in ("5", "mean", "95")
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        word = "type" if count == 1 else "types"
        axes.plot(x, mean, color=colour, marker=marker, label=f"{count} {word}")
    chance = float(np.mean(areas)) / max(areas)
    axes.axhline(chance, color="#767676", linestyle=":", label="a setting picked at random")
    everything = settings[picked_by_all(settings)].test_auroc / max(areas)
    label = "picked by all anomalous tiles"
    axes.axhline(everything, color="#000000", linestyle="-.", linewidth=0.8, label=label)
    axes.axhline(0.98, color="#767676", linestyle="--", linewidth=0.8, label="2 % below the best")
    axes.set_xscale("log")
    axes.set(
        xlabel="anomalous tiles of each type",
        ylabel=f"test AUROC of the pick, relative to the best ({max(areas):.3f})",
    )
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend(loc="lower right", fontsize="x-small", frameon=False)
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scored", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--types", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 5, 10, 20, 50, 100])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        settings = read_settings(given.scored)
        rows, summary = study(
            settings, types=given.types, tiles=given.tiles, samples=given.samples, seed=given.seed
        )
    except WsiadError as error:
        print(f"few_anomalies: {error}", file=sys.stderr)
        return 1
    if not summary:
        print("few_anomalies: no sample can be drawn; give smaller numbers", file=sys.stderr)
        return 1
    write_csv(given.out / "samples.csv", rows, SAMPLES)
    write_csv(given.out / "few_anomalies.csv", summary, SUMMARY)
    plot(given.out / "few_anomalies.png", summary, settings)
    for one in sorted(settings, key=lambda s: -s.test_auroc):
        whole = float(np.mean(np.concatenate(list(one.shares.values()))))
        print(f"{one.name}: AUROC {whole:.3f} on validation, {one.test_auroc:.3f} on test")
    best = settings[picked_by_all(settings)]
    print(f"all anomalous tiles pick {best.name}, AUROC {best.test_auroc:.3f} on test")
    for row in summary:
        print(
            f"{row['types']} types × {row['tiles_of_each']} tiles: on average "
            f"{row['relative_mean']:.3f} of the best, within 2 % in "
            f"{100 * float(row['within_2_percent']):.0f} % of the samples"  # type: ignore[arg-type]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
