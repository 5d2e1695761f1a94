"""The commands of the workflows for Snakemake and Nextflow are ones that wsiad accepts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wsiad.cli import _nested, _verb_parser
from wsiad.core.config import config_class, resolve
from wsiad.verbs import function_of

PIPELINES = Path(__file__).parents[2] / "pipelines"
STUBS = Path(__file__).parent / "nextflow_stubs"
NAMES = ["a b", "it's", "p/1", "-d"]
REFUSED = "q{x}"

LISTED = """\
#!/bin/bash
[ "$1" = list-slides ] || exit 3
for word in "$@"; do
  [ "$before" != --manifest ] || touch "$word"
  before=$word
done
echo '{listed}'
exit 1
"""


def accepted(command):
    """The verb and the options of a command, checked as wsiad checks them."""
    words = shlex.split(command.replace("\\\n", " "))
    words = words[: next((n for n, word in enumerate(words) if word in (">", "||")), None)]
    verb, *arguments = words[1:]
    cls = config_class(function_of(verb))
    values = vars(_verb_parser(verb, cls).parse_args(arguments))
    files = [value for key, value in values.items() if key == "config"]
    values.pop("config", None)
    return verb, resolve(cls, file=None, flags=_nested(values)), files


def check(commands):
    """Check what holds for both workflows, with every option set."""
    by_verb = {}
    for command in commands:
        verb, config, files = accepted(command)
        by_verb.setdefault(verb, []).append(config)
        assert [Path(str(file)).name for file in files] == (
            [f"{verb}.yaml"] if verb != "list-slides" else []
        )
    for tile in by_verb["tile"]:
        assert (tile.mpp, tile.tile, tile.stage_dir) == (0.5, 256, Path("/fast disk"))
        assert tile.record is not None
        assert len(tile.only) == 1
    (train,) = by_verb["train"]
    assert (train.detector, train.max_minutes, train.device) == ("knn", 90, "cpu")
    assert train.weights.endswith("w.safetensors")
    assert train.store == by_verb["tile"][0].out
    for heatmap in by_verb["heatmap"]:
        assert (heatmap.run, heatmap.device) == (train.out, "cpu")
        assert heatmap.stage_dir == Path("/fast disk")
        assert heatmap.record is not None
    (evaluate,) = by_verb["evaluate"]
    assert evaluate.results == by_verb["heatmap"][0].out
    assert (evaluate.reference.name, evaluate.annotations.name) == ("r.csv", "xml")
    return by_verb


OPTIONS = {
    "mpp": 0.5, "tile": 256, "detector": "knn", "weights": "w.safetensors", "max_minutes": 90,
    "device": "cpu", "stage_dir": "/fast disk", "reference": "r.csv", "annotations": "xml",
    **{f"{verb}_config": f"{verb}.yaml" for verb in ("tile", "train", "heatmap", "evaluate")},
}  # fmt: skip


def snakemake(folder, **config):
    """Ask Snakemake what it would do; returns its commands and what it says of jobs."""
    pytest.importorskip("snakemake", reason="the workflow needs snakemake (the extra dev)")
    slides = [{"name": name, "problem": ""} for name in NAMES]
    listed = json.dumps({"slides": [*slides, {"name": REFUSED, "problem": "why"}]})
    stub = folder / "wsiad"
    stub.write_text(LISTED.format(listed=listed.replace("'", "'\\''")))
    stub.chmod(0o755)
    given = {"healthy": ["h", "h 2"], "slides": "s", "out": "o ut", "wsiad": str(stub), **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(given))
    command = [sys.executable, "-m", "snakemake", "--cores", "8", "--dry-run", "--printshellcmds",
               "--snakefile", PIPELINES / "snakemake/Snakefile",
               "--configfile", "config.yaml"]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"HOME": str(folder)},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    start = "Shell command: "
    commands = [line.removeprefix(start) for line in said.splitlines() if line.startswith(start)]
    return [command for command in commands if command != "None"], said


def test_snakemake_calls_wsiad_as_it_can_be_called(tmp_path):
    commands, _ = snakemake(tmp_path, **OPTIONS)
    by_verb = check(commands)
    assert {verb: len(some) for verb, some in by_verb.items()} == {
        "tile": 5, "train": 1, "heatmap": 5, "evaluate": 1,
    }  # fmt: skip
    for verb in ("tile", "heatmap"):
        assert sorted(one.only[0] for one in by_verb[verb]) == sorted([*NAMES, REFUSED])
        assert {one.slides[0].name for one in by_verb[verb]} == {f"{verb}.csv"}
    assert by_verb["heatmap"][0].out == Path("o ut/results")


def test_snakemake_evaluates_nothing_without_a_reference_and_asks_for_what_is_configured(tmp_path):
    resources = {"train": {"threads": 3, "margin": 30, "gpu": 1}, "tile": {"threads": 2}}
    commands, said = snakemake(tmp_path, mpp=0.5, tile=96, max_minutes=89.5, resources=resources)
    assert {accepted(command)[0] for command in commands} == {"tile", "train", "heatmap"}
    jobs = {job.split(":")[0]: job for job in said.split("\nrule ")[1:]}
    assert "runtime=120, gpu=1" in jobs["train"]  # 90 minutes, and the margin
    assert "threads: 3" in jobs["train"]
    assert "gpu" not in jobs["tile"]
    assert " --workers 2 " in jobs["tile"]


def test_the_example_configuration_and_the_profiles_are_whole():
    schema = yaml.safe_load((PIPELINES / "snakemake/config.schema.yaml").read_text("utf-8"))
    example = yaml.safe_load((PIPELINES / "snakemake/config.yaml").read_text("utf-8"))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(example, schema)
    text = (PIPELINES / "snakemake/config.yaml").read_text("utf-8")
    assert [key for key in schema["properties"] if f"{key}:" not in text] == []
    rules = {"tile", "train", "heatmap", "evaluate"}
    for profile in (PIPELINES / "snakemake/profiles").glob("*/config.yaml"):
        options = yaml.safe_load(profile.read_text("utf-8"))
        assert options["rerun-incomplete"] is True, profile
        assert set(options.get("set-resources", {})) <= rules


def groovy(*arguments):
    command, java = shutil.which("groovy"), shutil.which("java")
    if command is None or java is None:
        pytest.skip("no groovy (Debian's package groovy) or no java on PATH")
    home = os.environ.get("JAVA_HOME") or str(Path(java).resolve().parent.parent)
    flags = "-Xshare:auto -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx256m -Dfile.encoding=UTF-8"
    environment = os.environ | {"JAVA_HOME": home, "JAVA_OPTS": flags, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [command, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_nextflow_calls_wsiad_as_it_can_be_called(tmp_path):
    """The scripts of its processes, which a real Groovy makes of the text."""
    inputs = {
        "step": "slides", "slides": "/my slides", "name": "it's", "manifest": "/o/jobs/slides.csv",
        "store": "/o/store", "run": "/o/run", "results": "/o/results",
    }  # fmt: skip
    given = {"params": {**OPTIONS, "wsiad": "wsiad"}, "inputs": inputs}
    (tmp_path / "given.json").write_text(json.dumps(given))
    scripts = json.loads(
        groovy(STUBS / "Commands.groovy", PIPELINES / "nextflow/main.nf", tmp_path / "given.json")
    )
    assert list(scripts) == ["LIST", "TILE", "TRAIN", "HEATMAP", "EVALUATE"]
    for script in scripts.values():
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    commands = [text[text.index("wsiad ") :] for text in scripts.values()]
    by_verb = check(commands)
    (listing,) = by_verb["list-slides"]
    assert (listing.slides, listing.as_json) == ((Path("/my slides"),), True)
    assert listing.manifest == by_verb["tile"][0].slides[0] == Path("/o/jobs/slides.csv")
    for verb in ("tile", "heatmap"):
        assert by_verb[verb][0].only == ("it's",)
        assert by_verb[verb][0].record == Path("record.json")
    assert by_verb["tile"][0].workers == 4


@pytest.mark.slow
def test_the_configuration_of_nextflow_is_groovy_and_has_the_parameters_that_are_used():
    folder = PIPELINES / "nextflow"
    config, main = ((folder / name).read_text("utf-8") for name in ("nextflow.config", "main.nf"))
    code = "new GroovyShell().parse(new File(args[0])); println 'whole'"
    assert groovy("-e", code, folder / "nextflow.config").strip() == "whole"
    block = config[config.index("params {") : config.index("\nprocess {")]
    declared = {line.split("=")[0].strip() for line in block.splitlines() if "=" in line}
    assert set(re.findall(r"params\.([a-z_]+)", config + main)) | OPTIONS.keys() == declared
