"""Presets: how they are found, checked, merged with what is set, and recorded in a run."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import wsiad
from support.builders import stained, write_tiff
from wsiad.core.config import build, read_yaml, resolve
from wsiad.core.errors import ConfigError
from wsiad.learning.training_options import TrimmingOptions
from wsiad.runs import presets
from wsiad.runs.healthy_tiles import TrainingOptions
from wsiad.runs.presets import About, load_preset, preset_names, with_preset
from wsiad.runs.run import RunFolder
from wsiad.verbs.embed import EmbedConfig

ROOT = Path(__file__).parents[2]
ABOUT = {
    "system": "Tiny",
    "paper": "Somebody, 2020",
    "published": ["all"],
    "adapted": [],
    "gpu": False,
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder of two presets in place of the real ones."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    options = {"places": 2, "shrinkage": 1.0}
    for name in ("tiny", "other"):
        values = {"about": ABOUT, "detector": "gaussian", "options": options}
        (folder / f"{name}.yaml").write_text(json.dumps(values))
    monkeypatch.setattr(presets, "_INSTALLED", folder)
    return folder


def training(**values):
    return build(TrainingOptions, {"store": "s", "out": "o", **values})


def test_a_preset_sets_method_and_options():
    found = training(preset="padim")
    assert (found.preset, found.detector) == (None, "padim")
    assert found.options == load_preset("padim").options
    assert (found.about.system, found.about.preset, found.about.replaced) == ("PaDiM", "padim", ())


def test_options_replace_those_of_the_preset_one_by_one(tiny):
    found = training(preset="tiny", options={"places": 4, "shrinkage": 1, "contrast": 2})
    assert found.options == {"places": 4, "shrinkage": 1, "contrast": 2}
    assert found.about.replaced == ("places", "contrast")


def test_weights_of_a_preset_can_be_replaced(tiny):
    path = tiny / "tiny.yaml"
    path.write_text(json.dumps(read_yaml(path) | {"weights": "random"}))
    assert training(preset="tiny").weights == "random"
    assert training(preset="tiny", weights="wsiad").weights == "wsiad"


def test_options_of_trimming_replace_those_of_the_preset_one_by_one(tiny):
    path = tiny / "tiny.yaml"
    trimming = {"share": 0.05, "by": "latent"}
    path.write_text(json.dumps(read_yaml(path) | {"trimming": trimming}))
    assert training(preset="tiny").trimming == build(TrimmingOptions, trimming)
    found = training(preset="tiny", trimming={"share": 0.1, "by": "latent"})
    assert (found.trimming.share, found.trimming.by) == (0.1, "latent")
    assert found.about.replaced == ("trimming.share",)
    assert training(preset="tiny", trimming={"share": 0.1}) == found
    with pytest.raises(ConfigError, match="trimming"):
        training(preset="tiny", trimming=3)
    for none in (0, 0.0, "0", "0.0"):
        found = training(preset="tiny", trimming={"share": none})
        assert found.trimming == TrimmingOptions()
        assert found.about.replaced == ("trimming.share",)
    with pytest.raises(ConfigError, match="folds does nothing with share: 0"):
        training(preset="tiny", trimming={"share": 0, "folds": 2})


def test_a_preset_that_trims_is_refused_where_nothing_is_trimmed(tiny):
    path = tiny / "tiny.yaml"
    path.write_text(json.dumps(read_yaml(path) | {"trimming": {"share": 0.05}}))
    with pytest.raises(ConfigError) as error:
        build(EmbedConfig, {"store": "s", "preset": "tiny"})
    assert "tiny leaves out tiles of the fit, which only wsiad train does" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("paper", "cited"),
    [
        ("Baur et al., Deep Autoencoding Models, BrainLes 2018", "Baur 2018"),
        ("Oza & Patel, One-Class CNN, IEEE 2019", "Oza 2019"),
        ("van den Oord, Vinyals & Kavukcuoglu, Discrete, NeurIPS 2017", "van den Oord 2017"),
        ("Golan & El-Yaniv, X, arXiv 1905.10917, 2018; setting of Y, 2021", "Golan 2018"),
        ("Salehi et al., Puzzle-AE, arXiv 2008.12959", ""),
        ("A paper without its authors", ""),
    ],
)
def test_first_author_and_year_are_read_from_the_publication(paper, cited):
    assert build(About, {**ABOUT, "paper": paper}).cited == cited


def test_the_resolved_configuration_is_complete_without_the_preset(tiny, tmp_path):
    from wsiad.core.config import write_config

    found = training(preset="tiny")
    write_config(tmp_path / "config.yaml", found)
    (tiny / "tiny.yaml").unlink()
    assert resolve(TrainingOptions, file=tmp_path / "config.yaml", flags={}) == found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"preset": "tiy"}, "there is no preset 'tiy' (did you mean 'tiny'?)"),
        ({"preset": "../tiny"}, "there is no preset '../tiny'"),
        ({"preset": "knn"}, "there is no preset 'knn', which is a method. Set --detector knn"),
        ({"preset": "tiny", "detector": "knn"}, "tiny is a setting of gaussian, not of knn"),
        ({"preset": "other", "about": ABOUT}, "with a configuration that describes a system"),
        ({"preset": 3}, "preset: 3 is not allowed"),
        ({"preset": "tiny", "options": 3}, "options: 3 is not allowed"),
    ],
)
def test_what_conflicts_is_refused_in_one_line(tiny, values, words):
    with pytest.raises(ConfigError) as error:
        training(**values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_method_of_the_preset_can_be_named_too(tiny):
    assert training(preset="tiny", detector="gaussian") == training(preset="tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"about": None}, "about"),
        ({"about": {**ABOUT, "system": ""}}, "about.system"),
        ({"about": {**ABOUT, "paper": "two\nlines"}}, "about.paper"),
        ({"about": {**ABOUT, "paper": "x" * 501}}, "about.paper"),
        ({"about": {**ABOUT, "published": []}}, "about.published"),
        ({"about": {**ABOUT, "adapted": ["x"] * 51}}, "about.adapted"),
        ({"about": {**ABOUT, "adapted": [["x"]]}}, "about.adapted"),
        ({"about": {**ABOUT, "gpu": "yes"}}, "about.gpu"),
        ({"about": {**ABOUT, "year": 2020}}, "about.year: unknown key"),
        ({"about": {k: v for k, v in ABOUT.items() if k != "gpu"}}, "about.gpu: is required"),
        ({"detector": None}, "detector"),
        ({"options": ["x"]}, "options"),
        ({"store": "s"}, "store: unknown key"),
    ],
)
def test_a_damaged_preset_is_refused(tiny, change, words):
    values = {"about": ABOUT, "detector": "gaussian", **change}
    (tiny / "tiny.yaml").write_text(json.dumps(values))
    with pytest.raises(ConfigError) as error:
        load_preset("tiny")
    assert words in str(error.value)
    assert str(tiny / "tiny.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_colon_in_a_sentence_is_a_part_of_it():
    values = {**ABOUT, "adapted": [{"64 px windows": "one more stage"}, "b"], "published": "all"}
    about = build(About, values)
    assert about.adapted == ("64 px windows: one more stage", "b")
    assert (about.published, about.as_published) == (("all",), "adapted")
    assert build(About, ABOUT).as_published == "as published"


def test_a_run_that_holds_slides_out_is_adapted_where_all_were_fitted_on():
    whole = build(About, {**ABOUT, "all_slides": True})
    assert whole.of_run(held_out=False) == whole
    held_out = whole.of_run(held_out=True)
    assert held_out.as_published == "adapted"
    assert "healthy slides are held out" in held_out.adapted[-1]
    assert held_out.of_run(held_out=True) == held_out
    other = build(About, ABOUT)
    assert other.of_run(held_out=True) == other


def test_presets_that_fit_on_all_slides_say_so():
    whole = {name for name in preset_names() if load_preset(name).about.all_slides}
    assert {"dpa-camelyon16", "piad", "deep-geo"} <= whole
    for name in whole:
        preset = load_preset(name)
        assert preset.options.get("keep", "last") == "last", name


def test_without_a_preset_nothing_changes():
    assert with_preset({"detector": "knn"}, fields=()) == {"detector": "knn"}
    assert training(detector="knn").about is None


def test_presets_are_in_the_checkout():
    assert presets.preset_folder() == ROOT / "configs" / "zoo"
    assert "padim" in preset_names()
    assert list(preset_names()) == sorted(preset_names())


def test_an_installation_without_presets_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "_CHECKOUT", tmp_path / "gone")
    with pytest.raises(ConfigError, match="gone holds no presets"):
        load_preset("padim")


BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


def test_the_wheel_holds_the_presets_and_finds_them(tmp_path):
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / built.stdout.split()[-1]) as archive:
        archive.extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from wsiad.runs.presets import load_preset, preset_folder, preset_names\n"
        "print(preset_folder(), *preset_names()); load_preset('padim')"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-c", code, str(site)],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert found == [str(site / "wsiad" / "zoo"), *preset_names()]


def test_a_run_records_the_preset(tiny, tmp_path):
    for number in range(3):
        write_tiff(tmp_path / f"{number}.tif", stained(160, 208, seed=number), mpp=0.5, levels=1)
    wsiad.tile(slides=sorted(tmp_path.glob("*.tif")), out=tmp_path / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    values = {
        "store": tmp_path / "store",
        "out": tmp_path / "run",
        "preset": "tiny",
        "weights": "random",
    }
    done = wsiad.train(**values, options={"places": 1}, quiet=True)
    assert "preset tiny: Tiny, as published; replaced: places" in done.summary
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["notes"]["about"] == {
        **ABOUT, "all_slides": False, "preset": "tiny", "replaced": ["places"],
    }  # fmt: skip
    again = wsiad.train(**values, options={"places": 1}, quiet=True)
    assert "complete already" in again.summary
    given = yaml.safe_load((tiny / "tiny.yaml").read_text())
    given["about"]["all_slides"] = True
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(given))
    held = wsiad.train(**values | {"out": tmp_path / "held"}, quiet=True)
    assert "preset tiny: Tiny, adapted\nadapted: healthy slides are held out" in held.summary
    record = RunFolder(tmp_path / "held").record()
    assert "held out" in record.notes["about"]["adapted"][-1]
    assert record.method.endswith("(Tiny; adapted: slides held out)")
    for number in range(3, 6):
        write_tiff(tmp_path / f"{number}.tif", stained(160, 208, seed=number), mpp=0.5, levels=1)
    wsiad.tile(slides=[tmp_path / f"{n}.tif" for n in (3, 4, 5)], out=tmp_path / "other", mpp=0.5,
               tile=48, tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    values |= {"out": tmp_path / "whole", "calibration": tmp_path / "other"}
    assert "preset tiny: Tiny, as published" in wsiad.train(**values, quiet=True).summary
    assert RunFolder(tmp_path / "whole").record().method.endswith("(Tiny)")
