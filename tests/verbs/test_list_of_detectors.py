"""``wsiad detectors``: the list, which imports no method, and the explanation of one."""

import json
import subprocess
import sys

import pytest

from wsiad.cli import main
from wsiad.core.config import build
from wsiad.detectors import registry
from wsiad.detectors._backbone import BackboneOptions
from wsiad.detectors.detector_inventory import DetectorEntry, inventory
from wsiad.runs import presets
from wsiad.runs.presets import load_preset, preset_names
from wsiad.verbs.detectors import detectors


def test_the_list_names_every_detector_and_preset_once(capsys):
    assert main(["detectors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == [*registry.names(), *preset_names()]
    assert all(len(line.split()) > 1 for line in lines if line)


def test_the_list_imports_neither_torch_nor_a_detector():
    code = (
        "import sys\n"
        "from wsiad.cli import main\n"
        "main(['detectors', '--json'])\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'zarr', 'wsiad.detectors.knn'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize("entry", inventory(), ids=lambda entry: entry.name)
def test_the_source_is_read_as_python_would(entry):
    cls = registry.load(entry.name)
    assert entry.summary.endswith(".")
    assert entry.labels == cls.uses_anomalies
    assert entry.labels_of == cls.labels_of
    named = (
        issubclass(cls.Options, BackboneOptions) or "statistics_tiles" in cls.Options.model_fields
    )
    assert entry.network == named
    assert entry.package == ""


def test_needs_depend_on_the_options():
    entry = DetectorEntry("x", "", labels="needed", network=True)
    assert entry.needs() == ("labels", "network weights")
    assert entry.needs({"backbone": "pixels"}) == ("labels",)
    loss = DetectorEntry("x", "", network=True, network_for="perceptual")
    assert loss.needs() == ("network weights (optional)",)
    assert loss.needs({"loss": "l2"}) == ()
    assert loss.needs({"loss": {"l2": 1.0, "perceptual": 0.5}}) == ("network weights",)
    assert loss.needs({"judged_by": "perceptual"}) == ("network weights",)
    whole = DetectorEntry("x", "", network=True, network_unless="end_to_end")
    assert whole.needs() == whole.needs({"end_to_end": None}) == ("network weights",)
    assert whole.needs({"end_to_end": {"batch": 4}}) == ()
    objective = DetectorEntry("x", "", labels_for="objective: compact")
    assert objective.needs() == ("labels (optional)",)
    assert objective.needs({"objective": "compact"}) == ("labels",)
    assert objective.needs({"objective": "noise"}) == ()
    slides = DetectorEntry("x", "", labels=True, labels_of="slides", network=True)
    assert slides.needs({"layers": {}}) == ("labels of slides (optional)",)
    reference = DetectorEntry("x", "", labels_for="objective: compact", labels_of="reference")
    assert reference.needs() == ("reference set (optional)",)
    assert reference.needs({"objective": "compact"}) == ("reference set",)


def test_json_states_what_the_text_does():
    facts = json.loads(detectors(as_json=True).summary)
    found = {one["name"]: one for one in facts["detectors"]}
    assert found["linear-probe"]["needs"] == ["labels", "network weights"]
    assert found["deep-svdd"]["needs"] == []
    of_presets = {one["name"]: one for one in facts["presets"]}
    assert of_presets["reverse-distillation"]["needs"] == ["network weights", "GPU"]
    assert of_presets["vae"]["needs"] == ["GPU"]
    assert of_presets["deep-sad"]["needs"] == ["labels", "GPU"]
    assert of_presets["deep-sad-head"]["needs"] == ["labels", "network weights"]
    assert of_presets["devnet"]["needs"] == ["labels", "network weights", "GPU"]
    assert of_presets["padim"]["about"]["system"] == "PaDiM"
    assert of_presets["padim"]["detector"] == "padim"


def test_a_preset_is_listed_with_its_paper_and_its_method():
    lines = dict(line.split(maxsplit=1) for line in detectors().summary.splitlines() if line)
    assert lines["abmil"].startswith("ABMIL, Ilse 2018, a setting of mil; adapted [")
    assert lines["devnet"].startswith("DevNet, Pang 2021; adapted [")
    assert lines["dpa-camelyon16"].startswith("DPA, Shvetsova 2021")
    assert "; as published with --calibration [" in lines["dpa-camelyon16"]
    assert lines["deep-sad"] == "Deep SAD, Ruff 2020; adapted [labels, GPU]"
    assert lines["deep-sad-head"] == "Deep SAD, Ruff 2020; adapted [labels, network weights]"
    assert lines["deep-svdd"].startswith("Deep SVDD, Ruff 2018; adapted [")


def test_a_preset_states_what_it_is_without_a_calibration():
    said = " ".join(detectors(name="dpa-camelyon16").summary.split())
    assert "--preset dpa-camelyon16 --calibration OTHER_HEALTHY" in said
    assert "adapted without --calibration: healthy slides are held out" in said
    assert "--calibration" not in detectors(name="padim").summary
    assert "needs besides healthy tiles: network weights, GPU" in said


def test_a_preset_states_what_it_needs():
    for name, needs in (("doc", "reference set, network weights"), ("lsa", "GPU")):
        assert f"needs besides healthy tiles: {needs}\n" in detectors(name=name).summary
    assert "needs besides" not in detectors(name="texture-gmm").summary


def test_a_detector_is_explained():
    done = detectors(name="padim")
    options = {option["name"]: option for option in done.facts["options"]}
    assert options["channels"]["default"] == 100
    assert options["pooling"]["choices"][:3] == ["mean", "max", "quantile"]
    assert all(option["description"] for option in options.values())
    assert [preset["name"] for preset in done.facts["presets"]] == ["padim"]
    for words in ("Defard", "channels [100]: Number of channels", "--preset padim", "adapted:"):
        assert words in done.summary


@pytest.mark.parametrize("name", preset_names())
def test_the_list_states_whether_a_preset_needs_labels(name):
    preset = load_preset(name)
    cls = registry.load(preset.detector)
    learns = cls.learns_from_anomalies(build(cls.Options, preset.options))
    needs = {entry.name: entry for entry in inventory()}[preset.detector].needs(preset.options)
    words = {"tiles": "labels", "slides": "labels of slides", "reference": "reference set"}
    assert [need for need in needs if need in words.values()] == (
        [words[cls.labels_of]] if learns else []
    )


@pytest.mark.parametrize("name", registry.names())
def test_every_detector_can_be_explained(name):
    text = detectors(name=name, as_json=True).summary
    assert json.loads(text)["name"] == name


def test_a_preset_is_explained():
    done = detectors(name="stfpm")
    assert done.facts["detector"] == "student-teacher"
    assert "learning_rate: 0.4" in done.summary
    assert (
        'trimming: {"share": 0.05, "rounds": 3, "by": "latent"}' in detectors(name="itsr").summary
    )


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert main(["detectors", "patchcor"]) == 2
    assert "did you mean 'patchcore'" in capsys.readouterr().err


def test_a_damaged_preset_hides_no_other(tmp_path, monkeypatch, caplog):
    (tmp_path / "broken.yaml").write_text("about: {}")
    monkeypatch.setattr(presets, "_INSTALLED", tmp_path)
    done = detectors()
    assert done.facts["presets"] == []
    assert "padim" in done.summary
    assert "broken.yaml" in caplog.text
