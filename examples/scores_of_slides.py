"""Draw the scores of all slides, by label; slides without a score are named, not dropped.

    python examples/scores_of_slides.py results/ --reference reference.csv --out scores.png

The reference is a CSV with the columns `image` and `type`. Without it the labels of the results
are taken; a slide with neither stands under "no label".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd

import wsiad

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(results: Path, out: Path, *, reference: Path | None = None) -> pd.DataFrame:
    """Draw the scores of a results folder into a picture, and return its table."""
    table = wsiad.Results(results).slides.to_frame().set_index("slide")
    if reference is not None:
        known = pd.read_csv(reference, dtype=str, keep_default_na=False).set_index("image")["type"]
        table["label"] = known.reindex(table.index).fillna("")
    table["label"] = table["label"].replace("", "no label")
    scored = table[table.status == "ok"].sort_values("score_max")
    others = table[table.status != "ok"]
    labels = sorted(scored.label.unique())
    figure, axes = plt.subplots(figsize=(9, 0.35 * len(scored) + 1.6), layout="constrained")
    for label in labels:
        mine = scored[scored.label == label]
        places = [scored.index.get_loc(name) for name in mine.index]
        axes.scatter(mine.score_max, places, label=label, s=60)
    axes.set_yticks(range(len(scored)), scored.index)
    axes.set(xlabel="highest score of a window", title=f"{len(scored)} slides scored")
    if len(others):
        told = ", ".join(f"{row.Index} ({row.status})" for row in others.itertuples())
        axes.annotate(f"without a score: {told}", (0, -0.25), xycoords="axes fraction")
    axes.grid(axis="x", alpha=0.4)
    axes.legend()
    figure.savefig(out, dpi=100)
    plt.close(figure)
    return table


def main() -> None:
    """Draw the results of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results folder")
    parser.add_argument("--reference", type=Path, help="CSV with the columns image and type")
    parser.add_argument("--out", type=Path, default=Path("scores.png"))
    options = parser.parse_args()
    table = draw(options.results, options.out, reference=options.reference)
    print(table[["status", "label", "score_max"]].to_string())


if __name__ == "__main__":
    main()
