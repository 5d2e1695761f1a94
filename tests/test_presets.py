"""Every preset of configs/zoo is complete, and is fitted, scores, is stored and loaded again.

Presets that are too large for seconds have smaller options in tests/presets, which are merged over
their own.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from wsiad.core.config import build, read_yaml
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import (
    AnomalousTiles,
    AnomalyType,
    Budget,
    FitContext,
    HealthyTiles,
    InputSpec,
)
from wsiad.runs.healthy_tiles import TrainingOptions
from wsiad.runs.presets import load_preset, preset_folder, preset_names
from wsiad.runs.run import RunFolder
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import tissue_tiles

CPU = torch.device("cpu")
STEPS = 4  # some parts of a training take one, such as a stage or a critic
SMALLER = Path(__file__).parent / "presets"
SLOW = {"cflow"}  # presets that take more than a few seconds even so
# Names by which a system is known, but not its paper's own.
ALIASES = {"texture-gmm": "texture-gmm"}
PRESETS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in preset_names()
]


def small_options(name: str, preset) -> dict:
    path = SMALLER / f"{name}.yaml"
    return {**preset.options, **(read_yaml(path) if path.is_file() else {})}


def fit(cls, options, folder, *, size):
    detector = cls(options, InputSpec(TilePx(size), Mpp(1)))
    healthy, held_out = (ArrayTiles(tissue_tiles(24, size + 8, seed=seed)) for seed in (1, 2))
    learns = cls.learns_from_anomalies(options)
    kinds = tuple(
        AnomalyType(
            name,
            ArrayTiles(tissue_tiles(8, size + 8, seed=seed, strange=True)),
            tuple(f"{name}-{number % 2}" for number in range(8)),
        )
        for name, seed in (("other", 6), ("strange", 3))
    )
    context = FitContext(
        seed=1,
        device=CPU,
        folder=folder,
        budget=Budget(max_steps=STEPS),
        weights="random",
        quiet=True,
        anomalies=AnomalousTiles(kinds) if learns else None,
    )
    return detector, detector.fit(HealthyTiles(healthy, held_out), context)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_fitted_scores_is_stored_and_loaded(name, tmp_path):
    preset = load_preset(name)
    cls = registry.load(preset.detector)
    options = build(cls.Options, small_options(name, preset), source=name)
    size = cls.input_size(options, tile_px=64, mpp=1)
    detector, report = fit(cls, options, tmp_path, size=size)
    assert report.steps <= STEPS
    tiles = np.concatenate(
        [tissue_tiles(2, size, seed=4), tissue_tiles(1, size, seed=5, strange=True)]
    )
    places = detector.score_map(tiles)
    assert places.shape[0] == 3
    assert places.shape[1] == places.shape[2]
    assert np.isfinite(places).all()
    run = RunFolder(tmp_path)
    run.save_detector(detector, name=preset.detector)
    again = run.load_detector(CPU)
    np.testing.assert_array_equal(again.score_map(tiles), places)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_complete_and_has_its_usual_name(name):
    preset = load_preset(name)
    cls = registry.load(preset.detector)
    build(cls.Options, preset.options, source=name)
    system = re.sub(r"\(.*?\)", "", preset.about.system).lower()
    for letter, word in (("α", "alpha"), ("β", "beta")):
        system = system.replace(letter, word)
    usual = re.sub(r"[^a-z0-9]", "", ALIASES.get(name, system))
    short = name.replace("-", "")
    assert short.startswith(usual) or short in usual, f"{name} is not the name of {system}"
    assert preset.about.cited, "the paper has no first author or year"
    first = (preset_folder() / f"{name}.yaml").read_text("utf-8").splitlines()[0]
    assert first.startswith("# "), "the file begins with a comment of one line"


@pytest.mark.parametrize("name", preset_names())
def test_the_file_of_a_preset_is_a_configuration_too(name):
    values = {"store": "s", "out": "o"}
    by_file = build(TrainingOptions, {**values, **read_yaml(preset_folder() / f"{name}.yaml")})
    by_name = build(TrainingOptions, {**values, "preset": name})
    named = by_name.about.model_copy(update={"preset": ""})
    assert by_name.model_copy(update={"about": named}) == by_file


@pytest.mark.parametrize("name", preset_names())
def test_sentences_of_a_preset_are_read_as_they_are_written(name):
    """Colons, quotes and # mean something to YAML: none of them may cut or change a sentence."""
    about = load_preset(name).about
    read = {about.system, about.paper, *about.published, *about.adapted}
    for line in (preset_folder() / f"{name}.yaml").read_text("utf-8").splitlines():
        if written := re.fullmatch(r"(?:    -|  (?:system|paper):) (?P<text>[^|>].*)", line):
            text = written["text"].strip()
            quoted = re.fullmatch(r'"([^"\\]*)"', text)
            assert (quoted[1] if quoted else text) in read, line


def test_smaller_options_belong_to_presets():
    assert {path.stem for path in SMALLER.iterdir()} <= set(preset_names())


def named_in_the_table() -> set[str]:
    """Return the presets that the table of all systems names as such."""
    text = (preset_folder().parents[1] / "docs" / "systems.md").read_text("utf-8")
    table = text.split("## Every system of the surveys")[1]
    cells = [line.strip("| ").split(" | ")[1] for line in table.splitlines() if " | " in line]
    said = [re.split(r"not built|nearest|does not apply|detector|need ", cell)[0] for cell in cells]
    codes = [code for cell in said for code in re.findall(r"`([^`]+)`", cell)]
    return {code for code in codes if re.fullmatch(r"[a-z0-9-]+", code) and code[0] != "-"}


def test_the_table_of_all_systems_names_every_preset_and_no_other():
    assert named_in_the_table() == set(preset_names())
