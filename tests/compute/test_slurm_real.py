"""The same command on a real SLURM of two nodes makes the same store, and loses no slide."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import wsiad
from support.builders import stained, write_tiff
from support.slurm import missing, slurm
from wsiad.slides.slide_table import read_table
from wsiad.verbs.tile import TileRow

reason = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]

OPTIONS = {"mpp": 0.5, "tile": 64, "stain": {"method": "none"}, "tissue": {"min_area_um2": 0.0}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for number in range(5):
        write_tiff(folder / f"s{number}.tif", stained(256, 256, seed=number), levels=1)
    (folder / "bad.svs").write_text("no slide")
    return folder


@pytest.fixture(scope="module")
def plain(slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "store"
    wsiad.tile(slides=slides, out=out, quiet=True, **OPTIONS)
    return out


def files_of(store: Path) -> dict[str, bytes]:
    root = store / "slides.zarr"
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def command(slides, out, *more):
    (out.parent / "tile.yaml").write_text(yaml.safe_dump(OPTIONS))
    return [
        sys.executable, "-P", "-m", "wsiad", "tile", str(slides), "--out", str(out),
        "--config", str(out.parent / "tile.yaml"), *map(str, more),
    ]  # fmt: skip


def cluster_file(folder, **changes):
    path = folder / "slurm.yaml"
    values = {
        "scheduler": "slurm", "jobs": 2, "cores": 1, "memory": "1500MB", "walltime": "00:10:00",
        "queue": "short", "interface": "lo", "log_directory": str(folder / "logs"),
        "local_directory": str(folder / "dask"),
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values | changes))
    return path


def run(arguments, environment, *, cwd):
    return subprocess.run(
        arguments, env=environment, cwd=cwd, capture_output=True, text=True, timeout=600
    )


def test_dask_on_slurm_makes_the_same_store(cluster, slides, plain, tmp_path):
    out = tmp_path / "store"
    done = run(command(slides, out, "--cluster", cluster_file(tmp_path)), cluster, cwd=tmp_path)
    logs = [log.read_text() for log in (tmp_path / "logs").glob("*.err")]
    assert done.returncode == 1, (done.stderr, logs)  # of bad.svs
    assert "bad: is not a slide" in done.stderr
    assert files_of(out) == files_of(plain)
    rows = {row.slide: row.status for row in read_table(out / "slides.csv", TileRow)}
    assert rows == {"bad": "failed"} | {f"s{number}": "ok" for number in range(5)}
    assert len(logs) == 2
    assert not squeue(cluster)


def squeue(environment):
    listed = ["squeue", "--noheader", "--states=PENDING,RUNNING"]
    return subprocess.run(listed, env=environment, capture_output=True, text=True).stdout.strip()


def test_heatmaps_by_jobs_of_several_workers_are_the_same(cluster, slides, plain, tmp_path):
    run_folder = tmp_path / "run"
    options = {"weights": "random", "options": {"backbone": "squeezenet1_1"}}
    wsiad.train(store=plain, out=run_folder, detector="gaussian", quiet=True, **options)
    wsiad.heatmap(run=run_folder, slides=slides, out=tmp_path / "here", quiet=True)
    file = cluster_file(tmp_path, cores=2, memory="3GB")
    arguments = [
        sys.executable, "-P", "-m", "wsiad", "heatmap", str(run_folder), str(slides), "--out",
        str(tmp_path / "there"), "--cluster", str(file), "--stage-dir", str(tmp_path / "fast"),
    ]  # fmt: skip
    done = run(arguments, cluster, cwd=tmp_path)
    assert "\nwsiad heatmap: 1 failed:\n  bad: is not a slide" in done.stderr
    names = [f"s{number}" for number in range(5)]
    for name in names:
        for file_name in ("windows.npy", "heatmap.ome.tif", "detections.csv"):
            here, there = (tmp_path / out / name / file_name for out in ("here", "there"))
            assert here.read_bytes() == there.read_bytes(), (name, file_name)
    assert (tmp_path / "there" / "report.html").exists()
    assert list((tmp_path / "fast").iterdir()) == []


def test_a_job_array_of_shards_makes_the_same_store(cluster, slides, plain, tmp_path):
    out = tmp_path / "store"
    shard = "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    shell = " ".join(command(slides, out, "--shard", shard))
    script = tmp_path / "array.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH --array=1-3\n#SBATCH -o {tmp_path}/%a.log\n{shell}\n")
    done = run(["sbatch", "--wait", str(script)], cluster, cwd=tmp_path)
    logs = [log.read_text() for log in sorted(tmp_path.glob("*.log"))]
    assert len(logs) == 3, done.stderr
    assert files_of(out) == files_of(plain), logs
    rows = {row.slide: row.status for row in read_table(out / "slides.csv", TileRow)}
    assert rows == {"bad": "failed"} | {f"s{number}": "ok" for number in range(5)}
    records = [json.loads(path.read_text()) for path in sorted((out / "runs").iterdir())]
    assert [record["shard"] for record in records] == ["1/3", "2/3", "3/3"]
    assert sum(record["slides"] for record in records) == 6


def test_a_job_that_is_refused_says_why(cluster, slides, tmp_path):
    file = cluster_file(tmp_path, queue="nosuch")
    done = run(command(slides, tmp_path / "store", "--cluster", file), cluster, cwd=tmp_path)
    assert done.returncode == 1
    assert "a job was refused" in done.stderr
    assert "nvalid partition" in done.stderr


def test_jobs_that_end_before_they_have_a_worker_are_not_waited_for(cluster, slides, tmp_path):
    file = cluster_file(tmp_path, job_script_prologue=["echo no such module; exit 1"])
    done = run(command(slides, tmp_path / "store", "--cluster", file), cluster, cwd=tmp_path)
    assert done.returncode == 1
    assert "jobs ended before they had a worker. See their logs in" in done.stderr
    logs = (tmp_path / "logs").glob("*.out")
    assert {log.read_text() for log in logs} == {"no such module\n"}


def test_a_job_that_is_killed_loses_no_slide(cluster, slides, plain, tmp_path):
    """Its slide is tried again in another job, and the job is replaced."""
    out = tmp_path / "store"
    script = tmp_path / "once.sh"
    # The first job is cancelled a moment after its start, before it can have done all slides.
    script.write_text(
        f"if mkdir {tmp_path}/once 2>/dev/null; then (sleep 1.5; scancel $SLURM_JOB_ID) & fi\n"
    )
    file = cluster_file(tmp_path, jobs=1, job_script_prologue=[f". {script}"])
    done = run(command(slides, out, "--cluster", file, "--quiet"), cluster, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert files_of(out) == files_of(plain)
    assert len(list((tmp_path / "logs").glob("*.err"))) == 2
