"""Verbs that have nothing left to do start without the libraries that do the work."""

import subprocess
import sys

import pytest
from PIL import Image

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import ConfigError
from wsiad.learning.devices import check_device, choose_device

HEAVY = ("torch", "scipy", "numba", "skimage", "sklearn", "pandas", "dask", "matplotlib")
IDLE = (  # what a results folder that is complete, without ground truth or p-values, has no use for
    "zarr",
    "cv2",
    "tqdm",
    "PIL.PdfImagePlugin",  # one of the formats that Pillow imports together
    "wsiad.conformal.judgement",
    "wsiad.learning.training_options",
    "wsiad.results.judged",
    "wsiad.results.significance_comparison",
    "wsiad.results.significance_files",
    "wsiad.runs.presets",
    "wsiad.runs.second_look",
)
CODE = """
import sys
from wsiad.cli import main
code = main(sys.argv[2:])
print("HEAVY", code, *(name for name in sys.argv[1].split(",") if name in sys.modules))
"""


def imported(*arguments, of=HEAVY):
    """Exit code of a call of the command line, and the heavy modules that it imported."""
    command = [sys.executable, "-c", CODE, ",".join(of), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    word, code, *found = done.stdout.splitlines()[-1].split()
    assert word == "HEAVY"
    return int(code), found


@pytest.fixture
def scored(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    slide = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    run = make_run(tmp_path / "run")
    wsiad.heatmap(run=run, slides=slide, out=tmp_path / "out", quiet=True)
    return run, slide, tmp_path / "out"


def test_scored_slides_are_found_without_what_scores_them(scored):
    run, slide, out = scored
    before = (out / "slides.csv").read_bytes()
    found = imported("heatmap", run, slide, "--out", out, "--quiet", of=(*HEAVY, *IDLE))
    assert found == (0, [])
    assert (out / "slides.csv").read_bytes() == before


def test_what_is_left_to_score_needs_it(scored):
    run, slide, out = scored
    other = write_tiff(slide.with_name("t.tif"), stained(200, 200), mpp=0.5, levels=1)
    code, found = imported("heatmap", run, other, "--out", out, "--quiet")
    assert code == 1  # the new process does not know the detector
    assert "torch" in found


@pytest.mark.slow
def test_scoring_needs_nothing_that_only_fits_compiles_or_plots(tmp_path):
    tissue = {"min_area_um2": 0, "smooth_um": 0}
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(3):
        write_tiff(slides / f"{number}.tif", stained(400, 400), mpp=0.5, levels=1)
    wsiad.tile(slides=slides, out=tmp_path / "store", mpp=0.5, tile=64, tissue=tissue, quiet=True)
    run = tmp_path / "run"
    wsiad.train(
        store=tmp_path / "store", out=run, detector="gaussian", weights="random", quiet=True
    )
    unused = ("sklearn", "pandas", "torch._dynamo", "sympy", "matplotlib", "dask")
    found = imported("heatmap", run, slides, "--out", tmp_path / "out", "--quiet", of=unused)
    assert found == (0, [])


def test_results_are_exported_and_evaluated_without_torch(scored, tmp_path):
    run, slide, out = scored
    other = write_tiff(tmp_path / "t.tif", stained(200, 200), mpp=0.5, levels=1)
    wsiad.heatmap(run=run, slides=[slide, other], out=out, quiet=True)
    unused = (*HEAVY, "zarr", "h5py", "tifffile", "openslide", "tqdm", "PIL.PdfImagePlugin")
    assert imported("export", out, "--quiet", of=unused) == (0, [])
    (tmp_path / "reference.csv").write_text("slide,label\ns,normal\nt,tumor\n")
    unused = ("torch", "numba", "scipy.stats", "sklearn", "pandas", "zarr", "dask")
    _, found = imported(
        "evaluate", out, "--reference", tmp_path / "reference.csv", "--quiet", of=unused
    )
    assert found == []


def test_a_finished_store_needs_no_compiler(tmp_path):
    slide = write_tiff(tmp_path / "s.tif", stained(200, 200), mpp=0.5, levels=1)
    tissue = {"min_area_um2": 0, "smooth_um": 0}
    wsiad.tile(slides=slide, out=tmp_path / "store", mpp=0.5, tile=48, tissue=tissue, quiet=True)
    flags = ["--tissue-min-area-um2", 0, "--tissue-smooth-um", 0, "--mpp", 0.5, "--tile", 48]
    found = imported(
        *("tile", slide, "--out", tmp_path / "store", *flags, "--quiet"),
        of=("torch", "numba", "dask", "tqdm", "PIL.PdfImagePlugin"),
    )
    assert found == (0, [])


def test_the_legend_is_drawn_when_it_is_missing_or_the_calibration_is_another(scored):
    run, slide, out = scored
    legend = out / "colours.png"
    drawn, at = legend.read_bytes(), legend.stat().st_mtime_ns
    wsiad.heatmap(run=run, slides=slide, out=out, quiet=True)
    assert legend.stat().st_mtime_ns == at
    for file in (legend, out / "calibration.json"):
        legend.write_bytes(b"another")
        file.unlink()
        wsiad.heatmap(run=run, slides=slide, out=out, quiet=True)
        assert legend.read_bytes() == drawn
    with Image.open(legend) as image:
        assert image.size == (720, 180)


def test_devices_that_every_machine_has_are_not_looked_for(monkeypatch):
    monkeypatch.setattr("wsiad.learning.devices.choose_device", None)
    for name in ("auto", "cpu"):
        check_device(name)
    monkeypatch.undo()
    for function in (check_device, choose_device):
        with pytest.raises(ConfigError, match="is not a device"):
            function("abacus")
        with pytest.raises(ConfigError, match="this machine has"):
            function("cuda:99")
