"""Detectors of other packages: the example in examples/, and packages that are broken."""

import importlib
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import wsiad
from support.builders import stained, write_tiff
from wsiad import cli
from wsiad.core import packages
from wsiad.core.errors import DetectorError, PluginError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import FitContext, HealthyTiles, InputSpec, State
from wsiad.runs.run import RunFolder
from wsiad.store.dataset import ArrayTiles
from wsiad.testing import check_detector, tissue_tiles

EXAMPLE = Path(__file__).parents[2] / "examples" / "wsiad-colour-distance"
CPU = torch.device("cpu")

BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The example as a wheel, by its own build system."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(EXAMPLE, folder / "source")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=source, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return folder / built.stdout.split()[-1]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages that Python looks in; its modules are forgotten again."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def example(site, wheel):
    with zipfile.ZipFile(wheel) as archive:  # a wheel of pure Python is installed by that
        archive.extractall(site)
    importlib.invalidate_caches()
    return site


def package(site, name, points, *, version="1.0", code="", module="plugged"):
    """Install a package of one module with entry points."""
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[wsiad.detectors]\n{points}\n")
    (site / f"{module}.py").write_text(code)
    packages._claimed.cache_clear()
    importlib.invalidate_caches()
    return about


@pytest.fixture(autouse=True)
def fresh():
    packages._claimed.cache_clear()
    registry._WARNED.clear()
    yield
    packages._claimed.cache_clear()


GOOD = "from wsiad.detectors.gaussian import Gaussian\nclass One(Gaussian):\n    pass\n"


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


# --- the example ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for number in range(4):
        write_tiff(folder / f"s{number}.tif", stained(160, 208, seed=number), mpp=0.5, levels=1)
    wsiad.tile(slides=folder, out=folder / "store", mpp=0.5, tile=48,
               tissue={"min_area_um2": 0}, quiet=True)  # fmt: skip
    return folder / "store"


def test_the_example_is_found_and_conforms(example, capsys):
    assert "colour-distance" in registry.names()
    assert registry.maker("colour-distance") == packages.Distribution(
        "wsiad-colour-distance", "0.1.0"
    )
    assert "wsiad_colour_distance" not in sys.modules  # listing imports nothing
    cls = registry.load("colour-distance")
    check_detector(cls, {"places": 4})
    check_detector(cls, {"places": 1}, input_px=32)
    assert "colour-distance" not in registry.names_using_anomalies()
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "colour-distance  detector of the plug-in wsiad-colour-distance 0.1.0" in out
    with pytest.raises(DetectorError, match="did you mean 'colour-distance'"):
        registry.load("color-distance")


def test_the_example_scores_by_the_mahalanobis_distance(example):
    cls = registry.load("colour-distance")
    tiles = tissue_tiles(40, 32, seed=1)
    found = cls(cls.Options(places=1), InputSpec(TilePx(32), Mpp(1)))
    colours = -np.log((tiles.astype(np.float64) + 1) / 256)
    # One colour a tile: the mean of the densities of its pixels.
    means = colours.mean(axis=(1, 2))
    covariance = np.cov(means, rowvar=False) + 1e-6 * np.eye(3)
    healthy = HealthyTiles(ArrayTiles(tiles), ArrayTiles(tiles))
    found.fit(healthy, FitContext(seed=1, device=CPU, folder=Path(), quiet=True))
    away = means - means.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away))
    np.testing.assert_allclose(found.score(tiles), expected, rtol=1e-4)
    strange = tissue_tiles(3, 32, seed=2, strange=True)
    assert found.score(strange).min() > found.score(tiles).max()


def test_a_run_of_the_example_knows_its_package(example, store, tmp_path, capsys, monkeypatch):
    words = ("train", store, "--out", tmp_path / "run", "--detector", "colour-distance")
    code, out, err = run(capsys, *words, "--option", "places=8", "--quiet")
    assert (code, err) == (0, "")
    assert "colour-distance on 48 px" in out
    stored = json.loads((tmp_path / "run" / "detector.json").read_text())
    assert stored["plugin"] == {"name": "wsiad-colour-distance", "version": "0.1.0"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["versions"]["wsiad-colour-distance"] == "0.1.0"
    tiles = tissue_tiles(2, 48, seed=1)
    scores = RunFolder.open(tmp_path / "run").load_detector(CPU).score_map(tiles)
    assert scores.shape == (2, 8, 8)
    # Elsewhere, where it is not installed.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(example)])
    with pytest.raises(RunError) as error:
        RunFolder.open(tmp_path / "run").load_detector(CPU)
    said = str(error.value)
    assert "comes with the plug-in wsiad-colour-distance 0.1.0, which is not installed here" in said
    assert said.endswith("Install it: pip install wsiad-colour-distance==0.1.0.")
    assert "\n" not in said


def test_an_ensemble_knows_the_package_of_its_member(example, store, tmp_path, monkeypatch):
    members = [{"detector": "colour-distance"}, {"detector": "gaussian", "options": {"places": 2}}]
    wsiad.train(store=store, out=tmp_path / "run", detector="ensemble", weights="random",
                options={"members": members}, quiet=True)  # fmt: skip
    stored = json.loads((tmp_path / "run" / "detector.json").read_text())
    assert "plugin" not in stored
    kept = [member.get("plugin") for member in stored["values"]["members"]]
    assert kept == [{"name": "wsiad-colour-distance", "version": "0.1.0"}, None]
    assert "plugin" not in stored["values"]["members"][1]
    RunFolder.open(tmp_path / "run").load_detector(CPU)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(example)])
    with pytest.raises(RunError, match=r"Install it: pip install wsiad-colour-distance==0\.1\.0\."):
        RunFolder.open(tmp_path / "run").load_detector(CPU)


def test_runs_of_wsiads_own_detectors_say_nothing_of_packages(store, tmp_path):
    wsiad.train(store=store, out=tmp_path / "run", detector="gaussian", weights="random",
                options={"places": 2}, quiet=True)  # fmt: skip
    assert "plugin" not in json.loads((tmp_path / "run" / "detector.json").read_text())


# --- packages that are broken -----------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "code", "found"),
    [
        ("one = plugged:One", "import no_such_module", "ModuleNotFoundError"),
        ("one = plugged:One", "raise SystemExit(3)", "SystemExit: 3"),
        ("one = plugged:One", "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("one = plugged:Two", GOOD, "AttributeError"),
        ("one = no_such_module:One", GOOD, "ModuleNotFoundError"),
        ("one = plugged:One", "One = 3", "is not a class derived from Detector"),
        (
            "one = plugged:One",
            "from wsiad.learning.detector import Detector\nclass One(Detector):\n    pass\n",
            "lacks fit, load_state, score_places, state",
        ),
        ("one = plugged:One", GOOD + "    Options = int\n", "do not derive from DetectorOptions"),
    ],
)
def test_a_broken_plugin_is_one_line_that_names_its_package(site, capsys, points, code, found):
    package(site, "their-package", points, code=code)
    words = ("train", "store", "--out", "run", "--detector", "one")
    ended, _, err = run(capsys, *words)
    assert ended == 1
    assert err.count("\n") == 1
    assert "one: the plug-in their-package 1.0 is broken: " in err
    assert found in err
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "the plug-in their-package 1.0 is broken" in out
    with pytest.raises(SystemExit) as end:
        run(capsys, "train", "--help")
    assert end.value.code == 0
    # Others are not touched by it.
    assert registry.load("gaussian").__name__ == "Gaussian"
    assert "devnet" in registry.names_using_anomalies()
    ways = registry.ways_to_use_anomalies()
    assert {"devnet", "mil", "one-class with --option objective=compact"} <= set(ways)
    assert "efficient-ad with --option penalty=outside" in ways
    assert not {"knn", "one-class", "efficient-ad"} & set(ways)


def test_wsiads_own_names_stay_its_own(site, caplog, capsys):
    package(site, "their-package", "gaussian = plugged:One", code=GOOD)
    assert registry.names().count("gaussian") == 1
    assert registry.plugins() == {}
    for _ in range(2):
        assert registry.load("gaussian").__module__ == "wsiad.detectors.gaussian"
    assert registry.maker("gaussian") is None
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1  # once in a process
    assert "plug-in their-package 1.0: its detector 'gaussian' has the name of one" in warnings[0]
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "their-package 1.0: its detector 'gaussian'" in out


def test_a_name_of_two_packages_is_nobodys(site, tmp_path):
    package(site, "first", "one = plugged:One", code=GOOD)
    package(site, "second", "one = other:One", code=GOOD, module="other")
    assert "one" not in registry.names()
    with pytest.raises(PluginError, match=r"first 1\.0 and second 1\.0 each have a detector 'one'"):
        registry.load("one")


def test_names_that_no_folder_should_have_are_refused(site, caplog):
    package(site, "their-package", "../One = plugged:One", code=GOOD)
    assert registry.plugins() == {}
    with pytest.raises(PluginError, match=r"their-package 1\.0: the name '\.\./One'"):
        registry.load("../One")


def test_entry_points_that_cannot_be_read_hide_no_others(site, capsys, caplog):
    about = package(site, "damaged", "one = plugged:One", code=GOOD)
    (about / "entry_points.txt").write_text("[wsiad.detectors]\nneither name nor value\n")
    package(site, "whole", "two = plugged:One", code=GOOD)
    assert registry.load("two").__name__ == "One"
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "plug-in damaged 1.0: its entry points cannot be read" in out
    with pytest.raises(DetectorError, match="there is no detector 'one'"):
        registry.load("one")
    assert "plug-in damaged 1.0: its entry points cannot be read" in caplog.text


def test_damaged_metadata_hides_no_plugin(site):
    about = package(site, "their-package", "one = plugged:One", code=GOOD)
    (about / "METADATA").write_bytes(b"\xff\xfe\x00")
    assert registry.load("one").__name__ == "One"
    (about / "METADATA").unlink()
    packages._claimed.cache_clear()
    assert registry.load("one").__name__ == "One"


def test_a_run_is_not_loaded_by_the_plugin_of_another_package(site, tmp_path):
    first = package(site, "first", "one = plugged:One", code=GOOD)
    cls = registry.load("one")
    detector = cls(cls.Options(), InputSpec(TilePx(32), Mpp(1)))
    detector.state = lambda: State({"mean": torch.zeros(1)}, {})
    folder = RunFolder(tmp_path)
    folder.save_detector(detector, name="one")
    shutil.rmtree(first)
    package(site, "second", "one = plugged:One", code=GOOD)
    with pytest.raises(RunError, match=r"first 1\.0, which is not installed .* that of second 1"):
        folder.load_detector(CPU)


def test_a_log_names_the_package_where_all_are_listed(site, caplog):
    package(site, "their-package", "one = plugged:One", code="raise OSError('disk')")
    with caplog.at_level(logging.WARNING):
        found = registry.names_using_anomalies()
    assert "one" not in found
    assert "the plug-in their-package 1.0 is broken" in caplog.text
