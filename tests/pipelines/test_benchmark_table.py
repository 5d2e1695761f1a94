"""The table of detectors: its rows, its arithmetic, what is run again, and where it is put."""

import csv
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsiad.core.errors import ConfigError, InputError
from wsiad.core.geometry import TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import FitContext, InputSpec
from wsiad.learning.training_options import TrimmingOptions
from wsiad.runs.presets import preset_names

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("table", ROOT / "pipelines/benchmark_table.py")
table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(table)  # puts benchmarks/ on the path

import evaluation_table  # noqa: E402
import pcam  # noqa: E402
import table_rows  # noqa: E402
import table_run  # noqa: E402
import table_text  # noqa: E402

COUNTS = {"train_normal": 30, "train_tumour": 5, "valid_normal": 9, "valid_tumour": 7}
VARIANTS = """
pca 2: {detector: pca, options: {components: 2}}
probe: {detector: linear-probe, options: {augment: false, magnify: 1, places: 4}}
short: {detector: student-teacher, options: {batch: 2}}
named: {detector: pca, weights: mine}
both: {sum: [pca, gaussian]}
with labels: {sum: [pca, probe]}
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Four tars of 96 px tiles, and a file of rows."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        step = 12 if "tumour" in name else 8
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number in range(count):
                small = rng.integers(0, 256, (96 // step, 96 // step, 3))
                tile = np.kron(small, np.ones((step, step, 1))).astype(np.uint8)
                data = io.BytesIO()
                Image.fromarray(tile).save(data, "JPEG")
                info = tarfile.TarInfo(f"{number:03}.jpg")
                info.size = data.tell()
                tar.addfile(info, io.BytesIO(data.getvalue()))
    (folder / "rows.yaml").write_text(VARIANTS)
    return folder


def run(material, out, *more):
    fixed = ["--pcam", str(material), "--rows", str(material / "rows.yaml"), "--out", str(out)]
    sizes = ["--fit-tiles", "12", "--stop-tiles", "6", "--max-steps", "2"]
    seeds = ["--seeds", "0", "1", "--counts", "3"]
    return table.main([*fixed, *sizes, *seeds, "--weights", "random", "--device", "cpu", *more])


def lines(out):
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kept(out, row, seed, labels="healthy-only"):
    with np.load(out / "rows" / row / labels / f"seed-{seed}.npz") as file:
        return dict(file)


def by_pairs(scores):
    pairs = [(t > h) + (t == h) / 2 for t in scores["tumour"] for h in scores["healthy"]]
    return float(np.mean(pairs))


@pytest.fixture(scope="module")
def made(material, tmp_path_factory):
    """A finished run of a few rows."""
    out = tmp_path_factory.mktemp("made")
    assert run(material, out, "--detectors", "both", "probe", "with labels", "short", "pca 2") == 0
    return out


def test_areas_are_those_of_the_scores(made):
    found = lines(made)
    assert {(line["row"], line["anomalies"], line["seed"]) for line in found} == {
        (row, count, seed)
        for row, count in (
            ("pca", ""), ("gaussian", ""), ("pca 2", ""), ("short", ""), ("both", ""),
            ("probe", "3"), ("with labels", "3"),
        )
        for seed in "01"
    }  # fmt: skip
    for line in found:
        if line["kind"] != "sum":
            labels = "3-anomalies" if line["anomalies"] else "healthy-only"
            scores = kept(made, line["row"], line["seed"], labels)
            assert {name: len(own) for name, own in scores.items()} == {
                "held_out": 6, "healthy": 9, "tumour": 7,
            }  # fmt: skip
            assert float(line["auroc"]) == pytest.approx(by_pairs(scores))
            assert float(line["tiles_per_second"]) > 0
    assert {line["ended_by"] for line in found if line["row"] == "short"} == {"max-steps"}
    assert {line["options"] for line in found if line["row"] == "pca 2"} == {'{"components": 2}'}


def test_a_sum_is_standardised_by_held_out_healthy_tiles(made):
    for row, other, labels in (("both", "gaussian", "healthy-only"),
                               ("with labels", "probe", "3-anomalies")):  # fmt: skip
        for line in (line for line in lines(made) if line["row"] == row):
            parts = kept(made, "pca", line["seed"]), kept(made, other, line["seed"], labels)
            both = np.mean(
                [
                    (np.concatenate([own["healthy"], own["tumour"]]) - own["held_out"].mean())
                    / own["held_out"].std()
                    for own in parts
                ],
                axis=0,
            )
            expected = roc_auc_score(np.repeat([0, 1], [9, 7]), both)
            assert float(line["auroc"]) == pytest.approx(expected)


def test_mean_and_spread_over_seeds(made):
    areas = [float(line["auroc"]) for line in lines(made) if line["row"] == "pca 2"]
    shown = (made / "table.md").read_text()
    expected = f"| `pca 2` | {np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f} | 2 |"
    assert expected in shown
    probe = [float(line["auroc"]) for line in lines(made) if line["row"] == "probe"]
    assert f"| `probe` | 3 | {np.mean(probe):.3f} ± {np.std(probe, ddof=1):.3f} | 2 |" in shown
    assert "| random | max-steps (2 steps) |" in shown
    assert "Not run: " in shown
    assert "`named`" in shown.partition("Not run: ")[2]
    assert str(made.parent) not in shown
    assert "--pcam material0" in shown


def test_medians_of_times_and_rates_by_hand():
    own = [
        {"row": "x", "seed": seed, "auroc": 0.5 + seed / 10, "failure": None, "weights": None,
         "fit_seconds": {"wall": 9, "processor": fit}, "tiles_scored": 600, "ended_by": "fitted",
         "score_seconds": {"wall": 9, "processor": score}, "steps": 0}
        for seed, (fit, score) in enumerate(((1.0, 1), (30.0, 2), (2.0, 3)))
    ]  # fmt: skip
    cells = table_text.summary(own, clock="processor")
    assert (cells["fit, s"], cells["tiles/s"]) == ("2", "300")
    assert cells["AUROC"] == "0.600 ± 0.100"
    assert table_text.spread([0.25]) == "0.250"


def test_nothing_is_run_again(material, made, monkeypatch):
    before = {name: (made / name).read_bytes() for name in ("table.csv", "table.md")}
    monkeypatch.setattr(table_run, "_figures", None)
    arguments = ("--detectors", "both", "probe", "with labels", "short", "pca 2")
    assert run(material, made, *arguments) == 0
    assert before == {name: (made / name).read_bytes() for name in before}


def test_a_table_of_what_is_finished(material, made, monkeypatch):
    monkeypatch.setattr(table_run, "_figures", None)
    before = (made / "table.md").read_text()
    assert run(material, made, "--table-only") == 0
    # But for the command, the same: nothing more was run.
    start = "\n    pipelines/benchmark_table.py "
    text, _, command = (made / "table.md").read_text().partition(start)
    assert text == before.partition(start)[0]
    assert command.replace("\\", " ").split()[-2:] == ["--device", "cpu"]  # folded, but whole
    assert max(map(len, command.splitlines())) <= 120


def test_a_killed_run_goes_on_to_the_same_scores(material, made, tmp_path, monkeypatch):
    figures, calls = table_run._figures, []

    def killed(case, setting):
        calls.append((case.row.name, case.seed))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return figures(case, setting)

    monkeypatch.setattr(table_run, "_figures", killed)
    with pytest.raises(KeyboardInterrupt):
        run(material, tmp_path, "--detectors", "both")
    assert [line["row"] for line in lines(tmp_path)] == ["gaussian", "gaussian"]
    assert run(material, tmp_path, "--detectors", "both") == 0
    assert calls == [("gaussian", 0), ("gaussian", 1), ("pca", 0), ("pca", 0), ("pca", 1)]
    for row, seed in calls[1:]:
        for part, scores in kept(tmp_path, row, seed).items():
            np.testing.assert_array_equal(scores, kept(made, row, seed)[part])
    assert not list(tmp_path.rglob(".*"))


def test_a_failure_is_reported_and_run_again(material, tmp_path, monkeypatch):
    figures = table_run._figures

    def failing(case, setting):
        if (case.row.name, case.seed) == ("pca", 1):
            raise ValueError("it diverged: a | b")
        return figures(case, setting)

    monkeypatch.setattr(table_run, "_figures", failing)
    assert run(material, tmp_path, "--detectors", "both") == 1
    failures = {(line["row"], line["seed"]): line["failure"] for line in lines(tmp_path)}
    assert failures[("pca", "1")] == "it diverged: a | b"
    assert failures[("both", "1")] == "pca failed"
    assert not any(failures[key] for key in failures if key[1] == "0")
    assert "seed 1: it diverged: a \\| b |" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(table_run, "_figures", figures)
    assert run(material, tmp_path, "--detectors", "both") == 0
    assert not any(line["failure"] for line in lines(tmp_path))


def test_scores_that_are_not_finite_fail(material, tmp_path, monkeypatch):
    cls = registry.load("pca")
    monkeypatch.setattr(cls, "score", lambda self, tiles: np.full(len(tiles), np.nan))
    assert run(material, tmp_path, "--detectors", "pca") == 1
    assert {line["failure"] for line in lines(tmp_path)} == {"scores are not finite"}


def test_figures_of_another_setting_are_refused(material, made, monkeypatch):
    monkeypatch.setattr(table_run, "_figures", None)  # never reached
    before = (made / "table.csv").read_bytes()
    for more in (("--fit-tiles", "11"), ("--max-steps", "3"), ("--input", "48")):
        assert run(material, made, *more) == 2
    # What is not trained step by step has no bounds.
    assert run(material, made, "--detectors", "pca", "--max-steps", "3") == 2
    assert (made / "table.csv").read_bytes() == before


def test_damaged_files_are_refused(material, tmp_path):
    assert run(material, tmp_path, "--detectors", "pca") == 0
    file = tmp_path / "rows/pca/healthy-only/seed-0.npz"
    file.unlink()
    assert run(material, tmp_path, "--detectors", "pca") == 2
    file.with_suffix(".json").write_text("{")
    assert run(material, tmp_path, "--detectors", "pca") == 2
    file.with_suffix(".json").unlink()
    assert run(material, tmp_path, "--detectors", "pca") == 0


def test_what_is_missing_is_said_before_anything_runs(material, tmp_path, monkeypatch):
    monkeypatch.setattr(table_run, "_figures", None)
    assert run(material, tmp_path, "--detectors", "pac") == 2
    assert run(material, tmp_path, "--perceptual-weights", str(tmp_path / "absent")) == 2
    assert run(material, tmp_path, "--write", str(tmp_path / "absent.md")) == 2
    assert run(material, tmp_path, "--evaluations", str(tmp_path)) == 2
    assert run(material, tmp_path, "--score-tiles", "8") == 2  # there are 7 of tumour
    assert run(tmp_path, tmp_path, "--weights", "random") == 2
    assert not list(tmp_path.rglob("*.json"))


def test_named_weights(material, tmp_path):
    assert run(material, tmp_path, "--detectors", "named", "--more-weights", "mine=random") == 0
    assert [line["weights"] for line in lines(tmp_path)] == ["random", "random"]
    assert run(material, tmp_path, "--more-weights", "backbone=random") == 2


def test_the_document(material, tmp_path):
    document = tmp_path / "document.md"
    text = (
        "# A\n\n<!-- begin: table of tiles -->\nold\n<!-- end: table of tiles -->\nB\n"
        "<!-- begin: table of slides -->\nkept\n<!-- end: table of slides -->\nC\n"
    )
    document.write_text(text)
    out = tmp_path / "out"
    assert run(material, out, "--detectors", "pca", "--write", str(document)) == 0
    first = document.read_text()
    made = (out / "table.md").read_text().strip()
    assert first == text.replace("\nold\n", f"\n\n{made}\n\n")
    folder = evaluation(tmp_path / "results", 0.75)
    command = ["--detectors", "pca", "--write", str(document), "--evaluations", f"knn={folder}"]
    assert run(material, out, *command) == 0
    assert "kept" not in document.read_text()
    assert "| knn | 0.750 (0.500–0.900) |" in document.read_text()


def test_what_an_earlier_table_has_is_not_run_again(material, made, tmp_path, monkeypatch, caplog):
    earlier = made / "table.csv"
    monkeypatch.setattr(table_run, "_figures", None)  # never reached
    more = ["--earlier", str(earlier), "--detectors", "probe", "short", "pca 2"]
    assert run(material, tmp_path, *more) == 0
    known = {line["row"]: line for line in lines(made)}
    found = {line["row"]: line for line in lines(tmp_path)}
    # Sums are made of scores, which a table does not hold.
    assert found.keys() == known.keys() - {"both", "with labels"}
    assert "which a table does not hold: both, seed 0" in caplog.text
    assert all(found[name] == known[name] for name in found)

    def rows(out):
        shown = (out / "table.md").read_text().splitlines()
        return {line for line in shown if line.startswith(("| `p", "| `short"))}

    assert rows(tmp_path) == rows(made)
    assert len(rows(made)) == 4


def test_a_figure_of_this_run_stands_before_an_earlier_one(material, made, tmp_path):
    other = tmp_path / "other.csv"
    text = (made / "table.csv").read_text().splitlines(keepends=True)
    other.write_text("".join(line for line in text if line.startswith(("row,", "pca,"))))
    first = next(line["auroc"] for line in lines(made) if line["row"] == "pca")
    other.write_text(other.read_text().replace(first, "0.125", 1))
    found = {}
    for name, out in (("this", made), ("none", tmp_path / "none")):
        assert run(material, out, "--table-only", "--earlier", str(other)) == 0
        found[name] = [line["auroc"] for line in lines(out) if line["row"] == "pca"]
    assert "0.125" not in found["this"]
    assert found["none"][0] == "0.125"
    assert found["none"][1] == found["this"][1]


def test_earlier_figures_of_another_setting_are_left_out(material, made, tmp_path, caplog):
    earlier = tmp_path / "earlier.csv"
    text = (made / "table.csv").read_text()
    earlier.write_text(text.replace('{""components"": 2}', '{""components"": 3}'))
    more = ["--table-only", "--earlier", str(earlier)]
    assert run(material, tmp_path, *more) == 0
    assert {line["row"] for line in lines(tmp_path)} == {"pca", "gaussian", "short", "probe"}
    made_otherwise = "left out: made otherwise than today"
    assert f"{made_otherwise}: options: pca 2, seed 0; pca 2, seed 1" in caplog.text
    caplog.clear()
    assert run(material, tmp_path, *more, "--max-steps", "3", "--seeds", "0") == 0
    assert {line["row"] for line in lines(tmp_path)} == {"pca", "gaussian", "probe"}
    assert re.search(f"{made_otherwise}: .*budget.*: short, seed 0", caplog.text)
    said = [record.message for record in caplog.records if "left out" in record.message]
    reasons = [text.split(" left out: ")[1].rsplit(": ", 1)[0] for text in said]
    assert len(reasons) == len(set(reasons)) < 8  # one line each, whatever it leaves out
    [unknown] = [text for text in said if "the table has no such" in text]
    assert "seed 1" in unknown


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("setting", "sitting", "no column setting"),
        ("pca,healthy-only,,0,", "pca,healthy-only,,zero,", "seed is 'zero', not a whole number"),
        ("pca,healthy-only,,0,", "pca,healthy-only,,0,7", "neither figures nor a failure"),
        ('"{""components"": 2}"', "components", "are not JSON"),
    ],
)
def test_damaged_earlier_tables_are_refused(material, made, tmp_path, caplog, old, new, message):
    earlier = tmp_path / "earlier.csv"
    text = (made / "table.csv").read_text()
    assert old in text
    earlier.write_text(text.replace(old, new, 1))
    assert run(material, tmp_path / "out", "--table-only", "--earlier", str(earlier)) == 2
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_the_table_of_published_systems_is_that_of_the_kept_figures():
    figures = table_text.read_csv(ROOT / "docs/published-systems.csv")
    document = (ROOT / "docs/benchmarks.md").read_text()
    place = document.partition("<!-- begin: table of published systems -->")[2]
    made = table_text.as_markdown(figures, clock="processor").strip()
    table_alone = place.partition("\n\nNot run")[0].partition("\n\nNot measured")[0]
    assert table_alone.strip() == made
    assert table_text.as_csv(figures) == (ROOT / "docs/published-systems.csv").read_text()


@pytest.mark.parametrize("text", ["", "<!-- begin: t -->", "<!-- end: t --><!-- begin: t -->",
                                  2 * "<!-- begin: t --><!-- end: t -->"])  # fmt: skip
def test_a_document_without_one_place_is_refused(text):
    with pytest.raises(InputError, match="once, in this order"):
        table_text.replaced(text, "t", "new")


def evaluation(folder, area):
    """Write the part of an evaluation that the table shows."""
    figure = {"value": area, "low": 0.5, "high": 0.9}
    froc = {"score": None, "undefined": "no tumour is marked"}
    dataset = {"score": 0.25, "low": 0, "high": 1}
    values = {
        "slide_auc": figure, "tile_auroc": {"value": 0.9, "low": None, "high": None},
        "froc": {"camelyon16-2016": froc, "camelyon16-dataset": dataset},
        "counts": {"tumour_slides": 6, "normal_slides": 4},
    }  # fmt: skip
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(values))
    return folder


def test_the_table_of_slides(tmp_path):
    folder = evaluation(tmp_path / "results_dpa", 0.75)
    shown = "0.750 (0.500–0.900) | undefined (no tumour is marked) | 0.250 (0.000–1.000) | 0.900 |"
    found = evaluation_table.table([f"dpa={folder}", str(folder)]).splitlines()
    assert found[2:4] == [f"| dpa | {shown}", f"| results_dpa | {shown}"]
    assert "6 tumour and 4 normal slides" in found[-1]
    script = ROOT / "pipelines/evaluation_table.py"
    done = subprocess.run(
        [sys.executable, script, f"dpa={folder}"], capture_output=True, text=True, check=True
    )
    assert f"| dpa | {shown}" in done.stdout


def test_healthy_tiles_of_seeds(material):
    path = material / "train_normal.tar"
    held, first = pcam.held_out_and_drawn(path, stop=6, fit=12, seed=0)
    again, other = pcam.held_out_and_drawn(path, stop=6, fit=12, seed=1)
    np.testing.assert_array_equal(held, again)

    def tiles(found):
        return {tile.tobytes() for tile in found}

    assert (len(tiles(held)), len(tiles(first)), len(tiles(other))) == (6, 12, 12)
    assert tiles(first) != tiles(other)
    # The first third of the tar, and the rest: neighbours are not on both sides.
    third = tiles(pcam.read_named(path, pcam.tile_names(path)[:10]))
    assert tiles(held) < third
    assert not third & (tiles(first) | tiles(other))
    with pytest.raises(InputError, match="fewer than"):
        pcam.held_out_and_drawn(path, stop=6, fit=25, seed=0)


def test_labelled_tiles_of_seeds():
    tiles = np.arange(10)
    few, rest = pcam.drawn_anomalies(tiles, 3, seed=1)
    more, _ = pcam.drawn_anomalies(tiles, 6, seed=1)
    assert list(more[:3]) == list(few)
    assert sorted([*few, *rest]) == list(range(10))
    assert list(few) != list(pcam.drawn_anomalies(tiles, 3, seed=2)[0])
    with pytest.raises(InputError, match="there are 10"):
        pcam.drawn_anomalies(tiles, 11, seed=0)


def test_rows_that_are_shipped():
    rows = table_rows.read_rows(table.ROWS)
    by_name = {row.name: row for row in rows}
    assert by_name.keys() > set(registry.names())
    assert [by_name[name].weights for name in ("dpa", "piad", "knn")] == [
        "perceptual", "perceptual", "backbone",
    ]  # fmt: skip
    kinds = [row.kind for row in rows]
    assert kinds == sorted(kinds, key=table_rows.KINDS.index)
    assert by_name["dpa"].kind == by_name["deep-svdd"].kind == "trained"
    assert by_name["outlier-exposure"].kind == by_name["devnet"].kind == "labelled"
    for name in {*registry.names_using_anomalies(), "ensemble devnet"} - {"ensemble"}:
        assert len(table_rows.cases(by_name[name], counts=[20, 100], seeds=[0, 1, 2])) == 6


def test_published_systems_are_all_measured_or_have_a_reason():
    rows, left_out = table_rows.read_published(table.PRESETS)
    assert sorted([*(row.name for row in rows), *left_out]) == list(preset_names())
    by_name = {row.name: row for row in rows}
    assert {row.kind for row in rows} == {"published"}
    assert by_name["dfkde"].options["backbone"] == "squeezenet1_1"
    assert by_name["dfkde"].options["pca_components"] == 16, "the preset's own"
    assert by_name["dfr"].weights == "perceptual"
    # Trainings have bounds, with labels or without; what is fitted in closed form has none.
    assert [by_name[name].bounded for name in ("ae-l2", "outlier-exposure", "padim")] == [
        True, True, False,
    ]  # fmt: skip


def test_what_published_systems_learn_from():
    by_name = {row.name: row for row in table_rows.read_published(table.PRESETS)[0]}
    kinds = {name: row.labels for name, row in by_name.items() if row.labels != "tiles"}
    assert kinds == {"abmil": "slides", "chowder": "slides", "mil": "slides", "doc": "digits"}
    # All digits are given, whatever number of tumour tiles is asked for.
    for name, count in (("mil", 20), ("doc", None), ("devnet", 20), ("ae-l2", None)):
        (case,) = table_rows.cases(by_name[name], counts=[20], seeds=[0])
        assert case.anomalies == count
    assert {name for name, row in by_name.items() if row.trimming} == {"itsr"}


def test_drawn_slides_hold_tumour_among_healthy_tiles(material):
    tumour = np.full((5, 96, 96, 3), 7, np.uint8)
    needed = pcam.healthy_among(5)
    assert needed == 3 * 25 - 5
    (kind,) = pcam.as_slides(tumour, np.zeros((needed, 96, 96, 3), np.uint8)).types
    tiles = np.concatenate(list(kind.tiles.ordered(8)))
    found = {}
    for slide, tile in zip(kind.slides, tiles, strict=True):
        found.setdefault(slide, []).append(bool(tile.any()))
    assert {slide: (len(own), sum(own)) for slide, own in found.items()} == {
        "0": (25, 2), "1": (25, 2), "2": (25, 1),
    }  # fmt: skip
    # The healthy ones are neither fitted on nor held out.
    tar = material / "train_normal.tar"
    sizes = {"stop": 6, "fit": 12, "seed": 1}
    taken = np.concatenate(pcam.held_out_and_drawn(tar, **sizes))
    others = pcam.left_over(tar, 8, **sizes)
    assert not {tile.tobytes() for tile in taken} & {tile.tobytes() for tile in others}
    assert len({tile.tobytes() for tile in others}) == 8
    with pytest.raises(InputError, match="has 8 tiles that nothing is fitted on, fewer than 9"):
        pcam.left_over(tar, 9, **sizes)


def test_digits_are_the_whole_set_in_ten_labels():
    types = pcam.digits(64).types
    assert [kind.name for kind in types] == [f"digit {number}" for number in range(10)]
    assert sum(len(kind.tiles) for kind in types) == 1_797
    first = next(iter(types[0].tiles.ordered(1)))[0]
    assert first.shape == (64, 64, 3)
    assert first.max() > 200
    assert first.min() == 0


def test_a_trimming_leaves_tiles_out_of_all(tmp_path):
    rng = np.random.default_rng(0)
    usual = rng.integers(100, 140, (9, 64, 64, 3)).astype(np.uint8)
    strange = np.kron(rng.integers(0, 2, (3, 4, 4, 3)) * 255, np.ones((1, 16, 16, 1)))
    mixed = np.insert(usual, [2, 5, 9], strange.astype(np.uint8), axis=0)
    context = FitContext(
        seed=0, device=torch.device("cpu"), folder=tmp_path, weights="random", quiet=True
    )
    row = table_rows.Row("x", "published", trimming=TrimmingOptions(share=0.25, rounds=2))
    scores = []
    for tiles, own in ((mixed, row), (usual, table_rows.Row("x", "published"))):
        detector, report = table_run._fitted(unfitted, tiles, usual, row=own, context=context)
        assert report.ended_by == "fitted"
        scores.append(detector.score(usual))
    np.testing.assert_array_equal(*scores)


def unfitted():
    cls = registry.load("gaussian")
    return cls(cls.Options(), InputSpec(TilePx(64), pcam.PCAM_MPP))


def test_published_systems_in_a_table_of_their_own(material, tmp_path):
    document = tmp_path / "document.md"
    marks = "<!-- begin: table of published systems -->\n<!-- end: table of published systems -->"
    document.write_text(marks)
    changed = tmp_path / "presets.yaml"
    changed.write_text(
        "ae-l2: {options: {batch: 4}, score_tiles: 5}\n"
        "dfm: {options: {backbone: squeezenet1_1, layers: null}}\n"
        "mil: {left_out: no slides}\nabmil: {left_out: no slides}\n"
    )
    out = tmp_path / "out"
    more = ["--presets", "--rows", str(changed), "--write", str(document)]
    assert run(material, out, *more, "--detectors", "ae-l2", "dfm") == 0
    found = lines(out)
    assert {(line["row"], line["kind"]) for line in found} == {
        ("ae-l2", "published"), ("dfm", "published"),
    }  # fmt: skip
    assert {len(own) for own in kept(out, "ae-l2", 0).values()} == {5}
    assert len(kept(out, "dfm", 0)["healthy"]) == 9
    for line in found:
        assert float(line["auroc"]) == pytest.approx(by_pairs(kept(out, line["row"], line["seed"])))
    text = document.read_text()
    assert "**Published systems**" in text
    assert "| 15 | none | max-steps (2 steps) |" in text
    assert "| 22 | random | fitted |" in text
    assert "Not measured:\n\n- `abmil`, `mil`: no slides." in text
    assert "`alocc`" in text.partition("Not run: ")[2]
    # A document of the other table has no place for this one.
    document.write_text(marks.replace("published systems", "tiles"))
    assert run(material, out, *more, "--table-only") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ganomali: {left_out: because}", "no preset 'ganomali'"),
        ("dfm: {options: {layer: null}}", "unknown key"),
        ("dfm: {score_tiles: 0}", "greater than 0"),
    ],
)
def test_changes_of_presets_that_are_refused(tmp_path, text, message):
    (tmp_path / "presets.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        table_rows.read_published(tmp_path / "presets.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("knn: {detector: knn}", "is the name of a detector"),
        ("a: {detector: knn, sum: [pca]}", "either a detector or a sum"),
        ("a: {options: {neighbours: 2}}", "either a detector or a sum"),
        ("a: {sum: [knn, b]}", "'b' is no row of a detector above it"),
        ("a: {sum: [knn]}\nb: {sum: [a]}", "'a' is no row of a detector above it"),
        ("a: {detector: knn, option: {}}", "unknown key"),
        ("a: {detector: knn, options: {neighbour: 2}}", "unknown key"),
        ("a: knn", "does not hold a mapping"),
    ],
)
def test_rows_that_are_refused(tmp_path, text, message):
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        table_rows.read_rows(tmp_path / "rows.yaml")


def test_minutes_of_a_row_are_its_own(material, tmp_path):
    rows = tmp_path / "rows.yaml"
    rows.write_text(
        "short: {detector: student-teacher, options: {batch: 2}}\n"
        "long: {detector: student-teacher, options: {batch: 2}, max_minutes: 7}\n"
        "closed: {detector: pca, max_minutes: 7}\n"
    )
    out = tmp_path / "out"
    more = ["--rows", str(rows), "--max-minutes", "5", "--detectors", "short", "long", "closed"]
    assert run(material, out, *more) == 0
    found = {
        path.parts[-3]: json.loads(path.read_text())["made_of"]["budget"]
        for path in out.glob("rows/*/*/seed-0.json")
    }
    assert found == {"short": [2, 5], "long": [2, 7], "closed": None}
    rows.write_text("long: {detector: pca, max_minutes: 0}\n")
    assert run(material, out, "--rows", str(rows)) == 2


def test_a_training_on_a_cpu_is_bounded_by_minutes_of_the_processor():
    """Else it has fewer steps where others use the machine."""
    wall = time.monotonic
    with pytest.raises(KeyError), table_run._minutes_of(torch.device("cpu")):
        assert time.monotonic is time.process_time
        raise KeyError
    assert time.monotonic is wall
    with table_run._minutes_of(torch.device("cuda")):
        assert time.monotonic is wall
