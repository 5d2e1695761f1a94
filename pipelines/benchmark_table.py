#!/usr/bin/env python3
"""Make the table of docs/benchmarks.md: every detector on PatchCamelyon tiles.

    pipelines/benchmark_table.py --pcam pcam/ --weights squeezenet1_1.safetensors \
        --perceptual-weights vgg19.safetensors --out table/ --max-minutes 30 \
        --write docs/benchmarks.md

`pcam/` holds train_normal.tar, train_tumour.tar, valid_normal.tar and valid_tumour.tar: tiles of
96 px as JPEG. Every registered detector is fitted with its defaults on healthy tiles of
train_normal.tar, those that learn from labels also on tumour tiles of train_tumour.tar, and scores
the valid tars; benchmark_table.yaml has more rows. A seed draws the healthy and the tumour
tiles, and is the fit's.

Writes `table.csv`, a line for each row and seed, `table.md`, and `rows/`, a file for each row and
seed. Run it again after an interruption: what is finished is not run again, what failed is. A
selection by --detectors runs no others, but the table has all that are finished. Exit code 1 if a
row failed. --presets makes the table of the published systems in its place: a row for every preset
of configs/zoo, and benchmark_presets.yaml says what is measured otherwise. --evaluations adds a
table of folders that `wsiad evaluate` wrote, and makes `slides.md`.

--earlier takes tables of other runs (their `table.csv`): what they have and this run has not is
part of the table, and is not run. What was made of other options, tiles, weights or bounds than
today's is left out, with a warning.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import evaluation_table
import table_text
from pcam import tile_names
from table_rows import (
    BACKBONE,
    NONE,
    OWN,
    PERCEPTUAL,
    RANDOM,
    SUM,
    Case,
    Key,
    Row,
    cases,
    read_published,
    read_rows,
)
from table_run import Setting, add_up, made_of, run, stored

from wsiad.core.errors import ConfigError, InputError, WsiadError
from wsiad.core.files import write_text
from wsiad.core.terminal import counted
from wsiad.learning.detector import Budget
from wsiad.learning.devices import choose_device

logger = logging.getLogger("benchmark_table")

ROWS = Path(__file__).resolve().parent / "benchmark_table.yaml"
PRESETS = Path(__file__).resolve().parent / "benchmark_presets.yaml"
_MOST_CHARACTERS = 120 - len("    ") - len(" \\")
TILES, SLIDES, SYSTEMS = "table of tiles", "table of slides", "table of published systems"


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = shlex.join(_nameless(sys.argv[1:] if arguments is None else arguments))
    try:
        setting = _setting(args)
        rows, args.left_out = (
            read_published(args.rows or PRESETS)
            if args.presets
            else (read_rows(args.rows or ROWS), {})
        )
        chosen = _chosen(rows, args.detectors)
        slides = _slides(args.evaluations)
        # Refused before anything is run: figures of another setting, and a document without a
        # place for the table.
        earlier = _earlier(rows, args, setting)
        lines = _lines(rows, args, setting, earlier)
        _write(args, lines, rows, command, slides)
    except WsiadError as error:
        logger.error("%s", error)
        return 2
    for row in () if args.table_only else chosen:
        for case in _cases(row, args) if row.kind != SUM else ():
            found = stored(case, args.out, setting) or earlier.get(case.key)
            if found is None or found["failure"]:
                logger.info("%s, %s", row.name, case.path(args.out).parent.name)
                run(case, args.out, setting)
                # After each, so that an interruption leaves a table of what there is.
                lines = _lines(rows, args, setting, earlier)
                _write(args, lines, rows, command, slides)
    logger.info("\n%s", (args.out / "table.md").read_text(encoding="utf-8"))
    return int(any(line["failure"] for line in lines))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pcam", type=Path, required=True, metavar="FOLDER", help="of the four tars")
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--weights", help="of the backbone: a file, or 'random'; default: torchvision's")
    add("--perceptual-weights", metavar="FILE", help="of VGG19, the same")
    add("--more-weights", nargs="+", default=[], metavar="NAME=FILE", help="that rows name")
    add("--presets", action="store_true", help="the published systems in place of the defaults")
    add("--rows", type=Path, metavar="YAML", help="rows beside the defaults; of --presets, how")
    add("--table-only", action="store_true", help="run nothing: a table of what is finished")
    add("--earlier", type=Path, nargs="+", default=[], metavar="CSV", help="tables of other runs")
    add("--detectors", nargs="+", metavar="ROW", help="run only these; default: all")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--counts", type=int, nargs="+", default=[20, 100], help="of tumour tiles to learn from")
    add("--input", type=int, default=64, help="input size, px; of larger tiles the centre")
    add("--fit-tiles", type=int, default=3000, help="healthy tiles to fit on")
    add("--stop-tiles", type=int, default=500, help="healthy tiles to hold out")
    add("--score-tiles", type=int, help="of each class; default: all")
    add(
        "--max-minutes",
        type=float,
        help="bound on each training step by step; on a CPU, minutes of the processor",
    )
    add("--max-steps", type=int, help="the same")
    add("--device", default="auto")
    add("--evaluations", nargs="+", default=[], metavar="[NAME=]FOLDER", help="of wsiad evaluate")
    add("--write", type=Path, metavar="FILE", help="put the tables between the file's markers")
    args = parser.parse_args(arguments)
    if min(args.counts) < 1 or min(args.seeds) < 0:
        parser.error("--counts are positive, --seeds not negative")
    return args


def _nameless(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the last part of paths only."""

    def short(text: str) -> str:
        name, equals, value = text.rpartition("=")
        return f"{name}{equals}{Path(value).name}" if "/" in value else text

    kept = [text for text in arguments if text != "--table-only"]
    return ["pipelines/benchmark_table.py", *map(short, kept)]


def _setting(args: argparse.Namespace) -> Setting:
    weights = {BACKBONE: args.weights, PERCEPTUAL: args.perceptual_weights}
    weights |= {OWN: OWN, RANDOM: RANDOM, NONE: None}
    for text in args.more_weights:
        name, equals, file = text.partition("=")
        if not equals or name in weights:
            raise ConfigError(f"{text!r} is no NAME=FILE of a new name", subject="--more-weights")
        weights[name] = file
    device = choose_device(args.device)
    setting = Setting(
        pcam=args.pcam,
        weights=weights,
        input_px=args.input,
        fit_tiles=args.fit_tiles,
        stop_tiles=args.stop_tiles,
        score_tiles=args.score_tiles,
        budget=Budget(args.max_steps, args.max_minutes),
        device=device,
        environment=table_text.environment(device),
    )
    for path in setting.files():
        if not path.is_file():
            raise InputError("there is no such file", subject=str(path))
    for name in ("valid_normal", "valid_tumour"):
        there = len(tile_names(setting.tar(name)))
        if (args.score_tiles or 0) > there:
            raise InputError(f"has {there} tiles, not {args.score_tiles}", subject=f"{name}.tar")
    return setting


def _chosen(rows: list[Row], names: list[str] | None) -> list[Row]:
    known = [row.name for row in rows]
    if unknown := sorted(set(names or ()) - set(known)):
        raise ConfigError(
            f"there is no row {unknown[0]!r}", remedy=f"Choose of {', '.join(known)}."
        )
    wanted = set(names or known)
    # A sum is made of the rows that it adds: they are run for it.
    wanted.update(member for row in rows if row.name in wanted for member in row.members)
    return [row for row in rows if row.name in wanted]


def _cases(row: Row, args: argparse.Namespace) -> list[Case]:
    known = {
        BACKBONE,
        PERCEPTUAL,
        OWN,
        RANDOM,
        NONE,
        *(text.partition("=")[0] for text in args.more_weights),
    }
    return cases(row, counts=args.counts, seeds=args.seeds) if row.weights in known else []


def _earlier(
    rows: list[Row], args: argparse.Namespace, setting: Setting
) -> dict[Key, table_text.Line]:
    """Return the figures of earlier tables that are figures of today's cases; warn of others."""
    asked = {case.key: case for row in rows for case in _cases(row, args)}
    found: dict[Key, table_text.Line] = {}
    for path in args.earlier:
        left_out: dict[str, list[str]] = {}
        for line in table_text.read_csv(path):
            key = (line["row"], line["anomalies"], line["seed"])
            if why := _why_not(line, asked.get(key), setting):
                left_out.setdefault(why, []).append(f"{line['row']}, seed {key[2]}")
            else:
                found.setdefault(key, line | {"kind": asked[key].row.kind})
        for why, lines in left_out.items():
            some = "; ".join(lines[:3]) + ("; …" if len(lines) > 3 else "")
            logger.warning("%s: %s left out: %s: %s", path, counted(len(lines), "line"), why, some)
    return found


def _why_not(line: table_text.Line, case: Case | None, setting: Setting) -> str:
    """Return why an earlier line is not one of the table; empty if it is."""
    if case is None:
        return "the table has no such row, seed or number of tumour tiles"
    if line["failure"]:
        return f"it failed ({line['failure']})"
    if case.row.kind == SUM:
        return "a sum is made of the scores of its members, which a table does not hold"
    before, today = line.get("made_of", {}), made_of(case, setting)
    other = [name.replace("_", " ") for name in today if before.get(name) != today[name]]
    return f"made otherwise than today: {', '.join(other)}" if other else ""


def _lines(
    rows: list[Row],
    args: argparse.Namespace,
    setting: Setting,
    earlier: dict[Key, table_text.Line],
) -> list[table_text.Line]:
    """Return what is finished or has failed, and the sums that can be made of it."""
    by_name = {row.name: row for row in rows}
    lines = []
    for row in rows:
        for case in _cases(row, args):
            if row.kind != SUM:
                line = stored(case, args.out, setting) or earlier.get(case.key)
            else:
                parts = [
                    Case(own, case.anomalies if own.labelled else None, case.seed)
                    for own in (by_name[name] for name in row.members)
                    if _cases(own, args)
                ]
                found = [stored(part, args.out, setting) for part in parts]
                whole = len(parts) == len(row.members) and all(found)
                files = [part.path(args.out).with_suffix(".npz") for part in parts]
                line = add_up(case, found, files) if whole else None
            if line:
                lines.append(line)
    return lines


def _slides(evaluations: list[str]) -> str:
    try:
        return evaluation_table.table(evaluations) if evaluations else ""
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no evaluation can be read ({type(error).__name__}: {error})",
            subject="--evaluations",
            remedy="Give folders that `wsiad evaluate` wrote.",
        ) from error


def _write(
    args: argparse.Namespace,
    lines: list[table_text.Line],
    rows: list[Row],
    command: str,
    slides: str,
) -> None:
    there = {line["row"] for line in lines}
    on_cpu = choose_device(args.device).type == "cpu"
    text = table_text.as_markdown(
        lines,
        clock="processor" if on_cpu else "wall",
        absent=[f"`{row.name}`" for row in rows if row.name not in there],
    )
    text += _left_out(args.left_out)
    made = f"{text}\n{_about(args, lines, command)}"
    if args.write:
        _put(args.write, SYSTEMS if args.presets else TILES, made, slides)
    if slides:
        write_text(args.out / "slides.md", slides)
    write_text(args.out / "table.csv", table_text.as_csv(lines))
    write_text(args.out / "table.md", made)


def _left_out(reasons: dict[str, str]) -> str:
    """List the rows that are not measured by their reasons."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(f"`{name}`")
    lines = [f"- {', '.join(own)}: {reason}." for reason, own in names.items()]
    return "\n".join(["", "Not measured:", "", *lines, ""]) if lines else ""


def _about(args: argparse.Namespace, lines: list[table_text.Line], command: str) -> str:
    """Say what was fitted and scored, where, and by which command."""
    scored = f"{args.score_tiles:,}" if args.score_tiles else "all"
    data = (
        f"Fitted on {args.fit_tiles:,} healthy tiles ({args.stop_tiles:,} more held out), scored "
        f"on {scored} healthy and {scored} tumour tiles of the valid split, centre {args.input} px."
    )
    seeds = f"Seeds {', '.join(map(str, args.seeds))}: mean ± standard deviation, median of times."
    places = dict.fromkeys(line["environment"] for line in lines)
    return "\n".join(
        [f"{data} {seeds}", "", *(f"Environment: {place}." for place in places), "",
         *_folded(command), ""]
    )  # fmt: skip


def _folded(command: str) -> list[str]:
    """Fold a command into the lines of a code block, at most 120 characters each."""
    lines = [""]
    for word in shlex.split(command):
        more = f" {shlex.quote(word)}"
        if len(lines[-1] + more) > _MOST_CHARACTERS:
            lines[-1] += " \\"
            lines.append("    ")
        lines[-1] += more
    return [f"   {line}" for line in lines]


def _put(path: Path, name: str, tiles: str, slides: str) -> None:
    """Replace the tables of a document."""
    try:
        document = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", subject=str(path)) from error
    document = table_text.replaced(document, name, tiles)
    write_text(path, table_text.replaced(document, SLIDES, slides) if slides else document)


if __name__ == "__main__":
    sys.exit(main())
