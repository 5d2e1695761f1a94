#!/usr/bin/env python3
"""How AUROC falls when tumour hides among the healthy tiles that a detector is fitted on.

    pipelines/contamination.py --pcam pcam/ --weights squeezenet1_1.safetensors --out out/

`pcam/` holds train_normal.tar, train_tumour.tar, valid_normal.tar and valid_tumour.tar: tiles of
96 px as JPEG. For each share, so many of the tiles to fit on, and of those held out, are replaced
by tumour tiles of the training split: who does not know of them keeps neither clean. The
valid split is scored. A seed draws the tiles and is the fit's.

With --trim, each fit is also made without the share of its tiles that a first fit finds strangest
(`wsiad train --trimming-share`; the tiles count as those of one slide), as another detector.

Writes contamination.csv, a line for each detector, share and seed, contamination.md and
contamination.png. Run it again after an interruption: lines that are there are not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from pcam import PCAM_MPP, centre, drawn_anomalies, held_out_and_drawn, read_tar
from table_run import area
from table_text import spread

from wsiad.core.config import build
from wsiad.core.errors import ConfigError, InputError, WsiadError
from wsiad.core.files import write_text
from wsiad.core.geometry import TilePx
from wsiad.core.images import save_figure
from wsiad.core.typed_files import TableKind
from wsiad.detectors import registry
from wsiad.learning.detector import Budget, Detector, FitContext, HealthyTiles, InputSpec
from wsiad.learning.devices import choose_device
from wsiad.learning.training_options import TrimmingOptions
from wsiad.learning.trimming import fit_trimmed
from wsiad.store.dataset import ArrayTiles


@dataclass(frozen=True, slots=True)
class Line:
    """A measured figure; with trimming, `detector` states it too."""

    detector: str
    share: float
    seed: int
    fit_tiles: int
    score_tiles: int
    auroc: float


LINES = TableKind(Line, "figures", "Remove it.", InputError)


def contaminated(healthy: np.ndarray, tumour: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Replace a share of the healthy tiles, at places that the seed draws.

    Parameters
    ----------
    healthy, tumour : ndarray of uint8, (N, H, W, 3)
        Of the tumour tiles the first are taken.
    share : float
        0 to 1; rounded to whole tiles.

    Raises
    ------
    InputError
        There are too few tumour tiles.
    """
    count = round(share * len(healthy))
    if count > len(tumour):
        raise InputError(f"{len(tumour)} tumour tiles are too few for {count}")
    mixed = healthy.copy()
    places = np.random.default_rng([seed, count]).choice(len(healthy), count, replace=False)
    mixed[places] = tumour[:count]
    return mixed


def label(args: argparse.Namespace, name: str, trim: float) -> str:
    """Return the name of a detector in the table, with what is trimmed."""
    return f"{name} trimmed {trim:g}{how_trimmed(args)}" if trim else name


def how_trimmed(args: argparse.Namespace) -> str:
    """Return how tiles are trimmed, where it is not as usual."""
    usual = TrimmingOptions()
    by = f" by {args.by}" if args.by != usual.by else ""
    return by + (f", rounds {args.rounds}" if args.rounds != usual.rounds else "")


def auroc(args: argparse.Namespace, name: str, trim: float, share: float, seed: int) -> float:
    """Fit a detector on contaminated tiles, and return its AUROC of the valid split."""
    held_out, drawn = held_out_and_drawn(
        args.pcam / "train_normal.tar", stop=args.stop_tiles, fit=args.fit_tiles, seed=seed
    )
    every = read_tar(args.pcam / "train_tumour.tar", None)
    wanted = round(share * len(drawn)) + round(share * len(held_out))
    if wanted > len(every):
        raise InputError(f"{len(every)} tumour tiles are too few for {wanted}")
    tumour = drawn_anomalies(every, max(wanted, 1), seed=seed)[0]
    split = round(share * len(drawn))
    fit = contaminated(drawn, tumour[:split], share, seed=seed)
    stop = contaminated(held_out, tumour[split:], share, seed=seed)
    cls = registry.load(name)

    def make() -> Detector:
        return cls(build(cls.Options, {}), InputSpec(TilePx(args.input), PCAM_MPP))

    with tempfile.TemporaryDirectory() as folder:
        context = FitContext(
            seed=seed,
            device=choose_device(args.device),
            folder=Path(folder),
            budget=Budget(args.max_steps, args.max_minutes),
            weights=args.weights,
            quiet=True,
        )
        if trim:
            trimmed = fit_trimmed(
                make,
                {"all": len(fit)},
                lambda kept: ArrayTiles(fit[kept["all"]]),
                stop=ArrayTiles(stop),
                context=context,
                options=TrimmingOptions(share=trim, rounds=args.rounds, by=args.by),
            )
            detector = trimmed.detector
        else:
            detector = make()
            detector.fit(HealthyTiles(ArrayTiles(fit), ArrayTiles(stop)), context)
    scores = {
        key: detector.score(
            centre(read_tar(args.pcam / f"valid_{part}.tar", args.score_tiles), args.input)
        )
        for key, part in (("healthy", "normal"), ("tumour", "tumour"))
    }
    return area(scores)


def grouped(lines: Sequence[Line]) -> dict[str, dict[float, list[float]]]:
    """AUROC of all seeds, by detector and share."""
    found: dict[str, dict[float, list[float]]] = {}
    for line in lines:
        found.setdefault(line.detector, {}).setdefault(line.share, []).append(line.auroc)
    return found


def as_table(lines: Sequence[Line]) -> str:
    """Return mean ± standard deviation over seeds, as Markdown."""
    shares = sorted({line.share for line in lines})
    rows = [
        "| detector | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
        "|---|" + "---|" * len(shares),
    ]
    for name, by_share in sorted(grouped(lines).items()):
        cells = [spread(by_share[share]) if share in by_share else "" for share in shares]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draw AUROC over the share of tumour tiles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, by_share in sorted(grouped(lines).items()):
        shares = sorted(by_share)
        middle = [mean(by_share[share]) for share in shares]
        low, high = ([pick(by_share[share]) for share in shares] for pick in (min, max))
        drawn = axes.plot([100 * share for share in shares], middle, marker="o", label=name)
        axes.fill_between(
            [100 * share for share in shares], low, high, alpha=0.2, color=drawn[0].get_color()
        )
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="tumour among the tiles to fit on, %", ylabel="AUROC of the valid split")
    axes.legend()
    save_figure(figure, path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pcam", type=Path, required=True, metavar="FOLDER", help="of the four tars")
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--weights", help="a file, 'wsiad' or 'random'; default: as wsiad train")
    add("--detectors", nargs="+", default=["gaussian", "knn", "pca"])
    add("--shares", type=float, nargs="+", default=[0.0, 0.01, 0.02, 0.05, 0.1])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--trim", type=float, nargs="*", default=[], help="shares to leave out, each as a row")
    add("--rounds", type=int, default=3, help="at most so many times")
    add("--by", choices=["score", "latent"], default="score", help="how strange tiles are judged")
    add("--input", type=int, default=64, help="input size, px; of larger tiles the centre")
    add("--fit-tiles", type=int, default=3000)
    add("--stop-tiles", type=int, default=500)
    add("--score-tiles", type=int, default=0, help="of each class; default: all")
    add("--max-minutes", type=float, help="bound on each training step by step")
    add("--max-steps", type=int, help="the same")
    add("--device", default="auto")
    args = parser.parse_args(arguments)
    path = args.out / "contamination.csv"
    try:
        if not all(0 <= share < 1 for share in args.shares):
            raise ConfigError("shares are from 0 to below 1", subject="--shares")
        lines = LINES.read(path) if path.exists() else []
        if any(
            line.fit_tiles != args.fit_tiles or line.score_tiles != args.score_tiles
            for line in lines
        ):
            raise InputError(
                "holds figures of other numbers of tiles",
                subject=str(path),
                remedy="Give another --out.",
            )
        done = {(line.detector, line.share, line.seed) for line in lines}
        if not all(0 < share < 0.5 for share in args.trim):
            raise ConfigError("shares are above 0 and below a half", subject="--trim")
        trims = [0.0, *args.trim]
        for trim, name in [(trim, name) for trim in trims for name in args.detectors]:
            shown = label(args, name, trim)
            for seed in args.seeds:
                for share in args.shares:
                    if (shown, share, seed) in done:
                        continue
                    value = auroc(args, name, trim, share, seed)
                    print(f"{shown}, {share:.0%}, seed {seed}: {value:.3f}", flush=True)
                    lines.append(Line(shown, share, seed, args.fit_tiles, args.score_tiles, value))
                    write_text(path, LINES.text(lines))
        write_text(args.out / "contamination.md", as_table(lines))
        plot(lines, args.out / "contamination.png")
    except WsiadError as error:
        print(f"contamination.py: {error}", file=sys.stderr)
        return 2
    print("\n" + as_table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
