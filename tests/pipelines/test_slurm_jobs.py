"""The recipes on a real SLURM: a chain of jobs, of which one is stopped and queued again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support.builders import stained, write_tiff
from support.slurm import missing, slurm
from wsiad.slides.slide_table import read_table
from wsiad.store.tile_task import TileRow

reason = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]

SUBMIT = Path(__file__).parents[2] / "pipelines" / "slurm" / "submit.sh"
TILE = {"mpp": 0.5, "tile": 64, "stain": {"method": "none"}, "tissue": {"min_area_um2": 0.0}}
TRAIN = {
    "detector": "deep-svdd",
    "options": {
        "channels": [4, 6], "representation": 5, "pretrain_steps": 40, "batch": 4,
        "max_steps": 400, "val_interval": 50, "log_interval": 5, "keep": "last",
    },
}  # fmt: skip

SITE = """
PARTITION=short GPU_PARTITION=short ACCOUNT= ENVIRONMENT=venv VENV={venv}
SCRATCH= LOGS="the logs"
RESERVE_MINUTES=5 SIGNAL_SECONDS=60 MOST_REQUEUES=3
TILE_JOBS=2 HEATMAP_JOBS=2
TILE=(--partition=short --cpus-per-task=1 --mem=1500M --time=00:20:00)
HEATMAP=("${{TILE[@]}}") TRAIN=("${{TILE[@]}}") OTHER=("${{TILE[@]}}") CLUSTER=("${{TILE[@]}}")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def folder(tmp_path):
    """Slides, configs and settings, in a folder whose name has a space."""
    folder = tmp_path / "a project"
    (folder / "slides").mkdir(parents=True)
    for number in range(4):
        write_tiff(folder / f"slides/s{number}.tif", stained(256, 256, seed=number), levels=1)
    (folder / "slides/bad.svs").write_text("no slide")
    for name, values in (("tile", TILE), ("train", TRAIN)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    kinds = [f"s{number},{'tumor' if number % 2 else 'normal'}" for number in range(4)]
    (folder / "reference.csv").write_text("\n".join(["image,type", *kinds, "bad,normal"]) + "\n")
    (folder / "site.sh").write_text(SITE.format(venv=sys.prefix))
    return folder


def commands(where: str) -> list[list[str]]:
    store, run, results = (f"{where}/{name}" for name in ("store", "run", "results"))
    return [
        ["tile", "slides", "--out", store, "--config", "tile.yaml"],
        ["train", store, "--out", run, "--config", "train.yaml", "--device", "cpu"],
        ["heatmap", run, "slides", "--out", results, "--stride", "32"],
        ["evaluate", results, "--reference", "reference.csv", "--bootstrap", "5"],
    ]


def state(environment, job: str) -> list[dict[str, str]]:
    """What SLURM has to say of a job, or of the jobs of an array."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in shown.splitlines()
    ]


def until(holds, folder, seconds=500):
    end = time.monotonic() + seconds
    while not holds():
        logs = [(log.name, log.read_text()) for log in (folder / "the logs").glob("*.log")]
        assert time.monotonic() < end, logs
        time.sleep(0.3)


def test_a_chain_ends_as_on_one_machine_though_a_slide_is_bad_and_a_job_was_stopped(
    cluster, folder
):
    environment = cluster | {"SITE": str(folder / "site.sh"), "OMP_NUM_THREADS": "1"}
    words = [word for command in commands("there") for word in [*command, "then"]][:-1]
    done = subprocess.run(
        [str(SUBMIT), *words], env=environment, cwd=folder, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    jobs = dict(line.split(": job ") for line in done.stdout.splitlines())
    assert list(jobs) == ["tile", "train", "heatmap", "evaluate"]

    def lines() -> int:
        return sum(path.read_text().count("\n") for path in folder.glob("there/run/**/metrics.csv"))

    until(lambda: lines() > 24, folder)
    stop = ["scancel", "--signal=USR1", "--batch", jobs["train"]]
    subprocess.run(stop, env=environment, check=True)
    until(lambda: state(environment, jobs["train"])[0]["Restarts"] == "1", folder)
    assert {job["JobState"] for job in state(environment, jobs["heatmap"])} == {"PENDING"}
    until(
        lambda: state(environment, jobs["evaluate"])[0]["JobState"] not in ("PENDING", "RUNNING"),
        folder,
    )
    logs = {log.name: log.read_text() for log in sorted((folder / "the logs").glob("*.log"))}
    ends = {
        name: sorted(job["ExitCode"] for job in state(environment, jobs[name])) for name in jobs
    }
    assert ends == {
        "tile": ["0:0", "1:0"], "train": ["0:0"], "heatmap": ["0:0", "1:0"], "evaluate": ["0:0"],
    }, logs  # fmt: skip
    assert "queued again, and goes on then" in logs[f"wsiad-train-{jobs['train']}.log"]

    for command in commands("here"):
        subprocess.run(
            [sys.executable, "-P", "-m", "wsiad", *command], env=os.environ | environment,
            cwd=folder, capture_output=True, check=command[0] not in ("tile", "heatmap"),
        )  # fmt: skip
    parts = {
        "store/slides.zarr": ["**/c/**/*"],
        "run": ["weights.safetensors", "calibration.json", "examples.safetensors"],
        "results": ["*/windows.npy", "*/heatmap.ome.tif", "*/detections.csv"],
    }
    for part, kinds in parts.items():
        here, there = (folder / where / part for where in ("here", "there"))
        for kind in kinds:
            files = [path.relative_to(here) for path in here.glob(kind) if path.is_file()]
            assert files, kind
            for file in files:
                assert (here / file).read_bytes() == (there / file).read_bytes(), file
    rows = {row.slide: row.status for row in read_table(folder / "there/store/slides.csv", TileRow)}
    assert rows == {"bad": "failed"} | {f"s{number}": "ok" for number in range(4)}
    here, there = (
        json.loads((folder / where / "results/evaluation.json").read_text().replace(where, "one"))
        for where in ("here", "there")
    )
    assert here == there
    assert (folder / "there/results/report.html").is_file()


WAITING = """#!/bin/bash
[[ " $* " != *" --check-options "* ]] || exit 0  # before anything is queued
trap 'exit 143' TERM
echo "$SLURM_ARRAY_TASK_ID $SLURM_JOB_ID $SLURM_ARRAY_JOB_ID" >> started
until [ -e go ]; do sleep 0.1; done
"""


def test_of_an_array_only_the_task_that_was_stopped_begins_again(cluster, folder):
    """It is the task that has the array's own number, by which SLURM means all of them."""
    wsiad = folder / "bin" / "wsiad"
    wsiad.parent.mkdir()
    wsiad.write_text(WAITING)
    wsiad.chmod(0o755)
    (folder / "site.sh").write_text(SITE.format(venv=f'"{folder}"'))
    done = subprocess.run(
        [str(SUBMIT), "tile", "slides", "--out", "store"],
        env=cluster | {"SITE": str(folder / "site.sh")}, cwd=folder, capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    array = done.stdout.split()[-1]

    def started() -> list[list[str]]:
        there = folder / "started"
        return [line.split() for line in there.read_text().splitlines()] if there.exists() else []

    until(lambda: len(started()) == 2, folder)
    ((task, _, _),) = [line for line in started() if line[1] == array]
    assert {line[2] for line in started()} == {array}
    stop = ["scancel", "--signal=USR1", "--batch", f"{array}_{task}"]
    subprocess.run(stop, env=cluster, check=True)
    until(lambda: len(started()) > 2, folder)
    (folder / "go").touch()
    until(lambda: {job["JobState"] for job in state(cluster, array)} == {"COMPLETED"}, folder)
    assert sorted(line[0] for line in started()) == sorted(["1", "2", task])
    restarts = {job["ArrayTaskId"]: job["Restarts"] for job in state(cluster, array)}
    assert restarts == {"1": "0", "2": "0"} | {task: "1"}
