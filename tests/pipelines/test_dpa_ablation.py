"""The pipeline of the ablation: its rows, its table, what is run again and what is not."""

import csv
import importlib.util
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import wsiad
from support.tiny_dpa import tiny_vgg
from wsiad.core.config import build, read_yaml
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.learning.detector import InputSpec
from wsiad.verbs.train import TrainConfig

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("dpa_ablation", ROOT / "pipelines/dpa_ablation.py")
ablation = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ablation)

PL, ADVERSARIAL = "PL", "PL + 1 adv"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Three stores of 64 px tiles, and weights."""
    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    for name, label, count in (
        ("train", "normal", 24),
        ("healthy", "normal", 9),
        ("t", "tumor", 7),
    ):
        (folder / "tiles" / name).mkdir(parents=True)
        for number in range(count):
            tile = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            Image.fromarray(tile).save(folder / "tiles" / name / f"{number}.png")
        wsiad.import_tiles(
            sources=folder / "tiles" / name, out=folder / name, mpp=0.972, label=label, quiet=True
        )
    save_file(tiny_vgg(), folder / "tiny.safetensors")
    return folder


def run(material, out, *more, tumour="t"):
    stores = [str(material / name) for name in ("train", "healthy", tumour)]
    fixed = ["--out", str(out), "--weights", str(material / "tiny.safetensors"), "--quiet"]
    bounds = ["--max-steps", "9", "--set", "batch=2", "--set", "layers={relu2_2: 1.0}"]
    return ablation.main([*stores, *fixed, *bounds, "--seeds", "0", "1", *more])


def table(out):
    with (out / "ablation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_and_their_spread_and_nothing_run_again(material, tmp_path, monkeypatch):
    assert run(material, tmp_path, "--rows", PL, ADVERSARIAL) == 0
    lines = table(tmp_path)
    assert [(line["row"], line["seed"]) for line in lines] == [
        (row, seed) for row in (PL, ADVERSARIAL) for seed in "01"
    ]
    assert {(line["steps"], line["ended_by"], line["failure"]) for line in lines} == {
        ("9", "max-steps", "")
    }
    # AUROC from the scores that were written, by counting pairs.
    for line in lines:
        name = "train-dpa" if line["row"] == PL else "train-pl-adversarial-1"
        scores = {}
        for truth in ("normal", "tumour"):
            path = tmp_path / name / f"seed-{line['seed']}" / truth / "scores.csv"
            with path.open(newline="") as file:
                scores[truth] = [float(entry["score"]) for entry in csv.DictReader(file)]
        pairs = [(t > n) + (t == n) / 2 for t in scores["tumour"] for n in scores["normal"]]
        assert float(line["auroc"]) == pytest.approx(np.mean(pairs))
    shown = (tmp_path / "ablation.md").read_text()
    areas = [100 * float(line["auroc"]) for line in lines[:2]]
    spread = f"{statistics.mean(areas):.1f} ± {abs(areas[0] - areas[1]) / 2**0.5:.1f}"
    assert f"| PL | {spread} | 2 | 9 | 92.7 ± 0.4 |" in shown
    monkeypatch.setattr(wsiad, "train", None)
    assert run(material, tmp_path, "--rows", PL, ADVERSARIAL) == 0
    assert table(tmp_path) == lines
    assert (tmp_path / "ablation.md").read_text() == shown


def test_growing_is_shortened_to_reach_its_last_stage(material, tmp_path):
    assert run(material, tmp_path, "--rows", "PL, progressive growing") == 0
    assert [line["steps"] for line in table(tmp_path)] == ["9", "9"]
    folder = tmp_path / "train-dpa-growing" / "seed-0" / "run"
    stages = json.loads((folder / "run.json").read_text())["notes"]["stages"]
    assert [stage["first_step"] for stage in stages] == [0, 2, 4, 6, 8]
    assert {stage["batch"] for stage in stages} == {2}


def test_a_failure_is_reported_and_run_again(material, tmp_path, monkeypatch):
    train = wsiad.train

    def failing(**values):
        if values["seed"] == 0:
            raise wsiad.core.errors.DetectorError("the training diverged: a | b")
        return train(**values)

    monkeypatch.setattr(wsiad, "train", failing)
    assert run(material, tmp_path, "--rows", PL) == 1
    assert [line["failure"] for line in table(tmp_path)] == ["the training diverged: a | b", ""]
    assert "seed 0: the training diverged: a \\| b |" in (tmp_path / "ablation.md").read_text()
    monkeypatch.setattr(wsiad, "train", train)
    assert run(material, tmp_path, "--rows", PL) == 0
    assert all(line["auroc"] for line in table(tmp_path))


def test_other_setting_is_refused(material, tmp_path, monkeypatch):
    monkeypatch.setattr(wsiad, "train", None)  # never reached
    (tmp_path / "setting.json").write_text(json.dumps({"stores": []}))
    assert run(material, tmp_path, "--rows", PL) == 2
    assert not (tmp_path / "ablation.csv").exists()
    assert run(material, tmp_path / "other", tumour="nothing here") == 2


def test_healthy_tiles_as_tumour_are_refused(material, tmp_path):
    assert run(material, tmp_path, "--rows", PL, tumour="healthy") == 1
    assert "is not labelled tumour" in table(tmp_path)[0]["failure"]


@pytest.mark.parametrize("row", ablation.ROWS, ids=lambda row: row.config)
def test_published_rows(row):
    config = build(
        TrainConfig, {"store": "s", "out": "o", **read_yaml(ablation.CONFIGS / row.config)}
    )
    options = build(DpaOptions, config.options)
    detector = DeepPerceptualAutoencoder(options, InputSpec(TilePx(64), Mpp(0.972)))
    if row.name.startswith(("L1,", "PL,")) and "selection" in row.name:
        widths = {"L1": (32, 46_000, 2e-4, 1.0), "PL": (64, 77_000, 1e-4, 0.0)}[row.name[:2]]
        found = (options.channels, config.max_steps, options.learning_rate, options.image_weight)
        assert (found, options.latent_px) == (widths, 16)
        assert options.layers == ({} if row.name[:2] == "L1" else {"relu4_2": 1.0})
    elif "growing" not in row.name:
        assert (options.channels, options.latent_px, config.max_steps) == (4, 8, 34_666)
        weight = dict.fromkeys(("adv", "L1"), 0.0)
        for term in row.name.split(" + ")[1:]:
            weight[term.split()[1]] = float(term.split()[0])
        assert (options.adversarial_weight, options.image_weight) == (weight["adv"], weight["L1"])
        assert options.learning_rate == (2e-4 if weight["adv"] else 1e-3)
    assert (options.adversarial.gradient_penalty, options.adversarial.drift) == (10, 1e-3)
    assert detector.options.batch == 128
