"""The batch recipes: whole as shell, and with flags that there are."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from wsiad.cli import VERBS, _verb_parser
from wsiad.core.config import config_class

PIPELINES = Path(__file__).parents[2] / "pipelines"
SCRIPTS = sorted(path for path in PIPELINES.rglob("*") if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_whole(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & stat.S_IXUSR
    assert path.read_text().startswith("#!")


@pytest.fixture
def calls(tmp_path):
    """Run a script with a `wsiad` that only notes what it was given; returns that, parsed."""
    stub = tmp_path / "bin" / "wsiad"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {tmp_path}/arguments\n')
    stub.chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{stub.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(PIPELINES / script), *arguments],
            env=os.environ | {"PATH": path} | environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.returncode, done.stdout
        verb, *given = (tmp_path / "arguments").read_text().split("\0")[:-1]
        assert verb in VERBS
        module = __import__(f"wsiad.verbs.{verb}", fromlist=[verb])
        return verb, vars(_verb_parser(verb, config_class(getattr(module, verb))).parse_args(given))

    return run


def test_tile_array(calls):
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "20"}
    verb, given = calls("slurm_tile_array.sbatch", "slides", "store", **array)
    assert (verb, given["slides"], given["out"]) == ("tile", ["slides"], "store")
    assert (given["shard"], given["workers"]) == ("3/20", "1")
    assert "stage_dir" not in given
    more = {"STAGE_DIR": "/fast disk", "SLURM_CPUS_PER_TASK": "4", "MPP": "1"}
    _, given = calls("slurm_tile_array.sbatch", "slides", "store", **array, **more)
    assert (given["stage_dir"], given["workers"], given["mpp"]) == ("/fast disk", "4", "1")


def test_dask(calls):
    verb, given = calls("slurm_dask.sh", "c.yaml", "tile", "slides", "store")
    assert (verb, given["cluster"], given["out"]) == ("tile", "c.yaml", "store")
    verb, given = calls("slurm_dask.sh", "c.yaml", "heatmap", "slides", "results", "run")
    assert (verb, given["cluster"], given["run"]) == ("heatmap", "c.yaml", "run")
    assert given["slides"] == ["slides"]
    assert calls("slurm_dask.sh", "c.yaml", "trian", "slides", "store")[0] == 2


def test_train(calls):
    verb, given = calls("slurm_train.sbatch", "store", "run", WEIGHTS="vgg.safetensors")
    assert (verb, given["store"], given["out"]) == ("train", "store", "run")
    assert (given["detector"], given["weights"]) == ("dpa", "vgg.safetensors")
    text = (PIPELINES / "slurm_train.sbatch").read_text()
    assert "#SBATCH --gres=gpu:1\n" in text
    # The training ends before the walltime does.
    assert float(given["max_minutes"]) < 12 * 60
    assert "#SBATCH --time=12:00:00\n" in text


@pytest.mark.parametrize("script", [str(path.relative_to(PIPELINES)) for path in SCRIPTS])
def test_without_arguments_they_say_how_they_are_called(calls, script):
    array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1"}
    code, text = calls(script, **array)
    assert code == 2
    assert f"pipelines/{script}" in text
