#!/usr/bin/env python3
"""One class against all others: how surveys test detectors on pictures that are not of slides.

    pipelines/one_versus_all.py train/ test/ --detector knn --resize 64 --out out/
    pipelines/one_versus_all.py train/ test/ --preset padim --resize 64 --out out/
    pipelines/one_versus_all.py bottle/train bottle/test --preset padim --resize 256 --out out/

`train/` and `test/` have a folder of pictures for each class, of the same names. For each class in
turn, the detector is fitted on the pictures of that class in `train/`, and scores all pictures of
`test/`: those of the other classes are the anomalies. Where `train/` has a single class, `test/`
may have any others beside it, as the categories of MVTec AD do: train/good, test/good and a folder
for each defect. Pictures are scored as a whole; masks of defects are not read. A tenth of the
class's training pictures is held out to stop by. Nothing of `test/` is looked at before it is
scored, and no score is scaled by others.

Pictures are prepared as by `wsiad import-tiles`: --grey-values, --resize, --crop, --clahe.

Writes one_versus_all.csv, a line for each class and seed, and one_versus_all.md with the mean of
each class and of all. Run it again after an interruption: lines that are there are not run again.
An AUROC below 0.5 stays below 0.5.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from pcam import centre
from table_run import area
from table_text import spread

from wsiad.core import yaml_text
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, InputError, WsiadError
from wsiad.core.files import write_text
from wsiad.core.geometry import Mpp, TilePx
from wsiad.core.typed_files import TableKind
from wsiad.detectors import registry
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.learning.devices import choose_device
from wsiad.runs.presets import with_preset
from wsiad.store.dataset import ArrayTiles
from wsiad.store.foreign_tiles import FolderTiles
from wsiad.tiling.preparation import PictureOptions

_HELD_OUT = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """A measured figure; `fit` counts the training pictures, those to stop by among them."""

    detector: str
    setting: str
    normal: str
    seed: int
    fit: int
    normal_tested: int
    others_tested: int
    auroc: float


LINES = TableKind(Line, "figures", "Remove it.", InputError)

Pictures = dict[str, npt.NDArray[np.uint8]]


def read_classes(folder: Path, options: PictureOptions, *, edge: int | None = None) -> Pictures:
    """Read the pictures of each class, uint8 (N, S, S, 3), by the names of their folders.

    Raises
    ------
    InputError
        There is no folder of pictures, or a picture cannot be read or has another size.
    """
    if not folder.is_dir():
        raise InputError("is not a folder", subject=str(folder))
    found: Pictures = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        source = FolderTiles(path, pictures=options.pictures())
        pictures = []
        for _, pixels in source.tiles(tile=edge):
            edge = len(pixels)
            pictures.append(pixels)
        if not pictures:
            raise InputError("holds no pictures", subject=str(path))
        found[path.name] = np.stack(pictures)
    if not found:
        raise InputError(
            "has no folder of pictures",
            subject=str(folder),
            remedy="Make a folder for each class.",
        )
    return found


def check_classes(args: argparse.Namespace, train: Pictures, test: Pictures) -> None:
    """Check that each class of the training can be tested against others.

    Raises
    ------
    InputError
        The test has other classes than the training, which must have a single class for that; or
        no other class than that one.
    """
    missing, more = sorted(train.keys() - test.keys()), sorted(test.keys() - train.keys())
    if missing or (more and len(train) > 1):
        raise InputError(
            f"has other classes than {args.train}: {', '.join(missing + more)}",
            subject=str(args.test),
        )
    if len(test) < 2:
        raise InputError(
            "has 1 folder of pictures",
            subject=str(args.test),
            remedy="Make a folder for each class, at least two.",
        )


def auroc(
    args: argparse.Namespace, train: Pictures, test: Pictures, *, normal: str, seed: int
) -> float:
    """Fit on one class, and return the AUROC of the others' test pictures against its own."""
    pictures = train[normal]
    order = np.random.default_rng([seed, len(pictures)]).permutation(len(pictures))
    held_out = max(1, round(_HELD_OUT * len(pictures)))
    if len(pictures) - held_out < 1:
        raise InputError(f"the class {normal} has a single training picture")
    cls = registry.load(args.detector)
    options = build(cls.Options, args.options, source=f"options of {args.detector}")
    if cls.learns_from_anomalies(options) == "needed":
        raise ConfigError("learns from labelled anomalies", subject=args.detector)
    edge = pictures.shape[1]
    size = cls.input_size(options, tile_px=edge, mpp=1.0)
    if size > edge and options.input_px is not None:
        raise ConfigError(
            f"the pictures have {edge} px, fewer than the {size} of the input",
            subject="input_px",
            remedy="Set --resize or --crop.",
        )
    size = min(size, edge)
    detector = cls(options, InputSpec(TilePx(size), Mpp(1)))
    with tempfile.TemporaryDirectory() as folder:
        context = FitContext(
            seed=seed,
            device=choose_device(args.device),
            folder=Path(folder),
            budget=Budget(args.max_steps, args.max_minutes),
            weights=args.weights,
            quiet=True,
        )
        fit, stop = (ArrayTiles(pictures[part]) for part in np.split(order, [-held_out]))
        detector.fit(HealthyTiles(fit, stop), context)
    scores = {name: detector.score(centre(some, size)) for name, some in test.items()}
    others = np.concatenate([some for name, some in scores.items() if name != normal])
    return area({"healthy": scores[normal], "tumour": others})


def as_table(lines: Sequence[Line]) -> str:
    """Return the mean of each class over seeds, and the mean of the classes, as Markdown."""
    rows = []
    for name, setting in sorted({(line.detector, line.setting) for line in lines}):
        mine = [line for line in lines if (line.detector, line.setting) == (name, setting)]
        by_class = {
            normal: [line.auroc for line in mine if line.normal == normal]
            for normal in sorted({line.normal for line in mine})
        }
        rows += ["", f"{name}, {setting}", "", "| normal class | AUROC |", "|---|---|"]
        rows += [f"| {normal} | {spread(values)} |" for normal, values in by_class.items()]
        if len(by_class) > 1:
            rows.append(f"| mean of {len(by_class)} | {mean(map(mean, by_class.values())):.3f} |")
    return "\n".join(rows[1:]) + "\n"


def pair(text: str) -> tuple[str, Any]:
    """Return an option, KEY=VALUE, whose value is YAML."""
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, yaml_text.parse(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("train", type=Path, help="a folder of pictures for each class")
    add("test", type=Path, help="the same classes; more, if `train` has a single one")
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--detector", help="default: that of the preset, or knn")
    add("--preset", metavar="NAME", help="a published system; --option replaces its options")
    add("--option", action="append", type=pair, default=[], metavar="KEY=VALUE")
    add("--weights", help="a file, 'wsiad' or 'random'; default: as wsiad train")
    add("--classes", nargs="+", help="to take for normal in turn; default: all")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--grey-values", type=float, nargs=2, metavar=("BLACK", "WHITE"))
    add("--resize", type=int, help="pixels of the shorter edge")
    add("--crop", type=int, help="pixels of the central square")
    add("--clahe", type=float, help="limit of an equalisation")
    add("--max-steps", type=int, help="bound on each training step by step")
    add("--max-minutes", type=float, help="the same")
    add("--device", default="auto")
    args = parser.parse_args(arguments)
    try:
        asked = {"detector": args.detector, "preset": args.preset, "weights": args.weights}
        chosen = {name: value for name, value in asked.items() if value is not None}
        chosen = with_preset({**chosen, "options": dict(args.option)}, fields=())
        args.detector, args.options = chosen.get("detector", "knn"), chosen["options"]
        args.weights = chosen.get("weights")
        given = {name: getattr(args, name) for name in PictureOptions.model_fields}
        pictures = build(PictureOptions, {k: v for k, v in given.items() if v is not None})
        train = read_classes(args.train, pictures)
        edge = len(next(iter(train.values()))[0])
        test = read_classes(args.test, pictures, edge=edge)
        check_classes(args, train, test)
        classes = args.classes or sorted(train)
        if unknown := sorted(set(classes) - set(train)):
            raise ConfigError(f"there is no class {unknown[0]}", subject="--classes")
        named = {"preset": args.preset} if args.preset else {}
        setting = json.dumps(
            {**named, **args.options, **pictures.model_dump(exclude_defaults=True),
             "weights": args.weights, "max_steps": args.max_steps,
             "max_minutes": args.max_minutes, "px": edge},
            sort_keys=True,
        )  # fmt: skip
        path = args.out / "one_versus_all.csv"
        lines = LINES.read(path) if path.exists() else []
        done = {(line.detector, line.setting, line.normal, line.seed) for line in lines}
        for seed in args.seeds:
            for normal in classes:
                key = (args.detector, setting, normal, seed)
                if key in done:
                    continue
                value = auroc(args, train, test, normal=normal, seed=seed)
                what = f"{args.detector}, {normal} against all, seed {seed}"
                print(f"{what}: {value:.3f}", flush=True)
                counts = {name: len(some) for name, some in test.items()}
                others = sum(counts.values()) - counts[normal]
                lines.append(Line(*key, len(train[normal]), counts[normal], others, value))
                write_text(path, LINES.text(lines))
        write_text(args.out / "one_versus_all.md", as_table(lines))
    except WsiadError as error:
        print(f"one_versus_all.py: {error}", file=sys.stderr)
        return 2
    print("\n" + as_table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
