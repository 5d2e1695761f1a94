import subprocess
import sys

import pytest

from wsiad.core.errors import DetectorError
from wsiad.detectors import registry
from wsiad.learning.training_options import check_inverted


def test_names_are_those_of_files_and_folders():
    assert {"dpa", "gaussian", "knn"} <= set(registry.names())
    assert not {"detector", "registry", "_features"} & set(registry.names())
    assert list(registry.names()) == sorted(registry.names())


@pytest.mark.slow
def test_every_module_can_be_imported_first():
    """Each command loads another one first: no order of imports may be needed."""
    code = """
import importlib, pkgutil, sys, wsiad
names = [module.name for module in pkgutil.walk_packages(wsiad.__path__, "wsiad.")]
assert len(names) > 200
for name in names:
    for known in [key for key in sys.modules if key.split(".")[0] == "wsiad"]:
        del sys.modules[known]
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_imports_neither_torch_nor_a_detector():
    code = (
        "import sys; from wsiad.detectors import registry; registry.names(); "
        "assert 'torch' not in sys.modules and 'wsiad.detectors.dpa' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_gives_the_nearest():
    with pytest.raises(DetectorError, match="did you mean 'gaussian'"):
        registry.load("gausian")
    with pytest.raises(DetectorError, match=r"Choose one of .* published system as --preset"):
        registry.load("memae")
    with pytest.raises(DetectorError):
        registry.load("../dpa")


def test_new_file_is_a_new_detector(tmp_path, monkeypatch):
    import wsiad.detectors

    (tmp_path / "brightness.py").write_text(
        "from wsiad.detectors.gaussian import Gaussian\nclass Brightness(Gaussian):\n    pass\n"
    )
    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    monkeypatch.setattr(wsiad.detectors, "__path__", [str(tmp_path), *wsiad.detectors.__path__])
    assert registry.names() == ("brightness", "empty")
    assert registry.load("brightness").__name__ == "Brightness"
    with pytest.raises(DetectorError, match="must define one detector class, not 0"):
        registry.load("empty")


def test_dash_in_a_name_is_an_underscore_in_the_files():
    assert "deep-if" in registry.names()
    assert registry.load("deep-if").__module__ == "wsiad.detectors.deep_if"
    with pytest.raises(DetectorError, match="did you mean 'deep-if'"):
        registry.load("deep_if")


@pytest.mark.parametrize("name", ["ocsvm", "svdd", "deep-if"])
def test_what_is_known_to_be_inverted_says_so_for_what_was_measured(name):
    options = registry.load(name).Options
    assert "lower than healthy tissue (AUROC 0." in options().known_inverted()
    assert options(backbone="resnet18").known_inverted() == ""
    assert registry.load("knn").Options().known_inverted() == ""


def test_a_narrow_kernel_was_not_inverted():
    assert registry.load("ocsvm").Options(gamma=0.2).known_inverted() == ""


def test_what_is_known_to_be_inverted_is_refused_unless_accepted():
    with pytest.raises(DetectorError, match=r"known\. Use knn; or go on with --accept-inverted"):
        check_inverted("known", accepted=False, instead="Use knn")
    check_inverted("known", accepted=True, instead="Use knn")
    check_inverted("", accepted=False, instead="Use knn")
