"""The Snakemake workflow, run on drawn slides, of which some are broken: killed twice, resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import wsiad
from wsiad.synthetic.slides import make_slides

pytest.importorskip("snakemake", reason="the workflow needs snakemake (the extra dev)")

WORKFLOW = Path(__file__).parents[2] / "pipelines/snakemake"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW / "Snakefile")]
TILING = {"stain": {"method": "macenko"}}
SCORING = {"viewers": [], "evidence_regions": 0, "stride": 96}

# Notes its arguments. When it is told to, it kills its process group, Snakemake included, while
# wsiad works on the slide.
CALLED = """\
#!/bin/bash
echo "$*" >> {calls}
if [ -s {stop} ] && [[ "$*" == *"$(cat {stop})"* ]]; then
  rm {stop}
  {python} -m wsiad "$@" &
  until compgen -G '{out}/*/.working.*' > /dev/null; do
    kill -0 $! || exit 9
    sleep 0.02
  done
  kill -KILL 0
fi
exec {python} -m wsiad "$@"
"""


def put(source, target):
    """Put a drawn slide under another name, its outlines too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    if source.with_suffix(".xml").exists():
        source.with_suffix(".xml").rename(target.with_suffix(".xml"))


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Slides of which some share a name, one has a blank in it, and two are broken."""
    folder = tmp_path_factory.mktemp("slides")
    for name, seed, number in (("healthy", 0, (3, 0)), ("test", 1, (1, 2))):
        healthy, tumorous = number
        make_slides(folder / name, healthy=healthy, tumorous=tumorous, seed=seed,
                    size_px=(2304, 1728), quiet=True)  # fmt: skip
        (folder / name / "broken.svs").write_text("no slide")
    test = folder / "test"
    put(test / "normal_001.tif", test / "a normal.tif")
    put(test / "tumor_001.tif", test / "p1/1.tif")
    put(test / "tumor_002.tif", test / "p2/1.tif")
    (test / "reference.csv").write_text(
        "image,type\na normal,normal\np1/1,tumor\np2/1,tumor\nbroken,tumor\n"
    )
    return folder


@pytest.fixture
def workflow(slides, tmp_path):
    """Run the workflow; returns its exit code, what it said, and the calls of wsiad."""
    calls, stop, out = tmp_path / "calls", tmp_path / "stop", tmp_path / "out"
    script = tmp_path / "wsiad"
    script.write_text(CALLED.format(calls=calls, stop=stop, out=out, python=sys.executable))
    script.chmod(0o755)
    (tmp_path / "tile.yaml").write_text(yaml.safe_dump(TILING))
    (tmp_path / "heatmap.yaml").write_text(yaml.safe_dump(SCORING))
    config = {
        "healthy": str(slides / "healthy"), "slides": [str(slides / "test")], "out": "out",
        "mpp": 0.972, "tile": 96, "tile_config": "tile.yaml", "heatmap_config": "heatmap.yaml",
        "detector": "gaussian", "weights": "wsiad", "max_minutes": 10, "device": "cpu",
        "reference": str(slides / "test/reference.csv"), "annotations": str(slides / "test"),
        "wsiad": str(script), "resources": {step: {"threads": 1} for step in ("tile", "train")},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(*more, stopped_at=""):
        calls.write_text("")
        stop.write_text(stopped_at)
        command = [*SNAKEMAKE, "--configfile", "config.yaml", "--cores", "1", *more]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False,
            start_new_session=True, timeout=1500, env=os.environ | {"HOME": str(tmp_path)},
        )  # fmt: skip
        if stopped_at:
            assert done.returncode == -signal.SIGKILL, done.stderr
            unlocked = subprocess.run([*command, "--unlock"], cwd=tmp_path, check=False)
            assert unlocked.returncode == 0
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    return run


def verbs(calls):
    """The calls for slides and all slides, without those that list them."""
    found = []
    for call in calls:
        words = call.split(" --")
        only = [word.removeprefix("only=") for word in words if word.startswith("only=")]
        if not call.startswith("list-slides"):
            found.append(" ".join([call.split()[0], *only]))
    return sorted(found)


def bytes_of(folder, *, leave_out=()):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in leave_out
    }


def figures(results):
    values = json.loads((results / "evaluation.json").read_text())
    return {key: value for key, value in values.items() if key != "made_by"}


@pytest.mark.slow
def test_killed_and_resumed_it_makes_what_the_plain_verbs_make(slides, workflow, tmp_path):
    run, out = workflow, tmp_path / "out"
    run(stopped_at="tile out/jobs/tile.csv --only=normal_002")
    tiled = {path.stem for path in (out / "jobs/tile").glob("*.json")}
    assert "normal_002" not in tiled
    run(stopped_at="--only=p1/1")
    assert not (out / "jobs/heatmap/p1/1.json").exists()
    assert not (out / "results/p1/1/slide.json").exists()

    code, said, calls = run()
    assert code == 1
    assert "2 slides failed, all others are done" in said
    for step in ("tile", "heatmap"):
        assert f"  {step} broken: failed: is not a slide" in said
    # What was complete before the second kill was not done again.
    assert not [call for call in verbs(calls) if call.startswith(("tile", "train"))]

    plain = tmp_path / "plain"
    wsiad.tile(slides=slides / "healthy", out=plain / "store", mpp=0.972, tile=96, quiet=True,
               **TILING)  # fmt: skip
    wsiad.train(store=plain / "store", out=plain / "run", detector="gaussian", weights="wsiad",
                device="cpu", quiet=True)  # fmt: skip
    wsiad.heatmap(run=plain / "run", slides=slides / "test", out=plain / "results", device="cpu",
                  quiet=True, **SCORING)  # fmt: skip
    wsiad.evaluate(results=plain / "results", reference=slides / "test/reference.csv",
                   annotations=slides / "test", quiet=True)  # fmt: skip
    assert bytes_of(out / "store/slides.zarr") == bytes_of(plain / "store/slides.zarr")
    for slide in ("a normal", "p1/1", "p2/1"):
        made, wanted = (
            bytes_of(root / "results" / slide, leave_out={"slide.json"}) for root in (out, plain)
        )
        assert made.keys() == wanted.keys()
        assert [name for name in made if made[name] != wanted[name]] == []
        assert Path("windows.npy") in made
    assert figures(out / "results") == figures(plain / "results")
    assert (out / "results/report.html").exists()
    statuses = {row.slide: row.status for row in wsiad.Results(out / "results").slides}
    assert statuses == {"a normal": "ok", "broken": "failed", "p1/1": "ok", "p2/1": "ok"}

    # Again: nothing to do, and it is told again.
    code, said, calls = run()
    assert (code, verbs(calls)) == (1, [])
    assert "2 slides failed" in said

    # A slide that has been mended is scored when that is asked for. The run has not learnt from
    # the other one, which stays told, nor from one that is new.
    broken = slides / "test/broken.svs"
    broken.unlink()
    shutil.copy(slides / "test/p2/1.tif", broken)
    shutil.copy(slides / "test/p2/1.xml", broken.with_suffix(".xml"))
    shutil.copy(slides / "healthy/normal_001.tif", slides / "healthy/new.tif")
    code, said, calls = run("--config", "retry_failed=true")
    assert (code, verbs(calls)) == (1, ["evaluate", "heatmap broken", "tile new", "train"])
    assert "  tile new: tiled after the training, which did not see it" in said
    assert said.count("tiled after the training") == 1
    assert "1 slide failed" in said
    assert "  tile broken: failed" in said


@pytest.mark.slow
def test_a_misspelt_key_is_an_error_and_a_call_that_fails_is_no_failed_slide(
    slides, workflow, tmp_path
):
    code, said, calls = workflow("--config", "stian=none")
    assert (code, calls) == (1, [])
    assert "stian" in said
    code, said, calls = workflow("--config", "tile_config=gone.yaml", "--until", "tile")
    names = {path.stem for path in (slides / "healthy").iterdir()} - {"README", "reference"}
    assert (code, set(verbs(calls))) == (1, {f"tile {name}" for name in names})
    assert "gone.yaml" in said
    assert not list((tmp_path / "out/jobs/tile").glob("*.json"))
