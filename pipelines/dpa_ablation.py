#!/usr/bin/env python3
"""Train and score all rows of the ablation of dpa (Table 4 of Shvetsova et al. 2021).

    pipelines/dpa_ablation.py TRAIN_STORE HEALTHY_STORE TUMOUR_STORE --out ablation/ \
        --seeds 0 1 2 [--weights vgg19.safetensors] [--max-steps 500] [--set batch=32]

Each store is one that `wsiad tile` or `wsiad import-tiles` made; the second and third are of
slides that the first has nothing of, and all tiles of the third are tumour. A row is a file of
configs/camelyon16/. Writes `ablation.csv`, a line for each row and seed, and `ablation.md`, mean
and spread over the seeds beside the published figures. Run it again after an interruption: what
is finished is not run again, what failed is. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.metrics import roc_auc_score

import wsiad
from wsiad.core.config import read_yaml
from wsiad.core.errors import InputError, RunError, WsiadError
from wsiad.core.files import write_json, write_text
from wsiad.runs.healthy_tiles import store_fingerprint
from wsiad.verbs.score_tiles import NORMAL, TUMOUR

logger = logging.getLogger("dpa_ablation")

CONFIGS = Path(__file__).parents[1] / "configs" / "camelyon16"
RESULT, SETTING = "result.json", "setting.json"
COLUMNS = ("row", "seed", "auroc", "steps", "ended_by", "best_stop_loss", "seconds", "failure")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: its name, its config file, its published AUROC (%)."""

    name: str
    config: str
    published: str


ROWS = (
    Row("L1, unsupervised selection", "ablation/train-l1-unsupervised.yaml", "21.1 ± 1.4"),
    Row("PL, unsupervised selection", "ablation/train-pl-unsupervised.yaml", "87.9 ± 0.6"),
    Row("PL", "train-dpa.yaml", "92.7 ± 0.4"),
    Row("PL + 1 adv", "ablation/train-pl-adversarial-1.yaml", "79.4"),
    Row("PL + 0.1 adv", "ablation/train-pl-adversarial-0.1.yaml", "90.8"),
    Row("PL + 1 L1", "ablation/train-pl-l1-1.yaml", "75.3"),
    Row("PL + 0.1 L1", "ablation/train-pl-l1-0.1.yaml", "93.0"),
    Row("PL + 1 L1 + 1 adv", "ablation/train-pl-l1-adversarial-1.yaml", "57.5"),
    Row("PL + 0.1 L1 + 0.1 adv", "ablation/train-pl-l1-adversarial-0.1.yaml", "90.6"),
    Row("PL, progressive growing", "train-dpa-growing.yaml", "93.4 ± 0.3"),
)


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = {k: yaml.safe_load(v) for k, _, v in (text.partition("=") for text in args.set)}
    try:
        _claim(args, given)
    except WsiadError as error:
        logger.error("%s", error)
        return 2
    lines = []
    for row in ROWS:
        if args.rows and row.name not in args.rows:
            continue
        for seed in args.seeds:
            lines.append(_line(row, seed, args, given))
            # After each, so that an interruption leaves a table of what there is.
            write_text(args.out / "ablation.csv", _as_csv(lines))
            write_text(args.out / "ablation.md", _as_markdown(lines, args, given))
    logger.info("\n%s", (args.out / "ablation.md").read_text(encoding="utf-8"))
    return int(any(line["failure"] for line in lines))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("train", "healthy", "tumour"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}_STORE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", help="VGG19: a file, or 'random'; default: torchvision's")
    parser.add_argument("--max-steps", type=int, help="bound on the steps of each training")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true", help="no progress output")
    return parser.parse_args(arguments)


def _claim(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Refuse a folder of figures that were made of something else."""
    stores = [wsiad.TileStore(path) for path in (args.train, args.healthy, args.tumour)]
    setting = {
        "stores": [store_fingerprint(store, list(store)) for store in stores],
        "weights": args.weights,
        "max_steps": args.max_steps,
        "options": given,
    }
    path = args.out / SETTING
    if not path.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(path, setting)
    elif json.loads(path.read_text(encoding="utf-8")) != setting:
        raise RunError(
            "holds figures of other stores, weights, bounds or options",
            subject=str(args.out),
            remedy="Give another --out.",
        )


def _line(row: Row, seed: int, args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a row and seed: those that are there, or new ones."""
    folder = args.out / Path(row.config).stem / f"seed-{seed}"
    path = folder / RESULT
    if path.exists():
        logger.info("%s, seed %d: finished before", row.name, seed)
        return json.loads(path.read_text(encoding="utf-8"))
    logger.info("%s, seed %d", row.name, seed)
    line: dict[str, Any] = dict.fromkeys(COLUMNS) | {"row": row.name, "seed": seed}
    try:
        line |= _figures(_train_config(row, args, given), folder, seed, args)
    except WsiadError as error:
        logger.error("%s, seed %d: %s", row.name, seed, error)
        return line | {"failure": str(error)}
    write_json(path, line)
    return line


def _train_config(row: Row, args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    config = read_yaml(CONFIGS / row.config)
    options, whole = config["options"] | given, config["max_steps"]
    steps = min(whole, args.max_steps or whole)
    if growing := options.get("growing"):
        # A bound would end it before its last stage: each stage is shortened alike.
        shorter = {
            name: max(1, growing[name] * steps // whole)
            for name in ("stabilise_steps", "transition_steps")
        }
        options["growing"] = growing | shorter
        if "batch" in given:
            options["growing"] |= {"batch": {}}
    return config | {"options": options, "max_steps": steps}


def _figures(
    config: dict[str, Any], folder: Path, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    run = folder / "run"
    shared = {"device": args.device, "quiet": args.quiet}
    wsiad.train(store=args.train, out=run, weights=args.weights, seed=seed, **shared, **config)
    scores = {}
    for truth, store in ((NORMAL, args.healthy), (TUMOUR, args.tumour)):
        found = wsiad.score_tiles(run=run, store=store, out=folder / truth, **shared)
        if wrong := [group.name for group in found.groups if group.truth not in ("", truth)]:
            raise InputError(f"{wrong[0]} is not labelled {truth}", subject=str(store))
        scores[truth] = np.concatenate([group.scores for group in found.groups])
    labels = np.repeat([0, 1], [len(scores[NORMAL]), len(scores[TUMOUR])])
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        # Below 0.5 stays below 0.5: an inverted score is a finding.
        "auroc": float(roc_auc_score(labels, np.concatenate([scores[NORMAL], scores[TUMOUR]]))),
        "steps": record["steps"],
        "ended_by": record["ended_by"],
        "best_stop_loss": record["notes"]["best_stop_loss"],
        "seconds": record["seconds"],
    }


def _as_csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _as_markdown(lines: list[dict[str, Any]], args: argparse.Namespace, given: Any) -> str:
    """Mean ± sample standard deviation over the seeds, beside what was published."""
    out = [
        "| loss | AUROC here, % | seeds | steps | published, % | failures |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        own = [line for line in lines if line["row"] == row.name]
        areas = [100 * line["auroc"] for line in own if line["auroc"] is not None]
        failures = "; ".join(
            f"seed {line['seed']}: {line['failure']}".replace("|", "\\|").replace("\n", " ")
            for line in own
            if line["failure"]
        )
        if own:
            steps = sorted({line["steps"] for line in own if line["steps"]})
            shown = ", ".join(f"{count:,}" for count in steps)
            out.append(
                f"| {row.name} | {_spread(areas)} | {len(areas)} | {shown} | {row.published} "
                f"| {failures} |"
            )
    bound = f"at most {args.max_steps:,} steps" if args.max_steps else "the published bounds"
    changed = f", options {given}" if given else ""
    return "\n".join(
        [
            *out,
            "",
            f"Weights: {args.weights or 'torchvision'}; {bound}{changed}.",
            "Published: other tiles and channel statistics, steps of 128 tiles, three runs.",
            "",
        ]
    )


def _spread(areas: list[float]) -> str:
    if not areas:
        return "–"
    mean = f"{statistics.mean(areas):.1f}"
    return f"{mean} ± {statistics.stdev(areas):.1f}" if len(areas) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
