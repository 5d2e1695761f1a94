"""What a path is, and what is said where two were mixed up."""

import errno
import os

import pytest

import wsiad
from wsiad import cli
from wsiad.core.config import differences
from wsiad.core.errors import EvaluationError, InputError, RunError, StoreError
from wsiad.core.files import atomic_file, said
from wsiad.results.job_status import job_status
from wsiad.runs.claim import begin
from wsiad.slides import folder_kinds
from wsiad.slides.folder_kinds import what_is


def folder(path, *names):
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def kinds(tmp_path):
    return {
        folder_kinds.SLIDES: folder(tmp_path / "slides", "a.svs", "notes.txt"),
        folder_kinds.STORE: folder(tmp_path / "store", "slides.zarr/x", "slides.csv", "run.json"),
        folder_kinds.RUN: folder(tmp_path / "run", "run.json", "detector.json", "config.yaml"),
        folder_kinds.RESULTS: folder(tmp_path / "results", "run.json", "slides.csv"),
        folder_kinds.EVALUATION: folder(tmp_path / "evaluation", "evaluation.json"),
        folder_kinds.SCORES: folder(tmp_path / "scores", "scores.csv", "evaluation.json"),
        folder_kinds.SEARCH: folder(tmp_path / "search", "trials.csv", "run.json", "config.yaml"),
        folder_kinds.NETWORK: folder(tmp_path / "network", "pretrain.json"),
        folder_kinds.SUGGESTED: folder(tmp_path / "suggested", "suggestions.json"),
        folder_kinds.INTERRUPTED: folder(tmp_path / "cut", "config.yaml", "metrics.csv"),
        folder_kinds.EXPORTED_IMAGES: folder(
            tmp_path / "png", "export.json", "tiles.csv", "a/x.png"
        ),
        folder_kinds.EXPORTED: folder(tmp_path / "clam", "export.json", "a.h5"),
    }


def test_each_kind_is_recognised(kinds, tmp_path):
    assert {kind: what_is(path) for kind, path in kinds.items()} == {k: k for k in kinds}
    assert what_is(folder(tmp_path / "deep", "case_1/a.svs")) == folder_kinds.SLIDES
    assert what_is(folder(tmp_path / "none")) == "an empty folder"
    assert what_is(folder(tmp_path / "other", "a.txt")) == "a folder of other things"
    assert what_is(tmp_path / "absent") == folder_kinds.ABSENT
    assert what_is(kinds[folder_kinds.SLIDES] / "a.svs") == folder_kinds.SLIDE
    # A run of wsiad heatmap that was killed while, or right after, it wrote its first slide.
    cut = [".a.0.partial/heatmap.ome.tif", "a/heatmap.ome.tif", "a/a_likelihood_map.tif"]
    assert what_is(folder(tmp_path / "heat", "run.json", *cut)) == "a folder of other things"
    # Results whose record is gone.
    lost = folder(tmp_path / "lost", "slides.csv", "a/slide.json", "a/spatial.ome.tif")
    assert what_is(lost) == "a folder of other things"
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    assert what_is(tmp_path / "link") == "a link to nothing"


def test_a_folder_around_what_is_wanted_names_it(kinds, tmp_path):
    slides, around = kinds[folder_kinds.SLIDES], tmp_path / "around"
    run = folder(around / "knn", "run.json", "detector.json")
    with pytest.raises(RunError, match=r"is not a run, but holds one\. Pass .*around/knn\.$"):
        wsiad.heatmap(run=around, slides=[slides], out=tmp_path / "out")
    with pytest.raises(InputError, match=r"neither a tile store, .* Pass .*around/knn\.$"):
        job_status(around)
    for name in "abcd":
        folder(around / name, "run.json", "detector.json")
    words = r"holds 5 of them\. Pass one of those in it: .*/a, .*/b, .*/c …\.$"
    with pytest.raises(RunError, match=words):
        wsiad.heatmap(run=around, slides=[slides], out=tmp_path / "out")
    # Slides beside them do not matter, nor do folders of other kinds.
    folder(around, "s.svs")
    folder(around / "results", "run.json", "slides.csv")
    with pytest.raises(InputError, match=r"not a results folder, but holds one\. Pass .*/results"):
        wsiad.export(results=around)
    with pytest.raises(StoreError, match=r"is not a tile store, but a folder of slides"):
        wsiad.train(store=around, out=tmp_path / "out")
    assert what_is(run) == folder_kinds.RUN


def test_run_and_slides_swapped(kinds, tmp_path):
    slides, run, out = kinds[folder_kinds.SLIDES], kinds[folder_kinds.RUN], tmp_path / "out"
    words = r"slides: is not a run, but a folder of slides\. .*run is a run: are the two swapped\?"
    with pytest.raises(RunError, match=words):
        wsiad.heatmap(run=slides, slides=[run], out=out)
    store = kinds[folder_kinds.STORE]
    with pytest.raises(RunError, match=r"but a tile store\. .*are the two swapped\?"):
        wsiad.score_tiles(run=store, store=run, out=out)


def test_what_was_given_is_named(kinds, tmp_path):
    slides, store, run, results = (
        kinds[kind]
        for kind in (
            folder_kinds.SLIDES,
            folder_kinds.STORE,
            folder_kinds.RUN,
            folder_kinds.RESULTS,
        )
    )
    out = tmp_path / "out"
    for given, words in ((store, "a tile store"), (results, "a results folder")):
        with pytest.raises(RunError, match=f"is not a run, but {words}"):
            wsiad.heatmap(run=given, slides=[slides], out=out)
    with pytest.raises(StoreError, match="is not a tile store, but a run"):
        wsiad.train(store=run, out=out, detector="gaussian")
    for given, words in ((run, "a run"), (store, "a tile store"), (slides, "a folder of slides")):
        with pytest.raises(InputError, match=f"is not a results folder, but {words}"):
            wsiad.view(results=given, browser=False)
        with pytest.raises(InputError, match=f"is not a results folder, but {words}"):
            wsiad.significance(results=given, healthy=given.parent / "results")
    with pytest.raises(InputError, match="is not a folder of slides, but a run"):
        wsiad.tile(slides=[run], out=out, mpp=1, tile=64)
    reference = tmp_path / "reference.csv"
    reference.write_text("image,type\na,normal\n")
    with pytest.raises(InputError, match="is not a results folder, but a tile store"):
        wsiad.evaluate(results=store, reference=reference, out=out)


def test_out_that_is_no_folder(kinds, tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to(tmp_path / "absent")
    slides = kinds[folder_kinds.SLIDES]
    for out, words in (
        (file, "file: is a file"),
        (file / "below", "file: is a file"),
        (link, "link: is a link to nothing"),
    ):
        with pytest.raises(InputError, match=words):
            wsiad.tile(slides=[slides], out=out, mpp=1, tile=64)


def test_differences_name_both_values():
    was = {"seed": 0, "options": {"places": 2, "x": 1}, "old": 1}
    now = {"seed": 7, "options": {"places": 3, "x": 1}, "new": None}
    assert differences(was, now) == [
        "seed 0 (now 7)",
        "options.places 2 (now 3)",
        "old 1 (now not stated)",
        "new not stated (now None)",
    ]


def test_what_the_system_refuses_is_said_in_one_line(tmp_path):
    assert "ulimit -f allows. Make room" in said(OSError(errno.EFBIG, "File too large"))
    assert "quota is full. Make room" in said(OSError(errno.ENOSPC, "No space left"))
    text = said(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x.csv"))
    assert text.startswith("x.csv: permission denied. Use another path")
    with pytest.raises(OSError, match=r"large") as error:
        with atomic_file(tmp_path / "w"):
            raise RuntimeError("Error while serializing: I/O error: File too large (os error 27)")
    assert error.value.errno == errno.EFBIG


def test_what_nobody_foresaw_is_one_line(monkeypatch, capsys):
    def fails(*_):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unexpected error (ZeroDivisionError: a\\nb)" in err
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tyle"], "did you mean 'tile'?"),
        (["train", "s", "--detecter", "knn"], "did you mean '--detector'?"),
        (["tile", "s", "--stain-methd=none"], "did you mean '--stain-method'?"),
        (["train", "s", "--option", "k=!!timestamp foo"], "the value of k is not YAML"),
    ],
)
def test_misspelt_words_get_the_nearest(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_missing_positional_is_called_as_the_command_line_does(capsys):
    assert cli.main(["heatmap", "--out", "o"]) == 2
    err = capsys.readouterr().err
    assert "RUN: is required" in err
    assert "SLIDES: is required" in err
    assert cli.main(["tile", "s", "--out", "o", "--mpp", "1", "--tile", "9", "--stain-method",
                     "maceno"]) == 2  # fmt: skip
    assert "did you mean 'macenko'?" in capsys.readouterr().err


def test_a_store_is_no_folder_of_slides_and_no_place_for_a_run(kinds, tmp_path):
    store = kinds[folder_kinds.STORE]
    with pytest.raises(InputError, match=f"is not {folder_kinds.SLIDES}, but {folder_kinds.STORE}"):
        wsiad.tile(slides=[store], out=tmp_path / "out", mpp=1.0, tile=96)
    for kind in (folder_kinds.STORE, folder_kinds.RESULTS, folder_kinds.SEARCH):
        with pytest.raises(RunError, match=f"holds {kind}, not a run"):
            begin(kinds[kind], record="run.json", what="run")
    with pytest.raises(RunError, match="holds a complete run already"):
        begin(kinds[folder_kinds.RUN], record="run.json", what="run")


def test_files_in_the_place_of_folders_are_named_without_an_errno(kinds, tmp_path):
    table, results = tmp_path / "ref.csv", kinds[folder_kinds.RESULTS]
    table.write_text("slide,label\na,normal\n")
    words = rf"ref\.csv: is not {folder_kinds.RESULTS}, but a \.csv file\. .*are the two swapped"
    with pytest.raises(EvaluationError, match=words):
        wsiad.evaluate(results=table, reference=results, out=tmp_path / "out")
    with pytest.raises(RunError, match=rf"is not {folder_kinds.RUN}, but a \.csv file"):
        wsiad.heatmap(run=table, slides=[kinds[folder_kinds.SLIDES]], out=tmp_path / "out")
